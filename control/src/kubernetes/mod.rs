//! The way to the Kubernetes API: as whom, and where.
//!
//! It stands before all stages: `ingest` reads by it, `ca` asks about tokens, and `serve` writes what has become of objects.

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
}

/// How long a connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(5);

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
        Ok(Some(Client::try_from(config).context("the client of the Kubernetes API")?))
    }
}

async fn from_file(file: &Path) -> anyhow::Result<Config> {
    let text = Kubeconfig::read_from(file)?;
    Ok(Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await?)
}
