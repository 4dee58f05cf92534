//! The API of operators and their programs: what pools do, and what is wanted of their servers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use data_encoding::HEXLOWER;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::{ReloadRequest, problem, reply};
use crate::clock::{Clock, Moment};
use crate::config::parse_duration;
use crate::imbalance::Measures;
use crate::names::{Ineligible, LongLivedKind, Verdict};
use crate::pool::{Ask, Imbalance, NoServer, Server, Tried, Wish};
use crate::runtime::{PoolEntry, Runtime, Snapshot, condition};

pub(super) const PREFIX: &str = "/api/v1/";
const MOST_BODY_BYTES: usize = 64 * 1024;
const HEAVIEST: u64 = 1_000;

/// Why a call is not answered as it was meant.
struct Refusal(StatusCode, String);

type Answer = Result<Value, Refusal>;

fn refuse(status: StatusCode, why: impl Into<String>) -> Refusal {
    Refusal(status, why.into())
}

pub(super) async fn answer(
    runtime: &Arc<Runtime>,
    reloads: &mpsc::Sender<ReloadRequest>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    match call(runtime, reloads, request).await {
        Ok(value) => reply(StatusCode::OK, "application/json", format!("{value}\n")),
        Err(Refusal(StatusCode::UNPROCESSABLE_ENTITY, problems)) => {
            reply(StatusCode::UNPROCESSABLE_ENTITY, "application/problem+json", problems)
        }
        Err(Refusal(status, why)) => problem(status, &why),
    }
}

async fn call(runtime: &Arc<Runtime>, reloads: &mpsc::Sender<ReloadRequest>, request: Request<Incoming>) -> Answer {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let words = path.strip_prefix(PREFIX).unwrap_or_default().split('/');
    let words: Vec<String> = words.map(|word| percent_decode_str(word).decode_utf8_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let snapshot = runtime.snapshot();
    match (&method, words.as_slice()) {
        (&Method::GET, ["pools"]) => Ok(snapshot.pools.iter().map(describe_pool).collect()),
        (&Method::GET, ["pools", pool]) => Ok(describe_pool(pool_of(&snapshot, pool)?)),
        (&Method::POST, ["pools", pool, "servers", server, wish @ ("drain" | "ready" | "maint")]) => {
            let body = body_of(request).await?;
            let entry = pool_of(&snapshot, pool)?;
            set_wish(entry, server_of(entry, server)?, wish, &body)
        }
        (&Method::PUT, ["pools", pool, "servers", server, "weight"]) => {
            let body = body_of(request).await?;
            let entry = pool_of(&snapshot, pool)?;
            set_weight(entry, server_of(entry, server)?, &body)
        }
        (&Method::POST, ["reload"]) => reload(reloads).await,
        (&Method::POST, ["explain"]) => explain(&snapshot, &body_of(request).await?),
        (_, ["pools" | "reload" | "explain", ..]) => {
            Err(refuse(StatusCode::NOT_FOUND, format!("There is no {method} {path}.")))
        }
        _ => Err(refuse(StatusCode::NOT_FOUND, format!("There is no {path}."))),
    }
}

fn pool_of<'s>(snapshot: &'s Snapshot, name: &str) -> Result<&'s PoolEntry, Refusal> {
    snapshot.pool(name).ok_or_else(|| refuse(StatusCode::NOT_FOUND, format!("There is no pool {name}.")))
}

fn server_of<'p>(entry: &'p PoolEntry, name: &str) -> Result<&'p Server, Refusal> {
    let found = entry.pool.servers.iter().find(|server| &*server.settings.name == name);
    found.ok_or_else(|| refuse(StatusCode::NOT_FOUND, format!("Pool {} has no server {name}.", entry.pool.name)))
}

