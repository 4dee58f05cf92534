//! What an origin says about the session, as the request's body tells it: a line each.
//!
//! `op login;sub="alice"` (the nonce is added), `patch {"cart":1}`, `if 3`, `header name: value`, `status 303`. The
//! answer is what the origin was told of the session.

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

/// The claims of the token that came with a request; null when there is none.
pub fn claims(headers: &HeaderMap) -> Value {
    let token = headers.get("steadfast-session").and_then(|token| token.to_str().ok()).unwrap_or_default();
    let payload = token.split('.').nth(1).and_then(|payload| BASE64URL_NOPAD.decode(payload.as_bytes()).ok());
    payload.and_then(|payload| serde_json::from_slice(&payload).ok()).unwrap_or_default()
}

/// Status, header fields and body of the answer.
pub fn say(request: &HeaderMap, wanted: &[u8]) -> (u16, Vec<(HeaderName, HeaderValue)>, Bytes) {
    let nonce = request.get("steadfast-session-request").and_then(|nonce| nonce.to_str().ok()).unwrap_or_default();
    let mut status = 200;
    let mut fields = Vec::new();
    let mut add = |name: &str, value: String| fields.push((name.parse().unwrap(), value.parse().unwrap()));
    for line in std::str::from_utf8(wanted).unwrap().lines() {
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        match what {
            "op" => add("steadfast-session-op", format!("{rest};rid=\"{nonce}\"")),
            "patch" => {
                add("steadfast-session-patch", format!("{nonce}.{}", BASE64URL_NOPAD.encode(rest.as_bytes())));
            }
            "if" => add("steadfast-session-if", rest.to_owned()),
            "status" => status = rest.parse().unwrap(),
            "header" => {
                let (name, value) = rest.split_once(": ").unwrap();
                add(name, value.replace("RID", nonce));
            }
            other => panic!("nobody knows how to say {other}"),
        }
    }
    (status, fields, claims(request).to_string().into())
}
