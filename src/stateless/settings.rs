//! Whose tokens a pool takes, signed how, and where they come in.

use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::names::words;

/// The most that clocks may be thought apart. Revocations count for so much longer than the tokens that they name.
pub const LONGEST_SKEW: Duration = Duration::from_secs(300);

words! {
    /// What signs tokens (RFC 7518 and 8037). There is no word for "none": nothing could ask for it.
    Algorithm {
        Es256 = "ES256",
        Es384 = "ES384",
        Es512 = "ES512",
        /// With Ed25519, and no other curve.
        EdDsa = "EdDSA",
        /// The same under the name that says so (RFC 9864).
        Ed25519 = "Ed25519",
        Rs256 = "RS256",
        Rs384 = "RS384",
        Rs512 = "RS512",
        Ps256 = "PS256",
        Ps384 = "PS384",
        Ps512 = "PS512",
        /// Whoever can check such a token can make one: for an issuer with a secret, and beside no other.
        Hs256 = "HS256",
    }
}

/// `[pool.stateless]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub carrier: Carrier,
    /// What `typ` may be, whatever the case and with or without `application/` before it. A token without `typ` is
    /// taken where `JWT` is listed: most issuers leave it out, and it says no more than that.
    pub types: Vec<Box<str>>,
    /// How far the issuers' clocks may be off; at most [`LONGEST_SKEW`].
    pub skew: Duration,
    pub issuers: Vec<IssuerSettings>,
}

/// How a request carries its token. Never in the URL: that ends in logs and in the history of browsers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// `Authorization: Bearer` (RFC 6750).
    Header,
    /// The cookie of this name.
    Cookie(Box<str>),
}

/// `[[pool.stateless.issuer]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerSettings {
    /// Exactly what `iss` says.
    pub issuer: Box<str>,
    /// `aud` has to name one of these.
    pub audience: Vec<Box<str>>,
    /// What it signs with: HS256 alone and with a secret, or any of the others.
    pub algorithms: Vec<Algorithm>,
    pub keys: KeySource,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A JWKS over https.
    Url(String),
    /// A JWKS in a file.
    File(PathBuf),
    /// What the issuer and we know, for HS256.
    Secret(Zeroizing<Vec<u8>>),
}
