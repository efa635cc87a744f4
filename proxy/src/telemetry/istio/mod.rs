//! Istio's standard metrics (`istio_requests_total`, ...), with Istio's labels, as the `istio.stats` filter reports them.
//!
//! A series is looked up by what can differ between two requests of one reporter: the peer, the destination, the answer.
//! Each worker remembers the handles of the series it has seen, so that a known combination costs one hash look-up.

mod changes;
mod custom;
mod series;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

pub use changes::Changes;
pub use custom::expire;
pub use series::{BUDGET, set_budget};

use self::series::{Alive, Series, Sets};
use super::flags::Flags;
use super::registry::{Counter, Group, Histogram, Labels, Reading};
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
struct TcpHandles {
    opened: Option<Counter>,
    closed: Option<Counter>,
    sent: Option<Counter>,
    received: Option<Counter>,
}

impl TcpHandles {
    fn carried(self, received: u64, sent: u64) {
        self.received.iter().for_each(|counter| counter.add(received));
        self.sent.iter().for_each(|counter| counter.add(sent));
    }
}

/// What a connection's bytes count under while it lives.
pub struct TcpSeries(Arc<Series<TcpHandles>>);

impl TcpSeries {
    /// Counts bytes that came from the client, and went to it.
    pub fn carried(&self, received: u64, sent: u64) {
        self.0.handles.carried(received, sent);
    }
}

impl Drop for TcpSeries {
    fn drop(&mut self) {
        self.0.leave();
    }
}

type Known = series::Known<HttpSeries, TcpHandles>;

/// What a worker remembers of a reporter.
#[derive(Default)]
struct Remembered {
    http: Sets<HttpSeries>,
    tcp: Sets<TcpHandles>,
    recent: Recent,
}

/// Sets of labels that requests were counted under just now, each in a place that follows from where its parts lie in memory: nearly
/// every request is like one before it, and then neither is a key made for it nor hashed.
#[derive(Default)]
struct Recent([Option<(Key, Arc<Series<HttpSeries>>)>; 16]);

impl Recent {
    fn place(far: Far<'_>, code: u16) -> usize {
        let lies = |at: usize| (at >> 4) ^ (at >> 9);
        let workload = far.workload.map_or(0, |w| lies(Arc::as_ptr(w).addr()));
        let service = far.service.map_or(0, |s| lies(Arc::as_ptr(s).addr()));
        (workload ^ service.rotate_left(2) ^ usize::from(code)) % 16
    }

    fn find(&self, stream: &StreamInfo, connection: &ConnectionInfo, far: Far<'_>) -> Option<HttpSeries> {
        let code = stream.status.map_or(0, |s| s.as_u16());
        let (key, series) = self.0[Self::place(far, code)].as_ref()?;
        let same = key.code == code
            && key.flags == stream.flags
            && key.mutual_tls == connection.peer_id().is_some()
            && key.protocol == protocol(stream)
            && key.grpc_status == stream.grpc_status.filter(|_| stream.is_grpc)
            && key.said.is_none()
            && key.workload.as_ref() == far.workload
            && key.service.as_ref() == far.service
            && key.source_principal.as_ref() == far.source_principal
            && key.destination_principal.as_ref() == far.destination_principal;
        (same && !series.is_gone()).then_some(series.handles)
    }

    fn keep(&mut self, key: &Key, far: Far<'_>, series: &Arc<Series<HttpSeries>>) {
        self.0[Self::place(far, key.code)] = Some((key.clone(), series.clone()));
    }

    fn forget_gone(&mut self) {
        for place in &mut self.0 {
            if place.as_ref().is_some_and(|(_, series)| series.is_gone()) {
                *place = None;
            }
        }
    }
}

/// What a request is called in labels.
fn protocol(stream: &StreamInfo) -> &'static str {
    if stream.is_grpc { "grpc" } else { "http" }
}

/// Reports for one proxy and one side.
pub struct Reporter {
    id: u64,
    side: Side,
    local: Arc<Workload>,
    changes: Arc<Changes>,
    known: Arc<Mutex<Known>>,
}

thread_local! {
    static SEEN: RefCell<HashMap<u64, Remembered, RandomState>> = RefCell::default();
    static EPOCH: Cell<u64> = const { Cell::new(0) };
}

static NEXT: AtomicU64 = AtomicU64::new(0);

/// The reporters that are there. What workers remember of others is let go when they see a new one.
static ALIVE: LazyLock<Alive<HttpSeries, TcpHandles>> = LazyLock::new(Mutex::default);

