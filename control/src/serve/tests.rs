//! Streams over a socket, and how much work a change is.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};
use xds_protos::ResourceType;
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use xds_protos::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use xds_protos::prost_types::{Struct, Value, value::Kind};

use super::dispatch::Dispatch;
use super::spread::Crowd;
use super::{AdsService, Proxies, RenderCache, transport};
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
    crowd: Crowd,
    _watcher: Watcher,
}

async fn plane(dir: &Path) -> Plane {
    let watcher = Watcher::start(dir).await.unwrap();
    let (_trust, trust) = tokio::sync::watch::channel(Arc::default());
    let queue = Queue::follow(watcher.subscribe(), trust, 10);
    let (cache, proxies) = (RenderCache::new(), Proxies::default());
    let dispatch = Dispatch::start(queue.clone(), cache.clone());
    let state = State::create(SMALL, time::OffsetDateTime::now_utc()).unwrap();
    let (issuer, checker) = token::from_key(&state.token_key).unwrap();
    let authenticators = Authenticators::new(checker, "cluster.local".parse().unwrap());
    let (mut addresses, crowd) = (Vec::new(), Crowd::default());
    for authenticators in [None, Some(authenticators)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        let (queue, cache, proxies) = (queue.clone(), cache.clone(), proxies.clone());
        let service = AdsService::new(queue, cache, proxies, dispatch.clone(), authenticators);
        let service = service.with_crowd(crowd.clone());
        tokio::spawn(transport::plain(listener, Routes::new(service).prepare()));
    }
    Plane { open: addresses[0], guarded: addresses[1], issuer, proxies, crowd, _watcher: watcher }
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
        Self::open_by(client(address).await, node()).await
    }

    /// A proxy at this address, which takes no more than `window` bytes before it reads.
    async fn open_as(address: SocketAddr, ip: &str, window: Option<u32>) -> Self {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        let channel = channel.initial_stream_window_size(window).connect().await.unwrap();
        let id = format!("sidecar~{ip}~x.shop~shop.svc.cluster.local");
        Self::open_by(AggregatedDiscoveryServiceClient::new(channel), Node { id, ..node() }).await
    }

    async fn open_by(mut client: AggregatedDiscoveryServiceClient<Channel>, node: Node) -> Self {
        let (requests, queue) = mpsc::channel(8);
        let first = DeltaDiscoveryRequest {
            node: Some(node),
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
                code: Code::Internal as i32,
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
async fn an_edit_reaches_a_connected_proxy_and_its_refusal_is_seen_and_counted() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let numbers = recorder.handle();
    // All tasks are on this thread.
    let _counted = metrics::set_default_local_recorder(&recorder);
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
    // One more answer to what was answered long ago.
    stream.answer(&endpoints, None).await;
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
    for line in [
        "pilot_total_xds_rejects{type=\"eds\"} 1".to_owned(),
        "pilot_xds_eds_reject{err=\"Internal\"} 1".to_owned(),
        "pilot_xds_expired_nonce{type=\"eds\"} 1".to_owned(),
        "pilot_inbound_updates{type=\"eds\"} 1".to_owned(),
        "pilot_push_triggers{type=\"endpoint\"} 1".to_owned(),
        "pilot_push_triggers{type=\"proxy\"} 1".to_owned(),
        "pilot_xds_pushes{type=\"eds\"} 2".to_owned(),
        "pilot_xds_pushes{type=\"cds\"} 1".to_owned(),
    ] {
        while !numbers.render().lines().any(|l| l == line) {
            assert!(began.elapsed() < DEADLINE, "{line}\n{}", numbers.render());
            tokio::task::yield_now().await;
        }
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

/// A state of the mesh as it goes out.
fn revision(world: World, number: u64) -> Arc<Revision> {
    Arc::new(Revision {
        world,
        trust: Arc::default(),
        number,
        generation: number,
        version: number.to_string().into(),
        read: std::time::Instant::now(),
    })
}

fn sidecars(count: usize) -> Vec<ProxyNode> {
    let one = |n: usize| {
        let id = format!("sidecar~10.9.0.{n}~x-{n}.shop~shop.svc.cluster.local");
        ProxyNode::parse(&Node { id, ..Node::default() }).unwrap()
    };
    (0..count).map(one).collect()
}

#[test]
fn one_moved_endpoint_among_a_thousand_services_is_one_assignment_for_all_proxies() {
    let cache = RenderCache::new();
    let places: Vec<_> = sidecars(50).iter().map(|node| cache.place(node, false)).collect();
    let kinds = [ResourceType::Cluster, ResourceType::Endpoint, ResourceType::Listener, ResourceType::Route];
    let rendered = || kinds.map(|kind| cache.memo().rendered(kind));
    let before = revision(big(1000, 2), 1);
    let first: Vec<_> = places.iter().map(|place| cache.resources(&before, place).1).collect();
    let [cds, eds, lds, rds] = rendered();
    // A thousand services are rendered once, not once for each proxy; three clusters are fixed.
    assert_eq!((cds, eds), (1003, 1000));

    let encoded = cache.memo().encoded();
    let after = revision(big(1000, 3), 2);
    let second: Vec<_> = places.iter().map(|place| cache.resources(&after, place).1).collect();
    assert_eq!(rendered(), [cds, eds + 1, lds, rds]);
    let name = "outbound|8080||s7.shop.svc.cluster.local";
    let assignment = &second[0][&ResourceType::Endpoint][name];
    assert_eq!(cache.memo().encoded() - encoded, assignment.bytes.len() as u64, "encoded once");
    for (old, new) in first.iter().zip(&second) {
        for kind in kinds {
            let changed = new[&kind].differing(&old[&kind]);
            let expected: &[&str] = if kind == ResourceType::Endpoint { &[name] } else { &[] };
            assert_eq!(changed.iter().map(|name| &**name).collect::<Vec<_>>(), expected, "{kind}");
        }
        // All proxies share the bytes.
        assert_eq!(new[&ResourceType::Endpoint][name].bytes.as_ptr(), assignment.bytes.as_ptr());
    }
}

#[test]
fn a_networks_gateway_moves_what_is_behind_it_for_those_who_are_elsewhere() {
    // Of two hundred services four are in another network.
    let mesh = |gateway: &str| {
        let networks = format!(
            "networks: {{home: {{endpoints: [{{fromCidr: 10.0.0.0/8}}]}}, far: {{endpoints: [{{fromCidr: 10.0.7.0/24}}, {{fromCidr: 10.0.9.0/24}}], \
             gateways: [{{address: {gateway}, port: 15443}}]}}}}\n---\n"
        );
        let mut text = networks;
        for n in 0..200 {
            let third = n % 100;
            text += &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: shop}}\nspec: {{selector: {{app: s{n}}}, ports: [{{name: http, port: 80}}]}}\n---\n\
                 apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: w{n}, namespace: shop}}\n\
                 spec: {{address: 10.0.{third}.{}, labels: {{app: s{n}}}, serviceAccount: s}}\n---\n",
                1 + n / 100
            );
        }
        load_str("mesh.yaml", &text).into_result().unwrap()
    };
    let node = |ip: &str| {
        let id = format!("sidecar~{ip}~x.shop~shop.svc.cluster.local");
        ProxyNode::parse(&Node { id, ..Node::default() }).unwrap()
    };
    let cache = RenderCache::new();
    let (near, far) = (cache.place(&node("10.1.0.1"), false), cache.place(&node("10.0.9.200"), false));
    let kinds = [ResourceType::Cluster, ResourceType::Endpoint, ResourceType::Listener, ResourceType::Route];
    let rendered = || kinds.map(|kind| cache.memo().rendered(kind));
    let first = revision(mesh("203.0.113.1"), 1);
    cache.resources(&first, &near);
    let before = cache.resources(&first, &far).1;
    let [cds, eds, lds, rds] = rendered();
    let second = revision(mesh("203.0.113.2"), 2);
    let now = cache.resources(&second, &near).1;
    // Two services in each of the two ranges.
    assert_eq!(rendered(), [cds, eds + 4, lds, rds]);
    let assignment = &now[&ResourceType::Endpoint]["outbound|80||s7.shop.svc.cluster.local"];
    assert!(String::from_utf8_lossy(&assignment.bytes).contains("203.0.113.2"));
    // Who is there goes directly, and gets nothing new.
    let after = cache.resources(&second, &far).1;
    assert_eq!(rendered(), [cds, eds + 4, lds, rds]);
    for kind in kinds {
        assert!(after[&kind].differing(&before[&kind]).is_empty(), "{kind}");
    }
}

