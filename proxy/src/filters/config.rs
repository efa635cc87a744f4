//! From a connection manager's `http_filters`, and routes' `typed_per_filter_config`, to compiled filters.

use std::collections::BTreeMap;
use std::sync::Arc;

use xds_protos::Any;
use xds_protos::envoy::config::route::v3::FilterConfig as PerRouteConfig;
use xds_protos::envoy::extensions::filters::http as proto;
use xds_protos::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use xds_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use xds_protos::io::istio::http::peer_metadata::Config as PeerMetadataConfig;
use xds_protos::istio::envoy::config::filter::http::alpn::v2alpha1::FilterConfig as AlpnConfig;
use xds_protos::stats::PluginConfig;

use super::compressor::{self, Compressor};
use super::cors::{CorsPolicy, CorsStats};
use super::credential_injector::CredentialInjector;
use super::decompressor::Decompressor;
use super::ext_authz::{self, ExtAuthz};
use super::fault::{Fault, FaultStats};
use super::grpc_stats::GrpcStats;
use super::header_mutation::{HeaderMutation, Mutations};
use super::jwt_authn::{self, JwtAuthn};
use super::local_ratelimit::{Limits, LocalRateLimit};
use super::peer_metadata::{self, PeerMetadata};
use super::ratelimit::{self, GlobalRateLimit};
use super::rbac::{self, Rbac};
use super::{Filter, FilterList, Named};
use crate::io::Direction;
use crate::router::RouterConfig;
use crate::router::alpn::AlpnOverride;
use crate::state::error::collect;
use crate::state::{CompileContext, ConfigError, Role};
use crate::telemetry::istio::{Changes, Reporter, Side};

type Errors = Vec<ConfigError>;

/// What a route, virtual host, route configuration or weighted cluster says to one filter.
#[derive(Clone, Debug)]
pub enum PerFilter {
    /// The filter is off here.
    Disabled,
    /// The filter is on here, even if the chain has it disabled.
    Enabled,
    /// Fault settings in place of the chain's.
    Fault(Arc<Fault>),
    /// The CORS policy.
    Cors(Arc<CorsPolicy>),
    /// Limits in place of the chain's.
    LocalRateLimit(Arc<Limits>),
    /// What a rate limit service is asked here.
    GlobalRateLimit(Arc<ratelimit::OfRoute>),
    /// What is compressed here.
    Compressor(compressor::OfRoute),
    /// More changes of header fields.
    HeaderMutation(Arc<Mutations>),
    /// Rules in place of the chain's.
    Rbac(Arc<rbac::Rules>),
    /// What token is required here.
    JwtAuthn(Arc<jwt_authn::OfRoute>),
    /// What another service is asked here.
    ExtAuthz(Arc<ext_authz::OfRoute>),
}

/// Settings by the filter's name.
#[derive(Clone, Debug, Default)]
pub struct PerRoute {
    entries: Vec<(Box<str>, PerFilter)>,
}

impl PerRoute {
    /// Compiles `typed_per_filter_config`.
    ///
    /// # Errors
    /// Settings that are wrong, or that are for a filter that this proxy does not have.
    pub fn compile(configs: &BTreeMap<String, Any>) -> Result<Self, Errors> {
        let mut errors = Vec::new();
        let mut entries = Vec::with_capacity(configs.len());
        for (name, any) in configs {
            let path = format!("typed_per_filter_config[{name:?}]");
            if let Some(Some(entry)) = collect(per_filter(any), path, &mut errors) {
                entries.push((name.as_str().into(), entry));
            }
        }
        if errors.is_empty() { Ok(Self { entries }) } else { Err(errors) }
    }

    /// What is said to the filter of this name.
    pub fn get(&self, name: &str) -> Option<&PerFilter> {
        self.entries.iter().find(|(n, _)| **n == *name).map(|(_, entry)| entry)
    }
}

fn unpack<T: xds_protos::prost::Message + xds_protos::prost::Name + Default>(any: &Any) -> Result<T, Errors> {
    any.unpack().map_err(|e| ConfigError::new("", e.to_string()).into())
}

