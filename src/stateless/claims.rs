//! What a token says, once its signature is known to be good: for whom, until when, about whom (RFC 7519, section 4.1).
//!
//! A claim of the wrong type is not a claim that is missing: a token whose `nbf` is text is refused, where others
//! would skip the check. `aud`, `exp` and `sub` have to be there: a token for everybody, for ever or about nobody is
//! no session.

use aws_lc_rs::digest;
use serde_json::{Map, Number, Value};

use super::json::{self, MOST_TEXT_BYTES};
use super::refusal::TokenReason;

const MOST_METHODS: usize = 16;
/// The end of the year 9999. Later times are milliseconds that somebody took for seconds, or worse.
const LATEST: u64 = 253_402_300_799;

/// What a token is known to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// The issuer's position in the settings.
    pub issuer: usize,
    pub subject: Box<str>,
    pub jti: Option<Box<str>>,
    /// The name of the key that signed it, also where the token leaves it out.
    pub kid: Option<Box<str>>,
    /// Times are in seconds since 1970.
    pub issued_at: Option<u64>,
    pub expires_at: u64,
    pub auth_time: Option<u64>,
    pub acr: Option<Box<str>>,
    pub amr: Vec<Box<str>>,
    /// Names the session in logs, and tells nothing that could be sent: a hash of `iss`, `sub`, and `sid` or else
    /// `jti`.
    pub reference: [u8; 16],
    /// Everything.
    pub claims: Map<String, Value>,
}

/// What is asked of a token.
pub(super) struct Demands<'a> {
    pub issuer: usize,
    pub issuer_name: &'a str,
    pub audience: &'a [Box<str>],
    /// In seconds, as `now`.
    pub skew: u64,
    pub now: u64,
}

impl Verified {
    /// Reads claims whose signature is good and whose issuer is the one that is named.
    pub(super) fn read(
        claims: Map<String, Value>,
        kid: Option<Box<str>>,
        demands: &Demands<'_>,
    ) -> Result<Self, TokenReason> {
        check_audience(&claims, demands.audience)?;
        let times = Times::read(&claims)?;
        times.check(demands)?;
        let subject = text(&claims, "sub")?.filter(|subject| !subject.is_empty()).ok_or(TokenReason::Claims)?;
        let jti = text(&claims, "jti")?;
        let session = claims.get("sid").and_then(Value::as_str).or(jti.as_deref());
        let reference = reference([demands.issuer_name, &subject, session.unwrap_or_default()]);
        Ok(Verified {
            issuer: demands.issuer,
            subject,
            jti,
            kid,
            issued_at: times.issued_at,
            expires_at: times.expires_at,
            auth_time: times.auth_time,
            acr: text(&claims, "acr")?,
            amr: methods(&claims)?,
            reference,
            claims,
        })
    }
}

/// One text or a list of texts, of which one is ours.
fn check_audience(claims: &Map<String, Value>, ours: &[Box<str>]) -> Result<(), TokenReason> {
    let is_ours = |name: &str| ours.iter().any(|our| **our == *name);
    let names_us = match claims.get("aud") {
        Some(Value::String(name)) => is_ours(name),
        Some(Value::Array(names)) => {
            names.iter().all(Value::is_string) && names.iter().filter_map(Value::as_str).any(is_ours)
        }
        _ => false,
    };
    if names_us { Ok(()) } else { Err(TokenReason::Audience) }
}

struct Times {
    issued_at: Option<u64>,
    not_before: Option<u64>,
    expires_at: u64,
    auth_time: Option<u64>,
}

impl Times {
    fn read(claims: &Map<String, Value>) -> Result<Self, TokenReason> {
        Ok(Times {
            issued_at: moment(claims, "iat")?,
            not_before: moment(claims, "nbf")?,
            expires_at: moment(claims, "exp")?.ok_or(TokenReason::Claims)?,
            auth_time: moment(claims, "auth_time")?,
        })
    }

