//! What an application wants of a session, made true before the client hears of it.
//!
//! Read, merge in memory, change if nobody was ahead, else read again: five times at most. A session that has gone
//! meanwhile stays gone.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::cookie::SessionCookie;
use super::merge::{self, Oversized};
use super::realm::{Realm, mute};
use super::recall::{Absence, Recall, Session, again};
use super::record::{Generation, Handle, HandleState, Lineage, Listed, Login, Sid, Subject};
use super::store::{Ask, Change, Guard, Id, Key, Kind, Put, SessionStore, StoreError, change, next_revision, read};
use super::vault::{self, Jar, TooMuch};
use crate::keys::{Entropy, fresh};
use crate::names::SessionEvent;

/// How often a change is tried that others are ahead of.
const TRIES: u32 = 5;

/// What an application says about a session.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directives {
    /// The version that the patch is for.
    pub only_if: Option<u64>,
    /// A JSON merge patch (RFC 7396).
    pub patch: Option<Map<String, Value>>,
    /// Replaces the whole data, before the patch.
    pub replace: Option<Map<String, Value>>,
    pub turn: Option<Turn>,
    /// Cookies of the application for the vault.
    pub vault: Vec<vault::Change>,
    /// All other sessions of the subject end.
    pub logout_others: bool,
    /// The request does not count as use.
    pub no_touch: bool,
}

impl Directives {
    /// Whether all there is to do is to take something out of the vault.
    fn is_only_forgetting(&self) -> bool {
        self.patch.is_none() && self.replace.is_none() && !vault::keeps_something(&self.vault)
    }

    /// Whether nothing was said by the application itself: what it does to its cookies is seen from outside.
    pub fn is_only_vault(&self) -> bool {
        let says_nothing = self.patch.is_none() && self.replace.is_none() && self.turn.is_none();
        says_nothing && !self.logout_others && self.only_if.is_none()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let writes = self.patch.is_some() || self.replace.is_some() || !self.vault.is_empty();
        !writes && self.turn.is_none() && !self.logout_others
    }
}

/// A turn in the life of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    Login {
        subject: Box<str>,
        how: How,
    },
    /// The same subject has shown more.
    StepUp(How),
    /// Another cookie for the same session.
    Renew,
    Logout,
    /// All sessions of the subject.
    LogoutAll,
}

/// How somebody has shown who they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct How {
    pub acr: Box<str>,
    pub amr: Vec<Box<str>>,
    /// Keys of the data that go along; none: as the realm says.
    pub carry: Option<Vec<Box<str>>>,
}

/// What becomes of the client's cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CookieDecision {
    Leave,
    Set(SessionCookie),
    Expire,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub cookie: CookieDecision,
    pub events: Vec<SessionEvent>,
    /// The session as it is now; none: there is none any more, or nothing was done.
    pub now: Option<Arc<Session>>,
    /// Sessions that have ended: what is open of theirs is to be closed.
    pub ended: Vec<Sid>,
    /// A logout: the client is to forget what it has.
    pub logged_out: bool,
}

