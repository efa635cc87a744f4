//! `envoy.config.cluster.v3.Cluster` and `ClusterLoadAssignment` -> compiled data.

mod balance;
mod dns;
mod health;
mod outlier;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use xds_protos::envoy::config::cluster::v3 as pb;
use xds_protos::envoy::config::cluster::v3::cluster as cl;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::config::endpoint::v3 as ep;
use xds_protos::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use xds_protos::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use xds_protos::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use xds_protos::envoy::extensions::upstreams::http::v3 as up;

pub use self::balance::Balancing;
pub use self::dns::DnsTimes;
use super::endpoint::{
    Endpoint, EndpointCheck, EndpointHealth, HostAddress, LoadAssignment, Locality, LocalityEndpoints,
    Metadata,
};
use super::health::HealthCheck;
use super::host::Host;
use super::limits::{RetryBudget, Thresholds};
use super::outlier::OutlierConfig;
use super::proxy_header::ProxyHeaderWriter;
use crate::codec::h1::H1Options;
use crate::codec::h2::H2Options;
use crate::identity::tls::UpstreamContext;
use crate::state::error::{at, collect};
use crate::state::{CompileContext, ConfigError};

/// Where a cluster's hosts come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Discovery {
    /// The configuration.
    Static(LoadAssignment),
    /// EDS, under this name.
    Eds(Arc<str>),
    /// DNS: every address of these names.
    Dns {
        /// Names and ports, each with its weight.
        names: Vec<DnsName>,
        /// LOGICAL_DNS: only one address at a time.
        logical: bool,
        /// When they are asked for.
        times: DnsTimes,
        /// Which families to use.
        family: cl::DnsLookupFamily,
    },
    /// Where the downstream wanted to go.
    OriginalDst,
}

/// One name to resolve.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsName {
    /// The name.
    pub host: String,
    /// The port at its addresses.
    pub port: u16,
    /// Its endpoint: weight, metadata.
    pub endpoint: Endpoint,
}

/// The protocol of HTTP requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpMode {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// What the downstream speaks.
    Downstream,
    /// What ALPN decides.
    Auto,
}

/// How hosts are connected to, chosen for each by its metadata.
#[derive(Clone, Debug)]
pub struct Transport {
    /// Its name, for people.
    pub name: Arc<str>,
    /// Host metadata (`envoy.transport_socket_match`) that selects it; an empty one selects any.
    pub matches: Vec<(String, String)>,
    /// TLS, or plain bytes.
    pub tls: Option<Arc<UpstreamContext>>,
    /// The PROXY protocol header that goes before everything else.
    pub proxy: Option<Arc<ProxyHeaderWriter>>,
}

/// A compiled cluster.
#[derive(Debug)]
pub struct ClusterConfig {
    /// Its name.
    pub name: Arc<str>,
    /// Its name in statistics.
    pub stat_name: String,
    /// Where its hosts come from.
    pub discovery: Discovery,
    /// How a connection's making is bounded.
    pub connect_timeout: Duration,
    /// How a host is chosen.
    pub balancing: Balancing,
    /// Below this percentage of healthy hosts, health is ignored.
    pub panic_threshold: u32,
    /// Circuit breakers: default and high priority.
    pub thresholds: [Thresholds; 2],
    /// The most connections to one host, by priority.
    pub connections_per_host: [Option<u32>; 2],
    /// How an ORIGINAL_DST cluster knows where to go.
    pub original_dst: OriginalDstOptions,
    /// Ejection.
    pub outlier: Option<OutlierConfig>,
    /// Active health checks.
    pub health_check: Option<Box<HealthCheck>>,
    /// New hosts count nowhere until they were checked.
    pub ignore_new_hosts: bool,
    /// A host that is no longer assigned goes at once, even if it passes its checks.
    pub remove_healthy: bool,
    /// Transports in order; the last one matches anything.
    pub transports: Vec<Transport>,
    /// The protocol of requests.
    pub http: HttpMode,
    /// HTTP/1 towards it.
    pub h1: H1Options,
    /// HTTP/2 towards it.
    pub h2: H2Options,
    /// How long a connection may be idle.
    pub idle_timeout: Option<Duration>,
    /// How many requests a connection may serve.
    pub max_requests: Option<u64>,
    /// How long a connection may be used.
    pub max_duration: Option<Duration>,
    /// Ask for the request's authority by SNI; and demand it in the certificate.
    pub auto_sni: bool,
    /// Demand the request's authority in the certificate.
    pub auto_san: bool,
    /// Our addresses towards it, at most one of each version of IP.
    pub bind: Vec<IpAddr>,
    /// TCP keepalive.
    pub keepalive: Option<Keepalive>,
    /// Its metadata.
    pub metadata: Option<Arc<Metadata>>,
    /// The service it stands for, from Istio's metadata.
    pub service: Option<Arc<crate::telemetry::istio::Service>>,
}

