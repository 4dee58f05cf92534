//! The control thread: signals, reloads, probes, names, and the admin surface.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle, LocalSet};

use super::worker::{Command, Handle};
use super::{AppError, bind_all, listen, set_ready};
use crate::admin;
use crate::clock::Clock;
use crate::config::LoadError;
use crate::metrics::WorkerId;
use crate::pool::{LoadWindow, SAMPLE_EVERY};
use crate::private::Socket;
use crate::probe;
use crate::proxy::AccessLogs;
use crate::runtime::{ReloadError, Reloaded, RevocationBook, Runtime, Snapshot, watch};
use crate::session_api;
use crate::store::{self, Store};
use crate::tasks::Owned;
use crate::upstream::{Address, Target};

/// What the control thread works with.
pub(super) struct Control {
    pub(super) runtime: Arc<Runtime>,
    pub(super) workers: Vec<Handle>,
    pub(super) done: mpsc::UnboundedReceiver<WorkerId>,
    pub(super) logs: Option<Arc<AccessLogs>>,
    pub(super) random: fastrand::Rng,
}

/// The addresses that the control thread serves.
pub(super) struct Sockets {
    pub(super) admin: Socket,
    /// Metrics and health only.
    pub(super) scrape: Option<Socket>,
    pub(super) session_api: Option<Socket>,
}

/// Probing tasks, by pool and server.
type Probing = HashMap<(Arc<str>, Box<str>), (Arc<Target>, probe::Settings, Owned)>;

/// What a reload comes to: the new snapshot with its new sockets, or why there is none.
type ReloadResult = Result<(Reloaded, HashMap<Box<str>, super::Sockets>), ReloadError>;
type Reloading = JoinHandle<ReloadResult>;

/// Waits for a reload; for ever when there is none.
async fn finished(reloading: &mut Option<Reloading>) -> Result<ReloadResult, JoinError> {
    match reloading {
        Some(reloading) => reloading.await,
        None => std::future::pending().await,
    }
}

impl Control {
    /// Runs until the process is to end, and then until the workers have.
    pub(super) fn run(self, sockets: Sockets) -> Result<(), AppError> {
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let served = LocalSet::new().block_on(&executor, self.serve(sockets));
        // A name that is still being resolved must not hold up the end.
        executor.shutdown_background();
        served
    }

