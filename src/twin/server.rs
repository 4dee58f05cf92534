//! The two disciplines: how a server works on several requests at once, in virtual time.
//!
//! Both are exact. FIFO is a heap of workers' ends and a queue. Processor sharing goes by a virtual clock that runs as
//! fast as each request is served: what is entered at V with the demand d ends when the clock shows V + d, however many
//! come and go, so a heap of these tags is the order of ends (Kleinrock 1967; the virtual time is that of fair queueing,
//! Demers, Keshav and Shenker 1989). A request costs O(log n).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::{Discipline, ServerModel};
use crate::clock::Moment;

/// The slowest that a server may be: a speed of zero would never end.
const SLOWEST: f64 = 1e-6;
const NEVER: Moment = Moment::from_nanos(u64::MAX);

/// The requests that a server works on, by the numbers that they were given.
pub(super) struct Station {
    speed: f64,
    work: Work,
}

enum Work {
    Fifo(Fifo),
    Sharing(Sharing),
}

/// What a capacity or a speed means: zero capacity is no limit, and every speed is one that ends.
pub(super) fn limits(capacity: u32, speed: f64) -> (u32, f64) {
    (if capacity == 0 { u32::MAX } else { capacity }, if speed.is_finite() { speed.max(SLOWEST) } else { 1.0 })
}

impl Station {
    pub(super) fn new(model: &ServerModel) -> Self {
        let (capacity, speed) = limits(model.capacity, model.speed);
        let work = match model.discipline {
            Discipline::Fifo => Work::Fifo(Fifo::new(capacity)),
            Discipline::Sharing => Work::Sharing(Sharing::new(capacity)),
        };
        Station { speed, work }
    }

    /// One more request.
    pub(super) fn enter(&mut self, number: usize, demand: Duration, now: Moment) {
        let nanos = demand.as_nanos() as f64 / self.speed;
        match &mut self.work {
            Work::Fifo(fifo) => fifo.enter(number, nanos.round() as u64, now),
            Work::Sharing(sharing) => sharing.enter(number, nanos, now),
        }
    }

    /// When the next one ends, if nobody else comes.
    pub(super) fn next_end(&self) -> Option<Moment> {
        match &self.work {
            Work::Fifo(fifo) => fifo.busy.peek().map(|Reverse((end, _, _))| *end),
            Work::Sharing(sharing) => sharing.next_end(),
        }
    }

    /// Takes out the one that ends now, at [`Self::next_end`].
    pub(super) fn end(&mut self, now: Moment) -> Option<usize> {
        match &mut self.work {
            Work::Fifo(fifo) => fifo.end(now),
            Work::Sharing(sharing) => sharing.end(now),
        }
    }

    /// Takes out all.
    pub(super) fn clear(&mut self) -> Vec<usize> {
        match &mut self.work {
            Work::Fifo(fifo) => {
                let busy = fifo.busy.drain().map(|Reverse((_, _, number))| number);
                busy.chain(fifo.waiting.drain(..).map(|(number, _)| number)).collect()
            }
            Work::Sharing(sharing) => sharing.tags.drain().map(|Reverse((_, _, number))| number).collect(),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        match &self.work {
            Work::Fifo(fifo) => fifo.busy.len() + fifo.waiting.len(),
            Work::Sharing(sharing) => sharing.tags.len(),
        }
    }
}

struct Fifo {
    workers: usize,
    /// Ends, in which order they were begun, and whose they are.
    busy: BinaryHeap<Reverse<(Moment, u64, usize)>>,
    /// Who waits, and for how many nanoseconds of work.
    waiting: VecDeque<(usize, u64)>,
    begun: u64,
}

impl Fifo {
    fn new(workers: u32) -> Self {
        Fifo { workers: workers as usize, busy: BinaryHeap::new(), waiting: VecDeque::new(), begun: 0 }
    }

    fn enter(&mut self, number: usize, nanos: u64, now: Moment) {
        if self.busy.len() < self.workers {
            self.begin(number, nanos, now);
        } else {
            self.waiting.push_back((number, nanos));
        }
    }

    fn begin(&mut self, number: usize, nanos: u64, now: Moment) {
        self.begun += 1;
        self.busy.push(Reverse((now + Duration::from_nanos(nanos), self.begun, number)));
    }

