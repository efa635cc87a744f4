//! Streams over a socket, and how much work a change is.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Streaming};
use xds_protos::ResourceType;
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use xds_protos::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use xds_protos::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use xds_protos::prost_types::{Struct, Value, value::Kind};

use super::{AdsService, Proxies, RenderCache};
use crate::ca::store::State;
use crate::ca::store::tests::SMALL;
use crate::ca::{Authenticators, token};
use crate::ingest::{Watcher, load_str};
use crate::model::World;
use crate::queue::{Queue, Revision};
use crate::render::ProxyNode;

const DEADLINE: Duration = Duration::from_secs(20);
const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: users, namespace: shop}
spec: {selector: {app: users}, ports: [{name: http, port: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: users-1, namespace: shop}
spec: {address: 10.0.0.1, labels: {app: users}, serviceAccount: users}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: users-2, namespace: shop}
spec: {address: 10.0.0.2, labels: {app: users}, serviceAccount: users}
";

fn node() -> Node {
    let text = |s: &str| Value { kind: Some(Kind::StringValue(s.into())) };
    let fields = [("NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "users"), ("INTERCEPTION_MODE", "NONE")];
    Node {
        id: "sidecar~10.0.0.1~users-1.shop~shop.svc.cluster.local".into(),
        metadata: Some(Struct { fields: fields.map(|(k, v)| (k.to_owned(), text(v))).into() }),
        ..Node::default()
    }
}

/// A control plane for a directory. The issuer makes tokens for its second, guarded address.
struct Plane {
    open: SocketAddr,
    guarded: SocketAddr,
    issuer: token::Issuer,
    proxies: Proxies,
    _watcher: Watcher,
}

async fn plane(dir: &Path) -> Plane {
    let watcher = Watcher::start(dir).await.unwrap();
    let (_trust, trust) = tokio::sync::watch::channel(Arc::default());
    let queue = Queue::follow(watcher.subscribe(), trust, 10);
    let (cache, proxies) = (RenderCache::new(), Proxies::default());
    let state = State::create(SMALL, time::OffsetDateTime::now_utc()).unwrap();
    let (issuer, checker) = token::from_key(&state.token_key).unwrap();
    let authenticators = Authenticators::new(checker, "cluster.local".parse().unwrap());
    let mut addresses = Vec::new();
    for authenticators in [None, Some(authenticators)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        let service = AdsService::new(queue.clone(), cache.clone(), proxies.clone(), authenticators);
        let server = Server::builder().add_service(AggregatedDiscoveryServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener)));
    }
    Plane { open: addresses[0], guarded: addresses[1], issuer, proxies, _watcher: watcher }
}

async fn client(address: SocketAddr) -> AggregatedDiscoveryServiceClient<Channel> {
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    AggregatedDiscoveryServiceClient::new(channel)
}

/// A delta stream, driven by hand.
struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    async fn open(address: SocketAddr) -> Self {
        let (requests, queue) = mpsc::channel(8);
        let mut client = client(address).await;
        let first = DeltaDiscoveryRequest {
            node: Some(node()),
            type_url: ResourceType::Cluster.type_url().into(),
            ..Default::default()
        };
        requests.send(first).await.unwrap();
        let responses =
            client.delta_aggregated_resources(ReceiverStream::new(queue)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    async fn next(&mut self) -> DeltaDiscoveryResponse {
        tokio::time::timeout(DEADLINE, self.responses.message()).await.unwrap().unwrap().unwrap()
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, refusal: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: refusal.map(|message| xds_protos::google::rpc::Status {
                message: message.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn subscribe(&self, kind: ResourceType, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

#[tokio::test]
async fn an_edit_reaches_a_connected_proxy_and_its_refusal_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mesh.yaml");
    std::fs::write(&file, MESH).unwrap();
    let plane = plane(dir.path()).await;
    let mut stream = Stream::open(plane.open).await;
    let clusters = stream.next().await;
    let names: Vec<_> = clusters.resources.iter().map(|r| r.name.as_str()).collect();
    assert!(names.contains(&"outbound|8080||users.shop.svc.cluster.local"), "{names:?}");
    stream.answer(&clusters, None).await;
    let name = "outbound|8080||users.shop.svc.cluster.local";
    stream.subscribe(ResourceType::Endpoint, &[name]).await;
    let endpoints = stream.next().await;
    stream.answer(&endpoints, None).await;

    std::fs::write(&file, MESH.replace("address: 10.0.0.2", "address: 10.0.0.3")).unwrap();
    let changed = stream.next().await;
    assert_eq!(changed.type_url, ResourceType::Endpoint.type_url());
    let any = changed.resources[0].resource.clone().unwrap();
    let assignment: xds_protos::envoy::config::endpoint::v3::ClusterLoadAssignment = any.unpack().unwrap();
    assert!(format!("{assignment:?}").contains("10.0.0.3"));

    stream.answer(&changed, Some("no such thing")).await;
    let began = std::time::Instant::now();
    loop {
        let seen = plane.proxies.list();
        let refused =
            seen[0].types.iter().find(|t| t.kind == ResourceType::Endpoint).unwrap().refused.clone();
        if refused.as_deref() == Some("no such thing") {
            assert_eq!(seen[0].revision, 2);
            break;
        }
        assert!(began.elapsed() < DEADLINE, "{seen:?}");
        tokio::task::yield_now().await;
    }
    drop(stream);
    while !plane.proxies.list().is_empty() {
        assert!(began.elapsed() < DEADLINE);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn state_of_the_world_is_served_too() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mesh.yaml"), MESH).unwrap();
    let plane = plane(dir.path()).await;
    let (requests, queue) = mpsc::channel(8);
    let first = DiscoveryRequest {
        node: Some(node()),
        type_url: ResourceType::Listener.type_url().into(),
        ..Default::default()
    };
    requests.send(first).await.unwrap();
    let mut client = client(plane.open).await;
    let mut responses =
        client.stream_aggregated_resources(ReceiverStream::new(queue)).await.unwrap().into_inner();
    let response = tokio::time::timeout(DEADLINE, responses.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(response.type_url, ResourceType::Listener.type_url());
    assert!(!response.version_info.is_empty() && !response.nonce.is_empty());
    assert_eq!(response.resources.len(), 1);
}

#[tokio::test]
async fn who_connects_must_be_who_the_node_says() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mesh.yaml"), MESH).unwrap();
    let plane = plane(dir.path()).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let token = |account: &str| plane.issuer.issue("shop", account, now, Duration::from_secs(60)).unwrap();
    let no_id = Node { id: String::new(), ..node() };
    let bad_id = Node { id: "sidecar~x".into(), ..node() };
    for (token, node, code, words) in [
        (None, node(), Some(Code::Unauthenticated), "weft token create"),
        (Some(token("orders")), node(), Some(Code::PermissionDenied), "SERVICE_ACCOUNT"),
        (Some(token("users")), no_id, Some(Code::InvalidArgument), "no node.id"),
        (Some(token("users")), bad_id, Some(Code::InvalidArgument), "four parts"),
        (Some(token("users")), node(), None, ""),
    ] {
        let (requests, queue) = mpsc::channel(8);
        let url = ResourceType::Cluster.type_url().into();
        requests
            .send(DeltaDiscoveryRequest { node: Some(node), type_url: url, ..Default::default() })
            .await
            .unwrap();
        let mut request = Request::new(ReceiverStream::new(queue));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let mut client = client(plane.guarded).await;
        let answer = match client.delta_aggregated_resources(request).await {
            Ok(response) => {
                let mut responses = response.into_inner();
                tokio::time::timeout(DEADLINE, responses.message()).await.unwrap()
            }
            Err(status) => Err(status),
        };
        match (answer, code) {
            (Ok(Some(response)), None) => assert!(!response.resources.is_empty()),
            (Err(status), Some(code)) => {
                assert_eq!(status.code(), code, "{status}");
                assert!(status.message().contains(words), "{status}");
            }
            (other, _) => panic!("{other:?}"),
        }
    }
}

/// A mesh of `services` services with two endpoints each.
fn big(services: usize, last_octet: usize) -> World {
    let mut text = String::new();
    for n in 0..services {
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: shop}}\n\
             spec: {{selector: {{app: s{n}}}, ports: [{{name: http, port: 8080}}]}}\n"
        ));
        for instance in 1..=2 {
            // One endpoint of one service is the one that moves.
            let octet = if n == 7 && instance == 2 { last_octet } else { instance };
            text.push_str(&format!(
                "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                 metadata: {{name: s{n}-{instance}, namespace: shop}}\n\
                 spec: {{address: 10.{}.{}.{octet}, labels: {{app: s{n}}}, serviceAccount: s{n}}}\n",
                n / 250,
                n % 250,
            ));
        }
    }
    load_str("mesh.yaml", &text).into_result().unwrap()
}

#[test]
fn one_moved_endpoint_among_a_thousand_services_is_one_assignment_for_all_proxies() {
    let revision = |world: World, number: u64| Revision {
        world,
        trust: Arc::default(),
        number,
        generation: number,
        version: number.to_string().into(),
        read: std::time::Instant::now(),
    };
    let nodes: Vec<ProxyNode> = (0..10)
        .map(|n| {
            let id = format!("sidecar~10.9.0.{n}~x-{n}.shop~shop.svc.cluster.local");
            ProxyNode::parse(&Node { id, ..Node::default() }).unwrap()
        })
        .collect();
    let cache = RenderCache::new();
    let before = revision(big(1000, 2), 1);
    let first: Vec<_> = nodes.iter().map(|node| cache.resources(&before, node, false)).collect();
    let rendered = |kind| cache.memo().rendered(kind);
    let [cds, eds, lds, rds] =
        [ResourceType::Cluster, ResourceType::Endpoint, ResourceType::Listener, ResourceType::Route]
            .map(rendered);
    // A thousand services are rendered once, not once for each proxy; three clusters are fixed.
    assert_eq!((cds, eds), (1003, 1000));

    let after = revision(big(1000, 3), 2);
    let second: Vec<_> = nodes.iter().map(|node| cache.resources(&after, node, false)).collect();
    assert_eq!(
        [ResourceType::Cluster, ResourceType::Endpoint, ResourceType::Listener, ResourceType::Route]
            .map(rendered),
        [cds, eds + 1, lds, rds]
    );
    let name = "outbound|8080||s7.shop.svc.cluster.local";
    for (old, new) in first.iter().zip(&second) {
        let changed: Vec<_> = new[&ResourceType::Endpoint]
            .iter()
            .filter(|(name, resource)| old[&ResourceType::Endpoint][*name].version != resource.version)
            .map(|(name, _)| &**name)
            .collect();
        assert_eq!(changed, [name]);
        // All proxies share the bytes.
        let shared = |r: &Arc<crate::render::Resources>| r[&ResourceType::Endpoint][name].bytes.as_ptr();
        assert_eq!(shared(new), shared(&second[0]));
    }
}
