//! A session that its user carries along: who it is in a signed token, the cart in a plain cookie, and nothing anywhere else.

use data_encoding::BASE64URL_NOPAD;
use http::{HeaderMap, HeaderName, header};
use serde_json::{Value, json};

use super::issuer::{Issuer, LIFETIME};
use super::sessions::{Fields, Keeping, Session, claims, subject};
use crate::clock::Clock;
use crate::headers;
use crate::keys::SystemEntropy;

/// As `carrier` says in the demo's configuration. The proxy takes it out of requests: no server sees a token.
const TOKEN: &str = "token";
const BASKET: &str = "shop_basket";
const ATTRIBUTES: &str = "Path=/; HttpOnly; SameSite=Lax; Secure";

/// What one request carries.
pub struct Carried<'a> {
    issuer: &'a Issuer,
    /// What the proxy says of the token; none where it was not asked to look.
    claims: Option<Value>,
    basket: Session,
}

impl<'a> Carried<'a> {
    pub fn of(issuer: &'a Issuer, headers: &HeaderMap) -> Self {
        Carried { issuer, claims: claims(headers), basket: basket(headers) }
    }

    fn subject(&self) -> Option<&str> {
        self.claims.as_ref().and_then(subject)
    }

    fn token(&self, subject: &str, acr: &str) -> Fields {
        // This process has nobody else who follows the system's clock.
        Clock::anchor();
        let now = Clock::wall(Clock::now()).seconds();
        let token = self.issuer.issue(subject, acr, now, &mut SystemEntropy);
        // The browser forgets it when it no longer counts: else it would send what everybody refuses.
        vec![(header::SET_COOKIE, format!("{TOKEN}={token}; {ATTRIBUTES}; Max-Age={LIFETIME}"))]
    }
}

impl Keeping for Carried<'_> {
    fn place(&self) -> &'static str {
        "by your browser, in a signed token"
    }

    fn meaning(&self) -> &'static str {
        "Who you are is in a signed token, which your browser carries. The proxy checks it and tells any of the servers; \
         when one ends, another goes on. Nothing is stored, so nothing can be lost, and nothing can be taken back either."
    }

    fn of_cart(&self) -> &'static str {
        "No server and no store has your cart: it is in a plain cookie of this browser, beside the token. You could \
         write into it whatever you like, your other devices do not see it, and it goes along with every request. That \
         is the price of stateless."
    }

    fn claims(&self) -> Option<&Value> {
        self.claims.as_ref()
    }

    fn visit(&self) -> (Session, Fields) {
        let mut session = self.basket.clone();
        session.user = self.subject().map(str::to_owned);
        session.visits = session.visits.saturating_add(1);
        let fields = vec![basket_cookie(&session)];
        (session, fields)
    }

    fn add(&self, item: &str) -> Fields {
        let mut basket = self.basket.clone();
        if basket.add(item) { vec![basket_cookie(&basket)] } else { Fields::new() }
    }

    fn log_in(&self, user: &str) -> Fields {
        self.token(user, "pwd")
    }

    fn step_up(&self) -> Option<Fields> {
        self.subject().map(|subject| self.token(subject, "mfa"))
    }

    fn log_out(&self) -> Fields {
        [TOKEN, BASKET].map(|name| (header::SET_COOKIE, format!("{name}=; {ATTRIBUTES}; Max-Age=0"))).into()
    }

    fn revocation(&self) -> Option<String> {
        self.subject().map(|subject| self.issuer.revocation(subject))
    }
}

fn basket_cookie(basket: &Session) -> (HeaderName, String) {
    let written = json!({ "cart": basket.cart, "visits": basket.visits }).to_string();
    (header::SET_COOKIE, format!("{BASKET}={}; {ATTRIBUTES}", BASE64URL_NOPAD.encode(written.as_bytes())))
}

