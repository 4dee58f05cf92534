//! The model: arrivals in, the pool's own choices, virtual servers, an outcome out.
//!
//! Time goes from event to event: a server ends a request, a server comes or goes, somebody has waited too long in a line,
//! somebody's session has come out of its store. Of events at one moment those that make room come first. The pool is the
//! one that serves, driven as the proxy drives it; counts in flight are held by its own guards.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::HashSet;

use super::books::{self, Books, Gauge};
use super::demand::Observed;
use super::pins::Pins;
use super::scale::ScaleOut;
use super::server::{Soonest, Station};
use super::sorted::Slab;
use super::{Arrival, Outcome, Pinned, PolicyModel, ServerModel};
use crate::affinity::Preference;
use crate::balance::Balance;
use crate::clock::Moment;
use crate::health::RiseFall;
use crate::metrics::{Metrics, WorkerId};
use crate::names::{Ineligible, MovedWhy, NewWhy, NoneWhy, Verdict};
use crate::pool::{
    Ask, InFlight, Pick, Picked, PinKind, Pool, PoolParts, Server, ServerSettings, ServerState, Tried, Waiting, Wish,
};

/// Requests that may be under way at once: beyond, they are refused, as a hopeless overload has no end.
const MOST_UNDER_WAY: usize = 1 << 20;
/// A server's word is taken at once.
const AT_ONCE: RiseFall = RiseFall { rise: 1, fall: 1 };

/// A pool in virtual time.
pub struct Model {
    policy: PolicyModel,
    pool: Pool,
    stations: Vec<Station>,
    ends: Soonest,
    under_way: Slab<Exchange>,
    /// Who waits for a place of each server, in the pool's own order.
    lines: Vec<VecDeque<Waiter>>,
    /// When who joined a line has waited enough. All wait for as long, so they are in order.
    timeouts: VecDeque<(Moment, usize, u64)>,
    waited: u64,
    /// Whose session is on its way from the store.
    recalling: VecDeque<(Moment, Request)>,
    /// When which server comes (true) or goes.
    changes: VecDeque<(Moment, usize, bool)>,
    pins: Pins,
    /// Sessions that were hard-pinned to a server that went, and have not asked again.
    orphans: HashSet<u64>,
    books: Books,
    scale: ScaleOut,
    settled: Option<Vec<Observed>>,
    random: fastrand::Rng,
    now: Moment,
    /// The first arrival has been.
    begun: bool,
    /// Averages over time end here.
    horizon: Moment,
}

/// What happens next. Of those at one moment the first comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    End,
    Change,
    Timeout,
    Recalled,
}

#[derive(Clone, Copy)]
struct Request {
    arrival: Arrival,
    /// What its cookie said when it came.
    preference: Preference,
    /// It has no cookie: its preference is where it was really placed.
    is_newcomer: bool,
}

/// A request that a server has.
struct Exchange {
    request: Request,
    server: usize,
    verdict: Verdict,
    chosen: Moment,
    guard: InFlight,
}

/// A request in the line of its own server.
struct Waiter {
    number: u64,
    request: Request,
    waiting: Waiting,
}

impl Model {
    /// A pool with nothing in flight.
    pub fn new(servers: &[ServerModel], policy: PolicyModel, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let is_there = |server: &ServerModel| server.from == Moment::default() && server.until > server.from;
        let gauges = servers.iter().map(|server| Gauge::new(server.capacity, is_there(server))).collect();
        let model = Model {
            pool: build_pool(servers, &policy, &mut random),
            stations: servers.iter().map(Station::new).collect(),
            ends: Soonest::new(servers.len()),
            under_way: Slab::default(),
            lines: servers.iter().map(|_| VecDeque::new()).collect(),
            timeouts: VecDeque::new(),
            waited: 0,
            recalling: VecDeque::new(),
            changes: changes(servers),
            pins: Pins::default(),
            orphans: HashSet::default(),
            books: Books::new(gauges),
            scale: ScaleOut::default(),
            settled: None,
            random,
            now: Moment::default(),
            begun: false,
            horizon: Moment::from_nanos(u64::MAX),
            policy,
        };
        servers.iter().enumerate().filter(|(_, server)| !is_there(server)).for_each(|(at, _)| model.probe(at, false));
        model
    }

