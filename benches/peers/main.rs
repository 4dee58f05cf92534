//! CPU time per exchange, and memory per idle connection, of steadfast, nginx and HAProxy, side by side in one run: of
//! every nginx and every haproxy that is found on PATH and in /usr/sbin. Debian's are old, and their OpenSSL is slow; put
//! newer ones on PATH to be told more. Then steadfast beside itself: 1,000 servers and 4, two workers and one.
//!
//!     cargo bench --bench peers                          # 3 rounds of 5 s
//!     cargo bench --bench peers -- --rounds 5 --seconds 30 --plot peers.svg
//!     cargo bench --bench peers -- --only resumption     # scenarios whose name has this in it, and nothing else
//!     cargo bench --bench peers -- --only shared         # what sessions in the proxy cost beside pins
//!
//! Each proxy has one worker, pinned to core 0; four origins (one nginx) and the load are pinned to core 1. The figure
//! is user and system time of all the proxy's processes, from /proc/PID/stat, divided by the answered requests: on a
//! shared machine it holds where throughput and latency are noise. Proxies take turns within a round; the table shows
//! medians over rounds with minimum and maximum, and the ratio to the best of the others. Memory is what the proxy's
//! processes hold alone and their part of what they share (Pss), over 2,000 connections that have had one request each.
//! Two workers get twice the connections of one, so that each has as much to do. They need both cores, which the load is
//! on as well; so they are measured on one core too, and nginx beside itself in the same way.
//!
//! Needs nginx, haproxy, wrk, h2load (Debian: nginx-light haproxy wrk nghttp2-client), openssl and taskset.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test or a bench may")]

mod client;
mod plot;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use client::Done;

const ORIGIN_PORTS: [u16; 4] = [21_001, 21_002, 21_003, 21_004];
const UPLOAD_PORT: u16 = 21_005;
const FIRST_PORT: u16 = 21_443;
const IDLE: usize = 2_000;

/// One of those that are compared.
struct Proxy {
    kind: Kind,
    program: PathBuf,
    version: String,
    port: u16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Steadfast,
    Nginx,
    Haproxy,
}

impl Proxy {
    /// steadfast first, then every peer there is.
    fn all() -> Vec<Proxy> {
        let own = (Kind::Steadfast, PathBuf::from(env!("CARGO_BIN_EXE_steadfast")));
        let nginx = installed("nginx").into_iter().map(|program| (Kind::Nginx, program));
        let haproxy = installed("haproxy").into_iter().map(|program| (Kind::Haproxy, program));
        let all = std::iter::once(own).chain(nginx).chain(haproxy).zip(FIRST_PORT..);
        all.map(|((kind, program), port)| Proxy { kind, version: version(kind, &program), program, port }).collect()
    }

    fn configuration(&self, directory: &Path) -> PathBuf {
        directory.join(format!("proxy-{}", self.port))
    }

    fn prepare(&self, directory: &Path) {
        let text = match self.kind {
            Kind::Steadfast => steadfast(self.port, 21_900, 1, 4),
            Kind::Nginx => nginx(directory, self, self.port, 1),
            Kind::Haproxy => haproxy(directory, self.port),
        };
        fs::write(self.configuration(directory), text).expect("a file of the bench");
    }

    fn start(&self, directory: &Path) -> Running {
        let file = self.configuration(directory);
        let arguments: &[&str] = match self.kind {
            Kind::Steadfast => &["run", "--config", text(&file)],
            Kind::Nginx => &["-p", text(directory), "-c", text(&file)],
            Kind::Haproxy => &["-f", text(&file)],
        };
        start("0", text(&self.program), arguments)
    }
}

/// Every program of this name, each once.
fn installed(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let mut found: Vec<PathBuf> = places.filter_map(|place| fs::canonicalize(place.join(name)).ok()).collect();
    let mut known = std::collections::HashSet::new();
    found.retain(|program| known.insert(program.clone()));
    found
}

