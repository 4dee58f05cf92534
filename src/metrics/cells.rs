//! Counters with one writer: what the hot path pays for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Which worker's buckets are written. The control thread has buckets of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerId(pub usize);

/// A counter with a single writer.
#[derive(Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds `n`. Only the owning worker may call this.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Takes `n` away, for gauges. Only the owning worker may call this.
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    /// What the worker has counted so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Keeps one worker's buckets off the cache lines of another's.
#[repr(align(128))]
#[derive(Default)]
struct Padded<T>(T);

/// One set of buckets per worker, and one for the control thread.
pub struct PerWorker<T>(Box<[Padded<T>]>);

impl<T: Default> PerWorker<T> {
    pub(super) fn new(workers: usize) -> Self {
        PerWorker((0..=workers).map(|_| Padded::default()).collect())
    }

    /// The buckets of one worker.
    pub fn of(&self, worker: WorkerId) -> &T {
        &self.0[worker.0].0
    }

    pub(super) fn sum(&self, pick: impl Fn(&T) -> u64) -> u64 {
        self.0.iter().fold(0, |sum, worker| sum.wrapping_add(pick(&worker.0)))
    }
}

/// Upper bounds of duration buckets, in seconds.
pub(super) const BOUNDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const BOUND_NANOS: [u64; 16] = {
    let mut nanos = [0; 16];
    let mut at = 0;
    while at < 16 {
        nanos[at] = (BOUNDS[at] * 1e9) as u64;
        at += 1;
    }
    nanos
};

/// A histogram of durations with one writer.
#[derive(Default)]
pub struct DurationCells {
    pub(super) buckets: [Cell; BOUNDS.len() + 1],
    pub(super) nanos: Cell,
}

impl DurationCells {
    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Cell::get).sum()
    }

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUND_NANOS.iter().position(|bound| nanos <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].add(1);
        self.nanos.add(nanos);
    }
}
