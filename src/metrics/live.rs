//! Gauges that are read off live state, when somebody scrapes.

use std::time::Duration;

use super::ServerMetrics;
use super::family::Family;
use crate::names::{LongLivedKind, ServerCondition};

/// Gauges that are read off live state at a scrape.
pub trait LiveState: Send + Sync {
    /// Adds the present values.
    fn describe(&self, gauges: &mut LiveGauges);
}

/// Where [`LiveState`] puts its values.
pub struct LiveGauges {
    in_flight: Family,
    queue_length: Family,
    sessions: Family,
    imbalance: Family,
    remaining: Family,
    long_lived: Family,
    scale_out: Family,
    connections: Family,
    server_state: Family,
    certificate_expiry: Family,
    store_up: Family,
    store_records: Family,
    store_bytes: Family,
    store_evicted: Family,
    revocations_age: Family,
    twin_latency: Family,
    twin_measured: Family,
    twin_imbalance: Family,
    twin_kept: Family,
    twin_fit: Family,
    twin_sampled: Family,
    twin_doubt: Family,
    twin_top_sessions_share: Family,
    twin_dropped: Family,
}

impl LiveGauges {
    pub(super) fn new() -> Self {
        LiveGauges {
            in_flight: Family::gauge("steadfast_in_flight", "Exchanges a server is working on now."),
            queue_length: Family::gauge("steadfast_queue_length", "Exchanges in the waiting line of a server."),
            sessions: Family::gauge(
                "steadfast_sessions",
                "Distinct sessions that came back within the drain-idle window.",
            ),
            imbalance: Family::gauge("steadfast_imbalance_ratio", "How uneven a pool is, over the last 10 s."),
            scale_out: Family::gauge(
                "steadfast_scale_out_seconds",
                "From when a server joined until its rate of requests was 90 % of its fair share.",
            ),
            long_lived: Family::gauge(
                "steadfast_long_lived",
                "Exchanges in flight that may last for hours: tunnels and event streams.",
            ),
            store_up: Family::gauge("steadfast_store_up", "1 where a session store answers, as far as is known."),
            store_records: Family::gauge("steadfast_store_records", "Records in an embedded session store."),
            store_bytes: Family::gauge("steadfast_store_bytes", "Memory that the records of an embedded store take."),
            store_evicted: Family::counter(
                "steadfast_store_evicted_total",
                "Records of an embedded store that had to make room.",
            ),
            revocations_age: Family::gauge(
                "steadfast_revocations_age_seconds",
                "For how long revocations of tokens were not read from their store.",
            ),
            twin_latency: Family::gauge(
                "steadfast_twin_latency_seconds",
                "What the twin says the same requests would have taken under a policy.",
            ),
            twin_measured: Family::gauge(
                "steadfast_twin_measured_latency_seconds",
                "What the requests that the twin played really took.",
            ),
            twin_imbalance: Family::gauge(
                "steadfast_twin_imbalance_ratio",
                "How uneven requests in flight would have been under a policy.",
            ),
            twin_kept: Family::gauge(
                "steadfast_twin_kept_ratio",
                "The share of requests of sessions that their own server would have taken under a policy.",
            ),
            twin_fit: Family::gauge(
                "steadfast_twin_fit_ratio",
                "Modelled over measured p99 of the policy in force; the twin is to be trusted from 0.8 to 1.25.",
            ),
            twin_sampled: Family::gauge(
                "steadfast_twin_sampled_ratio",
                "The share of sessions that the twin looks at.",
            ),
            twin_doubt: Family::gauge(
                "steadfast_twin_doubt",
                "1 for a reason not to trust the twin, wholly or at all.",
            ),
            twin_top_sessions_share: Family::gauge(
                "steadfast_twin_top_sessions_share_ratio",
                "The share of the work that the heaviest 1 % of the sessions, or the one heaviest, have: of those that the twin looks at, and at least.",
            ),
            twin_dropped: Family::counter(
                "steadfast_twin_events_dropped_total",
                "Exchanges that the twin was not told of, as its queue was full.",
            ),
            remaining: Family::gauge(
                "steadfast_drain_sessions_remaining",
                "Sessions that a draining server still has.",
            ),
            connections: Family::gauge("steadfast_upstream_connections", "Connections to servers."),
            server_state: Family::gauge("steadfast_server_state", "1 for the state that a server is in."),
            certificate_expiry: Family::gauge(
                "steadfast_certificate_expiry_timestamp_seconds",
                "When a listener's certificate ends, in seconds since 1970.",
            ),
        }
    }

    /// Exchanges in flight on a server.
    pub fn in_flight(&mut self, pool: &str, server: &str, count: u32) {
        self.in_flight.value(&[("pool", pool), ("server", server)], f64::from(count));
    }

    /// Exchanges that wait for a place on a server.
    pub fn queue_length(&mut self, pool: &str, server: &str, count: u32) {
        self.queue_length.value(&[("pool", pool), ("server", server)], f64::from(count));
    }

    /// Distinct sessions of a server.
    pub fn sessions(&mut self, pool: &str, server: &str, count: u64) {
        self.sessions.value(&[("pool", pool), ("server", server)], count as f64);
    }

    /// How uneven a pool is.
    pub fn imbalance(&mut self, pool: &str, policy: &str, of: &str, measures: [(&str, f64); 3]) {
        for (measure, value) in measures {
            let labels = [("pool", pool), ("of", of), ("measure", measure), ("policy", policy)];
            self.imbalance.value(&labels, value);
        }
    }

