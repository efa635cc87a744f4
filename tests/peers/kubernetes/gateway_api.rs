//! The Gateway API on a real API server: what is applied serves requests, and every object is told how it stands.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::SystemTime;

use serde_json::{Value, json};
use weft_certs::authority::{Authority, KeyKind};

use super::Server;
use super::made;
use super::mesh::{self, SHOP};
use crate::programs::{Process, get, weft_proxy};

const CONTROL: &str = "127.36.8.2";
const GATEWAY: &str = "127.36.8.3";

/// Definitions in the place of the Gateway API's own: the same names, versions and subresources, and no schema.
pub fn definitions() -> String {
    [
        ("gatewayclasses", "GatewayClass", "v1", "Cluster"),
        ("gateways", "Gateway", "v1", "Namespaced"),
        ("httproutes", "HTTPRoute", "v1", "Namespaced"),
        ("grpcroutes", "GRPCRoute", "v1", "Namespaced"),
        ("tlsroutes", "TLSRoute", "v1alpha2", "Namespaced"),
        ("referencegrants", "ReferenceGrant", "v1beta1", "Namespaced"),
    ]
    .map(|(plural, kind, version, scope)| {
        let singular = kind.to_lowercase();
        format!(
            "---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {plural}.gateway.networking.k8s.io
  labels: {{app.kubernetes.io/part-of: weft}}
  annotations: {{api-approved.kubernetes.io: 'unapproved, a stand-in of a test'}}
spec:
  group: gateway.networking.k8s.io
  scope: {scope}
  names: {{kind: {kind}, listKind: {kind}List, plural: {plural}, singular: {singular}}}
  versions:
  - name: {version}
    served: true
    storage: true
    subresources: {{status: {{}}}}
    schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}
"
        )
    })
    .concat()
}

/// One object of each kind, in the namespace `shop`.
pub const OBJECTS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: weft}
spec: {controllerName: weft.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: weft
  listeners:
  - {name: http, port: 8080, protocol: HTTP}
  - {name: https, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: pair}]}}
  - {name: tls, port: 9443, protocol: TLS, tls: {mode: Passthrough}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart, namespace: shop}
spec:
  parentRefs: [{name: edge, sectionName: http}]
  hostnames: [shop.example]
  rules:
  - backendRefs: [{group: networking.istio.io, kind: Hostname, name: cart.internal, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: cart, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: cart}]
  rules: [{backendRefs: [{name: cart, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TLSRoute
metadata: {name: cart, namespace: shop}
spec:
  parentRefs: [{name: edge}]
  hostnames: [tls.example]
  rules: [{backendRefs: [{name: far, namespace: other, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: shop, namespace: other}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: '', kind: Service}]
";

/// The name that tells the Gateway API's Gateways from Istio's.
pub const GATEWAYS: &str = "gateways.gateway.networking.k8s.io";

/// A condition of a list: its status and reason.
pub(super) fn condition(conditions: &Value, kind: &str) -> String {
    let of = |one: &Value| {
        let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        (one["type"] == kind).then(|| format!("{} {}", text("status"), text("reason")))
    };
    conditions.as_array().into_iter().flatten().find_map(of).unwrap_or_default()
}

/// The conditions of a route's parent that we wrote.
fn ours(route: &Value) -> Value {
    let parents = route["status"]["parents"].as_array().cloned().unwrap_or_default();
    let own = |one: &&Value| one["controllerName"] == "weft.dev/gateway-controller";
    parents.iter().find(own).map(|one| one["conditions"].clone()).unwrap_or_default()
}

/// Answers every request with 200.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut writer = stream.try_clone().unwrap();
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if line.is_empty() {
                        let _ = writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ncart");
                    }
                }
            });
        }
    });
    address
}

