//! Collectors of OTLP and Zipkin: what is sent to one that takes HTTP, and what is said of the sender.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};
use parking_lot::Mutex;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::extensions::tracers::opentelemetry::resource_detectors::v3 as detectors;
use xds_protos::typed_struct;

use super::call;
use super::grpc::CallError;
use crate::cluster::Cluster;
use crate::codec::{Body, RequestHead};
use crate::filters::jwt_authn::config::http_cluster;
use crate::io::ConnectionInfo;
use crate::route::HeaderOps;
use crate::route::config::{duration, header_ops};
use crate::state::{CompileContext, ConfigError, Slot};
use crate::telemetry::StreamInfo;
use crate::telemetry::access_log::LogContext;
use crate::telemetry::registry::{Counter, Group};

/// How long a collector is waited for, where the configuration does not say.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// The most of an answer that is read, in bytes.
const LONGEST: usize = 64 * 1024;
const TRAILERS: HeaderName = HeaderName::from_static("te");

/// A collector that is sent requests of HTTP.
#[derive(Debug)]
pub struct HttpCollector {
    /// Its cluster.
    pub cluster: Arc<Slot<Cluster>>,
    /// What it is called there.
    pub authority: Bytes,
    /// The path.
    pub path: Bytes,
    /// For the whole call.
    pub timeout: Duration,
    /// Further fields.
    pub headers: Vec<HeaderOps>,
}

impl HttpCollector {
    /// Compiles a service.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile(service: &core::HttpService, context: &CompileContext) -> Result<Self, Vec<ConfigError>> {
        let uri = service.http_uri.as_ref().ok_or_else(|| ConfigError::missing("http_uri"))?;
        let cluster = http_cluster(uri)?;
        let parsed: Option<http::Uri> = uri.uri.parse().ok();
        let Some(parsed) = parsed else {
            return Err(ConfigError::new("http_uri.uri", format!("{:?} is no URI", uri.uri)).into());
        };
        let authority = parsed.authority().map_or(cluster, |a| a.as_str()).to_owned();
        let path = parsed.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let mut errors = Vec::new();
        let ops = header_ops(&service.request_headers_to_add, &[], "request", &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            cluster: context.clusters.slot(cluster),
            authority: authority.into(),
            path: path.into(),
            timeout: duration(uri.timeout.as_ref(), "http_uri.timeout")?.unwrap_or(TIMEOUT),
            headers: vec![ops],
        })
    }

    /// Sends a body of OTLP.
    ///
    /// # Errors
    /// There is no answer, or one of an error.
    pub async fn export(&self, body: Vec<u8>, connection: &Arc<ConnectionInfo>) -> Result<(), CallError> {
        match self.post("application/x-protobuf", body, connection).await {
            Some(status) if status.is_success() => Ok(()),
            Some(status) => Err(CallError::Http(status.as_u16())),
            None => Err(CallError::Unanswered),
        }
    }

    /// Sends a body; gives the answer's status.
    pub async fn post(
        &self,
        kind: &'static str,
        body: Vec<u8>,
        connection: &Arc<ConnectionInfo>,
    ) -> Option<http::StatusCode> {
        let mut head = call::head(Method::POST, self.authority.clone(), self.path.clone());
        self.fields(&mut head, kind, connection);
        let body = Body::Full(body.into());
        let work = async {
            let mut reply =
                call::call(&self.cluster, head, body, self.timeout, connection.clone()).await.ok()?;
            call::read(&mut reply.body, LONGEST).await.ok()?;
            Some(reply.head.status)
        };
        if self.timeout.is_zero() {
            return work.await;
        }
        tokio::time::timeout(self.timeout, work).await.ok().flatten()
    }

    fn fields(&self, head: &mut RequestHead, kind: &'static str, connection: &ConnectionInfo) {
        head.headers.remove(&TRAILERS);
        head.headers.append(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        let agent = concat!("OTel-OTLP-Exporter-Weft/", env!("CARGO_PKG_VERSION"));
        if kind == "application/x-protobuf" {
            head.headers.append(header::USER_AGENT, HeaderValue::from_static(agent));
        }
        let info = StreamInfo::new(Some(head.protocol));
        for ops in &self.headers {
            let additions = {
                let context = LogContext { request: Some(head), ..LogContext::new(&info, connection) };
                ops.additions(&head.headers, &context)
            };
            additions.make(&mut head.headers, crate::codec::headers::Of::Request);
        }
    }
}

