//! Where servers read and write the session of a request that they are answering, while they are.
//!
//! A request's nonce is the only credential, and it names one session: so there is nothing to configure, and nothing to
//! steal that would outlive the request. What is written here is true when the call returns; a cookie that comes of it
//! goes out with the response that the server is about to give. Where that has begun, whatever would need a cookie is
//! refused and not done.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use tokio_rustls::TlsAcceptor;

use crate::clock::Clock;
use crate::keys::SystemEntropy;
use crate::names::SessionEvent;
use crate::private::{Accepted, Connection, Socket};
use crate::runtime::{AttemptState, LiveAttempt, Runtime};
use crate::session::contract::{self, BadDirective, Nonce, add_operation};
use crate::session::operate::{self, Reference};
use crate::session::{Committed, Committer, CookieDecision, Directives, Recall, Refusal, Session, Turn, again};
use crate::store::{Client, Store};
use crate::tasks;

/// For a TLS handshake, a request's head, and its body.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections served at once: servers keep theirs open.
const MOST_CONNECTIONS: usize = 4_096;
const MOST_BODY_BYTES: usize = 1024 * 1024;

struct Api {
    runtime: Arc<Runtime>,
    clients: RefCell<Vec<(Arc<Store>, Rc<Client>)>>,
}

/// Serves the API for as long as the future is polled.
pub async fn serve(socket: Socket, runtime: Arc<Runtime>) {
    let api = Rc::new(Api { runtime, clients: RefCell::default() });
    let places = Arc::new(tokio::sync::Semaphore::new(MOST_CONNECTIONS));
    let ended = socket.accept_all(|accepted| {
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            // Closed at once: whoever asks too much is told so by that.
            return tracing::warn!(most = MOST_CONNECTIONS, "the session API has no place for another connection");
        };
        let api = Rc::clone(&api);
        // It ends with its peer, or by one of the timeouts.
        tasks::spawn(async move {
            api.open(accepted).await;
            drop(place);
        });
    });
    tracing::error!(error = %ended.await, "the session API cannot be served");
}

type Reply = Response<Full<Bytes>>;

