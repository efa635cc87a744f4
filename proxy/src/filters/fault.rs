//! `envoy.filters.http.fault`: delays and aborts by chance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use xds_protos::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use xds_protos::envoy::extensions::filters::http::fault::v3 as proto;

use super::Verdict;
use crate::codec::RequestHead;
use crate::route::config::{header_match, optional_chance};
use crate::route::matching::{Chance, HeaderMatch};
use crate::router::{Exchange, LocalReply};
use crate::state::ConfigError;
use crate::state::error::collect;
use crate::telemetry::Flag;

const DELAY: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
const DELAY_PERCENT: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request-percentage");
const ABORT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
const ABORT_GRPC: HeaderName = HeaderName::from_static("x-envoy-fault-abort-grpc-request");
const ABORT_PERCENT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request-percentage");
const SERVICE_NODE: HeaderName = HeaderName::from_static("x-envoy-downstream-service-node");

#[derive(Clone, Copy, Debug)]
enum Delay {
    Fixed(Duration),
    ByHeader,
}

#[derive(Clone, Copy, Debug)]
enum Abort {
    Http(StatusCode),
    Grpc(u32),
    ByHeader,
}

/// Compiled settings.
#[derive(Debug)]
pub struct Fault {
    delay: Option<(Delay, Chance)>,
    abort: Option<(Abort, Chance)>,
    abort_body: Bytes,
    upstream_cluster: Option<Box<str>>,
    headers: Vec<HeaderMatch>,
    downstream_nodes: Vec<String>,
    max_active: Option<u32>,
    active: Arc<AtomicU32>,
}