fn ask() -> String {
    let Ok(mut stream) = TcpStream::connect((GATEWAY, 8080)) else { return String::new() };
    let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(5)));
    let request = b"GET / HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n";
    let mut answer = String::new();
    let _ = stream.write_all(request).and_then(|()| std::io::Read::read_to_string(&mut stream, &mut answer));
    answer
}

#[test]
fn what_is_applied_serves_and_every_object_is_told_how_it_stands() {
    let server = Server::start("127.36.8.1");
    server.apply(SHOP);
    server.apply("{apiVersion: v1, kind: Namespace, metadata: {name: other}}");
    let port = backend().port();
    let kubeconfig = server.kubeconfig("administrator");
    let mut control = Process::start("control", &mut mesh::control(&kubeconfig, CONTROL), server.directory());
    control.wait("ready", || mesh::ready(CONTROL));
    // Kinds are followed from when they are defined.
    server.kubectl(&["apply", "-f", &mesh::crds()]);
    server.apply(&definitions());
    mesh::established(&server);
    server.apply(&format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: cart, namespace: shop}}
spec:
  hosts: [cart.internal]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]
"
    ));
    server.apply(OBJECTS);

    let class = || server.get("gatewayclass", "shop", "weft")["status"]["conditions"].clone();
    control.wait("done with the class", || condition(&class(), "Accepted") == "True Accepted");
    let gateway = || server.get(GATEWAYS, "shop", "edge");
    let of_gateway = |kind: &str| condition(&gateway()["status"]["conditions"], kind);
    control.wait("done with the Gateway", || of_gateway("Programmed") == "False NoResources");
    assert_eq!(of_gateway("Accepted"), "True ListenersNotValid");
    let listener =
        |index: usize, kind: &str| condition(&gateway()["status"]["listeners"][index]["conditions"], kind);
    assert_eq!(listener(0, "Accepted"), "True Accepted");
    assert_eq!(listener(1, "ResolvedRefs"), "False InvalidCertificateRef");
    let attached: Vec<_> =
        (0..3).map(|i| gateway()["status"]["listeners"][i]["attachedRoutes"].clone()).collect();
    assert_eq!(attached, [json!(1), json!(0), json!(1)]);
    assert_eq!(gateway()["status"]["listeners"][2]["supportedKinds"][0]["kind"], "TLSRoute");
    let conditions = |kind: &str| ours(&server.get(kind, "shop", "cart"));
    for (kind, resolved) in [
        ("httproute", "True ResolvedRefs"),
        ("grpcroute", "True ResolvedRefs"),
        ("tlsroute", "False RefNotPermitted"),
    ] {
        control.wait(kind, || condition(&conditions(kind), "Accepted") == "True Accepted");
        assert_eq!(condition(&conditions(kind), "ResolvedRefs"), resolved, "{kind}");
    }

    // What it needs is made, and is its own.
    for kind in ["serviceaccount", "deployment", "service"] {
        control.wait(kind, || server.try_kubectl(&["-n", "shop", "get", kind, "edge-weft"], "").is_ok());
        let owner = &server.get(kind, "shop", "edge-weft")["metadata"]["ownerReferences"][0];
        assert_eq!(owner["uid"], gateway()["metadata"]["uid"], "{kind}");
    }
    // How many pods there are is for others to say.
    server.kubectl(&["-n", "shop", "scale", "deployment", "edge-weft", "--replicas", "3"]);
    server.kubectl(&[
        "-n",
        "shop",
        "annotate",
        GATEWAYS,
        "edge",
        "networking.istio.io/service-type=ClusterIP",
    ]);
    control.wait("changing the Service", || {
        server.get("service", "shop", "edge-weft")["spec"]["type"] == "ClusterIP"
    });
    assert_eq!(server.get("deployment", "shop", "edge-weft")["spec"]["replicas"], 3);

    // A pod that carries the Gateway's name serves it; its certificate comes.
    server.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: edge, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: edge}}
