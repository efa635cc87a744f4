//! GatewayClass and Gateway: who serves, at which ports, and which routes may come.

use serde::Deserialize;

use crate::model::values::Labels;

/// The specification of a GatewayClass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayClass {
    /// Who serves its Gateways.
    pub controller_name: String,
    /// For people.
    pub description: String,
}

/// The specification of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ApiGateway {
    /// The class that says who serves it.
    pub gateway_class_name: String,
    /// What it opens.
    pub listeners: Vec<Listener>,
    /// Where it is to be found; without any, at the workloads that carry its name.
    pub addresses: Vec<GatewayAddress>,
    /// Where its status says that it is found.
    #[serde(skip)]
    pub found_at: Vec<GatewayAddress>,
    /// What the objects that are made for it carry.
    pub infrastructure: Infrastructure,
}

/// What the objects that are made for a Gateway carry, pods included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Infrastructure {
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
}

/// One port and host name of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Listener {
    /// Its name, by which routes may choose it.
    pub name: String,
    /// The hosts that it serves; empty for all.
    pub hostname: String,
    /// The port that clients use.
    pub port: u16,
    /// HTTP, HTTPS or TLS.
    pub protocol: String,
    /// What becomes of TLS.
    pub tls: Option<ListenerTls>,
    /// Which routes may attach.
    pub allowed_routes: AllowedRoutes,
}

/// What becomes of TLS at a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListenerTls {
    /// Ended, or passed through.
    pub mode: TlsTermination,
    /// Secrets with key and chain.
    pub certificate_refs: Vec<SecretRef>,
}

/// Whether TLS ends at a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum TlsTermination {
    /// It ends.
    #[default]
    Terminate,
    /// It goes through.
    Passthrough,
}

/// Names a Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecretRef {
    /// Its group; empty for Kubernetes' own.
    pub group: Option<String>,
    /// Its kind, `Secret` unless given.
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// Its namespace, the referrer's unless given.
    pub namespace: Option<String>,
}

/// Which routes may attach to a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AllowedRoutes {
    /// From which namespaces.
    pub namespaces: RouteNamespaces,
    /// Of which kinds; empty for those that the protocol takes.
    pub kinds: Vec<RouteKind>,
}

/// From which namespaces routes may attach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RouteNamespaces {
    /// From which.
    pub from: FromNamespaces,
    /// Their labels, for `Selector`.
    pub selector: Option<LabelSelector>,
}

/// From which namespaces something may come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum FromNamespaces {
    /// From the Gateway's own.
    #[default]
    Same,
    /// From every one.
    All,
    /// From those with certain labels.
    Selector,
    /// From none.
    None,
}

/// Kubernetes' way to select by labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must be there.
    pub match_labels: Labels,
    /// More that must hold.
    pub match_expressions: Vec<Requirement>,
}

/// One requirement of a selector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// In, NotIn, Exists or DoesNotExist.
    pub operator: String,
    /// Values, for the first two.
    pub values: Vec<String>,
}

impl LabelSelector {
    /// Whether it selects what has these labels.
    pub fn selects(&self, labels: &Labels) -> bool {
        crate::model::values::selects(&self.match_labels, labels)
            && self.match_expressions.iter().all(|requirement| {
                let value = labels.get(&requirement.key);
                let listed = || value.is_some_and(|value| requirement.values.contains(value));
                match requirement.operator.as_str() {
                    "In" => listed(),
                    "NotIn" => !listed(),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
    }
}

/// A kind of route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RouteKind {
    /// Its group, the Gateway API's unless given.
    pub group: Option<String>,
    /// Its name.
    pub kind: String,
}

/// Where a Gateway is to be found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayAddress {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: AddressKind,
    /// The address.
    pub value: String,
}

/// What an address of a Gateway is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum AddressKind {
    /// An address of IP.
    #[default]
    IPAddress,
    /// The host of a Service.
    Hostname,
    /// Something else.
    NamedAddress,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_needs_all_that_it_says() {
        let labels =
            Labels::from([("env".to_owned(), "prod".to_owned()), ("team".to_owned(), "a".to_owned())]);
        let requires = |key: &str, operator: &str, values: &[&str]| LabelSelector {
            match_expressions: vec![Requirement {
                key: key.to_owned(),
                operator: operator.to_owned(),
                values: values.iter().map(|v| (*v).to_owned()).collect(),
            }],
            ..LabelSelector::default()
        };
        assert!(LabelSelector::default().selects(&labels));
        assert!(requires("env", "In", &["test", "prod"]).selects(&labels));
        assert!(!requires("env", "In", &["test"]).selects(&labels));
        assert!(!requires("env", "NotIn", &["prod"]).selects(&labels));
        assert!(requires("other", "NotIn", &["prod"]).selects(&labels));
        assert!(requires("team", "Exists", &[]).selects(&labels));
        assert!(!requires("team", "DoesNotExist", &[]).selects(&labels));
        assert!(!requires("team", "exists", &[]).selects(&labels));
    }
}
