//! Edits at random: objects as they may be written, and how they come and go.

use fastrand::Rng;
use serde_json::{Value, json};

use crate::ingest::cluster::testing::Cluster;

const NAMESPACES: [&str; 3] = ["a", "b", "istio-system"];
/// Pods of the test, whose addresses are 10.0.0.0 and on.
const PODS: u32 = 5;

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
/// What a Secret holds; nobody here reads it.
const PEM: &str = "pem";

/// The Gateway of the Gateway API, which is not the only kind of that name.
pub(super) const API_GATEWAY: &str = "Gateway.gateway.networking.k8s.io";

fn pick<'t>(random: &mut Rng, from: &[&'t str]) -> &'t str {
    from[random.usize(..from.len())]
}

fn object(group: &str, kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": group, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn service_host(random: &mut Rng) -> String {
    let (service, namespace) = (random.u32(..3), pick(random, &["a", "b"]));
    format!("s{service}.{namespace}.svc.cluster.local")
}

/// An object of a kind, as it may be written.
pub(super) fn written(random: &mut Rng, kind: &str) -> Value {
    let namespace = pick(random, &["a", "b"]);
    let anywhere = pick(random, &NAMESPACES);
    let number = random.u32(..3);
    match kind {
        "Service" => {
            let name = format!("s{number}");
            let ip = if random.u32(..4) == 0 { "None".to_owned() } else { format!("10.96.{number}.1") };
            let port = pick(random, &["http", "tcp", "https", "web"]);
            let mut made = object(
                "v1",
                kind,
                namespace,
                &name,
                json!({
                    "clusterIP": ip, "selector": {"app": name}, "ports": [
                        {"name": port, "port": 80, "targetPort": "http", "protocol": "TCP"},
                        {"name": "grpc", "port": 81 + random.u32(..2), "protocol": "TCP"}],
                }),
            );
            if random.u32(..4) == 0 {
                made["metadata"]["annotations"] =
                    json!({"networking.istio.io/exportTo": pick(random, &[".", "b", "*"])});
            }
            if random.u32(..3) == 0 {
                as_gateway_of_a_network(random, &mut made);
            }
            made
        }
        "Pod" => pod(random),
        "EndpointSlice" => {
            let service = format!("s{number}");
            let there: Vec<u32> = (0..PODS).filter(|_| random.bool()).collect();
            let endpoints: Vec<_> = there
                .into_iter()
                .map(|n| {
                    json!({"addresses": [format!("10.0.0.{n}")],
                        "conditions": {"ready": random.u32(..4) > 0, "serving": random.bool(), "terminating": random.bool()},
                        "targetRef": {"kind": "Pod", "name": format!("p{n}"), "namespace": namespace}})
                })
                .collect();
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": kind, "addressType": "IPv4",
                "metadata": {"name": format!("{service}-{}", random.u32(..2)), "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": service}},
                "endpoints": endpoints, "ports": [
                    {"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "grpc", "port": 9090, "protocol": "TCP"}]})
        }
        "WorkloadEntry" => object(
            "networking.istio.io/v1",
            kind,
            namespace,
            &format!("we{number}"),
            json!({
                "address": format!("10.0.0.{}", random.u32(..8)), "ports": {"http": 8080 + random.u32(..2)},
                "labels": {"app": format!("s{}", random.u32(..3)), "version": pick(random, &["v1", "v2"])},
                "serviceAccount": pick(random, &["", "one", "two"]),
                "locality": pick(random, &["", "eu/1", "us/1"]), "weight": 1 + random.u32(..3),
                "network": pick(random, &["", "", "one", "two"]),
            }),
        ),
        "ServiceEntry" => {
            let host = match random.u32(..4) {
                0 => service_host(random),
                1 => "*.wild.example".to_owned(),
                _ => format!("e{number}.example"),
            };
            let wild = host.starts_with('*');
            let resolution = if wild { "NONE" } else { pick(random, &["STATIC", "DNS"]) };
            let mut spec = json!({
                "hosts": [host], "resolution": resolution, "location": pick(random, &["MESH_EXTERNAL", "MESH_INTERNAL"]),
                "ports": [{"number": 80, "name": pick(random, &["http", "tcp"]), "protocol": pick(random, &["HTTP", "TCP"])}],
            });
            if resolution == "STATIC" {
                match random.u32(..3) {
                    0 => spec["endpoints"] = json!([{"address": format!("10.1.0.{number}")}]),
                    n => {
                        let app = format!("s{}", n - 1);
                        spec["workloadSelector"] = json!({"labels": {"app": app}});
                    }
                }
            }
            if resolution == "DNS" && random.bool() {
                spec["endpoints"] = json!([{"address": format!("h{number}.example"), "labels": {"app": format!("s{}", random.u32(..3))},
                    "serviceAccount": pick(random, &["", "one"])}]);
            }
            if random.bool() {
                spec["addresses"] = json!([format!("10.97.0.{number}")]);
            }
            if random.u32(..4) == 0 {
                spec["exportTo"] = json!([pick(random, &[".", "*"])]);
            }
            object("networking.istio.io/v1", kind, namespace, &format!("se{number}"), spec)
        }
        "VirtualService" => {
            let host = service_host(random);
            let mut route = json!({"route": [{"destination": {"host": service_host(random)}}]});
            if random.bool() {
                route["match"] = json!([{"headers": {"x": {"exact": format!("{number}")}}}]);
            }
            if random.u32(..3) == 0 {
                route["match"] = json!([{"sourceLabels": {"app": format!("s{number}")}}]);
            }
            if random.bool() {
                route["timeout"] = json!(format!("{}s", 1 + random.u32(..3)));
            }
            let mut spec = json!({"hosts": [host], "http": [route]});
            if random.u32(..3) == 0 {
                spec["gateways"] = json!(["mesh", "a/gw"]);
            }
            if random.u32(..4) == 0 {
                spec["exportTo"] = json!([pick(random, &[".", "b", "*"])]);
            }
            object("networking.istio.io/v1", kind, namespace, &format!("vs{number}"), spec)
        }
        "DestinationRule" => {
            let host = if random.u32(..4) == 0 { "*.cluster.local".to_owned() } else { service_host(random) };
            let mut spec = json!({"host": host});
            if random.bool() {
                spec["subsets"] = json!([{"name": "v1", "labels": {"version": "v1"}}]);
            }
            match random.u32(..4) {
                0 => {
                    spec["trafficPolicy"] =
                        json!({"tls": {"mode": pick(random, &["DISABLE", "ISTIO_MUTUAL"])}})
                }
                1 => {
                    spec["trafficPolicy"] =
                        json!({"loadBalancer": {"simple": pick(random, &["ROUND_ROBIN", "PASSTHROUGH"])}});
                }
                2 => {
                    spec["trafficPolicy"] = json!({"outlierDetection": {"consecutive5xxErrors": 3},
                        "loadBalancer": {"localityLbSetting": {"enabled": true}}});
                    if random.bool() {
                        spec["trafficPolicy"]["loadBalancer"]["localityLbSetting"]["failoverPriority"] =
                            json!(["topology.istio.io/network"]);
                    }
                }
                _ => {}
            }
            if random.u32(..4) == 0 {
                spec["workloadSelector"] = json!({"matchLabels": {"app": format!("s{number}")}});
            }
            object("networking.istio.io/v1", kind, anywhere, &format!("dr{number}"), spec)
        }
        "Sidecar" => {
            let hosts = match random.u32(..3) {
                0 => json!(["./*"]),
                1 => json!(["./*", "b/s1.b.svc.cluster.local"]),
                _ => json!(["*/*"]),
            };
            let mut spec = json!({"egress": [{"hosts": hosts}]});
            if random.u32(..3) == 0 {
                spec["workloadSelector"] = json!({"labels": {"app": format!("s{number}")}});
            }
            if random.u32(..3) == 0 {
                spec["outboundTrafficPolicy"] = json!({"mode": "REGISTRY_ONLY"});
            }
            object("networking.istio.io/v1", kind, namespace, &format!("sc{number}"), spec)
        }
        "Gateway" => object(
            "networking.istio.io/v1",
            kind,
            "a",
            "gw",
            json!({
                "selector": {"istio": "ingress"},
                "servers": [
                    {"port": {"number": 80 + number, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]},
                    {"port": {"number": 15443, "name": "tls", "protocol": "TLS"}, "hosts": [pick(random, &["*.local", "b/*"])],
                        "tls": {"mode": pick(random, &["AUTO_PASSTHROUGH", "PASSTHROUGH"])}}],
            }),
        ),
        "PeerAuthentication" => {
            let mut spec = json!({"mtls": {"mode": pick(random, &["STRICT", "PERMISSIVE", "DISABLE"])}});
            if anywhere != "istio-system" && random.bool() {
                spec["selector"] = json!({"matchLabels": {"app": format!("s{number}")}});
            }
            object("security.istio.io/v1", kind, anywhere, &format!("pa{number}"), spec)
        }
        "AuthorizationPolicy" => object(
            "security.istio.io/v1",
            kind,
            anywhere,
            &format!("ap{number}"),
            json!({
                "action": pick(random, &["ALLOW", "DENY"]),
                "selector": {"matchLabels": {"app": format!("s{number}")}},
                "rules": [{"from": [{"source": {"namespaces": [namespace]}}]}],
            }),
        ),
        "ConfigMap" => json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": format!("outboundTrafficPolicy: {{mode: {}}}\ndefaultServiceExportTo: [\"{}\"]\n",
                pick(random, &["ALLOW_ANY", "REGISTRY_ONLY"]), pick(random, &["*", "."])),
                "meshNetworks": networks(random)}}),
        _ => more(random, kind),
    }
}