/// What stands in the table's head: `nginx 1.31.4`.
fn version(kind: Kind, program: &Path) -> String {
    let (name, flag) = match kind {
        Kind::Steadfast => return format!("steadfast {}", env!("CARGO_PKG_VERSION")),
        Kind::Nginx => ("nginx", "-v"),
        Kind::Haproxy => ("HAProxy", "-v"),
    };
    let output = Command::new(program).arg(flag).output().expect("the program runs");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let number = said.split([' ', '/', '-', '\n']).find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    format!("{name} {}", number.unwrap_or("of unknown version"))
}

struct Scenario {
    name: &'static str,
    path: &'static str,
    load: Load,
    /// Clients send the cookie that they were given.
    keeps_cookie: bool,
}

#[derive(Clone, Copy)]
enum Load {
    Http1,
    Http2,
    /// Few connections, each with much to read.
    Downloads,
    /// Few connections, each with much to send.
    Uploads,
    /// A connection, and a full TLS handshake, for each request.
    Handshakes,
    /// A connection for each request, its session resumed.
    Resumptions,
}

const SCENARIOS: [Scenario; 8] = [
    Scenario { name: "HTTPS/1.1, 1 KiB, pinned", path: "/1k", load: Load::Http1, keeps_cookie: true },
    Scenario { name: "HTTPS/1.1, 1 KiB, Set-Cookie each time", path: "/1k", load: Load::Http1, keeps_cookie: false },
    Scenario { name: "HTTP/2, 1 KiB, pinned, 8 x 32 streams", path: "/1k", load: Load::Http2, keeps_cookie: true },
    Scenario { name: "HTTPS/1.1, 100 KiB, pinned", path: "/100k", load: Load::Http1, keeps_cookie: true },
    Scenario { name: "HTTPS/1.1, 10 MiB, pinned", path: "/10m", load: Load::Downloads, keeps_cookie: true },
    Scenario { name: "HTTPS/1.1, 1 MiB uploads, pinned", path: "/upload", load: Load::Uploads, keeps_cookie: true },
    Scenario { name: "full handshake and one request", path: "/1k", load: Load::Handshakes, keeps_cookie: true },
    Scenario { name: "resumption and one request", path: "/1k", load: Load::Resumptions, keeps_cookie: true },
];

/// What more servers or workers cost shows in these two.
const COMPARED: [&Scenario; 2] = [&SCENARIOS[0], &SCENARIOS[2]];

