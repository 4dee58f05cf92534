use std::time::Duration;

use super::vocabulary::{Absent, Kind, tables};
use super::*;
use crate::twin::{Discipline, LiveSettings};

fn read(source: &str) -> Result<Loaded, Report> {
    crate::tls::install_provider();
    parse(Path::new("test.toml"), source.to_owned(), Hosts::Resolved(&HashSet::new()))
}

const MINIMAL: &str = r#"
[[listener]]
name = "http"
address = "127.0.0.1:8080"
[[route]]
pool = "shop"
[[pool]]
name = "shop"
mode = "sticky"
[[pool.server]]
name = "shop-1"
address = "127.0.0.1:9001"
"#;

/// The messages and helps of a file that cannot be used.
fn complaints(source: &str) -> Vec<String> {
    let report = read(source).err().expect("the file has mistakes");
    let errors = report.problems.into_iter().filter(|problem| problem.severity == Severity::Error);
    errors.map(|problem| format!("{} | {}", problem.message, problem.help.unwrap_or_default())).collect()
}

#[track_caller]
fn assert_complains(source: &str, wanted: &str) {
    let complaints = complaints(source);
    assert!(complaints.iter().any(|complaint| complaint.contains(wanted)), "{wanted:?} is not in {complaints:#?}");
}

#[test]
fn a_minimal_file_has_the_documented_defaults() {
    let configuration = read(MINIMAL).unwrap_or_else(|report| panic!("{}", report.human(false))).configuration;
    let pool = &configuration.pools[0];
    let sticky = pool.sticky.as_ref().unwrap();
    assert_eq!((&*sticky.cookie, sticky.idle), ("__Host-sf-f3fbbc38", Duration::from_secs(86_400)));
    assert_eq!(pool.retry.attempts, 2);
    assert_eq!(pool.timeouts.first_byte, Some(Duration::from_secs(60)));
    assert_eq!(pool.timeouts.between_bytes, None);
    assert_eq!(configuration.listeners[0].settings.times.idle, Duration::from_secs(75));
    assert_eq!(configuration.process.max_connections, 100_000);
    let twin = pool.twin;
    assert!(pool.has_twin);
    assert_eq!((twin.events_per_second, twin.discipline), (20_000, None));
    assert_eq!((twin.warm_up, twin.store_round_trip), (Duration::from_millis(5), Duration::from_millis(1)));
    assert_eq!(twin.window, Duration::from_secs(10));
    assert_eq!(pool.servers[0].capacity, 0);
}

#[test]
fn a_twin_is_told_how_servers_work_or_is_off() {
    let twin = |more: &str| {
        let source = format!("{}[pool.twin]\n{more}", MINIMAL.replace("\"shop-1\"", "\"shop-1\"\ncapacity = 12"));
        let mut pools = read(&source).unwrap_or_else(|report| panic!("{}", report.human(false))).configuration.pools;
        let pool = pools.remove(0);
        assert_eq!(pool.servers[0].capacity, 12);
        pool.has_twin.then_some(pool.twin)
    };
    let known = "discipline = \"fifo\"\nevents_per_second = 500\nwindow = \"5m\"\nwarm_up = \"0s\"\n\
                 store_round_trip = \"3ms\"";
    let expected = LiveSettings {
        events_per_second: 500,
        discipline: Some(Discipline::Fifo),
        window: Duration::from_secs(300),
        warm_up: Duration::ZERO,
        store_round_trip: Duration::from_millis(3),
    };
    assert_eq!(twin(known), Some(expected));
    assert_eq!(twin("discipline = \"auto\"").unwrap().discipline, None);
    assert_eq!(twin("enabled = false"), None);
    let wrong = format!("{MINIMAL}[pool.twin]\ndiscipline = \"lifo\"\nevents_per_second = 0");
    assert_complains(&wrong, "\"lifo\" is no value of `discipline`");
    assert_eq!(complaints(&wrong).len(), 2);
    for window in ["0s", "999ms", "61m"] {
        assert_complains(&format!("{MINIMAL}[pool.twin]\nwindow = \"{window}\""), "between 1 s and 1 h");
    }
}