    fn end(&mut self, now: Moment) -> Option<usize> {
        let Reverse((_, _, number)) = self.busy.pop()?;
        if let Some((next, nanos)) = self.waiting.pop_front() {
            self.begin(next, nanos, now);
        }
        Some(number)
    }
}

struct Sharing {
    capacity: f64,
    /// What the virtual clock showed at `at`, in nanoseconds; it begins anew with every busy period.
    clock: f64,
    at: Moment,
    entered: u64,
    /// The bits of the tag, in which order they came, and whose it is. Tags are never negative, and the bits of such
    /// floats are in their order.
    tags: BinaryHeap<Reverse<(u64, u64, usize)>>,
}

impl Sharing {
    fn new(capacity: u32) -> Self {
        Sharing {
            capacity: f64::from(capacity),
            clock: 0.0,
            at: Moment::default(),
            entered: 0,
            tags: BinaryHeap::new(),
        }
    }

    /// How fast each request is served.
    fn rate(&self) -> f64 {
        (self.capacity / self.tags.len().max(1) as f64).min(1.0)
    }

    fn advance(&mut self, now: Moment) {
        let ran = now.since(self.at).as_nanos() as f64 * self.rate();
        self.clock = if self.tags.is_empty() { 0.0 } else { self.clock + ran };
        self.at = now;
    }

    fn enter(&mut self, number: usize, nanos: f64, now: Moment) {
        self.advance(now);
        self.entered += 1;
        self.tags.push(Reverse(((self.clock + nanos).to_bits(), self.entered, number)));
    }

    fn next_end(&self) -> Option<Moment> {
        let Reverse((tag, _, _)) = self.tags.peek()?;
        let left = (f64::from_bits(*tag) - self.clock).max(0.0) / self.rate();
        // Up to the next whole nanosecond: nobody ends before having been served.
        Some(self.at + Duration::from_nanos(left.ceil() as u64))
    }

    fn end(&mut self, now: Moment) -> Option<usize> {
        self.advance(now);
        self.tags.pop().map(|Reverse((_, _, number))| number)
    }
}

/// When each of several servers is due: a tournament, so that the first is known at once and a change costs O(log n).
pub(super) struct Soonest {
    leaves: usize,
    /// From 1 on: each has the sooner of its two children at twice its position; the last `leaves` are the servers.
    nodes: Vec<(Moment, usize)>,
}

impl Soonest {
    pub(super) fn new(servers: usize) -> Self {
        let leaves = servers.next_power_of_two();
        Soonest { leaves, nodes: (0..2 * leaves).map(|node| (NEVER, node % leaves)).collect() }
    }

    /// The server is due then, or not at all.
    pub(super) fn set(&mut self, server: usize, due: Option<Moment>) {
        let mut node = self.leaves + server;
        self.nodes[node].0 = due.unwrap_or(NEVER);
        while node > 1 {
            node /= 2;
            self.nodes[node] = self.nodes[2 * node].min(self.nodes[2 * node + 1]);
        }
    }

