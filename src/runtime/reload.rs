//! Replacing the snapshot: whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::attempts::Attempts;
use super::ended::EndedSessions;
use super::snapshot::{BuildError, Snapshot};
use super::twins::Twins;
use crate::clock::Clock;
use crate::config::{self, Hosts, LoadError, Loaded, Report};
use crate::metrics::Metrics;
use crate::rate::KeyedRate;

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
    /// Attempts whose servers may ask for their session.
    pub attempts: Attempts,
    /// Sessions that ended a moment ago.
    pub ended: EndedSessions,
    /// Whose browser was told to forget its cookies.
    pub clearings: KeyedRate,
    /// Where workers tell of exchanges.
    pub twins: Twins,
    reloading: Mutex<()>,
    /// The files of the configuration that was looked at last, taken or rejected, as they were then.
    looked_at: Mutex<Stamps>,
}

impl Runtime {
    /// Begins with this configuration.
    pub fn new(path: &Path, loaded: Loaded, random: &mut fastrand::Rng) -> Result<Arc<Self>, BuildError> {
        let workers = loaded.configuration.process.workers;
        let metrics = Metrics::new(workers);
        let files = loaded.warnings.files.clone();
        let snapshot = Snapshot::build(loaded.configuration, None, &metrics, random)?;
        metrics.loaded(Clock::wall(Clock::now()).seconds());
        let runtime = Arc::new(Runtime {
            path: path.to_owned(),
            current: ArcSwap::from_pointee(snapshot),
            generation: AtomicU64::new(1),
            metrics,
            ready: AtomicBool::new(false),
            attempts: Attempts::default(),
            ended: EndedSessions::default(),
            clearings: KeyedRate::new(random.u64(..)),
            twins: Twins::new(workers),
            reloading: Mutex::new(()),
            looked_at: Mutex::new(Stamps::of(&files)),
        });
        let asked = runtime.snapshot().session_api.is_some();
        runtime.attempts.is_asked.store(asked, Ordering::Relaxed);
        runtime.snapshot().adopt();
        runtime.metrics.show(Arc::clone(&runtime) as Arc<dyn crate::metrics::LiveState>);
        Ok(runtime)
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The files that make a difference.
    fn files(&self) -> Vec<PathBuf> {
        self.looked_at.lock().0.keys().cloned().collect()
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
        self.metrics.reloaded(result.is_ok());
        if result.is_ok() {
            self.metrics.loaded(Clock::wall(Clock::now()).seconds());
        }
        result
    }

    fn try_reload<T>(
        &self,
        random: &mut fastrand::Rng,
        admit: impl FnOnce(&Snapshot) -> Result<T, String>,
    ) -> Result<(Reloaded, T), ReloadError> {
        let before = self.snapshot();
        // Stamped before they are read: what changes meanwhile is news.
        let known = Stamps::of(&self.files());
        let loaded = config::load(&self.path, Hosts::Resolved(&before.server_hosts()));
        let files = match &loaded {
            Ok(loaded) => loaded.warnings.files.clone(),
            Err(LoadError::Problems(report)) => report.files.clone(),
            Err(LoadError::Read { .. }) => self.files(),
        };
        *self.looked_at.lock() = Stamps::of(&files).but_for(known);
        let Loaded { mut configuration, warnings } = loaded?;
        let need_restart = keep_what_needs_a_restart(&mut configuration, &before);
        let snapshot = Snapshot::build(configuration, Some(&before), &self.metrics, random)?;
        let admitted = admit(&snapshot).map_err(ReloadError::Refused)?;
        let snapshot = Arc::new(snapshot);
        self.current.store(Arc::clone(&snapshot));
        snapshot.adopt();
        self.generation.fetch_add(1, Ordering::Release);
        self.metrics.retain(|pool| snapshot.pool(pool).is_some());
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
    let api = |api: &config::SessionApi| (api.address.clone(), api.advertise.clone());
    if configuration.session_api.as_ref().map(api) != before.session_api.as_deref().map(api) {
        configuration.session_api = before.session_api.as_deref().cloned();
        changed.push("[session_api]");
    }
    if configuration.process.access_log != before.process.access_log {
        configuration.process.access_log = before.process.access_log.clone();
        changed.push("[process] access_log");
    }
    let (old, new) = (&before.admin, &configuration.admin);
    if old.address != new.address || old.metrics != new.metrics {
        // Whole: token and TLS of one address must not end with what the file says of another.
        configuration.admin = Arc::clone(old);
        changed.push("[admin], as its addresses have changed");
    }
    changed
}

/// How long files must be quiet before they are read.
const QUIET: Duration = Duration::from_secs(1);
/// How often files are looked at where no event comes: network file systems send none.
const LOOK_ANYWAY: Duration = Duration::from_secs(5);

/// Calls `changed` after each change to a file that the configuration came from. Directories are watched, not files:
/// editors replace files, and Kubernetes swaps a `..data` link beside them. What counts is whether the files
/// themselves differ: the same directories may hold logs that are written all the time.
pub async fn watch(runtime: Arc<Runtime>, mut changed: impl FnMut()) {
    let (sender, mut events) = mpsc::channel::<()>(1);
    // Held here too: without a watcher nobody else would, and waiting for news would not wait.
    let mut directories = Directories::new(sender.clone());
    let mut asked_for: Option<Stamps> = None;
    loop {
        let files = runtime.files();
        directories.follow(&files);
        // No news within the time is as good a reason to look; and not more often than ten times a second.
        let _ = tokio::time::timeout(LOOK_ANYWAY, events.recv()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut now = Stamps::of(&files);
        if now == *runtime.looked_at.lock() || asked_for.as_ref() == Some(&now) {
            continue;
        }
        loop {
            tokio::time::sleep(QUIET).await;
            let later = Stamps::of(&files);
            if later == now {
                break;
            }
            now = later;
        }
        asked_for = Some(now);
        if runtime.snapshot().process.watch {
            changed();
        }
    }
}

/// What tells one state of the files from another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamps(BTreeMap<PathBuf, Option<(SystemTime, u64, PathBuf)>>);

impl Stamps {
    fn of(files: &[PathBuf]) -> Self {
        let of_file = |path: &PathBuf| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len(), std::fs::canonicalize(path).ok()?))
        };
        Stamps(files.iter().map(|path| (path.clone(), of_file(path))).collect())
    }

