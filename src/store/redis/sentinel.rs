//! Which node is the primary, where sentinels decide that.
//!
//! A sentinel that was cut off for a while may name a primary of the past, which may believe in itself. What tells is
//! the epoch: each failover has a higher one than the failover before. [`Topology`] keeps what was told under the highest
//! epoch, for all workers; who knows less is not believed, and a connection to any other node counts no more
//! ([`Reign`]): neither for what is asked from then on, nor for what was asked and is not answered yet.
//!
//! Where the primary is is asked when a connection is made, and by [`watch()`] whenever a sentinel says that it has changed:
//! a primary that was only cut off from the sentinels goes on answering.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use redis::{Pipeline, Value};
use tokio::sync::watch;

use super::commands::{self, Role};
use super::connection::{Connection, Failure};
use super::dialer::{Dialer, within};
use super::listen::{PAUSE, next_message};
use super::settings::{Address, Place, RedisSettings};
use crate::session::store::StoreError;

/// What all clients of a store know of its primary. Other stores have no use for it.
pub struct Topology {
    known: watch::Sender<Option<Known>>,
    /// The sentinel to ask first: one that had an answer lately.
    first: AtomicUsize,
}

impl Default for Topology {
    fn default() -> Self {
        Topology { known: watch::Sender::new(None), first: AtomicUsize::new(0) }
    }
}

/// What a sentinel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub primary: Address,
    /// Of the failover that made it so.
    pub epoch: u64,
}

impl Topology {
    /// Takes over what a sentinel says, unless more is known already.
    pub fn learn(&self, told: &Known) {
        self.known.send_if_modified(|known| {
            let is_news = known.as_ref().is_none_or(|known| known.epoch <= told.epoch && known != told);
            if is_news {
                Self::take_over(known, told);
            }
            is_news
        });
    }

    /// Takes over what sentinels say although more was known: they were set up anew.
    fn begin_again(&self, told: &Known) {
        self.known.send_modify(|known| Self::take_over(known, told));
    }

    fn take_over(known: &mut Option<Known>, told: &Known) {
        if let Some(before) = known
            && before.primary != told.primary
        {
            tracing::warn!(before = %before.primary, now = %told.primary, "the store has another primary");
        }
        *known = Some(told.clone());
    }

    /// Whether a sentinel knows less than others did.
    fn is_outdated(&self, told: &Known) -> bool {
        self.known.borrow().as_ref().is_some_and(|known| known.epoch > told.epoch)
    }

    /// The time for which a node is the primary.
    pub fn reign(&self, primary: Address) -> Reign {
        Reign { known: self.known.subscribe(), primary }
    }
}

/// The time for which a node is the primary, as far as is known here.
pub struct Reign {
    known: watch::Receiver<Option<Known>>,
    primary: Address,
}

impl Reign {
    /// Whether another node is the primary by now.
    pub fn is_over(&self) -> bool {
        self.is_over_with(&self.known.borrow())
    }

    /// Waits until another node is the primary.
    pub async fn end(&self) {
        let mut known = self.known.clone();
        if known.wait_for(|known| self.is_over_with(known)).await.is_err() {
            // Nobody is left who could tell.
            std::future::pending::<()>().await;
        }
    }

    fn is_over_with(&self, known: &Option<Known>) -> bool {
        known.as_ref().is_some_and(|known| known.primary != self.primary)
    }
}

/// A connection to the primary, which says itself that it is one.
pub async fn connect(dialer: &Dialer, master: &str, sentinels: &[Address]) -> Result<Connection, Failure> {
    let told = locate(dialer, master, sentinels).await.map_err(Failure::NotConnected)?;
    let reign = dialer.topology.reign(told.primary.clone());
    let reached = tokio::select! {
        biased;
        () = reign.end() => Err(Failure::Deposed),
        reached = reach(dialer, &told.primary) => reached,
    };
    match reached {
        Ok(connection) => Ok(connection.under(reign)),
        Err(failure) => {
            // Perhaps the next sentinel knows better.
            dialer.topology.first.fetch_add(1, Ordering::Relaxed);
            Err(failure)
        }
    }
}

async fn reach(dialer: &Dialer, primary: &Address) -> Result<Connection, Failure> {
    let connection = dialer.open(primary).await?;
    let why_not = match connection.role().await? {
        Role::Primary { .. } => return Ok(connection),
        Role::Other => "is no primary, though sentinels say so",
        Role::Untold => "does not say whether it is a primary: it must permit ROLE",
    };
    Err(Failure::NotConnected(StoreError::Unavailable(format!("{primary} {why_not}"))))
}

