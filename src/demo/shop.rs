//! One app server of the demo: a small shop that keeps its users' sessions in its own memory, as most applications do.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
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

use crate::headers;
use crate::keys::random_secret;
use crate::tasks;

const COOKIE: &str = "shop_session";
/// Sessions remembered; the oldest is forgotten past it.
const MOST_SESSIONS: usize = 10_000;
const MOST_ITEMS: usize = 100;
const MOST_FORM_BYTES: usize = 16 * 1024;
const PAGE: &str = include_str!("page.html");

/// Serves one shop until the process is ended.
pub fn serve(name: &str, port: u16) -> io::Result<()> {
    // Who started us may be killed: then nobody else ends us.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shop = Rc::new(Shop { name: name.to_owned(), sessions: RefCell::default() });
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

#[derive(Default)]
struct Sessions {
    by_id: HashMap<String, Session>,
    /// The oldest first.
    order: VecDeque<String>,
}

#[derive(Clone, Default)]
struct Session {
    user: Option<String>,
    cart: Vec<String>,
    visits: u64,
}

struct Shop {
    name: String,
    sessions: RefCell<Sessions>,
}

type Reply = Response<Full<Bytes>>;

impl Shop {
    async fn answer(&self, mut request: Request<Incoming>) -> Reply {
        let id = session_id(request.headers());
        match (request.method().clone(), request.uri().path()) {
            (Method::GET, "/healthz") => text(StatusCode::OK, "ok"),
            (Method::GET, "/ws") => echo(&mut request),
            (Method::GET, "/") => self.visit(id, |shop, session| shop.page(session)),
            (Method::GET, "/api/whoami") => self.visit(id, |shop, session| shop.whoami(session)),
            (Method::POST, "/login") => {
                let user = form_field(request.into_body(), "user").await.unwrap_or_default();
                self.log_in(id, &user)
            }
            (Method::POST, "/logout") => self.log_out(id),
            (Method::POST, "/cart") => {
                let item = form_field(request.into_body(), "item").await.unwrap_or_default();
                self.change(id, |session| {
                    if session.cart.len() < MOST_ITEMS && !item.is_empty() {
                        session.cart.push(item);
                    }
                })
            }
            _ => text(StatusCode::NOT_FOUND, "There is no such page."),
        }
    }

    /// Shows something of the session, which is made on the first visit.
    fn visit(&self, id: Option<String>, show: impl FnOnce(&Self, &Session) -> Reply) -> Reply {
        let (id, session) = self.with_session(id, |session| {
            session.visits += 1;
            session.clone()
        });
        with_cookie(show(self, &session), &id)
    }

    /// Changes the session, then shows the page.
    fn change(&self, id: Option<String>, change: impl FnOnce(&mut Session)) -> Reply {
        let (id, ()) = self.with_session(id, change);
        with_cookie(see_home(), &id)
    }

    fn with_session<T>(&self, id: Option<String>, act: impl FnOnce(&mut Session) -> T) -> (String, T) {
        let mut sessions = self.sessions.borrow_mut();
        // An id that we did not give is never taken over.
        let id = id.filter(|id| sessions.by_id.contains_key(id)).unwrap_or_else(|| sessions.create());
        let acted = act(sessions.by_id.entry(id.clone()).or_default());
        (id, acted)
    }

    /// A login gets a new id, so that one that was planted before is worth nothing.
    fn log_in(&self, id: Option<String>, user: &str) -> Reply {
        let mut sessions = self.sessions.borrow_mut();
        let mut session = id.and_then(|id| sessions.by_id.remove(&id)).unwrap_or_default();
        session.user = Some(user.chars().take(40).collect()).filter(|user: &String| !user.is_empty());
        let id = sessions.create();
        sessions.by_id.insert(id.clone(), session);
        with_cookie(see_home(), &id)
    }

    fn log_out(&self, id: Option<String>) -> Reply {
        if let Some(id) = id {
            self.sessions.borrow_mut().by_id.remove(&id);
        }
        let mut reply = see_home();
        let expired = format!("{COOKIE}=; Path=/; Max-Age=0");
        if let Ok(value) = HeaderValue::try_from(expired) {
            reply.headers_mut().insert(header::SET_COOKIE, value);
        }
        reply
    }

    fn whoami(&self, session: &Session) -> Reply {
        let body = json!({
            "server": self.name, "pid": std::process::id(),
            "user": session.user, "cart": session.cart, "visits": session.visits,
        });
        reply(StatusCode::OK, "application/json", format!("{body}\n"))
    }

    fn page(&self, session: &Session) -> Reply {
        let account = match &session.user {
            Some(user) => format!(
                "<p>Logged in as <strong id=\"user\">{}</strong>.</p>\
                 <form method=\"post\" action=\"/logout\"><button>Log out</button></form>",
                escape(user)
            ),
            None => "<form method=\"post\" action=\"/login\"><label>Your name <input name=\"user\" required maxlength=\"40\">\
                     </label> <button id=\"login\">Log in</button></form>"
                .to_owned(),
        };
        let cart = session.cart.iter().map(|item| format!("<li>{}</li>", escape(item))).collect::<String>();
        let cart = if cart.is_empty() {
            "<p>The cart is empty.</p>".to_owned()
        } else {
            format!("<ul id=\"cart\">{cart}</ul>")
        };
        let page = PAGE
            .replace("{{server}}", &escape(&self.name))
            .replace("{{pid}}", &std::process::id().to_string())
            .replace("{{visits}}", &session.visits.to_string())
            .replace("{{account}}", &account)
            .replace("{{cart}}", &cart);
        reply(StatusCode::OK, "text/html; charset=utf-8", page)
    }
}

impl Sessions {
    fn create(&mut self) -> String {
        if self.order.len() >= MOST_SESSIONS
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
        let id = HEXLOWER.encode(&random_secret()[..16]);
        self.order.push_back(id.clone());
        self.by_id.insert(id.clone(), Session::default());
        id
    }
}

fn session_id(headers: &HeaderMap) -> Option<String> {
    let mut ours = headers::cookies(headers).filter(|(name, _)| *name == COOKIE.as_bytes());
    ours.next().and_then(|(_, value)| String::from_utf8(value.to_vec()).ok())
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

fn see_home() -> Reply {
    let mut reply = text(StatusCode::SEE_OTHER, "");
    reply.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/"));
    reply
}

fn with_cookie(mut reply: Reply, id: &str) -> Reply {
    let cookie = format!("{COOKIE}={id}; Path=/; HttpOnly; SameSite=Lax; Secure");
    if let Ok(value) = HeaderValue::try_from(cookie) {
        reply.headers_mut().append(header::SET_COOKIE, value);
    }
    reply
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// One field of a form; a form that is too large or no form has none.
async fn form_field(body: Incoming, wanted: &str) -> Option<String> {
    let bytes = Limited::new(body, MOST_FORM_BYTES).collect().await.ok()?.to_bytes();
    let text = std::str::from_utf8(&bytes).ok()?;
    let value = text.split('&').find_map(|pair| pair.split_once('=').filter(|(name, _)| *name == wanted))?.1;
    let decoded = percent_encoding::percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().into_owned();
    Some(decoded.trim().chars().take(80).collect())
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
