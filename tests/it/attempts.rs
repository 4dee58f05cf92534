//! What is tried again, and what must not be.

use bytes::Bytes;
use http::Method;

use crate::support::{Origin, Proxy, eventually, plain, server};

const NO_PROBES: &str = "[pool.health]\ntype = \"off\"\n";

/// A server that nobody runs, and one that somebody does.
fn dead_and(origin: &Origin) -> String {
    format!(
        "{}{}{}{NO_PROBES}",
        server("dead-1", "127.0.0.1:1"),
        server("dead-2", "127.0.0.1:1"),
        server("alive", &origin.address())
    )
}

#[test]
fn what_was_not_sent_goes_on_to_every_untried_server_whatever_its_method() {
    let origin = Origin::start("alive");
    let proxy = Proxy::start(&plain(&[], &dead_and(&origin)));
    for _ in 0..10 {
        let reply = proxy.client().post("/echo", "once");
        assert_eq!((reply.status, reply.text().as_str()), (200, "once"));
    }
    assert_eq!(origin.seen().len(), 10, "each was served once");
    assert!(proxy.metric("steadfast_attempts_total", &["outcome=\"refused\""]) > 0.0);
    assert_eq!(proxy.metric("steadfast_limit_reached_total", &["limit=\"retry_budget\""]), 0.0);
}

#[test]
fn a_request_that_a_server_may_have_served_is_repeated_only_if_idempotent() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a, &b], NO_PROBES));
    let seen = || a.seen().len() + b.seen().len();
    assert_eq!(proxy.client().get("/drop").status, 502);
    assert_eq!(seen(), 2, "a GET has two attempts");
    assert_eq!(proxy.client().post("/drop", "order").status, 502);
    assert_eq!(seen(), 3, "a POST has one");
    let put = proxy.client().try_send(Method::PUT, "/drop", Bytes::from(vec![b'x'; 10_000])).unwrap();
    assert_eq!((put.status, seen()), (502, 5));
    assert!(
        [&a, &b]
            .iter()
            .flat_map(|origin| origin.seen())
            .filter(|seen| seen.method == "PUT")
            .all(|seen| seen.body.len() == 10_000)
    );
    let large = proxy.client().try_send(Method::PUT, "/drop", Bytes::from(vec![b'x'; 100_000])).unwrap();
    assert_eq!((large.status, seen()), (502, 6), "its body is larger than what is kept for a second send");
}

#[test]
fn a_kept_connection_that_the_server_closed_costs_nothing() {
    let origin = Origin::start("a");
    origin.close_after_each_answer();
    let proxy = Proxy::start(&plain(&[&origin], NO_PROBES));
    for number in 0..10 {
        let reply = proxy.client().post("/echo", format!("{number}"));
        assert_eq!((reply.status, reply.text()), (200, number.to_string()));
        eventually("the server has closed it", || origin.open_connections() == 0);
    }
    assert_eq!((origin.seen().len(), origin.connections()), (10, 10));
}

#[test]
fn connections_are_kept_and_used_again() {
    let origin = Origin::start("a");
    let proxy =
        Proxy::start(&format!("[process]\nworkers = 1\nmax_connections = 100\n{}", plain(&[&origin], NO_PROBES)));
    (0..20).for_each(|_| assert_eq!(proxy.client().get("/").status, 200));
    assert_eq!(origin.connections(), 1);
    assert_eq!(proxy.metric("steadfast_upstream_connections", &["state=\"idle\""]), 1.0);
}

#[test]
fn slow_servers_run_into_their_timeouts() {
    let origin = Origin::start("a");
    let timeouts = "[pool.timeouts]\nfirst_byte = \"200ms\"\nbetween_bytes = \"150ms\"\nconnect = \"200ms\"\n";
    let proxy = Proxy::start(&plain(&[&origin], &format!("{NO_PROBES}{timeouts}")));
    assert_eq!(proxy.client().get("/sleep/20").status, 200);
    assert_eq!(proxy.client().get("/sleep/5000").status, 504);
    // Events come every 300 ms: silence is an error here, as this pool says so.
    assert!(proxy.client().try_get("/events").is_err());
    eventually("the log says why", || proxy.access_log().iter().any(|line| line["error"] == "response_silent"));
    assert!(proxy.access_log().iter().any(|line| line["error"] == "first_byte_timed_out" && line["status"] == 504));
}

#[test]
fn a_server_gets_no_more_than_its_cap() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let servers = format!(
        "{}max_requests = 1\n{}max_requests = 2\n{NO_PROBES}",
        server("a", &a.address()),
        server("b", &b.address())
    );
    let proxy = Proxy::start(&plain(&[], &servers));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..6).map(|_| scope.spawn(|| proxy.client().get("/sleep/800").status)).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 3, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 3, "{statuses:?}");
    assert!(proxy.metric("steadfast_limit_reached_total", &["limit=\"max_requests\""]) >= 3.0);
}

#[test]
fn a_client_that_leaves_is_not_held_against_the_server() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], NO_PROBES));
    for had in 0..8 {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(proxy.address("main")).unwrap();
        stream.write_all(b"GET /sleep/2000 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        eventually("the server has it", || origin.seen().len() > had);
    }
    eventually("they are settled", || proxy.metric("steadfast_requests_total", &["code=\"client_closed\""]) == 8.0);
    assert_eq!(proxy.metric("steadfast_attempts_total", &["outcome=\"client_left\""]), 8.0);
    assert_eq!(proxy.metric("steadfast_server_state", &["state=\"ejected\""]), 0.0);
}
