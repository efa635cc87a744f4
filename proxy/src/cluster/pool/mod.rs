//! Connection pools, one per worker: a connection is used on the thread that made it, so no pool has a lock.
//!
//! HTTP/1 connections wait in a stack (the last one used is the first one used again, so the tail can idle out); HTTP/2
//! connections are shared up to a number of streams. Circuit breakers are the cluster's, and exact over all workers.

mod upstream;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use foldhash::fast::RandomState;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub use self::upstream::Upstream;
use super::connect::{ConnectFailure, Connected, ConnectionGuard, connect};
use super::host::{HealthFlag, Host, HostId};
use super::limits::{Permit, RoutingPriority};
use super::{Cluster, HttpMode, Picked};
use crate::codec::{Protocol, h1, h2};
use crate::identity::tls::ConnectOptions;
use crate::io::{Origin, TlsInfo};
use crate::telemetry::peer::Callee;
use crate::telemetry::record::UpstreamLine;

/// A shared HTTP/2 connection takes at most so many streams; then another one is opened.
const H2_STREAMS: usize = 100;

/// What a request asks of its connection.
#[derive(Clone, Debug)]
pub struct Want {
    /// The downstream's protocol, for clusters that follow it.
    pub protocol: Protocol,
    /// The protocols to offer in place of the context's (`istio.alpn`).
    pub alpn: Option<Arc<Vec<Vec<u8>>>>,
    /// The request's authority, for clusters with auto_sni.
    pub authority: Option<Arc<str>>,
    /// What the connection shows of the downstream's.
    pub origin: Option<Arc<Origin>>,
    /// Whose circuit breakers.
    pub priority: RoutingPriority,
}

/// Why there is no connection to send on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcquireError {
    /// Too many requests wait for a connection.
    Overflow,
    /// There is a connection, but too many requests are under way.
    TooManyRequests,
    /// It could not be made.
    Connect(ConnectFailure),
}

#[derive(Clone, PartialEq, Eq)]
struct Key {
    cluster: u64,
    host: HostId,
    transport: usize,
    /// `None`: ALPN decides.
    protocol: Option<Protocol>,
    alpn: Option<Arc<Vec<Vec<u8>>>>,
    authority: Option<Arc<str>>,
    origin: Option<Arc<Origin>>,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // What hardly ever tells two keys apart is left to the comparison.
        state.write_u64(self.cluster ^ self.host.0.rotate_left(32));
        if let Some(authority) = &self.authority {
            authority.hash(state);
        }
        if let Some(origin) = &self.origin {
            origin.hash(state);
        }
    }
}

/// A connection's place in its pool. Dropping it lets a waiting request make another one.
struct Place(Key);

