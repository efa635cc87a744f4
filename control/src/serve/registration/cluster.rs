//! Entries in a Kubernetes cluster: WorkloadEntries, each written by the control plane that has its proxy's stream.
//!
//! What is written is held together by two annotations, the control plane's name and when the stream began: every write asks the
//! API server to make it only while these are its own. So a proxy may move from one control plane to another at any moment, and
//! whoever had it lets go. The time of each look (the condition `Connected`) tells entries that nobody looks after any more:
//! the leader takes those away.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
    Preconditions,
};
use kube::{Api, Client, ResourceExt};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::Health;
use crate::model::Object;
use crate::model::service_entry::WorkloadEntry;
use crate::model::workload_group::{
    CONNECTED_ANNOTATION, CONTROLLER_ANNOTATION, DISCONNECTED_ANNOTATION, GROUP_ANNOTATION,
    HEALTH_ANNOTATION, HEALTHY,
};

/// How often it is written that somebody looks after an entry.
const RENEW: Duration = Duration::from_secs(60);
/// When nobody does, for all that can be seen.
const ORPHANED: Duration = Duration::from_secs(180);
/// How long a workload may keep its health that does not report any.
const PATIENCE: Duration = Duration::from_secs(15);
/// After a failure.
const RETRY: Duration = Duration::from_secs(3);
/// How often the leader looks for orphans.
const SWEEP: Duration = Duration::from_secs(30);
/// The condition that says when an entry was looked after last.
const CONNECTED: &str = "Connected";

/// Writes entries. Cloning it shares it.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// This control plane's name.
    instance: Arc<str>,
}

/// An entry as one stream holds it.
struct Held<'a> {
    cluster: &'a Cluster,
    entry: &'a Object<WorkloadEntry>,
    since: String,
}

fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

/// A name as JSON pointers have it.
fn pointer(annotation: &str) -> String {
    format!("/metadata/annotations/{}", annotation.replace('~', "~0").replace('/', "~1"))
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// What came of a write.
enum Wrote {
    /// It is written; the object's version.
    Yes(Option<String>),
    /// The object is another's by now.
    NotOurs,
    /// There is no such object.
    Gone,
}

impl Cluster {
    /// Writes by `client`, as `instance`.
    pub fn new(client: Client, instance: &str) -> Self {
        Self { client, instance: instance.into() }
    }

    fn resource() -> ApiResource {
        let of = GroupVersionKind::gvk("networking.istio.io", "v1", "WorkloadEntry");
        ApiResource::from_gvk_with_plural(&of, "workloadentries")
    }

    fn api(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &Self::resource())
    }

    /// Looks after an entry until its stream has ended, and the moment after.
    pub(super) async fn keep(
        self,
        entry: Object<WorkloadEntry>,
        mut health: watch::Receiver<Health>,
        grace: Duration,
    ) {
        let held = Held { cluster: &self, entry: &entry, since: now() };
        let key = entry.meta.key();
        loop {
            match held.enter().await {
                Ok(true) => break,
                Ok(false) => {
                    tracing::error!(
                        object = %key,
                        "a WorkloadEntry of this name is there and was not made by its group: the workload is not entered; \
                         take the object away"
                    );
                    return;
                }
                Err(error) => tracing::error!(
                    object = %key, %error,
                    "a workload cannot be entered; may the control plane's service account create and patch WorkloadEntries? \
                     Trying again"
                ),
            }
            tokio::time::sleep(RETRY).await;
            if health.has_changed().is_err() {
                return;
            }
        }
        tracing::info!(object = %key, address = entry.spec.address, "a workload is entered");
        if !held.look_after(&mut health).await {
            return;
        }
        held.leave(grace).await;
    }

    /// Takes away entries that nobody looks after, while this control plane leads; for ever.
    pub async fn sweep(self, mut leads: watch::Receiver<bool>, grace: Duration) {
        let mut clock = tokio::time::interval(SWEEP);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Those that nobody has looked at for long are taken away by who has led for as long: after an outage of all control planes
        // their proxies must have had the time to come back.
        let mut since = None;
        loop {
            clock.tick().await;
            if !*leads.borrow_and_update() {
                since = None;
                if leads.changed().await.is_err() {
                    return;
                }
                // Whoever led may have left something.
                clock.reset_immediately();
                continue;
            }
            let long = since.get_or_insert_with(tokio::time::Instant::now).elapsed() >= ORPHANED;
            if let Err(error) = self.take_orphans(grace, long).await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "entries of workloads that are gone may stay; trying again"
                );
            }
        }
    }

    async fn take_orphans(&self, grace: Duration, long: bool) -> anyhow::Result<()> {
        let all: Api<DynamicObject> = Api::all_with(self.client.clone(), &Self::resource());
        let found = match all.list(&ListParams::default()).await {
            Ok(found) => found,
            // The kind is not defined.
            Err(error) if code(&error) == Some(404) => return Ok(()),
            Err(error) => return Err(error).context("WorkloadEntries cannot be listed"),
        };
        for object in found.into_iter().filter(|object| is_orphan(object, grace, long)) {
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    resource_version: object.resource_version(),
                    uid: object.uid(),
                }),
                ..DeleteParams::default()
            };
            match self.api(&namespace).delete(&name, &params).await {
                Ok(_) => {
                    tracing::info!(namespace, name, "the entry of a workload that is gone is taken away")
                }
                // Somebody has written meanwhile: it is no orphan, or will be seen again.
                Err(error) if matches!(code(&error), Some(404 | 409)) => {}
                Err(error) => return Err(error).context("a WorkloadEntry cannot be deleted"),
            }
        }
        Ok(())
    }
}

