//! Which server a session belongs to, and how we know.
//!
//! This module reads a preference out of a request and turns a verdict into a cookie. It does not choose a server
//! (`pool` does), and it never writes while choosing: the cookie is made from the verdict, after the server that it
//! names has answered.

mod cookie;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};

pub use cookie::{Pin, PinSealer, SEALED_CHARS};

use crate::clock::Wall;
use crate::headers;
use crate::keys::{Hasher, KeyRing};
use crate::names::{NewWhy, NoneWhy, words};

words! {
    /// The `SameSite` attribute of a pin cookie.
    SameSite {
        Strict = "Strict",
        Lax = "Lax",
        None = "None",
    }
}

/// The prefix that ties a cookie to one host over TLS (RFC 6265bis, section 4.1.3.2).
const HOST_PREFIX: &str = "__Host-";

/// The settings of a pool's pin cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickySettings {
    /// With its `__Host-` prefix; over plain http the prefix goes.
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
}

/// Affinity by our sealed cookie, for one pool of one snapshot.
pub struct Affinity {
    settings: StickySettings,
    sealer: Arc<PinSealer>,
    /// The pool's keyed hash under each ring key.
    pool: Vec<u64>,
    /// Servers by their keyed hash, under each ring key.
    servers: Vec<HashMap<u64, usize>>,
    /// The servers' hashes under the sealing key, by position.
    sealing: Vec<u64>,
}

/// A pin as it was found, kept until the cookie is decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recalled {
    pub preference: Preference,
    pin: Option<Pin>,
    /// Sealed with a key that is no longer the first.
    old_key: bool,
}

impl Recalled {
    /// An exchange that affinity does not look at.
    pub const fn none(why: NoneWhy) -> Self {
        Recalled { preference: Preference::None(why), pin: None, old_key: false }
    }

    /// The session id of the pin, if there was a valid one.
    pub fn session(&self) -> Option<u64> {
        self.pin.map(|pin| pin.session)
    }
}

impl Affinity {
    /// Affinity of the pool `pool` over these server names.
    pub fn new<'a>(
        settings: StickySettings,
        ring: &KeyRing,
        sealer: Arc<PinSealer>,
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

