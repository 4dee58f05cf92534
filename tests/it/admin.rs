//! Who may use the admin surface: token, TLS, logins, and the stream for dashboards.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;

use crate::support::certs::Authority;
use crate::support::proxy::BINARY;
use crate::support::{Client, Origin, PATIENCE, Proxy, eventually, plain};

const TOKEN: &str = "a token of more than sixteen bytes";
const KEYS: &str = "metrics = \"127.0.0.1:0\"\ntoken = \"file:admin.token\"\n";
const PROCESS: &str = "[process]\nworkers = 1\nmax_connections = 100\nwatch = false\n";

fn with_token(origin: &Origin, more: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("admin.token"), format!("{TOKEN}\n")).unwrap();
    (directory, format!("{KEYS}{more}{PROCESS}{}", plain(&[origin], "")))
}

fn ctl(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(BINARY).arg("ctl").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap(), text)
}

#[test]
fn with_a_token_only_who_knows_it_is_let_in_and_health_is_for_all() {
    let origin = Origin::start("a");
    let (directory, configuration) = with_token(&origin, "");
    let proxy = Proxy::start_in(directory, &configuration);
    let stranger = Client::plain(proxy.admin_address());
    for path in ["/metrics", "/api/v1/pools", "/api/v1/stream"] {
        let refused = stranger.clone().get(path);
        assert_eq!((refused.status, refused.header("www-authenticate").as_str()), (401, "Bearer realm=\"steadfast\""));
    }
    assert_eq!(stranger.clone().header("Authorization", "Bearer wrong").get("/metrics").status, 401);
    assert_eq!(stranger.clone().get("/healthz").status, 200);
    let operator = stranger.clone().header("Authorization", &format!("Bearer {TOKEN}"));
    assert_eq!(operator.clone().get("/api/v1/pools").status, 200);
    assert_eq!(operator.clone().get("/metrics").status, 200);
    assert_eq!(proxy.metric("steadfast_protect_total", &["rule=\"admin\"", "reason=\"token\""]), 4.0);
    let address = proxy.admin_address().to_string();
    assert_eq!(ctl(&["--address", &address, "pools"]).0, 1);
    let (status, text) = ctl(&["--address", &address, "--token", TOKEN, "pools"]);
    assert_eq!((status, text.contains("shop")), (0, true), "{text}");
    let file = format!("file:{}", proxy.path().join("admin.token").display());
    assert_eq!(ctl(&["--address", &address, "--token", &file, "pools"]).0, 0);
    // A new token counts after a reload, and the old one no more.
    std::fs::write(proxy.path().join("admin.token"), "another token of many bytes").unwrap();
    assert!(proxy.reload(&configuration));
    assert_eq!(operator.clone().get("/api/v1/pools").status, 401);
}

#[test]
fn a_dashboard_logs_in_with_the_token_and_other_origins_do_not_drive_it() {
    let origin = Origin::start("a");
    let (directory, configuration) = with_token(&origin, "");
    let proxy = Proxy::start_in(directory, &configuration);
    let mut browser = Client::plain(proxy.admin_address()).header("Content-Type", "application/json");
    let login = |browser: &mut Client, token: &str| browser.post("/api/v1/login", format!("{{\"token\":\"{token}\"}}"));
    assert_eq!(login(&mut browser, "wrong").status, 401);
    let logged_in = login(&mut browser, TOKEN);
    assert_eq!(logged_in.status, 200);
    let cookie = &logged_in.set_cookies()[0];
    assert!(cookie.starts_with("__Host-sf-admin="), "{cookie}");
    for flag in ["; Path=/", "; Secure", "; HttpOnly", "; SameSite=Strict"] {
        assert!(cookie.contains(flag), "{flag} in {cookie}");
    }
    assert!(!cookie.contains(TOKEN));
    assert_eq!(browser.get("/api/v1/pools").status, 200);
    assert_eq!(browser.post("/api/v1/pools/shop/servers/a/drain", "{}").status, 200);
    let mut elsewhere = browser.clone().header("Origin", "https://attacker.test");
    assert_eq!(elsewhere.post("/api/v1/pools/shop/servers/a/maint", "{}").status, 403);
    assert_eq!(browser.clone().host("attacker.test").get("/api/v1/pools").status, 403, "a name that was rebound");
    browser.cookies.values_mut().for_each(|value| value.replace_range(30..34, "AAAA"));
    assert_eq!(browser.get("/api/v1/pools").status, 401, "made up");
}

