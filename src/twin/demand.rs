//! What exchanges cost their servers: how long they took, with the waiting taken out.
//!
//! Exchanges are observed from outside: which server, when it was given the request, when it had answered. Who was there
//! together follows from that, and so does what each would have taken alone. Under sharing a clock per server runs as
//! fast as each request is served, min(1, c/n), and a demand is what it shows at the end less what it showed at the
//! beginning. Under FIFO arrivals and departures in their order say when somebody's turn came, and a demand is the time
//! from there to the end.
//!
//! **Capacity**, where it is not configured, is read off the knee of latency over in flight. At the level n the latency is,
//! by Little's law, n times the time spent there over the departures from there: flat up to the capacity and in
//! proportion to n above, whatever the discipline. Where all demands are alike, a FIFO server's is taken for up to a quarter
//! more than it is.
//!
//! **Discipline**, where it is "auto": both are worked out side by side, and the one whose demands depend less on how much
//! was there counts. What a request costs is its own affair, so a correlation of demands with the number in flight
//! is a misfit; and under FIFO nobody ends before its turn, so each time somebody did is one as well.
//!
//! Exchanges end in another order than they began, so there is a buffer, and what it yields runs behind. Who comes later
//! than the buffer allows, or lasts longer, is left out, and counted; who lasts longer still takes its part of its server.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use foldhash::HashMap;

use super::server::limits;
use super::sorted::Sorted;
use super::{Arrival, Discipline, Pinned};
use crate::clock::Moment;

/// One exchange, as a proxy sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Its position.
    pub server: usize,
    /// The server was given it.
    pub begun: Moment,
    /// The server had given its last byte.
    pub ended: Moment,
    pub session: Option<u64>,
    /// What `hash` hashes.
    pub key: u64,
}

/// What is known of a server beforehand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Known {
    /// Requests that it serves at full speed at once; 0: to be found out.
    pub capacity: u32,
    /// None: to be found out.
    pub discipline: Option<Discipline>,
    /// 1.0: as demands say; 0.5: half as fast.
    pub speed: f64,
}

/// How badly the disciplines fit what was measured of a server: 0 is well.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Misfit {
    pub fifo: f64,
    pub sharing: f64,
}

/// Turns exchanges into arrivals. What is offered with one comes out with it.
pub struct Demands<T> {
    /// How many may be in the buffer.
    most: usize,
    /// Everything before this has been looked at.
    settled: Moment,
    left_out: u64,
    begins: Sorted<(Observed, T)>,
    /// When who ends, by number, and at which server.
    ends: BinaryHeap<Reverse<(Moment, u64, usize)>>,
    open: Open<T>,
    servers: Vec<Watch>,
}

/// Exchanges whose beginning has been looked at, by numbers in that order.
struct Open<T> {
    /// Those that nobody has asked for yet, from the number `first` on.
    begun: VecDeque<(Begun, T)>,
    first: u64,
    /// Those that have lasted too long to wait for: all others would have to wait with them.
    given_up: HashMap<u64, Begun>,
}

impl<T> Open<T> {
    fn next_number(&self) -> u64 {
        self.first + self.begun.len() as u64
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut Begun> {
        match number.checked_sub(self.first) {
            Some(at) => self.begun.get_mut(usize::try_from(at).ok()?).map(|(begun, _)| begun),
            None => self.given_up.get_mut(&number),
        }
    }

    fn pop_first(&mut self) -> Option<(Begun, T)> {
        let begun = self.begun.pop_front()?;
        self.first += 1;
        Some(begun)
    }

    fn give_up_first(&mut self) {
        let number = self.first;
        if let Some((begun, _)) = self.pop_first().filter(|(begun, _)| begun.demand.is_none()) {
            self.given_up.insert(number, begun);
        }
    }
}

/// An exchange whose beginning has been looked at.
struct Begun {
    observed: Observed,
    /// How many others its server had.
    others: u32,
    /// What its server's clock showed.
    clock: f64,
    /// When its turn came, under FIFO.
    turn: Option<Moment>,
    demand: Option<Duration>,
}

impl<T> Demands<T> {
    /// For servers by position; the buffer holds up to `most` exchanges that have not begun yet in the order of time.
    pub fn new(servers: &[Known], most: usize) -> Self {
        Demands {
            most: most.max(1),
            settled: Moment::default(),
            left_out: 0,
            begins: Sorted::default(),
            ends: BinaryHeap::new(),
            open: Open { begun: VecDeque::new(), first: 0, given_up: HashMap::default() },
            servers: servers.iter().copied().map(Watch::new).collect(),
        }
    }

