//! One node, as one worker speaks to it: an attempt to connect that asks share, and the task that has the socket.
//!
//! # Whose answer is whose
//!
//! Asks share one connection, and any of them may be dropped at any moment. Only the task reads and writes the
//! socket. An ask reaches it as one message with all its commands; the task skips the message if whoever asked has
//! gone, or else sends all of it and leaves a place in a queue for its answers. Dropping an ask touches neither
//! socket nor queue: an answer that nobody waits for is read and thrown away.
//!
//! Answers come in the order of commands, and besides each says the number that its command was sent with. Numbers go
//! up by one, from a random one for each connection. An answer with another number, one that does not fit its
//! command, one that nobody waits for, and bytes that are no answer end the connection and fail everyone who waits:
//! if one answer is not where it belongs, none is believed.
//!
//! # When the node is away
//!
//! A connection is made when an ask finds none, by a task of its own that several asks wait for and none can abort.
//! It is shared once the node has answered a first command in the way that it has to. It is replaced when it fails,
//! and when nothing at all came back on it for as long as an ask may take. Only a read is asked again, once.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::protocol::{self, Command, Nonsense, Refusal, Reply, Told};
use super::{MemcachedSettings, Node};
use crate::clock::{Clock, Moment};
use crate::session::store::StoreError;
use crate::store::joint::{self, Joint, Open};
use crate::tasks::Owned;

/// Asks that wait to be sent; who comes later waits for a place.
const MOST_QUEUED: usize = 64;
/// Asks that wait for their answers.
const MOST_WAITING: usize = 256;
/// Once so much waits to be sent, no more is added.
const MOST_UNSENT: usize = 256 << 10;
const READ_AT_ONCE: usize = 16 << 10;
/// A buffer that has grown beyond this is given back once it is empty.
const MOST_KEPT: usize = 64 << 10;
/// What is asked first on each connection: a record that nobody has.
pub(super) const GREETING: &str = "sf1:?";

/// Why something was not done on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// There was none.
    NotConnected(StoreError),
    /// It went away meanwhile: what became of the commands is not known.
    Lost(String),
    /// The answers do not fit the questions.
    Confused,
    /// The node says no.
    Refused(Refusal),
}

impl Failure {
    fn spoils_the_connection(&self) -> bool {
        match self {
            Failure::NotConnected(_) | Failure::Refused(_) => false,
            Failure::Lost(_) | Failure::Confused => true,
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotConnected(error) => error,
            Failure::Lost(why) => StoreError::Unavailable(why),
            Failure::Confused => StoreError::Confused,
            Failure::Refused(refusal) if refusal.is_full() => StoreError::Full,
            Failure::Refused(Refusal(words)) => StoreError::Unavailable(words),
        }
    }
}

impl From<Nonsense> for Failure {
    fn from(nonsense: Nonsense) -> Self {
        match nonsense {
            Nonsense::Unreadable => Failure::Confused,
            Nonsense::Misunderstood(refusal) => Failure::Refused(refusal),
        }
    }
}

/// The way to one node.
pub(super) struct Link {
    node: Node,
    settings: Arc<MemcachedSettings>,
    joint: Joint<Connection>,
}

/// The connection that an ask was sent on, how many answers it had given by then, and when that was.
type InUse = Cell<Option<(Rc<Connection>, u64, Moment)>>;

impl Link {
    /// A way that is taken when something is first asked.
    pub(super) fn new(node: Node, settings: Arc<MemcachedSettings>) -> Self {
        Link { node, settings, joint: Joint::default() }
    }

