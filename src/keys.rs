//! The key ring: every secret of the proxy is derived from it, so proxies with one ring agree with no shared state.
//!
//! A key file is one line, `sfk1_` and 32 bytes in base64url. The first key of the ring seals, all open; so a key is
//! rotated in two steps (append it everywhere, then move it to the front) and a fleet half way through still agrees.
//! No ring key is used itself: each use derives its own by HKDF-SHA-256 (RFC 5869) with a label of its own, so what
//! one use leaks tells nothing about another. Sealing is AES-256-GCM-SIV (RFC 8452), which tolerates a repeated nonce.

use std::cell::RefCell;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::{constant_time, digest, hkdf, hmac};
use data_encoding::BASE64URL_NOPAD;
use zeroize::Zeroizing;

const PREFIX: &str = "sfk1_";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// A public name of a ring key: the first four bytes of its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KeyId(pub [u8; 4]);

/// Why the text of a key file is no key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    #[error("a key is one line that begins with `sfk1_`; `steadfast key` prints one")]
    Prefix,
    #[error("a key is `sfk1_` and 43 characters of base64url (32 bytes); `steadfast key` prints one")]
    Length,
}

/// One key of the ring.
pub struct RingKey {
    id: KeyId,
    secret: Zeroizing<[u8; KEY_BYTES]>,
}

impl RingKey {
    /// Reads the text of a key file.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(KeyError::Prefix)?;
        let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| KeyError::Length)?);
        let secret: [u8; KEY_BYTES] = bytes.as_slice().try_into().map_err(|_| KeyError::Length)?;
        Ok(Self::from_secret(secret))
    }

    /// A key of these random bytes.
    pub fn from_secret(secret: [u8; KEY_BYTES]) -> Self {
        let hash = digest::digest(&digest::SHA256, &secret);
        let mut id = [0; 4];
        id.copy_from_slice(&hash.as_ref()[..4]);
        RingKey { id: KeyId(id), secret: Zeroizing::new(secret) }
    }

    /// The line that a key file holds.
    pub fn to_line(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PREFIX}{}", BASE64URL_NOPAD.encode(self.secret.as_slice())))
    }

    fn derive(&self, label: &str, context: &[u8]) -> Zeroizing<[u8; KEY_BYTES]> {
        let mut derived = Zeroizing::new([0; KEY_BYTES]);
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"steadfast").extract(self.secret.as_slice());
        let info: [&[u8]; 3] = [label.as_bytes(), &[0], context];
        prk.expand(&info, hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(derived.as_mut_slice()))
            .expect("32 bytes are within what HKDF-SHA-256 gives");
        derived
    }
}

/// Where secrets come from. Passed in, so that decisions can be repeated in tests.
pub trait Entropy {
    /// Fills a buffer with bytes that nobody can guess.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// Fresh bytes from a source.
pub fn fresh<const N: usize>(entropy: &mut dyn Entropy) -> [u8; N] {
    let mut bytes = [0; N];
    entropy.fill(&mut bytes);
    bytes
}

/// The operating system's own source, asked for some at a time: each question is a system call.
#[derive(Clone, Copy, Default)]
pub struct SystemEntropy;

const DRAWN_BYTES: usize = 512;

thread_local! {
    /// What was drawn; what lies before the mark has been given away.
    static DRAWN: RefCell<(Zeroizing<[u8; DRAWN_BYTES]>, usize)> =
        RefCell::new((Zeroizing::new([0; DRAWN_BYTES]), DRAWN_BYTES));
}

impl Entropy for SystemEntropy {
    /// # Panics
    /// When the operating system has no entropy to give: no secret can be made then.
    fn fill(&mut self, bytes: &mut [u8]) {
        if bytes.len() > DRAWN_BYTES {
            return getrandom::fill(bytes).expect("the operating system gives random bytes");
        }
        DRAWN.with_borrow_mut(|(drawn, given)| {
            if bytes.len() > DRAWN_BYTES - *given {
                getrandom::fill(drawn.as_mut_slice()).expect("the operating system gives random bytes");
                *given = 0;
            }
            let (taken, _) = drawn[*given..].split_at_mut(bytes.len());
            bytes.copy_from_slice(taken);
            // Nobody is given the same bytes, and nobody finds them here afterwards.
            taken.fill(0);
            *given += bytes.len();
        });
    }
}

/// 32 bytes from the operating system.
///
/// # Panics
/// When the operating system has no entropy to give: no secret can be made then.
pub fn random_secret() -> [u8; KEY_BYTES] {
    fresh(&mut SystemEntropy)
}

/// Current and previous keys. The first one seals, all open.
pub struct KeyRing {
    keys: Vec<RingKey>,
}

impl KeyRing {
    /// A ring of these keys, the sealing one first.
    ///
    /// # Panics
    /// When there is no key: configuration never builds an empty ring.
    pub fn new(keys: Vec<RingKey>) -> Self {
        assert!(!keys.is_empty(), "a ring has at least one key");
        KeyRing { keys }
    }

