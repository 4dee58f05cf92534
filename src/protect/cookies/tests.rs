use std::collections::HashSet;

use super::*;
use proptest::prelude::*;

/// What becomes of what servers set. The columns: what is asked, and the browser's address; the line; what becomes of
/// it (`=` it stays, `-` it goes, `+` what is written behind it); what is counted. `\t` is a tab.
const TABLE: &str = r#"
# Flags that are missing are written behind, and nothing else is touched.
fix https://shop.example.com | sid=1 | +; Secure; HttpOnly; SameSite=Lax | no_secure no_http_only no_same_site
fix https://shop.example.com | sid=1; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.example.com | sid=1; secure; HTTPONLY; samesite=strict | = |
fix https://shop.example.com | sid=1;Secure;HttpOnly;SameSite=None | = |
fix https://shop.example.com | sid=1; Secure | +; HttpOnly; SameSite=Lax | no_http_only no_same_site
fix https://shop.example.com | sid=1; HttpOnly | +; Secure; SameSite=Lax | no_secure no_same_site
fix https://shop.example.com | sid=1; SameSite=Lax | +; Secure; HttpOnly | no_secure no_http_only
fix https://shop.example.com | sid=1; SameSite=None | +; Secure; HttpOnly | no_secure no_http_only
fix https://shop.example.com | sid=1; SameSite=None; Secure; Partitioned | +; HttpOnly | no_http_only
fix https://shop.example.com | sid=1; Secure=no; HttpOnly=0; SameSite=lax | = |
fix https://shop.example.com | sid=1; Secure; HttpOnly; SameSite=Sometimes | +; SameSite=Lax | no_same_site
fix https://shop.example.com | sid=1; Secure; HttpOnly; SameSite | +; SameSite=Lax | no_same_site
fix https://shop.example.com | sid=1; Secure; HttpOnly; SameSite=Lax; SameSite=x | +; SameSite=Lax | no_same_site
fix https://shop.example.com | sid=1; Secure; HttpOnly; SameSite=x; SameSite=Lax | = |
fix https://shop.example.com | sid=1; Secure; HttpOnly; SameSite="Lax" | +; SameSite=Lax | no_same_site
fix https://shop.example.com | sid=1;  secure ;\thttponly\t; SameSite = Lax  ;; | = |
fix https://shop.example.com | sid=1; | +; Secure; HttpOnly; SameSite=Lax | no_secure no_http_only no_same_site
fix https://shop.example.com | sid="a; Secure; HttpOnly; SameSite=Lax" | +; SameSite=Lax | no_same_site
fix https://shop.example.com | sid=Secure=HttpOnly; SameSite=Lax | +; Secure; HttpOnly | no_secure no_http_only
fix https://shop.example.com | sid=1; Securely; NotHttpOnly; SameSite=Lax | +; Secure; HttpOnly | no_secure no_http_only
fix https://shop.example.com | sid=; Max-Age=0; Path=/ | +; Secure; HttpOnly; SameSite=Lax | no_secure no_http_only no_same_site
fix https://shop.example.com | sid=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Secure; HttpOnly | +; SameSite=Lax | no_same_site
fix https://shop.example.com | a=1, b=2; Path=/ | +; Secure; HttpOnly; SameSite=Lax | no_secure no_http_only no_same_site
# Over http there is no Secure to add.
fix http://shop.example.com | sid=1 | +; HttpOnly; SameSite=Lax | no_http_only no_same_site
fix http://shop.example.com | sid=1; HttpOnly; SameSite=Strict | = |
fix http://localhost:8080 | sid=1; Secure; HttpOnly; SameSite=None | = |
# Some are for scripts.
fix https://shop.example.com | csrftoken=1; Secure; SameSite=Lax | = |
fix https://shop.example.com | XSRF-TOKEN=1; Secure; SameSite=Lax | = |
fix https://shop.example.com | __Host-my-CSRF=1; Secure; Path=/; SameSite=Lax | = |
fix https://shop.example.com | csrftoken=1 | +; Secure; SameSite=Lax | no_secure no_same_site
fix https://shop.example.com | token=csrf; Secure; SameSite=Lax | +; HttpOnly | no_http_only
fix https://shop.example.com | csr-f=1; Secure; SameSite=Lax | +; HttpOnly | no_http_only
fix https://shop.example.com | __Http-csrf=1; Secure; SameSite=Lax | +; HttpOnly | no_http_only
# A Domain covers the host and belongs to somebody, or the line goes.
fix https://shop.example.com | a=1; Domain=shop.example.com; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.example.com | a=1; Domain=.Shop.Example.COM; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.example.com | a=1; Domain=; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.example.com | a=1; Domain; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.example.com | a=1; Domain=.; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.example.com | a=1; Domain=example.com; Secure; HttpOnly; SameSite=Lax | = | domain_wide
fix https://shop.example.com | a=1; Domain=.example.com; Secure; HttpOnly; SameSite=Lax | = | domain_wide
fix https://shop.example.com | a=1; DOMAIN = EXAMPLE.com ; Secure; HttpOnly | +; SameSite=Lax | no_same_site domain_wide
fix https://shop.example.com | a=1; Domain=other.test; Domain=example.com; Secure; HttpOnly; SameSite=Lax | = | domain_wide
fix https://shop.example.com | a=1; Domain=example.com; Domain=other.test; Secure; HttpOnly; SameSite=Lax | - | domain_refused
fix https://shop.example.com | a=1; Domain=..example.com | - | domain_refused
fix https://shop.example.com | a=1; Domain=example.com. | - | domain_refused
fix https://shop.example.com | a=1; Domain=a.shop.example.com | - | domain_refused
fix https://shop.example.com | a=1; Domain=cart.example.com | - | domain_refused
fix https://shop.example.com | a=1; Domain=op.example.com | - | domain_refused
fix https://shop.example.com | a=1; Domain="example.com" | - | domain_refused
fix https://shop.example.com | a=1; Domain=shop.example.com:443 | - | domain_refused
fix https://shop.example.com | a=1; Domain=evil.test | - | domain_refused
fix https://shop.example.com | a=1; Domain=com | - | public_suffix
fix https://shop.example.com | a=1; Domain=.COM; Secure; HttpOnly; SameSite=Lax | - | public_suffix
fix https://shop.example.co.uk | a=1; Domain=co.uk | - | public_suffix
fix https://shop.example.co.uk | a=1; Domain=example.co.uk; Secure; HttpOnly; SameSite=Lax | = | domain_wide
fix https://shop.github.io | a=1; Domain=github.io | - | public_suffix
fix https://github.io | a=1; Domain=github.io; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.xn--55qx5d.cn | a=1; Domain=xn--55qx5d.cn | - | public_suffix
fix https://localhost:8443 | a=1; Domain=localhost; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.localhost | a=1; Domain=localhost | - | public_suffix
fix https://intranet | a=1; Domain=intranet; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.team.internal | a=1; Domain=internal | - | public_suffix
fix https://shop.team.internal | a=1; Domain=team.internal; Secure; HttpOnly; SameSite=Lax | = | domain_wide
fix https://10.0.0.1 | a=1; Domain=10.0.0.1; Secure; HttpOnly; SameSite=Lax | = |
fix https://10.0.0.1 | a=1; Domain=0.0.1 | - | domain_refused
fix https://[::1] | a=1; Domain=[::1]; Secure; HttpOnly; SameSite=Lax | = |
# Prefixes: Secure can be added, Domain and Path cannot.
fix https://shop.example.com | __Host-a=1; Path=/; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.example.com | __Host-a=1; Path=/; HttpOnly; SameSite=Lax | +; Secure | no_secure
fix https://shop.example.com | __Host-a=1; Secure; HttpOnly; SameSite=Lax | = | prefix_broken
fix https://shop.example.com | __Host-a=1; Path=/a; Secure; HttpOnly; SameSite=Lax | = | prefix_broken
fix https://shop.example.com | __Host-a=1; Path=/; Path=/a; Secure; HttpOnly; SameSite=Lax | = | prefix_broken
fix https://shop.example.com | __Host-a=1; Path=/a; Path=/; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.example.com | __Host-a=1; Path=/; Domain=; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.example.com | __Host-a=1; Path=/; Domain=shop.example.com; Secure; HttpOnly | +; SameSite=Lax | prefix_broken no_same_site
fix https://shop.example.com | __Host-Http-a=1; Path=/; Secure; SameSite=Lax | +; HttpOnly | no_http_only
fix https://shop.example.com | __Secure-a=1; Domain=example.com; HttpOnly; SameSite=Lax | +; Secure | no_secure domain_wide
fix http://shop.example.com | __Secure-a=1; HttpOnly; SameSite=Lax | = | prefix_broken
fix http://shop.example.com | __Host-a=1; Path=/; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.example.com | __Host_a=1; Secure; HttpOnly; SameSite=Lax | = | prefix_misspelt
fix https://shop.example.com | __Secure_a=1; Secure; HttpOnly; SameSite=Lax | = | prefix_misspelt
fix https://shop.example.com | __host-a=1; Path=/; Secure; HttpOnly; SameSite=Lax | = | prefix_misspelt
fix https://shop.example.com | __SECURE-a=1; Secure; HttpOnly; SameSite=Lax | = | prefix_misspelt
fix https://shop.example.com | __host-a=1; Secure; HttpOnly; SameSite=Lax | = | prefix_broken prefix_misspelt
fix https://shop.example.com | __Hostname=1; Secure; HttpOnly; SameSite=Lax | = |
fix https://shop.example.com | Host-a=1; Secure; HttpOnly; SameSite=Lax | = |
# What is no cookie for a server, and what is one of ours.
fix https://shop.example.com | 1; Secure; HttpOnly; SameSite=Lax | - | malformed
fix https://shop.example.com | =1; Secure; HttpOnly; SameSite=Lax | - | malformed
fix https://shop.example.com | =a=1; Secure; HttpOnly; SameSite=Lax | - | malformed
fix https://shop.example.com | ; Secure; HttpOnly; SameSite=Lax | - | malformed
fix https://shop.example.com | $Version=1; Secure; HttpOnly; SameSite=Lax | - | malformed
fix https://shop.example.com | __Host-Http-session=1; Path=/; Secure; HttpOnly; SameSite=Lax | - | reserved_name
fix https://shop.example.com | __host-http-SESSION=1; Path=/; Secure; HttpOnly; SameSite=Lax | - | reserved_name
fix https://shop.example.com | __Host-Http-session | - | reserved_name
fix https://shop.example.com | =__Host-Http-session=1; Secure; HttpOnly; SameSite=Lax | - | reserved_name
fix https://shop.example.com | = __Host-Http-session =1 | - | reserved_name
fix https://shop.example.com | sf-5d41402a=1; Domain=com | - | reserved_name
fix https://shop.example.com | SF-5D41402A =1; Secure; HttpOnly; SameSite=Lax | - | reserved_name
fix https://shop.example.com | sf-5d41402ab=1; Secure; HttpOnly; SameSite=Lax | = |
# Who rejects takes out what would have to be changed, with what weighs most for the reason.
reject https://shop.example.com | sid=1; Secure; HttpOnly; SameSite=Lax | = |
reject https://shop.example.com | sid=1 | - | no_secure
reject https://shop.example.com | sid=1; Secure | - | no_http_only
reject https://shop.example.com | sid=1; Secure; HttpOnly | - | no_same_site
reject http://shop.example.com | sid=1; HttpOnly; SameSite=Lax | = |
reject https://shop.example.com | csrftoken=1; Secure; SameSite=Lax | = |
reject https://shop.example.com | a=1; Domain=example.com; Secure; HttpOnly; SameSite=Lax | = | domain_wide
reject https://shop.example.com | a=1; Domain=com; Secure; HttpOnly; SameSite=Lax | - | public_suffix
reject https://shop.example.com | a=1; Domain=other.test | - | domain_refused
reject https://shop.example.com | __Host-a=1; Secure; HttpOnly; SameSite=Lax | - | prefix_broken
reject http://shop.example.com | __Secure-a=1; HttpOnly; SameSite=Lax | - | prefix_broken
reject https://shop.example.com | __Host_a=1; Secure; HttpOnly; SameSite=Lax | = | prefix_misspelt
reject https://shop.example.com | 1; Secure; HttpOnly; SameSite=Lax | - | malformed
reject https://shop.example.com | sf-5d41402a=1; Secure; HttpOnly; SameSite=Lax | - | reserved_name
# Off is off, but for what is ours.
off https://shop.example.com | sid=1 | = |
off https://shop.example.com | a=1; Domain=com | = |
off https://shop.example.com | $a | = |
off https://shop.example.com | __Host-a=1; Path=/a | = |
off https://shop.example.com | SF-5d41402a=1 | - | reserved_name
off https://shop.example.com | =sf-5d41402a=1 | - | reserved_name
"#;

