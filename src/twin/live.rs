//! The twin of a pool that serves: exchanges in as they are settled, once in a while a report out.
//!
//! It runs some seconds behind, as what an exchange cost is known when it has ended and those beside it have as well. Who
//! lasts longer than that is left out, and counted. Arrivals are those at the proxy: what came before the server (a
//! waiting line, a store) is modelled, not replayed.
//!
//! **Sampling.** Each exchange is an event in each of the models. Above its budget of events the twin looks at a part of the sessions ([`Sample`]), and its servers are made
//! smaller by as much, so that they are as busy: capacities, caps, lines and margins are multiplied by the share, rounded,
//! and never fall below one. A capacity that is found out is found out in the sample, and needs no scaling. Speed is left
//! alone: demands come out of the same latencies, so a slower server would only have smaller demands. For servers that
//! share, the number in flight in the sample stands for the number in all, with more noise; for FIFO servers, few workers
//! queue more than many at the same load. Both make modelled latencies longer, and the fit says by how much.
//!
//! **Speeds.** A server that is slower than the others makes each request it has take longer, and that is not what the
//! request would take elsewhere: demands are those of the server in the middle ([`Speeds`]), and its own speed goes with a
//! server into the models.
//!
//! **Who is there.** Servers that drain have their pinned sessions only; those that take nobody are not in the models. When
//! that changes, or what is known of capacities, disciplines and speeds, the models start anew with empty servers; a report comes a
//! window later.
//!
//! **Pins.** A session that was pinned when a model meets it for the first time is pinned there in the model as well. A
//! newcomer is placed by each model itself, but for those of the policy in force: these place it where it was really
//! placed, so that fit says how well servers and demands are modelled, and not who was lucky.
//!
//! **Heavy sessions** are read off what is played: each request's demand is its session's work ([`Heavy`]). In a sample, shares
//! are of the work of the sample.

use std::time::Duration;

use super::heavy::SessionWork;
use super::sample::{Budget, Sample};
use super::sorted::Sorted;
use super::speeds::Speeds;
use super::{
    Arrival, Demands, Discipline, Heavy, Known, Latencies, Model, Observed, Outcome, Pinned, PolicyModel, ServerModel,
};
use crate::balance::Balance;
use crate::clock::Moment;
use crate::names::words;
use crate::pool::{PinKind, PinRules, WhenUnavailable};

/// How far behind demands are worked out: who lasts longer is left out.
const HORIZON: Duration = Duration::from_secs(5);
/// How long an exchange may have waited before its server for the models to have it in its place.
const REORDER: Duration = Duration::from_secs(2);
/// A window with fewer exchanges than this goes on,
const ENOUGH: u64 = 200;
/// until it is so long.
const LONGEST_WINDOW: Duration = Duration::from_secs(60);
/// Modelled over measured p99, where the answer is to be trusted.
const GOOD_FIT: std::ops::RangeInclusive<f64> = 0.8..=1.25;
/// A modelled p99 of an overload that has no end: the models start anew, or what is under way in them would grow for ever.
const HOPELESS: Duration = Duration::from_secs(30);
/// The share of exchanges that may be missing without that being said.
const MAY_BE_MISSING: f64 = 0.01;
/// Servers that do less at once in the sample are no picture of the real ones.
const FEW_WORKERS: f64 = 4.0;
/// The margin of soft pins, where the pool has none of its own.
const MARGIN: u32 = 4;
/// Models take the same chances, whatever the process.
const SEED: u64 = 1;
/// Exchanges in the buffer of demands, at least and at most.
const BUFFER: std::ops::RangeInclusive<usize> = 10_000..=1_000_000;

words! {
    /// What is compared.
    LivePolicy {
        /// What is in force.
        Actual = "actual",
        /// Hard pins.
        Sticky = "sticky",
        Soft = "soft",
        /// No pins; each request of a session pays the store's round trip.
        Shared = "shared",
    }
}

