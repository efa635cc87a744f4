//! A proxy from start to drain.
//!
//! The main thread is the control thread: xDS, certificates, DNS, ejection, admin. Each worker is a thread with a runtime of
//! its own, where everything of a connection lives and nothing is shared but what is counted exactly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::admin::{AdminState, Readiness, SetLevel, Surface, logging, serve};
use crate::agent::dns;
use crate::bootstrap::{Ads, Identity, Start, endpoint, node_info};
use crate::codec::DrainPhase;
use crate::identity::workload::Current;
use crate::listen::{SocketTable, WorkerCommand, accept};
use crate::state::{Engine, Tables};
use crate::telemetry::access_log::Sink;
use crate::xds::{Client, ClientConfig, Credentials, ResourceSink, Service, Subscriptions};

pub use crate::bootstrap::ProxyArgs;

/// How often the control thread looks at ejected hosts and files.
const TICK: Duration = Duration::from_millis(100);

/// Runs a proxy until it is told to end.
pub fn main(args: ProxyArgs) -> anyhow::Result<()> {
    weft_certs::memory::leave_no_core_dumps();
    let level = logging::start(&args.log_level)?;
    let start = args.start()?;
    let dns = dns::start(&args.dns, &start.node)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(start, level, dns))
}

async fn run(start: Start, level: SetLevel, dns: Option<dns::Dns>) -> anyhow::Result<()> {
    let workers = (0..start.concurrency).map(worker).collect::<std::io::Result<Vec<_>>>()?;
    let wanted = Subscriptions::new();
    let node = Arc::new(node_info(&start.node));
    let engine = Engine::new(Tables::default(), node, SocketTable::new(workers), wanted.clone());
    engine.set_listener_drain_time(start.listener_drain);
    crate::network::recheck::set(start.recheck);
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
    // Over plain text no secret is asked for: anybody could answer.
    if identity.is_some() && start.ads.as_ref().is_some_and(|a| a.roots.is_some()) {
        engine.follow_roots();
    }
    let ads = match &start.ads {
        Some(ads) => {
            let identity = identity.as_ref().map(|(i, _)| i);
            Some(match &dns {
                // The names of the mesh come on the same stream.
                Some(dns) => {
                    wanted.want_table();
                    connect(ads, &start, identity, wanted, dns.before(engine.clone()))?
                }
                None => connect(ads, &start, identity, wanted, engine.clone())?,
            })
        }
        None => None,
    };
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
    });
    for (address, surface) in [
        (start.admin, Surface::Admin),
        (start.status, Surface::Status),
        (start.prometheus, Surface::Prometheus),
    ] {
        if let Some(address) = address {
            serve(address, surface, state.clone()).await?;
        }
    }
    tokio::task::spawn_local(engine.tables().jwks.run());
    let ticking = engine.clone();
    tokio::task::spawn_local(async move {
        let mut interval = tokio::time::interval(TICK);
        loop {
            interval.tick().await;
            ticking.tick(Instant::now());
            crate::cluster::pool::sweep();
        }
    });
    told_to_end(&state).await?;
    drain(&state, start.drain).await;
    Ok(())
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
    tokio::task::spawn_local(client.run());
    tokio::task::spawn_local(async move {
        loop {
            let certificate = changes.borrow_and_update().clone();
            if let Some(certificate) = certificate {
                engine.set_identity(&certificate);
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    });
    Ok((current, status))
}

/// How renewing the workload's certificate goes, to be followed.
type Renewal = tokio::sync::watch::Receiver<crate::identity::workload::Status>;

/// Opens the stream to the control plane.
fn connect(
    ads: &Ads,
    start: &Start,
    identity: Option<&Current>,
    wanted: Subscriptions,
    sink: impl ResourceSink + 'static,
) -> anyhow::Result<Arc<crate::xds::Stats>> {
    let config = client_config(ads, start, identity, Service::Aggregated)?;
    let client = Client::new(config, wanted, sink);
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

async fn told_to_end(state: &AdminState) -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
        () = state.quit.notified() => {}
    }
    Ok(())
}

/// Ends in order: no new connections; answers say that theirs ends; idle connections, which may have a request on its way,
/// get half of the time before they are closed; what is still open at the deadline is cut. A second signal ends at once.
async fn drain(state: &AdminState, limit: Duration) {
    tracing::info!(?limit, "draining");
    state.readiness.drain();
    state.engine.drain(DrainPhase::Draining);
    let began = Instant::now();
    let mut closing = false;
    let again = told_to_end(state);
    tokio::pin!(again);
    while state.engine.active_connections() > 0 && began.elapsed() < limit {
        if !closing && began.elapsed() >= limit / 2 {
            closing = true;
            state.engine.drain(DrainPhase::Closing);
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
            _ = &mut again => break,
        }
    }
    tracing::info!(left = state.engine.active_connections(), "ending");
    Sink::flush_all(Duration::from_secs(1));
}
