//! The flags of `weft proxy`, and the start that they describe.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::{Ads, Identity, Start};
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

/// Runs a proxy: a sidecar or a gateway
#[derive(Args, Debug)]
pub struct ProxyArgs {
    /// What the proxy is for
    #[arg(long, value_enum, default_value_t = RoleArg::Sidecar)]
    pub role: RoleArg,
    /// An Envoy bootstrap in JSON or YAML (node, admin, static listeners, clusters and secrets, ADS); without it, the flags
    /// below describe the proxy
    #[arg(short = 'c', long, value_name = "FILE")]
    pub config_path: Option<PathBuf>,
    /// Worker threads; one for each CPU by default
    #[arg(long)]
    pub concurrency: Option<usize>,
    /// The control plane's host and port
    #[arg(long, value_name = "HOST:PORT")]
    pub xds_address: Option<String>,
    /// Speak to the control plane without TLS (its port 15010); no certificate can be had then
    #[arg(long)]
    pub xds_plaintext: bool,
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
    #[arg(long, value_name = "DURATION", env = "SECRET_TTL", value_parser = duration)]
    pub cert_ttl: Option<Duration>,
    /// Keep the last good certificate here, to start from it while the certificate service is away
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The trust domain
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// The workload's (pod's) name
    #[arg(long, env = "POD_NAME", default_value = "proxy")]
    pub name: String,
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
    /// The cluster it runs in
    #[arg(long, default_value = "Kubernetes")]
    pub cluster_id: String,
    /// The mesh it belongs to
    #[arg(long, default_value = "cluster.local")]
    pub mesh_id: String,
    /// Its network
    #[arg(long, default_value = "")]
    pub network: String,
    /// How the workload's traffic comes to the proxy
    #[arg(long, value_enum, default_value_t = Interception::Redirect)]
    pub interception_mode: Interception,
    /// Where the admin interface listens
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15000")]
    pub admin_address: SocketAddr,
    /// Where /healthz/ready is answered, on the admin interface's address
    #[arg(long, value_name = "PORT", default_value_t = 15021)]
    pub status_port: u16,
    /// Where /stats/prometheus is answered, on the admin interface's address
    #[arg(long, value_name = "PORT", default_value_t = 15090)]
    pub prometheus_port: u16,
    /// How long connections get to end when the proxy is told to
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub drain_time: Duration,
    /// What is logged: error, warn, info, debug, trace, or rules such as info,weft_proxy::xds=debug
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    pub log_level: String,
}

/// A number with ms, s, m or h.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 =
        digits.parse().map_err(|_| format!("{text:?} is not a duration such as 90s, 10m or 24h"))?;
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("{other:?} is not a unit of time; there are ms, s, m and h")),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|e| e.to_string())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl ProxyArgs {
    /// The start that flags and environment, or the file, describe.
    pub fn start(&self) -> anyhow::Result<Start> {
        let concurrency = match self.concurrency {
            Some(0) => bail!("--concurrency 0: a proxy needs at least one worker"),
            Some(n) => n,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        if let Some(path) = &self.config_path {
            let start = super::file::read(path, self, concurrency);
            return start.with_context(|| format!("bootstrap {}", path.display()));
        }
        let Some(address) = &self.xds_address else {
            bail!("say where the control plane is (--xds-address HOST:PORT), or give a bootstrap (-c FILE)");
        };
        let roots = (!self.xds_plaintext).then(|| self.root_cert.clone());
        let variant = match self.xds_mode {
            XdsMode::Delta => Variant::Delta,
            XdsMode::Sotw => Variant::StateOfTheWorld,
        };
        let token = (!self.xds_plaintext).then(|| self.token_file.clone());
        let at = |port| SocketAddr::new(self.admin_address.ip(), port);
        let identity = (!self.xds_plaintext || self.ca_address.is_some()).then(|| Identity {
            address: self.ca_address.clone().unwrap_or_else(|| address.clone()),
            roots: Some(self.root_cert.clone()),
            token: Some(self.token_file.clone()),
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            lifetime: self.cert_ttl,
            state_dir: self.state_dir.clone(),
        });
        Ok(Start {
            node: self.node()?,
            concurrency,
            admin: Some(self.admin_address),
            status: Some(at(self.status_port)),
            prometheus: Some(at(self.prometheus_port)),
            resources: Vec::new(),
            ads: Some(Ads { address: address.clone(), variant, roots, token }),
            identity,
            drain: self.drain_time,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        proxy: ProxyArgs,
    }

    fn start(arguments: &[&str]) -> anyhow::Result<Start> {
        Cli::try_parse_from(std::iter::once(&"proxy").chain(arguments))?.proxy.start()
    }

    #[test]
    fn flags_make_istios_node() {
        let start = start(&[
            "--xds-address",
            "127.0.1.1:15012",
            "--name",
            "u-1",
            "--namespace",
            "ecotrack",
            "--service-account",
            "user",
            "--ip",
            "127.0.10.1",
            "--label",
            "app=user-service",
            "--label",
            "version=stable",
            "--interception-mode",
            "NONE",
            "--cert-ttl",
            "8s",
        ])
        .unwrap();
        assert_eq!(start.node.id, "sidecar~127.0.10.1~u-1.ecotrack~ecotrack.svc.cluster.local");
        assert_eq!(start.node.cluster, "user-service.ecotrack");
        let info = super::super::node_info(&start.node);
        for (key, value) in [
            ("NAMESPACE", "ecotrack"),
            ("INSTANCE_IPS", "127.0.10.1"),
            ("INTERCEPTION_MODE", "NONE"),
            ("SERVICE_ACCOUNT", "user"),
            ("WEFT_EXTENSIONS", "true"),
        ] {
            assert_eq!(info.meta(key), value, "{key}");
        }
        assert_eq!(info.labels()["version"], "stable");
        assert_eq!(start.identity.unwrap().lifetime, Some(Duration::from_secs(8)));
    }

    #[test]
    fn what_is_missing_or_wrong_is_said() {
        assert!(start(&[]).unwrap_err().to_string().contains("--xds-address"));
        assert!(start(&["--xds-address", "a:1", "--concurrency", "0"]).is_err());
        assert!(start(&["--xds-address", "a:1", "--cert-ttl", "8"]).is_err());
        assert!(start(&["--xds-address", "a:1", "--label", "x"]).is_err());
    }
}
