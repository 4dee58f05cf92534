//! Live state as gauges, read when somebody scrapes.

use std::sync::Arc;

use super::reload::Runtime;
use crate::clock::Clock;
use crate::metrics::{LiveGauges, LiveState};
use crate::names::ServerCondition;
use crate::pool::ServerState;

impl LiveState for Runtime {
    fn describe(&self, gauges: &mut LiveGauges) {
        let snapshot = self.snapshot();
        let now = Clock::now();
        for entry in &snapshot.pools {
            for server in &entry.pool.servers {
                let name = &server.settings.name;
                gauges.in_flight(&entry.pool.name, name, server.state.in_flight());
                gauges.server_state(&entry.pool.name, name, condition(&server.state, now));
            }
        }
        for endpoint in &snapshot.endpoints {
            for certificate in &endpoint.certificates {
                gauges.certificate_expiry(&endpoint.settings.name, certificate.label(), certificate.not_after as f64);
            }
        }
    }
}

/// The state that a server is in, the most telling one where several hold.
fn condition(state: &Arc<ServerState>, now: crate::clock::Moment) -> ServerCondition {
    if state.vitals.is_down() {
        ServerCondition::Down
    } else if state.outlier.is_ejected(now) {
        ServerCondition::Ejected
    } else {
        ServerCondition::Up
    }
}
