//! DestinationRule: how connections to a service are balanced, limited, secured, and which subsets it has
//! (networking.istio.io).

use serde::Deserialize;

use super::values::{Labels, Percent, Timespan, WorkloadSelector};
use super::virtual_service::PortSelector;

/// The specification of a DestinationRule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DestinationRule {
    /// The service, full or wildcard (short names are resolved by the reader).
    pub host: String,
    /// For all its traffic.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named groups of its endpoints.
    pub subsets: Vec<Subset>,
    /// Namespaces that see it: `.`, `*`, or names. Empty means the mesh's default.
    pub export_to: Vec<String>,
    /// Clients to which it applies; private to its namespace.
    pub workload_selector: Option<WorkloadSelector>,
}

/// A named group of a service's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Subset {
    /// Its name, used by VirtualServices.
    pub name: String,
    /// Labels that an endpoint must carry.
    pub labels: Labels,
    /// Overrides the rule's policy, field by field.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// How a client treats its connections to a service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TrafficPolicy {
    /// How endpoints are chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits.
    pub connection_pool: Option<ConnectionPool>,
    /// When an endpoint is ejected.
    pub outlier_detection: Option<OutlierDetection>,
    /// How connections are secured; unset leaves it to automatic mutual TLS.
    pub tls: Option<ClientTls>,
    /// Per port; what it sets replaces the same block above as a whole.
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// Retries allowed beside active requests.
    pub retry_budget: Option<RetryBudget>,
    /// What a connection says first of the client that it is for; of all ports.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// The PROXY protocol's header in front of upstream connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyProtocol {
    /// Its version.
    pub version: ProxyProtocolVersion,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum ProxyProtocolVersion {
    /// A line of text.
    #[default]
    V1,
    /// Binary.
    V2,
}

/// The part of a traffic policy that may differ by port.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PortTrafficPolicy {
    /// Port of the service.
    pub port: PortSelector,
    /// How endpoints are chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits.
    pub connection_pool: Option<ConnectionPool>,
    /// When an endpoint is ejected.
    pub outlier_detection: Option<OutlierDetection>,
    /// How connections are secured.
    pub tls: Option<ClientTls>,
}

/// How endpoints are chosen.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancer {
    /// The balancer; unset means least request.
    pub simple: Option<SimpleBalancer>,
    /// Requests that are alike go to the same endpoint, as long as it is there. Instead of `simple`.
    pub consistent_hash: Option<ConsistentHash>,
    /// How near and far endpoints are told apart; unset means the mesh's setting.
    pub locality_lb_setting: Option<LocalityBalancer>,
    /// Time in which a new endpoint gets ever more requests; the old form of `warmup.duration`, which goes before it.
    pub warmup_duration_secs: Option<Timespan>,
    /// How a new endpoint gets ever more requests, where endpoints take turns or the less busy is chosen.
    pub warmup: Option<Warmup>,
}

impl LoadBalancer {
    /// How new endpoints are warmed up, whichever way it is written.
    pub fn warm_up(&self) -> Option<Warmup> {
        let old = || Some(Warmup { duration: Some(self.warmup_duration_secs?), ..Warmup::default() });
        self.warmup.or_else(old)
    }
}

/// How a new endpoint gets ever more requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Warmup {
    /// How long it takes.
    pub duration: Option<Timespan>,
    /// The share that it begins with, in percent; unset means 10.
    pub minimum_percent: Option<f64>,
    /// How fast it grows: 1 (unset) in a line, more is faster at the start.
    pub aggression: Option<f64>,
}

/// Requests that are alike go to the same endpoint. One of the first four says what makes them alike.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsistentHash {
    /// The value of this header.
    pub http_header_name: Option<String>,
    /// The value of a cookie, which is set if it is not there.
    pub http_cookie: Option<HashCookie>,
    /// The client's address.
    pub use_source_ip: Option<bool>,
    /// The value of this query parameter.
    pub http_query_parameter_name: Option<String>,
    /// By a ring of hashes; the default.
    pub ring_hash: Option<RingHash>,
    /// By Maglev's table.
    pub maglev: Option<Maglev>,
    /// The old form of `ring_hash.minimum_ring_size`.
    pub minimum_ring_size: Option<u64>,
}

