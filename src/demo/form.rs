//! What a browser sends of a form, in a body or in a query (`application/x-www-form-urlencoded`).

use http::Uri;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

const MOST_BYTES: usize = 16 * 1024;
const MOST_PATH_CHARS: usize = 1_024;
/// Where one comes from, as the proxy says it to `login_url`.
const RETURN: &str = "return";

/// The fields, as they came.
pub struct Form(String);

impl Form {
    /// The form of a body; one that is too large has no fields.
    pub async fn read(body: Incoming) -> Self {
        let collected = Limited::new(body, MOST_BYTES).collect().await;
        let bytes = collected.map(|collected| collected.to_bytes()).unwrap_or_default();
        Form(String::from_utf8(bytes.into()).unwrap_or_default())
    }

    pub fn of_query(uri: &Uri) -> Self {
        Form(uri.query().unwrap_or_default().to_owned())
    }

    /// A field, cut to so many characters; an empty one is none.
    pub fn field(&self, wanted: &str, most_chars: usize) -> Option<String> {
        let mut pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        let value = pairs.find(|(name, _)| *name == wanted)?.1.replace('+', " ");
        let decoded = percent_encoding::percent_decode_str(&value).decode_utf8_lossy();
        Some(decoded.trim().chars().take(most_chars).collect()).filter(|text: &String| !text.is_empty())
    }

    /// Where to go on; home, if it is nowhere on this host.
    pub fn way_back(&self) -> String {
        let said = self.field(RETURN, MOST_PATH_CHARS).filter(|path| is_own_path(path));
        said.unwrap_or_else(|| "/".to_owned())
    }
}

/// A link to a page that leads back to `path`.
pub fn link(to: &str, path: &str) -> String {
    let back = percent_encoding::utf8_percent_encode(path, percent_encoding::NON_ALPHANUMERIC);
    format!("{to}?{RETURN}={back}")
}

/// A path of this host. To browsers a backslash is a slash, tabs and line ends are nothing, and two slashes begin
/// another host.
fn is_own_path(path: &str) -> bool {
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    is_plain && path.starts_with('/') && !path.starts_with("//")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_decoded_cut_and_none_when_empty() {
        let form = Form("user=Zo%C3%AB+%3C3&item=+&code=123456789&user=Eve".to_owned());
        assert_eq!(form.field("user", 40).as_deref(), Some("Zoë <3"));
        assert_eq!(form.field("user", 2).as_deref(), Some("Zo"));
        assert_eq!(form.field("code", 6).as_deref(), Some("123456"));
        assert_eq!((form.field("item", 40), form.field("other", 40)), (None, None));
    }

    #[test]
    fn the_way_back_is_a_path_of_this_host_or_home() {
        let back = |query: &str| Form::of_query(&format!("/step-up?{query}").parse().unwrap()).way_back();
        assert_eq!(back("return=%2Fpayout%3Fto%3Da%26b"), "/payout?to=a&b");
        let elsewhere = [
            "",
            "return=",
            "return=payout",
            "return=%2F%2Fevil.test",
            "return=%2F%5Cevil.test",
            "return=%5C%2Fevil.test",
            "return=%2F%09%2Fevil.test",
            "return=%2F%0D%0ASet-Cookie%3A",
            "return=https%3A%2F%2Fevil.test%2F",
            "return=%E2%80%AE%2Fpayout",
        ];
        for query in elsewhere {
            assert_eq!(back(query), "/", "{query}");
        }
    }

    #[test]
    fn a_link_leads_back_however_deep() {
        let outer = link("/login", &link("/step-up", "/payout?to=a&b"));
        let inner = Form::of_query(&outer.parse().unwrap()).way_back();
        assert_eq!(inner, "/step-up?return=%2Fpayout%3Fto%3Da%26b");
        assert_eq!(Form::of_query(&inner.parse().unwrap()).way_back(), "/payout?to=a&b");
    }
}
