//! Where quarantines are written: a file of the configuration's directory for each, or an object of the cluster.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams};

use crate::model::World;
use crate::model::quarantine::{Quarantine, object, policy_name};
use crate::model::service::Workload;

/// A place to write them.
#[derive(Clone)]
pub enum Store {
    /// A directory of YAML that a control plane follows.
    Directory(PathBuf),
    /// A cluster.
    Cluster(Client),
    /// Nowhere, and why.
    Closed(&'static str),
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The workload, as `NAMESPACE/NAME`.
    pub target: String,
    /// Something is otherwise than before.
    pub changed: bool,
    /// Where it is written.
    pub place: String,
}

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// There is nothing of that name.
    #[error("{0}")]
    Unknown(String),
    /// It could not be written.
    #[error("{0}")]
    Failed(String),
}

/// The workload of this name, `NAME` or `NAMESPACE/NAME`.
///
/// # Errors
/// There is none, or several.
pub fn find<'w>(world: &'w World, name: &str) -> Result<&'w Arc<Workload>, Wrong> {
    let (namespace, short) = split(name);
    let is_it = |w: &&Arc<Workload>| w.meta.name == short && namespace.is_none_or(|n| w.meta.namespace == n);
    let found: Vec<_> = world.workloads().iter().filter(is_it).collect();
    match found.as_slice() {
        [] => Err(Wrong::Unknown(format!(
            "there is no workload {name}: it is the name of a WorkloadEntry or pod, or NAMESPACE/NAME"
        ))),
        [one] => Ok(one),
        several => {
            let names: Vec<_> =
                several.iter().map(|w| format!("{}/{}", w.meta.namespace, w.meta.name)).collect();
            Err(Wrong::Unknown(format!("{name} may be {}: say which", names.join(" or "))))
        }
    }
}

/// The quarantine of a workload, which may be gone itself by now.
///
/// # Errors
/// Several may be meant.
pub fn given(world: &World, name: &str) -> Result<Option<Quarantine>, Wrong> {
    let (namespace, short) = split(name);
    let mut all = world.quarantines();
    all.retain(|one| one.name == short && namespace.is_none_or(|n| one.namespace == n));
    if all.len() > 1 && namespace.is_none() {
        let names: Vec<_> = all.iter().map(|one| format!("{}/{}", one.namespace, one.name)).collect();
        return Err(Wrong::Unknown(format!("{name} may be {}: say which", names.join(" or "))));
    }
    Ok(all.pop())
}

fn split(name: &str) -> (Option<&str>, &str) {
    name.split_once('/').map_or((None, name), |(namespace, name)| (Some(namespace), name))
}

impl Store {
    /// Puts a workload under quarantine.
    ///
    /// # Errors
    /// There is no such workload, or it cannot be written.
    pub async fn put(&self, world: &World, name: &str, reason: &str, actor: &str) -> Result<Done, Wrong> {
        let workload = find(world, name)?;
        let target = format!("{}/{}", workload.meta.namespace, workload.meta.name);
        if let Some(there) = given(world, &target)? {
            return Ok(Done { target, changed: false, place: there.source });
        }
        let object = object(workload, reason, actor);
        let place = match self {
            Self::Closed(why) => return Err(Wrong::Failed((*why).to_owned())),
            Self::Directory(directory) => {
                let file = directory.join(file_name(&workload.meta.namespace, &workload.meta.name));
                // JSON is YAML.
                write(directory, &file, &format!("{object:#}\n"))
                    .map_err(|e| Wrong::Failed(format!("{}: {e}", file.display())))?;
                file.display().to_string()
            }
            Self::Cluster(client) => {
                let name = policy_name(&workload.meta.name);
                let patch = PatchParams::apply("weft-quarantine").force();
                let applied =
                    api(client, &workload.meta.namespace).patch(&name, &patch, &Patch::Apply(&object)).await;
                applied.map_err(|e| Wrong::Failed(format!("AuthorizationPolicy {target}: {e}")))?;
                format!("AuthorizationPolicy {}/{name}", workload.meta.namespace)
            }
        };
        Ok(Done { target, changed: true, place })
    }

