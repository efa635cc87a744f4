//! The client against a server on a UNIX socket in this process.

use std::pin::Pin;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use xds_protos::envoy::service::discovery::v3::Resource;
use xds_protos::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use xds_protos::{Any, ResourceType};

use super::*;
use crate::xds::testing::{Recorder, node};
use crate::xds::{Address, Rejection};

/// A stream as the server sees it: what comes, and where to answer.
struct Seen {
    authorization: Option<String>,
    requests: UnboundedReceiver<DeltaDiscoveryRequest>,
    responses: UnboundedSender<Result<DeltaDiscoveryResponse, Status>>,
}

struct Server(UnboundedSender<Seen>);

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Server {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    /// Answers every request that is not an acknowledgement with a set of no resources.
    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let answers = request.into_inner().filter_map(|request| match request {
            Ok(r) if r.response_nonce.is_empty() => Some(Ok(DiscoveryResponse {
                version_info: "v1".into(),
                nonce: "1".into(),
                type_url: r.type_url,
                ..Default::default()
            })),
            _ => None,
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let authorization = request.metadata().get("authorization").map(|v| v.to_str().unwrap().to_owned());
        let mut incoming = request.into_inner();
        let (forward, requests) = unbounded_channel();
        let (responses, outgoing) = unbounded_channel();
        self.0
            .send(Seen { authorization, requests, responses })
            .map_err(|_| Status::unavailable("closed"))?;
        tokio::spawn(async move {
            while let Some(Ok(request)) = incoming.next().await {
                if forward.send(request).is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(outgoing))))
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), what).await.expect("did not happen in time")
}

impl Seen {
    async fn next(&mut self) -> (ResourceType, DeltaDiscoveryRequest) {
        let request = soon(self.requests.recv()).await.expect("the stream ended");
        (ResourceType::from_type_url(&request.type_url).unwrap(), request)
    }

    fn send(&self, kind: ResourceType, nonce: &str, names: &[&str]) {
        let resources = names.iter().map(|name| Resource {
            name: (*name).into(),
            version: "1".into(),
            resource: Some(Any { type_url: kind.type_url().into(), ..Default::default() }),
            ..Default::default()
        });
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            nonce: nonce.into(),
            resources: resources.collect(),
            ..Default::default()
        };
        self.responses.send(Ok(response)).unwrap();
    }
}