/// TCP keepalive as it was asked for; what is not, the system decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
    /// Probes without an answer that end it.
    pub probes: Option<u32>,
}

fn duration(proto: Option<&prost_types::Duration>, field: &str) -> Result<Option<Duration>, ConfigError> {
    proto
        .map(|d| {
            xds_protos::duration::to_std(d)
                .ok_or_else(|| ConfigError::new(field, "is not a duration of zero or more"))
        })
        .transpose()
}

/// A timeout where zero means that there is none.
fn timeout(proto: Option<&prost_types::Duration>, default: Option<Duration>) -> Option<Duration> {
    match proto {
        None => default,
        Some(d) => xds_protos::duration::to_std(d).filter(|d| !d.is_zero()),
    }
}

impl ClusterConfig {
    /// Compiles the message. Secrets it names become dependencies of `ctx`.
    pub fn compile(proto: &pb::Cluster, ctx: &CompileContext) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        if proto.name.is_empty() {
            errors.push(ConfigError::missing("name"));
        }
        let discovery = collect(discovery(proto), "", &mut errors);
        let connect_timeout = duration(proto.connect_timeout.as_ref(), "connect_timeout");
        let connect_timeout = connect_timeout.map_err(|e| errors.push(e)).ok().flatten();
        if connect_timeout.is_some_and(|t| t.is_zero()) {
            errors.push(ConfigError::new("connect_timeout", "must be more than zero"));
        }
        let balancing = collect(balance::balancing(proto, discovery.as_ref()), "", &mut errors);
        let transports = collect(transports(proto, ctx), "", &mut errors);
        let outlier = proto.outlier_detection.as_ref().map(outlier::outlier).transpose();
        let outlier = collect(outlier.map_err(Vec::from), "outlier_detection", &mut errors).flatten();
        let http = collect(http_options(proto), "typed_extension_protocol_options", &mut errors);
        let connections_per_host = collect(connections_per_host(proto), "circuit_breakers", &mut errors);
        let original_dst = collect(original_dst(proto), "original_dst_lb_config", &mut errors);
        let (connections_per_host, original_dst) =
            (connections_per_host.unwrap_or_default(), original_dst.unwrap_or_default());
        let mode = http.as_ref().map_or(HttpMode::Http1, |h| h.mode);
        let health_check = health::health_check(proto, mode).map_err(Vec::from);
        let health_check = collect(health_check, "", &mut errors).flatten();
        let bind = collect(bind(proto), "upstream_bind_config", &mut errors).unwrap_or_default();
        let common = proto.common_lb_config.as_ref();
        let (Some(discovery), Some(balancing), Some(transports), Some(http), true) =
            (discovery, balancing, transports, http, errors.is_empty())
        else {
            return Err(errors);
        };
        let options = http.common.unwrap_or_default();
        let max_requests =
            options.max_requests_per_connection.or(legacy_max_requests(proto)).filter(|n| *n > 0);
        let mut metadata = proto.metadata.clone().unwrap_or_default().filter_metadata;
        let service = metadata.get_mut(ISTIO).and_then(take_service);
        let metadata = Metadata::new(metadata);
        Ok(Self {
            name: proto.name.as_str().into(),
            stat_name: if proto.alt_stat_name.is_empty() {
                proto.name.clone()
            } else {
                proto.alt_stat_name.clone()
            },
            discovery,
            connect_timeout: connect_timeout.unwrap_or(Duration::from_secs(5)),
            balancing,
            panic_threshold: common
                .and_then(|c| c.healthy_panic_threshold.as_ref())
                .map_or(50, |p| p.value.clamp(0.0, 100.0).round() as u32),
            thresholds: thresholds(proto),
            connections_per_host,
            original_dst,
            outlier,
            health_check: health_check.map(Box::new),
            ignore_new_hosts: common.is_some_and(|c| c.ignore_new_hosts_until_first_hc),
            remove_healthy: proto.ignore_health_on_host_removal,
            transports,
            http: http.mode,
            h1: http.h1,
            h2: http.h2,
            idle_timeout: timeout(options.idle_timeout.as_ref(), Some(Duration::from_secs(3600))),
            max_requests: max_requests.map(u64::from),
            max_duration: timeout(options.max_connection_duration.as_ref(), None),
            auto_sni: http.auto_sni,
            auto_san: http.auto_san,
            bind,
            keepalive: proto.upstream_connection_options.as_ref().and_then(|o| o.tcp_keepalive.as_ref()).map(
                |k| {
                    let seconds = |n: Option<u32>| n.map(|n| Duration::from_secs(u64::from(n)));
                    Keepalive {
                        time: seconds(k.keepalive_time),
                        interval: seconds(k.keepalive_interval),
                        probes: k.keepalive_probes,
                    }
                },
            ),
            service: service.map(Arc::new),
            metadata,
        })
    }

    /// A namespace of its metadata, as it was sent.
    pub fn namespace(&self, name: &str) -> Option<prost_types::Struct> {
        let mut fields = self.metadata.as_ref()?.namespace(name)?.clone();
        if name == ISTIO
            && let Some(service) = &self.service
            && !fields.fields.contains_key(SERVICES)
        {
            fields.fields.insert(SERVICES.to_owned(), listed(service));
        }
        Some(fields)
    }

    /// How a host is connected to.
    pub fn transport(&self, host: &Host) -> Option<&Transport> {
        self.transports.get(host.facts().transport)
    }

    /// The transport for a host of this metadata.
    pub fn transport_for(&self, metadata: Option<&Metadata>) -> usize {
        let fits = |t: &Transport| {
            t.matches.iter().all(|(key, value)| {
                metadata.and_then(|m| m.get_str("envoy.transport_socket_match", key)) == Some(value.as_str())
            })
        };
        self.transports.iter().position(fits).unwrap_or(self.transports.len().saturating_sub(1))
    }
}

