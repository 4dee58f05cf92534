//! Step 5: tries, one server after another, until one answers or none may be tried any more.
//!
//! "May this be retried?" is decided here and nowhere else. What no server has seen goes on to every untried server
//! and is not charged. What a server may have begun to serve is tried again only if its method is idempotent (RFC
//! 9110, section 9.2.2), its body can be sent again, attempts are left and the pool's budget allows it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Uri, Version, header};

use super::error::{Error, Kind};
use super::exchange::Exchange;
use super::session::Visit;
use super::{Admitted, Worker};
use crate::affinity::{Preference, Recalled};
use crate::clock::Clock;
use crate::names::{Ineligible, Limit, MovedWhy, Outcome, Verdict};
use crate::pool::{Ask, InFlight, NoServer, Picked, PinKind, RetryGuard, Tried, Waiting};
use crate::runtime::PoolEntry;
use crate::upstream::{
    BodyFault, ConnectError, Connection, FailureKind, OutBody, RequestBody, SendFailure, Target, TimeLimits,
    UpstreamBody,
};

/// A hard-pinned session's server that refuses a connection gets another chance after this: it may be restarting.
const SECOND_CHANCE: Duration = Duration::from_millis(100);

/// Kept connections that may turn out closed before a fresh one is opened.
const MOST_STALE: usize = 64;

/// A server's answer.
pub(super) struct Attempted {
    pub(super) response: Response<UpstreamBody>,
    /// Whether it was asked for another protocol.
    pub(super) wants_upgrade: bool,
    pub(super) server: usize,
}

/// How one attempt failed.
struct Failure {
    error: Error,
    outcome: Outcome,
    next: Next,
}

/// What may follow a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// No server has seen anything of the request.
    AnyUntried,
    /// A server may have begun to serve it.
    IfRepeatable,
    /// The client's side failed.
    Nothing,
}

struct Attempts<'a> {
    worker: &'a Rc<Worker>,
    entry: &'a PoolEntry,
    /// The session, where the proxy keeps it.
    visit: Option<&'a Visit>,
    https: bool,
    body: RequestBody,
    wants_upgrade: bool,
    /// How long the request's body may stand still.
    stall: Duration,
    head: Head,
    /// Attempts in which a server may have seen the request.
    seen: u32,
    retry: Option<RetryGuard>,
}

/// A request's head, ready for any server of the pool.
#[derive(Clone)]
struct Head {
    method: Method,
    uri: Uri,
    headers: http::HeaderMap,
}

pub(super) async fn run(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    entry: &PoolEntry,
    recalled: &Recalled,
    visit: Option<&Visit>,
    https: bool,
    admitted: Admitted,
) -> Result<Attempted, Error> {
    let Admitted { parts, body, wants_upgrade } = admitted;
    let Parts { method, uri, headers, .. } = parts;
    let head = Head { method, uri, headers };
    let stall = exchange.downstream.endpoint.settings.times.idle;
    let mut attempts = Attempts { worker, entry, visit, https, body, wants_upgrade, stall, head, seen: 0, retry: None };
    let mut tried = Tried::default();
    let mut last: Option<Error> = None;
    exchange.uses = entry.pool.use_session(recalled.preference);
    let mut second_chance = entry.pool.rules.kind == PinKind::Hard;
    loop {
        let server = match choose(worker, exchange, entry, recalled.preference, &tried, last.is_some()).await {
            Ok(server) => server,
            Err(NoServer(verdict)) => {
                exchange.found_none(verdict);
                let refused = matches!(verdict, Verdict::Refused(_));
                return Err(last.filter(|_| !refused).unwrap_or(Error::new(Kind::NoServer)));
            }
        };
        let failure = match attempts.once(server).await {
            Ok(response) => {
                settle_answer(worker, exchange, entry, server, &response);
                return Ok(Attempted { response, wants_upgrade, server });
            }
            Err(failure) => failure,
        };
        let at_home = matches!(exchange.verdict, Some(Verdict::Kept | Verdict::Waited));
        settle_failure(worker, exchange, entry, server, failure.outcome);
        if second_chance && at_home && failure.outcome == Outcome::Refused {
            second_chance = false;
            Box::pin(tokio::time::sleep(SECOND_CHANCE)).await;
            last = Some(failure.error);
            continue;
        }
        if !attempts.may_go_on(failure.next) {
            return Err(failure.error);
        }
        tried.add(server);
        last = Some(failure.error);
    }
}

