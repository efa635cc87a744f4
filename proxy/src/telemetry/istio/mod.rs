//! Istio's standard metrics (`istio_requests_total`, ...), with Istio's labels, as the `istio.stats` filter reports them.
//!
//! A series is looked up by what can differ between two requests of one reporter: the peer, the destination, the answer.
//! Each worker remembers the handles of the series it has seen, so that a known combination costs one hash look-up.

mod changes;
mod custom;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

pub use changes::Changes;
pub use custom::expire;

use super::flags::Flags;
use super::registry::{Counter, Group, Histogram};
use super::stream::StreamInfo;
use crate::codec::RequestHead;
use crate::io::ConnectionInfo;

/// What Istio's labels say of a workload. Empty fields are reported as `unknown` (revision: `latest`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Workload {
    /// The workload's (Deployment's) name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its `app` label.
    pub app: String,
    /// Its `version` label.
    pub version: String,
    /// The cluster it runs in.
    pub cluster: String,
    /// Its canonical service.
    pub canonical_service: String,
    /// Its canonical revision.
    pub canonical_revision: String,
}

/// The service a request was for, as the control plane names it in cluster metadata (`istio.services`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Service {
    /// The host, such as `user-service.ecotrack.svc.cluster.local`.
    pub host: String,
    /// The short name.
    pub name: String,
    /// The namespace.
    pub namespace: String,
}

/// Which end of the connection reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The caller's proxy.
    Source,
    /// The callee's proxy.
    Destination,
}

/// Labels with their values.
type Labels = Vec<(&'static str, String)>;

/// What is known of the other side when a stream ends.
#[derive(Clone, Copy, Default)]
pub struct Far<'a> {
    /// The other workload, from peer metadata or endpoint metadata.
    pub workload: Option<&'a Arc<Workload>>,
    /// The service called.
    pub service: Option<&'a Arc<Service>>,
    /// The caller's verified SPIFFE id.
    pub source_principal: Option<&'a Arc<str>>,
    /// The callee's verified SPIFFE id.
    pub destination_principal: Option<&'a Arc<str>>,
}

/// Series beyond this share one whose varying labels are all `overflow`: metrics never grow without bound.
pub const MAX_SERIES: usize = 20_000;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    workload: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    source_principal: Option<Arc<str>>,
    destination_principal: Option<Arc<str>>,
    protocol: &'static str,
    code: u16,
    flags: Flags,
    grpc_status: Option<u32>,
    mutual_tls: bool,
    /// What expressions say, in the order of [`Changes::expressions`]; none where there are none.
    said: Option<Arc<[String]>>,
}

/// The metrics of requests that are alike; none of those that are dropped.
#[derive(Clone, Copy)]
struct HttpSeries {
    requests: Option<Counter>,
    duration: Option<Histogram>,
    request_bytes: Option<Histogram>,
    response_bytes: Option<Histogram>,
    /// Messages of gRPC.
    messages: Option<(Option<Counter>, Option<Counter>)>,
}

/// The metrics of connections that are alike; none of those that are dropped.
#[derive(Clone, Copy)]
pub struct TcpSeries {
    opened: Option<Counter>,
    closed: Option<Counter>,
    sent: Option<Counter>,
    received: Option<Counter>,
}

impl TcpSeries {
    /// Counts bytes that came from the client, and went to it.
    pub fn carried(self, received: u64, sent: u64) {
        self.received.iter().for_each(|counter| counter.add(received));
        self.sent.iter().for_each(|counter| counter.add(sent));
    }
}

#[derive(Default)]
struct Known {
    http: HashMap<Key, HttpSeries>,
    tcp: HashMap<Key, TcpSeries>,
}

/// Reports for one proxy and one side.
pub struct Reporter {
    id: u64,
    side: Side,
    local: Arc<Workload>,
    changes: Arc<Changes>,
    group: Arc<Group>,
    known: Mutex<Known>,
}

thread_local! {
    static SEEN: RefCell<HashMap<u64, Known>> = RefCell::default();
}

static NEXT: AtomicU64 = AtomicU64::new(0);

/// The reporters that are there. What workers remember of others is let go when they see a new one.
static ALIVE: LazyLock<Mutex<HashSet<u64>>> = LazyLock::new(Mutex::default);

impl Drop for Reporter {
    fn drop(&mut self) {
        ALIVE.lock().remove(&self.id);
    }
}

