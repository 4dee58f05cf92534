//! Synthetic workloads. Each is made from its seed alone, for whatever servers there are.
//!
//! All are open loops: sessions begin at random moments (a Poisson process), and a request does not wait for the one
//! before. As many sessions take part as make the load that the workload names, so that two seeds differ in who comes
//! when, and not in how much there is to do. Sessions that began up to a minute before the first second are under way
//! in it. Work is lognormal with a mean of 30 ms (sigma 0.7).
//!
//! | name | sessions | servers | load |
//! |---|---|---|---|
//! | `shop` | heavy-tailed: Pareto lengths (at least 3, exponent 1.5, at most 500), thoughts lognormal of 2 s in the mean; 1 % are robots that ask 1,500 times, 25 times a second | as given | 80 % |
//! | `even` | 5 to 15 requests each, thoughts exponential of 2 s in the mean; nobody is heavy | as given | 80 % |
//! | `slow-server` | as `shop` | the first works at half speed | 70 % |
//! | `server-death` | as `shop` | the last dies at half time | 70 % |
//! | `scale-out` | as `shop` | a quarter more join after a third of the time | 80 % before |
//! | `api` | none: requests are a Poisson process of their own | as given | 80 % |
//!
//! Without a configuration there are 8 servers. A minute of 8 servers with 8 workers is some 100,000 requests; other
//! pools get a minute too, or as long as makes 20,000 to 1,000,000 requests.

use std::f64::consts::TAU;
use std::time::Duration;

use fastrand::Rng;

use super::configured::{self, Configured};
use super::logs::Unreadable;
use super::{DisciplineChoice, Options, Scenario, SimulateError};
use crate::clock::Moment;
use crate::names::words;
use crate::twin::{Arrival, Discipline, Pinned, ServerModel};

/// Seconds of work, in the mean.
const WORK: f64 = 0.030;
const WORK_SIGMA: f64 = 0.7;
/// Seconds between two requests of somebody, in the mean.
const THOUGHT: f64 = 2.0;
const THOUGHT_SIGMA: f64 = 1.0;
const ROBOTS: f64 = 0.01;
const ROBOT: Habit = Habit::Robot { requests: 1_500, thought: 0.040 };
/// Seconds for which sessions have been coming when it begins.
const BEFORE: f64 = 60.0;
const LENGTH: f64 = 60.0;
const FEWEST: f64 = 20_000.0;
const MOST: f64 = 1_000_000.0;
const SERVERS: usize = 8;

words! {
    /// The workloads by name.
    Workload {
        Shop = "shop",
        /// No heavy users.
        Even = "even",
        SlowServer = "slow-server",
        ServerDeath = "server-death",
        ScaleOut = "scale-out",
        /// No sessions.
        Api = "api",
    }
}

impl Workload {
    /// The workload of this name.
    pub(super) fn named(name: &str) -> Result<Self, SimulateError> {
        Self::from_word(name).ok_or_else(|| {
            let near =
                Self::ALL.iter().map(|known| (strsim::damerau_levenshtein(name, known.as_str()), known.as_str()));
            let near = near.min_by_key(|(distance, _)| *distance);
            let known = Self::ALL.iter().map(|known| known.as_str()).collect::<Vec<_>>().join(", ");
            let near = near.filter(|(distance, _)| *distance <= 3);
            let hint = near.map(|(_, near)| format!(", did you mean `{near}`?")).unwrap_or_default();
            SimulateError::UnknownWorkload { name: name.escape_debug().to_string(), hint, known }
        })
    }

    /// Share of what the servers can do that is asked of them.
    const fn load(self) -> f64 {
        match self {
            Workload::SlowServer | Workload::ServerDeath => 0.7,
            Workload::Shop | Workload::Even | Workload::ScaleOut | Workload::Api => 0.8,
        }
    }

