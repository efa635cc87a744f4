//! The resource types that are discovered.

use crate::type_url;

/// A type of resource that a proxy asks its control plane for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// `Cluster`, by CDS.
    Cluster,
    /// `ClusterLoadAssignment`, by EDS.
    Endpoint,
    /// `Listener`, by LDS.
    Listener,
    /// `RouteConfiguration`, by RDS.
    Route,
    /// `Secret`, by SDS.
    Secret,
    /// `TypedExtensionConfig`, by ECDS.
    Extension,
    /// `NameTable`, by NDS: one resource, without a name.
    Names,
}

impl ResourceType {
    /// All, in the order in which a client asks and a server pushes: what is referred to comes before what refers to it.
    pub const ALL: [Self; 7] = [
        Self::Cluster,
        Self::Endpoint,
        Self::Listener,
        Self::Route,
        Self::Secret,
        Self::Extension,
        Self::Names,
    ];

    /// The type URL in requests and responses.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => type_url::CLUSTER,
            Self::Endpoint => type_url::ENDPOINT,
            Self::Listener => type_url::LISTENER,
            Self::Route => type_url::ROUTE,
            Self::Secret => type_url::SECRET,
            Self::Extension => type_url::EXTENSION_CONFIG,
            Self::Names => type_url::NAME_TABLE,
        }
    }

    /// The type that a type URL names, if it is one of these.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Whether a client that names no resources gets all of them: clusters, listeners, and the table of names.
    pub const fn wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener | Self::Names)
    }

    /// The three or four letters by which the type is known in logs, metrics and commands.
    pub const fn short(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoint => "eds",
            Self::Listener => "lds",
            Self::Route => "rds",
            Self::Secret => "sds",
            Self::Extension => "ecds",
            Self::Names => "nds",
        }
    }
}

impl std::fmt::Display for ResourceType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_url_names_a_message_that_we_have_and_its_type() {
        for kind in ResourceType::ALL {
            assert_eq!(ResourceType::from_type_url(kind.type_url()), Some(kind));
            assert!(crate::pool().get_message_by_name(type_url::name(kind.type_url())).is_some(), "{kind}");
        }
        assert_eq!(ResourceType::from_type_url("type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig"), None);
    }
}
