//! Reloads, drains and hand-overs lose nothing.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use http::Method;
use http_body_util::Full;

use crate::support::certs::Authority;
use crate::support::{Client, Origin, Proxy, eventually, plain, server, servers, tls};

#[test]
fn a_rejected_reload_changes_nothing_and_says_every_reason() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let last_was_taken = || proxy.metric("steadfast_config_last_reload_successful", &[]) == 1.0;
    assert!(last_was_taken(), "there was none");
    let broken = plain(&[&origin], "")
        .replace("mode = \"sticky\"", "mode = \"stikcy\"")
        .replace("pool = \"shop\"", "pool = \"shpo\"");
    assert!(!proxy.reload(&broken));
    eventually("both reasons are told", || proxy.log().contains("stikcy") && proxy.log().contains("shpo"));
    assert_eq!(proxy.client().get("/").status, 200);
    assert_eq!(proxy.metric("steadfast_reload_total", &["result=\"failure\""]), 1.0);
    assert!(!last_was_taken());
    // A port that somebody else has refuses the whole reload too.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let second = format!(
        "[[listener]]\nname = \"second\"\naddress = \"{}\"\n{}",
        taken.local_addr().unwrap(),
        plain(&[&origin], "")
    );
    assert!(!proxy.reload(&second));
    assert!(!last_was_taken());
    assert!(proxy.reload(&plain(&[&origin], "")));
    assert!(last_was_taken());
}

#[test]
fn listeners_come_and_go() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let more = format!("[[listener]]\nname = \"more\"\naddress = \"127.0.0.1:0\"\n{}", plain(&[&origin], ""));
    assert!(proxy.reload(&more));
    let address = proxy.address("more");
    assert_eq!(Client::plain(address).get("/").status, 200);
    assert_eq!(proxy.client().get("/").status, 200, "the first listens where it did");
    assert!(proxy.reload(&plain(&[&origin], "")));
    eventually("it is closed", || Client::plain(address).try_get("/").is_err());
}

#[test]
fn a_changed_file_is_reloaded_and_so_is_a_changed_certificate() {
    let (authority, origin) = (Authority::new(), Origin::start("a"));
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (authority.issue(&["localhost"]), authority.issue(&["localhost"]));
    old.write(directory.path(), "site");
    let process = "[process]\nworkers = 1\nmax_connections = 100\naccess_log = \"access.log\"\n";
    let configuration = tls(&[&origin], "")
        .replace("self_signed = [\"localhost\"]", "certificates = [{ cert = \"site.pem\", key = \"site.key\" }]");
    let proxy = Proxy::start_in(directory, &format!("{process}{configuration}"));
    let reloads = || proxy.metric("steadfast_reload_total", &["result=\"success\""]);
    // The access log lies in the same directory, and is written all the time: that is no change.
    assert_eq!(proxy.tls_client().get("/").status, 200);
    let before = reloads();
    new.write(proxy.path(), "site");
    let mut client = proxy.tls_client();
    eventually("the certificate is reloaded", || {
        client.get("/");
        reloads() == before + 1.0
    });
    std::fs::write(proxy.path().join("other.txt"), "nobody's business").unwrap();
    let path = proxy.path().join("steadfast.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("debug_headers = true", "debug_headers = false")).unwrap();
    eventually("the file is reloaded", || client.get("/").verdict().is_empty());
    assert_eq!(reloads(), before + 2.0);
}

#[test]
fn shutdown_finishes_what_is_under_way() {
    let origin = Origin::start("a");
    let mut proxy = Proxy::start(&tls(&[&origin], ""));
    let client = proxy.tls_client();
    let slow = std::thread::spawn({
        let mut client = client.clone();
        move || client.get("/sleep/1000")
    });
    eventually("it is under way", || proxy.metric("steadfast_in_flight", &[]) == 1.0);
    proxy.signal("TERM");
    assert_eq!(slow.join().unwrap().status, 200);
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn readiness_goes_before_the_listeners_do_and_a_second_signal_ends_at_once() {
    let origin = Origin::start("a");
    let process = "[process]\nworkers = 2\nmax_connections = 100\nshutdown_delay = \"60s\"\n";
    let mut proxy = Proxy::start(&format!("{process}{}", plain(&[&origin], "")));
    proxy.signal("TERM");
    eventually("it is no longer ready", || proxy.admin("/readyz").is_some_and(|text| text.contains("not ready")));
    assert_eq!(proxy.client().get("/").status, 200, "listeners still accept");
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(1));
}

#[test]
fn what_does_not_end_is_ended_at_the_end_of_the_grace_time() {
    let origin = Origin::start("a");
    let process = "[process]\nworkers = 2\nmax_connections = 100\nshutdown_grace = \"300ms\"\n";
    let mut proxy = Proxy::start(&format!("{process}{}", plain(&[&origin], "")));
    let mut client = proxy.client();
    let slow = std::thread::spawn(move || client.try_get("/sleep/60000"));
    eventually("it is under way", || proxy.metric("steadfast_in_flight", &[]) == 1.0);
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
    assert!(slow.join().unwrap().is_err());
    assert!(proxy.log().contains("closed at the end of the grace time"), "{}", proxy.log());
}

/// Continuous load that never tries anything twice. Errors before the request was accepted are counted apart.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    done: AtomicU64,
    /// Connections that could not be opened, TLS included: they were never accepted.
    not_accepted: AtomicU64,
    failed: Mutex<Vec<String>>,
    /// Who answered each user, in order, without repetitions.
    homes: Mutex<BTreeMap<usize, Vec<String>>>,
}

