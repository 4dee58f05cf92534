//! Sessions of several proxies over one Redis: nothing is lost, nothing revived, nothing can be read.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body_util::Full;
use serde_json::Value;

use crate::support::client::{Connection, Reply, block_on};
use crate::support::redis::Redis;
use crate::support::{Client, Origin, Proxy, eventually, servers};

const COOKIE: &str = "session";
const KEY: &str = "sfk1_MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA";

/// A proxy over a Redis. Plain http with the host localhost: what is tested here lies behind TLS.
fn proxy(redis: &Redis, origins: &[&Origin], store: &str, pool: &str) -> Proxy {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ring.key"), KEY).unwrap();
    let configuration = format!(
        "[keys]\nring = [\"file:ring.key\"]\n[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n\
         [[route]]\npool = \"shop\"\n[[store]]\nname = \"main\"\nkind = \"redis\"\nurl = \"{}\"\n{store}\n\
         [[pool]]\nname = \"shop\"\nmode = \"shared\"\n{}[pool.shared]\nstore = \"main\"\n{pool}",
        redis.url(),
        servers(origins)
    );
    Proxy::start_in(directory, &configuration)
}

fn client(proxy: &Proxy) -> Client {
    proxy.client().host("localhost")
}

fn say(client: &mut Client, lines: &str) -> Reply {
    client.post("/say", lines.to_owned())
}

fn told(client: &mut Client) -> Value {
    let reply = say(client, "");
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

async fn send(connection: &mut Connection, client: &Client, path: &str, body: &str) -> Result<Reply, String> {
    let request = client.request(Method::POST, path).body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    connection.send(request).await
}

#[test]
fn twenty_thousand_increments_by_64_clients_over_two_proxies_are_all_there() {
    const CLIENTS: usize = 64;
    const COUNTERS: usize = 16;
    const INCREMENTS: usize = 20_000;
    let redis = Redis::start();
    let origins = ["a", "b", "c"].map(Origin::start);
    let proxies = [(); 2].map(|()| proxy(&redis, &origins.each_ref(), "timeout = \"10s\"\nconnect = \"10s\"", ""));
    let mut users: Vec<Client> = (0..COUNTERS).map(|at| client(&proxies[at % 2])).collect();
    for user in &mut users {
        assert_eq!(say(user, "op login;sub=\"counter\"\npatch {\"count\":0}").status, 200);
    }
    let (left, conflicts) = (AtomicUsize::new(INCREMENTS), AtomicUsize::new(0));
    let counted: Vec<AtomicUsize> = (0..COUNTERS).map(|_| AtomicUsize::new(0)).collect();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (left, conflicts, counted) = (&left, &conflicts, &counted[number % COUNTERS]);
            let mut user = client(&proxies[number / COUNTERS % 2]);
            user.cookies = users[number % COUNTERS].cookies.clone();
            scope.spawn(move || {
                block_on(async {
                    let mut connection = user.connect().await?;
                    let take = |left: usize| left.checked_sub(1);
                    while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
                        loop {
                            let reply = send(&mut connection, &user, "/increment", "").await?;
                            match reply.status {
                                200 => break,
                                409 => conflicts.fetch_add(1, Ordering::SeqCst),
                                other => return Err(format!("{other}: {}", reply.text())),
                            };
                        }
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                })
                .unwrap();
            });
        }
    });
    let acknowledged: usize = counted.iter().map(|counted| counted.load(Ordering::SeqCst)).sum();
    assert_eq!(acknowledged, INCREMENTS);
    for (user, counted) in users.iter_mut().zip(&counted) {
        assert_eq!(told(user)["d"]["count"], counted.load(Ordering::SeqCst), "every acknowledged increment is there");
    }
    println!("{acknowledged} increments, {} conflicts", conflicts.load(Ordering::SeqCst));
    assert!(conflicts.load(Ordering::SeqCst) > 0, "there was something to conflict about");
}

#[test]
fn an_acknowledged_key_vanishes_only_by_a_later_write_of_that_key() {
    const WRITERS: usize = 8;
    const WRITES: usize = 150;
    let redis = Redis::start();
    let origins = ["a", "b", "c"].map(Origin::start);
    let proxies = [(); 2].map(|()| proxy(&redis, &origins.each_ref(), "timeout = \"10s\"", ""));
    let mut user = client(&proxies[0]);
    say(&mut user, "op login;sub=\"alice\"");
    let last: Vec<usize> = std::thread::scope(|scope| {
        let writing: Vec<_> = (0..WRITERS)
            .map(|number| {
                let mut own = client(&proxies[number % 2]);
                own.cookies = user.cookies.clone();
                scope.spawn(move || {
                    let mut last = 0;
                    for value in 1..=WRITES {
                        // Nobody else writes this key; all write the session.
                        let reply = say(&mut own, &format!("patch {{\"k{number}\":{value},\"everybody\":{number}}}"));
                        match reply.status {
                            200 => last = value,
                            // Others kept being ahead: it was not acknowledged, and nothing of it was written.
                            409 => {}
                            other => panic!("{other}: {}", reply.text()),
                        }
                    }
                    last
                })
            })
            .collect();
        writing.into_iter().map(|writing| writing.join().unwrap()).collect()
    });
    let data = told(&mut user)["d"].clone();
    for (number, last) in last.iter().enumerate() {
        assert_eq!(data[format!("k{number}")], *last, "{data}");
    }
}

