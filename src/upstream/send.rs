//! Sending a request, and waiting for the head of its response.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::conns::{Connection, Conns, Driven};
use super::response::{Lease, UpstreamBody, Via};
use super::{OutBody, RequestBody, Target};
use crate::clock::{Deadline, Ticker};

/// Why there is no response.
pub struct SendFailure {
    pub kind: FailureKind,
    /// The server has seen nothing of the request, or says that it did nothing with it.
    pub unsent: bool,
    /// The connection had served before: the server may just have closed it.
    pub reused: bool,
    /// Not a byte of the request was written.
    pub unwritten: bool,
}

/// How an attempt failed after its connection stood.
#[derive(Debug, thiserror::Error)]
pub enum FailureKind {
    #[error("the connection broke before the response: {0}")]
    Broken(#[source] hyper::Error),
    #[error("no response within the time allowed")]
    TimedOut,
}

/// What limits the waiting for a response.
pub struct TimeLimits<'a> {
    /// From the last byte of the request to the head of the response; none: as long as it takes.
    pub first_byte: Option<Duration>,
    /// Between two pieces of the response's body.
    pub between_bytes: Option<Duration>,
    /// Between two pieces of the request's body, from the client or to the server.
    pub stall: Option<Duration>,
    /// Whose end starts the wait for the first byte.
    pub body: &'a RequestBody,
}

impl Connection {
    /// Sends a request and waits for the head of its response.
    pub async fn send(
        self,
        request: Request<OutBody>,
        limits: TimeLimits<'_>,
        conns: &Rc<Conns>,
        target: &Arc<Target>,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        match self {
            Connection::Http1 { mut conn, reused } => {
                let sending = conn.sender.try_send_request(request);
                let received = await_head(sending, Some(&mut conn.driven), &limits, &conns.ticker).await;
                let response = received.map_err(|failure| failure.on(reused))?;
                conn.heed_keep_alive(response.headers());
                let silence = limits.between_bytes.map(|span| (conns.ticker.deadline(span), span));
                let lease = Lease { conn, conns: Rc::clone(conns), target: Arc::clone(target) };
                Ok(response.map(|body| UpstreamBody { body, via: Via::Http1(Some(lease)), silence }))
            }
            Connection::Http2 { stream, reused } => {
                let mut sender = stream.conn.sender.clone();
                let received = await_head(sender.try_send_request(request), None, &limits, &conns.ticker).await;
                if limits.body.fault().is_none() && received.as_ref().is_err_and(SendFailure::is_timeout) {
                    conns.forget(target, &stream.conn);
                }
                let response = received.map_err(|failure| failure.on(reused))?;
                let silence = limits.between_bytes.map(|span| (conns.ticker.deadline(span), span));
                Ok(response.map(|body| UpstreamBody { body, via: Via::Http2 { _stream: stream }, silence }))
            }
        }
    }
}

async fn await_head(
    sending: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<OutBody>>>>,
    mut driven: Option<&mut Driven>,
    limits: &TimeLimits<'_>,
    ticker: &Rc<Ticker>,
) -> Result<Response<Incoming>, SendFailure> {
    let mut sending = pin!(sending);
    let mut patience = Patience::default();
    poll_fn(|cx| {
        if let Some(driven) = &mut driven {
            driven.drive(cx);
        }
        let mut polled = sending.as_mut().poll(cx);
        if polled.is_pending() && driven.as_mut().is_some_and(|driven| driven.release()) {
            polled = sending.as_mut().poll(cx);
        }
        if let Poll::Ready(received) = polled {
            return Poll::Ready(received.map_err(SendFailure::from));
        }
        ready!(patience.poll_exhausted(cx, limits, ticker));
        Poll::Ready(Err(SendFailure::timed_out()))
    })
    .await
}

/// How long a request may take to be sent, and then to be answered.
#[derive(Default)]
struct Patience {
    /// While the body is being sent: the bytes of it so far, and until when there must be more.
    sending: Option<(u64, Deadline)>,
    answer: Option<Deadline>,
}

impl Patience {
    fn poll_exhausted(&mut self, cx: &mut Context<'_>, limits: &TimeLimits<'_>, ticker: &Rc<Ticker>) -> Poll<()> {
        if limits.body.poll_complete(cx) {
            let Some(span) = limits.first_byte else { return Poll::Pending };
            return self.answer.get_or_insert_with(|| ticker.deadline(span)).poll(cx);
        }
        let Some(span) = limits.stall else { return Poll::Pending };
        let received = limits.body.received();
        match &mut self.sending {
            Some((before, _)) if *before == received => {}
            other => *other = Some((received, ticker.deadline(span))),
        }
        let Some((_, deadline)) = &mut self.sending else { return Poll::Pending };
        ready!(deadline.poll(cx));
        // Either the client has stopped, or the server does not take what the client sends.
        limits.body.give_up_client();
        Poll::Ready(())
    }
}

impl SendFailure {
    fn is_timeout(&self) -> bool {
        matches!(self.kind, FailureKind::TimedOut)
    }

    fn timed_out() -> Self {
        SendFailure { kind: FailureKind::TimedOut, unsent: false, reused: false, unwritten: false }
    }

    fn on(mut self, reused: bool) -> Self {
        self.reused = reused;
        self
    }
}

impl From<TrySendError<Request<OutBody>>> for SendFailure {
    fn from(mut failed: TrySendError<Request<OutBody>>) -> Self {
        let unwritten = failed.take_message().is_some();
        let error = failed.into_error();
        let unsent = unwritten || was_refused(&error);
        SendFailure { unsent, reused: false, unwritten, kind: FailureKind::Broken(error) }
    }
}

/// HTTP/2: REFUSED_STREAM, or a stream above the last one that GOAWAY says was served.
fn was_refused(error: &hyper::Error) -> bool {
    use std::error::Error as _;
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|error| {
        error.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR))
    })
}