    /// Who is due first, and when; of several the first by position.
    pub(super) fn first(&self) -> Option<(Moment, usize)> {
        let first = self.nodes[1];
        (first.0 != NEVER).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn milli(number: u64) -> Moment {
        Moment::from_nanos(number * 1_000_000)
    }

    fn station(discipline: Discipline, capacity: u32, speed: f64) -> Station {
        Station::new(&ServerModel {
            name: "a".into(),
            weight: 1,
            live_weight: None,
            max_requests: 0,
            backup: false,
            drains: false,
            capacity,
            discipline,
            speed,
            from: Moment::default(),
            until: NEVER,
        })
    }

    /// When each of these (arrival, demand) ends, in nanoseconds.
    fn ends(mut station: Station, jobs: &[(u64, u64)]) -> Vec<u64> {
        let mut ends = vec![0; jobs.len()];
        let mut run = |station: &mut Station, until: Moment| {
            while let Some(end) = station.next_end().filter(|end| *end <= until) {
                ends[station.end(end).unwrap()] = end.as_nanos();
            }
        };
        for (number, (at, demand)) in jobs.iter().enumerate() {
            run(&mut station, Moment::from_nanos(*at));
            station.enter(number, Duration::from_nanos(*demand), Moment::from_nanos(*at));
        }
        run(&mut station, NEVER);
        assert_eq!(station.count(), 0);
        ends
    }

    #[test]
    fn ends_by_hand() {
        use Discipline::{Fifo, Sharing};
        const MS: u64 = 1_000_000;
        type Case = (Discipline, u32, f64, &'static [(u64, u64)], &'static [u64]);
        let cases: [Case; 9] = [
            (Fifo, 1, 1.0, &[(0, 10), (5, 10), (40, 3)], &[10, 20, 43]),
            // Half shared from 5 on: the first has 5 left and takes 10 for it; then the second has 5 left, alone.
            (Sharing, 1, 1.0, &[(0, 10), (5, 10), (40, 3)], &[15, 20, 43]),
            (Fifo, 2, 1.0, &[(0, 10), (5, 10), (6, 1)], &[10, 15, 11]),
            (Sharing, 2, 1.0, &[(0, 10), (5, 10)], &[10, 15]),
            // Three on two: each at two thirds. The short one ends at 6 + 1.5 x 2, the first at 9 + (10 - 6 - 2).
            (Sharing, 2, 1.0, &[(0, 10), (5, 10), (6, 2)], &[11, 16, 9]),
            (Fifo, 1, 0.5, &[(0, 10), (0, 1)], &[20, 22]),
            (Sharing, 1, 0.5, &[(0, 10), (0, 10)], &[40, 40]),
            (Sharing, 0, 1.0, &[(0, 10), (0, 10), (0, 10)], &[10, 10, 10]),
            (Fifo, 0, 2.0, &[(0, 10), (0, 10), (1, 10)], &[5, 5, 6]),
        ];
        for (discipline, capacity, speed, jobs, wanted) in cases {
            let jobs: Vec<(u64, u64)> = jobs.iter().map(|(at, demand)| (at * MS, demand * MS)).collect();
            for (end, wanted) in ends(station(discipline, capacity, speed), &jobs).iter().zip(wanted) {
                assert!(end.abs_diff(wanted * MS) < 10, "{discipline} {capacity} {jobs:?}: {end} for {wanted} ms");
            }
        }
    }

    #[test]
    fn a_server_that_goes_gives_back_all_it_has() {
        for discipline in Discipline::ALL {
            let mut station = station(*discipline, 2, 1.0);
            (0..5).for_each(|number| station.enter(number, Duration::from_secs(1), milli(3)));
            let mut numbers = station.clear();
            numbers.sort_unstable();
            assert_eq!((numbers, station.count(), station.next_end()), (vec![0, 1, 2, 3, 4], 0, None));
        }
    }

    #[test]
    fn who_is_due_first_is_known() {
        for servers in 1..9 {
            let mut soonest = Soonest::new(servers);
            let mut due: Vec<Option<Moment>> = vec![None; servers];
            let mut random = fastrand::Rng::with_seed(servers as u64);
            for _ in 0..200 {
                let server = random.usize(..servers);
                due[server] = random.bool().then(|| milli(random.u64(..20)));
                soonest.set(server, due[server]);
                let wanted = due.iter().enumerate().filter_map(|(at, due)| Some(((*due)?, at))).min();
                assert_eq!(soonest.first(), wanted);
            }
        }
    }

    fn jobs() -> impl Strategy<Value = Vec<(u64, u64)>> {
        proptest::collection::vec((0..3_000u64, 1..2_000u64), 1..60).prop_map(|gaps| {
            let mut now = 0;
            let at = |(gap, demand): (u64, u64)| {
                now += gap * 1_000;
                (now, demand * 1_000)
            };
            gaps.into_iter().map(at).collect()
        })
    }

    proptest! {
        /// Neither discipline idles while there is work: on one worker both are done at the same moment, which is when a
        /// queue that is worked off without a break is.
        #[test]
        fn work_is_conserved(jobs in jobs()) {
            let work_off = |done: u64, (at, demand): &(u64, u64)| done.max(*at) + demand;
            let wanted = jobs.iter().fold(0, work_off);
            for discipline in Discipline::ALL {
                let last = ends(station(*discipline, 1, 1.0), &jobs).into_iter().max().unwrap();
                prop_assert!(last.abs_diff(wanted) <= jobs.len() as u64, "{discipline}: {last} for {wanted}");
            }
        }

        #[test]
        fn nobody_ends_before_having_been_served(jobs in jobs(), capacity in 1u32..5) {
            for discipline in Discipline::ALL {
                for (end, (at, demand)) in ends(station(*discipline, capacity, 1.0), &jobs).iter().zip(&jobs) {
                    prop_assert!(*end + 1 >= at + demand, "{discipline}: {end} for {at} and {demand}");
                }
            }
        }
    }
}
