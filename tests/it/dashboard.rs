//! The dashboard: what is served, what it is fed with, and what it shows and does in a real browser.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::support::browser::{Browser, ENTER, ESCAPE};
use crate::support::{Client, Origin, PATIENCE, Proxy, eventually, plain};

const PARTS: [(&str, &str); 3] =
    [("/", "text/html"), ("/dashboard.css", "text/css"), ("/dashboard.js", "text/javascript")];
const TOKEN: &str = "a token of more than sixteen bytes";

fn with_token(origin: &Origin) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("admin.token"), TOKEN).unwrap();
    let keys = "metrics = \"127.0.0.1:0\"\ntoken = \"file:admin.token\"\n[process]\nworkers = 1\nwatch = false\n";
    (directory, format!("{keys}{}", plain(&[origin], "")))
}

/// The first snapshot of a stream.
fn snapshot(proxy: &Proxy) -> Value {
    let mut stream = TcpStream::connect(proxy.admin_address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    let event = lines.find_map(|line| line.strip_prefix("data: ").map(str::to_owned)).unwrap();
    serde_json::from_str(&event).unwrap()
}

/// A browser that has the dashboard open.
fn watch(proxy: &Proxy, browser: &Browser) {
    browser.open(&format!("http://{}/", proxy.admin_address()));
    eventually("the dashboard has begun", || !browser.text("connection").is_empty());
}

fn is_live(browser: &Browser) -> bool {
    browser.text("connection") == "live"
}

/// The text of a part of a server's row.
fn of_server(browser: &Browser, server: &str, part: &str) -> String {
    browser.text_of(&format!("[data-server=\"{server}\"] [data-part=\"{part}\"]"))
}

/// Opens the dialog of a button from the keyboard.
fn ask_for(browser: &Browser, server: &str, deed: &str) {
    let button = format!("[data-server=\"{server}\"] [data-deed=\"{deed}\"]");
    browser.run(&format!("document.querySelector('{button}').focus()"));
    browser.press(ENTER);
    eventually("it asks whether that is meant", || is_asking(browser));
}

fn is_asking(browser: &Browser) -> bool {
    browser.run("return document.getElementById('confirmation').open") == true
}

#[test]
fn the_page_comes_with_its_parts_from_one_address_and_brings_nothing_from_elsewhere() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let client = Client::plain(proxy.admin_address());
    for (path, content_type) in PARTS {
        let reply = client.clone().get(path);
        assert_eq!((reply.status, reply.header("cache-control").as_str()), (200, "no-store"), "{path}");
        assert!(reply.header("content-type").starts_with(content_type), "{path}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        let policy = reply.header("content-security-policy");
        for directive in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "frame-ancestors 'none'",
            "form-action 'none'",
            "base-uri 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(policy.split(';').any(|own| own.trim() == directive), "{directive} in {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        let text = reply.text();
        for elsewhere in ["http:", "https:", "src=\"//", "url(", "@import", "innerHTML", "style=\""] {
            assert!(!text.contains(elsewhere), "{elsewhere} in {path}");
        }
        let head = client.clone().try_send(Method::HEAD, path, Bytes::new()).unwrap();
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(client.clone().post(path, "").status, 405);
    }
    assert_eq!(client.clone().host("attacker.test").get("/").status, 403, "a name that was rebound");
}

#[test]
fn with_a_token_the_page_is_for_all_and_what_it_shows_is_not() {
    let origin = Origin::start("a");
    let (directory, configuration) = with_token(&origin);
    let proxy = Proxy::start_in(directory, &configuration);
    let stranger = Client::plain(proxy.admin_address());
    for (path, _) in PARTS {
        let reply = stranger.clone().get(path);
        assert_eq!(reply.status, 200, "{path}");
        assert!(!reply.text().contains("shop"), "{path} says nothing of this proxy");
    }
    for path in ["/api/v1/stream", "/api/v1/pools", "/index.html", "/dashboard"] {
        assert_eq!(stranger.clone().get(path).status, 401, "{path}");
    }
    let metrics_only = proxy.admin("/").unwrap();
    assert!(metrics_only.contains("There is /metrics"), "no dashboard where only metrics are: {metrics_only}");
}

#[test]
fn the_stream_brings_what_is_counted() {
    let origin = Origin::start("a");
    let store = "[[store]]\nname = \"main\"\nkind = \"embedded\"\n";
    let proxy = Proxy::start(&format!("{store}{}", plain(&[&origin], "")));
    let mut user = proxy.client();
    for _ in 0..3 {
        assert_eq!(user.get("/").status, 200);
    }
    assert_eq!(user.header("sec-fetch-site", "cross-site").post("/", "").status, 403);
    let has = |found: &Value, wanted: Value| found.as_array().unwrap().contains(&wanted);
    eventually("all of it is counted", || {
        let snapshot = snapshot(&proxy);
        let pool = &snapshot["pools"][0];
        pool["codes"] == json!({ "2xx": 3, "4xx": 1 })
            && has(&pool["verdicts"], json!({ "verdict": "new", "reason": "first", "count": 1 }))
            && has(&pool["verdicts"], json!({ "verdict": "kept", "reason": "", "count": 2 }))
    });
    let snapshot = snapshot(&proxy);
    let pool = &snapshot["pools"][0];
    assert_eq!((&pool["name"], &pool["servers"][0]["name"]), (&json!("shop"), &json!("a")));
    assert_eq!((&pool["regret"]["count"], &pool["disagreements"]), (&json!(2), &json!(0)));
    let buckets = pool["regret"]["buckets"].as_array().unwrap();
    assert_eq!((buckets.len(), &buckets[0][0], &buckets[15]), (16, &json!(0.0005), &json!([60.0, 2])));
    assert_eq!(pool["session_events"], json!({}), "the pool has no sessions in a store");
    for path in ["/api/v1/pools", "/api/v1/pools/shop"] {
        let asked: Value = serde_json::from_str(&proxy.admin(path).unwrap()).unwrap();
        let asked = asked.get(0).unwrap_or(&asked);
        assert_eq!((&asked["name"], &asked["regret"]), (&pool["name"], &pool["regret"]), "{path}");
    }
    let forged = json!({ "rule": "csrf", "decision": "rejected", "reason": "cross_site", "count": 1 });
    assert!(has(&snapshot["protect"], forged), "{snapshot}");
    assert_eq!((&snapshot["ready"], &snapshot["limits"]), (&json!(true), &json!({})));
    assert_eq!(snapshot["version"], env!("CARGO_PKG_VERSION"));
    let store = &snapshot["stores"][0];
    assert_eq!((&store["name"], &store["answers"], &store["errors"]), (&json!("main"), &json!(true), &json!(0)));
}

#[test]
fn servers_are_shown_live_and_one_is_drained_from_the_keyboard() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a, &b], ""));
    let mut users: Vec<Client> = (0..12).map(|_| proxy.client()).collect();
    for _ in 0..3 {
        users.iter_mut().for_each(|user| assert_eq!(user.get("/").status, 200));
    }
    let browser = Browser::start();
    watch(&proxy, &browser);
    eventually("it is live", || is_live(&browser));
    assert_eq!(browser.text_of("[data-pool=\"shop\"] h2"), "shop");
    assert_eq!(["a", "b"].map(|server| of_server(&browser, server, "state")), ["up", "up"]);
    assert!(browser.text_of("[data-pool=\"shop\"] [data-part=\"kind\"]").starts_with("sticky"));
    let sessions = || browser.text_of("[data-pool=\"shop\"] [data-part=\"sessions\"]");
    eventually("all sessions are seen", || sessions() == "12");
    eventually("verdicts are shown while requests come", || {
        users.iter_mut().for_each(|user| assert_eq!(user.get("/").status, 200));
        browser.text_of("[data-pool=\"shop\"] [data-part=\"verdictLegend\"]").contains("kept 100 %")
    });

    ask_for(&browser, "a", "drain");
    assert!(browser.text("deed-title").contains("Drain shop/a?"));
    browser.press("10m");
    browser.press(ENTER);
    eventually("the page shows the drain", || of_server(&browser, "a", "state") == "drain");
    assert!(!is_asking(&browser));
    let drain = of_server(&browser, "a", "drain");
    assert!(drain.contains("the rest is moved in 10 min 0 s") || drain.contains("in 9 min"), "{drain}");
    assert!(of_server(&browser, "a", "why").contains("no newcomers: draining"));
    assert_eq!(browser.text("announcements"), "shop/a: up, now drain.");
    assert_eq!(browser.run("return document.activeElement.ariaLabel"), "Drain a", "the focus is where it was");
    assert_eq!(proxy.metric("steadfast_server_state", &["server=\"a\"", "state=\"drain\""]), 1.0);

    ask_for(&browser, "b", "maint");
    browser.press(ESCAPE);
    eventually("nothing was meant", || !is_asking(&browser));
    ask_for(&browser, "a", "ready");
    browser.click("deed-do");
    eventually("the page shows that it is up", || of_server(&browser, "a", "state") == "up");
    assert_eq!(of_server(&browser, "b", "state"), "up");
    let complaints = browser.complaints();
    assert!(!complaints.contains("SEVERE"), "{complaints}");
}

