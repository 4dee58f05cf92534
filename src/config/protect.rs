//! `[protect]`, and what routes say of it.

use http::HeaderValue;

use super::document::Section;
use super::resolve::Context;
use super::settings::Protect;
use crate::names::{CookieMode, Csrf, CsrfToken, SameSite};
use crate::protect::{CookieRules, CsrfRules, Glob, Require, TrustedOrigin, parse_hsts};

pub(super) fn resolve(context: &Context<'_>, section: &Section<'_>) -> Protect {
    let trusted = section.texts("trusted_origins").into_iter().filter_map(|text| {
        let parsed = TrustedOrigin::parse(&text.value);
        parsed.map_err(|error| context.error(text.span, format!("\"{}\": {error}", text.value), None)).ok()
    });
    Protect {
        csrf: CsrfRules {
            mode: section.word("csrf", Csrf::from_word).unwrap_or(Csrf::Enforce),
            token: section.word("csrf_token", CsrfToken::from_word).unwrap_or(CsrfToken::Fallback),
            trusted: trusted.collect(),
        },
        cookies: CookieRules {
            mode: section.word("cookies", CookieMode::from_word).unwrap_or(CookieMode::Fix),
            same_site: section.word("same_site", SameSite::from_word).unwrap_or(SameSite::Lax),
            allow_script: section.texts("allow_script").iter().map(|text| Glob::new(&text.value)).collect(),
        },
        hsts: hsts(context, section),
    }
}

fn hsts(context: &Context<'_>, section: &Section<'_>) -> Option<HeaderValue> {
    let text = section.text("hsts").filter(|text| !text.value.is_empty())?;
    let parsed = parse_hsts(&text.value);
    parsed.map_err(|error| context.error(text.span, format!("\"{}\": {error}", text.value), None)).ok()
}

/// `require` of a route.
pub(super) fn require(context: &Context<'_>, route: &Section<'_>) -> Option<Require> {
    let section = route.section("require");
    if !section.is_written() {
        return None;
    }
    let levels = section.texts("acr");
    for level in levels.iter().filter(|level| !Require::check_acr(&level.value)) {
        let help = "printable characters without spaces, quotes and backslashes".to_owned();
        context.error(level.span.clone(), format!("\"{}\" is no level", level.value), help);
    }
    let max_age = section.has("max_age").then(|| section.duration("max_age"));
    if levels.is_empty() && max_age.is_none() {
        let help = "give it `acr`, `max_age` or both; for any login: `session = \"required\"`".to_owned();
        context.error(section.span.clone(), "`require` requires nothing", help);
    }
    Some(Require { acr: levels.into_iter().map(|level| level.value.into()).collect(), max_age })
}
