//! steadfast: a TLS-terminating, session-aware load balancer.
//!
//! # The life of an exchange
//!
//! A socket is accepted by one worker's [`listener`], which does TLS and HTTP and hands each request to [`proxy`].
//! There it is identified (whose word counts about client and scheme), routed ([`routing`]), admitted ([`headers`]),
//! recalled ([`affinity`]: which server does the session belong to? [`session`], [`stateless`]: who asks?), held to what
//! the edge enforces ([`protect`]), attempted ([`pool`] chooses, [`upstream`]
//! connects and sends, [`health`] is told), answered, and settled: load, [`metrics`] and the log line are closed when
//! the response's body ends, however it ends.
//!
//! What all of them go by is one immutable snapshot ([`runtime`]), built from one file ([`config`]) and swapped whole.
//!
//! # Floors
//!
//! A module imports from lower floors only; a test in `tests/it/architecture.rs` reads the imports and holds them to
//! it. Words ([`names`], [`clock`], [`keys`], [`tasks`], [`metrics`]); decisions, free of effects ([`routing`],
//! [`balance`], [`affinity`], [`health`], [`headers`], [`imbalance`],
//! [`rate`], [`recent`], [`session`], [`protect`], [`stateless`]); state ([`pool`], and [`twin`], which plays a load
//! through its code); effects ([`tls`], [`listener`],
//! [`upstream`], [`store`], [`probe`], [`private`], [`jwks`]); composition ([`config`], [`runtime`], [`proxy`]); surfaces ([`admin`], [`session_api`],
//! [`simulate`]); and the shell
//! ([`app`], [`demo`], [`ctl`], [`cli`]). `ARCHITECTURE.md` says why.

pub mod admin;
pub mod affinity;
pub mod app;
pub mod balance;
pub mod cli;
pub mod clock;
pub mod config;
pub mod ctl;
pub mod demo;
pub mod headers;
pub mod health;
pub mod imbalance;
pub mod jwks;
pub mod keys;
pub mod listener;
pub mod metrics;
pub mod names;
pub mod pool;
pub mod private;
pub mod probe;
pub mod protect;
pub mod proxy;
pub mod rate;
pub mod recent;
pub mod routing;
pub mod runtime;
pub mod session;
pub mod session_api;
pub mod simulate;
pub mod stateless;
pub mod store;
pub mod tasks;
pub mod tls;
pub mod twin;
pub mod upstream;
