//! What the traffic API of Istio becomes: each setting, by the fields of the message that proxies get.

use serde_json::json;

use super::tests::{mesh, node, value};
use super::*;

const CLIENT: &str = "127.0.9.1";

/// A service `a` with two ports, and `b`, in namespace `n`; with more objects.
fn world(more: &str) -> World {
    mesh(&format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: a, namespace: n}}
spec: {{selector: {{app: a}}, ports: [{{name: http, port: 80}}, {{name: http-admin, port: 81}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: b, namespace: n}}
spec: {{selector: {{app: b}}, ports: [{{name: http, port: 80}}]}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default, namespace: n}}
spec:
  egress:
    - {{port: {{number: 80, protocol: HTTP, name: http}}, captureMode: NONE, hosts: ['*/*']}}
    - {{port: {{number: 81, protocol: HTTP, name: admin}}, captureMode: NONE, hosts: ['*/*']}}
---
{more}"
    ))
}

fn rendered(world: &World) -> Resources {
    render(world, &node("sidecar", CLIENT, "n"), false, &Memo::default())
}

fn virtual_service(rules: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: a, namespace: n}}
spec: {{hosts: [a], http: [{rules}]}}
---
"
    )
}

fn destination_rule(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: a, namespace: n}}
spec: {{host: a, {policy}}}
---
"
    )
}

/// The routes to `a` on port 80 with these objects.
fn routes(more: &str) -> Vec<Value> {
    let config = value(&rendered(&world(more)), ResourceType::Route, "80");
    let hosts = config["virtual_hosts"].as_array().unwrap();
    let host = hosts.iter().find(|h| h["name"] == "a.n.svc.cluster.local:80").unwrap();
    host["routes"].as_array().unwrap().clone()
}

fn cluster(more: &str) -> Value {
    value(&rendered(&world(more)), ResourceType::Cluster, "outbound|80||a.n.svc.cluster.local")
}

#[test]
fn faults_are_the_filters_settings_of_the_route() {
    let rules = virtual_service(
        "{fault: {delay: {fixedDelay: 250ms, percentage: {value: 12.5}}, abort: {httpStatus: 418, percentage: {value: 0.01}}},
          route: [{destination: {host: a}}]}",
    );
    let fault = &routes(&rules)[0]["typed_per_filter_config"]["envoy.filters.http.fault"];
    assert_eq!(fault["delay"]["fixed_delay"], "0.250s");
    assert_eq!(
        fault["delay"]["percentage"],
        serde_json::json!({"numerator": 125_000, "denominator": "MILLION"})
    );
    assert_eq!(fault["abort"]["http_status"], 418);
    assert_eq!(fault["abort"]["percentage"], serde_json::json!({"numerator": 100, "denominator": "MILLION"}));
    let rules = virtual_service(
        "{fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}, route: [{destination: {host: a}}]}",
    );
    let fault = &routes(&rules)[0]["typed_per_filter_config"]["envoy.filters.http.fault"];
    assert_eq!(fault["abort"]["grpc_status"], 14);
}

#[test]
fn mirrors_get_their_share_and_one_of_nothing_is_left_out() {
    let rules = virtual_service(
        "{mirrors: [{destination: {host: b}}, {destination: {host: b, subset: s}, percentage: {value: 2.5}},
                    {destination: {host: a}, percentage: {value: 0}}], route: [{destination: {host: a}}]}",
    );
    let copies = routes(&rules)[0]["route"]["request_mirror_policies"].as_array().unwrap().clone();
    assert_eq!(copies.len(), 2);
    assert_eq!(copies[0]["cluster"], "outbound|80||b.n.svc.cluster.local");
    assert_eq!(copies[0]["runtime_fraction"]["default_value"], serde_json::json!({"numerator": 100}));
    assert_eq!(copies[1]["cluster"], "outbound|80|s|b.n.svc.cluster.local");
    assert_eq!(
        copies[1]["runtime_fraction"]["default_value"],
        serde_json::json!({"numerator": 25_000, "denominator": "MILLION"})
    );
    // The old spellings say the same.
    let rules = virtual_service(
        "{mirror: {host: b}, mirrorPercentage: {value: 50}, route: [{destination: {host: a}}]}",
    );
    let copies = &routes(&rules)[0]["route"]["request_mirror_policies"];
    assert_eq!(copies[0]["runtime_fraction"]["default_value"]["numerator"], 500_000);
}

#[test]
fn cors_is_the_filters_policy_of_the_route() {
    let rules = virtual_service(
        "{corsPolicy: {allowOrigins: [{exact: 'https://a.com'}, {prefix: 'https://b.'}, {regex: '.*c'}], allowMethods: [GET, PUT],
          allowHeaders: [x-a, x-b], exposeHeaders: [x-c], maxAge: 24h, allowCredentials: true, unmatchedPreflights: IGNORE},
          route: [{destination: {host: a}}]}",
    );
    let mut policy = routes(&rules)[0]["typed_per_filter_config"]["envoy.filters.http.cors"].clone();
    policy.as_object_mut().unwrap().remove("@type");
    assert_eq!(
        policy,
        serde_json::json!({
            "allow_origin_string_match": [{"exact": "https://a.com"}, {"prefix": "https://b."}, {"safe_regex": {"regex": ".*c"}}],
            "allow_methods": "GET,PUT", "allow_headers": "x-a,x-b", "expose_headers": "x-c", "max_age": "86400",
            "allow_credentials": true, "filter_enabled": {"default_value": {"numerator": 100}},
            "forward_not_matching_preflights": false,
        })
    );
}

#[test]
fn a_delegates_rules_stand_in_the_roots_place() {
    let delegate = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: inner, namespace: team}
