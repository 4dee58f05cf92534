//! A pool: its servers, and the one choice that everything turns on.
//!
//! Definition and live state are two types. [`Pool`] is built anew with every snapshot; [`ServerState`] is keyed by
//! (pool, server name) and outlives reloads, so reordering, re-weighting or re-addressing servers keeps every pin,
//! every count and every ejection.

mod choose;
mod join;
mod line;
mod load;
mod server;
mod sessions;
mod shadow;
mod wish;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use join::{InUseGuard, Rebalancing};
pub use line::Waiting;
pub use load::{Imbalance, Load, LoadWindow, SAMPLE_EVERY, ServerLoad};
pub use server::{InFlight, Server, ServerSettings, ServerState};
pub use sessions::{Countdown, Sessions};
pub use shadow::Shadow;
pub use wish::{Wish, Wishes, parse_own_word};

use arc_swap::ArcSwap;

use crate::affinity::{Affinity, Preference};
use crate::balance::{Balance, Policy};
use crate::clock::Moment;
use crate::health::OutlierSettings;
use crate::metrics::{PoolMetrics, WorkerId};
use crate::names::{Ineligible, Verdict, words};
use crate::rate::Rate;

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
    pub rules: PinRules,
    /// Servers that serve, and those for when none of them can; made anew when a weight changes.
    tiers: ArcSwap<[Tier; 2]>,
    balance: Balance,
    /// Where round-robin stands, per worker.
    turns: Box<[AtomicU32]>,
    /// The same for the shadow.
    shadow_turns: Box<[AtomicU32]>,
    retries: Arc<Retries>,
    /// Over how long a server that joins is admitted new sessions.
    slow_start: Option<Duration>,
    /// How many sessions may come over to servers that have joined.
    rebalance: Option<Rate>,
    rebalancing: Arc<Rebalancing>,
    /// What keeping a pin costs is worked out.
    weighs_pins: bool,
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
    pub rules: PinRules,
    pub retries: Arc<Retries>,
    pub slow_start: Option<Duration>,
    pub rebalance: Option<Rate>,
    pub rebalancing: Arc<Rebalancing>,
    pub workers: usize,
    /// Somebody wants to know what pins cost.
    pub weighs_pins: bool,
}

impl PoolParts {
    /// A pool of one worker without affinity, bounds and second thoughts: what tests and models begin with.
    pub fn plain(balance: Balance, servers: Vec<Server>, metrics: Arc<PoolMetrics>) -> Self {
        PoolParts {
            name: "shop".into(),
            balance,
            servers,
            affinity: None,
            metrics,
            outlier: OutlierSettings { consecutive_failures: 2, ejection: Duration::from_secs(10), max_ejected: 0.5 },
            rules: PinRules::default(),
            retries: Arc::default(),
            slow_start: None,
            rebalance: None,
            rebalancing: Arc::default(),
            workers: 1,
            weighs_pins: true,
        }
    }
}

struct Tier {
    members: Vec<usize>,
    weights: Vec<u32>,
    policy: Policy,
}

fn build_tiers(servers: &[Server], balance: Balance) -> [Tier; 2] {
    [false, true].map(|backup| {
        let members: Vec<usize> = (0..servers.len()).filter(|at| servers[*at].settings.backup == backup).collect();
        let weights: Vec<u32> = members.iter().map(|at| servers[*at].weight()).collect();
        Tier { policy: Policy::new(balance, &weights), members, weights }
    })
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

/// What binds a session to its server, and how firmly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinRules {
    pub kind: PinKind,
    pub when_unavailable: WhenUnavailable,
    /// How many may wait for their own server when it is at its cap.
    pub queue: Queue,
}

impl PinRules {
    fn fails(&self) -> bool {
        self.when_unavailable == WhenUnavailable::Fail && self.kind == PinKind::Hard
    }

    fn queue_length(&self) -> u32 {
        self.queue.length
    }
}

/// The waiting line of a pinned session's server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    pub length: u32,
    pub timeout: Duration,
}

/// What a pin stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PinKind {
    /// State lives on the server: move only when it cannot serve.
    #[default]
    Hard,
    /// Affinity is for warmth: move when it costs more requests in flight, per unit of weight, than this.
    Soft { margin: u32 },
}

words! {
    /// What happens to a session whose server cannot serve.
    #[derive(Default)]
    WhenUnavailable {
        #[default]
        Move = "move",
        Fail = "fail",
    }
}

/// What a choice goes by.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    pub preference: Preference,
    /// Where earlier attempts of the exchange went.
    pub tried: &'a Tried,
    /// What `hash` hashes where the session is not known.
    pub key: u64,
    pub worker: WorkerId,
    pub now: Moment,
    /// Whether the exchange may still wait in a line: not if it has.
    pub may_wait: bool,
    /// Whether the session has no other exchange in flight in this proxy, as far as that matters.
    pub alone: bool,
}

