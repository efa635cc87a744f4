//! `envoy.config.route.v3.RouteConfiguration` to a [`RouteConfig`].

mod action;
mod matching;
mod rate_limit;
mod retry;
mod tracing;

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::config::route::v3 as proto;
use xds_protos::envoy::config::route::v3::virtual_host::TlsRequirementType;
use xds_protos::envoy::r#type::v3 as r#type;
use xds_protos::prost::Message;
use xds_protos::prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::action::{Action, Mirror};
use super::header_ops::{Addition, AppendAction, HeaderOps, Value};
use super::hosts::{DomainError, Hosts};
pub use super::matching::{Chance, HeaderMatch};
use super::retry::RetryPolicy;
use super::stats::RouteStats;
use super::{Operation, RequireTls, Route, RouteConfig, VirtualCluster, VirtualHost};
use crate::cluster::Cluster;
use crate::cluster::endpoint::Metadata;
use crate::filters::config::PerRoute;
use crate::state::error::collect;
use crate::state::{CompileContext, ConfigError, Slot, SlotState};
use crate::telemetry::access_log::Format;

pub use action::{data_source, optional_chance, substitution};
pub use matching::{header_match, metadata_match, route_match, string_match};
pub use rate_limit::{own_rate_limits, rate_limits};
pub use tracing::words;

/// What the routes of a configuration share while they are compiled.
struct Shared<'a> {
    context: &'a CompileContext,
    max_direct_body: usize,
    /// Clusters must be there already.
    validate_clusters: bool,
    /// Retry policies that were compiled last: most routes have the same one, and there may be ten thousand.
    retries: RefCell<Vec<Compiled>>,
}

/// A retry policy, as it was sent and as it is compiled.
struct Compiled {
    sent: proto::RetryPolicy,
    plain: Arc<RetryPolicy>,
    /// The same for requests that must not be done twice.
    careful: Option<Arc<RetryPolicy>>,
}

/// So many of them are kept while a configuration is compiled.
const COMPILED: usize = 8;

impl Shared<'_> {
    fn retry(&self, policy: &proto::RetryPolicy) -> Result<Arc<RetryPolicy>, Vec<ConfigError>> {
        let mut compiled = self.retries.borrow_mut();
        if let Some(known) = compiled.iter().find(|known| known.sent == *policy) {
            return Ok(known.plain.clone());
        }
        let plain = Arc::new(RetryPolicy::compile(policy)?);
        if compiled.len() == COMPILED {
            compiled.remove(0);
        }
        compiled.push(Compiled { sent: policy.clone(), plain: plain.clone(), careful: None });
        Ok(plain)
    }

    /// The same policy for requests that must not be done twice.
    fn careful(&self, plain: &Arc<RetryPolicy>) -> Arc<RetryPolicy> {
        let make = || Arc::new(RetryPolicy { careful: true, ..RetryPolicy::clone(plain) });
        let mut compiled = self.retries.borrow_mut();
        match compiled.iter_mut().find(|known| Arc::ptr_eq(&known.plain, plain)) {
            Some(known) => known.careful.get_or_insert_with(make).clone(),
            None => make(),
        }
    }

    /// The slot of a cluster that a route names.
    fn cluster(&self, name: &str, path: &str) -> Result<Arc<Slot<Cluster>>, ConfigError> {
        let slot = self.context.clusters.slot(name);
        if self.validate_clusters && slot.state() == SlotState::Missing {
            let text = format!(
                "there is no cluster {name:?}; send it first, or set validate_clusters to false to have such routes answer 503"
            );
            return Err(ConfigError::new(path, text));
        }
        Ok(slot)
    }
}

