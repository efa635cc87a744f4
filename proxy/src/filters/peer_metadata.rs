//! `istio.metadata_exchange` over HTTP: each proxy tells the other which workload it serves, in two header fields, which
//! the other removes.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use foldhash::fast::RandomState;
use http::HeaderValue;
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use xds_protos::io::istio::http::peer_metadata::Config;
use xds_protos::io::istio::http::peer_metadata::config::{
    DiscoveryMethod, PropagationMethod, discovery_method, propagation_method,
};

use crate::codec::Headers;
use crate::router::{OwnMetadata, PEER_METADATA, PEER_METADATA_ID};
use crate::state::NodeInfo;
use crate::telemetry::istio::Workload;

/// What a worker keeps decoded of its peers' metadata takes at most so many bytes: a few hundred usual ones.
const REMEMBERED: usize = 512 * 1024;
/// As much of each word of a peer's is taken, in bytes: nobody has verified them, and they become labels of metrics.
const LONGEST: usize = 256;

/// Compiled settings.
#[derive(Debug)]
pub struct PeerMetadata {
    read_request: bool,
    write_request: bool,
    read_response: bool,
    write_response: bool,
    own: Arc<OwnMetadata>,
}

impl PeerMetadata {
    /// Compiles the filter's settings for this node. Discovery by workload (`workload_discovery`) needs a service that
    /// knows workloads by address; without one it finds nothing, as in Envoy.
    pub fn compile(config: &Config, node: &NodeInfo) -> Self {
        let reads = |list: &[DiscoveryMethod]| {
            list.iter().any(|m| {
                matches!(m.method_specifier, Some(discovery_method::MethodSpecifier::IstioHeaders(_)))
            })
        };
        let writes = |list: &[PropagationMethod]| {
            list.iter().find_map(|m| {
                m.method_specifier
                    .map(|propagation_method::MethodSpecifier::IstioHeaders(h)| h.skip_external_clusters)
            })
        };
        let text = STANDARD.encode(own_metadata(node).encode_to_vec());
        let value = |text: &str| HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
        Self {
            read_request: reads(&config.downstream_discovery),
            write_request: writes(&config.upstream_propagation).is_some(),
            read_response: reads(&config.upstream_discovery),
            write_response: writes(&config.downstream_propagation).is_some(),
            own: Arc::new(OwnMetadata {
                metadata: value(&text),
                id: value(&node.id),
                skip_external: writes(&config.upstream_propagation).unwrap_or(false),
            }),
        }
    }

    /// Takes the caller's metadata out of a request. The second value says that there was some.
    pub(super) fn read_request(&self, headers: &mut Headers) -> (Option<Arc<Workload>>, bool) {
        if self.read_request { read(headers) } else { (None, false) }
    }

    /// What the router tells the callee about us, if it is to do so.
    pub fn for_requests(&self) -> Option<&Arc<OwnMetadata>> {
        self.write_request.then_some(&self.own)
    }

    /// Takes the callee's metadata out of a response.
    pub(super) fn read_response(&self, headers: &mut Headers) -> Option<Arc<Workload>> {
        if self.read_response { read(headers).0 } else { None }
    }

    /// Tells a caller that told us about itself.
    pub(super) fn write_response(&self, headers: &mut Headers, caller_told: bool) {
        if self.write_response && caller_told {
            self.own.write(headers);
        }
    }
}

fn read(headers: &mut Headers) -> (Option<Arc<Workload>>, bool) {
    let (found, id) = (headers.get(&PEER_METADATA), headers.get(&PEER_METADATA_ID));
    if found.is_none() && id.is_none() {
        return (None, false);
    }
    let workload = found.and_then(|metadata| remembered(id, metadata));
    headers.remove(&PEER_METADATA);
    headers.remove(&PEER_METADATA_ID);
    (workload, true)
}

/// Peers by their ids, with what was last read of each.
#[derive(Default)]
struct Peers {
    known: HashMap<Bytes, (HeaderValue, Arc<Workload>), RandomState>,
    bytes: usize,
}

impl Peers {
    /// What one takes: what it has said, its words decoded, and its places in the table.
    fn size(id: &[u8], metadata: &HeaderValue) -> usize {
        256 + id.len() + 2 * metadata.len() + size_of::<Workload>()
    }

    fn keep(&mut self, id: &[u8], metadata: &HeaderValue, workload: Arc<Workload>) {
        let size = Self::size(id, metadata);
        if size > REMEMBERED {
            return;
        }
        if self.bytes + size > REMEMBERED {
            (self.bytes, self.known) = (0, HashMap::default());
        }
        // A copy: what came is a piece of the whole head that it came in.
        let Ok(metadata) = HeaderValue::from_bytes(metadata.as_bytes()) else { return };
        self.bytes += size;
        if let Some((before, _)) = self.known.insert(Bytes::copy_from_slice(id), (metadata, workload)) {
            self.bytes -= Self::size(id, &before);
        }
    }
}

thread_local! {
    static PEERS: RefCell<Peers> = RefCell::default();
}

/// The workload of this metadata, decoded once per peer and worker.
fn remembered(id: Option<&HeaderValue>, metadata: &HeaderValue) -> Option<Arc<Workload>> {
    let key = id.map(|i| i.as_bytes()).unwrap_or_default();
    PEERS.with_borrow_mut(|peers| {
        if let Some((known, workload)) = peers.known.get(key)
            && known == metadata
        {
            return Some(workload.clone());
        }
        let bytes = STANDARD.decode(metadata.as_bytes()).ok()?;
        let workload = Arc::new(workload(&Struct::decode(bytes.as_slice()).ok()?));
        peers.keep(key, metadata, workload.clone());
        Some(workload)
    })
}

