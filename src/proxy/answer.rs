//! Step 6: the response on its way back: cleaned, with the pin that the verdict asks for, streamed or tunnelled.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header};
use http_body::Body as _;

use super::attempt::Attempted;
use super::error::{Error, Kind};
use super::exchange::{Exchange, ReplyBody};
use super::long_lived::Owner;
use super::session::{self, Visit};
use super::stateless::TokenWatch;
use super::{Worker, protect, reply};
use crate::affinity::{Preference, Recalled};
use crate::clock::Clock;
use crate::config::Route;
use crate::headers::{self, Origin, SharedCaching};
use crate::names::{LongLivedKind, MovedWhy, Verdict};
use crate::runtime::PoolEntry;
use crate::tasks;
use crate::upstream::{TunnelRules, UpstreamBody, tunnel};

const STEADFAST_VERDICT: HeaderName = HeaderName::from_static("steadfast-verdict");

/// What an exchange is answered with.
pub(super) enum Answer {
    /// By the proxy itself.
    Local(Response<Bytes>),
    Server(Response<UpstreamBody>),
    /// The connection carries another protocol from now on.
    Tunnel(Response<UpstreamBody>),
    Error(Error),
}

/// Turns a server's response into the client's.
#[allow(clippy::too_many_arguments, reason = "the facts of one exchange, each from another step")]
pub(super) async fn from_server(
    worker: &Worker,
    exchange: &mut Exchange,
    route: &Route,
    entry: &PoolEntry,
    recalled: &Recalled,
    visit: Option<&Visit>,
    origin: &Origin,
    attempted: Attempted,
) -> Answer {
    let Attempted { mut response, wants_upgrade, server } = attempted;
    let status = response.status();
    let switching = status == StatusCode::SWITCHING_PROTOCOLS;
    if switching && !wants_upgrade {
        return Answer::Error(Error::because(Kind::BadResponse, &"it switched protocols without being asked"));
    }
    let protocol = response.headers().get(header::UPGRADE).cloned();
    // What the server speaks is between it and us.
    *response.version_mut() = Version::HTTP_11;
    let concluded = match visit {
        None => {
            // A route without sessions is none for their cookies either.
            if let Some(pool) = &entry.shared {
                session::take_from_response(&pool.settings, response.headers_mut(), 0, "/");
            }
            None
        }
        Some(visit) => match visit.conclude(exchange, status, response.headers_mut()).await {
            Ok(concluded) => Some(concluded),
            Err(error) => return Answer::Error(error),
        },
    };
    let headers = response.headers_mut();
    headers::remove_hop_by_hop(headers);
    headers::remove_reserved(headers);
    if let Some(snapshot) = exchange.snapshot() {
        protect::clean_cookies(worker, snapshot, entry, origin, headers);
    }
    protect::add_hsts(exchange.hsts.take(), headers);
    route.response_headers.apply(headers);
    add_pin(worker, exchange, entry, recalled, origin.https, server, headers);
    if let Some(mut concluded) = concluded {
        exchange.owner = concluded.watch.take().map(Owner::Session);
        concluded.write(headers);
    }
    if entry.debug_headers {
        add_verdict(exchange, entry, server, headers);
    }
    if switching || headers::is_event_stream(headers) {
        exchange.owner = exchange.owner.take().or_else(|| owner_of_token(exchange, entry));
    }
    if !switching {
        return Answer::Server(response);
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        headers.insert(header::UPGRADE, protocol);
    }
    Answer::Tunnel(response)
}

/// What lasts longer than this answer ends with the token that it came with.
fn owner_of_token(exchange: &Exchange, entry: &PoolEntry) -> Option<Owner> {
    let (verified, pool) = exchange.token.as_ref().zip(entry.stateless.as_ref())?;
    Some(Owner::Token(TokenWatch { verified: Rc::clone(verified), pool: Arc::clone(pool) }))
}

