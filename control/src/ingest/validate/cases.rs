//! Each rule, by an object that breaks it: the field that is named and the words that say why.

use super::super::load_str;
use crate::model::{EffectivePeerMode, Labels};

/// All findings of an object whose spec is `spec`, as `path: reason`, with warnings marked.
fn findings(kind: &str, spec: &str) -> Vec<String> {
    let security = ["PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication"].contains(&kind);
    let group = if security { "security.istio.io/v1" } else { "networking.istio.io/v1" };
    let api = match kind {
        "Service" => "v1",
        "AcmeCertificate" | "IPDenyList" | "ExternalCredential" | "RateLimit" | "Compression"
        | "TrafficManagement" | "ServiceMeshConfig" | "HealthCheck" | "MetricDefinition" => {
            "weft.dev/v1alpha1"
        }
        "Telemetry" => "telemetry.istio.io/v1",
        "ProxyConfig" => "networking.istio.io/v1beta1",
        _ => group,
    };
    let text =
        format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: x, namespace: n}}\nspec: {spec}\n");
    let outcome = load_str("x.yaml", &text);
    outcome
        .diagnostics
        .iter()
        .map(|diagnostic| {
            let mark = if diagnostic.is_error() { "" } else { "warning: " };
            format!("{mark}{}: {}", diagnostic.path.as_deref().unwrap_or("-"), diagnostic.reason)
        })
        .collect()
}

pub(super) fn check(kind: &str, cases: &[(&str, &str)]) {
    for (spec, expected) in cases {
        let found = findings(kind, spec);
        if expected.is_empty() {
            assert_eq!(found, [] as [&str; 0], "{spec}");
        } else {
            assert!(
                found.iter().any(|text| text.starts_with(expected)),
                "{spec}\nwanted {expected}\ngot {found:#?}"
            );
        }
    }
}

#[test]
fn virtual_services() {
    let route = "route: [{destination: {host: a}}]";
    let with = |rule: &str| format!("{{hosts: [a], http: [{{{rule}}}]}}");
    let routed = |more: &str| with(&format!("{route}, {more}"));
    let cases = [
        (with(route), ""),
        (
            format!("{{hosts: [a], gateways: [n/web~https], http: [{{{route}}}]}}"),
            "spec.gateways: \"n/web~https\" is no name",
        ),
        (format!("{{http: [{{{route}}}]}}"), ""),
        (format!("{{gateways: [g], http: [{{{route}}}]}}"), "spec.gateways: not allowed without spec.hosts"),
        ("{http: [{delegate: {name: b}}]}".to_owned(), "spec.http[0].delegate: a delegate cannot delegate"),
        (with("delegate: {name: b}"), ""),
        (with("delegate: {}"), "spec.http[0].delegate.name: missing"),
        (routed("delegate: {name: b}"), "spec.http[0].delegate: stands beside an action"),
        (routed("fault: {}"), "spec.http[0].fault: empty"),
        (routed("fault: {delay: {percentage: {value: 1}}}"), "spec.http[0].fault.delay.fixedDelay: missing"),
        (
            routed("fault: {delay: {fixedDelay: 1us, percentage: {value: 1}}}"),
            "spec.http[0].fault.delay.fixedDelay: ",
        ),
        (routed("fault: {delay: {fixedDelay: 1s}}"), "warning: spec.http[0].fault.delay: no percentage"),
        (
            routed("fault: {delay: {fixedDelay: 1s, percent: 5}}"),
            "warning: spec.http[0].fault.delay.percent: deprecated",
        ),
        (
            routed("fault: {delay: {exponentialDelay: 1s}}"),
            "spec.http[0].fault.delay.exponentialDelay: not supported",
        ),
        (routed("fault: {abort: {percentage: {value: 1}}}"), "spec.http[0].fault.abort: no status"),
        (
            routed("fault: {abort: {httpStatus: 600, percentage: {value: 1}}}"),
            "spec.http[0].fault.abort.httpStatus: 600",
        ),
        (
            routed("fault: {abort: {grpcStatus: UNAVAILABEL, percentage: {value: 1}}}"),
            "spec.http[0].fault.abort.grpcStatus: unknown",
        ),
        (
            routed("fault: {abort: {httpStatus: 500, percentage: {value: 0.00001}}}"),
            "spec.http[0].fault.abort.percentage: ",
        ),
        (with("redirect: {uri: /x}, fault: {abort: {httpStatus: 500}}"), "spec.http[0].fault: a redirect"),
        (routed("mirror: {host: b}"), ""),
        (routed("mirror: {host: b}, mirrors: [{destination: {host: c}}]"), "spec.http[0].mirror: both"),
        (
            routed("mirrors: [{destination: {host: c}, percentage: {value: 101}}]"),
            "spec.http[0].mirrors[0].percentage: 101",
        ),
        (routed("mirror: {host: b}, mirrorPercent: 5"), "warning: spec.http[0].mirrorPercent: deprecated"),
        (routed("mirrorPercentage: {value: 5}"), "spec.http[0].mirrorPercentage: there is no mirror"),
        (
            routed("corsPolicy: {allowOrigins: [{exact: 'https://a'}], allowMethods: ['G T']}"),
            "spec.http[0].corsPolicy.allowMethods[0]",
        ),
        (routed("corsPolicy: {allowOrigins: [{regex: '(('}]}"), "spec.http[0].corsPolicy.allowOrigins[0]"),
        (
            routed("corsPolicy: {allowOrigin: ['*']}"),
            "warning: spec.http[0].corsPolicy.allowOrigin: deprecated",
        ),
        (routed("corsPolicy: {maxAge: 1500ms}"), "spec.http[0].corsPolicy.maxAge: browsers"),
        (format!("{{hosts: [\"*\"], http: [{{{route}}}]}}"), "spec.hosts[0]: the host * is not allowed"),
        (format!("{{hosts: [\"*\"], gateways: [g], http: [{{{route}}}]}}"), ""),
        (
            format!("{{hosts: [a, a.n.svc.cluster.local], http: [{{{route}}}]}}"),
            "spec.hosts[1]: a.n.svc.cluster.local is given twice",
        ),
        ("{hosts: [a]}".to_owned(), "spec: no rules"),
        (with("timeout: 1s"), "spec.http[0]: no action"),
        (routed("redirect: {uri: /x}"), "spec.http[0]: more than one action"),
        (
            with("redirect: {uri: /x}, rewrite: {uri: /y}"),
            "spec.http[0].rewrite: a redirect cannot be rewritten",
        ),
        (with("redirect: {uri: /x, redirectCode: 200}"), "spec.http[0].redirect.redirectCode: 200"),
        (with("redirect: {scheme: ftp}"), "spec.http[0].redirect.scheme"),
        (with("directResponse: {status: 199}"), "spec.http[0].directResponse.status: 199"),
        (with("directResponse: {status: 503, body: {string: later}}"), ""),
        (
            with("directResponse: {status: 200, body: {bytes: '%%'}}"),
            "spec.http[0].directResponse.body.bytes: not base64",
        ),
        (
            with("route: [{destination: {host: a}}, {destination: {host: b}}]"),
            "spec.http[0].route: the weights",
        ),
        (with("route: [{destination: {host: a}, weight: 90}, {destination: {host: b}, weight: 10}]"), ""),
        (with("route: [{destination: {host: ''}}]"), "spec.http[0].route[0].destination.host: missing"),
        (
            with("route: [{destination: {host: a, port: {number: 0}}}]"),
            "spec.http[0].route[0].destination.port.number",
        ),
        (
            routed("retries: {attempts: 0, retryOn: 5xx}"),
            "spec.http[0].retries.attempts: 0 turns retries off",
        ),
        (
            routed("retries: {attempts: 2, retryOn: '5xx,503,gateway-errors'}"),
            "spec.http[0].retries.retryOn: unknown condition \"gateway-errors\"",
        ),
        (routed("retries: {attempts: 2, perTryTimeout: 100us}"), "spec.http[0].retries.perTryTimeout"),
        (routed("timeout: 0s"), ""),
        (routed("match: [{uri: {regex: '(('}}]"), "spec.http[0].match[0].uri: not a regular expression"),
        (routed("match: [{uri: {exact: ''}}]"), "spec.http[0].match[0].uri: an empty text"),
        (routed("match: [{headers: {'a b': {exact: c}}}]"), "spec.http[0].match[0].headers.a b"),
        (routed("match: [{headers: {x-user: {}}}]"), ""),
        (
            routed("headers: {request: {set: {x-a: '50%'}}}"),
            "spec.http[0].headers.request.set.x-a: the format ends inside a command",
        ),
        (
            routed("headers: {response: {add: {x-a: '%DOWNSTREAM_REMOTE_ADDRESS% %RESPONSE_COD%'}}}"),
            "spec.http[0].headers.response.add.x-a: unknown command operator %RESPONSE_COD%",
        ),
        (routed("headers: {response: {add: {x-a: '%DOWNSTREAM_REMOTE_ADDRESS% 50%%'}}}"), ""),
        (
            routed("headers: {request: {set: {x-a: b}, remove: ['a b']}}"),
            "spec.http[0].headers.request.remove",
        ),
        (format!("{{hosts: [a], http: [{{{route}}}, {{{route}}}]}}"), "warning: spec.http[1]: never reached"),
        (
            format!("{{hosts: [a], tls: [{{match: [{{sniHosts: [b.com]}}], {route}}}]}}"),
            "spec.tls[0].match[0].sniHosts[0]: b.com is not among",
        ),
        (
            format!(
                "{{hosts: [\"*.b.com\"], tls: [{{match: [{{sniHosts: [a.b.com], port: 443}}], {route}}}]}}"
            ),
            "",
        ),
        (
            "{hosts: [a], tcp: [{match: [{destinationSubnets: [x]}]}]}".to_owned(),
            "spec.tcp[0].route: missing",
        ),
        (
            format!("{{hosts: [a], exportTo: [., .], http: [{{{route}}}]}}"),
            "spec.exportTo[1]: \".\" is given twice",
        ),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(spec, expected)| (spec.as_str(), *expected)).collect();
    check("VirtualService", &cases);
}

