//! What Weft supports of Istio's API, beyond what the types say: kinds and fields that exist but are not honoured yet, and
//! fields that have no bearing on a mesh.
//!
//! What is not honoured is refused by name, so that nobody believes in a setting that does nothing.

use super::decode::Counsel;
use super::suggest;
use crate::model::Kind;
use crate::model::gateway_api::GROUP as GATEWAY_API_GROUP;

/// Values of known enumerations that are not honoured yet.
pub(super) const VALUES_NOT_YET: &[&str] = &["DYNAMIC_DNS", "ALLOW_ANY_DYNAMIC_DNS"];

/// What an object is, by its apiVersion and kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// One that Weft reads.
    Known(Kind),
    /// A Kubernetes ConfigMap; it may hold the MeshConfig.
    ConfigMap,
    /// A list of objects, as `kubectl get -o yaml` prints it.
    List,
    /// None of the mesh's business.
    Foreign,
    /// Refused: reason and what to do.
    Refused(String, String),
}

const NETWORKING: &[Kind] = &[
    Kind::VirtualService,
    Kind::DestinationRule,
    Kind::Gateway,
    Kind::ServiceEntry,
    Kind::WorkloadEntry,
    Kind::Sidecar,
    Kind::ProxyConfig,
    Kind::WorkloadGroup,
];
const SECURITY: &[Kind] = &[Kind::PeerAuthentication, Kind::AuthorizationPolicy, Kind::RequestAuthentication];
const TELEMETRY: &[Kind] = &[Kind::Telemetry];
/// Weft's own.
const WEFT: &[Kind] = &[
    Kind::AcmeCertificate,
    Kind::IPDenyList,
    Kind::ExternalCredential,
    Kind::RateLimit,
    Kind::Compression,
    Kind::HealthCheck,
    Kind::ServiceMeshConfig,
    Kind::TrafficManagement,
    Kind::MetricDefinition,
];

/// Kinds of Istio's that are not supported yet, by group.
const KINDS_NOT_YET: &[(&str, &[&str])] = &[
    ("networking.istio.io", &["EnvoyFilter"]),
    ("extensions.istio.io", &["WasmPlugin", "TrafficExtension"]),
    ("install.istio.io", &["IstioOperator"]),
    (GATEWAY_API_GROUP, &["TCPRoute", "UDPRoute", "BackendTLSPolicy", "BackendTrafficPolicy", "ListenerSet"]),
];

/// The Gateway API's kinds by their names there, each with the versions that are read.
const GATEWAY_API: [(&str, Kind, &[&str]); 6] = [
    ("GatewayClass", Kind::GatewayClass, &["v1", "v1beta1"]),
    ("Gateway", Kind::ApiGateway, &["v1", "v1beta1"]),
    ("HTTPRoute", Kind::HttpRoute, &["v1", "v1beta1"]),
    ("GRPCRoute", Kind::GrpcRoute, &["v1"]),
    ("TLSRoute", Kind::TlsRoute, &["v1", "v1alpha3", "v1alpha2"]),
    ("ReferenceGrant", Kind::ReferenceGrant, &["v1", "v1beta1"]),
];

