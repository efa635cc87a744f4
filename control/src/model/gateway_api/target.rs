//! What a policy names as that for which it is.

use serde::Deserialize;

/// Names a Gateway or a Service of the policy's namespace, or a GatewayClass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TargetRef {
    /// Its group; empty for Kubernetes' own.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace: none but the policy's own.
    pub namespace: String,
}
