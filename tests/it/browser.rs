//! A real browser at the demo: it logs in, keeps its cart, talks over a WebSocket, and its server is killed.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::proxy::{BINARY, signal};
use crate::support::{Client, eventually};

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The demo as a user starts it.
struct Demo {
    child: Child,
    port: u16,
}

impl Demo {
    fn start() -> Self {
        let port = free_port();
        let mut child = Command::new(BINARY)
            .args(["demo", "--port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut guide = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("Ctrl-C ends it") {
            line.clear();
            assert!(guide.read_line(&mut line).unwrap() > 0, "the guide is printed");
        }
        std::thread::spawn(move || std::io::copy(&mut guide, &mut std::io::sink()));
        let demo = Demo { child, port };
        for host in ["localhost", "sticky.localhost", "shared.localhost"] {
            let mut client = Client::tls(([127, 0, 0, 1], port).into()).server_name(host);
            eventually("the demo answers", || client.try_get("/").is_ok_and(|reply| reply.status == 200));
        }
        demo
    }

    fn index(&self) -> String {
        format!("https://localhost:{}/", self.port)
    }

    fn shop(&self, pool: &str) -> String {
        format!("https://{pool}.localhost:{}/", self.port)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        signal(self.child.id(), "TERM");
        let _ = self.child.wait();
    }
}

/// Chromium, driven over the WebDriver protocol (W3C).
struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn start() -> Self {
        let port = free_port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let driver = driver.expect("chromedriver is installed: see the README's test command");
        eventually("the driver listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        let profile = tempfile::tempdir().unwrap();
        let arguments = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-quic".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "acceptInsecureCerts": true, "goog:chromeOptions": { "args": arguments },
        } } });
        let mut browser = Browser { driver, port, session: String::new(), _profile: profile };
        let started = browser.call("POST", "/session", &capabilities);
        browser.session = started["sessionId"].as_str().unwrap_or_else(|| panic!("{started}")).to_owned();
        browser
    }

    fn client(&self) -> Client {
        Client::plain(([127, 0, 0, 1], self.port).into()).header("Content-Type", "application/json")
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let reply = self.client().try_send(method.parse().unwrap(), path, body.into()).unwrap();
        let answer: Value =
            serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", reply.text()));
        answer["value"].clone()
    }

    fn open(&self, url: &str) {
        let opened = self.call("POST", &format!("/session/{}/url", self.session), &json!({ "url": url }));
        assert!(opened.is_null(), "{opened}");
    }

    /// Runs a script in the page and gives what it returns.
    fn run(&self, script: &str) -> Value {
        self.call("POST", &format!("/session/{}/execute/sync", self.session), &json!({ "script": script, "args": [] }))
    }

    fn text(&self, id: &str) -> String {
        self.run(&format!("return (document.getElementById('{id}') || {{}}).textContent || ''"))
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    fn click(&self, id: &str) {
        self.run(&format!("document.getElementById('{id}').click()"));
    }

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

    /// Ends the process that served the page, as an accident would.
    fn kill_its_server(&self) -> String {
        let pid = self.text("pid");
        signal(pid.parse().unwrap(), "KILL");
        pid
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends its chromium only when told so; that must hold for a failed test too.
        if !self.session.is_empty() {
            let _ = self.client().try_send(http::Method::DELETE, &format!("/session/{}", self.session), "".into());
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

#[test]
fn a_user_logs_in_keeps_the_cart_over_twenty_pages_and_hears_the_echo() {
    let demo = Demo::start();
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
    let demo = Demo::start();
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