    /// One more exchange, in any order. A full buffer is worked off from its old end, and of arrivals that nobody has asked
    /// for the first are left out in the end.
    pub fn offer(&mut self, observed: Observed, with: T) {
        if observed.begun < self.settled || observed.server >= self.servers.len() {
            self.left_out += 1;
            return;
        }
        self.begins.push(observed.begun, (observed, with));
        while self.begins.len() > self.most {
            self.step();
        }
        while self.open.begun.len() > 2 * self.most || self.open.given_up.len() > self.most {
            if self.open.given_up.len() > self.most {
                self.step();
            } else {
                self.open.give_up_first();
                self.left_out += 1;
            }
        }
    }

    /// Nothing that began before this moment will be offered any more: what can be said of it is worked out.
    pub fn settle(&mut self, until: Moment) {
        while self.next_at().is_some_and(|at| at < until) {
            self.step();
        }
        self.settled = self.settled.max(until);
    }

    /// The next in the order of time, if what it cost is known.
    pub fn arrival(&mut self) -> Option<(Arrival, T)> {
        let demand = self.open.begun.front()?.0.demand?;
        let (Begun { observed, .. }, with) = self.open.pop_first()?;
        let Observed { begun: at, session, key, .. } = observed;
        Some((Arrival { at, session, demand, key, pinned: Pinned::No }, with))
    }

    /// Nothing more will be offered: all that is left.
    pub fn finish(&mut self) -> Vec<(Arrival, T)> {
        self.settle(Moment::from_nanos(u64::MAX));
        std::iter::from_fn(|| self.arrival()).collect()
    }

    /// How many came too late, lasted too long, or were of no server.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// What the server serves at full speed at once: as configured, or by the knee, if one has been seen.
    pub fn capacity(&self, server: usize) -> Option<u32> {
        let watch = self.servers.get(server)?;
        (watch.capacity < u32::MAX).then_some(watch.capacity)
    }

    /// How the server works: as configured, or what fits better.
    pub fn discipline(&self, server: usize) -> Option<Discipline> {
        Some(self.servers.get(server)?.discipline)
    }

    /// How well both fit.
    pub fn misfit(&self, server: usize) -> Option<Misfit> {
        Some(self.servers.get(server)?.misfit())
    }

    fn next_at(&mut self) -> Option<Moment> {
        let begin = self.begins.first_at();
        let end = self.ends.peek().map(|Reverse((at, _, _))| *at);
        begin.into_iter().chain(end).min()
    }

    /// Looks at one beginning or end. Who ends makes room for who begins at the same moment.
    fn step(&mut self) {
        let Some(at) = self.next_at() else { return };
        self.settled = self.settled.max(at);
        match self.ends.peek() {
            Some(Reverse((end, _, _))) if *end == at => self.end(),
            _ => self.begin(),
        }
    }

    fn begin(&mut self) {
        let Some((_, (observed, with))) = self.begins.pop() else { return };
        let number = self.open.next_number();
        let mut begun = Begun { observed, others: 0, clock: 0.0, turn: None, demand: None };
        if observed.ended > observed.begun {
            self.servers[observed.server].begin(number, &mut begun);
            self.ends.push(Reverse((observed.ended, number, observed.server)));
        } else {
            begun.demand = Some(Duration::ZERO);
        }
        self.open.begun.push_back((begun, with));
    }

