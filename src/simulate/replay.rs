//! From a log to arrivals: what each exchange cost its server, with the waiting taken out.
//!
//! Only exchanges whose server is known can tell that, as who was there together follows from it. Where a log names no
//! servers, latencies are taken for work, which is too much wherever servers were busy; the report says so.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::configured::{self, Configured};
use super::logs::{Format, LeftOut, Log, Logged, Pin};
use super::table::grouped;
use super::{CAPACITY, DisciplineChoice, MOST_CAPACITY, Measured, Options, Scenario};
use crate::clock::Moment;
use crate::twin::{Arrival, Demands, Discipline, Known, Misfit, Observed, Pinned, ServerModel, Speeds};

/// Exchanges under way at once that are told apart; and how often what can be said is worked out.
const BUFFER: usize = 1 << 20;
const SETTLE_EVERY: usize = 4_096;
/// Servers where neither log nor configuration names any.
const SERVERS: usize = 8;
/// Names that are listed in a note.
const MOST_LISTED: usize = 5;

/// What the log's traffic is for the servers of the configuration, or for its own.
pub(super) fn scenario(log: Log, title: String, configured: Option<&Configured>, options: &Options<'_>) -> Scenario {
    let named = names_of_servers(&log);
    let guessed: Vec<Box<str>> = (1..=SERVERS).map(|number| format!("server-{number}").into()).collect();
    let names = if named.is_empty() { &guessed } else { &named };
    let mut servers = configured::servers(configured, names, Discipline::Fifo, options);
    let may_tell = options.capacity.is_none()
        && !named.is_empty()
        && !configured.is_some_and(|configured| configured.tells_capacities(options));
    let told = if may_tell { tell_capacities(&log, &mut servers, configured, options) } else { None };
    let (discipline, why) = discipline(&log, &servers, options);
    servers.iter_mut().for_each(|server| server.discipline = discipline);
    let capacities = match told {
        Some(told) => format!("{told}, {why}."),
        None => configured::assumption(&servers, configured, options, &why),
    };
    let mut assumed = vec![account(&log), sessions(&log), capacities];
    assumed.push(demands_note(&log, &named, configured.is_some()));
    assumed.extend(strangers(&named, configured));
    let Replayed { arrivals, speeds, .. } = arrivals(&log, &servers, Some(discipline), options);
    assumed.extend(adopt_speeds(&log, &mut servers, &speeds));
    Scenario {
        title,
        story: format!("An access log, {}.", log.format),
        servers,
        length: arrivals.last().map_or(Duration::ZERO, |last| last.at.since(Moment::default())),
        arrivals,
        assumed,
        measured: measured(&log.exchanges),
        unreadable: log.unreadable,
    }
}

/// The servers of the exchanges that take part, by name.
fn names_of_servers(log: &Log) -> Vec<Box<str>> {
    let numbers = log.exchanges.iter().filter_map(|logged| logged.server);
    let names = numbers.filter_map(|number| log.servers.get(usize::from(number)));
    let sorted: BTreeSet<&str> = names.map(|name| &**name).collect();
    sorted.into_iter().map(Box::from).collect()
}

