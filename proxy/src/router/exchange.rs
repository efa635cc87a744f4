//! A request between the filters and the router: what filters see and change, and what only their runner may hand on.

use std::rc::Rc;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use super::alpn::AlpnOverride;
use super::{Flow, RouterConfig};
use crate::cluster::Cluster;
use crate::codec::{Body, Headers, InformationalSink, RequestHead};
use crate::io::{ConnectionInfo, TlsInfo};
use crate::route::{Matched, Target};
use crate::state::Slot;
use crate::telemetry::StreamInfo;
use crate::telemetry::istio::{Service, Workload};
use crate::telemetry::peer::{self, Callee, Caller};

/// The field that describes a workload: a protobuf `Struct` in base64.
pub const PEER_METADATA: HeaderName = HeaderName::from_static("x-envoy-peer-metadata");
/// The field that names its proxy.
pub const PEER_METADATA_ID: HeaderName = HeaderName::from_static("x-envoy-peer-metadata-id");

/// How this proxy describes its workload to the next one.
#[derive(Clone, Debug)]
pub struct OwnMetadata {
    /// The description, as a protobuf `Struct`.
    pub description: Vec<u8>,
    /// The same as it is sent.
    pub metadata: HeaderValue,
    /// The proxy's id.
    pub id: HeaderValue,
    /// Not to upstreams outside of the mesh.
    pub skip_external: bool,
    /// The callee's description is read as well, so that both may be remembered.
    pub remembers: bool,
}

impl OwnMetadata {
    /// Adds both fields.
    pub fn write(&self, headers: &mut Headers) {
        self.write_as(self.metadata.clone(), headers);
    }

    /// The same with the question whether it will be remembered.
    pub fn ask(&self, number: u128, headers: &mut Headers) {
        let kind = Some(Kind::StringValue(peer::text(number)));
        let question = Struct { fields: [(peer::ASKS.to_owned(), Value { kind })].into() };
        // Fields of messages may follow one another in any order: both together are one struct.
        let text = STANDARD.encode([&self.description[..], &question.encode_to_vec()].concat());
        self.write_as(HeaderValue::try_from(text).unwrap_or_else(|_| self.metadata.clone()), headers);
    }

    /// Takes both fields away.
    pub fn remove(headers: &mut Headers) {
        headers.remove(&PEER_METADATA);
        headers.remove(&PEER_METADATA_ID);
    }

    fn write_as(&self, metadata: HeaderValue, headers: &mut Headers) {
        headers.set(PEER_METADATA, metadata);
        headers.set(PEER_METADATA_ID, self.id.clone());
    }
}

/// What a filter adds to a response's head.
pub type Tell = Box<dyn FnOnce(&mut Headers)>;

/// What a filter does with a request's record at its end.
pub type AtEnd = Box<dyn FnOnce(&StreamInfo)>;

/// What a filter makes of an answer's body.
pub type Encode = Box<dyn FnOnce(Body) -> Body>;

/// What filters remember of a request until its end.
#[derive(Default)]
pub struct Scratch {
    /// What filters do later, where one does.
    pub later: Option<Box<Later>>,
    /// The caller sent workload metadata.
    pub caller_told: bool,
    /// What is remembered of the caller on its connection.
    pub caller: Option<Rc<Caller>>,
    /// What the answer tells a caller that will be remembered.
    pub remembered: Option<HeaderValue>,
    /// What is remembered of the callee on the connection that brought the answer.
    pub callee: Option<Rc<Callee>>,
    /// The caller's workload.
    pub downstream_peer: Option<Arc<Workload>>,
    /// The callee's workload, from its metadata or from its endpoint's.
    pub upstream_peer: Option<Arc<Workload>>,
    /// The service called.
    pub service: Option<Arc<Service>>,
    /// Both identities of the connection to the callee.
    pub upstream_tls: Option<Arc<TlsInfo>>,
}

