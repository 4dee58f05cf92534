//! The life of an exchange, in seven steps: identify, route, recall, admit, attempt, answer, settle.
//!
//! `Worker::handle` is the order; each step is a short function here or a module beside it. An exchange reads the
//! snapshot once. Whatever happens, it is settled exactly once: its record travels with the response's body and closes
//! the books when that is dropped.

#![allow(
    clippy::redundant_allocation,
    reason = "Rc<Arc<Snapshot>>: exchanges of a worker count their uses apart from other workers"
)]

mod access_log;
mod answer;
mod attempt;
mod error;
mod exchange;
mod identify;
mod long_lived;
mod protect;
mod reply;
mod session;
mod stateless;
mod visitor;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;

pub use access_log::{AccessLogs, Record};
use error::{Error, Kind};
use exchange::Exchange;
pub use exchange::ReplyBody;
use identify::Identity;
use long_lived::LongLived;
use visitor::{Entry, Shows};

use crate::affinity::{Asked, Recalled};
use crate::clock::{Clock, Moment, Ticker};
use crate::config::{Action, Route};
use crate::headers::{self, UnsafeNames};
use crate::listener::{Downstream, Handler};
use crate::metrics::{NO_POOL, PoolMetrics, WorkerId};
use crate::names::{Decision, HeaderReason, Limit, NoneWhy, RateBy, Verdict};
use crate::protect::is_never_for_servers;
use crate::rate::Rate;
use crate::routing;
use crate::runtime::{PoolEntry, Runtime, Snapshot};
use crate::session::Sid;
use crate::store::Client;
use crate::tasks;
use crate::tls::Facts;
use crate::upstream::{Conns, RequestBody};

/// Answers exchanges on one worker.
#[derive(Clone)]
pub struct Proxy(Rc<Worker>);

/// What the exchanges of one worker share.
pub struct Worker {
    id: WorkerId,
    runtime: Arc<Runtime>,
    snapshot: RefCell<(u64, Rc<Arc<Snapshot>>)>,
    conns: Rc<Conns>,
    ticker: Rc<Ticker>,
    random: RefCell<fastrand::Rng>,
    no_pool: Arc<PoolMetrics>,
    logs: Option<Arc<AccessLogs>>,
    long_lived: Rc<LongLived>,
    sessions: session::Sessions,
    guests: stateless::Tokens,
    hsts: RefCell<Option<HeaderValue>>,
    /// How many ended sessions this worker has heard of.
    ended_seen: Cell<u64>,
}

impl Proxy {
    /// A proxy for one worker.
    pub fn new(
        id: WorkerId,
        runtime: Arc<Runtime>,
        ticker: Rc<Ticker>,
        conns: Rc<Conns>,
        random: fastrand::Rng,
        logs: Option<Arc<AccessLogs>>,
    ) -> Self {
        let snapshot = RefCell::new((runtime.generation(), Rc::new(runtime.snapshot())));
        let no_pool = runtime.metrics.pool(NO_POOL);
        let random = RefCell::new(random);
        let long_lived = Rc::default();
        Proxy(Rc::new(Worker {
            id,
            runtime,
            snapshot,
            conns,
            ticker,
            random,
            no_pool,
            logs,
            long_lived,
            sessions: session::Sessions::default(),
            guests: stateless::Tokens::default(),
            hsts: RefCell::default(),
            ended_seen: Cell::new(0),
        }))
    }

    /// Ends the tunnels and event streams of servers whose drain has had its time. To be called about once a second.
    pub fn sweep(&self, now: Moment) {
        let snapshot = self.0.snapshot();
        self.0.sessions.keep_to(&snapshot);
        self.0.guests.keep_to(&snapshot);
        self.0.long_lived.sweep(now);
    }

    /// Ends the tunnels and event streams of sessions that have ended; to be called often.
    pub fn end_of_sessions(&self) {
        let mut seen = self.0.ended_seen.get();
        let ended = self.0.runtime.ended.since(&mut seen);
        self.0.ended_seen.set(seen);
        if !ended.is_empty() {
            self.0.long_lived.end_sessions(&ended);
        }
    }

    /// Ends all tunnels and event streams, each as its protocol has it; says how many there are.
    pub fn end_long_lived(&self) -> usize {
        self.0.long_lived.end_all();
        self.0.long_lived.count()
    }
}

impl Handler for Proxy {
    type Body = ReplyBody;

    fn handle(
        &self,
        request: Request<Incoming>,
        downstream: Rc<Downstream>,
    ) -> impl Future<Output = Response<ReplyBody>> + use<> + 'static {
        let worker = Rc::clone(&self.0);
        async move { worker.handle(request, downstream).await }
    }
}

