//! How a pool knows and keeps its sessions.

use std::time::Duration;

use http::HeaderName;

pub use crate::names::SameSite;

/// The prefix that ties a cookie to one host over TLS (RFC 6265bis, section 4.1.3.2).
const HOST_PREFIX: &str = "__Host-";

/// How a session is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// By our own sealed cookie.
    Cookie,
    /// By the application's own cookie, seen in its Set-Cookie and remembered: at most so many sessions.
    Learned { most: usize },
    /// By what the application's own cookie ends with after a dot, as Tomcat's jvmRoute: one suffix per server.
    Suffix { suffixes: Vec<Box<str>> },
    /// By a header's value: rendezvous.
    Header(HeaderName),
    /// By the client's address: rendezvous.
    Address,
}

/// The settings of a pool's affinity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickySettings {
    pub source: Source,
    /// Ours with its `__Host-` prefix, which goes over plain http; or the application's own, for learned and suffix.
    pub cookie: Box<str>,
    /// A pin not seen for so long is over.
    pub idle: Duration,
    /// A pin this old is over; zero: never.
    pub absolute: Duration,
    pub same_site: SameSite,
    pub partitioned: bool,
    /// With a Max-Age of `idle`, so that it outlives the browser's own session.
    pub persistent: bool,
}

impl StickySettings {
    /// The default name of a pool's pin cookie: opaque, and the same in every proxy.
    pub fn default_cookie(pool: &str) -> String {
        format!("{HOST_PREFIX}sf-{:08x}", xxhash_rust::xxh3::xxh3_64(pool.as_bytes()) >> 32)
    }

    /// The name without the prefix, as it is used over plain http.
    pub fn plain_cookie(&self) -> &str {
        self.cookie.strip_prefix(HOST_PREFIX).unwrap_or(&self.cookie)
    }
}