    /// Does something on a connection, within the time of an ask; what is `repeatable`, on a second connection when the
    /// first one is lost.
    pub(super) async fn carry_out<T>(
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
        match tokio::time::timeout(self.settings.timeout, tries).await {
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
        in_use.set(Some((Rc::clone(&connection), connection.answers.get(), Clock::now())));
        let done = work(&connection).await;
        if done.as_ref().is_err_and(Failure::spoils_the_connection) {
            self.joint.let_go(&connection);
        }
        done
    }

    async fn connection(&self) -> Result<Rc<Connection>, StoreError> {
        let connect = || {
            let (node, limit) = (self.node.clone(), self.settings.connect);
            async move {
                let too_late = |_| Err(StoreError::Unavailable(format!("no connection to {node} within {limit:?}")));
                tokio::time::timeout(limit, connect(&node, limit)).await.unwrap_or_else(too_late)
            }
        };
        self.joint.get(connect).await
    }

    /// An ask that took too long may only be slow; if nobody else was answered either, the connection leads nowhere. One
    /// that was begun on a moment ago has not had the time to answer.
    fn retire_if_silent(&self, in_use: InUse) {
        if let Some((connection, answers, begun)) = in_use.into_inner()
            && connection.answers.get() == answers
            && Clock::now().since(begun) >= self.settings.timeout / 2
        {
            self.joint.let_go(&connection);
        }
    }
}

/// A connection on which a first command was answered.
async fn connect(node: &Node, limit: Duration) -> Result<Rc<Connection>, StoreError> {
    let unavailable = |error: io::Error| StoreError::Unavailable(format!("{node}: {error}"));
    let tcp = joint::tcp(&node.host, node.port, limit).await.map_err(unavailable)?;
    let connection = Connection::new(tcp);
    match connection.ask(&[Command::Look { key: GREETING.to_owned() }]).await {
        Ok(_) => Ok(Rc::new(connection)),
        Err(Failure::Confused) => {
            Err(StoreError::Unavailable(format!("{node} does not speak the meta commands of memcached")))
        }
        Err(failure) => Err(failure.into()),
    }
}

/// An open connection, for as long as somebody uses it.
pub(super) struct Connection {
    exchanges: mpsc::Sender<Exchange>,
    answers: Rc<Cell<u64>>,
    /// Ends with the last use, and closes the socket.
    _driver: Owned,
}

/// What an ask has to say, and who wants to know what comes back.
struct Exchange {
    commands: Vec<Command>,
    asker: oneshot::Sender<Result<Vec<Told>, Failure>>,
}

impl Open for Connection {
    fn is_open(&self) -> bool {
        !self.exchanges.is_closed()
    }
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        let (exchanges, received) = mpsc::channel(MOST_QUEUED);
        let answers = Rc::new(Cell::new(0));
        let driver = Driver::new(received, Rc::clone(&answers));
        Connection { exchanges, answers, _driver: Owned::spawn(driver.run(stream)) }
    }

    /// Sends commands and waits for what comes back for each.
    pub(super) async fn exchange(&self, commands: &[Command]) -> Result<Vec<Told>, Failure> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let (asker, told) = oneshot::channel();
        let exchange = Exchange { commands: commands.to_vec(), asker };
        self.exchanges.send(exchange).await.map_err(|_| closed())?;
        told.await.map_err(|_| closed())?
    }

    /// The same where a refusal of one is a failure of all.
    pub(super) async fn ask(&self, commands: &[Command]) -> Result<Vec<Reply>, Failure> {
        let told = self.exchange(commands).await?;
        told.into_iter().collect::<Result<_, _>>().map_err(Failure::Refused)
    }
}

fn closed() -> Failure {
    Failure::Lost("the connection was closed".to_owned())
}

fn lost(error: io::Error) -> Failure {
    Failure::Lost(error.to_string())
}

/// What the task of a connection works with.
struct Driver {
    exchanges: mpsc::Receiver<Exchange>,
    /// What was sent and is not answered yet, in its order.
    waiting: VecDeque<Waiting>,
    unsent: BytesMut,
    unread: BytesMut,
    /// The numbers of the next command and of the next answer.
    next_sent: u64,
    next_heard: u64,
    answers: Rc<Cell<u64>>,
}

struct Waiting {
    exchange: Exchange,
    told: Vec<Told>,
}

