//! What stateless pools go by besides the file: their issuers' keys, and the tokens that count no more.
//!
//! Both are fetched by the control thread and swapped, so that workers only look. A key set is fetched again every ten
//! minutes, and when a token names a key that nobody knows: then once in half a minute, whoever asks. The last good one
//! counts for a day. Revocations are in memory; where there is a store, it has them too, and each proxy reads them once
//! a second. Until that was done for the first time nobody can tell which tokens count, so none does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use parking_lot::Mutex;
use rustls::ClientConfig;

use crate::clock::{Clock, Moment};
use crate::config::StatelessSettings;
use crate::jwks::{self, FetchError};
use crate::keys::{KeyRing, Sealer};
use crate::session::store::{
    Answer, Ask, Change, Class, Entry, Guard, Key, Kind, Put, SessionStore, StoreError, change,
};
use crate::stateless::{
    IssuerSettings, KeySource, Keys, LONGEST_SKEW, MOST_A_PAGE, PAGES, Revocation, Revocations, Verifier, expire,
    merge, page_of, read_page, write_page,
};
use crate::store::{Client, Store};

/// Between two fetches when all is well, less up to a tenth, so that proxies do not all come at once.
const REFRESH: Duration = Duration::from_secs(600);
/// Between two fetches for keys that are not known.
const AGAIN: Duration = Duration::from_secs(30);
/// Between two fetches while none succeeds.
const RETRY: Duration = Duration::from_secs(5);
/// How long the last good key set counts.
const LAST_GOOD: Duration = Duration::from_secs(24 * 3600);
/// Tries of a change that other proxies are ahead of.
const TRIES: u32 = 5;

/// The stateless side of a pool.
pub struct StatelessPool {
    pub settings: Arc<StatelessSettings>,
    pub verifier: Verifier,
    /// By position of the issuer.
    pub keys: Vec<Arc<IssuerKeys>>,
    pub revoked: Arc<RevocationBook>,
    /// The pool's name.
    pub audience: Arc<str>,
}

/// The keys of one issuer, as they are known now.
pub struct IssuerKeys {
    pub settings: IssuerSettings,
    /// For keys that come over https.
    tls: Option<Arc<ClientConfig>>,
    current: ArcSwapOption<Keys>,
    /// Counts the key sets: what was verified under another one is verified again.
    epoch: AtomicU64,
    /// Somebody has shown a token of a key that is not known.
    is_wanted: AtomicBool,
    times: Mutex<Times>,
}

#[derive(Default)]
struct Times {
    tried: Option<Moment>,
    succeeded: Option<Moment>,
    /// The text that the current keys were read from.
    text: Bytes,
    /// How much sooner than others this proxy comes.
    early: Duration,
}

impl IssuerKeys {
    /// Keys of these settings: a secret counts at once, key sets once they were fetched.
    pub fn new(settings: IssuerSettings, tls: Option<Arc<ClientConfig>>, random: &mut fastrand::Rng) -> Arc<Self> {
        let current = match &settings.keys {
            KeySource::Secret(secret) => Some(Arc::new(Keys::secret(secret))),
            KeySource::Url(_) | KeySource::File(_) => None,
        };
        let early = REFRESH.mul_f64(random.f64() / 10.0);
        Arc::new(IssuerKeys {
            settings,
            tls,
            current: ArcSwapOption::new(current),
            epoch: AtomicU64::new(1),
            is_wanted: AtomicBool::new(false),
            times: Mutex::new(Times { early, ..Times::default() }),
        })
    }

    /// The keys, if there are any.
    pub fn current(&self) -> Option<Arc<Keys>> {
        self.current.load_full()
    }

    /// Changes with every key set.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// A token names a key that is not known, or there are no keys yet; says whether they are about to be fetched.
    pub fn want(&self, now: Moment) -> bool {
        if matches!(self.settings.keys, KeySource::Secret(_)) {
            return false;
        }
        let times = self.times.lock();
        let is_due = times.tried.is_none_or(|tried| now.since(tried) >= AGAIN);
        if is_due {
            self.is_wanted.store(true, Ordering::Relaxed);
        }
        is_due || times.succeeded.is_none()
    }

    /// Whether it is time to fetch them.
    fn is_due(&self, now: Moment) -> bool {
        if matches!(self.settings.keys, KeySource::Secret(_)) {
            return false;
        }
        let times = self.times.lock();
        let since = |at: Option<Moment>| at.map(|at| now.since(at));
        let Some(tried) = since(times.tried) else { return true };
        let failed = times.succeeded.is_none_or(|succeeded| times.tried.is_some_and(|tried| tried > succeeded));
        let pause = if failed { RETRY } else { REFRESH.saturating_sub(times.early) };
        tried >= pause || (tried >= AGAIN && self.is_wanted.load(Ordering::Relaxed))
    }

