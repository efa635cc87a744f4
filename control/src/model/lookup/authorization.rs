//! Which AuthorizationPolicies hold for a workload.

use std::sync::Arc;

use crate::model::authorization_policy::{AuthorizationAction, AuthorizationPolicy};
use crate::model::meta::Object;
use crate::model::values::Labels;
use crate::model::world::World;

impl World {
    /// The policies of this action that hold for a workload: those of the root namespace, then those of its own. `name`: what it is
    /// called, where that is known; a quarantine is for one workload alone.
    pub fn authorization_policies(
        &self,
        namespace: &str,
        labels: &Labels,
        name: Option<&str>,
        action: AuthorizationAction,
    ) -> Vec<&Arc<Object<AuthorizationPolicy>>> {
        let root = self.mesh().root_namespace.as_str();
        let of = |wanted: &str| {
            let wanted = wanted.to_owned();
            self.all_authorization_policies().iter().filter(move |policy| {
                policy.meta.namespace == wanted
                    && policy.spec.action == action
                    && match policy.quarantined() {
                        // By name, whatever its labels are: they may change.
                        Some(_) => name.is_some_and(|name| policy.quarantines(self, namespace, name)),
                        None => policy.spec.applies(namespace, labels),
                    }
            })
        };
        let own = (namespace != root).then(|| of(namespace)).into_iter().flatten();
        of(root).chain(own).collect()
    }
}
