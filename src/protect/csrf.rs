//! Whether a request that may change something was made by a page that may make it.
//!
//! Browsers say where a request comes from, and no page can make them say something else: `Sec-Fetch-Site` (W3C Fetch
//! Metadata) to every https address and to localhost, `Origin` (RFC 6454) with every request that is no plain GET or
//! HEAD. The first is a judgement, so it counts where it is there; without it the second has to be the address that was
//! asked, exactly. What says neither comes from no browser of this decade, and needs a token only where there is a
//! session of the proxy's own that it could abuse.
//!
//! A token is the keyed hash of a session's lineage under a mask that is new each time, so that compression beside it
//! tells nothing. This module checks one; it makes none, and it neither waits for a body nor looks for a session.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

use aws_lc_rs::constant_time;
use data_encoding::BASE64URL_NOPAD;
use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode;

use crate::headers::Origin;
use crate::names::{Csrf, CsrfReason, CsrfToken};

/// Where scripts put the token.
pub const X_CSRF_TOKEN: HeaderName = HeaderName::from_static("x-csrf-token");
/// Where forms put it.
pub const FORM_FIELD: &str = "csrf_token";
/// A longer form is not looked into: its page has to send the header.
pub const MOST_FORM_BYTES: usize = 64 * 1024;
/// The length of what a token hides.
pub const TOKEN_BYTES: usize = 32;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// The length of each half of a token.
const HALF_CHARS: usize = (TOKEN_BYTES * 4).div_ceil(3);

/// What a route asks of requests that may change something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsrfRules {
    /// What becomes of those that are refused; a route may say otherwise. Where it is off, [`judge`] is not asked.
    pub mode: Csrf,
    pub token: CsrfToken,
    /// Other origins whose pages may make such requests.
    pub trusted: Vec<TrustedOrigin>,
}

/// What the judgement may know of a request.
pub struct CsrfFacts<'a> {
    pub method: &'a Method,
    /// It asks for another protocol, and would be let: a WebSocket's handshake is a GET, and no safe one.
    pub upgrade: bool,
    /// Its route has GET checked too.
    pub protect_safe: bool,
    pub headers: &'a HeaderMap,
    /// The address that the browser asked.
    pub origin: &'a Origin,
    /// It comes with a session that opens, which the proxy keeps or reads from a cookie. Pins and sessions of
    /// applications are none. Where it is not known yet, yes: a token is needed then if there turns out to be one.
    pub has_session: bool,
}

/// What is to be done with a request. It is the same whether forged requests are refused or only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CsrfJudgement {
    Passes,
    /// It passes with the token of its session, and is refused otherwise: see [`check_token`].
    NeedsToken,
    Refused(CsrfReason),
}

/// What an honest request's headers say.
enum Source {
    /// It was made by a page that may, or by the user.
    Fine,
    /// They say nothing.
    Unsaid,
}

/// Judges a request by its headers, as they came in.
pub fn judge(rules: &CsrfRules, facts: &CsrfFacts<'_>) -> CsrfJudgement {
    if !is_checked(facts) {
        return CsrfJudgement::Passes;
    }
    let needs_token = match source(rules, facts) {
        Err(reason) => return CsrfJudgement::Refused(reason),
        // Neither a link nor a WebSocket's handshake can carry one.
        Ok(Source::Fine) => rules.token == CsrfToken::Required && !is_safe(facts.method),
        Ok(Source::Unsaid) => rules.token != CsrfToken::Off,
    };
    if needs_token && facts.has_session { CsrfJudgement::NeedsToken } else { CsrfJudgement::Passes }
}

/// Whether where the request comes from matters. A preflight changes nothing, and has to get its answer.
fn is_checked(facts: &CsrfFacts<'_>) -> bool {
    let preflight =
        facts.method == Method::OPTIONS && facts.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    facts.upgrade || !is_safe(facts.method) || (facts.protect_safe && !preflight)
}

fn is_safe(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS].contains(method)
}

