//! `steadfast demo`: three app servers, and the proxy before them with three pools of the same three: a sticky one, in
//! which they keep sessions in their own memory, a shared one, in which the proxy keeps them, and a stateless one, in which
//! users carry them in tokens.
//!
//! Users who are made up, and a few robots, ask all three alike (`traffic`). The servers are processes of their own
//! (`servers`), and there are switches by which they are slowed down, killed for real, and joined by others (`stage`).
//! What that costs the users of each pool is the point of the demo, and is to be seen in the dashboard.

mod carried;
mod configuration;
mod form;
mod issuer;
mod pages;
mod reply;
mod servers;
mod sessions;
mod shop;
mod stage;
mod traffic;

use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use shop::serve;
pub use traffic::run as ask;

use crate::app::{self, AppError};
use configuration::{Directory, Places};
use servers::{AWAY, Seen, Servers};
use stage::Stage;
use traffic::Traffic;

/// Where the admin address is, if that is free.
const USUAL_ADMIN_PORT: u16 = 9900;

/// Why the demo cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("port {0} cannot be had ({1}); take another one by --port")]
    Port(u16, io::Error),
    #[error("the demo cannot be set up: {0}")]
    Setup(#[from] io::Error),
    #[error(transparent)]
    Proxy(#[from] AppError),
}

/// Runs the demo until Ctrl-C, with so many requests a second for each pool.
pub fn run(port: u16, rate: u32) -> Result<(), DemoError> {
    // The processes that are started from here on have it too.
    app::raise_descriptor_limit();
    // Before anything is started, and before users ask whoever is there.
    drop(TcpListener::bind(("127.0.0.1", port)).map_err(|error| DemoError::Port(port, error))?);
    let stage = Stage::bind()?;
    let places = Places {
        https: port,
        admin: bind_usual(USUAL_ADMIN_PORT)?.local_addr()?.port(),
        stage: stage.port,
        has_ipv6: TcpListener::bind("[::1]:0").is_ok(),
    };
    let directory = Directory::create()?;
    let servers = Servers::start(directory.path(), places)?;
    let traffic = Traffic::start(port, rate)?;
    say(&guide(&places, &servers.seen(), rate));
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = Arc::new(AtomicBool::new(false));
    let watching = Arc::clone(&ended);
    let beside = std::thread::Builder::new()
        .name("stage".into())
        .spawn(move || stage.run(&executor, servers, traffic, places, &watching))?;
    let served = app::run(&directory.configuration());
    ended.store(true, Ordering::Relaxed);
    let _ = beside.join();
    Ok(served?)
}

/// Listens on this port, or where that is taken on any.
fn bind_usual(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", port)).or_else(|_| TcpListener::bind("127.0.0.1:0"))
}

/// Tells whoever started the demo, if they are still there.
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// A process of this very binary. Ctrl-C is not for it: the demo ends it, once its users are served.
fn own_process(arguments: &[&str]) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).process_group(0);
    Ok(command)
}

/// kill -9, and what is left of it.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn guide(places: &Places, servers: &[Seen], rate: u32) -> String {
    let named = servers.iter().map(|server| format!("{} is process {}", server.name, server.pid.unwrap_or_default()));
    let named = named.collect::<Vec<_>>().join(", ");
    let (port, dashboard, stage, away) = (places.https, places.dashboard(), places.stage(), AWAY.as_secs());
    let traffic = of_traffic(rate);
    format!(
        "
Three app servers, and three pools of them. In the sticky one each server keeps its users' sessions in its own memory, and
steadfast keeps each user on one server. In the shared one steadfast keeps the sessions, and any server serves anybody. In
the stateless one nobody keeps anything: each user carries a signed token, and any server serves anybody.
{named}.
{traffic}

Look:
  {dashboard}
      the dashboard: where sessions are, how even the load is, and, after about half a minute, what the very traffic of
      each pool would meet if it were sticky, with hard or soft pins, or shared
  {stage}
      the switches. Slow a server down, and compare the three pools. Kill one: in the sticky pool its users log in again
      and their carts are gone, in the others nobody is logged out; it is back after {away} seconds. Add one, and see how
      long it takes until the sticky pool uses it
  https://localhost:{port}/
      the three shops (the certificate is self-signed: accept it). Log in, fill the cart, kill the server that served you
      (the page names its process: kill -9 does it too), and reload
  https://shared.localhost:{port}/payout, https://stateless.localhost:{port}/payout
      only for those who have shown a second factor lately: the proxy asks for it first

By hand:
  curl -d server=app-1 {stage}slow
      or fast, or kill; and for one more: curl -d '' {stage}add
  curl -k -c jar -b jar https://sticky.localhost:{port}/api/whoami
      always the same server, and without the jar any; in the shared shop any, and the visits go on counting
  curl -k -H 'Sec-Fetch-Site: cross-site' -d item=Teapot https://shared.localhost:{port}/cart
      what a form on another site would do: 403
  steadfast ctl --address 127.0.0.1:{} sessions list
      who is logged in to the shared shop; of the stateless one nobody can tell
  curl {dashboard}metrics
      what happened, counted

Ctrl-C ends it.
",
        places.admin
    )
}

fn of_traffic(rate: u32) -> String {
    if rate == 0 {
        return "Nobody asks them but you.".to_owned();
    }
    let most = (servers::FIRST * shop::WORKERS) as f64 / shop::WORK;
    format!(
        "Users who are made up, and a few robots, send {rate} requests a second to each pool: {:.0} % of the {most:.0} that\n\
         three servers can do, with {} workers for each pool and {:.0} ms of work for a page.",
        f64::from(rate) / most * 100.0,
        shop::WORKERS,
        shop::WORK * 1_000.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: Places = Places { https: 8443, admin: 9900, stage: 9901, has_ipv6: true };

    fn guide(rate: u32) -> String {
        let server = Seen { name: "app-1".to_owned(), pid: Some(4711), state: "running", says: "running".to_owned() };
        super::guide(&PLACES, &[server], rate)
    }

    #[test]
    fn the_guide_names_the_dashboard_first_then_the_switches_then_the_shops() {
        let guide = guide(150);
        let places = [
            "app-1 is process 4711",
            "http://127.0.0.1:9900/\n",
            "http://127.0.0.1:9901/\n",
            "https://localhost:8443/\n",
            "https://shared.localhost:8443/payout",
            "https://stateless.localhost:8443/payout",
            "http://127.0.0.1:9901/slow\n",
            "https://sticky.localhost:8443/api/whoami",
            "127.0.0.1:9900 sessions list",
            "http://127.0.0.1:9900/metrics\n",
        ]
        .map(|place| guide.find(place).unwrap_or_else(|| panic!("{place} in {guide}")));
        assert!(places.is_sorted(), "{places:?}");
        assert!(guide.ends_with("Ctrl-C ends it.\n"));
    }

    #[test]
    fn it_says_how_much_of_what_the_servers_can_do_is_asked_of_them() {
        let busy = guide(150);
        assert!(busy.contains("send 150 requests a second to each pool: 50 % of the 300 that\nthree"), "{busy}");
        assert!(busy.contains("with 4 workers for each pool and 40 ms of work for a page"), "{busy}");
        assert!(guide(0).contains("Nobody asks them but you."));
    }
}
