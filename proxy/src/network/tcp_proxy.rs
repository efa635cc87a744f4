//! The terminal filter for bytes: picks a cluster and a host, connects, and copies both ways.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use xds_protos::envoy::extensions::filters::network::tcp_proxy::v3 as pb;

use super::living::{EVERY, Living, walk};
use super::rate_limit::Refusal;
use super::record::{self, End};
use crate::cluster::balance::xxh64;
use crate::cluster::connect::{Connected, connect};
use crate::cluster::{Cluster, ConnectFailure, Outcome, PickContext, RoutingPriority};
use crate::codec::{Drain, DrainPhase};
use crate::filters::peer_metadata::local_workload;
use crate::identity::tls::ConnectOptions;
use crate::io::metadata::{Ruler, Ruling};
use crate::io::{ConnectionInfo, CopyEnd, Direction, Io, Origin, TlsInfo, copy_bidirectional};
use crate::router::refused_hosts;
use crate::state::error::collect;
use crate::state::{CompileContext, ConfigError, Slot, SlotTable};
use crate::telemetry::access_log::{AccessLog, AccessLogConfig, Configured, LogContext, LogType};
use crate::telemetry::flags::Flags;
use crate::telemetry::istio::{Changes, Far, Reporter, Side};
use crate::telemetry::record::{Choice, Compared, Try};
use crate::telemetry::registry::{Counter, Gauge, Group};
use crate::telemetry::{Closing, Flag, StreamInfo};

/// Envoy's default for how long a connection may be silent.
const IDLE: Duration = Duration::from_secs(3600);

/// A compiled TCP proxy.
pub struct TcpProxyConfig {
    /// Clusters and their weights.
    clusters: Vec<(Arc<Slot<Cluster>>, u32)>,
    /// All clusters, where the TLS server name is the name of one.
    by_server_name: Option<Arc<SlotTable<Cluster>>>,
    idle_timeout: Option<Duration>,
    max_duration: Option<Duration>,
    /// How much longer than that a connection may last by chance, as a part of it.
    duration_jitter: f64,
    max_attempts: u32,
    /// How long to wait between attempts: the first time at most, and ever.
    backoff: Option<(Duration, Duration)>,
    /// Hash the client's address.
    hash_source: bool,
    logs: Vec<AccessLog>,
    stats: Arc<Stats>,
    reporter: Option<Reporter>,
    /// How often living connections count their bytes; none: at their end only.
    count_every: Option<Duration>,
}

/// What is wanted of Istio's metrics.
#[derive(Clone, Debug)]
pub struct Reports {
    /// How often living connections count their bytes; none: at their end only.
    pub every: Option<Duration>,
    /// What is otherwise than by default.
    pub changes: Arc<Changes>,
}

struct Stats {
    _group: Arc<Group>,
    total: Counter,
    no_route: Counter,
    rx_bytes: Counter,
    tx_bytes: Counter,
    idle_timeout: Counter,
    max_duration: Counter,
    active: Gauge,
}

/// Proxies with the same prefix count together, and go on counting when their listener is replaced.
static STATS: LazyLock<Mutex<HashMap<String, Weak<Stats>>>> = LazyLock::new(Mutex::default);

impl Stats {
    fn of(prefix: &str) -> Arc<Self> {
        let mut all = STATS.lock();
        if let Some(stats) = all.get(prefix).and_then(Weak::upgrade) {
            return stats;
        }
        let group = Group::new(format!("tcp.{prefix}"), Vec::new());
        let stats = Arc::new(Self {
            total: group.counter("downstream_cx_total"),
            no_route: group.counter("downstream_cx_no_route"),
            rx_bytes: group.counter("downstream_cx_rx_bytes_total"),
            tx_bytes: group.counter("downstream_cx_tx_bytes_total"),
            idle_timeout: group.counter("idle_timeout"),
            max_duration: group.counter("max_downstream_connection_duration"),
            active: group.gauge("downstream_cx_active"),
            _group: group,
        });
        all.retain(|_, stats| stats.strong_count() > 0);
        all.insert(prefix.to_owned(), Arc::downgrade(&stats));
        stats
    }
}

impl TcpProxyConfig {
    /// The clusters that get connections, each with its weight.
    pub fn clusters(&self) -> &[(Arc<Slot<Cluster>>, u32)] {
        &self.clusters
    }

