//! The shadow: where the balance policy alone would have sent the same requests, by the loads that it would have made.
//!
//! It is a second count of exchanges in flight beside the true one. Comparing the two says what stickiness costs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::choose::TierView;
use super::{Ask, Pool, ServerState};
use crate::balance::{Balance, Candidates, Chance};
use crate::names::Ineligible;

/// The place of one exchange in the shadow, for as long as the exchange lasts.
pub struct Shadow(Arc<ServerState>);

impl Drop for Shadow {
    fn drop(&mut self) {
        self.0.shadow.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// Where the policy alone would have sent an exchange, and its place there. Without affinity that is where it goes
    /// anyway; and a hash of all servers is too much for a statistic.
    pub(super) fn shadow(&self, ask: &Ask<'_>, random: &mut fastrand::Rng) -> Option<(usize, Shadow)> {
        if self.affinity.is_none() || self.balance == Balance::Hash {
            return None;
        }
        let mut chance = Chance { random, turn: &self.shadow_turns[ask.worker.0], key: ask.key };
        let chosen = self.tiers.load().iter().find_map(|tier| {
            let view = ShadowView(TierView { pool: self, tier, out: ask.tried, now: ask.now, ramp: None });
            tier.policy.pick(&view, &mut chance).map(|at| tier.members[at])
        })?;
        let state = &self.servers[chosen].state;
        state.shadow.fetch_add(1, Ordering::Relaxed);
        state.metrics.cells.of(ask.worker).shadowed.add(1);
        Some((chosen, Shadow(Arc::clone(state))))
    }
}

/// A tier under its virtual load.
struct ShadowView<'a>(TierView<'a>);

impl Candidates for ShadowView<'_> {
    fn eligible(&self, at: usize) -> bool {
        let server = self.0.server(at);
        let cap = server.state.cap();
        let has_room = cap == 0 || server.state.shadow_in_flight() < cap;
        has_room && self.0.is_open(at) && matches!(server.unfit(self.0.now), None | Some(Ineligible::Full))
    }

    fn in_flight(&self, at: usize) -> u32 {
        self.0.server(at).state.shadow_in_flight()
    }

    fn latency(&self, at: usize) -> f64 {
        self.0.latency(at)
    }

    fn identity(&self, at: usize) -> u64 {
        self.0.identity(at)
    }
}