words! {
    /// Why a report is not to be trusted, or not wholly.
    Doubt {
        /// Fewer exchanges than quantiles need.
        TooFew = "too_few",
        /// Modelled and measured p99 of the policy in force are too far apart.
        Misfit = "misfit",
        /// No server has been so busy that its capacity showed: what more would cost is not known.
        NoLimit = "no_limit",
        /// A policy turned requests away, and its latencies are of the others.
        Refused = "refused",
        /// Events were dropped.
        Dropped = "dropped",
        /// Exchanges came too late, or lasted too long.
        LeftOut = "left_out",
        /// What servers do at once is too little to be scaled with the sample: few workers queue more than many.
        ThinSample = "thin_sample",
    }
}

/// `[pool.twin]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LiveSettings {
    /// Exchanges times the policies that they are played under; more are sampled.
    pub events_per_second: u32,
    /// None: to be found out.
    pub discipline: Option<Discipline>,
    /// What a report is about.
    pub window: Duration,
    pub warm_up: Duration,
    /// Where no store is measured.
    pub store_round_trip: Duration,
}

/// What the configuration says of the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct LivePool {
    /// How newcomers are placed.
    pub balance: Balance,
    /// What a request says decides by itself, and nothing is remembered.
    pub is_hashed: bool,
    /// Sessions are pinned.
    pub is_sticky: bool,
    pub pins: PinRules,
    /// Sessions are in a store, and each request looks them up there.
    pub has_store: bool,
    /// By position.
    pub servers: Vec<LiveServer>,
}

/// A server, as the configuration has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveServer {
    pub name: Box<str>,
    pub weight: u32,
    /// Requests that it serves at full speed at once; 0: to be found out.
    pub capacity: u32,
    pub max_requests: u32,
    pub backup: bool,
}

/// Whom a server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Newcomers by this weight, and those that are pinned to it.
    Anybody(u32),
    /// Those that are pinned to it: it drains.
    ItsOwn,
    Nobody,
}

/// How things are now.
#[derive(Clone, Debug, PartialEq)]
pub struct Present {
    /// By position.
    pub servers: Vec<Takes>,
    /// The store's round trip, where one is measured.
    pub store_round_trip: Option<Duration>,
}

/// One exchange, over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Its position.
    pub server: usize,
    pub session: Option<u64>,
    /// What `hash` hashes.
    pub key: u64,
    pub pinned: Pinned,
    /// At the proxy.
    pub arrived: Moment,
    /// The server was given it: what the proxy did before, in a store or a line, is no work of the server.
    pub begun: Moment,
    /// The server had given its last byte.
    pub ended: Moment,
    /// It was no answer (500 and above): how long that took says nothing about what answers take.
    pub failed: bool,
}

/// Three quantiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantiles {
    pub p50: Duration,
    pub p95: Duration,
    pub p99: Duration,
}

/// What a policy would have come to.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyReport {
    pub policy: LivePolicy,
    pub latency: Quantiles,
    pub max_over_mean: f64,
    pub jain: f64,
    /// Requests of sessions that their own server took; none where nothing is pinned.
    pub kept: Option<f64>,
    /// The share of requests that no server took, or that were lost with one.
    pub refused: f64,
}

/// What a server is taken for.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerReport {
    pub name: Box<str>,
    /// Of the server, not of its part in the sample. Where it has not shown, it is what is usual in the pool; none where
    /// no server's has.
    pub capacity: Option<f64>,
    pub discipline: Discipline,
    /// Beside the others: 0.5 is half as fast as the one in the middle.
    pub speed: f64,
}

/// What would have become of the traffic of one window.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveReport {
    /// The window's end.
    pub until: Moment,
    pub window: Duration,
    /// Exchanges that were modelled.
    pub exchanges: u64,
    /// The share of sessions that was looked at.
    pub sampled: f64,
    /// Events that found no room.
    pub dropped: u64,
    /// Exchanges that came too late, or lasted too long.
    pub left_out: u64,
    pub measured: Quantiles,
    /// In the order of [`LivePolicy::ALL`].
    pub policies: Vec<PolicyReport>,
    /// By position.
    pub servers: Vec<ServerReport>,
    /// Of the sample.
    pub heavy: Heavy,
    /// Modelled over measured p99 of the policy in force.
    pub fit: Option<f64>,
    /// Why not to trust it.
    pub doubts: Vec<Doubt>,
}

