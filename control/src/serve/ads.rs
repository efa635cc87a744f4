//! The aggregated discovery service, on the plaintext port (nobody is known, no secrets) and on the secure one.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use xds_protos::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use xds_protos::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

use super::cache::RenderCache;
use super::connection::{self, Caller};
use super::proxies::Proxies;
use crate::ca::{Authenticators, PeerInfo};
use crate::queue::Queue;

/// Responses that may wait for the network, per stream; the session holds back the rest.
const WINDOW: usize = 4;

/// The service. One for each port.
#[derive(Clone)]
pub struct AdsService {
    pub(super) queue: Queue,
    pub(super) cache: Arc<RenderCache>,
    pub(super) proxies: Proxies,
    /// None on the plaintext port.
    authenticators: Option<Arc<Authenticators>>,
}

impl AdsService {
    /// Serves what `queue` brings. With `authenticators` every stream must prove who it is.
    pub fn new(
        queue: Queue,
        cache: Arc<RenderCache>,
        proxies: Proxies,
        authenticators: Option<Arc<Authenticators>>,
    ) -> Self {
        Self { queue, cache, proxies, authenticators }
    }

    async fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let identity = match &self.authenticators {
            Some(authenticators) => Some(authenticators.of(request).await.inspect_err(|_| {
                metrics::counter!("pilot_xds_auth_failures").increment(1);
            })?),
            None => None,
        };
        let known = request.extensions().get::<PeerInfo>().and_then(|peer| peer.address);
        let address = known.or_else(|| request.remote_addr()).map_or_else(String::new, |a| a.to_string());
        Ok(Caller { address, identity: identity.map(|i| i.spiffe) })
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsService {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let caller = self.caller(&request).await?;
        let (sender, receiver) = mpsc::channel(WINDOW);
        tokio::spawn(connection::run(self.clone(), caller, request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = self.caller(&request).await?;
        let (sender, receiver) = mpsc::channel(WINDOW);
        tokio::spawn(connection::run(self.clone(), caller, request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
