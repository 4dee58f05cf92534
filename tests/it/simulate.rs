//! `steadfast simulate`, on the log of a real proxy.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::proxy::BINARY;
use crate::support::{Client, Origin, Proxy, eventually, tls};

fn simulate(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("simulate").args(arguments).current_dir(directory).output().expect("the binary starts")
}

/// What it prints on standard output, if it is content.
fn table(directory: &Path, arguments: &[&str]) -> String {
    let output = simulate(directory, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A number as it is printed, with commas between thousands.
fn first_number(text: &str) -> usize {
    text.split_whitespace().next().unwrap().replace(',', "").parse().unwrap()
}

#[test]
fn the_log_of_a_proxy_is_replayed_and_the_same_seed_gives_the_same_bytes() {
    const USERS: usize = 12;
    const EACH: usize = 20;
    let origins = ["a", "b", "c"].map(Origin::start);
    let proxy = Proxy::start(&tls(&origins.each_ref(), ""));
    let mut users: Vec<Client> = (0..USERS).map(|_| proxy.tls_client()).collect();
    for _ in 0..EACH {
        users.iter_mut().for_each(|user| assert_eq!(user.get("/").status, 200));
    }
    eventually("all is logged", || proxy.access_log().len() == USERS * EACH);
    let lines = proxy.access_log();
    assert!(
        lines.iter().all(|line| line["regret_ms"].as_f64().is_none_or(|regret| regret >= 0.0)),
        "no pin was better"
    );
    let here = proxy.path();
    let log: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(here.join("access.jsonl"), log).unwrap();

    let of_log = ["--log", "access.jsonl", "--config", "steadfast.toml"];
    let once = table(here, &[&of_log[..], &["--report", "one.html"]].concat());
    let again = table(here, &[&of_log[..], &["--report", "two.html"]].concat());
    assert_eq!(once, again);
    let read = |name: &str| std::fs::read(here.join(name)).unwrap();
    assert!(read("one.html") == read("two.html") && read("one.html").starts_with(b"<!DOCTYPE html>"));
    let requests = once.lines().find(|line| line.contains(" requests in ")).unwrap();
    assert_eq!(first_number(requests), USERS * EACH, "{once}");
    assert!(requests.contains("3 servers"), "{once}");
    let hard = once.lines().find(|line| line.starts_with("sticky, hard")).unwrap();
    assert!(hard.contains("100.0 %"), "{once}");

    let other_seed = table(here, &["--workload", "even", "--seed", "2"]);
    assert_ne!(other_seed, table(here, &["--workload", "even", "--seed", "3"]));
}

#[test]
fn what_cannot_be_simulated_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    std::fs::write(here.join("empty"), "").unwrap();
    std::fs::write(here.join("other"), [0xff, 0, b'\n'].repeat(100)).unwrap();
    for (arguments, status, wanted) in [
        (&["--workload", "shpo"][..], 2, "did you mean `shop`"),
        (&["--workload", "shop", "--log", "empty"], 2, "cannot be used with"),
        (&["--pool", "shop"], 2, "there is no pool `shop`"),
        (&["--discipline", "lifo"], 2, "fifo"),
        (&["--capacity", "0"], 2, "1..=4096"),
        (&["--config", "nowhere.toml"], 2, "nowhere.toml"),
        (&["--log", "nowhere"], 1, "nowhere"),
        (&["--log", "empty"], 1, "empty"),
        (&["--log", "other"], 1, "other"),
        (&["--report", "no/such/directory.html"], 1, "cannot write"),
    ] {
        let output = simulate(here, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(wanted), "{arguments:?}: {said}");
    }
}
