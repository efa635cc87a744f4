//! The record of requests: what a request pays that is not kept, a good one that is, and one that failed after two tries; and how
//! many allocations that is.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use criterion::Criterion;
use http::{HeaderValue, Method, StatusCode};
use weft_proxy::codec::Protocol;
use weft_proxy::http::record::{Heads, ended};
use weft_proxy::io::ConnectionInfo;
use weft_proxy::router::{Flow, Scratch};
use weft_proxy::telemetry::record::{By, Candidate, Choice, Compared, Try, Verdict, numbers};
use weft_proxy::telemetry::{Flag, Flags, StreamInfo};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, and how often it was asked by each thread.
struct Counting;

// SAFETY: memory is the system allocator's alone; what is added is a cell that needs none and has no destructor.
#[allow(unsafe_code, reason = "an allocator cannot be written without")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// An id that is one of the sample, or is not: every hundredth is.
fn id(sampled: bool) -> HeaderValue {
    let kept = |number: u64| {
        let id =
            format!("{number:08x}-0000-4000-a000-{:012x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16);
        let before = numbers().kept.value();
        end(&flow(&id), Duration::from_millis(2));
        (id, numbers().kept.value() > before)
    };
    let found = (1..).map(kept).find(|(_, is)| *is == sampled);
    HeaderValue::from_str(&found.unwrap().0).unwrap()
}

/// A request with two decisions and a host that was chosen of two.
fn flow(id: &str) -> Flow {
    let mut info = StreamInfo::new(Some(Protocol::Http2));
    info.status = Some(StatusCode::OK);
    info.method = Some(Method::GET);
    info.path = "/api/users/1234567?page=2".into();
    info.authority = "user-service:8080".into();
    info.details = Some("via_upstream".into());
    info.cluster = Some("outbound|8080|stable|user-service.ecotrack.svc.cluster.local".into());
    info.attempts = 1;
    info.upstream_host = Some(address("10.1.2.3:8080"));
    info.upstream_first_byte = Some(Instant::now());
    let trail = &mut info.trail;
    trail.id = Some(HeaderValue::from_str(id).unwrap());
    trail.decided(By::Jwt, Verdict::Allowed, None);
    trail.decided(By::Rbac, Verdict::Allowed, Some("ns[ecotrack]-policy[ecotrack-authz]-rule[0]".into()));
    trail.began = Some(info.start);
    trail.choice = Some(choice());
    Flow::new(info)
}

fn choice() -> Choice {
    let host = |at: &str| Candidate { address: Some(address(at)), active: 3, health: 0 };
    let candidates = [Some(host("10.1.2.3:8080")), Some(host("10.1.2.4:8080"))];
    Choice {
        policy: "least request",
        compared: Compared { hosts: 5, healthy: 5, candidates },
        refused: Vec::new(),
    }
}

fn failed(id: &HeaderValue) -> Flow {
    let flow = flow(id.to_str().unwrap());
    flow.info(|info| {
        info.status = Some(StatusCode::SERVICE_UNAVAILABLE);
        info.flags.set(Flag::UpstreamConnectionFailure);
        info.attempts = 2;
        let mut flags = Flags::default();
        flags.set(Flag::UpstreamConnectionFailure);
        let one = Try {
            began: info.start,
            took: Duration::from_millis(1),
            host: Some(address("10.1.2.3:8080")),
            connection: None,
            status: None,
            failure: Some("connection failure"),
            words: Some("Connection refused".into()),
            flags,
            choice: Some(choice()),
            pause: Some(Duration::from_millis(25)),
        };
        info.trail.tries = vec![one.clone(), one];
    });
    flow
}

fn end(flow: &Flow, took: Duration) {
    thread_local! {
        static SCENE: (ConnectionInfo, Scratch) = {
            let mut connection = ConnectionInfo::between(address("10.1.2.9:44321"), address("10.1.2.3:8080"));
            connection.listener = "virtualInbound".into();
            connection.filter_chain = "0.0.0.0_8080".into();
            (connection, Scratch::default())
        };
    }
    SCENE.with(|(connection, scratch)| {
        flow.info(|info| ended(connection, flow, info, scratch, took, Heads::default()))
    });
}

pub fn benches(c: &mut Criterion) {
    let sampled = id(true);
    let good = flow(sampled.to_str().unwrap());
    let passed = flow(id(false).to_str().unwrap());
    let failed = failed(&sampled);
    for (what, flow) in
        [("is not kept", &passed), ("is good and kept", &good), ("failed after two tries", &failed)]
    {
        // What is pushed out is freed while the next one is kept, as in a proxy that runs for long.
        (0..20_000).for_each(|_| end(flow, Duration::from_millis(2)));
        let before = ALLOCATIONS.get();
        (0..1000).for_each(|_| end(flow, Duration::from_millis(2)));
        println!("a request that {what}: {} allocations", (ALLOCATIONS.get() - before) as f64 / 1000.0);
        c.bench_function(&format!("record/a request that {what}"), |b| {
            b.iter(|| end(black_box(flow), Duration::from_millis(2)));
        });
    }
    c.bench_function("record/decisions and choice of a request", |b| {
        let name: std::sync::Arc<str> = "ns[ecotrack]-policy[ecotrack-authz]-rule[0]".into();
        let info = std::cell::RefCell::new(StreamInfo::new(None));
        b.iter(|| {
            let trail = &mut info.borrow_mut().trail;
            **trail = weft_proxy::telemetry::record::Trail::default();
            trail.decided(By::Rbac, Verdict::Allowed, Some(name.clone()));
            trail.began = Some(Instant::now());
            trail.choice = Some(choice());
            black_box(trail);
        });
    });
}
