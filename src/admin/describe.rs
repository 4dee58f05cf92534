//! Pools and servers as JSON.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::clock::{Clock, Moment};
use crate::imbalance::Measures;
use crate::names::{Ineligible, LongLivedKind};
use crate::pool::{Imbalance, Server, Wish};
use crate::runtime::{PoolEntry, Snapshot, condition};
use crate::store::Store;

/// All that there is, and when.
pub(super) fn everything(snapshot: &Snapshot) -> Value {
    let time = Clock::wall(Clock::now()).0 as f64 / 1e6;
    json!({ "time": time, "pools": snapshot.pools.iter().map(pool).collect::<Value>() })
}

pub(super) fn pool(entry: &PoolEntry) -> Value {
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

/// A shared pool may have soft pins besides.
fn mode(entry: &PoolEntry) -> &'static str {
    if entry.shared.is_some() || entry.counted_cookie.is_some() {
        "shared"
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
