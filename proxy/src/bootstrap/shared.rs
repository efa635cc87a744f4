//! The flags that `weft proxy` and `weft agent` share: who the workload is, and where its control plane is.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Identity;
use crate::xds::Variant;

/// What a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// Beside one workload.
    Sidecar,
    /// A proxy of its own, at the mesh's edge.
    Gateway,
}

/// How xDS is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XdsMode {
    /// Only what changed.
    Delta,
    /// State of the world.
    Sotw,
}

/// How the workload's traffic comes to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[clap(rename_all = "UPPER")]
pub enum Interception {
    /// Redirected by the kernel.
    Redirect,
    /// Redirected with its source address kept.
    Tproxy,
    /// Not at all: the application dials the proxy.
    None,
}

impl Interception {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Redirect => "REDIRECT",
            Self::Tproxy => "TPROXY",
            Self::None => "NONE",
        }
    }
}

/// The workload that a proxy stands beside, as its control plane is to know it.
#[derive(Args, Debug)]
pub struct NodeArgs {
    /// What the proxy is for
    #[arg(long, value_enum, default_value_t = RoleArg::Sidecar)]
    pub role: RoleArg,
    /// The workload's (pod's) name; by default the machine's where it enters itself (--auto-register-group), else `proxy`
    #[arg(long, env = "POD_NAME")]
    pub name: Option<String>,
    /// Its namespace
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Its service account
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "default")]
    pub service_account: String,
    /// Its address
    #[arg(long, env = "INSTANCE_IP", default_value = "127.0.0.1")]
    pub ip: IpAddr,
    /// The name of the workload that it is an instance of; the app label or the name by default
    #[arg(long)]
    pub workload_name: Option<String>,
    /// A label, KEY=VALUE; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Where Kubernetes puts the pod's labels and annotations (a downward API volume, files labels and annotations), if it does
    #[arg(long, value_name = "DIR", default_value = "/etc/istio/pod")]
    pub pod_info: PathBuf,
    /// The cluster it runs in
    #[arg(long, default_value = "Kubernetes")]
    pub cluster_id: String,
    /// The mesh it belongs to
    #[arg(long, default_value = "cluster.local")]
    pub mesh_id: String,
    /// Its network
    #[arg(long, default_value = "")]
    pub network: String,
    /// The WorkloadGroup by which the workload is entered into the mesh while the proxy is connected; ISTIO_META_AUTO_REGISTER_GROUP in
    /// the environment does the same. With a readinessProbe in PROXY_CONFIG it is reported whether the workload is well
    #[arg(long, value_name = "NAME", default_value = "")]
    pub auto_register_group: String,
    /// How the workload's traffic comes to the proxy
    #[arg(long, value_enum, default_value_t = Interception::Redirect)]
    pub interception_mode: Interception,
}

/// The pod's DNS, which is answered where the node's metadata has `DNS_CAPTURE` (`ISTIO_META_DNS_CAPTURE=true` in the environment).
#[derive(Args, Debug)]
pub struct DnsArgs {
    /// Where the pod's DNS is answered, by UDP and TCP, if ISTIO_META_DNS_CAPTURE=true says that it is; localhost is both loopbacks
    #[arg(long, value_name = "HOST:PORT", env = "DNS_PROXY_ADDR", default_value = "localhost:15053")]
    pub dns_address: String,
    /// Where the servers stand that names of nobody in the mesh are asked of, and the search domains of applications
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
}

/// The control plane and how the workload proves who it is.
#[derive(Args, Debug)]
pub struct ControlPlaneArgs {
    /// The control plane's host and port
    #[arg(long, value_name = "HOST:PORT")]
    pub xds_address: Option<String>,
    /// How xDS is spoken
    #[arg(long, value_enum, default_value_t = XdsMode::Delta)]
    pub xds_mode: XdsMode,
    /// The control plane's root certificates
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/istio/root-cert.pem")]
    pub root_cert: PathBuf,
    /// The token that proves who the workload is; read anew for each use
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/tokens/istio-token")]
    pub token_file: PathBuf,
    /// The certificate service, where it is not the control plane itself
    #[arg(long, value_name = "HOST:PORT", env = "CA_ADDR")]
    pub ca_address: Option<String>,
    /// The lifetime of the workload's certificate to ask for, such as 24h or 90s; the certificate service decides without it
    #[arg(long, value_name = "DURATION", env = "SECRET_TTL", value_parser = xds_protos::duration::parse)]
    pub cert_ttl: Option<Duration>,
    /// Renew the workload's certificate at half of its life. With false it is not renewed before its end, and at its end peers
    /// refuse the workload until it has another one: warned of at the start and every hour
    #[arg(long, value_name = "BOOL", env = "AUTOMATIC_ROTATION", default_value_t = true, action = clap::ArgAction::Set)]
    pub automatic_rotation: bool,
    /// Keep the last good certificate (and a proxy its configuration) here, to start from it while the control plane is away
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The trust domain
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
}

impl ControlPlaneArgs {
    /// How xDS is spoken.
    pub(crate) fn variant(&self) -> Variant {
        match self.xds_mode {
            XdsMode::Delta => Variant::Delta,
            XdsMode::Sotw => Variant::StateOfTheWorld,
        }
    }

    /// How the workload gets its certificate: from the control plane at `address`, unless the service is elsewhere.
    pub(crate) fn identity(&self, node: &NodeArgs, address: &str) -> Identity {
        Identity {
            address: self.ca_address.clone().unwrap_or_else(|| address.to_owned()),
            roots: Some(self.root_cert.clone()),
            token: Some(self.token_file.clone()),
            trust_domain: self.trust_domain.clone(),
            namespace: node.namespace.clone(),
            service_account: node.service_account.clone(),
            lifetime: self.cert_ttl,
            state_dir: self.state_dir.clone(),
            automatic: self.automatic_rotation,
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