    /// Reads the pin of a request. Over TLS only the prefixed name is believed: a plain one may have been planted by
    /// another host or over http. Of several cookies of the name, the newest one that opens counts.
    pub fn recall(&self, headers: &HeaderMap, https: bool, now: Wall) -> Recalled {
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
            Err(why) => Recalled { preference: Preference::New(why), pin: None, old_key: false },
        }
    }

    fn judge(&self, pin: Pin, key: usize, now: Wall) -> Recalled {
        let fresh = |why| Recalled { preference: Preference::New(why), pin: None, old_key: false };
        if pin.pool != self.pool[key] {
            return fresh(NewWhy::OtherPool);
        }
        let age = |since: u32| Duration::from_secs(now.seconds().saturating_sub(u64::from(since)));
        let absolute = self.settings.absolute;
        if age(pin.seen) > self.settings.idle || (!absolute.is_zero() && age(pin.issued) > absolute) {
            return fresh(NewWhy::Expired);
        }
        let preference = match self.servers[key].get(&pin.server) {
            Some(server) => Preference::Pinned { server: *server, session: pin.session },
            None => Preference::Gone { session: pin.session },
        };
        Recalled { preference, pin: Some(pin), old_key: key != 0 }
    }

    /// The cookie to send, now that the server at position `server` has answered: none when the client's own is still
    /// right and not due. A tenth of `idle` may pass before a pin is written again.
    pub fn set_cookie(
        &self,
        recalled: &Recalled,
        server: usize,
        https: bool,
        now: Wall,
        random: &mut fastrand::Rng,
    ) -> Option<HeaderValue> {
        let seconds = u32::try_from(now.seconds()).unwrap_or(u32::MAX);
        let pin = match recalled.pin {
            Some(pin) => {
                let stays = recalled.preference == Preference::Pinned { server, session: pin.session };
                let due = u64::from(seconds.saturating_sub(pin.seen)) * 10 >= self.settings.idle.as_secs().max(1);
                if stays && !due && !recalled.old_key {
                    return None;
                }
                Pin { server: self.sealing[server], pool: self.pool[0], seen: seconds, ..pin }
            }
            None => Pin {
                session: random.u64(..),
                pool: self.pool[0],
                server: self.sealing[server],
                issued: seconds,
                seen: seconds,
            },
        };
        cookie::set_cookie_value(&self.settings, &self.sealer.seal(&pin), https)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::RingKey;

    const NOW: Wall = Wall(1_800_000_000_000_000);

    fn settings() -> StickySettings {
        StickySettings {
            cookie: StickySettings::default_cookie("shop").into(),
            idle: Duration::from_secs(3_600),
            absolute: Duration::ZERO,
            same_site: SameSite::Lax,
            partitioned: false,
            persistent: false,
        }
    }

    fn affinity(settings: StickySettings, keys: &[u8], pool: &str, servers: &[&str]) -> Affinity {
        let ring = KeyRing::new(keys.iter().map(|byte| RingKey::from_secret([*byte; 32])).collect());
        let sealer = Arc::new(PinSealer::new(&ring));
        Affinity::new(settings, &ring, sealer, pool, servers.iter().copied())
    }

    fn later(seconds: u64) -> Wall {
        Wall(NOW.0 + seconds * 1_000_000)
    }

    /// The request that a browser sends after this Set-Cookie.
    fn sent_back(set_cookie: &HeaderValue) -> HeaderMap {
        let pair = set_cookie.to_str().unwrap().split(';').next().unwrap();
        HeaderMap::from_iter([(http::header::COOKIE, HeaderValue::from_str(pair).unwrap())])
    }

    fn new_pin(affinity: &Affinity, server: usize) -> HeaderMap {
        let recalled = affinity.recall(&HeaderMap::new(), true, NOW);
        assert_eq!(recalled.preference, Preference::New(NewWhy::First));
        sent_back(&affinity.set_cookie(&recalled, server, true, NOW, &mut fastrand::Rng::with_seed(1)).unwrap())
    }

    fn rng() -> fastrand::Rng {
        fastrand::Rng::with_seed(2)
    }

    #[test]
    fn a_pin_comes_back_and_is_written_again_after_a_tenth_of_idle() {
        let shop = affinity(settings(), &[1], "shop", &["a", "b"]);
        let request = new_pin(&shop, 1);
        let recalled = shop.recall(&request, true, later(359));
        assert!(matches!(recalled.preference, Preference::Pinned { server: 1, .. }));
        assert_eq!(shop.set_cookie(&recalled, 1, true, later(359), &mut rng()), None);
        let again = shop.set_cookie(&recalled, 1, true, later(360), &mut rng()).expect("a tenth has passed");
        let slid = shop.recall(&sent_back(&again), true, later(360 + 3_600));
        assert!(matches!(slid.preference, Preference::Pinned { server: 1, .. }), "idle slides");
        assert_eq!(slid.session(), recalled.session(), "the session keeps its id");
        assert_eq!(shop.recall(&request, true, later(3_601)).preference, Preference::New(NewWhy::Expired));
    }

    #[test]
    fn a_move_names_the_server_that_answered() {
        let shop = affinity(settings(), &[1], "shop", &["a", "b"]);
        let recalled = shop.recall(&new_pin(&shop, 0), true, NOW);
        let moved = shop.set_cookie(&recalled, 1, true, NOW, &mut rng()).unwrap();
        assert!(matches!(shop.recall(&sent_back(&moved), true, NOW).preference, Preference::Pinned { server: 1, .. }));
    }

    #[test]
    fn absolute_ends_a_pin_that_idle_keeps_alive() {
        let shop = affinity(StickySettings { absolute: Duration::from_secs(100), ..settings() }, &[1], "shop", &["a"]);
        assert_eq!(shop.recall(&new_pin(&shop, 0), true, later(101)).preference, Preference::New(NewWhy::Expired));
    }

    #[test]
    fn names_carry_the_pin_not_positions_and_proxies_agree_by_configuration_alone() {
        let request = new_pin(&affinity(settings(), &[1], "shop", &["a", "b"]), 1);
        let elsewhere = affinity(settings(), &[1], "shop", &["b", "c", "a"]);
        assert!(matches!(elsewhere.recall(&request, true, NOW).preference, Preference::Pinned { server: 0, .. }));
        let without = affinity(settings(), &[1], "shop", &["a", "c"]);
        assert!(matches!(without.recall(&request, true, NOW).preference, Preference::Gone { .. }));
    }

    #[test]
    fn a_ring_rotates_in_two_steps() {
        let old = affinity(settings(), &[1], "shop", &["a", "b"]);
        let request = new_pin(&old, 1);
        let appended = affinity(settings(), &[1, 2], "shop", &["a", "b"]);
        let moved = affinity(settings(), &[2, 1], "shop", &["a", "b"]);
        for ring in [&appended, &moved] {
            assert!(matches!(ring.recall(&request, true, NOW).preference, Preference::Pinned { server: 1, .. }));
        }
        let rewritten = moved.set_cookie(&moved.recall(&request, true, NOW), 1, true, NOW, &mut rng());
        let request = sent_back(&rewritten.expect("a pin under an old key is sealed anew"));
        assert!(matches!(appended.recall(&request, true, NOW).preference, Preference::Pinned { server: 1, .. }));
        assert_eq!(old.recall(&request, true, NOW).preference, Preference::New(NewWhy::UnknownKey));
    }

    #[test]
    fn what_is_not_ours_is_a_new_pick_with_its_reason() {
        let shop = affinity(settings(), &[1], "shop", &["a"]);
        let blog = affinity(settings(), &[1], "blog", &["a"]);
        assert_eq!(shop.recall(&new_pin(&blog, 0), true, NOW).preference, Preference::New(NewWhy::OtherPool));
        for value in ["", "x", "AAAA", &"A".repeat(SEALED_CHARS), &"A".repeat(5_000), "%%%"] {
            let line = format!("{}={value}", settings().cookie);
            let request = HeaderMap::from_iter([(http::header::COOKIE, line.parse().unwrap())]);
            let preference = shop.recall(&request, true, NOW).preference;
            let wanted = if value.len() == SEALED_CHARS { NewWhy::UnknownKey } else { NewWhy::Invalid };
            assert_eq!(preference, Preference::New(wanted), "{value}");
        }
    }

    #[test]
    fn over_tls_only_the_prefixed_name_is_believed_and_the_newest_of_two_counts() {
        let shop = affinity(settings(), &[1], "shop", &["a", "b"]);
        let pair = |headers: &HeaderMap| headers[http::header::COOKIE].to_str().unwrap().to_owned();
        let old = pair(&new_pin(&shop, 0));
        let recalled = shop.recall(&HeaderMap::new(), true, NOW);
        let newer = shop.set_cookie(&recalled, 1, true, later(10), &mut rng()).unwrap();
        let newer = pair(&sent_back(&newer));
        for line in [format!("{old}; {newer}"), format!("{newer}; {old}")] {
            let request = HeaderMap::from_iter([(http::header::COOKIE, line.parse().unwrap())]);
            assert!(matches!(shop.recall(&request, true, later(10)).preference, Preference::Pinned { server: 1, .. }));
        }
        let plain = old.replace("__Host-", "");
        let request = HeaderMap::from_iter([(http::header::COOKIE, plain.parse().unwrap())]);
        assert_eq!(shop.recall(&request, true, NOW).preference, Preference::New(NewWhy::First));
        assert!(matches!(shop.recall(&request, false, NOW).preference, Preference::Pinned { server: 0, .. }));
    }

    #[test]
    fn attributes_follow_the_external_scheme() {
        let shop = affinity(settings(), &[1], "shop", &["a"]);
        let recalled = shop.recall(&HeaderMap::new(), true, NOW);
        let attributes = |https: bool, affinity: &Affinity| {
            let value = affinity.set_cookie(&recalled, 0, https, NOW, &mut rng()).unwrap();
            let (pair, attributes) =
                value.to_str().unwrap().split_once("; ").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
            (pair.split('=').next().unwrap().to_owned(), attributes)
        };
        let name = StickySettings::default_cookie("shop");
        assert_eq!(attributes(true, &shop), (name.clone(), "HttpOnly; SameSite=Lax; Secure; Path=/".to_owned()));
        assert_eq!(
            attributes(false, &shop),
            (name.replace("__Host-", ""), "HttpOnly; SameSite=Lax; Path=/".to_owned())
        );
        let framed = StickySettings { same_site: SameSite::None, partitioned: true, persistent: true, ..settings() };
        let attributes = attributes(true, &affinity(framed, &[1], "shop", &["a"])).1;
        for attribute in ["SameSite=None", "Partitioned", "Max-Age=3600", "Secure"] {
            assert!(attributes.contains(attribute), "{attributes}");
        }
    }
}