#[test]
fn what_the_api_refuses_is_said_in_the_dialog_and_a_weight_is_set() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let browser = Browser::start();
    watch(&proxy, &browser);
    eventually("it is live", || is_live(&browser));
    ask_for(&browser, "a", "weight");
    let fill = |text: &str| {
        browser.run(&format!("document.getElementById('deed-value').value = '{text}'"));
        browser.click("deed-do");
    };
    fill("many");
    eventually("it says what a weight is", || browser.text("deed-problem").contains("a whole number from 0 to 1000"));
    assert!(is_asking(&browser));
    fill("3");
    eventually("the page shows the weight", || of_server(&browser, "a", "weight") == "3 (file: 1)");
    assert!(!is_asking(&browser));
    assert!(browser.text("events").contains("shop/a: weight 1, now 3"));
}

#[test]
fn it_asks_for_the_token_and_says_when_the_proxy_is_gone() {
    let origin = Origin::start("a");
    let (directory, configuration) = with_token(&origin);
    let proxy = Proxy::start_in(directory, &configuration);
    let browser = Browser::start();
    watch(&proxy, &browser);
    let is_asked = || {
        browser.run("return !document.getElementById('login').hidden && document.activeElement.id === 'token'") == true
    };
    let log_in = |token: &str| {
        browser.run(&format!("document.getElementById('token').value = '{token}'"));
        browser.press(ENTER);
    };
    eventually("the token is asked for", is_asked);
    log_in("wrong");
    eventually("it was another", || browser.text("login-problem") == "That is not the token.");
    log_in(TOKEN);
    eventually("it is live", || is_live(&browser));
    assert_eq!(of_server(&browser, "a", "state"), "up");
    assert_eq!(browser.run("return document.cookie"), "", "no script can read the login");
    assert_eq!(browser.run("return document.getElementById('token').value"), "");

    std::fs::write(proxy.path().join("admin.token"), "another token of many bytes").unwrap();
    assert!(proxy.reload(&configuration));
    eventually("the new token is asked for", is_asked);
    assert_eq!(browser.text("login-problem"), "", "nobody is told that the browser had not kept the login");
    log_in("another token of many bytes");
    eventually("it is live again", || is_live(&browser));
    let directory = proxy.kill();
    eventually("it says so", || browser.text("connection").starts_with("connection lost"));
    assert!(browser.text("announcements").contains("Connection lost"));
    assert_eq!(browser.run("return document.getElementById('live').classList.contains('stale')"), true);
    drop(directory);
}