    /// Fetches the keys if it is time; to be called about once a second.
    pub async fn refresh(&self) {
        let now = Clock::now();
        if !self.is_due(now) {
            return;
        }
        self.times.lock().tried = Some(now);
        self.is_wanted.store(false, Ordering::Relaxed);
        let issuer = &self.settings.issuer;
        match self.fetch().await.map_err(|error| error.to_string()).and_then(|text| self.take(text)) {
            Ok(true) => tracing::info!(%issuer, "the issuer's keys have changed"),
            Ok(false) => {}
            Err(why) => {
                tracing::warn!(%issuer, %why, "the issuer's keys cannot be fetched; the last good ones stay");
                self.forget_if_old(Clock::now());
            }
        }
    }

    async fn fetch(&self) -> Result<Bytes, FetchError> {
        match (&self.settings.keys, &self.tls) {
            (KeySource::Url(url), Some(tls)) => jwks::fetch(url, Arc::clone(tls)).await,
            (KeySource::File(path), _) => jwks::read(path),
            _ => Err(FetchError::Url),
        }
    }

    /// Reads the keys of a file at once: what is wrong with it is to be known before it counts.
    pub fn read_file(&self) -> Result<(), String> {
        let KeySource::File(path) = &self.settings.keys else { return Ok(()) };
        let text = jwks::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        self.take(text).map(drop).map_err(|why| format!("{}: {why}", path.display()))
    }

    /// Puts a key set in force; says whether it is another one.
    fn take(&self, text: Bytes) -> Result<bool, String> {
        let now = Clock::now();
        let mut times = self.times.lock();
        if times.text == text && self.current.load().is_some() {
            (times.succeeded, times.tried) = (Some(now), Some(now));
            return Ok(false);
        }
        let keys = Keys::parse(&text, &self.settings.algorithms).map_err(|error| error.to_string())?;
        (times.succeeded, times.tried, times.text) = (Some(now), Some(now), text);
        self.current.store(Some(Arc::new(keys)));
        self.epoch.fetch_add(1, Ordering::Release);
        Ok(true)
    }

    fn forget_if_old(&self, now: Moment) {
        let succeeded = self.times.lock().succeeded;
        if succeeded.is_some_and(|at| now.since(at) > LAST_GOOD) && self.current.swap(None).is_some() {
            self.epoch.fetch_add(1, Ordering::Release);
            tracing::error!(issuer = %self.settings.issuer, "its keys are older than a day: its tokens count no more");
        }
    }
}

/// The tokens that count no more, of all pools of one store, or of all without one.
pub struct RevocationBook {
    current: ArcSwap<Revocations>,
    /// What is known, in no order.
    known: Mutex<Vec<Revocation>>,
    /// What is not in the store yet.
    owed: Mutex<Vec<Revocation>>,
    /// It was read from its store, or has none.
    is_read: AtomicBool,
    sealer: Sealer,
    pub store: Option<Arc<Store>>,
}

/// Why something is not revoked everywhere.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    #[error("there is no room for more: revoke the subject or the key instead, or wait until older ones end")]
    Full,
    #[error("it counts in this proxy, and elsewhere as soon as the store answers: {0}")]
    Later(StoreError),
}

impl RevocationBook {
    /// An empty one.
    pub fn new(store: Option<Arc<Store>>, ring: &KeyRing) -> Arc<Self> {
        Arc::new(RevocationBook {
            current: ArcSwap::from_pointee(Revocations::default()),
            known: Mutex::default(),
            owed: Mutex::default(),
            is_read: AtomicBool::new(store.is_none()),
            sealer: ring.sealer("steadfast revocations v1", b""),
            store,
        })
    }

    /// Whether it is the book of this store; of none: of what is in memory only.
    pub fn is_of(&self, store: Option<&Arc<Store>>) -> bool {
        match (&self.store, store) {
            (None, None) => true,
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            _ => false,
        }
    }

    /// What counts now; none: nobody can tell yet.
    pub fn current(&self) -> Option<Arc<Revocations>> {
        self.is_read.load(Ordering::Acquire).then(|| self.current.load_full())
    }

    /// All of them, for people who look.
    pub fn list(&self) -> Vec<Revocation> {
        self.known.lock().clone()
    }

    /// Takes over what another book of the same place knows.
    pub fn inherit(&self, before: &RevocationBook) {
        self.known.lock().extend(before.known.lock().iter().cloned());
        self.owed.lock().extend(before.owed.lock().iter().cloned());
        self.is_read.fetch_or(before.is_read.load(Ordering::Acquire), Ordering::AcqRel);
        self.swap();
    }

    fn swap(&self) {
        self.current.store(Arc::new(Revocations::new(self.known.lock().iter().cloned())));
    }

    /// Revokes, here at once and in the store before this returns.
    pub async fn add(&self, revocation: Revocation, client: Option<&Client>, now: u64) -> Result<(), RevokeError> {
        {
            let mut known = self.known.lock();
            expire(&mut known, now);
            let page = page_of(&revocation);
            let is_new = !known.iter().any(|other| other.is_of_same(&revocation));
            if is_new && known.iter().filter(|other| page_of(other) == page).count() >= MOST_A_PAGE {
                return Err(RevokeError::Full);
            }
            merge(&mut known, revocation.clone());
        }
        self.swap();
        let Some(client) = client else { return Ok(()) };
        // Owed until it is written: whoever reads the store meanwhile must not forget it.
        self.owed.lock().push(revocation.clone());
        self.write(client, &revocation, true, now).await.map_err(RevokeError::Later)?;
        self.owed.lock().retain(|other| *other != revocation);
        Ok(())
    }

