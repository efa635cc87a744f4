//! The ConfigMap `istio-ca-root-cert`: in every namespace that the mesh knows, for pods that are to know the control plane from the
//! start. One that is right is looked at, and not written.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::ingest::Snapshot;
use crate::model::{Labels, Trust};

/// How often all of them are looked at again, for somebody may have changed one or taken it away.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(40);
/// Its name, and its key.
const NAME: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";
/// By which Istio's tools know it.
const LABEL: &str = "istio.io/config";
/// Namespaces of Kubernetes' own, where nobody is injected.
const NEVER: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// Keeps it in the namespaces that the mesh knows, for ever.
pub(super) async fn keep(
    client: Client,
    mut trust: watch::Receiver<Arc<Trust>>,
    mut states: watch::Receiver<Arc<Snapshot>>,
) {
    let all: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let mut events = Box::pin(watcher(all, watcher::Config::default()).default_backoff());
    let mut namespaces: BTreeMap<String, Labels> = BTreeMap::new();
    // Where it is right, as far as anybody knows.
    let mut right: BTreeSet<String> = BTreeSet::new();
    let mut said = false;
    loop {
        let roots = trust.borrow_and_update().roots.clone();
        let mesh = states.borrow_and_update().world.mesh().clone();
        let mut failed = None;
        let known = namespaces.iter().filter(|(name, labels)| mesh.knows(name, labels));
        for name in known.map(|(name, _)| name).filter(|name| !right.contains(*name)).collect::<Vec<_>>() {
            match write(&client, name, &roots).await {
                Ok(()) => drop(right.insert(name.clone())),
                Err(error) => failed = Some(error),
            }
        }
        match &failed {
            None => said = false,
            // Until it is mended, pods with sidecars wait for it: said loudly, and once.
            Some(error) if !said => {
                said = true;
                tracing::error!(%error, "the mesh's roots cannot be written into the ConfigMap {NAME} of every namespace; may this \
                    service account get, create and patch it? Trying again");
            }
            Some(_) => {}
        }
        let pause = tokio::time::sleep(if failed.is_some() { RETRY } else { AGAIN });
        tokio::pin!(pause);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Apply(one) | Event::InitApply(one))) => {
                        let name = one.name_any();
                        if one.metadata.deletion_timestamp.is_none() && !NEVER.contains(&name.as_str()) {
                            namespaces.insert(name, one.metadata.labels.unwrap_or_default());
                        }
                    }
                    Some(Ok(Event::Delete(one))) => {
                        namespaces.remove(&one.name_any());
                        right.remove(&one.name_any());
                    }
                    Some(Ok(Event::Init | Event::InitDone)) => {}
                    Some(Err(error)) => tracing::warn!(%error, "namespaces cannot be watched; trying again"),
                    None => return,
                },
                changed = trust.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    right.clear();
                }
                changed = states.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Most changes are none of the selectors.
                    if Arc::ptr_eq(states.borrow_and_update().world.mesh(), &mesh) {
                        continue;
                    }
                }
                // Somebody may have written it otherwise, or taken it away.
                () = &mut pause => if failed.is_none() { right.clear() },
            }
            break;
        }
    }
}

async fn write(client: &Client, namespace: &str, roots: &str) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(NAME).await?;
    let is_right = |found: &ConfigMap| {
        let has = |values: &Option<Labels>, key: &str, wanted: &str| {
            values.as_ref().and_then(|values| values.get(key)).is_some_and(|value| value == wanted)
        };
        has(&found.data, KEY, roots) && has(&found.metadata.labels, LABEL, "true")
    };
    if found.as_ref().is_some_and(is_right) {
        return Ok(());
    }
    let wanted = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "labels": {LABEL: "true"}}, "data": {KEY: roots}});
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

#[cfg(test)]
mod tests {
    use http::{Method, Request, Response, StatusCode};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::Value;

    use super::*;

    /// What an API server has of it, and how often it was written.
    type There = Arc<Mutex<(Option<Value>, usize)>>;

    fn server(there: &There) -> Client {
        let there = there.clone();
        let answer = move |request: Request<Body>| {
            let there = there.clone();
            async move {
                assert_eq!(request.uri().path(), "/api/v1/namespaces/shop/configmaps/istio-ca-root-cert");
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let mut there = there.lock();
                if parts.method == Method::PATCH {
                    *there = (Some(serde_json::from_slice(&body).unwrap()), there.1 + 1);
                } else {
                    assert_eq!(parts.method, Method::GET);
                }
                let (status, object) = match &there.0 {
                    Some(object) => (StatusCode::OK, object.clone()),
                    None => (
                        StatusCode::NOT_FOUND,
                        json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "message": "", "code": 404}),
                    ),
                };
                let mut response = Response::new(Body::from(object.to_string().into_bytes()));
                *response.status_mut() = status;
                Ok::<_, std::convert::Infallible>(response)
            }
        };
        Client::new(tower::service_fn(answer), "default")
    }

    #[tokio::test]
    async fn what_is_right_is_not_written() {
        let there = There::default();
        let client = server(&there);
        let writes = || there.lock().1;
        write(&client, "shop", "one").await.unwrap();
        assert_eq!(writes(), 1);
        write(&client, "shop", "one").await.unwrap();
        assert_eq!(writes(), 1, "it is there");
        write(&client, "shop", "two").await.unwrap();
        assert_eq!(writes(), 2);
        for (path, value) in [("/data/root-cert.pem", json!("mine")), ("/metadata/labels", json!({}))] {
            *there.lock().0.as_mut().unwrap().pointer_mut(path).unwrap() = value;
            let before = writes();
            write(&client, "shop", "two").await.unwrap();
            assert_eq!(writes(), before + 1, "somebody has changed {path}");
        }
    }
}
