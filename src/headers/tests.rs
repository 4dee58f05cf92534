use std::net::IpAddr;

use super::*;
use proptest::prelude::*;

fn map(lines: &[(&str, &str)]) -> HeaderMap {
    let pairs = lines.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()));
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(name, value);
    }
    headers
}

#[test]
fn hop_by_hop_headers_and_those_that_connection_names_are_removed() {
    let mut headers = map(&[
        ("connection", "close, X-Secret"),
        ("connection", "x-other, Host, Cookie"),
        ("x-secret", "1"),
        ("x-other", "1"),
        ("host", "a"),
        ("cookie", "a=b"),
        ("keep-alive", "timeout=5"),
        ("te", "gzip"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("accept", "x"),
    ]);
    remove_hop_by_hop(&mut headers);
    let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["accept", "cookie", "host"]);
}

#[test]
fn an_upgrade_must_be_named_in_connection_and_h2c_is_none() {
    assert!(wanted_upgrade(&map(&[("connection", "Upgrade"), ("upgrade", "websocket")])).is_some());
    assert!(wanted_upgrade(&map(&[("upgrade", "websocket")])).is_none());
    assert!(wanted_upgrade(&map(&[("connection", "upgrade"), ("upgrade", "h2c")])).is_none());
}

#[test]
fn only_chunked_is_a_plain_transfer_coding() {
    for (value, plain) in [("chunked", true), ("Chunked", true), ("gzip, chunked", false), ("identity", false)] {
        assert_eq!(transfer_coding_is_plain(&map(&[("transfer-encoding", value)])), plain, "{value}");
    }
    assert!(!transfer_coding_is_plain(&map(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")])));
}

#[test]
fn cookies_lose_ours_and_crumbs_are_joined() {
    let ours = |name: &[u8]| name == b"__Host-sf";
    let change = |lines: &[(&str, &str)]| rewritten_cookies(&map(lines), ours);
    assert_eq!(change(&[("cookie", "a=1; b=2")]), None);
    assert_eq!(change(&[("cookie", "a=1; __Host-sf=x; b=2")]), Some(Some(HeaderValue::from_static("a=1; b=2"))));
    assert_eq!(change(&[("cookie", "a=1"), ("cookie", "b=2")]), Some(Some(HeaderValue::from_static("a=1; b=2"))));
    assert_eq!(change(&[("cookie", " __Host-sf = x")]), Some(None));
}

#[test]
fn the_client_is_the_rightmost_untrusted_hop() {
    let trusted = |address: IpAddr| address.to_string().starts_with("10.");
    let peer: IpAddr = "10.0.0.1".parse().unwrap();
    let client = |value: &str, peer: IpAddr| {
        client_address(&map(&[("x-forwarded-for", value)]), peer, ForwardedBy::XForwardedFor, trusted).to_string()
    };
    assert_eq!(client("6.6.6.6, 1.2.3.4, 10.0.0.2", peer), "1.2.3.4");
    assert_eq!(client("6.6.6.6", "9.9.9.9".parse().unwrap()), "9.9.9.9");
    assert_eq!(client("6.6.6.6, garbage", peer), "10.0.0.1");
    assert_eq!(client("[2001:db8::1]:443", peer), "2001:db8::1");
    let headers = map(&[("forwarded", "for=1.2.3.4;proto=http, For=\"[2001:db8::2]:1\";proto=https")]);
    let client = client_address(&headers, peer, ForwardedBy::Forwarded, trusted);
    assert_eq!(client.to_string(), "2001:db8::2");
    assert_eq!(forwarded_scheme_is_https(&headers, ForwardedBy::Forwarded), Some(true));
}

#[test]
fn an_untrusted_clients_word_is_made_anew() {
    let mut headers = map(&[("x-forwarded-for", "6.6.6.6"), ("forwarded", "for=6.6.6.6"), ("x-forwarded-port", "1")]);
    let origin = Origin { https: true, host: "a.test".into(), port: 8443 };
    let authority = HeaderValue::from_static("a.test:8443");
    let peer = "2001:db8::9".parse().unwrap();
    let hop = OwnHop::new(peer, "inner.test".into(), HeaderValue::from_static("inner.test"), origin, authority);
    assert!(hop.fits(true, "inner.test", "a.test:8443") && !hop.fits(true, "inner.test", "b.test:8443"));
    assert!(!hop.fits(false, "inner.test", "a.test:8443") && !hop.fits(true, "other.test", "a.test:8443"));
    let mut told = Told {
        hop: &hop,
        peer_is_trusted: false,
        forwarded_by: ForwardedBy::XForwardedFor,
        request_id: &HeaderValue::from_static("id"),
        http2: true,
    };
    tell_server(&mut headers, &told);
    assert_eq!(headers[X_FORWARDED_FOR], "2001:db8::9");
    assert_eq!(headers[FORWARDED], "for=\"[2001:db8::9]\";host=\"a.test:8443\";proto=https");
    assert_eq!(
        (&headers[X_FORWARDED_HOST], &headers[X_FORWARDED_PORT]),
        (&"a.test:8443".parse().unwrap(), &"8443".parse().unwrap())
    );
    assert_eq!(headers[header::VIA], "2 steadfast");
    told.peer_is_trusted = true;
    let mut headers = map(&[("x-forwarded-for", "6.6.6.6"), ("forwarded", "for=7.7.7.7")]);
    tell_server(&mut headers, &told);
    assert_eq!(headers[X_FORWARDED_FOR], "6.6.6.6, 2001:db8::9");
    assert!(headers[FORWARDED].to_str().unwrap().starts_with("for=6.6.6.6, for="));
}

#[test]
fn cookies_go_only_on_what_no_shared_cache_keeps() {
    let caching = |value: &str| shared_caching(&map(&[("cache-control", value)]));
    assert_eq!(shared_caching(&HeaderMap::new()), SharedCaching::Unsaid);
    assert_eq!(caching("public"), SharedCaching::Allowed);
    assert_eq!(caching("Max-Age=60"), SharedCaching::Allowed);
    assert_eq!(caching("max-age=60, private"), SharedCaching::Forbidden);
    assert_eq!(caching("no-cache"), SharedCaching::Forbidden);
}

proptest! {
    /// Whatever Connection lists, nothing hop-by-hop is left, and nothing that was not named goes.
    #[test]
    fn cleaning_is_exact(named in proptest::collection::vec("[a-z]{1,3}", 0..5), present in proptest::collection::btree_set("[a-z]{1,3}", 0..6)) {
        let mut headers = HeaderMap::new();
        for name in &present {
            headers.insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("1"));
        }
        headers.insert(header::CONNECTION, named.join(",").parse().unwrap());
        remove_hop_by_hop(&mut headers);
        for name in &present {
            prop_assert_eq!(headers.contains_key(name.as_str()), !named.contains(name) && name != "te");
        }
        prop_assert!(!headers.contains_key(header::CONNECTION));
    }
}
