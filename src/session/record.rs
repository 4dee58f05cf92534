//! What is kept of a session, and how it is written down: a version, then fields of fixed length, texts behind their
//! length. A reader takes nothing for granted: whatever does not read as written is no record.

use zeroize::Zeroizing;

use super::cookie::SECRET_BYTES;
use super::store::{ID_BYTES, Id};
use super::vault::Jar;
use crate::keys::KeyId;

/// What a cookie leads to.
#[derive(Clone, PartialEq, Eq)]
pub struct Handle {
    pub lineage: Id,
    /// Opens the lineage record; never in the store but in here.
    pub data_key: Zeroizing<[u8; 32]>,
    /// How many handles the lineage had before.
    pub generation: u32,
    pub issued: u64,
    /// From then on it leads nowhere, whatever the store keeps; in seconds since 1970.
    pub not_after: u64,
    /// The record of who has logged in.
    pub subject: Option<Id>,
    pub state: HandleState,
}

impl std::fmt::Debug for Handle {
    /// Without its secrets.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Handle(generation {}, not after {})", self.generation, self.not_after)
    }
}

/// Whether a handle is the one in use.
#[derive(Clone, PartialEq, Eq)]
pub enum HandleState {
    /// `confirmed`: a client has shown it, so its predecessor is in no honest hands any more.
    Live { confirmed: bool },
    /// Given up at a renewal; `key` and `successor` make the cookie that follows.
    Superseded { at: u64, key: KeyId, successor: Zeroizing<[u8; SECRET_BYTES]> },
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// A public name of the session, the same for as long as it lives.
    pub sid: Sid,
    pub created: u64,
    /// Counts the writes of the data.
    pub version: u64,
    /// The handles that it has, and those it had that may still be shown; the youngest last.
    pub handles: Vec<Id>,
    pub login: Option<Login>,
    /// A JSON object.
    pub data: Box<str>,
    /// Cookies of the application that the browser never has.
    pub vault: Jar,
}

/// A public name of a session: harmless in logs, useless as a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sid(pub [u8; 16]);

impl std::fmt::Display for Sid {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&data_encoding::BASE64URL_NOPAD.encode(&self.0))
    }
}

impl Sid {
    /// Reads what [`std::fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        Some(Sid(bytes.try_into().ok()?))
    }
}

/// What a session counts under; who changes a subject's ends its sessions.
pub type Generation = [u8; 16];

/// Who has logged in, how, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub subject: Box<str>,
    pub at: u64,
    pub acr: Box<str>,
    pub amr: Vec<Box<str>>,
    pub generation: Generation,
}

/// Whose sessions count, and which there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub realm: Box<str>,
    pub name: Box<str>,
    pub generation: Generation,
    /// The one session that goes on when all others were ended, under the generation that it was made with.
    pub spared: Option<(Id, Generation)>,
    /// The youngest last.
    pub sessions: Vec<Listed>,
}

/// A session as its subject's record names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub sid: Sid,
    pub tag: u16,
    pub lineage: Id,
    pub created: u64,
}

/// Handles that a lineage remembers: as many as a day of renewals every fifteen minutes makes.
pub const MOST_HANDLES: usize = 96;
/// Sessions that a subject's record names. Whoever has more still loses all of them at a logout of all.
pub const MOST_LISTED: usize = 64;

impl Lineage {
    /// Remembers one more handle; the oldest is forgotten past the bound.
    pub fn remember(&mut self, handle: Id) {
        if self.handles.len() >= MOST_HANDLES {
            self.handles.remove(0);
        }
        self.handles.push(handle);
    }
}

impl Subject {
    /// Whether a session under this generation still counts.
    pub fn counts(&self, lineage: &Id, generation: &Generation) -> bool {
        self.generation == *generation || self.spared.is_some_and(|spared| spared == (*lineage, *generation))
    }

    /// Names one more session; the oldest is no longer named past the bound.
    pub fn list(&mut self, session: Listed) {
        if self.sessions.len() >= MOST_LISTED {
            self.sessions.remove(0);
        }
        self.sessions.push(session);
    }
}

const VERSION: u8 = 1;

/// Writes fields one after the other.
struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    fn new() -> Self {
        Writer(Zeroizing::new(vec![VERSION]))
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.bytes(&number.to_be_bytes())
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.count(text.len()).bytes(text.as_bytes())
    }

    fn count(&mut self, count: usize) -> &mut Self {
        // Every list and text is bounded far below this.
        self.bytes(&u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes())
    }
}

