//! Active probes: does a server answer when nobody needs it to?
//!
//! Each server has one probing task on the control thread. A probe opens a connection of its own, so it also sees
//! whether the server still accepts any, and it judges by the same `connect` that exchanges use. Rise and fall are
//! `health`'s business.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, header};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;

use crate::clock::Clock;
use crate::health::RiseFall;
use crate::pool::{Wish, parse_own_word};
use crate::tasks::LocalExecutor;
use crate::upstream::{Address, Io, OutBody, Target, connect};

/// How the servers of a pool are probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub kind: Kind,
    /// For drains that a server asks for itself.
    pub drain_deadline: Option<Duration>,
    pub session_window: Duration,
    pub interval: Duration,
    pub timeout: Duration,
    pub limits: RiseFall,
}

/// What a probe is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection (with TLS where the pool has it) is enough.
    Tcp,
    /// An answer with one of these status codes.
    Http { path: Box<str>, host: Option<http::HeaderValue>, expect: Vec<RangeInclusive<u16>> },
}

/// Probes a server for as long as the future is polled.
pub async fn run(pool: Arc<str>, server: Box<str>, target: Arc<Target>, settings: Settings, first: Duration) {
    if settings.kind == Kind::Tcp {
        // Who is not asked says nothing.
        target.state.wishes.forget_own();
    }
    // Servers of a pool are not probed all at the same moment.
    tokio::time::sleep(first).await;
    let mut ticks = tokio::time::interval(settings.interval.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let probed = tokio::time::timeout(settings.timeout, probe(&target, &settings.kind)).await;
        let result = probed.unwrap_or_else(|_| Err("no answer within the time allowed".to_owned()));
        let result = result.and_then(|answer| {
            if let Some((wish, percent)) = answer.own_word {
                let now = Clock::now();
                let deadline = settings.drain_deadline.map(|span| now + span);
                if target.state.wishes.set_own(wish, percent, deadline) {
                    target.state.sessions.begin_drain(now, settings.session_window);
                }
            }
            answer.well
        });
        match (target.state.vitals.probed(result.is_ok(), settings.limits), result) {
            (Some(true), _) => tracing::info!(%pool, %server, "server is up"),
            (Some(false), Err(why)) => tracing::warn!(%pool, %server, %why, "server is down"),
            _ => {}
        }
    }
}

/// What a server has answered.
struct Answer {
    well: Result<(), String>,
    /// How it feels (`Steadfast-State`), on whatever status; none where nobody was asked.
    own_word: Option<(Wish, u32)>,
}

async fn probe(target: &Target, kind: &Kind) -> Result<Answer, String> {
    let io = connect(target).await.map_err(|error| error.to_string())?;
    let Kind::Http { path, host, expect } = kind else { return Ok(Answer { well: Ok(()), own_word: None }) };
    let authority = match host {
        Some(host) => host.clone(),
        None => own_authority(&target.settings.address),
    };
    let response = ask(io, target, path, authority).await?;
    let status = response.status().as_u16();
    let expected = expect.iter().any(|range| range.contains(&status));
    let said = response.headers().get(STEADFAST_STATE).and_then(|value| value.to_str().ok());
    Ok(Answer {
        well: if expected { Ok(()) } else { Err(format!("it answered {status}")) },
        // Silence takes an earlier word back; one that cannot be read is none.
        own_word: Some(said.and_then(parse_own_word).unwrap_or((Wish::Ready, 100))),
    })
}

const STEADFAST_STATE: http::HeaderName = http::HeaderName::from_static("steadfast-state");

/// The Host of a probe where the pool names none: what the server is connected to by.
fn own_authority(address: &Address) -> http::HeaderValue {
    let text = match address {
        Address::Tcp { .. } => address.to_string(),
        Address::Unix(_) => "localhost".to_owned(),
    };
    http::HeaderValue::try_from(text).unwrap_or_else(|_| http::HeaderValue::from_static("localhost"))
}

async fn ask(io: Io, target: &Target, path: &str, authority: http::HeaderValue) -> Result<Response<Incoming>, String> {
    let text = |error: hyper::Error| error.to_string();
    let request = Request::builder().method(Method::GET).header(header::USER_AGENT, "steadfast-probe");
    if target.settings.http2 {
        let scheme = if target.settings.tls.is_some() { "https" } else { "http" };
        let uri = format!("{scheme}://{}{path}", authority.to_str().unwrap_or("localhost"));
        let request = request.uri(uri).body(OutBody::empty()).map_err(|error| error.to_string())?;
        let (mut sender, connection) = http2::handshake(LocalExecutor, TokioIo::new(io)).await.map_err(text)?;
        return answer_while(connection, sender.send_request(request)).await;
    }
    let request = request.uri(path).header(header::HOST, authority).header(header::CONNECTION, "close");
    let request = request.body(OutBody::empty()).map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(text)?;
    answer_while(connection, sender.send_request(request)).await
}

/// Waits for an answer while driving its connection.
async fn answer_while(
    connection: impl Future<Output = hyper::Result<()>>,
    answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
) -> Result<Response<Incoming>, String> {
    tokio::pin!(connection, answer);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            // The answer may have come with the end.
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    };
    answer.map_err(|error| error.to_string())
}
