//! The command line.

use std::collections::HashSet;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::{self, Hosts, LoadError};
use crate::ctl::{self, ServerRef};
use crate::keys::{RingKey, random_secret};
use crate::runtime::Runtime;
use crate::simulate::DisciplineChoice;
use crate::{app, demo, simulate};

/// A TLS-terminating, session-aware load balancer.
#[derive(Parser)]
#[command(name = "steadfast", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve
    Run {
        /// Configuration file; default: ./steadfast.toml, then /etc/steadfast/steadfast.toml
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Check a configuration: every problem at once, each with its place and what would be right
    Check {
        /// Configuration file; default: ./steadfast.toml, then /etc/steadfast/steadfast.toml
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[arg(long, value_enum, default_value_t = Format::Human)]
        format: Format,
    },
    /// The whole story on one machine: small app servers, the proxy before them with three pools, traffic, a dashboard,
    /// switches to slow servers down, kill and add them, and a guide of what to try
    Demo {
        /// Port of https://localhost:PORT/
        #[arg(long, default_value_t = 8443, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// Requests a second for each of the three pools, of users who are made up and a few robots; 0: none. Three
        /// servers can do 300
        #[arg(long, value_name = "N", default_value_t = 150, value_parser = clap::value_parser!(u32).range(0..=MOST_TRAFFIC))]
        traffic: u32,
    },
    /// What other policies would make of a load: an access log, or a workload made up, played through the code that balances
    Simulate {
        /// Configuration whose pool it is about, as it is and with other policies; default: servers as the log has them
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The pool; default: the only one, or the busiest in the log
        #[arg(long)]
        pool: Option<String>,
        /// An access log of steadfast (JSON), nginx or HAProxy
        #[arg(long, value_name = "FILE", conflicts_with = "workload")]
        log: Option<PathBuf>,
        /// A workload by its name; a wrong one lists them
        #[arg(long, value_name = "NAME", default_value = "shop")]
        workload: String,
        /// Of everything that is left to chance: the same gives the same figures
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Requests that a server serves at full speed at once; default: as the log tells, and 8 for a workload
        #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..=i64::from(simulate::MOST_CAPACITY)))]
        capacity: Option<u32>,
        /// How a server deals with more than that: one after the other, or all of them slower; default: as the log fits
        #[arg(long, default_value_t = DisciplineChoice::Auto, value_parser = disciplines())]
        discipline: DisciplineChoice,
        /// Write plots to this file (HTML)
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
    /// One app server of the demo
    #[command(hide = true)]
    DemoServer {
        #[arg(long)]
        name: String,
        #[arg(long)]
        port: u16,
    },
    /// The users of the demo
    #[command(hide = true)]
    DemoTraffic {
        #[arg(long)]
        port: u16,
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MOST_TRAFFIC))]
        rate: u32,
    },
    /// Talk to a running proxy over its admin address
    Ctl {
        /// Configuration file that names the admin address; default: ./steadfast.toml, then /etc/steadfast/steadfast.toml
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The admin address itself: ADDRESS:PORT or unix:PATH
        #[arg(long, value_name = "ADDR", conflicts_with = "config")]
        address: Option<String>,
        /// The admin token, or file:PATH or env:NAME of it; default: as the configuration says
        #[arg(long, value_name = "SECRET")]
        token: Option<String>,
        /// Authorities of the certificate at an https address, in PEM form; default: the system's
        #[arg(long, value_name = "FILE", requires = "address")]
        ca: Option<PathBuf>,
        /// Print what the API answers
        #[arg(long)]
        json: bool,
        #[command(subcommand)]
        action: Box<CtlAction>,
    },
    /// Print a new random key for the ring
    Key,
    /// Print the JSON Schema of the configuration
    Schema,
    /// Print shell completions
    Completions { shell: clap_complete::Shell },
    /// Print the man page
    Man,
}

