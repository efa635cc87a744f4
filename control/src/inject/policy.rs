//! Whether a pod is injected: Istio's rules, in Istio's order.

use serde_json::{Value, json};

use super::annotations::boolean;
use super::error::Refusal;
use super::settings::{Policy, Settings};

/// The label, and the older annotation, by which a pod says what it wants.
pub(super) const INJECT: &str = "sidecar.istio.io/inject";
/// By which a pod, or a namespace, chooses among several control planes.
pub(super) const REVISION: &str = "istio.io/rev";

/// Namespaces of Kubernetes' own, whose pods must run before any mesh does.
const NEVER: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Why a pod is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It says so itself.
    Asked,
    /// It uses its node's network, where a redirection would capture everybody's connections.
    HostNetwork,
    /// Its namespace is one of Kubernetes' own.
    Namespace,
    /// The settings say so of pods with its labels, or of all that say nothing.
    Policy,
    /// It belongs to another control plane.
    Revision,
    /// It has a sidecar already.
    Injected,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Asked => "it asks for no sidecar (sidecar.istio.io/inject)",
            Self::HostNetwork => {
                "it uses its node's network (hostNetwork), where a redirection would capture the connections of the whole node"
            }
            Self::Namespace => "its namespace is never injected",
            Self::Policy => "the injector's settings leave pods with such labels alone",
            Self::Revision => "its label istio.io/rev names another control plane",
            Self::Injected => "it has a sidecar already (sidecar.istio.io/status)",
        })
    }
}

/// What a pod says of itself: its label before its annotation.
pub(super) fn wish(metadata: &Value) -> Result<Option<bool>, Refusal> {
    for place in ["labels", "annotations"] {
        match metadata[place].get(INJECT) {
            None | Some(Value::Null) => {}
            Some(value) if value.as_str() == Some("") => {}
            Some(value) => {
                let text = value.as_str().unwrap_or_default();
                return boolean(text).map(Some).ok_or_else(|| {
                    Refusal::new(
                        format!("metadata.{place}[{INJECT}]"),
                        format!("{value} is neither true nor false"),
                        "write \"true\" or \"false\", in quotes",
                    )
                });
            }
        }
    }
    Ok(None)
}

/// Why a pod of this namespace is left alone, if it is.
pub(super) fn why_not(pod: &Value, namespace: &str, settings: &Settings) -> Result<Option<Why>, Refusal> {
    let metadata = &pod["metadata"];
    let wish = wish(metadata)?;
    if metadata["annotations"].get(super::pod::STATUS).is_some() {
        return Ok(Some(Why::Injected));
    }
    if pod["spec"]["hostNetwork"] == true {
        if wish == Some(true) {
            return Err(Refusal::new(
                "spec.hostNetwork",
                format!("the pod asks for a sidecar ({INJECT}), but {}", Why::HostNetwork),
                format!("take hostNetwork away, or {INJECT}"),
            ));
        }
        return Ok(Some(Why::HostNetwork));
    }
    if NEVER.contains(&namespace) {
        return Ok(Some(Why::Namespace));
    }
    let label = |key: &str| metadata["labels"].get(key).and_then(Value::as_str).map(str::to_owned);
    if label(REVISION).is_some_and(|revision| revision != settings.revision) {
        return Ok(Some(Why::Revision));
    }
    let injected = wish.unwrap_or_else(|| {
        if settings.never_inject_selector.iter().any(|one| one.selects(&label)) {
            false
        } else {
            settings.policy == Policy::Enabled
                || settings.always_inject_selector.iter().any(|one| one.selects(&label))
        }
    });
    Ok(match (injected, wish) {
        (true, _) => None,
        (false, Some(_)) => Some(Why::Asked),
        (false, None) => Some(Why::Policy),
    })
}

/// The webhooks' selectors (namespace's and object's, by the webhook's name) for a revision: who is asked about at all. The
/// default revision also takes namespaces by `istio-injection=enabled`, and pods that ask where the namespace says nothing.
pub fn label_selectors(revision: &str) -> Vec<(&'static str, Value, Value)> {
    let is = |key: &str, operator: &str, values: &[&str]| match values {
        [] => json!({"key": key, "operator": operator}),
        _ => json!({"key": key, "operator": operator, "values": values}),
    };
    let of = |all: Vec<Value>| json!({"matchExpressions": all});
    let (injection, own) = ("istio-injection", REVISION);
    let not_refused = || is(INJECT, "NotIn", &["false"]);
    let silent = || of(vec![is(injection, "DoesNotExist", &[]), is(own, "DoesNotExist", &[])]);
    let mut all = vec![
        (
            "rev.namespace",
            of(vec![is(own, "In", &[revision]), is(injection, "DoesNotExist", &[])]),
            of(vec![not_refused()]),
        ),
        ("rev.object", silent(), of(vec![not_refused(), is(own, "In", &[revision])])),
    ];
    if revision == "default" {
        all.push(("namespace", of(vec![is(injection, "In", &["enabled"])]), of(vec![not_refused()])));
        all.push(("object", silent(), of(vec![is(INJECT, "In", &["true"]), is(own, "DoesNotExist", &[])])));
    }
    all
}
