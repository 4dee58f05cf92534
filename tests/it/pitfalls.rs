//! What sessions have come to grief over elsewhere: one test per pitfall, over real sockets.
//!
//! Where a topic's own tests have the plain case, the one here is the sharp one: other runtimes, other orders, a store that
//! is written to by somebody else.

use std::collections::{BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use http::{HeaderName, HeaderValue, Method, header};
use http_body_util::Full;
use serde_json::{Map, Value, json};

use crate::support::client::{Connection, Reply, raw};
use crate::support::origin::Speaks;
use crate::support::proxy::{BINARY, signal};
use crate::support::redis::Redis;
use crate::support::tokens::{ISSUER, Issuer, key_set};
use crate::support::{Client, Origin, PATIENCE, Proxy, eventually, plain, server, servers, tls};

const KEY: &str = "sfk1_MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA";
/// The session cookie over plain http, which only localhost has.
const COOKIE: &str = "session";
const LISTENER: &str = "[keys]\nring = [\"file:ring.key\"]\n[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n";

/// A shared pool; `store` goes below its store, `pool` below `[pool.shared]`.
fn kept(servers: &str, store: &str, pool: &str) -> String {
    format!(
        "{LISTENER}[[route]]\npool = \"shop\"\n[[route]]\npath = \"/account\"\npool = \"shop\"\nsession = \"required\"\n\
         login_url = \"/login\"\n[[store]]\nname = \"main\"\n{store}[[pool]]\nname = \"shop\"\nmode = \"shared\"\n\
         {servers}[pool.outlier]\nconsecutive_failures = 100000\n[pool.shared]\nstore = \"main\"\n{pool}"
    )
}

/// A store for which a busy machine is no reason to give up.
fn in_redis(port: u16) -> String {
    format!("kind = \"redis\"\nurl = \"redis://127.0.0.1:{port}\"\nconnect = \"20s\"\ntimeout = \"20s\"\n")
}

fn over_tls(configuration: &str) -> String {
    configuration.replacen("[[route]]", "[listener.tls]\nself_signed = [\"localhost\"]\n[[route]]", 1)
}

/// All proxies have the same key.
fn start(configuration: &str) -> Proxy {
    let directory = tempfile::tempdir().unwrap();
    write_ring(directory.path());
    Proxy::start_in(directory, configuration)
}

fn write_ring(directory: &Path) {
    std::fs::write(directory.join("ring.key"), KEY).unwrap();
}

fn user(proxy: &Proxy) -> Client {
    proxy.client().host("localhost")
}

/// Somebody with the same cookies, at this proxy.
fn copy_of(user: &Client, proxy: &Proxy) -> Client {
    let mut copy = self::user(proxy);
    copy.cookies.clone_from(&user.cookies);
    copy
}

fn say(user: &mut Client, lines: &str) -> Reply {
    user.post("/say", lines.to_owned())
}

/// What the server was told of the session.
#[track_caller]
fn claims(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

#[track_caller]
fn told(user: &mut Client) -> Value {
    claims(&say(user, ""))
}

/// Somebody who has logged in.
fn logged_in(proxy: &Proxy, subject: &str, data: &str) -> Client {
    let mut user = user(proxy);
    let reply = say(&mut user, &format!("op login;sub=\"{subject}\"\npatch {data}"));
    assert_eq!((reply.status, reply.set_cookies().len()), (200, 1), "{}", reply.text());
    user
}

/// A request that waits at the server, which has been told of the session as it is now; `go_on` lets it go on.
fn later(origin: &Origin, user: &Client, says: &str) -> JoinHandle<Reply> {
    let before = origin.seen().len();
    let (mut user, says) = (user.clone(), says.to_owned());
    let waiting = std::thread::spawn(move || user.post("/say-later", says));
    eventually("the server has it", || origin.seen().len() > before);
    waiting
}

/// The values of the session cookies that a response sets.
fn given(reply: &Reply) -> Vec<String> {
    let lines = reply.set_cookies();
    let values = lines.iter().filter_map(|line| line.strip_prefix("session=")?.split(';').next().map(str::to_owned));
    values.collect()
}

fn events(proxy: &Proxy, event: &str) -> f64 {
    proxy.metric("steadfast_session_events_total", &[&format!("event=\"{event}\"")])
}

/// A port that is served by a thread for each connection, until this is dropped.
struct Listening {
    port: u16,
    is_over: Arc<AtomicBool>,
}

impl Listening {
    fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listening = Listening { port: listener.local_addr().unwrap().port(), is_over: Arc::default() };
        let (is_over, serve) = (Arc::clone(&listening.is_over), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        listening
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // It waits for the next one.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// A server that answers with the bytes it was given, as they are: `NONCE` stands for what the request was given to speak
/// with, `OLD` for what the request before it was. With none left it tells what it was told of the session.
struct Scripted {
    listening: Listening,
    script: Arc<Script>,
}

#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Vec<u8>>>,
    nonce: Mutex<String>,
    seen: Mutex<Vec<String>>,
}

impl Scripted {
    fn start() -> Self {
        let script = Arc::<Script>::default();
        let of_server = Arc::clone(&script);
        Scripted { listening: Listening::start(move |stream| of_server.serve(stream)), script }
    }

    /// As configuration.
    fn server(&self) -> String {
        server("a", &format!("127.0.0.1:{}", self.listening.port))
    }

    fn answers_next(&self, answer: impl Into<Vec<u8>>) {
        self.script.answers.lock().unwrap().push_back(answer.into());
    }

    /// The last request, to the end of its trailers.
    fn last(&self) -> String {
        self.script.seen.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

impl Script {
    fn serve(&self, mut stream: TcpStream) {
        let mut ahead = Vec::new();
        while let Some(request) = next_request(&mut stream, &mut ahead) {
            if stream.write_all(&self.answer(request)).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: String) -> Vec<u8> {
        let nonce = field(&request, "steadfast-session-request");
        let old = std::mem::replace(&mut *self.nonce.lock().unwrap(), nonce.clone());
        let answer = self.answers.lock().unwrap().pop_front();
        let answer = answer.unwrap_or_else(|| what_was_told(&request));
        self.seen.lock().unwrap().push(request);
        replaced(&replaced(&answer, "OLD", &old), "NONCE", &nonce)
    }
}

fn next_request(stream: &mut TcpStream, ahead: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = end_of_request(ahead) {
            let rest = ahead.split_off(end);
            return Some(String::from_utf8_lossy(&std::mem::replace(ahead, rest)).into_owned());
        }
        let mut buffer = [0; 16_384];
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        ahead.extend_from_slice(&buffer[..read]);
    }
}

/// A body comes in chunks or not at all.
fn end_of_request(text: &[u8]) -> Option<usize> {
    let head = memchr::memmem::find(text, b"\r\n\r\n")? + 4;
    if memchr::memmem::find(&text[..head], b"transfer-encoding: chunked").is_none() {
        return Some(head);
    }
    let last_chunk = head + memchr::memmem::find(&text[head..], b"\r\n0\r\n")? + 3;
    Some(last_chunk + memchr::memmem::find(&text[last_chunk..], b"\r\n\r\n")? + 4)
}

fn field(request: &str, name: &str) -> String {
    let named =
        |line: &str| line.split_once(": ").filter(|(other, _)| *other == name).map(|(_, value)| value.to_owned());
    request.lines().find_map(named).unwrap_or_default()
}

fn what_was_told(request: &str) -> Vec<u8> {
    let token = field(request, "steadfast-session");
    let payload = token.split('.').nth(1).and_then(|payload| BASE64URL_NOPAD.decode(payload.as_bytes()).ok());
    let payload = payload.unwrap_or_default();
    [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", payload.len()).into_bytes(), payload].concat()
}

fn replaced(text: &[u8], word: &str, with: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some(at) = memchr::memmem::find(rest, word.as_bytes()) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(with.as_bytes());
        rest = &rest[at + word.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// What a command to Redis is answered with, byte by byte; a text without its length.
fn command(port: u16, words: &[&[u8]]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut said = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        said.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        said.extend_from_slice(word);
        said.extend_from_slice(b"\r\n");
    }
    stream.write_all(&said).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let Some(length) = line.strip_prefix('$').and_then(|length| length.trim().parse::<usize>().ok()) else {
        return line.into_bytes();
    };
    let mut text = vec![0; length];
    reader.read_exact(&mut text).unwrap();
    text
}

/// The keys in the store, of one kind.
fn keys_of(redis: &Redis, kind: char) -> BTreeSet<String> {
    let all = redis.cli(&["--scan"]);
    all.lines().filter(|key| key.contains(&format!("}}:{kind}:"))).map(str::to_owned).collect()
}

/// What some runtime or other makes a `_` or a `-` of: whatever a name may have besides letters and digits.
const SEPARATORS: &str = "!#$%&'*+.^_`|~";
const OURS: [&str; 10] = [
    "steadfast-session",
    "steadfast-session-request",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-real-ip",
    "x-request-id",
    "client-cert",
    "client-cert-chain",
];

/// A name, and how else it can be written for one runtime or another.
fn aliases(name: &str) -> Vec<String> {
    let mut all = vec![name.to_owned()];
    for separator in SEPARATORS.chars().map(String::from) {
        all.extend([name.replace('-', &separator), name.replacen('-', &separator, 1)]);
    }
    all
}

/// oauth2-proxy CVE-2025-64484, Traefik CVE-2026-39858 and CVE-2026-88011: `X_Forwarded_For` went through, and the server's
/// runtime read it as the name that its proxy vouches for.
#[test]
fn no_spelling_of_a_name_of_ours_reaches_a_server() {
    let origin = Origin::start("a");
    let listener = |kind: &str| {
        format!("[[listener]]\nname = \"{kind}\"\naddress = \"127.0.0.1:0\"\nunsafe_header_names = \"{kind}\"\n")
    };
    let listeners = ["pass", "reject"].map(listener).concat();
    let first = "[[route]]\npool = \"shop\"\n";
    let with_tenant = format!("{listeners}{first}request_headers = {{ set = {{ X-Tenant = \"a\" }} }}\n");
    let proxy = start(&kept(&servers(&[&origin]), "", "").replacen(first, &with_tenant, 1));
    // The route's own header is one of ours as well.
    for name in OURS.iter().chain(&["x-tenant"]) {
        for listener in ["main", "pass"] {
            let mut liar = Client::plain(proxy.address(listener)).host("localhost");
            liar.headers = aliases(name).into_iter().map(|alias| (alias, "evil".to_owned())).collect();
            assert_eq!(told(&mut liar)["st"], "none");
            let seen = origin.last();
            let evil = seen.headers.iter().filter(|(_, value)| value.as_bytes() == b"evil");
            let evil: Vec<&HeaderName> = evil.map(|(name, _)| name).collect();
            assert!(evil.is_empty(), "by {listener}: {evil:?}");
            assert_eq!(seen.header("x-tenant"), "a");
        }
    }
    for alias in &aliases("x-forwarded-for")[1..] {
        let reply = Client::plain(proxy.address("reject")).host("localhost").header(alias, "evil").get("/");
        assert_eq!(reply.status, 400, "{alias}");
    }
    trailers_are_held_to_it_too();
}

/// Some servers put them among the headers.
fn trailers_are_held_to_it_too() {
    let server = Scripted::start();
    let proxy = start(&kept(&server.server(), "", ""));
    for name in OURS {
        let spelled = aliases(name);
        let announced = spelled.join(", ");
        let fields: String = spelled.iter().map(|alias| format!("{alias}: evil\r\n")).collect();
        let request = format!(
            "POST /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTE: trailers\r\nTrailer: x-sum, {announced}\r\n\
             Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-sum: 1\r\n{fields}\r\n"
        );
        let answer = raw(proxy.address("main"), request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let seen = server.last();
        assert!(seen.contains("\r\nx-sum: 1\r\n"), "trailers are passed on: {seen}");
        assert!(!seen.contains("evil"), "{seen}");
    }
}

/// Traefik CVE-2024-45410: a client's `Connection` named the headers that its proxy adds, and they were gone.
#[test]
fn connection_names_away_nothing_of_ours() {
    const TOLD: [&str; 11] = [
        "Steadfast-Session",
        "Steadfast-Session-Request",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Request-Id",
        "Forwarded",
        "Via",
        "Host",
        "Cookie",
    ];
    let origin = Origin::start("a");
    let proxy = start(&over_tls(&kept(&servers(&[&origin]), "", "")));
    let mut user = proxy.tls_client();
    say(&mut user, "op login;sub=\"alice\"");
    user.cookies.insert("app".into(), "1".into());
    for name in TOLD {
        let lower = name.to_ascii_lowercase();
        let upper = name.to_ascii_uppercase();
        for options in [name.to_owned(), format!("close,\t{upper} ,"), format!("x-other, {lower}, {lower}")] {
            let told = told(&mut user.clone().header("connection", &options));
            assert_eq!((&told["st"], &told["sub"]), (&json!("auth"), &json!("alice")), "{options:?}");
            let seen = origin.last();
            for name in TOLD {
                let there: Vec<_> = seen.headers.get_all(&*name.to_ascii_lowercase()).iter().collect();
                assert!(there.len() == 1 && !there[0].is_empty(), "{name} after {options:?}: {there:?}");
            }
        }
    }
    // Nor what the request itself is judged by.
    let whence = user.clone().header("connection", "sec-fetch-site, origin").header("sec-fetch-site", "cross-site");
    assert_eq!(say(&mut whence.clone(), "op logout").status, 403);
    // Nor does a server name away what the client is told of its logout.
    let reply = say(&mut user, "op logout\nheader connection: set-cookie, cache-control, clear-site-data");
    assert!(reply.set_cookies().iter().any(|line| line.contains("Max-Age=0")), "{reply:?}");
    assert_eq!(reply.header("cache-control"), "no-store");
    assert_eq!(reply.header("clear-site-data"), "\"cache\", \"cookies\", \"storage\"");
}

/// What somebody says of themselves who would like to be taken for a proxy.
fn claiming(client: Client, address: &str) -> Client {
    client
        .header("X-Forwarded-For", address)
        .header("Forwarded", &format!("for={address};proto=https;host=evil.example"))
        .header("X-Real-IP", address)
        .header("X-Forwarded-Proto", "https")
        .header("X-Forwarded-Host", "evil.example")
        .header("X-Forwarded-Port", "444")
        .header("X-Request-Id", "mine")
}

/// oauth2-proxy 3506: with nothing configured every peer was a trusted proxy, loopback ones first of all.
#[test]
fn by_default_nobody_is_a_trusted_proxy() {
    let origin = Origin::start("a");
    let clear = "[[listener]]\nname = \"clear\"\naddress = \"127.0.0.1:0\"\nredirect = \"https\"\n[[route]]";
    let limited = "[[route]]\npath = \"/limited\"\npool = \"shop\"\nrate = { requests = 3, per = \"1h\" }\n[[pool]]";
    let configuration = plain(&[&origin], "").replacen("[[route]]", clear, 1).replacen("[[pool]]", limited, 1);
    let proxy = Proxy::start(&configuration);
    let ask = |last: u8, path: &str| claiming(proxy.client(), &format!("198.51.100.{last}")).get(path);
    let statuses = [1, 2, 3, 4, 5].map(|last| ask(last, "/limited").status);
    assert_eq!(statuses, [200, 200, 200, 429, 429], "another address in a header is no other client");
    let pin = ask(9, "/").set_cookies().join("\n");
    assert!(pin.starts_with("sf-") && !pin.contains("Secure"), "over plain http, whatever they say: {pin}");
    let seen = origin.last();
    assert_eq!((seen.header("x-forwarded-for"), seen.header("x-forwarded-proto")), ("127.0.0.1".into(), "http".into()));
    assert_ne!(seen.header("x-forwarded-port"), "444");
    let all = format!("{:?}", seen.headers);
    assert!(!["evil.example", "198.51.100", "mine"].iter().any(|word| all.contains(word)), "{all}");
    let mut forger = claiming(proxy.client(), "198.51.100.10").header("Origin", "https://evil.example");
    assert_eq!(forger.post("/transfer", "").status, 403, "who we are is not for a header to say");
    let redirected = claiming(Client::plain(proxy.address("clear")).host("shop.test"), "198.51.100.11").get("/x");
    assert_eq!((redirected.status, redirected.header("location")), (308, "https://shop.test/x".into()));
    eventually("all is logged", || proxy.access_log().len() == 8);
    assert!(proxy.access_log().iter().all(|line| line["client"] == "127.0.0.1"), "{:?}", proxy.access_log());
}

/// express-session 361, spring-session 1471: each request wrote back the whole session as it had read it.
#[test]
fn requests_that_cross_keep_what_the_others_wrote() {
    let origin = Origin::start("a");
    let proxy = start(&kept(&servers(&[&origin]), "", ""));
    let mut user = logged_in(&proxy, "alice", "{\"basket\":{\"tea\":1},\"theme\":\"dark\",\"old\":true}");
    // All of them are told the same version, and one that comes later is done first.
    let crossing = [
        "patch {\"basket\":{\"cup\":2}}",
        "patch {\"basket\":{\"pot\":3}}",
        "patch {\"old\":null}",
        "patch {\"seen\":[1]}",
    ]
    .map(|says| later(&origin, &user, says));
    assert_eq!(say(&mut user, "patch {\"theme\":\"light\"}").status, 200);
    crossing.iter().for_each(|_| origin.go_on());
    for reply in crossing.map(|waiting| waiting.join().unwrap()) {
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let session = told(&mut user);
    assert_eq!(session["d"], json!({"basket":{"tea":1,"cup":2,"pot":3},"theme":"light","seen":[1]}));
    let version = session["ver"].as_u64().unwrap();
    assert_eq!(version, 6, "each write counts once");
    let late = later(&origin, &user, &format!("patch {{\"theme\":\"blue\"}}\nif {version}"));
    assert_eq!(say(&mut user, "patch {\"n\":1}").status, 200);
    origin.go_on();
    assert_eq!(late.join().unwrap().status, 409, "whoever builds on what they read is told that it is old");
    assert_eq!(told(&mut user)["d"]["theme"], "light");
}

/// connect-redis 328, Django PR 5950, CVE-2013-10075: a slow request stored its session again after the logout.
#[test]
fn what_was_on_its_way_does_not_undo_a_logout() {
    let redis = Redis::start();
    let origin = Origin::start("a");
    let proxies = [(); 2].map(|()| start(&kept(&servers(&[&origin]), &in_redis(redis.port), "")));
    for (says, status) in [
        ("patch {\"late\":1}", 409),
        ("op no-touch\npatch {\"late\":1}", 409),
        ("op renew", 409),
        ("op step-up;acr=\"mfa\"", 409),
        ("op login;sub=\"alice\"", 409),
        ("op login;sub=\"mallory\"", 409),
        ("op logout-others", 409),
        ("op logout", 200),
        ("", 200),
    ] {
        let mut alice = logged_in(&proxies[0], "alice", "{\"cart\":1}");
        let copies = proxies.each_ref().map(|proxy| copy_of(&alice, proxy));
        let late = later(&origin, &copies[1], says);
        assert_eq!(say(&mut alice, "op logout").status, 200);
        origin.go_on();
        let reply = late.join().unwrap();
        assert_eq!((reply.status, reply.set_cookies()), (status, Vec::new()), "{says}: {}", reply.text());
        for mut copy in copies {
            assert_eq!(told(&mut copy)["st"], "none", "{says}");
        }
        assert_eq!(keys_of(&redis, 'd'), BTreeSet::new(), "{says}: nothing of it is in the store");
    }
}

/// Infisical 5947: of two requests that renewed at once one showed a token that was just replaced, and the user was out.
#[test]
fn a_renewal_logs_nobody_out_in_whatever_order_answers_come() {
    let redis = Redis::start();
    let origin = Origin::start("a");
    let configuration = kept(&servers(&[&origin]), &in_redis(redis.port), "renew = \"1s\"\n");
    let proxies = [(); 2].map(|()| start(&configuration));
    let (began, old) = (Instant::now(), logged_in(&proxies[0], "alice", "{}"));
    eventually("the cookie is due", || began.elapsed() > Duration::from_millis(1_500));
    let slow = later(&origin, &old, "patch {\"slow\":1}");
    let replies: Vec<Reply> = std::thread::scope(|scope| {
        let ask = |number: usize| {
            let mut copy = copy_of(&old, &proxies[number % 2]);
            scope.spawn(move || say(&mut copy, ""))
        };
        let asking: Vec<_> = (0..16).map(ask).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    assert!(replies.iter().all(|reply| claims(reply)["sub"] == "alice"));
    let next: BTreeSet<String> = replies.iter().flat_map(given).collect();
    assert_eq!(next.len(), 1, "whoever renews it, it has one successor: {next:?}");
    let mut cookies: Vec<String> = next.into_iter().collect();
    let with = |cookie: &str, proxy: &Proxy| {
        let mut user = user(proxy);
        user.cookies.insert(COOKIE.into(), cookie.to_owned());
        user
    };
    assert_eq!(told(&mut with(&cookies[0], &proxies[1]))["sub"], "alice", "the new one is in use");
    origin.go_on();
    let reply = slow.join().unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    // A browser may be left with any of them.
    cookies.extend(given(&reply));
    cookies.push(old.cookies[COOKIE].clone());
    for cookie in &cookies {
        let session = told(&mut with(cookie, &proxies[0]));
        assert_eq!((&session["sub"], &session["d"]["slow"]), (&json!("alice"), &json!(1)));
    }
    assert_eq!(events(&proxies[0], "reused") + events(&proxies[1], "reused"), 0.0, "nobody is taken for a thief");
    a_login_outlives_the_pages_before_it(&origin, &proxies[0]);
}

/// What another tab asked before the login must not bring the older cookie back.
fn a_login_outlives_the_pages_before_it(origin: &Origin, proxy: &Proxy) {
    let mut browser = user(proxy);
    say(&mut browser, "patch {\"cart\":1}");
    let slow = ["patch {\"draft\":1}", ""].map(|says| later(origin, &browser, says));
    assert_eq!(say(&mut browser, "op login;sub=\"bob\"").status, 200);
    slow.iter().for_each(|_| origin.go_on());
    for reply in slow.map(|slow| slow.join().unwrap()) {
        assert_eq!(reply.set_cookies(), Vec::<String>::new(), "{}", reply.text());
    }
    let session = told(&mut browser);
    assert_eq!((&session["sub"], &session["d"]), (&json!("bob"), &json!({"cart":1})));
}

/// Begins or ends something.
type Act<'a> = Box<dyn Fn() + 'a>;

/// oauth2-proxy 2503: an error of the store, or a request that was cancelled, was read as "there is no such session".
#[test]
fn a_store_that_fails_has_not_said_that_there_is_no_session() {
    let redis = Redis::start();
    let origin = Origin::start("a");
    let store = format!("kind = \"redis\"\nurl = \"{}\"\n", redis.url());
    let proxy = start(&kept(&servers(&[&origin]), &store, ""));
    let (mut alice, mut stranger) = (logged_in(&proxy, "alice", "{\"n\":1}"), user(&proxy));
    let handle = keys_of(&redis, 'h').pop_first().unwrap();
    let info = redis.cli(&["info", "server"]);
    let pid: u32 = info.lines().find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok()).unwrap();
    let acl = |right: &str| drop(redis.cli(&["acl", "setuser", "default", right]));
    let faults: [(&str, Act<'_>, Act<'_>); 3] = [
        ("it refuses to read", Box::new(|| acl("-getrange")), Box::new(|| acl("+getrange"))),
        ("it does not answer", Box::new(|| signal(pid, "STOP")), Box::new(|| signal(pid, "CONT"))),
        (
            "the record is of another kind",
            Box::new(|| {
                redis.cli(&["rename", &handle, "aside"]);
                redis.cli(&["lpush", &handle, "x"]);
            }),
            Box::new(|| drop(redis.cli(&["rename", "aside", &handle]))),
        ),
    ];
    for (fault, begin, end) in &faults {
        begin();
        refuses_without_a_word_about_the_session(fault, &alice);
        assert_eq!(told(&mut stranger)["st"], "none", "{fault}: who has no session is served");
        end();
        comes_back(&mut alice);
    }
    // A client that does not wait has not logged out either.
    signal(pid, "STOP");
    let mut gone = TcpStream::connect(proxy.address("main")).unwrap();
    let cookie = &alice.cookies[COOKIE];
    write!(gone, "GET /say HTTP/1.1\r\nHost: localhost\r\nCookie: {COOKIE}={cookie}\r\n\r\n").unwrap();
    drop(gone);
    signal(pid, "CONT");
    comes_back(&mut alice);
    redis.cli(&["config", "set", "maxmemory", "1"]);
    let full = say(&mut alice, "patch {\"n\":2}");
    assert_eq!((full.status, full.set_cookies()), (503, Vec::new()), "{}", full.text());
    assert!(full.text().contains("\"applied\":\"unknown\""), "{}", full.text());
    redis.cli(&["config", "set", "maxmemory", "0"]);
    comes_back(&mut alice);
    assert_eq!(told(&mut alice)["d"], json!({"n":1}));
    let lenient = start(&kept(&servers(&[&origin]), &store, "on_store_error = \"anonymous\"\n"));
    goes_on_as_nobody_and_writes_nothing(copy_of(&alice, &lenient), || acl("-getrange"), || acl("+getrange"));
}

fn refuses_without_a_word_about_the_session(fault: &str, alice: &Client) {
    let page = alice.clone().header("accept", "text/html").header("sec-fetch-mode", "navigate");
    for (client, method, path) in [
        (alice, Method::GET, "/say"),
        (alice, Method::POST, "/say"),
        (alice, Method::POST, "/account"),
        (&page, Method::GET, "/account"),
    ] {
        let reply = client.clone().try_send(method.clone(), path, Bytes::new()).unwrap();
        let said = (reply.status, reply.set_cookies(), reply.header("location"), reply.header("retry-after"));
        assert_eq!(said, (503, Vec::new(), String::new(), "1".into()), "{fault}: {method} {path}: {}", reply.text());
    }
}

/// Until it does she is told to wait, and never that she is nobody.
fn comes_back(alice: &mut Client) {
    eventually("the session is back", || {
        let reply = say(alice, "");
        assert!(reply.set_cookies().is_empty() && [200, 503].contains(&reply.status), "{reply:?}");
        if reply.status == 200 {
            assert_eq!(claims(&reply)["sub"], "alice");
        }
        reply.status == 200
    });
}

fn goes_on_as_nobody_and_writes_nothing(mut alice: Client, begin: impl Fn(), end: impl Fn()) {
    comes_back(&mut alice);
    begin();
    let read = claims(&alice.get("/say"));
    assert_eq!((&read["st"], &read["degraded"]), (&json!("none"), &json!(true)), "the server is told why");
    for method in [Method::GET, Method::POST] {
        let written = alice.try_send(method, "/say", "patch {\"n\":3}".into()).unwrap();
        assert_eq!((written.status, written.set_cookies()), (503, Vec::new()), "{}", written.text());
    }
    end();
    comes_back(&mut alice);
    assert_eq!(told(&mut alice)["d"], json!({"n":1}));
}

/// A session cookie with this secret, beside what of it is not secret.
fn forged(own: &str, tag: u16, secret: [u8; 32]) -> String {
    let own = BASE64URL_NOPAD.decode(own.as_bytes()).unwrap();
    BASE64URL_NOPAD.encode(&[&own[..5], &tag.to_be_bytes(), &secret].concat())
}

/// Rack CVE-2019-16782: the cookie was the key under which the store had the session, so whoever could list keys, or time
/// their look-up, had sessions.
#[test]
fn what_the_store_calls_a_session_opens_none() {
    let redis = Redis::start();
    let origin = Origin::start("a");
    let proxy = start(&kept(&servers(&[&origin]), &in_redis(redis.port), ""));
    let mut alice = logged_in(&proxy, "alice", "{\"card\":1}");
    let hers = ['h', 'd', 'n'].map(|kind| keys_of(&redis, kind).pop_first().unwrap());
    let mut mallory = logged_in(&proxy, "mallory", "{}");
    let own = mallory.cookies[COOKIE].clone();
    let sid = told(&mut alice)["sid"].as_str().unwrap().to_owned();
    for key in &hers {
        let (tag, name) = key.strip_prefix("sf1:{").unwrap().split_once('}').unwrap();
        let id = BASE64URL_NOPAD.decode(&name.as_bytes()[3..]).unwrap();
        let repeated: [u8; 32] = std::array::from_fn(|at| id[at % id.len()]);
        let before: [u8; 32] = std::array::from_fn(|at| id.get(at).copied().unwrap_or(0));
        let behind: [u8; 32] = std::array::from_fn(|at| if at < 12 { 0 } else { id[at - 12] });
        let secrets = [repeated, before, behind].map(|secret| forged(&own, tag.parse().unwrap(), secret));
        for cookie in secrets.into_iter().chain([key.clone(), name[3..].to_owned(), sid.clone()]) {
            let mut thief = user(&proxy);
            thief.cookies.insert(COOKIE.into(), cookie.clone());
            assert_eq!(told(&mut thief)["st"], "none", "{cookie} for {key}");
        }
    }
    // Who can write there has no more of it.
    let his = ['h', 'd', 'n'].map(|kind| keys_of(&redis, kind).into_iter().find(|key| !hers.contains(key)).unwrap());
    for places in [&[0_usize][..], &[1], &[2], &[0, 1], &[0, 1, 2]] {
        for at in places {
            redis.cli(&["copy", &his[*at], &format!("aside-{at}")]);
            assert_eq!(redis.cli(&["copy", &hers[*at], &his[*at], "replace"]).trim(), "1");
        }
        assert_eq!(told(&mut mallory)["st"], "none", "with her records in place of his: {places:?}");
        for at in places {
            redis.cli(&["rename", &format!("aside-{at}"), &his[*at]]);
        }
        assert_eq!(told(&mut mallory)["sub"], "mallory");
    }
    assert_eq!((&told(&mut alice)["sub"], &told(&mut alice)["d"]), (&json!("alice"), &json!({"card":1})));
}

/// A browser at this address that goes to a page.
fn browser_at(client: Client, address: &str) -> Client {
    let client = client.header("X-Forwarded-For", address).header("Accept", "text/html,*/*;q=0.8");
    client.header("Sec-Fetch-Mode", "navigate")
}

/// 40 KiB of cookies, as any page of the site's domain can leave them.
fn bombed(mut client: Client) -> Client {
    client.cookies = (0..10).map(|number| (format!("c{number}"), "x".repeat(4_090))).collect();
    client
}

/// The cookie bomb: one script sets more cookies than a head may be long, and its user gets 431 for ever, with nothing on
/// the page that would tell them what to do.
#[test]
fn a_browser_with_too_many_cookies_is_told_to_forget_them() {
    let origin = Origin::start("a");
    let process = "[process]\nworkers = 2\nwatch = false\ntrusted_proxies = [\"127.0.0.0/8\"]\n";
    let proxy = Proxy::start(&format!("{process}{}", tls(&[&origin], "")));
    let said = |reply: &Reply| (reply.status, reply.header("clear-site-data"), reply.header("content-type"));
    let (page, problem) = ("text/html; charset=utf-8".to_owned(), "application/problem+json".to_owned());
    for (client, network) in [(proxy.tls_client(), "192.0.2"), (proxy.tls_client().http2(), "198.51.100")] {
        let at = |last: u8| format!("{network}.{last}");
        let mut browser = bombed(browser_at(client.clone(), &at(1)));
        let first = browser.get("/");
        assert_eq!(said(&first), (431, "\"cookies\"".to_owned(), page.clone()), "{network}");
        assert!(first.text().contains("cookies"), "it says what happened: {}", first.text());
        assert_eq!(first.header("cache-control"), "no-store");
        let second = browser.get("/");
        assert_eq!(said(&second), (431, String::new(), page.clone()), "once will do, for a while");
        assert!(second.text().contains("cookies"), "{}", second.text());
        browser.cookies.clear();
        assert_eq!(browser.get("/").status, 200, "the way out");
        let mut program = bombed(client.clone().header("X-Forwarded-For", &at(2)));
        assert_eq!(said(&program.get("/")), (431, String::new(), problem.clone()), "a program is no browser");
        let script = client.clone().header("X-Forwarded-For", &at(3)).header("Accept", "text/html");
        let mut script = bombed(script.header("Sec-Fetch-Mode", "no-cors"));
        assert_eq!(said(&script.get("/logo.png")), (431, String::new(), page.clone()), "nor is an image a page");
        // Or whoever is somebody's link could be made to log them out.
        let mut lured = browser_at(client.clone(), &at(4));
        lured.cookies.insert("app".into(), "x".repeat(3_000));
        assert_eq!(said(&lured.get(&format!("/?q={}", "x".repeat(40_000)))), (431, String::new(), page.clone()));
        assert_eq!(said(&bombed(browser_at(client, &at(5))).get("/")).1, "\"cookies\"", "others have their own once");
    }
    assert!(origin.seen().iter().all(|seen| seen.header("cookie").is_empty()), "no server has seen any of it");
    eventually("each is counted", || proxy.metric("steadfast_limit_reached_total", &["limit=\"header_size\""]) == 12.0);
    // HTTP/2 has a field for each cookie, and many small ones are one Cookie header all the same.
    let mut many = browser_at(proxy.tls_client().http2(), "203.0.113.1");
    many.cookies = (0..150).map(|number| (format!("c{number}"), "1".to_owned())).collect();
    assert_eq!(many.get("/").status, 200);
    assert_eq!(origin.last().header("cookie").split("; ").count(), 150);
}

/// PHP CVE-2022-31629: `__Host_` looks like the prefix by which browsers protect a cookie, and protects nothing.
#[test]
fn a_misspelt_prefix_is_noticed_wherever_it_is_written() {
    let origin = Origin::start("a");
    for name in ["__Host_sid", "__host-sid", "__HOST-sid", "_Host-sid", "__Secure_sid"] {
        let pin = format!("{}[pool.sticky]\ncookie = \"{name}\"\n", tls(&[&origin], ""));
        assert_eq!(checked(&pin, "the pin cookie's name must begin with `__Host-`"), Some(2), "{name}");
        let session = over_tls(&kept(&servers(&[&origin]), "", &format!("cookie = \"{name}\"\n")));
        assert_eq!(checked(&session, &format!("\"{name}\" is no name for a session cookie")), Some(2), "{name}");
    }
    let proxy = start(&over_tls(&kept(&servers(&[&origin]), "", "")));
    let mut user = proxy.tls_client();
    let misspelt = || proxy.metric("steadfast_protect_total", &["rule=\"cookie\"", "reason=\"prefix_misspelt\""]);
    for (name, counts) in [
        ("__Host_sid", 1.0),
        ("__HOST_sid", 1.0),
        ("__host-sid", 1.0),
        ("__Secure_sid", 1.0),
        ("__Http_sid", 1.0),
        ("__Host-sid", 0.0),
        ("__Secure-sid", 0.0),
        ("__Hostess", 0.0),
        ("sid", 0.0),
    ] {
        let before = misspelt();
        let line = format!("{name}=1; Path=/; Secure; HttpOnly; SameSite=Lax");
        let reply = say(&mut user, &format!("header set-cookie: {line}"));
        assert_eq!(reply.set_cookies(), [line], "it is the application's, and stays as it is");
        assert_eq!(misspelt() - before, counts, "{name}");
    }
    // Nor does any of them count for ours.
    say(&mut user, "op login;sub=\"alice\"");
    let value = user.cookies["__Host-Http-session"].clone();
    assert_eq!(told(&mut user)["sub"], "alice");
    for name in ["__Host_Http-session", "__Host-Http_session", "__host-http-session", "__Http-session", "session"] {
        let mut planted = proxy.tls_client();
        planted.cookies.insert(name.into(), value.clone());
        assert_eq!(told(&mut planted)["st"], "none", "{name}");
    }
}

/// How `check` ends for a file that it has this to say about.
fn checked(configuration: &str, says: &str) -> Option<i32> {
    let directory = tempfile::tempdir().unwrap();
    write_ring(directory.path());
    let path = directory.path().join("steadfast.toml");
    std::fs::write(&path, configuration).unwrap();
    let output = Command::new(BINARY).args(["check", "--config"]).arg(&path).env("NO_COLOR", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(says), "{says:?} is not in {said}");
    output.status.code()
}

/// Whether a cache that many users share may keep a response and give it to others without asking (RFC 9111, sections 3 and
/// 4.2.2; RFC 9213 and what caches knew before it: a field for them alone comes before `Cache-Control`).
fn may_be_kept(reply: &Reply) -> bool {
    let is_for_caches = |name: &HeaderName| {
        let name = name.as_str();
        name.ends_with("-cache-control") || ["surrogate-control", "edge-control", "x-accel-expires"].contains(&name)
    };
    if reply.headers.keys().any(is_for_caches) {
        return true;
    }
    let lines = reply.headers.get_all(header::CACHE_CONTROL).iter().map(|line| line.to_str().unwrap());
    let names = lines.flat_map(|line| line.split(',')).map(|directive| {
        let name = directive.split('=').next().unwrap_or_default();
        name.trim().to_ascii_lowercase()
    });
    let names: BTreeSet<String> = names.collect();
    let has = |wanted: &[&str]| wanted.iter().any(|name| names.contains(*name));
    let how_fresh = ["expires", "last-modified"].iter().any(|name| reply.headers.contains_key(*name));
    !has(&["no-store", "private", "no-cache"]) && (has(&["public", "max-age", "s-maxage"]) || how_fresh)
}

/// DriveBC 1011: a shared cache kept one user's Set-Cookie, and gave it to the others.
#[test]
fn no_shared_cache_may_keep_a_cookie_of_ours() {
    const CACHEABLE: [&str; 12] = [
        "header cache-control: public, max-age=60",
        "header cache-control: s-maxage=60",
        "header cache-control: must-revalidate\nheader last-modified: Mon, 01 Jan 2024 00:00:00 GMT",
        "header cache-control: no-transform\nheader expires: Fri, 01 Jan 2100 00:00:00 GMT",
        "header expires: Fri, 01 Jan 2100 00:00:00 GMT",
        "header last-modified: Mon, 01 Jan 2024 00:00:00 GMT\nstatus 301",
        "header cdn-cache-control: max-age=60",
        "header cloudflare-cdn-cache-control: max-age=60",
        "header akamai-cache-control: max-age=60",
        "header surrogate-control: max-age=60",
        "header edge-control: max-age=60",
        "header x-accel-expires: 60",
    ];
    let origin = Origin::start("a");
    let get = |user: &mut Client, lines: &str| user.try_send(Method::GET, "/say", lines.to_owned().into()).unwrap();
    let shared = start(&kept(&servers(&[&origin]), "", ""));
    for cacheable in CACHEABLE {
        let mut user = user(&shared);
        for says in ["patch {\"n\":1}", "op login;sub=\"alice\"", "op renew", "op logout"] {
            let reply = get(&mut user, &format!("{says}\n{cacheable}"));
            assert_eq!(reply.set_cookies().len(), 1, "{says}: {reply:?}");
            assert!(!may_be_kept(&reply), "{says}: {:?}", reply.headers);
        }
        // Without a cookie it is as the server says.
        assert!(may_be_kept(&get(&mut self::user(&shared), cacheable)), "{cacheable}");
    }
    let sticky = Proxy::start(&plain(&[&origin], ""));
    for cacheable in CACHEABLE {
        let reply = get(&mut sticky.client(), cacheable);
        assert!(reply.set_cookies().is_empty() || !may_be_kept(&reply), "{:?}", reply.headers);
    }
    assert_eq!(get(&mut sticky.client(), "").set_cookies().len(), 1, "there are pins");
}

/// redis-py 2624, and every cache that joins requests for one address: one user's answer reached another.
#[test]
fn no_answer_of_one_user_reaches_another() {
    for (speaks, version) in [(Speaks::Http1, "1.1"), (Speaks::Http2, "2")] {
        let origin = Origin::start_on("a", "127.0.0.1:0", speaks);
        let http = format!("[pool.http]\nversion = \"{version}\"\n");
        let proxy = start(&kept(&servers(&[&origin]), "", &http));
        let users: Vec<Client> = (0..16).map(|number| logged_in(&proxy, &format!("user-{number}"), "{}")).collect();
        for _ in 0..3 {
            all_at_once(&origin, &proxy, &users);
        }
    }
}

/// All ask the same thing while nobody is answered; every other one goes away before.
fn all_at_once(origin: &Origin, proxy: &Proxy, users: &[Client]) {
    let asked = || origin.seen().iter().filter(|seen| seen.target == "/say-later").count();
    let before = asked();
    let (mut waiting, mut leaving) = (Vec::new(), Vec::new());
    for (number, user) in users.iter().enumerate() {
        let mut user = user.clone();
        if number % 2 == 0 {
            waiting.push((number, std::thread::spawn(move || user.get("/say-later"))));
        } else {
            let mut stream = TcpStream::connect(proxy.address("main")).unwrap();
            let cookie = &user.cookies[COOKIE];
            write!(stream, "GET /say-later HTTP/1.1\r\nHost: localhost\r\nCookie: {COOKIE}={cookie}\r\n\r\n").unwrap();
            leaving.push(stream);
        }
    }
    eventually("the server has one request of each", || asked() == before + users.len());
    drop(leaving);
    let is_own = |number: usize, reply: &Reply| assert_eq!(claims(reply)["sub"], format!("user-{number}"));
    std::thread::scope(|scope| {
        for (number, user) in users.iter().enumerate() {
            let mut user = user.clone();
            scope.spawn(move || (0..5).for_each(|_| is_own(number, &user.get("/say"))));
        }
    });
    eventually("all are answered who waited", || {
        origin.go_on();
        waiting.iter().all(|(_, asking)| asking.is_finished())
    });
    waiting.into_iter().for_each(|(number, asking)| is_own(number, &asking.join().unwrap()));
    assert_eq!(asked(), before + users.len(), "nobody was asked for twice");
}

/// Redis, through somebody who keeps back the next session that is made until it is let go on.
struct Relay {
    listening: Listening,
    keeps_back: Arc<AtomicBool>,
    names: mpsc::Receiver<String>,
    go_on: mpsc::Sender<()>,
}

impl Relay {
    fn to(redis: u16) -> Self {
        let keeps_back = Arc::<AtomicBool>::default();
        let ((name, names), (go_on, goes_on)) = (mpsc::channel(), mpsc::channel());
        let (armed, name, goes_on) = (Arc::clone(&keeps_back), Mutex::new(name), Mutex::new(goes_on));
        let listening = Listening::start(move |mut client| {
            let mut server = TcpStream::connect(("127.0.0.1", redis)).unwrap();
            let (mut replies, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut replies, &mut back));
            let mut buffer = [0; 65_536];
            while let Some(read) = client.read(&mut buffer).ok().filter(|read| *read > 0) {
                if let Some(key) = session_made(&buffer[..read])
                    && armed.swap(false, Ordering::SeqCst)
                {
                    name.lock().unwrap().send(key).unwrap();
                    goes_on.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                }
                if server.write_all(&buffer[..read]).is_err() {
                    return;
                }
            }
        });
        Relay { listening, keeps_back, names, go_on }
    }
}

/// The name of the session that a command makes or changes.
fn session_made(command: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(command);
    let guard = text.find("EVAL").and_then(|at| text[at..].find("sf1:{").map(|key| at + key))?;
    let key = text[guard..].split("\r\n").next()?;
    key.contains("}:d:").then(|| key.to_owned())
}

/// An id that is taken already, or that the client brings along, leads into somebody else's session where a store is written
/// to without asking whether something is there.
#[test]
fn a_new_session_takes_no_name_that_is_there_or_that_a_client_brings() {
    let redis = Redis::start();
    let relay = Relay::to(redis.port);
    let origin = Origin::start("a");
    let proxy = start(&kept(&servers(&[&origin]), &in_redis(relay.listening.port), ""));
    let mut stranger = logged_in(&proxy, "stranger", "{\"card\":1}");
    let theirs = keys_of(&redis, 'd').pop_first().unwrap();
    let record = command(redis.port, &[b"GET", theirs.as_bytes()]);
    for says in ["patch {\"mine\":1}", "op login;sub=\"mallory\""] {
        let handles = keys_of(&redis, 'h');
        relay.keeps_back.store(true, Ordering::SeqCst);
        let mut newcomer = user(&proxy);
        let mut asking = newcomer.clone();
        let asked = std::thread::spawn(move || say(&mut asking, says));
        let name = relay.names.recv_timeout(PATIENCE).expect("a session is being made");
        assert_eq!(redis.cli(&["copy", &theirs, &name]).trim(), "1", "somebody has that name");
        relay.go_on.send(()).unwrap();
        let reply = asked.join().unwrap();
        assert_eq!((reply.status, reply.set_cookies()), (409, Vec::new()), "{says}: {}", reply.text());
        assert_eq!(command(redis.port, &[b"GET", name.as_bytes()]), record, "{says}: it is as it was");
        assert_eq!(keys_of(&redis, 'h'), handles, "{says}: and no cookie leads there");
        assert_eq!(say(&mut newcomer, says).set_cookies().len(), 1, "the next one is their own");
        assert_eq!(told(&mut newcomer)["d"]["card"], Value::Null);
        redis.cli(&["del", &name]);
    }
    assert_eq!((&told(&mut stranger)["sub"], &told(&mut stranger)["d"]), (&json!("stranger"), &json!({"card":1})));
    a_planted_cookie_is_not_taken_over(&proxy, &stranger.cookies[COOKIE]);
}

/// One that is right in all but that nobody has given it to anybody.
fn a_planted_cookie_is_not_taken_over(proxy: &Proxy, of_somebody: &str) {
    for (tag, says) in [(7, "patch {\"n\":1}"), (8, "op login;sub=\"victim\"")] {
        let planted = forged(of_somebody, tag, [7; 32]);
        let mut victim = user(proxy);
        victim.cookies.insert(COOKIE.into(), planted.clone());
        let reply = say(&mut victim, says);
        assert_eq!((reply.status, given(&reply).len()), (200, 1), "{}", reply.text());
        assert_ne!(victim.cookies[COOKIE], planted);
        victim.cookies.insert(COOKIE.into(), planted);
        assert_eq!(told(&mut victim)["st"], "none", "whoever planted it has nothing");
    }
}

/// A line break in what a server reflects writes a header of its own; one that logs somebody in must not count because it
/// stands there. `NONCE` are the cases in which even the right word does not help.
#[test]
fn what_is_smuggled_into_a_servers_answer_is_no_directive() {
    const OK: &str = "HTTP/1.1 200 OK\r\n";
    const END: &str = "Content-Length: 0\r\n\r\n";
    let login = |nonce: &str| format!("Steadfast-Session-Op: login;sub=\"admin\";rid=\"{nonce}\"\r\n");
    let (old, right) = (login("OLD"), login("NONCE"));
    let server = Scripted::start();
    let proxy = start(&kept(&server.server(), "", ""));
    let ask = |user: &mut Client| user.post("/x", "");
    server.answers_next(format!("{OK}{right}{END}"));
    let mut alice = user(&proxy);
    assert_eq!(given(&ask(&mut alice)).len(), 1, "what a server says itself counts");
    for (answer, status) in [
        (format!("{OK}Location: /x\r\n{old}{END}"), 200),
        (format!("{OK}Location: /x\n{old}{END}"), 200),
        (format!("{OK}Location: /x\r\nSteadfast-Session-Op: logout-all\r\n{END}"), 200),
        (format!("{OK}Location: /x\r\nSteadfast-Session-Op: logout;rid=\"\"\r\n{END}"), 200),
        (format!("{OK}Location: /x\r\nSteadfast-Session-Patch: OLD.eyJhZG1pbiI6dHJ1ZX0\r\n{END}"), 200),
        (format!("{OK}Location: /x\r{right}{END}"), 502),
        (format!("{OK}Location: /x\0{right}{END}"), 502),
        (format!("{OK}Location: /x\r\n {right}{END}"), 502),
        (format!("{OK}{}{END}", right.replacen(':', " :", 1)), 502),
        (format!("{OK}{}{END}", right.replacen('-', "_", 2)), 200),
        (format!("HTTP/1.1 103 Early Hints\r\n{right}\r\n{OK}{END}"), 200),
        (format!("{OK}{END}{OK}{right}{END}"), 200),
        (
            format!(
                "{OK}Transfer-Encoding: chunked\r\nTrailer: steadfast-session-op\r\n\r\n1\r\nx\r\n0\r\n{right}\r\n"
            ),
            200,
        ),
    ] {
        for somebody in [&mut user(&proxy), &mut alice] {
            server.answers_next(answer.clone());
            let reply = ask(somebody);
            assert_eq!((reply.status, reply.set_cookies()), (status, Vec::new()), "{answer:?}: {}", reply.text());
            let trailers = reply.trailers.clone().unwrap_or_default();
            let mut names = reply.headers.keys().chain(trailers.keys());
            assert!(!names.any(|name| name.as_str().starts_with("steadfast")), "{answer:?}: {reply:?}");
        }
        assert_eq!(claims(&ask(&mut user(&proxy)))["st"], "none", "the next one is nobody: {answer:?}");
        assert_eq!(claims(&ask(&mut alice))["sub"], "admin", "and who was somebody still is: {answer:?}");
    }
    assert_eq!(events(&proxy, "foreign_directive"), 10.0);
    assert_eq!((events(&proxy, "created"), events(&proxy, "logged_out")), (1.0, 0.0));
}

/// What may stand in a header field and divides no list.
const TEXT: &[u8] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=!#$%&'()*+/:<>?@[]^`{|}~\x80\xa0\xc3\xff";
/// And what does.
const SAID: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789-_.=!#$%&'()*+/:<>?@[]^`{|}~ ;;;,,,\"\"\"\\\\\t\x80\xff";

/// One kept connection; when the proxy closes it, another.
struct Line {
    client: Client,
    runtime: tokio::runtime::Runtime,
    connection: Option<Connection>,
}

impl Line {
    fn to(client: Client) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Line { client, runtime, connection: None }
    }

    fn ask(&mut self, method: &Method, path: &str, fields: &[(HeaderName, &[u8])], body: &[u8]) -> Reply {
        let mut why = String::new();
        for _ in 0..3 {
            match self.once(method, path, fields, body) {
                Ok(reply) => return reply,
                Err(error) => (self.connection, why) = (None, error),
            }
        }
        panic!("{why}: no answer to {method} {path} {fields:?} {:?}", String::from_utf8_lossy(body))
    }

    fn once(
        &mut self,
        method: &Method,
        path: &str,
        fields: &[(HeaderName, &[u8])],
        body: &[u8],
    ) -> Result<Reply, String> {
        let body = Full::new(Bytes::copy_from_slice(body));
        let mut request = self.client.request(method.clone(), path).body(body).unwrap();
        for (name, value) in fields {
            request.headers_mut().insert(name.clone(), HeaderValue::from_bytes(value).unwrap());
        }
        let (client, connection) = (&self.client, &mut self.connection);
        self.runtime.block_on(async move {
            if connection.is_none() {
                *connection = Some(client.connect().await?);
            }
            let sending = connection.as_mut().unwrap().send(request);
            tokio::time::timeout(PATIENCE, sending).await.map_err(|_| "no end in sight".to_owned())?
        })
    }
}

/// Where hostile text comes from, the same in every run; and how much of it there was.
struct Fuzz {
    random: fastrand::Rng,
    tried: usize,
}

impl Fuzz {
    /// Something else than what is valid: changed in a few places, or of another world altogether.
    fn next(&mut self, valid: &[u8], alphabet: &[u8]) -> Vec<u8> {
        self.tried += 1;
        loop {
            let is_changed = self.random.u8(..3) > 0;
            let text =
                if is_changed { self.changed(valid, alphabet) } else { self.garbage(alphabet, 2 * valid.len() + 8) };
            if text != valid && !text.is_empty() {
                return text;
            }
        }
    }

    fn garbage(&mut self, alphabet: &[u8], most: usize) -> Vec<u8> {
        let length = self.random.usize(1..=most);
        (0..length).map(|_| self.letter(alphabet)).collect()
    }

    fn letter(&mut self, alphabet: &[u8]) -> u8 {
        alphabet[self.random.usize(..alphabet.len())]
    }

    fn changed(&mut self, valid: &[u8], alphabet: &[u8]) -> Vec<u8> {
        let mut text = valid.to_vec();
        for _ in 0..self.random.usize(1..=3) {
            let at = self.random.usize(..=text.len());
            let behind = text.split_off(at);
            match self.random.u8(..4) {
                0 => {}
                1 => text.extend(self.garbage(alphabet, 12).into_iter().chain(behind)),
                2 => text.extend_from_slice(&behind[self.random.usize(..=behind.len())..]),
                _ => {
                    text.push(self.letter(alphabet));
                    text.extend(behind.into_iter().skip(1));
                }
            }
        }
        text
    }

    /// Any value that JSON can write, with a taste for the ends of numbers.
    fn value(&mut self, levels: u8) -> Value {
        match self.random.u8(..if levels == 0 { 6 } else { 8 }) {
            0 => Value::Null,
            1 => self.random.bool().into(),
            2 => [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, 1 << 32][self.random.usize(..6)].into(),
            3 => [-1, i64::MIN, i64::MAX, -(1 << 32)][self.random.usize(..4)].into(),
            4 => [1e308, -1e308, 1e-308, 0.5, -0.0][self.random.usize(..5)].into(),
            5 => String::from_utf8_lossy(&self.garbage(SAID, 40)).into_owned().into(),
            6 => (0..self.random.usize(..4)).map(|_| self.value(levels - 1)).collect(),
            _ => {
                let members = (0..self.random.usize(..4)).map(|at| (format!("k{at}"), self.value(levels - 1)));
                Value::Object(members.collect::<Map<String, Value>>())
            }
        }
    }
}

/// Every byte there is.
fn all_bytes() -> Vec<u8> {
    (0..=u8::MAX).collect()
}

/// The proxy is up, and nothing in it has fallen over.
#[track_caller]
fn is_well(proxy: &Proxy) {
    assert_eq!(proxy.admin("/healthz").as_deref(), Some("ok\n"));
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
}

/// Session data and tokens that a decoder trusted to be its own took servers down, or past their checks: a claim of the
/// wrong type was taken for none (CVE-2026-25537).
#[test]
fn no_text_from_outside_brings_a_decoder_down() {
    let mut fuzz = Fuzz { random: fastrand::Rng::with_seed(13), tried: 0 };
    session_cookies(&mut fuzz);
    pins(&mut fuzz);
    directives(&mut fuzz);
    tokens(&mut fuzz);
    revocations(&mut fuzz);
    side_api(&mut fuzz);
    records(&mut fuzz);
    println!("{} hostile texts", fuzz.tried);
    assert!(fuzz.tried > 5_000);
}

/// None is a session, and no token for forms but the right one will do.
fn session_cookies(fuzz: &mut Fuzz) {
    let origin = Origin::start("a");
    let proxy = start(&kept(&servers(&[&origin]), "", ""));
    let mut alice = logged_in(&proxy, "alice", "{}");
    let valid = alice.cookies[COOKIE].clone().into_bytes();
    let mut line = Line::to(user(&proxy));
    for _ in 0..1_000 {
        let value = [&b"session="[..], &fuzz.next(&valid, TEXT)].concat();
        let reply = line.ask(&Method::GET, "/say", &[(header::COOKIE, &value)], b"");
        assert!(reply.set_cookies().is_empty(), "{reply:?}");
        assert_eq!(claims(&reply)["st"], "none", "{:?}", String::from_utf8_lossy(&value));
    }
    let csrf = told(&mut alice)["csrf"].as_str().unwrap().to_owned().into_bytes();
    let shows = HeaderName::from_static("x-csrf-token");
    let mut silent = Line::to(alice.clone().silent());
    assert_eq!(silent.ask(&Method::POST, "/say", &[(shows.clone(), &csrf)], b"").status, 200);
    for _ in 0..200 {
        let reply = silent.ask(&Method::POST, "/say", &[(shows.clone(), &fuzz.next(&csrf, TEXT))], b"");
        assert_eq!(reply.status, 403, "{}", reply.text());
    }
    assert_eq!(told(&mut alice)["sub"], "alice");
    is_well(&proxy);
}

/// Each is a newcomer's, for the reason that it is.
fn pins(fuzz: &mut Fuzz) {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let mut client = proxy.client();
    client.get("/");
    let (name, valid) = client.cookies.pop_first().unwrap();
    let mut line = Line::to(proxy.client());
    for _ in 0..600 {
        let value = [name.as_bytes(), b"=", &fuzz.next(valid.as_bytes(), TEXT)].concat();
        let reply = line.ask(&Method::GET, "/", &[(header::COOKIE, &value)], b"");
        let verdict = reply.verdict();
        let reasons = ["new; reason=invalid; ", "new; reason=unknown_key; "];
        assert!(reply.status == 200 && reasons.iter().any(|reason| verdict.starts_with(reason)), "{reply:?}");
    }
    is_well(&proxy);
}

/// It is followed, or it is the server's fault; and the client hears nothing of it.
fn directives(fuzz: &mut Fuzz) {
    const OP: &[u8] = b"login;sub=\"alice\";acr=\"mfa\";amr=\"pwd otp\";carry=\"cart theme\"";
    const DATA: &[u8] = b"{\"cart\":{\"a\":[1,2.5e3,{\"b\":null}]},\"name\":\"Zo\\u00eb\"}";
    let (server, all) = (Scripted::start(), all_bytes());
    let proxy = start(&kept(&server.server(), "", ""));
    let mut line = Line::to(user(&proxy));
    let encoded = BASE64URL_NOPAD.encode(DATA).into_bytes();
    let patch = [b"patch: NONCE.", &encoded[..]].concat();
    let mut hear = |field: &[u8]| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nsteadfast-session-";
        server.answers_next([&head[..], field, b"\r\n\r\n"].concat());
        let reply = line.ask(&Method::POST, "/x", &[], b"");
        let what = String::from_utf8_lossy(field);
        assert!([200, 409, 502].contains(&reply.status), "{what:?}: {}", reply.text());
        assert!(!reply.headers.keys().any(|name| name.as_str().starts_with("steadfast")), "{what:?}: {reply:?}");
        reply.status
    };
    assert_eq!((hear(&[b"op: ", OP, b";rid=\"NONCE\""].concat()), hear(&patch)), (200, 200), "what is right is taken");
    for _ in 0..400 {
        hear(&[b"op: ", &fuzz.next(OP, SAID)[..], b";rid=\"NONCE\""].concat());
        hear(&[b"patch: NONCE.", &fuzz.next(&encoded, TEXT)[..]].concat());
        let json = BASE64URL_NOPAD.encode(&fuzz.next(DATA, &all)).into_bytes();
        hear(&[b"patch: NONCE.", &json[..]].concat());
        hear(&[b"if: ", &fuzz.next(b"10", SAID)[..], b"\r\nsteadfast-session-", &patch].concat());
    }
    for depth in [15, 17, 126, 129, 3_000] {
        let json = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        let status = hear(format!("patch: NONCE.{}", BASE64URL_NOPAD.encode(json.as_bytes())).as_bytes());
        assert_eq!(status, if depth < 16 { 200 } else { 502 }, "{depth} levels");
    }
    is_well(&proxy);
}

/// A proxy of a stateless pool; `more` goes below `[pool.stateless]`.
fn stateless(origin: &Origin, issuer: &Issuer, store: &str, more: &str) -> Proxy {
    let directory = tempfile::tempdir().unwrap();
    write_ring(directory.path());
    std::fs::write(directory.path().join("jwks.json"), key_set(&[issuer])).unwrap();
    let configuration = format!(
        "{LISTENER}[[route]]\npool = \"shop\"\n{store}[[pool]]\nname = \"shop\"\nmode = \"stateless\"\n{}\
         [pool.stateless]\n{more}[[pool.stateless.issuer]]\nissuer = \"{ISSUER}\"\njwks = \"file:jwks.json\"\n\
         audience = [\"shop\"]\n",
        servers(&[origin])
    );
    Proxy::start_in(directory, &configuration)
}

/// Who shows a token, and how it is answered.
fn shows(line: &mut Line, token: &[u8]) -> Reply {
    line.ask(&Method::GET, "/say", &[(header::AUTHORIZATION, &[b"Bearer ", token].concat())], b"")
}

/// None counts that the issuer has not signed as it is, and none of those whose claims are no claims.
fn tokens(fuzz: &mut Fuzz) {
    let (origin, issuer) = (Origin::start("a"), Issuer::new("k1", 1));
    let proxy = stateless(&origin, &issuer, "", "");
    let mut line = Line::to(user(&proxy));
    let valid = issuer.token("alice", &json!({ "acr": "mfa", "role": ["clerk"] })).into_bytes();
    assert_eq!(claims(&shows(&mut line, &valid))["sub"], "alice");
    for _ in 0..1_000 {
        let token = fuzz.next(&valid, TEXT);
        let reply = shows(&mut line, &token);
        // A key that is not known may be about to be.
        assert!([401, 503].contains(&reply.status), "{}: {}", String::from_utf8_lossy(&token), reply.text());
    }
    for _ in 0..600 {
        let names = ["iss", "aud", "sub", "iat", "exp", "nbf", "jti", "acr", "amr", "auth_time", "role", "cnf"];
        let name = names[fuzz.random.usize(..names.len())];
        let mut more = json!({});
        more[name] = fuzz.value(6);
        fuzz.tried += 1;
        let reply = shows(&mut line, issuer.token("alice", &more).as_bytes());
        assert!([200, 401].contains(&reply.status), "{more}: {}", reply.text());
        if matches!(name, "iss" | "aud" | "exp") {
            let counts = reply.status == 200;
            assert!(!counts || more["exp"].as_f64().is_some_and(|end| end > 1.0), "{more} is no such claim");
        }
    }
    assert_eq!(claims(&shows(&mut line, &valid))["sub"], "alice");
    is_well(&proxy);
}

/// By bodies and queries of operators, and by pages of the store that somebody else has written.
fn revocations(fuzz: &mut Fuzz) {
    const BODY: &[u8] = b"{\"pool\":\"shop\",\"jti\":\"t-2\",\"until\":\"1h\"}";
    const PATH: &str = "/api/v1/revocations";
    let (origin, issuer, redis) = (Origin::start("a"), Issuer::new("k1", 1), Redis::start());
    let store = format!("[[store]]\nname = \"main\"\n{}", in_redis(redis.port));
    let proxy = stateless(&origin, &issuer, &store, "store = \"main\"\n");
    let [stolen, other] =
        ["stolen-token", "another-token"].map(|jti| issuer.token("alice", &json!({ "jti": jti })).into_bytes());
    let mut line = Line::to(user(&proxy));
    eventually("what is revoked has been read", || shows(&mut line, &stolen).status == 200);
    let mut operator = Line::to(Client::plain(proxy.admin_address()));
    let kind = (header::CONTENT_TYPE, &b"application/json"[..]);
    let body = String::from_utf8_lossy(BODY).replace("t-2", "stolen-token");
    assert_eq!(operator.ask(&Method::POST, PATH, std::slice::from_ref(&kind), body.as_bytes()).status, 200);
    for _ in 0..400 {
        let reply = operator.ask(&Method::POST, PATH, std::slice::from_ref(&kind), &fuzz.next(BODY, &all_bytes()));
        assert!([200, 400, 404].contains(&reply.status), "{}", reply.text());
    }
    for _ in 0..200 {
        let query = fuzz.next(b"pool=shop&jti=t-2", &all_bytes());
        let query: String = query.iter().map(|byte| format!("%{byte:02x}")).collect();
        let query = query.replace("%3d", "=").replace("%26", "&");
        let reply = operator.ask(&Method::DELETE, &format!("{PATH}?{query}"), &[], b"");
        assert!([200, 400, 404].contains(&reply.status), "{query}: {}", reply.text());
    }
    assert_eq!((shows(&mut line, &stolen).status, shows(&mut line, &other).status), (401, 200));
    let pages = keys_of(&redis, 'r');
    assert!(!pages.is_empty());
    for page in &pages {
        let garbage = fuzz.next(&[0; 100], &all_bytes());
        assert_eq!(command(redis.port, &[b"SET", page.as_bytes(), &garbage, b"KEEPTTL"]), b"+OK\r\n");
    }
    // What is known stays known; and who knows nothing lets nobody in by what it could not read.
    let fresh = stateless(&origin, &issuer, &store, "store = \"main\"\n");
    let mut other_line = Line::to(user(&fresh));
    let begun = Instant::now();
    eventually("both have looked several times", || {
        assert_eq!(shows(&mut line, &stolen).status, 401);
        assert!([401, 503].contains(&shows(&mut other_line, &stolen).status), "half a deny-list is none");
        begun.elapsed() > Duration::from_secs(3)
    });
    is_well(&proxy);
    is_well(&fresh);
}

/// It is done, or it is refused with what is wrong with it.
fn side_api(fuzz: &mut Fuzz) {
    const PATCH: &[u8] = b"{\"cart\":{\"a\":[1,2.5e3,{\"b\":null}]},\"theme\":null}";
    const OP: &[u8] = b"{\"op\":\"step-up\",\"acr\":\"mfa\",\"amr\":[\"pwd\",\"otp\"]}";
    let origin = Origin::start("a");
    let api = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listening = format!("[session_api]\naddress = \"{api}\"\n[[store]]");
    let proxy = start(&kept(&servers(&[&origin]), "", "").replacen("[[store]]", &listening, 1));
    let alice = logged_in(&proxy, "alice", "{}");
    let waiting = later(&origin, &alice, "");
    let nonce = format!("Steadfast {}", origin.last().header("steadfast-session-request"));
    let mut server = Line::to(Client::plain(api));
    let (all, path) = (all_bytes(), "/v1/session");
    let mut call = |method: &str, path: &str, if_match: &[u8], credentials: &[u8], body: &[u8]| {
        let mut fields = vec![(header::AUTHORIZATION, credentials), (header::CONTENT_TYPE, &b"application/json"[..])];
        fields.extend((!if_match.is_empty()).then_some((header::IF_MATCH, if_match)));
        server.ask(&method.parse().unwrap(), path, &fields, body)
    };
    assert_eq!(call("PATCH", path, b"", nonce.as_bytes(), PATCH).status, 200);
    for _ in 0..250 {
        let credentials = [b"Steadfast ", &fuzz.next(&nonce.as_bytes()[10..], TEXT)[..]].concat();
        assert_eq!(call("PATCH", path, b"", &credentials, PATCH).status, 401);
        for reply in [
            call("PATCH", path, b"", nonce.as_bytes(), &fuzz.next(PATCH, &all)),
            call("PUT", path, b"\"2\"", nonce.as_bytes(), &fuzz.next(PATCH, &all)),
            call("PATCH", path, &fuzz.next(b"\"2\"", SAID), nonce.as_bytes(), PATCH),
            call("POST", "/v1/session/op", b"", nonce.as_bytes(), &fuzz.next(OP, &all)),
            call("DELETE", &format!("/v1/session/peers/{}", fuzz.random.u64(..)), b"", nonce.as_bytes(), b""),
        ] {
            assert!([200, 204, 400, 404, 409, 410, 412, 413].contains(&reply.status), "{reply:?}");
        }
    }
    origin.go_on();
    let answered = waiting.join().unwrap();
    assert!([200, 409].contains(&answered.status), "{}", answered.text());
    is_well(&proxy);
}

/// A record that somebody else has written over leads nowhere; and as soon as it is there again, so is its session.
fn records(fuzz: &mut Fuzz) {
    let redis = Redis::start_with(&["--appendfsync", "no"]);
    let origin = Origin::start("a");
    let proxy = start(&kept(&servers(&[&origin]), &in_redis(redis.port), ""));
    let mut alice = logged_in(&proxy, "alice", "{\"cart\":1}");
    let value = format!("{COOKIE}={}", alice.cookies[COOKIE]);
    let mut line = Line::to(user(&proxy));
    let all = all_bytes();
    for kind in ['h', 'd', 'n'] {
        let key = keys_of(&redis, kind).pop_first().unwrap();
        let whole = command(redis.port, &[b"GET", key.as_bytes()]);
        let mut texts: Vec<Vec<u8>> =
            [0, 1, 7, 8, 9, 13, 20, 28, 29, 36, 37, 1_000, 70_000].map(|n| vec![b'm'; n]).into();
        texts.extend(
            [&b"12345678muted"[..], b"12345678mutedx", b"\0\0\0\0\0\0\0\0muted01234567890123456789"]
                .map(<[u8]>::to_vec),
        );
        texts.extend((0..150).map(|_| fuzz.next(&whole, &all)));
        for text in &texts {
            assert_eq!(command(redis.port, &[b"SET", key.as_bytes(), text, b"KEEPTTL"]), b"+OK\r\n");
            let reply = line.ask(&Method::GET, "/say", &[(header::COOKIE, value.as_bytes())], b"");
            assert_eq!(claims(&reply)["st"], "none", "{kind}: {:?}", String::from_utf8_lossy(text));
            assert!(reply.set_cookies().is_empty(), "{reply:?}");
            assert_eq!(&command(redis.port, &[b"GET", key.as_bytes()]), text, "it is kept, to be looked at");
        }
        assert_eq!(command(redis.port, &[b"SET", key.as_bytes(), &whole, b"KEEPTTL"]), b"+OK\r\n");
        assert_eq!((&told(&mut alice)["sub"], &told(&mut alice)["d"]), (&json!("alice"), &json!({"cart":1})));
    }
    assert!(events(&proxy, "unreadable") > 300.0 && events(&proxy, "revoked") > 150.0);
    is_well(&proxy);
}
