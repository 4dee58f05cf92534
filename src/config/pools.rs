//! `[[pool]]` with its servers, and everything below it.

use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::document::{Located, Section};
use super::listeners::authorities;
use super::resolve::{Context, names_of};
use super::settings::{PoolSettings, Retry, ServerEntry, Timeouts};
use super::{Hosts, sessions, stateless};
use crate::affinity::{SameSite, Source, StickySettings};
use crate::balance::Balance;
use crate::headers;
use crate::health::{OutlierSettings, RiseFall};
use crate::names::HeldBy;
use crate::pool::{PinKind, PinRules, Queue, RetryBudget, ServerSettings, WhenUnavailable};
use crate::probe;
use crate::rate::Rate;
use crate::routing::Authority;
use crate::stateless::Carrier;
use crate::store;
use crate::tls::{ClientSettings, ServerName};
use crate::twin::{Discipline, LiveSettings};
use crate::upstream::{Address, TargetSettings};

/// Retries that are always allowed, however few requests are in flight.
const RETRY_FLOOR: u32 = 10;

pub(super) fn resolve(context: &Context<'_>, root: &Section<'_>, stores: &[store::Settings]) -> Vec<PoolSettings> {
    let sections = &root.sections("pool");
    let store_names = names_of(&root.sections("store"));
    context.check_unique("pool", &names_of(sections));
    let mut pools: Vec<PoolSettings> = Vec::new();
    for section in sections {
        let Some(pool) = pool(context, section, &store_names, stores) else { continue };
        check_cookie(context, section, &pools, &pool);
        pools.push(pool);
    }
    let shared: Vec<_> = pools.iter().map(|pool| pool.shared.clone()).collect();
    if shared.len() == sections.len() {
        sessions::check_realms(context, sections, &shared);
    }
    pools
}

/// A cookie means one thing: a pin, a session or a token; and one pool's pin is not another's.
fn check_cookie(context: &Context<'_>, section: &Section<'_>, earlier: &[PoolSettings], pool: &PoolSettings) {
    let Some((cookie, _)) = cookie_of(pool) else { return };
    if cookie == headers::ADMIN_COOKIE {
        let message = format!("`{cookie}` is the cookie of the admin surface");
        context.error(section.place("name"), message, "give the pool another `cookie`".to_owned());
    }
    let taken = earlier.iter().find(|other| {
        let both_share = other.shared.is_some() && pool.shared.is_some();
        let both_read = other.stateless.is_some() && pool.stateless.is_some();
        // Sessions of two realms have a check of their own, and tokens may be for several pools.
        other.name != pool.name && !both_share && !both_read && cookie_of(other).is_some_and(|(name, _)| name == cookie)
    });
    if let Some(other) = taken {
        let (_, key) = cookie_of(pool).unwrap_or_default();
        let message = format!("pools `{}` and `{}` would use one cookie name", other.name, pool.name);
        context.error(section.place("name"), message, format!("give each its own `{key}`"));
    }
}

/// The cookie that the proxy reads for a pool, and the key that names it.
fn cookie_of(pool: &PoolSettings) -> Option<(&str, &'static str)> {
    let pin = pool.sticky.as_ref().filter(|sticky| sticky.source == Source::Cookie);
    let session = pool.shared.as_ref().filter(|shared| shared.held_by == HeldBy::Proxy);
    let carrier = pool.stateless.as_ref().map(|stateless| &stateless.verify.carrier);
    match (pin, session, carrier) {
        (Some(pin), ..) => Some((&pin.cookie, "[pool.sticky] cookie")),
        (None, Some(session), _) => Some((&session.cookie, "[pool.shared] cookie")),
        (None, None, Some(Carrier::Cookie(name))) => Some((name, "[pool.stateless] carrier")),
        _ => None,
    }
}

