//! How, and how recently, somebody has to have logged in for a route, and what is said to who has not (RFC 9470).
//!
//! The level (`acr`) and the time of the login are what the session or the token says of them; this module only
//! compares. Where somebody who navigates goes on after the login is in the URL of the login page, which anybody can
//! make. So it counts for nothing unless it is a path of the same host: only that may be told to the page in a signed
//! token.

use std::fmt::Write as _;
use std::time::Duration;

use super::csrf::form_field;

/// The longest name of a level.
const MOST_ACR_BYTES: usize = 256;
/// The longest way back.
const MOST_PATH_BYTES: usize = 2_048;
/// The parameter of the login page that says where to go on.
const RETURN: &str = "return";

/// What a route requires of a login.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Require {
    /// One of these levels; empty: any.
    pub acr: Vec<Box<str>>,
    /// It must not be longer ago.
    pub max_age: Option<Duration>,
}

/// What somebody has shown of who they are.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// The level of the login; empty when nothing is said of it.
    pub acr: &'a str,
    /// When it was, in seconds since 1970.
    pub auth_time: Option<u64>,
}

impl Require {
    /// Whether a word can be a level: it has to fit into a list of words between quotes.
    pub fn check_acr(text: &str) -> bool {
        let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        (1..=MOST_ACR_BYTES).contains(&text.len()) && text.bytes().all(fits)
    }

    /// Whether a login is what the route requires. `skew`: by how much the clock of whoever noted its time may be
    /// ahead.
    pub fn is_shown(&self, shown: &Shown<'_>, now: u64, skew: Duration) -> bool {
        let is_level = self.acr.is_empty() || self.acr.iter().any(|acr| **acr == *shown.acr);
        is_level && self.is_recent(shown.auth_time, now, skew)
    }

    fn is_recent(&self, auth_time: Option<u64>, now: u64, skew: Duration) -> bool {
        let Some(at) = auth_time else { return self.max_age.is_none() };
        let is_past = at.saturating_sub(now) <= skew.as_secs();
        is_past && self.max_age.is_none_or(|most| Duration::from_secs(now.saturating_sub(at)) <= most)
    }

    /// The `WWW-Authenticate` that says what is missing; a header may hold it if every level passed
    /// [`Require::check_acr`].
    pub fn challenge(&self) -> String {
        let mut challenge = String::from(
            "Bearer error=\"insufficient_user_authentication\", \
             error_description=\"A stronger or a more recent login is needed\"",
        );
        if !self.acr.is_empty() {
            let _ = write!(challenge, ", acr_values=\"{}\"", self.acr.join(" "));
        }
        if let Some(max_age) = self.max_age {
            let _ = write!(challenge, ", max_age=\"{}\"", max_age.as_secs());
        }
        challenge
    }
}

/// Where the query of a login page's URL says to go on, if that is a path of the same host.
pub fn return_path(query: &str) -> Option<String> {
    let path = form_field(query.as_bytes(), RETURN)?;
    String::from_utf8(path.into_owned()).ok().filter(|path| is_local_path(path))
}

