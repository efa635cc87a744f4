//! Whom to trust, for those who cannot ask: the API server finds the roots of the webhooks' certificate in the webhooks'
//! configurations (`caBundle`), pods find those of the control plane in the ConfigMap `istio-ca-root-cert` of their namespace.
//!
//! Both are written when the roots change, and again whenever somebody else has written them otherwise; what is right is left alone. All replicas of a control
//! plane write the same, so that none need be chosen for it.

mod bundle;
mod roots;

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use kube::Client;
use tokio::sync::watch;

use crate::ingest::Snapshot;
use crate::model::Trust;

/// Between two looks at what others may have changed.
const LOOK: Duration = Duration::from_secs(20);
/// After a failure.
const RETRY: Duration = Duration::from_secs(3);

/// The flags.
#[derive(Args, Debug, Default)]
pub struct PublishArgs {
    /// Keep the roots of the mesh, by which the webhooks' certificate is issued, in this MutatingWebhookConfiguration; may be given several times. With --webhook-cert whoever issues that certificate keeps its roots there
    #[arg(long, value_name = "NAME", requires = "webhook_port", conflicts_with = "webhook_cert")]
    pub mutating_webhook: Vec<String>,
    /// The same in this ValidatingWebhookConfiguration
    #[arg(long, value_name = "NAME", requires = "webhook_port", conflicts_with = "webhook_cert")]
    pub validating_webhook: Vec<String>,
    /// Keep the mesh's roots in the ConfigMap istio-ca-root-cert of every namespace that the mesh knows (discoverySelectors), where pods
    /// with sidecars look for them
    #[arg(long)]
    pub publish_roots: bool,
}

impl PublishArgs {
    /// Starts what was asked for.
    ///
    /// # Errors
    /// There is no Kubernetes to write to.
    pub fn start(
        &self,
        client: Option<&Client>,
        trust: &watch::Receiver<Arc<Trust>>,
        states: watch::Receiver<Arc<Snapshot>>,
    ) -> anyhow::Result<()> {
        use k8s_openapi::api::admissionregistration::v1 as hooks;
        if !self.publish_roots && self.mutating_webhook.is_empty() && self.validating_webhook.is_empty() {
            return Ok(());
        }
        let Some(client) = client else {
            bail!(
                "--publish-roots, --mutating-webhook and --validating-webhook write into Kubernetes: give --kubernetes or --kubeconfig"
            );
        };
        for name in &self.mutating_webhook {
            let api = kube::Api::<hooks::MutatingWebhookConfiguration>::all(client.clone());
            tokio::spawn(bundle::keep(api, name.clone(), trust.clone()));
        }
        for name in &self.validating_webhook {
            let api = kube::Api::<hooks::ValidatingWebhookConfiguration>::all(client.clone());
            tokio::spawn(bundle::keep(api, name.clone(), trust.clone()));
        }
        if self.publish_roots {
            tokio::spawn(roots::keep(client.clone(), trust.clone(), states));
        }
        Ok(())
    }
}
