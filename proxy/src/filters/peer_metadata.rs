//! `istio.metadata_exchange` over HTTP: each proxy tells the other which workload it serves, in two header fields, which
//! the other removes. Two of ours on an HTTP/1 connection of the mesh do so once ([`crate::telemetry::peer`]).

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

use crate::codec::{Headers, Protocol};
use crate::router::{Exchange, OwnMetadata, PEER_METADATA, PEER_METADATA_ID, Scratch};
use crate::state::NodeInfo;
use crate::telemetry::istio::Workload;
use crate::telemetry::peer::{self, ASKS};

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
        let description = own_metadata(node).encode_to_vec();
        let text = STANDARD.encode(&description);
        let value = |text: &str| HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
        Self {
            read_request: reads(&config.downstream_discovery),
            write_request: writes(&config.upstream_propagation).is_some(),
            read_response: reads(&config.upstream_discovery),
            write_response: writes(&config.downstream_propagation).is_some(),
            own: Arc::new(OwnMetadata {
                description,
                metadata: value(&text),
                id: value(&node.id),
                skip_external: writes(&config.upstream_propagation).unwrap_or(false),
                remembers: reads(&config.upstream_discovery),
            }),
        }
    }

    /// Takes the caller's metadata out of a request, or remembers what it said before on this connection.
    pub(super) fn request_head(&self, exchange: &mut Exchange) {
        let Exchange { head, scratch, connection, .. } = exchange;
        if !self.read_request {
            return;
        }
        let Some(said) = read(&mut head.headers) else {
            scratch.caller_told = false;
            scratch.downstream_peer = scratch.caller.as_ref().and_then(|caller| caller.workload());
            return;
        };
        scratch.caller_told = true;
        if let (Some(number), Some(workload), Some(caller)) = (said.asks, &said.workload, &scratch.caller)
            && self.write_response
            && head.protocol == Protocol::Http11
        {
            scratch.remembered = caller.remember(connection, number, workload);
        }
        scratch.downstream_peer = said.workload;
    }

    /// What the router tells the callee about us, if it is to do so.
    pub fn for_requests(&self) -> Option<&Arc<OwnMetadata>> {
        self.write_request.then_some(&self.own)
    }

    /// Takes the callee's metadata out of a response, and tells a caller that told us about itself.
    pub(super) fn response_head(&self, headers: &mut Headers, scratch: &mut Scratch) {
        if self.read_response
            && let Some(peer) = read(headers).and_then(|said| said.workload)
        {
            let callee = scratch.callee.as_ref();
            // What somebody behind a callee that has told us who it is says is not the callee's word.
            if callee.is_none_or(|callee| callee.workload().is_none()) {
                callee.iter().for_each(|callee| callee.learn(&peer));
                scratch.upstream_peer = Some(peer);
            }
        }
        if self.write_response && scratch.caller_told {
            self.own.write(headers);
            if let Some(remembered) = scratch.remembered.take() {
                headers.set(peer::REMEMBERED, remembered);
            }
        }
    }
}

/// What a proxy says of itself.
struct Said {
    workload: Option<Arc<Workload>>,
    /// It asks to be remembered, by this number.
    asks: Option<u128>,
}

