//! The twins of the pools: how workers tell of exchanges, and the thread that plays them.
//!
//! A worker puts what it tells into a queue of its own, under a lock that only the thread contends for, for as long as it
//! takes to swap two vectors, once a second. A queue has a bound: what finds no room, or the lock taken, is dropped and
//! counted, and no exchange waits. What is not in the sample is not even told.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::{Condvar, Mutex};

use super::reload::Runtime;
use super::snapshot::{PoolEntry, Snapshot};
use crate::clock::{Clock, Moment};
use crate::metrics::WorkerId;
use crate::names::Ineligible;
use crate::twin::{LivePool, LiveReport, LiveSettings, LiveTwin, Present, Sample, Settled, Takes};

/// What one worker may have told between two turns, of all pools.
const MOST_TOLD: usize = 65_536;
/// How often the thread has a look.
const TURN: Duration = Duration::from_secs(1);
/// A report that is older than this and a window is about other traffic: the next one should have come, even where
/// there is little to go by, and although the twin runs behind.
const STALE: Duration = Duration::from_secs(90);

/// No two seats of a process have the same number.
static SEATS: AtomicU64 = AtomicU64::new(0);

/// What a pool and its twin have in common. It is another one when the pool's servers or its policy are.
pub struct TwinSeat {
    number: u64,
    settings: LiveSettings,
    pool: LivePool,
    /// The sample in force, by its halvings.
    halvings: AtomicU32,
    /// Over all seats of the pool.
    dropped: Arc<AtomicU64>,
    report: ArcSwapOption<LiveReport>,
}

impl TwinSeat {
    /// The seat of this pool: the one that it had, if that is for the same.
    pub(super) fn take(before: Option<&Arc<Self>>, settings: LiveSettings, pool: LivePool) -> Arc<Self> {
        match before {
            Some(known) if known.settings == settings && known.pool == pool => Arc::clone(known),
            _ => Arc::new(TwinSeat {
                number: SEATS.fetch_add(1, Ordering::Relaxed),
                settings,
                pool,
                halvings: AtomicU32::new(0),
                dropped: before.map(|before| Arc::clone(&before.dropped)).unwrap_or_default(),
                report: ArcSwapOption::empty(),
            }),
        }
    }

    /// What the twin said last; none where it has nothing to say yet.
    pub fn report(&self) -> Option<Arc<LiveReport>> {
        self.report.load_full()
    }

    /// Events that found no room, since the process began.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn sample(&self) -> Sample {
        Sample::halved(self.halvings.load(Ordering::Relaxed))
    }
}

/// What a worker tells.
struct Told {
    seat: u64,
    settled: Settled,
}

/// Keeps one worker's queue off the cache lines of another's.
#[repr(align(128))]
#[derive(Default)]
struct Queue {
    told: Mutex<Vec<Told>>,
    /// Exchanges without a session.
    strangers: AtomicU64,
}

/// Where the workers tell of exchanges.
pub struct Twins {
    queues: Box<[Queue]>,
    end: Mutex<bool>,
    ended: Condvar,
}

impl Twins {
    pub(super) fn new(workers: usize) -> Self {
        let queues = (0..workers).map(|_| Queue::default()).collect();
        Twins { queues, end: Mutex::new(false), ended: Condvar::new() }
    }

