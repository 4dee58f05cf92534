//! What follows when a server joins those that serve: it is admitted new sessions step by step, and where pins are soft,
//! sessions of the others come over to it.
//!
//! A server joins when it becomes fit after it was not: new in the file, up again, no longer ejected, out of a drain.
//! Servers that were there when the process began have not joined.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use foldhash::HashMap;
use parking_lot::Mutex;

use super::{Ask, Load, PinKind, Pool, Server, Tried};
use crate::affinity::Preference;
use crate::balance::mix;
use crate::clock::Moment;
use crate::names::Ineligible;
use crate::rate::SharedRate;

/// The share of new sessions that a slow start begins with.
const FIRST_SHARE: f64 = 0.1;
/// How long an even load has to show before a rebalancing is over.
const JUDGED_OVER: Duration = Duration::from_secs(5);
/// How much more uneven than the balance policy's own a load may be to count as even.
const EVEN_ENOUGH: f64 = 1.05;
/// A newcomer has arrived when it has this share of its fair share of requests.
pub(super) const ARRIVED: f64 = 0.9;

const NOT_FIT: u64 = 0;
const ALWAYS: u64 = u64::MAX;

/// Since when a server can take newcomers.
pub(super) struct Fitness(AtomicU64);

impl Fitness {
    /// Of a server that was there from the beginning.
    pub(super) const fn of_veteran() -> Self {
        Fitness(AtomicU64::new(ALWAYS))
    }

    /// Of a server that is new to a pool that serves already.
    pub(super) const fn of_newcomer() -> Self {
        Fitness(AtomicU64::new(NOT_FIT))
    }

    /// It is new again.
    pub(super) fn forget(&self) {
        self.0.store(NOT_FIT, Ordering::Relaxed);
    }

    /// Takes in whether it is fit now; says whether it has joined with this.
    fn look(&self, fit: bool, now: Moment) -> bool {
        let joins = fit && self.0.load(Ordering::Relaxed) == NOT_FIT;
        if joins {
            self.0.store(now.as_nanos().max(1), Ordering::Relaxed);
        } else if !fit {
            self.0.store(NOT_FIT, Ordering::Relaxed);
        }
        joins
    }

    /// When it joined, if it has and is fit still.
    pub(super) fn joined(&self) -> Option<Moment> {
        match self.0.load(Ordering::Relaxed) {
            NOT_FIT | ALWAYS => None,
            nanos => Some(Moment::from_nanos(nanos)),
        }
    }

    /// The share of its new sessions that it gets `window` into its slow start; one that nobody has looked at yet is at
    /// the beginning.
    fn share(&self, window: Duration, now: Moment) -> f64 {
        match self.0.load(Ordering::Relaxed) {
            ALWAYS => 1.0,
            NOT_FIT => FIRST_SHARE,
            nanos => {
                let elapsed = now.since(Moment::from_nanos(nanos)).as_secs_f64();
                (elapsed / window.as_secs_f64()).clamp(FIRST_SHARE, 1.0)
            }
        }
    }
}

/// One draw against the slow starts of all servers.
#[derive(Clone, Copy)]
pub(super) struct Ramp {
    pub(super) window: Duration,
    /// 0 to 1.
    pub(super) draw: f64,
}

impl Ramp {
    /// Whether a newcomer may go to this server, for all that its slow start says.
    pub(super) fn admits(&self, server: &Server, now: Moment) -> bool {
        server.state.fitness.share(self.window, now) > self.draw
    }
}

/// Sessions coming over to servers that have joined. It outlives reloads.
#[derive(Default)]
pub struct Rebalancing {
    /// When the last server joined; 0 while nothing is to be done.
    since: AtomicU64,
    /// Some newcomer is short of requests.
    receiving: AtomicBool,
    moves: SharedRate,
    in_use: Arc<InUse>,
}

impl Rebalancing {
    /// Since when sessions are coming over, while they are.
    pub fn since(&self) -> Option<Moment> {
        match self.since.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Moment::from_nanos(nanos)),
        }
    }
}

/// What a server is to the rebalancing under way.
#[derive(Default)]
pub(super) struct Part {
    /// It has joined, and sessions come over to it while it is short of requests.
    newcomer: AtomicBool,
    /// It has less than its fair share of requests.
    short: AtomicBool,
}

impl Part {
    fn set(&self, newcomer: bool, short: bool) {
        self.newcomer.store(newcomer, Ordering::Relaxed);
        self.short.store(short, Ordering::Relaxed);
    }

    fn receives(&self) -> bool {
        self.newcomer.load(Ordering::Relaxed) && self.short.load(Ordering::Relaxed)
    }
}

/// The sessions that have exchanges in flight in this proxy.
#[derive(Default)]
struct InUse([Mutex<HashMap<u64, u32>>; 16]);

impl InUse {
    fn shard(&self, session: u64) -> &Mutex<HashMap<u64, u32>> {
        &self.0[(mix(session) >> 60) as usize % self.0.len()]
    }
}

/// One exchange of a session.
pub struct InUseGuard {
    in_use: Arc<InUse>,
    session: u64,
    /// No other exchange of the session was in flight when this one came.
    pub alone: bool,
}