/// Gives servers the capacity that the log tells: where more at once took longer, or where none did, the most that there
/// were at once. Says so.
fn tell_capacities(
    log: &Log,
    servers: &mut [ServerModel],
    configured: Option<&Configured>,
    options: &Options<'_>,
) -> Option<String> {
    let came = Came::of(&log.exchanges);
    let unknown = Known { capacity: 0, discipline: None, speed: 1.0 };
    let (_, demands) = derive(log, &came, &vec![unknown; log.servers.len()]);
    let most = most_at_once(log, &came);
    let number = |server: &ServerModel| log.servers.iter().position(|name| *name == server.name);
    let mut told: Vec<u32> = servers.iter().filter_map(|server| demands.capacity(number(server)?)).collect();
    told.sort_unstable();
    // Who was never beyond what it can do is taken to be like those that were.
    let alike = told.get(told.len() / 2).copied();
    for (at, server) in servers.iter_mut().enumerate() {
        let Some(number) = number(server) else { continue };
        if configured.is_some_and(|configured| configured.capacity(at, options).is_some()) {
            continue;
        }
        let most_seen = || most[number].max(CAPACITY);
        let capacity = demands.capacity(number).or(alike).unwrap_or_else(most_seen);
        server.capacity = capacity.clamp(1, MOST_CAPACITY);
    }
    let known: Vec<u32> =
        servers.iter().filter(|server| number(server).is_some()).map(|server| server.capacity).collect();
    let spread = spread(&known)?;
    let why = match told.len() {
        0 => "the most that the log has, as none ever had more than it can do (--capacity says another)".to_owned(),
        some if some == known.len() => "as the log tells".to_owned(),
        some => format!("as the log tells of {some} of them, and the others are taken to be like those"),
    };
    Some(format!("A server serves {spread} at full speed at once: {why}"))
}

/// The least and the most of some numbers.
fn spread(numbers: &[u32]) -> Option<String> {
    let (least, most) = (numbers.iter().min()?, numbers.iter().max()?);
    Some(if least == most { format!("{least}") } else { format!("{least} to {most}") })
}

/// The most exchanges that each server of the log had at once.
fn most_at_once(log: &Log, came: &Came) -> Vec<u32> {
    let mut turns: Vec<(Moment, bool, usize)> = Vec::new();
    for observed in observed(log, came) {
        // Who ends makes room for who begins at the same moment.
        turns.extend([(observed.begun, true, observed.server), (observed.ended, false, observed.server)]);
    }
    turns.sort_unstable();
    let (mut now, mut most) = (vec![0_u32; log.servers.len()], vec![0; log.servers.len()]);
    for (_, begins, server) in turns {
        now[server] = if begins { now[server] + 1 } else { now[server].saturating_sub(1) };
        most[server] = most[server].max(now[server]);
    }
    most
}

/// How the servers work, and how that is known.
fn discipline(log: &Log, servers: &[ServerModel], options: &Options<'_>) -> (Discipline, String) {
    match options.discipline {
        DisciplineChoice::Fifo => return (Discipline::Fifo, "fifo".to_owned()),
        DisciplineChoice::Sharing => return (Discipline::Sharing, "sharing".to_owned()),
        DisciplineChoice::Auto => {}
    }
    let Misfit { fifo, sharing } = arrivals(log, servers, None, options).misfit;
    if fifo == sharing {
        return (Discipline::Fifo, "fifo, as the log shows no waiting that would tell".to_owned());
    }
    let (better, other) =
        if fifo < sharing { (Discipline::Fifo, Discipline::Sharing) } else { (Discipline::Sharing, Discipline::Fifo) };
    let (least, most) = (fifo.min(sharing), fifo.max(sharing));
    (better, format!("{better}, which fits the log better than {other} (misfit {least:.2} against {most:.2})"))
}

/// A log, with the waiting taken out.
struct Replayed {
    /// In the order of time.
    arrivals: Vec<Arrival>,
    /// How badly the disciplines fit, over all servers.
    misfit: Misfit,
    /// How fast the log's servers were, by their numbers.
    speeds: Vec<f64>,
}

/// Works out what each exchange was for its server, and would be for one of the usual speed.
fn arrivals(log: &Log, servers: &[ServerModel], discipline: Option<Discipline>, options: &Options<'_>) -> Replayed {
    let came = Came::of(&log.exchanges);
    let (found, demands) = derive(log, &came, &known(log, servers, discipline, options));
    let positions: Vec<Option<usize>> =
        log.servers.iter().map(|name| servers.iter().position(|server| server.name == *name)).collect();
    let speeds = speeds(log, &found);
    let mut arrivals: Vec<Arrival> =
        found.iter().filter_map(|arrival| restored(log, &came, &positions, &speeds, arrival)).collect();
    let alone = log.exchanges.iter().filter(|logged| logged.server.is_none());
    arrivals.extend(alone.map(|logged| came.arrival(logged, logged.latency)));
    // Stable: what comes at one moment stays in the order of the log.
    arrivals.sort_by_key(|arrival| arrival.at);
    Replayed { arrivals, misfit: misfit(log, &demands), speeds }
}

