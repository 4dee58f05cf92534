//! One Redis (or Valkey) node as a store of sessions.
//!
//! A record lies under [`Key::text`]: eight bytes of revision, big-endian, then the sealed value; the node forgets it by
//! itself. A change is one Lua script on one hash tag, so its guard and its writes are one step. Whatever else there is
//! to ask is a pipeline of plain commands that name their keys.
//!
//! # Whose reply is whose
//!
//! All asks of an instance share one connection, and an ask may be dropped at any moment; its reply must not reach
//! another. The socket belongs to one task, the `redis` crate's driver. An ask reaches it as one message, with all its
//! commands; the driver either skips the message (whoever asked has gone) or takes it whole, and leaves a place in a
//! queue for as many replies as there are commands. Replies come in the order of commands, for this is RESP2 and the
//! connection subscribes to nothing, and each goes to the place at the front. Dropping an ask touches neither socket
//! nor queue: a reply that nobody waits for is read and thrown away. When a read or a write fails, the driver ends, and
//! the whole queue with it.
//!
//! What is left to this file: only the driver has the socket, a connection is shared once its handshake is complete,
//! as many replies are asked for as commands are sent, and a connection whose replies do not fit their questions is
//! given up together with every ask that waits for it. The last line of defence is not here: a record is sealed for its
//! own name, so a stray one does not open.
//!
//! # When the node is away
//!
//! A connection is made when an ask finds none, by a task of its own that several asks wait for and none can abort. A
//! connection is replaced when it fails, when nothing at all came back on it for as long as an ask may take, and when
//! the node turns out to be a replica. Only a read is asked again: whether a lost change was made, nobody can tell.
//!
//! This is for one node. It knows no Sentinel and no Cluster, does not wait for replicas (so a durable change is one
//! that the node has answered), and does not rest after failures: that is for whoever holds several stores.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use redis::aio::{MultiplexedConnection, PubSub, PubSubSink, PubSubStream};
use redis::{
    AsyncConnectionConfig, ErrorKind, Pipeline, RedisConnectionInfo, RedisError, ServerError, ServerErrorKind, Value,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use zeroize::Zeroize;

use crate::session::store::{Answer, Ask, Asking, Change, Entry, Guard, Key, Put, SessionStore, StoreError};
use crate::tasks::{self, Owned};

/// Subjects that a list is made of; past it there is no use in a list.
const MOST_SUBJECTS: usize = 10_000;
const MOST_READ_AT_ONCE: usize = 256;

/// The port of Redis, where an address names none.
const PORT: u16 = 6379;
/// The time for a connection and for an ask, where nothing else is set.
const TIMEOUT: Duration = Duration::from_millis(250);
/// The rest between two attempts to listen.
const PAUSE: Duration = Duration::from_millis(250);
/// After so long a silence a listener asks whether anybody is there.
const QUIET: Duration = Duration::from_secs(5);
/// Longer than any session, and short enough that Redis can add it to the time of day.
const LONGEST_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Keeps what is between us and the node from forgetting a connection that rests.
const KEEP_ALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);

/// Bytes of the revision that every record begins with.
const REVISION_BYTES: usize = size_of::<u64>();

/// Makes a change. KEYS: the guard's record, what is written, what is deleted. ARGV: the revision that the guard's record
/// must have, or nothing if there must be no such record; then a value and its milliseconds for each record written.
const CHANGE_SOURCE: &str = "\
local guard, expected = KEYS[1], ARGV[1]
if expected == '' then
  if redis.call('EXISTS', guard) == 1 then
    return 0
  end
elseif redis.call('GETRANGE', guard, 0, 7) ~= expected then
  return 0
end
local puts = (#ARGV - 1) / 2
for put = 1, puts do
  redis.call('SET', KEYS[1 + put], ARGV[2 * put], 'PX', ARGV[2 * put + 1])
end
for deleted = puts + 2, #KEYS do
  redis.call('DEL', KEYS[deleted])
end
return 1
";

static CHANGE: LazyLock<redis::Script> = LazyLock::new(|| redis::Script::new(CHANGE_SOURCE));

/// Where the node is, and how it is spoken to.
#[derive(Clone, PartialEq)]
pub struct RedisSettings {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    /// Authorities, in PEM form; none: the system's.
    pub ca_pem: Option<Vec<u8>>,
    pub username: Option<String>,
    pub password: Option<String>,
    pub database: i64,
    /// How long a connection may take, with TLS and login.
    pub connect: Duration,
    /// How long an ask may take, with the wait for a connection.
    pub timeout: Duration,
}

/// Why there can be no such store.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RedisSettingsError {
    #[error("it begins with `redis://`, or with `rediss://` for TLS")]
    Scheme,
    #[error("credentials do not belong in it: use `username` and `password`")]
    Credentials,
    #[error("it names no host: it is written `redis://host:6379` or `redis://[::1]:6379`")]
    Host,
    #[error("`{0}` is no port")]
    Port(String),
    #[error("`{0}` is no number of a database: `/0` is the first one")]
    Database(String),
    #[error("`{0}` cannot be the name on a certificate")]
    Name(String),
    #[error("there is no certificate in the text of its authorities")]
    NoAuthority,
    #[error("TLS to it cannot be set up: {0}")]
    Tls(String),
}