/// An exchange as it is played, with what was measured of it.
struct Restored {
    arrival: Arrival,
    latency: Duration,
    /// Which really served it.
    server: usize,
    failed: bool,
}

/// What is counted in a window.
#[derive(Default)]
struct Window {
    /// The first arrival.
    from: Moment,
    measured: Latencies,
    work: SessionWork,
    dropped: u64,
    left_out: u64,
}

/// The models over these servers.
struct Models {
    servers: Vec<ServerModel>,
    store_round_trip: Duration,
    /// One for all policies that are the same.
    each: Vec<Model>,
    /// Which of these is a policy's, in the order of [`LivePolicy::ALL`].
    of: Vec<usize>,
}

impl Models {
    fn new(servers: Vec<ServerModel>, store_round_trip: Duration, policies: Vec<PolicyModel>) -> Self {
        let (distinct, of) = distinct(policies);
        let each = distinct.into_iter().map(|policy| Model::new(&servers, policy, SEED)).collect();
        Models { servers, store_round_trip, each, of }
    }

    fn offer(&mut self, arrival: Arrival) {
        self.each.iter_mut().for_each(|model| model.offer(arrival));
    }

    /// What has come of each policy since the last time.
    fn take_window(&mut self) -> Vec<PolicyReport> {
        let outcomes: Vec<Outcome> = self.each.iter_mut().map(Model::take_window).collect();
        LivePolicy::ALL.iter().zip(&self.of).map(|(policy, of)| of_policy(*policy, &outcomes[*of])).collect()
    }
}

/// The twin of one pool.
pub struct LiveTwin {
    settings: LiveSettings,
    pool: LivePool,
    present: Present,
    budget: Budget,
    sample: Sample,
    /// What began before is of another sample.
    since: Moment,
    turned: Moment,
    /// Since the last turn.
    heard: u64,
    demands: Demands<Settled>,
    /// By their arrival at the proxy, in the order of time.
    restored: Sorted<Restored>,
    speeds: Speeds,
    models: Option<Models>,
    /// Until when demands are worked out.
    settled: Moment,
    /// What arrived before has demands of servers that were taken for others.
    sound_from: Moment,
    /// Until when arrivals have been played.
    played: Moment,
    window: Window,
    left_out_before: u64,
}

impl LiveTwin {
    /// A twin that knows nothing yet of what began before now.
    pub fn new(settings: LiveSettings, pool: LivePool, present: Present, now: Moment) -> Self {
        let sample = Sample::default();
        let mut twin = LiveTwin {
            demands: demands(&settings, &pool, sample),
            speeds: Speeds::new(pool.servers.len()),
            budget: Budget::new(settings.events_per_second),
            settings,
            pool,
            present,
            sample,
            since: now,
            turned: now,
            heard: 0,
            restored: Sorted::default(),
            models: None,
            settled: now,
            sound_from: now,
            played: now,
            window: Window::default(),
            left_out_before: 0,
        };
        // Each exchange is played once for each policy: what these are is known of a twin that is made.
        let policies = distinct(twin.policies()).0.len() as u32;
        twin.budget = Budget::new(settings.events_per_second / policies.max(1));
        twin
    }

    /// What it looks at.
    pub fn sample(&self) -> Sample {
        self.sample
    }

    /// One more exchange of the sample, in any order.
    pub fn offer(&mut self, settled: Settled) {
        self.heard += 1;
        if settled.begun < self.since || settled.server >= self.pool.servers.len() {
            return;
        }
        let Settled { server, session, key, begun, ended, .. } = settled;
        // Where a hash decides on sessions, it is theirs.
        let is_hashed = self.pool.is_hashed || (self.pool.is_sticky && self.pool.balance == Balance::Hash);
        let key = session.filter(|_| is_hashed).unwrap_or(key);
        self.demands.offer(Observed { server, begun, ended, session, key }, settled);
    }

