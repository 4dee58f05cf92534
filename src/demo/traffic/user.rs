//! One user of one shop, as a browser is: what it asks for, and what it keeps of the answers.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::Bytes;
use cookie::Cookie;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use serde_json::Value;

use super::schedule::Act;

/// Somebody with cookies of their own. Several requests of one may be under way at once.
pub struct User {
    name: String,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    jar: Jar,
    standing: Standing,
    /// How often this user has logged in: who asked before a login hears nothing of it.
    logins: u32,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Standing {
    #[default]
    Out,
    /// The login is under way.
    Asking,
    In,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    LogIn,
    Look,
    Add,
    LogOut,
}

/// A request on its way, and what its answer will be about.
pub struct Errand {
    deed: Deed,
    login: u32,
}

impl User {
    pub fn new(name: String) -> Self {
        User { name, state: RefCell::default() }
    }

    /// The request for this turn. Who is not logged in does that first, and nothing else until that is answered: there is
    /// no page yet on which to go on.
    pub fn begin(&self, act: Act, host: &HeaderValue) -> Option<(Errand, Request<Full<Bytes>>)> {
        let mut state = self.state.borrow_mut();
        let deed = match (state.standing, act) {
            (Standing::Out, Act::Leave) | (Standing::Asking, _) => return None,
            (Standing::Out, _) => Deed::LogIn,
            (Standing::In, Act::Look) => Deed::Look,
            (Standing::In, Act::Add) => Deed::Add,
            (Standing::In, Act::Leave) => Deed::LogOut,
        };
        if deed == Deed::LogIn {
            state.standing = Standing::Asking;
        }
        let request = self.request(deed, host, state.jar.line());
        Some((Errand { deed, login: state.logins }, request))
    }

    fn request(&self, deed: Deed, host: &HeaderValue, cookies: Option<HeaderValue>) -> Request<Full<Bytes>> {
        let (method, path, form) = match deed {
            Deed::LogIn => (Method::POST, "/login", format!("user={}", self.name)),
            Deed::Look => (Method::GET, "/api/whoami", String::new()),
            Deed::Add => (Method::POST, "/cart", "item=Teapot".to_owned()),
            Deed::LogOut => (Method::POST, "/logout", String::new()),
        };
        let mut request = Request::new(Full::from(form));
        let headers = request.headers_mut();
        headers.insert(header::HOST, host.clone());
        headers.extend(cookies.map(|cookies| (header::COOKIE, cookies)));
        if method == Method::POST {
            headers.insert(header::CONTENT_TYPE, FORM);
            // As browsers say it of a page's own forms.
            headers.insert(FETCH_SITE, HeaderValue::from_static("same-origin"));
        }
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_static(path);
        request
    }

    /// Takes the answer in; none came where it took too long.
    pub fn end(&self, errand: &Errand, answer: Option<&Response<Bytes>>) {
        let mut state = self.state.borrow_mut();
        if let Some(answer) = answer {
            state.jar.keep(answer.headers());
        }
        match errand.deed {
            Deed::LogIn if answer.is_some_and(|answer| answer.status() == StatusCode::SEE_OTHER) => {
                state.standing = Standing::In;
                state.logins += 1;
            }
            Deed::LogIn | Deed::LogOut => state.standing = Standing::Out,
            Deed::Look | Deed::Add => {
                let is_news = errand.login == state.logins && state.standing == Standing::In;
                if is_news && answer.is_some_and(is_nobodys) {
                    state.standing = Standing::Out;
                }
            }
        }
    }
}

const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether an answer says that its user is not logged in.
fn is_nobodys(answer: &Response<Bytes>) -> bool {
    match answer.status() {
        StatusCode::UNAUTHORIZED => true,
        StatusCode::SEE_OTHER => {
            answer.headers().get(header::LOCATION).is_some_and(|place| place.as_bytes().starts_with(b"/login"))
        }
        StatusCode::OK => {
            let said: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
            said.get("user").is_some_and(Value::is_null)
        }
        _ => false,
    }
}

/// Cookies by their names: all of one host, and all for every path.
#[derive(Default)]
struct Jar(BTreeMap<String, String>);

impl Jar {
    fn keep(&mut self, headers: &HeaderMap) {
        let lines = headers.get_all(header::SET_COOKIE).iter().filter_map(|line| line.to_str().ok());
        for cookie in lines.filter_map(|line| Cookie::parse(line).ok()) {
            if cookie.max_age().is_some_and(|age| age.is_zero()) {
                self.0.remove(cookie.name());
            } else {
                self.0.insert(cookie.name().to_owned(), cookie.value().to_owned());
            }
        }
    }

