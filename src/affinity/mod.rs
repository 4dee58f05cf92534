//! Which server a session belongs to, and how we know.
//!
//! This module reads a preference out of a request and turns a verdict into a cookie. It does not choose a server
//! (`pool` does), and it never writes while choosing: the cookie is made from the verdict, after the server that it
//! names has answered.

mod cookie;
mod learned;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

pub use cookie::{Pin, PinSealer, SEALED_CHARS};
pub use learned::LearnedTable;

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
        if !self.has_own_cookie() {
            return None;
        }
        let seconds = seconds(now);
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
            source: Source::Cookie,
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
        Affinity::new(settings, &ring, sealer, Arc::new(LearnedTable::new(1)), pool, servers.iter().copied())
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
        let recalled = affinity.recall_pin(&HeaderMap::new(), true, NOW);
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
        let recalled = shop.recall_pin(&request, true, later(359));
        assert!(matches!(recalled.preference, Preference::Pinned { server: 1, .. }));
        assert_eq!(shop.set_cookie(&recalled, 1, true, later(359), &mut rng()), None);
        let again = shop.set_cookie(&recalled, 1, true, later(360), &mut rng()).expect("a tenth has passed");
        let slid = shop.recall_pin(&sent_back(&again), true, later(360 + 3_600));
        assert!(matches!(slid.preference, Preference::Pinned { server: 1, .. }), "idle slides");
        assert_eq!(slid.session(), recalled.session(), "the session keeps its id");
        assert_eq!(shop.recall_pin(&request, true, later(3_601)).preference, Preference::New(NewWhy::Expired));
    }

    #[test]
    fn a_move_names_the_server_that_answered() {
        let shop = affinity(settings(), &[1], "shop", &["a", "b"]);
        let recalled = shop.recall_pin(&new_pin(&shop, 0), true, NOW);
        let moved = shop.set_cookie(&recalled, 1, true, NOW, &mut rng()).unwrap();
        assert!(matches!(
            shop.recall_pin(&sent_back(&moved), true, NOW).preference,
            Preference::Pinned { server: 1, .. }
        ));
    }

    #[test]
    fn absolute_ends_a_pin_that_idle_keeps_alive() {
        let shop = affinity(StickySettings { absolute: Duration::from_secs(100), ..settings() }, &[1], "shop", &["a"]);
        assert_eq!(shop.recall_pin(&new_pin(&shop, 0), true, later(101)).preference, Preference::New(NewWhy::Expired));
    }

    #[test]
    fn names_carry_the_pin_not_positions_and_proxies_agree_by_configuration_alone() {
        let request = new_pin(&affinity(settings(), &[1], "shop", &["a", "b"]), 1);
        let elsewhere = affinity(settings(), &[1], "shop", &["b", "c", "a"]);
        assert!(matches!(elsewhere.recall_pin(&request, true, NOW).preference, Preference::Pinned { server: 0, .. }));
        let without = affinity(settings(), &[1], "shop", &["a", "c"]);
        assert!(matches!(without.recall_pin(&request, true, NOW).preference, Preference::Gone { .. }));
    }

    #[test]
    fn a_ring_rotates_in_two_steps() {
        let old = affinity(settings(), &[1], "shop", &["a", "b"]);
        let request = new_pin(&old, 1);
        let appended = affinity(settings(), &[1, 2], "shop", &["a", "b"]);
        let moved = affinity(settings(), &[2, 1], "shop", &["a", "b"]);
        for ring in [&appended, &moved] {
            assert!(matches!(ring.recall_pin(&request, true, NOW).preference, Preference::Pinned { server: 1, .. }));
        }
        let rewritten = moved.set_cookie(&moved.recall_pin(&request, true, NOW), 1, true, NOW, &mut rng());
        let request = sent_back(&rewritten.expect("a pin under an old key is sealed anew"));
        assert!(matches!(appended.recall_pin(&request, true, NOW).preference, Preference::Pinned { server: 1, .. }));
        assert_eq!(old.recall_pin(&request, true, NOW).preference, Preference::New(NewWhy::UnknownKey));
    }

    #[test]
    fn what_is_not_ours_is_a_new_pick_with_its_reason() {
        let shop = affinity(settings(), &[1], "shop", &["a"]);
        let blog = affinity(settings(), &[1], "blog", &["a"]);
        assert_eq!(shop.recall_pin(&new_pin(&blog, 0), true, NOW).preference, Preference::New(NewWhy::OtherPool));
        for value in ["", "x", "AAAA", &"A".repeat(SEALED_CHARS), &"A".repeat(5_000), "%%%"] {
            let line = format!("{}={value}", settings().cookie);
            let request = HeaderMap::from_iter([(http::header::COOKIE, line.parse().unwrap())]);
            let preference = shop.recall_pin(&request, true, NOW).preference;
            let wanted = if value.len() == SEALED_CHARS { NewWhy::UnknownKey } else { NewWhy::Invalid };
            assert_eq!(preference, Preference::New(wanted), "{value}");
        }
    }

    #[test]
    fn over_tls_only_the_prefixed_name_is_believed_and_the_newest_of_two_counts() {
        let shop = affinity(settings(), &[1], "shop", &["a", "b"]);
        let pair = |headers: &HeaderMap| headers[http::header::COOKIE].to_str().unwrap().to_owned();
        let old = pair(&new_pin(&shop, 0));
        let recalled = shop.recall_pin(&HeaderMap::new(), true, NOW);
        let newer = shop.set_cookie(&recalled, 1, true, later(10), &mut rng()).unwrap();
        let newer = pair(&sent_back(&newer));
        for line in [format!("{old}; {newer}"), format!("{newer}; {old}")] {
            let request = HeaderMap::from_iter([(http::header::COOKIE, line.parse().unwrap())]);
            assert!(matches!(
                shop.recall_pin(&request, true, later(10)).preference,
                Preference::Pinned { server: 1, .. }
            ));
        }
        let plain = old.replace("__Host-", "");
        let request = HeaderMap::from_iter([(http::header::COOKIE, plain.parse().unwrap())]);
        assert_eq!(shop.recall_pin(&request, true, NOW).preference, Preference::New(NewWhy::First));
        assert!(matches!(shop.recall_pin(&request, false, NOW).preference, Preference::Pinned { server: 0, .. }));
    }

    #[test]
    fn attributes_follow_the_external_scheme() {
        let shop = affinity(settings(), &[1], "shop", &["a"]);
        let recalled = shop.recall_pin(&HeaderMap::new(), true, NOW);
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

    fn asked<'a>(headers: &'a HeaderMap, client: &str, now: Wall) -> Asked<'a> {
        Asked { headers, https: true, client: client.parse().unwrap(), now }
    }

    fn cookie(line: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::header::COOKIE, line.parse().unwrap())])
    }

    #[test]
    fn a_suffix_names_its_server() {
        let suffixes = vec!["app-1".into(), "app-2".into()];
        let settings =
            StickySettings { source: Source::Suffix { suffixes }, cookie: "JSESSIONID".into(), ..settings() };
        let shop = affinity(settings, &[1], "shop", &["a", "b"]);
        let preference = |line: &str| shop.recall(&asked(&cookie(line), "1.2.3.4", NOW)).preference;
        assert!(matches!(preference("JSESSIONID=abc.def.app-2"), Preference::Pinned { server: 1, .. }));
        assert!(matches!(preference("JSESSIONID=abc.app-9"), Preference::Gone { .. }));
        assert_eq!(preference("JSESSIONID=abc"), Preference::New(NewWhy::Invalid));
        assert_eq!(preference("other=1"), Preference::New(NewWhy::First));
        assert!(
            shop.set_cookie(&Recalled::new(NewWhy::First), 0, true, NOW, &mut rng()).is_none(),
            "it is not ours to write"
        );
    }

    #[test]
    fn the_applications_own_cookie_is_learned_kept_and_re_learned() {
        let settings = StickySettings { source: Source::Learned { most: 100 }, cookie: "app".into(), ..settings() };
        let shop = affinity(settings.clone(), &[1], "shop", &["a", "b"]);
        let first = shop.recall(&asked(&HeaderMap::new(), "1.2.3.4", NOW));
        assert_eq!(first.preference, Preference::New(NewWhy::First));
        let answer = HeaderMap::from_iter([(http::header::SET_COOKIE, "app=xyz; Path=/; HttpOnly".parse().unwrap())]);
        shop.learn(&first, &answer, 1, false, NOW);
        let request = cookie("a=1; app=xyz");
        let known = shop.recall(&asked(&request, "1.2.3.4", NOW));
        assert!(matches!(known.preference, Preference::Pinned { server: 1, .. }));
        shop.learn(&known, &HeaderMap::new(), 0, true, NOW);
        assert!(matches!(
            shop.recall(&asked(&request, "1.2.3.4", NOW)).preference,
            Preference::Pinned { server: 1, .. }
        ));
        shop.learn(&known, &HeaderMap::new(), 0, false, later(10));
        assert!(
            matches!(shop.recall(&asked(&request, "1.2.3.4", NOW)).preference, Preference::Pinned { server: 0, .. }),
            "moved"
        );
        assert_eq!(shop.recall(&asked(&request, "1.2.3.4", later(3_700))).preference, Preference::New(NewWhy::Expired));
        assert_eq!(
            shop.recall(&asked(&cookie("app=forged"), "1.2.3.4", NOW)).preference,
            Preference::New(NewWhy::Expired)
        );
    }

    #[test]
    fn headers_and_addresses_are_hashed_and_their_absence_is_no_affinity() {
        let by_header = StickySettings { source: Source::Header("x-user".parse().unwrap()), ..settings() };
        let shop = affinity(by_header, &[1], "shop", &["a"]);
        let ada = HeaderMap::from_iter([("x-user".parse::<HeaderName>().unwrap(), "ada".parse().unwrap())]);
        assert!(matches!(shop.recall(&asked(&ada, "1.2.3.4", NOW)).preference, Preference::Hashed { .. }));
        let none = HeaderMap::new();
        assert_eq!(shop.recall(&asked(&none, "1.2.3.4", NOW)).preference, Preference::None(NoneWhy::NotSticky));
        let by_address = StickySettings { source: Source::Address, ..settings() };
        let preference = |keys: &[u8], client: &str| {
            affinity(by_address.clone(), keys, "shop", &["a"]).recall(&asked(&none, client, NOW)).preference
        };
        assert_eq!(preference(&[1], "1.2.3.4"), preference(&[2], "1.2.3.4"), "proxies agree whatever their keys");
        assert_ne!(preference(&[1], "1.2.3.4"), preference(&[1], "1.2.3.5"));
    }
}