spec:
  http:
    - {name: deep, match: [{uri: {prefix: /api/deep}}, {uri: {prefix: /other}}], route: [{destination: {host: b.n.svc.cluster.local}}]}
    - {timeout: 3s, headers: {request: {set: {x-in: '1'}}}, route: [{destination: {host: a.n.svc.cluster.local, port: {number: 81}}}]}
    - {match: [{uri: {regex: '/api/.*'}}], route: [{destination: {host: b.n.svc.cluster.local}}]}
---
";
    let root = virtual_service(
        "{name: outer, match: [{name: m, uri: {prefix: /api}, headers: {x-v: {exact: '1'}}}], timeout: 9s, delegate: {name: inner, namespace: team}},
         {match: [{uri: {prefix: /gone}}], delegate: {name: nobody}}, {route: [{destination: {host: a}}]}",
    );
    let found = routes(&(root + delegate));
    let names: Vec<_> = found.iter().map(|r| r["name"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["outer-deep.m", "outer.m", ""], "{found:#?}");
    assert_eq!(found[0]["match"]["prefix"], "/api/deep");
    assert_eq!(found[0]["match"]["headers"][0]["name"], "x-v");
    assert_eq!(found[0]["route"]["timeout"], "9s");
    assert_eq!(found[0]["route"]["cluster"], "outbound|80||b.n.svc.cluster.local");
    assert_eq!(found[1]["match"]["prefix"], "/api");
    assert_eq!(found[1]["route"]["timeout"], "3s");
    assert_eq!(found[1]["route"]["cluster"], "outbound|81||a.n.svc.cluster.local");
}

#[test]
fn a_delegate_that_is_not_exported_to_the_root_is_none() {
    let delegate = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: inner, namespace: team}
spec: {exportTo: ['.'], http: [{route: [{destination: {host: b.n.svc.cluster.local}}]}]}
---
";
    let root =
        virtual_service("{delegate: {name: inner, namespace: team}}, {route: [{destination: {host: a}}]}");
    assert_eq!(routes(&(root + delegate)).len(), 1);
}

#[test]
fn a_redirects_port_and_prefix_are_istios() {
    let redirect = |text: &str| {
        routes(&virtual_service(&format!("{{match: [{{uri: {{prefix: /a}}}}], redirect: {{{text}}}}}")))[0]["redirect"].clone()
    };
    assert_eq!(redirect("uri: '%PREFIX()%/b', redirectCode: 308")["prefix_rewrite"], "/b");
    assert_eq!(redirect("uri: /b")["path_redirect"], "/b");
    assert_eq!(redirect("authority: x, derivePort: FROM_REQUEST_PORT")["port_redirect"], 80);
    assert!(redirect("scheme: http, derivePort: FROM_REQUEST_PORT")["port_redirect"].is_null());
    assert!(redirect("scheme: https, derivePort: FROM_PROTOCOL_DEFAULT")["port_redirect"].is_null());
    assert!(redirect("scheme: https, port: 443")["port_redirect"].is_null());
    assert_eq!(redirect("scheme: https, port: 8443")["port_redirect"], 8443);
}

#[test]
fn a_header_operation_on_the_authority_rewrites_the_host() {
    let rules = virtual_service(
        "{headers: {request: {set: {host: whole.com, x-a: b}}}, route: [
          {destination: {host: a}, weight: 1, headers: {request: {set: {':authority': part.com}}}}, {destination: {host: b}, weight: 1}]}",
    );
    let route = &routes(&rules)[0];
    assert_eq!(route["route"]["host_rewrite_literal"], "whole.com");
    assert_eq!(route["request_headers_to_add"].as_array().unwrap().len(), 1);
    let clusters = &route["route"]["weighted_clusters"]["clusters"];
    assert_eq!(clusters[0]["host_rewrite_literal"], "part.com");
    assert!(clusters[1]["host_rewrite_literal"].is_null());
}

#[test]
fn a_consistent_hash_is_on_the_cluster_and_on_its_routes() {
    let of = |hash: &str| {
        let rule =
            destination_rule(&format!("trafficPolicy: {{loadBalancer: {{consistentHash: {{{hash}}}}}}}"));
        (cluster(&rule), routes(&rule)[0]["route"].clone())
    };
    let (ring, route) = of("httpHeaderName: x-user");
    assert_eq!(
        (&ring["lb_policy"], &ring["ring_hash_lb_config"]["minimum_ring_size"]),
        (&"RING_HASH".into(), &"1024".into())
    );
    assert_eq!(route["hash_policy"][0]["header"]["header_name"], "x-user");
    // As with istiod: tried again where it belongs by a rule's route, and elsewhere by the one that nobody wrote.
    assert!(route["retry_policy"]["retry_host_predicate"].is_array());
    let rule = destination_rule("trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}");
    let written =
        routes(&(rule + &virtual_service("{route: [{destination: {host: a}}]}")))[0]["route"].clone();
    assert_eq!(written["hash_policy"][0]["header"]["header_name"], "x-user");
    assert!(written["retry_policy"].is_object() && written["retry_policy"]["retry_host_predicate"].is_null());
    let (ring, route) = of(
        "httpCookie: {name: c, path: /p, ttl: 1h, attributes: [{name: SameSite, value: Lax}]}, ringHash: {minimumRingSize: 7}",
    );
    assert_eq!(ring["ring_hash_lb_config"]["minimum_ring_size"], "7");
    assert_eq!(
        route["hash_policy"][0]["cookie"],
        serde_json::json!({"name": "c", "path": "/p", "ttl": "3600s", "attributes": [{"name": "SameSite", "value": "Lax"}]})
    );
    let (maglev, route) = of("useSourceIp: true, maglev: {tableSize: 101}");
    assert_eq!(
        (&maglev["lb_policy"], &maglev["maglev_lb_config"]["table_size"]),
        (&"MAGLEV".into(), &"101".into())
    );
    assert_eq!(route["hash_policy"][0]["connection_properties"]["source_ip"], true);
    let (_, route) = of("httpQueryParameterName: q");
    assert_eq!(route["hash_policy"][0]["query_parameter"]["name"], "q");
}

