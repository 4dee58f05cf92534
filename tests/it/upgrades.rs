//! WebSockets and other upgrades.

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::client::{block_on, raw};
use crate::support::origin::Speaks;
use crate::support::{Client, Origin, Proxy, eventually, plain};

async fn open(
    address: std::net::SocketAddr,
    cookie: Option<&str>,
) -> Result<(WebSocketStream<tokio::net::TcpStream>, http::Response<Option<Vec<u8>>>), String> {
    let mut request = format!("ws://{address}/ws").into_client_request().map_err(|error| error.to_string())?;
    if let Some(cookie) = cookie {
        request.headers_mut().insert("cookie", cookie.parse().unwrap());
    }
    let tcp = tokio::net::TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    tokio_tungstenite::client_async(request, tcp).await.map_err(|error| error.to_string())
}

#[test]
fn a_web_socket_echoes_is_pinned_and_counts_as_load() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a, &b], ""));
    let mut client = proxy.client();
    let home = client.get("/").origin();
    let (name, value) = client.cookies.pop_first().unwrap();
    block_on(async {
        let (mut socket, response) = open(proxy.address("main"), Some(&format!("{name}={value}"))).await?;
        assert_eq!(response.headers()["x-origin"], home.as_str());
        for number in 0..20 {
            let message = Message::text(format!("{number} {}", "x".repeat(number * 5_000)));
            socket.send(message.clone()).await.map_err(|error| error.to_string())?;
            assert_eq!(socket.next().await.unwrap().map_err(|error| error.to_string())?, message);
        }
        assert_eq!(elsewhere(|| proxy.metric("steadfast_in_flight", &[])), 1.0);
        socket.close(None).await.map_err(|error| error.to_string())
    })
    .unwrap();
    eventually("it is settled", || proxy.metric("steadfast_in_flight", &[]) == 0.0);
    eventually("it is logged", || {
        proxy.access_log().iter().any(|line| line["status"] == 101 && line["bytes_out"].as_u64() > Some(400_000))
    });
}

#[test]
fn an_upgrade_goes_over_http1_even_where_the_pool_speaks_http2() {
    let origin = Origin::start_on("a", "127.0.0.1:0", Speaks::Http1);
    let proxy = Proxy::start(&plain(&[&origin], "[pool.http]\nversion = \"2\"\n[pool.health]\ntype = \"off\"\n"));
    block_on(async {
        let (mut socket, _) = open(proxy.address("main"), None).await?;
        socket.send(Message::text("hello")).await.map_err(|error| error.to_string())?;
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_switch_that_nobody_asked_for_is_no_answer_and_h2c_is_not_passed_on() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], "[pool.health]\ntype = \"off\"\n"));
    assert_eq!(proxy.client().get("/switch").status, 502);
    let answer = raw(
        proxy.address("main"),
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!((origin.last().header("upgrade").as_str(), origin.last().header("http2-settings").as_str()), ("", ""));
}

#[test]
fn a_silent_tunnel_ends_at_its_time() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], "[pool.timeouts]\ntunnel_idle = \"300ms\"\n"));
    block_on(async {
        let (mut socket, _) = open(proxy.address("main"), None).await?;
        socket.send(Message::text("hello")).await.map_err(|error| error.to_string())?;
        assert!(socket.next().await.unwrap().is_ok());
        assert_eq!(until_closed(&mut socket).await?, (0, Some(1001)), "then the connection ends");
        Ok(())
    })
    .unwrap();
    eventually("it is counted", || proxy.metric("steadfast_limit_reached_total", &["limit=\"tunnel_idle\""]) == 1.0);
}

/// The kit's client blocks, and may not on a thread that runs tasks.
fn elsewhere<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(act).join().unwrap())
}

/// What a WebSocket gets until it ends: the messages, and the code of its Close.
async fn until_closed(socket: &mut WebSocketStream<tokio::net::TcpStream>) -> Result<(usize, Option<u16>), String> {
    let mut messages = 0;
    loop {
        match socket.next().await {
            Some(Ok(Message::Close(close))) => return Ok((messages, close.map(|close| close.code.into()))),
            Some(Ok(_)) => messages += 1,
            Some(Err(error)) => return Err(format!("after {messages} messages: {error}")),
            None => return Ok((messages, None)),
        }
    }
}

