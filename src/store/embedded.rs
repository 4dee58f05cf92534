//! The embedded store: memory is the truth, and a file follows.
//!
//! Records are in shards by their tag, each under a lock of its own that is held for a few look-ups; so a change of one
//! session is atomic, and an answer is there at once. Where there is a file (redb), a thread of its own writes what has
//! changed, many changes in one commit: at most [`INTERVAL`] is lost with the process, and nothing of a change that asks
//! to be durable, which waits for its commit. What is to be written is kept by record: a record that changes ten times
//! between two commits is written once, and there is never more to write than there is.
//!
//! Memory is bounded. What was written or touched longest ago goes first, anonymous sessions before others;
//! what revokes never goes.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::oneshot;

use crate::clock::{Clock, Wall};
use crate::session::store::{
    Answer, Ask, Asking, Change, Class, Entry, Guard, Id, Key, Kind, Put, SessionStore, StoreError,
};

const SHARDS: usize = 64;
/// What a record takes besides its value: key, place in the table, place in the queue.
const RECORD_BYTES: usize = 160;
/// How long a change that has to last may take.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a change may wait for others to be written with.
pub const INTERVAL: Duration = Duration::from_millis(50);

/// Records in memory, shared between workers.
pub struct Embedded {
    shards: Vec<Mutex<Shard>>,
    /// Bytes of one shard.
    budget: usize,
    evicted: AtomicU64,
    file: Option<File>,
}

#[derive(Default)]
struct Shard {
    records: HashMap<Key, Record>,
    bytes: usize,
    /// By class: which was written or touched when, the oldest first. An entry counts if its stamp is the record's.
    order: [VecDeque<(Key, u64)>; 2],
    stamp: u64,
}

#[derive(Clone)]
struct Record {
    revision: u64,
    value: Bytes,
    /// Wall-clock microseconds.
    expires: u64,
    class: Class,
    stamp: u64,
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "{0} is in use by another process (or still by this one, after a reload): a store in a file is for one proxy; several share one over Redis"
    )]
    InUse(String),
    #[error("{0} cannot be used: {1}")]
    Broken(String, String),
}

impl Embedded {
    /// An empty store of this many bytes.
    pub fn in_memory(memory: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Embedded { shards, budget: memory / SHARDS, evicted: AtomicU64::new(0), file: None }
    }

    /// A store that survives in a file.
    pub fn in_file(path: &Path, memory: usize) -> Result<Self, OpenError> {
        let mut store = Self::in_memory(memory);
        let (file, mut records) = File::open(path)?;
        // What ends first is the oldest, as far as that can be told.
        records.sort_by_key(|(_, record)| record.expires);
        store.file = Some(file);
        let now = wall();
        for (key, record) in records {
            if record.expires > now {
                store.shard(key).lock().insert(key, record);
            } else {
                store.write(&[(key, None)], None);
            }
        }
        store.shards.iter().for_each(|shard| store.make_room(&mut shard.lock()));
        Ok(store)
    }

    fn shard(&self, key: Key) -> &Mutex<Shard> {
        &self.shards[usize::from(key.tag) % SHARDS]
    }

    /// Records that had to make room.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Records, and the bytes that they take.
    pub fn size(&self) -> (usize, usize) {
        let sizes = self.shards.iter().map(|shard| {
            let shard = shard.lock();
            (shard.records.len(), shard.bytes)
        });
        sizes.fold((0, 0), |(records, bytes), (more, larger)| (records + more, bytes + larger))
    }

    /// Forgets what has expired in one shard after the other; to be called about once a second.
    pub fn sweep(&self, turn: usize) {
        let now = wall();
        let mut shard = self.shards[turn % SHARDS].lock();
        let expired = shard.records.iter().filter(|(_, record)| record.expires <= now);
        let expired: Vec<Key> = expired.map(|(key, _)| *key).collect();
        self.write(&expired.iter().map(|key| (*key, None)).collect::<Vec<_>>(), None);
        expired.iter().for_each(|key| shard.remove(key));
    }

