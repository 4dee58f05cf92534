//! How often somebody may do something: the generic cell rate algorithm (ITU-T I.371, the virtual scheduling form).
//!
//! It is a leaky bucket that keeps one number: when the bucket would be empty again. A request is let in as long as
//! that lies no further ahead than the burst allows. Nothing has to tick, and an idle key costs nothing to forget.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Moment;
use crate::recent::Recent;

/// How many keys one limit remembers. A full table forgets its least recently seen half: about 40 bytes a key.
const MOST_KEYS: usize = 131_072;

/// A rate, and what may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds that one admission stands for.
    cost: u64,
    /// How far ahead the bucket's end may lie, in nanoseconds.
    depth: u64,
}

impl Rate {
    /// `admissions` in every `per`, and up to `burst` at once.
    pub fn new(admissions: u32, per: Duration, burst: u32) -> Self {
        let per = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        let cost = (per / u64::from(admissions.max(1))).max(1);
        Rate { cost, depth: cost.saturating_mul(u64::from(burst.max(1))) }
    }

    /// Whether `burst` admissions of this rate are more than the clock can count.
    pub fn is_beyond_measure(&self, burst: u32) -> bool {
        self.cost.checked_mul(u64::from(burst.max(1))).is_none_or(|depth| depth > u64::MAX / 4)
    }

    /// One more admission of a bucket that is empty at `empty`: when it is empty then, or how long to wait.
    fn admit(self, empty: u64, now: Moment) -> Result<u64, Duration> {
        let now = now.as_nanos();
        let after = empty.max(now).saturating_add(self.cost);
        match after.saturating_sub(now).checked_sub(self.depth) {
            None | Some(0) => Ok(after),
            Some(over) => Err(Duration::from_nanos(over)),
        }
    }
}

/// A bucket per key. It outlives reloads.
pub struct KeyedRate(Recent<u64>);

impl KeyedRate {
    /// Empty buckets; `secret` is random.
    pub fn new(secret: u64) -> Self {
        KeyedRate(Recent::new(secret))
    }

    /// Lets one more of this key in, or says how long it has to wait.
    pub fn admit(&self, rate: Rate, key: u64, now: Moment) -> Result<(), Duration> {
        self.0.update(key, MOST_KEYS, |empty| {
            // A rate that was stricter before a reload leaves no debt that this one could not have made.
            let empty = empty.unwrap_or(0).min(now.as_nanos().saturating_add(rate.depth));
            match rate.admit(empty, now) {
                Ok(after) => (after, Ok(())),
                Err(wait) => (empty, Err(wait)),
            }
        })
    }
}

/// One bucket that all workers draw from.
#[derive(Default)]
pub struct SharedRate(AtomicU64);

impl SharedRate {
    /// Whether there is an admission to be had now.
    pub fn has_one(&self, rate: Rate, now: Moment) -> bool {
        rate.admit(self.0.load(Ordering::Relaxed), now).is_ok()
    }

    /// Takes one admission, if there is one now.
    pub fn take(&self, rate: Rate, now: Moment) -> bool {
        let next = |empty| rate.admit(empty, now).ok();
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(number: u64) -> Moment {
        Moment::from_nanos(number * 1_000_000)
    }

    #[test]
    fn a_burst_at_once_then_the_rate() {
        let rates = KeyedRate::new(3);
        let rate = Rate::new(10, Duration::from_secs(1), 4);
        let admitted = |key, at| rates.admit(rate, key, at).is_ok();
        assert_eq!((0..10).filter(|_| admitted(1, millis(0))).count(), 4);
        assert_eq!(rates.admit(rate, 1, millis(30)), Err(Duration::from_millis(70)), "the next place frees at 100 ms");
        assert!(admitted(1, millis(100)) && !admitted(1, millis(199)) && admitted(1, millis(200)));
        assert!(admitted(2, millis(30)), "another key has a bucket of its own");
        assert_eq!((0..10).filter(|_| admitted(1, millis(60_000))).count(), 4, "a rest fills the burst, and no more");
    }

    #[test]
    fn another_rate_over_the_same_buckets_forgives_what_it_would_not_have_asked() {
        let rates = KeyedRate::new(3);
        let strict = Rate::new(10, Duration::from_secs(86_400), 10);
        assert_eq!((0..20).filter(|_| rates.admit(strict, 1, millis(0)).is_ok()).count(), 10);
        let mild = Rate::new(10, Duration::from_secs(1), 10);
        assert!(rates.admit(mild, 1, millis(0)).is_err() && rates.admit(mild, 1, millis(100)).is_ok());
    }

    #[test]
    fn over_any_second_no_more_than_rate_and_burst() {
        let shared = SharedRate::default();
        let rate = Rate::new(50, Duration::from_secs(1), 1);
        let taken = (0..10_000).filter(|at| shared.take(rate, millis(*at))).count();
        assert_eq!(taken, 500, "ten seconds of asking every millisecond");
    }
}
