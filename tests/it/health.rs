//! Probes, ejection, and what happens when nobody is left.

use std::collections::BTreeSet;

use crate::support::{Origin, Proxy, eventually, plain, server};

const PROBES: &str = "[pool.health]\npath = \"/healthz\"\ninterval = \"50ms\"\nrise = 2\nfall = 2\n";

#[test]
fn probes_take_a_server_out_and_bring_it_back() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a, &b], PROBES));
    let spread = || (0..20).map(|_| proxy.client().get("/").origin()).collect::<BTreeSet<_>>();
    assert_eq!(spread().len(), 2);
    a.be_ill(true);
    eventually("a is down", || proxy.metric("steadfast_server_state", &["server=\"a\"", "state=\"down\""]) == 1.0);
    assert_eq!(spread(), BTreeSet::from(["b".to_owned()]));
    a.be_ill(false);
    eventually("a is up", || proxy.metric("steadfast_server_state", &["server=\"a\"", "state=\"up\""]) == 1.0);
    assert_eq!(spread().len(), 2);
}

#[test]
fn with_every_server_down_the_answer_is_immediate_and_recovery_needs_no_restart() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a, &b], PROBES));
    let mut client = proxy.client();
    let pinned = client.get("/").origin();
    a.be_ill(true);
    b.be_ill(true);
    eventually("nobody is left", || proxy.client().get("/").status == 503);
    let refused = client.get("/");
    assert_eq!((refused.status, refused.header("retry-after").as_str()), (503, "1"));
    assert!(refused.set_cookies().is_empty());
    a.be_ill(false);
    b.be_ill(false);
    eventually("both are back", || proxy.metric("steadfast_server_state", &["state=\"up\""]) == 2.0);
    assert_eq!(client.get("/").origin(), pinned, "the pin has outlived it");
}

#[test]
fn consecutive_failures_eject_but_a_hard_pinned_session_still_goes_there() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a, &b], "[pool.outlier]\nconsecutive_failures = 3\nejection = \"60s\"\n"));
    let mut client = proxy.client();
    let first = client.get("/").origin();
    for _ in 0..3 {
        assert_eq!(client.get("/status/503").status, 503);
    }
    let ejected = format!("server=\"{first}\"");
    assert_eq!(proxy.metric("steadfast_server_state", &[&ejected, "state=\"ejected\""]), 1.0, "{}", proxy.log());
    assert!((0..20).all(|_| proxy.client().get("/").origin() != first), "no newcomers");
    assert_eq!(client.get("/").verdict(), format!("kept; server={first}"));
    // Half of two servers may be out: the other stays, whatever it answers.
    let mut other = proxy.client();
    for _ in 0..6 {
        other.get("/status/503");
    }
    assert_eq!(proxy.metric("steadfast_server_state", &["state=\"ejected\""]), 1.0);
}

#[test]
fn a_500_is_the_applications_word() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let proxy = Proxy::start(&plain(&[&a, &b], "[pool.outlier]\nconsecutive_failures = 2\n"));
    let mut client = proxy.client();
    (0..5).for_each(|_| assert_eq!(client.get("/status/500").status, 500));
    assert_eq!(proxy.metric("steadfast_server_state", &["state=\"ejected\""]), 0.0);
}

#[test]
fn a_backup_serves_only_while_it_is_needed() {
    let (a, spare) = (Origin::start("a"), Origin::start("spare"));
    let servers = format!("{}{}backup = true\n{PROBES}", server("a", &a.address()), server("spare", &spare.address()));
    let proxy = Proxy::start(&plain(&[], &servers));
    assert!((0..10).all(|_| proxy.client().get("/").origin() == "a"));
    a.be_ill(true);
    eventually("the backup serves", || proxy.client().get("/").origin() == "spare");
}

#[test]
fn tcp_probes_see_a_closed_port() {
    let origin = Origin::start("a");
    let servers = format!("{}{}", server("a", &origin.address()), server("closed", "127.0.0.1:1"));
    let proxy = Proxy::start(&plain(&[], &format!("{servers}[pool.health]\ninterval = \"50ms\"\nfall = 2\n")));
    eventually("the closed one is down", || {
        proxy.metric("steadfast_server_state", &["server=\"closed\"", "state=\"down\""]) == 1.0
    });
    assert_eq!(proxy.metric("steadfast_server_state", &["server=\"a\"", "state=\"up\""]), 1.0);
}