/// Why nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the session is not in the version that the change is for")]
    WrongVersion,
    #[error("the session has ended or was replaced while the request was on its way")]
    Gone,
    #[error("others kept changing the session")]
    Contended,
    #[error("{0}")]
    Bad(&'static str),
    #[error(transparent)]
    Oversized(#[from] Oversized),
    #[error(transparent)]
    Vault(#[from] TooMuch),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a commit works with.
pub struct Committer<'a> {
    pub realm: &'a Realm,
    pub store: &'a dyn SessionStore,
    /// Seconds since 1970.
    pub now: u64,
}

impl Committer<'_> {
    /// Does what the application said, for the session that the request came with.
    pub async fn commit(
        &self,
        before: &Recall,
        directives: &Directives,
        entropy: &mut dyn Entropy,
    ) -> Result<Committed, Refusal> {
        match before {
            Recall::None(absence) => self.without_session(*absence, directives, entropy).await,
            Recall::Session(session) => self.with_session(session, directives, entropy).await,
        }
    }

    /// What a response without directives still has to do: the cookie gets old, or its successor was not delivered yet.
    pub async fn renew_if_due(&self, session: &Session, entropy: &mut dyn Entropy) -> Result<Committed, Refusal> {
        if session.renewal_is_due(self.realm, self.now) {
            let renew = Directives { turn: Some(Turn::Renew), ..Directives::default() };
            return self.with_session(session, &renew, entropy).await;
        }
        let cookie = session.successor.clone().map_or(CookieDecision::Leave, CookieDecision::Set);
        Ok(Committed { cookie, ..Committed::nothing() })
    }

    async fn without_session(
        &self,
        absence: Absence,
        directives: &Directives,
        entropy: &mut dyn Entropy,
    ) -> Result<Committed, Refusal> {
        if directives.only_if.is_some_and(|version| version != 0) {
            return Err(Refusal::WrongVersion);
        }
        if let (Absence::Muted(Some(next)), Some(Turn::Logout)) = (absence, &directives.turn) {
            return self.end_next(next).await;
        }
        // Who shows who they are is given a session also where the cookie is of a key that is not known here.
        let shows_who = matches!(directives.turn, Some(Turn::Login { .. })) && absence == Absence::UnknownKey;
        if !absence.may_begin() && !shows_who {
            return Err(Refusal::Gone);
        }
        match &directives.turn {
            Some(Turn::Login { subject, how }) => {
                let step = Rotation::new(self.realm, None, subject, how, entropy);
                let data = merge::apply("{}", directives.replace.as_ref(), directives.patch.as_ref())?;
                let mut vault = Jar::default();
                vault.apply(&directives.vault, self.now)?;
                self.check_size(&data, &vault)?;
                let listing = self.enlist(&step, None, directives.logout_others, entropy).await?;
                let mut session = step.session(self, &listing, data);
                session.lineage.vault = vault;
                let made = self.change_for(Guard::Absent(session.lineage_key), &session, Vec::new(), Vec::new());
                if !change(self.store, made).await? {
                    return Err(Refusal::Contended);
                }
                let events = vec![SessionEvent::Created, SessionEvent::Rotated];
                Ok(Committed::started(session, events, listing.ended))
            }
            Some(Turn::Logout | Turn::LogoutAll) => {
                Ok(Committed { cookie: CookieDecision::Expire, logged_out: true, ..Committed::nothing() })
            }
            Some(Turn::StepUp(_)) => Err(Refusal::Bad("there is no login to step up from")),
            Some(Turn::Renew) => Err(Refusal::Bad("there is no session to renew")),
            None if directives.logout_others => Err(Refusal::Bad("there is no login that others could be other than")),
            // What is to be forgotten where nothing is kept makes no session.
            None if directives.is_only_forgetting() => Ok(Committed::nothing()),
            None => self.begin(directives, entropy).await,
        }
    }

    /// Ends what a session became while its logout was on the way.
    async fn end_next(&self, next: Key) -> Result<Committed, Refusal> {
        self.store.ask(Ask::Delete(vec![next])).await?;
        Ok(Committed {
            cookie: CookieDecision::Expire,
            events: vec![SessionEvent::LoggedOut],
            ended: vec![self.realm.sid(&next.id)],
            logged_out: true,
            ..Committed::nothing()
        })
    }

    /// An anonymous session.
    async fn begin(&self, directives: &Directives, entropy: &mut dyn Entropy) -> Result<Committed, Refusal> {
        let data = merge::apply("{}", directives.replace.as_ref(), directives.patch.as_ref())?;
        let mut vault = Jar::default();
        vault.apply(&directives.vault, self.now)?;
        self.check_size(&data, &vault)?;
        let cookie = SessionCookie::new(self.realm.sealing_key(), None, entropy);
        let made = (cookie, fresh(entropy), Zeroizing::new(fresh(entropy)));
        let mut session = assemble(self, made, None, data);
        session.lineage.vault = vault;
        let made = self.change_for(Guard::Absent(session.lineage_key), &session, Vec::new(), Vec::new());
        if !change(self.store, made).await? {
            return Err(Refusal::Contended);
        }
        Ok(Committed::started(session, vec![SessionEvent::Created], Vec::new()))
    }

    async fn with_session(
        &self,
        before: &Session,
        directives: &Directives,
        entropy: &mut dyn Entropy,
    ) -> Result<Committed, Refusal> {
        let mut session = before.clone();
        for tries in 1..=TRIES {
            if let Some(committed) = self.once(&session, directives, tries == TRIES, entropy).await? {
                return Ok(committed);
            }
            self.store.pause(tries).await;
            session = match again(self.realm, self.store, &session, self.now).await? {
                Recall::Session(again) => Session::clone(&again),
                // Logged in, stepped up or logged out meanwhile. Whoever wants a logout has it.
                other if matches!(directives.turn, Some(Turn::Logout | Turn::LogoutAll)) => {
                    self.store.ask(Ask::Delete(vec![before.lineage_key])).await?;
                    let mut committed = Committed::logged_out(before);
                    match other {
                        Recall::None(Absence::Muted(Some(next))) => {
                            committed.ended.append(&mut self.end_next(next).await?.ended);
                        }
                        Recall::None(Absence::Muted(None)) => {
                            // Somebody else may have logged in there: what the client has by now is not this one's.
                            (committed.cookie, committed.logged_out) = (CookieDecision::Leave, false);
                        }
                        _ => {}
                    }
                    return Ok(committed);
                }
                Recall::None(absence) if absence.is_final() && matches!(directives.turn, Some(Turn::Login { .. })) => {
                    // It has ended; who shows who they are begins another.
                    return Box::pin(self.without_session(absence, directives, entropy)).await;
                }
                _ => return Err(Refusal::Gone),
            };
        }
        if matches!(directives.turn, Some(Turn::Logout | Turn::LogoutAll)) {
            // Whoever is ahead: it is over.
            self.store.ask(Ask::Delete(vec![before.lineage_key])).await?;
            return Ok(Committed::logged_out(before));
        }
        Err(Refusal::Contended)
    }

    /// One try; none: somebody was ahead.
    async fn once(
        &self,
        session: &Session,
        directives: &Directives,
        is_last: bool,
        entropy: &mut dyn Entropy,
    ) -> Result<Option<Committed>, Refusal> {
        if directives.only_if.is_some_and(|version| version != session.lineage.version) {
            return Err(Refusal::WrongVersion);
        }
        let leaves_nothing = matches!(directives.turn, Some(Turn::Logout | Turn::LogoutAll));
        if leaves_nothing && (directives.patch.is_some() || directives.replace.is_some()) {
            return Err(Refusal::Bad("a logout leaves no data that could be changed"));
        }
        match &directives.turn {
            None => self.write(session, directives, Renewal::No, entropy).await,
            Some(Turn::Renew) => {
                let renewal = if is_last { Renewal::Anyway } else { Renewal::OfLatest };
                self.write(session, directives, renewal, entropy).await
            }
            Some(Turn::Login { subject, how }) => self.rotate(session, subject, how, directives, entropy).await,
            Some(Turn::StepUp(how)) => {
                let login = session.lineage.login.as_ref();
                let subject = login.ok_or(Refusal::Bad("there is no login to step up from"))?.subject.clone();
                let acr = if how.acr.is_empty() { login.map(|login| login.acr.clone()) } else { None };
                let amr = if how.amr.is_empty() { login.map(|login| login.amr.clone()) } else { None };
                let how = How {
                    acr: acr.unwrap_or_else(|| how.acr.clone()),
                    amr: amr.unwrap_or_else(|| how.amr.clone()),
                    carry: how.carry.clone(),
                };
                self.rotate(session, &subject, &how, directives, entropy).await
            }
            Some(Turn::Logout) if !directives.logout_others => self.log_out(session, Vec::new()).await,
            // This one and all others: all.
            Some(Turn::Logout | Turn::LogoutAll) => {
                match again(self.realm, self.store, session, self.now).await? {
                    // It goes on, here or in what it became for the same user.
                    Recall::Session(_) | Recall::None(Absence::Muted(Some(_))) => {}
                    // It has ended itself, and has nothing to say of others any more.
                    Recall::None(_) => return Err(Refusal::Gone),
                }
                let ended = match &session.lineage.login {
                    Some(login) => end_all(self.realm, self.store, &login.subject, None, entropy).await?,
                    None => Vec::new(),
                };
                self.log_out(session, ended).await
            }
        }
    }

    /// Data, and perhaps another cookie, for the same lineage.
    async fn write(
        &self,
        session: &Session,
        directives: &Directives,
        renewal: Renewal,
        entropy: &mut dyn Entropy,
    ) -> Result<Option<Committed>, Refusal> {
        let mut after = session.clone();
        let mut events = Vec::new();
        let mut put = Vec::new();
        let writes = directives.patch.is_some() || directives.replace.is_some();
        if writes {
            let (replace, patch) = (directives.replace.as_ref(), directives.patch.as_ref());
            after.lineage.data = merge::apply(&session.lineage.data, replace, patch)?;
            after.lineage.version += 1;
        }
        let fills = after.lineage.vault.apply(&directives.vault, self.now)?;
        if fills || writes {
            self.check_size(&after.lineage.data, &after.lineage.vault)?;
        }
        // What is wrong is known by now: nobody is logged out by half a directive.
        let ended = if directives.logout_others { self.end_others(session, entropy).await? } else { Vec::new() };
        // Its successor is on the way already: it is handed out again.
        let renew = renewal != Renewal::No && session.successor.is_none();
        let is_latest = session.lineage.handles.last() == Some(&session.handle_key.id);
        if renew && renewal == Renewal::OfLatest && !is_latest {
            // Somebody has renewed it between the reads of its handle and of its lineage: it is to be read again.
            return Ok(None);
        }
        if renew {
            put = self.succeed(session, &mut after, entropy);
            events.push(SessionEvent::Renewed);
        }
        if writes || renew || fills {
            after.lineage_revision = next_revision(session.lineage_revision);
            let key = session.lineage_key;
            let (data_key, revision) = (&session.handle.data_key, after.lineage_revision);
            let mut lineage = self.realm.put_lineage(key, data_key, &after.lineage, revision, self.now);
            if directives.no_touch {
                lineage.expires_in = session.expires_in;
            }
            after.expires_in = lineage.expires_in;
            if session.lineage.login.is_none() && !renew && session.handle_revision > 0 {
                // Its handle has no end of its own: it lives as long as it is used.
                let revision = session.handle_revision + 1;
                put.extend(self.realm.put_handle(&session.cookie, &session.handle, revision, lineage.expires_in));
                after.handle_revision = revision;
            }
            put.insert(0, lineage);
            let guard = Guard::Unchanged(key, session.lineage_revision);
            // A client that has a new cookie has thrown the old one away; what a framework has taken back is a logout.
            let forgets = fills && directives.vault.iter().any(|change| matches!(change, vault::Change::Delete { .. }));
            if !change(self.store, Change { guard, put, delete: Vec::new(), durable: renew || forgets }).await? {
                return Ok(None);
            }
        }
        let cookie = after.successor.clone().map_or(CookieDecision::Leave, CookieDecision::Set);
        Ok(Some(Committed { cookie, events, now: Some(Arc::new(after)), ended, logged_out: false }))
    }

    /// Ends all other sessions of the subject; gives those that were named.
    async fn end_others(&self, session: &Session, entropy: &mut dyn Entropy) -> Result<Vec<Sid>, Refusal> {
        let login = session.lineage.login.as_ref();
        let login = login.ok_or(Refusal::Bad("there is no login that others could be other than"))?;
        if again(self.realm, self.store, session, self.now).await?.session().is_none() {
            // It has ended itself, and has nothing to say of others any more.
            return Err(Refusal::Gone);
        }
        let spared = session.handle.subject.map(|subject| Spared {
            subject,
            lineage: session.handle.lineage,
            generation: login.generation,
        });
        end_all(self.realm, self.store, &login.subject, spared, entropy).await
    }

    /// The records of a cookie and its successor.
    fn succeed(&self, session: &Session, after: &mut Session, entropy: &mut dyn Entropy) -> Vec<Put> {
        let next = SessionCookie::new(self.realm.sealing_key(), Some(session.cookie.tag), entropy);
        let left = match session.lineage.login {
            None => self.realm.lifetime(&session.lineage, self.now),
            Some(_) => Duration::from_secs(session.handle.not_after.saturating_sub(self.now)),
        };
        let handle = Handle {
            generation: session.handle.generation + 1,
            issued: self.now,
            state: HandleState::Live { confirmed: false },
            ..session.handle.clone()
        };
        let given_up =
            HandleState::Superseded { at: self.now, key: next.key, successor: Zeroizing::clone(&next.secret) };
        let old = Handle { state: given_up, ..session.handle.clone() };
        let new = self.realm.put_handle(&next, &handle, 1, left);
        let old = self.realm.put_handle(&session.cookie, &old, session.handle_revision + 1, left);
        if let Some(new) = &new {
            after.lineage.remember(new.key.id);
        }
        after.successor = Some(next);
        new.into_iter().chain(old).collect()
    }

    /// A login or a step-up: another lineage and another cookie; whatever came before is muted at once.
    async fn rotate(
        &self,
        session: &Session,
        subject: &str,
        how: &How,
        directives: &Directives,
        entropy: &mut dyn Entropy,
    ) -> Result<Option<Committed>, Refusal> {
        let same_subject = session.lineage.login.as_ref().is_none_or(|login| *login.subject == *subject);
        // What one user has put there is not for another.
        let carry = if same_subject { how.carry.as_ref().or(self.realm.rules.carry.as_ref()) } else { Some(&NOTHING) };
        let carried = merge::only(&session.lineage.data, carry.map(Vec::as_slice))?;
        let data = merge::apply(&carried, directives.replace.as_ref(), directives.patch.as_ref())?;
        // The framework's cookies are its own to give up, as in a browser.
        let mut vault = session.lineage.vault.clone();
        vault.apply(&directives.vault, self.now)?;
        self.check_size(&data, &vault)?;
        let mut step = Rotation::new(self.realm, Some(session), subject, how, entropy);
        step.rests_on_old = matches!(directives.turn, Some(Turn::StepUp(_)));
        let listing = self.enlist(&step, Some(session), directives.logout_others, entropy).await?;
        let mut after = step.session(self, &listing, data);
        after.lineage.vault = vault;
        let guard = Guard::Unchanged(session.lineage_key, session.lineage_revision);
        let muted = self.retire(session, &after);
        let rotated = self.change_for(guard, &after, muted, vec![session.lineage_key]);
        if !change(self.store, rotated).await? {
            self.delist(&after).await;
            return Ok(None);
        }
        let mut ended = listing.ended;
        ended.push(session.lineage.sid);
        Ok(Some(Committed::started(after, vec![SessionEvent::Rotated], ended)))
    }

    /// What is left of the handles of a session that was given up.
    fn retire(&self, session: &Session, after: &Session) -> Vec<Put> {
        #[cfg(test)]
        if self.realm.fault == Some(super::model::Fault::GraceAcrossLogin) {
            return super::model::grace_across_login(self.realm, session, after, self.now);
        }
        let key = |id: &Id| Key { tag: session.cookie.tag, kind: Kind::Handle, id: *id };
        let goes_on = session.lineage.login.is_some() && after.lineage_key != session.lineage_key;
        let same_subject = || subject_of(session) == subject_of(after);
        let next = (goes_on && same_subject()).then_some(&after.handle.lineage);
        session.lineage.handles.iter().map(|id| mute(key(id), next)).collect()
    }

    async fn log_out(&self, session: &Session, mut ended: Vec<Sid>) -> Result<Option<Committed>, Refusal> {
        let guard = Guard::Unchanged(session.lineage_key, session.lineage_revision);
        let put = self.retire(session, session);
        let gone = Change { guard, put, delete: vec![session.lineage_key], durable: true };
        if !change(self.store, gone).await? {
            return Ok(None);
        }
        self.delist(session).await;
        ended.retain(|sid| *sid != session.lineage.sid);
        let mut committed = Committed::logged_out(session);
        committed.ended.append(&mut ended);
        Ok(Some(committed))
    }

    /// Takes a session out of its subject's list: for people who look, nothing depends on it.
    async fn delist(&self, session: &Session) {
        let Some(key) = session.handle.subject.map(Key::subject) else { return };
        let Ok([Some(entry)]) = read(self.store, [key]).await else { return };
        let Some(mut subject) = self.realm.open_subject(key, &entry) else { return };
        subject.sessions.retain(|listed| listed.lineage != session.handle.lineage);
        if let Some(put) = self.realm.put_subject(key, &subject, next_revision(entry.revision)) {
            let guard = Guard::Unchanged(key, entry.revision);
            let _ = change(self.store, Change { guard, put: vec![put], delete: Vec::new(), durable: false }).await;
        }
    }

    /// Names the new session in its subject's record, and says under which generation it counts.
    async fn enlist(
        &self,
        step: &Rotation,
        old: Option<&Session>,
        alone: bool,
        entropy: &mut dyn Entropy,
    ) -> Result<Listing, Refusal> {
        let mut ended = Vec::new();
        let login = old.and_then(|old| old.lineage.login.as_ref());
        let before = old.zip(login).map(|(old, login)| (old.handle.lineage, login.generation));
        if alone {
            // One that is stepped up from still has to count when it is replaced.
            let subject = old.and_then(|old| old.handle.subject).filter(|_| step.rests_on_old);
            let spared = subject.zip(before);
            let spared = spared.map(|(subject, (lineage, generation))| Spared { subject, lineage, generation });
            ended = end_all(self.realm, self.store, &step.login.subject, spared, entropy).await?;
        }
        if let (true, Some((lineage, of))) = (step.rests_on_old, before) {
            self.still_counts(old.and_then(|old| old.handle.subject), &lineage, &of).await?;
        }
        let key = step.subject_key;
        for tries in 1..=TRIES {
            let [entry] = read(self.store, [key]).await?;
            let known = entry.as_ref().and_then(|entry| self.realm.open_subject(key, entry));
            let mut subject = known.unwrap_or_else(|| Subject {
                realm: self.realm.name.clone(),
                name: step.login.subject.clone(),
                generation: fresh(entropy),
                spared: None,
                sessions: Vec::new(),
            });
            let is_same_record = old.is_some_and(|old| old.handle.subject == Some(key.id));
            if step.rests_on_old && is_same_record && !before.is_some_and(|(lineage, of)| subject.counts(&lineage, &of))
            {
                // All sessions of the subject were ended meanwhile. Only who shows who they are begins another.
                return Err(Refusal::Gone);
            }
            subject.sessions.retain(|listed| old.is_none_or(|old| listed.lineage != old.handle.lineage));
            let sid = self.realm.sid(&step.lineage);
            subject.list(Listed { sid, tag: step.cookie.tag, lineage: step.lineage, created: self.now });
            if let Some(generation) = put_subject(self.realm, self.store, key, &entry, &subject).await? {
                return Ok(Listing { generation, ended });
            }
            self.store.pause(tries).await;
        }
        Err(Refusal::Contended)
    }

    /// Whether a session still counts by its subject's record, which may be under another key of the ring than a new one.
    async fn still_counts(&self, subject: Option<Id>, lineage: &Id, of: &Generation) -> Result<(), Refusal> {
        let key = Key::subject(subject.ok_or(Refusal::Gone)?);
        let [entry] = read(self.store, [key]).await?;
        let subject = entry.and_then(|entry| self.realm.open_subject(key, &entry));
        if subject.is_some_and(|subject| subject.counts(lineage, of)) { Ok(()) } else { Err(Refusal::Gone) }
    }

    /// Data and vault count together.
    fn check_size(&self, data: &str, vault: &Jar) -> Result<(), Refusal> {
        Ok(merge::check(data, self.realm.rules.most_bytes.saturating_sub(vault.bytes()))?)
    }

    /// A new session's records, beside what else changes with them.
    fn change_for(&self, guard: Guard, session: &Session, mut put: Vec<Put>, delete: Vec<Key>) -> Change {
        let (lineage, handle) = (&session.lineage, &session.handle);
        let lineage = self.realm.put_lineage(session.lineage_key, &handle.data_key, lineage, 1, self.now);
        let expires_in = match session.ends_at(self.realm) {
            Some(end) => Duration::from_secs(end.saturating_sub(self.now)),
            None => lineage.expires_in,
        };
        put.extend(self.realm.put_handle(&session.cookie, handle, 1, expires_in));
        put.push(lineage);
        Change { guard, put, delete, durable: session.lineage.login.is_some() }
    }
}

const NOTHING: Vec<Box<str>> = Vec::new();

/// Whether a write gives its session another cookie.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Renewal {
    No,
    /// If the cookie is the latest one of the session.
    OfLatest,
    /// Whatever the session says: a renewal was cut off half-way, and nobody else will finish it.
    Anyway,
}