    fn check(&self, demands: &Demands<'_>) -> Result<(), TokenReason> {
        if self.expires_at.saturating_add(demands.skew) <= demands.now {
            return Err(TokenReason::Expired);
        }
        let latest = demands.now.saturating_add(demands.skew);
        let begins = [self.issued_at, self.not_before, self.auth_time];
        if begins.into_iter().flatten().any(|begin| begin > latest) {
            return Err(TokenReason::NotYetValid);
        }
        Ok(())
    }
}

/// A time, where it is there: a number, and nothing that could be taken for one.
fn moment(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, TokenReason> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => whole_seconds(number).map(Some).ok_or(TokenReason::Claims),
        Some(_) => Err(TokenReason::Claims),
    }
}

fn whole_seconds(number: &Number) -> Option<u64> {
    let of_fraction = || number.as_f64().filter(|seconds| (0.0..=LATEST as f64).contains(seconds));
    let seconds = number.as_u64().or_else(|| of_fraction().map(|seconds| seconds as u64))?;
    (seconds <= LATEST).then_some(seconds)
}

fn text(claims: &Map<String, Value>, name: &str) -> Result<Option<Box<str>>, TokenReason> {
    let text = json::text(claims, name, MOST_TEXT_BYTES).map_err(|_| TokenReason::Claims)?;
    Ok(text.map(Box::<str>::from))
}

/// `amr` (RFC 8176): a list of texts.
fn methods(claims: &Map<String, Value>) -> Result<Vec<Box<str>>, TokenReason> {
    let method = |value: &Value| {
        let name = value.as_str().filter(|name| name.len() <= MOST_TEXT_BYTES);
        name.map(Box::<str>::from).ok_or(TokenReason::Claims)
    };
    match claims.get("amr") {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= MOST_METHODS => list.iter().map(method).collect(),
        Some(_) => Err(TokenReason::Claims),
    }
}