impl Drop for InUseGuard {
    fn drop(&mut self) {
        let mut sessions = self.in_use.shard(self.session).lock();
        if let Some(count) = sessions.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                sessions.remove(&self.session);
            }
        }
    }
}

impl Pool {
    /// Looks for servers that have joined. The control thread calls this often.
    pub fn look_for_joins(&self, now: Moment) {
        for server in &self.servers {
            let fit = matches!(server.unfit(now), None | Some(Ineligible::Full));
            if server.state.fitness.look(fit, now) && self.rebalance.is_some() && !server.settings.backup {
                server.state.part.set(true, true);
                self.rebalancing.receiving.store(true, Ordering::Relaxed);
                self.rebalancing.since.store(now.as_nanos().max(1), Ordering::Relaxed);
            }
        }
    }

    /// Looks at how a rebalancing goes: who is short of requests still, and whether it is over. It is when the newcomers
    /// have their share and the load is as even as the balance policy's own would be, or when every session that counts
    /// has had its chance. `uneven` is max over mean of requests since it began: as it is, and the policy's own.
    pub fn judge_rebalancing(&self, load: &Load, uneven: Option<(f64, f64)>, now: Moment, session_window: Duration) {
        let Some(since) = self.rebalancing.since() else { return };
        let mut arrived = true;
        for (server, load) in self.servers.iter().zip(&load.servers) {
            let Some(share) = load.share else { continue };
            server.state.part.short.store(share < 1.0, Ordering::Relaxed);
            arrived &= share >= ARRIVED || !server.state.part.newcomer.load(Ordering::Relaxed);
        }
        let receiving = self.servers.iter().any(|server| server.state.part.receives());
        self.rebalancing.receiving.store(receiving, Ordering::Relaxed);
        let long_enough = now.since(since) >= JUDGED_OVER;
        let even = uneven.is_some_and(|(actual, own)| actual <= own * EVEN_ENOUGH);
        if (long_enough && even && arrived) || now.since(since) > session_window {
            self.rebalancing.since.store(0, Ordering::Relaxed);
            self.rebalancing.receiving.store(false, Ordering::Relaxed);
            self.servers.iter().for_each(|server| server.state.part.set(false, false));
        }
    }

    /// Sessions under way, for the pool that replaces this one.
    pub fn rebalancing(&self) -> Arc<Rebalancing> {
        Arc::clone(&self.rebalancing)
    }

    /// Notes that a session has one more exchange in flight, where that matters.
    pub fn use_session(&self, preference: Preference) -> Option<InUseGuard> {
        let Preference::Pinned { session, .. } = preference else { return None };
        self.rebalance?;
        let in_use = Arc::clone(&self.rebalancing.in_use);
        let mut sessions = in_use.shard(session).lock();
        let count = sessions.entry(session).or_insert(0);
        *count += 1;
        let alone = *count == 1;
        drop(sessions);
        Some(InUseGuard { in_use, session, alone })
    }

    /// Where an idle session comes over to, if it is one of those that do: its rendezvous over the eligible servers is one
    /// that has joined. So each old server gives the share that is due, chosen evenly, and every proxy chooses alike. Who is
    /// short of requests gives nothing.
    pub(super) fn comes_over(&self, server: usize, session: u64, ask: &Ask<'_>, out: &Tried) -> Option<usize> {
        let rate = self.rebalance.filter(|_| self.rebalancing.receiving.load(Ordering::Relaxed))?;
        let soft = matches!(self.rules.kind, PinKind::Soft { .. });
        let gives = !self.servers[server].state.part.short.load(Ordering::Relaxed);
        // The rendezvous looks at every server: whatever may say no is asked before.
        if !soft || !ask.alone || !gives || !self.rebalancing.moves.has_one(rate, ask.now) {
            return None;
        }
        self.successor(session, out, ask.now, |_| true).filter(|to| self.servers[*to].state.part.receives())
    }

    /// Takes one move of a session from what is allowed in a second.
    pub(super) fn may_move_one(&self, now: Moment) -> bool {
        self.rebalance.is_some_and(|rate| self.rebalancing.moves.take(rate, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn second(number: u64) -> Moment {
        Moment::from_nanos(number * 1_000_000_000)
    }

    #[test]
    fn only_who_was_not_fit_before_joins() {
        let fitness = Fitness::of_veteran();
        assert!(!fitness.look(true, second(1)), "it was there from the beginning");
        assert!(!fitness.look(false, second(2)));
        assert!(fitness.look(true, second(3)) && !fitness.look(true, second(4)));
        assert_eq!(fitness.joined(), Some(second(3)));
        assert!(Fitness::of_newcomer().look(true, second(1)));
    }

    #[test]
    fn a_slow_start_ramps_over_its_window() {
        let fitness = Fitness::of_newcomer();
        let share = |at| fitness.share(Duration::from_secs(10), second(at));
        assert_eq!(share(99), FIRST_SHARE, "nobody has looked yet");
        fitness.look(true, second(100));
        assert_eq!([share(100), share(105), share(110), share(999)], [FIRST_SHARE, 0.5, 1.0, 1.0]);
    }
}