#[test]
fn a_hash_is_found_by_subset_and_port_of_the_destination() {
    let rule = destination_rule(
        "trafficPolicy: {portLevelSettings: [{port: {number: 81}, loadBalancer: {consistentHash: {httpHeaderName: x-port}}}]},
         subsets: [{name: s, labels: {v: s}, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-subset}}}}]",
    );
    let rules = virtual_service(
        "{match: [{uri: {prefix: /port}}], route: [{destination: {host: a, port: {number: 81}}}]},
         {match: [{uri: {prefix: /subset}}], route: [{destination: {host: a, subset: s}}]}, {route: [{destination: {host: a}}]}",
    );
    let found = routes(&(rule + &rules));
    assert_eq!(found[0]["route"]["hash_policy"][0]["header"]["header_name"], "x-port");
    assert_eq!(found[1]["route"]["hash_policy"][0]["header"]["header_name"], "x-subset");
    assert!(found[2]["route"]["hash_policy"].is_null());
}

#[test]
fn pings_and_streams_are_on_http2_connections() {
    let rule = destination_rule(
        "trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 9, http2KeepAlive: {interval: 30s, timeout: 5s}}}}",
    );
    let options = &cluster(&rule)["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
    let http2 = &options["explicit_http_config"]["http2_protocol_options"];
    assert_eq!(http2["max_concurrent_streams"], 9);
    assert_eq!(http2["connection_keepalive"], serde_json::json!({"interval": "30s", "timeout": "5s"}));
}

/// Six endpoints of `a`: near (in the client's sub-zone), zone, region, stand-in, far, and one without a place.
const PLACES: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: near, namespace: n}
spec: {address: 127.9.0.1, labels: {app: a, v: one}, locality: r/z/s}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: zone, namespace: n}
spec: {address: 127.9.0.2, labels: {app: a, v: two}, locality: r/z/t, weight: 3}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: region, namespace: n}
spec: {address: 127.9.0.3, labels: {app: a, v: one}, locality: r/y/s}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: standin, namespace: n}
spec: {address: 127.9.0.4, labels: {app: a, v: two}, locality: q/z/s}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: far, namespace: n}
spec: {address: 127.9.0.5, labels: {app: a, v: two}, locality: p}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client, namespace: n}
spec: {address: 127.0.9.1, labels: {app: client, v: one}, locality: r/z/s}
---
";

/// Each group's priority, weight and last octets.
fn groups(more: &str) -> Vec<(u64, u64, Vec<String>)> {
    let world = world(&(PLACES.to_owned() + more));
    let assignment = value(&rendered(&world), ResourceType::Endpoint, "outbound|80||a.n.svc.cluster.local");
    let group = |g: &Value| {
        let members = g["lb_endpoints"].as_array().into_iter().flatten();
        let address =
            |e: &Value| e["endpoint"]["address"]["socket_address"]["address"].as_str().unwrap().to_owned();
        let octet = |e: &Value| address(e).rsplit('.').next().unwrap().to_owned();
        let number = |key: &str| g[key].as_u64().unwrap_or_default();
        (number("priority"), number("load_balancing_weight"), members.map(octet).collect())
    };
    assignment["endpoints"].as_array().unwrap().iter().map(group).collect()
}

fn one(priority: u64, weight: u64, octet: &str) -> (u64, u64, Vec<String>) {
    (priority, weight, octet.split(' ').filter(|o| !o.is_empty()).map(str::to_owned).collect())
}

#[test]
fn with_outlier_detection_nearer_places_come_first() {
    // Without it, nobody would ever move on from the nearest.
    assert!(groups("").iter().all(|g| g.0 == 0));
    let outlier = destination_rule("trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}");
    assert_eq!(
        groups(&outlier),
        [one(0, 1, "1"), one(1, 3, "2"), one(2, 1, "3"), one(3, 1, "5"), one(3, 1, "4")]
    );
    let standing_in = destination_rule(
        "trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: r, to: q}]}}}",
    );
    assert_eq!(
        groups(&standing_in),
        [one(0, 1, "1"), one(1, 3, "2"), one(2, 1, "3"), one(3, 1, "4"), one(4, 1, "5")]
    );
    let off = destination_rule(
        "trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {enabled: false}}}",
    );
    assert!(groups(&off).iter().all(|g| g.0 == 0));
}

#[test]
fn the_meshs_locality_setting_holds_where_no_rule_has_one() {
    let mesh = "apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'localityLbSetting: {enabled: false}'}
---
";
    let outlier = destination_rule("trafficPolicy: {outlierDetection: {}}");
    assert!(groups(&(outlier.clone() + mesh)).iter().all(|g| g.0 == 0));
    let own = destination_rule(
        "trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {enabled: true}}}",
    );
    assert!(groups(&(own + mesh)).iter().any(|g| g.0 > 0));
}

#[test]
fn priorities_may_follow_labels() {
    let rule = destination_rule(
        "trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: [v, topology.kubernetes.io/region, topology.kubernetes.io/zone]}}}",
    );
    // All three as the client: 1. Then `v` and region: 3. Nothing else has the client's `v`.
    assert_eq!(
        groups(&rule),
        [one(0, 1, "1"), one(1, 1, "3"), one(2, 1, "5"), one(2, 1, "4"), one(2, 3, "2")]
    );
    let given = destination_rule(
        "trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: ['v=two', topology.kubernetes.io/region]}}}",
    );
    assert_eq!(
        groups(&given),
        [one(0, 3, "2"), one(1, 1, "5"), one(1, 1, "4"), one(2, 1, "3"), one(2, 1, "1")]
    );
}

