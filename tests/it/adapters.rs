//! The adapters of `deploy/adapters`: their own tests, and their example shops behind the proxy.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Client, Proxy, eventually, server};

fn adapter(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/adapters").join(name)
}

/// What `tests/run` has installed.
fn installed(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools").join(name);
    assert!(path.exists(), "{} is not there: the README's test command installs it", path.display());
    path
}

fn node() -> Command {
    let mut command = Command::new("node");
    command.current_dir(adapter("node")).env("NODE_PATH", installed("node/node_modules"));
    command
}

fn python() -> Command {
    let mut command = Command::new(installed("python/bin/python"));
    command.current_dir(adapter("python")).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

#[track_caller]
fn passes(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(!text.contains("skipped=") && !text.contains("# skipped 1"), "everything is there to be tested: {text}");
}

#[test]
fn the_adapters_pass_their_own_tests() {
    passes(node().arg("--test"));
    passes(python().args(["-m", "unittest"]));
}

/// An example shop: a process of its own.
struct Shop {
    child: Child,
    port: u16,
}

impl Shop {
    fn start(mut command: Command, name: &str, port: u16, proxy: &Proxy) -> Self {
        let keys = format!("http://{}/.well-known/jwks.json", proxy.admin_address());
        command.envs([("PORT", port.to_string()), ("NAME", name.into()), ("AUDIENCE", "shop".into()), ("JWKS", keys)]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let shop = Shop { child: child.expect("the example starts"), port };
        eventually("the shop is open", || {
            Client::plain(([127, 0, 0, 1], port).into()).try_get("/healthz").is_ok_and(|reply| reply.status == 200)
        });
        shop
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn whoami(client: &mut Client) -> Value {
    let reply = client.get("/api/whoami");
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", reply.text()))
}

fn post(client: &mut Client, path: &str, form: &str) {
    let mut with_form = client.clone().header("content-type", "application/x-www-form-urlencoded");
    let reply = with_form.post(path, form.to_owned());
    assert_eq!(reply.status, 303, "{path}: {}", reply.text());
    client.cookies = with_form.cookies;
}

/// A user's way through a shop of two servers, one of which is killed.
fn goes_shopping(command: impl Fn() -> Command) {
    let ports = [free_port(), free_port()];
    let servers = ports.map(|port| server(&format!("p{port}"), &format!("127.0.0.1:{port}"))).concat();
    let proxy = Proxy::start(&format!(
        "[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n[listener.tls]\nself_signed = [\"localhost\"]\n\
         [[route]]\npool = \"shop\"\n[[store]]\nname = \"main\"\n[[pool]]\nname = \"shop\"\nmode = \"shared\"\n\
         balance = \"round-robin\"\n{servers}[pool.shared]\nstore = \"main\"\n"
    ));
    let mut shops = ports.map(|port| Some(Shop::start(command(), &format!("p{port}"), port, &proxy)));
    let mut user = proxy.tls_client();
    let visits: Vec<Value> = (0..4).map(|_| whoami(&mut user)).collect();
    let served: std::collections::BTreeSet<&str> = visits.iter().filter_map(|visit| visit["server"].as_str()).collect();
    assert_eq!((served.len(), &visits[3]["visits"]), (2, &json!(4)), "both serve the one session: {visits:?}");
    post(&mut user, "/cart", "item=Teapot");
    let mut before = user.clone();
    post(&mut user, "/login", "user=ada");
    post(&mut user, "/cart", "item=Kettle");
    let logged_in = whoami(&mut user);
    assert_eq!((&logged_in["user"], &logged_in["cart"]), (&json!("ada"), &json!(["Teapot", "Kettle"])));
    assert_ne!(user.cookies, before.cookies, "a login makes a new cookie");
    assert_eq!(before.get("/api/whoami").status, 409, "and the old one writes nothing any more");
    let victim = logged_in["server"].as_str().unwrap().to_owned();
    shops.iter_mut().for_each(|shop| drop(shop.take_if(|shop| format!("p{}", shop.port) == victim)));
    let after = whoami(&mut user);
    assert_ne!(after["server"], victim.as_str());
    assert_eq!((&after["user"], &after["cart"]), (&json!("ada"), &json!(["Teapot", "Kettle"])));
    post(&mut user, "/logout", "");
    assert_eq!(whoami(&mut proxy.tls_client())["user"], Value::Null);
    let mut over = user.clone();
    assert!(!over.get("/api/whoami").text().contains("ada"));
    let direct =
        Client::plain(([127, 0, 0, 1], shops.iter().flatten().next().unwrap().port).into()).try_get("/api/whoami");
    assert_eq!(direct.unwrap().status, 401, "who comes past the proxy is not let in");
}

#[test]
fn an_express_shop_survives_its_server() {
    goes_shopping(|| {
        let mut command = node();
        command.arg("example.mjs");
        command
    });
}

#[test]
fn a_flask_shop_survives_its_server() {
    goes_shopping(|| {
        let mut command = python();
        command.arg("example_flask.py");
        command
    });
}

#[test]
fn a_django_shop_survives_its_server() {
    goes_shopping(|| {
        let mut command = python();
        command.arg("example_django.py");
        command
    });
}