    /// How long a server that joined took to get its share.
    pub fn scale_out(&mut self, pool: &str, server: &str, took: Duration) {
        self.scale_out.value(&[("pool", pool), ("server", server)], took.as_secs_f64());
    }

    /// Whether a session store answers, and what an embedded one holds: records, bytes, and records that made room.
    pub fn store(&mut self, store: &str, answers: bool, holds: Option<(usize, usize, u64)>) {
        let labels = [("store", store)];
        self.store_up.value(&labels, f64::from(u8::from(answers)));
        if let Some((records, bytes, evicted)) = holds {
            self.store_records.value(&labels, records as f64);
            self.store_bytes.value(&labels, bytes as f64);
            self.store_evicted.value(&labels, evicted as f64);
        }
    }

    /// For how long revocations were not read from their store.
    pub fn revocations_age(&mut self, store: &str, age: Duration) {
        self.revocations_age.value(&[("store", store)], age.as_secs_f64());
    }

    /// What the twin says of a policy: quantiles by name.
    pub fn twin_latency(&mut self, pool: &str, policy: &str, quantiles: [(&str, Duration); 3]) {
        for (quantile, latency) in quantiles {
            let labels = [("pool", pool), ("policy", policy), ("quantile", quantile)];
            self.twin_latency.value(&labels, latency.as_secs_f64());
        }
    }

    /// What the same requests really took: quantiles by name.
    pub fn twin_measured(&mut self, pool: &str, quantiles: [(&str, Duration); 3]) {
        for (quantile, latency) in quantiles {
            self.twin_measured.value(&[("pool", pool), ("quantile", quantile)], latency.as_secs_f64());
        }
    }

    /// How uneven the twin says a policy would be: measures by name.
    pub fn twin_imbalance(&mut self, pool: &str, policy: &str, measures: [(&str, f64); 2]) {
        for (measure, value) in measures {
            self.twin_imbalance.value(&[("pool", pool), ("policy", policy), ("measure", measure)], value);
        }
    }

    /// The share of requests that a policy would keep on the server of their session.
    pub fn twin_kept(&mut self, pool: &str, policy: &str, share: f64) {
        self.twin_kept.value(&[("pool", pool), ("policy", policy)], share);
    }

    /// Modelled over measured p99 of the policy in force.
    pub fn twin_fit(&mut self, pool: &str, fit: f64) {
        self.twin_fit.value(&[("pool", pool)], fit);
    }

    /// The share of sessions that the twin looks at.
    pub fn twin_sampled(&mut self, pool: &str, share: f64) {
        self.twin_sampled.value(&[("pool", pool)], share);
    }

    /// Whether there is this reason not to trust the twin.
    pub fn twin_doubt(&mut self, pool: &str, doubt: &str, holds: bool) {
        self.twin_doubt.value(&[("pool", pool), ("doubt", doubt)], f64::from(u8::from(holds)));
    }

    /// How much of the work the heaviest 1 % of the sessions have.
    pub fn twin_top_sessions_share(&mut self, pool: &str, share: f64) {
        self.twin_top_sessions_share.value(&[("pool", pool)], share);
    }

    /// Events that the twin missed.
    pub fn twin_dropped(&mut self, pool: &str, count: u64) {
        self.twin_dropped.value(&[("pool", pool)], count as f64);
    }

    /// Tunnels and event streams of a server.
    pub fn long_lived(&mut self, pool: &str, server: &str, kind: LongLivedKind, count: u32) {
        self.long_lived.value(&[("pool", pool), ("server", server), ("kind", kind.as_str())], f64::from(count));
    }

    /// Sessions that a draining server still has.
    pub fn drain_remaining(&mut self, pool: &str, server: &str, count: u64) {
        self.remaining.value(&[("pool", pool), ("server", server)], count as f64);
    }

    /// Connections to a server.
    pub fn upstream_connections(&mut self, pool: &str, server: &str, metrics: &ServerMetrics) {
        let active = metrics.cells.sum(|cells| cells.connections_active.get());
        let idle = metrics.cells.sum(|cells| cells.connections_idle.get());
        for (state, count) in [("active", active), ("idle", idle)] {
            self.connections.value(&[("pool", pool), ("server", server), ("state", state)], count as f64);
        }
    }

    /// The state that a server is in.
    pub fn server_state(&mut self, pool: &str, server: &str, condition: ServerCondition) {
        for state in ServerCondition::ALL {
            let labels = [("pool", pool), ("server", server), ("state", state.as_str())];
            self.server_state.value(&labels, if *state == condition { 1.0 } else { 0.0 });
        }
    }

    /// When a certificate ends.
    pub fn certificate_expiry(&mut self, listener: &str, name: &str, timestamp: f64) {
        self.certificate_expiry.value(&[("listener", listener), ("name", name)], timestamp);
    }

    /// The families, filled.
    pub(super) fn into_families(self) -> Vec<Family> {
        vec![
            self.in_flight,
            self.queue_length,
            self.sessions,
            self.imbalance,
            self.remaining,
            self.long_lived,
            self.scale_out,
            self.connections,
            self.server_state,
            self.certificate_expiry,
            self.store_up,
            self.store_records,
            self.store_bytes,
            self.store_evicted,
            self.revocations_age,
            self.twin_latency,
            self.twin_measured,
            self.twin_imbalance,
            self.twin_kept,
            self.twin_fit,
            self.twin_sampled,
            self.twin_doubt,
            self.twin_top_sessions_share,
            self.twin_dropped,
        ]
    }
}
