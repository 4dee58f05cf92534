//! `steadfast demo`: three app servers, and the proxy before them with two pools of the same three: a sticky one, where
//! they keep sessions in their own memory, and a shared one, where the proxy keeps them.
//!
//! The servers are processes of their own (this binary again), so that one can be killed for real. Who is killed is
//! started again after a while, with an empty memory: what that costs the users of each pool is the point of the demo.

mod sessions;
mod shop;

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use shop::serve;

use crate::app::{self, AppError};
use crate::keys::{RingKey, random_secret};

/// How long a killed server stays away.
const AWAY: Duration = Duration::from_secs(10);
const SERVERS: usize = 3;

/// Why the demo cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("the app servers cannot be started: {0}")]
    Servers(#[from] io::Error),
    #[error(transparent)]
    Proxy(#[from] AppError),
}

/// Runs the demo until Ctrl-C.
pub fn run(port: u16) -> Result<(), DemoError> {
    let ports = free_ports(SERVERS)?;
    let admin = if TcpListener::bind(("127.0.0.1", 9900)).is_ok() { 9900 } else { free_ports(1)?[0] };
    let directory = Directory::create()?;
    let config = directory.write(port, admin, &ports)?;
    let servers = Servers::start(&ports)?;
    print!("{}", guide(port, admin, &servers.pids()));
    let ended = Arc::new(AtomicBool::new(false));
    let watching = Arc::clone(&ended);
    let supervisor = std::thread::Builder::new().name("servers".into()).spawn(move || servers.watch_over(&watching))?;
    let served = app::run(&config);
    ended.store(true, Ordering::Relaxed);
    let _ = supervisor.join();
    Ok(served?)
}

/// Ports that nobody listens on; between here and their use somebody might, and then the start fails with a word.
fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let bound: io::Result<Vec<TcpListener>> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    bound?.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// The demo's own files; gone when it ends.
struct Directory(PathBuf);

impl Directory {
    fn create() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("steadfast-demo-{:016x}", fastrand::u64(..)));
        // Made by us alone: what lies there already may be anybody's.
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Directory(path))
    }

    fn write(&self, port: u16, admin: u16, ports: &[u16]) -> io::Result<PathBuf> {
        std::fs::write(self.0.join("demo.key"), RingKey::from_secret(random_secret()).to_line().as_bytes())?;
        let config = self.0.join("demo.toml");
        std::fs::write(&config, configuration(port, admin, ports))?;
        Ok(config)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn configuration(port: u16, admin: u16, ports: &[u16]) -> String {
    let mut listeners = format!("[[listener]]\nname = \"https\"\naddress = \"127.0.0.1:{port}\"\n{TLS}");
    if TcpListener::bind("[::1]:0").is_ok() {
        listeners.push_str(&format!("[[listener]]\nname = \"https-v6\"\naddress = \"[::1]:{port}\"\n{TLS}"));
    }
    let servers = ports
        .iter()
        .enumerate()
        .map(|(at, port)| format!("[[pool.server]]\nname = \"app-{}\"\naddress = \"127.0.0.1:{port}\"\n", at + 1))
        .collect::<String>();
    let index = INDEX.replace("{{port}}", &port.to_string());
    let (sticky, shared) = (pool("sticky", &servers), pool("shared", &servers));
    format!(
        "[process]\naccess_log = \"off\"\nmax_connections = 5000\nshutdown_grace = \"3s\"\n\
         [keys]\nring = [\"file:demo.key\"]\n[admin]\naddress = \"127.0.0.1:{admin}\"\n{listeners}\
         [[store]]\nname = \"main\"\n\
         [[route]]\n[route.respond]\nstatus = 200\nbody = '''\n{index}'''\n\
         {sticky}{shared}[pool.shared]\nstore = \"main\"\n"
    )
}

/// A pool by the name of its mode, and the route from the host of that name.
fn pool(mode: &str, servers: &str) -> String {
    format!(
        "[[route]]\nhost = \"{mode}.localhost\"\npool = \"{mode}\"\n\
         [[pool]]\nname = \"{mode}\"\nmode = \"{mode}\"\ndebug_headers = true\n{servers}\
         [pool.health]\npath = \"/healthz\"\ninterval = \"500ms\"\nfall = 2\n"
    )
}

/// What any other host is shown.
const INDEX: &str = include_str!("index.html");
const TLS: &str = "[listener.tls]\nself_signed = [\"localhost\", \"sticky.localhost\", \"shared.localhost\", \
                   \"*.localhost\", \"127.0.0.1\", \"::1\"]\n";

fn guide(port: u16, admin: u16, pids: &[u32]) -> String {
    let named = pids.iter().enumerate().map(|(at, pid)| format!("app-{} is process {pid}", at + 1));
    let named = named.collect::<Vec<_>>().join(", ");
    let (first, away) = (pids[0], AWAY.as_secs());
    format!(
        "
Three app servers, and two pools of them. In the sticky one each server keeps its users' sessions in its own memory, and
steadfast keeps each user on one server. In the shared one steadfast keeps the sessions, and any server serves anybody.
{named}.

Try:
  https://localhost:{port}/
      both shops (the certificate is self-signed: accept it)
  https://sticky.localhost:{port}/
      log in, fill the cart, reload: always the same server
  https://shared.localhost:{port}/
      the same: any server, and always your cart
  kill -9 {first}
      or the process that your page names; then reload. Sticky: its users move together to another server, and their
      carts are gone: that is what stickiness costs. Shared: another server goes on, nobody is logged out, no cart is
      lost. The server is started again after {away} seconds, with an empty memory.
  curl -k https://sticky.localhost:{port}/api/whoami
      without a cookie jar: any server, and nobody's session
  curl -k -c jar -b jar https://sticky.localhost:{port}/api/whoami
      with one: always the same server
  curl -k -c jar -b jar https://shared.localhost:{port}/api/whoami
      with one: any server, and the visits go on counting
  curl http://127.0.0.1:{admin}/metrics
      what happened, counted

Ctrl-C ends it.

"
    )
}

/// The app servers' processes.
struct Servers(Vec<Server>);

struct Server {
    name: String,
    port: u16,
    child: Option<Child>,
    again_at: Option<Instant>,
}

impl Servers {
    fn start(ports: &[u16]) -> io::Result<Self> {
        let servers = ports.iter().enumerate().map(|(at, port)| {
            let mut server = Server { name: format!("app-{}", at + 1), port: *port, child: None, again_at: None };
            server.start()?;
            Ok(server)
        });
        Ok(Servers(servers.collect::<io::Result<_>>()?))
    }

    fn pids(&self) -> Vec<u32> {
        self.0.iter().filter_map(|server| server.child.as_ref()).map(Child::id).collect()
    }

    /// Starts again whoever ends, until the demo does; then ends them all.
    fn watch_over(mut self, ended: &AtomicBool) {
        while !ended.load(Ordering::Relaxed) {
            self.0.iter_mut().for_each(Server::look_after);
            std::thread::sleep(Duration::from_millis(100));
        }
        for child in self.0.iter_mut().filter_map(|server| server.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Server {
    fn start(&mut self) -> io::Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["demo-server", "--name", &self.name, "--port", &self.port.to_string()]).stdin(Stdio::null());
        // Ctrl-C is for the demo: it ends them once their users are served.
        command.process_group(0);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    #[allow(clippy::disallowed_methods, reason = "a person watches: this is no exchange's time")]
    fn look_after(&mut self) {
        if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
            let how = status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
            println!("{} has ended ({how}); it is started again in {} seconds", self.name, AWAY.as_secs());
            self.child = None;
            self.again_at = Some(Instant::now() + AWAY);
        }
        if self.again_at.is_some_and(|at| Instant::now() >= at) {
            self.again_at = None;
            match self.start() {
                Ok(()) => println!("{} is back as process {}", self.name, self.child.as_ref().map_or(0, Child::id)),
                Err(error) => println!("{} cannot be started again: {error}", self.name),
            }
        }
    }
}
