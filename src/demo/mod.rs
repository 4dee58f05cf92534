//! `steadfast demo`: three app servers, and the proxy before them with three pools of the same three: a sticky one, where
//! they keep sessions in their own memory, a shared one, where the proxy keeps them, and a stateless one, where users carry
//! them in tokens.
//!
//! The servers are processes of their own (this binary again), so that one can be killed for real. Who is killed is
//! started again after a while, with an empty memory: what that costs the users of each pool is the point of the demo.

mod carried;
mod form;
mod issuer;
mod pages;
mod sessions;
mod shop;

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use issuer::Issuer;
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
    let servers = Servers::start(&ports, &directory.0)?;
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
        Issuer::create(&self.0)?;
        let config = self.0.join(issuer::CONFIG_FILE);
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
    let [sticky, shared, stateless] = ["sticky", "shared", "stateless"].map(|mode| pool(mode, &servers));
    format!(
        "[process]\naccess_log = \"off\"\nmax_connections = 5000\nshutdown_grace = \"3s\"\n\
         [keys]\nring = [\"file:demo.key\"]\n[admin]\naddress = \"127.0.0.1:{admin}\"\n{listeners}\
         [[store]]\nname = \"main\"\n\
         [[route]]\n[route.respond]\nstatus = 200\nbody = '''\n{index}'''\n\
         {sticky}{shared}[pool.shared]\nstore = \"main\"\n{}{stateless}{}{}{}",
        payout("shared"),
        tokens(),
        payout("stateless"),
        LOGIN
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

/// A page for those who have shown a second factor lately.
fn payout(mode: &str) -> String {
    format!(
        "[[route]]\nhost = \"{mode}.localhost\"\npath = \"/payout\"\npool = \"{mode}\"\n\
         require = {{ acr = [\"mfa\"], max_age = \"10m\" }}\nlogin_url = \"/step-up\"\n"
    )
}

/// Whose tokens the stateless pool takes.
fn tokens() -> String {
    let (name, audience, jwks) = (issuer::NAME, issuer::AUDIENCE, issuer::JWKS_FILE);
    format!(
        "[pool.stateless]\ncarrier = \"cookie:token\"\n[[pool.stateless.issuer]]\nissuer = \"{name}\"\n\
         jwks = \"file:{jwks}\"\naudience = [\"{audience}\"]\nalgorithms = [\"EdDSA\"]\n"
    )
}

/// A token that is expired or revoked is refused wherever tokens are looked at. Whoever has such a one can log in again
/// because here nobody looks.
const LOGIN: &str = "[[route]]\nhost = \"stateless.localhost\"\npath = \"/login\"\npool = \"stateless\"\n\
                     session = \"off\"\n";
/// What any other host is shown.
const INDEX: &str = include_str!("index.html");
const TLS: &str = "[listener.tls]\nself_signed = [\"localhost\", \"sticky.localhost\", \"shared.localhost\", \
                   \"stateless.localhost\", \"*.localhost\", \"127.0.0.1\", \"::1\"]\n";

fn guide(port: u16, admin: u16, pids: &[u32]) -> String {
    let named = pids.iter().enumerate().map(|(at, pid)| format!("app-{} is process {pid}", at + 1));
    let named = named.collect::<Vec<_>>().join(", ");
    let (first, away) = (pids[0], AWAY.as_secs());
    format!(
        "
Three app servers, and three pools of them. In the sticky one each server keeps its users' sessions in its own memory, and
steadfast keeps each user on one server. In the shared one steadfast keeps the sessions, and any server serves anybody. In
the stateless one nobody keeps anything: each user carries a signed token, and any server serves anybody.
{named}.

Try:
  https://localhost:{port}/
      the three shops (the certificate is self-signed: accept it)
  https://sticky.localhost:{port}/
      log in, fill the cart, reload: always the same server
  https://shared.localhost:{port}/
      the same: any server, and always your cart
  https://stateless.localhost:{port}/
      the same: any server; the page says what your token has told, and what a logout cannot do
  kill -9 {first}
      or the process that your page names; then reload. Sticky: its users move together to another server, and their
      carts are gone: that is what stickiness costs. Shared and stateless: another server goes on, nobody is logged out, no
      cart is lost. The server is started again after {away} seconds, with an empty memory.
  https://shared.localhost:{port}/payout, https://stateless.localhost:{port}/payout
      only for those who have shown a second factor lately: the proxy asks for it first
  curl -k https://sticky.localhost:{port}/api/whoami
      without a cookie jar: any server, and nobody's session
  curl -k -c jar -b jar https://sticky.localhost:{port}/api/whoami
      with one: always the same server
  curl -k -c jar -b jar https://shared.localhost:{port}/api/whoami
      with one: any server, and the visits go on counting
  curl -k -c jar -d user=Ada https://stateless.localhost:{port}/login
  curl -k -b jar https://stateless.localhost:{port}/api/whoami
      a token, and who carries it
  curl -k -H 'Sec-Fetch-Site: cross-site' -d item=Teapot https://shared.localhost:{port}/cart
      what a form on another site would do: 403
  steadfast ctl --address 127.0.0.1:{admin} sessions list
      who is logged in to the shared shop; of the stateless one nobody can tell
  http://127.0.0.1:{admin}/
      the dashboard: where sessions are, what each server has, buttons for drain and maint
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
    /// Where the demo's own files are.
    directory: PathBuf,
    child: Option<Child>,
    again_at: Option<Instant>,
}

impl Servers {
    fn start(ports: &[u16], directory: &Path) -> io::Result<Self> {
        let servers = ports.iter().enumerate().map(|(at, port)| {
            let (name, directory) = (format!("app-{}", at + 1), directory.to_owned());
            let mut server = Server { name, port: *port, directory, child: None, again_at: None };
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
        command.env(issuer::DIRECTORY, &self.directory);
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_demos_configuration_is_fine() {
        crate::tls::install_provider();
        let directory = Directory::create().unwrap();
        let config = directory.write(8443, 9900, &[9001, 9002, 9003]).unwrap();
        match crate::config::load(&config, &HashSet::new()) {
            Ok(loaded) => assert!(loaded.warnings.problems.is_empty(), "{}", loaded.warnings.human(false)),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn the_guide_names_every_shop() {
        let guide = guide(8443, 9900, &[1, 2, 3]);
        for shop in ["https://localhost:8443/", "https://sticky.", "https://shared.", "https://stateless."] {
            assert!(guide.contains(shop), "{shop}");
        }
        assert!(guide.ends_with("Ctrl-C ends it.\n\n"));
    }
}
