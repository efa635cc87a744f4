//! Rules about the forms of names, labels and empty things, each by an object that breaks it: those that Istio's own validation has
//! and that were found beside it (tests/peers/istio_validation).

use super::cases::check;

/// A VirtualService of one rule with these fields.
fn rule(fields: &str) -> String {
    format!("{{hosts: [a], http: [{{route: [{{destination: {{host: a}}}}], {fields}}}]}}")
}

fn all(kind: &str, cases: &[(String, &str)]) {
    let cases: Vec<(&str, &str)> = cases.iter().map(|(spec, expected)| (spec.as_str(), *expected)).collect();
    check(kind, &cases);
}

#[test]
fn virtual_services() {
    let at = "spec.http[0].";
    let said = |rest: &str| -> &str { format!("{at}{rest}").leak() };
    all(
        "VirtualService",
        &[
            (rule("match: [{sourceLabels: {version: v1.2_x, a.b/c: ''}}]"), ""),
            (
                rule("match: [{sourceLabels: {version: -v}}]"),
                said("match[0].sourceLabels.version: \"-v\" is no value"),
            ),
            (
                rule("match: [{sourceLabels: {'a b': v}}]"),
                said("match[0].sourceLabels.a b: \"a b\" is no name"),
            ),
            (
                rule("match: [{headers: {x: {regex: '*'}}}]"),
                said("match[0].headers.x: not a regular expression"),
            ),
            (rule("match: [{uri: {regex: '*'}}]"), ""),
            (
                rule("mirror: {host: b, subset: v1.2}"),
                said("mirrors[0].destination.subset: \"v1.2\" is no name of a subset"),
            ),
            (rule("corsPolicy: {allowOrigins: [{}]}"), said("corsPolicy.allowOrigins[0]: empty")),
            (rule("corsPolicy: {allowMethods: [GET, '*']}"), ""),
            (
                rule("corsPolicy: {allowMethods: [FETCH]}"),
                said("corsPolicy.allowMethods[0]: \"FETCH\" is no method"),
            ),
            (rule("corsPolicy: {maxAge: 0s}"), said("corsPolicy.maxAge: ")),
            (rule("retries: {attempts: 1, perTryTimeout: 0s}"), said("retries.perTryTimeout: ")),
            (
                rule("name: x").replace("hosts", "gateways: ['-x'], hosts"),
                "spec.gateways: \"n/-x\" is no name",
            ),
            (
                rule("name: x").replace("hosts", "exportTo: ['-x'], hosts"),
                "spec.exportTo[0]: \"-x\" is no name of a namespace",
            ),
        ],
    );
}

#[test]
fn destination_rules() {
    let ports = |more: &str| {
        format!("{{host: a, trafficPolicy: {{portLevelSettings: [{{port: {{number: 80}}{more}}}]}}}}")
    };
    all(
        "DestinationRule",
        &[
            ("{host: a, subsets: [{name: v1-x, labels: {v: v1.2}}]}".to_owned(), ""),
            (
                "{host: a, subsets: [{name: v1.2, labels: {v: a}}]}".to_owned(),
                "spec.subsets[0].name: \"v1.2\" is no name of a subset",
            ),
            (
                "{host: a, subsets: [{name: v, labels: {v: '*'}}]}".to_owned(),
                "spec.subsets[0].labels.v: \"*\" is no value",
            ),
            (
                "{host: a, workloadSelector: {matchLabels: {v: 'a*'}}}".to_owned(),
                "spec.workloadSelector.matchLabels.v: labels are",
            ),
            (ports(", tls: {mode: DISABLE}"), ""),
            (ports(""), "spec.trafficPolicy.portLevelSettings[0]: says nothing of the port"),
        ],
    );
}