#[test]
fn destination_rules() {
    check(
        "DestinationRule",
        &[
            ("{host: a}", ""),
            ("{}", "spec.host: missing"),
            ("{host: a, trafficPolicy: {}}", "spec.trafficPolicy: empty"),
            (
                "{host: a, subsets: [{name: s, labels: {v: a}}, {name: s, labels: {v: b}}]}",
                "spec.subsets[1].name",
            ),
            ("{host: a, subsets: [{name: s}]}", "warning: spec.subsets[0]: without labels"),
            (
                "{host: a, trafficPolicy: {outlierDetection: {interval: 0s}}}",
                "spec.trafficPolicy.outlierDetection.interval",
            ),
            (
                "{host: a, trafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}}",
                "spec.trafficPolicy.outlierDetection.maxEjectionPercent",
            ),
            (
                "{host: a, trafficPolicy: {outlierDetection: {consecutiveErrors: 3}}}",
                "warning: spec.trafficPolicy.outlierDetection.consecutiveErrors: deprecated",
            ),
            ("{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x}}}}", ""),
            ("{host: a, trafficPolicy: {proxyProtocol: {version: V2}}}", ""),
            (
                "{host: a, trafficPolicy: {proxyProtocol: {version: V3}}}",
                "spec.trafficPolicy.proxyProtocol.version",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {warmup: {duration: 30s, minimumPercent: 5, aggression: 1.5}}}}",
                "",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {warmup: {minimumPercent: 5}}}}",
                "spec.trafficPolicy.loadBalancer.warmup.duration: missing",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {warmup: {duration: 1s, minimumPercent: 101}}}}",
                "spec.trafficPolicy.loadBalancer.warmup.minimumPercent: 101",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {warmup: {duration: 1s, aggression: 0}}}}",
                "spec.trafficPolicy.loadBalancer.warmup.aggression: 0",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM, warmup: {duration: 1s}}}}",
                "warning: spec.trafficPolicy.loadBalancer: this balancer does not warm endpoints up",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {warmupDurationSecs: 1s}}}",
                "warning: spec.trafficPolicy.loadBalancer.warmupDurationSecs: deprecated",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {warmupDurationSecs: 1s, warmup: {duration: 1s}}}}",
                "spec.trafficPolicy.loadBalancer.warmupDurationSecs: stands beside",
            ),
            (
                "{host: a, workloadSelector: {matchLabels: {x: y}}, trafficPolicy: {tls: {mode: MUTUAL, credentialName: c}}}",
                "",
            ),
            (
                "{host: a, trafficPolicy: {tls: {mode: SIMPLE, credentialName: c}}}",
                "warning: spec: credentialName counts at gateways only",
            ),
            (
                "{host: a, trafficPolicy: {tls: {mode: SIMPLE, credentialName: c, caCrl: /x}}}",
                "spec.trafficPolicy.tls.caCrl: given beside credentialName",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {httpHeaderName: x}}}}",
                "spec.trafficPolicy.loadBalancer: both simple and consistentHash",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {}}}}",
                "spec.trafficPolicy.loadBalancer.consistentHash: nothing to hash",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, httpHeaderName: x}}}}",
                "spec.trafficPolicy.loadBalancer.consistentHash: more than one",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x, maglev: {tableSize: 100}}}}}",
                "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 100 is no prime",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x, maglev: {}, ringHash: {}}}}}",
                "spec.trafficPolicy.loadBalancer.consistentHash: both ringHash and maglev",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x, minimumRingSize: 9}}}}",
                "warning: spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize: deprecated",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {ttl: 0s}}}}}",
                "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.name: missing",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: c, attributes: [{name: A}, {name: a}]}}}}}",
                "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[1].name: \"a\" is given twice",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}}}",
                "warning: spec.trafficPolicy.loadBalancer.localityLbSetting: failover without outlierDetection",
            ),
            (
                "{host: a, trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: a, to: a}]}}}}",
                "spec.trafficPolicy.loadBalancer.localityLbSetting.failover[0]: a region cannot",
            ),
            (
                "{host: a, trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: a/b, to: c}]}}}}",
                "spec.trafficPolicy.loadBalancer.localityLbSetting.failover[0].from: \"a/b\" is no region",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {a: 99}}]}}}}",
                "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: the shares add up to 99",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {a/b: 50, a: 50}}]}}}}",
                "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to.a/b: a/b overlaps a",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: 'a/*/c', to: {a: 100}}]}}}}",
                "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].from: \"a/*/c\" is no locality",
            ),
            (
                "{host: a, trafficPolicy: {connectionPool: {http: {http2KeepAlive: {interval: 1s}}}}}",
                "spec.trafficPolicy.connectionPool.http.http2KeepAlive.timeout: missing",
            ),
            ("{host: a, trafficPolicy: {tls: {mode: MUTUAL}}}", "spec.trafficPolicy.tls.clientCertificate"),
            (
                "{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, caCertificates: x}}}",
                "spec.trafficPolicy.tls.caCertificates: not allowed",
            ),
            ("{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}", ""),
            (
                "{host: a, trafficPolicy: {connectionPool: {tcp: {tcpKeepalive: {time: 1500ms}}}}}",
                "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.time",
            ),
            (
                "{host: a, trafficPolicy: {connectionPool: {http: {useClientProtocol: true, h2UpgradePolicy: UPGRADE}}}}",
                "spec.trafficPolicy.connectionPool.http: the client",
            ),
            (
                "{host: a, trafficPolicy: {portLevelSettings: [{loadBalancer: {simple: RANDOM}}]}}",
                "spec.trafficPolicy.portLevelSettings[0].port.number",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {zoneAwareLbSetting: {enabled: true}}}}",
                "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting: not supported by Weft yet",
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {simple: LEAST_CONNS}}}",
                "spec.trafficPolicy.loadBalancer.simple: unknown value",
            ),
            (
                "{host: a, exportTo: ['*'], workloadSelector: {matchLabels: {a: b}}}",
                "spec.exportTo: a rule with a workloadSelector",
            ),
            ("{host: a, workloadSelector: {labels: {a: b}}}", "spec.workloadSelector.labels: unknown field"),
        ],
    );
}

#[test]
fn gateways() {
    let http = "port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']";
    let https = "port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*']";
    let with = |servers: &str| format!("{{selector: {{istio: gw}}, servers: [{servers}]}}");
    let cases = [
        (with(&format!("{{{http}}}")), ""),
        ("{selector: {a: b}}".to_owned(), "spec.servers: missing"),
        (format!("{{servers: [{{{http}}}]}}"), "warning: spec.selector"),
        (with(&format!("{{{http}}}, {{{http}}}")), "spec.servers[1].port.name: \"http\" is given twice"),
        (
            with("{port: {number: 80, name: http, protocol: HTPT}, hosts: ['*']}"),
            "spec.servers[0].port.protocol: unknown",
        ),
        (with("{port: {number: 80, name: http, protocol: HTTP}}"), "spec.servers[0].hosts: missing"),
        (
            with("{port: {number: 80, name: http, protocol: HTTP}, hosts: ['/a.com']}"),
            "spec.servers[0].hosts[0]",
        ),
        (with(&format!("{{{https}}}")), "spec.servers[0].tls: missing"),
        (with(&format!("{{{http}, tls: {{httpsRedirect: true}}}}")), ""),
        (
            with(&format!("{{{http}, tls: {{mode: SIMPLE, credentialName: c}}}}")),
            "spec.servers[0].tls: a HTTP server",
        ),
        (with(&format!("{{{https}, tls: {{mode: SIMPLE}}}}")), "spec.servers[0].tls.serverCertificate"),
        (with(&format!("{{{https}, tls: {{mode: SIMPLE, credentialName: c}}}}")), ""),
        (with(&format!("{{{https}, tls: {{mode: SIMPLE, credentialNames: [a, b]}}}}")), ""),
        (
            with(&format!("{{{https}, tls: {{mode: SIMPLE, credentialName: c, credentialNames: [a, b]}}}}")),
            "spec.servers[0].tls: more than one source",
        ),
        (
            with(&format!("{{{https}, tls: {{mode: SIMPLE, tlsCertificates: [{{serverCertificate: a}}]}}}}")),
            "spec.servers[0].tls.tlsCertificates[0].privateKey: missing",
        ),
        (
            with(&format!("{{{https}, tls: {{mode: SIMPLE, credentialName: c, caCrl: /crl}}}}")),
            "spec.servers[0].tls.caCrl: SIMPLE asks for no client certificate",
        ),
        (
            with(&format!("{{{https}, tls: {{mode: MUTUAL, credentialName: c, caCertCredentialName: d}}}}")),
            "",
        ),
        (
            with(&format!("{{{https}, tls: {{mode: MUTUAL, credentialName: c, caCrl: /crl}}}}")),
            "spec.servers[0].tls.caCrl: given beside a Secret",
        ),
        (
            with(&format!(
                "{{{https}, tls: {{mode: MUTUAL, credentialName: c, verifyCertificateHash: [beef]}}}}"
            )),
            "spec.servers[0].tls.verifyCertificateHash[0]: \"beef\" is no SHA-256",
        ),
        (
            with(&format!(
                "{{{https}, tls: {{mode: MUTUAL, credentialName: c, verifyCertificateSpki: [beef]}}}}"
            )),
            "spec.servers[0].tls.verifyCertificateSpki[0]: \"beef\" is no SHA-256",
        ),
        (
            with(&format!("{{{https}, tls: {{mode: ISTIO_MUTUAL, caCrl: /crl}}}}")),
            "spec.servers[0].tls.caCrl: not allowed with ISTIO_MUTUAL",
        ),
        (
            with(&format!("{{{https}, tls: {{mode: MUTUAL, serverCertificate: a, privateKey: b}}}}")),
            "spec.servers[0].tls.caCertificates",
        ),
        (
            with(&format!("{{{https}, tls: {{mode: ISTIO_MUTUAL, credentialName: c}}}}")),
            "spec.servers[0].tls.credentialName: not allowed",
        ),
        (
            with(&format!("{{{https}, tls: {{mode: PASSTHROUGH, credentialName: c}}}}")),
            "warning: spec.servers[0].tls.credentialName",
        ),
        (
            with(&format!(
                "{{{https}, tls: {{mode: SIMPLE, credentialName: c, minProtocolVersion: TLSV1_0}}}}"
            )),
            "spec.servers[0].tls.minProtocolVersion",
        ),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(spec, expected)| (spec.as_str(), *expected)).collect();
    check("Gateway", &cases);
}

