//! Stores of sessions: where they are, whether they answer, and how long that takes.
//!
//! A [`Store`] is what workers share of one; each asks through a client of its own. Stores on the network have
//! deadlines, a second try for reads, and a breaker: one that keeps failing is left alone, but for a probe now and then,
//! so that exchanges are told at once that there is no session store, and it is not buried under retries when it is back.

mod breaker;
mod embedded;
mod joint;
mod memcached;
mod near;
mod redis;

use std::cell::Cell;
use std::collections::HashSet;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use breaker::BreakerSettings;
pub use memcached::{MemcachedSettings, Node as MemcachedNode};
pub use redis::{Place as RedisPlace, RedisSettings};

use breaker::Breaker;
use embedded::Embedded;
use memcached::Memcached;
use near::Near;
use redis::{Redis, Topology};

use crate::clock::Clock;
use crate::metrics::{StoreMetrics, WorkerId};
use crate::names::{StoreFault, StoreOp};
use crate::session::Sid;
use crate::session::store::{Answer, Ask, Asking, Entry, ID_BYTES, Key, Kind, SessionStore, StoreError, TAG_BITS};

/// `[[store]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub name: Arc<str>,
    pub kind: KindSettings,
    /// How old a read may be.
    pub near_cache: Duration,
    pub breaker: BreakerSettings,
    /// Data of one session.
    pub most_bytes: usize,
}

impl Settings {
    /// The same store, in memory only.
    pub fn forget_path(&mut self) {
        if let KindSettings::Embedded { path, .. } = &mut self.kind {
            *path = None;
        }
    }
}

/// What a store is.
#[derive(Clone, Debug, PartialEq)]
pub enum KindSettings {
    Embedded { path: Option<PathBuf>, memory: usize },
    Redis(RedisSettings),
    Memcached(MemcachedSettings),
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(String);

/// One store, as all workers share it.
pub struct Store {
    pub settings: Settings,
    kind: Shared,
    /// One for each part that can fail by itself.
    breakers: Vec<Breaker>,
    near: Near,
    metrics: Arc<StoreMetrics>,
    /// Lineages that were to end while the store did not answer.
    owed: Mutex<HashSet<Key>>,
}

enum Shared {
    Embedded(Arc<Embedded>),
    Redis(Arc<RedisSettings>, Arc<Topology>),
    Memcached(Arc<MemcachedSettings>),
}

/// Stretches of a cluster's slots that are thought to fail together: nodes have long ones.
const STRETCHES: usize = 64;
const SLOTS: usize = 16_384;

impl Shared {
    /// How many parts of it can fail while others do not.
    fn parts(&self) -> usize {
        match self {
            Shared::Redis(settings, _) if matches!(settings.place, RedisPlace::Cluster(_)) => STRETCHES,
            Shared::Embedded(_) | Shared::Redis(..) => 1,
            Shared::Memcached(settings) => settings.nodes.len(),
        }
    }

    /// A key of a record that nobody has, in a part.
    fn key_in(&self, part: usize) -> Option<Key> {
        let key = |tag| Key { tag, kind: Kind::Handle, id: [0; ID_BYTES] };
        (0..1 << TAG_BITS).map(key).find(|key| self.part(key) == part)
    }

    /// The part where a record is.
    fn part(&self, key: &Key) -> usize {
        match self {
            Shared::Redis(settings, _) if matches!(settings.place, RedisPlace::Cluster(_)) => {
                usize::from(redis::slot(key)) / (SLOTS / STRETCHES)
            }
            Shared::Embedded(_) | Shared::Redis(..) => 0,
            Shared::Memcached(settings) => memcached::position(&settings.nodes, key.tag),
        }
    }
}

impl Store {
    /// Opens a store. One on the network is not asked yet: it may come later than we do.
    pub fn open(settings: Settings, metrics: Arc<StoreMetrics>) -> Result<Arc<Self>, OpenError> {
        let kind = match &settings.kind {
            KindSettings::Embedded { path: None, memory } => Shared::Embedded(Arc::new(Embedded::in_memory(*memory))),
            KindSettings::Embedded { path: Some(path), memory } => {
                let store = Embedded::in_file(path, *memory).map_err(|error| OpenError(error.to_string()))?;
                Shared::Embedded(Arc::new(store))
            }
            KindSettings::Redis(redis) => {
                let redis = Arc::new(redis.clone());
                let topology = Arc::default();
                // What is wrong with its authorities is to be known now, and not at the first session.
                Redis::new(Arc::clone(&redis), Arc::clone(&topology)).map_err(|error| OpenError(error.to_string()))?;
                Shared::Redis(redis, topology)
            }
            KindSettings::Memcached(memcached) => Shared::Memcached(Arc::new(memcached.clone())),
        };
        let near = Near::new(settings.near_cache);
        let breakers = (0..kind.parts()).map(|_| Breaker::new(settings.breaker)).collect();
        Ok(Arc::new(Store { settings, kind, breakers, near, metrics, owed: Mutex::default() }))
    }

