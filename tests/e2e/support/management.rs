//! An xDS management server that sends what a test tells it to, right or wrong, and keeps what it hears back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use xds_protos::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use xds_protos::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use xds_protos::{Any, ResourceType, json};

/// The server; it ends with the test's process.
#[derive(Clone)]
pub struct Management {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    /// It answers as istiod does: clusters are followed by all endpoints, a route configuration that is not there is empty.
    istiod: bool,
}

#[derive(Default)]
struct State {
    version: u64,
    resources: BTreeMap<ResourceType, BTreeMap<String, (u64, Bytes)>>,
    heard: Vec<Heard>,
    connections: usize,
}

/// What a proxy said about a response.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Of which kind.
    pub kind: ResourceType,
    /// The version of the response.
    pub version: u64,
    /// Why it was refused; none: it was taken.
    pub refused: Option<String>,
}

impl Management {
    /// Serves on a free port of loopback.
    pub fn start() -> Self {
        Self::serve(false)
    }

    /// The same with istiod's habits: every answer about clusters is followed by all endpoints that are asked for, and a route
    /// configuration that is not there comes as an empty one.
    pub fn istiod() -> Self {
        Self::serve(true)
    }

    fn serve(istiod: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared { state: Mutex::default(), changed: watch::Sender::new(0), istiod });
        let server = Self { address, shared };
        let service = AggregatedDiscoveryServiceServer::new(server.clone());
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let incoming = TcpListenerStream::new(listener);
                tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
            })
        });
        server
    }

    /// Sends these resources from now on, in the order of their kinds. Each document of the YAML is one, with its `@type`; `version`, which is
    /// given, is what answers to it will name.
    pub fn push(&self, yaml: &str) -> u64 {
        let mut state = self.shared.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        for document in yaml.split("\n---\n").filter(|d| !d.trim().is_empty()) {
            let mut value = json::value_from_yaml_str(document).expect("YAML");
            let fields = value.as_object_mut().expect("a resource");
            let url = fields.remove("@type").expect("an @type");
            let url = url.as_str().expect("a type URL");
            let url = format!("type.googleapis.com/{url}");
            let kind = ResourceType::from_type_url(&url).expect("a kind of resource");
            let name = ["name", "cluster_name"].iter().find_map(|k| fields.get(*k)?.as_str());
            let name = name.expect("a name").to_owned();
            let bytes = json::encode(url.split_once('/').expect("a type URL").1, &value).expect("a resource");
            state.resources.entry(kind).or_default().insert(name, (version, bytes));
        }
        drop(state);
        self.shared.changed.send_replace(version);
        version
    }

    /// Takes a resource away.
    pub fn remove(&self, kind: ResourceType, name: &str) -> u64 {
        let mut state = self.shared.state.lock().unwrap();
        state.version += 1;
        state.resources.entry(kind).or_default().remove(name);
        let version = state.version;
        drop(state);
        self.shared.changed.send_replace(version);
        version
    }

    /// What was said about this kind in this version or a later one: taken (`Some(None)`), refused with a reason, or nothing yet.
    pub fn heard(&self, kind: ResourceType, version: u64) -> Option<Option<String>> {
        let state = self.shared.state.lock().unwrap();
        state.heard.iter().find(|h| h.kind == kind && h.version >= version).map(|h| h.refused.clone())
    }

    /// Every refusal so far.
    pub fn refusals(&self) -> Vec<String> {
        let state = self.shared.state.lock().unwrap();
        state.heard.iter().filter_map(|h| h.refused.clone()).collect()
    }

    /// Streams that were opened so far.
    pub fn connections(&self) -> usize {
        self.shared.state.lock().unwrap().connections
    }

    fn opened(&self) {
        self.shared.state.lock().unwrap().connections += 1;
    }

    fn hear(&self, kind: ResourceType, version: u64, error: Option<&xds_protos::google::rpc::Status>) {
        let refused = error.map(|e| e.message.clone());
        self.shared.state.lock().unwrap().heard.push(Heard { kind, version, refused });
    }

    /// The resources of a kind that are wanted, and the version of the newest change.
    fn current(
        &self,
        kind: ResourceType,
        wanted: &BTreeSet<String>,
    ) -> (u64, BTreeMap<String, (u64, Bytes)>) {
        let state = self.shared.state.lock().unwrap();
        let all = state.resources.get(&kind).cloned().unwrap_or_default();
        let wildcard = kind.wildcard();
        let mut some: BTreeMap<_, _> =
            all.into_iter().filter(|(name, _)| wildcard || wanted.contains(name)).collect();
        if self.shared.istiod && kind == ResourceType::Route {
            for name in wanted {
                let empty = serde_json::json!({"name": name});
                let message = kind.type_url().split_once('/').expect("a type URL").1;
                some.entry(name.clone())
                    .or_insert_with(|| (0, json::encode(message, &empty).expect("a name")));
            }
        }
        (state.version, some)
    }
}

