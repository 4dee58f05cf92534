//! A real redis-server on a port of its own, that can be stopped and started again with what it had.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::eventually;

pub struct Redis {
    pub port: u16,
    child: Option<Child>,
    directory: tempfile::TempDir,
    more: Vec<String>,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments than the usual.
    pub fn start_with(more: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let more = more.iter().map(|word| (*word).to_owned()).collect();
        let mut redis = Redis { port, child: None, directory, more };
        redis.start_again();
        redis
    }

    /// It keeps every change in a file (`appendfsync always`).
    pub fn start_again(&mut self) {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
            .args(["--appendfsync", "always", "--dir"])
            .arg(self.directory.path())
            .args(&self.more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("redis-server is installed: see the README's test command"));
        let port = self.port;
        eventually("redis answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        eventually("redis has read its file", || !self.cli(&["ping"]).contains("LOADING"));
    }

    /// kill -9.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What redis-cli prints.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(arguments).output();
        String::from_utf8_lossy(&output.expect("redis-cli runs").stdout).into_owned()
    }

    /// Every byte that it keeps: its file, with all that was ever written.
    pub fn dump(&self) -> Vec<u8> {
        fn read(directory: &Path, into: &mut Vec<u8>) {
            for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
                if entry.path().is_dir() {
                    read(&entry.path(), into);
                } else {
                    into.extend(std::fs::read(entry.path()).unwrap_or_default());
                }
            }
        }
        let mut all = Vec::new();
        read(self.directory.path(), &mut all);
        all
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}
