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
        self.peer_policy(namespace, labels, port).0
    }

    /// The same with the policy that says so; none where nobody does.
    pub fn peer_policy(
        &self,
        namespace: &str,
        labels: &Labels,
        port: Option<u16>,
    ) -> (EffectivePeerMode, Option<&Arc<Object<PeerAuthentication>>>) {
        let inherited = self.namespace_policy(namespace);
        let Some(policy) = self.workload_policy(namespace, labels) else { return inherited };
        let of_port = port.and_then(|port| policy.spec.port_level_mtls.get(&port)).map(|mtls| mtls.mode);
        // The narrowest that says something counts.
        match said(of_port).or_else(|| said(policy.spec.mtls.map(|mtls| mtls.mode))) {
            Some(mode) => (mode, Some(policy)),
            None => inherited,
        }
    }

    /// The ports for which the policy of a workload says something of their own.
    pub fn peer_ports(&self, namespace: &str, labels: &Labels) -> Vec<u16> {
        let policy = self.workload_policy(namespace, labels);
        policy.iter().flat_map(|policy| policy.spec.port_level_mtls.keys()).copied().collect()
    }

    /// The policy that selects a workload; the root namespace's policies are the mesh's, and select nobody.
    fn workload_policy(&self, namespace: &str, labels: &Labels) -> Option<&Arc<Object<PeerAuthentication>>> {
        let selecting = |policy: &&Arc<Object<PeerAuthentication>>| {
            let selector = policy.spec.selector.as_ref();
            policy.meta.namespace == namespace
                && selector.is_some_and(|selector| !selector.labels.is_empty() && selector.selects(labels))
        };
        let own = namespace != self.mesh().root_namespace;
        self.peer_authentications().iter().find(selecting).filter(|_| own)
    }

    /// The mode of a namespace, which is what its clients go by.
    pub fn namespace_peer_mode(&self, namespace: &str) -> EffectivePeerMode {
        self.namespace_policy(namespace).0
    }

    fn namespace_policy(
        &self,
        namespace: &str,
    ) -> (EffectivePeerMode, Option<&Arc<Object<PeerAuthentication>>>) {
        let root = self.mesh().root_namespace.as_str();
        let of = |namespace| {
            let policy = self.wide_policy(namespace)?;
            Some((said(policy.spec.mtls.map(|mtls| mtls.mode))?, Some(policy)))
        };
        of(namespace).or_else(|| of(root)).unwrap_or((EffectivePeerMode::Permissive, None))
    }

    fn wide_policy(&self, namespace: &str) -> Option<&Arc<Object<PeerAuthentication>>> {
        let wide = |policy: &&Arc<Object<PeerAuthentication>>| {
            policy.meta.namespace == namespace
                && policy.spec.selector.as_ref().is_none_or(|selector| selector.labels.is_empty())
        };
        self.peer_authentications().iter().find(wide)
    }
}

/// The mode, unless it is left to whoever is wider.
fn said(mode: Option<PeerMode>) -> Option<EffectivePeerMode> {
    match mode? {
        PeerMode::Unset => None,
        PeerMode::Disable => Some(EffectivePeerMode::Disable),
        PeerMode::Permissive => Some(EffectivePeerMode::Permissive),
        PeerMode::Strict => Some(EffectivePeerMode::Strict),
    }
}