    /// Compiles the message. `reports`: Istio's metrics are wanted.
    pub fn compile(
        proto: &pb::TcpProxy,
        direction: Direction,
        reports: Option<Reports>,
        ctx: &CompileContext,
    ) -> Result<Self, Vec<ConfigError>> {
        use pb::tcp_proxy::ClusterSpecifier;
        let mut errors = Vec::new();
        let clusters = match &proto.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => vec![(ctx.clusters.slot(name), 1)],
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                weighted.clusters.iter().map(|c| (ctx.clusters.slot(&c.name), c.weight)).collect()
            }
            _ => Vec::new(),
        };
        if clusters.iter().map(|(_, w)| u64::from(*w)).sum::<u64>() == 0 {
            errors.push(ConfigError::new(
                "cluster",
                "names no cluster, or clusters whose weights are all zero",
            ));
        }
        let mut logs = Vec::new();
        for (i, log) in proto.access_log.iter().enumerate() {
            let path = format!("access_log[{i}]");
            if let Some(log) = collect(AccessLogConfig::compile(log, ctx), &path, &mut errors) {
                match log.open() {
                    Ok(log) => logs.push(log),
                    Err(e) => errors.push(ConfigError::new(path, format!("the log cannot be opened: {e}"))),
                }
            }
        }
        let mut hash_source = false;
        for (i, policy) in proto.hash_policy.iter().enumerate() {
            use xds_protos::envoy::r#type::v3::hash_policy::PolicySpecifier;
            match &policy.policy_specifier {
                Some(PolicySpecifier::SourceIp(_)) => hash_source = true,
                Some(PolicySpecifier::FilterState(_)) => {
                    let path = format!("hash_policy[{i}].filter_state");
                    errors.push(ConfigError::unsupported(path, "hashing filter state"));
                }
                None => errors.push(ConfigError::missing(format!("hash_policy[{i}].policy_specifier"))),
            }
        }
        let backoff = proto.backoff_options.as_ref().map(|backoff| {
            let base = backoff.base_interval.as_ref().and_then(xds_protos::duration::to_std);
            let base = base.unwrap_or_default().max(Duration::from_millis(1));
            let most = backoff.max_interval.as_ref().and_then(xds_protos::duration::to_std);
            (base, most.unwrap_or(base * 10))
        });
        if backoff.is_some_and(|(base, most)| most < base) {
            errors.push(ConfigError::new("backoff_options.max_interval", "is below base_interval"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let time = |d: Option<&prost_types::Duration>, default| match d {
            None => default,
            Some(d) => xds_protos::duration::to_std(d).filter(|d| !d.is_zero()),
        };
        let side = if direction == Direction::Inbound { Side::Destination } else { Side::Source };
        Ok(Self {
            clusters,
            by_server_name: None,
            idle_timeout: time(proto.idle_timeout.as_ref(), Some(IDLE)),
            max_duration: time(proto.max_downstream_connection_duration.as_ref(), None),
            duration_jitter: proto
                .max_downstream_connection_duration_jitter_percentage
                .map_or(0.0, |p| p.value.clamp(0.0, 100.0) / 100.0),
            max_attempts: proto.max_connect_attempts.unwrap_or(1).max(1),
            backoff,
            hash_source,
            logs,
            stats: Stats::of(&proto.stat_prefix),
            count_every: reports.as_ref().map_or(Some(EVERY), |r| r.every),
            reporter: reports.map(|r| Reporter::new(side, Arc::new(local_workload(&ctx.node)), r.changes)),
        })
    }

    /// Connections go to the cluster that their TLS server name names, as far as they have one.
    pub fn go_by_server_name(&mut self, ctx: &CompileContext) {
        self.by_server_name = Some(ctx.clusters.table().clone());
    }

    /// The cluster that a connection goes to; none where it names one that is not there.
    fn choose(&self, server_name: Option<&str>) -> Option<Arc<Slot<Cluster>>> {
        match (&self.by_server_name, server_name.filter(|name| !name.is_empty())) {
            // What strangers say must not make slots.
            (Some(table), Some(name)) => table.find(name),
            _ => Some(self.by_weight().clone()),
        }
    }

    /// One of the clusters, by weight.
    fn by_weight(&self) -> &Arc<Slot<Cluster>> {
        let total: u64 = self.clusters.iter().map(|(_, w)| u64::from(*w)).sum();
        let mut point = if self.clusters.len() > 1 { fastrand::u64(..total.max(1)) } else { 0 };
        for (slot, weight) in &self.clusters {
            if point < u64::from(*weight) {
                return slot;
            }
            point -= u64::from(*weight);
        }
        &self.clusters[self.clusters.len() - 1].0
    }
}

/// Serves a connection until it ends.
pub async fn serve(downstream: Io, info: &Rc<ConnectionInfo>, config: &TcpProxyConfig, drain: Drain) {
    let mut stream = StreamInfo::new(None);
    config.stats.total.inc();
    config.stats.active.add(1);
    let slot = config.choose(info.sni.as_deref());
    let mut callee = Callee::default();
    let living = Rc::new(Living::new(config.stats.rx_bytes, config.stats.tx_bytes));
    let by = relay(downstream, info, config, slot.as_deref(), &mut stream, &mut callee, &living, drain).await;
    if let Some(notes) = &info.notes {
        stream.bytes_received += notes.refused.load(std::sync::atomic::Ordering::Relaxed);
        stream.metadata = notes.metadata.lock().clone();
        stream.connection_termination_details = notes.termination.lock().clone().map(Into::into);
        if let Some(details) = *notes.unauthorized.lock() {
            stream.flags.set(Flag::UnauthorizedExternalService);
            stream.details = Some(details.into());
        }
    }
    config.stats.active.add(-1);
    let last = living.last(stream.bytes_received, stream.bytes_sent);
    if let Some(reporter) = &config.reporter {
        reporter.tcp_closed(&stream, info, callee.far(info), last);
    }
    log(&stream, info, config, callee.cluster.as_deref());
    record::ended(info, &stream, callee.cluster.as_deref(), End::by(by));
}

/// Counts and logs a connection that was not let in.
pub fn refused(info: &ConnectionInfo, config: &TcpProxyConfig, refusal: Refusal) {
    config.stats.total.inc();
    let mut stream = StreamInfo::new(None);
    if let Some(flag) = refusal.flag {
        stream.flags.set(flag);
    }
    stream.connection_termination_details = refusal.limit;
    stream.closing = Some(Box::new(Closing::ours(refusal.close, false)));
    log(&stream, info, config, None);
    if let Some(notes) = &info.notes {
        notes.ruled(Ruling { by: Ruler::Limit, allowed: false, tried: false, name: None });
    }
    record::ended(info, &stream, None, End::by("this proxy, before it read anything"));
}

fn log(stream: &StreamInfo, info: &ConnectionInfo, config: &TcpProxyConfig, cluster: Option<&Cluster>) {
    let context = LogContext {
        occasion: LogType::TcpConnectionEnd,
        configured: cluster.map(|cluster| cluster as &dyn Configured),
        ..LogContext::new(stream, info)
    };
    config.logs.iter().for_each(|log| log.log(&context));
}

#[derive(Default)]
struct Callee {
    cluster: Option<Arc<Cluster>>,
    tls: Option<Arc<TlsInfo>>,
}

impl Callee {
    fn far<'a>(&'a self, info: &'a ConnectionInfo) -> Far<'a> {
        let inbound = info.direction == Direction::Inbound;
        let upstream = self.tls.as_deref();
        Far {
            workload: None,
            service: self.cluster.as_ref().and_then(|c| c.config().service.as_ref()),
            source_principal: match inbound {
                true => info.peer_id(),
                false => upstream.and_then(|t| t.local_id.as_ref()),
            },
            destination_principal: match inbound {
                true => info.tls.as_ref().and_then(|t| t.local_id.as_ref()),
                false => upstream.and_then(|t| t.peer_id.as_ref()),
            },
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "the parts of one function that ends early in many places")]
async fn relay(
    mut downstream: Io,
    info: &ConnectionInfo,
    config: &TcpProxyConfig,
    slot: Option<&Slot<Cluster>>,
    stream: &mut StreamInfo,
    callee: &mut Callee,
    living: &Rc<Living>,
    mut drain: Drain,
) -> &'static str {
    let Some((slot, cluster)) = slot.and_then(|slot| Some((slot, slot.get()?))) else {
        config.stats.no_route.inc();
        stream.flags.set(Flag::NoClusterFound);
        return not_connected(stream);
    };
    stream.cluster = Some(slot.name().clone());
    callee.cluster = Some(cluster.clone());
    let Some((connected, active)) = open(&cluster, info, config, stream).await else {
        return not_connected(stream);
    };
    let Connected { io: mut upstream, tls, local, facts, guard } = connected;
    callee.tls.clone_from(&tls);
    (stream.upstream_local, stream.upstream_tls) = (local, tls);
    stream.trail.line = Some(facts);
    if let Some(reporter) = &config.reporter {
        living.counts_for(reporter.tcp_opened(stream, info, callee.far(info)));
    }
    let _member = config.count_every.map(|every| walk(living, every));
    let too_long = async {
        match config.max_duration {
            Some(limit) => {
                let longer = 1.0 + fastrand::f64() * config.duration_jitter;
                tokio::time::sleep(limit.mul_f64(longer)).await;
            }
            None => std::future::pending().await,
        }
    };
    // A cluster that is replaced lets go of its connections only when they end: the tunnel keeps the small guard alone.
    drop(cluster);
    let copied = &living.copied;
    let end = tokio::select! {
        end = copy_bidirectional(&mut downstream, &mut upstream, config.idle_timeout, copied) => Some(end),
        () = too_long => {
            config.stats.max_duration.inc();
            stream.flags.set(Flag::DurationTimeout);
            None
        }
        () = drain.reached(DrainPhase::Closing) => None,
    };
    drop((guard, active));
    stream.bytes_received = copied.received.get();
    stream.bytes_sent = copied.sent.get();
    if let Some(time) = &info.round_trip {
        time.measure();
    }
    stream.closing = closing(end, stream, info, copied.reset.get()).map(Box::new);
    match end {
        // What one side did the other is to see.
        Some(CopyEnd::DownstreamError) if copied.reset.get() => upstream.reset(),
        Some(CopyEnd::UpstreamError) if copied.reset.get() => downstream.reset(),
        _ => {}
    }
    match end {
        None if stream.flags.has(Flag::DurationTimeout) => "this proxy, after as long as it may last",
        None => "this proxy, which drained",
        Some(CopyEnd::Finished) if copied.first_ended.get() == Some(true) => "the client, in order",
        Some(CopyEnd::Finished) => "the upstream, in order",
        // Envoy has no flag for it.
        Some(CopyEnd::Idle) => {
            config.stats.idle_timeout.inc();
            "this proxy, because nothing moved for as long as that may be"
        }
        // A network filter closed it, not the client.
        Some(CopyEnd::DownstreamError) if denied(info) => "this proxy, by what was decided",
        Some(CopyEnd::DownstreamError) => {
            stream.flags.set(Flag::DownstreamConnectionTermination);
            "the client, by breaking it off"
        }
        Some(CopyEnd::UpstreamError) => {
            stream.flags.set(match copied.reset.get() {
                true => Flag::UpstreamRemoteReset,
                false => Flag::UpstreamConnectionTermination,
            });
            "the upstream, by breaking it off"
        }
    }
}

/// Why the connections are closed that were there, in Envoy's words; none if nobody of us does.
fn closing(end: Option<CopyEnd>, stream: &StreamInfo, info: &ConnectionInfo, reset: bool) -> Option<Closing> {
    let ours = |why| Some(Closing::ours(why, true));
    match end {
        None if stream.flags.has(Flag::DurationTimeout) => ours("max_connection_duration_reached"),
        None => ours("filter_chain_is_being_removed"),
        Some(CopyEnd::Idle) => ours("tcp_session_idle_timeout"),
        Some(CopyEnd::DownstreamError) if denied(info) => {
            let asked = info.notes.as_ref().is_some_and(|n| n.unauthorized.lock().is_some());
            ours(if asked { "ext_authz_close" } else { "rbac_deny_close" })
        }
        Some(CopyEnd::DownstreamError) if reset => Some(Closing::reset(true)),
        Some(CopyEnd::UpstreamError) if reset => Some(Closing::reset(false)),
        Some(CopyEnd::Finished | CopyEnd::DownstreamError | CopyEnd::UpstreamError) => None,
    }
}

/// No upstream was reached, for a reason that Envoy has a number for.
fn not_connected(stream: &mut StreamInfo) -> &'static str {
    let why = if stream.flags.has(Flag::NoClusterFound) {
        "tcp_initializion_failure:3"
    } else if stream.flags.has(Flag::UpstreamOverflow) {
        "tcp_initializion_failure:2"
    } else if stream.flags.has(Flag::NoHealthyUpstream) {
        "tcp_initializion_failure:1"
    } else {
        "tcp_initializion_failure:0"
    };
    stream.closing = Some(Box::new(Closing::ours(why, false)));
    "this proxy, which reached no upstream"
}