    /// Whether a store of these settings is this one: it goes on over a reload then. What an embedded one holds is not
    /// given up for a change of its bounds.
    pub fn is(&self, wanted: &Settings) -> bool {
        match (&self.settings.kind, &wanted.kind) {
            (KindSettings::Embedded { path, .. }, KindSettings::Embedded { path: other, .. }) => {
                self.settings.name == wanted.name && path == other
            }
            _ => self.settings == *wanted,
        }
    }

    /// A client for one worker.
    pub fn client(self: &Arc<Self>, worker: WorkerId) -> Rc<Client> {
        let inner: Inner = match &self.kind {
            Shared::Embedded(store) => Inner::Embedded(Arc::clone(store)),
            Shared::Redis(settings, topology) => match Redis::new(Arc::clone(settings), Arc::clone(topology)) {
                Ok(redis) => Inner::Redis(redis),
                Err(error) => Inner::Unusable(error.to_string()),
            },
            Shared::Memcached(settings) => Inner::Memcached(Memcached::new(Arc::clone(settings))),
        };
        Rc::new(Client { store: Arc::clone(self), inner, worker, unreplicated: Cell::new(0) })
    }

    /// Forgets what has expired, bit by bit; to be called about once a second.
    pub fn sweep(&self, turn: usize) {
        if let Shared::Embedded(store) = &self.kind {
            store.sweep(turn);
        }
        self.near.sweep();
    }

    /// Whether it answers, as far as is known.
    pub fn answers(&self) -> bool {
        self.breakers.iter().all(Breaker::is_closed)
    }

    /// How long an operation takes, as far as that was measured; an embedded store is at hand.
    pub fn round_trip(&self) -> Option<Duration> {
        match self.kind {
            Shared::Embedded(_) => Some(Duration::ZERO),
            Shared::Redis(..) | Shared::Memcached(_) => self.metrics.mean(),
        }
    }

    /// Records and bytes held, and records that had to make room; where that is ours to know.
    pub fn holds(&self) -> Option<(usize, usize, u64)> {
        match &self.kind {
            Shared::Embedded(store) => {
                let (records, bytes) = store.size();
                Some((records, bytes, store.evicted()))
            }
            Shared::Redis(..) | Shared::Memcached(_) => None,
        }
    }

    /// Notes a lineage that is to end as soon as the store answers again.
    pub fn owe_end(&self, lineage: Key) {
        self.owed.lock().insert(lineage);
    }

    /// Takes over what another store of the same name was still to end.
    pub fn inherit(&self, before: &Store) {
        let owed = before.owed.lock().clone();
        self.owed.lock().extend(owed);
    }

    /// Whether a lineage is to end.
    pub fn owes_end(&self, lineage: &Key) -> bool {
        self.owed.lock().contains(lineage)
    }

    /// Whether other proxies have to be told of what ends here.
    pub fn is_shared_between_proxies(&self) -> bool {
        !matches!(self.kind, Shared::Embedded(_))
    }

    /// Hears of sessions that other proxies have ended, for as long as it is polled.
    pub async fn hear_of_ends(&self, mut on_end: impl FnMut(Sid)) {
        let Shared::Redis(settings, topology) = &self.kind else { return };
        let on_message = move |message: Vec<u8>| {
            // Whose records they were is not said: what was read is read again.
            self.near.clear();
            for sid in message.as_chunks().0 {
                on_end(Sid(*sid));
            }
        };
        redis::subscribe(Arc::clone(settings), Arc::clone(topology), ENDED, on_message).await;
    }
}

impl Store {
    /// Follows its primary from node to node, for as long as it is polled.
    pub async fn follow(&self) {
        if let Shared::Redis(settings, topology) = &self.kind {
            redis::watch(Arc::clone(settings), Arc::clone(topology)).await;
        }
    }
}

/// Where proxies tell each other of sessions that have ended.
const ENDED: &str = "sf1:ended";

/// One worker's way to a store.
pub struct Client {
    store: Arc<Store>,
    inner: Inner,
    worker: WorkerId,
    unreplicated: Cell<u64>,
}

enum Inner {
    Embedded(Arc<Embedded>),
    Redis(Redis),
    Memcached(Memcached),
    /// The system's authorities could be read when the store was opened, and no longer can.
    Unusable(String),
}

impl Client {
    /// Whether it is a way to this store.
    pub fn is_of(&self, store: &Arc<Store>) -> bool {
        Arc::ptr_eq(&self.store, store)
    }