/// Reads them back.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        bytes.strip_prefix(&[VERSION]).map(Reader)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn count(&mut self) -> Option<usize> {
        self.array().map(|bytes| u32::from_be_bytes(bytes) as usize)
    }

    fn text(&mut self) -> Option<Box<str>> {
        let length = self.count()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok().map(Box::from)
    }

    /// As many as are there; a count that lies ends at the end of the bytes.
    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.count()?;
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(one(self)?);
        }
        Some(list)
    }

    fn end<T>(&self, read: T) -> Option<T> {
        self.0.is_empty().then_some(read)
    }
}

impl Handle {
    /// As it is sealed.
    pub fn write(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Writer::new();
        out.bytes(&self.lineage)
            .bytes(self.data_key.as_slice())
            .bytes(&self.generation.to_be_bytes())
            .number(self.issued)
            .number(self.not_after);
        match &self.subject {
            None => out.bytes(&[0]),
            Some(subject) => out.bytes(&[1]).bytes(subject),
        };
        match &self.state {
            HandleState::Live { confirmed } => out.bytes(&[u8::from(*confirmed)]),
            HandleState::Superseded { at, key, successor } => {
                out.bytes(&[2]).number(*at).bytes(&key.0).bytes(successor.as_slice())
            }
        };
        out.0
    }

    /// Reads what [`Handle::write`] wrote.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader::new(bytes)?;
        let handle = Handle {
            lineage: from.array()?,
            data_key: Zeroizing::new(from.array()?),
            generation: from.array().map(u32::from_be_bytes)?,
            issued: from.number()?,
            not_after: from.number()?,
            subject: match from.array()? {
                [0] => None,
                [1] => Some(from.array()?),
                _ => return None,
            },
            state: match from.array()? {
                [confirmed @ (0 | 1)] => HandleState::Live { confirmed: confirmed == 1 },
                [2] => HandleState::Superseded {
                    at: from.number()?,
                    key: KeyId(from.array()?),
                    successor: Zeroizing::new(from.array()?),
                },
                _ => return None,
            },
        };
        from.end(handle)
    }
}

impl Lineage {
    /// As it is sealed.
    pub fn write(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Writer::new();
        out.bytes(&self.sid.0).number(self.created).number(self.version).count(self.handles.len());
        for handle in &self.handles {
            out.bytes(handle);
        }
        match &self.login {
            None => out.bytes(&[0]),
            Some(login) => {
                out.bytes(&[1]).text(&login.subject).number(login.at).text(&login.acr).count(login.amr.len());
                for method in &login.amr {
                    out.text(method);
                }
                out.bytes(&login.generation)
            }
        };
        out.text(&self.data);
        // Most have none, and look as before there was a vault.
        if !self.vault.is_empty() {
            out.bytes(&self.vault.write());
        }
        out.0
    }

    /// Reads what [`Lineage::write`] wrote.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader::new(bytes)?;
        let lineage = Lineage {
            sid: Sid(from.array()?),
            created: from.number()?,
            version: from.number()?,
            handles: from.list(Reader::array::<ID_BYTES>)?,
            login: match from.array()? {
                [0] => None,
                [1] => Some(Login {
                    subject: from.text()?,
                    at: from.number()?,
                    acr: from.text()?,
                    amr: from.list(Reader::text)?,
                    generation: from.array()?,
                }),
                _ => return None,
            },
            data: from.text()?,
            vault: match from.0 {
                [] => Jar::default(),
                // It has to be all that is left.
                kept => {
                    from.0 = &[];
                    Jar::read(kept)?
                }
            },
        };
        from.end(lineage)
    }
}

impl Subject {
    /// As it is sealed.
    pub fn write(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Writer::new();
        out.text(&self.realm).text(&self.name).bytes(&self.generation);
        match &self.spared {
            None => out.bytes(&[0]),
            Some((lineage, generation)) => out.bytes(&[1]).bytes(lineage).bytes(generation),
        };
        out.count(self.sessions.len());
        for session in &self.sessions {
            out.bytes(&session.sid.0).bytes(&session.tag.to_be_bytes()).bytes(&session.lineage).number(session.created);
        }
        out.0
    }