fn workload(metadata: &Struct) -> Workload {
    let text =
        |fields: &BTreeMap<String, Value>, key: &str| match fields.get(key).and_then(|v| v.kind.as_ref()) {
            Some(Kind::StringValue(text)) => text[..text.floor_char_boundary(LONGEST)].to_owned(),
            _ => String::new(),
        };
    let none = BTreeMap::new();
    let labels = match metadata.fields.get("LABELS").and_then(|v| v.kind.as_ref()) {
        Some(Kind::StructValue(labels)) => &labels.fields,
        _ => &none,
    };
    let name = text(&metadata.fields, "WORKLOAD_NAME");
    let canonical = text(labels, "service.istio.io/canonical-name");
    Workload {
        canonical_service: if canonical.is_empty() { name.clone() } else { canonical },
        name,
        namespace: text(&metadata.fields, "NAMESPACE"),
        app: text(labels, "app"),
        version: text(labels, "version"),
        cluster: text(&metadata.fields, "CLUSTER_ID"),
        canonical_revision: text(labels, "service.istio.io/canonical-revision"),
    }
}

fn own_metadata(node: &NodeInfo) -> Struct {
    let text = |t: &str| Value { kind: Some(Kind::StringValue(t.to_owned())) };
    let mut fields: BTreeMap<String, Value> = ["NAME", "NAMESPACE", "CLUSTER_ID", "OWNER", "WORKLOAD_NAME"]
        .into_iter()
        .filter(|key| !node.meta(key).is_empty())
        .map(|key| (key.to_owned(), text(node.meta(key))))
        .collect();
    let told = ["app", "version", "service.istio.io/canonical-name", "service.istio.io/canonical-revision"];
    let labels: BTreeMap<_, _> = node
        .labels()
        .into_iter()
        .filter(|(key, _)| told.contains(&key.as_str()))
        .map(|(key, value)| (key, text(&value)))
        .collect();
    fields.insert("LABELS".to_owned(), Value { kind: Some(Kind::StructValue(Struct { fields: labels })) });
    Struct { fields }
}

/// The workload that this proxy serves, as its own metrics name it.
pub fn local_workload(node: &NodeInfo) -> Workload {
    workload(&own_metadata(node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use xds_protos::io::istio::http::peer_metadata::config::IstioHeaders;

    #[test]
    fn what_one_proxy_writes_the_other_reads_and_removes() {
        let serde_json::Value::Object(metadata) = json!({"NAMESPACE": "ecotrack", "WORKLOAD_NAME": "order",
            "CLUSTER_ID": "c1", "LABELS": {"app": "order-service", "version": "v1", "other": "x"}})
        else {
            unreachable!()
        };
        let node = NodeInfo { id: "sidecar~1".to_owned(), metadata, ..NodeInfo::default() };
        let read_method = DiscoveryMethod {
            method_specifier: Some(discovery_method::MethodSpecifier::IstioHeaders(IstioHeaders::default())),
        };
        let write_method = PropagationMethod {
            method_specifier: Some(
                propagation_method::MethodSpecifier::IstioHeaders(IstioHeaders::default()),
            ),
        };
        let outbound = PeerMetadata::compile(
            &Config { upstream_propagation: vec![write_method], ..Config::default() },
            &node,
        );
        let inbound = PeerMetadata::compile(
            &Config { downstream_discovery: vec![read_method], ..Config::default() },
            &NodeInfo::default(),
        );
        let mut headers = Headers::new();
        outbound.for_requests().unwrap().write(&mut headers);
        assert_eq!(headers.len(), 2);
        let (workload, told) = inbound.read_request(&mut headers);
        assert!(told && headers.is_empty());
        let workload = workload.unwrap();
        assert_eq!((workload.name.as_str(), workload.app.as_str()), ("order", "order-service"));
        assert_eq!(*workload, local_workload(&node));
    }

    #[test]
    fn what_is_remembered_of_peers_has_a_bound_in_bytes() {
        let (mut peers, workload) = (Peers::default(), Arc::new(Workload::default()));
        let value = |length: usize| HeaderValue::from_str(&"a".repeat(length)).unwrap();
        for number in 0..10_000_usize {
            peers.keep(number.to_string().as_bytes(), &value(number % 4000), workload.clone());
            let held: usize = peers.known.iter().map(|(id, (m, _))| Peers::size(id, m)).sum();
            assert!(held == peers.bytes && held <= REMEMBERED, "{number}: {held} of {}", peers.bytes);
        }
        // One that says something else takes its own place, and one that says too much none.
        let before = peers.known.len();
        peers.keep(b"9999", &value(10), workload.clone());
        peers.keep(b"large", &value(REMEMBERED), workload);
        assert_eq!(peers.known.len(), before);
        assert_eq!(peers.known[&b"9999"[..]].0, "a".repeat(10));
    }

    #[test]
    fn no_more_of_a_peers_words_is_taken_than_there_is_room_for() {
        let text = |t: &str| Value { kind: Some(Kind::StringValue(t.to_owned())) };
        // A character of two bytes lies across the bound.
        let fields =
            [("WORKLOAD_NAME", text(&format!("a{}", "é".repeat(30_000)))), ("NAMESPACE", text("shop"))];
        let fields = fields.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
        let workload = workload(&Struct { fields });
        assert_eq!((workload.name.len(), workload.namespace.as_str()), (LONGEST - 1, "shop"));
        assert_eq!(workload.canonical_service, workload.name);
    }
}
