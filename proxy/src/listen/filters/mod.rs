//! Listener filters: what runs on a connection before its filter chain is chosen, in the configuration's order.
//!
//! Each sees what those before it found out: the PROXY protocol's addresses and the restored destination count for the ports
//! on which a later filter is switched off, as in Envoy.

mod original_dst;
pub mod proxy_protocol;

use std::net::SocketAddr;

use xds_protos::envoy::config::listener::v3 as pb;
use xds_protos::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use xds_protos::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use xds_protos::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;
use xds_protos::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol as ProxyProtocolProto;
use xds_protos::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector as TlsInspectorProto;

use self::proxy_protocol::ProxyProtocol;
use super::chain::TransportProtocol;
use super::config::PortRule;
use super::inspect::{Findings, TlsInspector, inspect_http, inspect_tls};
use crate::io::{Io, PassedOn, UpstreamSource};
use crate::state::ConfigError;

/// A connection that has no filter chain yet.
#[derive(Debug)]
pub struct Accepted {
    /// Its bytes.
    pub io: Io,
    /// The peer's address, after the PROXY protocol.
    pub remote: SocketAddr,
    /// The peer's address on the socket.
    pub direct_remote: SocketAddr,
    /// Our address on the socket.
    pub direct_local: SocketAddr,
    /// The address that the client dialled, as far as it was restored.
    pub local: SocketAddr,
    /// Whether it was.
    pub restored: bool,
    /// What the inspectors found.
    pub findings: Findings,
    /// What shapes connections to the upstream.
    pub passed_on: PassedOn,
}

/// Why a connection ends before it has a filter chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The peer closed it while a filter waited for bytes.
    RemoteClose,
    /// The transport broke.
    Broken,
    /// A filter ended it.
    Filter,
}

impl From<std::io::Error> for Refusal {
    fn from(_: std::io::Error) -> Self {
        Self::Broken
    }
}

/// One compiled filter.
#[derive(Debug)]
enum Kind {
    OriginalDst,
    OriginalSrc { bind_port: bool, mark: u32 },
    ProxyProtocol(Box<ProxyProtocol>),
    TlsInspector(TlsInspector),
    HttpInspector,
}

/// A filter, and where it is switched off.
#[derive(Debug)]
pub struct ListenerFilter {
    off: PortRule,
    kind: Kind,
}

impl ListenerFilter {
    /// Compiles the filters of a listener.
    pub fn compile(proto: &pb::Listener) -> Result<Vec<Self>, Vec<ConfigError>> {
        let compiled: Result<Vec<_>, _> = proto
            .listener_filters
            .iter()
            .enumerate()
            .map(|(i, filter)| Self::one(filter).map_err(|e| e.at(format!("listener_filters[{i}]"))))
            .collect();
        let mut filters = compiled?;
        // The older way to ask for the first of them.
        if proto.use_original_dst.unwrap_or_default()
            && !filters.iter().any(|f| matches!(f.kind, Kind::OriginalDst))
        {
            filters.insert(0, Self { off: PortRule::Never, kind: Kind::OriginalDst });
        }
        Ok(filters)
    }

    fn one(filter: &pb::ListenerFilter) -> Result<Self, ConfigError> {
        let off = match &filter.filter_disabled {
            None => PortRule::Never,
            Some(rule) => PortRule::compile(rule).map_err(|e| e.at("filter_disabled"))?,
        };
        let Some(pb::listener_filter::ConfigType::TypedConfig(any)) = &filter.config_type else {
            return Err(ConfigError::missing("typed_config"));
        };
        let bad = |e: xds_protos::UnpackError| ConfigError::new("typed_config", e.to_string());
        let kind = if any.is::<TlsInspectorProto>() {
            Kind::TlsInspector(TlsInspector::compile(&any.unpack().map_err(bad)?))
        } else if any.is::<HttpInspector>() {
            Kind::HttpInspector
        } else if any.is::<OriginalDst>() {
            Kind::OriginalDst
        } else if any.is::<OriginalSrc>() {
            let proto: OriginalSrc = any.unpack().map_err(bad)?;
            Kind::OriginalSrc { bind_port: proto.bind_port, mark: proto.mark }
        } else if any.is::<ProxyProtocolProto>() {
            let proto = any.unpack().map_err(bad)?;
            let filter = ProxyProtocol::compile(&proto).map_err(|e| e.at("typed_config"))?;
            Kind::ProxyProtocol(Box::new(filter))
        } else {
            let what = format!("the listener filter {}", any.type_name());
            return Err(ConfigError::unsupported("typed_config", what));
        };
        Ok(Self { off, kind })
    }

    /// Whether it may have to wait for bytes.
    pub fn waits(&self) -> bool {
        matches!(self.kind, Kind::ProxyProtocol(_) | Kind::TlsInspector(_) | Kind::HttpInspector)
    }

    /// Whether it looks at connections to this port.
    pub fn is_on(&self, port: u16) -> bool {
        !self.off.is_off(port)
    }

    /// Whether it tells TLS from plain text.
    pub fn sees_tls(&self) -> bool {
        matches!(self.kind, Kind::TlsInspector(_))
    }

    /// Whether it tells HTTP from other bytes.
    pub fn sees_http(&self) -> bool {
        matches!(self.kind, Kind::HttpInspector)
    }

    /// Runs it on a connection.
    async fn run(&self, connection: &mut Accepted) -> Result<(), Refusal> {
        match &self.kind {
            Kind::OriginalDst => original_dst::restore(connection),
            Kind::OriginalSrc { bind_port, mark } => {
                let mut address = connection.remote;
                if !bind_port {
                    address.set_port(0);
                }
                connection.passed_on.source = Some(UpstreamSource { address, mark: *mark });
            }
            Kind::ProxyProtocol(filter) => filter.run(connection).await?,
            Kind::TlsInspector(inspector) => {
                inspect_tls(&mut connection.io, inspector, &mut connection.findings).await?;
            }
            // TLS hides what is inside; nobody looks.
            Kind::HttpInspector if connection.findings.transport == TransportProtocol::Tls => {}
            Kind::HttpInspector => inspect_http(&mut connection.io, &mut connection.findings).await?,
        }
        Ok(())
    }
}

/// Runs the filters that are not switched off for the connection's port.
pub async fn run(filters: &[ListenerFilter], connection: &mut Accepted) -> Result<(), Refusal> {
    for filter in filters {
        if !filter.off.is_off(connection.local.port()) {
            filter.run(connection).await?;
        }
    }
    Ok(())
}