#[test]
fn at_a_drains_deadline_web_sockets_and_event_streams_end_as_they_should() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let address = proxy.address("main");
    let events =
        std::thread::spawn(move || raw(address, b"GET /events HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
    block_on(async {
        let (mut silent, _) = open(address, None).await?;
        let (mut busy, _) = open(address, None).await?;
        elsewhere(|| {
            let shown = |kind: &str| proxy.metric("steadfast_long_lived", &[&format!("kind=\"{kind}\"")]);
            eventually("they are shown", || (shown("tunnel"), shown("event_stream")) == (2.0, 1.0));
            let pool = proxy.admin("/api/v1/pools/shop").unwrap();
            assert!(pool.contains("\"long_lived\":{\"tunnel\":2,\"event_stream\":1}"), "{pool}");
        });
        // In the middle of messages of many frames' length, which the client is slow to read.
        for _ in 0..8 {
            busy.feed(Message::binary(vec![7; 300_000])).await.map_err(|error| error.to_string())?;
        }
        let sending = busy.flush();
        elsewhere(|| drain(&proxy, "1ms"));
        let _ = sending.await;
        assert_eq!(until_closed(&mut silent).await?, (0, Some(1001)));
        let (messages, code) = until_closed(&mut busy).await?;
        assert!(messages <= 8 && code == Some(1001), "whole messages, then the Close: {messages}, {code:?}");
        Ok(())
    })
    .unwrap();
    eventually("the server was told as well", || origin.goodbyes() == [1001, 1001]);
    let events = events.join().unwrap();
    assert!(events.contains("data: 0") && events.ends_with("\r\n0\r\n\r\n<closed>"), "the body is whole: {events}");
    eventually("it is safe to stop", || {
        proxy.admin("/api/v1/pools/shop").is_some_and(|pool| pool.contains("\"safe_to_stop\":true"))
    });
    let drained = || proxy.access_log().iter().filter(|line| line["error"] == "drained").count();
    eventually("the log says why", || drained() == 3);
}

#[test]
fn a_web_socket_outlives_a_drain_without_a_deadline_and_a_shutdown_says_goodbye() {
    let origin = Origin::start("a");
    let process = "[process]\nworkers = 2\nmax_connections = 100\nshutdown_grace = \"500ms\"\n";
    let mut proxy = Proxy::start(&format!("{process}{}", plain(&[&origin], "")));
    block_on(async {
        let (mut socket, _) = open(proxy.address("main"), None).await?;
        elsewhere(|| drain(&proxy, "1h"));
        for _ in 0..3 {
            socket.send(Message::text("still here")).await.map_err(|error| error.to_string())?;
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("still here"));
        }
        proxy.signal("TERM");
        assert_eq!(until_closed(&mut socket).await?, (0, Some(1001)));
        Ok(())
    })
    .unwrap();
    assert_eq!(proxy.wait().code(), Some(0));
}

fn drain(proxy: &Proxy, deadline: &str) {
    let mut admin = Client::plain(proxy.admin_address()).header("Content-Type", "application/json");
    let reply = admin.post("/api/v1/pools/shop/servers/a/drain", format!("{{\"deadline\":\"{deadline}\"}}"));
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[test]
fn an_event_stream_that_is_not_read_does_not_hold_up_a_drain() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let mut stream = std::net::TcpStream::connect(proxy.address("main")).unwrap();
    std::io::Write::write_all(&mut stream, b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    eventually("it flows", || proxy.metric("steadfast_long_lived", &["kind=\"event_stream\""]) == 1.0);
    drain(&proxy, "1ms");
    eventually("it is safe to stop, though nobody reads", || {
        proxy.admin("/api/v1/pools/shop").is_some_and(|pool| pool.contains("\"safe_to_stop\":true"))
    });
    assert_eq!(proxy.metric("steadfast_in_flight", &[]), 0.0);
    eventually("the log says why", || proxy.access_log().iter().any(|line| line["error"] == "drained"));
    drop(stream);
}

#[test]
fn a_server_that_is_named_again_still_knows_what_it_carries() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a], ""));
    block_on(async {
        let (mut socket, _) = open(proxy.address("main"), None).await?;
        let reload = |origins: &[&Origin]| elsewhere(|| assert!(proxy.reload(&plain(origins, ""))));
        reload(&[&b]);
        reload(&[&b, &a]);
        elsewhere(|| {
            let pool = proxy.admin("/api/v1/pools/shop").unwrap();
            assert!(pool.contains("\"long_lived\":{\"tunnel\":1"), "{pool}");
            drain(&proxy, "1ms");
        });
        assert_eq!(until_closed(&mut socket).await?, (0, Some(1001)));
        Ok(())
    })
    .unwrap();
}
