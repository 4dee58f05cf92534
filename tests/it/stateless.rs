//! Stateless pools: who asks is in a signed token.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::certs::Authority;
use crate::support::redis::Redis;
use crate::support::tokens::{ISSUER, Issuer, KeyServer, key_set, now};
use crate::support::{Client, Origin, Proxy, eventually, servers};

/// A stateless pool whose issuer's keys are in a file; `more` goes below `[pool.stateless]`, `route` below the route.
fn stateless(origins: &[&Origin], more: &str, route: &str) -> String {
    format!(
        "[keys]\nring = [\"file:ring.key\"]\n[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n\
         [listener.tls]\nself_signed = [\"localhost\"]\n[[route]]\npool = \"shop\"\n{route}\n\
         [[pool]]\nname = \"shop\"\nmode = \"stateless\"\n{}[pool.stateless]\n{more}\n\
         [[pool.stateless.issuer]]\nissuer = \"{ISSUER}\"\njwks = \"file:jwks.json\"\naudience = [\"shop\"]\n",
        servers(origins)
    )
}

/// Starts a proxy with the keys of these issuers.
fn start(issuers: &[&Issuer], configuration: &str) -> Proxy {
    Proxy::start_in(directory(issuers), configuration)
}

fn directory(issuers: &[&Issuer]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ring.key"), "sfk1_MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA").unwrap();
    std::fs::write(directory.path().join("jwks.json"), key_set(issuers)).unwrap();
    directory
}

fn with(proxy: &Proxy, token: &str) -> Client {
    proxy.tls_client().header("authorization", &format!("Bearer {token}"))
}

