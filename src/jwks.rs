//! Public keys of token issuers (JWKS, RFC 7517), fetched over https or read from a file.
//!
//! What an issuer shows decides whose tokens count, so it is fetched over TLS only, from the address that the
//! configuration names: no redirect is followed. What comes is bounded in time and in size; reading it is `stateless`'s
//! business.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::stateless::MOST_KEYS_BYTES;
use crate::tasks::Owned;
use crate::tls::ServerName;

/// For name, connection, handshake and answer together.
const PATIENCE: Duration = Duration::from_secs(10);
const HTTPS_PORT: u16 = 443;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("its URL names no host")]
    Url,
    #[error("the file cannot be read: {0}")]
    File(std::io::Error),
    #[error("it is no file")]
    NoFile,
    #[error("the file is larger than {MOST_KEYS_BYTES} bytes")]
    FileTooLarge,
    #[error("it does not answer: {0}")]
    Connect(#[from] std::io::Error),
    #[error("it does not speak HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("its answer is cut, or larger than {MOST_KEYS_BYTES} bytes")]
    Body,
    #[error("it did not answer within {PATIENCE:?}")]
    TimedOut,
}

/// Fetches a key set.
pub async fn fetch(url: &str, tls: Arc<ClientConfig>) -> Result<Bytes, FetchError> {
    let uri: Uri = url.parse().map_err(|_| FetchError::Url)?;
    tokio::time::timeout(PATIENCE, get(&uri, tls)).await.unwrap_or(Err(FetchError::TimedOut))
}

/// Reads a key set from a file.
pub fn read(path: &Path) -> Result<Bytes, FetchError> {
    // A pipe would be waited for.
    if !std::fs::metadata(path).map_err(FetchError::File)?.is_file() {
        return Err(FetchError::NoFile);
    }
    let file = std::fs::File::open(path).map_err(FetchError::File)?;
    let mut text = Vec::new();
    let most = u64::try_from(MOST_KEYS_BYTES).unwrap_or(u64::MAX);
    file.take(most + 1).read_to_end(&mut text).map_err(FetchError::File)?;
    if text.len() > MOST_KEYS_BYTES { Err(FetchError::FileTooLarge) } else { Ok(text.into()) }
}

async fn get(uri: &Uri, tls: Arc<ClientConfig>) -> Result<Bytes, FetchError> {
    let host = uri.host().ok_or(FetchError::Url)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned()).map_err(|_| FetchError::Url)?;
    let tcp = TcpStream::connect((bare, uri.port_u16().unwrap_or(HTTPS_PORT))).await?;
    let stream = TlsConnector::from(tls).connect(name, tcp).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _driver = Owned::spawn(async move {
        // What becomes of the connection shows in the answer.
        let _ = connection.await;
    });
    let authority = uri.authority().map_or(host, |authority| authority.as_str());
    let request = Request::builder()
        .method(Method::GET)
        .uri(uri.path_and_query().map_or("/", |target| target.as_str()))
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::USER_AGENT, "steadfast")
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::Url)?;
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), MOST_KEYS_BYTES).collect().await;
    Ok(body.map_err(|_| FetchError::Body)?.to_bytes())
}
