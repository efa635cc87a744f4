//! `envoy.filters.network.local_ratelimit` and `envoy.filters.network.ratelimit`: how many connections come. They decide when one
//! has come, before its handshake and its first byte, so what is refused costs next to nothing.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use prost::Message;
use xds_protos::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use xds_protos::envoy::extensions::filters::network::local_ratelimit::v3::LocalRateLimit;
use xds_protos::envoy::extensions::filters::network::ratelimit::v3::RateLimit;

use crate::filters::local_ratelimit::{Bucket, Rate};
use crate::filters::ratelimit::named;
use crate::filters::ratelimit::service::{self, Service};
use crate::io::ConnectionInfo;
use crate::io::metadata::Datum;
use crate::route::rate_limit::Descriptor;
use crate::state::error::collect;
use crate::state::{CompileContext, ConfigError};
use crate::telemetry::access_log::{Format, LogContext};
use crate::telemetry::registry::{Counter, Gauge, Group};
use crate::telemetry::{Details, Flag, StreamInfo};

type Errors = Vec<ConfigError>;

const NAMESPACE: &str = "envoy.filters.network.ratelimit";

/// Decides whether a connection that has come may stay.
pub struct Admission {
    limit: Limit,
    told: Option<Details>,
}

/// What the log says of a connection that may not stay.
pub struct Refusal {
    /// Its flag: Envoy's own filter has the one of retries, unless the limit is one of the mesh.
    pub flag: Option<Flag>,
    /// The limit of the mesh, if it is one.
    pub limit: Option<Details>,
    /// Why the connection is closed, in Envoy's words.
    pub close: &'static str,
}

enum Limit {
    /// By a bucket of our own.
    Local(LocalLimit),
    /// By what a service says, which counts for all proxies.
    Global(Box<GlobalLimit>),
}

impl Admission {
    /// By a bucket; `name` is what the filter is called in its chain.
    pub fn local(limit: LocalLimit, name: &str) -> Self {
        Self { limit: Limit::Local(limit), told: named("local_rate_limited", name) }
    }

    /// By a service.
    pub fn global(limit: GlobalLimit, name: &str) -> Self {
        Self { limit: Limit::Global(Box::new(limit)), told: named("request_rate_limited", name) }
    }

    /// Why the connection may not stay, if it may not.
    pub async fn refuses(&self, info: &ConnectionInfo) -> Option<Refusal> {
        let (close, flag) = match &self.limit {
            Limit::Local(limit) => (limit.refuses(), Some(Flag::UpstreamRetryLimitExceeded)),
            Limit::Global(limit) => (limit.refuses(info).await, None),
        };
        let flag = if self.told.is_some() { Some(Flag::RateLimited) } else { flag };
        close.map(|close| Refusal { flag, limit: self.told.clone(), close })
    }
}

/// Takes a token for each connection.
pub struct LocalLimit {
    bucket: Arc<Bucket>,
    enabled: bool,
    rate_limited: Counter,
    _group: Arc<Group>,
}

/// Buckets that filters share: those with the same key whose buckets are described in the same bytes.
type Shared = HashMap<(String, Vec<u8>), Weak<Bucket>>;
static SHARED: LazyLock<Mutex<Shared>> = LazyLock::new(Mutex::default);

impl LocalLimit {
    /// Compiles the filter.
    ///
    /// # Errors
    /// Everything that is wrong in its settings.
    pub fn compile(config: &LocalRateLimit) -> Result<Self, Errors> {
        let mut errors = Vec::new();
        let rate = match &config.token_bucket {
            None => Err(ConfigError::missing("token_bucket").into()),
            Some(bucket) => Rate::compile(bucket).map_err(|e| vec![e.at("token_bucket")]),
        };
        let rate = collect(rate, "", &mut errors);
        if config.stat_prefix.is_empty() {
            errors.push(ConfigError::missing("stat_prefix"));
        }
        let (Some(rate), true) = (rate, errors.is_empty()) else { return Err(errors) };
        let bucket = match config.share_key.as_str() {
            "" => Arc::new(Bucket::new(rate)),
            key => shared(
                key,
                config.token_bucket.as_ref().map(Message::encode_to_vec).unwrap_or_default(),
                rate,
            ),
        };
        let group = Group::new(format!("local_rate_limit.{}", config.stat_prefix), Vec::new());
        Ok(Self {
            bucket,
            enabled: config.runtime_enabled.as_ref().and_then(|f| f.default_value).unwrap_or(true),
            rate_limited: group.counter("rate_limited"),
            _group: group,
        })
    }

    fn refuses(&self) -> Option<&'static str> {
        if !self.enabled || self.bucket.take(1) {
            return None;
        }
        self.rate_limited.inc();
        Some("local_ratelimit_close_over_limit")
    }
}

fn shared(key: &str, described: Vec<u8>, rate: Rate) -> Arc<Bucket> {
    let mut all = SHARED.lock();
    all.retain(|_, bucket| bucket.strong_count() > 0);
    let place = all.entry((key.to_owned(), described)).or_default();
    place.upgrade().unwrap_or_else(|| {
        let bucket = Arc::new(Bucket::new(rate));
        *place = Arc::downgrade(&bucket);
        bucket
    })
}

/// Asks a rate limit service about each connection.
pub struct GlobalLimit {
    service: Service,
    domain: String,
    /// Keys, and what their values say of the connection.
    descriptors: Vec<Vec<(Arc<str>, Format)>>,
    failure_mode_deny: bool,
    stats: Stats,
}

struct Stats {
    _group: Arc<Group>,
    total: Counter,
    ok: Counter,
    over_limit: Counter,
    error: Counter,
    failure_mode_allowed: Counter,
    cx_closed: Counter,
    active: Gauge,
}

