//! The cookie vault: applications whose framework keeps the session in a cookie of the client, and that know nothing of
//! the proxy. They are in `vault_apps/`.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::support::client::Reply;
use crate::support::proxy::BINARY;
use crate::support::{Client, PATIENCE, Proxy, server};

const COOKIE: &str = "__Host-Http-session";

/// A kind of application.
struct Framework {
    /// The cookies that it keeps its session in.
    cookies: &'static [&'static str],
    command: fn() -> Command,
}

static FLASK: Framework = Framework { cookies: &["session"], command: flask };
static EXPRESS: Framework = Framework { cookies: &["session", "session.sig"], command: express };

/// What `tests/run` has installed.
fn installed(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools").join(name);
    assert!(path.exists(), "{} is not there: the README's test command installs it", path.display());
    path
}

fn application(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/vault_apps").join(name)
}

fn flask() -> Command {
    let mut command = Command::new(installed("python/bin/python"));
    command.arg(application("flask_app.py")).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn express() -> Command {
    installed("node/node_modules/cookie-session");
    let mut command = Command::new("node");
    command.arg(application("express_app.mjs")).env("NODE_PATH", installed("node/node_modules"));
    command
}

/// An application: a process of its own, with the secret that all of them sign with.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(mut command: Command) -> Self {
        command.envs([("SECRET", "all of them have it"), ("PORT", "0")]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut server = Server { child: child.expect("the application starts"), port: 0 };
        let stdout = server.child.stdout.take().expect("piped");
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = tell.send(line);
        });
        let line = told.recv_timeout(PATIENCE).expect("it says where it listens");
        server.port = line.trim().parse().unwrap_or_else(|_| panic!("{line:?} is no port"));
        server
    }

    fn pid(&self) -> u64 {
        self.child.id().into()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three servers behind a proxy that keeps their cookies.
struct Shop {
    proxy: Proxy,
    servers: Vec<Server>,
}

impl Shop {
    fn open(framework: &'static Framework) -> Self {
        let starting = [(); 3].map(|()| std::thread::spawn(move || Server::start((framework.command)())));
        let servers: Vec<Server> = starting.into_iter().map(|server| server.join().expect("it has started")).collect();
        let listed = servers.iter().map(|one| server(&format!("p{}", one.pid()), &format!("127.0.0.1:{}", one.port)));
        let proxy = Proxy::start(&format!(
            "[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n[listener.tls]\nself_signed = [\"localhost\"]\n\
             [[route]]\npool = \"shop\"\n[[store]]\nname = \"main\"\n[[pool]]\nname = \"shop\"\nmode = \"shared\"\n\
             balance = \"round-robin\"\n{}[pool.shared]\nstore = \"main\"\nvault = {:?}\n\
             login_when = {{ path = \"/login\", method = \"POST\", status = [302], cookie_changed = \"session\" }}\n",
            listed.collect::<String>(),
            framework.cookies
        ));
        Shop { proxy, servers }
    }

    /// Somebody who has not been here before.
    fn user(&self) -> User {
        // Browsers say so.
        User(self.proxy.tls_client().header("sec-fetch-site", "same-origin"))
    }

    fn kill(&mut self, pid: u64) {
        let before = self.servers.len();
        self.servers.retain(|server| server.pid() != pid);
        assert_eq!(self.servers.len(), before - 1, "one of them is gone");
    }
}

/// A browser, which is never given another cookie than the proxy's.
#[derive(Clone)]
struct User(Client);

impl User {
    #[track_caller]
    fn send(&mut self, method: Method, path: &str, form: &str) -> Reply {
        let mut client = self.0.clone();
        if method == Method::POST {
            client = client.header("content-type", "application/x-www-form-urlencoded");
        }
        let reply = client.try_send(method, path, Bytes::from(form.to_owned()));
        let reply = reply.unwrap_or_else(|error| panic!("{path}: {error}"));
        for line in reply.set_cookies() {
            assert!(line.starts_with(&format!("{COOKIE}=")), "{path}: the browser is given {line}");
        }
        self.0.cookies = client.cookies;
        assert!(self.0.cookies.keys().all(|name| name == COOKIE), "{:?}", self.0.cookies);
        reply
    }

    #[track_caller]
    fn page(&mut self) -> Value {
        json_of(&self.send(Method::GET, "/", ""))
    }

    /// Counts up by one.
    #[track_caller]
    fn add(&mut self) -> Value {
        json_of(&self.send(Method::POST, "/add", ""))
    }

    #[track_caller]
    fn log_in(&mut self, name: &str) {
        let reply = self.send(Method::POST, "/login", &format!("user={name}"));
        assert_eq!((reply.status, reply.header("location").as_str()), (302, "/"), "{}", reply.text());
    }

    #[track_caller]
    fn log_out(&mut self) {
        let reply = self.send(Method::POST, "/logout", "");
        assert_eq!(reply.status, 302, "{}", reply.text());
    }

    /// The Cookie line as a server sees it.
    #[track_caller]
    fn seen(&mut self) -> String {
        json_of(&self.send(Method::GET, "/seen", ""))["cookie"].as_str().unwrap().to_owned()
    }

    fn cookie(&self) -> Option<String> {
        self.0.cookies.get(COOKIE).cloned()
    }
}

#[track_caller]
fn json_of(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", reply.text()))
}

/// Who somebody is, and how far they have counted.
#[track_caller]
fn is_at(page: &Value, user: Option<&str>, count: u32) {
    assert_eq!((&page["user"], &page["count"]), (&json!(user), &json!(count)), "{page}");
}

fn ctl(proxy: &Proxy, arguments: &[&str]) -> String {
    let address = proxy.admin_address().to_string();
    let output = Command::new(BINARY).args(["ctl", "--address", &address]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// How the operator calls those who are logged in.
fn references(proxy: &Proxy) -> BTreeSet<String> {
    let listed = ctl(proxy, &["--json", "sessions", "list", "--realm", "shop"]);
    let listed: Value = serde_json::from_str(&listed).unwrap_or_else(|error| panic!("{error}: {listed}"));
    let sessions = listed["sessions"].as_array().expect("a list").iter();
    sessions.map(|session| session["ref"].as_str().expect("each has one").to_owned()).collect()
}

fn any_server_serves_a_session(framework: &'static Framework) {
    let mut shop = Shop::open(framework);
    let mut user = shop.user();
    is_at(&user.page(), None, 0);
    assert_eq!(user.cookie(), None, "where nothing is kept there is no session");
    is_at(&user.add(), None, 1);
    let anonymous = user.cookie();
    assert!(anonymous.is_some(), "what is kept makes a session");
    user.log_in("");
    assert_eq!(user.cookie(), anonymous, "a login that fails is none");
    let mut before = user.clone();
    user.log_in("ada");
    assert_ne!(user.cookie(), anonymous, "a login makes a new cookie");
    is_at(&before.page(), None, 0);
    is_at(&user.page(), Some("ada"), 1);
    let mut served = BTreeSet::new();
    for count in 2..=9 {
        let added = user.add();
        is_at(&added, Some("ada"), count);
        served.insert(added["pid"].as_u64().unwrap());
    }
    assert!(served.len() >= 2, "several serve the one session: {served:?}");
    let victim = user.page()["pid"].as_u64().unwrap();
    shop.kill(victim);
    for count in 10..=13 {
        is_at(&user.page(), Some("ada"), count - 1);
        let added = user.add();
        is_at(&added, Some("ada"), count);
        assert_ne!(added["pid"], victim);
    }
    let mut copy = user.clone();
    user.log_out();
    is_at(&user.page(), None, 0);
    is_at(&copy.page(), None, 0);
}

#[test]
fn any_server_serves_a_flask_session() {
    any_server_serves_a_session(&FLASK);
}

#[test]
fn any_server_serves_an_express_session() {
    any_server_serves_a_session(&EXPRESS);
}

fn an_operator_ends_a_session(framework: &'static Framework) {
    let shop = Shop::open(framework);
    let [mut ada, mut bob] = [shop.user(), shop.user()];
    ada.add();
    assert_eq!(references(&shop.proxy), BTreeSet::new(), "nobody has logged in");
    ada.log_in("ada");
    let of_ada = references(&shop.proxy);
    assert_eq!(of_ada.len(), 1);
    bob.log_in("bob");
    let both = references(&shop.proxy);
    assert!(both.len() == 2 && both.is_superset(&of_ada), "{both:?}");
    is_at(&ada.page(), Some("ada"), 1);
    let reference = of_ada.first().unwrap();
    assert_eq!(ctl(&shop.proxy, &["sessions", "revoke", reference]), "1 session was ended.\n");
    assert_eq!(ada.seen(), "", "what the framework has signed is gone with it");
    is_at(&ada.page(), None, 0);
    is_at(&bob.page(), Some("bob"), 0);
    assert_eq!(references(&shop.proxy), &both - &of_ada);
    ada.log_in("ada");
    is_at(&ada.page(), Some("ada"), 0);
    assert_eq!(references(&shop.proxy).len(), 2);
}

#[test]
fn an_operator_ends_a_flask_session() {
    an_operator_ends_a_session(&FLASK);
}

#[test]
fn an_operator_ends_an_express_session() {
    an_operator_ends_a_session(&EXPRESS);
}

/// Ways to write the names of cookies so that some server takes them for the framework's.
fn disguises(cookies: &[(&str, &str)]) -> [String; 8] {
    let disguises: [fn(&str) -> String; 8] = [
        str::to_owned,
        str::to_uppercase,
        |name| format!("\t{name}"),
        |name| format!(" {name} "),
        |name| format!("={name}"),
        |name| name.replacen('s', "%73", 1),
        |name| format!("a=b, {name}"),
        |name| format!("a=b {name}"),
    ];
    disguises.map(|disguised| {
        let pairs = cookies.iter().map(|(name, value)| format!("{}={value}", disguised(name)));
        pairs.collect::<Vec<_>>().join("; ")
    })
}

fn a_client_plants_no_session(framework: &'static Framework) {
    let shop = Shop::open(framework);
    let mut ada = shop.user();
    ada.log_in("ada");
    let cookies = ada.seen();
    for name in framework.cookies {
        assert!(cookies.contains(&format!("{name}=")), "the framework has its cookies: {cookies}");
    }
    // Signed as they are, they are believed where no proxy is in front.
    let direct = Client::plain(([127, 0, 0, 1], shop.servers[0].port).into()).header("cookie", &cookies).get("/");
    is_at(&json_of(&direct), Some("ada"), 0);
    let pairs: Vec<(&str, &str)> = cookies.split("; ").filter_map(|pair| pair.split_once('=')).collect();
    for forged in disguises(&pairs) {
        let forge = |user: User| User(user.0.header("cookie", &format!("theme=dark; {forged}")));
        for mut stranger in [forge(shop.user()), forge(User(shop.user().0.http2()))] {
            assert_eq!(stranger.seen(), "theme=dark", "{forged}");
            is_at(&stranger.page(), None, 0);
            stranger.log_in("bob");
            is_at(&stranger.page(), Some("bob"), 0);
            let seen = stranger.seen();
            let is_planted = pairs.iter().any(|(_, value)| seen.contains(value));
            assert!(seen.contains("theme=dark") && !is_planted, "{forged}: {seen}");
        }
    }
    is_at(&ada.page(), Some("ada"), 0);
}

#[test]
fn a_client_plants_no_flask_session() {
    a_client_plants_no_session(&FLASK);
}

#[test]
fn a_client_plants_no_express_session() {
    a_client_plants_no_session(&EXPRESS);
}