#[test]
fn service_entries_and_workloads() {
    let ports = "ports: [{number: 443, name: https, protocol: HTTPS}]";
    let with = |more: &str| format!("{{hosts: [a.com], {ports}, {more}}}");
    let cases = [
        (with("resolution: DNS"), ""),
        (format!("{{{ports}}}"), "spec.hosts: missing"),
        (format!("{{hosts: ['*'], {ports}}}"), "spec.hosts[0]: a bare *"),
        (with("resolution: STATIC"), "warning: spec.endpoints: missing for resolution STATIC"),
        (with("resolution: STATIC, endpoints: [{address: 10.0.0.1}]"), ""),
        (with("resolution: STATIC, endpoints: [{address: b.com}]"), "spec.endpoints[0].address: STATIC"),
        (with("resolution: NONE, endpoints: [{address: 10.0.0.1}]"), "spec.endpoints: not allowed"),
        (
            with("resolution: DNS, endpoints: [{address: b.com, ports: {http: 1}}]"),
            "spec.endpoints[0].ports.http",
        ),
        (
            with("resolution: DNS, endpoints: [{address: 'unix:///run/a.sock'}]"),
            "spec.endpoints[0].address: a UNIX socket is not looked up",
        ),
        (with("resolution: STATIC, endpoints: [{address: 'unix:///run/a.sock'}]"), ""),
        (
            with("resolution: DNS_ROUND_ROBIN, endpoints: [{address: b.com}, {address: c.com}]"),
            "spec.endpoints: DNS_ROUND_ROBIN takes one endpoint",
        ),
        (with("resolution: DNS, addresses: [10.0.0.0/8]"), "spec.addresses[0]: ranges"),
        (format!("{{hosts: ['*.a.com'], {ports}, resolution: DNS}}"), "spec.hosts: a wildcard"),
        (
            with("resolution: STATIC, endpoints: [{address: 10.0.0.1}], workloadSelector: {labels: {a: b}}"),
            "spec.endpoints: given beside workloadSelector",
        ),
        (
            "{hosts: [a.com], ports: [{number: 1, name: a}, {number: 1, name: b}]}".to_owned(),
            "spec.ports[1].number: 1 is given twice",
        ),
        (
            "{hosts: [a.com], ports: [{number: 5432, name: db, protocol: TCP}]}".to_owned(),
            "warning: spec.ports[0].protocol: TCP without an address",
        ),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(spec, expected)| (spec.as_str(), *expected)).collect();
    check("ServiceEntry", &cases);
    check(
        "WorkloadEntry",
        &[
            ("{address: 127.0.0.1}", ""),
            ("{}", "spec.address: missing"),
            ("{address: '10.0.0.1:80'}", "spec.address: \"10.0.0.1:80\" is no address"),
            ("{address: 0.0.0.0}", "spec.address: no workload"),
            ("{address: 10.0.0.1, ports: {http: 0}}", "spec.ports.http"),
            (
                "{address: 10.0.0.1, ports: {http: 70000}}",
                "spec.ports.http: expected a whole number from 0 to 65535",
            ),
        ],
    );
}

#[test]
fn sidecars_and_peer_authentications() {
    let ingress =
        |more: &str| format!("{{ingress: [{{port: {{number: 8080, protocol: HTTP, name: http}}{more}}}]}}");
    let cases = [
        ("{}".to_owned(), "spec: empty"),
        (ingress(""), ""),
        (ingress(", defaultEndpoint: '0.0.0.0:18080'"), ""),
        (ingress(", defaultEndpoint: '10.0.0.1:18080'"), "spec.ingress[0].defaultEndpoint"),
        (ingress(", tls: {mode: PASSTHROUGH}"), "spec.ingress[0].tls"),
        (ingress(", tls: {mode: SIMPLE, serverCertificate: a, privateKey: b}"), ""),
        (ingress(", tls: {mode: SIMPLE, credentialName: c}"), "spec.ingress[0].tls.credentialName"),
        (ingress(", tls: {mode: SIMPLE}"), "spec.ingress[0].tls.serverCertificate: a key"),
        (ingress(", connectionPool: {tcp: {maxConnections: 5}}"), ""),
        (ingress(", connectionPool: {}"), "spec.ingress[0].connectionPool: empty"),
        ("{inboundConnectionPool: {tcp: {maxConnections: 5}}}".to_owned(), ""),
        ("{egress: [{hosts: [a]}]}".to_owned(), "spec.egress[0].hosts[0]: \"a\" lacks its namespace"),
        ("{egress: [{hosts: ['./*', 'm/a.m.svc.cluster.local', '~/*']}]}".to_owned(), ""),
        ("{egress: [{hosts: ['./*']}, {hosts: ['*/*']}]}".to_owned(), "spec.egress[0].port: only the last"),
        (
            "{workloadSelector: {matchLabels: {a: b}}, egress: [{hosts: ['./*']}]}".to_owned(),
            "spec.workloadSelector.matchLabels: unknown field",
        ),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(spec, expected)| (spec.as_str(), *expected)).collect();
    check("Sidecar", &cases);
    check(
        "PeerAuthentication",
        &[
            ("{mtls: {mode: STRICT}}", ""),
            (
                "{portLevelMtls: {8080: {mode: DISABLE}}}",
                "spec.portLevelMtls: mesh and namespace policies cannot have port-level mTLS",
            ),
            (
                "{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {mode: DISABLE}}}",
                "spec.portLevelMtls.0",
            ),
            ("{selector: {labels: {a: b}}}", "spec.selector.labels: unknown field"),
        ],
    );
}

#[test]
fn kubernetes_services() {
    check(
        "Service",
        &[
            ("{ports: [{port: 80}], ipFamilies: [IPv4], clusterIP: None}", ""),
            ("{ports: []}", "spec.ports: missing"),
            ("{ports: [{port: 80}, {port: 81, name: b}]}", "spec.ports[0].name: missing"),
            ("{ports: [{port: 80, protocol: HTTP}]}", "spec.ports[0].protocol: unknown protocol"),
            ("{ports: [{port: 80, appProtocol: quux}]}", "warning: spec.ports[0].appProtocol"),
            ("{clusterIP: None}", ""),
            ("{type: ExternalName, externalName: a.com}", ""),
            ("{type: ExternalName}", "spec.externalName: missing"),
            (
                "{ports: [{port: 80}], externalName: a.com}",
                "warning: spec.externalName: only Services of type",
            ),
            ("{ports: [{port: 80, targetPort: http}], selectr: {a: b}}", "spec.selectr: unknown field"),
        ],
    );
}

#[test]
fn a_destination_without_its_subset_is_a_warning() {
    let text = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: n}
spec:
  hosts: [a]
  http:
  - route: [{destination: {host: a, subset: canary}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p, namespace: n}
spec: {mtls: {mode: STRICT}}
";
    let outcome = load_str("x.yaml", text);
    let texts: Vec<String> = outcome.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        ["x.yaml:1: warning: VirtualService n/v: no DestinationRule defines the subset \"canary\" of \
          a.n.svc.cluster.local; requests to it will fail with 503; define it under spec.subsets"]
    );
    let world = outcome.world.expect("a warning refuses nothing");
    assert_eq!(world.peer_mode("n", &Labels::new(), None), EffectivePeerMode::Strict);
}

#[test]
fn a_return_window_is_a_period() {
    let with = |value: &str| {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: x, namespace: n, annotations: {{weft.dev/return-window: '{value}'}}}}\nspec: {{host: a}}\n"
        );
        load_str("x.yaml", &text).diagnostics
    };
    assert!(with("30s").is_empty());
    for wrong in ["soon", "0s", "30", "-5s"] {
        let found = with(wrong);
        let path = found[0].path.as_deref();
        assert_eq!(path, Some("metadata.annotations.weft.dev/return-window"), "{wrong}: {found:?}");
    }
}

#[test]
fn whether_any_request_is_tried_again_is_true_or_false() {
    let with = |name: &str, value: &str| {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: x, namespace: n, annotations: {{{name}: '{value}'}}}}\n\
             spec: {{hosts: [a], http: [{{route: [{{destination: {{host: a}}}}]}}]}}\n"
        );
        load_str("x.yaml", &text).diagnostics
    };
    for good in ["true", "false"] {
        assert!(with("weft.dev/retry-any-request", good).is_empty(), "{good}");
    }
    for (name, value) in [("weft.dev/retry-any-request", "yes"), ("weft.dev/retry-any-requests", "true")] {
        let found = with(name, value);
        assert_eq!(found[0].path, Some(format!("metadata.annotations.{name}")), "{found:?}");
    }
}

