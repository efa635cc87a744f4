//! Which tokens a workload knows.

use std::sync::Arc;

use crate::model::meta::Object;
use crate::model::request_authentication::{JwtRule, RequestAuthentication};
use crate::model::values::Labels;
use crate::model::world::World;

impl World {
    /// The rules that hold for a workload, those of the root namespace and of its own together, in the order of their
    /// issuers.
    pub fn jwt_rules(&self, namespace: &str, labels: &Labels) -> Vec<&JwtRule> {
        let root = self.mesh().root_namespace.as_str();
        let of = |wanted: &str| {
            let wanted = wanted.to_owned();
            let holds = move |object: &&Arc<Object<RequestAuthentication>>| {
                object.meta.namespace == wanted && object.spec.applies(namespace, labels)
            };
            self.request_authentications().iter().filter(holds)
        };
        let own = (namespace != root).then(|| of(namespace)).into_iter().flatten();
        let mut rules: Vec<&JwtRule> =
            of(root).chain(own).flat_map(|object| &object.spec.jwt_rules).collect();
        rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
        rules
    }
}
