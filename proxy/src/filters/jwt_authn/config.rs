//! `envoy.extensions.filters.http.jwt_authn.v3` to a [`JwtAuthn`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::extensions::filters::http::jwt_authn::v3 as proto;
use xds_protos::envoy::extensions::filters::http::jwt_authn::v3::jwt_provider::JwksSourceSpecifier;
use xds_protos::envoy::extensions::filters::http::jwt_authn::v3::jwt_requirement::RequiresType;
use xds_protos::envoy::extensions::filters::http::jwt_authn::v3::requirement_rule::RequirementType;

use super::extract::{ACCESS_TOKEN, BEARER, Extractor};
use super::keys::KeySet;
use super::provider::{Audiences, Cache, Keys, Provider};
use super::remote::{Remote, Source};
use super::requirement::Requirement;
use super::{JwtAuthn, OfRoute, Stats};
use crate::route::config::{data_source, duration, route_match, string_match};
use crate::state::error::{at, collect};
use crate::state::{CompileContext, ConfigError};

type Errors = Vec<ConfigError>;
type Providers = BTreeMap<Box<str>, Arc<Provider>>;

/// Envoy's defaults.
const SKEW: u64 = 60;
const KEEP: Duration = Duration::from_secs(600);
const AGAIN: Duration = Duration::from_secs(1);
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
const CACHED_TOKENS: u32 = 100;
const CACHED_TOKEN_SIZE: u32 = 4096;

impl JwtAuthn {
    /// Compiles the filter of a connection manager.
    ///
    /// # Errors
    /// Everything that is wrong in its settings.
    pub fn compile(
        config: &proto::JwtAuthentication,
        stat_prefix: &str,
        context: &CompileContext,
    ) -> Result<Self, Errors> {
        let mut errors = Vec::new();
        let mut providers = Providers::new();
        let stats = Stats::new(stat_prefix, &config.stat_prefix);
        let names: BTreeMap<_, _> = config.providers.iter().collect();
        for (name, provider) in names {
            let path = format!("providers[{name:?}]");
            if let Some(provider) = collect(self::provider(provider, context), path, &mut errors) {
                if let Keys::Remote(remote) = &provider.keys {
                    remote.count_for(&stats.fetches);
                }
                providers.insert(name.as_str().into(), Arc::new(provider));
            }
        }
        if !errors.is_empty() {
            // What follows would complain about providers that are there.
            return Err(errors);
        }
        let mut named = BTreeMap::new();
        for (name, requirement) in &config.requirement_map {
            let path = format!("requirement_map[{name:?}]");
            if let Some(compiled) =
                collect(self::requirement(requirement, &providers, &[]), path, &mut errors)
            {
                named.insert(Box::from(name.as_str()), compiled.map(Arc::new));
            }
        }
        let mut rules = Vec::with_capacity(config.rules.len());
        for (index, rule) in config.rules.iter().enumerate() {
            let path = format!("rules[{index}]");
            rules.extend(collect(self::rule(rule, &providers, &named), path, &mut errors));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            rules,
            named,
            bypass_cors_preflight: config.bypass_cors_preflight,
            bare_refusals: config.strip_failure_response,
            stats,
        })
    }
}

impl OfRoute {
    /// Compiles `PerRouteConfig`.
    ///
    /// # Errors
    /// It says nothing.
    pub fn compile(config: &proto::PerRouteConfig) -> Result<Self, Errors> {
        use proto::per_route_config::RequirementSpecifier;
        match &config.requirement_specifier {
            Some(RequirementSpecifier::Disabled(true)) => Ok(Self::Disabled),
            Some(RequirementSpecifier::Disabled(false)) => {
                Err(ConfigError::new("disabled", "must be true, or be left out").into())
            }
            Some(RequirementSpecifier::RequirementName(name)) => Ok(Self::Named(name.as_str().into())),
            None => Err(ConfigError::missing("requirement_name").into()),
        }
    }
}

