//! Hearing what is said on a channel.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::Value;
use redis::aio::{PubSubSink, PubSubStream};

use super::connection::Failure;
use super::dialer::Dialer;
use super::sentinel::{self, Topology};
use super::settings::{Address, Place, RedisSettings};
use crate::session::store::StoreError;

/// The rest between two attempts to listen.
pub const PAUSE: Duration = Duration::from_millis(250);
/// After so long a silence a listener asks whether anybody is there.
const QUIET: Duration = Duration::from_secs(5);

/// Listens on a channel for as long as the future is polled, and connects again whenever that fails. What is said
/// meanwhile is missed: this is for telling others sooner, not for telling them at all.
///
/// Where there are several nodes, one of them is listened to: the primary that sentinels name, or one that the settings
/// name of a cluster, whose nodes pass on to each other what is published.
///
/// It comes back only where [`super::Redis::new`] with the same settings says why.
pub async fn subscribe(
    settings: Arc<RedisSettings>,
    topology: Arc<Topology>,
    channel: &str,
    mut on_message: impl FnMut(Vec<u8>),
) {
    let dialer = match Dialer::new(settings, topology) {
        Ok(dialer) => dialer,
        Err(error) => return tracing::error!(channel, %error, "the store's messages cannot be listened to"),
    };
    let mut is_reported = false;
    for turn in 0usize.. {
        let Err(error) = listen(&dialer, turn, channel, &mut on_message, &mut is_reported).await;
        if !std::mem::replace(&mut is_reported, true) {
            tracing::warn!(channel, %error, "the store's messages are not heard");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Listens until the connection fails, or until another node is the primary.
async fn listen(
    dialer: &Dialer,
    turn: usize,
    channel: &str,
    on_message: &mut impl FnMut(Vec<u8>),
    is_reported: &mut bool,
) -> Result<Infallible, StoreError> {
    let address = match &dialer.settings.place {
        Place::One(address) => address.clone(),
        Place::Sentinel { master, nodes } => dialer.in_time(locate(dialer, master, nodes)).await?.primary,
        Place::Cluster(nodes) => match nodes.get(turn % nodes.len().max(1)) {
            Some(address) => address.clone(),
            None => return Err(StoreError::Unavailable("no node is named".to_owned())),
        },
    };
    let (mut sink, mut messages) = dialer.in_time(dialer.listen(&address, channel)).await?;
    if std::mem::take(is_reported) {
        tracing::info!(channel, "the store's messages are heard again");
    }
    let reign = dialer.topology.reign(address);
    loop {
        tokio::select! {
            () = reign.end() => return Err(Failure::Deposed.into()),
            message = next_message(&mut sink, &mut messages, dialer.settings.timeout) => on_message(message?),
        }
    }
}

async fn locate(dialer: &Dialer, master: &str, sentinels: &[Address]) -> Result<sentinel::Known, Failure> {
    sentinel::locate(dialer, master, sentinels).await.map_err(Failure::NotConnected)
}

/// The next message, or why there will be none. It may be dropped at any moment: no message is lost by that.
pub async fn next_message(
    sink: &mut PubSubSink,
    messages: &mut PubSubStream,
    limit: Duration,
) -> Result<Vec<u8>, StoreError> {
    loop {
        match tokio::time::timeout(QUIET, messages.next()).await {
            Ok(Some(message)) => return Ok(message.get_payload_bytes().to_vec()),
            Ok(None) => return Err(StoreError::Unavailable("the connection was closed".to_owned())),
            Err(_) => ping(sink, limit).await?,
        }
    }
}

/// A listener that hears nothing cannot tell a quiet channel from a dead connection.
async fn ping(sink: &mut PubSubSink, limit: Duration) -> Result<(), StoreError> {
    let ping = tokio::time::timeout(limit, sink.ping::<Value>()).await;
    ping.map_err(|_| StoreError::TimedOut)?.map(|_| ()).map_err(|error| Failure::Lost(error).into())
}