fn main() {
    let seconds = argument("--seconds").unwrap_or(5);
    let rounds = argument("--rounds").unwrap_or(3).max(1);
    let only = text_argument("--only").unwrap_or_default();
    if let Some(missing) =
        ["wrk", "h2load", "openssl", "taskset", "curl"].iter().find(|tool| installed(tool).is_empty())
    {
        println!("{missing} is not installed: nothing was measured (see the head of benches/peers.rs)");
        return;
    }
    let directory = std::env::temp_dir().join(format!("steadfast-bench-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a temporary directory");
    let proxies = Proxy::all();
    let Some(nginx) = proxies.iter().rfind(|proxy| proxy.kind == Kind::Nginx) else {
        println!("nginx is not installed, which serves the origins: nothing was measured");
        return;
    };
    // The bench is load as well.
    let pinned = Command::new("taskset").args(["-acp", "1", &std::process::id().to_string()]).output();
    assert!(pinned.is_ok_and(|output| output.status.success()), "taskset pins the bench");
    prepare(&directory, &proxies);
    client::start_upload_origin(UPLOAD_PORT);
    let file = directory.join("origins.conf");
    let origins = start("1", text(&nginx.program), &["-p", text(&directory), "-c", text(&file)]);
    let running: Vec<Running> = proxies.iter().map(|proxy| proxy.start(&directory)).collect();
    let cookies: Vec<String> = proxies.iter().map(|proxy| wait_for_cookie(proxy.port, "/1k")).collect();

    for (proxy, cookie) in proxies.iter().zip(&cookies) {
        // What is made once, at the first handshakes, is not the exchanges'.
        load(&directory, &SCENARIOS[0], proxy.port, 1, cookie, 1);
    }
    let mut figures = Figures::default();
    let mut errors = 0;
    for round in 0..rounds {
        for (number, scenario) in SCENARIOS.iter().enumerate().filter(|(_, scenario)| scenario.name.contains(&*only)) {
            for (at, proxy) in proxies.iter().enumerate() {
                let (spent, done) =
                    measure(running[at].0.id(), || load(&directory, scenario, proxy.port, seconds, &cookies[at], 1));
                eprintln!("round {} {:40} {:15} {spent:6.1} us, {done}", round + 1, scenario.name, proxy.version);
                errors += if proxy.kind == Kind::Steadfast { done.errors } else { 0 };
                figures.entry((number, at)).or_default().push(spent);
            }
        }
    }
    println!("CPU microseconds per exchange, median of {rounds} rounds of {seconds} s (minimum to maximum)\n");
    let rows = print_table(&figures, &proxies);
    println!("\nErrors seen by clients of steadfast: {errors}");
    if let Some(file) = text_argument("--plot") {
        let names: Vec<&str> = proxies.iter().map(|proxy| &*proxy.version).collect();
        fs::write(file, plot::svg(&names, &rows)).expect("the plot is written");
    }
    drop(running);
    if only.is_empty() {
        print_memory(&directory, &proxies);
    }
    compare_sizes(&directory, nginx, rounds, seconds, &only);
    drop(origins);
    let _ = fs::remove_dir_all(&directory);
}

/// Microseconds per exchange, by scenario and proxy.
type Figures = BTreeMap<(usize, usize), Vec<f64>>;

/// CPU microseconds of a process for each exchange of the load.
fn measure(pid: u32, load: impl FnOnce() -> Done) -> (f64, Done) {
    let before = cpu_seconds(pid);
    let done = load();
    ((cpu_seconds(pid) - before) * 1e6 / done.requests.max(1) as f64, done)
}

/// Prints the table; gives the ratios of every proxy to the best peer.
fn print_table(figures: &Figures, proxies: &[Proxy]) -> Vec<(&'static str, Vec<f64>)> {
    let names: Vec<&str> = proxies.iter().map(|proxy| &*proxy.version).collect();
    println!("| scenario | {} | ratio to the best peer |\n|---{}|---|", names.join(" | "), "|---".repeat(names.len()));
    let mut rows = Vec::new();
    for (number, scenario) in SCENARIOS.iter().enumerate().filter(|(number, _)| figures.contains_key(&(*number, 0))) {
        let of = |at: usize| &figures[&(number, at)];
        let cells: Vec<String> = (0..proxies.len()).map(|at| spread(of(at))).collect();
        let best = (1..proxies.len()).map(|at| median(of(at))).fold(f64::INFINITY, f64::min);
        println!("| {} | {} | {:.2} |", scenario.name, cells.join(" | "), median(of(0)) / best);
        rows.push((scenario.name, (0..proxies.len()).map(|at| median(of(at)) / best).collect()));
    }
    rows
}

/// Median, minimum and maximum.
fn spread(values: &[f64]) -> String {
    let (least, most) =
        values.iter().fold((f64::INFINITY, 0.0_f64), |(least, most), one| (least.min(*one), most.max(*one)));
    format!("{:.1} ({least:.1} to {most:.1})", median(values))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn print_memory(directory: &Path, proxies: &[Proxy]) {
    println!("\nKiB per idle TLS connection ({IDLE} of them, each after one request)\n");
    for proxy in proxies {
        let process = proxy.start(directory);
        wait_for_cookie(proxy.port, "/1k");
        let pid = process.0.id();
        drop(client::idle(proxy.port, 50));
        std::thread::sleep(Duration::from_secs(2));
        let before = memory_kib(pid);
        let (held, fine) = client::idle(proxy.port, IDLE);
        // Idle connections give back what they do not need, and allocators what they do not: both take a moment, and
        // allocators wait to be called.
        for _ in 0..4 {
            std::thread::sleep(Duration::from_secs(1));
            drop(client::idle(proxy.port, 20));
        }
        std::thread::sleep(Duration::from_secs(1));
        let each = (memory_kib(pid) - before) / IDLE as f64;
        println!("- {}: {each:.1}{}", proxy.version, if fine { "" } else { " (not all were answered)" });
        drop(held);
    }
}

/// Pss of a process and of its children.
fn memory_kib(pid: u32) -> f64 {
    let of = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().trim_end_matches(" kB").parse::<f64>().ok()
    };
    processes_of(pid).iter().filter_map(of).sum()
}

/// A proxy in two sizes that take turns.
struct Sizes<'a> {
    name: String,
    /// Where they run.
    core: &'a str,
    program: &'a Path,
    arguments: fn(&Path) -> Vec<String>,
    /// The larger and the smaller one, each with its port and configuration.
    both: [(u16, String); 2],
    /// How much more load the larger one gets.
    times: usize,
}