#[test]
fn shares_are_weights_and_who_has_none_gets_nothing() {
    let rule = destination_rule(
        "trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [
           {from: 'x/*', to: {'r/*': 100}}, {from: r/z, to: {'r/z/*': 80, 'q/*': 20}}]}}}",
    );
    assert_eq!(
        groups(&rule),
        [one(0, 0, ""), one(0, 20, "4"), one(0, 0, ""), one(0, 20, "1"), one(0, 60, "2")]
    );
    assert!(
        cluster(&(PLACES.to_owned() + &rule))["common_lb_config"]["locality_weighted_lb_config"].is_object()
    );
    assert!(cluster(PLACES)["common_lb_config"]["locality_weighted_lb_config"].is_null());
}

#[test]
fn a_proxy_says_where_it_runs_by_labels_or_by_its_message() {
    use xds_protos::envoy::config::core::v3::{Locality, Node};
    let id = "sidecar~127.0.8.1~x.n~n.svc.cluster.local".to_owned();
    let locality = Some(Locality { region: "r".into(), zone: "z".into(), sub_zone: "s".into() });
    let node = ProxyNode::parse(&Node { id, locality, ..Node::default() }).unwrap();
    assert_eq!(node.locality(&World::default()).to_string(), "r/z/s");
    // What its WorkloadEntry says goes before.
    let entry = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client, namespace: n}
spec: {address: 127.0.8.1, locality: w/x}
";
    assert_eq!(node.locality(&world(entry)).to_string(), "w/x");
}

#[test]
fn new_endpoints_warm_up_where_the_balancer_can() {
    let ramp = |config: &Value| config["slow_start_config"].clone();
    let made = cluster(&destination_rule(
        "trafficPolicy: {loadBalancer: {warmup: {duration: 45s, minimumPercent: 20, aggression: 1.5}}}",
    ));
    let least = ramp(&made["least_request_lb_config"]);
    assert_eq!(least["slow_start_window"], "45s");
    assert_eq!(least["min_weight_percent"]["value"], 20.0);
    assert_eq!(least["aggression"]["default_value"], 1.5);
    let old = "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN, warmupDurationSecs: 30s}}";
    let old = ramp(&cluster(&destination_rule(old))["round_robin_lb_config"]);
    assert_eq!(old["slow_start_window"], "30s");
    assert_eq!(
        (&old["min_weight_percent"]["value"], &old["aggression"]["default_value"]),
        (&10.0.into(), &1.0.into())
    );
    for other in ["simple: RANDOM", "consistentHash: {httpHeaderName: x}"] {
        let rule = destination_rule(&format!(
            "trafficPolicy: {{loadBalancer: {{{other}, warmup: {{duration: 45s}}}}}}"
        ));
        let made = cluster(&rule).to_string();
        assert!(!made.contains("slow_start"), "{made}");
    }
}

#[test]
fn only_our_own_proxies_hear_of_a_return_window() {
    let rule = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: n, annotations: {weft.dev/return-window: 1m30s}}
spec: {host: a, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}}
---
";
    let window =
        |cluster: &Value| cluster["metadata"]["filter_metadata"]["weft.dev"]["return_window"].clone();
    assert_eq!(window(&cluster(rule)), "90s");
    let memo = Memo::default();
    let world = world(rule);
    let mut plain = node("sidecar", CLIENT, "n");
    render(&world, &plain, false, &memo);
    plain.extensions = false;
    let resources = render(&world, &plain, false, &memo);
    let cluster = value(&resources, ResourceType::Cluster, "outbound|80||a.n.svc.cluster.local");
    assert_eq!(window(&cluster), Value::Null, "{cluster}");
}

#[test]
fn a_cluster_names_the_rule_that_it_follows() {
    let rule = |text: &str| cluster(text)["metadata"]["filter_metadata"]["istio"]["config"].clone();
    let written = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: fast, namespace: n}
spec: {host: a}
---
";
    assert_eq!(rule(written), "/apis/networking.istio.io/v1/namespaces/n/destination-rule/fast");
    assert_eq!(rule(""), Value::Null);
}

#[test]
fn the_proxy_protocol_wraps_every_transport() {
    let header = |socket: &Value| socket["typed_config"]["config"].clone();
    let rule = "trafficPolicy: {proxyProtocol: {version: V2}, tls: {mode: DISABLE}}";
    let socket = cluster(&destination_rule(rule))["transport_socket"].clone();
    assert_eq!(socket["name"], "envoy.transport_sockets.upstream_proxy_protocol");
    assert_eq!(header(&socket)["version"], "V2");
    assert_eq!(socket["typed_config"]["transport_socket"]["name"], "envoy.transport_sockets.raw_buffer");
    let both =
        cluster(&destination_rule("trafficPolicy: {proxyProtocol: {}}"))["transport_socket_matches"].clone();
    for (index, inner) in ["tls", "raw_buffer"].into_iter().enumerate() {
        let socket = &both[index]["transport_socket"];
        assert_eq!(socket["name"], "envoy.transport_sockets.upstream_proxy_protocol");
        let name = format!("envoy.transport_sockets.{inner}");
        assert_eq!(socket["typed_config"]["transport_socket"]["name"], name.as_str());
    }
}

#[test]
fn a_rules_secret_goes_to_gateways_and_to_the_workloads_that_it_selects() {
    let rule = |selector: &str| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: a, namespace: n}}
