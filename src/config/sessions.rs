//! Stores, what pools keep in them, and where servers may ask for it.

use std::time::Duration;

use http::HeaderValue;

use super::document::{Located, Section};
use super::listeners;
use super::resolve::{Context, names_of, private_address, secret};
use super::settings::{Process, SessionApi, SharedSettings};
use crate::headers;
use crate::names::{HeldBy, OnStoreError};
use crate::private::Address;
use crate::protect;
use crate::session::vault::{LoginWhen, MOST_COOKIES};
use crate::session::{OnReuse, Rules};
use crate::store::{self, BreakerSettings, MemcachedNode, MemcachedSettings, RedisSettings};

/// The stores of the file.
pub(super) fn stores(context: &Context<'_>, root: &Section<'_>) -> Vec<store::Settings> {
    let sections = root.sections("store");
    context.check_unique("store", &names_of(&sections));
    let has_ring = root.section("keys").has("ring");
    sections.iter().filter_map(|section| store(context, section, has_ring)).collect()
}

fn store(context: &Context<'_>, section: &Section<'_>, has_ring: bool) -> Option<store::Settings> {
    let name = section.text("name")?;
    let kind = section.word("kind", |kind| Some(kind.to_owned())).unwrap_or_default();
    for (keys, owner) in [
        (&["path", "memory"][..], "embedded"),
        (&["url", "sentinel", "cluster", "tls", "username", "password", "ca"], "redis"),
        (&["nodes"], "memcached"),
    ] {
        for key in keys.iter().filter(|key| kind != owner && section.has(key)) {
            let message = format!("`{key}` is for `kind = \"{owner}\"`, and the kind here is \"{kind}\"");
            context.error(section.place(key), message, None);
        }
    }
    for key in ["connect", "timeout", "near_cache", "breaker"] {
        if kind == "embedded" && section.has(key) {
            let message = format!("`{key}` is for stores on the network, and the kind here is \"embedded\"");
            context.error(section.place(key), message, None);
        }
    }
    // Every problem is to be found, also where there will be no store.
    let near_cache = near_cache(context, section);
    if kind != "embedded" && !has_ring {
        let help = "`steadfast key` prints a key; every proxy of the store has the same: `[keys] ring`".to_owned();
        context.error(section.place("kind"), "a store that proxies share needs a key ring that they share", help);
    }
    let kind = match kind.as_str() {
        "redis" => store::KindSettings::Redis(redis(context, section)?),
        "memcached" => store::KindSettings::Memcached(memcached(context, section)?),
        _ => store::KindSettings::Embedded {
            path: section.text("path").map(|path| context.data_path(&path)),
            memory: bytes(section, "memory"),
        },
    };
    let most_bytes = bytes(section, "max_bytes");
    if matches!(kind, store::KindSettings::Memcached(_)) && most_bytes > MOST_IN_MEMCACHED {
        let message = "`max_bytes` is at most \"1000KiB\" with memcached, which takes no larger records";
        context.error(section.place("max_bytes"), message, None);
    }
    let breaker = section.section("breaker");
    Some(store::Settings {
        name: name.value.into(),
        kind,
        near_cache,
        breaker: BreakerSettings {
            failures: breaker.number("failures"),
            within: breaker.duration("within"),
            probe: breaker.duration("probe"),
        },
        most_bytes,
    })
}

/// Data of a session that memcached takes as it is configured by default; the rest of a MiB is for what goes along.
const MOST_IN_MEMCACHED: usize = 1_000 << 10;

fn bytes(section: &Section<'_>, key: &str) -> usize {
    usize::try_from(section.size(key)).unwrap_or(usize::MAX)
}

fn near_cache(context: &Context<'_>, section: &Section<'_>) -> Duration {
    let span = section.duration("near_cache");
    if span > Duration::from_secs(1) {
        let message = "`near_cache` is at most \"1s\": for so long a logout elsewhere is not noticed";
        context.error(section.place("near_cache"), message, None);
    }
    span
}

