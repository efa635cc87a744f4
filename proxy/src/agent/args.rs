//! The flags of `weft agent`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::bootstrap::{ControlPlaneArgs, DnsArgs, LogArgs, NodeArgs};

/// Serves identity (SDS) and xDS to a foreign proxy such as Envoy, on Istio's UNIX sockets
#[derive(Args, Debug)]
pub struct AgentArgs {
    /// Who the workload is
    #[command(flatten)]
    pub node: NodeArgs,
    /// The control plane
    #[command(flatten)]
    pub control: ControlPlaneArgs,
    /// The pod's DNS
    #[command(flatten)]
    pub dns: DnsArgs,
    /// The UNIX socket on which the proxy gets its secrets (SDS)
    #[arg(long, value_name = "PATH", default_value = "./var/run/secrets/workload-spiffe-uds/socket")]
    pub sds_socket: PathBuf,
    /// The UNIX socket on which the proxy reaches the control plane (ADS)
    #[arg(long, value_name = "PATH", default_value = "./etc/istio/proxy/XDS")]
    pub xds_socket: PathBuf,
    /// Write an Envoy bootstrap that uses the sockets here (- for standard output), for `envoy -c FILE`
    #[arg(long, value_name = "FILE")]
    pub bootstrap: Option<PathBuf>,
    /// Where the proxy's admin interface is to listen
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15000")]
    pub admin_address: SocketAddr,
    /// Where the proxy is to answer /healthz/ready, by asking the agent
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15021")]
    pub ready_address: SocketAddr,
    /// Where the proxy is to answer /stats/prometheus
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15090")]
    pub prometheus_address: SocketAddr,
    /// Where the agent answers /healthz/ready (certificate there, proxy configured and live) and /metrics
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15020")]
    pub status_address: SocketAddr,
    /// What it writes about itself
    #[command(flatten)]
    pub log: LogArgs,
}