async fn choose(
    worker: &Worker,
    exchange: &mut Exchange,
    entry: &PoolEntry,
    preference: Preference,
    tried: &Tried,
    again: bool,
) -> Result<usize, NoServer> {
    let mut may_wait = true;
    let alone = exchange.uses.as_ref().is_none_or(|uses| uses.alone) && !again;
    // A look into a store, or at who signed a token, may have taken its time.
    let is_at_once = !again && entry.shared.is_none() && entry.stateless.is_none();
    let mut now = if is_at_once { exchange.arrived } else { Clock::now() };
    loop {
        let ask = Ask { preference, tried, key: balance_key(exchange, entry), worker: worker.id, now, may_wait, alone };
        let picked = entry.pool.pick(&ask, &mut worker.random.borrow_mut());
        let full = match &picked {
            Ok(Picked::Server(pick)) => pick.verdict == Verdict::Moved(MovedWhy::Full),
            Ok(Picked::Line { .. }) => false,
            Err(_) => entry.pool.is_any_full(now),
        };
        if full {
            worker.runtime.metrics.limit_reached(worker.id, Limit::MaxRequests);
        }
        match picked? {
            Picked::Server(pick) => {
                let server = pick.server;
                exchange.chose(pick, now);
                return Ok(server);
            }
            Picked::Line { server, waiting, regret } => {
                let position = waiting.position;
                let called = Box::pin(wait_in_line(worker, waiting, entry.pool.rules.queue.timeout)).await;
                let joined = std::mem::replace(&mut now, Clock::now());
                let state = &entry.pool.servers[server].state;
                state.metrics.cells.of(worker.id).queue_wait.observe(now.since(joined));
                exchange.waited_in_line(position, now.since(joined));
                let unfit = entry.pool.servers[server].unfit_for_pinned(now).filter(|why| *why != Ineligible::Full);
                if let Some(guard) = called.filter(|_| unfit.is_none()) {
                    let mut random = worker.random.borrow_mut();
                    let pick = entry.pool.pick_of_waiting(server, guard, Some(regret), &ask, &mut random);
                    exchange.chose(pick, now);
                    return Ok(server);
                }
                may_wait = false;
            }
        }
    }
}

/// Waits for a place, so long and no longer.
async fn wait_in_line(worker: &Worker, waiting: Waiting, timeout: Duration) -> Option<InFlight> {
    let mut waiting = pin!(waiting);
    let mut deadline = worker.ticker.deadline(timeout);
    poll_fn(|cx| {
        if let Poll::Ready(guard) = waiting.as_mut().poll(cx) {
            return Poll::Ready(Some(guard));
        }
        deadline.poll(cx).map(|()| None)
    })
    .await
}

/// What `hash` hashes: the session, where the pool keeps them somewhere else than on its servers.
pub(super) fn balance_key(exchange: &Exchange, entry: &PoolEntry) -> u64 {
    let is_shared = entry.shared.is_some() || entry.counted_cookie.is_some();
    exchange.session.filter(|_| is_shared).unwrap_or_else(|| address_key(exchange))
}

/// What `hash` hashes where no session is known: the client's address.
fn address_key(exchange: &Exchange) -> u64 {
    match exchange.client {
        std::net::IpAddr::V4(address) => u64::from(u32::from(address)),
        std::net::IpAddr::V6(address) => xxhash_rust::xxh3::xxh3_64(&address.octets()),
    }
}

fn settle_answer(
    worker: &Worker,
    exchange: &mut Exchange,
    entry: &PoolEntry,
    server: usize,
    response: &Response<UpstreamBody>,
) {
    let status = response.status().as_u16();
    exchange.answered(status);
    report(worker, entry, server, Outcome::answered(status));
}

fn settle_failure(worker: &Worker, exchange: &mut Exchange, entry: &PoolEntry, server: usize, outcome: Outcome) {
    exchange.give_up_server(outcome, Clock::now());
    report(worker, entry, server, outcome);
}

/// Tells health what an attempt showed.
fn report(worker: &Worker, entry: &PoolEntry, server: usize, outcome: Outcome) {
    let Some(well) = outcome.speaks_for_health() else { return };
    if let Some(ejection) = entry.pool.observe(server, well, worker.ticker.coarse_now()) {
        let name = &entry.pool.servers[server].settings.name;
        tracing::warn!(pool = %entry.pool.name, server = %name, ?ejection, "server is ejected: too many failures in a row");
    }
}