/// Finds out what an object is.
pub(super) fn classify(api_version: &str, kind: &str) -> Class {
    let Some((group, version)) = api_version.split_once('/') else {
        return match (api_version, kind) {
            ("v1", "Service") => Class::Known(Kind::Service),
            ("v1", "Secret") => Class::Known(Kind::Secret),
            ("v1", "Namespace") => Class::Known(Kind::Namespace),
            ("v1", "ConfigMap") => Class::ConfigMap,
            ("v1", "List") => Class::List,
            _ => Class::Foreign,
        };
    };
    let not_yet =
        KINDS_NOT_YET.iter().find(|(name, _)| *name == group).map(|(_, kinds)| *kinds).unwrap_or_default();
    if not_yet.contains(&kind) {
        return Class::Refused(
            format!("not yet supported by Weft: {kind} ({group})"),
            "take the object out; it would have no effect".to_owned(),
        );
    }
    if group == GATEWAY_API_GROUP {
        return gateway_api(version, kind);
    }
    let ours = match group {
        "networking.istio.io" => NETWORKING,
        "security.istio.io" => SECURITY,
        "telemetry.istio.io" => TELEMETRY,
        "weft.dev" => WEFT,
        _ => return Class::Foreign,
    };
    let versions: &[&str] = match (group, kind) {
        ("weft.dev", _) => &["v1alpha1"],
        ("telemetry.istio.io", _) => &["v1", "v1alpha1"],
        ("networking.istio.io", "ProxyConfig") => &["v1beta1"],
        _ => &["v1", "v1beta1", "v1alpha3"],
    };
    match ours.iter().find(|known| known.as_str() == kind) {
        Some(known) if versions.contains(&version) => Class::Known(*known),
        Some(_) => Class::Refused(
            format!("{group} has no version {version:?}"),
            format!("write apiVersion: {group}/{}", versions[0]),
        ),
        None => {
            let names = ours.iter().map(|known| known.as_str()).chain(not_yet.iter().copied());
            let help = match suggest::closest(kind, names) {
                Some(meant) => format!("did you mean {meant}?"),
                None => {
                    format!(
                        "Weft reads {}",
                        ours.iter().map(|known| known.as_str()).collect::<Vec<_>>().join(", ")
                    )
                }
            };
            Class::Refused(format!("{group} has no kind {kind:?}"), help)
        }
    }
}

fn gateway_api(version: &str, kind: &str) -> Class {
    match GATEWAY_API.iter().find(|(name, ..)| *name == kind) {
        Some((_, known, versions)) if versions.contains(&version) => Class::Known(*known),
        Some((_, _, versions)) => Class::Refused(
            format!("Weft reads no version {version:?} of {kind}"),
            format!("write apiVersion: {GATEWAY_API_GROUP}/{}", versions[0]),
        ),
        None => {
            let names: Vec<_> = GATEWAY_API.iter().map(|(name, ..)| *name).collect();
            let help = match suggest::closest(kind, names.iter().copied()) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("Weft reads {}", names.join(", ")),
            };
            Class::Refused(format!("Weft knows no kind {kind:?} of {GATEWAY_API_GROUP}"), help)
        }
    }
}

