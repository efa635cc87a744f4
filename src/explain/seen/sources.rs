//! Where the objects were written that decided about a request: proxies know their names, a directory or a cluster their places.

use serde_json::Value;
use weft_control::model::{Meta, World};

use crate::explain::Origin;

/// Where objects may be written.
pub(crate) struct Sources<'a> {
    /// A directory's state, or a cluster's; none if nobody named one.
    pub(crate) world: Option<&'a World>,
}

impl Sources<'_> {
    /// The object of a path such as `/apis/networking.istio.io/v1/namespaces/shop/virtual-service/canary`, which Istio writes into
    /// metadata of routes and clusters.
    pub(crate) fn object(&self, path: &str) -> Option<Origin> {
        let mut parts = path.rsplit('/');
        let (name, kind, namespace) = (parts.next()?, parts.next()?, parts.next()?);
        let kind: String = kind.split('-').map(capital).collect();
        Some(self.find(&kind, namespace, name))
    }

    /// The policy of a rule of ours or of istiod's: `ns[shop]-policy[readers]-rule[0]`.
    pub(super) fn policy(&self, rule: &str) -> Option<(Origin, String)> {
        let (_, rest) = rule.split_once("ns[")?;
        let (namespace, rest) = rest.split_once("]-policy[")?;
        let (name, rest) = rest.split_once("]-rule[")?;
        let number = rest.split_once(']')?.0;
        Some((self.find("AuthorizationPolicy", namespace, name), format!("rule {number}")))
    }

    fn find(&self, kind: &str, namespace: &str, name: &str) -> Origin {
        let at = self.world.and_then(|world| meta(world, kind, namespace, name));
        match at {
            Some(meta) => Origin::of(meta),
            None => Origin { object: format!("{kind} {namespace}/{name}"), at: String::new() },
        }
    }

    /// Adds to what a proxy has kept where it was written.
    pub(super) fn complete(&self, page: &mut Value) {
        let place = |origin: Option<Origin>| origin.and_then(|origin| serde_json::to_value(origin).ok());
        if let Some(found) = page["route"]["origin"].as_str().and_then(|path| place(self.object(path))) {
            page["route"]["written"] = found;
        }
        if let Some(found) = page["clusterOrigin"].as_str().and_then(|path| place(self.object(path))) {
            page["clusterWritten"] = found;
        }
        for decision in page["decisions"].as_array_mut().into_iter().flatten() {
            let named = decision["name"].as_str().and_then(|name| self.policy(name));
            if let Some(found) = place(named.map(|(origin, _)| origin)) {
                decision["written"] = found;
            }
        }
    }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
}

fn meta<'w>(world: &'w World, kind: &str, namespace: &str, name: &str) -> Option<&'w Meta> {
    let is = |meta: &&Meta| meta.namespace == namespace && meta.name == name;
    match kind {
        "VirtualService" => world.virtual_services().iter().map(|o| &o.meta).find(is),
        "DestinationRule" => world.destination_rules().iter().map(|o| &o.meta).find(is),
        "AuthorizationPolicy" => world.all_authorization_policies().iter().map(|o| &o.meta).find(is),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_as_people_know_them() {
        let sources = Sources { world: None };
        let route =
            sources.object("/apis/networking.istio.io/v1/namespaces/shop/virtual-service/canary").unwrap();
        assert_eq!(route.object, "VirtualService shop/canary");
        let (policy, rule) = sources.policy("ns[shop]-policy[readers]-rule[2]").unwrap();
        assert_eq!((policy.object.as_str(), rule.as_str()), ("AuthorizationPolicy shop/readers", "rule 2"));
        assert!(sources.policy("mine").is_none());
    }
}