    /// Lifts a quarantine. One that is not there is lifted already.
    ///
    /// # Errors
    /// There is nothing of that name, or it cannot be removed.
    pub async fn lift(&self, world: &World, name: &str) -> Result<Done, Wrong> {
        let Some(there) = given(world, name)? else {
            let workload = find(world, name)?;
            let target = format!("{}/{}", workload.meta.namespace, workload.meta.name);
            return Ok(Done { target, changed: false, place: String::new() });
        };
        let target = format!("{}/{}", there.namespace, there.name);
        match self {
            Self::Closed(why) => return Err(Wrong::Failed((*why).to_owned())),
            Self::Directory(directory) => {
                let file = directory.join(file_name(&there.namespace, &there.name));
                std::fs::remove_file(&file).map_err(|e| {
                    Wrong::Failed(format!(
                        "{}: {e}; the quarantine is written at {}",
                        file.display(),
                        there.source
                    ))
                })?;
            }
            Self::Cluster(client) => {
                let gone =
                    api(client, &there.namespace).delete(&there.policy, &DeleteParams::default()).await;
                match gone {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(error) => {
                        return Err(Wrong::Failed(format!("AuthorizationPolicy {target}: {error}")));
                    }
                }
            }
        }
        Ok(Done { target, changed: true, place: there.source })
    }
}

/// A name that no other workload's file has: a namespace has no dot.
fn file_name(namespace: &str, name: &str) -> String {
    format!("weft-quarantine.{namespace}.{name}.yaml")
}

fn api(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("security.istio.io", "v1", "AuthorizationPolicy");
    let resource = ApiResource::from_gvk_with_plural(&kind, "authorizationpolicies");
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// Whole or not at all: whoever follows the directory must not read a half.
fn write(directory: &Path, file: &Path, text: &str) -> std::io::Result<()> {
    let unfinished = file.with_extension("unfinished");
    let mut new = std::fs::File::create(&unfinished)?;
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    std::fs::rename(&unfinished, file)?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::load_dir;

    fn world(directory: &Path) -> World {
        load_dir(directory).into_result().unwrap_or_else(|all| panic!("{all:?}"))
    }

    const ENTRIES: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: cart-1, namespace: shop}
spec: {address: 10.0.0.1, labels: {app: cart}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: cart-2, namespace: shop}
spec: {address: 10.0.0.2, labels: {app: cart}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: cart-1, namespace: other}
spec: {address: 10.0.0.3}
";

    #[tokio::test]
    async fn a_quarantine_is_a_file_that_is_read_and_goes_again() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("mesh.yaml"), ENTRIES).unwrap();
        let store = Store::Directory(directory.path().to_owned());
        let before = world(directory.path());
        let done = store.put(&before, "shop/cart-1", "a shell: \"sh\"", "falco").await.unwrap();
        assert_eq!((done.target.as_str(), done.changed), ("shop/cart-1", true));
        let during = world(directory.path());
        let all = during.quarantines();
        assert_eq!(
            (all.len(), all[0].reason.as_str(), all[0].actor.as_str()),
            (1, "a shell: \"sh\"", "falco")
        );
        // It is for this one alone, and not for its replica or namesake.
        let holds = |namespace: &str, name: &str, address: &str| {
            let workload = during.workload_at(address).unwrap();
            let deny = crate::model::authorization_policy::AuthorizationAction::Deny;
            let policies = during.authorization_policies(namespace, workload.labels(), Some(name), deny);
            policies.len()
        };
        assert_eq!(holds("shop", "cart-1", "10.0.0.1"), 1);
        assert_eq!((holds("shop", "cart-2", "10.0.0.2"), holds("other", "cart-1", "10.0.0.3")), (0, 0));
        // Once more changes nothing.
        assert!(!store.put(&during, "shop/cart-1", "again", "me").await.unwrap().changed);
        assert!(store.lift(&during, "cart-1").await.unwrap().changed);
        let after = world(directory.path());
        assert!(after.quarantines().is_empty());
        assert!(!store.lift(&after, "shop/cart-1").await.unwrap().changed);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left");
    }

    #[tokio::test]
    async fn who_is_meant_must_be_clear() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("mesh.yaml"), ENTRIES).unwrap();
        let (world, store) = (world(directory.path()), Store::Directory(directory.path().to_owned()));
        for (name, words) in [
            ("cart-1", "other/cart-1 or shop/cart-1"),
            ("cart-9", "no workload cart-9"),
            ("shop/../x", "no workload"),
        ] {
            let error = store.put(&world, name, "", "").await.unwrap_err().to_string();
            let either = words.split(" or ").all(|word| error.contains(word));
            assert!(either, "{name}: {error}");
        }
        let closed = Store::Closed("signed");
        assert_eq!(closed.put(&world, "cart-2", "", "").await, Err(Wrong::Failed("signed".to_owned())));
    }
}