#[test]
fn authorization_policies() {
    let of = |rule: &str| format!("{{rules: [{rule}]}}");
    let from = |source: &str| of(&format!("{{from: [{{source: {source}}}]}}"));
    let to = |operation: &str| of(&format!("{{to: [{{operation: {operation}}}]}}"));
    let when = |key: &str, more: &str| of(&format!("{{when: [{{key: '{key}', {more}}}]}}"));
    let cases = [
        ("{}".to_owned(), ""),
        ("{rules: [{}]}".to_owned(), ""),
        ("{action: DENY}".to_owned(), "spec.rules: missing: DENY without rules"),
        ("{action: ALOW}".to_owned(), "spec.action: unknown value"),
        ("{action: CUSTOM, rules: [{}]}".to_owned(), "spec.provider.name: missing"),
        ("{action: CUSTOM, provider: {name: opa}}".to_owned(), "spec.rules: missing: CUSTOM without rules"),
        (
            "{action: CUSTOM, provider: {name: opa}, rules: [{}]}".to_owned(),
            "warning: -: no extension provider is called \"opa\"",
        ),
        (
            "{action: CUSTOM, provider: {name: opa}, rules: [{from: [{source: {namespaces: [a]}}]}]}"
                .to_owned(),
            "spec.rules[0].from[0].source.namespaces: not allowed with CUSTOM",
        ),
        ("{provider: {name: opa}, rules: [{}]}".to_owned(), "spec.provider: ALLOW asks nobody"),
        ("{selector: {matchLabels: {}}, rules: [{}]}".to_owned(), "warning: spec.selector: without labels"),
        (
            "{selector: {matchLabels: {app: 'a*'}}}".to_owned(),
            "spec.selector.matchLabels.app: labels are matched in full",
        ),
        (
            "{targetRefs: [{kind: Gateway, name: g}]}".to_owned(),
            "spec.targetRefs[0].kind: Weft has no policies for a Gateway (\"\")",
        ),
        (
            "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, group: '', name: s}]}".to_owned(),
            "spec.selector: given beside targetRefs",
        ),
        (of("{from: [{}]}"), "spec.rules[0].from[0].source: empty"),
        (from("{}"), "spec.rules[0].from[0].source: empty"),
        (of("{to: [{}]}"), "spec.rules[0].to[0].operation: empty"),
        (from("{principals: ['']}"), "spec.rules[0].from[0].source.principals[0]: empty"),
        (from("{principal: [a]}"), "spec.rules[0].from[0].source.principal: unknown field"),
        (from("{ipBlocks: [10.0.0.0/8, '::1', 10.1.2.3]}"), ""),
        (
            from("{ipBlocks: [10.0.0.0/33]}"),
            "spec.rules[0].from[0].source.ipBlocks[0]: \"10.0.0.0/33\" is neither",
        ),
        (
            from("{notRemoteIpBlocks: [localhost]}"),
            "spec.rules[0].from[0].source.notRemoteIpBlocks[0]: \"localhost\"",
        ),
        (from("{serviceAccounts: [a, n/a]}"), ""),
        (
            from("{serviceAccounts: [a/b/c]}"),
            "spec.rules[0].from[0].source.serviceAccounts[0]: \"a/b/c\" is no",
        ),
        (from("{serviceAccounts: ['*']}"), "spec.rules[0].from[0].source.serviceAccounts[0]: \"*\" is no"),
        (
            from("{serviceAccounts: [a], namespaces: [n]}"),
            "spec.rules[0].from[0].source.serviceAccounts: stands beside namespaces",
        ),
        (
            from("{trustDomains: ['a*b']}"),
            "spec.rules[0].from[0].source.trustDomains[0]: \"a*b\" is no trust domain",
        ),
        (from("{trustDomains: ['*', 'a*', '*b', a.b], notTrustDomains: [c]}"), ""),
        (
            from("{notTrustDomains: [a/b]}"),
            "spec.rules[0].from[0].source.notTrustDomains[0]: \"a/b\" is no trust",
        ),
        (to("{ports: [80]}"), "spec.rules[0].to[0].operation.ports[0]: expected a text"),
        (to("{ports: ['80', '65536']}"), "spec.rules[0].to[0].operation.ports[1]: \"65536\" is no port"),
        (to("{paths: ['/a/{*}/b', '/c/{**}', '/d*']}"), ""),
        (to("{paths: ['/a{*}']}"), "spec.rules[0].to[0].operation.paths[0]: \"/a{*}\" is no template"),
        (to("{methods: [GET], host: [a]}"), "spec.rules[0].to[0].operation.host: unknown field"),
        (when("request.headers[x-a]", "values: [a]"), ""),
        (when("request.headers[x-a]", "values: []"), "spec.rules[0].when[0].values: missing"),
        (
            when("request.headers", "values: [a]"),
            "spec.rules[0].when[0].key: \"request.headers\" is not of the form",
        ),
        (when("request.auth.claims[a][b]", "notValues: [a]"), ""),
        (when("source.ip", "values: [a]"), "spec.rules[0].when[0].values[0]: \"a\" is neither an IP address"),
        (
            when("destination.port", "values: ['http']"),
            "spec.rules[0].when[0].values[0]: \"http\" is no port",
        ),
        (
            when("source.labels[app]", "values: [a]"),
            "spec.rules[0].when[0].key: unknown attribute: source.labels[app]",
        ),
        (
            when("destination.labels[app]", "values: [a]"),
            "spec.rules[0].when[0].key: destination.labels is no condition",
        ),
        (
            "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}".to_owned(),
            "warning: spec.rules[0]: connections to TCP ports",
        ),
        ("{action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['80']}}]}]}".to_owned(), ""),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(spec, expected)| (spec.as_str(), *expected)).collect();
    check("AuthorizationPolicy", &cases);
}

#[test]
fn a_policy_is_tried_when_its_annotation_is_true_and_its_action_can_be() {
    let with = |value: &str, action: &str| {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: x, namespace: n, annotations: {{istio.io/dry-run: '{value}'}}}}\n\
             spec: {{action: {action}, rules: [{{}}]}}\n"
        );
        let found = load_str("x.yaml", &text).diagnostics;
        found.into_iter().map(|d| d.reason).collect::<Vec<_>>()
    };
    assert_eq!(with("true", "ALLOW"), [] as [&str; 0]);
    assert_eq!(with("false", "DENY"), [] as [&str; 0]);
    assert_eq!(with("yes", "DENY"), ["\"yes\" is neither true nor false"]);
    assert_eq!(with("true", "AUDIT"), ["AUDIT cannot be tried"]);
}

#[test]
fn request_authentications() {
    let jwks = r#"{"keys": [{"kty": "RSA", "n": "sXchYw", "e": "AQAB"}]}"#;
    let of = |rule: &str| format!("{{jwtRules: [{{issuer: a, jwks: '{jwks}', {rule}}}]}}");
    let cases = [
        ("{}".to_owned(), "warning: spec.jwtRules: missing"),
        (of(""), ""),
        (
            of(
                "audiences: [a], fromHeaders: [{name: X-Jwt, prefix: 'Bearer '}], fromParams: [t], fromCookies: [c], \
                outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-sub, claim: sub}], \
                forwardOriginalToken: true, timeout: 5s, spaceDelimitedClaims: [roles]",
            ),
            "",
        ),
        (
            "{selector: {matchLabels: {app: '*'}}}".to_owned(),
            "spec.selector.matchLabels.app: labels are matched",
        ),
        ("{selector: {labels: {app: a}}}".to_owned(), "spec.selector.labels: unknown field"),
        (
            "{targetRef: {kind: Service, name: s, namespace: elsewhere}, jwtRules: [{issuer: a}]}".to_owned(),
            "spec.targetRef.namespace: not the policy's own",
        ),
        ("{jwtRules: [{jwksUri: 'https://a/k'}]}".to_owned(), ""),
        (format!("{{jwtRules: [{{jwks: '{jwks}'}}]}}"), "spec.jwtRules[0].issuer: missing"),
        (
            "{jwtRules: [{issuer: a, jwksUrl: 'https://a/k'}]}".to_owned(),
            "spec.jwtRules[0].jwksUrl: unknown field",
        ),
        ("{jwtRules: [{issuer: 'https://a'}]}".to_owned(), ""),
        (
            "{jwtRules: [{issuer: a@b}]}".to_owned(),
            "warning: spec.jwtRules[0].jwks: missing, and so is jwksUri",
        ),
        (of("jwksUri: 'https://a/k'"), "spec.jwtRules[0].jwks: stands beside jwksUri"),
        (
            "{jwtRules: [{issuer: a, jwksUri: 'ftp://a/k'}]}".to_owned(),
            "spec.jwtRules[0].jwksUri: \"ftp://a/k\"",
        ),
        ("{jwtRules: [{issuer: a, jwksUri: a.com/k}]}".to_owned(), "spec.jwtRules[0].jwksUri: \"a.com/k\""),
        (
            "{jwtRules: [{issuer: a, jwks: '{}'}]}".to_owned(),
            "spec.jwtRules[0].jwks: no key set: it has no list",
        ),
        (
            "{jwtRules: [{issuer: a, jwks: '{\"keys\": [{\"kty\": \"oct\", \"k\": \"AA\"}]}'}]}".to_owned(),
            "warning: spec.jwtRules[0].jwks: holds a private key",
        ),
        (of("audiences: ['']"), "spec.jwtRules[0].audiences[0]: empty"),
        (of("fromHeaders: [{prefix: a}]"), "spec.jwtRules[0].fromHeaders[0].name: empty"),
        (of("fromHeaders: [{name: 'a b'}]"), "spec.jwtRules[0].fromHeaders[0].name: \"a b\" is not"),
        (of("fromParams: ['']"), "spec.jwtRules[0].fromParams[0]: empty"),
        (of("fromCookies: ['']"), "spec.jwtRules[0].fromCookies[0]: empty"),
        (of("outputPayloadToHeader: 'a:b'"), "spec.jwtRules[0].outputPayloadToHeader: \"a:b\" is not"),
        (
            of("outputClaimToHeaders: [{claim: a}]"),
            "spec.jwtRules[0].outputClaimToHeaders[0].header: \"\" is not",
        ),
        (
            of("outputClaimToHeaders: [{header: a.b, claim: a}]"),
            "spec.jwtRules[0].outputClaimToHeaders[0].header: \"a.b\"",
        ),
        (
            of("outputClaimToHeaders: [{header: a}]"),
            "spec.jwtRules[0].outputClaimToHeaders[0].claim: missing",
        ),
        (of("timeout: 0s"), "spec.jwtRules[0].timeout: 0s is too short"),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(spec, expected)| (spec.as_str(), *expected)).collect();
    check("RequestAuthentication", &cases);
}

#[test]
fn acme_certificates() {
    let directory = "directoryUrl: 'https://ca.example/dir'";
    let unused = "warning: -: no Gateway uses the credential \"c\"";
    let with = |hosts: &str| format!("{{credentialName: c, hosts: [{hosts}], {directory}}}");
    let spec = |rest: &str| format!("{{credentialName: c, hosts: [a.example], {directory}, {rest}}}");
    let cases = [
        (with("a.example"), unused),
        (spec("email: ops@a.example, caFile: /roots.pem"), unused),
        (format!("{{hosts: [a.example], {directory}}}"), "spec.credentialName: missing"),
        (
            format!("{{credentialName: 'a/b', hosts: [a.example], {directory}}}"),
            "spec.credentialName: \"a/b\" cannot",
        ),
        (
            format!("{{credentialName: A, hosts: [a.example], {directory}}}"),
            "spec.credentialName: \"A\" cannot",
        ),
        (
            format!("{{credentialName: a-cacert, hosts: [a.example], {directory}}}"),
            "spec.credentialName: \"a-cacert\" ends in -cacert",
        ),
        (with(""), "spec.hosts: missing"),
        (with("'*.a.example'"), "spec.hosts[0]: \"*.a.example\" is a wildcard"),
        (with("a.example, 10.0.0.1"), "spec.hosts[1]: \"10.0.0.1\" is an address"),
        (with("'::1'"), "spec.hosts[0]: \"::1\" is an address"),
        (with("a_b.example"), "spec.hosts[0]: \"a_b.example\" is not a name"),
        (with("a.example."), "spec.hosts[0]: \"a.example.\" is not a name"),
        (with("'https://a.example'"), "spec.hosts[0]: \"https://a.example\" is not a host"),
        (with("a.example, A.example"), "spec.hosts[1]: \"A.example\" is given twice"),
        (
            with(&(0..101).map(|n| format!("h{n}.example")).collect::<Vec<_>>().join(", ")),
            "spec.hosts: 101 hosts are more than 100",
        ),
        ("{credentialName: c, hosts: [a.example]}".to_owned(), "spec.directoryUrl: missing"),
        (
            "{credentialName: c, hosts: [a.example], directoryUrl: 'http://ca/dir'}".to_owned(),
            "spec.directoryUrl: \"http://ca/dir\" is not a URL of https",
        ),
        (
            "{credentialName: c, hosts: [a.example], directoryUrl: 'ca.example'}".to_owned(),
            "spec.directoryUrl: \"ca.example\" is not a URL of https",
        ),
        (spec("email: 'mailto:ops@a.example'"), "spec.email: \"mailto:ops@a.example\" is not one"),
        (spec("email: 'a@a.example, b@a.example'"), "spec.email: "),
        (spec("email: nobody"), "spec.email: "),
        (spec("caFile: roots.pem"), "spec.caFile: \"roots.pem\" is not an absolute path"),
        (spec("wildcard: true"), "spec.wildcard: unknown field"),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(spec, expected)| (spec.as_str(), *expected)).collect();
    check("AcmeCertificate", &cases);
}

