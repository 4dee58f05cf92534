//! How fast servers are beside each other, read off what requests cost on each.
//!
//! What a request would cost elsewhere has to be known of servers of which one is slow: its work, and not the time that the
//! slow one took. Where sessions are placed by load or by chance, and not by what they will ask for, servers of one speed have
//! costs of one distribution, and one of half the speed has twice of each. So logarithms of costs are compared, at their
//! median and at both quartiles, with those of the server in the middle. Another speed is claimed only where all three say
//! it (a constant delay shows at the small ones, a few dear requests at the large ones), the difference is no chance (four
//! standard errors), and it is worth it (a quarter); and what was claimed stays until it is clearly wrong.
//!
//! Of a session one request is to be told of in each window, and none of newcomers: a server that has just joined has only
//! those, and one that drains has none. Nothing is to be told where keys say by themselves which server they belong to.

use std::time::Duration;

/// Costs of a server before it is compared.
const ENOUGH: usize = 50;
/// Costs that are kept of each server, the last ones.
const MOST: usize = 1_024;
/// Standard errors that are no chance, and those that a claim may be off without being given up.
const CERTAIN: f64 = 4.0;
const MAY_BE_OFF: f64 = 2.0;
/// A smaller difference is none.
const WORTH_IT: f64 = 1.25;
/// How much of the difference at the median there has to be at each quartile, at least and at most.
const AGREES: std::ops::RangeInclusive<f64> = 0.5..=1.5;
/// Nothing is taken to be faster or slower than this.
const FASTEST: f64 = 50.0;

/// The speeds of a pool's servers, as far as they are known.
pub struct Speeds {
    /// By position.
    costs: Vec<Costs>,
    claimed: Vec<f64>,
}

/// Logarithms of seconds: of this window, and of the one before, in which there may be the same sessions.
#[derive(Clone, Default)]
struct Costs {
    now: Vec<f64>,
    before: Vec<f64>,
}

/// Where the costs of a server are.
#[derive(Clone, Copy)]
struct Quartiles {
    lower: f64,
    median: f64,
    upper: f64,
    /// Of the median: that of a normal distribution with these quartiles.
    error: f64,
}

impl Costs {
    fn quartiles(&self) -> Option<Quartiles> {
        let mut all: Vec<f64> = self.now.iter().chain(&self.before).copied().collect();
        // As many as are surely not of the same sessions.
        let independent = self.now.len().max(self.before.len());
        if independent < ENOUGH {
            return None;
        }
        all.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
        let [lower, median, upper] = [0.25, 0.5, 0.75].map(at);
        Some(Quartiles { lower, median, upper, error: 0.93 * (upper - lower) / (independent as f64).sqrt() })
    }
}

impl Speeds {
    /// Of so many servers nothing is known.
    pub fn new(servers: usize) -> Self {
        Speeds { costs: vec![Costs::default(); servers], claimed: vec![1.0; servers] }
    }

    /// A request took so long of the time of the server at this position.
    pub fn note(&mut self, server: usize, took: Duration) {
        let costs = self.costs.get_mut(server).filter(|costs| !took.is_zero() && costs.now.len() < MOST);
        if let Some(costs) = costs {
            costs.now.push(took.as_secs_f64().ln());
        }
    }

    /// What was told was worked out in another way than what will be.
    pub fn forget(&mut self) {
        self.costs.fill(Costs::default());
    }

    /// By position: 1 is the speed of the server in the middle, and of those that are not known to have another.
    pub fn speeds(&self) -> &[f64] {
        &self.claimed
    }

    /// A window ends: looks again. Says whether a speed is another one now.
    pub fn review(&mut self) -> bool {
        let known: Vec<Option<Quartiles>> = self.costs.iter().map(Costs::quartiles).collect();
        for costs in &mut self.costs {
            costs.before = std::mem::take(&mut costs.now);
        }
        let mut sorted: Vec<Quartiles> = known.iter().flatten().copied().collect();
        sorted.sort_by(|one, other| one.median.total_cmp(&other.median));
        // Of two the faster one: that something is slow is what happens.
        let Some(middle) = sorted.get(sorted.len().saturating_sub(1) / 2) else { return false };
        let before = self.claimed.clone();
        for (claimed, of) in self.claimed.iter_mut().zip(&known) {
            *claimed = of.map_or(*claimed, |of| reviewed(*claimed, of, *middle));
        }
        self.claimed != before
    }
}

