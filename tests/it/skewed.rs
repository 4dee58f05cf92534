//! A few heavy sessions that all have one server: what is measured says so, and agrees with itself and with what was
//! sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::Full;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::client::{Reply, block_on};
use crate::support::proxy::Scrape;
use crate::support::{Client, Origin, Proxy, eventually, plain};

const NO_PROBES: &str = "[pool.health]\ntype = \"off\"\n";
const SHOP: &str = "pool=\"shop\"";

/// A server has two workers, so that it can do a hundred of these a second.
const WORK: &str = "/work/20";
/// A hundred a second come in, too.
const EVERY: Duration = Duration::from_millis(10);
/// Requests that are sent whether those before are answered or not,
const REQUESTS: usize = 500;
/// while there are fewer than this.
const MOST_UNANSWERED: usize = 64;
/// Ten for each server, or more for the one that gets most.
const USERS: usize = 40;
const HEAVY: usize = 3;
/// Max over mean of a load that is clearly skewed: the heavy sessions alone make it 2.8.
const SKEWED: f64 = 2.0;

#[test]
fn in_a_skewed_run_the_shadow_is_no_worse_and_all_sums_agree() {
    let origins = ["a", "b", "c", "d"].map(Origin::start);
    let proxy = Proxy::start(&plain(&origins.each_ref(), NO_PROBES));
    let crowd = Crowd::gather(&proxy);
    let replies = crowd.send();
    assert!(replies.iter().all(|reply| reply.status == 200));
    the_shadow_is_no_worse(&proxy);
    let sent = USERS + REQUESTS;
    eventually("all is settled and logged", || {
        proxy.access_log().len() == sent && proxy.metric("steadfast_affinity_total", &[SHOP]) == sent as f64
    });
    let books = Books::read(&proxy);
    books.verdicts_are_those_of_the_crowd();
    for origin in &origins {
        let answered = replies.iter().filter(|reply| reply.origin() == origin.name).count();
        books.agree_with(origin, answered + crowd.home_of(&origin.name));
    }
    books.regret_is_never_negative();
    every_session_is_counted_at_its_home(&proxy, &crowd);
}

/// Those who ask.
struct Crowd {
    /// Sessions of one server.
    heavy: Vec<Client>,
    light: Vec<Client>,
    /// Has no cookies, and keeps none.
    stranger: Client,
    /// How many sessions each server has.
    homes: BTreeMap<String, usize>,
}

impl Crowd {
    /// Gets everybody a pin. The heavy ones are of the server that got most of them.
    fn gather(proxy: &Proxy) -> Self {
        let mut users: BTreeMap<String, Vec<Client>> = BTreeMap::new();
        for _ in 0..USERS {
            let mut user = proxy.client();
            let home = user.get("/").origin();
            users.entry(home).or_default().push(user);
        }
        let homes = users.iter().map(|(home, users)| (home.clone(), users.len())).collect();
        let busiest = users.values_mut().max_by_key(|users| users.len()).unwrap();
        let heavy = busiest.split_off(busiest.len() - HEAVY);
        Crowd { heavy, light: users.into_values().flatten().collect(), stranger: proxy.client(), homes }
    }

    /// Whose turn it is: seven requests in ten are of the heavy sessions, one in twenty of a stranger.
    fn sender(&self, number: usize) -> &Client {
        match number % 20 {
            at @ 0..14 => &self.heavy[at % HEAVY],
            at @ 14..19 => &self.light[(number / 20 * 5 + at - 14) % self.light.len()],
            _ => &self.stranger,
        }
    }

    /// Everybody asks in turn, on time.
    fn send(&self) -> Vec<Reply> {
        let places = Arc::new(Semaphore::new(MOST_UNANSWERED));
        let replies = block_on(async {
            let mut ticks = tokio::time::interval(EVERY);
            let mut asked = JoinSet::new();
            for number in 0..REQUESTS {
                ticks.tick().await;
                let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
                let sender = self.sender(number).clone();
                asked.spawn(async move {
                    let reply = ask(sender).await;
                    drop(place);
                    reply
                });
            }
            asked.join_all().await.into_iter().collect::<Result<Vec<Reply>, String>>()
        });
        replies.unwrap()
    }

