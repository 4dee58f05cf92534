//! The load of a pool's servers over the last ten seconds, sampled from outside the request path.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::join::ARRIVED;
use super::{Pool, Server};
use crate::clock::Moment;
use crate::imbalance::{Measures, measure};

/// How much of the past counts.
pub const WINDOW: Duration = Duration::from_secs(10);
/// How often the servers are looked at: a moment's in-flight says little, the mean of a hundred moments a lot.
pub const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// What a rate is taken over when a newcomer's is compared with its fair share.
const RATE_OVER: Duration = Duration::from_secs(2);

/// The samples of one pool: by server name, so that a reload changes nothing but the members.
#[derive(Default)]
pub struct LoadWindow(HashMap<Box<str>, ServerWindow>);

#[derive(Default)]
struct ServerWindow {
    samples: VecDeque<Sample>,
    /// When it joined, and how long after that it had its share of requests.
    joined: Option<(Moment, Option<Duration>)>,
}

#[derive(Clone, Copy, Default)]
struct Sample {
    at: Moment,
    actual: Counts,
    shadow: Counts,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    requests: u64,
    in_flight: u32,
}

/// What was measured of a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    pub actual: Imbalance,
    /// The same requests, had the balance policy alone placed them.
    pub shadow: Imbalance,
    /// By position.
    pub servers: Vec<ServerLoad>,
}

/// What was measured of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServerLoad {
    pub requests_per_second: f64,
    /// Its requests of the last two seconds over its fair share of the pool's.
    pub share: Option<f64>,
    /// From when it joined until its rate of requests was 90 % of its fair share.
    pub scale_out: Option<Duration>,
}

/// How uneven a pool is, by what is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Imbalance {
    pub requests: Option<Measures>,
    pub in_flight: Option<Measures>,
    pub sessions: Option<Measures>,
}

impl Imbalance {
    /// Each part with its name in metrics and API.
    pub const fn named(&self) -> [(&'static str, Option<Measures>); 3] {
        [("requests", self.requests), ("in_flight", self.in_flight), ("sessions", self.sessions)]
    }
}

type Which = fn(&Sample) -> Counts;

const ACTUAL: Which = |sample| sample.actual;
const SHADOW: Which = |sample| sample.shadow;

impl ServerWindow {
    fn sample(&mut self, server: &Server, now: Moment) {
        let state = &server.state;
        let actual = Counts { requests: state.metrics.picked(), in_flight: state.in_flight() };
        let shadow = Counts { requests: state.metrics.shadowed(), in_flight: state.shadow_in_flight() };
        self.samples.push_back(Sample { at: now, actual, shadow });
        while self.samples.front().is_some_and(|oldest| now.since(oldest.at) > WINDOW) {
            self.samples.pop_front();
        }
        let joined = state.fitness.joined();
        if self.joined.map(|(joined, _)| joined) != joined {
            self.joined = joined.map(|joined| (joined, None));
        }
    }

    /// Requests since this moment.
    fn requests(&self, from: Moment, which: Which) -> f64 {
        let first = self.samples.iter().find(|sample| sample.at >= from);
        let between = first.zip(self.samples.back());
        between.map_or(0, |(first, last)| which(last).requests.saturating_sub(which(first).requests)) as f64
    }

    fn requests_per_second(&self) -> f64 {
        let Some((first, last)) = self.samples.front().zip(self.samples.back()) else { return 0.0 };
        let seconds = last.at.since(first.at).as_secs_f64();
        let requests = last.actual.requests.saturating_sub(first.actual.requests);
        if seconds > 0.0 { requests as f64 / seconds } else { 0.0 }
    }