const RESERVED: [&str; 2] = ["__Host-Http-session", "sf-5d41402a"];

fn is_reserved(name: &[u8]) -> bool {
    RESERVED.iter().any(|reserved| is_alias(name, reserved.as_bytes()))
}

fn rules(mode: CookieMode) -> CookieRules {
    CookieRules { mode, same_site: SameSite::Lax, allow_script: vec![Glob::new("*csrf*"), Glob::new("*XSRF*")] }
}

fn facts(address: &str) -> CookieFacts<'_> {
    let (scheme, rest) = address.split_once("://").unwrap();
    let port = rest.rfind(':').filter(|_| !rest.ends_with(']'));
    CookieFacts { https: scheme == "https", host: port.map_or(rest, |at| &rest[..at]) }
}

/// The lines that are left, and what was counted.
fn clean(
    lines: &[&[u8]],
    rules: &CookieRules,
    facts: &CookieFacts<'_>,
) -> (Vec<Vec<u8>>, Vec<(CookieFault, CookieDeed)>) {
    let mut headers = HeaderMap::new();
    headers.insert("server", HeaderValue::from_static("a"));
    for line in lines {
        headers.append(SET_COOKIE, HeaderValue::from_bytes(line).unwrap());
    }
    headers.insert("x-other", HeaderValue::from_static("sid=1"));
    let mut counted = Vec::new();
    clean_set_cookies(&mut headers, rules, facts, is_reserved, |fault, deed| counted.push((fault, deed)));
    assert_eq!(
        (&headers["server"], &headers["x-other"]),
        (&HeaderValue::from_static("a"), &HeaderValue::from_static("sid=1"))
    );
    let left = headers.get_all(SET_COOKIE).iter().map(|line| line.as_bytes().to_vec());
    (left.collect(), counted)
}

