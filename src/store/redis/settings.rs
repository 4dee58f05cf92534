//! Where the nodes are, and how they are spoken to.

use std::fmt;
use std::time::Duration;

use zeroize::Zeroize;

/// The port of Redis, where an address names none.
const PORT: u16 = 6379;
/// The port of a sentinel, where an address names none.
const SENTINEL_PORT: u16 = 26379;
/// The time for a connection and for an ask, where nothing else is set.
const TIMEOUT: Duration = Duration::from_millis(250);

/// Where the nodes are, and how they are spoken to.
///
/// The same holds for all of them, sentinels among them; a sentinel that has no use for username and password is spoken to
/// without. With TLS, the name that a node's certificate has to bear is the host of the address that is connected to: as
/// it is written here, or as a sentinel or another node gave it.
#[derive(Clone, PartialEq)]
pub struct RedisSettings {
    pub place: Place,
    pub tls: bool,
    /// Authorities, in PEM form; none: the system's.
    pub ca_pem: Option<Vec<u8>>,
    pub username: Option<String>,
    pub password: Option<String>,
    /// A cluster has the first one only.
    pub database: i64,
    /// How long a connection may take, with TLS and login, and with asking sentinels where it leads.
    pub connect: Duration,
    /// How long an ask may take, with the wait for a connection. One that has to last may take 50 ms more.
    pub timeout: Duration,
}

/// What the nodes are to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// There is one, or one name that leads to the right one.
    One(Address),
    /// One of them is the primary: these sentinels know which, by the name of the whole.
    Sentinel { master: String, nodes: Vec<Address> },
    /// Each has some of the slots. These are asked first.
    Cluster(Vec<Address>),
}

/// Where a node or a sentinel listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

/// Why there can be no such store.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RedisSettingsError {
    #[error("it begins with `redis://`, or with `rediss://` for TLS")]
    Scheme,
    #[error("credentials do not belong in it: use `username` and `password`")]
    Credentials,
    #[error("it names no host: it is written `redis://host:6379` or `redis://[::1]:6379`")]
    Host,
    #[error("`{0}` is no port")]
    Port(String),
    #[error("`{0}` is no number of a database: `/0` is the first one")]
    Database(String),
    #[error("`{0}` is no address of a node: it is written `host:port` or `[::1]:port`")]
    Node(String),
    #[error("it names no node: one address is needed at least, and several are better")]
    NoNode,
    #[error("`{0}` cannot be the name of a master: sentinels use letters, digits, and `.`, `-` and `_`")]
    Master(String),
    #[error("`{0}` cannot be the name on a certificate")]
    Name(String),
    #[error("there is no certificate in the text of its authorities")]
    NoAuthority,
    #[error("TLS to it cannot be set up: {0}")]
    Tls(String),
}

impl RedisSettings {
    /// Reads `redis://host:port/database`, or `rediss://` for TLS; port and database may be left out.
    pub fn parse_url(url: &str) -> Result<Self, RedisSettingsError> {
        let (scheme, rest) = url.split_once("://").ok_or(RedisSettingsError::Scheme)?;
        let tls = match scheme {
            "redis" => false,
            "rediss" => true,
            _ => return Err(RedisSettingsError::Scheme),
        };
        // A password may hold any character, so this comes before anything that an error would quote.
        if rest.contains('@') {
            return Err(RedisSettingsError::Credentials);
        }
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let address = parse_authority(authority, PORT)?;
        let database = match database {
            "" => 0,
            number => parse_number(number).ok_or_else(|| RedisSettingsError::Database(number.to_owned()))?,
        };
        let mut settings = Self::at(Place::One(address));
        (settings.tls, settings.database) = (tls, database);
        Ok(settings)
    }

    /// The primary of what sentinels watch under the name `master`. `nodes` are addresses of sentinels, as `host:port`; the
    /// port may be left out.
    pub fn sentinel(master: &str, nodes: &[&str]) -> Result<Self, RedisSettingsError> {
        let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if master.is_empty() || !master.bytes().all(is_fine) {
            return Err(RedisSettingsError::Master(master.to_owned()));
        }
        Ok(Self::at(Place::Sentinel { master: master.to_owned(), nodes: parse_nodes(nodes, SENTINEL_PORT)? }))
    }

