//! `envoy.config.rbac.v3.RBAC` to an [`Engine`].

use std::net::IpAddr;

use ipnet::IpNet;
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::config::rbac::v3 as proto;
use xds_protos::envoy::config::rbac::v3::permission::Rule as Permission;
use xds_protos::envoy::config::rbac::v3::principal::Identifier;
use xds_protos::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use xds_protos::envoy::r#type::matcher::v3 as matcher;

use super::engine::{Action, Engine, OneOf, Policy, Rule};
use crate::route::config::{header_match, metadata_match, string_match};
use crate::route::template::Template;
use crate::state::ConfigError;
use crate::state::error::{at, collect};

type Errors = Vec<ConfigError>;

impl Engine {
    /// Compiles policies. `http` says whether there are requests; rules over header fields are refused where there are not.
    ///
    /// # Errors
    /// Everything that is wrong in them.
    pub fn compile(rules: &proto::Rbac, http: bool) -> Result<Self, Errors> {
        let mut errors = Vec::new();
        let action = match proto::rbac::Action::try_from(rules.action) {
            Ok(proto::rbac::Action::Allow) => Action::Allow,
            Ok(proto::rbac::Action::Deny) => Action::Deny,
            Ok(proto::rbac::Action::Log) => Action::Log,
            Err(_) => return Err(ConfigError::unsupported("action", rules.action).into()),
        };
        let mut names: Vec<_> = rules.policies.keys().collect();
        names.sort();
        let mut policies = Vec::with_capacity(names.len());
        for name in names {
            let path = format!("policies[{name:?}]");
            policies.extend(collect(policy(name, &rules.policies[name], http), path, &mut errors));
        }
        if errors.is_empty() { Ok(Self::new(action, policies)) } else { Err(errors) }
    }
}

/// Envoy's response code details of a denial. White space would split a log's line in more words than it has.
pub fn details(policy: &str) -> String {
    let name: String = policy.chars().map(|c| if c.is_ascii_whitespace() { '_' } else { c }).collect();
    format!("rbac_access_denied_matched_policy[{name}]")
}

fn policy(name: &str, policy: &proto::Policy, http: bool) -> Result<Policy, Errors> {
    let mut errors = Vec::new();
    let permissions = all(&policy.permissions, "permissions", &mut errors, |p| permission(p, http));
    let principals = all(&policy.principals, "principals", &mut errors, |p| principal(p, http));
    if errors.is_empty() {
        Ok(Policy {
            name: name.into(),
            details: details(name).into(),
            permissions: OneOf::new(permissions),
            principals: OneOf::new(principals),
        })
    } else {
        Err(errors)
    }
}

fn all<T>(
    list: &[T],
    path: &str,
    errors: &mut Errors,
    one: impl Fn(&T) -> Result<Rule, Errors>,
) -> Vec<Rule> {
    let rules = list.iter().enumerate();
    rules.filter_map(|(i, rule)| collect(one(rule), format!("{path}[{i}]"), errors)).collect()
}

fn set<T>(list: &[T], path: &str, one: impl Fn(&T) -> Result<Rule, Errors>) -> Result<Box<[Rule]>, Errors> {
    let mut errors = Vec::new();
    let rules = all(list, path, &mut errors, one);
    if errors.is_empty() { Ok(rules.into()) } else { Err(errors) }
}

fn either(rules: Box<[Rule]>) -> Rule {
    Rule::Either(OneOf::new(rules.into_vec()))
}

fn permission(permission: &proto::Permission, http: bool) -> Result<Rule, Errors> {
    let of = |p: &proto::Permission| self::permission(p, http);
    match &permission.rule {
        None => Err(ConfigError::missing("rule").into()),
        Some(Permission::Any(_)) => Ok(Rule::Any),
        Some(Permission::AndRules(rules)) => {
            set(&rules.rules, "rules", of).map(Rule::All).map_err(at("and_rules"))
        }
        Some(Permission::OrRules(rules)) => {
            set(&rules.rules, "rules", of).map(either).map_err(at("or_rules"))
        }
        Some(Permission::NotRule(rule)) => of(rule).map(|r| Rule::Not(Box::new(r))).map_err(at("not_rule")),
        Some(Permission::Header(header)) => self::header(header, http),
        Some(Permission::UrlPath(path)) => self::path(path),
        Some(Permission::UriTemplate(extension)) => template(extension).map_err(at("uri_template")),
        Some(Permission::DestinationIp(range)) => {
            network(range).map(Rule::DestinationIp).map_err(|e| e.at("destination_ip").into())
        }
        Some(Permission::DestinationPort(port)) => Ok(Rule::DestinationPort(*port, port + 1)),
        Some(Permission::DestinationPortRange(range)) => {
            match (u32::try_from(range.start), u32::try_from(range.end)) {
                (Ok(from), Ok(below)) if from < below && below <= 65536 => {
                    Ok(Rule::DestinationPort(from, below))
                }
                _ => {
                    let message = "must be from 0 to 65536, its start less than its end";
                    Err(ConfigError::new("destination_port_range", message).into())
                }
            }
        }
        Some(Permission::RequestedServerName(name)) => {
            string_match(name).map(Rule::ServerName).map_err(|e| e.at("requested_server_name").into())
        }
        Some(Permission::Metadata(m)) => {
            metadata_match(m).map(Rule::Metadata).map_err(|e| e.at("metadata").into())
        }
        Some(Permission::SourcedMetadata(sourced)) => self::sourced(sourced).map_err(at("sourced_metadata")),
        Some(Permission::Matcher(extension)) => {
            let what = format!("the matcher {:?}", extension.name);
            Err(ConfigError::unsupported("matcher", what).into())
        }
    }
}

