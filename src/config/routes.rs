//! `[[route]]`.

use http::StatusCode;

use super::document::{Located, Section};
use super::resolve::{Context, names_of};
use super::settings::{Action, Route, RouteRate};
use super::{headers, protect};
use crate::names::{Csrf, RateBy, SessionNeed};
use crate::rate::Rate;
use crate::routing::{HostPattern, RouteMatch, RouteTable, prefix};

pub(super) fn resolve(context: &Context<'_>, root: &Section<'_>) -> Vec<Route> {
    let listener_names = names_of(&root.sections("listener"));
    let pools = root.sections("pool");
    let pool_names = names_of(&pools);
    let sections = root.sections("route");
    let resolved = sections.iter().filter_map(|section| {
        let route = route(context, section, &listener_names, &pool_names, &pools)?;
        Some((section, route))
    });
    let (sections, routes): (Vec<_>, Vec<_>) = resolved.unzip();
    check_equal(context, &sections, &routes);
    check_logins(context, &sections, &routes);
    check_seen_logins(context, &sections, &routes, &pools);
    check_unused(context, &pool_names, &routes);
    routes
}

/// What means nothing where nothing is forwarded.
const FOR_POOLS: [&str; 10] = [
    "strip_prefix",
    "request_headers",
    "sticky",
    "body_bytes",
    "rate",
    "csrf",
    "protect_safe",
    "session",
    "require",
    "login_url",
];

fn route(
    context: &Context<'_>,
    section: &Section<'_>,
    listeners: &[Located<String>],
    pool_names: &[Located<String>],
    pools: &[Section<'_>],
) -> Option<Route> {
    let action = action(context, section, pool_names);
    let matches = route_match(context, section, listeners);
    let request_headers = headers::resolve(context, &section.section("request_headers"));
    let response_headers = headers::resolve(context, &section.section("response_headers"));
    if matches!(action, Some(Action::Respond { .. } | Action::Redirect(_))) {
        for key in FOR_POOLS.into_iter().filter(|key| section.has(key)) {
            let message = format!("`{key}` is for routes with a `pool`: nothing is forwarded here");
            context.error(section.place(key), message, None);
        }
    }
    let pool = match &action {
        Some(Action::Pool(pool)) => pools.get(*pool),
        _ => None,
    };
    let knows_sessions = |pool: &Section<'_>| {
        let is_sticky = pool.word("mode", |mode| Some(mode == "sticky")).unwrap_or(false);
        let source = pool.section("sticky").word("source", |source| Some(source.to_owned()));
        is_sticky && source.is_some_and(|source| matches!(source.as_str(), "cookie" | "learned"))
    };
    let knows_sessions = section.flag("sticky") && pool.is_some_and(knows_sessions);
    let keeps = |pool: &Section<'_>| {
        let is_shared = pool.word("mode", |mode| Some(mode == "shared")).unwrap_or(false);
        let is_stateless = pool.word("mode", |mode| Some(mode == "stateless")).unwrap_or(false);
        let by_proxy = pool.section("shared").word("held_by", |word| Some(word == "proxy")).unwrap_or(true);
        is_stateless || (is_shared && by_proxy)
    };
    for key in ["session", "login_url", "require"].into_iter().filter(|key| section.has(key)) {
        if pool.is_some_and(|pool| !keeps(pool)) {
            let help = "`mode = \"shared\"` or `mode = \"stateless\"`".to_owned();
            let message = format!("`{key}` is for routes to pools where the proxy knows who asks");
            context.error(section.place(key), message, help);
        }
    }
    let session = section.word("session", SessionNeed::from_word).unwrap_or(SessionNeed::Optional);
    let matches = matches?;
    let host = section.text("host").map_or_else(|| "*".to_owned(), |host| host.value);
    Some(Route {
        label: format!("{host}{}", matches.path).into(),
        matches,
        action: action?,
        strip_prefix: section.flag("strip_prefix"),
        request_headers,
        response_headers,
        body_bytes: section.size("body_bytes"),
        sticky: section.flag("sticky"),
        rate: rate(context, section, knows_sessions),
        session,
        login_url: login_url(context, section),
        csrf: section.word("csrf", Csrf::from_word).filter(|_| section.has("csrf")),
        protect_safe: section.flag("protect_safe"),
        require: protect::require(context, section),
    })
}