/// steadfast beside itself: more servers, more workers. nginx with more workers tells what the machine makes of two
/// processes on two cores that the load is on as well.
fn compare_sizes(directory: &Path, nginx: &Proxy, rounds: u64, seconds: u64, only: &str) {
    let own = Path::new(env!("CARGO_BIN_EXE_steadfast"));
    let run = |file: &Path| vec!["run".to_owned(), "--config".to_owned(), text(file).to_owned()];
    let nginx_run = |file: &Path| {
        let directory = file.parent().map(text).unwrap_or_default();
        ["-p", directory, "-c", text(file)].map(str::to_owned).to_vec()
    };
    let few = || (FIRST_PORT, steadfast(FIRST_PORT, 21_900, 1, 4));
    let shared = (FIRST_PORT + 1, shared(&steadfast(FIRST_PORT + 1, 21_901, 1, 4)));
    let more = |workers, servers| (FIRST_PORT + 1, steadfast(FIRST_PORT + 1, 21_901, workers, servers));
    let nginx_with = |port: u16, workers| (port, self::nginx(directory, nginx, port, workers));
    let of_own = |name: &str, core, larger, times| Sizes {
        name: name.to_owned(),
        core,
        program: own,
        arguments: run,
        both: [larger, few()],
        times,
    };
    let all = [
        of_own("steadfast, shared sessions beside sticky", "0", shared, 1),
        of_own("steadfast, 1,000 servers beside 4", "0", more(1, 1_000), 1),
        of_own("steadfast, two workers beside one, on two cores", "0,1", more(2, 4), 2),
        of_own("steadfast, two workers beside one, on one core", "0", more(2, 4), 2),
        Sizes {
            name: format!("{}, two workers beside one, on two cores", nginx.version),
            core: "0,1",
            program: &nginx.program,
            arguments: nginx_run,
            both: [nginx_with(FIRST_PORT + 1, 2), nginx_with(FIRST_PORT, 1)],
            times: 2,
        },
    ];
    println!("\n| | scenario | first | beside | ratio |\n|---|---|---|---|---|");
    all.iter().filter(|sizes| sizes.name.contains(only)).for_each(|sizes| compare(directory, sizes, rounds, seconds));
}

fn compare(directory: &Path, sizes: &Sizes<'_>, rounds: u64, seconds: u64) {
    let running = sizes.both.each_ref().map(|(port, configuration)| {
        let file = directory.join(format!("sized-{port}"));
        fs::write(&file, configuration).expect("a file of the bench");
        let arguments = (sizes.arguments)(&file);
        start(sizes.core, text(sizes.program), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    });
    let ports = sizes.both.each_ref().map(|(port, _)| *port);
    let times = [sizes.times, 1];
    let cookies = ports.map(|port| wait_for_cookie(port, "/login"));
    for (port, cookie) in ports.iter().zip(&cookies) {
        load(directory, COMPARED[0], *port, 1, cookie, 1);
    }
    let mut figures = Figures::default();
    let mut shares = Vec::new();
    for _ in 0..rounds {
        for (number, scenario) in COMPARED.iter().enumerate() {
            for at in 0..2 {
                let pid = running[at].0.id();
                let before = worker_ticks(pid);
                let one_load = || load(directory, scenario, ports[at], seconds, &cookies[at], times[at]);
                let (spent, done) = measure(pid, one_load);
                eprintln!("{} ({}) {:40} {spent:6.1} us, {done}", sizes.name, ["more", "less"][at], scenario.name);
                figures.entry((number, at)).or_default().push(spent);
                let used = worker_ticks(pid).into_iter().zip(before).map(|(now, before)| now - before);
                shares.push((number, at, used.collect::<Vec<u64>>()));
            }
        }
    }
    for (number, scenario) in COMPARED.iter().enumerate() {
        let (more, less) = (&figures[&(number, 0)], &figures[&(number, 1)]);
        let ratio = median(more) / median(less);
        println!("| {} | {} | {} | {} | {ratio:.2} |", sizes.name, scenario.name, spread(more), spread(less));
    }
    let two = shares.iter().filter(|(number, at, used)| (*number, *at, used.len()) == (1, 0, 2));
    let two: Vec<String> = two.map(|share| format!("{:?}", share.2)).collect();
    if !two.is_empty() {
        eprintln!("CPU of the two workers with 16 HTTP/2 connections, in ticks, round by round: {}", two.join(" "));
    }
}

/// CPU ticks of each worker's thread.
fn worker_ticks(pid: u32) -> Vec<u64> {
    let threads =
        fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").filter_map(|thread| Some(thread.ok()?.path()));
    let workers =
        threads.filter(|thread| fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.starts_with("worker-")));
    workers.filter_map(|thread| ticks(&thread)).collect()
}