#[test]
fn neither_the_store_nor_the_logs_have_anything_that_can_be_used() {
    let redis = Redis::start();
    let origin = Origin::start("a");
    let proxy = proxy(&redis, &[&origin], "", "");
    let mut secrets: Vec<String> = vec!["canary-in-the-data".into(), "canary-subject".into()];
    for number in 0..20 {
        let mut user = client(&proxy);
        say(&mut user, "patch {\"card\":\"canary-in-the-data\"}");
        secrets.extend(user.cookies.values().cloned());
        say(&mut user, &format!("op login;sub=\"canary-subject-{number}\""));
        secrets.extend(user.cookies.values().cloned());
        say(&mut user, "op step-up;acr=\"mfa\"");
        secrets.extend(user.cookies.values().cloned());
        if number % 2 == 0 {
            say(&mut user, "op logout");
        }
    }
    for seen in origin.seen() {
        secrets.extend(["steadfast-session", "steadfast-session-request"].map(|name| seen.header(name)));
    }
    secrets.retain(|secret| !secret.is_empty());
    eventually("the log has all", || proxy.access_log().len() >= 20 * 3 + 10);
    let log: String = proxy.access_log().iter().map(Value::to_string).chain([proxy.log()]).collect();
    let mut everything = redis.dump();
    for key in redis.cli(&["--scan"]).lines() {
        everything.extend(key.as_bytes());
        everything.extend(redis.cli(&["--no-raw", "get", key]).as_bytes());
    }
    assert!(everything.len() > 10_000, "there is something to look through");
    let raw: Vec<Vec<u8>> = secrets
        .iter()
        .filter_map(|secret| data_encoding::BASE64URL_NOPAD.decode(secret.as_bytes()).ok())
        .map(|bytes| bytes[bytes.len().saturating_sub(24)..].to_vec())
        .filter(|bytes| bytes.len() >= 16)
        .collect();
    for secret in secrets.iter().map(|secret| secret.as_bytes()).chain(raw.iter().map(Vec::as_slice)) {
        let name = String::from_utf8_lossy(secret);
        assert!(memchr::memmem::find(&everything, secret).is_none(), "{name} is in the store");
        assert!(memchr::memmem::find(log.as_bytes(), secret).is_none(), "{name} is in the logs");
    }
}

#[test]
fn a_store_that_is_away_costs_answers_and_no_sessions() {
    let mut redis = Redis::start();
    let origins = ["a", "b"].map(Origin::start);
    let proxy = proxy(&redis, &origins.each_ref(), "", "");
    let mut users: Vec<Client> = (0..8).map(|_| client(&proxy)).collect();
    for (number, user) in users.iter_mut().enumerate() {
        say(user, &format!("op login;sub=\"user-{number}\"\npatch {{\"n\":{number}}}"));
    }
    let mut gone = client(&proxy);
    say(&mut gone, "op login;sub=\"gone\"");
    let mut copy = gone.clone();
    let over = AtomicBool::new(false);
    let slowest = std::thread::scope(|scope| {
        let over = &over;
        let asking: Vec<_> = users
            .iter()
            .cloned()
            .map(|mut user| {
                scope.spawn(move || {
                    let mut slowest = Duration::ZERO;
                    let mut counts = [0, 0];
                    while !over.load(Ordering::SeqCst) {
                        let begun = Instant::now();
                        let reply = say(&mut user, "");
                        assert!(reply.set_cookies().is_empty(), "no cookie is touched: {:?}", reply.set_cookies());
                        match reply.status {
                            200 => {
                                let claims: Value = serde_json::from_slice(&reply.body).unwrap();
                                assert_eq!(claims["st"], "auth", "a session that is there is never taken for none");
                                counts[0] += 1;
                            }
                            503 => {
                                assert_eq!(reply.header("retry-after"), "1");
                                slowest = slowest.max(begun.elapsed());
                                counts[1] += 1;
                            }
                            other => panic!("{other}: {}", reply.text()),
                        }
                    }
                    (slowest, counts)
                })
            })
            .collect();
        let mut stranger = client(&proxy);
        eventually("all is well first", || stranger.get("/").status == 200);
        redis.stop();
        eventually("requests with a session are told", || copy.get("/").status == 503);
        for _ in 0..20 {
            assert_eq!(stranger.get("/").status, 200, "who has no session is served");
        }
        let reply = say(&mut stranger, "patch {\"cart\":1}");
        assert_eq!((reply.status, reply.header("retry-after")), (503, String::new()), "{}", reply.text());
        redis.start_again();
        eventually("sessions are back", || copy.get("/").status == 200);
        over.store(true, Ordering::SeqCst);
        let asked: Vec<_> = asking.into_iter().map(|asking| asking.join().unwrap()).collect();
        assert!(asked.iter().all(|(_, [served, refused])| *served > 0 && *refused > 0), "{asked:?}");
        asked.into_iter().map(|(slowest, _)| slowest).max().unwrap()
    });
    println!("the slowest refusal took {slowest:?}");
    let is_up = || proxy.metric("steadfast_store_up", &["store=\"main\""]) > 0.0;
    redis.stop();
    eventually("the store is known to be away", || copy.get("/").status == 503 && !is_up());
    redis.start_again();
    eventually("it is known to be back although nobody asks", is_up);
    for (number, user) in users.iter_mut().enumerate() {
        let claims = told(user);
        assert_eq!((&claims["sub"], &claims["d"]["n"]), (&format!("user-{number}").into(), &number.into()));
    }
}

