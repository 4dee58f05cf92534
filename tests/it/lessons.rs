//! What users of other proxies trip over: one test per lesson.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD, HEXLOWER, HEXUPPER};
use http::Method;
use serde_json::Value;

use crate::support::client::Reply;
use crate::support::{Client, Origin, PATIENCE, Proxy, eventually, plain, server, servers, tls};

const NO_PROBES: &str = "[pool.health]\ntype = \"off\"\n";
const PROBES: &str = "[pool.health]\npath = \"/healthz\"\ninterval = \"50ms\"\nrise = 2\nfall = 2\n";
/// Each worker has a round-robin of its own: shares are exact with one.
const ONE_WORKER: &str = "[process]\nworkers = 1\nmax_connections = 1000\nwatch = false\n";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn three() -> [Origin; 3] {
    ["a", "b", "c"].map(Origin::start)
}

/// The kit's one pool, with this policy.
fn balanced(balance: &str, configuration: &str) -> String {
    configuration.replace("debug_headers = true", &format!("debug_headers = true\nbalance = \"{balance}\""))
}

/// A second pool under a path of its own, on every host.
fn beside(name: &str, keys: &str, origins: &[&Origin]) -> String {
    let route = format!("[[route]]\npath = \"/{name}\"\npool = \"{name}\"\n");
    format!("{route}[[pool]]\nname = \"{name}\"\ndebug_headers = true\n{keys}{}", servers(origins))
}

/// A directory with a key ring, the same for every proxy.
fn with_ring() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let key = steadfast::keys::RingKey::from_secret([5; 32]);
    std::fs::write(directory.path().join("ring.key"), key.to_line().as_bytes()).unwrap();
    directory
}

/// A user whose session was placed on this server.
fn pinned_to(proxy: &Proxy, server: &str) -> Client {
    let mut client = proxy.client();
    eventually(&format!("a newcomer is placed on {server}"), || {
        client = proxy.client();
        client.get("/").origin() == server
    });
    client
}

/// The same user at this proxy, with the cookies of that moment.
fn returning(proxy: &Proxy, user: &Client) -> Client {
    let mut client = proxy.client();
    client.cookies.clone_from(&user.cookies);
    client
}

/// Name and value of the pin that a newcomer gets.
fn pin_of(proxy: &Proxy, path: &str) -> (String, String) {
    let mut client = proxy.client();
    client.get(path);
    client.cookies.pop_first().unwrap()
}

fn verdicts(proxy: &Proxy, labels: &[&str]) -> f64 {
    proxy.metric("steadfast_affinity_total", labels)
}

fn in_flight(proxy: &Proxy, server: &str) -> f64 {
    proxy.metric("steadfast_in_flight", &[&format!("server=\"{server}\"")])
}

fn is_in(proxy: &Proxy, server: &str, state: &str) -> bool {
    let labels = [format!("server=\"{server}\""), format!("state=\"{state}\"")];
    proxy.metric("steadfast_server_state", &[&labels[0], &labels[1]]) == 1.0
}

