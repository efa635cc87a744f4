//! The aggregated discovery service, on the plaintext port (nobody is known, no secrets) and on the secure one.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::HeaderValue;
use http::header::CONTENT_TYPE;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::{Request, Status};
use weft_events::{Event, Kind, Outcome, Severity, emit};
use xds_protos::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::cache::RenderCache;
use super::connection::{self, Caller, Wire};
use super::dispatch::Dispatch;
use super::frames::Responses;
use super::proxies::Proxies;
use super::pushes::Numbers;
use super::registration::Registrar;
use super::requests::Requests;
use super::spread::Crowd;
use super::transport::Leave;
use crate::ca::{Authenticators, PeerInfo};
use crate::queue::Queue;

/// The service. One for each port.
#[derive(Clone)]
pub struct AdsService {
    pub(super) queue: Queue,
    pub(super) cache: Arc<RenderCache>,
    pub(super) proxies: Proxies,
    pub(super) dispatch: Dispatch,
    /// None where workloads do not enter themselves.
    pub(super) registrar: Option<Registrar>,
    pub(super) numbers: Arc<Numbers>,
    /// Who may be sent to another control plane.
    pub(super) crowd: Crowd,
    /// None on the plaintext port.
    authenticators: Option<Arc<Authenticators>>,
}

impl AdsService {
    /// Serves what `queue` brings. With `authenticators` every stream must prove who it is.
    pub fn new(
        queue: Queue,
        cache: Arc<RenderCache>,
        proxies: Proxies,
        dispatch: Dispatch,
        authenticators: Option<Arc<Authenticators>>,
    ) -> Self {
        let (numbers, crowd) = (Arc::new(Numbers::new()), Crowd::default());
        Self { queue, cache, proxies, dispatch, registrar: None, numbers, crowd, authenticators }
    }

    /// The same, with its streams among those that may be sent away.
    #[must_use]
    pub fn with_crowd(self, crowd: Crowd) -> Self {
        Self { crowd, ..self }
    }

    /// The same where proxies may enter their workloads.
    #[must_use]
    pub fn with_registrar(self, registrar: Option<Registrar>) -> Self {
        Self { registrar, ..self }
    }
}

/// Who opens a stream, by the credentials that a port asks for; on the plaintext port there are none.
pub(super) async fn caller<T>(
    authenticators: Option<&Authenticators>,
    request: &Request<T>,
) -> Result<Caller, Status> {
    let identity = match authenticators {
        Some(authenticators) => Some(authenticators.of(request).await.inspect_err(|status| {
            metrics::counter!("pilot_xds_auth_failures").increment(1);
            emit(Kind::Denied, || {
                let words = format!("a stream of a proxy was denied: {}", status.message());
                Event::new(Kind::Denied, Outcome::Denied, Severity::Medium, "authentication", words)
                    .with_some("source_address", address(request))
                    .with("details", "xds_unauthenticated")
            });
        })?),
        None => None,
    };
    let address = address(request).unwrap_or_default();
    let leave = request.extensions().get::<Leave>().cloned();
    Ok(Caller { address, identity: identity.map(|i| i.spiffe), leave })
}

/// Where a request comes from.
fn address<T>(request: &Request<T>) -> Option<String> {
    let known = request.extensions().get::<PeerInfo>().and_then(|peer| peer.address);
    known.or_else(|| request.remote_addr()).map(|address| address.to_string())
}

impl AdsService {
    /// Serves one stream: its requests are read by [`Requests`], its responses written by [`Responses`].
    async fn stream<W: Wire>(self, request: http::Request<Body>) -> http::Response<Body> {
        let (metadata, extensions, body) = Request::from_http(request).into_parts();
        let head = Request::from_parts(metadata, extensions, ());
        let caller = match caller(self.authenticators.as_deref(), &head).await {
            Ok(caller) => caller,
            Err(status) => return status.into_http(),
        };
        let requests = Requests::<W>::new(body);
        let responses = Responses::new(W::VARIANT, |outlet| connection::run(self, caller, requests, outlet));
        let mut response = http::Response::new(Body::new(responses));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}

impl NamedService for AdsService {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl Service<http::Request<Body>> for AdsService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default();
            Ok(match method {
                "DeltaAggregatedResources" => service.stream::<DeltaDiscoveryRequest>(request).await,
                "StreamAggregatedResources" => service.stream::<DiscoveryRequest>(request).await,
                other => {
                    let all = "DeltaAggregatedResources and StreamAggregatedResources";
                    Status::unimplemented(format!("there is no {other:?}; there are {all}")).into_http()
                }
            })
        })
    }
}
