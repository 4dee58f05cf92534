//! What operators see of sessions and do to them, without any cookie: by the records of their subjects.
//!
//! Only sessions of somebody who has logged in have a subject. What a subject's record names counts under its generation:
//! whoever changes that takes out what it ends.

use super::commit::Refusal;
use super::realm::Realm;
use super::record::{Listed, Sid};
use super::store::{
    Answer, Ask, Change, Entry, Guard, ID_BYTES, Id, Key, Kind, SessionStore, StoreError, change, read,
};

/// How often a change is tried that others are ahead of.
const TRIES: u32 = 5;
/// So that a store on the network answers each time within its deadline.
const MOST_READ_AT_ONCE: usize = 256;

/// One session, for who has no cookie: the record of its subject, and its public name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    pub subject: Id,
    pub sid: Sid,
}

impl Reference {
    /// As operators write it.
    pub fn text(&self) -> String {
        data_encoding::BASE64URL_NOPAD.encode(&[&self.subject[..], &self.sid.0[..]].concat())
    }

    /// Reads what [`Reference::text`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        let (subject, sid) = bytes.split_first_chunk::<ID_BYTES>()?;
        Some(Reference { subject: *subject, sid: Sid(sid.try_into().ok()?) })
    }
}

/// A session as its subject's record names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub reference: Reference,
    pub sid: Sid,
    pub realm: Box<str>,
    pub subject: Box<str>,
    /// Seconds since 1970.
    pub created: u64,
    /// Whether its record is there; not known before [`look`].
    pub live: bool,
    lineage: Key,
}

/// The sessions that a subject's record names; none where it is of another realm.
pub fn named(realm: &Realm, key: Key, entry: &Entry) -> Vec<Named> {
    let Some(subject) = realm.open_subject(key, entry) else { return Vec::new() };
    let one = |listed: &Listed| Named {
        reference: Reference { subject: key.id, sid: listed.sid },
        sid: listed.sid,
        realm: subject.realm.clone(),
        subject: subject.name.clone(),
        created: listed.created,
        live: false,
        lineage: Key { tag: listed.tag, kind: Kind::Lineage, id: listed.lineage },
    };
    subject.sessions.iter().map(one).collect()
}

/// Finds out which sessions live.
pub async fn look(store: &dyn SessionStore, sessions: &mut [Named]) -> Result<(), StoreError> {
    for some in sessions.chunks_mut(MOST_READ_AT_ONCE) {
        let entries = read_all(store, some.iter().map(|named| named.lineage).collect()).await?;
        for (named, entry) in some.iter_mut().zip(entries) {
            named.live = entry.is_some();
        }
    }
    Ok(())
}

/// The sessions of a subject.
pub async fn list(realm: &Realm, store: &dyn SessionStore, subject: &str) -> Result<Vec<Named>, StoreError> {
    // A subject may have a record under each key of the ring.
    let keys = realm.subject_keys(subject);
    let entries = read_all(store, keys.clone()).await?;
    let records = keys.into_iter().zip(entries);
    let records = records.filter_map(|(key, entry)| Some((key, entry?)));
    let mut sessions: Vec<Named> = records.flat_map(|(key, entry)| named(realm, key, &entry)).collect();
    look(store, &mut sessions).await?;
    Ok(sessions)
}

/// The session that a reference names, if it is of this realm.
pub async fn find(realm: &Realm, store: &dyn SessionStore, reference: &Reference) -> Result<Option<Named>, StoreError> {
    let mut found = find_unseen(realm, store, reference).await?;
    look(store, found.as_mut_slice()).await?;
    Ok(found)
}

async fn find_unseen(
    realm: &Realm,
    store: &dyn SessionStore,
    reference: &Reference,
) -> Result<Option<Named>, StoreError> {
    let key = Key::subject(reference.subject);
    let [entry] = read(store, [key]).await?;
    let sessions = entry.map(|entry| named(realm, key, &entry)).unwrap_or_default();
    Ok(sessions.into_iter().find(|named| named.reference == *reference))
}

