//! The immutable built configuration. One exchange reads it once; what must agree is in it together.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;

use super::issuer_keys::IssuerKeys;
use super::revocations::{Place, RevocationBook};
use super::twins::TwinSeat;

use crate::affinity::{Affinity, LearnedTable, PinSealer, Source};
use crate::config::{
    Action, Admin, Configuration, PoolSettings, Process, Protect, Retry, Route, ServerEntry, SessionApi,
    SharedSettings, StatelessSettings, Timeouts,
};
use crate::headers;
use crate::keys::{Hasher, KeyRing, Sealer};
use crate::listener::Endpoint;
use crate::metrics::{Metrics, PoolMetrics};
use crate::names::HeldBy;
use crate::pool::{Load, Pool, PoolParts, Server, ServerState};
use crate::probe;
use crate::protect;
use crate::rate::KeyedRate;
use crate::routing::{RouteMatch, RouteTable};
use crate::session::Realm;
use crate::session::token::TokenKeys;
use crate::stateless::{Carrier, IssuerSettings, KeySource, Verifier};
use crate::store::{self, Store};
use crate::tls::{self, ClientConfig};
use crate::twin::{LivePool, LiveServer};
use crate::upstream::{Address, Target, TargetSettings};

/// Why a configuration that reads well still cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("listener `{0}`: {1}")]
    Listener(Box<str>, rustls::Error),
    #[error("pool `{0}`: {1}")]
    Pool(Arc<str>, tls::ClientError),
    #[error("store `{0}`: {1}")]
    Store(Arc<str>, store::OpenError),
    #[error("pool `{0}`: the keys of issuer `{1}`: {2}")]
    Keys(Arc<str>, Box<str>, String),
}

/// Everything that an exchange goes by.
pub struct Snapshot {
    pub process: Process,
    pub admin: Arc<Admin>,
    /// TLS of the admin address.
    pub admin_tls: Option<tls::Endpoint>,
    /// Seals the cookies of those who have given the admin token.
    pub admin_logins: Sealer,
    pub endpoints: Vec<Arc<Endpoint>>,
    pub routes: Vec<Route>,
    pub pools: Vec<PoolEntry>,
    /// Where sessions are kept.
    pub stores: Vec<Arc<Store>>,
    /// Signs what servers are told of sessions.
    pub token_keys: Arc<TokenKeys>,
    /// Makes what forms have to show where a token's cookie says who asks; one for each key of the ring.
    pub token_csrf: Vec<Hasher>,
    /// Where servers may ask for sessions.
    pub session_api: Option<Arc<SessionApi>>,
    /// TLS of that address.
    pub session_api_tls: Option<tls::Endpoint>,
    /// What the edge enforces, whatever the mode.
    pub protect: Protect,
    /// Makes the `session` field of the access log.
    pub session_hasher: Hasher,
    table: RouteTable,
    /// What routes match, listeners by what stands for their names.
    matches: Vec<RouteMatch>,
    /// Who asked how often, by position of the route; kept as long as it matches the same.
    rates: Vec<Option<Arc<KeyedRate>>>,
    once_in_force: Mutex<OnceInForce>,
    /// Names of our cookies, of all pools.
    cookie_names: CookieNames,
}

/// What a pool has to do with sessions in a store.
#[derive(Clone)]
pub struct SharedPool {
    pub settings: Arc<SharedSettings>,
    pub realm: Arc<Realm>,
    pub store: Arc<Store>,
    /// The pool's name.
    pub audience: Arc<str>,
}

/// What a pool has to do with tokens that carry who somebody is.
pub struct StatelessPool {
    pub settings: Arc<StatelessSettings>,
    pub verifier: Verifier,
    /// By position of the issuer.
    pub keys: Vec<Arc<IssuerKeys>>,
    pub revoked: Arc<RevocationBook>,
    /// The pool's name.
    pub audience: Arc<str>,
}