    const fn story(self) -> &'static str {
        match self {
            Workload::Shop => {
                "Heavy-tailed sessions: Pareto lengths of 3 to 500 requests, lognormal thoughts of 2 s in the mean; \
                 1 % are robots that ask 1,500 times, 25 times a second."
            }
            Workload::Even => {
                "Sessions of 5 to 15 requests, exponential thoughts of 2 s in the mean; there are no heavy users."
            }
            Workload::SlowServer => "The sessions of `shop`; the first server works at half speed.",
            Workload::ServerDeath => "The sessions of `shop`; the last server dies at half time.",
            Workload::ScaleOut => "The sessions of `shop`; a quarter more servers join after a third of the time.",
            Workload::Api => "No sessions: each request comes by itself.",
        }
    }
}

/// The workload for the servers of the configuration, or for eight.
pub(super) fn scenario(workload: Workload, configured: Option<&Configured>, options: &Options<'_>) -> Scenario {
    let discipline = match options.discipline {
        DisciplineChoice::Auto | DisciplineChoice::Fifo => Discipline::Fifo,
        DisciplineChoice::Sharing => Discipline::Sharing,
    };
    let names: Vec<Box<str>> = (1..=SERVERS).map(|number| format!("server-{number}").into()).collect();
    let mut servers = configured::servers(configured, &names, discipline, options);
    let working = servers.iter().filter(|server| !server.backup && server.weight > 0);
    let workers: f64 = working.map(|server| f64::from(server.capacity)).sum::<f64>().max(1.0);
    let rate = workers / WORK * workload.load();
    let length = (rate * LENGTH).clamp(FEWEST, MOST) / rate;
    let made = generate(workload, rate, length, options.seed);
    let assumed = vec![
        configured::assumption(&servers, configured, options, discipline.as_str()),
        format!(
            "Work is lognormal, 30 ms in the mean; all of it is {:.0} % of what the servers can do{}.",
            workload.load() * 100.0,
            if workload == Workload::ScaleOut { " at first" } else { "" }
        ),
    ];
    happen(workload, &mut servers, length);
    let whose = if made.sessions == 0 {
        String::new()
    } else {
        format!(" {} sessions take part, {} of them robots.", made.sessions, made.robots)
    };
    Scenario {
        title: workload.as_str().to_owned(),
        story: format!("{}{whose}", workload.story()),
        servers,
        arrivals: made.arrivals,
        length: Duration::from_secs_f64(length),
        assumed,
        measured: None,
        unreadable: Unreadable::default(),
    }
}

/// What happens to the servers.
fn happen(workload: Workload, servers: &mut Vec<ServerModel>, length: f64) {
    let is_working = |server: &&mut ServerModel| !server.backup && server.weight > 0;
    match workload {
        Workload::SlowServer => {
            if let Some(slow) = servers.iter_mut().find(is_working) {
                slow.speed = 0.5;
            }
        }
        Workload::ServerDeath => {
            if let Some(dies) = servers.iter_mut().rfind(is_working) {
                dies.until = moment(length / 2.0);
            }
        }
        Workload::ScaleOut => {
            let like: Vec<ServerModel> =
                servers.iter().filter(|server| !server.backup && server.weight > 0).cloned().collect();
            let joining = like.len().div_ceil(4);
            servers.extend(like.into_iter().take(joining).enumerate().map(|(at, like)| ServerModel {
                name: format!("joins-{}", at + 1).into(),
                from: moment(length / 3.0),
                ..like
            }));
        }
        Workload::Shop | Workload::Even | Workload::Api => {}
    }
}

/// What was made.
struct Made {
    arrivals: Vec<Arrival>,
    /// Those with a request in it.
    sessions: usize,
    robots: usize,
}