/// Exactly one of `url`, `sentinel` and `cluster`.
fn redis_place(context: &Context<'_>, section: &Section<'_>) -> Option<RedisSettings> {
    let written: Vec<&str> = ["url", "sentinel", "cluster"].into_iter().filter(|key| section.has(key)).collect();
    let parsed = match written.as_slice() {
        ["url"] => {
            if section.has("tls") {
                let help = "`rediss://` in the `url`".to_owned();
                context.error(section.place("tls"), "`tls` is for `sentinel` and `cluster`", help);
            }
            section.text("url").map(|url| RedisSettings::parse_url(&url.value))
        }
        ["sentinel"] => {
            let sentinel = section.section("sentinel");
            let master = sentinel.text("master")?;
            Some(RedisSettings::sentinel(&master.value, &plain(&sentinel.texts("nodes"))))
        }
        [_] => Some(RedisSettings::cluster(&plain(&section.texts("cluster")))),
        [] => {
            let help = "for example `url = \"redis://127.0.0.1:6379\"`, or `sentinel`, or `cluster`".to_owned();
            context.error(section.place("kind"), "`kind = \"redis\"` needs a place", help);
            None
        }
        [one, other, ..] => {
            context.error(section.place(other), format!("`{one}` and `{other}` exclude each other"), None);
            None
        }
    };
    let place = written.first().map(|key| section.place(key)).unwrap_or_default();
    let mut settings = parsed?.map_err(|error| context.error(place, error.to_string(), None)).ok()?;
    settings.tls |= section.flag("tls");
    Some(settings)
}

fn plain(texts: &[Located<String>]) -> Vec<&str> {
    texts.iter().map(|text| text.value.as_str()).collect()
}

fn memcached(context: &Context<'_>, section: &Section<'_>) -> Option<MemcachedSettings> {
    let written = section.texts("nodes");
    let nodes = written.iter().filter_map(|text| {
        let parsed = MemcachedNode::parse(&text.value);
        parsed.map_err(|error| context.error(text.span.clone(), format!("\"{}\": {error}", text.value), None)).ok()
    });
    let nodes: Vec<MemcachedNode> = nodes.collect();
    if written.is_empty() {
        let help = "for example `nodes = [\"10.0.0.1:11211\"]`".to_owned();
        context.error(section.place("kind"), "`kind = \"memcached\"` needs `nodes`", help);
        return None;
    }
    let (connect, timeout) = (section.duration("connect"), section.duration("timeout"));
    Some(MemcachedSettings { nodes, connect, timeout })
}

fn redis(context: &Context<'_>, section: &Section<'_>) -> Option<RedisSettings> {
    let mut settings = redis_place(context, section)?;
    settings.username = section.text("username").map(|name| name.value);
    settings.password =
        section.text("password").and_then(|text| secret(context, &text)).map(|word| word.trim().to_owned());
    if let Some(ca) = section.text("ca") {
        if !settings.tls {
            context.error(ca.span.clone(), "`ca` is for `rediss://` URLs and `tls = true`", None);
        }
        let path = context.path(&ca.value);
        let read = std::fs::read(&path);
        let read = read.map_err(|error| {
            context.error(ca.span.clone(), format!("cannot read {}: {error}", path.display()), None);
        });
        settings.ca_pem = read.ok();
    }
    settings.connect = section.duration("connect");
    settings.timeout = section.duration("timeout");
    Some(settings)
}

