//! A pool: its servers, and the one choice that everything turns on.
//!
//! Definition and live state are two types. [`Pool`] is built anew with every snapshot; [`ServerState`] is keyed by
//! (pool, server name) and outlives reloads, so reordering, re-weighting or re-addressing servers keeps every pin,
//! every count and every ejection.

mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub use server::{InFlight, Server, ServerSettings, ServerState};

use crate::affinity::{Affinity, Preference};
use crate::balance::{Balance, Candidates, Chance, Policy, mix, rendezvous};
use crate::clock::Moment;
use crate::health::OutlierSettings;
use crate::metrics::{PoolMetrics, WorkerId};
use crate::names::{Ineligible, MovedWhy, NoneWhy, Verdict};

/// How retries are bounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Share of the pool's requests in flight, 0 to 1.
    pub share: f64,
    /// Always allowed.
    pub floor: u32,
}

/// The servers of one pool in one snapshot.
pub struct Pool {
    pub name: Arc<str>,
    pub servers: Vec<Server>,
    pub affinity: Option<Affinity>,
    pub metrics: Arc<PoolMetrics>,
    pub outlier: OutlierSettings,
    /// Servers that serve, and those for when none of them can.
    tiers: [Tier; 2],
    /// Where round-robin stands, per worker.
    turns: Box<[AtomicU32]>,
    retries: Arc<Retries>,
}

/// Retries under way; outlives reloads.
#[derive(Default)]
pub struct Retries(AtomicU32);

/// What a pool is built from.
pub struct PoolParts {
    pub name: Arc<str>,
    pub balance: Balance,
    pub servers: Vec<Server>,
    pub affinity: Option<Affinity>,
    pub metrics: Arc<PoolMetrics>,
    pub outlier: OutlierSettings,
    pub retries: Arc<Retries>,
    pub workers: usize,
}

struct Tier {
    members: Vec<usize>,
    policy: Policy,
}

/// The servers that earlier attempts of an exchange went to.
#[derive(Clone, Debug, Default)]
pub struct Tried(Vec<usize>);

impl Tried {
    /// Remembers one more.
    pub fn add(&mut self, server: usize) {
        self.0.push(server);
    }

    /// Whether an attempt went there.
    pub fn contains(&self, server: usize) -> bool {
        self.0.contains(&server)
    }
}

/// A server chosen for an attempt.
pub struct Pick {
    /// Its position in the pool.
    pub server: usize,
    pub verdict: Verdict,
    /// Held while the server works on the exchange.
    pub guard: InFlight,
}

/// No server is eligible.
#[derive(Debug, PartialEq, Eq)]
pub struct NoServer(pub Verdict);

impl Pool {
    /// The one constructor, for serving and for models alike.
    pub fn build(parts: PoolParts, random: &mut fastrand::Rng) -> Self {
        let tier = |backup: bool| {
            let members: Vec<usize> =
                (0..parts.servers.len()).filter(|at| parts.servers[*at].settings.backup == backup).collect();
            let weights: Vec<u32> = members.iter().map(|at| parts.servers[*at].settings.weight).collect();
            Tier { members, policy: Policy::new(parts.balance, &weights) }
        };
        Pool {
            tiers: [tier(false), tier(true)],
            // Each worker begins at a random place, or n workers would send n newcomers to the first server.
            turns: (0..=parts.workers).map(|_| AtomicU32::new(random.u32(..))).collect(),
            name: parts.name,
            servers: parts.servers,
            affinity: parts.affinity,
            metrics: parts.metrics,
            outlier: parts.outlier,
            retries: parts.retries,
        }
    }

