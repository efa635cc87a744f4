//! The stream to the control plane, kept open.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use xds_protos::ResourceType;
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use xds_protos::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use xds_protos::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;

use super::backoff::Backoff;
use super::credentials::{Credentials, CredentialsError};
use super::delta::Delta;
use super::protocol::Protocol;
use super::sotw::Sotw;
use super::{ChannelError, Endpoint, ResourceSink, Stats, Subscriptions, Variant, causes};

/// Large meshes send large responses; gRPC's usual limit of 4 MiB would end the stream for ever.
const MAX_RESPONSE: usize = 512 * 1024 * 1024;

/// Everything about a control plane that does not change.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Who we are to it.
    pub credentials: Credentials,
    /// The node of the first request.
    pub node: Node,
    /// Delta or state of the world.
    pub variant: Variant,
    /// Everything, or secrets alone.
    pub service: Service,
}

/// How the workload is, where the control plane is told; none while nobody knows.
pub type Report = Option<Result<(), String>>;

/// The connection of a stream that has brought something, for what else is to go over it: how the caller proves who it is, too.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The connection.
    pub channel: Channel,
    /// What the stream's call said.
    pub metadata: MetadataMap,
}

/// What a server serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// All types, aggregated.
    Aggregated,
    /// Secrets (SDS).
    Secrets,
}

/// The client: one per proxy, on the control thread.
#[derive(Debug)]
pub struct Client<S> {
    config: ClientConfig,
    wanted: Subscriptions,
    stats: Arc<Stats>,
    sink: S,
    /// What the sink has from an earlier life: kind, name, version.
    held: Vec<(ResourceType, String, String)>,
    /// How the workload is.
    report: Option<watch::Receiver<Report>>,
    /// Who else speaks over the stream's connection.
    sharing: Option<watch::Sender<Option<Shared>>>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("{:?}: {}", .0.code(), .0.message())]
    Status(#[from] Box<Status>),
    #[error("the control plane ended the stream")]
    Ended,
}

impl<S: ResourceSink> Client<S> {
    /// A client that has not connected yet. The sink sets what it wants in `wanted`.
    pub fn new(config: ClientConfig, wanted: Subscriptions, sink: S) -> Self {
        Self { config, wanted, stats: Arc::default(), sink, held: Vec::new(), report: None, sharing: None }
    }

    /// The sink has these already (kind, name, version): the control plane is told, sends what differs, and says what is no
    /// more.
    pub fn holding(mut self, held: Vec<(ResourceType, String, String)>) -> Self {
        self.held = held;
        self
    }

    /// The control plane is told how the workload is: on each stream, and when it changes.
    pub fn reporting(mut self, report: watch::Receiver<Report>) -> Self {
        self.report = Some(report);
        self
    }

    /// Others are told of each stream's connection, once it has brought something, and of its end.
    pub fn sharing(mut self, with: watch::Sender<Option<Shared>>) -> Self {
        self.sharing = Some(with);
        self
    }