/// What becomes of messages to a collector of OTLP: counted, and told when it changes, not with each message.
pub struct Fate {
    /// What the collector takes.
    what: &'static str,
    counts: FateCounts,
    last: Mutex<Option<CallError>>,
}

impl std::fmt::Debug for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fate({}, {:?})", self.what, self.last.lock())
    }
}

/// How many messages failed, by whether somebody answered.
#[derive(Clone, Copy)]
pub struct FateCounts {
    refused: Counter,
    unanswered: Counter,
}

impl FateCounts {
    /// As a group's `exports_refused` and `exports_unanswered`.
    pub fn of(group: &Arc<Group>) -> Self {
        Self { refused: group.counter("exports_refused"), unanswered: group.counter("exports_unanswered") }
    }
}

impl Fate {
    /// Of a collector that takes this.
    pub fn new(what: &'static str, counts: FateCounts) -> Self {
        Self { what, counts, last: Mutex::new(None) }
    }

    /// Notes what became of a message to the collector of this cluster.
    pub fn note<T>(&self, cluster: &str, answer: &Result<T, CallError>) {
        let error = answer.as_ref().err();
        match error {
            Some(error) if error.is_answer() => self.counts.refused.inc(),
            Some(_) => self.counts.unanswered.inc(),
            None => {}
        }
        let mut last = self.last.lock();
        if last.as_ref() == error {
            return;
        }
        let what = self.what;
        match error {
            Some(error) => {
                tracing::warn!(cluster, %error, "a collector does not take {what}; they are lost until it does")
            }
            None => tracing::info!(cluster, "the collector takes {what} again"),
        }
        *last = error.cloned();
    }
}

/// What is said of the sender: names and values, each name once. What is said later replaces what was said before.
#[derive(Clone, Debug, Default)]
pub struct Resource(pub Vec<(String, String)>);

impl Resource {
    /// Says something.
    pub fn say(&mut self, key: &str, value: &str) {
        match self.0.iter_mut().find(|(k, _)| k == key) {
            Some((_, before)) => value.clone_into(before),
            None => self.0.push((key.to_owned(), value.to_owned())),
        }
    }

    /// Says what detectors find.
    ///
    /// # Errors
    /// A detector that is not there, or what is wrong in one.
    pub fn detect(&mut self, all: &[core::TypedExtensionConfig]) -> Result<(), Vec<ConfigError>> {
        for (index, detector) in all.iter().enumerate() {
            let path = format!("resource_detectors[{index}].typed_config");
            let any = detector.typed_config.as_ref().ok_or_else(|| ConfigError::missing(&*path))?;
            let any = typed_struct::resolve(any).map_err(|e| ConfigError::new(&*path, e.to_string()))?;
            if any.is::<detectors::EnvironmentResourceDetectorConfig>() {
                let list = std::env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
                for (key, value) in list.split(',').filter_map(|pair| pair.split_once('=')) {
                    self.say(key.trim(), value.trim());
                }
            } else if any.is::<detectors::StaticConfigResourceDetectorConfig>() {
                let detector: detectors::StaticConfigResourceDetectorConfig =
                    any.unpack().map_err(|e| ConfigError::new(&*path, e.to_string()))?;
                detector.attributes.iter().for_each(|(key, value)| self.say(key, value));
            } else {
                let what = format!(
                    "{} is no detector that Weft has: use the environment's or a static one",
                    any.type_url
                );
                return Err(ConfigError::new(path, what).into());
            }
        }
        Ok(())
    }
}
