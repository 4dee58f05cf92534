//! What steadfast holds in memory while many connections do little, and whether that grows:
//!
//!     cargo bench --bench memory                                # idle, slow readers, slow writers
//!     cargo bench --bench memory -- --soak 600 --plot soak.svg  # ten minutes of mixed traffic
//!
//! The figure is the resident memory that no other process shares (Pss), in MiB, less what the process held before. The
//! slow ones move 16 KiB a second. Needs nginx, wrk, h2load, openssl.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test or a bench may")]

#[allow(dead_code, reason = "the other benches use the rest")]
#[path = "peers/client.rs"]
mod client;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PORT: u16 = 21_443;
const ORIGIN: u16 = 21_001;
const UPLOADS: u16 = 21_005;
const IDLE: usize = 10_000;
/// Their answers fill socket buffers of several MiB each, and the kernel has a bound for all of them (`tcp_mem`).
const SLOW_READERS: usize = 200;
const SLOW_WRITERS: usize = 1_000;
const PIECE: usize = 16 * 1024;
const SLOW_FOR: Duration = Duration::from_secs(20);

fn main() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all).expect("more descriptors");
    let directory = tempfile::tempdir().expect("a temporary directory");
    prepare(directory.path());
    client::start_upload_origin(UPLOADS);
    let path = directory.path().to_str().unwrap();
    let _origin = Running::start("nginx", &["-p", path, "-c", &format!("{path}/origin.conf")]);
    match argument("--soak") {
        Some(seconds) => soak(path, Duration::from_secs(seconds.parse().expect("--soak takes seconds"))),
        None => {
            report(path, "idle TLS connections, each after one request", IDLE, idle);
            report(path, "slow readers of 10 MiB", SLOW_READERS, slow_readers);
            report(path, "slow writers of 10 MiB", SLOW_WRITERS, slow_writers);
        }
    }
}

/// Starts a proxy, lets connections do their work, and prints what it held.
fn report(path: &str, what: &str, count: usize, work: fn(usize, &mut dyn FnMut())) {
    let proxy = start_proxy(path);
    drop(client::idle(PORT, 50));
    std::thread::sleep(Duration::from_secs(2));
    let before = proxy.memory();
    let mut most: f64 = 0.0;
    let mut last = 0.0;
    work(count, &mut || {
        last = proxy.memory() - before;
        most = most.max(last);
    });
    println!(
        "{count} {what}: {last:.0} MiB at the end, {most:.0} at most; {:.1} KiB each",
        last * 1024.0 / count as f64
    );
}

fn idle(count: usize, look: &mut dyn FnMut()) {
    let (held, fine) = client::idle(PORT, count);
    assert!(fine, "all are answered");
    look();
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(1));
        drop(client::idle(PORT, 20));
        look();
    }
    drop(held);
}

