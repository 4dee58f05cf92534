//! One form for every path, so that what is matched is what is forwarded (RFC 3986, section 6.2.2).
//!
//! Dot segments are resolved, also written `%2e`; `//` is merged; escapes of unreserved characters are decoded, other
//! escapes get upper-case digits. What a server could read in two ways is refused: `%2F`, `%5C`, `%00`, a backslash,
//! an escape that is none, and climbing above `/`.

use std::borrow::Cow;

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// It does not begin with `/`.
    Relative,
    /// A `%` that no two hexadecimal digits follow.
    BadEscape,
    /// `%2F`, `%5C`, `%00` or a backslash.
    Ambiguous,
    /// `..` above the root.
    AboveRoot,
}

/// The normal form of a path (without the query).
pub fn normalise(path: &str) -> Result<Cow<'_, str>, PathError> {
    if !path.starts_with('/') {
        return Err(PathError::Relative);
    }
    if is_normal(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(path)?;
    resolve_dots(&decoded).map(Cow::Owned)
}

/// The form in which a route's prefix is kept: normal, and without a closing slash.
pub fn prefix(path: &str) -> Result<Box<str>, PathError> {
    let normal = normalise(path)?;
    let trimmed = normal.trim_end_matches('/');
    Ok(if trimmed.is_empty() { "/" } else { trimmed }.into())
}

/// Whether nothing in the path asks for work. A dot after a slash does, though most such paths are fine.
fn is_normal(path: &[u8]) -> bool {
    let suspicious = |pair: &[u8]| pair[0] == b'/' && matches!(pair[1], b'/' | b'.');
    memchr::memchr2(b'%', b'\\', path).is_none() && !path.windows(2).any(suspicious)
}

fn decode_unreserved(path: &str) -> Result<String, PathError> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        decoded.push_str(&rest[..at]);
        let escape = rest.as_bytes().get(at + 1..at + 3);
        if rest.as_bytes()[at] == b'\\' {
            return Err(PathError::Ambiguous);
        }
        let byte = escape.and_then(hex_byte).ok_or(PathError::BadEscape)?;
        match byte {
            b'/' | b'\\' | 0 => return Err(PathError::Ambiguous),
            _ if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') => {
                decoded.push(char::from(byte))
            }
            _ => decoded.push_str(&rest[at..at + 3].to_ascii_uppercase()),
        }
        rest = &rest[at + 3..];
    }
    decoded.push_str(rest);
    Ok(decoded)
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    Some(digit(digits[0])? * 16 + digit(digits[1])?)
}

/// RFC 3986, section 5.2.4, but climbing above the root is an error.
fn resolve_dots(path: &str) -> Result<String, PathError> {
    let mut resolved = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "" | "." if !last => {}
            "" | "." => resolved.push('/'),
            ".." => {
                let parent = resolved.rfind('/').ok_or(PathError::AboveRoot)?;
                resolved.truncate(parent);
                if last {
                    resolved.push('/');
                }
            }
            _ => {
                resolved.push('/');
                resolved.push_str(segment);
            }
        }
    }
    if resolved.is_empty() {
        resolved.push('/');
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_form_for_every_path() {
        for (path, wanted) in [
            ("/", Ok("/")),
            ("/a/b", Ok("/a/b")),
            ("/a//b///c", Ok("/a/b/c")),
            ("//", Ok("/")),
            ("/a/./b/.", Ok("/a/b/")),
            ("/a/../b", Ok("/b")),
            ("/a/b/..", Ok("/a/")),
            ("/a/%2e%2E/b", Ok("/b")),
            ("/.well-known/x", Ok("/.well-known/x")),
            ("/...", Ok("/...")),
            ("/%41%7e%2d", Ok("/A~-")),
            ("/%c3%a9", Ok("/%C3%A9")),
            ("/%252e%252e/x", Ok("/%252e%252e/x")),
            ("/caf\u{e9}", Ok("/caf\u{e9}")),
            ("/a/b;c=1", Ok("/a/b;c=1")),
            ("/..", Err(PathError::AboveRoot)),
            ("/a/../../b", Err(PathError::AboveRoot)),
            ("/%2e%2e/etc", Err(PathError::AboveRoot)),
            ("/a%2Fb", Err(PathError::Ambiguous)),
            ("/a%2fb", Err(PathError::Ambiguous)),
            ("/a%5cb", Err(PathError::Ambiguous)),
            ("/a\\b", Err(PathError::Ambiguous)),
            ("/a%00", Err(PathError::Ambiguous)),
            ("/a%", Err(PathError::BadEscape)),
            ("/a%4", Err(PathError::BadEscape)),
            ("/a%zz", Err(PathError::BadEscape)),
            ("/%\u{e9}1", Err(PathError::BadEscape)),
            ("a", Err(PathError::Relative)),
            ("", Err(PathError::Relative)),
        ] {
            assert_eq!(normalise(path), wanted.map(Cow::Borrowed), "{path:?}");
        }
    }

    #[test]
    fn prefixes_have_no_closing_slash() {
        assert_eq!(prefix("/app/").as_deref(), Ok("/app"));
        assert_eq!(prefix("/").as_deref(), Ok("/"));
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(path in "/[a.%/25eE\\\\~é]{0,24}") {
            if let Ok(once) = normalise(&path) {
                prop_assert_eq!(normalise(&once), Ok(Cow::Borrowed(&*once)));
                prop_assert!(!once.contains("//") && !once.split('/').any(|segment| segment == ".."));
            }
        }
    }
}