/// A path of the same host, or a URL.
fn login_url(context: &Context<'_>, section: &Section<'_>) -> Option<Box<str>> {
    let text = section.text("login_url")?;
    let is_path = text.value.starts_with('/') && !text.value.starts_with("//");
    let is_url = |uri: &http::Uri| matches!(uri.scheme_str(), Some("https" | "http")) && uri.authority().is_some();
    let is_plain = text.value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    let fits = is_plain && text.value.parse::<http::Uri>().is_ok_and(|uri| is_path || is_url(&uri));
    if !fits {
        let help = "a path, as \"/login\", or a URL".to_owned();
        context.error(text.span, format!("\"{}\" is no place to log in", text.value), help);
    }
    Some(text.value.into())
}

fn rate(context: &Context<'_>, route: &Section<'_>, knows_sessions: bool) -> Option<RouteRate> {
    let section = route.section("rate");
    let by = section.word("by", RateBy::from_word).unwrap_or(RateBy::Client);
    if section.is_written() && by == RateBy::Session && !knows_sessions {
        let help = "a sticky pool with `source` \"cookie\" or \"learned\" (others a client can make up), and `sticky = true` here; \
                    or `by = \"client\"`";
        context.error(section.place("by"), "`by = \"session\"` needs a pool that knows sessions", help.to_owned());
    }
    let requests: u32 = section.number("requests");
    let burst = if section.has("burst") { section.number("burst") } else { requests };
    let rate = Rate::new(requests, section.duration("per"), burst);
    if rate.is_beyond_measure(burst) {
        let help = "a smaller `burst`, or a shorter `per`".to_owned();
        context.error(section.place("burst"), "this burst takes longer to come back than any clock runs", help);
    }
    section.is_written().then_some(RouteRate { rate, by })
}

fn route_match(context: &Context<'_>, section: &Section<'_>, listeners: &[Located<String>]) -> Option<RouteMatch> {
    let host = match section.text("host") {
        None => Some(HostPattern::Any),
        Some(text) => {
            let parsed = HostPattern::parse(&text.value);
            if parsed.is_none() {
                let help =
                    "\"shop.example.com\", \"*.example.com\", or leave it out; ports do not matter here".to_owned();
                context.error(text.span, format!("\"{}\" is no host", text.value), help);
            }
            parsed
        }
    };
    let path = section.text("path").and_then(|text| {
        let parsed = prefix(&text.value);
        parsed.map_err(|_| context.error(text.span, format!("\"{}\" is no path", text.value), None)).ok()
    });
    if section.is_empty_list("listeners") {
        context.error(section.place("listeners"), "the route takes no listener", "leave it out: any".to_owned());
    }
    let named = section.texts("listeners");
    let positions: Vec<usize> =
        named.iter().filter_map(|name| context.reference("listener", name, listeners)).collect();
    Some(RouteMatch { host: host?, path: path?, listeners: section.has("listeners").then_some(positions) })
}

/// Exactly one of `pool`, `respond` and `redirect_to`.
fn action(context: &Context<'_>, section: &Section<'_>, pools: &[Located<String>]) -> Option<Action> {
    let written: Vec<&str> = ["pool", "respond", "redirect_to"].into_iter().filter(|key| section.has(key)).collect();
    match written.as_slice() {
        [] => {
            let help = "give it a `pool`, a `respond` or a `redirect_to`".to_owned();
            context.error(section.span.clone(), "the route does nothing", help);
            None
        }
        ["pool"] => section.text("pool").and_then(|name| context.reference("pool", &name, pools)).map(Action::Pool),
        ["respond"] => {
            let respond = section.section("respond");
            let status = StatusCode::from_u16(respond.number("status")).ok()?;
            let body = respond.text("body").map(|text| text.value).unwrap_or_default();
            Some(Action::Respond { status, body: body.into() })
        }
        [_] => section.text("redirect_to").and_then(|to| redirect(context, &to)),
        [one, other, ..] => {
            context.error(section.place(other), format!("`{one}` and `{other}` exclude each other"), None);
            None
        }
    }
}

