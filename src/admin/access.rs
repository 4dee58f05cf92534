//! Who may use the admin surface: no page of another origin, and with a token only who knows it.

use std::net::IpAddr;

use data_encoding::BASE64URL_NOPAD;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};

use crate::clock::Wall;
use crate::headers;
use crate::keys::{Sealer, Token};
use crate::routing::Authority;
use crate::tls::Names;

/// How long a login lasts.
const LOGIN_SECONDS: u64 = 12 * 3_600;
const PLAIN_BYTES: usize = 16;

/// A page must not drive this surface: not by a name that it rebinds to us, and not from another origin. `local` is
/// where the connection came in, `names` what our certificate is for.
pub(super) fn check_origin<B>(
    request: &Request<B>,
    local: Option<IpAddr>,
    names: Option<&Names>,
) -> Result<(), &'static str> {
    let text = |name| request.headers().get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("unreadable"));
    let host = text(header::HOST);
    if host.is_some_and(|host| !is_ours(host, local, names)) {
        return Err("The Host of the request is not this address.");
    }
    let only_reads = request.method() == Method::GET || request.method() == Method::HEAD;
    // A page could hold all streams open, though it may not read them.
    let safe = only_reads && request.uri().path() != super::STREAM;
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, authority)| Some(authority) == host);
    // A frame says no origin, but where it is from.
    let is_foreign =
        text(HeaderName::from_static("sec-fetch-site")).is_some_and(|site| site != "same-origin" && site != "none");
    if !safe && (is_foreign || text(header::ORIGIN).is_some_and(|origin| !own(origin))) {
        return Err("The request comes from another origin.");
    }
    Ok(())
}

/// A loopback literal, localhost, the address that the connection came in on, or a name of our certificate. No other
/// name: whoever owns it could point it here.
fn is_ours(host: &str, local: Option<IpAddr>, names: Option<&Names>) -> bool {
    let Some(authority) = Authority::parse(host) else { return false };
    let address = authority.host.trim_matches(['[', ']']).parse::<IpAddr>();
    let is_local = address.is_ok_and(|address| address.is_loopback() || Some(address) == local);
    is_local || authority.host == "localhost" || names.is_some_and(|names| names.cover(&authority.host))
}

/// Whether a request shows the token, or the cookie of a login with it.
pub(super) fn is_let_in(headers: &HeaderMap, token: &Token, logins: &Sealer, now: Wall) -> bool {
    let bearer = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
        let (scheme, given) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| given.trim_ascii())
    });
    let mut cookies = headers::cookies(headers).filter(|(name, _)| *name == headers::ADMIN_COOKIE.as_bytes());
    bearer.is_some_and(|given| token.is(given)) || cookies.any(|(_, value)| is_login(value, token, logins, now))
}

/// The `Set-Cookie` of a login. It ends with the token, and after twelve hours.
pub(super) fn login_cookie(token: &Token, logins: &Sealer, now: Wall) -> Option<HeaderValue> {
    let mut plain = [0; PLAIN_BYTES];
    plain[..8].copy_from_slice(&now.seconds().to_be_bytes());
    plain[8..].copy_from_slice(&token.name());
    let sealed: [u8; PLAIN_BYTES + Sealer::OVERHEAD] = logins.seal(&plain);
    let value = BASE64URL_NOPAD.encode(&sealed);
    let line = format!(
        "{}={value}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={LOGIN_SECONDS}",
        headers::ADMIN_COOKIE
    );
    HeaderValue::try_from(line).ok()
}

fn is_login(value: &[u8], token: &Token, logins: &Sealer, now: Wall) -> bool {
    let Ok(mut sealed) = BASE64URL_NOPAD.decode(value) else { return false };
    let Ok((_, plain)) = logins.open(&mut sealed) else { return false };
    let Some((issued, name)) = plain.split_first_chunk::<8>() else { return false };
    let age = now.seconds().checked_sub(u64::from_be_bytes(*issued));
    name == token.name() && age.is_some_and(|age| age <= LOGIN_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyRing, RingKey};

    const NOW: Wall = Wall(1_800_000_000_000_000);

    fn logins() -> Sealer {
        KeyRing::new(vec![RingKey::from_secret([1; 32])]).sealer("steadfast admin login v1", b"")
    }

    fn with(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn the_token_lets_in_and_nothing_like_it() {
        let token = Token::new(b"correct horse battery staple").unwrap();
        let let_in = |value: &str| is_let_in(&with(header::AUTHORIZATION, value), &token, &logins(), NOW);
        assert!(let_in("Bearer correct horse battery staple") && let_in("bearer  correct horse battery staple"));
        for wrong in ["correct horse battery staple", "Bearer correct horse", "Basic correct horse battery staple", ""]
        {
            assert!(!let_in(wrong), "{wrong}");
        }
        assert!(!is_let_in(&HeaderMap::new(), &token, &logins(), NOW));
    }

    #[test]
    fn a_login_lasts_half_a_day_and_ends_with_the_token() {
        let token = Token::new(b"correct horse battery staple").unwrap();
        let cookie = login_cookie(&token, &logins(), NOW).unwrap().to_str().unwrap().to_owned();
        let sent = with(header::COOKIE, cookie.split(';').next().unwrap());
        let later = |seconds: u64| Wall(NOW.0 + seconds * 1_000_000);
        assert!(is_let_in(&sent, &token, &logins(), later(LOGIN_SECONDS)));
        assert!(!is_let_in(&sent, &token, &logins(), later(LOGIN_SECONDS + 1)));
        assert!(!is_let_in(&sent, &Token::new(b"another token than that").unwrap(), &logins(), NOW));
    }

    #[test]
    fn hosts_that_somebody_else_may_own_are_not_ours() {
        let local = Some("10.0.0.7".parse().unwrap());
        for (host, ours) in [
            ("localhost:9900", true),
            ("127.0.0.1", true),
            ("[::1]:9900", true),
            ("10.0.0.7:9900", true),
            ("10.0.0.8", false),
            ("attacker.test", false),
            ("localhost.attacker.test", false),
        ] {
            assert_eq!(is_ours(host, local, None), ours, "{host}");
        }
    }
}
