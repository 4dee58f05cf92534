//! Tokens of every kind that count, and every way of making one that does not.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512,
    RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use data_encoding::BASE64URL_NOPAD;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::jws::{Header, Segments};
use super::keys::Unchecked;
use super::*;

pub const NOW: u64 = 1_800_000_000;
/// Signs with public keys.
pub const ISSUER: &str = "https://id.example.com";
/// Signs with a secret.
pub const SHARING: &str = "https://secret.example.com";
pub const SECRET: &[u8] = b"known to two, and longer than the hash";
pub const AUDIENCE: &str = "shop";

pub static RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());

pub enum Pair {
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Rsa(&'static dyn RsaEncoding),
    Secret(Box<hmac::Key>),
}

/// Whoever signs.
pub struct Signer {
    pub algorithm: Algorithm,
    pub pair: Pair,
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64URL_NOPAD.encode(bytes.as_ref())
}

pub fn decode(text: &str) -> Vec<u8> {
    BASE64URL_NOPAD.decode(text.as_bytes()).unwrap()
}

pub fn modulus() -> Vec<u8> {
    let der: &[u8] = RSA.public_key().as_ref();
    // Two lengths and a zero in front of 2,048 bits whose first is set (RFC 8017, appendix A.1.1).
    der[9..265].to_vec()
}

impl Signer {
    pub fn new(algorithm: Algorithm) -> Self {
        let ec = |how: &'static EcdsaSigningAlgorithm| Pair::Ec(EcdsaKeyPair::generate(how).unwrap());
        let pair = match algorithm {
            Algorithm::Es256 => ec(&ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::Es384 => ec(&ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::Es512 => ec(&ECDSA_P521_SHA512_FIXED_SIGNING),
            Algorithm::EdDsa | Algorithm::Ed25519 => Pair::Ed(Ed25519KeyPair::generate().unwrap()),
            Algorithm::Rs256 => Pair::Rsa(&RSA_PKCS1_SHA256),
            Algorithm::Rs384 => Pair::Rsa(&RSA_PKCS1_SHA384),
            Algorithm::Rs512 => Pair::Rsa(&RSA_PKCS1_SHA512),
            Algorithm::Ps256 => Pair::Rsa(&RSA_PSS_SHA256),
            Algorithm::Ps384 => Pair::Rsa(&RSA_PSS_SHA384),
            Algorithm::Ps512 => Pair::Rsa(&RSA_PSS_SHA512),
            Algorithm::Hs256 => return Signer::by_secret(SECRET),
        };
        Signer { algorithm, pair }
    }

    pub fn by_secret(secret: &[u8]) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Signer { algorithm: Algorithm::Hs256, pair: Pair::Secret(Box::new(secret)) }
    }

    /// The public key as a JWK.
    pub fn jwk(&self, kid: &str) -> Value {
        match &self.pair {
            Pair::Ec(pair) => {
                let point: &[u8] = pair.public_key().as_ref();
                let (x, y) = point[1..].split_at(point.len() / 2);
                let curve = match x.len() {
                    32 => "P-256",
                    48 => "P-384",
                    _ => "P-521",
                };
                json!({ "kty": "EC", "kid": kid, "crv": curve, "x": encode(x), "y": encode(y) })
            }
            Pair::Ed(pair) => {
                json!({ "kty": "OKP", "kid": kid, "crv": "Ed25519", "x": encode(pair.public_key()) })
            }
            Pair::Rsa(_) => json!({ "kty": "RSA", "kid": kid, "n": encode(modulus()), "e": "AQAB" }),
            Pair::Secret(_) => json!({ "kty": "oct", "kid": kid, "k": encode(SECRET) }),
        }
    }

    pub fn sign(&self, signed: &str) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ec(pair) => pair.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(signed.as_bytes()).as_ref().to_vec(),
            Pair::Rsa(how) => {
                let mut signature = vec![0; RSA.public_modulus_len()];
                RSA.sign(*how, &random, signed.as_bytes(), &mut signature).unwrap();
                signature
            }
            Pair::Secret(secret) => hmac::sign(secret, signed.as_bytes()).as_ref().to_vec(),
        }
    }

