//! From sections to settings: the process, its keys and its admin surface; listeners, pools and routes in turn.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ipnet::IpNet;
use toml::de::DeTable;

use super::document::{Located, Section};
use super::problem::Problems;
use super::settings::{AccessLog, Admin, AdminContact, Configuration, Process};
use super::{Hosts, listeners, pools, protect, routes, sessions};
use crate::headers::ForwardedBy;
use crate::keys::{KeyRing, RingKey, Token};
use crate::names::HeldBy;
use crate::private::Address;

/// What resolving needs besides the section at hand.
pub(super) struct Context<'a> {
    pub(super) problems: &'a Problems,
    /// What relative paths begin at.
    directory: PathBuf,
    /// The files that were read.
    files: RefCell<Vec<PathBuf>>,
    /// What becomes of the names of servers.
    pub(super) hosts: Hosts<'a>,
}

impl Context<'_> {
    /// A path of the file, to be watched from now on.
    pub(super) fn path(&self, written: &str) -> PathBuf {
        let path = self.directory.join(written);
        self.files.borrow_mut().push(path.clone());
        path
    }

    /// A path that is written to, and not watched.
    pub(super) fn data_path(&self, written: &Located<String>) -> PathBuf {
        let path = self.directory.join(&written.value);
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if directory.is_some_and(|directory| !directory.is_dir()) {
            self.error(written.span.clone(), format!("the directory of {} does not exist", path.display()), None);
        }
        path
    }

    pub(super) fn error(&self, span: Range<usize>, message: impl Into<String>, help: impl Into<Option<String>>) {
        self.problems.error(span, message, help.into());
    }

    /// Whether each name occurs once; those that do not are problems.
    pub(super) fn check_unique(&self, what: &str, names: &[Located<String>]) {
        for (at, name) in names.iter().enumerate() {
            if names[..at].iter().any(|earlier| earlier.value == name.value) {
                self.error(name.span.clone(), format!("there are two {what}s `{}`", name.value), None);
            }
        }
    }

    /// The position of a name that another table declares.
    pub(super) fn reference(&self, what: &str, name: &Located<String>, declared: &[Located<String>]) -> Option<usize> {
        let found = declared.iter().position(|known| known.value == name.value);
        if found.is_none() {
            let near = declared.iter().min_by_key(|known| strsim::damerau_levenshtein(&known.value, &name.value));
            let help = near.map(|known| format!("did you mean `{}`?", known.value));
            self.error(name.span.clone(), format!("there is no {what} `{}`", name.value), help);
        }
        found
    }
}

/// The settings of a document. `None` only where something that everything rests on is missing.
pub(super) fn resolve(
    document: &DeTable<'_>,
    path: &Path,
    problems: &Problems,
    hosts: Hosts<'_>,
) -> (Option<Configuration>, Vec<PathBuf>) {
    let directory = path.parent().map(Path::to_owned).unwrap_or_default();
    let context = Context { problems, directory, files: vec![path.to_owned()].into(), hosts };
    let root = Section::root(document);
    let process = process(&context, &root.section("process"));
    let ring = ring(&context, &root.section("keys"));
    let admin = admin(&context, &root.section("admin"));
    let listeners = listeners::resolve(&context, &root.sections("listener"), &process);
    let stores = sessions::stores(&context, &root);
    let pools = pools::resolve(&context, &root, &stores);
    let routes = routes::resolve(&context, &root);
    let has_shared = pools.iter().any(|pool| pool.shared.is_some());
    let session_api = sessions::session_api(&context, &root, has_shared);
    if pools.iter().any(|pool| pool.shared.as_ref().is_some_and(|shared| shared.held_by == HeldBy::Proxy)) {
        sessions::check_listeners(&context, &root.sections("listener"), &process);
    }
    let protect = protect::resolve(&context, &root.section("protect"));
    let configuration = ring.zip(admin).map(|(ring, admin)| Configuration {
        process,
        ring: Arc::new(ring),
        admin: Arc::new(admin),
        listeners,
        routes,
        stores,
        session_api,
        protect,
        pools,
    });
    (configuration, context.files.into_inner())
}

