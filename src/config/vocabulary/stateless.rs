//! Tokens that carry an identity, so that nothing is stored.

use super::Absent::{Default as Is, Nothing, Required};
use super::{Kind, Table, key};

pub(super) static STATELESS: Table = Table {
    path: "pool.stateless",
    doc: "Signed tokens (JWT, RFC 7519) that carry who somebody is.",
    keys: &[
        key("carrier", Kind::Text, Is("\"header\""), "\"header\" (Authorization: Bearer) or \"cookie:NAME\"."),
        key("typ", Kind::TextList, Is("[\"JWT\", \"at+jwt\"]"), "Types of token that are taken."),
        key("skew", Kind::Duration, Is("\"30s\""), "How far clocks may be apart; at most \"5m\"."),
        key(
            "store",
            Kind::Text,
            Nothing("\"main\""),
            "Where revocations are kept; absent: in this proxy's memory only.",
        ),
        key("issuer", Kind::Tables(&ISSUER), Required, "Whose tokens are taken."),
    ],
};

static ISSUER: Table = Table {
    path: "pool.stateless.issuer",
    doc: "Somebody whose tokens are taken.",
    keys: &[
        key("issuer", Kind::Text, Required, "Exactly what `iss` says."),
        key(
            "jwks",
            Kind::Text,
            Nothing("\"https://id.example.com/jwks.json\""),
            "Its public keys (RFC 7517): an https URL, or \"file:PATH\".",
        ),
        key("ca", Kind::Text, Nothing("\"internal-ca.pem\""), "Authorities for an https `jwks`; absent: the system's."),
        key(
            "secret",
            Kind::Text,
            Nothing("\"file:token.secret\""),
            "Instead of `jwks`, for HS256 alone: \"file:PATH\" or \"env:NAME\".",
        ),
        key("audience", Kind::TextList, Required, "`aud` has to name one of these."),
        key(
            "algorithms",
            Kind::TextList,
            Is("[\"ES256\", \"EdDSA\", \"RS256\"]"),
            "What it signs with; the token has no say.",
        ),
    ],
};