fn generate(workload: Workload, rate: f64, length: f64, seed: u64) -> Made {
    let mut random = Rng::with_seed(seed);
    if workload == Workload::Api {
        return Made { arrivals: without_sessions(rate, length, &mut random), sessions: 0, robots: 0 };
    }
    let wanted = (rate * length) as usize;
    let mut made = Made { arrivals: Vec::with_capacity(wanted), sessions: 0, robots: 0 };
    while made.arrivals.len() < wanted {
        let robot = workload != Workload::Even && random.f64() < ROBOTS;
        let habit = match (robot, workload) {
            (true, _) => ROBOT,
            (false, Workload::Even) => Habit::Even,
            (false, _) => Habit::Shopper,
        };
        let before = made.arrivals.len();
        one_session(habit, length, &mut random, &mut made.arrivals);
        if made.arrivals.len() > before {
            made.sessions += 1;
            made.robots += usize::from(robot);
        }
    }
    // Stable, so that two of one moment stay in the order in which they were made.
    made.arrivals.sort_by_key(|arrival| arrival.at);
    made
}

/// Adds the requests of one session that fall into the time.
fn one_session(habit: Habit, length: f64, random: &mut Rng, arrivals: &mut Vec<Arrival>) {
    let session = random.u64(..);
    let mut at = random.f64() * (length + BEFORE) - BEFORE;
    for _ in 0..habit.requests(random) {
        if at >= length {
            return;
        }
        if at >= 0.0 {
            let demand = work(random);
            arrivals.push(Arrival { at: moment(at), session: Some(session), demand, key: session, pinned: Pinned::No });
        }
        at += habit.thought(random);
    }
}

/// How somebody asks: how often, and how long they think in between.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Habit {
    /// Pareto lengths (at least 3, exponent 1.5, at most 500), thoughts lognormal of 2 s in the mean.
    Shopper,
    /// 5 to 15 requests, thoughts exponential of 2 s in the mean.
    Even,
    /// So many requests, thoughts exponential of so many seconds in the mean.
    Robot { requests: u32, thought: f64 },
}

impl Habit {
    /// How many requests there are in a session.
    pub fn requests(self, random: &mut Rng) -> u32 {
        match self {
            Habit::Shopper => (3.3 / (1.0 - random.f64()).powf(1.0 / 1.5)).min(500.0) as u32,
            Habit::Even => random.u32(5..=15),
            Habit::Robot { requests, .. } => requests,
        }
    }

    /// The same in the mean.
    pub fn mean_requests(self) -> f64 {
        match self {
            Habit::Shopper => 8.86,
            Habit::Even => 10.0,
            Habit::Robot { requests, .. } => f64::from(requests),
        }
    }

    /// Seconds until the next request.
    pub fn thought(self, random: &mut Rng) -> f64 {
        match self {
            Habit::Shopper => lognormal(random, THOUGHT, THOUGHT_SIGMA),
            Habit::Even => exponential(random, THOUGHT),
            Habit::Robot { thought, .. } => exponential(random, thought),
        }
    }
}

fn without_sessions(rate: f64, length: f64, random: &mut Rng) -> Vec<Arrival> {
    let mut arrivals = Vec::with_capacity((rate * length) as usize);
    let mut at = exponential(random, 1.0 / rate);
    while at < length {
        let (demand, key) = (work(random), random.u64(..));
        arrivals.push(Arrival { at: moment(at), session: None, demand, key, pinned: Pinned::No });
        at += exponential(random, 1.0 / rate);
    }
    arrivals
}

fn moment(seconds: f64) -> Moment {
    Moment::from_nanos((seconds * 1e9) as u64)
}

fn work(random: &mut Rng) -> Duration {
    Duration::from_nanos((lognormal(random, WORK, WORK_SIGMA) * 1e9) as u64)
}

/// A span between moments of a Poisson process.
pub fn exponential(random: &mut Rng, mean: f64) -> f64 {
    -(1.0 - random.f64()).ln() * mean
}

