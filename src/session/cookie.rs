//! The session cookie: which key of the ring, which shard of the store, and a secret. Only the secret is secret.

use data_encoding::BASE64URL_NOPAD;
use zeroize::Zeroizing;

use super::store::TAG_BITS;
use crate::keys::{Entropy, KeyId, fresh};

const VERSION: u8 = 1;
/// Bytes of a handle's secret.
pub const SECRET_BYTES: usize = 32;
const BYTES: usize = 1 + 4 + 2 + SECRET_BYTES;
/// The length of every session cookie's value.
pub const CHARS: usize = (BYTES * 4).div_ceil(3);

/// What a client shows to have its session.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionCookie {
    /// The ring key that its records are found and opened with.
    pub key: KeyId,
    /// The shard of its records, kept through renewal and login.
    pub tag: u16,
    pub secret: Zeroizing<[u8; SECRET_BYTES]>,
}

impl std::fmt::Debug for SessionCookie {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "SessionCookie(tag {})", self.tag)
    }
}

impl SessionCookie {
    /// A new one, in this shard or in any.
    pub fn new(key: KeyId, tag: Option<u16>, entropy: &mut dyn Entropy) -> Self {
        let tag = tag.unwrap_or_else(|| u16::from_be_bytes(fresh(entropy)) >> (16 - TAG_BITS));
        SessionCookie { key, tag, secret: Zeroizing::new(fresh(entropy)) }
    }

    /// Reads a cookie's value.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; BYTES]);
        if value.len() != CHARS || BASE64URL_NOPAD.decode_mut(value, bytes.as_mut_slice()).ok()? != BYTES {
            return None;
        }
        let (&version, rest) = bytes.split_first()?;
        let (key, rest) = rest.split_first_chunk()?;
        let (tag, secret) = rest.split_first_chunk()?;
        let tag = u16::from_be_bytes(*tag);
        let secret = Zeroizing::new(secret.try_into().ok()?);
        (version == VERSION && tag >> TAG_BITS == 0).then_some(SessionCookie { key: KeyId(*key), tag, secret })
    }

    /// The cookie's value.
    pub fn value(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; BYTES]);
        bytes[0] = VERSION;
        bytes[1..5].copy_from_slice(&self.key.0);
        bytes[5..7].copy_from_slice(&self.tag.to_be_bytes());
        bytes[7..].copy_from_slice(self.secret.as_slice());
        Zeroizing::new(BASE64URL_NOPAD.encode(bytes.as_slice()))
    }
}
