//! Which IPDenyLists hold at a gateway.

use std::sync::Arc;

use crate::model::ip_deny_list::{AddressSet, IpDenyList};
use crate::model::meta::Object;
use crate::model::values::Labels;
use crate::model::world::World;

impl World {
    /// The lists that hold at a gateway and have been read: those of the root namespace, then those of its own.
    pub fn deny_lists_at(
        &self,
        namespace: &str,
        labels: &Labels,
    ) -> Vec<(&Arc<Object<IpDenyList>>, &Arc<AddressSet>)> {
        let root = self.mesh().root_namespace.as_str();
        let of = |wanted: &str| {
            let wanted = wanted.to_owned();
            let holds = move |object: &&Arc<Object<IpDenyList>>| {
                object.meta.namespace == wanted && object.spec.selects(labels)
            };
            self.ip_deny_lists().iter().filter(holds)
        };
        let own = (namespace != root).then(|| of(namespace)).into_iter().flatten();
        of(root).chain(own).filter_map(|o| Some((o, self.deny_lists().of(&o.list_source())?))).collect()
    }
}
