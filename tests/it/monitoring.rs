//! What an operator watches steadfast with: the dashboard for Grafana and the alerts for Prometheus, against a real
//! Prometheus that scrapes a real proxy.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::support::proxy::BINARY;
use crate::support::redis::Redis;
use crate::support::tokens::{ISSUER, Issuer, key_set};
use crate::support::{Client, Origin, PATIENCE, Proxy, eventually, servers};

const DASHBOARD: &str = include_str!("../../deploy/grafana/steadfast.json");
const RULES: &str = include_str!("../../deploy/prometheus/steadfast.rules.yml");
const SCENARIOS: &str = include_str!("../../deploy/prometheus/steadfast.test.yml");
const RULES_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/steadfast.rules.yml");
const SCENARIOS_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/steadfast.test.yml");

const KEY: &str = "sfk1_MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA";

#[test]
fn every_alert_fires_and_clears() {
    for arguments in [["check", "rules", RULES_FILE], ["test", "rules", SCENARIOS_FILE]] {
        let output = Command::new("promtool").args(arguments).output();
        let output = output.expect("promtool is installed: see the README's test command");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
    let scenarios: Vec<&str> = SCENARIOS.split("- interval:").collect();
    let alerts: BTreeSet<&str> = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 15, "{alerts:?}");
    for alert in alerts {
        let fires = format!("alertname=\"{alert}\"");
        let scenario = scenarios.iter().find(|scenario| scenario.contains(&fires));
        let scenario = scenario.unwrap_or_else(|| panic!("nobody has seen {alert} fire"));
        let quiet = "exp_samples: []";
        assert!(scenario.find(quiet) < scenario.find(&fires), "{alert} is quiet before");
        assert!(scenario.rfind(quiet) > scenario.rfind(&fires), "{alert} is quiet in the end");
    }
}

#[test]
fn the_dashboard_is_drawn_for_any_prometheus_and_any_pools() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 38), "of Grafana 10 or later");
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let variables: Vec<_> = variables.map(|variable| json!([variable["name"], variable["type"]])).collect();
    assert_eq!(json!(variables), json!([["datasource", "datasource"], ["instance", "query"], ["pool", "query"]]));
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64()), "two panels have one id: {}", panel["title"]);
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{} is beside the grid", panel["title"]);
        for source in panel["targets"].as_array().into_iter().flatten().chain([panel]) {
            let is_row = panel["type"] == "row";
            assert!(is_row || source["datasource"]["uid"] == "${datasource}", "{} has a source", panel["title"]);
        }
    }
}

#[test]
fn every_panel_shows_something_and_every_alert_is_about_what_there_is() {
    let mut site = Site::start();
    let prometheus = Prometheus::start(site.proxy.admin_address());
    site.round();
    site.see_a_server_come_and_two_go();
    site.see_the_store_fail();
    let mut empty = expressions(&serde_json::from_str(DASHBOARD).unwrap());
    assert!(empty.len() >= 70, "{empty:?}");
    // The twins speak last: they run some seconds behind, and with little traffic their windows are a minute long.
    let deadline = Instant::now() + PATIENCE * 4;
    while !empty.is_empty() {
        assert!(Instant::now() < deadline, "these show nothing: {empty:#?}");
        site.round();
        empty.retain(|(_, expression)| prometheus.values(expression).is_empty());
    }
    eventually("every alert was evaluated", || prometheus.alerts().iter().all(|alert| alert["health"] == "ok"));
    for alert in prometheus.alerts() {
        let says = |what: &str| alert["annotations"][what].as_str().unwrap_or_default().to_owned();
        assert!(!says("summary").is_empty(), "{alert}");
        let advice = says("description");
        let actions: Vec<&str> = advice.split("`steadfast ctl ").skip(1).collect();
        assert!(!actions.is_empty(), "it does not say what to look at: {alert}");
        for action in actions {
            let word = action.split([' ', '`']).next().unwrap();
            let output = Command::new(BINARY).args(["ctl", word, "--help"]).output().unwrap();
            assert!(output.status.success(), "there is no ctl {word}: {alert}");
        }
    }
    let page = site.proxy.admin("/metrics").unwrap();
    for family in families(RULES) {
        assert!(page.contains(&format!("# TYPE {family} ")), "there is no {family}");
    }
}

/// The names of metrics in a text.
fn families(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("steadfast_")).collect()
}

/// The expressions of a dashboard with the titles of their panels, as Grafana would ask them.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let of_panel = |panel: &Value| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(move |target| (title.clone(), with_variables(target["expr"].as_str().unwrap())))
    };
    panels.flat_map(of_panel).collect()
}

/// An expression with everything chosen.
fn with_variables(expression: &str) -> String {
    let chosen = expression.replace("$__rate_interval", "15s").replace("$instance", ".*").replace("$pool", ".*");
    assert!(!chosen.contains('$'), "nobody knows the variable in {chosen}");
    chosen
}

/// A proxy with a pool of each mode, and one of a server that does one thing at a time.
struct Site {
    proxy: Proxy,
    user: Client,
    issuer: Issuer,
    redis: Redis,
    origins: [Origin; 3],
}

impl Site {
    fn start() -> Self {
        let (redis, issuer, origins) = (Redis::start(), Issuer::new("k1", 1), ["a", "b", "c"].map(Origin::start));
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ring.key"), KEY).unwrap();
        std::fs::write(directory.path().join("jwks.json"), key_set(&[&issuer])).unwrap();
        let [a, b, c] = &origins;
        let proxy = Proxy::start_in(directory, &configuration(&redis, &[a, b], c));
        let mut user = proxy.tls_client();
        // Pinned, so that they wait for its one place.
        user.get("/sleep/1");
        let site = Site { proxy, user, issuer, redis, origins };
        eventually("tokens count", || site.ask_as_a_program(&site.issuer.token("alice", &json!({}))) == 200);
        site
    }