/// The JSON object of a request's body; an empty one when there is none.
async fn body_of(request: Request<Incoming>) -> Result<Value, Refusal> {
    let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
    let collected = Limited::new(request.into_body(), MOST_BODY_BYTES).collect().await;
    let bytes = collected.map_err(|_| refuse(StatusCode::BAD_REQUEST, "The body cannot be read."))?.to_bytes();
    if bytes.is_empty() {
        return Ok(json!({}));
    }
    // A form of another origin cannot send this type.
    if content_type.is_none_or(|value| !value.as_bytes().starts_with(b"application/json")) {
        return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body must be application/json."));
    }
    let parsed = serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object);
    parsed.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "The body is no JSON object."))
}

fn describe_pool(entry: &PoolEntry) -> Value {
    let now = Clock::now();
    let load = entry.load.lock().clone();
    let imbalance = |imbalance: Imbalance| -> Value {
        imbalance.named().into_iter().map(|(of, measured)| (of, measures(measured))).collect()
    };
    json!({
        "name": &*entry.pool.name,
        "mode": if entry.pool.affinity.is_some() { "sticky" } else { "none" },
        "balance": entry.pool.balance().as_str(),
        "imbalance": imbalance(load.actual),
        "shadow_imbalance": imbalance(load.shadow),
        "rebalancing_s": entry.pool.rebalancing().since().map(|since| now.since(since).as_secs_f64()),
        "requests_per_second": rounded(load.servers.iter().map(|server| server.requests_per_second).sum()),
        "servers": entry.pool.servers.iter().zip(&entry.targets).enumerate().map(|(at, (server, target))| {
            let mut described = describe_server(entry, server, now);
            let measured = load.servers.get(at).copied().unwrap_or_default();
            described["address"] = json!(target.settings.address.to_string());
            described["requests_per_second"] = json!(rounded(measured.requests_per_second));
            described["scale_out_s"] = json!(measured.scale_out.map(|took| rounded(took.as_secs_f64())));
            described
        }).collect::<Value>(),
    })
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn measures(measures: Option<Measures>) -> Value {
    measures.map_or(Value::Null, |measures| {
        measures.named().into_iter().map(|(name, value)| (name, json!(rounded(value)))).collect()
    })
}

fn describe_server(entry: &PoolEntry, server: &Server, now: Moment) -> Value {
    let (own, percent) = server.state.wishes.of_server();
    let deadline = server.state.wishes.deadline().map(|deadline| deadline.since(now).as_secs_f64());
    let drain = (server.state.wishes.effective() != Wish::Ready).then(|| describe_drain(entry, server, now));
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

fn describe_drain(entry: &PoolEntry, server: &Server, now: Moment) -> Value {
    let countdown = server.countdown(now, entry.session_window);
    json!({
        "remaining": countdown.remaining,
        "half_life_s": countdown.half_life.map(|span| span.as_secs_f64()),
        "eta_s": countdown.eta.map(|span| span.as_secs_f64()),
        "safe_to_stop": countdown.remaining == 0 && server.state.in_flight() == 0,
    })
}

fn set_wish(entry: &PoolEntry, server: &Server, wish: &str, body: &Value) -> Answer {
    let wish = Wish::from_word(wish).unwrap_or(Wish::Ready);
    let deadline = match body.get("deadline") {
        None => None,
        Some(_) if wish != Wish::Drain => {
            return Err(refuse(StatusCode::BAD_REQUEST, "Only a drain has a deadline."));
        }
        Some(text) => Some(duration_of(text)?),
    };
    let now = Clock::now();
    let deadline = deadline.or(entry.drain_deadline).filter(|_| wish == Wish::Drain);
    if wish == Wish::Drain && server.state.wishes.of_operator() != Wish::Drain {
        server.state.sessions.begin_drain(now, entry.session_window);
    }
    server.state.wishes.set(wish, deadline.map(|span| now + span));
    tracing::info!(pool = %entry.pool.name, server = %server.settings.name, %wish, ?deadline, "the operator's wish");
    Ok(describe_server(entry, server, now))
}

fn duration_of(value: &Value) -> Result<Duration, Refusal> {
    let parsed = value.as_str().and_then(parse_duration);
    parsed.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "`deadline` is a duration, as \"10m\"."))
}

