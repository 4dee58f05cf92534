//! One worker: a thread with a runtime of its own, on which connections are accepted, served and ended.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::clock::{Clock, Ticker};
use crate::listener::{Accepting, Acceptor, Connections, Endpoint, PerAddress, Spread, Taking};
use crate::metrics::WorkerId;
use crate::proxy::{AccessLogs, Proxy};
use crate::runtime::Runtime;
use crate::tasks;
use crate::upstream::Conns;

/// What a worker is told.
pub(super) enum Command {
    /// These are the listeners now; a socket comes with those that are new.
    Listen {
        endpoints: Vec<(Arc<Endpoint>, Option<std::net::TcpListener>)>,
        most_connections: usize,
        most_per_address: usize,
    },
    /// Accept no more; end when the last connection has.
    Drain,
    /// End now.
    Abort,
}

/// A worker as the control thread sees it.
pub(super) struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    thread: std::thread::JoinHandle<()>,
}

impl Handle {
    pub(super) fn tell(&self, command: Command) {
        // A worker that has ended needs to be told nothing.
        let _ = self.commands.send(command);
    }

    pub(super) fn join(self) {
        let _ = self.thread.join();
    }
}

pub(super) struct Parts {
    pub(super) id: WorkerId,
    pub(super) runtime: Arc<Runtime>,
    pub(super) logs: Option<Arc<AccessLogs>>,
    pub(super) spread: Arc<Spread>,
    pub(super) taking: Taking,
    pub(super) per_address: Arc<PerAddress>,
    pub(super) random: fastrand::Rng,
    pub(super) finished: mpsc::UnboundedSender<WorkerId>,
}

/// Starts a worker's thread.
pub(super) fn start(parts: Parts) -> io::Result<Handle> {
    let (commands, receiver) = mpsc::unbounded_channel();
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let name = format!("worker-{}", parts.id.0);
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let (id, finished) = (parts.id, parts.finished.clone());
        LocalSet::new().block_on(&executor, run(parts, receiver));
        let _ = finished.send(id);
    })?;
    Ok(Handle { commands, thread })
}

/// Listeners by name: where they were bound as the file says, and the accept loop.
type Listening = HashMap<Box<str>, Accepting>;

async fn run(parts: Parts, mut commands: mpsc::UnboundedReceiver<Command>) {
    let Parts { id, runtime, logs, spread, taking, per_address, random, .. } = parts;
    let ticker = Rc::new(Ticker::default());
    ticker.advance(Clock::now());
    let conns = Conns::new(Rc::clone(&ticker), id);
    let connections = Connections::new(usize::MAX, Arc::clone(&runtime.metrics), id);
    let metrics = Arc::clone(&runtime.metrics);
    let handler = Proxy::new(id, runtime, Rc::clone(&ticker), Rc::clone(&conns), random, logs);
    let most_per_address = Rc::new(Cell::new(0));
    let acceptor = Rc::new(Acceptor {
        connections: Rc::clone(&connections),
        handler: handler.clone(),
        metrics,
        worker: id,
        spread: Arc::clone(&spread),
        per_address,
        most_per_address: Rc::clone(&most_per_address),
    });
    acceptor.take(taking);
    let _ticking = tasks::Owned::spawn(tick(ticker, Rc::clone(&connections), conns, handler.clone()));
    let mut listening = Listening::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen { endpoints, most_connections, most_per_address: per_address } => {
                connections.set_most(most_connections.max(1));
                most_per_address.set(per_address);
                listen(&acceptor, &mut listening, endpoints);
            }
            Command::Drain => {
                listening.drain().for_each(|(_, accepting)| accepting.stop());
                spread.withdraw(id);
                connections.drain();
                break;
            }
            Command::Abort => return,
        }
    }
    tokio::select! {
        () = all_closed(&spread, id) => {}
        () = aborted(&mut commands) => {
            if handler.end_long_lived() > 0 {
                // Closed well, or not in time.
                let _ = tokio::time::timeout(LAST_GOODBYES, all_closed(&spread, id)).await;
            }
            let left = connections.abort_all();
            if left > 0 {
                tracing::warn!(worker = id.0, connections = left, "closed at the end of the grace time");
            }
        }
    }
}

fn listen(
    acceptor: &Rc<Acceptor<Proxy>>,
    listening: &mut Listening,
    endpoints: Vec<(Arc<Endpoint>, Option<std::net::TcpListener>)>,
) {
    let mut before = std::mem::take(listening);
    for (endpoint, socket) in endpoints {
        let name = endpoint.settings.name.clone();
        let accepting = match (socket, before.remove(&name)) {
            (None, Some(accepting)) => {
                accepting.update(endpoint);
                Ok(accepting)
            }
            (None, None) => continue,
            (Some(socket), moved) => {
                if let Some(moved) = moved {
                    moved.stop();
                }
                acceptor.start(socket, endpoint)
            }
        };
        match accepting {
            Ok(accepting) => drop(listening.insert(name, accepting)),
            Err(error) => tracing::error!(listener = %name, %error, "cannot accept connections"),
        }
    }
    before.into_values().for_each(|accepting| accepting.stop());
}

/// How often unused upstream connections and long-lived exchanges are looked at, in ticks.
const SLOWLY: u32 = 20;

async fn tick(ticker: Rc<Ticker>, connections: Rc<Connections>, conns: Rc<Conns>, proxy: Proxy) {
    let mut interval = tokio::time::interval(Ticker::TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in 0u32.. {
        interval.tick().await;
        let now = Clock::now();
        ticker.advance(now);
        connections.sweep(now);
        proxy.end_of_sessions();
        if number % SLOWLY == 0 {
            proxy.sweep(now);
            conns.sweep(now);
        }
    }
}

/// What tunnels may take for their goodbyes when the grace time is over.
const LAST_GOODBYES: Duration = Duration::from_secs(3);

/// The accept loops need a turn to take in what is queued, and other workers one to see that nothing more is taken; from
/// then on the count only falls.
async fn all_closed(spread: &Spread, id: WorkerId) {
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if spread.open(id) == 0 {
            return;
        }
    }
}

async fn aborted(commands: &mut mpsc::UnboundedReceiver<Command>) {
    while let Some(command) = commands.recv().await {
        if matches!(command, Command::Abort) {
            return;
        }
    }
}
