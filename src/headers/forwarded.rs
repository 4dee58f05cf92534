//! What is said of a request's way: read from peers that are trusted, written for servers.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::{
    CLIENT_CERT, CLIENT_CERT_CHAIN, FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PORT, X_FORWARDED_PROTO,
    X_REAL_IP, X_REQUEST_ID, remove_present,
};
use crate::names::words;

words! {
    /// Which header a trusted peer writes the client's address in.
    ForwardedBy {
        XForwardedFor = "x-forwarded-for",
        Forwarded = "forwarded",
    }
}

/// The request's scheme, host and port as the browser sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub https: bool,
    pub host: Box<str>,
    pub port: u16,
}

/// The client's address as the nearest trusted peer gives it: the right-most address that is not trusted itself.
pub fn client_address(
    headers: &HeaderMap,
    peer: IpAddr,
    forwarded_by: ForwardedBy,
    trusted: impl Fn(IpAddr) -> bool,
) -> IpAddr {
    if !trusted(peer) {
        return peer;
    }
    let mut client = peer;
    for hop in hops(headers, forwarded_by).into_iter().rev() {
        let Some(address) = hop else { break };
        client = address;
        if !trusted(address) {
            break;
        }
    }
    client
}

/// The addresses of the hops, the oldest first; an unreadable one ends the chain of what can be believed.
fn hops(headers: &HeaderMap, forwarded_by: ForwardedBy) -> Vec<Option<IpAddr>> {
    let name = match forwarded_by {
        ForwardedBy::XForwardedFor => X_FORWARDED_FOR,
        ForwardedBy::Forwarded => FORWARDED,
    };
    let lines = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("unreadable"));
    let elements = lines.flat_map(|line| line.split(','));
    match forwarded_by {
        ForwardedBy::XForwardedFor => elements.map(hop_address).collect(),
        ForwardedBy::Forwarded => {
            elements.map(|element| forwarded_parameter(element, "for").and_then(hop_address)).collect()
        }
    }
}

/// A parameter of one element of `Forwarded` (RFC 7239).
fn forwarded_parameter<'a>(element: &'a str, wanted: &str) -> Option<&'a str> {
    let pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let mut found = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case(wanted));
    found.next().map(|(_, value)| value.trim().trim_matches('"'))
}

/// An address, with or without a port, an IPv6 one with or without brackets.
fn hop_address(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let bare = text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(text, |(address, _)| address);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// The scheme that a trusted peer says the client used.
pub fn forwarded_scheme_is_https(headers: &HeaderMap, forwarded_by: ForwardedBy) -> Option<bool> {
    let scheme = match forwarded_by {
        ForwardedBy::XForwardedFor => last_element(headers, X_FORWARDED_PROTO)?,
        ForwardedBy::Forwarded => forwarded_parameter(last_element(headers, FORWARDED)?, "proto")?,
    };
    match scheme.to_ascii_lowercase().as_str() {
        "https" | "wss" => Some(true),
        "http" | "ws" => Some(false),
        _ => None,
    }
}

/// The host that a trusted peer says the client asked for.
pub fn forwarded_host(headers: &HeaderMap, forwarded_by: ForwardedBy) -> Option<&str> {
    match forwarded_by {
        ForwardedBy::XForwardedFor => last_element(headers, X_FORWARDED_HOST),
        ForwardedBy::Forwarded => forwarded_parameter(last_element(headers, FORWARDED)?, "host"),
    }
}

fn last_element(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    line.rsplit(',').next().map(str::trim).filter(|element| !element.is_empty())
}

/// Whom the requests of a connection ask for, and what servers are told of it: made once for as long as they name the
/// same host, not for each.
pub struct OwnHop {
    /// The host that was asked for, in lower case, without port: what routes match on.
    pub host: Box<str>,
    /// Host and port as the request wrote them: what the server sees as Host.
    pub authority: HeaderValue,
    /// Scheme, host and port as the browser sees them.
    pub origin: Origin,
    /// Host and port as the browser wrote them.
    external: HeaderValue,
    for_value: HeaderValue,
    forwarded: HeaderValue,
    port_value: HeaderValue,
}

impl OwnHop {
    /// What is said of a connection from `peer` whose requests name `authority`, and of which the browser says `external`.
    pub fn new(peer: IpAddr, host: Box<str>, authority: HeaderValue, origin: Origin, external: HeaderValue) -> Self {
        OwnHop {
            for_value: value_of(peer.to_string()),
            forwarded: value_of(forwarded_element(peer, &origin, &external)),
            port_value: HeaderValue::from(origin.port),
            host,
            authority,
            origin,
            external,
        }
    }

    /// Whether it is right for a request of the same connection.
    pub fn fits(&self, https: bool, authority: &str, external: &str) -> bool {
        self.origin.https == https && self.authority == authority && self.external == external
    }
}

/// What the server is told about the client.
pub struct Told<'a> {
    pub hop: &'a OwnHop,
    /// Whether what the request already says of earlier hops is kept.
    pub peer_is_trusted: bool,
    pub forwarded_by: ForwardedBy,
    pub request_id: &'a HeaderValue,
    pub http2: bool,
}

