//! Every metric family of steadfast.
//!
//! The hot path writes to buckets of its own worker: a [`Cell`] has one writer, so adding is a relaxed load and store
//! (about 2 ns) and no cache line travels between cores. A scrape sums over the workers. The `prometheus` crate is
//! the registry and the encoder; label values come from configuration and from closed vocabularies, never from a
//! request.

mod cells;
mod family;
mod live;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cells::BOUNDS;
pub use cells::{Cell, DurationCells, PerWorker, WorkerId};
use family::Family;
pub use live::{LiveGauges, LiveState};
use parking_lot::RwLock;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, Registry, TextEncoder};

use crate::names::{
    CodeClass, CookieDeed, CookieFault, CsrfReason, Decision, HeaderReason, Limit, Outcome, RateBy, SessionEvent,
    StepUpReason, StoreFault, StoreOp, TokenReason, Verdict,
};

/// Exchanges by class of status, and how long they took.
#[derive(Default)]
pub struct ServedCells {
    pub codes: [Cell; CodeClass::ALL.len()],
    pub duration: DurationCells,
}

/// What one worker counts of one server.
#[derive(Default)]
pub struct ServerCells {
    pub served: ServedCells,
    pub attempts: [Cell; Outcome::ALL.len()],
    /// Choices of this server, and those that the balance policy alone would have made.
    pub picked: Cell,
    pub shadowed: Cell,
    /// Time that exchanges spent in the server's waiting line.
    pub queue_wait: DurationCells,
    pub connections_active: Cell,
    pub connections_idle: Cell,
}

/// Counters of one server of one pool; they survive a reload that keeps the server's name.
pub struct ServerMetrics {
    name: Box<str>,
    pub cells: PerWorker<ServerCells>,
}

impl ServerMetrics {
    /// How often it was chosen.
    pub fn picked(&self) -> u64 {
        self.cells.sum(|cells| cells.picked.get())
    }

    /// How often the balance policy alone would have chosen it.
    pub fn shadowed(&self) -> u64 {
        self.cells.sum(|cells| cells.shadowed.get())
    }
}

/// What one worker counts of one pool.
#[derive(Default)]
pub struct PoolCells {
    pub affinity: [Cell; Verdict::COUNT],
    /// How much worse the pinned server was than the best one, at each pick of a pin that held.
    pub regret: DurationCells,
    /// Picks of pins that held and that the balance policy would have placed elsewhere.
    pub disagreements: Cell,
    /// Exchanges that no server answered.
    pub unserved: ServedCells,
    /// What happened to sessions.
    pub session_events: [Cell; SessionEvent::ALL.len()],
}

/// Counters of one pool.
pub struct PoolMetrics {
    name: Box<str>,
    workers: usize,
    pub cells: PerWorker<PoolCells>,
    servers: RwLock<Vec<Arc<ServerMetrics>>>,
}

impl PoolMetrics {
    /// The counters of the server of this name, made on first use.
    pub fn server(&self, name: &str) -> Arc<ServerMetrics> {
        let mut servers = self.servers.write();
        if let Some(found) = servers.iter().find(|server| &*server.name == name) {
            return Arc::clone(found);
        }
        let made = Arc::new(ServerMetrics { name: name.into(), cells: PerWorker::new(self.workers) });
        servers.push(Arc::clone(&made));
        made
    }

    /// Counts a settled exchange: the request and its verdict together, so that both sums stay equal.
    pub fn settle(
        &self,
        worker: WorkerId,
        server: Option<&ServerMetrics>,
        code: CodeClass,
        verdict: Option<Verdict>,
        duration: Duration,
    ) {
        let cells = self.cells.of(worker);
        let served = server.map_or(&cells.unserved, |server| &server.cells.of(worker).served);
        served.codes[code.index()].add(1);
        served.duration.observe(duration);
        if let Some(verdict) = verdict {
            cells.affinity[verdict.index()].add(1);
        }
    }
}

/// What one worker counts of one store.
#[derive(Default)]
struct StoreCells {
    took: [DurationCells; StoreOp::ALL.len()],
    failed: [[Cell; StoreFault::ALL.len()]; StoreOp::ALL.len()],
}

