//! What is in force: the snapshot, how it is built from a configuration, and how it is replaced.

mod live;
mod reload;
mod snapshot;

pub use live::condition;
pub use reload::{ReloadError, Reloaded, Runtime, watch};
pub use snapshot::{BuildError, PoolEntry, Snapshot};
