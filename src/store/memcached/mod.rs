//! Memcached nodes as a store of sessions.
//!
//! A record lies under [`Key::text`]: eight bytes of revision, big-endian, then the sealed value; its node forgets it
//! by itself. All records of a tag are on one node: the one that wins the rendezvous of the tag over the configured
//! nodes.
//!
//! # When a node is away
//!
//! Its sessions are unavailable until it is back; nobody else takes them over. A logout that was made elsewhere
//! meanwhile would be undone by the record that the node comes back with. For the same reason all proxies have the
//! same list of nodes, and one that was taken out of it comes back empty. A node that was restarted is empty: its
//! sessions are over.
//!
//! # A change in four steps
//!
//! Memcached does one record at a time. It counts the writes of each (`cas`) and can make one depend on that number.
//! So a change is made on its guard, in a step that is done or not; what goes before leads nowhere yet, and what
//! comes after says only what has become true:
//!
//! 1. *Look.* The guard's record is read, and the numbers of the others that are to be written again. If the guard
//!    does not hold, that is all.
//! 2. *Add.* Records with a first revision are added. Their names are random and nobody has heard of them. One that
//!    is taken means that somebody else was ahead.
//! 3. *Decide.* The guard's record is added, replaced or deleted, if its number is still the one that was looked at.
//!    Otherwise somebody was ahead, and what was added is taken away again.
//! 4. *Follow.* The others are replaced, each if its number is still the same. If not, it is looked at again: what
//!    was written later (a higher revision) stays, what has gone stays gone, and the rest is tried again.
//!
//! What sessions make of that (`session::commit`, `session::recall`):
//!
//! | change | added | decides | follows |
//! |---|---|---|---|
//! | begin, login | handle | the lineage is added | |
//! | data | | the lineage is replaced | an anonymous session's handle lives on |
//! | renewal | new handle | the lineage is replaced | the old handle is superseded |
//! | login over a session, step-up | new handle, new lineage | the old lineage is deleted | its handles are muted |
//! | logout | | the lineage is deleted | its handles are muted |
//! | subject, confirmation | | the record itself | |
//!
//! What can go wrong on the way, and what it leaves:
//!
//! - Nothing after the second step: records under names that nobody knows, until they expire.
//! - Nothing after the third: an old handle that leads to a lineage that has gone, so to no session; or to one that
//!   goes on, as before the renewal. The lineage then names another handle as its latest, as it would if the renewal
//!   were still under way; when it says so at every try, the next request is given another cookie all the same.
//! - A command that arrives late, from a connection that was given up: it depends on a number that has changed since;
//!   or it deletes; or it adds a name that nobody knows, or a subject's generation that no session has. Numbers are
//!   of one life of a node, so a change is made on one connection or not at all.
//!
//! So no session is revived, none is changed whose guard does not hold, and no write is undone. Who asks for a change
//! may leave at any moment: it is made in a task of its own, within the time of an ask.
//!
//! # What memcached is not
//!
//! It makes room by forgetting what was used longest ago, whoever is logged in, so a change is never more durable
//! than that, and what must not be forgotten ([`Class::Kept`]) is refused. A node that has no room for a new value
//! forgets the old one too: the session ends. It has no lists, so nobody can ask for all subjects. There is no TLS
//! and no password here: the nodes are reached over a network of one's own.

mod connection;
mod protocol;

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::connection::{Connection, Failure, Link};
use self::protocol::{Code, Command, Only, Refusal, Reply, expiry};
use crate::clock::Clock;
use crate::session::store::{Answer, Ask, Asking, Change, Class, Entry, Guard, Key, Put, SessionStore, StoreError};
use crate::tasks;

/// The port of memcached, where an address names none.
const PORT: u16 = 11_211;
/// Proxies of different releases stand side by side: where a record is may never change.
const SEED: u64 = 0x7374_6561_6466_6173;
/// The largest sealed value. The rest of what memcached takes is for the record's name and its own notes.
const MOST_SEALED: usize = protocol::MOST_VALUE - 1_024;
/// How often a record is written that somebody else keeps writing to.
const ROUNDS: u32 = 5;
/// The revision of a record that is new.
const FIRST: u64 = 1;
/// Bytes of the revision that every record begins with.
const REVISION_BYTES: usize = size_of::<u64>();

/// Which nodes there are, and how they are spoken to.
#[derive(Clone, Debug, PartialEq)]
pub struct MemcachedSettings {
    pub nodes: Vec<Node>,
    /// How long a connection may take.
    pub connect: Duration,
    /// How long an ask may take, with the wait for a connection.
    pub timeout: Duration,
}

/// Where a node is. As text, it says which records the node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub host: String,
    pub port: u16,
}

/// Why there can be no such node.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MemcachedSettingsError {
    #[error("it is written `host:11211`, without a scheme")]
    Scheme,
    #[error("credentials do not belong in it: memcached is spoken to without a password")]
    Credentials,
    #[error("it names no host: it is written `host:11211` or `[::1]:11211`")]
    Host,
    #[error("`{0}` is no port")]
    Port(String),
}

impl Node {
    /// Reads `host:port`, `host`, `[::1]:port` and `[::1]`.
    pub fn parse(text: &str) -> Result<Self, MemcachedSettingsError> {
        if text.contains("://") {
            return Err(MemcachedSettingsError::Scheme);
        }
        // A password may hold any character, so this comes before anything that an error would quote.
        if text.contains('@') {
            return Err(MemcachedSettingsError::Credentials);
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(bracketed) => bracketed.split_once(']').ok_or(MemcachedSettingsError::Host)?,
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let is_bad = |character: char| {
            character.is_whitespace() || character.is_control() || matches!(character, '/' | '?' | '#' | '[' | ']')
        };
        if host.is_empty() || host.contains(is_bad) {
            return Err(MemcachedSettingsError::Host);
        }
        let number = match port {
            "" => Some(PORT),
            port => port.strip_prefix(':').and_then(parse_port),
        };
        let port = number.ok_or_else(|| MemcachedSettingsError::Port(port.trim_start_matches(':').to_owned()))?;
        // Names are the same in any case, and so has to be what is made of them.
        Ok(Node { host: host.to_ascii_lowercase(), port })
    }
}

/// Digits only: Rust's own parser takes a sign too.
fn parse_port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?.filter(|port| *port != 0)
}

