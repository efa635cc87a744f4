//! ExternalCredentials: a filter for each that a proxy has, off except where a route leads to one of its hosts, and its secret.

use serde_json::{Map, Value, json};

use super::ProxyNode;
use super::memo::Output;
use crate::model::World;

/// The filters, for the end of a chain: whoever asks about a request before does not see the secret.
pub(super) fn filters<'a>(world: &'a World, node: &'a ProxyNode) -> impl Iterator<Item = Value> + 'a {
    world.external_credentials_at(&node.namespace, node.selected_by(world)).map(|object| {
        let spec = &object.spec;
        json!({
            "name": object.filter(),
            "disabled": true,
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.credential_injector.v3.CredentialInjector",
                "overwrite": spec.overwrite != Some(false),
                "allow_request_without_credential": spec.allow_request_without_credential,
                "credential": {
                    "name": "envoy.http.injected_credentials.generic",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.http.injected_credentials.generic.v3.Generic",
                        "credential": {
                            "name": object.secret(),
                            "sds_config": {"ads": {}, "resource_api_version": "V3"},
                        },
                        "header": spec.header,
                        "header_value_prefix": spec.header_value_prefix,
                    },
                },
            },
        })
    })
}

/// Turns on, where requests go to this host, the filters that are for it.
pub(super) fn turn_on(world: &World, node: &ProxyNode, host: &str, target: &mut Value) {
    let all = world.external_credentials_at(&node.namespace, node.selected_by(world));
    let on: Map<String, Value> = all
        .filter(|object| object.spec.hosts.iter().any(|h| h.eq_ignore_ascii_case(host)))
        .map(|object| {
            let on = json!({"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}});
            (object.filter(), on)
        })
        .collect();
    match target["typed_per_filter_config"].as_object_mut() {
        Some(present) => present.extend(on),
        None if on.is_empty() => {}
        None => target["typed_per_filter_config"] = on.into(),
    }
}

/// The secrets that are known.
pub(super) fn secrets(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    for object in world.external_credentials_at(&node.namespace, node.selected_by(world)) {
        let Some((version, text)) = world.external_secret(object) else { continue };
        let name = object.secret();
        out.put(
            &name,
            (&node.namespace, version),
            || json!({"name": name, "generic_secret": {"secret": {"inline_string": *text}}}),
        );
    }
}

#[cfg(test)]
mod tests {
    use xds_protos::ResourceType;

    use super::super::tests::{node, value};
    use super::super::{Memo, render};
    use crate::ingest::load_str;

    const MESH: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: edge}
spec: {hosts: [api.example, other.example], resolution: NONE, ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: g, namespace: edge, annotations: {weft.dev/role: gateway}}
spec: {address: 127.0.2.9, labels: {istio: ingress}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: edge}
spec: {selector: {istio: ingress}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: edge}
spec:
  hosts: ['*']
  gateways: [g]
  http:
    - {match: [{uri: {exact: /api}}], MIRROR fault: {abort: {httpStatus: 400, percentage: {value: 0}}}, route: [{destination: {host: api.example}}]}
    - {match: [{uri: {exact: /both}}], route: [{destination: {host: api.example}, weight: 1}, {destination: {host: other.example}, weight: 1}]}
    - {match: [{uri: {exact: /one}}], route: [{destination: {host: api.example}, weight: 1}, {destination: {host: other.example}, weight: 0}]}
    - {route: [{destination: {host: other.example}}]}
---
apiVersion: weft.dev/v1alpha1
kind: ExternalCredential
metadata: {name: c, namespace: NAMESPACE}
spec: {hosts: [api.example], credentialName: token, key: k SELECTOR}
";

    fn mesh(namespace: &str, selector: &str, mirror: &str) -> String {
        MESH.replace("NAMESPACE", namespace).replace("SELECTOR", selector).replace("MIRROR", mirror)
    }

    #[test]
    fn only_routes_to_its_hosts_turn_it_on() {
        let memo = Memo::default();
        let filter = "weft.credential.edge.c";
        let of = |namespace: &str, selector: &str| {
            let world = load_str("mesh.yaml", &mesh(namespace, selector, "")).into_result().unwrap();
            let resources = render(&world, &node("router", "127.0.2.9", "edge"), true, &memo);
            let listener = value(&resources, ResourceType::Listener, "127.0.2.9_80");
            let filters = &listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"];
            let filters = filters.as_array().unwrap();
            let has = filters[filters.len() - 2]["name"] == filter;
            assert_eq!(filters.iter().any(|f| f["name"] == filter), has, "it is the last before the router");
            let routes = value(&resources, ResourceType::Route, "http.80");
            let routes = routes["virtual_hosts"][0]["routes"].as_array().unwrap().clone();
            let on = |at: &serde_json::Value| at["typed_per_filter_config"].get(filter).is_some();
            let clusters = |r: &serde_json::Value| -> Vec<bool> {
                let all = r["route"]["weighted_clusters"]["clusters"].as_array();
                all.into_iter().flatten().map(&on).collect()
            };
            let found: Vec<_> = routes.iter().map(|r| (on(r), clusters(r))).collect();
            assert!(routes[0]["typed_per_filter_config"].get("envoy.filters.http.fault").is_some());
            (has, found)
        };
        let all = vec![(true, vec![]), (false, vec![true, false]), (true, vec![]), (false, vec![])];
        let none = vec![(false, vec![]), (false, vec![false, false]), (false, vec![]), (false, vec![])];
        assert_eq!(of("edge", ""), (true, all.clone()));
        assert_eq!(of("edge", ", selector: {matchLabels: {istio: other}}"), (false, none.clone()));
        assert_eq!(of("edge", ", selector: {matchLabels: {istio: ingress}}"), (true, all));
        assert_eq!(of("shop", ""), (false, none));
    }

    #[test]
    fn a_mirror_that_would_get_the_secret_is_refused() {
        let found = |host: &str| {
            let mirror = format!("mirrors: [{{destination: {{host: {host}}}}}],");
            load_str("mesh.yaml", &mesh("edge", "", &mirror))
                .into_result()
                .map_err(|all| all.iter().map(ToString::to_string).collect::<String>())
        };
        let error = found("other.example").err().unwrap_or_default();
        assert!(error.contains("mirrors requests that carry this secret to other.example"), "{error}");
        assert!(found("api.example").is_ok());
    }
}