#[derive(Subcommand)]
enum CtlAction {
    /// A line per pool
    Status,
    /// A line per server
    Pools,
    /// No new sessions for a server; those that are there stay
    Drain {
        #[arg(value_name = "POOL/SERVER")]
        server: ServerRef,
        /// Then the sessions that are left move, as "10m"; default: [pool.drain] deadline
        #[arg(long)]
        deadline: Option<String>,
        /// Return when it is safe to stop the server: no session remaining, nothing in flight
        #[arg(long)]
        wait: bool,
    },
    /// Take a drain or maint back
    Ready {
        #[arg(value_name = "POOL/SERVER")]
        server: ServerRef,
    },
    /// Nobody for a server
    Maint {
        #[arg(value_name = "POOL/SERVER")]
        server: ServerRef,
    },
    /// Another weight, until the file's changes
    Weight {
        #[arg(value_name = "POOL/SERVER")]
        server: ServerRef,
        weight: u32,
    },
    /// Read the configuration again
    Reload,
    /// What a pin cookie says, and what would happen now and why
    Explain { cookie: String },
    /// Who is logged in where the proxy keeps the sessions, and an end to that
    Sessions {
        #[command(subcommand)]
        action: SessionsAction,
    },
    /// Tokens that are to count no more, in stateless pools
    Revoke {
        /// What is revoked now
        #[arg(long, exclusive = true)]
        list: bool,
        #[arg(long, required_unless_present = "list")]
        pool: Option<String>,
        #[command(flatten)]
        by: TokensBy,
        /// For as long as the last such token may count
        #[arg(long = "for", value_name = "SPAN", default_value = "30d")]
        span: String,
        /// Take it back
        #[arg(long)]
        undo: bool,
    },
}

/// Which tokens are meant.
#[derive(clap::Args)]
struct TokensBy {
    /// The one with this id
    #[arg(long, conflicts_with_all = ["subject", "kid"], required_unless_present_any = ["list", "subject", "kid"])]
    jti: Option<String>,
    /// Who issued them: `iss`
    #[arg(long, requires = "subject")]
    issuer: Option<String>,
    /// Whose they are: all that were issued until now
    #[arg(long, requires = "issuer", conflicts_with = "kid")]
    subject: Option<String>,
    /// All that were signed with this key
    #[arg(long)]
    kid: Option<String>,
}

#[derive(Subcommand)]
enum SessionsAction {
    /// A line per session, of all who are logged in, of a realm, or of one subject
    List {
        /// As in [pool.shared]; default: all
        #[arg(long)]
        realm: Option<String>,
        /// Who has logged in; default: everybody
        #[arg(long, requires = "realm")]
        subject: Option<String>,
    },
    /// One session
    Show {
        /// As `list` names it
        #[arg(value_name = "REF", allow_hyphen_values = true)]
        reference: String,
    },
    /// End one session, or all of a subject
    Revoke {
        /// As `list` names it
        #[arg(value_name = "REF", allow_hyphen_values = true)]
        #[arg(required_unless_present_any = ["realm", "subject"], conflicts_with_all = ["realm", "subject"])]
        reference: Option<String>,
        /// The realm of the subject
        #[arg(long, requires = "subject")]
        realm: Option<String>,
        /// Whose sessions end, all of them
        #[arg(long, requires = "realm")]
        subject: Option<String>,
    },
}

fn disciplines() -> impl TypedValueParser<Value = DisciplineChoice> {
    let words = DisciplineChoice::ALL.iter().map(|choice| choice.as_str());
    // Only words that there are come through.
    PossibleValuesParser::new(words).map(|word| DisciplineChoice::from_word(&word).unwrap_or(DisciplineChoice::Auto))
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Human,
    /// For editors
    Json,
}

const USAGE: u8 = 2;
/// Requests a second; far more than the servers of the demo can do.
const MOST_TRAFFIC: i64 = 5_000;