#[test]
fn it_is_readable_in_light_and_dark_and_on_a_phone() {
    let origins = ["shop-1", "shop-2", "shop-3"].map(Origin::start);
    let proxy = Proxy::start(&plain(&origins.each_ref(), ""));
    let browser = Browser::start();
    watch(&proxy, &browser);
    eventually("it is live", || is_live(&browser));
    // Five minutes of a busy proxy, in place of its own.
    browser.run("hangUp()");
    browser.run(SYNTHETIC);
    browser.run("feed(0, 302)");
    let luminance = "const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number); \
                     return 0.2126 * r + 0.7152 * g + 0.0722 * b";
    for scheme in ["light", "dark"] {
        browser.shows_as(1280, 900, scheme);
        let background = browser.run(luminance).as_f64().unwrap();
        assert_eq!(background > 128.0, scheme == "light", "{background}");
    }
    for width in [360, 390] {
        browser.shows_as(width, 844, "light");
        let needs = browser.run("return document.documentElement.scrollWidth").as_u64().unwrap();
        assert!(needs <= u64::from(width), "{needs} of {width}");
        let smallest = browser.run(
            "return Math.min(...Array.from(document.querySelectorAll('.deeds button'), (button) => \
             button.getBoundingClientRect().height))",
        );
        assert!(smallest.as_f64().unwrap() >= 44.0, "buttons are large enough for a thumb: {smallest}");
    }
    let unnamed = "return Array.from(document.querySelectorAll('button, input'), (control) => control).filter((control) \
                   => !control.ariaLabel && !control.labels?.length && !control.textContent.trim()).length";
    assert_eq!(browser.run(unnamed), 0, "every control has a name");
    assert_eq!(browser.run("return document.querySelectorAll('[aria-live]').length"), 1, "and one voice is enough");
}

