//! Simulated proxies: delta streams in plain text that ask for clusters and their endpoints, acknowledge whatever comes, and connect
//! again when they are sent away or their control plane is gone.

use std::collections::{BTreeMap, HashSet};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use xds_protos::ResourceType;
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::envoy::config::endpoint::v3::ClusterLoadAssignment;
use xds_protos::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use xds_protos::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use xds_protos::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use xds_protos::prost::Message;
use xds_protos::prost_types::{Struct, Value, value::Kind};

/// All of them, until this is dropped.
pub struct Streams {
    proxies: Vec<Arc<Proxy>>,
    _runtime: tokio::runtime::Runtime,
}

/// What one has come to.
#[derive(Default)]
struct Proxy {
    /// Assignments that were acknowledged: addresses by cluster. They stay while it has no control plane.
    held: Mutex<BTreeMap<String, Vec<String>>>,
    /// How often it has connected.
    connected: AtomicUsize,
}

impl Streams {
    /// So many of the namespace `shop`, of which each connects to `at`.
    pub fn start(at: SocketAddr, count: usize) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let proxies: Vec<Arc<Proxy>> = (0..count).map(|_| Arc::default()).collect();
        for (number, proxy) in proxies.iter().enumerate() {
            let (node, proxy) = (node(number), proxy.clone());
            runtime.spawn(async move {
                loop {
                    // An end, of whatever kind, is what it lives with.
                    let _ = proxy.follow(at, node.clone()).await;
                    tokio::time::sleep(Duration::from_millis(20 + number as u64 % 50)).await;
                }
            });
        }
        Self { proxies, _runtime: runtime }
    }

    /// How many of them hold as many assignments, and these addresses of this cluster.
    pub fn with(&self, assignments: usize, cluster: &str, addresses: &[String]) -> usize {
        let has = |proxy: &&Arc<Proxy>| {
            let held = proxy.held.lock().unwrap();
            held.len() >= assignments && held.get(cluster).is_some_and(|held| held == addresses)
        };
        self.proxies.iter().filter(has).count()
    }

    /// How often they have connected, together.
    pub fn connected(&self) -> usize {
        self.proxies.iter().map(|proxy| proxy.connected.load(Relaxed)).sum()
    }
}

fn node(number: usize) -> Node {
    let text = |s: &str| Value { kind: Some(Kind::StringValue(s.to_owned())) };
    let ip = format!("10.99.{}.{}", number / 250, number % 250 + 1);
    let fields = [("NAMESPACE", "shop"), ("INTERCEPTION_MODE", "NONE")];
    Node {
        id: format!("sidecar~{ip}~client-{number}.shop~shop.svc.cluster.local"),
        metadata: Some(Struct { fields: fields.map(|(k, v)| (k.to_owned(), text(v))).into() }),
        ..Node::default()
    }
}

fn addresses(assignment: &ClusterLoadAssignment) -> Vec<String> {
    let endpoints = assignment.endpoints.iter().flat_map(|group| &group.lb_endpoints);
    let address = |host: &HostIdentifier| match host {
        HostIdentifier::Endpoint(endpoint) => match endpoint.address.as_ref()?.address.as_ref()? {
            xds_protos::envoy::config::core::v3::address::Address::SocketAddress(socket) => {
                Some(socket.address.clone())
            }
            _ => None,
        },
        _ => None,
    };
    let mut all: Vec<_> = endpoints.filter_map(|e| address(e.host_identifier.as_ref()?)).collect();
    all.sort();
    all
}

impl Proxy {
    async fn follow(&self, at: SocketAddr, node: Node) -> Result<(), Box<dyn Error + Send + Sync>> {
        let channel = Channel::from_shared(format!("http://{at}"))?.connect().await?;
        let (requests, queue) = mpsc::channel(16);
        let ask = |kind: ResourceType| DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            ..Default::default()
        };
        requests.send(DeltaDiscoveryRequest { node: Some(node), ..ask(ResourceType::Cluster) }).await?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(queue)).await?;
        let mut responses = responses.into_inner();
        self.connected.fetch_add(1, Relaxed);
        let mut asked: HashSet<String> = HashSet::new();
        while let Some(response) = responses.message().await? {
            let mut next = Vec::new();
            for resource in &response.resources {
                if response.type_url == ResourceType::Endpoint.type_url() {
                    let any = resource.resource.as_ref().ok_or("a resource without content")?;
                    let assignment = ClusterLoadAssignment::decode(&*any.value)?;
                    self.held.lock().unwrap().insert(resource.name.clone(), addresses(&assignment));
                } else if resource.name.starts_with("outbound|") && asked.insert(resource.name.clone()) {
                    next.push(resource.name.clone());
                }
            }
            let acknowledged = DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                ..Default::default()
            };
            requests.send(acknowledged).await?;
            if !next.is_empty() {
                let all =
                    DeltaDiscoveryRequest { resource_names_subscribe: next, ..ask(ResourceType::Endpoint) };
                requests.send(all).await?;
            }
        }
        Ok(())
    }
}
