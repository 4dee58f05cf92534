//! Header hygiene: what is taken away, checked and added between the two sides (RFC 9110, section 7.6).
//!
//! Removals that a client's `Connection` header asks for happen first, before anything of ours is added, so a client
//! cannot name our headers away. What a client says about itself (`X-Forwarded-*`, `Forwarded`, `X-Request-Id`) is
//! believed only from a trusted peer. This module decides on values that it is given; it knows no connection.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::names::words;

/// `X-Forwarded-For` and its kin.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
pub const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");
/// CGI programs read it as a setting of their own ("httpoxy").
pub const PROXY: HeaderName = HeaderName::from_static("proxy");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

words! {
    /// Which header a trusted peer writes the client's address in.
    ForwardedBy {
        XForwardedFor = "x-forwarded-for",
        Forwarded = "forwarded",
    }
}

words! {
    /// What happens to legal header names with bytes outside `A-Z a-z 0-9 -`: some servers read `_` and `.` as `-`,
    /// and would take `X_Forwarded_For` for ours.
    UnsafeNames {
        Strip = "strip",
        Reject = "reject",
        Pass = "pass",
    }
}

/// Removes what belongs to one connection only: the fixed list, and what `Connection` names. A length beside a transfer
/// coding goes too: it is the coding that counts (RFC 9112, section 6.3).
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    if headers.contains_key(header::CONNECTION) {
        for name in connection_options(headers) {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::TE] {
        headers.remove(name);
    }
}

/// The header names that `Connection` lists. `close` and `keep-alive` are options, not headers, and do no harm here;
/// names that end-to-end framing depends on stay, whatever the client says.
fn connection_options(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse::<HeaderName>().ok());
    names.filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH && *name != header::COOKIE).collect()
}

/// The protocol that a request wants to switch to, if `Connection` names `upgrade` too (RFC 9110, section 7.8).
/// `h2c` is not passed on: a server that accepted it would speak past us.
pub fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let upgrade = headers.get(header::UPGRADE)?;
    let asked = connection_options(headers).contains(&header::UPGRADE);
    let h2c = upgrade.as_bytes().split(|byte| *byte == b',').any(|name| name.trim_ascii().eq_ignore_ascii_case(b"h2c"));
    (asked && !h2c).then(|| upgrade.clone())
}

/// Whether the client takes trailers: the one value of `TE` that may be passed on, and gRPC needs it.
pub fn accepts_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).iter();
    let mut codings = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// Whether a request's `Transfer-Encoding` is none or exactly `chunked`. Anything else is decoded differently by
/// different servers, which is how requests are smuggled.
pub fn transfer_coding_is_plain(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (values.next(), values.next()) {
        (None, _) => true,
        (Some(value), None) => value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"),
        _ => false,
    }
}

/// Names with bytes that servers alias to others; empty for nearly every request, without an allocation.
pub fn unsafe_names(headers: &HeaderMap) -> Vec<HeaderName> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    headers.keys().filter(|name| !name.as_str().bytes().all(plain)).cloned().collect()
}

/// Joins split Cookie lines with `; `, as HTTP/1.1 wants them (RFC 9113, section 8.2.3), leaving out the cookies for
/// which `ours` says yes. Returns nothing when there is nothing to change.
pub fn rewritten_cookies(headers: &HeaderMap, ours: impl Fn(&[u8]) -> bool) -> Option<Option<HeaderValue>> {
    let mut lines = headers.get_all(header::COOKIE).iter();
    let first = lines.next()?;
    let several = lines.next().is_some();
    let has_ours = cookies(headers).any(|(name, _)| ours(name));
    if !several && !has_ours {
        return None;
    }
    let mut joined = Vec::with_capacity(first.len());
    for line in headers.get_all(header::COOKIE) {
        for pair in line.as_bytes().split(|byte| *byte == b';') {
            let pair = trim_blank(pair);
            if pair.is_empty() || ours(split_cookie(pair).0) {
                continue;
            }
            if !joined.is_empty() {
                joined.extend_from_slice(b"; ");
            }
            joined.extend_from_slice(pair);
        }
    }
    Some(if joined.is_empty() { None } else { HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)).ok() })
}

