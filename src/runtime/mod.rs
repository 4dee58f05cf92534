//! What is in force: the snapshot, how it is built from a configuration, and how it is replaced.

mod attempts;
mod ended;
mod issuer_keys;
mod live;
mod reload;
mod revocations;
mod snapshot;
mod twins;

pub use attempts::{AttemptState, Attempts, LiveAttempt};
pub use ended::EndedSessions;
pub use issuer_keys::IssuerKeys;
pub use live::condition;
pub use reload::{ReloadError, Reloaded, Runtime, watch};
pub use revocations::{RevocationBook, RevokeError};
pub use snapshot::{BuildError, PoolEntry, SharedPool, Snapshot, StatelessPool};
pub use twins::{TwinSeat, TwinThread, Twins};
