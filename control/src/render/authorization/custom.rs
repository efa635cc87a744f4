//! CUSTOM policies: a filter that only marks the requests that their rules match, and one that asks somebody about those
//! which are marked. Who cannot be asked allows nothing.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::rule::Scope;
use super::{collect, trust_domains};
use crate::model::World;
use crate::model::authorization_policy::AuthorizationAction;
use crate::model::extension_provider::{ExtAuthzGrpc, ExtAuthzHttp, ExtensionProvider, RequestBody};
use crate::render::cluster::outbound_name;
use crate::render::{ProxyNode, seconds};

/// The names of policies begin with it, and with their provider.
const PREFIX: &str = "istio-ext-authz";
/// The names of policies end with it where nobody can be asked.
const BAD: &str = "-deny-due-to-bad-CUSTOM-action";
/// Before the keys under which the first filter tells the second which policy it was.
const SHADOW: &str = "istio_ext_authz_";
/// How long an answer is waited for where nothing is said.
const PATIENCE: &str = "600s";

/// What a chain of filters is about, and the names of its filters.
struct Layer {
    tcp: bool,
    rbac: (&'static str, &'static str),
    ext_authz: (&'static str, &'static str),
}

const HTTP: Layer = Layer {
    tcp: false,
    rbac: ("envoy.filters.http.rbac", "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"),
    ext_authz: (
        "envoy.filters.http.ext_authz",
        "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
    ),
};

const TCP: Layer = Layer {
    tcp: true,
    rbac: ("envoy.filters.network.rbac", "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"),
    ext_authz: (
        "envoy.filters.network.ext_authz",
        "type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
    ),
};

/// The filters of a connection manager; they come before all others that decide.
pub(in crate::render) fn http_filters(world: &World, node: &ProxyNode) -> Vec<Value> {
    filters(world, node, &HTTP)
}

/// The filters of a TCP chain.
pub(in crate::render) fn network_filters(world: &World, node: &ProxyNode) -> Vec<Value> {
    filters(world, node, &TCP)
}

fn filters(world: &World, node: &ProxyNode, layer: &Layer) -> Vec<Value> {
    let labels = node.selected_by(world);
    let trust_domains = trust_domains(world);
    let mut by_provider: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for policy in world.authorization_policies(&node.namespace, labels, None, AuthorizationAction::Custom) {
        let provider = policy.spec.provider.as_ref().map_or("", |provider| provider.name.as_str());
        let scope = Scope {
            namespace: &policy.meta.namespace,
            trust_domains: &trust_domains,
            tcp: layer.tcp,
            action: AuthorizationAction::Custom,
        };
        collect(policy, &scope, &format!("{PREFIX}-{provider}-"), by_provider.entry(provider).or_default());
    }
    // Two of them could disagree: nobody is asked.
    let many = by_provider.len() > 1;
    let mut filters = Vec::new();
    for (name, policies) in by_provider {
        let provider = world.mesh().extension_providers.iter().find(|provider| provider.name == name);
        match provider.filter(|_| !many).and_then(|provider| asking(world, provider, layer)) {
            Some(Asking::By(mut config)) => {
                let marks = json!({
                    "shadow_rules": {"action": "DENY", "policies": policies},
                    "shadow_rules_stat_prefix": SHADOW,
                });
                filters.push(filter(layer.rbac, layer, marks));
                config["filter_enabled_metadata"] = json!({
                    "filter": layer.rbac.0,
                    "path": [{"key": format!("{SHADOW}shadow_effective_policy_id")}],
                    "value": {"string_match": {"prefix": format!("{PREFIX}-{name}")}},
                });
                filters.push(filter(layer.ext_authz, layer, config));
            }
            Some(Asking::OfRequestsOnly) => {}
            None => {
                let policies: Map<String, Value> =
                    policies.into_iter().map(|(name, policy)| (name + BAD, policy)).collect();
                let denies = json!({"rules": {"action": "DENY", "policies": policies}});
                filters.push(filter(layer.rbac, layer, denies));
            }
        }
    }
    filters
}

fn filter((name, url): (&str, &str), layer: &Layer, mut config: Value) -> Value {
    config["@type"] = url.into();
    if layer.tcp {
        config["stat_prefix"] = "tcp.".into();
    }
    json!({"name": name, "typed_config": config})
}

/// How a provider is asked.
enum Asking {
    By(Value),
    /// It knows nothing of connections, which pass as if no policy were there.
    OfRequestsOnly,
}

