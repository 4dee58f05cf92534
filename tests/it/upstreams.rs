//! Ways to servers: Unix sockets, TLS, HTTP/2.

use crate::support::certs::Authority;
use crate::support::origin::Speaks;
use crate::support::{Origin, Proxy, eventually, plain, server};

const NO_PROBES: &str = "[pool.health]\ntype = \"off\"\n";

#[test]
fn a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let origin = Origin::start_unix("a", directory.path().join("app.sock"));
    let proxy = Proxy::start(&plain(&[&origin], "[pool.health]\npath = \"/healthz\"\ninterval = \"50ms\"\nfall = 1\n"));
    assert_eq!(proxy.client().post("/echo", "hello").text(), "hello");
    assert_eq!(proxy.client().get("/").origin(), "a");
}

#[test]
fn a_response_of_many_header_fields_passes_and_one_of_too_many_is_an_error_that_says_so() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], NO_PROBES));
    let passed = proxy.client().get("/fields/90");
    assert_eq!((passed.status, passed.headers.get_all("x-field").iter().count()), (200, 90));
    assert_eq!(proxy.client().get("/fields/120").status, 502);
    assert_eq!(proxy.client().get("/fields/90").status, 200, "the server is as good as before");
    let refused = || proxy.access_log().into_iter().find(|line| line["status"] == 502);
    eventually("it is logged", || refused().is_some());
    let line = refused().unwrap();
    assert!(line["detail"].as_str().unwrap().contains("too large"), "{line}");
}

#[test]
fn http2_with_prior_knowledge_uses_one_connection() {
    let origin = Origin::start_on("a", "127.0.0.1:0", Speaks::Http2);
    let proxy = Proxy::start(&format!(
        "[process]\nworkers = 1\nmax_connections = 100\n{}",
        plain(&[&origin], "[pool.http]\nversion = \"2\"\n[pool.health]\npath = \"/healthz\"\ninterval = \"60s\"\n")
    ));
    assert_eq!(proxy.client().post("/echo", "hello").text(), "hello");
    let before = origin.connections();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(proxy.client().get("/sleep/100").status, 200));
        }
    });
    assert_eq!(origin.connections(), before);
    assert_eq!(origin.last().header("host"), "", "HTTP/2 has :authority instead");
}

#[test]
fn tls_to_servers_is_verified_over_both_versions() {
    let authority = Authority::new();
    let leaf = authority.issue(&["localhost"]);
    let origin = Origin::start_on("a", "127.0.0.1:0", Speaks::Tls(leaf.server_config()));
    let status = |ca: &Authority, more: &str| {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), ca.pem()).unwrap();
        let servers = server("a", &origin.address().replace("127.0.0.1", "localhost"));
        let proxy = Proxy::start_in(directory, &plain(&[], &format!("{servers}{NO_PROBES}[pool.tls]\n{more}")));
        proxy.client().get("/").status
    };
    assert_eq!(status(&authority, "ca = \"ca.pem\"\n"), 200);
    assert_eq!(status(&authority, "ca = \"ca.pem\"\n[pool.http]\nversion = \"2\"\n"), 200);
    assert_eq!(status(&authority, "ca = \"ca.pem\"\nserver_name = \"elsewhere\"\n"), 502);
    assert_eq!(status(&Authority::new(), "ca = \"ca.pem\"\n"), 502);
    assert_eq!(status(&authority, ""), 502, "the system's roots do not know it");
    assert_eq!(status(&authority, "verify = false\n"), 200);
}

#[test]
fn the_pools_own_host_goes_to_its_servers() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&plain(&[&origin], "").replace("debug_headers = true", "host = \"shop.internal\""));
    proxy.client().get("/");
    assert_eq!(origin.last().header("host"), "shop.internal");
}