#[test]
fn a_proxy_that_does_not_see_what_moved_is_not_concerned() {
    let mesh = |moved: &str, own: &str| {
        let text = MESH.replace("address: 10.0.0.2", &format!("address: {own}"))
            + "---"
            + &MESH
                .replace("namespace: shop", "namespace: far")
                .replace("address: 10.0.0.2", &format!("address: {moved}"))
            + "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: shop}\n\
               spec: {egress: [{hosts: ['./*']}]}\n";
        load_str("mesh.yaml", &text).into_result().unwrap()
    };
    let cache = RenderCache::new();
    let place = cache.place(&sidecars(1)[0], false);
    let first = revision(mesh("10.1.0.2", "10.0.0.2"), 1);
    let (_, resources) = cache.resources(&first, &place);
    let far = revision(mesh("10.1.0.3", "10.0.0.2"), 2);
    assert!(!cache.concerns(&far, &place), "it does not see the other namespace");
    assert!(Arc::ptr_eq(&cache.resources(&far, &place).1, &resources), "and has what it had");
    let near = revision(mesh("10.1.0.3", "10.0.0.3"), 3);
    assert!(cache.concerns(&near, &place), "it sees its own");
    let (_, moved) = cache.resources(&near, &place);
    assert_ne!(
        moved[&ResourceType::Endpoint][SEEN].version,
        resources[&ResourceType::Endpoint][SEEN].version
    );
    // Its own address is served otherwise.
    let own = revision(mesh("10.1.0.3", "10.9.0.0"), 4);
    assert!(cache.concerns(&own, &place));
    assert!(cache.resources(&own, &place).1[&ResourceType::Cluster].get("inbound|8080||").is_some());
}