/// What is put in force with a snapshot, and not before: another one may be refused yet.
#[derive(Default)]
struct OnceInForce {
    /// Key sets that were read from files.
    keys: Vec<(Arc<IssuerKeys>, Bytes)>,
    /// Where revocations are kept from then on.
    books: Vec<(Arc<RevocationBook>, Place)>,
    /// Pools whose revocations are in another book than before: the new one, the old one, the pool.
    moved: Vec<(Arc<RevocationBook>, Arc<RevocationBook>, Arc<str>)>,
}

/// A pool and how its servers are spoken to.
pub struct PoolEntry {
    pub pool: Pool,
    /// By position of the server.
    pub targets: Vec<Arc<Target>>,
    /// For upgrades, where the others speak HTTP/2.
    upgrade_targets: Option<Vec<Arc<Target>>>,
    pub host: Option<HeaderValue>,
    pub debug_headers: bool,
    /// With `mode = "shared"`, where the proxy keeps the sessions.
    pub shared: Option<SharedPool>,
    /// With `mode = "stateless"`.
    pub stateless: Option<Arc<StatelessPool>>,
    /// The application's own session cookie, where it keeps them.
    pub counted_cookie: Option<Box<str>>,
    pub timeouts: Timeouts,
    pub retry: Retry,
    pub health: Option<probe::Settings>,
    /// How long a drain waits for sessions; none: for the last one.
    pub drain_deadline: Option<Duration>,
    /// A session not seen for so long no longer counts.
    pub session_window: Duration,
    /// Servers that the file no longer names, while exchanges of theirs are under way: if they come back, so do these.
    departed: Vec<(Box<str>, Weak<ServerState>)>,
    /// What was measured of it when it was last looked at.
    pub load: Mutex<Load>,
    /// Where its twin is told of exchanges, and says what it makes of them; none where it is off.
    pub twin: Option<Arc<TwinSeat>>,
}

impl PoolEntry {
    /// How the server is spoken to; an upgrade always goes over HTTP/1.1.
    pub fn target(&self, server: usize, upgrade: bool) -> &Arc<Target> {
        match &self.upgrade_targets {
            Some(targets) if upgrade => &targets[server],
            _ => &self.targets[server],
        }
    }

    /// Every way to every server.
    pub fn all_targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.targets.iter().chain(self.upgrade_targets.iter().flatten())
    }
}

impl Snapshot {
    /// Builds what a configuration says. Live state of servers is taken over from the previous snapshot by name.
    pub fn build(
        configuration: Configuration,
        previous: Option<&Snapshot>,
        metrics: &Arc<Metrics>,
        random: &mut fastrand::Rng,
    ) -> Result<Self, BuildError> {
        let Configuration { process, ring, admin, listeners, routes, stores, session_api, protect, pools } =
            configuration;
        let endpoints = listeners.into_iter().map(|listener| {
            let name = listener.settings.name.clone();
            let tls = listener.tls.as_ref().map(|settings| tls::Endpoint::new(settings, &name, Arc::clone(&ring)));
            Ok(Arc::new(Endpoint {
                tls: tls.transpose().map_err(|error| BuildError::Listener(name.clone(), error))?,
                metrics: metrics.listener(&name),
                settings: listener.settings,
                trusted: Arc::clone(&process.trusted_proxies),
                certificates: listener.tls.map(|tls| tls.certificates).unwrap_or_default(),
            }))
        });
        let endpoints = endpoints.collect::<Result<Vec<_>, BuildError>>()?;
        let admin_tls = admin.tls.as_ref().map(|settings| {
            let endpoint = tls::Endpoint::new(settings, "\0admin", Arc::clone(&ring));
            endpoint.map(tls::Endpoint::only_http1).map_err(|error| BuildError::Listener("[admin]".into(), error))
        });
        let admin_tls = admin_tls.transpose()?;
        let session_api_tls = session_api.as_ref().and_then(|api| api.tls.as_ref()).map(|settings| {
            let endpoint = tls::Endpoint::new(settings, "\0session-api", Arc::clone(&ring));
            endpoint.map(tls::Endpoint::only_http1).map_err(|error| BuildError::Listener("[session_api]".into(), error))
        });
        let session_api_tls = session_api_tls.transpose()?;
        let stores = stores.into_iter().map(|settings| open_store(settings, previous, metrics));
        let stores = stores.collect::<Result<Vec<_>, _>>()?;
        let sealer = Arc::new(PinSealer::new(&ring));
        let builder = PoolBuilder {
            ring: &ring,
            sealer,
            stores: &stores,
            previous,
            metrics,
            workers: process.workers,
            once_in_force: Mutex::default(),
            revocations: Arc::new(ring.sealer("steadfast revocations v1", b"")),
        };
        let pools = pools.into_iter().map(|pool| builder.build(pool, random)).collect::<Result<Vec<_>, _>>()?;
        let once_in_force = builder.once_in_force;
        // Connections outlive snapshots, so routes know listeners by what their names stand for, not by position.
        let matches = routes.iter().map(|route| RouteMatch {
            listeners: route.matches.listeners.as_ref().map(|some| some.iter().map(|at| endpoints[*at].id()).collect()),
            ..route.matches.clone()
        });
        let matches: Vec<RouteMatch> = matches.collect();
        Ok(Snapshot {
            // Equal routes were refused when the file was read.
            table: RouteTable::build(&matches).unwrap_or_default(),
            cookie_names: CookieNames::of(&pools),
            rates: routes.iter().zip(&matches).map(|(route, of)| keyed_rate(route, of, previous, random)).collect(),
            admin_tls,
            admin_logins: ring.sealer("steadfast admin login v1", b""),
            matches,
            session_hasher: ring.hasher("steadfast log session v1"),
            token_keys: Arc::new(TokenKeys::new(&ring)),
            token_csrf: ring.hashers("steadfast token csrf v1"),
            session_api: session_api.map(Arc::new),
            session_api_tls,
            once_in_force,
            protect,
            stores,
            process,
            admin,
            endpoints,
            routes,
            pools,
        })
    }