#[test]
fn every_problem_is_found_in_one_run() {
    let source = MINIMAL
        .replace("pool = \"shop\"", "pool = \"shpo\"\nbody_bytes = \"lots\"")
        .replace("mode = \"sticky\"", "mode = \"stikcy\"\nbalence = \"p2c\"")
        .replace("name = \"shop-1\"", "name = \"shop-1\"\nbalance = \"p2c\"\nweight = \"3\"")
        .replace("127.0.0.1:8080", "everywhere");
    let complaints = complaints(&source);
    for wanted in [
        "\"everywhere\" is no address to listen on",
        "there is no pool `shpo` | did you mean `shop`?",
        "\"lots\" is no size",
        "\"stikcy\" is no value of `mode` | did you mean \"sticky\"?",
        "`balence` is no key of `pool` | did you mean `balance`?",
        "`balance` is no key of `pool.server` | `balance` belongs to `[[pool]]`: move it above `[[pool.server]]`",
        "`weight` is a whole number, not string",
    ] {
        assert!(complaints.iter().any(|complaint| complaint.contains(wanted)), "{wanted:?} in {complaints:#?}");
    }
    assert_eq!(complaints.len(), 7, "{complaints:#?}");
}

#[test]
fn what_excludes_each_other_is_named() {
    let with = |table: &str, line: &str| MINIMAL.replace(table, &format!("{table}\n{line}"));
    assert_complains(
        &format!("[admin]\naddress = \"0.0.0.0:9900\"\n{MINIMAL}"),
        "the admin address is reachable from outside, and has no `token` and no `tls`",
    );
    assert_complains(
        &with("mode = \"sticky\"", "[pool.rebalance]\nmoves_per_second = 5"),
        "`moves_per_second` is for soft pins",
    );
    assert_complains(
        &with("pool = \"shop\"", "rate = { requests = 5, by = \"session\" }\nsticky = false"),
        "`by = \"session\"` needs a pool that knows sessions",
    );
    assert_complains(
        &with("pool = \"shop\"", "redirect_to = \"https://a.test\""),
        "`pool` and `redirect_to` exclude each other",
    );
    assert_complains(&MINIMAL.replace("pool = \"shop\"", ""), "the route does nothing");
    assert_complains(&with("address = \"127.0.0.1:8080\"", "redirect_port = 8443"), "`redirect_port` needs");
    assert_complains(&with("address = \"127.0.0.1:8080\"", "proxy_protocol = \"v2\""), "nobody could connect");
    assert_complains(&with("address = \"127.0.0.1:8080\"", "[listener.tls]"), "TLS needs `certificates`");
    assert_complains(
        &with("address = \"127.0.0.1:8080\"", "redirect = \"https\"\n[listener.tls]\nself_signed = [\"a\"]"),
        "exclude each other",
    );
    let none = MINIMAL.replace("\"sticky\"", "\"none\"");
    assert_complains(&format!("{none}[pool.sticky]\nidle = \"1h\""), "only for pools with `mode = \"sticky\"`");
    assert_complains(&format!("{MINIMAL}[pool.sticky]\npartitioned = true"), "needs `same_site = \"None\"`");
    assert_complains(&format!("{MINIMAL}[pool.sticky]\ncookie = \"__Host_sf\""), "must begin with `__Host-`");
    assert_complains(
        &format!("{MINIMAL}[pool.health]\ntype = \"tcp\"\npath = \"/\""),
        "`path` is for `type = \"http\"`",
    );
    assert_complains(&format!("{MINIMAL}[[route]]\npool = \"shop\""), "with equal right");
    assert_complains(&format!("{MINIMAL}[keys]\nring = [\"sfk1_inline\"]"), "never inline");
    assert_complains(&format!("{MINIMAL}[keys]\nring = [\"file:/nowhere/key\"]"), "cannot read /nowhere/key");
    assert_complains(&MINIMAL.replace("127.0.0.1:9001", "no-such-host.invalid:80"), "cannot be resolved");
    assert_complains(&MINIMAL.replace("127.0.0.1:9001", "127.0.0.1"), "is no server address");
    assert_complains("", "there is no `[[listener]]`");
    assert_complains("x = [", "");
}