/// How fast the servers were, by their numbers: by one request of each session, and not its very first.
fn speeds(log: &Log, found: &[Arrival]) -> Vec<f64> {
    let mut speeds = Speeds::new(log.servers.len());
    let mut seen = HashSet::new();
    for arrival in found {
        let Some(logged) = logged(log, arrival).filter(|logged| !logged.failed && logged.pin != Pin::New) else {
            continue;
        };
        let Some(number) = logged.server else { continue };
        if arrival.session.is_none_or(|session| seen.insert((number, session))) {
            speeds.note(usize::from(number), arrival.demand);
        }
    }
    speeds.review();
    speeds.speeds().to_vec()
}

/// Servers that are in the log are as fast as there. Says which are not as fast as the others.
fn adopt_speeds(log: &Log, servers: &mut [ServerModel], speeds: &[f64]) -> Option<String> {
    let mut told = Vec::new();
    for server in servers {
        let number = log.servers.iter().position(|name| *name == server.name);
        let Some(speed) = number.and_then(|number| speeds.get(number)).filter(|speed| **speed != 1.0) else { continue };
        server.speed = *speed;
        told.push(format!("`{}` {speed:.2} times", server.name.escape_debug()));
    }
    let listed = told.iter().take(MOST_LISTED).cloned().collect::<Vec<_>>().join(", ");
    let more = if told.len() > MOST_LISTED { ", ..." } else { "" };
    (!told.is_empty()).then(|| {
        format!("By what requests cost there, some servers work at another speed than the others: {listed}{more}.")
    })
}

/// The exchange that an arrival is of.
fn logged<'a>(log: &'a Log, arrival: &Arrival) -> Option<&'a Logged> {
    log.exchanges.get(usize::try_from(arrival.key).ok()?)
}

/// The demands of all exchanges whose server is known.
fn derive(log: &Log, came: &Came, known: &[Known]) -> (Vec<Arrival>, Demands<()>) {
    let mut demands = Demands::<()>::new(known, BUFFER);
    let mut found = Vec::with_capacity(log.exchanges.len());
    for (turn, observed) in observed(log, came).into_iter().enumerate() {
        if turn.is_multiple_of(SETTLE_EVERY) {
            demands.settle(observed.begun);
            found.extend(std::iter::from_fn(|| demands.arrival()).map(|(arrival, ())| arrival));
        }
        demands.offer(observed, ());
    }
    found.extend(demands.finish().into_iter().map(|(arrival, ())| arrival));
    (found, demands)
}

/// Moments of a log, counted from its first arrival.
struct Came(i64);

impl Came {
    fn of(exchanges: &[Logged]) -> Self {
        Came(exchanges.first().map_or(0, |first| first.came))
    }

    fn moment(&self, logged: &Logged) -> Moment {
        let micros = u64::try_from(logged.came.saturating_sub(self.0)).unwrap_or(0);
        Moment::from_nanos(micros.saturating_mul(1_000))
    }

    fn arrival(&self, logged: &Logged, demand: Duration) -> Arrival {
        let Logged { session, key, .. } = *logged;
        Arrival { at: self.moment(logged), session, demand, key, pinned: Pinned::No }
    }
}

