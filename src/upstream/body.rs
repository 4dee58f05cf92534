//! A request's body on its way to a server, and once more to another one.
//!
//! The body streams. While a second attempt is still possible, what has been sent is kept, up to a bound; past the
//! bound it is forgotten and the exchange can no longer be tried again once any of it was sent.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::headers;

/// What went wrong on the client's side of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// Over the route's `body_bytes`.
    TooLarge,
    /// The client's bytes are no HTTP body.
    Malformed,
    /// The client left.
    Gone,
    /// The client has stopped in the middle of its body.
    Stalled,
}

/// A request's body, held by the exchange over all its attempts.
#[derive(Clone)]
pub struct RequestBody(Option<Rc<RefCell<Source>>>);

struct Source {
    incoming: Incoming,
    /// What was read and may have to be sent again.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    keep_most: usize,
    /// More was read than is kept.
    forgotten: bool,
    received: u64,
    /// The largest body; 0: no limit.
    most: u64,
    trailers: Option<HeaderMap>,
    ended: bool,
    fault: Option<BodyFault>,
    /// The current attempt's reader; an older attempt reads nothing more.
    attempt: u32,
    /// The last thing that happened: the client was asked, and had nothing yet.
    awaits_client: bool,
    /// Who waits for the body's end.
    waiter: Option<Waker>,
}

impl RequestBody {
    /// Takes in a client's body. `keep_most`: bytes kept for another attempt; `most`: the largest body, 0 for any.
    pub fn new(incoming: Incoming, keep_most: usize, most: u64) -> Self {
        if incoming.is_end_stream() {
            return RequestBody(None);
        }
        RequestBody(Some(Rc::new(RefCell::new(Source {
            incoming,
            kept: Vec::new(),
            kept_bytes: 0,
            keep_most,
            forgotten: false,
            received: 0,
            most,
            trailers: None,
            ended: false,
            fault: None,
            attempt: 0,
            awaits_client: false,
            waiter: None,
        }))))
    }

    /// Whether another attempt could send the whole body.
    pub fn can_be_sent_again(&self) -> bool {
        self.0.as_ref().is_none_or(|source| !source.borrow().forgotten)
    }

    /// What went wrong on the client's side, if anything did.
    pub fn fault(&self) -> Option<BodyFault> {
        self.0.as_ref().and_then(|source| source.borrow().fault)
    }

    /// Bytes read from the client so far.
    pub fn received(&self) -> u64 {
        self.0.as_ref().map_or(0, |source| source.borrow().received)
    }

    /// Whether the client's body has been read to its end; else the task is woken when it has, or when more was read.
    pub fn poll_complete(&self, cx: &Context<'_>) -> bool {
        self.0.as_ref().is_none_or(|source| {
            let mut source = source.borrow_mut();
            let complete = source.is_at_end();
            if !complete {
                source.waiter = Some(cx.waker().clone());
            }
            complete
        })
    }

    /// The client has been silent for too long, if it is the client that everybody waits for.
    pub fn give_up_client(&self) -> bool {
        self.0.as_ref().is_some_and(|source| {
            let mut source = source.borrow_mut();
            if source.awaits_client {
                source.fail(BodyFault::Stalled);
            }
            source.awaits_client
        })
    }

    /// The whole body, read before any of it is sent; none if it is longer than `most`, or does not say how long it is.
    pub async fn gather(&self, most: usize) -> Result<Option<Vec<u8>>, BodyFault> {
        let Some(source) = &self.0 else { return Ok(Some(Vec::new())) };
        {
            let mut source = source.borrow_mut();
            let announced = source.incoming.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
            if announced.is_none_or(|bytes| bytes > most) {
                return Ok(None);
            }
            source.keep_most = source.keep_most.max(most);
        }
        let mut reading = self.attempt();
        let mut whole = Vec::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut reading).poll_frame(cx)).await {
            // After trailers there is nothing, and they would be given again and again.
            let Ok(data) = frame?.into_data() else { break };
            whole.extend_from_slice(&data);
        }
        Ok(Some(whole))
    }

    /// No further attempt will come: nothing more needs to be kept.
    pub fn is_final(&self) {
        if let Some(source) = &self.0 {
            source.borrow_mut().keep_most = 0;
        }
    }

    /// The body for one attempt, from its beginning.
    pub fn attempt(&self) -> OutBody {
        let Some(source) = &self.0 else { return OutBody(None) };
        let attempt = {
            let mut source = source.borrow_mut();
            source.attempt += 1;
            source.attempt
        };
        OutBody(Some(Sending { source: Rc::clone(source), next: 0, attempt }))
    }
}

