//! Whether the twin knows: what it says of other policies, from hard pins alone, beside what they really come to.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use steadfast::balance::Balance;
use steadfast::clock::Moment;
use steadfast::pool::{PinKind, PinRules};
use steadfast::twin::{self, Discipline, Model, Pinned, PolicyModel, ServerModel};

use crate::origins::Origins;
use crate::proxy::{KNOWN, Proxy};
use crate::users::Users;
use crate::workload::{Arrival, WORKERS, scaled, workload};
use crate::{HARD, SOFT, block_on};

const ORIGINS: usize = 8;
const SHARED: &str = "mode = \"shared\"\n[pool.shared]\nstore = \"main\"\n";
/// What the twin calls them, and the pools' keys.
const POLICIES: [(&str, &str); 3] = [("sticky", HARD), ("soft", SOFT), ("shared", SHARED)];
/// What `simulate` calls them.
const ROWS: [&str; 3] = ["p as configured", "sticky, soft, margin 4", "shared: p2c and a store"];
/// Of what the busiest server can do under hard pins.
const LOADS: [f64; 2] = [0.6, 0.8];
const SEEDS: u64 = 3;
/// How long after the last arrival the twin has played it, and may take to speak.
const BEHIND: Duration = Duration::from_secs(9);
const PATIENCE: Duration = Duration::from_secs(30);

/// Three quantiles in milliseconds, and max/mean of what was in flight.
type Figures = [f64; 4];
const NAMES: [&str; 4] = ["p50", "p95", "p99", "max/mean"];

/// What one workload came to.
struct Trial {
    /// By policy: really; and what the twin and `simulate` said from the first.
    real: [Figures; 3],
    twin: [Figures; 3],
    simulated: [Figures; 3],
    /// The busiest server under hard pins, over what it can do.
    busiest: f64,
    fit: f64,
    doubts: String,
    /// What the twin took servers for.
    servers: String,
    failed: u64,
}

pub fn run(seconds: u64, first_seed: u64) {
    let length = Duration::from_secs(seconds);
    for discipline in Discipline::ALL {
        for load in LOADS {
            let trials: Vec<Trial> = (first_seed..first_seed + SEEDS)
                .map(|seed| {
                    let trial = block_on(one(&arrivals(length, seed, load, *discipline), length, *discipline, true));
                    println!("seed {seed}: {}", trial.summary());
                    trial
                })
                .collect();
            println!("\n{discipline} origins, the busiest at {:.0} % under hard pins:\n", load * 100.0);
            tables(&trials);
        }
    }
}

/// The same at 80 %, where the twin is told nothing of servers.
pub fn run_untold(seconds: u64, first_seed: u64) {
    let length = Duration::from_secs(seconds);
    for discipline in Discipline::ALL {
        let arrivals = arrivals(length, first_seed, 0.8, *discipline);
        let trial = block_on(one(&arrivals, length, *discipline, false));
        println!("\n{discipline} origins at 80 %, seed {first_seed}, where the twin is told nothing of servers:\n");
        println!("{}\n", trial.summary());
        tables(&[trial]);
    }
}

/// The same workload whatever the load: only how long requests take differs. The model says who would be the busiest.
fn arrivals(length: Duration, seed: u64, load: f64, discipline: Discipline) -> Vec<Arrival> {
    let mut arrivals = workload(length.as_secs_f64(), seed, ORIGINS, 0.5);
    for _ in 0..3 {
        let busiest = busiest(&arrivals, discipline);
        arrivals = scaled(arrivals, load / busiest);
    }
    arrivals
}

/// The work of the server that has the most under hard pins, over what it can do.
fn busiest(arrivals: &[Arrival], discipline: Discipline) -> f64 {
    let server = |number| ServerModel {
        name: format!("o{number}").into(),
        weight: 1,
        live_weight: None,
        max_requests: 0,
        backup: false,
        drains: false,
        capacity: WORKERS as u32,
        discipline,
        speed: 1.0,
        from: Moment::default(),
        until: Moment::from_nanos(u64::MAX),
    };
    let policy = PolicyModel {
        name: "hard".into(),
        balance: Balance::P2c,
        is_hashed: false,
        pins: Some(PinRules { kind: PinKind::Hard, ..PinRules::default() }),
        is_in_force: false,
        warm_up: Duration::ZERO,
        store_round_trip: Duration::ZERO,
    };
    let mut model = Model::new(&(0..ORIGINS).map(server).collect::<Vec<_>>(), policy, 1);
    for Arrival { at, session, service } in arrivals {
        let at = Moment::default() + *at;
        let session = u64::from(*session);
        let (demand, pinned) = (*service, Pinned::No);
        model.offer(twin::Arrival { at, session: Some(session), demand, key: session, pinned });
    }
    model.finish().servers.iter().map(|server| server.busy).fold(0.0, f64::max)
}

