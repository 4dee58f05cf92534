//! The open connections of one worker: how long they have been idle, and who has to go.
//!
//! No connection has a timer of its own. Each one notes in an [`Activity`] what it is doing and since when, on a
//! clock that ticks every 50 ms, and one sweep per tick finds those past their time. The same list serves
//! `max_connections` (the oldest idle one goes) and the drain at shutdown.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use crate::clock::Moment;
use crate::metrics::{Metrics, WorkerId};
use crate::names::{Limit, words};

/// How long a connection may be silent during a drain before it is closed. A client that has just had an answer may
/// be sending its next request right now; closing at once would lose it.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// When an idle connection gives up what only exchanges need. Before that the next request is likely; after it, memory
/// is worth more than a little work.
const REST_AFTER: Duration = Duration::from_secs(1);

words! {
    /// What a connection is doing.
    Phase {
        /// PROXY header and TLS handshake.
        Opening = "opening",
        Idle = "idle",
        /// A request's head is coming in.
        Head = "head",
        /// Exchanges are under way.
        Busy = "busy",
        /// It carries another protocol now.
        Tunnel = "tunnel",
    }
}

/// What one connection is doing, and since when.
pub struct Activity {
    clock: Rc<Cell<Moment>>,
    phase: Cell<Phase>,
    since: Cell<Moment>,
    exchanges: Cell<u32>,
    /// When a write first could not go on.
    blocked_since: Cell<Option<Moment>>,
    /// Streams whose last piece of a body was taken, and that have not asked for the next.
    held: Cell<u32>,
    /// When any stream last moved.
    moved: Cell<Moment>,
    http2: Cell<bool>,
    closed: Cell<bool>,
}

impl Activity {
    fn new(clock: Rc<Cell<Moment>>) -> Self {
        let now = clock.get();
        Activity {
            clock,
            phase: Cell::new(Phase::Opening),
            since: Cell::new(now),
            exchanges: Cell::new(0),
            blocked_since: Cell::new(None),
            held: Cell::new(0),
            moved: Cell::new(now),
            http2: Cell::new(false),
            closed: Cell::new(false),
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(self.clock.get());
    }

    pub(super) fn speaks_http2(&self) {
        self.http2.set(true);
    }

    /// A stream gave a piece of its body: until it is asked for the next, the client's window holds it.
    pub(super) fn hold(&self) {
        self.held.update(|held| held + 1);
        self.moved.set(self.clock.get());
    }

    pub(super) fn let_go(&self) {
        self.held.update(|held| held - 1);
        self.moved.set(self.clock.get());
    }

    /// Since when the client has taken nothing of what there is for it.
    fn stuck_since(&self) -> Option<Moment> {
        // One stream that its reader has paused is no harm while others move.
        let all_held = self.held.get() > 0 && self.held == self.exchanges;
        self.blocked_since.get().or_else(|| all_held.then(|| self.moved.get()))
    }

    /// Whether nothing is under way, nor waiting to be written.
    pub(super) fn is_idle(&self) -> bool {
        self.phase.get() == Phase::Idle && self.stuck_since().is_none()
    }

    /// Bytes came in: where none were expected, they begin a request. On HTTP/2 they may be anything (pings, window
    /// updates), and a connection without exchanges is idle whatever it says.
    pub(super) fn received(&self) {
        match self.phase.get() {
            Phase::Idle if !self.http2.get() => self.enter(Phase::Head),
            // It does speak HTTP/2.
            Phase::Opening => self.enter(Phase::Idle),
            _ => {}
        }
    }

    pub(super) fn wrote(&self, went_on: bool) {
        if went_on {
            self.blocked_since.set(None);
        } else if self.blocked_since.get().is_none() {
            self.blocked_since.set(Some(self.clock.get()));
        }
    }

    pub(super) fn begin_exchange(&self) {
        self.exchanges.update(|exchanges| exchanges + 1);
        self.enter(Phase::Busy);
    }

    pub(super) fn end_exchange(&self) {
        self.exchanges.update(|exchanges| exchanges - 1);
        if self.exchanges.get() == 0 && self.phase.get() == Phase::Busy {
            self.enter(Phase::Idle);
        }
    }

    /// The connection now carries another protocol: neither idle nor header timeouts are the listener's business.
    pub fn becomes_tunnel(&self) {
        self.enter(Phase::Tunnel);
    }

    pub(super) fn close(&self) {
        self.closed.set(true);
    }
}

/// What the sweep wants of a connection's task; it never takes back what weighs more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Want {
    #[default]
    Nothing,
    /// Do without what only exchanges need.
    Rest,
    /// Finish what is under way, then close.
    Finish,
    /// Close now.
    Abort,
}

