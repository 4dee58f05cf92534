//! The keys and rules of one realm: what records are called, how they are sealed, how long they count.
//!
//! Everything is derived from the ring with the realm's name, so a cookie of one realm opens nothing in another. The name
//! of a handle's record is a keyed hash of the cookie's secret, and its key is derived from that secret and the ring key:
//! who has the store has no cookies, and who has the store and a cookie still needs the ring. The lineage record's key is
//! in the handle record. Each sealed value is bound to its name, its kind and the number of its writes, so values that
//! were swapped, or belong to another question, do not open.

use std::time::Duration;

use zeroize::Zeroizing;

use super::cookie::SessionCookie;
use super::record::{Handle, Lineage, Sid, Subject};
use super::store::{Class, Entry, Id, Key, Kind, Put};
use crate::keys::{Aead, Hasher, KeyId, KeyRing, derive_own};

/// How long sessions last, and what happens at their turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Without a request.
    pub idle: Duration,
    /// From the login on.
    pub absolute: Duration,
    /// Without a request, before a login.
    pub anonymous: Duration,
    /// How long a cookie is used before it gets a successor.
    pub renew: Duration,
    /// How long a cookie still counts after it got one.
    pub grace: Duration,
    pub on_reuse: OnReuse,
    /// Keys of the data that survive a login; none: all.
    pub carry: Option<Vec<Box<str>>>,
    /// The largest data.
    pub most_bytes: usize,
}

crate::names::words! {
    /// What happens when a cookie is shown whose successor is in use: one of the two is a copy.
    OnReuse {
        /// The session ends, for both.
        Kill = "kill",
        Log = "log",
    }
}

/// One ring key's part of a realm.
struct RealmKey {
    id: KeyId,
    lookup: Hasher,
    seal: Zeroizing<[u8; 32]>,
    subjects: Hasher,
    subject_seal: Aead,
}

/// Pools of one realm share their sessions.
pub struct Realm {
    pub name: Box<str>,
    pub rules: Rules,
    /// The first one makes new sessions.
    keys: Vec<RealmKey>,
    references: Hasher,
    csrf: Vec<Hasher>,
    /// Breaks a rule, to see that the model notices.
    #[cfg(test)]
    pub(super) fault: Option<super::model::Fault>,
}

/// What is left of a handle that was given up at a login or logout: that it is not to be used again. The lineage that
/// followed may stand behind it.
const MUTED: &[u8] = b"muted";

/// What the store has under a handle's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Handle(Box<Handle>),
    Muted(Option<Id>),
    /// It does not open.
    Unreadable,
}

impl Realm {
    /// The realm of this name.
    pub fn new(name: &str, ring: &KeyRing, rules: Rules) -> Self {
        let derive = |label: &str| ring.derive(label, name.as_bytes());
        let (lookups, seals) = (derive("steadfast session lookup v1"), derive("steadfast session seal v1"));
        let (subjects, metas) = (derive("steadfast session subjects v1"), derive("steadfast session meta v1"));
        let keys = lookups.iter().zip(seals).zip(subjects.iter().zip(metas));
        let keys = keys.map(|(((id, lookup), (_, seal)), ((_, subjects), (_, meta)))| RealmKey {
            id: *id,
            lookup: Hasher::of_secret(lookup),
            seal,
            subjects: Hasher::of_secret(subjects),
            subject_seal: Aead::new(&meta),
        });
        let first = |label: &str| Hasher::of_secret(&derive(label)[0].1);
        Realm {
            name: name.into(),
            rules,
            keys: keys.collect(),
            references: first("steadfast session reference v1"),
            csrf: derive("steadfast session csrf v1").iter().map(|(_, secret)| Hasher::of_secret(secret)).collect(),
            #[cfg(test)]
            fault: None,
        }
    }

    /// The key that new sessions are made with.
    pub fn sealing_key(&self) -> KeyId {
        self.keys[0].id
    }

    /// Whether a cookie's key is in the ring.
    pub fn knows(&self, cookie: &SessionCookie) -> bool {
        self.key(cookie.key).is_some()
    }

    fn key(&self, id: KeyId) -> Option<&RealmKey> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// Where the record of a cookie's handle is; nothing when its key is in no ring of ours.
    pub fn handle_key(&self, cookie: &SessionCookie) -> Option<Key> {
        let id = self.key(cookie.key)?.lookup.tag(&[b"h", cookie.secret.as_slice()].concat());
        Some(Key { tag: cookie.tag, kind: Kind::Handle, id })
    }

    /// Where the record of a subject is, under each key of the ring; the first is where it is made.
    pub fn subject_keys(&self, name: &str) -> Vec<Key> {
        self.keys.iter().map(|key| Key::subject(key.subjects.tag(name.as_bytes()))).collect()
    }

    /// The public name of a lineage.
    pub fn sid(&self, lineage: &Id) -> Sid {
        Sid(self.references.tag(lineage))
    }