/// Calls the admin API.
fn api(proxy: &Proxy, method: Method, path: &str, body: &str) -> Value {
    let mut client = Client::plain(proxy.admin_address()).header("Content-Type", "application/json");
    let body = Bytes::copy_from_slice(body.as_bytes());
    let reply = client.try_send(method, &format!("/api/v1/{path}"), body).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

/// A newcomer on a connection of its own, and who answered it. What was asked for goes on until the stream is dropped.
fn hold(proxy: &Proxy, path: &str, headers: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(proxy.address("main")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n{headers}\r\n").as_bytes()).unwrap();
    let lines = BufReader::new(&stream).lines().map(|line| line.unwrap().to_ascii_lowercase());
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let origin = head.iter().find_map(|line| line.strip_prefix("x-origin: ")).map(str::to_owned);
    (stream, origin.unwrap_or_else(|| panic!("no server answered: {head:?}")))
}

/// Traefik 3975, 5177; styx 70.
#[test]
fn a_retry_skips_the_dead_pin_and_the_cookie_names_who_answered() {
    let [a, b, c] = three();
    let proxy = Proxy::start(&plain(&[&a, &b, &c], NO_PROBES));
    let mut client = proxy.client();
    let first = client.get("/").origin();
    // Gone: the pinned server was dropped, with its port closed.
    let mut left: Vec<Origin> = [a, b, c].into_iter().filter(|origin| origin.name != first).collect();
    let mut copies: Vec<Client> = (0..8).map(|_| client.clone()).collect();
    let moved = copies.iter_mut().map(|copy| {
        let reply = copy.get("/");
        assert_eq!((reply.status, reply.set_cookies().len()), (200, 1), "{reply:?}");
        assert_eq!(reply.verdict(), format!("moved; reason=failed; server={}", reply.origin()));
        let again = copy.get("/");
        assert_eq!(again.verdict(), format!("kept; server={}", reply.origin()));
        reply.origin()
    });
    let to: BTreeSet<String> = moved.collect();
    assert_eq!(to.len(), 1, "concurrent requests of one session move to one place: {to:?}");
    left.clear();
    let nobody = client.get("/");
    assert_eq!((nobody.status, nobody.set_cookies().len()), (502, 0), "no cookie where nobody has answered");
}

/// Caddy's `Full()`.
#[test]
fn a_momentary_cap_does_not_re_pin_for_good() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let servers = format!(
        "{}max_requests = 1\n{}max_requests = 1\n{NO_PROBES}[pool.sticky]\nqueue = {{ length = 0 }}\n",
        server("a", &a.address()),
        server("b", &b.address())
    );
    let proxy = Proxy::start(&plain(&[], &servers));
    let mut client = proxy.client();
    let home = client.get("/").origin();
    std::thread::scope(|scope| {
        let mut busy = client.clone();
        let at_work = scope.spawn(move || busy.get("/sleep/1000"));
        eventually("home is full", || in_flight(&proxy, &home) == 1.0);
        let elsewhere = client.get("/");
        assert!(elsewhere.verdict().starts_with("moved; reason=full"), "{elsewhere:?}");
        assert!(elsewhere.set_cookies().is_empty());
        assert_eq!(at_work.join().unwrap().origin(), home);
    });
    eventually("home has room", || in_flight(&proxy, &home) == 0.0);
    assert_eq!(client.get("/").verdict(), format!("kept; server={home}"));
}

/// HAProxy 1282.
#[test]
fn balancer_state_survives_a_reload() {
    let origins = ["a", "b", "c", "d"].map(Origin::start);
    let rules = "[pool.sticky]\nsource = \"learned\"\ncookie = \"app\"\n\
                 [pool.outlier]\nconsecutive_failures = 3\nejection = \"60s\"\n";
    let configuration = |order: &[&Origin]| balanced("least-requests", &plain(order, &format!("{rules}{NO_PROBES}")));
    let mut order = origins.each_ref();
    let proxy = Proxy::start(&configuration(&order));
    // One server is ejected, one is drained, one is busy, and one is left for newcomers.
    let mut ada = proxy.client();
    ada.cookies.insert("app".to_owned(), "ada".to_owned());
    let ejected = ada.get("/").origin();
    (0..3).for_each(|_| assert_eq!(ada.get("/status/503").status, 503));
    let drained = order.map(|origin| &*origin.name).into_iter().find(|name| *name != ejected).unwrap();
    api(&proxy, Method::POST, &format!("pools/shop/servers/{drained}/drain"), "");
    let (stream, busy) = hold(&proxy, "/events", "");
    let free = order.iter().find(|origin| ![ejected.as_str(), drained, busy.as_str()].contains(&&*origin.name));
    let free = free.unwrap().name.clone();
    // The order turns as well: what is known of a server goes by its name.
    order.reverse();
    assert!(proxy.reload(&configuration(&order)), "{}", proxy.log());
    assert!(is_in(&proxy, &ejected, "ejected") && is_in(&proxy, drained, "drain"));
    for _ in 0..12 {
        eventually("only the stream is in flight", || proxy.metric("steadfast_in_flight", &[]) == 1.0);
        assert_eq!(in_flight(&proxy, &busy), 1.0, "it is still known to be busy");
        assert_eq!(proxy.client().get("/").origin(), free);
    }
    assert_eq!(ada.get("/").verdict(), format!("kept; server={ejected}"), "what was learned is known");
    drop(stream);
}

/// HAProxy 2894; ingress-nginx 13484; emissary 1473.
#[test]
fn a_drain_has_a_remaining_count_and_a_deadline() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a, &b], NO_PROBES));
    let mut users: Vec<Client> = (0..4).map(|_| pinned_to(&proxy, "a")).collect();
    // Only who has come back is a session.
    let mut all_stay = || users.iter_mut().for_each(|user| assert_eq!(user.get("/").verdict(), "kept; server=a"));
    all_stay();
    let drain = |deadline: &str| {
        let body = format!("{{\"deadline\":\"{deadline}\"}}");
        api(&proxy, Method::POST, "pools/shop/servers/a/drain", &body)
    };
    let begun = drain("10m");
    assert_eq!(begun["drain"]["remaining"], 4, "{begun}");
    assert_eq!(begun["drain"]["safe_to_stop"], false, "{begun}");
    assert!(begun["deadline_s"].as_f64().is_some_and(|left| left > 0.0 && left <= 600.0), "{begun}");
    let remaining = || proxy.metric("steadfast_drain_sessions_remaining", &["server=\"a\""]);
    assert_eq!(remaining(), 4.0);
    all_stay();
    assert!((0..10).all(|_| proxy.client().get("/").origin() == "b"), "no newcomers");
    drain("1ms");
    eventually("the deadline has passed", || remaining() == 0.0);
    for user in &mut users {
        let reply = user.get("/");
        assert_eq!((reply.status, reply.set_cookies().len()), (200, 1), "{reply:?}");
        assert_eq!(reply.verdict(), "moved; reason=draining; server=b");
        assert_eq!(user.get("/").verdict(), "kept; server=b");
    }
    eventually("it is safe to stop", || {
        api(&proxy, Method::GET, "pools/shop", "")["servers"][0]["drain"]["safe_to_stop"] == true
    });
}