#[allow(deprecated, reason = "control planes still send it")]
fn legacy_max_requests(proto: &pb::Cluster) -> Option<u32> {
    proto.max_requests_per_connection
}

const ISTIO: &str = "istio";
const SERVICES: &str = "services";

/// `metadata.filter_metadata.istio.services[0]`, which is what Istio's metrics are labelled with. Where there is nothing else in the list, it
/// is taken out: there may be ten thousand clusters, and each would have it twice.
fn take_service(istio: &mut prost_types::Struct) -> Option<crate::telemetry::istio::Service> {
    use prost_types::value::Kind;
    let services = istio.fields.get(SERVICES)?;
    let Some(Kind::ListValue(list)) = &services.kind else { return None };
    let Some(Kind::StructValue(first)) = &list.values.first()?.kind else { return None };
    let text = |key: &str| match &first.fields.get(key)?.kind {
        Some(Kind::StringValue(s)) => Some(s.clone()),
        _ => None,
    };
    let service = crate::telemetry::istio::Service {
        host: text("host").unwrap_or_default(),
        name: text("name").unwrap_or_default(),
        namespace: text("namespace").unwrap_or_default(),
    };
    if *services == listed(&service) {
        istio.fields.remove(SERVICES);
    }
    Some(service)
}

/// The list of this service alone.
fn listed(service: &crate::telemetry::istio::Service) -> prost_types::Value {
    use prost_types::value::Kind;
    let text = |text: &str| prost_types::Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = [("host", &service.host), ("name", &service.name), ("namespace", &service.namespace)];
    let fields = fields.map(|(key, value)| (key.to_owned(), text(value))).into();
    let first = prost_types::Value { kind: Some(Kind::StructValue(prost_types::Struct { fields })) };
    prost_types::Value { kind: Some(Kind::ListValue(prost_types::ListValue { values: vec![first] })) }
}

