//! What an application says about a session, in headers of its response.
//!
//! Every directive repeats the nonce of its request's attempt: a header that somebody else made an application write, or
//! a response out of a cache, counts for nothing. What does count has to be right as a whole; half a directive is none.

use data_encoding::BASE64URL_NOPAD;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};
use sfv::{BareItem, Item, List, ListEntry, Parser};

use super::commit::{Directives, How, Turn};
use super::merge::MOST_PATCH_BYTES;
use crate::keys::{Entropy, fresh};

/// To servers.
pub const SESSION: HeaderName = HeaderName::from_static("steadfast-session");
pub const REQUEST: HeaderName = HeaderName::from_static("steadfast-session-request");
/// From servers.
pub const PATCH: HeaderName = HeaderName::from_static("steadfast-session-patch");
pub const OP: HeaderName = HeaderName::from_static("steadfast-session-op");
pub const ONLY_IF: HeaderName = HeaderName::from_static("steadfast-session-if");

/// The longest name of a subject, of a level and of a method, in bytes.
const MOST_NAME_BYTES: usize = 256;
const MOST_METHODS: usize = 16;

/// Names one attempt, and lets its server speak for the session.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce([u8; 16]);

impl Nonce {
    /// A new one: 128 random bits.
    pub fn new(entropy: &mut dyn Entropy) -> Self {
        Nonce(fresh(entropy))
    }

    /// Reads what [`Nonce::text`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Nonce(BASE64URL_NOPAD.decode(text.as_bytes()).ok()?.try_into().ok()?))
    }

    /// To tell many apart.
    pub const fn first_byte(&self) -> u8 {
        self.0[0]
    }

    /// As it stands in headers.
    pub fn text(&self) -> String {
        BASE64URL_NOPAD.encode(&self.0)
    }
}

/// Why a response's directives cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDirective {
    #[error("Steadfast-Session-Patch is no nonce, dot and base64url of a JSON object")]
    Patch,
    #[error("the patch is over 16 KiB")]
    PatchTooLarge,
    #[error("there are two patches")]
    TwoPatches,
    #[error("Steadfast-Session-Op is no list of operations (RFC 9651)")]
    Op,
    #[error("Steadfast-Session-Op has an operation that is not known")]
    UnknownOp,
    #[error("a parameter of an operation is missing, or not as it has to be")]
    Parameter,
    #[error("there are two operations that exclude each other")]
    TwoTurns,
    #[error("Steadfast-Session-If is no version")]
    OnlyIf,
}

/// What a response says, and how many of its directives were not of this attempt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    pub directives: Directives,
    pub foreign: u32,
}

/// Reads the directives of a response to the attempt of this nonce.
pub fn directives(headers: &HeaderMap, nonce: &Nonce) -> Result<Said, BadDirective> {
    let mut said = Said::default();
    let own = nonce.text();
    for value in headers.get_all(PATCH) {
        read_patch(value, &own, &mut said)?;
    }
    if headers.contains_key(OP) {
        let lines: Vec<&[u8]> = headers.get_all(OP).iter().map(HeaderValue::as_bytes).collect();
        let list: List = Parser::new(&lines.join(&b", "[..])).parse().map_err(|_| BadDirective::Op)?;
        for entry in &list {
            let ListEntry::Item(item) = entry else { return Err(BadDirective::Op) };
            if matches!(parameter(item, "rid"), Ok(Some(nonce)) if nonce == own) {
                operation(item, &mut said.directives)?;
            } else {
                said.foreign += 1;
            }
        }
    }
    if !said.directives.is_empty() {
        said.directives.only_if = only_if(headers)?;
    }
    Ok(said)
}

/// Whether a response says anything: most do not.
pub fn says_something(headers: &HeaderMap) -> bool {
    headers.contains_key(PATCH) || headers.contains_key(OP) || headers.contains_key(ONLY_IF)
}

fn only_if(headers: &HeaderMap) -> Result<Option<u64>, BadDirective> {
    let mut values = headers.get_all(ONLY_IF).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let version = value.to_str().ok().and_then(|text| text.trim().parse().ok());
            version.map(Some).ok_or(BadDirective::OnlyIf)
        }
        _ => Err(BadDirective::OnlyIf),
    }
}

