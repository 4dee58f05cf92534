//! An issuer's keys: a set of public ones (JWKS, RFC 7517 and 7518), or one secret.
//!
//! A key is parsed once, for each algorithm that it is for and that the issuer is said to use; nothing else can be
//! asked of it later. So a public key is never taken for a secret, whatever a token says. A set may hold keys that are
//! not for us: they are skipped, and [`Keys::skipped`] says why, as somebody will wonder. Skipped with them are keys
//! whose private half is in the set: whoever has read it can sign.

use aws_lc_rs::error::KeyRejected;
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, VerificationAlgorithm,
};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value};

use super::json::{self, MOST_TEXT_BYTES};
use super::jws::Header;
use super::settings::Algorithm;
use crate::names::words;

/// The longest key set, in bytes.
pub const MOST_KEYS_BYTES: usize = 256 * 1024;
/// The most keys of a set.
pub const MOST_KEYS: usize = 64;
/// A secret is as long as the hash (RFC 7518, section 3.2): a word that can be guessed is found offline from one token.
pub const FEWEST_SECRET_BYTES: usize = 32;

/// Keys of one name that are tried on one token.
const MOST_TRIED: usize = 4;
/// A number of 8,192 bits in base64url, and some room.
const MOST_NUMBER_BYTES: usize = 1_400;
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;
/// The longest exponent of RSA: each bit of it is work at every check.
const MOST_EXPONENT_BYTES: usize = 4;
const ED25519_BYTES: usize = 32;
/// Members that only a private key has.
const PRIVATE: [&str; 7] = ["d", "p", "q", "dp", "dq", "qi", "oth"];

/// Why text is no key set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    #[error("a key set has at most {MOST_KEYS_BYTES} bytes")]
    TooLarge,
    #[error("it is no JSON object with a list `keys`, or has a member twice")]
    Malformed,
    #[error("a key set has at most {MOST_KEYS} keys")]
    TooMany,
}

words! {
    /// Why a key of a set is not used.
    Skipped {
        /// Of a type or on a curve that is not known.
        Unsupported = "unsupported",
        /// For something else than to verify signatures.
        Use = "use",
        /// For none of the issuer's algorithms.
        Algorithm = "algorithm",
        /// A shared secret, which has no place where others read it.
        Symmetric = "symmetric",
        /// Its private half is in the set as well.
        Private = "private",
        /// Not as a key has to be, or too weak.
        Bad = "bad",
    }
}

/// The keys of one issuer.
#[derive(Debug)]
pub struct Keys {
    kind: Kind,
    skipped: Vec<(Option<Box<str>>, Skipped)>,
}

#[derive(Debug)]
enum Kind {
    Public(Vec<Key>),
    Secret(Box<hmac::Key>),
}

#[derive(Debug)]
struct Key {
    kid: Option<Box<str>>,
    checks: Vec<(Algorithm, ParsedPublicKey)>,
}

/// Why a signature does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unchecked {
    /// No key of this name; or no name, and no key for the algorithm.
    Unknown,
    /// No name, and more than one key that it could be.
    Ambiguous,
    /// The key is for other algorithms.
    Unfit,
    Wrong,
}

impl Keys {
    /// Reads a key set for an issuer who uses these algorithms. A set may have no key that is of use: what an issuer
    /// shows counts, also when it shows nothing any more.
    pub fn parse(text: &[u8], algorithms: &[Algorithm]) -> Result<Self, BadKeys> {
        if text.len() > MOST_KEYS_BYTES {
            return Err(BadKeys::TooLarge);
        }
        let set = json::object(text).ok_or(BadKeys::Malformed)?;
        let Some(Value::Array(listed)) = set.get("keys") else { return Err(BadKeys::Malformed) };
        if listed.len() > MOST_KEYS {
            return Err(BadKeys::TooMany);
        }
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        for jwk in listed {
            match Key::read(jwk, algorithms) {
                Ok(key) => keys.push(key),
                Err(why) => skipped.push((name_of(jwk), why)),
            }
        }
        Ok(Keys { kind: Kind::Public(keys), skipped })
    }

