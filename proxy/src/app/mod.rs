//! A proxy from start to drain.
//!
//! The main thread is the control thread: xDS, certificates, DNS, ejection, admin. Each worker is a thread with a runtime of
//! its own, where everything of a connection lives and nothing is shared but what is counted exactly.

mod application;
mod ending;
mod pressure;
mod purge;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use weft_events::{Event, Kind, Outcome, Severity};

use crate::admin::push::{self, Push};
use crate::admin::{AdminState, Readiness, SetLevel, Surface, logging, relay, serve};
use crate::agent::dns;
use crate::agent::{Door, Reporter, Sidecar};
use crate::bootstrap::{Ads, Identity, Start, endpoint, node_info};
use crate::identity::workload::Current;
use crate::listen::{SocketTable, WorkerCommand, accept};
use crate::state::saved::{self, SavedError, Store};
use crate::state::{CompileContext, Engine, Kept, NodeInfo, Role, Tables};
use crate::telemetry::access_log::Sink;
use crate::telemetry::{istio, record, tap};
use crate::xds::{Client, ClientConfig, Credentials, ResourceSink, Service, Shared, Subscriptions};

pub use crate::bootstrap::ProxyArgs;

/// How often the control thread looks at ejected hosts and files.
const TICK: Duration = Duration::from_millis(100);

/// Runs a proxy until it is told to end.
pub fn main(args: ProxyArgs) -> anyhow::Result<()> {
    weft_certs::memory::leave_no_core_dumps();
    let level = logging::start(&args.log.log_level, args.log.log_format)?;
    let start = args.start()?;
    tell_events(&args, &start)?;
    let dns = dns::start(&args.dns, &start.node)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(start, level, dns))
}

/// Takes the process's events from here on.
fn tell_events(args: &ProxyArgs, start: &Start) -> anyhow::Result<()> {
    let node = node_info(&start.node);
    let component = if node.role == Role::Gateway { "gateway" } else { "proxy" };
    // `KIND~IP~NAME.NAMESPACE~DOMAIN`; of a bootstrap of one's own it is whatever the node is called.
    let full = node.id.split('~').nth(2).unwrap_or(&node.id);
    let namespace = node.meta("NAMESPACE").to_owned();
    let workload = full.strip_suffix(&format!(".{namespace}")).unwrap_or(full).to_owned();
    weft_events::start(&args.events, weft_events::Origin { component, namespace, workload }).with_context(
        || format!("--security-log {}", args.events.security_log.clone().unwrap_or_default().display()),
    )
}

