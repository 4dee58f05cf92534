//! From a cookie to its session: two rounds of reads, and what to make of what was found.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;

use zeroize::Zeroizing;

use super::cookie::SessionCookie;
use super::realm::{Found, OnReuse, Realm};
use super::record::{Handle, HandleState, Lineage};
use super::store::{Answer, Ask, Change, Entry, Guard, Id, Key, Kind, SessionStore, StoreError, change, read};
use crate::names::SessionEvent;

/// Why a request has no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    NoCookie,
    /// A cookie of our name that is none.
    Malformed,
    /// Two cookies of our name: whose is which cannot be told.
    Several,
    /// Made with a key that is not in the ring: a fleet half way through a rotation.
    UnknownKey,
    Missing,
    /// Given up at a login or a logout a moment ago; the lineage that follows for the same user.
    Muted(Option<Key>),
    /// There may be one, but its store does not answer; or there can be none over this connection.
    Unavailable,
    Expired,
    /// The subject's sessions were ended.
    Revoked,
    /// Given up at a renewal, and its successor is in use.
    Reused,
    Unreadable,
}

impl Absence {
    /// What is counted.
    pub const fn event(self) -> Option<SessionEvent> {
        match self {
            Absence::NoCookie | Absence::Unavailable => None,
            Absence::Malformed | Absence::Several => Some(SessionEvent::Malformed),
            Absence::UnknownKey => Some(SessionEvent::UnknownKey),
            Absence::Missing => Some(SessionEvent::Missing),
            Absence::Muted(_) => Some(SessionEvent::Muted),
            Absence::Expired => Some(SessionEvent::Expired),
            Absence::Revoked => Some(SessionEvent::Revoked),
            Absence::Reused => Some(SessionEvent::Reused),
            Absence::Unreadable => Some(SessionEvent::Unreadable),
        }
    }

    /// Whether the cookie leads nowhere for good, so that the client may as well forget it. Not where another proxy may
    /// know it, nor where the client is about to be given another.
    pub const fn is_final(self) -> bool {
        match self {
            Absence::Malformed
            | Absence::Missing
            | Absence::Expired
            | Absence::Revoked
            | Absence::Reused
            | Absence::Unreadable => true,
            Absence::NoCookie | Absence::Several | Absence::UnknownKey | Absence::Muted(_) | Absence::Unavailable => {
                false
            }
        }
    }

    /// Whether a session may be made for this request. Not for one that was on its way while its cookie was given up, nor
    /// where another proxy may know the cookie: what it would be given would overwrite what the client has.
    pub const fn may_begin(self) -> bool {
        !matches!(self, Absence::Muted(_) | Absence::Several | Absence::UnknownKey | Absence::Unavailable)
    }
}

/// What a request's cookie leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recall {
    None(Absence),
    Session(Arc<Session>),
}

impl Recall {
    /// The session, if there is one.
    pub const fn session(&self) -> Option<&Arc<Session>> {
        match self {
            Recall::None(_) => None,
            Recall::Session(session) => Some(session),
        }
    }
}

/// A session as a request found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub cookie: SessionCookie,
    pub handle: Handle,
    pub handle_key: Key,
    pub(super) handle_revision: u64,
    pub lineage: Lineage,
    pub lineage_key: Key,
    pub(super) lineage_revision: u64,
    /// Until it is over, if nobody asks any more.
    pub expires_in: Duration,
    /// The cookie that follows the one that was shown: the client has not got it yet.
    pub successor: Option<SessionCookie>,
}

impl Session {
    /// Whether it is time to write down that the session is in use: not at each request.
    pub fn touch_is_due(&self, realm: &Realm, now: u64) -> bool {
        let whole = realm.lifetime(&self.lineage, now);
        let patience = Duration::from_secs(30).max(whole / 20).min(whole / 2);
        self.expires_in + patience <= whole
    }

