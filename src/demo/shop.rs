//! One app server of the demo: a small shop. Its users' sessions are in its own memory, as in most applications; but
//! where the proxy keeps them, it has none.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
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

use super::sessions::{Fields, Keeping, Memory, Own, Session, Told};
use crate::tasks;

const MOST_NAME_CHARS: usize = 40;
const MOST_ITEM_CHARS: usize = 80;
const MOST_FORM_BYTES: usize = 16 * 1024;
const PAGE: &str = include_str!("page.html");
const LOST: &str = "<p id=\"lost\" role=\"alert\">Your session is gone: it was in the memory of the process that \
                    served you before, and nowhere else.</p>";

/// Serves one shop until the process is ended.
pub fn serve(name: &str, port: u16) -> io::Result<()> {
    // Who started us may be killed: then nobody else ends us.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shop = Rc::new(Shop { name: name.to_owned(), memory: RefCell::default() });
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
}

type Reply = Response<Full<Bytes>>;

impl Shop {
    async fn answer(&self, mut request: Request<Incoming>) -> Reply {
        let keeping = self.keeping(request.headers());
        match (request.method().clone(), request.uri().path()) {
            (Method::GET, "/healthz") => text(StatusCode::OK, "ok"),
            (Method::GET, "/ws") => echo(&mut request),
            (Method::GET, "/") => self.visit(&*keeping, Self::page),
            (Method::GET, "/api/whoami") => self.visit(&*keeping, Self::whoami),
            (Method::POST, "/login") => {
                let user = form_field(request.into_body(), "user", MOST_NAME_CHARS).await;
                see_home(user.map(|user| keeping.log_in(&user)).unwrap_or_default())
            }
            (Method::POST, "/logout") => see_home(keeping.log_out()),
            (Method::POST, "/cart") => {
                let item = form_field(request.into_body(), "item", MOST_ITEM_CHARS).await;
                see_home(item.map(|item| keeping.add(&item)).unwrap_or_default())
            }
            _ => text(StatusCode::NOT_FOUND, "There is no such page."),
        }
    }

    fn keeping(&self, headers: &HeaderMap) -> Box<dyn Keeping + '_> {
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
            .replace("{{mode}}", keeping.place())
            .replace("{{meaning}}", keeping.meaning())
            .replace("{{lost}}", if session.lost { LOST } else { "" })
            .replace("{{account}}", &account)
            .replace("{{cart}}", &cart);
        reply(StatusCode::OK, "text/html; charset=utf-8", page)
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

fn see_home(fields: Fields) -> Reply {
    let mut reply = text(StatusCode::SEE_OTHER, "");
    reply.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/"));
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

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// One field of a form, cut to so many characters; an empty one is none, and a form that is too large has none.
async fn form_field(body: Incoming, wanted: &str, most_chars: usize) -> Option<String> {
    let bytes = Limited::new(body, MOST_FORM_BYTES).collect().await.ok()?.to_bytes();
    let text = std::str::from_utf8(&bytes).ok()?;
    let value = text.split('&').find_map(|pair| pair.split_once('=').filter(|(name, _)| *name == wanted))?.1;
    let decoded = percent_encoding::percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().into_owned();
    Some(decoded.trim().chars().take(most_chars).collect()).filter(|text: &String| !text.is_empty())
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