/// Exactly one Set-Cookie, naming the server that answered; none on what shared caches may keep.
fn add_pin(
    worker: &Worker,
    exchange: &mut Exchange,
    entry: &PoolEntry,
    recalled: &Recalled,
    https: bool,
    server: usize,
    headers: &mut HeaderMap,
) {
    let Some(affinity) = &entry.pool.affinity else {
        if let Some(session) = exchange.session {
            entry.pool.servers[server].state.sessions.note(session, exchange.arrived, entry.session_window);
        }
        return;
    };
    let now = Clock::wall(exchange.arrived);
    // A momentary cap must not re-pin a session for good: its next request goes home.
    let away_for_a_moment = exchange.verdict == Some(Verdict::Moved(MovedWhy::Full));
    affinity.learn(recalled, headers, server, away_for_a_moment, now);
    if away_for_a_moment || matches!(recalled.preference, Preference::None(_)) {
        return;
    }
    if let Some(session) = recalled.session() {
        // Only who has come back with its session is one: clients without a cookie jar are none.
        entry.pool.servers[server].state.sessions.note(session, exchange.arrived, entry.session_window);
    }
    if !affinity.is_cookie_due(recalled, server, now) {
        return;
    }
    let caching = headers::shared_caching(headers);
    if caching == SharedCaching::Allowed {
        return;
    }
    let cookie = affinity.set_cookie(recalled, server, https, now, &mut worker.random.borrow_mut());
    let Some((cookie, session)) = cookie else { return };
    // The first exchange of a session is one of it, to the log and the twin.
    exchange.session.get_or_insert(session);
    headers.append(header::SET_COOKIE, cookie);
    if caching == SharedCaching::Unsaid {
        headers.append(header::CACHE_CONTROL, HeaderValue::from_static("private"));
    }
}

fn add_verdict(exchange: &Exchange, entry: &PoolEntry, server: usize, headers: &mut HeaderMap) {
    let Some(verdict) = exchange.verdict else { return };
    let reason = if verdict.reason().is_empty() { String::new() } else { format!("; reason={}", verdict.reason()) };
    let regret = exchange.regret().map(|regret| format!("; regret={}ms", regret.as_millis())).unwrap_or_default();
    let text = format!("{}{reason}; server={}{regret}", verdict.as_str(), entry.pool.servers[server].settings.name);
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(STEADFAST_VERDICT, value);
    }
}

/// Gives the record of the exchange to whatever ends last: the body, or the tunnel.
pub(super) fn release(answer: Answer, mut exchange: Box<Exchange>) -> Response<ReplyBody> {
    match answer {
        Answer::Local(response) => {
            exchange.replied(response.status().as_u16());
            ReplyBody::local(response, exchange)
        }
        Answer::Server(response) => {
            let is_event_stream = headers::is_event_stream(response.headers()) && !response.body().is_end_stream();
            let stay = is_event_stream.then(|| exchange.stay(LongLivedKind::EventStream)).flatten();
            response.map(|body| ReplyBody::from_server(body, exchange, stay))
        }
        Answer::Tunnel(response) => open_tunnel(response, exchange),
        Answer::Error(error) => reply::refusal(error, exchange),
    }
}

/// The tunnel begins when the client has the 101; it ends with either side, with silence, or with the process.
fn open_tunnel(response: Response<UpstreamBody>, mut exchange: Box<Exchange>) -> Response<ReplyBody> {
    let (parts, body) = response.into_parts();
    let worker = exchange.worker();
    let is_web_socket = parts
        .headers
        .get(header::UPGRADE)
        .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let entry = exchange.snapshot().zip(exchange.pool).map(|(snapshot, pool)| &snapshot.pools[pool]);
    let idle = entry.and_then(|entry| entry.timeouts.tunnel_idle);
    let client = exchange.downstream.take_over();
    tasks::spawn(async move {
        exchange.release_snapshot();
        if let (Some(stay), Ok(client), Some(server)) =
            (exchange.stay(LongLivedKind::Tunnel), client.await, body.into_raw().await)
        {
            exchange.downstream.becomes_tunnel();
            let rules = TunnelRules { is_web_socket, idle, told: stay.over() };
            let traffic = tunnel(client, server, rules, Rc::clone(&worker.ticker)).await;
            exchange.tunnelled(traffic);
        }
    });
    Response::from_parts(parts, ReplyBody::of_tunnel())
}