/// Counts a question while it is open.
struct Open<'a>(&'a Gauge);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

impl GlobalLimit {
    /// Compiles the filter.
    ///
    /// # Errors
    /// Everything that is wrong in its settings.
    pub fn compile(config: &RateLimit, context: &CompileContext) -> Result<Self, Errors> {
        let mut errors = Vec::new();
        let service = Service::compile(config.rate_limit_service.as_ref(), config.timeout.as_ref(), context);
        let service = collect(service, "", &mut errors);
        let mut descriptors = Vec::with_capacity(config.descriptors.len());
        for (i, descriptor) in config.descriptors.iter().enumerate() {
            let path = format!("descriptors[{i}]");
            descriptors.extend(collect(entries(descriptor), path, &mut errors));
        }
        for (field, empty) in [
            ("stat_prefix", config.stat_prefix.is_empty()),
            ("domain", config.domain.is_empty()),
            ("descriptors", config.descriptors.is_empty()),
        ] {
            if empty {
                errors.push(ConfigError::missing(field));
            }
        }
        let (Some(service), true) = (service, errors.is_empty()) else { return Err(errors) };
        let group = Group::new(format!("ratelimit.{}", config.stat_prefix), Vec::new());
        Ok(Self {
            service,
            domain: config.domain.clone(),
            descriptors,
            failure_mode_deny: config.failure_mode_deny,
            stats: Stats {
                total: group.counter("total"),
                ok: group.counter("ok"),
                over_limit: group.counter("over_limit"),
                error: group.counter("error"),
                failure_mode_allowed: group.counter("failure_mode_allowed"),
                cx_closed: group.counter("cx_closed"),
                active: group.gauge("active"),
                _group: group,
            },
        })
    }

    async fn refuses(&self, info: &ConnectionInfo) -> Option<&'static str> {
        let stats = &self.stats;
        stats.total.inc();
        stats.active.add(1);
        let open = Open(&stats.active);
        let request = service::request(&self.domain, &self.descriptors_of(info));
        let answer = self.service.ask(&request, &Arc::new(info.clone())).await;
        drop(open);
        let refused = match answer {
            Some(mut answer) => {
                if let (Some(notes), Some(said)) = (&info.notes, answer.dynamic_metadata.take()) {
                    let mut metadata = notes.metadata.lock();
                    for (key, value) in said.fields {
                        metadata.set(NAMESPACE, &key.into(), Datum::Other(Box::new(value)));
                    }
                }
                let over = service::is_over(&answer);
                if over {
                    stats.over_limit.inc()
                } else {
                    stats.ok.inc()
                }
                over.then_some("ratelimit_close_over_limit")
            }
            None => {
                stats.error.inc();
                if !self.failure_mode_deny {
                    stats.failure_mode_allowed.inc();
                }
                self.failure_mode_deny.then_some("ratelimit_error_failure_mode_connection_close")
            }
        };
        if refused.is_some() {
            stats.cx_closed.inc();
        }
        refused
    }

    fn descriptors_of(&self, info: &ConnectionInfo) -> Vec<Descriptor> {
        let stream = StreamInfo::new(None);
        let context = LogContext::new(&stream, info);
        let value = |format: &Format| {
            let mut text = Vec::new();
            format.write(&context, &mut text);
            String::from_utf8_lossy(&text).into_owned()
        };
        let entries = |entries: &Vec<(Arc<str>, Format)>| Descriptor {
            entries: entries.iter().map(|(key, format)| (key.clone(), value(format))).collect(),
            ..Descriptor::default()
        };
        self.descriptors.iter().map(entries).collect()
    }
}

fn entries(descriptor: &RateLimitDescriptor) -> Result<Vec<(Arc<str>, Format)>, Errors> {
    let mut errors = Vec::new();
    if descriptor.entries.is_empty() {
        errors.push(ConfigError::missing("entries"));
    }
    let mut compiled = Vec::with_capacity(descriptor.entries.len());
    for (i, entry) in descriptor.entries.iter().enumerate() {
        for (field, text) in [("key", &entry.key), ("value", &entry.value)] {
            if text.is_empty() {
                errors.push(ConfigError::missing(format!("entries[{i}].{field}")));
            }
        }
        match Format::text(&entry.value).and_then(Format::known_early) {
            Ok(format) => compiled.push((entry.key.as_str().into(), format)),
            Err(e) => errors.push(ConfigError::new(format!("entries[{i}].value"), e.to_string())),
        }
    }
    if errors.is_empty() { Ok(compiled) } else { Err(errors) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(share_key: &str, most: u32) -> LocalLimit {
        let config = serde_json::json!({"stat_prefix": "x", "share_key": share_key,
            "token_bucket": {"max_tokens": most, "fill_interval": "3600s"}});
        LocalLimit::compile(&xds_protos::json::from_value(config).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn filters_share_a_bucket_that_is_described_alike_under_one_key() {
        let (one, other) = (limit("a", 3), limit("a", 3));
        let (elsewhere, larger, alone) = (limit("b", 3), limit("a", 4), limit("", 3));
        let admitted = |limit: &LocalLimit| (0..10).filter(|_| limit.refuses().is_none()).count();
        assert!(one.refuses().is_none());
        assert_eq!((admitted(&other), admitted(&one)), (2, 0));
        assert_eq!((admitted(&elsewhere), admitted(&larger), admitted(&alone)), (3, 4, 3));
        assert_eq!(one.rate_limited.value(), 10);
        drop((one, other));
        assert_eq!(admitted(&limit("a", 3)), 3, "it goes with the last filter that has it");
    }
}
