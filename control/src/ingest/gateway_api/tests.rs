//! What becomes of objects of the Gateway API: which rules follow, in which order, and how each object stands.

use std::sync::Arc;

use super::super::document::Collector;
use super::super::tree;
use super::*;
use crate::model::Kind;
use crate::model::values::StringMatch;
use crate::model::virtual_service::{HttpRoute as Rule, VirtualService};

/// A class, and a Gateway with a listener of each sort.
const EDGE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: weft}
spec: {controllerName: weft.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: edge}
spec:
  gatewayClassName: weft
  listeners:
    - {name: own, port: 80, protocol: HTTP, hostname: '*.own.example'}
    - {name: all, port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
    - {name: prod, port: 8081, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {env: prod}}}}}
    - {name: grpc, port: 8082, protocol: HTTP, allowedRoutes: {namespaces: {from: All}, kinds: [{kind: GRPCRoute}]}}
    - {name: tls, port: 8443, protocol: TLS, hostname: '*.tls.example', tls: {mode: Passthrough}, allowedRoutes: {namespaces: {from: All}}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {env: prod}}
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop}
spec: {selector: {app: a}, ports: [{name: http, port: 80}, {name: http-admin, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: shop}
spec: {selector: {app: b}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: other}
spec: {selector: {app: far}, ports: [{name: http, port: 80}]}
---
";

struct Seen {
    objects: Objects,
    standings: Standings,
    /// Errors of reading, and warnings of both.
    found: Vec<String>,
}

fn seen(yaml: &str) -> Seen {
    let mut collector = Collector::default();
    let file: Arc<str> = "x.yaml".into();
    for document in tree::parse(yaml).expect("YAML") {
        collector.take(&file, &document);
    }
    let Collector { mut objects, mut diagnostics, .. } = collector;
    let standings = convert(&mut objects, &mut diagnostics);
    Seen { objects, standings, found: diagnostics.iter().map(ToString::to_string).collect() }
}

fn seen_in(base: &str, more: &str) -> crate::model::World {
    crate::model::World::new(seen(&format!("{base}{more}")).objects)
}

fn at_edge(more: &str) -> Seen {
    seen(&format!("{EDGE}{more}"))
}

fn route(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

impl Seen {
    /// `type=reason` of each condition of a route's only parent, `!` before those that do not hold.
    fn parent(&self, kind: Kind, namespace: &str, name: &str) -> String {
        match self.standings.get(&key(kind, namespace, name)) {
            Some(Standing::Route(parents)) if parents.len() == 1 => written(&parents[0].conditions),
            other => panic!("{other:?}"),
        }
    }

    fn gateway(&self) -> (String, Vec<(String, usize, String)>) {
        match self.standings.get(&key(Kind::ApiGateway, "edge", "gw")) {
            Some(Standing::Gateway { conditions, listeners, .. }) => {
                let of = |one: &ListenerStanding| (one.name.clone(), one.attached, written(&one.conditions));
                (written(conditions), listeners.iter().map(of).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    /// The rules of a host at a Gateway, or of the mesh for clients of a namespace.
    fn rules(&self, gateway: &str, host: &str) -> &VirtualService {
        let of = |v: &&Arc<Object<VirtualService>>| v.spec.binds(gateway) && v.spec.hosts == [host];
        let found: Vec<_> = self.objects.virtual_services.iter().filter(of).collect();
        assert_eq!(found.len(), 1, "{gateway} {host}: {:#?}", self.objects.virtual_services);
        &found[0].spec
    }

    /// Names of these rules.
    fn order(&self, gateway: &str, host: &str) -> Vec<&str> {
        self.rules(gateway, host).http.iter().map(|rule| rule.name.rsplit('.').next().unwrap()).collect()
    }

    /// The one rule of a route at the listener for all.
    fn rule(&self) -> &Rule {
        &self.rules("edge/gw~all", "*").http[0]
    }
}

fn written(conditions: &[Condition]) -> String {
    let of = |one: &Condition| format!("{}{}={}", if one.holds { "" } else { "!" }, one.kind, one.reason);
    conditions.iter().map(of).collect::<Vec<_>>().join(" ")
}

/// A route at the listener for all, with one rule.
fn rule(rule: &str) -> Seen {
    let spec = format!("{{parentRefs: [{{name: gw, namespace: edge, sectionName: all}}], rules: [{rule}]}}");
    let seen = at_edge(&route("HTTPRoute", "shop", "r", &spec));
    assert_eq!(seen.found, [""; 0]);
    seen
}

#[test]
fn a_route_is_told_how_it_stands_with_its_parent() {
    const RESOLVED: &str = "ResolvedRefs=ResolvedRefs";
    let a = "rules: [{backendRefs: [{name: a, port: 80}]}]";
    let at = |parent: &str, rest: &str| format!("{{parentRefs: [{{{parent}}}], {rest}}}");
    let gw = |section: &str| format!("name: gw, namespace: edge, sectionName: {section}");
    for (namespace, spec, accepted, resolved) in [
        ("shop", at(&gw("all"), a), "Accepted=Accepted", RESOLVED),
        ("shop", at(&gw("prod"), a), "Accepted=Accepted", RESOLVED),
        ("shop", at("name: gw, namespace: edge, port: 8080", a), "Accepted=Accepted", RESOLVED),
        ("shop", at("name: gw, namespace: edge, port: 1", a), "!Accepted=NoMatchingParent", RESOLVED),
        ("shop", at(&gw("nowhere"), a), "!Accepted=NoMatchingParent", RESOLVED),
        ("shop", at(&gw("own"), a), "!Accepted=NotAllowedByListeners", RESOLVED),
        ("shop", at(&gw("grpc"), a), "!Accepted=NotAllowedByListeners", RESOLVED),
        ("shop", at(&gw("tls"), a), "!Accepted=NotAllowedByListeners", RESOLVED),
        ("other", at(&gw("prod"), "hostnames: [a.b]"), "!Accepted=NotAllowedByListeners", RESOLVED),
        ("edge", at(&gw("own"), "hostnames: [a.example]"), "!Accepted=NoMatchingListenerHostname", RESOLVED),
        ("edge", at(&gw("own"), "hostnames: [a.own.example]"), "Accepted=Accepted", RESOLVED),
        (
            "shop",
            at(&gw("all"), "rules: [{backendRefs: [{name: gone, port: 80}]}]"),
            "Accepted=Accepted",
            "!ResolvedRefs=BackendNotFound",
        ),
        (
            "shop",
            at(&gw("all"), "rules: [{backendRefs: [{name: a, port: 8}]}]"),
            "Accepted=Accepted",
            "!ResolvedRefs=BackendNotFound",
        ),
        (
            "shop",
            at(&gw("all"), "rules: [{backendRefs: [{name: far, namespace: other, port: 80}]}]"),
            "Accepted=Accepted",
            "!ResolvedRefs=RefNotPermitted",
        ),
        (
            "shop",
            at(&gw("all"), "rules: [{backendRefs: [{name: a, kind: Bucket, group: x.example}]}]"),
            "Accepted=Accepted",
            "!ResolvedRefs=InvalidKind",
        ),
        (
            "shop",
            at(
                &gw("all"),
                "rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 80}}}], \
                 backendRefs: [{name: a, port: 80}]}]",
            ),
            "Accepted=Accepted",
            "!ResolvedRefs=BackendNotFound",
        ),
        ("shop", at("group: '', kind: Service, name: a", a), "Accepted=Accepted", RESOLVED),
        ("shop", at("group: '', kind: Service, name: a, port: 9", a), "!Accepted=NoMatchingParent", RESOLVED),
        ("shop", at("group: '', kind: Service, name: gone", a), "!Accepted=NoMatchingParent", RESOLVED),
    ] {
        let seen = at_edge(&route("HTTPRoute", namespace, "r", &spec));
        assert_eq!(seen.parent(Kind::HttpRoute, namespace, "r"), format!("{accepted} {resolved}"), "{spec}");
        let wrong = usize::from(accepted.starts_with('!')) + usize::from(resolved.starts_with('!'));
        assert_eq!(seen.found.len(), wrong, "{spec}: {:?}", seen.found);
        assert!(seen.found.iter().all(|text| text.starts_with("x.yaml:") && text.contains("HTTPRoute")));
    }
    // With a grant the other namespace's Service may be meant, and with one for another it may not.
    for (name, permitted) in [("far", true), ("near", false)] {
        let grant = format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: other}}\nspec: \
             {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}}], to: [{{group: '', kind: Service, name: {name}}}]}}\n---\n"
        );
        let spec = at(&gw("all"), "rules: [{backendRefs: [{name: far, namespace: other, port: 80}]}]");
        let seen = at_edge(&(grant + &route("HTTPRoute", "shop", "r", &spec)));
        assert_eq!(seen.parent(Kind::HttpRoute, "shop", "r").ends_with(RESOLVED), permitted);
    }
}

