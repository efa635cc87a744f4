//! Which filters a workload gets, in which order, and what is in them.

use serde_json::json;

use crate::model::World;
use crate::render::tests::{mesh, node, value};
use crate::render::{Memo, ProxyNode, ResourceType, Resources, Value, render};

const SERVER: &str = "127.0.9.7";

/// A workload `s` with an HTTP and a TCP port in namespace `shop`; with more objects.
fn world(more: &str) -> World {
    mesh(&format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: s, namespace: shop}}
spec: {{selector: {{app: s}}, ports: [{{name: http, port: 80}}, {{name: tcp, port: 90}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: s, namespace: shop}}
spec: {{address: {SERVER}, labels: {{app: s}}}}
---
{more}"
    ))
}

fn policy(place: &str, spec: &str) -> String {
    let (namespace, name) = place.split_once('/').unwrap();
    format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
---
"
    )
}

fn rendered(world: &World, node: &ProxyNode) -> Resources {
    render(world, node, false, &Memo::default())
}

/// The RBAC filters of the last chain of a listener: HTTP ones if it has requests.
fn filters(resources: &Resources, listener: &str) -> Vec<Value> {
    let listener = value(resources, ResourceType::Listener, listener);
    let chain = listener["filter_chains"].as_array().unwrap().last().unwrap()["filters"].clone();
    let chain = chain.as_array().unwrap();
    let http = chain.iter().find(|f| f["name"] == "envoy.filters.network.http_connection_manager");
    let all = match http {
        Some(manager) => manager["typed_config"]["http_filters"].as_array().unwrap(),
        None => chain,
    };
    let is_rbac = |f: &&Value| f["name"].as_str().unwrap().ends_with(".rbac");
    all.iter().filter(is_rbac).map(|f| f["typed_config"].clone()).collect()
}

fn at(more: &str, port: u16) -> Vec<Value> {
    let resources = rendered(&world(more), &node("sidecar", SERVER, "shop"));
    filters(&resources, &format!("{SERVER}_{port}"))
}

fn names(rules: &Value) -> Vec<String> {
    rules["policies"].as_object().map(|p| p.keys().cloned().collect()).unwrap_or_default()
}

#[test]
fn each_action_is_a_filter_and_they_stand_in_order() {
    let yaml = policy("shop/a", "{rules: [{to: [{operation: {methods: [GET]}}]}]}")
        + &policy("shop/d", "{action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]}")
        + &policy("shop/l", "{action: AUDIT, rules: [{}]}");
    for port in [80, 90] {
        let found = at(&yaml, port);
        let actions: Vec<_> =
            found.iter().map(|f| f["rules"]["action"].as_str().unwrap_or("ALLOW").to_owned()).collect();
        assert_eq!(actions, ["LOG", "DENY", "ALLOW"], "{port}");
        assert_eq!(names(&found[1]["rules"]), ["ns[shop]-policy[d]-rule[0]"]);
        assert_eq!(found[0].get("stat_prefix").is_some(), port == 90);
    }
    assert!(at("", 80).is_empty());
}

#[test]
fn the_root_namespaces_policies_hold_everywhere_and_a_selector_chooses() {
    let yaml = policy("istio-system/everywhere", "{action: DENY, rules: [{}]}")
        + &policy("istio-system/others", "{selector: {matchLabels: {app: x}}, action: DENY, rules: [{}]}")
        + &policy("shop/ours", "{selector: {matchLabels: {app: s}}, action: DENY, rules: [{}]}")
        + &policy("elsewhere/not-ours", "{action: DENY, rules: [{}]}");
    let found = at(&yaml, 80);
    assert_eq!(found.len(), 1);
    assert_eq!(
        names(&found[0]["rules"]),
        ["ns[istio-system]-policy[everywhere]-rule[0]", "ns[shop]-policy[ours]-rule[0]"]
    );
}

#[test]
fn what_is_only_tried_is_a_shadow() {
    let tried = |name: &str, action: &str| {
        policy(&format!("shop/{name}"), &format!("{{action: {action}, rules: [{{}}]}}"))
            .replace("namespace: shop}", "namespace: shop, annotations: {istio.io/dry-run: 'true'}}")
    };
    let found = at(
        &(tried("a", "ALLOW") + &tried("d", "DENY") + &policy("shop/b", "{action: DENY, rules: [{}]}")),
        80,
    );
    let [deny, allow] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(names(&deny["rules"]), ["ns[shop]-policy[b]-rule[0]"]);
    assert_eq!(names(&deny["shadow_rules"]), ["ns[shop]-policy[d]-rule[0]"]);
    assert_eq!(deny["shadow_rules_stat_prefix"], "istio_dry_run_deny_");
    // An ALLOW that is only tried shuts nobody out.
    assert_eq!(allow.get("rules"), None);
    assert_eq!(allow["shadow_rules_stat_prefix"], "istio_dry_run_allow_");
}

