//! Policies and Telemetries for what they name by `targetRefs`: they become ones for the workloads behind it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::doors::{Place, Served};
use super::known::Known;
use super::warning;
use crate::ingest::diagnostic::Diagnostic;
use crate::model::authorization_policy::AuthorizationPolicy;
use crate::model::gateway_api::{GROUP, TargetRef};
use crate::model::meta::{Meta, Object};
use crate::model::request_authentication::RequestAuthentication;
use crate::model::telemetry::Telemetry;
use crate::model::values::WorkloadSelector;

/// A policy that may name what it is for.
pub(super) trait Targeted: Clone {
    /// What it names.
    fn targets(&self) -> Vec<&TargetRef>;

    /// The same for these workloads.
    fn at(&self, place: &Place) -> Self;
}

macro_rules! targeted {
    ($($kind:ty $(, $place:ident)?;)*) => { $(
        impl Targeted for $kind {
            fn targets(&self) -> Vec<&TargetRef> {
                self.target_ref.iter().chain(&self.target_refs).collect()
            }

            fn at(&self, place: &Place) -> Self {
                Self {
                    selector: Some(WorkloadSelector { labels: place.selector.clone() }),
                    $($place: Some(place.namespace.clone()),)?
                    target_ref: None,
                    target_refs: Vec::new(),
                    ..self.clone()
                }
            }
        }
    )* };
}

targeted! {
    AuthorizationPolicy, place;
    RequestAuthentication, place;
    Telemetry;
}

/// Puts in the place of policies with targets those for the workloads behind them. What is not there nobody is behind: such a policy
/// holds for nobody, and that is said.
pub(super) fn resolve<T: Targeted>(
    known: &Known<'_>,
    served: &[Served<'_>],
    policies: &[Arc<Object<T>>],
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<Arc<Object<T>>> {
    let mut all = Vec::with_capacity(policies.len());
    for policy in policies {
        let targets = policy.spec.targets();
        if targets.is_empty() {
            all.push(policy.clone());
            continue;
        }
        let mut places: Vec<Place> = Vec::new();
        for target in targets {
            let found = match target.kind.as_str() {
                "GatewayClass" => of_class(known, served, &policy.meta, target),
                _ => place(known, served, &policy.meta, target).map(|place| vec![place]),
            };
            match found {
                Ok(found) => {
                    for place in found {
                        if !places.contains(&place) {
                            places.push(place);
                        }
                    }
                }
                Err(reason) => {
                    let help = "it holds for nobody there; correct the name, or select workloads by selector";
                    let path = Some("spec.targetRefs".to_owned());
                    diagnostics.push(Diagnostic { path, ..warning(&policy.meta, reason, help) });
                }
            }
        }
        for place in places {
            let mut hasher = DefaultHasher::new();
            (policy.meta.version, &place.namespace, &place.selector).hash(&mut hasher);
            let meta =
                Meta { namespace: place.namespace.clone(), version: hasher.finish(), ..policy.meta.clone() };
            all.push(Arc::new(Object { meta, spec: policy.spec.at(&place) }));
        }
    }
    all
}

/// Where the Gateways of a class are served, over all of which the root namespace has a say.
fn of_class(
    known: &Known<'_>,
    served: &[Served<'_>],
    of: &Meta,
    target: &TargetRef,
) -> Result<Vec<Place>, String> {
    let (root, name) = (known.root_namespace(), &target.name);
    if of.namespace != root {
        return Err(format!("what is for a GatewayClass stands in the root namespace, {root}"));
    }
    if !known.serves_class(name) {
        return Err(format!("Weft serves no GatewayClass {name:?}"));
    }
    let of_it = served.iter().filter(|served| served.object.spec.gateway_class_name == *name);
    Ok(of_it.filter_map(|served| served.place.clone().ok()).collect())
}

fn place(known: &Known<'_>, served: &[Served<'_>], of: &Meta, target: &TargetRef) -> Result<Place, String> {
    let (namespace, name) = (&of.namespace, &target.name);
    if target.group == GROUP && target.kind == "Gateway" {
        let found =
            served.iter().find(|s| s.object.meta.namespace == *namespace && s.object.meta.name == *name);
        let found = found.ok_or_else(|| format!("Weft serves no Gateway {namespace}/{name}"))?;
        let place = found.place.clone();
        let place = place.map_err(|(_, message)| format!("Gateway {namespace}/{name}: {message}"))?;
        // Whoever may write into a namespace has no say over workloads of another, whatever the Gateway's address is.
        if place.namespace != *namespace {
            return Err(format!(
                "Gateway {namespace}/{name} is served by workloads of {}, over which policies of {namespace} have no say",
                place.namespace
            ));
        }
        return Ok(place);
    }
    let service = known.service(namespace, name);
    let service = service.ok_or_else(|| format!("there is no Service {namespace}/{name}"))?;
    if service.spec.selector.is_empty() {
        return Err(format!("Service {namespace}/{name} selects no workloads"));
    }
    Ok(Place { namespace: namespace.clone(), selector: service.spec.selector.clone() })
}
