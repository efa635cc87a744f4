//! Watches one kind after another, each in a task of its own; and the definitions that bring kinds.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event as Seen, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;

use super::kinds::{self, Kind};
use super::places::Name;
use super::store::Raw;

/// What the watches tell.
#[derive(Debug)]
pub(super) enum Event {
    /// A kind is watched from now on.
    Expect(&'static Kind),
    /// An object is new, or changed, or gone.
    Object(Box<Raw>),
    /// That was all of a kind; whatever else was known of it is gone.
    All(&'static Kind, HashSet<Name>),
    /// The definition of a kind is gone, and all of its objects with it.
    Gone(&'static Kind),
    /// A kind is defined, and not served: nothing is waited for on its account.
    Unserved(&'static Kind, String),
    /// The definitions have been read: all kinds that are there now have been told.
    Defined,
    /// The API server does not answer, or refuses, for this kind.
    Lost(&'static str, String),
    /// It answers again. A watch that goes on where it was says nothing until something changes, so this is good for all
    /// kinds; one that is still refused says so again.
    Back(&'static str),
}

/// How long to wait before asking again whether a kind that was defined is served.
const AGAIN: Duration = Duration::from_millis(200);

pub(super) const DEFINITIONS: &str = "customresourcedefinitions";

/// Watches everything until the receiver is gone. `namespace` is where the mesh's own settings live.
pub(super) fn start(client: &Client, namespace: &str, sender: &mpsc::Sender<Event>) -> Vec<JoinHandle<()>> {
    let mut tasks = Vec::new();
    for kind in &kinds::BUILT_IN {
        let resource = resource(kind, kind.versions[0]);
        let (api, config) = match kind.kind {
            "ConfigMap" => (
                Api::namespaced_with(client.clone(), namespace, &resource),
                watcher::Config::default().fields("metadata.name=istio"),
            ),
            // Helm's and old tokens are many and large, and never a certificate.
            "Secret" => (
                Api::all_with(client.clone(), &resource),
                watcher::Config::default()
                    .fields("type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token"),
            ),
            _ => (Api::all_with(client.clone(), &resource), watcher::Config::default()),
        };
        tasks.push(tokio::spawn(one(api, config, kind, resource, sender.clone())));
    }
    tasks.push(tokio::spawn(definitions(client.clone(), sender.clone())));
    tasks
}

fn resource(kind: &Kind, version: &str) -> ApiResource {
    let of = kube::api::GroupVersionKind::gvk(kind.group, version, kind.kind);
    ApiResource::from_gvk_with_plural(&of, kind.plural)
}

/// Follows one kind.
async fn one(
    api: Api<DynamicObject>,
    config: watcher::Config,
    kind: &'static Kind,
    resource: ApiResource,
    sender: mpsc::Sender<Event>,
) {
    if sender.send(Event::Expect(kind)).await.is_err() {
        return;
    }
    let raw = |object: DynamicObject, gone: bool| {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        Raw { kind, namespace, name, json: (!gone).then(|| json(object, &resource)) }
    };
    let mut all = HashSet::new();
    let mut lost = false;
    let mut seen = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(next) = seen.next().await {
        let event = match next {
            Err(error) => {
                lost = true;
                Event::Lost(kind.called(), why(&error))
            }
            Ok(seen) => {
                // A list that is about to be asked for says nothing yet.
                let answers = !matches!(seen, Seen::Init);
                if answers
                    && std::mem::take(&mut lost)
                    && sender.send(Event::Back(kind.called())).await.is_err()
                {
                    return;
                }
                match seen {
                    Seen::Init => {
                        all.clear();
                        continue;
                    }
                    Seen::InitApply(object) => {
                        all.insert((object.namespace().unwrap_or_default(), object.name_any()));
                        Event::Object(Box::new(raw(object, false)))
                    }
                    Seen::InitDone => Event::All(kind, std::mem::take(&mut all)),
                    Seen::Apply(object) => Event::Object(Box::new(raw(object, false))),
                    Seen::Delete(object) => Event::Object(Box::new(raw(object, true))),
                }
            }
        };
        if sender.send(event).await.is_err() {
            return;
        }
    }
}

/// The object as it would stand in a file.
fn json(mut object: DynamicObject, resource: &ApiResource) -> serde_json::Value {
    object.metadata.managed_fields = None;
    let mut json = object.data;
    json["apiVersion"] = resource.api_version.as_str().into();
    json["kind"] = resource.kind.as_str().into();
    json["metadata"] = serde_json::to_value(object.metadata).unwrap_or_default();
    json
}

/// The innermost reason, with what to look at where that is clear.
fn why(error: &watcher::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let (error, deepest) = (error.to_string(), deepest.to_string());
    let text = if error.contains(&deepest) { error } else { format!("{error}: {deepest}") };
    if text.contains("Forbidden") {
        return format!(
            "{text}; look at the ClusterRole that is bound to the control plane's service account"
        );
    }
    text
}

/// Follows the definitions, and with them the kinds that they bring.
async fn definitions(client: Client, sender: mpsc::Sender<Event>) {
    let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client.clone());
    let mut tasks: HashMap<&'static str, JoinHandle<()>> = HashMap::new();
    let mut all: HashSet<&'static str> = HashSet::new();
    let mut lost = false;
    let mut seen = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    while let Some(next) = seen.next().await {
        let seen = match next {
            Err(error) => {
                lost = true;
                if sender.send(Event::Lost(DEFINITIONS, why(&error))).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(seen) => seen,
        };
        let answers = !matches!(seen, Seen::Init);
        if answers && std::mem::take(&mut lost) && sender.send(Event::Back(DEFINITIONS)).await.is_err() {
            return;
        }
        let mut gone = Vec::new();
        match seen {
            Seen::Init => all.clear(),
            Seen::InitApply(definition) | Seen::Apply(definition) => {
                if let Some(kind) = kinds::defined_by(&definition.name_any()) {
                    all.insert(kind.id());
                    if !tasks.contains_key(kind.id()) {
                        // Told before the definitions are: the first state waits for it.
                        if sender.send(Event::Expect(kind)).await.is_err() {
                            return;
                        }
                        let task = tokio::spawn(served(client.clone(), kind, sender.clone()));
                        tasks.insert(kind.id(), task);
                    }
                }
            }
            Seen::Delete(definition) => {
                gone.extend(kinds::defined_by(&definition.name_any()).map(|k| k.id()))
            }
            Seen::InitDone => {
                gone.extend(tasks.keys().filter(|kind| !all.contains(*kind)));
                if sender.send(Event::Defined).await.is_err() {
                    return;
                }
            }
        }
        for name in gone {
            all.remove(name);
            if let Some(task) = tasks.remove(name) {
                task.abort();
                // What it has sent is sent: nothing comes after this.
                let _ = task.await;
            }
            let Some(kind) = kinds::DEFINED.iter().find(|kind| kind.id() == name) else { continue };
            if sender.send(Event::Gone(kind)).await.is_err() {
                return;
            }
        }
    }
}

/// Follows a kind in the best version that is served, as soon as one is.
async fn served(client: Client, kind: &'static Kind, sender: mpsc::Sender<Event>) {
    let mut asked = 0_u32;
    loop {
        for version in kind.versions {
            let there = client.list_api_group_resources(&kind.api_version(version)).await;
            if there.is_ok_and(|list| list.resources.iter().any(|resource| resource.name == kind.plural)) {
                let resource = resource(kind, version);
                let api = Api::all_with(client.clone(), &resource);
                return one(api, watcher::Config::default(), kind, resource, sender).await;
            }
        }
        asked += 1;
        // A definition is served a moment after it is there, unless something is wrong with it.
        if asked == 150 {
            let reason =
                format!("it is defined, but the API server serves none of {}", kind.versions.join(", "));
            if sender.send(Event::Unserved(kind, reason)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(AGAIN * if asked < 150 { 1 } else { 50 }).await;
    }
}
