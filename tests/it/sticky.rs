//! Sticky mode by our sealed cookie.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::{Client, Origin, Proxy, eventually, plain, server, tls};

fn three() -> [Origin; 3] {
    ["a", "b", "c"].map(Origin::start)
}

/// A directory with key files `1.key`, `2.key`.
fn with_keys() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for number in [1u8, 2] {
        let key = steadfast::keys::RingKey::from_secret([number; 32]);
        std::fs::write(directory.path().join(format!("{number}.key")), key.to_line().as_bytes()).unwrap();
    }
    directory
}

fn ring(files: &str, rest: &str) -> String {
    format!("[keys]\nring = [{files}]\n{rest}")
}

#[test]
fn with_a_jar_one_server_and_without_all_of_them() {
    let origins = three();
    let proxy = Proxy::start(&tls(&origins.each_ref(), ""));
    let mut client = proxy.tls_client();
    let first = client.get("/").origin();
    assert!((1..100).all(|_| client.get("/").origin() == first));
    let spread: BTreeSet<String> = (0..40).map(|_| proxy.tls_client().get("/").origin()).collect();
    assert_eq!(spread.len(), 3);
    assert_eq!(proxy.metric("steadfast_affinity_total", &["verdict=\"kept\""]), 99.0);
    assert_eq!(proxy.metric("steadfast_affinity_total", &["verdict=\"new\"", "reason=\"first\""]), 41.0);
}

#[test]
fn the_cookie_is_opaque_well_flagged_and_never_reaches_a_server() {
    let origins = three();
    let proxy = Proxy::start(&tls(&origins.each_ref(), ""));
    let mut client = proxy.tls_client();
    client.cookies.insert("app".to_owned(), "1".to_owned());
    let reply = client.get("/cookie");
    let ours: Vec<String> = reply.set_cookies().into_iter().filter(|line| line.starts_with("__Host-sf-")).collect();
    assert_eq!((ours.len(), reply.set_cookies().len()), (1, 3), "one of ours beside the application's two");
    for attribute in ["Secure", "HttpOnly", "SameSite=Lax", "Path=/"] {
        assert!(ours[0].contains(attribute), "{}", ours[0]);
    }
    assert!(!ours[0].contains("Domain") && !ours[0].contains("127.0.0.1"));
    assert_eq!(reply.header("cache-control"), "private");
    let again = client.get("/");
    assert!(again.set_cookies().is_empty(), "written only when it changes");
    let seen = origins.iter().flat_map(Origin::seen).find(|seen| seen.target == "/").unwrap();
    assert_eq!(seen.header("cookie"), "app=1; other=2");
}

#[test]
fn two_proxies_of_one_ring_agree_across_restarts_and_a_stranger_does_not() {
    let origins = three();
    let configuration = ring("\"file:1.key\"", &plain(&origins.each_ref(), ""));
    let start = |files: &str| Proxy::start_in(with_keys(), &configuration.replace("\"file:1.key\"", files));
    let (one, two) = (start("\"file:1.key\""), start("\"file:1.key\""));
    let mut users: Vec<(Client, String)> = (0..20)
        .map(|_| {
            let mut client = one.client();
            let origin = client.get("/").origin();
            (client, origin)
        })
        .collect();
    let keeps = |proxy: &Proxy, users: &mut Vec<(Client, String)>| {
        users.iter_mut().all(|(client, origin)| {
            let mut here = proxy.client();
            here.cookies.clone_from(&client.cookies);
            here.get("/").origin() == *origin
        })
    };
    assert!(keeps(&two, &mut users));
    drop((one, two));
    let rotated = start("\"file:2.key\", \"file:1.key\"");
    assert!(keeps(&rotated, &mut users), "all keys open");
    let stranger = start("\"file:2.key\"");
    let mut here = stranger.client();
    here.cookies.clone_from(&users[0].0.cookies);
    assert!(here.get("/").verdict().starts_with("new; reason=unknown_key"));
}

#[test]
fn preflights_and_routes_that_are_not_sticky_neither_read_nor_write_pins() {
    let origins = three();
    let configuration = plain(&origins.each_ref(), "")
        .replace("[[pool]]", "[[route]]\npath = \"/static\"\npool = \"shop\"\nsticky = false\n[[pool]]");
    let proxy = Proxy::start(&configuration);
    let mut client = proxy.client();
    client.get("/");
    let still = client.get("/static/x.css");
    assert!(still.verdict().starts_with("none; reason=not_sticky"));
    assert_eq!(
        origins.iter().flat_map(Origin::seen).find(|seen| seen.target.starts_with("/static")).unwrap().header("cookie"),
        ""
    );
    let mut preflight = proxy.client().header("Access-Control-Request-Method", "POST");
    let reply = preflight.try_send(http::Method::OPTIONS, "/", bytes::Bytes::new()).unwrap();
    assert!(reply.set_cookies().is_empty() && reply.verdict().starts_with("none; reason=preflight"));
}

