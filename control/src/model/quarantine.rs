//! A workload under quarantine: everything that comes to it is denied, until somebody lifts it.
//!
//! It is an AuthorizationPolicy that denies everything, with an annotation that names the one workload for which it is: its
//! replicas, which have the same labels, go on. (To istiod, which does not know the annotation, it is for all that have its labels.)

use serde_json::{Value, json};
use weft_certs::digest::sha256_hex;

use super::authorization_policy::AuthorizationPolicy;
use super::labels::{LONGEST, is_label};
use super::meta::Object;
use super::service::Workload;
use super::workload_group;
use super::world::World;

/// Annotation of an AuthorizationPolicy: the workload for which alone it is.
pub const QUARANTINE_ANNOTATION: &str = "weft.dev/quarantine";
/// Where that workload has entered itself, `GROUP/NAME` of its proxy: it is for whatever that one enters, at whatever address.
pub const PROXY_ANNOTATION: &str = "weft.dev/quarantine-proxy";
/// Why.
pub const REASON_ANNOTATION: &str = "weft.dev/quarantine-reason";
/// Who wanted it.
pub const ACTOR_ANNOTATION: &str = "weft.dev/quarantine-by";
/// The names of such policies begin so; proxies know a quarantine by that.
pub const PREFIX: &str = "weft-quarantine-";

/// A reason, or who wanted it, is cut to so many bytes.
const LONGEST_TEXT: usize = 1024;

/// A quarantine that holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quarantine {
    /// The workload's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The group and name of its proxy, where it has entered itself; else empty.
    pub proxy: String,
    /// Why.
    pub reason: String,
    /// Who wanted it.
    pub actor: String,
    /// Where it is written.
    pub source: String,
    /// The policy's name.
    pub policy: String,
}

impl Object<AuthorizationPolicy> {
    /// The name of the workload for which alone it is, if it is a quarantine.
    pub fn quarantined(&self) -> Option<&str> {
        self.meta.annotations.get(QUARANTINE_ANNOTATION).map(String::as_str)
    }

    /// Whether it is a quarantine of this workload, under the name that it had then or another one by now.
    pub fn quarantines(&self, world: &World, namespace: &str, name: &str) -> bool {
        if self.meta.namespace != namespace {
            return false;
        }
        let by_proxy = || {
            let proxy = self.meta.annotations.get(PROXY_ANNOTATION)?;
            let workload = world
                .workloads()
                .iter()
                .find(|w| w.meta.namespace == namespace && w.meta.name == name && w.proxy_key().is_some())?;
            (workload.proxy_key()? == *proxy).then_some(())
        };
        self.quarantined().is_some_and(|one| one == name || by_proxy().is_some())
    }
}

impl World {
    /// The quarantines that hold.
    pub fn quarantines(&self) -> Vec<Quarantine> {
        let quarantine = |policy: &std::sync::Arc<Object<AuthorizationPolicy>>| {
            let said = |name: &str| policy.meta.annotations.get(name).cloned().unwrap_or_default();
            Some(Quarantine {
                namespace: policy.meta.namespace.clone(),
                name: policy.quarantined()?.to_owned(),
                proxy: said(PROXY_ANNOTATION),
                reason: said(REASON_ANNOTATION),
                actor: said(ACTOR_ANNOTATION),
                source: policy.meta.source.to_string(),
                policy: policy.meta.name.clone(),
            })
        };
        let mut all: Vec<_> = self.all_authorization_policies().iter().filter_map(quarantine).collect();
        all.sort();
        all
    }
}

impl Workload {
    /// By what a workload that entered itself is known wherever it is: its group, and what its proxy calls itself.
    pub fn proxy_key(&self) -> Option<String> {
        let said = |annotation: &str| self.meta.annotations.get(annotation);
        let (group, proxy) =
            (said(workload_group::GROUP_ANNOTATION)?, said(workload_group::PROXY_ANNOTATION)?);
        Some(format!("{group}/{proxy}"))
    }
}

/// The object that puts a workload under quarantine. `proxy`: by what else it is known.
pub fn object(workload: &Workload, proxy: Option<&str>, reason: &str, actor: &str) -> Value {
    // Only what a selector may have: a workload that entered itself has chosen its labels.
    let mut labels = workload.labels().clone();
    labels.retain(|key, value| is_label(key, value));
    if labels.is_empty() {
        // Without a selector it would be, to somebody who does not know the annotation, for the whole namespace.
        labels.insert(QUARANTINE_ANNOTATION.to_owned(), label(&workload.meta.name));
    }
    let mut annotations = json!({QUARANTINE_ANNOTATION: workload.meta.name});
    for (name, text) in [
        (PROXY_ANNOTATION, proxy.unwrap_or_default()),
        (REASON_ANNOTATION, reason),
        (ACTOR_ANNOTATION, actor),
    ] {
        let text = told(text);
        if !text.is_empty() {
            annotations[name] = text.into();
        }
    }
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {
            "name": policy_name(&workload.meta.name),
            "namespace": workload.meta.namespace,
            "annotations": annotations,
        },
        "spec": {"selector": {"matchLabels": labels}, "action": "DENY", "rules": [{}]},
    })
}

/// A name as the value of a label, cut where it is too long for one; no other name is cut to the same.
fn label(name: &str) -> String {
    if name.len() <= LONGEST {
        return name.to_owned();
    }
    let hash = &sha256_hex(name.as_bytes())[..8];
    format!("{}-{hash}", &name[..name.floor_char_boundary(LONGEST - hash.len() - 1)])
}

/// What somebody outside has said, as one short line that any reader of YAML takes as it was written.
fn told(text: &str) -> String {
    let odd = |c: char| {
        c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    let text: String = text.chars().map(|c| if odd(c) { ' ' } else { c }).collect();
    text[..text.floor_char_boundary(LONGEST_TEXT)].trim().to_owned()
}

/// The name of the policy of a workload's quarantine.
pub fn policy_name(workload: &str) -> String {
    format!("{PREFIX}{workload}")
}
