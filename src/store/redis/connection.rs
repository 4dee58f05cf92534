//! One connection to one node, shared by all that a worker asks there. Whose reply is whose is kept here.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, ServerError, ServerErrorKind, Value};
use tokio::sync::watch;

use super::commands::{self, Part, Piece, Role, Script};
use super::sentinel::Reign;
use crate::clock::{Clock, Moment};
use crate::session::store::{Ask, Key, StoreError};
use crate::store::joint::Open;
use crate::tasks::Owned;

/// How long a change that has to last waits for a replica to have it.
pub const WAIT: Duration = Duration::from_millis(50);
/// Characters of an error of a node that are passed on.
const MOST_SAID: usize = 256;

/// Why something was not done on a connection.
#[derive(Debug)]
pub enum Failure {
    /// There was none: nothing was sent.
    NotConnected(StoreError),
    /// It went away meanwhile: what became of the ask is not known.
    Lost(RedisError),
    /// The node is no primary any more, and what it answers counts no more.
    Deposed,
    /// The node says no.
    Refused(ServerError),
    /// The replies do not fit the question.
    Confused,
}

impl Failure {
    /// Whether nobody is to use the connection any more.
    pub fn spoils_the_connection(&self) -> bool {
        match self {
            Failure::NotConnected(_) => false,
            Failure::Lost(_) | Failure::Deposed | Failure::Confused => true,
            Failure::Refused(error) => is_of_a_replica(error),
        }
    }

    /// Whether no node has heard of it.
    pub const fn is_unsent(&self) -> bool {
        matches!(self, Failure::NotConnected(_))
    }

    /// Whether it was sent, and another connection may lead to an answer.
    pub const fn is_loss(&self) -> bool {
        matches!(self, Failure::Lost(_) | Failure::Deposed)
    }
}

/// The node has become a replica: behind the same name there is a primary by now, or will be.
fn is_of_a_replica(error: &ServerError) -> bool {
    matches!(error.kind(), Some(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown))
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotConnected(error) => error,
            Failure::Lost(error) => failed(error),
            Failure::Deposed => StoreError::Unavailable("the node is no primary any more".to_owned()),
            Failure::Refused(error) if is_out_of_memory(&error) => StoreError::Full,
            Failure::Refused(error) => {
                let details = error.details().map(|details| format!(" {details}")).unwrap_or_default();
                StoreError::Unavailable(presentable(&format!("{}{details}", error.code())))
            }
            Failure::Confused => StoreError::Confused,
        }
    }
}

/// Before version 7, what a command inside a script was told is in the text of the script's own error.
fn is_out_of_memory(error: &ServerError) -> bool {
    error.code() == "OOM" || error.details().is_some_and(|details| details.contains("-OOM "))
}

/// What a node said, short enough for a line of a log, and without what would begin another.
fn presentable(said: &str) -> String {
    said.chars().take(MOST_SAID).map(|said| if said.is_control() { '?' } else { said }).collect()
}

/// What a failed connection is called. What is no answer of Redis is not quoted: it may be anything.
fn failed(error: RedisError) -> StoreError {
    StoreError::Unavailable(match error.kind() {
        ErrorKind::Parse => "it does not speak the protocol of Redis".to_owned(),
        ErrorKind::AuthenticationFailed => "it refuses the username or the password".to_owned(),
        _ => error.to_string(),
    })
}

/// A connection that something was sent on.
struct Use {
    connection: Rc<Connection>,
    begun: Moment,
    /// How many answers it had given by then.
    answers: u64,
}

/// What one ask went through.
#[derive(Default)]
pub struct Course {
    used: RefCell<Vec<Use>>,
    /// It was to last, and no replica is known to have it.
    is_unreplicated: Cell<bool>,
}

impl Course {
    /// Notes that a connection is about to be used.
    pub fn note(&self, connection: &Rc<Connection>) {
        let (connection, answers) = (Rc::clone(connection), connection.answers.get());
        self.used.borrow_mut().push(Use { connection, begun: Clock::now(), answers });
    }

    /// Whether it was to last, and no replica is known to have it.
    pub fn is_unreplicated(&self) -> bool {
        self.is_unreplicated.get()
    }

    /// An ask that took too long may only be slow; where nobody else was answered either for so long, the connection leads
    /// nowhere and is used no more. One that was begun on a moment ago has not had the time to answer.
    pub fn retire_what_is_silent(&self, for_long: Duration) {
        for Use { connection, begun, answers } in &*self.used.borrow() {
            if connection.answers.get() == *answers && Clock::now().since(*begun) >= for_long {
                connection.retire();
            }
        }
    }
}

/// An open connection, for as long as somebody uses it.
pub struct Connection {
    client: MultiplexedConnection,
    is_closed: Rc<Cell<bool>>,
    /// Nobody is to begin with it any more; who waits for a reply goes on waiting.
    is_retired: Cell<bool>,
    /// Replies that were not for what was asked: none is believed any more.
    is_confused: Cell<bool>,
    answers: Cell<u64>,
    /// Exchanges begun.
    sent: Cell<u64>,
    /// The latest WAIT: which exchange it is, and once it is known, whether a replica had all that was written before.
    latest_wait: RefCell<Option<(u64, watch::Receiver<Option<bool>>)>>,
    /// Whose word it is that the node is the primary.
    reign: Option<Reign>,
    /// Ends with the last use, and closes the socket.
    _driver: Owned,
}