impl Place {
    fn take(key: &Key) -> Self {
        with(key, |p| p.places += 1);
        Self(key.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // When the thread ends, the pools may be gone before what is in them.
        let _ = POOLS.try_with(|pools| {
            let mut pools = pools.borrow_mut();
            let Some(pool) = pools.get_mut(&self.0) else { return };
            pool.places -= 1;
            pool.wake();
        });
    }
}

/// What is known of a connection besides its protocol.
struct Line {
    key: Key,
    cluster: Weak<Cluster>,
    host: Arc<Host>,
    tls: Option<Arc<TlsInfo>>,
    local: Option<SocketAddr>,
    /// What is remembered of the callee: only where requests follow one another.
    callee: Option<Rc<Callee>>,
    facts: Rc<UpstreamLine>,
    opened: Instant,
    _guard: ConnectionGuard,
    _place: Place,
}

impl Line {
    /// Whether the connection may serve another request.
    fn is_fresh(&self, requests: u64, now: Instant) -> bool {
        let Some(cluster) = self.cluster.upgrade() else { return false };
        let config = cluster.config();
        !self.host.has_flag(HealthFlag::Removed)
            && config.max_requests.is_none_or(|max| requests < max)
            && config.max_duration.is_none_or(|max| now - self.opened < max)
    }
}

impl Line {
    /// Counts a connection whose last request this is, for it has had as many as it may.
    fn count_if_used_up(&self, requests: u64) {
        let Some(cluster) = self.cluster.upgrade() else { return };
        if cluster.config().max_requests == Some(requests) {
            cluster.stats().upstream_cx_max_requests.inc();
        }
    }
}

struct Idle {
    connection: h1::client::Connection,
    line: Box<Line>,
    since: Instant,
}

struct Shared {
    connection: RefCell<h2::client::Connection>,
    line: Box<Line>,
    used: Cell<Instant>,
}

/// A connection for one request.
enum Found {
    One(Idle),
    Share(Rc<Shared>),
}

#[derive(Default)]
struct Pool {
    idle: Vec<Idle>,
    shared: Vec<Rc<Shared>>,
    /// Requests that wait because the breaker allows no further connection.
    waiting: VecDeque<oneshot::Sender<()>>,
    /// Connections of this worker that are being made or exist.
    places: usize,
}

impl Pool {
    fn wake(&mut self) {
        // One that has gone meanwhile is passed over.
        while let Some(next) = self.waiting.pop_front() {
            if next.send(()).is_ok() {
                return;
            }
        }
    }
}

thread_local! {
    static POOLS: RefCell<HashMap<Key, Pool, RandomState>> = RefCell::default();
    /// Connections being made whose requests were given up.
    static LEFT: RefCell<Vec<Attempt>> = RefCell::default();
}

/// `f` must drop no connection: its place is given back to the pool that is borrowed here.
fn with<R>(key: &Key, f: impl FnOnce(&mut Pool) -> R) -> R {
    POOLS.with_borrow_mut(|pools| match pools.get_mut(key) {
        Some(pool) => f(pool),
        None => f(pools.entry(key.clone()).or_default()),
    })
}

/// Lets one waiting request look again. When the thread ends, the pools may be gone before the streams on them.
fn wake(key: &Key) {
    let _ = POOLS.try_with(|pools| pools.borrow_mut().get_mut(key).map(Pool::wake));
}

/// Gets a connection for one request to the picked host: an idle one, a share of an HTTP/2 one, or a new one.
pub async fn acquire(cluster: &Arc<Cluster>, picked: Picked, want: &Want) -> Result<Upstream, AcquireError> {
    picked.host().count_request();
    let key = key(cluster, picked.host(), want);
    let limits = cluster.limits(want.priority);
    let stats = cluster.stats();
    let mut pending = None;
    loop {
        if let Some(found) = take(cluster, &key) {
            let Some(permit) = limits.requests.try_acquire() else {
                put_back(found);
                return Err(AcquireError::TooManyRequests);
            };
            return Ok(Upstream::new(found, picked, permit, cluster.clone()));
        }
        if pending.is_none() {
            let permit = limits.pending.try_acquire().ok_or(AcquireError::Overflow)?;
            pending = Some(Pending::new(cluster, permit));
            stats.upstream_rq_pending_total.inc();
        }
        let allowed = cluster.allows_connection(picked.host(), want.priority);
        let permit = match allowed.then(|| limits.connections.try_acquire()).flatten() {
            Some(permit) => permit,
            // A pool without any connection may always have one, or one worker could be starved by the others.
            None if with(&key, |p| p.places == 0) => limits.connections.acquire_over(),
            None => {
                let (sender, receiver) = oneshot::channel();
                with(&key, |p| p.waiting.push_back(sender));
                // Woken or forgotten, there is something to try again.
                let _ = receiver.await;
                continue;
            }
        };
        // Boxed, for a request that finds a connection should not carry the room for making one.
        let place = Place::take(&key);
        let opening = open(cluster.clone(), place, picked.host().clone(), permit, want.alpn.clone());
        Opening(Some(Box::pin(opening))).await?;
    }
}

fn key(cluster: &Cluster, host: &Host, want: &Want) -> Key {
    let config = cluster.config();
    let protocol = match config.http {
        HttpMode::Http1 => Some(Protocol::Http11),
        HttpMode::Http2 => Some(Protocol::Http2),
        HttpMode::Downstream if want.protocol == Protocol::Http2 => Some(Protocol::Http2),
        HttpMode::Downstream => Some(Protocol::Http11),
        HttpMode::Auto => None,
    };
    Key {
        cluster: cluster.id(),
        host: host.id(),
        transport: host.facts().transport,
        protocol,
        alpn: want.alpn.clone(),
        authority: want.authority.clone().filter(|_| config.auto_sni || config.auto_san),
        origin: want.origin.clone(),
    }
}

type Attempt = Pin<Box<dyn Future<Output = Result<(), AcquireError>>>>;

/// A connection being made. When the request is given up that it is made for it is made all the same, as in Envoy, and counted:
/// another request may use it.
struct Opening(Option<Attempt>);

impl Future for Opening {
    type Output = Result<(), AcquireError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(attempt) = &mut self.0 else { return Poll::Ready(Ok(())) };
        let done = attempt.as_mut().poll(cx);
        if done.is_ready() {
            self.0 = None;
        }
        done
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(attempt) = self.0.take() {
            // Not a task at once: the worker may be ending. [`sweep`] makes it one.
            let _ = LEFT.try_with(|left| left.borrow_mut().push(attempt));
        }
    }
}

