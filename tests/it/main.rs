//! Integration tests: the built binary over real sockets and real TLS.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test or a bench may")]

mod adapters;
mod admin;
mod affinity;
mod architecture;
mod attempts;
mod bodies;
mod browser;
mod command_line;
mod dashboard;
mod demo;
mod edge;
mod failover;
mod grpc;
mod headers;
mod health;
mod lessons;
mod limits;
mod mixups;
mod monitoring;
mod operator;
mod pins;
mod pitfalls;
mod reload;
mod routing;
mod scaling;
mod session_admin;
mod session_api;
mod sessions;
mod shared_store;
mod simulate;
mod skewed;
mod stateless;
mod sticky;
mod stores;
mod support;
mod tls;
mod twin;
mod upgrades;
mod upstreams;
mod vault;