#[test]
fn the_twin_speaks_in_one_sentence_and_says_where_it_is_not_to_be_trusted() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let browser = Browser::start();
    watch(&proxy, &browser);
    eventually("it is live", || is_live(&browser));
    browser.run("hangUp()");
    browser.run(SYNTHETIC);
    let part = "[data-part=\"twin\"]";
    let is_hidden = || browser.run("return document.querySelector('[data-part=\"whatIf\"]').hidden");
    let has_class = || browser.run(&format!("return document.querySelector('{part}').classList.contains('doubted')"));
    browser.run("feed(0, 10)");
    assert_eq!(is_hidden(), true, "it has not said anything");
    browser.run("feed(10, 61)");
    assert_eq!(is_hidden(), false);
    let sentence = "With soft pins this pool's p99 would be 5 ms instead of 8 ms (and 90 % of requests would stay on their \
                    server), with a store 4 ms, with hard pins 9 ms; trust: fit 1.10";
    assert_eq!(browser.text_of(part), format!("{sentence}."));
    assert_eq!(has_class(), false);
    browser.run("feed(61, 100)");
    let doubted = format!("{sentence}, but not to be trusted, as there were too few requests to tell.");
    assert_eq!((browser.text_of(part), has_class()), (doubted, json!(true)));
    let rows =
        "return Array.from(document.querySelector('[data-part=\"played\"]').rows, (row) => row.textContent.trim())";
    let rows = browser.run(rows);
    assert_eq!(rows.as_array().map(Vec::len), Some(5), "{rows}");
    assert_eq!(rows[3], "soft pins1 ms3 ms5 ms1.2090 %");
    // What is in force is no alternative to itself.
    browser.run(
        "const one = synthetic(101); one.pools[0].twin.policies.sticky = one.pools[0].twin.policies.actual; show(one)",
    );
    assert!(browser.text_of(part).contains("with a store 4 ms; trust"), "{}", browser.text_of(part));
    assert!(!browser.complaints().contains("SEVERE"), "{}", browser.complaints());
}