    /// Whether its cookie has been used for long enough.
    pub fn renewal_is_due(&self, realm: &Realm, now: u64) -> bool {
        let in_use = self.lineage.login.is_some() && self.successor.is_none();
        in_use && self.handle.issued + realm.rules.renew.as_secs() <= now
    }

    /// Whether its cookie is shown for the first time after a renewal.
    pub fn is_to_be_confirmed(&self) -> bool {
        self.handle.state == HandleState::Live { confirmed: false }
    }

    /// When it ends whatever its user does; none: it does not.
    pub fn ends_at(&self, realm: &Realm) -> Option<u64> {
        self.lineage.login.as_ref().map(|login| login.at + realm.rules.absolute.as_secs())
    }
}

/// Finds the session of a cookie. `now`: seconds since 1970.
pub async fn recall(
    realm: &Realm,
    store: &dyn SessionStore,
    cookie: SessionCookie,
    now: u64,
) -> Result<Recall, StoreError> {
    let Some(handle_key) = realm.handle_key(&cookie) else { return Ok(Recall::None(Absence::UnknownKey)) };
    let [entry] = read(store, [handle_key]).await?;
    recall_from(realm, store, cookie, entry, now, &mut None).await
}

/// The same, once the handle's record is there; says what was read.
async fn recall_from(
    realm: &Realm,
    store: &dyn SessionStore,
    cookie: SessionCookie,
    entry: Option<Entry>,
    now: u64,
    was_read: &mut Option<Read>,
) -> Result<Recall, StoreError> {
    let Some(handle_key) = realm.handle_key(&cookie) else { return Ok(Recall::None(Absence::UnknownKey)) };
    let Some(entry) = entry else { return Ok(Recall::None(Absence::Missing)) };
    let handle = match realm.open_handle(&cookie, &entry) {
        Found::Handle(handle) => *handle,
        Found::Muted(next) => return Ok(Recall::None(muted(next, cookie.tag))),
        Found::Unreadable => return Ok(Recall::None(Absence::Unreadable)),
    };
    if handle.not_after <= now {
        return Ok(Recall::None(Absence::Expired));
    }
    let successor = successor(&handle, cookie.tag);
    let late = matches!(&handle.state, HandleState::Superseded { at, .. } if at + realm.rules.grace.as_secs() < now);
    let lineage_key = Key { tag: cookie.tag, kind: Kind::Lineage, id: handle.lineage };
    let others = (handle.subject.map(Key::subject), successor.as_ref().filter(|_| late));
    let second = read_second(realm, store, lineage_key, others).await?;
    let Some(entry_of_lineage) = second.lineage else {
        // Rare: it would make every exchange's future as large.
        return Box::pin(without_lineage(realm, store, &cookie, handle_key)).await;
    };
    let Some(lineage) = Realm::open_lineage(lineage_key, &handle.data_key, &entry_of_lineage) else {
        return Ok(Recall::None(Absence::Unreadable));
    };
    let subject = handle.subject.map(Key::subject).zip(second.subject.clone());
    if let Some(absence) = why_over(realm, &handle.lineage, &lineage, subject, now) {
        return Ok(Recall::None(absence));
    }
    let session = Session {
        handle_key,
        handle_revision: entry.revision,
        lineage_key,
        lineage_revision: entry_of_lineage.revision,
        expires_in: entry_of_lineage.expires_in,
        successor,
        cookie,
        handle,
        lineage,
    };
    *was_read = Some((entry, entry_of_lineage, second.subject));
    match second.successor {
        Some(in_use) if late => after_grace(realm, store, session, in_use).await,
        _ => Ok(Recall::Session(Arc::new(session))),
    }
}

/// How often a handle is read again whose lineage has gone.
const LOOKS: u32 = 2;

