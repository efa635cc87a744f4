//! MeshConfig: what holds for the whole mesh (Istio's file of that name, or the ConfigMap `istio`, key `mesh`).

use serde::Deserialize;

use super::destination_rule::{H2UpgradePolicy, LocalityBalancer, TcpKeepalive};
use super::extension_provider::ExtensionProvider;
use super::gateway::TlsVersion;
use super::gateway_api::LabelSelector;
use super::meta::NAMESPACE_NAME;
use super::sidecar::OutboundTrafficPolicy;
use super::tracing::ProxyTracing;
use super::values::{Labels, Timespan};
use super::virtual_service::HttpRetry;

/// The namespace whose policies hold for the whole mesh, where nothing else is said.
pub const ROOT_NAMESPACE: &str = "istio-system";

/// Mesh-wide settings, with Istio's defaults.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshConfig {
    /// Trust domain of every identity.
    pub trust_domain: String,
    /// Other trust domains whose identities count as ours.
    pub trust_domain_aliases: Vec<String>,
    /// Other meshes' trust domains, whose workloads are welcome by their own roots.
    pub ca_certificates: Vec<CertificateData>,
    /// Namespace whose policies hold for the whole mesh.
    pub root_namespace: String,
    /// What happens to requests for unknown destinations.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// How requests reach the application.
    pub inbound_traffic_policy: InboundTrafficPolicy,
    /// Whether clients use mutual TLS where the server takes it and no rule says otherwise.
    pub enable_auto_mtls: bool,
    /// Time to establish a connection to an upstream.
    pub connect_timeout: Timespan,
    /// Probes on idle upstream connections; unset means none.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Port of the sidecar's HTTP proxy listener; 0 means none.
    pub proxy_http_port: u16,
    /// Port of the sidecar's captured outbound listener.
    pub proxy_listen_port: u16,
    /// Port of the sidecar's captured inbound listener.
    pub proxy_inbound_listen_port: u16,
    /// File for access logs; empty writes none.
    pub access_log_file: String,
    /// Format of an access log line; empty means Istio's default.
    pub access_log_format: String,
    /// Text or JSON.
    pub access_log_encoding: AccessLogEncoding,
    /// Retries where a route says nothing; unset means Istio's default (two more attempts on connection failures).
    pub default_http_retry_policy: Option<HttpRetry>,
    /// How paths are normalised before they are matched.
    pub path_normalization: PathNormalization,
    /// Longest wait for the first bytes when the protocol is unknown; 0 waits for ever.
    pub protocol_detection_timeout: Timespan,
    /// Settings of each proxy.
    pub default_config: ProxyConfig,
    /// Whether the collector of `default_config` gets spans; it does unless set.
    pub enable_tracing: Option<bool>,
    /// Providers where no Telemetry names one.
    pub default_providers: DefaultProviders,
    /// Mutual TLS between workloads.
    #[serde(rename = "meshMTLS")]
    pub mesh_mtls: MeshTls,
    /// Where services are visible that do not say; empty means everywhere.
    pub default_service_export_to: Vec<String>,
    /// Where VirtualServices are visible that do not say; empty means everywhere.
    pub default_virtual_service_export_to: Vec<String>,
    /// Where DestinationRules are visible that do not say; empty means everywhere.
    pub default_destination_rule_export_to: Vec<String>,
    /// Time between lookups of DNS endpoints.
    pub dns_refresh_rate: Timespan,
    /// How near and far endpoints are told apart where no DestinationRule says so; unset means on, with its defaults.
    pub locality_lb_setting: Option<LocalityBalancer>,
    /// Whether HTTP/1.1 requests go upstream over HTTP/2 where no DestinationRule says so.
    pub h2_upgrade_policy: H2UpgradePolicy,
    /// Whom policies may name.
    pub extension_providers: Vec<ExtensionProvider>,
    /// By their labels, the namespaces that the mesh knows; empty means all. One is enough that selects, and the root namespace is
    /// always among them.
    pub discovery_selectors: Vec<LabelSelector>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            trust_domain_aliases: Vec::new(),
            ca_certificates: Vec::new(),
            root_namespace: ROOT_NAMESPACE.to_owned(),
            outbound_traffic_policy: OutboundTrafficPolicy::default(),
            inbound_traffic_policy: InboundTrafficPolicy::default(),
            enable_auto_mtls: true,
            connect_timeout: Timespan::secs(10),
            tcp_keepalive: None,
            proxy_http_port: 0,
            proxy_listen_port: 15001,
            proxy_inbound_listen_port: 15006,
            access_log_file: String::new(),
            access_log_format: String::new(),
            access_log_encoding: AccessLogEncoding::default(),
            default_http_retry_policy: None,
            path_normalization: PathNormalization::default(),
            protocol_detection_timeout: Timespan::default(),
            default_config: ProxyConfig::default(),
            enable_tracing: None,
            default_providers: DefaultProviders::default(),
            mesh_mtls: MeshTls::default(),
            default_service_export_to: Vec::new(),
            default_virtual_service_export_to: Vec::new(),
            default_destination_rule_export_to: Vec::new(),
            dns_refresh_rate: Timespan::secs(60),
            locality_lb_setting: None,
            h2_upgrade_policy: H2UpgradePolicy::default(),
            extension_providers: Vec::new(),
            discovery_selectors: Vec::new(),
        }
    }
}

