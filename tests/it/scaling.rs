//! What happens when a server joins: slow start, and sessions that come over.

use crate::support::{Client, Origin, Proxy, eventually, plain};

const NO_PROBES: &str = "[pool.health]\ntype = \"off\"\n";

/// One request of each user; how many were answered by this origin.
fn round(users: &mut [Client], name: &str) -> usize {
    let origins = users.iter_mut().map(|user| {
        let reply = user.get("/");
        assert_eq!(reply.status, 200);
        reply.origin()
    });
    origins.filter(|origin| origin == name).count()
}

#[test]
fn sessions_come_over_to_a_server_that_joins_and_each_only_once() {
    let (a, b, c) = (Origin::start("a"), Origin::start("b"), Origin::start("c"));
    let rules =
        format!("[pool.sticky]\npin = \"soft\"\nmargin = 1000\n{NO_PROBES}[pool.rebalance]\nmoves_per_second = 1000\n");
    let proxy = Proxy::start(&plain(&[&a, &b], &rules));
    let mut users: Vec<Client> = (0..60).map(|_| proxy.client()).collect();
    round(&mut users, "c");
    round(&mut users, "c");
    let moved = || proxy.metric("steadfast_affinity_total", &["verdict=\"moved\"", "reason=\"rebalance\""]);
    assert_eq!(moved(), 0.0);
    assert!(proxy.reload(&plain(&[&a, &b, &c], &rules)));
    let mut before = 0;
    eventually("all that are to come over have", || {
        let now = round(&mut users, "c");
        let done = now >= 8 && now == before;
        before = now;
        done
    });
    let of_c = before;
    assert!((8..=34).contains(&of_c), "about a third of them: {of_c}");
    assert_eq!(moved(), of_c as f64, "no session was moved twice");
    assert_eq!(round(&mut users, "c"), of_c, "and all stay where they are");
}

#[test]
fn a_session_with_something_in_flight_is_left_alone() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let rules =
        format!("[pool.sticky]\npin = \"soft\"\nmargin = 1000\n{NO_PROBES}[pool.rebalance]\nmoves_per_second = 1000\n");
    let proxy = Proxy::start(&plain(&[&a], &rules));
    let mut users: Vec<Client> = (0..12).map(|_| proxy.client()).collect();
    round(&mut users, "b");
    let busy: Vec<_> = users
        .iter()
        .map(|user| {
            let mut user = user.clone();
            std::thread::spawn(move || user.get("/sleep/1500").origin())
        })
        .collect();
    eventually("all are busy", || proxy.metric("steadfast_in_flight", &["server=\"a\""]) == 12.0);
    assert!(proxy.reload(&plain(&[&a, &b], &rules)));
    assert_eq!(round(&mut users, "b"), 0, "they are in the middle of something");
    assert!(busy.into_iter().all(|busy| busy.join().unwrap() == "a"));
    eventually("idle, some come over", || round(&mut users, "b") > 0);
}

#[test]
fn without_rebalancing_only_new_sessions_go_to_a_server_that_joins_and_a_slow_start_holds_them_back() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let rules = |window: &str| {
        let balance = "debug_headers = true\nbalance = \"round-robin\"";
        let slow = format!(
            "[pool.sticky]\npin = \"soft\"\nmargin = 1000\n{NO_PROBES}[pool.slow_start]\nwindow = \"{window}\"\n"
        );
        move |origins: &[&Origin]| plain(origins, &slow).replace("debug_headers = true", balance)
    };
    let (slow, fast) = (rules("1h"), rules("0s"));
    let proxy = Proxy::start(&slow(&[&a]));
    let mut users: Vec<Client> = (0..10).map(|_| proxy.client()).collect();
    round(&mut users, "b");
    assert!(proxy.reload(&slow(&[&a, &b])));
    assert_eq!(round(&mut users, "b"), 0, "those who are pinned stay");
    let newcomers = |count: usize| (0..count).filter(|_| proxy.client().get("/").origin() == "b").count();
    let admitted = newcomers(200);
    assert!((2..50).contains(&admitted), "a tenth of what the other gets: {admitted}");
    assert!(proxy.reload(&fast(&[&a, &b])));
    let whole = newcomers(100);
    assert!((48..=52).contains(&whole), "without a window, its whole share, in turn on each worker: {whole}");
    let shown = || proxy.metric("steadfast_scale_out_seconds", &["server=\"b\""]);
    eventually("its share of requests was noticed", || {
        newcomers(20);
        shown() > 0.0
    });
}