impl RedisSettings {
    /// Reads `redis://host:port/database`, or `rediss://` for TLS; port and database may be left out.
    pub fn parse_url(url: &str) -> Result<Self, RedisSettingsError> {
        let (scheme, rest) = url.split_once("://").ok_or(RedisSettingsError::Scheme)?;
        let tls = match scheme {
            "redis" => false,
            "rediss" => true,
            _ => return Err(RedisSettingsError::Scheme),
        };
        // A password may hold any character, so this comes before anything that an error would quote.
        if rest.contains('@') {
            return Err(RedisSettingsError::Credentials);
        }
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = parse_authority(authority)?;
        let database = match database {
            "" => 0,
            number => parse_number(number).ok_or_else(|| RedisSettingsError::Database(number.to_owned()))?,
        };
        Ok(RedisSettings {
            host: host.to_owned(),
            port,
            tls,
            ca_pem: None,
            username: None,
            password: None,
            database,
            connect: TIMEOUT,
            timeout: TIMEOUT,
        })
    }
}

/// Splits `host:port`, `host`, `[::1]:port` and `[::1]`.
fn parse_authority(authority: &str) -> Result<(&str, u16), RedisSettingsError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']').ok_or(RedisSettingsError::Host)?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_bad = |character: char| character.is_whitespace() || matches!(character, '?' | '#' | '[' | ']');
    if host.is_empty() || host.contains(is_bad) {
        return Err(RedisSettingsError::Host);
    }
    if port.is_empty() {
        return Ok((host, PORT));
    }
    let number = port.strip_prefix(':').and_then(parse_number).filter(|port| *port != 0);
    Ok((host, number.ok_or_else(|| RedisSettingsError::Port(port.trim_start_matches(':').to_owned()))?))
}

/// A number of digits only: Rust's own parser takes a sign too.
fn parse_number<N: std::str::FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("RedisSettings")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("tls", &self.tls)
            .field("ca_pem", &self.ca_pem.as_ref().map(Vec::len))
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "(hidden)"))
            .field("database", &self.database)
            .field("connect", &self.connect)
            .field("timeout", &self.timeout)
            .finish()
    }
}

impl Drop for RedisSettings {
    fn drop(&mut self) {
        self.password.zeroize();
    }
}

/// A node as one worker uses it.
pub struct Redis {
    node: Rc<Node>,
    /// The latest attempt to connect; the connection, if that was made, is in it.
    attempt: RefCell<Option<Attempt>>,
}

/// Nothing yet, or what became of it.
type Attempt = watch::Receiver<Option<Result<Rc<Connection>, StoreError>>>;

/// The connection that an ask was sent on, and how many answers it had given by then.
type InUse = Cell<Option<(Rc<Connection>, u64)>>;

impl Redis {
    /// A store that connects when it is first asked. Where the system's authorities count, they are read here.
    pub fn new(settings: Arc<RedisSettings>) -> Result<Self, RedisSettingsError> {
        Ok(Redis { node: Rc::new(Node::new(settings)?), attempt: RefCell::default() })
    }

    /// Tells all who listen on a channel, through this node.
    pub async fn publish(&self, channel: &str, payload: &[u8]) -> Result<(), StoreError> {
        self.carry_out(false, async |connection| connection.publish(channel, payload).await).await
    }

    /// Every subject's record, by a scan that leaves the node free for others between its steps.
    pub async fn subjects(&self) -> Result<Vec<(Key, Entry)>, StoreError> {
        let mut found = Vec::new();
        let mut cursor = b"0".to_vec();
        loop {
            let (next, keys) = self.carry_out(true, async |connection| connection.scan(&cursor).await).await?;
            for some in keys.chunks(MOST_READ_AT_ONCE) {
                let Answer::Entries(entries) = self.ask(Ask::Read(some.to_vec())).await? else {
                    return Err(StoreError::Confused);
                };
                found.extend(some.iter().zip(entries).filter_map(|(key, entry)| Some((*key, entry?))));
            }
            if next == b"0" || found.len() >= MOST_SUBJECTS {
                return Ok(found);
            }
            cursor = next;
        }
    }