    /// These files, with what was known of them before.
    fn but_for(mut self, known: Stamps) -> Self {
        for (path, stamp) in known.0 {
            self.0.entry(path).and_modify(|now| *now = stamp);
        }
        self
    }
}

/// The directories that are watched.
struct Directories {
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
}

impl Directories {
    fn new(news: mpsc::Sender<()>) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let reading = event.as_ref().is_ok_and(|event| event.kind.is_access());
            if !reading {
                // A full channel already holds the news.
                let _ = news.try_send(());
            }
        });
        if let Err(error) = &watcher {
            tracing::warn!(%error, "files cannot be watched; they are looked at now and then");
        }
        Directories { watcher: watcher.ok(), watched: BTreeSet::new() }
    }

    /// Watches the directories of these files, and of what they link to.
    fn follow(&mut self, files: &[PathBuf]) {
        let Some(watcher) = &mut self.watcher else { return };
        self.watched.retain(|directory| directory.exists());
        let linked = files.iter().filter_map(|file| std::fs::canonicalize(file).ok());
        let directories: BTreeSet<PathBuf> =
            files.iter().cloned().chain(linked).filter_map(|file| directory_of(&file)).collect();
        for directory in directories {
            if directory.exists() && !self.watched.contains(&directory) {
                match watcher.watch(&directory, RecursiveMode::NonRecursive) {
                    Ok(()) => drop(self.watched.insert(directory)),
                    Err(error) => tracing::warn!(directory = %directory.display(), %error, "cannot be watched"),
                }
            }
        }
    }
}

fn directory_of(file: &Path) -> Option<PathBuf> {
    let parent = if file.is_dir() { file } else { file.parent()? };
    Some(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() })
}
