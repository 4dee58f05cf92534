//! The shop's pages.

use serde_json::Value;

use super::form::link;
use super::issuer::LIFETIME;
use super::sessions::{Keeping, Session};

const HOME: &str = include_str!("page.html");
const SMALL: &str = include_str!("small.html");
/// What a text message or an app would bring elsewhere.
pub const CODE: &str = "123456";
const LOST: &str = "<p id=\"lost\" role=\"alert\">Your session is gone: it was in the memory of the process that \
                    served you before, and nowhere else.</p>";
/// What the page shows of what the proxy has told.
const SHOWN: [&str; 6] = ["st", "sub", "acr", "auth_time", "exp", "abs_exp"];

/// The shop itself, as this server (its name) shows it.
pub fn home(server: &str, keeping: &dyn Keeping, session: &Session) -> String {
    let (server, pid, visits) = (escape(server), std::process::id().to_string(), session.visits.to_string());
    let account = account(session);
    let told = keeping.claims().map(told).unwrap_or_default();
    let cart = format!("{}<p id=\"of-cart\">{}</p>", items(session), keeping.of_cart());
    let values = [
        ("server", server.as_str()),
        ("pid", pid.as_str()),
        ("visits", visits.as_str()),
        ("mode", keeping.place()),
        ("meaning", keeping.meaning()),
        ("lost", if session.lost { LOST } else { "" }),
        ("account", account.as_str()),
        ("told", told.as_str()),
        ("cart", cart.as_str()),
    ];
    fill(HOME, &values)
}

fn account(session: &Session) -> String {
    match &session.user {
        Some(user) => format!(
            "<p>Logged in as <strong id=\"user\">{}</strong>.</p>\
             <form method=\"post\" action=\"/logout\"><button id=\"logout\">Log out</button></form>",
            escape(user)
        ),
        None => login_form(""),
    }
}

fn items(session: &Session) -> String {
    let items = session.cart.iter().map(|item| format!("<li>{}</li>", escape(item))).collect::<String>();
    if items.is_empty() { "<p>The cart is empty.</p>".to_owned() } else { format!("<ul id=\"cart\">{items}</ul>") }
}

/// What the proxy has told, and the page that it lets in only those who have shown more.
fn told(claims: &Value) -> String {
    format!(
        "<section><h2>What this server was told of you</h2>\
         <p>In <code>Steadfast-Session</code>, which the proxy signs:</p>{}</section>\
         <section><h2>Payout</h2><p><a id=\"to-payout\" href=\"/payout\">Have your money paid out</a>: the proxy lets \
         only those in who have shown a second factor in the last ten minutes.</p></section>",
        list(claims)
    )
}

fn list(claims: &Value) -> String {
    let lines = SHOWN.iter().filter(|name| !claims[**name].is_null()).map(|name| {
        let value = claims[*name].as_str().map_or_else(|| claims[*name].to_string(), str::to_owned);
        format!("<li><code>{name}</code>: <b id=\"claim-{name}\">{}</b></li>", escape(&value))
    });
    format!("<ul>{}</ul>", lines.collect::<String>())
}

/// Where one says who one is, and goes back from.
pub fn login(back: &str) -> String {
    small("Log in", &format!("<p>Any name will do.</p>{}", login_form(&way_back(back))))
}

fn login_form(more: &str) -> String {
    format!(
        "<form method=\"post\" action=\"/login\">{more}<label>Your name <input name=\"user\" required maxlength=\"40\">\
         </label> <button id=\"login\">Log in</button></form>"
    )
}

fn way_back(path: &str) -> String {
    format!("<input type=\"hidden\" name=\"return\" value=\"{}\">", escape(path))
}

/// Where one shows more than a name.
pub fn step_up(user: &str, back: &str, was_wrong: bool) -> String {
    let wrong = if was_wrong { "<p id=\"wrong\" role=\"alert\">That is not the code.</p>" } else { "" };
    let body = format!(
        "{wrong}<p>What you want needs more than a login, <strong id=\"user\">{}</strong>. Elsewhere your telephone \
         would tell you; here the code is <code id=\"the-code\">{CODE}</code>.</p>\
         <form method=\"post\" action=\"/step-up\">{}<label>Code <input name=\"code\" required inputmode=\"numeric\" \
         autocomplete=\"one-time-code\" maxlength=\"6\"></label> <button id=\"confirm\">Confirm</button></form>",
        escape(user),
        way_back(back)
    );
    small("Show that it is you", &body)
}