impl Reporter {
    /// A reporter for the workload that this proxy serves.
    pub fn new(side: Side, local: Arc<Workload>, changes: Arc<Changes>) -> Self {
        let id = NEXT.fetch_add(1, Relaxed);
        ALIVE.lock().insert(id);
        Self { id, side, local, changes, group: Group::new("", Vec::new()), known: Mutex::default() }
    }

    /// Whether labels are made of what requests bring.
    pub fn looks_at_requests(&self) -> bool {
        self.changes.looks_at_requests()
    }

    /// Reports a finished request: `istio_requests_total`, the three histograms, and messages of gRPC. `request` is its head where
    /// labels are made of it.
    pub fn request(
        &self,
        stream: &StreamInfo,
        connection: &ConnectionInfo,
        request: Option<&RequestHead>,
        far: Far<'_>,
    ) {
        let key = Key {
            said: self.changes.said(stream, connection, request, far),
            code: stream.status.map_or(0, |s| s.as_u16()),
            flags: stream.flags,
            grpc_status: stream.grpc_status.filter(|_| stream.is_grpc),
            ..self.key(connection, far, if stream.is_grpc { "grpc" } else { "http" })
        };
        let series = self.series(key, |known| &mut known.http, Self::make_http);
        series.requests.iter().for_each(|counter| counter.inc());
        let record =
            |histogram: Option<Histogram>, value: f64| histogram.iter().for_each(|h| h.record(value));
        record(series.duration, stream.start.elapsed().as_secs_f64() * 1000.0);
        record(series.request_bytes, stream.bytes_received as f64);
        record(series.response_bytes, stream.bytes_sent as f64);
        if let Some((sent, answered)) = series.messages {
            sent.iter().for_each(|counter| counter.add(stream.grpc_messages.0));
            answered.iter().for_each(|counter| counter.add(stream.grpc_messages.1));
        }
        self.changes.count(stream, connection, request, far);
    }

    /// Reports an opened TCP connection; gives what counts its bytes while it lives. It must not outlive the reporter.
    pub fn tcp_opened(&self, stream: &StreamInfo, connection: &ConnectionInfo, far: Far<'_>) -> TcpSeries {
        let series = self.tcp(stream, connection, far, Flags::default());
        series.opened.iter().for_each(|counter| counter.inc());
        series
    }

    /// Reports a closed TCP connection, and the bytes from and to the client that were not counted while it lived.
    pub fn tcp_closed(
        &self,
        stream: &StreamInfo,
        connection: &ConnectionInfo,
        far: Far<'_>,
        (received, sent): (u64, u64),
    ) {
        let series = self.tcp(stream, connection, far, stream.flags);
        series.closed.iter().for_each(|counter| counter.inc());
        series.carried(received, sent);
    }

    fn tcp(&self, stream: &StreamInfo, connection: &ConnectionInfo, far: Far<'_>, flags: Flags) -> TcpSeries {
        let said = self.changes.said(stream, connection, None, far);
        let key = Key { flags, said, ..self.key(connection, far, "tcp") };
        self.series(key, |known| &mut known.tcp, Self::make_tcp)
    }

    fn key(&self, connection: &ConnectionInfo, far: Far<'_>, protocol: &'static str) -> Key {
        Key {
            workload: far.workload.cloned(),
            service: far.service.cloned(),
            source_principal: far.source_principal.cloned(),
            destination_principal: far.destination_principal.cloned(),
            protocol,
            code: 0,
            flags: Flags::default(),
            grpc_status: None,
            mutual_tls: connection.peer_id().is_some(),
            said: None,
        }
    }

    /// The handles of a series: this worker's own memory, then the reporter's, then new ones.
    fn series<S: Copy>(
        &self,
        key: Key,
        map: impl Fn(&mut Known) -> &mut HashMap<Key, S>,
        make: impl Fn(&Self, &Key) -> S,
    ) -> S {
        SEEN.with_borrow_mut(|seen| {
            if !seen.contains_key(&self.id) {
                let alive = ALIVE.lock();
                seen.retain(|id, _| alive.contains(id));
            }
            let mine = map(seen.entry(self.id).or_default());
            if let Some(series) = mine.get(&key) {
                return *series;
            }
            let mut known = self.known.lock();
            let all = map(&mut known);
            let key =
                if all.len() < MAX_SERIES || all.contains_key(&key) { key } else { self.overflow(&key) };
            let series = *all.entry(key.clone()).or_insert_with(|| make(self, &key));
            mine.insert(key, series);
            series
        })
    }