#[test]
fn entries_groups_and_gateways() {
    let entry = |fields: &str| format!("{{hosts: [a.com, b.com], resolution: DNS, {fields}}}");
    all(
        "ServiceEntry",
        &[
            (entry("ports: [{number: 80, name: http, protocol: HTTP}]"), ""),
            (
                entry("ports: [{number: 80, name: -x, protocol: HTTP}]"),
                "spec.ports[0].name: \"-x\" is no name of a port",
            ),
            (entry("ports: [{number: 80, name: x}]"), "spec.hosts: several hosts on a TCP port"),
            (
                entry(
                    "ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {a: '*'}}",
                ),
                "spec.workloadSelector.labels.a: labels are matched in full",
            ),
            (
                entry(
                    "ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: c.com, labels: {a: 'b c'}}]",
                ),
                "spec.endpoints[0].labels.a: \"b c\" is no value",
            ),
        ],
    );
    let group = |fields: &str| format!("{{template: {{serviceAccount: a}}, {fields}}}");
    all(
        "WorkloadGroup",
        &[
            (group("metadata: {labels: {app: a}}"), ""),
            (group("metadata: {labels: {app: '*'}}"), "spec.metadata.labels.app: \"*\" is no value"),
            (
                group("probe: {httpGet: {port: 80, httpHeaders: [{name: 'a b', value: c}]}}"),
                "spec.probe.httpGet.httpHeaders[0].name: \"a b\" is not the name of a header",
            ),
        ],
    );
    let server = |host: &str| {
        format!(
            "{{selector: {{a: b}}, servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ['{host}']}}]}}"
        )
    };
    let short = "spec.servers[0].hosts[0]: \"shop\" is a short name";
    all(
        "Gateway",
        &[
            (server("shop.example"), ""),
            (server("./*"), ""),
            (server("shop"), short),
            (server("n/shop"), short),
        ],
    );
}

#[test]
fn sidecars() {
    let port = |fields: &str| {
        format!("{{egress: [{{port: {{number: 80, protocol: HTTP, {fields}}}, hosts: ['./*']}}]}}")
    };
    let proxy = |mode: &str, port: &str| {
        format!(
            "{{outboundTrafficPolicy: {{mode: {mode}, egressProxy: {{host: out.edge.svc.cluster.local{port}}}}}}}"
        )
    };
    all(
        "Sidecar",
        &[
            ("{workloadSelector: {labels: {a: b}}}".to_owned(), "spec: empty"),
            (
                "{workloadSelector: {labels: {a: '*'}}, egress: [{hosts: ['./*']}]}".to_owned(),
                "spec.workloadSelector.labels.a: labels are matched in full",
            ),
            ("{ingress: [{port: {number: 80}}]}".to_owned(), ""),
            (port("name: http"), ""),
            (port("name: '*'"), "spec.egress[0].port.name: \"*\" is no name of a port"),
            (proxy("ALLOW_ANY", ", port: {number: 80}"), ""),
            (proxy("ALLOW_ANY", ""), "spec.outboundTrafficPolicy.egressProxy.port: missing"),
            (
                proxy("REGISTRY_ONLY", ", port: {number: 80}"),
                "spec.outboundTrafficPolicy.egressProxy: nothing goes there",
            ),
            (
                "{outboundTrafficPolicy: {egressProxy: {host: a, port: {number: 80}}}}".to_owned(),
                "spec.outboundTrafficPolicy.egressProxy: nothing goes there",
            ),
        ],
    );
}

#[test]
fn policies() {
    check(
        "PeerAuthentication",
        &[(
            "{selector: {matchLabels: {a: 'b*'}}}",
            "spec.selector.matchLabels.a: labels are matched in full",
        )],
    );
    let when =
        |key: &str, value: &str| format!("{{rules: [{{when: [{{key: {key}, values: ['{value}']}}]}}]}}");
    let at = "spec.rules[0].when[0].values[0]: ";
    all(
        "AuthorizationPolicy",
        &[
            (when("source.serviceAccount", "n/a"), ""),
            (when("source.serviceAccount", "*"), format!("{at}\"*\" is no service account").leak()),
            (when("source.trustDomain", "a*"), ""),
            (when("source.trustDomain", "*a*"), format!("{at}\"*a*\" is no trust domain").leak()),
            (
                when("source.trustDomain", "a")
                    .replace("{rules", "{action: CUSTOM, provider: {name: p}, rules"),
                "spec.rules[0].when[0].key: not allowed with CUSTOM",
            ),
        ],
    );
}