#[test]
fn no_rules_match_nothing_and_an_empty_rule_matches_everything() {
    let nothing =
        &at(&policy("shop/none", "{}"), 80)[0]["rules"]["policies"]["ns[shop]-policy[none]-rule[0]"];
    assert_eq!(nothing["permissions"][0], json!({"not_rule": {"any": true}}));
    assert_eq!(nothing["principals"][0], json!({"not_id": {"any": true}}));
    let all =
        &at(&policy("shop/all", "{rules: [{}]}"), 80)[0]["rules"]["policies"]["ns[shop]-policy[all]-rule[0]"];
    assert_eq!(all["permissions"][0], json!({"and_rules": {"rules": [{"any": true}]}}));
    assert_eq!(all["principals"][0], json!({"and_ids": {"ids": [{"any": true}]}}));
}

#[test]
fn on_tcp_a_rule_over_requests_is_not_allowed_by_and_denied_in_what_is_left() {
    let rules =
        "rules: [{to: [{operation: {paths: [/a], ports: ['90']}}]}, {from: [{source: {namespaces: [x]}}]}]";
    let allow = &at(&policy("shop/p", &format!("{{{rules}}}")), 90)[0];
    assert_eq!(names(&allow["rules"]), ["ns[shop]-policy[p]-rule[1]"]);
    let deny = &at(&policy("shop/p", &format!("{{action: DENY, {rules}}}")), 90)[0]["rules"]["policies"];
    assert_eq!(
        deny["ns[shop]-policy[p]-rule[0]"]["permissions"][0],
        json!({"and_rules": {"rules": [{"or_rules": {"rules": [{"destination_port": 90}]}}]}})
    );
    // Where nothing is left to allow, nobody is.
    let only = policy("shop/p", "{rules: [{to: [{operation: {methods: [GET]}}]}]}");
    let allow = &at(&only, 90)[0];
    assert_eq!(allow["rules"], json!({}));
    for when in ["request.headers[x]", "request.auth.claims[x]", "request.auth.principal"] {
        let only = policy("shop/p", &format!("{{rules: [{{when: [{{key: '{when}', values: [a]}}]}}]}}"));
        assert_eq!(at(&only, 90)[0]["rules"], json!({}), "{when}");
        assert_eq!(names(&at(&only, 80)[0]["rules"]).len(), 1, "{when}");
    }
}

#[test]
fn values_are_alternatives_and_what_is_not_wanted_is_none_of_them() {
    let yaml = policy(
        "shop/p",
        "{rules: [{
            from: [{source: {principals: [a/ns/x/sa/y, '*/sa/z'], notNamespaces: [bad, 'b*']}},
                   {source: {serviceAccounts: [acc, other/a.c]}}],
            to: [{operation: {hosts: [A.com, '*.b.com'], paths: ['/x/{*}', '/y*'], notMethods: [DELETE]}}],
            when: [{key: 'request.headers[x-v]', values: ['*'], notValues: [old]},
                   {key: destination.port, values: ['80']}, {key: remote.ip, notValues: [10.0.0.1]}]}]}",
    );
    let made = at(&yaml, 80)[0]["rules"]["policies"]["ns[shop]-policy[p]-rule[0]"].clone();
    let name = |m: Value| json!({"authenticated": {"principal_name": m}});
    let regex = |r: &str| json!({"safe_regex": {"regex": r}});
    let when = [
        json!({"or_ids": {"ids": [{"header": {"name": "x-v", "present_match": true}}]}}),
        json!({"not_id": {"or_ids": {"ids": [{"header": {"name": "x-v", "string_match": {"exact": "old"}}}]}}}),
        json!({"not_id": {"or_ids": {"ids": [{"remote_ip": {"address_prefix": "10.0.0.1", "prefix_len": 32}}]}}}),
    ];
    let mut first = vec![
        json!({"or_ids": {"ids": [name(json!({"exact": "spiffe://a/ns/x/sa/y"})), name(regex("spiffe://.*/sa/z"))]}}),
        json!({"not_id": {"or_ids": {"ids": [name(regex(".*/ns/bad/.*")), name(regex(".*/ns/b.*/.*"))]}}}),
    ];
    first.extend(when.clone());
    let mut second = vec![json!({"or_ids": {"ids": [
        name(regex("spiffe://.+/ns/shop/(.+/|)sa/acc(/.+)?")), name(regex(r"spiffe://.+/ns/other/(.+/|)sa/a\.c(/.+)?"))]}})];
    second.extend(when);
    assert_eq!(made["principals"][0]["and_ids"]["ids"], json!(first));
    assert_eq!(made["principals"][1]["and_ids"]["ids"], json!(second));
    let host = |m: Value| json!({"header": {"name": ":authority", "string_match": m}});
    let template = &made["permissions"][0]["and_rules"]["rules"][2]["or_rules"]["rules"][0]["uri_template"];
    assert_eq!(template["typed_config"]["path_template"], "/x/*");
    let permissions = made["permissions"][0]["and_rules"]["rules"].as_array().unwrap();
    assert_eq!(
        permissions[0],
        json!({"or_rules": {"rules": [host(json!({"exact": "A.com", "ignore_case": true})),
                                      host(json!({"suffix": ".b.com", "ignore_case": true}))]}})
    );
    assert_eq!(
        permissions[1],
        json!({"not_rule": {"or_rules": {"rules": [{"header": {"name": ":method", "string_match": {"exact": "DELETE"}}}]}}})
    );
    assert_eq!(permissions[2]["or_rules"]["rules"][1], json!({"url_path": {"path": {"prefix": "/y"}}}));
    assert_eq!(permissions[3], json!({"or_rules": {"rules": [{"destination_port": 80}]}}));
}

