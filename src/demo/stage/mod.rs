//! The switches: a small page of the demo's own, by which servers are slowed down, killed and added, and the thread that
//! serves it and looks after the processes. Both are on this one thread, so what they share needs no lock.
//!
//! It kills processes, so it is for whoever is at this machine, and for no page of another site that is open there.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::{self, IsTerminal as _};
use std::net::TcpListener;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

use super::configuration::Places;
use super::form::Form;
use super::pages::{escape, fill};
use super::reply::{Reply, html, no_page, reply, see_other, text};
use super::servers::{AWAY, MOST, Refusal, Seen, Servers};
use super::traffic::Traffic;
use super::{bind_usual, say};
use crate::private::{Accepted, Socket};
use crate::tasks::{self, Owned};

/// Where it is, if that is free.
const USUAL_PORT: u16 = 9901;
/// How often processes are looked after.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// For a request's head, and for its body.
const PATIENCE: Duration = Duration::from_secs(10);
/// A connection is not for ever: who does not read must not keep a place.
const LIFETIME: Duration = Duration::from_secs(60);
const MOST_CONNECTIONS: usize = 32;
const MOST_NAME_CHARS: usize = 40;

const INDEX: &str = include_str!("index.html");
const SERVER: &str = include_str!("server.html");
/// Its own script, style and state, forms that go nowhere else, and no other page around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

/// The bound address of the switches.
pub struct Stage {
    listener: TcpListener,
    pub port: u16,
}

/// What is served, while it is.
struct Surface {
    servers: RefCell<Servers>,
    traffic: RefCell<Traffic>,
    places: Places,
}

impl Stage {
    pub fn bind() -> io::Result<Self> {
        let listener = bind_usual(USUAL_PORT)?;
        listener.set_nonblocking(true)?;
        Ok(Stage { port: listener.local_addr()?.port(), listener })
    }

