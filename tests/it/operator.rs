//! The operator's hands: the admin API, and `ctl` over it.

use std::process::Command;

use http::Method;
use serde_json::Value;

use crate::support::proxy::BINARY;
use crate::support::{Client, Origin, Proxy, eventually, plain};

fn ctl(proxy: &Proxy, arguments: &[&str]) -> (i32, String) {
    let path = proxy.path().join("steadfast.toml");
    let address = proxy.admin_address().to_string();
    let output = Command::new(BINARY).args(["ctl", "--address", &address]).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(path.exists());
    (output.status.code().unwrap(), text)
}

#[test]
fn a_server_is_drained_put_into_maint_and_made_ready_again() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let configuration = plain(&[&a, &b], "");
    let proxy = Proxy::start(&configuration);
    let mut of_a = proxy.client();
    while of_a.get("/").origin() != "a" {
        of_a = proxy.client();
    }
    let (status, text) = ctl(&proxy, &["drain", "shop/a"]);
    assert_eq!((status, text.contains("a: drain")), (0, true), "{text}");
    assert!((0..20).all(|_| proxy.client().get("/").origin() == "b"), "no newcomers");
    assert_eq!(of_a.clone().get("/").origin(), "a", "its sessions stay");
    assert!(proxy.reload(&configuration));
    assert!((0..10).all(|_| proxy.client().get("/").origin() == "b"), "a wish survives a reload");
    assert_eq!(proxy.metric("steadfast_server_state", &["server=\"a\"", "state=\"drain\""]), 1.0);
    ctl(&proxy, &["drain", "shop/a", "--deadline", "1ms"]);
    eventually("the deadline moves the rest", || of_a.clone().get("/").verdict() == "moved; reason=draining; server=b");
    ctl(&proxy, &["maint", "shop/a"]);
    assert_eq!(of_a.clone().get("/").verdict(), "moved; reason=maint; server=b");
    ctl(&proxy, &["ready", "shop/a"]);
    assert_eq!(of_a.get("/").verdict(), "kept; server=a");
}

#[test]
fn a_weight_counts_at_once_and_until_the_files_changes() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let configuration = plain(&[&a, &b], "");
    let proxy = Proxy::start(&configuration);
    assert_eq!(ctl(&proxy, &["weight", "shop/a", "0"]).0, 0);
    assert!((0..20).all(|_| proxy.client().get("/").origin() == "b"));
    assert!(proxy.reload(&configuration));
    assert!((0..10).all(|_| proxy.client().get("/").origin() == "b"));
    let changed = configuration.replacen("[[pool.server]]\n", "[[pool.server]]\nweight = 2\n", 1);
    assert!(proxy.reload(&changed));
    eventually("the file's new weight counts", || proxy.client().get("/").origin() == "a");
}

#[test]
fn a_server_says_itself_how_it_feels() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a, &b], "[pool.health]\npath = \"/healthz\"\ninterval = \"50ms\"\n"));
    a.feel("drain");
    eventually("a drains", || proxy.metric("steadfast_server_state", &["server=\"a\"", "state=\"drain\""]) == 1.0);
    assert!((0..20).all(|_| proxy.client().get("/").origin() == "b"));
    a.feel("ready; weight=0");
    eventually("a wants nothing", || {
        let (_, text) = ctl(&proxy, &["--json", "pools"]);
        let pools: Value = serde_json::from_str(&text).unwrap();
        pools[0]["servers"][0]["weight"] == 0
    });
    a.feel("");
    eventually("a is ready", || proxy.client().get("/").origin() == "a");
}

#[test]
fn pools_are_shown_to_people_and_to_programs() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a, &b], ""));
    let (_, status) = ctl(&proxy, &["status"]);
    assert_eq!(status, "shop: sticky, p2c, 2 of 2 servers take newcomers, 0 in flight\n");
    let (_, table) = ctl(&proxy, &["pools"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines.len() == 3 && lines[0].starts_with("pool  server  address") && lines[1].contains(&a.address()),
        "{table}"
    );
    let (_, json) = ctl(&proxy, &["--json", "pools"]);
    let pools: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&pools[0]["name"], &pools[0]["servers"][1]["state"]), (&"shop".into(), &"up".into()));
}

#[test]
fn explain_says_where_a_session_belongs_and_what_would_happen() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a, &b], ""));
    let mut client = proxy.client();
    let home = client.get("/").origin();
    let other = if home == "a" { "b" } else { "a" };
    let (name, value) = client.cookies.pop_first().unwrap();
    let explain = |cookie: &str| ctl(&proxy, &["explain", cookie]).1;
    assert!(explain(&value).contains(&format!("server {home}")), "{}", explain(&value));
    assert!(explain(&format!("{name}={value}")).contains("now: kept"));
    ctl(&proxy, &["maint", &format!("shop/{home}")]);
    assert!(explain(&value).contains(&format!("now: moved(maint) to {other}")), "{}", explain(&value));
    assert!(explain("forged").contains("No valid pin"));
}

