//! Kubernetes Services of type ExternalName: other names for services.
//!
//! The cluster's DNS answers such a name with the name that it stands for. So a client that asks for it dials the address of the
//! service behind, with the alias as Host; proxies take it as one more name of that service (Istio's rule since 1.21). An alias of
//! what no service of the mesh has for a name is nothing of the mesh: what is sent there goes where any unknown host goes.

use std::collections::HashMap;
use std::sync::Arc;

use super::kubernetes::KubernetesService;
use super::meta::Object;
use super::service::Alias;

/// As many aliases as may stand behind each other.
const LONGEST: usize = 16;

/// The aliases of each host name, in order. An alias of an alias is one of what that stands for.
pub(super) fn aliases(
    services: &[Arc<Object<KubernetesService>>],
    domain: &str,
) -> HashMap<Arc<str>, Vec<Alias>> {
    let mut means: HashMap<Arc<str>, (Arc<str>, &str)> = HashMap::new();
    for service in services.iter().filter(|service| service.spec.is_external_name()) {
        let (meta, target) = (&service.meta, service.spec.external_name.trim_end_matches('.'));
        let hostname = format!("{}.{}.svc.{domain}", meta.name, meta.namespace).into();
        means.insert(hostname, (target.to_ascii_lowercase().into(), &meta.namespace));
    }
    let mut found: HashMap<Arc<str>, Vec<Alias>> = HashMap::new();
    for (hostname, (target, namespace)) in &means {
        let mut last = target;
        // A ring of aliases leads nowhere, and DNS does not follow long ways either.
        let mut steps = 0;
        while let Some((next, _)) = means.get(last) {
            (last, steps) = (next, steps + 1);
            if steps > LONGEST {
                break;
            }
        }
        if steps <= LONGEST {
            let alias = Alias { hostname: hostname.clone(), namespace: (*namespace).to_owned() };
            found.entry(last.clone()).or_default().push(alias);
        }
    }
    for aliases in found.values_mut() {
        aliases.sort();
    }
    found
}