    /// Arrivals in the order of time; one that is late comes now.
    pub fn offer(&mut self, arrival: Arrival) {
        self.run_until(arrival.at);
        self.now = self.now.max(arrival.at);
        if !self.begun {
            self.begin();
        }
        self.books.requests += 1;
        if self.under_way.count() + self.recalling.len() >= MOST_UNDER_WAY {
            self.books.refused += 1;
            return;
        }
        let arrival = Arrival { at: self.now, ..arrival };
        let request = self.request(arrival);
        if arrival.session.is_some() && !self.policy.store_round_trip.is_zero() {
            self.recalling.push_back((self.now + self.policy.store_round_trip, request));
        } else {
            self.place(request, true);
        }
    }

    /// Lets what is in flight end. Averages over time are until the last arrival: what is worked off after it says nothing
    /// about the load.
    pub fn finish(mut self) -> Outcome {
        self.drain();
        self.so_far()
    }

    /// What was until now.
    pub fn so_far(&self) -> Outcome {
        let (books, now) = (&self.books, self.now.min(self.horizon));
        let servers = || books.gauges.iter().zip(&self.pool.servers);
        let own = servers().filter(|(_, server)| !server.settings.backup && !drains(server));
        let weighted = own.map(|(gauge, server)| (gauge, server.weight()));
        let name = |server: usize| self.pool.servers[server].settings.name.clone();
        Outcome {
            requests: books.requests,
            refused: books.refused,
            failed: books.failed,
            latency: books.latency.clone(),
            servers: servers().map(|(gauge, server)| gauge.outcome(&server.settings.name, now)).collect(),
            kept: books.kept,
            moved: books.moved,
            placed: books.placed,
            sessions_lost: books.sessions_lost,
            imbalance: books::imbalance(weighted, now),
            scale_out: self.scale.took().map(|(server, took)| (name(server), took)).collect(),
        }
    }

    /// What was since the last window, or the first arrival. What is in flight stays, and so does how long newcomers took.
    pub fn take_window(&mut self) -> Outcome {
        let outcome = self.so_far();
        self.books.restart(self.now);
        outcome
    }

    /// From now on every single request that is served is kept, for [`Self::take_settled`].
    pub fn keep_settled(&mut self) {
        if self.settled.is_none() {
            self.settled = Some(Vec::new());
        }
    }

