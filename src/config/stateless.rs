//! `[pool.stateless]`: whose tokens are taken, and how they come.

use std::time::Duration;

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::document::{Located, Section};
use super::listeners;
use super::resolve::{Context, secret};
use super::settings::StatelessSettings;
use crate::stateless::{Algorithm, Carrier, IssuerSettings, KeySource, Settings};
use crate::store;

const MOST_SKEW: Duration = Duration::from_secs(300);
/// RFC 7518, section 3.2: a key as long as the hash.
const FEWEST_SECRET_BYTES: usize = 32;

pub(super) fn resolve(
    context: &Context<'_>,
    pool: &Section<'_>,
    stores: &[Located<String>],
    all: &[store::Settings],
) -> Option<StatelessSettings> {
    let section = pool.section("stateless");
    let sections = section.sections("issuer");
    if sections.is_empty() {
        let help = "name whose tokens are taken: `[[pool.stateless.issuer]]`".to_owned();
        context.error(pool.place("mode"), "a stateless pool needs an issuer", help);
    }
    let issuers =
        sections.iter().filter_map(|section| Some((issuer(context, section)?, authorities(context, section))));
    let (issuers, authorities): (Vec<IssuerSettings>, Vec<_>) = issuers.unzip();
    for (at, one) in issuers.iter().enumerate() {
        if issuers[..at].iter().any(|other| other.issuer == one.issuer) {
            let message = format!("there are two issuers `{}`", one.issuer);
            context.error(section.place("issuer"), message, None);
        }
    }
    let skew = section.duration("skew");
    if skew > MOST_SKEW {
        context.error(section.place("skew"), "`skew` is at most \"5m\": for so long expired tokens count", None);
    }
    let store = section.text("store").and_then(|name| {
        let at = context.reference("store", &name, stores)?;
        if all.get(at).is_some_and(|store| matches!(store.kind, store::KindSettings::Memcached(_))) {
            let help = "an embedded store, or Redis with `maxmemory-policy noeviction`".to_owned();
            let message = "memcached forgets when it is full, and would let revoked tokens count again";
            context.error(name.span, message, help);
        }
        Some(at)
    });
    if section.is_empty_list("typ") {
        context.error(section.place("typ"), "`typ` is empty: no token would be taken", None);
    }
    let types = section.texts("typ").into_iter().map(|text| text.value.into()).collect();
    let verify = Settings { carrier: carrier(context, &section)?, types, skew, issuers };
    Some(StatelessSettings { verify, authorities, store })
}

fn carrier(context: &Context<'_>, section: &Section<'_>) -> Option<Carrier> {
    let text = section.text("carrier")?;
    let cookie = text.value.strip_prefix("cookie:");
    let is_name = |name: &&str| {
        !name.is_empty()
            && !name.starts_with('$')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    match (text.value.as_str(), cookie.filter(is_name)) {
        ("header", _) => Some(Carrier::Header),
        (_, Some(name)) => Some(Carrier::Cookie(name.into())),
        _ => {
            let help = "\"header\", or \"cookie:NAME\"".to_owned();
            context.error(text.span, format!("\"{}\" carries no token", text.value), help);
            None
        }
    }
}

fn issuer(context: &Context<'_>, section: &Section<'_>) -> Option<IssuerSettings> {
    let name = section.text("issuer")?;
    if name.value.is_empty() {
        context.error(name.span.clone(), "an issuer has a name: exactly what `iss` says", None);
    }
    let audience = section.texts("audience");
    if section.has("audience") && (audience.is_empty() || audience.iter().any(|name| name.value.is_empty())) {
        let help = "what its tokens for this pool say in `aud`".to_owned();
        context.error(section.place("audience"), "an issuer needs an `audience`", help);
    }
    let algorithms = algorithms(context, section);
    Some(IssuerSettings {
        issuer: name.value.into(),
        audience: audience.into_iter().map(|text| text.value.into()).collect(),
        keys: keys(context, section)?,
        algorithms,
    })
}

fn authorities(context: &Context<'_>, issuer: &Section<'_>) -> Vec<CertificateDer<'static>> {
    let Some(ca) = issuer.text("ca") else { return Vec::new() };
    if !issuer.text("jwks").is_some_and(|jwks| jwks.value.starts_with("https://")) {
        context.error(ca.span.clone(), "`ca` is for an https `jwks`", None);
    }
    listeners::authorities(context, &ca).unwrap_or_default()
}

fn algorithms(context: &Context<'_>, section: &Section<'_>) -> Vec<Algorithm> {
    let with_secret = section.has("secret");
    if with_secret && !section.has("algorithms") {
        return vec![Algorithm::Hs256];
    }
    let mut found = Vec::new();
    for text in section.texts("algorithms") {
        let Some(algorithm) = Algorithm::from_word(&text.value) else {
            let all = Algorithm::ALL.iter().map(|known| known.as_str()).collect::<Vec<_>>().join(", ");
            let message = format!("\"{}\" is no algorithm that is taken", text.value);
            context.error(text.span, message, format!("one of {all}"));
            continue;
        };
        if (algorithm == Algorithm::Hs256) != with_secret {
            let help =
                "a secret is for HS256 alone, and HS256 for a secret: keys that anybody may read must not verify it";
            let message = format!("`{}` does not go with these keys", text.value);
            context.error(text.span, message, help.to_owned());
        }
        found.push(algorithm);
    }
    if found.is_empty() {
        context.error(section.place("algorithms"), "an issuer needs an algorithm", None);
    }
    found
}

fn keys(context: &Context<'_>, section: &Section<'_>) -> Option<KeySource> {
    match (section.text("jwks"), section.text("secret")) {
        (Some(_), Some(secret)) => {
            context.error(secret.span, "`jwks` and `secret` exclude each other", None);
            None
        }
        (None, None) => {
            let help = "`jwks = \"https://id.example.com/jwks.json\"`, \"file:PATH\", or a `secret`".to_owned();
            context.error(section.span.clone(), "an issuer needs keys", help);
            None
        }
        (None, Some(text)) => {
            let word = secret(context, &text)?.trim().as_bytes().to_vec();
            if word.len() < FEWEST_SECRET_BYTES {
                let message = format!("a secret for HS256 has at least {FEWEST_SECRET_BYTES} bytes (RFC 7518)");
                context.error(text.span, message, "`openssl rand -hex 32` makes one".to_owned());
            }
            Some(KeySource::Secret(Zeroizing::new(word)))
        }
        (Some(text), None) => key_set(context, &text),
    }
}

fn key_set(context: &Context<'_>, text: &Located<String>) -> Option<KeySource> {
    if let Some(path) = text.value.strip_prefix("file:") {
        return Some(KeySource::File(context.path(path)));
    }
    let uri = text.value.parse::<http::Uri>().ok();
    let is_plain = |uri: &http::Uri| {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let port = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
        !authority.contains('@') && port.is_none_or(|(_, port)| port.parse::<u16>().is_ok())
    };
    let is_https = uri.is_some_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some() && is_plain(&uri));
    if !is_https {
        let help = "an https URL, or \"file:PATH\": keys that come in the clear are anybody's".to_owned();
        context.error(text.span.clone(), format!("\"{}\" is no place of keys", text.value), help);
    }
    is_https.then(|| KeySource::Url(text.value.clone()))
}