/// Who has not logged in has nothing to step up from.
pub fn login_first(back: &str) -> String {
    let login = link("/login", &link("/step-up", back));
    let body = format!(
        "<p>What you want needs a login and a code. <a id=\"to-login\" href=\"{}\">Log in first</a>.</p>",
        escape(&login)
    );
    small("Log in first", &body)
}

/// The sensitive page. That it is shown at all is the proxy's doing.
pub fn payout(claims: &Value) -> String {
    let body = format!(
        "<p id=\"payout\">Your money is on its way.</p><p>The proxy let this request through because of what it knows \
         of you:</p>{}<p>For ten minutes from <code>auth_time</code> it will; then it asks for the code again. <a \
         href=\"/\">Back to the shop</a>.</p>",
        list(claims)
    );
    small("Payout", &body)
}

/// What remains of a session that nobody stores.
pub fn logged_out(revocation: &str) -> String {
    let body = format!(
        "<p>This browser has forgotten your token and your cart. But a token is not stored anywhere, so it cannot be \
         deleted: <strong>if somebody has copied it, the copy counts until it expires</strong>, at most {} minutes after \
         it was issued. To end all of yours now, wherever they are:</p><pre id=\"revocation\">{}</pre>\
         <p>Log in again and you get a new one, which counts. <a href=\"/\">Back to the shop</a>.</p>",
        LIFETIME / 60,
        escape(revocation)
    );
    small("Logged out, almost", &body)
}

fn small(title: &str, body: &str) -> String {
    fill(SMALL, &[("title", title), ("body", body)])
}

/// Puts values in their places; what a value says is never taken for a place.
pub fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        filled.push_str(before);
        filled.push_str(values.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| *value));
        rest = after;
    }
    filled.push_str(rest);
    filled
}

/// Text, as it may stand in a page.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::demo::sessions::Fields;

    /// A session with everything in it that a page could stumble over.
    struct Odd(Value);

    impl Keeping for Odd {
        fn place(&self) -> &'static str {
            "here"
        }

        fn meaning(&self) -> &'static str {
            "Nothing."
        }

        fn claims(&self) -> Option<&Value> {
            Some(&self.0)
        }

        fn visit(&self) -> (Session, Fields) {
            (Session::default(), Fields::new())
        }

        fn add(&self, _: &str) -> Fields {
            Fields::new()
        }

        fn log_in(&self, _: &str) -> Fields {
            Fields::new()
        }

        fn log_out(&self) -> Fields {
            Fields::new()
        }
    }

    #[test]
    fn what_users_write_is_shown_and_never_obeyed() {
        const NAME: &str = "{{cart}}<script>\"&";
        const SHOWN: &str = "{{cart}}&lt;script&gt;&quot;&amp;";
        let odd = Odd(json!({ "st": "auth", "sub": NAME, "acr": "pwd", "exp": 7, "auth_time": null }));
        let session = Session { user: Some(NAME.to_owned()), cart: vec![NAME.to_owned()], ..Session::default() };
        let page = home(NAME, &odd, &session);
        assert_eq!(page.matches(SHOWN).count(), 4, "server, user, claim and item");
        assert!(page.contains("<b id=\"claim-exp\">7</b>") && !page.contains("claim-auth_time"));
        for page in [page, login(NAME), step_up(NAME, NAME, true), payout(&odd.0), logged_out(NAME)] {
            assert!(page.contains(SHOWN) && !page.contains(NAME), "{page}");
            assert!(page.ends_with("</html>\n"), "{page}");
        }
    }

    #[test]
    fn every_place_of_the_templates_is_known() {
        let odd = Odd(json!({}));
        let session = Session { lost: true, ..Session::default() };
        for page in [home("app-1", &odd, &session), login_first("/payout")] {
            assert!(!page.contains("{{") && !page.contains("}}"), "{page}");
        }
        assert!(home("app-1", &odd, &session).contains("id=\"login\""));
        assert!(login_first("/payout").contains("/login?return=%2Fstep%2Dup%3Freturn%3D%252Fpayout"));
    }
}
