//! Keys that are used and keys that are not, and signatures in every form but the right one.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use data_encoding::HEXLOWER;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::stateless::tests::{
    Edge, Pair, SECRET, SHARING, Signer, any_claim, claims, decode, ed25519, encode, key_set, modulus,
    public_algorithms, with,
};
use crate::stateless::{Refused, TokenReason, vectors};

#[test]
fn a_wrong_padding_under_a_right_exponent_is_refused() {
    let jwk = json!({ "kty": "RSA", "n": vectors::MODULUS, "e": "AQAB" });
    for (algorithm, signed, table) in [
        (Algorithm::Rs256, vectors::SIGNED_PKCS1, &vectors::PKCS1[..]),
        (Algorithm::Ps256, vectors::SIGNED_PSS, &vectors::PSS[..]),
    ] {
        let keys = key_set(std::slice::from_ref(&jwk));
        let header = Header { algorithm, kid: None, typ: None };
        for (at, (name, signature)) in table.iter().enumerate() {
            let checked = keys.check(&header, signed.as_bytes(), &decode(signature));
            assert_eq!(checked.is_ok(), at == 0, "{algorithm}: {name}");
        }
    }
}

#[test]
fn a_secret_is_for_its_issuer_and_long() {
    let edge = Edge::new(&[]);
    let signer = Signer::new(Algorithm::Hs256);
    let claims = with("iss", SHARING.into());
    assert_eq!(edge.why(&signer.token(&claims)), None);
    let nameless = signer.seal("{\"alg\":\"HS256\"}", &claims.to_string());
    assert_eq!(edge.why(&nameless), None, "there is one key, so it needs no name");
    assert_eq!(edge.why(&Signer::by_secret(b"another").token(&claims)), Some(TokenReason::Signature));
    assert_eq!(edge.why(&Signer::by_secret(b"").token(&claims)), Some(TokenReason::Signature));
    let (signed, signature) = nameless.rsplit_once('.').unwrap();
    let tag = decode(signature);
    for wrong in [&tag[..16], &tag[..31], &tag[..0]] {
        assert_eq!(edge.why(&format!("{signed}.{}", encode(wrong))), Some(TokenReason::Signature), "a truncated tag");
    }
    assert_eq!(edge.why(&format!("{signed}.{}", encode([&tag[..], &[0]].concat()))), Some(TokenReason::Signature));
    for short in [&b""[..], b"secret", &[7; FEWEST_SECRET_BYTES - 1]] {
        let mut edge = Edge::new(&[]);
        edge.keys[1] = Some(Arc::new(Keys::secret(short)));
        assert!(edge.why(&Signer::by_secret(short).token(&claims)).is_some(), "what can be guessed verifies nothing");
    }
    assert_eq!((Keys::secret(&[7; 32]).len(), Keys::secret(&[7; 31]).len()), (1, 0));
}

#[test]
fn a_key_is_found_by_its_name_and_never_made_of_it() {
    let [first, second] = [Signer::new(Algorithm::EdDsa), Signer::new(Algorithm::EdDsa)];
    let edge = Edge::new(&[first.jwk("one"), second.jwk("two")]);
    let named = |signer: &Signer, kid: &str| signer.with_header(&json!({ "alg": "EdDSA", "kid": kid }));
    assert_eq!(edge.why(&named(&first, "one")), None);
    assert_eq!(edge.why(&named(&second, "two")), None);
    assert_eq!(
        edge.verify(&named(&first, "two")),
        Err(Refused { reason: TokenReason::Signature, refetch: None }),
        "a wrong signature under a known name is no reason to fetch"
    );
    for kid in ["", "One", "one ", "../../dev/null", "' UNION SELECT 'k", "https://attacker.example.com/k", "one\0"] {
        let unknown = Refused { reason: TokenReason::Key, refetch: Some(0) };
        assert_eq!(edge.verify(&named(&first, kid)), Err(unknown), "{kid:?}");
    }
}