#[test]
fn parents_of_other_controllers_are_nobodys_business_here() {
    let theirs = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: theirs}
spec: {controllerName: istio.io/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: theirs, namespace: shop}
spec: {gatewayClassName: theirs, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
";
    let spec = "{parentRefs: [{name: theirs}], rules: [{backendRefs: [{name: a, port: 80}]}]}";
    let seen = at_edge(&(theirs.to_owned() + &route("HTTPRoute", "shop", "r", spec)));
    assert_eq!(seen.found, [""; 0]);
    assert!(!seen.standings.contains_key(&key(Kind::ApiGateway, "shop", "theirs")));
    assert_eq!(seen.standings[&key(Kind::HttpRoute, "shop", "r")], Standing::Route(Vec::new()));
    assert!(seen.objects.virtual_services.iter().all(|v| v.spec.hosts[0].contains("own.example")));
    // A class that is not there is a mistake.
    let seen = at_edge(&theirs.replace("gatewayClassName: theirs", "gatewayClassName: their"));
    assert!(seen.found[0].contains("there is no GatewayClass \"their\""), "{:?}", seen.found);
}

#[test]
fn a_parent_that_is_not_there_is_said() {
    let spec = "{parentRefs: [{name: gw, namespace: edge}, {name: gw}], hostnames: [x.own.example]}";
    let seen = at_edge(&route("HTTPRoute", "shop", "r", spec));
    assert_eq!(seen.found.len(), 1, "{:?}", seen.found);
    assert!(seen.found[0].contains("spec.parentRefs[1]: there is no Gateway shop/gw"), "{:?}", seen.found);
}

#[test]
fn a_host_outside_is_a_backend_by_its_service_entry() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: shop}\nspec: {hosts: [api.example.com], \
                 ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}\n---\n";
    let spec = |host: &str| {
        format!(
            "{{parentRefs: [{{name: gw, namespace: edge, sectionName: all}}], rules: [{{backendRefs: [{{group: networking.istio.io, kind: Hostname, name: {host}, port: 80}}]}}]}}"
        )
    };
    let seen = |host: &str| at_edge(&(entry.to_owned() + &route("HTTPRoute", "shop", "r", &spec(host))));
    assert_eq!(seen("api.example.com").rule().route[0].destination.host, "api.example.com");
    assert_eq!(seen("other.example.com").rule().direct_response.as_ref().unwrap().status, 500);
    assert!(seen("other.example.com").found[0].contains("BackendNotFound"));
}

/// A certificate and its key, each as a text of YAML.
fn pair() -> [String; 2] {
    let end = time::Duration::days(1);
    let now = std::time::SystemTime::now().into();
    let root =
        weft_certs::authority::Authority::root(weft_certs::authority::KeyKind::P256, now, end).unwrap();
    [root.certificate_pem(), root.key_pem()].map(|text| serde_json::to_string(text).unwrap())
}