/// What clients may have sent that only the proxy says, apart from what is overwritten.
const ONLY_OURS: [HeaderName; 5] = [X_FORWARDED_FOR, FORWARDED, X_REAL_IP, CLIENT_CERT, CLIENT_CERT_CHAIN];

/// How many fields are written, `Host` and `TE` among them.
const OURS: usize = 9;

/// Writes the forwarding headers; what an untrusted client sent of these is dropped and made anew.
pub fn tell_server(headers: &mut HeaderMap, told: &Told<'_>) {
    let hop = told.hop;
    let earlier = earlier_hops(headers, told);
    remove_present(headers, &ONLY_OURS);
    headers.reserve(OURS);
    let (for_value, forwarded) = match earlier {
        None => (hop.for_value.clone(), hop.forwarded.clone()),
        Some(earlier) => (after(&earlier.for_line, &hop.for_value), after(&earlier.forwarded, &hop.forwarded)),
    };
    headers.insert(X_FORWARDED_FOR, for_value);
    headers.insert(FORWARDED, forwarded);
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if hop.origin.https { "https" } else { "http" }));
    headers.insert(X_FORWARDED_HOST, hop.external.clone());
    headers.insert(X_FORWARDED_PORT, hop.port_value.clone());
    headers.insert(X_REQUEST_ID, told.request_id.clone());
    let via = if told.http2 { "2 steadfast" } else { "1.1 steadfast" };
    headers.append(header::VIA, HeaderValue::from_static(via));
}

/// One more element of a list.
fn after(earlier: &str, own: &HeaderValue) -> HeaderValue {
    value_of(format!("{earlier}, {}", own.to_str().unwrap_or_default()))
}

/// Addresses, and hosts that were parsed: nothing that a header could not hold.
fn value_of(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// The client's certificate, as a structured field (RFC 9440).
pub fn tell_client_certificate(headers: &mut HeaderMap, der: &[u8]) {
    headers.insert(CLIENT_CERT, value_of(format!(":{}:", data_encoding::BASE64.encode(der))));
}

struct Earlier {
    for_line: String,
    forwarded: String,
}

/// The chain of earlier hops, in both notations, from the one header that the trusted peer writes.
fn earlier_hops(headers: &HeaderMap, told: &Told<'_>) -> Option<Earlier> {
    if !told.peer_is_trusted {
        return None;
    }
    let addresses: Vec<IpAddr> = hops(headers, told.forwarded_by).into_iter().flatten().collect();
    if addresses.is_empty() {
        return None;
    }
    let join = |text: &dyn Fn(IpAddr) -> String| addresses.iter().map(|hop| text(*hop)).collect::<Vec<_>>().join(", ");
    Some(Earlier {
        for_line: join(&|hop| hop.to_string()),
        forwarded: join(&|hop| format!("for={}", forwarded_node(hop))),
    })
}

fn forwarded_element(peer: IpAddr, origin: &Origin, authority: &HeaderValue) -> String {
    let mut element = String::with_capacity(64);
    let scheme = if origin.https { "https" } else { "http" };
    let host = authority.to_str().unwrap_or_default();
    let quoted = host.bytes().any(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')));
    let quote = if quoted { "\"" } else { "" };
    let _ = write!(element, "for={};host={quote}{host}{quote};proto={scheme}", forwarded_node(peer));
    element
}

/// RFC 7239: an IPv6 address stands in brackets and quotes.
fn forwarded_node(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    }
}

/// Whether a client's request id may be believed and passed on: short, and harmless in a log.
pub fn is_request_id(value: &HeaderValue) -> bool {
    let harmless =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'/' | b'=' | b'+');
    (1..=128).contains(&value.len()) && value.as_bytes().iter().all(harmless)
}
