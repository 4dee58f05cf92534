//! Routes, paths, and the replies that the proxy makes itself.

use crate::support::client::raw;
use crate::support::{Client, Origin, Proxy, plain, server};

const LISTENER: &str = "[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n";

fn pool(name: &str, origin: &Origin) -> String {
    format!("[[pool]]\nname = \"{name}\"\nmode = \"none\"\n{}", server(&origin.name, &origin.address()))
}

#[test]
fn hosts_and_paths_lead_to_their_pools() {
    let (shop, blog) = (Origin::start("shop"), Origin::start("blog"));
    let proxy = Proxy::start(&format!(
        "{LISTENER}[[route]]\nhost = \"shop.test\"\npool = \"shop\"\n[[route]]\nhost = \"*.test\"\npool = \"blog\"\n\
         [[route]]\nhost = \"shop.test\"\npath = \"/api\"\npool = \"blog\"\nstrip_prefix = true\n{}{}",
        pool("shop", &shop),
        pool("blog", &blog)
    ));
    let get = |host: &str, path: &str| proxy.client().host(host).get(path);
    assert_eq!(get("shop.test", "/").origin(), "shop");
    assert_eq!(get("SHOP.test:8443", "/").origin(), "shop");
    assert_eq!(get("x.test", "/").origin(), "blog");
    assert_eq!(get("shop.test", "/apis").origin(), "shop");
    assert_eq!(get("shop.test", "/api/v1?q=1").origin(), "blog");
    assert_eq!(blog.last().target, "/v1?q=1");
    assert_eq!(get("shop.test", "/api").origin(), "blog");
    assert_eq!(blog.last().target, "/");
    assert_eq!(get("elsewhere.org", "/").status, 404);
    assert_eq!(proxy.metric("steadfast_requests_total", &["pool=\"-\"", "code=\"4xx\""]), 1.0);
}

#[test]
fn what_was_matched_on_is_what_is_forwarded() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    for (asked, forwarded) in
        [("/a//b/./c/%2e%2e/d?x=%2F", "/a/b/d?x=%2F"), ("/%7euser/%c3%a9", "/~user/%C3%A9"), ("/a?b", "/a?b")]
    {
        assert_eq!(proxy.client().get(asked).status, 200, "{asked}");
        assert_eq!(origin.last().target, forwarded);
    }
    let seen = origin.seen().len();
    for ambiguous in ["/a%2Fb", "/a%5cb", "/%00", "/..", "/a/%2e%2e/%2e%2e/etc", "/%zz"] {
        assert_eq!(proxy.client().get(ambiguous).status, 400, "{ambiguous}");
    }
    assert_eq!(origin.seen().len(), seen, "none of them was passed on");
}

#[test]
fn fixed_replies_redirects_and_header_changes() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&format!(
        "{LISTENER}[[listener]]\nname = \"redirects\"\naddress = \"127.0.0.1:0\"\nredirect = \"https\"\nredirect_port = 8443\n\
         [[route]]\npath = \"/closed\"\nrespond = {{ status = 503, body = \"back soon\" }}\n\
         [[route]]\npath = \"/old\"\nredirect_to = \"https://new.example.com\"\n\
         [[route]]\npool = \"shop\"\nrequest_headers = {{ set = {{ X-Tenant = \"a\" }}, remove = [\"X-Debug\"] }}\n\
         response_headers = {{ set = {{ X-Frame-Options = \"DENY\" }}, remove = [\"X-Origin\"] }}\n{}",
        pool("shop", &origin)
    ));
    let closed = proxy.client().get("/closed/x");
    assert_eq!((closed.status, closed.text().as_str()), (503, "back soon"));
    let old = proxy.client().get("/old/page?q=1");
    assert_eq!((old.status, old.header("location").as_str()), (308, "https://new.example.com/old/page?q=1"));
    let changed = proxy.client().header("X-Debug", "1").get("/");
    assert_eq!((changed.origin().as_str(), changed.header("x-frame-options").as_str()), ("", "DENY"));
    assert_eq!((origin.last().header("x-tenant").as_str(), origin.last().header("x-debug").as_str()), ("a", ""));
    let mut plain = Client::plain(proxy.address("redirects")).host("a.test:80");
    let redirected = plain.get("/x?y=1");
    assert_eq!((redirected.status, redirected.header("location").as_str()), (308, "https://a.test:8443/x?y=1"));
}

#[test]
fn errors_are_problem_details_for_programs_and_pages_for_people() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("pages")).unwrap();
    std::fs::write(directory.path().join("pages/502.html"), "<p>our own page</p>").unwrap();
    let configuration = format!(
        "[process]\nworkers = 1\nmax_connections = 100\nerror_pages = \"pages/\"\n{LISTENER}[[route]]\npool = \"shop\"\n\
         [[pool]]\nname = \"shop\"\nmode = \"none\"\n{}[pool.health]\ntype = \"off\"\n",
        server("nobody", "127.0.0.1:1")
    );
    let proxy = Proxy::start_in(directory, &configuration);
    let program = proxy.client().get("/");
    assert_eq!((program.status, program.header("content-type").as_str()), (502, "application/problem+json"));
    let problem: serde_json::Value = serde_json::from_slice(&program.body).unwrap();
    assert_eq!(problem["status"], 502);
    assert!(!program.text().contains("nobody") && !program.text().contains("127.0.0.1"), "no server is named");
    let browser = proxy.client().header("Accept", "text/html,*/*").get("/");
    assert_eq!(browser.text(), "<p>our own page</p>");
    let missing = proxy.client().header("Accept", "text/html").host("").try_get("/%zz");
    assert!(missing.is_ok_and(|reply| reply.text().contains("<h1>400")));
}

#[test]
fn options_of_everything_is_passed_on_as_it_is() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], ""));
    let answer = raw(proxy.address("main"), b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let tunnel = raw(proxy.address("main"), b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nConnection: close\r\n\r\n");
    assert!(tunnel.starts_with("HTTP/1.1 501"), "{tunnel}");
}