impl Driver {
    fn new(exchanges: mpsc::Receiver<Exchange>, answers: Rc<Cell<u64>>) -> Self {
        // Far from the largest, and another one for each connection.
        let first = fastrand::u64(..) >> 16;
        Driver {
            exchanges,
            waiting: VecDeque::new(),
            unsent: BytesMut::new(),
            unread: BytesMut::new(),
            next_sent: first,
            next_heard: first,
            answers,
        }
    }

    /// Carries commands and answers until the connection fails; tells everybody who waits.
    async fn run(mut self, mut stream: TcpStream) {
        let Err(failure) = self.carry(&mut stream).await;
        for waiting in self.waiting {
            // Whoever asked may have gone.
            let _ = waiting.exchange.asker.send(Err(failure.clone()));
        }
    }

    async fn carry(&mut self, stream: &mut TcpStream) -> Result<Infallible, Failure> {
        let (mut reader, mut writer) = stream.split();
        loop {
            let has_room = self.waiting.len() < MOST_WAITING && self.unsent.len() < MOST_UNSENT;
            self.unread.reserve(READ_AT_ONCE);
            tokio::select! {
                exchange = self.exchanges.recv(), if has_room => match exchange {
                    Some(exchange) => self.send(exchange),
                    None => return Err(closed()),
                },
                written = writer.write_buf(&mut self.unsent), if !self.unsent.is_empty() => {
                    if written.map_err(lost)? == 0 {
                        return Err(closed());
                    }
                    give_back(&mut self.unsent);
                }
                read = reader.read_buf(&mut self.unread) => {
                    if read.map_err(lost)? == 0 {
                        return Err(closed());
                    }
                    self.hear()?;
                    give_back(&mut self.unread);
                }
            }
        }
    }

    fn send(&mut self, exchange: Exchange) {
        // Nothing of it was sent yet, so nothing is lost.
        if exchange.asker.is_closed() {
            return;
        }
        for command in &exchange.commands {
            command.write(self.next_sent, &mut self.unsent);
            self.next_sent = self.next_sent.wrapping_add(1);
        }
        let told = Vec::with_capacity(exchange.commands.len());
        self.waiting.push_back(Waiting { exchange, told });
    }

    /// Gives all answers that are there to those whose they are.
    fn hear(&mut self) -> Result<(), Failure> {
        while let Some(told) = protocol::take(&mut self.unread)? {
            let first = self.waiting.front_mut().ok_or(Failure::Confused)?;
            let command = first.exchange.commands.get(first.told.len()).ok_or(Failure::Confused)?;
            if told.as_ref().is_ok_and(|reply| reply.opaque != self.next_heard || !command.fits(reply)) {
                return Err(Failure::Confused);
            }
            self.next_heard = self.next_heard.wrapping_add(1);
            self.answers.set(self.answers.get().wrapping_add(1));
            first.told.push(told);
            if first.told.len() == first.exchange.commands.len()
                && let Some(Waiting { exchange, told }) = self.waiting.pop_front()
            {
                // Whoever asked may have gone: then this is the end of it.
                let _ = exchange.asker.send(Ok(told));
            }
        }
        Ok(())
    }
}