/// The columns of each row.
fn rows() -> impl Iterator<Item = [String; 4]> {
    let lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| {
        let columns: Vec<String> = line.split('|').map(|column| column.trim().replace("\\t", "\t")).collect();
        <[String; 4]>::try_from(columns).unwrap()
    })
}

#[test]
fn every_row_of_the_table_becomes_what_it_says() {
    for [asked, line, becomes, counts] in rows() {
        let (mode, address) = asked.split_once(' ').unwrap();
        let mode = CookieMode::from_word(mode).unwrap();
        let (left, counted) = clean(&[line.as_bytes()], &rules(mode), &facts(address));
        let wanted = match becomes.strip_prefix('+') {
            Some(behind) => vec![format!("{line}{behind}").into_bytes()],
            None if becomes == "=" => vec![line.clone().into_bytes()],
            None => {
                assert_eq!(becomes, "-");
                Vec::new()
            }
        };
        assert_eq!(left, wanted, "{asked} | {line}");
        let faults: Vec<&str> = counted.iter().map(|(fault, _)| fault.as_str()).collect();
        assert_eq!(faults, counts.split_whitespace().collect::<Vec<_>>(), "{asked} | {line}");
        assert!(counted.iter().all(|(fault, deed)| *deed == mode.deed(*fault)), "{asked} | {line}");
    }
}

