//! The demo's users: a process that asks the three shops alike, at the same moments, with fixed chance and without
//! waiting for what is slow. It is a process of its own so that its work is not the proxy's.
//!
//! `workloads` of `simulate` says how users ask; its arrivals are a list of some minutes, and these go on for ever.

mod schedule;
mod user;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

use super::configuration::MODES;
use super::{end, own_process, say};
use crate::clock::Clock;
use crate::tasks::{self, Owned};
use crate::tls::{ClientConfig, ClientSettings, ServerName, client_config};
use schedule::{Act, Schedule, Turn};
use user::User;

/// The same users come each time.
const SEED: u64 = 1;
/// How long a user waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests to one shop that may be under way; more are left out, and counted.
const MOST_UNDER_WAY: usize = 700;
const MOST_ANSWER_BYTES: usize = 64 * 1024;
/// How often it is said what went wrong, if something did.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// The process, as the demo sees it.
pub struct Traffic(Option<Child>);

impl Traffic {
    /// Starts so many requests a second to each shop; with 0 there is no process.
    pub fn start(port: u16, rate: u32) -> io::Result<Self> {
        if rate == 0 {
            return Ok(Traffic(None));
        }
        let mut command = own_process(&["demo-traffic", "--port", &port.to_string(), "--rate", &rate.to_string()])?;
        Ok(Traffic(Some(command.stdin(Stdio::null()).spawn()?)))
    }

    pub fn pid(&self) -> Option<u32> {
        self.0.as_ref().map(Child::id)
    }

    /// Notices its end. It is not started again: who ends it has had enough of it.
    pub fn look_after(&mut self) {
        if let Some(status) = self.0.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
            say(&format!("the traffic has ended ({status})"));
            self.0 = None;
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

/// Asks each shop so many times a second, until the process is ended.
pub fn run(port: u16, rate: u32) -> io::Result<()> {
    // Who started us may be killed: then nobody else ends us.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The certificate is made in the proxy's memory at its start, and signed by nobody. Any is taken here: the connection
    // does not leave this machine, and all that could be stolen are users who are made up.
    let settings = ClientSettings { verify: false, ca: Vec::new(), http2: false };
    let tls = client_config(&settings).map_err(io::Error::other)?;
    let shops = MODES.map(|mode| Shop::new(mode, port, &tls));
    let [sticky, shared, stateless] = shops;
    let shops = [Rc::new(sticky?), Rc::new(shared?), Rc::new(stateless?)];
    LocalSet::new().block_on(&executor, play(Schedule::new(f64::from(rate), SEED), shops));
    Ok(())
}

async fn play(schedule: Schedule, shops: [Rc<Shop>; MODES.len()]) {
    wait_for(shops[0].address).await;
    let _reporting = Owned::spawn(report(shops.clone()));
    let began = Clock::now();
    // Each is somebody else in each shop.
    let mut users: HashMap<u64, [Rc<User>; MODES.len()]> = HashMap::new();
    for turn in schedule {
        tokio::time::sleep((began + turn.at).since(Clock::now())).await;
        let of_session = users.entry(turn.session).or_insert_with(|| MODES.map(|_| Rc::new(User::new(name(&turn)))));
        for (shop, user) in shops.iter().zip(of_session.iter()) {
            shop.send(user, turn.act);
        }
        if turn.act == Act::Leave {
            users.remove(&turn.session);
        }
    }
}

/// Before the proxy listens there is nobody to ask.
async fn wait_for(address: SocketAddr) {
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn name(turn: &Turn) -> String {
    format!("{}-{}", if turn.is_robot { "robot" } else { "shopper" }, turn.session)
}

async fn report(shops: [Rc<Shop>; MODES.len()]) {
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        for shop in &shops {
            let (unanswered, left_out) = (shop.unanswered.take(), shop.left_out.take());
            if unanswered + left_out > 0 {
                say(&format!(
                    "traffic: in {} s the {} shop left {unanswered} requests without an answer; {left_out} were not \
                     sent, as {MOST_UNDER_WAY} were under way",
                    REPORT_EVERY.as_secs(),
                    shop.mode
                ));
            }
        }
    }
}

type Sender = SendRequest<Full<Bytes>>;

/// One shop, and the connections to it that nobody uses now.
struct Shop {
    mode: &'static str,
    address: SocketAddr,
    host: HeaderValue,
    name: ServerName<'static>,
    tls: TlsConnector,
    /// No more than [`MOST_UNDER_WAY`], as each was used at the same time as the others.
    idle: RefCell<Vec<Sender>>,
    under_way: Cell<usize>,
    /// Since the last report.
    unanswered: Cell<u64>,
    left_out: Cell<u64>,
}

impl Shop {
    fn new(mode: &'static str, port: u16, tls: &Arc<ClientConfig>) -> io::Result<Self> {
        let host = format!("{mode}.localhost");
        Ok(Shop {
            mode,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            host: HeaderValue::try_from(format!("{host}:{port}")).map_err(io::Error::other)?,
            name: ServerName::try_from(host).map_err(io::Error::other)?,
            tls: TlsConnector::from(Arc::clone(tls)),
            idle: RefCell::default(),
            under_way: Cell::new(0),
            unanswered: Cell::new(0),
            left_out: Cell::new(0),
        })
    }

    /// Sends what a user asks for in this turn, and does not wait.
    fn send(self: &Rc<Self>, user: &Rc<User>, act: Act) {
        if self.under_way.get() >= MOST_UNDER_WAY {
            return self.left_out.set(self.left_out.get() + 1);
        }
        let Some((errand, request)) = user.begin(act, &self.host) else { return };
        self.under_way.set(self.under_way.get() + 1);
        let (shop, user) = (Rc::clone(self), Rc::clone(user));
        // It ends with the answer, or with its user's patience.
        tasks::spawn(async move {
            let answer = tokio::time::timeout(PATIENCE, shop.ask(request)).await.ok().flatten();
            user.end(&errand, answer.as_ref());
            if answer.is_none() {
                shop.unanswered.set(shop.unanswered.get() + 1);
            }
            shop.under_way.set(shop.under_way.get() - 1);
        });
    }

    /// The answer, or none where the connection broke.
    async fn ask(&self, request: Request<Full<Bytes>>) -> Option<Response<Bytes>> {
        let mut sender = self.connection().await?;
        let (parts, body) = sender.send_request(request).await.ok()?.into_parts();
        let body = Limited::new(body, MOST_ANSWER_BYTES).collect().await.ok()?.to_bytes();
        self.idle.borrow_mut().push(sender);
        Some(Response::from_parts(parts, body))
    }

    /// The connection that was used last and is still open, or a new one.
    async fn connection(&self) -> Option<Sender> {
        loop {
            let kept = self.idle.borrow_mut().pop();
            let Some(mut sender) = kept else { return self.connect().await };
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    async fn connect(&self) -> Option<Sender> {
        let stream = TcpStream::connect(self.address).await.ok()?;
        let _ = stream.set_nodelay(true);
        let stream = self.tls.connect(self.name.clone(), stream).await.ok()?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        // It ends with the proxy, or when nobody has its sender any more.
        tasks::spawn(async move {
            let _ = connection.await;
        });
        Some(sender)
    }
}
