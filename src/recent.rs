//! A bounded table that keeps what is used: for what is remembered of clients, who may be as many as they like.
//!
//! Two generations per shard: a full young one becomes the old one, and the old one is forgotten; whatever is written
//! goes to the young one. So the least recently written half goes first, at O(1) a look-up and with no list to keep.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use parking_lot::Mutex;

use crate::balance::mix;

const SHARDS: usize = 16;

/// Values by 64-bit keys, shared between workers.
pub struct Recent<V> {
    /// Keeps clients from choosing where in the table they land.
    secret: u64,
    shards: [Mutex<Generations<V>>; SHARDS],
}

struct Generations<V> {
    young: HashMap<u64, V, BuildHasherDefault<Keyed>>,
    old: HashMap<u64, V, BuildHasherDefault<Keyed>>,
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

impl<V: Copy> Generations<V> {
    fn get(&self, key: u64) -> Option<V> {
        self.young.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    fn put(&mut self, key: u64, value: V, half: usize) {
        if self.young.len() >= half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

/// The share of a shard's generation in a table of `most` entries.
fn half(most: usize) -> usize {
    (most / SHARDS / 2).max(1)
}

impl<V: Copy> Recent<V> {
    /// An empty table; `secret` is random.
    pub fn new(secret: u64) -> Self {
        let empty = || Mutex::new(Generations { young: HashMap::default(), old: HashMap::default() });
        Recent { secret, shards: std::array::from_fn(|_| empty()) }
    }

    fn place(&self, key: u64) -> (u64, &Mutex<Generations<V>>) {
        let key = mix(key ^ self.secret);
        (key, &self.shards[(key >> 60) as usize % SHARDS])
    }

    /// What is remembered of a key.
    pub fn get(&self, key: u64) -> Option<V> {
        let (key, shard) = self.place(key);
        shard.lock().get(key)
    }

    /// Remembers a value; `most` bounds the whole table.
    pub fn put(&self, key: u64, value: V, most: usize) {
        let (key, shard) = self.place(key);
        shard.lock().put(key, value, half(most));
    }

    /// Remembers a value if there is room among the old: it pushes out nothing.
    pub fn put_if_free(&self, key: u64, value: V, most: usize) {
        let (key, shard) = self.place(key);
        let mut generations = shard.lock();
        if generations.old.len() < half(most) {
            generations.old.insert(key, value);
        }
    }

    /// Changes what is remembered of a key, in one step.
    pub fn update<T>(&self, key: u64, most: usize, change: impl FnOnce(Option<V>) -> (V, T)) -> T {
        let (key, shard) = self.place(key);
        let mut generations = shard.lock();
        let (value, result) = change(generations.get(key));
        generations.put(key, value, half(most));
        result
    }

    /// How many keys are remembered, those in both generations twice.
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
        let table = Recent::new(9);
        for number in 0..10_000u64 {
            table.put(number + 100, 1, 320);
            table.put(7, 2, 320);
            assert!(table.len() <= 336, "{}", table.len());
        }
        assert_eq!((table.get(7), table.get(100)), (Some(2), None), "100 is long forgotten");
    }

    #[test]
    fn a_value_changes_in_place_and_a_guest_pushes_out_nobody() {
        let table = Recent::new(9);
        for _ in 0..3 {
            table.update(5, 320, |known: Option<u32>| (known.unwrap_or(0) + 1, ()));
        }
        assert_eq!(table.get(5), Some(3));
        (0..10_000).for_each(|guest| table.put_if_free(guest + 100, 0, 320));
        assert_eq!(table.get(5), Some(3));
        assert!(table.len() <= 336);
    }
}