impl RouteConfig {
    /// Compiles a route configuration that came by RDS; the clusters that it names become slots, which may be empty unless
    /// the configuration wants them checked.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile(
        config: &proto::RouteConfiguration,
        context: &CompileContext,
    ) -> Result<Self, Vec<ConfigError>> {
        Self::build(config, all(config), context, config.validate_clusters.unwrap_or(false))
    }

    /// The same of what came, without having all of it decoded at once: a message of ten thousand virtual hosts takes ten times the room of its
    /// bytes.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile_bytes(bytes: &[u8], context: &CompileContext) -> Result<Self, Vec<ConfigError>> {
        let wrong = |e: String| vec![ConfigError::new("", format!("not a RouteConfiguration: {e}"))];
        let (rest, hosts) = split(bytes).map_err(wrong)?;
        let config = proto::RouteConfiguration::decode(&*rest).map_err(|e| wrong(e.to_string()))?;
        let hosts = hosts
            .into_iter()
            .map(|host| proto::VirtualHost::decode(host).map(Cow::Owned).map_err(|e| e.to_string()));
        Self::build(&config, hosts, context, config.validate_clusters.unwrap_or(false))
    }

    /// Compiles a route configuration that stands in its listener: its clusters must be there, unless it says otherwise.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile_inline(
        config: &proto::RouteConfiguration,
        context: &CompileContext,
    ) -> Result<Self, Vec<ConfigError>> {
        Self::build(config, all(config), context, config.validate_clusters.unwrap_or(true))
    }

    fn build<'h>(
        config: &proto::RouteConfiguration,
        sent: impl ExactSizeIterator<Item = Result<Cow<'h, proto::VirtualHost>, String>>,
        context: &CompileContext,
        validate_clusters: bool,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let shared = Shared {
            context,
            max_direct_body: config.max_direct_response_body_size_bytes.unwrap_or(4096) as usize,
            validate_clusters,
            retries: RefCell::default(),
        };
        if config.vhds.is_some() {
            errors.push(ConfigError::unsupported("vhds", "virtual host discovery"));
        }
        let mirrors = action::mirrors(&config.request_mirror_policies, &shared, &mut errors);
        let mut hosts = Hosts::default();
        let mut virtual_hosts = Vec::with_capacity(sent.len());
        for (index, host) in sent.enumerate() {
            let host = match host {
                Ok(host) => host,
                Err(error) => {
                    errors.push(ConfigError::new(format!("virtual_hosts[{index}]"), error));
                    continue;
                }
            };
            for (at, domain) in host.domains.iter().enumerate() {
                let message = match hosts.add(domain, index as u32) {
                    Ok(()) => continue,
                    Err(DomainError::Duplicate) => format!(
                        "the domain {domain:?} is in another virtual host as well; a host may have one virtual host"
                    ),
                    Err(DomainError::Malformed) => {
                        format!("{domain:?} is no domain; * may stand alone, first, or last")
                    }
                };
                errors.push(ConfigError::new(format!("virtual_hosts[{index}].domains[{at}]"), message));
            }
            if host.domains.is_empty() {
                errors.push(ConfigError::missing(format!("virtual_hosts[{index}].domains")));
            }
            let compiled = virtual_host(&host, &mirrors, &shared);
            virtual_hosts.extend(collect(compiled, format!("virtual_hosts[{index}]"), &mut errors));
        }
        let (request_headers, response_headers) = (
            header_ops(
                &config.request_headers_to_add,
                &config.request_headers_to_remove,
                "request",
                &mut errors,
            ),
            header_ops(
                &config.response_headers_to_add,
                &config.response_headers_to_remove,
                "response",
                &mut errors,
            ),
        );
        let internal_only_headers =
            names(&config.internal_only_headers, "internal_only_headers", &mut errors);
        let per_filter = collect(PerRoute::compile(&config.typed_per_filter_config), "", &mut errors);
        let host_header = match config.vhost_header.as_str() {
            "" => None,
            name => HeaderName::try_from(name)
                .map_err(|_| errors.push(ConfigError::new("vhost_header", "is not a header name")))
                .ok(),
        };
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            name: config.name.as_str().into(),
            virtual_hosts,
            hosts,
            ignore_port: config.ignore_port_in_host_matching,
            host_header,
            ignore_path_parameters: config.ignore_path_parameters_in_path_matching,
            request_headers,
            response_headers,
            most_specific_wins: config.most_specific_header_mutations_wins,
            internal_only_headers,
            per_filter: per_filter.unwrap_or_default(),
        })
    }
}

