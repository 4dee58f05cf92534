//! Redis (or Valkey) as a store of sessions: one node, a primary that sentinels name, or a cluster.
//!
//! A record lies under [`Key::text`]: eight bytes of revision, big-endian, then the sealed value; the node forgets it by
//! itself. A change is one Lua script on one hash tag, so its guard and its writes are one step. Whatever else there is
//! to ask is a pipeline of plain commands that name their keys.
//!
//! # Whose reply is whose
//!
//! All asks of an instance to a node share one connection, and an ask may be dropped at any moment; its reply must not
//! reach another. The socket belongs to one task, the `redis` crate's driver. An ask reaches it as one message, with all
//! its commands; the driver either skips the message (whoever asked has gone) or takes it whole, and leaves a place in a
//! queue for as many replies as there are commands. Replies come in the order of commands, for this is RESP2 and the
//! connection subscribes to nothing, and each goes to the place at the front. Dropping an ask touches neither socket
//! nor queue: a reply that nobody waits for is read and thrown away. When a read or a write fails, the driver ends, and
//! the whole queue with it.
//!
//! What is left to these files: only the driver has the socket, a connection is shared once its handshake is complete,
//! as many replies are asked for as commands are sent, and a connection whose replies do not fit their questions is
//! given up together with every ask that waits for it. The last line of defence is not here: a record is sealed for its
//! own name, so a stray one does not open.
//!
//! # When a node is away
//!
//! A connection is made when an ask finds none, by a task of its own that several asks wait for and none can abort. A
//! connection is replaced when it fails, when nothing at all came back on it for as long as an ask may take, and when
//! the node turns out to be a replica. Only a read is asked again: whether a lost change was made, nobody can tell. What
//! a node refuses because it is not the one for it, it has not done: that is asked elsewhere.
//!
//! # What has to last
//!
//! Logins, logouts and whatever ends sessions go over a second connection to the node, and are followed there by WAIT
//! if the node has replicas: WAIT counts, and stops, what its own connection writes. It waits for one replica, for 50 ms
//! at most; if none has it by then the answer is the same, and is counted. A failover may undo a logout that was
//! answered so. Everything else is answered by the primary alone, and may be lost with it if it dies a moment later.
//!
//! # What a node has to permit
//!
//! EVALSHA, EVAL and what the script of changes calls, GETRANGE, PTTL, PEXPIRE, UNLINK, SCAN, PUBLISH, SUBSCRIBE and PING;
//! INFO where tokens are revoked; in a cluster CLUSTER SLOTS and ASKING. ROLE and WAIT: without ROLE a node is thought to
//! have replicas, and sentinels are not believed about it; without WAIT nothing is known to be at any. Replicas are never
//! read from. Nothing goes by the version of a node, nor by its name.
//!
//! This does not rest after failures: that is for whoever holds several stores.

mod cluster;
mod commands;
mod connection;
mod dialer;
mod link;
mod listen;
mod map;
mod sentinel;
mod settings;
mod slots;

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub use listen::subscribe;
pub use sentinel::{Topology, watch};
pub use settings::{Place, RedisSettings, RedisSettingsError};
pub use slots::slot;

use cluster::Cluster;
use commands::{has_to_last, is_repeatable};
use connection::{Connection, Course, Failure, WAIT};
use dialer::{Dialer, Target};
use link::Node;

use crate::session::store::{Answer, Ask, Asking, Entry, Key, SessionStore, StoreError};

/// Subjects that a list is made of; past it there is no use in a list.
const MOST_SUBJECTS: usize = 10_000;
const MOST_READ_AT_ONCE: usize = 256;

/// The nodes as one worker uses them.
pub struct Redis {
    settings: Arc<RedisSettings>,
    nodes: Nodes,
    unreplicated: Cell<u64>,
}

enum Nodes {
    One(Rc<Node>),
    Cluster(Rc<Cluster>),
}

impl Redis {
    /// A store that connects when it is first asked. Where the system's authorities count, they are read here. All
    /// clients of a store share the topology.
    pub fn new(settings: Arc<RedisSettings>, topology: Arc<Topology>) -> Result<Self, RedisSettingsError> {
        let dialer = Rc::new(Dialer::new(Arc::clone(&settings), topology)?);
        let one = |target| Nodes::One(Rc::new(Node::new(&dialer, target)));
        let nodes = match &settings.place {
            Place::One(address) => one(Target::At(address.clone())),
            Place::Sentinel { master, nodes } => {
                one(Target::Primary { master: master.clone(), sentinels: nodes.clone() })
            }
            Place::Cluster(seeds) => Nodes::Cluster(Rc::new(Cluster::new(Rc::clone(&dialer), seeds.clone()))),
        };
        Ok(Redis { settings, nodes, unreplicated: Cell::new(0) })
    }