/// What the server was told.
#[track_caller]
fn told(user: &mut Client) -> Value {
    let reply = user.post("/say", "");
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

#[test]
fn a_token_is_checked_and_told_in_the_proxys_own_words() {
    let (origin, issuer) = (Origin::start("a"), Issuer::new("k1", 1));
    let proxy = start(&[&issuer], &stateless(&[&origin], "", ""));
    let token = issuer.token("alice", &json!({ "acr": "mfa", "amr": ["otp"], "auth_time": 1, "role": "clerk" }));
    let claims = told(&mut with(&proxy, &token));
    assert_eq!((&claims["st"], &claims["sub"], &claims["aud"]), (&json!("auth"), &json!("alice"), &json!("shop")));
    assert_eq!((&claims["acr"], &claims["amr"], &claims["iss"]), (&json!("mfa"), &json!(["otp"]), &json!("steadfast")));
    assert_eq!(claims["claims"]["role"], "clerk", "what else the token says is told too");
    assert_eq!(claims["csrf"], Value::Null, "a header is sent by nobody but the page itself");
    let seen = origin.last();
    assert_eq!(seen.header("authorization"), "", "the token itself stays here");
    assert!(!format!("{seen:?}").contains(&token[token.len() - 20..]));
    let claims = told(&mut proxy.tls_client());
    assert_eq!(claims["st"], "none", "without a token there is nobody");
    let forged = proxy.tls_client().header("steadfast-session", "e30.e30.e30");
    assert_eq!(told(&mut forged.clone())["st"], "none", "and nobody can say so themselves");
    let mut other = proxy.tls_client().header("authorization", "Basic YTpi");
    told(&mut other);
    assert_eq!(origin.last().header("authorization"), "Basic YTpi", "other schemes are the application's");
}

#[test]
fn a_bad_token_is_refused_everywhere_with_the_words_of_rfc_6750() {
    let (origin, issuer, stranger) = (Origin::start("a"), Issuer::new("k1", 1), Issuer::new("k1", 2));
    let proxy = start(&[&issuer], &stateless(&[&origin], "", ""));
    let before = origin.seen().len();
    for (token, said) in [
        (stranger.token("alice", &json!({})), "The token is not valid"),
        (issuer.token("alice", &json!({ "exp": now() - 60 })), "The token has expired"),
        (issuer.token("alice", &json!({ "aud": "blog" })), "The token is not valid"),
        (issuer.token("alice", &json!({ "exp": "4102444800" })), "The token is not valid"),
        (issuer.token("alice", &json!({ "iss": "https://evil.example" })), "The token is not valid"),
        ("garbage".to_owned(), "The token is not valid"),
        ("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.".to_owned(), "The token is not valid"),
    ] {
        let reply = with(&proxy, &token).get("/");
        assert_eq!(reply.status, 401, "{token}");
        let challenge = reply.header("www-authenticate");
        assert!(challenge.starts_with("Bearer ") && challenge.contains("error=\"invalid_token\""), "{challenge}");
        assert!(challenge.contains(said), "{challenge}");
        let problem: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(problem["status"], 401);
        assert!(!reply.text().contains("signature") && !reply.text().contains("audience"), "{}", reply.text());
    }
    let token = issuer.token("alice", &json!({}));
    let twice = with(&proxy, &token).header("authorization", "Bearer x");
    assert_eq!(twice.clone().get("/").status, 400);
    assert_eq!(origin.seen().len(), before, "no server has seen any of it");
    let metrics = proxy.admin("/metrics").unwrap();
    for reason in ["signature", "expired", "audience", "claims", "issuer", "malformed", "two_carriers"] {
        assert!(metrics.contains(&format!("reason=\"{reason}\"")), "{reason}\n{metrics}");
    }
}

#[test]
fn a_route_that_needs_a_token_says_so_and_one_that_needs_more_says_that() {
    let (origin, issuer) = (Origin::start("a"), Issuer::new("k1", 1));
    let route = "session = \"required\"\nrequire = { acr = [\"mfa\"], max_age = \"10m\" }\n";
    let proxy = start(&[&issuer], &stateless(&[&origin], "", route));
    let reply = proxy.tls_client().get("/");
    assert_eq!((reply.status, reply.header("www-authenticate")), (401, "Bearer realm=\"session\"".to_owned()));
    for claims in [
        json!({}),
        json!({ "acr": "pwd", "auth_time": now() }),
        json!({ "acr": "mfa" }),
        json!({ "acr": "mfa", "auth_time": now() - 700 }),
    ] {
        let reply = with(&proxy, &issuer.token("alice", &claims)).get("/");
        let challenge = reply.header("www-authenticate");
        assert_eq!(reply.status, 401, "{claims}");
        for part in ["error=\"insufficient_user_authentication\"", "acr_values=\"mfa\"", "max_age=\"600\""] {
            assert!(challenge.contains(part), "{claims}: {challenge}");
        }
    }
    let token = issuer.token("alice", &json!({ "acr": "mfa", "auth_time": now() - 60 }));
    assert_eq!(with(&proxy, &token).get("/").status, 200);
}

#[test]
fn a_cookie_can_carry_it_and_then_other_sites_cannot_use_it() {
    let (origin, issuer) = (Origin::start("a"), Issuer::new("k1", 1));
    let proxy = start(&[&issuer], &stateless(&[&origin], "carrier = \"cookie:token\"", ""));
    let mut user = proxy.tls_client();
    user.cookies.insert("token".into(), issuer.token("alice", &json!({})));
    user.cookies.insert("theme".into(), "dark".into());
    let claims = told(&mut user);
    assert_eq!(claims["sub"], "alice");
    assert_eq!(origin.last().header("cookie"), "theme=dark", "the token itself stays here");
    let csrf = claims["csrf"].as_str().expect("a token for forms").to_owned();
    let mut cross = user.clone().header("sec-fetch-site", "cross-site");
    assert_eq!(cross.post("/say", "").status, 403);
    assert_eq!(user.clone().silent().post("/say", "").status, 403, "an old browser has to show the form's token");
    assert_eq!(user.clone().silent().header("x-csrf-token", &csrf).post("/say", "").status, 200);
    let mut expired = proxy.tls_client();
    expired.cookies.insert("token".into(), issuer.token("alice", &json!({ "exp": now() - 60 })));
    let reply = expired.get("/");
    assert_eq!(reply.status, 401);
    assert!(
        reply.set_cookies().iter().any(|line| line.starts_with("token=;") && line.contains("Max-Age=0")),
        "{reply:?}"
    );
    assert_eq!(expired.cookies["token"], "", "so that its user is not locked out for good");
}

#[test]
fn a_page_with_a_token_that_has_expired_leads_to_the_login_and_takes_it_back() {
    let (origin, issuer) = (Origin::start("a"), Issuer::new("k1", 1));
    let configuration =
        stateless(&[&origin], "carrier = \"cookie:__Host-token\"", "session = \"required\"\nlogin_url = \"/login\"");
    let login = "[[route]]\npath = \"/login\"\npool = \"shop\"\n";
    let proxy = start(&[&issuer], &format!("{login}{configuration}"));
    let mut user = proxy.tls_client().header("accept", "text/html").header("sec-fetch-mode", "navigate");
    user.cookies.insert("__Host-token".into(), issuer.token("alice", &json!({ "exp": now() - 60 })));
    let reply = user.get("/orders?page=2");
    assert_eq!((reply.status, reply.header("location")), (303, "/login?return=%2Forders%3Fpage%3D2".to_owned()));
    let back =
        reply.set_cookies().into_iter().find(|line| line.starts_with("__Host-token=;")).expect("it is taken back");
    assert!(back.contains("Secure") && back.contains("Max-Age=0") && back.contains("Path=/"), "{back}");
    user.cookies.clear();
    let reply = user.get("/login?return=%2Forders%3Fpage%3D2");
    assert_eq!(reply.status, 200);
    let told = crate::support::saying::claims(&origin.last().headers);
    assert_eq!(told["return_to"], "/orders?page=2", "where to go on is told signed");
    user.get("/login?return=%2F%2Fevil.example");
    let told = crate::support::saying::claims(&origin.last().headers);
    assert_eq!(told["return_to"], Value::Null, "if it is a path of this host");
}

#[test]
fn what_is_open_of_a_token_ends_when_it_is_revoked() {
    let (origin, issuer) = (Origin::start("a"), Issuer::new("k1", 1));
    let proxy = start(&[&issuer], &stateless(&[&origin], "", ""));
    let client = with(&proxy, &issuer.token("alice", &json!({ "jti": "t-1" })));
    let watching = std::thread::spawn(move || {
        crate::support::client::block_on(async move {
            let mut connection = client.connect().await?;
            let request = client.request(http::Method::GET, "/events").body(Default::default()).unwrap();
            connection.send(request).await
        })
    });
    eventually("it is open", || proxy.metric("steadfast_long_lived", &[]) == 1.0);
    ctl(&proxy, &["revoke", "--pool", "shop", "--jti", "t-1"]);
    watching.join().unwrap().expect("the event stream ends well");
}

#[test]
fn keys_change_without_a_restart() {
    let origin = Origin::start("a");
    let (old, new) = (Issuer::new("k1", 1), Issuer::new("k2", 2));
    let watching = "[process]\nworkers = 2\nmax_connections = 1000\nwatch = true\n";
    let proxy = start(&[&old], &format!("{watching}{}", stateless(&[&origin], "", "")));
    let (first, second) = (old.token("alice", &json!({})), new.token("alice", &json!({})));
    assert_eq!(with(&proxy, &first).get("/").status, 200);
    assert_ne!(with(&proxy, &second).get("/").status, 200, "a key that nobody has heard of");
    std::fs::write(proxy.path().join("jwks.json"), key_set(&[&old, &new])).unwrap();
    eventually("the new key counts", || with(&proxy, &second).get("/").status == 200);
    std::fs::write(proxy.path().join("jwks.json"), key_set(&[&new])).unwrap();
    eventually("the old key no longer does", || with(&proxy, &first).get("/").status != 200);
    assert_eq!(with(&proxy, &second).get("/").status, 200);
}

#[test]
fn keys_come_over_https_from_who_shows_the_right_certificate_and_no_other() {
    let origin = Origin::start("a");
    let (issuer, stranger) = (Issuer::new("k1", 1), Issuer::new("k2", 2));
    let authority = Authority::new();
    let keys = KeyServer::start(&authority.issue(&["localhost"]), key_set(&[&issuer]));
    let configuration = stateless(&[&origin], "", "").replace(
        "jwks = \"file:jwks.json\"",
        &format!("jwks = \"https://localhost:{}/keys\"\nca = \"ca.pem\"", keys.port),
    );
    let with_ca = |pem: String| {
        let directory = directory(&[]);
        std::fs::write(directory.path().join("ca.pem"), pem).unwrap();
        Proxy::start_in(directory, &configuration)
    };
    let proxy = with_ca(authority.pem());
    let token = issuer.token("alice", &json!({}));
    eventually("the keys have come", || with(&proxy, &token).get("/").status == 200);
    let unknown = stranger.token("bob", &json!({}));
    let reply = with(&proxy, &unknown).get("/");
    assert_eq!(reply.status, 401, "they were asked for a moment ago, and are not asked for again at once");
    keys.answers("503 Service Unavailable", String::new());
    assert_eq!(with(&proxy, &token).get("/").status, 200, "the last good ones count");
    let asked = keys.asked();
    for _ in 0..20 {
        with(&proxy, &unknown).get("/");
    }
    assert_eq!(keys.asked(), asked, "whoever makes up keys makes nobody fetch");

    let deceived = with_ca(Authority::new().pem());
    eventually("it has tried", || deceived.log().contains("cannot be fetched"));
    let reply = with(&deceived, &token).get("/");
    assert_eq!((reply.status, reply.header("retry-after")), (503, "1".to_owned()), "nobody can tell yet");
    assert_eq!(deceived.tls_client().get("/").status, 200);
}

fn ctl(proxy: &Proxy, arguments: &[&str]) -> String {
    let address = proxy.admin_address().to_string();
    let output = std::process::Command::new(crate::support::proxy::BINARY)
        .args(["ctl", "--address", &address])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_token_counts_no_more_once_it_is_revoked_by_id_subject_or_key() {
    let origin = Origin::start("a");
    let (first, second) = (Issuer::new("k1", 1), Issuer::new("k2", 2));
    let proxy = start(&[&first, &second], &stateless(&[&origin], "", ""));
    let status = |token: &str| with(&proxy, token).get("/").status;
    let stolen = first.token("alice", &json!({ "jti": "t-1" }));
    let other = first.token("alice", &json!({ "jti": "t-2" }));
    let bob = second.token("bob", &json!({}));
    for token in [&stolen, &other, &bob] {
        assert_eq!(status(token), 200);
    }
    ctl(&proxy, &["revoke", "--pool", "shop", "--jti", "t-1"]);
    assert_eq!((status(&stolen), status(&other)), (401, 200));
    ctl(&proxy, &["revoke", "--pool", "shop", "--issuer", ISSUER, "--subject", "alice"]);
    assert_eq!((status(&other), status(&bob)), (401, 200));
    ctl(&proxy, &["revoke", "--pool", "shop", "--kid", "k2"]);
    assert_eq!(status(&bob), 401);
    let list = ctl(&proxy, &["revoke", "--list"]);
    assert!(list.contains("jti t-1") && list.contains("subject alice") && list.contains("kid k2"), "{list}");
    ctl(&proxy, &["revoke", "--pool", "shop", "--kid", "k2", "--undo"]);
    assert_eq!(status(&bob), 200);
    let later = first.token("alice", &json!({ "iat": now() + 5 }));
    assert_eq!(status(&later), 200, "who logs in again is not shut out");
}

#[test]
fn revocations_are_shared_over_a_store_and_survive_a_restart() {
    let (origin, issuer) = (Origin::start("a"), Issuer::new("k1", 1));
    let redis = Redis::start();
    let store = format!("[[store]]\nname = \"main\"\nkind = \"redis\"\nurl = \"{}\"\n", redis.url());
    let configuration =
        stateless(&[&origin], "store = \"main\"", "").replace("[[listener]]", &format!("{store}[[listener]]"));
    let [one, other] = [(); 2].map(|()| start(&[&issuer], &configuration));
    let token = issuer.token("alice", &json!({ "jti": "t-1" }));
    for proxy in [&one, &other] {
        eventually("what is revoked has been read", || with(proxy, &token).get("/").status == 200);
    }
    ctl(&one, &["revoke", "--pool", "shop", "--jti", "t-1"]);
    assert_eq!(with(&one, &token).get("/").status, 401);
    eventually("the other proxy has read it", || with(&other, &token).get("/").status == 401);
    let directory = one.kill();
    let again = Proxy::start_in(directory, &configuration);
    eventually("a new one has too", || with(&again, &token).get("/").status == 401);
    assert!(!String::from_utf8_lossy(&redis.dump()).contains("t-1"), "what is revoked is sealed");
    redis.cli(&["flushall"]);
    eventually("what the store has lost is written to it again", || redis.cli(&["dbsize"]).trim() == "1");
    for proxy in [&other, &again] {
        assert_eq!(with(proxy, &token).get("/").status, 401, "and counts all the while");
    }
    ctl(&again, &["revoke", "--pool", "shop", "--jti", "t-1", "--undo"]);
    eventually("the other proxy has read that it was taken back", || with(&other, &token).get("/").status == 200);
}

#[test]
fn a_store_that_was_never_read_lets_nobody_in() {
    let (origin, issuer) = (Origin::start("a"), Issuer::new("k1", 1));
    let mut redis = Redis::start();
    redis.stop();
    let store = format!("[[store]]\nname = \"main\"\nkind = \"redis\"\nurl = \"{}\"\n", redis.url());
    let configuration =
        stateless(&[&origin], "store = \"main\"", "").replace("[[listener]]", &format!("{store}[[listener]]"));
    let proxy = start(&[&issuer], &configuration);
    let token = issuer.token("alice", &json!({}));
    let reply = with(&proxy, &token).get("/");
    assert_eq!((reply.status, reply.header("retry-after")), (503, "1".to_owned()));
    assert_eq!(proxy.tls_client().get("/").status, 200, "who has no token needs no store");
    redis.start_again();
    eventually("tokens count once it is there", || with(&proxy, &token).get("/").status == 200);
}
