//! Actions.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use xds_protos::envoy::config::common::mutation_rules::v3::HeaderMutation;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::config::route::v3 as proto;
use xds_protos::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
use xds_protos::envoy::r#type::matcher::v3 as matcher;

use super::{Shared, addition, chance, duration, header_ops, runtime_chance};
use crate::filters::config::PerRoute;
use crate::route::HeaderOps;
use crate::route::action::{
    Action, ChosenBy, ClusterName, ConnectConfig, DirectResponse, Forward, HostRewrite, Mirror, PathRewrite,
    Priority, StreamDurations, Target, WeightedCluster,
};
use crate::route::hash::{CookiePolicy, HashPolicy, HashSource};
use crate::route::matching::{Chance, Field, PathMatch};
use crate::route::redirect::Redirect;
use crate::route::retry::RetryPolicy;
use crate::route::template::TemplateRewrite;
use crate::route::text::Substitution;
use crate::state::ConfigError;
use crate::state::error::collect;
use crate::telemetry::access_log::config::BodyFormat;

type Errors = Vec<ConfigError>;

/// What a route has of its virtual host where it says nothing itself.
pub(super) struct Inherited<'a> {
    /// Retries.
    pub retry: Option<&'a Arc<RetryPolicy>>,
    /// Copies.
    pub mirrors: Vec<Mirror>,
}

pub(super) fn action(
    action: &proto::route::Action,
    matched: Option<&PathMatch>,
    inherited: &Inherited<'_>,
    shared: &Shared<'_>,
) -> Result<Action, Errors> {
    use crate::state::error::at;
    use proto::route::Action as Proto;
    match action {
        Proto::Route(route) => forward(route, matched, inherited, shared)
            .map(|f| Action::Forward(Box::new(f)))
            .map_err(at("route")),
        Proto::Redirect(r) => redirect(r).map(|r| Action::Redirect(Box::new(r))).map_err(at("redirect")),
        Proto::DirectResponse(d) => direct(d, shared).map(Action::Direct).map_err(at("direct_response")),
        Proto::FilterAction(_) => Err(ConfigError::unsupported("filter_action", "a filter action").into()),
        Proto::NonForwardingAction(_) => {
            Err(ConfigError::unsupported("non_forwarding_action", "an action that forwards nothing").into())
        }
    }
}

fn status(code: u32, path: &str) -> Result<StatusCode, ConfigError> {
    u16::try_from(code)
        .ok()
        .filter(|c| (200..600).contains(c))
        .and_then(|c| StatusCode::from_u16(c).ok())
        .ok_or_else(|| ConfigError::new(path, format!("{code} is not a status from 200 to 599")))
}

/// The text of a data source.
///
/// # Errors
/// It is not there, or cannot be read.
pub fn data_source(source: &core::DataSource) -> Result<Bytes, ConfigError> {
    use core::data_source::Specifier;
    Ok(match &source.specifier {
        None => Bytes::new(),
        Some(Specifier::InlineString(text)) => Bytes::from(text.clone()),
        Some(Specifier::InlineBytes(bytes)) => bytes.clone(),
        Some(Specifier::Filename(path)) => std::fs::read(path)
            .map(Bytes::from)
            .map_err(|e| ConfigError::new("filename", format!("{path} cannot be read: {e}")))?,
        Some(Specifier::EnvironmentVariable(name)) => std::env::var(name).map(Bytes::from).map_err(|_| {
            ConfigError::new("environment_variable", format!("the variable {name} is not set"))
        })?,
    })
}

fn direct(direct: &proto::DirectResponseAction, shared: &Shared<'_>) -> Result<DirectResponse, Errors> {
    let body = match &direct.body {
        Some(source) => data_source(source).map_err(|e| e.at("body"))?,
        None => Bytes::new(),
    };
    if body.len() > shared.max_direct_body {
        let message = format!(
            "has {} bytes; max_direct_response_body_size_bytes is {}",
            body.len(),
            shared.max_direct_body
        );
        return Err(ConfigError::new("body", message).into());
    }
    let format = match &direct.body_format {
        Some(format) => Some(BodyFormat::compile(format).map_err(|e| e.at("body_format"))?),
        None => None,
    };
    Ok(DirectResponse { status: status(direct.status, "status")?, body, format: format.map(Arc::new) })
}