/// What is to be claimed of a server of which this was claimed.
fn reviewed(claimed: f64, of: Quartiles, middle: Quartiles) -> f64 {
    let apart = of.median - middle.median;
    let error = of.error.hypot(middle.error);
    let worth_it = WORTH_IT.ln();
    if (apart + claimed.ln()).abs() <= worth_it.max(MAY_BE_OFF * error) {
        return claimed;
    }
    let is_certain = apart.abs() > worth_it.max(CERTAIN * error);
    let agree = |quartile: f64| AGREES.contains(&(quartile / apart));
    if is_certain && agree(of.lower - middle.lower) && agree(of.upper - middle.upper) {
        (-apart).exp().clamp(1.0 / FASTEST, FASTEST)
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exponential(random: &mut fastrand::Rng) -> f64 {
        -(1.0 - random.f64()).ln() * 0.010
    }

    /// Costs of so many sessions, each made of an exponential one of 10 ms in the mean.
    fn feed(speeds: &mut Speeds, random: &mut fastrand::Rng, server: usize, sessions: u64, cost: impl Fn(f64) -> f64) {
        for _ in 0..sessions {
            speeds.note(server, Duration::from_secs_f64(cost(exponential(random))));
        }
    }

    #[test]
    fn a_slow_server_is_found_stays_found_and_recovers() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut speeds = Speeds::new(4);
        let mut changes = 0;
        for window in 0..60 {
            let slow = if window < 40 { 4.0 } else { 1.0 };
            for server in 0..4 {
                let times = if server == 1 { slow } else { 1.0 };
                feed(&mut speeds, &mut random, server, 100, |cost| cost * times);
            }
            changes += u32::from(speeds.review());
            let found = speeds.speeds();
            assert_eq!([found[0], found[2], found[3]], [1.0; 3], "{window}: {found:?}");
            assert!((2..40).contains(&window) <= (0.15..0.4).contains(&found[1]), "{window}: {found:?}");
            assert!(window < 43 || found[1] == 1.0, "{window}: {found:?}");
        }
        assert!((2..=4).contains(&changes), "{changes}: it does not waver");
    }

    #[test]
    fn servers_of_one_speed_are_alike_whatever_chance_does() {
        let mut random = fastrand::Rng::with_seed(2);
        for trial in 0..40 {
            let mut speeds = Speeds::new(8);
            for _ in 0..25 {
                (0..8).for_each(|server| feed(&mut speeds, &mut random, server, 60, |cost| cost));
                assert!(!speeds.review(), "{trial}: {:?}", speeds.speeds());
            }
        }
    }

    #[test]
    fn a_constant_delay_and_another_kind_of_request_are_no_speed() {
        let mut random = fastrand::Rng::with_seed(3);
        let kinds = |number: u64| if number.is_multiple_of(2) { 0.001 } else { 0.100 };
        let mut speeds = Speeds::new(3);
        for number in 0..900 {
            let delay = if number % 3 == 2 { 0.002 } else { 0.0 };
            let cost = kinds(random.u64(..)) * (0.8 + 0.4 * random.f64());
            speeds.note(number % 3, Duration::from_secs_f64(cost + delay));
        }
        assert!(!speeds.review(), "{:?}", speeds.speeds());
        let mut speeds = Speeds::new(3);
        (0..2).for_each(|server| feed(&mut speeds, &mut random, server, 300, |cost| cost));
        // Three of ten ask for something dear.
        for number in 0..300 {
            let times = if number % 10 < 3 { 10.0 } else { 1.0 };
            feed(&mut speeds, &mut random, 2, 1, |cost| cost * times);
        }
        assert!(!speeds.review(), "{:?}", speeds.speeds());
    }

    #[test]
    fn too_few_say_nothing_and_of_two_the_faster_one_counts() {
        let mut random = fastrand::Rng::with_seed(4);
        let mut speeds = Speeds::new(3);
        feed(&mut speeds, &mut random, 0, 200, |cost| cost);
        feed(&mut speeds, &mut random, 2, 10, |cost| cost * 10.0);
        assert!(!speeds.review());
        assert!(!Speeds::new(2).review(), "nothing is known");
        let mut speeds = Speeds::new(2);
        speeds.note(9, Duration::from_secs(1));
        speeds.note(0, Duration::ZERO);
        feed(&mut speeds, &mut random, 0, 300, |cost| cost * 5.0);
        feed(&mut speeds, &mut random, 1, 300, |cost| cost);
        assert!(speeds.review());
        let found = speeds.speeds().to_vec();
        assert!((0.14..0.28).contains(&found[0]) && found[1] == 1.0, "{found:?}");
        speeds.forget();
        assert!(!speeds.review());
        assert_eq!(speeds.speeds(), found, "with nothing to go by it stays");
    }
}