/// A login or a step-up that is being made.
struct Rotation {
    cookie: SessionCookie,
    lineage: Id,
    data_key: Zeroizing<[u8; 32]>,
    subject_key: Key,
    /// A step-up: it counts only while the old session does.
    rests_on_old: bool,
    /// Its generation is the listing's.
    login: Login,
}

/// What a subject's record says of a session that joins.
struct Listing {
    generation: Generation,
    ended: Vec<Sid>,
}

impl Rotation {
    fn new(realm: &Realm, old: Option<&Session>, subject: &str, how: &How, entropy: &mut dyn Entropy) -> Self {
        let tag = old.map(|old| old.cookie.tag);
        let login = Login {
            subject: subject.into(),
            at: 0,
            acr: how.acr.clone(),
            amr: how.amr.clone(),
            generation: Generation::default(),
        };
        Rotation {
            cookie: SessionCookie::new(realm.sealing_key(), tag, entropy),
            lineage: fresh(entropy),
            data_key: Zeroizing::new(fresh(entropy)),
            // A ring has a first key.
            subject_key: realm.subject_keys(subject)[0],
            rests_on_old: false,
            login,
        }
    }

    fn session(self, committer: &Committer<'_>, listing: &Listing, data: Box<str>) -> Session {
        let login = Login { at: committer.now, generation: listing.generation, ..self.login };
        let made = (self.cookie, self.lineage, self.data_key);
        assemble(committer, made, Some((login, self.subject_key.id)), data)
    }
}