/// The names of a list of tables, as far as they are given.
pub(super) fn names_of(sections: &[Section<'_>]) -> Vec<Located<String>> {
    sections.iter().filter_map(|section| section.text("name")).collect()
}

fn process(context: &Context<'_>, section: &Section<'_>) -> Process {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let workers = section.number::<usize>("workers");
    let networks = section.texts("trusted_proxies").into_iter().filter_map(|text| network(context, &text));
    let access_log = match section.text("access_log") {
        Some(text) if text.value == "off" => AccessLog::Off,
        Some(text) if text.value != "stdout" => AccessLog::File(log_path(context, &text)),
        _ => AccessLog::Stdout,
    };
    Process {
        workers: if workers == 0 { cores() } else { workers },
        max_connections: section.number("max_connections"),
        connections_per_address: section.number("connections_per_address"),
        shutdown_grace: section.duration("shutdown_grace"),
        shutdown_delay: section.duration("shutdown_delay"),
        trusted_proxies: networks.collect(),
        forwarded: section.word("forwarded", ForwardedBy::from_word).unwrap_or(ForwardedBy::XForwardedFor),
        access_log,
        watch: section.flag("watch"),
        resolve: section.duration("resolve").max(std::time::Duration::from_secs(1)),
        error_pages: error_pages(context, section),
    }
}

/// A path in a directory that exists.
fn log_path(context: &Context<'_>, text: &Located<String>) -> PathBuf {
    let path = context.directory.join(&text.value);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if directory.is_some_and(|directory| !directory.is_dir()) {
        let help = "\"stdout\", \"off\", or a path in a directory that exists".to_owned();
        context.error(text.span.clone(), format!("the directory of {} does not exist", path.display()), help);
    }
    path
}

/// "10.0.0.0/8", or one address.
fn network(context: &Context<'_>, text: &Located<String>) -> Option<IpNet> {
    let network = text.value.parse::<IpNet>().ok().or_else(|| text.value.parse::<IpAddr>().ok().map(IpNet::from));
    if network.is_none() {
        let help = "an address or a network, as \"10.0.0.0/8\"".to_owned();
        context.error(text.span.clone(), format!("\"{}\" is no network", text.value), help);
    }
    network
}

fn error_pages(context: &Context<'_>, section: &Section<'_>) -> HashMap<u16, Bytes> {
    let Some(directory) = section.text("error_pages") else { return HashMap::new() };
    let path = context.path(&directory.value);
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) => {
            context.error(directory.span.clone(), format!("cannot read {}: {error}", path.display()), None);
            return HashMap::new();
        }
    };
    let pages = entries.flatten().filter_map(|entry| {
        let path = entry.path();
        let status: u16 = path.file_stem()?.to_str()?.parse().ok()?;
        let is_page = path.extension()? == "html" && (400..600).contains(&status);
        if !is_page {
            return None;
        }
        context.files.borrow_mut().push(path.clone());
        let read = std::fs::read(&path);
        let read = read.map_err(|error| {
            context.error(directory.span.clone(), format!("cannot read {}: {error}", path.display()), None);
        });
        Some((status, Bytes::from(read.ok()?)))
    });
    pages.collect()
}

fn ring(context: &Context<'_>, section: &Section<'_>) -> Option<KeyRing> {
    if !section.has("ring") {
        let help = "`steadfast key` prints a key; name its file: ring = [\"file:steadfast.key\"]".to_owned();
        let message = "no key ring: pins and TLS tickets end with this process, and no other proxy can read them";
        context.problems.warn(section.span.clone(), message, Some(help));
        return Some(KeyRing::ephemeral());
    }
    let texts = section.texts("ring");
    if section.is_empty_list("ring") {
        context.error(section.place("ring"), "the key ring is empty", None);
    }
    // Every bad key is a problem of its own, so all are read before any is missed.
    let keys: Vec<Option<RingKey>> = texts.iter().map(|text| ring_key(context, text)).collect();
    let keys: Option<Vec<RingKey>> = keys.into_iter().collect();
    keys.filter(|keys| !keys.is_empty()).map(KeyRing::new)
}

fn ring_key(context: &Context<'_>, text: &Located<String>) -> Option<RingKey> {
    let line = secret(context, text)?;
    let parsed = RingKey::parse(&line);
    parsed.map_err(|error| context.error(text.span.clone(), error.to_string(), None)).ok()
}

