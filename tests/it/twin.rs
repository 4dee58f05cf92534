//! The twin of a pool that serves: what it says after a while of traffic.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Client, Origin, PATIENCE, Proxy, eventually, plain};

const NO_PROBES: &str = "[pool.health]\ntype = \"off\"\n";

/// What the API says of the pool's twin.
fn twin(proxy: &Proxy) -> Value {
    let text = proxy.admin("/api/v1/pools/shop").expect("the API answers");
    let pool: Value = serde_json::from_str(&text).expect("JSON");
    assert!(pool["name"] == "shop" && pool.get("twin").is_some(), "{text}");
    pool["twin"].clone()
}

/// Users ask one after another, until there is an answer. The twin runs some seconds behind, and its windows are long.
fn ask_until(users: &mut [Client], proxy: &Proxy, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + 3 * PATIENCE;
    loop {
        for user in &mut *users {
            assert_eq!(user.get("/sleep/5").status, 200);
        }
        let said = twin(proxy);
        if wanted(&said) {
            return said;
        }
        assert!(Instant::now() < deadline, "the twin says {said}");
    }
}

#[test]
fn the_twin_says_what_other_policies_would_come_to() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let more = format!("{NO_PROBES}[pool.twin]\ndiscipline = \"sharing\"\n");
    let proxy = Proxy::start(&plain(&[&a, &b], &more).replace("[[pool.server]]", "[[pool.server]]\ncapacity = 8"));
    assert_eq!(twin(&proxy), Value::Null, "it has nothing to say yet");
    let mut users: Vec<Client> = (0..8).map(|_| proxy.client()).collect();
    let said = ask_until(&mut users, &proxy, |said| !said.is_null());
    assert!(said["exchanges"].as_u64() > Some(0) && said["window_s"].as_f64() >= Some(10.0), "{said}");
    assert_eq!((&said["sampled"], &said["events_dropped"]), (&Value::from(1.0), &Value::from(0)), "{said}");
    for policy in ["actual", "sticky", "soft", "shared"] {
        let of = &said["policies"][policy];
        assert!(of["p50_ms"].as_f64() > Some(4.0) && of["p99_ms"].as_f64() >= of["p50_ms"].as_f64(), "{said}");
        assert!(of["max_over_mean"].as_f64() >= Some(1.0) && of["jain"].as_f64() <= Some(1.0), "{said}");
    }
    assert!(said["policies"]["actual"]["kept"].as_f64() > Some(0.5), "{said}");
    assert_eq!(said["policies"]["shared"]["kept"], Value::Null);
    let b = serde_json::json!({ "name": "b", "capacity": 8.0, "discipline": "sharing", "speed": 1.0 });
    assert_eq!(said["servers"][1], b);
    let pool = "pool=\"shop\"";
    for (policy, quantile) in [("actual", "0.99"), ("sticky", "0.5"), ("soft", "0.95"), ("shared", "0.99")] {
        let (of_policy, of_quantile) = (format!("policy=\"{policy}\""), format!("quantile=\"{quantile}\""));
        let latency = proxy.metric("steadfast_twin_latency_seconds", &[pool, &of_policy, &of_quantile]);
        assert!(latency > 0.004, "{policy} {quantile}: {latency}");
    }
    for quantile in ["0.5", "0.95", "0.99"] {
        let of_quantile = format!("quantile=\"{quantile}\"");
        let measured = proxy.metric("steadfast_twin_measured_latency_seconds", &[pool, &of_quantile]);
        assert!(measured > 0.004, "measured {quantile}: {measured}");
    }
    for policy in ["actual", "sticky", "soft", "shared"] {
        let of_policy = format!("policy=\"{policy}\"");
        let uneven = |measure: &str| proxy.metric("steadfast_twin_imbalance_ratio", &[pool, &of_policy, measure]);
        let (max_over_mean, jain) = (uneven("measure=\"max_over_mean\""), uneven("measure=\"jain\""));
        assert!(max_over_mean >= 0.999 && (0.499..1.001).contains(&jain), "{policy}: {max_over_mean}, {jain}");
    }
    assert!(proxy.metric("steadfast_twin_kept_ratio", &[pool, "policy=\"actual\""]) > 0.5);
    assert!(proxy.metric("steadfast_twin_fit_ratio", &[pool]) > 0.0);
    assert_eq!(proxy.metric("steadfast_twin_sampled_ratio", &[pool]), 1.0);
    let metrics = proxy.admin("/metrics").unwrap();
    assert!(metrics.contains("steadfast_twin_events_dropped_total{pool=\"shop\"} 0"), "{metrics}");
    assert!(!metrics.lines().any(|line| line.starts_with("steadfast_twin_kept_ratio") && line.contains("shared")));
    assert_eq!(metrics.matches("steadfast_twin_doubt{").count(), 7, "one for each reason, whether it holds or not");
}

