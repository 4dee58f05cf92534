//! `[[listener]]` and its TLS.

use std::sync::Arc;

use super::document::{Located, Section};
use super::resolve::{Context, names_of, socket_address};
use super::settings::{Listener, Process};
use crate::headers::UnsafeNames;
use crate::listener::{Limits, ProxyProtocol, Settings, Times};
use crate::tls::{self, Certificate, ClientAuth, MinVersion};

pub(super) fn resolve(context: &Context<'_>, sections: &[Section<'_>], process: &Process) -> Vec<Listener> {
    context.check_unique("listener", &names_of(sections));
    let mut listeners: Vec<Listener> = Vec::new();
    for section in sections {
        let Some(listener) = listener(context, section, process) else { continue };
        let address = listener.settings.address;
        let taken = listeners.iter().find(|other| other.settings.address == address && address.port() != 0);
        if let Some(other) = taken {
            let message =
                format!("`{}` and `{}` listen on the same address", other.settings.name, listener.settings.name);
            context.error(section.place("address"), message, None);
        }
        listeners.push(listener);
    }
    listeners
}

fn listener(context: &Context<'_>, section: &Section<'_>, process: &Process) -> Option<Listener> {
    let tls = section.section("tls");
    check_combinations(context, section, &tls, process);
    let built_tls = if tls.is_written() { resolve_tls(context, &tls) } else { None };
    let name = section.text("name")?;
    let address = socket_address(context, &section.text("address")?)?;
    let settings = Settings {
        name: name.value.as_str().into(),
        address,
        proxy_protocol: section.word("proxy_protocol", ProxyProtocol::from_word).unwrap_or(ProxyProtocol::Off),
        times: Times { header: section.duration("header_timeout"), idle: section.duration("idle_timeout") },
        limits: Limits {
            header_bytes: u32::try_from(section.size("header_bytes")).unwrap_or(u32::MAX).clamp(1_024, 1 << 24),
            header_count: section.number("header_count"),
            max_streams: section.number("max_streams"),
        },
        unsafe_names: section.word("unsafe_header_names", UnsafeNames::from_word).unwrap_or(UnsafeNames::Strip),
        redirect_port: section.has("redirect").then(|| section.number("redirect_port")),
    };
    Some(Listener { settings, tls: built_tls })
}

fn check_combinations(context: &Context<'_>, section: &Section<'_>, tls: &Section<'_>, process: &Process) {
    if section.has("redirect") && tls.is_written() {
        let message =
            "`redirect` and `[listener.tls]` exclude each other: what came in over https is not redirected to it";
        context.error(section.place("redirect"), message, None);
    }
    if section.has("redirect_port") && !section.has("redirect") {
        context.error(section.place("redirect_port"), "`redirect_port` needs `redirect = \"https\"`", None);
    }
    let proxied =
        section.word("proxy_protocol", ProxyProtocol::from_word).is_some_and(|kind| kind != ProxyProtocol::Off);
    if proxied && process.trusted_proxies.is_empty() {
        let help = "name the balancers in front: `[process] trusted_proxies = [\"10.0.0.0/8\"]`".to_owned();
        let message = "`proxy_protocol` needs `trusted_proxies`: nobody could connect";
        context.error(section.place("proxy_protocol"), message, help);
    }
}

fn resolve_tls(context: &Context<'_>, section: &Section<'_>) -> Option<tls::Settings> {
    if section.has("certificates") == section.has("self_signed") {
        let message = if section.has("certificates") {
            "`certificates` and `self_signed` exclude each other"
        } else {
            "TLS needs `certificates`, or `self_signed` for development"
        };
        context.error(section.span.clone(), message, None);
    }
    if section.has("client_auth") && !section.has("client_ca") {
        context.error(section.place("client_auth"), "`client_auth` needs `client_ca`", None);
    }
    if section.is_empty_list("self_signed") || section.is_empty_list("certificates") {
        context.error(section.span.clone(), "the list of certificates is empty", None);
    }
    let certificates: Vec<Option<_>> = match section.has("self_signed") {
        true => vec![self_signed(context, section)],
        false => section.sections("certificates").iter().map(|section| certificate(context, section)).collect(),
    };
    let certificates: Option<Vec<_>> = certificates.into_iter().collect();
    let client_ca = match section.text("client_ca") {
        Some(path) => authorities(context, &path)?,
        None => Vec::new(),
    };
    Some(tls::Settings {
        certificates: certificates.filter(|certificates| !certificates.is_empty())?,
        min_version: section.word("min_version", MinVersion::from_word).unwrap_or(MinVersion::Tls12),
        client_ca,
        client_auth: section.word("client_auth", ClientAuth::from_word).unwrap_or(ClientAuth::Required),
    })
}

/// TLS with one certificate and no client certificates.
pub(super) fn simple_tls(context: &Context<'_>, section: &Section<'_>) -> Option<tls::Settings> {
    Some(tls::Settings {
        certificates: vec![certificate(context, section)?],
        min_version: MinVersion::Tls12,
        client_ca: Vec::new(),
        client_auth: ClientAuth::Required,
    })
}

fn certificate(context: &Context<'_>, section: &Section<'_>) -> Option<Arc<Certificate>> {
    let (cert, key) = (section.text("cert")?, section.text("key")?);
    let loaded = tls::load(&context.path(&cert.value), &context.path(&key.value));
    loaded.map(Arc::new).map_err(|error| context.error(cert.span, error.to_string(), None)).ok()
}

fn self_signed(context: &Context<'_>, section: &Section<'_>) -> Option<Arc<Certificate>> {
    let names: Vec<String> = section.texts("self_signed").into_iter().map(|name| name.value).collect();
    let made = tls::self_signed(&names);
    made.map_err(|error| context.error(section.place("self_signed"), error.to_string(), None)).ok()
}

/// The certificates of a PEM file of authorities.
pub(super) fn authorities(
    context: &Context<'_>,
    path: &Located<String>,
) -> Option<Vec<rustls_pki_types::CertificateDer<'static>>> {
    let full = context.path(&path.value);
    let name = full.display().to_string();
    let read = std::fs::read(&full).map_err(|error| format!("cannot read {name}: {error}"));
    let parsed = read.and_then(|pem| tls::certificates_from_pem(&pem, &name).map_err(|error| error.to_string()));
    parsed.map_err(|message| context.error(path.span.clone(), message, None)).ok()
}
