use std::collections::HashSet;

use super::*;
use proptest::prelude::*;

/// Who may ask `https://shop.test` for what, the decision beside each. The columns: method; `Sec-Fetch-Site`; `Origin`;
/// the address that was asked; what else there is of the request; whether a session of ours opens; `csrf_token`. `-`
/// is nothing, `|` stands between two lines, `~` for a space, `empty` for a line without a value.
const TABLE: &str = r#"
# Safe methods pass, whatever the headers say.
GET      -             -                      https://shop.test  -            none fallback => passes
GET      same-origin   -                      https://shop.test  -            none fallback => passes
GET      same-site     -                      https://shop.test  -            none fallback => passes
GET      cross-site    -                      https://shop.test  -            none fallback => passes
GET      none          -                      https://shop.test  -            none fallback => passes
GET      strange       -                      https://shop.test  -            none fallback => passes
GET      cross-site    https://evil.test      https://shop.test  -            open required => passes
GET      -             https://evil.test      https://shop.test  -            open required => passes
GET      -             null                   https://shop.test  -            open fallback => passes
GET      same-origin|cross-site https://evil.test|https://shop.test https://shop.test  -            open required => passes
HEAD     -             -                      https://shop.test  -            open required => passes
HEAD     cross-site    https://evil.test      https://shop.test  -            open required => passes
HEAD     -             null                   https://shop.test  -            none fallback => passes
OPTIONS  -             -                      https://shop.test  -            open required => passes
OPTIONS  cross-site    https://evil.test      https://shop.test  -            open required => passes
OPTIONS  cross-site    https://evil.test      https://shop.test  preflight    none fallback => passes
OPTIONS  same-site     null                   https://shop.test  preflight    open required => passes
# What a page of the same origin, or the user, asks for passes.
POST     same-origin   https://shop.test      https://shop.test  -            none fallback => passes
POST     same-origin   -                      https://shop.test  -            none fallback => passes
POST     same-origin   null                   https://shop.test  -            none fallback => passes
POST     same-origin   https://evil.test      https://shop.test  -            none fallback => passes
POST     same-origin   https://shop.test|https://evil.test https://shop.test  -            none fallback => passes
POST     same-origin   https://shop.test      https://shop.test  -            open fallback => passes
POST     same-origin   -                      https://shop.test  -            open fallback => passes
POST     none          -                      https://shop.test  -            none fallback => passes
POST     none          null                   https://shop.test  -            none fallback => passes
POST     none          https://shop.test      https://shop.test  -            open fallback => passes
POST     none          -                      https://shop.test  -            open off      => passes
PUT      same-origin   https://shop.test      https://shop.test  -            open fallback => passes
PUT      none          -                      https://shop.test  -            none fallback => passes
PATCH    same-origin   https://shop.test      https://shop.test  -            open fallback => passes
PATCH    none          -                      https://shop.test  -            none fallback => passes
DELETE   same-origin   https://shop.test      https://shop.test  -            open fallback => passes
DELETE   none          -                      https://shop.test  -            none fallback => passes
TRACE    same-origin   -                      https://shop.test  -            none fallback => passes
CONNECT  same-origin   -                      https://shop.test  -            none fallback => passes
PROPFIND same-origin   https://shop.test      https://shop.test  -            none fallback => passes
# A page of another host of the site passes only if it is trusted.
POST     same-site     https://blog.shop.test https://shop.test  -            none fallback => same_site
POST     same-site     https://blog.shop.test https://shop.test  -            open fallback => same_site
POST     same-site     https://blog.shop.test https://shop.test  -            open off      => same_site
POST     same-site     https://shop.test      https://shop.test  -            none fallback => same_site
POST     same-site     -                      https://shop.test  -            none fallback => same_site
POST     same-site     null                   https://shop.test  -            none fallback => same_site
POST     same-site     https://app.test       https://shop.test  -            none fallback => passes
POST     same-site     https://app.test       https://shop.test  -            open fallback => passes
POST     same-site     https://app.test       https://shop.test  -            open required => token
POST     same-site     https://pay.test:8443  https://shop.test  -            none fallback => passes
POST     same-site     https://pay.test       https://shop.test  -            none fallback => same_site
POST     same-site     https://app.test|https://app.test https://shop.test  -            none fallback => same_site
PUT      same-site     https://blog.shop.test https://shop.test  -            none fallback => same_site
PUT      same-site     https://app.test       https://shop.test  -            none fallback => passes
PATCH    same-site     https://blog.shop.test https://shop.test  -            none fallback => same_site
PATCH    same-site     https://app.test       https://shop.test  -            none fallback => passes
DELETE   same-site     -                      https://shop.test  -            none fallback => same_site
DELETE   same-site     https://app.test       https://shop.test  -            none fallback => passes
TRACE    same-site     -                      https://shop.test  -            none fallback => same_site
# A page of another site passes only if it is trusted.
POST     cross-site    https://evil.test      https://shop.test  -            none fallback => cross_site
POST     cross-site    https://evil.test      https://shop.test  -            open fallback => cross_site
POST     cross-site    https://evil.test      https://shop.test  -            open required => cross_site
POST     cross-site    https://evil.test      https://shop.test  -            open off      => cross_site
POST     cross-site    -                      https://shop.test  -            none fallback => cross_site
POST     cross-site    null                   https://shop.test  -            none fallback => cross_site
POST     cross-site    https://shop.test      https://shop.test  -            none fallback => cross_site
POST     cross-site    https://app.test       https://shop.test  -            none fallback => passes
POST     cross-site    https://app.test       https://shop.test  -            open fallback => passes
POST     cross-site    https://app.test       https://shop.test  -            open off      => passes
POST     cross-site    https://app.test       https://shop.test  -            open required => token
POST     cross-site    https://pay.test:8443  https://shop.test  -            none fallback => passes
POST     cross-site    https://pay.test:8444  https://shop.test  -            none fallback => cross_site
POST     cross-site    http://app.test        https://shop.test  -            none fallback => cross_site
POST     cross-site    https://app.test:443   https://shop.test  -            none fallback => cross_site
POST     cross-site    https://app.test.      https://shop.test  -            none fallback => cross_site
POST     cross-site    https://app.test/      https://shop.test  -            none fallback => cross_site
POST     cross-site    https://APP.test       https://shop.test  -            none fallback => cross_site
POST     cross-site    https://app.test.evil.test https://shop.test  -            none fallback => cross_site
POST     cross-site    https://my.app.test    https://shop.test  -            none fallback => cross_site
POST     cross-site    https://app.test|https://evil.test https://shop.test  -            none fallback => cross_site
POST     cross-site    https://app.test,https://evil.test https://shop.test  -            none fallback => cross_site
POST     cross-site    https://app.test~https://evil.test https://shop.test  -            none fallback => cross_site
POST     cross-site    http://localhost:3000  https://shop.test  -            none fallback => passes
POST     cross-site    http://localhost       https://shop.test  -            none fallback => cross_site
POST     cross-site    https://xn--bcher-kva.test https://shop.test  -            none fallback => passes
POST     cross-site    https://[2001:db8::1]:8443 https://shop.test  -            none fallback => passes
POST     cross-site    chrome-extension://abcdef https://shop.test  -            none fallback => cross_site
PUT      cross-site    https://evil.test      https://shop.test  -            none fallback => cross_site
PUT      cross-site    https://app.test       https://shop.test  -            none fallback => passes
PATCH    cross-site    https://evil.test      https://shop.test  -            none fallback => cross_site
PATCH    cross-site    https://app.test       https://shop.test  -            none fallback => passes
DELETE   cross-site    https://evil.test      https://shop.test  -            none fallback => cross_site
DELETE   cross-site    https://app.test       https://shop.test  -            none fallback => passes
TRACE    cross-site    https://evil.test      https://shop.test  -            none fallback => cross_site
CONNECT  cross-site    -                      https://shop.test  -            none fallback => cross_site
PROPFIND cross-site    https://evil.test      https://shop.test  -            none fallback => cross_site
get      cross-site    https://evil.test      https://shop.test  -            none fallback => cross_site
Options  cross-site    https://evil.test      https://shop.test  -            none fallback => cross_site
# What Sec-Fetch-Site never says is refused, unless the Origin is trusted.
POST     strange       https://shop.test      https://shop.test  -            none fallback => unknown_fetch_site
POST     strange       -                      https://shop.test  -            none fallback => unknown_fetch_site
POST     strange       -                      https://shop.test  -            open off      => unknown_fetch_site
POST     strange       https://app.test       https://shop.test  -            none fallback => passes
POST     Same-Origin   https://shop.test      https://shop.test  -            none fallback => unknown_fetch_site
POST     SAME-ORIGIN   https://shop.test      https://shop.test  -            none fallback => unknown_fetch_site
POST     None          -                      https://shop.test  -            none fallback => unknown_fetch_site
POST     same-origin,cross-site https://shop.test      https://shop.test  -            none fallback => unknown_fetch_site
POST     same-origin;a=1 https://shop.test      https://shop.test  -            none fallback => unknown_fetch_site
POST     "same-origin" https://shop.test      https://shop.test  -            none fallback => unknown_fetch_site
POST     same~origin   https://shop.test      https://shop.test  -            none fallback => unknown_fetch_site
POST     empty         https://shop.test      https://shop.test  -            none fallback => unknown_fetch_site
POST     empty         https://app.test       https://shop.test  -            none fallback => passes
POST     same-origin|same-origin https://shop.test      https://shop.test  -            none fallback => several_fetch_sites
POST     same-origin|cross-site https://shop.test      https://shop.test  -            none fallback => several_fetch_sites
POST     none|none     -                      https://shop.test  -            none fallback => several_fetch_sites
POST     empty|same-origin https://shop.test      https://shop.test  -            none fallback => several_fetch_sites
POST     same-origin|cross-site https://app.test       https://shop.test  -            none fallback => passes
POST     same-origin|cross-site https://app.test       https://shop.test  -            open required => token
PUT      strange       https://shop.test      https://shop.test  -            none fallback => unknown_fetch_site
DELETE   cross-site|same-origin https://shop.test      https://shop.test  -            none fallback => several_fetch_sites
# Without it, the Origin has to be the address that was asked.
POST     -             https://shop.test      https://shop.test  -            none fallback => passes
POST     -             https://shop.test      https://shop.test  -            open fallback => passes
POST     -             https://shop.test      https://shop.test  -            open off      => passes
POST     -             https://shop.test      https://shop.test  -            open required => token
POST     -             https://shop.test      https://shop.test  -            none required => passes
POST     -             https://evil.test      https://shop.test  -            none fallback => origin_mismatch
POST     -             https://evil.test      https://shop.test  -            open fallback => origin_mismatch
POST     -             https://evil.test      https://shop.test  -            open required => origin_mismatch
POST     -             https://evil.test      https://shop.test  -            open off      => origin_mismatch
POST     -             https://app.test       https://shop.test  -            none fallback => passes
POST     -             https://app.test       https://shop.test  -            open fallback => passes
POST     -             https://app.test       https://shop.test  -            open required => token
POST     -             https://app.test       https://app.test   -            none fallback => passes
POST     -             https://pay.test:8443  https://shop.test  -            none fallback => passes
POST     -             https://pay.test       https://shop.test  -            none fallback => origin_mismatch
POST     -             http://shop.test       https://shop.test  -            none fallback => origin_mismatch
POST     -             http://shop.test:443   https://shop.test  -            none fallback => origin_mismatch
POST     -             https://shop.test:443  https://shop.test  -            none fallback => origin_mismatch
POST     -             https://shop.test:8443 https://shop.test  -            none fallback => origin_mismatch
POST     -             https://shop.test.     https://shop.test  -            none fallback => origin_mismatch
POST     -             https://SHOP.test      https://shop.test  -            none fallback => origin_mismatch
POST     -             HTTPS://shop.test      https://shop.test  -            none fallback => origin_mismatch
POST     -             https://shop.test.evil.test https://shop.test  -            none fallback => origin_mismatch
POST     -             https://evilshop.test  https://shop.test  -            none fallback => origin_mismatch
POST     -             https://a.shop.test    https://shop.test  -            none fallback => origin_mismatch
POST     -             https://user@shop.test https://shop.test  -            none fallback => origin_mismatch
POST     -             https://test           https://shop.test  -            none fallback => origin_mismatch
POST     -             wss://shop.test        https://shop.test  -            none fallback => origin_mismatch
POST     -             chrome-extension://abcdef https://shop.test  -            none fallback => origin_mismatch
POST     -             file://                https://shop.test  -            none fallback => origin_malformed
POST     -             null                   https://shop.test  -            none fallback => origin_null
POST     -             null                   https://shop.test  -            open fallback => origin_null
POST     -             null                   https://shop.test  -            open off      => origin_null
POST     -             null                   https://null       -            none fallback => origin_null
POST     -             Null                   https://shop.test  -            none fallback => origin_malformed
POST     -             shop.test              https://shop.test  -            none fallback => origin_malformed
POST     -             //shop.test            https://shop.test  -            none fallback => origin_malformed
POST     -             https:shop.test        https://shop.test  -            none fallback => origin_malformed
POST     -             https://               https://shop.test  -            none fallback => origin_malformed
POST     -             https://shop.test/     https://shop.test  -            none fallback => origin_malformed
POST     -             https://shop.test/cart https://shop.test  -            none fallback => origin_malformed
POST     -             https://shop.test,https://shop.test https://shop.test  -            none fallback => origin_malformed
POST     -             https://shop.test~https://evil.test https://shop.test  -            none fallback => origin_malformed
POST     -             empty                  https://shop.test  -            none fallback => origin_malformed
POST     -             *                      https://shop.test  -            none fallback => origin_malformed
POST     -             https://shop.test|https://shop.test https://shop.test  -            none fallback => several_origins
POST     -             https://shop.test|https://evil.test https://shop.test  -            none fallback => several_origins
POST     -             null|https://shop.test https://shop.test  -            none fallback => several_origins
POST     -             https://app.test|https://app.test https://shop.test  -            open required => several_origins
PUT      -             https://shop.test      https://shop.test  -            none fallback => passes
PUT      -             https://evil.test      https://shop.test  -            none fallback => origin_mismatch
PATCH    -             https://shop.test      https://shop.test  -            none fallback => passes
PATCH    -             null                   https://shop.test  -            none fallback => origin_null
DELETE   -             https://shop.test      https://shop.test  -            none fallback => passes
DELETE   -             https://evil.test      https://shop.test  -            none fallback => origin_mismatch
TRACE    -             https://evil.test      https://shop.test  -            none fallback => origin_mismatch
CONNECT  -             https://shop.test|https://shop.test https://shop.test  -            none fallback => several_origins
PROPFIND -             https://evil.test      https://shop.test  -            none fallback => origin_mismatch
get      -             https://evil.test      https://shop.test  -            none fallback => origin_mismatch
# The address that was asked has a scheme and a port of its own.
POST     -             https://shop.test:8443 https://shop.test:8443 -            none fallback => passes
POST     -             https://shop.test      https://shop.test:8443 -            none fallback => origin_mismatch
POST     -             https://shop.test:08443 https://shop.test:8443 -            none fallback => origin_mismatch
POST     -             https://shop.test:84430 https://shop.test:8443 -            none fallback => origin_mismatch
POST     -             https://shop.test:+8443 https://shop.test:8443 -            none fallback => origin_mismatch
POST     -             http://shop.test       http://shop.test   -            none fallback => passes
POST     -             https://shop.test      http://shop.test   -            none fallback => origin_mismatch
POST     -             http://shop.test:80    http://shop.test   -            none fallback => origin_mismatch
POST     -             http://shop.test:8080  http://shop.test:8080 -            none fallback => passes
POST     -             http://shop.test       http://shop.test:8080 -            none fallback => origin_mismatch
POST     -             http://shop.test:443   http://shop.test:443 -            none fallback => passes
POST     -             https://shop.test:80   https://shop.test:80 -            none fallback => passes
POST     -             https://shop.test      https://shop.test:80 -            none fallback => origin_mismatch
POST     -             https://localhost:8443 https://localhost:8443 -            none fallback => passes
POST     -             https://127.0.0.1:8443 https://localhost:8443 -            none fallback => origin_mismatch
POST     -             https://127.0.0.1      https://127.0.0.1  -            none fallback => passes
POST     -             https://[::1]:8443     https://[::1]:8443 -            none fallback => passes
POST     -             https://[::1]          https://[::1]:8443 -            none fallback => origin_mismatch
POST     -             https://[::2]:8443     https://[::1]:8443 -            none fallback => origin_mismatch
POST     same-origin   https://shop.test      https://shop.test:8443 -            none fallback => passes
POST     cross-site    http://shop.test       https://shop.test  -            none fallback => cross_site
POST     cross-site    http://shop.test       http://shop.test   -            none fallback => cross_site
# Neither header: no browser. Only a session of ours needs more.
POST     -             -                      https://shop.test  -            none off      => passes
POST     -             -                      https://shop.test  -            none fallback => passes
POST     -             -                      https://shop.test  -            none required => passes
POST     -             -                      https://shop.test  -            open off      => passes
POST     -             -                      https://shop.test  -            open fallback => token
POST     -             -                      https://shop.test  -            open required => token
PUT      -             -                      https://shop.test  -            none fallback => passes
PUT      -             -                      https://shop.test  -            open fallback => token
PATCH    -             -                      https://shop.test  -            open fallback => token
DELETE   -             -                      https://shop.test  -            none required => passes
DELETE   -             -                      https://shop.test  -            open fallback => token
TRACE    -             -                      https://shop.test  -            open fallback => token
CONNECT  -             -                      https://shop.test  -            none fallback => passes
PROPFIND -             -                      https://shop.test  -            open fallback => token
get      -             -                      https://shop.test  -            open fallback => token
POST     -             -                      http://shop.test:8080 -            none fallback => passes
POST     -             -                      http://shop.test:8080 -            open fallback => token
# Where the token is required, the headers alone do not do.
POST     same-origin   https://shop.test      https://shop.test  -            open required => token
POST     same-origin   -                      https://shop.test  -            open required => token
POST     none          -                      https://shop.test  -            open required => token
POST     same-origin   https://shop.test      https://shop.test  -            none required => passes
POST     none          -                      https://shop.test  -            none required => passes
PUT      same-origin   https://shop.test      https://shop.test  -            open required => token
PATCH    same-origin   https://shop.test      https://shop.test  -            open required => token
DELETE   same-origin   https://shop.test      https://shop.test  -            open required => token
TRACE    same-origin   https://shop.test      https://shop.test  -            open required => token
get      same-origin   https://shop.test      https://shop.test  -            open required => token
POST     same-site     https://evil.test      https://shop.test  -            open required => same_site
POST     -             null                   https://shop.test  -            open required => origin_null
POST     strange       https://shop.test      https://shop.test  -            open required => unknown_fetch_site
POST     same-origin|none https://shop.test      https://shop.test  -            open required => several_fetch_sites
# A handshake for another protocol is checked like a POST, and carries no token.
GET      same-origin   https://shop.test      https://shop.test  upgrade      none fallback => passes
GET      same-origin   https://shop.test      https://shop.test  upgrade      open fallback => passes
GET      same-origin   https://shop.test      https://shop.test  upgrade      open required => passes
GET      none          -                      https://shop.test  upgrade      none fallback => passes
GET      same-site     https://blog.shop.test https://shop.test  upgrade      none fallback => same_site
GET      same-site     https://app.test       https://shop.test  upgrade      open required => passes
GET      cross-site    https://evil.test      https://shop.test  upgrade      none fallback => cross_site
GET      cross-site    https://evil.test      https://shop.test  upgrade      open off      => cross_site
GET      cross-site    https://app.test       https://shop.test  upgrade      none fallback => passes
GET      strange       https://shop.test      https://shop.test  upgrade      none fallback => unknown_fetch_site
GET      -             https://shop.test      https://shop.test  upgrade      open fallback => passes
GET      -             https://shop.test      https://shop.test  upgrade      open required => passes
GET      -             https://evil.test      https://shop.test  upgrade      open fallback => origin_mismatch
GET      -             http://shop.test       https://shop.test  upgrade      none fallback => origin_mismatch
GET      -             wss://shop.test        https://shop.test  upgrade      none fallback => origin_mismatch
GET      -             null                   https://shop.test  upgrade      none fallback => origin_null
GET      -             https://shop.test|https://shop.test https://shop.test  upgrade      none fallback => several_origins
GET      -             -                      https://shop.test  upgrade      none fallback => passes
GET      -             -                      https://shop.test  upgrade      open off      => passes
GET      -             -                      https://shop.test  upgrade      open fallback => token
GET      -             -                      https://shop.test  upgrade      open required => token
OPTIONS  cross-site    https://evil.test      https://shop.test  upgrade      none fallback => cross_site
OPTIONS  cross-site    https://evil.test      https://shop.test  upgrade,preflight none fallback => cross_site
POST     same-origin   https://shop.test      https://shop.test  upgrade      open required => token
HEAD     -             https://evil.test      https://shop.test  upgrade      none fallback => origin_mismatch
# Routes that have GET checked too.
GET      same-origin   -                      https://shop.test  protect_safe none fallback => passes
GET      same-origin   -                      https://shop.test  protect_safe open fallback => passes
GET      same-origin   -                      https://shop.test  protect_safe open required => passes
GET      none          -                      https://shop.test  protect_safe none fallback => passes
GET      none          -                      https://shop.test  protect_safe open required => passes
GET      same-site     -                      https://shop.test  protect_safe none fallback => same_site
GET      same-site     https://app.test       https://shop.test  protect_safe none fallback => passes
GET      cross-site    -                      https://shop.test  protect_safe none fallback => cross_site
GET      cross-site    -                      https://shop.test  protect_safe open off      => cross_site
GET      cross-site    https://app.test       https://shop.test  protect_safe none fallback => passes
GET      strange       -                      https://shop.test  protect_safe none fallback => unknown_fetch_site
GET      -             https://evil.test      https://shop.test  protect_safe none fallback => origin_mismatch
GET      -             null                   https://shop.test  protect_safe none fallback => origin_null
GET      -             https://shop.test      https://shop.test  protect_safe none fallback => passes
GET      -             -                      https://shop.test  protect_safe none fallback => passes
GET      -             -                      https://shop.test  protect_safe open off      => passes
GET      -             -                      https://shop.test  protect_safe open fallback => token
GET      -             -                      https://shop.test  protect_safe open required => token
HEAD     cross-site    -                      https://shop.test  protect_safe none fallback => cross_site
HEAD     same-origin   -                      https://shop.test  protect_safe none fallback => passes
OPTIONS  cross-site    https://evil.test      https://shop.test  protect_safe none fallback => cross_site
OPTIONS  cross-site    https://evil.test      https://shop.test  protect_safe,preflight none fallback => passes
OPTIONS  same-site     -                      https://shop.test  protect_safe,preflight open required => passes
OPTIONS  same-origin   https://shop.test      https://shop.test  protect_safe none fallback => passes
POST     cross-site    https://evil.test      https://shop.test  protect_safe,preflight none fallback => cross_site
POST     same-origin   https://shop.test      https://shop.test  protect_safe open required => token
GET      cross-site    https://evil.test      https://shop.test  protect_safe,upgrade none fallback => cross_site
"#;