/// Envoy 44111; YARP 1980, 1982.
#[test]
fn expiry_goes_by_the_wall_clock_and_one_key_serves_all_proxies() {
    const IDLE: Duration = Duration::from_secs(3);
    let origins = three();
    let sticky = format!("[pool.sticky]\nidle = \"{}s\"\n{NO_PROBES}", IDLE.as_secs());
    let configuration = format!("[keys]\nring = [\"file:ring.key\"]\n{}", plain(&origins.each_ref(), &sticky));
    let start = || Proxy::start_in(with_ring(), &configuration);
    let (one, two) = (start(), start());
    let issued = Instant::now();
    let mut user = one.client();
    let home = user.get("/").origin();
    assert_eq!(returning(&two, &user).get("/").verdict(), format!("kept; server={home}"));
    // The proxy that wrote the pin starts again: time since its start says nothing, and no other state is needed.
    drop(one);
    let one = start();
    let mut other = two.client();
    let home = other.get("/").origin();
    assert_eq!(returning(&one, &other).get("/").verdict(), format!("kept; server={home}"));
    for proxy in [&one, &two] {
        // Each time the cookie of the first answer: a pin that is used would be written again.
        eventually("the pin is over", || returning(proxy, &user).get("/").verdict().starts_with("new; reason=expired"));
        assert!(issued.elapsed() >= IDLE, "it ended after {:?}", issued.elapsed());
    }
}

