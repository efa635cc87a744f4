//! A cluster as a command reads it: once, by the same code as a control plane.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use kube::Client;
use weft_control::ingest::cluster::{Settings, start};
use weft_control::ingest::{DebounceArgs, Snapshot};
use weft_control::kubernetes::KubernetesArgs;

/// Which cluster.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterArgs {
    /// Read the Kubernetes API that $KUBECONFIG or ~/.kube/config names, or in a pod its own
    #[arg(long)]
    pub cluster: bool,
    /// Read the Kubernetes API that this file names, as its current context says
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The control plane's namespace: there the ConfigMap istio has the mesh's settings
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    pub istio_namespace: String,
}

/// How long an API server may take to say who it is, and to give everything.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(120));

impl ClusterArgs {
    /// Whether a cluster is meant, and not a directory.
    pub fn is_meant(&self) -> bool {
        self.cluster || self.kubeconfig.is_some()
    }

    /// A client of an API server that answers.
    ///
    /// # Errors
    /// There is no configuration of one, or it does not answer.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let kubeconfig = self.kubeconfig.clone().or_else(usual);
        let args =
            KubernetesArgs { kubernetes: kubeconfig.is_none(), kubeconfig, ..KubernetesArgs::default() };
        let named = args.kubeconfig.is_some();
        let client = args.client().await.and_then(|client| client.context("no cluster is named"));
        let client = client.with_context(|| match named {
            true => "the cluster's configuration cannot be used",
            false => {
                "there is no $KUBECONFIG, no ~/.kube/config, and this is no pod: name a file by --kubeconfig"
            }
        })?;
        let asked = tokio::time::timeout(PATIENCE.0, client.apiserver_version()).await;
        asked
            .map_err(|_| anyhow::anyhow!("no answer within {PATIENCE:?}", PATIENCE = PATIENCE.0))
            .and_then(|answer| answer.map_err(anyhow::Error::from))
            .context("the Kubernetes API cannot be read; does `kubectl get --raw /version` work with the same configuration?")?;
        Ok(client)
    }

    /// What the cluster's objects say, wrong ones as they were last right or left out.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn snapshot(&self) -> anyhow::Result<Arc<Snapshot>> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(async {
            let client = self.client().await?;
            let settings =
                Settings { namespace: self.istio_namespace.clone(), debounce: DebounceArgs::default() };
            let following =
                tokio::time::timeout(PATIENCE.1, start(client, &settings)).await.with_context(|| {
                    format!("the Kubernetes API did not give everything within {:?}", PATIENCE.1)
                })?;
            Ok(following.watcher.snapshot())
        })
    }
}

/// The file that kubectl would read, if there is one.
fn usual() -> Option<PathBuf> {
    let named = std::env::var_os("KUBECONFIG").filter(|name| !name.is_empty()).map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".kube/config"));
    named.or_else(home).filter(|file| file.is_file())
}
