//! Header hygiene: what is taken away, checked and added between the two sides (RFC 9110, section 7.6).
//!
//! Removals that a client's `Connection` header asks for happen first, before anything of ours is added, so a client
//! cannot name our headers away. What a client says about itself (`X-Forwarded-*`, `Forwarded`, `X-Request-Id`) is
//! believed only from a trusted peer. This module decides on values that it is given; it knows no connection.

mod cookies;
mod forwarded;
mod size;

pub use cookies::{cookies, rewritten_cookies, split_cookie};
pub use forwarded::{
    ForwardedBy, Origin, OwnHop, Told, client_address, forwarded_host, forwarded_scheme_is_https, is_request_id,
    tell_client_certificate, tell_server,
};
pub use size::HeadSize;

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
const PROXY: HeaderName = HeaderName::from_static("proxy");
/// The cookie of somebody who has given the admin token. Cookies ignore ports: where the admin surface shares a host with
/// what is served, browsers send it there as well.
pub const ADMIN_COOKIE: &str = "__Host-sf-admin";
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// What belongs to one connection whether `Connection` names it or not.
const HOP_BY_HOP: [HeaderName; 5] =
    [KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::TE];

/// What a request says to the proxy alone, or must not say to a server.
const NOT_FOR_SERVERS: [HeaderName; 2] = [header::EXPECT, PROXY];

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
    remove_present(headers, &HOP_BY_HOP);
}

/// Removes what a request says to the proxy alone: `Expect`, which the proxy answers itself when the server's connection
/// is there to take the body, and `Proxy`.
pub fn remove_not_for_servers(headers: &mut HeaderMap) {
    remove_present(headers, &NOT_FOR_SERVERS);
}

/// Removes those of `names` that are there. Most are not: one look at the names that are there is cheaper than a look-up
/// of each.
fn remove_present(headers: &mut HeaderMap, names: &[HeaderName]) {
    if headers.keys().any(|name| names.contains(name)) {
        for name in names {
            headers.remove(name);
        }
    }
}

/// The header names that `Connection` lists. `close` and `keep-alive` are options, not headers, and do no harm here;
/// names that end-to-end framing depends on stay, whatever the client says.
fn connection_options(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let options = values.flat_map(|value| value.split(',')).map(str::trim);
    // These two name nothing, and nearly every server says one of them.
    let named = options.filter(|option| !["keep-alive", "close"].iter().any(|one| option.eq_ignore_ascii_case(one)));
    let names = named.filter_map(|name| name.parse::<HeaderName>().ok());
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

/// Whether a response is a stream of events that goes on for as long as it likes.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let media_type = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    media_type.eq_ignore_ascii_case(b"text/event-stream") && !headers.contains_key(header::CONTENT_LENGTH)
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

/// The names by which proxy and servers speak of sessions: nobody else's.
const RESERVED: &str = "steadfast-";

/// Whether a server might take this name for one of ours that only the proxy may say, whatever it makes of `_` and `.`.
pub fn is_reserved(name: &HeaderName) -> bool {
    let plain = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { b'-' };
    let begins = |prefix: &str| name.as_str().bytes().map(plain).take(prefix.len()).eq(prefix.bytes());
    begins(RESERVED)
}

/// Whether a server might take this name, which is not of plain bytes, for one that the proxy writes; `more` are those that
/// a route adds.
pub fn is_alias_of_ours(name: &HeaderName, more: &[(HeaderName, HeaderValue)]) -> bool {
    let plain = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { b'-' };
    let ours = [
        X_FORWARDED_FOR,
        X_FORWARDED_PROTO,
        X_FORWARDED_HOST,
        X_FORWARDED_PORT,
        FORWARDED,
        X_REAL_IP,
        X_REQUEST_ID,
        CLIENT_CERT,
        CLIENT_CERT_CHAIN,
    ];
    let mut all = ours.iter().chain(more.iter().map(|(name, _)| name));
    all.any(|other| other != name && name.as_str().bytes().map(plain).eq(other.as_str().bytes().map(plain)))
}

/// Removes every reserved name.
pub fn remove_reserved(headers: &mut HeaderMap) {
    if headers.keys().any(is_reserved) {
        let names: Vec<HeaderName> = headers.keys().filter(|name| is_reserved(name)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}

/// Removes from a request's trailers what servers that merge them into the headers would believe: whatever routes,
/// frames or authenticates (RFC 9110, section 6.5.1), what only the proxy may say, and what they might take for it.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers);
    remove_reserved(trailers);
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
    for name in ours.into_iter().chain(standard).chain(unsafe_names(trailers)) {
        trailers.remove(name);
    }
}

/// How a response may be stored by caches that many users share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedCaching {
    /// Nothing is said of it: they may keep what looks as if it changed rarely.
    Unsaid,
    /// Shared caches may keep it (`public`, `s-maxage`, or `max-age` without `private` or `no-store`).
    Allowed,
    Forbidden,
}

/// Whether a field is for caches that many users share: it counts before `Cache-Control` (RFC 9213, and what was in use
/// before it).
pub fn is_for_shared_caches(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.ends_with("-cache-control") || ["surrogate-control", "edge-control", "x-accel-expires"].contains(&name)
}

/// Reads `Cache-Control`, and what counts before it, for the one question that a cookie of ours asks (RFC 9111, section
/// 5.2.2).
pub fn shared_caching(headers: &HeaderMap) -> SharedCaching {
    if headers.keys().any(is_for_shared_caches) {
        return SharedCaching::Allowed;
    }
    let mut allowed = false;
    let lines = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    for directive in lines.flat_map(|line| line.split(',')) {
        let name = directive.split('=').next().unwrap_or_default().trim();
        let is_one_of = |names: &[&str]| names.iter().any(|other| name.eq_ignore_ascii_case(other));
        if is_one_of(&["private", "no-store", "no-cache"]) {
            return SharedCaching::Forbidden;
        }
        allowed |= is_one_of(&["public", "s-maxage", "max-age"]);
    }
    if allowed { SharedCaching::Allowed } else { SharedCaching::Unsaid }
}

#[cfg(test)]
mod tests;