/// The exchanges of known servers in the order in which those were given them. The key says which one it is.
fn observed(log: &Log, came: &Came) -> Vec<Observed> {
    let of_server = |(at, logged): (usize, &Logged)| {
        let begun = came.moment(logged) + logged.queued + logged.connecting;
        let server = usize::from(logged.server?);
        Some(Observed { server, begun, ended: begun + logged.latency, session: logged.session, key: at as u64 })
    };
    let mut observed: Vec<Observed> = log.exchanges.iter().enumerate().filter_map(of_server).collect();
    observed.sort_by_key(|observed| observed.begun);
    observed
}

/// The arrival at the proxy of an exchange whose demand is known now, for servers at these positions of the model, where
/// the log's had these speeds.
fn restored(log: &Log, came: &Came, positions: &[Option<usize>], speeds: &[f64], arrival: &Arrival) -> Option<Arrival> {
    let logged = logged(log, arrival)?;
    let speed = logged.server.and_then(|number| speeds.get(usize::from(number))).copied().unwrap_or(1.0);
    let server = logged.server.and_then(|number| positions.get(usize::from(number)).copied().flatten());
    let pinned = match (logged.pin, server) {
        (Pin::Old, Some(server)) => Pinned::Already(server),
        (Pin::New, Some(server)) => Pinned::Newly(server),
        (Pin::Unknown, _) | (_, None) => Pinned::No,
    };
    Some(Arrival { pinned, ..came.arrival(logged, arrival.demand.mul_f64(speed)) })
}

/// What is known of the log's servers, by their numbers: what the model takes them for.
fn known(log: &Log, servers: &[ServerModel], discipline: Option<Discipline>, options: &Options<'_>) -> Vec<Known> {
    let capacities: HashMap<&str, u32> = servers.iter().map(|server| (&*server.name, server.capacity)).collect();
    let capacity = |name: &str| {
        capacities.get(name).copied().unwrap_or(options.capacity.unwrap_or(CAPACITY).clamp(1, MOST_CAPACITY))
    };
    log.servers.iter().map(|name| Known { capacity: capacity(name), discipline, speed: 1.0 }).collect()
}

/// Over all servers, each by its share of the exchanges.
fn misfit(log: &Log, demands: &Demands<()>) -> Misfit {
    let mut counts = vec![0_u32; log.servers.len()];
    for number in log.exchanges.iter().filter_map(|logged| logged.server) {
        counts[usize::from(number)] += 1;
    }
    let all = counts.iter().sum::<u32>().max(1);
    let mut sum = Misfit::default();
    for (server, count) in counts.iter().enumerate() {
        let Some(of) = demands.misfit(server) else { continue };
        let share = f64::from(*count) / f64::from(all);
        sum.fifo += of.fifo * share;
        sum.sharing += of.sharing * share;
    }
    sum
}

/// Connecting is left out, as the model has none of it.
fn measured(exchanges: &[Logged]) -> Option<Measured> {
    let mut spans: Vec<Duration> = exchanges.iter().map(|logged| logged.queued + logged.latency).collect();
    spans.sort_unstable();
    let quantile = |share: f64| spans.get((spans.len().saturating_sub(1) as f64 * share) as usize).copied();
    Some(Measured { p50: quantile(0.5)?, p95: quantile(0.95)?, p99: quantile(0.99)? })
}

/// What was read, and what of it takes part.
fn account(log: &Log) -> String {
    let of_pool = log.pool.as_ref().map_or(String::new(), |pool| format!(" of the pool `{}`", pool.escape_debug()));
    let count = |count: usize| grouped(count as u64);
    let mut text = format!("{} lines, {} exchanges{of_pool} replayed.", grouped(log.lines), count(log.exchanges.len()));
    let left_out = LeftOut::ALL.iter().filter(|why| log.left_out[why.index()] > 0);
    let left_out: Vec<String> = left_out.map(|why| format!("{} {why}", grouped(log.left_out[why.index()]))).collect();
    if !left_out.is_empty() {
        text.push_str(&format!(" Left out: {}.", left_out.join(", ")));
    }
    if log.unreadable.count > 0 {
        text.push_str(&format!(" {} lines could not be read.", grouped(log.unreadable.count)));
    }
    text
}

