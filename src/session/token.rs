//! What servers are told of a session: a signed token in a header (JWS, RFC 7515, with Ed25519, RFC 8037).
//!
//! Servers check it with public keys that the proxy shows (JWKS, RFC 7517), so that nobody who reaches a server past the
//! proxy can make one. The keys are derived from the ring and the day: every proxy of a ring has the same, and each
//! counts for two days.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::realm::Realm;
use super::recall::Session;
use super::record::Sid;
use crate::keys::{Entropy, KeyRing, derive_own, fresh};

/// For how long a token counts, in seconds.
pub const LIFETIME: u64 = 60;
/// For how long a token is sent again, in seconds.
pub const REUSED_FOR: u64 = 15;
/// The longest token; one that would be longer leaves the data out.
pub const MOST_BYTES: usize = 4 * 1024;
const DAY: u64 = 86_400;

/// Makes the signing keys of a ring.
pub struct TokenKeys(Vec<Zeroizing<[u8; 32]>>);

/// The signing key of a day.
pub struct Signer {
    pair: Ed25519KeyPair,
    /// The encoded header, and the dot.
    header: String,
    day: u64,
}

impl TokenKeys {
    /// The keys of this ring.
    pub fn new(ring: &KeyRing) -> Self {
        TokenKeys(ring.derive("steadfast session token v1", b"").into_iter().map(|(_, secret)| secret).collect())
    }

    /// What signs at this time, in seconds since 1970; none only if the crypto library refuses a key of 32 bytes.
    pub fn signer(&self, now: u64) -> Option<Signer> {
        let pair = key_pair(self.0.first()?, now / DAY)?;
        let header = json!({ "alg": "EdDSA", "typ": "steadfast-session+jwt", "kid": kid(&pair) });
        Some(Signer { header: format!("{}.", encode(&header)), pair, day: now / DAY })
    }

    /// The public keys by which tokens of now can be checked: today's and yesterday's of each ring key.
    pub fn jwks(&self, now: u64) -> Value {
        let days = [now / DAY, (now / DAY).saturating_sub(1)];
        let pairs = self.0.iter().flat_map(|secret| days.map(|day| key_pair(secret, day))).flatten();
        let keys = pairs.map(|pair| {
            let public = BASE64URL_NOPAD.encode(pair.public_key().as_ref());
            json!({ "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid(&pair), "x": public })
        });
        json!({ "keys": keys.collect::<Vec<_>>() })
    }
}

fn key_pair(secret: &[u8; 32], day: u64) -> Option<Ed25519KeyPair> {
    let seed = derive_own(secret, &day.to_be_bytes(), "steadfast session token v1");
    Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).ok()
}

fn kid(pair: &Ed25519KeyPair) -> String {
    let hash = digest::digest(&digest::SHA256, pair.public_key().as_ref());
    BASE64URL_NOPAD.encode(&hash.as_ref()[..8])
}

fn encode(value: &Value) -> String {
    BASE64URL_NOPAD.encode(value.to_string().as_bytes())
}

/// Whom a token is for, and by whom.
pub struct Parties<'a> {
    pub issuer: &'a str,
    /// The pool.
    pub audience: &'a str,
    /// Where the side API is.
    pub api: Option<&'a str>,
    /// Data of more bytes is left to the side API.
    pub inline_bytes: usize,
    /// Where somebody who logs in goes on: a path of the same host.
    pub return_to: Option<&'a str>,
}

impl Signer {
    /// Whether it still is the day's.
    pub fn is_of(&self, now: u64) -> bool {
        self.day == now / DAY
    }

    /// The token of a session, or of the absence of one.
    pub fn sign(
        &self,
        parties: &Parties<'_>,
        session: Option<(&Realm, &Session)>,
        degraded: bool,
        now: u64,
        entropy: &mut dyn Entropy,
    ) -> String {
        let mut claims = begin(parties, now);
        match session {
            None => {
                claims.insert("st".into(), "none".into());
                claims.insert("ver".into(), 0.into());
                if degraded {
                    claims.insert("degraded".into(), true.into());
                }
            }
            Some((realm, session)) => describe(&mut claims, parties, realm, session, now, entropy),
        }
        let token = self.seal(&claims);
        if token.len() <= MOST_BYTES || claims.remove("d").is_none() {
            return token;
        }
        claims.insert("d_ref".into(), true.into());
        self.seal(&claims)
    }

