//! Which server a session belongs to, and how we know.
//!
//! This module reads a preference out of a request and turns a verdict into a cookie. It does not choose a server
//! (`pool` does), and it never writes while choosing: the cookie is made from the verdict, after the server that it
//! names has answered.

mod cookie;
mod learned;
mod settings;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use http::{HeaderMap, HeaderValue};

pub use cookie::{Pin, PinSealer, SEALED_CHARS};
pub use learned::LearnedTable;
pub use settings::{SameSite, Source, StickySettings};

use crate::clock::Wall;
use crate::headers;
use crate::keys::{Hasher, KeyRing};
use crate::names::{NewWhy, NoneWhy};

/// What a request says about where it belongs. `pool` resolves it to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// The exchange has no affinity.
    None(NoneWhy),
    /// The session has no valid pin.
    New(NewWhy),
    /// The session belongs to the server at this position of the pool.
    Pinned { server: usize, session: u64 },
    /// The session belongs to a server that is no longer configured.
    Gone { session: u64 },
    /// The session belongs to the first server of its key's rendezvous order.
    Hashed { key: u64 },
}

/// Affinity of one pool of one snapshot.
pub struct Affinity {
    settings: StickySettings,
    /// What stands for the servers' names in the learned table, by position.
    names: Vec<u64>,
    learned: Arc<LearnedTable>,
    sealer: Arc<PinSealer>,
    /// The pool's keyed hash under each ring key.
    pool: Vec<u64>,
    /// Servers by their keyed hash, under each ring key.
    servers: Vec<HashMap<u64, usize>>,
    /// The servers' hashes under the sealing key, by position.
    sealing: Vec<u64>,
}

/// What affinity may know of a request.
pub struct Asked<'a> {
    pub headers: &'a HeaderMap,
    /// The external scheme.
    pub https: bool,
    /// The client, by what trusted proxies say.
    pub client: IpAddr,
    pub now: Wall,
}

/// Wall-clock seconds as pins keep them.
fn seconds(now: Wall) -> u32 {
    u32::try_from(now.seconds()).unwrap_or(u32::MAX)
}

/// A pin as it was found, kept until the cookie is decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recalled {
    pub preference: Preference,
    pin: Option<Pin>,
    /// What the session is known by, where that is not our own cookie.
    key: Option<u64>,
    /// Sealed with a key that is no longer the first.
    old_key: bool,
}

impl Recalled {
    /// An exchange that affinity does not look at.
    pub const fn none(why: NoneWhy) -> Self {
        Recalled { preference: Preference::None(why), pin: None, key: None, old_key: false }
    }

    const fn new(why: NewWhy) -> Self {
        Recalled { preference: Preference::New(why), pin: None, key: None, old_key: false }
    }

    /// A session that is known by something else than our cookie.
    const fn keyed(preference: Preference, key: u64) -> Self {
        Recalled { preference, pin: None, key: Some(key), old_key: false }
    }

    /// What stands for the session: the id of the pin, or the key that was used.
    pub fn session(&self) -> Option<u64> {
        self.pin.map(|pin| pin.session).or(self.key)
    }

    /// The same, but only where the session belongs to a server already: a made-up cookie is no session.
    pub fn known_session(&self) -> Option<u64> {
        self.session().filter(|_| !matches!(self.preference, Preference::New(_) | Preference::None(_)))
    }
}

