//! The demo, as a user starts it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::browser::free_port;
use super::proxy::{BINARY, Scrape, signal};
use super::{Client, eventually};

/// A running demo; it ends with the test.
pub struct Demo {
    child: Child,
    port: u16,
    /// What it printed at its start.
    pub guide: String,
}

impl Demo {
    /// Starts it with so many requests a second for each pool.
    pub fn start(traffic: u32) -> Self {
        // Two that begin at once may both find the usual ports free.
        static BEGINNING: Mutex<()> = Mutex::new(());
        let _turn = BEGINNING.lock().unwrap_or_else(PoisonError::into_inner);
        let port = free_port();
        let mut child = Command::new(BINARY)
            .args(["demo", "--port", &port.to_string(), "--traffic", &traffic.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap());
        let mut guide = String::new();
        while !guide.contains("Ctrl-C ends it") {
            assert!(printed.read_line(&mut guide).unwrap() > 0, "the guide is printed");
        }
        std::thread::spawn(move || std::io::copy(&mut printed, &mut std::io::sink()));
        let demo = Demo { child, port, guide };
        for host in ["localhost", "sticky.localhost", "shared.localhost", "stateless.localhost"] {
            let mut client = demo.client(host);
            eventually("the demo answers", || client.try_get("/").is_ok_and(|reply| reply.status == 200));
        }
        demo
    }

    /// A client of one host of the proxy.
    pub fn client(&self, host: &str) -> Client {
        Client::tls(([127, 0, 0, 1], self.port).into()).server_name(host)
    }

    pub fn index(&self) -> String {
        format!("https://localhost:{}/", self.port)
    }

    pub fn shop(&self, pool: &str) -> String {
        format!("https://{pool}.localhost:{}/", self.port)
    }

    /// The dashboard is what the guide names first.
    pub fn admin_address(&self) -> SocketAddr {
        self.named(0)
    }

    /// The switches come next.
    pub fn stage_address(&self) -> SocketAddr {
        self.named(1)
    }

    fn named(&self, place: usize) -> SocketAddr {
        let after = self.guide.split("http://").nth(place + 1).expect("the guide names it");
        after.split('/').next().unwrap_or_default().parse().expect("an address")
    }

    /// A page of the admin surface.
    pub fn admin(&self, path: &str) -> String {
        Client::plain(self.admin_address()).host("localhost").get(path).text()
    }

    /// The sum of the values of a metric whose labels contain all of these.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        Scrape(self.admin("/metrics")).sum(name, labels)
    }

    /// What says of no page where it comes from, as curl does.
    pub fn stage(&self) -> Client {
        Client::plain(self.stage_address()).silent()
    }

    /// The servers and the traffic, as the switches see them.
    pub fn state(&self) -> Value {
        serde_json::from_slice(&self.stage().get("/state").body).unwrap()
    }

    /// Sends a signal by name, and waits for the end.
    pub fn end(&mut self, name: &str) {
        signal(self.child.id(), name);
        eventually("the demo ends", || self.child.try_wait().unwrap().is_some());
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.child.id(), "TERM");
            let _ = self.child.wait();
        }
    }
}