/// `times`: as many connections as the scenario has, times this.
fn load(directory: &Path, scenario: &Scenario, port: u16, seconds: u64, cookie: &str, times: usize) -> Done {
    let url = format!("https://127.0.0.1:{port}{}", scenario.path);
    let header = format!("Cookie: {cookie}");
    let duration = seconds.to_string();
    let script = directory.join("upload.lua");
    let connections = |of_one: usize| format!("-c{}", of_one * times);
    let mut command = Command::new("taskset");
    command.args(["-c", "1"]);
    match scenario.load {
        Load::Http1 => command.args(["wrk", "-t1", &connections(32), "-d", &duration]),
        Load::Downloads => command.args(["wrk", "-t1", &connections(8), "--timeout", "10s", "-d", &duration]),
        Load::Uploads => command.args(["wrk", "-t1", &connections(8), "-d", &duration, "-s", text(&script)]),
        Load::Handshakes => command.args(["wrk", "-t1", &connections(8), "-d", &duration, "-H", "Connection: close"]),
        Load::Http2 => command.args(["h2load", "-t1", &connections(8), "-m32", "-D", &duration]),
        Load::Resumptions => return client::resume(port, seconds, cookie),
    };
    if scenario.keeps_cookie {
        command.args(["-H", &header]);
    }
    let output = command.arg(&url).output().expect("the load generator runs");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    if matches!(scenario.load, Load::Http2) {
        let errors = number_before(&report, " failed,") + number_before(&report, " 5xx");
        return Done { requests: number_before(&report, " succeeded,"), errors };
    }
    Done { requests: number_before(&report, " requests in"), errors: wrk_errors(&report) }
}

/// The whole number that stands before a phrase; 0 when the phrase is not there.
fn number_before(report: &str, phrase: &str) -> u64 {
    let Some(at) = report.find(phrase) else { return 0 };
    let digits: String = report[..at].chars().rev().take_while(char::is_ascii_digit).collect();
    digits.chars().rev().collect::<String>().parse().unwrap_or(0)
}

/// wrk prints these lines only when there is something to tell.
fn wrk_errors(report: &str) -> u64 {
    let sockets = report.lines().find(|line| line.contains("Socket errors"));
    let sockets = sockets.map_or(0, |line| {
        line.split(|byte: char| !byte.is_ascii_digit()).filter_map(|word| word.parse::<u64>().ok()).sum()
    });
    let statuses = report.lines().find_map(|line| line.trim().strip_prefix("Non-2xx or 3xx responses: "));
    sockets + statuses.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0)
}

/// A process that ends with the bench.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn start(core: &str, program: &str, arguments: &[&str]) -> Running {
    // taskset replaces itself by the program: the process id is the program's.
    let mut command = Command::new("taskset");
    command
        .args(["-c", core, program])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Running(command.spawn().expect("the program starts"))
}