impl fmt::Display for Node {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Node { host, port } = self;
        if host.contains(':') { write!(out, "[{host}]:{port}") } else { write!(out, "{host}:{port}") }
    }
}

/// The nodes as one worker uses them.
pub struct Memcached {
    /// Each with what it has in the rendezvous.
    links: Vec<(u64, Rc<Link>)>,
}

impl Memcached {
    /// A store that connects to a node when something is first asked of it.
    pub fn new(settings: Arc<MemcachedSettings>) -> Self {
        let link = |node: &Node| (identity(node), Rc::new(Link::new(node.clone(), Arc::clone(&settings))));
        Memcached { links: settings.nodes.iter().map(link).collect() }
    }

    async fn read(&self, keys: Vec<Key>) -> Result<Vec<Option<Entry>>, StoreError> {
        let replies = self.carry_out(true, keys.into_iter().map(|key| (key, get(key)))).await?;
        Ok(replies.into_iter().map(entry).collect())
    }

    async fn change(&self, change: Change) -> Result<bool, StoreError> {
        // The node would say the same of what is too large, but would forget the record that is there already.
        if change.put.iter().any(|put| put.class == Class::Kept || put.value.len() > MOST_SEALED) {
            return Err(StoreError::Full);
        }
        let (_, link) = &self.links[self.place(change.guard.key().tag)?];
        let link = Rc::clone(link);
        let work = async move { link.carry_out(false, async |connection| make(connection, &change).await).await };
        // Owned by nobody, as it is not to stop half-way: it ends by itself, within the time of an ask.
        let made = tasks::spawn(work).await;
        made.unwrap_or_else(|_| Err(StoreError::Unavailable("the change was given up".to_owned())))
    }

    async fn touch(&self, touched: Vec<(Key, Duration)>) -> Result<(), StoreError> {
        let now = now();
        let touch = |(key, life): (Key, Duration)| (key, Command::Touch { key: key.text(), expiry: expiry(life, now) });
        self.carry_out(false, touched.into_iter().map(touch)).await.map(drop)
    }

    async fn delete(&self, keys: Vec<Key>) -> Result<(), StoreError> {
        let delete = |key: Key| (key, Command::Delete { key: key.text(), only_if: None });
        self.carry_out(false, keys.into_iter().map(delete)).await.map(drop)
    }

    /// Carries out a command for each key, all nodes at once; gives the replies in the order of the commands.
    async fn carry_out(
        &self,
        repeatable: bool,
        commands: impl Iterator<Item = (Key, Command)>,
    ) -> Result<Vec<Reply>, StoreError> {
        let mut parts: Vec<(Vec<usize>, Vec<Command>)> = self.links.iter().map(|_| Default::default()).collect();
        for (position, (key, command)) in commands.enumerate() {
            let (positions, part) = &mut parts[self.place(key.tag)?];
            positions.push(position);
            part.push(command);
        }
        let parts = self.links.iter().zip(parts).filter(|(_, (positions, _))| !positions.is_empty());
        let parts = parts.map(|((_, link), (positions, part))| async move {
            let replies = link.carry_out(repeatable, async |connection| connection.ask(&part).await).await?;
            Ok::<_, StoreError>(positions.into_iter().zip(replies))
        });
        let mut replies = Vec::new();
        // What one node has to do is done also where another is away.
        for part in join_all(parts).await {
            replies.extend(part?);
        }
        replies.sort_unstable_by_key(|(position, _)| *position);
        Ok(replies.into_iter().map(|(_, reply)| reply).collect())
    }

    /// The position of the node that has the records of a tag.
    fn place(&self, tag: u16) -> Result<usize, StoreError> {
        let place = place(tag, self.links.iter().map(|(identity, _)| *identity));
        place.ok_or_else(|| StoreError::Unavailable("it has no nodes".to_owned()))
    }
}

impl SessionStore for Memcached {
    fn ask(&self, ask: Ask) -> Asking<'_> {
        Box::pin(async move {
            match ask {
                Ask::Read(keys) => self.read(keys).await.map(Answer::Entries),
                Ask::Change(change) => self.change(change).await.map(Answer::Changed),
                Ask::Touch(touched) => self.touch(touched).await.map(|()| Answer::Done),
                Ask::Delete(keys) => self.delete(keys).await.map(|()| Answer::Done),
            }
        })
    }

    fn pause(&self, tries: u32) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        let longest = u64::from(tries).saturating_mul(2).max(1);
        Box::pin(tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=longest))))
    }
}

fn identity(node: &Node) -> u64 {
    xxh3_64_with_seed(node.to_string().as_bytes(), SEED)
}

/// Rendezvous hashing (Thaler and Ravishankar 1998): the highest score wins, so a node that goes moves only its own.
fn place(tag: u16, identities: impl Iterator<Item = u64>) -> Option<usize> {
    let score = |(_, identity): &(usize, u64)| (xxh3_64_with_seed(&tag.to_be_bytes(), *identity), *identity);
    identities.enumerate().max_by_key(score).map(|(position, _)| position)
}

/// The position, among these nodes, of the one that has the records of a tag.
pub fn position(nodes: &[Node], tag: u16) -> usize {
    place(tag, nodes.iter().map(identity)).unwrap_or_default()
}

fn now() -> u64 {
    Clock::wall(Clock::now()).seconds()
}

fn get(key: Key) -> Command {
    Command::Get { key: key.text() }
}