#[test]
fn what_an_acme_server_issues_has_its_name_for_itself_and_gateways_that_answer() {
    let certificate = |name: &str, host: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: AcmeCertificate\nmetadata: {{name: {name}, namespace: n}}\n\
             spec: {{credentialName: c, hosts: [{host}], directoryUrl: 'https://ca.example/dir'}}\n---\n"
        )
    };
    let gateway = |port: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: m}}\nspec:\n  selector: {{istio: g}}\n  servers:\n  \
             - {{port: {port}, hosts: ['*/*.example']}}\n  \
             - {{port: {{number: 443, protocol: HTTPS, name: tls}}, hosts: ['*'], tls: {{mode: SIMPLE, credentialName: c}}}}\n---\n"
        )
    };
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: c, namespace: n}\nstringData: {ca.crt: '-----BEGIN '}\n---\n";
    let found = |text: &str| {
        let outcome = load_str("x.yaml", text);
        outcome.diagnostics.iter().map(|d| d.reason.clone()).collect::<Vec<_>>().join("; ")
    };
    let plain = gateway("{number: 80, protocol: HTTP, name: http}");
    assert_eq!(found(&(certificate("a", "a.example") + &plain)), "");
    let none = "no Gateway has a server of HTTP at port 80 for";
    assert_eq!(found(&(certificate("a", "a.test") + &plain)), format!("{none} a.test"));
    for other in ["{number: 8080, protocol: HTTP, name: http}", "{number: 80, protocol: TCP, name: tcp}"] {
        let found = found(&(certificate("a", "a.example") + &gateway(other)));
        assert!(found.contains(&format!("{none} a.example")), "{other}: {found}");
    }
    for twice in [certificate("b", "b.example"), secret.to_owned()] {
        let outcome = load_str("x.yaml", &(certificate("a", "a.example") + &twice + &plain));
        assert!(outcome.world.is_none());
        let errors: Vec<_> = outcome.errors().map(|d| d.reason.clone()).collect();
        assert!(
            matches!(&errors[..], [one] if one.contains("the credential \"c\" is already that of")),
            "{errors:?}"
        );
    }
}

#[test]
fn external_credential() {
    let with = |more: &str| format!("{{hosts: [a.example], credentialName: c, key: token{more}}}");
    check(
        "ExternalCredential",
        &[
            (
                &with(", header: X-Api-Key, headerValuePrefix: 'Key ', overwrite: false"),
                "warning: -: no ServiceEntry has",
            ),
            ("{hosts: [a.example], key: k}", "spec.credentialName: missing"),
            ("{hosts: [a.example], credentialName: c}", "spec.key: missing"),
            (
                "{hosts: [a.example], credentialName: ../c, key: k}",
                "spec.credentialName: \"../c\" has characters",
            ),
            ("{credentialName: c, key: k}", "spec.hosts: missing"),
            (
                "{hosts: ['*.example'], credentialName: c, key: k}",
                "spec.hosts[0]: \"*.example\" is no host name",
            ),
            (&with(", header: ':path'"), "spec.header: \":path\" is not the name"),
            (&with(", header: Host"), "spec.header: \"Host\" is not the name"),
            (&with(", headerValuePrefix: \"a\\n\""), "spec.headerValuePrefix: has a character"),
            (&with(", value: geheim"), "spec.value: unknown field"),
        ],
    );
}

#[test]
fn ip_deny_list() {
    check(
        "IPDenyList",
        &[
            (
                "{source: {file: a.txt}, selector: {matchLabels: {istio: ingressgateway}}, refreshInterval: 5s}",
                "",
            ),
            ("{source: {url: 'https://a.example/drop.txt'}}", ""),
            ("{}", "spec.source: missing"),
            ("{source: {file: a, url: 'https://b/c'}}", "spec.source.file: stands beside url"),
            ("{source: {url: 'ftp://a/b'}}", "spec.source.url: \"ftp://a/b\" is not a URL"),
            ("{source: {url: 'https://u:p@a/b'}}", "spec.source.url: has a user before its host"),
            ("{source: {url: 'http://a/b'}}", "warning: spec.source.url: is of http"),
            ("{source: {file: a}, refreshInterval: 0s}", "spec.refreshInterval: 0s is too short"),
            ("{source: {path: a}}", "spec.source.path: unknown field"),
            ("{source: {file: a}, selector: {labels: {a: b}}}", "spec.selector.labels: unknown field"),
        ],
    );
}

#[test]
fn proxy_configs() {
    let cases = [
        ("{}", ""),
        (
            "{selector: {matchLabels: {a: b}}, concurrency: 0, environmentVariables: {A_1: x}, image: {imageType: distroless}}",
            "",
        ),
        ("{concurrency: -1}", "spec.concurrency: "),
        (
            "{environmentVariables: {1A: x}}",
            "spec.environmentVariables.1A: \"1A\" is no environment variable",
        ),
        ("{image: {imageType: debug}}", "spec.image.imageType: there is no image \"debug\""),
        ("{drainDuration: 1s}", "spec.drainDuration: unknown field"),
    ];
    check("ProxyConfig", &cases);
}

#[test]
fn metric_definitions() {
    let note = "warning: spec: proxies of Weft count it";
    let with = |dimension: &str| format!("{{metric: own, dimensions: {{a: {{{dimension}}}}}}}");
    let cases = [
        ("{metric: own_total}".to_owned(), note),
        (
            "{metric: own, type: HISTOGRAM, mode: CLIENT_AND_SERVER, value: response.size, maxSeries: 5, idleTimeout: 0s}".to_owned(),
            note,
        ),
        (with("header: transaction-type, default: none"), note),
        (with("expression: filter_state.downstream_peer.app"), note),
        (with("header: x-user-id, hash: true"), note),
        (with("header: x-user-id"), "spec.dimensions.a: \"x-user-id\" may say who somebody is"),
        (with("header: x-user-group, personal: true"), note),
        (with(""), "spec.dimensions.a: comes from nowhere"),
        (with("header: a, expression: request.path"), "spec.dimensions.a: has a header and an expression"),
        (with("header: ':path'"), "spec.dimensions.a.header: \":path\" is no header field"),
        (with("expression: 'request.path +'"), "spec.dimensions.a.expression: "),
        ("{metric: own, dimensions: {le: {header: a}}}".to_owned(), "spec.dimensions.le: \"le\" is no label"),
        ("{metric: own, value: 'nobody.knows'}".to_owned(), "spec.value: "),
        ("{metric: own, maxSeries: 0}".to_owned(), "spec.maxSeries: 0 series"),
        ("{metric: own, maxSeries: 20001}".to_owned(), "spec.maxSeries: 20001 series"),
        ("{metric: 1own}".to_owned(), "spec.metric: \"1own\" is no name of a metric"),
        ("{metric: istio_own}".to_owned(), "spec.metric: \"istio_own\" looks like a metric of the mesh's own"),
        ("{metric: own, type: SUMMARY}".to_owned(), "spec.type: unknown value"),
    ];
    check("MetricDefinition", &cases.each_ref().map(|(spec, expected)| (spec.as_str(), *expected)));
}

#[test]
fn networks() {
    let whole = |network: &str| format!("networks: {{n: {{{network}}}}}");
    let gateway =
        |gateway: &str| whole(&format!("endpoints: [{{fromRegistry: c1}}], gateways: [{{{gateway}}}]"));
    let service = "registryServiceName: ew.istio-system.svc.cluster.local, port: 443";
    let cases = [
        (whole("endpoints: [{fromCidr: 10.0.0.0/8}, {fromCidr: 'fd00::/8'}]"), ""),
        (gateway(service), ""),
        (gateway("address: gw.example.com, port: 15443"), ""),
        ("networks: {}".to_owned(), ""),
        (
            whole("endpoints: [{fromCidr: 10.0.0.0}]"),
            "networks.n.endpoints[0].fromCidr: \"10.0.0.0\" is no range",
        ),
        (whole("endpoints: [{}]"), "networks.n.endpoints[0]: exactly one of"),
        (
            whole("endpoints: [{fromCidr: 10.0.0.0/8, fromRegistry: a}]"),
            "networks.n.endpoints[0]: exactly one of",
        ),
        (
            "networks: {a: {endpoints: [{fromCidr: 10.0.0.0/8}]}, b: {endpoints: [{fromCidr: 10.1.0.0/8}]}}"
                .to_owned(),
            "networks.b.endpoints[0].fromCidr: 10.1.0.0/8 is in the network a already",
        ),
        (
            "networks: {a: {endpoints: [{fromRegistry: c}]}, b: {endpoints: [{fromRegistry: c}]}}".to_owned(),
            "networks.b.endpoints[0].fromRegistry: c is in the network a already",
        ),
        (gateway("port: 443"), "networks.n.gateways[0]: exactly one of"),
        (gateway(&format!("address: 192.0.2.1, {service}")), "networks.n.gateways[0]: exactly one of"),
        (gateway("address: '*.example.com', port: 443"), "networks.n.gateways[0].address: "),
        (gateway("address: 0.0.0.0, port: 443"), "networks.n.gateways[0].address: "),
        (gateway("address: 192.0.2.1"), "networks.n.gateways[0].port: a port is missing"),
        (gateway("registryServiceName: ew, port: 1"), "networks.n.gateways[0].registryServiceName: \"ew\""),
        (
            whole(&format!("gateways: [{{{service}}}]")),
            "networks.n.gateways[0].registryServiceName: the network has no cluster",
        ),
        (
            gateway(&format!("{service}, locality: a/b")),
            "warning: networks.n.gateways[0].locality: has no effect",
        ),
        (gateway(&format!("{service}, weight: 1")), "networks.n.gateways[0].weight: unknown field"),
    ];
    for (text, expected) in &cases {
        let in_map = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: ''\n  meshNetworks: |\n    {text}\n"
        );
        // The mesh's own settings may be left out beside them.
        let alone = in_map.replace("  mesh: ''\n", "");
        for text in [text, &in_map, &alone] {
            let outcome = load_str("x.yaml", text);
            let of = |d: &super::super::Diagnostic| {
                let mark = if d.is_error() { "" } else { "warning: " };
                format!("{mark}{}: {}", d.path.as_deref().unwrap_or("-"), d.reason)
            };
            let found: Vec<_> = outcome.diagnostics.iter().map(of).collect();
            let fits = if expected.is_empty() {
                found.is_empty()
            } else {
                found.iter().any(|f| f.starts_with(expected))
            };
            assert!(fits, "{text}: {found:#?} is not {expected}");
        }
    }
    let labelled = |port: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: ew, namespace: n, labels: {{topology.istio.io/network: n, networking.istio.io/gatewayPort: '{port}'}}}}\nspec: {{externalIPs: [192.0.2.1], ports: [{{port: 443, name: tls}}]}}\n"
        );
        load_str("x.yaml", &text)
            .diagnostics
            .iter()
            .map(|d| d.path.clone().unwrap_or_default())
            .collect::<Vec<_>>()
    };
    assert_eq!(labelled("443"), [] as [&str; 0]);
    assert_eq!(labelled("https"), ["metadata.labels.networking.istio.io/gatewayPort"]);
}

