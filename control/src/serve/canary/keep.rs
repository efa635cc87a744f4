//! What is remembered of trials: in a file of the state directory, or in the objects' status, where other control planes read it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Key;
use super::machine::Standing;
use crate::ingest::cluster::Judged;

const KIND: &str = "TrafficManagement";

/// A cluster's API, where several control planes may be.
#[derive(Clone)]
pub struct Cluster {
    /// The way to it.
    pub client: Client,
    /// What it has.
    pub judged: watch::Receiver<Arc<Judged>>,
    /// Whether this control plane leads.
    pub leads: watch::Receiver<bool>,
    /// What was written of circuits last, and when.
    pub circuits: BTreeMap<(String, String), (Value, Instant)>,
}

/// Where it is remembered.
pub enum Keep {
    /// In a file; without one in memory alone.
    File(Option<PathBuf>, BTreeMap<String, Standing>),
    /// In objects.
    Cluster(Box<Cluster>),
}

/// How often the counts of a circuit are written whose state does not change.
const COUNTS: Duration = Duration::from_secs(10);

impl Keep {
    /// In a file of the state directory, if there is one. A file that cannot be read is told, and the trials begin anew.
    pub fn file(state: Option<PathBuf>) -> Self {
        let path = state.map(|state| state.join("canaries.json"));
        let read = path.as_ref().and_then(|path| match std::fs::read(path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(known) => Some(known),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "what was decided of versions on trial cannot be read: they begin anew");
                    None
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "what was decided of versions on trial cannot be read: they begin anew");
                None
            }
        });
        Self::File(path, read.unwrap_or_default())
    }

    /// Whether this control plane decides, or another one does.
    pub(super) fn decides(&self) -> bool {
        match self {
            Self::File(..) => true,
            Self::Cluster(cluster) => *cluster.leads.borrow(),
        }
    }

    /// Whether proxies may be connected to another control plane.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// How a trial stood last.
    pub(super) fn standing(&self, key: &Key) -> Option<Standing> {
        match self {
            Self::File(_, known) => known.get(&format!("{}/{}", key.0, key.1)).cloned(),
            Self::Cluster(cluster) => {
                let judged = cluster.judged.borrow();
                let verdict = judged.verdicts.get(&(KIND, key.0.clone(), key.1.clone()))?;
                serde_json::from_value(verdict.status["canary"].clone()).ok()
            }
        }
    }

    /// Until somebody else may have decided something.
    pub(super) async fn changed(&mut self) {
        match self {
            Self::File(..) => std::future::pending().await,
            Self::Cluster(cluster) => {
                let gone = tokio::select! {
                    changed = cluster.judged.changed() => changed.is_err(),
                    changed = cluster.leads.changed() => changed.is_err(),
                };
                if gone {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Writes how a circuit is, where objects have a status.
    pub(super) fn circuit(&mut self, key: &Key, report: &Value) {
        let Self::Cluster(cluster) = self else { return };
        let mut status = report.clone();
        // There may be thousands; the debug port has them.
        let proxies = status.as_object_mut().and_then(|status| status.remove("proxies"));
        status["proxies"] = proxies.and_then(|list| list.as_array().map(Vec::len)).unwrap_or_default().into();
        if let Some((last, at)) = cluster.circuits.get(key)
            && (*last == status || (last["state"] == status["state"] && at.elapsed() < COUNTS))
        {
            return;
        }
        cluster.circuits.insert(key.clone(), (status.clone(), Instant::now()));
        let (client, key) = (cluster.client.clone(), key.clone());
        tokio::spawn(async move {
            let patch = json!({"status": {"circuitBreakerStatus": status}});
            if let Err(error) = patch_status(client, &key, patch).await {
                tracing::warn!(object = %format!("{}/{}", key.0, key.1), %error, "the status of a circuit cannot be written");
            }
        });
    }

    /// Forgets all trials but these: one that is written anew begins anew. Objects take their status with them.
    pub(super) fn only(&mut self, wanted: impl Fn(&str) -> bool) {
        if let Self::File(path, known) = self {
            let before = known.len();
            known.retain(|name, _| wanted(name));
            if before != known.len() {
                store(path.as_deref(), known);
            }
        }
    }

    /// Remembers how a trial stands, and tells what was decided if that is new.
    pub(super) fn keep(&mut self, key: &Key, standing: &Standing, what: Option<&'static str>) {
        match self {
            Self::File(path, known) => {
                known.insert(format!("{}/{}", key.0, key.1), standing.clone());
                store(path.as_deref(), known);
            }
            Self::Cluster(cluster) => {
                let (client, key, standing) = (cluster.client.clone(), key.clone(), standing.clone());
                tokio::spawn(async move {
                    if let Err(error) = write(client, &key, &standing, what).await {
                        tracing::error!(
                            trial = %format!("{}/{}", key.0, key.1), %error,
                            "what was decided of a version on trial cannot be written, and is tried again; may the control plane's service \
                             account patch its status and create events?"
                        );
                    }
                });
            }
        }
    }
}

/// Writes the file whole or not at all, also where the power goes.
fn store(path: Option<&Path>, known: &BTreeMap<String, Standing>) {
    let Some(path) = path else { return };
    let (Some(directory), Some(file)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return;
    };
    let written = serde_json::to_string_pretty(known)
        .map_err(anyhow::Error::from)
        .and_then(|text| Ok(crate::ca::store::write(directory, file, &text)?));
    if let Err(error) = written {
        tracing::error!(
            path = %path.display(), %error,
            "what was decided of versions on trial cannot be written: a restart would begin them anew"
        );
    }
}

async fn patch_status(client: Client, key: &Key, patch: Value) -> kube::Result<DynamicObject> {
    let of = GroupVersionKind::gvk("weft.dev", "v1alpha1", KIND);
    let resource = ApiResource::from_gvk_with_plural(&of, "trafficmanagements");
    let objects: Api<DynamicObject> = Api::namespaced_with(client, &key.0, &resource);
    objects.patch_status(&key.1, &PatchParams::default(), &Patch::Merge(patch)).await
}

/// Writes the status, and an event of what was decided.
async fn write(
    client: Client,
    key: &Key,
    standing: &Standing,
    what: Option<&'static str>,
) -> kube::Result<()> {
    let object = patch_status(client.clone(), key, json!({"status": {"canary": standing}})).await?;
    let Some(what) = what else { return Ok(()) };
    let now = Time(Timestamp::now());
    let kind = if what == "RolledBack" { "Warning" } else { "Normal" };
    let event = Event {
        metadata: ObjectMeta { generate_name: Some(format!("{}.", key.1)), ..ObjectMeta::default() },
        involved_object: ObjectReference {
            api_version: Some("weft.dev/v1alpha1".to_owned()),
            kind: Some(KIND.to_owned()),
            namespace: Some(key.0.clone()),
            name: Some(key.1.clone()),
            uid: object.metadata.uid,
            ..ObjectReference::default()
        },
        type_: Some(kind.to_owned()),
        reason: Some(format!("Canary{what}")),
        message: Some(standing.message.clone()),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        reporting_component: Some("weft.dev/control-plane".to_owned()),
        ..Event::default()
    };
    Api::namespaced(client, &key.0).create(&PostParams::default(), &event).await?;
    Ok(())
}
