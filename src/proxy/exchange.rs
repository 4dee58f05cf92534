//! The record of one exchange. It goes along from the first byte of the request to the last of the response, and
//! settles everything when it is dropped: load, metrics, the log line.

use std::cell::RefCell;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};

use super::access_log::Record;
use super::attempt::balance_key;
use super::error::{Error, Kind};
use super::identify::Identity;
use super::long_lived::{Abandon, Owner, StayGuard};
use super::{Worker, reply};
use crate::clock::{Clock, Moment};
use crate::headers::{self, OwnHop};
use crate::listener::Downstream;
use crate::metrics::PoolMetrics;
use crate::names::{CodeClass, Limit, LongLivedKind, MovedWhy, Outcome, Verdict};
use crate::pool::{Cost, InFlight, InUseGuard, Pick, Shadow};
use crate::runtime::Snapshot;
use crate::stateless::Verified;
use crate::twin::{Pinned, Settled};
use crate::upstream::{BodyError, End, RequestBody, Tunnelled, UpstreamBody};

/// One request and its response.
pub(super) struct Exchange {
    worker: Rc<Worker>,
    scope: Scope,
    pub(super) downstream: Rc<Downstream>,
    pub(super) arrived: Moment,
    pub(super) wants_html: bool,
    is_head: bool,
    /// The client, by what trusted proxies say.
    pub(super) client: IpAddr,
    pub(super) body: Option<RequestBody>,
    pub(super) route: Option<usize>,
    /// The pool's position, once the route is known.
    pub(super) pool: Option<usize>,
    pub(super) verdict: Option<Verdict>,
    /// The server that is working on it, or has answered.
    pub(super) server: Option<usize>,
    guard: Option<InFlight>,
    /// Its place where the balance policy alone would have sent it.
    shadow: Option<Shadow>,
    /// Its session, as one with an exchange in flight.
    pub(super) uses: Option<InUseGuard>,
    chosen: Moment,
    headed: Option<Moment>,
    /// When its server last gave something that was waited for.
    given: Option<Moment>,
    /// It is one that may last for hours.
    stays: bool,
    pub(super) attempts: u32,
    /// What its pin cost; it belongs to the verdict, and is there for each that says that the pin held.
    cost: Option<Cost>,
    /// Where in a server's line it began to wait, and how long it did.
    queued: Option<(u32, Duration)>,
    status: Option<u16>,
    bytes_out: u64,
    pub(super) session: Option<u64>,
    /// Its session, for what lasts longer than the answer.
    pub(super) owner: Option<Owner>,
    /// The token that it came with.
    pub(super) token: Option<Rc<Verified>>,
    error: Option<&'static str>,
    /// Strict-Transport-Security, where browsers are told.
    pub(super) hsts: Option<HeaderValue>,
    log: Option<Box<LogFacts>>,
}

/// Where the names and counters of an exchange are found.
enum Scope {
    Snapshot(Rc<Arc<Snapshot>>),
    /// A tunnel lives on for hours: it keeps its own names, and lets the snapshot go.
    Kept(Names),
}

/// The names and counters of an exchange.
struct Names {
    metrics: Arc<PoolMetrics>,
    route: Arc<str>,
    pool: Arc<str>,
    server: Box<str>,
    session: Option<u64>,
}

/// What only the log wants to know; collected where there is one.
struct LogFacts {
    method: Method,
    target: String,
    hop: Option<Rc<OwnHop>>,
    id: HeaderValue,
    traceparent: Option<HeaderValue>,
    detail: Option<String>,
}

impl Exchange {
    pub(super) fn begin(
        worker: Rc<Worker>,
        snapshot: Rc<Arc<Snapshot>>,
        downstream: Rc<Downstream>,
        parts: &Parts,
        arrived: Moment,
    ) -> Box<Self> {
        let log = worker.logs.is_some().then(|| {
            Box::new(LogFacts {
                method: parts.method.clone(),
                target: parts.uri.path().to_owned(),
                hop: None,
                id: HeaderValue::from_static("-"),
                traceparent: parts.headers.get(headers::TRACEPARENT).cloned(),
                detail: None,
            })
        });
        Box::new(Exchange {
            worker,
            scope: Scope::Snapshot(snapshot),
            arrived,
            wants_html: reply::wants_html(&parts.headers),
            is_head: parts.method == Method::HEAD,
            client: downstream.peer.ip(),
            body: None,
            route: None,
            pool: None,
            verdict: None,
            server: None,
            guard: None,
            shadow: None,
            uses: None,
            chosen: arrived,
            headed: None,
            given: None,
            stays: false,
            attempts: 0,
            cost: None,
            queued: None,
            status: None,
            bytes_out: 0,
            session: None,
            owner: None,
            token: None,
            error: None,
            hsts: None,
            log,
            downstream,
        })
    }