fn redirect(redirect: &proto::RedirectAction) -> Result<Redirect, Errors> {
    use proto::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let status = match RedirectResponseCode::try_from(redirect.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
        Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
        Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
        Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
        Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        Err(_) => return Err(ConfigError::unsupported("response_code", redirect.response_code).into()),
    };
    let some = |text: &str| (!text.is_empty()).then(|| Bytes::from(text.to_owned()));
    let (mut path, mut rewrite) = (None, PathRewrite::None);
    match &redirect.path_rewrite_specifier {
        None => {}
        Some(PathRewriteSpecifier::PathRedirect(p)) => path = some(p),
        Some(PathRewriteSpecifier::PrefixRewrite(p)) => rewrite = PathRewrite::Prefix(p.clone().into()),
        Some(PathRewriteSpecifier::RegexRewrite(r)) => {
            rewrite = PathRewrite::Regex(substitution(r).map_err(|e| e.at("regex_rewrite"))?);
        }
        Some(_) => return Err(ConfigError::unsupported("path_rewrite_specifier", "this path rewrite").into()),
    }
    Ok(Redirect {
        status,
        scheme: match &redirect.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some(Bytes::from_static(b"https")),
            Some(SchemeRewriteSpecifier::SchemeRedirect(s)) => some(s),
            _ => None,
        },
        host: some(&redirect.host_redirect),
        port: u16::try_from(redirect.port_redirect)
            .map(|p| (p != 0).then_some(p))
            .map_err(|_| ConfigError::new("port_redirect", "is not a port"))?,
        path,
        rewrite,
        strip_query: redirect.strip_query,
    })
}

/// A search and replacement.
///
/// # Errors
/// What is wrong with pattern or replacement.
pub fn substitution(s: &matcher::RegexMatchAndSubstitute) -> Result<Substitution, ConfigError> {
    let pattern = s.pattern.as_ref().ok_or_else(|| ConfigError::missing("pattern"))?;
    Substitution::new(&pattern.regex, &s.substitution).map_err(|e| ConfigError::new("pattern.regex", e))
}

