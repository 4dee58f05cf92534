//! gRPC end to end, with tonic at both ends: the four kinds of call, trailers, errors.

use std::convert::Infallible;
use std::pin::Pin;

use bytes::{Buf, BufMut, Bytes};
use futures_util::{Stream, StreamExt, stream};
use http::uri::PathAndQuery;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Response, Status, Streaming};

use crate::support::{Proxy, plain, server};

/// Messages are bytes: what is tested is the transport.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Answers by the name of the method.
async fn serve(request: http::Request<hyper::body::Incoming>) -> Result<http::Response<tonic::body::Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let mut grpc = tonic::server::Grpc::new(Raw);
    Ok(match path.rsplit('/').next().unwrap() {
        "Unary" => {
            grpc.unary(Call(|request: Request<Bytes>| async move { Ok(Response::new(request.into_inner())) }), request)
                .await
        }
        "Fail" => {
            grpc.unary(
                Call(|_: Request<Bytes>| async { Err::<Response<Bytes>, _>(Status::data_loss("gone")) }),
                request,
            )
            .await
        }
        "Count" => {
            grpc.client_streaming(
                Call(|request: Request<Streaming<Bytes>>| async move {
                    let bytes = request
                        .into_inner()
                        .map(|message| message.unwrap().len())
                        .fold(0, |sum, len| async move { sum + len })
                        .await;
                    Ok(Response::new(Bytes::from(bytes.to_string())))
                }),
                request,
            )
            .await
        }
        "Repeat" => {
            grpc.server_streaming(
                Call(|request: Request<Bytes>| async move {
                    let message = request.into_inner();
                    let messages: Messages = Box::pin(stream::iter(std::iter::repeat_n(Ok(message), 100)));
                    Ok(Response::new(messages))
                }),
                request,
            )
            .await
        }
        _ => {
            grpc.streaming(
                Call(|request: Request<Streaming<Bytes>>| async move {
                    let messages: Messages = Box::pin(request.into_inner());
                    Ok(Response::new(messages))
                }),
                request,
            )
            .await
        }
    })
}

/// A closure as the service that tonic wants.
struct Call<F>(F);

impl<F, Asked, Answered, Answering> tower_service::Service<Request<Asked>> for Call<F>
where
    F: FnMut(Request<Asked>) -> Answering,
    Answering: Future<Output = Result<Response<Answered>, Status>>,
{
    type Response = Response<Answered>;
    type Error = Status;
    type Future = Answering;
    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Status>> {
        std::task::Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: Request<Asked>) -> Answering {
        self.0(request)
    }
}

/// A gRPC server on a thread of its own, until the test's process ends.
fn start_server() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let service = hyper::service::service_fn(serve);
                let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                tokio::spawn(builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service));
            }
        });
    });
    address
}

/// A tonic client over one TLS connection to the proxy.
struct Channel(hyper::client::conn::http2::SendRequest<tonic::body::Body>);

impl tower_service::Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;
    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

async fn connect(proxy: &Proxy) -> tonic::client::Grpc<Channel> {
    let tcp = tokio::net::TcpStream::connect(proxy.address("main")).await.unwrap();
    let mut config = crate::support::client::anything_goes().with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let tls = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, tcp).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(tls);
    let (sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    tonic::client::Grpc::with_origin(Channel(sender), "https://localhost".parse().unwrap())
}

#[test]
fn all_four_kinds_of_call_pass_with_their_trailers() {
    let servers = server("g", &start_server());
    let configuration = plain(&[], &format!("{servers}[pool.http]\nversion = \"2\"\n"));
    let proxy =
        Proxy::start(&configuration.replace("[[route]]", "[listener.tls]\nself_signed = [\"localhost\"]\n[[route]]"));
    let path = |method: &str| PathAndQuery::try_from(format!("/test.Test/{method}")).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut grpc = connect(&proxy).await;
        grpc.ready().await.unwrap();
        let large = Bytes::from(vec![b'x'; 300_000]);
        let unary = grpc.unary(Request::new(large.clone()), path("Unary"), Raw).await.unwrap();
        assert_eq!(unary.into_inner(), large);
        let failed = grpc.unary(Request::new(Bytes::new()), path("Fail"), Raw).await.unwrap_err();
        assert_eq!((failed.code(), failed.message()), (tonic::Code::DataLoss, "gone"), "the status is in the trailers");
        let parts = stream::iter(std::iter::repeat_n(Bytes::from_static(b"0123456789"), 50));
        let counted = grpc.client_streaming(Request::new(parts), path("Count"), Raw).await.unwrap();
        assert_eq!(counted.into_inner(), "500");
        let repeated =
            grpc.server_streaming(Request::new(Bytes::from_static(b"again")), path("Repeat"), Raw).await.unwrap();
        assert_eq!(
            repeated
                .into_inner()
                .filter(|message| std::future::ready(message.as_ref().is_ok_and(|message| message == "again")))
                .count()
                .await,
            100
        );
        // Ping-pong: each answer comes before the next question is asked.
        let (mut ask, questions) = futures_channel::mpsc::channel::<Bytes>(1);
        let mut answers = grpc.streaming(Request::new(questions), path("Echo"), Raw).await.unwrap().into_inner();
        for number in 0..20 {
            let question = Bytes::from(format!("question {number}"));
            futures_util::SinkExt::send(&mut ask, question.clone()).await.unwrap();
            assert_eq!(answers.message().await.unwrap(), Some(question));
        }
        drop(ask);
        assert_eq!(answers.message().await.unwrap(), None);
    });
}