    async fn serve(mut self, sockets: Sockets) -> Result<(), AppError> {
        let Sockets { admin, scrape, session_api } = sockets;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut reopen = signal(SignalKind::user_defined1())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (changed, mut changes) = mpsc::channel::<()>(1);
        let (reloads, mut asked) = mpsc::channel::<admin::ReloadRequest>(16);
        tracing::info!(address = %admin.local(), "admin surface");
        let mut tasks = vec![
            Owned::spawn(admin::serve(admin, Arc::clone(&self.runtime), Some(reloads))),
            Owned::spawn(keep_time()),
            Owned::spawn(keep_names(Arc::clone(&self.runtime))),
            Owned::spawn(keep_stores(Arc::clone(&self.runtime))),
            Owned::spawn(keep_tokens(Arc::clone(&self.runtime))),
            Owned::spawn(measure_load(Arc::clone(&self.runtime))),
            Owned::spawn(watch(Arc::clone(&self.runtime), move || {
                // A full channel already holds the news.
                let _ = changed.try_send(());
            })),
        ];
        if let Some(scrape) = scrape {
            tracing::info!(address = %scrape.local(), "metrics");
            tasks.push(Owned::spawn(admin::serve(scrape, Arc::clone(&self.runtime), None)));
        }
        if let Some(session_api) = session_api {
            tracing::info!(address = %session_api.local(), "session API");
            tasks.push(Owned::spawn(session_api::serve(session_api, Arc::clone(&self.runtime))));
        }
        let mut probing = Probing::new();
        self.probe(&mut probing);
        set_ready(&self.runtime, true);
        // A reload may wait for files and names; signals must not wait for it.
        let mut reloading: Option<Reloading> = None;
        let mut again = false;
        // Who waits for the reload under way, and who for the one after.
        let (mut served, mut waiting): (Vec<admin::ReloadRequest>, Vec<admin::ReloadRequest>) = Default::default();
        loop {
            tokio::select! {
                _ = hangup.recv() => again = true,
                Some(()) = changes.recv() => again = true,
                Some(request) = asked.recv() => {
                    waiting.push(request);
                    again = true;
                }
                reloaded = finished(&mut reloading) => {
                    reloading = None;
                    let result = self.take_over(reloaded, &mut probing);
                    for request in served.drain(..) {
                        // Who asked may have gone.
                        let _ = request.send(result.clone());
                    }
                }
                _ = reopen.recv() => if let Some(logs) = &self.logs { logs.reopen() },
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
            if again && reloading.is_none() {
                again = false;
                served.append(&mut waiting);
                reloading = Some(self.start_reload());
            }
        }
        // What a reload that comes too late has bound is nobody's.
        drop(reloading);
        tokio::select! {
            () = self.shut_down() => Ok(()),
            _ = terminate.recv() => Err(AppError::Cut),
            _ = interrupt.recv() => Err(AppError::Cut),
        }
    }

    fn start_reload(&mut self) -> Reloading {
        let runtime = Arc::clone(&self.runtime);
        let mut random = self.random.fork();
        tokio::task::spawn_blocking(move || {
            let before = runtime.snapshot();
            runtime.reload(&mut random, |snapshot| bind_new(&before, snapshot))
        })
    }

    /// Puts a finished reload to work, or says why there is none.
    fn take_over(
        &mut self,
        reloaded: Result<ReloadResult, JoinError>,
        probing: &mut Probing,
    ) -> Result<(), serde_json::Value> {
        match reloaded {
            Ok(Ok((reloaded, sockets))) => {
                if !reloaded.warnings.problems.is_empty() {
                    eprint!("{}", reloaded.warnings.human(false));
                }
                for setting in reloaded.need_restart {
                    tracing::warn!(setting, "a change of this takes a restart");
                }
                listen(&self.workers, &reloaded.snapshot, sockets);
                self.probe(probing);
                tracing::info!("configuration reloaded");
                Ok(())
            }
            Ok(Err(error)) => {
                reject(&error);
                Err(problems_of(&error))
            }
            Err(error) => {
                // It died, and nobody is left to count it.
                self.runtime.metrics.reloaded(false);
                tracing::error!(%error, "the reload failed; nothing has changed");
                Err(serde_json::json!([{ "severity": "error", "message": error.to_string() }]))
            }
        }
    }

    /// Brings the probing tasks in line with the snapshot; those that need no change go on undisturbed.
    fn probe(&mut self, probing: &mut Probing) {
        let snapshot = self.runtime.snapshot();
        let mut before = std::mem::take(probing);
        for entry in &snapshot.pools {
            for (server, target) in entry.pool.servers.iter().zip(&entry.targets) {
                let Some(settings) = &entry.health else {
                    server.state.vitals.forget();
                    server.state.wishes.forget_own();
                    continue;
                };
                let key = (Arc::clone(&entry.pool.name), server.settings.name.clone());
                let running = before.remove(&key);
                let same = running.filter(|(known, old, _)| Arc::ptr_eq(known, target) && old == settings);
                let running = same.unwrap_or_else(|| {
                    let first = settings.interval.mul_f64(self.random.f64() / 2.0);
                    let (pool, name) = key.clone();
                    let task = Owned::spawn(probe::run(pool, name, Arc::clone(target), settings.clone(), first));
                    (Arc::clone(target), settings.clone(), task)
                });
                probing.insert(key, running);
            }
        }
    }

    async fn shut_down(&mut self) {
        let snapshot = self.runtime.snapshot();
        set_ready(&self.runtime, false);
        let delay = snapshot.process.shutdown_delay;
        tracing::info!(?delay, grace = ?snapshot.process.shutdown_grace, "shutting down");
        tokio::time::sleep(delay).await;
        self.workers.iter().for_each(|worker| worker.tell(Command::Drain));
        let mut left = self.workers.len();
        let grace = tokio::time::sleep(snapshot.process.shutdown_grace);
        tokio::pin!(grace);
        while left > 0 {
            tokio::select! {
                Some(_) = self.done.recv() => left -= 1,
                () = &mut grace => break,
            }
        }
        self.workers.iter().for_each(|worker| worker.tell(Command::Abort));
        // They may take their time for goodbyes; a second signal is heard meanwhile.
        while left > 0 && self.done.recv().await.is_some() {
            left -= 1;
        }
        self.workers.drain(..).for_each(Handle::join);
        tracing::info!("all connections have ended");
    }
}

/// Every reason, for programs.
fn problems_of(error: &ReloadError) -> serde_json::Value {
    match error {
        ReloadError::Load(LoadError::Problems(report)) => report.json(),
        other => serde_json::json!([{ "severity": "error", "message": other.to_string() }]),
    }
}

fn reject(error: &ReloadError) {
    tracing::error!("the configuration was rejected; nothing has changed");
    eprintln!("{error}");
}

/// Binds the listeners that are new or have moved; a port that cannot be bound refuses the whole reload.
fn bind_new(before: &Snapshot, after: &Snapshot) -> Result<HashMap<Box<str>, super::Sockets>, String> {
    let known = |endpoint: &crate::listener::Endpoint| {
        let same = |old: &&Arc<crate::listener::Endpoint>| {
            old.settings.name == endpoint.settings.name && old.settings.address == endpoint.settings.address
        };
        before.endpoints.iter().any(|old| same(&old))
    };
    let new = after.endpoints.iter().filter(|endpoint| !known(endpoint));
    bind_all(new, after.process.workers).map_err(|error| error.to_string())
}

async fn keep_time() {
    loop {
        Clock::anchor();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Sees to stores: what has expired, what is owed, and what other proxies tell.
async fn keep_stores(runtime: Arc<Runtime>) {
    let mut kept: Vec<(Arc<Store>, Rc<store::Client>, [Owned; 2])> = Vec::new();
    for turn in 0usize.. {
        let snapshot = runtime.snapshot();
        kept.retain(|(store, ..)| snapshot.stores.iter().any(|known| Arc::ptr_eq(known, store)));
        for store in &snapshot.stores {
            if kept.iter().any(|(known, ..)| Arc::ptr_eq(known, store)) {
                continue;
            }
            let client = store.client(runtime.metrics.control());
            let (listening, told) = (Arc::clone(store), Arc::clone(&runtime));
            let hearing = Owned::spawn(async move { listening.hear_of_ends(|sid| told.ended.note(&[sid])).await });
            let followed = Arc::clone(store);
            let following = Owned::spawn(async move { followed.follow().await });
            kept.push((Arc::clone(store), client, [hearing, following]));
        }
        for (store, client, _) in &kept {
            store.sweep(turn);
            client.probe().await;
            client.pay_what_is_owed().await;
        }
        runtime.attempts.sweep(Clock::now());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Sees to issuers' keys, and to tokens that count no more.
async fn keep_tokens(runtime: Arc<Runtime>) {
    let mut ways: Vec<TokenStore> = Vec::new();
    loop {
        let snapshot = runtime.snapshot();
        ways.retain(|way| snapshot.stores.iter().any(|known| way.client.is_of(known)));
        for keys in snapshot.stateless_pools().flat_map(|pool| &pool.keys) {
            let keys = Arc::clone(keys);
            // It ends with the time that fetching may take; the next one is not due before.
            crate::tasks::spawn(async move { keys.refresh().await });
        }
        let now = Clock::wall(Clock::now()).seconds();
        let places: Vec<_> = snapshot.revocation_books().into_iter().map(|book| (book, book.place().store)).collect();
        for store in places.iter().filter_map(|(_, store)| store.as_ref()) {
            if !ways.iter().any(|way| way.client.is_of(store)) {
                let name = Arc::clone(&store.settings.name);
                let client = store.client(runtime.metrics.control());
                ways.push(TokenStore { name, client, keeps: Cell::new(Keeps::Unknown) });
            }
        }
        // A store that is away must not keep the others waiting.
        let looks = places.iter().map(|(book, store)| {
            let way = store.as_ref().and_then(|store| ways.iter().find(|way| way.client.is_of(store)));
            async move {
                match way {
                    Some(way) => way.refresh(book, now).await,
                    None => book.sweep(now),
                }
            }
        });
        join_all(looks).await;
        drop(places);
        drop(snapshot);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A store of revocations.
struct TokenStore {
    name: Arc<str>,
    client: Rc<store::Client>,
    keeps: Cell<Keeps>,
}

/// Whether a store keeps what it was given. One that makes room by forgetting would let revoked tokens count again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeps {
    Unknown,
    /// It does not say, and that was reported.
    Untold,
    /// It said so, or that it does not, and that was reported.
    Told,
}

impl TokenStore {
    async fn refresh(&self, book: &RevocationBook, now: u64) {
        if book.refresh(&self.client, now).await && self.keeps.get() != Keeps::Told {
            self.warn_if_it_forgets().await;
        }
    }

    async fn warn_if_it_forgets(&self) {
        let store = &self.name;
        let told = self.client.keeps_everything().await;
        match &told {
            Ok(true) => {}
            Ok(false) => tracing::error!(%store, "this store forgets when it is full, and would forget revocations: \
                set `maxmemory-policy noeviction`"),
            Err(error) if self.keeps.get() == Keeps::Unknown => {
                tracing::warn!(%store, %error, "this store does not say whether it forgets when it is full");
            }
            Err(_) => {}
        }
        self.keeps.set(if told.is_ok() { Keeps::Told } else { Keeps::Untold });
    }
}

/// Looks at every pool's load, and measures once a second how uneven it is.
async fn measure_load(runtime: Arc<Runtime>) {
    let mut windows: HashMap<Arc<str>, LoadWindow> = HashMap::new();
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in 0u32.. {
        ticks.tick().await;
        let (snapshot, now) = (runtime.snapshot(), Clock::now());
        windows.retain(|pool, _| snapshot.pool(pool).is_some());
        for entry in &snapshot.pools {
            let window = windows.entry(Arc::clone(&entry.pool.name)).or_default();
            entry.pool.look_for_joins(now);
            window.sample(&entry.pool, now);
            if number % SAMPLES_A_MEASURE == 0 {
                let load = window.measure(&entry.pool, now, entry.session_window);
                let since = entry.pool.rebalancing().since();
                let uneven = since.and_then(|since| window.uneven_since(since, &entry.pool, now));
                entry.pool.judge_rebalancing(&load, uneven, now, entry.session_window);
                *entry.load.lock() = load;
            }
        }
    }
}

/// A measure a second.
const SAMPLES_A_MEASURE: u32 = 10;

/// Resolves servers' names again, now and then, and soon after a connect has failed.
async fn keep_names(runtime: Arc<Runtime>) {
    let mut last = Clock::now();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let snapshot = runtime.snapshot();
        let all = Clock::now().since(last) >= snapshot.process.resolve;
        if all {
            last = Clock::now();
        }
        // Servers say on probes how much they want; schedules follow within a second.
        snapshot.pools.iter().for_each(|entry| entry.pool.reweigh());
        let targets = snapshot.pools.iter().flat_map(|entry| entry.all_targets());
        let due = targets.filter(|target| target.take_stale_name() || all);
        join_all(due.map(|target| resolve(target))).await;
    }
}

/// A name that cannot be resolved now keeps its addresses.
async fn resolve(target: &Target) {
    let Address::Tcp { host, port } = &target.settings.address else { return };
    if host.parse::<std::net::IpAddr>().is_ok() {
        return;
    }
    match tokio::net::lookup_host((&**host, *port)).await {
        Ok(addresses) => {
            let addresses: Vec<_> = addresses.collect();
            if !addresses.is_empty() {
                target.set_addresses(addresses);
            }
        }
        Err(error) => tracing::warn!(%host, %error, "name cannot be resolved; its last addresses stay"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::metrics::encode;

    const MINIMAL: &str = "[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n[[route]]\npool = \"shop\"\n\
                           [[pool]]\nname = \"shop\"\nmode = \"sticky\"\n\
                           [[pool.server]]\nname = \"a\"\naddress = \"127.0.0.1:9\"\n";

    /// What controls a proxy without workers.
    fn control(directory: &Path) -> Control {
        crate::tls::install_provider();
        let path = directory.join("steadfast.toml");
        std::fs::write(&path, MINIMAL).unwrap();
        let loaded = config::load(&path, config::Hosts::Resolved(&HashSet::new())).unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        let runtime = Runtime::new(&path, loaded, &mut random).unwrap();
        Control { runtime, workers: Vec::new(), done: mpsc::unbounded_channel().1, logs: None, random }
    }

    #[test]
    fn a_reload_that_dies_counts_as_failed() {
        let directory = tempfile::tempdir().unwrap();
        let mut control = control(directory.path());
        let executor = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let died = executor
            .block_on(async { tokio::task::spawn_blocking(|| -> ReloadResult { panic!("as a test wants it") }).await });
        assert!(control.take_over(died, &mut Probing::new()).is_err(), "who asked is told");
        let text = encode(&control.runtime.metrics.registry().unwrap()).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("steadfast_reload_total{result=\"failure\"} 1"), "{text}");
        assert!(text.contains("steadfast_config_last_reload_successful 0"), "{text}");
    }
}
