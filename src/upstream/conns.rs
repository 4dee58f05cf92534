//! Connections to servers, of one worker: kept for reuse, the last one used first.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::TokioIo;

use super::{ConnectError, Io, OutBody, RequestBody, Target, connect};
use crate::clock::{Deadline, Moment, Ticker};
use crate::metrics::{ServerMetrics, WorkerId};
use crate::tasks::{self, LocalExecutor};

/// Windows of HTTP/2 towards servers. The connection's is so large that streams whose clients read slowly never stop
/// the others: memory is bounded by the stream's.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;

/// The connections of one worker.
pub struct Conns {
    by_target: RefCell<HashMap<usize, PerTarget>>,
    pub ticker: Rc<Ticker>,
    worker: WorkerId,
}

struct PerTarget {
    /// Keeps the address that is the key from being used again.
    target: Arc<Target>,
    #[allow(clippy::vec_box, reason = "a connection is large, and moves between here and its exchanges")]
    http1: Vec<Box<Http1>>,
    http2: Vec<Rc<Http2>>,
}

/// A connection that an exchange may send on.
pub enum Connection {
    Http1 { conn: Box<Http1>, reused: bool },
    Http2 { stream: Stream, reused: bool },
}

/// One HTTP/1.1 connection, driven by whoever uses it.
pub struct Http1 {
    sender: http1::SendRequest<OutBody>,
    driven: Driven,
    keep_alive: Duration,
    idle_since: Moment,
    counted: Counted,
}

/// hyper's side of an HTTP/1.1 connection.
struct Driven {
    connection: Option<http1::Connection<TokioIo<Io>, OutBody>>,
    ended: bool,
}

impl Driven {
    /// Moves the connection on; whether it is still open. One that has ended well is kept: it may have been switched
    /// to another protocol, and what is below is still wanted.
    fn drive(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(connection) = self.connection.as_mut().filter(|_| !self.ended)
            && let Poll::Ready(ended) = connection.poll_without_shutdown(cx)
        {
            self.ended = true;
            if ended.is_err() {
                self.connection = None;
            }
        }
        !self.ended
    }

    /// Lets go of a connection that has ended: hyper then gives back a request that it never sent.
    fn release(&mut self) -> bool {
        self.ended && self.connection.take().is_some()
    }

    /// Drives the connection to the end of its HTTP, and takes what is below.
    async fn into_raw(mut self) -> Option<Raw> {
        poll_fn(|cx| if self.drive(cx) { Poll::Pending } else { Poll::Ready(()) }).await;
        let parts = self.connection?.into_parts();
        Some(Raw { io: parts.io.into_inner(), ahead: parts.read_buf })
    }
}

/// One HTTP/2 connection, driven by a task of its own that ends when nobody holds the connection any more.
struct Http2 {
    sender: http2::SendRequest<OutBody>,
    streams: Cell<usize>,
    /// What the server allows; kept up to date by the connection's task.
    most_streams: Rc<Cell<usize>>,
    idle_since: Cell<Moment>,
    counted: RefCell<Counted>,
}

/// One stream of an HTTP/2 connection.
pub struct Stream {
    conn: Rc<Http2>,
    ticker: Rc<Ticker>,
}

impl Stream {
    fn new(conn: &Rc<Http2>, ticker: &Rc<Ticker>) -> Self {
        conn.streams.set(conn.streams.get() + 1);
        conn.counted.borrow_mut().set(true);
        Stream { conn: Rc::clone(conn), ticker: Rc::clone(ticker) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.conn.streams.set(self.conn.streams.get() - 1);
        if self.conn.streams.get() == 0 {
            self.conn.idle_since.set(self.ticker.coarse_now());
            self.conn.counted.borrow_mut().set(false);
        }
    }
}

/// A connection's place in the metrics.
struct Counted {
    metrics: Arc<ServerMetrics>,
    worker: WorkerId,
    active: bool,
}

impl Counted {
    fn new(metrics: &Arc<ServerMetrics>, worker: WorkerId) -> Self {
        metrics.cells.of(worker).connections_active.add(1);
        Counted { metrics: Arc::clone(metrics), worker, active: true }
    }