spec: {{host: a, {selector} trafficPolicy: {{tls: {{mode: MUTUAL, credentialName: client}}}}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: client, namespace: n}}
type: Opaque
stringData: {{tls.crt: '-----BEGIN C', tls.key: '-----BEGIN K', ca.crt: '-----BEGIN R'}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client, namespace: n}}
spec: {{address: {CLIENT}, labels: {{app: client}}}}
---
"
        )
    };
    let of = |yaml: &str, kind: &str| {
        let world = mesh(&format!(
            "apiVersion: v1
kind: Service
metadata: {{name: a, namespace: n}}
spec: {{selector: {{app: a}}, ports: [{{name: http, port: 80}}]}}
---
{yaml}"
        ));
        let resources = render(&world, &node(kind, CLIENT, "n"), true, &Memo::default());
        let cluster = value(&resources, ResourceType::Cluster, "outbound|80||a.n.svc.cluster.local");
        let common = cluster["transport_socket"]["typed_config"]["common_tls_context"].clone();
        let secrets =
            resources[&ResourceType::Secret].keys().map(|name| name.to_string()).collect::<Vec<_>>();
        (common, secrets)
    };
    let selecting = rule("workloadSelector: {matchLabels: {app: client}},");
    for (yaml, kind) in [(selecting.as_str(), "sidecar"), (rule("").as_str(), "router")] {
        let (common, secrets) = of(yaml, kind);
        assert_eq!(secrets, ["kubernetes://client", "kubernetes://client-cacert"], "{kind}");
        assert_eq!(common["tls_certificate_sds_secret_configs"][0]["name"], "kubernetes://client");
        let roots = &common["combined_validation_context"]["validation_context_sds_secret_config"];
        assert_eq!(roots["name"], "kubernetes://client-cacert");
    }
    // A sidecar that the rule does not select still speaks TLS, without the certificate.
    let (common, secrets) = of(&rule(""), "sidecar");
    assert!(secrets.is_empty(), "{secrets:?}");
    assert_eq!(common["validation_context"]["trusted_ca"]["filename"], "/etc/ssl/certs/ca-certificates.crt");
    assert!(common.get("tls_certificate_sds_secret_configs").is_none(), "{common}");
}

#[test]
fn revoked_servers_are_in_the_list_that_the_rule_names() {
    let rule = "trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /ca.pem, caCrl: /crl.pem}}";
    let made = cluster(&destination_rule(rule));
    let rules = &made["transport_socket"]["typed_config"]["common_tls_context"]["validation_context"];
    assert_eq!(
        (&rules["trusted_ca"]["filename"], &rules["crl"]["filename"]),
        (&"/ca.pem".into(), &"/crl.pem".into())
    );
}

#[test]
fn a_matchs_stat_prefix_is_its_routes() {
    let rules = virtual_service(
        "{match: [{uri: {prefix: /a}, statPrefix: first}, {uri: {prefix: /b}}], route: [{destination: {host: a}}]}",
    );
    let routes = routes(&rules);
    assert_eq!(routes[0]["stat_prefix"], "first");
    assert_eq!(routes[1].get("stat_prefix"), None);
}

#[test]
fn the_applications_limits_are_the_sidecars_and_a_ports_own_go_first() {
    let yaml = |ingress: &str| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: s, namespace: m}}
spec: {{selector: {{app: s}}, ports: [{{name: http, port: 80}}, {{name: tcp, port: 90}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: s, namespace: m}}
spec: {{address: 127.0.9.2, labels: {{app: s}}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: s, namespace: m}}
spec: {{selector: {{matchLabels: {{app: s}}}}, portLevelMtls: {{80: {{mode: DISABLE}}}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: s, namespace: m}}
spec:
  inboundConnectionPool: {{tcp: {{maxConnections: 7, connectTimeout: 3s}}, http: {{http1MaxPendingRequests: 2, idleTimeout: 5s}}}}
{ingress}
---
"
        )
    };
    let of = |yaml: &str| render(&mesh(yaml), &node("sidecar", "127.0.9.2", "m"), false, &Memo::default());
    let resources = of(&yaml(""));
    let http = value(&resources, ResourceType::Cluster, "inbound|80||");
    assert_eq!(http["circuit_breakers"]["thresholds"][0]["max_connections"], 7);
    assert_eq!(http["circuit_breakers"]["thresholds"][0]["max_pending_requests"], 2);
    assert_eq!(http["connect_timeout"], "3s");
    let options =
        &http["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
    assert_eq!(options["common_http_protocol_options"]["idle_timeout"], "5s");
    let ingress = "  ingress:
    - {port: {number: 80, name: http, protocol: HTTP}, connectionPool: {tcp: {maxConnections: 9}},
       tls: {mode: MUTUAL, serverCertificate: /cert, privateKey: /key, caCertificates: /ca, caCrl: /crl}}
    - {port: {number: 90, name: tcp, protocol: TCP}, tls: {mode: SIMPLE, serverCertificate: /cert, privateKey: /key}}
";
    let resources = of(&yaml(ingress));
    let http = value(&resources, ResourceType::Cluster, "inbound|80||");
    assert_eq!(http["circuit_breakers"]["thresholds"][0]["max_connections"], 9);
    assert_eq!(http["circuit_breakers"]["thresholds"][0]["max_pending_requests"], u32::MAX);
    let tcp = value(&resources, ResourceType::Cluster, "inbound|90||");
    assert_eq!(tcp["circuit_breakers"]["thresholds"][0]["max_connections"], 7);
    // The Sidecar's TLS is at the port whose mutual TLS is off, and only there.
    let listener = value(&resources, ResourceType::Listener, "127.0.9.2_80");
    let chains = listener["filter_chains"].as_array().unwrap();
    assert_eq!(chains.len(), 1);
    assert_eq!(listener["listener_filters"][0]["name"], "envoy.filters.listener.tls_inspector");
    let context = &chains[0]["transport_socket"]["typed_config"];
    assert_eq!(context["require_client_certificate"], true);
    let common = &context["common_tls_context"];
    assert_eq!(common["tls_certificates"][0]["certificate_chain"]["filename"], "/cert");
    assert_eq!(common["validation_context"]["crl"]["filename"], "/crl");
    let listener = value(&resources, ResourceType::Listener, "127.0.9.2_90").to_string();
    assert!(!listener.contains("/cert") && listener.contains("ROOTCA"), "{listener}");
}

#[test]
fn a_gateways_certificates_and_its_clients_are_as_the_server_says() {
    let of = |tls: &str| {
        let world = mesh(&format!(
            "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: g, namespace: n}}
spec:
  servers: [{{port: {{number: 443, name: https, protocol: HTTPS}}, hosts: ['a.com'], tls: {tls}}}]
---
apiVersion: v1
kind: Secret
metadata: {{name: roots, namespace: n}}
type: Opaque
stringData: {{ca.crt: '-----BEGIN R'}}
---
"
        ));
        let resources = render(&world, &node("router", CLIENT, "n"), true, &Memo::default());
        let listener = value(&resources, ResourceType::Listener, &format!("{CLIENT}_443"));
        let context =
            listener["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"].clone();
        (context, resources[&ResourceType::Secret].keys().map(|name| name.to_string()).collect::<Vec<_>>())
    };
    let (common, secrets) = of("{mode: MUTUAL, credentialNames: [rsa, ecdsa], caCertCredentialName: roots}");
    let names: Vec<_> = common["tls_certificate_sds_secret_configs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["name"].clone())
        .collect();
    assert_eq!(names, ["kubernetes://rsa", "kubernetes://ecdsa"]);
    let roots = &common["combined_validation_context"]["validation_context_sds_secret_config"]["name"];
    assert_eq!(roots, "kubernetes://roots-cacert");
    assert_eq!(secrets, ["kubernetes://roots-cacert"]);
    let (hash, spki) = ("ab".repeat(32), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let (common, _) = of(&format!(
        "{{mode: OPTIONAL_MUTUAL, tlsCertificates: [{{serverCertificate: /1, privateKey: /2}}, {{serverCertificate: /3, privateKey: /4}}],
          caCertificates: /ca, caCrl: /crl, verifyCertificateHash: ['{hash}'], verifyCertificateSpki: ['{spki}']}}"
    ));
    assert_eq!(common["tls_certificates"][1]["private_key"]["filename"], "/4");
    let rules = &common["validation_context"];
    assert_eq!(rules["crl"]["filename"], "/crl");
    assert_eq!(rules["verify_certificate_hash"][0], hash.as_str());
    assert_eq!(rules["verify_certificate_spki"][0], spki);
}

#[test]
fn connections_of_bytes_may_be_silent_and_live_as_long_as_their_destination_says() {
    let yaml = |policy: &str| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: db, namespace: m}}