fn discovery(proto: &pb::Cluster) -> Result<Discovery, Vec<ConfigError>> {
    let kind = match &proto.cluster_discovery_type {
        None => cl::DiscoveryType::Static,
        Some(cl::ClusterDiscoveryType::Type(kind)) => cl::DiscoveryType::try_from(*kind)
            .map_err(|_| ConfigError::new("type", format!("there is no discovery type {kind}")))?,
        Some(cl::ClusterDiscoveryType::ClusterType(config)) => return Ok(dns::extension(proto, config)?),
    };
    let assignment = || proto.load_assignment.clone().unwrap_or_default();
    match kind {
        cl::DiscoveryType::Static => {
            load_assignment(&assignment()).map(Discovery::Static).map_err(at("load_assignment"))
        }
        cl::DiscoveryType::Eds => {
            let name = proto.eds_cluster_config.as_ref().map(|e| e.service_name.as_str());
            let name = name.filter(|n| !n.is_empty()).unwrap_or(&proto.name);
            Ok(Discovery::Eds(name.into()))
        }
        cl::DiscoveryType::OriginalDst => Ok(Discovery::OriginalDst),
        cl::DiscoveryType::StrictDns => Ok(dns::legacy(proto, false)?),
        cl::DiscoveryType::LogicalDns => Ok(dns::legacy(proto, true)?),
    }
}

/// How an ORIGINAL_DST cluster knows where to go, before the connection's own original destination.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OriginalDstOptions {
    /// A request's header that says it.
    pub header: Option<HeaderName>,
    /// The port, whatever else says another one.
    pub port: Option<u16>,
}

fn original_dst(proto: &pb::Cluster) -> Result<OriginalDstOptions, Vec<ConfigError>> {
    let Some(cl::LbConfig::OriginalDstLbConfig(config)) = &proto.lb_config else {
        return Ok(OriginalDstOptions::default());
    };
    let name = match config.http_header_name.as_str() {
        "" => "x-envoy-original-dst-host",
        name => name,
    };
    let header = HeaderName::try_from(name)
        .map_err(|_| ConfigError::new("http_header_name", format!("{name:?} is not a header's name")))?;
    let port = config.upstream_port_override.map(u16::try_from).transpose();
    let port = port.map_err(|_| ConfigError::new("upstream_port_override", "is not a port"))?;
    Ok(OriginalDstOptions {
        header: config.use_http_header.then_some(header),
        port: port.filter(|port| *port > 0),
    })
}

fn connections_per_host(proto: &pb::Cluster) -> Result<[Option<u32>; 2], Vec<ConfigError>> {
    let mut found = [None; 2];
    for (i, t) in proto.circuit_breakers.iter().flat_map(|c| &c.per_host_thresholds).enumerate() {
        let others = [t.max_pending_requests, t.max_requests, t.max_retries];
        if others.iter().any(Option::is_some) || t.retry_budget.is_some() || t.track_remaining {
            let message = "only max_connections can be limited per host, as in Envoy";
            return Err(ConfigError::new(format!("per_host_thresholds[{i}]"), message).into());
        }
        found[usize::from(t.priority == core::RoutingPriority::High as i32)] = t.max_connections;
    }
    Ok(found)
}