    /// Does something on a connection, within the time of an ask; what is `repeatable`, on a second connection when the
    /// first one is lost.
    async fn carry_out<T>(
        &self,
        repeatable: bool,
        work: impl AsyncFn(&Connection) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let in_use = InUse::default();
        let tries = async {
            match self.carry_out_once(&work, &in_use).await {
                Err(Failure::Lost(_)) if repeatable => self.carry_out_once(&work, &in_use).await,
                tried => tried,
            }
        };
        match tokio::time::timeout(self.node.settings.timeout, tries).await {
            Ok(tried) => tried.map_err(StoreError::from),
            Err(_) => {
                self.retire_if_silent(in_use);
                Err(StoreError::TimedOut)
            }
        }
    }

    async fn carry_out_once<T>(
        &self,
        work: &impl AsyncFn(&Connection) -> Result<T, Failure>,
        in_use: &InUse,
    ) -> Result<T, Failure> {
        let connection = self.connection().await.map_err(Failure::NotConnected)?;
        in_use.set(Some((Rc::clone(&connection), connection.answers.get())));
        let done = work(&connection).await;
        if done.as_ref().is_err_and(Failure::spoils_the_connection) {
            self.retire(&connection);
        }
        done
    }

    /// The connection that there is, or the one that comes of an attempt.
    async fn connection(&self) -> Result<Rc<Connection>, StoreError> {
        if let Some(connection) = self.open_connection() {
            return Ok(connection);
        }
        let mut attempt = self.attempt_under_way();
        let given_up = || StoreError::Unavailable("the attempt to connect was given up".to_owned());
        let made = attempt.wait_for(Option::is_some).await.map_err(|_| given_up())?;
        made.clone().unwrap_or_else(|| Err(given_up()))
    }

    fn open_connection(&self) -> Option<Rc<Connection>> {
        match &*self.attempt.borrow().as_ref()?.borrow() {
            Some(Ok(connection)) if connection.is_open() => Some(Rc::clone(connection)),
            _ => None,
        }
    }

    /// Joins the attempt that is under way, or starts one.
    fn attempt_under_way(&self) -> Attempt {
        let mut latest = self.attempt.borrow_mut();
        // One without a result whose task has gone will have none.
        let is_under_way = |attempt: &&Attempt| attempt.borrow().is_none() && attempt.has_changed().is_ok();
        match latest.as_ref().filter(is_under_way) {
            Some(attempt) => attempt.clone(),
            None => latest.insert(self.start_attempt()).clone(),
        }
    }

    fn start_attempt(&self) -> Attempt {
        let (outcome, attempt) = watch::channel(None);
        let node = Rc::clone(&self.node);
        // Owned by nobody, as no ask may end it for the others: it ends by itself, within the time to connect.
        tasks::spawn(async move {
            let connected = node.connect().await;
            // Nobody is there to be told if the store has been dropped meanwhile.
            let _ = outcome.send(Some(connected));
        });
        attempt
    }

    /// Sees to it that nobody uses a connection any more; who waits for a reply on it goes on waiting.
    fn retire(&self, connection: &Rc<Connection>) {
        let mut latest = self.attempt.borrow_mut();
        let is_latest = |attempt: &mut Attempt| {
            let outcome = attempt.borrow();
            matches!(&*outcome, Some(Ok(current)) if Rc::ptr_eq(current, connection))
        };
        latest.take_if(is_latest);
    }

    /// An ask that took too long may only be slow; if nobody else was answered either, the connection leads nowhere.
    fn retire_if_silent(&self, in_use: InUse) {
        if let Some((connection, answers)) = in_use.into_inner()
            && connection.answers.get() == answers
        {
            self.retire(&connection);
        }
    }
}

impl SessionStore for Redis {
    fn ask(&self, ask: Ask) -> Asking<'_> {
        let repeatable = matches!(ask, Ask::Read(_));
        Box::pin(async move { self.carry_out(repeatable, async |connection| connection.ask(&ask).await).await })
    }

    fn pause(&self, tries: u32) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        let longest = u64::from(tries).saturating_mul(2).max(1);
        Box::pin(tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=longest))))
    }
}

/// Why something was not done on a connection.
#[derive(Debug)]
enum Failure {
    /// There was none.
    NotConnected(StoreError),
    /// It went away meanwhile: what became of the ask is not known.
    Lost(RedisError),
    /// The node says no.
    Refused(ServerError),
    /// The replies do not fit the question.
    Confused,
}

impl Failure {
    fn spoils_the_connection(&self) -> bool {
        match self {
            Failure::NotConnected(_) => false,
            Failure::Lost(_) | Failure::Confused => true,
            // It has become a replica: behind the same name there is a primary by now, or will be.
            Failure::Refused(error) => {
                matches!(error.kind(), Some(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown))
            }
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotConnected(error) => error,
            Failure::Lost(error) => failed(error),
            Failure::Refused(error) if is_out_of_memory(&error) => StoreError::Full,
            Failure::Refused(error) => {
                let details = error.details().map(|details| format!(" {details}")).unwrap_or_default();
                StoreError::Unavailable(format!("{}{details}", error.code()))
            }
            Failure::Confused => StoreError::Confused,
        }
    }
}