/// The virtual hosts of a message that is there whole.
fn all(
    config: &proto::RouteConfiguration,
) -> impl ExactSizeIterator<Item = Result<Cow<'_, proto::VirtualHost>, String>> {
    config.virtual_hosts.iter().map(|host| Ok(Cow::Borrowed(host)))
}

/// A message's field with its virtual hosts.
const VIRTUAL_HOSTS: u32 = 2;

/// A message's bytes without its virtual hosts, and those of each of them.
fn split(mut bytes: &[u8]) -> Result<(Vec<u8>, Vec<&[u8]>), String> {
    let (mut rest, mut hosts) = (Vec::new(), Vec::new());
    while !bytes.is_empty() {
        let field = bytes;
        let (tag, wire) = decode_key(&mut bytes).map_err(|e| e.to_string())?;
        if (tag, wire) == (VIRTUAL_HOSTS, WireType::LengthDelimited) {
            let length = decode_varint(&mut bytes).map_err(|e| e.to_string())?;
            let length = usize::try_from(length).map_err(|e| e.to_string())?;
            let (host, after) = bytes.split_at_checked(length).ok_or("it ends inside a virtual host")?;
            hosts.push(host);
            bytes = after;
        } else {
            skip_field(wire, tag, &mut bytes, DecodeContext::default()).map_err(|e| e.to_string())?;
            rest.extend_from_slice(&field[..field.len() - bytes.len()]);
        }
    }
    Ok((rest, hosts))
}

fn virtual_host(
    host: &proto::VirtualHost,
    of_config: &[Mirror],
    shared: &Shared<'_>,
) -> Result<VirtualHost, Vec<ConfigError>> {
    let mut errors = Vec::new();
    if host.name.is_empty() {
        errors.push(ConfigError::missing("name"));
    }
    if host.matcher.is_some() {
        errors.push(ConfigError::unsupported("matcher", "a match tree"));
    }
    let retry = host
        .retry_policy
        .as_ref()
        .and_then(|policy| collect(shared.retry(policy), "retry_policy", &mut errors));
    let mirrors = match host.request_mirror_policies.is_empty() {
        true => of_config.to_vec(),
        false => action::mirrors(&host.request_mirror_policies, shared, &mut errors),
    };
    let inherited = action::Inherited { retry: retry.as_ref(), mirrors };
    let mut routes = Vec::with_capacity(host.routes.len());
    for (index, route) in host.routes.iter().enumerate() {
        let compiled = self::route(route, host, &inherited, shared);
        routes.extend(collect(compiled, format!("routes[{index}]"), &mut errors));
    }
    let require_tls = match TlsRequirementType::try_from(host.require_tls) {
        Ok(TlsRequirementType::None) => RequireTls::None,
        Ok(TlsRequirementType::ExternalOnly) => RequireTls::ExternalOnly,
        Ok(TlsRequirementType::All) => RequireTls::All,
        Err(_) => {
            errors.push(ConfigError::unsupported("require_tls", host.require_tls));
            RequireTls::None
        }
    };
    let compiled = VirtualHost {
        name: host.name.as_str().into(),
        metadata: host.metadata.clone().and_then(|m| Metadata::new(m.filter_metadata)),
        routes,
        require_tls,
        request_headers: header_ops(
            &host.request_headers_to_add,
            &host.request_headers_to_remove,
            "request",
            &mut errors,
        ),
        response_headers: header_ops(
            &host.response_headers_to_add,
            &host.response_headers_to_remove,
            "response",
            &mut errors,
        ),
        per_filter: collect(PerRoute::compile(&host.typed_per_filter_config), "", &mut errors)
            .unwrap_or_default(),
        clusters: virtual_clusters(host, &mut errors),
        rate_limits: collect(rate_limits(&host.rate_limits), "", &mut errors).unwrap_or_default(),
        attempt_count_in_request: host.include_request_attempt_count,
        attempt_count_in_response: host.include_attempt_count_in_response,
        timeout_retry_in_request: host.include_is_timeout_retry_header,
        buffer_limit: host.request_body_buffer_limit.or(host.per_request_buffer_limit_bytes.map(u64::from)),
    };
    if errors.is_empty() { Ok(compiled) } else { Err(errors) }
}