#[test]
fn without_a_name_the_key_is_the_only_one_that_fits() {
    let [ed, other, ec] = [Signer::new(Algorithm::EdDsa), Signer::new(Algorithm::EdDsa), Signer::new(Algorithm::Es256)];
    let nameless = |signer: &Signer| signer.with_header(&json!({ "alg": signer.algorithm.as_str() }));
    let edge = Edge::new(&[ed.jwk("ed"), ec.jwk("ec")]);
    assert_eq!(edge.verify(&nameless(&ed)).unwrap().kid.as_deref(), Some("ed"), "the key's own name is what is known");
    assert_eq!(edge.verify(&nameless(&ec)).unwrap().kid.as_deref(), Some("ec"));
    let wrong = Refused { reason: TokenReason::Signature, refetch: Some(0) };
    assert_eq!(edge.verify(&nameless(&other)), Err(wrong), "perhaps the only key is another now");
    let none = Refused { reason: TokenReason::Key, refetch: Some(0) };
    assert_eq!(edge.verify(&nameless(&Signer::new(Algorithm::Es384))), Err(none));
    let edge = Edge::new(&[ed.jwk("ed"), other.jwk("other")]);
    assert_eq!(edge.verify(&nameless(&ed)), Err(Refused { reason: TokenReason::Key, refetch: None }), "which one?");
    let mut bare = ed.jwk("ed");
    bare.as_object_mut().unwrap().remove("kid");
    let edge = Edge::new(&[bare]);
    assert_eq!(edge.verify(&nameless(&ed)).unwrap().kid, None);
    assert_eq!(edge.why(&ed.token(&claims())), Some(TokenReason::Key), "a name is looked for among names");
}

#[test]
fn keys_of_one_name_are_told_apart_by_what_they_fit() {
    let [ed, other, ec] = [Signer::new(Algorithm::EdDsa), Signer::new(Algorithm::EdDsa), Signer::new(Algorithm::Es256)];
    let edge = Edge::new(&[ed.jwk("k"), ec.jwk("k"), other.jwk("k")]);
    for signer in [&ed, &other, &ec] {
        assert_eq!(edge.why(&signer.token(&claims())), None);
    }
    let unfit = Signer::new(Algorithm::Rs256).token(&claims());
    assert_eq!(edge.verify(&unfit), Err(Refused { reason: TokenReason::Algorithm, refetch: None }));
    let many: Vec<Value> = (0..10).map(|_| Signer::new(Algorithm::EdDsa).jwk("k")).chain([ed.jwk("k")]).collect();
    assert_eq!(Edge::new(&many).why(&ed.token(&claims())), Some(TokenReason::Signature), "not all are tried");
}

#[test]
fn an_ecdsa_signature_is_two_whole_numbers_within_the_group() {
    let signer = Signer::new(Algorithm::Es256);
    let edge = Edge::of(&signer);
    let token = signer.token(&claims());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let right = decode(signature);
    let order = HEXLOWER.decode(b"ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551").unwrap();
    let mut below = order.clone();
    below[31] -= 1;
    let small = |last: u8| [&[0_u8; 31][..], &[last]].concat();
    let numbers = [("0", small(0)), ("1", small(1)), ("n - 1", below), ("n", order), ("most", vec![0xff; 32])];
    let refused = |name: &str, signature: &[u8]| {
        let why = edge.why(&format!("{signed}.{}", encode(signature)));
        assert_eq!(why, Some(TokenReason::Signature), "{name}");
    };
    assert_eq!(edge.why(&token), None);
    for (r_name, r) in &numbers {
        for (s_name, s) in &numbers {
            // Both zero is CVE-2022-21449, "psychic signatures".
            refused(&format!("r is {r_name}, s is {s_name}"), &[&r[..], &s[..]].concat());
        }
        refused(&format!("r is {r_name}"), &[&r[..], &right[32..]].concat());
        refused(&format!("s is {r_name}"), &[&right[..32], &r[..]].concat());
    }
    refused("one number", &right[..32]);
    refused("a byte more", &[&right[..], &[0]].concat());
    refused("a byte less", &right[..63]);
    refused("zeros in front of both", &[&[0_u8][..], &right[..32], &[0], &right[32..]].concat());
    let Pair::Ec(pair) = &signer.pair else { panic!("an EC pair") };
    let same = pair.to_pkcs8v1().unwrap();
    let asn1 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, same.as_ref()).unwrap();
    let der = asn1.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    refused("the DER form", der.as_ref());
}