/// A cookie by which requests are alike.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HashCookie {
    /// Its name.
    pub name: String,
    /// The path that it is set for.
    pub path: String,
    /// How long it lives; unset means it is never made, 0 that it ends with the session.
    pub ttl: Option<Timespan>,
    /// Further attributes of one that is made.
    pub attributes: Vec<CookieAttribute>,
}

/// An attribute of a cookie.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CookieAttribute {
    /// Its name.
    pub name: String,
    /// Its value; empty for none.
    pub value: String,
}

/// A ring of hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RingHash {
    /// Fewest points on the ring; unset means 1024.
    pub minimum_ring_size: Option<u64>,
}

/// Maglev's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Maglev {
    /// Its size, a prime below 5000011; unset means Envoy's 65537.
    pub table_size: Option<u64>,
}

/// How near and far endpoints are told apart.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LocalityBalancer {
    /// Shares by locality. Instead of the two below.
    pub distribute: Vec<Distribute>,
    /// Which region stands in for another first.
    pub failover: Vec<Failover>,
    /// Labels that make an endpoint near when they equal the client's, from the most important on: `label` or `label=value`.
    pub failover_priority: Vec<String>,
    /// False turns it off; unset means on.
    pub enabled: Option<bool>,
}

/// Shares of the traffic from one locality.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Distribute {
    /// Where it comes from: `region/zone/subzone`, with `*` for the rest.
    pub from: String,
    /// Percentages by where it goes; they add up to 100.
    pub to: std::collections::BTreeMap<String, u32>,
}

/// Which region stands in for another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Failover {
    /// The region that fails.
    pub from: String,
    /// The one that stands in.
    pub to: String,
}

/// Balancers that need no further settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum SimpleBalancer {
    /// Whatever the mesh does by default, which is least request.
    #[default]
    #[serde(rename = "UNSPECIFIED")]
    Unspecified,
    /// The less busy of two endpoints drawn at random. `LEAST_CONN` is its old name.
    #[serde(rename = "LEAST_REQUEST", alias = "LEAST_CONN")]
    LeastRequest,
    /// In turn.
    #[serde(rename = "ROUND_ROBIN")]
    RoundRobin,
    /// At random.
    #[serde(rename = "RANDOM")]
    Random,
    /// To the address that the client asked for.
    #[serde(rename = "PASSTHROUGH")]
    Passthrough,
}

/// Limits on connections and requests.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConnectionPool {
    /// On connections.
    pub tcp: Option<TcpPool>,
    /// On requests.
    pub http: Option<HttpPool>,
}

/// Limits on connections.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TcpPool {
    /// Most connections to the service; unset or 0 means no limit (2^32 - 1).
    pub max_connections: Option<u32>,
    /// Time to establish a connection; unset means the mesh's `connectTimeout`.
    pub connect_timeout: Option<Timespan>,
    /// Probes on idle connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Longest life of a connection.
    pub max_connection_duration: Option<Timespan>,
    /// Time without traffic after which a connection is closed.
    pub idle_timeout: Option<Timespan>,
}

/// TCP keep-alive probes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TcpKeepalive {
    /// Probes without answer before the connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Timespan>,
    /// Time between probes.
    pub interval: Option<Timespan>,
}

