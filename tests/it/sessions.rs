//! Sessions that the proxy keeps, over real sockets: the contract with applications, what clients see, and what goes wrong.

use serde_json::{Value, json};

use crate::support::client::Reply;
use crate::support::{Client, Origin, Proxy, eventually, saying, servers};

const COOKIE: &str = "__Host-Http-session";

fn shared(origins: &[&Origin], more: &str) -> String {
    format!(
        "[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n[listener.tls]\nself_signed = [\"localhost\"]\n\
         [[route]]\npool = \"shop\"\n[[route]]\npath = \"/account\"\npool = \"shop\"\nsession = \"required\"\n\
         login_url = \"/login\"\n[[route]]\npath = \"/static\"\npool = \"shop\"\nsession = \"off\"\n\
         [[store]]\nname = \"main\"\n[[pool]]\nname = \"shop\"\nmode = \"shared\"\nbalance = \"round-robin\"\n\
         debug_headers = true\n{}[pool.shared]\nstore = \"main\"\n{more}",
        servers(origins)
    )
}

/// What the server was told of the session.
fn claims(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

fn say(client: &mut Client, lines: &str) -> Reply {
    client.post("/say", lines.to_owned())
}

/// What the next server is told.
fn told(client: &mut Client) -> Value {
    claims(&client.post("/say", ""))
}

#[test]
fn any_server_serves_a_session_that_lives_in_the_proxy() {
    let origins = ["a", "b", "c"].map(Origin::start);
    let proxy = Proxy::start(&shared(&origins.each_ref(), ""));
    let mut client = proxy.tls_client();
    let first = say(&mut client, "patch {\"cart\":[\"teapot\"]}");
    assert_eq!(claims(&first)["st"], "none");
    let line = first.set_cookies().join("\n");
    assert!(line.starts_with(&format!("{COOKIE}=")), "{line}");
    for attribute in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/"] {
        assert!(line.contains(attribute), "{attribute} in {line}");
    }
    assert!(!line.contains("Max-Age") && !line.contains("Domain"), "{line}");
    assert_eq!(
        (first.header("cache-control"), first.header("steadfast-session-patch")),
        ("no-store".into(), String::new())
    );
    let mut served = std::collections::BTreeSet::new();
    for _ in 0..6 {
        let reply = say(&mut client, "");
        let claims = claims(&reply);
        assert_eq!(
            (&claims["st"], &claims["d"], &claims["aud"]),
            (&json!("anon"), &json!({"cart":["teapot"]}), &json!("shop"))
        );
        assert_eq!(reply.verdict(), format!("none; reason=not_sticky; server={}", reply.origin()));
        assert!(reply.set_cookies().is_empty());
        served.insert(reply.origin());
    }
    assert_eq!(served.len(), 3, "any server serves it");
    let seen = origins[0].seen();
    assert!(seen.iter().all(|seen| !seen.header("cookie").contains(COOKIE)), "no server sees the cookie");
}

#[test]
fn a_login_makes_a_new_cookie_and_the_old_one_is_worth_nothing() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&shared(&[&origin], ""));
    let mut client = proxy.tls_client();
    say(&mut client, "patch {\"cart\":1}");
    let mut attacker = client.clone();
    let reply = say(&mut client, "op login;sub=\"alice\";acr=\"mfa\";amr=\"pwd otp\"\nheader x-other: 1");
    assert_ne!(client.cookies[COOKIE], attacker.cookies[COOKIE]);
    assert_eq!(reply.header("steadfast-session-op"), "");
    let session = told(&mut client);
    assert_eq!((&session["st"], &session["sub"], &session["acr"]), (&json!("auth"), &json!("alice"), &json!("mfa")));
    assert_eq!((&session["amr"], &session["d"]), (&json!(["pwd", "otp"]), &json!({"cart":1})));
    let refused = say(&mut attacker, "patch {\"cart\":2}");
    assert_eq!((refused.status, refused.set_cookies().len()), (409, 0), "{}", refused.text());
    assert_eq!(refused.header("retry-after"), "");
    assert!(refused.text().contains("\"applied\":\"unknown\""), "{}", refused.text());
    assert_eq!(told(&mut attacker)["st"], "none");
    assert_eq!(told(&mut client)["d"], json!({"cart":1}));
    assert_eq!(proxy.metric("steadfast_session_events_total", &["event=\"rotated\""]), 1.0);
    assert!(proxy.metric("steadfast_session_events_total", &["event=\"muted\""]) >= 2.0);
}