/// A delay under way counts as active until this is dropped.
struct Active(Arc<AtomicU32>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Fault {
    /// Compiles the filter's settings, or a route's.
    ///
    /// # Errors
    /// Everything that is wrong in them.
    pub fn compile(config: &proto::HttpFault) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        if config.response_rate_limit.is_some() {
            errors.push(ConfigError::unsupported("response_rate_limit", "limiting a response's rate"));
        }
        let delay = config.delay.as_ref().and_then(|d| {
            let chance =
                collect(optional_chance(d.percentage.as_ref()).map_err(Vec::from), "delay", &mut errors)?;
            let kind = match &d.fault_delay_secifier {
                Some(FaultDelaySecifier::HeaderDelay(_)) => Delay::ByHeader,
                Some(FaultDelaySecifier::FixedDelay(d)) => match xds_protos::duration::to_std(d) {
                    Some(fixed) if !fixed.is_zero() => Delay::Fixed(fixed),
                    _ => {
                        errors.push(ConfigError::new("delay.fixed_delay", "must be more than zero"));
                        return None;
                    }
                },
                None => {
                    errors.push(ConfigError::missing("delay.fault_delay_secifier"));
                    return None;
                }
            };
            Some((kind, chance))
        });
        let abort = config.abort.as_ref().and_then(|a| {
            use proto::fault_abort::ErrorType;
            let chance =
                collect(optional_chance(a.percentage.as_ref()).map_err(Vec::from), "abort", &mut errors)?;
            let kind = match a.error_type {
                Some(ErrorType::HeaderAbort(_)) => Abort::ByHeader,
                Some(ErrorType::GrpcStatus(status)) => Abort::Grpc(status),
                Some(ErrorType::HttpStatus(status)) => match status_code(u64::from(status)) {
                    Some(status) => Abort::Http(status),
                    None => {
                        errors.push(ConfigError::new("abort.http_status", "must be from 200 to 599"));
                        return None;
                    }
                },
                None => {
                    errors.push(ConfigError::missing("abort.error_type"));
                    return None;
                }
            };
            Some((kind, chance))
        });
        let mut headers = Vec::with_capacity(config.headers.len());
        for (index, header) in config.headers.iter().enumerate() {
            headers.extend(collect(header_match(header), format!("headers[{index}]"), &mut errors));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let body = config.abort.as_ref().map(|a| a.response_body.clone()).unwrap_or_default();
        Ok(Self {
            delay,
            abort,
            abort_body: if body.is_empty() { Bytes::from_static(b"fault filter abort") } else { body.into() },
            upstream_cluster: (!config.upstream_cluster.is_empty())
                .then(|| config.upstream_cluster.as_str().into()),
            headers,
            downstream_nodes: config.downstream_nodes.clone(),
            max_active: config.max_active_faults,
            active: Arc::default(),
        })
    }

    /// Delays, aborts, or lets pass.
    pub(super) fn request_head(self: &Arc<Self>, exchange: &mut Exchange) -> Verdict {
        if !self.applies(exchange) {
            return Verdict::Continue;
        }
        let delay = self.delay_of(&exchange.head).and_then(|d| Some((d, self.take()?)));
        let abort = self.abort_of(&exchange.head);
        let Some((delay, active)) = delay else {
            return match abort {
                Some(abort) => Verdict::Reply(self.abort(abort, exchange)),
                None => Verdict::Continue,
            };
        };
        exchange.flow.flag(Flag::DelayInjected);
        let fault = self.clone();
        Verdict::Wait(Box::pin(async move {
            tokio::time::sleep(delay).await;
            drop(active);
            abort.map(|abort| (Flag::FaultInjected, fault.reply(abort)))
        }))
    }

    fn abort(&self, abort: Abort, exchange: &Exchange) -> LocalReply {
        exchange.flow.flag(Flag::FaultInjected);
        self.reply(abort)
    }

    fn reply(&self, abort: Abort) -> LocalReply {
        match abort {
            Abort::Grpc(status) => {
                LocalReply::new(StatusCode::OK, self.abort_body.clone(), "fault_filter_abort").grpc(status)
            }
            Abort::Http(status) => LocalReply::new(status, self.abort_body.clone(), "fault_filter_abort"),
            // Resolved before; there is no status left to give.
            Abort::ByHeader => LocalReply::new(StatusCode::OK, self.abort_body.clone(), "fault_filter_abort"),
        }
    }

    fn applies(&self, exchange: &Exchange) -> bool {
        let cluster = self.upstream_cluster.as_deref();
        let node = exchange.head.headers.get_str(&SERVICE_NODE);
        cluster.is_none_or(|c| exchange.cluster_name().as_deref() == Some(c))
            && self.headers.iter().all(|h| h.matches(&exchange.head))
            && (self.downstream_nodes.is_empty()
                || node.is_some_and(|n| self.downstream_nodes.iter().any(|d| d == n)))
    }

    fn take(&self) -> Option<Active> {
        let max = self.max_active.unwrap_or(u32::MAX);
        let taken = self.active.fetch_update(Relaxed, Relaxed, |n| (n < max).then_some(n + 1));
        taken.is_ok().then(|| Active(self.active.clone()))
    }

    fn delay_of(&self, head: &RequestHead) -> Option<Duration> {
        let (delay, chance) = self.delay?;
        match delay {
            Delay::Fixed(fixed) => chance.hits(fastrand::u64(..)).then_some(fixed),
            Delay::ByHeader => {
                let millis = number(head, &DELAY)?;
                narrowed(chance, head, &DELAY_PERCENT)
                    .hits(fastrand::u64(..))
                    .then(|| Duration::from_millis(millis))
            }
        }
    }

    fn abort_of(&self, head: &RequestHead) -> Option<Abort> {
        let (abort, chance) = self.abort?;
        let (abort, chance) = match abort {
            Abort::ByHeader => {
                let http = number(head, &ABORT).and_then(status_code).map(Abort::Http);
                let grpc = || number(head, &ABORT_GRPC).map(|s| Abort::Grpc(s as u32));
                (http.or_else(grpc)?, narrowed(chance, head, &ABORT_PERCENT))
            }
            fixed => (fixed, chance),
        };
        chance.hits(fastrand::u64(..)).then_some(abort)
    }
}

fn status_code(code: u64) -> Option<StatusCode> {
    u16::try_from(code).ok().filter(|c| (200..600).contains(c)).and_then(|c| StatusCode::from_u16(c).ok())
}

fn number(head: &RequestHead, name: &HeaderName) -> Option<u64> {
    head.headers.get_str(name)?.parse().ok()
}

/// A request may lower the configured percentage, never raise it.
fn narrowed(chance: Chance, head: &RequestHead, name: &HeaderName) -> Chance {
    match number(head, name) {
        Some(n) => Chance { numerator: (n.min(u64::from(chance.numerator))) as u32, ..chance },
        None => chance,
    }
}