#[test]
fn the_table_is_long_and_says_nothing_twice() {
    let different: HashSet<(String, String)> = rows().map(|[asked, line, ..]| (asked, line)).collect();
    assert_eq!(different.len(), rows().count());
    assert!(different.len() >= 100, "{} rows", different.len());
}

#[test]
fn what_is_done_about_a_fault_goes_by_the_mode() {
    for fault in CookieFault::ALL {
        let [fix, reject, off] = match fault.as_str() {
            "reserved_name" => ["dropped", "dropped", "dropped"],
            "malformed" | "control_bytes" | "too_large" | "public_suffix" | "domain_refused" => {
                ["dropped", "dropped", "passed"]
            }
            "prefix_broken" => ["passed", "dropped", "passed"],
            "no_secure" | "no_http_only" | "no_same_site" => ["fixed", "dropped", "passed"],
            "domain_wide" | "prefix_misspelt" => ["passed", "passed", "passed"],
            other => panic!("{other} is not decided"),
        };
        for (mode, deed) in [(CookieMode::Fix, fix), (CookieMode::Reject, reject), (CookieMode::Off, off)] {
            assert_eq!(mode.deed(*fault).as_str(), deed, "{mode} {fault}");
        }
    }
}

#[test]
fn each_of_several_lines_is_looked_at_for_itself_and_their_order_stays() {
    let lines: [&[u8]; 5] = [
        b"a=1; Secure; HttpOnly; SameSite=Lax",
        b"sf-5d41402a=2",
        b"b=3; Secure; HttpOnly",
        b"c=4; Domain=com",
        b"a=5; Secure; HttpOnly; SameSite=Lax",
    ];
    let (left, counted) = clean(&lines, &rules(CookieMode::Fix), &facts("https://shop.example.com"));
    let wanted: [&[u8]; 3] = [lines[0], b"b=3; Secure; HttpOnly; SameSite=Lax", lines[4]];
    assert_eq!(left, wanted);
    let wanted = [
        (CookieFault::ReservedName, CookieDeed::Dropped),
        (CookieFault::NoSameSite, CookieDeed::Fixed),
        (CookieFault::PublicSuffix, CookieDeed::Dropped),
    ];
    assert_eq!(counted, wanted);
    assert_eq!(clean(&[b"sf-5d41402a=2"], &rules(CookieMode::Off), &facts("http://a.test")).0, Vec::<Vec<u8>>::new());
}

