use http::HeaderName;

use super::*;
use crate::keys::RingKey;

const NOW: Wall = Wall(1_800_000_000_000_000);

fn settings() -> StickySettings {
    StickySettings {
        source: Source::Cookie,
        cookie: StickySettings::default_cookie("shop").into(),
        idle: Duration::from_secs(3_600),
        absolute: Duration::ZERO,
        same_site: SameSite::Lax,
        partitioned: false,
        persistent: false,
    }
}

fn affinity(settings: StickySettings, keys: &[u8], pool: &str, servers: &[&str]) -> Affinity {
    let ring = KeyRing::new(keys.iter().map(|byte| RingKey::from_secret([*byte; 32])).collect());
    let sealer = Arc::new(PinSealer::new(&ring));
    Affinity::new(settings, &ring, sealer, Arc::new(LearnedTable::new(1)), pool, servers.iter().copied())
}

fn later(seconds: u64) -> Wall {
    Wall(NOW.0 + seconds * 1_000_000)
}

/// The request that a browser sends after this Set-Cookie.
fn sent_back(set_cookie: &HeaderValue) -> HeaderMap {
    let pair = set_cookie.to_str().unwrap().split(';').next().unwrap();
    HeaderMap::from_iter([(http::header::COOKIE, HeaderValue::from_str(pair).unwrap())])
}

fn new_pin(affinity: &Affinity, server: usize) -> HeaderMap {
    let recalled = affinity.recall_pin(&HeaderMap::new(), true, NOW);
    assert_eq!(recalled.preference, Preference::New(NewWhy::First));
    sent_back(&affinity.set_cookie(&recalled, server, true, NOW, &mut fastrand::Rng::with_seed(1)).unwrap().0)
}

fn rng() -> fastrand::Rng {
    fastrand::Rng::with_seed(2)
}

#[test]
fn a_pin_comes_back_and_is_written_again_after_a_tenth_of_idle() {
    let shop = affinity(settings(), &[1], "shop", &["a", "b"]);
    let request = new_pin(&shop, 1);
    let recalled = shop.recall_pin(&request, true, later(359));
    assert!(matches!(recalled.preference, Preference::Pinned { server: 1, .. }));
    assert!(!shop.is_cookie_due(&recalled, 1, later(359)) && shop.is_cookie_due(&recalled, 1, later(360)));
    let again = shop.set_cookie(&recalled, 1, true, later(360), &mut rng()).unwrap().0;
    let slid = shop.recall_pin(&sent_back(&again), true, later(360 + 3_600));
    assert!(matches!(slid.preference, Preference::Pinned { server: 1, .. }), "idle slides");
    assert_eq!(slid.session(), recalled.session(), "the session keeps its id");
    assert_eq!(shop.recall_pin(&request, true, later(3_601)).preference, Preference::New(NewWhy::Expired));
}

#[test]
fn a_move_names_the_server_that_answered() {
    let shop = affinity(settings(), &[1], "shop", &["a", "b"]);
    let recalled = shop.recall_pin(&new_pin(&shop, 0), true, NOW);
    assert!(!shop.is_cookie_due(&recalled, 0, NOW) && shop.is_cookie_due(&recalled, 1, NOW));
    let moved = shop.set_cookie(&recalled, 1, true, NOW, &mut rng()).unwrap().0;
    assert!(matches!(shop.recall_pin(&sent_back(&moved), true, NOW).preference, Preference::Pinned { server: 1, .. }));
}

#[test]
fn absolute_ends_a_pin_that_idle_keeps_alive() {
    let shop = affinity(StickySettings { absolute: Duration::from_secs(100), ..settings() }, &[1], "shop", &["a"]);
    assert_eq!(shop.recall_pin(&new_pin(&shop, 0), true, later(101)).preference, Preference::New(NewWhy::Expired));
}

#[test]
fn names_carry_the_pin_not_positions_and_proxies_agree_by_configuration_alone() {
    let request = new_pin(&affinity(settings(), &[1], "shop", &["a", "b"]), 1);
    let elsewhere = affinity(settings(), &[1], "shop", &["b", "c", "a"]);
    assert!(matches!(elsewhere.recall_pin(&request, true, NOW).preference, Preference::Pinned { server: 0, .. }));
    let without = affinity(settings(), &[1], "shop", &["a", "c"]);
    assert!(matches!(without.recall_pin(&request, true, NOW).preference, Preference::Gone { .. }));
}