fn thresholds(proto: &pb::Cluster) -> [Thresholds; 2] {
    let mut found = [Thresholds::default(), Thresholds::default()];
    for t in proto.circuit_breakers.iter().flat_map(|c| &c.thresholds) {
        let high = t.priority == core::RoutingPriority::High as i32;
        let mut made = Thresholds { track_remaining: t.track_remaining, ..Thresholds::default() };
        for (to, from) in [
            (&mut made.max_connections, t.max_connections),
            (&mut made.max_pending_requests, t.max_pending_requests),
            (&mut made.max_requests, t.max_requests),
            (&mut made.max_retries, t.max_retries),
        ] {
            if let Some(n) = from {
                *to = u64::from(n);
            }
        }
        made.retry_budget = t.retry_budget.as_ref().map(|b| {
            let default = RetryBudget::default();
            RetryBudget {
                percent: b.budget_percent.as_ref().map_or(default.percent, |p| p.value),
                min_concurrency: b.min_retry_concurrency.map_or(default.min_concurrency, u64::from),
            }
        });
        found[usize::from(high)] = made;
    }
    found
}

fn transports(proto: &pb::Cluster, ctx: &CompileContext) -> Result<Vec<Transport>, Vec<ConfigError>> {
    let mut found = Vec::new();
    let mut errors = Vec::new();
    for (i, t) in proto.transport_socket_matches.iter().enumerate() {
        let path = format!("transport_socket_matches[{i}]");
        let mut matches = Vec::new();
        for (key, value) in t.r#match.iter().flat_map(|m| &m.fields) {
            match &value.kind {
                Some(prost_types::value::Kind::StringValue(text)) => {
                    matches.push((key.clone(), text.clone()))
                }
                _ => errors.push(ConfigError::new(format!("{path}.match"), format!("{key} is not text"))),
            }
        }
        match transport_parts(t.transport_socket.as_ref(), ctx) {
            Ok((tls, proxy)) => found.push(Transport { name: t.name.as_str().into(), matches, tls, proxy }),
            Err(e) => errors.extend(e.into_iter().map(|e| e.at(format!("{path}.transport_socket")))),
        }
    }
    match transport_parts(proto.transport_socket.as_ref(), ctx) {
        Ok((tls, proxy)) => {
            found.push(Transport { name: "default".into(), matches: Vec::new(), tls, proxy });
        }
        Err(e) => errors.extend(e.into_iter().map(|e| e.at("transport_socket"))),
    }
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

type Parts = (Option<Arc<UpstreamContext>>, Option<Arc<ProxyHeaderWriter>>);

/// What a transport socket is made of: TLS, and a PROXY protocol header around it.
fn transport_parts(
    socket: Option<&core::TransportSocket>,
    ctx: &CompileContext,
) -> Result<Parts, Vec<ConfigError>> {
    if let Some(core::transport_socket::ConfigType::TypedConfig(any)) =
        socket.and_then(|s| s.config_type.as_ref())
        && any.is::<ProxyProtocolUpstreamTransport>()
    {
        let outer: ProxyProtocolUpstreamTransport =
            any.unpack().map_err(|e| ConfigError::new("typed_config", e.to_string()))?;
        let writer = ProxyHeaderWriter::compile(&outer).map_err(|e| e.at("typed_config"))?;
        let tls = transport_tls(outer.transport_socket.as_ref(), ctx)
            .map_err(at("transport_socket"))
            .map_err(at("typed_config"))?;
        return Ok((tls, Some(Arc::new(writer))));
    }
    Ok((transport_tls(socket, ctx)?, None))
}