/// A shared pool over a store; `%` stands for what goes below it.
const SHARED: &str = r#"
[[listener]]
name = "https"
address = "127.0.0.1:8443"
[listener.tls]
self_signed = ["localhost"]
[[store]]
name = "main"
[[store]]
name = "other"
[[route]]
pool = "shop"
[[route]]
path = "/blog"
pool = "blog"
[[pool]]
name = "blog"
mode = "shared"
server = [{ name = "b", address = "127.0.0.1:9001" }]
shared = { store = "main", realm = "site", profile = "aal2", idle = "5m" }
[[pool]]
name = "shop"
mode = "shared"
server = [{ name = "a", address = "127.0.0.1:9001" }]
[pool.shared]
%
"#;

#[test]
fn shared_pools_are_checked_as_a_whole() {
    let with = |lines: &str| SHARED.replace('%', lines);
    let good = with("store = \"main\"\nrealm = \"site\"\nprofile = \"aal2\"\nidle = \"5m\"");
    let loaded = read(&good).unwrap_or_else(|report| panic!("{}", report.human(false)));
    let rules = &loaded.configuration.pools[1].shared.as_ref().unwrap().rules;
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    assert_eq!((rules.idle, rules.absolute, rules.renew), (minutes(5), minutes(24 * 60), minutes(15)));
    for (lines, wanted) in [
        ("realm = \"site\"", "a shared pool needs a `store`"),
        ("store = \"mian\"", "there is no store `mian` | did you mean `main`?"),
        ("store = \"other\"\nrealm = \"site\"", "the realm `site` is in two stores"),
        ("store = \"main\"", "the realms `site` and `shop` would use one cookie name"),
        ("store = \"main\"\ncookie = \"sid\"", "is no name for a session cookie"),
        ("store = \"main\"\nrealm = \"site\"", "pools of the realm `site` have different rules"),
        ("store = \"main\"\nrealm = \"site\"\nidle = \"9h\"", "`idle` is longer than `absolute`"),
        ("store = \"main\"\nrealm = \"site\"\nclear_site_data = [\"everything\"]", "is nothing that can be cleared"),
        ("held_by = \"application\"", "`held_by = \"application\"` needs `cookie`"),
        ("held_by = \"application\"\ncookie = \"JSESSIONID\"\nrenew = \"1m\"", "`renew` means nothing with"),
        (
            "store = \"main\"\nrealm = \"site\"\n[pool.sticky]\npin = \"hard\"",
            "only for pools with `mode = \"sticky\"`",
        ),
    ] {
        assert_complains(&with(lines), wanted);
    }
    let route = |lines: &str| MINIMAL.replace("pool = \"shop\"", &format!("pool = \"shop\"\n{lines}"));
    assert_complains(&route("session = \"required\""), "where the proxy knows who asks");
    assert_complains(&format!("{MINIMAL}[session_api]\naddress = \"unix:api.sock\""), "has no pool to serve");
    assert_complains(&format!("{good}[session_api]\naddress = \"10.0.0.1:9902\""), "spoken in the clear");
    let redis = "[[store]]\nname = \"r\"\nkind = \"redis\"\n";
    assert_complains(&format!("{good}{redis}url = \"redis://127.0.0.1\""), "needs a key ring that they share");
    assert_complains(&format!("{good}{redis}"), "`kind = \"redis\"` needs a place");
    assert_complains(&format!("{good}{redis}url = \"redis://:secret@127.0.0.1\""), "password");
    assert_complains(&format!("{good}{redis}near_cache = \"2s\""), "`near_cache` is at most");
    let memcached = "[[store]]\nname = \"m\"\nkind = \"memcached\"\nnodes = [\"127.0.0.1\"]\n";
    assert_complains(&format!("{good}{memcached}max_bytes = \"1MiB\""), "`max_bytes` is at most \"1000KiB\"");
    assert_complains(&format!("{good}[[store]]\nname = \"e\"\nurl = \"redis://a\""), "`url` is for `kind = \"redis\"`");
    let plain = good.replace("[listener.tls]\nself_signed = [\"localhost\"]\n", "");
    let warnings = read(&plain).unwrap_or_else(|report| panic!("{}", report.human(false))).warnings.human(false);
    assert!(warnings.contains("over plain http a shared pool has no sessions"), "{warnings}");
}