#[test]
fn a_reload_is_answered_with_every_problem() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    assert_eq!(ctl(&proxy, &["reload"]), (0, "The configuration was reloaded.\n".to_owned()));
    let path = proxy.path().join("steadfast.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("pool = \"shop\"", "pool = \"shpo\"")).unwrap();
    let (status, text) = ctl(&proxy, &["reload"]);
    assert!(status == 1 && text.contains("steadfast.toml:") && text.contains("there is no pool `shpo`"), "{text}");
}

#[test]
fn the_api_is_not_driven_from_elsewhere_and_errors_are_clear() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let address = proxy.admin_address();
    let call = |client: Client, method: Method, path: &str, body: &str| {
        let mut client = client;
        let reply = client.try_send(method, path, bytes::Bytes::copy_from_slice(body.as_bytes())).unwrap();
        (reply.status, reply.text())
    };
    let client = || Client::plain(address);
    let drain = "/api/v1/pools/shop/servers/a/drain";
    assert_eq!(call(client().host("evil.test"), Method::GET, "/api/v1/pools", "").0, 403, "rebinding");
    assert_eq!(call(client().header("Origin", "https://evil.test"), Method::POST, drain, "").0, 403);
    assert_eq!(call(client().header("Origin", &format!("http://{address}")), Method::POST, drain, "").0, 200);
    assert_eq!(call(client().header("Content-Type", "text/plain"), Method::POST, drain, "{}").0, 415);
    let json = || client().header("Content-Type", "application/json");
    for (method, path, body, status) in [
        (Method::POST, drain, "{\"deadline\":\"soon\"}", 400),
        (Method::POST, drain, "nonsense", 400),
        (Method::POST, "/api/v1/pools/shop/servers/z/drain", "", 404),
        (Method::POST, "/api/v1/pools/z/servers/a/drain", "", 404),
        (Method::PUT, "/api/v1/pools/shop/servers/a/weight", "{\"weight\":-1}", 400),
        (Method::POST, "/api/v1/explain", "{}", 400),
        (Method::GET, "/api/v1/nothing", "", 404),
        (Method::DELETE, "/api/v1/pools/shop", "", 404),
    ] {
        let (answered, text) = call(json(), method.clone(), path, body);
        assert_eq!(answered, status, "{method} {path} {body}: {text}");
        assert!(text.contains("\"detail\""), "{text}");
    }
    let nobody = Command::new(BINARY).args(["ctl", "--address", "127.0.0.1:1", "status"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("cannot reach the admin address"));
    let named = Command::new(BINARY).args(["ctl", "--address", &address.to_string(), "drain", "a"]).output().unwrap();
    assert_eq!(named.status.code(), Some(2), "a server is POOL/SERVER");
}

/// `[pool.drain] idle = "2s"`: so long after its last request the last session counts no more.
const COUNTED_DOWN: std::time::Duration = std::time::Duration::from_secs(4);

#[test]
fn a_drain_of_two_hundred_sessions_counts_down_and_its_deadline_moves_the_rest() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let rules = "[pool.drain]\nidle = \"2s\"\n";
    let proxy = Proxy::start(&plain(&[&a], rules));
    let mut users: Vec<Client> = (0..200).map(|_| proxy.client()).collect();
    let mut all_get = |verdict: &str| {
        for user in &mut users {
            let reply = user.get("/");
            assert_eq!((reply.status, reply.verdict()), (200, verdict.to_owned()), "nobody gets an error");
        }
    };
    all_get("new; reason=first; server=a");
    assert!(proxy.reload(&plain(&[&a, &b], rules)));
    let remaining = || proxy.metric("steadfast_drain_sessions_remaining", &["server=\"a\""]);
    let drains = || proxy.metric("steadfast_server_state", &["server=\"a\"", "state=\"drain\""]) == 1.0;
    let drained = std::thread::scope(|scope| {
        let drained = scope.spawn(|| ctl(&proxy, &["drain", "shop/a", "--wait"]));
        eventually("a drains", drains);
        all_get("kept; server=a");
        let last = std::time::Instant::now();
        assert!((0..20).all(|_| proxy.client().get("/").origin() == "b"), "no new session lands on it");
        eventually("none remains", || remaining() == 0.0);
        assert!(last.elapsed() < COUNTED_DOWN, "{:?} after the last request", last.elapsed());
        drained.join().unwrap()
    });
    assert!(drained.0 == 0 && drained.1.contains("safe to stop"), "{}", drained.1);
    // The same sessions again, and this time they are still there when the time is over.
    assert_eq!(ctl(&proxy, &["ready", "shop/a"]).0, 0);
    all_get("kept; server=a");
    let (status, text) = ctl(&proxy, &["drain", "shop/a", "--deadline", "1ms", "--wait"]);
    assert!(status == 0 && text.contains("safe to stop"), "{text}");
    all_get("moved; reason=draining; server=b");
    all_get("kept; server=b");
}
