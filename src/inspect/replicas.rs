//! Control planes that run in a cluster: their pods are found through its API server, and reached through it as well, as
//! `kubectl port-forward` does it. What asks them asks addresses of this machine, behind each of which is one of them.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};

use crate::configuration::ClusterArgs;

/// In place of an address: all that run in the cluster, in this namespace unless another follows a slash.
const NAME: &str = "cluster";
const NAMESPACE: &str = "istio-system";
/// The labels of their pods: istiod's, and what the chart and deploy/kustomize add, by which an istiod of Istio's is told apart.
const LABEL: &str = "app=istiod,app.kubernetes.io/part-of=weft";
/// Where they tell of themselves, and of their proxies.
const PORT: u16 = 8080;
/// How long one may take to be reached.
const PATIENCE: Duration = Duration::from_secs(15);

/// The namespace whose control planes are meant, if it is these.
fn meant(text: &str) -> Option<&str> {
    match text.strip_prefix(NAME)? {
        "" => Some(NAMESPACE),
        rest => rest.strip_prefix('/').filter(|namespace| !namespace.is_empty()),
    }
}

/// The same addresses, with those that lead to each control plane in place of `cluster`.
///
/// # Errors
/// The cluster cannot be asked, no control plane is ready there, or none can be reached.
pub(super) fn expanded(controls: &[String]) -> anyhow::Result<Vec<String>> {
    static OPEN: Mutex<Option<HashMap<String, Vec<String>>>> = Mutex::new(None);
    let mut all = Vec::new();
    for text in controls {
        let Some(namespace) = meant(text) else {
            all.push(text.clone());
            continue;
        };
        let mut open = OPEN.lock();
        let open = open.get_or_insert_default();
        if !open.contains_key(namespace) {
            open.insert(namespace.to_owned(), forward(namespace)?);
        }
        all.extend(open.get(namespace).into_iter().flatten().cloned());
    }
    Ok(all)
}

/// Opens an address for each, which leads there until this program ends.
fn forward(namespace: &str) -> anyhow::Result<Vec<String>> {
    let (tell, told) = mpsc::channel();
    let namespace = namespace.to_owned();
    std::thread::Builder::new().name("port-forward".to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(tell.send(Err(error.into()))),
        };
        runtime.block_on(async {
            let opened = open(&namespace).await;
            let failed = opened.is_err();
            if tell.send(opened).is_ok() && !failed {
                // Connections are served by tasks of their own, for as long as somebody may ask.
                std::future::pending::<()>().await;
            }
        });
    })?;
    told.recv().context("the control planes in the cluster cannot be reached")?
}

/// The names of those that are ready, in order.
async fn ready(pods: &Api<Pod>) -> kube::Result<Vec<String>> {
    let is_ready = |pod: &Pod| {
        let status = pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        let goes = pod.metadata.deletion_timestamp.is_some();
        !goes && conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
    };
    let all = pods.list(&ListParams::default().labels(LABEL)).await?;
    let mut names: Vec<_> =
        all.items.into_iter().filter(is_ready).filter_map(|pod| pod.metadata.name).collect();
    names.sort();
    Ok(names)
}

async fn open(namespace: &str) -> anyhow::Result<Vec<String>> {
    let client = ClusterArgs { cluster: true, ..ClusterArgs::default() }.client().await?;
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let names = ready(&pods).await.with_context(|| {
        format!(
            "pods of {namespace} cannot be listed; may you? (kubectl -n {namespace} auth can-i list pods)"
        )
    })?;
    if names.is_empty() {
        bail!(
            "no control plane is ready in the namespace {namespace} (pods with the labels {LABEL}); of another namespace: --control \
             cluster/NAMESPACE"
        );
    }
    let (mut addresses, mut failed) = (Vec::new(), Vec::new());
    for name in names {
        match reached(&pods, &name).await {
            Ok(()) => addresses.push(listen(pods.clone(), name).await?.to_string()),
            Err(error) => failed.push(format!("{name}: {error:#}")),
        }
    }
    if addresses.is_empty() {
        bail!(
            "no control plane of {namespace} can be reached through the API server: {}; may you? (kubectl -n {namespace} auth can-i create \
             pods/portforward)",
            failed.join("; ")
        );
    }
    failed.iter().for_each(|why| eprintln!("weft: {why}; this control plane is left out"));
    Ok(addresses)
}

/// Tries whether a way to a pod can be opened.
async fn reached(pods: &Api<Pod>, name: &str) -> anyhow::Result<()> {
    let opened = tokio::time::timeout(PATIENCE, pods.portforward(name, &[PORT])).await;
    opened.with_context(|| format!("no answer within {PATIENCE:?}"))??.abort();
    Ok(())
}

/// Takes connections for a pod.
async fn listen(pods: Api<Pod>, name: String) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let (pods, name) = (pods.clone(), name.clone());
            tokio::spawn(async move {
                if let Err(error) = carry(&pods, &name, connection).await {
                    eprintln!("weft: {name}: {error:#}");
                }
            });
        }
    });
    Ok(address)
}

/// Carries one connection.
async fn carry(pods: &Api<Pod>, name: &str, mut connection: TcpStream) -> anyhow::Result<()> {
    let mut way = pods.portforward(name, &[PORT]).await?;
    let mut stream = way.take_stream(PORT).context("the API server opened no stream")?;
    let failed = way.take_error(PORT);
    // Whoever asks says when it is enough: that the other side then finds nobody is no fault.
    let _ = tokio::io::copy_bidirectional(&mut connection, &mut stream).await;
    drop(stream);
    way.abort();
    if let Some(failed) = failed
        && let Some(why) = failed.await
    {
        bail!("{why}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_meant_by_its_name_and_a_namespace_and_nothing_else_is() {
        assert_eq!(meant("cluster"), Some("istio-system"));
        assert_eq!(meant("cluster/mesh"), Some("mesh"));
        for other in ["127.0.0.1", "cluster.local", "cluster/", "https://cluster"] {
            assert_eq!(meant(other), None, "{other}");
        }
        assert_eq!(expanded(&["127.0.0.1".to_owned()]).unwrap(), ["127.0.0.1"]);
    }
}