fn read_patch(value: &HeaderValue, own: &str, said: &mut Said) -> Result<(), BadDirective> {
    let text = value.to_str().map_err(|_| BadDirective::Patch)?;
    let (nonce, patch) = text.split_once('.').ok_or(BadDirective::Patch)?;
    if nonce != own {
        said.foreign += 1;
        return Ok(());
    }
    if said.directives.patch.is_some() {
        return Err(BadDirective::TwoPatches);
    }
    if patch.len() > MOST_PATCH_BYTES.div_ceil(3) * 4 {
        return Err(BadDirective::PatchTooLarge);
    }
    let json = BASE64URL_NOPAD.decode(patch.as_bytes()).map_err(|_| BadDirective::Patch)?;
    said.directives.patch = Some(object(&json).ok_or(BadDirective::Patch)?);
    Ok(())
}

/// A JSON object.
pub fn object(json: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(json).ok()
}

fn operation(item: &Item, directives: &mut Directives) -> Result<(), BadDirective> {
    let name = item.bare_item.as_token().ok_or(BadDirective::Op)?.as_str();
    let how = || how(&|name| parameter(item, name));
    let subject = || parameter(item, "sub")?.ok_or(BadDirective::Parameter);
    add_operation(name, subject, how, directives)
}

/// Adds an operation, from a header or from the side API.
pub fn add_operation(
    name: &str,
    subject: impl FnOnce() -> Result<String, BadDirective>,
    how: impl FnOnce() -> Result<How, BadDirective>,
    directives: &mut Directives,
) -> Result<(), BadDirective> {
    let turn = match name {
        "no-touch" => {
            directives.no_touch = true;
            return Ok(());
        }
        "logout-others" => {
            directives.logout_others = true;
            return Ok(());
        }
        "login" => {
            let subject = subject()?;
            if subject.is_empty() || subject.len() > MOST_NAME_BYTES {
                return Err(BadDirective::Parameter);
            }
            Turn::Login { subject: subject.into(), how: how()? }
        }
        "step-up" => Turn::StepUp(how()?),
        "renew" => Turn::Renew,
        "logout" => Turn::Logout,
        "logout-all" => Turn::LogoutAll,
        _ => return Err(BadDirective::UnknownOp),
    };
    if directives.turn.replace(turn).is_some() {
        return Err(BadDirective::TwoTurns);
    }
    Ok(())
}

/// How somebody has shown who they are, by the parameters `acr`, `amr` and `carry`.
pub fn how(parameter: &dyn Fn(&str) -> Result<Option<String>, BadDirective>) -> Result<How, BadDirective> {
    let words = |text: String| text.split_ascii_whitespace().map(Box::<str>::from).collect::<Vec<_>>();
    let acr = parameter("acr")?.unwrap_or_default();
    let amr = parameter("amr")?.map(words).unwrap_or_default();
    let carry = parameter("carry")?.map(words);
    let is_short = |word: &str| word.len() <= MOST_NAME_BYTES;
    if !is_short(&acr) || amr.len() > MOST_METHODS || !amr.iter().all(|method| is_short(method)) {
        return Err(BadDirective::Parameter);
    }
    Ok(How { acr: acr.into(), amr, carry })
}

