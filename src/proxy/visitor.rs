//! Steps 3 and 4, who asks: found by the pool's mode, and let in if that is enough for the route.
//!
//! What is to be known of a request is taken before its head is made ready for servers, as its credentials go there; the
//! rest happens when the head has been admitted, because it may wait for a store.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http::request::Parts;

use super::error::Error;
use super::exchange::Exchange;
use super::identify::Identity;
use super::protect::{self, Known, TokenCheck};
use super::session::{self, Visit};
use super::stateless::{self, Guest, ShownToken};
use super::{Admitted, Worker, reply};
use crate::clock::Clock;
use crate::config::Route;
use crate::names::SessionNeed;
use crate::runtime::{PoolEntry, SharedPool, Snapshot, StatelessPool};
use crate::session::contract;

/// What a request shows of who asks.
pub(super) struct Shows {
    /// The session cookie, where the proxy keeps sessions.
    session: Option<session::Coming>,
    /// The token, where that says it.
    token: Option<ShownToken>,
    return_to: Option<String>,
    https: bool,
    check: Option<TokenCheck>,
    /// Where somebody who navigates is to go on after a login: as they asked for it.
    asked: Option<String>,
}

/// Who asks, as far as it is known.
pub(super) enum Visitor {
    /// The pool's mode does not tell.
    Unasked,
    /// A session that the proxy keeps, or none.
    Session(Box<Visit>),
    /// Somebody with a token of their own, or without.
    Guest(Option<Guest>),
}

/// How an exchange goes on.
pub(super) enum Entry {
    Goes(Visitor),
    /// To the page where one logs in, or steps up.
    Elsewhere(Response<Bytes>),
}

impl Shows {
    /// Takes what a request shows; refuses one that another site has sent.
    #[allow(clippy::too_many_arguments, reason = "the facts of one request, each from another step")]
    pub(super) fn of(
        worker: &Worker,
        exchange: &Exchange,
        snapshot: &Snapshot,
        route: &Route,
        entry: &PoolEntry,
        identity: &Identity,
        path: &str,
        parts: &mut Parts,
    ) -> Result<Self, Error> {
        let check = protect::check_source(worker, snapshot, route, parts, identity, exchange.downstream.http2)?;
        let kept = session::is_kept(entry, route);
        let session = kept.map(|pool| session::Coming::of(&pool.settings, parts, path, identity));
        let https = identity.hop.origin.https;
        // Where nobody is asked who they are, whatever says it is the application's.
        let asks = route.session != SessionNeed::Off;
        let token = entry
            .stateless
            .as_ref()
            .filter(|_| asks)
            .map(|pool| stateless::take(worker, pool, https, &mut parts.headers));
        Ok(Shows {
            session,
            return_to: token.as_ref().and_then(|_| protect::return_to(parts)),
            token: token.transpose()?,
            https,
            check,
            asked: (route.login_url.is_some() && protect::is_navigation(parts)).then(|| whole(path, parts)),
        })
    }

    /// Finds out who asks, and refuses those for whom the route is not.
    #[allow(clippy::too_many_arguments, reason = "the facts of one request, each from another step")]
    pub(super) async fn enter(
        self,
        worker: &Rc<Worker>,
        exchange: &mut Exchange,
        snapshot: &Rc<Arc<Snapshot>>,
        route: &Route,
        (at, entry): (usize, &PoolEntry),
        path: &str,
        admitted: &mut Admitted,
    ) -> Result<Entry, Error> {
        let Shows { session, token, return_to, https, check, asked } = self;
        let asked = asked.as_deref();
        let visitor = match (session.zip(entry.shared.as_ref()), token.zip(entry.stateless.as_ref())) {
            (Some((coming, pool)), _) => {
                match of_session(worker, exchange, snapshot, route, (at, pool), coming, asked).await? {
                    Entry::Goes(visitor) => visitor,
                    elsewhere @ Entry::Elsewhere(_) => return Ok(elsewhere),
                }
            }
            (None, Some((token, pool))) => {
                let guest = match stateless::enter(worker, exchange, snapshot, pool, https, token) {
                    Ok(guest) => guest,
                    Err(error) => return log_in_again(route, asked, error),
                };
                if route.session == SessionNeed::Required && guest.is_none() {
                    return log_in(route, asked, stateless::token_required);
                }
                tell(worker, exchange, snapshot, (at, pool), guest.as_ref(), return_to.as_deref(), admitted);
                Visitor::Guest(guest)
            }
            _ => Visitor::Unasked,
        };
        if let (Some(check), Some(expected)) = (check, visitor.csrf()) {
            Box::pin(check.run(worker, exchange, &expected, &admitted.body)).await?;
        }
        if let Some(settings) = &entry.shared.as_ref().map(|pool| &pool.settings) {
            session::open_vault(worker, settings, visitor.visit(), path, &mut admitted.parts.headers);
        }
        let elsewhere = protect::step_up(worker, exchange, route, visitor.known().as_ref(), asked)?;
        Ok(elsewhere.map_or(Entry::Goes(visitor), Entry::Elsewhere))
    }
}

