//! The operator's side of shared sessions: who is logged in, and an end to that, over the admin API and `ctl`.

use std::process::Command;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::support::client::{Reply, block_on};
use crate::support::proxy::BINARY;
use crate::support::{Client, Origin, Proxy, eventually, servers};

const COOKIE: &str = "__Host-Http-session";
const NOBODY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const SESSIONS: &str = "/api/v1/sessions";

/// Two pools that keep sessions, each in a realm of its own, and one that leaves them to the application.
fn configuration(origin: &Origin, store: &str) -> String {
    let server = servers(&[origin]);
    format!(
        "[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n[listener.tls]\nself_signed = [\"localhost\"]\n\
         [[route]]\npool = \"shop\"\n[[route]]\npath = \"/blog\"\nstrip_prefix = true\npool = \"blog\"\n\
         [[route]]\npath = \"/own\"\npool = \"own\"\n[[store]]\nname = \"main\"\n{store}\
         [[pool]]\nname = \"shop\"\nmode = \"shared\"\n{server}[pool.shared]\nstore = \"main\"\n\
         [[pool]]\nname = \"blog\"\nmode = \"shared\"\n{server}[pool.shared]\nstore = \"main\"\n\
         cookie = \"__Host-blog\"\n\
         [[pool]]\nname = \"own\"\nmode = \"shared\"\n{server}[pool.shared]\nheld_by = \"application\"\n\
         cookie = \"JSESSIONID\"\n"
    )
}

fn start(origin: &Origin) -> Proxy {
    Proxy::start(&configuration(origin, ""))
}

fn say(client: &mut Client, lines: &str) -> Reply {
    let reply = client.post("/say", lines.to_owned());
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply
}

fn log_in(proxy: &Proxy, subject: &str) -> Client {
    let mut client = proxy.tls_client();
    say(&mut client, &format!("op login;sub={subject}"));
    client
}

/// What the next server is told.
fn told(client: &mut Client) -> Value {
    serde_json::from_slice(&say(client, "").body).unwrap()
}

fn call(proxy: &Proxy, method: Method, path: &str) -> Reply {
    Client::plain(proxy.admin_address()).try_send(method, path, Bytes::new()).unwrap()
}

