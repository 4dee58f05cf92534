//! A pool: its servers, and the one choice that everything turns on.
//!
//! Definition and live state are two types. [`Pool`] is built anew with every snapshot; [`ServerState`] is keyed by
//! (pool, server name) and outlives reloads, so reordering, re-weighting or re-addressing servers keeps every pin,
//! every count and every ejection.

mod line;
mod load;
mod server;
mod sessions;
mod wish;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use line::Waiting;
pub use load::{Imbalance, LoadWindow, SAMPLE_EVERY};
pub use server::{InFlight, Server, ServerSettings, ServerState};
pub use sessions::{Countdown, Sessions};
pub use wish::{Wish, Wishes, parse_own_word};

use arc_swap::ArcSwap;

use crate::affinity::{Affinity, Preference};
use crate::balance::{Balance, Candidates, Chance, Policy, mix, rendezvous};
use crate::clock::Moment;
use crate::health::OutlierSettings;
use crate::metrics::{PoolMetrics, WorkerId};
use crate::names::{Ineligible, MovedWhy, NoneWhy, RefusedWhy, Verdict, words};

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
    pub rules: PinRules,
    pub retries: Arc<Retries>,
    pub workers: usize,
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
}

/// Servers that are looked at for a pin's cost.
const LOOK_AT: usize = 16;

enum Choice {
    Server(usize, Verdict),
    /// The pinned session's own server is at its cap.
    Line(usize),
}

/// What an exchange has come by.
pub enum Picked {
    Server(Pick),
    /// A place in the line of the server at this position.
    Line {
        server: usize,
        waiting: Waiting,
    },
}

/// A server chosen for an attempt.
pub struct Pick {
    /// Its position in the pool.
    pub server: usize,
    pub verdict: Verdict,
    /// What keeping it cost, where it was kept.
    pub cost: Option<Cost>,
    /// Held while the server works on the exchange.
    pub guard: InFlight,
}

