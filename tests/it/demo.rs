//! The demo as a whole: traffic in three pools, and switches that do to real processes what they say.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::support::browser::{Browser, ENTER};
use crate::support::demo::Demo;
use crate::support::{Client, eventually, within};

/// A twin runs seven seconds behind, and looks at ten; a machine may be slow.
const TWINS_PATIENCE: Duration = Duration::from_secs(120);
const POOLS: [&str; 3] = ["sticky", "shared", "stateless"];

/// What is known of a server by its number.
fn server(demo: &Demo, number: usize) -> Value {
    demo.state()["servers"][number - 1].clone()
}

fn pid(seen: &Value) -> Option<u64> {
    seen["pid"].as_u64()
}

fn is_running(pid: u64) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Exchanges of a pool, with this in their labels besides.
fn requests(demo: &Demo, pool: &str, more: &str) -> f64 {
    demo.metric("steadfast_requests_total", &[&format!("pool=\"{pool}\""), more])
}

/// The servers of a pool, as the proxy has them.
fn servers_of(demo: &Demo, pool: &str) -> Vec<Value> {
    let pool: Value = serde_json::from_str(&demo.admin(&format!("/api/v1/pools/{pool}"))).unwrap();
    pool["servers"].as_array().cloned().unwrap_or_default()
}

/// What one does by curl.
fn switch(demo: &Demo, path: &str, body: &'static str) -> (u16, String) {
    let reply = demo.stage().post(path, body);
    (reply.status, reply.text())
}

#[test]
fn traffic_comes_to_all_three_pools_while_servers_are_slowed_down_killed_and_added() {
    let mut demo = Demo::start(60);
    for pool in POOLS {
        eventually(&format!("traffic comes to {pool}"), || requests(&demo, pool, "") >= 150.0);
        assert!(requests(&demo, pool, "code=\"2xx\"") > 0.0, "users are let in");
        assert!(requests(&demo, pool, "code=\"3xx\"") > 0.0, "users log in");
        assert_eq!(requests(&demo, pool, "code=\"5xx\""), 0.0, "{pool}: {}", demo.admin("/metrics"));
    }
    let kept = || demo.metric("steadfast_affinity_total", &["pool=\"sticky\"", "verdict=\"kept\""]);
    eventually("users come with their pins", || kept() > 50.0);
    assert_eq!(demo.metric("steadfast_protect_total", &["rule=\"csrf\""]), 0.0, "its forms are no other site's");

    assert_eq!(switch(&demo, "/slow", "server=app-1"), (200, "app-1 works at a quarter of its speed.\n".to_owned()));
    assert_eq!(server(&demo, 1)["state"], "slow");
    is_slow(&servers_of(&demo, "sticky")[0]);
    assert_eq!(switch(&demo, "/fast", "server=app-1").0, 200);
    assert_eq!(server(&demo, 1)["state"], "running");

    let killed = pid(&server(&demo, 2)).unwrap();
    assert_eq!(switch(&demo, "/kill", "server=app-2").0, 200);
    assert!(!is_running(killed));
    assert_eq!((&server(&demo, 2)["state"], pid(&server(&demo, 2))), (&json!("away"), None));
    assert_eq!(switch(&demo, "/kill", "server=app-2").0, 409);
    eventually("another process takes its place", || pid(&server(&demo, 2)).is_some_and(|pid| pid != killed));
    for pool in POOLS {
        let before = requests(&demo, pool, "code=\"2xx\"");
        eventually("requests go on", || requests(&demo, pool, "code=\"2xx\"") > before + 50.0);
    }

    assert_eq!(switch(&demo, "/add", "").0, 200);
    for pool in POOLS {
        let is_up =
            || servers_of(&demo, pool).iter().any(|server| server["name"] == "app-4" && server["state"] == "up");
        eventually(&format!("{pool} has it"), is_up);
        eventually(&format!("{pool} uses it"), || requests(&demo, pool, "server=\"app-4\"") > 0.0);
    }

    let state = demo.state();
    let mut pids: Vec<u64> = state["servers"].as_array().unwrap().iter().filter_map(pid).collect();
    pids.push(pid(&state["traffic"]).unwrap());
    assert_eq!(pids.len(), 5, "{state}");
    assert!(pids.iter().all(|pid| is_running(*pid)), "{pids:?}");
    demo.end("INT");
    eventually("nothing is left of it", || !pids.iter().any(|pid| is_running(*pid)));
}