#[test]
fn a_logout_while_the_store_is_away_counts_here_at_once_and_everywhere_when_it_is_back() {
    let mut redis = Redis::start();
    let origin = Origin::start("a");
    let proxies = [(); 2].map(|()| proxy(&redis, &[&origin], "", ""));
    let mut user = client(&proxies[0]);
    say(&mut user, "op login;sub=\"alice\"");
    let cookie = user.cookies[COOKIE].clone();
    // It is on its way to a server when the store goes.
    let slow = std::thread::spawn({
        let mut user = user.clone();
        move || user.post("/say-later", "op logout".to_owned())
    });
    eventually("the server has it", || origin.seen().iter().any(|seen| seen.target == "/say-later"));
    redis.stop();
    origin.go_on();
    let reply = slow.join().unwrap();
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(reply.set_cookies()[0].contains("Max-Age=0"), "{:?}", reply.set_cookies());
    assert!(reply.text().contains("\"applied\":\"unknown\""), "{}", reply.text());
    redis.start_again();
    for proxy in &proxies {
        let mut user = client(proxy);
        user.cookies.insert(COOKIE.into(), cookie.clone());
        eventually("it is over", || {
            let reply = say(&mut user, "");
            assert!(reply.status == 503 || reply.status == 200);
            reply.status == 200 && serde_json::from_slice::<Value>(&reply.body).unwrap()["st"] == "none"
        });
    }
}

#[test]
fn a_logout_counts_on_the_other_proxy_within_its_near_cache_and_closes_what_is_open_there() {
    let redis = Redis::start();
    let origin = Origin::start("a");
    let proxies = [(); 2].map(|()| proxy(&redis, &[&origin], "near_cache = \"1s\"", ""));
    let mut user = client(&proxies[0]);
    say(&mut user, "op login;sub=\"alice\"");
    let mut elsewhere = client(&proxies[1]);
    elsewhere.cookies = user.cookies.clone();
    assert_eq!(told(&mut elsewhere)["st"], "auth");
    let watching = {
        let elsewhere = elsewhere.clone();
        std::thread::spawn(move || {
            block_on(async move {
                let mut connection = elsewhere.connect().await?;
                let request = elsewhere.request(Method::GET, "/events").body(Default::default()).unwrap();
                connection.send(request).await
            })
        })
    };
    let socket = {
        let (address, cookie) = (proxies[1].address("main"), elsewhere.cookies[COOKIE].clone());
        std::thread::spawn(move || web_socket_until_closed(address, &cookie))
    };
    eventually("both are open", || proxies[1].metric("steadfast_long_lived", &[]) == 2.0);
    assert_eq!(told(&mut elsewhere)["st"], "auth", "it is in the near cache");
    let logout = Instant::now();
    assert_eq!(say(&mut user, "op logout").status, 200);
    let mut took = Duration::ZERO;
    eventually("the other proxy knows", || {
        took = logout.elapsed();
        told(&mut elsewhere)["st"] == "none"
    });
    println!("the logout was effective on the other proxy after {took:?}");
    watching.join().unwrap().expect("the event stream ends well");
    assert_eq!(socket.join().unwrap(), Some(1001), "the WebSocket is closed as its protocol has it");
}

/// The code of the Close that comes.
fn web_socket_until_closed(address: std::net::SocketAddr, cookie: &str) -> Option<u16> {
    use futures_util::StreamExt;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    block_on(async move {
        let mut request = format!("ws://{address}/ws").into_client_request().unwrap();
        request.headers_mut().insert("host", "localhost".parse().unwrap());
        request.headers_mut().insert("origin", "http://localhost".parse().unwrap());
        request.headers_mut().insert("cookie", format!("{COOKIE}={cookie}").parse().unwrap());
        let stream = tokio::net::TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let opened = tokio_tungstenite::client_async(request, stream).await.map_err(|error| error.to_string())?;
        let mut socket = opened.0;
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Close(close) = message {
                return Ok(close.map(|close| close.code.into()));
            }
        }
        Ok(None)
    })
    .unwrap()
}
