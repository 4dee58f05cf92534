//! What the edge enforces, whatever the mode: requests of other sites, cookies that servers set, transport, step-up.

use http::Method;
use serde_json::{Value, json};

use crate::support::{Client, Origin, Proxy, certs, plain, servers, tls};

/// A shared pool over TLS with its sessions in memory; `more` is further tables, `route` goes below the route.
fn shared(origins: &[&Origin], more: &str, route: &str) -> String {
    format!(
        "{more}[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n[listener.tls]\nself_signed = [\"localhost\"]\n\
         [[route]]\npool = \"shop\"\n{route}\n[[store]]\nname = \"main\"\n\
         [[pool]]\nname = \"shop\"\nmode = \"shared\"\n{}[pool.shared]\nstore = \"main\"\n",
        servers(origins)
    )
}

fn told(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

#[test]
fn a_request_of_another_site_is_refused_before_any_server_sees_it_also_where_sessions_are_sticky() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let host = proxy.address("main").to_string();
    let mut client = proxy.client();
    client.get("/");
    let before = origin.seen().len();
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "no-such-site"),
        ("origin", "https://evil.example"),
        ("origin", "null"),
    ] {
        let reply = client.clone().header(name, value).post("/transfer", "to=mallory");
        assert_eq!(reply.status, 403, "{name}: {value}");
        let problem = told(&reply.body);
        assert_eq!(problem["type"], "urn:steadfast:error:csrf", "{problem}");
        assert!(problem["reason"].is_string(), "{problem}");
    }
    assert_eq!(origin.seen().len(), before);
    for (name, value) in
        [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "none"), ("origin", &format!("http://{host}"))]
    {
        assert_eq!(client.clone().header(name, value).post("/transfer", "").status, 200, "{name}: {value}");
    }
    assert_eq!(client.clone().silent().post("/transfer", "").status, 200, "a program is no browser");
    assert_eq!(client.clone().header("sec-fetch-site", "cross-site").get("/").status, 200, "links are fine");
    let upgrade = |site: &str| {
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: {site}\r\nConnection: close\r\n\r\n"
        );
        crate::support::client::raw(proxy.address("main"), request.as_bytes())
    };
    assert!(
        upgrade("https://evil.example").starts_with("HTTP/1.1 403 "),
        "a WebSocket is opened by a GET, and no safe one"
    );
    let refused = proxy.metric("steadfast_protect_total", &["rule=\"csrf\"", "decision=\"rejected\""]);
    assert_eq!(refused, 6.0);
}

#[test]
fn rules_are_relaxed_by_route_by_report_and_for_trusted_origins() {
    let origin = Origin::start("a");
    let more = "[protect]\ntrusted_origins = [\"https://app.example.com\"]\n";
    let routes = "[[route]]\npath = \"/hook\"\npool = \"shop\"\ncsrf = \"off\"\n\
                  [[route]]\npath = \"/watched\"\npool = \"shop\"\ncsrf = \"report\"\n\
                  [[route]]\npath = \"/read\"\npool = \"shop\"\nprotect_safe = true\n";
    let proxy = Proxy::start(&format!("{more}{routes}{}", plain(&[&origin], "")));
    let cross = proxy.client().header("sec-fetch-site", "cross-site");
    assert_eq!(cross.clone().post("/", "").status, 403);
    assert_eq!(cross.clone().post("/hook/paid", "").status, 200);
    assert_eq!(
        cross.clone().post("/hook/../transfer", "").status,
        403,
        "the path that counts is the one that is forwarded"
    );
    assert_eq!(cross.clone().post("/watched", "").status, 200);
    assert_eq!(cross.clone().get("/read").status, 403);
    assert_eq!(cross.clone().header("origin", "https://app.example.com").post("/", "").status, 200);
    let reported = proxy.metric("steadfast_protect_total", &["rule=\"csrf\"", "decision=\"reported\""]);
    assert_eq!(reported, 1.0);
}