fn sessions(log: &Log) -> String {
    let spread =
        if log.was_spread { " Its moments are whole seconds: the lines of one are spread evenly over it." } else { "" };
    format!("Sessions are told apart by {}.{spread}", log.known_by)
}

/// Where the work of each request comes from.
fn demands_note(log: &Log, named: &[Box<str>], is_configured: bool) -> String {
    let until = match log.format {
        Format::Ours | Format::Haproxy => "until the head of its response",
        Format::Nginx => "until the end of its response",
    };
    match (named.is_empty(), is_configured) {
        (false, _) => format!("What a request costs is its server's time {until}, with the waiting taken out."),
        (true, true) => {
            "The log names no servers: latencies are taken for work, which is too much where servers were busy."
                .to_owned()
        }
        (true, false) => format!(
            "Neither log nor configuration names servers: {SERVERS} are assumed, and latencies are taken for work, which is too much where servers were busy."
        ),
    }
}

/// Servers of the log that the configuration does not have.
fn strangers(named: &[Box<str>], configured: Option<&Configured>) -> Option<String> {
    let servers = &configured?.servers;
    let strange: Vec<String> = named
        .iter()
        .filter(|name| !servers.iter().any(|server| server.name == **name))
        .map(|name| format!("`{}`", name.escape_debug()))
        .collect();
    let listed = strange.iter().take(MOST_LISTED).cloned().collect::<Vec<_>>().join(", ");
    let more = if strange.len() > MOST_LISTED { ", ..." } else { "" };
    (!strange.is_empty()).then(|| format!("The log has servers that the configuration does not have: {listed}{more}."))
}

#[cfg(test)]
mod tests {
    use super::super::Input;
    use super::super::logs::{KnownBy, Unreadable};
    use super::*;
    use crate::twin::{Model, Outcome};