    fn end(&mut self) {
        let Some(Reverse((now, number, server))) = self.ends.pop() else { return };
        let watch = &mut self.servers[server];
        // Who has not ended is still here.
        let Some(begun) = self.open.get_mut(number) else { return };
        begun.demand = Some(watch.end(begun));
        self.open.given_up.remove(&number);
        watch.review();
        while let Some(next) = watch.next_turn() {
            if let Some(next) = self.open.get_mut(next).filter(|next| next.demand.is_none()) {
                next.turn = Some(now);
                watch.in_service += 1;
            }
        }
    }
}

/// Ends between two looks at what fits.
const REVIEW_EVERY: u64 = 1_024;
/// Ends after which the past counts half.
const HALF_LIFE: u64 = 65_536;
/// How much better the other discipline has to fit.
const CLEARLY: f64 = 0.02;

/// One server, as its exchanges show it.
struct Watch {
    known: Known,
    /// In force.
    capacity: u32,
    discipline: Discipline,
    count: u32,
    at: Moment,
    /// How far a request would have come that had been there since the server was idle, in nanoseconds of demand.
    clock: f64,
    in_service: u32,
    /// Whose turn has not come, by number.
    waiting: VecDeque<u64>,
    last_end: Moment,
    ends: u64,
    levels: Levels,
    /// Exchanges since the capacity changed, and those of them that ended before their turn.
    looked_at: f64,
    overtaking: f64,
    by_fifo: Dependence,
    by_sharing: Dependence,
}

impl Watch {
    fn new(known: Known) -> Self {
        let (capacity, speed) = limits(known.capacity, known.speed);
        Watch {
            known: Known { speed, ..known },
            capacity,
            discipline: known.discipline.unwrap_or(Discipline::Sharing),
            count: 0,
            at: Moment::default(),
            clock: 0.0,
            in_service: 0,
            waiting: VecDeque::new(),
            last_end: Moment::default(),
            ends: 0,
            levels: Levels::default(),
            looked_at: 0.0,
            overtaking: 0.0,
            by_fifo: Dependence::default(),
            by_sharing: Dependence::default(),
        }
    }

    fn advance(&mut self, now: Moment) {
        let span = now.since(self.at).as_nanos() as f64;
        self.levels.stood(self.count, span);
        let rate = (f64::from(self.capacity) / f64::from(self.count.max(1))).min(1.0);
        self.clock = if self.count == 0 { 0.0 } else { self.clock + span * rate * self.known.speed };
        self.at = now;
    }

    fn begin(&mut self, number: u64, begun: &mut Begun) {
        let now = begun.observed.begun;
        self.advance(now);
        (begun.others, begun.clock) = (self.count, self.clock);
        self.count += 1;
        if self.in_service < self.capacity {
            self.in_service += 1;
            begun.turn = Some(now);
        } else {
            self.waiting.push_back(number);
        }
    }

    /// What an exchange cost that ends now.
    fn end(&mut self, begun: &Begun) -> Duration {
        let now = begun.observed.ended;
        self.advance(now);
        self.levels.ended(self.count);
        self.count -= 1;
        let sharing = (self.clock - begun.clock).max(0.0);
        let turn = match begun.turn {
            Some(turn) => {
                self.in_service -= 1;
                turn
            }
            None => {
                self.overtaking += 1.0;
                // It has been served, so it had a place: the one that was free last.
                begun.observed.begun.max(self.last_end)
            }
        };
        let fifo = now.since(turn).as_nanos() as f64 * self.known.speed;
        self.looked_at += 1.0;
        self.by_fifo.add(f64::from(begun.others), fifo);
        self.by_sharing.add(f64::from(begun.others), sharing);
        self.last_end = now;
        self.ends += 1;
        let nanos = if self.discipline == Discipline::Fifo { fifo } else { sharing };
        Duration::from_nanos(nanos.round() as u64)
    }

    /// Who is next, where there is a place.
    fn next_turn(&mut self) -> Option<u64> {
        if self.in_service < self.capacity { self.waiting.pop_front() } else { None }
    }

    /// Looks now and then whether what is taken for granted still fits.
    fn review(&mut self) {
        if !self.ends.is_multiple_of(REVIEW_EVERY) {
            return;
        }
        if self.known.capacity == 0 {
            self.adopt_capacity(self.levels.knee().unwrap_or(u32::MAX));
        }
        if self.known.discipline.is_none() {
            let Misfit { fifo, sharing } = self.misfit();
            match self.discipline {
                Discipline::Fifo if sharing + CLEARLY < fifo => self.discipline = Discipline::Sharing,
                Discipline::Sharing if fifo + CLEARLY < sharing => self.discipline = Discipline::Fifo,
                Discipline::Fifo | Discipline::Sharing => {}
            }
        }
        if self.ends.is_multiple_of(HALF_LIFE) {
            self.halve();
        }
    }

