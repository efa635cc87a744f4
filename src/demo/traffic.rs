//! Steady requests through the ingress, as a client outside the mesh sends them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::client::Connection;

/// The host that the example's gateway serves.
pub(super) const HOST: &str = "api.ecotrack.platform.dev";
/// Connections, each with one request at a time.
const CONNECTIONS: u32 = 8;
/// Longer than any timeout of the example's routes.
const LIMIT: Duration = Duration::from_secs(35);
/// One round of requests: path, and whether the header that leads to the canary is there.
const ROUND: [(&str, bool); 10] = [
    ("/api/users", false),
    ("/api/products", false),
    ("/api/users", true),
    ("/api/users", false),
    ("/api/orders", false),
    ("/api/users", false),
    ("/api/products", false),
    ("/api/users", true),
    ("/api/users", false),
    ("/api/orders", false),
];

/// What the client has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) sent: AtomicU64,
    /// Answered with a status below 400.
    pub(super) fine: AtomicU64,
    /// Answered otherwise, or not at all.
    pub(super) failed: AtomicU64,
}

/// Requests until dropped.
pub(super) struct Traffic {
    pub(super) seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

impl Traffic {
    /// `rate` requests a second, in all.
    pub(super) fn start(ingress: SocketAddr, rate: u32) -> Self {
        let seen = Arc::new(Seen::default());
        let mut tasks = JoinSet::new();
        for number in 0..CONNECTIONS.min(rate) {
            let every = Duration::from_secs(1) * CONNECTIONS.min(rate) / rate;
            tasks.spawn(client(ingress, every, number, seen.clone()));
        }
        Self { seen, _tasks: tasks }
    }
}

async fn client(ingress: SocketAddr, every: Duration, number: u32, seen: Arc<Seen>) {
    // Clients begin spread over the interval, and over the round.
    tokio::time::sleep(every * number / CONNECTIONS).await;
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = None;
    let mut round = ROUND.iter().cycle().skip(number as usize);
    loop {
        ticks.tick().await;
        let Some((path, canary)) = round.next() else { return };
        seen.sent.fetch_add(1, Relaxed);
        let fine = match tokio::time::timeout(LIMIT, send(&mut connection, ingress, path, *canary)).await {
            Ok(Ok(status)) => status < 400,
            _ => {
                connection = None;
                false
            }
        };
        let counter = if fine { &seen.fine } else { &seen.failed };
        counter.fetch_add(1, Relaxed);
    }
}

async fn send(
    connection: &mut Option<Connection>,
    ingress: SocketAddr,
    path: &str,
    canary: bool,
) -> anyhow::Result<u16> {
    let open = match connection.take().filter(|c| !c.is_closed()) {
        Some(open) => connection.insert(open),
        None => connection.insert(Connection::open(ingress).await?),
    };
    let mut request = Request::get(path).header("host", HOST);
    if canary {
        request = request.header("canary", "true");
    }
    Ok(open.send(request.body(Full::<Bytes>::default())?).await?.status.as_u16())
}