    fn set(&mut self, active: bool) {
        if self.active == active {
            return;
        }
        self.active = active;
        let cells = self.metrics.cells.of(self.worker);
        let (from, to) = if active {
            (&cells.connections_idle, &cells.connections_active)
        } else {
            (&cells.connections_active, &cells.connections_idle)
        };
        from.sub(1);
        to.add(1);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let cells = self.metrics.cells.of(self.worker);
        if self.active { &cells.connections_active } else { &cells.connections_idle }.sub(1);
    }
}

/// Why there is no response.
pub struct SendFailure {
    pub kind: FailureKind,
    /// The server has seen nothing of the request, or says that it did nothing with it.
    pub unsent: bool,
    /// The connection had served before: the server may just have closed it.
    pub reused: bool,
    /// Not a byte of the request was written.
    pub unwritten: bool,
}

/// How an attempt failed after its connection stood.
#[derive(Debug, thiserror::Error)]
pub enum FailureKind {
    #[error("the connection broke before the response: {0}")]
    Broken(#[source] hyper::Error),
    #[error("no response within the time allowed")]
    TimedOut,
}

impl Conns {
    /// No connections yet.
    pub fn new(ticker: Rc<Ticker>, worker: WorkerId) -> Rc<Self> {
        Rc::new(Conns { by_target: RefCell::default(), ticker, worker })
    }

    /// A kept connection that is still open.
    pub async fn reuse(&self, target: &Arc<Target>) -> Option<Connection> {
        if target.settings.http2 {
            return self.reuse_http2(target);
        }
        loop {
            let mut conn = self.by_target.borrow_mut().get_mut(&key(target))?.http1.pop()?;
            let rested = self.ticker.coarse_now().since(conn.idle_since) >= conn.keep_alive;
            // Closed while idle? One poll tells, and takes over the waker.
            let open = !rested && poll_fn(|cx| Poll::Ready(conn.driven.drive(cx))).await;
            if open && conn.sender.is_ready() {
                conn.counted.set(true);
                return Some(Connection::Http1 { conn, reused: true });
            }
        }
    }

    fn reuse_http2(&self, target: &Arc<Target>) -> Option<Connection> {
        let mut by_target = self.by_target.borrow_mut();
        let kept = &mut by_target.get_mut(&key(target))?.http2;
        kept.retain(|conn| !conn.sender.is_closed());
        let free = kept.iter().find(|conn| conn.streams.get() < conn.most_streams.get());
        free.map(|conn| Connection::Http2 { stream: Stream::new(conn, &self.ticker), reused: true })
    }

    /// A new connection.
    pub async fn open(&self, target: &Arc<Target>) -> Result<Connection, ConnectError> {
        let io = TokioIo::new(connect(target).await?);
        let counted = Counted::new(&target.state.metrics, self.worker);
        let broken = |error: hyper::Error| ConnectError::Refused(std::io::Error::other(error));
        if target.settings.http2 {
            return self.open_http2(target, io, counted).await.map_err(broken);
        }
        let handshake = http1::Builder::new().max_headers(256).max_buf_size(256 * 1024).handshake(io);
        let (sender, connection) = handshake.await.map_err(broken)?;
        let keep_alive = target.settings.keep_alive;
        let driven = Driven { connection: Some(connection), ended: false };
        let conn = Box::new(Http1 { sender, driven, keep_alive, idle_since: Moment::default(), counted });
        Ok(Connection::Http1 { conn, reused: false })
    }

    async fn open_http2(&self, target: &Arc<Target>, io: TokioIo<Io>, counted: Counted) -> hyper::Result<Connection> {
        let mut builder = http2::Builder::new(LocalExecutor);
        builder
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(256 * 1024);
        let (sender, mut connection) = builder.handshake(io).await?;
        let server = target.settings.address.to_string();
        let most_streams = Rc::new(Cell::new(connection.current_max_send_streams()));
        let noted = Rc::clone(&most_streams);
        // The task ends with the last holder of the connection's sender.
        tasks::spawn(poll_fn(move |cx| {
            let polled = Pin::new(&mut connection).poll(cx);
            noted.set(connection.current_max_send_streams());
            polled.map(|ended| {
                if let Err(error) = ended {
                    tracing::debug!(%server, %error, "HTTP/2 connection ended");
                }
            })
        }));
        let conn = Rc::new(Http2 {
            sender,
            streams: Cell::new(0),
            most_streams,
            idle_since: Cell::new(self.ticker.coarse_now()),
            counted: RefCell::new(counted),
        });
        self.entry(target, |kept| kept.http2.push(Rc::clone(&conn)));
        Ok(Connection::Http2 { stream: Stream::new(&conn, &self.ticker), reused: false })
    }

    fn entry<T>(&self, target: &Arc<Target>, change: impl FnOnce(&mut PerTarget) -> T) -> T {
        let mut by_target = self.by_target.borrow_mut();
        let fresh = || PerTarget { target: Arc::clone(target), http1: Vec::new(), http2: Vec::new() };
        change(by_target.entry(key(target)).or_insert_with(fresh))
    }

