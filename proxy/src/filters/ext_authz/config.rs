//! `envoy.extensions.filters.http.ext_authz.v3` to an [`ExtAuthz`].

use std::time::Duration;

use http::{StatusCode, header};
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::extensions::filters::http::ext_authz::v3 as proto;
use xds_protos::envoy::extensions::filters::http::ext_authz::v3::ext_authz::Services;
use xds_protos::envoy::r#type::matcher::v3 as matcher;

use super::check::Told;
use super::http_service::HttpService;
use super::{BodySettings, ExtAuthz, OfRoute, OnFailure, Service, Stats};
use crate::filters::jwt_authn::config::http_cluster;
use crate::route::config::{duration, header_ops, metadata_match, runtime_chance, string_match};
use crate::route::text::{Pattern, StringMatch};
use crate::router::grpc::{GrpcService, only_v3};
use crate::state::error::{at, collect};
use crate::state::{CompileContext, ConfigError};

type Errors = Vec<ConfigError>;

/// Envoy's default for both kinds of service.
pub const TIMEOUT: Duration = Duration::from_millis(200);

impl ExtAuthz {
    /// Compiles the filter of a connection manager.
    ///
    /// # Errors
    /// Everything that is wrong in its settings.
    pub fn compile(
        config: &proto::ExtAuthz,
        stat_prefix: &str,
        context: &CompileContext,
    ) -> Result<Self, Errors> {
        let mut errors = Vec::new();
        only_v3(config.transport_api_version, &mut errors);
        let mut rules = |list: &Option<matcher::ListStringMatcher>, path: &str| {
            list.as_ref().and_then(|l| collect(texts(l), path, &mut errors))
        };
        let mut allowed = rules(&config.allowed_headers, "allowed_headers");
        let disallowed = rules(&config.disallowed_headers, "disallowed_headers").unwrap_or_default();
        let service = match &config.services {
            None => Err(ConfigError::missing("grpc_service, or http_service,").into()),
            Some(Services::GrpcService(service)) => {
                GrpcService::compile(service, TIMEOUT, context).map(Service::Grpc).map_err(at("grpc_service"))
            }
            Some(Services::HttpService(service)) => {
                let of_service =
                    service.authorization_request.as_ref().and_then(|r| r.allowed_headers.as_ref());
                if let (None, Some(list)) = (&allowed, of_service) {
                    let path = "http_service.authorization_request.allowed_headers";
                    allowed = collect(texts(list), path, &mut errors);
                }
                // These are always told, so that the service knows what it is asked.
                let always = [header::AUTHORIZATION.as_str(), ":method", ":path", ":authority", "host"];
                allowed.get_or_insert_default().extend(always.map(exactly));
                http(service, context).map(Service::Http).map_err(at("http_service"))
            }
        };
        let service = collect(service, "", &mut errors);
        let body = config
            .with_request_body
            .as_ref()
            .and_then(|b| collect(self::body(b), "with_request_body", &mut errors));
        let enabled = config
            .filter_enabled
            .as_ref()
            .and_then(|f| collect(runtime_chance(f).map_err(Errors::from), "filter_enabled", &mut errors));
        let enabled_metadata = config.filter_enabled_metadata.as_ref().and_then(|m| {
            collect(metadata_match(m).map_err(Errors::from), "filter_enabled_metadata", &mut errors)
        });
        let status = match &config.status_on_error {
            None => Some(StatusCode::FORBIDDEN),
            Some(status) => {
                let status = u16::try_from(status.code).ok().and_then(|c| StatusCode::from_u16(c).ok());
                if status.is_none() {
                    errors.push(ConfigError::new("status_on_error.code", "is no HTTP status"));
                }
                status
            }
        };
        let (Some(service), Some(status), true) = (service, status, errors.is_empty()) else {
            return Err(errors);
        };
        let names = |list: &[String]| -> Vec<Box<str>> { list.iter().map(|n| n.as_str().into()).collect() };
        Ok(Self {
            service,
            told: Told {
                peer_certificate: config.include_peer_certificate,
                tls_session: config.include_tls_session,
                raw_headers: config.encode_raw_headers,
                allowed,
                disallowed,
                namespaces: names(&config.metadata_context_namespaces),
                route_namespaces: names(&config.route_metadata_context_namespaces),
                body_as_bytes: config.with_request_body.as_ref().is_some_and(|b| b.pack_as_bytes),
            },
            body,
            on_failure: OnFailure {
                allow: config.failure_mode_allow,
                tell_upstream: config.failure_mode_allow_header_add,
                status,
            },
            enabled,
            enabled_metadata,
            deny_at_disable: config
                .deny_at_disable
                .as_ref()
                .and_then(|flag| flag.default_value)
                .unwrap_or(false),
            clear_route_cache: config.clear_route_cache,
            ingest_metadata: config.enable_dynamic_metadata_ingestion.unwrap_or(true),
            charge: config.charge_cluster_response_stats.unwrap_or(true),
            most_denied_body: config.max_denied_response_body_bytes as usize,
            stats: Stats::new(stat_prefix, &config.stat_prefix),
        })
    }
}

