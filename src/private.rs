//! Addresses that clients do not reach: the admin surface's and the session API's. Bound before anything is served,
//! over TCP, TLS or a Unix socket.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};

/// Where one listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(out),
            Address::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

/// A bound address.
pub enum Socket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

/// An accepted connection.
pub trait Connection: AsyncRead + AsyncWrite + Unpin {}

impl<C: AsyncRead + AsyncWrite + Unpin> Connection for C {}

/// A connection and how it came.
pub enum Accepted {
    Tcp(TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Accepted {
    /// Our end of it, over TCP.
    pub fn local(&self) -> Option<IpAddr> {
        match self {
            Accepted::Tcp(stream) => stream.local_addr().ok().map(|address| address.ip()),
            Accepted::Unix(_) => None,
        }
    }
}

impl Socket {
    /// Binds an address.
    pub fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Self::bind_tcp(*address),
            Address::Unix(path) => Self::bind_unix(path),
        }
    }

    /// Binds a TCP address.
    pub fn bind_tcp(address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Socket::Tcp(listener))
    }

    fn bind_unix(path: &Path) -> io::Result<Self> {
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

    /// The address that was bound.
    pub fn local(&self) -> String {
        match self {
            Socket::Tcp(listener) => listener.local_addr().map_or_else(|error| error.to_string(), |at| at.to_string()),
            Socket::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// Accepts connections for as long as it is polled; gives why it cannot.
    pub async fn accept_all(self, mut open: impl FnMut(Accepted)) -> io::Error {
        match self {
            Socket::Tcp(listener) => match TcpListener::from_std(listener) {
                Ok(listener) => accept(|| listener.accept(), |(stream, _)| open(Accepted::Tcp(stream))).await,
                Err(error) => error,
            },
            Socket::Unix(listener, _) => match UnixListener::from_std(listener) {
                Ok(listener) => accept(|| listener.accept(), |(stream, _)| open(Accepted::Unix(stream))).await,
                Err(error) => error,
            },
        }
    }
}

async fn accept<T, F: Future<Output = io::Result<T>>>(accept: impl Fn() -> F, mut open: impl FnMut(T)) -> io::Error {
    loop {
        match accept().await {
            Ok(accepted) => open(accepted),
            Err(error) => {
                tracing::warn!(%error, "a connection to a private address could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
