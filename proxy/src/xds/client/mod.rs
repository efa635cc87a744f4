//! The stream to the control plane, kept open.

use std::convert::Infallible;
use std::error::Error as _;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use xds_protos::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

use super::backoff::Backoff;
use super::delta::Delta;
use super::protocol::Protocol;
use super::sotw::Sotw;
use super::{ChannelError, Endpoint, ResourceSink, Stats, Subscriptions, Variant};

/// Large meshes send large responses; gRPC's usual limit of 4 MiB would end the stream for ever.
const MAX_RESPONSE: usize = 512 * 1024 * 1024;

/// What every stream says about who we are, beside the node.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// A file with a bearer token, read anew for each stream because tokens expire and are replaced.
    pub token: Option<PathBuf>,
    /// Metadata sent as it is, such as `clusterid`.
    pub headers: Vec<(String, String)>,
}

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
}

/// The client: one per proxy, on the control thread.
#[derive(Debug)]
pub struct Client<S> {
    config: ClientConfig,
    wanted: Subscriptions,
    stats: Arc<Stats>,
    sink: S,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the token file {path}: {reason}")]
    Token { path: String, reason: String },
    #[error("metadata {0:?} is not valid")]
    Metadata(String),
    #[error("{:?}: {}", .0.code(), .0.message())]
    Status(#[from] Box<Status>),
    #[error("the control plane ended the stream")]
    Ended,
}

impl<S: ResourceSink> Client<S> {
    /// A client that has not connected yet. The sink sets what it wants in `wanted`.
    pub fn new(config: ClientConfig, wanted: Subscriptions, sink: S) -> Self {
        Self { config, wanted, stats: Arc::default(), sink }
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
        let mut backoff = Backoff::default();
        loop {
            let error = match self.stream(protocol, &mut backoff).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            self.stats.set_connected(false);
            let wait = backoff.next();
            tracing::warn!(
                address = %self.config.endpoint.address,
                error = causes(&error),
                retry_in_ms = wait.as_millis() as u64,
                "no stream to the control plane; what is configured stays"
            );
            tokio::time::sleep(wait).await;
        }
    }

    /// One stream, until it fails.
    async fn stream<P: Ads>(
        &mut self,
        protocol: &mut P,
        backoff: &mut Backoff,
    ) -> Result<Infallible, StreamError> {
        let metadata = self.metadata()?;
        let channel = self.config.endpoint.connect().await?;
        let client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);

        // Requests are queued before the call: many servers send no headers before their first response.
        let (requests, queue) = mpsc::unbounded_channel();
        let send = |batch: Vec<P::Request>| {
            batch.into_iter().try_for_each(|r| requests.send(r)).map_err(|_| StreamError::Ended)
        };
        send(protocol.open(&self.wanted))?;
        let mut request = Request::new(UnboundedReceiverStream::new(queue));
        *request.metadata_mut() = metadata;
        let mut responses = P::call(client, request).await.map_err(Box::new)?.into_inner();
        self.stats.stream_opened();
        loop {
            tokio::select! {
                biased;
                () = self.wanted.changed() => send(protocol.resubscribe(&self.wanted))?,
                message = responses.message() => {
                    let response = message.map_err(Box::new)?.ok_or(StreamError::Ended)?;
                    backoff.reset();
                    self.stats.set_connected(true);
                    send(protocol.response(response, &self.wanted, &mut self.sink, &self.stats))?;
                }
            }
        }
    }

    fn metadata(&self) -> Result<MetadataMap, StreamError> {
        let mut metadata = MetadataMap::new();
        if let Some(path) = &self.config.credentials.token {
            let bad = |reason: String| StreamError::Token { path: path.display().to_string(), reason };
            let token = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
            let value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
                .parse()
                .map_err(|_| bad("holds characters that no token has".into()))?;
            metadata.insert("authorization", value);
        }
        for (name, value) in &self.config.credentials.headers {
            let bad = || StreamError::Metadata(name.clone());
            let key: MetadataKey<Ascii> = name.to_ascii_lowercase().parse().map_err(|_| bad())?;
            metadata.insert(key, value.parse().map_err(|_| bad())?);
        }
        Ok(metadata)
    }
}

/// The call of a variant.
trait Ads: Protocol {
    async fn call(
        client: AggregatedDiscoveryServiceClient<Channel>,
        requests: Request<UnboundedReceiverStream<Self::Request>>,
    ) -> Result<Response<Streaming<Self::Response>>, Status>;
}

impl Ads for Delta {
    async fn call(
        mut client: AggregatedDiscoveryServiceClient<Channel>,
        requests: Request<UnboundedReceiverStream<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Streaming<DeltaDiscoveryResponse>>, Status> {
        client.delta_aggregated_resources(requests).await
    }
}

impl Ads for Sotw {
    async fn call(
        mut client: AggregatedDiscoveryServiceClient<Channel>,
        requests: Request<UnboundedReceiverStream<DiscoveryRequest>>,
    ) -> Result<Response<Streaming<DiscoveryResponse>>, Status> {
        client.stream_aggregated_resources(requests).await
    }
}

/// An error with its causes: tonic's say "transport error" and no more.
fn causes(error: &StreamError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