    /// The numbers, for the admin interface.
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }

    /// Keeps a stream open for ever; drop the future to stop.
    pub async fn run(mut self) -> Infallible {
        match self.config.variant {
            Variant::Delta => {
                let mut protocol = Delta::new(self.config.node.clone());
                self.keep_open(&mut protocol).await
            }
            Variant::StateOfTheWorld => {
                let mut protocol = Sotw::new(self.config.node.clone());
                self.keep_open(&mut protocol).await
            }
        }
    }

    async fn keep_open<P: Ads>(&mut self, protocol: &mut P) -> Infallible {
        for (kind, name, version) in std::mem::take(&mut self.held) {
            protocol.hold(kind, name, version);
        }
        let mut backoff = Backoff::default();
        loop {
            let error = match self.stream(protocol, &mut backoff).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let delivered = self.stats.connected();
            self.stats.set_connected(false);
            self.share(None);
            let wait = backoff.next();
            let (address, retry_in_ms) = (&self.config.endpoint.address, wait.as_millis() as u64);
            match error {
                // It has the proxy look for another one from time to time, and nothing is wrong.
                StreamError::Ended if delivered => tracing::info!(
                    %address, retry_in_ms,
                    "the control plane ended the stream; what is configured stays, and a new one is asked for"
                ),
                StreamError::Ended => tracing::warn!(
                    %address, retry_in_ms,
                    "the control plane ended the stream before it said anything; what is configured stays (is xDS what is served \
                     at this address?)"
                ),
                error => tracing::warn!(
                    %address, error = causes(&error), retry_in_ms,
                    "no stream to the control plane; what is configured stays"
                ),
            }
            tokio::time::sleep(wait).await;
        }
    }

    fn share(&self, shared: Option<Shared>) {
        if let Some(sharing) = &self.sharing {
            sharing.send_replace(shared);
        }
    }

    /// One stream, until it fails.
    async fn stream<P: Ads>(
        &mut self,
        protocol: &mut P,
        backoff: &mut Backoff,
    ) -> Result<Infallible, StreamError> {
        let metadata = self.config.credentials.metadata()?;
        let channel = self.config.endpoint.connect().await?;
        let mut to_share = Some(Shared { channel: channel.clone(), metadata: metadata.clone() });

        // Requests are queued before the call: many servers send no headers before their first response.
        let (requests, queue) = mpsc::unbounded_channel();
        let send = |batch: Vec<P::Request>| {
            batch.into_iter().try_for_each(|r| requests.send(r)).map_err(|_| StreamError::Ended)
        };
        send(protocol.open(&self.wanted))?;
        if let Some(report) = &mut self.report {
            report.mark_changed();
        }
        let mut request = Request::new(UnboundedReceiverStream::new(queue));
        *request.metadata_mut() = metadata;
        let mut responses =
            P::call(self.config.service, channel, request).await.map_err(Box::new)?.into_inner();
        self.stats.stream_opened();
        loop {
            tokio::select! {
                biased;
                () = self.wanted.changed() => send(protocol.resubscribe(&self.wanted))?,
                report = next(&mut self.report) => send(report.iter().map(P::report).collect())?,
                message = responses.message() => {
                    let response = message.map_err(Box::new)?.ok_or(StreamError::Ended)?;
                    backoff.reset();
                    self.stats.set_connected(true);
                    if let Some(shared) = to_share.take() {
                        self.share(Some(shared));
                    }
                    send(protocol.response(response, &self.wanted, &mut self.sink, &self.stats))?;
                }
            }
        }
    }
}

/// The next change of what is to be reported.
async fn next(report: &mut Option<watch::Receiver<Report>>) -> Report {
    if let Some(changes) = report
        && changes.changed().await.is_ok()
    {
        return changes.borrow_and_update().clone();
    }
    std::future::pending().await
}

fn aggregated(channel: Channel) -> AggregatedDiscoveryServiceClient<Channel> {
    AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE)
}

fn secrets(channel: Channel) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE)
}

/// The call of a variant.
trait Ads: Protocol {
    async fn call(
        service: Service,
        channel: Channel,
        requests: Request<UnboundedReceiverStream<Self::Request>>,
    ) -> Result<Response<Streaming<Self::Response>>, Status>;
}

impl Ads for Delta {
    async fn call(
        service: Service,
        channel: Channel,
        requests: Request<UnboundedReceiverStream<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Streaming<DeltaDiscoveryResponse>>, Status> {
        match service {
            Service::Aggregated => aggregated(channel).delta_aggregated_resources(requests).await,
            Service::Secrets => secrets(channel).delta_secrets(requests).await,
        }
    }
}

impl Ads for Sotw {
    async fn call(
        service: Service,
        channel: Channel,
        requests: Request<UnboundedReceiverStream<DiscoveryRequest>>,
    ) -> Result<Response<Streaming<DiscoveryResponse>>, Status> {
        match service {
            Service::Aggregated => aggregated(channel).stream_aggregated_resources(requests).await,
            Service::Secrets => secrets(channel).stream_secrets(requests).await,
        }
    }
}

#[cfg(test)]
mod tests;