#[test]
fn workload_groups() {
    let with = |more: &str| format!("{{template: {{serviceAccount: a{more}}}}}");
    let probe = |probe: &str| format!("{{template: {{serviceAccount: a}}, probe: {{{probe}}}}}");
    let cases = [
        ("{}".to_owned(), "spec.template: missing"),
        (with(", labels: {app: a}, ports: {http: 8080}, weight: 2, locality: a/b"), ""),
        (with(", address: 10.0.0.1"), "spec.template.address: the workloads of a group"),
        (with(", network: other"), ""),
        (with(", ports: {http: 0}"), "spec.template.ports.http: "),
        ("{template: {ports: {http: 1}}}".to_owned(), "spec.template.serviceAccount: missing"),
        (probe("httpGet: {path: /, port: 80}, periodSeconds: 5"), ""),
        (probe("exec: {command: [a]}"), ""),
        (probe("periodSeconds: 5"), "spec.probe: asks in no way"),
        (probe("tcpSocket: {port: 1}, grpc: {port: 2}"), "spec.probe: asks in no way, or in several"),
        (probe("tcpSocket: {port: 0}"), "spec.probe.tcpSocket.port: "),
        (probe("httpGet: {port: 80, scheme: FTP}"), "spec.probe.httpGet.scheme: \"FTP\""),
        (probe("tcpSocket: {port: 1}, failureThreshold: -1"), "spec.probe.failureThreshold: is negative"),
    ];
    check("WorkloadGroup", &cases.each_ref().map(|(spec, expected)| (spec.as_str(), *expected)));
}

#[test]
fn telemetries() {
    let tag = |tag: &str| format!("{{metrics: [{{overrides: [{{tagOverrides: {{{tag}}}}}]}}]}}");
    let design = |label: &str, value: &str| {
        tag(&format!("{label}: {{operation: UPSERT, value: \"%{{{value} | 'unknown'}}\"}}"))
    };
    let cases = [
        ("{}".to_owned(), ""),
        ("{accessLogging: [{providers: [{name: envoy}], match: {mode: CLIENT}, filter: {expression: response.code >= 500}}]}".to_owned(), ""),
        ("{accessLogging: [{disabled: true}], metrics: [{providers: [{name: prometheus}], reportingInterval: 10s}]}".to_owned(), ""),
        (tag("request_host: {value: request.host}, response_flags: {operation: REMOVE}"), ""),
        ("{accessLogging: [{providers: [{}]}]}".to_owned(), "spec.accessLogging[0].providers[0].name: missing"),
        ("{accessLogging: [{filter: {}}]}".to_owned(), "spec.accessLogging[0].filter.expression: missing"),
        ("{accessLogging: [{filter: {expression: 'response.code >='}}]}".to_owned(), "spec.accessLogging[0].filter.expression: \"response.code >=\" is no expression"),
        ("{accessLogging: [{filter: {expression: 'node.id == 1'}}]}".to_owned(), "spec.accessLogging[0].filter.expression: \"node.id == 1\" asks for node"),
        ("{metrics: [{providers: [{name: statsd}]}]}".to_owned(), "spec.metrics[0].providers[0].name: metrics go to prometheus alone"),
        ("{metrics: [{reportingInterval: 0s}]}".to_owned(), "spec.metrics[0].reportingInterval: is 0"),
        (tag("a-b: {value: request.host}"), "spec.metrics[0].overrides[0].tagOverrides.a-b: \"a-b\" is no label"),
        (tag("a: {operation: REMOVE, value: request.host}"), "spec.metrics[0].overrides[0].tagOverrides.a.value: stands beside REMOVE"),
        (tag("a: {operation: UPSERT}"), "spec.metrics[0].overrides[0].tagOverrides.a.value: missing"),
        // As the design has it.
        (design("destination_service_name", "DESTINATION_SERVICE_NAME"), "spec.metrics[0].overrides[0].tagOverrides.destination_service_name.value: \"%{DESTINATION"),
        (design("source_app", "SOURCE_APP"), "spec.metrics[0].overrides[0].tagOverrides.source_app.value: "),
        ("{tracing: [{providers: [{name: tempo}], randomSamplingPercentage: 10, enableIstioTags: false, useRequestIdForTraceSampling: false, match: {mode: CLIENT}, customTags: {a: {literal: {value: b}}, c: {header: {name: x-c, defaultValue: d}}, e: {environment: {name: E}}, f: {formatter: {value: '%REQ(x-f)%'}}}}]}".to_owned(), "warning: spec.tracing[0].providers[0].name: no extension provider"),
        // As the design has it.
        ("{tracing: [{providers: [{name: tempo}]}, {randomSamplingPercentage: 1.0}]}".to_owned(), "spec.tracing: has 2 items"),
        ("{tracing: [{randomSamplingPercentage: 1.0}]}".to_owned(), "warning: spec.tracing[0].randomSamplingPercentage: 1 is 1 %"),
        ("{tracing: [{randomSamplingPercentage: 101}]}".to_owned(), "spec.tracing[0].randomSamplingPercentage: 101 is no percentage"),
        ("{tracing: [{customTags: {a: {formatter: {value: '%RESPONSE_COD%'}}}}]}".to_owned(), "spec.tracing[0].customTags.a.formatter.value: unknown command operator %RESPONSE_COD%"),
        ("{tracing: [{customTags: {a: {formatter: {value: '50%'}}}}]}".to_owned(), "spec.tracing[0].customTags.a.formatter.value: the format ends inside a command"),
        ("{tracing: [{providers: [{}]}]}".to_owned(), "spec.tracing[0].providers[0].name: missing"),
        ("{tracing: [{customTags: {a: {}}}]}".to_owned(), "spec.tracing[0].customTags.a: says nothing"),
        ("{tracing: [{customTags: {a: {header: {}}}}]}".to_owned(), "spec.tracing[0].customTags.a.header.name: missing"),
        ("{tracing: [{customTags: {a: {header: {name: 'a b'}}}}]}".to_owned(), "spec.tracing[0].customTags.a.header.name: \"a b\" is no header"),
        ("{tracing: [{customTags: {a: {literal: {value: b}, environment: {name: c}}}}]}".to_owned(), "spec.tracing[0].customTags.a: says several"),
        ("{tracing: [{customTags: {a: {literal: {}}}}]}".to_owned(), "spec.tracing[0].customTags.a.literal.value: missing"),
        ("{metrics: [{overrides: [{match: {customMetric: a}}]}]}".to_owned(), "spec.metrics[0].overrides[0].match.customMetric: not supported"),
        ("{selector: {labels: {a: b}}}".to_owned(), "spec.selector.labels: unknown field"),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(spec, e)| (spec.as_str(), *e)).collect();
    check("Telemetry", &cases);
}

#[test]
fn compressions() {
    check(
        "Compression",
        &[
            ("{}", ""),
            (
                "{selector: {matchLabels: {a: b}}, algorithms: [gzip, brotli], minBytes: 1000, \
                  contentTypes: [text/html, application/vnd.api+json]}",
                "",
            ),
            ("{algorithms: [gzip, gzip]}", "spec.algorithms[1]: is given twice"),
            ("{algorithms: [zstd]}", "spec.algorithms[0]: "),
            ("{contentTypes: [text]}", "spec.contentTypes[0]: \"text\" is no content type"),
            ("{contentTypes: ['text/*']}", "spec.contentTypes[0]: \"text/*\" is no content type"),
            ("{contentTypes: [text/html; charset=utf-8]}", "spec.contentTypes[0]: "),
            (
                "{contentTypes: [application/grpc]}",
                "spec.contentTypes[0]: gRPC compresses its messages itself",
            ),
            ("{contentTypes: [text/css, text/css]}", "spec.contentTypes[1]: is given twice"),
            ("{level: 3}", "spec.level: unknown field"),
        ],
    );
}

#[test]
fn health_checks() {
    check(
        "HealthCheck",
        &[
            (
                "{host: a, http: {path: /healthz, host: b.com, method: HEAD, headers: {x-probe: '1'}, \
                  expectedStatuses: [200, 204-299]}}",
                "warning: spec.host: no service is called a.n.svc.cluster.local",
            ),
            ("{http: {path: /}}", "spec.host: \"\" is not a host"),
            ("{host: '*.a.com', tcp: {}}", "spec.host: a wildcard is no service"),
            ("{host: a}", "spec: does not say how to check"),
            ("{host: a, tcp: {}, grpc: {}}", "spec: has several of http, grpc and tcp"),
            ("{host: a, ports: [0], tcp: {}}", "spec.ports[0]: a port is missing or 0"),
            ("{host: a, ports: [1, 1], tcp: {}}", "spec.ports[1]: 1 is given twice"),
            ("{host: a, interval: 0s, tcp: {}}", "spec.interval: 0s is too short"),
            ("{host: a, timeout: 0s, tcp: {}}", "spec.timeout: 0s is too short"),
            ("{host: a, unhealthyThreshold: 0, tcp: {}}", "spec.unhealthyThreshold: 0 checks decide nothing"),
            ("{host: a, minHealthPercent: 101, tcp: {}}", "spec.minHealthPercent: a share is 100 at most"),
            ("{host: a, http: {}}", "spec.http.path: missing, or does not begin with a slash"),
            ("{host: a, http: {path: /a b}}", "spec.http.path: \"/a b\" is no path"),
            (
                "{host: a, http: {path: /, headers: {host: a}}}",
                "spec.http.headers.host: \"host\" is no header",
            ),
            (
                "{host: a, http: {path: /, headers: {a b: c}}}",
                "spec.http.headers.a b: \"a b\" is not the name",
            ),
            (
                "{host: a, http: {path: /, expectedStatuses: [20]}}",
                "spec.http.expectedStatuses[0]: \"20\" is no status",
            ),
            (
                "{host: a, http: {path: /, expectedStatuses: [2xx]}}",
                "spec.http.expectedStatuses[0]: \"2xx\" is no",
            ),
            ("{host: a, http: {path: /, method: CONNECT}}", "spec.http.method: "),
            ("{host: a, tcp: {receive: ['']}}", "spec.tcp.receive: an empty text"),
            ("{host: a, tcp: {}, alt_port: 1}", "spec.alt_port: unknown field"),
        ],
    );
}