#[test]
fn a_client_that_says_nothing_needs_the_token_of_its_session_in_a_header_or_in_its_form() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&shared(&[&origin], "", ""));
    let mut user = proxy.tls_client();
    user.post("/say", "op login;sub=\"alice\"");
    let csrf = told(&user.post("/say", "").body)["csrf"].as_str().unwrap().to_owned();
    let silent = user.clone().silent();
    let reply = silent.clone().post("/say", "");
    assert_eq!((reply.status, &told(&reply.body)["reason"]), (403, &json!("token_missing")));
    assert_eq!(silent.clone().header("x-csrf-token", &csrf).post("/say", "").status, 200);
    let wrong = format!("{}A", &csrf[..csrf.len() - 1]);
    let wrong = if wrong == csrf { format!("{}B", &csrf[..csrf.len() - 1]) } else { wrong };
    assert_eq!(silent.clone().header("x-csrf-token", &wrong).post("/say", "").status, 403);
    let mut form = silent.clone().header("content-type", "application/x-www-form-urlencoded");
    let body = format!("amount=1&csrf_token={csrf}&to=bob");
    assert_eq!(form.post("/", body.clone()).status, 200);
    assert_eq!(origin.last().body, body, "the server has the form as it was sent");
    assert_eq!(form.post("/", "amount=1&to=bob").status, 403);
    assert_eq!(form.post("/", format!("csrf_token=&csrf_token={csrf}")).status, 403, "two of them are none");
    let large = format!("csrf_token={csrf}&x={}", "x".repeat(70_000));
    let before = origin.seen().len();
    // It is refused before all of it has come, which a client that is still sending may not get to read.
    let refused = form.try_send(Method::POST, "/", large.into());
    assert!(refused.is_err() || refused.is_ok_and(|reply| reply.status == 403), "a larger form needs the header");
    assert_eq!(origin.seen().len(), before);
    let mut stranger = proxy.tls_client().silent();
    assert_eq!(
        stranger.post("/say", "op login;sub=\"mallory\"").status,
        200,
        "where there is no session there is nothing to abuse"
    );
    let mut other = stranger.clone().header("x-csrf-token", &csrf);
    assert_eq!(other.post("/say", "").status, 403, "a token is of one session");
    // It changes at login: what a page showed before is no good afterwards.
    user.post("/say", "op login;sub=\"alice\"");
    assert_eq!(user.clone().silent().header("x-csrf-token", &csrf).post("/say", "").status, 403);
}

#[test]
fn cookies_that_servers_set_get_the_flags_that_they_lack() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&tls(&[&origin], ""));
    let mut client = proxy.tls_client();
    let set = |client: &mut Client, line: &str| {
        let reply = client.post("/say", format!("header set-cookie: {line}"));
        let own = |line: &String| !line.starts_with("__Host-sf-");
        reply.set_cookies().into_iter().find(own)
    };
    for (line, out) in [
        ("id=1; Path=/", Some("id=1; Path=/; Secure; HttpOnly; SameSite=Lax")),
        ("id=1; path=/; secure; httponly; samesite=strict", Some("id=1; path=/; secure; httponly; samesite=strict")),
        ("XSRF-TOKEN=1", Some("XSRF-TOKEN=1; Secure; SameSite=Lax")),
        ("id=1; Domain=evil.example", None),
        ("__Host-sf-admin=1", None),
        ("__host-SF-admin=1", None),
    ] {
        assert_eq!(set(&mut client, line).as_deref(), out, "{line}");
    }
    let dropped = proxy.metric("steadfast_protect_total", &["rule=\"cookie\"", "decision=\"dropped\""]);
    assert_eq!(dropped, 3.0);
    let strict = Proxy::start(&format!("[protect]\ncookies = \"reject\"\n{}", tls(&[&origin], "")));
    assert_eq!(set(&mut strict.tls_client(), "id=1"), None, "what would have to be fixed is taken out");
    let off = Proxy::start(&format!("[protect]\ncookies = \"off\"\n{}", tls(&[&origin], "")));
    assert_eq!(set(&mut off.tls_client(), "id=1").as_deref(), Some("id=1"));
    assert_eq!(set(&mut off.tls_client(), "__Host-sf-admin=1"), None, "our own names never");
}

