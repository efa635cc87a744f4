//! A chain's network filters, compiled.

use std::sync::Arc;

use xds_protos::envoy::config::listener::v3 as pb;
use xds_protos::envoy::extensions::filters::network::ext_authz::v3::ExtAuthz;
use xds_protos::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use xds_protos::envoy::extensions::filters::network::local_ratelimit::v3::LocalRateLimit;
use xds_protos::envoy::extensions::filters::network::mongo_proxy::v3::MongoProxy;
use xds_protos::envoy::extensions::filters::network::ratelimit::v3::RateLimit;
use xds_protos::envoy::extensions::filters::network::rbac::v3::Rbac;
use xds_protos::envoy::extensions::filters::network::sni_cluster::v3::SniCluster;
use xds_protos::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use xds_protos::envoy::tcp::metadataexchange::config::MetadataExchange;
use xds_protos::stats::PluginConfig;
use xds_protos::{Any, typed_struct};

use super::ext_authz::NetworkExtAuthz;
use super::living::EVERY;
use super::rate_limit::{Admission, GlobalLimit, LocalLimit};
use super::rbac::NetworkRbac;
use super::tcp_proxy::{Reports, TcpProxyConfig};
use super::{Guard, Terminal};
use crate::http::HcmConfig;
use crate::io::Direction;
use crate::route::config::duration;
use crate::state::error::at;
use crate::state::{CompileContext, ConfigError};
use crate::telemetry::istio::Changes;

/// What a connection of a filter chain goes through.
pub struct NetworkChain {
    /// What it ends in.
    pub terminal: Terminal,
    /// What decides over its bytes first, in order.
    pub guards: Vec<Guard>,
    /// What decides over it when it comes, in order.
    pub admissions: Vec<Admission>,
}

impl NetworkChain {
    /// Compiles the filters of a chain, in order; the last one, and only it, is terminal. `buffer_limit` is the listener's.
    pub fn compile(
        filters: &[pb::Filter],
        buffer_limit: Option<u32>,
        direction: Direction,
        ctx: &CompileContext,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut terminal = None;
        let mut reports = None;
        let mut by_server_name = false;
        let (mut guards, mut admissions) = (Vec::new(), Vec::new());
        for (i, filter) in filters.iter().enumerate() {
            let path = format!("filters[{i}]");
            if terminal.is_some() {
                let message = "stands behind a terminal filter, so it would never run";
                return Err(ConfigError::new(path, message).into());
            }
            let Some(pb::filter::ConfigType::TypedConfig(any)) = &filter.config_type else {
                return Err(ConfigError::missing("typed_config").at(path).into());
            };
            let any = typed_struct::resolve(any)
                .map_err(|e| ConfigError::new("typed_config", e.to_string()).at(&path))?;
            match one(&filter.name, &any, buffer_limit, direction, reports.clone(), ctx)
                .map_err(at("typed_config"))
                .map_err(at(path))?
            {
                Filter::Terminal(mut t) => {
                    if let Terminal::Tcp(config) = &mut t
                        && let Some(config) = Arc::get_mut(config).filter(|_| by_server_name)
                    {
                        config.go_by_server_name(ctx);
                    }
                    terminal = Some(t);
                }
                Filter::ByServerName => by_server_name = true,
                Filter::Guard(guard) => guards.push(guard),
                Filter::Admission(admission) => admissions.push(admission),
                Filter::Stats(wanted) => reports = Some(wanted),
                Filter::Nothing => {}
            }
        }
        let terminal = terminal.ok_or_else(|| {
            ConfigError::new(
                "filters",
                "a chain ends in http_connection_manager or tcp_proxy; this one in neither",
            )
        })?;
        Ok(Self { terminal, guards, admissions })
    }
}

enum Filter {
    Terminal(Terminal),
    Guard(Guard),
    Admission(Admission),
    /// Istio's metrics are wanted of what follows.
    Stats(Reports),
    /// What follows goes to the cluster that the TLS server name names.
    ByServerName,
    /// Accepted for what others do with it.
    Nothing,
}

