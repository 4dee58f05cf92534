//! What a store has to do for sessions: four primitives, the same for every kind of store.
//!
//! Everything that happens to a session is one [`Change`]: a condition on one record, its *guard*, and what is written
//! and deleted if it holds, all in one shard and all at once. The guard is the session's lineage record, which every
//! change writes or deletes; so changes of one session are in one order, whatever they touch besides. Nothing is
//! written over a record that has gone: that would bring a session back that was logged out.
//!
//! A store sees keyed names and sealed values.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use crate::names::StoreFault;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// What a cookie leads to.
    Handle,
    /// A session.
    Lineage,
    /// Whose sessions count.
    Subject,
    /// Tokens that count no more, in stateless mode.
    Revocations,
}

impl Kind {
    /// The letter that stands for it in a store's keys.
    pub const fn letter(self) -> char {
        match self {
            Kind::Handle => 'h',
            Kind::Lineage => 'd',
            Kind::Subject => 'n',
            Kind::Revocations => 'r',
        }
    }

    /// The kind that a letter stands for.
    pub const fn of_letter(letter: u8) -> Option<Self> {
        match letter {
            b'h' => Some(Kind::Handle),
            b'd' => Some(Kind::Lineage),
            b'n' => Some(Kind::Subject),
            b'r' => Some(Kind::Revocations),
            _ => None,
        }
    }
}

/// Bytes of a record's name.
pub const ID_BYTES: usize = 20;

/// The name of a record: random, or a keyed hash.
pub type Id = [u8; ID_BYTES];

/// Where a record is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// What keeps the records of a session together: 14 bits.
    pub tag: u16,
    pub kind: Kind,
    pub id: Id,
}

/// The bits of a tag.
pub const TAG_BITS: u32 = 14;

impl Key {
    /// The record of a subject, in a shard of its own.
    pub const fn subject(id: Id) -> Self {
        Key { tag: u16::from_be_bytes([id[0], id[1]]) >> (16 - TAG_BITS), kind: Kind::Subject, id }
    }

    /// As it is written in stores that have text for keys; what is in braces is what Redis Cluster shards by.
    pub fn text(&self) -> String {
        let id = data_encoding::BASE64URL_NOPAD.encode(&self.id);
        format!("sf1:{{{}}}:{}:{id}", self.tag, self.kind.letter())
    }

    /// Reads what [`Key::text`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let (tag, rest) = text.strip_prefix("sf1:{")?.split_once("}:")?;
        let (kind, id) = rest.split_once(':')?;
        let kind = Kind::of_letter(*kind.as_bytes().first().filter(|_| kind.len() == 1)?)?;
        let id = data_encoding::BASE64URL_NOPAD.decode(id.as_bytes()).ok()?.try_into().ok()?;
        Some(Key { tag: tag.parse().ok().filter(|tag| tag >> TAG_BITS == 0)?, kind, id })
    }
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Grows with each write of the record.
    pub revision: u64,
    pub value: Bytes,
    /// Until it is forgotten, if nobody touches it.
    pub expires_in: Duration,
}

/// The revision of a record that is written again. By how much it grows is random: after a failover that lost a write, the
/// next one is not to look like the one that was lost to whoever has read that.
pub fn next_revision(revision: u64) -> u64 {
    revision.saturating_add(1 + u64::from(fastrand::u16(..)))
}

/// Who goes first when a store is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Anonymous,
    Authenticated,
    /// Never goes: without it something would count again.
    Kept,
}

/// A record as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub key: Key,
    pub revision: u64,
    pub value: Bytes,
    pub expires_in: Duration,
    pub class: Class,
}

/// What has to be so for a change to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// There is no such record.
    Absent(Key),
    /// The record is there, and still as it was read.
    Unchanged(Key, u64),
}

impl Guard {
    /// The record that it is about.
    pub const fn key(&self) -> Key {
        match self {
            Guard::Absent(key) | Guard::Unchanged(key, _) => *key,
        }
    }
}

/// Everything or nothing, in one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub guard: Guard,
    pub put: Vec<Put>,
    pub delete: Vec<Key>,
    /// It is done only when it would survive the death of the process (or, where there are replicas, of a node).
    pub durable: bool,
}

/// What a store is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The records of these keys, of any shards.
    Read(Vec<Key>),
    Change(Change),
    /// Records that are there live on for so long from now.
    Touch(Vec<(Key, Duration)>),
    /// These go, whatever they are now.
    Delete(Vec<Key>),
}

/// What a store answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// By position of the key.
    Entries(Vec<Option<Entry>>),
    /// Whether the guard held.
    Changed(bool),
    Done,
}

/// Why a store does not answer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    #[error("the store did not answer in time")]
    TimedOut,
    #[error("the store is resting after failures")]
    Resting,
    #[error("the store has no room")]
    Full,
    #[error("the store gave an answer to another question")]
    Confused,
}

impl StoreError {
    /// The word for metrics.
    pub const fn word(&self) -> StoreFault {
        match self {
            StoreError::Unavailable(_) => StoreFault::Unavailable,
            StoreError::TimedOut => StoreFault::TimedOut,
            StoreError::Resting => StoreFault::Resting,
            StoreError::Full => StoreFault::Full,
            StoreError::Confused => StoreFault::Confused,
        }
    }
}

/// An answer under way.
pub type Asking<'a> = Pin<Box<dyn Future<Output = Result<Answer, StoreError>> + 'a>>;

/// Where sessions are kept.
pub trait SessionStore {
    /// Asks; the answer comes within the store's deadline.
    fn ask(&self, ask: Ask) -> Asking<'_>;

    /// A moment's rest before a change is tried again that somebody else was ahead of.
    fn pause(&self, _tries: u32) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(std::future::ready(()))
    }
}

/// Reads records.
pub async fn read<const N: usize>(store: &dyn SessionStore, keys: [Key; N]) -> Result<[Option<Entry>; N], StoreError> {
    match store.ask(Ask::Read(keys.to_vec())).await? {
        Answer::Entries(entries) => entries.try_into().map_err(|_| StoreError::Confused),
        _ => Err(StoreError::Confused),
    }
}

/// Makes a change; false: its guard did not hold.
pub async fn change(store: &dyn SessionStore, change: Change) -> Result<bool, StoreError> {
    match store.ask(Ask::Change(change)).await? {
        Answer::Changed(done) => Ok(done),
        _ => Err(StoreError::Confused),
    }
}