fn entry(reply: Reply) -> Option<Entry> {
    if reply.code != Code::Value {
        return None;
    }
    let expires_in = reply.left.unwrap_or_default();
    let (revision, value) = split(reply.value);
    Some(Entry { revision, value, expires_in })
}

/// A record as memcached keeps it.
fn stored(put: &Put) -> Bytes {
    [&put.revision.to_be_bytes()[..], &put.value].concat().into()
}

/// Revision and sealed value of a record. What is too short for both is somebody else's and will not open.
fn split(record: Bytes) -> (u64, Bytes) {
    match record.first_chunk::<REVISION_BYTES>() {
        Some(revision) => (u64::from_be_bytes(*revision), record.slice(REVISION_BYTES..)),
        None => (0, record),
    }
}

/// Makes a change; false: somebody was ahead, and nothing has come of it. See the text above for the order.
async fn make(connection: &Connection, change: &Change) -> Result<bool, Failure> {
    let plan = Plan::of(change, now());
    let Some((guard, again)) = plan.look(connection).await? else { return Ok(false) };
    let Some(added) = plan.add(connection).await? else { return Ok(false) };
    if !plan.decide(connection, guard, &added).await? {
        return Ok(false);
    }
    plan.follow(connection, again).await?;
    Ok(true)
}

/// A change by what each record is to it.
struct Plan<'a> {
    guard: Guard,
    /// What the guard's record is to be, if it is written.
    guard_put: Option<&'a Put>,
    guard_goes: bool,
    /// Others that are new.
    added: Vec<&'a Put>,
    /// Others that are there already.
    again: Vec<&'a Put>,
    gone: Vec<Key>,
    now: u64,
}

/// A record to be written again, if its number is still this.
type Numbered<'a> = (&'a Put, u64);

impl<'a> Plan<'a> {
    fn of(change: &'a Change, now: u64) -> Self {
        let key = change.guard.key();
        let (of_guard, others): (Vec<&Put>, Vec<&Put>) = change.put.iter().partition(|put| put.key == key);
        let (added, again) = others.into_iter().partition(|put| put.revision == FIRST);
        Plan {
            guard: change.guard,
            guard_put: of_guard.last().copied(),
            guard_goes: change.delete.contains(&key),
            added,
            again,
            gone: change.delete.iter().copied().filter(|gone| *gone != key).collect(),
            now,
        }
    }

    /// The number of the guard's record, if there is to be one, and those of the records to be written again. What has
    /// gone is not written again. None: the guard does not hold.
    async fn look(&self, connection: &Connection) -> Result<Option<(Option<u64>, Vec<Numbered<'a>>)>, Failure> {
        let look = |put: &&Put| Command::Look { key: put.key.text() };
        let commands: Vec<Command> = [get(self.guard.key())].into_iter().chain(self.again.iter().map(look)).collect();
        let mut replies = connection.ask(&commands).await?.into_iter();
        let guard = replies.next().ok_or(Failure::Confused)?;
        let cas = guard.cas;
        let found = entry(guard);
        let holds = match self.guard {
            Guard::Absent(_) => found.is_none(),
            Guard::Unchanged(_, revision) => found.is_some_and(|entry| entry.revision == revision),
        };
        if cas == Some(0) {
            return Err(Failure::Refused(Refusal("it counts no writes: it must not be started with `-C`".to_owned())));
        }
        let numbered = |(put, reply): (&&'a Put, Reply)| Some((*put, reply.cas.filter(|_| reply.code == Code::Done)?));
        Ok(holds.then(|| (cas, self.again.iter().zip(replies).filter_map(numbered).collect())))
    }

    /// Adds what is new; gives what would take it away again. None: a name was taken.
    async fn add(&self, connection: &Connection) -> Result<Option<Vec<Command>>, Failure> {
        let commands: Vec<Command> = self.added.iter().map(|put| self.store(put, Only::Absent)).collect();
        let told = connection.exchange(&commands).await?;
        let is_done = |reply: &&Reply| reply.code == Code::Done;
        let undo = self.added.iter().zip(&told).filter_map(|(put, told)| {
            let reply = told.as_ref().ok().filter(is_done)?;
            Some(Command::Delete { key: put.key.text(), only_if: reply.cas })
        });
        let undo: Vec<Command> = undo.collect();
        if undo.len() == commands.len() {
            return Ok(Some(undo));
        }
        take_away(connection, &undo).await;
        told.into_iter().find_map(Result::err).map_or(Ok(None), |refusal| Err(Failure::Refused(refusal)))
    }

    /// The step that makes the change or does not.
    async fn decide(&self, connection: &Connection, cas: Option<u64>, added: &[Command]) -> Result<bool, Failure> {
        let Some(command) = self.decision(cas) else { return Ok(true) };
        let told = connection.exchange(&[command]).await?.pop().ok_or(Failure::Confused)?;
        let made = told.map(|reply| reply.code == Code::Done).map_err(Failure::Refused);
        if made != Ok(true) {
            take_away(connection, added).await;
        }
        made
    }

    /// What is done to the guard's record. Sessions have no change that does nothing to it; one that did would have
    /// been decided by the look.
    fn decision(&self, cas: Option<u64>) -> Option<Command> {
        match (self.guard_goes, cas) {
            (true, Some(_)) => Some(Command::Delete { key: self.guard.key().text(), only_if: cas }),
            (true, None) => None,
            (false, Some(cas)) => self.guard_put.map(|put| self.store(put, Only::Unchanged(cas))),
            (false, None) => self.guard_put.map(|put| self.store(put, Only::Absent)),
        }
    }

    /// Writes what was there already, and deletes.
    async fn follow(&self, connection: &Connection, mut again: Vec<Numbered<'a>>) -> Result<(), Failure> {
        let delete = |key: &Key| Command::Delete { key: key.text(), only_if: None };
        connection.ask(&self.gone.iter().map(delete).collect::<Vec<_>>()).await?;
        for _ in 0..ROUNDS {
            if again.is_empty() {
                return Ok(());
            }
            let write = |(put, cas): &Numbered<'a>| self.store(put, Only::Unchanged(*cas));
            let replies = connection.ask(&again.iter().map(write).collect::<Vec<_>>()).await?;
            let written_to = again.into_iter().zip(replies).filter(|(_, reply)| reply.code == Code::Exists);
            again = look_again(connection, written_to.map(|((put, _), _)| put).collect()).await?;
        }
        Err(Failure::Refused(Refusal("others kept writing to a record of the session".to_owned())))
    }

    fn store(&self, put: &Put, only: Only) -> Command {
        let expiry = expiry(put.expires_in, self.now);
        Command::Store { key: put.key.text(), value: stored(put), expiry, only }
    }
}

/// Takes away what was added for a change that was not made. If that fails, it expires: nobody knows its name.
async fn take_away(connection: &Connection, added: &[Command]) {
    let _ = connection.exchange(added).await;
}

/// The numbers of records that somebody has written to since, unless what was written is newer than what is to be.
async fn look_again<'a>(connection: &Connection, puts: Vec<&'a Put>) -> Result<Vec<Numbered<'a>>, Failure> {
    let replies = connection.ask(&puts.iter().map(|put| get(put.key)).collect::<Vec<_>>()).await?;
    let older = |(put, reply): (&'a Put, Reply)| {
        let cas = reply.cas;
        let is_older = entry(reply).is_some_and(|entry| entry.revision <= put.revision);
        Some((put, cas.filter(|_| is_older)?))
    };
    Ok(puts.into_iter().zip(replies).filter_map(older).collect())
}