    /// A cluster. `nodes` are addresses of some of its nodes, as `host:port`; the port may be left out.
    pub fn cluster(nodes: &[&str]) -> Result<Self, RedisSettingsError> {
        Ok(Self::at(Place::Cluster(parse_nodes(nodes, PORT)?)))
    }

    fn at(place: Place) -> Self {
        RedisSettings {
            place,
            tls: false,
            ca_pem: None,
            username: None,
            password: None,
            database: 0,
            connect: TIMEOUT,
            timeout: TIMEOUT,
        }
    }
}

fn parse_nodes(nodes: &[&str], usual_port: u16) -> Result<Vec<Address>, RedisSettingsError> {
    if nodes.is_empty() {
        return Err(RedisSettingsError::NoNode);
    }
    nodes.iter().map(|text| parse_node(text, usual_port)).collect()
}

fn parse_node(text: &str, usual_port: u16) -> Result<Address, RedisSettingsError> {
    // As in a URL: a password is not to be quoted.
    if text.contains('@') {
        return Err(RedisSettingsError::Credentials);
    }
    let no_address = || RedisSettingsError::Node(text.to_owned());
    if text.contains('/') {
        return Err(no_address());
    }
    parse_authority(text, usual_port).map_err(|error| match error {
        RedisSettingsError::Host => no_address(),
        other => other,
    })
}

/// Reads `host:port`, `host`, `[::1]:port` and `[::1]`.
fn parse_authority(authority: &str, usual_port: u16) -> Result<Address, RedisSettingsError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']').ok_or(RedisSettingsError::Host)?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_bad = |character: char| character.is_whitespace() || matches!(character, '?' | '#' | '[' | ']');
    if host.is_empty() || host.contains(is_bad) {
        return Err(RedisSettingsError::Host);
    }
    let host = host.to_owned();
    if port.is_empty() {
        return Ok(Address { host, port: usual_port });
    }
    let number = port.strip_prefix(':').and_then(parse_number).filter(|port| *port != 0);
    let port = number.ok_or_else(|| RedisSettingsError::Port(port.trim_start_matches(':').to_owned()))?;
    Ok(Address { host, port })
}

/// A number of digits only: Rust's own parser takes a sign too.
fn parse_number<N: std::str::FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

impl Address {
    /// An address that another node gave, which may be anything.
    pub(super) fn told(host: &str, port: i64) -> Option<Self> {
        let is_bad = |character: char| character.is_whitespace() || character.is_control();
        let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
        let is_fine = !host.is_empty() && host.len() <= LONGEST_HOST && !host.contains(is_bad);
        is_fine.then(|| Address { host: host.to_owned(), port })
    }
}

/// As in the name system (RFC 1035, section 2.3.4).
const LONGEST_HOST: usize = 255;

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { host, port } = self;
        if host.contains(':') { write!(out, "[{host}]:{port}") } else { write!(out, "{host}:{port}") }
    }
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("RedisSettings")
            .field("place", &self.place)
            .field("tls", &self.tls)
            .field("ca_pem", &self.ca_pem.as_ref().map(Vec::len))
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "(hidden)"))
            .field("database", &self.database)
            .field("connect", &self.connect)
            .field("timeout", &self.timeout)
            .finish()
    }
}

