//! An issuer of tokens: its keys, and whatever it is told to sign.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

pub const ISSUER: &str = "https://id.example.com";

/// One key of an issuer.
pub struct Issuer {
    pair: Ed25519KeyPair,
    pub kid: &'static str,
}

impl Issuer {
    /// A key that is made of one byte, so that tests can make it again.
    pub fn new(kid: &'static str, byte: u8) -> Self {
        Issuer { pair: Ed25519KeyPair::from_seed_unchecked(&[byte; 32]).unwrap(), kid }
    }

    /// Its public key, as a JWK.
    pub fn jwk(&self) -> Value {
        let public = BASE64URL_NOPAD.encode(self.pair.public_key().as_ref());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.kid, "use": "sig", "alg": "EdDSA", "x": public })
    }

    /// A token of these claims, as they are.
    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": self.kid });
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = BASE64URL_NOPAD.encode(self.pair.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }

    /// A token of somebody, for an hour; `more` overrides.
    pub fn token(&self, subject: &str, more: &Value) -> String {
        let now = now();
        let mut claims = json!({
            "iss": ISSUER, "aud": "shop", "sub": subject, "iat": now, "exp": now + 3_600,
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        self.sign(&claims)
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// A key set of these keys.
pub fn key_set(issuers: &[&Issuer]) -> String {
    json!({ "keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>() }).to_string()
}
