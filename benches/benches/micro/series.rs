//! Sets of labels of Istio's metrics: what a request pays, what a set takes in memory, and what a scrape of many costs those that
//! count meanwhile.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::Criterion;
use weft_proxy::admin::prometheus::{self, Tags};
use weft_proxy::admin::{snapshot, stats::Filter};
use weft_proxy::codec::Protocol;
use weft_proxy::io::ConnectionInfo;
use weft_proxy::telemetry::StreamInfo;
use weft_proxy::telemetry::istio::{Far, Reporter, Service, Side, Workload};

/// Lines that a set of HTTP has: a counter, and three histograms of 22.
const LINES: usize = 67;

fn workload(name: &str) -> Arc<Workload> {
    Arc::new(Workload {
        name: name.to_owned(),
        namespace: "ecotrack".to_owned(),
        app: name.to_owned(),
        version: "v1".to_owned(),
        cluster: "Kubernetes".to_owned(),
        canonical_service: name.to_owned(),
        canonical_revision: "v1".to_owned(),
    })
}

/// A reporter, and callers whose requests it has counted once each.
struct Sets {
    reporter: Reporter,
    callers: Vec<(Arc<Workload>, Arc<str>)>,
    service: Arc<Service>,
    stream: StreamInfo,
    connection: ConnectionInfo,
}

impl Sets {
    fn new(sets: usize) -> Self {
        let mut stream = StreamInfo::new(Some(Protocol::Http11));
        stream.status = Some(http::StatusCode::OK);
        let address = "127.0.0.1:1".parse().unwrap();
        let caller = |number: usize| {
            let name = format!("caller-{number}");
            (workload(&name), format!("spiffe://cluster.local/ns/ecotrack/sa/{name}").into())
        };
        let service = Arc::new(Service {
            host: "user-service.ecotrack.svc.cluster.local".to_owned(),
            name: "user-service".to_owned(),
            namespace: "ecotrack".to_owned(),
        });
        let made = Self {
            reporter: Reporter::new(Side::Destination, workload("user-service"), Arc::default()),
            callers: (0..sets).map(caller).collect(),
            service,
            stream,
            connection: ConnectionInfo::between(address, address),
        };
        (0..sets).for_each(|number| made.count(number));
        made
    }

    /// Counts a request of a caller.
    fn count(&self, number: usize) {
        let (caller, principal) = &self.callers[number % self.callers.len()];
        let far = Far {
            workload: Some(caller),
            service: Some(&self.service),
            source_principal: Some(principal),
            ..Far::default()
        };
        self.reporter.request(&self.stream, &self.connection, None, far);
    }
}

fn scrape() -> String {
    prometheus::render(&snapshot::read(), &Filter::default(), Tags::Istio)
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
}

/// The processor's time that this thread has had.
fn processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

/// How long a request's counting takes while others scrape, or nobody does: median, 99.9 % and the longest.
fn counting(sets: &Sets, scraping: bool) -> [Duration; 3] {
    let done = AtomicBool::new(false);
    let mut times = Vec::with_capacity(1_000_000);
    std::thread::scope(|scope| {
        if scraping {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    black_box(scrape());
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(2);
        let mut number = 0;
        while Instant::now() < end && times.len() < times.capacity() {
            let began = Instant::now();
            sets.count(number);
            times.push(began.elapsed());
            number += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    times.sort();
    [times.len() / 2, times.len() * 999 / 1000, times.len() - 1].map(|at| times[at])
}

pub fn benches(c: &mut Criterion) {
    weft_proxy::telemetry::istio::set_budget(20_000);
    let before = resident();
    let many = Sets::new(10_000);
    let taken = resident() - before;
    println!(
        "10,000 sets of labels: {:.1} MB, {} bytes for each of them, {} for each line of a scrape",
        taken as f64 / 1e6,
        taken / 10_000,
        taken / 10_000 / LINES
    );
    let mut next = 0;
    c.bench_function("series/count a request of one of 10,000 sets", |b| {
        b.iter(|| {
            next += 1;
            many.count(next);
        });
    });
    drop(many);
    let some = Sets::new(50_000_usize.div_ceil(LINES));
    let page = scrape();
    println!("a scrape of {} lines has {:.1} MB", page.lines().count(), page.len() as f64 / 1e6);
    drop(page);
    let began = processor();
    (0..10).for_each(|_| drop(black_box(scrape())));
    println!("and takes {:?} of a processor", (processor() - began) / 10);
    c.bench_function("series/scrape of 50,000 lines", |b| b.iter(|| black_box(scrape())));
    for scraping in [false, true] {
        let [median, most, longest] = counting(&some, scraping);
        let what = if scraping { "while others scrape without a pause" } else { "while nobody scrapes" };
        println!("counting a request {what}: median {median:?}, 99.9 % {most:?}, longest {longest:?}");
    }
}