fn denied(info: &ConnectionInfo) -> bool {
    info.notes.as_ref().is_some_and(|n| n.termination.lock().is_some() || n.unauthorized.lock().is_some())
}

/// Lists a try that brought no connection.
fn failed(stream: &mut StreamInfo, began: Instant, host: Option<SocketAddr>, failure: &'static str) {
    stream.trail.tries.push(Try {
        began,
        took: began.elapsed(),
        host,
        connection: None,
        status: None,
        failure: Some(failure),
        words: stream.upstream_failure.clone().filter(|_| host.is_some()),
        flags: Flags::default(),
        choice: stream.trail.choice.take(),
        pause: None,
    });
}

/// Connects to one host after the other.
async fn open(
    cluster: &Arc<Cluster>,
    info: &ConnectionInfo,
    config: &TcpProxyConfig,
    stream: &mut StreamInfo,
) -> Option<(Connected, crate::cluster::Picked)> {
    let mut tried = Vec::new();
    let limits = cluster.limits(RoutingPriority::Default);
    let hash = config.hash_source.then(|| xxh64(info.remote.ip().to_canonical().to_string().as_bytes(), 0));
    let mut wait = config.backoff;
    while stream.attempts < config.max_attempts {
        let Some(permit) = limits.connections.try_acquire() else {
            failed(stream, Instant::now(), None, "circuit breaker open");
            stream.flags.set(Flag::UpstreamOverflow);
            return None;
        };
        let original_dst = info.local_restored.then_some(info.local);
        let compared = Cell::new(Compared::default());
        let context = PickContext {
            hash,
            tried: &tried,
            repicks: 5,
            original_dst,
            compared: Some(&compared),
            ..PickContext::default()
        };
        let picked = cluster.pick(&context);
        stream.trail.choice = Some(Choice {
            policy: cluster.config().balancing.policy.name(),
            compared: compared.get(),
            refused: if picked.is_ok() { Vec::new() } else { refused_hosts(cluster) },
        });
        let Ok(picked) = picked else {
            failed(stream, Instant::now(), None, "no healthy host");
            stream.flags.set(Flag::NoHealthyUpstream);
            return None;
        };
        let host = picked.host().clone();
        stream.attempts += 1;
        stream.upstream_host = host.address().ip();
        if !cluster.allows_connection(&host, RoutingPriority::Default) {
            failed(stream, Instant::now(), host.address().ip(), "circuit breaker open");
            stream.flags.set(Flag::UpstreamOverflow);
            return None;
        }
        let header = cluster.config().transport(&host).is_some_and(|t| t.proxy.is_some());
        let origin = Origin::of(info, header);
        let options = ConnectOptions { origin: origin.as_ref(), ..ConnectOptions::default() };
        let began = Instant::now();
        stream.trail.began = Some(began);
        match connect(cluster, &host, permit, options).await {
            Ok(connected) => {
                stream.trail.connected = Some(Instant::now());
                stream.trail.ready = stream.trail.connected;
                cluster.connected(&host);
                cluster.stats().upstream_rq_total.inc();
                cluster.report(&host, Outcome::Answered(http::StatusCode::OK));
                return Some((connected, picked));
            }
            Err(ConnectFailure { reason, .. }) => {
                cluster.report(&host, Outcome::ConnectFailed);
                stream.upstream_failure =
                    Some(reason.replace(' ', "_")).filter(|words| !words.is_empty()).map(Into::into);
                failed(stream, began, host.address().ip(), "not connected");
                tried.push(host.id());
                if let Some((next, most)) = wait.as_mut().filter(|_| stream.attempts < config.max_attempts) {
                    tokio::time::sleep(next.mul_f64(fastrand::f64())).await;
                    *next = (*next * 2).min(*most);
                }
            }
        }
    }
    cluster.stats().upstream_cx_connect_attempts_exceeded.inc();
    stream.flags.set(Flag::UpstreamConnectionFailure);
    stream.flags.set_limit_last();
    None
}
