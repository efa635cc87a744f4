//! Answers about worlds that are written as YAML, as users write them.

use proptest::prelude::*;

use crate::ingest::load_str;
use crate::model::lookup::effective_policy;
use crate::model::{EffectivePeerMode, Labels, World};

fn world(text: &str) -> World {
    let outcome = load_str("x.yaml", text);
    outcome.world.clone().unwrap_or_else(|| panic!("{:#?}", outcome.diagnostics))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn object(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    let group = if kind == "PeerAuthentication" { "security.istio.io/v1" } else { "networking.istio.io/v1" };
    let api = if kind == "Service" { "v1" } else { group };
    format!(
        "---\napiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn service(namespace: &str, name: &str) -> String {
    object("Service", namespace, name, "{ports: [{name: http, port: 80}]}")
}

fn routes(namespace: &str, name: &str, host: &str, more: &str) -> String {
    object(
        "VirtualService",
        namespace,
        name,
        &format!("{{hosts: ['{host}'], http: [{{route: [{{destination: {{host: d}}}}]}}]{more}}}"),
    )
}

#[test]
fn endpoints_serve_the_port_that_their_workload_maps() {
    let text = [
        object("Service", "n", "a", "{selector: {app: a}, ports: [{name: http, port: 80, targetPort: web}, {name: grpc, port: 90, targetPort: 9000}, {name: tcp-raw, port: 70}]}"),
        object("WorkloadEntry", "n", "w", "{address: 10.0.0.1, labels: {app: a}, ports: {web: 8080, grpc: 1, tcp-raw: 7070}, serviceAccount: s}"),
        object("WorkloadEntry", "n", "other", "{address: 10.0.0.2, labels: {app: b}}"),
        object("WorkloadEntry", "m", "foreign", "{address: 10.0.0.3, labels: {app: a}}"),
        object("ServiceEntry", "n", "e", "{hosts: [e.com], resolution: STATIC, ports: [{number: 443, name: web, protocol: HTTPS, targetPort: 8443}], workloadSelector: {labels: {app: a}}}"),
    ]
    .concat();
    let world = world(&text);
    let service = world.service("a.n.svc.cluster.local", "n").unwrap();
    assert_eq!(service.endpoints.len(), 1, "one workload of this namespace carries the label");
    let ports: Vec<_> =
        service.ports.iter().map(|port| service.endpoint_port(port, &service.endpoints[0])).collect();
    assert_eq!(ports, [Some(8080), Some(9000), Some(7070)]);
    let entry = world.service("e.com", "anywhere").unwrap();
    assert_eq!(entry.endpoint_port(&entry.ports[0], &entry.endpoints[0]), Some(8080));
    let served: Vec<_> =
        world.served_at("10.0.0.1").map(|(service, _)| service.hostname.to_string()).collect();
    assert_eq!(served, ["a.n.svc.cluster.local", "e.com"]);
}

#[test]
fn the_most_specific_host_wins_then_the_private_then_the_oldest() {
    let text = [
        routes("n", "wide", "*.com", ""),
        routes("n", "first", "a.com", ""),
        routes("n", "second", "a.com", ""),
        routes("m", "private", "a.com", ", exportTo: [.]"),
        routes("m", "gateway-only", "a.com", ", gateways: [g]"),
    ]
    .concat();
    let world = world(&text);
    let winner = |namespace: &str, host: &str| {
        world.virtual_service_for_host(namespace, "mesh", host).map(|object| object.meta.name.clone())
    };
    assert_eq!(winner("n", "a.com").as_deref(), Some("first"));
    assert_eq!(winner("m", "a.com").as_deref(), Some("private"));
    assert_eq!(winner("n", "b.com").as_deref(), Some("wide"));
    assert_eq!(winner("n", "b.org"), None);
    let bound = world.virtual_services_for("n", "m/g");
    assert_eq!(bound.iter().map(|object| object.meta.name.as_str()).collect::<Vec<_>>(), ["gateway-only"]);
}

#[test]
fn a_rule_is_sought_with_the_client_then_the_service_then_the_root() {
    let rule = |namespace: &str, name: &str, more: &str| {
        object("DestinationRule", namespace, name, &format!("{{host: a.n.svc.cluster.local{more}}}"))
    };
    let service = service("n", "a");
    let name_for = |text: &str, client: &str, client_labels: &Labels| {
        let world = world(text);
        let service = world.service("a.n.svc.cluster.local", client).unwrap().clone();
        world.destination_rule(client, client_labels, &service).map(|rule| rule.meta.name.clone())
    };
    let none = Labels::new();
    let root = object("DestinationRule", "istio-system", "root", "{host: '*.local'}");
    let mut text = format!("{service}{root}");
    assert_eq!(name_for(&text, "c", &none).as_deref(), Some("root"));
    text += &rule("n", "server", "");
    assert_eq!(name_for(&text, "c", &none).as_deref(), Some("server"));
    text += &rule("c", "client", "");
    assert_eq!(name_for(&text, "c", &none).as_deref(), Some("client"));
    text += &rule("c", "chosen", ", workloadSelector: {matchLabels: {app: x}}");
    assert_eq!(name_for(&text, "c", &labels(&[("app", "x")])).as_deref(), Some("chosen"));
    assert_eq!(name_for(&text, "c", &none).as_deref(), Some("client"));
    let hidden = format!("{service}{}", rule("n", "server", ", exportTo: [.]"));
    assert_eq!(name_for(&hidden, "c", &none), None);
    assert_eq!(name_for(&hidden, "n", &none).as_deref(), Some("server"));
}

#[test]
fn rules_for_one_host_merge_and_policies_inherit_block_by_block() {
    let first = "{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 1}}, \
                 portLevelSettings: [{port: {number: 90}, connectionPool: {tcp: {maxConnections: 9}}}]}, \
                 subsets: [{name: s, labels: {v: s}, trafficPolicy: {connectionPool: {tcp: {maxConnections: 2}}}}]}";
    let second = "{host: a, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}, subsets: [{name: s, labels: {v: z}}, {name: t, labels: {v: t}}]}";
    let text = [
        service("n", "a"),
        object("DestinationRule", "n", "r1", first),
        object("DestinationRule", "n", "r2", second),
    ];
    let world = world(&text.concat());
    let service = world.service("a.n.svc.cluster.local", "n").unwrap();
    let rule = world.destination_rule("n", &Labels::new(), service).unwrap();
    assert_eq!(rule.spec.subsets.len(), 2);
    assert_eq!(rule.spec.subsets[0].labels, labels(&[("v", "s")]));
    let limit = |subset: Option<&str>, port: u16| {
        let policy = effective_policy(&rule.spec, subset, port);
        let tcp = policy.connection_pool.and_then(|pool| pool.tcp);
        (policy.load_balancer.is_some(), tcp.and_then(|tcp| tcp.max_connections))
    };
    assert_eq!(limit(None, 80), (true, Some(1)));
    assert_eq!(limit(Some("s"), 80), (true, Some(2)));
    assert_eq!(limit(Some("t"), 80), (true, Some(1)));
    assert_eq!(limit(None, 90), (false, Some(9)), "a port's settings leave nothing over");
    assert_eq!(limit(Some("s"), 90), (false, Some(2)), "a subset's block goes before the rule's port");
}

#[test]
fn peer_modes_inherit_from_the_mesh_to_the_port() {
    let text = [
        object("PeerAuthentication", "istio-system", "mesh", "{mtls: {mode: STRICT}}"),
        object("PeerAuthentication", "n", "late", "{selector: {matchLabels: {app: a}}, mtls: {mode: UNSET}, portLevelMtls: {9000: {mode: DISABLE}, 9001: {mode: UNSET}}}"),
        object("PeerAuthentication", "m", "older", "{mtls: {mode: PERMISSIVE}}"),
        object("PeerAuthentication", "m", "younger", "{mtls: {mode: DISABLE}}"),
    ]
    .concat();
    let world = world(&text);
    let app = labels(&[("app", "a")]);
    assert_eq!(world.peer_mode("n", &app, None), EffectivePeerMode::Strict);
    assert_eq!(world.peer_mode("n", &app, Some(9000)), EffectivePeerMode::Disable);
    assert_eq!(world.peer_mode("n", &app, Some(9001)), EffectivePeerMode::Strict);
    assert_eq!(world.peer_mode("n", &Labels::new(), Some(9000)), EffectivePeerMode::Strict);
    assert_eq!(world.peer_mode("m", &app, None), EffectivePeerMode::Permissive);
    assert_eq!(World::default().peer_mode("n", &app, None), EffectivePeerMode::Permissive);
}

#[test]
fn a_sidecar_decides_what_its_workload_reaches() {
    let text = [
        object("Sidecar", "istio-system", "root", "{egress: [{hosts: ['*/*']}]}"),
        object("Sidecar", "n", "default", "{egress: [{hosts: ['./*', 'm/b.m.svc.cluster.local']}]}"),
        object("Sidecar", "n", "alone", "{workloadSelector: {labels: {app: x}}, egress: [{hosts: ['~/*']}]}"),
        service("n", "a"),
        service("m", "b"),
        service("m", "c"),
        service("m", "far"),
        routes("n", "redirected", "a", "").replace("host: d", "host: far.m.svc.cluster.local"),
    ]
    .concat();
    let world = world(&text);
    let reached = |namespace: &str, labels: &Labels| {
        let sidecar = world.sidecar_for(namespace, labels).unwrap();
        world
            .imported_services(namespace, sidecar.spec.egress.first())
            .iter()
            .map(|service| service.meta.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        reached("n", &Labels::new()),
        ["a", "b", "far"],
        "a destination of an imported route comes along"
    );
    assert_eq!(reached("n", &labels(&[("app", "x")])), [] as [&str; 0]);
    assert_eq!(reached("m", &Labels::new()), ["a", "b", "c", "far"]);
}

#[test]
fn a_host_name_held_twice_belongs_to_the_own_namespace_first() {
    let entry = |namespace: &str, more: &str| {
        object(
            "ServiceEntry",
            namespace,
            "e",
            &format!("{{hosts: [e.com], ports: [{{number: 80, name: http}}]{more}}}"),
        )
    };
    let world = world(&[entry("first", ""), entry("own", ""), entry("hidden", ", exportTo: [.]")].concat());
    let owner =
        |namespace: &str| world.service("e.com", namespace).map(|service| service.namespace().to_owned());
    assert_eq!(owner("own").as_deref(), Some("own"));
    assert_eq!(owner("hidden").as_deref(), Some("hidden"));
    assert_eq!(owner("elsewhere").as_deref(), Some("first"));
    assert_eq!(world.visible_services("elsewhere").len(), 1);
}

proptest! {
    /// With creation times the order of files says nothing: oldest first, then by name.
    #[test]
    fn precedence_follows_creation_not_position(order in Just((0..6usize).collect::<Vec<_>>()).prop_shuffle()) {
        let dated = |index: usize| {
            let year = 2020 + index / 2;
            routes("n", &format!("r{index}"), "a.com", "").replace(
                "metadata: {",
                &format!("metadata: {{creationTimestamp: '{year}-01-01T00:00:00Z', "),
            )
        };
        let text: String = order.iter().map(|index| dated(*index)).collect();
        let world = world(&text);
        let names: Vec<_> = world.virtual_services_for("n", "mesh").iter().map(|object| object.meta.name.clone()).collect();
        prop_assert_eq!(names, ["r0", "r1", "r2", "r3", "r4", "r5"]);
        prop_assert_eq!(world.version(), self::world(&(0..6).map(dated).collect::<String>()).version());
    }

    /// Whatever bytes a file holds, reading it ends with a World or with a reason.
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}|(kind|spec|a|:|-|\\n| |\\[|\\{|\\}|\\]|&a|\\*a|'|\"|\\|)*") {
        let outcome = load_str("x.yaml", &text);
        prop_assert!(outcome.world.is_some() || outcome.errors().count() > 0);
    }
}
