//! Origins: servers that tell what they saw, and misbehave when asked to.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// One request as an origin saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    /// The value of a header field; empty when it is absent.
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    }
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    /// Answers /healthz with 503.
    ill: AtomicBool,
    /// What it says of itself on /healthz.
    feels: Mutex<String>,
    /// Closes every connection after its first answer, without saying so.
    closes: AtomicBool,
    /// Lets those go on that have to wait.
    goes_on: tokio::sync::Notify,
    /// The codes of the Closes that WebSockets were given.
    goodbyes: Arc<Mutex<Vec<u16>>>,
    workers: Workers,
}

/// The two who do what `/work/MILLIS` asks for, first come, first served.
struct Workers(tokio::sync::Semaphore);

impl Default for Workers {
    fn default() -> Self {
        Workers(tokio::sync::Semaphore::new(2))
    }
}

/// A server on a thread of its own; dropped, it is gone with all its connections.
pub struct Origin {
    pub name: String,
    listens: Listens,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

enum Listens {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What an origin speaks.
#[derive(Clone)]
pub enum Speaks {
    Http1,
    /// Without TLS, prior knowledge.
    Http2,
    Tls(Arc<rustls::ServerConfig>),
}

impl Origin {
    /// HTTP/1.1 on a free port.
    pub fn start(name: &str) -> Self {
        Self::start_on(name, "127.0.0.1:0", Speaks::Http1)
    }