fn set_weight(entry: &PoolEntry, server: &Server, body: &Value) -> Answer {
    let weight = body.get("weight").and_then(Value::as_u64).filter(|weight| *weight <= HEAVIEST);
    let weight = weight.and_then(|weight| u32::try_from(weight).ok());
    let weight = weight.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "`weight` is a whole number from 0 to 1000."))?;
    server.state.wishes.set_weight(weight, server.settings.weight);
    entry.pool.reweigh();
    tracing::info!(pool = %entry.pool.name, server = %server.settings.name, weight, "the operator's weight");
    Ok(describe_server(entry, server, Clock::now()))
}

async fn reload(reloads: &mpsc::Sender<ReloadRequest>) -> Answer {
    let (sender, result) = oneshot::channel();
    let gone = || refuse(StatusCode::SERVICE_UNAVAILABLE, "The proxy is shutting down.");
    reloads.send(sender).await.map_err(|_| gone())?;
    match result.await.map_err(|_| gone())? {
        Ok(()) => Ok(json!({ "reloaded": true })),
        Err(problems) => {
            let text = json!({
                "title": "The configuration was rejected; nothing has changed.", "status": 422, "problems": problems,
            });
            Err(refuse(StatusCode::UNPROCESSABLE_ENTITY, text.to_string()))
        }
    }
}

/// What a pin cookie says, and what would become of it now.
fn explain(snapshot: &Snapshot, body: &Value) -> Answer {
    let Some(cookie) = body.get("cookie").and_then(Value::as_str) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "Give the value of a pin cookie: {\"cookie\": \"...\"}."));
    };
    // People paste `name=value` too.
    let value = cookie.rsplit('=').next().unwrap_or_default().trim();
    let now = Clock::now();
    let opened = snapshot.pools.iter().find_map(|entry| {
        let affinity = entry.pool.affinity.as_ref()?;
        affinity.explain(value.as_bytes(), Clock::wall(now)).map(|opened| (entry, opened))
    });
    let Some((entry, (recalled, pin))) = opened else {
        return Ok(json!({
            "valid": false,
            "would": { "verdict": "new", "why": "No key of the ring opens it, or it is for no pool that is configured." },
        }));
    };
    let mut random = fastrand::Rng::with_seed(pin.session);
    let ask = Ask {
        preference: recalled.preference,
        tried: &Tried::default(),
        key: pin.session,
        worker: crate::metrics::WorkerId(0),
        now,
        may_wait: true,
        alone: true,
    };
    let preview = entry.pool.preview(&ask, &mut random);
    let name = |at: usize| entry.pool.servers[at].settings.name.to_string();
    let (server, verdict) = match preview {
        Ok((server, verdict)) => (Some(name(server)), verdict),
        Err(NoServer(verdict)) => (None, verdict),
    };
    let pinned = match recalled.preference {
        crate::affinity::Preference::Pinned { server, .. } => Some(name(server)),
        _ => None,
    };
    Ok(json!({
        "valid": true,
        "pool": &*entry.pool.name,
        "server": pinned,
        "session": HEXLOWER.encode(&snapshot.session_hasher.hash(&pin.session.to_be_bytes()).to_be_bytes()),
        "issued": pin.issued,
        "last_seen": pin.seen,
        "would": { "verdict": verdict.as_str(), "reason": verdict.reason(), "server": server, "why": sentence(verdict) },
    }))
}

fn sentence(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Kept => "The pinned server can serve.",
        Verdict::Waited => "The pinned server is at its cap: the request would wait in its line.",
        Verdict::Moved(_) => "The pinned server cannot serve: the session moves to the first of its rendezvous order.",
        Verdict::Refused(_) => "The pinned server cannot serve, and the pool says not to move.",
        Verdict::New(_) => "The pin no longer counts: the session is placed afresh.",
        Verdict::None(_) => "No server can serve now.",
    }
}
