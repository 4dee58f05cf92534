//! The way to servers: connecting, connections kept for reuse, requests and their bodies, tunnels.
//!
//! Each worker has its own connections. An HTTP/1.1 connection has no task: its future is polled by the exchange that
//! uses it, first while the request waits for its response and then by the response's body, so nothing wakes another
//! task on the way. A connection whose exchange was cut short is closed, never used again: what is left in it belongs
//! to somebody else's request.

mod body;
mod connect;
mod conns;
mod frames;
mod response;
mod send;
mod tunnel;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use body::{BodyFault, OutBody, RequestBody};
pub use connect::{ConnectError, Io, connect};
pub use conns::{Connection, Conns};
pub use response::{BodyError, Raw, UpstreamBody};
pub use send::{FailureKind, SendFailure, TimeLimits};
pub use tunnel::{End, TunnelRules, Tunnelled, tunnel};

use parking_lot::RwLock;

use crate::pool::ServerState;
use crate::tls::{ClientConfig, ClientSettings, ServerName};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp { host: Box<str>, port: u16 },
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(out, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(out, "{host}:{port}"),
            Address::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

/// How a server is spoken to. Two equal ones may share connections.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetSettings {
    pub address: Address,
    /// The name on the server's certificate, and how it is judged.
    pub tls: Option<(ServerName<'static>, ClientSettings)>,
    pub http2: bool,
    pub connect_timeout: Duration,
    /// How long an unused connection is kept.
    pub keep_alive: Duration,
    /// Unused connections kept per worker.
    pub idle_connections: usize,
}

/// A server that can be connected to. It survives reloads that leave its settings as they are.
pub struct Target {
    pub settings: TargetSettings,
    tls: Option<Arc<ClientConfig>>,
    pub state: Arc<ServerState>,
    /// What its name resolves to. Written by the control thread; read once per new connection.
    addresses: RwLock<Arc<[SocketAddr]>>,
    /// A connect has failed: its name should be resolved again soon.
    stale_name: AtomicBool,
}

impl Target {
    /// A target of these settings; the TLS configuration is built by the caller, once per pool.
    pub fn new(
        settings: TargetSettings,
        tls: Option<Arc<ClientConfig>>,
        state: Arc<ServerState>,
        addresses: Arc<[SocketAddr]>,
    ) -> Self {
        Target { settings, tls, state, addresses: RwLock::new(addresses), stale_name: AtomicBool::new(false) }
    }

    /// The addresses to try, in turn.
    pub fn addresses(&self) -> Arc<[SocketAddr]> {
        Arc::clone(&self.addresses.read())
    }

    /// Says what the name resolves to now.
    pub fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        *self.addresses.write() = addresses.into();
    }

    /// Whether a connect has failed since this was last asked.
    pub fn take_stale_name(&self) -> bool {
        self.stale_name.swap(false, Ordering::Relaxed)
    }
}
