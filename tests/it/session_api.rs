//! The side API: servers read and write the session of a request while they answer it.

use std::net::TcpListener;

use http::Method;
use serde_json::{Value, json};

use crate::support::client::Reply;
use crate::support::{Client, Origin, Proxy, eventually, servers};

struct World {
    origin: Origin,
    proxy: Proxy,
    api: u16,
}

impl World {
    fn begin() -> Self {
        let origin = Origin::start("a");
        let api = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let proxy = Proxy::start(&format!(
            "[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n[[route]]\npool = \"shop\"\n\
             [session_api]\naddress = \"127.0.0.1:{api}\"\n[[store]]\nname = \"main\"\n\
             [[pool]]\nname = \"shop\"\nmode = \"shared\"\n{}[pool.shared]\nstore = \"main\"\ninline_bytes = \"64B\"\n",
            servers(&[&origin])
        ));
        World { origin, proxy, api }
    }

    fn user(&self) -> Client {
        self.proxy.client().host("localhost")
    }

    /// A user's request that waits at the server, which meanwhile does something; gives the answer in the end.
    fn during(&self, user: &mut Client, says: &str, act: impl FnOnce(&Server)) -> Reply {
        let before = self.origin.seen().len();
        let (mut asking, says) = (user.clone(), says.to_owned());
        let answer = std::thread::spawn(move || asking.post("/say-later", says));
        eventually("the server has it", || self.origin.seen().len() > before);
        let seen = self.origin.seen().pop().unwrap();
        let nonce = seen.header("steadfast-session-request");
        act(&Server { client: Client::plain(([127, 0, 0, 1], self.api).into()), nonce });
        self.origin.go_on();
        let reply = answer.join().unwrap();
        user.keep_cookies(&reply);
        reply
    }

    /// What the next server is told.
    fn told(&self, user: &mut Client) -> Value {
        let reply = user.post("/say", "");
        assert_eq!(reply.status, 200, "{}", reply.text());
        serde_json::from_slice(&reply.body).unwrap()
    }
}

/// A server that has a request.
struct Server {
    client: Client,
    nonce: String,
}

