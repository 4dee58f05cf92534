//! The policies that are compared.

use std::time::Duration;

use crate::balance::Balance;
use crate::pool::{PinKind, PinRules, Queue, WhenUnavailable};
use crate::twin::PolicyModel;

/// What a moved session costs its new server: `[pool.twin] warm_up`.
pub(super) const WARM_UP: Duration = Duration::from_millis(5);
/// What a look into the store costs: `[pool.twin] store_round_trip`.
pub(super) const STORE_ROUND_TRIP: Duration = Duration::from_millis(1);
/// The margins that soft pins are tried with.
const MARGINS: [u32; 3] = [1, 4, 16];
/// The line of a full server, as a configuration has it that does not say otherwise.
const QUEUE: Queue = Queue { length: 128, timeout: Duration::from_secs(2) };

/// All of them; the configuration's own comes first.
pub(super) fn compared(own: Option<PolicyModel>) -> Vec<PolicyModel> {
    let shared = PolicyModel { store_round_trip: STORE_ROUND_TRIP, ..free("shared: p2c and a store", Balance::P2c) };
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
    ("shared: p2c and a store", "the same, and every request of a session pays a store's round trip of 1 ms"),
    ("sticky, hard", "a session stays on its first server, chosen by p2c, and moves only when that cannot serve"),
    (
        "sticky, soft, margin N",
        "a session moves when its server has more than N requests in flight above the best; a move costs 5 ms",
    ),
    ("hash", "the session, or the client where there is none, decides on the server: rendezvous"),
];

fn free(name: &str, balance: Balance) -> PolicyModel {
    PolicyModel {
        name: name.into(),
        balance,
        is_hashed: false,
        pins: None,
        warm_up: Duration::ZERO,
        store_round_trip: Duration::ZERO,
    }
}

fn pinned(name: &str, kind: PinKind) -> PolicyModel {
    let pins = PinRules { kind, when_unavailable: WhenUnavailable::Move, queue: QUEUE };
    PolicyModel { pins: Some(pins), warm_up: WARM_UP, ..free(name, Balance::P2c) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_explained_and_the_own_one_comes_first() {
        let own = free("shop as configured", Balance::PeakEwma);
        let all = compared(Some(own));
        assert_eq!(all.len(), 9);
        assert_eq!(&*all[0].name, "shop as configured");
        for policy in &all[1..] {
            let stem = policy.name.trim_end_matches(|last: char| last.is_ascii_digit());
            assert!(MEANINGS.iter().any(|(name, _)| name.trim_end_matches('N') == stem), "{}", policy.name);
        }
    }
}