    /// What was worked out with another capacity says nothing about this one.
    fn adopt_capacity(&mut self, capacity: u32) {
        if capacity != self.capacity {
            self.capacity = capacity;
            (self.looked_at, self.overtaking) = (0.0, 0.0);
            (self.by_fifo, self.by_sharing) = (Dependence::default(), Dependence::default());
        }
    }

    fn misfit(&self) -> Misfit {
        let overtaking = self.overtaking / self.looked_at.max(1.0);
        Misfit { fifo: self.by_fifo.correlation().abs() + overtaking, sharing: self.by_sharing.correlation().abs() }
    }

    fn halve(&mut self) {
        self.levels.halve();
        self.looked_at /= 2.0;
        self.overtaking /= 2.0;
        self.by_fifo.halve();
        self.by_sharing.halve();
    }
}

/// How much demands depend on the number in flight: sums for a correlation (Welford's, so that large means cost no
/// precision).
#[derive(Clone, Copy, Default)]
struct Dependence {
    weight: f64,
    means: (f64, f64),
    squares: (f64, f64),
    products: f64,
}

impl Dependence {
    fn add(&mut self, x: f64, y: f64) {
        self.weight += 1.0;
        let before = (x - self.means.0, y - self.means.1);
        self.means.0 += before.0 / self.weight;
        self.means.1 += before.1 / self.weight;
        let after = (x - self.means.0, y - self.means.1);
        self.squares.0 += before.0 * after.0;
        self.squares.1 += before.1 * after.1;
        self.products += before.0 * after.1;
    }

    fn halve(&mut self) {
        self.weight /= 2.0;
        self.squares = (self.squares.0 / 2.0, self.squares.1 / 2.0);
        self.products /= 2.0;
    }

    /// Pearson's; 0 where one of the two does not vary.
    fn correlation(&self) -> f64 {
        let spread = (self.squares.0 * self.squares.1).sqrt();
        if spread > 0.0 { self.products / spread } else { 0.0 }
    }
}

/// Numbers in flight that are told apart.
const MOST_LEVELS: usize = 512;
/// Departures from a level before its latency counts.
const ENOUGH: f64 = 16.0;
/// Departures before a knee counts.
const ENOUGH_IN_ALL: f64 = 1_000.0;
/// How far beyond the knee a server must have been for it to be one.
const BEYOND: f64 = 1.5;

/// How long a server was at each number in flight, and how often somebody left from there.
#[derive(Default)]
struct Levels(Vec<Level>);

#[derive(Clone, Copy, Default)]
struct Level {
    nanos: f64,
    ended: f64,
}

impl Levels {
    fn at(&mut self, count: u32) -> Option<&mut Level> {
        let count = usize::try_from(count).ok().filter(|count| *count < MOST_LEVELS)?;
        if self.0.len() <= count {
            self.0.resize(count + 1, Level::default());
        }
        self.0.get_mut(count)
    }

    fn stood(&mut self, count: u32, nanos: f64) {
        if let Some(level) = self.at(count) {
            level.nanos += nanos;
        }
    }

    fn ended(&mut self, count: u32) {
        if let Some(level) = self.at(count) {
            level.ended += 1.0;
        }
    }

    fn halve(&mut self) {
        for level in &mut self.0 {
            level.nanos /= 2.0;
            level.ended /= 2.0;
        }
    }

