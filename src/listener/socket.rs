//! The client's socket, read in large gulps.
//!
//! rustls asks its socket for 4 KiB at a time; one large `recv` into the worker's scratch buffer, of which only the
//! rest is kept, saves most of those system calls. The same rest holds what was read past a PROXY header.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const SCRATCH_BYTES: usize = 64 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_BYTES]);
}

/// A client's TCP connection with what was read ahead of its readers.
pub struct ClientSocket {
    tcp: TcpStream,
    ahead: Vec<u8>,
    taken: usize,
}

impl ClientSocket {
    pub(super) fn new(tcp: TcpStream) -> Self {
        ClientSocket { tcp, ahead: Vec::new(), taken: 0 }
    }

    /// Gives back bytes that were read but are not the reader's; the next read begins with them.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        let rest = self.ahead.split_off(self.taken);
        self.ahead = [bytes, &rest].concat();
        self.taken = 0;
    }

    /// Ready when there is something to read, or the end.
    pub(super) fn poll_heard(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.taken < self.ahead.len() { Poll::Ready(Ok(())) } else { self.tcp.poll_read_ready(cx) }
    }

    fn poll_gulp(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut gulp = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut gulp))?;
            let (now, later) = gulp.filled().split_at(gulp.filled().len().min(out.remaining()));
            out.put_slice(now);
            self.taken = 0;
            self.ahead.clear();
            if later.is_empty() {
                // An idle connection keeps no buffer.
                self.ahead = Vec::new();
            } else {
                self.ahead.extend_from_slice(later);
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.taken == self.ahead.len() {
            return self.poll_gulp(cx, out);
        }
        let end = self.ahead.len().min(self.taken + out.remaining());
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