    /// Takes back a connection whose response has been read to its end.
    fn give_back(&self, target: &Arc<Target>, mut conn: Box<Http1>) {
        if !conn.sender.is_ready() {
            let mut cx = Context::from_waker(Waker::noop());
            if !conn.driven.drive(&mut cx) || !conn.sender.is_ready() {
                return;
            }
        }
        conn.idle_since = self.ticker.coarse_now();
        conn.counted.set(false);
        self.entry(target, |kept| {
            if kept.http1.len() >= target.settings.idle_connections {
                kept.http1.remove(0);
            }
            if target.settings.idle_connections > 0 {
                kept.http1.push(conn);
            }
        });
    }

    /// No further stream goes over a connection that has stopped answering; those that run keep it.
    fn forget(&self, target: &Arc<Target>, conn: &Rc<Http2>) {
        self.entry(target, |kept| kept.http2.retain(|other| !Rc::ptr_eq(other, conn)));
    }

    /// Closes what has been unused for too long.
    pub fn sweep(&self, now: Moment) {
        self.by_target.borrow_mut().retain(|_, kept| {
            kept.http1.retain(|conn| now.since(conn.idle_since) < conn.keep_alive);
            let keep_alive = kept.target.settings.keep_alive;
            kept.http2.retain(|conn| {
                let unused = conn.streams.get() == 0 && now.since(conn.idle_since.get()) >= keep_alive;
                !unused && !conn.sender.is_closed()
            });
            !kept.http1.is_empty() || !kept.http2.is_empty()
        });
    }
}

fn key(target: &Arc<Target>) -> usize {
    Arc::as_ptr(target).addr()
}

/// What limits the waiting for a response.
pub struct Waiting<'a> {
    /// From the last byte of the request to the head of the response; none: as long as it takes.
    pub first_byte: Option<Duration>,
    /// Between two pieces of the response's body.
    pub between_bytes: Option<Duration>,
    /// Between two pieces of the request's body, from the client or to the server.
    pub stall: Option<Duration>,
    /// Whose end starts the wait for the first byte.
    pub body: &'a RequestBody,
}

impl Connection {
    /// Sends a request and waits for the head of its response.
    pub async fn send(
        self,
        request: Request<OutBody>,
        waiting: Waiting<'_>,
        conns: &Rc<Conns>,
        target: &Arc<Target>,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        match self {
            Connection::Http1 { mut conn, reused } => {
                let sending = conn.sender.try_send_request(request);
                let received = await_head(sending, Some(&mut conn.driven), &waiting, &conns.ticker).await;
                let response = received.map_err(|failure| failure.on(reused))?;
                conn.heed_keep_alive(response.headers());
                let silence = waiting.between_bytes.map(|span| (conns.ticker.deadline(span), span));
                let lease = Lease { conn, conns: Rc::clone(conns), target: Arc::clone(target) };
                Ok(response.map(|body| UpstreamBody { body, via: Via::Http1(Some(lease)), silence }))
            }
            Connection::Http2 { stream, reused } => {
                let mut sender = stream.conn.sender.clone();
                let received = await_head(sender.try_send_request(request), None, &waiting, &conns.ticker).await;
                if received.as_ref().is_err_and(|failure| matches!(failure.kind, FailureKind::TimedOut)) {
                    conns.forget(target, &stream.conn);
                }
                let response = received.map_err(|failure| failure.on(reused))?;
                let silence = waiting.between_bytes.map(|span| (conns.ticker.deadline(span), span));
                Ok(response.map(|body| UpstreamBody { body, via: Via::Http2 { _stream: stream }, silence }))
            }
        }
    }
}

async fn await_head(
    sending: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<OutBody>>>>,
    mut driven: Option<&mut Driven>,
    waiting: &Waiting<'_>,
    ticker: &Rc<Ticker>,
) -> Result<Response<Incoming>, SendFailure> {
    let mut sending = pin!(sending);
    let mut patience = Patience::default();
    poll_fn(|cx| {
        if let Some(driven) = &mut driven {
            driven.drive(cx);
        }
        let mut polled = sending.as_mut().poll(cx);
        if polled.is_pending() && driven.as_mut().is_some_and(|driven| driven.release()) {
            polled = sending.as_mut().poll(cx);
        }
        if let Poll::Ready(received) = polled {
            return Poll::Ready(received.map_err(SendFailure::from));
        }
        ready!(patience.poll_exhausted(cx, waiting, ticker));
        Poll::Ready(Err(SendFailure::timed_out()))
    })
    .await
}

/// How long a request may take to be sent, and then to be answered.
#[derive(Default)]
struct Patience {
    /// While the body is being sent: the bytes of it so far, and until when there must be more.
    sending: Option<(u64, Deadline)>,
    answer: Option<Deadline>,
}

impl Patience {
    fn poll_exhausted(&mut self, cx: &mut Context<'_>, waiting: &Waiting<'_>, ticker: &Rc<Ticker>) -> Poll<()> {
        if waiting.body.poll_complete(cx) {
            let Some(span) = waiting.first_byte else { return Poll::Pending };
            return self.answer.get_or_insert_with(|| ticker.deadline(span)).poll(cx);
        }
        let Some(span) = waiting.stall else { return Poll::Pending };
        let received = waiting.body.received();
        match &mut self.sending {
            Some((before, _)) if *before == received => {}
            other => *other = Some((received, ticker.deadline(span))),
        }
        let Some((_, deadline)) = &mut self.sending else { return Poll::Pending };
        ready!(deadline.poll(cx));
        // Either the client has stopped, or the server does not take what the client sends.
        waiting.body.give_up_client();
        Poll::Ready(())
    }
}

impl SendFailure {
    fn timed_out() -> Self {
        SendFailure { kind: FailureKind::TimedOut, unsent: false, reused: false, unwritten: false }
    }