    /// Tells other proxies of sessions that have ended.
    pub async fn tell_of_ends(&self, ended: &[Sid]) {
        let Inner::Redis(redis) = &self.inner else { return };
        let message: Vec<u8> = ended.iter().flat_map(|sid| sid.0).collect();
        // Who does not hear it looks again after `tunnel_recheck`.
        if let Err(error) = redis.publish(ENDED, &message).await {
            tracing::debug!(store = %self.store.settings.name, %error, "others were not told of ended sessions");
        }
    }

    /// Every subject's record, where the store can tell without being searched through by others' requests.
    pub async fn subjects(&self) -> Result<Vec<(Key, Entry)>, StoreError> {
        match &self.inner {
            Inner::Embedded(store) => Ok(store.subjects()),
            Inner::Redis(redis) => redis.subjects().await,
            Inner::Memcached(_) => Err(StoreError::Unavailable("memcached has no list of what it holds".to_owned())),
            Inner::Unusable(why) => Err(StoreError::Unavailable(why.clone())),
        }
    }

    /// How many durable changes no replica has confirmed, where there are replicas: a failover may lose them.
    pub fn unreplicated(&self) -> u64 {
        self.unreplicated.get()
    }

    /// Whether the store would rather refuse than forget when it is full.
    pub async fn keeps_everything(&self) -> Result<bool, StoreError> {
        match &self.inner {
            Inner::Embedded(_) => Ok(true),
            Inner::Redis(redis) => redis.keeps_everything().await,
            Inner::Memcached(_) => Ok(false),
            Inner::Unusable(why) => Err(StoreError::Unavailable(why.clone())),
        }
    }

    /// Ends what was to end while the store did not answer.
    pub async fn pay_what_is_owed(&self) {
        let owed: Vec<Key> = self.store.owed.lock().iter().copied().collect();
        if !owed.is_empty() && self.ask(Ask::Delete(owed.clone())).await.is_ok() {
            self.store.owed.lock().retain(|key| !owed.contains(key));
        }
    }

    /// Asks whether parts are back that failed: where nobody else asks, nobody would know.
    pub async fn probe(&self) {
        let remote: &dyn SessionStore = match &self.inner {
            Inner::Redis(redis) => redis,
            Inner::Memcached(memcached) => memcached,
            Inner::Embedded(_) | Inner::Unusable(_) => return,
        };
        let open = self.store.breakers.iter().enumerate().filter(|(_, breaker)| !breaker.is_closed());
        let keys = open.filter_map(|(part, _)| Some((part, self.store.kind.key_in(part)?)));
        let probes = keys.map(|(part, key)| self.once(remote, StoreOp::Read, part, Ask::Read(vec![key])));
        futures_util::future::join_all(probes).await;
    }

    async fn ask_over_network(&self, remote: &dyn SessionStore, ask: Ask) -> Result<Answer, StoreError> {
        let now = Clock::now();
        if let Ask::Read(keys) = &ask
            && let Some(entries) = self.store.near.read(keys, now)
        {
            return Ok(Answer::Entries(entries));
        }
        self.store.near.forget(&ask, now);
        let op = match &ask {
            Ask::Read(_) => StoreOp::Read,
            Ask::Change(_) => StoreOp::Change,
            Ask::Touch(_) => StoreOp::Touch,
            Ask::Delete(_) => StoreOp::Delete,
        };
        let answer = self.by_part(remote, op, ask.clone()).await;
        if let (Ask::Read(keys), Ok(Answer::Entries(entries))) = (&ask, &answer) {
            self.store.near.keep(keys, entries, now);
        }
        // A change that was under way while somebody else read must not leave the older record here.
        self.store.near.forget(&ask, Clock::now());
        answer
    }