/// Fields of Istio's API that Weft does not honour yet: kind, end of the parent's path, names.
const FIELDS_NOT_YET: &[(Kind, &str, &[&str])] = &[
    (Kind::VirtualService, "fault.delay", &["exponentialDelay"]),
    (Kind::VirtualService, "fault.abort", &["http2Error"]),
    (Kind::DestinationRule, "loadBalancer", &["zoneAwareLbSetting"]),
    (Kind::DestinationRule, "trafficPolicy", &["tunnel"]),
    (Kind::Gateway, "servers", &["defaultEndpoint"]),
    (Kind::Telemetry, "overrides.match", &["customMetric"]),
    (Kind::PeerAuthentication, "spec", &["targetRef", "targetRefs"]),
    (Kind::GatewayClass, "spec", &["parametersRef"]),
    (Kind::ApiGateway, "spec", &["allowedListeners", "backendTLS", "defaultScope", "tls"]),
    (Kind::ApiGateway, "infrastructure", &["parametersRef"]),
    (Kind::ApiGateway, "listeners.tls", &["frontendValidation", "options"]),
    (Kind::HttpRoute, "spec", &["useDefaultGateways"]),
    (Kind::HttpRoute, "rules", &["sessionPersistence"]),
    (Kind::HttpRoute, "filters", &["extensionRef", "externalAuth"]),
    (Kind::GrpcRoute, "spec", &["useDefaultGateways"]),
    (Kind::GrpcRoute, "rules", &["sessionPersistence"]),
    (Kind::GrpcRoute, "filters", &["extensionRef"]),
    (Kind::TlsRoute, "spec", &["useDefaultGateways"]),
    (
        Kind::MeshConfig,
        "",
        &[
            "ca",
            "certificates",
            "configSources",
            "disableEnvoyListenerLog",
            "enableEnvoyAccessLogService",
            "enablePrometheusMerge",
            "hboneIdleTimeout",
            "ingressClass",
            "ingressControllerMode",
            "ingressSelector",
            "ingressService",
            "serviceScopeConfigs",
            "serviceSettings",
            "tlsDefaults",
            "verifyCertificateAtClient",
        ],
    ),
    (Kind::MeshConfig, "outboundTrafficPolicy", &["egressProxy"]),
    (Kind::MeshConfig, "meshMTLS", &["ecdhCurves"]),
    (Kind::MeshConfig, "defaultProviders", &["accessLogging", "metrics"]),
    (Kind::MeshConfig, "defaultConfig.tracing", &["tlsSettings"]),
    (Kind::MeshConfig, "extensionProviders.opentelemetry", &["dynatraceSampler"]),
    (Kind::MeshConfig, "extensionProviders.opentelemetry.resourceDetectors", &["dynatrace"]),
    (Kind::MeshConfig, "extensionProviders.opentelemetry.http.headers", &["envName"]),
    (Kind::MeshConfig, "extensionProviders.opentelemetry.grpc.initialMetadata", &["envName"]),
    (Kind::MeshConfig, "extensionProviders.zipkin", &["headers", "timeout"]),
    (Kind::MeshConfig, "extensionProviders", &["sds"]),
    (Kind::MeshConfig, "caCertificates", &["certSigners"]),
    (
        Kind::MeshConfig,
        "defaultConfig",
        &[
            "availabilityZone",
            "binaryPath",
            "caCertificatesPem",
            "configPath",
            "controlPlaneAuthPolicy",
            "customConfigFile",
            "discoveryAddress",
            "envoyAccessLogService",
            "envoyMetricsService",
            "envoyMetricsServiceAddress",
            "extraStatTags",
            "fileFlushInterval",
            "fileFlushMinSizeKb",
            "holdApplicationUntilProxyStarts",
            "image",
            "interceptionMode",
            "meshId",
            "privateKeyProvider",
            "proxyAdminPort",
            "proxyBootstrapTemplatePath",
            "proxyHeaders",
            "proxyMetadata",
            "proxyStatsMatcher",
            "readinessProbe",
            "runtimeValues",
            "sds",
            "serviceCluster",
            "statNameLength",
            "statsCompression",
            "statsdUdpAddress",
            "statusPort",
            "tracingServiceName",
        ],
    ),
];

/// Providers of traces of which an OpenTelemetry Collector stands in front.
const FOREIGN_TRACERS: &[&str] =
    &["datadog", "lightstep", "opencensus", "openCensusAgent", "skywalking", "stackdriver"];

/// Fields that have no bearing on a mesh: kind (none for all), end of the parent's path, names.
const FIELDS_IGNORED: &[(Option<Kind>, &str, &[&str])] = &[
    (
        None,
        "metadata",
        &[
            "uid",
            "resourceVersion",
            "generation",
            "managedFields",
            "ownerReferences",
            "finalizers",
            "selfLink",
            "generateName",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ],
    ),
    (
        Some(Kind::Service),
        "spec",
        &[
            "allocateLoadBalancerNodePorts",
            "externalTrafficPolicy",
            "healthCheckNodePort",
            "internalTrafficPolicy",
            "ipFamilies",
            "ipFamilyPolicy",
            "loadBalancerClass",
            "loadBalancerIP",
            "loadBalancerSourceRanges",
            "sessionAffinityConfig",
            "trafficDistribution",
        ],
    ),
];