#[test]
fn a_logout_ends_it_everywhere_and_tells_the_browser() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&shared(&[&origin], ""));
    let mut client = proxy.tls_client();
    say(&mut client, "op login;sub=\"alice\"");
    let mut copy = client.clone();
    let reply = say(&mut client, "op logout\nstatus 303");
    assert_eq!(reply.status, 303);
    assert!(reply.set_cookies()[0].contains("Max-Age=0"), "{:?}", reply.set_cookies());
    assert_eq!(reply.header("clear-site-data"), "\"cache\", \"cookies\", \"storage\"");
    assert_eq!(told(&mut copy)["st"], "none");
}

#[test]
fn a_session_is_required_where_the_route_says_so() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&shared(&[&origin], ""));
    let mut browser = proxy.tls_client().header("accept", "text/html").header("sec-fetch-mode", "navigate");
    let reply = browser.get("/account/orders?page=2");
    assert_eq!((reply.status, reply.header("location")), (303, "/login?return=%2Faccount%2Forders%3Fpage%3D2".into()));
    let reply = browser.get("//account/evil.example");
    assert_eq!(reply.header("location"), "/login?return=%2Faccount%2Fevil%2Eexample", "a path of this host");
    let reply = browser.post("/account/orders", "a form that must not be lost");
    assert_eq!(reply.status, 401, "a form is not redirected away");
    let mut program = proxy.tls_client();
    let reply = program.get("/account");
    assert_eq!((reply.status, reply.header("content-type")), (401, "application/problem+json".into()));
    assert!(reply.text().contains("login_required"), "{}", reply.text());
    say(&mut program, "patch {\"cart\":1}");
    assert_eq!(program.get("/account").status, 401, "an anonymous session is no login");
    say(&mut program, "op login;sub=\"alice\"");
    assert_eq!(program.get("/account").status, 200);
    assert_eq!(origin.seen().iter().filter(|seen| seen.target.starts_with("/account")).count(), 1);
    program.get("/static/logo.png");
    let last = origin.seen().pop().unwrap();
    assert_eq!(last.header("steadfast-session"), "", "routes without sessions are told of none");
}

#[test]
fn what_an_application_says_wrongly_is_its_own_fault_and_writes_nothing() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&shared(&[&origin], ""));
    let mut client = proxy.tls_client();
    say(&mut client, "patch {\"cart\":1}");
    let many = (0..300).map(|key| format!("\"k{key}\":1")).collect::<Vec<_>>().join(",");
    let deep = format!("{}1{}", "{\"a\":".repeat(17), "}".repeat(17));
    for wrong in [
        "patch [1]",
        "patch {\"cart\":",
        "header steadfast-session-patch: RID.%%%",
        "op become-admin",
        "op login",
        "op login;sub=\"a\"\nop login;sub=\"b\"",
        "op logout\nop renew",
        "op step-up;acr=\"mfa\"",
        "patch {\"cart\":2}\npatch {\"cart\":3}",
        "patch {\"cart\":2}\nif soon",
        "patch {\"cart\":2}\nop become-admin",
        &format!("patch {{{many}}}"),
        &format!("patch {deep}"),
        &format!("patch {{\"x\":\"{}\"}}", "x".repeat(17_000)),
    ] {
        let reply = say(&mut client, wrong);
        assert_eq!((reply.status, reply.set_cookies().len()), (502, 0), "{wrong:.60}: {}", reply.text());
        assert!(reply.text().contains("bad_directive"), "{}", reply.text());
        let session = told(&mut client);
        assert_eq!((&session["d"], &session["ver"]), (&json!({"cart":1}), &json!(1)), "{wrong:.60}");
    }
    eventually("each was counted", || {
        proxy.metric("steadfast_session_events_total", &["event=\"bad_directive\""]) == 14.0
    });
}

#[test]
fn what_is_not_of_the_attempt_is_ignored_and_nothing_of_it_reaches_the_client() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&shared(&[&origin], ""));
    let mut client = proxy.tls_client();
    for foreign in [
        "header steadfast-session-op: login;sub=\"admin\"",
        "header steadfast-session-op: login;sub=\"admin\";rid=\"AAAAAAAAAAAAAAAAAAAAAA\"",
        "header steadfast-session-patch: AAAAAAAAAAAAAAAAAAAAAA.e30",
    ] {
        let reply = say(&mut client, foreign);
        assert_eq!((reply.status, reply.set_cookies().len()), (200, 0), "{foreign}");
        assert!(!reply.headers.keys().any(|name| name.as_str().starts_with("steadfast-session")));
    }
    assert_eq!(proxy.metric("steadfast_session_events_total", &["event=\"foreign_directive\""]), 3.0);
    let mut liar = proxy.tls_client().header("Steadfast-Session", "eyJ9").header("Steadfast_Session-Op", "x");
    assert_eq!(told(&mut liar)["st"], "none");
    let seen = origin.seen().pop().unwrap();
    assert_eq!(
        (seen.header("steadfast_session-op"), seen.headers.get_all("steadfast-session").iter().count()),
        (String::new(), 1)
    );
}

