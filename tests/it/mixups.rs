//! Asks that are dropped at any await point: none hands its answer to another, on any store that is asked over a
//! network.
//!
//! (An asynchronous client for Redis once gave one user's answer to the next when a request was cancelled between its
//! question and its answer: redis-py 2624.)

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use steadfast::metrics::WorkerId;
use steadfast::session::store::{Answer, Ask, Change, Class, Entry, Guard, Key, Kind, Put, SessionStore};
use steadfast::store::{Client, KindSettings, MemcachedNode, MemcachedSettings, RedisSettings};
use tokio::task::LocalSet;

use crate::support::memcached::Memcached;
use crate::support::redis::Redis;
use crate::support::stores::open;

const OPERATIONS: u32 = 100_000;
/// Who asks at the same time, half of them through each client.
const TASKS: u32 = 32;
/// Records that there are; there are none of higher numbers.
const RECORDS: u16 = 256;
const PATIENCE: Duration = Duration::from_secs(20);
const LIFE: Duration = Duration::from_secs(3_600);

fn key(number: u16) -> Key {
    let mut id = [7; 20];
    id[..2].copy_from_slice(&number.to_be_bytes());
    Key { tag: number % 64, kind: Kind::Lineage, id }
}

/// What a record of this name holds at this revision: no other does. Some are longer than what is read at once.
fn value(number: u16, revision: u64) -> String {
    let length = if number.is_multiple_of(16) { 40_000 } else { usize::from(number) };
    format!("{} {revision} {}", key(number).text(), "x".repeat(length))
}

fn put(number: u16, revision: u64) -> Put {
    let value = value(number, revision).into();
    Put { key: key(number), revision, value, expires_in: LIFE, class: Class::Authenticated }
}

/// What everybody has seen.
struct Seen {
    completed: Cell<u32>,
    dropped: Cell<u32>,
    /// By record: the highest revision whose write was acknowledged.
    acknowledged: RefCell<Vec<u64>>,
}

impl Seen {
    fn count<T>(&self, answer: &Option<T>) {
        let counter = if answer.is_some() { &self.completed } else { &self.dropped };
        counter.set(counter.get() + 1);
    }

    fn acknowledged(&self, number: u16) -> u64 {
        self.acknowledged.borrow().get(usize::from(number)).copied().unwrap_or(0)
    }
}

/// How long somebody waits for an answer.
#[derive(Clone, Copy)]
struct Patience {
    polls: u32,
    between: Between,
}

/// What happens between two polls, and after the last one.
#[derive(Clone, Copy)]
enum Between {
    Nothing,
    /// Everybody else has a turn.
    Turn,
    /// Something has come about.
    Wake,
}

impl Patience {
    const ENDLESS: Patience = Patience { polls: u32::MAX, between: Between::Wake };

    fn random(random: &mut fastrand::Rng) -> Self {
        match random.u32(..10) {
            0..4 => Patience::ENDLESS,
            4..6 => Patience { polls: random.u32(..4), between: Between::Nothing },
            6..8 => Patience { polls: random.u32(..12), between: Between::Turn },
            _ => Patience { polls: random.u32(..4), between: Between::Wake },
        }
    }
}

/// Drives a future as long as patience lasts, and drops it then.
async fn with_patience<T>(future: impl Future<Output = T>, patience: Patience) -> Option<T> {
    let mut future = Box::pin(future);
    for _ in 0..patience.polls {
        let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(answer) = polled {
            return Some(answer);
        }
        match patience.between {
            Between::Nothing => {}
            Between::Turn => tokio::task::yield_now().await,
            Between::Wake => woken().await,
        }
    }
    None
}