/// Makes a connection and puts it into the pool.
async fn open(
    cluster: Arc<Cluster>,
    place: Place,
    host: Arc<Host>,
    permit: Permit,
    alpn: Option<Arc<Vec<Vec<u8>>>>,
) -> Result<(), AcquireError> {
    let key = place.0.clone();
    let config = cluster.config();
    let name = key.authority.as_deref().map(|a| a.rsplit_once(':').map_or(a, |(host, _)| host));
    let options = ConnectOptions {
        sni: name.filter(|_| config.auto_sni),
        alpn: alpn.as_ref().map(|a| a.as_slice()),
        fallback: match key.protocol {
            Some(Protocol::Http2) => &[b"h2"],
            Some(_) => &[b"http/1.1"],
            None => &[b"h2", b"http/1.1"],
        },
        san: name.filter(|_| config.auto_san),
        host: None,
        origin: key.origin.as_deref(),
    };
    let connected = connect(&cluster, &host, permit, options).await.map_err(AcquireError::Connect)?;
    let Connected { io, tls, local, facts, guard } = connected;
    let two = match key.protocol {
        Some(protocol) => protocol == Protocol::Http2,
        None => tls.as_ref().is_some_and(|t| t.alpn.as_deref() == Some(b"h2")),
    };
    let now = Instant::now();
    let line = Box::new(Line {
        key: key.clone(),
        cluster: Arc::downgrade(&cluster),
        host,
        callee: Callee::new(tls.as_ref().filter(|_| !two).map(|tls| &**tls)).map(Rc::new),
        tls,
        local,
        facts,
        opened: now,
        _guard: guard,
        _place: place,
    });
    if two {
        let connection = h2::client::Connection::new(io, config.h2).await.map_err(|e| {
            AcquireError::Connect(ConnectFailure { timeout: false, reason: e.details.into() })
        })?;
        cluster.stats().upstream_cx_http2_total.inc();
        let shared = Shared { connection: RefCell::new(connection), line, used: Cell::new(now) };
        with(&key, |p| {
            p.shared.push(Rc::new(shared));
            // Others that wait can share it.
            p.wake();
        });
    } else {
        cluster.stats().upstream_cx_http1_total.inc();
        let connection = h1::client::Connection::new(io, config.h1);
        with(&key, |p| p.idle.push(Idle { connection, line, since: now }));
    }
    Ok(())
}

