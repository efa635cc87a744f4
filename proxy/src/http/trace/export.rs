//! Sends spans to their collectors: one task of the control thread for each provider, whichever connection managers name it.
//!
//! Spans go out five at a time or every five seconds, as Envoy's do, and more at once where more are waiting. There is one
//! request at a time and no second try: what a collector does not take is lost, and counted.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use xds_protos::opentelemetry::proto::collector::trace::v1::ExportTraceServiceResponse;
use xds_protos::prost::Message;

use crate::io::ConnectionInfo;
use crate::router::call;
use crate::router::collector::{Fate, FateCounts, HttpCollector};
use crate::router::grpc::GrpcService;
use crate::state::NodeInfo;
use crate::telemetry::registry::{Counter, Group};
use crate::telemetry::trace::{Flavor, Span, Tracer, otlp, zipkin};

/// So many spans go out at once, and
const ENOUGH: usize = 5;
/// none waits longer than that.
const EVERY: Duration = Duration::from_secs(5);
/// A collector that has not answered by then never does, whatever its timeout.
const LATEST: Duration = Duration::from_secs(60);
/// The most spans of one request.
const MOST: usize = 512;
const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Where spans go.
#[derive(Debug)]
pub enum Target {
    /// OTLP over gRPC.
    Grpc(GrpcService),
    /// OTLP over HTTP.
    Otlp(HttpCollector),
    /// Zipkin's JSON.
    Zipkin(HttpCollector),
}

/// A provider of a configuration.
#[derive(Debug)]
pub struct Provider {
    /// Its ways.
    pub flavor: Flavor,
    /// Where spans go.
    pub target: Target,
    /// Who sends them, for OTLP.
    pub otlp: otlp::Sender,
    /// Who sends them, for Zipkin.
    pub zipkin: zipkin::Sender,
    /// The most spans that wait.
    pub capacity: usize,
}

/// Envoy's numbers of a kind of provider.
struct Stats {
    _group: Arc<Group>,
    spans_sent: Counter,
    timer_flushed: Counter,
    /// Spans that found no room, or that no collector took.
    spans_dropped: Counter,
    reports_sent: Counter,
    reports_dropped: Counter,
    reports_failed: Counter,
    reports_skipped: Counter,
    exports: FateCounts,
}

impl Stats {
    fn new(kind: &str) -> Self {
        let group = Group::new(format!("tracing.{kind}"), Vec::new());
        Self {
            spans_sent: group.counter("spans_sent"),
            timer_flushed: group.counter("timer_flushed"),
            spans_dropped: group.counter("spans_dropped"),
            reports_sent: group.counter("reports_sent"),
            reports_dropped: group.counter("reports_dropped"),
            reports_failed: group.counter("reports_failed"),
            reports_skipped: group.counter("reports_skipped_no_cluster"),
            exports: FateCounts::of(&group),
            _group: group,
        }
    }
}

static OTLP: LazyLock<Stats> = LazyLock::new(|| Stats::new("opentelemetry"));
static ZIPKIN: LazyLock<Stats> = LazyLock::new(|| Stats::new("zipkin"));

fn stats(flavor: Flavor) -> &'static Stats {
    if flavor == Flavor::OpenTelemetry { &OTLP } else { &ZIPKIN }
}

/// What is to be sent on behalf of a provider.
struct Work {
    provider: Provider,
    spans: mpsc::Receiver<Box<Span>>,
    fate: Fate,
}

/// The tracers that configuration names. Those that are alike are one.
#[derive(Default)]
pub struct Tracers {
    known: Mutex<HashMap<String, Weak<Tracer>>>,
    new: Mutex<Vec<Work>>,
    added: Notify,
}

impl std::fmt::Debug for Tracers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tracers({})", self.known.lock().len())
    }
}

impl Tracers {
    /// The tracer of this provider.
    pub fn get(&self, provider: Provider, node: &NodeInfo) -> Arc<Tracer> {
        let key = key(&provider);
        let mut known = self.known.lock();
        if let Some(tracer) = known.get(&key).and_then(Weak::upgrade) {
            return tracer;
        }
        known.retain(|_, tracer| tracer.strong_count() > 0);
        let mut said = vec![("node_id", node.id.clone())];
        if !node.zone.is_empty() {
            said.push(("zone", node.zone.clone()));
        }
        let dropped = stats(provider.flavor).spans_dropped;
        let (tracer, spans) = Tracer::new(provider.flavor, said, provider.capacity, dropped);
        let tracer = Arc::new(tracer);
        known.insert(key, Arc::downgrade(&tracer));
        let fate = Fate::new("spans", stats(provider.flavor).exports);
        self.new.lock().push(Work { provider, spans, fate });
        self.added.notify_one();
        tracer
    }

    /// Sends what is reported; runs on the control thread for the life of the process.
    pub async fn run(self: Arc<Self>) {
        loop {
            let new = std::mem::take(&mut *self.new.lock());
            for work in new {
                tokio::task::spawn_local(work.run());
            }
            self.added.notified().await;
        }
    }
}

#[cfg(test)]
impl Tracers {
    /// What was reported while nobody sent it.
    pub fn taken(&self) -> Vec<Span> {
        let mut all = Vec::new();
        for work in self.new.lock().iter_mut() {
            while let Ok(span) = work.spans.try_recv() {
                all.push(*span);
            }
        }
        all
    }
}

