//! Which server a newcomer goes to.
//!
//! A policy sees numbers and flags through [`Candidates`], never a server, and a choice changes nothing that a client
//! could see. Every policy but [`Balance::Hash`] costs O(1) or O(d): it draws from a precomputed weighted schedule
//! and looks at few servers, so a pool of 1,000 servers costs what one of 4 does. Ties break at random, so that idle
//! servers do not all send their newcomers to the first one.

mod hash;
mod peak_ewma;
mod schedule;

use std::sync::atomic::{AtomicU32, Ordering};

pub use hash::{mix, rendezvous};
pub use peak_ewma::PeakEwma;
use schedule::Schedule;

use crate::names::words;

words! {
    /// The `balance` key of a pool.
    Balance {
        RoundRobin = "round-robin",
        LeastRequests = "least-requests",
        P2c = "p2c",
        PeakEwma = "peak-ewma",
        Hash = "hash",
    }
}

/// What a policy may know about the servers it chooses from, by position.
pub trait Candidates {
    /// Whether the server may receive this exchange now.
    fn eligible(&self, at: usize) -> bool;
    /// Exchanges it is working on.
    fn in_flight(&self, at: usize) -> u32;
    /// Its decaying peak latency, in nanoseconds.
    fn latency(&self, at: usize) -> f64;
    /// A number that stands for its name, the same in every proxy.
    fn identity(&self, at: usize) -> u64;
}

/// Chance and turn of the worker that chooses.
pub struct Chance<'a> {
    pub random: &'a mut fastrand::Rng,
    /// Where round-robin stands.
    pub turn: &'a AtomicU32,
    /// What `hash` hashes.
    pub key: u64,
}

/// Up to this many servers, least-requests looks at all of them.
const LOOK_AT_ALL: usize = 32;
/// Above, at this many random ones.
const LOOK_AT_SOME: usize = 16;
/// Draws before a policy stops hoping for an eligible server and looks at all.
const DRAWS: usize = 8;

/// A policy over servers with these weights.
pub struct Policy {
    balance: Balance,
    weights: Box<[u32]>,
    schedule: Schedule,
}

impl Policy {
    /// A policy for servers with these weights; one with weight 0 gets nothing.
    pub fn new(balance: Balance, weights: &[u32]) -> Self {
        Policy { balance, weights: weights.into(), schedule: Schedule::new(weights) }
    }

    /// The position of the chosen server, if any is eligible.
    pub fn pick(&self, servers: &impl Candidates, chance: &mut Chance<'_>) -> Option<usize> {
        let eligible = |at: &usize| self.weights[*at] > 0 && servers.eligible(*at);
        let chosen = match self.balance {
            Balance::RoundRobin => self.next_in_turn(chance.turn, &eligible),
            Balance::LeastRequests => self.least_requests(servers, chance.random, &eligible),
            Balance::P2c => self.better_of_two(chance.random, &eligible, |at| self.load(servers, at)),
            Balance::PeakEwma => self.better_of_two(chance.random, &eligible, |at| self.expected_wait(servers, at)),
            Balance::Hash => return self.by_hash(servers, chance.key),
        };
        chosen.or_else(|| self.any(chance.random, &eligible))
    }

    /// The first of the weighted rendezvous order of `key`: the same for every worker and every proxy.
    pub fn by_hash(&self, servers: &impl Candidates, key: u64) -> Option<usize> {
        let eligible = (0..self.weights.len()).filter(|at| self.weights[*at] > 0 && servers.eligible(*at));
        rendezvous(key, eligible.map(|at| (at, servers.identity(at), self.weights[at])))
    }

    /// The least load per unit of weight among eligible servers: of all in a small pool, of some in a large one.
    pub fn least_load(&self, servers: &impl Candidates, random: &mut fastrand::Rng) -> Option<f64> {
        let eligible = |at: &usize| self.weights[*at] > 0 && servers.eligible(*at);
        self.least_requests(servers, random, &eligible).map(|at| self.load(servers, at))
    }

