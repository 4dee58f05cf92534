//! What the edge enforces, whatever the mode of a pool.

use super::Absent::Default as Is;
use super::{Kind, Table, key, words};
use crate::names::{CookieMode, Csrf, CsrfToken, SameSite};

pub(super) static PROTECT: Table = Table {
    path: "protect",
    doc: "What the edge enforces, whatever the mode of a pool.",
    keys: &[
        key(
            "csrf",
            Kind::Word(|| words(Csrf::ALL, Csrf::as_str)),
            Is("\"enforce\""),
            "Requests that another site has sent: \"enforce\" refuses them, \"report\" only counts.",
        ),
        key(
            "csrf_token",
            Kind::Word(|| words(CsrfToken::ALL, CsrfToken::as_str)),
            Is("\"fallback\""),
            "\"fallback\": where neither Sec-Fetch-Site nor Origin is sent and there is a session; \"required\": always.",
        ),
        key(
            "trusted_origins",
            Kind::TextList,
            Is("[]"),
            "Other origins that may send requests, as \"https://app.example.com\".",
        ),
        key(
            "hsts",
            Kind::Text,
            Is("\"max-age=31536000\""),
            "Strict-Transport-Security; \"\": none. Never for localhost, an IP address or a self-signed certificate.",
        ),
        key(
            "cookies",
            Kind::Word(|| words(CookieMode::ALL, CookieMode::as_str)),
            Is("\"fix\""),
            "Cookies that servers set: \"fix\" adds flags, \"reject\" drops offenders.",
        ),
        key(
            "same_site",
            Kind::Word(|| words(SameSite::ALL, SameSite::as_str)),
            Is("\"Lax\""),
            "For cookies that do not say it.",
        ),
        key(
            "allow_script",
            Kind::TextList,
            Is("[\"*csrf*\", \"*xsrf*\"]"),
            "Cookies that scripts may read: globs, case does not matter.",
        ),
    ],
};