    /// The requests that were served since it was last asked, in the order of their ends: as a proxy in front of these
    /// servers would have seen them.
    pub fn take_settled(&mut self) -> Vec<Observed> {
        self.settled.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Lets what is in flight end.
    pub(super) fn drain(&mut self) {
        self.horizon = self.now;
        while self.under_way.count() + self.recalling.len() + self.lines.iter().map(VecDeque::len).sum::<usize>() > 0 {
            let Some((at, event)) = self.next_event() else { return };
            self.now = at;
            self.handle(event);
        }
    }

    /// The first arrival: servers that are still to come are newcomers.
    fn begin(&mut self) {
        self.begun = true;
        self.books.restart(self.now);
        let coming: Vec<usize> =
            self.changes.iter().filter(|(_, _, comes)| *comes).map(|(_, server, _)| *server).collect();
        let newcomers = coming.iter().copied().filter(|server| self.shared_weight(*server) > 0).collect();
        let is_down = |server: usize| self.pool.servers[server].state.vitals.is_down();
        let weight = |server| if is_down(server) { 0 } else { self.shared_weight(server) };
        self.scale = ScaleOut::new((0..self.stations.len()).map(weight).collect(), newcomers);
    }

    /// The weight with which a server that is there shares what comes.
    fn shared_weight(&self, server: usize) -> u32 {
        let server = &self.pool.servers[server];
        if server.settings.backup || drains(server) { 0 } else { server.weight() }
    }

    fn next_event(&self) -> Option<(Moment, Event)> {
        let end = self.ends.first().map(|(at, _)| (at, Event::End));
        let change = self.changes.front().map(|(at, _, _)| (*at, Event::Change));
        let timeout = self.timeouts.front().map(|(at, _, _)| (*at, Event::Timeout));
        let recalled = self.recalling.front().map(|(at, _)| (*at, Event::Recalled));
        [end, change, timeout, recalled].into_iter().flatten().min()
    }

    fn run_until(&mut self, until: Moment) {
        while let Some((at, event)) = self.next_event().filter(|(at, _)| *at <= until) {
            self.now = self.now.max(at);
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::End => {
                if let Some((_, server)) = self.ends.first() {
                    self.end(server);
                }
            }
            Event::Change => match self.changes.pop_front() {
                Some((_, server, true)) => self.come(server),
                Some((_, server, false)) => self.go(server),
                None => {}
            },
            Event::Timeout => {
                if let Some((_, server, number)) = self.timeouts.pop_front() {
                    self.give_up_line(server, number);
                }
            }
            Event::Recalled => {
                if let Some((_, request)) = self.recalling.pop_front() {
                    self.place(request, true);
                }
            }
        }
    }

    /// The request with what its cookie says.
    fn request(&mut self, arrival: Arrival) -> Request {
        let as_is = |preference| Request { arrival, preference, is_newcomer: false };
        if self.policy.pins.is_none() {
            return as_is(Preference::None(NoneWhy::NotSticky));
        }
        if self.policy.is_hashed {
            return as_is(Preference::Hashed { key: arrival.key });
        }
        let Some(session) = arrival.session else { return as_is(Preference::New(NewWhy::First)) };
        if let Some(server) = self.home(session, arrival.pinned) {
            return as_is(Preference::Pinned { server, session });
        }
        match arrival.pinned {
            Pinned::Newly(server) if self.policy.is_in_force && self.may_have_newcomers(server) => {
                Request { arrival, preference: Preference::Pinned { server, session }, is_newcomer: true }
            }
            _ => as_is(Preference::New(NewWhy::First)),
        }
    }

    fn may_have_newcomers(&self, server: usize) -> bool {
        self.pool.servers.get(server).is_some_and(|server| server.unfit(self.now).is_none())
    }

    /// The server of a session that was here before, or that has had its pin for longer than there is this model. Under the
    /// hard pins in force it is the real one: what has moved it there, the model does not have.
    fn home(&mut self, session: u64, pinned: Pinned) -> Option<usize> {
        let real = match pinned {
            Pinned::Already(server) => Some(server).filter(|server| *server < self.stations.len()),
            Pinned::Newly(_) | Pinned::No => None,
        };
        let is_hard = self.policy.pins.is_some_and(|pins| pins.kind == PinKind::Hard);
        let follows = real.filter(|_| is_hard && self.policy.is_in_force);
        if let Some(server) = self.pins.recall(session).filter(|known| follows.is_none_or(|real| real == *known)) {
            return Some(server);
        }
        if let Some(server) = real {
            self.pins.pin(session, server);
        }
        real
    }

    /// Asks the pool for a server.
    fn place(&mut self, request: Request, may_wait: bool) {
        if request.arrival.session.is_some_and(|session| self.orphans.remove(&session)) {
            self.books.sessions_lost += 1;
        }
        let tried = Tried::default();
        let picked = self.pool.pick(&ask(&request, &tried, self.now, may_wait), &mut self.random);
        match picked {
            Ok(Picked::Server(pick)) => self.enter(request, pick),
            Ok(Picked::Line { server, waiting, .. }) => self.join_line(request, server, waiting),
            Err(_) => self.books.refused += 1,
        }
    }

    /// The chosen server has it.
    fn enter(&mut self, request: Request, pick: Pick) {
        let Pick { server, verdict, guard, .. } = pick;
        self.count_verdict(&request, verdict);
        let moved = matches!(verdict, Verdict::Moved(_));
        let warm_up = if moved && !request.is_newcomer { self.policy.warm_up } else { Duration::ZERO };
        let demand = request.arrival.demand.saturating_add(warm_up);
        let number = self.under_way.put(Exchange { request, server, verdict, chosen: self.now, guard });
        self.stations[server].enter(number, demand, self.now);
        self.books.gauges[server].requests += 1;
        self.scale.picked(server, self.now);
        self.note_load(server);
    }

    fn count_verdict(&mut self, request: &Request, verdict: Verdict) {
        if self.policy.pins.is_none() || request.arrival.session.is_none() {
            return;
        }
        match verdict {
            Verdict::Kept | Verdict::Waited | Verdict::Moved(_) if request.is_newcomer => self.books.placed += 1,
            Verdict::Kept | Verdict::Waited => self.books.kept += 1,
            Verdict::Moved(_) => self.books.moved += 1,
            Verdict::New(_) => self.books.placed += 1,
            Verdict::None(_) | Verdict::Refused(_) => {}
        }
    }

    /// What a server has, and when it ends the next, is another than before.
    fn note_load(&mut self, server: usize) {
        let station = &self.stations[server];
        self.ends.set(server, station.next_end());
        self.books.gauges[server].has(station.count(), self.now.min(self.horizon));
    }

    /// A server has served one.
    fn end(&mut self, server: usize) {
        let number = self.stations[server].end(self.now);
        self.note_load(server);
        let Some(exchange) = number.and_then(|number| self.under_way.take(number)) else { return };
        self.books.latency.add(self.now.since(exchange.request.arrival.at));
        self.note_latency(&exchange, false);
        self.pin(&exchange);
        if let Some(settled) = &mut self.settled {
            let Arrival { session, key, .. } = exchange.request.arrival;
            settled.push(Observed { server, begun: exchange.chosen, ended: self.now, session, key });
        }
        drop(exchange);
        self.call_line(server);
    }

    /// Most policies have no use for it.
    fn note_latency(&self, exchange: &Exchange, failed: bool) {
        if self.policy.balance == Balance::PeakEwma {
            exchange.guard.state().latency.observe(self.now.since(exchange.chosen), failed, self.now);
        }
    }

    /// The answer has a cookie, where the session belongs to another server from now on. At a momentary cap it does not.
    fn pin(&mut self, exchange: &Exchange) {
        let remembers = self.policy.pins.is_some() && !self.policy.is_hashed;
        let Some(session) = exchange.request.arrival.session.filter(|_| remembers) else { return };
        match exchange.verdict {
            _ if exchange.request.is_newcomer => self.pins.pin(session, exchange.server),
            Verdict::Moved(MovedWhy::Full) => {}
            Verdict::New(_) | Verdict::Moved(_) => self.pins.pin(session, exchange.server),
            Verdict::None(_) | Verdict::Kept | Verdict::Waited | Verdict::Refused(_) => {}
        }
    }

    fn join_line(&mut self, request: Request, server: usize, waiting: Waiting) {
        self.waited += 1;
        let timeout = self.pool.rules.queue.timeout;
        self.timeouts.push_back((self.now + timeout, server, self.waited));
        self.lines[server].push_back(Waiter { number: self.waited, request, waiting });
        self.call_line(server);
    }

    /// The first in a server's line, if the pool has given it the place that was free.
    fn called(&mut self, server: usize) -> Option<(Request, InFlight)> {
        let line = &mut self.lines[server];
        let first = Pin::new(&mut line.front_mut()?.waiting);
        let Poll::Ready(guard) = first.poll(&mut Context::from_waker(Waker::noop())) else { return None };
        line.pop_front().map(|waiter| (waiter.request, guard))
    }

    /// Lets all go on whose turn it is.
    fn call_line(&mut self, server: usize) {
        while let Some((request, guard)) = self.called(server) {
            let unfit = self.pool.servers[server].unfit_for_pinned(self.now);
            if unfit.is_some_and(|why| why != Ineligible::Full) {
                drop(guard);
                self.place(request, false);
                continue;
            }
            let tried = Tried::default();
            let ask = ask(&request, &tried, self.now, true);
            let pick = self.pool.pick_of_waiting(server, guard, None, &ask, &mut self.random);
            self.enter(request, pick);
        }
    }

    /// Somebody has waited enough, if it still waits. Who joined before has gone before, so it is the first in the line.
    fn give_up_line(&mut self, server: usize, number: u64) {
        if self.lines[server].front().is_none_or(|first| first.number != number) {
            return;
        }
        if let Some(Waiter { request, waiting, .. }) = self.lines[server].pop_front() {
            drop(waiting);
            self.place(request, false);
        }
    }

    fn probe(&self, server: usize, well: bool) {
        self.pool.servers[server].state.vitals.probed(well, AT_ONCE);
    }

    fn come(&mut self, server: usize) {
        self.probe(server, true);
        self.books.gauges[server].set_there(true, self.now.min(self.horizon));
        self.scale.came(server, self.shared_weight(server), self.now);
    }

    /// What it has fails, and what it knows of sessions that can be nowhere else is lost to those that ask again.
    fn go(&mut self, server: usize) {
        self.probe(server, false);
        for number in self.stations[server].clear() {
            let Some(exchange) = self.under_way.take(number) else { continue };
            self.note_latency(&exchange, true);
            self.books.failed += 1;
        }
        if self.policy.pins.is_some_and(|pins| pins.kind == PinKind::Hard) {
            self.orphans.extend(self.pins.of(server));
        }
        self.note_load(server);
        self.books.gauges[server].set_there(false, self.now.min(self.horizon));
        self.scale.went(server);
        self.call_line(server);
    }
}

fn drains(server: &Server) -> bool {
    server.state.wishes.effective() == Wish::Drain
}

fn ask<'a>(request: &Request, tried: &'a Tried, now: Moment, may_wait: bool) -> Ask<'a> {
    let Request { arrival, preference, .. } = *request;
    Ask { preference, tried, key: arrival.key, worker: WorkerId(0), now, may_wait, alone: true }
}