fn subject_of(session: &Session) -> Option<&str> {
    session.lineage.login.as_ref().map(|login| &*login.subject)
}

fn assemble(
    committer: &Committer<'_>,
    (cookie, id, data_key): (SessionCookie, Id, Zeroizing<[u8; 32]>),
    login: Option<(Login, Id)>,
    data: Box<str>,
) -> Session {
    let Committer { realm, now, .. } = *committer;
    let handle_key = realm.handle_key(&cookie).unwrap_or(Key { tag: cookie.tag, kind: Kind::Handle, id });
    let (login, subject) = login.unzip();
    let lineage = Lineage {
        sid: realm.sid(&id),
        created: now,
        version: 1,
        handles: vec![handle_key.id],
        login,
        data,
        vault: Jar::default(),
    };
    let handle = Handle {
        lineage: id,
        data_key,
        generation: 0,
        issued: now,
        not_after: lineage.login.as_ref().map_or(u64::MAX, |login| login.at + realm.rules.absolute.as_secs()),
        subject,
        state: HandleState::Live { confirmed: true },
    };
    Session {
        handle_key,
        handle_revision: 1,
        lineage_key: Key { tag: cookie.tag, kind: Kind::Lineage, id },
        lineage_revision: 1,
        expires_in: realm.lifetime(&lineage, now),
        successor: None,
        cookie,
        handle,
        lineage,
    }
}