fn transport_tls(
    socket: Option<&core::TransportSocket>,
    ctx: &CompileContext,
) -> Result<Option<Arc<UpstreamContext>>, Vec<ConfigError>> {
    let Some(socket) = socket else { return Ok(None) };
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        // A plain socket may go by its name alone.
        return match socket.name.as_str() {
            "envoy.transport_sockets.raw_buffer" | "raw_buffer" => Ok(None),
            _ => Err(ConfigError::missing("typed_config").into()),
        };
    };
    if any.is::<RawBuffer>() {
        return Ok(None);
    }
    let context: UpstreamTlsContext =
        any.unpack().map_err(|e| ConfigError::new("typed_config", e.to_string()))?;
    UpstreamContext::compile(&context, ctx).map(|c| Some(Arc::new(c))).map_err(at("typed_config"))
}

struct HttpSettings {
    mode: HttpMode,
    common: Option<core::HttpProtocolOptions>,
    auto_sni: bool,
    auto_san: bool,
    h1: H1Options,
    h2: H2Options,
}

/// What an HTTP/2 client of ours is told: windows, and how many streams it may open.
fn h2_options(proto: Option<&core::Http2ProtocolOptions>) -> Result<H2Options, ConfigError> {
    let default = H2Options::default();
    Ok(H2Options {
        keepalive: match proto {
            Some(proto) => crate::http::config::keepalive(proto)?,
            None => None,
        },
        max_concurrent_streams: proto
            .and_then(|p| p.max_concurrent_streams)
            .unwrap_or(default.max_concurrent_streams),
        stream_window: proto.and_then(|p| p.initial_stream_window_size).unwrap_or(default.stream_window),
        connection_window: proto
            .and_then(|p| p.initial_connection_window_size)
            .unwrap_or(default.connection_window),
        ..default
    })
}

#[allow(deprecated, reason = "control planes still send http2_protocol_options")]
fn http_options(proto: &pb::Cluster) -> Result<HttpSettings, Vec<ConfigError>> {
    use up::http_protocol_options::UpstreamProtocolOptions as U;
    use up::http_protocol_options::explicit_http_config::ProtocolConfig as P;
    const KEY: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let mode = if proto.http2_protocol_options.is_some() { HttpMode::Http2 } else { HttpMode::Http1 };
    let h2 = h2_options(proto.http2_protocol_options.as_ref()).map_err(|e| e.at("http2_protocol_options"))?;
    let mut settings =
        HttpSettings { mode, common: None, auto_sni: false, auto_san: false, h1: H1Options::upstream(), h2 };
    for (key, any) in &proto.typed_extension_protocol_options {
        if key != KEY {
            return Err(ConfigError::unsupported(format!("[{key}]"), "this extension").into());
        }
        let options: up::HttpProtocolOptions =
            any.unpack().map_err(|e| ConfigError::new(format!("[{key}]"), e.to_string()))?;
        let h1 = |h1: Option<&core::Http1ProtocolOptions>, of: &str| {
            let path = format!("[{key}].{of}.http_protocol_options");
            crate::http::config::h1(H1Options::upstream(), h1).map_err(|e| e.at(path))
        };
        settings.mode = match &options.upstream_protocol_options {
            None => return Err(ConfigError::missing(format!("[{key}].upstream_protocol_options")).into()),
            Some(U::ExplicitHttpConfig(c)) => match &c.protocol_config {
                Some(P::Http2ProtocolOptions(h2)) => {
                    settings.h2 =
                        h2_options(Some(h2)).map_err(|e| e.at(format!("[{key}].http2_protocol_options")))?;
                    HttpMode::Http2
                }
                Some(P::HttpProtocolOptions(options)) => {
                    settings.h1 = h1(Some(options), "explicit_http_config")?;
                    HttpMode::Http1
                }
                _ => HttpMode::Http1,
            },
            Some(U::UseDownstreamProtocolConfig(c)) => {
                settings.h1 = h1(c.http_protocol_options.as_ref(), "use_downstream_protocol_config")?;
                settings.h2 = h2_options(c.http2_protocol_options.as_ref())
                    .map_err(|e| e.at(format!("[{key}].http2_protocol_options")))?;
                HttpMode::Downstream
            }
            Some(U::AutoConfig(c)) => {
                settings.h1 = h1(c.http_protocol_options.as_ref(), "auto_config")?;
                settings.h2 = h2_options(c.http2_protocol_options.as_ref())
                    .map_err(|e| e.at(format!("[{key}].http2_protocol_options")))?;
                HttpMode::Auto
            }
        };
        if let Some(upstream) = &options.upstream_http_protocol_options {
            settings.auto_sni = upstream.auto_sni;
            settings.auto_san = upstream.auto_san_validation;
        }
        settings.common = options.common_http_protocol_options;
    }
    Ok(settings)
}