async fn run(start: Start, level: SetLevel, dns: Option<dns::Dns>) -> anyhow::Result<()> {
    let workers = (0..start.concurrency).map(worker).collect::<std::io::Result<Vec<_>>>()?;
    let wanted = Subscriptions::new();
    let node = Arc::new(node_info(&start.node));
    let itself = node.clone();
    let role = node.role;
    let own = node.metadata.get("PROXY_CONFIG").unwrap_or(&serde_json::Value::Null);
    let reporter = Reporter::read(node.meta("AUTO_REGISTER_GROUP"), own)?;
    let engine = Engine::new(Tables::default(), node, SocketTable::new(workers), wanted.clone());
    engine.set_listener_drain_time(start.listener_drain);
    crate::network::recheck::set(start.recheck);
    istio::set_budget(start.stats.metric_series);
    record::set(start.record.settings(start.concurrency));
    tap::hide(start.record.redact.clone());
    if let Some(path) = &start.outlier_log {
        let log = Sink::open(path).with_context(|| {
            format!("cluster_manager.outlier_detection.event_log_path {}", path.display())
        })?;
        crate::cluster::outlier::events::log_to(log);
    }
    for (cluster, server) in &start.sds {
        ask_for_secrets(server, &start, engine.add_sds_server(cluster), &engine)?;
    }
    for (kind, name, bytes) in &start.resources {
        engine.add_static(*kind, name, bytes).map_err(|errors| {
            anyhow::anyhow!("static {} {name}: {}", short(*kind), crate::state::error::join(&errors))
        })?;
    }
    let identity = start.identity.as_ref().map(|i| identify(i, &engine)).transpose()?;
    let store = start.ads.as_ref().and(start.state_dir.as_deref());
    let store = store.map(|d| Store::new(d, start.state_key.as_deref(), &start.node.id));
    let kept = store.as_ref().map(|store| restore(store, &engine, dns.as_ref())).unwrap_or_default();
    // Over plain text no secret is asked for: anybody could answer.
    if identity.is_some() && start.ads.as_ref().is_some_and(|a| a.roots.is_some()) {
        engine.follow_roots();
    }
    let (sharing, connections) = tokio::sync::watch::channel(None);
    let beside = Beside { reporter, sharing };
    let ads = match &start.ads {
        Some(ads) => {
            let current = identity.as_ref().map(|(current, _)| current);
            Some(match &dns {
                // The names of the mesh come on the same stream.
                Some(dns) => {
                    wanted.want_table();
                    connect(ads, &start, current, wanted, dns.before(engine.clone()), &kept, beside)?
                }
                None => connect(ads, &start, current, wanted, engine.clone(), &kept, beside)?,
            })
        }
        None => None,
    };
    if let Some(store) = store {
        tokio::task::spawn_local(saved::keep(engine.clone(), store, dns.as_ref().map(dns::Dns::taken)));
    }
    let state = Arc::new(AdminState {
        engine: engine.clone(),
        node: start.node.clone(),
        concurrency: start.concurrency,
        started: Instant::now(),
        ads,
        renewal: identity.as_ref().map(|(_, status)| status.clone()),
        identity: identity.map(|(current, _)| current),
        level,
        dns: dns.map(|dns| Box::new(dns) as _),
        quit: tokio::sync::Notify::new(),
        readiness: Readiness::default(),
        restored: is_whole(&kept),
        role,
        tags: start.stats.stat_tags.unwrap_or_default(),
        tcp_aliases: start.stats.tcp_metric_aliases,
    });
    tokio::task::spawn_local(relay::run(connections, state.clone()));
    for (address, surface) in [
        (start.admin, Surface::Admin),
        (start.status, Surface::Status),
        (start.prometheus, Surface::Prometheus),
    ] {
        if let Some(address) = address {
            serve(address, surface, state.clone()).await?;
        }
    }
    if let Some(address) = start.agent.or(start.metrics_tls) {
        let sidecar = Arc::new(Sidecar::from_environment(start.pod, address.port(), role)?);
        if let Some(address) = start.agent {
            sidecar.serve(address, state.clone()).await?;
        }
        if let Some(address) = start.metrics_tls {
            let current = state.identity.clone();
            let current = current.context(
                "--metrics-tls-port: there is no certificate to serve with, for the workload asks for none",
            )?;
            let door = Door::new(current, engine.mesh_roots());
            sidecar.serve_by_tls(address, door, state.clone()).await?;
        }
    }
    tokio::task::spawn_local(engine.tables().jwks.run());
    tokio::task::spawn_local(engine.tables().tracers.run());
    tokio::task::spawn_local(engine.tables().loggers.run());
    tokio::task::spawn_local(reopen_logs(tokio::signal::unix::signal(
        tokio::signal::unix::SignalKind::user_defined1(),
    )?));
    let (end, _) = tokio::sync::watch::channel(None);
    let pushes = pushes(&start, &engine, itself)?.into_iter();
    let tasks =
        pushes.map(|push| tokio::task::spawn_local(push.run(state.clone(), end.subscribe()))).collect();
    let pushing = ending::Pushing { tasks, end };
    tokio::task::spawn_local(purge::run(engine.clone()));
    if start.shed {
        tokio::task::spawn_local(pressure::watch());
    }
    if !start.stats.metric_expiry.is_zero() {
        tokio::task::spawn_local(expire(start.stats.metric_expiry));
    }
    let ticking = engine.clone();
    tokio::task::spawn_local(async move {
        let mut interval = tokio::time::interval(TICK);
        loop {
            interval.tick().await;
            ticking.tick(Instant::now());
            crate::cluster::pool::sweep();
            crate::telemetry::istio::expire(Instant::now());
        }
    });
    let why = ending::due(&state, &start.ending).await?;
    ending::end(&state, &start.ending, why, pushing).await;
    Ok(())
}