#[test]
fn heavy_sessions_are_said_in_one_sentence_and_listed() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let browser = Browser::start();
    watch(&proxy, &browser);
    eventually("it is live", || is_live(&browser));
    browser.run("hangUp()");
    browser.run(SYNTHETIC);
    let is_hidden = || browser.run("return document.querySelector('[data-part=\"heavy\"]').hidden");
    let sentence = || browser.text_of("[data-part=\"heavyText\"]");
    browser.run("feed(0, 30)");
    assert_eq!(is_hidden(), true, "a proxy of another version does not say who they are");
    browser.run("feed(30, 60); window.row = document.querySelector('.session')");
    assert_eq!(is_hidden(), false);
    assert_eq!(sentence(), "The heaviest 1 % of 1,240 sessions are 43 % of the work.");
    browser.run("feed(60, 61)");
    assert_eq!(browser.run("return document.querySelector('.session') === row"), true, "rows stay");
    assert_eq!(browser.text_of(".session code"), "000000000000012c", "and say what is in the last snapshot");
    assert_eq!(browser.text_of(".session .value"), "20 % of the work, on server-1, 24 requests/s");
    assert_eq!(browser.run("return document.querySelectorAll('.session .bar')[1].style.width"), "50%");
    let show = |number: u32, heavy: &Value| {
        let shown = browser.run(&format!(
            "const now = synthetic({number}); now.pools[0].twin.sampled = 0.25; now.pools[0].twin.heavy = {heavy}; show(now)"
        ));
        assert!(shown.is_null(), "{shown}");
    };
    let of = |session: &str, share: f64| json!({ "session": session, "server": "a", "requests": 3, "share": share });
    show(61, &json!({ "sessions": 8, "exact": false, "top_share": 0.5, "top": [of("00000000000000aa", 0.5)] }));
    assert_eq!(
        sentence(),
        "The heaviest of 8 sessions is at least 50 % of the work, in a sample of 25 % of the sessions."
    );
    assert_eq!(browser.run("return document.querySelector('.pool').querySelectorAll('.session').length"), 1);
    let top: Vec<Value> = (0..9).map(|number| of(NASTY, 0.1 - f64::from(number) / 100.0)).collect();
    show(62, &json!({ "sessions": 9, "exact": true, "top_share": 0.1, "top": top }));
    assert_eq!(browser.run("return document.querySelector('.pool').querySelectorAll('.session').length"), 5);
    assert_eq!(
        (browser.text_of(".session code"), browser.run("return typeof window.hacked")),
        (NASTY.into(), json!("undefined"))
    );
    show(63, &json!({ "sessions": 0, "exact": true, "top_share": 0.0, "top": [] }));
    assert_eq!(is_hidden(), true);
    assert!(!browser.complaints().contains("SEVERE"), "{}", browser.complaints());
}

#[test]
fn names_are_text_and_an_hour_of_snapshots_leaves_no_more_than_five_minutes() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    // What an engine compiles meanwhile counts to the heap too, and is not the page's.
    let browser = Browser::start_with(&["--js-flags=--no-opt --no-maglev"]);
    watch(&proxy, &browser);
    eventually("it is live", || is_live(&browser));
    browser.run("hangUp()");
    browser.run(SYNTHETIC);
    browser.run(&format!("names[0] = '{NASTY}'"));
    let heap = |from: usize, to: usize| {
        for first in (from..to).step_by(100) {
            let fed = browser.run(&format!("feed({first}, {})", first + 100));
            assert!(fed.is_null(), "{fed}");
        }
        browser.devtools("HeapProfiler.enable", json!({}));
        for _ in 0..2 {
            browser.devtools("HeapProfiler.collectGarbage", json!({}));
        }
        let used = browser.devtools("Runtime.getHeapUsage", json!({}))["usedSize"].as_f64().unwrap();
        let nodes = browser.devtools("Memory.getDOMCounters", json!({}))["nodes"].as_u64().unwrap();
        (used, nodes)
    };
    let (early, few) = heap(0, 300);
    let (late, many) = heap(300, 3_600);
    assert!(late <= 1.1 * early, "{early} bytes became {late}");
    assert!(many <= few + few / 10, "{few} nodes became {many}");
    assert_eq!(browser.text_of(".pool h2"), NASTY);
    assert_eq!(browser.run("return document.querySelectorAll('img').length"), 0);
    assert_eq!(browser.run("return document.querySelectorAll('.session').length"), 10, "five of each pool");
    assert_eq!(browser.run("return typeof window.hacked"), "undefined");
    let line = browser.run("return document.querySelector('[data-part=\"actualLine\"]').getAttribute('d')");
    assert!(line.as_str().unwrap().matches('L').count() >= 290, "five minutes are drawn: {line}");
    // Pools that have gone take everything of theirs along.
    browser.run("show({ ...synthetic(3601), pools: [] })");
    assert_eq!(browser.run("return document.querySelectorAll('.pool, .server').length"), 0);
    let complaints = browser.complaints();
    assert!(!complaints.contains("SEVERE"), "{complaints}");
}

