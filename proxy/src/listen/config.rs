//! `envoy.config.listener.v3.Listener` -> compiled policy.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use prost::Message;
use tokio::sync::watch;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::config::listener::v3 as pb;
use xds_protos::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use xds_protos::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;

use super::chain::{ChainMatch, FilterChain, SourceType, TransportProtocol};
use super::filters::ListenerFilter;
use super::listener::drain;
use super::sockets::SocketSettings;
use crate::codec::DrainPhase;
use crate::identity::tls::DownstreamContext;
use crate::io::metadata::Said;
use crate::io::{Direction, SocketOption};
use crate::network::NetworkChain;
use crate::state::error::{at, collect};
use crate::state::{CompileContext, ConfigError};
use crate::telemetry::access_log::{AccessLog, AccessLogConfig};

/// A compiled listener.
pub struct ListenerConfig {
    /// Its name.
    pub name: Arc<str>,
    /// What the configuration says of it.
    pub metadata: Option<Arc<Said>>,
    /// Its addresses.
    pub addresses: Vec<SocketAddr>,
    /// Which way its traffic goes.
    pub direction: Direction,
    /// What runs before a chain is chosen, in order.
    pub filters: Vec<ListenerFilter>,
    /// How long that may take; none: as long as it takes.
    pub filters_timeout: Option<Duration>,
    /// After that time, go on with what was seen.
    pub continue_on_timeout: bool,
    /// Hand a connection with a restored destination to the listener that has that address.
    pub use_original_dst: bool,
    /// The chains in order.
    pub chains: Vec<Arc<FilterChain>>,
    /// For connections that match none.
    pub default_chain: Option<Arc<FilterChain>>,
    /// Logs of connections that found no chain.
    pub logs: Vec<AccessLog>,
    /// TCP keepalive of accepted connections.
    pub keepalive: Option<core::TcpKeepalive>,
    /// How its sockets are made.
    pub sockets: SocketSettings,
    /// What its statistics are called, in place of its address.
    pub stat_prefix: Option<Arc<str>>,
}

/// The backlog of a listener that does not say; the kernel cuts it to net.core.somaxconn.
const DEFAULT_BACKLOG: u32 = 4096;

impl std::fmt::Debug for ListenerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ListenerConfig")
            .field("name", &self.name)
            .field("chains", &self.chains)
            .finish_non_exhaustive()
    }
}

/// On which destination ports a listener filter is switched off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRule {
    /// On none.
    Never,
    /// On all.
    Always,
    /// From the first to before the last.
    Range(u32, u32),
    /// On the others.
    Not(Box<PortRule>),
    /// Where one of them says so.
    Any(Vec<PortRule>),
    /// Where all of them say so.
    All(Vec<PortRule>),
}

impl PortRule {
    /// Whether the filter is off for this destination port.
    pub fn is_off(&self, port: u16) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::Range(start, end) => (*start..*end).contains(&u32::from(port)),
            Self::Not(rule) => !rule.is_off(port),
            Self::Any(rules) => rules.iter().any(|r| r.is_off(port)),
            Self::All(rules) => rules.iter().all(|r| r.is_off(port)),
        }
    }

    /// Compiles the message.
    pub fn compile(proto: &pb::ListenerFilterChainMatchPredicate) -> Result<Self, ConfigError> {
        use pb::listener_filter_chain_match_predicate::Rule;
        let all = |set: &pb::listener_filter_chain_match_predicate::MatchSet| {
            set.rules.iter().map(Self::compile).collect::<Result<Vec<_>, _>>()
        };
        Ok(match &proto.rule {
            None => return Err(ConfigError::missing("rule")),
            Some(Rule::AnyMatch(any)) => {
                if *any {
                    Self::Always
                } else {
                    Self::Never
                }
            }
            Some(Rule::OrMatch(set)) => Self::Any(all(set).map_err(|e| e.at("or_match"))?),
            Some(Rule::AndMatch(set)) => Self::All(all(set).map_err(|e| e.at("and_match"))?),
            Some(Rule::NotMatch(rule)) => {
                Self::Not(Box::new(Self::compile(rule).map_err(|e| e.at("not_match"))?))
            }
            Some(Rule::DestinationPortRange(range)) => {
                Self::Range(range.start.max(0) as u32, range.end.max(0) as u32)
            }
        })
    }
}

/// An address of a listener.
fn address(proto: Option<&core::Address>) -> Result<SocketAddr, ConfigError> {
    let socket = match proto.and_then(|a| a.address.as_ref()) {
        Some(core::address::Address::SocketAddress(socket)) => socket,
        Some(_) => return Err(ConfigError::unsupported("", "this kind of address")),
        None => return Err(ConfigError::missing("")),
    };
    if socket.protocol != core::socket_address::Protocol::Tcp as i32 {
        return Err(ConfigError::unsupported("socket_address.protocol", "UDP"));
    }
    let ip: IpAddr = socket.address.parse().map_err(|_| {
        ConfigError::new("socket_address.address", format!("{:?} is not an IP address", socket.address))
    })?;
    let port = match &socket.port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(port)) => u16::try_from(*port).ok(),
        _ => None,
    };
    let port =
        port.ok_or_else(|| ConfigError::new("socket_address.port_value", "must be a port from 0 to 65535"))?;
    Ok(SocketAddr::new(ip, port))
}