fn source(rules: &CsrfRules, facts: &CsrfFacts<'_>) -> Result<Source, CsrfReason> {
    let origin = lines(facts.headers, header::ORIGIN);
    if let Lines::One(value) = origin
        && rules.trusted.iter().any(|trusted| trusted.0.as_bytes() == value.as_bytes())
    {
        return Ok(Source::Fine);
    }
    match lines(facts.headers, SEC_FETCH_SITE) {
        Lines::None => by_origin(origin, facts.origin),
        Lines::One(site) => match site.as_bytes() {
            // What the user typed, or opened from a bookmark, comes from no site.
            b"same-origin" | b"none" => Ok(Source::Fine),
            b"same-site" => Err(CsrfReason::SameSite),
            b"cross-site" => Err(CsrfReason::CrossSite),
            _ => Err(CsrfReason::UnknownFetchSite),
        },
        Lines::Several => Err(CsrfReason::SeveralFetchSites),
    }
}

fn by_origin(origin: Lines<'_>, own: &Origin) -> Result<Source, CsrfReason> {
    match origin {
        Lines::None => Ok(Source::Unsaid),
        Lines::Several => Err(CsrfReason::SeveralOrigins),
        Lines::One(value) if value.as_bytes() == serialised(own.https, &own.host, own.port).as_bytes() => {
            Ok(Source::Fine)
        }
        Lines::One(value) if value.as_bytes() == b"null" => Err(CsrfReason::OriginNull),
        Lines::One(value) if is_some_origin(value) => Err(CsrfReason::OriginMismatch),
        Lines::One(_) => Err(CsrfReason::OriginMalformed),
    }
}

/// Whether a value has the form of one origin. It need not be of the web: extensions of browsers have origins too.
fn is_some_origin(value: &HeaderValue) -> bool {
    let parts = value.to_str().ok().and_then(|text| text.split_once("://"));
    let is_part = |part: &str| !part.is_empty() && !part.contains(['/', ' ', ',', '\t']);
    parts.is_some_and(|(scheme, rest)| is_part(scheme) && is_part(rest))
}

/// The lines of a field that has to be there once.
#[derive(Clone, Copy)]
enum Lines<'a> {
    None,
    One(&'a HeaderValue),
    Several,
}

fn lines(headers: &HeaderMap, name: HeaderName) -> Lines<'_> {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Lines::None,
        (Some(line), None) => Lines::One(line),
        _ => Lines::Several,
    }
}

/// An origin as browsers write it (RFC 6454, section 6.2): without the port that the scheme implies.
fn serialised(https: bool, host: &str, port: u16) -> String {
    let (scheme, implied) = if https { ("https", 443) } else { ("http", 80) };
    if port == implied { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") }
}

/// Another origin whose pages may make requests that change something: scheme, host and port, exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedOrigin(Box<str>);

/// Why a text is no origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    #[error("an origin begins with `https://` or `http://`")]
    Scheme,
    #[error("an origin ends with its host or its port: it has neither a path nor a slash at its end")]
    Path,
    #[error("an origin is named exactly: `*` stands for nothing here")]
    Pattern,
    #[error("an origin's host is written as browsers send it, in ASCII: `xn--bcher-kva.example`")]
    NotAscii,
    #[error("an origin is `https://HOST` or `https://HOST:PORT`, and this is no host")]
    Host,
    #[error("an origin's port is a number from 1 to 65535")]
    Port,
}

impl TrustedOrigin {
    /// Reads `https://app.example.com` or `https://app.example.com:8443`.
    pub fn parse(text: &str) -> Result<Self, OriginError> {
        let text = text.to_ascii_lowercase();
        let (https, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(OriginError::Scheme),
        };
        if rest.contains(['/', '?', '#', '\\']) {
            return Err(OriginError::Path);
        }
        // The colons of an IPv6 address stand before its bracket.
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (rest, None),
        };
        check_host(host)?;
        let port = port.map_or(Some(if https { 443 } else { 80 }), parse_port).ok_or(OriginError::Port)?;
        Ok(TrustedOrigin(serialised(https, host, port).into()))
    }

    /// As browsers write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn parse_port(digits: &str) -> Option<u16> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|port| is_number && *port != 0)
}