impl Drop for RedisSettings {
    fn drop(&mut self) {
        self.password.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    #[test]
    fn an_address_has_a_host_and_perhaps_a_port_and_a_database() {
        let parse = |url: &str| {
            let settings = RedisSettings::parse_url(url).unwrap();
            (settings.place.clone(), settings.tls, settings.database)
        };
        let one = |host: &str, port: u16| Place::One(address(host, port));
        assert_eq!(parse("redis://cache"), (one("cache", 6379), false, 0));
        assert_eq!(parse("redis://cache/"), (one("cache", 6379), false, 0));
        assert_eq!(parse("rediss://cache.internal:6380/3"), (one("cache.internal", 6380), true, 3));
        assert_eq!(parse("redis://[::1]"), (one("::1", 6379), false, 0));
        assert_eq!(parse("rediss://[::1]:7/1"), (one("::1", 7), true, 1));
    }

    #[test]
    fn what_is_no_address_is_explained() {
        use RedisSettingsError::{Credentials, Database, Host, Port, Scheme};
        let port = |text: &str| Port(text.to_owned());
        let database = |text: &str| Database(text.to_owned());
        for (url, expected) in [
            ("cache:6379", Scheme),
            ("http://cache", Scheme),
            ("redis+unix:///run/redis", Scheme),
            ("redis://", Host),
            ("redis://:6379", Host),
            ("redis:///0", Host),
            ("redis://[::1", Host),
            ("redis://cache?db=1", Host),
            ("redis://:secret@cache", Credentials),
            ("redis://user:se/cret@cache", Credentials),
            ("redis://cache:", port("")),
            ("redis://cache:0", port("0")),
            ("redis://cache:+1", port("+1")),
            ("redis://cache:65536", port("65536")),
            ("redis://::1:6379", Host),
            ("redis://cache/one", database("one")),
            ("redis://cache/-1", database("-1")),
            ("redis://cache/1?protocol=3", database("1?protocol=3")),
        ] {
            assert_eq!(RedisSettings::parse_url(url), Err(expected), "{url}");
        }
        assert!(Credentials.to_string().contains("`username` and `password`"));
    }

    #[test]
    fn sentinels_and_clusters_are_lists_of_addresses() {
        let settings = RedisSettings::sentinel("my-master", &["10.0.0.1", "[::1]:7", "watch.internal:26380"]).unwrap();
        let nodes = vec![address("10.0.0.1", 26379), address("::1", 7), address("watch.internal", 26380)];
        assert_eq!(settings.place, Place::Sentinel { master: "my-master".to_owned(), nodes });
        let settings = RedisSettings::cluster(&["10.0.0.1", "10.0.0.2:7000"]).unwrap();
        assert_eq!(settings.place, Place::Cluster(vec![address("10.0.0.1", 6379), address("10.0.0.2", 7000)]));
        assert_eq!((settings.tls, settings.database), (false, 0));
    }

    #[test]
    fn what_is_no_list_of_addresses_is_explained() {
        use RedisSettingsError::{Credentials, Master, NoNode, Node, Port};
        let node = |text: &str| Node(text.to_owned());
        for (text, expected) in [
            ("", node("")),
            (":7000", node(":7000")),
            ("redis://cache:7000", node("redis://cache:7000")),
            ("[::1", node("[::1")),
            ("user:secret@cache:7000", Credentials),
            ("cache:0", Port("0".to_owned())),
        ] {
            assert_eq!(RedisSettings::cluster(&["first:7000", text]), Err(expected), "{text}");
        }
        assert_eq!(RedisSettings::cluster(&[]), Err(NoNode));
        assert_eq!(RedisSettings::sentinel("main", &[]), Err(NoNode));
        for name in ["", "two words", "main\r\nSHUTDOWN"] {
            assert_eq!(RedisSettings::sentinel(name, &["10.0.0.1"]), Err(Master(name.to_owned())));
        }
    }

    #[test]
    fn what_another_node_calls_an_address_is_one_or_nothing() {
        assert_eq!(Address::told("10.0.0.1", 7000), Some(address("10.0.0.1", 7000)));
        let long = "a".repeat(LONGEST_HOST + 1);
        for (host, port) in [("", 1), ("a b", 1), ("a\n", 1), (long.as_str(), 1), ("a", 0), ("a", -1), ("a", 65_536)] {
            assert_eq!(Address::told(host, port), None, "{host} {port}");
        }
    }

    #[test]
    fn an_address_is_printed_as_it_is_written() {
        assert_eq!(address("cache", 7).to_string(), "cache:7");
        assert_eq!(address("::1", 7).to_string(), "[::1]:7");
    }

    #[test]
    fn a_password_is_not_printed() {
        let mut settings = RedisSettings::parse_url("redis://cache").unwrap();
        settings.password = Some("hunter2".to_owned());
        let printed = format!("{settings:?}");
        assert!(!printed.contains("hunter2") && printed.contains("cache"), "{printed}");
    }
}
