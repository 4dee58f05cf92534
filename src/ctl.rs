//! `steadfast ctl`: the operator's hands, over the admin API.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

use crate::private::Address;
use crate::routing::Authority;
use crate::tasks;
use crate::tls::{self, ClientConfig, ClientSettings, ServerName};

/// The largest answer that is read: thousands of servers, and no more than a terminal can use.
const MOST_BYTES: usize = 64 << 20;

/// What is asked of the proxy.
pub enum Action {
    Status,
    Pools,
    Drain { server: ServerRef, deadline: Option<String>, wait: bool },
    Ready(ServerRef),
    Maint(ServerRef),
    Weight { server: ServerRef, weight: u32 },
    Reload,
    Explain(String),
    ListSessions { realm: Option<String>, subject: Option<String> },
    ShowSession(String),
    RevokeSession(String),
    RevokeSubject { realm: String, subject: String },
    ListRevocations,
    RevokeTokens { tokens: Tokens, span: String },
    TakeBackRevocation(Tokens),
}

/// Which tokens are meant: by id, by issuer and subject, or by key.
pub struct Tokens {
    pub pool: String,
    pub by: Vec<(&'static str, String)>,
}

/// `POOL/SERVER`.
#[derive(Clone, Debug)]
pub struct ServerRef {
    pool: String,
    server: String,
}

impl std::str::FromStr for ServerRef {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((pool, server)) if !pool.is_empty() && !server.is_empty() => {
                Ok(ServerRef { pool: pool.to_owned(), server: server.to_owned() })
            }
            _ => Err("a server is named POOL/SERVER"),
        }
    }
}

/// Why there is no answer, or none that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    #[error("cannot reach the admin address {0}: {1} (is the proxy running? another address: --address)")]
    Unreachable(String, std::io::Error),
    #[error("the admin address does not answer as it should: {0}")]
    Protocol(String),
    #[error("{0}")]
    Refused(String),
}

/// How long an answer may take; a reload may resolve many names.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks, and gives what is to be printed.
pub fn run(contact: &Contact, action: Action, as_json: bool) -> Result<String, CtlError> {
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let executor = executor.map_err(|error| CtlError::Protocol(error.to_string()))?;
    LocalSet::new().block_on(&executor, async {
        let (method, path, body) = request_of(&action);
        let answer = tokio::time::timeout(PATIENCE, call(contact, method, &path, body)).await;
        let (status, value) = answer.map_err(|_| CtlError::Protocol("no answer in time".to_owned()))??;
        if !status.is_success() {
            return Err(CtlError::Refused(refusal(&value)));
        }
        let value = match &action {
            Action::Drain { server, wait: true, .. } => wait_until_safe(contact, server).await?,
            _ => value,
        };
        Ok(if as_json { format!("{value:#}\n") } else { printable(&for_people(&action, &value)) })
    })
}

/// Asks until the server has no session and no exchange left. On a terminal it says how far that is.
async fn wait_until_safe(contact: &Contact, at: &ServerRef) -> Result<Value, CtlError> {
    let path = format!("/api/v1/pools/{}", encode(&at.pool));
    loop {
        let answer = tokio::time::timeout(PATIENCE, call(contact, Method::GET, &path, None)).await;
        let (status, pool) = answer.map_err(|_| CtlError::Protocol("no answer in time".to_owned()))??;
        if !status.is_success() {
            return Err(CtlError::Refused(refusal(&pool)));
        }
        let found =
            pool["servers"].as_array().into_iter().flatten().find(|server| server["name"] == at.server.as_str());
        let Some(server) = found else {
            return Err(CtlError::Refused(format!("There is no server {} any more.", at.server)));
        };
        let drain = &server["drain"];
        if drain.is_null() {
            return Err(CtlError::Refused(format!("{} is no longer draining.", at.server)));
        }
        if drain["safe_to_stop"] == true {
            return Ok(server.clone());
        }
        show_progress(drain, &server["in_flight"]);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn show_progress(drain: &Value, in_flight: &Value) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let eta = drain["eta_s"].as_f64().map(|seconds| format!(", about {seconds:.0} s to go")).unwrap_or_default();
        // A closed terminal has nobody to tell.
        let _ = write!(out, "\r{} sessions remaining, {in_flight} in flight{eta}    ", drain["remaining"]);
    }
}

fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn request_of(action: &Action) -> (Method, String, Option<Value>) {
    let server = |at: &ServerRef, what: &str| {
        format!("/api/v1/pools/{}/servers/{}/{what}", encode(&at.pool), encode(&at.server))
    };
    match action {
        Action::Status | Action::Pools => (Method::GET, "/api/v1/pools".to_owned(), None),
        Action::Drain { server: at, deadline, .. } => {
            let body = deadline.as_ref().map(|deadline| json!({ "deadline": deadline }));
            (Method::POST, server(at, "drain"), body)
        }
        Action::Ready(at) => (Method::POST, server(at, "ready"), None),
        Action::Maint(at) => (Method::POST, server(at, "maint"), None),
        Action::Weight { server: at, weight } => (Method::PUT, server(at, "weight"), Some(json!({ "weight": weight }))),
        Action::Reload => (Method::POST, "/api/v1/reload".to_owned(), None),
        Action::Explain(cookie) => (Method::POST, "/api/v1/explain".to_owned(), Some(json!({ "cookie": cookie }))),
        Action::ListSessions { realm, subject } => {
            (Method::GET, sessions_path(realm.as_deref(), subject.as_deref()), None)
        }
        Action::ShowSession(reference) => (Method::GET, session_path(reference), None),
        Action::RevokeSession(reference) => (Method::DELETE, session_path(reference), None),
        Action::RevokeSubject { realm, subject } => (Method::DELETE, sessions_path(Some(realm), Some(subject)), None),
        Action::ListRevocations => (Method::GET, REVOCATIONS.to_owned(), None),
        Action::RevokeTokens { tokens, span } => {
            let mut body = json!({ "pool": tokens.pool, "until": span });
            tokens.by.iter().for_each(|(name, value)| body[*name] = value.as_str().into());
            (Method::POST, REVOCATIONS.to_owned(), Some(body))
        }
        Action::TakeBackRevocation(tokens) => {
            let by = tokens.by.iter().map(|(name, value)| format!("&{name}={}", encode(value)));
            let query = format!("pool={}{}", encode(&tokens.pool), by.collect::<String>());
            (Method::DELETE, format!("{REVOCATIONS}?{query}"), None)
        }
    }
}

const REVOCATIONS: &str = "/api/v1/revocations";

fn session_path(reference: &str) -> String {
    format!("/api/v1/sessions/{}", encode(reference))
}

fn sessions_path(realm: Option<&str>, subject: Option<&str>) -> String {
    let parameters = [("realm", realm), ("subject", subject)];
    let given = parameters.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", encode(value?))));
    format!("/api/v1/sessions?{}", given.collect::<Vec<_>>().join("&"))
}

