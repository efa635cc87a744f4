//! The ConfigMap `istio-ca-root-cert`: in every namespace, for pods that are to know the control plane from the start.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{PartialObjectMeta, Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio_stream::StreamExt;

use super::RETRY;
use crate::model::Trust;

/// How often all of them are written again, for somebody may have changed one or taken it away.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(40);
/// Its name, and its key.
const NAME: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";
/// Namespaces of Kubernetes' own, where nobody is injected.
const NEVER: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// Keeps it in all namespaces, for ever.
pub(super) async fn keep(client: Client, mut trust: watch::Receiver<Arc<Trust>>) {
    let all: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let mut events = Box::pin(watcher(all, watcher::Config::default()).default_backoff());
    let mut namespaces = BTreeSet::new();
    // Where it is to be written.
    let mut due: BTreeSet<String> = BTreeSet::new();
    let mut said = false;
    loop {
        let roots = trust.borrow_and_update().roots.clone();
        let mut failed = None;
        for name in std::mem::take(&mut due) {
            if let Err(error) = write(&client, &name, &roots).await {
                failed = Some(error);
                due.insert(name);
            }
        }
        match &failed {
            None => said = false,
            // Until it is mended, pods with sidecars wait for it: said loudly, and once.
            Some(error) if !said => {
                said = true;
                tracing::error!(%error, "the mesh's roots cannot be written into the ConfigMap {NAME} of every namespace; may this \
                    service account create and patch it? Trying again");
            }
            Some(_) => {}
        }
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::Apply(one) | Event::InitApply(one))) => {
                    let name = one.name_any();
                    let lives = one.metadata.deletion_timestamp.is_none() && !NEVER.contains(&name.as_str());
                    if lives && namespaces.insert(name.clone()) {
                        due.insert(name);
                    }
                }
                Some(Ok(Event::Delete(one))) => {
                    namespaces.remove(&one.name_any());
                    due.remove(&one.name_any());
                }
                Some(Ok(Event::Init | Event::InitDone)) => {}
                Some(Err(error)) => tracing::warn!(%error, "namespaces cannot be watched; trying again"),
                None => return,
            },
            changed = trust.changed() => {
                if changed.is_err() {
                    return;
                }
                due.clone_from(&namespaces);
            }
            // Somebody may have written it otherwise, or taken it away.
            () = tokio::time::sleep(if due.is_empty() { AGAIN } else { RETRY }) => {
                if due.is_empty() {
                    due.clone_from(&namespaces);
                }
            }
        }
    }
}

async fn write(client: &Client, namespace: &str, roots: &str) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let wanted = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "labels": {"istio.io/config": "true"}}, "data": {KEY: roots}});
    match api.patch(NAME, &PatchParams::apply("weft").force(), &Patch::Apply(&wanted)).await {
        Ok(_) => Ok(()),
        // The namespace went in the meantime, or is about to.
        Err(kube::Error::Api(error))
            if error.code == 404
                || error.reason == "Forbidden" && error.message.contains("being terminated") =>
        {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
