//! Other sources of affinity than our cookie, soft pins, waiting lines, and refusing instead of moving.

use std::collections::BTreeSet;

use crate::support::{Origin, Proxy, eventually, plain, server};

const NO_PROBES: &str = "[pool.health]\ntype = \"off\"\n";

fn three() -> [Origin; 3] {
    ["a", "b", "c"].map(Origin::start)
}

fn sticky(origins: &[&Origin], keys: &str) -> String {
    plain(origins, &format!("[pool.sticky]\n{keys}\n{NO_PROBES}"))
}

#[test]
fn the_applications_own_cookie_is_learned_and_survives_a_reload() {
    let origins = three();
    let configuration = sticky(&origins.each_ref(), "source = \"learned\"\ncookie = \"app\"");
    let proxy = Proxy::start(&configuration);
    let mut client = proxy.client();
    // The origin sets `app=1`; every session of the test needs a value of its own.
    client.cookies.insert("app".to_owned(), "ada".to_owned());
    let first = client.get("/");
    assert!(first.verdict().starts_with("new; reason=expired"), "{first:?}");
    assert!(first.set_cookies().is_empty(), "no cookie of ours");
    assert!((0..20).all(|_| client.get("/").origin() == first.origin()));
    assert!(
        proxy.reload(&configuration.replace("debug_headers = true", "debug_headers = true\nbalance = \"round-robin\""))
    );
    assert_eq!(client.get("/").verdict(), format!("kept; server={}", first.origin()));
    let seen = origins.iter().flat_map(Origin::seen).next_back().unwrap();
    assert_eq!(seen.header("cookie"), "app=ada", "it is the application's, and stays in the request");
    let mut newcomer = proxy.client();
    let home = newcomer.get("/cookie").origin();
    assert_eq!(newcomer.get("/").origin(), home, "learned from its Set-Cookie");
}

#[test]
fn a_suffix_names_the_server() {
    let origins = three();
    let proxy = Proxy::start(&sticky(&origins.each_ref(), "source = \"suffix\"\ncookie = \"JSESSIONID\""));
    for name in ["a", "b", "c"] {
        let mut client = proxy.client().header("Cookie", &format!("JSESSIONID=0123.{name}"));
        assert_eq!(client.get("/").verdict(), format!("kept; server={name}"));
    }
    let gone = proxy.client().header("Cookie", "JSESSIONID=0123.z").get("/");
    assert!(gone.verdict().starts_with("moved; reason=gone"));
}

#[test]
fn a_header_or_an_address_is_hashed() {
    let origins = three();
    let proxy = Proxy::start(&sticky(&origins.each_ref(), "source = \"header\"\nheader = \"X-User\""));
    let home = |user: &str| {
        let homes: BTreeSet<String> = (0..5).map(|_| proxy.client().header("X-User", user).get("/").origin()).collect();
        assert_eq!(homes.len(), 1);
        homes.into_iter().next().unwrap()
    };
    let homes: BTreeSet<String> = (0..30).map(|user| home(&format!("user-{user}"))).collect();
    assert_eq!(homes.len(), 3);
    assert!(proxy.client().get("/").verdict().starts_with("none; reason=not_sticky"));
    let process = "[process]\nworkers = 2\nmax_connections = 100\ntrusted_proxies = [\"127.0.0.1\"]\n";
    let proxy = Proxy::start(&format!("{process}{}", sticky(&origins.each_ref(), "source = \"address\"")));
    let at = |client: &str| proxy.client().header("X-Forwarded-For", client).get("/").origin();
    assert!((0..5).all(|_| at("1.2.3.4") == at("1.2.3.4")));
    let spread: BTreeSet<String> = (0..30).map(|last| at(&format!("1.2.3.{last}"))).collect();
    assert_eq!(spread.len(), 3, "the client's address counts, not the trusted proxy's");
}

#[test]
fn a_soft_pin_moves_when_it_costs_more_than_its_margin() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&sticky(&[&a, &b], "pin = \"soft\"\nmargin = 2"));
    let mut client = proxy.client();
    let home = client.get("/").origin();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let mut busy = client.clone();
            scope.spawn(move || busy.get("/sleep/1500"));
        }
        eventually("home is busy", || proxy.metric("steadfast_in_flight", &[&format!("server=\"{home}\"")]) == 3.0);
        let moved = client.clone().get("/");
        assert!(moved.verdict().starts_with("moved; reason=margin"), "{moved:?}");
        assert_eq!(moved.set_cookies().len(), 1);
    });
    assert_eq!(client.get("/").origin(), home);
}