    /// To be called about once a second, with the events dropped since: works out what can be said by now.
    pub fn turn(&mut self, now: Moment, present: Present, dropped: u64) -> Option<LiveReport> {
        self.window.dropped += dropped;
        self.follow(present);
        self.keep_to_budget(now, dropped);
        let until = before(now, HORIZON);
        self.demands.settle(until);
        self.settled = until;
        while let Some((arrival, settled)) = self.demands.arrival() {
            self.restore(arrival, settled);
        }
        let left_out = self.demands.left_out();
        self.window.left_out += left_out.saturating_sub(self.left_out_before);
        self.left_out_before = left_out;
        let until = before(until, REORDER);
        self.play(until);
        self.report(until)
    }

    /// What a look into a store costs.
    fn store_round_trip(&self) -> Duration {
        self.present.store_round_trip.unwrap_or(self.settings.store_round_trip)
    }

    /// What it costs in the pool as it is.
    fn own_round_trip(&self) -> Duration {
        if self.pool.has_store { self.store_round_trip() } else { Duration::ZERO }
    }

    /// The models are of servers as they are.
    fn follow(&mut self, present: Present) {
        if !are_about_the_same(&self.present.servers, &present.servers) {
            self.models = None;
        }
        // As long as the models are those of before, so is what they are of.
        let servers = if self.models.is_some() { std::mem::take(&mut self.present.servers) } else { present.servers };
        self.present = Present { servers, ..present };
    }

    fn keep_to_budget(&mut self, now: Moment, dropped: u64) {
        let span = now.since(self.turned).as_secs_f64();
        if span <= 0.0 {
            return;
        }
        let rate = (std::mem::take(&mut self.heard) + dropped) as f64 / span;
        self.turned = now;
        let sample = self.budget.judge(self.sample, rate);
        if sample != self.sample {
            self.sample = sample;
            self.begin_anew(now);
        }
    }

    /// Everything that was found out was of another sample.
    fn begin_anew(&mut self, now: Moment) {
        self.since = now;
        self.demands = demands(&self.settings, &self.pool, self.sample);
        self.left_out_before = 0;
        self.restored = Sorted::default();
        self.speeds.forget();
        self.models = None;
    }

    /// An arrival at the proxy, of one at the server.
    fn restore(&mut self, arrival: Arrival, settled: Settled) {
        let Settled { server, pinned, arrived, ended, failed, .. } = settled;
        let (arrival, latency) = (Arrival { at: arrived, pinned, ..arrival }, ended.since(arrived));
        self.restored.push(arrived, Restored { arrival, latency, server, failed });
    }

    fn play(&mut self, until: Moment) {
        let (servers, store_round_trip) = (self.servers(), self.store_round_trip());
        let models = self.models.as_ref();
        // What is off by less can wait for the end of the window, or there would be no report as long as capacities are
        // being found out.
        if models.is_some_and(|models| !are_close(&models.servers, &servers)) {
            self.give_up_demands();
        } else if models.is_some_and(|models| !is_about(models.store_round_trip, store_round_trip)) {
            self.models = None;
        }
        while let Some((at, Restored { arrival, latency, server, failed })) = self.restored.pop_before(until) {
            if at < self.sound_from {
                continue;
            }
            let took = arrival.demand;
            let arrival = Arrival { demand: took.mul_f64(self.speeds.speeds()[server]), ..arrival };
            if self.models.is_none() {
                self.models = Some(Models::new(servers.clone(), store_round_trip, self.policies()));
                self.window.measured = Latencies::default();
                self.window.work = SessionWork::default();
            }
            if self.window.measured.count() == 0 {
                self.window.from = at.max(self.played);
            }
            self.window.measured.add(latency);
            // Only who has come back with its session is one: clients without a cookie jar are none.
            let is_newcomer = matches!(arrival.pinned, Pinned::Newly(_));
            let is_first = self.window.work.add(arrival.session.filter(|_| !is_newcomer), server, took);
            if is_first && !is_newcomer && !failed && self.is_placed_by_load() {
                self.speeds.note(server, took);
            }
            self.models.iter_mut().for_each(|models| models.offer(arrival));
        }
        self.played = until;
    }