/// What one stream wants and was sent of a kind.
#[derive(Default)]
struct Watched {
    names: BTreeSet<String>,
    sent: Option<BTreeMap<String, u64>>,
    version: u64,
    nonce: String,
}

impl Watched {
    /// What is to be sent now: all that is wanted, if something of it is new.
    fn news(&mut self, server: &Management, kind: ResourceType) -> Option<BTreeMap<String, (u64, Bytes)>> {
        let (version, resources) = server.current(kind, &self.names);
        let versions: BTreeMap<String, u64> = resources.iter().map(|(n, (v, _))| (n.clone(), *v)).collect();
        if self.sent.as_ref() == Some(&versions) {
            return None;
        }
        self.sent = Some(versions);
        self.version = version;
        self.nonce = format!("{}-{version}-{}", kind.short(), fastrand::u32(..));
        Some(resources)
    }
}

type Kinds = BTreeMap<ResourceType, Watched>;
type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn any(kind: ResourceType, value: Bytes) -> Any {
    Any { type_url: kind.type_url().to_owned(), value }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Management {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.opened();
        let (server, mut requests) = (self.clone(), request.into_inner());
        let (responses, outgoing) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut changed = server.shared.changed.subscribe();
            let mut kinds = Kinds::default();
            loop {
                tokio::select! {
                    request = requests.next() => {
                        let Some(Ok(request)) = request else { return };
                        let kind = ResourceType::from_type_url(&request.type_url).expect("a kind");
                        let watched = kinds.entry(kind).or_default();
                        if !request.response_nonce.is_empty() && request.response_nonce == watched.nonce {
                            server.hear(kind, watched.version, request.error_detail.as_ref());
                        }
                        let names = request.resource_names.into_iter().collect();
                        if watched.names != names {
                            watched.names = names;
                            watched.sent = None;
                        }
                    }
                    _ = changed.changed() => {}
                }
                let mut clusters = false;
                for (kind, watched) in &mut kinds {
                    if clusters && *kind == ResourceType::Endpoint && !watched.names.is_empty() {
                        watched.sent = None;
                    }
                    let Some(resources) = watched.news(&server, *kind) else { continue };
                    clusters |= server.shared.istiod && *kind == ResourceType::Cluster;
                    let response = DiscoveryResponse {
                        version_info: watched.version.to_string(),
                        nonce: watched.nonce.clone(),
                        type_url: kind.type_url().to_owned(),
                        resources: resources.into_values().map(|(_, bytes)| any(*kind, bytes)).collect(),
                        ..DiscoveryResponse::default()
                    };
                    if responses.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.opened();
        let (server, mut requests) = (self.clone(), request.into_inner());
        let (responses, outgoing) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut changed = server.shared.changed.subscribe();
            let mut kinds = Kinds::default();
            loop {
                tokio::select! {
                    request = requests.next() => {
                        let Some(Ok(request)) = request else { return };
                        let kind = ResourceType::from_type_url(&request.type_url).expect("a kind");
                        let watched = kinds.entry(kind).or_default();
                        if !request.response_nonce.is_empty() && request.response_nonce == watched.nonce {
                            server.hear(kind, watched.version, request.error_detail.as_ref());
                        }
                        watched.names.extend(request.resource_names_subscribe);
                        watched.names.retain(|name| !request.resource_names_unsubscribe.contains(name));
                    }
                    _ = changed.changed() => {}
                }
                let mut clusters = false;
                for (kind, watched) in &mut kinds {
                    if clusters && *kind == ResourceType::Endpoint && !watched.names.is_empty() {
                        watched.sent = None;
                    }
                    let before = watched.sent.clone().unwrap_or_default();
                    let Some(resources) = watched.news(&server, *kind) else { continue };
                    clusters |= server.shared.istiod && *kind == ResourceType::Cluster;
                    let removed = before.keys().filter(|name| !resources.contains_key(*name)).cloned();
                    let response = DeltaDiscoveryResponse {
                        nonce: watched.nonce.clone(),
                        type_url: kind.type_url().to_owned(),
                        removed_resources: removed.collect(),
                        resources: resources
                            .into_iter()
                            .filter(|(name, (version, _))| before.get(name) != Some(version))
                            .map(|(name, (version, bytes))| Resource {
                                name,
                                version: version.to_string(),
                                resource: Some(any(*kind, bytes)),
                                ..Resource::default()
                            })
                            .collect(),
                        ..DeltaDiscoveryResponse::default()
                    };
                    if responses.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}
