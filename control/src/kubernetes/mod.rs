//! The way to the Kubernetes API: as whom, and where.
//!
//! It stands before all stages: `ingest` reads by it, `ca` asks about tokens, and `serve` writes what has become of objects.

mod board;
mod lease;

pub use board::Board;
pub use lease::Election;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Which Kubernetes to read, if any.
#[derive(Args, Debug, Default)]
pub struct KubernetesArgs {
    /// Read the mesh from the Kubernetes API of the cluster that this runs in
    #[arg(long)]
    pub kubernetes: bool,
    /// Read the mesh from the Kubernetes API that this file names, as its current context says
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The control plane's own namespace: there the ConfigMap istio has the mesh's settings
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = "istio-system")]
    pub namespace: String,
    /// The name by which this control plane stands for election among several; each has its own
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,
}

/// The Lease of who leads.
const LEASE: &str = "weft-control-leader";
/// The Lease on which all say how many streams they have.
const STREAMS: &str = "weft-control-streams";

/// How long a connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long one may be silent: of a watch on which nothing happens the API server says so about once a minute, and one that has
/// gone without a word says nothing.
const SILENCE: Duration = Duration::from_secs(150);

impl KubernetesArgs {
    /// A client, if Kubernetes is to be read.
    ///
    /// # Errors
    /// The file, or what a pod is given, cannot be used. Whether the API server answers is not known yet.
    pub async fn client(&self) -> anyhow::Result<Option<Client>> {
        let mut config = match &self.kubeconfig {
            Some(file) => from_file(file).await.with_context(|| format!("--kubeconfig {}", file.display()))?,
            None if self.kubernetes => Config::incluster().context(
                "--kubernetes is for a pod with a service account; elsewhere say which cluster by --kubeconfig",
            )?,
            None => return Ok(None),
        };
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(SILENCE);
        Ok(Some(Client::try_from(config).context("the client of the Kubernetes API")?))
    }
}

impl KubernetesArgs {
    /// This control plane's name among several: the same as long as the process runs.
    pub fn name(&self) -> String {
        static MADE: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
            use std::hash::{BuildHasher, RandomState};
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let host = host.trim();
            format!("{host}_{:016x}", RandomState::new().hash_one(std::process::id()))
        });
        self.identity.clone().unwrap_or_else(|| MADE.clone())
    }

    /// Stands for election among the control planes of the namespace.
    pub fn stand(&self, client: Client) -> Election {
        Election::stand(client, &self.namespace, LEASE, self.name())
    }

    /// What the control planes of the namespace that proxies reach by the same name say of themselves.
    pub fn board(&self, client: Client, reached: &str) -> Board {
        Board::new(client, &self.namespace, STREAMS, &self.name(), reached)
    }
}

async fn from_file(file: &Path) -> anyhow::Result<Config> {
    let text = Kubeconfig::read_from(file)?;
    Ok(Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await?)
}
