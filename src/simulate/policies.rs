//! The policies that are compared.

use std::time::Duration;

use crate::balance::Balance;
use crate::pool::{PinKind, PinRules, Queue, WhenUnavailable};
use crate::twin::PolicyModel;

/// What policies cost besides, as `[pool.twin]` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Costs {
    /// What a moved session costs its new server.
    pub warm_up: Duration,
    pub store_round_trip: Duration,
}

impl Default for Costs {
    /// As a configuration has it that does not say otherwise.
    fn default() -> Self {
        Costs { warm_up: Duration::from_millis(5), store_round_trip: Duration::from_millis(1) }
    }
}

impl Costs {
    /// For the report.
    pub(super) fn note(self) -> String {
        let millis = |span: Duration| span.as_secs_f64() * 1e3;
        format!(
            "A look into the store takes {} ms, and a session that moves costs its new server {} ms.",
            millis(self.store_round_trip),
            millis(self.warm_up)
        )
    }
}

/// The margins that soft pins are tried with.
const MARGINS: [u32; 3] = [1, 4, 16];
/// The line of a full server, as a configuration has it that does not say otherwise.
const QUEUE: Queue = Queue { length: 128, timeout: Duration::from_secs(2) };

/// All of them; the configuration's own comes first.
pub(super) fn compared(own: Option<PolicyModel>, costs: Costs) -> Vec<PolicyModel> {
    let Costs { store_round_trip, warm_up } = costs;
    let shared = PolicyModel { store_round_trip, ..free("shared: p2c and a store", Balance::P2c) };
    let pinned = |name: &str, kind| PolicyModel { warm_up, ..pinned(name, kind) };
    let soft = MARGINS.map(|margin| pinned(&format!("sticky, soft, margin {margin}"), PinKind::Soft { margin }));
    let fixed = [
        free("round-robin, no sessions", Balance::RoundRobin),
        free("p2c, no sessions", Balance::P2c),
        shared,
        pinned("sticky, hard", PinKind::Hard),
    ];
    own.into_iter().chain(fixed).chain(soft).chain([free("hash", Balance::Hash)]).collect()
}

/// What each of the names means, for the report.
pub(super) const MEANINGS: [(&str, &str); 6] = [
    ("round-robin, no sessions", "every request goes to the next server in turn"),
    ("p2c, no sessions", "every request goes to the less loaded of two random servers; the same as stateless tokens"),
    ("shared: p2c and a store", "the same, and every request of a session waits for a look into the store"),
    ("sticky, hard", "a session stays on its first server, chosen by p2c, and moves only when that cannot serve"),
    ("sticky, soft, margin N", "a session moves when its server has more than N requests in flight above the best"),
    ("hash", "the session, or the client where there is none, decides on the server: rendezvous"),
];

fn free(name: &str, balance: Balance) -> PolicyModel {
    PolicyModel {
        name: name.into(),
        balance,
        is_hashed: false,
        pins: None,
        is_in_force: false,
        warm_up: Duration::ZERO,
        store_round_trip: Duration::ZERO,
    }
}

fn pinned(name: &str, kind: PinKind) -> PolicyModel {
    let pins = PinRules { kind, when_unavailable: WhenUnavailable::Move, queue: QUEUE };
    PolicyModel { pins: Some(pins), ..free(name, Balance::P2c) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_explained_and_the_own_one_comes_first() {
        let own = free("shop as configured", Balance::PeakEwma);
        let all = compared(Some(own), Costs::default());
        assert_eq!(all.len(), 9);
        assert_eq!(&*all[0].name, "shop as configured");
        for policy in &all[1..] {
            let stem = policy.name.trim_end_matches(|last: char| last.is_ascii_digit());
            assert!(MEANINGS.iter().any(|(name, _)| name.trim_end_matches('N') == stem), "{}", policy.name);
        }
    }
}