/// Virtual clusters, and one for all requests that are in none of them.
fn virtual_clusters(host: &proto::VirtualHost, errors: &mut Vec<ConfigError>) -> Vec<VirtualCluster> {
    let stats = |name: &str| RouteStats::new(format!("vhost.{}.vcluster.{name}", host.name));
    let mut clusters = Vec::new();
    for (index, cluster) in host.virtual_clusters.iter().enumerate() {
        let mut headers = Vec::with_capacity(cluster.headers.len());
        for (at, header) in cluster.headers.iter().enumerate() {
            let path = format!("virtual_clusters[{index}].headers[{at}]");
            headers.extend(collect(header_match(header), path, errors));
        }
        if headers.is_empty() {
            errors.push(ConfigError::missing(format!("virtual_clusters[{index}].headers")));
        }
        clusters.push(VirtualCluster {
            name: cluster.name.as_str().into(),
            headers,
            stats: stats(&cluster.name),
        });
    }
    if !clusters.is_empty() {
        clusters.push(VirtualCluster { name: "other".into(), headers: Vec::new(), stats: stats("other") });
    }
    clusters
}

fn route(
    route: &proto::Route,
    host: &proto::VirtualHost,
    inherited: &action::Inherited<'_>,
    shared: &Shared<'_>,
) -> Result<Route, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let matching = match &route.r#match {
        Some(m) => collect(matching::route_match(m), "match", &mut errors),
        None => {
            errors.push(ConfigError::missing("match"));
            None
        }
    };
    let metadata = route.metadata.clone().and_then(|m| Metadata::new(m.filter_metadata));
    let action = match &route.action {
        Some(action) => {
            let matched = matching.as_ref().map(|m| &m.path);
            let mut compiled = collect(action::action(action, matched, inherited, shared), "", &mut errors);
            if let Some(Action::Forward(forward)) = &mut compiled
                && collect(retry::careful(metadata.as_deref()).map_err(Vec::from), "", &mut errors)
                    == Some(true)
                && let Some(policy) = &forward.retry
            {
                forward.retry = Some(shared.careful(policy));
            }
            compiled
        }
        None => {
            errors.push(ConfigError::missing("action"));
            None
        }
    };
    let request_headers =
        header_ops(&route.request_headers_to_add, &route.request_headers_to_remove, "request", &mut errors);
    let response_headers = header_ops(
        &route.response_headers_to_add,
        &route.response_headers_to_remove,
        "response",
        &mut errors,
    );
    let per_filter = collect(PerRoute::compile(&route.typed_per_filter_config), "", &mut errors);
    let forward = match &route.action {
        Some(proto::route::Action::Route(forward)) => Some(forward),
        _ => None,
    };
    let limits = forward.map_or(Ok(Vec::new()), |f| rate_limits(&f.rate_limits));
    let limits = collect(limits, "route", &mut errors);
    let tracing = route.tracing.as_ref().and_then(|t| collect(tracing::route(t), "tracing", &mut errors));
    match (matching, action) {
        (Some(matching), Some(action)) if errors.is_empty() => Ok(Route {
            name: route.name.as_str().into(),
            matching,
            action,
            request_headers,
            response_headers,
            per_filter: per_filter.unwrap_or_default(),
            stats: (!route.stat_prefix.is_empty())
                .then(|| RouteStats::new(format!("vhost.{}.route.{}", host.name, route.stat_prefix))),
            rate_limits: limits.unwrap_or_default(),
            include_vh_rate_limits: forward.is_some_and(|f| f.include_vh_rate_limits.unwrap_or(false)),
            metadata,
            operation: route.decorator.as_ref().map(|d| Operation {
                name: d.operation.as_str().into(),
                propagate: d.propagate.unwrap_or(true),
            }),
            tracing,
            buffer_limit: route
                .request_body_buffer_limit
                .or(route.per_request_buffer_limit_bytes.map(u64::from)),
        }),
        _ => Err(errors),
    }
}

