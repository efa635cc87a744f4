//! Whether a workload's port takes plain text, mutual TLS, or both.

use std::sync::Arc;

use crate::model::meta::Object;
use crate::model::peer_authentication::{EffectivePeerMode, PeerAuthentication, PeerMode};
use crate::model::values::Labels;
use crate::model::world::World;

impl World {
    /// The mode of a workload's `port` (the workload's own, not its service's); without a port, of the workload as such.
    ///
    /// Port settings of a workload's policy go before its mode, that before its namespace's, that before the mesh's;
    /// `UNSET` inherits, and the oldest policy of a level is the one that counts.
    pub fn peer_mode(&self, namespace: &str, labels: &Labels, port: Option<u16>) -> EffectivePeerMode {
        let inherited = self.namespace_peer_mode(namespace);
        if namespace == self.mesh().root_namespace {
            return inherited;
        }
        let policy = self.peer_authentications().iter().find(|policy| {
            policy.meta.namespace == namespace
                && policy
                    .spec
                    .selector
                    .as_ref()
                    .is_some_and(|selector| !selector.labels.is_empty() && selector.selects(labels))
        });
        let Some(policy) = policy else { return inherited };
        let workload = resolve(policy.spec.mtls.map(|mtls| mtls.mode), inherited);
        let at_port = port.and_then(|port| policy.spec.port_level_mtls.get(&port)).map(|mtls| mtls.mode);
        resolve(at_port, workload)
    }

    /// The mode of a namespace, which is what its clients go by.
    pub fn namespace_peer_mode(&self, namespace: &str) -> EffectivePeerMode {
        let root = self.mesh().root_namespace.as_str();
        let of_mesh = resolve(self.wide_policy(root), EffectivePeerMode::Permissive);
        if namespace == root { of_mesh } else { resolve(self.wide_policy(namespace), of_mesh) }
    }

    fn wide_policy(&self, namespace: &str) -> Option<PeerMode> {
        let wide = |policy: &&Arc<Object<PeerAuthentication>>| {
            policy.meta.namespace == namespace
                && policy.spec.selector.as_ref().is_none_or(|selector| selector.labels.is_empty())
        };
        self.peer_authentications().iter().find(wide)?.spec.mtls.map(|mtls| mtls.mode)
    }
}

fn resolve(mode: Option<PeerMode>, inherited: EffectivePeerMode) -> EffectivePeerMode {
    match mode {
        None | Some(PeerMode::Unset) => inherited,
        Some(PeerMode::Disable) => EffectivePeerMode::Disable,
        Some(PeerMode::Permissive) => EffectivePeerMode::Permissive,
        Some(PeerMode::Strict) => EffectivePeerMode::Strict,
    }
}