/// Whom metrics are pushed to.
fn pushes(start: &Start, engine: &Engine, node: Arc<NodeInfo>) -> anyhow::Result<Vec<Push>> {
    let context = CompileContext::new(&engine.tables(), node, std::time::SystemTime::now());
    let mut all = match &start.file {
        Some(bootstrap) => push::sinks(bootstrap, &context)
            .map_err(|errors| anyhow::anyhow!("{}", crate::state::error::join(&errors)))?,
        None => Vec::new(),
    };
    if let Some((host, port)) = &start.stats.otlp_metrics {
        let every = start.stats.otlp_metrics_interval;
        anyhow::ensure!(!every.is_zero(), "--otlp-metrics-interval 0s: metrics are pushed at an interval");
        all.push(Push::to_service(host, *port, every, &context));
    }
    Ok(all)
}

/// Opens log files anew whenever SIGUSR1 says that they were rotated.
async fn reopen_logs(mut told: tokio::signal::unix::Signal) {
    while told.recv().await.is_some() {
        tracing::info!("SIGUSR1: opening log files anew");
        Sink::reopen_all();
    }
}

/// Looks at the sets of labels of metrics so often that none stays much longer than it may without being counted under.
async fn expire(idle: Duration) {
    let mut interval =
        tokio::time::interval((idle / 4).clamp(Duration::from_secs(1), Duration::from_secs(60)));
    loop {
        interval.tick().await;
        // There may be many, and this thread has more urgent work.
        let looked = tokio::task::spawn_blocking(move || istio::expire_sets(idle, Instant::now()));
        match looked.await {
            Ok(0) | Err(_) => {}
            Ok(went) => tracing::debug!(went, "idle sets of labels"),
        }
    }
}

/// Whether that is a first configuration: clusters and listeners.
fn is_whole(kept: &[Kept]) -> bool {
    use xds_protos::ResourceType::{Cluster, Listener};
    [Cluster, Listener].iter().all(|kind| kept.iter().any(|k| k.kind == *kind))
}

fn short(kind: xds_protos::ResourceType) -> &'static str {
    kind.type_url().rsplit('.').next().unwrap_or_default()
}

/// Starts a worker's thread.
fn worker(number: usize) -> std::io::Result<mpsc::UnboundedSender<WorkerCommand>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        let runtime = match tokio::runtime::LocalRuntime::new() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "a worker cannot start");
                std::process::exit(1);
            }
        };
        runtime.block_on(async {
            tokio::task::spawn_local(async {
                loop {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    crate::cluster::pool::sweep();
                    istio::forget_expired();
                }
            });
            accept::run(receiver).await;
        });
    })?;
    Ok(sender)
}

/// Gets the workload's certificate and keeps it fresh.
fn identify(identity: &Identity, engine: &Engine) -> anyhow::Result<(Current, Renewal)> {
    let client = identity.client(Vec::new())?;
    let (current, status) = (client.current(), client.status());
    let (mut changes, engine) = (current.clone(), engine.clone());
    // One that was stored is in force before the first connection.
    if let Some(certificate) = changes.borrow_and_update().clone() {
        engine.set_identity(&certificate);
    }
    tokio::task::spawn_local(client.run());
    tokio::task::spawn_local(async move {
        while changes.changed().await.is_ok() {
            let certificate = changes.borrow_and_update().clone();
            if let Some(certificate) = certificate {
                engine.set_identity(&certificate);
            }
        }
    });
    Ok((current, status))
}

