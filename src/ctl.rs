//! `steadfast ctl`: the operator's hands, over the admin API.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::LocalSet;

use crate::config::AdminAddress;
use crate::tasks;

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
pub fn run(address: &AdminAddress, action: Action, as_json: bool) -> Result<String, CtlError> {
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let executor = executor.map_err(|error| CtlError::Protocol(error.to_string()))?;
    LocalSet::new().block_on(&executor, async {
        let (method, path, body) = request_of(&action);
        let answer = tokio::time::timeout(PATIENCE, call(address, method, &path, body)).await;
        let (status, value) = answer.map_err(|_| CtlError::Protocol("no answer in time".to_owned()))??;
        if !status.is_success() {
            return Err(CtlError::Refused(refusal(&value)));
        }
        let value = match &action {
            Action::Drain { server, wait: true, .. } => wait_until_safe(address, server).await?,
            _ => value,
        };
        Ok(if as_json { format!("{value:#}\n") } else { for_people(&action, &value) })
    })
}

/// Asks until the server has no session and no exchange left. On a terminal it says how far that is.
async fn wait_until_safe(address: &AdminAddress, at: &ServerRef) -> Result<Value, CtlError> {
    let path = format!("/api/v1/pools/{}", encode(&at.pool));
    loop {
        let answer = tokio::time::timeout(PATIENCE, call(address, Method::GET, &path, None)).await;
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
    }
}

async fn call(
    address: &AdminAddress,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<(StatusCode, Value), CtlError> {
    let unreachable = |error| CtlError::Unreachable(address.to_string(), error);
    match address {
        AdminAddress::Tcp(tcp) => {
            let stream = TcpStream::connect(tcp).await.map_err(unreachable)?;
            exchange(stream, &tcp.to_string(), method, path, body).await
        }
        AdminAddress::Unix(socket) => {
            let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
            exchange(stream, "localhost", method, path, body).await
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    host: &str,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<(StatusCode, Value), CtlError> {
    let protocol = |error: &dyn std::fmt::Display| CtlError::Protocol(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| protocol(&error))?;
    let _connection = tasks::Owned::spawn(async move { drop(connection.await) });
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let bytes = body.map_or_else(Bytes::new, |body| body.to_string().into());
    let request = request.body(Full::new(bytes)).map_err(|error| protocol(&error))?;
    let response = sender.send_request(request).await.map_err(|error| protocol(&error))?;
    let status = response.status();
    let bytes = response.into_body().collect().await.map_err(|error| protocol(&error))?.to_bytes();
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

fn for_people(action: &Action, value: &Value) -> String {
    match action {
        Action::Status => status(value),
        Action::Pools => table(value),
        Action::Reload => "The configuration was reloaded.\n".to_owned(),
        Action::Explain(_) => explanation(value),
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

const COLUMNS: [&str; 10] =
    ["pool", "server", "address", "state", "newcomers", "weight", "sessions", "in flight", "waiting", "latency"];

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
                server["in_flight"].to_string(),
                server["waiting"].to_string(),
                format!("{} ms", server["latency_ms"]),
            ]);
        }
    }
    let widths: Vec<usize> =
        (0..COLUMNS.len()).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; 10]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
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

/// The admin address: as given, or as the file says.
pub fn address(given: Option<&str>, config: Option<PathBuf>) -> Result<AdminAddress, String> {
    if let Some(text) = given {
        return match text.strip_prefix("unix:") {
            Some(path) => Ok(AdminAddress::Unix(path.into())),
            None => text
                .parse()
                .map(AdminAddress::Tcp)
                .map_err(|_| format!("\"{text}\" is no address: ADDRESS:PORT or unix:PATH")),
        };
    }
    let path = config.as_deref().unwrap_or(Path::new("steadfast.toml"));
    crate::config::admin_address(path).map_err(|error| error.to_string())
}
