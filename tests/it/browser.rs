//! A real browser at the demo: it logs in, keeps its cart, talks over a WebSocket, and its server is killed; it shows more
//! where a page wants more, and another site tries to speak in its name.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::browser::Browser;
use crate::support::demo::Demo;
use crate::support::proxy::{BINARY, signal};
use crate::support::{Proxy, eventually};

impl Demo {
    /// How many requests were refused as another site's, for this reason.
    fn refused(&self, reason: &str) -> f64 {
        self.metric("steadfast_protect_total", &["rule=\"csrf\"", &format!("reason=\"{reason}\"")])
    }
}

/// What a user of the shop does.
impl Browser {
    fn log_in(&self, user: &str) {
        self.run(&format!("document.querySelector('input[name=user]').value = '{user}'"));
        self.click("login");
        eventually("the user is logged in", || self.text("user") == user);
    }

    /// Things in the cart.
    fn items(&self) -> Value {
        self.run("return document.querySelectorAll('#cart li').length")
    }

    fn add_teapots(&self, count: usize) {
        for number in 1..=count {
            self.click("add-teapot");
            eventually("the cart has it", || self.items() == json!(number));
        }
    }

    /// Opens a page that asks for a code, gives a wrong one and the right one, and sees what is behind it.
    fn has_it_paid_out(&self) {
        assert_eq!(self.run("return location.pathname"), "/step-up");
        self.run("document.querySelector('input[name=code]').value = '654321'");
        self.click("confirm");
        eventually("a wrong code is noticed", || !self.text("wrong").is_empty());
        self.run("document.querySelector('input[name=code]').value = document.getElementById('the-code').textContent");
        self.click("confirm");
        eventually("the page is shown", || self.text("payout") == "Your money is on its way.");
        assert_eq!(self.run("return location.pathname"), "/payout");
        assert_eq!(self.text("claim-acr"), "mfa");
    }

    /// Opens a WebSocket from the page; how that ended.
    fn opens_socket(&self, url: &str) -> String {
        self.run(&format!(
            "window.said = ''; const socket = new WebSocket('{url}'); \
             socket.onopen = () => said += 'open'; socket.onclose = () => said += 'closed'"
        ));
        let said = || self.run("return window.said").as_str().unwrap_or_default().to_owned();
        eventually("the handshake is over", || !said().is_empty());
        said()
    }

    /// Ends the process that served the page, as an accident would.
    fn kill_its_server(&self) -> String {
        let pid = self.text("pid");
        signal(pid.parse().unwrap(), "KILL");
        pid
    }
}

#[test]
fn a_user_logs_in_keeps_the_cart_over_twenty_pages_and_hears_the_echo() {
    let demo = Demo::start(0);
    let browser = Browser::start();
    let home = demo.shop("sticky");
    browser.open(&home);
    browser.log_in("Ada <3");
    let server = browser.text("server");
    browser.add_teapots(3);
    for _ in 0..20 {
        browser.open(&home);
        assert_eq!((browser.text("user"), browser.text("server")), ("Ada <3".to_owned(), server.clone()));
        assert_eq!(browser.items(), json!(3));
    }
    let cookies = browser.run("return document.cookie");
    assert_eq!(cookies, "", "no script can read a cookie of ours or of the shop");
    browser.run("document.getElementById('say').value = 'hello there'; document.querySelector('#ws button').click()");
    eventually("the echo is heard", || browser.text("heard").contains("echo: hello there"));
}

#[test]
fn a_shared_session_survives_kill_9_of_its_server_and_a_sticky_one_does_not() {
    let demo = Demo::start(0);
    let browser = Browser::start();
    let (shared, sticky) = (demo.shop("shared"), demo.shop("sticky"));
    browser.open(&demo.index());
    browser.click("shared");
    eventually("the shop opens", || browser.text("mode") == "by the proxy, in its store");
    browser.log_in("Zoë <3");
    browser.add_teapots(2);
    let visits: u64 = browser.text("visits").parse().unwrap();
    let killed = browser.kill_its_server();
    eventually("another server serves her", || {
        browser.open(&shared);
        let pid = browser.text("pid");
        !pid.is_empty() && pid != killed
    });
    assert!(browser.text("visits").parse::<u64>().unwrap() > visits, "her visits go on counting");
    for _ in 0..6 {
        assert_eq!((browser.text("user"), browser.items()), ("Zoë <3".to_owned(), json!(2)));
        assert_eq!(browser.text("lost"), "");
        assert_ne!(browser.text("pid"), killed);
        browser.open(&shared);
    }
    assert_eq!(browser.run("return document.cookie"), "");

    browser.open(&demo.index());
    browser.click("sticky");
    eventually("the shop opens", || browser.text("mode") == "in this server's memory");
    assert_eq!(browser.text("user"), "", "the shops share no session");
    browser.log_in("Ada");
    browser.add_teapots(1);
    let killed = browser.kill_its_server();
    eventually("the page says that the session is gone", || {
        browser.open(&sticky);
        browser.text("lost").contains("Your session is gone")
    });
    assert_ne!(browser.text("pid"), killed);
    assert_eq!((browser.text("user"), browser.items()), (String::new(), json!(0)));
    assert_eq!(browser.run("return document.cookie"), "");
    browser.open(&sticky);
    assert_eq!(browser.text("lost"), "", "it is said once");
}