/// The same for what stands for other objects, or says how requests are seen and limited.
fn more(random: &mut Rng, kind: &str) -> Value {
    let namespace = pick(random, &["a", "b"]);
    let anywhere = pick(random, &NAMESPACES);
    let number = random.u32(..3);
    let app = format!("s{number}");
    let selected = json!({"matchLabels": {"app": app}});
    match kind {
        // Another name for a service, with a name of its own or with that of a service that was.
        "ExternalName" => {
            let name = if random.bool() { app } else { format!("other{number}") };
            let leads = if random.u32(..4) == 0 {
                format!("other{number}.a.svc.cluster.local")
            } else {
                service_host(random)
            };
            object("v1", "Service", namespace, &name, json!({"type": "ExternalName", "externalName": leads}))
        }
        "Namespace" => {
            let mut labels = json!({"expose": pick(random, &["yes", "no"])});
            if random.u32(..3) == 0 {
                labels["topology.istio.io/network"] = pick(random, &["one", "two"]).into();
            }
            json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": anywhere, "labels": labels}})
        }
        "Secret" => json!({"apiVersion": "v1", "kind": kind, "type": "kubernetes.io/tls",
            "metadata": {"name": "pair", "namespace": namespace},
            "stringData": {"tls.crt": format!("{PEM}{number}"), "tls.key": format!("{PEM}{number}")}}),
        "RequestAuthentication" => object(
            "security.istio.io/v1",
            kind,
            anywhere,
            &format!("ra{number}"),
            json!({"jwtRules": [{"issuer": format!("i{number}"), "jwks": r#"{"keys": [{"kty": "RSA", "n": "sXchYw", "e": "AQAB"}]}"#}]}),
        ),
        "Telemetry" => {
            let mut spec = json!({"metrics": [{"overrides": [{
                "match": {"metric": pick(random, &["ALL_METRICS", "REQUEST_COUNT"])},
                "disabled": random.bool()}]}]});
            if random.bool() {
                spec["accessLogging"] = json!([{"disabled": random.bool()}]);
            }
            if anywhere != "istio-system" && random.bool() {
                spec["selector"] = selected;
            }
            object("telemetry.istio.io/v1", kind, anywhere, &format!("t{number}"), spec)
        }
        "RateLimit" => object(
            "weft.dev/v1alpha1",
            kind,
            namespace,
            &format!("rl{number}"),
            json!({"selector": selected, "rules": [
                {"name": "all", "local": {"requests": 1 + number, "per": "1s"}}]}),
        ),
        "HealthCheck" => object(
            "weft.dev/v1alpha1",
            kind,
            namespace,
            &format!("hc{number}"),
            json!({"host": app, "interval": format!("{}s", 1 + random.u32(..3)), "tcp": {}}),
        ),
        "ServiceMeshConfig" => {
            let mut one = json!({"name": app});
            if random.bool() {
                one["trafficPolicy"] = json!({"loadBalancer": pick(random, &["RANDOM", "ROUND_ROBIN"])});
            }
            if random.bool() {
                one["trafficPolicy"]["circuitBreaker"] = json!({"consecutiveErrors": 1 + number});
            }
            if random.bool() {
                one["securityPolicy"] = json!({"mtlsMode": pick(random, &["STRICT", "PERMISSIVE"])});
            }
            object("weft.dev/v1alpha1", kind, namespace, &format!("smc{number}"), json!({"services": [one]}))
        }
        "TrafficManagement" => object(
            "weft.dev/v1alpha1",
            kind,
            namespace,
            &format!("tm{}", random.u32(..2)),
            json!({"canaryDeployment": {"service": app, "stableVersion": "v1", "canaryVersion": "v2",
                "trafficSplit": {"stable": 90, "canary": 10}, "successCriteria": {"errorRateThreshold": 1},
                "rollbackCriteria": {"errorRateThreshold": 2}}}),
        ),
        "GatewayClass" => json!({"apiVersion": GATEWAY_API, "kind": kind, "metadata": {"name": "weft"},
            "spec": {"controllerName": pick(random, &["weft.dev/gateway-controller", "else.where/controller"])}}),
        API_GATEWAY => {
            let from = pick(random, &["Same", "All", "Selector"]);
            let mut allowed = json!({"from": from});
            if from == "Selector" {
                allowed["selector"] = json!({"matchLabels": {"expose": "yes"}});
            }
            let mut listener = json!({"name": "l", "port": 80 + number, "protocol": "HTTP", "allowedRoutes": {"namespaces": allowed}});
            if random.u32(..3) == 0 {
                listener["protocol"] = "HTTPS".into();
                listener["tls"] =
                    json!({"certificateRefs": [{"name": "pair", "namespace": pick(random, &["a", "b"])}]});
            }
            let mut made = object(
                GATEWAY_API,
                "Gateway",
                "a",
                "api",
                json!({"gatewayClassName": "weft", "listeners": [listener]}),
            );
            if random.bool() {
                made["spec"]["addresses"] = json!([{"type": "Hostname", "value": "s0.a.svc.cluster.local"}]);
            }
            made
        }
        "HTTPRoute" | "GRPCRoute" => {
            let parent = match random.u32(..3) {
                0 => json!({"name": app, "kind": "Service", "group": ""}),
                _ => json!({"name": "api", "namespace": "a"}),
            };
            let backend = json!({"name": format!("s{}", random.u32(..3)), "namespace": pick(random, &["a", "b"]), "port": 80});
            let mut spec = json!({"parentRefs": [parent], "rules": [{"backendRefs": [backend]}]});
            if random.bool() {
                spec["rules"][0]["matches"] =
                    json!([{"headers": [{"name": "x", "value": format!("{number}")}]}]);
            }
            object(GATEWAY_API, kind, namespace, &format!("r{number}"), spec)
        }
        _ => object(
            "gateway.networking.k8s.io/v1beta1",
            "ReferenceGrant",
            namespace,
            "g",
            json!({
                "from": [{"group": "gateway.networking.k8s.io", "kind": pick(random, &["HTTPRoute", "Gateway"]), "namespace": pick(random, &["a", "b"])}],
                "to": [{"group": "", "kind": pick(random, &["Service", "Secret"])}],
            }),
        ),
    }
}

/// Makes a Service one of those before a network's gateways.
fn as_gateway_of_a_network(random: &mut Rng, service: &mut Value) {
    service["metadata"]["labels"] = json!({"topology.istio.io/network": pick(random, &["one", "two"])});
    if random.bool() {
        service["metadata"]["labels"]["networking.istio.io/gatewayPort"] = "443".into();
    }
    if random.bool() {
        service["spec"]["externalIPs"] = json!([format!("203.0.113.{}", random.u32(..3))]);
    }
    let ingress: Vec<_> =
        (0..random.u32(..3)).map(|_| json!({"ip": format!("203.0.113.{}", random.u32(..3))})).collect();
    service["status"] = json!({"loadBalancer": {"ingress": ingress}});
}

/// Networks as the mesh's settings have them.
fn networks(random: &mut Rng) -> String {
    let endpoints = pick(random, &["", "{fromCidr: 10.0.0.0/30}", "{fromRegistry: Kubernetes}"]);
    let gateways = pick(
        random,
        &[
            "",
            "{address: 198.51.100.1, port: 15443}",
            "{address: 198.51.100.1, port: 15443}, {address: 198.51.100.2, port: 443}",
        ],
    );
    format!(
        "networks: {{{}: {{endpoints: [{endpoints}], gateways: [{gateways}]}}}}",
        pick(random, &["one", "two"])
    )
}

fn pod(random: &mut Rng) -> Value {
    let n = random.u32(..PODS);
    let namespace = pick(random, &["a", "b"]);
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{n}"), "namespace": namespace, "labels": {
            "app": format!("s{}", random.u32(..3)), "version": pick(random, &["v1", "v2"]),
            "istio": pick(random, &["ingress", "none"]),
            "security.istio.io/tlsMode": pick(random, &["istio", "disabled"])}},
        "spec": {"serviceAccountName": pick(random, &["one", "two"]), "hostNetwork": random.u32(..6) == 0,
            "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": format!("10.0.0.{n}"),
            "conditions": [{"type": "Ready", "status": pick(random, &["True", "True", "False"])}]},
    });
    if random.u32(..3) == 0 {
        pod["metadata"]["labels"]["topology.istio.io/network"] = pick(random, &["one", "two"]).into();
    }
    pod
}