const TRUSTED: [&str; 5] = [
    "https://app.test",
    "https://pay.test:8443",
    "http://localhost:3000",
    "https://xn--bcher-kva.test",
    "https://[2001:db8::1]:8443",
];

/// One line of the table.
struct Row {
    method: Method,
    headers: HeaderMap,
    origin: Origin,
    upgrade: bool,
    protect_safe: bool,
    has_session: bool,
    token: CsrfToken,
}

impl Row {
    fn parse(line: &str) -> Self {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [method, site, origin, asked, how, session, token] = columns[..] else { panic!("{line}") };
        let mut headers = HeaderMap::new();
        append(&mut headers, SEC_FETCH_SITE, site);
        append(&mut headers, header::ORIGIN, origin);
        let how: Vec<&str> = how.split(',').collect();
        assert!(how.iter().all(|word| ["-", "upgrade", "protect_safe", "preflight"].contains(word)), "{line}");
        if how.contains(&"preflight") {
            headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("POST"));
        }
        assert!(["none", "open"].contains(&session), "{line}");
        Row {
            method: method.parse().unwrap(),
            headers,
            origin: external(asked),
            upgrade: how.contains(&"upgrade"),
            protect_safe: how.contains(&"protect_safe"),
            has_session: session == "open",
            token: CsrfToken::from_word(token).unwrap(),
        }
    }

    fn judged(&self) -> CsrfJudgement {
        let facts = CsrfFacts {
            method: &self.method,
            upgrade: self.upgrade,
            protect_safe: self.protect_safe,
            headers: &self.headers,
            origin: &self.origin,
            has_session: self.has_session,
        };
        judge(&rules(self.token), &facts)
    }
}