    pub(super) fn identified(&mut self, identity: &Identity) {
        self.client = identity.client;
        if let Some(log) = &mut self.log {
            log.hop = Some(Rc::clone(&identity.hop));
            log.id = identity.request_id.clone();
        }
    }

    pub(super) fn routed(&mut self, route: usize, path: &str) {
        self.route = Some(route);
        self.pool = self.snapshot().and_then(|snapshot| snapshot.pool_of_route(route));
        if let Some(log) = &mut self.log {
            path.clone_into(&mut log.target);
        }
    }

    /// The snapshot that it goes by, until it has become a tunnel.
    pub(super) fn snapshot(&self) -> Option<&Snapshot> {
        match &self.scope {
            Scope::Snapshot(snapshot) => Some(snapshot),
            Scope::Kept(_) => None,
        }
    }

    /// How much worse its pinned server was than the best one.
    pub(super) fn regret(&self) -> Option<Duration> {
        self.cost.map(|cost| cost.regret)
    }

    /// It may last for hours now.
    pub(super) fn stay(&mut self, kind: LongLivedKind) -> Option<StayGuard> {
        self.stays = true;
        let server = self.guard.as_ref()?.state();
        Some(self.worker.long_lived.enter(kind, server, self.owner.take()))
    }

    /// The worker that serves it.
    pub(super) fn worker(&self) -> Rc<Worker> {
        Rc::clone(&self.worker)
    }

    /// Lets the snapshot go: what is left to do needs only the names.
    pub(super) fn release_snapshot(&mut self) {
        if let Scope::Snapshot(snapshot) = &self.scope {
            self.scope = Scope::Kept(self.names(snapshot));
        }
    }

    fn names(&self, snapshot: &Snapshot) -> Names {
        let entry = self.pool.map(|pool| &snapshot.pools[pool]);
        let server = entry.zip(self.server).map(|(entry, server)| entry.pool.servers[server].settings.name.clone());
        Names {
            metrics: entry.map_or_else(|| Arc::clone(&self.worker.no_pool), |entry| Arc::clone(&entry.pool.metrics)),
            route: self.route.map_or_else(|| "-".into(), |route| Arc::clone(&snapshot.routes[route].label)),
            pool: entry.map_or_else(|| "-".into(), |entry| Arc::clone(&entry.pool.name)),
            server: server.unwrap_or_else(|| "-".into()),
            session: self.session.map(|session| snapshot.session_hasher.hash(&session.to_be_bytes())),
        }
    }

    /// A server was chosen for the next attempt.
    pub(super) fn chose(&mut self, pick: Pick, now: Moment) {
        self.verdict = Some(pick.verdict);
        self.cost = pick.cost;
        self.server = Some(pick.server);
        self.guard = Some(pick.guard);
        self.shadow = pick.shadow;
        self.chosen = now;
        self.attempts += 1;
    }

    /// No server is chosen for the next attempt. What an earlier one's pin cost goes with the verdict on it.
    pub(super) fn found_none(&mut self, verdict: Verdict) {
        self.verdict = Some(verdict);
        self.cost = None;
    }

    pub(super) fn waited_in_line(&mut self, position: u32, waited: Duration) {
        self.queued = Some((position, waited));
    }

    /// The chosen server has failed; the exchange is in nobody's hands.
    pub(super) fn give_up_server(&mut self, outcome: Outcome, now: Moment) {
        self.count_attempt(outcome);
        if let Some(guard) = self.guard.take() {
            guard.state().latency.observe(now.since(self.chosen), outcome != Outcome::ClientLeft, now);
        }
        self.shadow = None;
        self.server = None;
    }

    fn count_attempt(&self, outcome: Outcome) {
        if let Some(guard) = &self.guard {
            guard.state().metrics.cells.of(self.worker.id).attempts[outcome.index()].add(1);
        }
    }

    /// The head of the response is there.
    pub(super) fn answered(&mut self, status: u16) {
        let now = Clock::now();
        let outcome = Outcome::answered(status);
        self.status = Some(status);
        self.headed = Some(now);
        self.given = Some(now);
        self.count_attempt(outcome);
        if let Some(guard) = &self.guard {
            // To the head, not to the end: how long a stream lives says nothing about its server.
            guard.state().latency.observe(now.since(self.chosen), outcome.speaks_for_health() == Some(false), now);
        }
    }

