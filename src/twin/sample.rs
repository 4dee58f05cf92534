//! Which exchanges the twin looks at, where there are more than it has time for.
//!
//! Sessions are sampled, never single requests: what a pin does to a session shows only in all of its requests. A sample
//! is every second session, or every fourth, and so on; a smaller one is part of each larger one.

/// The smallest sample is one of so many halvings: one session in 65,536.
const MOST_HALVINGS: u32 = 16;
/// How much the rate of the last turn counts against those before.
const NEWEST: f64 = 0.3;
/// A sample of twice the size must be this far within the budget,
const ROOM: f64 = 0.8;
/// for so many turns in a row.
const CALM: u32 = 10;

/// A share of the sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample(u32);

impl Sample {
    /// The sample of one in 2 to the power of this.
    pub fn halved(halvings: u32) -> Self {
        Sample(halvings.min(MOST_HALVINGS))
    }

    /// How often it is halved.
    pub const fn halvings(self) -> u32 {
        self.0
    }

    /// 1.0: everything.
    pub fn share(self) -> f64 {
        0.5_f64.powi(self.0 as i32)
    }

    /// Whether what has this hash is part of it. The hash need not be a good one.
    pub fn takes(self, hash: u64) -> bool {
        self.0 == 0 || mixed(hash) >> (u64::BITS - self.0) == 0
    }

    /// So many requests at once, for servers that have the sample only: at least one, and 0 stays what it is.
    pub fn scaled(self, count: u32) -> u32 {
        let rounded = (u64::from(count) + (1 << self.0 >> 1)) >> self.0;
        u32::try_from(rounded).unwrap_or(u32::MAX).max(count.min(1))
    }

    /// Whether scaling leaves about as much of it as of the traffic.
    pub fn suits(self, count: u32) -> bool {
        let wanted = f64::from(count) * self.share();
        (f64::from(self.scaled(count)) - wanted).abs() <= wanted / 8.0
    }
}

/// A bijection that leaves no bit where it was (the finalizer of SplitMix64).
fn mixed(hash: u64) -> u64 {
    let hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// What decides on the sample.
pub(super) struct Budget {
    events_per_second: f64,
    /// Of the sample in force, smoothed.
    rate: f64,
    calm: u32,
}

impl Budget {
    pub(super) fn new(events_per_second: u32) -> Self {
        Budget { events_per_second: f64::from(events_per_second.max(1)), rate: 0.0, calm: 0 }
    }

    /// The sample from now on, when so many events a second came of the one in force.
    pub(super) fn judge(&mut self, sample: Sample, rate: f64) -> Sample {
        self.rate += NEWEST * (rate - self.rate);
        if self.rate > self.events_per_second {
            let over = (self.rate / self.events_per_second).log2().ceil().max(1.0) as u32;
            return self.adopt(sample, Sample::halved(sample.0 + over));
        }
        let fits_twice = sample.0 > 0 && 2.0 * self.rate < ROOM * self.events_per_second;
        self.calm = if fits_twice { self.calm + 1 } else { 0 };
        if self.calm >= CALM { self.adopt(sample, Sample(sample.0 - 1)) } else { sample }
    }

    fn adopt(&mut self, before: Sample, now: Sample) -> Sample {
        self.rate *= now.share() / before.share();
        self.calm = 0;
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_sample_has_its_share_of_the_sessions_and_smaller_ones_are_part_of_it() {
        for halvings in [0, 1, 3, 6] {
            let sample = Sample::halved(halvings);
            let taken = (0..100_000).filter(|session| sample.takes(*session)).count() as f64;
            let wanted = 100_000.0 * sample.share();
            assert!((taken / wanted - 1.0).abs() < 0.1, "{taken} for {wanted}");
        }
        assert_eq!(Sample::halved(99).halvings(), MOST_HALVINGS);
    }

    #[test]
    fn capacities_are_scaled_with_the_sample() {
        let scaled = |halvings, counts: [u32; 5]| counts.map(|count| Sample::halved(halvings).scaled(count));
        assert_eq!(scaled(0, [0, 1, 7, 8, u32::MAX]), [0, 1, 7, 8, u32::MAX]);
        assert_eq!(scaled(2, [0, 1, 7, 8, 10]), [0, 1, 2, 2, 3]);
        assert_eq!(scaled(16, [0, 1, 8, 65_536, 131_072]), [0, 1, 1, 1, 2]);
        assert!(Sample::halved(2).suits(64) && Sample::halved(2).suits(0) && Sample::default().suits(1));
        assert!(!Sample::halved(2).suits(1) && !Sample::halved(1).suits(3));
    }

    #[test]
    fn a_burst_is_borne_and_a_rate_is_not() {
        let mut budget = Budget::new(1_000);
        let all = Sample::default();
        assert_eq!(budget.judge(all, 3_000.0), all);
        assert_eq!(budget.judge(all, 0.0), all);
        let mut sample = all;
        for _ in 0..40 {
            sample = budget.judge(sample, 8_000.0 * sample.share());
        }
        assert!(8_000.0 * sample.share() <= 1_000.0, "{sample:?}");
        assert!(8_000.0 * sample.share() >= 250.0, "{sample:?}");
    }

    #[test]
    fn the_sample_grows_again_when_there_has_been_room_for_a_while() {
        let mut budget = Budget::new(1_000);
        let mut sample = Sample::halved(3);
        let mut turns = 0;
        while sample != Sample::default() {
            sample = budget.judge(sample, 100.0 * sample.share());
            turns += 1;
            assert!(turns < 100, "{sample:?}");
        }
        assert_eq!(turns, 3 * CALM);
        assert_eq!(budget.judge(sample, 100.0), Sample::default());
    }

    proptest! {
        #[test]
        fn smaller_samples_are_nested(hash: u64, halvings in 1u32..17) {
            prop_assert!(!Sample::halved(halvings).takes(hash) || Sample::halved(halvings - 1).takes(hash));
        }
    }
}
