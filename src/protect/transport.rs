//! That a browser which has seen a host over https never asks it over http again (HSTS, RFC 6797).
//!
//! It is said where it can be kept only: a browser remembers it by the host's name, without the port, so localhost
//! would lose whatever else a developer runs there; an address is no name; and behind a self-signed certificate it
//! would take away the choice to go on. Redirects from http are not this module's business.

use std::net::Ipv4Addr;

use http::HeaderValue;

use crate::headers::Origin;

/// What the lists that browsers are built with ask for: a year.
const PRELOAD_SECONDS: u32 = 31_536_000;

/// The value of `Strict-Transport-Security` for a response from this origin; nothing where it must not be said.
/// `self_signed`: the certificate that the connection showed was made here.
pub fn hsts<'a>(value: Option<&'a HeaderValue>, origin: &Origin, self_signed: bool) -> Option<&'a HeaderValue> {
    value.filter(|_| origin.https && !self_signed && is_lasting_name(&origin.host))
}

/// Whether a host, in lower case, has a name that means the same to everybody.
fn is_lasting_name(host: &str) -> bool {
    let is_local = host == "localhost" || host.ends_with(".localhost");
    let is_address = host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok();
    !is_local && !is_address
}

/// Why a text is no value of `Strict-Transport-Security`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HstsError {
    #[error("`max-age` is missing: `max-age=31536000; includeSubDomains`")]
    NoMaxAge,
    #[error("`max-age` is a number of seconds, below 2^32")]
    MaxAge,
    #[error("`{0}` is none of `max-age=SECONDS`, `includeSubDomains` and `preload`")]
    Unknown(Box<str>),
    #[error("`{0}` says again what is said already")]
    Twice(Box<str>),
    #[error("`preload` counts only beside `includeSubDomains` and a `max-age` of at least 31536000")]
    Preload,
}

/// Reads `max-age=SECONDS`, and with it `includeSubDomains` and `preload`, in any order and any case.
///
/// # Panics
/// Never: digits and words are what a header may hold.
pub fn parse_hsts(text: &str) -> Result<HeaderValue, HstsError> {
    let mut max_age = None;
    let (mut subdomains, mut preload) = (false, false);
    for directive in text.split(';').map(str::trim).filter(|directive| !directive.is_empty()) {
        let (name, value) = match directive.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(value.trim_start())),
            None => (directive, None),
        };
        let was_there = match (name.to_ascii_lowercase().as_str(), value) {
            ("max-age", value) => max_age.replace(seconds(value)?).is_some(),
            ("includesubdomains", None) => std::mem::replace(&mut subdomains, true),
            ("preload", None) => std::mem::replace(&mut preload, true),
            _ => return Err(HstsError::Unknown(directive.into())),
        };
        if was_there {
            return Err(HstsError::Twice(directive.into()));
        }
    }
    let max_age = max_age.ok_or(HstsError::NoMaxAge)?;
    if preload && !(subdomains && max_age >= PRELOAD_SECONDS) {
        return Err(HstsError::Preload);
    }
    let subdomains = if subdomains { "; includeSubDomains" } else { "" };
    let preload = if preload { "; preload" } else { "" };
    let value = HeaderValue::try_from(format!("max-age={max_age}{subdomains}{preload}"));
    Ok(value.expect("digits and words are what a header may hold"))
}

fn seconds(text: Option<&str>) -> Result<u32, HstsError> {
    let digits = text.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or(HstsError::MaxAge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_where_it_can_be_kept() {
        let value = HeaderValue::from_static("max-age=31536000");
        for (https, host, self_signed, said) in [
            (true, "shop.example.com", false, true),
            (true, "intranet", false, true),
            (true, "mylocalhost", false, true),
            (true, "localhost.example.com", false, true),
            (true, "1.2.3.4.example.com", false, true),
            (false, "shop.example.com", false, false),
            (true, "shop.example.com", true, false),
            (true, "localhost", false, false),
            (true, "shop.localhost", false, false),
            (true, "127.0.0.1", false, false),
            (true, "203.0.113.7", false, false),
            (true, "[2001:db8::1]", false, false),
        ] {
            let origin = Origin { https, host: host.into(), port: 8443 };
            assert_eq!(hsts(Some(&value), &origin, self_signed), said.then_some(&value), "{https} {host}");
            assert_eq!(hsts(None, &origin, self_signed), None);
        }
    }

    #[test]
    fn values_are_read_and_written_in_one_form() {
        for (text, wanted) in [
            ("max-age=31536000", Ok("max-age=31536000")),
            ("max-age=0", Ok("max-age=0")),
            (" MAX-AGE = 60 ;", Ok("max-age=60")),
            ("max-age=60;includesubdomains", Ok("max-age=60; includeSubDomains")),
            ("includeSubDomains; max-age=60", Ok("max-age=60; includeSubDomains")),
            ("preload; max-age=31536000; includeSubDomains", Ok("max-age=31536000; includeSubDomains; preload")),
            ("", Err(HstsError::NoMaxAge)),
            (";", Err(HstsError::NoMaxAge)),
            ("includeSubDomains", Err(HstsError::NoMaxAge)),
            ("max-age", Err(HstsError::MaxAge)),
            ("max-age=", Err(HstsError::MaxAge)),
            ("max-age=\"60\"", Err(HstsError::MaxAge)),
            ("max-age=+60", Err(HstsError::MaxAge)),
            ("max-age=-1", Err(HstsError::MaxAge)),
            ("max-age=1y", Err(HstsError::MaxAge)),
            ("max-age=4294967296", Err(HstsError::MaxAge)),
            ("max-age=60; max-age=60", Err(HstsError::Twice("max-age=60".into()))),
            ("max-age=60; preload; preload", Err(HstsError::Twice("preload".into()))),
            ("max-age=60, includeSubDomains", Err(HstsError::MaxAge)),
            ("max-age=60; includeSubDomains=1", Err(HstsError::Unknown("includeSubDomains=1".into()))),
            ("max-age=60; subdomains", Err(HstsError::Unknown("subdomains".into()))),
            ("max-age=31536000; preload", Err(HstsError::Preload)),
            ("max-age=60; includeSubDomains; preload", Err(HstsError::Preload)),
        ] {
            let parsed = parse_hsts(text).map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(parsed.as_deref(), wanted.as_ref().copied(), "{text:?}");
        }
    }
}