    fn overflow(&self, key: &Key) -> Key {
        let workload = Workload { name: "overflow".to_owned(), ..Workload::default() };
        Key {
            workload: Some(Arc::new(workload)),
            service: None,
            source_principal: None,
            destination_principal: None,
            code: 0,
            flags: Flags::default(),
            grpc_status: None,
            said: key.said.as_ref().map(|said| said.iter().map(|_| "overflow".to_owned()).collect()),
            ..key.clone()
        }
    }

    fn make_http(&self, key: &Key) -> HttpSeries {
        let labels = self.labels(key);
        let counter = |metric| self.counter(metric, &labels, key);
        let histogram = |metric: &'static str| {
            let labels = self.changes.labels(metric, &labels, key.said.as_deref())?;
            Some(self.group.histogram_with(metric, labels))
        };
        HttpSeries {
            requests: counter("istio_requests_total"),
            duration: histogram("istio_request_duration_milliseconds"),
            request_bytes: histogram("istio_request_bytes"),
            response_bytes: histogram("istio_response_bytes"),
            messages: (key.protocol == "grpc")
                .then(|| (counter("istio_request_messages_total"), counter("istio_response_messages_total"))),
        }
    }

    fn make_tcp(&self, key: &Key) -> TcpSeries {
        let labels = self.labels(key);
        let counter = |metric| self.counter(metric, &labels, key);
        TcpSeries {
            opened: counter("istio_tcp_connections_opened_total"),
            closed: counter("istio_tcp_connections_closed_total"),
            sent: counter("istio_tcp_sent_bytes_total"),
            received: counter("istio_tcp_received_bytes_total"),
        }
    }

    fn counter(&self, metric: &'static str, labels: &Labels, key: &Key) -> Option<Counter> {
        let labels = self.changes.labels(metric, labels, key.said.as_deref())?;
        Some(self.group.counter_with(metric, labels))
    }

    fn labels(&self, key: &Key) -> Labels {
        let nobody = Workload::default();
        let far = key.workload.as_deref().unwrap_or(&nobody);
        let (source, destination) = match self.side {
            Side::Source => (&*self.local, far),
            Side::Destination => (far, &*self.local),
        };
        let or =
            |value: &str, default: &str| if value.is_empty() { default.to_owned() } else { value.to_owned() };
        let word = |value: &str| or(value, "unknown");
        let principal = |id: &Option<Arc<str>>| word(id.as_deref().unwrap_or_default());
        let nothing = Service::default();
        let service = key.service.as_deref().unwrap_or(&nothing);
        let mut labels = vec![
            ("reporter", if self.side == Side::Source { "source" } else { "destination" }.to_owned()),
            ("source_workload", word(&source.name)),
            ("source_canonical_service", word(&source.canonical_service)),
            ("source_canonical_revision", or(&source.canonical_revision, "latest")),
            ("source_workload_namespace", word(&source.namespace)),
            ("source_principal", principal(&key.source_principal)),
            ("source_app", word(&source.app)),
            ("source_version", word(&source.version)),
            ("source_cluster", word(&source.cluster)),
            ("destination_workload", word(&destination.name)),
            ("destination_workload_namespace", word(&destination.namespace)),
            ("destination_principal", principal(&key.destination_principal)),
            ("destination_app", word(&destination.app)),
            ("destination_version", word(&destination.version)),
            ("destination_service", word(&service.host)),
            ("destination_canonical_service", word(&destination.canonical_service)),
            ("destination_canonical_revision", or(&destination.canonical_revision, "latest")),
            ("destination_service_name", word(&service.name)),
            ("destination_service_namespace", or(&service.namespace, &word(&destination.namespace))),
            ("destination_cluster", word(&destination.cluster)),
            ("request_protocol", key.protocol.to_owned()),
        ];
        if key.protocol != "tcp" {
            labels.push(("response_code", key.code.to_string()));
            labels.push(("grpc_response_status", key.grpc_status.map_or(String::new(), |s| s.to_string())));
        }
        labels.push(("response_flags", key.flags.to_string()));
        let security = match (self.side, key.mutual_tls) {
            (Side::Source, _) => "unknown",
            (Side::Destination, true) => "mutual_tls",
            (Side::Destination, false) => "none",
        };
        labels.push(("connection_security_policy", security.to_owned()));
        labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Protocol;
    use crate::io::Direction;
    use crate::telemetry::registry::Metric;

    fn connection() -> ConnectionInfo {
        let address = "127.0.0.1:1".parse().unwrap();
        ConnectionInfo { direction: Direction::Inbound, ..ConnectionInfo::between(address, address) }
    }

    #[test]
    fn requests_that_differ_in_code_are_different_series_and_equal_ones_add_up() {
        let local = Arc::new(Workload { name: "user".to_owned(), ..Workload::default() });
        let reporter = Reporter::new(Side::Destination, local, Arc::default());
        let caller = Arc::new(Workload { name: "order".to_owned(), ..Workload::default() });
        let mut stream = StreamInfo::new(Some(Protocol::Http11));
        for code in [200, 200, 503] {
            stream.status = http::StatusCode::from_u16(code).ok();
            let far = Far { workload: Some(&caller), ..Far::default() };
            reporter.request(&stream, &connection(), None, far);
        }
        let counts: Vec<_> = reporter
            .group
            .entries()
            .into_iter()
            .filter(|e| e.name == "istio_requests_total")
            .map(|e| {
                let label = |name| e.labels.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone()).unwrap();
                assert_eq!(label("source_workload"), "order");
                assert_eq!(label("destination_workload"), "user");
                assert_eq!(label("connection_security_policy"), "none");
                let Metric::Counter(counter) = e.metric else { panic!("a counter") };
                (label("response_code"), counter.value())
            })
            .collect();
        assert_eq!(counts, [("200".to_owned(), 2), ("503".to_owned(), 1)]);
    }

    #[test]
    fn metrics_are_dropped_and_relabelled() {
        use xds_protos::stats::{MetricConfig, PluginConfig};
        let dimension = |label: &str, text: &str| (label.to_owned(), text.to_owned());
        let everywhere = MetricConfig {
            dimensions: [dimension("host", "request.host"), dimension("source_app", "'nobody'")].into(),
            tags_to_remove: vec!["source_version".to_owned()],
            ..MetricConfig::default()
        };
        let dropped =
            MetricConfig { name: "request_bytes".to_owned(), drop: true, ..MetricConfig::default() };
        let config = PluginConfig { metrics: vec![everywhere, dropped], ..PluginConfig::default() };
        let changes = Arc::new(Changes::compile(&config).unwrap());
        let reporter = Reporter::new(Side::Destination, Arc::default(), changes);
        let mut stream = StreamInfo::new(Some(Protocol::Http11));
        for host in ["a", "b", "a"] {
            stream.authority = host.into();
            reporter.request(&stream, &connection(), None, Far::default());
        }
        let entries = reporter.group.entries();
        let label = |labels: &Labels, wanted: &str| {
            labels.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.clone())
        };
        let counted: Vec<_> = entries.iter().filter(|e| e.name == "istio_requests_total").collect();
        let hosts: Vec<_> = counted.iter().map(|e| label(&e.labels, "host").unwrap()).collect();
        assert_eq!(hosts, ["a", "b"]);
        for entry in &counted {
            assert_eq!(label(&entry.labels, "source_app").as_deref(), Some("nobody"));
            assert_eq!(label(&entry.labels, "source_version"), None);
        }
        assert!(entries.iter().all(|e| e.name != "istio_request_bytes"));
        let wrong = |metric: MetricConfig| {
            let config = PluginConfig { metrics: vec![metric], ..PluginConfig::default() };
            Changes::compile(&config).unwrap_err().to_string()
        };
        let name = MetricConfig { name: "no_such".to_owned(), ..MetricConfig::default() };
        assert!(wrong(name).contains("metrics[0].name"));
        let expression =
            MetricConfig { dimensions: [dimension("x", "node.id")].into(), ..MetricConfig::default() };
        assert!(wrong(expression).contains("metrics[0].dimensions[x]"));
    }

    #[test]
    fn what_is_remembered_of_a_reporter_that_is_gone_is_let_go() {
        let stream = StreamInfo::new(Some(Protocol::Http11));
        let mut ids = Vec::new();
        for _ in 0..3 {
            let reporter = Reporter::new(Side::Destination, Arc::default(), Arc::default());
            reporter.request(&stream, &connection(), None, Far::default());
            ids.push(reporter.id);
        }
        let known: Vec<u64> = SEEN.with_borrow(|seen| seen.keys().copied().collect());
        assert!(known.contains(&ids[2]) && !known.contains(&ids[0]) && !known.contains(&ids[1]), "{known:?}");
    }
}