/// Counters of one session store.
pub struct StoreMetrics {
    name: Box<str>,
    cells: PerWorker<StoreCells>,
}

impl StoreMetrics {
    /// Counts an operation on the network.
    pub fn took(&self, worker: WorkerId, op: StoreOp, span: Duration) {
        self.cells.of(worker).took[op.index()].observe(span);
    }

    /// How long operations took on average, if there were any.
    pub fn mean(&self) -> Option<Duration> {
        let sum = |of: fn(&DurationCells) -> u64| self.cells.sum(|cells| cells.took.iter().map(of).sum());
        let (count, nanos) = (sum(DurationCells::count), sum(|took| took.nanos.get()));
        nanos.checked_div(count).map(Duration::from_nanos)
    }

    /// Counts one that failed.
    pub fn failed(&self, worker: WorkerId, op: StoreOp, fault: StoreFault) {
        self.cells.of(worker).failed[op.index()][fault.index()].add(1);
    }
}

/// TLS versions as labels, and none for plain HTTP.
pub const TLS_VERSIONS: [&str; 2] = ["1.2", "1.3"];
/// HTTP versions as labels.
pub const HTTP_VERSIONS: [&str; 2] = ["1.1", "2"];

/// What one worker counts of one listener.
#[derive(Default)]
pub struct ListenerCells {
    pub open: Cell,
    pub accepted: [Cell; HTTP_VERSIONS.len()],
    /// By TLS version, and whether a ticket was resumed.
    pub handshakes: [[Cell; 2]; TLS_VERSIONS.len()],
    pub handshakes_failed: Cell,
}

/// Counters of one listener.
pub struct ListenerMetrics {
    name: Box<str>,
    /// A number that stands for the name for as long as the process lives.
    pub id: usize,
    pub cells: PerWorker<ListenerCells>,
}

#[derive(Default)]
struct ProxyCells {
    limits: [Cell; Limit::ALL.len()],
    headers: [[Cell; HeaderReason::ALL.len()]; Decision::ALL.len()],
    rates: [Cell; RateBy::ALL.len()],
    forged: [[Cell; CsrfReason::ALL.len()]; Decision::ALL.len()],
    cookies: [[Cell; CookieFault::ALL.len()]; CookieDeed::ALL.len()],
    tokens: [Cell; TokenReason::ALL.len()],
    step_ups: [Cell; StepUpReason::ALL.len()],
}

/// All counters of the process.
pub struct Metrics {
    workers: usize,
    pools: RwLock<Vec<Arc<PoolMetrics>>>,
    listeners: RwLock<Vec<Arc<ListenerMetrics>>>,
    stores: RwLock<Vec<Arc<StoreMetrics>>>,
    proxy: PerWorker<ProxyCells>,
    entries_refused: AtomicU64,
    reloads: [AtomicU64; 2],
    last_reload_failed: AtomicBool,
    last_reload: AtomicU64,
    live: RwLock<Option<Arc<dyn LiveState>>>,
}

/// The `pool` label of exchanges that no route gave to a pool.
pub const NO_POOL: &str = "-";
/// The `server` label of exchanges that no server answered.
pub const NO_SERVER: &str = "-";