    /// A token of exactly this header and payload.
    pub fn seal(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(payload));
        format!("{signed}.{}", encode(self.sign(&signed)))
    }

    pub fn header(&self) -> Value {
        json!({ "alg": self.algorithm.as_str(), "typ": "JWT", "kid": "k" })
    }

    pub fn token(&self, claims: &Value) -> String {
        self.seal(&self.header().to_string(), &claims.to_string())
    }

    pub fn with_header(&self, header: &Value) -> String {
        self.seal(&header.to_string(), &claims().to_string())
    }
}

pub fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": NOW - 10, "exp": NOW + 600 })
}

/// The usual claims with one changed.
pub fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

pub fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

pub fn public_algorithms() -> Vec<Algorithm> {
    Algorithm::ALL.iter().copied().filter(|algorithm| *algorithm != Algorithm::Hs256).collect()
}

pub fn key_set(keys: &[Value]) -> Keys {
    Keys::parse(json!({ "keys": keys }).to_string().as_bytes(), &public_algorithms()).unwrap()
}

pub fn issuer(name: &str, algorithms: Vec<Algorithm>, keys: KeySource) -> IssuerSettings {
    IssuerSettings { issuer: name.into(), audience: vec!["blog".into(), AUDIENCE.into()], algorithms, keys }
}

pub fn settings(types: &[&str]) -> Settings {
    Settings {
        carrier: Carrier::Header,
        types: types.iter().map(|name| Box::<str>::from(*name)).collect(),
        skew: Duration::from_secs(30),
        issuers: vec![
            issuer(ISSUER, public_algorithms(), KeySource::Url("https://id.example.com/jwks.json".to_owned())),
            issuer(SHARING, vec![Algorithm::Hs256], KeySource::Secret(Zeroizing::new(SECRET.to_vec()))),
        ],
    }
}

/// What checks tokens, with the keys that it knows.
pub struct Edge {
    pub verifier: Verifier,
    pub keys: Vec<Option<Arc<Keys>>>,
}

impl Edge {
    pub fn new(keys: &[Value]) -> Self {
        let keys = vec![Some(Arc::new(key_set(keys))), Some(Arc::new(Keys::secret(SECRET)))];
        Edge { verifier: Verifier::new(settings(&["JWT", "at+jwt"])), keys }
    }

    /// Knows the key of this signer, as `k`.
    pub fn of(signer: &Signer) -> Self {
        Edge::new(&[signer.jwk("k")])
    }

    pub fn verify_at(&self, token: &[u8], now: u64) -> Result<Verified, Refused> {
        self.verifier.verify(token, now, |at| self.keys[at].clone())
    }

    pub fn verify(&self, token: &str) -> Result<Verified, Refused> {
        self.verify_at(token.as_bytes(), NOW)
    }

    pub fn why(&self, token: &str) -> Option<TokenReason> {
        self.verify(token).err().map(|refused| refused.reason)
    }
}

/// Somebody with a good key, and who knows it.
pub fn ed25519() -> (Signer, Edge) {
    let signer = Signer::new(Algorithm::EdDsa);
    let edge = Edge::of(&signer);
    (signer, edge)
}

/// A good token as it was read, for those who only look at that.
pub fn verified() -> Verified {
    Verified {
        issuer: 0,
        subject: "alice".into(),
        jti: Some("t-1".into()),
        kid: Some("k".into()),
        issued_at: Some(NOW - 10),
        expires_at: NOW + 600,
        auth_time: None,
        acr: None,
        amr: Vec::new(),
        reference: [0; 16],
        claims: Map::new(),
    }
}

#[test]
fn every_algorithm_verifies_what_it_has_signed_and_no_other_does() {
    let is_same = |one: Algorithm, other: Algorithm| {
        let ed25519 = [Algorithm::EdDsa, Algorithm::Ed25519];
        one == other || (ed25519.contains(&one) && ed25519.contains(&other))
    };
    for algorithm in Algorithm::ALL {
        let signer = Signer::new(*algorithm);
        let edge = if *algorithm == Algorithm::Hs256 { Edge::new(&[]) } else { Edge::of(&signer) };
        let issuer = if *algorithm == Algorithm::Hs256 { SHARING } else { ISSUER };
        let claims = with("iss", issuer.into()).to_string();
        for said in Algorithm::ALL {
            let header = json!({ "alg": said.as_str(), "kid": "k" }).to_string();
            let token = signer.seal(&header, &claims);
            assert_eq!(edge.verify(&token).is_ok(), is_same(*said, *algorithm), "{algorithm} said to be {said}");
        }
    }
}

