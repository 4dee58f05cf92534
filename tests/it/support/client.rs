//! A blocking client that keeps cookies, over fresh connections or one kept connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::PATIENCE;

/// A response, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a header field; empty when it is absent.
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    }

    /// What became of the affinity, without its regret.
    pub fn verdict(&self) -> String {
        self.header("steadfast-verdict").split("; regret").next().unwrap_or_default().to_owned()
    }

    /// The origin that answered.
    pub fn origin(&self) -> String {
        self.header("x-origin")
    }

    pub fn set_cookies(&self) -> Vec<String> {
        self.headers.get_all(header::SET_COOKIE).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }
}

/// One user's browser.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    server_name: String,
    host: String,
    http2: bool,
    /// Says nothing of which page a request comes from, as clients do that are no browsers.
    silent: bool,
    /// Sent with every request.
    pub headers: Vec<(String, String)>,
    pub cookies: BTreeMap<String, String>,
}

impl Client {
    pub fn plain(address: SocketAddr) -> Self {
        Client {
            address,
            tls: None,
            server_name: "localhost".to_owned(),
            host: address.to_string(),
            http2: false,
            silent: false,
            headers: Vec::new(),
            cookies: BTreeMap::new(),
        }
    }

    /// TLS that takes any certificate.
    pub fn tls(address: SocketAddr) -> Self {
        Client {
            tls: Some(Arc::new(anything_goes().with_no_client_auth())),
            host: "localhost".to_owned(),
            ..Self::plain(address)
        }
    }

    pub fn with_tls(mut self, config: ClientConfig) -> Self {
        self.tls = Some(Arc::new(config));
        self
    }

    pub fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    pub fn http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    pub fn host(mut self, host: &str) -> Self {
        self.host = host.to_owned();
        self
    }

    pub fn server_name(mut self, name: &str) -> Self {
        self.server_name = name.to_owned();
        self.host = name.to_owned();
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[track_caller]
    pub fn get(&mut self, path: &str) -> Reply {
        self.try_get(path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    pub fn try_get(&mut self, path: &str) -> Result<Reply, String> {
        self.try_send(Method::GET, path, Bytes::new())
    }

    #[track_caller]
    pub fn post(&mut self, path: &str, body: impl Into<Bytes>) -> Reply {
        self.try_send(Method::POST, path, body.into()).unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    pub fn try_send(&mut self, method: Method, path: &str, body: Bytes) -> Result<Reply, String> {
        let me = self.clone();
        let request = self.request(method, path).body(Full::new(body)).map_err(|error| error.to_string())?;
        let reply = block_on(async move {
            let mut connection = me.connect().await?;
            connection.send(request).await
        })?;
        self.keep_cookies(&reply);
        Ok(reply)
    }

    pub fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let target = if self.http2 { format!("{scheme}://{}{path}", self.host) } else { path.to_owned() };
        let is_safe = method.is_safe();
        let mut request = Request::builder().method(method).uri(target);
        if !self.http2 {
            request = request.header(header::HOST, &self.host);
        } else {
            request = request.version(Version::HTTP_2);
        }
        let says_whence =
            |(name, _): &(String, String)| ["sec-fetch-site", "origin"].contains(&name.to_ascii_lowercase().as_str());
        if !is_safe && !self.silent && !self.headers.iter().any(says_whence) {
            // As browsers do for a page's own requests.
            request = request.header("sec-fetch-site", "same-origin");
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if !self.cookies.is_empty() {
            let pairs: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            if self.http2 {
                // Crumbs, as browsers send them.
                for pair in pairs {
                    request = request.header(header::COOKIE, pair);
                }
            } else {
                request = request.header(header::COOKIE, pairs.join("; "));
            }
        }
        request
    }

    pub fn keep_cookies(&mut self, reply: &Reply) {
        for line in reply.set_cookies() {
            let pair = line.split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    /// Opens an HTTP/2 connection whose streams can be sent piece by piece.
    pub async fn connect_h2(&self) -> Result<h2::client::SendRequest<Bytes>, String> {
        let tcp = TcpStream::connect(self.address).await.map_err(|error| error.to_string())?;
        let mut config = ClientConfig::clone(self.tls.as_ref().expect("over TLS"));
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(self.server_name.clone()).map_err(|error| error.to_string())?;
        let stream =
            TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|error| error.to_string())?;
        let (sender, connection) = h2::client::handshake(stream).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        sender.ready().await.map_err(|error| error.to_string())
    }

    /// Opens a connection to be used for several requests.
    pub async fn connect(&self) -> Result<Connection, String> {
        let tcp = TcpStream::connect(self.address).await.map_err(|error| error.to_string())?;
        let _ = tcp.set_nodelay(true);
        match &self.tls {
            None => self.speak(tcp).await,
            Some(config) => {
                let mut config = ClientConfig::clone(config);
                config.alpn_protocols = vec![if self.http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
                let name = ServerName::try_from(self.server_name.clone()).map_err(|error| error.to_string())?;
                let connected = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
                self.speak(connected.map_err(|error| error.to_string())?).await
            }
        }
    }

    async fn speak(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Connection, String> {
        if self.http2 {
            let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (sender, connection) = handshake.map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            Ok(Connection::Http2(sender))
        } else {
            let (sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
            tokio::spawn(connection.with_upgrades());
            Ok(Connection::Http1(sender))
        }
    }
}

/// One connection.
pub enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    /// The response's head; its body streams.
    pub async fn begin(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        let text = |error: hyper::Error| format!("{error}: {:?}", std::error::Error::source(&error));
        match self {
            Connection::Http1(sender) => {
                sender.ready().await.map_err(text)?;
                sender.send_request(request).await.map_err(text)
            }
            Connection::Http2(sender) => sender.send_request(request).await.map_err(text),
        }
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Reply, String> {
        let (parts, body) = self.begin(request).await?.into_parts();
        let collected = body.collect().await.map_err(|error| format!("body: {error}"))?;
        let trailers = collected.trailers().cloned();
        Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body: collected.to_bytes(), trailers })
    }
}

/// Runs a future with a deadline, on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let within = tokio::time::timeout(PATIENCE * 2, future).await;
        within.unwrap_or_else(|_| Err("no end in sight".to_owned()))
    })
}

/// A TLS configuration that takes any certificate.
pub fn anything_goes() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let certificate = any_certificate();
    ClientConfig::builder().dangerous().with_custom_certificate_verifier(certificate)
}

/// Takes any certificate.
pub fn any_certificate() -> Arc<dyn ServerCertVerifier> {
    steadfast::tls::install_provider();
    steadfast::tls::any_certificate().expect("the provider is installed")
}

/// Sends bytes as they are and gives back what comes until the other side closes: a request that leaves the connection open must ask
/// for its end.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).expect("the bytes are sent");
    let mut answer = Vec::new();
    let mut buffer = [0; 16_384];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => {
                answer.extend_from_slice(b"<closed>");
                break;
            }
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("it does not close after {answer:?}")
            }
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}