fn forward(
    route: &proto::RouteAction,
    matched: Option<&PathMatch>,
    inherited: &Inherited<'_>,
    shared: &Shared<'_>,
) -> Result<Forward, Errors> {
    use proto::route_action::{ClusterNotFoundResponseCode, HostRewriteSpecifier};
    let mut errors = Vec::new();
    for (there, path, what) in [
        (route.hedge_policy.is_some(), "hedge_policy", "hedging"),
        (route.internal_redirect_policy.is_some(), "internal_redirect_policy", "following redirects"),
        (!route.path_rewrite.is_empty(), "path_rewrite", "a path rewrite format"),
        (route.retry_policy_typed_config.is_some(), "retry_policy_typed_config", "a retry policy extension"),
        (route.cors.is_some(), "cors", "CORS outside typed_per_filter_config"),
    ] {
        if there {
            errors.push(ConfigError::unsupported(path, what));
        }
    }
    let target = collect(target(route, shared), "", &mut errors);
    let path_rewrite = match (&route.regex_rewrite, route.prefix_rewrite.as_str()) {
        (Some(_), prefix) if !prefix.is_empty() => {
            errors.push(ConfigError::new("regex_rewrite", "cannot stand beside prefix_rewrite"));
            PathRewrite::None
        }
        (Some(regex), _) => collect(substitution(regex).map_err(Vec::from), "regex_rewrite", &mut errors)
            .map_or(PathRewrite::None, PathRewrite::Regex),
        (None, "") => PathRewrite::None,
        (None, prefix) => PathRewrite::Prefix(prefix.to_owned().into()),
    };
    let path_rewrite = match &route.path_rewrite_policy {
        None => path_rewrite,
        Some(_) if !matches!(path_rewrite, PathRewrite::None) => {
            let message = "cannot stand beside prefix_rewrite or regex_rewrite";
            errors.push(ConfigError::new("path_rewrite_policy", message));
            PathRewrite::None
        }
        Some(policy) => {
            let compiled = template_rewrite(policy, matched).map_err(Vec::from);
            collect(compiled, "path_rewrite_policy", &mut errors).unwrap_or_default()
        }
    };
    let host_rewrite = match &route.host_rewrite_specifier {
        None | Some(HostRewriteSpecifier::AutoHostRewrite(false)) => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(text)) => HostRewrite::Literal(text.clone().into()),
        Some(HostRewriteSpecifier::AutoHostRewrite(true)) => HostRewrite::Auto,
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => match HeaderName::try_from(name.as_str()) {
            Ok(name) => HostRewrite::Header(name),
            Err(_) => {
                errors.push(ConfigError::new("host_rewrite_header", "is not a header name"));
                HostRewrite::None
            }
        },
        Some(HostRewriteSpecifier::HostRewritePathRegex(r)) => {
            collect(substitution(r).map_err(Vec::from), "host_rewrite_path_regex", &mut errors)
                .map_or(HostRewrite::None, HostRewrite::Path)
        }
        Some(_) => {
            errors.push(ConfigError::unsupported("host_rewrite_specifier", "this host rewrite"));
            HostRewrite::None
        }
    };
    let retry = match &route.retry_policy {
        Some(policy) => collect(shared.retry(policy), "retry_policy", &mut errors),
        None => inherited.retry.cloned(),
    };
    let mut hash = Vec::with_capacity(route.hash_policy.len());
    for (index, policy) in route.hash_policy.iter().enumerate() {
        let compiled = hash_policy(policy).map_err(Vec::from);
        hash.extend(collect(compiled, format!("hash_policy[{index}]"), &mut errors));
    }
    let mirrors = match route.request_mirror_policies.is_empty() {
        true => inherited.mirrors.clone(),
        false => self::mirrors(&route.request_mirror_policies, shared, &mut errors),
    };
    let mut time = |value: &Option<prost_types::Duration>, path| {
        duration(value.as_ref(), path).map_err(|e| errors.push(e)).ok().flatten()
    };
    let timeout = time(&route.timeout, "timeout").unwrap_or(Duration::from_secs(15));
    let idle_timeout = time(&route.idle_timeout, "idle_timeout");
    let max_grpc_timeout = time(&route.max_grpc_timeout, "max_grpc_timeout");
    let grpc_timeout_offset = time(&route.grpc_timeout_offset, "grpc_timeout_offset");
    let durations = route.max_stream_duration.as_ref().map(|d| StreamDurations {
        max: time(&d.max_stream_duration, "max_stream_duration.max_stream_duration"),
        grpc_max: time(&d.grpc_timeout_header_max, "max_stream_duration.grpc_timeout_header_max"),
        grpc_offset: time(&d.grpc_timeout_header_offset, "max_stream_duration.grpc_timeout_header_offset"),
    });
    let (mut upgrades, mut connect) = (Vec::new(), None);
    for (index, upgrade) in route.upgrade_configs.iter().enumerate() {
        let token = upgrade.upgrade_type.to_ascii_lowercase();
        if let Some(config) = &upgrade.connect_config {
            if token != "connect" {
                let path = format!("upgrade_configs[{index}].connect_config");
                errors.push(ConfigError::new(path, "is for the upgrade type CONNECT alone"));
            }
            connect = Some(ConnectConfig { allow_post: config.allow_post });
        }
        let token = token.into_bytes().into();
        upgrades.push((token, upgrade.enabled.unwrap_or(true)));
    }
    let not_found = match ClusterNotFoundResponseCode::try_from(route.cluster_not_found_response_code) {
        Ok(ClusterNotFoundResponseCode::NotFound) => StatusCode::NOT_FOUND,
        Ok(ClusterNotFoundResponseCode::InternalServerError) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let priority =
        if route.priority == core::RoutingPriority::High as i32 { Priority::High } else { Priority::Default };
    match target {
        Some(target) if errors.is_empty() => Ok(Forward {
            target,
            cluster_not_found: not_found,
            path_rewrite,
            host_rewrite,
            append_x_forwarded_host: route.append_x_forwarded_host,
            timeout,
            idle_timeout,
            max_grpc_timeout,
            grpc_timeout_offset,
            durations,
            retry,
            hash,
            priority,
            upgrades,
            connect,
            mirrors,
        }),
        _ => Err(errors),
    }
}

fn target(route: &proto::RouteAction, shared: &Shared<'_>) -> Result<Target, Errors> {
    use proto::route_action::ClusterSpecifier;
    match &route.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) if name.is_empty() => {
            Err(ConfigError::missing("cluster").into())
        }
        Some(ClusterSpecifier::Cluster(name)) => Ok(Target::Cluster(shared.cluster(name, "cluster")?)),
        Some(ClusterSpecifier::ClusterHeader(name)) => {
            Ok(Target::Header(header(name, "cluster_header")?, shared.context.clusters.table().clone()))
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            self::weighted(weighted, shared).map_err(crate::state::error::at("weighted_clusters"))
        }
        Some(_) => Err(ConfigError::unsupported("cluster_specifier", "a cluster specifier plugin").into()),
        None => Err(ConfigError::missing("cluster_specifier").into()),
    }
}