#[test]
fn a_pinned_request_waits_for_its_own_full_server_and_newcomers_do_not() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let servers = format!("{}max_requests = 1\n{}", server("a", &a.address()), server("b", &b.address()));
    let proxy = Proxy::start(&plain(
        &[],
        &format!("{servers}[pool.sticky]\nqueue = {{ length = 1, timeout = \"20s\" }}\n{NO_PROBES}"),
    ));
    let mut client = proxy.client();
    while client.get("/").origin() != "a" {
        client = proxy.client();
    }
    std::thread::scope(|scope| {
        let mut busy = client.clone();
        scope.spawn(move || busy.get("/sleep/700"));
        eventually("a is full", || proxy.metric("steadfast_in_flight", &["server=\"a\""]) == 1.0);
        let mut patient = client.clone();
        let waiting = scope.spawn(move || patient.get("/"));
        eventually("one waits", || proxy.metric("steadfast_queue_length", &["server=\"a\""]) == 1.0);
        let past = client.clone().get("/");
        assert_eq!(past.verdict(), "moved; reason=full; server=b", "the line has its length");
        assert!(past.set_cookies().is_empty(), "and nobody is re-pinned for good");
        let waited = waiting.join().unwrap();
        assert_eq!(waited.verdict(), "waited; server=a");
        assert!(waited.header("steadfast-verdict").contains("; regret="), "it might have gone elsewhere: {waited:?}");
    });
    assert_eq!(proxy.metric("steadfast_queue_wait_seconds_count", &["server=\"a\""]), 1.0);
    eventually("it is logged", || {
        proxy.access_log().iter().any(|line| {
            line["verdict"] == "waited" && line["queue_position"] == 1 && line["queue_ms"].as_f64() > Some(0.0)
        })
    });
}

#[test]
fn who_waits_too_long_moves_or_is_refused() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let servers =
        format!("{}max_requests = 1\n{}max_requests = 1\n", server("a", &a.address()), server("b", &b.address()));
    for (rule, verdict) in [("move", "moved; reason=full"), ("fail", "")] {
        let keys =
            format!("[pool.sticky]\nqueue = {{ timeout = \"200ms\" }}\nwhen_unavailable = \"{rule}\"\n{NO_PROBES}");
        let proxy = Proxy::start(&plain(&[], &format!("{servers}{keys}")));
        let mut client = proxy.client();
        let home = client.get("/").origin();
        std::thread::scope(|scope| {
            let mut busy = client.clone();
            scope.spawn(move || busy.get("/sleep/1500"));
            eventually("home is full", || proxy.metric("steadfast_in_flight", &[&format!("server=\"{home}\"")]) == 1.0);
            let waited = client.clone().get("/");
            assert!(waited.verdict().starts_with(verdict), "{waited:?}");
            assert_eq!(waited.status, if rule == "fail" { 503 } else { 200 });
        });
        let refused = proxy.metric("steadfast_affinity_total", &["verdict=\"refused\"", "reason=\"queue_timeout\""]);
        assert_eq!(refused, if rule == "fail" { 1.0 } else { 0.0 });
        assert_eq!(client.get("/").origin(), home, "the cookie is kept");
    }
}

#[test]
fn with_fail_a_dead_server_is_waited_for_and_not_left() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&sticky(&[&a, &b], "when_unavailable = \"fail\""));
    let mut client = proxy.client();
    let home = client.get("/").origin();
    let (dead, alive) = if home == "a" { (a, b) } else { (b, a) };
    let address = dead.address();
    drop(dead);
    let refused = client.get("/");
    assert_eq!((refused.status, refused.set_cookies().len()), (503, 0), "{refused:?}");
    assert!(proxy.metric("steadfast_affinity_total", &["verdict=\"refused\""]) >= 1.0);
    // It was kept twice before, and a server that has just failed is a costly one.
    eventually("it is in the log", || proxy.access_log().iter().any(|line| line["verdict"] == "refused"));
    let log = proxy.access_log();
    let refused = log.iter().find(|line| line["verdict"] == "refused").unwrap();
    assert_eq!(refused["regret_ms"], 0.0, "who is refused has no pin that held: {refused}");
    let back = Origin::start_on(&home, &address, crate::support::origin::Speaks::Http1);
    assert_eq!(client.get("/").verdict(), format!("kept; server={home}"));
    drop((back, alive));
}

#[test]
fn what_stickiness_costs_is_measured() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&sticky(&[&a, &b], ""));
    let mut client = proxy.client();
    let home = client.get("/").origin();
    // The other one has been asked too, so it is known to be fast.
    eventually("the other has a session", || proxy.client().get("/").origin() != home);
    // One session does all the asking: its server is busy, and the other is not.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (mut busy, home) = (client.clone(), home.clone());
            scope.spawn(move || (0..8).for_each(|_| assert_eq!(busy.get("/sleep/100").origin(), home)));
        }
    });
    let by = |policy: &str, of: &str, measure: &str| {
        let labels =
            [("policy", policy), ("of", of), ("measure", measure)].map(|(name, is)| format!("{name}=\"{is}\""));
        proxy.metric("steadfast_imbalance_ratio", &labels.each_ref().map(String::as_str))
    };
    let imbalance = |of: &str, measure: &str| by("actual", of, measure);
    eventually("requests are seen to be uneven", || imbalance("requests", "max_over_mean") > 1.9);
    assert!(imbalance("requests", "jain") < 0.6 && imbalance("requests", "cv") > 0.9);
    let shadow = by("shadow", "requests", "max_over_mean");
    assert!((1.0..1.6).contains(&shadow), "the policy alone would have spread them: {shadow}");
    eventually("sessions too", || imbalance("sessions", "max_over_mean") == 2.0);
    assert_eq!(proxy.metric("steadfast_affinity_regret_seconds_count", &[]), 32.0);
    assert!(proxy.metric("steadfast_affinity_regret_seconds_sum", &[]) > 0.0, "it waits where another would not");
    assert!(proxy.metric("steadfast_affinity_disagreement_total", &[]) > 5.0);
    assert!(client.get("/").header("steadfast-verdict").contains("; regret="));
    eventually("it is in the log", || proxy.access_log().iter().any(|line| line["regret_ms"].as_f64() > Some(0.0)));
}