/// Asked directly, one page after another: 40 of 160 ms each in the mean, of which chance does not make less than half.
fn is_slow(server: &Value) {
    let mut client = Client::plain(server["address"].as_str().unwrap().parse().unwrap());
    let began = std::time::Instant::now();
    for _ in 0..40 {
        assert_eq!(client.get("/api/whoami").status, 200);
    }
    assert!(began.elapsed().as_secs_f64() > 3.0, "{:?}", began.elapsed());
}

#[test]
fn the_switches_are_for_whoever_is_at_this_machine() {
    let demo = Demo::start(0);
    assert_eq!(demo.state()["traffic"]["pid"], Value::Null, "nobody asks");
    let own = format!("http://{}", demo.stage_address());
    let before = demo.state();
    let attacks = [
        demo.stage().host("attacker.test"),
        demo.stage().host(&format!("attacker.test:{}", demo.stage_address().port())),
        demo.stage().header("Origin", "http://attacker.test"),
        demo.stage().header("Origin", "null"),
        demo.stage().header("Sec-Fetch-Site", "cross-site"),
        demo.stage().header("Origin", "http://attacker.test").header("Sec-Fetch-Site", "same-origin"),
    ];
    for mut attack in attacks {
        for path in ["/kill", "/slow", "/fast", "/add"] {
            assert_eq!(attack.post(path, "server=app-1").status, 403, "{path}");
        }
    }
    assert_eq!(demo.stage().host("attacker.test").get("/state").status, 403);
    for (path, body, status) in [
        ("/kill", "server=app-9", 404),
        ("/slow", "server=app-9", 404),
        ("/kill", "", 400),
        ("/kill", "server=", 400),
        ("/", "", 405),
        ("/state", "", 405),
        ("/nowhere", "", 404),
    ] {
        assert_eq!(switch(&demo, path, body).0, status, "{path} {body}");
    }
    let large = format!("server=app-1&more={}", "x".repeat(100_000));
    // The rest of it is not read, and that may end the connection before the answer is heard.
    if let Ok(reply) = demo.stage().try_send(Method::POST, "/kill", large.into()) {
        assert_eq!(reply.status, 400);
    }
    assert!(switch(&demo, "/fast", "server=app-9").1.contains("There is no server app-9."));
    for path in ["/kill", "/slow", "/fast", "/add"] {
        let reply = demo.stage().get(path);
        assert_eq!((reply.status, reply.header("allow").as_str()), (405, "POST"), "{path}");
    }
    assert_eq!(demo.stage().try_send(Method::DELETE, "/state", Bytes::new()).unwrap().status, 405);
    assert_eq!(demo.state(), before, "nothing was done");

    let page = demo.stage().get("/");
    assert!(page.header("content-security-policy").starts_with("default-src 'none'; script-src 'self';"));
    for elsewhere in ["src=\"http", "src=\"//", "url(", "@import", "onclick"] {
        assert!(!page.text().contains(elsewhere), "{elsewhere}");
    }
    let form = demo.stage().header("Origin", &own).header("Accept", "text/html").post("/slow", "server=app-3");
    assert_eq!((form.status, form.header("location").as_str()), (303, "/"));
    assert_eq!(server(&demo, 3)["state"], "slow");
    for _ in 4..=6 {
        assert_eq!(switch(&demo, "/add", "").0, 200);
    }
    assert_eq!(switch(&demo, "/add", "").0, 409);
    assert_eq!(demo.state()["servers"].as_array().unwrap().len(), 6);
}