/// Lets go of a buffer that one large record has made large.
fn give_back(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.capacity() > MOST_KEPT {
        *buffer = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memcached::protocol::Code;
    use futures_util::future::join_all;
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    /// Nothing here takes so long unless it hangs.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            tokio::time::timeout(PATIENCE, test).await.expect("it comes to an end");
        });
    }

    /// A node that each test plays itself, and the way to it.
    async fn node(timeout: Duration) -> (TcpListener, Link) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Node { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
        let settings = MemcachedSettings { nodes: vec![node.clone()], connect: PATIENCE, timeout };
        (listener, Link::new(node, Arc::new(settings)))
    }

    /// The next connection, its greeting answered.
    async fn accept(listener: &TcpListener) -> BufReader<TcpStream> {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut stream = BufReader::new(stream);
        let opaque = heard(&mut stream, GREETING).await;
        say(&mut stream, &format!("EN {opaque}\r\n")).await;
        stream
    }

    /// Reads a command of one line; gives its key and its opaque token.
    async fn next(stream: &mut BufReader<TcpStream>) -> (String, String) {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[1].to_owned(), words[words.len() - 1].to_owned())
    }

    /// The opaque token of the next command, which is for this key.
    async fn heard(stream: &mut BufReader<TcpStream>, key: &str) -> String {
        let (found, opaque) = next(stream).await;
        assert_eq!(found, key);
        opaque
    }

    async fn say(stream: &mut BufReader<TcpStream>, text: &str) {
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }

    async fn is_closed(stream: &mut BufReader<TcpStream>) {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "nothing more is said: {rest:?}");
    }

    /// The value of a record, as a read gets it.
    async fn read(link: &Link, key: &str) -> Result<String, StoreError> {
        let commands = [Command::Get { key: key.to_owned() }];
        let replies = link.carry_out(true, async |connection| connection.ask(&commands).await).await?;
        Ok(String::from_utf8(replies[0].value.to_vec()).unwrap())
    }

    /// What becomes of a touch, which is not repeated.
    async fn touch(link: &Link, key: &str) -> Result<Code, StoreError> {
        let commands = [Command::Touch { key: key.to_owned(), expiry: 60 }];
        let replies = link.carry_out(false, async |connection| connection.ask(&commands).await).await?;
        Ok(replies[0].code)
    }

    fn value(text: &str, opaque: &str) -> String {
        format!("VA {} t9 c1 {opaque}\r\n{text}\r\n", text.len())
    }

    #[test]
    fn an_answer_to_another_command_fails_everyone_and_the_connection_is_given_up() {
        run(async {
            let (listener, link) = node(PATIENCE).await;
            let played = async {
                let mut first = accept(&listener).await;
                heard(&mut first, "a").await;
                let of_b = heard(&mut first, "b").await;
                say(&mut first, &value("of b", &of_b)).await;
                is_closed(&mut first).await;
                let mut second = accept(&listener).await;
                let of_c = heard(&mut second, "c").await;
                say(&mut second, &value("of c", &of_c)).await;
                is_closed(&mut second).await;
            };
            let asked = async {
                let (a, b) = tokio::join!(biased; read(&link, "a"), read(&link, "b"));
                assert_eq!((a, b), (Err(StoreError::Confused), Err(StoreError::Confused)));
                assert_eq!(read(&link, "c").await, Ok("of c".to_owned()));
                drop(link);
            };
            tokio::join!(played, asked);
        });
    }

    #[test]
    fn what_is_no_answer_ends_the_connection() {
        for (text, expected) in [
            ("EN\r\n", StoreError::Confused),
            ("HD O99999999999999999999\r\n", StoreError::Confused),
            ("HTTP/1.1 400 Bad Request\r\n\r\n", StoreError::Confused),
            ("CLIENT_ERROR bad data chunk\r\n", StoreError::Unavailable("CLIENT_ERROR bad data chunk".to_owned())),
        ] {
            run(async {
                let (listener, link) = node(PATIENCE).await;
                let played = async {
                    let mut stream = accept(&listener).await;
                    heard(&mut stream, "a").await;
                    heard(&mut stream, "b").await;
                    say(&mut stream, text).await;
                    is_closed(&mut stream).await;
                };
                let asked = async {
                    let (a, b) = tokio::join!(biased; touch(&link, "a"), read(&link, "b"));
                    assert_eq!((a, b), (Err(expected.clone()), Err(expected.clone())), "{text:?}");
                };
                tokio::join!(played, asked);
            });
        }
    }

    #[test]
    fn an_answer_of_the_wrong_kind_and_one_to_nothing_end_the_connection() {
        run(async {
            let (listener, link) = node(PATIENCE).await;
            let played = async {
                let mut stream = accept(&listener).await;
                let opaque = heard(&mut stream, "a").await;
                say(&mut stream, &value("x", &opaque)).await;
                is_closed(&mut stream).await;
                let mut stream = accept(&listener).await;
                let opaque = heard(&mut stream, "b").await;
                say(&mut stream, &format!("{0}{0}", value("of b", &opaque))).await;
                is_closed(&mut stream).await;
            };
            let asked = async {
                assert_eq!(touch(&link, "a").await, Err(StoreError::Confused));
                assert_eq!(read(&link, "b").await, Ok("of b".to_owned()));
            };
            tokio::join!(played, asked);
        });
    }

    #[test]
    fn a_refusal_is_for_the_oldest_command_and_for_no_other() {
        run(async {
            let (listener, link) = node(PATIENCE).await;
            let played = async {
                let mut stream = accept(&listener).await;
                heard(&mut stream, "a").await;
                heard(&mut stream, "b").await;
                let of_c = heard(&mut stream, "c").await;
                let full = "SERVER_ERROR out of memory writing get response\r\n";
                say(&mut stream, &format!("{full}SERVER_ERROR busy\r\n{}", value("of c", &of_c))).await;
                is_closed(&mut stream).await;
            };
            let asked = async {
                let (a, b, c) = tokio::join!(biased; read(&link, "a"), read(&link, "b"), read(&link, "c"));
                assert_eq!(a, Err(StoreError::Full));
                assert_eq!(b, Err(StoreError::Unavailable("SERVER_ERROR busy".to_owned())));
                assert_eq!(c, Ok("of c".to_owned()));
                drop(link);
            };
            tokio::join!(played, asked);
        });
    }

    #[test]
    fn an_answer_may_come_in_any_number_of_pieces() {
        run(async {
            let (listener, link) = node(PATIENCE).await;
            let played = async {
                let mut stream = accept(&listener).await;
                let (a, b) = (heard(&mut stream, "a").await, heard(&mut stream, "b").await);
                for byte in [value("of\r\na", &a), value("of b", &b)].concat().chars() {
                    say(&mut stream, &byte.to_string()).await;
                    tokio::task::yield_now().await;
                }
                is_closed(&mut stream).await;
            };
            let asked = async {
                let (a, b) = tokio::join!(biased; read(&link, "a"), read(&link, "b"));
                assert_eq!((a, b), (Ok("of\r\na".to_owned()), Ok("of b".to_owned())));
                drop(link);
            };
            tokio::join!(played, asked);
        });
    }

    #[test]
    fn a_node_that_closes_in_the_middle_is_asked_again_for_what_is_read_and_for_nothing_else() {
        run(async {
            let (listener, link) = node(PATIENCE).await;
            let played = async {
                let mut first = accept(&listener).await;
                let opaque = heard(&mut first, "a").await;
                heard(&mut first, "b").await;
                let whole = value("of a", &opaque);
                say(&mut first, &whole[..whole.len() - 3]).await;
                drop(first);
                let mut second = accept(&listener).await;
                let opaque = heard(&mut second, "a").await;
                say(&mut second, &value("of a", &opaque)).await;
                heard(&mut second, "c").await;
                drop(second);
                // It was asked again once already: that is all.
                let mut third = accept(&listener).await;
                heard(&mut third, "c").await;
            };
            let asked = async {
                let (a, b) = tokio::join!(biased; read(&link, "a"), touch(&link, "b"));
                assert_eq!(a, Ok("of a".to_owned()));
                assert!(matches!(b, Err(StoreError::Unavailable(_))), "{b:?}");
                let c = read(&link, "c").await;
                assert!(matches!(c, Err(StoreError::Unavailable(_))), "{c:?}");
            };
            tokio::join!(played, asked);
        });
    }

    #[test]
    fn the_answer_to_an_ask_that_was_dropped_reaches_nobody() {
        run(async {
            let (listener, link) = node(PATIENCE).await;
            let mut stream = {
                let mut dropped = Box::pin(read(&link, "a"));
                let sent = async {
                    let mut stream = accept(&listener).await;
                    let opaque = heard(&mut stream, "a").await;
                    (stream, opaque)
                };
                let (mut stream, opaque) = tokio::select! {
                    sent = sent => sent,
                    answer = &mut dropped => panic!("nobody has answered: {answer:?}"),
                };
                // Half of the answer is on its way when the ask is dropped.
                let whole = value("of a", &opaque);
                say(&mut stream, &whole[..8]).await;
                drop(dropped);
                say(&mut stream, &whole[8..]).await;
                stream
            };
            let played = async {
                let opaque = heard(&mut stream, "b").await;
                say(&mut stream, &value("of b", &opaque)).await;
            };
            let (b, ()) = tokio::join!(biased; read(&link, "b"), played);
            assert_eq!(b, Ok("of b".to_owned()));
        });
    }

    #[test]
    fn an_attempt_to_connect_is_shared_and_goes_on_when_who_began_it_has_gone() {
        run(async {
            let (listener, link) = node(PATIENCE).await;
            let mut first = Box::pin(read(&link, "a"));
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                answer = &mut first => panic!("nobody has answered: {answer:?}"),
            };
            drop(first);
            let mut stream = BufReader::new(accepted.unwrap().0);
            let played = async {
                let opaque = heard(&mut stream, GREETING).await;
                say(&mut stream, &format!("EN {opaque}\r\n")).await;
                for key in ["b", "c"] {
                    let opaque = heard(&mut stream, key).await;
                    say(&mut stream, &value(key, &opaque)).await;
                }
            };
            let (b, c, ()) = tokio::join!(biased; read(&link, "b"), read(&link, "c"), played);
            assert_eq!((b, c), (Ok("b".to_owned()), Ok("c".to_owned())));
        });
    }

    #[test]
    fn a_connection_that_stays_silent_is_replaced() {
        run(async {
            let (listener, link) = node(Duration::from_millis(500)).await;
            let played = async {
                let mut silent = accept(&listener).await;
                heard(&mut silent, "a").await;
                let mut second = accept(&listener).await;
                let opaque = heard(&mut second, "b").await;
                say(&mut second, &value("of b", &opaque)).await;
                is_closed(&mut silent).await;
            };
            let asked = async {
                assert_eq!(read(&link, "a").await, Err(StoreError::TimedOut));
                assert_eq!(read(&link, "b").await, Ok("of b".to_owned()));
            };
            tokio::join!(played, asked);
        });
    }

    #[test]
    fn who_is_no_memcached_is_told_at_the_first_command() {
        for (text, expected) in [
            ("HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak the meta commands of memcached"),
            // As memcached answered once, without the opaque token.
            ("EN\r\n", "does not speak the meta commands of memcached"),
            ("ERROR\r\n", "ERROR"),
            ("CLIENT_ERROR unauthenticated\r\n", "CLIENT_ERROR unauthenticated"),
            ("", "the connection was closed"),
        ] {
            run(async {
                let (listener, link) = node(PATIENCE).await;
                let played = async {
                    let mut stream = BufReader::new(listener.accept().await.unwrap().0);
                    heard(&mut stream, GREETING).await;
                    say(&mut stream, text).await;
                };
                let (error, ()) = tokio::join!(touch(&link, "a"), played);
                let error = error.unwrap_err().to_string();
                assert!(error.contains(expected), "{text:?}: {error}");
            });
        }
    }

    #[test]
    fn many_asks_at_once_wait_for_their_places_and_each_gets_its_own() {
        run(async {
            let (listener, link) = node(PATIENCE).await;
            let keys: Vec<String> =
                (0..2 * (MOST_QUEUED + MOST_WAITING)).map(|number| format!("key-{number}")).collect();
            let played = async {
                let mut stream = accept(&listener).await;
                for _ in &keys {
                    let (key, opaque) = next(&mut stream).await;
                    say(&mut stream, &value(&key, &opaque)).await;
                }
            };
            let asks = join_all(keys.iter().map(|key| read(&link, key)));
            let (values, ()) = tokio::join!(asks, played);
            let expected: Vec<Result<String, StoreError>> = keys.iter().cloned().map(Ok).collect();
            assert_eq!(values, expected);
        });
    }
}