/// Waits until a proxy answers, and gives the cookie that it set.
fn wait_for_cookie(port: u16, path: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let url = format!("https://127.0.0.1:{port}{path}");
        let output = Command::new("curl").args(["-sk", "-D-", "-o/dev/null", &url]).output().expect("curl runs");
        let head = String::from_utf8_lossy(&output.stdout).into_owned();
        let cookie =
            head.lines().find_map(|line| line.strip_prefix("set-cookie: ").or(line.strip_prefix("Set-Cookie: ")));
        if let Some(pair) = cookie.and_then(|cookie| cookie.split(';').next()) {
            return pair.to_owned();
        }
        assert!(Instant::now() < deadline, "port {port} does not answer: {head}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// User and system time of a process and of its children that live.
fn cpu_seconds(pid: u32) -> f64 {
    let ticks: u64 = processes_of(pid).iter().filter_map(|pid| ticks(Path::new(&format!("/proc/{pid}")))).sum();
    ticks as f64 / 100.0
}

fn processes_of(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

/// Of a process or of a thread, by its directory in /proc.
fn ticks(of: &Path) -> Option<u64> {
    let stat = fs::read_to_string(of.join("stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

fn argument(name: &str) -> Option<u64> {
    text_argument(name)?.parse().ok()
}

fn text_argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

fn prepare(directory: &Path, proxies: &[Proxy]) {
    let write = |name: &str, content: String| fs::write(directory.join(name), content).expect("a file of the bench");
    make_certificate(directory);
    for (name, bytes) in [("1k", 1_024), ("100k", 102_400), ("10m", 10_485_760)] {
        write(name, "x".repeat(bytes));
    }
    write("origins.conf", origins(directory));
    write("upload.lua", "wrk.method = \"POST\"\nwrk.body = string.rep(\"x\", 1048576)\n".to_owned());
    proxies.iter().for_each(|proxy| proxy.prepare(directory));
}

fn make_certificate(directory: &Path) {
    let (key, cert) = (directory.join("bench.key"), directory.join("bench.pem"));
    let status = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-keyout", text(&key), "-out", text(&cert)])
        .stderr(Stdio::null())
        .status();
    assert!(status.is_ok_and(|status| status.success()), "openssl makes a certificate");
    let both = [fs::read(&cert), fs::read(&key)].map(|part| part.expect("what openssl wrote")).concat();
    fs::write(directory.join("bench-both.pem"), both).expect("a file of the bench");
}

fn nginx_head(directory: &Path, pid: &str, workers: usize) -> String {
    let scratch: PathBuf = directory.join("scratch");
    let _ = fs::create_dir_all(&scratch);
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = temporary.map(|kind| format!("{kind}_temp_path {};\n", text(&scratch))).concat();
    format!(
        "daemon off; worker_processes {workers}; pid {}/{pid}; error_log /dev/null crit;\nevents {{ worker_connections 8192; }}\n\
         http {{\naccess_log off; keepalive_requests 1000000000; client_max_body_size 0; sendfile on; tcp_nodelay on;\n{temporary}",
        text(directory)
    )
}

fn origins(directory: &Path) -> String {
    let listen = ORIGIN_PORTS.map(|port| format!("listen 127.0.0.1:{port};")).join(" ");
    format!(
        "{}open_file_cache max=10;\nserver {{ {listen} root {}; default_type text/plain; \
         add_header Cache-Control no-store;\nlocation = /login {{ alias {}/1k; \
         add_header Steadfast-Session-Op 'login;sub=\"bench\";rid=\"$http_steadfast_session_request\"'; }} }}\n}}\n",
        nginx_head(directory, "origins.pid", 1),
        text(directory),
        text(directory)
    )
}

fn steadfast(port: u16, admin: u16, workers: usize, servers: usize) -> String {
    let addresses = ORIGIN_PORTS.iter().cycle().take(servers).enumerate();
    let servers =
        addresses.map(|(at, port)| format!("[[pool.server]]\nname = \"o{at}\"\naddress = \"127.0.0.1:{port}\"\n"));
    format!(
        "[process]\nworkers = {workers}\naccess_log = \"off\"\nmax_connections = 5000\n\
         [admin]\naddress = \"127.0.0.1:{admin}\"\n\
         [[listener]]\nname = \"https\"\naddress = \"127.0.0.1:{port}\"\n[listener.tls]\n\
         certificates = [{{ cert = \"bench.pem\", key = \"bench.key\" }}]\n\
         [[route]]\npath = \"/upload\"\npool = \"uploads\"\n[[route]]\npool = \"bench\"\n\
         [[pool]]\nname = \"uploads\"\nmode = \"sticky\"\n[pool.health]\ntype = \"tcp\"\n\
         [[pool.server]]\nname = \"u\"\naddress = \"127.0.0.1:{UPLOAD_PORT}\"\n\
         [[pool]]\nname = \"bench\"\nmode = \"sticky\"\n[pool.connections]\nidle = 256\n{}",
        servers.collect::<String>()
    )
}

/// The same with sessions in the proxy: the embedded store, in memory.
fn shared(sticky: &str) -> String {
    let bench = "name = \"bench\"\nmode = ";
    let shared = sticky.replace(&format!("{bench}\"sticky\""), &format!("{bench}\"shared\""));
    let shared = shared.replace(
        "[pool.connections]\nidle = 256\n",
        "[pool.shared]\nstore = \"main\"\n[pool.connections]\nidle = 256\n",
    );
    format!("{shared}[[store]]\nname = \"main\"\n")
}

/// Debian's nginx has no sticky cookie of its own: a map from the cookie to the server does the same work.
fn nginx(directory: &Path, proxy: &Proxy, port: u16, workers: usize) -> String {
    let upstreams = ORIGIN_PORTS
        .iter()
        .enumerate()
        .map(|(at, port)| format!("upstream s{at} {{ server 127.0.0.1:{port}; keepalive 256; }}\n"));
    let pairs = (0..4).map(|at| format!("s{at} s{at};")).collect::<String>();
    // Since 1.25.1 HTTP/2 is a directive of its own.
    let numbers: Vec<u32> = proxy.version.split([' ', '.']).filter_map(|word| word.parse().ok()).collect();
    let listen = format!("listen 127.0.0.1:{port} ssl reuseport");
    let listen = if numbers >= vec![1, 25, 1] { format!("{listen}; http2 on;") } else { format!("{listen} http2;") };
    format!(
        "{}{}upstream uploads {{ server 127.0.0.1:{UPLOAD_PORT}; keepalive 256; }}\nsplit_clients \"$request_id\" $fresh {{ 25% s0; 25% s1; 25% s2; * s3; }}\n\
         map $cookie_srv $server_chosen {{ default $fresh; {pairs} }}\n\
         map $cookie_srv $given {{ default \"srv=$fresh; Path=/; HttpOnly; Secure\"; {} }}\n\
         server {{ {listen} ssl_certificate {d}/bench.pem; ssl_certificate_key {d}/bench.key;\n\
         ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on;\n\
         location / {{ proxy_pass http://$server_chosen; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto https;\n\
         add_header Set-Cookie $given; }}\n\
         location /upload {{ proxy_pass http://uploads; proxy_http_version 1.1; proxy_request_buffering off;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;\n\
         proxy_set_header X-Forwarded-Proto https; }} }}\n}}\n",
        nginx_head(directory, &format!("proxy-{port}.pid"), workers),
        upstreams.collect::<String>(),
        (0..4).map(|at| format!("s{at} \"\";")).collect::<String>(),
        d = text(directory),
    )
}

fn haproxy(directory: &Path, port: u16) -> String {
    let servers = ORIGIN_PORTS
        .iter()
        .enumerate()
        .map(|(at, port)| format!("  server s{at} 127.0.0.1:{port} cookie s{at} check\n"));
    format!(
        "global\n  nbthread 1\n  maxconn 8192\ndefaults\n  mode http\n  timeout connect 1s\n  timeout client 60s\n  timeout server 60s\n\
         frontend f\n  bind 127.0.0.1:{} ssl crt {}/bench-both.pem alpn h2,http/1.1\n  option forwardfor\n\
         \x20 http-request set-header X-Forwarded-Proto https\n  use_backend u if {{ path /upload }}\n  default_backend b\n\
         backend u\n  http-reuse always\n  server u 127.0.0.1:{UPLOAD_PORT}\n\
         backend b\n  balance random\n  cookie SRV insert indirect nocache httponly secure\n  http-reuse always\n{}",
        port,
        text(directory),
        servers.collect::<String>()
    )
}