#[test]
fn a_server_is_its_name_whatever_its_address_or_place() {
    let [a, b, c] = three();
    let configuration = |servers: &str| plain(&[], servers);
    let before = [&a, &b, &c].map(|origin| server(&origin.name, &origin.address())).concat();
    let proxy = Proxy::start_in(with_keys(), &ring("\"file:1.key\"", &configuration(&before)));
    let mut users: Vec<(Client, String)> = (0..12)
        .map(|_| {
            let mut client = proxy.client();
            let name = client.get("/").origin();
            (client, name)
        })
        .collect();
    // Another order, another weight, and `a` has moved house.
    let a_again = Origin::start("a");
    let after = format!(
        "{}{}weight = 5\n{}",
        server("c", &c.address()),
        server("b", &b.address()),
        server("a", &a_again.address())
    );
    drop(a);
    assert!(proxy.reload(&ring("\"file:1.key\"", &configuration(&after))), "{}", proxy.log());
    for (client, name) in &mut users {
        assert_eq!(client.get("/").verdict(), format!("kept; server={name}"));
    }
    // And `b` is gone for good.
    let without = format!("{}{}", server("c", &c.address()), server("a", &a_again.address()));
    assert!(proxy.reload(&ring("\"file:1.key\"", &configuration(&without))));
    let of_b = users.iter_mut().find(|(_, name)| name == "b");
    if let Some((client, _)) = of_b {
        assert!(client.get("/").verdict().starts_with("moved; reason=gone"));
    }
}

#[test]
fn under_load_a_killed_server_costs_no_idempotent_request() {
    // Real processes, killed for real: the demo's own app servers.
    let mut shops: Vec<Shop> = ["shop-1", "shop-2", "shop-3"].map(Shop::start).into();
    let servers: String = shops.iter().map(|shop| server(&shop.name, &shop.address())).collect();
    let proxy = Proxy::start(&plain(
        &[],
        &format!("{servers}[pool.health]\npath = \"/healthz\"\ninterval = \"200ms\"\nfall = 2\n"),
    ));
    let failed = AtomicU32::new(0);
    let broken = AtomicU32::new(0);
    let done = AtomicU32::new(0);
    let (moved_to, verdicts) = std::thread::scope(|scope| {
        let users: Vec<_> = (0..8)
            .map(|_| {
                let mut client = proxy.client();
                let (failed, broken, done) = (&failed, &broken, &done);
                scope.spawn(move || {
                    let mut servers = Vec::new();
                    let mut verdicts = BTreeSet::new();
                    for _ in 0..150 {
                        match client.try_get("/api/whoami") {
                            Ok(reply) if reply.status == 200 => {
                                let who: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
                                servers.push(who["server"].as_str().unwrap().to_owned());
                                verdicts.insert(reply.verdict().split("; server").next().unwrap().to_owned());
                            }
                            Ok(_) => drop(failed.fetch_add(1, Ordering::SeqCst)),
                            Err(error) if error.starts_with("body") => drop(broken.fetch_add(1, Ordering::SeqCst)),
                            Err(_) => drop(failed.fetch_add(1, Ordering::SeqCst)),
                        }
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                    servers.dedup();
                    (servers, verdicts)
                })
            })
            .collect();
        eventually("load is on", || done.load(Ordering::SeqCst) > 200);
        shops[0].kill();
        let ended: Vec<_> = users.into_iter().map(|user| user.join().unwrap()).collect();
        let moved_to: Vec<Vec<String>> = ended.iter().map(|(servers, _)| servers.clone()).collect();
        (moved_to, ended.into_iter().flat_map(|(_, verdicts)| verdicts).collect::<BTreeSet<String>>())
    });
    println!("responses broken after they had begun: {}", broken.load(Ordering::SeqCst));
    assert_eq!(failed.load(Ordering::SeqCst), 0, "{verdicts:?}");
    for servers in moved_to {
        assert!(servers.len() <= 2, "a session moves once, and to one place: {servers:?}");
        assert!(servers.len() == 1 || servers[0] == "shop-1", "{servers:?}");
    }
    for verdict in verdicts {
        assert!(
            ["new; reason=first", "kept", "moved; reason=failed", "moved; reason=down"].contains(&verdict.as_str()),
            "{verdict}"
        );
    }
}

/// An app server of the demo as a process of its own.
struct Shop {
    name: String,
    port: u16,
    child: std::process::Child,
}

impl Shop {
    fn start(name: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = std::process::Command::new(crate::support::proxy::BINARY)
            .args(["demo-server", "--name", name, "--port", &port.to_string()])
            .stdin(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let shop = Shop { name: name.to_owned(), port, child };
        eventually("the shop is open", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        shop
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// kill -9.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.kill();
    }
}