async fn call(
    contact: &Contact,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<(StatusCode, Value), CtlError> {
    let unreachable = |error| CtlError::Unreachable(contact.place.to_string(), error);
    let mut request = Request::builder().method(method).uri(path);
    if let Some(token) = &contact.token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    match &contact.place {
        Place::Unix(socket) => {
            let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
            exchange(stream, request.header(header::HOST, "localhost"), body).await
        }
        Place::Tcp(address) => {
            let stream = TcpStream::connect(address).await.map_err(unreachable)?;
            let request = request.header(header::HOST, address);
            match &contact.tls {
                None => exchange(stream, request, body).await,
                Some((name, config)) => {
                    let connector = TlsConnector::from(Arc::clone(config));
                    let stream = connector.connect(name.clone(), stream).await.map_err(unreachable)?;
                    exchange(stream, request, body).await
                }
            }
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    mut request: http::request::Builder,
    body: Option<Value>,
) -> Result<(StatusCode, Value), CtlError> {
    let protocol = |error: &dyn std::fmt::Display| CtlError::Protocol(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| protocol(&error))?;
    let _connection = tasks::Owned::spawn(async move { drop(connection.await) });
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let bytes = body.map_or_else(Bytes::new, |body| body.to_string().into());
    let request = request.body(Full::new(bytes)).map_err(|error| protocol(&error))?;
    let response = sender.send_request(request).await.map_err(|error| protocol(&error))?;
    let status = response.status();
    let collected = Limited::new(response.into_body(), MOST_BYTES).collect().await;
    let bytes = collected.map_err(|error| protocol(&error))?.to_bytes();
    let value = serde_json::from_slice(&bytes).map_err(|error| protocol(&error))?;
    Ok((status, value))
}

fn refusal(value: &Value) -> String {
    let problems = value["problems"].as_array().into_iter().flatten().map(|problem| {
        let place = match (&problem["file"], &problem["line"], &problem["column"]) {
            (Value::String(file), Value::Number(line), Value::Number(column)) => format!("{file}:{line}:{column}: "),
            _ => String::new(),
        };
        format!("{place}{}", problem["message"].as_str().unwrap_or_default())
    });
    let problems: Vec<String> = problems.collect();
    let title = value["detail"].as_str().or(value["title"].as_str()).unwrap_or("The proxy refused.");
    if problems.is_empty() { title.to_owned() } else { format!("{title}\n{}", problems.join("\n")) }
}

/// What a terminal would obey is shown instead.
fn printable(text: &str) -> String {
    let shown = |letter: char| if letter.is_control() && letter != '\n' { '\u{fffd}' } else { letter };
    text.chars().map(shown).collect()
}

fn for_people(action: &Action, value: &Value) -> String {
    match action {
        Action::Status => status(value),
        Action::Pools => table(value),
        Action::Reload => "The configuration was reloaded.\n".to_owned(),
        Action::Explain(_) => explanation(value),
        Action::ListSessions { .. } => sessions(value),
        Action::ShowSession(_) => session(value),
        Action::RevokeSession(_) | Action::RevokeSubject { .. } => revoked(value),
        Action::ListRevocations => revocations(&value["revocations"]),
        Action::RevokeTokens { .. } => format!("Revoked: {}", revocation(value)),
        Action::TakeBackRevocation(_) => format!("No longer revoked: {}", revocation(&value["removed"])),
        _ => {
            let text = |key: &str| value[key].as_str().unwrap_or_default();
            let drain = &value["drain"];
            let drain = match drain["safe_to_stop"].as_bool() {
                Some(true) => ": safe to stop".to_owned(),
                Some(false) => format!(": {} sessions remaining", drain["remaining"]),
                None => String::new(),
            };
            format!(
                "{}: {}{drain}, wish {}, weight {}, {} in flight\n",
                text("name"),
                text("state"),
                text("wish"),
                value["weight"],
                value["in_flight"]
            )
        }
    }
}

/// A line per revocation.
fn revocations(all: &Value) -> String {
    let lines: String = all.as_array().into_iter().flatten().map(revocation).collect();
    if lines.is_empty() { "Nothing is revoked.\n".to_owned() } else { lines }
}

fn revocation(value: &Value) -> String {
    let by = ["jti", "issuer", "subject", "kid"].into_iter();
    let by = by.filter_map(|name| Some(format!("{name} {}", value[name].as_str()?)));
    let until = value["until"].as_i64().and_then(date).map(|until| format!(", until {until}")).unwrap_or_default();
    format!("pool {}: {}{until}\n", value["pool"].as_str().unwrap_or_default(), by.collect::<Vec<_>>().join(", "))
}

/// A line per pool.
fn status(pools: &Value) -> String {
    let line = |pool: &Value| {
        let servers: Vec<&Value> = pool["servers"].as_array().into_iter().flatten().collect();
        let eligible = servers.iter().filter(|server| server["newcomers"] == "eligible").count();
        let in_flight: u64 = servers.iter().filter_map(|server| server["in_flight"].as_u64()).sum();
        let name = pool["name"].as_str().unwrap_or_default();
        let (mode, balance) = (pool["mode"].as_str().unwrap_or_default(), pool["balance"].as_str().unwrap_or_default());
        format!(
            "{name}: {mode}, {balance}, {eligible} of {} servers take newcomers, {in_flight} in flight\n",
            servers.len()
        )
    };
    pools.as_array().into_iter().flatten().map(line).collect()
}

const COLUMNS: [&str; 12] = [
    "pool",
    "server",
    "address",
    "state",
    "newcomers",
    "weight",
    "sessions",
    "req/s",
    "in flight",
    "long-lived",
    "waiting",
    "latency",
];

/// A line per server, in columns.
fn table(pools: &Value) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    for pool in pools.as_array().into_iter().flatten() {
        for server in pool["servers"].as_array().into_iter().flatten() {
            let text = |key: &str| server[key].as_str().unwrap_or_default().to_owned();
            rows.push([
                pool["name"].as_str().unwrap_or_default().to_owned(),
                text("name"),
                text("address"),
                text("state"),
                text("newcomers"),
                server["weight"].to_string(),
                server["sessions"].to_string(),
                format!("{:.1}", server["requests_per_second"].as_f64().unwrap_or_default()),
                server["in_flight"].to_string(),
                server["long_lived"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter_map(|(_, count)| count.as_u64())
                    .sum::<u64>()
                    .to_string(),
                server["waiting"].to_string(),
                format!("{} ms", server["latency_ms"]),
            ]);
        }
    }
    in_columns(&rows)
}

/// Rows, each column as wide as its widest cell.
fn in_columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: Vec<usize> =
        (0..N).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A line per session.
fn sessions(value: &Value) -> String {
    let mut rows = vec![SESSION_FIELDS.map(str::to_owned)];
    rows.extend(value["sessions"].as_array().into_iter().flatten().map(session_cells));
    let more = if value["more"] == true { "There are more: narrow it down by --realm and --subject.\n" } else { "" };
    format!("{}{more}", in_columns(&rows))
}

/// A line per field of a session.
fn session(value: &Value) -> String {
    let cells = SESSION_FIELDS.map(str::to_owned).into_iter().zip(session_cells(value));
    in_columns(&cells.map(|(name, cell)| [name, cell]).collect::<Vec<_>>())
}

const SESSION_FIELDS: [&str; 6] = ["realm", "subject", "created", "live", "sid", "ref"];

fn session_cells(session: &Value) -> [String; 6] {
    SESSION_FIELDS.map(|field| match &session[field] {
        // A name must not look like a line of its own.
        Value::String(text) => text.replace('\n', "\u{fffd}"),
        Value::Number(seconds) if field == "created" => seconds.as_i64().and_then(date).unwrap_or_default(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        other => other.to_string(),
    })
}

const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");

fn date(seconds: i64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(seconds).ok()?.format(DATE).ok()
}

fn revoked(value: &Value) -> String {
    match value["ended"].as_array().map_or(0, Vec::len) {
        0 => "No session was there to be ended.\n".to_owned(),
        1 => "1 session was ended.\n".to_owned(),
        count => format!("{count} sessions were ended.\n"),
    }
}

fn explanation(value: &Value) -> String {
    let would = &value["would"];
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    if value["valid"] != true {
        return format!("No valid pin. {}\n", text(&would["why"]));
    }
    let reason = would["reason"].as_str().filter(|reason| !reason.is_empty()).map(|reason| format!("({reason})"));
    format!(
        "pool {}, server {}, session {}\nissued {} and last seen {} (seconds since 1970)\nnow: {}{} to {}. {}\n",
        text(&value["pool"]),
        text(&value["server"]),
        text(&value["session"]),
        value["issued"],
        value["last_seen"],
        text(&would["verdict"]),
        reason.unwrap_or_default(),
        text(&would["server"]),
        text(&would["why"])
    )
}

/// Where the admin surface is, and how it is spoken to.
pub struct Contact {
    place: Place,
    token: Option<String>,
    tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
}

enum Place {
    /// An address, or a name to be resolved, with its port.
    Tcp(String),
    Unix(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Tcp(address) => out.write_str(address),
            Place::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

/// What the command line says of it.
#[derive(Default)]
pub struct Given<'a> {
    pub address: Option<&'a str>,
    pub config: Option<PathBuf>,
    /// The token, or `file:PATH` or `env:NAME` of it.
    pub token: Option<&'a str>,
    /// Authorities of its certificate, in PEM form.
    pub ca: Option<&'a Path>,
}

/// How the admin surface is reached: as given, or as the file says.
pub fn contact(given: Given<'_>) -> Result<Contact, String> {
    let token = given.token.map(read_token).transpose()?;
    let contact = match given.address {
        Some(text) => at_address(text, given.ca)?,
        None => of_file(given.config.as_deref().unwrap_or(Path::new("steadfast.toml")))?,
    };
    Ok(Contact { token: token.or(contact.token), ..contact })
}

fn read_token(text: &str) -> Result<String, String> {
    if let Some(path) = text.strip_prefix("file:") {
        let read = std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"));
        return Ok(read?.trim().to_owned());
    }
    match text.strip_prefix("env:") {
        Some(name) => std::env::var(name).map_err(|error| format!("environment variable {name}: {error}")),
        None => Ok(text.to_owned()),
    }
}

fn at_address(text: &str, ca: Option<&Path>) -> Result<Contact, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(Contact { place: Place::Unix(path.into()), token: None, tls: None });
    }
    let (https, address) = match text.split_once("://") {
        Some(("https", rest)) => (true, rest),
        Some(("http", rest)) => (false, rest),
        _ => (false, text),
    };
    let authority = Authority::parse(address.trim_end_matches('/')).filter(|authority| authority.port.is_some());
    let wrong = || format!("\"{text}\" is no address: HOST:PORT, https://HOST:PORT or unix:PATH");
    let authority = authority.ok_or_else(wrong)?;
    let host = authority.host.trim_matches(['[', ']']).to_owned();
    let tls = https.then(|| tls_to(host, ca.map(authorities).transpose()?.unwrap_or_default())).transpose()?;
    Ok(Contact { place: Place::Tcp(address.trim_end_matches('/').to_owned()), token: None, tls })
}

/// The file names the very certificate: no other is believed, and its names do not matter.
fn of_file(path: &Path) -> Result<Contact, String> {
    let known = crate::config::admin_contact(path).map_err(|error| error.to_string())?;
    let place = match known.address {
        Address::Unix(path) => Place::Unix(path),
        // Where it listens everywhere, it is here as well.
        Address::Tcp(at) if at.ip().is_unspecified() => Place::Tcp(format!("localhost:{}", at.port())),
        Address::Tcp(at) => Place::Tcp(at.to_string()),
    };
    let tls = known.certificate.map(|path| {
        let leaf = authorities(&path)?.swap_remove(0);
        let config = tls::client_of_one(leaf).map_err(|error| error.to_string())?;
        let anything = ServerName::try_from("localhost").map_err(|error| error.to_string())?;
        Ok::<_, String>((anything, config))
    });
    Ok(Contact { place, token: known.token, tls: tls.transpose()? })
}

fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    tls::certificates_from_pem(&pem, &path.display().to_string()).map_err(|error| error.to_string())
}

fn tls_to(name: String, ca: Vec<CertificateDer<'static>>) -> Result<(ServerName<'static>, Arc<ClientConfig>), String> {
    let settings = ClientSettings { verify: true, ca, http2: false };
    let config = tls::client_config(&settings).map_err(|error| error.to_string())?;
    let name = ServerName::try_from(name.clone()).map_err(|_| format!("\"{name}\" is no name of a certificate"))?;
    Ok((name, config))
}
