//! Bodies stream both ways.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Full};

use crate::support::client::{block_on, raw};
use crate::support::{Origin, Proxy, plain, tls};

#[test]
fn bodies_of_any_size_arrive_whole_both_ways() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&tls(&[&origin], ""));
    let body: Bytes = (0..3_000_000u32).map(|number| number as u8).collect::<Vec<u8>>().into();
    for mut client in [proxy.tls_client(), proxy.tls_client().http2()] {
        assert_eq!(client.post("/echo", body.clone()).body, body);
        assert_eq!(client.get("/bytes/5000000").body.len(), 5_000_000);
        assert!(client.try_send(Method::HEAD, "/bytes/1000", Bytes::new()).unwrap().body.is_empty());
        assert_eq!(client.get("/status/204").status, 204);
        assert_eq!(client.get("/status/304").status, 304);
    }
}

#[test]
fn trailers_pass_both_ways_over_http2() {
    let origin = Origin::start_on("a", "127.0.0.1:0", crate::support::origin::Speaks::Http2);
    let proxy = Proxy::start(&tls(&[&origin], "[pool.http]\nversion = \"2\"\n"));
    let reply = proxy.tls_client().http2().get("/trailers");
    assert_eq!(reply.text(), "with trailers");
    assert_eq!(reply.trailers.expect("trailers")["x-sum"], "42");
}

#[test]
fn a_body_over_the_routes_limit_is_413_announced_or_not() {
    let origin = Origin::start("a");
    let proxy =
        Proxy::start(&plain(&[&origin], "").replace("pool = \"shop\"", "pool = \"shop\"\nbody_bytes = \"1KiB\""));
    assert_eq!(proxy.client().post("/echo", vec![b'x'; 1_024]).status, 200);
    assert_eq!(proxy.client().post("/echo", vec![b'x'; 1_025]).status, 413);
    let chunk = format!(
        "POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n{}\r\n0\r\n\r\n",
        "x".repeat(0x1000)
    );
    let answer = raw(proxy.address("main"), chunk.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(origin.seen().len(), 1);
}

#[test]
fn expect_100_continue_is_answered_when_a_server_will_take_the_body() {
    use std::io::{Read, Write};
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let mut stream = std::net::TcpStream::connect(proxy.address("main")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let head =
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n";
    stream.write_all(head).unwrap();
    let mut buffer = [0; 1_024];
    let read = stream.read(&mut buffer).unwrap();
    assert!(buffer[..read].starts_with(b"HTTP/1.1 100 Continue\r\n\r\n"));
    stream.write_all(b"body").unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("HTTP/1.1 200") && rest.ends_with("body"), "{rest}");
    assert_eq!(origin.last().header("expect"), "");
}

#[test]
fn events_arrive_as_they_happen() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&tls(&[&origin], ""));
    for client in [proxy.tls_client(), proxy.tls_client().http2()] {
        let between = block_on(async move {
            let request = client.request(Method::GET, "/events").body(Full::new(Bytes::new())).unwrap();
            let mut connection = client.connect().await?;
            let mut body = connection.begin(request).await?.into_body();
            let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
            let at = Instant::now();
            let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!((&first[..], &second[..]), (&b"data: 0\n\n"[..], &b"data: 1\n\n"[..]));
            Ok(at.elapsed())
        });
        // The second is sent 300 ms after the first: had they been held back, they would come together.
        assert!(between.unwrap() > Duration::from_millis(150));
    }
}

#[test]
fn a_request_is_answered_while_its_body_still_comes() {
    use std::io::{Read, Write};
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let mut stream = std::net::TcpStream::connect(proxy.address("main")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
        .write_all(b"POST /stream-echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nping\r\n")
        .unwrap();
    let mut seen = String::new();
    let mut read_until = |stream: &mut std::net::TcpStream, wanted: &str| {
        let mut buffer = [0; 4_096];
        while !seen.contains(wanted) {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    read_until(&mut stream, "ping");
    stream.write_all(b"4\r\npong\r\n0\r\n\r\n").unwrap();
    read_until(&mut stream, "pong");
}

#[test]
fn a_reader_that_stops_stops_the_server_too() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    use std::io::Write;
    let mut stream = std::net::TcpStream::connect(proxy.address("main")).unwrap();
    stream.write_all(b"GET /bytes/200000000 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    crate::support::eventually("the response is under way", || proxy.metric("steadfast_in_flight", &[]) == 1.0);
    // 200 MB are on offer and nobody reads: what the proxy holds is bounded by its buffers, not by the body.
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let mut last = 0;
    crate::support::eventually("memory has settled", || {
        std::thread::yield_now();
        let now = resident();
        let settled = now == last;
        last = now;
        settled
    });
    assert!(resident() < 120_000, "{} KiB", resident());
    drop(stream);
}