    fn options(discipline: DisciplineChoice) -> Options<'static> {
        Options {
            config: None,
            pool: None,
            input: Input::Workload(String::new()),
            seed: 1,
            capacity: None,
            discipline,
            progress: &|_| {},
        }
    }

    fn log(exchanges: Vec<Logged>) -> Log {
        Log {
            format: Format::Ours,
            known_by: KnownBy::Field,
            was_spread: false,
            exchanges,
            servers: vec!["a".into(), "b".into()],
            pool: None,
            lines: 7,
            left_out: [0; LeftOut::ALL.len()],
            unreadable: Unreadable::default(),
        }
    }

    fn logged(came: i64, millis: u64, server: Option<u16>) -> Logged {
        Logged::new(came, Duration::from_millis(millis), server, Some(came as u64))
    }

    #[test]
    fn a_slow_server_is_one_in_the_model_and_its_requests_cost_less_elsewhere() {
        let mut random = fastrand::Rng::with_seed(3);
        let exchanges = (0..600_i64).map(|number| {
            let (server, mean) = if number % 2 == 0 { (0, 10_000.0) } else { (1, 40_000.0) };
            let took = Duration::from_micros((-(1.0 - random.f64()).ln() * mean) as u64 + 1);
            Logged::new(1_000_000 + number * 500_000, took, Some(server), Some(number as u64))
        });
        let exchanges: Vec<Logged> = exchanges.collect();
        let slow: Vec<Duration> =
            exchanges.iter().filter(|logged| logged.server == Some(1)).map(|logged| logged.latency).collect();
        let scenario = scenario(log(exchanges), "x".to_owned(), None, &options(DisciplineChoice::Fifo));
        let speed = scenario.servers[1].speed;
        assert!(scenario.servers[0].speed == 1.0 && (0.18..0.34).contains(&speed), "{:?}", scenario.servers);
        let cost = scenario.arrivals[1].demand.as_secs_f64() / slow[0].as_secs_f64();
        assert!((cost / speed - 1.0).abs() < 1e-3, "{cost} of {speed}");
        let note = scenario.assumed.last().unwrap();
        assert!(note.contains("another speed than the others: `b` 0.2") || note.contains("`b` 0.3"), "{note}");
    }

    #[test]
    fn the_waiting_is_taken_out_and_the_arrival_at_the_proxy_stays() {
        let one_worker = Options { capacity: Some(1), ..options(DisciplineChoice::Fifo) };
        let mut second = logged(1_005_000, 15, Some(0));
        second.queued = Duration::from_millis(2);
        let exchanges = vec![logged(1_000_000, 10, Some(0)), second, logged(1_006_000, 4, Some(1))];
        let scenario = scenario(log(exchanges), "x".to_owned(), None, &one_worker);
        let found: Vec<_> = scenario
            .arrivals
            .iter()
            .map(|arrival| (arrival.at.as_nanos() / 1_000_000, arrival.demand.as_millis()))
            .collect();
        // The second was there from 7 to 22 ms, and had the worker from 10 ms on.
        assert_eq!(found, [(0, 10), (5, 12), (6, 4)]);
        assert_eq!(scenario.length, Duration::from_millis(6));
        let keys: Vec<_> = scenario.arrivals.iter().map(|arrival| arrival.key).collect();
        assert_eq!(keys, [1_000_000, 1_005_000, 1_006_000], "keys are the log's again");
    }

    #[test]
    fn without_servers_latencies_are_work_and_that_is_said() {
        let scenario = scenario(log(vec![logged(0, 9, None)]), "x".to_owned(), None, &options(DisciplineChoice::Auto));
        assert_eq!((scenario.servers.len(), scenario.arrivals[0].demand), (SERVERS, Duration::from_millis(9)));
        assert!(
            scenario.assumed.iter().any(|note| note.starts_with("Neither log nor configuration")),
            "{:?}",
            scenario.assumed
        );
    }

    /// What a server with one worker shows of some traffic, and what the model makes of it.
    fn played() -> (Log, Outcome) {
        let mut random = fastrand::Rng::with_seed(3);
        let mut free = 0_i64;
        let mut exchanges = Vec::new();
        let mut came = 0;
        let servers = configured::servers(
            None,
            &["a".into()],
            Discipline::Fifo,
            &Options { capacity: Some(1), ..options(DisciplineChoice::Auto) },
        );
        let policy = super::super::policies::compared(None, super::super::policies::Costs::default()).remove(1);
        let mut model = Model::new(&servers, policy, 1);
        for number in 0..6_000_u64 {
            came += random.i64(1..20_000);
            let work = random.i64(1_000..15_000);
            model.offer(Arrival {
                at: Moment::from_nanos(came as u64 * 1_000),
                session: None,
                demand: Duration::from_micros(work as u64),
                key: number,
                pinned: Pinned::No,
            });
            free = free.max(came) + work;
            exchanges.push(Logged::new(came, Duration::from_micros((free - came) as u64), Some(0), None));
        }
        (log(exchanges), model.finish())
    }

    #[test]
    fn a_log_of_fifo_servers_is_known_for_one_and_its_latencies_come_out_again() {
        let (log, outcome) = played();
        let one_worker = Options { capacity: Some(1), ..options(DisciplineChoice::Auto) };
        let scenario = scenario(log, "x".to_owned(), None, &one_worker);
        assert_eq!(scenario.servers[0].discipline, Discipline::Fifo, "{:?}", scenario.assumed);
        let policy = super::super::policies::compared(None, super::super::policies::Costs::default()).remove(1);
        let again = super::super::play_one(&scenario, policy, 1, &|_| {});
        let (said, again) = (outcome.latency.quantile(0.99).as_secs_f64(), again.latency.quantile(0.99).as_secs_f64());
        assert!((again / said - 1.0).abs() < 0.02, "{again} and {said}");
    }
}