    /// The token of somebody who is known by a token of another issuer.
    pub fn sign_bearer(
        &self,
        parties: &Parties<'_>,
        bearer: &Bearer<'_>,
        now: u64,
        entropy: &mut dyn Entropy,
    ) -> String {
        let mut claims = begin(parties, now);
        claims.insert("exp".into(), bearer.expires_at.clamp(now + 1, now + LIFETIME).into());
        claims.insert("st".into(), "auth".into());
        claims.insert("sid".into(), bearer.sid.to_string().into());
        claims.insert("ver".into(), 0.into());
        claims.insert("sub".into(), bearer.subject.into());
        claims.insert("abs_exp".into(), bearer.expires_at.into());
        if let Some(at) = bearer.auth_time {
            claims.insert("auth_time".into(), at.into());
        }
        if let Some(acr) = bearer.acr {
            claims.insert("acr".into(), acr.into());
        }
        claims.insert("amr".into(), bearer.amr.iter().map(|method| Value::from(&**method)).collect());
        if let Some(csrf) = bearer.csrf {
            claims.insert("csrf".into(), masked(csrf, entropy).into());
        }
        claims.insert("claims".into(), bearer.claims.clone().into());
        let token = self.seal(&claims);
        if token.len() <= MOST_BYTES {
            return token;
        }
        claims.remove("claims");
        claims.insert("claims_omitted".into(), true.into());
        self.seal(&claims)
    }

    fn seal(&self, claims: &Map<String, Value>) -> String {
        let mut token = self.header.clone();
        let payload = serde_json::to_string(claims).unwrap_or_default();
        BASE64URL_NOPAD.encode_append(payload.as_bytes(), &mut token);
        let signature = self.pair.sign(token.as_bytes());
        token.push('.');
        BASE64URL_NOPAD.encode_append(signature.as_ref(), &mut token);
        token
    }
}

/// What is said of a token of another issuer.
pub struct Bearer<'a> {
    pub sid: Sid,
    pub subject: &'a str,
    pub acr: Option<&'a str>,
    pub amr: &'a [Box<str>],
    pub auth_time: Option<u64>,
    pub expires_at: u64,
    /// What its forms have to show, where browsers carry it by themselves.
    pub csrf: Option<&'a [u8; 32]>,
    /// All that it says.
    pub claims: &'a Map<String, Value>,
}

fn begin(parties: &Parties<'_>, now: u64) -> Map<String, Value> {
    let mut claims = Map::new();
    claims.insert("iss".into(), parties.issuer.into());
    claims.insert("aud".into(), parties.audience.into());
    claims.insert("iat".into(), now.into());
    claims.insert("exp".into(), (now + LIFETIME).into());
    if let Some(api) = parties.api {
        claims.insert("api".into(), api.into());
    }
    if let Some(path) = parties.return_to {
        claims.insert("return_to".into(), path.into());
    }
    claims
}

fn describe(
    claims: &mut Map<String, Value>,
    parties: &Parties<'_>,
    realm: &Realm,
    session: &Session,
    now: u64,
    entropy: &mut dyn Entropy,
) {
    let lineage = &session.lineage;
    claims.insert("st".into(), if lineage.login.is_some() { "auth" } else { "anon" }.into());
    claims.insert("sid".into(), lineage.sid.to_string().into());
    claims.insert("ver".into(), lineage.version.into());
    claims.insert("idle_exp".into(), (now + session.expires_in.as_secs()).into());
    claims.insert("csrf".into(), masked(&realm.csrf(&session.handle.lineage)[0], entropy).into());
    if let Some(login) = &lineage.login {
        claims.insert("sub".into(), (*login.subject).into());
        claims.insert("auth_time".into(), login.at.into());
        claims.insert("acr".into(), (*login.acr).into());
        claims.insert("amr".into(), login.amr.iter().map(|method| Value::from(&**method)).collect());
        claims.insert("abs_exp".into(), (login.at + realm.rules.absolute.as_secs()).into());
    }
    let data = (lineage.data.len() <= parties.inline_bytes).then(|| serde_json::from_str(&lineage.data).ok()).flatten();
    match data {
        Some(data) => drop(claims.insert("d".into(), data)),
        None => drop(claims.insert("d_ref".into(), true.into())),
    }
}