/// What a pin cost at the moment of choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// The expected wait on the pinned server over that on the best one.
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
        Pool {
            tiers: ArcSwap::from_pointee(build_tiers(&parts.servers, parts.balance)),
            balance: parts.balance,
            // Each worker begins at a random place, or n workers would send n newcomers to the first server.
            turns: (0..=parts.workers).map(|_| AtomicU32::new(random.u32(..))).collect(),
            name: parts.name,
            servers: parts.servers,
            affinity: parts.affinity,
            metrics: parts.metrics,
            outlier: parts.outlier,
            rules: parts.rules,
            retries: parts.retries,
        }
    }

    /// Chooses the server of an attempt, or a place in the line of a pinned session's own server.
    pub fn pick(&self, ask: &Ask<'_>, random: &mut fastrand::Rng) -> Result<Picked, NoServer> {
        // A server may fill up between being found eligible and being entered; then it is out of the next round.
        let mut full = ask.tried.clone();
        loop {
            let (server, verdict) = match self.choose(ask, &full, random)? {
                Choice::Server(server, verdict) => (server, verdict),
                Choice::Line(server) => match Waiting::join(&self.servers[server], self.rules.queue_length()) {
                    Some(waiting) => return Ok(Picked::Line { server, waiting }),
                    None if self.rules.fails() => return Err(NoServer(Verdict::Refused(RefusedWhy::Full))),
                    None => {
                        full.add(server);
                        continue;
                    }
                },
            };
            // What keeping it costs is asked before the exchange itself counts.
            let cost = (verdict == Verdict::Kept).then(|| self.cost_of(server, ask, random));
            match InFlight::enter(&self.servers[server]) {
                Some(guard) => return Ok(Picked::Server(Pick { server, verdict, cost, guard })),
                // Others were faster: a hard session waits for its own server all the same.
                None if verdict == Verdict::Kept && self.may_queue(ask) && !full.contains(server) => {
                    match Waiting::join(&self.servers[server], self.rules.queue_length()) {
                        Some(waiting) => return Ok(Picked::Line { server, waiting }),
                        None => full.add(server),
                    }
                }
                None => full.add(server),
            }
        }
    }

    fn may_queue(&self, ask: &Ask<'_>) -> bool {
        ask.may_wait && self.rules.kind == PinKind::Hard && self.rules.queue_length() > 0
    }

    fn choose(&self, ask: &Ask<'_>, out: &Tried, random: &mut fastrand::Rng) -> Result<Choice, NoServer> {
        match ask.preference {
            Preference::Pinned { server, session } => self.pinned(server, session, ask, out, random),
            Preference::Hashed { key } => match self.home_of(key) {
                Some(server) => self.pinned(server, key, ask, out, random),
                None => Err(NoServer(Verdict::None(NoneWhy::NoServer))),
            },
            Preference::Gone { session } => self.moved(session, MovedWhy::Gone, out, ask.now),
            Preference::None(why) => self.newcomer(Verdict::None(why), ask, out, random),
            Preference::New(why) => self.newcomer(Verdict::New(why), ask, out, random),
        }
    }

    /// What becomes of a session that belongs to `server` (the table of README, "When the pinned server cannot serve").
    fn pinned(
        &self,
        server: usize,
        session: u64,
        ask: &Ask<'_>,
        out: &Tried,
        random: &mut fastrand::Rng,
    ) -> Result<Choice, NoServer> {
        let fails = self.rules.fails();
        let refused = |why| Err(NoServer(Verdict::Refused(why)));
        if ask.tried.contains(server) {
            return if fails { refused(RefusedWhy::Down) } else { self.moved(session, MovedWhy::Failed, out, ask.now) };
        }
        let hard = self.rules.kind == PinKind::Hard;
        let unfit = if hard {
            self.servers[server].unfit_for_pinned(ask.now)
        } else {
            self.servers[server].unfit(ask.now).filter(|why| *why != Ineligible::Weightless)
        };
        let full = unfit == Some(Ineligible::Full) || out.contains(server);
        match unfit {
            _ if full && self.may_queue(ask) && !out.contains(server) => Ok(Choice::Line(server)),
            _ if full && hard && fails => {
                refused(if ask.may_wait { RefusedWhy::Full } else { RefusedWhy::QueueTimeout })
            }
            _ if full => self.moved(session, MovedWhy::Full, out, ask.now),
            Some(Ineligible::Down) if fails => refused(RefusedWhy::Down),
            Some(reason) => self.moved(session, reason.moved(), out, ask.now),
            None => Ok(self.kept_within_margin(server, session, out, ask.now, random)),
        }
    }

    /// A soft pin may cost so many requests in flight, and no more: then the session goes to the first of its
    /// rendezvous order that is within the margin.
    fn kept_within_margin(
        &self,
        server: usize,
        session: u64,
        out: &Tried,
        now: Moment,
        random: &mut fastrand::Rng,
    ) -> Choice {
        let PinKind::Soft { margin } = self.rules.kind else { return Choice::Server(server, Verdict::Kept) };
        let margin = f64::from(margin);
        let load = |server: &Server| f64::from(server.state.in_flight()) / f64::from(server.weight().max(1));
        let tiers = self.tiers.load();
        let best =
            tiers.iter().find_map(|tier| tier.policy.least_load(&TierView { pool: self, tier, out, now }, random));
        let Some(best) = best.filter(|best| load(&self.servers[server]) > best + margin) else {
            return Choice::Server(server, Verdict::Kept);
        };
        let near = |at: &usize| load(&self.servers[*at]) <= best + margin;
        match self.successor(session, out, now, near) {
            Some(to) => Choice::Server(to, Verdict::Moved(MovedWhy::Margin)),
            None => Choice::Server(server, Verdict::Kept),
        }
    }

    /// What keeping a session on its server costs: its regret is `latency x in flight / weight` over that of the best of
    /// the servers looked at (all of a small pool, some of a large one).
    pub fn cost_of(&self, server: usize, ask: &Ask<'_>, random: &mut fastrand::Rng) -> Cost {
        let wait = |server: &Server, in_flight: u32| {
            server.state.latency.last_nanos() * f64::from(in_flight) / f64::from(server.weight().max(1))
        };
        let count = self.servers.len();
        let looked_at = (0..count.min(LOOK_AT)).map(|at| if count > LOOK_AT { random.usize(..count) } else { at });
        let others = looked_at.filter(|at| *at != server).map(|at| &self.servers[at]);
        let fit = others.filter(|other| other.unfit(ask.now).is_none());
        let best = fit.map(|other| wait(other, other.state.in_flight() + 1)).fold(f64::INFINITY, f64::min);
        let own = wait(&self.servers[server], self.servers[server].state.in_flight() + 1);
        let regret = if best.is_finite() { (own - best).max(0.0) } else { 0.0 };
        Cost { regret: Duration::from_nanos(regret as u64), disagrees: self.disagrees(server, ask, random) }
    }

    /// Whether the policy alone would have chosen another server. A hash of all servers is too much for a statistic.
    fn disagrees(&self, server: usize, ask: &Ask<'_>, random: &mut fastrand::Rng) -> bool {
        if self.balance == Balance::Hash {
            return false;
        }
        let turn = AtomicU32::new(random.u32(..));
        let mut chance = Chance { random, turn: &turn, key: ask.key };
        let tiers = self.tiers.load();
        let chosen = tiers.iter().find_map(|tier| {
            let view = TierView { pool: self, tier, out: ask.tried, now: ask.now };
            tier.policy.pick(&view, &mut chance).map(|at| tier.members[at])
        });
        chosen.is_some_and(|chosen| chosen != server)
    }

    /// The first of the rendezvous order of a key over all servers, whether they can serve or not. The file's weights
    /// count: one that is changed while running must not move sessions unseen.
    fn home_of(&self, key: u64) -> Option<usize> {
        let tiers = self.tiers.load();
        tiers.iter().find_map(|tier| {
            let members = tier.members.iter().map(|at| (*at, &self.servers[*at]));
            let weighted = members.map(|(at, server)| (at, server.identity, server.settings.weight));
            rendezvous(mix(key), weighted.filter(|(_, _, weight)| *weight > 0))
        })
    }

    fn moved(&self, session: u64, why: MovedWhy, out: &Tried, now: Moment) -> Result<Choice, NoServer> {
        let to = self.successor(session, out, now, |_| true).ok_or(NoServer(Verdict::None(NoneWhy::NoServer)))?;
        Ok(Choice::Server(to, Verdict::Moved(why)))
    }

    fn newcomer(
        &self,
        verdict: Verdict,
        ask: &Ask<'_>,
        out: &Tried,
        random: &mut fastrand::Rng,
    ) -> Result<Choice, NoServer> {
        let mut chance = Chance { random, turn: &self.turns[ask.worker.0], key: ask.key };
        let tiers = self.tiers.load();
        let chosen = tiers.iter().find_map(|tier| {
            let view = TierView { pool: self, tier, out, now: ask.now };
            tier.policy.pick(&view, &mut chance).map(|at| tier.members[at])
        });
        chosen.map(|server| Choice::Server(server, verdict)).ok_or(NoServer(Verdict::None(NoneWhy::NoServer)))
    }

    /// Where a session moves to: the weighted rendezvous of its id over the eligible servers, so that concurrent
    /// requests, other workers and other proxies move it to the same place.
    fn successor(&self, session: u64, out: &Tried, now: Moment, near: impl Fn(&usize) -> bool) -> Option<usize> {
        self.tiers.load().iter().find_map(|tier| {
            let view = TierView { pool: self, tier, out, now };
            let eligible = (0..tier.members.len()).filter(|at| view.eligible(*at) && near(&tier.members[*at]));
            let scored = eligible.map(|at| (at, view.identity(at), tier.weights[at]));
            rendezvous(mix(session), scored).map(|at| tier.members[at])
        })
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

    /// What a choice would be now; nothing is entered and nobody waits.
    pub fn preview(&self, ask: &Ask<'_>, random: &mut fastrand::Rng) -> Result<(usize, Verdict), NoServer> {
        match self.choose(ask, ask.tried, random)? {
            Choice::Server(server, verdict) => Ok((server, verdict)),
            Choice::Line(server) => Ok((server, Verdict::Waited)),
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
