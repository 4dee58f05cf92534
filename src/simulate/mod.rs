//! `steadfast simulate`: what would this traffic see under other policies?
//!
//! An access log, or a synthetic workload, becomes a sequence of arrivals with the work that each is for a server. The
//! twin's model plays it once per policy, with the code that balances live traffic, and what came of it is a table and
//! a report. The same input and seed give the same bytes: nothing here looks at the clock, and of a path only the
//! file's name is shown.
//!
//! What this does not do: model networks, connections or clients that give up. What arrives does not wait for what is
//! slow (an open loop), as waiting users would hide most of what an uneven load costs.

mod configured;
mod logs;
mod plots;
mod policies;
mod replay;
mod report;
mod table;
mod workloads;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::LoadError;
use crate::names::words;
use crate::twin::{Arrival, Model, Outcome, PolicyModel, ServerModel};
use configured::Configured;
use logs::Unreadable;
use workloads::Workload;
pub use workloads::{Habit, exponential};

/// How many requests a server serves at full speed at once, where nobody says.
pub const CAPACITY: u32 = 8;
/// How many there are of it at most, as the model keeps each.
pub const MOST_CAPACITY: u32 = 4_096;
/// How much of the progress reading a log is.
const READING: f64 = 0.2;

/// What to simulate.
pub struct Options<'a> {
    /// The file that has the pool: its servers, weights, caps and policy.
    pub config: Option<PathBuf>,
    /// Which pool, of the file and of the log.
    pub pool: Option<String>,
    pub input: Input,
    pub seed: u64,
    /// Requests that a server serves at full speed at once, per unit of the smallest weight; none: as a log tells, and
    /// [`CAPACITY`] for a workload.
    pub capacity: Option<u32>,
    pub discipline: DisciplineChoice,
    /// Hears the share that is done, 0 to 1.
    pub progress: &'a dyn Fn(f64),
}

/// Where the arrivals come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Log(PathBuf),
    Workload(String),
}

words! {
    /// How servers work on several requests at once, as far as that is known.
    DisciplineChoice {
        /// Whatever explains the latencies of a log better; fifo for a workload.
        Auto = "auto",
        Fifo = "fifo",
        Sharing = "sharing",
    }
}

/// What came of it.
pub struct Simulated {
    /// For a terminal.
    pub table: String,
    /// One page that needs nothing else.
    pub html: String,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    #[error("{0}")]
    Config(#[from] LoadError),
    #[error("the configuration has no pool `{name}`; it has {known}")]
    UnknownPool { name: String, known: String },
    #[error("the configuration has several pools; name one with --pool: {known}")]
    WhichPool { known: String },
    #[error("there is no pool `{pool}`: a workload has none, nor has nginx's log, without a configuration")]
    NoPools { pool: String },
    #[error("the configuration's pool `{pool}` has no server that could take anything")]
    NoServers { pool: String },
    #[error("no workload is called `{name}`{hint}; there are {known}")]
    UnknownWorkload { name: String, hint: String, known: String },
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{file} is empty")]
    EmptyLog { file: String },
    #[error(
        "{file} is no access log of steadfast, nginx (combined, with times) or HAProxy (HTTP); it begins with: {first}"
    )]
    NoFormat { file: String, first: String },
    #[error("{file} has no exchange to replay: {why}")]
    NothingToReplay { file: String, why: String },
}

impl SimulateError {
    /// 2 for what was asked or configured, 1 for what files hold.
    pub fn exit_status(&self) -> u8 {
        match self {
            SimulateError::Config(_)
            | SimulateError::UnknownPool { .. }
            | SimulateError::WhichPool { .. }
            | SimulateError::NoServers { .. }
            | SimulateError::NoPools { .. }
            | SimulateError::UnknownWorkload { .. } => 2,
            SimulateError::Read { .. }
            | SimulateError::EmptyLog { .. }
            | SimulateError::NoFormat { .. }
            | SimulateError::NothingToReplay { .. } => 1,
        }
    }
}

