//! Stateless sessions: a signed token says who somebody is, and nothing is stored (JWT, RFC 7519).
//!
//! The idea: a token has no say in how it is checked (RFC 8725). The algorithm comes from the issuer's configuration
//! and has to fit the key, the key comes from the issuer's own set (JWKS, RFC 7517), and every header that would
//! change either is refused. What is read is compact JWS (RFC 7515) of three segments and nothing looser: one way to
//! write a token, and one meaning. [`carried`] finds it in a request, [`Verifier`] checks it, [`Cache`] remembers that
//! it was, and [`Revocations`] says that it counts no more.
//!
//! This module decides; it is given the time and the keys. It fetches nothing, opens no encrypted tokens (JWE), and
//! unpacks no nested ones.
//!
//! Signatures are checked by aws-lc-rs directly: a JWT library would choose by the token's own word, and bring a second
//! JSON and a second base64 reader with rules of their own. What is left to do here is small, and all of it is strict.

mod cache;
mod carrier;
mod claims;
mod json;
mod jws;
mod keys;
mod refusal;
mod revoked;
mod settings;
mod verify;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;

pub use cache::{Cache, TokenHash, token_hash};
pub use carrier::carried;
pub use claims::Verified;
pub use json::MOST_TEXT_BYTES;
pub use jws::{MOST_HEADER_BYTES, MOST_TOKEN_BYTES};
pub use keys::{BadKeys, FEWEST_SECRET_BYTES, Keys, MOST_KEYS, MOST_KEYS_BYTES, Skipped};
pub use refusal::{Refused, TokenReason, TwoCarriers, challenge};
pub use revoked::{
    BadRevocation, MOST_A_PAGE, PAGES, Revocation, Revocations, What, expire, merge, page_of, read_page, write_page,
};
pub use settings::{Algorithm, Carrier, IssuerSettings, KeySource, LONGEST_SKEW, Settings};
pub use verify::Verifier;