/// Asks sentinels in turn where the primary is.
pub async fn locate(dialer: &Dialer, master: &str, sentinels: &[Address]) -> Result<Known, StoreError> {
    let topology = &dialer.topology;
    let mut last = StoreError::Unavailable("the sentinels that answer know less than was known before".to_owned());
    let mut outdated: Vec<Known> = Vec::new();
    let begin = topology.first.load(Ordering::Relaxed) % sentinels.len().max(1);
    let (before, from) = sentinels.split_at(begin);
    for (turn, sentinel) in from.iter().chain(before).enumerate() {
        // One that swallows everything must leave time for the others, and for the primary.
        let left = u32::try_from(sentinels.len() - turn).unwrap_or(u32::MAX).saturating_add(1);
        match within(dialer.settings.connect / left, ask(dialer, sentinel, master)).await {
            Ok(told) if topology.is_outdated(&told) => outdated.push(told),
            Ok(told) => {
                topology.first.store(begin + turn, Ordering::Relaxed);
                topology.learn(&told);
                return Ok(told);
            }
            Err(error) => last = error,
        }
    }
    // If every one of them knows less than was known before, there is no more to know.
    let is_all = outdated.len() == sentinels.len();
    match outdated.into_iter().max_by_key(|told| told.epoch).filter(|_| is_all) {
        Some(told) => {
            topology.begin_again(&told);
            Ok(told)
        }
        None => Err(last),
    }
}

/// Asks a sentinel where the primary is.
async fn ask(dialer: &Dialer, sentinel: &Address, master: &str) -> Result<Known, Failure> {
    let connection = dialer.open_sentinel(sentinel).await?;
    let mut pipeline = Pipeline::new();
    pipeline.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master);
    pipeline.cmd("SENTINEL").arg("MASTER").arg(master);
    let replies = connection.exchange(&pipeline).await?;
    let (address, state) = match <[Value; 2]>::try_from(replies) {
        Ok([Value::ServerError(error), _]) => return Err(Failure::Refused(error)),
        Ok([address, state]) => (address, state),
        Err(_) => return connection.fitting(None),
    };
    if address == Value::Nil {
        let unknown = format!("the sentinel {sentinel} knows nothing of `{master}`");
        return Err(Failure::NotConnected(StoreError::Unavailable(unknown)));
    }
    let primary = connection.fitting(primary(&address))?;
    Ok(Known { primary, epoch: epoch(&state) })
}

/// Reads the reply to SENTINEL GET-MASTER-ADDR-BY-NAME.
fn primary(reply: &Value) -> Option<Address> {
    let Value::Array(words) = reply else { return None };
    let [host, port] = &words[..] else { return None };
    Address::told(commands::text(host)?, commands::text(port)?.parse().ok()?)
}

/// Finds the epoch in the reply to SENTINEL MASTER, which is names and values in turn. A sentinel that does not tell it is
/// believed as long as no other does.
fn epoch(reply: &Value) -> u64 {
    let Value::Array(words) = reply else { return 0 };
    let is_epoch = |pair: &&[Value; 2]| commands::text(&pair[0]) == Some("config-epoch");
    let told = words.as_chunks().0.iter().find(is_epoch).and_then(|pair| commands::text(&pair[1]));
    told.and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
}

/// Where sentinels say that there is another primary.
const SWITCHED: &str = "+switch-master";

/// Sees to it that all clients of a store hear of another primary when the sentinels do. To be polled once for each store,
/// for as long as it is used; it never comes back. Where there are no sentinels, it does nothing.
pub async fn watch(settings: Arc<RedisSettings>, topology: Arc<Topology>) {
    if let Place::Sentinel { master, nodes } = &settings.place {
        match Dialer::new(Arc::clone(&settings), topology) {
            Ok(dialer) => drop(join_all(nodes.iter().map(|sentinel| follow(&dialer, sentinel, master))).await),
            Err(error) => tracing::error!(%error, "sentinels cannot be listened to"),
        }
    }
    std::future::pending::<()>().await;
}