    /// Takes a revocation back; false: there is none like it.
    pub async fn remove(&self, like: &Revocation, client: Option<&Client>, now: u64) -> Result<bool, StoreError> {
        let is_known = self.known.lock().iter().any(|other| other.is_of_same(like));
        if !is_known {
            return Ok(false);
        }
        if let Some(client) = client {
            self.write(client, like, false, now).await?;
        }
        self.owed.lock().retain(|other| !other.is_of_same(like));
        self.known.lock().retain(|other| !other.is_of_same(like));
        self.swap();
        Ok(true)
    }

    /// Writes one page of the store: read, change, compare and set.
    async fn write(&self, client: &Client, of: &Revocation, is_added: bool, now: u64) -> Result<(), StoreError> {
        let page = page_of(of);
        let key = page_key(page);
        for tries in 1..=TRIES {
            let Answer::Entries(entries) = client.ask(Ask::Read(vec![key])).await? else {
                return Err(StoreError::Confused);
            };
            let entry = entries.into_iter().next().flatten();
            let unreadable = || StoreError::Unavailable("a page of revocations is of another key ring".to_owned());
            let mut there =
                entry.as_ref().map_or_else(|| Some(Vec::new()), |entry| self.open(entry)).ok_or_else(unreadable)?;
            expire(&mut there, now);
            if is_added {
                merge(&mut there, of.clone());
            } else {
                there.retain(|other| !other.is_of_same(of));
            }
            if change(client, self.change_of(key, entry.as_ref(), &there, now)?).await? {
                return Ok(());
            }
            client.pause(tries).await;
        }
        Err(StoreError::Unavailable("others kept changing the revocations".to_owned()))
    }

    fn change_of(
        &self,
        key: Key,
        before: Option<&Entry>,
        there: &[Revocation],
        now: u64,
    ) -> Result<Change, StoreError> {
        let value = self.sealer.seal_vec(&write_page(there)).ok_or(StoreError::Confused)?;
        let until =
            there.iter().map(|revocation| revocation.until).max().unwrap_or(now).saturating_add(LONGEST_SKEW.as_secs());
        let put = Put {
            key,
            revision: before.map_or(0, |entry| entry.revision) + 1,
            value: value.into(),
            expires_in: Duration::from_secs(until.saturating_sub(now).max(1)),
            class: Class::Kept,
        };
        let guard = before.map_or(Guard::Absent(key), |entry| Guard::Unchanged(key, entry.revision));
        Ok(Change { guard, put: vec![put], delete: Vec::new(), durable: true })
    }

    /// What is in a page; nothing where it does not open: it is of another ring, or of nobody who has the key.
    fn open(&self, entry: &Entry) -> Option<Vec<Revocation>> {
        let mut value = entry.value.to_vec();
        self.sealer.open(&mut value).ok().and_then(|(_, plain)| read_page(plain))
    }

    /// Reads what others have revoked, and writes what is owed; to be called about once a second.
    pub async fn refresh(&self, client: &Client, now: u64) {
        let owed = self.owed.lock().clone();
        for revocation in owed.iter().filter(|revocation| revocation.counts(now)) {
            if self.write(client, revocation, true, now).await.is_err() {
                return;
            }
        }
        self.owed.lock().retain(|revocation| !owed.contains(revocation));
        let Ok(Answer::Entries(entries)) = client.ask(Ask::Read((0..PAGES).map(page_key).collect())).await else {
            return;
        };
        let mut read = Vec::new();
        for (page, entry) in entries.iter().enumerate() {
            match entry.as_ref().map(|entry| self.open(entry)) {
                None => {}
                Some(Some(mut there)) => read.append(&mut there),
                // What was known of it stays.
                Some(None) => read.extend(self.known.lock().iter().filter(|known| page_of(known) == page).cloned()),
            }
        }
        expire(&mut read, now);
        // What was revoked here while the store was being read is not to be forgotten for it.
        self.owed.lock().iter().for_each(|owed| merge(&mut read, owed.clone()));
        let has_changed = {
            let mut known = self.known.lock();
            let has_changed = *known != read;
            *known = read;
            has_changed
        };
        if has_changed {
            self.swap();
        }
        self.is_read.store(true, Ordering::Release);
    }

    /// Forgets what has ended, where there is no store to read from.
    pub fn sweep(&self, now: u64) {
        let has_changed = {
            let mut known = self.known.lock();
            let before = known.len();
            expire(&mut known, now);
            known.len() != before
        };
        if has_changed {
            self.swap();
        }
    }
}

/// The record of a page, in a shard of its own.
fn page_key(page: usize) -> Key {
    let mut id = *b"sf-revocations-page-";
    let last = id.len() - 1;
    id[last] = u8::try_from(page).unwrap_or(u8::MAX);
    let tag = u16::try_from(page * 1_021).unwrap_or_default() & 0x3fff;
    Key { tag, kind: Kind::Revocations, id }
}
