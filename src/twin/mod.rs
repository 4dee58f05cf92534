//! The twin: what would become of this very traffic under another policy?
//!
//! A discrete-event model of one pool. Servers are queues in virtual time ([`ServerModel`]); which of them a request goes
//! to is decided by the code that serves: the pool with its balance policies, pins, margins, caps and waiting lines, on
//! servers that are not there. It is fed with arrivals in the order of time ([`Arrival`]) and says what they would have
//! met ([`Outcome`]). Arrivals come from a workload that somebody made up, or from what was measured, with the waiting
//! taken out ([`Demands`]); beside live traffic both are kept going ([`LiveTwin`]).
//!
//! The same arrivals with the same seed give the same outcome, bit for bit: time and chance are given.
//!
//! What it does not model: slow start, rebalancing, retries, ejections, probes that take their time, and clients that wait for an answer before
//! they ask again. Arrivals are open loop.

mod books;
mod demand;
mod heavy;
mod latencies;
mod live;
mod model;
mod pins;
mod sample;
mod scale;
mod server;
mod sorted;
mod speeds;

use std::time::Duration;

pub use demand::{Demands, Known, Misfit, Observed};
pub use heavy::{Heavy, HeavySession};
pub use latencies::Latencies;
pub use live::{
    Doubt, LivePolicy, LivePool, LiveReport, LiveServer, LiveSettings, LiveTwin, PolicyReport, Present, Quantiles,
    ServerReport, Settled, Takes,
};
pub use model::Model;
pub use sample::Sample;
pub use speeds::Speeds;

use crate::balance::Balance;
use crate::clock::Moment;
use crate::imbalance::Measures;
use crate::names::words;
use crate::pool::PinRules;

words! {
    /// How a server works on several requests at once.
    Discipline {
        /// So many workers as it has capacity; who finds none free waits, first come, first served.
        Fifo = "fifo",
        /// All at once: beyond its capacity each of n runs at capacity/n of its speed.
        Sharing = "sharing",
    }
}

/// One server of the model.
#[derive(Clone, Debug)]
pub struct ServerModel {
    pub name: Box<str>,
    /// The file's.
    pub weight: u32,
    /// The one in force, if it is another.
    pub live_weight: Option<u32>,
    /// What the proxy lets it have at once; 0: no cap.
    pub max_requests: u32,
    pub backup: bool,
    /// Only sessions that are pinned to it get there.
    pub drains: bool,
    /// Requests that it serves at full speed at once; 0: however many.
    pub capacity: u32,
    pub discipline: Discipline,
    /// 1.0: as demands say; 0.5: half as fast.
    pub speed: f64,
    /// It is there from this moment on,
    pub from: Moment,
    /// and until this one, excluded: what it works on then has failed.
    pub until: Moment,
}

/// How the pool places requests.
#[derive(Clone, Debug)]
pub struct PolicyModel {
    pub name: Box<str>,
    pub balance: Balance,
    /// Where there are pins: a request's key says by itself where it belongs, as a header or an address does, and nothing
    /// is remembered.
    pub is_hashed: bool,
    /// None: sessions are anywhere. Some: they are pinned, by these rules.
    pub pins: Option<PinRules>,
    /// It is in force where arrivals come from: a new session is placed where it really was.
    pub is_in_force: bool,
    /// What a pinned session's request costs beside its demand on another server than its own, whose caches are cold.
    pub warm_up: Duration,
    /// What every request of a session waits for its store, before a server is chosen.
    pub store_round_trip: Duration,
}

/// One request, as it arrived.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    pub at: Moment,
    pub session: Option<u64>,
    /// Time of a server that has nothing else to do.
    pub demand: Duration,
    /// What `hash` hashes.
    pub key: u64,
    pub pinned: Pinned,
}

/// Where a session was pinned when its request had been served, for models that meet it for the first time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pinned {
    /// Nowhere, or nobody knows.
    #[default]
    No,
    /// To the server at this position, as one that had a pin, to whichever.
    Already(usize),
    /// To the server at this position, which it was given as a newcomer.
    Newly(usize),
}

/// What became of the requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// All that arrived: those that were served, refused, failed, or are under way.
    pub requests: u64,
    /// No server would have taken them.
    pub refused: u64,
    /// Their server went while it had them.
    pub failed: u64,
    /// Of those that were served: from arrival to end, store and waiting lines included.
    pub latency: Latencies,
    /// By position.
    pub servers: Vec<ServerOutcome>,
    /// Requests with a session, in a pool with pins, that their own server took.
    pub kept: u64,
    /// The same, that another server took.
    pub moved: u64,
    /// The same, of sessions that were new.
    pub placed: u64,
    /// Sessions that were hard-pinned to a server when it went, and asked again after that.
    pub sessions_lost: u64,
    /// Over the servers' mean in flight per unit of weight, backups left out; even where there was no load.
    pub imbalance: Measures,
    /// For each server that came after the first arrival: how long until its rate of requests, over a second, was 90 % of
    /// its fair share; none where it never was.
    pub scale_out: Vec<(Box<str>, Option<Duration>)>,
}

/// What one server had.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerOutcome {
    pub name: Box<str>,
    /// Requests that it was given.
    pub requests: u64,
    /// Requests that it was working on: the average over the time that it was there.
    pub in_flight: f64,
    /// The share of its capacity that was in use, 0 to 1; of one without a limit, the share of time that it had anything.
    pub busy: f64,
}

#[cfg(test)]
mod tests;