/// Fields that people put in the wrong place: end of the wrong parent's path, names, and the right place.
const MISPLACED: &[(&str, &[&str], &str)] = &[
    ("circuitBreakerStatus", CIRCUIT_FIELDS, CIRCUIT_HOME),
    ("circuit_breaker_status", CIRCUIT_FIELDS, CIRCUIT_HOME),
    ("connectionPool.http", OUTLIER_FIELDS, "trafficPolicy.outlierDetection"),
    ("connectionPool.tcp", OUTLIER_FIELDS, "trafficPolicy.outlierDetection"),
    ("connectionPool", OUTLIER_FIELDS, "trafficPolicy.outlierDetection"),
    ("trafficPolicy", OUTLIER_FIELDS, "trafficPolicy.outlierDetection"),
    (
        "connectionPool.http",
        &["maxConnections", "connectTimeout", "tcpKeepalive"],
        "trafficPolicy.connectionPool.tcp",
    ),
    (
        "connectionPool.tcp",
        &["http1MaxPendingRequests", "http2MaxRequests", "maxRequestsPerConnection", "maxRetries"],
        "trafficPolicy.connectionPool.http",
    ),
    ("spec", &["loadBalancer", "connectionPool", "outlierDetection", "portLevelSettings"], "trafficPolicy"),
    (
        "http.retries",
        &["timeout"],
        "http.timeout (for the request) or http.retries.perTryTimeout, not retries",
    ),
];

const CIRCUIT_FIELDS: &[&str] = &[
    "state",
    "failure_count",
    "success_count",
    "last_failure_time",
    "next_retry_time",
    "failureCount",
    "successCount",
    "lastFailureTime",
    "nextRetryTime",
];
const CIRCUIT_HOME: &str = "the object's status, where the control plane tells it? Take it out here";

const OUTLIER_FIELDS: &[&str] = &[
    "consecutiveErrors",
    "consecutiveGatewayErrors",
    "consecutive5xxErrors",
    "consecutiveLocalOriginFailures",
    "splitExternalLocalOriginErrors",
    "interval",
    "baseEjectionTime",
    "maxEjectionPercent",
    "minHealthPercent",
];

/// What is known about a field of `kind` beyond its type: see [`super::decode::Advice`].
pub(super) fn advise(kind: Kind, parent: &str, name: &str, known: bool) -> Option<Counsel> {
    let parent = without_indexes(parent);
    if let Some(counsel) = misnamed_selector(kind, &parent, name) {
        return Some(counsel);
    }
    let ignored = FIELDS_IGNORED.iter().any(|(of, place, names)| {
        of.is_none_or(|of| of == kind) && ends_with(&parent, place) && names.contains(&name)
    });
    if ignored {
        return Some(Counsel::Ignore);
    }
    let of_traces = ends_with(&parent, "extensionProviders") || ends_with(&parent, "defaultConfig.tracing");
    if kind == Kind::MeshConfig && of_traces && FOREIGN_TRACERS.contains(&name) {
        return Some(Counsel::Refuse(
            format!("{name} is no provider of traces that Weft's proxies speak to"),
            "use opentelemetry, which an OpenTelemetry Collector takes and passes on to it, or zipkin"
                .to_owned(),
        ));
    }
    let refused = FIELDS_NOT_YET
        .iter()
        .any(|(of, place, names)| *of == kind && ends_with(&parent, place) && names.contains(&name));
    if refused {
        return Some(Counsel::Refuse(
            "not supported by Weft yet".to_owned(),
            "take the field out".to_owned(),
        ));
    }
    if known {
        return None;
    }
    let home = misplaced(&parent, name)?;
    let meant = if home.contains(' ') { home.to_owned() } else { format!("{home}.{name}") };
    Some(Counsel::Refuse("unknown field".to_owned(), format!("did you mean {meant}?")))
}

/// Where a field belongs that stands below `parent`, if it is known to be put there by mistake.
fn misplaced(parent: &str, name: &str) -> Option<&'static str> {
    let found = MISPLACED.iter().find(|(place, names, _)| ends_with(parent, place) && names.contains(&name));
    found.map(|(_, _, home)| *home)
}

/// The same, where the place is a path and not only told in words.
pub(super) fn home(parent: &str, name: &str) -> Option<&'static str> {
    misplaced(&without_indexes(parent), name).filter(|home| !home.contains(' '))
}

