//! The pin cookie: sealed, of constant length, and naming nothing that a client could read or make.

use cookie::{Cookie, SameSite as CookieSameSite};
use data_encoding::BASE64URL_NOPAD;
use http::HeaderValue;

use super::{SameSite, StickySettings};
use crate::keys::{KeyRing, OpenError, Sealer};
use crate::names::NewWhy;

/// One affinity record: a session's server, with issue and last-seen times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// 64 random bits that name the session, nothing else.
    pub session: u64,
    /// Keyed hashes of the names of pool and server.
    pub pool: u64,
    pub server: u64,
    /// Wall-clock seconds since 1970.
    pub issued: u32,
    pub seen: u32,
}

const VERSION: u8 = 1;
const PLAIN_BYTES: usize = 1 + 3 * 8 + 2 * 4;
const SEALED_BYTES: usize = PLAIN_BYTES + Sealer::OVERHEAD;
/// The length of every pin cookie's value.
pub const SEALED_CHARS: usize = (SEALED_BYTES * 4).div_ceil(3);

/// Seals and opens the pins of all pools of a snapshot.
pub struct PinSealer(Sealer);

impl PinSealer {
    /// The sealer of a ring.
    pub fn new(ring: &KeyRing) -> Self {
        PinSealer(ring.sealer("steadfast pin v1", b""))
    }

    /// The value of the cookie that carries a pin.
    pub fn seal(&self, pin: &Pin) -> [u8; SEALED_CHARS] {
        let mut plain = [0; PLAIN_BYTES];
        plain[0] = VERSION;
        plain[1..9].copy_from_slice(&pin.session.to_be_bytes());
        plain[9..17].copy_from_slice(&pin.pool.to_be_bytes());
        plain[17..25].copy_from_slice(&pin.server.to_be_bytes());
        plain[25..29].copy_from_slice(&pin.issued.to_be_bytes());
        plain[29..33].copy_from_slice(&pin.seen.to_be_bytes());
        let sealed: [u8; SEALED_BYTES] = self.0.seal(&plain);
        let mut text = [0; SEALED_CHARS];
        BASE64URL_NOPAD.encode_mut(&sealed, &mut text);
        text
    }

    /// The pin that a cookie's value carries, and the position of its key in the ring.
    pub fn open(&self, value: &[u8]) -> Result<(Pin, usize), NewWhy> {
        let value: &[u8; SEALED_CHARS] = value.try_into().map_err(|_| NewWhy::Invalid)?;
        let mut sealed = [0; SEALED_BYTES];
        BASE64URL_NOPAD.decode_mut(value, &mut sealed).map_err(|_| NewWhy::Invalid)?;
        let (key, plain) = self.0.open(&mut sealed).map_err(|error| match error {
            OpenError::UnknownKey => NewWhy::UnknownKey,
            OpenError::Malformed | OpenError::Forged => NewWhy::Invalid,
        })?;
        let plain: &[u8; PLAIN_BYTES] = plain.try_into().map_err(|_| NewWhy::Invalid)?;
        if plain[0] != VERSION {
            return Err(NewWhy::Invalid);
        }
        let pin = Pin {
            session: u64::from_be_bytes(part(plain, 1)),
            pool: u64::from_be_bytes(part(plain, 9)),
            server: u64::from_be_bytes(part(plain, 17)),
            issued: u32::from_be_bytes(part(plain, 25)),
            seen: u32::from_be_bytes(part(plain, 29)),
        };
        Ok((pin, key))
    }
}

fn part<const N: usize>(plain: &[u8; PLAIN_BYTES], from: usize) -> [u8; N] {
    std::array::from_fn(|at| plain[from + at])
}

/// The Set-Cookie line. The attributes go by the scheme that the browser sees.
pub(super) fn set_cookie_value(settings: &StickySettings, value: &[u8], https: bool) -> Option<HeaderValue> {
    let name = if https { &*settings.cookie } else { settings.plain_cookie() };
    let value = std::str::from_utf8(value).ok()?;
    let same_site = match settings.same_site {
        SameSite::Strict => CookieSameSite::Strict,
        // SameSite=None without Secure is refused by browsers.
        SameSite::None if https => CookieSameSite::None,
        SameSite::None | SameSite::Lax => CookieSameSite::Lax,
    };
    let mut cookie = Cookie::build((name, value)).path("/").http_only(true).same_site(same_site);
    if https {
        cookie = cookie.secure(true).partitioned(settings.partitioned);
    }
    if settings.persistent {
        cookie = cookie.max_age(cookie::time::Duration::seconds(i64::try_from(settings.idle.as_secs()).ok()?));
    }
    HeaderValue::try_from(cookie.build().to_string()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::RingKey;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_pin_opens_again_and_no_changed_character_does(session: u64, server: u64, seen: u32, at in 0..SEALED_CHARS) {
            let sealer = PinSealer::new(&KeyRing::new(vec![RingKey::from_secret([4; 32])]));
            let pin = Pin { session, pool: 7, server, issued: 1, seen };
            let mut text = sealer.seal(&pin);
            prop_assert_eq!(sealer.open(&text), Ok((pin, 0)));
            text[at] = if text[at] == b'A' { b'B' } else { b'A' };
            prop_assert!(sealer.open(&text).is_err());
        }
    }
}