    fn in_flight(&self, which: Which) -> f64 {
        self.samples.iter().map(|sample| f64::from(which(sample).in_flight)).sum()
    }
}

/// The beginning of what counts.
fn before(now: Moment, span: Duration) -> Moment {
    Moment::from_nanos(now.as_nanos().saturating_sub(span.as_nanos() as u64))
}

impl LoadWindow {
    /// Looks at the servers once more.
    pub fn sample(&mut self, pool: &Pool, now: Moment) {
        for server in &pool.servers {
            match self.0.get_mut(&server.settings.name) {
                Some(window) => window.sample(server, now),
                None => self.0.entry(server.settings.name.clone()).or_default().sample(server, now),
            }
        }
        if self.0.len() > pool.servers.len() {
            let names: HashSet<&str> = pool.servers.iter().map(|server| &*server.settings.name).collect();
            self.0.retain(|name, _| names.contains(&**name));
        }
    }

    /// The measures over the window, of the servers that take newcomers.
    pub fn measure(&mut self, pool: &Pool, now: Moment, session_window: Duration) -> Load {
        let shares = self.shares(pool, now);
        self.note_arrivals(pool, &shares, now);
        let oldest = before(now, WINDOW);
        let is_sticky = pool.affinity.is_some();
        let of = |which: Which| Imbalance {
            requests: self.per_weight(pool, now, |window, _| window.requests(oldest, which)),
            in_flight: self.per_weight(pool, now, |window, _| window.in_flight(which)),
            sessions: None,
        };
        let count = |server: &Server| server.state.sessions.count(now, session_window) as f64;
        let sessions = if is_sticky { self.per_weight(pool, now, |_, server| count(server)) } else { None };
        let of_server = |(server, share): (&Server, Option<f64>)| {
            let window = self.0.get(&server.settings.name);
            ServerLoad {
                requests_per_second: window.map_or(0.0, ServerWindow::requests_per_second),
                share,
                scale_out: window.and_then(|window| window.joined?.1),
            }
        };
        Load {
            actual: Imbalance { sessions, ..of(ACTUAL) },
            shadow: if is_sticky { of(SHADOW) } else { Imbalance::default() },
            servers: pool.servers.iter().zip(shares).map(of_server).collect(),
        }
    }

    /// Max over mean of the requests since `from`: as they went, and as the balance policy alone would have had them.
    pub fn uneven_since(&self, from: Moment, pool: &Pool, now: Moment) -> Option<(f64, f64)> {
        let of = |which: Which| self.per_weight(pool, now, |window, _| window.requests(from, which));
        Some((of(ACTUAL)?.max_over_mean, of(SHADOW)?.max_over_mean))
    }

    fn per_weight(&self, pool: &Pool, now: Moment, load: impl Fn(&ServerWindow, &Server) -> f64) -> Option<Measures> {
        let loads = pool.takers(now).filter_map(|server| {
            let window = self.0.get(&server.settings.name)?;
            Some(load(window, server) / f64::from(server.weight().max(1)))
        });
        measure(&loads.collect::<Vec<f64>>())
    }

    /// What each server has of its fair share of requests just now; nothing where there are none, or it takes none.
    fn shares(&self, pool: &Pool, now: Moment) -> Vec<Option<f64>> {
        let from = before(now, RATE_OVER);
        let requests =
            |server: &Server| self.0.get(&server.settings.name).map_or(0.0, |window| window.requests(from, ACTUAL));
        let all: f64 = pool.takers(now).map(requests).sum();
        let weights: f64 = pool.takers(now).map(|server| f64::from(server.weight())).sum();
        let backup = pool.serves_by_backup(now);
        let share = |server: &Server| {
            let fair = all * f64::from(server.weight()) / weights;
            let takes = server.settings.backup == backup && server.unfit(now).is_none();
            (fair > 0.0 && takes).then(|| requests(server) / fair)
        };
        pool.servers.iter().map(share).collect()
    }

    /// Notes which of those that have joined have their share now.
    fn note_arrivals(&mut self, pool: &Pool, shares: &[Option<f64>], now: Moment) {
        for (server, share) in pool.servers.iter().zip(shares) {
            let Some(window) = self.0.get_mut(&server.settings.name) else { continue };
            if let Some((joined, None)) = window.joined
                && share.is_some_and(|share| share >= ARRIVED)
            {
                window.joined = Some((joined, Some(now.since(joined))));
            }
        }
    }
}