#[test]
fn a_gateway_is_told_what_becomes_of_each_listener() {
    let gateway = |listeners: &str, more: &str| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: weft}}\nspec: {{controllerName: \
             weft.dev/gateway-controller}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gw, namespace: \
             edge}}\nspec: {{gatewayClassName: weft, listeners: [{listeners}]}}\n---\n{more}"
        );
        seen(&text)
    };
    let [chain, key] = pair();
    let secret = |namespace: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {{name: pair, namespace: {namespace}}}\nstringData: \
             {{tls.crt: {chain}, tls.key: {key}}}\n---\n"
        )
    };
    let https = |rest: &str| {
        format!(
            "{{name: https, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: pair{rest}}}]}}}}"
        )
    };
    let good = "Accepted=Accepted !Conflicted=NoConflicts ResolvedRefs=ResolvedRefs";
    let listener = |seen: &Seen, index: usize| seen.gateway().1[index].2.clone();

    // A workload that carries its name serves it; one elsewhere does not.
    for (namespace, programmed) in [("edge", "Programmed=Programmed"), ("shop", "!Programmed=NoResources")] {
        let workload = format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: w, namespace: {namespace}}}\nspec: {{address: \
             127.0.0.1, labels: {{gateway.networking.k8s.io/gateway-name: gw}}}}\n---\n"
        );
        let seen = gateway("{name: http, port: 80, protocol: HTTP}", &workload);
        assert_eq!(seen.gateway().0, format!("Accepted=Accepted {programmed}"));
        let made = &seen.objects.gateways[0];
        assert_eq!(
            (made.full_name().as_str(), made.spec.namespace.as_deref()),
            ("edge/gw~http", Some("edge"))
        );
        assert_eq!(made.spec.selector["gateway.networking.k8s.io/gateway-name"], "gw");
    }
    // A certificate has to be there, and to be permitted.
    let seen = gateway(&https(""), "");
    assert!(listener(&seen, 0).contains("!ResolvedRefs=InvalidCertificateRef !Programmed=Invalid"));
    assert_eq!(seen.gateway().0, "!Accepted=ListenersNotValid !Programmed=Invalid");
    assert!(seen.objects.gateways.is_empty(), "what has no certificate is not opened");
    let seen = gateway(&https(""), &secret("edge"));
    assert!(listener(&seen, 0).starts_with(good));
    let tls = seen.objects.gateways[0].spec.servers[0].tls.as_ref().unwrap();
    assert_eq!(tls.certificates, [("edge".to_owned(), "pair".to_owned())]);
    let elsewhere = https(", namespace: vault");
    let seen = gateway(&elsewhere, &secret("vault"));
    assert!(listener(&seen, 0).contains("!ResolvedRefs=RefNotPermitted"));
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: vault}\nspec: {from: \
                 [{group: gateway.networking.k8s.io, kind: Gateway, namespace: edge}], to: [{group: '', kind: Secret}]}\n---\n";
    let seen = gateway(&elsewhere, &(secret("vault") + grant));
    assert!(listener(&seen, 0).starts_with(good), "{:?}", seen.found);
    // And to be a certificate.
    let broken = secret("edge").replace(&key, "'-----BEGIN PRIVATE KEY-----'");
    let seen = gateway(&https(""), &broken);
    assert!(listener(&seen, 0).contains("!ResolvedRefs=InvalidCertificateRef"), "{}", listener(&seen, 0));
    // A protocol that nobody here speaks is its listener's trouble alone.
    let seen = gateway("{name: a, port: 80, protocol: HTTP}, {name: b, port: 90, protocol: TCP}", "");
    assert!(seen.gateway().0.starts_with("Accepted=ListenersNotValid"), "{}", seen.gateway().0);
    assert!(listener(&seen, 0).starts_with(good), "{}", listener(&seen, 0));
    let told = listener(&seen, 1);
    assert!(
        told.starts_with("!Accepted=UnsupportedProtocol") && told.ends_with("!Programmed=Invalid"),
        "{told}"
    );
    assert_eq!(seen.objects.gateways.len(), 1);
    // Of those that contradict each other the first is opened.
    let seen = gateway(
        "{name: a, port: 80, protocol: HTTP, hostname: a.b}, {name: b, port: 80, protocol: HTTP, hostname: a.b}, \
         {name: c, port: 80, protocol: HTTP}, {name: d, port: 80, protocol: TLS, tls: {mode: Passthrough}}",
        "",
    );
    let told: Vec<_> = (0..4).map(|index| listener(&seen, index)).collect();
    assert!(told[0].starts_with(good) && told[2].starts_with(good), "{told:?}");
    assert!(told[1].starts_with("!Accepted=HostnameConflict Conflicted=HostnameConflict"), "{told:?}");
    assert!(told[3].starts_with("!Accepted=ProtocolConflict Conflicted=ProtocolConflict"), "{told:?}");
    assert_eq!(seen.objects.gateways.len(), 2);
    // Kinds that a protocol does not take.
    let seen = gateway(
        "{name: a, port: 80, protocol: HTTP, allowedRoutes: {kinds: [{kind: HTTPRoute}, {kind: TLSRoute}]}}",
        "",
    );
    assert!(listener(&seen, 0).contains("!ResolvedRefs=InvalidRouteKinds"), "{}", listener(&seen, 0));
    // A Service in front says which workloads serve it.
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: front, namespace: infra}\nspec: {selector: {istio: ingress}, ports: \
                   [{name: http, port: 80}]}\n---\n";
    let address = |host: &str| {
        let text = format!(
            "{{name: http, port: 80, protocol: HTTP}}], addresses: [{{type: Hostname, value: {host}}}"
        );
        gateway(&text, service)
    };
    let seen = address("front.infra.svc.cluster.local");
    let made = &seen.objects.gateways[0].spec;
    assert_eq!((made.selector["istio"].as_str(), made.namespace.as_deref()), ("ingress", Some("infra")));
    assert_eq!(
        address("none.infra.svc.cluster.local").gateway().0,
        "Accepted=Accepted !Programmed=AddressNotUsable"
    );
    assert!(address("x.example.com").found[0].contains("spec.addresses[0].value"));
}

#[test]
fn gateways_that_one_workload_serves_contradict_each_other_however_they_name_it() {
    let text = |label: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: weft}}
spec: {{controllerName: weft.dev/gateway-controller}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: gw, namespace: edge}}
spec: {{gatewayClassName: weft, listeners: [{{name: a, port: 80, protocol: HTTP, hostname: a.b}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: other, namespace: edge}}
spec:
  gatewayClassName: weft
  listeners: [{{name: a, port: 80, protocol: HTTP, hostname: a.b}}]
  addresses: [{{type: Hostname, value: front.edge.svc.cluster.local}}]
---
apiVersion: v1
kind: Service
metadata: {{name: front, namespace: edge}}
spec: {{selector: {{istio: ingress}}, ports: [{{name: http, port: 80}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: w, namespace: edge}}
spec: {{address: 127.0.0.1, labels: {{istio: ingress, gateway.networking.k8s.io/gateway-name: {label}}}}}
---
"
        )
    };
    assert_eq!(seen(&text("gw")).objects.gateways.len(), 1);
    assert_eq!(seen(&text("third")).objects.gateways.len(), 2);
}

#[test]
fn routes_are_counted_where_they_attach() {
    let both = "{parentRefs: [{name: gw, namespace: edge}], hostnames: [x.own.example, y.example], rules: [{backendRefs: [{name: a, port: 80}]}]}";
    let seen = at_edge(&(route("HTTPRoute", "shop", "r", both) + &route("GRPCRoute", "shop", "g", both)));
    let counts: Vec<_> = seen.gateway().1.into_iter().map(|(name, attached, _)| (name, attached)).collect();
    let wanted = [("own", 0), ("all", 2), ("prod", 2), ("grpc", 1), ("tls", 0)];
    assert_eq!(counts, wanted.map(|(name, attached)| (name.to_owned(), attached)));
}

#[test]
fn rules_of_all_routes_stand_in_their_order() {
    let first = "{parentRefs: [{name: gw, namespace: edge, sectionName: all}], hostnames: [x.example], rules: [
        {name: everything, backendRefs: [{name: a, port: 80}]},
        {name: prefix, matches: [{path: {value: /a}}], backendRefs: [{name: a, port: 80}]},
        {name: header, matches: [{path: {value: /a}, headers: [{name: X, value: y}]}], backendRefs: [{name: a, port: 80}]}]}";
    let second =
        "{parentRefs: [{name: gw, namespace: edge, sectionName: all}], hostnames: ['*.example'], rules: [
        {name: wild, matches: [{path: {type: Exact, value: /a/b}}], backendRefs: [{name: b, port: 80}]}]}";
    let third = "{parentRefs: [{name: gw, namespace: edge, sectionName: all}], hostnames: [x.example], rules: [
        {name: longer, matches: [{path: {value: /a/b}}, {path: {type: Exact, value: /a}}], backendRefs: [{name: b, port: 80}]},
        {name: later, matches: [{path: {value: /a}}], backendRefs: [{name: b, port: 80}]}]}";
    let texts = route("HTTPRoute", "shop", "a", first)
        + &route("HTTPRoute", "shop", "b", second)
        + &route("HTTPRoute", "shop", "c", third);
    let seen = at_edge(&texts);
    assert_eq!(seen.found, [""; 0]);
    let own = ["longer", "longer", "header", "prefix", "later", "everything"];
    assert_eq!(seen.order("edge/gw~all", "x.example"), [&own[..], &["wild"]].concat());
    assert_eq!(seen.order("edge/gw~all", "*.example"), ["wild"]);
    let rules = seen.rules("edge/gw~all", "x.example");
    assert_eq!(rules.http[0].matches[0].uri, Some(StringMatch::Exact("/a".to_owned())));
    assert_eq!(rules.http[0].name, "shop.c.longer");
    // Whose rules they are is kept for whoever looks for them.
    let from = rules.http[0].origin.as_deref();
    assert_eq!(from, Some("/apis/gateway.networking.k8s.io/v1/namespaces/shop/http-route/c"));
    // A listener with a host answers for it, whoever else would.
    assert!(seen.rules("edge/gw~own", "*.own.example").http.is_empty());
}