    fn line(&self) -> Option<HeaderValue> {
        let pairs = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
        HeaderValue::try_from(pairs.join("; ")).ok().filter(|line| !line.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static HOST: HeaderValue = HeaderValue::from_static("sticky.localhost:8443");

    fn answer(status: u16, fields: &[(HeaderName, &'static str)], body: &'static str) -> Response<Bytes> {
        let mut answer = Response::new(Bytes::from_static(body.as_bytes()));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in fields.iter().cloned() {
            answer.headers_mut().append(name, HeaderValue::from_static(value));
        }
        answer
    }

    /// What the user asks for in this turn.
    fn asks(user: &User, act: Act) -> Option<(Errand, String)> {
        let (errand, request) = user.begin(act, &HOST)?;
        assert_eq!(request.headers()[header::HOST], HOST);
        Some((errand, format!("{} {}", request.method(), request.uri())))
    }

    /// The request of a turn, answered at once.
    fn takes_turn(user: &User, act: Act, answered: Option<&Response<Bytes>>) -> String {
        let (errand, asked) = asks(user, act).unwrap();
        user.end(&errand, answered);
        asked
    }

    fn is_in(user: &User) -> bool {
        user.state.borrow().standing == Standing::In
    }

    #[test]
    fn a_jar_keeps_what_is_set_and_forgets_what_is_deleted() {
        let mut jar = Jar::default();
        assert!(jar.line().is_none());
        let set = |lines: &[&'static str]| {
            let lines = lines.iter().copied();
            lines.map(|line| (header::SET_COOKIE, HeaderValue::from_static(line))).collect::<HeaderMap>()
        };
        jar.keep(&set(&["pin=abc; Path=/; Secure", "session=1; HttpOnly", "broken", "gone=x; Max-Age=0"]));
        assert_eq!(jar.line().unwrap(), "pin=abc; session=1");
        jar.keep(&set(&["session=2=; Max-Age=900", "pin=; Path=/; Max-Age=0"]));
        assert_eq!(jar.line().unwrap(), "session=2=");
        jar.keep(&set(&["session=; max-age=-1"]));
        assert!(jar.line().is_none());
    }

    #[test]
    fn a_user_logs_in_first_and_logs_out_last() {
        let user = User::new("shopper-1".to_owned());
        let see_other = answer(303, &[(header::LOCATION, "/"), (header::SET_COOKIE, "session=1; Path=/")], "");
        let (login, asked) = asks(&user, Act::Look).unwrap();
        assert_eq!(asked, "POST /login");
        assert!(asks(&user, Act::Look).is_none() && asks(&user, Act::Leave).is_none(), "it is not answered yet");
        user.end(&login, Some(&see_other));
        let hers = answer(200, &[], "{\"user\":\"shopper-1\"}");
        assert_eq!(takes_turn(&user, Act::Look, Some(&hers)), "GET /api/whoami");
        assert_eq!(takes_turn(&user, Act::Add, Some(&see_other)), "POST /cart");
        let (_, request) = user.begin(Act::Look, &HOST).unwrap();
        assert_eq!(request.headers()[header::COOKIE], "session=1");
        assert_eq!(takes_turn(&user, Act::Leave, Some(&see_other)), "POST /logout");
        assert!(!is_in(&user) && asks(&user, Act::Leave).is_none());
    }

    #[test]
    fn who_hears_that_the_session_is_gone_logs_in_again() {
        let see_other = answer(303, &[(header::LOCATION, "/")], "");
        for (gone, is_gone) in [
            (answer(200, &[], "{\"user\":null,\"lost\":true}"), true),
            (answer(401, &[], ""), true),
            (answer(303, &[(header::LOCATION, "/login?return=%2F")], ""), true),
            (answer(303, &[(header::LOCATION, "/")], ""), false),
            (answer(200, &[], "{\"user\":\"robot-7\"}"), false),
            (answer(200, &[], "<!doctype html>"), false),
            (answer(502, &[], "{\"user\":null}"), false),
        ] {
            let user = User::new("robot-7".to_owned());
            takes_turn(&user, Act::Look, Some(&see_other));
            takes_turn(&user, Act::Look, Some(&gone));
            assert_eq!(is_in(&user), !is_gone, "{gone:?}");
            let next = if is_gone { "POST /login" } else { "GET /api/whoami" };
            assert_eq!(takes_turn(&user, Act::Look, None), next, "{gone:?}");
        }
    }

    #[test]
    fn what_was_asked_before_a_login_says_nothing_of_it() {
        let user = User::new("robot-7".to_owned());
        let see_other = answer(303, &[], "");
        let nobodys = answer(200, &[], "{\"user\":null}");
        takes_turn(&user, Act::Look, Some(&see_other));
        let [(first, _), (second, _)] = [Act::Look, Act::Look].map(|act| asks(&user, act).unwrap());
        user.end(&first, Some(&nobodys));
        takes_turn(&user, Act::Look, Some(&see_other));
        user.end(&second, Some(&nobodys));
        assert!(is_in(&user));
    }

    #[test]
    fn a_login_that_fails_or_is_never_answered_is_tried_again() {
        for failed in [Some(answer(503, &[], "")), None] {
            let user = User::new("shopper-1".to_owned());
            assert_eq!(takes_turn(&user, Act::Look, failed.as_ref()), "POST /login");
            assert_eq!(takes_turn(&user, Act::Look, failed.as_ref()), "POST /login");
        }
    }
}