/// ingress-nginx 14042, 4208, 1271.
#[test]
fn two_pools_of_one_host_do_not_overwrite_each_others_cookie() {
    let (shops, blogs) = (three(), ["x", "y", "z"].map(Origin::start));
    let blog = beside("blog", "mode = \"sticky\"\n", &blogs.each_ref());
    let proxy = Proxy::start(&format!("{}{blog}", plain(&shops.each_ref(), NO_PROBES)));
    let mut client = proxy.client();
    let (at_shop, at_blog) = (client.get("/"), client.get("/blog/deep/down"));
    let lines = [at_shop.set_cookies(), at_blog.set_cookies()].concat();
    assert_eq!((lines.len(), client.cookies.len()), (2, 2), "a name of its own for each pool: {lines:?}");
    // A narrower path would make a second cookie of the same name when the first is sent from somewhere else.
    assert!(lines.iter().all(|line| line.split("; ").any(|attribute| attribute == "Path=/")), "{lines:?}");
    for _ in 0..10 {
        for (path, first) in [("/", &at_shop), ("/blog/", &at_blog)] {
            let reply = client.get(path);
            assert_eq!(reply.verdict(), format!("kept; server={}", first.origin()));
            assert!(reply.set_cookies().is_empty());
        }
    }
}

/// ingress-nginx 9154.
#[test]
fn who_keeps_coming_is_never_cut_off() {
    const IDLE: Duration = Duration::from_secs(4);
    let origins = three();
    let sticky = format!("[pool.sticky]\nidle = \"{}s\"\n{NO_PROBES}", IDLE.as_secs());
    let proxy = Proxy::start(&plain(&origins.each_ref(), &sticky));
    let mut client = proxy.client();
    let home = client.get("/").origin();
    let first = client.clone();
    let (began, mut written) = (Instant::now(), 0);
    eventually("the user has come for twice as long as an unused pin lives", || {
        let reply = client.get("/");
        assert_eq!(reply.verdict(), format!("kept; server={home}"));
        written += reply.set_cookies().len() as u64;
        began.elapsed() > IDLE * 2
    });
    let most = began.elapsed().as_secs() + 2;
    assert!((2..=most).contains(&written), "written again when it is due, not with every answer: {written}");
    let verdict = returning(&proxy, &first).get("/").verdict();
    assert!(verdict.starts_with("new; reason=expired"), "the first cookie is over: it was the sliding. {verdict}");
}

/// oxy 107.
#[test]
fn a_made_up_cookie_aims_nothing_at_anybody() {
    let origins = three();
    let shop = balanced("round-robin", &plain(&origins.each_ref(), NO_PROBES));
    let blog = beside("blog", "mode = \"sticky\"\n", &origins.each_ref());
    let configuration = format!("{ONE_WORKER}{shop}{blog}");
    let proxy = Proxy::start(&configuration);
    let (name, value) = pin_of(&proxy, "/");
    let other = if &value[60..61] == "A" { "B" } else { "A" };
    let forgeries = [
        (format!("{}{other}{}", &value[..60], &value[61..]), "invalid"),
        (value[..40].to_owned(), "invalid"),
        ("x".repeat(4_000), "invalid"),
        // What would do elsewhere: the server's name, and its address in base64.
        ("a".to_owned(), "invalid"),
        (BASE64_NOPAD.encode(origins[0].address().as_bytes()), "invalid"),
        (pin_of(&proxy, "/blog/").1, "other_pool"),
        // A proxy without a ring draws its own key.
        (pin_of(&Proxy::start(&configuration), "/").1, "unknown_key"),
    ];
    let shares = || origins.each_ref().map(|origin| origin.seen().len());
    let before = shares();
    for (value, reason) in &forgeries {
        for _ in 0..9 {
            let mut attacker = proxy.client();
            attacker.cookies.insert(name.clone(), value.clone());
            let reply = attacker.get("/");
            assert_eq!(reply.status, 200);
            assert!(reply.verdict().starts_with(&format!("new; reason={reason};")), "{reply:?}");
        }
    }
    // As newcomers are: to each server its third.
    assert_eq!(shares(), before.map(|share| share + forgeries.len() * 3));
    for (reason, count) in [("invalid", 45.0), ("other_pool", 9.0), ("unknown_key", 9.0)] {
        let label = format!("reason=\"{reason}\"");
        eventually(&format!("{reason} is counted"), || verdicts(&proxy, &["pool=\"shop\"", &label]) == count);
    }
}

