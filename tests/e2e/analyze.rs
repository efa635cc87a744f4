//! `weft analyze`: the command. What is found is shown case by case beside the checks (control/src/analyze/cases.yaml).

use std::path::Path;

use serde_json::Value;

use crate::support::control::Control;
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

/// What the design writes and Istio refuses: each with the line, the field, and what is wrong with it.
#[test]
fn the_designs_condition_by_labels_and_its_port_modes_are_refused() {
    let labels = r#"
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: ecotrack-authz, namespace: ecotrack}
spec:
  rules:
    - when:
        - key: source.labels[app]
          values: ["order-service"]
"#;
    let list = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: data}
spec:
  mtls: {mode: STRICT}
  portLevelMtls:
    - port: {number: 5432}
      mtls: {mode: STRICT}
"#;
    let everywhere = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: data}
spec:
  portLevelMtls: {5432: {mode: STRICT}}
";
    for (text, words) in [
        (
            labels,
            [
                "more.yaml:8: error WEFT0001",
                "spec.rules[0].when[0].key",
                "unknown attribute: source.labels[app]",
            ],
        ),
        (list, ["more.yaml:8: error WEFT0001", "PeerAuthentication data/default", "spec.portLevelMtls"]),
        (everywhere, ["error WEFT0001", "PeerAuthentication data/default", "selector"]),
    ] {
        let mesh = mesh(text);
        let output = weft(&["analyze", mesh.path().to_str().unwrap()]);
        let said = stdout(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "no {word:?} in {said}");
        }
    }
}

#[test]
fn a_running_control_plane_says_the_same_of_each_state() {
    let rule = |app: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: a-1, namespace: n}}, spec: {{address: 127.0.3.1, labels: {{app: a}}, serviceAccount: a}}}}\n---\n\
             {{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: p, namespace: n}}, spec: {{selector: {{matchLabels: {{app: {app}}}}}, mtls: {{mode: STRICT}}}}}}\n"
        )
    };
    let control = Control::start("127.64.7.1", &rule("b"));
    control.process.says(&[
        "WARN",
        "mesh.yaml:3: warning WEFT0103 SelectsNothing: PeerAuthentication n/p",
        "app=b",
    ]);
    std::fs::write(control.config("mesh.yaml"), rule("c")).unwrap();
    control.process.says(&["WEFT0103", "app=c"]);
}

#[test]
fn what_is_in_the_wrong_place_is_moved_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rule.yaml");
    let rule = "apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: user-service, namespace: ecotrack}
spec:
  host: user-service
  trafficPolicy:
    connectionPool:
      http:
        maxRetries: 3
        # The design's.
        consecutiveGatewayErrors: 5
        interval: 30s
";
    std::fs::write(&file, rule).unwrap();
    let path = dir.path().to_str().unwrap();
    let output = weft(&["analyze", path]);
    assert!(!output.status.success());
    let said = stdout(&output);
    assert!(said.contains("did you mean trafficPolicy.outlierDetection.interval?"), "{said}");
    assert!(said.contains("weft analyze --fix"), "{said}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), rule, "nothing was asked for");

    let output = weft(&["lint", path, "--fix"]);
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    let said = stdout(&output);
    assert!(said.contains("rule.yaml:12: DestinationRule ecotrack/user-service: spec.trafficPolicy.connectionPool.http.interval is trafficPolicy.outlierDetection.interval now"), "{said}");
    let fixed = std::fs::read_to_string(&file).unwrap();
    assert!(
        fixed.ends_with("    outlierDetection:\n      consecutiveGatewayErrors: 5\n      interval: 30s\n"),
        "{fixed}"
    );
    assert!(fixed.contains("        # The design's.\n"), "{fixed}");
    // A cluster's objects are not files.
    assert!(!weft(&["analyze", "--fix", "--cluster"]).status.success());
}

/// The corpus says beside each line what is said of it (control/src/serve/admission/corpus.rs compares directories and webhooks).
#[test]
fn what_the_corpus_says_of_each_line_is_what_the_command_says() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    for file in std::fs::read_dir(corpus).unwrap().map(|file| file.unwrap().path()) {
        let output = weft(&["analyze", file.to_str().unwrap(), "--output", "json"]);
        let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = (1u64..).zip(text.lines());
        let mut expected: Vec<(u64, String)> = lines
            .flat_map(|(line, text)| {
                text.split("#! ").skip(1).map(move |said| (line, said.trim_end().to_owned()))
            })
            .collect();
        let refused = expected.iter().any(|(_, said)| said.starts_with("error: "));
        assert_eq!(output.status.code(), Some(i32::from(refused)), "{}", file.display());
        let told = |key: &str, one: &Value| one[key].as_str().map(str::to_owned);
        let all = answer["messages"].as_array().unwrap();
        let of_reader =
            all.iter().filter(|one| ["Refused", "Doubted"].contains(&one["name"].as_str().unwrap()));
        let mut found: Vec<(u64, String)> = of_reader
            .map(|one| {
                let severity = one["severity"].as_str().unwrap().replace("info", "note");
                let path = told("path", one).map(|path| format!("{path}: ")).unwrap_or_default();
                let help = told("help", one).map(|help| format!("; {help}")).unwrap_or_default();
                let why = told("why", one).unwrap();
                let said = format!("{severity}: {path}{why}{help}").replace('\n', "\\n");
                (one["line"].as_u64().unwrap(), said)
            })
            .collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{}", file.display());
    }
}