    /// A ring of one key that was drawn when the process started: the same at every call, gone with the process.
    pub fn ephemeral() -> Self {
        static SECRET: std::sync::OnceLock<[u8; KEY_BYTES]> = std::sync::OnceLock::new();
        KeyRing::new(vec![RingKey::from_secret(*SECRET.get_or_init(random_secret))])
    }

    /// The sealing key's own HMAC for a label.
    pub fn hasher(&self, label: &str) -> Hasher {
        Hasher::new(&self.keys[0], label)
    }

    /// One HMAC per key, in ring order, for names that an older key may have hashed.
    pub fn hashers(&self, label: &str) -> Vec<Hasher> {
        self.keys.iter().map(|key| Hasher::new(key, label)).collect()
    }

    /// One secret per key for a use, in ring order, with the key's public name.
    pub fn derive(&self, label: &str, context: &[u8]) -> Vec<(KeyId, Zeroizing<[u8; KEY_BYTES]>)> {
        self.keys.iter().map(|key| (key.id, key.derive(label, context))).collect()
    }

    /// What seals and opens values of one use.
    pub fn sealer(&self, label: &str, context: &[u8]) -> Sealer {
        let keys = self.keys.iter().map(|key| {
            let derived = key.derive(label, context);
            let aead = RandomizedNonceKey::new(&AES_256_GCM_SIV, derived.as_slice());
            (key.id, aead.expect("a 32-byte key is what AES-256 takes"))
        });
        Sealer { keys: keys.collect() }
    }
}

/// A secret word that somebody has to know. Only its SHA-256 is kept.
pub struct Token([u8; digest::SHA256_OUTPUT_LEN]);

impl Token {
    /// What can be guessed is no secret: the fewest bytes of a token.
    pub const FEWEST_BYTES: usize = 16;

    /// A token; nothing when it is too short, or could not be sent in a header.
    pub fn new(word: &[u8]) -> Option<Self> {
        let fits = word.iter().all(|byte| (b' '..=b'~').contains(byte));
        (fits && word.len() >= Self::FEWEST_BYTES).then(|| Token(Self::digest(word)))
    }

    fn digest(word: &[u8]) -> [u8; digest::SHA256_OUTPUT_LEN] {
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, word).as_ref());
        bytes
    }

    /// Whether this is the word; the time it takes tells nothing.
    pub fn is(&self, given: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &Self::digest(given)).is_ok()
    }

    /// What tells this token from another, and not what it is.
    pub fn name(&self) -> [u8; 8] {
        let mut name = [0; 8];
        name.copy_from_slice(&Self::digest(&self.0)[..8]);
        name
    }
}

/// A keyed hash of names and references: HMAC-SHA-256, truncated.
pub struct Hasher(hmac::Key);