/// A text as it is, in hexadecimal digits, and in base64.
fn spellings(text: &str) -> [String; 5] {
    let bytes = text.as_bytes();
    let encoded = [&HEXLOWER, &HEXUPPER, &BASE64_NOPAD, &BASE64URL_NOPAD].map(|encoding| encoding.encode(bytes));
    let [lower, upper, base64, base64url] = encoded;
    [text.to_owned(), lower, upper, base64, base64url]
}

/// rancher 7593.
#[test]
fn nothing_internal_is_in_the_cookie_or_any_header() {
    let origins = ["db-internal", "application-server-17.corp.internal", "warehouse-3"].map(Origin::start);
    // The test's own servers tell their names: that is the application's header, and is taken away here.
    let configuration = tls(&origins.each_ref(), NO_PROBES)
        .replace("debug_headers = true", "balance = \"round-robin\"")
        .replace("[[route]]\n", "[[route]]\nresponse_headers = { remove = [\"X-Origin\"] }\n")
        .replace("\"shop\"", "\"accounting-pool\"");
    let proxy = Proxy::start(&format!("{ONE_WORKER}{configuration}"));
    let mut secrets = vec!["accounting-pool".to_owned(), "127.0.0.1".to_owned()];
    for origin in &origins {
        let address = origin.address();
        let port = address.rsplit(':').next().unwrap().to_owned();
        secrets.extend([origin.name.clone(), address, port]);
    }
    let tells_nothing = |reply: &Reply| {
        let lines = reply.headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()));
        let head: String = lines.collect();
        for spelling in secrets.iter().flat_map(|secret| spellings(secret)) {
            assert!(!head.contains(&spelling), "{spelling} is in\n{head}");
        }
    };
    let replies: Vec<Reply> = (0..3).map(|_| proxy.tls_client().get("/hop")).collect();
    assert!(origins.iter().all(|origin| origin.seen().len() == 1), "every server has answered one newcomer");
    replies.iter().for_each(tells_nothing);
    let lengths: Vec<usize> = replies.iter().map(|reply| reply.set_cookies()[0].len()).collect();
    assert!(lengths.iter().all(|length| *length == lengths[0]), "the length tells the server: {lengths:?}");
    drop(origins);
    let nobody = proxy.tls_client().get("/");
    assert_eq!(nobody.status, 502);
    tells_nothing(&nobody);
}

/// aralez 40.
#[test]
fn whether_users_stick_is_published_whatever_the_source() {
    let origins = three();
    for (source, new) in [
        ("source = \"cookie\"", 1.0),
        ("source = \"learned\"\ncookie = \"app\"", 1.0),
        ("source = \"suffix\"\ncookie = \"JSESSIONID\"", 1.0),
        // Hashed: there is a home before the first request.
        ("source = \"header\"\nheader = \"X-User\"", 0.0),
        ("source = \"address\"", 0.0),
    ] {
        let sticky = format!("[pool.sticky]\n{source}\n{NO_PROBES}");
        let proxy = Proxy::start(&plain(&origins.each_ref(), &sticky));
        let mut client = proxy.client().header("X-User", "ada");
        // The application's answer sets `app`; a Tomcat would set the other one.
        let home = client.get("/cookie").origin();
        client.cookies.insert("JSESSIONID".to_owned(), format!("0123.{home}"));
        (0..9).for_each(|_| assert_eq!(client.get("/").origin(), home, "{source}"));
        eventually("all are counted", || verdicts(&proxy, &[]) == 10.0);
        let counted = ["verdict=\"new\"", "verdict=\"kept\""].map(|verdict| verdicts(&proxy, &[verdict]));
        assert_eq!(counted, [new, 10.0 - new], "{source}");
    }
}