#[test]
fn the_heaviest_sessions_are_said_and_the_access_log_has_them_by_the_same_name() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a, &b], NO_PROBES));
    let mut robot = proxy.client();
    assert_eq!(robot.get("/").status, 200);
    // One session asks nine times as often as each of seven others.
    let mut users: Vec<Client> = (0..7).map(|_| proxy.client()).collect();
    users.extend(vec![robot; 9]);
    let is_found = |said: &Value| {
        let heavy = &said["heavy"];
        heavy["sessions"] == 8 && heavy["top"][0]["share"].as_f64() > Some(0.3)
    };
    let said = ask_until(&mut users, &proxy, is_found);
    let heavy = &said["heavy"];
    let top = heavy["top"].as_array().unwrap();
    assert_eq!((top.len(), &heavy["exact"]), (5, &Value::from(true)), "{said}");
    assert_eq!(heavy["top_share"], top[0]["share"], "one of eight is their heaviest 1 %: {said}");
    let shares: Vec<f64> = top.iter().map(|session| session["share"].as_f64().unwrap()).collect();
    assert!(shares.is_sorted_by(|one, next| one >= next) && shares.iter().sum::<f64>() <= 1.001, "{said}");
    let requests = |at: usize| top[at]["requests"].as_u64().unwrap();
    assert!(requests(0) > 4 * requests(1), "{said}");
    // The log is written a little later.
    let lines_of = |session: &Value| {
        let log = proxy.access_log().into_iter();
        log.filter(|line| line["session"] == session["session"]).collect::<Vec<Value>>()
    };
    for session in top {
        assert_eq!(session["session"].as_str().map(str::len), Some(16), "{said}");
        eventually("the log has its requests", || {
            lines_of(session).len() as u64 >= session["requests"].as_u64().unwrap()
        });
        assert!(lines_of(session).iter().all(|line| line["server"] == session["server"]), "{said}");
    }
    let share = proxy.metric("steadfast_twin_top_sessions_share_ratio", &["pool=\"shop\""]);
    assert!((0.1..=1.0).contains(&share), "{share}");
}

#[test]
fn a_twin_that_is_off_says_nothing() {
    let a = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&a], &format!("{NO_PROBES}[pool.twin]\nenabled = false\n")));
    assert_eq!(proxy.client().get("/").status, 200);
    assert_eq!(twin(&proxy), Value::Null);
    assert!(!proxy.admin("/metrics").unwrap().contains("steadfast_twin_"));
}

#[test]
fn another_set_of_servers_begins_anew() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a], NO_PROBES));
    let mut users: Vec<Client> = (0..8).map(|_| proxy.client()).collect();
    ask_until(&mut users, &proxy, |said| said["servers"].as_array().is_some_and(|servers| servers.len() == 1));
    assert!(proxy.reload(&plain(&[&a, &b], NO_PROBES)));
    assert_eq!(twin(&proxy), Value::Null, "what it said was of other servers");
    let said = ask_until(&mut users, &proxy, |said| !said.is_null());
    assert_eq!(said["servers"].as_array().map(Vec::len), Some(2), "{said}");
    assert!(Duration::from_secs_f64(said["age_s"].as_f64().unwrap()) < PATIENCE, "{said}");
}
