//! The relay between a client and a control plane, both of this process, that speak in bytes.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::{Channel, Server};
use tonic::{Code, metadata::MetadataMap};

use super::*;
use crate::agent::socket;

/// A control plane that answers each message with its bytes reversed, and `end` with an error.
#[derive(Clone, Default)]
struct Upstream {
    calls: Arc<Mutex<Vec<(String, MetadataMap)>>>,
}

impl NamedService for Upstream {
    const NAME: &'static str = Relay::NAME;
}

impl Service<http::Request<tonic::body::Body>> for Upstream {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let calls = self.calls.clone();
        Box::pin(async move {
            let mut server = tonic::server::Grpc::new(Raw).max_decoding_message_size(MAX_MESSAGE);
            let answer = tower::service_fn(move |request: Request<Streaming<Bytes>>| {
                calls.lock().unwrap().push((path.clone(), request.metadata().clone()));
                let answers = request.into_inner().map(|message| match message?.as_ref() {
                    b"end" => Err(Status::resource_exhausted("come back later")),
                    bytes => Ok(bytes.iter().rev().copied().collect::<Bytes>()),
                });
                std::future::ready(Ok::<_, Status>(Response::new(answers)))
            });
            Ok(server.streaming(answer, request).await)
        })
    }
}

fn upstream(path: &Path) -> (Upstream, tokio::task::JoinHandle<()>) {
    let (listener, file) = socket::listen(path, "upstream").unwrap();
    let upstream = Upstream::default();
    let service = upstream.clone();
    let task = tokio::spawn(async move {
        let _file = file;
        let incoming = UnixListenerStream::new(listener);
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    (upstream, task)
}

async fn relay(directory: &Path) -> (Channel, Stats) {
    let (published, current) = watch::channel(None);
    std::mem::forget(published);
    let stats = Stats::default();
    let endpoint = Endpoint { address: Address::Unix(directory.join("upstream")), tls: None };
    let credentials = Credentials {
        token: Some(directory.join("token")),
        headers: vec![("clusterid".to_owned(), "Kubernetes".to_owned())],
    };
    let relay = Relay::new(endpoint, credentials, current, stats.clone());
    let path = directory.join("XDS");
    let (listener, file) = socket::listen(&path, "--xds-socket").unwrap();
    std::mem::forget(file);
    tokio::spawn(Server::builder().add_service(relay).serve_with_incoming(UnixListenerStream::new(listener)));
    let channel = Endpoint { address: Address::Unix(path), tls: None }.connect().await.unwrap();
    (channel, stats)
}

struct Call {
    requests: mpsc::Sender<Bytes>,
    responses: Streaming<Bytes>,
}

impl Call {
    async fn open(channel: &Channel, path: &'static str) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(4);
        requests.send(Bytes::from_static(b"hello")).await.unwrap();
        let mut client = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        client.ready().await.unwrap();
        let request = Request::new(ReceiverStream::new(outgoing));
        let responses = client.streaming(request, PathAndQuery::from_static(path), Raw).await?.into_inner();
        let mut call = Self { requests, responses };
        assert_eq!(call.next().await?.as_deref(), Some(b"olleh".as_slice()));
        Ok(call)
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.responses.message());
        next.await.expect("no answer in time")
    }
}

#[tokio::test]
async fn both_variants_pass_as_bytes_with_the_workloads_credentials() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), "secret\n").unwrap();
    let (upstream, _task) = upstream(&directory.path().join("upstream"));
    let (channel, stats) = relay(directory.path()).await;
    for path in [DELTA, STREAM] {
        let mut call = Call::open(&channel, path).await.unwrap();
        // No protobuf, and more than gRPC's usual limit.
        let large: Bytes = (0..5_000_000_u32).map(|i| (i % 251) as u8).collect();
        call.requests.send(large.clone()).await.unwrap();
        assert!(call.next().await.unwrap().unwrap().iter().rev().eq(large.iter()));
        let (called, metadata) = upstream.calls.lock().unwrap().pop().unwrap();
        assert_eq!(called, path);
        assert_eq!(metadata.get("authorization").unwrap(), "Bearer secret");
        assert_eq!(metadata.get("clusterid").unwrap(), "Kubernetes");
    }
    assert_eq!(stats.get(Counter::RelayRequests), 4);
    assert_eq!(stats.get(Counter::RelayResponses), 4);
}