/// The addresses that connections come from: one, or one for each version of IP.
fn bind(proto: &pb::Cluster) -> Result<Vec<IpAddr>, Vec<ConfigError>> {
    let Some(config) = &proto.upstream_bind_config else { return Ok(Vec::new()) };
    let Some(source) = &config.source_address else { return Ok(Vec::new()) };
    let parse = |text: &str, path: String| {
        text.parse::<IpAddr>().map_err(|_| vec![ConfigError::new(path, "is not an IP address")])
    };
    let mut addresses = vec![parse(&source.address, "source_address.address".to_owned())?];
    for (i, extra) in config.extra_source_addresses.iter().enumerate() {
        let text = extra.address.as_ref().map_or("", |a| a.address.as_str());
        let address = parse(text, format!("extra_source_addresses[{i}].address.address"))?;
        if addresses.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            let why = "is the second of its version of IP; leave one of each";
            return Err(ConfigError::new(format!("extra_source_addresses[{i}]"), why).into());
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// Compiles a load assignment.
pub fn load_assignment(proto: &ep::ClusterLoadAssignment) -> Result<LoadAssignment, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let mut localities = Vec::with_capacity(proto.endpoints.len());
    for (i, locality) in proto.endpoints.iter().enumerate() {
        let mut endpoints = Vec::with_capacity(locality.lb_endpoints.len());
        for (j, e) in locality.lb_endpoints.iter().enumerate() {
            match endpoint(e) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(error) => errors.push(error.at(format!("endpoints[{i}].lb_endpoints[{j}]"))),
            }
        }
        let at = locality.locality.clone().unwrap_or_default();
        let locality_name =
            Locality { region: at.region.into(), zone: at.zone.into(), sub_zone: at.sub_zone.into() };
        localities.push(LocalityEndpoints {
            locality: Arc::new(locality_name),
            weight: locality.load_balancing_weight,
            priority: locality.priority,
            endpoints,
        });
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let policy = proto.policy.as_ref();
    Ok(LoadAssignment {
        localities,
        overprovisioning_factor: policy.and_then(|p| p.overprovisioning_factor).unwrap_or(140),
        weighted_priority_health: policy.is_some_and(|p| p.weighted_priority_health),
    })
}

fn endpoint(proto: &ep::LbEndpoint) -> Result<Endpoint, ConfigError> {
    let (inner, socket) = address_of(proto)?;
    let address = match socket {
        core::address::Address::SocketAddress(socket) => {
            let ip: IpAddr = socket.address.parse().map_err(|_| {
                let message =
                    format!("{:?} is not an IP address; only DNS clusters take names", socket.address);
                ConfigError::new("endpoint.address.socket_address.address", message)
            })?;
            HostAddress::Ip(SocketAddr::new(ip, port(&socket)?))
        }
        core::address::Address::Pipe(pipe) if !pipe.path.is_empty() => {
            HostAddress::Pipe(pipe.path.as_str().into())
        }
        _ => return Err(ConfigError::unsupported("endpoint.address", "this kind of address")),
    };
    let mut endpoint = finish(proto, &inner, address);
    if let Some(check) = &inner.health_check_config {
        endpoint.check =
            endpoint_check(check, endpoint.address.ip()).map_err(|e| e.at("endpoint.health_check_config"))?;
    }
    Ok(endpoint)
}

fn endpoint_check(
    proto: &ep::endpoint::HealthCheckConfig,
    own: Option<SocketAddr>,
) -> Result<EndpointCheck, ConfigError> {
    let other = match proto.address.as_ref().and_then(|a| a.address.as_ref()) {
        None => None,
        Some(core::address::Address::SocketAddress(socket)) => {
            let ip: Result<IpAddr, _> = socket.address.parse();
            let ip = ip.map_err(|_| {
                ConfigError::new(
                    "address.socket_address.address",
                    format!("{:?} is not an IP address", socket.address),
                )
            })?;
            Some(SocketAddr::new(ip, port(socket)?))
        }
        Some(_) => return Err(ConfigError::unsupported("address", "this kind of address")),
    };
    let mut address = other.or(own);
    if proto.port_value > 0 {
        let port = u16::try_from(proto.port_value)
            .map_err(|_| ConfigError::new("port_value", format!("{} is not a port", proto.port_value)))?;
        address = address.map(|a| SocketAddr::new(a.ip(), port));
    }
    Ok(EndpointCheck {
        address: address.filter(|a| Some(*a) != own),
        hostname: proto.hostname.clone(),
        disabled: proto.disable_active_health_check,
    })
}

fn finish(proto: &ep::LbEndpoint, inner: &ep::Endpoint, address: HostAddress) -> Endpoint {
    let health = match core::HealthStatus::try_from(proto.health_status) {
        Ok(core::HealthStatus::Unhealthy | core::HealthStatus::Timeout) => EndpointHealth::Unhealthy,
        Ok(core::HealthStatus::Draining) => EndpointHealth::Draining,
        Ok(core::HealthStatus::Degraded) => EndpointHealth::Degraded,
        _ => EndpointHealth::Healthy,
    };
    Endpoint {
        address,
        hostname: inner.hostname.as_str().into(),
        weight: proto.load_balancing_weight.unwrap_or(1),
        health,
        metadata: proto.metadata.clone().and_then(|m| Metadata::new(m.filter_metadata)),
        check: EndpointCheck::default(),
    }
}

fn address_of(proto: &ep::LbEndpoint) -> Result<(ep::Endpoint, core::address::Address), ConfigError> {
    let Some(ep::lb_endpoint::HostIdentifier::Endpoint(endpoint)) = &proto.host_identifier else {
        return Err(ConfigError::missing("endpoint"));
    };
    let address = endpoint.address.as_ref().and_then(|a| a.address.clone());
    address.map(|a| (endpoint.clone(), a)).ok_or_else(|| ConfigError::missing("endpoint.address"))
}

fn port(socket: &core::SocketAddress) -> Result<u16, ConfigError> {
    match &socket.port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(port)) => u16::try_from(*port).map_err(|_| {
            ConfigError::new("endpoint.address.socket_address.port_value", format!("{port} is not a port"))
        }),
        _ => Err(ConfigError::missing("endpoint.address.socket_address.port_value")),
    }
}

fn dns_name(proto: &ep::LbEndpoint) -> Result<DnsName, ConfigError> {
    let (inner, address) = address_of(proto)?;
    let core::address::Address::SocketAddress(socket) = address else {
        return Err(ConfigError::new("endpoint.address", "a DNS cluster needs a name and a port"));
    };
    let port = port(&socket)?;
    if socket.address.is_empty() {
        return Err(ConfigError::missing("endpoint.address.socket_address.address"));
    }
    let nowhere = SocketAddr::from(([0, 0, 0, 0], port));
    Ok(DnsName { host: socket.address.clone(), port, endpoint: finish(proto, &inner, nowhere.into()) })
}