impl Metrics {
    /// Counters for this many workers.
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Metrics {
            workers,
            pools: RwLock::default(),
            listeners: RwLock::default(),
            stores: RwLock::default(),
            proxy: PerWorker::new(workers),
            entries_refused: AtomicU64::new(0),
            reloads: Default::default(),
            last_reload_failed: AtomicBool::new(false),
            last_reload: AtomicU64::new(0),
            live: RwLock::default(),
        })
    }

    /// The counters of the store of this name, made on first use.
    pub fn store(&self, name: &str) -> Arc<StoreMetrics> {
        let mut stores = self.stores.write();
        if let Some(found) = stores.iter().find(|store| &*store.name == name) {
            return Arc::clone(found);
        }
        let made = Arc::new(StoreMetrics { name: name.into(), cells: PerWorker::new(self.workers) });
        stores.push(Arc::clone(&made));
        made
    }

    /// The buckets of the control thread.
    pub fn control(&self) -> WorkerId {
        WorkerId(self.workers)
    }

    /// The counters of the pool of this name, made on first use.
    pub fn pool(&self, name: &str) -> Arc<PoolMetrics> {
        let mut pools = self.pools.write();
        if let Some(found) = pools.iter().find(|pool| &*pool.name == name) {
            return Arc::clone(found);
        }
        let made = Arc::new(PoolMetrics {
            name: name.into(),
            workers: self.workers,
            cells: PerWorker::new(self.workers),
            servers: RwLock::default(),
        });
        pools.push(Arc::clone(&made));
        made
    }

    /// The counters of the listener of this name, made on first use.
    pub fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        let mut listeners = self.listeners.write();
        if let Some(found) = listeners.iter().find(|listener| &*listener.name == name) {
            return Arc::clone(found);
        }
        let id = listeners.len();
        let made = Arc::new(ListenerMetrics { name: name.into(), id, cells: PerWorker::new(self.workers) });
        listeners.push(Arc::clone(&made));
        made
    }

    /// Forgets the pools that the configuration no longer names. A server that has left a pool that stays is kept:
    /// its exchanges have verdicts in the pool's books, and both sums are to stay equal.
    pub fn retain(&self, known: impl Fn(&str) -> bool) {
        self.pools.write().retain(|pool| &*pool.name == NO_POOL || known(&pool.name));
    }

    /// Counts a bound that was reached.
    pub fn limit_reached(&self, worker: WorkerId, limit: Limit) {
        self.proxy.of(worker).limits[limit.index()].add(1);
    }

    /// Counts a request whose head was cleaned or refused.
    pub fn header_decision(&self, worker: WorkerId, decision: Decision, reason: HeaderReason) {
        self.proxy.of(worker).headers[decision.index()][reason.index()].add(1);
    }

    /// Counts a request that came too soon.
    pub fn rate_exceeded(&self, worker: WorkerId, by: RateBy) {
        self.proxy.of(worker).rates[by.index()].add(1);
    }

    /// Counts a request that another site may have forged.
    pub fn forged(&self, worker: WorkerId, decision: Decision, reason: CsrfReason) {
        self.proxy.of(worker).forged[decision.index()][reason.index()].add(1);
    }

    /// Counts what was wrong with a cookie.
    pub fn cookie_fault(&self, worker: WorkerId, deed: CookieDeed, fault: CookieFault) {
        self.proxy.of(worker).cookies[deed.index()][fault.index()].add(1);
    }

    /// Counts a token that does not count.
    pub fn token_refused(&self, worker: WorkerId, reason: TokenReason) {
        self.proxy.of(worker).tokens[reason.index()].add(1);
    }

    /// Counts a request of somebody who has to show more of who they are.
    pub fn step_up(&self, worker: WorkerId, reason: StepUpReason) {
        self.proxy.of(worker).step_ups[reason.index()].add(1);
    }

    /// Counts a request to the admin surface that has not shown its token.
    pub fn entry_refused(&self) {
        self.entries_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a reload.
    pub fn reloaded(&self, success: bool) {
        self.reloads[usize::from(success)].fetch_add(1, Ordering::Relaxed);
        self.last_reload_failed.store(!success, Ordering::Relaxed);
    }

    /// Notes when the configuration in force was loaded, in seconds since 1970.
    pub fn loaded(&self, at: u64) {
        self.last_reload.store(at, Ordering::Relaxed);
    }

    /// Says whose live state a scrape shows.
    pub fn show(&self, live: Arc<dyn LiveState>) {
        *self.live.write() = Some(live);
    }

    /// A registry that holds these counters and the process's own.
    pub fn registry(self: &Arc<Self>) -> prometheus::Result<Registry> {
        let registry = Registry::new();
        registry.register(Box::new(Collected { metrics: Arc::clone(self), desc: collected_desc()? }))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(registry)
    }

    fn gather(&self) -> Vec<MetricFamily> {
        let mut families = self.pool_families();
        families.extend(self.listener_families());
        families.extend(self.proxy_families());
        families.extend(self.session_families());
        let mut gauges = LiveGauges::new();
        if let Some(live) = &*self.live.read() {
            live.describe(&mut gauges);
        }
        families.extend(gauges.into_families());
        families.into_iter().filter_map(Family::finish).collect()
    }

    fn pool_families(&self) -> Vec<Family> {
        let mut requests =
            Family::counter("steadfast_requests_total", "Exchanges, by pool, server and class of status.");
        let mut durations = Family::histogram(
            "steadfast_request_duration_seconds",
            "Time from the request's head to the end of the response.",
        );
        let mut affinity = Family::counter("steadfast_affinity_total", "Exchanges, by what became of their affinity.");
        let mut waits =
            Family::histogram("steadfast_queue_wait_seconds", "Time spent in the waiting line of a server.");
        let mut regret = Family::histogram(
            "steadfast_affinity_regret_seconds",
            "Recent latency of the pinned server, its line included, over that of the best one, at each kept or waited pick.",
        );
        let mut disagreements = Family::counter(
            "steadfast_affinity_disagreement_total",
            "Kept and waited picks that the balance policy would have placed elsewhere.",
        );
        let mut attempts = Family::counter("steadfast_attempts_total", "Tries of exchanges on servers, by outcome.");
        for pool in self.pools.read().iter() {
            let unserved = ServedSums::of(&pool.cells, |cells| &cells.unserved);
            unserved.put(&mut requests, &mut durations, &pool.name, NO_SERVER);
            if pool.cells.sum(|cells| cells.regret.count()) > 0 {
                let buckets = std::array::from_fn(|at| pool.cells.sum(|cells| cells.regret.buckets[at].get()));
                let nanos = pool.cells.sum(|cells| cells.regret.nanos.get());
                regret.histogram_value(&[("pool", &pool.name)], &buckets, nanos);
                let count = pool.cells.sum(|cells| cells.disagreements.get());
                disagreements.value(&[("pool", &pool.name)], count as f64);
            }
            for verdict in Verdict::all() {
                let count = pool.cells.sum(|cells| cells.affinity[verdict.index()].get());
                if count > 0 {
                    let labels = [("pool", &*pool.name), ("verdict", verdict.as_str()), ("reason", verdict.reason())];
                    affinity.value(&labels, count as f64);
                }
            }
            for server in pool.servers.read().iter() {
                ServedSums::of(&server.cells, |cells| &cells.served).put(
                    &mut requests,
                    &mut durations,
                    &pool.name,
                    &server.name,
                );
                let waited: [u64; BOUNDS.len() + 1] =
                    std::array::from_fn(|at| server.cells.sum(|cells| cells.queue_wait.buckets[at].get()));
                if waited.iter().any(|count| *count > 0) {
                    let nanos = server.cells.sum(|cells| cells.queue_wait.nanos.get());
                    waits.histogram_value(&[("pool", &pool.name), ("server", &server.name)], &waited, nanos);
                }
                for outcome in Outcome::ALL {
                    let count = server.cells.sum(|cells| cells.attempts[outcome.index()].get());
                    if count > 0 {
                        let labels = [("pool", &*pool.name), ("server", &*server.name), ("outcome", outcome.as_str())];
                        attempts.value(&labels, count as f64);
                    }
                }
            }
        }
        vec![requests, durations, affinity, regret, disagreements, attempts, waits]
    }

    fn session_families(&self) -> Vec<Family> {
        let mut events = Family::counter("steadfast_session_events_total", "What happened to sessions.");
        for pool in self.pools.read().iter() {
            for event in SessionEvent::ALL {
                let count = pool.cells.sum(|cells| cells.session_events[event.index()].get());
                if count > 0 {
                    events.value(&[("pool", &*pool.name), ("event", event.as_str())], count as f64);
                }
            }
        }
        let mut took = Family::histogram(
            "steadfast_store_operation_seconds",
            "Operations on session stores on the network, by what was asked.",
        );
        let mut failed = Family::counter("steadfast_store_errors_total", "Operations on session stores that failed.");
        for store in self.stores.read().iter() {
            for op in StoreOp::ALL {
                let of = |at: usize| store.cells.sum(|cells| cells.took[op.index()].buckets[at].get());
                let buckets: [u64; BOUNDS.len() + 1] = std::array::from_fn(of);
                if buckets.iter().any(|count| *count > 0) {
                    let nanos = store.cells.sum(|cells| cells.took[op.index()].nanos.get());
                    took.histogram_value(&[("store", &*store.name), ("op", op.as_str())], &buckets, nanos);
                }
                for fault in StoreFault::ALL {
                    let count = store.cells.sum(|cells| cells.failed[op.index()][fault.index()].get());
                    if count > 0 {
                        let labels = [("store", &*store.name), ("op", op.as_str()), ("error", fault.as_str())];
                        failed.value(&labels, count as f64);
                    }
                }
            }
        }
        vec![events, took, failed]
    }

    fn listener_families(&self) -> Vec<Family> {
        let mut open = Family::gauge("steadfast_connections", "Open connections of clients.");
        let mut accepted = Family::counter("steadfast_connections_total", "Connections that spoke HTTP, by version.");
        let mut handshakes =
            Family::counter("steadfast_tls_handshakes_total", "TLS handshakes, by version and resumption.");
        for listener in self.listeners.read().iter() {
            let name = &*listener.name;
            open.value(&[("listener", name)], listener.cells.sum(|cells| cells.open.get()) as f64);
            for (at, version) in HTTP_VERSIONS.iter().enumerate() {
                let count = listener.cells.sum(|cells| cells.accepted[at].get());
                accepted.value(&[("listener", name), ("version", version)], count as f64);
            }
            for (at, version) in TLS_VERSIONS.iter().enumerate() {
                for (resumed, word) in ["false", "true"].iter().enumerate() {
                    let count = listener.cells.sum(|cells| cells.handshakes[at][resumed].get());
                    let labels = [("listener", name), ("version", version), ("resumed", word)];
                    handshakes.value(&labels, count as f64);
                }
            }
            let failed = listener.cells.sum(|cells| cells.handshakes_failed.get());
            handshakes.value(&[("listener", name), ("version", "failed"), ("resumed", "false")], failed as f64);
        }
        vec![open, accepted, handshakes]
    }

    fn protect_family(&self) -> Family {
        let mut protect =
            Family::counter("steadfast_protect_total", "What the edge enforced, by rule, decision and reason.");
        let mut put = |rule: &str, decision: &str, reason: &str, of: &dyn Fn(&ProxyCells) -> u64| {
            let count = self.proxy.sum(of);
            if count > 0 {
                protect.value(&[("rule", rule), ("decision", decision), ("reason", reason)], count as f64);
            }
        };
        for decision in Decision::ALL {
            let at = decision.index();
            for reason in HeaderReason::ALL {
                put("header", decision.as_str(), reason.as_str(), &|cells| cells.headers[at][reason.index()].get());
            }
            for reason in CsrfReason::ALL {
                put("csrf", decision.as_str(), reason.as_str(), &|cells| cells.forged[at][reason.index()].get());
            }
        }
        for deed in CookieDeed::ALL {
            for fault in CookieFault::ALL {
                let of = |cells: &ProxyCells| cells.cookies[deed.index()][fault.index()].get();
                put("cookie", deed.as_str(), fault.as_str(), &of);
            }
        }
        let rejected = Decision::Rejected.as_str();
        for by in RateBy::ALL {
            put("rate", rejected, by.as_str(), &|cells| cells.rates[by.index()].get());
        }
        for reason in TokenReason::ALL {
            put("jwt", rejected, reason.as_str(), &|cells| cells.tokens[reason.index()].get());
        }
        for reason in StepUpReason::ALL {
            put("step_up", rejected, reason.as_str(), &|cells| cells.step_ups[reason.index()].get());
        }
        let refused = self.entries_refused.load(Ordering::Relaxed);
        if refused > 0 {
            let labels = [("rule", "admin"), ("decision", rejected), ("reason", "token")];
            protect.value(&labels, refused as f64);
        }
        protect
    }

    fn proxy_families(&self) -> Vec<Family> {
        let mut limits = Family::counter("steadfast_limit_reached_total", "How often a bound was reached.");
        for limit in Limit::ALL {
            let count = self.proxy.sum(|cells| cells.limits[limit.index()].get());
            limits.value(&[("limit", limit.as_str())], count as f64);
        }
        let mut reloads = Family::counter("steadfast_reload_total", "Reloads of the configuration, by result.");
        for (at, result) in ["failure", "success"].iter().enumerate() {
            reloads.value(&[("result", result)], self.reloads[at].load(Ordering::Relaxed) as f64);
        }
        let mut taken = Family::gauge(
            "steadfast_config_last_reload_successful",
            "1 where the last reload of the configuration was taken, or there was none.",
        );
        taken.value(&[], f64::from(u8::from(!self.last_reload_failed.load(Ordering::Relaxed))));
        let mut last = Family::gauge(
            "steadfast_config_last_reload_success_timestamp_seconds",
            "When the configuration in force was loaded, in seconds since 1970.",
        );
        last.value(&[], self.last_reload.load(Ordering::Relaxed) as f64);
        let mut build = Family::gauge("steadfast_build_info", "1, with the version as a label.");
        build.value(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        vec![limits, self.protect_family(), reloads, taken, last, build]
    }
}

/// The Prometheus text of a registry.
pub fn encode(registry: &Registry) -> prometheus::Result<Vec<u8>> {
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(text)
}

struct Collected {
    metrics: Arc<Metrics>,
    desc: Desc,
}

fn collected_desc() -> prometheus::Result<Desc> {
    Desc::new("steadfast".into(), "All families of steadfast.".into(), Vec::new(), Default::default())
}

impl Collector for Collected {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.metrics.gather()
    }
}