    /// Puts in force what it says of servers' live state: only once it is the one that counts.
    pub(super) fn adopt(&self) {
        self.pools.iter().for_each(|entry| entry.pool.adopt());
        let OnceInForce { keys, books, moved } = std::mem::take(&mut *self.once_in_force.lock());
        for (keys, text) in keys {
            // It was read before, and found good.
            let _ = keys.take(text);
        }
        books.into_iter().for_each(|(book, place)| book.move_to(place));
        moved.iter().for_each(|(book, before, pool)| book.inherit(before, pool));
    }

    /// The route of an exchange.
    pub fn route(&self, host: &str, path: &str, listener: usize) -> Option<usize> {
        self.table.find(host, path, listener)
    }

    /// Whether a cookie of a request to a pool is one of ours, or one that some server might take for it, or carries who
    /// somebody is: no server is to see it.
    pub fn is_not_for_servers(&self, name: &[u8], https: bool, pool: &PoolEntry) -> bool {
        self.cookie_names.carriers.contains(name) || self.is_our_cookie(name, https, pool)
    }

    /// Whether a cookie is one of ours, or one that some server might take for it: no server may set it.
    pub fn is_our_cookie(&self, name: &[u8], https: bool, pool: &PoolEntry) -> bool {
        self.cookie_names.are_ours(name, https, pool)
    }

    /// Who asked how often for what a route serves.
    pub fn rates(&self, route: usize) -> Option<&KeyedRate> {
        self.rates[route].as_deref()
    }

    /// Hosts of servers, as they are in force.
    pub fn server_hosts(&self) -> HashSet<String> {
        let targets = self.pools.iter().flat_map(PoolEntry::all_targets);
        let hosts = targets.filter_map(|target| match &target.settings.address {
            Address::Tcp { host, .. } => Some(host.to_string()),
            Address::Unix(_) => None,
        });
        hosts.collect()
    }

    /// The stateless sides of pools.
    pub fn stateless_pools(&self) -> impl Iterator<Item = &StatelessPool> {
        self.pools.iter().filter_map(|entry| entry.stateless.as_deref())
    }

    /// The books of revocations, each once.
    pub fn revocation_books(&self) -> Vec<&Arc<RevocationBook>> {
        let mut books: Vec<&Arc<RevocationBook>> = Vec::new();
        for pool in self.stateless_pools() {
            if !books.iter().any(|known| Arc::ptr_eq(known, &pool.revoked)) {
                books.push(&pool.revoked);
            }
        }
        books
    }

