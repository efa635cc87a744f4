//! One try at the upstream, as the retry loop sees it: what goes in, what comes out, and who makes it.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{HeaderValue, StatusCode};

use super::flow::Flow;
use super::reply::LocalReply;
use crate::cluster::balance::Omit;
use crate::codec::{BodyError, Reply, Request, ResetReason};
use crate::io::TlsInfo;
use crate::telemetry::Flag;
use crate::telemetry::record::UpstreamLine;

/// A try.
pub struct Attempt<'a> {
    /// What to send; it is taken when it is sent.
    pub request: &'a mut Request,
    /// Hosts that earlier tries used, to be avoided.
    pub tried: &'a [u64],
    /// Hosts to be avoided for what is said of them.
    pub omit: Option<&'a Omit>,
    /// How often to choose again when a host to be avoided came up.
    pub repicks: u32,
    /// The limit from having a connection and the whole request to the answer's head; zero for none.
    pub timeout: Duration,
}

/// The host that a try went to.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The host's number in its cluster.
    pub host: u64,
    /// Its address.
    pub address: Option<SocketAddr>,
    /// Our address on the connection.
    pub local: Option<SocketAddr>,
    /// What TLS established on it.
    pub tls: Option<Arc<TlsInfo>>,
    /// The connection.
    pub line: Option<Rc<UpstreamLine>>,
}

/// How a try ended.
#[derive(Debug)]
pub struct Outcome {
    /// The host, if one was chosen.
    pub seen: Option<Seen>,
    /// The answer, or why there is none.
    pub result: Result<Reply, Failure>,
}

/// Why a try has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The cluster is not there.
    NoCluster,
    /// The cluster has no host to use.
    NoHost,
    /// A circuit breaker is open.
    Overflow,
    /// No connection. The text says why, where the transport said it.
    Connect {
        /// It took too long.
        timeout: bool,
        /// The transport's words.
        reason: Arc<str>,
    },
    /// The stream ended before the answer's head.
    Reset {
        /// Why.
        reason: ResetReason,
        /// The request's head, or a part of it, was sent.
        head_sent: bool,
        /// The transport's words.
        text: Option<Arc<str>>,
    },
    /// The request's own body broke off.
    Downstream(BodyError),
    /// The try's time was over.
    PerTryTimeout,
    /// Nothing came for the try's idle timeout.
    PerTryIdle,
}

/// What the retry loop tells of, for the cluster's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A retry begins.
    Retry,
    /// A retry brought an answer that needs no other.
    RetrySuccess,
    /// No retries are left.
    RetryLimitExceeded,
    /// The circuit breaker for retries is open.
    RetryOverflow,
    /// A retry waits for a time of the policy's.
    BackOff,
    /// A retry waits for a time that the upstream asked for.
    RateLimitedBackOff,
    /// An answer of this status is followed by another try.
    Retried(StatusCode),
}

/// Makes tries: the cluster in production, a script in tests.
pub trait Upstreams {
    /// Held while a retry is under way.
    type Permit;
    /// Makes one try.
    fn attempt(&self, attempt: Attempt<'_>) -> impl Future<Output = Outcome>;
    /// Allows a retry, unless too many are under way.
    fn retry_permit(&self) -> Option<Self::Permit>;
    /// Counts.
    fn count(&self, event: Event);
    /// Called when the request's body is too large to be kept for another try.
    fn abandoned(&self) -> Box<dyn FnOnce()>;
}

impl Failure {
    /// The flag for logs.
    pub fn flag(&self) -> Flag {
        match self {
            Self::NoCluster => Flag::NoClusterFound,
            Self::NoHost => Flag::NoHealthyUpstream,
            Self::Overflow => Flag::UpstreamOverflow,
            Self::Connect { .. } => Flag::UpstreamConnectionFailure,
            Self::PerTryTimeout | Self::PerTryIdle => Flag::UpstreamRequestTimeout,
            Self::Reset { reason, .. } => reset_flag(*reason),
            Self::Downstream(error) if error.reason == ResetReason::ProtocolError => {
                Flag::DownstreamProtocolError
            }
            Self::Downstream(_) => Flag::DownstreamConnectionTermination,
        }
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoCluster => "no such cluster",
            Self::NoHost => "no healthy host",
            Self::Overflow => "circuit breaker open",
            Self::Connect { timeout: true, .. } => "connection timeout",
            Self::Connect { .. } => "connection failure",
            Self::PerTryTimeout => "timeout of the try",
            Self::PerTryIdle => "idle timeout of the try",
            Self::Reset { reason, .. } => reset_words(*reason).0,
            Self::Downstream(_) => "the request broke off",
        }
    }

    /// What the transport said.
    pub fn words(&self) -> Option<&str> {
        match self {
            Self::Connect { reason, .. } if !reason.is_empty() => Some(reason),
            Self::Reset { text, .. } => text.as_deref(),
            _ => None,
        }
    }

