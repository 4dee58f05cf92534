//! Pools and servers as JSON, and with them what is counted, for those who watch.

use std::sync::atomic::Ordering;
use std::time::Duration;

use data_encoding::HEXLOWER;
use prometheus::Registry;
use prometheus::proto::{Metric, MetricFamily};
use serde_json::{Value, json};

use crate::clock::{Clock, Moment};
use crate::imbalance::Measures;
use crate::keys::Hasher;
use crate::names::{Ineligible, LongLivedKind};
use crate::pool::{Imbalance, Server, Wish};
use crate::runtime::{PoolEntry, Runtime, Snapshot, TwinSeat, condition};
use crate::store::Store;
use crate::twin::{Heavy, LiveReport, PolicyReport, Quantiles, ServerReport};

/// All that there is, and when. Counters are since the start of the process: whoever watches takes differences.
pub(super) fn everything(runtime: &Runtime, registry: &Registry) -> Value {
    let snapshot = runtime.snapshot();
    let counted = Counted(registry.gather());
    let hasher = &snapshot.session_hasher;
    let stores = snapshot.stores.iter().map(|entry| {
        let mut described = store(entry);
        counted.add_to_store(&entry.settings.name, &mut described);
        described
    });
    json!({
        "time": Clock::wall(Clock::now()).0 as f64 / 1e6,
        "version": env!("CARGO_PKG_VERSION"),
        "ready": runtime.ready.load(Ordering::Relaxed),
        "pools": snapshot.pools.iter().map(|entry| counted.with_pool(entry, hasher)).collect::<Value>(),
        "stores": stores.collect::<Value>(),
        "protect": counted.protect(),
        "limits": counted.by_label("steadfast_limit_reached_total", &[], "limit"),
    })
}

/// These pools of the snapshot, with what is counted of each.
pub(super) fn pools<'p>(
    snapshot: &Snapshot,
    entries: impl IntoIterator<Item = &'p PoolEntry>,
    registry: &Registry,
) -> Vec<Value> {
    let counted = Counted(registry.gather());
    entries.into_iter().map(|entry| counted.with_pool(entry, &snapshot.session_hasher)).collect()
}

/// A session as the access log has it: by a keyed hash, with which nobody can ask for anything.
pub(super) fn session(hasher: &Hasher, session: u64) -> String {
    HEXLOWER.encode(&hasher.tag::<8>(&session.to_be_bytes()))
}

/// What a scrape would bring: the one place where counters of all workers are summed.
struct Counted(Vec<MetricFamily>);

impl Counted {
    /// The values of a family that have these labels.
    fn of(&self, family: &str, labels: &[(&str, &str)]) -> Vec<&Metric> {
        let families = self.0.iter().filter(|candidate| candidate.name() == family);
        let metrics = families.flat_map(MetricFamily::get_metric);
        metrics.filter(|metric| labels.iter().all(|(name, value)| label(metric, name) == *value)).collect()
    }

    /// Counters by one of their labels, those of the same one together; what has not happened yet is left out.
    fn by_label(&self, family: &str, labels: &[(&str, &str)], by: &str) -> Value {
        let mut counts = serde_json::Map::new();
        for metric in self.of(family, labels).into_iter().filter(|metric| total(metric) > 0) {
            let count = counts.entry(label(metric, by)).or_insert(json!(0));
            *count = json!(count.as_u64().unwrap_or_default() + total(metric));
        }
        Value::Object(counts)
    }

    fn with_pool(&self, entry: &PoolEntry, hasher: &Hasher) -> Value {
        let mut described = pool(entry, hasher);
        let own = [("pool", &*entry.pool.name)];
        let verdicts = self.of("steadfast_affinity_total", &own).into_iter().map(|metric| {
            json!({ "verdict": label(metric, "verdict"), "reason": label(metric, "reason"), "count": total(metric) })
        });
        let disagreements = self.of("steadfast_affinity_disagreement_total", &own).into_iter().map(total).sum::<u64>();
        described["verdicts"] = verdicts.collect();
        described["regret"] =
            self.of("steadfast_affinity_regret_seconds", &own).first().copied().map_or(Value::Null, regret);
        described["disagreements"] = json!(disagreements);
        described["codes"] = self.by_label("steadfast_requests_total", &own, "code");
        described["session_events"] = self.by_label("steadfast_session_events_total", &own, "event");
        described
    }