    /// The pool of this name.
    pub fn pool(&self, name: &str) -> Option<&PoolEntry> {
        self.pools.iter().find(|entry| &*entry.pool.name == name)
    }

    /// The pool position that a route leads to.
    pub fn pool_of_route(&self, route: usize) -> Option<usize> {
        match self.routes[route].action {
            Action::Pool(pool) => Some(pool),
            Action::Respond { .. } | Action::Redirect(_) => None,
        }
    }
}

/// The buckets of a route with a rate: those that it had, or empty ones.
fn keyed_rate(
    route: &Route,
    matches: &RouteMatch,
    previous: Option<&Snapshot>,
    random: &mut fastrand::Rng,
) -> Option<Arc<KeyedRate>> {
    let wanted = route.rate?;
    let known = previous.and_then(|previous| {
        let at = previous.matches.iter().position(|known| known == matches)?;
        previous.rates[at].clone().filter(|_| previous.routes[at].rate.is_some_and(|rate| rate.by == wanted.by))
    });
    Some(known.unwrap_or_else(|| Arc::new(KeyedRate::new(random.u64(..)))))
}

/// Names of the cookies that the proxy reads.
struct CookieNames {
    /// Ours, wherever they are seen: nobody else has a use for them.
    ours: foldhash::HashSet<Box<[u8]>>,
    /// Those of them with a prefix: whatever the case.
    prefixed: Vec<Box<[u8]>>,
    /// What session cookies are called where the browser sees http. Over https many an application's own is called so.
    plain_sessions: foldhash::HashSet<Box<[u8]>>,
    /// What tokens come in, which applications set.
    carriers: foldhash::HashSet<Box<[u8]>>,
}

impl CookieNames {
    fn of(pools: &[PoolEntry]) -> Self {
        let own =
            pools.iter().filter_map(|entry| entry.pool.affinity.as_ref()).filter(|affinity| affinity.has_own_cookie());
        let pins = own.map(Affinity::settings).flat_map(|settings| [&*settings.cookie, settings.plain_cookie()]);
        let sessions: Vec<&SharedSettings> =
            pools.iter().filter_map(|entry| Some(&*entry.shared.as_ref()?.settings)).collect();
        let carriers = pools.iter().filter_map(|entry| match &entry.stateless.as_ref()?.settings.verify.carrier {
            Carrier::Cookie(name) => Some(name.as_bytes().into()),
            Carrier::Header => None,
        });
        let ours = pins.chain(sessions.iter().map(|settings| &*settings.cookie)).chain([headers::ADMIN_COOKIE]);
        let ours: foldhash::HashSet<Box<[u8]>> = ours.map(|name| name.as_bytes().into()).collect();
        CookieNames {
            prefixed: ours.iter().filter(|name| name.starts_with(b"__")).cloned().collect(),
            ours,
            plain_sessions: sessions.iter().map(|settings| settings.plain_cookie().as_bytes().into()).collect(),
            carriers: carriers.collect(),
        }
    }

    fn are_ours(&self, name: &[u8], https: bool, pool: &PoolEntry) -> bool {
        let is_of_pool =
            || pool.shared.as_ref().is_some_and(|shared| shared.settings.plain_cookie().as_bytes() == name);
        self.ours.contains(name)
            || (self.plain_sessions.contains(name) && (!https || is_of_pool()))
            || self.prefixed.iter().any(|ours| protect::is_alias(name, ours))
    }
}

struct PoolBuilder<'a> {
    ring: &'a KeyRing,
    sealer: Arc<PinSealer>,
    stores: &'a [Arc<Store>],
    previous: Option<&'a Snapshot>,
    metrics: &'a Arc<Metrics>,
    workers: usize,
    once_in_force: Mutex<OnceInForce>,
    /// Seals revocations.
    revocations: Arc<Sealer>,
}