/// DriveBC 1011.
#[test]
fn what_shared_caches_may_keep_carries_no_pin_and_stays_cacheable() {
    let origins = three();
    let configuration = plain(&origins.each_ref(), NO_PROBES)
        .replace("[[pool]]", "[[route]]\npath = \"/static\"\npool = \"shop\"\nsticky = false\n[[pool]]");
    let proxy = Proxy::start(&configuration);
    let said = |reply: Reply| (reply.set_cookies().len(), reply.header("cache-control"));
    let mut user = proxy.client();
    assert_eq!(said(user.get("/")), (1, "private".to_owned()));
    for mut client in [proxy.client(), user] {
        assert_eq!(said(client.get("/cached")), (0, "public, max-age=60".to_owned()));
        assert_eq!(said(client.get("/static/site.css")), (0, String::new()));
    }
    assert_eq!(said(proxy.client().get("/private")), (1, "no-cache".to_owned()));
}

/// verl 7613.
#[test]
fn idle_servers_share_their_newcomers_whatever_the_policy() {
    // A server that was slow once is rightly shunned for a while by peak-ewma: there each gets some, not its share.
    for (balance, least) in [("p2c", 10), ("least-requests", 10), ("peak-ewma", 1)] {
        let origins = three();
        let proxy = Proxy::start(&balanced(balance, &plain(&origins.each_ref(), NO_PROBES)));
        (0..90).for_each(|_| assert!(proxy.client().get("/").verdict().starts_with("new; reason=first")));
        let shares = origins.each_ref().map(|origin| origin.seen().len());
        assert!(shares.iter().all(|share| *share >= least), "{balance}: {shares:?}");
    }
}

/// socket.io 1923, 2140.
#[test]
fn long_polls_stay_together_and_open_web_sockets_count_as_load() {
    let [a, b, c] = three();
    let configuration = |origins: &[&Origin]| balanced("least-requests", &plain(origins, NO_PROBES));
    let proxy = Proxy::start(&configuration(&[&a, &b]));
    let mut client = proxy.client();
    let home = client.get("/").origin();
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let mut poll = client.clone();
            let polling = scope.spawn(move || poll.get("/sleep/1000").origin());
            eventually("the poll is open", || in_flight(&proxy, &home) == 1.0);
            // The other server is idle, and knows nothing of the session.
            assert_eq!(client.post("/echo", "packet").verdict(), format!("kept; server={home}"));
            assert_eq!(polling.join().unwrap(), home);
        });
    }
    eventually("all is quiet", || proxy.metric("steadfast_in_flight", &[]) == 0.0);
    let mut sockets: Vec<(TcpStream, String)> = (0..4).map(|_| hold(&proxy, "/ws", UPGRADE)).collect();
    let spread = |sockets: &[(TcpStream, String)]| {
        ["a", "b", "c"].map(|name| sockets.iter().filter(|(_, origin)| origin == name).count())
    };
    assert_eq!(spread(&sockets), [2, 2, 0]);
    // A third server joins: it takes the newcomers until it carries as many.
    assert!(proxy.reload(&configuration(&[&a, &b, &c])), "{}", proxy.log());
    sockets.extend((0..2).map(|_| hold(&proxy, "/ws", UPGRADE)));
    assert_eq!(spread(&sockets), [2, 2, 2]);
}

