//! What a proxy starts from: flags and environment, or an Envoy bootstrap file.

mod args;
mod ending;
mod file;
mod logged;
mod node;
mod pod_info;
mod record;
mod shared;
mod stats;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use xds_protos::ResourceType;
use xds_protos::envoy::config::bootstrap::v3::Bootstrap;
use xds_protos::envoy::config::core::v3::Node;

pub use args::ProxyArgs;
pub use ending::{Early, Ending, EndingArgs};
pub use logged::LogArgs;
pub use node::node_info;
pub use record::RecordArgs;
pub use shared::{ControlPlaneArgs, DnsArgs, Interception, NodeArgs, RoleArg, XdsMode};
pub use stats::StatsArgs;

use crate::identity::workload::{ClientCertificate, Current, IdentityClient, IdentityConfig, beside};
use crate::xds::{Credentials, Endpoint, Tls, Variant};

/// Everything that is decided before the first resource.
#[derive(Debug)]
pub struct Start {
    /// Who we are.
    pub node: Node,
    /// Worker threads.
    pub concurrency: usize,
    /// Where the admin interface listens.
    pub admin: Option<SocketAddr>,
    /// Where `/healthz/ready` is answered.
    pub status: Option<SocketAddr>,
    /// Where `/stats/prometheus` is answered.
    pub prometheus: Option<SocketAddr>,
    /// Where kubelet's probes of the application and metrics of both are answered.
    pub agent: Option<SocketAddr>,
    /// Where metrics of both are answered by TLS.
    pub metrics_tls: Option<SocketAddr>,
    /// The pod's own address.
    pub pod: IpAddr,
    /// Resources that are there from the start: kind, name, encoded message. Secrets first, then clusters, then listeners.
    pub resources: Vec<(ResourceType, String, Bytes)>,
    /// The control plane, if there is one.
    pub ads: Option<Ads>,
    /// Static clusters that can be asked for secrets, by name; each is connected to when a resource names it.
    pub sds: Vec<(String, Ads)>,
    /// Where events of outlier detection are written.
    pub outlier_log: Option<PathBuf>,
    /// How the workload gets its certificate, if it does.
    pub identity: Option<Identity>,
    /// How the proxy ends when it is told to.
    pub ending: Ending,
    /// Where the last good configuration is kept.
    pub state_dir: Option<PathBuf>,
    /// The key that seals it, if it is not to be there.
    pub state_key: Option<PathBuf>,
    /// How long connections get to end whose listener, or filter chain, was removed or changed.
    pub listener_drain: Duration,
    /// Connections and streams that a new policy denies are closed.
    pub recheck: bool,
    /// Where memory is nearly used up, requests and connections are refused.
    pub shed: bool,
    /// How metrics are kept and called.
    pub stats: StatsArgs,
    /// The bootstrap file, where there is one: it says where metrics are pushed.
    pub file: Option<Box<Bootstrap>>,
    /// Which requests are kept.
    pub record: RecordArgs,
}

/// The control plane's stream.
#[derive(Debug)]
pub struct Ads {
    /// Host and port.
    pub address: String,
    /// Delta or state of the world.
    pub variant: Variant,
    /// TLS, with the roots of this file.
    pub roots: Option<PathBuf>,
    /// The name that the server's certificate must have; none: the address's host.
    pub server_name: Option<String>,
    /// The file of the bearer token.
    pub token: Option<PathBuf>,
    /// Metadata that goes with the stream.
    pub headers: Vec<(String, String)>,
}

/// The certificate service.
#[derive(Debug)]
pub struct Identity {
    /// Host and port.
    pub address: String,
    /// TLS, with the roots of this file; plaintext if there is none.
    pub roots: Option<PathBuf>,
    /// The file of the bearer token.
    pub token: Option<PathBuf>,
    /// Our SPIFFE id's parts.
    pub trust_domain: String,
    /// The namespace.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The lifetime to ask for.
    pub lifetime: Option<Duration>,
    /// Where the last good certificate is kept.
    pub state_dir: Option<PathBuf>,
    /// Whether a certificate is renewed before its end.
    pub automatic: bool,
}

impl Identity {
    /// The client that gets the certificate; `headers` go with each request.
    pub(crate) fn client(&self, headers: Vec<(String, String)>) -> anyhow::Result<IdentityClient> {
        let domain: weft_certs::spiffe::TrustDomain = self.trust_domain.parse()?;
        let id = domain.workload(&self.namespace, &self.service_account)?;
        let config = IdentityConfig {
            id,
            lifetime: self.lifetime,
            state_dir: self.state_dir.clone(),
            automatic: self.automatic,
        };
        let endpoint = endpoint(&self.address, self.roots.as_ref(), None)?;
        let credentials = Credentials { token: self.token.clone(), headers };
        Ok(IdentityClient::new(config, endpoint, credentials))
    }
}

/// The control plane at `address`: with TLS if there are roots, and our certificate if we have one.
pub(crate) fn endpoint(
    address: &str,
    roots: Option<&PathBuf>,
    identity: Option<&Current>,
) -> anyhow::Result<Endpoint> {
    let tls = roots.map(|roots| Tls {
        roots: roots.clone(),
        server_name: None,
        identity: identity.map(|i| ClientCertificate::new(i.clone()) as _),
        beside: identity.map(|i| beside(i.clone())),
    });
    Ok(Endpoint { address: address.parse()?, tls })
}