/// What makes two providers the same. The slots of clusters go by their names.
fn key(provider: &Provider) -> String {
    let of_http = |c: &HttpCollector| {
        format!("{} {:?} {:?} {:?} {:?}", c.cluster.name(), c.authority, c.path, c.timeout, c.headers)
    };
    let target = match &provider.target {
        Target::Grpc(s) => {
            format!("grpc {} {:?} {:?} {:?}", s.cluster.name(), s.authority, s.timeout, s.metadata)
        }
        Target::Otlp(collector) => format!("http {}", of_http(collector)),
        Target::Zipkin(collector) => format!("zipkin {}", of_http(collector)),
    };
    format!("{:?} {target} {:?} {:?} {}", provider.flavor, provider.otlp, provider.zipkin, provider.capacity)
}

impl Work {
    async fn run(mut self) {
        let connection = call::nobody();
        let stats = stats(self.provider.flavor);
        let mut waiting = Vec::new();
        let mut due = Instant::now() + EVERY;
        loop {
            let room = MOST - waiting.len();
            let taken = tokio::time::timeout_at(due, self.spans.recv_many(&mut waiting, room)).await;
            if taken.is_err() {
                stats.timer_flushed.inc();
                due = Instant::now() + EVERY;
            }
            let over = matches!(taken, Ok(0));
            if (waiting.len() >= ENOUGH || taken.is_err() || over) && !waiting.is_empty() {
                let sent = tokio::time::timeout(LATEST, self.send(&waiting, stats, &connection)).await;
                if sent.is_err() {
                    stats.spans_dropped.add(waiting.len() as u64);
                }
                waiting.clear();
            }
            if over {
                return;
            }
        }
    }

    async fn send(&self, spans: &[Box<Span>], stats: &Stats, connection: &Arc<ConnectionInfo>) {
        let count = spans.len() as u64;
        let lost = || stats.spans_dropped.add(count);
        match &self.provider.target {
            Target::Grpc(service) => {
                stats.spans_sent.add(count);
                let request = otlp::request(&self.provider.otlp, spans);
                let answer = service.ask::<ExportTraceServiceResponse>(METHOD, &request, connection).await;
                self.fate.note(service.cluster.name(), &answer);
                if answer.is_err() {
                    lost();
                }
            }
            Target::Otlp(collector) => {
                stats.spans_sent.add(count);
                let body = otlp::request(&self.provider.otlp, spans).encode_to_vec();
                let answer = collector.export(body, connection).await;
                self.fate.note(collector.cluster.name(), &answer);
                if answer.is_err() {
                    lost();
                }
            }
            Target::Zipkin(collector) => {
                if !collector.cluster.serves() {
                    stats.reports_skipped.inc();
                    return lost();
                }
                stats.spans_sent.add(count);
                let body = zipkin::list(&self.provider.zipkin, self.provider.flavor, spans);
                match collector.post("application/json", body, connection).await {
                    Some(http::StatusCode::ACCEPTED) => stats.reports_sent.inc(),
                    Some(_) => {
                        stats.reports_dropped.inc();
                        lost();
                    }
                    None => {
                        stats.reports_failed.inc();
                        lost();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::state::Slot;
    use crate::telemetry::trace::{Ids, Kind};

    fn span() -> Span {
        Span {
            ids: Ids { trace: 1, span: 2, parent: None, sampled: true },
            remote: false,
            state: None,
            name: None,
            authority: String::new(),
            egress: false,
            kind: Kind::Server,
            start: SystemTime::now(),
            end: SystemTime::now(),
            tags: Vec::new(),
            moments: Vec::new(),
            status: 200,
            grpc: None,
        }
    }

    fn provider(cluster: &str) -> Provider {
        Provider {
            flavor: Flavor::OpenTelemetry,
            target: Target::Grpc(GrpcService {
                cluster: Arc::new(Slot::new(cluster)),
                authority: "collector".into(),
                timeout: Duration::from_secs(1),
                metadata: Vec::new(),
            }),
            otlp: otlp::Sender::default(),
            zipkin: zipkin::Sender::default(),
            capacity: 8,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_collector_spans_are_lost_and_counted_and_few_are_kept() {
        let tracers = Arc::new(Tracers::default());
        let tracer = tracers.get(provider("away"), &NodeInfo::default());
        assert!(Arc::ptr_eq(&tracer, &tracers.get(provider("away"), &NodeInfo::default())));
        assert!(!Arc::ptr_eq(&tracer, &tracers.get(provider("other"), &NodeInfo::default())));
        let before = OTLP.spans_dropped.value();
        (0..20).for_each(|_| tracer.report(span()));
        assert_eq!(OTLP.spans_dropped.value() - before, 12, "there is room for eight");
        let work = tokio::task::LocalSet::new();
        work.spawn_local(tracers.clone().run());
        work.run_until(async {
            while OTLP.spans_dropped.value() - before < 20 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // One alone goes out when its time has come.
            let flushed = OTLP.timer_flushed.value();
            tracer.report(span());
            tokio::time::sleep(EVERY + Duration::from_secs(1)).await;
            assert!(OTLP.timer_flushed.value() > flushed);
            assert_eq!(OTLP.spans_dropped.value() - before, 21);
        })
        .await;
    }
}
