//! A real browser at the demo: it logs in, keeps its cart, and talks over a WebSocket.

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
        eventually("the demo answers", || {
            Client::tls(([127, 0, 0, 1], port).into()).try_get("/").is_ok_and(|reply| reply.status == 200)
        });
        demo
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
    let home = format!("https://localhost:{}/", demo.port);
    browser.open(&home);
    browser
        .run("document.querySelector('input[name=user]').value = 'Ada <3'; document.getElementById('login').click()");
    eventually("she is logged in", || browser.text("user") == "Ada <3");
    let server = browser.text("server");
    for number in 1..=3 {
        browser.run("document.getElementById('add-teapot').click()");
        eventually("the cart has it", || {
            browser.run("return document.querySelectorAll('#cart li').length") == json!(number)
        });
    }
    for _ in 0..20 {
        browser.open(&home);
        assert_eq!((browser.text("user"), browser.text("server")), ("Ada <3".to_owned(), server.clone()));
        assert_eq!(browser.run("return document.querySelectorAll('#cart li').length"), json!(3));
    }
    let cookies = browser.run("return document.cookie");
    assert_eq!(cookies, "", "no script can read a cookie of ours or of the shop");
    browser.run("document.getElementById('say').value = 'hello there'; document.querySelector('#ws button').click()");
    eventually("the echo is heard", || browser.text("heard").contains("echo: hello there"));
}
