//! Every bound is reached, counted, and harms nobody else.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::client::raw;
use crate::support::{Client, Origin, Proxy, eventually, plain, tls};

fn with_listener(configuration: &str, keys: &str) -> String {
    configuration.replace("address = \"127.0.0.1:0\"", &format!("address = \"127.0.0.1:0\"\n{keys}"))
}

/// Waits until the other side closes.
fn wait_for_close(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut rest = Vec::new();
    // A reset ends it as well as a close.
    let _ = stream.read_to_end(&mut rest);
}

#[test]
fn slow_heads_idle_connections_and_half_open_handshakes_are_closed() {
    let origin = Origin::start("a");
    let times = "header_timeout = \"300ms\"\nidle_timeout = \"600ms\"";
    let proxy = Proxy::start(&with_listener(&plain(&[&origin], ""), times));
    let limit = |name: &str| proxy.metric("steadfast_limit_reached_total", &[&format!("limit=\"{name}\"")]);
    let mut slow = TcpStream::connect(proxy.address("main")).unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX").unwrap();
    wait_for_close(&mut slow);
    assert_eq!(limit("header_timeout"), 1.0);
    let mut idle = TcpStream::connect(proxy.address("main")).unwrap();
    wait_for_close(&mut idle);
    assert!(limit("idle_timeout") >= 1.0);
    // A busy one is neither, however long it takes.
    assert_eq!(proxy.client().get("/sleep/1500").status, 200);
    let proxy = Proxy::start(&with_listener(&tls(&[&origin], ""), times));
    let mut silent = TcpStream::connect(proxy.address("main")).unwrap();
    wait_for_close(&mut silent);
    eventually("the handshake was given up", || proxy.metric("steadfast_connections", &["listener=\"main\""]) == 0.0);
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&with_listener(&plain(&[&origin], ""), "idle_timeout = \"500ms\""));
    let mut stream = TcpStream::connect(proxy.address("main")).unwrap();
    stream.write_all(b"GET /bytes/50000000 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let cut = || proxy.metric("steadfast_limit_reached_total", &["limit=\"write_timeout\""]) == 1.0;
    eventually("it is cut off", cut);
}

#[test]
fn past_max_connections_the_oldest_idle_one_goes() {
    let origin = Origin::start("a");
    let process = "[process]\nworkers = 1\nmax_connections = 3\nconnections_per_address = 0\n";
    let proxy = Proxy::start(&format!("{process}{}", plain(&[&origin], "")));
    let mut idle: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(proxy.address("main")).unwrap()).collect();
    eventually("all are open", || proxy.metric("steadfast_connections", &[]) == 3.0);
    assert_eq!(proxy.client().get("/").status, 200, "a newcomer is served");
    wait_for_close(&mut idle[0]);
    assert!(proxy.metric("steadfast_limit_reached_total", &["limit=\"max_connections\""]) >= 1.0);
}

#[test]
fn http2_clients_that_say_nothing_are_closed_and_do_not_fill_the_place() {
    let origin = Origin::start("a");
    let process = "[process]\nworkers = 1\nmax_connections = 4\n";
    let configuration = with_listener(&tls(&[&origin], ""), "header_timeout = \"20s\"");
    let proxy = Proxy::start(&format!("{process}{configuration}"));
    let mut config = crate::support::client::anything_goes().with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = std::sync::Arc::new(config);
    let mut silent = Vec::new();
    for _ in 0..12 {
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let mut session = rustls::ClientConnection::new(std::sync::Arc::clone(&config), name).unwrap();
        let mut tcp = TcpStream::connect(proxy.address("main")).unwrap();
        // Whether it is let in or not, it says nothing after the handshake but the preface.
        let _ = session.complete_io(&mut tcp);
        let _ = session.writer().write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        let _ = session.complete_io(&mut tcp);
        silent.push((session, tcp));
    }
    eventually("a newcomer is served", || proxy.tls_client().try_get("/").is_ok());
    assert!(proxy.metric("steadfast_connections", &["listener=\"main\""]) <= 6.0);
}

#[test]
fn one_address_gets_no_more_than_its_share() {
    let origin = Origin::start("a");
    let process = "[process]\nworkers = 2\nmax_connections = 100\nconnections_per_address = 2\n";
    let proxy = Proxy::start(&format!("{process}{}", plain(&[&origin], "")));
    let held: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = TcpStream::connect(proxy.address("main")).unwrap();
            // It has its place once it is answered: a connection that is only open may still be refused one.
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            assert!(stream.read(&mut [0; 64]).unwrap() > 0);
            stream
        })
        .collect();
    assert!(proxy.client().try_get("/").is_err());
    drop(held);
    eventually("there is room again", || proxy.client().try_get("/").is_ok());
}