#[tokio::test]
async fn a_stream_that_the_control_plane_ends_ends_with_its_words_and_the_next_is_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "first").unwrap();
    let socket = directory.path().join("upstream");
    let (upstream_1, task) = upstream(&socket);
    let (channel, stats) = relay(directory.path()).await;
    let mut call = Call::open(&channel, DELTA).await.unwrap();
    call.requests.send(Bytes::from_static(b"end")).await.unwrap();
    let status = call.next().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "come back later"));
    upstream_1.calls.lock().unwrap().clear();

    // A token that was replaced counts for the next stream.
    std::fs::write(&token, "second").unwrap();
    let mut call = Call::open(&channel, DELTA).await.unwrap();
    let metadata = upstream_1.calls.lock().unwrap().pop().unwrap().1;
    assert_eq!(metadata.get("authorization").unwrap(), "Bearer second");

    // The control plane dies, and another one starts. (The connection is a task of its own in tonic: the client's word ends it.)
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    call.requests.send(Bytes::from_static(b"end")).await.unwrap();
    assert!(call.next().await.is_err());
    let status = Call::open(&channel, DELTA).await.err().unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("is the control plane running there"), "{status}");
    assert!(stats.relay_error().unwrap().contains("cannot connect"));
    let (_upstream_2, _task) = upstream(&socket);
    Call::open(&channel, DELTA).await.unwrap();
    assert_eq!(stats.relay_error(), None);
}

#[tokio::test]
async fn a_proxy_that_goes_away_ends_its_stream_to_the_control_plane() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), "secret").unwrap();
    let (_upstream, _task) = upstream(&directory.path().join("upstream"));
    let (channel, stats) = relay(directory.path()).await;
    let call = Call::open(&channel, STREAM).await.unwrap();
    assert_eq!(stats.get(Counter::RelayActive), 1);
    drop(call);
    let gone = async {
        while stats.get(Counter::RelayActive) != 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the stream is still relayed");
    assert_eq!(stats.get(Counter::RelayFailures), 0);
}

#[tokio::test]
async fn without_a_token_or_for_another_method_the_proxy_is_told_why() {
    let directory = tempfile::tempdir().unwrap();
    let (_upstream, _task) = upstream(&directory.path().join("upstream"));
    let (channel, _) = relay(directory.path()).await;
    let status = Call::open(&channel, DELTA).await.err().unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("token") && status.message().contains("weft token create"), "{status}");
    let other = "/envoy.service.discovery.v3.AggregatedDiscoveryService/Other";
    let status = Call::open(&channel, other).await.err().unwrap();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn how_the_workload_is_is_said_after_the_first_message_and_whenever_it_changes() {
    use xds_protos::envoy::service::discovery::v3::DeltaDiscoveryRequest;
    use xds_protos::prost::Message;

    let (requests, incoming) = mpsc::channel(4);
    let (sender, report) = watch::channel(Some(Ok(())));
    let report = Some(WatchStream::new(report));
    let requests_of_proxy = ReceiverStream::new(incoming);
    let mut stream = Reporting { requests: requests_of_proxy, report, variant: Variant::Delta, began: false };
    tokio::select! {
        biased;
        said = stream.next() => panic!("{said:?} before anybody knows who it is"),
        () = tokio::task::yield_now() => {}
    }
    requests.send(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(stream.next().await.as_deref(), Some(b"hello".as_slice()));
    let read = |bytes: Option<Bytes>| {
        let request = DeltaDiscoveryRequest::decode(bytes.expect("a message")).unwrap();
        assert_eq!(request.type_url, "type.googleapis.com/istio.v1.HealthInformation");
        request.error_detail.map(|error| error.message)
    };
    assert_eq!(read(stream.next().await), None);
    sender.send_replace(Some(Err("disk full".to_owned())));
    assert_eq!(read(stream.next().await).as_deref(), Some("disk full"));
    requests.send(Bytes::from_static(b"more")).await.unwrap();
    assert_eq!(stream.next().await.as_deref(), Some(b"more".as_slice()));
    drop(requests);
    assert_eq!(stream.next().await, None, "it ends with the proxy's stream");
}
