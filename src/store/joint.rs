//! A connection to a node that several asks share, and the sockets for such connections.
//!
//! Whoever finds none has one made, by a task that others may wait for as well and none of them can abort: an ask may be
//! dropped at any moment.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::session::store::StoreError;
use crate::tasks;

/// Keeps what is between us and a node from forgetting a connection that rests.
const KEEP_ALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);

/// Something that may have been closed meanwhile.
pub trait Open {
    /// Whether something may still begin on it.
    fn is_open(&self) -> bool;
}

/// A shared connection, or the latest attempt to make one.
pub struct Joint<C>(RefCell<Option<Attempt<C>>>);

/// Nothing yet, or what became of it.
type Attempt<C> = watch::Receiver<Option<Result<Rc<C>, StoreError>>>;

impl<C> Default for Joint<C> {
    fn default() -> Self {
        Joint(RefCell::default())
    }
}

impl<C: Open + 'static> Joint<C> {
    /// The connection that there is, or the one that comes of an attempt. `connect` ends by itself.
    pub async fn get<F>(&self, connect: impl FnOnce() -> F) -> Result<Rc<C>, StoreError>
    where
        F: Future<Output = Result<Rc<C>, StoreError>> + 'static,
    {
        if let Some(connection) = self.open() {
            return Ok(connection);
        }
        let mut attempt = self.attempt_under_way(connect);
        let given_up = || StoreError::Unavailable("the attempt to connect was given up".to_owned());
        let made = attempt.wait_for(Option::is_some).await.map_err(|_| given_up())?;
        made.clone().unwrap_or_else(|| Err(given_up()))
    }

    /// The connection, if there is one.
    pub fn open(&self) -> Option<Rc<C>> {
        match &*self.0.borrow().as_ref()?.borrow() {
            Some(Ok(connection)) if connection.is_open() => Some(Rc::clone(connection)),
            _ => None,
        }
    }

    /// Sees to it that nobody begins anything on a connection any more; who waits for an answer on it goes on waiting.
    pub fn let_go(&self, connection: &Rc<C>) {
        let mut latest = self.0.borrow_mut();
        let is_latest = |attempt: &mut Attempt<C>| {
            let outcome = attempt.borrow();
            matches!(&*outcome, Some(Ok(current)) if Rc::ptr_eq(current, connection))
        };
        latest.take_if(is_latest);
    }

    /// Joins the attempt that is under way, or starts one.
    fn attempt_under_way<F>(&self, connect: impl FnOnce() -> F) -> Attempt<C>
    where
        F: Future<Output = Result<Rc<C>, StoreError>> + 'static,
    {
        let mut latest = self.0.borrow_mut();
        // One without a result whose task has gone will have none.
        let is_under_way = |attempt: &&Attempt<C>| attempt.borrow().is_none() && attempt.has_changed().is_ok();
        match latest.as_ref().filter(is_under_way) {
            Some(attempt) => attempt.clone(),
            None => latest.insert(start(connect())).clone(),
        }
    }
}

fn start<C: 'static>(connecting: impl Future<Output = Result<Rc<C>, StoreError>> + 'static) -> Attempt<C> {
    let (outcome, attempt) = watch::channel(None);
    // Owned by nobody, as no ask may end it for the others: it ends by itself, within the time to connect.
    tasks::spawn(async move {
        let connected = connecting.await;
        // Nobody is there to be told if the store has been dropped meanwhile.
        let _ = outcome.send(Some(connected));
    });
    attempt
}

/// Opens a socket. Several addresses of a name are tried in turn: one that swallows everything must leave time for the
/// others.
pub async fn tcp(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for (address, left) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let limit = limit / u32::try_from(left).unwrap_or(u32::MAX);
        match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return prepared(tcp),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

fn prepared(tcp: TcpStream) -> io::Result<TcpStream> {
    // Small requests would wait for the acknowledgement of the one before.
    tcp.set_nodelay(true)?;
    // A socket can do without, if the system has it not.
    let _ = SockRef::from(&tcp).set_tcp_keepalive(&KEEP_ALIVE);
    Ok(tcp)
}