#[test]
fn versions_keep_concurrent_writers_apart() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&shared(&[&origin], ""));
    let mut client = proxy.tls_client();
    say(&mut client, "patch {\"count\":1}\nif 0");
    assert_eq!(say(&mut client, "patch {\"count\":2}\nif 1").status, 200);
    let late = say(&mut client, "patch {\"count\":2}\nif 1");
    assert_eq!(late.status, 409, "{}", late.text());
    let session = told(&mut client);
    assert_eq!((&session["ver"], &session["d"]["count"]), (&json!(2), &json!(2)));
}

#[test]
fn tokens_are_checked_by_the_keys_on_the_admin_address() {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    use data_encoding::BASE64URL_NOPAD;
    let origin = Origin::start("a");
    let proxy = Proxy::start(&shared(&[&origin], ""));
    told(&mut proxy.tls_client());
    let token = origin.seen().pop().unwrap().header("steadfast-session");
    let jwks: Value = serde_json::from_str(&proxy.admin("/.well-known/jwks.json").unwrap()).unwrap();
    let decode = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let header: Value = serde_json::from_slice(&decode(token.split('.').next().unwrap())).unwrap();
    assert_eq!((&header["typ"], &header["alg"]), (&json!("steadfast-session+jwt"), &json!("EdDSA")));
    let key = jwks["keys"].as_array().unwrap().iter().find(|key| key["kid"] == header["kid"]).unwrap();
    let public = UnparsedPublicKey::new(&ED25519, decode(key["x"].as_str().unwrap()));
    public.verify(signed.as_bytes(), &decode(signature)).expect("the signature is the proxy's");
    let claims = saying::claims(&origin.seen().pop().unwrap().headers);
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 60);
}

#[test]
fn two_session_cookies_are_no_session() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&shared(&[&origin], ""));
    let mut client = proxy.tls_client();
    say(&mut client, "op login;sub=\"alice\"");
    let both = format!("{COOKIE}={}; {COOKIE}=planted", client.cookies[COOKIE]);
    client.cookies.clear();
    let mut confused = client.header("cookie", &both);
    let reply = confused.get("/");
    assert_eq!(reply.status, 200);
    assert_eq!(saying::claims(&origin.seen().pop().unwrap().headers)["st"], "none");
    let reply = confused.post("/say", "");
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert!(reply.text().contains("two_sessions"), "{}", reply.text());
}

#[test]
fn a_cookie_that_leads_nowhere_is_forgotten_at_the_next_page() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&shared(&[&origin], ""));
    let mut client = proxy.tls_client();
    say(&mut client, "op login;sub=\"alice\"");
    let value = client.cookies[COOKIE].clone();
    let last = if value.ends_with('A') { "B" } else { "A" };
    client.cookies.insert(COOKIE.into(), format!("{}{last}", &value[..value.len() - 1]));
    assert!(client.get("/").set_cookies().is_empty(), "a program's requests change no cookie");
    let mut browser = client.header("sec-fetch-mode", "navigate");
    assert!(browser.get("/").set_cookies()[0].contains("Max-Age=0"));
}

#[test]
fn no_cache_may_keep_a_cookie_whatever_server_and_route_say() {
    let origin = Origin::start("a");
    let route = "[[route]]\npath = \"/say\"\npool = \"shop\"\nresponse_headers = { set = { Cache-Control = \"public, \
                 max-age=60\" } }\n[[store]]";
    let proxy = Proxy::start(&shared(&[&origin], "").replace("[[store]]", route));
    let mut client = proxy.tls_client();
    let said = "patch {\"cart\":1}\nheader cdn-cache-control: max-age=60\nheader connection: set-cookie";
    let reply = say(&mut client, said);
    assert_eq!((reply.set_cookies().len(), reply.header("cache-control")), (1, "no-store".into()));
    assert_eq!(reply.header("cdn-cache-control"), "");
    assert_eq!(say(&mut client, "").header("cache-control"), "public, max-age=60", "there is no cookie in this one");
}

