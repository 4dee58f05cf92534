//! steadfast: a TLS-terminating, session-aware load balancer.

pub mod affinity;
pub mod balance;
pub mod clock;
pub mod config;
pub mod headers;
pub mod health;
pub mod keys;
pub mod listener;
pub mod metrics;
pub mod names;
pub mod pool;
pub mod probe;
pub mod routing;
pub mod tasks;
pub mod tls;
pub mod upstream;