fn per_filter(any: &Any) -> Result<Option<PerFilter>, Errors> {
    let any = xds_protos::typed_struct::resolve(any).map_err(|e| ConfigError::new(e.path, e.message))?;
    match any.type_name() {
        "envoy.config.route.v3.FilterConfig" => {
            let wrapper: PerRouteConfig = unpack(&any)?;
            match wrapper.config {
                _ if wrapper.disabled => Ok(Some(PerFilter::Disabled)),
                None => Ok(Some(PerFilter::Enabled)),
                // What is there and says nothing turns the filter on.
                Some(inner) if inner.type_url.is_empty() => Ok(Some(PerFilter::Enabled)),
                Some(inner) => match per_filter(&inner) {
                    Err(_) if wrapper.is_optional && !known(inner.type_name()) => Ok(None),
                    compiled => compiled.map_err(crate::state::error::at("config")),
                },
            }
        }
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
            Fault::compile(&unpack(&any)?).map(|f| Some(PerFilter::Fault(Arc::new(f))))
        }
        "envoy.extensions.filters.http.cors.v3.CorsPolicy" => {
            CorsPolicy::compile(&unpack(&any)?).map(|c| Some(PerFilter::Cors(Arc::new(c))))
        }
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" => {
            Limits::compile(&unpack(&any)?, true).map(|l| Some(PerFilter::LocalRateLimit(Arc::new(l))))
        }
        "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute" => {
            compressor::OfRoute::compile(&unpack(&any)?).map(|r| Some(PerFilter::Compressor(r)))
        }
        "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute" => {
            ratelimit::OfRoute::compile(&unpack(&any)?).map(|r| Some(PerFilter::GlobalRateLimit(Arc::new(r))))
        }
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute" => {
            let config: proto::header_mutation::v3::HeaderMutationPerRoute = unpack(&any)?;
            Mutations::compile(config.mutations.as_ref())
                .map(|m| Some(PerFilter::HeaderMutation(Arc::new(m))))
        }
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute" => {
            rbac::Rules::compile_for_route(&unpack(&any)?).map(|r| Some(PerFilter::Rbac(Arc::new(r))))
        }
        "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig" => {
            jwt_authn::OfRoute::compile(&unpack(&any)?).map(|r| Some(PerFilter::JwtAuthn(Arc::new(r))))
        }
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute" => {
            ext_authz::OfRoute::compile(&unpack(&any)?).map(|r| Some(PerFilter::ExtAuthz(Arc::new(r))))
        }
        "envoy.extensions.filters.http.cors.v3.Cors" => Ok(Some(PerFilter::Enabled)),
        other => Err(ConfigError::unsupported("", format!("a setting of type {other}")).into()),
    }
}

fn known(type_name: &str) -> bool {
    matches!(
        type_name,
        "envoy.extensions.filters.http.fault.v3.HTTPFault"
            | "envoy.extensions.filters.http.cors.v3.CorsPolicy"
            | "envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
            | "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute"
            | "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
            | "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute"
            | "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute"
            | "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig"
            | "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"
    )
}

impl FilterList {
    /// Compiles the filters of a connection manager. `stat_prefix` is its own, `direction` the listener's.
    ///
    /// # Errors
    /// A filter that this proxy does not have (unless it is optional), settings that are wrong, a router that is missing
    /// or not the last.
    pub fn compile(
        filters: &[HttpFilter],
        stat_prefix: &str,
        direction: Direction,
        context: &CompileContext,
    ) -> Result<Self, Errors> {
        let mut errors = Vec::new();
        let mut list = Vec::with_capacity(filters.len());
        let mut router = None;
        for (index, filter) in filters.iter().enumerate() {
            let compiled = match compile_one(filter, stat_prefix, direction, context) {
                Ok(compiled) => compiled,
                Err(found) => {
                    errors.extend(found.into_iter().map(|e| e.at(format!("http_filters[{index}]"))));
                    continue;
                }
            };
            match compiled {
                None => {}
                Some(Compiled::Router(config)) if index + 1 == filters.len() => router = Some(config),
                Some(Compiled::Router(_)) => {
                    errors.push(ConfigError::new(
                        format!("http_filters[{index}]"),
                        "the router must be the last filter",
                    ));
                }
                Some(Compiled::Filter(kind)) => {
                    list.push(Named {
                        name: filter.name.as_str().into(),
                        disabled: filter.disabled,
                        filter: kind,
                    });
                }
            }
        }
        match router {
            Some(router) if errors.is_empty() => Ok(Self { filters: list.into(), router: Arc::new(router) }),
            None if errors.is_empty() => {
                Err(ConfigError::new("http_filters", "the last filter must be envoy.filters.http.router")
                    .into())
            }
            _ => Err(errors),
        }
    }
}

enum Compiled {
    Filter(Filter),
    Router(RouterConfig),
}