/// A parameter, which has to be text where it is there.
fn parameter(item: &Item, wanted: &str) -> Result<Option<String>, BadDirective> {
    let found = item.params.iter().find(|(name, _)| name.as_str() == wanted);
    match found.map(|(_, value)| value) {
        None => Ok(None),
        Some(BareItem::String(text)) => Ok(Some(text.as_str().to_owned())),
        Some(BareItem::DisplayString(text)) => Ok(Some(text.clone())),
        Some(_) => Err(BadDirective::Parameter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::model::Counted;
    use proptest::prelude::*;
    use serde_json::json;

    fn nonce() -> Nonce {
        Nonce::new(&mut Counted::default())
    }

    fn read(fields: &[(HeaderName, String)]) -> Result<Said, BadDirective> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::try_from(value).unwrap());
        }
        directives(&headers, &nonce())
    }

    fn op(text: &str) -> Result<Said, BadDirective> {
        read(&[(OP, text.replace("RID", &nonce().text()))])
    }

    fn patch(json: &str) -> String {
        format!("{}.{}", nonce().text(), BASE64URL_NOPAD.encode(json.as_bytes()))
    }

    #[test]
    fn what_is_said_is_read() {
        let said = op(r#"login;sub="alice";acr="mfa";amr="pwd otp";carry="cart theme";rid="RID""#).unwrap();
        let how = How {
            acr: "mfa".into(),
            amr: vec!["pwd".into(), "otp".into()],
            carry: Some(vec!["cart".into(), "theme".into()]),
        };
        assert_eq!(said.directives.turn, Some(Turn::Login { subject: "alice".into(), how }));
        let said = op(r#"login;sub=%"Zo%c3%ab";rid="RID", logout-others;rid="RID", no-touch;rid="RID""#).unwrap();
        assert!(matches!(said.directives.turn, Some(Turn::Login { subject, .. }) if &*subject == "Zoë"));
        assert!(said.directives.logout_others && said.directives.no_touch);
        let said = read(&[(PATCH, patch(r#"{"cart":null}"#)), (ONLY_IF, "7".into())]).unwrap();
        assert_eq!(
            (said.directives.patch, said.directives.only_if),
            (json!({"cart":null}).as_object().cloned(), Some(7))
        );
    }

    #[test]
    fn what_is_not_of_this_attempt_is_ignored_and_counted() {
        let other = Nonce::new(&mut Counted(77)).text();
        for fields in [
            vec![(OP, "logout".into())],
            vec![(OP, format!("logout;rid=\"{other}\""))],
            vec![(OP, format!("logout;rid={other}"))],
            vec![(OP, "logout;rid=7".into())],
            vec![(PATCH, format!("{other}.e30")), (ONLY_IF, "nonsense".into())],
            vec![(PATCH, ".e30".into())],
        ] {
            let said = read(&fields).unwrap();
            assert!(said.directives.is_empty() && said.foreign == 1, "{fields:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_wrong_as_a_whole() {
        for (text, why) in [
            ("login;rid=\"RID\"", BadDirective::Parameter),
            ("login;sub=\"\";rid=\"RID\"", BadDirective::Parameter),
            ("login;sub=alice;rid=\"RID\"", BadDirective::Parameter),
            ("login;sub=\"alice\";carry=cart;rid=\"RID\"", BadDirective::Parameter),
            ("become-admin;rid=\"RID\"", BadDirective::UnknownOp),
            ("\"logout\";rid=\"RID\"", BadDirective::Op),
            ("(logout renew);rid=\"RID\"", BadDirective::Op),
            ("logout;rid=\"RID\",", BadDirective::Op),
            ("logout;rid=\"RID\", renew;rid=\"RID\"", BadDirective::TwoTurns),
            ("login;sub=\"a\";rid=\"RID\", login;sub=\"b\";rid=\"RID\"", BadDirective::TwoTurns),
        ] {
            assert_eq!(op(text), Err(why), "{text}");
        }
        let own = nonce().text();
        for (fields, why) in [
            (vec![(PATCH, own.clone())], BadDirective::Patch),
            (vec![(PATCH, format!("{own}.!"))], BadDirective::Patch),
            (vec![(PATCH, patch("[1]"))], BadDirective::Patch),
            (vec![(PATCH, patch("{\"a\":"))], BadDirective::Patch),
            (vec![(PATCH, patch("{}")), (PATCH, patch("{}"))], BadDirective::TwoPatches),
            (vec![(PATCH, patch("{}")), (ONLY_IF, "-1".into())], BadDirective::OnlyIf),
            (vec![(PATCH, patch("{}")), (ONLY_IF, "1".into()), (ONLY_IF, "2".into())], BadDirective::OnlyIf),
            (vec![(PATCH, patch(&format!("{{\"a\":\"{}\"}}", "x".repeat(16_400))))], BadDirective::PatchTooLarge),
        ] {
            assert_eq!(read(&fields), Err(why), "{fields:?}");
        }
        let deep = format!("{}{}", "{\"a\":".repeat(200), "1".to_owned() + &"}".repeat(200));
        assert_eq!(read(&[(PATCH, patch(&deep))]), Err(BadDirective::Patch), "beyond what is read at all");
    }

    proptest! {
        #[test]
        fn garbage_harms_nobody(op in "[ -~]{0,80}", patch in "[ -~]{0,80}", only_if in "[ -~]{0,10}") {
            let own = nonce().text();
            let _ = read(&[(OP, op.clone()), (PATCH, patch.clone()), (ONLY_IF, only_if)]);
            let _ = read(&[(OP, format!("{op};rid=\"{own}\"")), (PATCH, format!("{own}.{patch}"))]);
        }
    }
}
