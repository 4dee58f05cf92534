//! HTTP on an accepted connection: hyper's own connection types straight after ALPN, driven by one task.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWrite;

use super::client_io::ClientIo;
use super::connections::{Activity, Connections, Control, Phase, Registration, Want};
use super::gather::Gather;
use super::{Downstream, Handler, Limits};
use crate::tasks::LocalExecutor;

/// The most header fields that hyper takes by itself.
const HYPER_HEADERS: usize = 100;

/// What is read ahead of an upload, or written ahead of a slow reader. hyper's own 400 KiB are no faster.
const BUFFER_BYTES: usize = 64 * 1024;

/// How a connection ended.
pub(super) enum Ended {
    Fine,
    Failed(hyper::Error),
    Aborted,
}

/// What serves the exchanges of one connection.
pub(super) type Serving = Pin<Box<dyn Future<Output = Ended>>>;

/// Why a connection is not polled any further.
enum Left {
    Ended(Ended),
    /// It is idle, and was told to rest.
    Idle,
}

/// Serves exchanges until the connection ends or has to.
pub(super) fn serve<H: Handler>(
    io: ClientIo,
    downstream: &Rc<Downstream>,
    handler: H,
    registration: Registration,
    connections: Rc<Connections>,
) -> Serving {
    let of_exchanges = Rc::clone(downstream);
    let answer = move |request| {
        let http2 = of_exchanges.http2;
        of_exchanges.activity.begin_exchange();
        let under_way = UnderWay { activity: Rc::clone(&of_exchanges.activity), held: false };
        let answering = handler.handle(request, Rc::clone(&of_exchanges));
        let connections = Rc::clone(&connections);
        async move {
            let mut response = answering.await;
            if !http2 && connections.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                // The client learns in time that its next request needs another connection.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| Tracked { body, under_way }))
        }
    };
    let downstream = Rc::clone(downstream);
    let limits = downstream.endpoint.settings.limits;
    if downstream.http2 {
        // Each stream is a task, and a task's future is moved several times: a pointer is cheaper to move.
        let service = service_fn(move |request| Box::pin(answer(request)));
        Box::pin(async move { serve_http2(io, service, &downstream.activity, limits, &registration.control).await })
    } else {
        serve_http1(io, service_fn(answer), downstream, limits, registration.control)
    }
}

async fn serve_http2<S, B>(io: ClientIo, service: S, activity: &Activity, limits: Limits, control: &Control) -> Ended
where
    S: Service<Request<Incoming>, Response = Response<B>, Future: 'static, Error: Into<BoxError>>,
    B: Body<Data: 'static, Error: Into<BoxError>> + 'static,
{
    // It stays `Opening` until the client says something.
    activity.speaks_http2();
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(limits.most_header_bytes())
        .max_pending_accept_reset_streams(20)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buf_size(64 * 1024);
    let gather = Gather::new(io);
    let mut connection = Box::pin(builder.serve_connection(TokioIo::new(gather.handle()), service));
    let left = drive(connection.as_mut(), control, || false, |cx| gather.poll_send(cx)).await;
    if let Left::Ended(ended) = left { ended } else { Ended::Fine }
}

/// The byte stream goes from one hyper connection to the next, and between them it waits alone: what hyper holds for
/// a connection is several times what the wait needs.
fn serve_http1<S, B>(
    mut io: ClientIo,
    mut service: S,
    downstream: Rc<Downstream>,
    limits: Limits,
    control: Rc<Control>,
) -> Serving
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>> + 'static,
    B: Body<Error: Into<BoxError>> + 'static,
{
    downstream.activity.enter(Phase::Idle);
    // A block and not a function: those keep every argument twice, and ten thousand idle connections have one each.
    Box::pin(async move {
        loop {
            let mut connection = Box::pin(http1_builder(limits).serve_connection(TokioIo::new(io), service));
            let activity = &downstream.activity;
            let left = drive(connection.as_mut(), &control, || activity.is_idle(), |_| Poll::Ready(Ok(()))).await;
            let taker = downstream.taker.take();
            (io, service) = take_apart(*Pin::into_inner(connection));
            match (left, taker) {
                (Left::Ended(Ended::Fine), Some(taker)) => {
                    // Whoever does not want it any more has closed it.
                    let _ = taker.send(io);
                    return Ended::Fine;
                }
                (Left::Ended(ended), _) => return ended,
                (Left::Idle, _) if !io.has_ahead() => {
                    downstream.own_hop.take();
                    if let Some(ended) = rest(&mut io, &control).await {
                        return ended;
                    }
                }
                (Left::Idle, _) => activity.enter(Phase::Head),
            }
            control.has_rested();
        }
    })
}