#[test]
fn what_a_token_says_is_read() {
    let (signer, edge) = ed25519();
    let claims = json!({
        "iss": ISSUER, "aud": ["other", AUDIENCE], "sub": "Zoë", "iat": NOW - 10, "nbf": NOW - 10, "exp": NOW + 600,
        "jti": "t-1", "auth_time": NOW - 3_600, "acr": "mfa", "amr": ["pwd", "otp"], "tenant": { "id": 7 },
    });
    let read = edge.verify(&signer.token(&claims)).unwrap();
    let expected = Verified {
        issuer: 0,
        subject: "Zoë".into(),
        jti: Some("t-1".into()),
        kid: Some("k".into()),
        issued_at: Some(NOW - 10),
        expires_at: NOW + 600,
        auth_time: Some(NOW - 3_600),
        acr: Some("mfa".into()),
        amr: vec!["pwd".into(), "otp".into()],
        reference: read.reference,
        claims: claims.as_object().cloned().unwrap(),
    };
    assert_eq!(read, expected);
    assert_eq!(edge.verifier.issuer(read.issuer), Some(ISSUER));
}

#[test]
fn published_examples_verify_and_one_wrong_bit_does_not() {
    for published in &vectors::PUBLISHED {
        let segments = Segments::split(published.token.as_bytes()).unwrap();
        let header = Header::read(&segments.header).unwrap();
        assert_eq!(header.algorithm, published.algorithm, "{}", published.name);
        let jwk: Value = serde_json::from_str(published.key).unwrap();
        let keys = match jwk["k"].as_str() {
            Some(secret) => Keys::secret(&decode(secret)),
            None => key_set(std::slice::from_ref(&jwk)),
        };
        let check = |signed: &[u8], signature: &[u8]| keys.check(&header, signed, signature);
        assert_eq!(check(segments.signed, &segments.signature), Ok(header.kid.clone()), "{}", published.name);
        let flip = |bytes: &[u8], at: usize| {
            let mut bytes = bytes.to_vec();
            bytes[at] ^= 1;
            bytes
        };
        for at in [0, segments.signature.len() / 2, segments.signature.len() - 1] {
            let wrong = flip(&segments.signature, at);
            assert_eq!(check(segments.signed, &wrong), Err(Unchecked::Wrong), "{}, byte {at}", published.name);
        }
        let wrong = flip(segments.signed, segments.signed.len() - 1);
        assert_eq!(check(&wrong, &segments.signature), Err(Unchecked::Wrong), "{}", published.name);
    }
}

#[test]
fn the_unsecured_example_is_refused() {
    let (_, edge) = ed25519();
    assert_eq!(edge.why(vectors::UNSIGNED), Some(TokenReason::Algorithm));
}

#[test]
fn none_is_no_algorithm_however_it_is_written() {
    let (signer, edge) = ed25519();
    for name in ["none", "None", "NONE", "nOnE", "none ", " none", "none\0", ""] {
        for header in [json!({ "alg": name }), json!({ "alg": name, "kid": "k" })] {
            let unsigned = format!("{}.{}.", encode(header.to_string()), encode(claims().to_string()));
            assert_eq!(edge.why(&unsigned), Some(TokenReason::Algorithm), "{header}");
            assert_eq!(edge.why(&signer.with_header(&header)), Some(TokenReason::Algorithm), "{header}, and signed");
        }
    }
}