/// Runs the command line; the exit status is 0 fine, 1 failed while running, 2 bad usage or bad configuration.
pub fn main() -> ExitCode {
    crate::tls::install_provider();
    match Cli::parse().command {
        Command::Run { config } => run(config),
        Command::Check { config, format } => check(config, format),
        Command::Demo { port, traffic } => {
            log_to_stderr();
            finish(demo::run(port, traffic))
        }
        Command::DemoServer { name, port } => finish(demo::serve(&name, port)),
        Command::DemoTraffic { port, rate } => finish(demo::ask(port, rate)),
        Command::Simulate { config, pool, log, workload, seed, capacity, discipline, report } => {
            let input = log.map_or(simulate::Input::Workload(workload), simulate::Input::Log);
            let progress: &dyn Fn(f64) = if std::io::stderr().is_terminal() { &show_progress } else { &|_| {} };
            let options = simulate::Options { config, pool, input, seed, capacity, discipline, progress };
            simulate(options, report.as_deref())
        }
        Command::Ctl { config, address, token, ca, json, action } => {
            let given = ctl::Given { address: address.as_deref(), config, token: token.as_deref(), ca: ca.as_deref() };
            control(given, json, *action)
        }
        Command::Key => print(&format!("{}\n", *RingKey::from_secret(random_secret()).to_line())),
        Command::Schema => print(&format!("{:#}\n", config::schema())),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "steadfast", &mut text);
            print(&String::from_utf8_lossy(&text))
        }
        Command::Man => {
            let mut text = Vec::new();
            match clap_mangen::Man::new(Cli::command()).render(&mut text) {
                Ok(()) => print(&String::from_utf8_lossy(&text)),
                Err(error) => finish(Err(error)),
            }
        }
    }
}

/// A closed pipe is no failure of ours.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(message: &str, status: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{}", message.trim_end());
    ExitCode::from(status)
}

fn finish<E: std::fmt::Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("steadfast: {error}"), 1),
    }
}

fn config_path(given: Option<PathBuf>) -> Result<PathBuf, ExitCode> {
    let defaults = ["steadfast.toml", "/etc/steadfast/steadfast.toml"];
    let found = given.or_else(|| defaults.iter().map(PathBuf::from).find(|path| path.exists()));
    found.ok_or_else(|| complain("steadfast: no configuration: neither ./steadfast.toml nor /etc/steadfast/steadfast.toml exists; name one with --config", USAGE))
}

fn control(mut given: ctl::Given<'_>, json: bool, action: CtlAction) -> ExitCode {
    if given.address.is_none() {
        given.config = match config_path(given.config) {
            Ok(path) => Some(path),
            Err(status) => return status,
        };
    }
    let contact = match ctl::contact(given) {
        Ok(contact) => contact,
        Err(message) => return complain(&format!("steadfast: {message}"), USAGE),
    };
    let action = match action {
        CtlAction::Status => ctl::Action::Status,
        CtlAction::Pools => ctl::Action::Pools,
        CtlAction::Drain { server, deadline, wait } => ctl::Action::Drain { server, deadline, wait },
        CtlAction::Ready { server } => ctl::Action::Ready(server),
        CtlAction::Maint { server } => ctl::Action::Maint(server),
        CtlAction::Weight { server, weight } => ctl::Action::Weight { server, weight },
        CtlAction::Reload => ctl::Action::Reload,
        CtlAction::Explain { cookie } => ctl::Action::Explain(cookie),
        CtlAction::Sessions { action } => of_sessions(action),
        CtlAction::Revoke { list: true, .. } => ctl::Action::ListRevocations,
        CtlAction::Revoke { pool, by, span, undo, .. } => of_tokens(pool, by, span, undo),
    };
    match ctl::run(&contact, action, json) {
        Ok(text) => print(&text),
        Err(error) => finish(Err(error)),
    }
}

fn of_sessions(action: SessionsAction) -> ctl::Action {
    match action {
        SessionsAction::List { realm, subject } => ctl::Action::ListSessions { realm, subject },
        SessionsAction::Show { reference } => ctl::Action::ShowSession(reference),
        SessionsAction::Revoke { reference: Some(reference), .. } => ctl::Action::RevokeSession(reference),
        SessionsAction::Revoke { realm, subject, .. } => {
            // The command line has both where there is no reference.
            let (realm, subject) = (realm.unwrap_or_default(), subject.unwrap_or_default());
            ctl::Action::RevokeSubject { realm, subject }
        }
    }
}

