//! Where a request carries its token: in `Authorization`, or in one cookie. Nowhere else, and not in both.

use http::header::{self, HeaderMap, HeaderValue};

use super::refusal::TwoCarriers;
use super::settings::Carrier;
use crate::headers::cookies;

/// The token of a request, which may be anything; nothing where there is none. It is an error to carry two: two bearer
/// tokens, a bearer token beside other credentials, two cookies of the name, or the cookie beside a bearer token.
pub fn carried<'a>(carrier: &Carrier, headers: &'a HeaderMap) -> Result<Option<&'a [u8]>, TwoCarriers> {
    let bearer = by_header(headers)?;
    match carrier {
        Carrier::Header => Ok(bearer),
        Carrier::Cookie(name) => match (by_cookie(name, headers)?, bearer) {
            (Some(_), Some(_)) => Err(TwoCarriers),
            (cookie, _) => Ok(cookie),
        },
    }
}

fn by_header(headers: &HeaderMap) -> Result<Option<&[u8]>, TwoCarriers> {
    let lines = headers.get_all(header::AUTHORIZATION);
    let Some(token) = lines.iter().find_map(bearer) else { return Ok(None) };
    if lines.iter().nth(1).is_some() { Err(TwoCarriers) } else { Ok(Some(token)) }
}

/// What follows the scheme. Whatever separates them, it is ours: a server might be less strict about that than we are.
fn bearer(line: &HeaderValue) -> Option<&[u8]> {
    let (scheme, mut token) = line.as_bytes().trim_ascii_start().split_at_checked("Bearer".len())?;
    let has_ended = token.first().is_none_or(|byte| !is_of_token(*byte));
    if !has_ended || !scheme.eq_ignore_ascii_case(b"Bearer") {
        return None;
    }
    while let [b' ', rest @ ..] = token {
        token = rest;
    }
    Some(token)
}

/// What a scheme's name may be made of (RFC 9110, section 5.6.2).
fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn by_cookie<'a>(name: &str, headers: &'a HeaderMap) -> Result<Option<&'a [u8]>, TwoCarriers> {
    let mut named = cookies(headers).filter(|(other, _)| *other == name.as_bytes()).map(|(_, value)| value);
    match (named.next(), named.next()) {
        (found, None) => Ok(found),
        (_, Some(_)) => Err(TwoCarriers),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Found = Result<Option<&'static str>, TwoCarriers>;

    fn find(carrier: &Carrier, lines: &[(&'static str, &'static str)]) -> Result<Option<String>, TwoCarriers> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let found = carried(carrier, &headers)?;
        Ok(found.map(|token| String::from_utf8_lossy(token).into_owned()))
    }

    fn check(carrier: &Carrier, cases: &[(&[(&'static str, &'static str)], Found)]) {
        for (lines, expected) in cases {
            assert_eq!(find(carrier, lines), expected.map(|token| token.map(str::to_owned)), "{lines:?}");
        }
    }

    #[test]
    fn a_bearer_token_is_what_follows_the_scheme_on_the_only_line() {
        const A: &str = "authorization";
        check(
            &Carrier::Header,
            &[
                (&[], Ok(None)),
                (&[(A, "Bearer a.b.c")], Ok(Some("a.b.c"))),
                (&[(A, "bEARER a.b.c")], Ok(Some("a.b.c"))),
                (&[(A, "Bearer   a.b.c")], Ok(Some("a.b.c"))),
                (&[(A, "Bearer")], Ok(Some(""))),
                (&[(A, "Bearer\ta.b.c")], Ok(Some("\ta.b.c"))),
                (&[(A, "Bearer=a.b.c")], Ok(Some("=a.b.c"))),
                (&[(A, "Bearer a.b.c, Bearer d.e.f")], Ok(Some("a.b.c, Bearer d.e.f"))),
                (&[(A, "BearerX a.b.c")], Ok(None)),
                (&[(A, "Bearer-X a.b.c")], Ok(None)),
                (&[(A, "Basic YTpi")], Ok(None)),
                (&[(A, "a.b.c")], Ok(None)),
                (&[(A, "Basic YTpi"), (A, "Digest x")], Ok(None)),
                (&[(A, "Bearer a.b.c"), (A, "Bearer a.b.c")], Err(TwoCarriers)),
                (&[(A, "Bearer a.b.c"), (A, "Basic YTpi")], Err(TwoCarriers)),
                (&[(A, "Basic YTpi"), (A, "bearer a.b.c")], Err(TwoCarriers)),
                (&[("cookie", "token=a.b.c")], Ok(None)),
                (&[(A, "Bearer a.b.c"), ("cookie", "token=d.e.f")], Ok(Some("a.b.c"))),
                (&[("proxy-authorization", "Bearer a.b.c"), ("x-access-token", "a.b.c")], Ok(None)),
            ],
        );
    }

    #[test]
    fn a_cookie_is_the_only_one_of_its_exact_name_and_has_no_bearer_beside_it() {
        const C: &str = "cookie";
        const A: &str = "authorization";
        check(
            &Carrier::Cookie("token".into()),
            &[
                (&[], Ok(None)),
                (&[(C, "token=a.b.c")], Ok(Some("a.b.c"))),
                (&[(C, "x=1; token=a.b.c; y=2")], Ok(Some("a.b.c"))),
                (&[(C, "x=1"), (C, "token=a.b.c")], Ok(Some("a.b.c"))),
                (&[(C, "token=")], Ok(Some(""))),
                (&[(C, "token=\"a.b.c\"")], Ok(Some("\"a.b.c\""))),
                (&[(C, "Token=a.b.c; tokens=a.b.c; token2=a.b.c")], Ok(None)),
                (&[(C, "token=a.b.c; token=a.b.c")], Err(TwoCarriers)),
                (&[(C, "token=a.b.c"), (C, "token=d.e.f")], Err(TwoCarriers)),
                (&[(C, "token=a.b.c"), (A, "Bearer a.b.c")], Err(TwoCarriers)),
                (&[(C, "token=a.b.c"), (A, "Basic YTpi")], Ok(Some("a.b.c"))),
                (&[(A, "Bearer a.b.c")], Ok(None)),
                (&[(A, "Bearer a.b.c"), (A, "Bearer a.b.c")], Err(TwoCarriers)),
            ],
        );
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_line_harm_nobody(
            lines in proptest::collection::vec((any::<bool>(), proptest::collection::vec(32u8..=255, 0..40)), 0..4)
        ) {
            let mut headers = HeaderMap::new();
            for (is_cookie, bytes) in lines {
                if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                    headers.append(if is_cookie { header::COOKIE } else { header::AUTHORIZATION }, value);
                }
            }
            let _ = carried(&Carrier::Header, &headers);
            let _ = carried(&Carrier::Cookie("token".into()), &headers);
        }
    }
}