/// Every cookie of a request, over all its Cookie lines: name and value, exact bytes.
pub fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let lines = headers.get_all(header::COOKIE).iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';')).map(|pair| split_cookie(trim_blank(pair)))
}

fn split_cookie(pair: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'=', pair) {
        Some(at) => (trim_blank(&pair[..at]), trim_blank(&pair[at + 1..])),
        None => (&[], pair),
    }
}

/// Only SP and HTAB are white space in a Cookie line.
fn trim_blank(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// The request's scheme, host and port as the browser sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    pub https: bool,
    pub host: Cow<'a, str>,
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

/// What the server is told about the client.
pub struct Told<'a> {
    /// The address of the connection that the request came in on.
    pub peer: IpAddr,
    /// Whether what the request already says of earlier hops is kept.
    pub peer_is_trusted: bool,
    pub forwarded_by: ForwardedBy,
    pub origin: &'a Origin<'a>,
    /// The authority that the client named, with its port.
    pub authority: &'a HeaderValue,
    pub request_id: &'a HeaderValue,
    pub http2: bool,
}

/// Writes the forwarding headers; what an untrusted client sent of these is dropped and made anew.
pub fn tell_server(headers: &mut HeaderMap, told: &Told<'_>) {
    let earlier = earlier_hops(headers, told);
    for name in [X_FORWARDED_FOR, FORWARDED, X_REAL_IP, CLIENT_CERT, CLIENT_CERT_CHAIN] {
        headers.remove(name);
    }
    let element = forwarded_element(told);
    let (for_line, forwarded_line) = match earlier {
        None => (address_text(told.peer), element),
        Some(Earlier { for_line, forwarded }) => {
            (format!("{for_line}, {}", address_text(told.peer)), format!("{forwarded}, {element}"))
        }
    };
    set(headers, X_FORWARDED_FOR, for_line);
    set(headers, FORWARDED, forwarded_line);
    let scheme = if told.origin.https { "https" } else { "http" };
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    headers.insert(X_FORWARDED_HOST, told.authority.clone());
    headers.insert(X_FORWARDED_PORT, port_value(told.origin.port));
    headers.insert(X_REQUEST_ID, told.request_id.clone());
    let via = if told.http2 { "2 steadfast" } else { "1.1 steadfast" };
    headers.append(header::VIA, HeaderValue::from_static(via));
}

/// The client's certificate, as a structured field (RFC 9440).
pub fn tell_client_certificate(headers: &mut HeaderMap, der: &[u8]) {
    set(headers, CLIENT_CERT, format!(":{}:", data_encoding::BASE64.encode(der)));
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
    Some(Earlier { for_line: join(&address_text), forwarded: join(&|hop| format!("for={}", forwarded_node(hop))) })
}

fn forwarded_element(told: &Told<'_>) -> String {
    let mut element = String::with_capacity(64);
    let scheme = if told.origin.https { "https" } else { "http" };
    let host = told.authority.to_str().unwrap_or_default();
    let quoted = host.bytes().any(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')));
    let quote = if quoted { "\"" } else { "" };
    let _ = write!(element, "for={};host={quote}{host}{quote};proto={scheme}", forwarded_node(told.peer));
    element
}

fn address_text(address: IpAddr) -> String {
    address.to_string()
}

/// RFC 7239: an IPv6 address stands in brackets and quotes.
fn forwarded_node(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(value)) {
        headers.insert(name, value);
    }
}

fn port_value(port: u16) -> HeaderValue {
    match port {
        443 => HeaderValue::from_static("443"),
        80 => HeaderValue::from_static("80"),
        other => HeaderValue::from(other),
    }
}