/// Before version 7, what a command inside a script was told is in the text of the script's own error.
fn is_out_of_memory(error: &ServerError) -> bool {
    error.code() == "OOM" || error.details().is_some_and(|details| details.contains("-OOM "))
}

/// What a failed connection is called. What is no answer of Redis is not quoted: it may be anything.
fn failed(error: RedisError) -> StoreError {
    StoreError::Unavailable(match error.kind() {
        ErrorKind::Parse => "it does not speak the protocol of Redis".to_owned(),
        ErrorKind::AuthenticationFailed => "it refuses the username or the password".to_owned(),
        _ => error.to_string(),
    })
}

/// An open connection, for as long as somebody uses it.
struct Connection {
    client: MultiplexedConnection,
    is_closed: Rc<Cell<bool>>,
    /// Replies that were not for what was asked: none is believed any more.
    is_confused: Cell<bool>,
    answers: Cell<u64>,
    /// Ends with the last use, and closes the socket.
    _driver: Owned,
}

impl Connection {
    fn new(client: MultiplexedConnection, driver: impl Future<Output = ()> + 'static) -> Self {
        let is_closed = Rc::new(Cell::new(false));
        let told = Rc::clone(&is_closed);
        let driver = Owned::spawn(async move {
            driver.await;
            told.set(true);
        });
        Connection { client, is_closed, is_confused: Cell::new(false), answers: Cell::new(0), _driver: driver }
    }

    fn is_open(&self) -> bool {
        !self.is_closed.get()
    }

    async fn ask(&self, ask: &Ask) -> Result<Answer, Failure> {
        let by_hash = ("EVALSHA", CHANGE.get_hash());
        let replies = match self.exchange(&commands(ask, by_hash)).await {
            // Then it did nothing, and may be sent again.
            Err(Failure::Refused(error)) if error.kind() == Some(ServerErrorKind::NoScript) => {
                self.exchange(&commands(ask, ("EVAL", CHANGE_SOURCE))).await?
            }
            replies => replies?,
        };
        self.fitting(answer(ask, replies))
    }

    async fn publish(&self, channel: &str, payload: &[u8]) -> Result<(), Failure> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("PUBLISH").arg(channel).arg(payload);
        let replies = self.exchange(&pipeline).await?;
        self.fitting(all_numbers(&replies).then_some(()))
    }

    /// One step of a scan for subjects: where the next begins, and what was found.
    async fn scan(&self, cursor: &[u8]) -> Result<(Vec<u8>, Vec<Key>), Failure> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("SCAN").arg(cursor).arg("MATCH").arg("sf1:*:n:*").arg("COUNT").arg(1_000);
        let replies = self.exchange(&pipeline).await?;
        self.fitting(scanned(replies))
    }

    /// Sends commands and waits for a reply to each.
    async fn exchange(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Failure> {
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let replies = self.client.clone().send_packed_commands(pipeline, 0, pipeline.len()).await;
        let replies = replies.map_err(Failure::Lost)?;
        self.answers.set(self.answers.get().wrapping_add(1));
        self.fitting((!self.is_confused.get() && replies.len() == pipeline.len()).then_some(()))?;
        let refusal = replies.iter().find_map(|reply| match reply {
            Value::ServerError(error) => Some(error.clone()),
            _ => None,
        });
        refusal.map_or(Ok(replies), |error| Err(Failure::Refused(error)))
    }

    fn fitting<T>(&self, read: Option<T>) -> Result<T, Failure> {
        read.ok_or_else(|| {
            self.is_confused.set(true);
            Failure::Confused
        })
    }
}

/// What an ask is in the words of Redis; `script` is how the script of changes is called.
fn commands(ask: &Ask, script: (&str, &str)) -> Pipeline {
    let mut pipeline = Pipeline::new();
    match ask {
        Ask::Read(keys) => {
            for key in keys.iter().map(Key::text) {
                pipeline.cmd("GET").arg(&key);
                pipeline.cmd("PTTL").arg(&key);
            }
        }
        Ask::Change(change) => add_change(&mut pipeline, change, script),
        Ask::Touch(touched) => {
            for (key, life) in touched {
                pipeline.cmd("PEXPIRE").arg(key.text()).arg(milliseconds(*life));
            }
        }
        Ask::Delete(keys) => {
            for key in keys {
                pipeline.cmd("UNLINK").arg(key.text());
            }
        }
    }
    pipeline
}