/// None if the provider's service is not there.
fn asking(world: &World, provider: &ExtensionProvider, layer: &Layer) -> Option<Asking> {
    if let Some(provider) = &provider.envoy_ext_authz_grpc {
        return Some(Asking::By(by_grpc(world, provider, layer)?));
    }
    let provider = provider.envoy_ext_authz_http.as_ref()?;
    let config = by_http(world, provider)?;
    Some(if layer.tcp { Asking::OfRequestsOnly } else { Asking::By(config) })
}

/// The host of a service that is known, and its cluster. A host without a namespace must be of one namespace alone.
pub(in crate::render) fn service(world: &World, service: &str, port: u16) -> Option<(String, String)> {
    let (namespace, host) = match service.split_once('/') {
        Some((namespace, host)) => (Some(namespace), host),
        None => (None, service),
    };
    let mut found = world.services_with_host(host).filter(|s| namespace.is_none_or(|n| s.namespace() == n));
    let first = found.next()?;
    if found.any(|other| other.namespace() != first.namespace()) {
        return None;
    }
    Some((host.to_owned(), outbound_name(port, "", host)))
}

fn timeout(given: Option<crate::model::Timespan>) -> Value {
    given.map_or_else(|| PATIENCE.into(), |given| seconds(given.get()))
}

fn common(config: &mut Value, fail_open: bool, status: &str, body: Option<&RequestBody>) {
    config["transport_api_version"] = "V3".into();
    config["failure_mode_allow"] = fail_open.into();
    if let Ok(code) = status.parse::<u32>() {
        config["status_on_error"] = json!({"code": code});
    }
    if let Some(body) = body {
        config["with_request_body"] = json!({
            "max_request_bytes": body.max_request_bytes,
            "allow_partial_message": body.allow_partial_message,
            "pack_as_bytes": body.pack_as_bytes,
        });
    }
}

fn by_grpc(world: &World, provider: &ExtAuthzGrpc, layer: &Layer) -> Option<Value> {
    let (host, cluster) = service(world, &provider.service, provider.port)?;
    let service = json!({
        "envoy_grpc": {"cluster_name": cluster, "authority": host},
        "timeout": timeout(provider.timeout),
    });
    let mut config = json!({"grpc_service": service});
    if layer.tcp {
        config["transport_api_version"] = "V3".into();
        config["failure_mode_allow"] = provider.fail_open.into();
    } else {
        let body = provider.include_request_body_in_check.as_ref();
        common(&mut config, provider.fail_open, &provider.status_on_error, body);
    }
    Some(config)
}

fn by_http(world: &World, provider: &ExtAuthzHttp) -> Option<Value> {
    let (host, cluster) = service(world, &provider.service, provider.port)?;
    let mut service = json!({
        "server_uri": {
            "uri": format!("http://{host}"), "cluster": cluster, "timeout": timeout(provider.timeout),
        },
        "path_prefix": provider.path_prefix,
    });
    if !provider.include_additional_headers_in_check.is_empty() {
        let fields = provider.include_additional_headers_in_check.iter();
        let fields: Vec<Value> = fields.map(|(key, value)| json!({"key": key, "value": value})).collect();
        service["authorization_request"] = json!({"headers_to_add": fields});
    }
    for (name, list) in [
        ("allowed_upstream_headers", &provider.headers_to_upstream_on_allow),
        ("allowed_client_headers", &provider.headers_to_downstream_on_deny),
        ("allowed_client_headers_on_success", &provider.headers_to_downstream_on_allow),
    ] {
        if !list.is_empty() {
            service["authorization_response"][name] = names(list);
        }
    }
    let mut config = json!({"http_service": service});
    let told = match provider.include_request_headers_in_check.as_slice() {
        [] => &provider.include_headers_in_check,
        _ => &provider.include_request_headers_in_check,
    };
    if !told.is_empty() {
        config["allowed_headers"] = names(told);
    }
    let body = provider.include_request_body_in_check.as_ref();
    common(&mut config, provider.fail_open, &provider.status_on_error, body);
    Some(config)
}

/// Names of header fields, each whole or open at one end.
fn names(list: &[String]) -> Value {
    let one = |name: &String| {
        let mut matcher = match (name.strip_prefix('*'), name.strip_suffix('*')) {
            (Some(end), _) => json!({"suffix": end}),
            (None, Some(beginning)) => json!({"prefix": beginning}),
            (None, None) => json!({"exact": name}),
        };
        matcher["ignore_case"] = true.into();
        matcher
    };
    json!({"patterns": list.iter().map(one).collect::<Vec<_>>()})
}
