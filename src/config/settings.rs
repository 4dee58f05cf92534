//! What a configuration means: the resolved settings that the rest of the program is built from.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;
use rustls_pki_types::CertificateDer;

use crate::affinity::StickySettings;
use crate::balance::Balance;
use crate::headers::ForwardedBy;
use crate::health::OutlierSettings;
use crate::keys::{KeyRing, Token};
use crate::names::{Csrf, HeldBy, OnStoreError, RateBy, SessionNeed};
use crate::pool::{PinRules, RetryBudget, ServerSettings};
use crate::private::Address;
use crate::protect::{CookieRules, CsrfRules, Require};
use crate::rate::Rate;
use crate::routing::RouteMatch;
use crate::session::Rules;
use crate::session::vault::LoginWhen;
use crate::twin::LiveSettings;
use crate::upstream::TargetSettings;
use crate::{listener, probe, stateless, store, tls};

/// Everything that one file says.
pub struct Configuration {
    pub process: Process,
    pub ring: Arc<KeyRing>,
    pub admin: Arc<Admin>,
    pub listeners: Vec<Listener>,
    pub routes: Vec<Route>,
    pub stores: Vec<store::Settings>,
    pub session_api: Option<SessionApi>,
    pub protect: Protect,
    pub pools: Vec<PoolSettings>,
}

/// `[process]`.
pub struct Process {
    pub workers: usize,
    pub max_connections: usize,
    pub connections_per_address: usize,
    pub shutdown_grace: Duration,
    pub shutdown_delay: Duration,
    pub trusted_proxies: Arc<[IpNet]>,
    pub forwarded: ForwardedBy,
    pub access_log: AccessLog,
    pub watch: bool,
    pub resolve: Duration,
    pub error_pages: HashMap<u16, Bytes>,
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    Off,
    Stdout,
    File(PathBuf),
}

/// `[admin]`.
pub struct Admin {
    pub address: Address,
    pub metrics: Option<SocketAddr>,
    /// Who does not know it stays out.
    pub token: Option<Token>,
    pub tls: Option<tls::Settings>,
}

/// How the admin surface is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminContact {
    pub address: Address,
    pub token: Option<String>,
    /// The file with its certificate, where it speaks TLS.
    pub certificate: Option<PathBuf>,
}

/// `[session_api]`.
#[derive(Clone)]
pub struct SessionApi {
    pub address: Address,
    /// How servers find this proxy's own.
    pub advertise: Box<str>,
    pub tls: Option<tls::Settings>,
}

/// `[protect]`.
pub struct Protect {
    pub csrf: CsrfRules,
    pub cookies: CookieRules,
    /// Strict-Transport-Security.
    pub hsts: Option<HeaderValue>,
}

/// `[[listener]]`.
pub struct Listener {
    pub settings: listener::Settings,
    pub tls: Option<tls::Settings>,
}

/// `[[route]]`.
pub struct Route {
    pub matches: RouteMatch,
    /// As it is named in the log: host and path.
    pub label: Arc<str>,
    pub action: Action,
    pub strip_prefix: bool,
    pub request_headers: HeaderChanges,
    pub response_headers: HeaderChanges,
    /// Largest request body; 0: no limit.
    pub body_bytes: u64,
    pub sticky: bool,
    pub rate: Option<RouteRate>,
    pub session: SessionNeed,
    /// Overrides `[protect] csrf`.
    pub csrf: Option<Csrf>,
    /// The rules for requests from other sites hold for GET too.
    pub protect_safe: bool,
    /// Step-up.
    pub require: Option<Require>,
    /// Where navigations are sent that need a session, or a step-up.
    pub login_url: Option<Box<str>>,
}

impl Route {
    /// Whether it is for those who have logged in.
    pub fn needs_login(&self) -> bool {
        self.session == SessionNeed::Required || self.require.is_some()
    }
}

/// `rate` of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRate {
    pub rate: Rate,
    pub by: RateBy,
}

