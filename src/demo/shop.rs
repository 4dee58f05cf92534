//! One app server of the demo: a small shop. Its users' sessions are in its own memory, as in most applications; but
//! where the proxy keeps them, or where users carry them along, it has none.
//!
//! So it is three shops in one, and each has workers of its own: what happens in one disturbs no other, and the three
//! can be compared. A page takes a worker for a while, longer when the process is told to be slow on its standard input.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::carried::Carried;
use super::configuration::MODES;
use super::form::Form;
use super::issuer::{self, Issuer};
use super::pages;
use super::reply::{Reply, html, no_page, reply, see_other, text, with_fields};
use super::sessions::{Keeping, Memory, Own, Session, Told, subject};
use crate::simulate::exponential;
use crate::tasks;

/// Requests that each shop of a process works on at once; more wait in line.
pub const WORKERS: usize = 4;
/// Seconds of work that a page is at full speed, in the mean.
pub const WORK: f64 = 0.040;
/// What a process is told begins with this; a share of its full speed follows.
pub const SPEED: &str = "speed ";

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
    let shop = Rc::new(Shop {
        name: name.to_owned(),
        memory: RefCell::default(),
        issuer,
        workers: MODES.map(|_| Semaphore::new(WORKERS)),
        speed: hear_of_speed()?,
        random: RefCell::default(),
    });
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
    /// By shop.
    workers: [Semaphore; MODES.len()],
    speed: Arc<Speed>,
    random: RefCell<fastrand::Rng>,
}

impl Shop {
    async fn answer(&self, mut request: Request<Incoming>) -> Reply {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/healthz") => return text(StatusCode::OK, "ok"),
            (&Method::GET, "/ws") => return echo(&mut request),
            _ => self.work(request.headers()).await,
        }
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
            "/" => self.visit(&*keeping, Self::page),
            "/api/whoami" => self.visit(&*keeping, Self::whoami),
            "/login" => html(StatusCode::OK, pages::login(&query.way_back())),
            "/step-up" => ask_for_more(&*keeping, &query.way_back(), false),
            "/payout" => keeping.claims().map_or_else(no_page, |claims| html(StatusCode::OK, pages::payout(claims))),
            _ => no_page(),
        }
    }

    /// Has a worker work on a page; who comes first is served first.
    async fn work(&self, headers: &HeaderMap) {
        // They are there as long as the shop is.
        let Ok(_worker) = self.workers[shop_of(headers)].acquire().await else { return };
        let seconds = exponential(&mut self.random.borrow_mut(), WORK) / self.speed.get();
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
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

/// Which shop is asked for, by its place among the modes: the proxy passes Host on as the client sent it. Under any
/// other name it is the first.
fn shop_of(headers: &HeaderMap) -> usize {
    let host = headers.get(header::HOST).map_or(&b""[..], HeaderValue::as_bytes);
    let label = host.split(|byte| *byte == b'.').next().unwrap_or_default();
    MODES.iter().position(|mode| mode.as_bytes() == label).unwrap_or_default()
}

/// The host is also all that there is to tell by on the route whose tokens the proxy does not look at.
fn is_for_stateless(headers: &HeaderMap) -> bool {
    MODES[shop_of(headers)] == "stateless"
}

/// How fast a process works, 1 being full speed.
struct Speed(AtomicU64);

impl Speed {
    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// Full speed, and what standard input says after that. It is read by a thread of its own: that may wait for ever, and
/// ends with the process. When there is no more to read, all goes on as it is.
fn hear_of_speed() -> io::Result<Arc<Speed>> {
    let speed = Arc::new(Speed(AtomicU64::new(1f64.to_bits())));
    let told = Arc::clone(&speed);
    std::thread::Builder::new().name("speed".into()).spawn(move || {
        for speed in io::stdin().lines().map_while(Result::ok).filter_map(|line| speed_of(&line)) {
            told.0.store(speed.to_bits(), Ordering::Relaxed);
        }
    })?;
    Ok(speed)
}

fn speed_of(line: &str) -> Option<f64> {
    let speed = line.strip_prefix(SPEED)?.trim().parse::<f64>().ok()?;
    (0.01..=100.0).contains(&speed).then_some(speed)
}

/// What a form asks for.
fn act(keeping: &dyn Keeping, path: &str, form: &Form) -> Reply {
    match path {
        "/login" => {
            let fields = form.field("user", MOST_NAME_CHARS).map(|user| keeping.log_in(&user));
            with_fields(see_other(&form.way_back(), ""), fields.unwrap_or_default())
        }
        "/logout" => match keeping.revocation() {
            Some(revocation) => with_fields(html(StatusCode::OK, pages::logged_out(&revocation)), keeping.log_out()),
            None => with_fields(see_other("/", ""), keeping.log_out()),
        },
        "/cart" => {
            let fields = form.field("item", MOST_ITEM_CHARS).map(|item| keeping.add(&item));
            with_fields(see_other("/", ""), fields.unwrap_or_default())
        }
        "/step-up" => step_up(keeping, form),
        _ => no_page(),
    }
}

fn step_up(keeping: &dyn Keeping, form: &Form) -> Reply {
    let back = form.way_back();
    let is_right = form.field("code", MOST_CODE_CHARS).is_some_and(|code| code == pages::CODE);
    match keeping.step_up().filter(|_| is_right) {
        Some(fields) => with_fields(see_other(&back, ""), fields),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_a_share_of_full_speed_and_anything_else_is_not_heard() {
        for (line, speed) in [
            ("speed 0.25", Some(0.25)),
            ("speed 1", Some(1.0)),
            ("speed 0", None),
            ("speed -1", None),
            ("speed NaN", None),
            ("speed inf", None),
            ("speed", None),
            ("0.25", None),
            ("", None),
        ] {
            assert_eq!(speed_of(line), speed, "{line}");
        }
    }

    #[test]
    fn shops_are_told_apart_by_their_hosts() {
        for (host, shop) in [
            ("sticky.localhost:8443", 0),
            ("shared.localhost:8443", 1),
            ("stateless.localhost", 2),
            ("stateless-not.localhost", 0),
            ("127.0.0.1:9001", 0),
            ("", 0),
        ] {
            let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(host))]);
            assert_eq!(shop_of(&headers), shop, "{host}");
            assert_eq!(is_for_stateless(&headers), shop == 2, "{host}");
        }
        assert_eq!(shop_of(&HeaderMap::new()), 0);
    }
}