impl Committed {
    fn nothing() -> Self {
        Committed { cookie: CookieDecision::Leave, events: Vec::new(), now: None, ended: Vec::new(), logged_out: false }
    }

    fn started(session: Session, events: Vec<SessionEvent>, ended: Vec<Sid>) -> Self {
        let cookie = CookieDecision::Set(session.cookie.clone());
        Committed { cookie, events, now: Some(Arc::new(session)), ended, logged_out: false }
    }

    fn logged_out(session: &Session) -> Self {
        Committed {
            cookie: CookieDecision::Expire,
            events: vec![SessionEvent::LoggedOut],
            now: None,
            ended: vec![session.lineage.sid],
            logged_out: true,
        }
    }
}

/// A session that goes on when all others of its subject end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spared {
    /// The record that it counts by.
    pub subject: Id,
    pub lineage: Id,
    pub generation: Generation,
}

/// Ends all sessions of a subject but the spared one, at once and whatever their number: none of them counts any more.
/// Gives those that were named.
pub async fn end_all(
    realm: &Realm,
    store: &dyn SessionStore,
    name: &str,
    spared: Option<Spared>,
    entropy: &mut dyn Entropy,
) -> Result<Vec<Sid>, Refusal> {
    let mut ended = Vec::new();
    // A subject may have a record under each key of the ring.
    for key in realm.subject_keys(name) {
        let spared = spared.filter(|spared| spared.subject == key.id);
        ended.append(&mut end_under(realm, store, key, spared, entropy).await?);
    }
    Ok(ended)
}

