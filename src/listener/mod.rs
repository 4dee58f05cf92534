//! Listeners: bound addresses with their TLS and limits, and the connections that come in on them.
//!
//! Every worker has a socket of its own per listener (SO_REUSEPORT), and a connection lives and dies on one thread: that
//! of the worker that has accepted it or, where that has clearly more than another, was given it at once ([`Spread`]). This module turns sockets into exchanges and hands them to a [`Handler`]; it does not know who answers.
//!
//! Closing a listener loses nobody: what the kernel has queued is accepted first. Between that and the close there is
//! a moment in which a connection can still be reset; `net.ipv4.tcp_migrate_req=1` closes it where another process
//! listens on the same port.

mod client_io;
mod connections;
mod gather;
mod http;
mod proxy_protocol;
mod socket;
mod spread;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Request, Response};
use hyper::body::Incoming;
use ipnet::IpNet;
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio_rustls::TlsAcceptor;

pub use client_io::ClientIo;
pub use connections::{Activity, Connections, Times};
pub use http::Tracked;
pub use proxy_protocol::ProxyProtocol;
pub use spread::{Spread, Taking};

use crate::headers::{OwnHop, UnsafeNames};
use crate::metrics::{ListenerMetrics, Metrics, WorkerId};
use crate::names::{Decision, HeaderReason, Limit};
use crate::{tasks, tls};
use client_io::{OpenConnection, Stream};
use connections::{Registration, Want};
use http::Ended;
use socket::ClientSocket;
use spread::{Given, Place};

/// The settings of a listener, TLS apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub name: Box<str>,
    pub address: SocketAddr,
    pub proxy_protocol: ProxyProtocol,
    pub times: Times,
    pub limits: Limits,
    pub unsafe_names: UnsafeNames,
    /// The port of the https URL that everything is redirected to.
    pub redirect_port: Option<u16>,
}

/// What bounds a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub header_bytes: u32,
    pub header_count: usize,
    pub max_streams: u32,
}

impl Limits {
    /// The longest head that is read at all: what is over the limit by less than that is answered with more than a bare
    /// 431, as its user may need help.
    fn most_header_bytes(self) -> u32 {
        self.header_bytes.saturating_mul(2)
    }
}

/// A listener of one snapshot.
pub struct Endpoint {
    pub settings: Settings,
    pub tls: Option<tls::Endpoint>,
    pub metrics: Arc<ListenerMetrics>,
    /// Who may speak the PROXY protocol.
    pub trusted: Arc<[IpNet]>,
    /// What is shown to clients, for the metrics.
    pub certificates: Vec<Arc<tls::Certificate>>,
}

impl Endpoint {
    /// A number that stands for its name over all snapshots.
    pub fn id(&self) -> usize {
        self.metrics.id
    }
}

/// What is known of the connection that an exchange came in on.
pub struct Downstream {
    pub endpoint: Arc<Endpoint>,
    /// The client, or the peer in front of us; after the PROXY header.
    pub peer: SocketAddr,
    /// The address that it connected to.
    pub local: SocketAddr,
    pub tls: Option<tls::Facts>,
    pub http2: bool,
    /// Whom its last request asked for, and what servers are told of it.
    pub own_hop: RefCell<Option<Rc<OwnHop>>>,
    activity: Rc<Activity>,
    /// Who wants the byte stream when HTTP on it has ended with a change of protocol.
    taker: Cell<Option<oneshot::Sender<ClientIo>>>,
}

impl Downstream {
    fn new(
        endpoint: Arc<Endpoint>,
        (peer, local): (SocketAddr, SocketAddr),
        tls: Option<tls::Facts>,
        http2: bool,
        activity: &Rc<Activity>,
    ) -> Self {
        let (own_hop, taker) = Default::default();
        Downstream { endpoint, peer, local, tls, http2, own_hop, activity: Rc::clone(activity), taker }
    }

    /// Asks for the byte stream, which comes when a 101 has been answered; an error where the connection ends otherwise.
    pub fn take_over(&self) -> oneshot::Receiver<ClientIo> {
        let (taker, taken) = oneshot::channel();
        self.taker.set(Some(taker));
        taken
    }

    /// Says that the connection now carries another protocol.
    pub fn becomes_tunnel(&self) {
        self.activity.becomes_tunnel();
    }
}

/// Whoever answers exchanges.
pub trait Handler: Clone + 'static {
    type Body: http_body::Body<Data = bytes::Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Unpin
        + 'static;

    /// Answers one exchange. Dropping the future, or the body of its response, ends the exchange.
    fn handle(
        &self,
        request: Request<Incoming>,
        downstream: Rc<Downstream>,
    ) -> impl Future<Output = Response<Self::Body>> + use<Self> + 'static;
}

/// One worker's socket: bound, so that nobody else gets the address, and not yet listening.
pub struct Bound(Socket);