spec: {{clusterIP: 10.9.0.1, selector: {{app: db}}, ports: [{{name: tcp, port: 5432}}, {{name: tcp-old, port: 5433}}]}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: db, namespace: m}}
spec:
  host: db
  trafficPolicy: {policy}
---
"
        )
    };
    let of = |policy: &str| {
        let mut node = node("sidecar", "10.0.0.9", "m");
        node.interception = Interception::Redirect;
        let resources = render(&mesh(&yaml(policy)), &node, false, &Memo::default());
        let proxy = |port: u16| {
            let listener = value(&resources, ResourceType::Listener, &format!("10.9.0.1_{port}"));
            let filters = listener["filter_chains"][0]["filters"].as_array().unwrap().clone();
            filters.last().unwrap()["typed_config"].clone()
        };
        (proxy(5432), proxy(5433))
    };
    let (proxy, other) = of("{connectionPool: {tcp: {idleTimeout: 0s, maxConnectionDuration: 90s}},
      loadBalancer: {consistentHash: {useSourceIp: true}},
      portLevelSettings: [{port: {number: 5433}, connectionPool: {tcp: {idleTimeout: 20s}}}]}");
    assert_eq!(proxy["idle_timeout"], "0s", "never");
    assert_eq!(proxy["max_downstream_connection_duration"], "90s");
    assert!(proxy["hash_policy"][0]["source_ip"].is_object(), "{proxy}");
    assert_eq!(other["idle_timeout"], "20s");
    assert_eq!((other.get("max_downstream_connection_duration"), other.get("hash_policy")), (None, None));
    let (proxy, _) = of("{loadBalancer: {simple: RANDOM}}");
    assert_eq!((proxy.get("idle_timeout"), proxy.get("hash_policy")), (None, None));
}

#[test]
fn a_check_of_endpoints_is_the_clusters() {
    let check = |name: &str, namespace: &str, spec: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1
kind: HealthCheck
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{{spec}}}
---
"
        )
    };
    let a = "host: a.n.svc.cluster.local";
    let one = check("one", "n", "host: a, http: {path: /healthz, expectedStatuses: [200, 202-204]}");
    let rendered = cluster(&one);
    let [health] = rendered["health_checks"].as_array().unwrap().as_slice() else { panic!("{rendered}") };
    assert_eq!(
        (&health["interval"], &health["no_traffic_interval"], &health["timeout"]),
        (&"10s".into(), &"10s".into(), &"1s".into())
    );
    let http = &health["http_health_check"];
    assert_eq!((&http["host"], &http["path"]), (&"a.n.svc.cluster.local".into(), &"/healthz".into()));
    let ranges = json!([{"start": "200", "end": "201"}, {"start": "202", "end": "205"}]);
    assert_eq!(http["expected_statuses"], ranges);
    assert_eq!(health["tls_options"]["alpn_protocols"], json!(["istio-http/1.1", "istio", "http/1.1"]));
    assert_eq!(rendered["ignore_health_on_host_removal"], true);
    assert_eq!(rendered["common_lb_config"]["healthy_panic_threshold"], json!({}));

    // The client's namespace goes first, and there a check that names the port.
    let path = |more: &str| cluster(more)["health_checks"][0]["http_health_check"]["path"].clone();
    let own = |path: &str, more: &str| format!("{a}, http: {{path: {path}}}{more}");
    let root = check("root", "istio-system", &own("/root", ""));
    assert_eq!(path(&root), "/root");
    assert_eq!(path(&(root.clone() + &one)), "/healthz");
    let port = check("port", "n", &own("/port", ", ports: [80]"));
    assert_eq!(path(&(one.clone() + &port)), "/port");
    assert_eq!(path(&(one + &check("other", "n", &own("/other", ", ports: [81]")))), "/healthz");

    // What is said as text goes as bytes; the share of healthy ones goes before the DestinationRule's.
    let tcp = check("tcp", "n", "host: a, minHealthPercent: 40, tcp: {send: PING, receive: [PONG]}");
    let rule = destination_rule("trafficPolicy: {outlierDetection: {minHealthPercent: 20}}");
    let rendered = cluster(&(tcp + &rule));
    let payload = &rendered["health_checks"][0]["tcp_health_check"];
    assert_eq!(
        (&payload["send"]["text"], &payload["receive"][0]["text"]),
        (&"50494e47".into(), &"504f4e47".into())
    );
    assert_eq!(rendered["health_checks"][0]["tls_options"], Value::Null);
    assert_eq!(rendered["common_lb_config"]["healthy_panic_threshold"]["value"], 40.0);

    // gRPC is asked where HTTP/2 is spoken, and nowhere else.
    let grpc = check("grpc", "n", "host: a, grpc: {serviceName: s}");
    assert_eq!(cluster(&grpc)["health_checks"], Value::Null);
    let upgraded = destination_rule("trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}");
    let rendered = cluster(&(grpc + &upgraded));
    assert_eq!(rendered["health_checks"][0]["grpc_health_check"]["service_name"], "s");
    assert_eq!(rendered["health_checks"][0]["tls_options"]["alpn_protocols"][0], "istio-h2");
}

