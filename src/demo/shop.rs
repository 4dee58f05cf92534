//! One app server of the demo: a small shop. Its users' sessions are in its own memory, as in most applications; but
//! where the proxy keeps them, or where users carry them along, it has none.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::LocalSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::carried::Carried;
use super::form::Form;
use super::issuer::{self, Issuer};
use super::pages;
use super::sessions::{Fields, Keeping, Memory, Own, Session, Told, subject};
use crate::tasks;

const MOST_NAME_CHARS: usize = 40;
const MOST_ITEM_CHARS: usize = 80;
const MOST_CODE_CHARS: usize = 16;

/// Serves one shop until the process is ended.
pub fn serve(name: &str, port: u16) -> io::Result<()> {
    // Who started us may be killed: then nobody else ends us.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let directory = std::env::var_os(issuer::DIRECTORY);
    let issuer = directory.map(|directory| Issuer::read(Path::new(&directory))).transpose()?;
    let shop = Rc::new(Shop { name: name.to_owned(), memory: RefCell::default(), issuer });
    LocalSet::new().block_on(&executor, async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let shop = Rc::clone(&shop);
            // The connection ends with its peer: the proxy, which closes what it does not use.
            tasks::spawn(async move {
                let service = service_fn(|request| {
                    let shop = Rc::clone(&shop);
                    async move { Ok::<_, Infallible>(shop.answer(request).await) }
                });
                let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
                // A connection that breaks is the peer's business.
                let _ = connection.await;
            });
        }
    })
}

struct Shop {
    name: String,
    memory: RefCell<Memory>,
    /// None where the server was started by itself: then it has no stateless shop.
    issuer: Option<Issuer>,
}

type Reply = Response<Full<Bytes>>;

impl Shop {
    async fn answer(&self, mut request: Request<Incoming>) -> Reply {
        let keeping = self.keeping(request.headers());
        if request.method() == Method::POST {
            let path = request.uri().path().to_owned();
            return act(&*keeping, &path, &Form::read(request.into_body()).await);
        }
        if request.method() != Method::GET {
            return no_page();
        }
        let query = Form::of_query(request.uri());
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok"),
            "/ws" => echo(&mut request),
            "/" => self.visit(&*keeping, Self::page),
            "/api/whoami" => self.visit(&*keeping, Self::whoami),
            "/login" => html(StatusCode::OK, pages::login(&query.way_back())),
            "/step-up" => ask_for_more(&*keeping, &query.way_back(), false),
            "/payout" => keeping.claims().map_or_else(no_page, |claims| html(StatusCode::OK, pages::payout(claims))),
            _ => no_page(),
        }
    }

    fn keeping(&self, headers: &HeaderMap) -> Box<dyn Keeping + '_> {
        if let Some(issuer) = self.issuer.as_ref().filter(|_| is_for_stateless(headers)) {
            return Box::new(Carried::of(issuer, headers));
        }
        match Told::of(headers) {
            Some(told) => Box::new(told),
            None => Box::new(Own::of(&self.memory, headers)),
        }
    }

    fn visit(&self, keeping: &dyn Keeping, show: fn(&Self, &dyn Keeping, &Session) -> Reply) -> Reply {
        let (session, fields) = keeping.visit();
        with_fields(show(self, keeping, &session), fields)
    }

    fn whoami(&self, keeping: &dyn Keeping, session: &Session) -> Reply {
        let body = json!({
            "server": self.name, "pid": std::process::id(),
            "user": session.user, "cart": session.cart, "visits": session.visits,
            "kept": keeping.place(), "lost": session.lost,
        });
        reply(StatusCode::OK, "application/json", format!("{body}\n"))
    }

    fn page(&self, keeping: &dyn Keeping, session: &Session) -> Reply {
        html(StatusCode::OK, pages::home(&self.name, keeping, session))
    }
}

/// Which shop is asked for: the proxy passes Host on as the client sent it. It is also all that there is to tell by on
/// the route whose tokens the proxy does not look at.
fn is_for_stateless(headers: &HeaderMap) -> bool {
    headers.get(header::HOST).is_some_and(|host| host.as_bytes().starts_with(b"stateless."))
}

/// What a form asks for.
fn act(keeping: &dyn Keeping, path: &str, form: &Form) -> Reply {
    match path {
        "/login" => {
            let fields = form.field("user", MOST_NAME_CHARS).map(|user| keeping.log_in(&user));
            see_other(&form.way_back(), fields.unwrap_or_default())
        }
        "/logout" => match keeping.revocation() {
            Some(revocation) => with_fields(html(StatusCode::OK, pages::logged_out(&revocation)), keeping.log_out()),
            None => see_other("/", keeping.log_out()),
        },
        "/cart" => {
            let fields = form.field("item", MOST_ITEM_CHARS).map(|item| keeping.add(&item));
            see_other("/", fields.unwrap_or_default())
        }
        "/step-up" => step_up(keeping, form),
        _ => no_page(),
    }
}

fn step_up(keeping: &dyn Keeping, form: &Form) -> Reply {
    let back = form.way_back();
    let is_right = form.field("code", MOST_CODE_CHARS).is_some_and(|code| code == pages::CODE);
    match keeping.step_up().filter(|_| is_right) {
        Some(fields) => see_other(&back, fields),
        None => ask_for_more(keeping, &back, !is_right),
    }
}

/// The page that asks for a code, once it is known whose; where the proxy knows of no users there is none.
fn ask_for_more(keeping: &dyn Keeping, back: &str, was_wrong: bool) -> Reply {
    let status = if was_wrong { StatusCode::FORBIDDEN } else { StatusCode::OK };
    match keeping.claims().map(subject) {
        Some(Some(user)) => html(status, pages::step_up(user, back, was_wrong)),
        Some(None) => html(StatusCode::FORBIDDEN, pages::login_first(back)),
        None => no_page(),
    }
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

fn text(status: StatusCode, body: &'static str) -> Reply {
    reply(status, "text/plain; charset=utf-8", body)
}

fn html(status: StatusCode, page: String) -> Reply {
    reply(status, "text/html; charset=utf-8", page)
}

fn no_page() -> Reply {
    text(StatusCode::NOT_FOUND, "There is no such page.")
}

fn see_other(place: &str, fields: Fields) -> Reply {
    let mut reply = text(StatusCode::SEE_OTHER, "");
    let location = HeaderValue::try_from(place).unwrap_or(HeaderValue::from_static("/"));
    reply.headers_mut().insert(header::LOCATION, location);
    with_fields(reply, fields)
}

fn with_fields(mut reply: Reply, fields: Fields) -> Reply {
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::try_from(value) {
            reply.headers_mut().append(name, value);
        }
    }
    reply
}

/// Sends every WebSocket message back.
fn echo(request: &mut Request<Incoming>) -> Reply {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return text(StatusCode::BAD_REQUEST, "This is for WebSockets.");
    };
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(request);
    // The echo ends with its peer.
    tasks::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut reply = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = reply.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    reply
}