#[test]
fn a_less_specific_listener_does_not_serve_a_more_specific_ones_hosts() {
    let gateway = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: two, namespace: shop}
spec:
  gatewayClassName: weft
  listeners:
    - {name: any, port: 80, protocol: HTTP}
    - {name: one, port: 80, protocol: HTTP, hostname: one.example}
---
";
    let spec = "{parentRefs: [{name: two, sectionName: any}], hostnames: [one.example, two.example], rules: [{backendRefs: [{name: a, port: 80}]}]}";
    let seen = at_edge(&(gateway.to_owned() + &route("HTTPRoute", "shop", "r", spec)));
    assert_eq!(seen.order("shop/two~any", "two.example"), ["0"]);
    assert!(seen.rules("shop/two~one", "one.example").http.is_empty());
    let bound = |v: &&Arc<Object<VirtualService>>| v.spec.binds("shop/two~any");
    assert_eq!(seen.objects.virtual_services.iter().filter(bound).count(), 1);
}

#[test]
fn matches_say_what_a_request_must_look_like() {
    let of = |given: &str| {
        let seen = rule(&format!("{{matches: [{given}], backendRefs: [{{name: a, port: 80}}]}}"));
        seen.rule().matches[0].clone()
    };
    let path = of("{path: {type: PathPrefix, value: /a/}}");
    assert_eq!((path.uri, path.whole_segments), (Some(StringMatch::Prefix("/a".to_owned())), true));
    assert_eq!(of("{path: {value: /}}"), crate::model::virtual_service::HttpMatch::default());
    let path = of("{path: {type: RegularExpression, value: '/a.*'}}");
    assert_eq!((path.uri, path.whole_segments), (Some(StringMatch::Regex("/a.*".to_owned())), false));
    let rest = of(
        "{method: POST, headers: [{name: X-A, value: b}], queryParams: [{name: Q, type: RegularExpression, value: 'c+'}]}",
    );
    assert_eq!(rest.method, Some(StringMatch::Exact("POST".to_owned())));
    assert_eq!(rest.headers["x-a"], StringMatch::Exact("b".to_owned()));
    assert_eq!(rest.query_params["Q"], StringMatch::Regex("c+".to_owned()));
}

#[test]
fn shares_of_what_is_not_there_answer_500() {
    let of = |backends: &str| rule_of(&format!("{{backendRefs: [{backends}]}}"));
    let shares =
        |rule: &Rule| rule.route.iter().map(|r| (r.destination.host.clone(), r.weight)).collect::<Vec<_>>();
    let a = "a.shop.svc.cluster.local".to_owned();
    let rule = of("{name: a, port: 80, weight: 9}, {name: b, port: 80, weight: 0}, {name: gone, port: 80}");
    assert!(rule.broken_is_500);
    assert_eq!(shares(&rule)[0], (a.clone(), 9));
    assert!(shares(&rule)[1].0.ends_with(".internal") && shares(&rule)[1].1 == 1, "{:?}", shares(&rule));
    assert_eq!(rule.route.len(), 2);
    let rule = of("{name: a, port: 81}");
    assert_eq!((shares(&rule), rule.broken_is_500), (vec![(a, 1)], false));
    assert_eq!(rule.route[0].destination.port.unwrap().number, 81);
    for none in ["", "{name: gone, port: 80}", "{name: a, port: 80, weight: 0}"] {
        let rule = of(none);
        assert_eq!(rule.direct_response.map(|answer| answer.status), Some(500), "{none}");
        assert!(rule.route.is_empty());
    }
}

/// The only rule of such a route, whatever is to be said of it.
fn rule_of(rule: &str) -> Rule {
    let spec = format!("{{parentRefs: [{{name: gw, namespace: edge, sectionName: all}}], rules: [{rule}]}}");
    at_edge(&route("HTTPRoute", "shop", "r", &spec)).rule().clone()
}

#[test]
fn filters_change_requests_and_responses() {
    let of = |filters: &str| {
        rule(&format!("{{filters: [{filters}], backendRefs: [{{name: a, port: 80}}]}}")).rule().clone()
    };
    let rule = of(
        "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], add: [{name: c, value: d}], remove: [e]}}, \
         {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [f]}}, \
         {type: RequestMirror, requestMirror: {backendRef: {name: b, port: 80}, percent: 10}}, \
         {type: RequestMirror, requestMirror: {backendRef: {name: a, port: 81}, fraction: {numerator: 1, denominator: 8}}}, \
         {type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}}}",
    );
    let headers = rule.headers.unwrap();
    let request = headers.request.unwrap();
    assert_eq!(
        (request.set["a"].as_str(), request.add["c"].as_str(), request.remove),
        ("b", "d", vec!["e".to_owned()])
    );
    assert_eq!(headers.response.unwrap().remove, ["f"]);
    let shares: Vec<_> = rule.mirrors.iter().map(|mirror| mirror.percentage.map(|p| p.value)).collect();
    assert_eq!(shares, [Some(10.0), Some(12.5), None]);
    let rule = of(
        "{type: URLRewrite, urlRewrite: {hostname: x.y, path: {type: ReplaceFullPath, replaceFullPath: /z}}}",
    );
    let rewrite = rule.rewrite.unwrap();
    assert_eq!(
        (rewrite.authority.as_str(), rewrite.uri_regex_rewrite.unwrap().rewrite.as_str()),
        ("x.y", "/z")
    );
    let rule = of(
        "{type: CORS, cors: {allowOrigins: ['https://a.b', 'https://*.c.d', '*'], allowMethods: [GET], allowCredentials: true}}",
    );
    let cors = rule.cors_policy.unwrap();
    assert_eq!(cors.allow_origins[0], StringMatch::Exact("https://a.b".to_owned()));
    assert_eq!(cors.allow_origins[1], StringMatch::Regex("https://.+\\.c\\.d".to_owned()));
    assert_eq!(cors.allow_origins[2], StringMatch::Regex(".*".to_owned()));
    assert_eq!((cors.allow_credentials, cors.max_age), (Some(true), Some(crate::model::Timespan::secs(5))));
    // For one backend alone.
    let seen = rule_of(
        "{backendRefs: [{name: a, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}]}]}",
    );
    assert_eq!(seen.route[0].headers.as_ref().unwrap().request.as_ref().unwrap().set["a"], "b");
}