/// A request that has passed admission, ready for its attempts.
struct Admitted {
    parts: Parts,
    body: RequestBody,
    wants_upgrade: bool,
}

impl Worker {
    /// The snapshot in force; cached, so that workers share no counter on the way.
    fn snapshot(&self) -> Rc<Arc<Snapshot>> {
        let mut cached = self.snapshot.borrow_mut();
        let generation = self.runtime.generation();
        if cached.0 != generation {
            *cached = (generation, Rc::new(self.runtime.snapshot()));
        }
        Rc::clone(&cached.1)
    }

    async fn handle(self: Rc<Self>, request: Request<Incoming>, downstream: Rc<Downstream>) -> Response<ReplyBody> {
        let (parts, incoming) = request.into_parts();
        let snapshot = self.snapshot();
        let mut exchange = Exchange::begin(Rc::clone(&self), Rc::clone(&snapshot), downstream, &parts, Clock::now());
        let served = self.serve(&mut exchange, &snapshot, parts, incoming).await;
        // What no server has answered is still without it.
        let hsts = exchange.hsts.take();
        let mut response = match served {
            Ok(answer) => answer::release(answer, exchange),
            Err(error) => reply::refusal(error, exchange),
        };
        protect::add_hsts(hsts, response.headers_mut());
        response
    }

    async fn serve(
        self: &Rc<Self>,
        exchange: &mut Exchange,
        snapshot: &Rc<Arc<Snapshot>>,
        mut parts: Parts,
        incoming: Incoming,
    ) -> Result<answer::Answer, Error> {
        let identity = identify::identify(snapshot, &exchange.downstream, &parts, &mut self.random.borrow_mut());
        let identity = identity.map_err(|reason| self.refuse(reason))?;
        exchange.identified(&identity);
        exchange.hsts = self.hsts(snapshot, &identity.hop.origin, exchange.downstream.tls.as_ref());
        if parts.method == Method::CONNECT {
            return Err(self.refuse(HeaderReason::Method));
        }
        if let Some(port) = exchange.downstream.endpoint.settings.redirect_port {
            return Ok(answer::Answer::Local(reply::redirect_to_https(&identity, port, &parts.uri)));
        }
        self.check_head(exchange, &parts)?;
        let (route, path) = self.route(exchange, snapshot, &identity, &parts)?;
        let (at, entry) = match &route.action {
            Action::Respond { status, body } => {
                return Ok(answer::Answer::Local(reply::fixed(*status, body.clone(), &route.response_headers)));
            }
            Action::Redirect(to) => {
                return Ok(answer::Answer::Local(reply::redirect(to, &path, &parts.uri, &route.response_headers)));
            }
            Action::Pool(pool) => (*pool, &snapshot.pools[*pool]),
        };
        let https = identity.hop.origin.https;
        let recalled = self.recall(exchange, route, entry, &parts, https);
        self.limit_rate(exchange, snapshot, route, &recalled)?;
        if let Some(cookie) = &entry.counted_cookie {
            session::count_only(exchange, cookie, &parts);
        }
        let shows = Shows::of(self, exchange, snapshot, route, entry, &identity, &path, &mut parts)?;
        let mut admitted = self.admit(exchange, snapshot, route, entry, &identity, &path, parts, incoming)?;
        let visitor = match shows.enter(self, exchange, snapshot, route, (at, entry), &path, &mut admitted).await? {
            Entry::Goes(visitor) => visitor,
            Entry::Elsewhere(reply) => return Ok(answer::Answer::Local(reply)),
        };
        let visit = visitor.visit();
        let attempted = attempt::run(self, exchange, entry, &recalled, visit, https, admitted).await;
        let attempted = match (attempted, visit) {
            (Err(error), Some(visit)) => return Err(Box::pin(visit.give_up(error)).await),
            (attempted, _) => attempted?,
        };
        Ok(answer::from_server(self, exchange, route, entry, &recalled, visit, &identity.hop.origin, attempted).await)
    }

    /// What browsers are told of TLS, where they can keep to it.
    fn hsts(&self, snapshot: &Snapshot, origin: &headers::Origin, tls: Option<&Facts>) -> Option<HeaderValue> {
        let value = snapshot.protect.hsts.as_ref()?;
        let self_signed = tls.is_some_and(|tls| tls.self_signed);
        let said = crate::protect::hsts(Some(value), origin, self_signed)?;
        let mut own = self.hsts.borrow_mut();
        // A copy of this worker's own: others would count its uses too.
        if own.as_ref() != Some(said) {
            *own = HeaderValue::from_bytes(said.as_bytes()).ok();
        }
        own.clone()
    }

    /// Counts a request whose head is refused.
    fn refuse(&self, reason: HeaderReason) -> Error {
        self.runtime.metrics.header_decision(self.id, Decision::Rejected, reason);
        Error::new(Kind::Head(reason))
    }