fn of_tokens(pool: Option<String>, by: TokensBy, span: String, undo: bool) -> ctl::Action {
    let by = [("jti", by.jti), ("issuer", by.issuer), ("subject", by.subject), ("kid", by.kid)];
    let by = by.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    // The command line has a pool where it is no list.
    let tokens = ctl::Tokens { pool: pool.unwrap_or_default(), by };
    if undo { ctl::Action::TakeBackRevocation(tokens) } else { ctl::Action::RevokeTokens { tokens, span } }
}

fn show_progress(share: f64) {
    let _ = write!(std::io::stderr(), "\r{:3.0} %{}", share * 100.0, if share >= 1.0 { "\r     \r" } else { "" });
}

fn simulate(options: simulate::Options<'_>, report: Option<&Path>) -> ExitCode {
    let simulated = match simulate::run(options) {
        Ok(simulated) => simulated,
        Err(error) => return complain(&format!("steadfast: {error}"), error.exit_status()),
    };
    let printed = print(&simulated.table);
    match report.map(|path| (path, std::fs::write(path, simulated.html))) {
        Some((path, Err(error))) => complain(&format!("steadfast: cannot write {}: {error}", path.display()), 1),
        _ => printed,
    }
}

fn run(given: Option<PathBuf>) -> ExitCode {
    let path = match config_path(given) {
        Ok(path) => path,
        Err(status) => return status,
    };
    log_to_stderr();
    match app::run(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error_text(&error), error.exit_status()),
    }
}

fn error_text(error: &app::AppError) -> String {
    match error {
        app::AppError::Load(LoadError::Problems(report)) => report.human(wants_colours(&std::io::stderr())),
        other => format!("steadfast: {other}"),
    }
}

/// Events go to standard error; standard output is the access log's.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("STEADFAST_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = builder.with_ansi(wants_colours(&std::io::stderr())).with_target(false).try_init();
}

fn wants_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn check(given: Option<PathBuf>, format: Format) -> ExitCode {
    let path = match config_path(given) {
        Ok(path) => path,
        Err(status) => return status,
    };
    let report = match config::load(&path, Hosts::Resolved(&HashSet::new())) {
        Ok(loaded) => match built(&path, loaded) {
            Ok(report) => report,
            Err(message) => return cannot_check(&path, &message, format),
        },
        Err(LoadError::Problems(report)) => report,
        Err(error) => return cannot_check(&path, &error.to_string(), format),
    };
    let failed = report.has_errors();
    let human = || report.human(wants_colours(&std::io::stdout()));
    let printed = print(&match format {
        Format::Json => format!("{:#}\n", report.json()),
        Format::Human if report.problems.is_empty() => format!("{}: fine\n", path.display()),
        Format::Human if failed => human(),
        Format::Human => format!("{}\n{}: fine, with warnings\n", human(), path.display()),
    });
    if failed { ExitCode::from(USAGE) } else { printed }
}

/// A problem of the whole file, with no place in it.
fn cannot_check(path: &Path, message: &str, format: Format) -> ExitCode {
    if format == Format::Json {
        let file = path.display().to_string();
        let problem = serde_json::json!([{ "severity": "error", "file": file, "message": message }]);
        print(&format!("{problem:#}\n"));
    }
    complain(&format!("steadfast: {message}"), USAGE)
}

/// Builds what `run` would build, without binding anything.
fn built(path: &Path, loaded: config::Loaded) -> Result<config::Report, String> {
    let warnings = loaded.warnings.clone();
    let mut loaded = loaded;
    // A file of sessions belongs to the proxy that runs: a check neither takes it nor makes it.
    loaded.configuration.stores.iter_mut().for_each(|store| store.forget_path());
    let built = Runtime::new(path, loaded, &mut fastrand::Rng::with_seed(0));
    built.map(|_| warnings).map_err(|error| format!("{}: {error}", path.display()))
}