fn add_change(pipeline: &mut Pipeline, change: &Change, script: (&str, &str)) {
    let guard = change.guard.key();
    let written = change.put.iter().map(|put| &put.key);
    let keys = std::iter::once(&guard).chain(written).chain(&change.delete);
    pipeline.cmd(script.0).arg(script.1).arg(1 + change.put.len() + change.delete.len());
    keys.for_each(|key| {
        pipeline.arg(key.text());
    });
    match change.guard {
        Guard::Absent(_) => pipeline.arg(""),
        Guard::Unchanged(_, revision) => pipeline.arg(&revision.to_be_bytes()[..]),
    };
    for put in &change.put {
        pipeline.arg(stored(put)).arg(milliseconds(put.expires_in));
    }
}

/// A record as Redis keeps it.
fn stored(put: &Put) -> Vec<u8> {
    [&put.revision.to_be_bytes()[..], &put.value].concat()
}

/// At least one: Redis refuses a life of none, and would do so in the middle of a script.
fn milliseconds(life: Duration) -> u64 {
    u64::try_from(life.min(LONGEST_LIFE).as_millis()).unwrap_or(u64::MAX).max(1)
}

/// What the replies to an ask's commands say; none: they are no replies to these.
fn answer(ask: &Ask, replies: Vec<Value>) -> Option<Answer> {
    match ask {
        Ask::Read(_) => entries(replies).map(Answer::Entries),
        Ask::Change(_) => match replies[..] {
            [Value::Int(held @ (0 | 1))] => Some(Answer::Changed(held == 1)),
            _ => None,
        },
        Ask::Touch(_) | Ask::Delete(_) => all_numbers(&replies).then_some(Answer::Done),
    }
}

fn scanned(replies: Vec<Value>) -> Option<(Vec<u8>, Vec<Key>)> {
    let [Value::Array(reply)] = <[Value; 1]>::try_from(replies).ok()? else { return None };
    let [Value::BulkString(next), Value::Array(keys)] = <[Value; 2]>::try_from(reply).ok()? else { return None };
    let key = |key: Value| match key {
        Value::BulkString(text) => std::str::from_utf8(&text).ok().and_then(Key::parse),
        _ => None,
    };
    Some((next.to_vec(), keys.into_iter().filter_map(key).collect()))
}

fn all_numbers(replies: &[Value]) -> bool {
    replies.iter().all(|reply| matches!(reply, Value::Int(_)))
}

fn entries(replies: Vec<Value>) -> Option<Vec<Option<Entry>>> {
    let mut entries = Vec::with_capacity(replies.len() / 2);
    let mut replies = replies.into_iter();
    while let Some(value) = replies.next() {
        entries.push(entry(value, replies.next()?)?);
    }
    Some(entries)
}

/// The replies to GET and PTTL. They are two moments: what expires between them is gone.
fn entry(value: Value, life: Value) -> Option<Option<Entry>> {
    match (value, life) {
        (Value::Nil, Value::Int(_)) | (Value::BulkString(_), Value::Int(-2)) => Some(None),
        (Value::BulkString(record), Value::Int(life)) => {
            // Without an end it is not ours; it is not to be kept any longer for that.
            let expires_in = Duration::from_millis(u64::try_from(life).unwrap_or(0));
            let (revision, value) = split(record.into());
            Some(Some(Entry { revision, value, expires_in }))
        }
        _ => None,
    }
}

/// Revision and sealed value of a record. What is too short for both is somebody else's and will not open.
fn split(record: Bytes) -> (u64, Bytes) {
    match record.first_chunk::<REVISION_BYTES>() {
        Some(revision) => (u64::from_be_bytes(*revision), record.slice(REVISION_BYTES..)),
        None => (0, record),
    }
}

/// How the node is reached.
struct Node {
    settings: Arc<RedisSettings>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// A byte stream, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Node {
    fn new(settings: Arc<RedisSettings>) -> Result<Self, RedisSettingsError> {
        let tls = settings.tls.then(|| tls(&settings)).transpose()?;
        Ok(Node { settings, tls })
    }

    async fn connect(&self) -> Result<Rc<Connection>, StoreError> {
        let connect = async {
            // Asks have a deadline of their own.
            let config = AsyncConnectionConfig::new().set_response_timeout(None);
            let stream = self.stream().await?;
            let connected = MultiplexedConnection::new_with_config(&self.login(), stream, config).await;
            let (client, driver) = connected.map_err(failed)?;
            Ok(Rc::new(Connection::new(client, driver)))
        };
        self.in_time(connect).await
    }

    /// A connection that does nothing but listen. Its task is the `redis` crate's, and ends with the second half.
    async fn listen(&self, channel: &str) -> Result<(PubSubSink, PubSubStream), StoreError> {
        let connect = async {
            let stream = self.stream().await?;
            let mut listener = PubSub::new(&self.login(), stream).await.map_err(failed)?;
            listener.subscribe(channel).await.map_err(failed)?;
            Ok(listener.split())
        };
        self.in_time(connect).await
    }