/// The answer of a call that is to be fine.
fn answer(proxy: &Proxy, method: Method, path: &str) -> Value {
    let reply = call(proxy, method, path);
    assert_eq!((reply.status, reply.header("content-type").as_str()), (200, "application/json"), "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

fn list(proxy: &Proxy, query: &str) -> Vec<Value> {
    let answer = answer(proxy, Method::GET, &format!("{SESSIONS}?{query}"));
    assert_eq!(answer["more"], false);
    answer["sessions"].as_array().unwrap().clone()
}

/// How the operator calls the session of a client.
fn reference(proxy: &Proxy, client: &mut Client) -> String {
    let sid = told(client)["sid"].clone();
    let listed = list(proxy, "");
    let session = listed.iter().find(|session| session["sid"] == sid).expect("the session is listed");
    session["ref"].as_str().unwrap().to_owned()
}

fn ctl(proxy: &Proxy, arguments: &[&str]) -> (i32, String) {
    let address = proxy.admin_address().to_string();
    let output = Command::new(BINARY).args(["ctl", "--address", &address]).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap(), text)
}

#[test]
fn an_operator_lists_and_ends_sessions_without_any_cookie() {
    let origin = Origin::start("a");
    let proxy = start(&origin);
    let [mut phone, mut laptop, mut bob, mut of_bob] =
        ["\"alice\"", "\"alice\"", "\"bob\"", "\"bob\""].map(|subject| log_in(&proxy, subject));
    let mut anonymous = proxy.tls_client();
    say(&mut anonymous, "patch {\"cart\":1}");
    let mut reader = proxy.tls_client();
    assert_eq!(reader.post("/blog/say", "op login;sub=\"alice\"").status, 200);
    let listed = list(&proxy, "realm=shop");
    let subjects: Vec<&str> = listed.iter().map(|session| session["subject"].as_str().unwrap()).collect();
    assert_eq!(subjects, ["alice", "alice", "bob", "bob"], "an anonymous session is not listed");
    assert_eq!((list(&proxy, "").len(), list(&proxy, "realm=blog").len()), (5, 1));
    let hers = list(&proxy, "realm=shop&subject=alice");
    assert_eq!(hers.len(), 2);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for session in &hers {
        assert!(listed.contains(session));
        assert_eq!((&session["realm"], &session["live"]), (&json!("shop"), &json!(true)));
        assert!(session["created"].as_u64().unwrap().abs_diff(now) < 120, "{session}");
    }
    // One goes, the other goes on.
    let one = format!("{SESSIONS}/{}", reference(&proxy, &mut phone));
    let sid = told(&mut phone)["sid"].clone();
    let shown = answer(&proxy, Method::GET, &one);
    assert!(shown["sid"] == sid && hers.contains(&shown), "{shown}");
    assert_eq!(answer(&proxy, Method::DELETE, &one), json!({ "ended": [sid] }));
    assert_eq!((&told(&mut phone)["st"], &told(&mut laptop)["st"]), (&json!("none"), &json!("auth")));
    assert_eq!(list(&proxy, "realm=shop&subject=alice").len(), 1);
    assert_eq!(call(&proxy, Method::DELETE, &one).status, 404, "it is no more");
    assert_eq!(proxy.metric("steadfast_session_events_total", &["pool=\"shop\"", "event=\"revoked\""]), 1.0);
    // All of hers go; who logs in again has a session again.
    say(&mut phone, "op login;sub=\"alice\"");
    let ended = answer(&proxy, Method::DELETE, &format!("{SESSIONS}?realm=shop&subject=alice"));
    assert_eq!(ended["ended"].as_array().map(Vec::len), Some(2), "{ended}");
    assert_eq!((&told(&mut phone)["st"], &told(&mut laptop)["st"]), (&json!("none"), &json!("none")));
    assert!(list(&proxy, "realm=shop&subject=alice").is_empty());
    for other in [&mut bob, &mut of_bob] {
        assert_eq!(told(other)["st"], "auth");
    }
    assert_eq!(told(&mut anonymous)["st"], "anon");
    assert_eq!(list(&proxy, "realm=blog").len(), 1, "she is logged in elsewhere");
    let again = answer(&proxy, Method::DELETE, &format!("{SESSIONS}?realm=shop&subject=alice"));
    assert_eq!(again, json!({ "ended": [] }));
    say(&mut laptop, "op login;sub=\"alice\"");
    assert_eq!(told(&mut laptop)["st"], "auth");
}

#[test]
fn what_is_asked_wrongly_is_refused_with_what_would_be_right() {
    let origin = Origin::start("a");
    let proxy = start(&origin);
    let mut client = log_in(&proxy, "\"alice\"");
    for (method, path, status) in [
        (Method::GET, format!("{SESSIONS}?subject=alice"), 400),
        (Method::GET, format!("{SESSIONS}?relm=shop"), 400),
        (Method::GET, format!("{SESSIONS}?realm=nowhere"), 404),
        (Method::GET, format!("{SESSIONS}?realm=own"), 404),
        (Method::GET, format!("{SESSIONS}/{NOBODY}"), 404),
        (Method::GET, format!("{SESSIONS}/nonsense"), 404),
        (Method::GET, format!("{SESSIONS}/{NOBODY}/more"), 404),
        (Method::DELETE, format!("{SESSIONS}/{NOBODY}"), 404),
        (Method::DELETE, SESSIONS.to_owned(), 400),
        (Method::DELETE, format!("{SESSIONS}?realm=shop"), 400),
        (Method::DELETE, format!("{SESSIONS}?realm=shop&subject="), 400),
        (Method::DELETE, format!("{SESSIONS}?subject=alice"), 400),
        (Method::DELETE, format!("{SESSIONS}?realm=nowhere&subject=alice"), 404),
        (Method::POST, SESSIONS.to_owned(), 404),
    ] {
        let reply = call(&proxy, method.clone(), &path);
        let kind = reply.header("content-type");
        assert_eq!((reply.status, kind.as_str()), (status, "application/problem+json"), "{method} {path}");
        assert!(reply.text().contains("\"detail\""), "{}", reply.text());
    }
    let mut foreign = Client::plain(proxy.admin_address()).header("Origin", "https://attacker.test");
    let path = format!("{SESSIONS}?realm=shop&subject=alice");
    assert_eq!(foreign.try_send(Method::DELETE, &path, Bytes::new()).unwrap().status, 403);
    assert_eq!(told(&mut client)["st"], "auth", "nothing has happened");
}

#[test]
fn ctl_lists_shows_and_ends_sessions() {
    let origin = Origin::start("a");
    let proxy = start(&origin);
    // A name that needs to be encoded everywhere it goes.
    let (name, written) = ("Zoë+x & y", "%\"Zo%c3%ab+x & y\"");
    let [mut phone, mut laptop] = [written; 2].map(|subject| log_in(&proxy, subject));
    let mut bob = log_in(&proxy, "\"bob\"");
    let (status, table) = ctl(&proxy, &["sessions", "list", "--realm", "shop"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(status == 0 && lines.len() == 4 && lines[0].starts_with("realm  subject    created"), "{table}");
    assert!(table.contains(name) && table.contains("  yes   "), "{table}");
    let (_, json) = ctl(&proxy, &["--json", "sessions", "list", "--realm", "shop", "--subject", name]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["sessions"].as_array().map(Vec::len), &json["more"]), (Some(2), &Value::from(false)));
    let one = reference(&proxy, &mut phone);
    let (status, shown) = ctl(&proxy, &["sessions", "show", &one]);
    assert!(status == 0 && shown.contains(&format!("ref      {one}")) && shown.contains(name), "{shown}");
    assert_eq!(ctl(&proxy, &["sessions", "revoke", &one]), (0, "1 session was ended.\n".to_owned()));
    assert_eq!((&told(&mut phone)["st"], &told(&mut laptop)["st"]), (&json!("none"), &json!("auth")));
    let all = ["sessions", "revoke", "--realm", "shop", "--subject", name];
    assert_eq!(ctl(&proxy, &all), (0, "1 session was ended.\n".to_owned()));
    assert_eq!(ctl(&proxy, &all), (0, "No session was there to be ended.\n".to_owned()));
    assert_eq!((&told(&mut laptop)["st"], &told(&mut bob)["st"]), (&json!("none"), &json!("auth")));
    let refuses = |arguments: &[&str], status: i32, text: &str| {
        let (ended, said) = ctl(&proxy, arguments);
        assert!(ended == status && said.contains(text), "{arguments:?}: {ended} {said}");
    };
    refuses(&["sessions", "show", &one], 1, "There is no session");
    // A reference may begin like an option.
    refuses(&["sessions", "show", "-AAAAAAA"], 1, "There is no session -AAAAAAA");
    refuses(&["sessions", "revoke", "--AAAAAA"], 1, "There is no session --AAAAAA");
    refuses(&["sessions", "list", "--realm", "nowhere"], 1, "No pool keeps sessions of a realm nowhere");
    refuses(&["sessions", "list", "--subject", "bob"], 2, "--realm");
    refuses(&["sessions", "revoke"], 2, "REF");
    refuses(&["sessions", "revoke", "--realm", "shop"], 2, "--subject");
    refuses(&["sessions", "revoke", "--realm", "shop", "--subject", "bob", &one], 2, "cannot be used with");
    assert_eq!(told(&mut bob)["st"], "auth");
}

#[test]
fn what_is_open_of_a_session_ends_when_the_operator_ends_it() {
    let origin = Origin::start("a");
    let proxy = start(&origin);
    let mut client = log_in(&proxy, "\"alice\"");
    let watcher = Client::tls(proxy.address("main")).header("cookie", &format!("{COOKIE}={}", client.cookies[COOKIE]));
    let watching = std::thread::spawn(move || {
        block_on(async move {
            let mut connection = watcher.connect().await?;
            let request = watcher.request(Method::GET, "/events").body(Default::default()).unwrap();
            connection.send(request).await.map(|reply| reply.text())
        })
    });
    eventually("the stream is open", || proxy.metric("steadfast_long_lived", &["kind=\"event_stream\""]) == 1.0);
    let one = reference(&proxy, &mut client);
    answer(&proxy, Method::DELETE, &format!("{SESSIONS}/{one}"));
    let heard = watching.join().unwrap().expect("the stream ends well");
    assert!(heard.contains("data: 0"), "{heard}");
}

#[test]
fn pools_say_that_they_are_shared_and_whether_their_store_answers() {
    let origin = Origin::start("a");
    let proxy = start(&origin);
    log_in(&proxy, "\"alice\"");
    let pools = answer(&proxy, Method::GET, "/api/v1/pools");
    let modes: Vec<&Value> = pools.as_array().unwrap().iter().map(|pool| &pool["mode"]).collect();
    assert_eq!(modes, ["shared"; 3]);
    let store = &pools[0]["store"];
    assert_eq!((&store["name"], &store["answers"], &store["evicted"]), (&json!("main"), &json!(true), &json!(0)));
    assert_eq!(store["records"], 3, "a handle, a lineage and a subject");
    assert!(store["bytes"].as_u64().unwrap() > 300, "{store}");
    assert_eq!(pools[2].get("store"), None, "the application's store is none of ours");
    assert_eq!(answer(&proxy, Method::GET, "/api/v1/pools/shop")["store"]["name"], "main");
    assert!(ctl(&proxy, &["status"]).1.starts_with("shop: shared, p2c,"));
}

#[test]
fn a_store_that_does_not_answer_is_no_empty_list() {
    const KEY: &str = "sfk1_MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA";
    let origin = Origin::start("a");
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ring.key"), KEY).unwrap();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let store = format!("kind = \"redis\"\nurl = \"redis://127.0.0.1:{port}\"\n");
    let keys = "[keys]\nring = [\"file:ring.key\"]\n";
    let proxy = Proxy::start_in(directory, &format!("{keys}{}", configuration(&origin, &store)));
    for (method, path) in [
        (Method::GET, SESSIONS.to_owned()),
        (Method::GET, format!("{SESSIONS}?realm=shop&subject=alice")),
        (Method::GET, format!("{SESSIONS}/{NOBODY}")),
        (Method::DELETE, format!("{SESSIONS}/{NOBODY}")),
        (Method::DELETE, format!("{SESSIONS}?realm=shop&subject=alice")),
    ] {
        let reply = call(&proxy, method.clone(), &path);
        assert_eq!((reply.status, reply.header("retry-after").as_str()), (503, "1"), "{method} {path}");
        assert_eq!(reply.header("content-type"), "application/problem+json");
        assert!(reply.text().contains("realm "), "{}", reply.text());
    }
    let pools = answer(&proxy, Method::GET, "/api/v1/pools");
    assert_eq!(pools[0]["store"].get("records"), None, "what Redis holds is not ours to know");
}