    /// Sessions that have this server.
    fn home_of(&self, server: &str) -> usize {
        self.homes.get(server).copied().unwrap_or_default()
    }
}

async fn ask(user: Client) -> Result<Reply, String> {
    let request = user.request(Method::GET, WORK).body(Full::new(Bytes::new())).map_err(|error| error.to_string())?;
    let mut connection = user.connect().await?;
    connection.send(request).await
}

fn server_label(name: &str) -> String {
    format!("server=\"{name}\"")
}

fn measured(scrape: &Scrape, policy: &str, of: &str, measure: &str) -> f64 {
    let labels = [("policy", policy), ("of", of), ("measure", measure)].map(|(name, is)| format!("{name}=\"{is}\""));
    scrape.sum("steadfast_imbalance_ratio", &labels.each_ref().map(String::as_str))
}

/// The gauges are of the last ten seconds, so that what was just sent is in them.
fn the_shadow_is_no_worse(proxy: &Proxy) {
    for of in ["requests", "in_flight"] {
        let mut scrape = proxy.scrape();
        eventually("the load is seen to be skewed", || {
            scrape = proxy.scrape();
            measured(&scrape, "actual", of, "max_over_mean") > SKEWED
        });
        let measures = |policy: &str| ["max_over_mean", "jain", "cv"].map(|name| measured(&scrape, policy, of, name));
        let (actual, shadow) = (measures("actual"), measures("shadow"));
        for [max_over_mean, jain, cv] in [actual, shadow] {
            assert!((0.999..4.001).contains(&max_over_mean), "{of}: {max_over_mean}");
            assert!((jain - 1.0 / (1.0 + cv * cv)).abs() < 1e-6, "of one load vector: {jain} and {cv}");
        }
        assert!(shadow[0] <= actual[0] && shadow[2] <= actual[2], "{of}: {shadow:?} and {actual:?}");
        assert!(shadow[1] >= actual[1], "Jain's index is one where all is even: {shadow:?} and {actual:?}");
    }
}

/// All that the proxy says of what has been, once nothing is in flight.
struct Books {
    scrape: Scrape,
    /// The pool, as the API has it.
    pool: Value,
    log: Vec<Value>,
}

impl Books {
    fn read(proxy: &Proxy) -> Self {
        let pool = proxy.admin("/api/v1/pools/shop").expect("the API answers");
        Books { scrape: proxy.scrape(), pool: serde_json::from_str(&pool).expect("JSON"), log: proxy.access_log() }
    }

    fn counted(&self, name: &str, label: &str) -> usize {
        self.scrape.sum(name, &[SHOP, label]) as usize
    }

    fn logged(&self, key: &str, value: &str) -> usize {
        self.log.iter().filter(|line| line[key] == value).count()
    }

    /// Who has no pin is new, and all others are kept: no server has failed, and none was full.
    fn verdicts_are_those_of_the_crowd(&self) {
        let (sent, strangers) = (USERS + REQUESTS, REQUESTS / 20);
        let of_api = |verdict: &str| {
            let verdicts = self.pool["verdicts"].as_array().unwrap().iter().filter(|entry| entry["verdict"] == verdict);
            verdicts.map(|entry| entry["count"].as_u64().unwrap()).sum::<u64>() as usize
        };
        let verdicts = [("new", USERS + strangers), ("kept", REQUESTS - strangers), ("waited", 0), ("moved", 0)];
        for (verdict, wanted) in verdicts {
            let counted = self.counted("steadfast_affinity_total", &format!("verdict=\"{verdict}\""));
            assert_eq!([counted, of_api(verdict), self.logged("verdict", verdict)], [wanted; 3], "{verdict}");
        }
        for family in ["steadfast_affinity_total", "steadfast_requests_total", "steadfast_attempts_total"] {
            assert_eq!(self.counted(family, ""), sent, "{family}");
        }
        assert_eq!(self.counted("steadfast_request_duration_seconds_count", ""), sent);
        assert_eq!(self.pool["codes"], serde_json::json!({ "2xx": sent }));
        let disagreements = self.counted("steadfast_affinity_disagreement_total", "");
        assert_eq!(self.pool["disagreements"], disagreements);
        // The policy would have sent a quarter of them there.
        assert!((1..=REQUESTS - strangers).contains(&disagreements), "{disagreements}");
    }