fn pool(
    context: &Context<'_>,
    section: &Section<'_>,
    store_names: &[Located<String>],
    stores: &[store::Settings],
) -> Option<PoolSettings> {
    let name = section.text("name")?;
    if name.value == "-" || name.value.is_empty() {
        context.error(name.span.clone(), "a pool needs a name (and \"-\" stands for none in metrics)", None);
    }
    let mode = section.word("mode", |mode| Some(mode.to_owned())).unwrap_or_default();
    let sticky = mode == "sticky";
    let shared = mode == "shared";
    let tokens = mode == "stateless";
    for (key, owner) in [("sticky", sticky), ("shared", shared), ("stateless", tokens)] {
        if !owner && section.has(key) {
            let message = format!("`[pool.{key}]` is only for pools with `mode = \"{key}\"`");
            context.error(section.place(key), message, None);
        }
    }
    let host = section.text("host").and_then(|host| host_value(context, &host));
    let base = target(context, section);
    let servers = section.sections("server");
    context.check_unique("server", &names_of(&servers));
    let servers = servers.iter().filter_map(|server| server_entry(context, server, section, &base)).collect();
    let pool = PoolSettings {
        sticky: sticky.then(|| sticky_settings(context, &section.section("sticky"), section, &name.value)),
        shared: shared.then(|| sessions::shared(context, section, &name.value, store_names, stores)).flatten(),
        stateless: tokens.then(|| stateless::resolve(context, section, store_names, stores)).flatten(),
        pins: pin_rules(context, &section.section("sticky")),
        balance: section.word("balance", Balance::from_word).unwrap_or(Balance::P2c),
        health: probe_settings(context, section, host.clone()),
        host,
        debug_headers: section.flag("debug_headers"),
        servers,
        outlier: outlier(&section.section("outlier")),
        timeouts: timeouts(&section.section("timeouts")),
        retry: retry(&section.section("retry")),
        drain_deadline: section.section("drain").duration_if_any("deadline"),
        session_window: section.section("drain").duration("idle"),
        slow_start: slow_start(context, section),
        rebalance: rebalance(context, section),
        twin: twin(context, &section.section("twin")),
        has_twin: section.section("twin").flag("enabled"),
        name: name.value.as_str().into(),
    };
    Some(pool)
}

fn host_value(context: &Context<'_>, host: &Located<String>) -> Option<HeaderValue> {
    let value = Authority::parse(&host.value).and_then(|_| HeaderValue::try_from(&host.value).ok());
    if value.is_none() {
        context.error(host.span.clone(), format!("\"{}\" is no host", host.value), None);
    }
    value
}

fn sticky_settings(context: &Context<'_>, section: &Section<'_>, pool: &Section<'_>, name: &str) -> StickySettings {
    let cookie = section.text("cookie");
    let source = source(context, section, pool);
    let own = source == Source::Cookie;
    match &cookie {
        Some(cookie) => check_cookie_name(context, cookie, own),
        None if matches!(source, Source::Learned { .. } | Source::Suffix { .. }) => {
            let help = "name the application's session cookie: cookie = \"JSESSIONID\"".to_owned();
            context.error(section.place("source"), "this source needs `cookie`", help);
        }
        None => {}
    }
    let same_site = section.word("same_site", SameSite::from_word).unwrap_or(SameSite::Lax);
    let partitioned = section.flag("partitioned");
    if partitioned && same_site != SameSite::None {
        context.error(section.place("partitioned"), "`partitioned` needs `same_site = \"None\"`", None);
    }
    if !own {
        for key in ["absolute", "same_site", "partitioned", "persistent"].into_iter().filter(|key| section.has(key)) {
            context.error(
                section.place(key),
                format!("`{key}` is for `source = \"cookie\"`: no other is ours to write"),
                None,
            );
        }
    }
    StickySettings {
        source,
        cookie: cookie.map_or_else(|| StickySettings::default_cookie(name), |cookie| cookie.value).into(),
        idle: section.duration("idle"),
        absolute: section.duration("absolute"),
        same_site,
        partitioned,
        persistent: section.flag("persistent"),
    }
}

fn source(context: &Context<'_>, section: &Section<'_>, pool: &Section<'_>) -> Source {
    let word = section.word("source", |word| Some(word.to_owned())).unwrap_or_default();
    for (key, owner) in [("header", "header"), ("table", "learned")] {
        if section.has(key) && word != owner {
            let message = format!("`{key}` is for `source = \"{owner}\"`, and the source here is \"{word}\"");
            context.error(section.place(key), message, None);
        }
    }
    if section.has("cookie") && matches!(word.as_str(), "header" | "address") {
        context.error(section.place("cookie"), format!("`cookie` means nothing with `source = \"{word}\"`"), None);
    }
    match word.as_str() {
        "learned" => Source::Learned { most: section.number("table") },
        "suffix" => Source::Suffix { suffixes: suffixes(context, pool) },
        "header" => Source::Header(affinity_header(context, section)),
        "address" => Source::Address,
        _ => Source::Cookie,
    }
}

