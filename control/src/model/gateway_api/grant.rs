//! ReferenceGrant: who from other namespaces may refer to what here.

use serde::Deserialize;

/// The specification of a ReferenceGrant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReferenceGrant {
    /// Who may refer.
    pub from: Vec<GrantFrom>,
    /// To what, in the grant's namespace.
    pub to: Vec<GrantTo>,
}

/// Who may refer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GrantFrom {
    /// Group of the kind.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// Where it is.
    pub namespace: String,
}

/// What may be referred to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GrantTo {
    /// Group of the kind; empty for Kubernetes' own.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// One of that name; all unless given.
    pub name: Option<String>,
}

impl ReferenceGrant {
    /// Whether it lets a kind of the Gateway API in `namespace` refer to `kind` of `group` with this name.
    pub fn lets(&self, from: &str, namespace: &str, group: &str, kind: &str, name: &str) -> bool {
        let who =
            |one: &GrantFrom| one.group == super::GROUP && one.kind == from && one.namespace == namespace;
        let what = |one: &GrantTo| {
            one.group == group
                && one.kind == kind
                && one.name.as_deref().is_none_or(|n| n.is_empty() || n == name)
        };
        self.from.iter().any(who) && self.to.iter().any(what)
    }
}