#[tokio::test]
async fn a_lost_stream_is_opened_again_with_a_fresh_token_and_what_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, token) = (dir.path().join("xds"), dir.path().join("token"));
    std::fs::write(&token, "first\n").unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let (streams, mut seen) = unbounded_channel();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(Server(streams)))
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );

    let wanted = Subscriptions::new();
    let config = ClientConfig {
        service: Service::Aggregated,
        endpoint: Endpoint { address: Address::Unix(socket), tls: None },
        credentials: Credentials {
            token: Some(token.clone()),
            headers: vec![("ClusterID".into(), "Kubernetes".into())],
        },
        node: node(),
        variant: Variant::Delta,
    };
    let sink = Recorder { follow: Some(wanted.clone()), ..Default::default() };
    let client = Client::new(config, wanted.clone(), sink);
    let stats = client.stats();
    let local = tokio::task::LocalSet::new();
    local.spawn_local(async move { match client.run().await {} });
    local
        .run_until(async {
            let mut stream = soon(seen.recv()).await.unwrap();
            assert_eq!(stream.authorization.as_deref(), Some("Bearer first"));
            let (kind, first) = stream.next().await;
            assert_eq!(
                (kind, first.node.unwrap().id.as_str()),
                (ResourceType::Cluster, "sidecar~10.0.0.1~a.b~b.svc")
            );
            assert_eq!(stream.next().await.0, ResourceType::Listener);
            stream.send(ResourceType::Cluster, "1", &["a"]);
            assert_eq!(stream.next().await.1.response_nonce, "1");
            let (kind, eds) = stream.next().await;
            assert_eq!((kind, eds.resource_names_subscribe), (ResourceType::Endpoint, vec!["a".to_owned()]));
            // A change from outside of a response.
            wanted.set(ResourceType::Route, ["80".to_owned()]);
            assert_eq!(stream.next().await.0, ResourceType::Route);
            assert!(stats.connected());

            std::fs::write(&token, "second").unwrap();
            stream.responses.send(Err(Status::unavailable("restarting"))).unwrap();
            drop(stream);
            let mut stream = soon(seen.recv()).await.unwrap();
            assert_eq!(stream.authorization.as_deref(), Some("Bearer second"));
            let (_, again) = stream.next().await;
            assert_eq!(again.initial_resource_versions.get("a").map(String::as_str), Some("1"));
            assert!(again.node.is_some());
            stream.send(ResourceType::Cluster, "2", &[]);
            while stream.next().await.1.response_nonce != "2" {}
            assert_eq!((stats.streams(), stats.of(ResourceType::Cluster).success()), (2, 2));
        })
        .await;
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_end_of_a_stream_is_nothing_to_warn_of_unless_it_brought_nothing() {
    let log = Log::default();
    let written = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || written.clone()).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("xds");
    let listener = UnixListener::bind(&socket).unwrap();
    let (streams, mut seen) = unbounded_channel();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(Server(streams)))
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );
    let config = ClientConfig {
        service: Service::Aggregated,
        endpoint: Endpoint { address: Address::Unix(socket), tls: None },
        credentials: Credentials::default(),
        node: node(),
        variant: Variant::Delta,
    };
    let client = Client::new(config, Subscriptions::new(), Recorder::default());
    let local = tokio::task::LocalSet::new();
    local.spawn_local(async move { match client.run().await {} });
    let lines = local
        .run_until(async {
            // The first brings something, the second does not.
            let mut first = soon(seen.recv()).await.unwrap();
            first.send(ResourceType::Cluster, "1", &[]);
            while first.next().await.1.response_nonce != "1" {}
            drop(first);
            drop(soon(seen.recv()).await.unwrap());
            soon(seen.recv()).await.unwrap();
            String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
        })
        .await;
    let ends: Vec<_> = lines.lines().filter(|line| line.contains("ended the stream")).collect();
    assert_eq!(ends.len(), 2, "{lines}");
    assert!(ends[0].contains(" INFO ") && ends[1].contains(" WARN "), "{lines}");
}

#[tokio::test]
async fn while_the_control_plane_is_away_the_sink_hears_nothing() {
    struct Nothing;
    impl ResourceSink for Nothing {
        fn apply(
            &mut self,
            _: ResourceType,
            _: Vec<(String, String, bytes::Bytes)>,
            _: Vec<String>,
            _: bool,
        ) -> Vec<Rejection> {
            panic!("nothing was sent")
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let config = ClientConfig {
        service: Service::Aggregated,
        endpoint: Endpoint { address: Address::Unix(dir.path().join("nobody")), tls: None },
        credentials: Credentials::default(),
        node: node(),
        variant: Variant::StateOfTheWorld,
    };
    let client = Client::new(config, Subscriptions::new(), Nothing);
    let stats = client.stats();
    let ran = tokio::time::timeout(Duration::from_millis(50), client.run()).await;
    assert!(ran.is_err() && !stats.connected());
}

#[tokio::test]
async fn a_stream_of_the_state_of_the_world_is_taken_too() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("xds");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(Server(unbounded_channel().0)))
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );
    let config = ClientConfig {
        service: Service::Aggregated,
        endpoint: Endpoint { address: Address::Unix(socket), tls: None },
        credentials: Credentials::default(),
        node: node(),
        variant: Variant::StateOfTheWorld,
    };
    let client = Client::new(config, Subscriptions::new(), Recorder::default());
    let stats = client.stats();
    let local = tokio::task::LocalSet::new();
    local.spawn_local(async move { match client.run().await {} });
    let both = async {
        while [ResourceType::Cluster, ResourceType::Listener]
            .iter()
            .any(|kind| stats.of(*kind).success() == 0)
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    local.run_until(soon(both)).await;
    assert_eq!(stats.of(ResourceType::Cluster).version(), "v1");
}