    /// Chooses the server of an attempt. `key` is what `hash` hashes when the session is not known.
    pub fn pick(
        &self,
        preference: Preference,
        tried: &Tried,
        key: u64,
        worker: WorkerId,
        now: Moment,
        random: &mut fastrand::Rng,
    ) -> Result<Pick, NoServer> {
        // A server may fill up between being found eligible and being entered; then it is out of the next round.
        let mut full = tried.clone();
        loop {
            let (server, verdict) = self.choose(preference, &full, tried, key, worker, now, random)?;
            match InFlight::enter(&self.servers[server]) {
                Some(guard) => return Ok(Pick { server, verdict, guard }),
                None => full.add(server),
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the inputs of one pure decision")]
    fn choose(
        &self,
        preference: Preference,
        out: &Tried,
        tried: &Tried,
        key: u64,
        worker: WorkerId,
        now: Moment,
        random: &mut fastrand::Rng,
    ) -> Result<(usize, Verdict), NoServer> {
        let moved = |session: u64, why: MovedWhy| {
            let to = self.successor(session, out, now).ok_or(NoServer(Verdict::None(NoneWhy::NoServer)))?;
            Ok((to, Verdict::Moved(why)))
        };
        match preference {
            Preference::Pinned { server, session } => match self.servers[server].unfit_for_pinned() {
                _ if tried.contains(server) => moved(session, MovedWhy::Failed),
                _ if out.contains(server) => moved(session, MovedWhy::Full),
                Some(reason) => moved(session, reason.moved()),
                None => Ok((server, Verdict::Kept)),
            },
            Preference::Gone { session } => moved(session, MovedWhy::Gone),
            Preference::None(why) => self.newcomer(Verdict::None(why), out, key, worker, now, random),
            Preference::New(why) => self.newcomer(Verdict::New(why), out, key, worker, now, random),
        }
    }

    fn newcomer(
        &self,
        verdict: Verdict,
        out: &Tried,
        key: u64,
        worker: WorkerId,
        now: Moment,
        random: &mut fastrand::Rng,
    ) -> Result<(usize, Verdict), NoServer> {
        let mut chance = Chance { random, turn: &self.turns[worker.0], key };
        let chosen = self.tiers.iter().find_map(|tier| {
            let view = TierView { pool: self, tier, out, now };
            tier.policy.pick(&view, &mut chance).map(|at| tier.members[at])
        });
        chosen.map(|server| (server, verdict)).ok_or(NoServer(Verdict::None(NoneWhy::NoServer)))
    }

    /// Where a session moves to: the weighted rendezvous of its id over the eligible servers, so that concurrent
    /// requests, other workers and other proxies move it to the same place.
    fn successor(&self, session: u64, out: &Tried, now: Moment) -> Option<usize> {
        self.tiers.iter().find_map(|tier| {
            let view = TierView { pool: self, tier, out, now };
            let eligible = (0..tier.members.len()).filter(|at| view.eligible(*at));
            let scored = eligible.map(|at| (at, view.identity(at), self.servers[tier.members[at]].settings.weight));
            rendezvous(mix(session), scored).map(|at| tier.members[at])
        })
    }

    /// Takes in what an attempt showed of a server's health; says for how long it is ejected, if now it is.
    pub fn observe(&self, server: usize, well: bool, now: Moment) -> Option<std::time::Duration> {
        let state = &self.servers[server].state;
        if well {
            state.outlier.succeeded(&self.outlier, now);
            return None;
        }
        state.outlier.failed(&self.outlier, now, || {
            // Who is down is out as well: ejecting must not take the last one that lives.
            let is_out = |server: &&Server| server.state.outlier.is_ejected(now) || server.state.vitals.is_down();
            let out = self.servers.iter().filter(is_out).count();
            (out + 1) as f64 <= self.servers.len() as f64 * self.outlier.max_ejected
        })
    }

    /// Takes one retry from the budget, if it has one left.
    pub fn try_retry(&self, budget: RetryBudget) -> Option<RetryGuard> {
        let in_flight: u32 = self.servers.iter().map(|server| server.state.in_flight()).sum();
        let allowed = budget.floor.max((f64::from(in_flight) * budget.share) as u32);
        let guard = RetryGuard(Arc::clone(&self.retries));
        (self.retries.0.fetch_add(1, Ordering::Relaxed) < allowed).then_some(guard)
    }

    /// The retries under way, for the pool that replaces this one.
    pub fn retries(&self) -> Arc<Retries> {
        Arc::clone(&self.retries)
    }

    /// Whether any server is at its cap now.
    pub fn is_any_full(&self) -> bool {
        self.servers.iter().any(|server| server.unfit_for_pinned() == Some(Ineligible::Full))
    }
}

/// One retry under way.
pub struct RetryGuard(Arc<Retries>);

impl Drop for RetryGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The servers of one tier as the policy sees them.
struct TierView<'a> {
    pool: &'a Pool,
    tier: &'a Tier,
    out: &'a Tried,
    now: Moment,
}

impl TierView<'_> {
    fn server(&self, at: usize) -> &Server {
        &self.pool.servers[self.tier.members[at]]
    }
}

impl Candidates for TierView<'_> {
    fn eligible(&self, at: usize) -> bool {
        !self.out.contains(self.tier.members[at]) && self.server(at).unfit(self.now).is_none()
    }

    fn in_flight(&self, at: usize) -> u32 {
        self.server(at).state.in_flight()
    }

    fn latency(&self, at: usize) -> f64 {
        self.server(at).state.latency.nanos(self.now)
    }

    fn identity(&self, at: usize) -> u64 {
        self.server(at).identity
    }
}

impl Server {
    /// Why the server may not receive a newcomer now.
    pub fn unfit(&self, now: Moment) -> Option<Ineligible> {
        if self.settings.weight == 0 {
            return Some(Ineligible::Weightless);
        }
        if self.state.outlier.is_ejected(now) {
            return Some(Ineligible::Ejected);
        }
        self.unfit_for_pinned()
    }

    /// Why the server may not receive a session that is hard-pinned to it: an ejected one still gets those, as the
    /// session's state lives nowhere else.
    pub fn unfit_for_pinned(&self) -> Option<Ineligible> {
        if self.state.vitals.is_down() {
            return Some(Ineligible::Down);
        }
        let cap = self.settings.max_requests;
        (cap > 0 && self.state.in_flight() >= cap).then_some(Ineligible::Full)
    }
}

#[cfg(test)]
mod tests;