#[test]
fn rate_limits() {
    let with = |rule: &str| format!("{{selector: {{matchLabels: {{a: b}}}}, rules: [{{name: r, {rule}}}]}}");
    let local = |more: &str| with(&format!("local: {{requests: 1, per: 1s{more}}}"));
    let of = |more: &str| with(&format!("local: {{requests: 1, per: 1s}}, {more}"));
    let asked = |service: &str| format!("{{service: {{{service}}}, rules: [{{name: r, global: {{}}}}]}}");
    let cases = [
        (local(", burst: 2"), ""),
        (
            of("match: {hosts: ['*.a.com'], paths: [{exact: /a}, {prefix: /b}, {regex: '/c.*'}], methods: [GET], \
                headers: {x-plan: {exact: free}}, route: r}, by: [{clientAddress: {ipv4Prefix: 24}}, {header: x-user}, {claim: sub}]"),
            "",
        ),
        (asked("host: limits, port: 8081, domain: d, timeout: 20ms, failurePolicy: Closed"), ""),
        ("{}".to_owned(), "spec.rules: missing"),
        ("{gateway: g, selector: {matchLabels: {a: b}}, rules: [{name: r, local: {requests: 1, per: 1s}}]}".to_owned(), "spec.gateway: stands beside selector"),
        ("{gateway: n/g, rules: [{name: r, local: {requests: 1, per: 1s}}]}".to_owned(), "spec.gateway: \"n/g\" has a namespace"),
        ("{rules: [{local: {requests: 1, per: 1s}}]}".to_owned(), "spec.rules[0].name: missing"),
        ("{rules: [{name: 'a b', local: {requests: 1, per: 1s}}]}".to_owned(), "spec.rules[0].name: \"a b\" has characters"),
        (
            "{rules: [{name: a, local: {requests: 1, per: 1s}}, {name: a, local: {requests: 1, per: 1s}}]}".to_owned(),
            "spec.rules[1].name: another rule is called \"a\"",
        ),
        (with(""), "spec.rules[0]: says neither local nor global"),
        (of("global: {}"), "spec.rules[0].global: stands beside local"),
        (with("global: {}"), "spec.service: missing, though a rule is global"),
        (with("local: {per: 1s}"), "spec.rules[0].local.requests: missing or 0"),
        (with("local: {requests: 1}"), "spec.rules[0].local.per: missing"),
        (with("local: {requests: 1, per: 20ms}"), "spec.rules[0].local.per: 0.02s is too short"),
        (local(", burst: 0"), "spec.rules[0].local.burst: 0 lets nothing pass"),
        (local(", maxKeys: 5"), "spec.rules[0].local.maxKeys: the rule has no keys"),
        (of("connections: {ports: [5432, 6379]}"), ""),
        (of("connections: {}"), ""),
        (
            "{service: {host: a, port: 1, domain: d}, rules: [{name: r, connections: {}, by: [{clientAddress: {}}], global: {}}]}".to_owned(),
            "",
        ),
        (of("connections: {ports: [0]}"), "spec.rules[0].connections.ports[0]: a port is missing"),
        (of("connections: {ports: [1, 1]}"), "spec.rules[0].connections.ports[1]: 1 is given twice"),
        (of("connections: {}, match: {methods: [GET]}"), "spec.rules[0].match: stands beside connections"),
        (of("connections: {}, by: [{header: x-a}]"), "spec.rules[0].by[0]: is not known of a connection"),
        (of("connections: {}, by: [{clientAddress: {}}]"), "spec.rules[0].by[0]: proxies have no buckets"),
        (
            "{service: {host: a, port: 1, domain: d}, rules: [{name: r, connections: {}, by: [{clientAddress: {ipv4Prefix: 24}}], global: {}}]}".to_owned(),
            "spec.rules[0].by[0]: addresses of connections are not cut",
        ),
        (
            "{service: {host: a, port: 1, domain: d}, rules: [{name: r, connections: {}, global: {hits: 2}}]}".to_owned(),
            "spec.rules[0].global.hits: a connection counts for one",
        ),
        (
            "{dryRun: true, rules: [{name: r, connections: {}, local: {requests: 1, per: 1s}}]}".to_owned(),
            "spec.dryRun: \"r\" counts connections",
        ),
        (
            "{tellClients: true, rules: [{name: r, connections: {}, local: {requests: 1, per: 1s}}]}".to_owned(),
            "spec.tellClients: every rule counts connections",
        ),
        (of("match: {}"), "spec.rules[0].match: empty"),
        (of("match: {paths: [{exact: a}]}"), "spec.rules[0].match.paths[0]: \"a\" does not begin"),
        (of("match: {paths: [{prefix: '/a?b'}]}"), "spec.rules[0].match.paths[0]: \"/a?b\" has a query"),
        (of("match: {paths: [{regex: '('}]}"), "spec.rules[0].match.paths[0]: not a regular expression"),
        (of("match: {paths: [{}]}"), "spec.rules[0].match.paths[0]: empty"),
        (of("match: {methods: ['G T']}"), "spec.rules[0].match.methods[0]: \"G T\" is no method"),
        (of("match: {headers: {':path': {exact: a}}}"), "spec.rules[0].match.headers.:path: \":path\" is not the name"),
        (of("match: {hosts: ['a.*']}"), "spec.rules[0].match.hosts[0]: \"a.*\" is not a host"),
        (
            "{rules: [{name: r, match: {route: x}, local: {requests: 1, per: 1s}}]}".to_owned(),
            "spec.rules[0].match.route: routes of VirtualServices are for gateways",
        ),
        (of("by: [{}]"), "spec.rules[0].by[0]: is not one key"),
        (of("by: [{header: x-a, claim: sub}]"), "spec.rules[0].by[0]: is not one key"),
        (of("by: [{header: 'x a'}]"), "spec.rules[0].by[0].header: \"x a\" is not the name"),
        (of("by: [{header: x-a}, {header: X-A}]"), "spec.rules[0].by[1]: is given twice"),
        (of("by: [{clientAddress: {ipv4Prefix: 33}}]"), "spec.rules[0].by[0].clientAddress.ipv4Prefix: such an address"),
        (of("by: [{header: a}, {header: b}, {header: c}, {header: d}]"), "spec.rules[0].by: 4 keys are too many"),
        (of("by: [{cookie: a}]"), "spec.rules[0].by[0].cookie: unknown field"),
        (
            "{service: {host: a, port: 1, domain: d}, rules: [{name: r, local: {requests: 1, per: 1s}}]}".to_owned(),
            "spec.service: no rule is global",
        ),
        (asked("port: 1, domain: d"), "spec.service.host: "),
        (asked("host: a, domain: d"), "spec.service.port: a port is missing"),
        (asked("host: a, port: 1"), "spec.service.domain: missing"),
        (asked("host: a, port: 1, domain: d, failurePolicy: Deny"), "spec.service.failurePolicy: "),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(spec, e)| (spec.as_str(), *e)).collect();
    check("RateLimit", &cases);
}

#[test]
fn extension_providers() {
    let found = |provider: &str| {
        let text = format!(
            "trustDomain: a\nextensionProviders: [{{name: p, {provider}}}, {{name: q, envoyExtAuthzGrpc: {{service: a.b, port: 1}}}}]\n"
        );
        let found = load_str("mesh.yaml", &text).diagnostics;
        found
            .iter()
            .map(|d| format!("{}: {}", d.path.as_deref().unwrap_or("-"), d.reason))
            .collect::<Vec<_>>()
    };
    let http = |more: &str| found(&format!("envoyExtAuthzHttp: {{service: n/a.b, port: 8000, {more}}}"));
    let all = "timeout: 1s, pathPrefix: /check, failOpen: true, statusOnError: '503', includeRequestHeadersInCheck: [x-a, 'x-b-*', '*-c'], \
        includeAdditionalHeadersInCheck: {x-d: e}, includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true, packAsBytes: true}, \
        headersToUpstreamOnAllow: [x-f], headersToDownstreamOnDeny: [x-g], headersToDownstreamOnAllow: [x-h]";
    assert_eq!(http(all), [] as [&str; 0]);
    let at = "extensionProviders[0].envoyExtAuthzHttp";
    for (more, expected) in [
        ("timeout: 0s", format!("{at}.timeout: 0s is too short")),
        ("pathPrefix: check", format!("{at}.pathPrefix: \"check\" does not begin")),
        ("statusOnError: '999'", format!("{at}.statusOnError: \"999\" is no status")),
        ("statusOnError: teapot", format!("{at}.statusOnError: \"teapot\" is no status")),
        (
            "includeRequestHeadersInCheck: ['*']",
            format!("{at}.includeRequestHeadersInCheck[0]: \"*\" names no"),
        ),
        (
            "headersToDownstreamOnDeny: ['a*b']",
            format!("{at}.headersToDownstreamOnDeny[0]: \"a*b\" names no"),
        ),
        (
            "includeAdditionalHeadersInCheck: {'a b': c}",
            format!("{at}.includeAdditionalHeadersInCheck.a b: not a header"),
        ),
        ("includeRequestBodyInCheck: {}", format!("{at}.includeRequestBodyInCheck.maxRequestBytes: missing")),
        ("headers: [a]", format!("{at}.headers: unknown field")),
    ] {
        assert!(http(more).iter().any(|text| text.starts_with(&expected)), "{expected}: {:?}", http(more));
    }
    for (provider, expected) in [
        (
            "envoyExtAuthzGrpc: {port: 1}",
            "extensionProviders[0].envoyExtAuthzGrpc.service: \"\" is no service",
        ),
        (
            "envoyExtAuthzGrpc: {service: '*.a', port: 1}",
            "extensionProviders[0].envoyExtAuthzGrpc.service: \"*.a\"",
        ),
        (
            "envoyExtAuthzGrpc: {service: a}",
            "extensionProviders[0].envoyExtAuthzGrpc.port: a port is missing",
        ),
        ("zipkin: {service: a.b}", "extensionProviders[0].zipkin.port: "),
        ("envoyOtelAls: {port: 1}", "extensionProviders[0].envoyOtelAls.service: "),
        ("envoyTcpAls: {service: a.b}", "extensionProviders[0].envoyTcpAls.port: a port is missing"),
        (
            "envoyHttpAls: {service: a.b, port: 1, additionalRequestHeadersToLog: ['a b']}",
            "extensionProviders[0].envoyHttpAls.additionalRequestHeadersToLog[0]: \"a b\" is no header",
        ),
        (
            "opentelemetry: {service: a.b, port: 1, http: {path: x}}",
            "extensionProviders[0].opentelemetry.http.path: ",
        ),
        (
            "datadog: {service: a.b, port: 1}",
            "extensionProviders[0].datadog: datadog is no provider of traces",
        ),
        // As the design has it.
        (
            "zipkin: {service: a.b, port: 14268, path: /api/traces}",
            "extensionProviders[0].zipkin.port: port 14268",
        ),
        ("", "extensionProviders[0]: does not say what it is"),
        (
            "envoyExtAuthzGrpc: {service: a, port: 1}, envoyExtAuthzHttp: {service: a, port: 1}",
            "extensionProviders[0]: is several things",
        ),
    ] {
        assert!(
            found(provider).iter().any(|text| text.starts_with(expected)),
            "{expected}: {:?}",
            found(provider)
        );
    }
}