impl Load {
    fn user(&self, number: usize, mut client: Client) {
        let mut homes: Vec<String> = Vec::new();
        let ended: Result<(), String> = block_on_forever(async {
            while !self.stop.load(Ordering::SeqCst) {
                let mut connection = match client.connect().await {
                    Ok(connection) => connection,
                    Err(_) => {
                        self.not_accepted.fetch_add(1, Ordering::SeqCst);
                        continue;
                    }
                };
                for exchange in 0..50 {
                    let path = ["/load", "/fixed", "/bytes/100000"][exchange % 3];
                    let request = client.request(Method::GET, path).body(Full::new(Bytes::new())).unwrap();
                    match connection.send(request).await {
                        Ok(reply) => {
                            self.done.fetch_add(1, Ordering::SeqCst);
                            if reply.status != 200 {
                                self.failed.lock().unwrap().push(format!("status {}: {}", reply.status, reply.text()));
                            }
                            client.keep_cookies(&reply);
                            if path != "/fixed" && homes.last() != Some(&reply.origin()) {
                                homes.push(reply.origin());
                            }
                            if reply.header("connection") == "close" {
                                break;
                            }
                        }
                        // HTTP/2 was told to go elsewhere before it sent anything.
                        Err(error) if error.contains("GOAWAY") || error.contains("connection was not ready") => break,
                        // The same, with the request already in the client's own queue: it was never processed.
                        Err(error) if number % 2 == 1 && error.contains("operation was canceled") => break,
                        Err(error) => {
                            self.failed.lock().unwrap().push(format!("user {number}, exchange {exchange}: {error}"));
                            break;
                        }
                    }
                    tokio::task::yield_now().await;
                }
            }
            Ok(())
        });
        ended.unwrap();
        self.homes.lock().unwrap().insert(number, homes);
    }
}

