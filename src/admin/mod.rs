//! The admin surface: metrics, health and the operator's hands, on an address that clients do not reach.

mod access;
mod api;
mod connections;
mod describe;
mod explain;
mod revocations;
mod sessions;

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::Registry;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

use connections::{Connections, Place, Room};
use revocations::Tokens;
use sessions::Sessions;

use crate::clock::Clock;
use crate::keys::Token;
use crate::metrics;
use crate::names::Limit;
use crate::private::{Accepted, Connection, Socket};
use crate::runtime::Runtime;
use crate::tls::Names;

/// Dashboards and other readers of the stream, among them.
const MOST_STREAMS: usize = 32;
/// For a TLS handshake, a request's head, and its body.
const PATIENCE: Duration = Duration::from_secs(30);

/// A reload that the API asks for, and where its result goes: none for taken, or every problem.
pub type ReloadRequest = oneshot::Sender<Result<(), Value>>;

struct Surface {
    runtime: Arc<Runtime>,
    /// Who reloads; none on the address that only serves metrics.
    reloads: Option<mpsc::Sender<ReloadRequest>>,
    sessions: Sessions,
    tokens: Tokens,
    registry: Registry,
    connections: Connections,
    /// Places of event streams among them: whoever forgets a dashboard must not shut out the others.
    streams: Arc<tokio::sync::Semaphore>,
}

/// Serves one address for as long as the future is polled. With someone to ask for reloads it is the operator's, else it
/// has metrics and health only.
pub async fn serve(socket: Socket, runtime: Arc<Runtime>, reloads: Option<mpsc::Sender<ReloadRequest>>) {
    let registry = match runtime.metrics.registry() {
        Ok(registry) => registry,
        Err(error) => return tracing::error!(%error, "metrics cannot be registered"),
    };
    let streams = Arc::new(tokio::sync::Semaphore::new(MOST_STREAMS));
    let sessions = Sessions::new(Arc::clone(&runtime));
    let tokens = Tokens::new(Arc::clone(&runtime));
    let connections = Connections::default();
    let surface = Rc::new(Surface { runtime, reloads, sessions, tokens, registry, connections, streams });
    let ended = socket.accept_all(|accepted| {
        let serving = Rc::clone(&surface);
        surface.open(|place| async move { serving.begin(accepted, place).await });
    });
    tracing::error!(error = %ended.await, "the admin surface cannot be served");
}