/// Limits on requests.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpPool {
    /// Requests waiting for a connection.
    pub http1_max_pending_requests: Option<u32>,
    /// Active requests, whatever the HTTP version.
    pub http2_max_requests: Option<u32>,
    /// Requests after which a connection is replaced; 0 means no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Retries under way at once.
    pub max_retries: Option<u32>,
    /// Time without requests after which a connection is closed; overrides the TCP value.
    pub idle_timeout: Option<Timespan>,
    /// Whether HTTP/1.1 requests go upstream over HTTP/2.
    pub h2_upgrade_policy: Option<H2UpgradePolicy>,
    /// Keep the client's HTTP version upstream.
    pub use_client_protocol: bool,
    /// Streams on one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// Pings on HTTP/2 connections.
    #[serde(rename = "http2KeepAlive")]
    pub http2_keep_alive: Option<Http2KeepAlive>,
}

/// Pings on HTTP/2 connections. Both are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Http2KeepAlive {
    /// Time between pings.
    pub interval: Option<Timespan>,
    /// Time without an answer after which the connection is dead.
    pub timeout: Option<Timespan>,
}

/// Whether HTTP/1.1 requests go upstream over HTTP/2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum H2UpgradePolicy {
    /// As the mesh says, which is not.
    #[default]
    #[serde(rename = "DEFAULT")]
    Default,
    /// No.
    #[serde(rename = "DO_NOT_UPGRADE")]
    DoNotUpgrade,
    /// Yes.
    #[serde(rename = "UPGRADE")]
    Upgrade,
}

/// When an endpoint is ejected from load balancing. Unset fields mean Istio's defaults, given with each.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OutlierDetection {
    /// Deprecated count of gateway errors; the reader warns and moves it to `consecutive_gateway_errors`, so that it is
    /// empty in a World.
    pub consecutive_errors: Option<u32>,
    /// Failures that came from connecting, when they are told apart.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Whether failures that came from connecting are counted apart.
    pub split_external_local_origin_errors: bool,
    /// 502, 503, 504 in a row; 0 turns it off; unset means off.
    pub consecutive_gateway_errors: Option<u32>,
    /// 5xx in a row; 0 turns it off; unset means 5.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// Time between sweeps; unset means 10 s.
    pub interval: Option<Timespan>,
    /// Ejection lasts this long times the number of ejections; unset means 30 s.
    pub base_ejection_time: Option<Timespan>,
    /// Most endpoints ejected at once, in percent; unset means 10.
    pub max_ejection_percent: Option<u32>,
    /// Below this share of healthy endpoints, in percent, health is ignored; unset means 0.
    pub min_health_percent: Option<u32>,
}

/// Retries allowed beside active requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RetryBudget {
    /// Share of active requests that may be retries; unset means 20 %.
    pub percent: Option<Percent>,
    /// Retries that are always allowed; unset means 3.
    pub min_retry_concurrency: Option<u32>,
}

/// How connections to the service are secured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientTls {
    /// What is done.
    pub mode: ClientTlsMode,
    /// File with the client's chain (MUTUAL).
    pub client_certificate: String,
    /// File with the client's key (MUTUAL).
    pub private_key: String,
    /// File with the roots that sign the server; empty means the system's.
    pub ca_certificates: String,
    /// File with the certificates that the server's authorities have revoked.
    pub ca_crl: String,
    /// Secret with the client's key and chain, and with the roots that sign the server: for gateways, and for the workloads
    /// that the rule selects.
    pub credential_name: String,
    /// Names of which the server must carry one.
    pub subject_alt_names: Vec<String>,
    /// Server name sent in the handshake.
    pub sni: String,
    /// Accept any server certificate.
    pub insecure_skip_verify: Option<bool>,
}

/// What a client does to secure a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum ClientTlsMode {
    /// Plain text.
    #[default]
    #[serde(rename = "DISABLE")]
    Disable,
    /// TLS, server verified.
    #[serde(rename = "SIMPLE")]
    Simple,
    /// TLS with a client certificate from files.
    #[serde(rename = "MUTUAL")]
    Mutual,
    /// TLS with the workload's own certificate.
    #[serde(rename = "ISTIO_MUTUAL")]
    IstioMutual,
}
