//! A token's form: the compact serialization of a JWS (RFC 7515, section 7.1), and its header.

use data_encoding::BASE64URL_NOPAD;
use serde_json::Value;

use super::json::{self, MOST_TEXT_BYTES};
use super::refusal::TokenReason;
use super::settings::Algorithm;

pub const MOST_TOKEN_BYTES: usize = 8 * 1024;
/// The longest header, decoded.
pub const MOST_HEADER_BYTES: usize = 2 * 1024;

/// Parameters by which a token would bring its own key, have one fetched, or have itself read in another way.
const REFUSED: [&str; 7] = ["crit", "jku", "x5u", "jwk", "x5c", "b64", "zip"];

/// A token's three segments, decoded, and what its signature is over.
#[derive(Debug)]
pub(super) struct Segments<'a> {
    pub header: Vec<u8>,
    pub payload: Vec<u8>,
    pub signature: Vec<u8>,
    pub signed: &'a [u8],
}

impl<'a> Segments<'a> {
    /// Takes a token apart. Base64url is taken in its one right form: no padding, no white space, no bits left over.
    pub fn split(token: &'a [u8]) -> Result<Self, TokenReason> {
        if token.len() > MOST_TOKEN_BYTES {
            return Err(TokenReason::TooLarge);
        }
        let mut segments = token.split(|byte| *byte == b'.');
        let (Some(header), Some(payload), Some(signature), None) =
            (segments.next(), segments.next(), segments.next(), segments.next())
        else {
            return Err(TokenReason::Malformed);
        };
        let decode = |segment| BASE64URL_NOPAD.decode(segment).map_err(|_| TokenReason::Malformed);
        let signed = token.get(..header.len() + 1 + payload.len()).ok_or(TokenReason::Malformed)?;
        let header = decode(header)?;
        if header.len() > MOST_HEADER_BYTES {
            return Err(TokenReason::TooLarge);
        }
        Ok(Segments { header, payload: decode(payload)?, signature: decode(signature)?, signed })
    }
}

/// What counts of a header: which algorithm and which key the token claims, for us to look up, and of which type it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub algorithm: Algorithm,
    pub kid: Option<Box<str>>,
    pub typ: Option<Box<str>>,
}