/// shenyu 4384; apisix 12204.
#[test]
fn behind_a_trusted_proxy_the_clients_address_counts_and_a_strangers_word_does_not() {
    let origins = three();
    let configuration = plain(&origins.each_ref(), &format!("[pool.sticky]\nsource = \"address\"\n{NO_PROBES}"));
    let homes = |proxy: &Proxy| -> Vec<String> {
        let addresses = (0..64).map(|last| format!("198.51.100.{last}"));
        addresses.map(|address| proxy.client().header("X-Forwarded-For", &address).get("/").origin()).collect()
    };
    let trusting = Proxy::start(&format!("{ONE_WORKER}trusted_proxies = [\"127.0.0.1\"]\n{configuration}"));
    let first = homes(&trusting);
    assert_eq!(homes(&trusting), first, "each client has its home");
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    first.iter().for_each(|home| *shares.entry(home).or_default() += 1);
    assert!(shares.len() == 3 && shares.values().all(|share| *share >= 5), "{shares:?}");
    // Nobody chooses a server by what they write into a header.
    let spread: BTreeSet<String> = homes(&Proxy::start(&configuration)).into_iter().collect();
    assert_eq!(spread.len(), 1, "all come from one peer: {spread:?}");
}

/// AWS ALB.
#[test]
fn an_empty_group_answers_503_only_while_it_is_empty() {
    let [a, b, c] = three();
    let proxy = Proxy::start(&plain(&[&a, &b], PROBES));
    let client = pinned_to(&proxy, "a");
    // Always with the first cookie, which is good for a day.
    let ask = || client.clone().get("/");
    let empty = || {
        eventually("nobody is left", || ask().status == 503);
        assert!(ask().set_cookies().is_empty(), "and the cookie stays as it is");
    };
    a.be_ill(true);
    b.be_ill(true);
    empty();
    b.be_ill(false);
    eventually("one is back", || ask().status == 200);
    let moved = ask();
    assert_eq!((moved.verdict().as_str(), moved.set_cookies().len()), ("moved; reason=down; server=b", 1));
    b.be_ill(true);
    empty();
    assert!(proxy.reload(&plain(&[&c], PROBES)), "{}", proxy.log());
    assert_eq!(ask().verdict(), "moved; reason=gone; server=c", "others have taken their place");
}

/// vets-api 26834.
#[test]
fn an_accidental_sticky_flag_is_seen_in_the_metrics() {
    let origins = three();
    let sticky = balanced("round-robin", &plain(&origins.each_ref(), NO_PROBES));
    let even = beside("even", "mode = \"none\"\nbalance = \"round-robin\"\n", &origins.each_ref());
    let proxy = Proxy::start(&format!("{ONE_WORKER}{sticky}{even}"));
    let mut heavy = proxy.client();
    let home = heavy.get("/").origin();
    // The same traffic to both pools: one session does nearly all the asking.
    for _ in 0..60 {
        assert_eq!(heavy.get("/").origin(), home);
        heavy.get("/even/");
    }
    let imbalance = |pool: &str| {
        let label = format!("pool=\"{pool}\"");
        let labels = [&*label, "policy=\"actual\"", "of=\"requests\"", "measure=\"max_over_mean\""];
        proxy.metric("steadfast_imbalance_ratio", &labels)
    };
    eventually("the sticky pool is seen to be uneven, and the other one even", || {
        imbalance("shop") > 1.5 && (1.0..1.2).contains(&imbalance("even"))
    });
    let sessions = |server: &str| {
        let label = format!("server=\"{server}\"");
        proxy.metric("steadfast_sessions", &["pool=\"shop\"", &label])
    };
    for origin in &origins {
        assert_eq!(sessions(&origin.name), if origin.name == home { 1.0 } else { 0.0 }, "{}", origin.name);
    }
    // Two of three kept picks would have gone elsewhere.
    let disagreements = |pool: &str| proxy.metric("steadfast_affinity_disagreement_total", &[pool]);
    assert!(disagreements("pool=\"shop\"") > 20.0 && disagreements("pool=\"even\"") == 0.0);
}
