//! The books of a model: what it counts, and averages over time.

use super::ServerOutcome;
use super::latencies::Latencies;
use crate::clock::Moment;
use crate::imbalance::{Measures, measure};

/// What is said of a pool without load.
const EVEN: Measures = Measures { max_over_mean: 1.0, jain: 1.0, cv: 0.0 };

#[derive(Default)]
pub(super) struct Books {
    pub(super) requests: u64,
    pub(super) refused: u64,
    pub(super) failed: u64,
    pub(super) kept: u64,
    pub(super) moved: u64,
    pub(super) placed: u64,
    pub(super) sessions_lost: u64,
    pub(super) latency: Latencies,
    pub(super) gauges: Vec<Gauge>,
}

impl Books {
    pub(super) fn new(gauges: Vec<Gauge>) -> Self {
        Books { gauges, ..Books::default() }
    }

    /// Everything is counted anew from now on; what is in flight stays.
    pub(super) fn restart(&mut self, now: Moment) {
        let gauges = self.gauges.iter().map(|gauge| gauge.restarted(now)).collect();
        *self = Books::new(gauges);
    }
}

/// What one server has, over time.
#[derive(Clone, Debug)]
pub(super) struct Gauge {
    /// How many it serves at full speed, as far as that can be measured.
    capacity: u64,
    count: u64,
    is_there: bool,
    /// Until when the sums go.
    at: Moment,
    pub(super) requests: u64,
    /// Nanoseconds that it was there.
    there: u128,
    /// Requests times nanoseconds.
    in_flight: u128,
    served: u128,
}

impl Gauge {
    pub(super) fn new(capacity: u32, is_there: bool) -> Self {
        Gauge {
            capacity: u64::from(capacity).max(1),
            count: 0,
            is_there,
            at: Moment::default(),
            requests: 0,
            there: 0,
            in_flight: 0,
            served: 0,
        }
    }

    fn restarted(&self, now: Moment) -> Self {
        Gauge { at: now, requests: 0, there: 0, in_flight: 0, served: 0, ..*self }
    }

    /// Brings the sums up to now.
    fn advance(&mut self, now: Moment) {
        let span = now.since(self.at).as_nanos();
        self.at = self.at.max(now);
        self.there += if self.is_there { span } else { 0 };
        self.in_flight += span * u128::from(self.count);
        self.served += span * u128::from(self.count.min(self.capacity));
    }

    /// It has so many from now on.
    pub(super) fn has(&mut self, count: usize, now: Moment) {
        self.advance(now);
        self.count = count as u64;
    }

    /// It comes or goes.
    pub(super) fn set_there(&mut self, is_there: bool, now: Moment) {
        self.advance(now);
        self.is_there = is_there;
    }

    /// The averages until now; in flight only where it was there at all.
    fn averages(&self, now: Moment) -> (Option<f64>, f64) {
        let mut gauge = self.clone();
        gauge.advance(now);
        let there = gauge.there as f64;
        let in_flight = (gauge.there > 0).then(|| gauge.in_flight as f64 / there);
        let busy = if gauge.there > 0 { gauge.served as f64 / (there * gauge.capacity as f64) } else { 0.0 };
        (in_flight, busy)
    }

    pub(super) fn outcome(&self, name: &str, now: Moment) -> ServerOutcome {
        let (in_flight, busy) = self.averages(now);
        ServerOutcome { name: name.into(), requests: self.requests, in_flight: in_flight.unwrap_or(0.0), busy }
    }
}

/// How uneven the servers with these weights are; those with weight 0 do not count.
pub(super) fn imbalance<'a>(servers: impl Iterator<Item = (&'a Gauge, u32)>, now: Moment) -> Measures {
    let weighted = servers.filter(|(_, weight)| *weight > 0);
    let loads: Vec<f64> =
        weighted.filter_map(|(gauge, weight)| Some(gauge.averages(now).0? / f64::from(weight))).collect();
    measure(&loads).unwrap_or(EVEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn second(number: u64) -> Moment {
        Moment::from_nanos(number * 1_000_000_000)
    }

    #[test]
    fn averages_are_over_the_time_that_a_server_was_there() {
        let mut gauge = Gauge::new(2, false);
        gauge.set_there(true, second(10));
        gauge.has(1, second(10));
        gauge.has(4, second(14));
        gauge.has(0, second(16));
        gauge.set_there(false, second(18));
        assert_eq!(gauge.averages(second(99)), (Some(12.0 / 8.0), 8.0 / 16.0));
        let again = gauge.restarted(second(20));
        assert_eq!(again.averages(second(30)), (None, 0.0));
    }

    #[test]
    fn loads_are_compared_per_unit_of_weight() {
        let gauge = |count| {
            let mut gauge = Gauge::new(1, true);
            gauge.has(count, second(0));
            gauge
        };
        let (light, heavy, none) = (gauge(2), gauge(6), gauge(9));
        let even = imbalance([(&light, 1), (&heavy, 3), (&none, 0)].into_iter(), second(5));
        assert_eq!(even, EVEN);
        let uneven = imbalance([(&light, 1), (&heavy, 1)].into_iter(), second(5));
        assert_eq!(uneven.max_over_mean, 1.5);
        assert_eq!(imbalance([(&light, 1)].into_iter(), second(0)), EVEN, "no time, no load");
    }
}