#[test]
fn a_ring_rotates_in_two_steps() {
    let old = affinity(settings(), &[1], "shop", &["a", "b"]);
    let request = new_pin(&old, 1);
    let appended = affinity(settings(), &[1, 2], "shop", &["a", "b"]);
    let moved = affinity(settings(), &[2, 1], "shop", &["a", "b"]);
    for ring in [&appended, &moved] {
        assert!(matches!(ring.recall_pin(&request, true, NOW).preference, Preference::Pinned { server: 1, .. }));
    }
    let recalled = moved.recall_pin(&request, true, NOW);
    assert!(moved.is_cookie_due(&recalled, 1, NOW), "a pin under an old key is sealed anew");
    let request = sent_back(&moved.set_cookie(&recalled, 1, true, NOW, &mut rng()).unwrap().0);
    assert!(matches!(appended.recall_pin(&request, true, NOW).preference, Preference::Pinned { server: 1, .. }));
    assert_eq!(old.recall_pin(&request, true, NOW).preference, Preference::New(NewWhy::UnknownKey));
}

#[test]
fn what_is_not_ours_is_a_new_pick_with_its_reason() {
    let shop = affinity(settings(), &[1], "shop", &["a"]);
    let blog = affinity(settings(), &[1], "blog", &["a"]);
    assert_eq!(shop.recall_pin(&new_pin(&blog, 0), true, NOW).preference, Preference::New(NewWhy::OtherPool));
    for value in ["", "x", "AAAA", &"A".repeat(SEALED_CHARS), &"A".repeat(5_000), "%%%"] {
        let line = format!("{}={value}", settings().cookie);
        let request = HeaderMap::from_iter([(http::header::COOKIE, line.parse().unwrap())]);
        let preference = shop.recall_pin(&request, true, NOW).preference;
        let wanted = if value.len() == SEALED_CHARS { NewWhy::UnknownKey } else { NewWhy::Invalid };
        assert_eq!(preference, Preference::New(wanted), "{value}");
    }
}

#[test]
fn over_tls_only_the_prefixed_name_is_believed_and_the_newest_of_two_counts() {
    let shop = affinity(settings(), &[1], "shop", &["a", "b"]);
    let pair = |headers: &HeaderMap| headers[http::header::COOKIE].to_str().unwrap().to_owned();
    let old = pair(&new_pin(&shop, 0));
    let recalled = shop.recall_pin(&HeaderMap::new(), true, NOW);
    let newer = shop.set_cookie(&recalled, 1, true, later(10), &mut rng()).unwrap().0;
    let newer = pair(&sent_back(&newer));
    for line in [format!("{old}; {newer}"), format!("{newer}; {old}")] {
        let request = HeaderMap::from_iter([(http::header::COOKIE, line.parse().unwrap())]);
        assert!(matches!(shop.recall_pin(&request, true, later(10)).preference, Preference::Pinned { server: 1, .. }));
    }
    let plain = old.replace("__Host-", "");
    let request = HeaderMap::from_iter([(http::header::COOKIE, plain.parse().unwrap())]);
    assert_eq!(shop.recall_pin(&request, true, NOW).preference, Preference::New(NewWhy::First));
    assert!(matches!(shop.recall_pin(&request, false, NOW).preference, Preference::Pinned { server: 0, .. }));
}

#[test]
fn attributes_follow_the_external_scheme() {
    let shop = affinity(settings(), &[1], "shop", &["a"]);
    let recalled = shop.recall_pin(&HeaderMap::new(), true, NOW);
    let attributes = |https: bool, affinity: &Affinity| {
        let value = affinity.set_cookie(&recalled, 0, https, NOW, &mut rng()).unwrap().0;
        let (pair, attributes) =
            value.to_str().unwrap().split_once("; ").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        (pair.split('=').next().unwrap().to_owned(), attributes)
    };
    let name = StickySettings::default_cookie("shop");
    assert_eq!(attributes(true, &shop), (name.clone(), "HttpOnly; SameSite=Lax; Secure; Path=/".to_owned()));
    assert_eq!(attributes(false, &shop), (name.replace("__Host-", ""), "HttpOnly; SameSite=Lax; Path=/".to_owned()));
    let framed = StickySettings { same_site: SameSite::None, partitioned: true, persistent: true, ..settings() };
    let attributes = attributes(true, &affinity(framed, &[1], "shop", &["a"])).1;
    for attribute in ["SameSite=None", "Partitioned", "Max-Age=3600", "Secure"] {
        assert!(attributes.contains(attribute), "{attributes}");
    }
}