spec: {serviceAccountName: cart, nodeName: n1, containers: [{name: proxy, image: none}]}
",
    );
    mesh::runs(&server, "edge", "10.88.0.7");
    control.wait("aware of the pod", || of_gateway("Programmed") == "True Programmed");
    let root = Authority::root(KeyKind::P256, SystemTime::now().into(), time::Duration::days(1)).unwrap();
    let pair = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "pair", "namespace": "shop"},
        "stringData": {"tls.crt": root.certificate_pem(), "tls.key": root.key_pem()},
    });
    server.apply(&pair.to_string());
    control.wait("aware of the certificate", || listener(1, "Programmed") == "True Programmed");
    assert_eq!(of_gateway("Accepted"), "True Accepted");

    // A real proxy gets the routes.
    let mut proxy = weft_proxy();
    proxy.args(["--xds-address", &format!("{CONTROL}:15010"), "--xds-plaintext", "--namespace", "shop"]);
    proxy.args(["--role", "gateway", "--label", "gateway.networking.k8s.io/gateway-name=edge"]);
    proxy.args(["--ip", GATEWAY, "--admin-address", &format!("{GATEWAY}:15000"), "--concurrency", "1"]);
    let mut proxy = Process::start("gateway", &mut proxy, server.directory());
    proxy.wait("serving", || ask().ends_with("cart"));

    // What another controller says of a route stays, and a new version is judged anew.
    let other = json!({"status": {"parents": [
        {"controllerName": "other.example/c", "parentRef": {"name": "theirs"}, "conditions": []}]}});
    server.kubectl(&[
        "-n",
        "shop",
        "patch",
        "httproute",
        "cart",
        "--subresource=status",
        "--type=merge",
        "-p",
        &other.to_string(),
    ]);
    control.wait("answering whoever wrote over it", || !conditions("httproute").is_null());
    let broken = OBJECTS.replace("name: cart.internal, port: 80", "name: gone.internal, port: 80");
    server.apply(&broken);
    control.wait("aware of the change", || {
        condition(&conditions("httproute"), "ResolvedRefs") == "False BackendNotFound"
    });
    let route = server.get("httproute", "shop", "cart");
    let parents = route["status"]["parents"].as_array().unwrap();
    assert_eq!((parents.len(), &parents[0]["controllerName"]), (2, &json!("other.example/c")), "{route}");
    assert_eq!(ours(&route)[0]["observedGeneration"], route["metadata"]["generation"]);
    proxy.wait("answering 500", || ask().starts_with("HTTP/1.1 500"));
    server.apply(OBJECTS);
    proxy.wait("serving again", || ask().ends_with("cart"));

    // One that is refused says why, and its last good version serves.
    let wrong =
        OBJECTS.replace("  rules:\n  - backendRefs", "  rules:\n  - sessionPersistence: {}\n    backendRefs");
    assert_ne!(wrong, OBJECTS);
    server.apply(&wrong);
    control
        .wait("refusing it", || condition(&conditions("httproute"), "Accepted") == "False UnsupportedValue");
    let message = conditions("httproute")[0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("spec.rules[0].sessionPersistence: not supported by Weft yet"), "{message}");
    assert!(message.contains("the last version that was right stays in force"), "{message}");
    assert!(ask().ends_with("cart"));

    // A route that leaves is told nothing more, and is served no more.
    let gone = OBJECTS.replace("[{name: edge, sectionName: http}]", "[{name: elsewhere}]");
    server.apply(&gone);
    control.wait("letting it go", || conditions("httproute").is_null());
    proxy.wait("serving nothing", || ask().starts_with("HTTP/1.1 404"));
    let page = get(format!("{CONTROL}:8080").parse().unwrap(), "/debug/configz").unwrap().1;
    assert!(page.contains("no ReferenceGrant there lets a TLSRoute of shop refer to it"), "{page}");
    made::what_stands_in_the_way_is_told_and_what_is_not_needed_goes(&server, &mut control);
}
