//! `weft analyze`: the command. What is found is shown case by case beside the checks (control/src/analyze/cases.yaml).

use std::path::Path;

use serde_json::Value;

use crate::support::{stderr, stdout, weft};

/// The example mesh, with what its workloads call written down, and this beside it.
fn mesh(more: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ecotrack");
    for file in std::fs::read_dir(from).unwrap().map(|file| file.unwrap().path()) {
        let mut text = String::new();
        for line in std::fs::read_to_string(&file).unwrap().lines() {
            text += &format!("{line}\n");
            if let Some((_, calls)) = line.split_once("weft.dev/command: weft app --calls ") {
                text += &format!("    weft.dev/calls: {calls}\n");
            }
        }
        std::fs::write(dir.path().join(file.file_name().unwrap()), text).unwrap();
    }
    std::fs::write(dir.path().join("more.yaml"), more).unwrap();
    dir
}

/// The design's policies, but for the condition that Istio refuses.
const DESIGN: &str = r#"
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: ecotrack-authz, namespace: ecotrack}
spec:
  rules:
    - from: [{source: {principals: ["cluster.local/ns/ecotrack/sa/order-service"]}}]
      to: [{operation: {methods: ["GET", "POST"], paths: ["/api/users/*"]}}]
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: external-access, namespace: istio-system}
spec:
  selector: {matchLabels: {app: istio-proxy}}
  rules:
    - from: [{source: {notPrincipals: ["cluster.local/ns/ecotrack/sa/*"]}}]
      to: [{operation: {methods: ["GET"], paths: ["/api/*"]}}]
---
apiVersion: security.istio.io/v1beta1
kind: RequestAuthentication
metadata: {name: jwt-auth, namespace: ecotrack}
spec:
  selector: {matchLabels: {app: user-service}}
  jwtRules: [{issuer: "https://sso.company.com", jwksUri: "https://sso.company.com/jwks.json"}]
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: jwt-authz, namespace: ecotrack}
spec:
  selector: {matchLabels: {app: user-service}}
  rules:
    - from: [{source: {requestPrincipals: ["https://sso.company.com/*"]}}]
      when: [{key: "request.auth.claims[role]", values: ["admin", "user"]}]
"#;

#[test]
fn the_designs_policies_are_found_out() {
    let mesh = mesh(DESIGN);
    let dir = mesh.path().to_str().unwrap();
    let output = weft(&["analyze", dir, "--output", "json"]);
    assert_eq!(output.status.code(), Some(0), "warnings are no errors: {}", stderr(&output));
    let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let why = |name: &str, resource: &str| {
        let all = answer["messages"].as_array().unwrap();
        let found = all.iter().find(|m| m["name"] == name && m["resource"] == resource);
        let found = found.unwrap_or_else(|| panic!("no {name} on {resource} in {answer:#}"));
        assert!(found["file"].as_str().unwrap().ends_with("more.yaml") && found["line"].as_u64() > Some(1));
        assert!(found["code"].as_str().unwrap().starts_with("WEFT0") && found["help"].is_string());
        assert_eq!(found["severity"], "warning");
        found["why"].as_str().unwrap().to_owned()
    };
    let denied = why("DefaultDeny", "AuthorizationPolicy ecotrack/ecotrack-authz");
    for edge in [
        "no selector",
        "istio-system/istio-ingressgateway -> product-service.ecotrack.svc.cluster.local /api/products",
        "istio-system/istio-ingressgateway -> order-service.ecotrack.svc.cluster.local /api/orders",
        "but for the methods and paths that rules name, it breaks ecotrack/order-service -> payment-service",
        "only with a token passes istio-system/istio-ingressgateway -> user-service",
    ] {
        assert!(denied.contains(edge), "no {edge:?} in {denied}");
    }
    let or = why("AllowsAreAlternatives", "AuthorizationPolicy ecotrack/jwt-authz");
    assert!(or.contains("needs no token") && or.contains("ecotrack-authz"), "{or}");
    let root = why("PathWithoutItsRoot", "AuthorizationPolicy ecotrack/ecotrack-authz");
    assert!(root.contains("/api/users itself"), "{root}");
    let nobody = why("SelectsNothing", "AuthorizationPolicy istio-system/external-access");
    assert!(nobody.contains("app=istio-proxy"), "{nobody}");

    let output = weft(&["analyze", dir, "--fail-on-warnings"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("more.yaml:2: warning WEFT0101 DefaultDeny: AuthorizationPolicy ecotrack/"),
        "{text}"
    );
    assert!(text.trim_end().ends_with("notes") && text.contains("\n0 errors, "), "{text}");
}

#[test]
fn what_the_reader_refuses_is_an_error() {
    let mesh = mesh(&DESIGN.replace("action: DENY", "").replace("methods:", "method:"));
    let output = weft(&["analyze", mesh.path().to_str().unwrap()]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("more.yaml:8: error WEFT0001 Refused: AuthorizationPolicy ecotrack/ecotrack-authz"),
        "{text}"
    );
    let output = weft(&["analyze", "/nowhere/at/all"]);
    assert!(
        output.status.code() == Some(1) && stdout(&output).contains("/nowhere/at/all"),
        "{}",
        stdout(&output)
    );
}