    async fn in_time<T>(&self, connect: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let limit = self.settings.connect;
        let too_late = |_| Err(StoreError::Unavailable(format!("no connection within {limit:?}")));
        tokio::time::timeout(limit, connect).await.unwrap_or_else(too_late)
    }

    async fn stream(&self) -> Result<Box<dyn Stream>, StoreError> {
        self.open_stream().await.map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    async fn open_stream(&self) -> io::Result<Box<dyn Stream>> {
        let tcp = self.tcp().await?;
        // Small requests would wait for the acknowledgement of the one before.
        tcp.set_nodelay(true)?;
        // A socket can do without, if the system has it not.
        let _ = SockRef::from(&tcp).set_tcp_keepalive(&KEEP_ALIVE);
        Ok(match &self.tls {
            None => Box::new(tcp),
            Some((connector, name)) => Box::new(connector.connect(name.clone(), tcp).await?),
        })
    }

    /// Several addresses of a name are tried in turn: one that swallows everything must leave time for the others.
    async fn tcp(&self) -> io::Result<TcpStream> {
        let RedisSettings { host, port, connect, .. } = &*self.settings;
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), *port)).await?.collect();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
        for (address, left) in addresses.iter().zip((1..=addresses.len()).rev()) {
            let limit = *connect / u32::try_from(left).unwrap_or(u32::MAX);
            match tokio::time::timeout(limit, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => return Ok(tcp),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    fn login(&self) -> RedisConnectionInfo {
        let mut login = RedisConnectionInfo::default()
            // The order of replies is all that says whose they are: none may come unasked.
            .set_protocol(redis::ProtocolVersion::RESP2)
            .set_db(self.settings.database)
            .set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        if let Some(username) = &self.settings.username {
            login = login.set_username(username);
        }
        if let Some(password) = &self.settings.password {
            login = login.set_password(password);
        }
        login
    }
}

/// TLS is set up here and once: the `redis` crate would read the system's authorities again for every connection, on
/// the worker's thread.
fn tls(settings: &RedisSettings) -> Result<(TlsConnector, ServerName<'static>), RedisSettingsError> {
    let setup = |error: rustls::Error| RedisSettingsError::Tls(error.to_string());
    let name = ServerName::try_from(settings.host.clone());
    let name = name.map_err(|_| RedisSettingsError::Name(settings.host.clone()))?;
    let builder = ClientConfig::builder();
    let config = match &settings.ca_pem {
        None => builder.with_platform_verifier().map_err(setup)?.with_no_client_auth(),
        Some(pem) => builder.with_root_certificates(authorities(pem)?).with_no_client_auth(),
    };
    Ok((TlsConnector::from(Arc::new(config)), name))
}

fn authorities(pem: &[u8]) -> Result<RootCertStore, RedisSettingsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| RedisSettingsError::NoAuthority)?;
        roots.add(certificate).map_err(|error| RedisSettingsError::Tls(error.to_string()))?;
    }
    if roots.is_empty() { Err(RedisSettingsError::NoAuthority) } else { Ok(roots) }
}

