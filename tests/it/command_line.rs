//! The command line, as scripts and people use it.

use std::process::{Command, Output};

use crate::support::proxy::BINARY;

fn steadfast(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).current_dir(std::env::temp_dir()).output().expect("the binary starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const SEVEN_MISTAKES: &str = r#"[process]
max_connections = "many"
[[listener]]
name = "https"
address = "everywhere"
[listener.tls]
certificates = [{ cert = "nowhere.pem", key = "nowhere.key" }]
[[route]]
pool = "shpo"
[[pool]]
name = "shop"
mode = "sticky"
balence = "p2c"
[[pool.server]]
name = "shop-1"
address = "127.0.0.1:9001"
[pool.timeouts]
connect = "soon"
[pool.sticky]
partitioned = true
"#;

#[test]
fn check_names_seven_mistakes_with_their_places() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wrong.toml");
    std::fs::write(&path, SEVEN_MISTAKES).unwrap();
    let path = path.to_str().unwrap();
    let output = steadfast(&["check", "--config", path, "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let problems: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let errors: Vec<_> = problems.iter().filter(|problem| problem["severity"] == "error").collect();
    let places: Vec<(u64, u64, &str)> = errors
        .iter()
        .map(|problem| {
            (problem["line"].as_u64().unwrap(), problem["column"].as_u64().unwrap(), problem["text"].as_str().unwrap())
        })
        .collect();
    let wanted = [
        (2, 19, "\"many\""),
        (5, 11, "\"everywhere\""),
        (7, 26, "\"nowhere.pem\""),
        (9, 8, "\"shpo\""),
        (13, 1, "balence"),
        (18, 11, "\"soon\""),
        (20, 15, "true"),
    ];
    assert_eq!(places, wanted, "{errors:#?}");
    let human = steadfast(&["check", "--config", path]);
    let text = stdout(&human);
    assert!(
        text.contains("wrong.toml:13:1") && text.contains("did you mean `balance`?") && text.contains("7 errors"),
        "{text}"
    );
    let run = steadfast(&["run", "--config", path]);
    assert_eq!(run.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&run.stderr).contains("did you mean `balance`?"));
}

#[test]
fn a_good_file_is_fine_and_a_missing_one_is_an_error() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml");
    let output = steadfast(&["check", "--config", example]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    assert_eq!(steadfast(&["check", "--config", "/nowhere.toml"]).status.code(), Some(2));
    assert_eq!(steadfast(&["run", "--config", "/nowhere.toml"]).status.code(), Some(2));
    assert_eq!(steadfast(&["bogus"]).status.code(), Some(2));
}

#[test]
fn a_port_that_is_taken_is_a_failure_while_running() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("steadfast.toml");
    let listener = format!("[[listener]]\nname = \"a\"\naddress = \"{}\"\n", taken.local_addr().unwrap());
    let rest = "[[route]]\nrespond = { status = 200 }\n[admin]\naddress = \"127.0.0.1:0\"\n";
    std::fs::write(&path, format!("{listener}{rest}")).unwrap();
    let output = steadfast(&["run", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot listen on"));
}

#[test]
fn keys_schema_completions_and_man_page_are_printed() {
    let (one, two) = (stdout(&steadfast(&["key"])), stdout(&steadfast(&["key"])));
    assert!(one.starts_with("sfk1_") && one.trim().len() == 48 && one != two, "{one}");
    assert!(steadfast::keys::RingKey::parse(&one).is_ok());
    let schema: serde_json::Value = serde_json::from_slice(&steadfast(&["schema"]).stdout).unwrap();
    assert_eq!(schema["properties"]["pool"]["items"]["properties"]["balance"]["default"], "p2c");
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&steadfast(&["completions", shell])).contains("steadfast"), "{shell}");
    }
    assert!(stdout(&steadfast(&["man"])).contains(".TH steadfast"));
    assert!(stdout(&steadfast(&["--version"])).starts_with("steadfast "));
}