impl Surface {
    fn open<F: Future<Output = ()> + 'static>(&self, serve: impl FnOnce(Rc<Place>) -> F) {
        if self.connections.open(serve) == Room::Made {
            self.limit_reached(Limit::AdminConnections);
        }
    }

    async fn begin(self: &Rc<Self>, accepted: Accepted, place: Rc<Place>) {
        let local = accepted.local();
        let stream = match accepted {
            Accepted::Unix(stream) => return self.speak(stream, None, None, place).await,
            Accepted::Tcp(stream) => stream,
        };
        let snapshot = self.runtime.snapshot();
        let Some(tls) = snapshot.admin_tls.as_ref().filter(|_| self.reloads.is_some()) else {
            return self.speak(stream, local, None, place).await;
        };
        let accepting = TlsAcceptor::from(Arc::clone(&tls.config)).accept(stream);
        let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, accepting).await else { return };
        let names = tls.facts(stream.get_ref().1).names;
        drop(snapshot);
        self.speak(stream, local, Some(names), place).await;
    }

    async fn speak(
        self: &Rc<Self>,
        stream: impl Connection + 'static,
        local: Option<IpAddr>,
        names: Option<Arc<Names>>,
        place: Rc<Place>,
    ) {
        let service = service_fn(|request| {
            let (surface, names, place) = (Rc::clone(self), names.clone(), Rc::clone(&place));
            async move { Ok::<_, Infallible>(surface.answer(request, local, names.as_deref(), &place).await) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        local: Option<IpAddr>,
        names: Option<&Names>,
        place: &Place,
    ) -> Reply {
        let path = request.uri().path();
        if let Some(reloads) = &self.reloads {
            if let Err(why) = access::check_origin(&request, local, names) {
                return problem(StatusCode::FORBIDDEN, why);
            }
            if !is_for_anybody(request.method(), path) {
                if !self.is_let_in(&request) {
                    return refuse_entry();
                }
                if self.runtime.snapshot().admin.token.is_some() {
                    place.keep();
                }
            }
            match (request.method(), path) {
                (&Method::GET, STREAM) => return self.stream(),
                (&Method::POST, LOGIN) => return self.login(request).await,
                _ if path.starts_with(api::PREFIX) => {
                    return api::answer(
                        &self.runtime,
                        &self.registry,
                        (&self.sessions, &self.tokens),
                        reloads,
                        request,
                    )
                    .await;
                }
                _ => {}
            }
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return problem(StatusCode::METHOD_NOT_ALLOWED, "Only GET is served here.");
        }
        if let Some(page) = self.reloads.as_ref().and_then(|_| dashboard(path)) {
            return page;
        }
        match path {
            "/metrics" => match metrics::encode(&self.registry) {
                Ok(text) => reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
                Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            // Servers check by these what they are told of sessions.
            "/.well-known/jwks.json" => {
                let now = Clock::wall(Clock::now()).seconds();
                reply(StatusCode::OK, "application/json", format!("{}\n", self.runtime.snapshot().token_keys.jwks(now)))
            }
            "/healthz" => reply(StatusCode::OK, "text/plain", "ok\n"),
            "/readyz" if self.runtime.ready.load(Ordering::Relaxed) => reply(StatusCode::OK, "text/plain", "ready\n"),
            "/readyz" => reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not ready\n"),
            _ => problem(StatusCode::NOT_FOUND, "There is /metrics, /healthz, /readyz, and the API under /api/v1/."),
        }
    }

    fn limit_reached(&self, limit: Limit) {
        self.runtime.metrics.limit_reached(self.runtime.metrics.control(), limit);
    }

    /// Whether there is no token, or the request shows it.
    fn is_let_in(&self, request: &Request<Incoming>) -> bool {
        let snapshot = self.runtime.snapshot();
        let now = Clock::wall(Clock::now());
        let let_in = |token| access::is_let_in(request.headers(), token, &snapshot.admin_logins, now);
        let is_let_in = snapshot.admin.token.as_ref().is_none_or(let_in);
        if !is_let_in {
            self.runtime.metrics.entry_refused();
        }
        is_let_in
    }

    /// Trades the token for a cookie.
    async fn login(&self, request: Request<Incoming>) -> Reply {
        let body = match api::body_of(request).await {
            Ok(body) => body,
            Err(refusal) => return refusal.into(),
        };
        let snapshot = self.runtime.snapshot();
        let Some(token) = &snapshot.admin.token else {
            return problem(StatusCode::NOT_FOUND, "There is no token, and nothing to log in to.");
        };
        let given = body.get("token").and_then(Value::as_str).unwrap_or_default();
        if !token.is(given.as_bytes()) {
            self.runtime.metrics.entry_refused();
            return refuse_entry();
        }
        let mut response = reply(StatusCode::OK, "application/json", "{\"logged_in\":true}\n");
        let cookie = access::login_cookie(token, &snapshot.admin_logins, Clock::wall(Clock::now()));
        response.headers_mut().extend(cookie.map(|cookie| (header::SET_COOKIE, cookie)));
        response
    }

    /// One snapshot a second, for as long as the client stays and its token counts.
    fn stream(&self) -> Reply {
        let Ok(place) = Arc::clone(&self.streams).try_acquire_owned() else {
            self.limit_reached(Limit::AdminStreams);
            return problem(StatusCode::SERVICE_UNAVAILABLE, "Too many streams are open; close one.");
        };
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let token = |runtime: &Runtime| runtime.snapshot().admin.token.as_ref().map(Token::name);
        let let_in_by = token(&self.runtime);
        let sources = (Arc::clone(&self.runtime), self.registry.clone());
        let events = futures_util::stream::unfold((ticks, sources, place), move |mut state| async move {
            state.0.tick().await;
            let (runtime, registry) = &state.1;
            if token(runtime) != let_in_by {
                return None;
            }
            let event = format!("data: {}\n\n", describe::everything(runtime, registry));
            Some((Ok(Frame::data(Bytes::from(event))), state))
        });
        let mut response = reply(StatusCode::OK, "text/event-stream", "");
        *response.body_mut() = StreamBody::new(events).boxed_unsync();
        response
    }
}

const STREAM: &str = "/api/v1/stream";
const LOGIN: &str = "/api/v1/login";

/// The dashboard and what it is made of, by path. It shows what the API says, so it is the same for everybody, and asks
/// for the token where there is one.
const DASHBOARD: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("dashboard/index.html")),
    ("/dashboard.css", "text/css; charset=utf-8", include_str!("dashboard/style.css")),
    ("/dashboard.js", "text/javascript; charset=utf-8", include_str!("dashboard/script.js")),
];

/// Its own script and style, its own API, and nothing that is written into the page: a name that gets there as markup
/// does nothing.
const DASHBOARD_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

fn dashboard(path: &str) -> Option<Reply> {
    let (_, content_type, text) = DASHBOARD.into_iter().find(|(own, ..)| *own == path)?;
    let mut response = reply(StatusCode::OK, content_type, text);
    let fields: [(HeaderName, &str); 3] = [
        (header::CONTENT_SECURITY_POLICY, DASHBOARD_POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    response.headers_mut().extend(fields.map(|(name, value)| (name, HeaderValue::from_static(value))));
    Some(response)
}

/// Health is for balancers and supervisors, which know no token, and public keys are for everybody; and who logs in does not have the cookie yet.
fn is_for_anybody(method: &Method, path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/.well-known/jwks.json")
        || (method == Method::POST && path == LOGIN)
        || DASHBOARD.iter().any(|(own, ..)| *own == path)
}

fn refuse_entry() -> Reply {
    let mut response = problem(StatusCode::UNAUTHORIZED, "Show the admin token: `Authorization: Bearer TOKEN`.");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"steadfast\""));
    response
}

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn problem(status: StatusCode, detail: &str) -> Reply {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = serde_json::json!({ "title": title, "status": status.as_u16(), "detail": detail });
    reply(status, "application/problem+json", body.to_string())
}
