//! A client's byte stream, and its connection in the books.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::AddressGuard;
use super::connections::Activity;
use super::socket::ClientSocket;
use super::spread::Place;
use crate::metrics::{ListenerMetrics, WorkerId};

/// The client's byte stream, plain or TLS, noting what goes on.
pub struct ClientIo {
    stream: Stream,
    /// What was read and then given back; the next read begins with it.
    ahead: Bytes,
    open: OpenConnection,
}

pub(super) enum Stream {
    Plain(ClientSocket),
    Tls(Box<TlsStream<ClientSocket>>),
}

impl ClientIo {
    pub(super) fn new(stream: Stream, open: OpenConnection) -> Self {
        ClientIo { stream, ahead: Bytes::new(), open }
    }

    /// Gives back what was read and not used. It is copied: the piece would keep the whole buffer that it is of.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.ahead = [bytes, &self.ahead].concat().into();
        }
    }

    /// Whether something given back is still to be read.
    pub(super) fn has_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Ready when the client has sent something, or has gone.
    pub(super) fn poll_heard(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.stream {
            Stream::Plain(socket) => socket.poll_heard(cx),
            Stream::Tls(tls) => tls.get_ref().0.poll_heard(cx),
        }
    }
}

/// An open connection in the books, from its accept to its end.
pub(super) struct OpenConnection {
    pub(super) activity: Rc<Activity>,
    metrics: Arc<ListenerMetrics>,
    worker: WorkerId,
    _place: Place,
    /// Its place among those of its address, where there is a limit.
    pub(super) address: Option<AddressGuard>,
}

impl OpenConnection {
    pub(super) fn new(activity: Rc<Activity>, metrics: Arc<ListenerMetrics>, worker: WorkerId, place: Place) -> Self {
        metrics.cells.of(worker).open.add(1);
        OpenConnection { activity, metrics, worker, _place: place, address: None }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.activity.close();
        self.metrics.cells.of(self.worker).open.sub(1);
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let taken = self.ahead.len().min(out.remaining());
            let now = self.ahead.split_to(taken);
            out.put_slice(&now);
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        let polled = match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_read(cx, out),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, out),
        };
        if out.filled().len() > before {
            self.open.activity.received();
        }
        polled
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        };
        self.open.activity.wrote(polled.is_ready());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Stream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, slices),
        };
        self.open.activity.wrote(polled.is_ready());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        };
        self.open.activity.wrote(polled.is_ready());
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        };
        self.open.activity.wrote(polled.is_ready());
        polled
    }
}