    /// Exchanges in flight per unit of weight.
    pub fn load(&self, servers: &impl Candidates, at: usize) -> f64 {
        f64::from(servers.in_flight(at)) / f64::from(self.weights[at])
    }

    /// Peak latency times the queue that a newcomer would make one longer.
    fn expected_wait(&self, servers: &impl Candidates, at: usize) -> f64 {
        servers.latency(at) * (f64::from(servers.in_flight(at)) + 1.0) / f64::from(self.weights[at])
    }

    fn next_in_turn(&self, turn: &AtomicU32, eligible: &impl Fn(&usize) -> bool) -> Option<usize> {
        (0..DRAWS).find_map(|_| self.schedule.slot(turn.fetch_add(1, Ordering::Relaxed)).filter(eligible))
    }

    fn better_of_two(
        &self,
        random: &mut fastrand::Rng,
        eligible: &impl Fn(&usize) -> bool,
        cost: impl Fn(usize) -> f64,
    ) -> Option<usize> {
        let mut first = None;
        for _ in 0..DRAWS {
            let Some(drawn) = self.schedule.slot(random.u32(..)).filter(eligible) else { continue };
            match first {
                None => first = Some(drawn),
                Some(other) if other == drawn => {}
                // The first drawn wins a tie: the draw was random already.
                Some(other) => return Some(if cost(drawn) < cost(other) { drawn } else { other }),
            }
        }
        first
    }

    fn least_requests(
        &self,
        servers: &impl Candidates,
        random: &mut fastrand::Rng,
        eligible: &impl Fn(&usize) -> bool,
    ) -> Option<usize> {
        let mut least = Least::default();
        let mut consider = |at: usize, random: &mut fastrand::Rng| {
            if eligible(&at) {
                least.consider(at, self.load(servers, at), self.weights[at], random);
            }
        };
        if self.weights.len() <= LOOK_AT_ALL {
            (0..self.weights.len()).for_each(|at| consider(at, random));
        } else {
            // Looking at one twice changes nothing but the tie, so distinctness costs no set.
            for _ in 0..LOOK_AT_SOME {
                if let Some(at) = self.schedule.slot(random.u32(..)) {
                    consider(at, random);
                }
            }
        }
        least.chosen
    }

    /// Any eligible server, by weight: for when draws found none.
    fn any(&self, random: &mut fastrand::Rng, eligible: &impl Fn(&usize) -> bool) -> Option<usize> {
        let mut least = Least::default();
        for at in (0..self.weights.len()).filter(|at| eligible(at)) {
            least.consider(at, 0.0, self.weights[at], random);
        }
        least.chosen
    }
}

/// The least loaded of what was considered; ties are drawn by weight.
#[derive(Default)]
struct Least {
    chosen: Option<usize>,
    load: f64,
    tied_weight: u32,
}