    /// What an origin has seen is what its clients were told, and what is counted and logged of it.
    fn agree_with(&self, origin: &Origin, answered: usize) {
        let label = server_label(&origin.name);
        let families =
            ["steadfast_requests_total", "steadfast_attempts_total", "steadfast_request_duration_seconds_count"];
        for family in families {
            assert_eq!(self.counted(family, &label), answered, "{family} of {}", origin.name);
        }
        assert_eq!([origin.seen().len(), self.logged("server", &origin.name)], [answered; 2], "{}", origin.name);
    }

    /// A negative one would make a bucket smaller than the one below, or the sum smaller than its buckets say.
    fn regret_is_never_negative(&self) {
        let regret = &self.pool["regret"];
        let (count, sum) = (regret["count"].as_u64().unwrap(), regret["sum_s"].as_f64().unwrap());
        assert_eq!(self.counted("steadfast_affinity_regret_seconds_count", "") as u64, count);
        let held = self.logged("verdict", "kept") + self.logged("verdict", "waited");
        assert_eq!(held as u64, count, "one for each pin that held");
        assert!((self.scrape.sum("steadfast_affinity_regret_seconds_sum", &[SHOP]) - sum).abs() < 1e-6);
        assert!(sum > 0.0, "who is pinned to the busy server waits where others would not");
        let (mut least, mut most, mut below, mut within) = (0.0, 0.0, 0.0, 0);
        for bucket in regret["buckets"].as_array().unwrap() {
            let (bound, cumulative) = (bucket[0].as_f64().unwrap(), bucket[1].as_u64().unwrap());
            let here = cumulative.checked_sub(within).expect("no bucket has fewer than none") as f64;
            (least, most) = (least + below * here, most + bound * here);
            (below, within) = (bound, cumulative);
        }
        let beyond = count.checked_sub(within).expect("all are within the last bucket");
        least += below * beyond as f64;
        assert!(sum >= least && (beyond > 0 || sum <= most), "{sum} is not between {least} and {most}: {regret}");
        let of_line = |line: &Value| line["regret_ms"].as_f64().unwrap();
        assert!(self.log.iter().all(|line| of_line(line) >= 0.0));
        let holds = |line: &&Value| line["verdict"] == "kept" || line["verdict"] == "waited";
        let (held, others): (Vec<&Value>, Vec<&Value>) = self.log.iter().partition(holds);
        assert!(others.into_iter().all(|line| of_line(line) == 0.0), "only a pin costs something");
        // The log leaves out what is less than a microsecond.
        let left_out = sum - held.into_iter().map(of_line).sum::<f64>() / 1e3;
        assert!((-1e-6..=count as f64 * 1e-6 + 1e-6).contains(&left_out), "{left_out}");
    }
}

/// So few are counted one by one. Strangers have no session, however often they ask.
fn every_session_is_counted_at_its_home(proxy: &Proxy, crowd: &Crowd) {
    let most = crowd.homes.values().max().copied().unwrap_or_default();
    let uneven = (most * 4) as f64 / USERS as f64;
    eventually("it is seen how uneven the sessions are", || {
        (measured(&proxy.scrape(), "actual", "sessions", "max_over_mean") - uneven).abs() < 1e-6
    });
    let books = Books::read(proxy);
    assert_eq!(books.counted("steadfast_sessions", ""), USERS);
    for server in books.pool["servers"].as_array().unwrap() {
        let name = server["name"].as_str().unwrap();
        let home_of = crowd.home_of(name);
        assert_eq!(books.counted("steadfast_sessions", &server_label(name)), home_of, "{name}");
        assert_eq!(server["sessions"], home_of, "{name}");
    }
}
