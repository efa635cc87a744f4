//! Where quarantines are written: a file of the configuration's directory for each, or an object of the cluster.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams};

use crate::ingest::load_str;
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
    /// What else whoever wants it is to know; usually nothing.
    pub note: String,
}

impl Done {
    fn new(target: String, changed: bool, place: String) -> Self {
        Self { target, changed, place, note: String::new() }
    }
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
        // A pod and a WorkloadEntry of one name are one: what is written is for both.
        [one, rest @ ..] if rest.iter().all(|w| w.meta.namespace == one.meta.namespace) => Ok(one),
        several => {
            let names: Vec<_> =
                several.iter().map(|w| format!("{}/{}", w.meta.namespace, w.meta.name)).collect();
            Err(Wrong::Unknown(format!("{name} may be {}: say which", names.join(" or "))))
        }
    }
}

/// The quarantine of a workload, which may be gone itself by now, or have entered itself anew under another address.
///
/// # Errors
/// Several may be meant.
pub fn given(world: &World, name: &str) -> Result<Option<Quarantine>, Wrong> {
    let (namespace, short) = split(name);
    let mut all = world.quarantines();
    let key = match find(world, name) {
        Ok(workload) => workload.proxy_key().map(|key| (workload.meta.namespace.clone(), key)),
        Err(_) => None,
    };
    let by_proxy = |one: &Quarantine| {
        key.as_ref().is_some_and(|(namespace, key)| one.namespace == *namespace && one.proxy == *key)
    };
    let by_name = |one: &Quarantine| one.name == short && namespace.is_none_or(|n| one.namespace == n);
    match all.iter().any(by_name) {
        true => all.retain(by_name),
        false => all.retain(by_proxy),
    }
    if all.len() > 1 && namespace.is_none() {
        let names: Vec<_> = all.iter().map(|one| format!("{}/{}", one.namespace, one.name)).collect();
        return Err(Wrong::Unknown(format!("{name} may be {}: say which", names.join(" or "))));
    }
    Ok(all.pop())
}