impl ListenerConfig {
    /// Compiles the message. Route configurations and secrets that it names become dependencies of `ctx`.
    #[allow(deprecated, reason = "Envoy still takes the old fields, so configurations still have them")]
    pub fn compile(proto: &pb::Listener, ctx: &CompileContext) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        if proto.name.is_empty() {
            errors.push(ConfigError::missing("name"));
        }
        let mut addresses = Vec::new();
        match address(proto.address.as_ref()) {
            Ok(a) => addresses.push(a),
            Err(e) => errors.push(e.at("address")),
        }
        for (i, additional) in proto.additional_addresses.iter().enumerate() {
            match address(additional.address.as_ref()) {
                Ok(a) => addresses.push(a),
                Err(e) => errors.push(e.at(format!("additional_addresses[{i}].address"))),
            }
        }
        let bind = proto.bind_to_port.or(proto.deprecated_v1.and_then(|v1| v1.bind_to_port)).unwrap_or(true);
        let options = collect(super::options::compile(&proto.socket_options), "socket_options", &mut errors);
        let mut options = options.unwrap_or_default();
        options.extend(proto.tcp_fast_open_queue_length.map(SocketOption::fast_open));
        let direction = match core::TrafficDirection::try_from(proto.traffic_direction) {
            Ok(core::TrafficDirection::Inbound) => Direction::Inbound,
            Ok(core::TrafficDirection::Outbound) => Direction::Outbound,
            _ => Direction::Unspecified,
        };
        let filters = collect(ListenerFilter::compile(proto), "", &mut errors);
        let mut chains = Vec::new();
        for (i, chain) in proto.filter_chains.iter().enumerate() {
            let compiled = filter_chain(chain, proto.per_connection_buffer_limit_bytes, direction, ctx);
            if let Some(chain) = collect(compiled, format!("filter_chains[{i}]"), &mut errors) {
                if chains.iter().any(|c: &Arc<FilterChain>| c.matches == chain.matches) {
                    let message = "matches the same connections as a chain before it";
                    errors.push(ConfigError::new(format!("filter_chains[{i}].filter_chain_match"), message));
                }
                chains.push(Arc::new(chain));
            }
        }
        let default_chain = proto.default_filter_chain.as_ref().and_then(|c| {
            collect(
                filter_chain(c, proto.per_connection_buffer_limit_bytes, direction, ctx),
                "default_filter_chain",
                &mut errors,
            )
            .map(Arc::new)
        });
        if proto.filter_chains.is_empty() && proto.default_filter_chain.is_none() {
            errors.push(ConfigError::new("filter_chains", "a listener needs at least one filter chain"));
        }
        let mut logs = Vec::new();
        for (i, log) in proto.access_log.iter().enumerate() {
            let path = format!("access_log[{i}]");
            if let Some(log) = collect(AccessLogConfig::compile(log, ctx), &path, &mut errors) {
                match log.open() {
                    Ok(log) => logs.push(log),
                    Err(e) => errors.push(ConfigError::new(path, format!("the log cannot be opened: {e}"))),
                }
            }
        }
        let Some(filters) = filters.filter(|_| errors.is_empty()) else { return Err(errors) };
        let timeout = match &proto.listener_filters_timeout {
            None => Some(Duration::from_secs(15)),
            Some(d) => xds_protos::duration::to_std(d).filter(|d| !d.is_zero()),
        };
        Ok(Self {
            name: proto.name.as_str().into(),
            metadata: proto.metadata.clone().and_then(|m| Said::new(m.filter_metadata)),
            addresses,
            direction,
            filters,
            filters_timeout: timeout,
            continue_on_timeout: proto.continue_on_listener_filters_timeout,
            use_original_dst: proto.use_original_dst.unwrap_or_default(),
            chains,
            default_chain,
            logs,
            keepalive: proto.tcp_keepalive,
            sockets: SocketSettings {
                bind,
                backlog: proto.tcp_backlog_size.unwrap_or(DEFAULT_BACKLOG).try_into().unwrap_or(i32::MAX),
                transparent: proto.transparent.unwrap_or_default(),
                freebind: proto.freebind.unwrap_or_default(),
                options,
            },
            stat_prefix: (!proto.stat_prefix.is_empty()).then(|| proto.stat_prefix.as_str().into()),
        })
    }

    /// All chains, the default one last.
    pub fn all_chains(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.chains.iter().chain(&self.default_chain)
    }

    /// Tells the connections of all chains how far draining has come.
    pub fn drain(&self, phase: DrainPhase) {
        self.all_chains().for_each(|c| drain(c, phase));
    }
}