/// Takes up what the control plane said in an earlier life; gives what was taken.
fn restore(store: &Store, engine: &Engine, dns: Option<&dns::Dns>) -> Vec<Kept> {
    let saved = match store.load(time::OffsetDateTime::now_utc()) {
        Ok(Some(saved)) => saved,
        Ok(None) => return Vec::new(),
        Err(error) => {
            tracing::warn!(%error, "the stored configuration is not used");
            let severity = match error {
                // An upgrade does that.
                SavedError::Earlier { .. } => Severity::Info,
                _ => Severity::High,
            };
            weft_events::emit(Kind::ConfigRejected, || {
                let words = format!("the stored configuration is not used: {error}");
                Event::new(Kind::ConfigRejected, Outcome::Failed, severity, "stored", words)
            });
            return Vec::new();
        }
    };
    let began = Instant::now();
    let (names, resources): (Vec<_>, Vec<_>) =
        saved.resources.into_iter().partition(|k| k.kind == xds_protos::ResourceType::Names);
    if let (Some(dns), Some(names)) = (dns, names.first()) {
        dns.restore(&names.bytes);
    }
    let kept = engine.restore(resources);
    let count = |kind| kept.iter().filter(|k| k.kind == kind).count();
    let age = saved.at.elapsed().unwrap_or_default().as_secs();
    let (listeners, clusters) =
        (count(xds_protos::ResourceType::Listener), count(xds_protos::ResourceType::Cluster));
    tracing::info!(listeners, clusters, age_s = age, took = ?began.elapsed(),
        "starting with the stored configuration");
    kept
}

/// How renewing the workload's certificate goes, to be followed.
type Renewal = tokio::sync::watch::Receiver<crate::identity::workload::Status>;

/// What goes to the control plane beside what is asked for.
struct Beside {
    /// How the workload is.
    reporter: Option<Reporter>,
    /// Answers to what it asks.
    sharing: tokio::sync::watch::Sender<Option<Shared>>,
}

/// Opens the stream to the control plane.
fn connect(
    ads: &Ads,
    start: &Start,
    identity: Option<&Current>,
    wanted: Subscriptions,
    sink: impl ResourceSink + 'static,
    kept: &[Kept],
    beside: Beside,
) -> anyhow::Result<Arc<crate::xds::Stats>> {
    let config = client_config(ads, start, identity, Service::Aggregated)?;
    let held = kept.iter().map(|k| (k.kind, k.name.clone(), k.version.clone())).collect();
    let mut client = Client::new(config, wanted, sink).holding(held).sharing(beside.sharing);
    if let Some(reporter) = beside.reporter {
        let (sender, report) = tokio::sync::watch::channel(None);
        client = client.reporting(report);
        // Its own stream goes with it: what it cannot serve it does not report on.
        tokio::task::spawn_local(reporter.run(start.pod, sender, async || None));
    }
    let stats = client.stats();
    tokio::task::spawn_local(client.run());
    Ok(stats)
}

/// Opens a stream to an SDS server as soon as something is wanted of it.
fn ask_for_secrets(
    server: &Ads,
    start: &Start,
    wanted: Subscriptions,
    engine: &Engine,
) -> anyhow::Result<()> {
    let config = client_config(server, start, None, Service::Secrets)?;
    let client = Client::new(config, wanted.clone(), engine.clone());
    tokio::task::spawn_local(async move {
        wanted.changed().await;
        client.run().await
    });
    Ok(())
}

fn client_config(
    server: &Ads,
    start: &Start,
    identity: Option<&Current>,
    service: Service,
) -> anyhow::Result<ClientConfig> {
    let mut endpoint = endpoint(&server.address, server.roots.as_ref(), identity)?;
    if let Some(tls) = &mut endpoint.tls {
        tls.server_name.clone_from(&server.server_name);
    }
    Ok(ClientConfig {
        endpoint,
        credentials: Credentials { token: server.token.clone(), headers: server.headers.clone() },
        node: start.node.clone(),
        variant: server.variant,
        service,
    })
}