/// Why a handle that counted has no lineage: it may have been given up between the two reads, by a login whose client is
/// about to be given another cookie. Where a store does one record at a time, the lineage goes a moment before that.
async fn without_lineage(
    realm: &Realm,
    store: &dyn SessionStore,
    cookie: &SessionCookie,
    handle_key: Key,
) -> Result<Recall, StoreError> {
    for tries in 1..=LOOKS {
        store.pause(tries).await;
        let [entry] = read(store, [handle_key]).await?;
        match entry.map(|entry| realm.open_handle(cookie, &entry)) {
            Some(Found::Muted(next)) => return Ok(Recall::None(muted(next, cookie.tag))),
            Some(Found::Handle(_)) => {}
            Some(Found::Unreadable) | None => break,
        }
    }
    Ok(Recall::None(Absence::Missing))
}

/// Sessions that were found a moment ago. As long as the store has the same records, nothing has to be opened again: what
/// a busy session costs is the look, in one round.
#[derive(Default)]
pub struct Lately(RefCell<HashMap<Key, Known>>);

/// A session, and the records that it was read from.
struct Known {
    session: Arc<Session>,
    handle: Entry,
    lineage: Entry,
    subject: Option<Entry>,
}

/// Sessions remembered.
const MOST_KNOWN: usize = 2_048;
/// What is larger is opened each time: what is remembered is bounded in bytes too.
const MOST_KNOWN_BYTES: usize = 16 * 1024;
/// How much the time that a session has left may differ from what is remembered of it.
const TOLERANCE: Duration = Duration::from_secs(1);

impl Lately {
    /// Finds the session of a cookie, as [`recall`] does.
    pub async fn recall(
        &self,
        realm: &Realm,
        store: &dyn SessionStore,
        cookie: SessionCookie,
        now: u64,
    ) -> Result<Recall, StoreError> {
        let Some(key) = realm.handle_key(&cookie) else { return Ok(Recall::None(Absence::UnknownKey)) };
        let asked = self.0.borrow().get(&key).map(|known| {
            let subject = known.session.handle.subject.map(Key::subject);
            (known.session.lineage_key, subject)
        });
        let Some((lineage, subject)) = asked else {
            return Box::pin(self.look(realm, store, (key, cookie), None, now)).await;
        };
        let keys: Vec<Key> = [Some(key), Some(lineage), subject].into_iter().flatten().collect();
        let Answer::Entries(entries) = store.ask(Ask::Read(keys)).await? else { return Err(StoreError::Confused) };
        let mut entries = entries.into_iter();
        let (handle, lineage) = (entries.next().flatten(), entries.next().flatten());
        let subject = entries.next().flatten();
        if let Some(session) = self.unchanged(realm, key, [handle.as_ref(), lineage.as_ref(), subject.as_ref()], now) {
            return Ok(Recall::Session(session));
        }
        // Rare and large: it would make every exchange's future as large.
        Box::pin(self.look(realm, store, (key, cookie), Some(handle), now)).await
    }

    /// What is remembered, if the records are still those, and nothing about it depends on the time.
    fn unchanged(
        &self,
        realm: &Realm,
        key: Key,
        [handle, lineage, subject]: [Option<&Entry>; 3],
        now: u64,
    ) -> Option<Arc<Session>> {
        let known = self.0.borrow();
        let known = known.get(&key)?;
        let same = |entry: Option<&Entry>, before: &Entry| {
            entry.is_some_and(|entry| entry.revision == before.revision && entry.value == before.value)
        };
        let lineage = lineage?;
        let subject_is_same = known.subject.as_ref().is_none_or(|before| same(subject, before));
        let is_same = same(handle, &known.handle) && same(Some(lineage), &known.lineage) && subject_is_same;
        let session = &known.session;
        let is_good = session.handle.not_after > now && session.ends_at(realm).is_none_or(|end| end > now);
        let left_is_same = lineage.expires_in.abs_diff(session.expires_in) <= TOLERANCE;
        (is_same && is_good && left_is_same).then(|| Arc::clone(session))
    }