/// The pool that would serve, with metrics that nobody reads.
fn build_pool(servers: &[ServerModel], policy: &PolicyModel, random: &mut fastrand::Rng) -> Pool {
    let metrics = Metrics::new(1).pool(&policy.name);
    let build = |server: &ServerModel| {
        let ServerModel { name, weight, max_requests, backup, .. } = server.clone();
        let state = ServerState::new(metrics.server(&name));
        if let Some(live) = server.live_weight {
            state.wishes.set_weight(live, weight);
        }
        if server.drains {
            state.wishes.set(Wish::Drain, None);
        }
        Server::new(ServerSettings { name, weight, max_requests, backup }, state.into())
    };
    let parts = PoolParts {
        rules: policy.pins.unwrap_or_default(),
        weighs_pins: false,
        ..PoolParts::plain(policy.balance, servers.iter().map(build).collect(), metrics.clone())
    };
    let pool = Pool::build(parts, random);
    pool.adopt();
    pool
}

/// Comings and goings in the order of time.
fn changes(servers: &[ServerModel]) -> VecDeque<(Moment, usize, bool)> {
    let is_ever_there = |(_, server): &(usize, &ServerModel)| server.until > server.from;
    let mut changes: Vec<(Moment, usize, bool)> = Vec::new();
    for (at, server) in servers.iter().enumerate().filter(is_ever_there) {
        if server.from > Moment::default() {
            changes.push((server.from, at, true));
        }
        if server.until < Moment::from_nanos(u64::MAX) {
            changes.push((server.until, at, false));
        }
    }
    changes.sort_unstable();
    changes.into()
}