#[test]
fn what_is_right_is_not_even_copied() {
    let line = HeaderValue::from_static("a=1; Secure; HttpOnly; SameSite=Lax; Domain=example.com");
    let mut headers = HeaderMap::from_iter([(SET_COOKIE, line.clone())]);
    let facts = facts("https://shop.example.com");
    clean_set_cookies(&mut headers, &rules(CookieMode::Fix), &facts, is_reserved, |_, _| {});
    assert_eq!(headers[SET_COOKIE].as_bytes().as_ptr(), line.as_bytes().as_ptr());
}

#[test]
fn bytes_that_are_no_text_are_passed_on_and_secrets_stay_secrets() {
    let mut line = HeaderValue::from_bytes(b"n\xe9=\xff\x80; Path=/\xfe;;").unwrap();
    line.set_sensitive(true);
    let mut headers = HeaderMap::from_iter([(SET_COOKIE, line)]);
    let facts = facts("https://shop.example.com");
    clean_set_cookies(&mut headers, &rules(CookieMode::Fix), &facts, is_reserved, |_, _| {});
    let fixed = &headers[SET_COOKIE];
    assert_eq!(fixed.as_bytes(), b"n\xe9=\xff\x80; Path=/\xfe;;; Secure; HttpOnly; SameSite=Lax");
    assert!(fixed.is_sensitive());
}

#[test]
fn same_site_is_what_the_rules_say_and_none_only_where_browsers_take_it() {
    for (same_site, address, wanted) in [
        (SameSite::Strict, "https://a.test", "a=1; Secure; HttpOnly; SameSite=Strict"),
        (SameSite::None, "https://a.test", "a=1; Secure; HttpOnly; SameSite=None"),
        (SameSite::None, "http://a.test", "a=1; HttpOnly; SameSite=Lax"),
        (SameSite::Strict, "http://a.test", "a=1; HttpOnly; SameSite=Strict"),
    ] {
        let rules = CookieRules { same_site, ..rules(CookieMode::Fix) };
        assert_eq!(clean(&[b"a=1"], &rules, &facts(address)).0, [wanted.as_bytes()]);
    }
}

#[test]
fn name_and_value_have_4096_bytes_together_and_attributes_do_not_count() {
    let line = |name: usize, value: usize| {
        let flags = "Secure; HttpOnly; SameSite=Lax";
        format!("{}={}; {flags}; Path=/{}", "n".repeat(name), "v".repeat(value), "p".repeat(5_000))
    };
    for (name, value, fits) in [(1, 4_095, true), (1, 4_096, false), (2_048, 2_048, true), (4_096, 1, false)] {
        let (left, counted) = clean(&[line(name, value).as_bytes()], &rules(CookieMode::Fix), &facts("https://a.test"));
        assert_eq!(left.len(), usize::from(fits), "{name} and {value}");
        let wanted = [(CookieFault::TooLarge, CookieDeed::Dropped)];
        assert_eq!(counted, &wanted[usize::from(fits)..], "{name} and {value}");
    }
}