/// Each part goes with its length, so that no two lists of parts are one.
fn reference(parts: [&str; 3]) -> [u8; 16] {
    let mut hash = digest::Context::new(&digest::SHA256);
    for part in parts {
        hash.update(&part.len().to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut reference = [0; 16];
    reference.copy_from_slice(&hash.finish().as_ref()[..16]);
    reference
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::stateless::tests::{NOW, claims, ed25519, with, without};

    #[test]
    fn the_audience_has_to_be_there_and_to_name_us() {
        let (signer, edge) = ed25519();
        for aud in [json!("shop"), json!("blog"), json!(["shop"]), json!(["other", "shop"]), json!(["shop", "shop"])] {
            assert_eq!(edge.why(&signer.token(&with("aud", aud.clone()))), None, "{aud}");
        }
        for aud in [
            json!("other"),
            json!("SHOP"),
            json!("shop "),
            json!("shop blog"),
            json!(""),
            json!([]),
            json!(["other"]),
            json!([["shop"]]),
            json!(["shop", 1]),
            json!(["shop", null]),
            json!({ "shop": true }),
            json!({ "0": "shop" }),
            json!(null),
            json!(true),
            json!(1),
        ] {
            assert_eq!(edge.why(&signer.token(&with("aud", aud.clone()))), Some(TokenReason::Audience), "{aud}");
        }
        assert_eq!(edge.why(&signer.token(&without("aud"))), Some(TokenReason::Audience));
    }

    #[test]
    fn times_count_with_the_skew_and_to_the_second() {
        let (signer, edge) = ed25519();
        let cases = [
            ("exp", json!(NOW - 30), Some(TokenReason::Expired)),
            ("exp", json!(NOW - 29), None),
            ("exp", json!((NOW - 30) as f64 + 0.9), Some(TokenReason::Expired)),
            ("exp", json!(NOW as f64 + 0.5), None),
            ("exp", json!(0), Some(TokenReason::Expired)),
            ("exp", json!(253_402_300_799_u64), None),
            ("nbf", json!(NOW + 30), None),
            ("nbf", json!(NOW + 31), Some(TokenReason::NotYetValid)),
            ("nbf", json!(0), None),
            ("iat", json!(NOW + 30), None),
            ("iat", json!(NOW + 31), Some(TokenReason::NotYetValid)),
            ("iat", json!(NOW as f64 - 0.25), None),
            ("auth_time", json!(NOW + 31), Some(TokenReason::NotYetValid)),
            ("auth_time", json!(NOW - 31), None),
        ];
        for (name, value, expected) in cases {
            assert_eq!(edge.why(&signer.token(&with(name, value.clone()))), expected, "{name}: {value}");
        }
        let token = signer.token(&claims());
        for (now, expected) in
            [(NOW + 629, None), (NOW + 630, Some(TokenReason::Expired)), (u64::MAX, Some(TokenReason::Expired))]
        {
            assert_eq!(edge.verify_at(token.as_bytes(), now).err().map(|refused| refused.reason), expected, "{now}");
        }
        let truncated = edge.verify(&signer.token(&with("exp", json!(NOW as f64 + 99.75)))).unwrap();
        assert_eq!(truncated.expires_at, NOW + 99);
    }

    #[test]
    fn a_time_of_another_type_is_not_a_time_that_is_missing() {
        // CVE-2026-25537: a library skipped the check of an `nbf` that was text.
        let (signer, edge) = ed25519();
        for name in ["exp", "nbf", "iat", "auth_time"] {
            for value in [
                json!((NOW + 60).to_string()),
                json!(""),
                json!(null),
                json!(true),
                json!([NOW + 60]),
                json!({ "$date": NOW }),
                json!(-1),
                json!(-0.5),
                json!(1e300),
                json!(u64::MAX),
                json!(253_402_300_800_u64),
                json!(NOW * 1_000),
            ] {
                let why = edge.why(&signer.token(&with(name, value.clone())));
                assert_eq!(why, Some(TokenReason::Claims), "{name}: {value}");
            }
        }
        assert_eq!(edge.why(&signer.token(&without("exp"))), Some(TokenReason::Claims), "for ever");
        assert_eq!(edge.why(&signer.token(&without("iat"))), None);
        assert_eq!(edge.verify(&signer.token(&without("iat"))).unwrap().issued_at, None);
    }

    #[test]
    fn other_claims_are_what_they_have_to_be() {
        let (signer, edge) = ed25519();
        let long = "x".repeat(MOST_TEXT_BYTES + 1);
        for (name, value, is_taken) in [
            ("sub", json!("x".repeat(MOST_TEXT_BYTES)), true),
            ("sub", json!(""), false),
            ("sub", json!(long), false),
            ("sub", json!(7), false),
            ("sub", json!(null), false),
            ("sub", json!(["alice"]), false),
            ("jti", json!("t"), true),
            ("jti", json!(7), false),
            ("jti", json!(long), false),
            ("acr", json!("urn:mfa"), true),
            ("acr", json!(2), false),
            ("acr", json!(null), false),
            ("amr", json!([]), true),
            ("amr", json!(vec!["otp"; 16]), true),
            ("amr", json!(vec!["otp"; 17]), false),
            ("amr", json!("otp"), false),
            ("amr", json!(["otp", 1]), false),
            ("amr", json!([long]), false),
            ("amr", json!(null), false),
            ("anything", json!({ "else": [1, null] }), true),
        ] {
            let expected = (!is_taken).then_some(TokenReason::Claims);
            assert_eq!(edge.why(&signer.token(&with(name, value.clone()))), expected, "{name}: {value}");
        }
        assert_eq!(edge.why(&signer.token(&without("sub"))), Some(TokenReason::Claims), "about nobody");
    }

    #[test]
    fn a_reference_names_the_session_of_a_subject() {
        let (signer, edge) = ed25519();
        let reference = |changes: &[(&str, &str)]| {
            let mut claims = claims();
            for (name, value) in changes {
                claims[*name] = (*value).into();
            }
            edge.verify(&signer.token(&claims)).unwrap().reference
        };
        let all = [
            reference(&[]),
            reference(&[("sub", "bob")]),
            reference(&[("jti", "1")]),
            reference(&[("jti", "2")]),
            reference(&[("sid", "s")]),
            reference(&[("sub", "alices")]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
        assert_eq!(
            reference(&[("sid", "s"), ("jti", "1")]),
            reference(&[("sid", "s"), ("jti", "2")]),
            "a refreshed token"
        );
    }
}