fn rule(
    rule: &proto::RequirementRule,
    providers: &Providers,
    named: &BTreeMap<Box<str>, Option<Arc<Requirement>>>,
) -> Result<(crate::route::matching::RouteMatch, Option<Arc<Requirement>>), Errors> {
    let matching = rule.r#match.as_ref().ok_or_else(|| ConfigError::missing("match"))?;
    let matching = route_match(matching).map_err(at("match"))?;
    let requirement = match &rule.requirement_type {
        None => None,
        Some(RequirementType::Requires(requires)) => {
            requirement(requires, providers, &[]).map_err(at("requires"))?.map(Arc::new)
        }
        Some(RequirementType::RequirementName(name)) => match named.get(name.as_str()) {
            Some(requirement) => requirement.clone(),
            None => {
                let message = format!("{name:?} is not in requirement_map");
                return Err(ConfigError::new("requirement_name", message).into());
            }
        },
    };
    Ok((matching, requirement))
}

/// A requirement; none if nothing is required. `of_group` are the providers that its neighbours name.
fn requirement(
    config: &proto::JwtRequirement,
    providers: &Providers,
    of_group: &[Arc<Provider>],
) -> Result<Option<Requirement>, Errors> {
    let find = |name: &str, path: &str| {
        let unknown = || ConfigError::new(path, format!("{name:?} is none of the providers"));
        providers.get(name).cloned().ok_or_else(unknown)
    };
    let of = |provider: Arc<Provider>, audiences| {
        let extractor = Extractor::new([&*provider]);
        Some(Requirement::Provider { provider, audiences, extractor })
    };
    let optional = |failed: bool| {
        let providers: Arc<[_]> =
            if of_group.is_empty() { providers.values().cloned().collect() } else { of_group.into() };
        let extractor = Extractor::new(providers.iter().map(|p| &**p));
        let beside = !of_group.is_empty();
        Some(Requirement::Optional { failed, beside, providers, extractor })
    };
    Ok(match &config.requires_type {
        None => None,
        Some(RequiresType::ProviderName(name)) => of(find(name, "provider_name")?, None),
        Some(RequiresType::ProviderAndAudiences(both)) => {
            let provider = find(&both.provider_name, "provider_and_audiences.provider_name")?;
            of(provider, Some(Audiences::new(&both.audiences)))
        }
        Some(RequiresType::AllowMissing(_)) => optional(false),
        Some(RequiresType::AllowMissingOrFailed(_)) => optional(true),
        Some(RequiresType::RequiresAny(list)) => {
            any(&list.requirements, providers).map_err(at("requires_any"))?.map(Requirement::Any)
        }
        Some(RequiresType::RequiresAll(list)) => {
            all(&list.requirements, providers).map_err(at("requires_all"))?.map(Requirement::All)
        }
        Some(RequiresType::ExtractOnlyWithoutValidation(_)) => {
            let what = "taking claims from tokens that nobody has verified";
            return Err(ConfigError::unsupported("extract_only_without_validation", what).into());
        }
    })
}

/// One of these. Those that let a request pass without a token come last, and speak of the providers that the others name.
fn any(list: &[proto::JwtRequirement], providers: &Providers) -> Result<Option<Vec<Requirement>>, Errors> {
    let mut errors = Vec::new();
    let mut compiled = Vec::with_capacity(list.len());
    let mut bypass: Option<(usize, &proto::JwtRequirement)> = None;
    let mut named = Vec::new();
    for (index, one) in list.iter().enumerate() {
        match &one.requires_type {
            Some(RequiresType::AllowMissingOrFailed(_)) => bypass = Some((index, one)),
            Some(RequiresType::AllowMissing(_)) => bypass = bypass.or(Some((index, one))),
            other => {
                match other {
                    Some(RequiresType::ProviderName(name)) => {
                        named.extend(providers.get(name.as_str()).cloned())
                    }
                    Some(RequiresType::ProviderAndAudiences(both)) => {
                        named.extend(providers.get(both.provider_name.as_str()).cloned());
                    }
                    _ => {}
                }
                let path = format!("requirements[{index}]");
                match collect(requirement(one, providers, &[]), path, &mut errors) {
                    // One that requires nothing is always met.
                    Some(None) => return Ok(None),
                    found => compiled.extend(found.flatten()),
                }
            }
        }
    }
    if let Some((index, one)) = bypass {
        let path = format!("requirements[{index}]");
        compiled.extend(collect(requirement(one, providers, &named), path, &mut errors).flatten());
    }
    if errors.is_empty() { Ok(Some(compiled)) } else { Err(errors) }
}