impl Open for Connection {
    fn is_open(&self) -> bool {
        !self.is_closed.get() && !self.is_retired.get() && !self.reign.as_ref().is_some_and(Reign::is_over)
    }
}

impl Connection {
    /// A connection whose handshake is complete.
    pub fn new(client: MultiplexedConnection, driver: impl Future<Output = ()> + 'static) -> Self {
        let is_closed = Rc::new(Cell::new(false));
        let told = Rc::clone(&is_closed);
        let driver = Owned::spawn(async move {
            driver.await;
            told.set(true);
        });
        Connection {
            client,
            is_closed,
            is_retired: Cell::new(false),
            is_confused: Cell::new(false),
            answers: Cell::new(0),
            sent: Cell::new(0),
            latest_wait: RefCell::default(),
            reign: None,
            _driver: driver,
        }
    }

    /// The same, of use for as long as the node reigns.
    pub fn under(mut self, reign: Reign) -> Self {
        self.reign = Some(reign);
        self
    }

    /// Sees to it that nobody begins anything on it any more.
    pub fn retire(&self) {
        self.is_retired.set(true);
    }

    /// Asks, and gives the answer to each part. `asking`: the node is told that it was named for this.
    pub async fn ask(&self, ask: &Ask, asking: bool) -> Result<Vec<Part>, Failure> {
        let (replies, _) = self.send(ask, asking, false).await?;
        self.fitting(commands::parts(ask, replies))
    }

    /// The same, and waits until a replica has it, where there are replicas. That takes [`WAIT`] at most: a node whose
    /// replicas are slow is no reason to have no sessions.
    pub async fn ask_to_last(&self, ask: &Ask, asking: bool, course: &Course) -> Result<Vec<Part>, Failure> {
        let (mut replies, number) = self.send(ask, asking, true).await?;
        let role = replies.pop();
        let role = self.fitting(role.as_ref().and_then(commands::role))?;
        let parts = self.fitting(commands::parts(ask, replies))?;
        let is_news = |part: &Part| part.as_ref().is_ok_and(|piece| *piece != Piece::Changed(false));
        if !parts.iter().any(is_news) {
            return Ok(parts);
        }
        let is_safe = match role {
            Role::Primary { replicas: 0 } => true,
            Role::Primary { .. } | Role::Untold => self.is_replicated(number).await?,
            Role::Other => return Err(Failure::Deposed),
        };
        if !is_safe {
            course.is_unreplicated.set(true);
        }
        Ok(parts)
    }

    /// Sends an ask's commands, and ROLE behind them where it is wanted. Gives the replies to all of them, refusals among
    /// them, and the number of the exchange.
    async fn send(&self, ask: &Ask, asking: bool, with_role: bool) -> Result<(Vec<Value>, u64), Failure> {
        let words = |script: Script| {
            let commands = commands::commands(ask, script);
            let mut pipeline = if asking { commands::each_asking(&commands) } else { commands };
            if with_role {
                // ASKING does it no harm, and makes all replies alike.
                if asking {
                    pipeline.cmd("ASKING");
                }
                pipeline.cmd("ROLE");
            }
            pipeline
        };
        let mut sent = self.numbered(&words(commands::by_hash())).await?;
        if commands::lacks_the_script(&sent.0) {
            sent = self.numbered(&words(commands::BY_SOURCE)).await?;
        }
        let (replies, number) = sent;
        Ok((if asking { commands::without_asking(replies) } else { replies }, number))
    }

    /// Whether a replica has what was written up to an exchange. One WAIT answers for all that was written before it: as
    /// it stops everything on its connection, whoever comes while one is under way shares the next.
    async fn is_replicated(&self, number: u64) -> Result<bool, Failure> {
        while let Some(mut wait) = self.wait_sent_after(number) {
            if let Ok(outcome) = wait.wait_for(Option::is_some).await {
                return Ok(*outcome == Some(true));
            }
            // Who had sent it has gone.
        }
        self.wait().await
    }

    /// A WAIT that was sent after an exchange, if it has an outcome or will have one.
    fn wait_sent_after(&self, number: u64) -> Option<watch::Receiver<Option<bool>>> {
        let latest = self.latest_wait.borrow();
        let (sent, wait) = latest.as_ref()?;
        let will_be_known = wait.borrow().is_some() || wait.has_changed().is_ok();
        (*sent > number && will_be_known).then(|| wait.clone())
    }

