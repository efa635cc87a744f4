//! Relays the proxy's ADS streams to the control plane, with TLS and the workload's credentials.
//!
//! Messages pass as the bytes that they are, so that types and fields which this build does not know pass, too. Each stream of
//! the proxy is one stream on a connection of its own to the control plane. When that ends, the proxy's ends with the same
//! status: it keeps what it has, and asks again by its own back-off, which opens the next one. How the workload is, where it enters
//! itself and is asked, is said between the proxy's own messages ([`Reporting`]).

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

use super::stats::{Counter, Stats};
use crate::identity::workload::Current;
use crate::xds::{Address, Credentials, Endpoint, Report, Variant, causes, health_report};

/// Large meshes send large responses; gRPC's usual limit of 4 MiB would end the stream for ever.
const MAX_MESSAGE: usize = 512 * 1024 * 1024;

/// The ways of asking.
const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const STREAM: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

/// The aggregated discovery service, relayed.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    endpoint: Endpoint,
    credentials: Credentials,
    current: Current,
    stats: Stats,
    report: Option<watch::Receiver<Report>>,
}

impl Relay {
    /// Relays to `endpoint`; proves who we are by the token of `credentials` and, once there is one, by the certificate that
    /// the endpoint shows.
    pub(super) fn new(endpoint: Endpoint, credentials: Credentials, current: Current, stats: Stats) -> Self {
        Self { endpoint, credentials, current, stats, report: None }
    }

    /// The same, telling the control plane how the workload is.
    pub(super) fn reporting(self, report: Option<watch::Receiver<Report>>) -> Self {
        Self { report, ..self }
    }

    async fn open(
        self,
        path: &'static str,
        requests: Streaming<Bytes>,
    ) -> Result<Response<Relayed<Streaming<Bytes>>>, Status> {
        self.stats.add(Counter::RelayStreams);
        match self.connect(path, requests).await {
            Ok(responses) => {
                tracing::info!(address = %self.endpoint.address, "the proxy's ADS stream is relayed");
                self.stats.set_relay_error(None);
                self.stats.add(Counter::RelayActive);
                Ok(Response::new(Relayed { responses, address: self.endpoint.address, stats: self.stats }))
            }
            Err(status) => {
                failed(&self.stats, &status);
                Err(status)
            }
        }
    }

    async fn connect(
        &self,
        path: &'static str,
        requests: Streaming<Bytes>,
    ) -> Result<Streaming<Bytes>, Status> {
        let certified = self.endpoint.tls.is_some() && self.current.borrow().is_some();
        let metadata = match certified {
            true => self.credentials.metadata_beside_certificate(),
            false => self.credentials.metadata(),
        };
        let metadata = metadata.map_err(|e| {
            Status::unavailable(format!(
                "the agent cannot prove who the workload is: {e}; mount the workload's token there, or make one with weft \
                 token create"
            ))
        })?;
        let channel = self.endpoint.connect().await.map_err(|e| {
            Status::unavailable(format!(
                "{}; is the control plane running there, and is the trust bundle its own?",
                causes(&e)
            ))
        })?;
        let stats = self.stats.clone();
        // A proxy that goes away half-closes the stream; dropping the response cancels the rest.
        let requests = requests.map_while(Result::ok).map(move |message| {
            stats.add(Counter::RelayRequests);
            message
        });
        let variant = if path == DELTA { Variant::Delta } else { Variant::StateOfTheWorld };
        let report = self.report.clone().map(WatchStream::new);
        let mut request = Request::new(Reporting { requests, report, variant, began: false });
        *request.metadata_mut() = metadata;
        let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
        client.ready().await.map_err(|e| Status::unavailable(causes(&e)))?;
        let answer = client.streaming(request, PathAndQuery::from_static(path), Raw).await?;
        Ok(answer.into_inner())
    }
}

fn failed(stats: &Stats, status: &Status) {
    tracing::warn!(code = ?status.code(), reason = status.message(),
        "the proxy's ADS stream is not relayed; it keeps what it has and asks again");
    stats.add(Counter::RelayFailures);
    stats.set_relay_error(Some(status.message().to_owned()));
}

/// The proxy's messages, and between them, from the first one on (which says who it is), how the workload is.
struct Reporting<S> {
    requests: S,
    report: Option<WatchStream<Report>>,
    variant: Variant,
    began: bool,
}

impl<S: Stream<Item = Bytes> + Unpin> Stream for Reporting<S> {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Poll::Ready(next) = Pin::new(&mut self.requests).poll_next(cx) {
            self.began = true;
            return Poll::Ready(next);
        }
        let variant = self.variant;
        while self.began
            && let Some(report) = &mut self.report
            && let Poll::Ready(said) = Pin::new(report).poll_next(cx)
        {
            match said {
                Some(Some(said)) => return Poll::Ready(Some(health_report(variant, &said))),
                // Nothing is known yet.
                Some(None) => {}
                None => self.report = None,
            }
        }
        Poll::Pending
    }
}

/// The control plane's side of a stream. Its end is counted, whoever ended it.
pub(super) struct Relayed<S> {
    responses: S,
    address: Address,
    stats: Stats,
}

impl<S: Stream<Item = Result<Bytes, Status>> + Unpin> Stream for Relayed<S> {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = std::task::ready!(Pin::new(&mut self.responses).poll_next(cx));
        Poll::Ready(match next {
            Some(Ok(message)) => {
                self.stats.add(Counter::RelayResponses);
                Some(Ok(message))
            }
            Some(Err(status)) => {
                // One with a cause was made on this side of the connection, which has broken.
                let status = match std::error::Error::source(&status) {
                    Some(cause) => Status::unavailable(format!(
                        "the connection to the control plane at {} was lost: {}",
                        self.address,
                        causes(cause)
                    )),
                    None => status,
                };
                failed(&self.stats, &status);
                Some(Err(status))
            }
            None => {
                tracing::info!("the control plane ended the ADS stream; the proxy asks again");
                None
            }
        })
    }
}

impl<S> Drop for Relayed<S> {
    fn drop(&mut self) {
        self.stats.subtract(Counter::RelayActive);
    }
}

impl NamedService for Relay {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<B> Service<http::Request<B>> for Relay
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = match request.uri().path() {
            STREAM => STREAM,
            DELTA => DELTA,
            other => {
                let status = Status::unimplemented(format!("the agent does not relay {other}"));
                return Box::pin(async move { Ok(status.into_http()) });
            }
        };
        let relay = self.clone();
        Box::pin(async move {
            let mut server = tonic::server::Grpc::new(Raw).max_decoding_message_size(MAX_MESSAGE);
            Ok(server.streaming(Open { relay, path }, request).await)
        })
    }
}

/// One call of one method.
struct Open {
    relay: Relay,
    path: &'static str,
}

impl Service<Request<Streaming<Bytes>>> for Open {
    type Response = Response<Relayed<Streaming<Bytes>>>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(self.relay.clone().open(self.path, request.into_inner()))
    }
}

/// Messages as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[cfg(test)]
mod tests;