impl Header {
    pub fn read(bytes: &[u8]) -> Result<Self, TokenReason> {
        let members = json::object(bytes).ok_or(TokenReason::Malformed)?;
        if REFUSED.iter().any(|name| members.contains_key(*name)) {
            return Err(TokenReason::Header);
        }
        let Some(Value::String(algorithm)) = members.get("alg") else { return Err(TokenReason::Header) };
        let algorithm = Algorithm::from_word(algorithm).ok_or(TokenReason::Algorithm)?;
        let text = |name| {
            let text = json::text(&members, name, MOST_TEXT_BYTES).map_err(|_| TokenReason::Header)?;
            Ok::<_, TokenReason>(text.map(Box::<str>::from))
        };
        Ok(Header { algorithm, kid: text("kid")?, typ: text("typ")? })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::stateless::Refused;
    use crate::stateless::tests::{NOW, claims, ed25519, with};

    #[test]
    fn only_the_compact_form_in_strict_base64url_is_a_token() {
        let (signer, edge) = ed25519();
        let token = signer.token(&claims());
        let [h, p, s] = token.split('.').collect::<Vec<_>>()[..] else { panic!("three segments") };
        let flattened = json!({ "payload": p, "protected": h, "signature": s }).to_string();
        let general = json!({ "payload": p, "signatures": [{ "protected": h, "signature": s }] }).to_string();
        let leftover = |segment: &str| {
            // The next letter of the alphabet differs in the last bits, which 64 bytes do not use.
            let letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let last = letters.find(segment.chars().last().unwrap()).unwrap();
            format!("{}{}", &segment[..segment.len() - 1], &letters[last + 1..last + 2])
        };
        assert_eq!(edge.why(&token), None);
        for (name, token) in [
            ("no separator before the signature", format!("{h}.{p}")),
            ("no payload", format!("{h}..{s}")),
            ("no payload and no separator", format!("{h}.{s}")),
            ("no header", format!(".{p}.{s}")),
            ("no header and no separator", format!("{p}.{s}")),
            ("no header and no signature", format!(".{p}.")),
            ("a payload alone", p.to_owned()),
            ("nothing", String::new()),
            ("separators", "..".to_owned()),
            ("an empty fourth segment", format!("{token}.")),
            ("a fourth segment", format!("{token}.{s}")),
            ("five segments, as of a JWE", format!("{h}.{p}.{s}.{p}.{s}")),
            ("the flattened JSON serialization", flattened),
            ("the general JSON serialization", general),
            ("a padded signature", format!("{token}==")),
            ("a padded payload", format!("{h}.{p}=.{s}")),
            ("a space in front", format!(" {token}")),
            ("a line's end", format!("{token}\n")),
            ("a space in the header", format!("{} {}.{p}.{s}", &h[..4], &h[4..])),
            ("a line's end in the payload", format!("{h}.{}\r\n{}.{s}", &p[..4], &p[4..])),
            ("a space in the signature", format!("{h}.{p}.{} {}", &s[..4], &s[4..])),
            ("base64 instead of base64url", format!("{h}.{p}.+/{}", &s[2..])),
            ("a letter of no alphabet", format!("{h}.{p}.!{}", &s[1..])),
            ("a letter beyond ASCII", format!("{h}.{p}.é{}", &s[2..])),
            ("a zero byte", format!("{token}\0")),
            ("bits left over", format!("{h}.{p}.{}", leftover(s))),
            ("a lone letter", format!("{h}.{p}.{s}AAA")),
            ("a token in a token", signer.seal(&signer.header().to_string(), &token)),
            ("a payload that is no object", signer.seal(&signer.header().to_string(), "[1]")),
            ("a payload that is text", signer.seal(&signer.header().to_string(), "foo")),
            ("a header that is no object", signer.seal("[\"EdDSA\"]", &claims().to_string())),
            ("something behind the header", signer.seal("{\"alg\":\"EdDSA\"}{}", &claims().to_string())),
        ] {
            assert_eq!(edge.why(&token), Some(TokenReason::Malformed), "{name}");
        }
        assert_eq!(edge.why(&format!("{h}.{p}.")), Some(TokenReason::Signature), "no signature");
        assert_eq!(edge.verify_at(b"\xff.\xfe.\xfd", NOW), Err(Refused::from(TokenReason::Malformed)));
    }

    #[test]
    fn what_is_longer_than_any_honest_token_is_not_read() {
        let (signer, edge) = ed25519();
        let padded_header = |bytes: usize| {
            let filler = bytes - json!({ "alg": "EdDSA", "kid": "k", "x": "" }).to_string().len();
            json!({ "alg": "EdDSA", "kid": "k", "x": "x".repeat(filler) })
        };
        assert_eq!(edge.why(&signer.with_header(&padded_header(MOST_HEADER_BYTES))), None);
        let token = signer.with_header(&padded_header(MOST_HEADER_BYTES + 1));
        assert_eq!(edge.why(&token), Some(TokenReason::TooLarge), "a header of 2 KiB and a byte");
        let fits = signer.token(&with("x", "x".repeat(5_000).into()));
        assert!(fits.len() < MOST_TOKEN_BYTES && edge.why(&fits).is_none());
        let huge = signer.token(&with("x", "x".repeat(6_200).into()));
        assert!(huge.len() > MOST_TOKEN_BYTES);
        assert_eq!(edge.why(&huge), Some(TokenReason::TooLarge));
        assert_eq!(edge.why(&"a".repeat(MOST_TOKEN_BYTES + 1)), Some(TokenReason::TooLarge));
    }

    #[test]
    fn what_has_two_meanings_or_no_end_is_not_read() {
        let (signer, edge) = ed25519();
        let header = signer.header().to_string();
        let (good, end) = (claims().to_string(), NOW + 600);
        let open = good.trim_end_matches('}');
        for (name, payload) in [
            ("two subjects", format!("{open},\"sub\":\"root\"}}")),
            ("the same subject twice", format!("{open},\"sub\":\"alice\"}}")),
            ("an escaped name", format!("{open},\"\\u0065xp\":{}}}", end + 1)),
            ("two members deep inside", format!("{open},\"x\":{{\"y\":[{{\"a\":1,\"a\":2}}]}}}}")),
            ("one level too many", format!("{open},\"x\":{}1{}}}", "[".repeat(16), "]".repeat(16))),
            ("a bomb of lists", format!("{open},\"x\":{}", "[".repeat(4_000))),
            ("a bomb of objects", format!("{open},\"x\":{}", "{\"a\":".repeat(800))),
            ("a second object", format!("{good}{{}}")),
            ("a byte order mark", format!("\u{feff}{good}")),
            ("a number beyond numbers", good.replace(&end.to_string(), "1e400")),
            ("half a pair of surrogates", format!("{open},\"x\":\"\\udfff\"}}")),
        ] {
            assert_eq!(edge.why(&signer.seal(&header, &payload)), Some(TokenReason::Malformed), "{name}");
        }
        let deep = format!("{open},\"x\":{}1{}}}", "[".repeat(15), "]".repeat(15));
        assert_eq!(edge.why(&signer.seal(&header, &deep)), None);
        let spaced = good.replace(',', " ,\n\t").replace(':', " :\r\n");
        assert_eq!(
            edge.why(&signer.seal(&header, &spaced.replace("https :\r\n", "https:"))),
            None,
            "white space is JSON's"
        );
        for (name, header) in [
            ("two algorithms", r#"{"alg":"none","alg":"EdDSA","kid":"k"}"#),
            ("two algorithms, one escaped", r#"{"alg":"EdDSA","\u0061lg":"none","kid":"k"}"#),
            ("two keys", r#"{"alg":"EdDSA","kid":"k","kid":"k"}"#),
        ] {
            assert_eq!(edge.why(&signer.seal(header, &good)), Some(TokenReason::Malformed), "{name}");
        }
    }
}