    fn add_to_store(&self, store: &str, described: &mut Value) {
        let own = [("store", store)];
        let took = self.of("steadfast_store_operation_seconds", &own);
        let operations = took.iter().map(|metric| metric.get_histogram().get_sample_count()).sum::<u64>();
        let seconds = took.iter().map(|metric| metric.get_histogram().get_sample_sum()).sum::<f64>();
        let errors = self.of("steadfast_store_errors_total", &own).into_iter().map(total).sum::<u64>();
        described["operations"] = json!(operations);
        described["took_s"] = json!(seconds);
        described["errors"] = json!(errors);
    }

    fn protect(&self) -> Value {
        let counts = self.of("steadfast_protect_total", &[]).into_iter().map(|metric| {
            let of = |name| label(metric, name);
            json!({ "rule": of("rule"), "decision": of("decision"), "reason": of("reason"), "count": total(metric) })
        });
        counts.collect()
    }
}

fn label<'a>(metric: &'a Metric, name: &str) -> &'a str {
    metric.get_label().iter().find(|pair| pair.name() == name).map_or("", |pair| pair.value())
}

fn total(metric: &Metric) -> u64 {
    metric.get_counter().get_value() as u64
}

/// How often and how much, and how many were within each bound. All of them are within the last, which has no number.
fn regret(metric: &Metric) -> Value {
    let histogram = metric.get_histogram();
    let bounded = histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite());
    json!({
        "count": histogram.get_sample_count(),
        "sum_s": histogram.get_sample_sum(),
        "buckets": bounded.map(|bucket| json!([bucket.upper_bound(), bucket.cumulative_count()])).collect::<Value>(),
    })
}

fn pool(entry: &PoolEntry, hasher: &Hasher) -> Value {
    let now = Clock::now();
    let load = entry.load.lock().clone();
    let imbalance = |imbalance: Imbalance| -> Value {
        imbalance.named().into_iter().map(|(of, measured)| (of, measures(measured))).collect()
    };
    let mut described = json!({
        "name": &*entry.pool.name,
        "mode": mode(entry),
        "balance": entry.pool.balance().as_str(),
        "imbalance": imbalance(load.actual),
        "shadow_imbalance": imbalance(load.shadow),
        "rebalancing_s": entry.pool.rebalancing().since().map(|since| now.since(since).as_secs_f64()),
        "twin": entry.twin.as_deref().map_or(Value::Null, |seat| twin(seat, hasher, now)),
        "requests_per_second": rounded(load.servers.iter().map(|server| server.requests_per_second).sum()),
        "servers": entry.pool.servers.iter().zip(&entry.targets).enumerate().map(|(at, (server, target))| {
            let mut described = self::server(entry, server, now);
            let measured = load.servers.get(at).copied().unwrap_or_default();
            described["address"] = json!(target.settings.address.to_string());
            described["requests_per_second"] = json!(rounded(measured.requests_per_second));
            described["scale_out_s"] = json!(measured.scale_out.map(|took| rounded(took.as_secs_f64())));
            described
        }).collect::<Value>(),
    });
    if let Some(shared) = &entry.shared {
        described["store"] = store(&shared.store);
    }
    described
}

/// What the twin said last; nothing where it has not said anything yet.
fn twin(seat: &TwinSeat, hasher: &Hasher, now: Moment) -> Value {
    let Some(report) = seat.report() else { return Value::Null };
    let LiveReport { until, window, exchanges, sampled, left_out, .. } = *report;
    json!({
        "age_s": rounded(now.since(until).as_secs_f64()),
        "window_s": rounded(window.as_secs_f64()),
        "exchanges": exchanges,
        "sampled": sampled,
        "events_dropped": seat.dropped(),
        "left_out": left_out,
        "measured": quantiles(report.measured),
        "fit": report.fit.map(rounded),
        "doubts": report.doubts.iter().map(|doubt| doubt.as_str()).collect::<Value>(),
        "policies": report.policies.iter().map(policy).collect::<serde_json::Map<_, _>>(),
        "servers": report.servers.iter().map(twin_server).collect::<Value>(),
        "heavy": heavy(&report.heavy, hasher),
    })
}

fn heavy(heavy: &Heavy, hasher: &Hasher) -> Value {
    let top = heavy.top.iter().map(|one| {
        json!({
            "session": session(hasher, one.session),
            "server": &*one.server,
            "requests": one.requests,
            "share": one.share,
        })
    });
    json!({
        "sessions": heavy.sessions,
        "exact": heavy.is_exact,
        "top_share": heavy.top_share,
        "top": top.collect::<Value>(),
    })
}

