//! The tokens that count no more, as they are known now, of all pools that have one store for them, or none.
//!
//! They are in memory, which workers look at; where there is a store it has them too, and each proxy reads them once a
//! second. Until that was done for the first time nobody can tell which tokens count, so none does. What cannot be written
//! is owed, and counts here all the same. A book lasts as long as the process: a reload moves it to another store, and
//! what it knows goes along.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard as Loaded};
use parking_lot::Mutex;

use crate::clock::{Clock, Moment};
use crate::keys::Sealer;
use crate::session::store::{
    Answer, Ask, Change, Class, Entry, Guard, Key, Kind, Put, SessionStore, StoreError, change,
};
use crate::stateless::{
    LONGEST_SKEW, MOST_A_PAGE, PAGES, Revocation, Revocations, What, expire, merge, page_of, read_page, write_page,
};
use crate::store::{Client, Store};

/// Tries of a change that other proxies are ahead of.
const TRIES: u32 = 5;

/// What is revoked.
pub struct RevocationBook {
    /// The store's name; none: this is in memory only.
    name: Option<Arc<str>>,
    place: Mutex<Place>,
    current: ArcSwap<Revocations>,
    /// It was read from its store, or has none.
    is_read: AtomicBool,
    state: Mutex<State>,
}

/// Where revocations are kept, and under which keys.
#[derive(Clone)]
pub struct Place {
    pub store: Option<Arc<Store>>,
    pub sealer: Arc<Sealer>,
}

#[derive(Default)]
struct State {
    /// In no order.
    known: Vec<Revocation>,
    owed: Vec<Owed>,
    read_at: Option<Moment>,
    /// It was said that the store cannot be read.
    is_failing: bool,
}

/// What the store may not have yet. Once written it is still owed until a look at the store that began after that: one
/// that was under way might not have it, and would make it forgotten.
struct Owed {
    revocation: Revocation,
    is_written: bool,
}

/// Why something is not revoked everywhere.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    #[error("there is no room for more: revoke the subject or the key instead, or wait until older ones end")]
    Full,
    #[error("it counts in this proxy, and elsewhere as soon as it can be written: {0}")]
    Later(PageError),
}

/// Why a page of the store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a page of revocations there is of another key ring, or damaged")]
    Unreadable,
    #[error("others kept changing the revocations")]
    Contended,
}

/// What a look at a store comes to.
enum Look {
    /// Everything that it has, and what it had and has lost.
    Whole { there: Vec<Revocation>, lost: Vec<Revocation> },
    /// A page does not open, so what was known of it stays.
    Partly(Vec<Revocation>),
}

impl RevocationBook {
    /// An empty one.
    pub fn new(place: Place) -> Arc<Self> {
        Arc::new(RevocationBook {
            name: place.store.as_ref().map(|store| Arc::clone(&store.settings.name)),
            is_read: AtomicBool::new(place.store.is_none()),
            place: Mutex::new(place),
            current: ArcSwap::from_pointee(Revocations::default()),
            state: Mutex::default(),
        })
    }

    /// Whether it is the book of the store of this name; of none: of what is in memory only.
    pub fn is_of(&self, store: Option<&Arc<Store>>) -> bool {
        self.name.as_deref() == store.map(|store| &*store.settings.name)
    }

    /// Where it is kept.
    pub fn place(&self) -> Place {
        self.place.lock().clone()
    }

    /// Goes on in another place, and takes along what it knows.
    pub fn move_to(&self, place: Place) {
        let mut own = self.place.lock();
        let is_another = match (&own.store, &place.store) {
            (Some(own), Some(other)) => !Arc::ptr_eq(own, other),
            _ => false,
        };
        *own = place;
        drop(own);
        if is_another {
            let mut state = self.state.lock();
            let all = state.known.iter().map(|revocation| Owed { revocation: revocation.clone(), is_written: false });
            state.owed = all.collect();
        }
    }

    /// Takes over what another book knows of a pool that was there before.
    pub fn inherit(&self, before: &RevocationBook, pool: &str) {
        let of_pool: Vec<Revocation> = before.list().into_iter().filter(|known| *known.pool == *pool).collect();
        {
            let mut state = self.state.lock();
            for revocation in of_pool {
                if self.name.is_some() {
                    state.owed.push(Owed { revocation: revocation.clone(), is_written: false });
                }
                merge(&mut state.known, revocation);
            }
        }
        self.swap();
    }