    fn on(mut self, reused: bool) -> Self {
        self.reused = reused;
        self
    }
}

impl From<TrySendError<Request<OutBody>>> for SendFailure {
    fn from(mut failed: TrySendError<Request<OutBody>>) -> Self {
        let unwritten = failed.take_message().is_some();
        let error = failed.into_error();
        let unsent = unwritten || was_refused(&error);
        SendFailure { unsent, reused: false, unwritten, kind: FailureKind::Broken(error) }
    }
}

/// HTTP/2: REFUSED_STREAM, or a stream above the last one that GOAWAY says was served.
fn was_refused(error: &hyper::Error) -> bool {
    use std::error::Error as _;
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|error| {
        error.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR))
    })
}

impl Http1 {
    /// The server's own `Keep-Alive: timeout=N`, less a second, when it is shorter than ours.
    fn heed_keep_alive(&mut self, headers: &HeaderMap) {
        let Some(value) = headers.get("keep-alive").and_then(|value| value.to_str().ok()) else { return };
        let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout=")?.parse::<u64>().ok());
        if let Some(seconds) = seconds {
            self.keep_alive = self.keep_alive.min(Duration::from_secs(seconds.saturating_sub(1)));
        }
    }
}

/// A response's body that drives its connection and gives it back at its end.
pub struct UpstreamBody {
    body: Incoming,
    via: Via,
    silence: Option<(Deadline, Duration)>,
}

enum Via {
    Http1(Option<Lease>),
    Http2 { _stream: Stream },
}

struct Lease {
    conn: Box<Http1>,
    conns: Rc<Conns>,
    target: Arc<Target>,
}

/// Why a response's body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the server's response broke off: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the server was silent for too long")]
    Silent,
}

/// A connection taken over after a 101: the stream, and what was read past the head.
pub struct Raw {
    pub io: Io,
    pub ahead: Bytes,
}

impl UpstreamBody {
    /// Takes the connection over for another protocol.
    pub async fn into_raw(mut self) -> Option<Raw> {
        let Via::Http1(lease) = &mut self.via else { return None };
        let Lease { conn, .. } = lease.take()?;
        conn.driven.into_raw().await
    }

    fn end(&mut self) {
        if let Via::Http1(lease) = &mut self.via
            && let Some(Lease { conn, conns, target }) = lease.take()
        {
            conns.give_back(&target, conn);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let me = &mut *self;
        // What is buffered first; only then the socket again.
        let mut polled = Pin::new(&mut me.body).poll_frame(cx);
        if polled.is_pending()
            && let Via::Http1(Some(lease)) = &mut me.via
        {
            lease.conn.driven.drive(cx);
            polled = Pin::new(&mut me.body).poll_frame(cx);
        }
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if frame.is_trailers() {
                    // Nobody asks for more after these.
                    me.end();
                }
                if let Some((deadline, span)) = &mut me.silence {
                    deadline.reset(*span);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                me.end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let Some((deadline, _)) = &mut me.silence else { return Poll::Pending };
                ready!(deadline.poll(cx));
                Poll::Ready(Some(Err(BodyError::Silent)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        // hyper drops a body that says it is at its end without asking for the end.
        if self.body.is_end_stream() {
            self.end();
        }
    }
}
