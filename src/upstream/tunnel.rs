//! A connection that has been switched to another protocol: bytes both ways until one side ends, both are silent, or it
//! is told to end.
//!
//! A WebSocket that the proxy ends is ended as the protocol has it: the frame under way is finished, then both sides get
//! a Close.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};
use tokio::time::timeout;

use super::Raw;
use super::frames::{Frames, close_for_client, close_for_server};
use crate::clock::{Deadline, Moment, Ticker};

/// How long each part of a goodbye may take: the frame under way, and the other side's answer to a Close.
const GOODBYE: Duration = Duration::from_secs(1);

/// What went through a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnelled {
    pub to_server: u64,
    pub to_client: u64,
    pub end: End,
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// By one of its sides.
    #[default]
    Sides,
    /// Neither said anything for too long.
    Silent,
    /// By whoever keeps it.
    Told,
}

/// What a tunnel goes by.
pub struct TunnelRules<T> {
    pub is_web_socket: bool,
    /// How long both sides may be silent.
    pub idle: Option<Duration>,
    /// Ready when it is to end.
    pub told: T,
}

/// Carries bytes until the tunnel ends.
pub async fn tunnel(
    client: impl AsyncRead + AsyncWrite + Unpin,
    server: Raw,
    rules: TunnelRules<impl Future<Output = ()>>,
    ticker: Rc<Ticker>,
) -> Tunnelled {
    let shared = Rc::new(Shared { last: Cell::new(ticker.coarse_now()), closing: Cell::new(false), ticker });
    let Raw { io, ahead } = server;
    let mut client = Watched::new(client, &shared, rules.is_web_socket);
    let mut server = Watched::new(io, &shared, rules.is_web_socket);
    let (to_client, to_server) = (Rc::clone(&client.written), Rc::clone(&server.written));
    let end = {
        let mut copying = pin!(async {
            if !ahead.is_empty() {
                client.write_all(&ahead).await?;
                client.flush().await?;
            }
            copy_bidirectional(&mut client, &mut server).await
        });
        let end = until_it_ends(copying.as_mut(), rules.idle, rules.told, &shared).await;
        if end != End::Sides && rules.is_web_socket {
            shared.closing.set(true);
            // A side that does not take the rest of its frame gets no Close either.
            let _ = timeout(GOODBYE, finish_frames(copying, [&to_client, &to_server])).await;
        }
        end
    };
    if end != End::Sides && rules.is_web_socket {
        let closes = (close_for_client(), close_for_server(fastrand::u32(..).to_be_bytes()));
        let goodbyes = async { tokio::join!(say_goodbye(&mut client, &closes.0), say_goodbye(&mut server, &closes.1)) };
        let _ = timeout(GOODBYE, goodbyes).await;
    }
    // A client that no longer reads would hold its goodbye for ever.
    let _ = timeout(GOODBYE, client.io.shutdown()).await;
    Tunnelled { to_server: to_server.bytes.get(), to_client: to_client.bytes.get(), end }
}

/// Copies until a side has ended, both are silent for `idle`, or the tunnel is told to end.
async fn until_it_ends(
    mut copying: Pin<&mut impl Future<Output = io::Result<(u64, u64)>>>,
    idle: Option<Duration>,
    told: impl Future<Output = ()>,
    shared: &Shared,
) -> End {
    let mut told = pin!(told);
    let mut deadline: Option<(Deadline, Duration)> = idle.map(|span| (shared.ticker.deadline(span), span));
    poll_fn(|cx| {
        if copying.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Sides);
        }
        if told.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Told);
        }
        let Some((deadline, span)) = &mut deadline else { return Poll::Pending };
        while deadline.poll(cx).is_ready() {
            let silent = shared.ticker.coarse_now().since(shared.last.get());
            if silent >= *span {
                return Poll::Ready(End::Silent);
            }
            deadline.reset(*span - silent);
        }
        Poll::Pending
    })
    .await
}

/// Copies until each direction stands between two frames.
async fn finish_frames(mut copying: Pin<&mut impl Future<Output = io::Result<(u64, u64)>>>, sides: [&Rc<Written>; 2]) {
    poll_fn(|cx| {
        let ended = copying.as_mut().poll(cx).is_ready();
        let between = sides.iter().all(|side| side.is_between());
        if ended || between { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Sends a Close and ends the connection on our side, then reads until the other has ended it as well.
async fn say_goodbye<T: AsyncRead + AsyncWrite + Unpin>(side: &mut Watched<T>, close: &[u8]) -> io::Result<()> {
    if side.written.is_between() {
        side.io.write_all(close).await?;
        side.io.shutdown().await?;
        let mut rest = [0; 4_096];
        while side.io.read(&mut rest).await? > 0 {}
    }
    Ok(())
}

/// What both sides of a tunnel share.
struct Shared {
    /// When anything passed last.
    last: Cell<Moment>,
    /// Only the frames under way are finished.
    closing: Cell<bool>,
    ticker: Rc<Ticker>,
}

/// What one side has been given.
struct Written {
    bytes: Cell<u64>,
    /// Where a WebSocket stands; nothing is known of other protocols.
    frames: Option<RefCell<Frames>>,
}

impl Written {
    fn is_between(&self) -> bool {
        self.frames.as_ref().is_some_and(|frames| frames.borrow().is_between())
    }
}

/// One side, noting what it is given.
struct Watched<T> {
    io: T,
    shared: Rc<Shared>,
    written: Rc<Written>,
}

impl<T> Watched<T> {
    fn new(io: T, shared: &Rc<Shared>, is_web_socket: bool) -> Self {
        let frames = is_web_socket.then(RefCell::default);
        Watched { io, shared: Rc::clone(shared), written: Rc::new(Written { bytes: Cell::new(0), frames }) }
    }

    /// How much of these bytes may be passed on.
    fn allowed(&self, bytes: &[u8]) -> usize {
        match &self.written.frames {
            Some(frames) if self.shared.closing.get() => frames.borrow().until_end(bytes),
            _ => bytes.len(),
        }
    }

    fn note(&self, bytes: &[u8]) {
        self.shared.last.set(self.shared.ticker.coarse_now());
        self.written.bytes.set(self.written.bytes.get() + bytes.len() as u64);
        if let Some(frames) = &self.written.frames {
            frames.borrow_mut().pass(bytes);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, out)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let allowed = self.allowed(bytes);
        if allowed == 0 && !bytes.is_empty() {
            // The frame under way is whole; whoever polls the copying sees it, so nobody need be woken.
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.io).poll_write(cx, &bytes[..allowed]);
        if let Poll::Ready(Ok(written)) = polled {
            self.note(&bytes[..written]);
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
