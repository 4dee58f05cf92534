//! A real memcached on a port of its own, that can be stopped and started again: with nothing of what it had.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use super::eventually;
use super::redis::port;

pub struct Memcached {
    pub port: u16,
    child: Option<Child>,
}

impl Memcached {
    pub fn start() -> Self {
        let port = port();
        let mut memcached = Memcached { port, child: None };
        memcached.start_again();
        memcached
    }

    pub fn start_again(&mut self) {
        let child = Command::new("memcached")
            .args(["-l", "127.0.0.1", "-p", &self.port.to_string(), "-U", "0"])
            // Who is not root is not asked for another name.
            .args(["-u", "nobody"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("memcached is installed: see the README's test command"));
        let port = self.port;
        eventually("memcached answers", || answers(port).unwrap_or(false));
    }

    /// kill -9.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// As it is written in a store's `nodes`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// Whether what is there speaks as memcached does.
fn answers(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"version\r\n")?;
    let mut word = [0; 8];
    stream.read_exact(&mut word)?;
    Ok(word == *b"VERSION ")
}

impl Drop for Memcached {
    fn drop(&mut self) {
        self.stop();
    }
}
