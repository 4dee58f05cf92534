//! Replacing the snapshot: whole or not at all.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::snapshot::{BuildError, Snapshot};
use crate::clock::Clock;
use crate::config::{self, LoadError, Loaded, Report};
use crate::metrics::Metrics;

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("{0}")]
    Refused(String),
}

/// What a reload brought.
pub struct Reloaded {
    pub snapshot: Arc<Snapshot>,
    pub warnings: Report,
    /// Settings whose change takes a restart.
    pub need_restart: Vec<&'static str>,
}

/// The snapshot in force, and what belongs to the process as a whole.
pub struct Runtime {
    path: PathBuf,
    current: ArcSwap<Snapshot>,
    generation: AtomicU64,
    pub metrics: Arc<Metrics>,
    /// Listeners are bound, and the process is not on its way out.
    pub ready: AtomicBool,
    reloading: Mutex<()>,
}

impl Runtime {
    /// Begins with this configuration.
    pub fn new(path: &Path, loaded: Loaded, random: &mut fastrand::Rng) -> Result<Arc<Self>, BuildError> {
        let metrics = Metrics::new(loaded.configuration.process.workers);
        let snapshot = Snapshot::build(loaded.configuration, None, &metrics, random)?;
        metrics.reloaded(true, Clock::wall(Clock::now()).seconds());
        let runtime = Arc::new(Runtime {
            path: path.to_owned(),
            current: ArcSwap::from_pointee(snapshot),
            generation: AtomicU64::new(1),
            metrics,
            ready: AtomicBool::new(false),
            reloading: Mutex::new(()),
        });
        runtime.metrics.show(Arc::clone(&runtime) as Arc<dyn crate::metrics::LiveState>);
        Ok(runtime)
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Changes with every snapshot; cheap to compare on each exchange.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reads the file again. `admit` is asked before the swap, and may still refuse (a port that cannot be bound);
    /// what it returned goes to the caller.
    pub fn reload<T>(
        &self,
        random: &mut fastrand::Rng,
        admit: impl FnOnce(&Snapshot) -> Result<T, String>,
    ) -> Result<(Reloaded, T), ReloadError> {
        let _one_at_a_time = self.reloading.lock();
        let result = self.try_reload(random, admit);
        self.metrics.reloaded(result.is_ok(), Clock::wall(Clock::now()).seconds());
        result
    }

    fn try_reload<T>(
        &self,
        random: &mut fastrand::Rng,
        admit: impl FnOnce(&Snapshot) -> Result<T, String>,
    ) -> Result<(Reloaded, T), ReloadError> {
        let Loaded { mut configuration, warnings } = config::load(&self.path)?;
        let before = self.snapshot();
        let need_restart = keep_what_needs_a_restart(&mut configuration, &before);
        let snapshot = Snapshot::build(configuration, Some(&before), &self.metrics, random)?;
        let admitted = admit(&snapshot).map_err(ReloadError::Refused)?;
        let snapshot = Arc::new(snapshot);
        self.current.store(Arc::clone(&snapshot));
        self.generation.fetch_add(1, Ordering::Release);
        self.metrics.retain(|pool, server| snapshot.names(pool, server));
        Ok((Reloaded { snapshot, warnings, need_restart }, admitted))
    }
}

/// Threads, the admin surface and the log's destination are made once.
fn keep_what_needs_a_restart(configuration: &mut config::Configuration, before: &Snapshot) -> Vec<&'static str> {
    let mut changed = Vec::new();
    if configuration.process.workers != before.process.workers {
        configuration.process.workers = before.process.workers;
        changed.push("[process] workers");
    }
    if configuration.process.access_log != before.process.access_log {
        configuration.process.access_log = before.process.access_log.clone();
        changed.push("[process] access_log");
    }
    if configuration.admin != before.admin {
        configuration.admin = before.admin.clone();
        changed.push("[admin]");
    }
    changed
}

/// How long files must be quiet before they are read.
const QUIET: Duration = Duration::from_secs(1);

/// Calls `changed` after each change to a file that the configuration came from. Directories are watched, not files:
/// editors replace files, and Kubernetes swaps a `..data` link beside them.
pub async fn watch(runtime: Arc<Runtime>, mut changed: impl FnMut()) {
    let (sender, mut events) = mpsc::channel::<()>(1);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let reading = event.as_ref().is_ok_and(|event| event.kind.is_access());
        if !reading {
            // A full channel already holds the news.
            let _ = sender.try_send(());
        }
    });
    let mut watcher = match watcher {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, "files cannot be watched; SIGHUP reloads");
            return;
        }
    };
    let mut watched = BTreeSet::new();
    let mut seen = stamp(&runtime.snapshot().files);
    loop {
        follow(&mut watcher, &mut watched, &runtime.snapshot().files);
        if events.recv().await.is_none() {
            return;
        }
        // Trailing debounce: wait until nothing has happened for a while.
        while tokio::time::timeout(QUIET, events.recv()).await.is_ok_and(|event| event.is_some()) {}
        let now = stamp(&runtime.snapshot().files);
        if now != seen && runtime.snapshot().process.watch {
            changed();
        }
        seen = stamp(&runtime.snapshot().files);
    }
}

/// What tells one state of the files from another: other files in the directories may change as they like.
fn stamp(files: &[PathBuf]) -> Vec<Option<(std::time::SystemTime, u64, PathBuf)>> {
    let of_file = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), std::fs::canonicalize(path).ok()?))
    };
    files.iter().map(of_file).collect()
}

fn follow(watcher: &mut RecommendedWatcher, watched: &mut BTreeSet<PathBuf>, files: &[PathBuf]) {
    let directories = files.iter().filter_map(|file| {
        let parent = if file.is_dir() { Some(file.as_path()) } else { file.parent() }?;
        Some(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() })
    });
    for directory in directories.collect::<BTreeSet<_>>() {
        if !watched.contains(&directory) {
            match watcher.watch(&directory, RecursiveMode::NonRecursive) {
                Ok(()) => drop(watched.insert(directory)),
                Err(error) => tracing::warn!(directory = %directory.display(), %error, "cannot be watched"),
            }
        }
    }
}
