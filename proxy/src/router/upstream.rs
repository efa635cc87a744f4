//! Tries over a cluster: choose a host, get a connection, send.

use std::rc::Rc;
use std::sync::Arc;

use super::attempt::{Attempt, Event, Failure, Outcome, Upstreams};
use super::flow::Flow;
use crate::cluster::Cluster;
use crate::codec::InformationalSink;
use crate::filters::Scratch;
use crate::filters::alpn::AlpnOverride;
use crate::filters::peer_metadata::PeerMetadata;
use crate::io::ConnectionInfo;
use crate::route::Forward;
use crate::state::Slot;

/// Makes tries at one cluster for one request.
pub struct ClusterUpstreams<'a> {
    slot: Arc<Slot<Cluster>>,
    _forward: &'a Forward,
}

impl<'a> ClusterUpstreams<'a> {
    /// For one request.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        slot: Arc<Slot<Cluster>>,
        forward: &'a Forward,
        _alpn: Option<Arc<AlpnOverride>>,
        _peer_metadata: Option<Arc<PeerMetadata>>,
        _connection: &'a ConnectionInfo,
        _flow: &'a Rc<Flow>,
        _informational: Rc<dyn InformationalSink>,
    ) -> Self {
        Self { slot, _forward: forward }
    }

    /// Leaves what is known of the callee.
    pub fn leave(self, _scratch: &mut Scratch) {}
}

impl Upstreams for ClusterUpstreams<'_> {
    type Permit = ();

    async fn attempt(&self, _attempt: Attempt<'_>) -> Outcome {
        let failure = if self.slot.get().is_some() { Failure::NoHost } else { Failure::NoCluster };
        Outcome { seen: None, result: Err(failure) }
    }

    fn retry_permit(&self) -> Option<()> {
        Some(())
    }

    fn count(&self, _event: Event) {}
}