    /// What a form has to show to be of this session.
    /// One for each key of the ring, so that pages which stand open outlive a rotation; the first is what is handed out.
    pub fn csrf(&self, lineage: &Id) -> Vec<[u8; 32]> {
        self.csrf.iter().map(|hasher| hasher.tag(lineage)).collect()
    }

    /// How long a session lives on from now without a request.
    pub fn lifetime(&self, lineage: &Lineage, now: u64) -> Duration {
        match &lineage.login {
            None => self.rules.anonymous,
            Some(login) => {
                let left = (login.at + self.rules.absolute.as_secs()).saturating_sub(now);
                self.rules.idle.min(Duration::from_secs(left))
            }
        }
    }

    /// A handle's record, sealed.
    pub fn put_handle(
        &self,
        cookie: &SessionCookie,
        handle: &Handle,
        revision: u64,
        expires_in: Duration,
    ) -> Option<Put> {
        let key = self.handle_key(cookie)?;
        let value = self.handle_aead(cookie)?.seal(&about(key, revision), &handle.write()).into();
        let class = if handle.subject.is_some() { Class::Authenticated } else { Class::Anonymous };
        Some(Put { key, revision, value, expires_in, class })
    }

    fn handle_aead(&self, cookie: &SessionCookie) -> Option<Aead> {
        let shared = &self.key(cookie.key)?.seal;
        Some(Aead::new(&derive_own(shared, cookie.secret.as_slice(), "steadfast handle v1")))
    }

    /// Opens what was found under a cookie's handle.
    pub fn open_handle(&self, cookie: &SessionCookie, entry: &Entry) -> Found {
        if let Some(next) = entry.value.strip_prefix(MUTED) {
            return Found::Muted(next.try_into().ok());
        }
        let opened = || {
            let about = about(self.handle_key(cookie)?, entry.revision);
            Handle::read(&self.handle_aead(cookie)?.open(&about, &entry.value)?)
        };
        opened().map_or(Found::Unreadable, |handle| Found::Handle(Box::new(handle)))
    }

    /// A lineage's record, sealed.
    pub fn put_lineage(&self, key: Key, data_key: &[u8; 32], lineage: &Lineage, revision: u64, now: u64) -> Put {
        let value = Aead::new(data_key).seal(&about(key, revision), &lineage.write()).into();
        let class = if lineage.login.is_some() { Class::Authenticated } else { Class::Anonymous };
        Put { key, revision, value, expires_in: self.lifetime(lineage, now), class }
    }

    /// Opens a lineage's record.
    pub fn open_lineage(key: Key, data_key: &[u8; 32], entry: &Entry) -> Option<Lineage> {
        Lineage::read(&Aead::new(data_key).open(&about(key, entry.revision), &entry.value)?)
    }

    /// How long a subject's record lives on without a login.
    pub fn subject_lifetime(&self) -> Duration {
        self.rules.absolute + Duration::from_secs(3_600)
    }

    /// A subject's record, sealed. It outlives every session that it speaks for.
    pub fn put_subject(&self, key: Key, subject: &Subject, revision: u64) -> Option<Put> {
        let own = self.keys.iter().find(|own| own.subjects.tag(subject.name.as_bytes()) == key.id)?;
        let value = own.subject_seal.seal(&about(key, revision), &subject.write()).into();
        Some(Put { key, revision, value, expires_in: self.subject_lifetime(), class: Class::Authenticated })
    }

    /// Opens a subject's record, whoever's of this realm it is.
    pub fn open_subject(&self, key: Key, entry: &Entry) -> Option<Subject> {
        let opened = self.keys.iter().find_map(|own| own.subject_seal.open(&about(key, entry.revision), &entry.value));
        Subject::read(&opened?)
    }
}

/// What a sealed value is bound to.
fn about(key: Key, revision: u64) -> [u8; 32] {
    let mut about = [0; 32];
    about[0] = 1;
    about[1] = key.kind.letter() as u8;
    about[2..4].copy_from_slice(&key.tag.to_be_bytes());
    about[4..24].copy_from_slice(&key.id);
    about[24..].copy_from_slice(&revision.to_be_bytes());
    about
}

/// The record that says that a handle is not to be used again. It needs no secret: every handle of a lineage can be
/// muted, whoever has its cookie. `next`: what follows for the same user, so that a logout that was on its way ends that.
pub fn mute(key: Key, next: Option<&Id>) -> Put {
    let value = [MUTED, next.map_or(&[][..], |next| next)].concat();
    // Above every number of writes that a handle can have had.
    Put { key, revision: 1 << 32, value: value.into(), expires_in: MUTED_FOR, class: Class::Authenticated }
}

/// How long a handle that was given up is remembered as such.
pub const MUTED_FOR: Duration = Duration::from_secs(60);