/// One type serves both forms of workload selector; which of its two names is right depends on the kind.
fn misnamed_selector(kind: Kind, parent: &str, name: &str) -> Option<Counsel> {
    let right = match kind {
        Kind::Sidecar | Kind::ServiceEntry => "labels",
        Kind::DestinationRule
        | Kind::PeerAuthentication
        | Kind::AuthorizationPolicy
        | Kind::RequestAuthentication
        | Kind::IPDenyList
        | Kind::ExternalCredential
        | Kind::RateLimit
        | Kind::Compression
        | Kind::Telemetry
        | Kind::ProxyConfig
        | Kind::MetricDefinition => "matchLabels",
        _ => return None,
    };
    let in_selector = ends_with(parent, "workloadSelector") || parent == "spec.selector";
    (in_selector && matches!(name, "labels" | "matchLabels") && name != right)
        .then(|| Counsel::Refuse("unknown field".to_owned(), format!("did you mean \"{right}\"?")))
}

fn without_indexes(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            c if !inside => plain.push(c),
            _ => {}
        }
    }
    plain
}

fn ends_with(path: &str, end: &str) -> bool {
    if end.is_empty() {
        return path.is_empty();
    }
    path.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart_by_group_and_version() {
        assert_eq!(classify("networking.istio.io/v1", "Gateway"), Class::Known(Kind::Gateway));
        for version in ["v1", "v1beta1", "v1alpha3"] {
            let api = format!("networking.istio.io/{version}");
            assert_eq!(classify(&api, "VirtualService"), Class::Known(Kind::VirtualService));
        }
        assert_eq!(classify("weft.dev/v1alpha1", "AcmeCertificate"), Class::Known(Kind::AcmeCertificate));
        assert_eq!(classify("weft.dev/v1alpha1", "IPDenyList"), Class::Known(Kind::IPDenyList));
        assert_eq!(classify("apps/v1", "Deployment"), Class::Foreign);
        assert_eq!(classify("v1", "Namespace"), Class::Known(Kind::Namespace));
        assert_eq!(classify("gateway.networking.k8s.io/v1beta1", "Gateway"), Class::Known(Kind::ApiGateway));
        for (api, kind) in [
            ("gateway.networking.k8s.io/v1", "TCPRoute"),
            ("gateway.networking.k8s.io/v1", "VirtualService"),
            ("gateway.networking.k8s.io/v1alpha1", "Gateway"),
            ("networking.istio.io/v1alpha3", "EnvoyFilter"),
            ("networking.istio.io/v2", "Gateway"),
            ("networking.istio.io/v1", "VirtualServce"),
            ("weft.dev/v1", "AcmeCertificate"),
            ("weft.dev/v1alpha1", "ACMECertificate"),
            ("weft.dev/v1", "IPDenyList"),
            ("weft.dev/v1alpha1", "IpDenyList"),
        ] {
            assert!(matches!(classify(api, kind), Class::Refused(..)), "{api} {kind}");
        }
    }

    #[test]
    fn outlier_settings_under_the_connection_pool_are_sent_home() {
        let counsel = advise(
            Kind::DestinationRule,
            "spec.subsets[1].trafficPolicy.connectionPool.http",
            "consecutiveGatewayErrors",
            false,
        );
        let help = "did you mean trafficPolicy.outlierDetection.consecutiveGatewayErrors?".to_owned();
        assert_eq!(counsel, Some(Counsel::Refuse("unknown field".to_owned(), help)));
    }

    #[test]
    fn a_field_is_refused_only_where_istio_has_it() {
        assert!(advise(Kind::DestinationRule, "spec.trafficPolicy", "tunnel", true).is_some());
        assert_eq!(advise(Kind::VirtualService, "spec.http[3]", "tunnel", false), None);
        assert_eq!(advise(Kind::Service, "metadata", "uid", false), Some(Counsel::Ignore));
    }
}