#[test]
fn redirects_say_a_port_only_where_it_has_to_be_said() {
    let of = |given: &str| {
        let spec = format!("{{filters: [{{type: RequestRedirect, requestRedirect: {{{given}}}}}]}}");
        rule_of(&spec).redirect.unwrap()
    };
    let plain = of("hostname: x.y");
    assert_eq!((plain.redirect_code, plain.port, plain.authority.as_str()), (Some(302), Some(8080), "x.y"));
    let secure = of("scheme: https, statusCode: 301");
    assert_eq!((secure.redirect_code, secure.port, secure.scheme.as_str()), (Some(301), None, "https"));
    assert_eq!(of("port: 9").port, Some(9));
    assert_eq!(of("path: {type: ReplaceFullPath, replaceFullPath: /z}").uri, "/z");
    assert_eq!(of("path: {type: ReplacePrefixMatch, replacePrefixMatch: /z}").regex.unwrap().rewrite, "/z/");
    // A host that is known needs no port of the client's own.
    let spec =
        "{parentRefs: [{name: gw, namespace: edge, sectionName: all}], hostnames: [h.example], rules: [
        {filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]}]}";
    let seen = at_edge(&route("HTTPRoute", "shop", "r", spec));
    let rule = &seen.rules("edge/gw~all", "h.example").http[0];
    assert_eq!(rule.redirect.as_ref().unwrap().authority, "h.example");
}

#[test]
fn timeouts_and_retries_are_the_rules() {
    let of = |given: &str| {
        let seen = rule(&format!("{{{given}, backendRefs: [{{name: a, port: 80}}]}}"));
        let rule = seen.rule().clone();
        let retries =
            rule.retries.map(|r| (r.attempts, r.retry_on, r.per_try_timeout.map(|t| t.to_string())));
        (rule.timeout.map(|t| t.to_string()), retries)
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(of("timeouts: {request: 3s}"), (text("3s"), None));
    assert_eq!(of("timeouts: {request: 0s}"), (None, None));
    assert_eq!(
        of("timeouts: {request: 3s, backendRequest: 1s}"),
        (text("3s"), Some((2, String::new(), text("1s"))))
    );
    assert_eq!(
        of("retry: {attempts: 4, codes: [503, 504], backoff: 100ms}"),
        (None, Some((4, "connect-failure,refused-stream,reset,503,504".to_owned(), None)))
    );
    assert_eq!(of("retry: {attempts: 0}, timeouts: {backendRequest: 2s}").0, text("2s"));
}

#[test]
fn methods_of_grpc_are_paths() {
    let of = |given: &str| {
        let spec = format!(
            "{{parentRefs: [{{name: gw, namespace: edge, sectionName: grpc}}], rules: [{{matches: [{given}], backendRefs: [{{name: a, port: 80}}]}}]}}"
        );
        let seen = at_edge(&route("GRPCRoute", "shop", "r", &spec));
        assert_eq!(seen.found, [""; 0]);
        seen.rules("edge/gw~grpc", "*").http[0].matches[0].uri.clone()
    };
    let exact = |text: &str| Some(StringMatch::Exact(text.to_owned()));
    assert_eq!(of("{method: {service: a.B, method: C}}"), exact("/a.B/C"));
    assert_eq!(of("{method: {service: a.B}}"), Some(StringMatch::Prefix("/a.B/".to_owned())));
    assert_eq!(of("{method: {method: C}}"), Some(StringMatch::Regex("/[^/]+/C".to_owned())));
    let regex = Some(StringMatch::Regex("/(?:a|b)/(?:[^/]+)".to_owned()));
    assert_eq!(of("{method: {type: RegularExpression, service: a|b}}"), regex);
    assert_eq!(of("{headers: [{name: x, value: y}]}"), None);
    let two = "{parentRefs: [{name: gw, namespace: edge, sectionName: grpc}], rules: [
        {name: any, matches: [{headers: [{name: x, value: y}]}], backendRefs: [{name: a, port: 80}]},
        {name: service, matches: [{method: {service: a.B}}], backendRefs: [{name: a, port: 80}]},
        {name: method, matches: [{method: {service: a.B, method: C}}], backendRefs: [{name: a, port: 80}]}]}";
    let seen = at_edge(&route("GRPCRoute", "shop", "r", two));
    assert_eq!(seen.order("edge/gw~grpc", "*"), ["method", "service", "any"]);
}

#[test]
fn tls_goes_by_its_server_name_and_a_name_belongs_to_the_oldest_route() {
    let at = |hosts: &str, backend: &str| {
        format!(
            "{{parentRefs: [{{name: gw, namespace: edge, sectionName: tls}}], hostnames: [{hosts}], rules: [{{backendRefs: [{backend}]}}]}}"
        )
    };
    let text = route("TLSRoute", "shop", "a", &at("x.tls.example", "{name: a, port: 80}"))
        + &route(
            "TLSRoute",
            "shop",
            "b",
            &at("x.tls.example, y.tls.example", "{name: gone, port: 80}, {name: b, port: 80, weight: 3}"),
        );
    let seen = at_edge(&text);
    let rules = seen.rules("edge/gw~tls", "x.tls.example");
    assert_eq!(rules.tls[0].matches[0].sni_hosts, ["x.tls.example"]);
    assert_eq!(rules.tls[0].route[0].destination.host, "a.shop.svc.cluster.local");
    let rest = &seen.rules("edge/gw~tls", "y.tls.example").tls[0].route;
    assert_eq!((rest.len(), rest[1].weight), (2, 3));
    assert!(rest[0].destination.host.ends_with(".internal"));
}

