//! Connections to servers, of one worker: kept for reuse, the last one used first.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::HashMap;
use http::HeaderMap;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::response::Raw;
use super::{ConnectError, Io, OutBody, Target, connect};
use crate::clock::{Moment, Ticker};
use crate::metrics::{ServerMetrics, WorkerId};
use crate::tasks::{self, LocalExecutor};

/// Windows of HTTP/2 towards servers. The connection's is so large that streams whose clients read slowly never stop
/// the others: memory is bounded by the stream's.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;

/// A connection with streams on it is asked whether it still lives: a flow that a firewall has forgotten says nothing.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

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
    pub(super) sender: http1::SendRequest<OutBody>,
    pub(super) driven: Driven,
    keep_alive: Duration,
    idle_since: Moment,
    counted: Counted,
}

/// hyper's side of an HTTP/1.1 connection.
pub(super) struct Driven {
    connection: Option<http1::Connection<TokioIo<Io>, OutBody>>,
    ended: bool,
}

impl Driven {
    /// Moves the connection on; whether it is still open. One that has ended well is kept: it may have been switched
    /// to another protocol, and what is below is still wanted.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) -> bool {
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
    pub(super) fn release(&mut self) -> bool {
        self.ended && self.connection.take().is_some()
    }

    /// Drives the connection to the end of its HTTP, and takes what is below.
    pub(super) async fn into_raw(mut self) -> Option<Raw> {
        poll_fn(|cx| if self.drive(cx) { Poll::Pending } else { Poll::Ready(()) }).await;
        let parts = self.connection?.into_parts();
        Some(Raw { io: parts.io.into_inner(), ahead: parts.read_buf })
    }
}

/// One HTTP/2 connection, driven by a task of its own that ends when nobody holds the connection any more.
pub(super) struct Http2 {
    pub(super) sender: http2::SendRequest<OutBody>,
    streams: Cell<usize>,
    /// What the server allows; kept up to date by the connection's task.
    most_streams: Rc<Cell<usize>>,
    idle_since: Cell<Moment>,
    counted: RefCell<Counted>,
}

/// One stream of an HTTP/2 connection.
pub struct Stream {
    pub(super) conn: Rc<Http2>,
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
        let handshake = http1::Builder::new().max_buf_size(256 * 1024).handshake(io);
        let (sender, connection) = handshake.await.map_err(broken)?;
        let keep_alive = target.settings.keep_alive;
        let driven = Driven { connection: Some(connection), ended: false };
        let conn = Box::new(Http1 { sender, driven, keep_alive, idle_since: Moment::default(), counted });
        Ok(Connection::Http1 { conn, reused: false })
    }

    async fn open_http2(&self, target: &Arc<Target>, io: TokioIo<Io>, counted: Counted) -> hyper::Result<Connection> {
        let mut builder = http2::Builder::new(LocalExecutor);
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
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
    pub(super) fn give_back(&self, target: &Arc<Target>, mut conn: Box<Http1>) {
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
    pub(super) fn forget(&self, target: &Arc<Target>, conn: &Rc<Http2>) {
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

impl Http1 {
    /// The server's own `Keep-Alive: timeout=N`, less a second, when it is shorter than ours.
    pub(super) fn heed_keep_alive(&mut self, headers: &HeaderMap) {
        let Some(value) = headers.get("keep-alive").and_then(|value| value.to_str().ok()) else { return };
        let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout=")?.parse::<u64>().ok());
        if let Some(seconds) = seconds {
            self.keep_alive = self.keep_alive.min(Duration::from_secs(seconds.saturating_sub(1)));
        }
    }
}

fn key(target: &Arc<Target>) -> usize {
    Arc::as_ptr(target).addr()
}