    /// What counts now; none: nobody can tell yet.
    pub fn current(&self) -> Option<Loaded<Arc<Revocations>>> {
        self.is_read.load(Ordering::Acquire).then(|| self.current.load())
    }

    /// All of them, for people who look.
    pub fn list(&self) -> Vec<Revocation> {
        self.state.lock().known.clone()
    }

    /// For how long the store was not read; none: it never was, or there is none.
    pub fn age(&self, now: Moment) -> Option<Duration> {
        self.state.lock().read_at.map(|at| now.since(at))
    }

    fn swap(&self) {
        self.current.store(Arc::new(Revocations::new(self.state.lock().known.iter().cloned())));
    }

    /// Revokes, here at once and in the store before this returns.
    pub async fn add(&self, revocation: Revocation, client: Option<&Client>, now: u64) -> Result<(), RevokeError> {
        {
            let mut state = self.state.lock();
            expire(&mut state.known, now);
            let page = page_of(&revocation);
            let is_new = !state.known.iter().any(|other| other.is_of_same(&revocation));
            if is_new && state.known.iter().filter(|other| page_of(other) == page).count() >= room(&revocation) {
                return Err(RevokeError::Full);
            }
            merge(&mut state.known, revocation.clone());
            if client.is_some() {
                state.owed.push(Owed { revocation: revocation.clone(), is_written: false });
            }
        }
        self.swap();
        let Some(client) = client else { return Ok(()) };
        self.write(client, &revocation, true, now).await.map_err(RevokeError::Later)?;
        self.has_written(&revocation);
        Ok(())
    }

    fn has_written(&self, revocation: &Revocation) {
        let mut state = self.state.lock();
        let written = state.owed.iter_mut().filter(|owed| owed.revocation == *revocation);
        written.for_each(|owed| owed.is_written = true);
    }

    /// Takes a revocation back; false: there is none like it.
    pub async fn remove(&self, like: &Revocation, client: Option<&Client>, now: u64) -> Result<bool, PageError> {
        let is_known = self.state.lock().known.iter().any(|other| other.is_of_same(like));
        if !is_known {
            return Ok(false);
        }
        if let Some(client) = client {
            self.write(client, like, false, now).await?;
        }
        {
            let mut state = self.state.lock();
            state.owed.retain(|owed| !owed.revocation.is_of_same(like));
            state.known.retain(|other| !other.is_of_same(like));
        }
        self.swap();
        Ok(true)
    }