impl Attempts<'_> {
    /// One attempt on one server. A kept connection that turns out closed costs no attempt: a fresh one follows.
    async fn once(&mut self, server: usize) -> Result<Response<UpstreamBody>, Failure> {
        let target = self.entry.target(server, self.wants_upgrade);
        for _ in 0..MOST_STALE {
            let Some(connection) = self.worker.conns.reuse(target).await else { break };
            match self.send(connection, target).await {
                Err(failure) if self.was_never_written(&failure) => {}
                Err(failure) if self.may_be_stale(&failure, target) => break,
                sent => return self.judge(sent),
            }
        }
        // Rare and large: it would make every exchange's future as large.
        let connection = Box::pin(self.worker.conns.open(target)).await.map_err(refused)?;
        let sent = self.send(connection, target).await;
        self.judge(sent)
    }

    async fn send(
        &mut self,
        connection: Connection,
        target: &Arc<Target>,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        let timeouts = &self.entry.timeouts;
        let grpc = is_grpc(&self.head.headers);
        let mut request = self.request(target);
        if let Some(visit) = self.visit {
            visit.begin_attempt(request.headers_mut()).await;
        }
        let limits = TimeLimits {
            first_byte: timeouts.first_byte.filter(|_| !grpc),
            between_bytes: timeouts.between_bytes,
            stall: Some(self.stall).filter(|_| !grpc),
            body: &self.body,
        };
        connection.send(request, limits, &self.worker.conns, target).await
    }

    fn request(&self, target: &Target) -> Request<OutBody> {
        let Head { method, mut uri, mut headers } = self.head.clone();
        if let Some(host) = &self.entry.host {
            headers.insert(header::HOST, host.clone());
        }
        let version = if target.settings.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        let body = self.body.attempt();
        let length_is_known = http_body::Body::size_hint(&body).exact().is_some();
        if !target.settings.http2 && !length_is_known {
            // Without this hyper would leave out the body of a GET whose length it does not know.
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if target.settings.http2 {
            uri = with_authority(uri, headers.remove(header::HOST), self.https);
            headers.remove(header::CONNECTION);
        }
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.version_mut() = version;
        *request.headers_mut() = headers;
        request
    }

    /// The kept connection was closed before anything of the request was written: it was handed back.
    fn was_never_written(&self, failure: &SendFailure) -> bool {
        failure.reused && failure.unwritten && self.body.can_be_sent_again() && self.body.fault().is_none()
    }

    /// The server has closed a kept connection just when the request was on its way. An HTTP/2 stream that was reset is
    /// no such case: its connection lives, and the server has spoken.
    fn may_be_stale(&self, failure: &SendFailure, target: &Target) -> bool {
        let broken = matches!(failure.kind, FailureKind::Broken(_)) && self.body.fault().is_none();
        let again = self.is_repeatable() && self.body.can_be_sent_again();
        failure.reused && broken && again && !target.settings.http2
    }

    fn judge(&mut self, sent: Result<Response<UpstreamBody>, SendFailure>) -> Result<Response<UpstreamBody>, Failure> {
        let failure = match sent {
            Ok(response) => return Ok(response),
            Err(failure) => failure,
        };
        if let Some(fault) = self.body.fault() {
            if fault == BodyFault::TooLarge {
                self.worker.runtime.metrics.limit_reached(self.worker.id, Limit::BodyBytes);
            }
            return Err(client_failed(fault));
        }
        let next = if failure.unsent && self.body.can_be_sent_again() { Next::AnyUntried } else { Next::IfRepeatable };
        if next == Next::IfRepeatable {
            self.seen += 1;
        }
        let (kind, outcome) = match failure.kind {
            FailureKind::Broken(_) => (Kind::Broken, Outcome::Reset),
            FailureKind::TimedOut => (Kind::FirstByteTimedOut, Outcome::TimedOut),
        };
        let error = Error::because(kind, &failure.kind);
        Err(Failure { error, outcome, next })
    }

    fn is_repeatable(&self) -> bool {
        self.head.method.is_idempotent() && !self.wants_upgrade
    }

    /// Whether another server may be tried.
    fn may_go_on(&mut self, next: Next) -> bool {
        match next {
            Next::Nothing => false,
            Next::AnyUntried => self.body.can_be_sent_again(),
            Next::IfRepeatable => {
                let repeatable = self.is_repeatable() && self.body.can_be_sent_again();
                repeatable && self.seen < self.entry.retry.attempts && self.take_from_budget()
            }
        }
    }

    fn take_from_budget(&mut self) -> bool {
        if self.retry.is_none() {
            self.retry = self.entry.pool.try_retry(self.entry.retry.budget);
            if self.retry.is_none() {
                self.worker.runtime.metrics.limit_reached(self.worker.id, Limit::RetryBudget);
            }
        }
        self.retry.is_some()
    }
}

fn refused(error: ConnectError) -> Failure {
    let (kind, outcome) = match error {
        ConnectError::TimedOut => (Kind::ConnectTimedOut, Outcome::TimedOut),
        _ => (Kind::ConnectFailed, Outcome::Refused),
    };
    Failure { error: Error::because(kind, &error), outcome, next: Next::AnyUntried }
}

fn client_failed(fault: BodyFault) -> Failure {
    Failure { error: error_of(fault), outcome: Outcome::ClientLeft, next: Next::Nothing }
}

/// What a fault of the client's body is to the exchange.
pub(super) fn error_of(fault: BodyFault) -> Error {
    let kind = match fault {
        BodyFault::TooLarge => Kind::BodyTooLarge,
        BodyFault::Malformed => Kind::BodyMalformed,
        BodyFault::Gone => Kind::ClientGone,
        BodyFault::Stalled => Kind::BodyStalled,
    };
    Error::because(kind, &fault)
}

/// A gRPC stream may be silent for as long as it likes.
fn is_grpc(headers: &http::HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// HTTP/2 carries scheme and authority beside the path.
fn with_authority(uri: Uri, host: Option<HeaderValue>, https: bool) -> Uri {
    let mut parts = uri.into_parts();
    parts.authority = host.and_then(|host| http::uri::Authority::try_from(host.as_bytes()).ok());
    parts.scheme = Some(if https { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
    if parts.authority.is_none() {
        parts.scheme = None;
    }
    Uri::from_parts(parts).unwrap_or_default()
}
