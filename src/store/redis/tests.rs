//! A connection to a node that does as it is told: what cannot be made to happen on a real one.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::LocalSet;

use super::commands::{Part, Piece};
use super::connection::{Connection, Course, Failure};
use super::sentinel::{Known, Topology};
use super::settings::Address;
use crate::session::store::{Ask, Change, Guard, Key, Kind};
use crate::store::joint::Open;
use crate::tasks;

/// A node that answers one command after the other, as Redis does.
struct Fake {
    /// The first words of what it was asked.
    heard: RefCell<Vec<String>>,
    /// What the script of changes comes to; nothing: the node is silent from then on.
    changed: Option<&'static str>,
    replicas: usize,
    /// What it says to WAIT, after a while.
    waited: &'static str,
}

impl Fake {
    fn new(changed: Option<&'static str>, replicas: usize, waited: &'static str) -> Rc<Self> {
        Rc::new(Fake { heard: RefCell::default(), changed, replicas, waited })
    }

    fn count(&self, word: &str) -> usize {
        self.heard.borrow().iter().filter(|heard| *heard == word).count()
    }

    async fn hears(&self, word: &str) {
        while self.count(word) == 0 {
            tokio::task::yield_now().await;
        }
    }

    async fn connection(self: &Rc<Self>) -> Connection {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tasks::spawn(Rc::clone(self).serve(theirs));
        let login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2);
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (client, driver) = MultiplexedConnection::new_with_config(&login, ours, config).await.unwrap();
        Connection::new(client, driver)
    }

    async fn serve(self: Rc<Self>, mut stream: DuplexStream) {
        let mut read = Vec::new();
        while stream.read_buf(&mut read).await.is_ok_and(|bytes| bytes > 0) {
            while let Some((word, length)) = first_command(&read) {
                read.drain(..length);
                self.heard.borrow_mut().push(word.clone());
                let Some(reply) = self.reply(&word).await else { return std::future::pending().await };
                if stream.write_all(format!("{reply}\r\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn reply(&self, word: &str) -> Option<String> {
        Some(match word {
            "EVALSHA" => self.changed?.to_owned(),
            "UNLINK" => ":0".to_owned(),
            "ROLE" => {
                let replicas: String = (0..self.replicas).map(|at| format!("\r\n:{at}")).collect();
                format!("*3\r\n$6\r\nmaster\r\n:0\r\n*{}{replicas}", self.replicas)
            }
            "WAIT" => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.waited.to_owned()
            }
            _ => "+OK".to_owned(),
        })
    }
}

/// The first word of the first command, and the command's bytes; none: it is not all there.
fn first_command(read: &[u8]) -> Option<(String, usize)> {
    let (count, mut at) = number(read, 0, b'*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let (length, begin) = number(read, at, b'$')?;
        words.push(read.get(begin..begin + length)?);
        at = begin + length + 2;
    }
    let word = String::from_utf8_lossy(words[0]).into_owned();
    (at <= read.len()).then_some((word, at))
}

/// The number of a line that begins with a sign, and where the next line begins.
fn number(read: &[u8], at: usize, sign: u8) -> Option<(usize, usize)> {
    let line = read.get(at..)?;
    let end = line.windows(2).position(|pair| pair == b"\r\n")?;
    assert_eq!(line[0], sign, "{}", read.escape_ascii());
    let number = std::str::from_utf8(&line[1..end]).unwrap().parse().unwrap();
    Some((number, at + end + 2))
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let in_time = async { tokio::time::timeout(Duration::from_secs(30), test).await.expect("it comes to an end") };
    LocalSet::new().block_on(&runtime, in_time);
}

fn key() -> Key {
    Key { tag: 7, kind: Kind::Lineage, id: [1; 20] }
}

fn login() -> Ask {
    Ask::Change(Change { guard: Guard::Absent(key()), put: Vec::new(), delete: Vec::new(), durable: true })
}

fn is_made(answer: &Result<Vec<Part>, Failure>) -> bool {
    matches!(answer.as_deref(), Ok([Ok(Piece::Changed(true))]))
}

#[test]
fn one_wait_answers_for_all_that_was_written_before() {
    run(async {
        let fake = Fake::new(Some(":1"), 1, ":1");
        let connection = fake.connection().await;
        let (ask, courses) = (login(), [(); 8].map(|()| Course::default()));
        let answers = join_all(courses.iter().map(|course| connection.ask_to_last(&ask, false, course))).await;
        assert!(answers.iter().all(is_made));
        assert!(!courses.iter().any(Course::is_unreplicated));
        assert_eq!((fake.count("EVALSHA"), fake.count("WAIT")), (8, 1));
    });
}

#[test]
fn who_comes_while_one_waits_shares_the_next_wait_and_none_is_refused_for_slow_replicas() {
    run(async {
        let fake = Fake::new(Some(":1"), 2, ":0");
        let connection = fake.connection().await;
        let (ask, courses) = (login(), [(); 5].map(|()| Course::default()));
        let [first, others @ ..] = &courses;
        let later = async {
            fake.hears("WAIT").await;
            join_all(others.iter().map(|course| connection.ask_to_last(&ask, false, course))).await
        };
        let (first, others) = tokio::join!(connection.ask_to_last(&ask, false, first), later);
        assert!(is_made(&first) && others.iter().all(is_made));
        assert!(courses.iter().all(Course::is_unreplicated), "and that is known");
        assert_eq!((fake.count("EVALSHA"), fake.count("WAIT")), (5, 2));
    });
}

#[test]
fn who_waits_for_anothers_wait_waits_alone_when_that_one_goes() {
    run(async {
        let fake = Fake::new(Some(":1"), 1, ":1");
        let connection = fake.connection().await;
        let (ask, courses) = (login(), [(); 2].map(|()| Course::default()));
        let mut first = Box::pin(connection.ask_to_last(&ask, false, &courses[0]));
        let mut second = Box::pin(connection.ask_to_last(&ask, false, &courses[1]));
        tokio::select! {
            biased;
            _ = &mut first => panic!("it waits for a replica"),
            _ = &mut second => panic!("it waits for a replica"),
            () = fake.hears("WAIT") => {}
        }
        drop(first);
        assert!(is_made(&second.await) && !courses[1].is_unreplicated());
        assert_eq!(fake.count("WAIT"), 2);
    });
}

#[test]
fn nobody_waits_where_there_is_nobody_to_wait_for_or_nothing_was_written() {
    run(async {
        for (changed, replicas) in [(":1", 0), (":0", 1)] {
            let fake = Fake::new(Some(changed), replicas, ":0");
            let course = Course::default();
            let answer = fake.connection().await.ask_to_last(&login(), false, &course).await.unwrap();
            assert_eq!(answer, [Ok(Piece::Changed(changed == ":1"))]);
            assert_eq!((fake.count("WAIT"), course.is_unreplicated()), (0, false));
        }
        let fake = Fake::new(Some(":1"), 1, ":1");
        let delete = Ask::Delete(vec![key()]);
        let course = Course::default();
        let answer = fake.connection().await.ask_to_last(&delete, false, &course).await.unwrap();
        assert_eq!((answer, fake.count("WAIT")), (vec![Ok(Piece::Done)], 1), "an end may have been written before");
    });
}

#[test]
fn a_primary_that_is_deposed_while_it_waits_has_done_nothing_that_counts() {
    run(async {
        let fake = Fake::new(Some(":1"), 1, "-UNBLOCKED force unblock from blocking operation");
        let connection = fake.connection().await;
        let answer = connection.ask_to_last(&login(), false, &Course::default()).await;
        assert!(matches!(answer, Err(Failure::Deposed)), "{answer:?}");
    });
}

#[test]
fn what_is_under_way_ends_with_the_reign_of_who_was_asked() {
    run(async {
        let topology = Topology::default();
        let told = |port, epoch| Known { primary: Address { host: "10.0.0.1".to_owned(), port }, epoch };
        topology.learn(&told(1, 1));
        let fake = Fake::new(None, 1, ":1");
        let connection = fake.connection().await.under(topology.reign(told(1, 1).primary));
        let (ask, course) = (login(), Course::default());
        let mut answer = Box::pin(connection.ask_to_last(&ask, false, &course));
        tokio::select! {
            biased;
            _ = &mut answer => panic!("nobody has answered"),
            () = fake.hears("EVALSHA") => {}
        }
        assert!((&mut answer).now_or_never().is_none() && connection.is_open());
        topology.learn(&told(2, 2));
        assert!(matches!(answer.await, Err(Failure::Deposed)) && !connection.is_open());
    });
}

#[test]
fn a_connection_on_which_nobody_was_answered_is_used_no_more() {
    run(async {
        let fake = Fake::new(None, 0, "");
        let connection = Rc::new(fake.connection().await);
        let (before, after) = (Course::default(), Course::default());
        before.note(&connection);
        connection.ask(&Ask::Delete(vec![key()]), false).await.unwrap();
        before.retire_what_is_silent(Duration::ZERO);
        assert!(connection.is_open(), "somebody was");
        after.note(&connection);
        after.retire_what_is_silent(Duration::from_secs(3_600));
        assert!(connection.is_open(), "it was asked a moment ago");
        after.retire_what_is_silent(Duration::ZERO);
        assert!(!connection.is_open());
    });
}

#[test]
fn a_reply_to_another_question_is_the_end_of_a_connection() {
    run(async {
        let fake = Fake::new(Some("$5\r\nhello"), 0, "");
        let connection = fake.connection().await;
        let answer = connection.ask_to_last(&login(), false, &Course::default()).await;
        assert!(matches!(answer, Err(Failure::Confused)) && !connection.is_open());
        let answer = connection.ask(&Ask::Delete(vec![key()]), false).await;
        assert!(matches!(answer, Err(Failure::Confused)), "and of whatever else waits for it");
    });
}