#[test]
fn an_attribute_that_browsers_find_too_long_is_not_there() {
    let rules = rules(CookieMode::Fix);
    let facts = facts("https://a.test");
    for (length, wanted) in [(1_024, Some(CookieFault::DomainRefused)), (1_025, None)] {
        let line = format!("a=1; Secure; HttpOnly; SameSite=Lax; Domain={}", "d.".repeat(600).split_at(length).0);
        let counted = clean(&[line.as_bytes()], &rules, &facts).1;
        assert_eq!(counted.first().map(|(fault, _)| *fault), wanted, "{length}");
    }
}

#[test]
fn control_bytes_are_found_but_for_the_tab() {
    let found = |line: &[u8]| {
        faults(line, &rules(CookieMode::Fix), &facts("https://a.test"), is_reserved).has(CookieFault::ControlBytes)
    };
    for byte in (0..=31).chain([127]) {
        assert_eq!(found(&[b'a', b'=', byte]), byte != b'\t', "{byte}");
        assert_eq!(found(&[b'a', byte, b'=', b';', b'P']), byte != b'\t', "{byte}");
    }
    assert!(!found(b"a=\x80 ~") && !found(b"a=1"));
}

#[test]
fn a_domain_covers_what_is_under_it() {
    for (domain, host, covered) in [
        ("example.com", "shop.example.com", true),
        ("example.com", "a.b.example.com", true),
        ("EXAMPLE.com", "shop.example.com", true),
        ("example.com", "example.com", false),
        ("ample.com", "shop.example.com", false),
        ("shop.example.com", "example.com", false),
        ("0.0.1", "127.0.0.1", false),
        ("", "example.com", false),
        ("::1]", "[::1]", false),
    ] {
        assert_eq!(covers(domain.as_bytes(), host), covered, "{domain} {host}");
    }
}

#[test]
fn names_match_patterns_in_any_case() {
    for (pattern, name, matches) in [
        ("*csrf*", "csrf", true),
        ("*csrf*", "CSRFtoken", true),
        ("*csrf*", "my-Csrf-token", true),
        ("*csrf*", "cs-rf", false),
        ("*CSRF*", "csrf", true),
        ("theme", "theme", true),
        ("theme", "Theme", true),
        ("theme", "themes", false),
        ("theme", "atheme", false),
        ("theme*", "themes", true),
        ("theme*", "atheme", false),
        ("*theme", "atheme", true),
        ("*theme", "themes", false),
        ("*", "", true),
        ("*", "anything", true),
        ("**", "a", true),
        ("", "", true),
        ("", "a", false),
        ("a*a", "a", false),
        ("a*a", "aa", true),
        ("a*a", "aba", true),
        ("a*b*c", "abc", true),
        ("a*b*c", "a--b--c", true),
        ("a*b*c", "acb", false),
        ("a*bc*c", "abcbc", true),
        ("a*bc*bc", "abc", false),
        ("ab*ba", "aba", false),
        ("*ab*ab*", "abab", true),
        ("*ab*ab*", "aab", false),
        ("a?b", "axb", false),
    ] {
        assert_eq!(Glob::new(pattern).matches(name.as_bytes()), matches, "{pattern} {name}");
    }
}