impl Hasher {
    fn new(key: &RingKey, label: &str) -> Self {
        Hasher(hmac::Key::new(hmac::HMAC_SHA256, key.derive(label, b"").as_slice()))
    }

    /// A hasher under a secret that was derived for it.
    pub fn of_secret(secret: &[u8; KEY_BYTES]) -> Self {
        Hasher(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The first 64 bits of the HMAC.
    pub fn hash(&self, value: &[u8]) -> u64 {
        u64::from_be_bytes(self.tag(value))
    }

    /// The first `N` bytes of the HMAC; at most 32.
    pub fn tag<const N: usize>(&self, value: &[u8]) -> [u8; N] {
        let tag = hmac::sign(&self.0, value);
        let mut first = [0; N];
        first.copy_from_slice(&tag.as_ref()[..N]);
        first
    }
}

/// Derives the key of one value from a secret that is shared by many and one that is its own (HKDF-SHA-256, RFC 5869).
///
/// # Panics
/// Never: 32 bytes are within what HKDF-SHA-256 gives.
pub fn derive_own(shared: &[u8; KEY_BYTES], own: &[u8], label: &str) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut derived = Zeroizing::new([0; KEY_BYTES]);
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, own).extract(shared);
    prk.expand(&[label.as_bytes()], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(derived.as_mut_slice()))
        .expect("32 bytes are within what HKDF-SHA-256 gives");
    derived
}

/// What seals and opens values under one key, each bound to what it is (AES-256-GCM-SIV, RFC 8452). A sealed value is nonce,
/// ciphertext and tag.
pub struct Aead(RandomizedNonceKey);

impl Aead {
    /// # Panics
    /// Never: a 32-byte key is what AES-256 takes.
    pub fn new(key: &[u8; KEY_BYTES]) -> Self {
        Aead(RandomizedNonceKey::new(&AES_256_GCM_SIV, key).expect("a 32-byte key is what AES-256 takes"))
    }

    /// Seals a value; `about` has to be said again when it is opened.
    pub fn seal(&self, about: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut sealed = vec![0; NONCE_LEN];
        let mut body = plain.to_vec();
        let sealing = self.0.seal_in_place_append_tag(Aad::from(about), &mut body);
        let nonce = sealing.expect("values of less than 2^36 bytes always seal");
        sealed.copy_from_slice(nonce.as_ref());
        sealed.append(&mut body);
        sealed
    }

    /// Opens a sealed value; nothing when it is not one, or is about something else.
    pub fn open(&self, about: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = self.0.open_in_place(nonce, Aad::from(about), body.as_mut_slice()).ok()?.len();
        body.truncate(length);
        Some(body)
    }
}

/// Why a sealed value does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Not of the form of a sealed value.
    Malformed,
    /// Sealed with a key that is not in this ring: a fleet half way through a rotation, or another installation.
    UnknownKey,
    /// Sealed by nobody who has the key.
    Forged,
}

/// Seals small values for one use. A sealed value is key id, nonce, ciphertext and tag.
pub struct Sealer {
    keys: Vec<(KeyId, RandomizedNonceKey)>,
}

impl Sealer {
    /// How much longer a sealed value is than what is inside.
    pub const OVERHEAD: usize = 4 + NONCE_LEN + TAG_BYTES;

    /// Seals `plain` into a fixed-size array of `N` = `plain.len()` + [`Self::OVERHEAD`] bytes.
    pub fn seal<const N: usize>(&self, plain: &[u8]) -> [u8; N] {
        assert_eq!(plain.len() + Self::OVERHEAD, N, "the size of a sealed value is fixed by its use");
        let (id, key) = &self.keys[0];
        let mut sealed = [0; N];
        let body = 4 + NONCE_LEN..N - TAG_BYTES;
        sealed[..4].copy_from_slice(&id.0);
        sealed[body.clone()].copy_from_slice(plain);
        let (nonce, tag) =
            key.seal_in_place_separate_tag(Aad::empty(), &mut sealed[body]).expect("values this small always seal");
        sealed[4..4 + NONCE_LEN].copy_from_slice(nonce.as_ref());
        sealed[N - TAG_BYTES..].copy_from_slice(tag.as_ref());
        sealed
    }

