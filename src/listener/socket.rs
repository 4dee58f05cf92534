//! The client's socket, read in large gulps.
//!
//! rustls asks its socket for 4 KiB at a time; one large `recv` into a scratch buffer saves most of those system calls.
//! What the reader does not take at once is kept: a little of it in a copy, so that the scratch buffer stays with the
//! worker; much of it in the scratch buffer itself, which a connection that uploads then reads into again and again. The
//! same rest holds what was read past a PROXY header.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const SCRATCH_BYTES: usize = 64 * 1024;

/// A rest of so many bytes is not copied: its connection takes the buffer that it is in.
const TAKE_BYTES: usize = 16 * 1024;

thread_local! {
    /// The buffer of whichever connection reads next; empty when the last one has taken it.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A client's TCP connection with what was read ahead of its readers.
pub struct ClientSocket {
    tcp: TcpStream,
    /// Holds what was read ahead between `taken` and `end`.
    ahead: Vec<u8>,
    taken: usize,
    end: usize,
}

impl ClientSocket {
    pub(super) fn new(tcp: TcpStream) -> Self {
        ClientSocket { tcp, ahead: Vec::new(), taken: 0, end: 0 }
    }

    /// Gives back bytes that were read but are not the reader's; the next read begins with them.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.keep([bytes, &self.ahead[self.taken..self.end]].concat());
    }

    /// Ready when there is something to read, or the end.
    pub(super) fn poll_heard(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.taken < self.end { Poll::Ready(Ok(())) } else { self.tcp.poll_read_ready(cx) }
    }

    fn keep(&mut self, bytes: Vec<u8>) {
        (self.taken, self.end) = (0, bytes.len());
        self.ahead = bytes;
    }

    /// Reads from the socket, with nothing left of what was read before.
    fn poll_gulp(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut own = std::mem::take(&mut self.ahead);
        (self.taken, self.end) = (0, 0);
        let mut buffer = if own.len() == SCRATCH_BYTES { std::mem::take(&mut own) } else { SCRATCH.take() };
        buffer.resize(SCRATCH_BYTES, 0);
        let mut gulp = ReadBuf::new(&mut buffer);
        let polled = Pin::new(&mut self.tcp).poll_read(cx, &mut gulp);
        let read = gulp.filled().len();
        let now = read.min(out.remaining());
        out.put_slice(&buffer[..now]);
        if read - now >= TAKE_BYTES {
            self.ahead = buffer;
            (self.taken, self.end) = (now, read);
            return Poll::Ready(Ok(()));
        }
        if read > now {
            own.clear();
            own.extend_from_slice(&buffer[now..read]);
            self.keep(own);
        }
        // An idle connection keeps no buffer.
        SCRATCH.set(buffer);
        polled
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.taken == self.end {
            return self.poll_gulp(cx, out);
        }
        let end = self.end.min(self.taken + out.remaining());
        out.put_slice(&self.ahead[self.taken..end]);
        self.taken = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // send() is cheaper than writev() of one slice.
        match slices {
            [one] => Pin::new(&mut self.tcp).poll_write(cx, one),
            _ => Pin::new(&mut self.tcp).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
