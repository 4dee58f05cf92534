//! What is in force: the snapshot, how it is built from a configuration, and how it is replaced.

mod attempts;
mod ended;
mod live;
mod reload;
mod snapshot;
mod tokens;

pub use attempts::{AttemptState, Attempts, LiveAttempt};
pub use ended::EndedSessions;
pub use live::condition;
pub use reload::{ReloadError, Reloaded, Runtime, watch};
pub use snapshot::{BuildError, PoolEntry, SharedPool, Snapshot};
pub use tokens::{IssuerKeys, RevocationBook, RevokeError, StatelessPool};