async fn end_under(
    realm: &Realm,
    store: &dyn SessionStore,
    key: Key,
    spared: Option<Spared>,
    entropy: &mut dyn Entropy,
) -> Result<Vec<Sid>, Refusal> {
    for tries in 1..=TRIES {
        let [entry] = read(store, [key]).await?;
        // Without a record no session counts.
        let Some(mut subject) = entry.as_ref().and_then(|entry| realm.open_subject(key, entry)) else {
            return Ok(Vec::new());
        };
        if spared.is_some_and(|spared| !subject.counts(&spared.lineage, &spared.generation)) {
            // It was ended itself: it has nothing to say any more, and must not be brought back by being spared.
            return Err(Refusal::Gone);
        }
        let is_spared = |listed: &Listed| spared.is_some_and(|spared| spared.lineage == listed.lineage);
        let (kept, ended): (Vec<Listed>, Vec<Listed>) = subject.sessions.into_iter().partition(is_spared);
        let spared = spared.map(|spared| (spared.lineage, spared.generation));
        subject = Subject { generation: fresh(entropy), spared, sessions: kept, ..subject };
        if put_subject(realm, store, key, &entry, &subject).await?.is_some() {
            return Ok(ended.into_iter().map(|listed| listed.sid).collect());
        }
        store.pause(tries).await;
    }
    Err(Refusal::Contended)
}

/// Writes a subject's record if it is still as it was read; gives its generation then.
async fn put_subject(
    realm: &Realm,
    store: &dyn SessionStore,
    key: Key,
    entry: &Option<super::store::Entry>,
    subject: &Subject,
) -> Result<Option<Generation>, StoreError> {
    let revision = entry.as_ref().map_or(1, |entry| next_revision(entry.revision));
    let guard = entry.as_ref().map_or(Guard::Absent(key), |entry| Guard::Unchanged(key, entry.revision));
    let put = realm.put_subject(key, subject, revision).into_iter().collect();
    let done = change(store, Change { guard, put, delete: Vec::new(), durable: true }).await?;
    Ok(done.then_some(subject.generation))
}