/// Serves it under all three policies, side by side.
async fn one(arrivals: &[Arrival], length: Duration, discipline: Discipline, is_told: bool) -> Trial {
    // What is found out on the way is in the last third of the time.
    let window = if is_told { length } else { length / 3 };
    let told = if is_told { format!("{KNOWN}discipline = \"{discipline}\"\n") } else { String::new() };
    let twin = format!("[pool.twin]\nwindow = \"{}s\"\n{told}", window.as_secs());
    let mut runs = Vec::new();
    for (number, (_, keys)) in (0..).zip(POLICIES) {
        let origins = Origins::start(ORIGINS, discipline).await;
        let proxy = Proxy::start(number, &origins.addresses, &format!("{keys}{twin}"));
        runs.push((origins, Users::of(proxy.port()), proxy));
    }
    let began = Instant::now();
    let [hard, soft, shared] = &runs[..] else { unreachable!("there are three") };
    let send = |users: &std::sync::Arc<Users>| {
        let users = std::sync::Arc::clone(users);
        async move { users.send(arrivals, began).await }
    };
    let asked = tokio::join!(send(&hard.1), send(&soft.1), send(&shared.1));
    let ended = Instant::now();
    for asked in [asked.0, asked.1, asked.2] {
        asked.join_all().await;
    }
    let report = report(&hard.2, ended).await;
    // What the twin speaks of.
    let age = Duration::from_secs_f64(report["age_s"].as_f64().unwrap());
    let until = (Instant::now() - age).min(began + length);
    let from = (Instant::now() - age - Duration::from_secs_f64(report["window_s"].as_f64().unwrap())).max(began);
    let real = [hard, soft, shared].map(|(origins, users, _)| really(origins, users, began, from, until));
    let busiest = hard.0.gauges.iter().map(|gauge| gauge.utilization(began, began + length)).fold(0.0, f64::max);
    let failed = runs.iter().map(|(_, users, _)| users.failed()).sum();
    let proxy = &mut runs[0].2;
    proxy.end().await;
    Trial {
        real,
        twin: POLICIES.map(|(policy, _)| modelled(&report["policies"][policy])),
        simulated: simulated(proxy),
        busiest,
        fit: report["fit"].as_f64().unwrap_or(f64::NAN),
        doubts: report["doubts"].to_string(),
        servers: servers(&report),
        failed,
    }
}

/// What the twin says last. It runs behind: what it says when it has had time to catch up counts.
async fn report(proxy: &Proxy, ended: Instant) -> Value {
    loop {
        let report = proxy.pool().await["twin"].take();
        if !report.is_null() && ended.elapsed() > BEHIND {
            return report;
        }
        assert!(ended.elapsed() < PATIENCE, "the twin says nothing");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn really(origins: &Origins, users: &Users, began: Instant, from: Instant, until: Instant) -> Figures {
    let due = from.duration_since(began)..until.duration_since(began);
    let [p50, p95, p99] = users.quantiles(&due, [0.5, 0.95, 0.99]).map(|latency| latency.as_secs_f64() * 1e3);
    let loads: Vec<f64> = origins.gauges.iter().map(|gauge| gauge.mean_in_flight(from, until)).collect();
    [p50, p95, p99, steadfast::imbalance::measure(&loads).unwrap().max_over_mean]
}

fn modelled(policy: &Value) -> Figures {
    ["p50_ms", "p95_ms", "p99_ms", "max_over_mean"].map(|name| policy[name].as_f64().unwrap())
}

fn servers(report: &Value) -> String {
    let server = |server: &Value| {
        format!("{} {} x{}", server["capacity"], server["discipline"].as_str().unwrap(), server["speed"])
    };
    let mut servers: Vec<String> = report["servers"].as_array().unwrap().iter().map(server).collect();
    servers.sort();
    servers.dedup();
    servers.join(", ")
}

/// What `simulate` makes of the log.
fn simulated(proxy: &Proxy) -> [Figures; 3] {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
    command.arg("simulate").arg("--config").arg(proxy.config()).arg("--log").arg(proxy.log());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    ROWS.map(|row| {
        let line = text.lines().find_map(|line| line.strip_prefix(row)).unwrap_or_else(|| panic!("{row}: {text}"));
        let mut words = line.split_whitespace();
        let mut millis = || {
            let (number, unit) = (words.next().unwrap().parse::<f64>().unwrap(), words.next().unwrap());
            if unit == "s" { number * 1e3 } else { number }
        };
        let quantiles = [millis(), millis(), millis()];
        [quantiles[0], quantiles[1], quantiles[2], words.next().unwrap().parse().unwrap()]
    })
}

impl Trial {
    fn summary(&self) -> String {
        format!(
            "the busiest server had {:.0} % of what it can do; fit {:.2}, doubts {}; servers {}; failed {}",
            self.busiest * 100.0,
            self.fit,
            self.doubts,
            self.servers,
            self.failed
        )
    }
}

fn tables(trials: &[Trial]) {
    println!(
        "| policy | figure | really | the twin said | off by | each seed | simulate and twin |\n|---|---|---|---|---|---|---|"
    );
    for (at, (policy, _)) in POLICIES.iter().enumerate() {
        for (figure, name) in NAMES.iter().enumerate() {
            let off = |trial: &Trial| trial.twin[at][figure] / trial.real[at][figure] - 1.0;
            let apart = |trial: &Trial| trial.simulated[at][figure] / trial.twin[at][figure] - 1.0;
            let each: Vec<String> = trials.iter().map(|trial| format!("{:+.0} %", off(trial) * 100.0)).collect();
            let unit = |value: f64| if figure == 3 { format!("{value:.2}") } else { format!("{value:.0} ms") };
            println!(
                "| {policy} | {name} | {} | {} | {:.0} % | {} | {:.1} % |",
                unit(median(trials.iter().map(|trial| trial.real[at][figure]))),
                unit(median(trials.iter().map(|trial| trial.twin[at][figure]))),
                median(trials.iter().map(|trial| off(trial).abs())) * 100.0,
                each.join(", "),
                median(trials.iter().map(|trial| apart(trial).abs())) * 100.0,
            );
        }
    }
    println!();
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