impl Affinity {
    /// Affinity of the pool `pool` over these server names.
    pub fn new<'a>(
        settings: StickySettings,
        ring: &KeyRing,
        sealer: Arc<PinSealer>,
        learned: Arc<LearnedTable>,
        pool: &str,
        servers: impl Iterator<Item = &'a str> + Clone,
    ) -> Self {
        let server_hash = |hasher: &Hasher, name: &str| hasher.hash(format!("{pool}\0{name}").as_bytes());
        let hashers = ring.hashers("steadfast pin names v1");
        let by_key = hashers.iter().map(|hasher| {
            let hashes = servers.clone().map(|name| server_hash(hasher, name));
            hashes.enumerate().map(|(at, hash)| (hash, at)).collect()
        });
        Affinity {
            settings,
            names: servers.clone().map(|name| xxhash_rust::xxh3::xxh3_64(name.as_bytes())).collect(),
            learned,
            sealer,
            pool: hashers.iter().map(|hasher| hasher.hash(pool.as_bytes())).collect(),
            servers: by_key.collect(),
            sealing: servers.clone().map(|name| server_hash(&hashers[0], name)).collect(),
        }
    }

    /// The settings it was built from.
    pub fn settings(&self) -> &StickySettings {
        &self.settings
    }

    /// What was learned, for the pool that replaces this one.
    pub fn learned(&self) -> Arc<LearnedTable> {
        Arc::clone(&self.learned)
    }

    /// Whether the pin cookie is ours: no server may see it then, and nobody else writes it.
    pub fn has_own_cookie(&self) -> bool {
        self.settings.source == Source::Cookie
    }

    /// Reads what a request says about where it belongs.
    pub fn recall(&self, request: &Asked<'_>) -> Recalled {
        match &self.settings.source {
            Source::Cookie => self.recall_pin(request.headers, request.https, request.now),
            Source::Learned { .. } => self.recall_learned(request.headers, request.now),
            Source::Suffix { suffixes } => self.recall_suffix(suffixes, request.headers),
            Source::Header(name) => match request.headers.get(name) {
                Some(value) => self.hashed(value.as_bytes()),
                None => Recalled::none(NoneWhy::NotSticky),
            },
            Source::Address => match request.client {
                IpAddr::V4(address) => self.hashed(&address.octets()),
                IpAddr::V6(address) => self.hashed(&address.octets()),
            },
        }
    }

    /// A fixed hash, the same in every proxy whatever its keys.
    fn hashed(&self, value: &[u8]) -> Recalled {
        let key = xxhash_rust::xxh3::xxh3_64(value);
        Recalled::keyed(Preference::Hashed { key }, key)
    }

    fn application_cookie<'h>(&self, headers: &'h HeaderMap) -> Option<&'h [u8]> {
        let mut found = headers::cookies(headers).filter(|(name, _)| *name == self.settings.cookie.as_bytes());
        found.next().map(|(_, value)| value)
    }

    fn recall_learned(&self, headers: &HeaderMap, now: Wall) -> Recalled {
        let Some(value) = self.application_cookie(headers) else { return Recalled::new(NewWhy::First) };
        let key = xxhash_rust::xxh3::xxh3_64(value);
        let Some(name) = self.learned.find(key, seconds(now), self.settings.idle.as_secs()) else {
            return Recalled::keyed(Preference::New(NewWhy::Expired), key);
        };
        let server = self.names.iter().position(|known| *known == name);
        let gone = Preference::Gone { session: key };
        Recalled::keyed(server.map_or(gone, |server| Preference::Pinned { server, session: key }), key)
    }

    fn recall_suffix(&self, suffixes: &[Box<str>], headers: &HeaderMap) -> Recalled {
        let Some(value) = self.application_cookie(headers) else { return Recalled::new(NewWhy::First) };
        let key = xxhash_rust::xxh3::xxh3_64(value);
        let Some(dot) = memchr::memrchr(b'.', value) else {
            return Recalled::keyed(Preference::New(NewWhy::Invalid), key);
        };
        let server = suffixes.iter().position(|suffix| suffix.as_bytes() == &value[dot + 1..]);
        let gone = Preference::Gone { session: key };
        Recalled::keyed(server.map_or(gone, |server| Preference::Pinned { server, session: key }), key)
    }

    /// Learns from an answer: whatever session cookie the application set, and the one that came with the request;
    /// that one not from a server that served it only for a moment.
    pub fn learn(&self, recalled: &Recalled, response: &HeaderMap, server: usize, for_a_moment: bool, now: Wall) {
        let Source::Learned { most } = self.settings.source else { return };
        let note = |key: u64| self.learned.note(key, self.names[server], seconds(now), most);
        match (recalled.key, recalled.preference) {
            (Some(key), Preference::New(_)) => self.learned.adopt(key, self.names[server], seconds(now), most),
            (Some(key), _) if !for_a_moment => note(key),
            _ => {}
        }
        for line in response.get_all(http::header::SET_COOKIE) {
            let pair = line.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
            if let Some((name, value)) = headers::split_cookie(pair)
                && name == self.settings.cookie.as_bytes()
                && !value.is_empty()
            {
                note(xxhash_rust::xxh3::xxh3_64(value));
            }
        }
    }

    /// What a value of the pin cookie says, whoever sends it; for people who ask.
    pub fn explain(&self, value: &[u8], now: Wall) -> Option<(Recalled, Pin)> {
        let (pin, key) = self.sealer.open(value).ok()?;
        (self.has_own_cookie() && pin.pool == self.pool[key]).then(|| (self.judge(pin, key, now), pin))
    }

    /// Reads the pin of a request. Over TLS only the prefixed name is believed: a plain one may have been planted by
    /// another host or over http. Of several cookies of the name, the newest one that opens counts.
    fn recall_pin(&self, headers: &HeaderMap, https: bool, now: Wall) -> Recalled {
        let name = if https { &*self.settings.cookie } else { self.settings.plain_cookie() };
        let mut found: Result<(Pin, usize), NewWhy> = Err(NewWhy::First);
        for (_, value) in headers::cookies(headers).filter(|(other, _)| *other == name.as_bytes()) {
            match (self.sealer.open(value), &found) {
                (Ok((pin, _)), Ok((newest, _))) if pin.seen <= newest.seen => {}
                (Ok(opened), _) => found = Ok(opened),
                (Err(why), Err(_)) => found = Err(why),
                (Err(_), Ok(_)) => {}
            }
        }
        match found {
            Ok((pin, key)) => self.judge(pin, key, now),
            Err(why) => Recalled::new(why),
        }
    }

    fn judge(&self, pin: Pin, key: usize, now: Wall) -> Recalled {
        if pin.pool != self.pool[key] {
            return Recalled::new(NewWhy::OtherPool);
        }
        let age = |since: u32| Duration::from_secs(now.seconds().saturating_sub(u64::from(since)));
        let absolute = self.settings.absolute;
        if age(pin.seen) > self.settings.idle || (!absolute.is_zero() && age(pin.issued) > absolute) {
            return Recalled::new(NewWhy::Expired);
        }
        let preference = match self.servers[key].get(&pin.server) {
            Some(server) => Preference::Pinned { server: *server, session: pin.session },
            None => Preference::Gone { session: pin.session },
        };
        Recalled { preference, pin: Some(pin), key: None, old_key: key != 0 }
    }

    /// Whether a cookie is to be sent, now that the server at position `server` has answered: not when the client's own
    /// is still right and not due. A tenth of `idle` may pass before a pin is written again.
    pub fn is_cookie_due(&self, recalled: &Recalled, server: usize, now: Wall) -> bool {
        let is_right = |pin: Pin| {
            let stays = recalled.preference == Preference::Pinned { server, session: pin.session };
            let due = u64::from(seconds(now).saturating_sub(pin.seen)) * 10 >= self.settings.idle.as_secs().max(1);
            stays && !due && !recalled.old_key
        };
        self.has_own_cookie() && !recalled.pin.is_some_and(is_right)
    }

    /// The cookie that pins a session to the server at position `server`.
    pub fn set_cookie(
        &self,
        recalled: &Recalled,
        server: usize,
        https: bool,
        now: Wall,
        random: &mut fastrand::Rng,
    ) -> Option<(HeaderValue, u64)> {
        let seconds = seconds(now);
        let pin = match recalled.pin {
            Some(pin) => Pin { server: self.sealing[server], pool: self.pool[0], seen: seconds, ..pin },
            None => Pin {
                session: random.u64(..),
                pool: self.pool[0],
                server: self.sealing[server],
                issued: seconds,
                seen: seconds,
            },
        };
        let line = cookie::set_cookie_value(&self.settings, &self.sealer.seal(&pin), https)?;
        Some((line, pin.session))
    }
}

#[cfg(test)]
mod tests;