#[test]
fn an_ed25519_signature_has_one_form() {
    let (signer, edge) = ed25519();
    let token = signer.token(&claims());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let right = decode(signature);
    // The order of the group, little-endian: S and S + L are the same number to whoever does not look (RFC 8032,
    // 5.1.7).
    let order = HEXLOWER.decode(b"edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
    let mut carry = 0;
    let mut other = right.clone();
    for (byte, more) in other[32..].iter_mut().zip(&order) {
        carry += u16::from(*byte) + u16::from(*more);
        *byte = carry.to_le_bytes()[0];
        carry >>= 8;
    }
    assert_eq!(carry, 0, "the sum fits");
    for (name, wrong) in [
        ("S + L", other),
        ("all zero", vec![0; 64]),
        ("a byte more", [&right[..], &[0]].concat()),
        ("half of it", right[..32].to_vec()),
    ] {
        let why = edge.why(&format!("{signed}.{}", encode(&wrong)));
        assert_eq!(why, Some(TokenReason::Signature), "{name}");
    }
}

#[test]
fn an_rsa_signature_is_one_number_below_the_modulus() {
    for algorithm in [Algorithm::Rs256, Algorithm::Ps256] {
        let signer = Signer::new(algorithm);
        let edge = Edge::of(&signer);
        let token = signer.token(&claims());
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (right, modulus) = (decode(signature), modulus());
        let mut below = modulus.clone();
        below[255] -= 1;
        assert_eq!(edge.why(&token), None);
        for (name, wrong) in [
            ("0", vec![0; 256]),
            ("1", [&[0_u8; 255][..], &[1]].concat()),
            ("n - 1", below),
            ("n", modulus),
            ("all ones", vec![0xff; 256]),
            ("a zero in front", [&[0_u8][..], &right[..]].concat()),
            ("a zero behind", [&right[..], &[0]].concat()),
            ("a byte less", right[..255].to_vec()),
            ("nothing", Vec::new()),
        ] {
            let why = edge.why(&format!("{signed}.{}", encode(&wrong)));
            assert_eq!(why, Some(TokenReason::Signature), "{algorithm}: {name}");
        }
    }
}

/// A JWK with members changed.
fn but(mut jwk: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().cloned().unwrap_or_default() {
        jwk[name] = value;
    }
    jwk
}

#[test]
fn a_key_is_used_for_what_it_is_for() {
    let (ec, ed, rsa) = (Signer::new(Algorithm::Es256), Signer::new(Algorithm::EdDsa), Signer::new(Algorithm::Ps256));
    for (signer, changes) in [
        (&ec, json!({ "use": "sig" })),
        (&ec, json!({ "alg": "ES256", "key_ops": ["verify"] })),
        (&ed, json!({ "alg": "EdDSA", "use": "sig", "key_ops": ["verify", "sign"] })),
        (&rsa, json!({ "alg": "PS256" })),
        (&rsa, json!({ "x5c": ["MIIB"], "x5t": "abc", "nbf": 1 })),
    ] {
        let edge = Edge::new(&[but(signer.jwk("k"), changes.clone())]);
        assert_eq!(edge.why(&signer.token(&claims())), None, "{changes}");
    }
    let ps384 = Edge::new(&[but(rsa.jwk("k"), json!({ "alg": "PS384" }))]);
    assert_eq!(
        ps384.why(&rsa.token(&claims())),
        Some(TokenReason::Algorithm),
        "the key's own algorithm is the only one"
    );
}

#[test]
fn a_key_that_is_not_for_us_or_no_good_is_skipped_and_the_others_count() {
    let (ec, ed, rsa) = (Signer::new(Algorithm::Es256), Signer::new(Algorithm::EdDsa), Signer::new(Algorithm::Rs256));
    let [ec_jwk, ed_jwk, rsa_jwk] = [ec.jwk("k"), ed.jwk("k"), rsa.jwk("k")];
    let p384 = Signer::new(Algorithm::Es384).jwk("k");
    let mut off_curve = decode(ec_jwk["y"].as_str().unwrap());
    off_curve[31] ^= 1;
    let number = |bytes: usize| encode([&[0x81_u8][..], &vec![1; bytes - 1][..]].concat());
    let even = {
        let mut even = modulus();
        even[255] &= 0xfe;
        encode(even)
    };
    let cases = [
        (
            "a type of the future",
            json!({ "kty": "AKP", "kid": "k", "alg": "ML-DSA-65", "pub": "AA" }),
            Skipped::Unsupported,
        ),
        ("a curve of Bitcoin's", but(ec_jwk.clone(), json!({ "crv": "secp256k1" })), Skipped::Unsupported),
        ("X25519", but(ed_jwk.clone(), json!({ "crv": "X25519" })), Skipped::Unsupported),
        ("Ed448", but(ed_jwk.clone(), json!({ "crv": "Ed448" })), Skipped::Unsupported),
        ("a secret", Signer::new(Algorithm::Hs256).jwk("k"), Skipped::Symmetric),
        ("a secret for AES", json!({ "kty": "oct", "alg": "A256GCM", "k": encode(SECRET) }), Skipped::Symmetric),
        ("for encryption", but(rsa_jwk.clone(), json!({ "use": "enc" })), Skipped::Use),
        ("for encryption, by operations", but(ec_jwk.clone(), json!({ "key_ops": ["encrypt"] })), Skipped::Use),
        ("to sign with", but(ec_jwk.clone(), json!({ "key_ops": ["sign"] })), Skipped::Use),
        ("for nothing", but(ec_jwk.clone(), json!({ "key_ops": [] })), Skipped::Use),
        ("for RSA-OAEP", but(rsa_jwk.clone(), json!({ "alg": "RSA-OAEP" })), Skipped::Algorithm),
        ("for another curve's algorithm", but(ec_jwk.clone(), json!({ "alg": "ES384" })), Skipped::Algorithm),
        ("for an algorithm that is none", but(ec_jwk.clone(), json!({ "alg": "ES521" })), Skipped::Algorithm),
        ("for HMAC", but(rsa_jwk.clone(), json!({ "alg": "HS256" })), Skipped::Algorithm),
        ("private", but(ec_jwk.clone(), json!({ "d": encode([1; 32]) })), Skipped::Private),
        ("private RSA", but(rsa_jwk.clone(), json!({ "d": "AQ", "p": "Aw", "q": "BQ" })), Skipped::Private),
        ("not an object", json!("k"), Skipped::Bad),
        ("without a type", but(ec_jwk.clone(), json!({ "kty": null })), Skipped::Bad),
        ("without a curve", json!({ "kty": "EC", "x": ec_jwk["x"], "y": ec_jwk["y"] }), Skipped::Bad),
        ("without a coordinate", json!({ "kty": "EC", "crv": "P-256", "x": ec_jwk["x"] }), Skipped::Bad),
        ("of another type's numbers", but(ec_jwk.clone(), json!({ "kty": "RSA" })), Skipped::Bad),
        ("a point off its curve", but(ec_jwk.clone(), json!({ "y": encode(&off_curve) })), Skipped::Bad),
        (
            "the point at infinity",
            but(ec_jwk.clone(), json!({ "x": encode([0; 32]), "y": encode([0; 32]) })),
            Skipped::Bad,
        ),
        ("a point of another curve", but(ec_jwk.clone(), json!({ "crv": "P-384" })), Skipped::Bad),
        ("a longer point", but(p384, json!({ "crv": "P-256" })), Skipped::Bad),
        ("a short coordinate", but(ec_jwk.clone(), json!({ "x": encode([1; 31]) })), Skipped::Bad),
        (
            "a padded coordinate",
            but(ec_jwk.clone(), json!({ "x": format!("{}=", ec_jwk["x"].as_str().unwrap()) })),
            Skipped::Bad,
        ),
        ("a short Ed25519 key", but(ed_jwk.clone(), json!({ "x": encode([1; 31]) })), Skipped::Bad),
        ("an Ed25519 key in DER", but(ed_jwk.clone(), json!({ "x": encode([0x30; 44]) })), Skipped::Bad),
        ("RSA of 1,024 bits", but(rsa_jwk.clone(), json!({ "n": number(128) })), Skipped::Bad),
        ("RSA of 2,040 bits", but(rsa_jwk.clone(), json!({ "n": number(255) })), Skipped::Bad),
        ("RSA of 8,200 bits", but(rsa_jwk.clone(), json!({ "n": number(1_025) })), Skipped::Bad),
        ("RSA of 16,384 bits", but(rsa_jwk.clone(), json!({ "n": number(2_048) })), Skipped::Bad),
        (
            "a zero in front of the modulus",
            but(rsa_jwk.clone(), json!({ "n": encode([&[0_u8][..], &modulus()[..]].concat()) })),
            Skipped::Bad,
        ),
        ("an even modulus", but(rsa_jwk.clone(), json!({ "n": even })), Skipped::Bad),
        ("an exponent of 1", but(rsa_jwk.clone(), json!({ "e": "AQ" })), Skipped::Bad),
        ("an exponent of 0", but(rsa_jwk.clone(), json!({ "e": "AA" })), Skipped::Bad),
        ("an even exponent", but(rsa_jwk.clone(), json!({ "e": encode([1, 0, 0]) })), Skipped::Bad),
        ("an exponent of 64 bits", but(rsa_jwk.clone(), json!({ "e": encode([0xff; 8]) })), Skipped::Bad),
        ("no exponent", but(rsa_jwk.clone(), json!({ "e": "" })), Skipped::Bad),
        ("numbers that are numbers", but(rsa_jwk.clone(), json!({ "e": 65_537 })), Skipped::Bad),
        ("a name that is a number", but(ec_jwk.clone(), json!({ "kid": 1 })), Skipped::Bad),
        ("a use that is a list", but(ec_jwk.clone(), json!({ "use": ["sig"] })), Skipped::Bad),
        ("operations that are text", but(ec_jwk.clone(), json!({ "key_ops": "verify" })), Skipped::Bad),
    ];
    for (name, jwk, why) in cases {
        let keys = key_set(&[jwk.clone(), ed.jwk("good")]);
        let found: Vec<Skipped> = keys.skipped().iter().map(|(_, why)| *why).collect();
        assert_eq!((found, keys.len()), (vec![why], 1), "{name}");
        let edge = Edge::new(&[jwk, ed.jwk("good")]);
        assert_eq!(edge.why(&ed.with_header(&json!({ "alg": "EdDSA", "kid": "good" }))), None, "beside {name}");
    }
    let named = key_set(&[but(ec_jwk, json!({ "use": "enc" }))]);
    assert_eq!(named.skipped(), [(Some(Box::<str>::from("k")), Skipped::Use)]);
    assert!(named.is_empty());
}

#[test]
fn text_that_is_no_key_set_is_an_error() {
    let jwk = Signer::new(Algorithm::EdDsa).jwk("k");
    let parse = |text: &str| Keys::parse(text.as_bytes(), &public_algorithms()).map(|keys| keys.len());
    let twice = jwk.to_string().replace("\"kty\"", "\"kty\":\"oct\",\"kty\"");
    for (text, expected) in [
        (json!({ "keys": [jwk] }).to_string(), Ok(1)),
        (json!({ "keys": [], "extra": 1 }).to_string(), Ok(0)),
        (json!({ "keys": vec![&jwk; MOST_KEYS] }).to_string(), Ok(MOST_KEYS)),
        (json!({ "keys": vec![&jwk; MOST_KEYS + 1] }).to_string(), Err(BadKeys::TooMany)),
        (json!({ "keys": [jwk], "x": "x".repeat(MOST_KEYS_BYTES) }).to_string(), Err(BadKeys::TooLarge)),
        (format!("{{\"keys\":[{twice}]}}"), Err(BadKeys::Malformed)),
        (format!("{{\"keys\":[{jwk}],\"keys\":[]}}"), Err(BadKeys::Malformed)),
        (json!([jwk]).to_string(), Err(BadKeys::Malformed)),
        (json!({ "keys": { "k": jwk } }).to_string(), Err(BadKeys::Malformed)),
        (jwk.to_string(), Err(BadKeys::Malformed)),
        ("<html>not found</html>".to_owned(), Err(BadKeys::Malformed)),
        (String::new(), Err(BadKeys::Malformed)),
    ] {
        assert_eq!(parse(&text), expected, "{}", &text[..text.len().min(60)]);
    }
    let none = Keys::parse(json!({ "keys": [jwk] }).to_string().as_bytes(), &[Algorithm::Es256]).unwrap();
    assert_eq!((none.len(), none.skipped()[0].1), (0, Skipped::Algorithm));
}

proptest! {
    #[test]
    fn any_key_of_a_set_harms_nobody(
        kty in "(EC|OKP|RSA|oct|x)", curve in "(P-256|P-384|P-521|Ed25519|x)", x in any_claim(), y in any_claim(),
        n in "[A-Za-z0-9_-]{340,344}", e in "(AQAB|Aw|AQ|[A-Za-z0-9_-]{0,8})",
    ) {
        let jwk = json!({ "kty": kty, "crv": curve, "x": x, "y": y, "n": n, "e": e });
        let keys = key_set(&[jwk]);
        prop_assert_eq!(keys.len() + keys.skipped().len(), 1);
    }
}