#[test]
fn a_header_has_no_say_in_how_it_is_checked() {
    let (signer, edge) = ed25519();
    let attacker = Signer::new(Algorithm::EdDsa);
    let own = attacker.jwk("k");
    let url = "https://attacker.example.com/jwks.json";
    for (name, value) in [
        ("jwk", own),
        ("jwk", json!(null)),
        ("jku", json!(url)),
        ("x5u", json!(url)),
        ("x5c", json!(["MIIB"])),
        ("crit", json!(["exp"])),
        ("crit", json!([])),
        ("b64", json!(false)),
        ("b64", json!(true)),
        ("zip", json!("DEF")),
    ] {
        for by in [&attacker, &signer] {
            let mut header = by.header();
            header[name] = value.clone();
            assert_eq!(edge.why(&by.with_header(&header)), Some(TokenReason::Header), "{name}");
        }
    }
    for (header, reason) in [
        (json!({ "kid": "k" }), TokenReason::Header),
        (json!({ "alg": null, "kid": "k" }), TokenReason::Header),
        (json!({ "alg": 1, "kid": "k" }), TokenReason::Header),
        (json!({ "alg": ["EdDSA"], "kid": "k" }), TokenReason::Header),
        (json!({ "alg": "eddsa", "kid": "k" }), TokenReason::Algorithm),
        (json!({ "alg": "ES521", "kid": "k" }), TokenReason::Algorithm),
        (json!({ "alg": "HS384", "kid": "k" }), TokenReason::Algorithm),
        (json!({ "alg": "RS1", "kid": "k" }), TokenReason::Algorithm),
        (json!({ "alg": "ECDH-ES", "kid": "k" }), TokenReason::Algorithm),
        (json!({ "alg": "EdDSA", "kid": 1 }), TokenReason::Header),
        (json!({ "alg": "EdDSA", "kid": null }), TokenReason::Header),
        (json!({ "alg": "EdDSA", "kid": ["k"] }), TokenReason::Header),
        (json!({ "alg": "EdDSA", "kid": "k".repeat(257) }), TokenReason::Header),
        (json!({ "alg": "EdDSA", "kid": "k", "typ": 1 }), TokenReason::Header),
    ] {
        assert_eq!(edge.why(&signer.with_header(&header)), Some(reason), "{header}");
    }
    let header = json!({ "alg": "EdDSA", "kid": "k", "cty": "x", "x5t": "abc", "x5t#S256": "abc", "nonce": [1] });
    assert_eq!(edge.why(&signer.with_header(&header)), None, "what says nothing about checking is nobody's business");
    assert_eq!(edge.why(&signer.seal("{ \"alg\" :\t\"EdDSA\" ,\r\n \"kid\":\"k\" }", &claims().to_string())), None);
}

#[test]
fn a_public_key_is_no_secret() {
    let signer = Signer::new(Algorithm::Rs256);
    let ec = Signer::new(Algorithm::Es256);
    let ed = Signer::new(Algorithm::EdDsa);
    let Pair::Ec(pair) = &ec.pair else { panic!("an EC pair") };
    let der: &[u8] = RSA.public_key().as_ref();
    let point: &[u8] = pair.public_key().as_ref();
    let jwk = signer.jwk("k").to_string();
    let pem = format!("-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n", encode(der));
    let Pair::Ed(pair) = &ed.pair else { panic!("an Ed25519 pair") };
    let secrets: [&[u8]; 7] =
        [der, &modulus(), jwk.as_bytes(), pem.as_bytes(), point, pair.public_key().as_ref(), &[0; 32]];
    let mut edge = Edge::new(&[signer.jwk("k"), ec.jwk("k"), ed.jwk("k")]);
    let mut mixed = settings(&["JWT"]);
    mixed.issuers[0].algorithms = Algorithm::ALL.to_vec();
    let mixed = Edge {
        verifier: Verifier::new(mixed),
        keys: vec![Some(Arc::new(
            Keys::parse(json!({ "keys": [signer.jwk("k")] }).to_string().as_bytes(), Algorithm::ALL).unwrap(),
        ))],
    };
    for secret in secrets {
        let forged = Signer::by_secret(secret).token(&claims());
        assert_eq!(edge.why(&forged), Some(TokenReason::Algorithm));
        assert_eq!(mixed.why(&forged), Some(TokenReason::Algorithm), "also where somebody has configured nonsense");
    }
    // The other way round: what a secret signed is not looked at with a public key, and the other issuer's secret is
    // not this one's.
    assert_eq!(edge.why(&Signer::new(Algorithm::Hs256).token(&claims())), Some(TokenReason::Algorithm));
    assert_eq!(edge.why(&signer.token(&with("iss", SHARING.into()))), Some(TokenReason::Algorithm));
    edge.keys[0] = Some(Arc::new(Keys::secret(SECRET)));
    assert_eq!(edge.why(&signer.token(&claims())), Some(TokenReason::Algorithm));
}

