//! A server's response on its way through, and its connection afterwards.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::conns::{Conns, Http1, Stream};
use super::{Io, Target};
use crate::clock::Deadline;

/// A response's body that drives its connection and gives it back at its end.
pub struct UpstreamBody {
    pub(super) body: Incoming,
    pub(super) via: Via,
    pub(super) silence: Option<(Deadline, Duration)>,
}

pub(super) enum Via {
    Http1(Option<Lease>),
    Http2 { _stream: Stream },
}

pub(super) struct Lease {
    pub(super) conn: Box<Http1>,
    pub(super) conns: Rc<Conns>,
    pub(super) target: Arc<Target>,
}

/// Why a response's body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the server's response broke off: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the server was silent for too long")]
    Silent,
}

/// A connection taken over after a 101: the stream, and what was read past the head.
pub struct Raw {
    pub io: Io,
    pub ahead: Bytes,
}

impl UpstreamBody {
    /// Takes the connection over for another protocol.
    pub async fn into_raw(mut self) -> Option<Raw> {
        let Via::Http1(lease) = &mut self.via else { return None };
        let Lease { conn, .. } = lease.take()?;
        conn.driven.into_raw().await
    }

    fn end(&mut self) {
        if let Via::Http1(lease) = &mut self.via
            && let Some(Lease { conn, conns, target }) = lease.take()
        {
            conns.give_back(&target, conn);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let me = &mut *self;
        // What is buffered first; only then the socket again.
        let mut polled = Pin::new(&mut me.body).poll_frame(cx);
        if polled.is_pending()
            && let Via::Http1(Some(lease)) = &mut me.via
        {
            lease.conn.driven.drive(cx);
            polled = Pin::new(&mut me.body).poll_frame(cx);
        }
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if frame.is_trailers() {
                    // Nobody asks for more after these.
                    me.end();
                }
                if let Some((deadline, span)) = &mut me.silence {
                    deadline.reset(*span);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                me.end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let Some((deadline, _)) = &mut me.silence else { return Poll::Pending };
                ready!(deadline.poll(cx));
                Poll::Ready(Some(Err(BodyError::Silent)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        // hyper drops a body that says it is at its end without asking for the end.
        if self.body.is_end_stream() {
            self.end();
        }
    }
}