fn affinity_header(context: &Context<'_>, section: &Section<'_>) -> HeaderName {
    let written = section.text("header");
    let parsed = written.as_ref().and_then(|header| HeaderName::try_from(&header.value).ok());
    if parsed.is_none() {
        let message = if written.is_some() { "this is no header name" } else { "`source = \"header\"` needs `header`" };
        context.error(section.place("header"), message, "for example `header = \"X-User\"`".to_owned());
    }
    parsed.unwrap_or(http::header::FROM)
}

/// One suffix per server: its own, or its name.
fn suffixes(context: &Context<'_>, pool: &Section<'_>) -> Vec<Box<str>> {
    let of_server = |server: &Section<'_>| server.text("suffix").or_else(|| server.text("name"));
    let found: Vec<Located<String>> = pool.sections("server").iter().filter_map(of_server).collect();
    for (at, suffix) in found.iter().enumerate() {
        if found[..at].iter().any(|other| other.value == suffix.value) || suffix.value.contains('.') {
            let message = format!("\"{}\" cannot tell this server from the others", suffix.value);
            context.error(suffix.span.clone(), message, "a suffix of its own, without a dot".to_owned());
        }
    }
    found.into_iter().map(|suffix| suffix.value.into()).collect()
}

fn slow_start(context: &Context<'_>, pool: &Section<'_>) -> Option<Duration> {
    let section = pool.section("slow_start");
    let window = section.duration_if_any("window");
    if window.is_some() && pool.word("balance", Balance::from_word) == Some(Balance::Hash) {
        let message = "`window` means nothing with `balance = \"hash\"`: every key has its place at once";
        context.error(section.place("window"), message, None);
    }
    window
}

fn rebalance(context: &Context<'_>, pool: &Section<'_>) -> Option<Rate> {
    let (section, sticky) = (pool.section("rebalance"), pool.section("sticky"));
    let moves: u32 = section.number("moves_per_second");
    if moves == 0 {
        return None;
    }
    let soft = sticky.word("pin", |word| Some(word == "soft")).unwrap_or(false);
    let source = sticky.word("source", |word| Some(word.to_owned())).unwrap_or_default();
    if !soft {
        let help = "the state of a hard-pinned session lives on its server: `pin = \"soft\"`".to_owned();
        context.error(section.place("moves_per_second"), "`moves_per_second` is for soft pins", help);
    } else if !matches!(source.as_str(), "cookie" | "learned") {
        let message =
            format!("`moves_per_second` means nothing with `source = \"{source}\"`: what it says is not ours");
        context.error(section.place("moves_per_second"), message, None);
    }
    Some(Rate::new(moves, Duration::from_secs(1), 1))
}

/// How much traffic a twin's figures may be about.
const TWIN_WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3_600);

/// "auto" is no discipline: that is to be found out.
fn twin(context: &Context<'_>, section: &Section<'_>) -> LiveSettings {
    let window = section.duration("window");
    if !TWIN_WINDOW.contains(&window) {
        context.error(section.place("window"), "`window` is between 1 s and 1 h", None);
    }
    LiveSettings {
        window,
        events_per_second: section.number("events_per_second"),
        discipline: section.word("discipline", Discipline::from_word),
        warm_up: section.duration("warm_up"),
        store_round_trip: section.duration("store_round_trip"),
    }
}

fn pin_rules(context: &Context<'_>, section: &Section<'_>) -> PinRules {
    let soft = section.word("pin", |word| Some(word == "soft")).unwrap_or(false);
    if section.has("margin") && !soft {
        context.error(section.place("margin"), "`margin` is for `pin = \"soft\"`", None);
    }
    if section.has("queue") && soft {
        context.error(section.place("queue"), "`queue` is for `pin = \"hard\"`: a soft pin does not wait", None);
    }
    if section.has("when_unavailable") && soft {
        context.error(
            section.place("when_unavailable"),
            "`when_unavailable` is for `pin = \"hard\"`: a soft pin moves",
            None,
        );
    }
    let queue = section.section("queue");
    PinRules {
        kind: if soft { PinKind::Soft { margin: section.number("margin") } } else { PinKind::Hard },
        when_unavailable: section.word("when_unavailable", WhenUnavailable::from_word).unwrap_or_default(),
        queue: Queue { length: queue.number("length"), timeout: queue.duration("timeout") },
    }
}