fn all(list: &[proto::JwtRequirement], providers: &Providers) -> Result<Option<Vec<Requirement>>, Errors> {
    let mut errors = Vec::new();
    let mut compiled = Vec::with_capacity(list.len());
    for (index, one) in list.iter().enumerate() {
        let path = format!("requirements[{index}]");
        compiled.extend(collect(requirement(one, providers, &[]), path, &mut errors).flatten());
    }
    if errors.is_empty() { Ok(Some(compiled)) } else { Err(errors) }
}

fn header_name(name: &str, path: impl std::fmt::Display) -> Result<HeaderName, Errors> {
    let wrong = || ConfigError::new(path.to_string(), format!("{name:?} is not a header name"));
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong().into())
}

fn provider(config: &proto::JwtProvider, context: &CompileContext) -> Result<Provider, Errors> {
    let mut errors = Vec::new();
    let mut from_headers = Vec::with_capacity(config.from_headers.len());
    for (index, header) in config.from_headers.iter().enumerate() {
        let path = format!("from_headers[{index}].name");
        if let Some(name) = collect(header_name(&header.name, path), "", &mut errors) {
            from_headers.push((name, Box::from(header.value_prefix.as_str())));
        }
    }
    let texts = |list: &[String]| -> Vec<Box<str>> { list.iter().map(|t| t.as_str().into()).collect() };
    let (mut from_params, from_cookies) = (texts(&config.from_params), texts(&config.from_cookies));
    if from_headers.is_empty() && from_params.is_empty() && from_cookies.is_empty() {
        from_headers.push((http::header::AUTHORIZATION, BEARER.into()));
        from_params.push(ACCESS_TOKEN.into());
    }
    let mut claim_headers = Vec::with_capacity(config.claim_to_headers.len());
    for (index, claim) in config.claim_to_headers.iter().enumerate() {
        let path = format!("claim_to_headers[{index}]");
        claim_headers.extend(collect(claim_header(claim), path, &mut errors));
    }
    let payload_header = Some(&config.forward_payload_header)
        .filter(|n| !n.is_empty())
        .and_then(|name| collect(header_name(name, "forward_payload_header"), "", &mut errors));
    let subjects = config
        .subjects
        .as_ref()
        .and_then(|s| collect(string_match(s).map_err(Errors::from), "subjects", &mut errors));
    let max_lifetime = collect(
        duration(config.max_lifetime.as_ref(), "max_lifetime").map_err(Errors::from),
        "",
        &mut errors,
    );
    let keys = match &config.jwks_source_specifier {
        None => Err(ConfigError::missing("remote_jwks, or local_jwks,").into()),
        Some(JwksSourceSpecifier::LocalJwks(source)) => local(source),
        Some(JwksSourceSpecifier::RemoteJwks(remote)) => {
            self::remote(remote, context).map(Keys::Remote).map_err(at("remote_jwks"))
        }
    };
    let keys = collect(keys, "", &mut errors);
    let (Some(keys), true) = (keys, errors.is_empty()) else { return Err(errors) };
    let key = |key: &str| (!key.is_empty()).then(|| Arc::from(key));
    let or = |value: u32, default: u32| if value == 0 { default } else { value } as usize;
    Ok(Provider {
        issuer: config.issuer.as_str().into(),
        audiences: Audiences::new(&config.audiences),
        from_headers,
        from_params,
        from_cookies,
        forward: config.forward,
        payload_header,
        pad_payload: config.pad_forward_payload_header,
        claim_headers,
        payload_key: key(&config.payload_in_metadata),
        header_key: key(&config.header_in_metadata),
        split_claims: config
            .normalize_payload_in_metadata
            .as_ref()
            .map(|n| texts(&n.space_delimited_claims))
            .unwrap_or_default(),
        skew: if config.clock_skew_seconds == 0 { SKEW } else { config.clock_skew_seconds.into() },
        subjects,
        require_expiration: config.require_expiration,
        max_lifetime: max_lifetime.flatten().map(|d| d.as_secs()),
        clear_route_cache: config.clear_route_cache,
        keys,
        cache: config.jwt_cache_config.as_ref().map(|c| {
            Cache::new(or(c.jwt_cache_size, CACHED_TOKENS), or(c.jwt_max_token_size, CACHED_TOKEN_SIZE))
        }),
    })
}