    /// The answer for the downstream, in Envoy's words. `retried`: it was not the first try.
    pub fn reply(&self, retried: bool, cluster_not_found: StatusCode, envoy_headers: bool) -> LocalReply {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        match self {
            Self::NoCluster => LocalReply::new(cluster_not_found, "", "cluster_not_found"),
            Self::NoHost => LocalReply::new(unavailable, "no healthy upstream", "no_healthy_upstream"),
            Self::Downstream(error) => LocalReply::new(StatusCode::BAD_REQUEST, "Bad Request", error.details),
            Self::PerTryTimeout => timeout_reply("upstream_per_try_timeout"),
            Self::PerTryIdle => timeout_reply("upstream_per_try_idle_timeout"),
            Self::Overflow => {
                let details = "upstream_reset_before_response_started{overflow}";
                let reply = LocalReply::new(unavailable, reset_text("overflow", retried), details);
                if envoy_headers {
                    reply.header(super::OVERLOADED, HeaderValue::from_static("true"))
                } else {
                    reply
                }
            }
            Self::Connect { timeout, .. } => {
                let (name, details) = if *timeout {
                    ("connection timeout", "upstream_reset_before_response_started{connection_timeout}")
                } else {
                    (
                        "remote connection failure",
                        "upstream_reset_before_response_started{remote_connection_failure}",
                    )
                };
                LocalReply::new(unavailable, reset_text(name, retried), details)
            }
            Self::Reset { reason, .. } => {
                let (name, early, _) = reset_words(*reason);
                let status = match reason {
                    ResetReason::ProtocolError => StatusCode::BAD_GATEWAY,
                    _ => unavailable,
                };
                LocalReply::new(status, reset_text(name, retried), early)
            }
        }
    }
}

/// The answer when an upstream took too long.
pub fn timeout_reply(details: &'static str) -> LocalReply {
    LocalReply::new(StatusCode::GATEWAY_TIMEOUT, "upstream request timeout", details)
}

/// Envoy's text. The transport's own words are for the log alone: they may say more than a client should know.
fn reset_text(name: &str, retried: bool) -> String {
    let again = if retried { "retried and the latest " } else { "" };
    format!("upstream connect error or disconnect/reset before headers. {again}reset reason: {name}")
}

/// The flag of a reset.
pub fn reset_flag(reason: ResetReason) -> Flag {
    match reason {
        ResetReason::Local | ResetReason::LocalRefused => Flag::LocalReset,
        ResetReason::Remote | ResetReason::RemoteRefused => Flag::UpstreamRemoteReset,
        ResetReason::ConnectionTermination => Flag::UpstreamConnectionTermination,
        ResetReason::ProtocolError => Flag::UpstreamProtocolError,
        ResetReason::Overflow => Flag::UpstreamOverflow,
    }
}

/// A reset in Envoy's words: its name, and the response code details before and after the response started.
pub fn reset_words(reason: ResetReason) -> (&'static str, &'static str, &'static str) {
    macro_rules! words {
        ($name:literal, $detail:literal) => {
            (
                $name,
                concat!("upstream_reset_before_response_started{", $detail, "}"),
                concat!("upstream_reset_after_response_started{", $detail, "}"),
            )
        };
    }
    match reason {
        ResetReason::Local => words!("local reset", "local_reset"),
        ResetReason::LocalRefused => words!("local refused stream reset", "local_refused_stream_reset"),
        ResetReason::Remote => words!("remote reset", "remote_reset"),
        ResetReason::RemoteRefused => words!("remote refused stream reset", "remote_refused_stream_reset"),
        ResetReason::ConnectionTermination => words!("connection termination", "connection_termination"),
        ResetReason::ProtocolError => words!("protocol error", "protocol_error"),
        ResetReason::Overflow => words!("overflow", "overflow"),
    }
}

/// Runs `work` for at most `timeout`, counted from when the request is complete and not before now; zero for no limit.
///
/// # Errors
/// The time was over.
pub async fn within<T>(
    flow: &Flow,
    timeout: Duration,
    // Pinned by the caller: taken by value it would be kept twice, and it is the largest part of a request.
    mut work: Pin<&mut impl Future<Output = T>>,
) -> Result<T, Failure> {
    if timeout.is_zero() {
        return Ok(work.await);
    }
    let ready = Instant::now();
    let mut timer: Option<Pin<Box<tokio::time::Sleep>>> = None;
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        if timer.is_none()
            && let Some(end) = flow.request_end()
        {
            let at = end.max(ready) + timeout;
            timer = Some(Box::pin(tokio::time::sleep_until(at.into())));
        }
        match &mut timer {
            Some(timer) => timer.as_mut().poll(cx).map(|()| Err(Failure::PerTryTimeout)),
            None => {
                flow.wake_on_end(cx.waker());
                Poll::Pending
            }
        }
    })
    .await
}
