//! Opening a byte stream to a server.

use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Address, Target};

/// Why no connection came about. Nothing of a request was sent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("its name has no address")]
    NoAddress,
    #[error("connection failed: {0}")]
    Refused(#[source] io::Error),
    #[error("no connection within the time allowed")]
    TimedOut,
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    #[error("HTTP/2 was configured, but the server does not offer it")]
    NoHttp2,
}

/// A byte stream to a server.
pub enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
    TcpTls(Box<TlsStream<TcpStream>>),
    UnixTls(Box<TlsStream<UnixStream>>),
}

/// When a server that no longer answers is given up: probes after a minute of silence, and a minute for what was sent.
const KEEP_ALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Connects, with TLS where the target wants it, within the target's time.
pub async fn connect(target: &Target) -> Result<Io, ConnectError> {
    let limit = target.settings.connect_timeout;
    let connected = tokio::time::timeout(limit, open(target)).await.unwrap_or(Err(ConnectError::TimedOut));
    if connected.is_err() {
        target.stale_name.store(true, Ordering::Relaxed);
    }
    connected
}

async fn open(target: &Target) -> Result<Io, ConnectError> {
    match &target.settings.address {
        Address::Tcp { .. } => {
            let tcp = open_tcp(target).await?;
            match tls(target) {
                None => Ok(Io::Tcp(tcp)),
                Some((connector, name)) => {
                    let stream = connector.connect(name, tcp).await.map_err(ConnectError::Tls)?;
                    check_alpn(target, stream.get_ref().1.alpn_protocol())?;
                    Ok(Io::TcpTls(Box::new(stream)))
                }
            }
        }
        Address::Unix(path) => {
            let unix = UnixStream::connect(path).await.map_err(ConnectError::Refused)?;
            match tls(target) {
                None => Ok(Io::Unix(unix)),
                Some((connector, name)) => {
                    let stream = connector.connect(name, unix).await.map_err(ConnectError::Tls)?;
                    check_alpn(target, stream.get_ref().1.alpn_protocol())?;
                    Ok(Io::UnixTls(Box::new(stream)))
                }
            }
        }
    }
}

/// Several addresses of a name are tried in turn, as one server.
async fn open_tcp(target: &Target) -> Result<TcpStream, ConnectError> {
    let addresses = target.addresses();
    let mut last = ConnectError::NoAddress;
    for (tried, address) in (0u32..).zip(addresses.iter()) {
        // One that swallows everything must leave time for the others.
        let left = u32::try_from(addresses.len()).unwrap_or(u32::MAX) - tried;
        let limit = target.settings.connect_timeout / left.max(1);
        match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                set_options(&tcp);
                return Ok(tcp);
            }
            Ok(Err(error)) => last = ConnectError::Refused(error),
            Err(_) => last = ConnectError::TimedOut,
        }
    }
    Err(last)
}

/// Options that a socket can do without, if the system has them not.
fn set_options(tcp: &TcpStream) {
    // Without it, TLS handshakes and small requests wait 40 ms for an acknowledgement.
    let _ = tcp.set_nodelay(true);
    let socket = SockRef::from(tcp);
    let _ = socket.set_tcp_keepalive(&KEEP_ALIVE);
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
}

fn tls(target: &Target) -> Option<(TlsConnector, crate::tls::ServerName<'static>)> {
    let (name, _) = target.settings.tls.as_ref()?;
    Some((TlsConnector::from(target.tls.clone()?), name.clone()))
}

fn check_alpn(target: &Target, chosen: Option<&[u8]>) -> Result<(), ConnectError> {
    if target.settings.http2 && chosen != Some(b"h2") { Err(ConnectError::NoHttp2) } else { Ok(()) }
}

macro_rules! each {
    ($io:expr, $stream:ident => $call:expr) => {
        match $io {
            Io::Tcp($stream) => $call,
            Io::Unix($stream) => $call,
            Io::TcpTls($stream) => $call,
            Io::UnixTls($stream) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_read(cx, out))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(&mut *self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [one] = slices {
            return self.poll_write(cx, one);
        }
        each!(&mut *self, stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
