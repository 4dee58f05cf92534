//! WebSockets and other upgrades.

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::client::{block_on, raw};
use crate::support::origin::Speaks;
use crate::support::{Origin, Proxy, eventually, plain};

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
        assert_eq!(in_flight(&proxy).await, 1.0);
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
        assert!(!matches!(socket.next().await, Some(Ok(Message::Text(_)))), "then the connection ends");
        Ok(())
    })
    .unwrap();
}

/// The kit's client blocks, and may not on a thread that runs tasks.
async fn in_flight(proxy: &Proxy) -> f64 {
    std::thread::scope(|scope| scope.spawn(|| proxy.metric("steadfast_in_flight", &[])).join().unwrap())
}
