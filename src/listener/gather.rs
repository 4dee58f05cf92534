//! HTTP/2 output, gathered over one poll of the connection.
//!
//! h2 writes and flushes each piece of a body for itself, which makes every small response a TLS record and a system
//! call of its own. Here writing only gathers; what one poll of the connection has written is sealed and sent together
//! when the poll has returned. A full buffer is sent before it takes more: that is the back-pressure.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is gathered before it has to be sent.
const MOST_BYTES: usize = 64 * 1024;

thread_local! {
    /// The buffer that nobody uses now: a connection has one only from its first write to the end of its poll, unless its
    /// client is slow.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A byte stream whose output is sent when its keeper says so.
pub(super) struct Gather<T>(Rc<RefCell<Gathered<T>>>);

struct Gathered<T> {
    io: T,
    bytes: Vec<u8>,
    sent: usize,
}

impl<T: AsyncWrite + Unpin> Gather<T> {
    pub(super) fn new(io: T) -> Self {
        Gather(Rc::new(RefCell::new(Gathered { io, bytes: Vec::new(), sent: 0 })))
    }

    /// Another handle to the same stream.
    pub(super) fn handle(&self) -> Self {
        Gather(Rc::clone(&self.0))
    }

    /// Sends what was gathered.
    pub(super) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(cx)
    }
}

impl<T: AsyncWrite + Unpin> Gathered<T> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.bytes.len() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.bytes[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.sent = 0;
        self.bytes.clear();
        SPARE.set(std::mem::take(&mut self.bytes));
        Poll::Ready(Ok(()))
    }

    /// Makes room for more.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.bytes.len() >= MOST_BYTES {
            ready!(self.poll_send(cx))?;
        }
        if self.bytes.capacity() == 0 {
            self.bytes = SPARE.take();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gather<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_read(cx, out)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gather<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gathered = self.0.borrow_mut();
        ready!(gathered.poll_room(cx))?;
        let before = gathered.bytes.len();
        slices.iter().for_each(|slice| gathered.bytes.extend_from_slice(slice));
        Poll::Ready(Ok(gathered.bytes.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing waits for this: the keeper sends after every poll.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.borrow_mut();
        ready!(gathered.poll_send(cx))?;
        Pin::new(&mut gathered.io).poll_shutdown(cx)
    }
}