    /// How many asks that had to last were answered, since this was asked last, and are not known to be at any replica
    /// although there are replicas.
    pub fn take_unreplicated(&self) -> u64 {
        self.unreplicated.take()
    }

    /// Tells all who listen on a channel, through one node.
    pub async fn publish(&self, channel: &str, payload: &[u8]) -> Result<(), StoreError> {
        let course = Course::default();
        let publish = async |connection: &Connection| connection.publish(channel, payload).await;
        let published = async {
            match &self.nodes {
                Nodes::One(node) => node.everyday.carry_out_once(&course, &publish).await,
                Nodes::Cluster(cluster) => cluster.anywhere(&course, &publish).await,
            }
        };
        self.in_time(self.settings.timeout, &course, published).await
    }

    /// Every subject's record, by a scan that leaves each node free for others between its steps.
    pub async fn subjects(&self) -> Result<Vec<(Key, Entry)>, StoreError> {
        let mut found = Vec::new();
        for node in self.primaries().await? {
            self.add_subjects(&node, &mut found).await?;
        }
        // A scan may come by a key twice, and two nodes of a cluster may have it.
        found.sort_by_key(|(key, _)| *key);
        found.dedup_by_key(|(key, _)| *key);
        Ok(found)
    }

    async fn add_subjects(&self, node: &Node, found: &mut Vec<(Key, Entry)>) -> Result<(), StoreError> {
        let mut cursor = b"0".to_vec();
        while found.len() < MOST_SUBJECTS {
            let course = Course::default();
            let step = node.everyday.carry_out_again(&course, async |connection| connection.scan(&cursor).await);
            let (next, keys) = self.in_time(self.settings.timeout, &course, step).await?;
            for some in keys.chunks(MOST_READ_AT_ONCE) {
                let Answer::Entries(entries) = self.ask(Ask::Read(some.to_vec())).await? else {
                    return Err(StoreError::Confused);
                };
                found.extend(some.iter().zip(entries).filter_map(|(key, entry)| Some((*key, entry?))));
            }
            if next == b"0" {
                break;
            }
            cursor = next;
        }
        Ok(())
    }

    /// Whether every primary keeps what it was given until it expires: what is full refuses, and forgets nothing.
    pub async fn keeps_everything(&self) -> Result<bool, StoreError> {
        for node in self.primaries().await? {
            let course = Course::default();
            let told = node.everyday.carry_out_again(&course, async |connection| connection.keeps_everything().await);
            if !self.in_time(self.settings.timeout, &course, told).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn primaries(&self) -> Result<Vec<Rc<Node>>, StoreError> {
        match &self.nodes {
            Nodes::One(node) => Ok(vec![Rc::clone(node)]),
            Nodes::Cluster(cluster) => {
                self.in_time(self.settings.timeout, &Course::default(), cluster.primaries()).await
            }
        }
    }

    async fn answer(&self, ask: &Ask, course: &Course) -> Result<Answer, Failure> {
        let node = match &self.nodes {
            Nodes::One(node) => node,
            Nodes::Cluster(cluster) => return cluster.ask(ask, course).await,
        };
        let parts = match node.ask(ask, false, course).await {
            Err(failure) if is_repeatable(ask) && failure.is_loss() => node.ask(ask, false, course).await?,
            asked => asked?,
        };
        let pieces = parts.into_iter().collect::<Result<_, _>>().map_err(Failure::Refused)?;
        commands::whole(ask, pieces).ok_or(Failure::Confused)
    }

    /// Sees to it that something takes no longer than it may.
    async fn in_time<T>(
        &self,
        limit: Duration,
        course: &Course,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(limit, work).await {
            Ok(done) => {
                if done.is_ok() && course.is_unreplicated() {
                    self.unreplicated.set(self.unreplicated.get() + 1);
                }
                done.map_err(StoreError::from)
            }
            Err(_) => {
                course.retire_what_is_silent(self.settings.timeout / 2);
                if let Nodes::Cluster(cluster) = &self.nodes {
                    // Whoever did not answer may have been replaced.
                    cluster.renew_soon();
                }
                Err(StoreError::TimedOut)
            }
        }
    }
}

impl SessionStore for Redis {
    fn ask(&self, ask: Ask) -> Asking<'_> {
        Box::pin(async move {
            // Who comes while a WAIT is under way shares the next one.
            let waits = if has_to_last(&ask) { 2 * WAIT } else { Duration::ZERO };
            let limit = self.settings.timeout.saturating_add(waits);
            let course = Course::default();
            self.in_time(limit, &course, self.answer(&ask, &course)).await
        })
    }

    fn pause(&self, tries: u32) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        let longest = u64::from(tries).saturating_mul(2).max(1);
        Box::pin(tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=longest))))
    }
}

#[cfg(test)]
mod tests;