/// "file:PATH" or "env:NAME".
pub(super) fn secret(context: &Context<'_>, text: &Located<String>) -> Option<String> {
    let read = if let Some(path) = text.value.strip_prefix("file:") {
        let path = context.path(path);
        std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    } else if let Some(name) = text.value.strip_prefix("env:") {
        std::env::var(name).map_err(|error| format!("environment variable {name}: {error}"))
    } else {
        Err("a secret is \"file:PATH\" or \"env:NAME\", never inline".to_owned())
    };
    read.map_err(|message| context.error(text.span.clone(), message, None)).ok()
}

/// What somebody who wants to talk to the admin surface has to know, as far as it is readable.
pub(super) fn admin_contact(document: &DeTable<'_>, path: &Path, problems: &Problems) -> Option<AdminContact> {
    let directory = path.parent().map(Path::to_owned).unwrap_or_default();
    let context = Context { problems, directory, files: RefCell::default(), hosts: Hosts::Left };
    let section = Section::root(document).section("admin");
    let certificate = section.section("tls").is_written().then(|| section.section("tls").text("cert")).flatten();
    Some(AdminContact {
        address: private_address(&context, &section)?,
        token: section.text("token").and_then(|text| secret(&context, &text)).map(|token| token.trim().to_owned()),
        certificate: certificate.map(|path| context.path(&path.value)),
    })
}

pub(super) fn private_address(context: &Context<'_>, section: &Section<'_>) -> Option<Address> {
    let address = section.text("address")?;
    match address.value.strip_prefix("unix:") {
        Some("") => {
            context.error(
                address.span,
                "a Unix socket needs a path",
                "for example \"unix:/run/steadfast.sock\"".to_owned(),
            );
            None
        }
        Some(path) => Some(Address::Unix(context.directory.join(path))),
        None => socket_address(context, &address).map(Address::Tcp),
    }
}

fn admin(context: &Context<'_>, section: &Section<'_>) -> Option<Admin> {
    let address = private_address(context, section);
    let tls = section.section("tls");
    if let Some(Address::Tcp(tcp)) = &address
        && !tcp.ip().is_loopback()
    {
        let missing: Vec<&str> = ["token", "tls"].into_iter().filter(|key| !section.has(key)).collect();
        if !missing.is_empty() {
            let message =
                format!("the admin address is reachable from outside, and has no `{}`", missing.join("` and no `"));
            let help =
                "a loopback address, \"unix:PATH\", or both; for scrapes from elsewhere set `metrics`".to_owned();
            context.error(section.place("address"), message, help);
        }
    }
    if let (Some(Address::Unix(_)), true) = (&address, tls.is_written()) {
        context.error(section.place("tls"), "`tls` means nothing on a Unix socket: its permissions protect it", None);
    }
    let metrics = section.text("metrics").and_then(|text| socket_address(context, &text));
    if let (Some(Address::Tcp(tcp)), Some(scrape)) = (&address, metrics)
        && *tcp == scrape
        && tcp.port() != 0
    {
        context.error(section.place("metrics"), "`metrics` and `address` are the same", None);
    }
    let token = section.text("token").and_then(|text| admin_token(context, &text));
    let tls = tls.is_written().then(|| listeners::simple_tls(context, &tls)).flatten();
    Some(Admin { address: address?, metrics, token, tls })
}

fn admin_token(context: &Context<'_>, text: &Located<String>) -> Option<Token> {
    let word = secret(context, text)?;
    let token = Token::new(word.trim().as_bytes());
    if token.is_none() {
        let help = "`steadfast key` prints a good one".to_owned();
        let message = format!("a token is one line of at least {} printable ASCII characters", Token::FEWEST_BYTES);
        context.error(text.span.clone(), message, help);
    }
    token
}

/// An IP address and a port.
pub(super) fn socket_address(context: &Context<'_>, text: &Located<String>) -> Option<SocketAddr> {
    let parsed = text.value.parse().ok();
    if parsed.is_none() {
        let help = "an IP address and a port, as \"0.0.0.0:8443\" or \"[::]:8443\"".to_owned();
        context.error(text.span.clone(), format!("\"{}\" is no address to listen on", text.value), help);
    }
    parsed
}