    /// The proxy itself answers.
    pub(super) fn replied(&mut self, status: u16) {
        self.status = Some(status);
    }

    pub(super) fn failed(&mut self, error: &Error) {
        self.error = Some(error.kind.as_str());
        self.status = (error.kind != Kind::ClientGone).then(|| error.kind.status().as_u16());
        if let Some(log) = &mut self.log {
            let side = error.kind.side();
            log.detail =
                Some(error.detail.as_ref().map_or_else(|| side.to_string(), |detail| format!("{side}: {detail}")));
        }
    }

    pub(super) fn tunnelled(&mut self, traffic: Tunnelled) {
        self.bytes_out += traffic.to_client;
        match traffic.end {
            End::Sides => {}
            End::Told => self.error = Some(DRAINED),
            End::Silent => {
                self.error = Some(Limit::TunnelIdle.as_str());
                self.worker.runtime.metrics.limit_reached(self.worker.id, Limit::TunnelIdle);
            }
        }
    }

    fn settle(&mut self) {
        let done = Clock::now();
        let duration = done.since(self.arrived);
        let code = self.status.map_or(CodeClass::ClientClosed, CodeClass::of);
        if self.status.is_none() {
            self.count_attempt(Outcome::ClientLeft);
        }
        let server = self.guard.as_ref().map(|guard| &*guard.state().metrics);
        let metrics = match &self.scope {
            Scope::Kept(names) => &names.metrics,
            Scope::Snapshot(snapshot) => {
                self.pool.map_or(&self.worker.no_pool, |pool| &snapshot.pools[pool].pool.metrics)
            }
        };
        if let Some(cost) = self.cost {
            let cells = metrics.cells.of(self.worker.id);
            cells.regret.observe(cost.regret);
            cells.disagreements.add(u64::from(cost.disagrees));
        }
        metrics.settle(self.worker.id, server, code, self.verdict, duration);
        self.tell_twin();
        if let (Some(logs), Some(log)) = (&self.worker.logs, &self.log) {
            logs.write(self.worker.id, |line| match &self.scope {
                Scope::Kept(names) => self.write_line(log, names, duration, line),
                Scope::Snapshot(snapshot) => self.write_line(log, &self.names(snapshot), duration, line),
            });
        }
    }

    /// What the server did on it, for the pool's twin. How long a tunnel or a stream lives says nothing about its server.
    fn tell_twin(&self) {
        let (Scope::Snapshot(snapshot), Some(pool), false) = (&self.scope, self.pool, self.stays) else { return };
        let entry = &snapshot.pools[pool];
        let (Some(seat), Some(server), Some(ended)) = (&entry.twin, self.server, self.given) else { return };
        let settled = Settled {
            server,
            session: self.session,
            key: balance_key(self, entry),
            pinned: self.verdict.map_or(Pinned::No, |verdict| pinned(verdict, server)),
            arrived: self.arrived,
            begun: self.chosen,
            ended,
            failed: self.status.is_none_or(|status| status >= 500),
        };
        self.worker.runtime.twins.tell(self.worker.id, seat, settled);
    }

    fn write_line(&self, log: &LogFacts, names: &Names, duration: Duration, out: &mut Vec<u8>) {
        let record = Record {
            time: Clock::wall(self.arrived),
            id: log.id.to_str().unwrap_or("-"),
            client: self.client,
            listener: &self.downstream.endpoint.settings.name,
            route: &names.route,
            pool: &names.pool,
            server: &names.server,
            method: log.method.as_str(),
            host: log.hop.as_ref().map_or("", |hop| &hop.host),
            path: &log.target,
            http2: self.downstream.http2,
            status: self.status.unwrap_or(499),
            bytes_in: self.body.as_ref().map_or(0, RequestBody::received),
            bytes_out: self.bytes_out,
            duration,
            upstream: self.headed.map_or(Duration::ZERO, |headed| headed.since(self.chosen)),
            regret: self.cost.map_or(Duration::ZERO, |cost| cost.regret),
            attempts: self.attempts,
            verdict: self.verdict,
            session: names.session,
            in_flight: self.guard.as_ref().map_or(0, |guard| guard.position),
            queued: self.queued,
            error: self.error.unwrap_or(""),
            detail: log.detail.as_deref(),
            traceparent: log.traceparent.as_ref().and_then(|value| value.to_str().ok()).unwrap_or(""),
        };
        record.write(out);
    }
}