/// Until what was polled before wakes this task.
async fn woken() {
    let mut was_polled = false;
    poll_fn(|_| if std::mem::replace(&mut was_polled, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// Asks; none: it was dropped before it was answered.
async fn ask(store: &Client, ask: Ask, patience: Patience) -> Option<Answer> {
    let answer = with_patience(store.ask(ask), patience).await?;
    Some(answer.unwrap_or_else(|error| panic!("{error}")))
}

/// Reads records, and sees to it that each is its own.
async fn read(store: &Client, numbers: &[u16], patience: Patience, seen: &Seen) -> Option<Vec<Option<Entry>>> {
    let before: Vec<u64> = numbers.iter().map(|number| seen.acknowledged(*number)).collect();
    let keys = numbers.iter().map(|number| key(*number)).collect();
    let entries = match ask(store, Ask::Read(keys), patience).await? {
        Answer::Entries(entries) => entries,
        other => panic!("that is no answer to a read: {other:?}"),
    };
    assert_eq!(entries.len(), numbers.len());
    for ((number, before), entry) in numbers.iter().zip(before).zip(&entries) {
        assert_eq!(entry.is_some(), *number < RECORDS, "record {number}");
        let Some(entry) = entry else { continue };
        let expected = value(*number, entry.revision);
        let found = String::from_utf8_lossy(&entry.value);
        assert!(found == expected, "a mix-up: record {number} is {:?}", found.get(..60).unwrap_or(&found));
        assert!(entry.revision >= before, "record {number}: {} was acknowledged, not {}", before, entry.revision);
        assert!(entry.expires_in <= LIFE);
    }
    Some(entries)
}

/// Writes a record's next revision, or does not, as its guard is made to fail.
async fn change(store: &Client, number: u16, fails: bool, patience: Patience, seen: &Seen) -> Option<()> {
    let entries = read(store, &[number], Patience::ENDLESS, seen).await;
    let revision = entries.into_iter().flatten().flatten().next().expect("it is there").revision;
    let guard = Guard::Unchanged(key(number), if fails { u64::MAX } else { revision });
    let change = Change { guard, put: vec![put(number, revision + 1)], delete: Vec::new(), durable: false };
    match ask(store, Ask::Change(change), patience).await? {
        Answer::Changed(true) => {
            assert!(!fails, "a mix-up: a change was made whose guard does not hold");
            let mut acknowledged = seen.acknowledged.borrow_mut();
            let latest = &mut acknowledged[usize::from(number)];
            *latest = (*latest).max(revision + 1);
        }
        Answer::Changed(false) => {}
        other => panic!("that is no answer to a change: {other:?}"),
    }
    Some(())
}

/// Does what is not answered but with a word.
async fn done(store: &Client, what: Ask, patience: Patience) -> Option<()> {
    match ask(store, what, patience).await? {
        Answer::Done => Some(()),
        other => panic!("that is no answer to a touch or a deletion: {other:?}"),
    }
}

async fn act(task: u32, store: Rc<Client>, seen: Rc<Seen>) {
    let mut random = fastrand::Rng::with_seed(u64::from(task));
    for _ in 0..OPERATIONS / TASKS {
        let patience = Patience::random(&mut random);
        let number = random.u16(..RECORDS);
        match random.u32(..100) {
            0..70 => {
                // Some that are not there among them.
                let numbers: Vec<u16> = (0..random.usize(1..=4)).map(|_| random.u16(..RECORDS + 32)).collect();
                seen.count(&read(&store, &numbers, patience, &seen).await);
            }
            70..78 => seen.count(&change(&store, number, false, patience, &seen).await),
            78..84 => seen.count(&change(&store, number, true, patience, &seen).await),
            84..95 => seen.count(&done(&store, Ask::Touch(vec![(key(number), LIFE)]), patience).await),
            _ => seen.count(&done(&store, Ask::Delete(vec![key(RECORDS + number)]), patience).await),
        }
    }
}

fn mix_up(name: &str, kind: KindSettings) {
    let store = open(kind);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let clients = [store.client(WorkerId(0)), store.client(WorkerId(1))];
        for number in 0..RECORDS {
            let (guard, put) = (Guard::Absent(key(number)), vec![put(number, 1)]);
            let begun = Ask::Change(Change { guard, put, delete: Vec::new(), durable: false });
            assert_eq!(clients[0].ask(begun).await, Ok(Answer::Changed(true)));
        }
        let seen = Rc::new(Seen {
            completed: Cell::new(0),
            dropped: Cell::new(0),
            acknowledged: RefCell::new(vec![1; usize::from(RECORDS)]),
        });
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let store = Rc::clone(&clients[task as usize % clients.len()]);
                tokio::task::spawn_local(act(task, store, Rc::clone(&seen)))
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let all: Vec<u16> = (0..RECORDS).collect();
        for client in &clients {
            assert!(read(client, &all, Patience::ENDLESS, &seen).await.is_some());
        }
        let (completed, dropped) = (seen.completed.get(), seen.dropped.get());
        let writes: u64 = seen.acknowledged.borrow().iter().map(|revision| revision - 1).sum();
        println!("{name}: {completed} asks completed, {dropped} dropped, revisions up by {writes}, no mix-up");
        assert_eq!(completed + dropped, OPERATIONS);
        assert!(completed > 10_000 && dropped > 10_000, "{name}: {completed} completed, {dropped} dropped");
        assert!(writes > 1_000, "{name}: there was something to lose");
    });
}

#[test]
fn asks_to_redis_that_are_dropped_hand_no_answer_to_another() {
    // Nothing here has to survive its end.
    let redis = Redis::start_with(&["--appendfsync", "no"]);
    let mut settings = RedisSettings::parse_url(&redis.url()).unwrap();
    (settings.connect, settings.timeout) = (PATIENCE, PATIENCE);
    mix_up("redis", KindSettings::Redis(settings));
}

#[test]
fn asks_to_memcached_that_are_dropped_hand_no_answer_to_another() {
    let memcached = [Memcached::start(), Memcached::start()];
    let nodes = memcached.iter().map(|node| MemcachedNode::parse(&node.address()).unwrap()).collect();
    mix_up("memcached", KindSettings::Memcached(MemcachedSettings { nodes, connect: PATIENCE, timeout: PATIENCE }));
}