/// What filters do when an answer or the end comes; most requests have none of it, so it lies apart.
#[derive(Default)]
pub struct Later {
    /// The origin of a cross-origin request.
    pub cors_origin: Option<HeaderValue>,
    /// What filters that count will add to the response's head, in their order.
    pub tells: Vec<Tell>,
    /// What compressors know of the request, which is for them alone.
    pub compression: Option<Box<dyn std::any::Any>>,
    /// What becomes of the answer's body, in this order.
    pub encode: Vec<Encode>,
    /// Bytes a second at which the answer's body may go.
    pub slow: Option<u64>,
    /// Who is told the record when the request ended.
    pub at_end: Vec<AtEnd>,
    /// The messages of gRPC are counted.
    pub counts_messages: bool,
    /// The request's head as it came to the filter that keeps metrics, where labels are made of it.
    pub noted: Option<Box<RequestHead>>,
    /// What is let go at the request's end.
    pub held: Vec<Box<dyn std::any::Any>>,
}

impl Scratch {
    /// What filters do later; made when one has something.
    pub fn later(&mut self) -> &mut Later {
        self.later.get_or_insert_default()
    }
}

/// A request on its way through the filters. It goes in a box: each of the futures that it passes through would hold the room for it.
pub struct Exchange {
    /// The head; filters change it.
    pub head: RequestHead,
    /// The body.
    pub body: Body,
    /// The route; none where none matches.
    pub matched: Option<Matched>,
    /// The stream's record and clocks.
    pub flow: Rc<Flow>,
    /// The connection.
    pub connection: Arc<ConnectionInfo>,
    /// The number that decides fractions and weights for this request.
    pub random: u64,
    /// Filters' own.
    pub scratch: Scratch,
    /// Where 1xx heads go; nowhere if none.
    pub informational: Option<Rc<dyn InformationalSink>>,
}

/// Whoever is given up among the filters is logged as the filters left it.
impl Drop for Exchange {
    fn drop(&mut self) {
        // A request that went on has left its head; nothing is kept of it where nobody asks.
        if self.flow.keeps() {
            self.flow.keep(&mut self.head);
        }
    }
}

impl Exchange {
    /// The cluster that the request is for.
    pub fn cluster(&self) -> Option<Arc<Slot<Cluster>>> {
        let matched = self.matched.as_ref()?;
        super::cluster_slot(matched, matched.forward()?, &self.head)
    }

    /// The cluster that the route names, where it does so by itself.
    pub fn cluster_name(&self) -> Option<Arc<str>> {
        named_cluster(self.matched.as_ref()?).map(|slot| slot.name().clone())
    }
}

/// The cluster that a route names by itself, where it does so.
fn named_cluster(matched: &Matched) -> Option<&Arc<Slot<Cluster>>> {
    match &matched.forward()?.target {
        Target::Cluster(slot) => Some(slot),
        Target::Weighted { .. } => matched.weighted().and_then(|w| w.cluster.fixed()),
        Target::Header(..) => None,
    }
}

/// A request that every filter let pass. Only the filter runner makes one.
pub struct Admitted {
    exchange: Box<Exchange>,
    wishes: ForRouter,
}

/// What the router goes by beside the request itself.
#[derive(Clone)]
pub struct ForRouter {
    /// The router's own settings.
    pub config: Arc<RouterConfig>,
    /// Application protocols to offer.
    pub alpn: Option<Arc<AlpnOverride>>,
    /// Tells the upstream about our workload.
    pub own_metadata: Option<Arc<OwnMetadata>>,
}

impl Admitted {
    /// The request.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Only the filter runner makes one.
    pub(crate) fn new(exchange: Box<Exchange>, wishes: ForRouter) -> Self {
        Self { exchange, wishes }
    }

    /// The request, and what filters want of the router.
    pub fn into_parts(self) -> (Box<Exchange>, ForRouter) {
        (self.exchange, self.wishes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Protocol;

    #[test]
    fn the_head_of_a_request_that_is_given_up_is_kept_for_those_who_ask_alone() {
        let address = "127.0.0.1:80".parse().unwrap();
        for asked in [false, true] {
            let flow = Rc::new(Flow::new(StreamInfo::new(None)));
            if asked {
                flow.keep_whole();
            }
            drop(Exchange {
                head: RequestHead::empty(Protocol::Http11),
                body: Body::Empty,
                matched: None,
                flow: flow.clone(),
                connection: Arc::new(ConnectionInfo::between(address, address)),
                random: 0,
                scratch: Scratch::default(),
                informational: None,
            });
            assert_eq!(flow.kept_head.borrow().is_some(), asked);
        }
    }
}
