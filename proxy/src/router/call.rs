//! A request of the proxy's own to a cluster: a key set to fetch, an authorization to ask for. One try, with the cluster's
//! hosts, connections, limits and counters, as for any other request.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method};

use super::attempt::{Attempt, Failure, Upstreams};
use super::charge;
use super::flow::{Flow, RequestBody};
use super::upstream::ClusterUpstreams;
use crate::cluster::Cluster;
use crate::codec::{Body, Frame, Headers, Protocol, Reply, Request, RequestHead, ResetReason, digits};
use crate::io::ConnectionInfo;
use crate::state::Slot;
use crate::telemetry::StreamInfo;

const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// The head of a request of our own, marked as internal and with our address, as Envoy marks its own.
pub fn head(method: Method, authority: Bytes, path: Bytes) -> RequestHead {
    let mut headers = Headers::with_capacity(6);
    headers.append(INTERNAL, HeaderValue::from_static("true"));
    if let Ok(own) = HeaderValue::try_from(crate::io::local::own_address().to_string()) {
        headers.append(FORWARDED_FOR, own);
    }
    let scheme = Bytes::from_static(b"http");
    RequestHead { method, scheme, authority, path, protocol: Protocol::Http11, upgrade: None, headers }
}

/// A connection that stands for the proxy itself, where no downstream's request is behind a call.
pub fn nobody() -> Arc<ConnectionInfo> {
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Arc::new(ConnectionInfo::between(nowhere, nowhere))
}

/// Who was asked, as far as anybody was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// The host.
    pub host: Option<SocketAddr>,
    /// Its version.
    pub protocol: Option<Protocol>,
}

/// Sends a request and gives the answer's head; `timeout` is for everything until then, zero for no limit.
///
/// # Errors
/// There is no answer.
pub async fn call(
    cluster: &Arc<Slot<Cluster>>,
    head: RequestHead,
    body: Body,
    timeout: Duration,
    connection: Arc<ConnectionInfo>,
) -> Result<Reply, Failure> {
    call_noting(cluster, head, body, timeout, connection, &mut Asked::default()).await
}

/// The same; notes who was asked.
///
/// # Errors
/// There is no answer.
pub async fn call_noting(
    cluster: &Arc<Slot<Cluster>>,
    mut head: RequestHead,
    body: Body,
    timeout: Duration,
    connection: Arc<ConnectionInfo>,
    asked: &mut Asked,
) -> Result<Reply, Failure> {
    if !timeout.is_zero() {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        head.headers.set(EXPECTED_TIMEOUT, digits::value(millis));
    }
    let mut info = StreamInfo::new(Some(head.protocol));
    info.method = Some(head.method.clone());
    let flow = Rc::new(Flow::new(info));
    flow.scheme_of_upstream.set(true);
    let body = RequestBody::wrap(body, &flow);
    let upstreams = ClusterUpstreams::own(cluster.clone(), connection, flow.clone());
    let mut request = Request { head, body };
    let attempt =
        Attempt { request: &mut request, tried: &[], omit: None, repicks: 0, timeout: Duration::ZERO };
    let trying = upstreams.attempt(attempt);
    let result = if timeout.is_zero() {
        trying.await.result
    } else {
        match tokio::time::timeout(timeout, trying).await {
            Ok(outcome) => outcome.result,
            Err(_) => {
                if let Some(cluster) = cluster.get() {
                    cluster.stats().upstream_rq_timeout.inc();
                }
                Err(Failure::PerTryTimeout)
            }
        }
    };
    *asked = flow.info(|i| Asked { host: i.upstream_host, protocol: i.upstream_protocol });
    let status = match &result {
        Ok(reply) => reply.head.status,
        Err(failure) => failure.reply(false, http::StatusCode::SERVICE_UNAVAILABLE, false).status,
    };
    charge::copy_answered(cluster, status);
    result
}

/// Reads an answer's whole body, of at most `most` bytes, and its trailers.
///
/// # Errors
/// It broke off, or is longer.
pub async fn read(body: &mut Body, most: usize) -> Result<(Bytes, Option<Headers>), ResetReason> {
    let (mut whole, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = body.frame().await {
        match frame.map_err(|e| e.reason)? {
            Frame::Data(data) if whole.len() + data.len() > most => return Err(ResetReason::Overflow),
            Frame::Data(data) => whole.extend_from_slice(&data),
            Frame::Trailers(found) => trailers = Some(found),
        }
    }
    Ok((whole.freeze(), trailers))
}