#[test]
fn browsers_are_told_to_stay_with_tls_where_that_is_right() {
    let origin = Origin::start("a");
    let directory = tempfile::tempdir().unwrap();
    certs::Authority::new().issue(&["shop.example.com", "localhost"]).write(directory.path(), "site");
    let configuration = tls(&[&origin], "")
        .replace("self_signed = [\"localhost\"]", "certificates = [{ cert = \"site.pem\", key = \"site.key\" }]");
    let proxy = Proxy::start_in(directory, &configuration);
    let hsts = |client: Client| client.clone().get("/").header("strict-transport-security");
    assert_eq!(hsts(proxy.tls_client().server_name("shop.example.com")), "max-age=31536000");
    assert_eq!(hsts(proxy.tls_client().server_name("localhost")), "", "never for localhost");
    let missing = proxy.tls_client().server_name("shop.example.com").try_send(Method::CONNECT, "x:1", "".into());
    if let Ok(reply) = missing {
        assert_eq!(reply.header("strict-transport-security"), "max-age=31536000", "on refusals too");
    }
    let development = Proxy::start(&tls(&[&origin], "").replace("\"localhost\"", "\"shop.example.com\""));
    assert_eq!(
        hsts(development.tls_client().server_name("shop.example.com")),
        "",
        "nor where the certificate is for development"
    );
    let clear = Proxy::start(&plain(&[&origin], ""));
    assert_eq!(hsts(clear.client()), "", "nor over plain http");
}

#[test]
fn a_sensitive_route_wants_to_see_again_who_asks() {
    let origin = Origin::start("a");
    let payout = "[[route]]\npath = \"/payout\"\npool = \"shop\"\nrequire = { acr = [\"mfa\"], max_age = \"10m\" }\n\
                  login_url = \"/step-up\"\n";
    let proxy = Proxy::start(&shared(&[&origin], payout, ""));
    let mut user = proxy.tls_client();
    user.post("/say", "op login;sub=\"alice\";acr=\"pwd\"");
    let reply = user.get("/payout");
    assert_eq!(reply.status, 401);
    let challenge = reply.header("www-authenticate");
    assert!(
        challenge.contains("insufficient_user_authentication") && challenge.contains("acr_values=\"mfa\""),
        "{challenge}"
    );
    let mut page = user.clone().header("sec-fetch-mode", "navigate").header("accept", "text/html");
    let reply = page.get("/payout?amount=1");
    assert_eq!((reply.status, reply.header("location")), (303, "/step-up?return=%2Fpayout%3Famount%3D1".to_owned()));
    user.post("/say", "op step-up;acr=\"mfa\"");
    assert_eq!(user.get("/payout").status, 200);
    let stepped = proxy.metric("steadfast_protect_total", &["rule=\"step_up\"", "reason=\"level\""]);
    assert_eq!(stepped, 2.0);
}

#[test]
fn a_form_that_ends_with_trailers_stops_nobody() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&format!("[process]\nworkers = 1\nwatch = false\n{}", shared(&[&origin], "", "")));
    let mut user = proxy.tls_client();
    user.post("/say", "patch {\"a\":1}");
    let slow = user.clone().silent().http2().header("content-type", "application/x-www-form-urlencoded");
    let request = slow.request(Method::POST, "/").header("content-length", "1").body(()).unwrap();
    let status = crate::support::client::block_on(async move {
        let mut sender = slow.connect_h2().await?;
        let (response, mut body) = sender.send_request(request, false).map_err(|error| error.to_string())?;
        body.send_data("a".into(), false).map_err(|error| error.to_string())?;
        let trailers = [(http::header::EXPIRES, http::HeaderValue::from_static("0"))].into_iter().collect();
        body.send_trailers(trailers).map_err(|error| error.to_string())?;
        Ok(response.await.map_err(|error| error.to_string())?.status().as_u16())
    });
    assert_eq!(status, Ok(403), "the form has no token");
    assert_eq!(user.get("/").status, 200, "and the only worker goes on");
}

#[test]
fn a_framework_of_another_pool_may_call_its_cookie_session() {
    let origin = Origin::start("a");
    let other = "[[route]]\nhost = \"flask.example.com\"\npool = \"flask\"\n";
    let pool = format!("[[pool]]\nname = \"flask\"\nmode = \"none\"\n{}", servers(&[&origin]));
    let proxy = Proxy::start(&format!("{}{pool}", shared(&[&origin], other, "")));
    let mut user = proxy.tls_client().host("flask.example.com");
    let reply = user.post("/say", "header set-cookie: session=framework");
    assert_eq!(reply.set_cookies(), ["session=framework; Secure; HttpOnly; SameSite=Lax"]);
    user.get("/");
    assert_eq!(origin.last().header("cookie"), "session=framework");
}