    /// Demands were worked out by what servers were taken for, and those of what is under way still are.
    fn give_up_demands(&mut self) {
        self.models = None;
        self.sound_from = self.settled;
        self.speeds.forget();
    }

    /// On which server a session is says nothing about what it asks for.
    fn is_placed_by_load(&self) -> bool {
        !self.pool.is_hashed && self.pool.balance != Balance::Hash
    }

    /// What a server is that has shown its capacity, the median one: others are taken to be like it.
    fn typical(&self) -> Option<(u32, Discipline)> {
        let servers = 0..self.pool.servers.len();
        let mut known: Vec<(u32, Discipline)> =
            servers.filter_map(|at| self.demands.capacity(at).zip(self.demands.discipline(at))).collect();
        known.sort_unstable_by_key(|(capacity, _)| *capacity);
        let (capacity, _) = *known.get(known.len() / 2)?;
        let are_fifo = 2 * known.iter().filter(|(_, discipline)| *discipline == Discipline::Fifo).count() > known.len();
        Some((capacity, if are_fifo { Discipline::Fifo } else { Discipline::Sharing }))
    }

    /// The servers as far as they are known.
    fn servers(&self) -> Vec<ServerModel> {
        let typical = self.typical();
        let known = |at| match (self.demands.capacity(at), self.demands.discipline(at), typical) {
            (None, _, Some(typical)) => typical,
            (capacity, discipline, _) => (capacity.unwrap_or(0), discipline.unwrap_or(Discipline::Sharing)),
        };
        let model = |(at, server): (usize, &LiveServer)| {
            let takes = self.present.servers.get(at).copied().unwrap_or(Takes::Nobody);
            let (capacity, discipline) = known(at);
            ServerModel {
                name: server.name.clone(),
                weight: server.weight,
                live_weight: if let Takes::Anybody(weight) = takes { Some(weight) } else { None },
                max_requests: self.sample.scaled(server.max_requests),
                backup: server.backup,
                drains: takes == Takes::ItsOwn,
                capacity,
                discipline,
                speed: self.speeds.speeds()[at],
                from: Moment::default(),
                until: if takes == Takes::Nobody { Moment::default() } else { Moment::from_nanos(u64::MAX) },
            }
        };
        self.pool.servers.iter().enumerate().map(model).collect()
    }

    /// In the order of [`LivePolicy::ALL`].
    fn policies(&self) -> Vec<PolicyModel> {
        let mut policies = self.compared();
        let in_force = policies.first().cloned();
        for policy in &mut policies {
            policy.is_in_force = in_force.as_ref().is_some_and(|actual| is_the_same(actual, policy));
        }
        policies
    }

    fn compared(&self) -> Vec<PolicyModel> {
        // A hash of sessions is a way of pinning them.
        let balance = if self.pool.balance == Balance::Hash { Balance::P2c } else { self.pool.balance };
        let own = match self.pool.pins.kind {
            PinKind::Soft { margin } => margin,
            PinKind::Hard => MARGIN,
        };
        let hard = PinRules { kind: PinKind::Hard, ..self.pool.pins };
        let soft =
            PinRules { kind: PinKind::Soft { margin: own }, when_unavailable: WhenUnavailable::Move, ..self.pool.pins };
        let policy = |policy: &LivePolicy| {
            let (balance, pins, store) = match policy {
                LivePolicy::Actual => {
                    let pins = self.pool.is_sticky.then_some(self.pool.pins);
                    (self.pool.balance, pins, self.own_round_trip())
                }
                LivePolicy::Sticky => (balance, Some(hard), Duration::ZERO),
                LivePolicy::Soft => (balance, Some(soft), Duration::ZERO),
                LivePolicy::Shared => (balance, None, self.store_round_trip()),
            };
            PolicyModel {
                name: policy.as_str().into(),
                balance,
                is_hashed: *policy == LivePolicy::Actual && self.pool.is_hashed,
                pins: pins.map(|pins| thinned(pins, self.sample)),
                is_in_force: false,
                warm_up: if pins.is_some() { self.settings.warm_up } else { Duration::ZERO },
                store_round_trip: store,
            }
        };
        LivePolicy::ALL.iter().map(policy).collect()
    }

