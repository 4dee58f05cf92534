//! A connection that has been switched to another protocol: bytes both ways until one side ends or both are silent.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};

use super::Raw;
use crate::clock::{Moment, Ticker};

/// How long the last bytes may take to leave.
const GOODBYE: Duration = Duration::from_secs(1);

/// What went through a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnelled {
    pub to_server: u64,
    pub to_client: u64,
}

/// Carries bytes until both sides have ended, either breaks, or neither says anything for `idle`.
pub async fn tunnel(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    server: Raw,
    idle: Option<Duration>,
    ticker: Rc<Ticker>,
) -> Tunnelled {
    let traffic = Rc::new(Traffic { last: Cell::new(ticker.coarse_now()), ..Traffic::default() });
    let Raw { io, ahead } = server;
    {
        let mut watched = Watched { io, traffic: Rc::clone(&traffic), ticker: Rc::clone(&ticker) };
        let mut copying = pin!(async {
            if !ahead.is_empty() {
                client.write_all(&ahead).await?;
                client.flush().await?;
                traffic.to_client.set(ahead.len() as u64);
            }
            copy_bidirectional(&mut client, &mut watched).await
        });
        let mut deadline = idle.map(|span| ticker.deadline(span));
        poll_fn(|cx| {
            if copying.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let (Some(deadline), Some(span)) = (&mut deadline, idle) else { return Poll::Pending };
            while deadline.poll(cx).is_ready() {
                let silent = ticker.coarse_now().since(traffic.last.get());
                if silent >= span {
                    return Poll::Ready(());
                }
                deadline.reset(span - silent);
            }
            Poll::Pending
        })
        .await;
    }
    // A client that no longer reads would hold its goodbye for ever.
    let _ = tokio::time::timeout(GOODBYE, client.shutdown()).await;
    traffic.seen()
}

#[derive(Default)]
struct Traffic {
    last: Cell<Moment>,
    to_server: Cell<u64>,
    to_client: Cell<u64>,
}

impl Traffic {
    fn seen(&self) -> Tunnelled {
        Tunnelled { to_server: self.to_server.get(), to_client: self.to_client.get() }
    }
}

/// The server's side, noting what passes: everything that passes, passes here.
struct Watched<T> {
    io: T,
    traffic: Rc<Traffic>,
    ticker: Rc<Ticker>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, out);
        let read = out.filled().len() - before;
        if read > 0 {
            self.traffic.last.set(self.ticker.coarse_now());
            self.traffic.to_client.set(self.traffic.to_client.get() + read as u64);
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = polled {
            self.traffic.last.set(self.ticker.coarse_now());
            self.traffic.to_server.set(self.traffic.to_server.get() + written as u64);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