fn redirect(context: &Context<'_>, to: &Located<String>) -> Option<Action> {
    let uri = to.value.parse::<http::Uri>().ok();
    let usable = uri.is_some_and(|uri| uri.scheme().is_some() && uri.authority().is_some() && uri.query().is_none());
    if !usable {
        let help = "scheme, host and perhaps a path, as \"https://new.example.com\"".to_owned();
        context.error(to.span.clone(), format!("\"{}\" is no URL to redirect to", to.value), help);
    }
    usable.then(|| Action::Redirect(to.value.trim_end_matches('/').into()))
}

/// The way to a login has to be used somewhere, and must not lead back to itself.
fn check_logins(context: &Context<'_>, sections: &[&Section<'_>], routes: &[Route]) {
    for (section, route) in sections.iter().zip(routes) {
        if route.session == SessionNeed::Off && route.require.is_some() {
            let message = "`require` cannot be met with `session = \"off\"`: nobody is known there";
            context.error(section.place("require"), message, None);
        }
        if route.csrf == Some(Csrf::Off) && route.protect_safe {
            context.error(section.place("protect_safe"), "`protect_safe` means nothing with `csrf = \"off\"`", None);
        }
        let Some(login) = &route.login_url else { continue };
        if !route.needs_login() {
            let help = Some("it is for `session = \"required\"` and `require`".to_owned());
            context.problems.warn(section.place("login_url"), "nobody is sent to this `login_url`", help);
        }
        let path = login.split(['?', '#']).next().unwrap_or_default();
        let is_there = |other: &&Route| {
            other.matches.host == route.matches.host
                && (*other.matches.path == *"/" || is_below(path, &other.matches.path))
        };
        let page = routes.iter().filter(is_there).max_by_key(|other| other.matches.path.len());
        // What takes somebody as they are: for a step-up, whoever has logged in at all.
        let is_closed = |page: &Route| match (page.session, &page.require) {
            (_, Some(_)) => true,
            (SessionNeed::Required, None) => route.session == SessionNeed::Required,
            _ => false,
        };
        if login.starts_with('/') && route.needs_login() && page.is_some_and(is_closed) {
            let help = Some("give it a `[[route]]` of its own that asks for nothing".to_owned());
            context.problems.warn(
                section.place("login_url"),
                "the login page asks for a login itself: that goes in circles",
                help,
            );
        }
    }
}

/// A login that is seen from outside proves nothing.
fn check_seen_logins(context: &Context<'_>, sections: &[&Section<'_>], routes: &[Route], pools: &[Section<'_>]) {
    for (section, route) in sections.iter().zip(routes).filter(|(_, route)| route.needs_login()) {
        let Action::Pool(pool) = route.action else { continue };
        if !pools.get(pool).is_some_and(|pool| pool.section("shared").has("login_when")) {
            continue;
        }
        if route.require.is_some() {
            let help = Some("those need an application that says `login` or `step-up` itself".to_owned());
            let message = "logins that `login_when` sees from outside do not meet `require`";
            context.problems.warn(section.place("require"), message, help);
        } else {
            let help = Some("let the application look itself at who is logged in".to_owned());
            let message = "what `login_when` takes for a login may be one that failed, if that is answered alike";
            context.problems.warn(section.place("session"), message, help);
        }
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn check_equal(context: &Context<'_>, sections: &[&Section<'_>], routes: &[Route]) {
    let matches: Vec<RouteMatch> = routes.iter().map(|route| route.matches.clone()).collect();
    for equal in RouteTable::build(&matches).err().unwrap_or_default() {
        let message = format!("two routes match `{}` with equal right", routes[equal.1].label);
        context.error(
            sections[equal.1].span.clone(),
            message,
            "they must differ in host, path or listeners".to_owned(),
        );
    }
}

fn check_unused(context: &Context<'_>, pools: &[Located<String>], routes: &[Route]) {
    for (at, name) in pools.iter().enumerate() {
        if !routes.iter().any(|route| matches!(route.action, Action::Pool(pool) if pool == at)) {
            context.problems.warn(name.span.clone(), format!("no route leads to the pool `{}`", name.value), None);
        }
    }
}
