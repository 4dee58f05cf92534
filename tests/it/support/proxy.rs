//! The built binary, with a configuration of the test's own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use super::{Client, eventually};

pub const BINARY: &str = env!("CARGO_BIN_EXE_steadfast");

/// A running proxy. When it is dropped, it is held to its books: as many requests as verdicts in every pool, and a
/// regret for each pin that held.
pub struct Proxy {
    child: Child,
    directory: tempfile::TempDir,
    stdout: Lines,
    stderr: Lines,
}

type Lines = Arc<Mutex<Vec<String>>>;

/// The metrics of one moment.
pub struct Scrape(pub String);

impl Scrape {
    /// The sum of the values of a metric whose labels contain all of these.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let lines = self.0.lines().filter(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

impl Proxy {
    /// Starts a proxy of two workers. `[admin]` is added; listeners take port 0.
    pub fn start(configuration: &str) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary directory"), configuration)
    }

    /// Starts a proxy whose configuration names files of this directory.
    pub fn start_in(directory: tempfile::TempDir, configuration: &str) -> Self {
        write_configuration(directory.path(), configuration);
        let mut child = Command::new(BINARY)
            .args(["run", "--config"])
            .arg(directory.path().join("steadfast.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stdout = collect(child.stdout.take().expect("piped"));
        let stderr = collect(child.stderr.take().expect("piped"));
        let mut proxy = Proxy { child, directory, stdout, stderr };
        eventually("the proxy announces its admin surface", || {
            let ended = proxy.child.try_wait().expect("a child can be asked");
            let announced = proxy.logged("admin surface").is_some();
            assert!(announced || ended.is_none(), "it ended before it was up");
            announced
        });
        eventually("the proxy is ready", || proxy.admin("/readyz").is_some_and(|reply| reply.contains("ready")));
        proxy
    }

    /// The address of a listener.
    pub fn address(&self, listener: &str) -> SocketAddr {
        let line = self.logged(&format!("listening listener={listener} ")).expect("the listener was announced");
        after(&line, "address=").parse().expect("an address")
    }

    /// A client of the listener `main`, plain.
    pub fn client(&self) -> Client {
        Client::plain(self.address("main"))
    }

    /// A client of the listener `main`, over TLS and HTTP/1.1.
    pub fn tls_client(&self) -> Client {
        Client::tls(self.address("main"))
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the process has said on standard error.
    pub fn log(&self) -> String {
        self.stderr.lock().unwrap().join("\n")
    }

    /// The last line of the log that has this in it.
    pub fn logged(&self, text: &str) -> Option<String> {
        self.stderr.lock().unwrap().iter().rev().find(|line| line.contains(text)).cloned()
    }

    fn times_logged(&self, text: &str) -> usize {
        self.stderr.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    /// The access log so far.
    pub fn access_log(&self) -> Vec<serde_json::Value> {
        let lines = self.stdout.lock().unwrap().clone();
        lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// Where the admin surface is.
    pub fn admin_address(&self) -> SocketAddr {
        let line = self.logged("admin surface").expect("it was announced");
        after(&line, "address=").parse().expect("an address")
    }

    /// The body of a page of the admin surface, once it is there. Where metrics have an address of their own, that is
    /// asked: it knows neither token nor TLS.
    pub fn admin(&self, path: &str) -> Option<String> {
        let own =
            self.logged("INFO metrics address=").map(|line| after(&line, "address=").parse().expect("an address"));
        let address = own.unwrap_or_else(|| self.admin_address());
        Client::plain(address).host("localhost").try_get(path).ok().map(|reply| reply.text())
    }

    /// The metrics as they are now.
    pub fn scrape(&self) -> Scrape {
        Scrape(self.admin("/metrics").expect("metrics are served"))
    }

    /// The sum of the values of a metric whose labels contain all of these.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        self.scrape().sum(name, labels)
    }

    /// Writes another configuration and reloads; whether it was taken.
    pub fn reload(&self, configuration: &str) -> bool {
        let taken = self.times_logged("configuration reloaded");
        let rejected = self.times_logged("configuration was rejected");
        write_configuration(self.path(), configuration);
        self.signal("HUP");
        eventually("the reload is decided", || {
            self.times_logged("configuration reloaded") > taken
                || self.times_logged("configuration was rejected") > rejected
        });
        self.times_logged("configuration reloaded") > taken
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// kill -9; gives what it left behind.
    pub fn kill(mut self) -> tempfile::TempDir {
        let _ = self.child.kill();
        let _ = self.child.wait();
        std::mem::replace(&mut self.directory, tempfile::tempdir().expect("a temporary directory"))
    }

    /// What a proxy says that cannot start, with another's files.
    pub fn try_start(directory: &Path, configuration: &str) -> String {
        let path = directory.join("second.toml");
        let whole = format!("[admin]\naddress = \"127.0.0.1:0\"\n[process]\nworkers = 1\n{configuration}");
        std::fs::write(&path, whole).expect("the configuration is written");
        let output = Command::new(BINARY).args(["run", "--config"]).arg(path).stdin(Stdio::null()).output();
        String::from_utf8_lossy(&output.expect("it runs and ends").stderr).into_owned()
    }

    /// Waits for the process to end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.child.try_wait().expect("a child can be asked");
            status.is_some()
        });
        status.expect("it has ended")
    }

    fn check_books(&self) {
        eventually("nothing is in flight", || self.metric("steadfast_in_flight", &[]) == 0.0);
        let text = self.admin("/metrics").expect("metrics are served");
        let pools: std::collections::BTreeSet<&str> = text
            .lines()
            .filter(|line| line.starts_with("steadfast_affinity_total"))
            .filter_map(|line| line.split("pool=\"").nth(1)?.split('"').next())
            .collect();
        for pool in pools {
            let label = format!("pool=\"{pool}\"");
            let sums = || {
                let scrape = self.scrape();
                let of = |name: &str, verdict: &str| scrape.sum(name, &[&label, verdict]);
                let all = (of("steadfast_requests_total", ""), of("steadfast_affinity_total", ""));
                let held = ["kept", "waited"].map(|verdict| of("steadfast_affinity_total", &format!("=\"{verdict}\"")));
                (all, (held[0] + held[1], of("steadfast_affinity_regret_seconds_count", "")))
            };
            eventually(&format!("requests and verdicts of {pool} agree, and regrets ({:?})", sums()), || {
                let ((requests, verdicts), (held, regrets)) = sums();
                requests == verdicts && held == regrets
            });
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let runs = matches!(self.child.try_wait(), Ok(None));
        if runs && !std::thread::panicking() {
            self.check_books();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the proxy\n{}\n---", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_configuration(directory: &Path, configuration: &str) {
    let mut whole = String::from("[admin]\naddress = \"127.0.0.1:0\"\n");
    if !configuration.contains("[process]") {
        whole.push_str("[process]\nworkers = 2\nmax_connections = 5000\nwatch = false\n");
    }
    whole.push_str(configuration);
    let path: PathBuf = directory.join("steadfast.toml");
    std::fs::write(path, whole).expect("the configuration is written");
}

fn collect(pipe: impl std::io::Read + Send + 'static) -> Lines {
    let lines = Lines::default();
    let collected = Arc::clone(&lines);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            collected.lock().unwrap().push(line);
        }
    });
    lines
}

/// Sends a signal to a process by its id.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()), "the signal is sent");
}

fn after(line: &str, key: &str) -> String {
    let rest = line.split(key).nth(1).unwrap_or_default();
    rest.split_whitespace().next().unwrap_or_default().to_owned()
}
