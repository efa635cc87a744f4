//! gRPC as its own client and server speak it (tonic), through a gateway that ends TLS.

use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{NamedService, ServerStreamingService, StreamingService, UnaryService};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::{Edge, GATEWAYS, SERVICE};

type Answers = Pin<Box<dyn tokio_stream::Stream<Item = Result<String, Status>> + Send>>;
type Later<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// `test.Echo`, by hand: texts in, texts out.
#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
            Ok(match request.uri().path() {
                "/test.Echo/Unary" => grpc.unary(Self, request).await,
                "/test.Echo/Count" => grpc.server_streaming(Self, request).await,
                "/test.Echo/Both" => grpc.streaming(Self, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

impl UnaryService<String> for Echo {
    type Response = String;
    type Future = Later<String>;

    /// Repeats what is said with what came along; fails, or never answers, where it is told to.
    fn call(&mut self, request: Request<String>) -> Self::Future {
        Box::pin(async move {
            let said = request
                .metadata()
                .get("x-said")
                .and_then(|v| v.to_str().ok())
                .unwrap_or("nothing")
                .to_owned();
            match request.into_inner().as_str() {
                "fail" => {
                    let mut status = Status::failed_precondition("not now: 100 % später");
                    status.metadata_mut().insert("x-why", "because".parse().unwrap());
                    Err(status)
                }
                "never" => std::future::pending().await,
                text => Ok(Response::new(format!("{text}, {said}"))),
            }
        })
    }
}

impl ServerStreamingService<String> for Echo {
    type Response = String;
    type ResponseStream = Answers;
    type Future = Later<Answers>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        Box::pin(async move {
            let most: u32 = request.into_inner().parse().unwrap();
            let numbers = tokio_stream::iter(0..most).map(|n| Ok(n.to_string()));
            let end = tokio_stream::once(Err(Status::out_of_range("that was all")));
            Ok(Response::new(Box::pin(numbers.chain(end)) as Answers))
        })
    }
}

impl StreamingService<String> for Echo {
    type Response = String;
    type ResponseStream = Answers;
    type Future = Later<Answers>;

    fn call(&mut self, request: Request<Streaming<String>>) -> Self::Future {
        Box::pin(async move {
            let answers = request.into_inner().map(|text| text.map(|text| format!("heard {text}")));
            Ok(Response::new(Box::pin(answers) as Answers))
        })
    }
}

/// Serves behind the gateway until the runtime ends.
fn serve(edge: &Edge) {
    let at = SocketAddr::new(SERVICE.parse().unwrap(), 8090);
    let listener = edge.behind.inside(|| TcpListener::bind(at).unwrap());
    listener.set_nonblocking(true).unwrap();
    tokio::spawn(async move {
        let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
        Server::builder().add_service(Echo).serve_with_incoming(incoming).await
    });
}

/// A channel from the client outside to the gateway.
async fn channel(edge: &Edge) -> Channel {
    let roots = Certificate::from_pem(std::fs::read(edge.file("world.pem")).unwrap());
    let tls = ClientTlsConfig::new().ca_certificate(roots).domain_name("simple.example");
    let name = edge.client.name().to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let to = SocketAddr::new(GATEWAYS[0].parse().unwrap(), 443);
        let stream = crate::netns::hosts::inside(&name, || TcpStream::connect(to));
        async move {
            let stream = stream?;
            stream.set_nonblocking(true)?;
            std::io::Result::Ok(TokioIo::new(tokio::net::TcpStream::from_std(stream)?))
        }
    });
    let endpoint = Endpoint::from_static("https://simple.example").tls_config(tls).unwrap();
    endpoint.connect_with_connector(connector).await.unwrap()
}

struct Client(tonic::client::Grpc<Channel>);

impl Client {
    async fn unary(&mut self, request: Request<String>) -> Result<Response<String>, Status> {
        self.0.ready().await.unwrap();
        let path = PathAndQuery::from_static("/test.Echo/Unary");
        self.0.unary(request, path, ProstCodec::<String, String>::default()).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_client_has_all_that_it_is_used_to() {
    let edge = Edge::start(1);
    serve(&edge);
    let mut client = Client(tonic::client::Grpc::new(channel(&edge).await));

    // One question, one answer, with what goes along.
    let mut request = Request::new("hello".to_owned());
    request.metadata_mut().insert("x-said", "aside".parse().unwrap());
    let answer = client.unary(request).await.unwrap_or_else(|e| panic!("{e:?}\n{}", edge.pods.logs()));
    assert_eq!(answer.get_ref(), "hello, aside");

    // An error without a message before it: code, text and the rest are the server's.
    let status = client.unary(Request::new("fail".to_owned())).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not now: 100 % später"));
    assert_eq!(status.metadata().get("x-why").unwrap(), "because");
    let path = PathAndQuery::from_static("/test.Echo/Nothing");
    client.0.ready().await.unwrap();
    let codec = ProstCodec::<String, String>::default();
    let status = client.0.unary(Request::new(String::new()), path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);

    // Many answers, and an error behind them.
    client.0.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Echo/Count");
    let codec = ProstCodec::<String, String>::default();
    let count = client.0.server_streaming(Request::new("1000".to_owned()), path, codec).await.unwrap();
    let all: Vec<_> = count.into_inner().collect().await;
    assert!((0..1000).all(|n| all[n].as_deref().is_ok_and(|text| text == n.to_string())));
    assert_eq!(all[1000].as_ref().unwrap_err().code(), Code::OutOfRange);
    assert_eq!(all.len(), 1001);

    // Questions and answers by turns: neither side waits for the other's end.
    client.0.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Echo/Both");
    let (say, says) = tokio::sync::mpsc::channel(1);
    let codec = ProstCodec::<String, String>::default();
    say.send("0".to_owned()).await.unwrap();
    let both = client.0.streaming(Request::new(ReceiverStream::new(says)), path, codec).await.unwrap();
    let mut answers = both.into_inner();
    for n in 0..50 {
        assert_eq!(answers.next().await.unwrap().unwrap(), format!("heard {n}"));
        say.send((n + 1).to_string()).await.unwrap();
    }
    drop(say);
    assert_eq!(answers.next().await.unwrap().unwrap(), "heard 50");
    assert!(answers.next().await.is_none());

    // A deadline, which client and gateway both hold.
    let began = Instant::now();
    let mut request = Request::new("never".to_owned());
    request.set_timeout(Duration::from_millis(500));
    let status = client.unary(request).await.unwrap_err();
    assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&status.code()), "{status:?}");
    assert!(began.elapsed() >= Duration::from_millis(400) && began.elapsed() < Duration::from_secs(5));
    // And a client that waits for ever is told by the gateway, in gRPC's words: a timeout's 504 is UNAVAILABLE there, as with Envoy.
    let body = edge.file("never");
    std::fs::write(&body, b"\0\0\0\0\x07\x0a\x05never").unwrap();
    let data = format!("@{body}");
    let fields = ["-H", "content-type: application/grpc", "-H", "te: trailers", "-H", "grpc-timeout: 300m"];
    let more = [&["--data-binary", &data, "-D", "-", "-o", "/dev/null"], &fields[..]].concat();
    let said = edge.curl("https://simple.example/test.Echo/Unary", &more).unwrap();
    assert!(
        said.contains("HTTP/2 200")
            && said.contains("grpc-status: 14")
            && said.contains("grpc-message: upstream request timeout"),
        "{said}\n{}",
        edge.pods.logs()
    );
    // Whoever was cut off is no loss to the others.
    assert_eq!(client.unary(Request::new("again".to_owned())).await.unwrap().get_ref(), "again, nothing");
}