/// `[pool.shared]` of a pool with `mode = "shared"`.
pub(super) fn shared(
    context: &Context<'_>,
    pool: &Section<'_>,
    name: &str,
    stores: &[Located<String>],
    all: &[store::Settings],
) -> Option<SharedSettings> {
    let section = pool.section("shared");
    let held_by = section.word("held_by", HeldBy::from_word).unwrap_or(HeldBy::Proxy);
    let cookie = section.text("cookie");
    if held_by == HeldBy::Application {
        return by_application(context, &section, cookie, name);
    }
    let Some(named) = section.text("store") else {
        let help = "name a `[[store]]`: store = \"main\"".to_owned();
        context.error(section.place("store"), "a shared pool needs a `store`", help);
        return None;
    };
    let store = context.reference("store", &named, stores)?;
    let cookie = cookie.unwrap_or_else(|| Located { value: DEFAULT_COOKIE.to_owned(), span: section.span.clone() });
    if !cookie.value.starts_with("__Host-") || cookie.value.len() < 9 || !is_token(&cookie.value) {
        let help = format!("as `{DEFAULT_COOKIE}`: over TLS only a prefixed name is safe from being planted");
        context.error(cookie.span.clone(), format!("\"{}\" is no name for a session cookie", cookie.value), help);
    }
    let realm = section.text("realm").map_or_else(|| name.to_owned(), |realm| realm.value);
    let cookie_name: Box<str> = cookie.value.into();
    Some(SharedSettings {
        held_by,
        store,
        realm: realm.into(),
        rules: rules(context, &section, all.get(store).map_or(64 * 1024, |store| store.most_bytes)),
        inline_bytes: bytes(&section, "inline_bytes"),
        on_store_error: section.word("on_store_error", OnStoreError::from_word).unwrap_or(OnStoreError::Fail),
        clear_site_data: clear_site_data(context, &section),
        tunnel_recheck: section.duration("tunnel_recheck"),
        login_when: login_when(context, &section),
        vault: vault(context, &section, &cookie_name),
        cookie: cookie_name,
    })
}

/// Names of cookies that are kept here.
fn vault(context: &Context<'_>, shared: &Section<'_>, own: &str) -> Vec<Box<str>> {
    let names = shared.texts("vault");
    for (at, name) in names.iter().enumerate() {
        let text = name.value.as_str();
        let message = if text.is_empty() || !is_token(text) || text.starts_with('$') {
            format!("\"{text}\" is no name of a cookie")
        } else if [own, headers::ADMIN_COOKIE].iter().any(|ours| protect::is_alias(text.as_bytes(), ours.as_bytes())) {
            format!("`{text}` is the proxy's own cookie, or may be taken for it")
        } else if names[..at].iter().any(|other| other.value == text) {
            format!("`{text}` is there twice")
        } else {
            continue;
        };
        context.error(name.span.clone(), message, None);
    }
    if names.len() > MOST_COOKIES {
        let message = format!("a session keeps at most {MOST_COOKIES} cookies");
        context.error(shared.place("vault"), message, None);
    }
    names.into_iter().map(|name| name.value.into()).collect()
}

/// A login that is seen from outside.
fn login_when(context: &Context<'_>, shared: &Section<'_>) -> Option<LoginWhen> {
    let section = shared.section("login_when");
    if !section.is_written() {
        return None;
    }
    let path = section.text("path")?;
    let normal = crate::routing::normalise(&path.value);
    if !normal.is_ok_and(|normal| normal == path.value) {
        context.error(path.span, format!("\"{}\" is no path in its normal form", path.value), None);
    }
    let method = section.text("method")?;
    if method.value.bytes().any(|byte| byte.is_ascii_lowercase()) {
        let help = format!("\"{}\": methods are told apart by case", method.value.to_ascii_uppercase());
        context.error(method.span.clone(), format!("no request has the method \"{}\"", method.value), help);
    }
    if section.is_empty_list("status") {
        context.error(section.place("status"), "`status` is empty: no login would be seen", None);
    }
    if shared.texts("vault").is_empty() {
        let help = "name the cookies of the framework: vault = [\"sessionid\"]".to_owned();
        context.error(section.span.clone(), "`login_when` is for pools with a `vault`", help);
    }
    let parsed = http::Method::from_bytes(method.value.as_bytes());
    let parsed = parsed.map_err(|_| context.error(method.span, format!("\"{}\" is no method", method.value), None));
    let cookie_changed = section.text("cookie_changed");
    if let Some(name) = &cookie_changed
        && !shared.texts("vault").iter().any(|kept| kept.value == name.value)
    {
        let message = format!("`{}` is no cookie of `vault`", name.value);
        context.error(name.span.clone(), message, "only those are seen to change".to_owned());
    }
    Some(LoginWhen {
        path: path.value.into(),
        method: parsed.ok()?,
        status: section.numbers("status"),
        cookie_changed: cookie_changed.map(|name| name.value.into()),
    })
}

