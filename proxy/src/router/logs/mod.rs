//! Sends the entries of access logs to their collectors: one task of the control thread for each configuration of a logger, which
//! takes what all workers left in its queue.
//!
//! There is one message at a time and no second try: what a collector does not take is lost, and counted.

pub mod config;
mod stream;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use xds_protos::envoy::data::accesslog::v3::{HttpAccessLogEntry, TcpAccessLogEntry};
use xds_protos::envoy::service::accesslog::v3::stream_access_logs_message as als;
use xds_protos::opentelemetry::proto::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use xds_protos::opentelemetry::proto::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use xds_protos::opentelemetry::proto::resource::v1::Resource;
use xds_protos::prost::Message;

use self::stream::Service;
use super::call;
use super::collector::{Fate, FateCounts, HttpCollector};
use super::grpc::GrpcService;
use crate::telemetry::access_log::queue::{Queue, Taker, Waiting, queue};
use crate::telemetry::registry::{Counter, Group};

const METHOD: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
/// A collector that has not answered by then never does, whatever its timeout.
const LATEST: Duration = Duration::from_secs(60);

/// How often it is looked whether all is sent when the process ends.
const LOOK: Duration = Duration::from_millis(10);

/// Envoy's numbers of a kind of logger.
#[derive(Clone, Copy)]
struct Stats {
    /// Entries that were taken.
    written: Counter,
    /// Entries that found no room, or that no collector took.
    dropped: Counter,
    exports: FateCounts,
}

/// The numbers under a prefix, for the life of the process: configurations that are alike in it count together.
fn stats(prefix: &str) -> Stats {
    type ByPrefix = HashMap<String, (Arc<Group>, Stats)>;
    static ALL: LazyLock<Mutex<ByPrefix>> = LazyLock::new(Mutex::default);
    let mut all = ALL.lock();
    if let Some((_, stats)) = all.get(prefix) {
        return *stats;
    }
    let group = Group::new(format!("access_logs.{prefix}"), Vec::new());
    let stats = Stats {
        written: group.counter("logs_written"),
        dropped: group.counter("logs_dropped"),
        exports: FateCounts::of(&group),
    };
    all.insert(prefix.to_owned(), (group, stats));
    stats
}

/// Where records of OTLP go.
#[derive(Debug)]
enum Target {
    Grpc(GrpcService),
    Http(HttpCollector),
}

/// A collector of OTLP.
#[derive(Debug)]
struct Otlp {
    target: Target,
    /// What is said of this proxy.
    resource: Resource,
    every: Duration,
}

/// What is to be sent on behalf of a logger.
enum Work {
    Otlp(Otlp, Taker<LogRecord>, Stats),
    Http(Service, Taker<HttpAccessLogEntry>, Stats),
    Tcp(Service, Taker<TcpAccessLogEntry>, Stats),
}

/// Queues by the bytes of their logger's configuration.
type Known<T> = Mutex<HashMap<Vec<u8>, Weak<Queue<T>>>>;

/// The loggers that configuration names. Those that are alike are one.
#[derive(Default)]
pub struct Loggers {
    otlp: Known<LogRecord>,
    http: Known<HttpAccessLogEntry>,
    tcp: Known<TcpAccessLogEntry>,
    new: Mutex<Vec<Work>>,
    added: Notify,
    /// What waits in any queue, of loggers that are gone as well.
    waiting: Mutex<Vec<Weak<Waiting>>>,
    /// The end: nobody sends any more.
    over: Notify,
}

impl std::fmt::Debug for Loggers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (otlp, http, tcp) = (self.otlp.lock().len(), self.http.lock().len(), self.tcp.lock().len());
        write!(f, "Loggers({otlp}, {http}, {tcp})")
    }
}