#[test]
fn a_secret_does_not_show_in_what_is_logged() {
    let shown = format!("{:?}", settings(&["JWT"]));
    assert!(!shown.contains("107, 110, 111, 119") && !shown.contains("known to two"), "{shown}");
    assert!(!format!("{:?}", Keys::secret(SECRET)).contains("107, 110"));
}

static GOOD: LazyLock<(Signer, Edge, Vec<u8>)> = LazyLock::new(|| {
    let (signer, edge) = ed25519();
    let token = signer.token(&claims()).into_bytes();
    (signer, edge, token)
});

pub fn any_claim() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        Just(json!(true)),
        Just(json!([])),
        Just(json!({})),
        any::<u64>().prop_map(|number| json!(number)),
        any::<i64>().prop_map(|number| json!(number)),
        any::<f64>().prop_map(|number| json!(number)),
        (NOW - 100..NOW + 1_000).prop_map(|number| json!(number)),
        "[ -~]{0,12}".prop_map(|text| json!(text)),
        Just(json!(AUDIENCE)),
        Just(json!([AUDIENCE, "x"])),
        Just(json!([AUDIENCE, 1])),
    ]
}

proptest! {
    #[test]
    fn a_changed_token_never_counts(at in 0usize..1_000, byte in any::<u8>(), how in 0u8..4) {
        let (_, edge, good) = &*GOOD;
        let mut token = good.clone();
        let at = at % token.len();
        match how {
            0 => token[at] = byte,
            1 => token.insert(at, byte),
            2 => {
                token.remove(at);
            }
            _ => token.truncate(at),
        }
        prop_assume!(token != *good);
        prop_assert!(edge.verify_at(&token, NOW).is_err());
    }

    #[test]
    fn a_changed_letter_of_an_ecdsa_or_rsa_token_never_counts(at in 0usize..2_000, letter in "[A-Za-z0-9_-]") {
        static TOKENS: LazyLock<Vec<(Edge, String)>> = LazyLock::new(|| {
            let signers = [Algorithm::Es256, Algorithm::Rs256, Algorithm::Ps256].map(Signer::new);
            signers.iter().map(|signer| (Edge::of(signer), signer.token(&claims()))).collect()
        });
        for (edge, good) in TOKENS.iter() {
            let at = at % good.len();
            let token = format!("{}{letter}{}", &good[..at], &good[at + 1..]);
            prop_assert_eq!(edge.verify(&token).is_ok(), token == *good);
        }
    }

    #[test]
    fn garbage_never_counts_and_harms_nobody(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        text in "[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,90}",
    ) {
        let (_, edge, _) = &*GOOD;
        prop_assert!(edge.verify_at(&bytes, NOW).is_err());
        prop_assert!(edge.verify(&text).is_err());
        let _ = Keys::parse(&bytes, Algorithm::ALL);
    }

    #[test]
    fn a_signature_makes_no_good_token_of_a_bad_one(header in "[ -~]{0,60}", payload in "[ -~]{0,60}") {
        let (signer, edge, _) = &*GOOD;
        prop_assert!(edge.verify(&signer.seal(&header, &payload)).is_err());
        prop_assert!(edge.verify(&signer.seal(&signer.header().to_string(), &payload)).is_err());
        prop_assert!(edge.verify(&signer.seal(&header, &claims().to_string())).is_err());
    }

    #[test]
    fn what_counts_has_an_end_an_audience_and_a_subject(
        exp in any_claim(), nbf in any_claim(), aud in any_claim(), sub in any_claim(), amr in any_claim(),
    ) {
        let (signer, edge, _) = &*GOOD;
        let claims = json!({ "iss": ISSUER, "exp": exp, "nbf": nbf, "aud": aud, "sub": sub, "amr": amr });
        if let Ok(read) = edge.verify(&signer.token(&claims)) {
            prop_assert!(exp.is_number() && nbf.is_number() && read.expires_at + 30 > NOW);
            prop_assert!(aud == AUDIENCE || aud == json!([AUDIENCE, "x"]));
            prop_assert_eq!(sub.as_str(), Some(&*read.subject));
            prop_assert!(!read.subject.is_empty() && amr.is_array());
        }
    }
}
