//! HTTP on an accepted connection: hyper's own connection types straight after ALPN, driven by one task.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::connections::{Activity, Control, Phase, Registration, Want};
use super::gather::Gather;
use super::socket::ClientSocket;
use super::{AddressGuard, Downstream, Handler, Limits};
use crate::metrics::{ListenerMetrics, WorkerId};
use crate::tasks::LocalExecutor;

/// The most header fields that hyper takes by itself.
const HYPER_HEADERS: usize = 100;

/// The client's byte stream, plain or TLS, noting what goes on.
pub struct ClientIo {
    pub(super) stream: Stream,
    pub(super) open: OpenConnection,
}

pub(super) enum Stream {
    Plain(ClientSocket),
    Tls(Box<TlsStream<ClientSocket>>),
}

/// An open connection in the books, from its accept to its end.
pub(super) struct OpenConnection {
    pub(super) activity: Arc<Activity>,
    metrics: Arc<ListenerMetrics>,
    worker: WorkerId,
    /// Its place among those of its address, where there is a limit.
    pub(super) address: Option<AddressGuard>,
}

impl OpenConnection {
    pub(super) fn new(activity: Arc<Activity>, metrics: Arc<ListenerMetrics>, worker: WorkerId) -> Self {
        metrics.cells.of(worker).open.add(1);
        OpenConnection { activity, metrics, worker, address: None }
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

/// How a connection ended.
pub(super) enum Ended {
    Fine,
    Failed(hyper::Error),
    Aborted,
}

/// Serves exchanges until the connection ends or has to.
pub(super) async fn serve<H: Handler>(
    io: ClientIo,
    downstream: Rc<Downstream>,
    limits: Limits,
    handler: H,
    registration: Registration,
    draining: Rc<dyn Fn() -> bool>,
) -> Ended {
    let http2 = downstream.http2;
    let Registration { activity, control, .. } = registration;
    if http2 {
        // It stays `Opening` until the client says something.
        activity.speaks_http2();
    } else {
        activity.enter(Phase::Idle);
    }
    let answer = move |request| {
        activity.begin_exchange();
        let under_way = UnderWay { activity: Arc::clone(&activity), held: false };
        let answering = handler.handle(request, Rc::clone(&downstream));
        let draining = Rc::clone(&draining);
        async move {
            let mut response = answering.await;
            if !http2 && draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                // The client learns in time that its next request needs another connection.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| Tracked { body, under_way }))
        }
    };
    if http2 {
        let mut builder = http2::Builder::new(LocalExecutor);
        builder
            .max_concurrent_streams(limits.max_streams)
            .max_header_list_size(limits.header_bytes)
            .max_pending_accept_reset_streams(20)
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .max_send_buf_size(64 * 1024);
        let gather = Gather::new(io);
        // Each stream is a task, and a task's future is moved several times: a pointer is cheaper to move.
        let service = service_fn(move |request| Box::pin(answer(request)));
        let connection = builder.serve_connection(TokioIo::new(gather.handle()), service);
        drive(pin!(connection), &control, |cx| gather.poll_send(cx)).await
    } else {
        let mut builder = http1::Builder::new();
        if limits.header_count > HYPER_HEADERS {
            // Below that admission counts: a number of one's own makes hyper's parser slower.
            builder.max_headers(limits.header_count);
        }
        builder.max_header_size(usize::try_from(limits.header_bytes).unwrap_or(usize::MAX)).header_read_timeout(None);
        let connection = builder.serve_connection(TokioIo::new(io), service_fn(answer)).with_upgrades();
        drive(pin!(connection), &control, |_| Poll::Ready(Ok(()))).await
    }
}

/// hyper's two connection types have this in common, but no trait for it.
trait Connection: Future<Output = hyper::Result<()>> {
    fn finish(self: Pin<&mut Self>);
}

impl<S, B> Connection for http1::UpgradeableConnection<TokioIo<ClientIo>, S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>>,
    B: Body<Error: Into<BoxError>> + 'static,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S, B> Connection for http2::Connection<TokioIo<Gather<ClientIo>>, S, LocalExecutor>
where
    S: Service<Request<Incoming>, Response = Response<B>, Future: 'static, Error: Into<BoxError>>,
    B: Body<Data: 'static, Error: Into<BoxError>> + 'static,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Polls a connection to its end, and after each poll sends what it has written.
async fn drive(
    mut connection: Pin<&mut impl Connection>,
    control: &Control,
    mut send: impl FnMut(&mut Context<'_>) -> Poll<io::Result<()>>,
) -> Ended {
    let mut finishing = false;
    let mut ended = None;
    poll_fn(|cx| {
        match control.want(cx) {
            Want::Abort => return Poll::Ready(Ended::Aborted),
            Want::Finish if !finishing => {
                finishing = true;
                connection.as_mut().finish();
            }
            Want::Finish | Want::Nothing => {}
        }
        if ended.is_none()
            && let Poll::Ready(result) = connection.as_mut().poll(cx)
        {
            ended = Some(result.map_or_else(Ended::Failed, |()| Ended::Fine));
        }
        match send(cx) {
            // What a connection has said last (why it ends) is to be heard.
            Poll::Ready(Ok(())) => ended.take().map_or(Poll::Pending, Poll::Ready),
            Poll::Ready(Err(_)) => Poll::Ready(ended.take().unwrap_or(Ended::Fine)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Held from the call of an exchange to the end of its response.
struct UnderWay {
    activity: Arc<Activity>,
    /// The last piece of the body was taken, and the next has not been asked for.
    held: bool,
}

impl UnderWay {
    fn asked(&mut self) {
        if std::mem::take(&mut self.held) {
            self.activity.let_go();
        }
    }

    fn gave(&mut self) {
        self.held = true;
        self.activity.hold();
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.asked();
        self.activity.end_exchange();
    }
}

/// A response body that says when the exchange is over.
pub struct Tracked<B> {
    body: B,
    under_way: UnderWay,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Tracked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.under_way.asked();
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(Some(Ok(_)))) {
            self.under_way.gave();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