    /// Refuses a head that is too long, or has too many fields. A browser that has more cookies than are let in would get
    /// that for ever: it is told to forget them, once in a while.
    fn check_head(&self, exchange: &Exchange, parts: &Parts) -> Result<(), Error> {
        let limits = &exchange.downstream.endpoint.settings.limits;
        let size = headers::HeadSize::of(&parts.method, &parts.uri, &parts.headers);
        let most = usize::try_from(limits.header_bytes).unwrap_or(usize::MAX);
        if size.bytes <= most && size.fields <= limits.header_count {
            return Ok(());
        }
        self.runtime.metrics.limit_reached(self.id, Limit::HeaderSize);
        if size.fields > limits.header_count || size.bytes - size.cookie_bytes > most {
            return Err(Error::new(Kind::HeadTooLarge));
        }
        let cleared = protect::is_navigation(parts)
            && self.runtime.clearings.admit(*CLEARING, client_key(exchange.client), exchange.arrived).is_ok();
        Err(Error::new(Kind::CookiesTooLarge { cleared }))
    }

    fn route<'s>(
        &self,
        exchange: &mut Exchange,
        snapshot: &'s Snapshot,
        identity: &Identity,
        parts: &Parts,
    ) -> Result<(&'s Route, String), Error> {
        let asterisk = parts.method == Method::OPTIONS && parts.uri.path() == "*";
        let written = if asterisk { "/" } else { parts.uri.path() };
        let path = routing::normalise(written).map_err(|_| self.refuse(HeaderReason::BadPath))?.into_owned();
        let listener = exchange.downstream.endpoint.id();
        let route = snapshot.route(&identity.hop.host, &path, listener).ok_or(Error::new(Kind::NoRoute))?;
        exchange.routed(route, &path);
        Ok((&snapshot.routes[route], path))
    }

    /// Refuses who asks too often. A session that only the client vouches for is none: it counts by address.
    fn limit_rate(
        &self,
        exchange: &Exchange,
        snapshot: &Snapshot,
        route: &Route,
        recalled: &Recalled,
    ) -> Result<(), Error> {
        let Some((limit, rates)) = route.rate.zip(exchange.route.and_then(|route| snapshot.rates(route))) else {
            return Ok(());
        };
        let session = recalled.known_session().filter(|_| limit.by == RateBy::Session);
        let key = session.unwrap_or_else(|| client_key(exchange.client));
        rates.admit(limit.rate, key, exchange.arrived).map_err(|wait| {
            self.runtime
                .metrics
                .rate_exceeded(self.id, if session.is_some() { RateBy::Session } else { RateBy::Client });
            let retry_after = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
            Error::new(Kind::RateExceeded { retry_after })
        })
    }

    /// What needs no identity: limits, header hygiene, and what the server is told.
    #[allow(clippy::too_many_arguments, reason = "the facts of one request, each from another step")]
    fn admit(
        &self,
        exchange: &mut Exchange,
        snapshot: &Snapshot,
        route: &Route,
        entry: &PoolEntry,
        identity: &Identity,
        path: &str,
        mut parts: Parts,
        incoming: Incoming,
    ) -> Result<Admitted, Error> {
        let settings = &exchange.downstream.endpoint.settings;
        if !headers::transfer_coding_is_plain(&parts.headers) {
            return Err(self.refuse(HeaderReason::TransferCoding));
        }
        self.clean_names(settings.unsafe_names, route, &mut parts.headers)?;
        let keep_most = if entry.retry.attempts > 1 { entry.retry.body_bytes } else { 0 };
        let announced = http_body::Body::size_hint(&incoming).lower();
        if route.body_bytes > 0 && announced > route.body_bytes {
            self.runtime.metrics.limit_reached(self.id, Limit::BodyBytes);
            return Err(Error::new(Kind::BodyTooLarge));
        }
        let body = RequestBody::new(incoming, keep_most, route.body_bytes);
        exchange.body = Some(body.clone());
        let wants_upgrade = prepare_head(snapshot, route, entry, identity, exchange, &mut parts);
        set_path(&mut parts, path, route).map_err(|reason| self.refuse(reason))?;
        Ok(Admitted { parts, body, wants_upgrade })
    }

    fn clean_names(&self, unsafe_names: UnsafeNames, route: &Route, headers: &mut HeaderMap) -> Result<(), Error> {
        let count = |decision| self.runtime.metrics.header_decision(self.id, decision, HeaderReason::UnsafeName);
        if headers.keys().any(headers::is_reserved) {
            count(Decision::Stripped);
            headers::remove_reserved(headers);
        }
        if unsafe_names == UnsafeNames::Pass {
            for name in headers::unsafe_names(headers)
                .into_iter()
                .filter(|name| headers::is_alias_of_ours(name, &route.request_headers.set))
            {
                count(Decision::Stripped);
                headers.remove(name);
            }
            return Ok(());
        }
        for name in headers::unsafe_names(headers) {
            if unsafe_names == UnsafeNames::Reject {
                return Err(self.refuse(HeaderReason::UnsafeName));
            }
            count(Decision::Stripped);
            headers.remove(name);
        }
        Ok(())
    }

    /// Sessions have ended: what is open of theirs is closed here at once, and elsewhere as soon as it is told.
    fn end_sessions(&self, client: &Rc<Client>, ended: &[Sid]) {
        if ended.is_empty() {
            return;
        }
        self.runtime.ended.note(ended);
        let (client, ended) = (Rc::clone(client), ended.to_vec());
        // It ends with the store's deadline.
        tasks::spawn(async move { client.tell_of_ends(&ended).await });
    }

    /// What the request says about where it belongs.
    fn recall(
        &self,
        exchange: &mut Exchange,
        route: &Route,
        entry: &PoolEntry,
        parts: &Parts,
        https: bool,
    ) -> Recalled {
        // Whatever is refused from here on has this verdict, until a server is chosen.
        exchange.verdict = Some(Verdict::None(NoneWhy::Rejected));
        let Some(affinity) = entry.pool.affinity.as_ref().filter(|_| route.sticky) else {
            return Recalled::none(NoneWhy::NotSticky);
        };
        let preflight =
            parts.method == Method::OPTIONS && parts.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if preflight {
            return Recalled::none(NoneWhy::Preflight);
        }
        let now = Clock::wall(exchange.arrived);
        let recalled = affinity.recall(&Asked { headers: &parts.headers, https, client: exchange.client, now });
        exchange.session = recalled.session();
        recalled
    }
}