    /// The capacity by which `latency = base x max(1, n / capacity)` fits best, by the least squares of logarithms; none
    /// while the server was never clearly beyond it.
    fn knee(&self) -> Option<u32> {
        let seen: Vec<Seen> =
            (1u32..).zip(self.0.iter().skip(1)).filter_map(|(n, level)| Seen::new(n, *level)).collect();
        let highest = seen.last()?.n;
        if seen.iter().map(|seen| seen.weight).sum::<f64>() < ENOUGH_IN_ALL {
            return None;
        }
        let error = |capacity: u32| misfit_of_knee(&seen, f64::from(capacity).ln());
        let best = (1..=highest).map(|capacity| (error(capacity), capacity)).min_by(|a, b| a.0.total_cmp(&b.0))?;
        (f64::from(highest) >= f64::from(best.1) * BEYOND).then_some(best.1)
    }
}

/// A level with enough departures.
struct Seen {
    n: u32,
    ln_n: f64,
    ln_latency: f64,
    weight: f64,
}

impl Seen {
    fn new(n: u32, level: Level) -> Option<Self> {
        let latency = f64::from(n) * level.nanos / level.ended;
        let counts = level.ended >= ENOUGH && latency > 0.0;
        counts.then(|| Seen { n, ln_n: f64::from(n).ln(), ln_latency: latency.ln(), weight: level.ended })
    }
}

/// What is left of the variance with a knee there.
fn misfit_of_knee(seen: &[Seen], ln_capacity: f64) -> f64 {
    let (mut weight, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for level in seen {
        let base = level.ln_latency - (level.ln_n - ln_capacity).max(0.0);
        weight += level.weight;
        let off = base - mean;
        mean += off * level.weight / weight;
        squares += level.weight * off * (base - mean);
    }
    squares
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn milli(number: u64) -> Moment {
        Moment::from_nanos(number * 1_000_000)
    }

    const fn observed(begun: u64, ended: u64) -> Observed {
        Observed { server: 0, begun: milli(begun), ended: milli(ended), session: None, key: begun }
    }

    fn known(discipline: Discipline, capacity: u32) -> Known {
        Known { capacity, discipline: Some(discipline), speed: 1.0 }
    }

    /// Demands in the order of beginnings, in microseconds.
    fn demands(known: Known, exchanges: &[(u64, u64)]) -> Vec<u64> {
        let mut demands = Demands::<()>::new(&[known], 100);
        exchanges.iter().for_each(|(begun, ended)| demands.offer(observed(*begun, *ended), ()));
        let arrivals = demands.finish();
        assert_eq!(arrivals.len(), exchanges.len());
        assert!(arrivals.is_sorted_by_key(|(arrival, ())| arrival.at));
        arrivals.iter().map(|(arrival, ())| arrival.demand.as_micros() as u64).collect()
    }

    #[test]
    fn demands_by_hand() {
        use Discipline::{Fifo, Sharing};
        // Of the ends of `server.rs`, by hand there.
        assert_eq!(demands(known(Fifo, 1), &[(0, 10), (5, 20), (40, 43)]), [10_000, 10_000, 3_000]);
        assert_eq!(demands(known(Sharing, 1), &[(0, 15), (5, 20), (40, 43)]), [10_000, 10_000, 3_000]);
        assert_eq!(demands(known(Fifo, 2), &[(0, 10), (5, 15), (6, 11)]), [10_000, 10_000, 1_000]);
        assert_eq!(demands(known(Sharing, 2), &[(0, 11), (5, 16), (6, 9)]), [10_000, 10_000, 2_000]);
        let half = Known { speed: 0.5, ..known(Fifo, 1) };
        assert_eq!(demands(half, &[(0, 20), (1, 22)]), [10_000, 1_000]);
        assert_eq!(demands(known(Sharing, 0), &[(0, 10), (0, 10)]), [10_000, 10_000], "no limit, no waiting");
        // Who ends before its turn had the place that was free last: the second from 10 on.
        assert_eq!(demands(known(Fifo, 1), &[(0, 10), (1, 30), (2, 14)]), [10_000, 20_000, 4_000]);
        assert_eq!(demands(known(Fifo, 1), &[(3, 3), (4, 6)]), [0, 2_000]);
    }

    #[test]
    fn the_order_of_offers_does_not_matter_within_the_buffer() {
        let mut random = fastrand::Rng::with_seed(4);
        let exchanges: Vec<Observed> = (0..500).map(|at| observed(at * 3, at * 3 + random.u64(1..40))).collect();
        let run = |exchanges: &[Observed]| {
            let mut demands = Demands::<()>::new(&[known(Discipline::Sharing, 2)], 500);
            exchanges.iter().for_each(|exchange| demands.offer(*exchange, ()));
            (demands.finish(), demands.left_out())
        };
        let in_order = run(&exchanges);
        let mut shuffled = exchanges.clone();
        random.shuffle(&mut shuffled);
        assert_eq!(run(&shuffled), in_order);
        assert_eq!((in_order.0.len(), in_order.1), (500, 0));
    }

    #[test]
    fn arrivals_come_as_time_goes_on_and_who_is_late_is_left_out() {
        let mut demands = Demands::<()>::new(&[known(Discipline::Fifo, 2)], 100);
        demands.offer(observed(0, 30), ());
        demands.offer(observed(10, 15), ());
        demands.settle(milli(20));
        assert_eq!(demands.arrival(), None, "the first has not ended, and the second is behind it");
        demands.offer(observed(19, 40), ());
        demands.offer(Observed { server: 1, ..observed(25, 40) }, ());
        assert_eq!(demands.left_out(), 2, "too late; no such server");
        demands.settle(milli(31));
        let demand = |demands: &mut Demands<()>| demands.arrival().map(|(arrival, ())| arrival.demand.as_millis());
        assert_eq!([demand(&mut demands), demand(&mut demands), demand(&mut demands)], [Some(30), Some(5), None]);
    }

    #[test]
    fn the_buffer_is_bounded_whatever_comes() {
        let mut demands = Demands::<()>::new(&[known(Discipline::Fifo, 1)], 10);
        for at in 0..1_000 {
            demands.offer(observed(at, at + 100_000), ());
            demands.offer(observed(at, at + 1), ());
            assert!(demands.begins.len() <= 10 && demands.open.begun.len() <= 20 && demands.open.given_up.len() <= 10);
        }
        let rest = demands.finish().len() as u64;
        assert_eq!(rest + demands.left_out(), 2_000);
        assert!(demands.ends.is_empty() && demands.open.given_up.is_empty());
    }

    #[test]
    fn one_that_lasts_for_long_keeps_its_place_and_holds_nobody_up() {
        let mut demands = Demands::<()>::new(&[known(Discipline::Fifo, 2)], 10);
        demands.offer(observed(0, 100_000), ());
        let mut found = Vec::new();
        for at in 0..1_000 {
            // Two at a time, of 10 ms each, for the one worker that is left.
            demands.offer(observed(at * 40, at * 40 + 10), ());
            demands.offer(observed(at * 40 + 1, at * 40 + 20), ());
            demands.settle(milli(at * 40 + 30));
            found.extend(std::iter::from_fn(|| demands.arrival()));
        }
        found.extend(demands.finish());
        assert_eq!((found.len(), demands.left_out()), (2_000, 1));
        assert!(found.iter().all(|(arrival, ())| arrival.demand == Duration::from_millis(10)));
    }

    #[test]
    fn a_knee_is_seen_only_where_the_server_was_beyond_it() {
        let levels = |highest: u32, capacity: u32| {
            let mut levels = Levels::default();
            for n in 1..=highest {
                let rate = f64::from(n.min(capacity)) / 10e6;
                *levels.at(n).unwrap() = Level { nanos: 500.0 / rate, ended: 500.0 };
            }
            levels.knee()
        };
        for capacity in [1, 2, 5, 20] {
            assert_eq!(levels(capacity * 3, capacity), Some(capacity));
            assert_eq!(levels(capacity.max(3), 100), None, "flat throughout");
        }
        assert_eq!(Levels::default().knee(), None);
    }

    #[test]
    fn dependence_is_a_correlation() {
        let of = |pairs: &[(f64, f64)]| {
            let mut dependence = Dependence::default();
            pairs.iter().for_each(|(x, y)| dependence.add(*x, *y));
            dependence.halve();
            dependence.correlation()
        };
        assert!((of(&[(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]) - 1.0).abs() < 1e-12);
        assert!(of(&[(0.0, 1.0), (1.0, 0.0), (2.0, 1.0), (1.0, 2.0)]).abs() < 1e-12);
        assert_eq!(of(&[(1.0, 5.0), (1.0, 7.0)]), 0.0);
    }
}