fn lognormal(random: &mut Rng, mean: f64, sigma: f64) -> f64 {
    // Box and Muller.
    let normal = (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (TAU * random.f64()).cos();
    mean * (sigma * normal - sigma * sigma / 2.0).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 80 % of eight servers of eight workers.
    const RATE: f64 = 64.0 / WORK * 0.8;

    fn seconds(arrival: &Arrival) -> f64 {
        arrival.at.as_nanos() as f64 / 1e9
    }

    #[test]
    fn work_and_rate_are_what_they_are_said_to_be() {
        for workload in Workload::ALL {
            for seed in [1, 2, 3] {
                let made = generate(*workload, RATE, LENGTH, seed);
                let count = made.arrivals.len() as f64;
                assert!((count / (RATE * LENGTH) - 1.0).abs() < 0.02, "{workload} {seed}: {count}");
                let work: f64 = made.arrivals.iter().map(|arrival| arrival.demand.as_secs_f64()).sum::<f64>() / count;
                assert!((work / WORK - 1.0).abs() < 0.02, "{workload} {seed}: {work}");
                assert!(made.arrivals.is_sorted_by_key(|arrival| arrival.at), "{workload} {seed}");
                assert!(made.arrivals.iter().all(|arrival| seconds(arrival) < LENGTH), "{workload} {seed}");
            }
        }
    }

    #[test]
    fn sessions_have_as_many_requests_as_is_said_of_their_habit() {
        let mut random = Rng::with_seed(1);
        for habit in [Habit::Shopper, Habit::Even, ROBOT] {
            const SESSIONS: u32 = 100_000;
            let requests: u32 = (0..SESSIONS).map(|_| habit.requests(&mut random)).sum();
            let mean = f64::from(requests) / f64::from(SESSIONS);
            assert!((mean / habit.mean_requests() - 1.0).abs() < 0.03, "{habit:?}: {mean}");
        }
    }

    #[test]
    fn one_session_in_a_hundred_is_a_robot() {
        for seed in [1, 2, 3] {
            let made = generate(Workload::Shop, RATE, LENGTH, seed);
            let share = made.robots as f64 / made.sessions as f64;
            // Those that began before are more likely to be seen when they are long.
            assert!((0.005..0.025).contains(&share), "{seed}: {share}");
            assert_eq!(generate(Workload::Even, RATE, LENGTH, seed).robots, 0);
        }
    }

    #[test]
    fn a_few_sessions_of_the_shop_are_heavy_and_none_are_where_all_are_even() {
        let largest = |workload| {
            let mut counts = std::collections::HashMap::new();
            for arrival in generate(workload, RATE, LENGTH, 1).arrivals {
                *counts.entry(arrival.session).or_insert(0_u32) += 1;
            }
            counts.into_values().max().unwrap()
        };
        assert!(largest(Workload::Shop) > 500);
        assert!(largest(Workload::Even) <= 15);
    }

    #[test]
    fn requests_without_sessions_come_evenly_and_have_keys_of_their_own() {
        let made = generate(Workload::Api, RATE, LENGTH, 1);
        assert!(made.arrivals.iter().all(|arrival| arrival.session.is_none()));
        let first_half = made.arrivals.iter().filter(|arrival| seconds(arrival) < LENGTH / 2.0).count() as f64;
        assert!((first_half / made.arrivals.len() as f64 - 0.5).abs() < 0.01);
    }

    #[test]
    fn the_seed_is_all_that_a_workload_depends_on() {
        for workload in Workload::ALL {
            let [one, same, other] = [1, 1, 2].map(|seed| generate(*workload, 500.0, 5.0, seed).arrivals);
            assert_eq!(one, same, "{workload}");
            assert_ne!(one, other, "{workload}");
        }
    }

    #[test]
    fn an_unknown_name_gets_the_nearest_and_all() {
        let message = |name| Workload::named(name).unwrap_err().to_string();
        let all = "there are shop, even, slow-server, server-death, scale-out, api";
        assert_eq!(message("shpo"), format!("no workload is called `shpo`, did you mean `shop`?; {all}"));
        assert_eq!(message("christmas"), format!("no workload is called `christmas`; {all}"));
    }
}