/// A token (RFC 6265, section 4.1.1); and the prefix is spelt right or not meant.
fn check_cookie_name(context: &Context<'_>, cookie: &Located<String>, own: bool) {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if cookie.value.is_empty() || cookie.value == "__Host-" || !cookie.value.bytes().all(legal) {
        context.error(cookie.span.clone(), format!("\"{}\" is no cookie name", cookie.value), None);
    } else if own && !cookie.value.starts_with("__Host-") {
        let help = format!("over TLS only a prefixed name is safe from being planted: \"__Host-{}\"", cookie.value);
        context.error(cookie.span.clone(), "the pin cookie's name must begin with `__Host-`", help);
    }
}

/// What the servers' targets have in common.
struct TargetBase {
    tls: Option<(Option<Located<String>>, ClientSettings)>,
    http2: bool,
    connect_timeout: Duration,
    keep_alive: Duration,
    idle_connections: usize,
}

fn target(context: &Context<'_>, pool: &Section<'_>) -> TargetBase {
    let http2 = pool.section("http").word("version", |version| Some(version == "2")).unwrap_or(false);
    let tls = pool.section("tls");
    let ca = tls.text("ca").filter(|_| tls.is_written());
    let client = ca.and_then(|path| authorities(context, &path)).unwrap_or_default();
    let client = ClientSettings { verify: tls.flag("verify"), ca: client, http2 };
    if tls.is_written() && !client.verify && tls.has("ca") {
        context.error(tls.place("verify"), "`verify = false` and `ca` exclude each other", None);
    }
    let timeouts = pool.section("timeouts");
    TargetBase {
        tls: tls.is_written().then(|| (tls.text("server_name"), client)),
        http2,
        connect_timeout: timeouts.duration("connect"),
        keep_alive: timeouts.duration("keep_alive"),
        idle_connections: pool.section("connections").number("idle"),
    }
}

fn server_entry(
    context: &Context<'_>,
    section: &Section<'_>,
    pool: &Section<'_>,
    base: &TargetBase,
) -> Option<ServerEntry> {
    let name = section.text("name")?;
    if name.value == "-" || name.value.is_empty() {
        context.error(name.span.clone(), "a server needs a name (and \"-\" stands for none in metrics)", None);
    }
    let written = section.text("address")?;
    let Some(address) = parse_address(&written.value) else {
        let help = "host:port, as \"10.0.0.11:8080\", or \"unix:/path\"".to_owned();
        context.error(written.span, format!("\"{}\" is no server address", written.value), help);
        return None;
    };
    let tls = match &base.tls {
        None => None,
        Some((configured, client)) => {
            Some((certificate_name(context, configured.as_ref(), &address, pool)?, client.clone()))
        }
    };
    let entry = ServerEntry {
        settings: ServerSettings {
            name: name.value.as_str().into(),
            weight: section.number("weight"),
            max_requests: section.number("max_requests"),
            backup: section.flag("backup"),
        },
        capacity: section.number("capacity"),
        addresses: resolve_name(context, &address, &written),
        target: TargetSettings {
            address,
            tls,
            http2: base.http2,
            connect_timeout: base.connect_timeout,
            keep_alive: base.keep_alive,
            idle_connections: base.idle_connections,
        },
    };
    Some(entry)
}

fn parse_address(text: &str) -> Option<Address> {
    if let Some(path) = text.strip_prefix("unix:") {
        return (!path.is_empty()).then(|| Address::Unix(path.into()));
    }
    let parsed = Authority::parse(text)?;
    let host = parsed.host.trim_matches(['[', ']']);
    Some(Address::Tcp { host: host.into(), port: parsed.port.filter(|port| *port > 0)? })
}

fn certificate_name(
    context: &Context<'_>,
    configured: Option<&Located<String>>,
    address: &Address,
    pool: &Section<'_>,
) -> Option<ServerName<'static>> {
    let (name, span) = match (configured, address) {
        (Some(name), _) => (name.value.clone(), name.span.clone()),
        (None, Address::Tcp { host, .. }) => (host.to_string(), pool.place("tls")),
        (None, Address::Unix(_)) => {
            context.error(pool.place("tls"), "TLS over a Unix socket needs `[pool.tls] server_name`", None);
            return None;
        }
    };
    let parsed = ServerName::try_from(name.clone());
    parsed.map_err(|_| context.error(span, format!("\"{name}\" is no name of a server's certificate"), None)).ok()
}