/// Listens on a channel for as long as the future is polled, and connects again whenever that fails. What is said
/// meanwhile is missed: this is for telling others sooner, not for telling them at all.
///
/// It comes back only where [`Redis::new`] with the same settings says why.
pub async fn subscribe(settings: Arc<RedisSettings>, channel: &str, mut on_message: impl FnMut(Vec<u8>)) {
    let node = match Node::new(settings) {
        Ok(node) => node,
        Err(error) => return tracing::error!(channel, %error, "the store's messages cannot be listened to"),
    };
    let mut is_reported = false;
    loop {
        let Err(error) = listen(&node, channel, &mut on_message, &mut is_reported).await;
        if !std::mem::replace(&mut is_reported, true) {
            tracing::warn!(channel, %error, "the store's messages are not heard");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Listens until the connection fails.
async fn listen(
    node: &Node,
    channel: &str,
    on_message: &mut impl FnMut(Vec<u8>),
    is_reported: &mut bool,
) -> Result<Infallible, StoreError> {
    let (mut sink, mut messages) = node.listen(channel).await?;
    if std::mem::take(is_reported) {
        tracing::info!(channel, "the store's messages are heard again");
    }
    loop {
        match tokio::time::timeout(QUIET, messages.next()).await {
            Ok(Some(message)) => on_message(message.get_payload_bytes().to_vec()),
            Ok(None) => return Err(StoreError::Unavailable("the connection was closed".to_owned())),
            Err(_) => ping(&mut sink, node.settings.timeout).await?,
        }
    }
}

/// A listener that hears nothing cannot tell a quiet channel from a dead connection.
async fn ping(sink: &mut PubSubSink, limit: Duration) -> Result<(), StoreError> {
    let ping = tokio::time::timeout(limit, sink.ping::<Value>()).await;
    ping.map_err(|_| StoreError::TimedOut)?.map(|_| ()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::store::{Class, Kind};

    fn key(id: u8) -> Key {
        Key { tag: 7, kind: Kind::Lineage, id: [id; 20] }
    }

    fn put(id: u8, revision: u64, value: &'static [u8], expires_in: Duration) -> Put {
        Put { key: key(id), revision, value: value.into(), expires_in, class: Class::Anonymous }
    }

    /// Every command of an ask: its words, as text where they are.
    fn words(ask: &Ask) -> Vec<Vec<String>> {
        let pipeline = commands(ask, ("EVALSHA", "hash"));
        let commands = pipeline.cmd_iter().map(|command| {
            let words = command.args_iter().map(|word| match word {
                redis::Arg::Simple(word) => word.escape_ascii().to_string(),
                _ => "?".to_owned(),
            });
            words.collect()
        });
        commands.collect()
    }

    fn refusal(line: &str) -> Failure {
        match redis::parse_redis_value(format!("-{line}\r\n").as_bytes()) {
            Ok(Value::ServerError(error)) => Failure::Refused(error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_address_has_a_host_and_perhaps_a_port_and_a_database() {
        let parse = |url: &str| {
            let settings = RedisSettings::parse_url(url).unwrap();
            (settings.host.clone(), settings.port, settings.tls, settings.database)
        };
        assert_eq!(parse("redis://cache"), ("cache".to_owned(), 6379, false, 0));
        assert_eq!(parse("redis://cache/"), ("cache".to_owned(), 6379, false, 0));
        assert_eq!(parse("rediss://cache.internal:6380/3"), ("cache.internal".to_owned(), 6380, true, 3));
        assert_eq!(parse("redis://[::1]"), ("::1".to_owned(), 6379, false, 0));
        assert_eq!(parse("rediss://[::1]:7/1"), ("::1".to_owned(), 7, true, 1));
    }

    #[test]
    fn what_is_no_address_is_explained() {
        use RedisSettingsError::{Credentials, Database, Host, Port, Scheme};
        let port = |text: &str| Port(text.to_owned());
        let database = |text: &str| Database(text.to_owned());
        for (url, expected) in [
            ("cache:6379", Scheme),
            ("http://cache", Scheme),
            ("redis+unix:///run/redis", Scheme),
            ("redis://", Host),
            ("redis://:6379", Host),
            ("redis:///0", Host),
            ("redis://[::1", Host),
            ("redis://cache?db=1", Host),
            ("redis://:secret@cache", Credentials),
            ("redis://user:se/cret@cache", Credentials),
            ("redis://cache:", port("")),
            ("redis://cache:0", port("0")),
            ("redis://cache:+1", port("+1")),
            ("redis://cache:65536", port("65536")),
            ("redis://::1:6379", Host),
            ("redis://cache/one", database("one")),
            ("redis://cache/-1", database("-1")),
            ("redis://cache/1?protocol=3", database("1?protocol=3")),
        ] {
            assert_eq!(RedisSettings::parse_url(url), Err(expected), "{url}");
        }
        assert!(Credentials.to_string().contains("`username` and `password`"));
    }

    #[test]
    fn a_password_is_not_printed() {
        let mut settings = RedisSettings::parse_url("redis://cache").unwrap();
        settings.password = Some("hunter2".to_owned());
        let printed = format!("{settings:?}");
        assert!(!printed.contains("hunter2") && printed.contains("cache"), "{printed}");
    }

    #[test]
    fn authorities_are_certificates() {
        assert_eq!(authorities(b"").err(), Some(RedisSettingsError::NoAuthority));
        assert_eq!(authorities(b"hello").err(), Some(RedisSettingsError::NoAuthority));
    }

    #[test]
    fn reads_touches_and_deletions_are_a_command_or_two_for_each_record() {
        let (first, second) = (key(1).text(), key(2).text());
        let read = [["GET", &first], ["PTTL", &first], ["GET", &second], ["PTTL", &second]];
        assert_eq!(words(&Ask::Read(vec![key(1), key(2)])), read);
        let touch = Ask::Touch(vec![(key(1), Duration::from_secs(3)), (key(2), Duration::ZERO)]);
        assert_eq!(words(&touch), [["PEXPIRE", &first, "3000"], ["PEXPIRE", &second, "1"]]);
        assert_eq!(words(&Ask::Delete(vec![key(1), key(2)])), [["UNLINK", &first], ["UNLINK", &second]]);
        assert!(words(&Ask::Read(Vec::new())).is_empty());
    }

    #[test]
    fn a_change_is_one_script_that_names_all_its_keys() {
        let change = Change {
            guard: Guard::Unchanged(key(1), 0x4142),
            put: vec![put(1, 0x4143, b"one", Duration::from_secs(1)), put(2, 1, b"", Duration::MAX)],
            delete: vec![key(3)],
            durable: true,
        };
        let longest = LONGEST_LIFE.as_millis().to_string();
        let (first, second, third) = (key(1).text(), key(2).text(), key(3).text());
        let (zeros, one) = (r"\x00\x00\x00\x00\x00\x00", r"\x00\x00\x00\x00\x00\x00\x00\x01");
        let (expected, written) = (format!("{zeros}AB"), format!("{zeros}ACone"));
        let keys = ["EVALSHA", "hash", "4", &first, &first, &second, &third];
        let arguments = [&expected, &written, "1000", one, &longest];
        assert_eq!(words(&Ask::Change(change.clone())), [[&keys[..], &arguments[..]].concat()]);

        let absent = Change { guard: Guard::Absent(key(1)), put: Vec::new(), ..change };
        assert_eq!(words(&Ask::Change(absent)), [["EVALSHA", "hash", "2", &first, &third, ""]]);
    }

    #[test]
    fn records_are_read_back() {
        let record = stored(&put(1, 258, b"sealed", Duration::ZERO));
        let bulk = |bytes: &[u8]| Value::BulkString(bytes.to_vec());
        let entry = |revision, value: &'static [u8], milliseconds| {
            Some(Entry { revision, value: value.into(), expires_in: Duration::from_millis(milliseconds) })
        };
        let replies = vec![
            bulk(&record),
            Value::Int(1500),
            Value::Nil,
            Value::Int(-2),
            // It expired between the two commands, or was made between them.
            bulk(&record),
            Value::Int(-2),
            Value::Nil,
            Value::Int(20),
            // Not ours: no end, or too short.
            bulk(&record),
            Value::Int(-1),
            bulk(b"short"),
            Value::Int(5),
        ];
        let read = [entry(258, b"sealed", 1500), None, None, None, entry(258, b"sealed", 0), entry(0, b"short", 5)];
        assert_eq!(entries(replies).unwrap(), read);
    }

    #[test]
    fn replies_to_another_question_are_no_answer() {
        let bulk = || Value::BulkString(vec![0; 9]);
        let read = Ask::Read(vec![key(1)]);
        assert_eq!(answer(&read, vec![Value::Int(1), bulk()]), None);
        assert_eq!(answer(&read, vec![bulk()]), None);
        assert_eq!(answer(&read, vec![bulk(), bulk()]), None);
        let change = Change { guard: Guard::Absent(key(1)), put: Vec::new(), delete: Vec::new(), durable: false };
        let change = Ask::Change(change);
        assert_eq!(answer(&change, vec![Value::Int(1)]), Some(Answer::Changed(true)));
        assert_eq!(answer(&change, vec![Value::Int(0)]), Some(Answer::Changed(false)));
        assert_eq!(answer(&change, vec![Value::Int(1500)]), None);
        assert_eq!(answer(&change, vec![Value::Nil]), None);
        assert_eq!(answer(&Ask::Delete(vec![key(1)]), vec![Value::Int(0)]), Some(Answer::Done));
        assert_eq!(answer(&Ask::Touch(Vec::new()), vec![bulk()]), None);
    }

    #[test]
    fn what_the_node_says_is_passed_on() {
        let oom = "OOM command not allowed when used memory > 'maxmemory'.";
        let in_a_script = format!("ERR Error running script (call to f_0): @user_script:10: -{oom}");
        for line in [oom, &in_a_script] {
            assert_eq!(StoreError::from(refusal(line)), StoreError::Full);
        }
        for (line, spoils) in [
            ("READONLY You can't write against a read only replica.", true),
            ("MASTERDOWN Link with MASTER is down", true),
            ("LOADING Redis is loading the dataset in memory", false),
            ("MISCONF Redis is configured to save RDB snapshots", false),
            ("NOAUTH Authentication required.", false),
        ] {
            assert_eq!(refusal(line).spoils_the_connection(), spoils, "{line}");
            assert_eq!(StoreError::from(refusal(line)), StoreError::Unavailable(line.to_owned()));
        }
        assert!(Failure::Confused.spoils_the_connection());
        let http = redis::parse_redis_value(b"HTTP/1.1 400 Bad Request\r\n").unwrap_err();
        let text = "it does not speak the protocol of Redis".to_owned();
        assert_eq!(StoreError::from(Failure::Lost(http)), StoreError::Unavailable(text));
    }
}