/// A token for forms that looks different each time: what compresses beside it tells nothing (BREACH).
fn masked(token: &[u8; 32], entropy: &mut dyn Entropy) -> String {
    let mask: [u8; 32] = fresh(entropy);
    let hidden: Vec<u8> = token.iter().zip(mask).map(|(token, mask)| token ^ mask).collect();
    format!("{}.{}", BASE64URL_NOPAD.encode(&mask), BASE64URL_NOPAD.encode(&hidden))
}

#[cfg(test)]
pub(crate) mod tests {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

    use super::*;
    use crate::keys::RingKey;
    use crate::session::model::Counted;

    const NOW: u64 = 1_800_000_000;

    fn keys(bytes: &[u8]) -> TokenKeys {
        TokenKeys::new(&KeyRing::new(bytes.iter().map(|byte| RingKey::from_secret([*byte; 32])).collect()))
    }

    fn parties() -> Parties<'static> {
        Parties { issuer: "steadfast", audience: "shop", api: None, inline_bytes: 2_048, return_to: None }
    }

    fn token(keys: &TokenKeys, at: u64) -> String {
        keys.signer(at).unwrap().sign(&parties(), None, false, at, &mut Counted::default())
    }

    pub(crate) fn part(token: &str, at: usize) -> Value {
        let text = token.split('.').nth(at).unwrap();
        serde_json::from_slice(&BASE64URL_NOPAD.decode(text.as_bytes()).unwrap()).unwrap()
    }

    /// Whether the key of this set that the token names has signed it.
    pub(crate) fn is_good(token: &str, jwks: &Value) -> bool {
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let kid = part(token, 0)["kid"].clone();
        let Some(key) = jwks["keys"].as_array().unwrap().iter().find(|key| key["kid"] == kid) else { return false };
        let public = BASE64URL_NOPAD.decode(key["x"].as_str().unwrap().as_bytes()).unwrap();
        let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
        UnparsedPublicKey::new(&ED25519, public).verify(signed.as_bytes(), &signature).is_ok()
    }

    #[test]
    fn a_token_is_checked_by_the_keys_that_are_shown_over_midnight_too() {
        let keys = keys(&[1]);
        let before_midnight = NOW - NOW % DAY - 1;
        for at in [before_midnight, NOW] {
            let token = token(&keys, at);
            assert!(is_good(&token, &keys.jwks(at)) && is_good(&token, &keys.jwks(at + 60)));
            assert!(!is_good(&token, &keys.jwks(at + 2 * DAY)), "a day later it counts no more");
        }
    }

    #[test]
    fn every_proxy_of_a_ring_takes_the_tokens_of_the_others_and_a_stranger_does_not() {
        let token = token(&keys(&[1]), NOW);
        assert!(is_good(&token, &keys(&[2, 1]).jwks(NOW)));
        assert!(!is_good(&token, &keys(&[2]).jwks(NOW)));
        let cut = token.len() / 2;
        let changed =
            format!("{}{}{}", &token[..cut], if &token[cut..=cut] == "A" { "B" } else { "A" }, &token[cut + 1..]);
        assert!(!is_good(&changed, &keys(&[1]).jwks(NOW)));
    }

    #[test]
    fn no_session_is_said_too() {
        let claims = part(&token(&keys(&[1]), NOW), 1);
        assert_eq!(claims["st"], "none");
        assert_eq!((&claims["aud"], &claims["exp"]), (&json!("shop"), &json!(NOW + 60)));
    }

    #[test]
    fn a_token_for_forms_looks_different_each_time_and_is_the_same() {
        let mut entropy = Counted::default();
        let [one, other] = [masked(&[9; 32], &mut entropy), masked(&[9; 32], &mut entropy)];
        assert_ne!(one, other);
        let unmask = |text: &str| {
            let (mask, hidden) = text.split_once('.').unwrap();
            let decode = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).unwrap();
            decode(mask).iter().zip(decode(hidden)).map(|(mask, hidden)| mask ^ hidden).collect::<Vec<u8>>()
        };
        assert_eq!((unmask(&one), unmask(&other)), (vec![9; 32], vec![9; 32]));
    }
}