/// Whether a client's request id may be believed and passed on: short, and harmless in a log.
pub fn is_request_id(value: &HeaderValue) -> bool {
    let harmless =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'/' | b'=' | b'+');
    (1..=128).contains(&value.len()) && value.as_bytes().iter().all(harmless)
}

/// Removes from a request's trailers what servers that merge them into the headers would believe: whatever routes,
/// frames or authenticates (RFC 9110, section 6.5.1), and what only the proxy may say.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers);
    let ours =
        [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST, X_FORWARDED_PORT, FORWARDED, X_REAL_IP, X_REQUEST_ID];
    let standard = [
        CLIENT_CERT,
        CLIENT_CERT_CHAIN,
        header::HOST,
        header::COOKIE,
        header::AUTHORIZATION,
        header::CONTENT_LENGTH,
        header::VIA,
    ];
    for name in ours.into_iter().chain(standard) {
        trailers.remove(name);
    }
}

/// How a response may be stored by caches that many users share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedCaching {
    /// No Cache-Control at all.
    Unsaid,
    /// Shared caches may keep it (`public`, `s-maxage`, or `max-age` without `private` or `no-store`).
    Allowed,
    Forbidden,
}

/// Reads `Cache-Control` for the one question that a cookie of ours asks (RFC 9111, section 5.2.2).
pub fn shared_caching(headers: &HeaderMap) -> SharedCaching {
    let mut said = false;
    let mut allowed = false;
    let lines = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    for directive in lines.flat_map(|line| line.split(',')) {
        said = true;
        let name = directive.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
        match name.as_str() {
            "private" | "no-store" => return SharedCaching::Forbidden,
            "public" | "s-maxage" | "max-age" => allowed = true,
            _ => {}
        }
    }
    match (said, allowed) {
        (false, _) => SharedCaching::Unsaid,
        (true, true) => SharedCaching::Allowed,
        (true, false) => SharedCaching::Forbidden,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let pairs = lines.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()));
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn hop_by_hop_headers_and_those_that_connection_names_are_removed() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("connection", "x-other, Host, Cookie"),
            ("x-secret", "1"),
            ("x-other", "1"),
            ("host", "a"),
            ("cookie", "a=b"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("accept", "x"),
        ]);
        remove_hop_by_hop(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "cookie", "host"]);
    }

    #[test]
    fn an_upgrade_must_be_named_in_connection_and_h2c_is_none() {
        assert!(wanted_upgrade(&map(&[("connection", "Upgrade"), ("upgrade", "websocket")])).is_some());
        assert!(wanted_upgrade(&map(&[("upgrade", "websocket")])).is_none());
        assert!(wanted_upgrade(&map(&[("connection", "upgrade"), ("upgrade", "h2c")])).is_none());
    }

    #[test]
    fn only_chunked_is_a_plain_transfer_coding() {
        for (value, plain) in [("chunked", true), ("Chunked", true), ("gzip, chunked", false), ("identity", false)] {
            assert_eq!(transfer_coding_is_plain(&map(&[("transfer-encoding", value)])), plain, "{value}");
        }
        assert!(!transfer_coding_is_plain(&map(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")])));
    }

    #[test]
    fn cookies_lose_ours_and_crumbs_are_joined() {
        let ours = |name: &[u8]| name == b"__Host-sf";
        let change = |lines: &[(&str, &str)]| rewritten_cookies(&map(lines), ours);
        assert_eq!(change(&[("cookie", "a=1; b=2")]), None);
        assert_eq!(change(&[("cookie", "a=1; __Host-sf=x; b=2")]), Some(Some(HeaderValue::from_static("a=1; b=2"))));
        assert_eq!(change(&[("cookie", "a=1"), ("cookie", "b=2")]), Some(Some(HeaderValue::from_static("a=1; b=2"))));
        assert_eq!(change(&[("cookie", " __Host-sf = x")]), Some(None));
    }

    #[test]
    fn the_client_is_the_rightmost_untrusted_hop() {
        let trusted = |address: IpAddr| address.to_string().starts_with("10.");
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        let client = |value: &str, peer: IpAddr| {
            client_address(&map(&[("x-forwarded-for", value)]), peer, ForwardedBy::XForwardedFor, trusted).to_string()
        };
        assert_eq!(client("6.6.6.6, 1.2.3.4, 10.0.0.2", peer), "1.2.3.4");
        assert_eq!(client("6.6.6.6", "9.9.9.9".parse().unwrap()), "9.9.9.9");
        assert_eq!(client("6.6.6.6, garbage", peer), "10.0.0.1");
        assert_eq!(client("[2001:db8::1]:443", peer), "2001:db8::1");
        let headers = map(&[("forwarded", "for=1.2.3.4;proto=http, For=\"[2001:db8::2]:1\";proto=https")]);
        let client = client_address(&headers, peer, ForwardedBy::Forwarded, trusted);
        assert_eq!(client.to_string(), "2001:db8::2");
        assert_eq!(forwarded_scheme_is_https(&headers, ForwardedBy::Forwarded), Some(true));
    }

    #[test]
    fn an_untrusted_clients_word_is_made_anew() {
        let mut headers =
            map(&[("x-forwarded-for", "6.6.6.6"), ("forwarded", "for=6.6.6.6"), ("x-forwarded-port", "1")]);
        let origin = Origin { https: true, host: "a.test".into(), port: 8443 };
        let mut told = Told {
            peer: "2001:db8::9".parse().unwrap(),
            peer_is_trusted: false,
            forwarded_by: ForwardedBy::XForwardedFor,
            origin: &origin,
            authority: &HeaderValue::from_static("a.test:8443"),
            request_id: &HeaderValue::from_static("id"),
            http2: true,
        };
        tell_server(&mut headers, &told);
        assert_eq!(headers[X_FORWARDED_FOR], "2001:db8::9");
        assert_eq!(headers[FORWARDED], "for=\"[2001:db8::9]\";host=\"a.test:8443\";proto=https");
        assert_eq!(headers[X_FORWARDED_PORT], "8443");
        assert_eq!(headers[header::VIA], "2 steadfast");
        told.peer_is_trusted = true;
        let mut headers = map(&[("x-forwarded-for", "6.6.6.6"), ("forwarded", "for=7.7.7.7")]);
        tell_server(&mut headers, &told);
        assert_eq!(headers[X_FORWARDED_FOR], "6.6.6.6, 2001:db8::9");
        assert!(headers[FORWARDED].to_str().unwrap().starts_with("for=6.6.6.6, for="));
    }

    #[test]
    fn cookies_go_only_on_what_no_shared_cache_keeps() {
        let caching = |value: &str| shared_caching(&map(&[("cache-control", value)]));
        assert_eq!(shared_caching(&HeaderMap::new()), SharedCaching::Unsaid);
        assert_eq!(caching("public"), SharedCaching::Allowed);
        assert_eq!(caching("Max-Age=60"), SharedCaching::Allowed);
        assert_eq!(caching("max-age=60, private"), SharedCaching::Forbidden);
        assert_eq!(caching("no-cache"), SharedCaching::Forbidden);
    }

    proptest! {
        /// Whatever Connection lists, nothing hop-by-hop is left, and nothing that was not named goes.
        #[test]
        fn cleaning_is_exact(named in proptest::collection::vec("[a-z]{1,3}", 0..5), present in proptest::collection::btree_set("[a-z]{1,3}", 0..6)) {
            let mut headers = HeaderMap::new();
            for name in &present {
                headers.insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("1"));
            }
            headers.insert(header::CONNECTION, named.join(",").parse().unwrap());
            remove_hop_by_hop(&mut headers);
            for name in &present {
                prop_assert_eq!(headers.contains_key(name.as_str()), !named.contains(name) && name != "te");
            }
            prop_assert!(!headers.contains_key(header::CONNECTION));
        }
    }
}