/// How the sweep reaches a connection's task.
#[derive(Default)]
pub(super) struct Control {
    want: Cell<Want>,
    waker: RefCell<Option<Waker>>,
}

impl Control {
    /// What is wanted; the task is woken when that changes.
    pub(super) fn want(&self, cx: &Context<'_>) -> Want {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        self.want.get()
    }

    /// The connection is at work again.
    pub(super) fn has_rested(&self) {
        if self.want.get() == Want::Rest {
            self.want.set(Want::Nothing);
        }
    }

    fn set(&self, want: Want) {
        if self.want.get() < want {
            self.want.set(want);
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }
}

/// The time limits of a listener's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    pub header: Duration,
    pub idle: Duration,
}

struct Entry {
    activity: Rc<Activity>,
    control: Rc<Control>,
    times: Times,
}

/// One connection's place in the list.
pub(super) struct Registration {
    pub(super) activity: Rc<Activity>,
    pub(super) control: Rc<Control>,
}

/// The open connections of one worker.
pub struct Connections {
    clock: Rc<Cell<Moment>>,
    most: Cell<usize>,
    draining: Cell<bool>,
    list: RefCell<Vec<Entry>>,
    metrics: Arc<Metrics>,
    worker: WorkerId,
}

impl Connections {
    /// A list for one worker, which may hold `most` connections.
    pub fn new(most: usize, metrics: Arc<Metrics>, worker: WorkerId) -> Rc<Self> {
        Rc::new(Connections {
            clock: Rc::default(),
            most: Cell::new(most),
            draining: Cell::new(false),
            list: RefCell::default(),
            metrics,
            worker,
        })
    }

    /// Changes how many connections there may be.
    pub fn set_most(&self, most: usize) {
        self.most.set(most);
    }

    /// From now on connections close as soon as that loses nothing.
    pub fn drain(&self) {
        self.draining.set(true);
    }

    /// Whether [`Self::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Takes in a new connection. At the limit the oldest idle ones are closed; with none idle, the new one is refused.
    pub(super) fn register(&self, times: Times) -> Option<Registration> {
        if self.list.borrow().len() >= self.most.get() {
            self.forget_closed();
            if self.list.borrow().len() >= self.most.get() {
                self.metrics.limit_reached(self.worker, Limit::MaxConnections);
                self.abort_lingering();
                let over = self.list.borrow().len() - self.most.get();
                if over > self.most.get() / 100 || !self.close_oldest_idle() {
                    return None;
                }
            }
        }
        let registration =
            Registration { activity: Rc::new(Activity::new(Rc::clone(&self.clock))), control: Rc::default() };
        self.list.borrow_mut().push(Entry {
            activity: Rc::clone(&registration.activity),
            control: Rc::clone(&registration.control),
            times,
        });
        Some(registration)
    }

    fn forget_closed(&self) {
        self.list.borrow_mut().retain(|entry| !entry.activity.closed.get());
    }