    /// Every subject's record, for people who look.
    pub fn subjects(&self) -> Vec<(Key, Entry)> {
        let now = wall();
        let of = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            let subjects = shard.records.iter().filter(|(key, _)| key.kind == Kind::Subject);
            subjects.filter_map(|(key, record)| Some((*key, record.entry(now)?))).collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(of).collect()
    }

    fn read(&self, keys: &[Key]) -> Answer {
        let now = wall();
        let entries = keys.iter().map(|key| self.shard(*key).lock().records.get(key)?.entry(now));
        Answer::Entries(entries.collect())
    }

    /// Whether the guard held, and what to wait for.
    fn change(&self, change: Change) -> Result<(bool, Option<oneshot::Receiver<()>>), StoreError> {
        let now = wall();
        if change.put.iter().any(|put| put.value.len() + RECORD_BYTES > self.budget) {
            return Err(StoreError::Full);
        }
        let mut shard = self.shard(change.guard.key()).lock();
        let found = shard.records.get(&change.guard.key()).filter(|record| record.expires > now);
        let holds = match change.guard {
            Guard::Absent(_) => found.is_none(),
            Guard::Unchanged(_, revision) => found.is_some_and(|record| record.revision == revision),
        };
        if !holds {
            return Ok((false, None));
        }
        let put = change.put.into_iter().map(|put| Record::of(put, now));
        let mut written: Vec<(Key, Option<Record>)> = put.map(|(key, record)| (key, Some(record))).collect();
        written.extend(change.delete.into_iter().map(|key| (key, None)));
        let stays: Vec<Key> = written.iter().filter(|(_, record)| record.is_some()).map(|(key, _)| *key).collect();
        let committed = self.write(&written, Some(change.durable));
        for (key, record) in written {
            match record {
                Some(record) => shard.insert(key, record),
                None => shard.remove(&key),
            }
        }
        self.make_room(&mut shard);
        // A store full of what has to stay has no room for what would have to go at once.
        if stays.iter().any(|key| !shard.records.contains_key(key)) {
            return Err(StoreError::Full);
        }
        Ok((true, committed))
    }

    fn make_room(&self, shard: &mut Shard) {
        while shard.bytes > self.budget {
            let Some(key) = shard.oldest() else { return };
            self.write(&[(key, None)], None);
            shard.remove(&key);
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn touch(&self, keys: &[(Key, Duration)]) {
        let now = wall();
        for (key, span) in keys {
            let mut shard = self.shard(*key).lock();
            let Some(mut record) = shard.records.get(key).filter(|record| record.expires > now).cloned() else {
                continue;
            };
            record.expires = later(now, *span);
            self.write(&[(*key, Some(record.clone()))], None);
            shard.insert(*key, record);
        }
    }

    fn delete(&self, keys: &[Key]) -> Option<oneshot::Receiver<()>> {
        let mut committed = None;
        for key in keys {
            let mut shard = self.shard(*key).lock();
            committed = self.write(&[(*key, None)], Some(true));
            shard.remove(key);
        }
        committed
    }

    /// Hands changes to the file's thread, while the shard is locked: so the file sees a record's changes in their order.
    fn write(&self, changes: &[(Key, Option<Record>)], durable: Option<bool>) -> Option<oneshot::Receiver<()>> {
        self.file.as_ref().and_then(|file| file.write(changes, durable == Some(true)))
    }
}

fn wall() -> u64 {
    let Wall(micros) = Clock::wall(Clock::now());
    micros
}

fn later(now: u64, span: Duration) -> u64 {
    now.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX))
}

impl Record {
    fn of(put: Put, now: u64) -> (Key, Self) {
        let Put { key, revision, value, expires_in, class } = put;
        (key, Record { revision, value, expires: later(now, expires_in), class, stamp: 0 })
    }

    fn entry(&self, now: u64) -> Option<Entry> {
        let left = self.expires.checked_sub(now).filter(|left| *left > 0)?;
        Some(Entry { revision: self.revision, value: self.value.clone(), expires_in: Duration::from_micros(left) })
    }

    fn bytes(&self) -> usize {
        self.value.len() + RECORD_BYTES
    }
}