fn slow_readers(count: usize, look: &mut dyn FnMut()) {
    let config = client::config();
    let mut held: Vec<client::Tls> =
        (0..count).map(|_| client::connect(&config, PORT).expect("a connection")).collect();
    for stream in &mut held {
        stream.write_all(b"GET /10m HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("a request is sent");
    }
    let mut piece = vec![0; PIECE];
    step_by_step(look, || {
        held.iter_mut().for_each(|stream| stream.read_exact(&mut piece).expect("the answer goes on"))
    });
}

fn slow_writers(count: usize, look: &mut dyn FnMut()) {
    let config = client::config();
    let mut held: Vec<client::Tls> =
        (0..count).map(|_| client::connect(&config, PORT).expect("a connection")).collect();
    for stream in &mut held {
        let head = b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10485760\r\n\r\n";
        stream.write_all(head).expect("a head is sent");
    }
    let piece = vec![b'x'; PIECE];
    step_by_step(look, || held.iter_mut().for_each(|stream| stream.write_all(&piece).expect("the upload goes on")));
}

/// A step each second, and a look after it.
fn step_by_step(look: &mut dyn FnMut(), mut step: impl FnMut()) {
    let end = Instant::now() + SLOW_FOR;
    while Instant::now() < end {
        let next = Instant::now() + Duration::from_secs(1);
        step();
        look();
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Mixed traffic in turns: keep-alive, HTTP/2, a handshake for each request, connections that stay idle for a while.
fn soak(path: &str, length: Duration) {
    let proxy = start_proxy(path);
    let url = format!("https://127.0.0.1:{PORT}/1k");
    let turns: [&dyn Fn(); 4] = [
        &|| run("wrk", &["-t1", "-c64", "-d2", &url]),
        &|| run("h2load", &["-t1", "-c16", "-m32", "-D2", &url]),
        &|| run("wrk", &["-t1", "-c16", "-d2", "-H", "Connection: close", &url]),
        &|| {
            let held = client::idle(PORT, 500);
            std::thread::sleep(Duration::from_secs(2));
            drop(held);
        },
    ];
    let start = Instant::now();
    let mut samples = Vec::new();
    while start.elapsed() < length {
        for turn in turns {
            turn();
            samples.push((start.elapsed().as_secs_f64(), proxy.memory()));
        }
    }
    // The same place in the round each time: after the idle ones have gone.
    let rounds: Vec<f64> = samples.iter().skip(3).step_by(4).map(|sample| sample.1).collect();
    let fifth = rounds.len() / 5;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    println!(
        "soak of {} s: {:.1} MiB on average in the second fifth, {:.1} in the last; at most {:.1}",
        length.as_secs(),
        mean(&rounds[fifth..2 * fifth]),
        mean(&rounds[rounds.len() - fifth..]),
        samples.iter().map(|sample| sample.1).fold(0.0, f64::max)
    );
    if let Some(file) = argument("--plot") {
        fs::write(file, plot(&samples)).expect("the plot is written");
    }
}

fn plot(samples: &[(f64, f64)]) -> String {
    let (width, height, margin) = (640.0, 240.0, 40.0);
    let seconds = samples.last().map_or(1.0, |sample| sample.0);
    let most = samples.iter().map(|sample| sample.1).fold(1.0, f64::max) * 1.1;
    let mut points = String::new();
    for (at, held) in samples {
        let x = margin + at / seconds * (width - 2.0 * margin);
        let y = height - margin - held / most * (height - 2.0 * margin);
        let _ = write!(points, "{x:.1},{y:.1} ");
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <path d=\"M{margin} {margin}V{bottom}H{right}\" fill=\"none\" stroke=\"#000\"/>\n\
         <polyline points=\"{points}\" fill=\"none\" stroke=\"#c2410c\"/>\n\
         <text x=\"{margin}\" y=\"30\">MiB held; the axis ends at {most:.0}</text>\n\
         <text x=\"{right}\" y=\"{below}\" text-anchor=\"end\">{seconds:.0} s of mixed traffic</text>\n</svg>\n",
        bottom = height - margin,
        right = width - margin,
        below = height - 20.0,
    )
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("the load generator runs");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

/// A process that ends with the bench.
struct Running(Child);

impl Running {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Running(command.spawn().expect("the program starts"))
    }

    /// MiB that it holds.
    fn memory(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0.id())).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).expect("a figure");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn start_proxy(path: &str) -> Running {
    let proxy =
        Running::start(env!("CARGO_BIN_EXE_steadfast"), &["run", "--config", &format!("{path}/steadfast.toml")]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !client::idle(PORT, 1).1 {
        assert!(Instant::now() < deadline, "the proxy does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    proxy
}

fn prepare(directory: &Path) {
    let path = directory.to_str().unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-keyout", &format!("{path}/key.pem"), "-out", &format!("{path}/cert.pem")])
        .stderr(Stdio::null())
        .status();
    assert!(made.is_ok_and(|status| status.success()), "openssl makes a certificate");
    fs::write(directory.join("1k"), "x".repeat(1_024)).unwrap();
    fs::write(directory.join("10m"), "x".repeat(10_485_760)).unwrap();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = temporary.map(|kind| format!("{kind}_temp_path {path}/scratch;\n")).concat();
    fs::write(
        directory.join("origin.conf"),
        format!(
            "daemon off; worker_processes 1; pid {path}/nginx.pid; error_log /dev/null crit;\n\
             events {{ worker_connections 8192; }}\nhttp {{ access_log off; keepalive_requests 1000000000;\n{temporary}\
             server {{ listen 127.0.0.1:{ORIGIN}; root {path}; default_type text/plain; }} }}\n"
        ),
    )
    .unwrap();
    fs::write(
        directory.join("steadfast.toml"),
        format!(
            "[process]\nworkers = 2\naccess_log = \"off\"\nmax_connections = 30000\n[admin]\naddress = \"127.0.0.1:21900\"\n\
             [[listener]]\nname = \"https\"\naddress = \"127.0.0.1:{PORT}\"\n[listener.tls]\n\
             certificates = [{{ cert = \"cert.pem\", key = \"key.pem\" }}]\n\
             [[route]]\npath = \"/upload\"\npool = \"uploads\"\n[[route]]\npool = \"files\"\n\
             [[pool]]\nname = \"uploads\"\nmode = \"sticky\"\n[pool.health]\ntype = \"off\"\n\
             [[pool.server]]\nname = \"u\"\naddress = \"127.0.0.1:{UPLOADS}\"\n\
             [[pool]]\nname = \"files\"\nmode = \"sticky\"\n[pool.health]\ntype = \"off\"\n\
             [[pool.server]]\nname = \"f\"\naddress = \"127.0.0.1:{ORIGIN}\"\n"
        ),
    )
    .unwrap();
}