#[test]
fn claims_choose_routes_at_gateways_alone() {
    let of = |gateways: &str, key: &str| {
        format!(
            "{{hosts: [a.com], {gateways} http: [{{match: [{{headers: {{'{key}': {{exact: x}}}}}}], \
             route: [{{destination: {{host: a}}}}]}}]}}"
        )
    };
    let at = |key: &str| format!("spec.http[0].match[0].headers.{key}: ");
    let cases = [
        (of("gateways: [g],", "@request.auth.claims.sub"), String::new()),
        (of("gateways: [g],", "@request.auth.claims[a.b][c]"), String::new()),
        (of("gateways: [g],", "@request.auth.claims"), at("@request.auth.claims") + "it is neither"),
        (
            of("gateways: [g],", "@request.auth.claims.a..b"),
            at("@request.auth.claims.a..b") + "a claim has no name",
        ),
        (of("gateways: [g],", "@request.auth"), at("@request.auth") + "\"@request.auth\" is not the name"),
        (of("", "@request.auth.claims.sub"), at("@request.auth.claims.sub") + "claims of tokens choose"),
        (
            of("gateways: [mesh, g],", "@request.auth.claims.sub"),
            at("@request.auth.claims.sub") + "claims of tokens",
        ),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(spec, e)| (spec.as_str(), e.as_str())).collect();
    check("VirtualService", &cases);
}

#[test]
fn service_mesh_configs() {
    let with = |more: &str| format!("{{services: [{{name: a, {more}}}]}}");
    let rule = |more: &str| with(&format!("securityPolicy: {{authorizationRules: [{{{more}}}]}}"));
    let cases = [
        ("{}".to_owned(), "spec.services: missing"),
        ("{services: [{name: a}, {name: a}]}".to_owned(), "spec.services[1].name: \"a\" is given twice"),
        ("{services: [{name: '*.a'}]}".to_owned(), "spec.services[0].name: a wildcard"),
        (with("trafficPolicy: {}"), "spec.services[0].trafficPolicy: empty"),
        (with("traffic_policy: {load_balancer: LEAST}"), "spec.services[0].traffic_policy.load_balancer: "),
        (
            with("trafficPolicy: {connectionPool: {maxConections: 1}}"),
            "spec.services[0].trafficPolicy.connectionPool.maxConections: unknown field",
        ),
        (
            with("trafficPolicy: {circuitBreaker: {interval: 0s}}"),
            "spec.services[0].trafficPolicy.circuitBreaker.interval: 0s is too short",
        ),
        (
            with("trafficPolicy: {circuitBreaker: {maxEjectionPercent: 101}}"),
            "spec.services[0].trafficPolicy.circuitBreaker.maxEjectionPercent: a share",
        ),
        (with("securityPolicy: {mtlsMode: MAYBE}"), "spec.services[0].securityPolicy.mtlsMode: "),
        (rule("operations: [GET /]"), "spec.services[0].securityPolicy.authorizationRules[0].from: missing"),
        (
            rule("from: [a b]"),
            "spec.services[0].securityPolicy.authorizationRules[0].from[0]: \"a b\" is no service account",
        ),
        (
            rule("from: [b], operations: [/api]"),
            "spec.services[0].securityPolicy.authorizationRules[0].operations[0]: \"/api\" is no operation",
        ),
        (
            rule("from: [b], operations: [get /api]"),
            "spec.services[0].securityPolicy.authorizationRules[0].operations[0]: \"get\" is no method",
        ),
        (
            rule("from: [b], operations: [GET api]"),
            "spec.services[0].securityPolicy.authorizationRules[0].operations[0]: \"api\" is no path",
        ),
        (
            rule("from: [b], operations: [GET /a/*/b]"),
            "spec.services[0].securityPolicy.authorizationRules[0].operations[0]: \"/a/*/b\" has a star inside",
        ),
        (
            with("observability: {metrics_enabled: false, accessLogging: true}"),
            "spec.services[0].observability: a.n.svc.cluster.local selects no workloads",
        ),
        (
            with("observability: {tracingEnabled: true}"),
            "spec.services[0].observability: a.n.svc.cluster.local selects no workloads",
        ),
        (
            with("observability: {samplingRate: 1.01}"),
            "spec.services[0].observability.samplingRate: 1.01 is no share of requests",
        ),
    ];
    check("ServiceMeshConfig", &cases.each_ref().map(|(spec, expected)| (spec.as_str(), *expected)));
}

#[test]
fn traffic_managements() {
    let with = |more: &str| {
        format!(
            "{{canaryDeployment: {{service: a, stableVersion: v1, canaryVersion: v2, trafficSplit: {{stable: 90, canary: 10}}, \
             successCriteria: {{errorRateThreshold: 0.5}}, rollbackCriteria: {{errorRateThreshold: 2}}{more}}}}}"
        )
    };
    let but = |from: &str, to: &str| with("").replace(from, to);
    let cases = [
        (
            with(", steps: [25, 50]"),
            "warning: spec.canaryDeployment.service: namespace n has no service a.n.svc.cluster.local",
        ),
        ("{}".to_owned(), "spec: says nothing"),
        (
            "{circuitBreakerStatus: {service: '*.a'}}".to_owned(),
            "spec.circuitBreakerStatus.service: a wildcard is no service",
        ),
        (
            "{circuit_breaker_status: {service: a, state: CLOSED}}".to_owned(),
            "spec.circuit_breaker_status.state: unknown field",
        ),
        (but("service: a", "service: '*.a'"), "spec.canaryDeployment.service: a wildcard"),
        (
            but("service: a", "service: a.m.svc.cluster.local"),
            "spec.canaryDeployment.service: a.m.svc.cluster.local is not in",
        ),
        (
            but("canaryVersion: v2", "canaryVersion: v1"),
            "spec.canaryDeployment.canaryVersion: is the stable one",
        ),
        (but("stableVersion: v1, ", ""), "spec.canaryDeployment.stableVersion: missing"),
        (but("canary: 10", "canary: 20"), "spec.canaryDeployment.trafficSplit: 90 and 20 are not 100"),
        (
            but("stable: 90, canary: 10", "stable: 100, canary: 0"),
            "spec.canaryDeployment.trafficSplit.canary: 0 is no trial",
        ),
        (with(", steps: [10]"), "spec.canaryDeployment.steps[0]: 10 does not come after 10"),
        (with(", steps: [50, 100]"), "spec.canaryDeployment.steps[1]: 100 does not come after 50"),
        (
            but("errorRateThreshold: 0.5", ""),
            "spec.canaryDeployment.successCriteria: says nothing of what is good",
        ),
        (
            but("errorRateThreshold: 2", ""),
            "spec.canaryDeployment.rollbackCriteria: says nothing of what is bad",
        ),
        (
            but("errorRateThreshold: 2", "errorRateThreshold: 0.2"),
            "spec.canaryDeployment.rollbackCriteria.errorRateThreshold: 0.2 is less",
        ),
        (
            but("errorRateThreshold: 2", "errorRateThreshold: 200"),
            "spec.canaryDeployment.rollbackCriteria.errorRateThreshold: out of range",
        ),
        (
            but("errorRateThreshold: 0.5", "errorRateThreshold: 0.005"),
            "warning: spec.canaryDeployment.successCriteria.errorRateThreshold: 0.005 is read as percent",
        ),
        (with(", sticky: true"), "spec.canaryDeployment.sticky: unknown field"),
        (
            with(", stickyBy: {httpHeaderName: x-user}"),
            "warning: spec.canaryDeployment.service: namespace n has no service",
        ),
        (
            with(", sticky_by: {http_cookie_name: session}"),
            "warning: spec.canaryDeployment.service: namespace n has no service",
        ),
        (
            with(", stickyBy: {useSourceIp: true}"),
            "warning: spec.canaryDeployment.service: namespace n has no service",
        ),
        (with(", stickyBy: {}"), "spec.canaryDeployment.stickyBy: a client is known by one thing"),
        (
            with(", stickyBy: {httpHeaderName: x-user, useSourceIp: true}"),
            "spec.canaryDeployment.stickyBy: a client is known by one thing",
        ),
        (
            with(", stickyBy: {httpHeaderName: x user}"),
            "spec.canaryDeployment.stickyBy.httpHeaderName: \"x user\" is no name",
        ),
        (
            with(", stickyBy: {httpCookieName: 'a;b'}"),
            "spec.canaryDeployment.stickyBy.httpCookieName: \"a;b\" is no name",
        ),
        (
            with(", prometheus: {address: 'http://prometheus.istio-system:9090/below'}"),
            "warning: spec.canaryDeployment.service: namespace n has no service",
        ),
        (
            with(", prometheus: {address: 'https://p', credential_name: c}"),
            "warning: spec.canaryDeployment.service: namespace n has no service",
        ),
        (
            with(", prometheus: {address: 'http://p', credentialName: c}"),
            "warning: spec.canaryDeployment.prometheus.credentialName: is sent in the clear",
        ),
        (with(", prometheus: {}"), "spec.canaryDeployment.prometheus.address: \"\" is no URL"),
        (
            with(", prometheus: {address: 'p:9090'}"),
            "spec.canaryDeployment.prometheus.address: \"p:9090\" is",
        ),
        (
            with(", prometheus: {address: 'http://u:p@p'}"),
            "spec.canaryDeployment.prometheus.address: \"http://u:p@p\" is no URL",
        ),
        (
            with(", prometheus: {address: 'http://p?query=x'}"),
            "spec.canaryDeployment.prometheus.address: \"http://p?query=x\" is no URL",
        ),
    ];
    check("TrafficManagement", &cases.each_ref().map(|(spec, expected)| (spec.as_str(), *expected)));
}