    async fn wait(&self) -> Result<bool, Failure> {
        let (outcome, wait) = watch::channel(None);
        *self.latest_wait.borrow_mut() = Some((self.sent.get() + 1, wait));
        let mut pipeline = Pipeline::new();
        pipeline.cmd("WAIT").arg(1).arg(u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX));
        let replies = self.exchange(&pipeline).await?;
        let is_replicated = match &replies[..] {
            [Value::Int(replicas)] => *replicas >= 1,
            // What was written before is given up with its reign.
            [Value::ServerError(error)] if says_that_it_is_a_replica(error) => return Err(Failure::Deposed),
            // It may not be asked that, or cannot tell.
            [Value::ServerError(_)] => false,
            _ => return self.fitting(None),
        };
        outcome.send_replace(Some(is_replicated));
        Ok(is_replicated)
    }

    /// Tells all who listen on a channel.
    pub async fn publish(&self, channel: &str, payload: &[u8]) -> Result<(), Failure> {
        let reply = self.single(redis::cmd("PUBLISH").arg(channel).arg(payload)).await?;
        self.fitting(matches!(reply, Value::Int(_)).then_some(()))
    }

    /// One step of a scan for subjects: where the next begins, and what was found.
    pub async fn scan(&self, cursor: &[u8]) -> Result<(Vec<u8>, Vec<Key>), Failure> {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg("sf1:*:n:*").arg("COUNT").arg(1_000);
        let reply = self.single(&scan).await?;
        self.fitting(commands::scanned(reply))
    }

    /// Whether the node never makes room by forgetting.
    pub async fn keeps_everything(&self) -> Result<bool, Failure> {
        let reply = self.single(redis::cmd("INFO").arg("memory")).await?;
        self.fitting(commands::keeps_everything(&reply))
    }

    /// What the node is.
    pub async fn role(&self) -> Result<Role, Failure> {
        let reply = self.single(&redis::cmd("ROLE")).await?;
        self.fitting(commands::role(&reply))
    }

    /// Sends a command, and gives its reply.
    pub async fn single(&self, command: &Cmd) -> Result<Value, Failure> {
        let mut pipeline = Pipeline::new();
        pipeline.add_command(command.clone());
        match self.exchange(&pipeline).await?.pop() {
            Some(Value::ServerError(error)) => Err(Failure::Refused(error)),
            reply => self.fitting(reply),
        }
    }

    /// Sends commands and waits for a reply to each, be it a refusal.
    pub async fn exchange(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Failure> {
        self.numbered(pipeline).await.map(|(replies, _)| replies)
    }

    /// The same, and gives the number of the exchange. They are sent in the order of their numbers.
    async fn numbered(&self, pipeline: &Pipeline) -> Result<(Vec<Value>, u64), Failure> {
        let number = self.sent.get() + 1;
        if pipeline.is_empty() {
            return Ok((Vec::new(), number));
        }
        self.sent.set(number);
        let mut client = self.client.clone();
        let replies = client.send_packed_commands(pipeline, 0, pipeline.len());
        let replies = match &self.reign {
            None => replies.await,
            Some(reign) => tokio::select! {
                biased;
                () = reign.end() => return Err(Failure::Deposed),
                replies = replies => replies,
            },
        };
        let replies = replies.map_err(Failure::Lost)?;
        self.answers.set(self.answers.get() + 1);
        self.fitting((!self.is_confused.get() && replies.len() == pipeline.len()).then_some(()))?;
        if replies.iter().any(|reply| matches!(reply, Value::ServerError(error) if is_of_a_replica(error))) {
            self.retire();
        }
        Ok((replies, number))
    }

    /// What was read; where that is nothing, the connection is given up with all who wait for it.
    pub fn fitting<T>(&self, read: Option<T>) -> Result<T, Failure> {
        read.ok_or_else(|| {
            self.is_confused.set(true);
            self.retire();
            Failure::Confused
        })
    }
}

/// What a node says to WAIT once it has become a replica, or when it does.
fn says_that_it_is_a_replica(error: &ServerError) -> bool {
    error.code() == "UNBLOCKED" || error.details().is_some_and(|details| details.contains("replica"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> ServerError {
        match redis::parse_redis_value(format!("-{line}\r\n").as_bytes()) {
            Ok(Value::ServerError(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(line: &str) -> Failure {
        Failure::Refused(refused(line))
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
        assert!(Failure::Confused.spoils_the_connection() && Failure::Deposed.spoils_the_connection());
        let http = redis::parse_redis_value(b"HTTP/1.1 400 Bad Request\r\n").unwrap_err();
        let text = "it does not speak the protocol of Redis".to_owned();
        assert_eq!(StoreError::from(Failure::Lost(http)), StoreError::Unavailable(text));
    }

    #[test]
    fn a_primary_that_was_deposed_while_it_waited_says_so() {
        for (line, is_replica) in [
            ("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)", true),
            ("ERR WAIT cannot be used with replica instances.", true),
            ("NOPERM this user has no permissions to run the 'wait' command", false),
            ("ERR unknown command 'WAIT', with args beginning with: '1' '50' ", false),
        ] {
            assert_eq!(says_that_it_is_a_replica(&refused(line)), is_replica, "{line}");
        }
    }
}