impl Shard {
    fn insert(&mut self, key: Key, mut record: Record) {
        self.stamp += 1;
        record.stamp = self.stamp;
        self.bytes += record.bytes();
        if record.class != Class::Kept {
            self.order[record.class as usize].push_back((key, record.stamp));
        }
        if let Some(before) = self.records.insert(key, record) {
            self.bytes -= before.bytes();
        }
        self.tidy();
    }

    fn remove(&mut self, key: &Key) {
        if let Some(record) = self.records.remove(key) {
            self.bytes -= record.bytes();
        }
    }

    /// Takes out what no longer counts once it is more than half.
    fn tidy(&mut self) {
        let queued: usize = self.order.iter().map(VecDeque::len).sum();
        if queued > 2 * self.records.len() + 64 {
            let records = &self.records;
            for order in &mut self.order {
                order.retain(|(key, stamp)| records.get(key).is_some_and(|record| record.stamp == *stamp));
            }
        }
    }

    /// What is to go first.
    fn oldest(&mut self) -> Option<Key> {
        let records = &self.records;
        self.order.iter_mut().find_map(|order| {
            while let Some((key, stamp)) = order.pop_front() {
                if records.get(&key).is_some_and(|record| record.stamp == stamp) {
                    return Some(key);
                }
            }
            None
        })
    }
}

impl SessionStore for Embedded {
    fn ask(&self, ask: Ask) -> Asking<'_> {
        let (answer, committed) = match ask {
            Ask::Read(keys) => (Ok(self.read(&keys)), None),
            Ask::Change(change) => match self.change(change) {
                Ok((done, committed)) => (Ok(Answer::Changed(done)), committed),
                Err(error) => (Err(error), None),
            },
            Ask::Touch(keys) => {
                self.touch(&keys);
                (Ok(Answer::Done), None)
            }
            Ask::Delete(keys) => (Ok(Answer::Done), self.delete(&keys)),
        };
        match committed {
            None => Box::pin(std::future::ready(answer)),
            // Gone without a word: the disk does not take it.
            Some(committed) => Box::pin(async move {
                match tokio::time::timeout(COMMIT_TIMEOUT, committed).await {
                    Ok(Ok(())) => answer,
                    Ok(Err(_)) => Err(StoreError::Unavailable("the file cannot be written".to_owned())),
                    Err(_) => Err(StoreError::TimedOut),
                }
            }),
        }
    }
}

/// The file's side: what is to be written, and the thread that does.
struct File {
    pending: Arc<Pending>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Pending {
    batch: Mutex<Batch>,
    changed: Condvar,
}

#[derive(Default)]
struct Batch {
    records: HashMap<Key, Option<Record>>,
    waiting: Vec<oneshot::Sender<()>>,
    closed: bool,
}

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("steadfast sessions v1");

impl File {
    fn open(path: &Path) -> Result<(Self, Vec<(Key, Record)>), OpenError> {
        let name = || path.display().to_string();
        let broken = |error: &dyn std::fmt::Display| OpenError::Broken(name(), error.to_string());
        let database = Database::create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(name()),
            other => broken(&other),
        })?;
        let records = load(&database).map_err(|error| broken(&error))?;
        let pending = Arc::<Pending>::default();
        let of_thread = Arc::clone(&pending);
        let writing = std::thread::Builder::new().name("store-writer".to_owned());
        let path = path.to_owned();
        let thread = writing.spawn(move || write_batches(&path, database, &of_thread));
        let thread = thread.map_err(|error| OpenError::Broken("the store's thread".to_owned(), error.to_string()))?;
        Ok((File { pending, thread: Some(thread) }, records))
    }

    fn write(&self, changes: &[(Key, Option<Record>)], durable: bool) -> Option<oneshot::Receiver<()>> {
        let mut batch = self.pending.batch.lock();
        batch.records.extend(changes.iter().cloned());
        if !durable {
            return None;
        }
        let (committed, waiting) = oneshot::channel();
        batch.waiting.push(committed);
        self.pending.changed.notify_one();
        Some(waiting)
    }
}

