//! `weft test`: tests of a configuration, run by the proxy's own matcher and policies.

use std::path::Path;

use serde_json::Value;

use crate::support::{stderr, stdout, weft};

/// The example mesh, and these cases beside it.
fn mesh(cases: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ecotrack");
    for file in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let head = "apiVersion: test.weft.dev/v1alpha1\nkind: Test\nmetadata: {name: users}\ncases:\n";
    std::fs::write(dir.path().join("users-test.yaml"), head.to_owned() + cases).unwrap();
    dir
}

fn run(dir: &tempfile::TempDir) -> (Option<i32>, Value) {
    let output = weft(&["test", dir.path().to_str().unwrap(), "--output", "json"]);
    let json = serde_json::from_str(&stdout(&output));
    (output.status.code(), json.unwrap_or_else(|_| panic!("{}", stderr(&output))))
}

const GOOD: &str = r#"
- name: a marked request goes to the canary
  from: ecotrack/order-service-1
  request: GET http://user-service:8080/api/users/1
  headers: {canary: "true"}
  expect:
    route: canary
    destinations: [{host: user-service.ecotrack.svc.cluster.local, subset: canary, port: 8080, weight: 100}]
    timeout: 30s
    retries: {attempts: 3, perTryTimeout: 10000ms}
- name: and all others do not
  from: ecotrack/order-service-1
  request: GET http://user-service.ecotrack.svc.cluster.local:8080/api/users/1
  headers: {canary: "yes"}
  expect: {route: stable, destinations: [{subset: stable}]}
- name: what nobody serves is not there
  from: istio-system/istio-ingressgateway-1
  request: GET http://nobody.example:8080/
  expect: {status: 404}
- name: orders may read users
  to: user-service-stable-1
  identity: ecotrack/order-service
  request: GET /api/users/1
  expect: {decision: allow}
- name: strangers may not
  to: user-service-stable-1
  request: GET /api/users/1
  expect: {decision: deny}
"#;

#[test]
fn a_configuration_passes_its_tests_and_fails_them_when_it_changes() {
    let dir = mesh(GOOD);
    let (code, outcomes) = run(&dir);
    assert_eq!((code, &outcomes["failed"]), (Some(0), &0.into()), "{outcomes:#}");
    assert_eq!(outcomes["cases"].as_array().unwrap().len(), 5);

    let path = dir.path().join("user-service-traffic.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        text.replacen("timeout: 30s", "timeout: 20s", 1).replacen("subset: stable", "subset: canary", 1),
    )
    .unwrap();
    let (code, outcomes) = run(&dir);
    assert_eq!((code, &outcomes["failed"]), (Some(1), &2.into()), "{outcomes:#}");
    let failures = |n: usize| outcomes["cases"][n]["failures"][0].as_str().unwrap_or("-").to_owned();
    assert_eq!(failures(0), r#"timeout: expected "30s", found "20s""#);
    assert_eq!(failures(1), r#"destinations[0].subset: expected "stable", found "canary""#);
    let text = stdout(&weft(&["test", dir.path().to_str().unwrap()]));
    assert!(
        text.contains("FAIL users: a marked request") && text.ends_with("3 passed, 2 failed\n"),
        "{text}"
    );
}

/// A database, three that may use it, and one that may not.
const DATABASE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: postgres, namespace: ecotrack}
spec: {ports: [{name: tcp-postgres, port: 5432}], selector: {app: postgres}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: postgres-1, namespace: ecotrack}
spec: {address: 127.0.90.1, labels: {app: postgres}, serviceAccount: postgres}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: postgres, namespace: ecotrack}
spec: {selector: {matchLabels: {app: postgres}}, mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: postgres, namespace: ecotrack}
spec:
  selector: {matchLabels: {app: postgres}}
  rules:
    - from: [{source: {principals: [cluster.local/ns/ecotrack/sa/order-service, cluster.local/ns/ecotrack/sa/product-service]}}]
"#;

#[test]
fn a_test_says_who_reaches_the_database() {
    let dir = mesh(
        "- name: two of them
  to: postgres-1
  expect: {identities: [ecotrack/order-service, ecotrack/product-service], anyIdentity: false, plainText: false}
",
    );
    std::fs::write(dir.path().join("database.yaml"), DATABASE).unwrap();
    let (code, outcomes) = run(&dir);
    assert_eq!(code, Some(0), "{outcomes:#}");
    let more = DATABASE.replace("/sa/product-service", "/sa/notification-service");
    std::fs::write(dir.path().join("database.yaml"), more).unwrap();
    let (code, outcomes) = run(&dir);
    let failure = outcomes["cases"][0]["failures"][0].as_str().unwrap_or("-").to_owned();
    assert!(code == Some(1) && failure.contains("notification-service"), "{outcomes:#}");
}

#[test]
fn a_case_that_asks_for_the_impossible_fails_and_says_why() {
    for (case, words) in [
        (
            "{name: x, from: nobody, request: GET http://a/, expect: {route: a}}",
            "no workload is called \"nobody\"",
        ),
        ("{name: x, request: GET http://a/, expect: {route: a}}", "from or to is missing"),
        (
            "{name: x, from: order-service-1, to: user-service-stable-1, expect: {route: a}}",
            "cannot stand together",
        ),
        ("{name: x, from: order-service-1, request: /a, expect: {route: a}}", "write METHOD"),
        ("{name: x, from: order-service-1, request: GET /a, expect: {route: a}}", "is no URL"),
        (
            "{name: x, from: order-service-1, request: \"GET http://user-service:81/\", expect: {route: a}}",
            "route: there is none",
        ),
        (
            "{name: x, from: order-service-1, request: \"GET http://user-service:8080/\", expect: {rout: a}}",
            "rout: there is none; there is as, destinations",
        ),
        ("{name: x, to: user-service-stable-1, request: GET x, expect: {decision: deny}}", "is no path"),
    ] {
        let (code, outcomes) = run(&mesh(&format!("- {case}\n")));
        let failure = outcomes["cases"][0]["failures"][0].as_str().unwrap_or("-").to_owned();
        assert!(code == Some(1) && failure.contains(words), "{words}: {failure}");
    }
    for (cases, words) in [
        ("- {name: x, form: a, request: GET http://a/, expect: {route: a}}\n", "form"),
        ("- {name: x, from: a, headers: {canary: true}, expect: {route: a}}\n", "expected a string"),
        ("  []\n", "there are no tests"),
    ] {
        let output = weft(&["test", mesh(cases).path().to_str().unwrap()]);
        assert!(!output.status.success() && stderr(&output).contains(words), "{words}: {}", stderr(&output));
    }
}