#[test]
fn a_cookie_means_one_thing() {
    let second = "[[route]]\npath = \"/x\"\npool = \"other\"\n[[pool]]\nname = \"other\"\n\
                  server = [{ name = \"b\", address = \"127.0.0.1:2\" }]\n";
    let store = "[[store]]\nname = \"main\"\n";
    for (first, other) in [
        ("[pool.sticky]\ncookie = \"__Host-a\"\n", "mode = \"sticky\"\n[pool.sticky]\ncookie = \"__Host-a\"\n"),
        (
            "[pool.sticky]\ncookie = \"__Host-a\"\n",
            "mode = \"shared\"\n[pool.shared]\nstore = \"main\"\ncookie = \"__Host-a\"\n",
        ),
    ] {
        assert_complains(&format!("{MINIMAL}{first}{store}{second}{other}"), "would use one cookie name");
    }
    assert_complains(&format!("{MINIMAL}[pool.sticky]\ncookie = \"__Host-sf-admin\"\n"), "of the admin surface");
}

#[test]
fn the_way_to_a_login_is_used_and_leads_somewhere_else() {
    let shared = |route: &str, more: &str| {
        let whole = MINIMAL.replace("pool = \"shop\"", &format!("pool = \"shop\"\n{route}"));
        let whole = whole.replace("mode = \"sticky\"", "mode = \"shared\"");
        format!("{whole}[pool.shared]\nstore = \"main\"\n[[store]]\nname = \"main\"\n{more}")
    };
    let warns = |source: &str, wanted: &str| {
        let loaded = read(source).unwrap_or_else(|report| panic!("{}", report.human(false)));
        loaded.warnings.problems.iter().any(|problem| problem.message.contains(wanted))
    };
    let required = "session = \"required\"\nlogin_url = \"/login\"";
    let page = "[[route]]\npath = \"/login\"\npool = \"shop\"\n";
    assert!(warns(&shared(required, ""), "goes in circles"));
    assert!(!warns(&shared(required, page), "goes in circles"));
    assert!(warns(&shared("login_url = \"/login\"", ""), "nobody is sent"));
    let sensitive =
        "[[route]]\npath = \"/payout\"\npool = \"shop\"\nrequire = { acr = [\"mfa\"] }\nlogin_url = \"/step-up\"\n";
    assert!(!warns(
        &shared("session = \"required\"\nlogin_url = \"/login\"", &format!("{page}{sensitive}")),
        "goes in circles"
    ));
    assert_complains(&shared("session = \"off\"\nrequire = { acr = [\"mfa\"] }", ""), "nobody is known there");
    assert_complains(&shared("require = {}", ""), "`require` requires nothing");
    assert_complains(&shared("require = { acr = [\"m fa\"] }", ""), "is no level");
}