/// What the browser says is in the cart, as far as it makes sense and has room.
fn basket(headers: &HeaderMap) -> Session {
    let written = headers::cookies(headers).find(|(name, _)| *name == BASKET.as_bytes());
    let written = written.and_then(|(_, value)| BASE64URL_NOPAD.decode(value).ok());
    let written: Value = written.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
    let mut basket = Session { visits: written["visits"].as_u64().unwrap_or_default(), ..Session::default() };
    for item in written["cart"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !basket.add(item) {
            break;
        }
    }
    basket
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::session::contract;

    fn issuer() -> Issuer {
        let directory = tempfile::tempdir().unwrap();
        Issuer::create(directory.path()).unwrap();
        Issuer::read(directory.path()).unwrap()
    }

    fn told(claims: &Value) -> HeaderMap {
        let token = format!("e30.{}.", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
        HeaderMap::from_iter([(contract::SESSION, HeaderValue::try_from(token).unwrap())])
    }

    /// The cookie of a Set-Cookie line, as a browser would send it.
    fn cookie(fields: &Fields) -> HeaderValue {
        assert_eq!(fields[0].0, header::SET_COOKIE);
        HeaderValue::try_from(fields[0].1.split(';').next().unwrap()).unwrap()
    }

    fn claims_of(fields: &Fields) -> Value {
        let payload = fields[0].1.split('.').nth(1).unwrap();
        serde_json::from_slice(&BASE64URL_NOPAD.decode(payload.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn a_login_and_a_step_up_give_tokens_that_no_script_reads_and_that_browsers_forget_in_time() {
        let issuer = issuer();
        let nobody = Carried::of(&issuer, &told(&json!({ "st": "none" })));
        assert!(nobody.step_up().is_none() && nobody.revocation().is_none() && nobody.visit().0.user.is_none());
        let login = nobody.log_in("Ada");
        assert!(login[0].1.starts_with("token=") && login[0].1.ends_with("; Secure; Max-Age=900"), "{}", login[0].1);
        assert!(login[0].1.contains("; Path=/; HttpOnly; "));
        let ada = Carried::of(&issuer, &told(&json!({ "st": "auth", "sub": "Ada" })));
        let stepped_up = ada.step_up().unwrap();
        for (fields, acr) in [(&login, "pwd"), (&stepped_up, "mfa")] {
            let claims = claims_of(fields);
            assert_eq!((&claims["sub"], &claims["acr"]), (&json!("Ada"), &json!(acr)));
        }
        assert!(ada.log_out().iter().all(|(_, line)| line.ends_with("; Max-Age=0")));
        assert!(ada.revocation().unwrap().ends_with(" --subject=Ada"));
    }

    #[test]
    fn the_cart_comes_back_in_its_cookie_and_the_user_only_in_what_the_proxy_says() {
        let issuer = issuer();
        let mut headers = told(&json!({ "st": "auth", "sub": "Ada" }));
        for count in 1..=3 {
            let added = Carried::of(&issuer, &headers).add("Teapot");
            headers.insert(header::COOKIE, cookie(&added));
            let (session, fields) = Carried::of(&issuer, &headers).visit();
            assert_eq!(
                (session.user.as_deref(), session.cart.len(), session.visits),
                (Some("Ada"), count, count as u64)
            );
            headers.insert(header::COOKIE, cookie(&fields));
        }
        headers.remove(contract::SESSION);
        headers.append(header::COOKIE, HeaderValue::from_static("token=e30.eyJzdWIiOiJFdmUifQ."));
        let carried = Carried::of(&issuer, &headers);
        assert!(carried.claims().is_none() && carried.visit().0.user.is_none(), "a token that comes here is no word");
        assert_eq!(carried.visit().0.cart.len(), 3);
    }

    #[test]
    fn a_basket_of_a_browsers_own_making_does_no_harm() {
        let issuer = issuer();
        for (written, items) in [
            (json!({ "cart": vec!["Teapot"; 4_000], "visits": u64::MAX }), 180),
            (json!({ "cart": [1, null, "Kettle"], "visits": -1 }), 1),
            (json!({ "cart": "Kettle" }), 0),
            (json!([]), 0),
        ] {
            let line = format!("{BASKET}={}", BASE64URL_NOPAD.encode(written.to_string().as_bytes()));
            let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::try_from(line).unwrap())]);
            let (session, fields) = Carried::of(&issuer, &headers).visit();
            assert!(session.cart.len() >= items && session.cart.len() <= 200, "{}", session.cart.len());
            assert!(fields[0].1.len() < 4_096, "browsers would refuse it");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_empty_basket(value in "[!-:<-~]{0,60}") {
            let line = HeaderValue::try_from(format!("{BASKET}={value}")).unwrap();
            prop_assert!(basket(&HeaderMap::from_iter([(header::COOKIE, line)])).cart.len() <= 20);
        }
    }
}
