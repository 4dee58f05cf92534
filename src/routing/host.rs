//! Host names: what a route asks for, and what a request says.

use std::borrow::Cow;

/// The hosts that a route takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// One host, in lower case.
    Exact(Box<str>),
    /// One or more labels before this suffix, which begins with a dot.
    Wildcard(Box<str>),
    Any,
}

impl HostPattern {
    /// Reads `shop.example.com`, `*.example.com` or `*`.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(HostPattern::Any);
        }
        if let Some(suffix) = text.strip_prefix('*') {
            let parsed = Authority::parse(suffix.strip_prefix('.')?)?;
            return parsed.port.is_none().then(|| HostPattern::Wildcard(format!(".{}", parsed.host).into()));
        }
        let parsed = Authority::parse(text)?;
        parsed.port.is_none().then(|| HostPattern::Exact(parsed.host.into()))
    }
}

/// Host and port as a Host header or an `:authority` gives them (RFC 3986, section 3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// In lower case, without a closing dot; an IPv6 address keeps its brackets.
    pub host: Cow<'a, str>,
    pub port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Reads `host`, `host:port` or `[v6]:port`; user names and anything else that is no host are refused.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (host, port) = if text.starts_with('[') {
            let end = text.find(']')? + 1;
            text[1..end - 1].parse::<std::net::Ipv6Addr>().ok()?;
            (&text[..end], &text[end..])
        } else {
            let end = memchr::memchr(b':', text.as_bytes()).unwrap_or(text.len());
            (&text[..end], &text[end..])
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return None,
            Some("") => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
            Some(_) => return None,
        };
        let host = if host.starts_with('[') { host } else { registered_name(host)? };
        let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        Some(Authority { host, port })
    }
}

/// A name of letters, digits, `-`, `_` and single dots; a closing dot is dropped.
fn registered_name(host: &str) -> Option<&str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let fits = !host.is_empty() && host.len() <= 253 && host.bytes().all(legal);
    (fits && !host.starts_with('.') && !host.contains("..")).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_requests() {
        for (text, wanted) in [
            ("Shop.Example.com", Some(("shop.example.com", None))),
            ("shop.example.com.:8443", Some(("shop.example.com", Some(8443)))),
            ("a:", Some(("a", None))),
            ("127.0.0.1:80", Some(("127.0.0.1", Some(80)))),
            ("[::1]:443", Some(("[::1]", Some(443)))),
            ("[::1]", Some(("[::1]", None))),
            ("under_score", Some(("under_score", None))),
            ("", None),
            (":80", None),
            ("user@host", None),
            ("a/b", None),
            ("a b", None),
            ("a..b", None),
            (".a", None),
            ("a:65536", None),
            ("a:+1", None),
            ("[::1", None),
            ("[x]", None),
            ("a%00", None),
        ] {
            let parsed = Authority::parse(text);
            assert_eq!(parsed.as_ref().map(|parsed| (&*parsed.host, parsed.port)), wanted, "{text:?}");
        }
    }

    #[test]
    fn hosts_of_routes() {
        assert_eq!(HostPattern::parse("*.Example.com"), Some(HostPattern::Wildcard(".example.com".into())));
        assert_eq!(HostPattern::parse("a.test:80"), None);
        assert_eq!(HostPattern::parse("*example.com"), None);
        assert_eq!(HostPattern::parse("*.*.com"), None);
    }
}