#[test]
fn a_gateway_has_the_filters_on_every_server_and_a_client_has_none() {
    let yaml = policy("shop/p", "{rules: [{to: [{operation: {ports: ['8080']}}]}]}")
        + "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: shop}
spec:
  selector: {app: s}
  servers:
    - {port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}
    - {port: {number: 9090, name: tcp, protocol: TCP}, hosts: ['*']}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: g, namespace: shop}
spec: {hosts: ['*'], gateways: [g], tcp: [{route: [{destination: {host: s, port: {number: 90}}}]}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: shop}
spec: {egress: [{port: {number: 7000, protocol: HTTP, name: http}, captureMode: NONE, hosts: ['*/*']}]}
---
";
    let world = world(&yaml);
    let resources = rendered(&world, &node("router", SERVER, "shop"));
    for listener in ["8080", "9090"] {
        assert_eq!(filters(&resources, &format!("{SERVER}_{listener}")).len(), 1, "{listener}");
    }
    let resources = rendered(&world, &node("sidecar", SERVER, "shop"));
    assert!(filters(&resources, &format!("{SERVER}_7000")).is_empty());
    assert_eq!(filters(&resources, &format!("{SERVER}_80")).len(), 1);
}

#[test]
fn a_policy_changes_listeners_and_nothing_else() {
    let memo = Memo::default();
    let server = node("sidecar", SERVER, "shop");
    render(&world(""), &server, false, &memo);
    let before = [ResourceType::Listener, ResourceType::Cluster].map(|kind| memo.rendered(kind));
    render(&world(&policy("shop/p", "{rules: [{}]}")), &server, false, &memo);
    let after = [ResourceType::Listener, ResourceType::Cluster].map(|kind| memo.rendered(kind));
    assert!(after[0] > before[0] && after[1] == before[1], "{before:?} {after:?}");
}

/// The provider `ask.shop` by gRPC, one by HTTP, and one whose service is not there.
fn mesh_with_providers() -> String {
    let text = "
      trustDomain: cluster.local
      extensionProviders:
      - {name: g, envoyExtAuthzGrpc: {service: ask.shop.svc.cluster.local, port: 9000}}
      - {name: h, envoyExtAuthzHttp: {service: shop/ask.shop.svc.cluster.local, port: 8000, timeout: 2s, failOpen: true,
          statusOnError: '503', pathPrefix: /check, includeRequestHeadersInCheck: [a, 'b*'], headersToUpstreamOnAllow: ['*c']}}
      - {name: gone, envoyExtAuthzGrpc: {service: gone.shop.svc.cluster.local, port: 9000}}";
    format!(
        "
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |{text}
---
apiVersion: v1
kind: Service
metadata: {{name: ask, namespace: shop}}
spec: {{ports: [{{name: http, port: 8000}}, {{name: grpc, port: 9000}}]}}
---
"
    )
}