#[test]
fn a_cookie_grows_old_where_every_response_writes_and_its_tunnel_outlives_it() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&shared(&[&origin], "renew = \"1s\"\ngrace = \"0s\"\ntunnel_recheck = \"1s\"\n"));
    let mut client = proxy.tls_client();
    say(&mut client, "op login;sub=\"alice\"");
    let first = client.cookies[COOKIE].clone();
    let watcher = client.clone();
    let watching = std::thread::spawn(move || {
        crate::support::client::block_on(async move {
            let mut connection = watcher.connect().await?;
            let request = watcher.request(http::Method::GET, "/events").body(Default::default()).unwrap();
            connection.send(request).await
        })
    });
    eventually("the stream is open", || proxy.metric("steadfast_long_lived", &["kind=\"event_stream\""]) == 1.0);
    eventually("the cookie is renewed twice by responses that write", || {
        say(&mut client, "patch {\"seen\":1}");
        proxy.metric("steadfast_session_events_total", &["event=\"renewed\""]) >= 2.0
    });
    eventually("the stream's session was looked at again", || {
        say(&mut client, "patch {\"seen\":2}");
        proxy.metric("steadfast_session_events_total", &["event=\"renewed\""]) >= 4.0
    });
    assert_eq!(proxy.metric("steadfast_long_lived", &["kind=\"event_stream\""]), 1.0, "it is still open");
    assert_ne!(client.cookies[COOKIE], first);
    assert_eq!(told(&mut client)["st"], "auth");
    // The first cookie is a copy by now: whoever shows it ends the session, and what is open of it.
    let mut thief = proxy.tls_client();
    thief.cookies.insert(COOKIE.into(), first);
    eventually("the copy is noticed", || {
        told(&mut thief);
        proxy.metric("steadfast_session_events_total", &["event=\"reused\""]) >= 1.0
    });
    assert_eq!(told(&mut client)["st"], "none");
    watching.join().unwrap().expect("the stream ends with its session");
}

#[test]
fn sessions_that_the_application_keeps_are_counted_and_balanced_freely() {
    let origins = ["a", "b"].map(Origin::start);
    let proxy = Proxy::start(&format!(
        "[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n[[route]]\npool = \"shop\"\n[[pool]]\n\
         name = \"shop\"\nmode = \"shared\"\nbalance = \"round-robin\"\n{}[pool.shared]\n\
         held_by = \"application\"\ncookie = \"JSESSIONID\"\n",
        servers(&origins.each_ref())
    ));
    for number in 0..5 {
        let mut user = proxy.client();
        user.cookies.insert("JSESSIONID".into(), format!("session-{number}"));
        let served: std::collections::BTreeSet<String> = (0..4).map(|_| user.get("/").origin()).collect();
        assert_eq!(served.len(), 2, "any server serves it");
    }
    let seen = origins[0].seen().pop().unwrap();
    assert!(seen.header("cookie").contains("JSESSIONID=session-4"), "the cookie is the application's");
    assert_eq!(seen.header("steadfast-session"), "");
    assert_eq!(proxy.metric("steadfast_sessions", &["server=\"a\""]), 5.0);
    assert_eq!(proxy.metric("steadfast_sessions", &["server=\"b\""]), 5.0);
    eventually("the log has a keyed hash of it", || {
        let log = proxy.access_log();
        let sessions: std::collections::BTreeSet<String> = log.iter().map(|line| line["session"].to_string()).collect();
        sessions.len() == 5 && !sessions.iter().any(|session| session.contains("session-"))
    });
}

#[test]
fn a_web_socket_and_an_event_stream_end_with_their_session() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&shared(&[&origin], ""));
    let mut client = proxy.tls_client();
    say(&mut client, "op login;sub=\"alice\"");
    let cookie = format!("{COOKIE}={}", client.cookies[COOKIE]);
    let address = proxy.address("main");
    let watching = std::thread::spawn(move || {
        crate::support::client::block_on(async move {
            let mut client = Client::tls(address).header("cookie", &cookie);
            let _ = &mut client;
            let mut connection = client.connect().await?;
            let request = client.request(http::Method::GET, "/events").body(Default::default()).unwrap();
            let reply = connection.send(request).await?;
            Ok(reply.text())
        })
    });
    eventually("the stream is open", || proxy.metric("steadfast_long_lived", &["kind=\"event_stream\""]) == 1.0);
    say(&mut client, "op logout");
    let heard = watching.join().unwrap().expect("the stream ends well");
    assert!(heard.contains("data: 0"), "{heard}");
}