/// The byte stream, with what was read from it and not used yet.
fn take_apart<S, B>(connection: http1::Connection<TokioIo<ClientIo>, S>) -> (ClientIo, S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>>,
    B: Body<Error: Into<BoxError>> + 'static,
{
    let http1::Parts { io, read_buf, service, .. } = connection.into_parts();
    let mut io = io.into_inner();
    io.put_back(&read_buf);
    (io, service)
}

fn http1_builder(limits: Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    if limits.header_count > HYPER_HEADERS {
        // Below that admission counts: a number of one's own makes hyper's parser slower.
        builder.max_headers(limits.header_count);
    }
    let head = usize::try_from(limits.most_header_bytes()).unwrap_or(usize::MAX);
    builder.max_header_size(head).max_buf_size(BUFFER_BYTES.max(head)).header_read_timeout(None);
    builder
}

/// Waits for the client to say something; a connection that has to go meanwhile is closed.
async fn rest(io: &mut ClientIo, control: &Control) -> Option<Ended> {
    poll_fn(|cx| match control.want(cx) {
        Want::Abort => Poll::Ready(Some(Ended::Aborted)),
        Want::Finish => Pin::new(&mut *io).poll_shutdown(cx).map(|_| Some(Ended::Fine)),
        // What is wrong with it shows when it is read.
        Want::Nothing | Want::Rest => io.poll_heard(cx).map(|_| None),
    })
    .await
}

/// hyper's two connection types have this in common, but no trait for it.
trait Connection: Future<Output = hyper::Result<()>> {
    fn finish(self: Pin<&mut Self>);
}

impl<S, B> Connection for http1::Connection<TokioIo<ClientIo>, S>
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

/// Polls a connection to its end, or until it `may_rest`, and after each poll sends what it has written.
async fn drive(
    mut connection: Pin<&mut impl Connection>,
    control: &Control,
    may_rest: impl Fn() -> bool,
    mut send: impl FnMut(&mut Context<'_>) -> Poll<io::Result<()>>,
) -> Left {
    let mut finishing = false;
    let mut ended = None;
    poll_fn(|cx| {
        match control.want(cx) {
            Want::Abort => return Poll::Ready(Left::Ended(Ended::Aborted)),
            Want::Rest if may_rest() => return Poll::Ready(Left::Idle),
            Want::Finish if !finishing => {
                finishing = true;
                connection.as_mut().finish();
            }
            Want::Finish | Want::Rest | Want::Nothing => {}
        }
        if ended.is_none()
            && let Poll::Ready(result) = connection.as_mut().poll(cx)
        {
            ended = Some(result.map_or_else(Ended::Failed, |()| Ended::Fine));
        }
        match send(cx) {
            // What a connection has said last (why it ends) is to be heard.
            Poll::Ready(Ok(())) => ended.take().map_or(Poll::Pending, |ended| Poll::Ready(Left::Ended(ended))),
            Poll::Ready(Err(_)) => Poll::Ready(Left::Ended(ended.take().unwrap_or(Ended::Fine))),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Held from the call of an exchange to the end of its response.
struct UnderWay {
    activity: Rc<Activity>,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::{JoinHandle, LocalSet};
    use tokio::time::timeout;

    use super::super::client_io::{OpenConnection, Stream};
    use super::super::socket::ClientSocket;
    use super::super::{Endpoint, ProxyProtocol, Settings, Spread, Times};
    use super::*;
    use crate::clock::Moment;
    use crate::headers::{Origin, OwnHop, UnsafeNames};
    use crate::metrics::{Metrics, WorkerId};

    const LIMITS: Limits = Limits { header_bytes: 32 * 1024, header_count: 100, max_streams: 100 };
    const TIMES: Times = Times { header: Duration::from_secs(10), idle: Duration::from_secs(75) };

    fn second(number: u64) -> Moment {
        Moment::from_nanos(number * 1_000_000_000)
    }

    /// One served connection, the sweep that watches it, and its client.
    struct Served {
        connections: Rc<Connections>,
        downstream: Rc<Downstream>,
        serving: JoinHandle<Ended>,
        client: TcpStream,
    }

    impl Served {
        async fn start() -> Served {
            let metrics = Metrics::new(1);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
            let (socket, peer) = accepted.unwrap();
            let connections = Connections::new(10, Arc::clone(&metrics), WorkerId(0));
            connections.sweep(second(100));
            let registration = connections.register(TIMES).unwrap();
            let endpoint = Arc::new(Endpoint {
                settings: Settings {
                    name: "l".into(),
                    address,
                    proxy_protocol: ProxyProtocol::Off,
                    times: TIMES,
                    limits: LIMITS,
                    unsafe_names: UnsafeNames::Pass,
                    redirect_port: None,
                },
                tls: None,
                metrics: metrics.listener("l"),
                trusted: Arc::default(),
                certificates: Vec::new(),
            });
            let downstream = Rc::new(Downstream::new(endpoint, (peer, address), None, false, &registration.activity));
            let (spread, _) = Spread::new(1);
            let place = spread.enter(WorkerId(0));
            let activity = Rc::clone(&registration.activity);
            let open = OpenConnection::new(activity, metrics.listener("l"), WorkerId(0), place);
            let io = ClientIo::new(Stream::Plain(ClientSocket::new(socket)), open);
            let of_task = Rc::clone(&downstream);
            let serving = crate::tasks::spawn(async move {
                let activity = Rc::clone(&of_task.activity);
                let service = service_fn(move |request: Request<Incoming>| {
                    activity.begin_exchange();
                    activity.end_exchange();
                    let path = request.uri().path().to_owned();
                    async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(path)))) }
                });
                serve_http1(io, service, of_task, LIMITS, registration.control).await
            });
            Served { connections, downstream, serving, client: client.unwrap() }
        }

        async fn say(&mut self, text: &str) {
            self.client.write_all(text.as_bytes()).await.unwrap();
        }

        /// Reads until the answer to `path` has come.
        async fn hear(&mut self, path: &str) {
            let mut heard = String::new();
            while !heard.ends_with(path) {
                let mut bytes = [0; 1_024];
                let read = timeout(Duration::from_secs(20), self.client.read(&mut bytes)).await.unwrap().unwrap();
                assert!(read > 0, "closed after {heard}");
                heard.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
            }
            let origin = Origin { https: false, host: "h".into(), port: 80 };
            let value = || HeaderValue::from_static("h");
            let hop = OwnHop::new(self.downstream.peer.ip(), "h".into(), value(), origin, value());
            *self.downstream.own_hop.borrow_mut() = Some(Rc::new(hop));
        }

        /// Waits until the connection has nothing any more but its byte stream.
        async fn rested(&self) {
            let resting = async {
                while self.downstream.own_hop.borrow().is_some() {
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(20), resting).await.expect("it rests");
        }
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn an_idle_connection_rests_and_serves_again_as_often_as_its_client_likes() {
        run(async {
            let mut served = Served::start().await;
            for round in 0..3 {
                served.say(&format!("GET /{round} HTTP/1.1\r\nhost: h\r\n\r\n")).await;
                served.hear(&format!("/{round}")).await;
                served.connections.sweep(second(110 + 10 * round));
                served.rested().await;
            }
            served.say("GET /half HTTP/1.1\r\nho").await;
            while served.downstream.activity.is_idle() {
                tokio::task::yield_now().await;
            }
            served.connections.sweep(second(133));
            served.say("st: h\r\n\r\n").await;
            served.hear("/half").await;
            served.client.shutdown().await.unwrap();
            assert!(matches!(served.serving.await, Ok(Ended::Fine)));
        });
    }

    #[test]
    fn the_beginning_of_a_head_that_came_with_the_last_request_is_kept() {
        run(async {
            let mut served = Served::start().await;
            served.say("GET /one HTTP/1.1\r\nhost: h\r\n\r\nGET /two HTTP/1.1\r\nho").await;
            served.hear("/one").await;
            served.connections.sweep(second(102));
            while served.downstream.activity.is_idle() {
                tokio::task::yield_now().await;
            }
            assert!(served.downstream.own_hop.borrow().is_some(), "who has begun to speak does not rest");
            served.say("st: h\r\n\r\n").await;
            served.hear("/two").await;
        });
    }

    #[test]
    fn a_resting_connection_is_closed_at_its_time() {
        run(async {
            let mut served = Served::start().await;
            served.say("GET /x HTTP/1.1\r\nhost: h\r\n\r\n").await;
            served.hear("/x").await;
            served.connections.sweep(second(102));
            served.rested().await;
            served.connections.sweep(second(176));
            let end = timeout(Duration::from_secs(20), served.client.read(&mut [0; 1])).await.unwrap();
            assert_eq!(end.unwrap(), 0);
            assert!(matches!(served.serving.await, Ok(Ended::Fine)));
        });
    }
}
