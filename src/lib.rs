//! steadfast: a TLS-terminating, session-aware load balancer.

pub mod admin;
pub mod affinity;
pub mod app;
pub mod balance;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod headers;
pub mod health;
pub mod keys;
pub mod listener;
pub mod metrics;
pub mod names;
pub mod pool;
pub mod probe;
pub mod proxy;
pub mod routing;
pub mod runtime;
pub mod tasks;
pub mod tls;
pub mod upstream;