/// The destinations of the one route to `a`, with their weights.
fn shares(world: &World) -> Vec<(String, u64)> {
    let config = value(&rendered(world), ResourceType::Route, "80");
    let hosts = config["virtual_hosts"].as_array().unwrap();
    let host = hosts.iter().find(|h| h["name"] == "a.n.svc.cluster.local:80").unwrap();
    let [route] = host["routes"].as_array().unwrap().as_slice() else { panic!("{host}") };
    let subset = |name: &Value| name.as_str().unwrap().split('|').nth(2).unwrap().to_owned();
    match route["route"]["weighted_clusters"]["clusters"].as_array() {
        Some(all) => all.iter().map(|c| (subset(&c["name"]), c["weight"].as_u64().unwrap())).collect(),
        None => vec![(subset(&route["route"]["cluster"]), 100)],
    }
}

const TRIAL: &str = "
{apiVersion: weft.dev/v1alpha1, kind: TrafficManagement, metadata: {name: t, namespace: n}, spec: {canaryDeployment: {service: a,
  stableVersion: v1.1.0, canaryVersion: v1.2.0, trafficSplit: {stable: 90, canary: 10},
  successCriteria: {errorRateThreshold: 0.5}, rollbackCriteria: {errorRateThreshold: 2}}}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: old, namespace: n}, spec: {address: 10.0.0.1, labels: {app: a, version: v1.1.0}}}
---
";
const NEW: &str = "
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: new, namespace: n}, spec: {address: 10.0.0.2, labels: {app: a, version: v1.2.0}}}
---
";

#[test]
fn a_version_on_trial_gets_its_share() {
    use crate::model::traffic_management::{Share, Shares};
    let (old, new) = ("version-v1-1-0", "version-v1-2-0");
    let split =
        |old_share: u64, new_share: u64| vec![(old.to_owned(), old_share), (new.to_owned(), new_share)];
    let world_of = |more: &str| world(&format!("{TRIAL}{NEW}{more}"));
    let plain = world_of("");
    assert_eq!(shares(&plain), split(90, 10));
    let names: Vec<_> = rendered(&plain)[&ResourceType::Cluster].keys().map(|n| n.to_string()).collect();
    for subset in [old, new] {
        assert!(names.contains(&format!("outbound|80|{subset}|a.n.svc.cluster.local")), "{names:?}");
    }
    // What was decided goes before what is written, as long as it is about these versions.
    let decided = |identity: &str, canary: u32| {
        let share = Share { identity: identity.to_owned(), canary };
        plain.with_shares(Shares([(("n".to_owned(), "t".to_owned()), share)].into()).into())
    };
    let identity = "a.n.svc.cluster.local v1.1.0 v1.2.0";
    assert_eq!(shares(&decided(identity, 25)), split(75, 25));
    assert_eq!(shares(&decided(identity, 0)), [(old.to_owned(), 100)]);
    assert_eq!(shares(&decided(identity, 100)), [(new.to_owned(), 100)]);
    assert_eq!(shares(&decided("another", 25)), split(90, 10));
    assert_ne!(decided(identity, 25).shape_version(), plain.shape_version(), "routes are made anew");
    // Nobody is sent to a version that is not there.
    let early = world(TRIAL);
    assert_eq!(shares(&early), [(old.to_owned(), 100)]);
    assert_ne!(early.shape_version(), plain.shape_version());
    // Rules of the user's own stay: subsets by their names, policies, and routes that name a subset.
    let rule = destination_rule(
        "trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: fresh, labels: {version: v1.2.0}}]",
    );
    let own = world_of(&rule);
    assert_eq!(shares(&own), [(old.to_owned(), 90), ("fresh".to_owned(), 10)]);
    // Clients that have a rule of their own for the service, or for many, take part as well.
    for (name, scope) in [
        ("a.n.svc.cluster.local", ""),
        ("*.n.svc.cluster.local", ""),
        ("a.n.svc.cluster.local", ", workloadSelector: {matchLabels: {}}"),
    ] {
        let theirs = format!(
            "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: own, namespace: m}}, spec: {{host: '{name}', \
             trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}{scope}}}}}\n---\n"
        );
        let world = world_of(
            &(theirs
                + "{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: default, namespace: m}, spec: {egress: [{port: {number: 80, protocol: HTTP, name: http}, captureMode: NONE, hosts: ['*/*']}]}}\n---\n"),
        );
        let seen = render(&world, &node("sidecar", CLIENT, "m"), false, &Memo::default());
        let config = value(&seen, ResourceType::Route, "80");
        let text = config["virtual_hosts"].to_string();
        assert!(text.contains("outbound|80|version-v1-2-0|a.n.svc.cluster.local"), "{name}{scope}: {text}");
        let cluster = value(&seen, ResourceType::Cluster, "outbound|80|version-v1-2-0|a.n.svc.cluster.local");
        assert_eq!(cluster["lb_policy"], "RANDOM", "{name}{scope}");
    }
    let cluster =
        value(&rendered(&own), ResourceType::Cluster, &format!("outbound|80|{old}|a.n.svc.cluster.local"));
    assert_eq!(cluster["lb_policy"], "RANDOM");
    let routes = |rules: &str| shares(&world_of(&(rule.clone() + &virtual_service(rules))));
    assert_eq!(routes("{route: [{destination: {host: a, subset: fresh}}]}"), [("fresh".to_owned(), 100)]);
    assert_eq!(
        routes("{timeout: 1s, route: [{destination: {host: a}}]}"),
        [(old.to_owned(), 90), ("fresh".to_owned(), 10)]
    );
    let both = routes(
        "{route: [{destination: {host: a}, weight: 40}, {destination: {host: a, subset: fresh}, weight: 60}]}",
    );
    assert_eq!(both, [(old.to_owned(), 3600), ("fresh".to_owned(), 400), ("fresh".to_owned(), 6000)]);
}

