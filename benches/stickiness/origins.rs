//! Origins whose speed does not depend on the machine: an exchange sleeps for as long as its work takes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use steadfast::twin::Discipline;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::workload::WORKERS;

/// Says how long the request takes to serve, in microseconds.
pub const SERVICE: &str = "x-service";
/// The session's first request: where the proxy keeps sessions, there is something to keep.
pub const FIRST: &str = "x-first";

/// What is seen of one origin.
#[derive(Default)]
pub struct Gauge(Mutex<Vec<Change>>);

/// An exchange came (how much work it is), or went.
struct Change {
    at: Instant,
    came: Option<Duration>,
}

impl Gauge {
    fn note(&self, came: Option<Duration>) {
        // Under the lock, so that they are in the order of time.
        let mut changes = self.0.lock().unwrap();
        changes.push(Change { at: Instant::now(), came });
    }

    /// Requests that came in the last `span` before `until`.
    pub fn requests(&self, until: Instant, span: Duration) -> usize {
        let changes = self.0.lock().unwrap();
        let is_in = |at: &Instant| *at <= until && until.duration_since(*at) < span;
        changes.iter().rev().filter(|change| change.came.is_some() && is_in(&change.at)).count()
    }

    /// How many it had at once, on average over this time.
    pub fn mean_in_flight(&self, from: Instant, until: Instant) -> f64 {
        let changes = self.0.lock().unwrap();
        let (mut count, mut since, mut sum) = (0_i64, from, 0.0);
        for change in changes.iter().take_while(|change| change.at < until) {
            let at = change.at.max(from);
            sum += count as f64 * at.duration_since(since).as_secs_f64();
            since = at;
            count += if change.came.is_some() { 1 } else { -1 };
        }
        sum += count as f64 * until.duration_since(since).as_secs_f64();
        sum / until.duration_since(from).as_secs_f64()
    }

    /// The work that came in this time, over what it can do.
    pub fn utilization(&self, from: Instant, until: Instant) -> f64 {
        let changes = self.0.lock().unwrap();
        let is_in = |change: &&Change| (from..until).contains(&change.at);
        let work: Duration = changes.iter().filter(is_in).filter_map(|change| change.came).sum();
        work.as_secs_f64() / (WORKERS as f64 * until.duration_since(from).as_secs_f64())
    }
}

/// Origins that listen, with what is seen of them.
pub struct Origins {
    pub addresses: Vec<SocketAddr>,
    pub gauges: Vec<Arc<Gauge>>,
}

impl Origins {
    pub async fn start(count: usize, discipline: Discipline) -> Self {
        let mut origins = Origins { addresses: Vec::new(), gauges: Vec::new() };
        for _ in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let gauge = Arc::<Gauge>::default();
            origins.addresses.push(listener.local_addr().unwrap());
            origins.gauges.push(Arc::clone(&gauge));
            tokio::spawn(accept(listener, Arc::new(Origin { gauge, machine: Machine::start(discipline) })));
        }
        origins
    }
}

struct Origin {
    gauge: Arc<Gauge>,
    machine: Machine,
}

async fn accept(listener: TcpListener, origin: Arc<Origin>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        tokio::spawn(serve(stream, Arc::clone(&origin)));
    }
}

async fn serve(stream: TcpStream, origin: Arc<Origin>) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let origin = Arc::clone(&origin);
        async move { Ok::<_, Infallible>(origin.answer(request.headers()).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl Origin {
    async fn answer(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let work = Duration::from_micros(headers[SERVICE].to_str().unwrap().parse().unwrap());
        self.gauge.note(Some(work));
        self.machine.work(work).await;
        self.gauge.note(None);
        let mut response = Response::new(Full::new(Bytes::from_static(b"served")));
        if let (Some(_), Some(nonce)) = (headers.get(FIRST), headers.get("steadfast-session-request")) {
            let patch = format!("{}.{}", nonce.to_str().unwrap(), BASE64URL_NOPAD.encode(b"{\"visits\":1}"));
            response.headers_mut().insert("steadfast-session-patch", patch.parse().unwrap());
        }
        response
    }
}

/// How an origin works.
enum Machine {
    /// So many workers; who finds none free waits, first come, first served.
    Fifo(Semaphore),
    Sharing(Arc<Sharing>),
}

impl Machine {
    fn start(discipline: Discipline) -> Self {
        match discipline {
            Discipline::Fifo => Machine::Fifo(Semaphore::new(WORKERS)),
            Discipline::Sharing => {
                let sharing = Arc::<Sharing>::default();
                tokio::spawn(Arc::clone(&sharing).run());
                Machine::Sharing(sharing)
            }
        }
    }

    async fn work(&self, work: Duration) {
        match self {
            Machine::Fifo(workers) => {
                let _permit = workers.acquire().await.unwrap();
                tokio::time::sleep(work).await;
            }
            Machine::Sharing(sharing) => sharing.work(work).await,
        }
    }
}

/// All at once: beyond its workers each of n runs at workers/n of its speed.
#[derive(Default)]
struct Sharing {
    jobs: Mutex<Jobs>,
    changed: Notify,
}

/// A clock runs as fast as each job does. A job ends when it shows what it did at the beginning plus the work.
#[derive(Default)]
struct Jobs {
    clock: Duration,
    at: Option<Instant>,
    number: u64,
    ends: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
}

impl Jobs {
    fn speed(&self) -> f64 {
        (WORKERS as f64 / self.ends.len().max(1) as f64).min(1.0)
    }

    /// Lets those go that have ended by now.
    fn advance(&mut self, now: Instant) {
        let Some(mut at) = self.at.replace(now) else { return };
        while let Some(((end, _), _)) = self.ends.first_key_value() {
            // With each that ends the others become faster.
            let takes = end.saturating_sub(self.clock).div_f64(self.speed());
            if at + takes > now {
                break;
            }
            at += takes;
            self.clock = self.clock.max(*end);
            let (_, ended) = self.ends.pop_first().unwrap();
            let _ = ended.send(());
        }
        self.clock += now.duration_since(at).mul_f64(self.speed());
    }

    /// When the next one ends, if nobody comes.
    fn next_end(&self) -> Option<Instant> {
        let ((end, _), _) = self.ends.first_key_value()?;
        Some(self.at? + end.saturating_sub(self.clock).div_f64(self.speed()))
    }
}

impl Sharing {
    async fn work(&self, work: Duration) {
        let (ended, end) = oneshot::channel();
        {
            let mut jobs = self.jobs.lock().unwrap();
            jobs.advance(Instant::now());
            jobs.number += 1;
            let key = (jobs.clock + work, jobs.number);
            jobs.ends.insert(key, ended);
        }
        self.changed.notify_one();
        let _ = end.await;
    }

    async fn run(self: Arc<Self>) {
        loop {
            let next = {
                let mut jobs = self.jobs.lock().unwrap();
                jobs.advance(Instant::now());
                jobs.next_end()
            };
            let next = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3_600));
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.changed.notified() => {}
            }
        }
    }
}
