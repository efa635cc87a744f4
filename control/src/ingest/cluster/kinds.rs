//! Which kinds are watched, under which names and versions.

use super::super::support;
use crate::model::gateway_api::GROUP as GATEWAY_API;

/// A kind of the Kubernetes API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its group; empty for Kubernetes' oldest.
    pub group: &'static str,
    /// As its URL names it.
    pub plural: &'static str,
    /// Its name.
    pub kind: &'static str,
    /// Versions that are read, the best first.
    pub versions: &'static [&'static str],
    /// Shorter names for `kubectl`.
    pub short: &'static [&'static str],
}

impl Kind {
    /// What it is known by here: its name, with the group where two groups have one of that name.
    pub fn id(&self) -> &'static str {
        match (self.group, self.kind) {
            (GATEWAY_API, "Gateway") => "Gateway.gateway.networking.k8s.io",
            (_, kind) => kind,
        }
    }

    /// What it is called in messages: as its URL names it, with the group where two groups have one of that name.
    pub fn called(&self) -> &'static str {
        match (self.group, self.plural) {
            (GATEWAY_API, "gateways") => "gateways.gateway.networking.k8s.io",
            (_, plural) => plural,
        }
    }

    /// Whether it is of the Gateway API, whose definitions are its own project's to ship.
    pub fn is_gateway_api(&self) -> bool {
        self.group == GATEWAY_API
    }

    /// Whether its objects are of no namespace.
    pub fn is_cluster_scoped(&self) -> bool {
        matches!(self.kind, "Node" | "Namespace" | "GatewayClass")
    }

    /// Whether its definition is among those that Weft ships.
    pub fn is_shipped(&self) -> bool {
        self.is_honoured() && !self.is_gateway_api()
    }

    /// The name of the CustomResourceDefinition that brings it.
    pub fn definition(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }

    /// `group/version`, or the version alone.
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// Whether Weft honours its objects. Others are watched to say that they have no effect.
    pub fn is_honoured(&self) -> bool {
        matches!(
            support::classify(&self.api_version(self.versions[0]), self.kind),
            support::Class::Known(_) | support::Class::ConfigMap
        )
    }
}

const fn core(plural: &'static str, kind: &'static str) -> Kind {
    Kind { group: "", plural, kind, versions: &["v1"], short: &[] }
}

/// What every cluster has.
pub(super) const BUILT_IN: [Kind; 7] = [
    core("services", "Service"),
    core("pods", "Pod"),
    core("nodes", "Node"),
    core("namespaces", "Namespace"),
    core("secrets", "Secret"),
    core("configmaps", "ConfigMap"),
    Kind {
        group: "discovery.k8s.io",
        plural: "endpointslices",
        kind: "EndpointSlice",
        versions: &["v1"],
        short: &[],
    },
];

const fn networking(plural: &'static str, kind: &'static str, short: &'static [&'static str]) -> Kind {
    Kind { group: "networking.istio.io", plural, kind, versions: &["v1", "v1beta1", "v1alpha3"], short }
}

const fn security(plural: &'static str, kind: &'static str, short: &'static [&'static str]) -> Kind {
    Kind { group: "security.istio.io", plural, kind, versions: &["v1", "v1beta1"], short }
}

const fn gateway_api(plural: &'static str, kind: &'static str, versions: &'static [&'static str]) -> Kind {
    Kind { group: GATEWAY_API, plural, kind, versions, short: &[] }
}

const fn weft(plural: &'static str, kind: &'static str) -> Kind {
    Kind { group: "weft.dev", plural, kind, versions: &["v1alpha1"], short: &[] }
}

/// What CustomResourceDefinitions bring; each is watched from when its definition is there.
pub const DEFINED: [Kind; 29] = [
    networking("virtualservices", "VirtualService", &["vs"]),
    networking("destinationrules", "DestinationRule", &["dr"]),
    networking("gateways", "Gateway", &["gw"]),
    networking("serviceentries", "ServiceEntry", &["se"]),
    networking("workloadentries", "WorkloadEntry", &["we"]),
    networking("sidecars", "Sidecar", &[]),
    networking("workloadgroups", "WorkloadGroup", &["wg"]),
    security("peerauthentications", "PeerAuthentication", &["pa"]),
    security("authorizationpolicies", "AuthorizationPolicy", &["ap"]),
    security("requestauthentications", "RequestAuthentication", &["ra"]),
    weft("acmecertificates", "AcmeCertificate"),
    weft("compressions", "Compression"),
    weft("externalcredentials", "ExternalCredential"),
    weft("ipdenylists", "IPDenyList"),
    weft("ratelimits", "RateLimit"),
    weft("healthchecks", "HealthCheck"),
    weft("servicemeshconfigs", "ServiceMeshConfig"),
    weft("trafficmanagements", "TrafficManagement"),
    weft("metricdefinitions", "MetricDefinition"),
    gateway_api("gatewayclasses", "GatewayClass", &["v1", "v1beta1"]),
    gateway_api("gateways", "Gateway", &["v1", "v1beta1"]),
    gateway_api("httproutes", "HTTPRoute", &["v1", "v1beta1"]),
    gateway_api("grpcroutes", "GRPCRoute", &["v1"]),
    gateway_api("tlsroutes", "TLSRoute", &["v1", "v1alpha3", "v1alpha2"]),
    gateway_api("referencegrants", "ReferenceGrant", &["v1", "v1beta1"]),
    Kind {
        group: "networking.istio.io",
        plural: "proxyconfigs",
        kind: "ProxyConfig",
        versions: &["v1beta1"],
        short: &[],
    },
    Kind {
        group: "telemetry.istio.io",
        plural: "telemetries",
        kind: "Telemetry",
        versions: &["v1", "v1alpha1"],
        short: &["telemetry"],
    },
    // Not honoured (yet): their objects are reported.
    Kind {
        group: "networking.istio.io",
        plural: "envoyfilters",
        kind: "EnvoyFilter",
        versions: &["v1alpha3"],
        short: &[],
    },
    Kind {
        group: "extensions.istio.io",
        plural: "wasmplugins",
        kind: "WasmPlugin",
        versions: &["v1alpha1"],
        short: &[],
    },
];

/// The kind that a CustomResourceDefinition of this name brings.
pub(super) fn defined_by(name: &str) -> Option<&'static Kind> {
    DEFINED.iter().find(|kind| kind.definition() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_that_is_watched_is_known_in_each_of_its_versions() {
        for kind in &DEFINED {
            for version in kind.versions {
                let class = support::classify(&kind.api_version(version), kind.kind);
                assert!(!matches!(class, support::Class::Foreign), "{kind:?}");
                assert_eq!(
                    matches!(class, support::Class::Known(_)),
                    kind.is_honoured(),
                    "{kind:?} {version}"
                );
            }
        }
        assert_eq!(DEFINED.iter().filter(|kind| !kind.is_honoured()).count(), 2);
        assert_eq!(defined_by("ratelimits.weft.dev").map(|kind| kind.kind), Some("RateLimit"));
        assert_eq!(defined_by("ratelimits.example.com"), None);
    }
}