/// How often a client's browser is told to forget its cookies.
static CLEARING: LazyLock<Rate> = LazyLock::new(|| Rate::new(1, Duration::from_secs(60), 1));

/// What stands for a client: its address, or its IPv6 network of 64 bits, which is one customer's.
fn client_key(client: IpAddr) -> u64 {
    match client {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => u64::from(u32::from(address)),
            None => (u128::from(address) >> 64) as u64,
        },
    }
}

/// Cleans the head and writes what the server is told; says whether the client wants another protocol.
fn prepare_head(
    snapshot: &Snapshot,
    route: &Route,
    entry: &PoolEntry,
    identity: &Identity,
    exchange: &Exchange,
    parts: &mut Parts,
) -> bool {
    let downstream = &exchange.downstream;
    let wanted = headers::wanted_upgrade(&parts.headers).filter(|_| !downstream.http2);
    let trailers = headers::accepts_trailers(&parts.headers);
    let headers = &mut parts.headers;
    headers::remove_hop_by_hop(headers);
    headers::remove_not_for_servers(headers);
    match headers::rewritten_cookies(headers, |name| {
        is_never_for_servers(name) || snapshot.is_not_for_servers(name, identity.hop.origin.https, entry)
    }) {
        Some(Some(line)) => drop(headers.insert(header::COOKIE, line)),
        Some(None) => drop(headers.remove(header::COOKIE)),
        None => {}
    }
    headers::tell_server(
        headers,
        &headers::Told {
            hop: &identity.hop,
            peer_is_trusted: identity.peer_is_trusted,
            forwarded_by: snapshot.process.forwarded,
            request_id: &identity.request_id,
            http2: downstream.http2,
        },
    );
    if let Some(certificate) = downstream.tls.as_ref().and_then(|tls| tls.client_certificate.as_deref()) {
        headers::tell_client_certificate(headers, certificate);
    }
    route.request_headers.apply(headers);
    headers.insert(header::HOST, identity.hop.authority.clone());
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let Some(protocol) = wanted else { return false };
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
    true
}

/// The path that was matched on is the path that is forwarded.
fn set_path(parts: &mut Parts, path: &str, route: &Route) -> Result<(), HeaderReason> {
    if parts.uri.path() == "*" {
        parts.uri = http::Uri::from_static("*");
        return Ok(());
    }
    let stripped = route.strip_prefix.then(|| path.strip_prefix(&*route.matches.path)).flatten();
    let wanted = match stripped {
        Some("") => "/",
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    };
    let origin_form = parts.uri.authority().is_none();
    if origin_form && parts.uri.path() == wanted {
        return Ok(());
    }
    let text = match parts.uri.query() {
        Some(query) => format!("{wanted}?{query}"),
        None => wanted.to_owned(),
    };
    parts.uri = http::Uri::try_from(text).map_err(|_| HeaderReason::BadPath)?;
    Ok(())
}