#[test]
fn a_client_stays_with_its_version_where_it_is_known_by_something() {
    let of = |sticky: &str, more: &str| {
        let trial = TRIAL.replace("trafficSplit", &format!("stickyBy: {sticky}, trafficSplit"));
        let config = value(&rendered(&world(&format!("{trial}{NEW}{more}"))), ResourceType::Route, "80");
        let hosts = config["virtual_hosts"].as_array().unwrap();
        let host = hosts.iter().find(|h| h["name"] == "a.n.svc.cluster.local:80").unwrap();
        let route = &host["routes"][0]["route"];
        (route["weighted_clusters"]["use_hash_policy"].clone(), route["hash_policy"].clone())
    };
    let header = json!({"header": {"header_name": "x-user"}, "terminal": true});
    assert_eq!(of("{httpHeaderName: x-user}", ""), (true.into(), json!([header])));
    let cookie = json!({"cookie": {"name": "session"}, "terminal": true});
    assert_eq!(of("{httpCookieName: session}", "").1, json!([cookie]));
    let address = json!({"connection_properties": {"source_ip": true}, "terminal": true});
    assert_eq!(of("{useSourceIp: true}", "").1, json!([address]));
    // By a rule as well; what a DestinationRule balances by counts where there is no such header.
    let rules = virtual_service("{timeout: 1s, route: [{destination: {host: a}}]}")
        + &destination_rule("trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}");
    let (by_hash, policies) = of("{httpHeaderName: x-user}", &rules);
    assert_eq!((by_hash, &policies[0], policies[0] == policies[1]), (true.into(), &header, false));
    assert_eq!(policies[1]["connection_properties"]["source_ip"], true);
    // Where nothing is split nothing is.
    let pinned = virtual_service("{route: [{destination: {host: b}}]}");
    assert_eq!(of("{httpHeaderName: x-user}", &pinned), (Value::Null, Value::Null));
}

#[test]
fn a_service_is_known_by_its_aliases_and_not_by_those_that_lead_elsewhere() {
    let alias = |name: &str, namespace: &str, target: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{type: ExternalName, externalName: {target}}}\n---\n"
        )
    };
    let more = [
        alias("old-a", "n", "a.n.svc.cluster.local"),
        alias("a", "m", "old-a.n.svc.cluster.local."),
        alias("elsewhere", "n", "example.com"),
        alias("ring", "n", "gnir.n.svc.cluster.local"),
        alias("gnir", "n", "ring.n.svc.cluster.local"),
    ]
    .concat();
    let config = value(&rendered(&world(&more)), ResourceType::Route, "80");
    let hosts = config["virtual_hosts"].as_array().unwrap();
    let host = hosts.iter().find(|h| h["name"] == "a.n.svc.cluster.local:80").unwrap();
    let names = [
        "a.n.svc.cluster.local",
        "a.n.svc.cluster.local.",
        "a",
        "a.n",
        "a.n.svc",
        "a.m.svc.cluster.local",
        "a.m.svc.cluster.local.",
        "a.m",
        "a.m.svc",
        "old-a.n.svc.cluster.local",
        "old-a.n.svc.cluster.local.",
        "old-a",
        "old-a.n",
        "old-a.n.svc",
    ];
    assert_eq!(host["domains"], json!(names));
    let others: Vec<_> = hosts.iter().map(|h| h["name"].as_str().unwrap()).collect();
    assert_eq!(others, ["a.n.svc.cluster.local:80", "b.n.svc.cluster.local:80", "allow_any"]);
}

#[test]
fn a_port_of_udp_takes_nothing_from_that_of_tcp_with_its_number() {
    let service = "apiVersion: v1
kind: Service
metadata: {name: both, namespace: n}
spec:
  selector: {app: both}
  ports:
    - {name: quic, port: 443, targetPort: 8444, protocol: UDP}
    - {name: tcp, port: 443, targetPort: 8443}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: w, namespace: n}
spec: {address: 10.0.0.9, labels: {app: both}}
---
";
    let world = world(service);
    let service = world.service("both.n.svc.cluster.local", "n").unwrap();
    let at: Vec<_> = service.ports.iter().map(|p| service.endpoint_port(p, &service.endpoints[0])).collect();
    assert_eq!(at, [Some(8443)]);
}
