//! The load of a pool's servers over the last ten seconds, sampled from outside the request path.

use std::collections::VecDeque;
use std::time::Duration;

use super::Pool;
use crate::clock::Moment;
use crate::imbalance::{Measures, measure};

/// How much of the past counts.
pub const WINDOW: Duration = Duration::from_secs(10);
/// How often the servers are looked at: a moment's in-flight says little, the mean of a hundred moments a lot.
pub const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// The samples of one pool.
#[derive(Default)]
pub struct LoadWindow {
    samples: VecDeque<Sample>,
}

struct Sample {
    at: Moment,
    /// By server name, so that a reload changes nothing but the members.
    servers: Vec<(Box<str>, ServerSample)>,
}

#[derive(Clone, Copy, Default)]
struct ServerSample {
    requests: u64,
    in_flight: u32,
}

/// How uneven a pool is, by what is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Imbalance {
    pub requests: Option<Measures>,
    pub in_flight: Option<Measures>,
    pub sessions: Option<Measures>,
}

impl LoadWindow {
    /// Looks at the servers once more.
    pub fn sample(&mut self, pool: &Pool, now: Moment) {
        let servers = pool.servers.iter().map(|server| {
            let sample = ServerSample { requests: server.state.metrics.served(), in_flight: server.state.in_flight() };
            (server.settings.name.clone(), sample)
        });
        self.samples.push_back(Sample { at: now, servers: servers.collect() });
        while self.samples.front().is_some_and(|oldest| now.since(oldest.at) > WINDOW) {
            self.samples.pop_front();
        }
    }

    /// The measures over the window, of the servers that take newcomers.
    pub fn imbalance(&self, pool: &Pool, now: Moment, session_window: Duration) -> Imbalance {
        let Some((first, last)) = self.samples.front().zip(self.samples.back()) else { return Imbalance::default() };
        let eligible: Vec<_> = pool.servers.iter().filter(|server| server.unfit(now).is_none()).collect();
        let of = |load: &dyn Fn(&super::Server) -> f64| -> Option<Measures> {
            let loads: Vec<f64> =
                eligible.iter().map(|server| load(server) / f64::from(server.weight().max(1))).collect();
            measure(&loads)
        };
        let find = |sample: &Sample, name: &str| -> ServerSample {
            sample.servers.iter().find(|(known, _)| **known == *name).map(|(_, sample)| *sample).unwrap_or_default()
        };
        let requests = |server: &super::Server| {
            let name = &server.settings.name;
            find(last, name).requests.saturating_sub(find(first, name).requests) as f64
        };
        let in_flight = |server: &super::Server| {
            let sum: u64 =
                self.samples.iter().map(|sample| u64::from(find(sample, &server.settings.name).in_flight)).sum();
            sum as f64 / self.samples.len() as f64
        };
        let sessions = |server: &super::Server| server.state.sessions.count(now, session_window) as f64;
        Imbalance {
            requests: of(&requests),
            in_flight: of(&in_flight),
            sessions: if pool.affinity.is_some() { of(&sessions) } else { None },
        }
    }
}