#[cfg(test)]
mod tests {
    use super::connection::GREETING;
    use super::*;
    use crate::keys::{KeyRing, RingKey, SystemEntropy};
    use crate::session::store::Kind;
    use crate::session::{
        Absence, Committer, CookieDecision, Directives, How, Realm, Recall, SessionCookie, Turn, recall,
    };
    use crate::tasks::Owned;
    use std::cell::{Cell, RefCell};
    use std::collections::{BTreeMap, BTreeSet};
    use std::task::{Context, Poll, Waker};
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::LocalSet;

    /// Nothing here takes so long unless it hangs.
    const PATIENCE: Duration = Duration::from_secs(20);
    /// As [`crate::session`] mutes handles: above every other revision.
    const MUTED: u64 = 1 << 32;

    /// A record of a tag whose name is easy to read.
    fn key(id: u8) -> Key {
        Key { tag: 7, kind: Kind::Lineage, id: [id; 20] }
    }

    fn put(id: u8, revision: u64, value: &'static str) -> Put {
        let expires_in = Duration::from_secs(60);
        Put { key: key(id), revision, value: value.into(), expires_in, class: Class::Authenticated }
    }

    /// What somebody else does meanwhile.
    type Meanwhile = Box<dyn Fn(&Shelf)>;

    /// Value, number of writes and expiry.
    type Item = (Vec<u8>, u64, String);

    /// As much of memcached as is spoken to here.
    #[derive(Default)]
    struct Shelf {
        records: RefCell<BTreeMap<String, Item>>,
        writes: Cell<u64>,
        /// What it was told, without opaque tokens, with ids in place of keys.
        told: RefCell<Vec<String>>,
        /// Just before it does the command of this position.
        meanwhile: RefCell<Option<(usize, Meanwhile)>>,
        /// It closes the connection at the command of this position, having done it or not.
        cut: Cell<Option<(usize, bool)>>,
        is_full: Cell<bool>,
    }

    impl Shelf {
        fn lay(&self, id: u8, revision: u64, value: &'static str) {
            self.store(&key(id).text(), stored(&put(id, revision, value)).to_vec(), "60");
        }

        fn remove(&self, id: u8) {
            self.records.borrow_mut().remove(&key(id).text());
        }

        /// Revision and value.
        fn find(&self, id: u8) -> Option<(u64, String)> {
            let (value, ..) = self.records.borrow().get(&key(id).text())?.clone();
            let (revision, value) = split(value.into());
            Some((revision, String::from_utf8(value.to_vec()).unwrap()))
        }

        fn store(&self, key: &str, value: Vec<u8>, expiry: &str) {
            self.writes.set(self.writes.get() + 1);
            self.records.borrow_mut().insert(key.to_owned(), (value, self.writes.get(), expiry.to_owned()));
        }

        async fn serve(self: Rc<Self>, listener: TcpListener) {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                self.converse(BufReader::new(stream)).await;
            }
        }