/// What an exchange has come by.
pub enum Picked {
    Server(Pick),
    /// A place in the line of the server at this position.
    Line {
        server: usize,
        waiting: Waiting,
        /// What its pin costs, as of now.
        regret: Duration,
    },
}

/// A server chosen for an attempt.
pub struct Pick {
    /// Its position in the pool.
    pub server: usize,
    pub verdict: Verdict,
    /// What its pin costs, where it was kept, or waited for.
    pub cost: Option<Cost>,
    /// Held as long: its place where the balance policy alone would have sent it.
    pub shadow: Option<Shadow>,
    /// Held while the server works on the exchange.
    pub guard: InFlight,
}

/// What a pin that held cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// The expected wait on the pinned server over that on the best one: when it was chosen, or its line was joined.
    pub regret: Duration,
    /// The balance policy would have placed it elsewhere.
    pub disagrees: bool,
}

/// No server is eligible.
#[derive(Debug, PartialEq, Eq)]
pub struct NoServer(pub Verdict);

impl Pool {
    /// The one constructor, for serving and for models alike.
    pub fn build(parts: PoolParts, random: &mut fastrand::Rng) -> Self {
        // Each worker begins at a random place, or n workers would send n newcomers to the first server.
        let mut turns = || (0..=parts.workers).map(|_| AtomicU32::new(random.u32(..))).collect();
        Pool {
            tiers: ArcSwap::from_pointee(build_tiers(&parts.servers, parts.balance)),
            balance: parts.balance,
            turns: turns(),
            shadow_turns: turns(),
            name: parts.name,
            servers: parts.servers,
            affinity: parts.affinity,
            metrics: parts.metrics,
            outlier: parts.outlier,
            rules: parts.rules,
            retries: parts.retries,
            slow_start: parts.slow_start,
            rebalance: parts.rebalance,
            rebalancing: parts.rebalancing,
            weighs_pins: parts.weighs_pins,
        }
    }

    /// Takes in what an attempt showed of a server's health; says for how long it is ejected, if now it is.
    pub fn observe(&self, server: usize, well: bool, now: Moment) -> Option<Duration> {
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

    /// Whether only backups can take newcomers now.
    fn serves_by_backup(&self, now: Moment) -> bool {
        !self.servers.iter().any(|server| !server.settings.backup && server.unfit(now).is_none())
    }

    /// The servers that share newcomers now.
    fn takers(&self, now: Moment) -> impl Iterator<Item = &Server> {
        let backup = self.serves_by_backup(now);
        self.servers.iter().filter(move |server| server.settings.backup == backup && server.unfit(now).is_none())
    }

    /// Whether any server is at its cap now.
    pub fn is_any_full(&self, now: Moment) -> bool {
        self.servers.iter().any(|server| server.unfit_for_pinned(now) == Some(Ineligible::Full))
    }

    /// Puts in force what the definition says of the live state; called once the snapshot is.
    pub fn adopt(&self) {
        self.servers.iter().for_each(Server::adopt);
        self.reweigh();
    }

    /// The policy by which newcomers are placed.
    pub fn balance(&self) -> Balance {
        self.balance
    }

    /// Brings the schedules in line with the weights, where those have changed.
    pub fn reweigh(&self) {
        let fits = |tier: &Tier| {
            tier.members.iter().zip(&tier.weights).all(|(at, weight)| self.servers[*at].weight() == *weight)
        };
        if !self.tiers.load().iter().all(fits) {
            self.tiers.store(Arc::new(build_tiers(&self.servers, self.balance)));
        }
    }
}

/// One retry under way.
pub struct RetryGuard(Arc<Retries>);

impl Drop for RetryGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// Why the server may not receive a newcomer now.
    pub fn unfit(&self, now: Moment) -> Option<Ineligible> {
        match self.state.wishes.effective() {
            Wish::Maint => return Some(Ineligible::Maint),
            Wish::Drain => return Some(Ineligible::Draining),
            Wish::Ready => {}
        }
        if self.state.outlier.is_ejected(now) {
            return Some(Ineligible::Ejected);
        }
        // Last, as a pinned session does not mind it.
        self.unfit_for_pinned(now).or((self.weight() == 0).then_some(Ineligible::Weightless))
    }

    /// Why the server may not receive a session that is hard-pinned to it: an ejected one still gets those, as the
    /// session's state lives nowhere else.
    pub fn unfit_for_pinned(&self, now: Moment) -> Option<Ineligible> {
        match self.state.wishes.effective() {
            Wish::Maint => return Some(Ineligible::Maint),
            Wish::Drain if self.state.wishes.is_past_deadline(now) => return Some(Ineligible::Draining),
            Wish::Drain | Wish::Ready => {}
        }
        if self.state.vitals.is_down() {
            return Some(Ineligible::Down);
        }
        let cap = self.state.cap();
        (cap > 0 && self.state.in_flight() >= cap).then_some(Ineligible::Full)
    }
}

#[cfg(test)]
mod tests;