impl PoolBuilder<'_> {
    fn build(&self, settings: PoolSettings, random: &mut fastrand::Rng) -> Result<PoolEntry, BuildError> {
        let before = self.previous.and_then(|previous| previous.pool(&settings.name));
        let metrics = self.metrics.pool(&settings.name);
        let twin = twin_seat(&settings, before);
        let states: Vec<Arc<ServerState>> =
            settings.servers.iter().map(|server| state(before, server, &metrics)).collect();
        let targets = build_targets(&settings, before, &states, |target| target.clone())?;
        let has_http2 = settings.servers.iter().any(|server| server.target.http2);
        let over_http1 = |target: &TargetSettings| {
            let tls = target.tls.clone().map(|(name, client)| (name, tls::ClientSettings { http2: false, ..client }));
            TargetSettings { http2: false, tls, ..target.clone() }
        };
        let upgrade_targets = has_http2.then(|| build_targets(&settings, before, &states, over_http1)).transpose()?;
        let names: Vec<Box<str>> = settings.servers.iter().map(|server| server.settings.name.clone()).collect();
        let learned = before.and_then(|before| before.pool.affinity.as_ref()).map(Affinity::learned);
        let learned = learned.unwrap_or_else(|| Arc::new(LearnedTable::new(random.u64(..))));
        let affinity = settings.sticky.map(|sticky| {
            let names = names.iter().map(|name| &**name);
            Affinity::new(sticky, self.ring, Arc::clone(&self.sealer), learned, &settings.name, names)
        });
        let by_application = settings.shared.as_ref().filter(|shared| shared.held_by == HeldBy::Application);
        let counted_cookie = by_application.map(|shared| shared.cookie.clone());
        let stateless = settings.stateless.map(|stateless| self.stateless(stateless, &settings.name, before, random));
        let stateless = stateless.transpose()?.map(Arc::new);
        let shared = settings.shared.and_then(|shared| self.shared(shared, &settings.name));
        let departed = before.map(|before| departed(before, &names)).unwrap_or_default();
        let servers = settings.servers.into_iter().zip(states).map(|(entry, state)| Server::new(entry.settings, state));
        let parts = PoolParts {
            name: settings.name,
            balance: settings.balance,
            servers: servers.collect(),
            affinity,
            metrics,
            outlier: settings.outlier,
            rules: settings.pins,
            retries: before.map(|before| before.pool.retries()).unwrap_or_default(),
            slow_start: settings.slow_start,
            rebalance: settings.rebalance,
            rebalancing: before.map(|before| before.pool.rebalancing()).unwrap_or_default(),
            workers: self.workers,
            weighs_pins: true,
        };
        Ok(PoolEntry {
            pool: Pool::build(parts, random),
            targets,
            upgrade_targets,
            host: settings.host,
            debug_headers: settings.debug_headers,
            shared,
            stateless,
            counted_cookie,
            timeouts: settings.timeouts,
            retry: settings.retry,
            health: settings.health,
            drain_deadline: settings.drain_deadline,
            session_window: settings.session_window,
            departed,
            load: Mutex::default(),
            twin,
        })
    }

    /// Sessions of a pool; none where a store is missing, which was refused when the file was read.
    fn shared(&self, settings: SharedSettings, pool: &Arc<str>) -> Option<SharedPool> {
        if settings.held_by == HeldBy::Application {
            return None;
        }
        let realm = Realm::new(&settings.realm, self.ring, settings.rules.clone());
        let store = self.stores.get(settings.store)?;
        let (realm, store, audience) = (Arc::new(realm), Arc::clone(store), Arc::clone(pool));
        Some(SharedPool { settings: Arc::new(settings), realm, store, audience })
    }

    fn stateless(
        &self,
        settings: StatelessSettings,
        pool: &Arc<str>,
        before: Option<&PoolEntry>,
        random: &mut fastrand::Rng,
    ) -> Result<StatelessPool, BuildError> {
        let known = before.and_then(|before| before.stateless.as_deref());
        let issuers = settings.verify.issuers.iter().zip(&settings.authorities);
        let keys = issuers.map(|(issuer, authorities)| self.issuer_keys(issuer, authorities, known, pool, random));
        let keys = keys.collect::<Result<Vec<_>, BuildError>>()?;
        let revoked = self.book(settings.store.and_then(|at| self.stores.get(at)).cloned());
        if let Some(known) = known.filter(|known| !Arc::ptr_eq(&known.revoked, &revoked)) {
            let moved = (Arc::clone(&revoked), Arc::clone(&known.revoked), Arc::clone(pool));
            self.once_in_force.lock().moved.push(moved);
        }
        Ok(StatelessPool {
            verifier: Verifier::new(settings.verify.clone()),
            settings: Arc::new(settings),
            keys,
            revoked,
            audience: Arc::clone(pool),
        })
    }

    /// The keys of an issuer: those that there were, or new ones.
    fn issuer_keys(
        &self,
        issuer: &IssuerSettings,
        authorities: &[CertificateDer<'static>],
        known: Option<&StatelessPool>,
        pool: &Arc<str>,
        random: &mut fastrand::Rng,
    ) -> Result<Arc<IssuerKeys>, BuildError> {
        let earlier = known.map(|known| known.keys.as_slice()).unwrap_or_default();
        let same = earlier.iter().find(|keys| keys.are_for(issuer, authorities));
        let keys = match same {
            Some(keys) => Arc::clone(keys),
            None => {
                let tls = issuer_tls(issuer, authorities, pool)?;
                let keys = IssuerKeys::new(issuer.clone(), authorities.to_vec(), tls, random);
                earlier.iter().for_each(|earlier| keys.begin_with(earlier));
                keys
            }
        };
        let read = match keys.read_file() {
            Ok(read) => read,
            // The last good ones stay, and everything else of the file goes on.
            Err(why) if keys.current().is_some() => {
                tracing::error!(issuer = %issuer.issuer, %why, "the issuer's keys cannot be read; the last good ones stay");
                None
            }
            Err(why) => return Err(BuildError::Keys(Arc::clone(pool), issuer.issuer.clone(), why)),
        };
        self.once_in_force.lock().keys.extend(read.map(|text| (Arc::clone(&keys), text)));
        Ok(keys)
    }

    /// The book of a store's revocations, or of those that are in memory only: the one that there is, or a new one.
    fn book(&self, store: Option<Arc<Store>>) -> Arc<RevocationBook> {
        let mut once_in_force = self.once_in_force.lock();
        let planned = once_in_force.books.iter().map(|(book, _)| book).find(|book| book.is_of(store.as_ref()));
        if let Some(book) = planned {
            return Arc::clone(book);
        }
        let place = Place { store, sealer: Arc::clone(&self.revocations) };
        let mut earlier = self.previous.into_iter().flat_map(Snapshot::revocation_books);
        let known = earlier.find(|known| known.is_of(place.store.as_ref())).map(Arc::clone);
        let book = known.unwrap_or_else(|| RevocationBook::new(place.clone()));
        once_in_force.books.push((Arc::clone(&book), place));
        book
    }
}

