//! The admin surface: metrics, health and the operator's hands, on an address that clients do not reach.

mod api;
mod describe;
mod explain;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::Registry;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};

use crate::config::AdminAddress;
use crate::metrics;
use crate::routing::Authority;
use crate::runtime::Runtime;
use crate::tasks;

/// Connections served at once, per address: scrapes and people, no crowds.
const MOST_CONNECTIONS: usize = 64;

/// A bound address of the admin surface.
pub enum Socket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

/// Binds the admin address.
pub fn bind(address: &AdminAddress) -> io::Result<Socket> {
    match address {
        AdminAddress::Tcp(address) => bind_tcp(*address),
        AdminAddress::Unix(path) => bind_unix(path),
    }
}

/// Binds a TCP address.
pub fn bind_tcp(address: SocketAddr) -> io::Result<Socket> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(Socket::Tcp(listener))
}

fn bind_unix(path: &Path) -> io::Result<Socket> {
    // A socket that an earlier process left behind is in the way; anything else there is none of ours.
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket {
        let answered = std::os::unix::net::UnixStream::connect(path);
        if answered.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            std::fs::remove_file(path)?;
        }
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(Socket::Unix(listener, path.to_owned()))
}

impl Socket {
    /// The address that was bound, for the log.
    pub fn local(&self) -> String {
        match self {
            Socket::Tcp(listener) => listener.local_addr().map_or_else(|error| error.to_string(), |at| at.to_string()),
            Socket::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }
}

/// A reload that the API asks for, and where its result goes: none for taken, or every problem.
pub type ReloadRequest = oneshot::Sender<Result<(), Value>>;

struct Surface {
    runtime: Arc<Runtime>,
    /// Who reloads; none on the address that only serves metrics.
    reloads: Option<mpsc::Sender<ReloadRequest>>,
    registry: Registry,
    places: tokio::sync::Semaphore,
}

/// Serves one address for as long as the future is polled. With someone to ask for reloads it is the operator's, else it
/// has metrics and health only.
pub async fn serve(socket: Socket, runtime: Arc<Runtime>, reloads: Option<mpsc::Sender<ReloadRequest>>) {
    let registry = match runtime.metrics.registry() {
        Ok(registry) => registry,
        Err(error) => return tracing::error!(%error, "metrics cannot be registered"),
    };
    let places = tokio::sync::Semaphore::new(MOST_CONNECTIONS);
    let surface = Rc::new(Surface { runtime, registry, reloads, places });
    let ended = match socket {
        Socket::Tcp(listener) => match TcpListener::from_std(listener) {
            Ok(listener) => loop {
                match listener.accept().await {
                    Ok((stream, _)) => open(&surface, stream),
                    Err(error) => pause(&error).await,
                }
            },
            Err(error) => error,
        },
        Socket::Unix(listener, _) => match UnixListener::from_std(listener) {
            Ok(listener) => loop {
                match listener.accept().await {
                    Ok((stream, _)) => open(&surface, stream),
                    Err(error) => pause(&error).await,
                }
            },
            Err(error) => error,
        },
    };
    tracing::error!(error = %ended, "the admin surface cannot be served");
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "an admin connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

fn open(surface: &Rc<Surface>, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
    let surface = Rc::clone(surface);
    // The connection ends by the client, or by the header timeout.
    tasks::spawn(async move {
        let Ok(_place) = surface.places.try_acquire() else { return };
        let service = service_fn(|request| {
            let surface = Rc::clone(&surface);
            async move { Ok::<_, Infallible>(surface.answer(request).await) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    });
}

impl Surface {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if let Some(reloads) = &self.reloads {
            if let Err(why) = check_origin(&request) {
                return problem(StatusCode::FORBIDDEN, why);
            }
            if request.uri().path().starts_with(api::PREFIX) {
                return api::answer(&self.runtime, reloads, request).await;
            }
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return problem(StatusCode::METHOD_NOT_ALLOWED, "Only GET is served here.");
        }
        match request.uri().path() {
            "/metrics" => match metrics::encode(&self.registry) {
                Ok(text) => reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
                Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            "/healthz" => reply(StatusCode::OK, "text/plain", "ok\n"),
            "/readyz" if self.runtime.ready.load(Ordering::Relaxed) => reply(StatusCode::OK, "text/plain", "ready\n"),
            "/readyz" => reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not ready\n"),
            _ => problem(StatusCode::NOT_FOUND, "There is /metrics, /healthz, /readyz, and the API under /api/v1/."),
        }
    }
}

/// A page must not drive this surface: not by a name that it rebinds to us, and not from another origin.
fn check_origin(request: &Request<Incoming>) -> Result<(), &'static str> {
    let text = |name| request.headers().get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("unreadable"));
    let host = text(header::HOST);
    if host.is_some_and(|host| !is_local(host)) {
        return Err("The Host of the request is not this address.");
    }
    let safe = request.method() == Method::GET || request.method() == Method::HEAD;
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, authority)| Some(authority) == host);
    if !safe && text(header::ORIGIN).is_some_and(|origin| !own(origin)) {
        return Err("The request comes from another origin.");
    }
    Ok(())
}

/// A loopback literal, or localhost.
fn is_local(host: &str) -> bool {
    let Some(authority) = Authority::parse(host) else { return false };
    let address = authority.host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    authority.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn problem(status: StatusCode, detail: &str) -> Response<Full<Bytes>> {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = serde_json::json!({ "title": title, "status": status.as_u16(), "detail": detail });
    reply(status, "application/problem+json", body.to_string())
}