fn header(name: &str, path: &str) -> Result<HeaderName, ConfigError> {
    HeaderName::try_from(name).map_err(|_| ConfigError::new(path, format!("{name:?} is not a header name")))
}

/// A cluster by its name or by the field that names it.
fn cluster_name(name: &str, from: &str, path: &str, shared: &Shared<'_>) -> Result<ClusterName, ConfigError> {
    match (name, from) {
        ("", "") => Err(ConfigError::missing(path)),
        ("", from) => {
            Ok(ClusterName::Header(header(from, "cluster_header")?, shared.context.clusters.table().clone()))
        }
        (name, "") => Ok(ClusterName::Slot(shared.cluster(name, path)?)),
        _ => Err(ConfigError::new("cluster_header", format!("cannot stand beside {path}"))),
    }
}

fn weighted(weighted: &proto::WeightedCluster, shared: &Shared<'_>) -> Result<Target, Errors> {
    use proto::weighted_cluster::RandomValueSpecifier;
    use proto::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    let mut errors = Vec::new();
    let by = match &weighted.random_value_specifier {
        None => ChosenBy::Chance,
        Some(RandomValueSpecifier::HeaderName(name)) => {
            collect(header(name, "header_name").map_err(Vec::from), "", &mut errors)
                .map_or(ChosenBy::Chance, ChosenBy::Header)
        }
        Some(RandomValueSpecifier::UseHashPolicy(false)) => ChosenBy::Chance,
        Some(RandomValueSpecifier::UseHashPolicy(true)) => ChosenBy::Hash,
    };
    let mut clusters = Vec::with_capacity(weighted.clusters.len());
    for (index, cluster) in weighted.clusters.iter().enumerate() {
        let mut own = Vec::new();
        let named = cluster_name(&cluster.name, &cluster.cluster_header, "name", shared);
        let Some(named) = collect(named.map_err(Vec::from), "", &mut own) else {
            errors.extend(own.into_iter().map(|e| e.at(format!("clusters[{index}]"))));
            continue;
        };
        let compiled = WeightedCluster {
            cluster: named,
            weight: cluster.weight.unwrap_or(0),
            request_headers: header_ops(
                &cluster.request_headers_to_add,
                &cluster.request_headers_to_remove,
                "request",
                &mut own,
            ),
            response_headers: header_ops(
                &cluster.response_headers_to_add,
                &cluster.response_headers_to_remove,
                "response",
                &mut own,
            ),
            host_rewrite: cluster.host_rewrite_specifier.as_ref().map(|spec| match spec {
                HostRewriteSpecifier::HostRewriteLiteral(text) => Bytes::from(text.clone()),
            }),
            per_filter: collect(PerRoute::compile(&cluster.typed_per_filter_config), "", &mut own)
                .unwrap_or_default(),
        };
        errors.extend(own.into_iter().map(|e| e.at(format!("clusters[{index}]"))));
        clusters.push(compiled);
    }
    let total: u64 = clusters.iter().map(|c| u64::from(c.weight)).sum();
    if total == 0 {
        errors.push(ConfigError::new("clusters", "the weights add up to nothing"));
    }
    if total > u64::from(u32::MAX) {
        errors.push(ConfigError::new("clusters", "the weights add up to more than 4294967295"));
    }
    if let Some(said) = weighted.total_weight.filter(|said| u64::from(*said) != total) {
        errors
            .push(ConfigError::new("total_weight", format!("is {said}, but the weights add up to {total}")));
    }
    if errors.is_empty() { Ok(Target::Weighted { clusters, total, by }) } else { Err(errors) }
}

/// Copies of requests.
pub(super) fn mirrors(
    policies: &[proto::route_action::RequestMirrorPolicy],
    shared: &Shared<'_>,
    errors: &mut Errors,
) -> Vec<Mirror> {
    let compiled = policies.iter().enumerate().filter_map(|(index, policy)| {
        let compiled = mirror(policy, shared).map_err(Vec::from);
        collect(compiled, format!("request_mirror_policies[{index}]"), errors)
    });
    compiled.collect()
}