#[test]
fn routes_of_a_service_are_for_all_or_for_their_own_namespaces_clients() {
    let at = |parent: &str, name: &str| {
        format!(
            "{{parentRefs: [{{group: '', kind: Service, name: a{parent}}}], rules: [{{name: {name}, backendRefs: [{{name: b, namespace: shop, port: 80}}]}}]}}"
        )
    };
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: shop}\nspec: {from: \
                 [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other}], to: [{group: '', kind: Service}]}\n---\n";
    let seen = at_edge(
        &(grant.to_owned()
            + &route("HTTPRoute", "shop", "producer", &at(", port: 80", "p"))
            + &route("HTTPRoute", "other", "consumer", &at(", namespace: shop", "c"))),
    );
    assert_eq!(seen.found, [""; 0]);
    let host = "a.shop.svc.cluster.local";
    let world = crate::model::World::new(seen.objects.clone());
    let names = |namespace: &str| {
        let rules = world.virtual_service_for_host(namespace, "mesh", host).unwrap();
        rules.spec.http.iter().map(|rule| rule.name.clone()).collect::<Vec<_>>()
    };
    // The port that the producer's route is not for goes on as it did.
    assert_eq!(names("shop"), ["shop.producer.p", ""]);
    assert_eq!(names("third"), ["shop.producer.p", ""]);
    assert_eq!(names("other"), ["other.consumer.c"]);
    let rules = world.virtual_service_for_host("shop", "mesh", host).unwrap();
    assert_eq!(rules.spec.http[0].matches[0].port, Some(80));
    assert_eq!(rules.spec.http[1].matches[0].port, Some(81));
    assert_eq!(rules.spec.http[1].route[0].destination.host, host);
}

#[test]
fn what_follows_is_the_same_as_long_as_objects_say_the_same() {
    let spec = "{parentRefs: [{name: gw, namespace: edge, sectionName: all}], rules: [{backendRefs: [{name: a, port: 80}]}]}";
    let versions = |text: &str| {
        let seen = at_edge(text);
        let rules = seen.objects.virtual_services.iter().map(|v| v.meta.version);
        rules.chain(seen.objects.gateways.iter().map(|g| g.meta.version)).collect::<Vec<_>>()
    };
    let before = versions(&route("HTTPRoute", "shop", "r", spec));
    assert_eq!(before, versions(&route("HTTPRoute", "shop", "r", spec)));
    assert_ne!(before, versions(&route("HTTPRoute", "shop", "r", &spec.replace("port: 80", "port: 81"))));
}

#[test]
fn policies_for_a_target_hold_for_its_workloads_and_for_nobody_else() {
    let policy = |kind: &str, namespace: &str, name: &str, targets: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{targetRefs: [{targets}]}}\n---\n"
        )
    };
    let gateway = "{group: gateway.networking.k8s.io, kind: Gateway, name: gw}";
    let service = "{group: '', kind: Service, name: a}";
    let text = policy("AuthorizationPolicy", "edge", "front", gateway)
        + &policy(
            "AuthorizationPolicy",
            "shop",
            "back",
            &format!("{service}, {{kind: Service, name: b}}, {service}"),
        )
        + &policy("RequestAuthentication", "edge", "tokens", gateway)
        + &policy("AuthorizationPolicy", "shop", "lost", gateway);
    let seen = at_edge(&text);
    let lost: Vec<_> =
        seen.found.iter().filter(|text| text.contains("Weft serves no Gateway shop/gw")).collect();
    assert_eq!(lost.len(), 1, "{:?}", seen.found);
    let world = crate::model::World::new(seen.objects.clone());
    let labels = |key: &str, value: &str| crate::model::Labels::from([(key.to_owned(), value.to_owned())]);
    let allow = crate::model::authorization_policy::AuthorizationAction::Allow;
    let names = |namespace: &str, labels: &crate::model::Labels| {
        let found = world.authorization_policies(namespace, labels, None, allow);
        found.iter().map(|policy| policy.meta.name.clone()).collect::<Vec<_>>()
    };
    let edge = labels("gateway.networking.k8s.io/gateway-name", "gw");
    assert_eq!(names("edge", &edge), ["front"]);
    assert_eq!(names("edge", &labels("app", "a")), [""; 0]);
    assert_eq!(names("other", &edge), [""; 0]);
    assert_eq!(names("shop", &labels("app", "a")), ["back"]);
    assert_eq!(names("shop", &labels("app", "b")), ["back"]);
    assert_eq!(names("shop", &labels("app", "c")), [""; 0]);
    // One of the root namespace is no policy of the whole mesh, as one with a selector would be.
    let root = EDGE.replace("namespace: edge", "namespace: istio-system");
    let of_root = seen_in(&root, &policy("AuthorizationPolicy", "istio-system", "front", gateway));
    let found = |namespace: &str| of_root.authorization_policies(namespace, &edge, None, allow).len();
    assert_eq!((found("istio-system"), found("edge")), (1, 0));
    let tokens = world.request_authentications();
    assert!(tokens[0].spec.applies("edge", &edge) && !tokens[0].spec.applies("shop", &edge));
}

#[test]
fn telemetries_for_a_target_hold_for_its_workloads_and_those_for_a_class_for_all_its_gateways() {
    let telemetry = |namespace: &str, name: &str, target: &str| {
        format!(
            "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{targetRefs: [{target}], accessLogging: [{{}}]}}\n---\n"
        )
    };
    let gateway = "{group: gateway.networking.k8s.io, kind: Gateway, name: gw}";
    let class = "{group: gateway.networking.k8s.io, kind: GatewayClass, name: weft}";
    let other = class.replace("name: weft", "name: other");
    let labels = |key: &str, value: &str| crate::model::Labels::from([(key.to_owned(), value.to_owned())]);
    let edge = labels("gateway.networking.k8s.io/gateway-name", "gw");
    let names = |seen: &Seen, namespace: &str, labels: &crate::model::Labels| {
        let world = crate::model::World::new(seen.objects.clone());
        let found = world.telemetries_of(namespace, labels);
        found.iter().map(|telemetry| telemetry.meta.name.clone()).collect::<Vec<_>>()
    };
    let seen = at_edge(
        &(telemetry("edge", "front", gateway)
            + &telemetry("shop", "back", "{kind: Service, group: '', name: a}")),
    );
    assert_eq!(names(&seen, "edge", &edge), ["front"]);
    assert_eq!(names(&seen, "shop", &labels("app", "a")), ["back"]);
    assert_eq!(names(&seen, "shop", &labels("app", "b")), [""; 0]);
    assert_eq!(names(&seen, "other", &edge), [""; 0]);
    let seen = at_edge(&telemetry("istio-system", "gateways", class));
    assert_eq!(names(&seen, "edge", &edge), ["gateways"]);
    assert_eq!(names(&seen, "shop", &labels("app", "a")), [""; 0]);
    assert_eq!(names(&seen, "istio-system", &labels("app", "a")), [""; 0]);
    for (namespace, target, says) in [
        ("shop", class, "stands in the root namespace, istio-system"),
        ("istio-system", other.as_str(), "Weft serves no GatewayClass \"other\""),
    ] {
        let seen = at_edge(&telemetry(namespace, "lost", target));
        assert!(seen.found.iter().any(|text| text.contains(says)), "{says}: {:?}", seen.found);
        assert_eq!(names(&seen, namespace, &edge), [""; 0]);
    }
}