    /// Asks each part of the store for what it has: one that is away must not be held against the others.
    async fn by_part(&self, remote: &dyn SessionStore, op: StoreOp, ask: Ask) -> Result<Answer, StoreError> {
        if self.store.breakers.len() == 1 {
            return self.twice(remote, op, 0, ask).await;
        }
        let part = |key: &Key| self.store.kind.part(key);
        let keys = match &ask {
            Ask::Change(change) => return self.twice(remote, op, part(&change.guard.key()), ask).await,
            Ask::Read(keys) | Ask::Delete(keys) => keys.clone(),
            Ask::Touch(keys) => keys.iter().map(|(key, _)| *key).collect(),
        };
        let mut parts: Vec<usize> = keys.iter().map(part).collect();
        let of_each = parts.clone();
        parts.sort_unstable();
        parts.dedup();
        if parts.len() < 2 {
            return self.twice(remote, op, parts.first().copied().unwrap_or_default(), ask).await;
        }
        let asks = parts.iter().map(|part| self.twice(remote, op, *part, only(&ask, &of_each, *part)));
        let mut entries = vec![None; keys.len()];
        for (part, answer) in parts.iter().zip(futures_util::future::join_all(asks).await) {
            if let Answer::Entries(found) = answer? {
                let places = (0..keys.len()).filter(|at| of_each[*at] == *part);
                places.zip(found).for_each(|(at, entry)| entries[at] = entry);
            }
        }
        Ok(if op == StoreOp::Read { Answer::Entries(entries) } else { Answer::Done })
    }

    /// Reads are harmless to repeat; a change may have been made.
    async fn twice(&self, remote: &dyn SessionStore, op: StoreOp, part: usize, ask: Ask) -> Result<Answer, StoreError> {
        if op != StoreOp::Read {
            return self.once(remote, op, part, ask).await;
        }
        match self.once(remote, op, part, ask.clone()).await {
            Err(StoreError::TimedOut | StoreError::Unavailable(_)) => self.once(remote, op, part, ask).await,
            answer => answer,
        }
    }

    async fn once(&self, remote: &dyn SessionStore, op: StoreOp, part: usize, ask: Ask) -> Result<Answer, StoreError> {
        let begun = Clock::now();
        let breaker = &self.store.breakers[part];
        if !breaker.admits(begun) {
            self.store.metrics.failed(self.worker, op, StoreError::Resting.word());
            return Err(StoreError::Resting);
        }
        let answer = remote.ask(ask).await;
        let ended = Clock::now();
        self.store.metrics.took(self.worker, op, ended.since(begun));
        self.count_unreplicated(op);
        match &answer {
            Ok(_) => breaker.succeeded(),
            // It answers, and has no room: that is no reason to leave it alone.
            Err(StoreError::Full) => {
                self.store.metrics.failed(self.worker, op, StoreError::Full.word());
                breaker.succeeded();
            }
            Err(error) => {
                self.store.metrics.failed(self.worker, op, error.word());
                breaker.failed(ended);
            }
        }
        answer
    }
}

/// What of an ask is about records of one part.
fn only(ask: &Ask, parts: &[usize], part: usize) -> Ask {
    let is_there = |at: &usize| parts[*at] == part;
    match ask {
        Ask::Read(keys) => Ask::Read((0..keys.len()).filter(is_there).map(|at| keys[at]).collect()),
        Ask::Delete(keys) => Ask::Delete((0..keys.len()).filter(is_there).map(|at| keys[at]).collect()),
        Ask::Touch(keys) => Ask::Touch((0..keys.len()).filter(is_there).map(|at| keys[at]).collect()),
        Ask::Change(_) => ask.clone(),
    }
}

impl Client {
    /// It is done all the same: whoever waits for it is not to be told that it failed.
    fn count_unreplicated(&self, op: StoreOp) {
        let Inner::Redis(redis) = &self.inner else { return };
        for _ in 0..redis.take_unreplicated() {
            self.unreplicated.set(self.unreplicated.get() + 1);
            self.store.metrics.failed(self.worker, op, StoreFault::Unreplicated);
        }
    }
}

impl SessionStore for Client {
    fn ask(&self, ask: Ask) -> Asking<'_> {
        match &self.inner {
            Inner::Embedded(store) => store.ask(ask),
            Inner::Redis(redis) => Box::pin(self.ask_over_network(redis, ask)),
            Inner::Memcached(memcached) => Box::pin(self.ask_over_network(memcached, ask)),
            Inner::Unusable(why) => Box::pin(std::future::ready(Err(StoreError::Unavailable(why.clone())))),
        }
    }

    fn pause(&self, tries: u32) -> std::pin::Pin<Box<dyn Future<Output = ()> + '_>> {
        match &self.inner {
            Inner::Embedded(_) | Inner::Unusable(_) => Box::pin(std::future::ready(())),
            Inner::Redis(redis) => redis.pause(tries),
            Inner::Memcached(memcached) => memcached.pause(tries),
        }
    }
}