impl Least {
    fn consider(&mut self, at: usize, load: f64, weight: u32, random: &mut fastrand::Rng) {
        if self.chosen.is_none() || load < self.load {
            *self = Least { chosen: Some(at), load, tied_weight: weight };
        } else if load == self.load {
            self.tied_weight += weight;
            if random.u32(..self.tied_weight) < weight {
                self.chosen = Some(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone)]
    struct Fake {
        in_flight: Vec<u32>,
        latency: Vec<f64>,
        out: Vec<usize>,
    }

    impl Fake {
        fn idle(count: usize) -> Self {
            Fake { in_flight: vec![0; count], latency: vec![1e6; count], out: Vec::new() }
        }
    }

    impl Candidates for Fake {
        fn eligible(&self, at: usize) -> bool {
            !self.out.contains(&at)
        }
        fn in_flight(&self, at: usize) -> u32 {
            self.in_flight[at]
        }
        fn latency(&self, at: usize) -> f64 {
            self.latency[at]
        }
        fn identity(&self, at: usize) -> u64 {
            at as u64 + 100
        }
    }

    fn shares(balance: Balance, weights: &[u32], servers: &Fake, picks: usize) -> Vec<usize> {
        let policy = Policy::new(balance, weights);
        let mut random = fastrand::Rng::with_seed(7);
        let turn = AtomicU32::new(5);
        let mut counts = vec![0; weights.len()];
        for key in 0..picks {
            let mut chance = Chance { random: &mut random, turn: &turn, key: mix(key as u64) };
            counts[policy.pick(servers, &mut chance).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn every_policy_is_fair_by_weight_over_idle_servers_and_gives_weight_0_nothing() {
        for balance in [Balance::RoundRobin, Balance::LeastRequests, Balance::P2c, Balance::Hash] {
            let counts = shares(balance, &[1, 2, 5, 0], &Fake::idle(4), 8_000);
            assert_eq!(counts[3], 0, "{balance}");
            for (count, wanted) in counts.iter().zip([1_000, 2_000, 5_000]) {
                assert!(count.abs_diff(wanted) < wanted / 5, "{balance}: {counts:?}");
            }
        }
    }

    #[test]
    fn round_robin_is_exact_after_each_whole_round() {
        assert_eq!(shares(Balance::RoundRobin, &[3, 1, 2], &Fake::idle(3), 60), [30, 10, 20]);
    }

    #[test]
    fn ties_do_not_all_go_to_the_first() {
        for balance in [Balance::LeastRequests, Balance::P2c, Balance::PeakEwma] {
            let counts = shares(balance, &[1; 4], &Fake::idle(4), 4_000);
            assert!(counts.iter().all(|count| *count > 800), "{balance}: {counts:?}");
        }
    }

    #[test]
    fn least_requests_takes_the_least_loaded_and_p2c_never_the_most_loaded() {
        let mut servers = Fake::idle(3);
        servers.in_flight = vec![5, 1, 9];
        assert_eq!(shares(Balance::LeastRequests, &[1; 3], &servers, 100), [0, 100, 0]);
        assert_eq!(shares(Balance::P2c, &[1; 3], &servers, 1_000)[2], 0);
        // Per unit of weight, 5 of 10 is less than 1 of 1.
        assert_eq!(shares(Balance::LeastRequests, &[10, 1, 1], &servers, 100), [100, 0, 0]);
    }

    #[test]
    fn peak_ewma_shuns_the_slow() {
        let mut servers = Fake::idle(2);
        servers.latency = vec![1e6, 50e6];
        assert_eq!(shares(Balance::PeakEwma, &[1, 1], &servers, 100)[1], 0);
    }

    #[test]
    fn one_eligible_of_many_is_found() {
        for balance in Balance::ALL {
            let mut servers = Fake::idle(100);
            servers.out = (0..100).filter(|at| *at != 77).collect();
            assert_eq!(shares(*balance, &[1; 100], &servers, 20)[77], 20, "{balance}");
            servers.out.push(77);
            let mut random = fastrand::Rng::with_seed(1);
            let mut chance = Chance { random: &mut random, turn: &AtomicU32::new(0), key: 1 };
            assert_eq!(Policy::new(*balance, &[1; 100]).pick(&servers, &mut chance), None);
        }
    }

    proptest! {
        /// Rendezvous: taking one server away moves only the keys that were its own.
        #[test]
        fn removal_moves_only_the_removed_servers_keys(key: u64, gone in 0usize..8) {
            let policy = Policy::new(Balance::Hash, &[1, 1, 2, 1, 3, 1, 1, 1]);
            let mut servers = Fake::idle(8);
            let before = policy.by_hash(&servers, key).unwrap();
            servers.out.push(gone);
            let after = policy.by_hash(&servers, key).unwrap();
            let kept = before != gone;
            prop_assert_eq!(after == before, kept);
        }
    }
}