    /// Seals a value of any length.
    pub fn seal_vec(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let (id, key) = self.keys.first()?;
        let mut body = plain.to_vec();
        let (nonce, tag) = key.seal_in_place_separate_tag(Aad::empty(), &mut body).ok()?;
        let mut sealed = Vec::with_capacity(plain.len() + Self::OVERHEAD);
        sealed.extend_from_slice(&id.0);
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&body);
        sealed.extend_from_slice(tag.as_ref());
        Some(sealed)
    }

    /// Opens a sealed value in place: the plain bytes, and the position of the key in the ring.
    pub fn open<'a>(&self, sealed: &'a mut [u8]) -> Result<(usize, &'a [u8]), OpenError> {
        if sealed.len() < Self::OVERHEAD {
            return Err(OpenError::Malformed);
        }
        let position = self.keys.iter().position(|(id, _)| id.0 == sealed[..4]).ok_or(OpenError::UnknownKey)?;
        let (head, body) = sealed.split_at_mut(4 + NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(&head[4..]).map_err(|_| OpenError::Malformed)?;
        let plain = self.keys[position].1.open_in_place(nonce, Aad::empty(), body);
        plain.map(|plain| (position, &*plain)).map_err(|_| OpenError::Forged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(byte: u8) -> RingKey {
        RingKey::from_secret([byte; 32])
    }

    #[test]
    fn a_key_line_reads_back() {
        let line = key(7).to_line();
        assert_eq!(RingKey::parse(&format!("{}\n", *line)).unwrap().id, key(7).id);
        assert_eq!(RingKey::parse("hello").err(), Some(KeyError::Prefix));
        assert_eq!(RingKey::parse("sfk1_abc").err(), Some(KeyError::Length));
    }

    #[test]
    fn a_rotated_ring_opens_what_the_old_key_sealed_and_a_stranger_does_not() {
        let old = KeyRing::new(vec![key(1)]).sealer("pin", b"");
        let rotated = KeyRing::new(vec![key(2), key(1)]).sealer("pin", b"");
        let stranger = KeyRing::new(vec![key(3)]).sealer("pin", b"");
        let sealed: [u8; 5 + Sealer::OVERHEAD] = old.seal(b"hello");
        assert_eq!(rotated.open(&mut sealed.clone()), Ok((1, b"hello".as_slice())));
        assert_eq!(stranger.open(&mut sealed.clone()), Err(OpenError::UnknownKey));
    }

    #[test]
    fn each_use_has_its_own_key() {
        let ring = KeyRing::new(vec![key(1)]);
        let mut sealed: [u8; 1 + Sealer::OVERHEAD] = ring.sealer("pin", b"shop").seal(b"x");
        assert_eq!(ring.sealer("pin", b"blog").open(&mut sealed.clone()), Err(OpenError::Forged));
        assert_eq!(ring.sealer("ticket", b"shop").open(&mut sealed), Err(OpenError::Forged));
        assert_ne!(ring.hasher("a").hash(b"x"), ring.hasher("b").hash(b"x"));
    }

    proptest! {
        #[test]
        fn no_changed_byte_opens(plain in proptest::array::uniform16(any::<u8>()), at in 0usize..48, flip in 1u8..) {
            let sealer = KeyRing::new(vec![key(9)]).sealer("pin", b"");
            let mut sealed: [u8; 16 + Sealer::OVERHEAD] = sealer.seal(&plain);
            sealed[at] ^= flip;
            prop_assert!(sealer.open(&mut sealed).is_err());
        }

        #[test]
        fn garbage_never_opens(mut garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
            let sealer = KeyRing::new(vec![key(9)]).sealer("pin", b"");
            prop_assert!(sealer.open(&mut garbage).is_err());
        }
    }
}