    /// Tells of an exchange that its server has served. A session is told of wholly or not at all.
    pub fn tell(&self, worker: WorkerId, seat: &TwinSeat, settled: Settled) {
        let Some(queue) = self.queues.get(worker.0) else { return };
        let hash = settled.session.unwrap_or_else(|| queue.strangers.fetch_add(1, Ordering::Relaxed));
        if !seat.sample().takes(hash) {
            return;
        }
        match queue.told.try_lock() {
            Some(mut told) if told.len() < MOST_TOLD => told.push(Told { seat: seat.number, settled }),
            _ => {
                seat.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Starts the thread.
    pub fn start(runtime: &Arc<Runtime>) -> io::Result<TwinThread> {
        let playing = Arc::clone(runtime);
        let thread = std::thread::Builder::new().name("twin".into()).spawn(move || play(&playing))?;
        Ok(TwinThread { runtime: Arc::clone(runtime), thread: Some(thread) })
    }

    /// Waits for the next turn; says whether there is none.
    fn is_over(&self) -> bool {
        let mut end = self.end.lock();
        if !*end {
            self.ended.wait_for(&mut end, TURN);
        }
        *end
    }
}

/// The thread, as its owner holds it.
pub struct TwinThread {
    runtime: Arc<Runtime>,
    thread: Option<JoinHandle<()>>,
}

impl TwinThread {
    /// Ends it.
    pub fn finish(mut self) {
        *self.runtime.twins.end.lock() = true;
        self.runtime.twins.ended.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn play(runtime: &Runtime) {
    let mut players = Players::default();
    while !runtime.twins.is_over() {
        let now = Clock::now();
        // A snapshot is not held on to: stores end with the last one that has them.
        let seats = seats(&runtime.snapshot(), now);
        players.turn(&runtime.twins, &seats, now);
    }
}

/// The pools that have a twin, as they are now.
fn seats(snapshot: &Snapshot, now: Moment) -> Vec<(Arc<TwinSeat>, Present)> {
    let seat = |entry: &PoolEntry| Some((Arc::clone(entry.twin.as_ref()?), present(entry, now)));
    snapshot.pools.iter().filter_map(seat).collect()
}

fn present(entry: &PoolEntry, now: Moment) -> Present {
    let servers = entry.pool.servers.iter().map(|server| match server.unfit(now) {
        None | Some(Ineligible::Full | Ineligible::Weightless) => Takes::Anybody(server.weight()),
        Some(Ineligible::Draining | Ineligible::Ejected)
            if matches!(server.unfit_for_pinned(now), None | Some(Ineligible::Full)) =>
        {
            Takes::ItsOwn
        }
        Some(_) => Takes::Nobody,
    });
    let store_round_trip = entry.shared.as_ref().and_then(|shared| shared.store.round_trip());
    Present { servers: servers.collect(), store_round_trip }
}

/// What the thread has.
#[derive(Default)]
struct Players {
    playing: HashMap<u64, Player>,
    told: Vec<Told>,
}

struct Player {
    twin: LiveTwin,
    /// How many events had been dropped at the last turn.
    dropped: u64,
}

impl Players {
    /// Takes what was told, and plays it. A seat that is no pool's any more is forgotten with its twin.
    fn turn(&mut self, twins: &Twins, seats: &[(Arc<TwinSeat>, Present)], now: Moment) {
        self.playing.retain(|number, _| seats.iter().any(|(seat, _)| seat.number == *number));
        for (seat, present) in seats {
            self.playing.entry(seat.number).or_insert_with(|| Player {
                twin: LiveTwin::new(seat.settings, seat.pool.clone(), present.clone(), now),
                dropped: seat.dropped(),
            });
        }
        for queue in &twins.queues {
            std::mem::swap(&mut *queue.told.lock(), &mut self.told);
            for Told { seat, settled } in self.told.drain(..) {
                if let Some(player) = self.playing.get_mut(&seat) {
                    player.twin.offer(settled);
                }
            }
        }
        for (seat, present) in seats {
            if let Some(player) = self.playing.get_mut(&seat.number) {
                player.turn(seat, present.clone(), now);
            }
        }
    }
}

impl Player {
    fn turn(&mut self, seat: &TwinSeat, present: Present, now: Moment) {
        let dropped = seat.dropped();
        let since = dropped.saturating_sub(std::mem::replace(&mut self.dropped, dropped));
        match self.twin.turn(now, present, since) {
            Some(report) => seat.report.store(Some(Arc::new(report))),
            None if seat.report().is_some_and(|report| now.since(report.until) > STALE + seat.settings.window) => {
                seat.report.store(None)
            }
            None => {}
        }
        seat.halvings.store(self.twin.sample().halvings(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Balance;
    use crate::pool::PinRules;
    use crate::twin::{Discipline, LiveServer, Pinned};

    fn settings(events_per_second: u32) -> LiveSettings {
        LiveSettings {
            events_per_second,
            discipline: Some(Discipline::Sharing),
            window: Duration::from_secs(10),
            warm_up: Duration::from_millis(5),
            store_round_trip: Duration::from_millis(1),
        }
    }

    fn pool(names: &[&str]) -> LivePool {
        let server =
            |name: &&str| LiveServer { name: (*name).into(), weight: 1, capacity: 4, max_requests: 0, backup: false };
        LivePool {
            is_hashed: false,
            balance: Balance::P2c,
            is_sticky: true,
            pins: PinRules::default(),
            has_store: false,
            servers: names.iter().map(server).collect(),
        }
    }

    fn seat(before: Option<&Arc<TwinSeat>>, events_per_second: u32, names: &[&str]) -> Arc<TwinSeat> {
        TwinSeat::take(before, settings(events_per_second), pool(names))
    }

    fn present(seat: &TwinSeat) -> Present {
        Present { servers: vec![Takes::Anybody(1); seat.pool.servers.len()], store_round_trip: None }
    }

    /// An exchange of 10 ms that ended now.
    fn settled(number: u64, now: Moment) -> Settled {
        let begun = Moment::from_nanos(now.as_nanos() - 10_000_000);
        let session = Some(number % 100);
        let server = number as usize % 2;
        Settled {
            server,
            session,
            key: number,
            pinned: Pinned::Already(server),
            arrived: begun,
            begun,
            ended: now,
            failed: false,
        }
    }

    /// So many exchanges a second of two workers, and a turn each second.
    fn play(twins: &Twins, seat: &Arc<TwinSeat>, players: &mut Players, seconds: std::ops::Range<u64>, rate: u64) {
        for second in seconds {
            for number in 0..rate {
                let now = Moment::from_nanos(second * 1_000_000_000 + number * 1_000_000_000 / rate);
                twins.tell(WorkerId(number as usize / 2 % 2), seat, settled(number, now));
            }
            let now = Moment::from_nanos((second + 1) * 1_000_000_000);
            players.turn(twins, &[(Arc::clone(seat), present(seat))], now);
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts_and_the_other_workers_have_their_own() {
        let (twins, seat) = (Twins::new(2), seat(None, 1_000, &["a", "b"]));
        let now = Moment::from_nanos(1_000_000_000);
        for number in 0..MOST_TOLD as u64 + 7 {
            twins.tell(WorkerId(0), &seat, settled(number, now));
        }
        assert_eq!((twins.queues[0].told.lock().len(), seat.dropped()), (MOST_TOLD, 7));
        twins.tell(WorkerId(1), &seat, settled(1, now));
        assert_eq!((twins.queues[1].told.lock().len(), seat.dropped()), (1, 7));
        let held = twins.queues[1].told.lock();
        twins.tell(WorkerId(1), &seat, settled(1, now));
        drop(held);
        assert_eq!(seat.dropped(), 8, "nobody waits for the lock");
    }

    #[test]
    fn what_workers_tell_comes_out_as_a_report() {
        let (twins, seat) = (Twins::new(2), seat(None, 1_000, &["a", "b"]));
        let mut players = Players::default();
        play(&twins, &seat, &mut players, 1..10, 100);
        assert!(seat.report().is_none(), "it is too early");
        play(&twins, &seat, &mut players, 10..30, 100);
        let report = seat.report().unwrap();
        assert!(report.exchanges >= 900 && report.doubts.is_empty(), "{report:?}");
        assert!(report.measured.p50.abs_diff(Duration::from_millis(10)) < Duration::from_millis(1), "{report:?}");
        assert!((report.fit.unwrap() - 1.0).abs() < 0.1, "{report:?}");
        assert!(twins.queues.iter().all(|queue| queue.told.lock().is_empty()));
    }

    #[test]
    fn above_the_budget_workers_tell_of_a_part_of_the_sessions_and_of_those_everything() {
        let (twins, seat) = (Twins::new(2), seat(None, 100, &["a", "b"]));
        play(&twins, &seat, &mut Players::default(), 1..20, 1_000);
        let sample = seat.sample();
        assert!(sample.share() < 0.3, "{sample:?}");
        let now = Moment::from_nanos(20_000_000_000);
        (0..1_000).for_each(|number| twins.tell(WorkerId(0), &seat, settled(number, now)));
        let told = twins.queues[0].told.lock();
        let sessions = told.iter().filter_map(|told| told.settled.session);
        let sessions: std::collections::BTreeSet<u64> = sessions.collect();
        assert_eq!(told.len(), 10 * sessions.len(), "each has ten");
        assert!(sessions.iter().all(|session| sample.takes(*session)));
        drop(told);
        (0..1_000).for_each(|number| twins.tell(WorkerId(1), &seat, Settled { session: None, ..settled(number, now) }));
        let strangers = twins.queues[1].told.lock().len();
        assert!((1..400).contains(&strangers), "{strangers}");
    }

    #[test]
    fn another_set_of_servers_begins_anew_and_what_was_dropped_stays_counted() {
        let twins = Twins::new(2);
        let first = seat(None, 1_000, &["a", "b"]);
        assert!(Arc::ptr_eq(&seat(Some(&first), 1_000, &["a", "b"]), &first), "nothing has changed");
        let mut players = Players::default();
        play(&twins, &first, &mut players, 1..30, 100);
        first.dropped.store(3, Ordering::Relaxed);
        let second = seat(Some(&first), 1_000, &["a", "b", "c"]);
        assert!(!Arc::ptr_eq(&second, &first) && second.report().is_none());
        assert_eq!(second.dropped(), 3);
        twins.tell(WorkerId(0), &first, settled(1, Moment::from_nanos(30_000_000_000)));
        play(&twins, &second, &mut players, 30..31, 100);
        assert_eq!(players.playing.keys().collect::<Vec<_>>(), [&second.number]);
        play(&twins, &second, &mut players, 31..60, 100);
        assert_eq!(second.report().unwrap().servers.len(), 3);
    }

    #[test]
    fn a_report_is_there_until_the_next_one_is_due_and_no_longer() {
        let settings = LiveSettings { window: Duration::from_secs(300), ..settings(1_000) };
        let twins = Twins::new(2);
        let seat = TwinSeat::take(None, settings, pool(&["a", "b"]));
        let mut players = Players::default();
        play(&twins, &seat, &mut players, 1..320, 10);
        assert!(seat.report().is_some());
        // Nobody asks any more: there is one more about the last that did, and then no other.
        play(&twins, &seat, &mut players, 320..900, 0);
        assert!(seat.report().is_some(), "the next one would not be due yet");
        play(&twins, &seat, &mut players, 900..1_100, 0);
        assert!(seat.report().is_none());
    }
}
