//! Step 1: who asks, for which host, and as the browser sees it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;

use http::request::Parts;
use http::{HeaderValue, Version, header};

use crate::headers::{self, Origin, OwnHop};
use crate::listener::Downstream;
use crate::names::HeaderReason;
use crate::routing::Authority;
use crate::runtime::Snapshot;

/// What a request says about itself, once it is clear whom to believe.
pub(super) struct Identity {
    /// The client, by what trusted proxies say.
    pub(super) client: IpAddr,
    pub(super) peer_is_trusted: bool,
    /// Whom it asks for.
    pub(super) hop: Rc<OwnHop>,
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
    let mut https = downstream.tls.is_some();
    let mut external = None;
    if peer_is_trusted {
        https = headers::forwarded_scheme_is_https(&parts.headers, forwarded_by).unwrap_or(https);
        external = headers::forwarded_host(&parts.headers, forwarded_by);
    }
    Ok(Identity {
        client: headers::client_address(&parts.headers, peer, forwarded_by, trusted),
        peer_is_trusted,
        hop: hop(downstream, https, &authority, external.unwrap_or(&authority))?,
        request_id: request_id(parts, peer_is_trusted, random),
    })
}

/// The hop that the connection is for a request like this: nearly always the one that it was for its last request.
fn hop(downstream: &Downstream, https: bool, authority: &str, external: &str) -> Result<Rc<OwnHop>, HeaderReason> {
    let mut last = downstream.own_hop.borrow_mut();
    if let Some(hop) = last.as_ref().filter(|hop| hop.fits(https, authority, external)) {
        return Ok(Rc::clone(hop));
    }
    let asked = parse(authority)?;
    check_certificate(&asked.host, downstream)?;
    let seen = parse(external)?;
    let port = seen.port.unwrap_or(if https { 443 } else { 80 });
    let origin = Origin { https, host: seen.host.into(), port };
    let value = |text: &str| HeaderValue::try_from(text).map_err(|_| HeaderReason::BadHost);
    let (authority, external) = (value(authority)?, value(external)?);
    let hop = Rc::new(OwnHop::new(downstream.peer.ip(), asked.host.into(), authority, origin, external));
    *last = Some(Rc::clone(&hop));
    Ok(hop)
}

/// RFC 9112, section 3.2: exactly one Host, and the target's own authority wins over it.
fn authority_of<'a>(parts: &'a Parts, downstream: &Downstream) -> Result<Cow<'a, str>, HeaderReason> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return Err(HeaderReason::BadHost);
    }
    let host = host.map(|host| host.to_str().map_err(|_| HeaderReason::BadHost)).transpose()?;
    let target = parts.uri.authority().map(http::uri::Authority::as_str);
    match (target, host) {
        (Some(target), Some(host)) if downstream.http2 && !target.eq_ignore_ascii_case(host) => {
            Err(HeaderReason::BadHost)
        }
        (Some(target), _) if downstream.http2 => Ok(target.into()),
        (Some(target), Some(_)) => Ok(target.into()),
        (None, Some(host)) => Ok(host.into()),
        // HTTP/1.0 knew no Host: the address that was asked stands for it.
        (target, None) if parts.version == Version::HTTP_10 => {
            Ok(target.map_or_else(|| downstream.local.to_string().into(), Cow::Borrowed))
        }
        (_, None) => Err(HeaderReason::BadHost),
    }
}

fn parse(authority: &str) -> Result<Authority<'_>, HeaderReason> {
    Authority::parse(authority).ok_or(HeaderReason::BadHost)
}

/// A browser reuses an HTTP/2 connection for other hosts that its certificate covers; for one that it does not, 421
/// tells it to open another (RFC 9110, section 15.5.20).
fn check_certificate(host: &str, downstream: &Downstream) -> Result<(), HeaderReason> {
    let Some(tls) = downstream.tls.as_ref().filter(|_| downstream.http2) else { return Ok(()) };
    let Some(sni) = tls.sni.as_deref() else { return Ok(()) };
    if sni == host || tls.names.cover(host) { Ok(()) } else { Err(HeaderReason::Misdirected) }
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