    /// The key of an issuer with a secret, for HS256. One that is too short verifies nothing.
    pub fn secret(secret: &[u8]) -> Self {
        if secret.len() < FEWEST_SECRET_BYTES {
            return Keys { kind: Kind::Public(Vec::new()), skipped: vec![(None, Skipped::Bad)] };
        }
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Keys { kind: Kind::Secret(Box::new(secret)), skipped: Vec::new() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.kind {
            Kind::Public(keys) => keys.len(),
            Kind::Secret(_) => 1,
        }
    }

    /// Whether there is none: no token of this issuer counts then.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys that are not used, by name, and why.
    pub fn skipped(&self) -> &[(Option<Box<str>>, Skipped)] {
        &self.skipped
    }

    /// Checks a signature. Gives the name of the key that it was made with: what is revoked by the name of a key must
    /// not come back without the name.
    pub(super) fn check(
        &self,
        header: &Header,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<Option<Box<str>>, Unchecked> {
        match &self.kind {
            Kind::Public(keys) => check_public(keys, header, signed, signature),
            Kind::Secret(_) if header.algorithm != Algorithm::Hs256 => Err(Unchecked::Unfit),
            Kind::Secret(secret) => {
                hmac::verify(secret, signed, signature).map_err(|_| Unchecked::Wrong)?;
                // There is one key, so a name has nothing to choose; it is what the issuer calls it.
                Ok(header.kid.clone())
            }
        }
    }
}

fn check_public(keys: &[Key], header: &Header, signed: &[u8], signature: &[u8]) -> Result<Option<Box<str>>, Unchecked> {
    let is_named = |key: &&Key| header.kid.is_none() || key.kid == header.kid;
    if !keys.iter().any(|key| is_named(&key)) {
        return Err(Unchecked::Unknown);
    }
    let fitting = keys.iter().filter(is_named).filter_map(|key| Some((key, key.check_for(header.algorithm)?)));
    let fitting: Vec<(&Key, &ParsedPublicKey)> = fitting.take(MOST_TRIED).collect();
    match (&header.kid, fitting.len()) {
        (None, 0) => return Err(Unchecked::Unknown),
        (None, 2..) => return Err(Unchecked::Ambiguous),
        (Some(_), 0) => return Err(Unchecked::Unfit),
        _ => {}
    }
    let good = fitting.iter().find(|(_, check)| check.verify_sig(signed, signature).is_ok());
    good.map(|(key, _)| key.kid.clone()).ok_or(Unchecked::Wrong)
}

fn name_of(jwk: &Value) -> Option<Box<str>> {
    json::text(jwk.as_object()?, "kid", MOST_TEXT_BYTES).ok()?.map(Box::<str>::from)
}

impl Key {
    /// Reads a key (RFC 7517, section 4), for those of these algorithms that it is for.
    fn read(jwk: &Value, algorithms: &[Algorithm]) -> Result<Self, Skipped> {
        let members = jwk.as_object().ok_or(Skipped::Bad)?;
        let kid = text(members, "kid")?.map(Box::<str>::from);
        let kty = text(members, "kty")?.ok_or(Skipped::Bad)?;
        if kty == "oct" {
            return Err(Skipped::Symmetric);
        }
        if PRIVATE.iter().any(|name| members.contains_key(*name)) {
            return Err(Skipped::Private);
        }
        if !is_for_signatures(members)? {
            return Err(Skipped::Use);
        }
        let only = text(members, "alg")?;
        let material = Material::read(kty, members)?;
        let wanted = algorithms.iter().filter(|algorithm| only.is_none_or(|only| only == algorithm.as_str()));
        let checks = wanted.filter_map(|algorithm| Some((*algorithm, material.parse_for(*algorithm)?)));
        let checks = checks.map(|(algorithm, check)| check.map(|check| (algorithm, check)).map_err(|_| Skipped::Bad));
        let checks = checks.collect::<Result<Vec<_>, Skipped>>()?;
        if checks.is_empty() { Err(Skipped::Algorithm) } else { Ok(Key { kid, checks }) }
    }

    fn check_for(&self, algorithm: Algorithm) -> Option<&ParsedPublicKey> {
        self.checks.iter().find(|(other, _)| *other == algorithm).map(|(_, check)| check)
    }
}

fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Skipped> {
    json::text(members, name, MOST_TEXT_BYTES).map_err(|_| Skipped::Bad)
}

/// What neither `use` nor `key_ops` denies (RFC 7517, sections 4.2 and 4.3).
fn is_for_signatures(members: &Map<String, Value>) -> Result<bool, Skipped> {
    let by_operations = match members.get("key_ops") {
        None => true,
        Some(Value::Array(operations)) if operations.iter().all(Value::is_string) => {
            operations.iter().any(|operation| operation == "verify")
        }
        Some(_) => return Err(Skipped::Bad),
    };
    Ok(by_operations && text(members, "use")?.is_none_or(|purpose| purpose == "sig"))
}

words! {
    Curve {
        P256 = "P-256",
        P384 = "P-384",
        P521 = "P-521",
    }
}

impl Curve {
    const fn coordinate_bytes(self) -> usize {
        match self {
            Curve::P256 => 32,
            Curve::P384 => 48,
            Curve::P521 => 66,
        }
    }
}

/// The numbers that a public key is (RFC 7518, section 6, and RFC 8037).
enum Material {
    /// The point, uncompressed (SEC 1, section 2.3.3).
    Ec(Curve, Vec<u8>),
    Ed25519(Vec<u8>),
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
}

impl Material {
    fn read(kty: &str, members: &Map<String, Value>) -> Result<Self, Skipped> {
        let number = |name: &str| {
            let text = json::text(members, name, MOST_NUMBER_BYTES).ok().flatten().ok_or(Skipped::Bad)?;
            BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| Skipped::Bad)
        };
        match kty {
            "EC" => {
                let name = text(members, "crv")?.ok_or(Skipped::Bad)?;
                let curve = Curve::from_word(name).ok_or(Skipped::Unsupported)?;
                let (x, y) = (number("x")?, number("y")?);
                let are_full = [&x, &y].iter().all(|coordinate| coordinate.len() == curve.coordinate_bytes());
                let point = || Material::Ec(curve, [&[4_u8][..], x.as_slice(), y.as_slice()].concat());
                are_full.then(point).ok_or(Skipped::Bad)
            }
            "OKP" if text(members, "crv")? == Some("Ed25519") => {
                let point = number("x")?;
                if point.len() == ED25519_BYTES { Ok(Material::Ed25519(point)) } else { Err(Skipped::Bad) }
            }
            "RSA" => {
                let components = RsaPublicKeyComponents { n: number("n")?, e: number("e")? };
                if is_sound(&components) { Ok(Material::Rsa(components)) } else { Err(Skipped::Bad) }
            }
            _ => Err(Skipped::Unsupported),
        }
    }

    /// The key for an algorithm; nothing where it is of another kind, an error where it is no good key.
    fn parse_for(&self, algorithm: Algorithm) -> Option<Result<ParsedPublicKey, KeyRejected>> {
        let ec = |wanted: Curve, how: &'static dyn VerificationAlgorithm| match self {
            Material::Ec(curve, point) if *curve == wanted => Some(ParsedPublicKey::new(how, point)),
            _ => None,
        };
        let rsa = |how: &'static RsaParameters| match self {
            Material::Rsa(components) => Some(components.to_parsed_public_key(how)),
            _ => None,
        };
        match algorithm {
            Algorithm::Es256 => ec(Curve::P256, &ECDSA_P256_SHA256_FIXED),
            Algorithm::Es384 => ec(Curve::P384, &ECDSA_P384_SHA384_FIXED),
            Algorithm::Es512 => ec(Curve::P521, &ECDSA_P521_SHA512_FIXED),
            Algorithm::EdDsa | Algorithm::Ed25519 => match self {
                Material::Ed25519(point) => Some(ParsedPublicKey::new(&ED25519, point)),
                _ => None,
            },
            Algorithm::Rs256 => rsa(&RSA_PKCS1_2048_8192_SHA256),
            Algorithm::Rs384 => rsa(&RSA_PKCS1_2048_8192_SHA384),
            Algorithm::Rs512 => rsa(&RSA_PKCS1_2048_8192_SHA512),
            Algorithm::Ps256 => rsa(&RSA_PSS_2048_8192_SHA256),
            Algorithm::Ps384 => rsa(&RSA_PSS_2048_8192_SHA384),
            Algorithm::Ps512 => rsa(&RSA_PSS_2048_8192_SHA512),
            // No public key is for it.
            Algorithm::Hs256 => None,
        }
    }
}

/// Whether a modulus is odd and of a size that holds and can be afforded, and an exponent odd, not 1 and not long; both
/// without zeros in front.
fn is_sound(key: &RsaPublicKeyComponents<Vec<u8>>) -> bool {
    let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
    let bits = |number: &[u8]| match number.first() {
        Some(first) if *first != 0 => number.len() * 8 - first.leading_zeros() as usize,
        _ => 0,
    };
    let exponent_is_fine = is_odd(&key.e) && bits(&key.e) > 1 && key.e.len() <= MOST_EXPONENT_BYTES;
    exponent_is_fine && is_odd(&key.n) && RSA_BITS.contains(&bits(&key.n))
}

#[cfg(test)]
mod tests;