impl Bound {
    /// The address; the system's choice where port 0 was asked for.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an IP socket"))
    }

    /// Lets clients in.
    pub fn listen(self) -> io::Result<std::net::TcpListener> {
        self.0.listen(4_096)?;
        Ok(self.0.into())
    }
}

/// When a peer that no longer answers is given up: probes after a minute of silence, and a minute for what was sent.
const KEEP_ALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Binds one worker's socket; several may share the address. Accepted sockets inherit its options.
pub fn bind(address: SocketAddr) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // "[::]:443" beside "0.0.0.0:443" must both be possible, as the file names each.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    // Without it, TLS handshakes and small responses wait 40 ms for an acknowledgement.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEP_ALIVE)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    socket.bind(&address.into())?;
    Ok(Bound(socket))
}

/// Open connections by client address, over all workers; empty while there is no limit.
#[derive(Default)]
pub struct PerAddress(Mutex<HashMap<IpAddr, usize>>);

impl PerAddress {
    fn enter(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<AddressGuard> {
        let mut counts = self.0.lock();
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(AddressGuard { counts: Arc::clone(self), address })
    }
}

struct AddressGuard {
    counts: Arc<PerAddress>,
    address: IpAddr,
}

impl Drop for AddressGuard {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// What the accept loops of one worker share.
pub struct Acceptor<H> {
    pub connections: Rc<Connections>,
    pub handler: H,
    pub metrics: Arc<Metrics>,
    pub worker: WorkerId,
    pub spread: Arc<Spread>,
    pub per_address: Arc<PerAddress>,
    /// 0: no limit.
    pub most_per_address: Rc<Cell<usize>>,
}

/// A listener's accept loop on one worker, as its owner holds it.
pub struct Accepting {
    endpoint: Rc<RefCell<Arc<Endpoint>>>,
    stop: Rc<Notify>,
}

impl Accepting {
    /// New connections go by this definition from now on.
    pub fn update(&self, endpoint: Arc<Endpoint>) {
        *self.endpoint.borrow_mut() = endpoint;
    }

    /// Accepts what is queued, then closes the socket.
    pub fn stop(&self) {
        self.stop.notify_one();
    }
}

impl<H: Handler> Acceptor<H> {
    /// Starts to accept.
    /// The loop ends with [`Accepting::stop`].
    pub fn start(self: &Rc<Self>, socket: std::net::TcpListener, endpoint: Arc<Endpoint>) -> io::Result<Accepting> {
        let socket = TcpListener::from_std(socket)?;
        let accepting = Accepting { endpoint: Rc::new(RefCell::new(endpoint)), stop: Rc::default() };
        let (endpoint, stop) = (Rc::clone(&accepting.endpoint), Rc::clone(&accepting.stop));
        tasks::spawn(Rc::clone(self).accept_loop(socket, endpoint, stop));
        Ok(accepting)
    }

    /// Serves what other workers give to this one, as long as it runs.
    pub fn take(self: &Rc<Self>, mut taking: Taking) {
        let acceptor = Rc::clone(self);
        tasks::spawn(async move {
            while let Some(Given { tcp, peer, endpoint, place }) = taking.next().await {
                match TcpStream::from_std(tcp) {
                    Ok(tcp) => acceptor.open(tcp, peer, endpoint, place),
                    Err(error) => tracing::warn!(%error, "a connection could not be taken over"),
                }
            }
        });
    }

    async fn accept_loop(self: Rc<Self>, socket: TcpListener, endpoint: Rc<RefCell<Arc<Endpoint>>>, stop: Rc<Notify>) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.notified() => break,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => self.open_or_give(tcp, peer, &endpoint),
                // Out of descriptors, or the peer has gone: the next accept must not spin.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        self.accept_queued(socket, &endpoint);
    }

    /// Asks the kernel itself: the runtime would say "nothing there" from what it last heard, or for want of budget.
    fn accept_queued(self: &Rc<Self>, socket: TcpListener, endpoint: &RefCell<Arc<Endpoint>>) {
        let Ok(socket) = socket.into_std() else { return };
        loop {
            match socket.accept() {
                Ok((tcp, peer)) => {
                    if let Ok(tcp) = tcp.set_nonblocking(true).and_then(|()| TcpStream::from_std(tcp)) {
                        self.open(tcp, peer, Arc::clone(&endpoint.borrow()), self.spread.enter(self.worker));
                    }
                }
                // One that has gone in the meantime leaves the others in the queue.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(_) => return,
            }
        }
    }

    fn open_or_give(self: &Rc<Self>, tcp: TcpStream, peer: SocketAddr, endpoint: &RefCell<Arc<Endpoint>>) {
        let endpoint = Arc::clone(&endpoint.borrow());
        let worker = self.spread.fairest(self.worker);
        let place = self.spread.enter(worker);
        if worker == self.worker {
            return self.open(tcp, peer, endpoint, place);
        }
        let Ok(tcp) = tcp.into_std() else { return };
        let Err(back) = self.spread.give(Given { tcp, peer, endpoint, place }) else { return };
        if let Ok(tcp) = TcpStream::from_std(back.tcp) {
            self.open(tcp, peer, back.endpoint, self.spread.enter(self.worker));
        }
    }