/// Whether the proxies of a workload that is under quarantine know that they are meant. A proxy is called what the workload at its
/// address is called.
///
/// # Errors
/// One of them is called otherwise.
pub fn reaches(world: &World, target: &str) -> Result<(), String> {
    let (namespace, name) = split(target);
    let is_it = |w: &&Arc<Workload>| w.meta.name == name && namespace.is_none_or(|n| w.meta.namespace == n);
    for workload in world.workloads().iter().filter(is_it).filter(|w| !w.address().is_empty()) {
        let there = world.workload_at(workload.address());
        if there.is_some_and(|there| is_it(&there)) {
            continue;
        }
        let there = there.map_or("no workload's".to_owned(), |there| format!("that of {}", there.meta.key()));
        return Err(format!(
            "the address {} of {} is {there}: the proxy there does not know itself as {target}, and denies nothing. Put what is at that \
             address under quarantine, or give {target} an address of its own",
            workload.address(),
            workload.meta.key()
        ));
    }
    Ok(())
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
            return Ok(Done::new(target, false, there.source));
        }
        let (proxy, note) = lasting(world, workload);
        let object = object(workload, proxy.as_deref(), reason, actor);
        let place = match self {
            Self::Closed(why) => return Err(Wrong::Failed((*why).to_owned())),
            Self::Directory(directory) => {
                let file = directory.join(file_name(&workload.meta.namespace, &workload.meta.name));
                // JSON is YAML, but for a few characters. One file that cannot be read has the whole directory refused.
                let text = format!("{object:#}\n");
                if let Some(error) = load_str(&file.display().to_string(), &text).errors().next() {
                    return Err(Wrong::Failed(format!(
                        "it is not written, for it would be refused: {error}"
                    )));
                }
                write(directory, &file, &text)
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
        Ok(Done { target, changed: true, place, note })
    }

    /// Lifts a quarantine. One that is not there is lifted already.
    ///
    /// # Errors
    /// There is nothing of that name, or it cannot be removed.
    pub async fn lift(&self, world: &World, name: &str) -> Result<Done, Wrong> {
        let Some(there) = given(world, name)? else {
            if let Some(done) = self.unknown(world, name)? {
                return Ok(done);
            }
            let workload = find(world, name)?;
            let target = format!("{}/{}", workload.meta.namespace, workload.meta.name);
            return Ok(Done::new(target, false, String::new()));
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
        Ok(Done::new(target, true, there.source))
    }
}

/// By what a workload that entered itself is known under another address, and what is to be said where nobody could tell it from others.
fn lasting(world: &World, workload: &Workload) -> (Option<String>, String) {
    let Some(key) = workload.proxy_key().filter(|_| workload.entered_itself()) else {
        return (None, String::new());
    };
    let same = |other: &&Arc<Workload>| {
        other.meta.namespace == workload.meta.namespace
            && other.meta.name != workload.meta.name
            && other.proxy_key().as_ref() == Some(&key)
    };
    let others: Vec<_> = world.workloads().iter().filter(same).map(|w| w.meta.name.as_str()).collect();
    if others.is_empty() {
        return (Some(key), String::new());
    }
    let note = format!(
        "{} calls its proxy as {} do ({key}): if it enters itself anew under another address, nobody can tell that it is the one under \
         quarantine. Give each proxy a name of its own (--name)",
        workload.meta.name,
        others.join(", ")
    );
    (None, note)
}

/// Lifts a quarantine in a directory that cannot be read as a whole: the file that [`Store::put`] wrote goes. `why` it cannot be read.
///
/// # Errors
/// There is no such file, or several are meant.
pub fn lift_unread(directory: &Path, name: &str, why: &str) -> Result<Done, Wrong> {
    let (namespace, short) = split(name);
    let entries =
        std::fs::read_dir(directory).map_err(|e| Wrong::Failed(format!("{}: {e}", directory.display())))?;
    let of = |file: &str| {
        let (namespace, name) =
            file.strip_prefix("weft-quarantine.")?.strip_suffix(".yaml")?.split_once('.')?;
        Some((namespace.to_owned(), name.to_owned()))
    };
    let mut found: Vec<_> = entries.flatten().filter_map(|entry| of(entry.file_name().to_str()?)).collect();
    found.retain(|(of, one)| one == short && namespace.is_none_or(|namespace| of == namespace));
    found.sort();
    match found.as_slice() {
        [(namespace, name)] => {
            let file = directory.join(file_name(namespace, name));
            std::fs::remove_file(&file).map_err(|e| Wrong::Failed(format!("{}: {e}", file.display())))?;
            let (target, place) = (format!("{namespace}/{name}"), file.display().to_string());
            let note = format!(
                "the directory is refused as it is, and a control plane goes on with the last good state, where the quarantine holds: mend \
                 this, too\n{why}"
            );
            Ok(Done { target, changed: true, place, note })
        }
        [] => Err(Wrong::Unknown(format!(
            "{} has no file of a quarantine of {name} (weft-quarantine.NAMESPACE.NAME.yaml), and cannot be read as a whole, so that nobody \
             knows whether another file has it:\n{why}",
            directory.display()
        ))),
        several => {
            let names: Vec<_> =
                several.iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect();
            Err(Wrong::Unknown(format!("{name} may be {}: say which", names.join(" or "))))
        }
    }
}

impl Store {
    /// Takes away the file of a quarantine that the state does not know: it may be the very one that has the directory refused.
    fn unknown(&self, world: &World, name: &str) -> Result<Option<Done>, Wrong> {
        let Self::Directory(directory) = self else { return Ok(None) };
        let (namespace, short) = match split(name) {
            (Some(namespace), short) => (namespace, short),
            (None, short) => match find(world, name) {
                Ok(workload) => (workload.meta.namespace.as_str(), short),
                Err(_) => return Ok(None),
            },
        };
        if [namespace, short].iter().any(|part| part.is_empty() || part.contains('/')) {
            return Ok(None);
        }
        let file = directory.join(file_name(namespace, short));
        match std::fs::remove_file(&file) {
            Ok(()) => {
                let (target, place) = (format!("{namespace}/{short}"), file.display().to_string());
                Ok(Some(Done::new(target, true, place)))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Wrong::Failed(format!("{}: {error}", file.display()))),
        }
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
    async fn whatever_others_say_is_written_so_that_it_can_be_read_and_a_file_that_cannot_goes() {
        let directory = tempfile::tempdir().unwrap();
        let own = crate::model::quarantine::QUARANTINE_ANNOTATION;
        // One without labels is known by the policy's own alone.
        let variants =
            [("{}", (own, "vm")), ("{a.b/c_d: v1.2_x}", ("a.b/c_d", "v1.2_x")), ("{app: ''}", ("app", ""))];
        let labels = |value: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: vm, namespace: shop}}\n\
                 spec: {{address: 10.0.0.1, labels: {value}}}\n"
            )
        };
        let store = Store::Directory(directory.path().to_owned());
        let file = directory.path().join("weft-quarantine.shop.vm.yaml");
        for (value, (key, label)) in variants {
            let before = load_str("x.yaml", &labels(value)).into_result().unwrap();
            let reason =
                format!("a\u{7f}\u{80}\u{85}\u{9f}\u{2028}\u{fffe}\u{ffff}\u{feff}\n\0b{}", "ä".repeat(2000));
            store.put(&before, "vm", &reason, "b\u{7f}").await.unwrap();
            let during = world(directory.path());
            let one = &during.quarantines()[0];
            assert_eq!((one.name.as_str(), one.actor.as_str()), ("vm", "b"));
            assert!(
                one.reason.starts_with(&format!("a{}bä", " ".repeat(10))) && one.reason.len() <= 1024,
                "{}",
                one.reason
            );
            let selector = during.all_authorization_policies()[0].spec.selector.clone().unwrap();
            assert_eq!(selector.labels, [(key.to_owned(), label.to_owned())].into());
            // It is not known, and goes all the same.
            assert!(store.lift(&before, "shop/vm").await.unwrap().changed && !file.exists());
        }
        std::fs::write(&file, "{").unwrap();
        let nothing = load_str("x.yaml", "").into_result().unwrap();
        assert!(store.lift(&nothing, "vm").await.is_err(), "nobody knows in which namespace");
        assert!(store.lift(&nothing, "shop/vm").await.unwrap().changed && !file.exists());
        assert!(store.lift(&nothing, "shop/vm").await.is_err());
    }

    #[test]
    fn a_quarantine_is_lifted_though_another_file_of_the_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let at = |file: &str| directory.path().join(file);
        for file in [
            "weft-quarantine.shop.cart-1.yaml",
            "weft-quarantine.other.cart-1.yaml",
            "weft-quarantine.shop.a.b.yaml",
        ] {
            std::fs::write(at(file), "{}").unwrap();
        }
        let lift = |name: &str| lift_unread(directory.path(), name, "mesh.yaml:1: odd");
        let error = lift("cart-1").unwrap_err().to_string();
        assert!(error.contains("other/cart-1 or shop/cart-1"), "{error}");
        let done = lift("shop/cart-1").unwrap();
        assert_eq!((done.target.as_str(), done.changed), ("shop/cart-1", true));
        assert_eq!(
            done.note,
            "the directory is refused as it is, and a control plane goes on with the last good state, where the quarantine holds: mend this, too\n\
             mesh.yaml:1: odd"
        );
        assert!(!at("weft-quarantine.shop.cart-1.yaml").exists());
        // Now it is clear who is meant; and a name may have dots.
        assert_eq!(lift("cart-1").unwrap().target, "other/cart-1");
        assert_eq!(lift("a.b").unwrap().target, "shop/a.b");
        for name in ["cart-1", "shop/../x", ""] {
            assert_eq!(
                lift(name).unwrap_err().to_string(),
                format!(
                    "{} has no file of a quarantine of {name} (weft-quarantine.NAMESPACE.NAME.yaml), and cannot be read as a whole, so that nobody \
                     knows whether another file has it:\nmesh.yaml:1: odd",
                    directory.path().display()
                )
            );
        }
    }

    #[tokio::test]
    async fn a_quarantine_that_no_proxy_knows_as_its_own_is_told() {
        let two = ENTRIES.replace("10.0.0.2", "10.0.0.1");
        let world = load_str("x.yaml", &two).into_result().unwrap();
        assert_eq!(reaches(&world, "shop/cart-1"), Ok(()));
        let why = reaches(&world, "shop/cart-2").unwrap_err();
        assert!(why.contains("10.0.0.1") && why.contains("WorkloadEntry shop/cart-1"), "{why}");
        assert_eq!(reaches(&world, "shop/gone"), Ok(()));
    }

    #[test]
    fn proxies_of_one_name_are_told_apart_by_nobody_and_that_is_said() {
        use crate::model::workload_group::{GROUP_ANNOTATION, PROXY_ANNOTATION};

        let entry = |name: &str, address: &str, proxy: &str| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                 metadata: {{name: {name}, namespace: shop, annotations: {{{GROUP_ANNOTATION}: vms, {PROXY_ANNOTATION}: {proxy}}}}}\n\
                 spec: {{address: {address}, labels: {{app: vm}}}}\n"
            )
        };
        let text = [
            entry("vm-1", "10.0.0.1", "vm"),
            entry("vm-2", "10.0.0.2", "vm"),
            entry("vm-3", "10.0.0.3", "x"),
        ];
        let world = load_str("x.yaml", &text.concat()).into_result().unwrap_or_else(|all| panic!("{all:?}"));
        let of = |name: &str| lasting(&world, find(&world, name).unwrap());
        assert_eq!(of("vm-3"), (Some("vms/x".to_owned()), String::new()));
        let note = "vm-1 calls its proxy as vm-2 do (vms/vm): if it enters itself anew under another address, nobody can tell that it is the one \
                    under quarantine. Give each proxy a name of its own (--name)";
        assert_eq!(of("vm-1"), (None, note.to_owned()));
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