fn principal(principal: &proto::Principal, http: bool) -> Result<Rule, Errors> {
    let of = |p: &proto::Principal| self::principal(p, http);
    let ip = |range: &core::CidrRange, path: &str, make: fn(IpNet) -> Rule| {
        network(range).map(make).map_err(|e| Errors::from(e.at(path)))
    };
    match &principal.identifier {
        None => Err(ConfigError::missing("identifier").into()),
        Some(Identifier::Any(_)) => Ok(Rule::Any),
        Some(Identifier::AndIds(ids)) => set(&ids.ids, "ids", of).map(Rule::All).map_err(at("and_ids")),
        Some(Identifier::OrIds(ids)) => set(&ids.ids, "ids", of).map(either).map_err(at("or_ids")),
        Some(Identifier::NotId(id)) => of(id).map(|r| Rule::Not(Box::new(r))).map_err(at("not_id")),
        Some(Identifier::Authenticated(authenticated)) => authenticated
            .principal_name
            .as_ref()
            .map(string_match)
            .transpose()
            .map(Rule::Authenticated)
            .map_err(|e| e.at("authenticated.principal_name").into()),
        Some(Identifier::SourceIp(range)) => ip(range, "source_ip", Rule::SourceIp),
        Some(Identifier::DirectRemoteIp(range)) => ip(range, "direct_remote_ip", Rule::DirectRemoteIp),
        Some(Identifier::RemoteIp(range)) => ip(range, "remote_ip", Rule::RemoteIp),
        Some(Identifier::Header(header)) => self::header(header, http),
        Some(Identifier::UrlPath(path)) => self::path(path),
        Some(Identifier::Metadata(m)) => {
            metadata_match(m).map(Rule::Metadata).map_err(|e| e.at("metadata").into())
        }
        Some(Identifier::SourcedMetadata(sourced)) => self::sourced(sourced).map_err(at("sourced_metadata")),
        Some(Identifier::FilterState(state)) => filter_state(state).map_err(at("filter_state")),
        Some(Identifier::Custom(extension)) => {
            let what = format!("the principal {:?}", extension.name);
            Err(ConfigError::unsupported("custom", what).into())
        }
    }
}

fn header(header: &xds_protos::envoy::config::route::v3::HeaderMatcher, http: bool) -> Result<Rule, Errors> {
    if !http {
        return Err(ConfigError::new(
            "header",
            "a connection's bytes have no header fields; use the HTTP filter",
        )
        .into());
    }
    header_match(header).map(Rule::Header).map_err(at("header"))
}

fn path(path: &matcher::PathMatcher) -> Result<Rule, Errors> {
    let Some(matcher::path_matcher::Rule::Path(text)) = &path.rule else {
        return Err(ConfigError::missing("url_path.path").into());
    };
    string_match(text).map(Rule::Path).map_err(|e| e.at("url_path.path").into())
}

fn template(extension: &core::TypedExtensionConfig) -> Result<Rule, Errors> {
    let any = extension.typed_config.as_ref().ok_or_else(|| ConfigError::missing("typed_config"))?;
    let config: UriTemplateMatchConfig =
        any.unpack().map_err(|e| ConfigError::new("typed_config", e.to_string()))?;
    Template::new(&config.path_template)
        .map(Rule::Template)
        .map_err(|e| ConfigError::new("typed_config.path_template", e).into())
}

fn sourced(sourced: &proto::SourcedMetadata) -> Result<Rule, Errors> {
    let m = sourced.metadata_matcher.as_ref().ok_or_else(|| ConfigError::missing("metadata_matcher"))?;
    let m = metadata_match(m).map_err(|e| e.at("metadata_matcher"))?;
    match proto::MetadataSource::try_from(sourced.metadata_source) {
        Ok(proto::MetadataSource::Dynamic) => Ok(Rule::Metadata(m)),
        Ok(proto::MetadataSource::Route) => Ok(Rule::RouteMetadata(m)),
        Err(_) => Err(ConfigError::unsupported("metadata_source", sourced.metadata_source).into()),
    }
}

fn filter_state(state: &matcher::FilterStateMatcher) -> Result<Rule, Errors> {
    use matcher::filter_state_matcher::Matcher;
    let key = state.key.as_str().into();
    match &state.matcher {
        None => Err(ConfigError::missing("matcher").into()),
        Some(Matcher::StringMatch(text)) => string_match(text)
            .map(|text| Rule::FilterState(key, text))
            .map_err(|e| e.at("string_match").into()),
        Some(Matcher::AddressMatch(address)) => {
            let mut nets = Vec::with_capacity(address.ranges.len());
            for (index, range) in address.ranges.iter().enumerate() {
                let length = range.prefix_len.unwrap_or(0);
                nets.push(
                    net(&range.address_prefix, length)
                        .map_err(|e| e.at(format!("address_match.ranges[{index}]")))?,
                );
            }
            Ok(Rule::FilterStateAddress(key, nets, address.invert_match))
        }
    }
}

fn network(range: &core::CidrRange) -> Result<IpNet, ConfigError> {
    net(&range.address_prefix, range.prefix_len.unwrap_or(0))
}

fn net(prefix: &str, length: u32) -> Result<IpNet, ConfigError> {
    let ip: IpAddr = prefix
        .parse()
        .map_err(|_| ConfigError::new("address_prefix", format!("{prefix:?} is not an IP address")))?;
    u8::try_from(length)
        .ok()
        .and_then(|l| IpNet::new(ip, l).ok())
        .map(|n| n.trunc())
        .ok_or_else(|| ConfigError::new("prefix_len", format!("{length} bits are more than {prefix} has")))
}