#[test]
fn names_that_some_server_takes_for_ours_are_aliases() {
    let ours = "__Host-Http-session";
    for (name, alias) in [
        ("__Host-Http-session", true),
        ("__host-http-session", true),
        ("__HOST-HTTP-SESSION", true),
        (" __Host-Http-session", true),
        ("__Host-Http-session\t ", true),
        ("\r\n__Host-Http-session\0", true),
        ("\u{a0}__Host-Http-session", true),
        ("__Host-Http-session\u{2028}", true),
        ("\u{2000}\u{3000}__Host-Http-session\u{85}", true),
        ("\u{feff}__Host-Http-session", true),
        ("__Host-Http-session\u{200b}", true),
        ("__Ho\u{17f}t-Http-session", true),
        ("__HO\u{17f}T-http-\u{17f}E\u{17f}\u{17f}ion", true),
        ("__Host-Http-sess\u{131}on", true),
        ("__Host-Http-sess\u{130}on", true),
        ("", false),
        (" ", false),
        ("\u{a0}", false),
        ("__Host-Http-sessio", false),
        ("__Host-Http-sessions", false),
        ("__Host-Http -session", false),
        ("__Host_Http_session", false),
        ("a__Host-Http-session", false),
        ("\u{e9}__Host-Http-session", false),
        ("__Host-Http-sess\u{456}on", false),
    ] {
        assert_eq!(is_alias(name.as_bytes(), ours.as_bytes()), alias, "{name:?}");
    }
    assert!(is_alias("\u{212a}ey".as_bytes(), b"key") && is_alias("KE\u{3000}".as_bytes(), b"ke"));
    // No UTF-8: the no-break space and the next line of Latin-1.
    assert!(is_alias(b"\xa0key\x85", b"key") && is_alias(b"\xa0KEY", b"Key"));
    assert!(!is_alias(b"\xe9key", b"key") && !is_alias(b"k\xa0ey", b"key"));
}

#[test]
fn some_names_are_for_no_server() {
    for (name, never) in [("", true), ("$Version", true), ("$", true), ("a", false), ("a$", false), ("_$", false)] {
        assert_eq!(is_never_for_servers(name.as_bytes()), never, "{name}");
    }
}

/// The pattern as it is defined, however long that takes.
fn matches_slowly(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|at| matches_slowly(rest, &name[at..])),
        Some((byte, rest)) => {
            name.first().is_some_and(|first| first.eq_ignore_ascii_case(byte)) && matches_slowly(rest, &name[1..])
        }
    }
}

proptest! {
    #[test]
    fn patterns_match_what_they_should(pattern in "[abA*]{0,6}", name in "[abB]{0,8}") {
        let matches = Glob::new(&pattern).matches(name.as_bytes());
        prop_assert_eq!(matches, matches_slowly(pattern.as_bytes(), name.as_bytes()));
    }

    /// What was cleaned is clean, begins with what it was, and is of no reserved name.
    #[test]
    fn nothing_is_fixed_twice(
        pair in "(sid|=|sf-5d41402a|__Host-a|[ -~]{0,6})(=[ -~]{0,8})?",
        attributes in "(; ?(Secure|HttpOnly|SameSite=(Lax|x)|Path=/|Domain=(com|example\\.com|[a-z.]{0,8})|[ -~]{0,9})){0,4}",
        https: bool,
        reject: bool,
    ) {
        let line = format!("{pair}{attributes}");
        let rules = rules(if reject { CookieMode::Reject } else { CookieMode::Fix });
        let facts = CookieFacts { https, host: "shop.example.com" };
        let (once, _) = clean(&[line.as_bytes()], &rules, &facts);
        for cleaned in &once {
            prop_assert!(cleaned.starts_with(line.as_bytes()));
            prop_assert!(!reject || cleaned.len() == line.len());
            let cookie = SetCookie::parse(cleaned);
            prop_assert!(!is_reserved(cookie.name) && !is_never_for_servers(cookie.name));
            prop_assert!(cookie.same_site && (cookie.secure || !https));
            let (twice, counted) = clean(&[cleaned], &rules, &facts);
            prop_assert_eq!(&twice, &once);
            prop_assert!(counted.iter().all(|(_, deed)| *deed == CookieDeed::Passed));
        }
    }

    #[test]
    fn no_line_and_no_name_harms_anybody(line in proptest::collection::vec(any::<u8>(), 0..80), host in "[ -~]{0,20}") {
        for mode in CookieMode::ALL {
            let _ = faults(&line, &rules(*mode), &CookieFacts { https: true, host: &host }, is_reserved);
        }
        let _ = is_alias(&line, b"__Host-Http-session");
        let _ = domain_fault(&line, &host);
    }

    /// Whatever stands around a name, and however its letters are written, it stays what it is.
    #[test]
    fn blanks_and_case_hide_no_name(before in "[ \\t\\u{a0}\\u{2003}\\u{feff}]{0,3}", name in "[a-z_-]{1,8}", upper: bool) {
        let written = if upper { name.to_uppercase() } else { name.clone() };
        let dressed = format!("{before}{written}{before}");
        prop_assert!(is_alias(dressed.as_bytes(), name.as_bytes()));
    }
}