/// Where its session is pinned, after this verdict and this server.
fn pinned(verdict: Verdict, server: usize) -> Pinned {
    match verdict {
        Verdict::Kept | Verdict::Waited => Pinned::Already(server),
        // At a momentary cap it stays where it was, which is not known here.
        Verdict::Moved(MovedWhy::Full) | Verdict::None(_) | Verdict::Refused(_) => Pinned::No,
        Verdict::Moved(_) => Pinned::Already(server),
        Verdict::New(_) => Pinned::Newly(server),
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.settle();
    }
}

/// A response's body, with the record of its exchange.
pub struct ReplyBody(Held);

enum Held {
    Own(Reply),
    /// An event stream, which a drain may take away.
    Stream(Rc<EventStream>),
    /// A tunnel's record goes with the tunnel.
    Nothing,
}

struct Reply {
    source: Source,
    exchange: Box<Exchange>,
    /// The server was asked for more, and has not given it yet.
    waits: bool,
}

enum Source {
    Local(Option<Bytes>),
    Server(UpstreamBody),
}

/// Gone once the drain has ended it.
struct EventStream(RefCell<Option<(Reply, StayGuard)>>);

/// A long-lived exchange that a drain has ended, in the log.
const DRAINED: &str = "drained";

impl Abandon for EventStream {
    fn abandon(&self) {
        if let Some((mut reply, _stay)) = self.0.take() {
            reply.exchange.error = Some(DRAINED);
        }
    }
}

impl ReplyBody {
    /// A reply of the proxy's own. To HEAD it has a length and no body: HTTP/2 would send one.
    pub(super) fn local(response: Response<Bytes>, exchange: Box<Exchange>) -> Response<Self> {
        let (mut parts, bytes) = response.into_parts();
        let is_head = exchange.is_head;
        let has_no_length = matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if is_head && !has_no_length {
            parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        }
        let bytes = Some(bytes).filter(|bytes| !bytes.is_empty() && !is_head);
        Response::from_parts(
            parts,
            ReplyBody(Held::Own(Reply { source: Source::Local(bytes), exchange, waits: false })),
        )
    }

    pub(super) fn from_server(body: UpstreamBody, exchange: Box<Exchange>, stay: Option<StayGuard>) -> Self {
        let reply = Reply { source: Source::Server(body), exchange, waits: false };
        let Some(stay) = stay else { return ReplyBody(Held::Own(reply)) };
        ReplyBody(Held::Stream(Rc::new_cyclic(|stream: &Weak<EventStream>| {
            let stream: Weak<dyn Abandon> = stream.clone();
            stay.may_abandon(stream);
            EventStream(RefCell::new(Some((reply, stay))))
        })))
    }

    pub(super) const fn of_tunnel() -> Self {
        ReplyBody(Held::Nothing)
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

impl Reply {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        let mut polled = match &mut self.source {
            Source::Local(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Server(body) => Pin::new(body).poll_frame(cx),
        };
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            headers::remove_reserved(trailers);
        }
        // What was there already has waited for us, and says nothing about its server.
        let waited = std::mem::replace(&mut self.waits, polled.is_pending());
        if waited && polled.is_ready() {
            self.exchange.given = Some(Clock::now());
        }
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.exchange.bytes_out += frame.data_ref().map_or(0, Bytes::len) as u64;
            }
            Poll::Ready(Some(Err(error))) => {
                self.exchange.error = Some(match error {
                    BodyError::Broken(_) => "response_broken",
                    BodyError::Silent => "response_silent",
                });
            }
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Local(bytes) => bytes.is_none(),
            Source::Server(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Local(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Server(body) => body.size_hint(),
        }
    }
}

impl EventStream {
    fn poll_frame(&self, cx: &mut Context<'_>) -> Polled {
        let mut held = self.0.borrow_mut();
        let Some((reply, stay)) = &mut *held else { return Poll::Ready(None) };
        if stay.poll_over(cx).is_pending() {
            return reply.poll_frame(cx);
        }
        drop(held);
        // It ends well for the client: a browser comes again, and says which event it has seen last.
        self.abandon();
        Poll::Ready(None)
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        match &mut self.0 {
            Held::Own(reply) => reply.poll_frame(cx),
            Held::Stream(stream) => stream.poll_frame(cx),
            Held::Nothing => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Held::Own(reply) => reply.is_end_stream(),
            // That it ends is known when it does.
            Held::Stream(_) => false,
            Held::Nothing => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Held::Own(reply) => reply.size_hint(),
            Held::Stream(_) => SizeHint::default(),
            Held::Nothing => SizeHint::with_exact(0),
        }
    }
}
