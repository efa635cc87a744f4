//! A gateway of ours at the edge: TLS with a Secret that istiod hands over, by server names, and routes of both kinds.

use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{CertificateParams, KeyPair};

use super::shop::Shop;
use crate::programs::{peer, until_or};

/// The gateway's pod.
const GATEWAY: &str = "10.79.1.31";

/// It may read Secrets of its namespace, as the chart of Istio's gateway says.
const EDGE: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: gateway, namespace: istio-system}
rules: [{apiGroups: [''], resources: [secrets], verbs: [get, watch, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: gateway, namespace: istio-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: gateway}
subjects: [{kind: ServiceAccount, name: gateway}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: edge}, hosts: ['*.shop.example']}
  - {port: {number: 80, name: http, protocol: HTTP}, tls: {httpsRedirect: true}, hosts: ['*.shop.example']}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge, namespace: shop}
spec:
  hosts: [web.shop.example]
  gateways: [istio-system/edge]
  http:
  - match: [{uri: {prefix: /edge}}]
    route: [{destination: {host: web.shop.svc.cluster.local, port: {number: 80}}}]
";

/// The same shop by the Gateway API, at the same gateway.
const API: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: api, namespace: istio-system}
spec:
  gatewayClassName: istio
  addresses: [{type: Hostname, value: istio-ingressgateway.istio-system.svc.cluster.local}]
  listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: '*.api.example', allowedRoutes: {namespaces: {from: All}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{name: api, namespace: istio-system}]
  hostnames: [web.api.example]
  rules:
  - matches: [{path: {type: PathPrefix, value: /api}, method: GET}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /by-api}}}
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-by, value: api}]}}
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]
";

/// A self-signed certificate, as files.
fn certificate(at: &Path, name: &str) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let params =
        CertificateParams::new(vec!["web.shop.example".to_owned(), "other.shop.example".to_owned()]).unwrap();
    let (chain, private) = (at.join(format!("{name}.crt")), at.join(format!("{name}.key")));
    std::fs::write(&chain, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&private, key.serialize_pem()).unwrap();
    (chain, private)
}

/// Puts it into the Secret.
fn store(shop: &Shop<'_>, (chain, key): &(PathBuf, PathBuf)) {
    let (chain, key) = (format!("--cert={}", chain.display()), format!("--key={}", key.display()));
    let make = ["create", "secret", "tls", "edge", &chain, &key, "--dry-run=client", "-o", "yaml"];
    let server = &shop.cluster.server;
    server.apply(&server.kubectl(&[&["-n", "istio-system"], &make[..]].concat()));
}

/// What somebody outside gets of a URL, who trusts this certificate alone: status, a space, the body.
fn curl(shop: &Shop<'_>, root: &Path, url: &str, more: &[&str]) -> String {
    let mut curl = Command::new(peer("WEFT_CURL"));
    curl.args(["--silent", "--max-time", "10", "--write-out", " %{http_code} %{redirect_url}", "--cacert"])
        .arg(root);
    for name in ["web", "other", "third"] {
        curl.args(["--resolve", &format!("{name}.shop.example:8443:{GATEWAY}")]);
        curl.args(["--resolve", &format!("{name}.shop.example:8080:{GATEWAY}")]);
    }
    let output = shop.pod("stranger").host.command(curl.args(more).arg(url)).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// HTTPS with the Secret's certificate, and the next one; what is not known there; a redirection of plain text.
pub fn opens_the_shop(shop: &Shop<'_>) {
    let at = shop.cluster.server.directory();
    let (first, second) = (certificate(at, "first"), certificate(at, "second"));
    store(shop, &first);
    shop.cluster.server.apply(EDGE);
    let url = "https://web.shop.example:8443/edge";
    let opens = |root: &Path| {
        let seen = curl(shop, root, url, &[]);
        seen == "web-1 200" || seen == "web-2 200"
    };
    until_or("the shop is open", || shop.pod("gateway").log(), || opens(&first.0));
    assert!(!opens(&second.0));
    let heads = [shop.web[0].asked("/edge"), shop.web[1].asked("/edge")].concat();
    assert!(
        heads.iter().all(|head| head.contains("URI=spiffe://cluster.local/ns/istio-system/sa/gateway")),
        "{heads:?}"
    );
    assert!(heads.iter().all(|head| head.to_lowercase().contains("x-forwarded-proto: https")), "{heads:?}");
    assert_eq!(curl(shop, &first.0, "https://web.shop.example:8443/", &[]), "404", "no route");
    assert_eq!(curl(shop, &first.0, "https://other.shop.example:8443/edge", &[]), "404", "no virtual host");
    let seen = curl(shop, &first.0, "http://web.shop.example:8080/edge?x", &[]);
    assert!(seen.starts_with("301 https://web.shop.example") && seen.ends_with("/edge?x"), "{seen}");
    store(shop, &second);
    until_or("the next certificate is shown", || shop.pod("gateway").log(), || opens(&second.0));
    assert!(!opens(&first.0));
}

/// An HTTPRoute is followed as well, and istiod says so of it.
pub fn follows_the_gateway_api(shop: &Shop<'_>) {
    let definitions = peer("WEFT_ISTIO_GATEWAY_API");
    let server = &shop.cluster.server;
    server.kubectl(&["apply", "--server-side", "-f", definitions.to_str().unwrap()]);
    server.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]);
    server.apply(API);
    let stranger = shop.pod("stranger");
    let to = format!("{GATEWAY}:8080");
    until_or(
        "the route is followed",
        || shop.cluster.log(),
        || stranger.get(&to, "web.api.example", "/api/1", &[]).status == 200,
    );
    let heads = [shop.web[0].asked("/by-api/1"), shop.web[1].asked("/by-api/1")].concat();
    assert!(!heads.is_empty() && heads.iter().all(|head| head.contains("x-by: api")), "{heads:?}");
    assert_eq!(stranger.ask(&to, "web.api.example", "POST /api/1", &[]).status, 404);
    let seen = stranger.get(&to, "web.api.example", "/moved", &[]);
    assert_eq!(
        (seen.status, seen.field("location")),
        (301, Some("https://web.api.example/moved")),
        "{seen:?}"
    );
    until_or(
        "it is accepted",
        || server.get("httproute", "shop", "web").to_string(),
        || {
            let told = &server.get("httproute", "shop", "web")["status"]["parents"][0];
            let mut conditions = told["conditions"].as_array().into_iter().flatten();
            conditions.any(|one| one["type"] == "Accepted" && one["status"] == "True")
        },
    );
}