#[test]
fn the_proxy_protocol_is_required_where_it_is_on() {
    let origin = Origin::start("a");
    let process = "[process]\nworkers = 1\nmax_connections = 100\ntrusted_proxies = [\"127.0.0.0/8\"]\n";
    let proxy =
        Proxy::start(&format!("{process}{}", with_listener(&plain(&[&origin], ""), "proxy_protocol = \"any\"")));
    let address = proxy.address("main");
    let v1 =
        raw(address, b"PROXY TCP4 9.8.7.6 1.1.1.1 1234 443\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(v1.starts_with("HTTP/1.1 200"), "{v1}");
    assert_eq!(origin.last().header("x-forwarded-for"), "9.8.7.6");
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x09\x08\x07\x05\x01\x01\x01\x01\x04\xd2\x01\xbb".to_vec();
    v2.extend_from_slice(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(raw(address, &v2).starts_with("HTTP/1.1 200"));
    assert_eq!(origin.last().header("x-forwarded-for"), "9.8.7.5");
    assert_eq!(raw(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), "<closed>");
    assert_eq!(proxy.metric("steadfast_limit_reached_total", &["limit=\"proxy_protocol\""]), 1.0);
}

#[test]
fn headers_over_http2_have_the_same_bounds() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&with_listener(&tls(&[&origin], ""), "header_count = 20\nheader_bytes = \"8KiB\""));
    let mut many = proxy.tls_client().http2();
    many.headers = (0..30).map(|number| (format!("x-{number}"), "1".to_owned())).collect();
    assert_eq!(many.get("/").status, 431);
    let long = proxy.tls_client().http2().header("x", &"y".repeat(9_000)).try_get("/");
    assert!(long.is_err() || long.is_ok_and(|reply| reply.status == 431));
    assert!(origin.seen().is_empty());
}

#[test]
fn garbage_of_every_kind_ends_connections_and_nothing_else() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&tls(&[&origin], ""));
    let mut random = fastrand::Rng::with_seed(7);
    for length in [1, 5, 16, 100, 2_000] {
        for _ in 0..10 {
            let bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
            let mut stream = TcpStream::connect(proxy.address("main")).unwrap();
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            wait_for_close(&mut stream);
        }
    }
    assert_eq!(proxy.tls_client().get("/").status, 200);
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
}

fn with_rate(origins: &[&Origin], rate: &str, more: &str) -> String {
    plain(origins, more).replace("pool = \"shop\"\n", &format!("pool = \"shop\"\nrate = {{ {rate} }}\n"))
}

/// The statuses of so many requests, one after another.
fn statuses(client: &mut Client, count: usize) -> Vec<u16> {
    (0..count).map(|_| client.get("/").status).collect()
}

#[test]
fn a_client_that_asks_too_often_is_told_when_to_come_again() {
    let origin = Origin::start("a");
    let configuration = with_rate(&[&origin], "requests = 3, per = \"1h\"", "");
    let trusted = "[process]\nworkers = 2\nwatch = false\ntrusted_proxies = [\"127.0.0.0/8\"]\n";
    let proxy = Proxy::start(&format!("{trusted}{configuration}"));
    let from = |address: &str| proxy.client().header("X-Forwarded-For", address);
    assert_eq!(statuses(&mut from("192.0.2.1"), 5), [200, 200, 200, 429, 429]);
    let refused = from("192.0.2.1").get("/");
    let wait: u32 = refused.header("retry-after").parse().unwrap();
    assert!((1_100..=1_201).contains(&wait), "a third of an hour until the next: {wait}");
    assert!(refused.text().contains("urn:steadfast:error:rate_exceeded"), "{}", refused.text());
    assert_eq!(statuses(&mut from("192.0.2.2"), 1), [200], "another client is not held to it");
    assert_eq!(statuses(&mut from("2001:db8::1"), 3), [200; 3]);
    assert_eq!(statuses(&mut from("2001:db8::2:2"), 1), [429], "a network of 64 bits is one client");
    assert!(proxy.reload(&format!("{trusted}{configuration}")));
    assert_eq!(statuses(&mut from("192.0.2.1"), 1), [429], "a reload forgives nobody");
    let labels = ["rule=\"rate\"", "decision=\"rejected\"", "reason=\"client\""];
    assert_eq!(proxy.metric("steadfast_protect_total", &labels), 5.0);
    assert_eq!(origin.seen().len(), 7, "no server has seen what was refused");
}

#[test]
fn a_session_that_asks_too_often_does_not_spoil_it_for_its_neighbours() {
    let origin = Origin::start("a");
    let rate = "requests = 10, per = \"1h\", by = \"session\"";
    let proxy = Proxy::start(&with_rate(&[&origin], rate, ""));
    let (mut busy, mut calm) = (proxy.client(), proxy.client());
    // Both come without a session at first, and count by their address.
    assert_eq!((busy.get("/").status, calm.get("/").status), (200, 200));
    assert_eq!(statuses(&mut busy, 11), [[200; 10].as_slice(), &[429]].concat());
    assert_eq!(statuses(&mut calm, 10), [200; 10]);
    busy.cookies.values_mut().for_each(|value| value.replace_range(20..24, "AAAA"));
    let forged = (0..20).filter(|_| busy.clone().get("/").status == 200).count();
    assert_eq!(forged, 8, "a made-up session counts by its address");
    assert!(proxy.metric("steadfast_protect_total", &["rule=\"rate\"", "reason=\"session\""]) >= 1.0);
}
