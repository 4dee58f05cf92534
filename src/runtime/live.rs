//! Live state as gauges, read when somebody scrapes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::reload::Runtime;
use super::twins::TwinSeat;
use crate::clock::Clock;
use crate::metrics::{LiveGauges, LiveState};
use crate::names::{LongLivedKind, ServerCondition};
use crate::pool::{ServerState, Wish};
use crate::twin::{Doubt, Quantiles};

impl LiveState for Runtime {
    fn describe(&self, gauges: &mut LiveGauges) {
        let snapshot = self.snapshot();
        let now = Clock::now();
        for entry in &snapshot.pools {
            let load = entry.load.lock().clone();
            for (policy, imbalance) in [("actual", load.actual), ("shadow", load.shadow)] {
                for (of, measures) in imbalance.named() {
                    if let Some(measures) = measures {
                        gauges.imbalance(&entry.pool.name, policy, of, measures.named());
                    }
                }
            }
            if let Some(seat) = &entry.twin {
                describe_twin(&entry.pool.name, seat, gauges);
            }
            for (at, server) in entry.pool.servers.iter().enumerate() {
                let name = &server.settings.name;
                if let Some(took) = load.servers.get(at).and_then(|load| load.scale_out) {
                    gauges.scale_out(&entry.pool.name, name, took);
                }
                gauges.in_flight(&entry.pool.name, name, server.state.in_flight());
                if entry.pool.affinity.is_some() || entry.shared.is_some() || entry.counted_cookie.is_some() {
                    gauges.sessions(&entry.pool.name, name, server.state.sessions.count(now, entry.session_window));
                }
                if server.state.wishes.effective() == Wish::Drain {
                    let remaining = server.countdown(now, entry.session_window).remaining;
                    gauges.drain_remaining(&entry.pool.name, name, remaining);
                }
                for kind in LongLivedKind::ALL {
                    let count = server.state.long_lived[kind.index()].load(Ordering::Relaxed);
                    gauges.long_lived(&entry.pool.name, name, *kind, count);
                }
                gauges.queue_length(&entry.pool.name, name, server.state.waiting());
                gauges.upstream_connections(&entry.pool.name, name, &server.state.metrics);
                gauges.server_state(&entry.pool.name, name, condition(&server.state, now));
            }
        }
        for store in &snapshot.stores {
            gauges.store(&store.settings.name, store.answers(), store.holds());
        }
        for book in snapshot.revocation_books() {
            if let (Some(store), Some(age)) = (book.place().store, book.age(now)) {
                gauges.revocations_age(&store.settings.name, age);
            }
        }
        for endpoint in &snapshot.endpoints {
            // Two of one name (of two key types): the one that ends first is worth knowing.
            let mut ends: BTreeMap<&str, i64> = BTreeMap::new();
            for certificate in &endpoint.certificates {
                let earliest = ends.entry(certificate.label()).or_insert(certificate.not_after);
                *earliest = certificate.not_after.min(*earliest);
            }
            for (label, end) in ends {
                gauges.certificate_expiry(&endpoint.settings.name, label, end as f64);
            }
        }
    }
}

/// What the pool's twin said last.
fn describe_twin(pool: &str, seat: &TwinSeat, gauges: &mut LiveGauges) {
    gauges.twin_dropped(pool, seat.dropped());
    let Some(report) = seat.report() else { return };
    let named = |of: Quantiles| [("0.5", of.p50), ("0.95", of.p95), ("0.99", of.p99)];
    gauges.twin_measured(pool, named(report.measured));
    for of in &report.policies {
        let policy = of.policy.as_str();
        gauges.twin_latency(pool, policy, named(of.latency));
        gauges.twin_imbalance(pool, policy, [("max_over_mean", of.max_over_mean), ("jain", of.jain)]);
        if let Some(share) = of.kept {
            gauges.twin_kept(pool, policy, share);
        }
    }
    if let Some(fit) = report.fit {
        gauges.twin_fit(pool, fit);
    }
    gauges.twin_sampled(pool, report.sampled);
    for doubt in Doubt::ALL {
        gauges.twin_doubt(pool, doubt.as_str(), report.doubts.contains(doubt));
    }
    if report.heavy.sessions > 0 {
        gauges.twin_top_sessions_share(pool, report.heavy.top_share);
    }
}

/// The state that a server is in, the most telling one where several hold.
pub fn condition(state: &Arc<ServerState>, now: crate::clock::Moment) -> ServerCondition {
    if state.wishes.effective() == Wish::Maint {
        ServerCondition::Maint
    } else if state.vitals.is_down() {
        ServerCondition::Down
    } else if state.outlier.is_ejected(now) {
        ServerCondition::Ejected
    } else if state.wishes.effective() == Wish::Drain {
        ServerCondition::Drain
    } else {
        ServerCondition::Up
    }
}