/// Whether an entry is one of ours that nobody looks after. `long`: there was time enough to look after all of them.
fn is_orphan(object: &DynamicObject, grace: Duration, long: bool) -> bool {
    let annotations = object.annotations();
    if !annotations.contains_key(GROUP_ANNOTATION) {
        return false;
    }
    let older = |text: &str, than: Duration| {
        OffsetDateTime::parse(text, &Rfc3339).is_ok_and(|at| OffsetDateTime::now_utc() - at > than)
    };
    if let Some(ended) = annotations.get(DISCONNECTED_ANNOTATION) {
        // Whoever had it takes it away when its time has come, unless that one is gone as well.
        return older(ended, grace + RETRY * 5);
    }
    let conditions = object.data["status"]["conditions"].as_array().into_iter().flatten();
    let looked = conditions.filter(|c| c["type"] == CONNECTED).filter_map(|c| c["lastProbeTime"].as_str());
    let mut times = looked.chain(annotations.get(CONNECTED_ANNOTATION).map(String::as_str)).peekable();
    long && times.peek().is_some() && times.all(|at| older(at, ORPHANED))
}

impl Held<'_> {
    fn api(&self) -> Api<DynamicObject> {
        self.cluster.api(&self.entry.meta.namespace)
    }

    fn annotations(&self) -> Value {
        let mut all = self.entry.meta.annotations.clone();
        all.insert(CONTROLLER_ANNOTATION.to_owned(), self.cluster.instance.to_string());
        all.insert(CONNECTED_ANNOTATION.to_owned(), self.since.clone());
        json!(all)
    }

    /// Writes the entry; false if there is one of its name that is nobody's to take over.
    async fn enter(&self) -> kube::Result<bool> {
        let meta = &self.entry.meta;
        let object = json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": {
                "name": meta.name, "namespace": meta.namespace, "labels": meta.labels, "annotations": self.annotations(),
            },
            "spec": spec(&self.entry.spec),
        });
        let object = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
        match self.api().create(&PostParams::default(), &object).await {
            Ok(_) => return Ok(true),
            Err(error) if code(&error) == Some(409) => {}
            Err(error) => return Err(error),
        }
        let patch = json!([
            {"op": "test", "path": pointer(GROUP_ANNOTATION), "value": meta.annotations.get(GROUP_ANNOTATION)},
            {"op": "add", "path": "/metadata/annotations", "value": self.annotations()},
            {"op": "add", "path": "/metadata/labels", "value": meta.labels},
            {"op": "add", "path": "/spec", "value": spec(&self.entry.spec)},
        ]);
        match self.api().patch(&meta.name, &PatchParams::default(), &json_patch(patch)?).await {
            Ok(_) => Ok(true),
            Err(error) if code(&error) == Some(422) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the object is this stream's, as a patch asks it.
    fn tests(&self) -> Vec<Value> {
        vec![
            json!({"op": "test", "path": pointer(CONTROLLER_ANNOTATION), "value": &*self.cluster.instance}),
            json!({"op": "test", "path": pointer(CONNECTED_ANNOTATION), "value": self.since}),
        ]
    }

    /// Writes what is asked for, if the object is this stream's.
    async fn write(&self, change: Value, status: bool) -> kube::Result<Wrote> {
        let mut all = self.tests();
        all.push(change);
        let (api, patch, params) = (self.api(), json_patch(all.into())?, PatchParams::default());
        let name = &self.entry.meta.name;
        let outcome = match status {
            true => api.patch_status(name, &params, &patch).await,
            false => api.patch(name, &params, &patch).await,
        };
        match outcome {
            Ok(object) => Ok(Wrote::Yes(object.resource_version())),
            Err(error) => match code(&error) {
                Some(422) => Ok(Wrote::NotOurs),
                Some(404) => Ok(Wrote::Gone),
                _ => Err(error),
            },
        }
    }

    /// Writes how the workload is whenever that changes, and once in a while that it is looked after. Until the stream has ended
    /// (true), or somebody else has taken it over.
    async fn look_after(&self, health: &mut watch::Receiver<Health>) -> bool {
        let mut clock = tokio::time::interval(RENEW);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut turned, began) = ((None, now()), tokio::time::Instant::now());
        loop {
            tokio::select! {
                changed = health.changed() => if changed.is_err() { return true },
                _ = clock.tick() => {}
            }
            let last = health.borrow_and_update().clone();
            // A proxy that has come back is what it was until it says something, or has been silent for too long.
            let reports = self.entry.meta.annotations.contains_key(HEALTH_ANNOTATION);
            if reports && last.is_none() && began.elapsed() < PATIENCE {
                clock.reset_after(PATIENCE);
                continue;
            }
            let well = last.as_ref().map(Result::is_ok);
            if well != turned.0 {
                turned = (well, now());
            }
            let status = self.status(last.as_ref(), &turned.1);
            let change = json!({"op": "add", "path": "/status", "value": status});
            match self.write(change, true).await {
                Ok(Wrote::Yes(_)) => {}
                Ok(Wrote::NotOurs) => return false,
                // Somebody has taken it away, and its proxy is connected.
                Ok(Wrote::Gone) => {
                    if let Err(error) = self.enter().await {
                        tracing::warn!(object = %self.entry.meta.key(), %error, "a workload cannot be entered again");
                    }
                    clock.reset_after(RETRY);
                }
                Err(error) => {
                    tracing::warn!(object = %self.entry.meta.key(), %error, "the status of an entry cannot be written");
                    clock.reset_after(RETRY);
                }
            }
        }
    }

    fn status(&self, health: Option<&Result<(), String>>, turned: &str) -> Value {
        let mut conditions = vec![json!({
            "type": CONNECTED, "status": "True", "lastProbeTime": now(), "lastTransitionTime": self.since,
        })];
        if let Some(health) = health {
            let mut healthy = json!({
                "type": HEALTHY, "status": if health.is_ok() { "True" } else { "False" },
                "lastProbeTime": now(), "lastTransitionTime": turned,
            });
            if let Err(message) = health {
                healthy["message"] = message.as_str().into();
            }
            conditions.push(healthy);
        }
        json!({"conditions": conditions})
    }

    /// Says when the stream ended, and takes the entry away if its proxy does not come back.
    async fn leave(&self, grace: Duration) {
        let change = json!({"op": "add", "path": pointer(DISCONNECTED_ANNOTATION), "value": now()});
        let began = tokio::time::Instant::now();
        loop {
            let version = match self.write(change.clone(), false).await {
                Ok(Wrote::Yes(version)) => version,
                Ok(Wrote::NotOurs | Wrote::Gone) => return,
                Err(error) => {
                    tracing::warn!(object = %self.entry.meta.key(), %error, "an entry cannot be written; trying again");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            tokio::time::sleep_until(began + grace).await;
            let params = DeleteParams {
                preconditions: Some(Preconditions { resource_version: version, uid: None }),
                ..DeleteParams::default()
            };
            match self.api().delete(&self.entry.meta.name, &params).await {
                Ok(_) => {
                    tracing::info!(object = %self.entry.meta.key(), "a workload that entered itself is gone");
                    return;
                }
                Err(error) if code(&error) == Some(404) => return,
                // Somebody has written: its proxy is back, or it is to be asked again.
                Err(error) if code(&error) == Some(409) => {}
                Err(error) => {
                    tracing::warn!(object = %self.entry.meta.key(), %error, "an entry cannot be deleted; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

fn json_patch(operations: Value) -> kube::Result<Patch<()>> {
    serde_json::from_value(operations).map(Patch::Json::<()>).map_err(kube::Error::SerdeError)
}

/// An entry as YAML has it.
fn spec(entry: &WorkloadEntry) -> Value {
    let mut spec = Map::new();
    spec.insert("address".to_owned(), entry.address.as_str().into());
    if !entry.ports.is_empty() {
        spec.insert("ports".to_owned(), json!(entry.ports));
    }
    if !entry.labels.is_empty() {
        spec.insert("labels".to_owned(), json!(entry.labels));
    }
    if !entry.locality.is_empty() {
        spec.insert("locality".to_owned(), entry.locality.as_str().into());
    }
    if entry.weight > 0 {
        spec.insert("weight".to_owned(), entry.weight.into());
    }
    if !entry.network.is_empty() {
        spec.insert("network".to_owned(), entry.network.as_str().into());
    }
    spec.insert("serviceAccount".to_owned(), entry.service_account.as_str().into());
    spec.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orphan_is_an_entry_that_was_left_or_that_nobody_has_looked_at_for_long() {
        let ago = |seconds: i64| {
            (OffsetDateTime::now_utc() - time::Duration::seconds(seconds)).format(&Rfc3339).unwrap()
        };
        let orphan_if = |long: bool, annotations: Value, looked: Option<String>| {
            let conditions = looked.map(|at| json!([{"type": "Connected", "lastProbeTime": at}]));
            let object = json!({
                "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
                "metadata": {"name": "vm-1", "annotations": annotations}, "status": {"conditions": conditions},
            });
            is_orphan(&serde_json::from_value(object).unwrap(), Duration::from_secs(10), long)
        };
        let orphan = |annotations: Value, looked: Option<String>| orphan_if(true, annotations, looked);
        let with = |more: &str, at: String| json!({GROUP_ANNOTATION: "vm", more: at});
        assert!(orphan(with(DISCONNECTED_ANNOTATION, ago(60)), Some(ago(1))));
        assert!(!orphan(with(DISCONNECTED_ANNOTATION, ago(12)), Some(ago(1))));
        assert!(orphan(with(CONNECTED_ANNOTATION, ago(5000)), Some(ago(200))));
        // After an outage of all control planes it may come back; one that was left does not.
        assert!(!orphan_if(false, with(CONNECTED_ANNOTATION, ago(5000)), Some(ago(200))));
        assert!(orphan_if(false, with(DISCONNECTED_ANNOTATION, ago(60)), None));
        assert!(!orphan(with(CONNECTED_ANNOTATION, ago(5000)), Some(ago(100))));
        assert!(orphan(with(CONNECTED_ANNOTATION, ago(5000)), None));
        // What somebody wrote by hand is nobody's to take away.
        assert!(!orphan(json!({DISCONNECTED_ANNOTATION: ago(5000)}), None));
    }
}
