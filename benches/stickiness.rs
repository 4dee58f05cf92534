//! What stickiness costs, and what soft pins save: one open-loop workload, served with hard and with soft pins.
//!
//!     cargo bench --bench stickiness                     # both tables, 60 s each run, seed 1
//!     cargo bench --bench stickiness -- --seconds 20 --seed 7
//!     cargo bench --bench stickiness -- --only scale-out # or: --only imbalance
//!
//! Eight origins of eight workers each: an exchange holds a permit while the origin sleeps for its service time (30 ms in
//! the mean, exponential), so the machine's speed does not matter. Sessions come at random; most ask a few times (Pareto,
//! two seconds of thought between), one in a hundred is a robot that asks twenty-five times a second for a minute. Together
//! they are 80 % of what the origins can do. The load is open: what comes does not wait for what is slow. Both runs get the
//! same arrivals, sessions and service times.
//!
//! The second table is about scale-out: four such origins at 40 % of what they can do, and a third into the run two more
//! join by a reload. How long until both newcomers have 90 % of their fair share of requests (over two seconds)?

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test or a bench may")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

const WORKERS: usize = 8;
const SERVICE_MEAN: f64 = 0.030;
const ROBOTS: f64 = 0.01;
const PORT: u16 = 22_080;
const ADMIN: u16 = 22_900;

