//! Cookie lines of requests: read as they are, byte by byte, and rewritten without ours.

use http::header::{self, HeaderMap, HeaderValue};

/// Joins split Cookie lines with `; `, as HTTP/1.1 wants them (RFC 9113, section 8.2.3), leaving out the cookies for
/// which `ours` says yes. Returns nothing when there is nothing to change.
pub fn rewritten_cookies(headers: &HeaderMap, ours: impl Fn(&[u8]) -> bool) -> Option<Option<HeaderValue>> {
    let mut lines = headers.get_all(header::COOKIE).iter();
    let first = lines.next()?;
    let several = lines.next().is_some();
    let has_ours = cookies(headers).any(|(name, _)| ours(name));
    if !several && !has_ours {
        return None;
    }
    let mut joined = Vec::new();
    for pair in pairs(headers) {
        if pair.is_empty() || ours(name_and_value(pair).0) {
            continue;
        }
        if joined.is_empty() {
            joined.reserve(first.len());
        } else {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(pair);
    }
    Some(if joined.is_empty() { None } else { HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)).ok() })
}

/// Every cookie of a request, over all its Cookie lines: name and value, exact bytes.
pub fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    pairs(headers).map(name_and_value)
}

/// What stands between the semicolons of all Cookie lines.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(header::COOKIE).iter().flat_map(|line| Pairs(Some(line.as_bytes())))
}

/// What is left of a Cookie line.
struct Pairs<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Pairs<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let left = self.0?;
        let end = memchr::memchr(b';', left);
        self.0 = end.map(|end| &left[end + 1..]);
        Some(trim_blank(&left[..end.unwrap_or(left.len())]))
    }
}

/// Name and value of `name=value`.
pub fn split_cookie(pair: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(b'=', pair)?;
    Some((trim_blank(&pair[..at]), trim_blank(&pair[at + 1..])))
}

fn name_and_value(pair: &[u8]) -> (&[u8], &[u8]) {
    // A lone word is a value without a name.
    split_cookie(pair).unwrap_or((&[], pair))
}

/// Only SP and HTAB are white space in a Cookie line.
fn trim_blank(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}
