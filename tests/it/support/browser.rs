//! Chromium, driven over the WebDriver protocol (W3C), and over that by its own protocol where WebDriver has no word.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{Client, eventually};

/// The Enter key, as WebDriver names keys that have no character.
pub const ENTER: &str = "\u{e007}";
/// The Escape key.
pub const ESCAPE: &str = "\u{e00c}";

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A browser with a profile of its own.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with further arguments.
    pub fn start_with(more: &[&str]) -> Self {
        let port = free_port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let driver = driver.expect("chromedriver is installed: see the README's test command");
        eventually("the driver listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        let profile = tempfile::tempdir().unwrap();
        let mut arguments = vec![
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
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "acceptInsecureCerts": true, "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let mut browser = Browser { driver, port, session: String::new(), _profile: profile };
        let started = browser.ask("POST", "/session", &capabilities);
        browser.session = started["sessionId"].as_str().unwrap_or_else(|| panic!("{started}")).to_owned();
        browser
    }

    fn client(&self) -> Client {
        Client::plain(([127, 0, 0, 1], self.port).into()).header("Content-Type", "application/json")
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let reply = self.client().try_send(method.parse().unwrap(), path, body.into()).unwrap();
        let answer: Value =
            serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", reply.text()));
        answer["value"].clone()
    }

    /// A command of the session.
    fn call(&self, method: &str, command: &str, body: &Value) -> Value {
        self.ask(method, &format!("/session/{}/{command}", self.session), body)
    }

    /// A command of Chromium's own protocol.
    pub fn devtools(&self, command: &str, parameters: Value) -> Value {
        let answer = self.call("POST", "goog/cdp/execute", &json!({ "cmd": command, "params": parameters }));
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer
    }

    pub fn open(&self, url: &str) {
        let opened = self.call("POST", "url", &json!({ "url": url }));
        assert!(opened.is_null(), "{opened}");
    }

    /// Runs a script in the page and gives what it returns.
    pub fn run(&self, script: &str) -> Value {
        self.call("POST", "execute/sync", &json!({ "script": script, "args": [] }))
    }

    pub fn text(&self, id: &str) -> String {
        self.text_of(&format!("#{id}"))
    }

    /// The text of the first element that a selector finds; empty where there is none.
    pub fn text_of(&self, selector: &str) -> String {
        self.run(&format!("return (document.querySelector('{selector}') || {{}}).textContent || ''"))
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    pub fn click(&self, id: &str) {
        self.run(&format!("document.getElementById('{id}').click()"));
    }

    /// Presses keys, one after the other, wherever the focus is.
    pub fn press(&self, keys: &str) {
        let press = |key: char| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }));
        let actions: Vec<Value> = keys.chars().flat_map(press).collect();
        let done = self.call(
            "POST",
            "actions",
            &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] }),
        );
        assert!(done.is_null(), "{done}");
    }

    /// A cookie, also one that no script can read.
    pub fn cookie(&self, name: &str) -> String {
        let cookie = self.call("GET", &format!("cookie/{name}"), &Value::Null);
        cookie["value"].as_str().unwrap_or_else(|| panic!("{cookie}")).to_owned()
    }

    /// What the browser has complained of since it was last asked.
    pub fn complaints(&self) -> String {
        self.call("POST", "se/log", &json!({ "type": "browser" })).to_string()
    }

    /// Shows the page as on a screen of this size, in a colour scheme, to somebody who does not like things that move.
    pub fn shows_as(&self, width: u32, height: u32, scheme: &str) {
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 }),
        );
        let features = json!([
            { "name": "prefers-color-scheme", "value": scheme },
            { "name": "prefers-reduced-motion", "value": "reduce" },
        ]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// Writes a picture of the whole page.
    pub fn picture(&self, path: &Path) {
        let taken = self.devtools("Page.captureScreenshot", json!({}));
        let picture = BASE64.decode(taken["data"].as_str().unwrap().as_bytes()).unwrap();
        assert!(picture.starts_with(b"\x89PNG"), "a picture");
        std::fs::write(path, picture).unwrap();
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