fn rules(token: CsrfToken) -> CsrfRules {
    let trusted = TRUSTED.iter().map(|text| TrustedOrigin::parse(text).unwrap()).collect();
    CsrfRules { mode: Csrf::Enforce, token, trusted }
}

fn append(headers: &mut HeaderMap, name: HeaderName, lines: &str) {
    for line in lines.split('|').filter(|line| *line != "-") {
        let line = if line == "empty" { String::new() } else { line.replace('~', " ") };
        headers.append(&name, HeaderValue::try_from(line).unwrap());
    }
}

fn external(text: &str) -> Origin {
    let (scheme, rest) = text.split_once("://").unwrap();
    let https = scheme == "https";
    let (host, port) = match rest.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
        Some((host, port)) => (host, port.parse().unwrap()),
        None => (rest, if https { 443 } else { 80 }),
    };
    Origin { https, host: host.into(), port }
}

fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(" => ").unwrap())
}

fn word(judgement: CsrfJudgement) -> &'static str {
    match judgement {
        CsrfJudgement::Passes => "passes",
        CsrfJudgement::NeedsToken => "token",
        CsrfJudgement::Refused(reason) => reason.as_str(),
    }
}

#[test]
fn every_row_of_the_table_is_decided_as_it_says() {
    let wrong: Vec<String> = rows()
        .map(|(row, wanted)| (row, wanted, word(Row::parse(row).judged())))
        .filter(|(_, wanted, found)| wanted != found)
        .map(|(row, _, found)| format!("{row} => {found}"))
        .collect();
    assert!(wrong.is_empty(), "decided otherwise:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_is_long_and_says_nothing_twice() {
    let different: HashSet<Vec<&str>> = rows().map(|(row, _)| row.split_whitespace().collect()).collect();
    assert_eq!(different.len(), rows().count());
    assert!(different.len() >= 200, "{} rows", different.len());
    let decisions: HashSet<&str> = rows().map(|(_, wanted)| wanted).collect();
    let by_headers = CsrfReason::ALL.iter().map(|reason| reason.as_str()).filter(|word| !word.starts_with("token"));
    assert!(by_headers.chain(["passes", "token"]).all(|word| decisions.contains(word)), "a decision has no row");
}

#[test]
fn origins_are_read_as_browsers_write_them() {
    for (text, wanted) in [
        ("https://app.example.com", Ok("https://app.example.com")),
        ("https://app.example.com:8443", Ok("https://app.example.com:8443")),
        ("https://app.example.com:443", Ok("https://app.example.com")),
        ("https://app.example.com:0443", Ok("https://app.example.com")),
        ("http://app.example.com:80", Ok("http://app.example.com")),
        ("http://app.example.com:443", Ok("http://app.example.com:443")),
        ("HTTPS://App.Example.COM", Ok("https://app.example.com")),
        ("https://localhost:3000", Ok("https://localhost:3000")),
        ("https://under_score.test", Ok("https://under_score.test")),
        ("https://xn--bcher-kva.example", Ok("https://xn--bcher-kva.example")),
        ("https://192.0.2.7:8443", Ok("https://192.0.2.7:8443")),
        ("https://[2001:DB8::1]", Ok("https://[2001:db8::1]")),
        ("https://[::1]:8443", Ok("https://[::1]:8443")),
        ("", Err(OriginError::Scheme)),
        ("null", Err(OriginError::Scheme)),
        ("*", Err(OriginError::Scheme)),
        ("app.example.com", Err(OriginError::Scheme)),
        ("wss://app.example.com", Err(OriginError::Scheme)),
        ("https://", Err(OriginError::Host)),
        ("https://app.example.com/", Err(OriginError::Path)),
        ("https://app.example.com/login", Err(OriginError::Path)),
        ("https://app.example.com?a", Err(OriginError::Path)),
        ("https://app.example.com#a", Err(OriginError::Path)),
        ("https://app.example.com\\", Err(OriginError::Path)),
        ("https://*.example.com", Err(OriginError::Pattern)),
        ("https://bücher.example", Err(OriginError::NotAscii)),
        ("https://app.example.com.", Err(OriginError::Host)),
        ("https://app..example.com", Err(OriginError::Host)),
        ("https://user@app.example.com", Err(OriginError::Host)),
        ("https://app.example.com, https://b.test", Err(OriginError::Path)),
        ("https://app example.com", Err(OriginError::Host)),
        ("https:// app.example.com", Err(OriginError::Host)),
        ("https://192.0.2", Err(OriginError::Host)),
        ("https://1.2.3.256", Err(OriginError::Host)),
        ("https://[2001:db8:0::1]", Err(OriginError::Host)),
        ("https://[::ffff:192.0.2.7]", Err(OriginError::Host)),
        ("https://[::1", Err(OriginError::Host)),
        ("https://app.example.com:", Err(OriginError::Port)),
        ("https://app.example.com:0", Err(OriginError::Port)),
        ("https://app.example.com:+1", Err(OriginError::Port)),
        ("https://app.example.com:65536", Err(OriginError::Port)),
        ("https://app.example.com:https", Err(OriginError::Port)),
    ] {
        let parsed = TrustedOrigin::parse(text);
        assert_eq!(parsed.as_ref().map(TrustedOrigin::as_str).map_err(|error| *error), wanted, "{text:?}");
    }
}

/// What the session's own claim does: a mask, a dot, and the token under the mask.
fn masked(token: &[u8; 32], mask: &[u8; 32]) -> String {
    let hidden: Vec<u8> = token.iter().zip(mask).map(|(token, mask)| token ^ mask).collect();
    format!("{}.{}", BASE64URL_NOPAD.encode(mask), BASE64URL_NOPAD.encode(&hidden))
}

#[test]
fn a_token_is_taken_in_its_one_form_only() {
    let token = masked(&[7; 32], &[255; 32]);
    assert_eq!(
        token, "__________________________________________8.-Pj4-Pj4-Pj4-Pj4-Pj4-Pj4-Pj4-Pj4-Pj4-Pj4-Pg",
        "as it always was: pages that stand open show it"
    );
    assert!(verify_token(&[7; 32], token.as_bytes()));
    assert!(!verify_token(&[8; 32], token.as_bytes()));
    let other_bits = token.replace("8.", "9.");
    for wrong in [
        "",
        ".",
        &token[..86],
        &token[1..],
        &format!("{token}="),
        &format!("{token} "),
        &format!(" {token}"),
        &format!("{token}.{token}"),
        &token.replace('.', ":"),
        &token.replace('-', "+"),
        &token.replace('_', "/"),
        // The same bytes, with bits at the end that mean nothing.
        &other_bits,
        &BASE64URL_NOPAD.encode(&[7; 32]),
    ] {
        assert!(!verify_token(&[7; 32], wrong.as_bytes()), "{wrong:?}");
    }
}

#[test]
fn a_token_of_any_ring_key_does_and_none_is_told_from_a_wrong_one() {
    let token = masked(&[7; 32], &[1; 32]);
    assert_eq!(check_token(&[[9; 32], [7; 32]], Some(token.as_bytes())), Ok(()));
    assert_eq!(check_token(&[[9; 32]], Some(token.as_bytes())), Err(CsrfReason::TokenWrong));
    assert_eq!(check_token(&[], Some(token.as_bytes())), Err(CsrfReason::TokenWrong));
    assert_eq!(check_token(&[[7; 32]], Some(b"")), Err(CsrfReason::TokenWrong));
    assert_eq!(check_token(&[[7; 32]], None), Err(CsrfReason::TokenMissing));
}

#[test]
fn the_header_comes_before_the_form_and_two_headers_are_none() {
    const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
    let cases: &[(&[(&str, &str)], TokenPlace<'_>)] = &[
        (&[], TokenPlace::Nowhere),
        (&[("x-csrf-token", "a.b")], TokenPlace::Header(b"a.b")),
        (&[("x-csrf-token", "a.b"), FORM], TokenPlace::Header(b"a.b")),
        (&[("x-csrf-token", ""), FORM], TokenPlace::Header(b"")),
        (&[("x-csrf-token", "a.b"), ("x-csrf-token", "a.b"), FORM], TokenPlace::Nowhere),
        (&[FORM], TokenPlace::Form),
        (&[("content-type", "Application/X-WWW-Form-Urlencoded ; charset=utf-8")], TokenPlace::Form),
        (&[FORM, FORM], TokenPlace::Nowhere),
        (&[FORM, ("content-encoding", "gzip")], TokenPlace::Nowhere),
        (&[("content-type", "application/x-www-form-urlencoded2")], TokenPlace::Nowhere),
        (&[("content-type", "multipart/form-data; boundary=a")], TokenPlace::Nowhere),
        (&[("content-type", "application/json")], TokenPlace::Nowhere),
    ];
    for (fields, wanted) in cases {
        let mut headers = HeaderMap::new();
        for (name, value) in *fields {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        assert_eq!(token_place(&headers), *wanted, "{fields:?}");
    }
}

#[test]
fn a_form_has_a_field_once_or_not_at_all() {
    for (form, wanted) in [
        ("csrf_token=abc", Some("abc")),
        ("a=1&csrf_token=abc&b=2", Some("abc")),
        ("a=1&&csrf_token=abc&", Some("abc")),
        ("csrf_token=a%2Db.c%5f", Some("a-b.c_")),
        ("csrf_token=a+b%20c", Some("a b c")),
        ("csrf_token=a%2Bb+c", Some("a+b c")),
        ("csrf_token=a=b", Some("a=b")),
        ("csrf_token=%zz%4", Some("%zz%4")),
        ("csrf_token=", Some("")),
        ("csrf_token", Some("")),
        ("csrf%5Ftoken=abc", Some("abc")),
        ("csrf%5ftoken=abc&csrf_token=def", None),
        ("csrf_token=abc&csrf_token=abc", None),
        ("csrf_token&csrf_token=abc", None),
        ("CSRF_TOKEN=abc", None),
        ("xcsrf_token=abc", None),
        ("csrf_token[]=abc", None),
        ("a=csrf_token=abc", None),
        ("csrf+token=abc", None),
        ("", None),
    ] {
        let found = form_field(form.as_bytes(), FORM_FIELD);
        assert_eq!(found.as_deref(), wanted.map(str::as_bytes), "{form:?}");
    }
}

proptest! {
    /// Whatever the headers say: without a trusted Origin, only two values of Sec-Fetch-Site and one Origin pass.
    #[test]
    fn nothing_else_makes_a_post_pass(
        sites in proptest::collection::vec("same-origin|none|same-site|cross-site|[ -~]{0,12}", 0..3),
        origins in proptest::collection::vec("https://(shop|evil)\\.test(:[0-9]{1,5})?|null|[ -~]{0,20}", 0..3),
    ) {
        let mut headers = HeaderMap::new();
        for site in &sites {
            headers.append(SEC_FETCH_SITE, HeaderValue::from_str(site).unwrap());
        }
        for origin in &origins {
            headers.append(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        let facts = CsrfFacts {
            method: &Method::POST,
            upgrade: false,
            protect_safe: false,
            headers: &headers,
            origin: &external("https://shop.test"),
            has_session: false,
        };
        let judged = judge(&rules(CsrfToken::Required), &facts);
        let honest = match (&sites[..], &origins[..]) {
            ([site], _) => site == "same-origin" || site == "none",
            ([], [origin]) => origin == "https://shop.test",
            (sites, origins) => sites.is_empty() && origins.is_empty(),
        };
        prop_assert_eq!(judged == CsrfJudgement::Passes, honest);
    }

    #[test]
    fn every_token_is_taken_under_every_mask_and_no_changed_one_is(
        token in proptest::array::uniform32(any::<u8>()),
        mask in proptest::array::uniform32(any::<u8>()),
        at in 0usize..87,
        byte in b' '..=b'~',
    ) {
        let mut shown = masked(&token, &mask).into_bytes();
        prop_assert!(verify_token(&token, &shown));
        let changed = shown[at] != byte;
        shown[at] = byte;
        prop_assert_eq!(verify_token(&token, &shown), !changed);
    }

    #[test]
    fn no_form_and_no_token_harms_anybody(form in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = form_field(&form, FORM_FIELD);
        prop_assert!(!verify_token(&[7; 32], &form));
    }

    /// What a form can say, it says here as it does to servers.
    #[test]
    fn a_fields_value_is_read_back(value in proptest::collection::vec(any::<u8>(), 0..40)) {
        let text = percent_encoding::percent_encode(&value, percent_encoding::NON_ALPHANUMERIC);
        let form = format!("a=1&csrf_token={text}&b=%26");
        let found = form_field(form.as_bytes(), FORM_FIELD).map(|found| found.into_owned());
        prop_assert_eq!(found, Some(value.clone()));
    }
}