    /// Serves, and looks after the processes, until the demo ends; then ends them all.
    pub fn run(self, executor: &Runtime, servers: Servers, traffic: Traffic, places: Places, ended: &AtomicBool) {
        let (servers, traffic) = (RefCell::new(servers), RefCell::new(traffic));
        let surface = Rc::new(Surface { servers, traffic, places });
        LocalSet::new().block_on(executor, async {
            let _serving = Owned::spawn(Rc::clone(&surface).serve(Socket::Tcp(self.listener)));
            let _hanging_up = io::stdin().is_terminal().then(|| Owned::spawn(end_with_the_terminal()));
            while !ended.load(Ordering::Relaxed) {
                surface.servers.borrow_mut().look_after();
                surface.traffic.borrow_mut().look_after();
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
    }
}

/// To the proxy a hangup is a wish for a reload; to the demo it is that nobody looks any more.
async fn end_with_the_terminal() {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    hangup.recv().await;
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
}

impl Surface {
    async fn serve(self: Rc<Self>, socket: Socket) {
        let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let ended = socket.accept_all(|accepted| {
            let Accepted::Tcp(stream) = accepted else { return };
            // Who comes when all places are taken is hung up on.
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else { return };
            let surface = Rc::clone(&self);
            // It ends with its client, or when the next request is too long in coming.
            tasks::spawn(async move {
                surface.speak(stream).await;
                drop(place);
            });
        });
        let error = ended.await;
        say(&format!("the switches cannot be served: {error}"));
    }

    async fn speak(&self, stream: TcpStream) {
        let service = service_fn(move |request| async move { Ok::<_, Infallible>(self.answer(request).await) });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        // A connection that breaks is the client's business.
        tokio::select! {
            _ = &mut connection => return,
            () = tokio::time::sleep(LIFETIME) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(PATIENCE, connection).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let answer = match check(request.method(), request.headers(), self.places.stage) {
            Ok(()) => self.answer_ours(request).await,
            Err(why) => text(StatusCode::FORBIDDEN, why),
        };
        protected(answer)
    }

    async fn answer_ours(&self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        let Some(deed) = Deed::of(&path) else { return self.show(request.method(), &path) };
        if request.method() != Method::POST {
            return not_allowed("POST");
        }
        let is_form = wants_page(request.headers());
        let Ok(form) = tokio::time::timeout(PATIENCE, Form::read(request.into_body())).await else {
            return text(StatusCode::REQUEST_TIMEOUT, "The form did not come.\n");
        };
        let name = form.field("server", MOST_NAME_CHARS).unwrap_or_default();
        match self.act(deed, &name) {
            Ok(said) if is_form => see_other("/", said + "\n"),
            Ok(said) => text(StatusCode::OK, said + "\n"),
            Err(refusal) => text(status_of(&refusal), format!("{refusal}\n")),
        }
    }

    fn act(&self, deed: Deed, server: &str) -> Result<String, Refusal> {
        let mut servers = self.servers.borrow_mut();
        match deed {
            Deed::Slow => servers.slow_down(server),
            Deed::Fast => servers.speed_up(server),
            Deed::Kill => servers.kill(server),
            Deed::Add => servers.add(),
        }
    }

    fn show(&self, method: &Method, path: &str) -> Reply {
        let answer = match path {
            "/" => html(StatusCode::OK, page(&self.servers.borrow().seen(), &self.places)),
            "/stage.css" => reply(StatusCode::OK, "text/css; charset=utf-8", include_str!("style.css")),
            "/stage.js" => reply(StatusCode::OK, "text/javascript; charset=utf-8", include_str!("script.js")),
            "/state" => reply(StatusCode::OK, "application/json", format!("{}\n", self.state())),
            _ => return no_page(),
        };
        if is_read(method) { answer } else { not_allowed("GET, HEAD") }
    }

    fn state(&self) -> Value {
        let of_server =
            |seen: Seen| json!({ "name": seen.name, "pid": seen.pid, "state": seen.state, "says": seen.says });
        let servers: Value = self.servers.borrow().seen().into_iter().map(of_server).collect();
        json!({ "servers": servers, "most": MOST, "traffic": { "pid": self.traffic.borrow().pid() } })
    }
}

/// What can be done.
#[derive(Clone, Copy)]
enum Deed {
    Slow,
    Fast,
    Kill,
    Add,
}

impl Deed {
    fn of(path: &str) -> Option<Self> {
        match path {
            "/slow" => Some(Deed::Slow),
            "/fast" => Some(Deed::Fast),
            "/kill" => Some(Deed::Kill),
            "/add" => Some(Deed::Add),
            _ => None,
        }
    }
}

fn page(servers: &[Seen], places: &Places) -> String {
    let rows = servers.iter().map(row).collect::<String>();
    let (dashboard, shops) = (places.dashboard(), format!("https://localhost:{}/", places.https));
    let (most, away) = (MOST.to_string(), AWAY.as_secs().to_string());
    let values = [
        ("dashboard", dashboard.as_str()),
        ("shops", shops.as_str()),
        ("servers", rows.as_str()),
        ("most", most.as_str()),
        ("away", away.as_str()),
    ];
    fill(INDEX, &values)
}

fn row(server: &Seen) -> String {
    let name = escape(&server.name);
    let pid = server.pid.map_or_else(|| "–".to_owned(), |pid| pid.to_string());
    let values =
        [("name", name.as_str()), ("state", server.state), ("says", server.says.as_str()), ("pid", pid.as_str())];
    fill(SERVER, &values)
}

/// Lets in whoever asks for this very address, and changes something only for our own page, or for what is no browser.
/// A name that somebody else owns could be pointed here, and a page of any site could send a form.
fn check(method: &Method, headers: &HeaderMap, port: u16) -> Result<(), &'static str> {
    let own = ["127.0.0.1", "localhost"].map(|host| format!("{host}:{port}"));
    let host = only(headers, header::HOST).filter(|host| own.iter().any(|own| own.eq_ignore_ascii_case(host)));
    let host = host.ok_or("The Host of the request is not this address.\n")?;
    let says_whence = headers.contains_key(header::ORIGIN) || headers.contains_key(FETCH_SITE);
    let origin = only(headers, header::ORIGIN).and_then(|origin| origin.strip_prefix("http://"));
    if is_read(method) || !says_whence || origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host)) {
        return Ok(());
    }
    Err("The request comes from another page.\n")
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// A field that is there once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut lines = headers.get_all(name).iter();
    let line = lines.next().filter(|_| lines.next().is_none())?;
    line.to_str().ok()
}

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// Whether a browser goes to where the answer leads; scripts and curl want to know what was done.
fn wants_page(headers: &HeaderMap) -> bool {
    only(headers, header::ACCEPT).is_some_and(|accept| accept.contains("text/html"))
}

fn status_of(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::Unnamed => StatusCode::BAD_REQUEST,
        Refusal::Unknown(_) => StatusCode::NOT_FOUND,
        Refusal::Away { .. } | Refusal::Full => StatusCode::CONFLICT,
        Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn not_allowed(methods: &'static str) -> Reply {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("This is for {methods}.\n"));
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    answer
}

fn protected(mut answer: Reply) -> Reply {
    let fields: [(HeaderName, &str); 4] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // With less, browsers would say of our own forms that they come from nowhere.
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    answer.headers_mut().extend(fields.map(|(name, value)| (name, HeaderValue::from_static(value))));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: Places = Places { https: 8443, admin: 9900, stage: 9901, has_ipv6: true };

    fn is_let_in(method: &Method, fields: &[(HeaderName, &'static str)]) -> bool {
        let fields = fields.iter().cloned();
        let headers: HeaderMap = fields.map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
        check(method, &headers, PLACES.stage).is_ok()
    }

    #[test]
    fn only_this_very_address_is_answered() {
        for (host, ours) in [
            ("127.0.0.1:9901", true),
            ("localhost:9901", true),
            ("LocalHost:9901", true),
            ("127.0.0.1", false),
            ("localhost", false),
            ("127.0.0.1:9900", false),
            ("[::1]:9901", false),
            ("attacker.test:9901", false),
            ("localhost.attacker.test:9901", false),
            ("localhost.:9901", false),
            ("attacker.test@localhost:9901", false),
            ("", false),
        ] {
            for method in [Method::GET, Method::POST] {
                assert_eq!(is_let_in(&method, &[(header::HOST, host)]), ours, "{method} {host}");
            }
        }
        assert!(!is_let_in(&Method::GET, &[]));
        let twice = [(header::HOST, "localhost:9901"), (header::HOST, "localhost:9901")];
        assert!(!is_let_in(&Method::GET, &twice));
    }

    #[test]
    fn only_its_own_page_and_what_is_no_browser_may_change_something() {
        let host = (header::HOST, "localhost:9901");
        let origin = |value| vec![host.clone(), (header::ORIGIN, value)];
        let site = |value| vec![host.clone(), (FETCH_SITE, value)];
        let with_site = |origin, site| vec![host.clone(), (header::ORIGIN, origin), (FETCH_SITE, site)];
        for (fields, may) in [
            (vec![host.clone()], true),
            (origin("http://localhost:9901"), true),
            (with_site("http://localhost:9901", "same-origin"), true),
            (origin("http://127.0.0.1:9901"), false),
            (origin("https://localhost:9901"), false),
            (origin("http://localhost:9900"), false),
            (origin("http://localhost"), false),
            (origin("http://attacker.test"), false),
            (origin("http://localhost:9901.attacker.test"), false),
            (origin("null"), false),
            (origin(""), false),
            (site("cross-site"), false),
            (site("same-site"), false),
            (site("same-origin"), false),
            (with_site("http://attacker.test", "cross-site"), false),
            ([origin("http://localhost:9901"), origin("http://localhost:9901")[1..].to_vec()].concat(), false),
        ] {
            assert_eq!(is_let_in(&Method::POST, &fields), may, "{fields:?}");
            assert_eq!(is_let_in(&Method::DELETE, &fields), may, "{fields:?}");
            assert!(is_let_in(&Method::GET, &fields), "looking changes nothing: {fields:?}");
        }
    }

    #[test]
    fn the_page_shows_every_server_and_works_by_forms() {
        let seen =
            |name: &str, pid, state, says: &str| Seen { name: name.to_owned(), pid, state, says: says.to_owned() };
        let servers =
            [seen("app-1", Some(4711), "running", "running"), seen("app-2", None, "away", "away, back in 7 s")];
        let page = page(&servers, &PLACES);
        assert_eq!(page.matches("<li class=\"server\"").count(), 2);
        assert!(page.contains("4711") && page.contains("away, back in 7 s"));
        for action in ["/slow", "/fast", "/kill"] {
            assert_eq!(page.matches(&format!("<form method=\"post\" action=\"{action}\">")).count(), 2, "{action}");
        }
        assert_eq!(page.matches("name=\"server\" value=\"app-2\"").count(), 3);
        assert!(page.contains("action=\"/add\""));
        assert!(page.contains("href=\"http://127.0.0.1:9900/\"") && page.contains("href=\"https://localhost:8443/\""));
        assert!(!page.contains("{{") && !page.contains("style="), "{page}");
        assert!(page.ends_with("</html>\n"));
    }
}