fn one(
    name: &str,
    any: &Any,
    buffer_limit: Option<u32>,
    direction: Direction,
    reports: Option<Reports>,
    ctx: &CompileContext,
) -> Result<Filter, Vec<ConfigError>> {
    let bad = |e: xds_protos::UnpackError| ConfigError::new("", e.to_string());
    if any.is::<HttpConnectionManager>() {
        let mut config = HcmConfig::compile(&any.unpack().map_err(bad)?, direction, ctx)?;
        if let Some(limit) = buffer_limit {
            config.buffer_limit = u64::from(limit);
        }
        config
            .open_logs()
            .map_err(|e| ConfigError::new("access_log", format!("the log cannot be opened: {e}")))?;
        return Ok(Filter::Terminal(Terminal::Http(Arc::new(config))));
    }
    if any.is::<TcpProxy>() {
        let config = TcpProxyConfig::compile(&any.unpack().map_err(bad)?, direction, reports, ctx)?;
        return Ok(Filter::Terminal(Terminal::Tcp(Arc::new(config))));
    }
    if any.is::<Rbac>() {
        let rbac = NetworkRbac::compile(&any.unpack().map_err(bad)?)?;
        return Ok(Filter::Guard(Guard::Rbac(Arc::new(rbac))));
    }
    if any.is::<ExtAuthz>() {
        let filter = NetworkExtAuthz::compile(&any.unpack().map_err(bad)?, ctx)?;
        return Ok(Filter::Guard(Guard::ExtAuthz(Arc::new(filter))));
    }
    if any.is::<LocalRateLimit>() {
        let limit = LocalLimit::compile(&any.unpack().map_err(bad)?)?;
        return Ok(Filter::Admission(Admission::local(limit, name)));
    }
    if any.is::<RateLimit>() {
        let limit = GlobalLimit::compile(&any.unpack().map_err(bad)?, ctx)?;
        return Ok(Filter::Admission(Admission::global(limit, name)));
    }
    if any.is::<PluginConfig>() {
        let config: PluginConfig = any.unpack().map_err(bad)?;
        let every = duration(config.tcp_reporting_duration.as_ref(), "tcp_reporting_duration")?;
        let every = Some(every.unwrap_or(EVERY)).filter(|every| !every.is_zero());
        if !config.definitions.is_empty() {
            let what = "metrics of one's own for connections of bytes; they are for requests";
            return Err(ConfigError::unsupported("definitions", what).into());
        }
        let changes = Changes::compile(&config)?;
        return Ok(Filter::Stats(Reports { every, changes: Arc::new(changes) }));
    }
    if any.is::<SniCluster>() {
        return Ok(Filter::ByServerName);
    }
    if any.is::<MetadataExchange>() || any.is::<MongoProxy>() {
        return Ok(Filter::Nothing);
    }
    Err(ConfigError::unsupported("", format!("the network filter {}", any.type_name())).into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_only_counts_the_bytes_of_mongodb_lets_them_pass() {
        let filter = |name: &str, more: &str, fields: serde_json::Value| {
            let mut config = fields;
            config["@type"] = format!("type.googleapis.com/envoy.extensions.filters.network.{more}").into();
            xds_protos::json::from_value::<pb::Filter>(json!({"name": name, "typed_config": config})).unwrap()
        };
        let filters = [
            filter("mongo", "mongo_proxy.v3.MongoProxy", json!({"stat_prefix": "x"})),
            filter("tcp", "tcp_proxy.v3.TcpProxy", json!({"stat_prefix": "x", "cluster": "c"})),
        ];
        let chain = NetworkChain::compile(&filters, None, Direction::Outbound, &CompileContext::for_tests())
            .unwrap_or_else(|e| panic!("{e:?}"));
        assert!(matches!(chain.terminal, Terminal::Tcp(_)) && chain.guards.is_empty());
    }

    #[test]
    fn the_listeners_buffer_limit_is_what_a_request_may_keep() {
        let filter = json!({"name": "hcm", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "x", "route_config": {}, "http_filters": [{"name": "router", "typed_config":
                {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}});
        let filters: [pb::Filter; 1] = [xds_protos::json::from_value(filter).unwrap()];
        let limit = |given| {
            let chain =
                NetworkChain::compile(&filters, given, Direction::Inbound, &CompileContext::for_tests());
            match chain.unwrap_or_else(|e| panic!("{e:?}")).terminal {
                Terminal::Http(config) => config.buffer_limit,
                Terminal::Tcp(_) => panic!("this is HTTP"),
            }
        };
        assert_eq!(limit(Some(32_768)), 32_768);
        assert_eq!(limit(None), crate::router::DEFAULT_BUFFER_LIMIT);
    }
}
