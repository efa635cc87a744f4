//! An agent from start to end.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::bail;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use xds_protos::ResourceType;
use xds_protos::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;

use super::relay::Relay;
use super::sds::SecretService;
use super::stats::Stats;
use super::status::{self, StatusPages};
use super::{AgentArgs, Reporter, bootstrap, dns, socket};
use crate::admin::logging;
use crate::bootstrap::endpoint;
use crate::xds::{Client, ClientConfig, Credentials, Service, Subscriptions};

/// Runs an agent until it is told to end.
pub fn main(args: AgentArgs) -> anyhow::Result<()> {
    weft_certs::memory::leave_no_core_dumps();
    let _level = logging::start(&args.log.log_level, args.log.log_format)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(&args))
}

/// How the workload is to be asked, if it enters itself and is to be.
fn reporter(node: &xds_protos::envoy::config::core::v3::Node) -> anyhow::Result<Option<Reporter>> {
    let node = crate::bootstrap::node_info(node);
    let config = node.metadata.get("PROXY_CONFIG").unwrap_or(&serde_json::Value::Null);
    Reporter::read(node.meta("AUTO_REGISTER_GROUP"), config)
}

async fn run(args: &AgentArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let Some(address) = &args.control.xds_address else {
        bail!("say where the control plane is (--xds-address HOST:PORT)");
    };
    let node = args.node.foreign_node(&[])?;
    let reporter = reporter(&node)?;
    let headers = vec![("clusterid".to_owned(), args.node.cluster_id.clone())];
    let identity = args.control.identity(&args.node, address).client(headers.clone())?;
    let (current, certificate) = (identity.current(), identity.status());
    let stats = Stats::default();
    let endpoint = endpoint(address, Some(&args.control.root_cert), Some(&current))?;
    let credentials = Credentials { token: Some(args.control.token_file.clone()), headers };
    let dns = dns::start(&args.dns, &node)?;
    if let Some(dns) = &dns {
        // The foreign proxy does not ask for names; a stream of our own does.
        let (endpoint, credentials) = (endpoint.clone(), credentials.clone());
        let (variant, service, mut node) = (args.control.variant(), Service::Aggregated, node.clone());
        // The workload is entered by the proxy's stream, and goes with it.
        node.metadata.iter_mut().for_each(|metadata| drop(metadata.fields.remove("AUTO_REGISTER_GROUP")));
        let config = ClientConfig { endpoint, credentials, node, variant, service };
        let wanted = Subscriptions::only(ResourceType::Names);
        tokio::task::spawn_local(Client::new(config, wanted, dns.before(dns::Nothing)).run());
    }
    let (sender, report) = watch::channel(None);
    let relay = Relay::new(endpoint, credentials, current.clone(), stats.clone())
        .reporting(reporter.is_some().then_some(report));
    let secrets = SecretService::new(current.clone(), stats.clone());

    let (sds, _sds_file) = socket::listen(&args.sds_socket, "--sds-socket")?;
    let (xds, _xds_file) = socket::listen(&args.xds_socket, "--xds-socket")?;
    let pages = Arc::new(StatusPages { current, certificate, stats, admin: args.admin_address, dns });
    let status = status::listen(args.status_address, pages.clone()).await?;
    if let Some(reporter) = reporter {
        let unready = async move || pages.unready().await;
        tokio::task::spawn_local(reporter.run(args.node.ip, sender, unready));
    }
    // Last, so that whoever waits for the file finds the sockets.
    if let Some(path) = &args.bootstrap {
        bootstrap::write(path, &bootstrap::json(args, &node)?)?;
    }
    tracing::info!(node = node.id, control_plane = address, sds = %args.sds_socket.display(),
        xds = %args.xds_socket.display(), "serving identity and xDS");

    let sds = Server::builder()
        .add_service(SecretDiscoveryServiceServer::new(secrets))
        .serve_with_incoming(UnixListenerStream::new(sds));
    let xds = Server::builder().add_service(relay).serve_with_incoming(UnixListenerStream::new(xds));
    let never: Infallible = tokio::select! {
        never = identity.run() => never,
        never = status => never,
        ended = sds => bail!("the SDS socket is no longer served: {ended:?}"),
        ended = xds => bail!("the xDS socket is no longer served: {ended:?}"),
        _ = terminate.recv() => return Ok(()),
        _ = tokio::signal::ctrl_c() => return Ok(()),
    };
    match never {}
}