    /// Reads what [`Subject::write`] wrote.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader::new(bytes)?;
        let subject = Subject {
            realm: from.text()?,
            name: from.text()?,
            generation: from.array()?,
            spared: match from.array()? {
                [0] => None,
                [1] => Some((from.array()?, from.array()?)),
                _ => return None,
            },
            sessions: from.list(|from| {
                Some(Listed {
                    sid: Sid(from.array()?),
                    tag: from.array().map(u16::from_be_bytes)?,
                    lineage: from.array()?,
                    created: from.number()?,
                })
            })?,
        };
        from.end(subject)
    }
}

#[cfg(test)]
mod tests {
    use super::super::vault::{self, Kept};
    use super::*;
    use proptest::prelude::*;

    fn handle(state: HandleState) -> Handle {
        Handle {
            lineage: [1; 20],
            data_key: Zeroizing::new([2; 32]),
            generation: 3,
            issued: 4,
            not_after: 5,
            subject: Some([6; 20]),
            state,
        }
    }

    fn lineage() -> Lineage {
        let login = Login {
            subject: "alice".into(),
            at: 9,
            acr: "mfa".into(),
            amr: vec!["pwd".into(), "otp".into()],
            generation: [8; 16],
        };
        Lineage {
            sid: Sid([1; 16]),
            created: 2,
            version: 3,
            handles: vec![[4; 20], [5; 20]],
            login: Some(login),
            data: r#"{"cart":["teapot"]}"#.into(),
            vault: Jar::default(),
        }
    }

    fn with_vault() -> Lineage {
        let (name, value, path) = ("sessionid".into(), (*b"abc").into(), "/".into());
        let mut lineage = lineage();
        let kept = Kept { name, value, path, expires_at: None };
        lineage.vault.apply(&[vault::Change::Set(kept)], 0).unwrap();
        lineage
    }

    fn subject() -> Subject {
        let session = Listed { sid: Sid([1; 16]), tag: 77, lineage: [2; 20], created: 3 };
        let (realm, name) = ("shop".into(), "alice".into());
        Subject { realm, name, generation: [4; 16], spared: Some(([5; 20], [6; 16])), sessions: vec![session] }
    }

    #[test]
    fn records_read_back() {
        let superseded = HandleState::Superseded { at: 7, key: KeyId([1; 4]), successor: Zeroizing::new([8; 32]) };
        for handle in [handle(HandleState::Live { confirmed: true }), handle(superseded)] {
            assert_eq!(Handle::read(&handle.write()), Some(handle));
        }
        assert_eq!(Lineage::read(&lineage().write()), Some(lineage()));
        assert_eq!(Lineage::read(&with_vault().write()), Some(with_vault()));
        assert_eq!(Subject::read(&subject().write()), Some(subject()));
    }

    #[test]
    fn a_record_that_was_cut_or_has_more_is_none() {
        let whole = lineage().write();
        for length in 0..whole.len() {
            assert_eq!(Lineage::read(&whole[..length]), None, "{length}");
        }
        assert_eq!(Lineage::read(&[&whole[..], &[0]].concat()), None);
        let vaulted = with_vault().write();
        for length in whole.len() + 1..vaulted.len() {
            assert_eq!(Lineage::read(&vaulted[..length]), None, "{length}");
        }
        assert_eq!(Lineage::read(&[&vaulted[..], &[0]].concat()), None);
    }

    #[test]
    fn lists_are_bounded() {
        let (mut lineage, mut subject) = (lineage(), subject());
        for number in 0..200 {
            lineage.remember([number; 20]);
            subject.list(Listed { sid: Sid([number; 16]), tag: 0, lineage: [0; 20], created: 0 });
        }
        assert_eq!((lineage.handles.len(), subject.sessions.len()), (MOST_HANDLES, MOST_LISTED));
        assert_eq!(lineage.handles.last(), Some(&[199; 20]));
    }

    #[test]
    fn all_but_the_spared_session_end_with_a_generation() {
        let subject = subject();
        assert!(subject.counts(&[9; 20], &[4; 16]) && subject.counts(&[5; 20], &[6; 16]));
        assert!(!subject.counts(&[9; 20], &[6; 16]) && !subject.counts(&[5; 20], &[7; 16]));
    }

    proptest! {
        #[test]
        fn garbage_is_no_record_and_harms_nobody(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let with_version = [&[VERSION], &bytes[..]].concat();
            for bytes in [&bytes, &with_version] {
                let _ = (Handle::read(bytes), Lineage::read(bytes), Subject::read(bytes));
            }
        }
    }
}