/// Sums over the workers of one [`ServedCells`].
struct ServedSums {
    codes: [u64; CodeClass::ALL.len()],
    buckets: [u64; BOUNDS.len() + 1],
    nanos: u64,
}

impl ServedSums {
    fn of<T: Default>(cells: &PerWorker<T>, served: impl Fn(&T) -> &ServedCells) -> Self {
        ServedSums {
            codes: std::array::from_fn(|at| cells.sum(|cells| served(cells).codes[at].get())),
            buckets: std::array::from_fn(|at| cells.sum(|cells| served(cells).duration.buckets[at].get())),
            nanos: cells.sum(|cells| served(cells).duration.nanos.get()),
        }
    }

    fn put(&self, requests: &mut Family, durations: &mut Family, pool: &str, server: &str) {
        for (code, count) in CodeClass::ALL.iter().zip(self.codes) {
            if count > 0 {
                requests.value(&[("pool", pool), ("server", server), ("code", code.as_str())], count as f64);
            }
        }
        if self.codes.iter().any(|count| *count > 0) {
            durations.histogram_value(&[("pool", pool), ("server", server)], &self.buckets, self.nanos);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::NewWhy;

    fn text(metrics: &Arc<Metrics>) -> String {
        String::from_utf8(encode(&metrics.registry().unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn a_settled_exchange_counts_request_duration_and_verdict_over_all_workers() {
        let metrics = Metrics::new(2);
        let pool = metrics.pool("shop");
        let server = pool.server("shop-1");
        for worker in [WorkerId(0), WorkerId(1)] {
            let verdict = Some(Verdict::New(NewWhy::First));
            pool.settle(worker, Some(&server), CodeClass::Success, verdict, Duration::from_millis(3));
        }
        let text = text(&metrics);
        assert!(
            text.contains(r#"steadfast_requests_total{code="2xx",pool="shop",server="shop-1"} 2"#)
                || text.contains(r#"steadfast_requests_total{pool="shop",server="shop-1",code="2xx"} 2"#),
            "{text}"
        );
        assert!(text.contains(r#"verdict="new",reason="first"} 2"#), "{text}");
        assert!(text.contains(r#"le="0.0025"} 0"#) && text.contains(r#"le="0.005"} 2"#), "{text}");
        assert!(text.contains("process_cpu_seconds_total"), "{text}");
    }

    #[test]
    fn a_pool_that_has_gone_is_forgotten() {
        let metrics = Metrics::new(1);
        for name in ["shop", "blog"] {
            let pool = metrics.pool(name);
            pool.settle(WorkerId(0), None, CodeClass::Success, None, Duration::ZERO);
        }
        metrics.retain(|pool| pool != "blog");
        let text = text(&metrics);
        assert!(text.contains("pool=\"shop\"") && !text.contains("blog"), "{text}");
    }
}