fn compile_one(
    filter: &HttpFilter,
    stat_prefix: &str,
    direction: Direction,
    context: &CompileContext,
) -> Result<Option<Compiled>, Errors> {
    let any = match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => any,
        Some(ConfigType::ConfigDiscovery(_)) => {
            return Err(ConfigError::unsupported("config_discovery", "discovery of filter settings").into());
        }
        None => return Err(ConfigError::missing("typed_config").into()),
    };
    use crate::state::error::at;
    let any = xds_protos::typed_struct::resolve(any)
        .map_err(|e| ConfigError::new(e.path, e.message).at("typed_config"))?;
    let kind = match any.type_name() {
        "envoy.extensions.filters.http.router.v3.Router" => {
            let config: proto::router::v3::Router = unpack(&any).map_err(at("typed_config"))?;
            return RouterConfig::compile(&config)
                .map(|r| Some(Compiled::Router(r)))
                .map_err(at("typed_config"));
        }
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
            let fault = unpack(&any).and_then(|f| Fault::compile(&f)).map_err(at("typed_config"))?;
            Filter::Fault(Arc::new(fault), Arc::new(FaultStats::new(stat_prefix)))
        }
        "envoy.extensions.filters.http.cors.v3.Cors" => Filter::Cors(Arc::new(CorsStats::new(stat_prefix))),
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" => {
            let limits = unpack(&any).and_then(|c| Limits::compile(&c, false)).map_err(at("typed_config"))?;
            Filter::LocalRateLimit(Arc::new(LocalRateLimit::new(limits, &filter.name, &context.node.cluster)))
        }
        "envoy.extensions.filters.http.compressor.v3.Compressor" => {
            let filter = unpack(&any)
                .and_then(|c| Compressor::compile(&c, stat_prefix))
                .map_err(at("typed_config"))?;
            Filter::Compressor(Arc::new(filter))
        }
        "envoy.extensions.filters.http.decompressor.v3.Decompressor" => {
            let filter = unpack(&any)
                .and_then(|c| Decompressor::compile(&c, stat_prefix))
                .map_err(at("typed_config"))?;
            Filter::Decompressor(Arc::new(filter))
        }
        "envoy.extensions.filters.http.ratelimit.v3.RateLimit" => {
            let limit = unpack(&any)
                .and_then(|c| GlobalRateLimit::compile(&c, &filter.name, context))
                .map_err(at("typed_config"))?;
            Filter::GlobalRateLimit(Arc::new(limit))
        }
        "envoy.extensions.filters.http.rbac.v3.RBAC" => {
            let rbac =
                unpack(&any).and_then(|c| Rbac::compile(&c, stat_prefix)).map_err(at("typed_config"))?;
            Filter::Rbac(Arc::new(rbac))
        }
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication" => {
            let filter = unpack(&any)
                .and_then(|c| JwtAuthn::compile(&c, stat_prefix, context))
                .map_err(at("typed_config"))?;
            Filter::JwtAuthn(Arc::new(filter))
        }
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz" => {
            let filter = unpack(&any)
                .and_then(|c| ExtAuthz::compile(&c, stat_prefix, context))
                .map_err(at("typed_config"))?;
            Filter::ExtAuthz(Arc::new(filter))
        }
        "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector" => {
            let config = unpack(&any).map_err(at("typed_config"))?;
            let filter = CredentialInjector::compile(&config, stat_prefix, context)
                .map_err(|e| e.at("typed_config"))?;
            Filter::CredentialInjector(Arc::new(filter))
        }
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" => {
            let config = unpack(&any).map_err(at("typed_config"))?;
            Filter::GrpcStats(Arc::new(GrpcStats::compile(&config)))
        }
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation" => {
            let config: proto::header_mutation::v3::HeaderMutation =
                unpack(&any).map_err(at("typed_config"))?;
            let own = Mutations::compile(config.mutations.as_ref()).map_err(at("typed_config"))?;
            Filter::HeaderMutation(Arc::new(HeaderMutation {
                own: Arc::new(own),
                most_specific_wins: config.most_specific_header_mutations_wins,
            }))
        }
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" => {
            let config: AlpnConfig = unpack(&any).map_err(at("typed_config"))?;
            Filter::Alpn(Arc::new(AlpnOverride::compile(&config)))
        }
        "io.istio.http.peer_metadata.Config" => {
            let config: PeerMetadataConfig = unpack(&any).map_err(at("typed_config"))?;
            Filter::PeerMetadata(Arc::new(PeerMetadata::compile(&config, &context.node)))
        }
        "stats.PluginConfig" => {
            let side = match (direction, context.node.role) {
                (Direction::Inbound, _) => Side::Destination,
                (_, Role::Sidecar | Role::Gateway) => Side::Source,
            };
            let local = Arc::new(peer_metadata::local_workload(&context.node));
            let config: PluginConfig = unpack(&any).map_err(at("typed_config"))?;
            let changes = Changes::compile(&config).map_err(|e| vec![e.at("typed_config")])?;
            Filter::IstioStats(Arc::new(Reporter::new(side, local, Arc::new(changes))))
        }
        _ if filter.is_optional => return Ok(None),
        other => {
            let what = format!("the HTTP filter {:?} ({other})", filter.name);
            return Err(ConfigError::unsupported("typed_config", what).into());
        }
    };
    Ok(Some(Compiled::Filter(kind)))
}