/// Names and settings of all filters of the workload's port that decide, with a CUSTOM policy of this provider.
fn asked(provider: &str, more: &str, port: u16) -> Vec<(String, Value)> {
    let custom =
        policy("shop/c", &format!("{{action: CUSTOM, provider: {{name: {provider}}}, rules: [{{}}]}}"));
    let world = world(&(mesh_with_providers() + &custom + more));
    let resources = rendered(&world, &node("sidecar", SERVER, "shop"));
    let listener = value(&resources, ResourceType::Listener, &format!("{SERVER}_{port}"));
    let chain = listener["filter_chains"].as_array().unwrap().last().unwrap()["filters"].clone();
    let chain = chain.as_array().unwrap().clone();
    let http = chain.iter().find(|f| f["name"] == "envoy.filters.network.http_connection_manager");
    let all = http.map_or(chain.clone(), |m| m["typed_config"]["http_filters"].as_array().unwrap().clone());
    let decides = |name: &str| ["rbac", "ext_authz", "jwt_authn"].iter().any(|end| name.ends_with(end));
    all.iter()
        .map(|f| (f["name"].as_str().unwrap().to_owned(), f["typed_config"].clone()))
        .filter(|(name, _)| decides(name))
        .collect()
}

#[test]
fn a_question_is_marked_asked_and_comes_before_tokens_and_rules() {
    let more = policy("shop/a", "{rules: [{}]}")
        + "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: t, namespace: shop}
spec: {jwtRules: [{issuer: 'https://a'}]}
---
";
    let filters = asked("g", &more, 80);
    let names: Vec<_> = filters.iter().map(|(name, _)| name.rsplit('.').next().unwrap()).collect();
    assert_eq!(names, ["rbac", "ext_authz", "jwt_authn", "rbac"]);
    let (marks, asks) = (&filters[0].1, &filters[1].1);
    assert_eq!(marks["shadow_rules_stat_prefix"], "istio_ext_authz_");
    assert_eq!(marks["rules"], Value::Null);
    let policies = marks["shadow_rules"]["policies"].as_object().unwrap();
    assert_eq!(policies.keys().collect::<Vec<_>>(), ["istio-ext-authz-g-ns[shop]-policy[c]-rule[0]"]);
    assert_eq!(
        asks["grpc_service"],
        json!({"envoy_grpc": {"cluster_name": "outbound|9000||ask.shop.svc.cluster.local",
            "authority": "ask.shop.svc.cluster.local"}, "timeout": "600s"})
    );
    assert_eq!(
        asks["filter_enabled_metadata"],
        json!({"filter": "envoy.filters.http.rbac", "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
            "value": {"string_match": {"prefix": "istio-ext-authz-g"}}})
    );
}

#[test]
fn a_question_by_http_says_what_is_told() {
    let (_, asks) = &asked("h", "", 80)[1];
    let service = &asks["http_service"];
    assert_eq!(service["server_uri"]["cluster"], "outbound|8000||ask.shop.svc.cluster.local");
    assert_eq!(
        (&service["server_uri"]["timeout"], &service["path_prefix"]),
        (&json!("2s"), &json!("/check"))
    );
    assert_eq!(asks["failure_mode_allow"], true);
    assert_eq!(
        asks["allowed_headers"],
        json!({"patterns": [{"exact": "a", "ignore_case": true}, {"prefix": "b", "ignore_case": true}]})
    );
    let upstream = &service["authorization_response"]["allowed_upstream_headers"];
    assert_eq!(*upstream, json!({"patterns": [{"suffix": "c", "ignore_case": true}]}));
    // Of connections it knows nothing.
    assert_eq!(asked("h", "", 90), []);
}

#[test]
fn who_cannot_be_asked_allows_nothing() {
    for (provider, port) in [("gone", 80), ("gone", 90), ("nobody", 80), ("nobody", 90)] {
        let filters = asked(provider, "", port);
        let [(name, denies)] = filters.as_slice() else { panic!("{filters:?}") };
        assert!(name.ends_with(".rbac"), "{name}");
        assert_eq!(denies["rules"]["action"], "DENY");
        let policies = denies["rules"]["policies"].as_object().unwrap();
        let name =
            format!("istio-ext-authz-{provider}-ns[shop]-policy[c]-rule[0]-deny-due-to-bad-CUSTOM-action");
        assert_eq!(policies.keys().collect::<Vec<_>>(), [&name]);
    }
    let other = policy("shop/d", "{action: CUSTOM, provider: {name: h}, rules: [{}]}");
    let filters = asked("g", &other, 80);
    assert_eq!(filters.len(), 2);
    assert!(filters.iter().all(|(_, denies)| denies["rules"]["action"] == "DENY"), "{filters:?}");
}