impl Loggers {
    /// The queue of a configuration; if it is the first of its kind there is work to do.
    fn get<T>(
        &self,
        known: &Known<T>,
        key: &[u8],
        enough: usize,
        stats: Stats,
        work: impl FnOnce(Taker<T>) -> Work,
    ) -> Arc<Queue<T>> {
        let mut known = known.lock();
        if let Some(queue) = known.get(key).and_then(Weak::upgrade) {
            return queue;
        }
        known.retain(|_, queue| queue.strong_count() > 0);
        let (queue, taker) = queue(enough, stats.written, stats.dropped);
        let queue = Arc::new(queue);
        known.insert(key.to_owned(), Arc::downgrade(&queue));
        let mut waiting = self.waiting.lock();
        waiting.retain(|waiting| waiting.strong_count() > 0);
        waiting.push(Arc::downgrade(&taker.waiting()));
        drop(waiting);
        self.new.lock().push(work(taker));
        self.added.notify_one();
        queue
    }

    /// Sends what is logged; runs on the control thread for the life of the process.
    pub async fn run(self: Arc<Self>) {
        loop {
            let new = std::mem::take(&mut *self.new.lock());
            for work in new {
                let own = self.clone();
                tokio::task::spawn_local(async move {
                    tokio::select! {
                        () = work.run() => {}
                        () = own.over.notified() => {}
                    }
                });
            }
            self.added.notified().await;
        }
    }

    /// Sends what waits, for so long at most, before the process ends; what is left then is counted as dropped. Gives how many
    /// entries that are. Comes back at once if nothing waits.
    pub async fn flush(&self, limit: Duration) -> u64 {
        let end = tokio::time::Instant::now() + limit;
        let all = || self.waiting.lock().iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        let left = || all().iter().any(|waiting| waiting.entries() > 0);
        if !left() {
            return 0;
        }
        while left() && tokio::time::Instant::now() < end {
            all().iter().for_each(|waiting| waiting.hurry());
            tokio::time::sleep(LOOK).await;
        }
        // A stream's last message was taken by its connection, which needs a moment to write it.
        tokio::time::sleep(LOOK).await;
        let lost = all().iter().map(|waiting| waiting.give_up()).sum();
        self.over.notify_waiters();
        lost
    }
}

impl Work {
    async fn run(self) {
        match self {
            Self::Otlp(otlp, taker, stats) => otlp.run(taker, stats).await,
            Self::Http(service, taker, stats) => {
                let wrap = |log_entry| als::LogEntries::HttpLogs(als::HttpAccessLogEntries { log_entry });
                service.run(taker, stats, wrap).await;
            }
            Self::Tcp(service, taker, stats) => {
                let wrap = |log_entry| als::LogEntries::TcpLogs(als::TcpAccessLogEntries { log_entry });
                service.run(taker, stats, wrap).await;
            }
        }
    }
}

impl Otlp {
    async fn run(self, mut taker: Taker<LogRecord>, stats: Stats) {
        let connection = call::nobody();
        let fate = Fate::new("log records", stats.exports);
        while let Some(mut batch) = taker.batch(self.every).await {
            let log_records = std::mem::take(&mut batch.entries);
            let count = log_records.len() as u64;
            let request = ExportLogsServiceRequest {
                resource_logs: vec![ResourceLogs {
                    resource: Some(self.resource.clone()),
                    scope_logs: vec![ScopeLogs { log_records, ..ScopeLogs::default() }],
                    ..ResourceLogs::default()
                }],
            };
            let sending = async {
                match &self.target {
                    Target::Grpc(service) => {
                        let answer =
                            service.ask::<ExportLogsServiceResponse>(METHOD, &request, &connection).await;
                        fate.note(service.cluster.name(), &answer);
                        // What it refused of them is lost as well.
                        answer.ok().map(|a| a.partial_success.unwrap_or_default().rejected_log_records)
                    }
                    Target::Http(collector) => {
                        let body = request.encode_to_vec();
                        let answer = collector.export(body, &connection).await;
                        fate.note(collector.cluster.name(), &answer);
                        answer.ok().map(|()| 0)
                    }
                }
            };
            match tokio::time::timeout(LATEST, sending).await.ok().flatten() {
                Some(refused) => stats.dropped.add(u64::try_from(refused).unwrap_or(0)),
                None => stats.dropped.add(count),
            }
        }
    }
}

#[cfg(test)]
mod tests;