/// A field or value, and what is said of it; nothing for what is right.
const REFUSALS: &[(&str, &str, &str)] = &[
    (
        "HTTPRoute",
        "rules: [{matches: [{path: {value: a}}]}]",
        "spec.rules[0].matches[0].path.value: \"a\" does not begin with /",
    ),
    ("HTTPRoute", "rules: [{matches: [{path: {value: /a//b}}]}]", "has \"//\""),
    ("HTTPRoute", "rules: [{matches: [{path: {value: /a..b}}]}]", ""),
    (
        "HTTPRoute",
        "rules: [{matches: [{path: {type: Prefix, value: /a}}]}]",
        "unknown value \"Prefix\"; it is one of PathPrefix",
    ),
    ("HTTPRoute", "rules: [{matches: [{method: get}]}]", "unknown method \"get\""),
    (
        "HTTPRoute",
        "rules: [{matches: [{headers: [{name: a, value: b}, {name: A, value: c}]}]}]",
        "\"A\" is given twice",
    ),
    ("HTTPRoute", "rules: [{matches: [{queryParams: [{name: a, value: b}, {name: A, value: c}]}]}]", ""),
    (
        "HTTPRoute",
        "rules: [{matches: [{path: {type: RegularExpression, value: '/('}}]}]",
        "not a regular expression",
    ),
    (
        "HTTPRoute",
        "rules: [{sessionPersistence: {sessionName: a}}]",
        "spec.rules[0].sessionPersistence: not supported by Weft yet",
    ),
    ("HTTPRoute", "rules: [{backendRef: []}]", "unknown field; did you mean \"backendRefs\"?"),
    (
        "HTTPRoute",
        "rules: [{filters: [{type: ExtensionRef, extensionRef: {name: a}}]}]",
        "spec.rules[0].filters[0].extensionRef: not supported",
    ),
    (
        "HTTPRoute",
        "rules: [{filters: [{type: URLRewrite}]}]",
        "spec.rules[0].filters[0].urlRewrite: missing for a URLRewrite",
    ),
    (
        "HTTPRoute",
        "rules: [{filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}, cors: {}}]}]",
        "cors: not used by a URLRewrite",
    ),
    (
        "HTTPRoute",
        "rules: [{filters: [{type: RequestRedirect, requestRedirect: {port: 1}}], backendRefs: [{name: a, port: 80}]}]",
        "not used: the rule redirects",
    ),
    (
        "HTTPRoute",
        "rules: [{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 300}}]}]",
        "300 does not redirect",
    ),
    ("HTTPRoute", "rules: [{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 308}}]}]", ""),
    (
        "HTTPRoute",
        "rules: [{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: \
         ReplacePrefixMatch, replacePrefixMatch: /b}}}]}]",
        "replacePrefixMatch needs matches by PathPrefix",
    ),
    ("HTTPRoute", "rules: [{backendRefs: [{name: a}]}]", "spec.rules[0].backendRefs[0].port: missing"),
    (
        "HTTPRoute",
        "rules: [{backendRefs: [{name: a, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}}]}]}]",
        "URLRewrite is not supported for one backend",
    ),
    (
        "HTTPRoute",
        "rules: [{timeouts: {request: 1s, backendRequest: 2s}}]",
        "longer than the whole request may take",
    ),
    ("HTTPRoute", "rules: [{retry: {codes: [200]}}]", "200 is no status of an error"),
    ("HTTPRoute", "hostnames: [10.0.0.1]", "\"10.0.0.1\" is no host name"),
    ("HTTPRoute", "hostnames: ['*.a.b']", ""),
    (
        "HTTPRoute",
        "rules: [{filters: [{type: CORS, cors: {allowCredentials: true, allowHeaders: ['*']}}]}]",
        "\"*\" beside allowCredentials",
    ),
    ("GRPCRoute", "rules: [{matches: [{method: {service: a/b}}]}]", "has a slash"),
    (
        "GRPCRoute",
        "rules: [{filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}}]}]",
        "URLRewrite is not supported in a GRPCRoute",
    ),
    (
        "TLSRoute",
        "rules: [{backendRefs: [{name: a, port: 80}]}, {backendRefs: [{name: a, port: 80}]}]",
        "nothing would reach it",
    ),
    (
        "Gateway",
        "listeners: [{name: a, port: 80, protocol: HTTP}], infrastructure: {parametersRef: {}}",
        "infrastructure.parametersRef: not supported",
    ),
    (
        "Gateway",
        "listeners: [{name: a, port: 80, protocol: HTTP, tls: {}}]",
        "an HTTP listener does not end TLS",
    ),
    ("Gateway", "listeners: [{name: a, port: 443, protocol: HTTPS}]", "tls: missing for HTTPS"),
    (
        "Gateway",
        "listeners: [{name: a, port: 443, protocol: HTTPS, tls: {mode: Passthrough}}]",
        "HTTPS ends here",
    ),
    (
        "Gateway",
        "listeners: [{name: a, port: 443, protocol: TLS, tls: {frontendValidation: {}, certificateRefs: [{name: a}]}}]",
        "frontendValidation: not supported",
    ),
    (
        "Gateway",
        "listeners: [{name: a, port: 80, protocol: HTTP}], addresses: [{value: 10.0.0.1}]",
        "Weft assigns no addresses",
    ),
    (
        "Gateway",
        "listeners: [{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector}}}]",
        "selector: missing for from: Selector",
    ),
    (
        "Gateway",
        "listeners: [{name: a, port: 80, protocol: HTTP}, {name: a, port: 81, protocol: HTTP}]",
        "\"a\" is given twice",
    ),
];

#[test]
fn what_is_not_honoured_is_refused_by_its_field() {
    for (kind, spec, wanted) in REFUSALS {
        let parents = if *kind == "Gateway" { "gatewayClassName: weft" } else { "parentRefs: [{name: x}]" };
        let seen = seen(&route(kind, "shop", "r", &format!("{{{parents}, {spec}}}")));
        let about = |text: &&String| !text.contains("there is no Gateway");
        let said: Vec<_> = seen.found.iter().filter(about).collect();
        let right =
            if wanted.is_empty() { said.is_empty() } else { said.iter().any(|text| text.contains(wanted)) };
        assert!(right, "{kind} {spec}: {said:#?}");
    }
}

#[test]
fn a_gateway_with_a_networks_label_is_that_networks_where_its_service_is_found_and_passes_on_by_name() {
    let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: weft}
spec: {controllerName: weft.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: eastwest, namespace: edge, labels: {topology.istio.io/network: two}}
spec:
  gatewayClassName: weft
  listeners:
    - {name: mesh, port: 15443, protocol: TLS, tls: {mode: Passthrough}, allowedRoutes: {namespaces: {from: All}}}
    - {name: other, port: 8443, protocol: TLS, tls: {mode: Passthrough}}