/// Lets sets of labels go that nothing was counted under for `idle`; gives how many.
pub fn expire_sets(idle: Duration, now: Instant) -> usize {
    let reporters: Vec<_> = ALIVE.lock().values().filter_map(Weak::upgrade).collect();
    let reading = Reading::begin();
    reporters.iter().map(|known| series::expire(known, &reading, idle, now)).sum()
}

/// Has this worker forget sets of labels that went, if some did since it last looked.
pub fn forget_expired() {
    let mut epoch = EPOCH.get();
    if series::some_went(&mut epoch) {
        EPOCH.set(epoch);
        SEEN.with_borrow_mut(|seen| {
            // What reporters counted that are gone is nobody's any more.
            {
                let alive = ALIVE.lock();
                seen.retain(|id, _| alive.contains_key(id));
            }
            for remembered in seen.values_mut() {
                remembered.http.retain(|_, set| !set.is_gone());
                remembered.tcp.retain(|_, set| !set.is_gone());
                remembered.recent.forget_gone();
            }
        });
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        ALIVE.lock().remove(&self.id);
        series::went();
    }
}

impl Reporter {
    /// A reporter for the workload that this proxy serves.
    pub fn new(side: Side, local: Arc<Workload>, changes: Arc<Changes>) -> Self {
        let id = NEXT.fetch_add(1, Relaxed);
        let known = Arc::new(Mutex::default());
        ALIVE.lock().insert(id, Arc::downgrade(&known));
        Self { id, side, local, changes, known }
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
        let recent = SEEN.with_borrow(|seen| seen.get(&self.id)?.recent.find(stream, connection, far));
        let series = match recent {
            Some(series) if !self.changes.has_expressions() => series,
            _ => self.http(stream, connection, request, far),
        };
        series.requests.iter().for_each(|counter| counter.inc());
        let record =
            |histogram: Option<Histogram>, value: f64| histogram.iter().for_each(|h| h.record(value));
        record(series.duration, stream.took().as_secs_f64() * 1000.0);
        record(series.request_bytes, stream.bytes_received as f64);
        record(series.response_bytes, stream.bytes_sent as f64);
        if let Some((sent, answered)) = series.messages {
            sent.iter().for_each(|counter| counter.add(stream.grpc_messages.0));
            answered.iter().for_each(|counter| counter.add(stream.grpc_messages.1));
        }
        self.changes.count(stream, connection, request, far);
    }

    /// Reports an opened TCP connection; gives what counts its bytes while it lives.
    pub fn tcp_opened(&self, stream: &StreamInfo, connection: &ConnectionInfo, far: Far<'_>) -> TcpSeries {
        let series = self.tcp(stream, connection, far, Flags::default(), |series| {
            series.enter();
            TcpSeries(series.clone())
        });
        series.0.handles.opened.iter().for_each(|counter| counter.inc());
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
        let series = self.tcp(stream, connection, far, stream.flags, |series| series.handles);
        series.closed.iter().for_each(|counter| counter.inc());
        series.carried(received, sent);
    }

    /// What a request is counted under that is like none just before it. Not in line: with it the usual way would be spread over a
    /// frame four times as large, and its numbers be taken apart bit by bit.
    #[inline(never)]
    fn http(
        &self,
        stream: &StreamInfo,
        connection: &ConnectionInfo,
        request: Option<&RequestHead>,
        far: Far<'_>,
    ) -> HttpSeries {
        let key = Key {
            said: self.changes.said(stream, connection, request, far),
            code: stream.status.map_or(0, |s| s.as_u16()),
            flags: stream.flags,
            grpc_status: stream.grpc_status.filter(|_| stream.is_grpc),
            ..self.key(connection, far, protocol(stream))
        };
        let known = key.clone();
        let series =
            self.series(key, |all| &mut all.http, |mine| &mut mine.http, Self::make_http, Arc::clone);
        SEEN.with_borrow_mut(|seen| {
            // What was folded is counted so each time.
            if let Some(mine) = seen.get_mut(&self.id)
                && known.said.is_none()
                && mine.http.contains_key(&known)
            {
                mine.recent.keep(&known, far, &series);
            }
        });
        series.handles
    }

