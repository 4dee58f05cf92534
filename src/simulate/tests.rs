//! Whole simulations.

use std::fmt::Write as _;

use super::*;
use crate::pool::PinKind;

fn options(input: Input, seed: u64) -> Options<'static> {
    Options {
        config: None,
        pool: None,
        input,
        seed,
        capacity: None,
        discipline: DisciplineChoice::Auto,
        progress: &|_| {},
    }
}

fn workload(name: &str, seed: u64) -> Options<'static> {
    // One worker each: the fewest requests that a workload has.
    Options { capacity: Some(1), ..options(Input::Workload(name.to_owned()), seed) }
}

/// Requests of some sessions on two servers, in our own format.
fn log_of_ours(requests: u32, server: &str) -> String {
    let mut random = fastrand::Rng::with_seed(7);
    let mut text = String::new();
    for at in 0..requests {
        let millis = at * 4;
        let session = random.u32(1..200);
        let server = if session.is_multiple_of(2) { server } else { "shop-2" };
        let latency = random.u32(1_000..30_000);
        let line = serde_json::json!({
            "time": format!("2026-01-31T12:{:02}:{:02}.{:03}000Z", millis / 60_000, millis / 1_000 % 60, millis % 1_000),
            "client": "192.0.2.7", "pool": "shop", "server": server, "status": 200,
            "duration_ms": f64::from(latency) / 1_000.0, "upstream_ms": f64::from(latency) / 1_000.0,
            "session": format!("{session:016x}"),
        });
        let _ = writeln!(text, "{line}");
    }
    text
}

fn simulated_log(name: &str, text: &str) -> Simulated {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    let simulated = run(options(Input::Log(path), 1)).unwrap();
    let place = directory.path().display().to_string();
    assert!(!simulated.table.contains(&place) && !simulated.html.contains(&place), "only the file's name is shown");
    simulated
}

#[test]
fn the_same_input_and_seed_give_the_same_bytes_and_another_seed_does_not() {
    let [one, same, other] = [1, 1, 2].map(|seed| run(workload("shop", seed)).unwrap());
    assert_eq!(one.table, same.table);
    assert_eq!(one.html, same.html);
    assert_ne!(one.table, other.table);
    let log = log_of_ours(2_000, "shop-1");
    let [one, same] = [(); 2].map(|()| simulated_log("access.jsonl", &log));
    assert_eq!(one.table, same.table);
    assert_eq!(one.html, same.html);
}

#[test]
fn the_table_has_a_line_per_policy_and_its_columns_in_line() {
    let table = run(workload("scale-out", 1)).unwrap().table;
    let lines: Vec<&str> = table.lines().skip_while(|line| !line.starts_with("policy")).take(9).collect();
    assert_eq!(lines.len(), 9, "{table}");
    let width = lines[0].chars().count();
    for (line, policy) in lines[1..].iter().zip(policies::compared(None, policies::Costs::default())) {
        assert!(line.starts_with(&*policy.name), "{line}");
        assert_eq!(line.chars().count(), width, "{line}");
    }
    let t90_ends = lines[0].find("T90").unwrap() + 3;
    let t90 = |line: &str| line[..t90_ends].rsplit("  ").next().unwrap().trim().to_owned();
    assert!(lines[1..].iter().all(|line| t90(line) != "-"), "{table}");
    assert!(table.contains("(--capacity), fifo."), "{table}");
}

#[test]
fn hard_pins_are_less_even_than_no_sessions_and_soft_ones_keep_most() {
    let options = options(Input::Workload("shop".to_owned()), 1);
    let mut scenario = workloads::scenario(Workload::Shop, None, &options);
    scenario.arrivals.truncate(40_000);
    let outcome = |is_meant: &dyn Fn(&PolicyModel) -> bool| {
        let policy = policies::compared(None, policies::Costs::default()).into_iter().find(is_meant).unwrap();
        let outcome = play_one(&scenario, policy.clone(), 1, &|_| {});
        Row { policy, outcome }
    };
    let free = outcome(&|policy| &*policy.name == "p2c, no sessions");
    let hard = outcome(&|policy| policy.pins.is_some_and(|pins| pins.kind == PinKind::Hard));
    let soft = outcome(&|policy| policy.pins.is_some_and(|pins| pins.kind == PinKind::Soft { margin: 4 }));
    let uneven = |row: &Row| row.outcome.imbalance.max_over_mean;
    assert!(uneven(&hard) > uneven(&free) + 0.02, "{} and {}", uneven(&hard), uneven(&free));
    assert!(uneven(&soft) < uneven(&hard), "{} and {}", uneven(&soft), uneven(&hard));
    assert_eq!(table::kept(&hard), Some(1.0), "no server was ever full or gone");
    let kept = table::kept(&soft).unwrap();
    assert!((0.7..1.0).contains(&kept), "{kept}");
    assert_eq!(table::kept(&free), None);
}