/// Names are resolved when the file is read, so that a misspelt one is found by `check`.
fn resolve_name(context: &Context<'_>, address: &Address, written: &Located<String>) -> Vec<SocketAddr> {
    let (Address::Tcp { host, port }, Hosts::Resolved(known)) = (address, context.hosts) else { return Vec::new() };
    match (&**host, *port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) if known.contains(&**host) => {
            let message = format!("`{host}` cannot be resolved now, and keeps its addresses: {error}");
            context.problems.warn(written.span.clone(), message, None);
            Vec::new()
        }
        Err(error) => {
            context.error(written.span.clone(), format!("`{host}` cannot be resolved: {error}"), None);
            Vec::new()
        }
    }
}

fn probe_settings(context: &Context<'_>, pool: &Section<'_>, host: Option<HeaderValue>) -> Option<probe::Settings> {
    let section = &pool.section("health");
    let path = section.text("path");
    let kind = section.word("type", |kind| Some(kind.to_owned()));
    let kind = kind.unwrap_or_else(|| if path.is_some() { "http" } else { "tcp" }.to_owned());
    if kind != "http" {
        for key in ["path", "expect"].into_iter().filter(|key| section.has(key)) {
            let message = format!("`{key}` is for `type = \"http\"`, and the type here is \"{kind}\"");
            context.error(section.place(key), message, None);
        }
    }
    if kind == "off" {
        for key in ["interval", "timeout", "rise", "fall"].into_iter().filter(|key| section.has(key)) {
            context.error(section.place(key), format!("`{key}` means nothing with `type = \"off\"`"), None);
        }
    }
    let kind = match kind.as_str() {
        "off" => return None,
        "tcp" => probe::Kind::Tcp,
        _ => probe::Kind::Http { path: probe_path(context, path, section), host, expect: expected(context, section) },
    };
    let drain = pool.section("drain");
    Some(probe::Settings {
        drain_deadline: drain.duration_if_any("deadline"),
        session_window: drain.duration("idle"),
        kind,
        interval: section.duration("interval"),
        timeout: section.duration("timeout"),
        limits: RiseFall { rise: section.number("rise"), fall: section.number("fall") },
    })
}

fn probe_path(context: &Context<'_>, path: Option<Located<String>>, section: &Section<'_>) -> Box<str> {
    match path {
        Some(path) if path.value.parse::<http::uri::PathAndQuery>().is_ok() && path.value.starts_with('/') => {
            path.value.into()
        }
        Some(path) => {
            context.error(path.span, format!("\"{}\" is no path", path.value), None);
            "/".into()
        }
        None => {
            context.error(section.span.clone(), "`type = \"http\"` needs a `path`", None);
            "/".into()
        }
    }
}

/// "200-399", "200,204".
fn expected(context: &Context<'_>, section: &Section<'_>) -> Vec<RangeInclusive<u16>> {
    let Some(text) = section.text("expect") else { return Vec::new() };
    let status = |text: &str| text.trim().parse::<u16>().ok().filter(|status| (100..=599).contains(status));
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => Some(status(first)?..=status(last)?),
        None => status(part).map(|status| status..=status),
    };
    let ranges: Option<Vec<_>> = text.value.split(',').map(range).collect();
    ranges.unwrap_or_else(|| {
        let help = "status codes and ranges, as \"200-399\" or \"200,204\"".to_owned();
        context.error(text.span, format!("\"{}\" names no status codes", text.value), help);
        Vec::new()
    })
}

fn outlier(section: &Section<'_>) -> OutlierSettings {
    OutlierSettings {
        consecutive_failures: section.number("consecutive_failures"),
        ejection: section.duration("ejection"),
        max_ejected: section.percent("max_ejected"),
    }
}

fn timeouts(section: &Section<'_>) -> Timeouts {
    Timeouts {
        first_byte: section.duration_if_any("first_byte"),
        between_bytes: section.duration_if_any("between_bytes"),
        tunnel_idle: section.duration_if_any("tunnel_idle"),
    }
}

fn retry(section: &Section<'_>) -> Retry {
    Retry {
        attempts: section.number("attempts"),
        body_bytes: usize::try_from(section.size("body_bytes")).unwrap_or(usize::MAX),
        budget: RetryBudget { share: section.percent("budget"), floor: RETRY_FLOOR },
    }
}