#[test]
fn tokens_need_an_issuer_its_keys_and_what_they_are_for() {
    let stateless = |more: &str, issuer: &str| {
        let whole = MINIMAL.replace("mode = \"sticky\"", "mode = \"stateless\"");
        format!("{whole}[pool.stateless]\n{more}\n{issuer}")
    };
    let issuer =
        |more: &str| format!("[[pool.stateless.issuer]]\nissuer = \"https://id\"\naudience = [\"shop\"]\n{more}");
    let good = issuer("jwks = \"https://id.example.com/keys\"");
    read(&stateless("", &good)).unwrap_or_else(|report| panic!("{}", report.human(false)));
    for (more, issuer, wanted) in [
        ("", String::new(), "needs an issuer"),
        ("", issuer(""), "an issuer needs keys"),
        ("", issuer("jwks = \"http://id.example.com/keys\""), "is no place of keys"),
        ("", issuer("jwks = \"https://id.example.com/keys\"\nalgorithms = [\"none\"]"), "is no algorithm"),
        ("", issuer("jwks = \"https://id.example.com/keys\"\nalgorithms = [\"HS256\"]"), "does not go with these keys"),
        ("", issuer("jwks = \"https://id.example.com/keys\"\nalgorithms = []"), "needs an algorithm"),
        ("", issuer("jwks = \"https://id.example.com/keys\"\nsecret = \"env:PATH\""), "exclude each other"),
        ("", issuer("jwks = \"file:keys.json\"\nca = \"ca.pem\""), "is for an https `jwks`"),
        ("", format!("{good}\n{good}"), "there are two issuers"),
        ("carrier = \"query:token\"", good.clone(), "carries no token"),
        ("carrier = \"cookie:\"", good.clone(), "carries no token"),
        ("skew = \"10m\"", good.clone(), "at most"),
        ("store = \"nowhere\"", good.clone(), "there is no store `nowhere`"),
    ] {
        assert_complains(&stateless(more, &issuer), wanted);
    }
}

#[test]
fn what_the_edge_enforces_is_said_rightly() {
    for (lines, wanted) in [
        ("csrf = \"maybe\"", "is no value of `csrf`"),
        ("trusted_origins = [\"https://a.example/\"]", "neither a path nor a slash"),
        ("trusted_origins = [\"https://*.example\"]", "stands for nothing"),
        ("hsts = \"max-age\"", "`max-age` is a number"),
        ("hsts = \"max-age=1; preload\"", "`preload` counts only"),
        ("cookies = \"break\"", "is no value of `cookies`"),
    ] {
        assert_complains(&format!("{MINIMAL}[protect]\n{lines}"), wanted);
    }
}

#[test]
fn syntax_errors_and_unknown_keys_are_reported_together() {
    let complaints = complaints(&format!("{MINIMAL}\nport = \nfoo = 1\n"));
    assert!(complaints.len() >= 2, "{complaints:?}");
}

#[test]
fn a_missing_ring_is_a_warning_and_an_unused_pool_too() {
    let unused = "[[pool]]\nname = \"blog\"\nmode = \"none\"\n[[pool.server]]\nname = \"b\"\naddress = \"127.0.0.1:1\"";
    let warnings =
        read(&format!("{MINIMAL}{unused}")).unwrap_or_else(|report| panic!("{}", report.human(false))).warnings;
    let text = warnings.human(false);
    assert!(text.contains("no key ring") && text.contains("no route leads to the pool `blog`"), "{text}");
}

/// One line of the example file that is commented out: its table, key and value.
fn commented_keys(example: &str) -> Vec<(String, String, String)> {
    let mut table = String::new();
    let mut found = Vec::new();
    for line in example.lines() {
        let bare = line.trim_start_matches("# ");
        if bare.starts_with('[') {
            table = bare.split(']').next().unwrap_or_default().trim_start_matches('[').to_owned();
        } else if let Some((key, value)) = line.strip_prefix("# ").and_then(|line| line.split_once(" = "))
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            found.push((
                table.clone(),
                key.to_owned(),
                value.split("  #").next().unwrap_or_default().trim().to_owned(),
            ));
        }
    }
    found
}

const EXAMPLE: &str = include_str!("../../config.example.toml");

#[test]
fn the_example_loads_as_it_is() {
    let loaded = read(EXAMPLE).unwrap_or_else(|report| panic!("{}", report.human(false)));
    assert_eq!(loaded.configuration.pools.len(), 1);
    assert!(loaded.configuration.pools[0].sticky.is_some());
    assert!(EXAMPLE.lines().next().unwrap().contains("schema"), "its first line names the schema");
}

