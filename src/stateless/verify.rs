//! Whether a token counts.
//!
//! What is cheap and says nothing of keys comes first. The issuer is taken from claims that nobody has vouched for
//! yet, only to know whose keys to ask: had somebody else signed, they would say no. Every other claim is looked at
//! after the signature, so that a forger learns nothing of what a token has to say.

use std::sync::Arc;

use super::claims::{Demands, Verified};
use super::json;
use super::jws::{Header, Segments};
use super::keys::{Keys, Unchecked};
use super::refusal::{Refused, TokenReason};
use super::settings::{IssuerSettings, Settings};

/// A `typ` is a media type, of which `application/` may be left out (RFC 7515, section 4.1.9).
const MEDIA_PREFIX: &str = "application/";

/// Checks tokens.
#[derive(Debug)]
pub struct Verifier {
    /// Without the prefix, in lower case.
    types: Vec<Box<str>>,
    takes_untyped: bool,
    /// In seconds.
    skew: u64,
    issuers: Vec<IssuerSettings>,
}

impl Verifier {
    /// A verifier by these settings.
    pub fn new(settings: Settings) -> Self {
        let types = settings.types.iter().map(|name| Box::<str>::from(without_prefix(name).to_ascii_lowercase()));
        let types: Vec<Box<str>> = types.collect();
        let takes_untyped = types.iter().any(|name| **name == *"jwt");
        Verifier { types, takes_untyped, skew: settings.skew.as_secs(), issuers: settings.issuers }
    }

    /// The name of the issuer at this position.
    pub fn issuer(&self, at: usize) -> Option<&str> {
        self.issuers.get(at).map(|issuer| &*issuer.issuer)
    }

    /// Checks a token at a time in seconds since 1970. `keys` gives what is known of the issuer at a position. Whether
    /// it was revoked is for [`super::Revocations`] to say, each time it is shown.
    pub fn verify(
        &self,
        token: &[u8],
        now: u64,
        keys: impl Fn(usize) -> Option<Arc<Keys>>,
    ) -> Result<Verified, Refused> {
        let segments = Segments::split(token)?;
        let header = Header::read(&segments.header)?;
        self.check_type(header.typ.as_deref())?;
        let claims = json::object(&segments.payload).ok_or(TokenReason::Malformed)?;
        let named = claims.get("iss").and_then(|name| name.as_str()).ok_or(TokenReason::Issuer)?;
        let found = self.issuers.iter().enumerate().find(|(_, issuer)| *issuer.issuer == *named);
        let (at, issuer) = found.ok_or(TokenReason::Issuer)?;
        if !issuer.algorithms.contains(&header.algorithm) {
            return Err(TokenReason::Algorithm.into());
        }
        let keys = keys(at).ok_or(Refused { reason: TokenReason::Key, refetch: Some(at) })?;
        let kid = keys
            .check(&header, segments.signed, &segments.signature)
            .map_err(|why| refused_for(why, at, header.kid.is_some()))?;
        let demands =
            Demands { issuer: at, issuer_name: &issuer.issuer, audience: &issuer.audience, skew: self.skew, now };
        Ok(Verified::read(claims, kid, &demands)?)
    }

    /// A type that is said has to be listed: a token that was made for something else is no session (RFC 8725, section
    /// 3.11).
    fn check_type(&self, typ: Option<&str>) -> Result<(), TokenReason> {
        let is_taken = match typ {
            None => self.takes_untyped,
            Some(typ) => self.types.iter().any(|name| name.eq_ignore_ascii_case(without_prefix(typ))),
        };
        if is_taken { Ok(()) } else { Err(TokenReason::Type) }
    }
}

fn without_prefix(typ: &str) -> &str {
    let prefix = typ.get(..MEDIA_PREFIX.len()).filter(|prefix| prefix.eq_ignore_ascii_case(MEDIA_PREFIX));
    prefix.map_or(typ, |prefix| &typ[prefix.len()..])
}

fn refused_for(why: Unchecked, issuer: usize, is_named: bool) -> Refused {
    let (reason, may_be_new) = match why {
        Unchecked::Unknown => (TokenReason::Key, true),
        Unchecked::Ambiguous => (TokenReason::Key, false),
        Unchecked::Unfit => (TokenReason::Algorithm, false),
        // Without names, another key looks like a wrong signature.
        Unchecked::Wrong => (TokenReason::Signature, !is_named),
    };
    Refused { reason, refetch: may_be_new.then_some(issuer) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::stateless::Algorithm;
    use crate::stateless::tests::{ISSUER, Signer, claims, ed25519, key_set, settings, with, without};

    #[test]
    fn no_keys_yet_is_a_reason_to_fetch_them() {
        let (signer, mut edge) = ed25519();
        for keys in [None, Some(Arc::new(key_set(&[])))] {
            edge.keys[0] = keys;
            let refused = edge.verify(&signer.token(&claims()));
            assert_eq!(refused, Err(Refused { reason: TokenReason::Key, refetch: Some(0) }));
        }
    }

    #[test]
    fn the_issuer_is_the_one_who_signed_and_exactly_so() {
        let (signer, edge) = ed25519();
        for name in [
            json!("https://id.example.com/"),
            json!("https://ID.example.com"),
            json!("https://attacker.example.com"),
            json!(""),
            json!(null),
            json!(1),
            json!([ISSUER]),
        ] {
            assert_eq!(edge.why(&signer.token(&with("iss", name.clone()))), Some(TokenReason::Issuer), "{name}");
        }
        assert_eq!(edge.why(&signer.token(&without("iss"))), Some(TokenReason::Issuer));
        let attacker = Signer::new(Algorithm::EdDsa);
        assert_eq!(
            edge.why(&attacker.token(&claims())),
            Some(TokenReason::Signature),
            "to name somebody is not to be them"
        );
    }

    #[test]
    fn an_issuer_uses_its_own_algorithms_only() {
        let (signer, mut edge) = ed25519();
        let mut narrow = settings(&["JWT"]);
        narrow.issuers[0].algorithms = vec![Algorithm::Es256, Algorithm::Rs256];
        edge.verifier = Verifier::new(narrow);
        assert_eq!(edge.why(&signer.token(&claims())), Some(TokenReason::Algorithm), "although the key is there");
    }

    #[test]
    fn a_type_that_is_said_has_to_be_listed() {
        let (signer, mut edge) = ed25519();
        let typed = |typ: &str| signer.with_header(&json!({ "alg": "EdDSA", "kid": "k", "typ": typ }));
        let untyped = signer.with_header(&json!({ "alg": "EdDSA", "kid": "k" }));
        for typ in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "Application/JWT"] {
            assert_eq!(edge.why(&typed(typ)), None, "{typ}");
        }
        for typ in
            ["", "JWS", "dpop+jwt", "logout+jwt", "steadfast-session+jwt", "application/", "text/jwt", "jwt ", "at"]
        {
            assert_eq!(edge.why(&typed(typ)), Some(TokenReason::Type), "{typ}");
        }
        assert_eq!(edge.why(&untyped), None);
        edge.verifier = Verifier::new(settings(&["application/AT+jwt"]));
        assert_eq!((edge.why(&typed("at+jwt")), edge.why(&typed("JWT"))), (None, Some(TokenReason::Type)));
        assert_eq!(
            edge.why(&untyped),
            Some(TokenReason::Type),
            "where plain JWTs are not taken, neither are untyped ones"
        );
    }
}