/// Changes of fields, in order.
fn mutations(list: &[HeaderMutation]) -> Result<HeaderOps, ConfigError> {
    use xds_protos::envoy::config::common::mutation_rules::v3::header_mutation::Action;
    let mut ops = HeaderOps::default();
    for (index, mutation) in list.iter().enumerate() {
        let path = format!("request_headers_mutations[{index}]");
        match &mutation.action {
            // Removals are done first, so one behind an addition would take away what was added.
            Some(Action::Remove(_)) if !ops.add.is_empty() => {
                return Err(ConfigError::unsupported(path, "a removal behind an addition"));
            }
            Some(Action::Remove(name)) => ops.remove.push(header(name, "remove").map_err(|e| e.at(path))?),
            Some(Action::Append(option)) => {
                let added = addition(option).map_err(|e| first(e).at("append").at(&path))?;
                ops.add.push(added);
            }
            _ => return Err(ConfigError::unsupported(path, "this change of fields")),
        }
    }
    Ok(ops)
}

fn first(errors: Errors) -> ConfigError {
    errors.into_iter().next().unwrap_or_else(|| ConfigError::new("", "is not well-formed"))
}

fn template_rewrite(
    policy: &core::TypedExtensionConfig,
    matched: Option<&PathMatch>,
) -> Result<PathRewrite, ConfigError> {
    let any = policy.typed_config.as_ref().ok_or_else(|| ConfigError::missing("typed_config"))?;
    if !any.is::<UriTemplateRewriteConfig>() {
        return Err(ConfigError::unsupported("typed_config", format!("the type {}", any.type_name())));
    }
    let config: UriTemplateRewriteConfig =
        any.unpack().map_err(|e| ConfigError::new("typed_config", e.to_string()))?;
    let Some(PathMatch::Template(template)) = matched else {
        return Err(ConfigError::new("", "needs a path_match_policy by a URI template"));
    };
    TemplateRewrite::new(&config.path_template_rewrite, template)
        .map(PathRewrite::Template)
        .map_err(|e| ConfigError::new("typed_config.path_template_rewrite", e))
}

fn mirror(
    policy: &proto::route_action::RequestMirrorPolicy,
    shared: &Shared<'_>,
) -> Result<Mirror, ConfigError> {
    let chance = match &policy.runtime_fraction {
        Some(fraction) => runtime_chance(fraction).map_err(|e| e.at("runtime_fraction"))?,
        None => Chance::ALWAYS,
    };
    Ok(Mirror {
        cluster: cluster_name(&policy.cluster, &policy.cluster_header, "cluster", shared)?,
        chance,
        suffix: !policy.disable_shadow_host_suffix_append,
        host: (!policy.host_rewrite_literal.is_empty()).then(|| policy.host_rewrite_literal.clone().into()),
        changes: mutations(&policy.request_headers_mutations)?,
        trace_sampled: policy.trace_sampled.unwrap_or(true),
    })
}

fn hash_policy(policy: &proto::route_action::HashPolicy) -> Result<HashPolicy, ConfigError> {
    use proto::route_action::hash_policy::PolicySpecifier;
    let source = match &policy.policy_specifier {
        Some(PolicySpecifier::Header(header)) => {
            let field = Field::parse(&header.header_name)
                .ok_or_else(|| ConfigError::new("header.header_name", "is not a header name"))?;
            let rewrite = header.regex_rewrite.as_ref().map(substitution).transpose();
            HashSource::Header(field, rewrite.map_err(|e| e.at("header.regex_rewrite"))?)
        }
        Some(PolicySpecifier::Cookie(cookie)) => {
            let mut attributes = String::new();
            for attribute in &cookie.attributes {
                attributes.push_str("; ");
                attributes.push_str(&attribute.name);
                if !attribute.value.is_empty() {
                    attributes.push('=');
                    attributes.push_str(&attribute.value);
                }
            }
            HashSource::Cookie(CookiePolicy {
                name: cookie.name.clone(),
                ttl: duration(cookie.ttl.as_ref(), "cookie.ttl")?,
                path: cookie.path.clone(),
                attributes,
            })
        }
        Some(PolicySpecifier::ConnectionProperties(properties)) if properties.source_ip => {
            HashSource::SourceIp
        }
        Some(PolicySpecifier::QueryParameter(query)) => HashSource::Query(query.name.as_bytes().into()),
        Some(_) => return Err(ConfigError::unsupported("policy_specifier", "this hash policy")),
        None => return Err(ConfigError::missing("policy_specifier")),
    };
    Ok(HashPolicy { source, terminal: policy.terminal })
}

/// The percentage of a fault: none means never.
///
/// # Errors
/// An unknown denominator.
pub fn optional_chance(
    percent: Option<&xds_protos::envoy::r#type::v3::FractionalPercent>,
) -> Result<Chance, ConfigError> {
    percent
        .map_or(Ok(Chance { numerator: 0, denominator: 100 }), |p| chance(p).map_err(|e| e.at("percentage")))
}
