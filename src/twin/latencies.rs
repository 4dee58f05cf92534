//! A histogram of durations, log-linear: every power of two has 64 buckets, so what it says is off by less than 1 %.
//!
//! It covers everything from a nanosecond to centuries in 30 KiB. It keeps no order and no moments beside the mean.

use std::time::Duration;

/// Bits of a duration that count.
const PRECISION: u32 = 6;
const PER_OCTAVE: usize = 1 << PRECISION;
const BUCKETS: usize = (64 - PRECISION as usize + 1) * PER_OCTAVE;

/// How long requests took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies {
    counts: Box<[u64]>,
    count: u64,
    nanos: u128,
    max: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies { counts: vec![0; BUCKETS].into_boxed_slice(), count: 0, nanos: 0, max: 0 }
    }
}

impl Latencies {
    /// Counts one duration.
    pub fn add(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket_of(nanos)] += 1;
        self.count += 1;
        self.nanos += u128::from(nanos);
        self.max = self.max.max(nanos);
    }

    /// Counts all that `other` has counted.
    pub fn merge(&mut self, other: &Latencies) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.count += other.count;
        self.nanos += other.nanos;
        self.max = self.max.max(other.max);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Zero where there are none.
    pub fn mean(&self) -> Duration {
        let mean = self.nanos / u128::from(self.count.max(1));
        Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
    }

    /// The longest, exactly.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The duration that this share of all, 0 to 1, does not exceed; zero where there are none.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = ((share.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).max(1);
        let mut below = 0;
        let reaches = |count: &u64| {
            below += count;
            below >= rank
        };
        let bucket = self.counts.iter().position(reaches);
        Duration::from_nanos(bucket.map_or(0, |bucket| middle_of(bucket).min(self.max)))
    }
}

fn bucket_of(nanos: u64) -> usize {
    let shift = nanos.checked_ilog2().unwrap_or(0).saturating_sub(PRECISION);
    shift as usize * PER_OCTAVE + (nanos >> shift) as usize
}

fn middle_of(bucket: usize) -> u64 {
    // The first two octaves are exact: their buckets are a nanosecond wide.
    let shift = (bucket / PER_OCTAVE).saturating_sub(1);
    let lowest = ((bucket - shift * PER_OCTAVE) as u64) << shift;
    lowest + (1u64 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_are_one_after_another_and_end_where_durations_do() {
        assert_eq!([0, 1, 63, 64, 127, 128, 129, 130].map(bucket_of), [0, 1, 63, 64, 127, 128, 128, 129]);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert!((0..BUCKETS).all(|bucket| bucket_of(middle_of(bucket)) == bucket));
    }

    #[test]
    fn quantiles_of_a_thousand() {
        let mut latencies = Latencies::default();
        assert_eq!([latencies.quantile(0.5), latencies.mean(), latencies.max()], [Duration::ZERO; 3]);
        (1..=1_000).for_each(|millis| latencies.add(Duration::from_millis(millis)));
        for (share, millis) in [(0.0, 1.0), (0.5, 500.0), (0.95, 950.0), (0.99, 990.0), (1.0, 1_000.0)] {
            let said = latencies.quantile(share).as_secs_f64() * 1e3;
            assert!((said / millis - 1.0).abs() < 0.01, "{share}: {said}");
        }
        assert_eq!((latencies.count(), latencies.mean()), (1_000, Duration::from_micros(500_500)));
        assert_eq!(latencies.max(), Duration::from_secs(1));
    }

    #[test]
    fn two_merged_are_as_one() {
        let (mut one, mut other, mut both) = (Latencies::default(), Latencies::default(), Latencies::default());
        for nanos in (0..2_000u64).map(|at| at * at * 977) {
            let side = if nanos % 2 == 0 { &mut one } else { &mut other };
            side.add(Duration::from_nanos(nanos));
            both.add(Duration::from_nanos(nanos));
        }
        one.merge(&other);
        assert_eq!(one, both);
    }

    proptest! {
        #[test]
        fn no_duration_is_off_by_one_per_cent(nanos: u64) {
            let error = middle_of(bucket_of(nanos)).abs_diff(nanos);
            prop_assert!(u128::from(error) * 100 < u128::from(nanos).max(1));
        }
    }
}
