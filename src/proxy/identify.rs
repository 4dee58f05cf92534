//! Step 1: who asks, for which host, and as the browser sees it.

use std::borrow::Cow;
use std::net::IpAddr;

use http::request::Parts;
use http::{HeaderValue, Version, header};

use crate::headers::{self, Origin};
use crate::listener::Downstream;
use crate::names::HeaderReason;
use crate::routing::Authority;
use crate::runtime::Snapshot;

/// What a request says about itself, once it is clear whom to believe.
pub(super) struct Identity {
    /// The client, by what trusted proxies say.
    pub(super) client: IpAddr,
    pub(super) peer_is_trusted: bool,
    /// The host that was asked for, in lower case, without port: what routes match on.
    pub(super) host: String,
    /// Host and port as the request wrote them: what the server sees as Host.
    pub(super) authority: HeaderValue,
    /// Host and port as the browser wrote them.
    pub(super) external: HeaderValue,
    pub(super) origin: Origin<'static>,
    pub(super) request_id: HeaderValue,
}

pub(super) fn identify(
    snapshot: &Snapshot,
    downstream: &Downstream,
    parts: &Parts,
    random: &mut fastrand::Rng,
) -> Result<Identity, HeaderReason> {
    let peer = downstream.peer.ip();
    let trusted = |address: IpAddr| snapshot.process.trusted_proxies.iter().any(|network| network.contains(&address));
    let peer_is_trusted = trusted(peer);
    let forwarded_by = snapshot.process.forwarded;
    let authority = authority_of(parts, downstream)?;
    let parsed = parse(&authority)?;
    check_certificate(&parsed.host, downstream)?;
    let (host, port) = (parsed.host.clone().into_owned(), parsed.port);
    let mut https = downstream.tls.is_some();
    let mut external = authority.clone();
    let mut origin_host = (host.clone(), port);
    if peer_is_trusted {
        https = headers::forwarded_scheme_is_https(&parts.headers, forwarded_by).unwrap_or(https);
        if let Some(value) = forwarded_host(parts, snapshot) {
            let parsed = parse(&value)?;
            origin_host = (parsed.host.clone().into_owned(), parsed.port);
            external = value;
        }
    }
    let client = headers::client_address(&parts.headers, peer, forwarded_by, trusted);
    let (origin_host, origin_port) = origin_host;
    let port = origin_port.unwrap_or(if https { 443 } else { 80 });
    Ok(Identity {
        client,
        peer_is_trusted,
        host,
        authority,
        external,
        origin: Origin { https, host: Cow::Owned(origin_host), port },
        request_id: request_id(parts, peer_is_trusted, random),
    })
}

/// RFC 9112, section 3.2: exactly one Host, and the target's own authority wins over it.
fn authority_of(parts: &Parts, downstream: &Downstream) -> Result<HeaderValue, HeaderReason> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return Err(HeaderReason::BadHost);
    }
    let target = parts.uri.authority().map(|authority| HeaderValue::try_from(authority.as_str()));
    let target = target.transpose().map_err(|_| HeaderReason::BadHost)?;
    match (target, host) {
        (Some(target), Some(host)) if downstream.http2 && !target.as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            Err(HeaderReason::BadHost)
        }
        (Some(target), _) if downstream.http2 => Ok(target),
        (Some(target), Some(_)) => Ok(target),
        (None, Some(host)) => Ok(host.clone()),
        // HTTP/1.0 knew no Host: the address that was asked stands for it.
        (target, None) if parts.version == Version::HTTP_10 => {
            let local = || HeaderValue::try_from(downstream.local.to_string());
            target.map_or_else(local, Ok).map_err(|_| HeaderReason::BadHost)
        }
        (_, None) => Err(HeaderReason::BadHost),
    }
}

fn parse(authority: &HeaderValue) -> Result<Authority<'_>, HeaderReason> {
    authority.to_str().ok().and_then(Authority::parse).ok_or(HeaderReason::BadHost)
}

/// A browser reuses an HTTP/2 connection for other hosts that its certificate covers; for one that it does not, 421
/// tells it to open another (RFC 9110, section 15.5.20).
fn check_certificate(host: &str, downstream: &Downstream) -> Result<(), HeaderReason> {
    let Some(tls) = downstream.tls.as_ref().filter(|_| downstream.http2) else { return Ok(()) };
    let Some(sni) = tls.sni.as_deref() else { return Ok(()) };
    if sni == host || tls.names.cover(host) { Ok(()) } else { Err(HeaderReason::Misdirected) }
}

fn forwarded_host(parts: &Parts, snapshot: &Snapshot) -> Option<HeaderValue> {
    HeaderValue::try_from(headers::forwarded_host(&parts.headers, snapshot.process.forwarded)?).ok()
}

/// The id that a trusted peer gave the request, or a new one: 128 random bits.
fn request_id(parts: &Parts, peer_is_trusted: bool, random: &mut fastrand::Rng) -> HeaderValue {
    let given = parts.headers.get(headers::X_REQUEST_ID).filter(|id| peer_is_trusted && headers::is_request_id(id));
    given.cloned().unwrap_or_else(|| {
        let mut text = [0; 32];
        data_encoding::HEXLOWER.encode_mut(&random.u128(..).to_be_bytes(), &mut text);
        HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
    })
}