    /// What there is to say, at the end of a window.
    fn report(&mut self, until: Moment) -> Option<LiveReport> {
        let models = self.models.as_mut()?;
        let (span, exchanges) = (until.since(self.window.from), self.window.measured.count());
        if exchanges == 0 || span < self.settings.window || (exchanges < ENOUGH && span < LONGEST_WINDOW) {
            return None;
        }
        let window = std::mem::take(&mut self.window);
        let are_speeds_others = self.speeds.review();
        let policies = models.take_window();
        let measured = quantiles(&window.measured);
        let modelled = policies.first().map_or(Duration::ZERO, |actual| actual.latency.p99);
        let name_of = |at: usize| self.pool.servers.get(at).map(|server| server.name.clone()).unwrap_or_default();
        let is_known = !measured.p99.is_zero() && !modelled.is_zero();
        let mut report = LiveReport {
            until,
            window: span,
            exchanges,
            sampled: self.sample.share(),
            dropped: window.dropped,
            left_out: window.left_out,
            measured,
            policies,
            servers: models.servers.iter().map(|server| of_server(server, self.sample)).collect(),
            heavy: window.work.heavy(name_of),
            fit: is_known.then(|| modelled.as_secs_f64() / measured.p99.as_secs_f64()),
            doubts: Vec::new(),
        };
        report.doubts = self.doubts(&report);
        let is_hopeless = report.policies.iter().any(|policy| policy.latency.p99 > HOPELESS);
        let servers = self.servers();
        if self.models.as_ref().is_some_and(|models| !are_alike(&models.servers, &servers)) {
            self.give_up_demands();
        } else if is_hopeless || are_speeds_others {
            self.models = None;
        }
        Some(report)
    }

    fn doubts(&self, report: &LiveReport) -> Vec<Doubt> {
        let all = (report.exchanges + report.left_out + report.dropped) as f64;
        let is_missing = |count: u64| count as f64 > all * MAY_BE_MISSING;
        let suits = |server: &LiveServer| self.sample.suits(server.capacity) && self.sample.suits(server.max_requests);
        let is_thin = |server: &ServerReport| {
            let share = self.sample.share();
            share < 1.0 && server.capacity.is_some_and(|capacity| capacity * share < FEW_WORKERS)
        };
        let holds = |doubt: &Doubt| match doubt {
            Doubt::TooFew => report.exchanges < ENOUGH,
            Doubt::Misfit => report.fit.is_none_or(|fit| !GOOD_FIT.contains(&fit)),
            Doubt::NoLimit => {
                let mut servers = report.servers.iter().zip(&self.present.servers);
                servers.any(|(server, takes)| *takes != Takes::Nobody && server.capacity.is_none())
            }
            Doubt::Refused => report.policies.iter().any(|policy| policy.refused > MAY_BE_MISSING),
            Doubt::Dropped => is_missing(report.dropped),
            Doubt::LeftOut => is_missing(report.left_out),
            Doubt::ThinSample => !self.pool.servers.iter().all(suits) || report.servers.iter().any(is_thin),
        };
        Doubt::ALL.iter().copied().filter(holds).collect()
    }
}

fn before(now: Moment, span: Duration) -> Moment {
    Moment::from_nanos(now.as_nanos().saturating_sub(span.as_nanos() as u64))
}

fn demands(settings: &LiveSettings, pool: &LivePool, sample: Sample) -> Demands<Settled> {
    let known = |server: &LiveServer| Known {
        capacity: sample.scaled(server.capacity),
        discipline: settings.discipline,
        speed: 1.0,
    };
    let servers: Vec<Known> = pool.servers.iter().map(known).collect();
    let seconds = HORIZON.as_secs() as usize + 3;
    let most = (settings.events_per_second as usize).saturating_mul(seconds).clamp(*BUFFER.start(), *BUFFER.end());
    Demands::new(&servers, most)
}

