//! The API of operators and their programs: what pools do, and what is wanted of their servers.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use prometheus::Registry;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::explain::explain;
use super::revocations::Tokens;
use super::sessions::Sessions;
use super::{PATIENCE, ReloadRequest, Reply, describe, problem, reply};
use crate::clock::Clock;
use crate::config::parse_duration;
use crate::pool::{Server, Wish};
use crate::runtime::{PoolEntry, Runtime, Snapshot};

pub(super) const PREFIX: &str = "/api/v1/";
const MOST_BODY_BYTES: usize = 64 * 1024;
const HEAVIEST: u64 = 1_000;

/// For a call that may be answered if it is made again.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Why a call is not answered as it was meant.
pub(super) struct Refusal {
    status: StatusCode,
    why: String,
    retry_after: Option<u32>,
}

pub(super) type Answer = Result<Value, Refusal>;

pub(super) fn refuse(status: StatusCode, why: impl Into<String>) -> Refusal {
    Refusal { status, why: why.into(), retry_after: None }
}

/// Refuses what may be answered if it is asked again.
pub(super) fn refuse_for_now(why: impl Into<String>) -> Refusal {
    Refusal { retry_after: Some(RETRY_AFTER_SECONDS), ..refuse(StatusCode::SERVICE_UNAVAILABLE, why) }
}

pub(super) async fn answer(
    runtime: &Arc<Runtime>,
    registry: &Registry,
    (sessions, tokens): (&Sessions, &Tokens),
    reloads: &mpsc::Sender<ReloadRequest>,
    request: Request<Incoming>,
) -> Reply {
    match call(runtime, registry, (sessions, tokens), reloads, request).await {
        Ok(value) => reply(StatusCode::OK, "application/json", format!("{value}\n")),
        Err(refusal) => refusal.into(),
    }
}

impl From<Refusal> for Reply {
    fn from(Refusal { status, why, retry_after }: Refusal) -> Self {
        let mut response = match status {
            StatusCode::UNPROCESSABLE_ENTITY => reply(status, "application/problem+json", why),
            _ => problem(status, &why),
        };
        let retry_after = retry_after.map(|seconds| (header::RETRY_AFTER, HeaderValue::from(seconds)));
        response.headers_mut().extend(retry_after);
        response
    }
}

async fn call(
    runtime: &Arc<Runtime>,
    registry: &Registry,
    (sessions, tokens): (&Sessions, &Tokens),
    reloads: &mpsc::Sender<ReloadRequest>,
    request: Request<Incoming>,
) -> Answer {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let words = path.strip_prefix(PREFIX).unwrap_or_default().split('/');
    let words: Vec<String> = words.map(|word| percent_decode_str(word).decode_utf8_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let snapshot = runtime.snapshot();
    match (&method, words.as_slice()) {
        (&Method::GET, ["pools"]) => Ok(describe::pools(&snapshot, &snapshot.pools, registry).into()),
        (&Method::GET, ["pools", pool]) => {
            let entry = pool_of(&snapshot, pool)?;
            Ok(describe::pools(&snapshot, [entry], registry).into_iter().next().unwrap_or_default())
        }
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
        (&Method::GET, ["sessions"]) => sessions.list(&query).await,
        (&Method::DELETE, ["sessions"]) => sessions.revoke_all(&query).await,
        (&Method::GET, ["sessions", reference]) => sessions.show(reference).await,
        (&Method::DELETE, ["sessions", reference]) => sessions.revoke(reference).await,
        (&Method::GET, ["revocations"]) => Ok(tokens.list()),
        (&Method::POST, ["revocations"]) => tokens.add(&body_of(request).await?).await,
        (&Method::DELETE, ["revocations"]) => tokens.remove(&query).await,
        (_, ["pools" | "reload" | "explain" | "sessions" | "revocations", ..]) => {
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
pub(super) async fn body_of(request: Request<Incoming>) -> Result<Value, Refusal> {
    let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
    let collecting = Limited::new(request.into_body(), MOST_BODY_BYTES).collect();
    let collected = tokio::time::timeout(PATIENCE, collecting).await;
    let collected = collected.map_err(|_| refuse(StatusCode::REQUEST_TIMEOUT, "The body did not come."))?;
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
    Ok(describe::server(entry, server, now))
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
    Ok(describe::server(entry, server, Clock::now()))
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