const SEEN: &str = "outbound|8080||users.shop.svc.cluster.local";

#[tokio::test]
async fn a_stream_that_does_not_read_holds_up_nobody_and_keeps_no_states() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mesh.yaml"), MESH).unwrap();
    let watcher = Watcher::start(dir.path()).await.unwrap();
    let mut snapshot = crate::ingest::Snapshot::clone(&watcher.snapshot());
    snapshot.world = big(300, 2);
    let (snapshots, receiver) = tokio::sync::watch::channel(Arc::new(snapshot.clone()));
    let (_trust, trust) = tokio::sync::watch::channel(Arc::default());
    // One at a time is brought to a new state: whoever kept its turn would keep the others.
    let mut queue = Queue::follow(receiver, trust, 1);
    let (cache, proxies) = (RenderCache::new(), Proxies::default());
    let dispatch = Dispatch::start(queue.clone(), cache.clone());
    let service = AdsService::new(queue.clone(), cache.clone(), proxies.clone(), dispatch, None);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(transport::plain(listener, Routes::new(service).prepare()));

    // It asks for all clusters, which are more than its window takes, and never reads.
    let _stuck = Stream::open_as(address, "10.9.0.1", Some(1024)).await;
    let mut reader = Stream::open_as(address, "10.9.0.2", None).await;
    let clusters = reader.next().await;
    reader.answer(&clusters, None).await;
    let name = "outbound|8080||s7.shop.svc.cluster.local";
    reader.subscribe(ResourceType::Endpoint, &[name]).await;
    let endpoints = reader.next().await;
    reader.answer(&endpoints, None).await;

    let mut past = Vec::new();
    for octet in 3..40 {
        snapshot.world = big(300, octet);
        snapshots.send(Arc::new(snapshot.clone())).unwrap();
        let changed = reader.next().await;
        assert_eq!(changed.type_url, ResourceType::Endpoint.type_url());
        let any = changed.resources[0].resource.clone().unwrap();
        assert!(
            String::from_utf8_lossy(&any.value).contains(&format!(".7.{octet}")),
            "each state is delivered"
        );
        reader.answer(&changed, None).await;
        past.push(Arc::downgrade(&queue.latest()));
    }
    // Of all those states a few are left: the last one, and those that the stream that does not read was at.
    let began = std::time::Instant::now();
    loop {
        let kept = past.iter().filter(|state| state.strong_count() > 0).count();
        if kept <= 4 {
            break;
        }
        assert!(began.elapsed() < DEADLINE, "{kept} of {} states are kept", past.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(proxies.list().len(), 2, "it is still there");
}

#[tokio::test]
async fn a_proxy_that_is_sent_away_has_acknowledged_what_it_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mesh.yaml");
    std::fs::write(&file, MESH).unwrap();
    let plane = plane(dir.path()).await;
    let mut stream = Stream::open(plane.open).await;
    let clusters = stream.next().await;
    stream.answer(&clusters, None).await;
    stream.subscribe(ResourceType::Endpoint, &[SEEN]).await;
    let endpoints = stream.next().await;
    let soon = std::time::Instant::now() + Duration::from_secs(1);
    assert_eq!(plane.crowd.age(Duration::from_millis(1), soon), 1);
    assert_eq!((plane.crowd.len(), plane.proxies.list().len()), (0, 1));
    // It goes on as long as a response is on its way: what changes meanwhile comes, too.
    std::fs::write(&file, MESH.replace("address: 10.0.0.2", "address: 10.0.0.3")).unwrap();
    let began = std::time::Instant::now();
    while plane.proxies.list()[0].revision < 2 {
        assert!(began.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stream.answer(&endpoints, None).await;
    let changed = stream.next().await;
    assert!(format!("{changed:?}").contains("10.0.0.3"), "{changed:?}");
    stream.answer(&changed, None).await;
    let end = tokio::time::timeout(Duration::from_secs(4), stream.responses.message()).await;
    assert!(end.expect("at once, and not when its time is over").unwrap().is_none());
    while !plane.proxies.list().is_empty() {
        assert!(began.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // It may come again.
    let mut stream = Stream::open(plane.open).await;
    assert_eq!(stream.next().await.type_url, ResourceType::Cluster.type_url());
    assert_eq!(plane.crowd.len(), 1);
}

#[tokio::test]
async fn a_connection_carries_as_many_streams_as_it_is_given_and_ends_with_all_of_them() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mesh.yaml"), MESH).unwrap();
    let plane = plane(dir.path()).await;
    // HTTP libraries have limits of 100 and 200.
    const STREAMS: usize = 205;
    let client = client(plane.open).await;
    let mut streams = Vec::new();
    for n in 0..STREAMS {
        let stream = tokio::time::timeout(DEADLINE, Stream::open_by(client.clone(), node())).await;
        let mut stream = stream.unwrap_or_else(|_| panic!("stream {n} is not taken"));
        stream.next().await;
        streams.push(stream);
    }
    assert_eq!(plane.crowd.len(), STREAMS);
    let soon = std::time::Instant::now() + Duration::from_secs(1);
    assert_eq!((plane.crowd.age(Duration::from_millis(1), soon), plane.crowd.len()), (STREAMS as u64, 0));
}