/// The rules for a part of the sessions.
fn thinned(pins: PinRules, sample: Sample) -> PinRules {
    let kind = match pins.kind {
        PinKind::Hard => PinKind::Hard,
        PinKind::Soft { margin } => PinKind::Soft { margin: sample.scaled(margin) },
    };
    let mut queue = pins.queue;
    queue.length = sample.scaled(queue.length);
    PinRules { kind, queue, ..pins }
}

/// Whether models of the ones will do a little longer for the others.
fn are_close(ones: &[ServerModel], others: &[ServerModel]) -> bool {
    let close = |one: u32, other: u32| one == other || (one.min(other) > 0 && 2 * one.max(other) <= 3 * one.min(other));
    ones.iter().zip(others).all(|(one, other)| close(one.capacity, other.capacity))
}

/// Whether models of the ones do for the others: capacities that are found out are never quite the same.
fn are_alike(ones: &[ServerModel], others: &[ServerModel]) -> bool {
    let near = |one: u32, other: u32| is_near(f64::from(one), f64::from(other));
    ones.iter().zip(others).all(|(one, other)| one.discipline == other.discipline && near(one.capacity, other.capacity))
}

/// Whether they take the same, with weights that are about the same: servers may say another one on each probe.
fn are_about_the_same(ones: &[Takes], others: &[Takes]) -> bool {
    let are = |one: &Takes, other: &Takes| match (one, other) {
        (Takes::Anybody(one), Takes::Anybody(other)) => is_near(f64::from(*one), f64::from(*other)),
        _ => one == other,
    };
    ones.len() == others.len() && ones.iter().zip(others).all(|(one, other)| are(one, other))
}

/// Whether two estimates are the same but for an eighth.
fn is_near(one: f64, other: f64) -> bool {
    8.0 * (one - other).abs() <= one.max(other) && (one > 0.0) == (other > 0.0)
}

/// Whether two policies place requests in the same way.
fn is_the_same(one: &PolicyModel, other: &PolicyModel) -> bool {
    let ways = [one, other].map(|policy| (policy.balance, policy.is_hashed, policy.pins));
    ways[0] == ways[1]
}

/// Policies without those that are the same as one before; and which of these each was.
fn distinct(policies: Vec<PolicyModel>) -> (Vec<PolicyModel>, Vec<usize>) {
    let (mut distinct, mut of) = (Vec::<PolicyModel>::new(), Vec::new());
    for policy in policies {
        let known = distinct.iter().position(|known| costs_the_same(known, &policy));
        of.push(known.unwrap_or(distinct.len()));
        if known.is_none() {
            distinct.push(policy);
        }
    }
    (distinct, of)
}

/// The same, with what it costs besides.
fn costs_the_same(one: &PolicyModel, other: &PolicyModel) -> bool {
    let costs = [one, other].map(|policy| (policy.warm_up, policy.store_round_trip));
    is_the_same(one, other) && costs[0] == costs[1]
}

/// Whether a store's round trip has not changed by so much that it matters.
fn is_about(one: Duration, other: Duration) -> bool {
    one.abs_diff(other) <= one.max(other) / 4 + Duration::from_micros(100)
}

fn quantiles(latencies: &Latencies) -> Quantiles {
    let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| latencies.quantile(share));
    Quantiles { p50, p95, p99 }
}

fn of_policy(policy: LivePolicy, outcome: &Outcome) -> PolicyReport {
    // Newcomers have no pin to keep.
    let of_sessions = outcome.kept + outcome.moved;
    PolicyReport {
        policy,
        latency: quantiles(&outcome.latency),
        max_over_mean: outcome.imbalance.max_over_mean,
        jain: outcome.imbalance.jain,
        kept: (of_sessions > 0).then(|| outcome.kept as f64 / of_sessions as f64),
        refused: (outcome.refused + outcome.failed) as f64 / outcome.requests.max(1) as f64,
    }
}

fn of_server(server: &ServerModel, sample: Sample) -> ServerReport {
    let capacity = (server.capacity > 0).then(|| f64::from(server.capacity) / sample.share());
    ServerReport { name: server.name.clone(), capacity, discipline: server.discipline, speed: server.speed }
}

#[cfg(test)]
mod tests;