impl MeshConfig {
    /// Whether the mesh knows a namespace with these labels.
    pub fn knows(&self, namespace: &str, labels: &Labels) -> bool {
        if self.discovery_selectors.is_empty() || namespace == self.root_namespace {
            return true;
        }
        let mut own = labels.clone();
        own.insert(NAMESPACE_NAME.to_owned(), namespace.to_owned());
        self.discovery_selectors.iter().any(|selector| selector.selects(&own))
    }
}

/// Roots of other trust domains: as PEM, or as a SPIFFE bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CertificateData {
    /// The roots.
    pub pem: String,
    /// Where a SPIFFE bundle with them is: a URL of https, http or file.
    pub spiffe_bundle_url: String,
    /// Whose they are.
    pub trust_domains: Vec<String>,
}

/// How requests reach the application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct InboundTrafficPolicy {
    /// The way.
    pub mode: InboundMode,
}

/// To which address the proxy forwards inbound requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum InboundMode {
    /// The address that the client asked for.
    #[default]
    #[serde(rename = "PASSTHROUGH")]
    Passthrough,
    /// The loopback address.
    #[serde(rename = "LOCALHOST")]
    Localhost,
}

/// Form of an access log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum AccessLogEncoding {
    /// One line of text.
    #[default]
    #[serde(rename = "TEXT")]
    Text,
    /// One JSON object.
    #[serde(rename = "JSON")]
    Json,
}

/// How paths are normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PathNormalization {
    /// How far.
    pub normalization: Normalization,
}

/// How far paths are normalised; each step includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Normalization {
    /// `BASE`.
    #[default]
    #[serde(rename = "DEFAULT")]
    Default,
    /// Not at all.
    #[serde(rename = "NONE")]
    None,
    /// Dot segments (RFC 3986).
    #[serde(rename = "BASE")]
    Base,
    /// Also repeated slashes.
    #[serde(rename = "MERGE_SLASHES")]
    MergeSlashes,
    /// Also escaped slashes.
    #[serde(rename = "DECODE_AND_MERGE_SLASHES")]
    DecodeAndMergeSlashes,
}

/// Mutual TLS between workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshTls {
    /// Lowest TLS version between workloads; unset means TLS 1.2.
    pub min_protocol_version: TlsVersion,
    /// Ciphers for TLS 1.2; empty for the default set.
    pub cipher_suites: Vec<String>,
}

/// Settings of each proxy (Istio's ProxyConfig), as far as Weft honours them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyConfig {
    /// Address of the control plane, `host:port`; empty leaves it to the proxy's own flags.
    pub discovery_address: String,
    /// Worker threads; unset leaves it to the proxy.
    pub concurrency: Option<u32>,
    /// Time for connections to drain when a listener goes; unset means 45 s.
    pub drain_duration: Option<Timespan>,
    /// Time for connections to drain when the proxy ends; unset means 5 s.
    pub termination_drain_duration: Option<Timespan>,
    /// What stands before a gateway; a gateway's own (its node's `PROXY_CONFIG`) goes before the mesh's.
    pub gateway_topology: Topology,
    /// How requests are traced; a proxy's own (its node's `PROXY_CONFIG`) goes before the mesh's.
    pub tracing: ProxyTracing,
}

/// Providers where no Telemetry names one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DefaultProviders {
    /// Who gets spans; of several the first.
    pub tracing: Vec<String>,
}

/// What stands before a gateway, and how far it is to be believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Topology {
    /// So many proxies before the gateway are trusted to have written x-forwarded-for.
    pub num_trusted_proxies: u32,
    /// What becomes of x-forwarded-client-cert.
    pub forward_client_cert_details: ForwardClientCert,
    /// Every connection begins with a PROXY protocol header.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// Nothing is said about the PROXY protocol but that it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct ProxyProtocol {}

/// What a gateway does with x-forwarded-client-cert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum ForwardClientCert {
    /// `SANITIZE_SET`.
    #[default]
    #[serde(rename = "UNDEFINED")]
    Undefined,
    /// It does not go on.
    #[serde(rename = "SANITIZE")]
    Sanitize,
    /// It goes on as it came, over mutual TLS.
    #[serde(rename = "FORWARD_ONLY")]
    ForwardOnly,
    /// The client's is added, over mutual TLS.
    #[serde(rename = "APPEND_FORWARD")]
    AppendForward,
    /// The client's takes its place.
    #[serde(rename = "SANITIZE_SET")]
    SanitizeSet,
    /// It goes on as it came.
    #[serde(rename = "ALWAYS_FORWARD_ONLY")]
    AlwaysForwardOnly,
}

impl ForwardClientCert {
    /// Envoy's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Undefined | Self::SanitizeSet => "SANITIZE_SET",
            Self::Sanitize => "SANITIZE",
            Self::ForwardOnly => "FORWARD_ONLY",
            Self::AppendForward => "APPEND_FORWARD",
            Self::AlwaysForwardOnly => "ALWAYS_FORWARD_ONLY",
        }
    }
}
