//! Latency that remembers peaks: an exponentially weighted moving average that jumps up at once and decays slowly
//! (the load measure of Finagle's "power of two choices: Peak EWMA", and of linkerd).
//!
//! Shared by all workers; two updates at once may lose one, which an average forgives.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Moment;

/// How fast the past is forgotten.
const DECAY: Duration = Duration::from_secs(10);
/// What a failed attempt counts as, so that failing fast does not look like serving fast.
const FAILURE: Duration = Duration::from_secs(1);
/// What a server is taken for before anything was measured.
const UNKNOWN: Duration = Duration::from_millis(1);

/// The decaying peak latency of one server.
#[derive(Default)]
pub struct PeakEwma {
    nanos: AtomicU64,
    at: AtomicU64,
}

impl PeakEwma {
    /// Takes in one attempt.
    pub fn observe(&self, took: Duration, failed: bool, now: Moment) {
        let took = if failed { took.max(FAILURE) } else { took };
        let sample = took.as_nanos() as f64;
        let before = f64::from_bits(self.nanos.load(Ordering::Relaxed));
        let keep = self.kept_share(now);
        let next = if sample > before { sample } else { before * keep + sample * (1.0 - keep) };
        self.nanos.store(next.to_bits(), Ordering::Relaxed);
        self.at.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// The latency to expect now, in nanoseconds; a peak fades while nothing is measured.
    pub fn nanos(&self, now: Moment) -> f64 {
        let value = f64::from_bits(self.nanos.load(Ordering::Relaxed));
        (value * self.kept_share(now)).max(UNKNOWN.as_nanos() as f64 / 10.0)
    }

    /// The latency as it was last measured, however long ago, in nanoseconds; none where it never was.
    pub fn last_nanos(&self) -> Option<f64> {
        let value = f64::from_bits(self.nanos.load(Ordering::Relaxed));
        (value > 0.0).then_some(value)
    }

    fn kept_share(&self, now: Moment) -> f64 {
        let idle = now.since(Moment::from_nanos(self.at.load(Ordering::Relaxed)));
        (-idle.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn second(number: u64) -> Moment {
        Moment::from_nanos(number * 1_000_000_000)
    }

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let ewma = PeakEwma::default();
        ewma.observe(Duration::from_millis(10), false, second(1));
        ewma.observe(Duration::from_millis(100), false, second(2));
        assert_eq!(ewma.nanos(second(2)), 100e6);
        assert!((ewma.nanos(second(12)) - 100e6 / std::f64::consts::E).abs() < 1e3);
        ewma.observe(Duration::from_millis(10), false, second(3));
        assert!(ewma.nanos(second(3)) > 85e6);
    }

    #[test]
    fn before_anything_was_measured_there_is_a_latency_to_reckon_with() {
        let ewma = PeakEwma::default();
        assert_eq!((ewma.nanos(second(9)), ewma.last_nanos()), (1e5, None));
        ewma.observe(Duration::ZERO, false, second(9));
        assert_eq!(ewma.nanos(second(9)), 1e5);
    }

    #[test]
    fn a_fast_failure_does_not_look_fast() {
        let ewma = PeakEwma::default();
        ewma.observe(Duration::from_micros(50), true, second(1));
        assert_eq!(ewma.nanos(second(1)), 1e9);
    }
}
