//! A flow of requests, every outcome counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::http::{Answer, Connection, Failure, Request};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to send.
#[derive(Clone)]
pub struct Plan {
    /// Where to.
    pub to: SocketAddr,
    /// The request; `{n}` in its path becomes the request's number.
    pub request: Request,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Requests in all; without end if none.
    pub requests: Option<u64>,
    /// Requests per second over all connections; as fast as answers come if none.
    pub rate: Option<f64>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests that were sent.
    pub sent: u64,
    /// Answers with a status below 400.
    pub good: u64,
    /// Everything else, by what happened.
    pub bad: BTreeMap<String, u64>,
    /// Connections that the other side ended without having said so (`connection: close`).
    pub dropped: u64,
    /// Good answers by the key that the plan's classifier gave them.
    pub by_key: BTreeMap<String, u64>,
    /// The longest that one answer took.
    pub slowest: Duration,
}

impl Tally {
    /// Answers with a key.
    pub fn of(&self, key: &str) -> u64 {
        self.by_key.get(key).copied().unwrap_or_default()
    }

    /// Requests without a good answer.
    pub fn failed(&self) -> u64 {
        self.bad.values().sum()
    }

    /// Requests, failures and drops in a few words.
    pub fn words(&self) -> String {
        let mut words = format!("{} requests, {} failed", self.sent, self.failed());
        for (what, count) in self.bad.iter().take(3) {
            let _ = write!(words, " ({count} x {what})");
        }
        let _ = write!(words, ", {} connections dropped", self.dropped);
        words
    }

    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.good += other.good;
        self.dropped += other.dropped;
        self.slowest = self.slowest.max(other.slowest);
        for (key, count) in other.bad {
            *self.bad.entry(key).or_default() += count;
        }
        for (key, count) in other.by_key {
            *self.by_key.entry(key).or_default() += count;
        }
    }
}

/// Names a good answer, so that answers can be counted by what they say.
pub type Classify = Arc<dyn Fn(&Answer) -> String + Send + Sync>;

/// A flow that is under way.
pub struct Load {
    stop: Arc<AtomicBool>,
    number: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    tasks: JoinSet<Tally>,
}

impl Load {
    /// Begins to send.
    pub fn start(plan: Plan, classify: Classify) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (number, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..plan.connections {
            let share = Share {
                plan: plan.clone(),
                classify: classify.clone(),
                stop: stop.clone(),
                number: number.clone(),
                failed: failed.clone(),
                began,
            };
            tasks.spawn(share.send());
        }
        Self { stop, number, failed, tasks }
    }

    /// How many requests were begun so far.
    pub fn begun(&self) -> u64 {
        self.number.load(Relaxed)
    }

    /// How many requests have had no good answer so far.
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Lets what is under way end, sends no more, and counts.
    pub async fn stop(self) -> Tally {
        self.stop.store(true, Relaxed);
        self.finish().await
    }

    /// Waits for the plan's last answer, and counts.
    pub async fn finish(mut self) -> Tally {
        let mut all = Tally::default();
        while let Some(tally) = self.tasks.join_next().await {
            all.add(tally.unwrap_or_default());
        }
        all
    }
}

/// One connection's share.
struct Share {
    plan: Plan,
    classify: Classify,
    stop: Arc<AtomicBool>,
    number: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    began: Instant,
}

impl Share {
    /// Sends until told to stop. A connection that ends is opened again.
    async fn send(self) -> Tally {
        let mut tally = Tally::default();
        let mut connection: Option<Connection<tokio::net::TcpStream>> = None;
        while !self.stop.load(Relaxed) {
            let n = self.number.fetch_add(1, Relaxed);
            if self.plan.requests.is_some_and(|most| n >= most) {
                break;
            }
            if let Some(rate) = self.plan.rate {
                // By the clock, not by answers: a slow answer does not slow the others down.
                tokio::time::sleep_until(self.began + Duration::from_secs_f64(n as f64 / rate)).await;
            }
            tally.sent += 1;
            let at = Instant::now();
            let reused = connection.is_some();
            let outcome = exchange(&self.plan, n, &mut connection).await;
            tally.slowest = tally.slowest.max(at.elapsed());
            let what = match outcome {
                Ok(answer) => {
                    if answer.head.closes() {
                        connection = None;
                    }
                    if answer.status() < 400 {
                        tally.good += 1;
                        *tally.by_key.entry((self.classify)(&answer)).or_default() += 1;
                        continue;
                    }
                    let body = String::from_utf8_lossy(&answer.body);
                    let words: Vec<_> = body.split_whitespace().collect();
                    let words: String = words.join(" ").chars().take(80).collect();
                    format!("{} {words}", answer.status())
                }
                Err(failure) => {
                    connection = None;
                    if reused {
                        tally.dropped += 1;
                    }
                    // Somebody who is not there is not asked ten thousand times a second.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    failure.to_string()
                }
            };
            *tally.bad.entry(what).or_default() += 1;
            self.failed.fetch_add(1, Relaxed);
        }
        tally
    }
}

async fn exchange(
    plan: &Plan,
    n: u64,
    connection: &mut Option<Connection<tokio::net::TcpStream>>,
) -> Result<Answer, Failure> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(Connection::open(plan.to, PATIENCE).await?),
    };
    if plan.request.path.contains("{n}") {
        let mut request = plan.request.clone();
        request.path = request.path.replace("{n}", &n.to_string());
        return open.exchange(&request).await;
    }
    open.exchange(&plan.request).await
}
