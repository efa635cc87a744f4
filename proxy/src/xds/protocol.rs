//! What the two variants of xDS have in common, as seen by the stream that drives them.

use xds_protos::ResourceType;
use xds_protos::envoy::config::core::v3::Node;

use super::{ResourceSink, Stats, Subscriptions};

/// One variant's state: what was asked on this stream, what is held. Events go in, requests come out, in sending order.
pub(super) trait Protocol {
    type Request: Send + 'static;
    type Response;

    /// Before the first stream: the sink has these already, each with its version.
    fn hold(&mut self, kind: ResourceType, name: String, version: String);

    /// A stream was opened: the requests that begin it.
    fn open(&mut self, wanted: &Subscriptions) -> Vec<Self::Request>;

    /// The wanted names may have changed: the requests that say so.
    fn resubscribe(&mut self, wanted: &Subscriptions) -> Vec<Self::Request>;

    /// How the workload is, as Istio's agents say it: an error is why it is not well.
    fn report(report: &Result<(), String>) -> Self::Request;

    /// A response came: applies it and gives its ACK or NACK, and then the requests for what the sink wants since.
    fn response(
        &mut self,
        response: Self::Response,
        wanted: &Subscriptions,
        sink: &mut dyn ResourceSink,
        stats: &Stats,
    ) -> Vec<Self::Request>;
}

/// The type of requests that say how the workload is. There are no resources of it.
pub(super) const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";

/// The node, which only the first request of a stream carries.
#[derive(Debug)]
pub(super) struct NodeOnce {
    node: Node,
    sent: bool,
}

impl NodeOnce {
    pub(super) fn new(node: Node) -> Self {
        Self { node, sent: true }
    }

    /// A new stream.
    pub(super) fn rearm(&mut self) {
        self.sent = false;
    }

    pub(super) fn take(&mut self) -> Option<Node> {
        (!std::mem::replace(&mut self.sent, true)).then(|| self.node.clone())
    }
}

/// The kind of a response, unless it is one that nobody asked for on this stream.
pub(super) fn asked_for(type_url: &str, asked: impl FnOnce(ResourceType) -> bool) -> Option<ResourceType> {
    let kind = ResourceType::from_type_url(type_url).filter(|kind| asked(*kind));
    if kind.is_none() {
        tracing::warn!(
            type_url,
            "the control plane sent resources of a type that was not asked for; they are not used"
        );
    }
    kind
}