    fn tcp<R>(
        &self,
        stream: &StreamInfo,
        connection: &ConnectionInfo,
        far: Far<'_>,
        flags: Flags,
        take: impl FnOnce(&Arc<Series<TcpHandles>>) -> R,
    ) -> R {
        let said = self.changes.said(stream, connection, None, far);
        let key = Key { flags, said, ..self.key(connection, far, "tcp") };
        self.series(key, |all| &mut all.tcp, |mine| &mut mine.tcp, Self::make_tcp, take)
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

    /// What `take` wants of a series: from this worker's own memory, then the reporter's, then of a new one.
    fn series<H, R>(
        &self,
        key: Key,
        all: impl Fn(&mut Known) -> &mut Sets<H>,
        mine: impl Fn(&mut Remembered) -> &mut Sets<H>,
        make: impl Fn(&Self, &Key) -> (H, Arc<Group>),
        take: impl FnOnce(&Arc<Series<H>>) -> R,
    ) -> R {
        SEEN.with_borrow_mut(|seen| {
            if !seen.contains_key(&self.id) {
                let alive = ALIVE.lock();
                seen.retain(|id, _| alive.contains_key(id));
            }
            let mine = mine(seen.entry(self.id).or_default());
            if let Some(series) = mine.get(&key).filter(|series| !series.is_gone()) {
                return take(series);
            }
            let (series, folded) = series::find(
                all(&mut self.known.lock()),
                &key,
                |key| self.overflow(key),
                |key| make(self, key),
            );
            let taken = take(&series);
            // What was folded has no place in a worker's memory either, however many there are.
            if !folded {
                mine.insert(key, series);
            }
            taken
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

    fn make_http(&self, key: &Key) -> (HttpSeries, Arc<Group>) {
        let (group, labels) = (Group::new("", Labels::default()), self.labels(key));
        let counter = |metric| self.counter(&group, metric, &labels, key);
        let histogram = |metric: &'static str| {
            let labels = self.changes.labels(metric, &labels, key.said.as_deref())?;
            Some(group.histogram_with(metric, labels))
        };
        let series = HttpSeries {
            requests: counter("istio_requests_total"),
            duration: histogram("istio_request_duration_milliseconds"),
            request_bytes: histogram("istio_request_bytes"),
            response_bytes: histogram("istio_response_bytes"),
            messages: (key.protocol == "grpc")
                .then(|| (counter("istio_request_messages_total"), counter("istio_response_messages_total"))),
        };
        (series, group)
    }

    fn make_tcp(&self, key: &Key) -> (TcpHandles, Arc<Group>) {
        let (group, labels) = (Group::new("", Labels::default()), self.labels(key));
        let counter = |metric| self.counter(&group, metric, &labels, key);
        let handles = TcpHandles {
            opened: counter("istio_tcp_connections_opened_total"),
            closed: counter("istio_tcp_connections_closed_total"),
            sent: counter("istio_tcp_sent_bytes_total"),
            received: counter("istio_tcp_received_bytes_total"),
        };
        (handles, group)
    }

    fn counter(&self, group: &Group, metric: &'static str, labels: &Labels, key: &Key) -> Option<Counter> {
        let labels = self.changes.labels(metric, labels, key.said.as_deref())?;
        Some(group.counter_with(metric, labels))
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
        labels.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Protocol;
    use crate::io::Direction;
    use crate::telemetry::registry::{Entry, Metric};

    fn entries(reporter: &Reporter) -> Vec<Entry> {
        let known = reporter.known.lock();
        let groups = known.http.values().map(|s| &s.group).chain(known.tcp.values().map(|s| &s.group));
        groups.flat_map(|group| group.entries()).collect()
    }

    fn label(labels: &Labels, wanted: &str) -> Option<String> {
        labels.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.to_string())
    }

    /// A request of a caller of this name, counted.
    fn called_by(reporter: &Reporter, name: &str) {
        let caller = Arc::new(Workload { name: name.to_owned(), ..Workload::default() });
        let far = Far { workload: Some(&caller), ..Far::default() };
        reporter.request(&StreamInfo::new(Some(Protocol::Http11)), &connection(), None, far);
    }

    /// How many requests a caller's set has counted; none if there is no such set in what a scrape reads.
    fn counted(destination: &str, caller: &str) -> Option<u64> {
        let of_both = |labels: &Labels| {
            label(labels, "destination_workload").as_deref() == Some(destination)
                && label(labels, "source_workload").as_deref() == Some(caller)
        };
        let groups = crate::telemetry::registry::groups();
        let entries = groups.iter().flat_map(|group| group.entries());
        let found = entries.filter(|e| e.name == "istio_requests_total" && of_both(&e.labels));
        let counts: Vec<u64> = found
            .map(|e| match e.metric {
                Metric::Counter(counter) => counter.value(),
                _ => panic!("a counter"),
            })
            .collect();
        (!counts.is_empty()).then(|| counts.iter().sum())
    }

    #[test]
    fn a_set_that_is_idle_goes_and_one_that_comes_back_loses_nothing() {
        let local = Arc::new(Workload { name: "idle-test".to_owned(), ..Workload::default() });
        let reporter = Arc::new(Reporter::new(Side::Destination, local, Arc::default()));
        let (start, hour) = (Instant::now(), Duration::from_secs(3600));
        let expire = |idle, now| series::expire(&reporter.known, &Reading::begin(), idle, now);
        called_by(&reporter, "busy");
        called_by(&reporter, "idle");
        // Another worker remembers it, too.
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (told, said) = std::sync::mpsc::channel();
        let other = reporter.clone();
        let worker = std::thread::spawn(move || {
            called_by(&other, "idle");
            told.send(()).unwrap();
            wait.recv().unwrap();
            forget_expired();
            told.send(()).unwrap();
            wait.recv().unwrap();
        });
        said.recv().unwrap();
        let opened = reporter.tcp_opened(&StreamInfo::new(None), &connection(), Far::default());
        // Seen as they are now; from here on they are idle.
        expire(hour, start + hour / 2);
        called_by(&reporter, "busy");
        assert_eq!(expire(hour, start + 2 * hour), 1);
        assert_eq!(counted("idle-test", "idle"), Some(2), "somebody remembers it, and so it is read");
        // It is met again before everybody has forgotten it.
        called_by(&reporter, "idle");
        assert_eq!(counted("idle-test", "idle"), Some(3));
        forget_expired();
        assert_eq!(counted("idle-test", "idle"), Some(3), "the other worker has not looked");
        go.send(()).unwrap();
        said.recv().unwrap();
        assert_eq!(counted("idle-test", "idle"), Some(1));
        assert_eq!(counted("idle-test", "busy"), Some(2));
        // A connection that lives keeps what it counts under.
        assert_eq!(reporter.known.lock().tcp.len(), 1);
        drop(opened);
        expire(hour, start + 4 * hour);
        assert_eq!(reporter.known.lock().tcp.len(), 0);
        assert_eq!(reporter.known.lock().http.len(), 1, "what came back has counted since");
        expire(hour, start + 6 * hour);
        assert_eq!(reporter.known.lock().http.len(), 0);
        go.send(()).unwrap();
        worker.join().unwrap();
    }

    #[test]
    fn beyond_the_budget_sets_are_counted_together_and_that_is_counted() {
        let number = |name: &str| {
            let samples = crate::telemetry::registry::groups();
            let mut entries = samples.iter().flat_map(|group| group.entries());
            match entries.find(|e| e.name == name).map(|e| e.metric) {
                Some(Metric::Counter(counter)) => counter.value() as i64,
                Some(Metric::Gauge(gauge)) => gauge.value(),
                _ => 0,
            }
        };
        let local = Arc::new(Workload { name: "budget-test".to_owned(), ..Workload::default() });
        let reporter = Reporter::new(Side::Destination, local, Arc::default());
        called_by(&reporter, "first");
        let folded = number("weft_metric_series_folded_total");
        series::TEST_BUDGET.set(Some(0));
        for caller in ["second", "third", "second"] {
            called_by(&reporter, caller);
        }
        called_by(&reporter, "first");
        series::TEST_BUDGET.set(None);
        set_budget(BUDGET);
        // Others may be folded meanwhile, by tests beside this one.
        assert!(number("weft_metric_series_folded_total") >= folded + 3);
        assert_eq!(number("weft_metric_series_budget"), BUDGET as i64);
        assert_eq!(counted("budget-test", "first"), Some(2), "what is there goes on");
        assert_eq!(counted("budget-test", "second"), None);
        assert_eq!(counted("budget-test", "overflow"), Some(3));
        called_by(&reporter, "second");
        assert_eq!(counted("budget-test", "second"), Some(1));
    }

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
        let mut counts: Vec<_> = entries(&reporter)
            .into_iter()
            .filter(|e| e.name == "istio_requests_total")
            .map(|e| {
                let label = |name| label(&e.labels, name).unwrap();
                assert_eq!(label("source_workload"), "order");
                assert_eq!(label("destination_workload"), "user");
                assert_eq!(label("connection_security_policy"), "none");
                let Metric::Counter(counter) = e.metric else { panic!("a counter") };
                (label("response_code"), counter.value())
            })
            .collect();
        counts.sort();
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
        let entries = entries(&reporter);
        let counted: Vec<_> = entries.iter().filter(|e| e.name == "istio_requests_total").collect();
        let mut hosts: Vec<_> = counted.iter().map(|e| label(&e.labels, "host").unwrap()).collect();
        hosts.sort();
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
