//! Whether a server is well: what probes say (rise and fall), and what exchanges show (ejection).
//!
//! Both are small machines that are given their observations and the time. Being *down* comes from probes and ends
//! with probes; being *ejected* comes from consecutive failures of real exchanges and ends by itself after a time that
//! doubles with each ejection. Neither belongs to the connection that saw it: the state is per pool and server name.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Moment;

/// How many probes turn the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RiseFall {
    pub rise: u32,
    pub fall: u32,
}

/// Up or down, as probes see it. Up until the first `fall` failures.
#[derive(Default)]
pub struct Vitals {
    down: AtomicBool,
    /// Probes in a row that contradict the state.
    contradictions: AtomicU32,
}

impl Vitals {
    /// Takes in one probe; `Some(up)` when it turned the state. One prober per server calls this.
    pub fn probed(&self, well: bool, limits: RiseFall) -> Option<bool> {
        let down = self.is_down();
        if well != down {
            self.contradictions.store(0, Ordering::Relaxed);
            return None;
        }
        let run = self.contradictions.fetch_add(1, Ordering::Relaxed) + 1;
        if run < if down { limits.rise } else { limits.fall } {
            return None;
        }
        self.contradictions.store(0, Ordering::Relaxed);
        self.down.store(!down, Ordering::Relaxed);
        Some(down)
    }

    /// Forgets what probes said: probing is off.
    pub fn forget(&self) {
        self.down.store(false, Ordering::Relaxed);
        self.contradictions.store(0, Ordering::Relaxed);
    }

    /// Whether probes have found the server down.
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }
}

/// When exchanges take a server out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierSettings {
    pub consecutive_failures: u32,
    /// The first ejection; each further one takes twice as long, up to [`LONGEST_EJECTION`].
    pub ejection: Duration,
    /// The largest share of a pool's servers that may be out at once, 0 to 1.
    pub max_ejected: f64,
}

/// Where doubling ends.
pub const LONGEST_EJECTION: Duration = Duration::from_secs(300);

/// Passive observation of one server.
#[derive(Default)]
pub struct Outlier {
    failures: AtomicU32,
    ejections: AtomicU32,
    ejected_until: AtomicU64,
}

impl Outlier {
    /// A good exchange. After a time as long as the last ejection without another, doubling begins anew.
    pub fn succeeded(&self, settings: &OutlierSettings, now: Moment) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        let ejections = self.ejections.load(Ordering::Relaxed);
        if ejections > 0 {
            let until = Moment::from_nanos(self.ejected_until.load(Ordering::Relaxed));
            if now > until + span(settings.ejection, ejections - 1) {
                self.ejections.store(0, Ordering::Relaxed);
            }
        }
    }

    /// A bad exchange; says for how long the server is ejected now, if this one took it out. `permitted` says whether
    /// the pool can spare it, and is asked only then.
    pub fn failed(
        &self,
        settings: &OutlierSettings,
        now: Moment,
        permitted: impl FnOnce() -> bool,
    ) -> Option<Duration> {
        let run = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if settings.consecutive_failures == 0
            || run < settings.consecutive_failures
            || self.is_ejected(now)
            || !permitted()
        {
            return None;
        }
        let ejection = span(settings.ejection, self.ejections.fetch_add(1, Ordering::Relaxed));
        self.ejected_until.store((now + ejection).as_nanos(), Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
        Some(ejection)
    }

    /// Whether the server is out at this moment.
    pub fn is_ejected(&self, now: Moment) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until != 0 && now.as_nanos() < until
    }
}

fn span(first: Duration, earlier: u32) -> Duration {
    first.saturating_mul(1 << earlier.min(16)).min(LONGEST_EJECTION.max(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RiseFall = RiseFall { rise: 2, fall: 3 };
    const SETTINGS: OutlierSettings =
        OutlierSettings { consecutive_failures: 3, ejection: Duration::from_secs(10), max_ejected: 0.5 };

    const fn second(number: u64) -> Moment {
        Moment::from_nanos(number * 1_000_000_000)
    }

    #[test]
    fn three_failures_in_a_row_fall_and_two_successes_rise() {
        let vitals = Vitals::default();
        let probes = [true, false, false, true, false, false, false, false, true, false, true, true];
        let turns: Vec<Option<bool>> = probes.iter().map(|well| vitals.probed(*well, LIMITS)).collect();
        let mut wanted = [None; 12];
        wanted[6] = Some(false);
        wanted[11] = Some(true);
        assert_eq!(turns, wanted);
    }

    #[test]
    fn ejection_doubles_and_ends_by_itself() {
        let outlier = Outlier::default();
        let mut now = second(1);
        let fail_until_out = |now: Moment| {
            (0..3).find_map(|_| outlier.failed(&SETTINGS, now, || true)).expect("three failures eject").as_secs()
        };
        assert_eq!(fail_until_out(now), 10);
        now = second(12);
        assert!(!outlier.is_ejected(now));
        assert_eq!(fail_until_out(now), 20);
        assert!(outlier.is_ejected(second(31)) && !outlier.is_ejected(second(32)));
        // Well for as long as it was out: the next ejection is short again.
        outlier.succeeded(&SETTINGS, second(53));
        assert_eq!(fail_until_out(second(54)), 10);
        for _ in 0..20 {
            outlier.ejections.fetch_add(1, Ordering::Relaxed);
        }
        assert_eq!(fail_until_out(second(99_999)), 300);
    }

    #[test]
    fn a_success_between_failures_or_a_pool_that_cannot_spare_it_keeps_a_server_in() {
        let outlier = Outlier::default();
        for _ in 0..5 {
            assert_eq!(outlier.failed(&SETTINGS, second(1), || true), None);
            assert_eq!(outlier.failed(&SETTINGS, second(1), || true), None);
            outlier.succeeded(&SETTINGS, second(1));
        }
        for _ in 0..9 {
            assert_eq!(outlier.failed(&SETTINGS, second(1), || false), None);
        }
        assert_eq!(outlier.failed(&SETTINGS, second(1), || true), Some(Duration::from_secs(10)));
    }
}
