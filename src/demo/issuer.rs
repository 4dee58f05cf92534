//! The demo's own issuer of tokens (JWT, RFC 7519), signed with Ed25519 (RFC 8037): what an identity provider is elsewhere.
//!
//! One key is drawn when the demo starts. It lies in the demo's own directory, so that every app server can sign, also one
//! that was killed and started again; beside it lies the public half as a JWKS (RFC 7517), by which the proxy checks.

use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::keys::{Entropy, fresh, random_secret};

/// What `iss` and `aud` say.
pub const NAME: &str = "https://id.localhost";
pub const AUDIENCE: &str = "shop";
/// How long a token counts, in seconds. Nobody can take one back by a logout, so it is short.
pub const LIFETIME: u64 = 15 * 60;
pub const JWKS_FILE: &str = "jwks.json";
pub const CONFIG_FILE: &str = "demo.toml";
const KEY_FILE: &str = "issuer.key";
/// Tells an app server where the demo's own files are.
pub const DIRECTORY: &str = "STEADFAST_DEMO_DIRECTORY";

/// Signs for whoever it is told to: the demo asks for a name and for no password.
pub struct Issuer {
    pair: Ed25519KeyPair,
    /// The encoded header, and the dot.
    header: String,
    config: PathBuf,
}

impl Issuer {
    /// Draws a key and writes it to this directory, with what the proxy is to know of it.
    pub fn create(directory: &Path) -> io::Result<()> {
        let seed = random_secret();
        let issuer = Self::of_seed(&seed, directory)?;
        std::fs::write(directory.join(KEY_FILE), seed)?;
        std::fs::write(directory.join(JWKS_FILE), issuer.jwks().to_string())
    }

    /// The issuer whose key is in this directory.
    pub fn read(directory: &Path) -> io::Result<Self> {
        Self::of_seed(&std::fs::read(directory.join(KEY_FILE))?, directory)
    }

    fn of_seed(seed: &[u8], directory: &Path) -> io::Result<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed);
        let pair = pair.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": kid(&pair) });
        Ok(Issuer { header: format!("{}.", encode(&header)), pair, config: directory.join(CONFIG_FILE) })
    }

    /// The public key.
    pub fn jwks(&self) -> Value {
        let public = BASE64URL_NOPAD.encode(self.pair.public_key().as_ref());
        json!({ "keys": [{
            "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid(&self.pair), "x": public,
        }] })
    }

    /// A token for a user who has shown so much (`acr`) now, in seconds since 1970.
    pub fn issue(&self, subject: &str, acr: &str, now: u64, entropy: &mut dyn Entropy) -> String {
        let name: [u8; 16] = fresh(entropy);
        let claims = json!({
            "iss": NAME, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + LIFETIME,
            "jti": BASE64URL_NOPAD.encode(&name), "acr": acr, "auth_time": now,
        });
        let signed = format!("{}{}", self.header, encode(&claims));
        let signature = BASE64URL_NOPAD.encode(self.pair.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }

    /// The command that ends all tokens which a user was given until now, wherever they have been copied to.
    pub fn revocation(&self, subject: &str) -> String {
        let config = quoted(&self.config.display().to_string());
        format!("steadfast ctl --config={config} revoke --pool=stateless --issuer={NAME} --subject={}", quoted(subject))
    }
}

fn kid(pair: &Ed25519KeyPair) -> String {
    let hash = digest::digest(&digest::SHA256, pair.public_key().as_ref());
    BASE64URL_NOPAD.encode(&hash.as_ref()[..8])
}

fn encode(value: &Value) -> String {
    BASE64URL_NOPAD.encode(value.to_string().as_bytes())
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/:@".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SystemEntropy;
    use crate::session::token::tests::{is_good, part};

    const NOW: u64 = 1_800_000_000;

    fn issuer(seed: u8) -> Issuer {
        Issuer::of_seed(&[seed; 32], Path::new("/tmp/demo")).unwrap()
    }

    #[test]
    fn a_token_says_who_it_is_and_for_how_long_and_the_public_key_vouches_for_it() {
        let issuer = issuer(7);
        let token = issuer.issue("Zoë <3", "pwd", NOW, &mut SystemEntropy);
        assert!(is_good(&token, &issuer.jwks()));
        assert_eq!((&part(&token, 0)["alg"], &part(&token, 0)["typ"]), (&json!("EdDSA"), &json!("JWT")));
        let claims = part(&token, 1);
        for (name, value) in [
            ("iss", json!("https://id.localhost")),
            ("aud", json!("shop")),
            ("sub", json!("Zoë <3")),
            ("iat", json!(NOW)),
            ("auth_time", json!(NOW)),
            ("exp", json!(NOW + 900)),
            ("acr", json!("pwd")),
        ] {
            assert_eq!(claims[name], value, "{name}");
        }
        assert_eq!(claims["jti"].as_str().unwrap().len(), 22, "128 bits");
    }

    #[test]
    fn no_two_tokens_are_the_same_and_none_of_another_issuer_is_good() {
        let [one, other] = [(); 2].map(|()| issuer(7).issue("Ada", "pwd", NOW, &mut SystemEntropy));
        assert_ne!(part(&one, 1)["jti"], part(&other, 1)["jti"]);
        assert!(!is_good(&one, &issuer(8).jwks()));
        let claims = encode(&json!({ "sub": "Eve" }));
        let mut parts: Vec<&str> = one.split('.').collect();
        parts[1] = &claims;
        assert!(!is_good(&parts.join("."), &issuer(7).jwks()), "what was changed on the way");
    }

    #[test]
    fn every_server_of_the_demo_signs_with_the_key_of_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        Issuer::create(directory.path()).unwrap();
        let jwks = std::fs::read_to_string(directory.path().join(JWKS_FILE)).unwrap();
        for _ in 0..2 {
            let issuer = Issuer::read(directory.path()).unwrap();
            let token = issuer.issue("Ada", "mfa", NOW, &mut SystemEntropy);
            assert!(is_good(&token, &jwks.parse().unwrap()));
        }
        std::fs::write(directory.path().join(KEY_FILE), "too short").unwrap();
        assert_eq!(Issuer::read(directory.path()).err().unwrap().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_command_that_revokes_is_safe_to_paste() {
        for (subject, word) in
            [("Ada", "Ada"), ("", "''"), ("Zoë <3", "'Zoë <3'"), ("'; rm -rf ~ #", r"''\''; rm -rf ~ #'")]
        {
            let command = issuer(7).revocation(subject);
            let expected = format!(
                "steadfast ctl --config=/tmp/demo/demo.toml revoke --pool=stateless --issuer=https://id.localhost \
                 --subject={word}"
            );
            assert_eq!(command, expected);
        }
    }
}