---
apiVersion: v1
kind: Service
metadata: {name: eastwest, namespace: edge}
spec:
  selector: {gateway.networking.k8s.io/gateway-name: eastwest}
  externalIPs: [203.0.113.9]
  ports: [{name: tls, port: 15443}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: far, namespace: edge, labels: {topology.istio.io/network: three, networking.istio.io/gatewayPort: '443'}}
spec:
  gatewayClassName: istio-remote
  addresses: [{type: IPAddress, value: 203.0.113.7}, {type: Hostname, value: far.example.com}]
  listeners: [{name: mesh, port: 443, protocol: TLS, tls: {mode: Passthrough}}]
---
";
    let all = route(
        "TLSRoute",
        "edge",
        "r",
        "{parentRefs: [{name: eastwest, sectionName: mesh}], hostnames: [a.example], rules: [{backendRefs: [{name: eastwest, port: 15443}]}]}",
    );
    let seen = seen(&format!("{text}{all}"));
    let wrong: Vec<_> = seen.found.iter().filter(|one| !one.contains("nobody serves")).collect();
    // What comes is passed on by its name alone: a route has nothing to say there.
    assert!(matches!(&wrong[..], [one] if one.contains("TLSRoute edge/r")), "{wrong:#?}");
    let modes: Vec<_> = seen.objects.gateways.iter().map(|g| g.spec.servers[0].passes_by_name()).collect();
    assert_eq!(modes, [true, false]);
    let world = crate::model::World::new(seen.objects);
    let at = |network: &str| {
        let gateways = world.networks().with_gateways().find(|(name, _)| *name == network);
        gateways.unwrap().1.iter().map(|g| format!("{}:{}", g.address, g.port)).collect::<Vec<_>>()
    };
    assert_eq!(at("two"), ["203.0.113.9:15443"]);
    assert_eq!(at("three"), ["203.0.113.7:443", "far.example.com:443"]);
}

#[test]
fn what_cannot_be_made_for_a_gateway_is_said_and_not_tried() {
    let gateway = |class: &str, meta: &str, spec: &str| {
        seen(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: {class}}}\nspec: {{controllerName: \
             weft.dev/gateway-controller}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{namespace: edge, \
             {meta}}}\nspec: {{gatewayClassName: {class}, {spec}}}\n"
        ))
    };
    let http = "listeners: [{name: a, port: 80, protocol: HTTP}]";
    let status = "listeners: [{name: a, port: 80, protocol: HTTP}, {name: b, port: 15021, protocol: HTTP}]";
    let (longest, long) = ("g".repeat(63), "g".repeat(64));
    let named = |name: &str| format!("name: {name}");
    let typed = |annotation: &str, value: &str| format!("name: gw, annotations: {{{annotation}: '{value}'}}");
    for (class, meta, spec, path) in [
        ("weft", named(&long), http, "metadata.name"),
        (long.as_str(), named("gw"), http, "spec.gatewayClassName"),
        ("weft", named("1-gw"), http, "metadata.name"),
        ("weft", named("gw"), status, "spec.listeners[1].port"),
        (
            "weft",
            typed("networking.istio.io/service-type", "Internal"),
            http,
            "networking.istio.io/service-type",
        ),
        ("weft", typed(MANAGED, "no"), http, MANAGED),
    ] {
        let seen = gateway(class, &meta, spec);
        let plan = plan(&seen.objects);
        assert!(plan.wanted.is_empty(), "{path}");
        assert!(plan.hindered[0].why.contains(path), "{:?}", plan.hindered);
        assert!(plan.spare.is_empty(), "what was made stays");
        let said = |one: &String| one.contains(path) && one.contains("nothing is made for the Gateway");
        assert!(seen.found.iter().any(said), "{path}: {:?}", seen.found);
        if meta.contains("annotations") {
            continue;
        }
        // Who serves it himself may do so.
        let by_hand = gateway(class, &format!("{meta}, annotations: {{{MANAGED}: 'false'}}"), spec);
        assert!(!by_hand.found.iter().any(said), "{:?}", by_hand.found);
        let plan = super::plan(&by_hand.objects);
        assert_eq!((plan.hindered.len(), plan.spare.len()), (0, 0));
    }
    for (class, name) in [("weft", longest.as_str()), (longest.as_str(), "gw")] {
        let seen = gateway(class, &named(name), http);
        assert_eq!(plan(&seen.objects).wanted.len(), 1, "{:?}", seen.found);
        assert!(!seen.found.iter().any(|one| one.contains("nothing is made")), "{:?}", seen.found);
    }
    let image = "infrastructure: {annotations: {sidecar.istio.io/proxyImage: any}, labels: {sidecar.istio.io/inject: 'false'}}";
    let seen = gateway("weft", &named("gw"), &format!("{http}, {image}"));
    for path in [
        "spec.infrastructure.annotations[sidecar.istio.io/proxyImage]",
        "spec.infrastructure.labels[sidecar.istio.io/inject]",
    ] {
        assert!(seen.found.iter().any(|one| one.contains(path)), "{path}: {:?}", seen.found);
        // It is made all the same, and accepted; its status says what is left out.
        let of_gateway = |one: &Standing| match one {
            Standing::Gateway { conditions, .. } => Some(conditions.clone()),
            _ => None,
        };
        let conditions = seen.standings.values().find_map(of_gateway).unwrap();
        assert!(conditions[0].holds && conditions[0].message.contains(path), "{conditions:?}");
    }
}

#[test]
fn a_gateway_for_which_something_cannot_be_made_says_so_in_its_status() {
    let stands = |holds: bool, reason: &'static str| Standing::Gateway {
        conditions: vec![
            Condition::holds("Accepted", "Accepted"),
            Condition { holds, ..Condition::fails("Programmed", reason, "old") },
        ],
        listeners: Vec::new(),
        addresses: Vec::new(),
    };
    let told = |standing: Standing, passes: bool| match standing.hindered("Pending", "new", passes) {
        Standing::Gateway { conditions, .. } => {
            assert!(conditions[0].holds);
            (conditions[1].holds, conditions[1].reason, conditions[1].message.clone())
        }
        other => panic!("{other:?}"),
    };
    let new = (false, "Pending", "new".to_owned());
    // What serves goes on while nobody answers; and is told when there is something to mend.
    assert_eq!(told(stands(true, "Programmed"), true), (true, "Programmed", "old".to_owned()));
    assert_eq!(told(stands(true, "Programmed"), false), new);
    // It is the cause of what follows from it, and comes beside what does not.
    for passes in [true, false] {
        assert_eq!(told(stands(false, "NoResources"), passes), new);
        assert_eq!(told(stands(false, "AddressNotAssigned"), passes), new);
        assert_eq!(told(stands(false, "Invalid"), passes), (false, "Invalid", "old\nnew".to_owned()));
    }
}
