//! The process: builds what the configuration says, joins listeners with the proxy, and ends well.

mod control;
mod worker;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::config::{self, Hosts, LoadError};
use crate::listener::{self, Endpoint, PerAddress, Spread};
use crate::metrics::WorkerId;
use crate::private::Socket;
use crate::proxy::AccessLogs;
use crate::runtime::{BuildError, Runtime, Snapshot, Twins};
use worker::{Command, Handle};

/// Why the process cannot serve, or no longer can.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("cannot listen on {0}: {1}")]
    Bind(String, io::Error),
    #[error("cannot write the access log: {0}")]
    AccessLog(io::Error),
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    #[error("ended by a second signal; what was under way is lost")]
    Cut,
}

impl AppError {
    /// 2 for what the configuration says, 1 for what the machine does.
    pub fn exit_status(&self) -> u8 {
        match self {
            AppError::Load(_) | AppError::Build(_) => 2,
            AppError::Bind(..) | AppError::AccessLog(_) | AppError::Start(_) | AppError::Cut => 1,
        }
    }
}

/// One socket per worker, for one listener.
type Sockets = Vec<std::net::TcpListener>;

/// Serves until a signal ends it.
pub fn run(path: &Path) -> Result<(), AppError> {
    Clock::anchor();
    let loaded = config::load(path, Hosts::Resolved(&HashSet::new()))?;
    if !loaded.warnings.problems.is_empty() {
        eprint!("{}", loaded.warnings.human(false));
    }
    let mut random = fastrand::Rng::new();
    let runtime = Runtime::new(path, loaded, &mut random)?;
    let snapshot = runtime.snapshot();
    warn_where_descriptors_are_few(&snapshot, raise_descriptor_limit());
    let sockets = bind_all(snapshot.endpoints.iter(), snapshot.process.workers)?;
    let admin = Socket::bind(&snapshot.admin.address)
        .map_err(|error| AppError::Bind(format!("{} ([admin] address)", snapshot.admin.address), error))?;
    let scrape = snapshot
        .admin
        .metrics
        .map(|address| Socket::bind_tcp(address).map_err(|error| AppError::Bind(address.to_string(), error)));
    let scrape = scrape.transpose()?;
    let session_api = snapshot.session_api.as_ref().map(|api| {
        Socket::bind(&api.address)
            .map_err(|error| AppError::Bind(format!("{} ([session_api] address)", api.address), error))
    });
    let session_api = session_api.transpose()?;
    let process = &snapshot.process;
    let logs = AccessLogs::start(&process.access_log, process.workers, Arc::clone(&runtime.metrics));
    let (logs, writer) = logs.map_err(AppError::AccessLog)?.unzip();
    let (workers, done) = start_workers(&runtime, logs.as_ref(), &mut random)?;
    let twin = Twins::start(&runtime)?;
    listen(&workers, &snapshot, sockets);
    let control = control::Control { runtime: Arc::clone(&runtime), workers, done, logs, random };
    // It must not outlive the reload that replaces it: stores end with the last snapshot that has them.
    drop(snapshot);
    let served = control.run(control::Sockets { admin, scrape, session_api });
    twin.finish();
    if let Some(writer) = writer {
        writer.finish();
    }
    served
}

/// Takes as many descriptors as the system allows, for this process and those that it starts; gives how many that is,
/// where there is a bound.
pub fn raise_descriptor_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    limit.maximum
}

/// Each exchange may take two descriptors.
fn warn_where_descriptors_are_few(snapshot: &Snapshot, limit: Option<u64>) {
    let needed = snapshot.process.max_connections as u64 * 2 + 256;
    if let Some(maximum) = limit.filter(|maximum| *maximum < needed) {
        tracing::warn!(
            maximum,
            max_connections = snapshot.process.max_connections,
            "open files are limited below what max_connections may need (two each)"
        );
    }
}

/// Binds these listeners, one socket per worker. None listens before all are bound: a socket that is closed again
/// takes nobody's connection with it.
fn bind_all<'e>(
    endpoints: impl Iterator<Item = &'e Arc<Endpoint>>,
    workers: usize,
) -> Result<HashMap<Box<str>, Sockets>, AppError> {
    let at = |endpoint: &Endpoint| {
        let address = endpoint.settings.address.to_string();
        move |error: io::Error| AppError::Bind(address, error)
    };
    let bound = endpoints.map(|endpoint| Ok((endpoint, bind_one(endpoint, workers).map_err(at(endpoint))?)));
    let bound: Vec<(&Arc<Endpoint>, Vec<listener::Bound>)> = bound.collect::<Result<_, AppError>>()?;
    let listening = bound.into_iter().map(|(endpoint, sockets)| {
        let address = sockets.first().map(listener::Bound::address).transpose().map_err(at(endpoint))?;
        let sockets: io::Result<Sockets> = sockets.into_iter().map(listener::Bound::listen).collect();
        let sockets = sockets.map_err(at(endpoint))?;
        if let Some(address) = address {
            tracing::info!(listener = %endpoint.settings.name, %address, tls = endpoint.tls.is_some(), "listening");
        }
        Ok((endpoint.settings.name.clone(), sockets))
    });
    listening.collect()
}

/// With port 0 the system chooses one at the first socket, and the others share it.
fn bind_one(endpoint: &Endpoint, workers: usize) -> io::Result<Vec<listener::Bound>> {
    let first = listener::bind(endpoint.settings.address)?;
    let address: SocketAddr = first.address()?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(listener::bind(address)?);
    }
    Ok(sockets)
}

fn start_workers(
    runtime: &Arc<Runtime>,
    logs: Option<&Arc<AccessLogs>>,
    random: &mut fastrand::Rng,
) -> io::Result<(Vec<Handle>, mpsc::UnboundedReceiver<WorkerId>)> {
    let (finished, done) = mpsc::unbounded_channel();
    let per_address = Arc::<PerAddress>::default();
    let (spread, taking) = Spread::new(runtime.snapshot().process.workers);
    let workers = taking.into_iter().enumerate().map(|(number, taking)| {
        worker::start(worker::Parts {
            id: WorkerId(number),
            runtime: Arc::clone(runtime),
            logs: logs.cloned(),
            spread: Arc::clone(&spread),
            taking,
            per_address: Arc::clone(&per_address),
            random: random.fork(),
            finished: finished.clone(),
        })
    });
    Ok((workers.collect::<io::Result<_>>()?, done))
}

/// Tells the workers what to listen on now. `sockets`: the new ones, by listener.
fn listen(workers: &[Handle], snapshot: &Snapshot, mut sockets: HashMap<Box<str>, Sockets>) {
    for worker in workers {
        let mut socket_of = |endpoint: &Arc<Endpoint>| sockets.get_mut(&endpoint.settings.name).and_then(Vec::pop);
        let endpoints = snapshot.endpoints.iter().map(|endpoint| (Arc::clone(endpoint), socket_of(endpoint))).collect();
        let share = snapshot.process.max_connections.div_ceil(workers.len());
        let most_per_address = snapshot.process.connections_per_address;
        worker.tell(Command::Listen { endpoints, most_connections: share, most_per_address });
    }
}

/// Tells the world whether more connections are welcome.
fn set_ready(runtime: &Runtime, ready: bool) {
    runtime.ready.store(ready, Ordering::Relaxed);
    let state = if ready { sd_notify::NotifyState::Ready } else { sd_notify::NotifyState::Stopping };
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[state]);
}