const NASTY: &str = "<img src=x onerror=hacked=1>";

/// Snapshots of a proxy that is never there: two busy pools, whose servers drain in turn.
const SYNTHETIC: &str = "
window.names = ['shop', 'api'];
window.synthetic = (number) => {
  const of = (rate) => Math.floor(rate * (number + 20 * Math.sin(number / 40)));
  const requests = (value) => ({ requests: { max_over_mean: value, jain: 0.9, cv: 0.3 } });
  const played = (value) => ({ p50_ms: 1, p95_ms: 3, p99_ms: value, max_over_mean: 1.2, jain: 0.9, kept: 0.9 });
  const server = (at) => {
    const drains = number % 60 === at;
    return {
      name: `server-${at}`, address: `10.0.0.${at}:8080`, state: drains ? 'drain' : 'up',
      newcomers: drains ? 'draining' : 'eligible', pinned: 'eligible', wish: drains ? 'drain' : 'ready',
      deadline_s: drains ? 200 - number % 100 : null, own_word: { wish: 'ready', weight_percent: 100 },
      weight: 1, configured_weight: 1, backup: false, in_flight: (number * (at + 3)) % 23, max_requests: 0,
      long_lived: {}, waiting: number % 3, latency_ms: 2 + (number * at) % 7, sessions: (number + at * 13) % 400,
      requests_per_second: (number * (at + 1)) % 90, scale_out_s: null,
      drain: drains ? { remaining: number % 40, half_life_s: 30, eta_s: 90, safe_to_stop: false } : null,
    };
  };
  const heaviest = (share, at) => ({
    session: (number * 5 + at).toString(16).padStart(16, '0'), server: `server-${at + 1}`, requests: 1200 * share, share,
  });
  const heavy = { sessions: 1240, exact: true, top_share: 0.43, top: [0.2, 0.1, 0.05, 0.03, 0.01].map(heaviest) };
  const pool = (name) => ({
    name, mode: 'sticky', balance: 'p2c', rebalancing_s: null, requests_per_second: 360,
    imbalance: requests(1.4 + 0.3 * Math.sin(number / 20)), shadow_imbalance: requests(1.1 + 0.1 * Math.sin(number / 9)),
    servers: [1, 2, 3, 4, 5, 6].map(server),
    verdicts: [['kept', '', 300], ['new', 'first', 40], ['moved', 'margin', 15], ['none', 'preflight', 6]]
      .map(([verdict, reason, rate]) => ({ verdict, reason, count: of(rate) })),
    regret: { count: of(300), sum_s: of(3), buckets: [[0.001, of(150)], [0.01, of(280)], [0.1, of(300)]] },
    disagreements: of(30), codes: { '2xx': of(360), '5xx': of(1) }, session_events: { created: of(1) },
    twin: number < 20 ? null : {
      policies: { actual: played(8), sticky: played(9), soft: played(5), shared: played(4) }, fit: 1.1,
      doubts: number % 60 < 30 ? [] : ['too_few'], window_s: 10, sampled: 1, heavy: number < 30 ? undefined : heavy,
    },
  });
  return {
    time: 1e9 + number, version: '0', ready: number % 500 !== 7, pools: names.map(pool),
    stores: [{ name: 'main', answers: number % 90 !== 1, records: number, bytes: 9000 * number, evicted: 0,
      operations: number, took_s: number / 999, errors: 0 }],
    protect: [{ rule: 'csrf', decision: 'rejected', reason: 'cross_site', count: number }],
    limits: { max_requests: number },
  };
};
window.feed = (from, to) => { for (let number = from; number < to; number += 1) show(synthetic(number)); };
";