#[test]
fn a_token_goes_along_to_any_server_and_a_copy_counts_until_it_is_revoked() {
    let demo = Demo::start(0);
    let browser = Browser::start();
    let shop = demo.shop("stateless");
    browser.open(&demo.index());
    browser.click("stateless");
    eventually("the shop opens", || browser.text("mode") == "by your browser, in a signed token");
    assert_eq!(browser.text("claim-st"), "none");
    browser.log_in("Ada");
    for (claim, value) in [("st", "auth"), ("sub", "Ada"), ("acr", "pwd")] {
        assert_eq!(browser.text(&format!("claim-{claim}")), value, "{claim}");
    }
    browser.add_teapots(2);
    let killed = browser.kill_its_server();
    eventually("another server serves her", || {
        browser.open(&shop);
        let pid = browser.text("pid");
        !pid.is_empty() && pid != killed
    });
    for _ in 0..6 {
        assert_eq!((browser.text("user"), browser.items()), ("Ada".to_owned(), json!(2)));
        assert_ne!(browser.text("pid"), killed);
        browser.open(&shop);
    }
    assert_eq!(browser.run("return document.cookie"), "", "no script can read the token");
    browser.click("to-payout");
    eventually("the code is asked for", || !browser.text("the-code").is_empty());
    browser.has_it_paid_out();

    let mut thief = demo.client("stateless.localhost");
    thief.cookies.insert("token".to_owned(), browser.cookie("token"));
    browser.open(&shop);
    browser.click("logout");
    eventually("she is told what is left", || !browser.text("revocation").is_empty());
    let revocation = browser.text("revocation");
    browser.open(&shop);
    assert_eq!((browser.text("user"), browser.items()), (String::new(), json!(0)));
    assert!(thief.get("/api/whoami").text().contains("\"user\":\"Ada\""), "the copy counts");

    let revoked = Command::new(BINARY).args(revocation.split_whitespace().skip(1)).output().unwrap();
    assert!(revoked.status.success(), "{revocation}: {}", String::from_utf8_lossy(&revoked.stderr));
    eventually("the copy counts no more", || thief.get("/api/whoami").status == 401);
    // What is issued in the very second of the revocation may be taken for older.
    eventually("a new login counts, whatever token came with it", || {
        assert_eq!(thief.post("/login", "user=Ada").status, 303);
        thief.get("/api/whoami").text().contains("\"user\":\"Ada\"")
    });
}

#[test]
fn who_wants_more_has_to_show_more_and_keeps_what_there_was() {
    let demo = Demo::start(0);
    let browser = Browser::start();
    for pool in ["shared", "stateless"] {
        let shop = demo.shop(pool);
        browser.open(&shop);
        browser.add_teapots(1);
        browser.open(&format!("{shop}payout"));
        assert_eq!(browser.text("title"), "Log in first");
        browser.click("to-login");
        eventually("the login opens", || browser.text("title") == "Log in");
        // From the login the way leads back to the code, and from there to where she wanted to go.
        browser.log_in("Zoë <3");
        browser.has_it_paid_out();
        browser.open(&format!("{shop}payout"));
        assert_eq!(browser.run("return location.pathname"), "/payout", "once is enough for a while");
        browser.open(&shop);
        assert_eq!((browser.text("user"), browser.items()), ("Zoë <3".to_owned(), json!(1)), "{pool}");
        assert_eq!(browser.run("return document.cookie"), "");
    }
    // Where the proxy knows nobody, nobody is asked for more: there the application is on its own.
    assert_eq!(demo.client("sticky.localhost").get("/payout").status, 404);
}

#[test]
fn what_another_site_sends_is_refused_and_what_the_shop_sends_itself_is_not() {
    let demo = Demo::start(0);
    let browser = Browser::start();
    let shop = demo.shop("shared");
    let socket = format!("{}ws", shop.replacen("https", "wss", 1));
    let site = another_site(&format!("{shop}cart"));
    let elsewhere = format!("http://{}/", site.address("main"));
    browser.open(&shop);
    browser.log_in("Ada");
    browser.add_teapots(1);
    assert_eq!(browser.opens_socket(&socket), "open");

    browser.open(&elsewhere);
    assert_eq!(browser.opens_socket(&socket), "closed");
    let complaints = browser.complaints();
    assert!(complaints.contains("Unexpected response code: 403"), "{complaints}");
    browser.click("send");
    eventually("the form has been answered", || browser.run("return location.href") == format!("{shop}cart").as_str());
    let status = browser.run("return performance.getEntriesByType('navigation')[0].responseStatus");
    assert_eq!(status, 403);
    assert!(demo.refused("cross_site") >= 1.0 && demo.refused("origin_mismatch") >= 1.0);

    browser.open(&shop);
    assert_eq!((browser.text("user"), browser.items()), ("Ada".to_owned(), json!(1)), "nothing was done in her name");
    browser.click("add-teapot");
    eventually("the shop's own form goes through", || browser.items() == json!(2));
    assert_eq!(browser.opens_socket(&socket), "open");
}

/// Another site, with a form that is sent to this place.
fn another_site(target: &str) -> Proxy {
    let page = format!(
        "<!doctype html><title>elsewhere</title><form method=\"post\" action=\"{target}\">\
         <input name=\"item\" value=\"Teapot\"><button id=\"send\">You have won</button></form>"
    );
    Proxy::start(&format!(
        "[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n\
         [[route]]\nrespond = {{ status = 200, body = '{page}' }}\n"
    ))
}