fn asked<'a>(headers: &'a HeaderMap, client: &str, now: Wall) -> Asked<'a> {
    Asked { headers, https: true, client: client.parse().unwrap(), now }
}

fn cookie(line: &str) -> HeaderMap {
    HeaderMap::from_iter([(http::header::COOKIE, line.parse().unwrap())])
}

#[test]
fn a_suffix_names_its_server() {
    let suffixes = vec!["app-1".into(), "app-2".into()];
    let settings = StickySettings { source: Source::Suffix { suffixes }, cookie: "JSESSIONID".into(), ..settings() };
    let shop = affinity(settings, &[1], "shop", &["a", "b"]);
    let preference = |line: &str| shop.recall(&asked(&cookie(line), "1.2.3.4", NOW)).preference;
    assert!(matches!(preference("JSESSIONID=abc.def.app-2"), Preference::Pinned { server: 1, .. }));
    assert!(matches!(preference("JSESSIONID=abc.app-9"), Preference::Gone { .. }));
    assert_eq!(preference("JSESSIONID=abc"), Preference::New(NewWhy::Invalid));
    assert_eq!(preference("other=1"), Preference::New(NewWhy::First));
    assert!(!shop.is_cookie_due(&Recalled::new(NewWhy::First), 0, NOW), "it is not ours to write");
}

#[test]
fn the_applications_own_cookie_is_learned_kept_and_re_learned() {
    let settings = StickySettings { source: Source::Learned { most: 100 }, cookie: "app".into(), ..settings() };
    let shop = affinity(settings.clone(), &[1], "shop", &["a", "b"]);
    let first = shop.recall(&asked(&HeaderMap::new(), "1.2.3.4", NOW));
    assert_eq!(first.preference, Preference::New(NewWhy::First));
    let answer = HeaderMap::from_iter([(http::header::SET_COOKIE, "app=xyz; Path=/; HttpOnly".parse().unwrap())]);
    shop.learn(&first, &answer, 1, false, NOW);
    let request = cookie("a=1; app=xyz");
    let known = shop.recall(&asked(&request, "1.2.3.4", NOW));
    assert!(matches!(known.preference, Preference::Pinned { server: 1, .. }));
    shop.learn(&known, &HeaderMap::new(), 0, true, NOW);
    assert!(matches!(shop.recall(&asked(&request, "1.2.3.4", NOW)).preference, Preference::Pinned { server: 1, .. }));
    shop.learn(&known, &HeaderMap::new(), 0, false, later(10));
    assert!(
        matches!(shop.recall(&asked(&request, "1.2.3.4", NOW)).preference, Preference::Pinned { server: 0, .. }),
        "moved"
    );
    assert_eq!(shop.recall(&asked(&request, "1.2.3.4", later(3_700))).preference, Preference::New(NewWhy::Expired));
    assert_eq!(shop.recall(&asked(&cookie("app=forged"), "1.2.3.4", NOW)).preference, Preference::New(NewWhy::Expired));
}

#[test]
fn headers_and_addresses_are_hashed_and_their_absence_is_no_affinity() {
    let by_header = StickySettings { source: Source::Header("x-user".parse().unwrap()), ..settings() };
    let shop = affinity(by_header, &[1], "shop", &["a"]);
    let ada = HeaderMap::from_iter([("x-user".parse::<HeaderName>().unwrap(), "ada".parse().unwrap())]);
    assert!(matches!(shop.recall(&asked(&ada, "1.2.3.4", NOW)).preference, Preference::Hashed { .. }));
    let none = HeaderMap::new();
    assert_eq!(shop.recall(&asked(&none, "1.2.3.4", NOW)).preference, Preference::None(NoneWhy::NotSticky));
    let by_address = StickySettings { source: Source::Address, ..settings() };
    let preference = |keys: &[u8], client: &str| {
        affinity(by_address.clone(), keys, "shop", &["a"]).recall(&asked(&none, client, NOW)).preference
    };
    assert_eq!(preference(&[1], "1.2.3.4"), preference(&[2], "1.2.3.4"), "proxies agree whatever their keys");
    assert_ne!(preference(&[1], "1.2.3.4"), preference(&[1], "1.2.3.5"));
}