#[test]
fn every_commented_key_of_the_example_is_known_with_that_default() {
    for (table, name, value) in commented_keys(EXAMPLE) {
        let known = tables().into_iter().find(|known| known.path == table).unwrap_or_else(|| panic!("[{table}]"));
        let key = known.key(&name).unwrap_or_else(|| panic!("{table}.{name}"));
        match key.absent {
            Absent::Default(default) => assert_eq!(value, default, "{table}.{name}"),
            Absent::Nothing(example) => assert_eq!(value, example, "{table}.{name}"),
            Absent::Required | Absent::Computed(_) => {}
        }
    }
}

#[test]
fn every_key_is_in_the_example() {
    let commented = commented_keys(EXAMPLE);
    let document = toml::de::DeTable::parse(EXAMPLE).unwrap();
    for table in tables() {
        let written = written_keys(document.get_ref(), table.path);
        for key in table.keys.iter().filter(|key| !matches!(key.kind, Kind::Table(_) | Kind::Tables(_))) {
            // Inline tables are shown whole, on the line of the key that holds them.
            if [
                "admin.tls",
                "listener.tls.certificates",
                "route.request_headers",
                "route.respond",
                "route.rate",
                "route.require",
                "pool.sticky.queue",
                "store.breaker",
                "store.sentinel",
                "pool.shared.login_when",
                "session_api.tls",
            ]
            .contains(&table.path)
            {
                continue;
            }
            let shown = commented.iter().any(|(path, name, _)| path == table.path && name == key.name);
            assert!(shown || written.iter().any(|name| name == key.name), "{}.{} is not shown", table.path, key.name);
        }
    }
}

fn written_keys(document: &toml::de::DeTable<'_>, path: &str) -> Vec<String> {
    let mut levels = vec![document];
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let inner = levels.iter().filter_map(|table| table.get(part)).flat_map(|value| match value.get_ref() {
            toml::de::DeValue::Table(table) => vec![table],
            toml::de::DeValue::Array(tables) => tables.iter().filter_map(|table| table.get_ref().as_table()).collect(),
            _ => Vec::new(),
        });
        levels = inner.collect();
    }
    levels.iter().flat_map(|table| table.keys().map(|key| key.get_ref().to_string())).collect()
}

/// What `deploy/` shows is right but for the files and hosts that only the user has.
#[test]
fn the_configurations_of_deploy_are_good() {
    let kubernetes = include_str!("../../deploy/kubernetes/steadfast.yaml");
    let block = kubernetes.split("steadfast.toml: |\n").nth(1).unwrap().split("---").next().unwrap();
    let kubernetes: String =
        block.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    let compose = include_str!("../../deploy/steadfast.example.toml").to_owned();
    crate::tls::install_provider();
    for source in [compose, kubernetes] {
        let report =
            parse(Path::new("/nowhere/steadfast.toml"), source, Hosts::Left).err().expect("its key is not there");
        let wrong = report.problems.iter().filter(|problem| problem.severity == Severity::Error);
        let wrong: Vec<&str> =
            wrong.map(|problem| &*problem.message).filter(|message| !message.starts_with("cannot read")).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}

#[test]
fn a_name_that_cannot_be_resolved_matters_only_to_those_who_want_to_reach_it() {
    let source = MINIMAL.replace("127.0.0.1:9001", "nowhere.invalid:9001");
    assert!(source.contains("nowhere.invalid"), "{source}");
    let read = |hosts: Hosts<'_>| parse(Path::new("test.toml"), source.clone(), hosts);
    let unknown = read(Hosts::Resolved(&HashSet::new())).err().expect("it is an error");
    assert!(unknown.human(false).contains("`nowhere.invalid` cannot be resolved"), "{}", unknown.human(false));
    let known = HashSet::from(["nowhere.invalid".to_owned()]);
    assert!(
        read(Hosts::Resolved(&known)).is_ok_and(|loaded| loaded.warnings.human(false).contains("keeps its addresses"))
    );
    assert!(read(Hosts::Left).is_ok_and(|loaded| !loaded.warnings.human(false).contains("nowhere.invalid")));
}