#[test]
fn over_tls_ctl_believes_the_configured_certificate_and_no_other() {
    let origin = Origin::start("a");
    let (directory, configuration) = with_token(&origin, "tls = { cert = \"admin.pem\", key = \"admin.key\" }\n");
    let authority = Authority::new();
    authority.issue(&["admin.test", "localhost"]).write(directory.path(), "admin");
    let proxy = Proxy::start_in(directory, &configuration);
    let address = proxy.admin_address();
    let bearer = format!("Bearer {TOKEN}");
    let mut browser = Client::tls(address).host("admin.test").header("Authorization", &bearer);
    assert_eq!(browser.get("/api/v1/pools").status, 200, "the certificate's own name is ours");
    assert!(Client::plain(address).try_get("/healthz").is_err(), "plain HTTP is no way in");
    // The file says port 0 here, so ctl is shown one that says which it became.
    let file = proxy.path().join("steadfast.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("127.0.0.1:0", &address.to_string(), 1)).unwrap();
    let (status, text) = ctl(&["--config", file.to_str().unwrap(), "status"]);
    assert_eq!((status, text.contains("shop")), (0, true), "{text}");
    authority.issue(&["admin.test", "localhost"]).write(proxy.path(), "admin");
    let (status, text) = ctl(&["--config", file.to_str().unwrap(), "status"]);
    assert_eq!(status, 1, "another certificate of the same name: {text}");
    let url = format!("https://localhost:{}", address.port());
    let (status, text) = ctl(&["--address", &url, "--token", TOKEN, "status"]);
    assert_eq!(status, 1, "nobody vouches for the certificate: {text}");
    let ca = proxy.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let by = |url: &str| ctl(&["--address", url, "--ca", ca.to_str().unwrap(), "--token", TOKEN, "status"]);
    assert_eq!(by(&url).0, 0);
    let (status, text) = by(&format!("https://{address}"));
    assert!(status == 1 && text.contains("not valid for name"), "{text}");
}

#[test]
fn the_stream_brings_a_snapshot_a_second() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let mut stream = TcpStream::connect(proxy.admin_address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let lines = BufReader::new(&stream).lines().map(Result::unwrap);
    let events = lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_owned));
    let events = events.map(|event| serde_json::from_str::<serde_json::Value>(&event).unwrap());
    let mut times = Vec::new();
    for event in events.take(3) {
        assert_eq!(event["pools"][0]["servers"][0]["name"], "a");
        times.push(event["time"].as_f64().unwrap());
    }
    assert!(times.is_sorted() && times[2] - times[0] > 1.5, "{times:?}");
    // Whoever forgets its streams shuts out nobody from the rest.
    let open: Vec<TcpStream> = (0..31)
        .map(|_| {
            let mut other = TcpStream::connect(proxy.admin_address()).unwrap();
            other.write_all(b"GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut head = String::new();
            BufReader::new(&other).read_line(&mut head).unwrap();
            assert!(head.contains("200"), "{head}");
            other
        })
        .collect();
    assert_eq!(Client::plain(proxy.admin_address()).get("/api/v1/stream").status, 503);
    assert_eq!(proxy.metric("steadfast_limit_reached_total", &["limit=\"admin_streams\""]), 1.0);
    drop((open, stream));
    eventually("their places are free again", || {
        let mut again = TcpStream::connect(proxy.admin_address()).unwrap();
        again.write_all(b"GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut head = String::new();
        BufReader::new(&again).read_line(&mut head).unwrap();
        head.contains("200")
    });
}

#[test]
fn a_reload_that_moves_the_admin_address_takes_neither_token_nor_tls_from_the_old_one() {
    let origin = Origin::start("a");
    let (directory, configuration) = with_token(&origin, "");
    let proxy = Proxy::start_in(directory, &configuration);
    let elsewhere = configuration.replace(KEYS, "");
    assert!(proxy.reload(&elsewhere));
    assert!(proxy.logged("a change of this takes a restart").is_some());
    let stranger = Client::plain(proxy.admin_address());
    assert_eq!(stranger.clone().get("/api/v1/pools").status, 401);
    assert_eq!(stranger.header("Authorization", &format!("Bearer {TOKEN}")).get("/api/v1/pools").status, 200);
}

#[test]
fn whoever_only_holds_places_shuts_out_nobody() {
    let origin = Origin::start("a");
    let (directory, configuration) = with_token(&origin, "");
    let proxy = Proxy::start_in(directory, &configuration);
    let operator = Client::plain(proxy.admin_address()).header("Authorization", &format!("Bearer {TOKEN}"));
    let mut stream = TcpStream::connect(proxy.admin_address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n").unwrap();
    let mut lines = BufReader::new(&stream).lines();
    assert!(lines.next().unwrap().unwrap().contains("200"));
    // Silent ones, half logins, and those that ask and do not read.
    let squatters: Vec<TcpStream> = (0..150)
        .map(|number| {
            let mut squatter = TcpStream::connect(proxy.admin_address()).unwrap();
            let login = "POST /api/v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n".to_owned();
            let asks = ["".to_owned(), login, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(50)];
            // Who was made to go may notice.
            let _ = squatter.write_all(asks[number % 3].as_bytes());
            squatter
        })
        .collect();
    for path in ["/healthz", "/metrics", "/api/v1/pools"] {
        assert_eq!(operator.clone().get(path).status, 200);
    }
    assert!(lines.any(|line| line.unwrap().starts_with("data: ")), "the dashboard was left alone");
    assert!(proxy.metric("steadfast_limit_reached_total", &["limit=\"admin_connections\""]) >= 80.0);
    drop(squatters);
}

#[test]
fn the_login_never_reaches_a_server() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let mut client = proxy.client().header("Cookie", "a=1; __Host-sf-admin=secret; b=2");
    assert_eq!(client.get("/").status, 200);
    assert_eq!(origin.last().header("cookie"), "a=1; b=2");
}