fn main() {
    let seconds = argument("--seconds").unwrap_or(60);
    let seed = argument("--seed").unwrap_or(1);
    let only = text_argument("--only");
    if only.as_deref() != Some("scale-out") {
        imbalance(seconds, seed);
    }
    if only.as_deref() != Some("imbalance") {
        scale_out(seconds, seed);
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(future)
}

const HARD: &str = "[pool.sticky]\npin = \"hard\"\n";
const SOFT: &str = "[pool.sticky]\npin = \"soft\"\nmargin = 4\n";

fn imbalance(seconds: u64, seed: u64) {
    let arrivals = workload(seconds as f64, seed, 8, 0.8);
    println!("{} exchanges in {seconds} s, eight origins at 80 %, seed {seed}\n", arrivals.len());
    println!("| pins | max/mean of in flight | Jain | kept | median | p99 | failed |\n|---|---|---|---|---|---|---|");
    for (name, keys) in [("hard", HARD), ("soft, margin 4", SOFT)] {
        println!("| {name} | {} |", block_on(run_imbalance(&arrivals, keys)));
    }
}

fn scale_out(seconds: u64, seed: u64) {
    let arrivals = workload(seconds as f64, seed, 4, 0.4);
    println!("\n{} exchanges in {seconds} s, four origins at 40 % and two that join, seed {seed}\n", arrivals.len());
    println!(
        "| pins | until both have 90 % of their share | their shares from 10 to 20 s | moved | kept | failed |\n|---|---|---|---|---|---|"
    );
    // A margin that load alone seldom exceeds: what comes over then comes by rebalancing.
    let soft = SOFT.replace("margin = 4", "margin = 16");
    let rebalanced = format!("{soft}[pool.rebalance]\nmoves_per_second = 50\n");
    let rows = [("hard", HARD), ("soft, margin 16", &soft), ("soft, margin 16, 50 moves a second", &rebalanced)];
    for (name, keys) in rows {
        println!("| {name} | {} |", block_on(run_scale_out(&arrivals, Duration::from_secs(seconds), keys)));
    }
}

/// One request: when it comes, whose it is, and how long it takes to serve.
struct Arrival {
    at: Duration,
    session: u32,
    service: Duration,
}

/// Arrivals that are this share of what so many origins can do.
fn workload(seconds: f64, seed: u64, origins: usize, load: f64) -> Vec<Arrival> {
    let mut random = fastrand::Rng::with_seed(seed);
    let rate = (origins * WORKERS) as f64 / SERVICE_MEAN * load;
    let exponential = |random: &mut fastrand::Rng, mean: f64| -random.f64().max(1e-12).ln() * mean;
    let mut arrivals = Vec::new();
    let (mut session, mut expected) = (0, 0.0);
    // Sessions that began before the first second are under way in it.
    while expected < rate * seconds {
        let robot = random.f64() < ROBOTS;
        let requests = if robot { 1_500 } else { (3.3 / random.f64().max(1e-9).powf(1.0 / 1.5)).min(500.0) as usize };
        let think = if robot { 0.04 } else { 2.0 };
        let mut at = random.f64() * (seconds + 60.0) - 60.0;
        for _ in 0..requests {
            if (0.0..seconds).contains(&at) {
                let service = Duration::from_secs_f64(exponential(&mut random, SERVICE_MEAN));
                arrivals.push(Arrival { at: Duration::from_secs_f64(at), session, service });
                expected += 1.0;
            }
            at += exponential(&mut random, think);
        }
        session += 1;
    }
    arrivals.sort_by_key(|arrival| arrival.at);
    arrivals
}

/// What is seen of one origin: in flight over time, and when requests came.
#[derive(Default)]
struct Gauge {
    came: Mutex<Vec<Instant>>,
    /// Now, since when, and the sum of count times seconds before.
    state: Mutex<(u64, Option<Instant>, f64)>,
}

impl Gauge {
    fn change(&self, by: i64) {
        let mut state = self.state.lock().unwrap();
        let now = Instant::now();
        if let Some(since) = state.1 {
            state.2 += state.0 as f64 * now.duration_since(since).as_secs_f64();
        }
        state.0 = state.0.checked_add_signed(by).unwrap();
        state.1 = Some(now);
    }

    /// Requests that came in the last `span` before `until`.
    fn requests(&self, until: Instant, span: Duration) -> usize {
        let came = self.came.lock().unwrap();
        came.iter().rev().filter(|at| **at <= until && until.duration_since(**at) < span).count()
    }

    fn integral(&self) -> f64 {
        self.change(0);
        self.state.lock().unwrap().2
    }
}

async fn start_origins(count: usize) -> (Vec<SocketAddr>, Vec<Arc<Gauge>>) {
    let mut started = (Vec::new(), Vec::new());
    for _ in 0..count {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gauge = Arc::<Gauge>::default();
        started.0.push(listener.local_addr().unwrap());
        started.1.push(Arc::clone(&gauge));
        let workers = Arc::new(Semaphore::new(WORKERS));
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let _ = stream.set_nodelay(true);
                let (gauge, workers) = (Arc::clone(&gauge), Arc::clone(&workers));
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                        let (gauge, workers) = (Arc::clone(&gauge), Arc::clone(&workers));
                        async move {
                            let micros = request.headers()["x-service"].to_str().unwrap().parse().unwrap();
                            gauge.came.lock().unwrap().push(Instant::now());
                            gauge.change(1);
                            let permit = workers.acquire().await.unwrap();
                            tokio::time::sleep(Duration::from_micros(micros)).await;
                            drop(permit);
                            gauge.change(-1);
                            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    }
    started
}

struct Proxy(Child);

impl Proxy {
    fn path() -> std::path::PathBuf {
        std::env::temp_dir().join(format!("steadfast-stickiness-{}.toml", std::process::id()))
    }

    fn configure(origins: &[SocketAddr], keys: &str) {
        let servers = origins
            .iter()
            .enumerate()
            .map(|(at, address)| format!("[[pool.server]]\nname = \"o{at}\"\naddress = \"{address}\"\n"));
        let configuration = format!(
            "[process]\nworkers = 1\nwatch = false\naccess_log = \"off\"\nmax_connections = 5000\n[admin]\naddress = \"127.0.0.1:{ADMIN}\"\n\
             [[listener]]\nname = \"main\"\naddress = \"127.0.0.1:{PORT}\"\n[[route]]\npool = \"p\"\n[[pool]]\nname = \"p\"\n\
             mode = \"sticky\"\n{}{keys}[pool.connections]\nidle = 1000\n",
            servers.collect::<String>()
        );
        std::fs::write(Self::path(), configuration).unwrap();
    }

    /// Servers come and go; the reload is taken when this returns.
    async fn reconfigure(origins: &[SocketAddr], keys: &str) {
        Self::configure(origins, keys);
        let reply = admin(Request::post("/api/v1/reload")).await;
        assert!(reply.contains("true"), "{reply}");
    }

    fn start(origins: &[SocketAddr], keys: &str) -> Self {
        Self::configure(origins, keys);
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
        let child =
            command.args(["run", "--config"]).arg(Self::path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", PORT)).is_err() {
            assert!(Instant::now() < deadline, "the proxy does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Proxy(child.unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Default)]
struct Users {
    cookies: Mutex<HashMap<u32, String>>,
    idle: Mutex<Vec<SendRequest<Empty<Bytes>>>>,
    latencies: Mutex<Vec<Duration>>,
    failed: AtomicU64,
}

impl Users {
    async fn ask(&self, session: u32, service: Duration) -> Result<(), String> {
        let kept = self.idle.lock().unwrap().pop().filter(|sender| !sender.is_closed());
        let mut sender = match kept {
            Some(sender) => sender,
            None => connect().await.map_err(|error| error.to_string())?,
        };
        let mut request =
            Request::get("/").header(header::HOST, "bench").header("x-service", service.as_micros().to_string());
        if let Some(cookie) = self.cookies.lock().unwrap().get(&session) {
            request = request.header(header::COOKIE, cookie);
        }
        let response =
            sender.send_request(request.body(Empty::new()).unwrap()).await.map_err(|error| error.to_string())?;
        if response.status() != 200 {
            return Err(response.status().to_string());
        }
        if let Some(cookie) = response.headers().get(header::SET_COOKIE) {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
            self.cookies.lock().unwrap().insert(session, pair);
        }
        response.into_body().collect().await.map_err(|error| error.to_string())?;
        self.idle.lock().unwrap().push(sender);
        Ok(())
    }
}

async fn connect() -> Result<SendRequest<Empty<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(("127.0.0.1", PORT)).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends what arrives when it arrives; gives back what is still under way at the end.
async fn serve(arrivals: &[Arrival], users: &Arc<Users>, began: Instant) -> tokio::task::JoinSet<()> {
    let mut asked = tokio::task::JoinSet::new();
    for arrival in arrivals {
        tokio::time::sleep_until((began + arrival.at).into()).await;
        let (users, session, service, due) = (Arc::clone(users), arrival.session, arrival.service, began + arrival.at);
        asked.spawn(async move {
            match users.ask(session, service).await {
                Ok(()) => users.latencies.lock().unwrap().push(due.elapsed()),
                Err(_) => drop(users.failed.fetch_add(1, Ordering::Relaxed)),
            }
        });
    }
    asked
}

const SHARE_OVER: Duration = Duration::from_secs(2);

async fn run_scale_out(arrivals: &[Arrival], length: Duration, keys: &str) -> String {
    let (addresses, gauges) = start_origins(6).await;
    let _proxy = Proxy::start(&addresses[..4], keys);
    let users = Arc::<Users>::default();
    let began = Instant::now();
    let joining = async {
        tokio::time::sleep(length / 3).await;
        Proxy::reconfigure(&addresses, keys).await;
        Instant::now()
    };
    let (mut asked, joined) = tokio::join!(serve(arrivals, &users, began), joining);
    let ended = began + length;
    // The newcomers' requests over their fair share.
    let shares = |span: Duration, at: Instant| {
        let requests: Vec<usize> = gauges.iter().map(|gauge| gauge.requests(at, span)).collect();
        let fair = requests.iter().sum::<usize>() as f64 / 6.0;
        [requests[4], requests[5]].map(|count| count as f64 / fair.max(1.0))
    };
    let moments = (1..).map(|step| joined + Duration::from_millis(100) * step).take_while(|at| *at < ended);
    let reached = moments.into_iter().find(|at| shares(SHARE_OVER, *at).iter().all(|share| *share >= 0.9));
    let reached = reached.map_or_else(
        || format!("more than {:.0} s", (ended - joined).as_secs_f64()),
        |at| format!("{:.1} s", (at - joined).as_secs_f64()),
    );
    let [one, other] = shares(Duration::from_secs(10), joined + Duration::from_secs(20));
    while asked.join_next().await.is_some() {}
    let (kept, all) = verdicts().await;
    let failed = users.failed.load(Ordering::Relaxed);
    format!(
        "{reached} | {:.0} %, {:.0} % | {:.0} | {:.1} % | {failed}",
        one * 100.0,
        other * 100.0,
        all - kept,
        kept / all * 100.0
    )
}

async fn run_imbalance(arrivals: &[Arrival], keys: &str) -> String {
    let (addresses, gauges) = start_origins(8).await;
    let _proxy = Proxy::start(&addresses, keys);
    let users = Arc::<Users>::default();
    let mut asked = serve(arrivals, &users, Instant::now()).await;
    // Measured over the time of the arrivals; what is still under way then may end.
    let loads: Vec<f64> = gauges.iter().map(|gauge| gauge.integral()).collect();
    while asked.join_next().await.is_some() {}
    let measures = steadfast::imbalance::measure(&loads).unwrap();
    let (kept, all) = verdicts().await;
    let mut latencies = users.latencies.lock().unwrap().clone();
    latencies.sort_unstable();
    let quantile = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_millis();
    format!(
        "{:.2} | {:.3} | {:.1} % | {} ms | {} ms | {}",
        measures.max_over_mean,
        measures.jain,
        kept / all * 100.0,
        quantile(0.5),
        quantile(0.99),
        users.failed.load(Ordering::Relaxed)
    )
}

/// Kept among those that had a pin to keep, by the proxy's own count.
async fn verdicts() -> (f64, f64) {
    let text = admin(Request::get("/metrics")).await;
    let sum = |verdict: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with("steadfast_affinity_total") && line.contains(verdict));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    let kept = sum("verdict=\"kept\"");
    (kept, kept + sum("verdict=\"moved\""))
}

/// Asks the admin surface.
async fn admin(request: http::request::Builder) -> String {
    let stream = TcpStream::connect(("127.0.0.1", ADMIN)).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = request.header(header::HOST, "localhost").body(Empty::<Bytes>::new()).unwrap();
    let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    String::from_utf8_lossy(&body).into_owned()
}

fn argument(name: &str) -> Option<u64> {
    text_argument(name)?.parse().ok()
}

fn text_argument(name: &str) -> Option<String> {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.get(at + 1).cloned()
}