/// Why a call is not answered as it was meant.
struct Problem(StatusCode, &'static str, String);

type Answer = Result<Reply, Problem>;

fn problem(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Problem {
    Problem(status, kind, detail.into())
}

impl Api {
    async fn open(self: &Rc<Self>, accepted: Accepted) {
        match accepted {
            Accepted::Unix(stream) => self.speak(stream).await,
            Accepted::Tcp(stream) => {
                let _ = stream.set_nodelay(true);
                let snapshot = self.runtime.snapshot();
                let Some(tls) = &snapshot.session_api_tls else { return self.speak(stream).await };
                let accepting = TlsAcceptor::from(Arc::clone(&tls.config)).accept(stream);
                if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, accepting).await {
                    self.speak(stream).await;
                }
            }
        }
    }

    async fn speak(self: &Rc<Self>, stream: impl Connection + 'static) {
        let service = service_fn(|request| {
            let api = Rc::clone(self);
            async move { Ok::<_, Infallible>(api.answer(request).await.unwrap_or_else(Reply::from)) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        // A connection that breaks is the peer's business.
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(self: &Rc<Self>, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        if path == "/.well-known/jwks.json" && request.method() == Method::GET {
            let now = Clock::wall(Clock::now()).seconds();
            return Ok(ok(&self.runtime.snapshot().token_keys.jwks(now)));
        }
        let live = self.attempt(&request)?;
        let call = Call { api: Rc::clone(self), client: self.client(&live.pool.store), live };
        match (request.method().as_str(), path.as_str()) {
            ("GET", "/v1/session") => call.get(&request).await,
            ("PATCH", "/v1/session") => call.patch(request).await,
            ("PUT", "/v1/session") => call.put(request).await,
            ("POST", "/v1/session/op") => call.operate(request).await,
            ("GET", "/v1/session/peers") => call.peers().await,
            ("DELETE", "/v1/session/peers") => call.end_peers().await,
            ("DELETE", path) if path.starts_with(PEER) => call.end_peer(&path[PEER.len()..]).await,
            (_, "/v1/session" | "/v1/session/op" | "/v1/session/peers") => {
                Err(problem(StatusCode::METHOD_NOT_ALLOWED, "method", "This is not what that is for."))
            }
            _ => Err(problem(StatusCode::NOT_FOUND, "path", "There is /v1/session, its /op and its /peers.")),
        }
    }

    fn attempt(&self, request: &Request<Incoming>) -> Result<Arc<LiveAttempt>, Problem> {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let credentials = given.and_then(|value| value.split_once(' '));
        let own = credentials.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Steadfast"));
        let nonce = own.and_then(|(_, text)| Nonce::parse(text.trim()));
        let live = nonce.and_then(|nonce| self.runtime.attempts.find(&nonce));
        live.ok_or_else(|| {
            let detail = "Show the request's own Steadfast-Session-Request, while it is being answered: \
                          `Authorization: Steadfast NONCE`.";
            problem(StatusCode::UNAUTHORIZED, "nonce", detail)
        })
    }

    fn client(&self, store: &Arc<Store>) -> Rc<Client> {
        let mut clients = self.clients.borrow_mut();
        if let Some((_, client)) = clients.iter().find(|(known, _)| Arc::ptr_eq(known, store)) {
            return Rc::clone(client);
        }
        let snapshot = self.runtime.snapshot();
        clients.retain(|(known, _)| snapshot.stores.iter().any(|store| Arc::ptr_eq(known, store)));
        let client = store.client(self.runtime.metrics.control());
        clients.push((Arc::clone(store), Rc::clone(&client)));
        client
    }
}

const PEER: &str = "/v1/session/peers/";

/// One call, for one attempt.
#[derive(Clone)]
struct Call {
    api: Rc<Api>,
    client: Rc<Client>,
    live: Arc<LiveAttempt>,
}

impl Call {
    fn now() -> u64 {
        Clock::wall(Clock::now()).seconds()
    }

    /// The session as it is now.
    async fn session(&self, state: &AttemptState) -> Result<Arc<Session>, Problem> {
        let Recall::Session(found) = &state.found else {
            return Err(problem(StatusCode::NOT_FOUND, "none", "The request has no session."));
        };
        let realm = &self.live.pool.realm;
        match again(realm, &*self.client, found, Self::now()).await {
            Ok(Recall::Session(now)) if !self.live.pool.store.owes_end(&now.lineage_key) => Ok(now),
            Ok(_) => Err(problem(StatusCode::GONE, "gone", "The session has ended, or was replaced.")),
            Err(error) => Err(Refusal::Store(error).into()),
        }
    }

    async fn get(&self, request: &Request<Incoming>) -> Answer {
        let state = self.live.state.lock().await;
        let session = self.session(&state).await?;
        let tag = entity_tag(&session);
        let known = request.headers().get(header::IF_NONE_MATCH).is_some_and(|known| known == tag);
        let mut reply = if known {
            let mut reply = Response::new(Full::default());
            *reply.status_mut() = StatusCode::NOT_MODIFIED;
            reply
        } else {
            ok(&self.described(&session))
        };
        reply.headers_mut().insert(header::ETAG, tag);
        Ok(reply)
    }

    fn described(&self, session: &Session) -> Value {
        let lineage = &session.lineage;
        let data: Value = serde_json::from_str(&lineage.data).unwrap_or_default();
        let mut meta = json!({
            "sid": lineage.sid.to_string(), "ver": lineage.version, "created": lineage.created,
            "st": if lineage.login.is_some() { "auth" } else { "anon" },
            "idle_exp": Self::now() + session.expires_in.as_secs(),
        });
        if let Some(login) = &lineage.login {
            meta["sub"] = (*login.subject).into();
            meta["auth_time"] = login.at.into();
            meta["acr"] = (*login.acr).into();
            meta["amr"] = login.amr.iter().map(|method| Value::from(&**method)).collect();
            meta["abs_exp"] = session.ends_at(&self.live.pool.realm).into();
        }
        json!({ "data": data, "meta": meta })
    }

    async fn patch(&self, request: Request<Incoming>) -> Answer {
        let only_if = if_match(&request)?;
        let patch = object_of(request, contract_bytes()).await?;
        self.write(Directives { patch: Some(patch), only_if, ..Directives::default() }).await
    }

    async fn put(&self, request: Request<Incoming>) -> Answer {
        let Some(only_if) = if_match(&request)? else {
            let detail = "A whole replacement needs If-Match: the version that it replaces.";
            return Err(problem(StatusCode::PRECONDITION_REQUIRED, "if-match", detail));
        };
        let whole = object_of(request, MOST_BODY_BYTES).await?;
        self.write(Directives { replace: Some(whole), only_if: Some(only_if), ..Directives::default() }).await
    }

    async fn operate(&self, request: Request<Incoming>) -> Answer {
        let body = object_of(request, contract_bytes()).await?;
        let text = |name: &str| match body.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            // Lists are nicer to write where there is JSON.
            Some(Value::Array(words)) => {
                let words: Option<Vec<&str>> = words.iter().map(Value::as_str).collect();
                words.map(|words| Some(words.join(" "))).ok_or(BadDirective::Parameter)
            }
            Some(_) => Err(BadDirective::Parameter),
        };
        let bad = |error: BadDirective| problem(StatusCode::BAD_REQUEST, "bad-directive", error.to_string());
        let name = text("op").map_err(bad)?.unwrap_or_default();
        let mut directives = Directives::default();
        let subject = || text("sub")?.ok_or(BadDirective::Parameter);
        add_operation(&name, subject, || contract::how(&text), &mut directives).map_err(bad)?;
        if directives.is_empty() {
            return Ok(no_content());
        }
        self.write(directives).await
    }

    /// Makes a change, unless it needs a cookie that can no longer go out. It is made to its end, also when the server
    /// does not wait for it: what comes of it goes out with the response.
    async fn write(&self, directives: Directives) -> Answer {
        let call = self.clone();
        let writing = tasks::spawn(async move { call.write_through(directives).await });
        writing.await.unwrap_or_else(|_| Err(Refusal::Contended.into()))
    }

    async fn write_through(&self, directives: Directives) -> Answer {
        let mut state = self.live.state.lock().await;
        self.still_counts()?;
        let needs_cookie = directives.turn.is_some() || state.found.session().is_none();
        if state.head_has_left && needs_cookie {
            let detail = "The response has begun: no cookie can go out with it any more. Nothing was done.";
            return Err(problem(StatusCode::CONFLICT, "head-sent", detail));
        }
        let pool = &self.live.pool;
        let committer = Committer { realm: &pool.realm, store: &*self.client, now: Self::now() };
        let committed = committer.commit(&state.found, &directives, &mut SystemEntropy).await;
        let committed = committed.inspect_err(|refusal| self.refused(&state.found, &directives, refusal))?;
        committed.events.iter().for_each(|event| self.count(*event));
        self.tell_of_ends(&committed).await;
        let mut reply = match &committed.now {
            Some(session) => {
                let mut reply = ok(&self.described(session));
                reply.headers_mut().insert(header::ETAG, entity_tag(session));
                reply
            }
            None => no_content(),
        };
        reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        remember(&mut state, committed, &directives);
        Ok(reply)
    }

    /// An attempt may have been given up while its server was still speaking.
    fn still_counts(&self) -> Result<(), Problem> {
        let detail = "The request's attempt has ended.";
        if self.live.counts() { Ok(()) } else { Err(problem(StatusCode::UNAUTHORIZED, "nonce", detail)) }
    }

    fn refused(&self, found: &Recall, directives: &Directives, refusal: &Refusal) {
        self.count(event_of(refusal));
        if let (Refusal::Store(_), Some(session)) = (refusal, found.session())
            && matches!(directives.turn, Some(Turn::Logout))
        {
            // It is over for this proxy, and for all as soon as the store answers.
            self.live.pool.store.owe_end(session.lineage_key);
            self.api.runtime.ended.note(&[session.lineage.sid]);
        }
    }

    async fn tell_of_ends(&self, committed: &Committed) {
        if !committed.ended.is_empty() {
            self.api.runtime.ended.note(&committed.ended);
            self.client.tell_of_ends(&committed.ended).await;
        }
    }

    async fn peers(&self) -> Answer {
        let state = self.live.state.lock().await;
        let session = self.session(&state).await?;
        let Some(login) = &session.lineage.login else { return Ok(ok(&json!({ "peers": [] }))) };
        let pool = &self.live.pool;
        let listed = operate::list(&pool.realm, &*self.client, &login.subject).await;
        let listed = listed.map_err(|error| Problem::from(Refusal::Store(error)))?;
        let peers = listed.into_iter().filter(|listed| listed.live).map(|listed| {
            let current = listed.reference.sid == session.lineage.sid;
            json!({ "ref": listed.reference.text(), "created": listed.created, "current": current })
        });
        Ok(ok(&json!({ "peers": peers.collect::<Vec<_>>() })))
    }

    async fn end_peers(&self) -> Answer {
        self.write(Directives { logout_others: true, ..Directives::default() }).await
    }

    /// Ends one other session of the same subject.
    async fn end_peer(&self, text: &str) -> Answer {
        let state = self.live.state.lock().await;
        self.still_counts()?;
        let session = self.session(&state).await?;
        let unknown = || problem(StatusCode::NOT_FOUND, "unknown", "No session of this subject has that name.");
        let login = session.lineage.login.as_ref().ok_or_else(unknown)?;
        let reference = Reference::parse(text).ok_or_else(unknown)?;
        let pool = &self.live.pool;
        let listed = operate::list(&pool.realm, &*self.client, &login.subject).await;
        let listed = listed.map_err(|error| Problem::from(Refusal::Store(error)))?;
        if !listed.iter().any(|listed| listed.reference == reference) {
            return Err(unknown());
        }
        let ended = operate::end_one(&pool.realm, &*self.client, &reference).await;
        let ended = ended.map_err(Problem::from)?.ok_or_else(unknown)?;
        self.count(SessionEvent::Revoked);
        self.api.runtime.ended.note(&[ended]);
        self.client.tell_of_ends(&[ended]).await;
        Ok(no_content())
    }

    fn count(&self, event: SessionEvent) {
        let metrics = self.api.runtime.metrics.pool(&self.live.pool.audience);
        metrics.cells.of(self.api.runtime.metrics.control()).session_events[event.index()].add(1);
    }
}

/// What the attempt has by now, and what its response has to say.
fn remember(state: &mut AttemptState, committed: Committed, directives: &Directives) {
    if let Some(session) = &committed.now {
        state.found = Recall::Session(session.clone());
    } else if matches!(directives.turn, Some(Turn::Logout | Turn::LogoutAll)) {
        state.found = Recall::None(crate::session::Absence::NoCookie);
    }
    let before = state.pending.take();
    let cookie = match (&committed.cookie, before) {
        (CookieDecision::Leave, Some(before)) => before.cookie,
        (cookie, _) => cookie.clone(),
    };
    state.pending = Some(Committed { cookie, events: Vec::new(), ended: Vec::new(), ..committed });
}

const fn event_of(refusal: &Refusal) -> SessionEvent {
    match refusal {
        Refusal::WrongVersion | Refusal::Gone | Refusal::Contended => SessionEvent::Conflict,
        Refusal::Bad(_) | Refusal::Oversized(_) | Refusal::Vault(_) => SessionEvent::BadDirective,
        Refusal::Store(_) => SessionEvent::StoreError,
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let (status, kind) = match &refusal {
            Refusal::WrongVersion => (StatusCode::PRECONDITION_FAILED, "version"),
            Refusal::Gone => (StatusCode::GONE, "gone"),
            Refusal::Contended => (StatusCode::CONFLICT, "contended"),
            Refusal::Bad(_) => (StatusCode::BAD_REQUEST, "bad-directive"),
            Refusal::Oversized(_) | Refusal::Vault(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
            Refusal::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "store"),
        };
        Problem(status, kind, refusal.to_string())
    }
}

impl From<Problem> for Reply {
    fn from(problem: Problem) -> Self {
        let Problem(status, kind, detail) = problem;
        let body = json!({
            "type": format!("urn:steadfast:session-api:{kind}"), "title": status.canonical_reason(),
            "status": status.as_u16(), "detail": detail,
        });
        let mut reply = Response::new(Full::from(body.to_string()));
        *reply.status_mut() = status;
        let headers = reply.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        reply
    }
}

fn ok(value: &Value) -> Reply {
    let mut reply = Response::new(Full::from(format!("{value}\n")));
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

fn no_content() -> Reply {
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = StatusCode::NO_CONTENT;
    reply
}

fn entity_tag(session: &Session) -> HeaderValue {
    HeaderValue::try_from(format!("\"{}\"", session.lineage.version))
        .unwrap_or_else(|_| HeaderValue::from_static("\"0\""))
}

/// The version that a change is for.
fn if_match(request: &Request<Incoming>) -> Result<Option<u64>, Problem> {
    let Some(value) = request.headers().get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().ok().map(str::trim);
    let version = text.and_then(|text| text.strip_prefix('"')?.strip_suffix('"')?.parse().ok());
    let detail = "If-Match is one version as ETag gave it, in quotes.";
    version.map(Some).ok_or_else(|| problem(StatusCode::BAD_REQUEST, "if-match", detail))
}

const fn contract_bytes() -> usize {
    crate::session::merge::MOST_PATCH_BYTES
}

/// The JSON object of a body of at most so many bytes.
async fn object_of(request: Request<Incoming>, most: usize) -> Result<Map<String, Value>, Problem> {
    let is_json = request.headers().get(header::CONTENT_TYPE).is_some_and(|value| {
        let media_type = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        [&b"application/json"[..], b"application/merge-patch+json"].contains(&media_type)
    });
    if !is_json {
        let detail = "Send application/json or application/merge-patch+json.";
        return Err(problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", detail));
    }
    let reading = tokio::time::timeout(PATIENCE, Limited::new(request.into_body(), most).collect());
    let Ok(Ok(body)) = reading.await else {
        return Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The body is too large, or did not come."));
    };
    contract::object(&body.to_bytes())
        .ok_or_else(|| problem(StatusCode::BAD_REQUEST, "json", "The body is no JSON object."))
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64URL_NOPAD;

    use super::*;

    #[test]
    fn a_nonce_reads_back_and_nothing_else_does() {
        let nonce = Nonce::new(&mut SystemEntropy);
        assert!(Nonce::parse(&nonce.text()) == Some(nonce));
        for wrong in ["", "x", &BASE64URL_NOPAD.encode(&[0; 15]), "AAAAAAAAAAAAAAAAAAAAA="] {
            assert!(Nonce::parse(wrong).is_none());
        }
    }
}
