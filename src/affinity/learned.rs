//! Sessions learned from the application's own cookie: a bounded, expiring table of which server set which value.
//!
//! Two generations per shard: a full young one becomes the old one, and the old one is forgotten; whatever is used
//! moves to the young one. So the least recently used half goes first, at O(1) a look-up. An entry is a 64-bit hash of
//! the cookie's value, the server and a time: about 40 bytes a session, whatever the cookie's length.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use parking_lot::Mutex;

use crate::balance::mix;

const SHARDS: usize = 16;

/// Which server a session's cookie came from.
pub struct LearnedTable {
    /// Keeps clients from choosing where in the table they land.
    secret: u64,
    shards: [Mutex<Generations>; SHARDS],
}

#[derive(Clone, Copy)]
struct Learned {
    /// What stands for the server's name.
    server: u64,
    /// Wall-clock seconds since 1970.
    seen: u32,
}

#[derive(Default)]
struct Generations {
    young: HashMap<u64, Learned, BuildHasherDefault<Keyed>>,
    old: HashMap<u64, Learned, BuildHasherDefault<Keyed>>,
}

/// The keys are mixed with a secret already.
#[derive(Default)]
struct Keyed(u64);

impl Hasher for Keyed {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl LearnedTable {
    /// An empty table; `secret` is random.
    pub fn new(secret: u64) -> Self {
        LearnedTable { secret, shards: std::array::from_fn(|_| Mutex::default()) }
    }

    fn place(&self, session: u64) -> u64 {
        mix(session ^ self.secret)
    }

    fn shard(&self, key: u64) -> &Mutex<Generations> {
        &self.shards[(key >> 60) as usize % SHARDS]
    }

    /// The server of a session, if it was seen within `idle` seconds.
    pub(super) fn find(&self, session: u64, now: u32, idle: u64) -> Option<u64> {
        let key = self.place(session);
        let generations = self.shard(key).lock();
        let found = generations.young.get(&key).or_else(|| generations.old.get(&key))?;
        (u64::from(now.saturating_sub(found.seen)) <= idle).then_some(found.server)
    }

    /// Remembers the server of a session; `most` bounds the whole table.
    pub(super) fn note(&self, session: u64, server: u64, now: u32, most: usize) {
        let key = self.place(session);
        let mut generations = self.shard(key).lock();
        let half = (most / SHARDS / 2).max(1);
        if generations.young.len() >= half && !generations.young.contains_key(&key) {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(key, Learned { server, seen: now });
    }

    /// Remembers a session that came with a cookie nobody has seen set: after a restart that is everybody's. It takes
    /// only room that is free in the old generation, so made-up cookies push out no session.
    pub(super) fn adopt(&self, session: u64, server: u64, now: u32, most: usize) {
        let key = self.place(session);
        let mut generations = self.shard(key).lock();
        if generations.old.len() < (most / SHARDS / 2).max(1) {
            generations.old.insert(key, Learned { server, seen: now });
        }
    }

    /// How many sessions are remembered, those in both generations twice.
    pub fn len(&self) -> usize {
        let counted = self.shards.iter().map(|shard| {
            let generations = shard.lock();
            generations.young.len() + generations.old.len()
        });
        counted.sum()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_stays_within_its_bound_and_keeps_what_is_used() {
        let table = LearnedTable::new(9);
        let favourite = mix(7);
        for number in 0..10_000u64 {
            table.note(mix(number + 100), 1, 10, 320);
            table.note(favourite, 2, 10, 320);
            assert!(table.len() <= 336, "{}", table.len());
        }
        assert_eq!(table.find(favourite, 10, 60), Some(2));
        assert_eq!(table.find(mix(100), 10, 60), None, "long forgotten");
    }

    #[test]
    fn what_was_not_seen_for_idle_is_over() {
        let table = LearnedTable::new(9);
        table.note(5, 9, 100, 1_000);
        assert_eq!((table.find(5, 160, 60), table.find(5, 161, 60)), (Some(9), None));
        table.note(5, 8, 161, 1_000);
        assert_eq!(table.find(5, 161, 60), Some(8));
    }
}