/// Path and query of a request.
fn whole(path: &str, parts: &Parts) -> String {
    match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

async fn of_session(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    snapshot: &Rc<Arc<Snapshot>>,
    route: &Route,
    (at, pool): (usize, &SharedPool),
    coming: session::Coming,
    asked: Option<&str>,
) -> Result<Entry, Error> {
    let visit = session::enter(worker, exchange, snapshot, route, (at, pool), coming).await?;
    if route.session == SessionNeed::Required && !visit.is_logged_in() {
        return log_in(route, asked, session::login_required);
    }
    Ok(Entry::Goes(Visitor::Session(Box::new(visit))))
}

/// Somebody has to log in first: a navigation is shown the way.
fn log_in(route: &Route, asked: Option<&str>, refusal: impl FnOnce() -> Error) -> Result<Entry, Error> {
    match route.login_url.as_ref().zip(asked) {
        Some((login, asked)) => Ok(Entry::Elsewhere(reply::to_login(login, asked))),
        None => Err(refusal()),
    }
}

/// Somebody who navigates with a token that counts no more is shown the way, and the token is taken back; a program is
/// told what is wrong with it.
fn log_in_again(route: &Route, asked: Option<&str>, error: Error) -> Result<Entry, Error> {
    match (route.login_url.as_ref().zip(asked), &error.cookie) {
        (Some((login, asked)), Some(cookie)) => {
            let mut reply = reply::to_login(login, asked);
            reply.headers_mut().append(http::header::SET_COOKIE, cookie.clone());
            Ok(Entry::Elsewhere(reply))
        }
        _ => Err(error),
    }
}

/// Tells the servers, whichever it will be, who asks.
fn tell(
    worker: &Worker,
    exchange: &Exchange,
    snapshot: &Snapshot,
    (at, pool): (usize, &StatelessPool),
    guest: Option<&Guest>,
    return_to: Option<&str>,
    admitted: &mut Admitted,
) {
    let now = Clock::wall(exchange.arrived).seconds();
    let told = worker.sessions.guest_token(snapshot, (at, pool), guest, return_to, now);
    admitted.parts.headers.insert(contract::SESSION, told);
}

impl Visitor {
    /// The session, where the proxy keeps it.
    pub(super) fn visit(&self) -> Option<&Visit> {
        match self {
            Visitor::Session(visit) => Some(visit),
            Visitor::Unasked | Visitor::Guest(_) => None,
        }
    }

    /// What forms of whoever asks have to show; none where there is nothing that another site could abuse.
    fn csrf(&self) -> Option<Vec<[u8; 32]>> {
        match self {
            Visitor::Unasked => None,
            Visitor::Session(visit) => visit.csrf(),
            Visitor::Guest(guest) => guest.as_ref().map(|guest| guest.csrf.clone()).filter(|csrf| !csrf.is_empty()),
        }
    }

    /// How whoever asks has shown who they are.
    fn known(&self) -> Option<Known<'_>> {
        match self {
            Visitor::Unasked => None,
            Visitor::Session(visit) => visit.known(),
            Visitor::Guest(guest) => guest.as_ref().map(Guest::known),
        }
    }
}
