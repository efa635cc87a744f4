//! `weft explain`: a request that nobody has sent, step by step.

use serde_json::Value;

use super::support::{stderr, stdout, weft};

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{name: http, port: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: cart-1, namespace: shop}
spec: {address: 10.1.0.1, labels: {app: cart, version: v1}, serviceAccount: cart}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: cart-2, namespace: shop}
spec: {address: 10.1.0.2, labels: {app: cart, version: v2}, serviceAccount: cart}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web-1, namespace: shop}
spec: {address: 10.1.0.3, labels: {app: web}, serviceAccount: web}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: versions, namespace: shop}
spec: {host: cart, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: canary, namespace: shop}
spec:
  hosts: [cart]
  http:
    - name: tried
      match: [{headers: {canary: {exact: 'true'}}}]
      route: [{destination: {host: cart, subset: v2}}]
    - name: old
      match: [{uri: {prefix: /old}}]
      directResponse: {status: 410}
    - name: usual
      timeout: 3s
      route: [{destination: {host: cart, subset: v1}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}], to: [{operation: {methods: [GET]}}]}]
";

struct Mesh(tempfile::TempDir);

impl Mesh {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mesh.yaml"), MESH).unwrap();
        Self(dir)
    }

    /// The exit code, and what is said on standard output and standard error.
    fn explain(&self, arguments: &[&str]) -> (i32, String, String) {
        let dir = self.0.path().to_str().unwrap();
        let output = weft(&[&["explain", "--dir", dir], arguments].concat());
        (output.status.code().unwrap(), stdout(&output), stderr(&output))
    }
}

#[test]
fn each_step_of_a_request_is_told_with_where_it_was_written() {
    let mesh = Mesh::new();
    let (code, text, _) = mesh.explain(&["GET", "http://cart:8080/a", "--from", "web-1"]);
    assert_eq!(code, 0, "{text}");
    let mut rest = text.as_str();
    for next in [
        "GET http://cart:8080/a from shop/web-1 (spiffe://cluster.local/ns/shop/sa/web)",
        "dialled 10.96.0.1:8080",
        "listener 0.0.0.0_8080",
        "virtual host cart.shop.svc.cluster.local:8080",
        "not route tried: header canary is not there",
        "not route old: the path \"/a\" is not its (prefix /old)",
        "takes it: route usual",
        "VirtualService shop/canary, ",
        "mesh.yaml:",
        "timeout 3s",
        "to cart.shop.svc.cluster.local port 8080, subset v1 (100 %)",
        "Service shop/cart, ",
        "DestinationRule shop/versions, ",
        "10.1.0.1:8080 shop/cart-1 (TLS istio-mutual): let in",
        "by rule 0 of AuthorizationPolicy shop/readers (ALLOW), ",
        "it can arrive",
    ] {
        let at = rest.find(next).unwrap_or_else(|| panic!("no {next:?} in its place in\n{text}"));
        rest = &rest[at + next.len()..];
    }
    assert!(!text.contains("cart-2"), "{text}");
}

#[test]
fn what_is_sent_decides_where_it_goes_and_whether_it_is_let_in() {
    let mesh = Mesh::new();
    let json = |arguments: &[&str]| -> (i32, Value) {
        let (code, text, error) = mesh.explain(&[arguments, &["--output", "json"]].concat());
        (code, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{error}")))
    };
    let (code, told) = json(&["http://cart:8080/a", "--from", "web-1", "-H", "canary: true"]);
    assert_eq!((code, &told["way"]["found"]["route"]), (0, &"tried".into()));
    assert_eq!(told["destinations"][0]["arrivals"][0]["workload"], "shop/cart-2");
    // Not by this method, and not by this caller.
    for arguments in [
        &["POST", "http://cart:8080/a", "--from", "web-1"][..],
        &["GET", "http://cart:8080/a", "--from", "cart-2"],
    ] {
        let (code, told) = json(arguments);
        let answer = &told["destinations"][0]["arrivals"][0]["answer"];
        assert_eq!(
            (code, &answer["decision"], &answer["status"]),
            (1, &"deny".into(), &403.into()),
            "{told}"
        );
    }
    let (code, told) = json(&["http://cart:8080/old/x", "--from", "web-1"]);
    assert_eq!((code, &told["way"]["found"]["status"]), (1, &410.into()));
    // Nobody of the mesh: it leaves as it is.
    let (code, told) = json(&["http://example.com/", "--from", "web-1"]);
    assert_eq!(
        (code, &told["destinations"][0]["found"]["cluster"]),
        (0, &"PassthroughCluster".into()),
        "{told}"
    );
}

#[test]
fn what_cannot_be_explained_says_what_to_write() {
    let mesh = Mesh::new();
    for (arguments, says) in [
        (&["GET", "http://cart/", "--from", "wbe-1"][..], "no workload is called \"wbe-1\""),
        (&["GET", "/a", "--from", "web-1"], "write http://HOST:PORT/path"),
        (&["get", "http://cart/", "--from", "web-1"], "write it in capitals"),
        (&["http://cart/", "--from", "web-1", "-H", "canary"], "write NAME: VALUE"),
        (&["--from", "web-1"], "request is missing"),
    ] {
        let (code, _, error) = mesh.explain(arguments);
        assert!(code == 2 && error.contains(says), "{arguments:?}: {code} {error}");
    }
}
