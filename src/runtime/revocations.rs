//! The tokens that count no more, as they are known now, of all pools that have one store for them, or none.
//!
//! They are in memory, which workers look at; where there is a store it has them too, and each proxy reads them once a
//! second. Until that was done for the first time nobody can tell which tokens count, so none does. What cannot be written
//! is owed, and counts here all the same. A book lasts as long as the process: a reload moves it to another store, and
//! what it knows goes along.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard as Loaded};
use parking_lot::{Mutex, MutexGuard};

use crate::clock::{Clock, Moment};
use crate::keys::Sealer;
use crate::session::store::{
    Answer, Ask, Change, Class, Entry, Guard, Key, Kind, Put, SessionStore, StoreError, change, next_revision,
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

impl State {
    /// Notes what the store may not have, once for the same tokens.
    fn owe(&mut self, revocation: Revocation) {
        let is_same = |owed: &mut Owed| owed.revocation.is_of_same(&revocation);
        let mut all: Vec<Revocation> = self.owed.extract_if(.., is_same).map(|owed| owed.revocation).collect();
        merge(&mut all, revocation);
        self.owed.extend(all.into_iter().map(|revocation| Owed { revocation, is_written: false }));
    }
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
        if is_another {
            // The place is still locked: nobody may take a look at the one for a look at the other.
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
                    state.owe(revocation.clone());
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
                state.owe(revocation.clone());
            }
        }
        self.swap();
        let Some(client) = client else { return Ok(()) };
        self.add_to_page(client, page_of(&revocation), &[revocation], now).await.map_err(RevokeError::Later)
    }

    /// What is known, for who has asked the store by this client; none: it is kept elsewhere by now, so what was asked
    /// says nothing any more.
    fn state_of(&self, client: &Client) -> Option<MutexGuard<'_, State>> {
        let place = self.place.lock();
        place.store.as_ref().is_some_and(|store| client.is_of(store)).then(|| self.state.lock())
    }

    /// Adds to a page of the store.
    async fn add_to_page(&self, client: &Client, page: usize, added: &[Revocation], now: u64) -> Result<(), PageError> {
        let add = |there: &mut Vec<Revocation>| added.iter().for_each(|new| merge(there, new.clone()));
        self.write(client, page, add, now).await?;
        if let Some(mut state) = self.state_of(client) {
            let written = state.owed.iter_mut().filter(|owed| added.contains(&owed.revocation));
            written.for_each(|owed| owed.is_written = true);
        }
        Ok(())
    }

    /// Takes a revocation back; false: there is none like it.
    pub async fn remove(&self, like: &Revocation, client: Option<&Client>, now: u64) -> Result<bool, PageError> {
        let is_known = self.state.lock().known.iter().any(|other| other.is_of_same(like));
        if !is_known {
            return Ok(false);
        }
        if let Some(client) = client {
            self.write(client, page_of(like), |there| there.retain(|other| !other.is_of_same(like)), now).await?;
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
    async fn write(
        &self,
        client: &Client,
        page: usize,
        edit: impl Fn(&mut Vec<Revocation>),
        now: u64,
    ) -> Result<(), PageError> {
        let key = page_key(page);
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
            edit(&mut there);
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
            revision: before.map_or(1, |entry| next_revision(entry.revision)),
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

    /// Reads what others have revoked, then writes what is owed; to be called about once a second. Says whether all of
    /// it could be read.
    pub async fn refresh(&self, client: &Client, now: u64) -> bool {
        // What was written before the look that now begins is in it.
        let settled = self.owed(true);
        let looked = self.look(client).await;
        let is_whole = matches!(looked, Ok(Look::Whole { .. }));
        match looked {
            Ok(Look::Whole { there, lost }) => {
                self.owe_again(client, lost, now);
                if self.take(client, there, &settled, now) {
                    self.is_read.store(true, Ordering::Release);
                    self.report(None);
                }
            }
            Ok(Look::Partly(read)) => {
                self.take(client, read, &[], now);
                self.report(Some(&PageError::Unreadable));
            }
            Err(error) => self.report(Some(&error.into())),
        }
        self.pay(client, now).await;
        is_whole
    }

    /// What is owed, and was written already or not.
    fn owed(&self, is_written: bool) -> Vec<Revocation> {
        let state = self.state.lock();
        state.owed.iter().filter(|owed| owed.is_written == is_written).map(|owed| owed.revocation.clone()).collect()
    }

    /// Writes what is owed, each page once.
    async fn pay(&self, client: &Client, now: u64) {
        let mut pages: BTreeMap<usize, Vec<Revocation>> = BTreeMap::new();
        for revocation in self.owed(false).into_iter().filter(|revocation| revocation.counts(now)) {
            pages.entry(page_of(&revocation)).or_default().push(revocation);
        }
        for (page, owed) in pages {
            if let Err(error) = self.add_to_page(client, page, &owed, now).await {
                // The others would fare no better.
                tracing::debug!(store = self.name.as_deref().unwrap_or("-"), %error, "revocations are still owed");
                return;
            }
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
    fn owe_again(&self, client: &Client, lost: Vec<Revocation>, now: u64) {
        let Some(mut state) = self.state_of(client) else { return };
        let lost: Vec<Revocation> = lost.into_iter().filter(|revocation| revocation.counts(now)).collect();
        let is_owed = |revocation: &Revocation| state.owed.iter().any(|owed| owed.revocation == *revocation);
        let lost: Vec<Revocation> = lost.into_iter().filter(|revocation| !is_owed(revocation)).collect();
        if !lost.is_empty() {
            let store = self.name.as_deref().unwrap_or("-");
            tracing::error!(store, count = lost.len(), "the store has lost revocations; they are written to it again");
        }
        state.owed.extend(lost.into_iter().map(|revocation| Owed { revocation, is_written: false }));
    }

    /// Puts in force what was read. What is owed may not be in it. False: it is kept elsewhere by now.
    fn take(&self, client: &Client, mut read: Vec<Revocation>, settled: &[Revocation], now: u64) -> bool {
        let has_changed = {
            let Some(mut state) = self.state_of(client) else { return false };
            state.owed.retain(|owed| owed.revocation.counts(now) && !settled.contains(&owed.revocation));
            expire(&mut read, now);
            state.owed.iter().for_each(|owed| merge(&mut read, owed.revocation.clone()));
            std::mem::replace(&mut state.known, read.clone()) != read
        };
        if has_changed {
            self.swap();
        }
        true
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyRing, RingKey};
    use crate::metrics::{Metrics, WorkerId};
    use crate::store::{BreakerSettings, KindSettings, Settings};
    use futures_util::FutureExt;

    const NOW: u64 = 1_000_000;
    const WORKER: WorkerId = WorkerId(0);

    fn place() -> (Place, Arc<Store>) {
        let settings = Settings {
            name: "main".into(),
            kind: KindSettings::Embedded { path: None, memory: 1 << 24 },
            near_cache: Duration::ZERO,
            breaker: BreakerSettings { failures: 5, within: Duration::from_secs(1), probe: Duration::from_secs(1) },
            most_bytes: 1 << 16,
        };
        let store = Store::open(settings, Metrics::new(1).store("main")).expect("it is in memory");
        let sealer = Arc::new(KeyRing::new(vec![RingKey::from_secret([7; 32])]).sealer("revocations", b""));
        (Place { store: Some(Arc::clone(&store)), sealer }, store)
    }

    fn revocation(number: usize) -> Revocation {
        let what = What::Jti(format!("token-{number}").into());
        Revocation { pool: "shop".into(), what, until: NOW + 600, at: NOW }
    }

    /// What never has to wait: the store is in memory.
    fn at_once<T>(work: impl Future<Output = T>) -> T {
        work.now_or_never().expect("a store in memory answers at once")
    }

    fn refresh(book: &RevocationBook, client: &Client) -> bool {
        at_once(book.refresh(client, NOW))
    }

    #[test]
    fn what_is_owed_is_written_and_others_hear_of_it() {
        let (place, store) = place();
        let client = store.client(WORKER);
        let (book, other) = (RevocationBook::new(place.clone()), RevocationBook::new(place));
        assert!(book.current().is_none(), "nobody can tell yet");
        assert!(refresh(&other, &client) && other.current().is_some());
        (0..1_000).for_each(|number| book.state.lock().owe(revocation(number)));
        book.state.lock().owe(Revocation { until: NOW + 900, ..revocation(0) });
        assert_eq!(book.owed(false).len(), 1_000, "what is of the same token is one");
        assert!(refresh(&book, &client));
        assert!(book.owed(false).is_empty());
        assert!(refresh(&other, &client));
        let mut heard = other.list();
        assert_eq!(heard.len(), 1_000);
        assert_eq!(
            heard.iter().find(|known| known.is_of_same(&revocation(0))).map(|known| known.until),
            Some(NOW + 900)
        );
        assert!(refresh(&book, &client));
        let mut known = book.list();
        known.sort_by_key(|known| format!("{known:?}"));
        heard.sort_by_key(|known| format!("{known:?}"));
        assert_eq!(known, heard);
        assert!(book.owed(true).is_empty(), "it was read: nothing is owed any more");
    }

    #[test]
    fn a_look_at_a_store_that_was_left_says_nothing() {
        let (before, left) = place();
        let (after, new) = place();
        let (client, new_client) = (left.client(WORKER), new.client(WORKER));
        let book = RevocationBook::new(before);
        assert!(at_once(book.add(revocation(1), Some(&client), NOW)).is_ok());
        assert!(refresh(&book, &client));
        book.move_to(after);
        // As of a look that was under way.
        assert!(!book.take(&client, Vec::new(), &book.list(), NOW));
        assert_eq!((book.list(), book.owed(false)), (vec![revocation(1)], vec![revocation(1)]));
        assert!(at_once(book.add(revocation(2), Some(&client), NOW)).is_ok());
        assert_eq!(book.owed(false).len(), 2, "it was written where nobody looks any more");
        for _ in 0..2 {
            assert!(refresh(&book, &new_client));
        }
        assert!(book.owed(false).is_empty() && book.owed(true).is_empty());
        let mut there = book.list();
        there.sort_by_key(|known| format!("{known:?}"));
        assert_eq!(there, [revocation(1), revocation(2)]);
    }
}
