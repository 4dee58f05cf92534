//! What wrk and h2load do not do: resumed handshakes, connections that stay idle, and an origin that reads uploads.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};

/// What a load has done.
pub(crate) struct Done {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} requests, {} errors", self.requests, self.errors)
    }
}

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A client that takes any certificate, and resumes what it can. It exchanges keys over X25519, as wrk's OpenSSL does:
/// the post-quantum hybrid costs whoever offers it more.
pub(crate) fn config() -> Arc<ClientConfig> {
    steadfast::tls::install_provider();
    let any = steadfast::tls::any_certificate().expect("the provider is installed");
    let provider = CryptoProvider { kx_groups: vec![kx_group::X25519], ..aws_lc_rs::default_provider() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider knows TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(any)
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(64);
    Arc::new(config)
}

/// A new connection; the handshake comes with the first bytes.
pub(crate) fn connect(config: &Arc<ClientConfig>, port: u16) -> std::io::Result<Tls> {
    let name = ServerName::try_from("localhost").expect("a name");
    let session = ClientConnection::new(Arc::clone(config), name).map_err(std::io::Error::other)?;
    let socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(StreamOwned::new(session, socket))
}

/// One request on a new connection; false: it was not answered with 200.
fn exchange(config: &Arc<ClientConfig>, port: u16, more: &str) -> std::io::Result<(Tls, bool)> {
    let mut stream = connect(config, port)?;
    stream.write_all(format!("GET /1k HTTP/1.1\r\nHost: localhost\r\n{more}\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 4_096];
    let is_whole = |answer: &[u8]| {
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
        head.is_some_and(|head| answer.len() >= head + 4 + 1_024)
    };
    while !is_whole(&answer) {
        match stream.read(&mut piece)? {
            0 => return Ok((stream, false)),
            read => answer.extend_from_slice(&piece[..read]),
        }
    }
    Ok((stream, answer.starts_with(b"HTTP/1.1 200")))
}

/// One connection after the other, each resuming the session of the one before.
pub(crate) fn resume(port: u16, seconds: u64, cookie: &str) -> Done {
    let config = config();
    let more = format!("Cookie: {cookie}\r\nConnection: close\r\n");
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut done = Done { requests: 0, errors: 0 };
    while Instant::now() < deadline {
        match exchange(&config, port, &more) {
            Ok((stream, fine)) => {
                let resumed = stream.conn.handshake_kind() == Some(HandshakeKind::Resumed);
                // The first one of all has nothing to resume.
                done.errors += u64::from(!fine || (!resumed && done.requests > 0));
                done.requests += 1;
            }
            Err(_) => done.errors += 1,
        }
    }
    done
}

/// Opens connections, each with one request, that stay; the flag says whether all were answered.
pub(crate) fn idle(port: u16, count: usize) -> (Vec<impl Sized + use<>>, bool) {
    let config = config();
    let opened: Vec<(Tls, bool)> = (0..count).filter_map(|_| exchange(&config, port, "").ok()).collect();
    let fine = opened.len() == count && opened.iter().all(|(_, fine)| *fine);
    (opened, fine)
}

/// An origin that reads each request's body to its end before it answers.
pub(crate) fn start_upload_origin(port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the origin's port is free");
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || serve_uploads(socket));
        }
    });
}

fn serve_uploads(socket: TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut answer = socket.try_clone()?;
    let mut requests = BufReader::with_capacity(256 * 1024, socket);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line.is_empty() {
                break;
            }
        }
        while length > 0 {
            let there = requests.fill_buf()?.len().min(length);
            if there == 0 {
                return Ok(());
            }
            requests.consume(there);
            length -= there;
        }
        answer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
    }
}
