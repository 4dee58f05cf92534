//! How long a request's head is.

use http::header::{self, HeaderMap};
use http::{Method, Uri};

/// What stands around a field: colon, blank and end of line.
const AROUND_FIELD: usize = 4;
/// What stands around method and target: blanks, version and end of line.
const AROUND_TARGET: usize = 12;

/// The size of a head as HTTP/1.1 writes it, whatever it came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSize {
    pub bytes: usize,
    /// Fields; all Cookie fields are one, as HTTP/2 may send a field for each cookie.
    pub fields: usize,
    /// How much of it is cookies.
    pub cookie_bytes: usize,
}

impl HeadSize {
    /// The size of this head.
    pub fn of(method: &Method, target: &Uri, headers: &HeaderMap) -> Self {
        let authority = target.authority().map_or(0, |authority| authority.as_str().len());
        let target = target.path_and_query().map_or(1, |target| target.as_str().len());
        let mut size = HeadSize {
            bytes: method.as_str().len() + authority + target + AROUND_TARGET,
            fields: headers.len(),
            cookie_bytes: 0,
        };
        let mut cookie_fields = 0;
        for (name, value) in headers {
            let bytes = name.as_str().len() + value.len() + AROUND_FIELD;
            size.bytes += bytes;
            if *name == header::COOKIE {
                size.cookie_bytes += bytes;
                cookie_fields += 1;
            }
        }
        size.fields -= usize::saturating_sub(cookie_fields, 1);
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_told_apart_and_are_one_field() {
        let mut headers = HeaderMap::new();
        headers.insert("host", "a".parse().unwrap());
        let target = Uri::from_static("/p?q");
        let plain = HeadSize::of(&Method::GET, &target, &headers);
        assert_eq!(plain, HeadSize { bytes: 3 + 4 + 12 + 4 + 1 + 4, fields: 1, cookie_bytes: 0 });
        headers.append("cookie", "a=1".parse().unwrap());
        headers.append("cookie", "b=2".parse().unwrap());
        let size = HeadSize::of(&Method::GET, &target, &headers);
        assert_eq!((size.fields, size.cookie_bytes, size.bytes - size.cookie_bytes), (2, 26, plain.bytes));
    }
}
