//! The kit: a proxy, origins, clients and certificates, so that a test is a few lines.
//!
//! Everything is real: the built binary, real sockets, real TLS. Nothing sleeps to wait for something: [`eventually`]
//! asks again until it is so, with a deadline.

pub mod browser;
pub mod certs;
pub mod client;
pub mod demo;
pub mod memcached;
pub mod origin;
pub mod proxy;
pub mod redis;
pub mod saying;
pub mod stores;
pub mod tokens;

use std::time::{Duration, Instant};

pub use client::Client;
pub use origin::Origin;
pub use proxy::Proxy;

/// How long anything may take before the test fails: generous, as machines are slow and busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until the answer is yes.
#[track_caller]
pub fn eventually(what: &str, holds: impl FnMut() -> bool) {
    within(PATIENCE, what, holds);
}

/// The same for what takes its time by design.
#[track_caller]
pub fn within(patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came about that {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The servers of a pool, as configuration.
pub fn servers(origins: &[&Origin]) -> String {
    origins.iter().map(|origin| server(&origin.name, &origin.address())).collect()
}

/// One server, as configuration.
pub fn server(name: &str, address: &str) -> String {
    format!("[[pool.server]]\nname = \"{name}\"\naddress = \"{address}\"\n")
}

/// One plain listener and one sticky pool over these origins; `more` goes below the pool.
pub fn plain(origins: &[&Origin], more: &str) -> String {
    format!("{PLAIN}{}{more}", servers(origins))
}

/// One TLS listener and one sticky pool over these origins.
pub fn tls(origins: &[&Origin], more: &str) -> String {
    format!(
        "{}{}{more}",
        PLAIN.replace("[[route]]", "[listener.tls]\nself_signed = [\"localhost\"]\n[[route]]"),
        servers(origins)
    )
}

const PLAIN: &str = "[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n[[route]]\npool = \"shop\"\n\
                     [[pool]]\nname = \"shop\"\nmode = \"sticky\"\ndebug_headers = true\n";