/// Ends one session, whoever writes to it meanwhile; nothing where there is none of this name. It is [`Refusal::Gone`] when
/// it ended by itself or became another just then: if it goes on, then under another name.
pub async fn end_one(realm: &Realm, store: &dyn SessionStore, reference: &Reference) -> Result<Option<Sid>, Refusal> {
    let Some(session) = find_unseen(realm, store, reference).await? else { return Ok(None) };
    store.ask(Ask::Delete(vec![session.lineage])).await?;
    // It is over, whether or not it is still named: a store that fails only now does not change that.
    let was_named = delist(realm, store, reference).await.unwrap_or(true);
    if was_named { Ok(Some(session.sid)) } else { Err(Refusal::Gone) }
}

/// Takes a session out of its subject's record; false: it was no longer in there.
async fn delist(realm: &Realm, store: &dyn SessionStore, reference: &Reference) -> Result<bool, StoreError> {
    let key = Key::subject(reference.subject);
    for tries in 1..=TRIES {
        let [entry] = read(store, [key]).await?;
        let opened = entry.and_then(|entry| Some((realm.open_subject(key, &entry)?, entry.revision)));
        let Some((mut subject, revision)) = opened else { return Ok(false) };
        let before = subject.sessions.len();
        subject.sessions.retain(|listed| listed.sid != reference.sid);
        if subject.sessions.len() == before {
            return Ok(false);
        }
        let guard = Guard::Unchanged(key, revision);
        let put = realm.put_subject(key, &subject, revision + 1).into_iter().collect();
        if change(store, Change { guard, put, delete: Vec::new(), durable: false }).await? {
            return Ok(true);
        }
        store.pause(tries).await;
    }
    Ok(true)
}