impl Drop for File {
    /// Everything is in the file when the store has gone.
    fn drop(&mut self) {
        self.pending.batch.lock().closed = true;
        self.pending.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn load(database: &Database) -> Result<Vec<(Key, Record)>, redb::Error> {
    let writing = database.begin_write()?;
    writing.open_table(TABLE)?;
    writing.commit()?;
    let reading = database.begin_read()?;
    let table = reading.open_table(TABLE)?;
    let mut records = Vec::new();
    for row in table.iter()? {
        let (key, value) = row?;
        // What cannot be read is nobody's session.
        records.extend(read_key(key.value()).zip(read_record(value.value())));
    }
    Ok(records)
}

fn write_batches(path: &Path, database: Database, pending: &Pending) {
    // None after a failure: a database that has failed once takes nothing more until it is opened again.
    let mut database = Some(database);
    loop {
        let (records, waiting, closed) = {
            let mut batch = pending.batch.lock();
            if batch.waiting.is_empty() && !batch.closed {
                let _ = pending.changed.wait_for(&mut batch, INTERVAL);
            }
            (std::mem::take(&mut batch.records), std::mem::take(&mut batch.waiting), batch.closed)
        };
        if let Err(error) = commit_to(&mut database, path, &records) {
            tracing::error!(%error, "sessions cannot be written to the store's file; they are tried again");
            database = None;
            // What was changed since is newer.
            let mut batch = pending.batch.lock();
            for (key, record) in records {
                batch.records.entry(key).or_insert(record);
            }
            drop(batch);
            // Who waits is told.
            drop(waiting);
            if closed {
                return;
            }
            std::thread::sleep(AFTER_FAILURE);
            continue;
        }
        for committed in waiting {
            // Who waited may have left.
            let _ = committed.send(());
        }
        if closed {
            return;
        }
    }
}

/// How long the file is left alone after it could not be written.
const AFTER_FAILURE: Duration = Duration::from_millis(250);

/// Writes to the database, which is opened again where it has failed.
fn commit_to(
    database: &mut Option<Database>,
    path: &Path,
    records: &HashMap<Key, Option<Record>>,
) -> Result<(), redb::Error> {
    if records.is_empty() && database.is_some() {
        return Ok(());
    }
    let opened = match database.take() {
        Some(open) => open,
        None => Database::create(path)?,
    };
    commit(database.insert(opened), records)
}

fn commit(database: &Database, records: &HashMap<Key, Option<Record>>) -> Result<(), redb::Error> {
    let writing = database.begin_write()?;
    {
        let mut table = writing.open_table(TABLE)?;
        for (key, record) in records {
            match record {
                Some(record) => drop(table.insert(&*write_key(*key), &*write_record(record))?),
                None => drop(table.remove(&*write_key(*key))?),
            }
        }
    }
    writing.commit()?;
    Ok(())
}

fn write_key(key: Key) -> Vec<u8> {
    [&[key.kind.letter() as u8][..], &key.tag.to_be_bytes(), &key.id].concat()
}

fn read_key(bytes: &[u8]) -> Option<Key> {
    let (kind, rest) = bytes.split_first()?;
    let (tag, id) = rest.split_first_chunk()?;
    let id: Id = id.try_into().ok()?;
    Some(Key { tag: u16::from_be_bytes(*tag), kind: Kind::of_letter(*kind)?, id })
}

fn write_record(record: &Record) -> Vec<u8> {
    let class = record.class as u8;
    [&record.expires.to_be_bytes()[..], &record.revision.to_be_bytes(), &[class], &record.value].concat()
}

fn read_record(bytes: &[u8]) -> Option<Record> {
    let (expires, rest) = bytes.split_first_chunk()?;
    let (revision, rest) = rest.split_first_chunk()?;
    let (class, value) = rest.split_first()?;
    Some(Record {
        expires: u64::from_be_bytes(*expires),
        revision: u64::from_be_bytes(*revision),
        class: match class {
            0 => Class::Anonymous,
            1 => Class::Authenticated,
            _ => Class::Kept,
        },
        value: Bytes::copy_from_slice(value),
        stamp: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tag: u16, number: u32) -> Key {
        let mut id = [0; 20];
        id[..4].copy_from_slice(&number.to_be_bytes());
        Key { tag, kind: Kind::Lineage, id }
    }

    fn put(key: Key, revision: u64, value: &'static [u8], class: Class) -> Put {
        Put { key, revision, value: Bytes::from_static(value), expires_in: Duration::from_secs(60), class }
    }

    fn change(store: &Embedded, guard: Guard, put: Vec<Put>, delete: Vec<Key>) -> bool {
        store.change(Change { guard, put, delete, durable: false }).unwrap().0
    }

    fn value(store: &Embedded, key: Key) -> Option<Bytes> {
        match store.read(&[key]) {
            Answer::Entries(mut entries) => entries.remove(0).map(|entry| entry.value),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_store_lets_anonymous_sessions_go_first_and_the_oldest_of_them() {
        Clock::anchor();
        let store = Embedded::in_memory(SHARDS * 5 * (RECORD_BYTES + 1));
        for number in 0..6 {
            let class = if number == 0 { Class::Authenticated } else { Class::Anonymous };
            let put = put(key(0, number), 1, b"x", class);
            assert!(change(&store, Guard::Absent(key(0, number)), vec![put], Vec::new()));
            store.touch(&[(key(0, 1), Duration::from_secs(60))]);
        }
        let there: Vec<u32> = (0..6).filter(|number| value(&store, key(0, *number)).is_some()).collect();
        assert_eq!((there, store.evicted()), (vec![0, 1, 3, 4, 5], 1));
    }

    #[test]
    fn what_is_too_large_is_refused_and_nothing_is_lost_for_it() {
        Clock::anchor();
        let store = Embedded::in_memory(SHARDS * 300);
        assert!(change(&store, Guard::Absent(key(0, 1)), vec![put(key(0, 1), 1, b"x", Class::Anonymous)], Vec::new()));
        let large = Put { value: vec![0; 300].into(), ..put(key(0, 2), 1, b"", Class::Authenticated) };
        let refused = store.change(Change {
            guard: Guard::Absent(key(0, 2)),
            put: vec![large],
            delete: Vec::new(),
            durable: false,
        });
        assert_eq!(refused.err(), Some(StoreError::Full));
        assert!(value(&store, key(0, 1)).is_some());
    }

    #[test]
    fn a_file_holds_what_was_there_and_is_for_one_process() {
        Clock::anchor();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sessions.redb");
        let store = Embedded::in_file(&path, 1 << 20).unwrap();
        for number in 0..100 {
            let put = put(key(number as u16, number), 7, b"kept", Class::Authenticated);
            assert!(change(&store, Guard::Absent(put.key), vec![put], Vec::new()));
        }
        assert!(change(&store, Guard::Unchanged(key(3, 3), 7), Vec::new(), vec![key(3, 3)]));
        assert!(matches!(Embedded::in_file(&path, 1 << 20), Err(OpenError::InUse(_))));
        drop(store);
        let store = Embedded::in_file(&path, 1 << 20).unwrap();
        assert_eq!(store.size().0, 99);
        assert_eq!(value(&store, key(3, 3)), None);
        assert_eq!(value(&store, key(99, 99)), Some(Bytes::from_static(b"kept")));
    }

    #[test]
    fn what_has_expired_is_not_there_and_is_swept() {
        Clock::anchor();
        let store = Embedded::in_memory(1 << 20);
        let gone = Put { expires_in: Duration::ZERO, ..put(key(5, 1), 1, b"x", Class::Anonymous) };
        assert!(change(&store, Guard::Absent(key(5, 1)), vec![gone], Vec::new()));
        assert_eq!(value(&store, key(5, 1)), None);
        assert!(!change(&store, Guard::Unchanged(key(5, 1), 1), Vec::new(), Vec::new()), "it is not revived");
        (0..SHARDS).for_each(|turn| store.sweep(turn));
        assert_eq!(store.size(), (0, 0));
    }
}