        /// Answers until one of the two has had enough.
        async fn converse(&self, mut stream: BufReader<TcpStream>) {
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                    return;
                }
                let words: Vec<&str> = line.split_whitespace().collect();
                let mut value = Vec::new();
                if words[0] == "ms" {
                    value.resize(words[2].parse::<usize>().unwrap() + 2, 0);
                    stream.read_exact(&mut value).await.unwrap();
                    assert_eq!(value.split_off(value.len() - 2), b"\r\n");
                }
                let Some(answer) = self.answer(&words, value) else { return };
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }

        /// None: it closes the connection.
        fn answer(&self, words: &[&str], value: Vec<u8>) -> Option<Vec<u8>> {
            let opaque = *words.last().unwrap();
            if words[1] == GREETING {
                return Some(format!("EN {opaque}\r\n").into());
            }
            let position = self.told.borrow().len();
            let spoken = words[..words.len() - 1].join(" ");
            let id = Key::parse(words[1]).unwrap().id[0].to_string();
            self.told.borrow_mut().push(spoken.replace(words[1], &id));
            let meanwhile = self.meanwhile.borrow();
            if let Some((_, act)) = meanwhile.as_ref().filter(|(at, _)| *at == position) {
                act(self);
            }
            let cut = self.cut.get().filter(|(at, _)| *at == position);
            if cut == Some((position, false)) {
                return None;
            }
            let (code, value) = self.execute(words, value);
            let value = value.map(|value| [value, b"\r\n".to_vec()].concat()).unwrap_or_default();
            // As memcached has it: without the opaque token.
            let is_refusal = code.starts_with("SERVER_ERROR");
            let line = if is_refusal { format!("{code}\r\n") } else { format!("{code} {opaque}\r\n") };
            cut.is_none().then(|| [line.into_bytes(), value].concat())
        }

        fn execute(&self, words: &[&str], value: Vec<u8>) -> (String, Option<Vec<u8>>) {
            let (verb, key) = (words[0], words[1]);
            let flag = |name: char| words[2..].iter().find_map(|word| word.strip_prefix(name));
            let found = self.records.borrow().get(key).cloned();
            let code = |code: &str| (code.to_owned(), None);
            if verb == "ms" && self.is_full.get() {
                // What is there goes too.
                self.records.borrow_mut().remove(key);
                return code("SERVER_ERROR out of memory storing object");
            }
            match (verb, found) {
                ("mg", None) => code("EN"),
                ("mg", Some((value, cas, expiry))) if flag('v').is_some() => {
                    (format!("VA {} t{expiry} c{cas}", value.len()), Some(value))
                }
                ("mg", Some((value, cas, _))) => {
                    if let Some(expiry) = flag('T') {
                        self.records.borrow_mut().insert(key.to_owned(), (value, cas, expiry.to_owned()));
                    }
                    (format!("HD c{cas}"), None)
                }
                ("ms", Some(_)) if flag('M') == Some("E") => code("NS"),
                ("ms", None) if flag('C').is_some() => code("NF"),
                ("md", None) => code("NF"),
                (_, Some((_, cas, _))) if flag('C').is_some_and(|only| only != cas.to_string()) => code("EX"),
                ("md", Some(_)) => {
                    self.records.borrow_mut().remove(key);
                    code("HD")
                }
                ("ms", _) => {
                    self.store(key, value, flag('T').unwrap());
                    (format!("HD c{}", self.writes.get()), None)
                }
                _ => panic!("{words:?}"),
            }
        }
    }

    fn settings(nodes: Vec<Node>) -> Arc<MemcachedSettings> {
        Arc::new(MemcachedSettings { nodes, connect: PATIENCE, timeout: PATIENCE })
    }

    /// Runs a test with so many shelves and the store over them.
    fn with_shelves<const N: usize>(test: impl AsyncFnOnce([Rc<Shelf>; N], Memcached)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let shelves = [(); N].map(|()| Rc::new(Shelf::default()));
            let (mut nodes, mut serving) = (Vec::new(), Vec::new());
            for shelf in &shelves {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                nodes.push(Node { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() });
                serving.push(Owned::spawn(Rc::clone(shelf).serve(listener)));
            }
            let store = Memcached::new(settings(nodes));
            tokio::time::timeout(PATIENCE, test(shelves, store)).await.expect("it comes to an end");
        });
    }

    async fn change(store: &Memcached, guard: Guard, put: Vec<Put>, delete: Vec<Key>) -> Result<bool, StoreError> {
        match store.ask(Ask::Change(Change { guard, put, delete, durable: true })).await? {
            Answer::Changed(made) => Ok(made),
            other => panic!("{other:?}"),
        }
    }

    /// A login over a session: lineage 1 with handles 2 and 3 becomes lineage 4 with handle 5.
    async fn rotate(store: &Memcached) -> Result<bool, StoreError> {
        let puts = vec![put(2, MUTED, "muted"), put(3, MUTED, "muted"), put(5, 1, "handle"), put(4, 1, "lineage")];
        change(store, Guard::Unchanged(key(1), 8), puts, vec![key(1)]).await
    }

    fn lay_a_session(shelf: &Shelf) {
        shelf.lay(1, 8, "lineage");
        shelf.lay(2, 3, "superseded");
        shelf.lay(3, 1, "live");
    }

    const ROTATED: [&str; 8] = [
        "mg 1 v t c",
        "mg 2 c",
        "mg 3 c",
        "ms 5 14 T60 ME c",
        "ms 4 15 T60 ME c",
        "md 1 C1",
        "ms 2 13 T60 C2",
        "ms 3 13 T60 C3",
    ];

    fn some(revision: u64, value: &str) -> Option<(u64, String)> {
        Some((revision, value.to_owned()))
    }

    #[test]
    fn nodes_are_read() {
        for (text, host, port, written) in [
            ("cache", "cache", 11_211, "cache:11211"),
            ("Cache.Internal:7", "cache.internal", 7, "cache.internal:7"),
            ("10.0.0.1:11212", "10.0.0.1", 11_212, "10.0.0.1:11212"),
            ("[::1]", "::1", 11_211, "[::1]:11211"),
            ("[2001:DB8::1]:65535", "2001:db8::1", 65_535, "[2001:db8::1]:65535"),
        ] {
            let node = Node::parse(text).unwrap();
            assert_eq!((node.host.as_str(), node.port, node.to_string().as_str()), (host, port, written), "{text}");
            assert_eq!(Node::parse(written), Ok(node), "{text}");
        }
    }

    #[test]
    fn what_is_no_node_is_explained() {
        use MemcachedSettingsError::{Credentials, Host, Port, Scheme};
        let port = |text: &str| Port(text.to_owned());
        for (text, expected) in [
            ("", Host),
            (":11211", Host),
            ("::1", Host),
            ("[::1", Host),
            ("[]:1", Host),
            ("ca che", Host),
            ("cache\u{7f}", Host),
            ("/run/memcached.sock", Host),
            ("memcached://cache", Scheme),
            ("user:se:cret@cache", Credentials),
            ("cache:", port("")),
            ("cache:0", port("0")),
            ("cache:+1", port("+1")),
            ("cache:65536", port("65536")),
            ("cache:1/0", port("1/0")),
            ("cache:1:2", port("1:2")),
            ("[::1]1", port("1")),
        ] {
            assert_eq!(Node::parse(text), Err(expected), "{text:?}");
        }
    }

    /// Proxies of different releases stand side by side: these may never change.
    #[test]
    fn golden_places() {
        let nodes = ["cache-1:11211", "cache-2:11211", "[::1]:11211"].map(|node| identity(&Node::parse(node).unwrap()));
        let places: Vec<usize> = (0..16).map(|tag| place(tag, nodes.into_iter()).unwrap()).collect();
        assert_eq!(places, [0, 2, 2, 0, 1, 0, 2, 0, 1, 2, 1, 0, 1, 1, 2, 0]);
        assert_eq!(place(1, std::iter::empty()), None);
    }

    #[test]
    fn a_node_has_its_share_and_takes_only_its_own_tags_along() {
        const TAGS: u16 = 1 << crate::session::store::TAG_BITS;
        let mut nodes: Vec<u64> =
            (0..5).map(|number| identity(&Node::parse(&format!("10.0.0.{number}")).unwrap())).collect();
        let places = |nodes: &[u64]| -> Vec<u64> {
            (0..TAGS).map(|tag| nodes[place(tag, nodes.iter().copied()).unwrap()]).collect()
        };
        let before = places(&nodes);
        let share = f64::from(TAGS) / nodes.len() as f64;
        for node in &nodes {
            let has = before.iter().filter(|place| *place == node).count() as f64;
            assert!((has / share - 1.0).abs() < 0.1, "{has} of {share}");
        }
        let gone = nodes.remove(2);
        // Nor does it matter in which order they are written down.
        nodes.reverse();
        for (before, after) in before.iter().zip(places(&nodes)) {
            assert!(*before == after || *before == gone, "a tag has moved whose node is still there");
        }
    }

    #[test]
    fn reads_touches_and_deletions_are_one_command_for_each_record() {
        with_shelves::<1>(async |[shelf], store| {
            shelf.lay(1, 258, "sealed");
            shelf.store(&key(2).text(), b"short".to_vec(), "-1");
            let read = store.ask(Ask::Read(vec![key(3), key(1), key(2)])).await;
            let entry = |revision, value: &'static str, seconds| {
                Some(Entry { revision, value: value.into(), expires_in: Duration::from_secs(seconds) })
            };
            assert_eq!(read, Ok(Answer::Entries(vec![None, entry(258, "sealed", 60), entry(0, "short", 0)])));
            let lives = vec![(key(1), Duration::from_millis(2_001)), (key(3), Duration::from_secs(9))];
            assert_eq!(store.ask(Ask::Touch(lives)).await, Ok(Answer::Done));
            assert_eq!(store.ask(Ask::Read(vec![key(1)])).await, Ok(Answer::Entries(vec![entry(258, "sealed", 3)])));
            assert_eq!(store.ask(Ask::Delete(vec![key(1), key(9)])).await, Ok(Answer::Done));
            assert_eq!(store.ask(Ask::Read(vec![key(1)])).await, Ok(Answer::Entries(vec![None])));
            let told = [
                "mg 3 v t c",
                "mg 1 v t c",
                "mg 2 v t c",
                "mg 1 T3",
                "mg 3 T9",
                "mg 1 v t c",
                "md 1",
                "md 9",
                "mg 1 v t c",
            ];
            assert_eq!(*shelf.told.borrow(), told);
            assert_eq!(store.ask(Ask::Read(Vec::new())).await, Ok(Answer::Entries(Vec::new())));
            assert_eq!(store.ask(Ask::Touch(Vec::new())).await, Ok(Answer::Done));
        });
    }

    #[test]
    fn records_of_several_nodes_are_read_in_the_order_of_the_question() {
        with_shelves::<3>(async |shelves, store| {
            let keys: Vec<Key> = (0..100).map(|tag| Key { tag, ..key(tag as u8) }).collect();
            for key in &keys {
                let record = Put { key: *key, revision: u64::from(key.tag), ..put(0, 0, "x") };
                shelves[store.place(key.tag).unwrap()].store(&key.text(), stored(&record).to_vec(), "60");
            }
            let Ok(Answer::Entries(entries)) = store.ask(Ask::Read(keys)).await else { panic!("there are entries") };
            let revisions: Vec<u64> = entries.into_iter().map(|entry| entry.unwrap().revision).collect();
            assert_eq!(revisions, (0..100).collect::<Vec<u64>>());
            assert!(shelves.iter().all(|shelf| shelf.told.borrow().len() > 10), "each node has some of them");
        });
    }

    #[test]
    fn without_nodes_there_is_nothing() {
        with_shelves::<0>(async |[], store| {
            let error = StoreError::Unavailable("it has no nodes".to_owned());
            assert_eq!(store.ask(Ask::Read(vec![key(1)])).await, Err(error.clone()));
            let made = change(&store, Guard::Absent(key(1)), vec![put(1, 1, "x")], Vec::new()).await;
            assert_eq!(made, Err(error));
        });
    }

    #[test]
    fn a_session_begins_with_its_handle() {
        with_shelves::<1>(async |[shelf], store| {
            let puts = || vec![put(2, 1, "handle"), put(1, 1, "lineage")];
            assert_eq!(change(&store, Guard::Absent(key(1)), puts(), Vec::new()).await, Ok(true));
            assert_eq!(shelf.told.take(), ["mg 1 v t c", "ms 2 14 T60 ME c", "ms 1 15 T60 ME c"]);
            assert_eq!((shelf.find(1), shelf.find(2)), (some(1, "lineage"), some(1, "handle")));
            assert_eq!(change(&store, Guard::Absent(key(1)), puts(), Vec::new()).await, Ok(false));
            assert_eq!(shelf.told.take(), ["mg 1 v t c"], "it is there already");
        });
    }

    #[test]
    fn data_is_written_only_over_what_was_read() {
        with_shelves::<1>(async |[shelf], store| {
            shelf.lay(1, 8, "lineage");
            let guard = |revision| Guard::Unchanged(key(1), revision);
            assert_eq!(change(&store, guard(8), vec![put(1, 9, "data")], Vec::new()).await, Ok(true));
            assert_eq!(shelf.told.take(), ["mg 1 v t c", "ms 1 12 T60 C1"]);
            assert_eq!(change(&store, guard(8), vec![put(1, 9, "late")], Vec::new()).await, Ok(false));
            assert_eq!((shelf.told.take().len(), shelf.find(1)), (1, some(9, "data")));
            shelf.remove(1);
            assert_eq!(change(&store, guard(9), vec![put(1, 10, "late")], Vec::new()).await, Ok(false));
            assert_eq!((shelf.told.take().len(), shelf.find(1)), (1, None), "what has gone stays gone");
        });
    }

    #[test]
    fn a_login_adds_then_deletes_the_old_lineage_then_mutes() {
        with_shelves::<1>(async |[shelf], store| {
            lay_a_session(&shelf);
            assert_eq!(rotate(&store).await, Ok(true));
            assert_eq!(*shelf.told.borrow(), ROTATED);
            assert_eq!((shelf.find(1), shelf.find(4), shelf.find(5)), (None, some(1, "lineage"), some(1, "handle")));
            assert_eq!((shelf.find(2), shelf.find(3)), (some(MUTED, "muted"), some(MUTED, "muted")));
        });
    }

    #[test]
    fn who_was_ahead_is_noticed_at_the_guard_and_what_was_added_goes_again() {
        let logout: Meanwhile = Box::new(|shelf| shelf.remove(1));
        let write: Meanwhile = Box::new(|shelf| shelf.lay(1, 9, "theirs"));
        // The name of the new lineage is taken.
        let collision: Meanwhile = Box::new(|shelf| shelf.lay(4, 1, "stranger"));
        let theirs = some(9, "theirs");
        let taken = some(1, "stranger");
        for (at, act, lineage, new, commands) in
            [(5, logout, None, None, 8), (5, write, theirs, None, 8), (4, collision, some(8, "lineage"), taken, 6)]
        {
            with_shelves::<1>(async |[shelf], store| {
                lay_a_session(&shelf);
                shelf.meanwhile.replace(Some((at, act)));
                assert_eq!(rotate(&store).await, Ok(false));
                assert_eq!((shelf.find(1), shelf.find(4), shelf.find(5)), (lineage, new, None));
                assert_eq!((shelf.find(2), shelf.find(3)), (some(3, "superseded"), some(1, "live")));
                assert_eq!(shelf.told.borrow().len(), commands, "{:?}", shelf.told.borrow());
            });
        }
    }

    #[test]
    fn what_was_written_to_meanwhile_is_written_again_unless_it_is_newer_or_has_gone() {
        // A renewal: the old handle 2, read at revision 1, is to be superseded at revision 2.
        let confirmed: Meanwhile = Box::new(|shelf| shelf.lay(2, 2, "confirmed"));
        let muted: Meanwhile = Box::new(|shelf| shelf.lay(2, MUTED, "muted"));
        let expired: Meanwhile = Box::new(|shelf| shelf.remove(2));
        for (act, left, commands) in
            [(confirmed, some(2, "superseded"), 7), (muted, some(MUTED, "muted"), 6), (expired, None, 5)]
        {
            with_shelves::<1>(async |[shelf], store| {
                shelf.lay(1, 8, "lineage");
                shelf.lay(2, 1, "live");
                shelf.meanwhile.replace(Some((4, act)));
                let puts = vec![put(1, 9, "lineage"), put(3, 1, "successor"), put(2, 2, "superseded")];
                assert_eq!(change(&store, Guard::Unchanged(key(1), 8), puts, Vec::new()).await, Ok(true));
                assert_eq!((shelf.find(1), shelf.find(3)), (some(9, "lineage"), some(1, "successor")));
                assert_eq!((shelf.find(2), shelf.told.borrow().len()), (left, commands), "{:?}", shelf.told.borrow());
            });
        }
    }

    #[test]
    fn what_has_gone_before_is_not_written_again() {
        with_shelves::<1>(async |[shelf], store| {
            lay_a_session(&shelf);
            shelf.remove(2);
            assert_eq!(rotate(&store).await, Ok(true));
            assert_eq!((shelf.find(2), shelf.find(3)), (None, some(MUTED, "muted")));
        });
    }

    #[test]
    fn other_records_are_deleted_only_if_the_guard_holds() {
        with_shelves::<1>(async |[shelf], store| {
            lay_a_session(&shelf);
            let puts = || vec![put(1, 9, "data")];
            assert_eq!(change(&store, Guard::Unchanged(key(1), 7), puts(), vec![key(2)]).await, Ok(false));
            assert!(shelf.find(2).is_some());
            assert_eq!(change(&store, Guard::Unchanged(key(1), 8), puts(), vec![key(2)]).await, Ok(true));
            assert_eq!((shelf.find(1), shelf.find(2)), (some(9, "data"), None));
        });
    }

    #[test]
    fn wherever_a_change_is_cut_off_nothing_is_revived_lost_or_half_true() {
        let mut outcomes = BTreeSet::new();
        for (at, is_done) in (0..ROTATED.len()).flat_map(|at| [(at, false), (at, true)]) {
            with_shelves::<1>(async |[shelf], store| {
                lay_a_session(&shelf);
                shelf.cut.set(Some((at, is_done)));
                let made = rotate(&store).await;
                assert!(matches!(made, Err(StoreError::Unavailable(_))), "{at}: nobody can tell: {made:?}");
                assert_eq!(shelf.told.borrow().len(), at + 1, "{at}: a change is not made again");
                let is_there = shelf.find(1) == some(8, "lineage");
                let is_new_there = shelf.find(4).is_some() && shelf.find(5).is_some();
                let is_muted = [2, 3].iter().any(|id| shelf.find(*id) == some(MUTED, "muted"));
                assert!(is_there || is_new_there, "{at}: what follows is there before what was goes");
                assert!(!is_there || !is_muted, "{at}: no cookie of a session that goes on is given up");
                assert_eq!(is_there, shelf.find(1).is_some(), "{at}: it is as it was, or gone");
                outcomes.insert((is_there, is_new_there, is_muted));
            });
        }
        assert_eq!(outcomes.len(), 4, "{outcomes:?}");
    }

    #[test]
    fn wherever_a_renewal_is_cut_off_the_session_goes_on_and_is_renewed_later() {
        const BEGUN: u64 = 1_000_000;
        let ring = KeyRing::new(vec![RingKey::from_secret([7; 32])]);
        let realm = Realm::new("shop", &ring, crate::session::model::rules());
        let later = BEGUN + realm.rules.renew.as_secs();
        for (at, is_done) in (0..5).flat_map(|at| [(at, false), (at, true)]) {
            with_shelves::<1>(async |[shelf], store| {
                let mut entropy = SystemEntropy;
                let turn = Turn::Login { subject: "alice".into(), how: How::default() };
                let login = Directives { turn: Some(turn), ..Directives::default() };
                let begin = Committer { realm: &realm, store: &store, now: BEGUN };
                let begun = begin.commit(&Recall::None(Absence::NoCookie), &login, &mut entropy).await.unwrap();
                let CookieDecision::Set(cookie) = begun.cookie else { panic!("a login sets a cookie") };
                let session = async |cookie: &SessionCookie| {
                    let found = recall(&realm, &store, cookie.clone(), later).await.unwrap();
                    Arc::clone(found.session().unwrap_or_else(|| panic!("{at}: {found:?}")))
                };
                let found = session(&cookie).await;
                let committer = Committer { realm: &realm, store: &store, now: later };
                shelf.told.take();
                shelf.cut.set(Some((at, is_done)));
                let cut = committer.renew_if_due(&found, &mut entropy).await;
                assert!(matches!(cut, Err(crate::session::Refusal::Store(_))), "{at}: {cut:?}");
                assert_eq!(shelf.told.borrow().len(), at + 1);

                let found = session(&cookie).await;
                let patch = Some(serde_json::Map::from_iter([("a".to_owned(), 1.into())]));
                let write = Directives { patch, ..Directives::default() };
                committer.commit(&Recall::Session(found), &write, &mut entropy).await.unwrap();
                let renewed = committer.renew_if_due(&*session(&cookie).await, &mut entropy).await.unwrap();
                let CookieDecision::Set(next) = renewed.cookie else { panic!("{at}: it is given another") };
                assert_eq!(&*session(&next).await.lineage.data, r#"{"a":1}"#);
            });
        }
    }

    #[test]
    fn a_change_is_made_to_its_end_when_who_asked_has_gone() {
        with_shelves::<1>(async |[shelf], store| {
            for polls in 0..3 {
                lay_a_session(&shelf);
                [4, 5].iter().for_each(|id| shelf.remove(*id));
                let mut asking = Box::pin(rotate(&store));
                for _ in 0..=polls {
                    let polled = asking.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                    assert_eq!(polled, Poll::Pending);
                    tokio::task::yield_now().await;
                }
                drop(asking);
                while shelf.find(3) != some(MUTED, "muted") {
                    tokio::task::yield_now().await;
                }
                assert_eq!((shelf.find(1), shelf.find(5)), (None, some(1, "handle")));
            }
        });
    }

    #[test]
    fn a_node_without_room_says_so_and_what_was_added_for_nothing_goes() {
        with_shelves::<1>(async |[shelf], store| {
            lay_a_session(&shelf);
            // The first new record is taken, the second one is not.
            let full: Meanwhile = Box::new(|shelf| shelf.is_full.set(true));
            shelf.meanwhile.replace(Some((4, full)));
            assert_eq!(rotate(&store).await, Err(StoreError::Full));
            assert_eq!((shelf.find(1), shelf.find(4), shelf.find(5)), (some(8, "lineage"), None, None));
        });
    }

    #[test]
    fn what_is_too_large_or_must_not_be_forgotten_is_refused_here() {
        with_shelves::<1>(async |[shelf], store| {
            shelf.lay(1, 8, "lineage");
            let large = Put { value: vec![0; MOST_SEALED + 1].into(), ..put(1, 9, "") };
            let kept = Put { class: Class::Kept, ..put(1, 9, "") };
            for refused in [large, kept] {
                let made = change(&store, Guard::Unchanged(key(1), 8), vec![refused], Vec::new()).await;
                assert_eq!((made, shelf.told.borrow().len()), (Err(StoreError::Full), 0));
            }
            let largest = Put { value: vec![0; MOST_SEALED].into(), ..put(1, 9, "") };
            assert_eq!(change(&store, Guard::Unchanged(key(1), 8), vec![largest], Vec::new()).await, Ok(true));
            let Ok(Answer::Entries(entries)) = store.ask(Ask::Read(vec![key(1)])).await else { panic!("it is there") };
            assert_eq!(entries[0].as_ref().unwrap().value.len(), MOST_SEALED);
        });
    }

    #[test]
    fn a_node_that_counts_no_writes_is_no_store() {
        with_shelves::<1>(async |[shelf], store| {
            let record = (stored(&put(1, 8, "x")).to_vec(), 0, "60".to_owned());
            shelf.records.borrow_mut().insert(key(1).text(), record);
            let made = change(&store, Guard::Unchanged(key(1), 8), vec![put(1, 9, "y")], Vec::new()).await;
            assert!(matches!(&made, Err(StoreError::Unavailable(why)) if why.contains("`-C`")), "{made:?}");
        });
    }
}
