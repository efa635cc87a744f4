//! The flags of `weft proxy`, and the start that they describe.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use xds_protos::duration::parse as duration;

use super::shared::{ControlPlaneArgs, DnsArgs, NodeArgs};
use super::{Ads, EndingArgs, LogArgs, RecordArgs, Start, StatsArgs};

/// Runs a proxy: a sidecar or a gateway
#[derive(Args, Debug)]
pub struct ProxyArgs {
    /// An Envoy bootstrap in JSON or YAML (node, admin, static listeners, clusters and secrets, ADS); without it, the flags
    /// below describe the proxy
    #[arg(short = 'c', long, value_name = "FILE")]
    pub config_path: Option<PathBuf>,
    /// Who the workload is
    #[command(flatten)]
    pub node: NodeArgs,
    /// The control plane
    #[command(flatten)]
    pub control: ControlPlaneArgs,
    /// The key that seals the configuration which --state-dir keeps (64 hexadecimal digits): a file that whoever can write there
    /// should not read, such as a mounted secret. Without, one is made in the state directory, which keeps off mistakes alone
    #[arg(long, value_name = "FILE", requires = "state_dir")]
    pub state_key: Option<PathBuf>,
    /// The pod's DNS
    #[command(flatten)]
    pub dns: DnsArgs,
    /// Worker threads; one for each CPU by default
    #[arg(long)]
    pub concurrency: Option<usize>,
    /// Speak to the control plane without TLS (its port 15010); no certificate can be had then
    #[arg(long)]
    pub xds_plaintext: bool,
    /// Where the admin interface listens
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15000")]
    pub admin_address: SocketAddr,
    /// On which address the ports for probes and metrics are open (the three below); the admin interface's by default. In a
    /// pod, where kubelet and Prometheus ask from outside, 0.0.0.0 or ::
    #[arg(long, value_name = "IP")]
    pub probe_address: Option<IpAddr>,
    /// Where /healthz/ready is answered
    #[arg(long, value_name = "PORT", default_value_t = 15021)]
    pub status_port: u16,
    /// Where /stats/prometheus is answered
    #[arg(long, value_name = "PORT", default_value_t = 15090)]
    pub prometheus_port: u16,
    /// Where kubelet's probes of the application (/app-health/...) are answered, metrics of application and proxy together
    /// (/stats/prometheus), /healthz/ready, and from this pod /drain and /quitquitquit; 15020 by default, with -c nowhere
    #[arg(long, value_name = "PORT")]
    pub agent_port: Option<u16>,
    /// Where metrics of application and proxy (/stats/prometheus) are answered by TLS as well: with the workload's certificate, to who
    /// shows one of the mesh. Nowhere by default
    #[arg(long, value_name = "PORT", env = "WEFT_METRICS_TLS_PORT")]
    pub metrics_tls_port: Option<u16>,
    /// How it ends
    #[command(flatten)]
    pub ending: EndingArgs,
    /// How long connections get to end when their listener is removed or changed
    #[arg(long, value_name = "DURATION", default_value = "45s", value_parser = duration)]
    pub listener_drain_time: Duration,
    /// Let connections and streams be that a new policy denies; without this they are closed when the policy changes
    #[arg(long)]
    pub no_recheck: bool,
    /// Go on with everything until the kernel kills, where a cgroup limits memory; without this, requests are answered with
    /// 503 from 90 % of the limit on, and connections refused from 95 %
    #[arg(long)]
    pub no_shedding: bool,
    /// Metrics
    #[command(flatten)]
    pub stats: StatsArgs,
    /// The record of requests
    #[command(flatten)]
    pub record: RecordArgs,
    /// Events
    #[command(flatten)]
    pub events: weft_events::EventArgs,
    /// What it writes about itself
    #[command(flatten)]
    pub log: LogArgs,
}

/// Istio's number.
const AGENT_PORT: u16 = 15020;

impl ProxyArgs {
    /// The address on which the ports for probes and metrics are open.
    pub(super) fn probes_ip(&self) -> IpAddr {
        self.probe_address.unwrap_or(self.admin_address.ip())
    }

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
        let Some(address) = &self.control.xds_address else {
            bail!("say where the control plane is (--xds-address HOST:PORT), or give a bootstrap (-c FILE)");
        };
        let roots = (!self.xds_plaintext).then(|| self.control.root_cert.clone());
        let token = (!self.xds_plaintext).then(|| self.control.token_file.clone());
        let at = |port| SocketAddr::new(self.probes_ip(), port);
        let identity = (!self.xds_plaintext || self.control.ca_address.is_some())
            .then(|| self.control.identity(&self.node, address));
        Ok(Start {
            node: self.node.node()?,
            concurrency,
            admin: Some(self.admin_address),
            status: Some(at(self.status_port)),
            prometheus: Some(at(self.prometheus_port)),
            agent: Some(at(self.agent_port.unwrap_or(AGENT_PORT))),
            metrics_tls: self.metrics_tls_port.map(at),
            pod: self.node.ip,
            resources: Vec::new(),
            ads: Some(Ads {
                address: address.clone(),
                variant: self.control.variant(),
                roots,
                server_name: None,
                token,
                headers: Vec::new(),
            }),
            outlier_log: None,
            sds: Vec::new(),
            identity,
            ending: self.ending.read()?,
            state_dir: self.control.state_dir.clone(),
            state_key: self.state_key.clone(),
            listener_drain: self.listener_drain_time,
            recheck: !self.no_recheck,
            shed: !self.no_shedding,
            stats: self.stats.clone(),
            file: None,
            record: self.record.clone(),
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