    /// Who was asked to go and has not gone is not waited for where there is no place left.
    fn abort_lingering(&self) {
        let list = self.list.borrow();
        let lingers =
            |entry: &&Entry| entry.activity.phase.get() == Phase::Idle && entry.control.want.get() == Want::Finish;
        list.iter().filter(lingers).for_each(|entry| entry.control.set(Want::Abort));
    }

    /// Closes the oldest idle hundredth, so that a flood does not pay for a search per connection. One that still has
    /// something to write is not idle.
    fn close_oldest_idle(&self) -> bool {
        let list = self.list.borrow();
        let can_go = |entry: &Entry| entry.activity.is_idle() && entry.control.want.get() < Want::Finish;
        let idle = list.iter().enumerate().filter(|(_, entry)| can_go(entry));
        let mut idle: Vec<(Moment, usize)> = idle.map(|(at, entry)| (entry.activity.since.get(), at)).collect();
        if idle.is_empty() {
            return false;
        }
        let go = (idle.len() / 100).max(1);
        idle.select_nth_unstable(go - 1);
        idle[..go].iter().for_each(|(_, at)| list[*at].control.set(Want::Finish));
        true
    }

    /// Moves time on, and tells connections past their time to go.
    pub fn sweep(&self, now: Moment) {
        self.clock.set(now);
        self.forget_closed();
        for entry in self.list.borrow().iter() {
            if let Some((want, limit)) = self.judge(entry, now) {
                entry.control.set(want);
                if let Some(limit) = limit {
                    self.metrics.limit_reached(self.worker, limit);
                }
            }
        }
    }

    fn judge(&self, entry: &Entry, now: Moment) -> Option<(Want, Option<Limit>)> {
        let activity = &entry.activity;
        if entry.control.want.get() == Want::Abort {
            return None;
        }
        let stuck = activity.stuck_since().is_some_and(|since| now.since(since) > entry.times.idle);
        if stuck && activity.phase.get() != Phase::Tunnel {
            return Some((Want::Abort, Some(Limit::WriteTimeout)));
        }
        let spent = now.since(activity.since.get());
        match activity.phase.get() {
            Phase::Opening if spent > entry.times.header => Some((Want::Abort, Some(Limit::HeaderTimeout))),
            Phase::Head if spent > entry.times.header => Some((Want::Abort, Some(Limit::HeaderTimeout))),
            // Who was told to finish and does not has had its time.
            Phase::Idle if spent > entry.times.idle * 2 && activity.is_idle() => Some((Want::Abort, None)),
            Phase::Idle | Phase::Head if spent > entry.times.idle => {
                // Finishing an idle connection closes it; on HTTP/2 the client is told first.
                let first = entry.control.want.get() < Want::Finish;
                Some((Want::Finish, first.then_some(Limit::IdleTimeout)))
            }
            _ if !self.draining.get() => {
                // hyper gives no HTTP/2 connection back.
                let may_rest = !activity.http2.get() && activity.is_idle() && spent > REST_AFTER;
                may_rest.then_some((Want::Rest, None))
            }
            // Over HTTP/1.1 the next response says that it is the last; one whose head has gone already is left to end.
            Phase::Busy if activity.http2.get() => Some((Want::Finish, None)),
            Phase::Idle if activity.http2.get() || spent > DRAIN_PATIENCE => Some((Want::Finish, None)),
            _ => None,
        }
    }