/// Listens to a sentinel, and again whenever that fails.
async fn follow(dialer: &Dialer, sentinel: &Address, master: &str) {
    let mut is_reported = false;
    loop {
        let Err(error) = hear(dialer, sentinel, master, &mut is_reported).await;
        if !std::mem::replace(&mut is_reported, true) {
            tracing::warn!(%sentinel, %error, "a sentinel is not heard");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn hear(
    dialer: &Dialer,
    sentinel: &Address,
    master: &str,
    is_reported: &mut bool,
) -> Result<Infallible, StoreError> {
    let (mut sink, mut messages) = dialer.in_time(dialer.listen_to_sentinel(sentinel, SWITCHED)).await?;
    if std::mem::take(is_reported) {
        tracing::info!(%sentinel, "a sentinel is heard again");
    }
    loop {
        // Also at first: something may have been missed.
        let told = dialer.in_time(ask(dialer, sentinel, master)).await?;
        dialer.topology.learn(&told);
        while !is_about(&next_message(&mut sink, &mut messages, dialer.settings.timeout).await?, master) {}
    }
}

/// Whether a message is about a primary's name, which is its first word.
fn is_about(message: &[u8], master: &str) -> bool {
    message.strip_prefix(master.as_bytes()).is_some_and(|rest| rest.first() == Some(&b' '))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn address(port: u16) -> Address {
        Address { host: "10.0.0.1".to_owned(), port }
    }

    fn told(port: u16, epoch: u64) -> Known {
        Known { primary: address(port), epoch }
    }

    fn words(words: &[&str]) -> Value {
        Value::Array(words.iter().map(|word| Value::BulkString(word.as_bytes().to_vec())).collect())
    }

    #[test]
    fn what_a_sentinel_says_of_the_primary_is_an_address_or_nothing() {
        assert_eq!(primary(&words(&["10.0.0.1", "7000"])), Some(address(7000)));
        for other in [
            Value::Nil,
            Value::Int(7000),
            words(&[]),
            words(&["10.0.0.1"]),
            words(&["10.0.0.1", "7000", "more"]),
            words(&["10.0.0.1", "70000"]),
            words(&["10.0.0.1", "port"]),
            words(&["", "7000"]),
            words(&["10.0.0.1\r\n", "7000"]),
            Value::Array(vec![Value::Int(1), Value::Int(7000)]),
        ] {
            assert_eq!(primary(&other), None, "{other:?}");
        }
    }

    #[test]
    fn an_epoch_is_found_among_what_else_is_told() {
        assert_eq!(epoch(&words(&["name", "main", "ip", "config-epoch", "config-epoch", "17", "quorum", "2"])), 17);
        for other in [
            Value::Nil,
            words(&[]),
            words(&["name", "config-epoch"]),
            words(&["config-epoch"]),
            words(&["config-epoch", "-1"]),
            words(&["config-epoch", "99999999999999999999"]),
            Value::Array(vec![Value::Nil, Value::Int(3)]),
        ] {
            assert_eq!(epoch(&other), 0, "{other:?}");
        }
    }

    #[test]
    fn who_knows_of_a_later_failover_is_believed() {
        let topology = Topology::default();
        let (first, second) = (topology.reign(address(1)), topology.reign(address(2)));
        assert!(!first.is_over() && !second.is_over() && !topology.is_outdated(&told(1, 0)), "nothing is known yet");
        topology.learn(&told(1, 5));
        assert!(!first.is_over() && second.is_over());
        topology.learn(&told(2, 4));
        assert!(topology.is_outdated(&told(2, 4)) && !first.is_over(), "that was before");
        topology.learn(&told(2, 6));
        assert!(first.is_over() && !second.is_over());
        assert!(first.end().now_or_never().is_some() && second.end().now_or_never().is_none());
        topology.learn(&told(1, 6));
        assert!(second.is_over(), "of two who know the same, the latter looked later");
        topology.begin_again(&told(2, 0));
        assert!(!second.is_over() && !topology.is_outdated(&told(3, 0)), "the sentinels were set up anew");
    }

    #[test]
    fn waiting_for_the_end_of_a_reign_ends_with_it() {
        let topology = Topology::default();
        topology.learn(&told(1, 1));
        let reign = topology.reign(address(1));
        let mut end = Box::pin(reign.end());
        assert!((&mut end).now_or_never().is_none());
        topology.learn(&told(1, 2));
        assert!((&mut end).now_or_never().is_none(), "it was confirmed");
        topology.learn(&told(2, 3));
        assert!((&mut end).now_or_never().is_some());
    }

    #[test]
    fn a_message_of_sentinels_is_about_the_primary_that_it_names_first() {
        assert!(is_about(b"main 10.0.0.1 7000 10.0.0.2 7000", "main"));
        assert!(!is_about(b"main2 10.0.0.1 7000 10.0.0.2 7000", "main"));
        assert!(!is_about(b"main", "main") && !is_about(b"", "main"));
    }
}