    /// Any protocol on a given address.
    pub fn start_on(name: &str, address: &str, speaks: Speaks) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).unwrap();
        let listens = Listens::Tcp(listener.local_addr().unwrap());
        Self::run(name, listens, move |shared, name| async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let _ = stream.set_nodelay(true);
                open(stream, Arc::clone(&shared), name.clone(), speaks.clone());
            }
        })
    }

    /// HTTP/1.1 on a Unix socket.
    pub fn start_unix(name: &str, path: PathBuf) -> Self {
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a free path");
        listener.set_nonblocking(true).unwrap();
        Self::run(name, Listens::Unix(path), move |shared, name| async move {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                open(stream, Arc::clone(&shared), name.clone(), Speaks::Http1);
            }
        })
    }

    fn run<F: Future<Output = ()>>(
        name: &str,
        listens: Listens,
        accept: impl FnOnce(Arc<Shared>, String) -> F + Send + 'static,
    ) -> Self {
        let shared = Arc::<Shared>::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let (of_thread, its_name) = (Arc::clone(&shared), name.to_owned());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = accept(of_thread, its_name) => {}
                    _ = stopped => {}
                }
            });
        });
        Origin { name: name.to_owned(), listens, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// As a server's `address` in the configuration.
    pub fn address(&self) -> String {
        match &self.listens {
            Listens::Tcp(address) => address.to_string(),
            Listens::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// What it has seen, probes left out.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The last request.
    pub fn last(&self) -> Seen {
        self.seen().pop().unwrap_or_else(|| panic!("{} has seen nothing", self.name))
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    pub fn be_ill(&self, ill: bool) {
        self.shared.ill.store(ill, Ordering::SeqCst);
    }

    /// Its own word on probes; empty for none.
    pub fn feel(&self, word: &str) {
        *self.shared.feels.lock().unwrap() = word.to_owned();
    }

    /// The codes of the Closes that its WebSockets were given.
    pub fn goodbyes(&self) -> Vec<u16> {
        self.shared.goodbyes.lock().unwrap().clone()
    }

    /// Lets a request to `/say-later` go on.
    pub fn go_on(&self) {
        self.shared.goes_on.notify_one();
    }

    pub fn close_after_each_answer(&self) {
        self.shared.closes.store(true, Ordering::SeqCst);
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    shared: Arc<Shared>,
    name: String,
    speaks: Speaks,
) {
    shared.connections.fetch_add(1, Ordering::SeqCst);
    shared.open.fetch_add(1, Ordering::SeqCst);
    let counted = Arc::clone(&shared);
    tokio::spawn(async move {
        serve(stream, shared, name, speaks).await;
        counted.open.fetch_sub(1, Ordering::SeqCst);
    });
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    shared: Arc<Shared>,
    name: String,
    speaks: Speaks,
) {
    match speaks {
        Speaks::Http1 => http1(stream, shared, name).await,
        Speaks::Http2 => http2(stream, shared, name).await,
        Speaks::Tls(config) => {
            let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else { return };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                http2(stream, shared, name).await;
            } else {
                http1(stream, shared, name).await;
            }
        }
    }
}

async fn http1(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, shared: Arc<Shared>, name: String) {
    let once = shared.closes.load(Ordering::SeqCst);
    let answered = Arc::new(tokio::sync::Notify::new());
    let said = Arc::clone(&answered);
    let service = service_fn(move |request| {
        let (shared, name, said) = (Arc::clone(&shared), name.clone(), Arc::clone(&said));
        async move {
            let answer = answer(request, &shared, &name).await;
            said.notify_one();
            answer
        }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(connection);
    if !once {
        let _ = connection.await;
        return;
    }
    tokio::select! {
        _ = &mut connection => {}
        () = answered.notified() => {
            // Long enough for the answer to leave; then the connection is just gone.
            let _ = tokio::time::timeout(Duration::from_millis(50), connection).await;
        }
    }
}

async fn http2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, shared: Arc<Shared>, name: String) {
    let service = service_fn(move |request| {
        let (shared, name) = (Arc::clone(&shared), name.clone());
        async move { answer(request, &shared, &name).await }
    });
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn full(body: impl Into<Bytes>) -> BoxBody<Bytes, Infallible> {
    Full::new(body.into()).boxed()
}

/// An error of the service closes the connection without an answer.
#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("dropped on purpose")
    }
}

impl std::error::Error for Dropped {}

async fn answer(mut request: Request<Incoming>, shared: &Shared, name: &str) -> Result<Answer, Dropped> {
    let path = request.uri().path().to_owned();
    if path == "/healthz" {
        let status = if shared.ill.load(Ordering::SeqCst) { 503 } else { 200 };
        let mut answer = reply(status, name, full(""));
        let feels = shared.feels.lock().unwrap().clone();
        if !feels.is_empty() {
            answer.headers_mut().insert("steadfast-state", feels.parse().unwrap());
        }
        return Ok(answer);
    }
    let upgrade = request.headers().get(header::UPGRADE).is_some().then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let seen = |body: Bytes| Seen {
        method: parts.method.to_string(),
        target: parts.uri.path_and_query().map_or("", |target| target.as_str()).to_owned(),
        headers: parts.headers.clone(),
        body,
    };
    if path == "/stream-echo" {
        // Sends back what comes in, while it comes in.
        shared.seen.lock().unwrap().push(seen(Bytes::new()));
        let stream =
            body.into_data_stream().filter_map(|data| async move { data.ok().map(|data| Ok(Frame::data(data))) });
        return Ok(reply(200, name, BodyExt::boxed(StreamBody::new(Box::pin(sync(stream))))));
    }
    let collected = body.collect().await.map_err(|_| Dropped)?;
    let trailers = collected.trailers().cloned();
    let body = collected.to_bytes();
    shared.seen.lock().unwrap().push(seen(body.clone()));
    let words: Vec<&str> = path.split('/').collect();
    let number = || words.get(2).and_then(|number| number.parse::<u64>().ok()).unwrap_or_default();
    Ok(match words.get(1).copied().unwrap_or_default() {
        "drop" => return Err(Dropped),
        "status" => reply(u16::try_from(number()).unwrap(), name, full("status")),
        "bytes" => reply(200, name, full(vec![b'x'; usize::try_from(number()).unwrap()])),
        "sleep" => {
            tokio::time::sleep(Duration::from_millis(number())).await;
            reply(200, name, full("slept"))
        }
        "work" => {
            let _worker = shared.workers.0.acquire().await.expect("it is never closed");
            tokio::time::sleep(Duration::from_millis(number())).await;
            reply(200, name, full("worked"))
        }
        "echo" => reply(200, name, full(body)),
        "increment" => {
            let claims = super::saying::claims(&parts.headers);
            let (count, version) = (claims["d"]["count"].as_u64().unwrap_or_default(), &claims["ver"]);
            let lines = format!("patch {{\"count\":{}}}\nif {version}", count + 1);
            let (_, fields, told) = super::saying::say(&parts.headers, lines.as_bytes());
            let mut answer = reply(200, name, full(told));
            for (name, value) in fields {
                answer.headers_mut().append(name, value);
            }
            answer
        }
        "say" | "say-later" => {
            if path == "/say-later" {
                shared.goes_on.notified().await;
            }
            let (status, fields, told) = super::saying::say(&parts.headers, &body);
            let mut answer = reply(status, name, full(told));
            for (name, value) in fields {
                answer.headers_mut().append(name, value);
            }
            answer
        }
        "fields" => {
            let mut answer = reply(200, name, full(""));
            for at in 0..number() {
                answer.headers_mut().append("x-field", at.into());
            }
            answer
        }
        "trailers" => {
            let back = trailers.unwrap_or_else(|| {
                HeaderMap::from_iter([(HeaderName::from_static("x-sum"), HeaderValue::from_static("42"))])
            });
            let frames = [Ok(Frame::data(Bytes::from_static(b"with trailers"))), Ok(Frame::trailers(back))];
            let mut answer = reply(200, name, BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames))));
            answer.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
            answer
        }
        "events" => {
            let events = futures_util::stream::unfold(0, |number| async move {
                tokio::time::sleep(Duration::from_millis(if number == 0 { 0 } else { 300 })).await;
                Some((Ok(Frame::data(Bytes::from(format!("data: {number}\n\n")))), number + 1))
            });
            let mut answer = reply(200, name, BodyExt::boxed(StreamBody::new(Box::pin(sync(events)))));
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            answer
        }
        "flood" => {
            let events = futures_util::stream::repeat_with(|| {
                let event = format!("data: {}\n\n", "x".repeat(50_000));
                Ok(Frame::data(Bytes::from(event)))
            });
            let mut answer = reply(200, name, BodyExt::boxed(StreamBody::new(events)));
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            answer
        }
        "cached" => with(reply(200, name, full("cached")), "cache-control", "public, max-age=60"),
        "private" => with(reply(200, name, full("private")), "cache-control", "no-cache"),
        "cookie" => {
            with(with(reply(200, name, full("cookies")), "set-cookie", "app=1; Path=/"), "set-cookie", "other=2")
        }
        "hop" => with(
            with(with(reply(200, name, full("hop")), "connection", "x-private"), "x-private", "1"),
            "keep-alive",
            "timeout=9",
        ),
        "ws" => web_socket(&parts.headers, upgrade, name, Arc::clone(&shared.goodbyes)),
        "switch" => {
            let mut answer = reply(101, name, full(""));
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("anything"));
            answer
        }
        _ => reply(200, name, full(format!("{name} {path}"))),
    })
}