    fn open(self: &Rc<Self>, tcp: TcpStream, peer: SocketAddr, endpoint: Arc<Endpoint>, place: Place) {
        let Some(registration) = self.connections.register(endpoint.settings.times) else { return };
        let acceptor = Rc::clone(self);
        // The connection is registered: the sweep ends it.
        tasks::spawn(async move {
            // In a box, and gone when it is done: the task is kept as long as the connection.
            let beginning = Box::pin(acceptor.begin(tcp, peer, endpoint, place, registration)).await;
            if let Some(serving) = beginning {
                acceptor.count_end(&serving.await);
            }
        });
    }

    /// Opens the byte stream; gives back what serves the exchanges on it.
    async fn begin(
        &self,
        tcp: TcpStream,
        peer: SocketAddr,
        endpoint: Arc<Endpoint>,
        place: Place,
        registration: Registration,
    ) -> Option<http::Serving> {
        let activity = Rc::clone(&registration.activity);
        let mut open = OpenConnection::new(Rc::clone(&activity), Arc::clone(&endpoint.metrics), self.worker, place);
        let local = tcp.local_addr().unwrap_or(endpoint.settings.address);
        let opened = {
            let opening = pin!(self.open_stream(tcp, peer, &endpoint, &mut open));
            unless_aborted(opening, &registration).await
        };
        let (stream, peer, tls) = opened??;
        let http2 = matches!(&stream, Stream::Tls(tls) if tls.get_ref().1.alpn_protocol() == Some(b"h2"));
        let io = ClientIo::new(stream, open);
        endpoint.metrics.cells.of(self.worker).accepted[usize::from(http2)].add(1);
        let downstream = Rc::new(Downstream::new(endpoint, (peer, local), tls, http2, &activity));
        Some(http::serve(io, &downstream, self.handler.clone(), registration, Rc::clone(&self.connections)))
    }

    /// The PROXY header, then TLS.
    async fn open_stream(
        &self,
        tcp: TcpStream,
        peer: SocketAddr,
        endpoint: &Endpoint,
        open: &mut OpenConnection,
    ) -> Option<(Stream, SocketAddr, Option<tls::Facts>)> {
        let mut socket = ClientSocket::new(tcp);
        let peer = self.true_peer(&mut socket, peer, endpoint).await?;
        let most = self.most_per_address.get();
        if most > 0 {
            open.address = self.per_address.enter(peer.ip(), most);
            if open.address.is_none() {
                self.metrics.limit_reached(self.worker, Limit::ConnectionsPerAddress);
                return None;
            }
        }
        let Some(tls) = &endpoint.tls else { return Some((Stream::Plain(socket), peer, None)) };
        let cells = endpoint.metrics.cells.of(self.worker);
        let stream = match TlsAcceptor::from(Arc::clone(&tls.config)).accept(socket).await {
            Ok(stream) => stream,
            Err(error) => {
                cells.handshakes_failed.add(1);
                tracing::debug!(%peer, listener = %endpoint.settings.name, %error, "TLS handshake failed");
                return None;
            }
        };
        let facts = tls.facts(stream.get_ref().1);
        cells.handshakes[usize::from(facts.tls13)][usize::from(facts.resumed)].add(1);
        Some((Stream::Tls(Box::new(stream)), peer, Some(facts)))
    }

    async fn true_peer(&self, socket: &mut ClientSocket, peer: SocketAddr, endpoint: &Endpoint) -> Option<SocketAddr> {
        let accepted = endpoint.settings.proxy_protocol;
        if accepted == ProxyProtocol::Off {
            return Some(peer);
        }
        let refused = |why: &dyn std::fmt::Display| {
            self.metrics.limit_reached(self.worker, Limit::ProxyProtocol);
            tracing::debug!(%peer, listener = %endpoint.settings.name, %why, "connection refused");
        };
        if !endpoint.trusted.iter().any(|network| network.contains(&peer.ip())) {
            refused(&"not one of trusted_proxies, and the listener wants the PROXY protocol");
            return None;
        }
        match proxy_protocol::read(socket, accepted).await {
            Ok(client) => Some(client.unwrap_or(peer)),
            Err(error) => {
                refused(&error);
                None
            }
        }
    }

    /// hyper answers malformed heads itself, without a hook: they are counted here.
    fn count_end(&self, ended: &Ended) {
        let Ended::Failed(error) = ended else { return };
        if error.is_parse_too_large() {
            self.metrics.limit_reached(self.worker, Limit::HeaderSize);
        } else if error.is_parse() {
            self.metrics.header_decision(self.worker, Decision::Rejected, HeaderReason::Malformed);
        }
    }
}

/// Runs a future until it is done, or the sweep says that its connection must go.
async fn unless_aborted<F: Future>(mut future: Pin<&mut F>, registration: &Registration) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        if registration.control.want(cx) == Want::Abort {
            return std::task::Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