const DEFAULT_COOKIE: &str = "__Host-Http-session";

fn is_token(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// The application keeps its own sessions: they are only counted, by its cookie.
fn by_application(
    context: &Context<'_>,
    section: &Section<'_>,
    cookie: Option<Located<String>>,
    name: &str,
) -> Option<SharedSettings> {
    let ours = [
        "store",
        "realm",
        "profile",
        "idle",
        "absolute",
        "anonymous",
        "renew",
        "grace",
        "on_reuse",
        "carry",
        "inline_bytes",
        "on_store_error",
        "clear_site_data",
        "tunnel_recheck",
        "vault",
        "login_when",
    ];
    for key in ours.into_iter().filter(|key| section.has(key)) {
        let message = format!("`{key}` means nothing with `held_by = \"application\"`: its sessions are not ours");
        context.error(section.place(key), message, None);
    }
    let Some(cookie) = cookie else {
        let help = "name the application's session cookie: cookie = \"JSESSIONID\"".to_owned();
        context.error(section.place("held_by"), "`held_by = \"application\"` needs `cookie`", help);
        return None;
    };
    Some(SharedSettings {
        held_by: HeldBy::Application,
        store: usize::MAX,
        realm: name.into(),
        cookie: cookie.value.into(),
        rules: rules(context, section, 0),
        inline_bytes: 0,
        on_store_error: OnStoreError::Fail,
        clear_site_data: None,
        tunnel_recheck: Duration::from_secs(30),
        vault: Vec::new(),
        login_when: None,
    })
}

/// The clocks of a profile (NIST SP 800-63B, section 2 of each level's reauthentication).
const PROFILES: [(&str, [u64; 4]); 3] = [
    // idle, absolute, anonymous, renew; in minutes
    ("aal1", [24 * 60, 30 * 24 * 60, 24 * 60, 60]),
    ("aal2", [60, 24 * 60, 24 * 60, 15]),
    ("aal3", [15, 12 * 60, 60, 5]),
];

fn rules(context: &Context<'_>, section: &Section<'_>, most_bytes: usize) -> Rules {
    let word = section.word("profile", |word| Some(word.to_owned()));
    let profile = word.and_then(|word| PROFILES.iter().find(|(name, _)| *name == word));
    let clock = |at: usize, key: &str| match profile {
        Some((_, minutes)) if !section.has(key) => Duration::from_secs(minutes[at] * 60),
        _ => section.duration(key),
    };
    let rules = Rules {
        idle: clock(0, "idle"),
        absolute: clock(1, "absolute"),
        anonymous: clock(2, "anonymous"),
        renew: clock(3, "renew"),
        grace: section.duration("grace"),
        on_reuse: section.word("on_reuse", OnReuse::from_word).unwrap_or(OnReuse::Kill),
        carry: carry(section),
        most_bytes,
    };
    if rules.idle > rules.absolute {
        context.error(section.place("idle"), "`idle` is longer than `absolute`", None);
    }
    rules
}

/// Keys that survive a login; "*": all.
fn carry(section: &Section<'_>) -> Option<Vec<Box<str>>> {
    let keys = section.texts("carry");
    if keys.iter().any(|key| key.value == "*") {
        return None;
    }
    Some(keys.into_iter().map(|key| key.value.into()).collect())
}

fn clear_site_data(context: &Context<'_>, section: &Section<'_>) -> Option<HeaderValue> {
    let words = section.texts("clear_site_data");
    let known = ["cache", "cookies", "storage", "executionContexts", "*"];
    for word in words.iter().filter(|word| !known.contains(&word.value.as_str())) {
        let help = format!("one of {}", known.join(", "));
        context.error(word.span.clone(), format!("\"{}\" is nothing that can be cleared", word.value), help);
    }
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{}\"", word.value)).collect();
    (!quoted.is_empty()).then(|| HeaderValue::try_from(quoted.join(", ")).ok()).flatten()
}