impl OfRoute {
    /// Compiles `ExtAuthzPerRoute`.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn compile(config: &proto::ExtAuthzPerRoute) -> Result<Self, Errors> {
        use proto::ext_authz_per_route::Override;
        match &config.r#override {
            Some(Override::Disabled(true)) => Ok(Self::Disabled),
            Some(Override::Disabled(false)) => {
                Err(ConfigError::new("disabled", "must be true, or be left out").into())
            }
            Some(Override::CheckSettings(settings)) => {
                if settings.service_override.is_some() {
                    let what = "a service of a route";
                    return Err(ConfigError::unsupported("check_settings.service_override", what).into());
                }
                let body = settings.with_request_body.as_ref().map(self::body).transpose();
                let body = body.map_err(at("check_settings.with_request_body"))?;
                if body.is_some() && settings.disable_request_body_buffering {
                    let message = "cannot be with disable_request_body_buffering";
                    return Err(ConfigError::new("check_settings.with_request_body", message).into());
                }
                Ok(Self::Settings {
                    extensions: settings.context_extensions.clone().into_iter().collect(),
                    no_body: settings.disable_request_body_buffering,
                    body,
                })
            }
            None => Err(ConfigError::missing("check_settings").into()),
        }
    }
}

fn body(settings: &proto::BufferSettings) -> Result<BodySettings, Errors> {
    if settings.max_request_bytes == 0 {
        return Err(ConfigError::new("max_request_bytes", "must be more than 0").into());
    }
    Ok(BodySettings { most: settings.max_request_bytes as usize, partial: settings.allow_partial_message })
}

fn texts(list: &matcher::ListStringMatcher) -> Result<Vec<StringMatch>, Errors> {
    let mut errors = Vec::new();
    let mut rules = Vec::with_capacity(list.patterns.len());
    for (index, pattern) in list.patterns.iter().enumerate() {
        let path = format!("patterns[{index}]");
        rules.extend(collect(string_match(pattern).map_err(Errors::from), path, &mut errors));
    }
    if errors.is_empty() { Ok(rules) } else { Err(errors) }
}

fn exactly(name: &str) -> StringMatch {
    StringMatch::new(Pattern::Exact(name.as_bytes().into()), true)
}

fn http(service: &proto::HttpService, context: &CompileContext) -> Result<HttpService, Errors> {
    let uri = service.server_uri.as_ref().ok_or_else(|| ConfigError::missing("server_uri"))?;
    let cluster = http_cluster(uri).map_err(|e| ConfigError::new("server_uri.cluster", e.message))?;
    let mut errors = Vec::new();
    let timeout = duration(uri.timeout.as_ref(), "server_uri.timeout").map_err(Errors::from);
    let timeout = collect(timeout, "", &mut errors).flatten();
    if !service.path_prefix.is_empty() && !service.path_prefix.starts_with('/') {
        errors.push(ConfigError::new("path_prefix", "must begin with a slash"));
    }
    let of_request = service.authorization_request.clone().unwrap_or_default();
    let add: Vec<_> = of_request
        .headers_to_add
        .into_iter()
        .map(|header| core::HeaderValueOption {
            header: Some(header),
            append_action: core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
            ..core::HeaderValueOption::default()
        })
        .collect();
    let mut wrong = Vec::new();
    let headers = header_ops(&add, &[], "request", &mut wrong);
    errors.extend(wrong.into_iter().map(|e| e.at("authorization_request")));
    let of_response = service.authorization_response.clone().unwrap_or_default();
    let mut rules = |list: &Option<matcher::ListStringMatcher>, name: &str| {
        let path = format!("authorization_response.{name}");
        list.as_ref().and_then(|l| collect(texts(l), path, &mut errors)).unwrap_or_default()
    };
    let mut client = rules(&of_response.allowed_client_headers, "allowed_client_headers");
    let listed = !client.is_empty();
    // What an answer cannot do without.
    client.extend(["content-length", "www-authenticate", "location"].map(exactly));
    let (upstream, upstream_append, client_on_success, metadata) = (
        rules(&of_response.allowed_upstream_headers, "allowed_upstream_headers"),
        rules(&of_response.allowed_upstream_headers_to_append, "allowed_upstream_headers_to_append"),
        rules(&of_response.allowed_client_headers_on_success, "allowed_client_headers_on_success"),
        rules(&of_response.dynamic_metadata_from_headers, "dynamic_metadata_from_headers"),
    );
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(HttpService {
        cluster: context.clusters.slot(cluster),
        timeout: timeout.unwrap_or(TIMEOUT),
        path_prefix: service.path_prefix.clone(),
        headers,
        upstream,
        upstream_append,
        client: listed.then_some(client),
        client_on_success,
        metadata,
    })
}
