//! Stores of sessions: where they are, whether they answer, and how long that takes.
//!
//! A [`Store`] is what workers share of one; each asks through a client of its own. Stores on the network have
//! deadlines, a second try for reads, and a breaker: one that keeps failing is left alone, but for a probe now and then,
//! so that exchanges are told at once that there is no session store, and it is not buried under retries when it is back.

mod breaker;
mod embedded;
mod near;
mod redis;

use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use breaker::BreakerSettings;
pub use redis::RedisSettings;

use breaker::Breaker;
use embedded::Embedded;
use near::Near;
use redis::Redis;

use crate::clock::Clock;
use crate::metrics::{StoreMetrics, WorkerId};
use crate::names::StoreOp;
use crate::session::Sid;
use crate::session::store::{Answer, Ask, Asking, Entry, Key, SessionStore, StoreError};

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
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(String);

/// One store, as all workers share it.
pub struct Store {
    pub settings: Settings,
    kind: Shared,
    breaker: Breaker,
    near: Near,
    metrics: Arc<StoreMetrics>,
    /// Lineages that were to end while the store did not answer.
    owed: Mutex<Vec<Key>>,
}

enum Shared {
    Embedded(Arc<Embedded>),
    Redis(Arc<RedisSettings>),
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
                // What is wrong with its authorities is to be known now, and not at the first session.
                Redis::new(Arc::clone(&redis)).map_err(|error| OpenError(error.to_string()))?;
                Shared::Redis(redis)
            }
        };
        let near = Near::new(settings.near_cache);
        let breaker = Breaker::new(settings.breaker);
        Ok(Arc::new(Store { settings, kind, breaker, near, metrics, owed: Mutex::default() }))
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
            Shared::Redis(settings) => match Redis::new(Arc::clone(settings)) {
                Ok(redis) => Inner::Redis(redis),
                Err(error) => Inner::Unusable(error.to_string()),
            },
        };
        Rc::new(Client { store: Arc::clone(self), inner, worker })
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
        self.breaker.is_closed()
    }

    /// Records and bytes held, and records that had to make room; where that is ours to know.
    pub fn holds(&self) -> Option<(usize, usize, u64)> {
        match &self.kind {
            Shared::Embedded(store) => {
                let (records, bytes) = store.size();
                Some((records, bytes, store.evicted()))
            }
            Shared::Redis(_) => None,
        }
    }

    /// Notes a lineage that is to end as soon as the store answers again.
    pub fn owe_end(&self, lineage: Key) {
        self.owed.lock().push(lineage);
    }

    /// Takes over what another store of the same name was still to end.
    pub fn inherit(&self, before: &Store) {
        let owed = before.owed.lock().clone();
        self.owed.lock().extend(owed);
    }

    /// Whether a lineage is to end.
    pub fn owes_end(&self, lineage: &Key) -> bool {
        let owed = self.owed.lock();
        !owed.is_empty() && owed.contains(lineage)
    }

    /// Whether other proxies have to be told of what ends here.
    pub fn is_shared_between_proxies(&self) -> bool {
        matches!(self.kind, Shared::Redis(_))
    }

    /// Hears of sessions that other proxies have ended, for as long as it is polled.
    pub async fn hear_of_ends(&self, mut on_end: impl FnMut(Sid)) {
        let Shared::Redis(settings) = &self.kind else { return };
        let on_message = move |message: Vec<u8>| {
            // Whose records they were is not said: what was read is read again.
            self.near.clear();
            for sid in message.as_chunks().0 {
                on_end(Sid(*sid));
            }
        };
        redis::subscribe(Arc::clone(settings), ENDED, on_message).await;
    }
}

/// Where proxies tell each other of sessions that have ended.
const ENDED: &str = "sf1:ended";

/// One worker's way to a store.
pub struct Client {
    store: Arc<Store>,
    inner: Inner,
    worker: WorkerId,
}

enum Inner {
    Embedded(Arc<Embedded>),
    Redis(Redis),
    /// The system's authorities could be read when the store was opened, and no longer can.
    Unusable(String),
}

impl Client {
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
            Inner::Unusable(why) => Err(StoreError::Unavailable(why.clone())),
        }
    }

    /// Ends what was to end while the store did not answer.
    pub async fn pay_what_is_owed(&self) {
        let owed = self.store.owed.lock().clone();
        if !owed.is_empty() && self.ask(Ask::Delete(owed.clone())).await.is_ok() {
            self.store.owed.lock().retain(|key| !owed.contains(key));
        }
    }

    async fn ask_over_network(&self, redis: &Redis, ask: Ask) -> Result<Answer, StoreError> {
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
        let mut answer = self.once(redis, op, ask.clone()).await;
        // Reads are harmless to repeat; a change may have been made.
        if op == StoreOp::Read && matches!(answer, Err(StoreError::TimedOut | StoreError::Unavailable(_))) {
            answer = self.once(redis, op, ask.clone()).await;
        }
        if let (Ask::Read(keys), Ok(Answer::Entries(entries))) = (&ask, &answer) {
            self.store.near.keep(keys, entries, now);
        }
        // A change that was under way while somebody else read must not leave the older record here.
        self.store.near.forget(&ask, Clock::now());
        answer
    }

    async fn once(&self, redis: &Redis, op: StoreOp, ask: Ask) -> Result<Answer, StoreError> {
        let begun = Clock::now();
        if !self.store.breaker.admits(begun) {
            self.store.metrics.failed(self.worker, op, StoreError::Resting.word());
            return Err(StoreError::Resting);
        }
        let answer = redis.ask(ask).await;
        let ended = Clock::now();
        self.store.metrics.took(self.worker, op, ended.since(begun));
        match &answer {
            Ok(_) => self.store.breaker.succeeded(),
            // It answers, and has no room: that is no reason to leave it alone.
            Err(StoreError::Full) => {
                self.store.metrics.failed(self.worker, op, StoreError::Full.word());
                self.store.breaker.succeeded();
            }
            Err(error) => {
                self.store.metrics.failed(self.worker, op, error.word());
                self.store.breaker.failed(ended);
            }
        }
        answer
    }
}

impl SessionStore for Client {
    fn ask(&self, ask: Ask) -> Asking<'_> {
        match &self.inner {
            Inner::Embedded(store) => store.ask(ask),
            Inner::Redis(redis) => Box::pin(self.ask_over_network(redis, ask)),
            Inner::Unusable(why) => Box::pin(std::future::ready(Err(StoreError::Unavailable(why.clone())))),
        }
    }

    fn pause(&self, tries: u32) -> std::pin::Pin<Box<dyn Future<Output = ()> + '_>> {
        match &self.inner {
            Inner::Embedded(_) | Inner::Unusable(_) => Box::pin(std::future::ready(())),
            Inner::Redis(redis) => redis.pause(tries),
        }
    }
}