/// The field, and the claim's path.
fn claim_header(claim: &proto::JwtClaimToHeader) -> Result<(HeaderName, Vec<Box<str>>), Errors> {
    let name = header_name(&claim.header_name, "header_name")?;
    if !claim.claim_path.is_empty() {
        return Err(ConfigError::unsupported("claim_path", "a claim's path").into());
    }
    if claim.claim_name.is_empty() {
        return Err(ConfigError::missing("claim_name").into());
    }
    Ok((name, claim.claim_name.split('.').map(Box::from).collect()))
}

/// Keys of the configuration.
fn local(source: &core::DataSource) -> Result<Keys, Errors> {
    let text = data_source(source).map_err(|e| e.at("local_jwks"))?;
    let keys = KeySet::read(&text).map_err(|why| ConfigError::new("local_jwks", why))?;
    Ok(Keys::Local(Arc::new(keys)))
}

fn remote(config: &proto::RemoteJwks, context: &CompileContext) -> Result<Arc<Remote>, Errors> {
    let uri = config.http_uri.as_ref().ok_or_else(|| ConfigError::missing("http_uri"))?;
    let (cluster, timeout) = (http_cluster(uri)?, duration(uri.timeout.as_ref(), "http_uri.timeout")?);
    let (authority, path) = parts(&uri.uri).ok_or_else(|| {
        ConfigError::new("http_uri.uri", format!("{:?} is no absolute http or https URI", uri.uri))
    })?;
    let keep = duration(config.cache_duration.as_ref(), "cache_duration")?.unwrap_or(KEEP);
    let ahead = match &config.async_fetch {
        Some(ahead) => {
            let path = "async_fetch.failed_refetch_duration";
            Some(duration(ahead.failed_refetch_duration.as_ref(), path)?.unwrap_or(AGAIN))
        }
        None => None,
    };
    let (retries, back_off) = match &config.retry_policy {
        Some(policy) => retry(policy).map_err(|e| e.at("retry_policy"))?,
        None => (0, BACK_OFF),
    };
    let timeout = timeout.ok_or_else(|| ConfigError::missing("http_uri.timeout"))?;
    let source = Source {
        cluster: cluster.into(),
        authority,
        path,
        timeout,
        // As Envoy derives it.
        try_timeout: if config.retry_policy.is_some() { timeout.min(back_off.1) } else { timeout },
        keep,
        ahead,
        retries,
        back_off,
    };
    Ok(context.jwks.get(source, context.clusters.slot(cluster)))
}

/// The cluster of an HTTP URI.
pub fn http_cluster(uri: &core::HttpUri) -> Result<&str, ConfigError> {
    match &uri.http_upstream_type {
        Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) if !cluster.is_empty() => Ok(cluster),
        _ => Err(ConfigError::missing("http_uri.cluster")),
    }
}

/// Authority and path of a URI.
fn parts(uri: &str) -> Option<(Bytes, Bytes)> {
    let uri: http::Uri = uri.parse().ok()?;
    let authority = uri.authority()?.as_str().to_owned();
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    Some((authority.into(), path.into()))
}

/// The number of retries and their pauses.
fn retry(policy: &core::RetryPolicy) -> Result<(u32, (Duration, Duration)), ConfigError> {
    let back_off = match &policy.retry_back_off {
        Some(back_off) => {
            let base = duration(back_off.base_interval.as_ref(), "retry_back_off.base_interval")?
                .ok_or_else(|| ConfigError::missing("retry_back_off.base_interval"))?;
            let longest = duration(back_off.max_interval.as_ref(), "retry_back_off.max_interval")?;
            (base, longest.unwrap_or(base * 10).max(base))
        }
        None => BACK_OFF,
    };
    Ok((policy.num_retries.unwrap_or(1), back_off))
}