/// A stream that is `Sync` because it is only ever used by value.
fn sync<S: futures_util::Stream + Send>(stream: S) -> impl futures_util::Stream<Item = S::Item> + Send + Sync
where
    S::Item: Send,
{
    struct Exclusive<S>(Mutex<std::pin::Pin<Box<S>>>);
    impl<S: futures_util::Stream> futures_util::Stream for Exclusive<S> {
        type Item = S::Item;
        fn poll_next(
            self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<S::Item>> {
            self.get_mut().0.get_mut().unwrap().as_mut().poll_next(cx)
        }
    }
    Exclusive(Mutex::new(Box::pin(stream)))
}

fn reply(status: u16, name: &str, body: BoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer.headers_mut().insert("x-origin", HeaderValue::from_str(name).unwrap());
    answer
}

fn with(mut answer: Answer, name: &'static str, value: &'static str) -> Answer {
    answer.headers_mut().append(name, HeaderValue::from_static(value));
    answer
}

fn web_socket(
    headers: &HeaderMap,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
    name: &str,
    goodbyes: Arc<Mutex<Vec<u16>>>,
) -> Answer {
    let (Some(key), Some(upgrade)) = (headers.get(header::SEC_WEBSOCKET_KEY), upgrade) else {
        return reply(400, name, full("no web socket"));
    };
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes())).unwrap();
    tokio::spawn(async move {
        let upgraded = TokioIo::new(upgrade.await.unwrap());
        let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Close(Some(close)) = &message {
                goodbyes.lock().unwrap().push(close.code.into());
            }
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut answer = reply(101, name, full(""));
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    answer
}