/// A connection that is ready for a request, if there is one. Those found dead on the way are dropped.
fn take(cluster: &Cluster, key: &Key) -> Option<Found> {
    let now = Instant::now();
    let most = H2_STREAMS.min(cluster.config().h2.max_concurrent_streams as usize).max(1);
    let mut dead = Vec::new();
    let mut dead_shared = Vec::new();
    let found = with(key, |pool| {
        while let Some(mut idle) = pool.idle.pop() {
            let old = cluster.config().idle_timeout.is_some_and(|t| now - idle.since >= t);
            if !old && !idle.connection.is_dead() && idle.line.is_fresh(idle.connection.requests(), now) {
                return Some(Found::One(idle));
            }
            dead.push(idle);
        }
        let mut i = 0;
        while i < pool.shared.len() {
            let shared = &pool.shared[i];
            let mut connection = shared.connection.borrow_mut();
            if connection.is_dead() || !shared.line.is_fresh(connection.requests(), now) {
                drop(connection);
                dead_shared.push(pool.shared.swap_remove(i));
                continue;
            }
            if connection.active() < connection.max_streams().min(most) {
                drop(connection);
                return Some(Found::Share(pool.shared[i].clone()));
            }
            i += 1;
        }
        None
    });
    drop(dead);
    found
}

fn put_back(found: Found) {
    if let Found::One(idle) = found {
        let key = idle.line.key.clone();
        with(&key, |p| {
            p.idle.push(idle);
            p.wake();
        });
    }
}

/// A request that waits for a connection.
struct Pending {
    cluster: Arc<Cluster>,
    _permit: Permit,
}

impl Pending {
    fn new(cluster: &Arc<Cluster>, permit: Permit) -> Self {
        cluster.stats().upstream_rq_pending_active.add(1);
        Self { cluster: cluster.clone(), _permit: permit }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.cluster.stats().upstream_rq_pending_active.add(-1);
    }
}

/// Drops idle connections whose time is over, that their peer has ended, or whose host or cluster is gone. Each worker calls
/// it once a second, within its tasks' runtime; nothing else keeps an idle connection's end from being noticed only by the next request.
pub fn sweep() {
    for attempt in LEFT.take() {
        tokio::task::spawn_local(attempt);
    }
    let now = Instant::now();
    let mut dead = Vec::new();
    let mut dead_shared = Vec::new();
    POOLS.with_borrow_mut(|pools| {
        for pool in pools.values_mut() {
            let idle = std::mem::take(&mut pool.idle);
            for mut idle in idle {
                let cluster = idle.line.cluster.upgrade();
                let limit = cluster.as_ref().and_then(|c| c.config().idle_timeout);
                let old = limit.is_some_and(|t| now - idle.since >= t);
                if old && let Some(cluster) = cluster {
                    cluster.stats().upstream_cx_idle_timeout.inc();
                }
                if old || idle.connection.is_dead() || !idle.line.is_fresh(idle.connection.requests(), now) {
                    dead.push(idle);
                } else {
                    pool.idle.push(idle);
                }
            }
            let shared = std::mem::take(&mut pool.shared);
            for shared in shared {
                let cluster = shared.line.cluster.upgrade();
                let limit = cluster.as_ref().and_then(|c| c.config().idle_timeout);
                let mut connection = shared.connection.borrow_mut();
                let active = connection.active();
                if active > 0 {
                    shared.used.set(now);
                }
                let old = active == 0 && limit.is_some_and(|t| now - shared.used.get() >= t);
                let gone = old || connection.is_dead() || !shared.line.is_fresh(connection.requests(), now);
                drop(connection);
                if gone { dead_shared.push(shared) } else { pool.shared.push(shared) }
            }
        }
        pools.retain(|_, p| p.places > 0 || !p.waiting.is_empty());
    });
    drop(dead);
    drop(dead_shared);
}