pub(super) const KINDS: [&str; 26] = [
    "Service",
    "Pod",
    "EndpointSlice",
    "WorkloadEntry",
    "ServiceEntry",
    "VirtualService",
    "DestinationRule",
    "Sidecar",
    "Gateway",
    "PeerAuthentication",
    "AuthorizationPolicy",
    "ConfigMap",
    "ExternalName",
    "Namespace",
    "Secret",
    "RequestAuthentication",
    "Telemetry",
    "RateLimit",
    "HealthCheck",
    "ServiceMeshConfig",
    "TrafficManagement",
    "GatewayClass",
    API_GATEWAY,
    "HTTPRoute",
    "GRPCRoute",
    "ReferenceGrant",
];

/// What changes most: what stands behind services.
pub(super) const LIVELY: [&str; 4] = ["Pod", "EndpointSlice", "EndpointSlice", "WorkloadEntry"];

pub(super) fn edit(random: &mut Rng, cluster: &mut Cluster) {
    let kind = if random.bool() { pick(random, &LIVELY) } else { pick(random, &KINDS) };
    if random.u32(..4) == 0 {
        cluster.delete(if kind == "ExternalName" { "Service" } else { kind }, random);
    } else {
        let made = written(random, kind);
        cluster.put(made);
    }
}