/// What a route does.
pub enum Action {
    /// The pool at this position.
    Pool(usize),
    Respond {
        status: StatusCode,
        body: Bytes,
    },
    /// 308 to this, with the path appended.
    Redirect(Box<str>),
}

/// Header fields to set and to remove.
#[derive(Clone, Debug, Default)]
pub struct HeaderChanges {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

impl HeaderChanges {
    /// Makes the changes to a message's fields.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
    }
}

/// `[[pool]]`.
pub struct PoolSettings {
    pub name: Arc<str>,
    pub balance: Balance,
    /// With `mode = "sticky"`.
    pub sticky: Option<StickySettings>,
    /// With `mode = "shared"`.
    pub shared: Option<SharedSettings>,
    /// With `mode = "stateless"`.
    pub stateless: Option<StatelessSettings>,
    pub pins: PinRules,
    /// The Host that servers see; none: as the client sent it.
    pub host: Option<HeaderValue>,
    pub debug_headers: bool,
    pub servers: Vec<ServerEntry>,
    pub health: Option<probe::Settings>,
    pub outlier: OutlierSettings,
    pub timeouts: Timeouts,
    pub retry: Retry,
    /// `[pool.drain] deadline`; none: a drain waits for the last session.
    pub drain_deadline: Option<Duration>,
    /// `[pool.drain] idle`: a session not seen for so long no longer counts.
    pub session_window: Duration,
    /// `[pool.slow_start] window`; none: a server that joins gets its whole share of new sessions at once.
    pub slow_start: Option<Duration>,
    /// `[pool.rebalance] moves_per_second`.
    pub rebalance: Option<Rate>,
    /// `[pool.twin]`.
    pub twin: LiveSettings,
    pub has_twin: bool,
}

/// `[pool.shared]`.
#[derive(Clone, Debug)]
pub struct SharedSettings {
    pub held_by: HeldBy,
    /// The store at this position.
    pub store: usize,
    pub realm: Box<str>,
    /// With its `__Host-` prefix; or the application's own.
    pub cookie: Box<str>,
    pub rules: Rules,
    /// Data of more bytes is left to the side API.
    pub inline_bytes: usize,
    pub on_store_error: OnStoreError,
    /// What browsers are to forget at a logout.
    pub clear_site_data: Option<HeaderValue>,
    /// How often the sessions of open tunnels are looked at.
    pub tunnel_recheck: Duration,
    /// Cookies of the application that the browser never has.
    pub vault: Vec<Box<str>>,
    pub login_when: Option<LoginWhen>,
}

/// `[pool.stateless]`.
#[derive(Clone, Debug, PartialEq)]
pub struct StatelessSettings {
    pub verify: stateless::Settings,
    /// By position of the issuer: whose certificates its https `jwks` may show; none: the system's authorities.
    pub authorities: Vec<Vec<CertificateDer<'static>>>,
    /// The store at this position keeps the revocations.
    pub store: Option<usize>,
}

impl SharedSettings {
    /// The cookie's name where the browser sees http: prefixes need TLS.
    pub fn plain_cookie(&self) -> &str {
        let bare = self.cookie.strip_prefix("__Host-").unwrap_or(&self.cookie);
        bare.strip_prefix("Http-").unwrap_or(bare)
    }
}

/// `[[pool.server]]`.
pub struct ServerEntry {
    pub settings: ServerSettings,
    pub target: TargetSettings,
    /// Requests that it serves at full speed at once, for the twin; 0: to be found out.
    pub capacity: u32,
    /// What its name resolved to when the file was read.
    pub addresses: Vec<SocketAddr>,
}

/// `[pool.timeouts]`, those of an exchange; none: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub first_byte: Option<Duration>,
    pub between_bytes: Option<Duration>,
    pub tunnel_idle: Option<Duration>,
}

/// `[pool.retry]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    pub attempts: u32,
    pub body_bytes: usize,
    pub budget: RetryBudget,
}
