//! `envoy.filters.http.fault`: delays, aborts and slow answers by chance.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use parking_lot::Mutex;
use xds_protos::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use xds_protos::envoy::extensions::filters::common::fault::v3::fault_rate_limit::LimitType;
use xds_protos::envoy::extensions::filters::http::fault::v3 as proto;

use super::Verdict;
use crate::codec::RequestHead;
use crate::route::config::{header_match, optional_chance};
use crate::route::matching::{Chance, HeaderMatch};
use crate::router::{Exchange, LocalReply};
use crate::state::ConfigError;
use crate::state::error::collect;
use crate::telemetry::Flag;
use crate::telemetry::registry::{Counter, Gauge, Group};

const DELAY: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
const DELAY_PERCENT: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request-percentage");
const ABORT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
const ABORT_GRPC: HeaderName = HeaderName::from_static("x-envoy-fault-abort-grpc-request");
const ABORT_PERCENT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request-percentage");
const SERVICE_NODE: HeaderName = HeaderName::from_static("x-envoy-downstream-service-node");
const SERVICE_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-downstream-service-cluster");
const THROUGHPUT: HeaderName = HeaderName::from_static("x-envoy-fault-throughput-response");
const THROUGHPUT_PERCENT: HeaderName =
    HeaderName::from_static("x-envoy-fault-throughput-response-percentage");

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
    /// KiB a second of an answer's body; none where the request says it.
    rate: Option<(Option<u64>, Chance)>,
    count_by_caller: bool,
    upstream_cluster: Option<Box<str>>,
    headers: Vec<HeaderMatch>,
    downstream_nodes: Vec<String>,
    max_active: Option<u32>,
}

/// The numbers of the filter of a connection manager; its routes' settings count there.
pub struct FaultStats {
    group: Arc<Group>,
    delays: Counter,
    aborts: Counter,
    slowed: Counter,
    overflow: Counter,
    active_gauge: Gauge,
    active: AtomicU32,
    /// By the service cluster that the caller names: delays and aborts.
    by_caller: Mutex<HashMap<Box<str>, (Counter, Counter)>>,
}

/// Callers beyond so many are not counted for themselves: their names are theirs to choose.
const MOST_CALLERS: usize = 1000;

/// A request with a fault counts as active until this is dropped, at its end.
struct Active(Arc<FaultStats>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active_gauge.add(-1);
        self.0.active.fetch_sub(1, Relaxed);
    }
}

impl FaultStats {
    /// The numbers of the filter of one connection manager.
    pub fn new(stat_prefix: &str) -> Self {
        let group = Group::new(format!("http.{stat_prefix}"), Vec::new());
        Self {
            delays: group.counter("fault.delays_injected"),
            aborts: group.counter("fault.aborts_injected"),
            slowed: group.counter("fault.response_rl_injected"),
            overflow: group.counter("fault.faults_overflow"),
            active_gauge: group.gauge("fault.active_faults"),
            active: AtomicU32::new(0),
            by_caller: Mutex::default(),
            group,
        }
    }

    fn of_caller(&self, name: Option<&str>, count: impl FnOnce((Counter, Counter))) {
        let Some(name) = name else { return };
        let mut all = self.by_caller.lock();
        let known = all.get(name).copied();
        if let Some(counters) = known.or_else(|| {
            (all.len() < MOST_CALLERS).then(|| {
                let counter = |what: &str| self.group.counter(format!("fault.{name}.{what}"));
                let counters = (counter("delays_injected"), counter("aborts_injected"));
                all.insert(name.into(), counters);
                counters
            })
        }) {
            count(counters);
        }
    }
}

