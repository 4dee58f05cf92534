//! What requests may look like, and what servers are told.

use crate::support::client::raw;
use crate::support::{Client, Origin, Proxy, plain, servers, tls};

#[test]
fn ambiguous_requests_are_answered_here_and_never_passed_on() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(40_000));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(101));
    let cases: [(&str, &[u8], &str); 17] = [
        ("no Host", b"GET / HTTP/1.1\r\n\r\n", "400"),
        ("two Hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
        ("a Host that is none", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400"),
        ("user in Host", b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", "400"),
        ("gzip, chunked", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501"),
        (
            "chunked, identity",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            "400",
        ),
        ("two lengths", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400"),
        ("a signed length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na", "400"),
        ("space before the colon", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", "400"),
        ("a folded line", b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", "400"),
        ("NUL", b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", "400"),
        (
            "a bad chunk",
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
            "400",
        ),
        (
            "a chunk too large",
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nab\r\n",
            "400",
        ),
        (
            "a bare LF in a chunk",
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n",
            "400",
        ),
        ("TLS bytes", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"),
        ("a head too long", long.as_bytes(), "431"),
        ("too many fields", many.as_bytes(), "431"),
    ];
    for (what, bytes, status) in cases {
        let answer = raw(proxy.address("main"), bytes);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {answer}");
        assert!(answer.ends_with("<closed>"), "{what}: the connection is closed: {answer}");
    }
    assert!(origin.seen().is_empty(), "{:?}", origin.seen());
    assert!(proxy.metric("steadfast_protect_total", &["rule=\"header\""]) >= 10.0);
    assert!(proxy.metric("steadfast_limit_reached_total", &["limit=\"header_size\""]) >= 1.0);
}

#[test]
fn odd_but_clear_requests_are_served() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let get = |bytes: &[u8]| {
        let answer = raw(proxy.address("main"), bytes);
        assert!(answer.contains(" 200 OK"), "{answer}");
        origin.last()
    };
    let absolute = get(b"GET http://evil.test/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!((absolute.target.as_str(), absolute.header("host").as_str()), ("/x", "evil.test"), "the target wins");
    get(b"GET /old HTTP/1.0\r\n\r\n");
    let both = get(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nab\r\n0\r\n\r\n");
    assert_eq!((both.header("content-length").as_str(), &both.body[..]), ("", &b"ab"[..]), "the length is dropped");
    get(b"GET / HTTP/1.1\nHost: a\nConnection: close\n\n");
}

#[test]
fn hop_by_hop_headers_end_here() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let mut client = proxy.client();
    client.headers = [
        ("Connection", "keep-alive, X-Secret, X-Forwarded-For, Cookie"),
        ("X-Secret", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "gzip, trailers"),
        ("Proxy-Connection", "x"),
        ("Proxy", "http://evil"),
        ("X_Forwarded_For", "6.6.6.6"),
        ("X-Forwarded-For", "6.6.6.6"),
        ("Forwarded", "for=6.6.6.6"),
        ("X-Request-Id", "mine"),
        ("X-Forwarded-Proto", "https"),
        ("traceparent", "00-1-2-01"),
        ("Cookie", "app=1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    let reply = client.get("/hop");
    let seen = origin.last();
    for gone in ["x-secret", "keep-alive", "proxy-connection", "proxy", "x_forwarded_for", "connection"] {
        assert_eq!(seen.header(gone), "", "{gone}");
    }
    assert_eq!(seen.header("te"), "trailers");
    assert_eq!(seen.header("cookie"), "app=1", "a client cannot name a cookie away");
    assert_eq!(seen.header("x-forwarded-for"), "127.0.0.1");
    assert_eq!(seen.header("x-forwarded-proto"), "http");
    assert!(seen.header("forwarded").starts_with("for=127.0.0.1;host=\"127.0.0.1:"), "{}", seen.header("forwarded"));
    assert_eq!(seen.header("x-request-id").len(), 32);
    assert_eq!(seen.header("via"), "1.1 steadfast");
    assert_eq!(seen.header("traceparent"), "00-1-2-01");
    for gone in ["x-private", "keep-alive"] {
        assert_eq!(reply.header(gone), "", "{gone} of the response");
    }
    assert_eq!(proxy.metric("steadfast_protect_total", &["decision=\"stripped\"", "reason=\"unsafe_name\""]), 1.0);
}

#[test]
fn trusted_proxies_are_believed_about_client_scheme_and_host() {
    let origin = Origin::start("a");
    let configuration = format!(
        "[process]\nworkers = 1\nmax_connections = 100\ntrusted_proxies = [\"127.0.0.1\"]\n{}",
        plain(&[&origin], "")
    );
    let proxy = Proxy::start(&configuration);
    let mut client = proxy.client();
    client.headers = [
        ("X-Forwarded-For", "6.6.6.6, 1.2.3.4"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "shop.example.com"),
        ("X-Request-Id", "edge-7"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    let reply = client.get("/");
    let seen = origin.last();
    assert_eq!(seen.header("x-forwarded-for"), "6.6.6.6, 1.2.3.4, 127.0.0.1");
    assert_eq!(seen.header("x-forwarded-proto"), "https");
    assert_eq!(seen.header("x-forwarded-host"), "shop.example.com");
    assert_eq!(seen.header("x-forwarded-port"), "443");
    assert_eq!(seen.header("x-request-id"), "edge-7");
    assert!(reply.set_cookies()[0].starts_with("__Host-sf-"), "the cookie goes by the external scheme");
    crate::support::eventually("the log has the client", || {
        proxy.access_log().iter().any(|line| line["client"] == "1.2.3.4")
    });
}

#[test]
fn cookies_arrive_as_one_line_over_http2_too() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&tls(&[&origin], ""));
    let mut client = proxy.tls_client().http2();
    client.cookies =
        [("a", "1"), ("b", "2"), ("c", "3")].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    client.get("/");
    assert_eq!(origin.last().header("cookie"), "a=1; b=2; c=3");
    assert_eq!(origin.last().header("host"), "localhost");
    client.get("/");
    assert_eq!(origin.last().header("cookie"), "a=1; b=2; c=3", "ours is taken out of the crumbs");
    assert_eq!(origin.last().header("via"), "2 steadfast");
}

#[test]
fn unsafe_names_can_be_refused_or_passed() {
    let origin = Origin::start("a");
    let listener = |name: &str, kind: &str| {
        format!("[[listener]]\nname = \"{name}\"\naddress = \"127.0.0.1:0\"\nunsafe_header_names = \"{kind}\"\n")
    };
    let proxy = Proxy::start(&format!(
        "{}{}[[route]]\npool = \"p\"\n[[pool]]\nname = \"p\"\nmode = \"none\"\n{}",
        listener("main", "reject"),
        listener("pass", "pass"),
        servers(&[&origin])
    ));
    assert_eq!(proxy.client().header("X_Y", "1").get("/").status, 400);
    assert_eq!(Client::plain(proxy.address("pass")).header("X_Y", "1").get("/").status, 200);
    assert_eq!(origin.last().header("x_y"), "1");
}