/// Additions and removals. `of` is `request` or `response`, for the fields' paths.
pub fn header_ops(
    add: &[core::HeaderValueOption],
    remove: &[String],
    of: &str,
    errors: &mut Vec<ConfigError>,
) -> HeaderOps {
    let mut additions = Vec::with_capacity(add.len());
    for (index, option) in add.iter().enumerate() {
        let path = format!("{of}_headers_to_add[{index}]");
        additions.extend(collect(addition(option), path, errors));
    }
    HeaderOps { add: additions, remove: names(remove, &format!("{of}_headers_to_remove"), errors) }
}

fn addition(option: &core::HeaderValueOption) -> Result<Addition, Vec<ConfigError>> {
    use core::header_value_option::HeaderAppendAction as Proto;
    let header = option.header.as_ref().ok_or_else(|| ConfigError::missing("header"))?;
    let name = name(&header.key).map_err(|e| e.at("header.key"))?;
    let source = if header.raw_value.is_empty() {
        header.value.clone()
    } else {
        String::from_utf8(header.raw_value.to_vec())
            .map_err(|_| ConfigError::unsupported("header.raw_value", "a value that is not UTF-8"))?
    };
    let value = if source.contains('%') {
        let format = Format::text(&source).and_then(Format::known_early);
        let format = format.map_err(|e| ConfigError::new("header.value", e.to_string()))?;
        Value::Format(Arc::new(format))
    } else {
        let value = HeaderValue::from_maybe_shared(Bytes::from(source)).map_err(|_| {
            ConfigError::new("header.value", "holds a character that no header value may hold")
        })?;
        Value::Static(value)
    };
    let action = match (option.append, Proto::try_from(option.append_action)) {
        (Some(true), _) | (None, Ok(Proto::AppendIfExistsOrAdd)) => AppendAction::AppendOrAdd,
        (Some(false), _) | (None, Ok(Proto::OverwriteIfExistsOrAdd)) => AppendAction::OverwriteOrAdd,
        (None, Ok(Proto::AddIfAbsent)) => AppendAction::AddIfAbsent,
        (None, Ok(Proto::OverwriteIfExists)) => AppendAction::OverwriteIfExists,
        (None, Err(_)) => return Err(ConfigError::unsupported("append_action", option.append_action).into()),
    };
    Ok(Addition { name, value, action, keep_empty: option.keep_empty_value })
}

/// A header name that may be changed: not a pseudo-header, not the host.
fn name(text: &str) -> Result<HeaderName, ConfigError> {
    if text.starts_with(':') || text.eq_ignore_ascii_case("host") {
        return Err(ConfigError::new("", format!("{text:?} cannot be changed here; use a rewrite")));
    }
    HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| ConfigError::new("", format!("{text:?} is not a header name")))
}

fn names(texts: &[String], path: &str, errors: &mut Vec<ConfigError>) -> Vec<HeaderName> {
    let mut names = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match name(text) {
            Ok(name) => names.push(name),
            Err(e) => errors.push(e.at(format!("{path}[{index}]"))),
        }
    }
    names
}

/// `envoy.type.v3.FractionalPercent`.
pub fn chance(percent: &r#type::FractionalPercent) -> Result<Chance, ConfigError> {
    use r#type::fractional_percent::DenominatorType;
    let denominator = match DenominatorType::try_from(percent.denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(ConfigError::unsupported("denominator", percent.denominator)),
    };
    Ok(Chance { numerator: percent.numerator, denominator })
}

/// A fraction that runtime could change; there is no runtime, so its default holds.
pub fn runtime_chance(fraction: &core::RuntimeFractionalPercent) -> Result<Chance, ConfigError> {
    fraction
        .default_value
        .as_ref()
        .map_or(Ok(Chance::ALWAYS), |p| chance(p).map_err(|e| e.at("default_value")))
}

/// A duration, which must not be negative.
pub fn duration(
    value: Option<&prost_types::Duration>,
    path: &str,
) -> Result<Option<std::time::Duration>, ConfigError> {
    value
        .map(|d| {
            xds_protos::duration::to_std(d)
                .ok_or_else(|| ConfigError::new(path, "is not a duration of zero or more"))
        })
        .transpose()
}
