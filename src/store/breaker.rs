//! A breaker: a store that keeps failing is left alone, but for one operation now and then that tells whether it is back.

use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Moment;

/// When a breaker opens, and how often it lets something through then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    /// So many failures
    pub failures: u32,
    /// within this time.
    pub within: Duration,
    pub probe: Duration,
}

/// The state of one store's breaker, shared between workers.
pub(super) struct Breaker {
    settings: BreakerSettings,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    /// When the first of them was.
    since: Moment,
    /// Open: when the next probe is let through.
    probe_at: Option<Moment>,
}

impl Breaker {
    pub(super) fn new(settings: BreakerSettings) -> Self {
        Breaker { settings, state: Mutex::default() }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().probe_at.is_none()
    }

    /// Whether an operation may be tried.
    pub(super) fn admits(&self, now: Moment) -> bool {
        let mut state = self.state.lock();
        match state.probe_at {
            None => true,
            Some(at) if at <= now => {
                state.probe_at = Some(now + self.settings.probe);
                true
            }
            Some(_) => false,
        }
    }

    pub(super) fn succeeded(&self) {
        *self.state.lock() = State::default();
    }

    pub(super) fn failed(&self, now: Moment) {
        let mut state = self.state.lock();
        if state.failures == 0 || now.since(state.since) > self.settings.within {
            state.failures = 0;
            state.since = now;
        }
        state.failures += 1;
        if state.failures >= self.settings.failures && state.probe_at.is_none() {
            state.probe_at = Some(now + self.settings.probe);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn breaker() -> Breaker {
        let settings =
            BreakerSettings { failures: 3, within: Duration::from_secs(1), probe: Duration::from_millis(500) };
        Breaker::new(settings)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_of_time_and_lets_a_probe_through() {
        let breaker = breaker();
        for millis in [0, 100, 200] {
            assert!(breaker.admits(at(millis)));
            breaker.failed(at(millis));
        }
        assert!(!breaker.is_closed() && !breaker.admits(at(300)));
        assert!(breaker.admits(at(700)) && !breaker.admits(at(701)), "one probe");
        breaker.failed(at(710));
        assert!(!breaker.admits(at(1_100)) && breaker.admits(at(1_200)));
        breaker.succeeded();
        assert!(breaker.is_closed() && breaker.admits(at(1_201)));
    }

    #[test]
    fn failures_far_apart_or_with_successes_between_do_not_open_it() {
        let breaker = breaker();
        for millis in [0, 900, 1_800, 2_700] {
            breaker.failed(at(millis));
        }
        assert!(breaker.is_closed());
        for millis in [3_000, 3_001, 3_002, 3_003] {
            breaker.failed(at(millis));
            breaker.succeeded();
        }
        assert!(breaker.is_closed());
    }
}