    /// Some traffic of every kind.
    fn round(&mut self) {
        for _ in 0..4 {
            self.proxy.tls_client().get("/cookie");
        }
        for path in ["/", "/status/500", "/limited"] {
            self.user.get(path);
        }
        assert_eq!(self.user.post("/say", "patch {\"cart\":1}").status, 200);
        let forged = self.user.clone().header("sec-fetch-site", "cross-site").post("/", "");
        assert_eq!(forged.status, 403);
        assert_eq!(self.ask_as_a_program("none"), 401);
        let mut both = [self.user.clone(), self.user.clone()];
        std::thread::scope(|scope| {
            for user in &mut both {
                scope.spawn(move || drop(user.get("/sleep/50")));
            }
        });
    }

    fn ask_as_a_program(&self, token: &str) -> u16 {
        self.proxy.tls_client().header("authorization", &format!("Bearer {token}")).get("/api").status
    }

    /// A third server joins; of the others one drains, and the user's own goes into maint.
    fn see_a_server_come_and_two_go(&mut self) {
        let home = self.user.get("/").origin();
        let [a, b, c] = &self.origins;
        assert!(self.proxy.reload(&configuration(&self.redis, &[a, b, c], c)), "{}", self.proxy.log());
        eventually("its share of requests was noticed", || {
            for _ in 0..20 {
                self.proxy.tls_client().get("/");
            }
            self.proxy.metric("steadfast_scale_out_seconds", &["server=\"c\""]) > 0.0
        });
        self.ctl("drain", if home == "a" { "shop/b" } else { "shop/a" });
        self.ctl("maint", &format!("shop/{home}"));
        assert_eq!(self.user.get("/").origin(), "c");
        assert_eq!(self.user.get("/limited").status, 429);
    }

    fn see_the_store_fail(&mut self) {
        self.redis.stop();
        assert_eq!(self.user.post("/say", "").status, 503);
        self.redis.start_again();
        eventually("the store is found again", || self.user.post("/say", "").status == 200);
    }

    fn ctl(&self, action: &str, server: &str) {
        let address = self.proxy.admin_address().to_string();
        let output = Command::new(BINARY).args(["ctl", "--address", &address, action, server]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The sticky pool has these servers, all others the last one.
fn configuration(redis: &Redis, of_shop: &[&Origin], other: &Origin) -> String {
    let (of_shop, other, url) = (servers(of_shop), servers(&[other]), redis.url());
    format!(
        "[keys]\nring = [\"file:ring.key\"]\n\
         [[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n[listener.tls]\nself_signed = [\"localhost\"]\n\
         [[route]]\npool = \"shop\"\n\
         [[route]]\npath = \"/limited\"\npool = \"shop\"\nrate = {{ requests = 1, per = \"1h\" }}\n\
         [[route]]\npath = \"/sleep\"\npool = \"narrow\"\n\
         [[route]]\npath = \"/say\"\npool = \"carts\"\n\
         [[route]]\npath = \"/api\"\npool = \"api\"\n\
         [[store]]\nname = \"main\"\nkind = \"redis\"\nurl = \"{url}\"\ntimeout = \"10s\"\nconnect = \"10s\"\n\
         [[store]]\nname = \"revoked\"\n\
         [[pool]]\nname = \"shop\"\nmode = \"sticky\"\nbalance = \"round-robin\"\n{of_shop}\
         [pool.health]\ntype = \"off\"\n\
         [[pool]]\nname = \"narrow\"\nmode = \"sticky\"\n{other}max_requests = 1\n\
         [[pool]]\nname = \"carts\"\nmode = \"shared\"\n{other}[pool.shared]\nstore = \"main\"\n\
         [[pool]]\nname = \"api\"\nmode = \"stateless\"\n{other}[pool.stateless]\nstore = \"revoked\"\n\
         [[pool.stateless.issuer]]\nissuer = \"{ISSUER}\"\njwks = \"file:jwks.json\"\naudience = [\"shop\"]\n"
    )
}

/// A Prometheus that looks at one proxy every second.
struct Prometheus {
    address: SocketAddr,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let file = directory.path().join("prometheus.yml");
        // What is JSON is YAML too.
        let configuration = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [RULES_FILE],
            "scrape_configs": [
                { "job_name": "steadfast", "static_configs": [{ "targets": [target.to_string()] }] },
            ],
        });
        std::fs::write(&file, configuration.to_string()).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.expect("prometheus is installed: see the README's test command");
        let prometheus = Prometheus { address, child, _directory: directory };
        let is_ready = || Client::plain(address).try_get("/-/ready").is_ok_and(|reply| reply.status == 200);
        eventually("prometheus is ready", is_ready);
        prometheus
    }

    fn ask(&self, path: &str) -> Value {
        let reply = Client::plain(self.address).get(path);
        let mut answer: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].take()
    }

    /// What an expression comes to now; what is no number is left out.
    fn values(&self, expression: &str) -> Vec<f64> {
        let data = self.ask(&format!("/api/v1/query?query={}", utf8_percent_encode(expression, NON_ALPHANUMERIC)));
        let series = data["result"].as_array().unwrap().iter();
        let values = series.filter_map(|one| one["value"][1].as_str()?.parse::<f64>().ok());
        values.filter(|value| value.is_finite()).collect()
    }

    /// The alerts as it has read them.
    fn alerts(&self) -> Vec<Value> {
        let data = self.ask("/api/v1/rules");
        let groups = data["groups"].as_array().unwrap().iter();
        let alerts: Vec<Value> = groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect();
        assert!(!alerts.is_empty(), "it has read them");
        alerts
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