    async fn look(
        &self,
        realm: &Realm,
        store: &dyn SessionStore,
        (key, cookie): (Key, SessionCookie),
        handle: Option<Option<Entry>>,
        now: u64,
    ) -> Result<Recall, StoreError> {
        let handle = match handle {
            Some(handle) => handle,
            None => read(store, [key]).await?.into_iter().next().flatten(),
        };
        let mut read = None;
        let found = recall_from(realm, store, cookie, handle, now, &mut read).await?;
        let mut sessions = self.0.borrow_mut();
        match (&found, read) {
            (Recall::Session(session), Some((handle, lineage, subject)))
                if session.successor.is_none() && lineage.value.len() <= MOST_KNOWN_BYTES =>
            {
                if sessions.len() >= MOST_KNOWN {
                    sessions.clear();
                }
                sessions.insert(key, Known { session: Arc::clone(session), handle, lineage, subject });
            }
            _ => drop(sessions.remove(&key)),
        }
        Ok(found)
    }
}

/// The records of handle, lineage and subject that a session was read from.
type Read = (Entry, Entry, Option<Entry>);

/// What has become of a session that was found before. Unlike [`recall`] it takes no offence at a cookie that was renewed
/// meanwhile: that it was shown says nothing about now.
pub async fn again(realm: &Realm, store: &dyn SessionStore, session: &Session, now: u64) -> Result<Recall, StoreError> {
    let subject_key = session.handle.subject.map(Key::subject);
    let keys = [Some(session.handle_key), Some(session.lineage_key), subject_key];
    let ask = Ask::Read(keys.into_iter().flatten().collect());
    let Answer::Entries(entries) = store.ask(ask).await? else { return Err(StoreError::Confused) };
    let mut entries = entries.into_iter();
    let (handle, lineage) = (entries.next().flatten(), entries.next().flatten());
    let subject = subject_key.zip(entries.next().flatten());
    let mut now_is = session.clone();
    match handle.map(|entry| (realm.open_handle(&session.cookie, &entry), entry.revision)) {
        Some((Found::Muted(next), _)) => return Ok(Recall::None(muted(next, session.cookie.tag))),
        Some((Found::Handle(handle), revision)) => {
            now_is.successor = successor(&handle, session.cookie.tag);
            (now_is.handle, now_is.handle_revision) = (*handle, revision);
        }
        // Forgotten before its session: the lineage tells. There is no such record to be written over.
        Some((Found::Unreadable, _)) | None => now_is.handle_revision = 0,
    }
    let Some(entry) = lineage else {
        return Box::pin(without_lineage(realm, store, &session.cookie, session.handle_key)).await;
    };
    let Some(lineage) = Realm::open_lineage(session.lineage_key, &session.handle.data_key, &entry) else {
        return Ok(Recall::None(Absence::Unreadable));
    };
    if let Some(absence) = why_over(realm, &session.handle.lineage, &lineage, subject, now) {
        return Ok(Recall::None(absence));
    }
    (now_is.lineage, now_is.lineage_revision, now_is.expires_in) = (lineage, entry.revision, entry.expires_in);
    Ok(Recall::Session(Arc::new(now_is)))
}

fn muted(next: Option<Id>, tag: u16) -> Absence {
    Absence::Muted(next.map(|id| Key { tag, kind: Kind::Lineage, id }))
}

/// Why a session whose record is there counts no more.
fn why_over(realm: &Realm, id: &Id, lineage: &Lineage, subject: Option<(Key, Entry)>, now: u64) -> Option<Absence> {
    let login = lineage.login.as_ref()?;
    let subject = subject.and_then(|(key, entry)| realm.open_subject(key, &entry));
    if !subject.is_some_and(|subject| subject.counts(id, &login.generation)) {
        return Some(Absence::Revoked);
    }
    (login.at + realm.rules.absolute.as_secs() <= now).then_some(Absence::Expired)
}