/// What is played, whatever the policy.
struct Scenario {
    /// A workload's name, or a file's.
    title: String,
    story: String,
    servers: Vec<ServerModel>,
    arrivals: Vec<Arrival>,
    length: Duration,
    /// What was taken for granted, a sentence each.
    assumed: Vec<String>,
    /// The latencies that the log has.
    measured: Option<Measured>,
    unreadable: Unreadable,
}

/// Latencies as they were.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measured {
    p50: Duration,
    p95: Duration,
    p99: Duration,
}

/// A scenario with what came of it, policy by policy.
struct Results {
    scenario: Scenario,
    seed: u64,
    /// The first row is the policy of the configuration.
    has_own: bool,
    rows: Vec<Row>,
}

/// What came of one policy.
struct Row {
    policy: PolicyModel,
    outcome: Outcome,
}

/// Simulates.
pub fn run(options: Options<'_>) -> Result<Simulated, SimulateError> {
    if let (Some(pool), None, Input::Workload(_)) = (&options.pool, &options.config, &options.input) {
        return Err(SimulateError::NoPools { pool: pool.clone() });
    }
    let configuration = options.config.as_deref().map(configured::load).transpose()?;
    let (scenario, configured) = match &options.input {
        Input::Workload(name) => {
            let workload = Workload::named(name)?;
            let pool = options.pool.as_deref();
            let configured = configuration.map(|all| Configured::choose(all, pool, None)).transpose()?;
            (workloads::scenario(workload, configured.as_ref(), &options), configured)
        }
        Input::Log(path) => {
            let progress = |share: f64| (options.progress)(share * READING);
            let known: Vec<Box<str>> = configuration.iter().flatten().map(|one| one.pool.clone()).collect();
            let log = logs::read(path, options.pool.as_deref(), &known, &progress)?;
            let (pool, of_log) = (options.pool.as_deref(), log.pool.as_deref());
            let configured = configuration.map(|all| Configured::choose(all, pool, of_log)).transpose()?;
            if let (Some(pool), None, None) = (&options.pool, &configured, &log.pool) {
                return Err(SimulateError::NoPools { pool: pool.clone() });
            }
            (replay::scenario(log, file_name(path), configured.as_ref(), &options), configured)
        }
    };
    let mut scenario = scenario;
    scenario.assumed.push(configured.as_ref().map(|configured| configured.costs).unwrap_or_default().note());
    scenario.assumed.extend(configured.as_ref().and_then(|configured| configured.left_out).map(str::to_owned));
    let results = play(scenario, configured, &options);
    (options.progress)(1.0);
    Ok(Simulated { table: table::text(&results), html: report::html(&results) })
}

/// Plays the scenario once per policy.
fn play(scenario: Scenario, configured: Option<Configured>, options: &Options<'_>) -> Results {
    let costs = configured.as_ref().map(|configured| configured.costs).unwrap_or_default();
    let own = configured.map(|configured| configured.policy);
    let has_own = own.is_some();
    let policies = policies::compared(own, costs);
    let count = policies.len() as f64;
    let mut rows = Vec::new();
    for (at, policy) in policies.into_iter().enumerate() {
        let progress = |share: f64| (options.progress)(READING + (1.0 - READING) * (at as f64 + share) / count);
        let outcome = play_one(&scenario, policy.clone(), options.seed, &progress);
        rows.push(Row { policy, outcome });
    }
    Results { scenario, seed: options.seed, has_own, rows }
}

/// Every policy sees the same arrivals and the same chance.
fn play_one(scenario: &Scenario, policy: PolicyModel, seed: u64, progress: &dyn Fn(f64)) -> Outcome {
    let mut model = Model::new(&scenario.servers, policy, seed);
    let count = scenario.arrivals.len().max(1);
    let step = count.div_ceil(20);
    for (at, arrival) in scenario.arrivals.iter().enumerate() {
        if at.is_multiple_of(step) {
            progress(at as f64 / count as f64);
        }
        model.offer(*arrival);
    }
    model.finish()
}

/// The name of a file without the way to it, which is nobody's business.
fn file_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_default().escape_debug().to_string()
}

#[cfg(test)]
mod tests;
