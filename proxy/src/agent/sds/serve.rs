//! The SDS service, a task for each stream.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use xds_protos::Any;
use xds_protos::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use xds_protos::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use xds_protos::prost::Message;
use xds_protos::type_url;

use super::secret::Source;
use super::watch::{Meaning, Watch};
use crate::agent::stats::{Counter, Stats};
use crate::identity::workload::Current;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Serves the workload's certificate and what is in files.
#[derive(Clone, Debug)]
pub(in crate::agent) struct SecretService {
    current: Current,
    stats: Stats,
}

type Responses<T> = ReceiverStream<Result<T, Status>>;

impl SecretService {
    pub(in crate::agent) fn new(current: Current, stats: Stats) -> Self {
        Self { current, stats }
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for SecretService {
    type StreamSecretsStream = Responses<DiscoveryResponse>;
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        self.stats.add(Counter::SdsStreams);
        let (responses, outgoing) = mpsc::channel(4);
        let stream = Stream {
            current: self.current.clone(),
            stats: self.stats.clone(),
            watch: Watch::default(),
            sources: BTreeMap::new(),
            complaints: BTreeMap::new(),
            version: 0,
            responses,
        };
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented(
            "the agent's SDS is state of the world, as Istio's: set api_type GRPC in the secret's sds_config (StreamSecrets)",
        ))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets are not polled here, because they rotate: use StreamSecrets"))
    }
}

/// One stream.
struct Stream {
    current: Current,
    stats: Stats,
    watch: Watch,
    sources: BTreeMap<String, Source>,
    /// Why a secret in files cannot be read now, so that it is logged once.
    complaints: BTreeMap<String, String>,
    version: u64,
    responses: mpsc::Sender<Result<DiscoveryResponse, Status>>,
}

/// The other side has gone, or was told why this one ends.
struct Over;

impl Stream {
    async fn run(mut self, mut requests: Streaming<DiscoveryRequest>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let closed = self.responses.clone();
        loop {
            let files = self.sources.values().any(Source::in_files);
            let result = tokio::select! {
                // A request that crosses a change is answered with what is new.
                biased;
                () = closed.closed() => return,
                message = requests.message() => match message {
                    Ok(Some(request)) => self.request(&request).await,
                    Ok(None) | Err(_) => return,
                },
                changed = self.current.changed() => match changed {
                    Ok(()) => self.push().await,
                    Err(_) => return,
                },
                _ = look.tick(), if files => self.push().await,
            };
            if result.is_err() {
                return;
            }
        }
    }

    async fn request(&mut self, request: &DiscoveryRequest) -> Result<(), Over> {
        if !matches!(request.type_url.as_str(), "" | type_url::SECRET) {
            let wrong = format!("this socket serves {} and not {}", type_url::SECRET, request.type_url);
            return self.end(Status::invalid_argument(wrong)).await;
        }
        match self.watch.request(request) {
            Meaning::Answer(names) => self.answer(names).await,
            Meaning::Nack(reason) => {
                self.stats.add(Counter::SdsRejections);
                tracing::warn!(secrets = ?request.resource_names, reason, "the proxy refused a secret (NACK)");
                Ok(())
            }
            Meaning::Ack | Meaning::Stale | Meaning::Unsubscribed => {
                let wanted: BTreeSet<&String> = self.watch.names().collect();
                self.sources.retain(|name, _| wanted.contains(name));
                Ok(())
            }
        }
    }

    /// Answers a subscription. Secrets that are not there yet follow when they are.
    async fn answer(&mut self, names: BTreeSet<String>) -> Result<(), Over> {
        let mut secrets = Vec::new();
        for name in names {
            let source: Source = match name.parse() {
                Ok(source) => source,
                Err(unknown) => return self.end(Status::invalid_argument(unknown)).await,
            };
            match self.read(&name, &source) {
                Ok(Some(secret)) => secrets.push((name.clone(), secret)),
                Ok(None) => tracing::info!(name, "a secret is asked for that is not there yet; it follows"),
                // The client would wait without a word; ended, it says why in its own log and asks again.
                Err(reason) => return self.end(Status::failed_precondition(reason)).await,
            }
            self.sources.insert(name, source);
        }
        self.send(secrets).await
    }

    /// Sends what changed.
    async fn push(&mut self) -> Result<(), Over> {
        let mut secrets = Vec::new();
        for name in self.watch.names() {
            let Some(source) = self.sources.get(name) else { continue };
            match self.read(name, source) {
                Ok(Some(secret)) if self.watch.is_news(name, &secret) => secrets.push((name.clone(), secret)),
                Ok(_) => drop(self.complaints.remove(name)),
                Err(reason) => {
                    if self.complaints.insert(name.clone(), reason.clone()).as_ref() != Some(&reason) {
                        tracing::warn!(
                            name,
                            reason,
                            "a secret cannot be read any more; the last good one stays"
                        );
                    }
                }
            }
        }
        self.send(secrets).await
    }

    fn read(&self, name: &str, source: &Source) -> Result<Option<Bytes>, String> {
        let current = self.current.borrow().clone();
        Ok(source.read(name, current.as_deref())?.map(|secret| secret.encode_to_vec().into()))
    }

    async fn send(&mut self, secrets: Vec<(String, Bytes)>) -> Result<(), Over> {
        if secrets.is_empty() {
            return Ok(());
        }
        self.version += 1;
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let version_info = format!("{now}/{}", self.version);
        let nonce = format!("{version_info}-{:016x}", fastrand::u64(..));
        let resources = secrets
            .iter()
            .map(|(_, secret)| Any { type_url: type_url::SECRET.to_owned(), value: secret.clone() });
        let response = DiscoveryResponse {
            version_info,
            nonce: nonce.clone(),
            type_url: type_url::SECRET.to_owned(),
            resources: resources.collect(),
            ..DiscoveryResponse::default()
        };
        tracing::debug!(names = ?secrets.iter().map(|(n, _)| n).collect::<Vec<_>>(), "sending secrets");
        self.responses.send(Ok(response)).await.map_err(|_| Over)?;
        self.stats.add(Counter::SdsResponses);
        self.watch.answered(nonce, secrets);
        Ok(())
    }

    async fn end(&self, status: Status) -> Result<(), Over> {
        tracing::warn!(reason = status.message(), "an SDS stream cannot be served");
        let _ = self.responses.send(Err(status)).await;
        Err(Over)
    }
}