#[test]
fn a_death_loses_the_sessions_that_were_pinned_hard() {
    let options = workload("server-death", 1);
    let scenario = workloads::scenario(Workload::ServerDeath, None, &options);
    let rows: Vec<Row> = policies::compared(None, policies::Costs::default())
        .into_iter()
        .map(|policy| Row { outcome: play_one(&scenario, policy.clone(), 1, &|_| {}), policy })
        .collect();
    for row in rows {
        let is_hard = row.policy.pins.is_some_and(|pins| pins.kind == PinKind::Hard);
        assert_eq!(row.outcome.sessions_lost > 0, is_hard, "{}", row.policy.name);
    }
}

#[test]
fn what_a_log_says_is_never_taken_for_html() {
    let html = simulated_log("<i>.jsonl", &(log_of_ours(300, "<img src=x>") + "<b>broken</b>\n")).html;
    assert!(html.contains("&lt;img src=x&gt;") && html.contains("&lt;b&gt;broken"), "both are shown");
    for raw in ["<img", "<b>", "<i>", "<script"] {
        assert!(!html.contains(raw), "{raw}");
    }
}

#[test]
fn the_report_is_one_page_that_asks_for_nothing() {
    let html = run(workload("server-death", 1)).unwrap().html;
    assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>\n"));
    assert_eq!(html.matches("<svg").count(), 3, "latency, load, and what pins cost");
    for outside in ["http", "src=", "href=", "url(", "NaN", "inf\""] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("prefers-color-scheme: dark"));
}

#[test]
fn a_log_and_the_policy_in_force_say_how_far_to_trust_the_model() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("access.jsonl");
    std::fs::write(&log, log_of_ours(1_000, "shop-1")).unwrap();
    let config = directory.path().join("steadfast.toml");
    let server = |name: &str| format!("[[pool.server]]\nname = \"{name}\"\naddress = \"127.0.0.1:9\"\n");
    let text = format!(
        "[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:8080\"\n[[route]]\npool = \"shop\"\n[[pool]]\nname = \"shop\"\n\
         mode = \"sticky\"\n{}{}",
        server("shop-1"),
        server("shop-2")
    );
    std::fs::write(&config, text).unwrap();
    let simulated = run(Options { config: Some(config), ..options(Input::Log(log), 1) }).unwrap();
    let first = simulated.table.lines().skip_while(|line| !line.starts_with("policy")).nth(1).unwrap();
    assert!(first.starts_with("shop as configured"), "{first}");
    assert!(simulated.table.contains("Fit (the p99 of the policy as configured over it): "), "{}", simulated.table);
    assert!(simulated.html.contains("<tr class=\"own\">"));
}

#[test]
fn progress_goes_forward_and_ends_at_one() {
    let heard = std::cell::RefCell::new(Vec::new());
    let progress = |share: f64| heard.borrow_mut().push(share);
    run(Options { progress: &progress, ..workload("api", 1) }).unwrap();
    let heard = heard.into_inner();
    assert!(heard.is_sorted() && heard.last() == Some(&1.0), "{heard:?}");
}

#[test]
fn what_cannot_be_simulated_is_said_with_a_status() {
    let message = |input| run(options(input, 1)).map(|_| ()).map_err(|error| (error.exit_status(), error.to_string()));
    let (status, text) = message(Input::Workload("shopp".to_owned())).unwrap_err();
    assert_eq!(status, 2);
    assert!(text.starts_with("no workload is called `shopp`, did you mean `shop`?; there are shop, even"), "{text}");
    let (status, text) = message(Input::Log("/nowhere/access.log".into())).unwrap_err();
    assert_eq!(status, 1);
    assert!(text.starts_with("cannot read /nowhere/access.log: "), "{text}");
}