async fn read_all(store: &dyn SessionStore, keys: Vec<Key>) -> Result<Vec<Option<Entry>>, StoreError> {
    let wanted = keys.len();
    match store.ask(Ask::Read(keys)).await? {
        Answer::Entries(entries) if entries.len() == wanted => Ok(entries),
        _ => Err(StoreError::Confused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyRing, RingKey};
    use crate::session::model::{Counted, Records, at_once, realm, rules};
    use crate::session::store::Asking;
    use crate::session::{Absence, Committer, CookieDecision, Directives, How, Recall, SessionCookie, Turn, recall};

    const NOW: u64 = 1_800_000_000;

    fn log_in(realm: &Realm, store: &Records, entropy: &mut Counted, subject: &str) -> SessionCookie {
        let turn = Turn::Login { subject: subject.into(), how: How::default() };
        let directives = Directives { turn: Some(turn), ..Directives::default() };
        let committer = Committer { realm, store, now: NOW };
        let committed = at_once(committer.commit(&Recall::None(Absence::NoCookie), &directives, entropy)).unwrap();
        match committed.cookie {
            CookieDecision::Set(cookie) => cookie,
            other => panic!("no cookie is set: {other:?}"),
        }
    }

    fn sid(realm: &Realm, store: &Records, cookie: &SessionCookie) -> Option<Sid> {
        let found = at_once(recall(realm, store, cookie.clone(), NOW)).unwrap();
        found.session().map(|session| session.lineage.sid)
    }

    fn sessions_of(realm: &Realm, store: &Records, subject: &str) -> Vec<Named> {
        at_once(list(realm, store, subject)).unwrap()
    }

    #[test]
    fn a_reference_reads_back_and_nothing_else_does() {
        let reference = Reference { subject: [250; ID_BYTES], sid: Sid([7; 16]) };
        let text = reference.text();
        assert_eq!((text.len(), Reference::parse(&text)), (48, Some(reference)));
        for wrong in ["", "x", &text[1..], &format!("{text}A"), &format!("{text}AAAA"), &"~".repeat(48)] {
            assert_eq!(Reference::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn one_session_is_found_and_ended_and_the_others_stay() {
        let (realm, store, mut entropy) = (realm(None), Records::default(), Counted::default());
        let [phone, laptop, bob] =
            ["alice", "alice", "bob"].map(|subject| log_in(&realm, &store, &mut entropy, subject));
        let hers = sessions_of(&realm, &store, "alice");
        assert_eq!(hers.len(), 2);
        assert!(hers.iter().all(|named| named.live && (&*named.realm, &*named.subject) == ("shop", "alice")));
        let of_phone = hers.iter().find(|named| Some(named.sid) == sid(&realm, &store, &phone)).unwrap();
        assert_eq!(at_once(find(&realm, &store, &of_phone.reference)).unwrap().as_ref(), Some(of_phone));
        assert_eq!(at_once(end_one(&realm, &store, &of_phone.reference)), Ok(Some(of_phone.sid)));
        assert_eq!(sid(&realm, &store, &phone), None);
        assert!(sid(&realm, &store, &laptop).is_some() && sid(&realm, &store, &bob).is_some());
        assert_eq!(sessions_of(&realm, &store, "alice").len(), 1);
        assert_eq!(at_once(end_one(&realm, &store, &of_phone.reference)), Ok(None));
        assert_eq!(at_once(find(&realm, &store, &of_phone.reference)), Ok(None));
    }

    #[test]
    fn one_whose_record_has_gone_is_named_and_does_not_live() {
        let (realm, store, mut entropy) = (realm(None), Records::default(), Counted::default());
        log_in(&realm, &store, &mut entropy, "alice");
        let lineage = sessions_of(&realm, &store, "alice")[0].lineage;
        at_once(store.ask(Ask::Delete(vec![lineage]))).unwrap();
        let [gone] = <[Named; 1]>::try_from(sessions_of(&realm, &store, "alice")).unwrap();
        assert!(!gone.live);
        assert_eq!(at_once(end_one(&realm, &store, &gone.reference)), Ok(Some(gone.sid)));
        assert!(sessions_of(&realm, &store, "alice").is_empty());
    }

    #[test]
    fn sessions_of_every_key_of_the_ring_are_listed_and_of_no_other_realm() {
        let (store, mut entropy) = (Records::default(), Counted::default());
        let key = |byte| RingKey::from_secret([byte; 32]);
        let before = Realm::new("shop", &KeyRing::new(vec![key(7)]), rules());
        let after = Realm::new("shop", &KeyRing::new(vec![key(8), key(7)]), rules());
        let blog = Realm::new("blog", &KeyRing::new(vec![key(8), key(7)]), rules());
        log_in(&before, &store, &mut entropy, "alice");
        log_in(&after, &store, &mut entropy, "alice");
        let both = sessions_of(&after, &store, "alice");
        assert_eq!((both.len(), sessions_of(&blog, &store, "alice").len()), (2, 0));
        for named in both {
            assert_eq!(at_once(end_one(&blog, &store, &named.reference)), Ok(None));
            assert_eq!(at_once(end_one(&after, &store, &named.reference)), Ok(Some(named.sid)));
        }
    }

    /// Somebody else is ahead when a record is deleted.
    struct Hasty<'a>(&'a Realm, &'a Records, Reference);

    impl SessionStore for Hasty<'_> {
        fn ask(&self, ask: Ask) -> Asking<'_> {
            if matches!(ask, Ask::Delete(_)) {
                at_once(delist(self.0, self.1, &self.2)).unwrap();
            }
            self.1.ask(ask)
        }
    }

    #[test]
    fn one_that_became_another_meanwhile_is_told_from_one_that_was_ended() {
        let (realm, records, mut entropy) = (realm(None), Records::default(), Counted::default());
        log_in(&realm, &records, &mut entropy, "alice");
        let reference = sessions_of(&realm, &records, "alice")[0].reference;
        let store = Hasty(&realm, &records, reference);
        assert_eq!(at_once(end_one(&realm, &store, &reference)), Err(Refusal::Gone));
    }
}