struct Second {
    lineage: Option<Entry>,
    subject: Option<Entry>,
    /// Whether the successor is in use, where that matters.
    successor: Option<bool>,
}

/// The second round: everything that the handle leads to, at once.
async fn read_second(
    realm: &Realm,
    store: &dyn SessionStore,
    lineage: Key,
    (subject, successor): (Option<Key>, Option<&SessionCookie>),
) -> Result<Second, StoreError> {
    let successor_key = successor.and_then(|cookie| realm.handle_key(cookie));
    let keys: Vec<Key> = [Some(lineage), subject, successor_key].into_iter().flatten().collect();
    let Answer::Entries(entries) = store.ask(Ask::Read(keys)).await? else { return Err(StoreError::Confused) };
    let mut entries = entries.into_iter();
    let lineage = entries.next().flatten();
    let subject = subject.and_then(|_| entries.next().flatten());
    let in_use = |cookie: &SessionCookie, entry: Option<Entry>| {
        // One that has gone was given up for another: so it had been in use.
        entry.is_none_or(|entry| match realm.open_handle(cookie, &entry) {
            Found::Handle(handle) => handle.state != HandleState::Live { confirmed: false },
            Found::Muted(_) | Found::Unreadable => true,
        })
    };
    let successor = successor.map(|cookie| in_use(cookie, entries.next().flatten()));
    Ok(Second { lineage, subject, successor })
}

fn successor(handle: &Handle, tag: u16) -> Option<SessionCookie> {
    match &handle.state {
        HandleState::Live { .. } => None,
        HandleState::Superseded { key, successor, .. } => {
            Some(SessionCookie { key: *key, tag, secret: Zeroizing::clone(successor) })
        }
    }
}

/// A cookie that was given up at a renewal is shown long after. If nobody has used its successor, the response that
/// carried it was lost, and it is handed out again. If somebody has, there are two who hold the session.
async fn after_grace(
    realm: &Realm,
    store: &dyn SessionStore,
    session: Session,
    successor_is_in_use: bool,
) -> Result<Recall, StoreError> {
    if !successor_is_in_use {
        return Ok(Recall::Session(Arc::new(session)));
    }
    if realm.rules.on_reuse == OnReuse::Kill {
        store.ask(Ask::Delete(vec![session.lineage_key])).await?;
    }
    Ok(Recall::None(Absence::Reused))
}

/// Writes down that a session is in use.
pub async fn touch(realm: &Realm, store: &dyn SessionStore, session: &Session, now: u64) -> Result<(), StoreError> {
    let lifetime = realm.lifetime(&session.lineage, now);
    let mut keys = vec![(session.lineage_key, lifetime)];
    // All of a session lives on together: a store that has to make room goes by what was touched last.
    match session.handle.subject {
        None => keys.push((session.handle_key, lifetime)),
        Some(subject) => {
            keys.push((session.handle_key, Duration::from_secs(session.handle.not_after.saturating_sub(now))));
            keys.push((Key::subject(subject), realm.subject_lifetime()));
        }
    }
    store.ask(Ask::Touch(keys)).await.map(|_| ())
}

/// Writes down that a renewed cookie has arrived.
pub async fn confirm(realm: &Realm, store: &dyn SessionStore, session: &Session, now: u64) -> Result<(), StoreError> {
    let handle = Handle { state: HandleState::Live { confirmed: true }, ..session.handle.clone() };
    let guard = Guard::Unchanged(session.handle_key, session.handle_revision);
    let expires_in = match session.lineage.login {
        None => realm.lifetime(&session.lineage, now),
        Some(_) => Duration::from_secs(handle.not_after.saturating_sub(now)),
    };
    let put = realm.put_handle(&session.cookie, &handle, session.handle_revision + 1, expires_in);
    let confirmed = Change { guard, put: put.into_iter().collect(), delete: Vec::new(), durable: false };
    // Somebody else has confirmed or replaced it: as well.
    change(store, confirmed).await.map(|_| ())
}