    /// Writes one page of the store: read, change, compare and set.
    async fn write(&self, client: &Client, of: &Revocation, is_added: bool, now: u64) -> Result<(), PageError> {
        let key = page_key(page_of(of));
        for tries in 1..=TRIES {
            let Answer::Entries(entries) = client.ask(Ask::Read(vec![key])).await? else {
                return Err(StoreError::Confused.into());
            };
            let entry = entries.into_iter().next().flatten();
            let mut there = match &entry {
                None => Vec::new(),
                // What cannot be read is not to be written over.
                Some(entry) => self.open(entry).ok_or(PageError::Unreadable)?,
            };
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
        Err(PageError::Contended)
    }

    fn change_of(
        &self,
        key: Key,
        before: Option<&Entry>,
        there: &[Revocation],
        now: u64,
    ) -> Result<Change, StoreError> {
        let value = self.place().sealer.seal_vec(&write_page(there)).ok_or(StoreError::Confused)?;
        let last = there.iter().map(|revocation| revocation.until).max().unwrap_or(now);
        let until = last.saturating_add(LONGEST_SKEW.as_secs());
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
        self.place().sealer.open(&mut value).ok().and_then(|(_, plain)| read_page(plain))
    }

    /// Reads what others have revoked, and writes what is owed; to be called about once a second.
    pub async fn refresh(&self, client: &Client, now: u64) {
        let owed: Vec<Revocation> = {
            let state = self.state.lock();
            state.owed.iter().filter(|owed| !owed.is_written).map(|owed| owed.revocation.clone()).collect()
        };
        for revocation in owed.iter().filter(|revocation| revocation.counts(now)) {
            match self.write(client, revocation, true, now).await {
                Ok(()) => self.has_written(revocation),
                // The rest waits too; what others have revoked does not.
                Err(_) => break,
            }
        }
        // What was written before the look that now begins is in it.
        let settled: Vec<Revocation> = {
            let state = self.state.lock();
            state.owed.iter().filter(|owed| owed.is_written).map(|owed| owed.revocation.clone()).collect()
        };
        match self.look(client).await {
            Ok(Look::Whole { there, lost }) => {
                self.owe_again(lost, now);
                self.take(there, &settled, now);
                self.is_read.store(true, Ordering::Release);
                self.report(None);
            }
            Ok(Look::Partly(read)) => {
                self.take(read, &[], now);
                self.report(Some(&PageError::Unreadable));
            }
            Err(error) => self.report(Some(&error.into())),
        }
    }

    async fn look(&self, client: &Client) -> Result<Look, StoreError> {
        let Answer::Entries(entries) = client.ask(Ask::Read((0..PAGES).map(page_key).collect())).await? else {
            return Err(StoreError::Confused);
        };
        let (mut there, mut lost, mut is_whole) = (Vec::new(), Vec::new(), true);
        for (page, entry) in entries.iter().enumerate() {
            let known_of_page = || self.list().into_iter().filter(|known| page_of(known) == page).collect::<Vec<_>>();
            match entry.as_ref().map(|entry| self.open(entry)) {
                // A page lives as long as the longest of what is on it: one that is not there has been lost.
                None => lost.append(&mut known_of_page()),
                Some(Some(mut page)) => there.append(&mut page),
                Some(None) => {
                    is_whole = false;
                    there.append(&mut known_of_page());
                }
            }
        }
        if is_whole {
            return Ok(Look::Whole { there, lost });
        }
        there.append(&mut lost);
        Ok(Look::Partly(there))
    }

    /// What a store has lost is written to it again.
    fn owe_again(&self, lost: Vec<Revocation>, now: u64) {
        let mut state = self.state.lock();
        let lost: Vec<Revocation> = lost.into_iter().filter(|revocation| revocation.counts(now)).collect();
        let is_owed = |revocation: &Revocation| state.owed.iter().any(|owed| owed.revocation == *revocation);
        let lost: Vec<Revocation> = lost.into_iter().filter(|revocation| !is_owed(revocation)).collect();
        if !lost.is_empty() {
            let store = self.name.as_deref().unwrap_or("-");
            tracing::error!(store, count = lost.len(), "the store has lost revocations; they are written to it again");
        }
        state.owed.extend(lost.into_iter().map(|revocation| Owed { revocation, is_written: false }));
    }

    /// Puts in force what was read. What is owed may not be in it.
    fn take(&self, mut read: Vec<Revocation>, settled: &[Revocation], now: u64) {
        let has_changed = {
            let mut state = self.state.lock();
            state.owed.retain(|owed| owed.revocation.counts(now) && !settled.contains(&owed.revocation));
            expire(&mut read, now);
            state.owed.iter().for_each(|owed| merge(&mut read, owed.revocation.clone()));
            std::mem::replace(&mut state.known, read.clone()) != read
        };
        if has_changed {
            self.swap();
        }
    }

    /// Says once that the store cannot be read, and once that it can again.
    fn report(&self, error: Option<&PageError>) {
        let mut state = self.state.lock();
        let was_failing = std::mem::replace(&mut state.is_failing, error.is_some());
        let store = self.name.as_deref().unwrap_or("-");
        match error {
            None => {
                state.read_at = Some(Clock::now());
                if was_failing {
                    tracing::info!(store, "revocations are read again");
                }
            }
            Some(error) if !was_failing => {
                tracing::error!(store, %error, "revocations cannot be read; those that are known count");
            }
            Some(_) => {}
        }
    }

    /// Forgets what has ended, where there is no store to read from.
    pub fn sweep(&self, now: u64) {
        let has_changed = {
            let mut state = self.state.lock();
            let before = state.known.len();
            expire(&mut state.known, now);
            state.known.len() != before
        };
        if has_changed {
            self.swap();
        }
    }
}

/// How many there may be on a page for one more: what revokes many tokens at once still has room when single ones have none.
const fn room(revocation: &Revocation) -> usize {
    match revocation.what {
        What::Jti(_) => MOST_A_PAGE,
        What::Subject { .. } => MOST_A_PAGE + MOST_A_PAGE / 4,
        What::Kid(_) => MOST_A_PAGE + MOST_A_PAGE / 2,
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