fn block_on_forever<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn twenty_reloads_and_a_hand_over_under_load_fail_nobody_and_move_no_pin_that_can_stay() {
    let authority = Authority::new();
    let origins = ["a", "b", "c", "d"].map(Origin::start);
    let [a, b, c, d] = &origins;
    let directory = || {
        let directory = tempfile::tempdir().unwrap();
        let key = steadfast::keys::RingKey::from_secret([7; 32]);
        std::fs::write(directory.path().join("ring.key"), key.to_line().as_bytes()).unwrap();
        authority.issue(&["localhost"]).write(directory.path(), "site");
        directory
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let configuration = |servers: String| {
        let tables = "[listener.tls]\ncertificates = [{ cert = \"site.pem\", key = \"site.key\" }]\n[[route]]";
        let base = plain(&[], &format!("{servers}[pool.health]\npath = \"/healthz\"\ninterval = \"100ms\"\n"));
        let base = base
            .replacen("[[route]]", tables, 1)
            .replacen("[[pool]]", "[[route]]\npath = \"/fixed\"\nrespond = { status = 200 }\n[[pool]]", 1)
            .replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
        format!(
            "[process]\nworkers = 2\nmax_connections = 1000\nwatch = false\nshutdown_delay = \"200ms\"\n[keys]\nring = [\"file:ring.key\"]\n{base}"
        )
    };
    // `a` and `b` always stay; `c` and `d` come and go; the order turns.
    let variants = [
        servers(&[a, b, c]),
        servers(&[c, b, a, d]),
        servers(&[b, a]),
        format!("{}weight = 3\n{}{}", server("d", &d.address()), server("a", &a.address()), server("b", &b.address())),
    ];
    let mut first = Proxy::start_in(directory(), &configuration(variants[0].clone()));
    let load = Load::default();
    let address = first.address("main");
    let second = std::thread::scope(|scope| {
        for number in 0..12 {
            let client = if number % 2 == 0 { Client::tls(address) } else { Client::tls(address).http2() };
            let load = &load;
            scope.spawn(move || load.user(number, client));
        }
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for number in 1..=20 {
                let before = load.done.load(Ordering::SeqCst);
                if number % 5 == 0 {
                    authority.issue(&["localhost"]).write(first.path(), "site");
                }
                assert!(first.reload(&configuration(variants[number % variants.len()].clone())), "{}", first.log());
                eventually("load goes on", || load.done.load(Ordering::SeqCst) > before + 50);
            }
            assert!(!first.reload(&configuration("nonsense\n".to_owned())));
            assert!(first.reload(&configuration(variants[0].clone())));
            let second = Proxy::start_in(directory(), &configuration(variants[0].clone()));
            first.signal("TERM");
            assert_eq!(first.wait().code(), Some(0));
            let before = load.done.load(Ordering::SeqCst);
            eventually("the second serves alone", || load.done.load(Ordering::SeqCst) > before + 500);
            second
        }));
        load.stop.store(true, Ordering::SeqCst);
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let not_accepted = load.not_accepted.load(Ordering::SeqCst);
    let migrates = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").is_ok_and(|value| value.trim() == "1");
    println!(
        "{} exchanges; connections not accepted in the moment of the hand-over: {not_accepted}",
        load.done.load(Ordering::SeqCst)
    );
    assert!(!migrates || not_accepted == 0);
    let failed = load.failed.lock().unwrap();
    assert!(failed.is_empty(), "{} failed, the first: {:?}", failed.len(), &failed[..failed.len().min(5)]);
    for (user, homes) in load.homes.lock().unwrap().iter() {
        let home = homes.iter().position(|home| home == "a" || home == "b");
        assert!(
            home.is_none_or(|at| at + 1 == homes.len()),
            "user {user} had a server that stayed, and left it: {homes:?}"
        );
    }
    drop(second);
}

#[test]
fn the_access_log_is_opened_again_when_it_was_moved_away() {
    let origin = Origin::start("a");
    let process = "[process]\nworkers = 1\nmax_connections = 100\naccess_log = \"access.log\"\nwatch = false\n";
    let proxy = Proxy::start(&format!("{process}{}", plain(&[&origin], "")));
    let read = |name: &str| std::fs::read_to_string(proxy.path().join(name)).unwrap_or_default();
    proxy.client().get("/first");
    eventually("it is logged", || read("access.log").contains("/first"));
    std::fs::rename(proxy.path().join("access.log"), proxy.path().join("old.log")).unwrap();
    proxy.signal("USR1");
    eventually("the new file is there", || proxy.path().join("access.log").exists());
    proxy.client().get("/second");
    eventually("it goes to the new file", || read("access.log").contains("/second"));
    assert!(!read("old.log").contains("/second"));
}

#[test]
fn a_line_of_the_access_log_tells_the_exchange() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&tls(&[&origin], ""));
    let mut client = proxy.tls_client().http2();
    client.post("/echo?secret=1", "hello");
    client.get("/b");
    eventually("both are logged", || proxy.access_log().len() == 2);
    let mut lines = proxy.access_log();
    // Each worker writes its own lines: their order in the file is not that of their times.
    lines.sort_by_key(|line| line["time"].as_str().unwrap().to_owned());
    let first = &lines[0];
    for (field, wanted) in [
        ("client", "127.0.0.1"),
        ("listener", "main"),
        ("route", "*/"),
        ("pool", "shop"),
        ("server", "a"),
        ("method", "POST"),
        ("host", "localhost"),
        ("path", "/echo"),
        ("protocol", "HTTP/2"),
        ("verdict", "new"),
        ("reason", "first"),
        ("error", ""),
    ] {
        assert_eq!(first[field], wanted, "{field}");
    }
    for (field, wanted) in [("status", 200), ("bytes_in", 5), ("bytes_out", 5), ("attempts", 1), ("in_flight", 1)] {
        assert_eq!(first[field], wanted, "{field}");
    }
    assert_eq!(lines[1]["verdict"], "kept");
    assert_eq!(lines[1]["session"].as_str().unwrap().len(), 16);
    assert_eq!(first["session"], lines[1]["session"], "the first of a session is one of it");
    assert_eq!(first["id"].as_str().unwrap(), origin.seen()[0].header("x-request-id"));
}