/// Takes metadata out of a message's fields; none if there is nothing of it.
fn read(headers: &mut Headers) -> Option<Said> {
    let (metadata, id) = (headers.get(&PEER_METADATA), headers.get(&PEER_METADATA_ID));
    if metadata.is_none() && id.is_none() {
        return None;
    }
    let said = metadata.and_then(|metadata| remembered(id, metadata));
    headers.remove(&PEER_METADATA);
    headers.remove(&PEER_METADATA_ID);
    Some(said.unwrap_or(Said { workload: None, asks: None }))
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

/// What this metadata says, decoded once per peer and worker.
fn remembered(id: Option<&HeaderValue>, metadata: &HeaderValue) -> Option<Said> {
    let key = id.map(|i| i.as_bytes()).unwrap_or_default();
    PEERS.with_borrow_mut(|peers| {
        if let Some((known, workload)) = peers.known.get(key)
            && known == metadata
        {
            return Some(Said { workload: Some(workload.clone()), asks: None });
        }
        let bytes = STANDARD.decode(metadata.as_bytes()).ok()?;
        let metadata_struct = Struct::decode(bytes.as_slice()).ok()?;
        let (asks, new) = (asked(&metadata_struct), workload(&metadata_struct));
        let workload = match peers.known.get(key) {
            Some((_, known)) if **known == new => known.clone(),
            _ => Arc::new(new),
        };
        peers.keep(key, metadata, workload.clone());
        Some(Said { workload: Some(workload), asks })
    })
}

/// The number by which a peer asks to be remembered.
fn asked(metadata: &Struct) -> Option<u128> {
    match metadata.fields.get(ASKS)?.kind.as_ref()? {
        Kind::StringValue(number) => u128::from_str_radix(number, 16).ok(),
        _ => None,
    }
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
    use std::rc::Rc;

    use serde_json::json;

    use super::*;
    use crate::codec::{Body, RequestHead};
    use crate::io::{ConnectionInfo, TlsInfo};
    use crate::router::Flow;
    use crate::telemetry::StreamInfo;
    use crate::telemetry::peer::{Callee, Caller};
    use xds_protos::io::istio::http::peer_metadata::config::IstioHeaders;

    fn node(name: &str) -> NodeInfo {
        let serde_json::Value::Object(metadata) = json!({"NAMESPACE": "ecotrack", "WORKLOAD_NAME": name,
            "CLUSTER_ID": "c1", "LABELS": {"app": format!("{name}-service"), "version": "v1", "other": "x"}})
        else {
            unreachable!()
        };
        NodeInfo { id: format!("sidecar~{name}"), metadata, ..NodeInfo::default() }
    }

    /// The filters of a caller and of a callee.
    fn both() -> (PeerMetadata, PeerMetadata) {
        let headers = IstioHeaders::default();
        let read = || {
            let headers = discovery_method::MethodSpecifier::IstioHeaders(headers);
            vec![DiscoveryMethod { method_specifier: Some(headers) }]
        };
        let write = || {
            let headers = propagation_method::MethodSpecifier::IstioHeaders(headers);
            vec![PropagationMethod { method_specifier: Some(headers) }]
        };
        let outbound =
            Config { upstream_propagation: write(), upstream_discovery: read(), ..Config::default() };
        let inbound =
            Config { downstream_discovery: read(), downstream_propagation: write(), ..Config::default() };
        (PeerMetadata::compile(&outbound, &node("order")), PeerMetadata::compile(&inbound, &node("payment")))
    }

    /// A request on a connection of the callee's, whose TLS session has this number.
    fn exchange(caller: &Rc<Caller>, number: Option<u128>, headers: Headers) -> Exchange {
        let address = "127.0.0.1:80".parse().unwrap();
        let tls = Some(Arc::new(TlsInfo { number, ..TlsInfo::default() }));
        Exchange {
            head: RequestHead { headers, ..RequestHead::empty(Protocol::Http11) },
            body: Body::Empty,
            matched: None,
            flow: Rc::new(Flow::new(StreamInfo::new(None))),
            connection: Arc::new(ConnectionInfo { tls, ..ConnectionInfo::between(address, address) }),
            random: 0,
            scratch: Scratch { caller: Some(caller.clone()), ..Scratch::default() },
            informational: None,
        }
    }

    #[test]
    fn what_one_proxy_writes_the_other_reads_and_removes() {
        let (outbound, inbound) = both();
        let mut headers = Headers::new();
        outbound.for_requests().unwrap().write(&mut headers);
        assert_eq!(headers.len(), 2);
        let mut exchange = exchange(&Rc::default(), None, headers);
        inbound.request_head(&mut exchange);
        assert!(exchange.scratch.caller_told && exchange.head.headers.is_empty());
        let workload = exchange.scratch.downstream_peer.as_deref().unwrap();
        assert_eq!((workload.name.as_str(), workload.app.as_str()), ("order", "order-service"));
        assert_eq!(*workload, local_workload(&node("order")));
        let (mut answer, mut caller) = (Headers::new(), Scratch::default());
        inbound.response_head(&mut answer, &mut exchange.scratch);
        assert_eq!(answer.len(), 2);
        outbound.response_head(&mut answer, &mut caller);
        assert!(answer.is_empty());
        assert_eq!(*caller.upstream_peer.unwrap(), local_workload(&node("payment")));
    }

    #[test]
    fn on_a_connection_of_their_own_each_of_two_says_who_it_is_once() {
        // The same session at both ends, and one that somebody stands in the middle of.
        for (theirs, fields) in [(Some(7), [2, 0, 0]), (Some(8), [2, 2, 2])] {
            let (outbound, inbound) = both();
            let own = outbound.for_requests().unwrap();
            let tls = TlsInfo { number: Some(7), ..TlsInfo::default() };
            let (callee, caller) = (Rc::new(Callee::new(Some(&tls)).unwrap()), Rc::new(Caller::default()));
            for fields in fields {
                // As the router does it.
                let mut request = Headers::new();
                match (callee.workload(), callee.ask()) {
                    (Some(_), _) => {}
                    (None, Some(number)) => own.ask(number, &mut request),
                    (None, None) => own.write(&mut request),
                }
                assert_eq!(request.len(), fields, "{theirs:?}");
                let mut exchange = exchange(&caller, theirs, request);
                inbound.request_head(&mut exchange);
                let known = exchange.scratch.downstream_peer.clone().unwrap();
                assert_eq!(*known, local_workload(&node("order")), "the caller is known with every request");
                let mut answer = Headers::new();
                inbound.response_head(&mut answer, &mut exchange.scratch);
                callee.answered(&mut answer);
                assert_eq!(answer.len(), fields, "{theirs:?}");
                let upstream_peer = callee.workload().cloned();
                let mut scratch =
                    Scratch { callee: Some(callee.clone()), upstream_peer, ..Scratch::default() };
                outbound.response_head(&mut answer, &mut scratch);
                assert!(answer.is_empty());
                assert_eq!(*scratch.upstream_peer.unwrap(), local_workload(&node("payment")));
            }
        }
    }

    #[test]
    fn what_stands_behind_a_callee_that_is_known_does_not_speak_for_it() {
        let (outbound, inbound) = both();
        let tls = TlsInfo { number: Some(7), ..TlsInfo::default() };
        let callee = Rc::new(Callee::new(Some(&tls)).unwrap());
        callee.ask();
        callee.answered(
            &mut [(peer::REMEMBERED, HeaderValue::from_str(&peer::text(7)).unwrap())].into_iter().collect(),
        );
        let known = Arc::new(local_workload(&node("payment")));
        callee.learn(&known);
        let mut answer = Headers::new();
        outbound.own.write(&mut answer);
        let mut scratch =
            Scratch { callee: Some(callee), upstream_peer: Some(known.clone()), ..Scratch::default() };
        outbound.response_head(&mut answer, &mut scratch);
        assert!(answer.is_empty() && Arc::ptr_eq(&scratch.upstream_peer.unwrap(), &known));
        // Nor does HTTP/2 remember: its own tables do.
        let mut request = Headers::new();
        outbound.own.ask(7, &mut request);
        let caller = Rc::new(Caller::default());
        let mut exchange = exchange(&caller, Some(7), request);
        exchange.head.protocol = Protocol::Http2;
        inbound.request_head(&mut exchange);
        assert!(exchange.scratch.downstream_peer.is_some() && caller.workload().is_none());
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