/// The state of a server in the page.
fn shown(browser: &Browser, server: &str) -> String {
    browser.text_of(&format!("[data-server=\"{server}\"] [data-part=\"state\"]"))
}

#[test]
fn the_switches_are_used_from_the_keyboard_without_script_and_on_a_phone() {
    let demo = Demo::start(0);
    let browser = Browser::start();
    browser.open(&demo.index());
    browser.click("stage");
    eventually("the switches are shown", || shown(&browser, "app-1") == "running");

    let focus = "document.querySelector('[data-server=\"app-1\"] [action=\"/slow\"] button').focus()";
    browser.run(focus);
    browser.press(ENTER);
    eventually("the page says so", || browser.text("said") == "app-1 works at a quarter of its speed.");
    eventually("the page shows it", || shown(&browser, "app-1").starts_with("slow"));
    let has_focus = "return document.activeElement.textContent";
    assert_eq!(browser.run(has_focus), "Slow down app-1", "the focus is where it was");
    browser.run("document.querySelector('[action=\"/add\"] button').click()");
    eventually("there is one more", || shown(&browser, "app-4") == "running");
    let fields =
        "return document.querySelectorAll('[data-server=\"app-4\"] [name=\"server\"][value=\"app-4\"]').length";
    assert_eq!(browser.run(fields), 3, "its buttons are its own");
    browser.run("document.querySelector('[data-server=\"app-4\"] [action=\"/kill\"] button').click()");
    eventually("it is away", || shown(&browser, "app-4").starts_with("away, back in "));

    // As without its script: the form is sent, and leads back here.
    browser.run("document.querySelector('[data-server=\"app-1\"] [action=\"/fast\"]').submit()");
    eventually("it is at full speed", || shown(&browser, "app-1") == "running" && browser.text("said").is_empty());
    assert_eq!(browser.run("return location.pathname"), "/");

    for width in [360, 390, 1280] {
        for scheme in ["light", "dark"] {
            browser.shows_as(width, 844, scheme);
            let needs = browser.run("return document.documentElement.scrollWidth").as_u64().unwrap();
            assert!(needs <= u64::from(width), "{needs} of {width}");
        }
    }
    let complaints = browser.complaints();
    assert!(!complaints.contains("SEVERE"), "{complaints}");
}

/// The pictures of the README are taken here: `STEADFAST_PICTURES=docs tests/run --test it -- pictures`.
#[test]
fn pictures_of_the_dashboard_while_the_demo_is_busy() {
    let directory = std::env::var_os("STEADFAST_PICTURES").map_or_else(|| "target/pictures".into(), PathBuf::from);
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    std::fs::create_dir_all(&directory).unwrap();
    let demo = Demo::start(100);
    let browser = Browser::start();
    browser.open(&format!("http://{}/", demo.admin_address()));
    // The fastest of three would be the least to see.
    assert_eq!(switch(&demo, "/slow", "server=app-2").0, 200);
    let part = |pool: &str, part: &str| browser.text_of(&format!("[data-pool=\"{pool}\"] [data-part=\"{part}\"]"));
    for pool in POOLS {
        within(TWINS_PATIENCE, &format!("the twin of {pool} has spoken"), || part(pool, "twin").contains("trust: fit"));
        eventually("heavy sessions are known", || part(pool, "heavyText").contains("of the work"));
    }
    assert!(
        part("sticky", "twin").starts_with("With soft pins this pool's p99 would be "),
        "{}",
        part("sticky", "twin")
    );
    for (name, width, height, scheme) in
        [("light", 1280, 1500, "light"), ("dark", 1280, 1500, "dark"), ("phone", 390, 1500, "light")]
    {
        browser.shows_as(width, height, scheme);
        let needs = browser.run("return document.documentElement.scrollWidth").as_u64().unwrap();
        assert!(needs <= u64::from(width), "{needs} of {width}");
        browser.picture(&directory.join(format!("dashboard-{name}.png")));
    }
    let complaints = browser.complaints();
    assert!(!complaints.contains("SEVERE"), "{complaints}");
}