fn filter_chain(
    proto: &pb::FilterChain,
    buffer_limit: Option<u32>,
    direction: Direction,
    ctx: &CompileContext,
) -> Result<FilterChain, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let default = pb::FilterChainMatch::default();
    let matches = proto.filter_chain_match.as_ref().unwrap_or(&default);
    let matches = collect(chain_match(matches), "filter_chain_match", &mut errors);
    let tls = collect(transport(proto, ctx), "transport_socket", &mut errors);
    let network =
        collect(NetworkChain::compile(&proto.filters, buffer_limit, direction, ctx), "", &mut errors)
            .map(Arc::new);
    let (Some(matches), Some(tls), Some(network), true) = (matches, tls, network, errors.is_empty()) else {
        return Err(errors);
    };
    // The listener's limit is the chain's as well: connections of the old one drain when it changes.
    let mut content = proto.encode_to_vec();
    content.extend(buffer_limit.into_iter().flat_map(u32::to_le_bytes));
    let timeout = proto.transport_socket_connect_timeout.as_ref().and_then(xds_protos::duration::to_std);
    Ok(FilterChain {
        name: proto.name.as_str().into(),
        metadata: proto.metadata.clone().and_then(|m| Said::new(m.filter_metadata)),
        content,
        matches,
        tls,
        handshake_timeout: timeout.filter(|t| !t.is_zero()),
        network,
        drain: watch::Sender::new(DrainPhase::Serving),
    })
}

fn transport(
    proto: &pb::FilterChain,
    ctx: &CompileContext,
) -> Result<Option<Arc<DownstreamContext>>, Vec<ConfigError>> {
    let Some(socket) = &proto.transport_socket else { return Ok(None) };
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return match socket.name.as_str() {
            "envoy.transport_sockets.raw_buffer" | "raw_buffer" => Ok(None),
            _ => Err(ConfigError::missing("typed_config").into()),
        };
    };
    if any.is::<RawBuffer>() {
        return Ok(None);
    }
    let context: DownstreamTlsContext =
        any.unpack().map_err(|e| ConfigError::new("typed_config", e.to_string()))?;
    DownstreamContext::compile(&context, ctx).map(|c| Some(Arc::new(c))).map_err(at("typed_config"))
}

fn networks(ranges: &[core::CidrRange], field: &str) -> Result<Vec<IpNet>, ConfigError> {
    ranges
        .iter()
        .enumerate()
        .map(|(i, range)| {
            let bad = |what: String| ConfigError::new(format!("{field}[{i}]"), what);
            let ip: IpAddr = range
                .address_prefix
                .parse()
                .map_err(|_| bad(format!("{:?} is not an IP address", range.address_prefix)))?;
            let length = range.prefix_len.unwrap_or_default();
            let length = u8::try_from(length).map_err(|_| bad(format!("{length} is not a prefix length")))?;
            IpNet::new(ip, length).map(|n| n.trunc()).map_err(|e| bad(e.to_string()))
        })
        .collect()
}

fn chain_match(proto: &pb::FilterChainMatch) -> Result<ChainMatch, Vec<ConfigError>> {
    use pb::filter_chain_match::ConnectionSourceType;
    let port = |port: u32, field: &str| {
        u16::try_from(port).map_err(|_| ConfigError::new(field, format!("{port} is not a port")))
    };
    let transport_protocol = match proto.transport_protocol.as_str() {
        "" => None,
        "tls" => Some(TransportProtocol::Tls),
        "raw_buffer" => Some(TransportProtocol::RawBuffer),
        other => return Err(ConfigError::unsupported("transport_protocol", other).into()),
    };
    let mut server_names = Vec::new();
    for (i, name) in proto.server_names.iter().enumerate() {
        // A star stands for whole labels at the front, and for nothing else.
        if name.rfind('*').is_some_and(|at| at != 0)
            || (name.starts_with('*') && !name.starts_with("*.") && name != "*")
        {
            let message = format!("{name:?}: a wildcard is \"*.\" and a name, or \"*\"");
            return Err(ConfigError::new(format!("server_names[{i}]"), message).into());
        }
        server_names.push(name.to_ascii_lowercase());
    }
    if server_names.iter().any(|n| n == "*") {
        server_names.clear();
    }
    Ok(ChainMatch {
        destination_port: proto.destination_port.map(|p| port(p, "destination_port")).transpose()?,
        prefix_ranges: networks(&proto.prefix_ranges, "prefix_ranges")?,
        server_names,
        transport_protocol,
        application_protocols: proto.application_protocols.iter().map(|p| p.as_bytes().to_vec()).collect(),
        direct_source_prefix_ranges: networks(
            &proto.direct_source_prefix_ranges,
            "direct_source_prefix_ranges",
        )?,
        source_type: match ConnectionSourceType::try_from(proto.source_type) {
            Ok(ConnectionSourceType::SameIpOrLoopback) => SourceType::SameIpOrLoopback,
            Ok(ConnectionSourceType::External) => SourceType::External,
            _ => SourceType::Any,
        },
        source_prefix_ranges: networks(&proto.source_prefix_ranges, "source_prefix_ranges")?,
        source_ports: proto
            .source_ports
            .iter()
            .map(|p| port(*p, "source_ports"))
            .collect::<Result<_, _>>()?,
    })
}
