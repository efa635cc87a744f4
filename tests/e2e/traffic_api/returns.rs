//! What callers notice of an endpoint that returns and is slow when it gets too much at once, as one with empty caches is.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::*;
use crate::support::http;

/// Between half open and the full share.
const WINDOW: Duration = Duration::from_secs(5);
/// How long it takes for a request that is one too many. Less than half of it is the machine's noise.
const SLOW: Duration = Duration::from_millis(800);
/// Clients, each of which sends so often at most.
const CLIENTS: usize = 8;
const EACH: Duration = Duration::from_millis(80);

/// A service that fails when told to; when it is back, it does as much at once as one may ask of it that has not done it for long: 15
/// requests a second at first, and 75 at the end of the window. What is more is slow.
#[derive(Default)]
struct Cold {
    fails: AtomicBool,
    back: Mutex<Back>,
}

#[derive(Default)]
struct Back {
    is: bool,
    since: Option<Instant>,
    count: u32,
}

impl Cold {
    fn start() -> (u16, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, service) = (listener.local_addr().unwrap().port(), Arc::new(Self::default()));
        let own = service.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let own = own.clone();
                std::thread::spawn(move || {
                    let mut writer = stream.try_clone().unwrap();
                    for line in BufReader::new(stream).lines() {
                        let Ok(line) = line else { return };
                        if line.is_empty() {
                            let status = if own.fails.load(Ordering::Relaxed) { 500 } else { own.work() };
                            let _ = write!(writer, "HTTP/1.1 {status} X\r\ncontent-length: 1\r\n\r\na");
                        }
                    }
                });
            }
        });
        (port, service)
    }

    fn work(&self) -> u16 {
        let too_many = {
            let mut back = self.back.lock().unwrap();
            let age = back.since.get_or_insert_with(Instant::now).elapsed().as_secs_f64();
            back.count += 1;
            let budget = 10.0 + 15.0 * age + 30.0 * age * age / WINDOW.as_secs_f64();
            back.is && age < WINDOW.as_secs_f64() && f64::from(back.count) > budget
        };
        if too_many {
            std::thread::sleep(SLOW);
        }
        200
    }

    fn returns(&self) {
        *self.back.lock().unwrap() = Back { is: true, ..Back::default() };
        self.fails.store(false, Ordering::Relaxed);
    }
}

/// Ends the clients, also if the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A request: when it was sent, how long it took, its status, and whether the one that returns answered.
#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    took: Duration,
    status: u16,
    cold: bool,
}

/// What so many of a hundred are not slower than.
fn percentile(samples: impl Iterator<Item = Sample>, percent: f64) -> Duration {
    let mut all: Vec<_> = samples.map(|sample| sample.took).collect();
    all.sort();
    assert!(all.len() >= 30, "{} requests say nothing", all.len());
    all[((all.len() as f64 * percent / 100.0) as usize).min(all.len() - 1)]
}

#[test]
fn while_an_endpoint_returns_its_share_grows_and_requests_are_no_slower_than_before() {
    let (port, cold) = Cold::start();
    let steady = Service::start("b");
    let rule = destination_rule(
        "{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 1, interval: 100ms, baseEjectionTime: 1s, maxEjectionPercent: 100}}",
    )
    .replace("namespace: shop}", "namespace: shop, annotations: {weft.dev/return-window: 5s}}");
    let endpoints = entry("a", &[(&steady, "r/z")]).replace(
        "---\n",
        &format!("    - {{address: 127.0.0.1, ports: {{http: {port}}}, locality: r/z}}\n---\n"),
    );
    let mesh = Mesh::start("127.49.46.1", "127.49.46.2", &(endpoints + &rule));
    let circuit = || {
        let page = http::get(SocketAddr::new(mesh.at.ip(), 15000), "/clusters").unwrap().1;
        let place = format!("127.0.0.1:{port}::circuit_breaker_status::");
        page.lines().find_map(|l| Some(l.split_once(&place)?.1.to_owned())).unwrap_or_default()
    };
    let (over, samples) = (AtomicBool::new(false), Mutex::new(Vec::<Sample>::new()));
    let (began, returned) = std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let at = Instant::now();
                    let (status, body) = mesh.get("/", "");
                    let took = at.elapsed();
                    samples.lock().unwrap().push(Sample { at, took, status, cold: body == "a" });
                    std::thread::sleep(EACH.saturating_sub(took));
                }
            });
        }
        let _end = End(&over);
        let began = Instant::now();
        eventually("the time before", || began.elapsed() >= Duration::from_secs(3));
        cold.fails.store(true, Ordering::Relaxed);
        eventually("it is ejected", || circuit() == "open");
        let failed = Instant::now();
        cold.returns();
        let answers = |sample: &&Sample| sample.cold && sample.status == 200 && sample.at >= failed;
        let mut returned = failed;
        eventually("it answers again", || {
            let first = samples.lock().unwrap().iter().filter(answers).map(|s| s.at).min();
            returned = first.unwrap_or(failed);
            first.is_some()
        });
        assert_eq!(circuit(), "half-open");
        eventually("the time after", || returned.elapsed() >= WINDOW + Duration::from_secs(3));
        assert_eq!(circuit(), "closed");
        (began, returned)
    });
    let samples = samples.into_inner().unwrap();
    let between = |from: Instant, time: Duration| {
        samples.iter().copied().filter(move |s| s.at >= from && s.at < from + time)
    };
    let (before, during, after) = (
        || between(began, Duration::from_millis(2500)),
        || between(returned, WINDOW),
        || between(returned + WINDOW, Duration::from_secs(3)),
    );
    for sample in during().chain(after()) {
        assert_eq!(sample.status, 200);
    }
    // What the other one took meanwhile is the machine's doing.
    let noise = [
        percentile(before(), 99.0),
        percentile(after(), 99.0),
        percentile(during().filter(|s| !s.cold), 99.5),
    ];
    let p99 = percentile(during(), 99.0);
    let quarters: Vec<f64> = (0..4)
        .map(|quarter| {
            let all: Vec<_> = between(returned + WINDOW / 4 * quarter, WINDOW / 4).collect();
            all.iter().filter(|s| s.cold).count() as f64 / all.len() as f64
        })
        .collect();
    println!(
        "p99 {p99:?} while it returns; before, after, and of the other one {noise:?}; shares {quarters:.2?}"
    );
    assert!(p99 <= *noise.iter().max().unwrap() + SLOW / 2, "{p99:?} over {noise:?}, shares {quarters:.2?}");
    assert!(quarters.is_sorted_by(|a, b| a < b), "its share grows by steps: {quarters:.2?}");
    assert!(quarters[0] < 0.25 && quarters[3] > 0.35, "{quarters:.2?}");
}