    /// Closes whatever is left, at the end of the grace time; says how many that were.
    pub fn abort_all(&self) -> usize {
        self.forget_closed();
        let list = self.list.borrow();
        list.iter().for_each(|entry| entry.control.set(Want::Abort));
        list.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { header: Duration::from_secs(10), idle: Duration::from_secs(75) };

    fn second(number: u64) -> Moment {
        Moment::from_nanos(number * 1_000_000_000)
    }

    fn connections(most: usize) -> Rc<Connections> {
        let connections = Connections::new(most, Metrics::new(1), WorkerId(0));
        connections.sweep(second(100));
        connections
    }

    #[test]
    fn a_slow_head_and_an_idle_connection_go_at_their_times() {
        let connections = connections(10);
        let opening = connections.register(TIMES).unwrap();
        let idle = connections.register(TIMES).unwrap();
        idle.activity.enter(Phase::Idle);
        let head = connections.register(TIMES).unwrap();
        head.activity.enter(Phase::Idle);
        head.activity.received();
        let busy = connections.register(TIMES).unwrap();
        busy.activity.begin_exchange();
        let wants = || [&opening, &idle, &head, &busy].map(|connection| connection.control.want.get());
        connections.sweep(second(110));
        assert_eq!(wants(), [Want::Nothing, Want::Rest, Want::Nothing, Want::Nothing]);
        connections.sweep(second(111));
        assert_eq!(wants(), [Want::Abort, Want::Rest, Want::Abort, Want::Nothing]);
        connections.sweep(second(176));
        assert_eq!(wants(), [Want::Abort, Want::Finish, Want::Abort, Want::Nothing]);
    }

    #[test]
    fn who_is_idle_for_a_second_rests_unless_it_speaks_http2_or_has_something_to_write() {
        let connections = connections(10);
        let idle = || {
            let registration = connections.register(TIMES).unwrap();
            registration.activity.enter(Phase::Idle);
            registration
        };
        let (rests, http2, writes) = (idle(), idle(), idle());
        http2.activity.speaks_http2();
        writes.activity.wrote(false);
        let wants = || [&rests, &http2, &writes].map(|connection| connection.control.want.get());
        connections.sweep(second(101));
        assert_eq!(wants(), [Want::Nothing; 3]);
        connections.sweep(second(102));
        assert_eq!(wants(), [Want::Rest, Want::Nothing, Want::Nothing]);
        rests.control.has_rested();
        assert_eq!(wants(), [Want::Nothing; 3]);
        connections.sweep(second(176));
        rests.control.has_rested();
        assert_eq!(wants(), [Want::Finish, Want::Finish, Want::Abort]);
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off() {
        let connections = connections(10);
        let slow = connections.register(TIMES).unwrap();
        slow.activity.begin_exchange();
        slow.activity.wrote(false);
        connections.sweep(second(150));
        slow.activity.wrote(true);
        slow.activity.wrote(false);
        connections.sweep(second(200));
        assert_eq!(slow.control.want.get(), Want::Nothing, "it went on at 150");
        connections.sweep(second(226));
        assert_eq!(slow.control.want.get(), Want::Abort);
    }

    #[test]
    fn at_the_limit_the_oldest_idle_one_goes_and_a_busy_one_never() {
        let connections = connections(2);
        let old = connections.register(TIMES).unwrap();
        old.activity.enter(Phase::Idle);
        connections.sweep(second(101));
        let young = connections.register(TIMES).unwrap();
        young.activity.enter(Phase::Idle);
        let third = connections.register(TIMES).unwrap();
        third.activity.begin_exchange();
        assert_eq!((old.control.want.get(), young.control.want.get()), (Want::Finish, Want::Nothing));
        old.activity.close();
        young.activity.begin_exchange();
        assert!(connections.register(TIMES).is_none());
        third.activity.close();
        assert!(connections.register(TIMES).is_some());
    }

    #[test]
    fn a_drain_waits_for_the_request_that_may_be_on_its_way() {
        let connections = connections(10);
        let fresh = connections.register(TIMES).unwrap();
        fresh.activity.enter(Phase::Idle);
        connections.drain();
        connections.sweep(second(101));
        assert_eq!(fresh.control.want.get(), Want::Nothing);
        fresh.activity.begin_exchange();
        connections.sweep(second(103));
        assert_eq!(fresh.control.want.get(), Want::Nothing, "its response says that it is the last");
        fresh.activity.end_exchange();
        connections.sweep(second(105));
        assert_eq!(fresh.control.want.get(), Want::Finish);
    }
}
