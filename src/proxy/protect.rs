//! What the edge enforces on the way, whatever the mode of the pool: who may send requests here, how well somebody has to
//! have shown who they are, and how cookies are set. The decisions are `protect`'s; this is where they meet an exchange.

use http::header::HeaderMap;
use http::request::Parts;
use http::{HeaderValue, Method, Response};

use super::error::{Error, Kind};
use super::exchange::Exchange;
use super::identify::Identity;
use super::{Worker, reply};
use crate::clock::Clock;
use crate::config::Route;
use crate::headers::Origin;
use crate::names::{Csrf, CsrfReason, Decision, StepUpReason};
use crate::protect::{
    self, CookieFacts, CsrfFacts, CsrfJudgement, FORM_FIELD, MOST_FORM_BYTES, Shown, TokenPlace, check_token,
    form_field,
};
use crate::runtime::{PoolEntry, Snapshot};
use crate::upstream::{BodyFault, RequestBody};

/// How far clocks may be apart in what is said of a login.
const SKEW: std::time::Duration = std::time::Duration::from_secs(30);

/// A request that has to show the token of its session, if it has one.
pub(super) struct TokenCheck {
    given: Option<Vec<u8>>,
    is_form: bool,
    mode: Csrf,
}

/// Refuses what another site has sent, as far as the headers tell; gives what is left to be checked.
pub(super) fn check_source(
    worker: &Worker,
    snapshot: &Snapshot,
    route: &Route,
    parts: &Parts,
    identity: &Identity,
    is_http2: bool,
) -> Result<Option<TokenCheck>, Error> {
    let rules = &snapshot.protect.csrf;
    let mode = route.csrf.unwrap_or(rules.mode);
    if mode == Csrf::Off {
        return Ok(None);
    }
    let facts = CsrfFacts {
        method: &parts.method,
        upgrade: !is_http2 && crate::headers::wanted_upgrade(&parts.headers).is_some(),
        protect_safe: route.protect_safe,
        headers: &parts.headers,
        origin: &identity.hop.origin,
        // Whether it has one is seen later; most need no token either way.
        has_session: true,
    };
    match protect::judge(rules, &facts) {
        CsrfJudgement::Passes => Ok(None),
        CsrfJudgement::Refused(reason) => refuse_forged(worker, mode, reason).map(|()| None),
        CsrfJudgement::NeedsToken => {
            let place = protect::token_place(&parts.headers);
            let given = if let TokenPlace::Header(token) = place { Some(token.to_vec()) } else { None };
            Ok(Some(TokenCheck { given, is_form: place == TokenPlace::Form, mode }))
        }
    }
}

fn refuse_forged(worker: &Worker, mode: Csrf, reason: CsrfReason) -> Result<(), Error> {
    let refuses = mode == Csrf::Enforce;
    let decision = if refuses { Decision::Rejected } else { Decision::Reported };
    worker.runtime.metrics.forged(worker.id, decision, reason);
    if refuses { Err(Error::because(Kind::Csrf(reason), &reason)) } else { Ok(()) }
}

impl TokenCheck {
    /// Looks for the token of a session, in its form if need be. `expected`: one for each key of the ring.
    pub(super) async fn run(
        self,
        worker: &Worker,
        exchange: &Exchange,
        expected: &[[u8; 32]],
        body: &RequestBody,
    ) -> Result<(), Error> {
        let given = match self.given {
            None if self.is_form => token_of_form(worker, exchange, body).await?,
            given => given,
        };
        match check_token(expected, given.as_deref()) {
            Ok(()) => Ok(()),
            Err(reason) => refuse_forged(worker, self.mode, reason),
        }
    }
}

/// The token in a form's body, which is read to its end for that.
async fn token_of_form(worker: &Worker, exchange: &Exchange, body: &RequestBody) -> Result<Option<Vec<u8>>, Error> {
    let mut deadline = worker.ticker.deadline(exchange.downstream.endpoint.settings.times.idle);
    let mut gathering = std::pin::pin!(body.gather(MOST_FORM_BYTES));
    let gathered = std::future::poll_fn(|cx| {
        if let std::task::Poll::Ready(gathered) = gathering.as_mut().poll(cx) {
            return std::task::Poll::Ready(gathered);
        }
        deadline.poll(cx).map(|()| Err(BodyFault::Stalled))
    });
    let form = gathered.await.map_err(super::attempt::error_of)?;
    Ok(form.and_then(|form| form_field(&form, FORM_FIELD).map(|token| token.into_owned())))
}

/// What is known of whoever asks.
pub(super) struct Known<'a> {
    pub(super) acr: &'a str,
    pub(super) auth_time: Option<u64>,
}

/// Whether somebody has shown as much of who they are as the route wants; if not, they are sent to where they can.
pub(super) fn step_up(
    worker: &Worker,
    exchange: &Exchange,
    route: &Route,
    known: Option<&Known<'_>>,
    asked: Option<&str>,
) -> Result<Option<Response<bytes::Bytes>>, Error> {
    let Some(require) = &route.require else { return Ok(None) };
    let now = Clock::wall(exchange.arrived).seconds();
    let shown = known.map(|known| Shown { acr: known.acr, auth_time: known.auth_time });
    let reason = match &shown {
        None => StepUpReason::NoLogin,
        Some(shown) if require.is_shown(shown, now, SKEW) => return Ok(None),
        Some(shown) if require.acr.is_empty() || require.acr.iter().any(|level| **level == *shown.acr) => {
            StepUpReason::Age
        }
        Some(_) => StepUpReason::Level,
    };
    worker.runtime.metrics.step_up(worker.id, reason);
    if let Some((login, asked)) = route.login_url.as_ref().zip(asked) {
        return Ok(Some(reply::to_login(login, asked)));
    }
    let challenge = HeaderValue::try_from(require.challenge()).ok();
    Err(Error { challenge, ..Error::because(Kind::StepUp(reason), &reason) })
}

/// Tells browsers of TLS, unless a server has said something else of itself.
pub(super) fn add_hsts(hsts: Option<HeaderValue>, headers: &mut HeaderMap) {
    if let Some(hsts) = hsts {
        headers.entry(http::header::STRICT_TRANSPORT_SECURITY).or_insert(hsts);
    }
}

/// Cleans the cookies that a server sets.
pub(super) fn clean_cookies(
    worker: &Worker,
    snapshot: &Snapshot,
    entry: &PoolEntry,
    origin: &Origin,
    headers: &mut HeaderMap,
) {
    if !headers.contains_key(http::header::SET_COOKIE) {
        return;
    }
    let facts = CookieFacts { https: origin.https, host: &origin.host };
    let is_reserved = |name: &[u8]| snapshot.is_our_cookie(name, origin.https, entry);
    protect::clean_set_cookies(headers, &snapshot.protect.cookies, &facts, is_reserved, |fault, deed| {
        worker.runtime.metrics.cookie_fault(worker.id, deed, fault);
    });
}

/// Where somebody who logs in is to go on, if that is a path of the same host.
pub(super) fn return_to(parts: &Parts) -> Option<String> {
    parts.uri.query().filter(|query| query.contains("return=")).and_then(protect::return_path)
}

/// Whether a request is somebody going to a page, and not a script or an image on it.
pub(super) fn is_navigation(parts: &Parts) -> bool {
    let mode = parts.headers.get("sec-fetch-mode").map(HeaderValue::as_bytes);
    let is_page = mode.map_or_else(|| reply::wants_html(&parts.headers), |mode| mode == b"navigate");
    is_page && matches!(parts.method, Method::GET | Method::HEAD)
}