/// A request's body as one attempt sends it.
pub struct OutBody(Option<Sending>);

struct Sending {
    source: Rc<RefCell<Source>>,
    /// Position in what is kept.
    next: usize,
    attempt: u32,
}

impl OutBody {
    /// No body.
    pub const fn empty() -> Self {
        OutBody(None)
    }
}

impl Source {
    fn poll_next(&mut self, next: &mut usize, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        if let Some(bytes) = self.kept.get(*next) {
            *next += 1;
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
        }
        if let Some(fault) = self.fault {
            return Poll::Ready(Some(Err(fault)));
        }
        if self.ended {
            return Poll::Ready(self.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        self.awaits_client = polled.is_pending();
        match ready!(polled) {
            None => {
                self.end();
                Poll::Ready(None)
            }
            Some(Err(error)) => Poll::Ready(Some(Err(self.fail(fault_of(&error))))),
            Some(Ok(frame)) => Poll::Ready(self.take(frame, next)),
        }
    }

    fn take(&mut self, frame: Frame<Bytes>, next: &mut usize) -> Option<Result<Frame<Bytes>, BodyFault>> {
        match frame.into_data() {
            Ok(data) => {
                self.received += data.len() as u64;
                if self.most > 0 && self.received > self.most {
                    return Some(Err(self.fail(BodyFault::TooLarge)));
                }
                self.keep(&data, next);
                self.tell_waiter();
                Some(Ok(Frame::data(data)))
            }
            Err(frame) => {
                let mut trailers = frame.into_trailers().unwrap_or_default();
                headers::clean_trailers(&mut trailers);
                self.trailers = Some(trailers);
                self.end();
                self.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers)))
            }
        }
    }

    fn keep(&mut self, data: &Bytes, next: &mut usize) {
        if self.forgotten || self.kept_bytes + data.len() > self.keep_most {
            self.forgotten = true;
            self.kept = Vec::new();
            *next = 0;
        } else {
            self.kept_bytes += data.len();
            self.kept.push(data.clone());
            *next = self.kept.len();
        }
    }

    fn is_at_end(&self) -> bool {
        self.ended || self.incoming.is_end_stream()
    }

    fn end(&mut self) {
        self.ended = true;
        self.tell_waiter();
    }

    /// Another task may be reading the body than the one that waits for the response.
    fn tell_waiter(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }

    fn fail(&mut self, fault: BodyFault) -> BodyFault {
        self.fault = Some(fault);
        fault
    }
}

/// hyper says "user" or "incomplete" when the client is gone, and parse errors where its bytes are no body.
fn fault_of(error: &hyper::Error) -> BodyFault {
    use std::error::Error as _;
    let io_kind = error.source().and_then(|source| source.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    match io_kind {
        Some(std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData | std::io::ErrorKind::Other) => {
            BodyFault::Malformed
        }
        _ => BodyFault::Gone,
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let Some(sending) = &mut self.0 else { return Poll::Ready(None) };
        let mut source = sending.source.borrow_mut();
        if source.attempt != sending.attempt {
            return Poll::Ready(Some(Err(BodyFault::Gone)));
        }
        source.poll_next(&mut sending.next, cx)
    }

    fn is_end_stream(&self) -> bool {
        let Some(sending) = &self.0 else { return true };
        let source = sending.source.borrow();
        let all_sent = sending.next >= source.kept.len();
        all_sent && source.fault.is_none() && source.trailers.is_none() && source.is_at_end()
    }

    fn size_hint(&self) -> SizeHint {
        let Some(sending) = &self.0 else { return SizeHint::with_exact(0) };
        let source = sending.source.borrow();
        let unsent: u64 =
            source.kept[sending.next.min(source.kept.len())..].iter().map(|bytes| bytes.len() as u64).sum();
        match source.incoming.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + unsent),
            None => SizeHint::default(),
        }
    }
}

impl std::fmt::Display for BodyFault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            BodyFault::TooLarge => "the request's body is larger than the route allows",
            BodyFault::Malformed => "the request's body is malformed",
            BodyFault::Gone => "the client ended before the request's body did",
            BodyFault::Stalled => "the client stopped in the middle of the request's body",
        })
    }
}

impl std::error::Error for BodyFault {}