/// Whether a host, in lower case, is one as browsers write it.
fn check_host(host: &str) -> Result<(), OriginError> {
    if host.contains('*') {
        return Err(OriginError::Pattern);
    }
    if !host.is_ascii() {
        return Err(OriginError::NotAscii);
    }
    let is_host = match host.strip_prefix('[') {
        // One text of each address is the browsers': the shortest.
        Some(rest) => rest.strip_suffix(']').is_some_and(|text| {
            text.parse::<Ipv6Addr>().is_ok_and(|address| !text.contains('.') && address.to_string() == text)
        }),
        None => is_name(host),
    };
    if is_host { Ok(()) } else { Err(OriginError::Host) }
}

/// Whether this is a name, or an IPv4 address: browsers take everything that ends with a number for one.
fn is_name(host: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let labels = || host.split('.');
    let ends_with_a_number = labels().next_back().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    let is_legal = labels().all(|label| !label.is_empty() && label.len() <= 63 && label.bytes().all(legal));
    is_legal && host.len() <= 253 && (!ends_with_a_number || host.parse::<Ipv4Addr>().is_ok())
}

/// Where a request's token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenPlace<'a> {
    Header(&'a [u8]),
    /// If anywhere, then in its body: see [`form_field`].
    Form,
    Nowhere,
}

/// Where to look for a request's token, by its headers. Two of them are none.
pub fn token_place(headers: &HeaderMap) -> TokenPlace<'_> {
    match lines(headers, X_CSRF_TOKEN) {
        Lines::One(value) => TokenPlace::Header(value.as_bytes()),
        Lines::None if is_form(headers) => TokenPlace::Form,
        Lines::None | Lines::Several => TokenPlace::Nowhere,
    }
}

/// Whether a body is a form that can be read as it is.
fn is_form(headers: &HeaderMap) -> bool {
    let Lines::One(content_type) = lines(headers, header::CONTENT_TYPE) else { return false };
    let media_type = content_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    media_type.eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
        && !headers.contains_key(header::CONTENT_ENCODING)
}

/// The value of a field of an `application/x-www-form-urlencoded` text, a body or a query. Two fields of the name are
/// none: who knows which of them the server takes.
pub fn form_field<'a>(form: &'a [u8], name: &str) -> Option<Cow<'a, [u8]>> {
    let fields = form.split(|byte| *byte == b'&').map(|field| {
        let end = memchr::memchr(b'=', field).unwrap_or(field.len());
        (&field[..end], field.get(end + 1..).unwrap_or_default())
    });
    let mut found = fields.filter(|(field, _)| *decoded(field) == *name.as_bytes());
    let (_, value) = found.next()?;
    found.next().is_none().then(|| decoded(value))
}

fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'+') {
        return percent_decode(text).into();
    }
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    Cow::Owned(percent_decode(&spaced).collect())
}

/// Whether a request shows the token of its session. `expected` is what may be hidden in it: one for each key of the
/// ring, so that pages which stand open outlive a rotation.
pub fn check_token(expected: &[[u8; TOKEN_BYTES]], given: Option<&[u8]>) -> Result<(), CsrfReason> {
    let given = given.ok_or(CsrfReason::TokenMissing)?;
    let is_right = expected.iter().any(|expected| verify_token(expected, given));
    if is_right { Ok(()) } else { Err(CsrfReason::TokenWrong) }
}

/// Whether `given` is a mask, a dot, and `expected` under that mask, each in base64url. The time it takes tells nothing
/// of what is expected.
pub fn verify_token(expected: &[u8; TOKEN_BYTES], given: &[u8]) -> bool {
    let Some((mask, hidden)) = halves(given) else { return false };
    let shown: [u8; TOKEN_BYTES] = std::array::from_fn(|at| mask[at] ^ hidden[at]);
    constant_time::verify_slices_are_equal(expected, &shown).is_ok()
}

fn halves(token: &[u8]) -> Option<([u8; TOKEN_BYTES], [u8; TOKEN_BYTES])> {
    let (mask, hidden) = token.split_at_checked(HALF_CHARS)?;
    Some((half(mask)?, half(hidden.strip_prefix(b".")?)?))
}

fn half(text: &[u8]) -> Option<[u8; TOKEN_BYTES]> {
    let text: &[u8; HALF_CHARS] = text.try_into().ok()?;
    let mut bytes = [0; TOKEN_BYTES];
    BASE64URL_NOPAD.decode_mut(text, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests;
