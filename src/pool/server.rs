//! One upstream member: what the file says of it, and what is known of it while running.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::join::{Fitness, Part};
use super::line::Line;
use super::sessions::{Countdown, Sessions};
use super::wish::{Wish, Wishes};
use crate::balance::PeakEwma;
use crate::clock::Moment;
use crate::health::{Outlier, Vitals};
use crate::metrics::ServerMetrics;
use crate::names::LongLivedKind;

/// What the configuration says of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// Its identity: not its position, its address or its weight.
    pub name: Box<str>,
    pub weight: u32,
    /// Exchanges in flight at once; 0: no cap.
    pub max_requests: u32,
    /// Used when no other is eligible.
    pub backup: bool,
}

/// A server of one snapshot.
pub struct Server {
    pub settings: ServerSettings,
    /// A hash of its name, the same in every proxy, for rendezvous.
    pub identity: u64,
    pub state: Arc<ServerState>,
}

impl Server {
    /// A server with this live state.
    pub fn new(settings: ServerSettings, state: Arc<ServerState>) -> Self {
        let identity = xxhash_rust::xxh3::xxh3_64(settings.name.as_bytes());
        Server { settings, identity, state }
    }

    /// Puts in force what its definition says of the live state; called once its snapshot is.
    pub fn adopt(&self) {
        self.state.set_cap(self.settings.max_requests);
        self.state.wishes.adopt_weight(self.settings.weight);
    }

    /// How its drain goes. In maint, and past the deadline, no session remains, by definition.
    pub fn countdown(&self, now: Moment, window: Duration) -> Countdown {
        if self.state.wishes.effective() == Wish::Maint || self.state.wishes.is_past_deadline(now) {
            return Countdown { remaining: 0, half_life: None, eta: None };
        }
        self.state.sessions.countdown(now, window)
    }

    /// Its weight now: the file's, unless the operator or the server itself has another word.
    pub fn weight(&self) -> u32 {
        self.state.wishes.weight(self.settings.weight)
    }
}

/// The live state of one (pool, server name). It survives reloads.
pub struct ServerState {
    in_flight: AtomicU32,
    /// The cap in force; 0: none.
    cap: AtomicU32,
    pub(super) line: Line,
    pub(super) fitness: Fitness,
    pub(super) part: Part,
    /// Exchanges that it would be working on, had the balance policy alone placed them.
    pub(super) shadow: AtomicU32,
    pub wishes: Wishes,
    pub sessions: Sessions,
    pub latency: PeakEwma,
    pub vitals: Vitals,
    pub outlier: Outlier,
    /// Tunnels and event streams among its exchanges.
    pub long_lived: [AtomicU32; LongLivedKind::ALL.len()],
    pub metrics: Arc<ServerMetrics>,
}

impl ServerState {
    /// A server that nothing is known of yet, of a pool that begins with it.
    pub fn new(metrics: Arc<ServerMetrics>) -> Self {
        Self::with(metrics, Fitness::of_veteran())
    }

    /// A server that is new to a pool that serves already.
    pub fn newcomer(metrics: Arc<ServerMetrics>) -> Self {
        Self::with(metrics, Fitness::of_newcomer())
    }

    /// It was gone from the pool, and is named again.
    pub fn comes_back(&self) {
        self.fitness.forget();
        self.wishes.forget_own();
        self.wishes.set(Wish::Ready, None);
        self.vitals.forget();
    }

    fn with(metrics: Arc<ServerMetrics>, fitness: Fitness) -> Self {
        ServerState {
            fitness,
            part: Part::default(),
            shadow: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            cap: AtomicU32::new(0),
            line: Line::default(),
            wishes: Wishes::default(),
            sessions: Sessions::default(),
            latency: PeakEwma::default(),
            vitals: Vitals::default(),
            outlier: Outlier::default(),
            long_lived: Default::default(),
            metrics,
        }
    }

    /// Exchanges it is working on.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Exchanges that it would be working on, had the balance policy alone placed them.
    pub fn shadow_in_flight(&self) -> u32 {
        self.shadow.load(Ordering::Relaxed)
    }

    /// Exchanges that wait for a place.
    pub fn waiting(&self) -> u32 {
        self.line.length()
    }

    pub(super) fn cap(&self) -> u32 {
        self.cap.load(Ordering::Relaxed)
    }

    /// Another cap counts from now on; who waits is called where there is room.
    pub(super) fn set_cap(&self, cap: u32) {
        self.cap.store(cap, Ordering::Relaxed);
        self.line.call(self);
    }

    /// Counts one more exchange, unless that would be past the cap; says how many there are then.
    pub(super) fn try_count(&self) -> Option<u32> {
        let cap = self.cap();
        if cap == 0 {
            return Some(self.in_flight.fetch_add(1, Ordering::Relaxed) + 1);
        }
        let more = |count: u32| (count < cap).then_some(count + 1);
        let counted = self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.ok().map(|before| before + 1)
    }

    pub(super) fn uncount(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One exchange in flight on a server; counted from the choice to the end of the response.
pub struct InFlight {
    state: Arc<ServerState>,
    /// How many there were when this one came, itself included.
    pub position: u32,
}

impl InFlight {
    /// Enters the server, unless it is at its cap.
    pub fn enter(server: &Server) -> Option<Self> {
        let position = server.state.try_count()?;
        Some(InFlight { state: Arc::clone(&server.state), position })
    }

    /// Takes over a place that is counted already.
    pub(super) fn handed_over(state: &Arc<ServerState>) -> Self {
        InFlight { state: Arc::clone(state), position: state.in_flight() }
    }

    /// The server that is held.
    pub fn state(&self) -> &Arc<ServerState> {
        &self.state
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.state.cap() == 0 && self.state.line.length() == 0 {
            self.state.uncount();
        } else {
            self.state.line.release(&self.state);
        }
    }
}