/// One realm has one store; two realms under one host need cookies of their own.
pub(super) fn check_realms(context: &Context<'_>, sections: &[Section<'_>], pools: &[Option<SharedSettings>]) {
    for (at, one) in pools.iter().enumerate() {
        let Some(one) = one.as_ref().filter(|one| one.held_by == HeldBy::Proxy) else { continue };
        for other in pools[..at].iter().flatten().filter(|other| other.held_by == HeldBy::Proxy) {
            let place = sections[at].place("shared");
            if one.realm == other.realm && one.store != other.store {
                let message = format!("the realm `{}` is in two stores", one.realm);
                context.error(place, message, "pools of one realm share their sessions: one store".to_owned());
            } else if one.realm == other.realm && one.rules != other.rules {
                let message = format!("pools of the realm `{}` have different rules for their sessions", one.realm);
                let help = "they share their sessions: give them the same `profile`, `idle`, `absolute` and so on";
                context.error(place, message, help.to_owned());
            } else if one.realm != other.realm && one.cookie == other.cookie {
                let message = format!("the realms `{}` and `{}` would use one cookie name", other.realm, one.realm);
                context.error(place, message, "give each its own `[pool.shared] cookie`, or one `realm`".to_owned());
            }
        }
    }
}

/// Over plain http there are no sessions, but on localhost: their cookies could be read and planted on the way.
pub(super) fn check_listeners(context: &Context<'_>, listeners: &[Section<'_>], process: &Process) {
    // Who is trusted may say that the browser sees https.
    if !process.trusted_proxies.is_empty() {
        return;
    }
    for listener in listeners.iter().filter(|listener| !listener.has("tls") && !listener.has("redirect")) {
        let help = "give it `[listener.tls]` or `redirect = \"https\"`; behind a proxy that does TLS, name that in `trusted_proxies`";
        let message = "over plain http a shared pool has no sessions, except on localhost";
        context.problems.warn(listener.place("address"), message, Some(help.to_owned()));
    }
}

/// `[session_api]`.
pub(super) fn session_api(context: &Context<'_>, root: &Section<'_>, has_shared: bool) -> Option<SessionApi> {
    let section = root.section("session_api");
    if !section.is_written() {
        return None;
    }
    if !has_shared {
        let help = "it is for pools with `mode = \"shared\"`, whose servers ask it".to_owned();
        context.error(section.span.clone(), "`[session_api]` has no pool to serve", help);
    }
    let address = private_address(context, &section)?;
    let tls = section.section("tls");
    if let Address::Tcp(tcp) = &address
        && !tcp.ip().is_loopback()
        && !tls.is_written()
    {
        let help = "a loopback address, \"unix:PATH\", or `tls`".to_owned();
        context.error(section.place("address"), "the session API would be spoken in the clear", help);
    }
    let advertise = section.text("advertise").map(|text| text.value);
    let tls = tls.is_written().then(|| listeners::simple_tls(context, &tls)).flatten();
    let own = match &address {
        Address::Tcp(tcp) => format!("{}://{tcp}", if tls.is_some() { "https" } else { "http" }),
        Address::Unix(path) => format!("unix:{}", path.display()),
    };
    Some(SessionApi { advertise: advertise.unwrap_or(own).into(), address, tls })
}