fn policy(report: &PolicyReport) -> (String, Value) {
    let mut described = quantiles(report.latency);
    described["max_over_mean"] = json!(rounded(report.max_over_mean));
    described["jain"] = json!(rounded(report.jain));
    described["kept"] = json!(report.kept.map(rounded));
    described["refused"] = json!(rounded(report.refused));
    (report.policy.as_str().to_owned(), described)
}

fn quantiles(quantiles: Quantiles) -> Value {
    let millis = |latency: Duration| rounded(latency.as_secs_f64() * 1e3);
    json!({ "p50_ms": millis(quantiles.p50), "p95_ms": millis(quantiles.p95), "p99_ms": millis(quantiles.p99) })
}

fn twin_server(report: &ServerReport) -> Value {
    json!({
        "name": &*report.name,
        "capacity": report.capacity.map(rounded),
        "discipline": report.discipline.as_str(),
        "speed": rounded(report.speed),
    })
}

/// A shared or stateless pool may have soft pins besides.
fn mode(entry: &PoolEntry) -> &'static str {
    if entry.shared.is_some() || entry.counted_cookie.is_some() {
        "shared"
    } else if entry.stateless.is_some() {
        "stateless"
    } else if entry.pool.affinity.is_some() {
        "sticky"
    } else {
        "none"
    }
}

fn store(store: &Store) -> Value {
    let mut described = json!({ "name": &*store.settings.name, "answers": store.answers() });
    if let Some((records, bytes, evicted)) = store.holds() {
        described["records"] = json!(records);
        described["bytes"] = json!(bytes);
        described["evicted"] = json!(evicted);
    }
    described
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn measures(measures: Option<Measures>) -> Value {
    measures.map_or(Value::Null, |measures| {
        measures.named().into_iter().map(|(name, value)| (name, json!(rounded(value)))).collect()
    })
}

pub(super) fn server(entry: &PoolEntry, server: &Server, now: Moment) -> Value {
    let (own, percent) = server.state.wishes.of_server();
    let deadline = server.state.wishes.deadline().map(|deadline| deadline.since(now).as_secs_f64());
    let drain = (server.state.wishes.effective() != Wish::Ready).then(|| drain(entry, server, now));
    json!({
        "drain": drain,
        "sessions": server.state.sessions.count(now, entry.session_window),
        "name": &*server.settings.name,
        "state": condition(&server.state, now).as_str(),
        "newcomers": server.unfit(now).map_or("eligible", Ineligible::as_str),
        "pinned": server.unfit_for_pinned(now).map_or("eligible", Ineligible::as_str),
        "wish": server.state.wishes.of_operator().as_str(),
        "deadline_s": deadline,
        "own_word": { "wish": own.as_str(), "weight_percent": percent },
        "weight": server.weight(),
        "configured_weight": server.settings.weight,
        "backup": server.settings.backup,
        "in_flight": server.state.in_flight(),
        "max_requests": server.settings.max_requests,
        "long_lived": LongLivedKind::ALL.iter().map(|kind| {
            (kind.as_str().to_owned(), json!(server.state.long_lived[kind.index()].load(Ordering::Relaxed)))
        }).collect::<Value>(),
        "waiting": server.state.waiting(),
        "latency_ms": (server.state.latency.nanos(now) / 1e3).round() / 1e3,
    })
}

fn drain(entry: &PoolEntry, server: &Server, now: Moment) -> Value {
    let countdown = server.countdown(now, entry.session_window);
    json!({
        "remaining": countdown.remaining,
        "half_life_s": countdown.half_life.map(|span| span.as_secs_f64()),
        "eta_s": countdown.eta.map(|span| span.as_secs_f64()),
        "safe_to_stop": countdown.remaining == 0 && server.state.in_flight() == 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyRing;
    use crate::twin::HeavySession;

    #[test]
    fn a_heavy_session_is_called_what_the_access_log_calls_it() {
        let hasher = KeyRing::ephemeral().hasher("a test");
        let top = vec![HeavySession { session: 7, server: "a".into(), requests: 120, share: 0.125 }];
        let described = heavy(&Heavy { sessions: 1_240, top_share: 0.5, is_exact: true, top }, &hasher);
        let logged = format!("{:016x}", hasher.hash(&7_u64.to_be_bytes()));
        let expected = json!({
            "sessions": 1240,
            "exact": true,
            "top_share": 0.5,
            "top": [{ "session": logged, "server": "a", "requests": 120, "share": 0.125 }],
        });
        assert_eq!(described, expected);
    }
}
