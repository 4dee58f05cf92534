//! The proxy under test: a process of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Where the first one listens; others are beside it.
const PORT: u16 = 22_080;
const ADMIN: u16 = 22_900;

/// One proxy of those that run at once.
pub struct Proxy {
    number: u16,
    keys: String,
    child: Option<Child>,
}

impl Proxy {
    /// `keys` are the pool's.
    pub fn start(number: u16, origins: &[SocketAddr], keys: &str) -> Self {
        let mut proxy = Proxy { number, keys: keys.to_owned(), child: None };
        proxy.configure(origins);
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
        command.args(["run", "--config"]).arg(proxy.config());
        proxy.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", proxy.port())).is_err() {
            assert!(Instant::now() < deadline, "the proxy does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        proxy
    }

    pub fn port(&self) -> u16 {
        PORT + self.number
    }

    fn file(&self, kind: &str) -> PathBuf {
        std::env::temp_dir().join(format!("steadfast-stickiness-{}-{}.{kind}", std::process::id(), self.number))
    }

    pub fn config(&self) -> PathBuf {
        self.file("toml")
    }

    /// Its access log.
    pub fn log(&self) -> PathBuf {
        self.file("log")
    }

    fn configure(&self, origins: &[SocketAddr]) {
        let servers = origins.iter().enumerate().map(|(at, address)| {
            let capacity = if self.keys.contains(KNOWN) { crate::workload::WORKERS } else { 0 };
            format!("[[pool.server]]\nname = \"o{at}\"\naddress = \"{address}\"\ncapacity = {capacity}\n")
        });
        let (port, admin, log) = (self.port(), ADMIN + self.number, self.log());
        let configuration = format!(
            "[process]\nworkers = 1\nwatch = false\ntrusted_proxies = [\"127.0.0.0/8\"]\naccess_log = \"{}\"\nmax_connections = 5000\n\
             [admin]\naddress = \"127.0.0.1:{admin}\"\n[[store]]\nname = \"main\"\n\
             [[listener]]\nname = \"main\"\naddress = \"127.0.0.1:{port}\"\n\
             [[route]]\npool = \"p\"\n\
             [[pool]]\nname = \"p\"\n{}[pool.connections]\nidle = 1000\n{}",
            log.display(),
            self.keys,
            servers.collect::<String>()
        );
        std::fs::write(self.config(), configuration).unwrap();
    }

    /// Servers come and go; the reload is taken when this returns.
    pub async fn reconfigure(&self, origins: &[SocketAddr]) {
        self.configure(origins);
        let reply = self.admin(Request::post("/api/v1/reload")).await;
        assert!(reply.contains("true"), "{reply}");
    }

    /// Asks the admin surface.
    async fn admin(&self, request: http::request::Builder) -> String {
        let stream = TcpStream::connect(("127.0.0.1", ADMIN + self.number)).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = request.header(header::HOST, "localhost").body(Empty::<Bytes>::new()).unwrap();
        let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        String::from_utf8_lossy(&body).into_owned()
    }

    /// What is known of the pool.
    pub async fn pool(&self) -> Value {
        serde_json::from_str(&self.admin(Request::get("/api/v1/pools/p")).await).unwrap()
    }

    /// Kept among those that had a pin to keep, by the proxy's own count.
    pub async fn verdicts(&self) -> (f64, f64) {
        let text = self.admin(Request::get("/metrics")).await;
        let sum = |verdict: &str| -> f64 {
            let is_meant = |line: &&str| line.starts_with("steadfast_affinity_total") && line.contains(verdict);
            let lines = text.lines().filter(is_meant);
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let kept = sum("verdict=\"kept\"");
        (kept, kept + sum("verdict=\"moved\""))
    }

    /// Ends it, so that everything is in its log.
    pub async fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
            let _ = tokio::task::spawn_blocking(move || child.wait()).await;
        }
    }
}

/// In the pool's keys: the twin is told what servers can do.
pub const KNOWN: &str = "# known\n";

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for path in [self.config(), self.log()] {
            let _ = std::fs::remove_file(path);
        }
    }
}