impl Server {
    fn call(&self, method: &str, path: &str, if_match: &str, body: &Value) -> Reply {
        let mut client = self.client.clone().header("authorization", &format!("Steadfast {}", self.nonce));
        client = client.header("content-type", "application/merge-patch+json");
        if !if_match.is_empty() {
            client = client.header("if-match", if_match);
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        client.try_send(method.parse::<Method>().unwrap(), path, body.into()).unwrap()
    }
}

fn json_of(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", reply.text()))
}

#[test]
fn a_server_reads_and_writes_by_version() {
    let world = World::begin();
    let mut user = world.user();
    user.post("/say", "op login;sub=\"alice\"\npatch {\"cart\":[]}");
    world.during(&mut user, "", |server| {
        let read = server.call("GET", "/v1/session", "", &Value::Null);
        assert_eq!((read.status, read.header("etag")), (200, "\"1\"".into()), "{}", read.text());
        let body = json_of(&read);
        assert_eq!((&body["data"], &body["meta"]["sub"]), (&json!({"cart":[]}), &json!("alice")));
        let written = server.call("PATCH", "/v1/session", "\"1\"", &json!({"cart":[1]}));
        assert_eq!((written.status, written.header("etag")), (200, "\"2\"".into()), "{}", written.text());
        assert_eq!(server.call("PATCH", "/v1/session", "\"1\"", &json!({"cart":[2]})).status, 412);
        assert_eq!(server.call("PATCH", "/v1/session", "", &json!({"theme":"dark"})).status, 200);
        assert_eq!(server.call("PUT", "/v1/session", "", &json!({})).status, 428);
        let large = json!({"cart":[1], "theme":"dark", "text":"x".repeat(1_000)});
        assert_eq!(server.call("PUT", "/v1/session", "\"3\"", &large).status, 200);
        assert_eq!(server.call("PATCH", "/v1/session", "", &json!({"x":"x".repeat(17_000)})).status, 413);
        assert_eq!(server.call("PATCH", "/v1/session", "soon", &json!({})).status, 400);
    });
    let session = world.told(&mut user);
    assert_eq!((&session["d"], &session["d_ref"]), (&Value::Null, &json!(true)), "too large for the header");
    assert_eq!(session["api"], format!("http://127.0.0.1:{}", world.api));
    world.during(&mut user, "", |server| {
        let read = json_of(&server.call("GET", "/v1/session", "", &Value::Null));
        assert_eq!((&read["data"]["cart"], &read["meta"]["ver"]), (&json!([1]), &json!(4)));
    });
}

#[test]
fn the_cookie_of_a_login_goes_out_with_the_response() {
    let world = World::begin();
    let mut user = world.user();
    user.post("/say", "patch {\"cart\":1}");
    let before = user.cookies["session"].clone();
    let reply = world.during(&mut user, "patch {\"seen\":true}", |server| {
        let login = server.call("POST", "/v1/session/op", "", &json!({"op":"login","sub":"alice","amr":["pwd","otp"]}));
        assert_eq!(login.status, 200, "{}", login.text());
        let body = json_of(&server.call("GET", "/v1/session", "", &Value::Null));
        assert_eq!((&body["meta"]["sub"], &body["meta"]["amr"]), (&json!("alice"), &json!(["pwd", "otp"])));
        let twice = server.call("POST", "/v1/session/op", "", &json!({"op":"become-admin"}));
        assert_eq!(twice.status, 400);
    });
    assert_eq!((reply.status, reply.set_cookies().len()), (200, 1), "{}", reply.text());
    assert_ne!(user.cookies["session"], before);
    let session = world.told(&mut user);
    assert_eq!((&session["sub"], &session["d"]), (&json!("alice"), &json!({"cart":1,"seen":true})));
}

#[test]
fn a_nonce_counts_for_its_attempt_and_a_moment_after_without_cookies() {
    let world = World::begin();
    let mut user = world.user();
    user.post("/say", "op login;sub=\"alice\"");
    let mut nonce = String::new();
    world.during(&mut user, "", |server| {
        let mut stranger = Server { client: server.client.clone(), nonce: "AAAAAAAAAAAAAAAAAAAAAA".into() };
        assert_eq!(stranger.call("GET", "/v1/session", "", &Value::Null).status, 401);
        stranger.nonce = String::new();
        assert_eq!(stranger.call("GET", "/v1/session", "", &Value::Null).status, 401);
        nonce.clone_from(&server.nonce);
    });
    let late = Server { client: Client::plain(([127, 0, 0, 1], world.api).into()), nonce };
    let logout = late.call("POST", "/v1/session/op", "", &json!({"op":"logout"}));
    assert_eq!(logout.status, 409, "{}", logout.text());
    assert!(logout.text().contains("head-sent"), "{}", logout.text());
    assert_eq!(late.call("PATCH", "/v1/session", "", &json!({"late":1})).status, 200, "data needs no cookie");
    assert_eq!(world.told(&mut user)["d"], json!({"late":1}));
    eventually("its time is over", || late.call("GET", "/v1/session", "", &Value::Null).status == 401);
}

#[test]
fn no_session_is_not_found_and_an_ended_one_is_gone() {
    let world = World::begin();
    let mut user = world.user();
    world.during(&mut user, "", |server| {
        assert_eq!(server.call("GET", "/v1/session", "", &Value::Null).status, 404);
        let made = server.call("PATCH", "/v1/session", "", &json!({"cart":1}));
        assert_eq!(made.status, 200, "{}", made.text());
    });
    assert_eq!(world.told(&mut user)["d"], json!({"cart":1}), "its cookie came with the response");
    let mut copy = user.clone();
    world.during(&mut user, "", |server| {
        copy.post("/say", "op logout");
        assert_eq!(server.call("GET", "/v1/session", "", &Value::Null).status, 410);
        assert_eq!(server.call("PATCH", "/v1/session", "", &json!({"cart":2})).status, 410);
    });
}

#[test]
fn a_user_sees_their_devices_and_logs_them_out() {
    let world = World::begin();
    let [mut phone, mut laptop, mut tablet] = [(); 3].map(|()| world.user());
    for device in [&mut phone, &mut laptop, &mut tablet] {
        device.post("/say", "op login;sub=\"alice\"");
    }
    world.during(&mut laptop, "", |server| {
        let peers = json_of(&server.call("GET", "/v1/session/peers", "", &Value::Null))["peers"].clone();
        let peers = peers.as_array().unwrap();
        assert_eq!((peers.len(), peers.iter().filter(|peer| peer["current"] == true).count()), (3, 1));
        let first = peers[0]["ref"].as_str().unwrap();
        assert_eq!(server.call("DELETE", &format!("/v1/session/peers/{first}"), "", &Value::Null).status, 204);
        assert_eq!(server.call("DELETE", &format!("/v1/session/peers/{first}"), "", &Value::Null).status, 404);
    });
    assert_eq!((&world.told(&mut phone)["st"], &world.told(&mut tablet)["st"]), (&json!("none"), &json!("auth")));
    world.during(&mut laptop, "", |server| {
        let ended = server.call("DELETE", "/v1/session/peers", "", &Value::Null);
        assert!(ended.status == 200 || ended.status == 204, "{}", ended.text());
    });
    assert_eq!((&world.told(&mut laptop)["st"], &world.told(&mut tablet)["st"]), (&json!("auth"), &json!("none")));
}