/// The seat of the pool's twin, if it has one.
fn twin_seat(settings: &PoolSettings, before: Option<&PoolEntry>) -> Option<Arc<TwinSeat>> {
    let source = settings.sticky.as_ref().map(|sticky| &sticky.source);
    // A header or an address says by itself where it belongs.
    let is_hashed = matches!(source, Some(Source::Header(_) | Source::Address));
    let server = |entry: &ServerEntry| LiveServer {
        name: entry.settings.name.clone(),
        weight: entry.settings.weight,
        capacity: entry.capacity,
        max_requests: entry.settings.max_requests,
        backup: entry.settings.backup,
    };
    let pool = LivePool {
        balance: settings.balance,
        is_hashed,
        is_sticky: source.is_some(),
        pins: settings.pins,
        has_store: settings.shared.as_ref().is_some_and(|shared| shared.held_by == HeldBy::Proxy),
        servers: settings.servers.iter().map(server).collect(),
    };
    let known = before.and_then(|before| before.twin.as_ref());
    settings.has_twin.then(|| TwinSeat::take(known, settings.twin, pool))
}

/// TLS for keys that come over https.
fn issuer_tls(
    issuer: &IssuerSettings,
    authorities: &[CertificateDer<'static>],
    pool: &Arc<str>,
) -> Result<Option<Arc<ClientConfig>>, BuildError> {
    if !matches!(issuer.keys, KeySource::Url(_)) {
        return Ok(None);
    }
    let settings = tls::ClientSettings { verify: true, ca: authorities.to_vec(), http2: false };
    tls::client_config(&settings).map(Some).map_err(|error| BuildError::Pool(Arc::clone(pool), error))
}

/// The store of these settings: the one that there was, or a new one.
fn open_store(
    settings: store::Settings,
    previous: Option<&Snapshot>,
    metrics: &Metrics,
) -> Result<Arc<Store>, BuildError> {
    let known = previous.and_then(|previous| previous.stores.iter().find(|known| known.is(&settings)));
    if let Some(known) = known {
        return Ok(Arc::clone(known));
    }
    let name = Arc::clone(&settings.name);
    let store =
        Store::open(settings, metrics.store(&name)).map_err(|error| BuildError::Store(Arc::clone(&name), error))?;
    if let Some(before) = previous.and_then(|previous| previous.stores.iter().find(|one| one.settings.name == name)) {
        store.inherit(before);
    }
    Ok(store)
}

/// The live state of the server of this name, or a new one.
fn state(before: Option<&PoolEntry>, server: &ServerEntry, metrics: &PoolMetrics) -> Arc<ServerState> {
    let name = &server.settings.name;
    let known = before.and_then(|before| before.pool.servers.iter().find(|known| known.settings.name == *name));
    if let Some(known) = known {
        return Arc::clone(&known.state);
    }
    let Some(before) = before else { return Arc::new(ServerState::new(metrics.server(name))) };
    let departed = before.departed.iter().find(|(departed, _)| departed == name);
    match departed.and_then(|(_, state)| state.upgrade()) {
        Some(state) => {
            state.comes_back();
            state
        }
        None => Arc::new(ServerState::newcomer(metrics.server(name))),
    }
}

/// The servers that are gone with this configuration, or were already, and have something under way.
fn departed(before: &PoolEntry, names: &[Box<str>]) -> Vec<(Box<str>, Weak<ServerState>)> {
    let leaving = before.pool.servers.iter().map(|known| (&known.settings.name, Arc::downgrade(&known.state)));
    let earlier = before.departed.iter().map(|(name, state)| (name, Weak::clone(state)));
    let gone = earlier.chain(leaving).filter(|(name, state)| !names.contains(name) && state.strong_count() > 0);
    gone.map(|(name, state)| (name.clone(), state)).collect()
}

/// Targets by server; one that is spoken to as before is the same one, with its connections.
fn build_targets(
    settings: &PoolSettings,
    before: Option<&PoolEntry>,
    states: &[Arc<ServerState>],
    change: impl Fn(&TargetSettings) -> TargetSettings,
) -> Result<Vec<Arc<Target>>, BuildError> {
    let mut config: Option<Arc<ClientConfig>> = None;
    let targets = settings.servers.iter().zip(states).map(|(server, state)| {
        let wanted = change(&server.target);
        let same = |known: &&Arc<Target>| known.settings == wanted && Arc::ptr_eq(&known.state, state);
        if let Some(known) = before.and_then(|before| before.all_targets().find(same)) {
            return Ok(Arc::clone(known));
        }
        // A name that cannot be resolved just now keeps the addresses that it had.
        let same_address = |known: &&Arc<Target>| known.settings.address == wanted.address;
        let addresses = match before.and_then(|before| before.all_targets().find(same_address)) {
            Some(known) if server.addresses.is_empty() => known.addresses(),
            _ => server.addresses.as_slice().into(),
        };
        if let (Some((_, client)), None) = (&wanted.tls, &config) {
            let built =
                tls::client_config(client).map_err(|error| BuildError::Pool(Arc::clone(&settings.name), error))?;
            config = Some(built);
        }
        let tls = config.clone().filter(|_| wanted.tls.is_some());
        Ok(Arc::new(Target::new(wanted, tls, Arc::clone(state), addresses)))
    });
    targets.collect()
}
