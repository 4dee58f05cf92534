//! Time: the only place that asks the operating system for it.
//!
//! A [`Moment`] is nanoseconds since the process started, on the monotonic clock. Reading it costs about 100 ns on
//! common virtual machines, more than any counter here, so an exchange reads it three times (arrived, headed,
//! done), and once more where it has waited before a server was chosen.
//! Wall-clock time is computed from a moment and an anchor that [`Clock::anchor`] refreshes, so that a corrected
//! system clock is followed without a second clock call per exchange.
//!
//! [`Ticker`] is a coarse timer wheel of one worker: deadlines with the precision of its tick, for the timeouts that
//! nearly never fire (first byte, idle), at the price of a slab entry.

#![allow(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point on the monotonic clock: nanoseconds since the process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    /// The moment this many nanoseconds after the start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Moment(nanos)
    }

    /// Nanoseconds since the process started.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long before this moment `earlier` was; zero when it was not.
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Wall-clock time in microseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wall(pub u64);

impl Wall {
    /// Whole seconds since 1970.
    pub const fn seconds(self) -> u64 {
        self.0 / 1_000_000
    }
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
/// Microseconds from the start moment to 1970, that is: wall time minus monotonic time.
static ANCHOR: AtomicI64 = AtomicI64::new(0);

/// The process's clock.
pub struct Clock;

impl Clock {
    /// Reads the monotonic clock.
    pub fn now() -> Moment {
        let elapsed = Instant::now().saturating_duration_since(*START);
        Moment(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Ties monotonic time to wall time; called at start and every second, so that clock corrections are followed.
    pub fn anchor() {
        let now = Clock::now();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = i64::try_from(wall.as_micros()).unwrap_or(i64::MAX);
        let mono = i64::try_from(now.0 / 1_000).unwrap_or(i64::MAX);
        ANCHOR.store(wall - mono, Ordering::Relaxed);
    }

    /// The wall-clock time of a moment.
    pub fn wall(moment: Moment) -> Wall {
        let mono = i64::try_from(moment.0 / 1_000).unwrap_or(i64::MAX);
        Wall(u64::try_from(ANCHOR.load(Ordering::Relaxed).saturating_add(mono)).unwrap_or(0))
    }
}

/// Coarse deadlines of one worker thread.
///
/// Whoever owns the worker calls [`Ticker::advance`] every [`Ticker::TICK`]; deadlines fire up to one tick late.
#[derive(Default)]
pub struct Ticker {
    now: Cell<Moment>,
    waiting: RefCell<Slots>,
}

#[derive(Default)]
struct Slots {
    entries: Vec<Option<Waiting>>,
    free: Vec<usize>,
}

struct Waiting {
    at: Moment,
    waker: Waker,
}

impl Ticker {
    /// The precision of deadlines.
    pub const TICK: Duration = Duration::from_millis(50);

    /// The moment of the last tick: at most one tick old, and free to read.
    pub fn coarse_now(&self) -> Moment {
        self.now.get()
    }

    /// Moves time on and wakes whoever's deadline has passed.
    pub fn advance(&self, now: Moment) {
        self.now.set(now);
        // Wakers run later, on the worker's own queue, so the borrow ends before any task does.
        let mut slots = self.waiting.borrow_mut();
        for entry in slots.entries.iter_mut().flatten() {
            if entry.at <= now {
                entry.waker.wake_by_ref();
            }
        }
    }

    /// A deadline `span` from now.
    pub fn deadline(self: &Rc<Self>, span: Duration) -> Deadline {
        Deadline { ticker: Rc::clone(self), at: self.coarse_now() + span, slot: None }
    }
}

/// A point in time to wait for, of one [`Ticker`].
pub struct Deadline {
    ticker: Rc<Ticker>,
    at: Moment,
    slot: Option<usize>,
}

impl Deadline {
    /// Ready once the deadline has passed; else the task is woken when it does.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ticker.coarse_now() >= self.at {
            return Poll::Ready(());
        }
        let mut slots = self.ticker.waiting.borrow_mut();
        match self.slot.and_then(|slot| slots.entries[slot].as_mut()) {
            Some(entry) => {
                entry.at = self.at;
                entry.waker.clone_from(cx.waker());
            }
            None => {
                let entry = Some(Waiting { at: self.at, waker: cx.waker().clone() });
                self.slot = Some(match slots.free.pop() {
                    Some(slot) => {
                        slots.entries[slot] = entry;
                        slot
                    }
                    None => {
                        slots.entries.push(entry);
                        slots.entries.len() - 1
                    }
                });
            }
        }
        Poll::Pending
    }

    /// Starts the span anew, from the last tick.
    pub fn reset(&mut self, span: Duration) {
        self.at = self.ticker.coarse_now() + span;
        if let Some(slot) = self.slot
            && let Some(entry) = &mut self.ticker.waiting.borrow_mut().entries[slot]
        {
            entry.at = self.at;
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            let mut slots = self.ticker.waiting.borrow_mut();
            slots.entries[slot] = None;
            slots.free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_ready_after_its_span_and_frees_its_slot() {
        let ticker = Rc::new(Ticker::default());
        let mut cx = Context::from_waker(Waker::noop());
        let mut deadline = ticker.deadline(Duration::from_millis(100));
        assert!(deadline.poll(&mut cx).is_pending());
        ticker.advance(Moment::from_nanos(99_000_000));
        assert!(deadline.poll(&mut cx).is_pending());
        ticker.advance(Moment::from_nanos(100_000_000));
        assert!(deadline.poll(&mut cx).is_ready());
        drop(deadline);
        let mut second = ticker.deadline(Duration::from_millis(1));
        assert!(second.poll(&mut cx).is_pending());
        assert_eq!(ticker.waiting.borrow().entries.len(), 1, "the slot is used again");
    }

    #[test]
    fn wall_time_follows_the_anchor() {
        Clock::anchor();
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let ours = Clock::wall(Clock::now()).seconds();
        assert!(system.abs_diff(ours) <= 1, "{system} and {ours}");
    }
}