impl Fault {
    /// Compiles the filter's settings, or a route's.
    ///
    /// # Errors
    /// Everything that is wrong in them.
    pub fn compile(config: &proto::HttpFault) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let rate = config.response_rate_limit.as_ref().and_then(|r| {
            let chance = optional_chance(r.percentage.as_ref()).map_err(Vec::from);
            let chance = collect(chance, "response_rate_limit", &mut errors)?;
            match &r.limit_type {
                Some(LimitType::HeaderLimit(_)) => Some((None, chance)),
                Some(LimitType::FixedLimit(fixed)) if fixed.limit_kbps > 0 => {
                    Some((Some(fixed.limit_kbps), chance))
                }
                Some(LimitType::FixedLimit(_)) => {
                    let path = "response_rate_limit.fixed_limit.limit_kbps";
                    errors.push(ConfigError::new(path, "must be more than zero"));
                    None
                }
                None => {
                    errors.push(ConfigError::missing("response_rate_limit.limit_type"));
                    None
                }
            }
        });
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
            rate,
            count_by_caller: !config.disable_downstream_cluster_stats,
        })
    }

    /// Delays, aborts, or lets pass; slows the answer.
    pub(super) fn request_head(
        self: &Arc<Self>,
        exchange: &mut Exchange,
        stats: &Arc<FaultStats>,
    ) -> Verdict {
        if !self.applies(exchange) {
            return Verdict::Continue;
        }
        let mut active = None;
        if let Some(rate) = self.rate_of(&exchange.head)
            && self.take(&mut active, stats)
        {
            stats.slowed.inc();
            exchange.scratch.later().slow = Some(rate);
        }
        let delay = self.delay_of(&exchange.head).filter(|_| self.take(&mut active, stats));
        let Some(delay) = delay else {
            let abort = self.abort_of(&exchange.head).filter(|_| self.take(&mut active, stats));
            keep(exchange, active);
            return match abort {
                Some(abort) => {
                    exchange.flow.flag(Flag::FaultInjected);
                    stats.aborts.inc();
                    stats.of_caller(self.caller(&exchange.head), |(_, aborts)| aborts.inc());
                    Verdict::Reply(self.reply(abort))
                }
                None => Verdict::Continue,
            };
        };
        stats.delays.inc();
        stats.of_caller(self.caller(&exchange.head), |(delays, _)| delays.inc());
        exchange.flow.flag(Flag::DelayInjected);
        keep(exchange, active);
        let abort = self.abort_of(&exchange.head);
        let caller = abort.and_then(|_| self.caller(&exchange.head)).map(str::to_owned);
        let (fault, stats) = (self.clone(), stats.clone());
        Verdict::Wait(Box::pin(async move {
            tokio::time::sleep(delay).await;
            abort.map(|abort| {
                stats.aborts.inc();
                stats.of_caller(caller.as_deref(), |(_, aborts)| aborts.inc());
                (Flag::FaultInjected, fault.reply(abort))
            })
        }))
    }

    /// The service cluster that the caller names, where it is counted for itself.
    fn caller<'h>(&self, head: &'h RequestHead) -> Option<&'h str> {
        let name = head.headers.get_str(&SERVICE_CLUSTER).filter(|n| !n.is_empty());
        name.filter(|_| self.count_by_caller)
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

    /// Whether one more request may have a fault, or this one has one already.
    fn take(&self, active: &mut Option<Active>, stats: &Arc<FaultStats>) -> bool {
        if active.is_some() {
            return true;
        }
        let max = self.max_active.unwrap_or(u32::MAX);
        if stats.active.fetch_update(Relaxed, Relaxed, |n| (n < max).then_some(n + 1)).is_err() {
            stats.overflow.inc();
            return false;
        }
        stats.active_gauge.add(1);
        *active = Some(Active(stats.clone()));
        true
    }

    /// Bytes a second.
    fn rate_of(&self, head: &RequestHead) -> Option<u64> {
        let (fixed, chance) = self.rate?;
        let (kib, chance) = match fixed {
            Some(kib) => (kib, chance),
            None => (number(head, &THROUGHPUT)?, narrowed(chance, head, &THROUGHPUT_PERCENT)),
        };
        (kib > 0 && chance.hits(fastrand::u64(..))).then(|| kib.saturating_mul(1024))
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

fn keep(exchange: &mut Exchange, active: Option<Active>) {
    if let Some(active) = active {
        exchange.scratch.later().held.push(Box::new(active));
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