/// Whether a browser that is sent to this text stays on its host: it begins with one slash, and has nothing that
/// browsers drop (tabs, ends of lines) or take for a slash (backslashes). Nor has its path two slashes at once: whoever
/// shortens `/.//host` would make another host of it.
pub fn is_local_path(text: &str) -> bool {
    let path = text.split(['?', '#']).next().unwrap_or_default();
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    is_plain && text.len() <= MOST_PATH_BYTES && path.starts_with('/') && !path.contains("//")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;
    const SKEW: Duration = Duration::from_secs(30);

    fn require(levels: &str, max_age: Option<u64>) -> Require {
        let acr = levels.split_ascii_whitespace().map(Box::<str>::from).collect();
        Require { acr, max_age: max_age.map(Duration::from_secs) }
    }

    #[test]
    fn a_login_of_one_of_the_levels_that_is_recent_enough_will_do() {
        for (acr, max_age, shown, auth_time, is_shown) in [
            // Levels.
            ("mfa", None, "mfa", Some(NOW), true),
            ("mfa", None, "mfa", None, true),
            ("mfa", None, "pwd", Some(NOW), false),
            ("mfa", None, "", Some(NOW), false),
            ("mfa", None, "MFA", Some(NOW), false),
            ("mfa", None, "mfa2", Some(NOW), false),
            ("mfa", None, "mfa hw", Some(NOW), false),
            ("mfa hw", None, "hw", Some(NOW), true),
            ("mfa hw", None, "mfa hw", Some(NOW), false),
            ("", None, "", Some(NOW), true),
            ("", None, "anything", None, true),
            // Times.
            ("", Some(600), "", Some(NOW), true),
            ("", Some(600), "", Some(NOW - 600), true),
            ("", Some(600), "", Some(NOW - 601), false),
            ("", Some(600), "", Some(0), false),
            ("", Some(600), "", None, false),
            ("", Some(0), "", Some(NOW), true),
            ("", Some(0), "", Some(NOW - 1), false),
            // Of the future.
            ("", Some(600), "", Some(NOW + 30), true),
            ("", Some(600), "", Some(NOW + 31), false),
            ("", Some(600), "", Some(u64::MAX), false),
            ("", None, "", Some(NOW + 31), false),
            ("mfa", None, "mfa", Some(NOW + 31), false),
            // Both.
            ("mfa", Some(600), "mfa", Some(NOW - 10), true),
            ("mfa", Some(600), "mfa", Some(NOW - 700), false),
            ("mfa", Some(600), "pwd", Some(NOW - 10), false),
            ("mfa", Some(600), "mfa", None, false),
        ] {
            let found = require(acr, max_age).is_shown(&Shown { acr: shown, auth_time }, NOW, SKEW);
            assert_eq!(found, is_shown, "{acr:?} {max_age:?}: {shown:?} {auth_time:?}");
        }
    }

    #[test]
    fn the_challenge_says_what_is_missing() {
        const BEGINS: &str = "Bearer error=\"insufficient_user_authentication\", \
                              error_description=\"A stronger or a more recent login is needed\"";
        for (require, ends) in [
            (require("mfa", Some(600)), ", acr_values=\"mfa\", max_age=\"600\""),
            (require("mfa urn:example:hw", None), ", acr_values=\"mfa urn:example:hw\""),
            (require("", Some(0)), ", max_age=\"0\""),
            (require("", None), ""),
        ] {
            assert_eq!(require.challenge(), format!("{BEGINS}{ends}"));
        }
    }

    #[test]
    fn levels_are_words() {
        let longest = "a".repeat(256);
        for good in ["mfa", "urn:mace:incommon:iap:silver", "0", "https://id.example.com/mfa", &longest] {
            assert!(Require::check_acr(good), "{good}");
        }
        let too_long = "a".repeat(257);
        for bad in ["", " ", "m fa", "mfa\"", "m\\fa", "mfa\n", "mfa\0", "mfä", &too_long] {
            assert!(!Require::check_acr(bad), "{bad:?}");
        }
    }

    #[test]
    fn only_a_path_of_this_host_leads_back() {
        for (query, wanted) in [
            ("return=%2Fcart", Some("/cart")),
            ("return=/cart", Some("/cart")),
            ("return=%2F", Some("/")),
            ("a=1&return=%2Fcart%3Fitem%3D7%26n%3D%2B1&b=2", Some("/cart?item=7&n=+1")),
            ("return=%2Fcart%3Fnext%3Dhttps%3A%2F%2Fpay.test%2F", Some("/cart?next=https://pay.test/")),
            ("return=%2Fa%2523b%23c", Some("/a%23b#c")),
            ("return=%2F.hidden", Some("/.hidden")),
            ("return=%2F%40evil.test", Some("/@evil.test")),
            ("", None),
            ("return=", None),
            ("return", None),
            ("other=%2Fcart", None),
            ("return=cart", None),
            ("return=https%3A%2F%2Fevil.test%2F", None),
            ("return=javascript%3Aalert(1)", None),
            ("return=%2F%2Fevil.test", None),
            ("return=%2F%5Cevil.test", None),
            ("return=%5C%5Cevil.test", None),
            ("return=%5C%2Fevil.test", None),
            ("return=%2Fa%5Cb", None),
            ("return=%2F%09%2Fevil.test", None),
            ("return=%09%2F%2Fevil.test", None),
            ("return=%0A%2F%2Fevil.test", None),
            ("return=%20%2Fcart", None),
            ("return=+%2Fcart", None),
            ("return=%2Fcart%0D%0ASet-Cookie%3A%20a", None),
            ("return=%2F.%2F%2Fevil.test", None),
            ("return=%2Fa%2F%2Fb", None),
            ("return=%2Fa%00", None),
            ("return=%2F%C3%A9", None),
            ("return=%2F%FF", None),
            ("return=%2Fcart&return=%2Fcart", None),
            ("return=%2Fcart&return=%2F%2Fevil.test", None),
        ] {
            assert_eq!(return_path(query).as_deref(), wanted, "{query}");
        }
        assert!(is_local_path(&format!("/{}", "a".repeat(2_047))));
        assert!(!is_local_path(&format!("/{}", "a".repeat(2_048))));
    }

    proptest! {
        #[test]
        fn a_challenge_is_always_a_header_of_whole_quotes(
            acr in proptest::collection::vec("\\PC{0,12}|[ -~]{0,12}", 0..4),
            max_age: Option<u64>,
        ) {
            let words: Vec<&str> = acr.iter().map(String::as_str).filter(|acr| Require::check_acr(acr)).collect();
            let challenge = require(&words.join(" "), max_age).challenge();
            prop_assert!(HeaderValue::from_str(&challenge).is_ok());
            let quotes = 4 + 2 * usize::from(!words.is_empty()) + 2 * usize::from(max_age.is_some());
            prop_assert_eq!(challenge.matches('"').count(), quotes);
        }

        /// Browsers drop tabs and ends of lines, and take a backslash for a slash; then two slashes begin a host.
        #[test]
        fn no_path_leads_a_browser_elsewhere(text in "[/\\\\a.?#:\t\r\n ]{0,10}") {
            let read: String = text.trim().replace(['\t', '\r', '\n'], "").replace('\\', "/");
            if is_local_path(&text) {
                prop_assert!(read.starts_with('/') && !read.starts_with("//"));
            }
        }

        #[test]
        fn every_path_that_is_sent_along_is_read_back(path in "/([a-z%.~-]{1,6}/){0,3}(\\?[ -\\[\\]-~&&[^ ]]{0,12})?") {
            let sent = percent_encoding::utf8_percent_encode(&path, percent_encoding::NON_ALPHANUMERIC);
            prop_assert_eq!(return_path(&format!("a=1&return={sent}")), Some(path));
        }
    }
}
