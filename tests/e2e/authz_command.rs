//! `weft authz`: the command itself. That its answers are the proxy's is shown by the truth tables (`authz_tables`).

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::authz::tokens::{Token, key_set};
use crate::support::{stderr, stdout, weft};

/// A shop: `front` may read the `api`, which may use the `db`; `old` takes plain text; somebody else decides about `asked`.
fn mesh() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let entry = |name: &str, ip: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}-1, namespace: shop}}\n\
             spec: {{address: {ip}, labels: {{app: {name}}}, serviceAccount: {name}}}\n---\n"
        )
    };
    let service = |name: &str, ports: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{selector: {{app: {name}}}, ports: [{ports}]}}\n---\n"
        )
    };
    let policy = |kind: &str, name: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n---\n"
        )
    };
    let keys = key_set(["rsa"].into_iter());
    let text = [
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
         accessLogFile: /nowhere/access.log\n    extensionProviders:\n    - name: opa\n      \
         envoyExtAuthzGrpc: {service: opa.example, port: 9000}\n---\n"
            .to_owned(),
        entry("front", "127.0.9.1") + &entry("api", "127.0.9.2") + &entry("db", "127.0.9.3"),
        entry("old", "127.0.9.4") + &entry("asked", "127.0.9.5"),
        service("front", "{name: http, port: 80}") + &service("db", "{name: tcp, port: 5432}"),
        service("api", "{name: http, port: 80, targetPort: 8080}, {name: http-admin, port: 81, targetPort: 8081}"),
        service("old", "{name: http, port: 80}") + &service("asked", "{name: http, port: 80}"),
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: opa, namespace: shop}\n\
         spec: {hosts: [opa.example], resolution: DNS, ports: [{number: 9000, name: grpc, protocol: GRPC}]}\n---\n"
            .to_owned(),
        policy("PeerAuthentication", "default", "{mtls: {mode: STRICT}}"),
        policy("PeerAuthentication", "old", "{selector: {matchLabels: {app: old}}, mtls: {mode: PERMISSIVE}}"),
        policy(
            "RequestAuthentication",
            "tokens",
            &json!({"selector": {"matchLabels": {"app": "api"}}, "jwtRules": [{"issuer": "a", "jwks": keys.to_string()}]})
                .to_string(),
        ),
        policy(
            "AuthorizationPolicy",
            "api",
            "{selector: {matchLabels: {app: api}}, rules: [\
             {from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}], to: [{operation: {methods: [GET], paths: [\"/api/*\"]}}]},\
             {from: [{source: {requestPrincipals: [a/alice]}}]}]}",
        ),
        policy(
            "AuthorizationPolicy",
            "db",
            "{selector: {matchLabels: {app: db}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/api, cluster.local/ns/shop/sa/gone]}}]}]}",
        ),
        policy(
            "AuthorizationPolicy",
            "asks",
            "{selector: {matchLabels: {app: asked}}, action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: [/x]}}]}]}",
        ),
    ];
    std::fs::write(dir.path().join("mesh.yaml"), text.concat()).unwrap();
    dir
}

fn authz(dir: &Path, arguments: &[&str]) -> Output {
    weft(&[&["authz", arguments[0], "--dir", dir.to_str().unwrap()], &arguments[1..]].concat())
}

/// The exit code, and the answer as JSON.
fn check(dir: &Path, arguments: &[&str]) -> (i32, Value) {
    let output = authz(dir, &[&["check", "--output", "json"], arguments].concat());
    let answer = serde_json::from_str(&stdout(&output))
        .unwrap_or_else(|e| panic!("{e}: {} {}", stdout(&output), stderr(&output)));
    (output.status.code().unwrap(), answer)
}

#[test]
fn a_verdict_has_its_rule_its_exit_code_and_words_for_people() {
    let mesh = mesh();
    let dir = mesh.path();
    let (code, answer) =
        check(dir, &["--from", "shop/front", "--to", "api-1", "--port", "8080", "GET", "/api/things?x=1"]);
    assert_eq!((code, &answer["decision"]), (0, &json!("allow")), "{answer}");
    let by = &answer["by"];
    assert_eq!((&by["name"], &by["rule"], &by["action"]), (&json!("api"), &json!(0), &json!("ALLOW")));
    let line = by["line"].as_u64().unwrap();
    let text = std::fs::read_to_string(dir.join("mesh.yaml")).unwrap();
    assert_eq!(text.lines().nth(line as usize - 1), Some("apiVersion: security.istio.io/v1"), "{answer}");
    assert!(by["file"].as_str().unwrap().ends_with("mesh.yaml"));

    // The path is what the proxy makes of it.
    let denied = ["--from", "shop/front", "--to", "shop/api-1", "--port", "8080", "GET", "/api/../admin"];
    let (code, answer) = check(dir, &denied);
    assert_eq!((code, &answer["decision"], &answer["status"]), (1, &json!("deny"), &json!(403)), "{answer}");
    assert_eq!(answer["details"], "rbac_access_denied_matched_policy[none]");
    assert!(
        answer["by"].is_null() && answer["reason"].as_str().unwrap().contains("AuthorizationPolicy shop/api")
    );
    let output = authz(dir, &[&["check"], &denied[..]].concat());
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.starts_with("deny: GET /api/../admin from spiffe://cluster.local/ns/shop/sa/front"),
        "{text}"
    );
    assert!(text.contains("403, rbac_access_denied_matched_policy[none]"), "{text}");
}

#[test]
fn bytes_plain_text_and_others_who_decide() {
    let mesh = mesh();
    let dir = mesh.path();
    let (code, answer) = check(dir, &["--from", "shop/api", "--to", "db-1"]);
    assert_eq!(
        (code, &answer["by"]["name"], &answer["protocol"]),
        (0, &json!("db"), &json!("TCP")),
        "{answer}"
    );
    let (code, answer) = check(dir, &["--from", "shop/front", "--to", "127.0.9.3"]);
    assert_eq!(
        (code, &answer["details"]),
        (1, &json!("rbac_access_denied_matched_policy[none]")),
        "{answer}"
    );
    // Nobody without an identity comes to a port that takes mutual TLS only; PeerAuthentication is the reason.
    let (code, answer) = check(dir, &["--to", "db-1"]);
    assert_eq!((code, &answer["by"]["kind"]), (1, &json!("PeerAuthentication")), "{answer}");
    assert_eq!((&answer["by"]["name"], &answer["by"]["action"]), (&json!("default"), &json!("STRICT")));
    let (code, answer) = check(dir, &["--to", "old-1", "/"]);
    assert_eq!((code, &answer["decision"]), (0, &json!("allow")), "{answer}");
    // Another trust domain's workload is refused by TLS.
    let foreign = "spiffe://elsewhere/ns/shop/sa/api";
    let (code, answer) = check(dir, &["--from", foreign, "--to", "db-1"]);
    assert!(code == 1 && answer["reason"].as_str().unwrap().contains("trust domain"), "{answer}");
    // Nobody is asked, and the answer says who would be.
    let (code, answer) = check(dir, &["--from", "shop/front", "--to", "asked-1", "/x"]);
    assert_eq!(
        (code, &answer["decision"], &answer["provider"]),
        (3, &json!("ask"), &json!("opa")),
        "{answer}"
    );
    assert_eq!(answer["by"]["name"], "asks");
    let (code, answer) = check(dir, &["--from", "shop/front", "--to", "asked-1", "/y"]);
    assert_eq!((code, &answer["decision"]), (0, &json!("allow")), "{answer}");
}

#[test]
fn tokens_are_verified() {
    let mesh = mesh();
    let dir = mesh.path();
    let file = dir.join("token.txt");
    let ask = |claims: Value, forged: Option<Value>| {
        let token: Token = serde_json::from_value(json!({"claims": claims, "forged": forged})).unwrap();
        std::fs::write(&file, token.text() + "\n").unwrap();
        let file = file.to_str().unwrap();
        check(dir, &["--from", "shop/old", "--to", "api-1", "--port", "8081", "--jwt", file, "POST", "/"])
    };
    let (code, answer) = ask(json!({"iss": "a", "sub": "alice"}), None);
    assert_eq!((code, &answer["by"]["rule"]), (0, &json!(1)), "{answer}");
    let (code, answer) = ask(json!({"iss": "a", "sub": "bob"}), None);
    assert_eq!((code, &answer["status"]), (1, &json!(403)), "{answer}");
    let (code, answer) = ask(json!({"iss": "a", "sub": "bob"}), Some(json!({"iss": "a", "sub": "alice"})));
    assert_eq!((code, &answer["status"]), (1, &json!(401)), "{answer}");
    let reason = answer["reason"].as_str().unwrap();
    assert!(reason.contains("Jwt verification fails") && reason.contains("shop/tokens"), "{reason}");
}

#[test]
fn a_question_that_cannot_be_answered_says_what_to_check() {
    let mesh = mesh();
    let dir = mesh.path();
    let ask: [(&[&str], &[&str]); 14] = [
        (&["--from", "shop/front", "--to", "apj-1", "/"], &["\"apj-1\"", "shop/api-1"]),
        (
            &["--from", "shop/nobody", "--to", "old-1", "/"],
            &["no workload has the identity", "shop/sa/front", "--any-identity"],
        ),
        (&["--from", "front", "--to", "old-1", "/"], &["\"front\"", "spiffe://cluster.local/ns/NAMESPACE"]),
        (&["--from", "spiffe://Bad/x", "--to", "old-1", "/"], &["trust domain"]),
        (&["--from", "shop/front", "--to", "api-1", "/"], &["several ports", "8080, 8081"]),
        (
            &["--from", "shop/front", "--to", "api-1", "--port", "80", "/"],
            &["no port 80", "8080", "port 80 of api.shop.svc.cluster.local is port 8080"],
        ),
        (&["--from", "shop/front", "--to", "old-1"], &["port 80 takes HTTP requests", "GET /path"]),
        (&["--from", "shop/front", "--to", "old-1", "get", "/"], &["\"get\"", "capitals"]),
        (&["--from", "shop/front", "--to", "old-1", "GET", "x"], &["\"x\" is no path"]),
        (&["--from", "shop/front", "--to", "old-1", "--header", "x", "/"], &["NAME=VALUE"]),
        (&["--from", "shop/front", "--to", "old-1", "--header", "x=a\r\nb: c", "/"], &["control characters"]),
        (&["--from", "shop/front", "--to", "old-1", "--jwt", "/nowhere/token", "/"], &["/nowhere/token"]),
        (&["--from", "shop/front", "--to", "db-1", "--host", "x"], &["GET /path"]),
        (&["--from", "shop/front", "--to", "old-1", "--from-ip", "x", "/"], &["--from-ip"]),
    ];
    for (arguments, words) in ask {
        let output = authz(dir, &[&["check"], arguments].concat());
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error} {}", stdout(&output));
        for word in words {
            assert!(error.contains(word), "{arguments:?}: no {word:?} in {error}");
        }
    }
    let output = authz(dir, &["check", "--from", "shop/nobody", "--any-identity", "--to", "old-1", "/"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    std::fs::write(dir.join("bad.yaml"), "kind: [").unwrap();
    let output = authz(dir, &["who-can", "db-1"]);
    assert!(output.status.code() == Some(2) && stderr(&output).contains("bad.yaml"), "{}", stderr(&output));
}

#[test]
fn who_can_names_every_identity_and_its_rule() {
    let mesh = mesh();
    let dir = mesh.path();
    let who = |workload: &str| {
        let output = authz(dir, &["who-can", workload, "--output", "json"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()["ports"].take()
    };
    let ways = |port: &Value, account: &str| {
        let all = port["identities"].as_array().unwrap();
        let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        let found = all.iter().find(|who| who["identity"] == id.as_str());
        found.unwrap_or_else(|| panic!("no {id} in {port}"))["ways"].clone()
    };
    let none = json!([]);

    let db = who("db-1");
    let port = &db[0];
    assert_eq!(db.as_array().unwrap().len(), 1);
    assert_eq!(ways(port, "api")[0]["by"]["name"], "db");
    // Named by the policy, and nobody's.
    assert_eq!(ways(port, "gone")[0]["by"]["rule"], 0);
    for account in ["front", "old", "db", "asked"] {
        assert_eq!(ways(port, account), none, "{account}: {port}");
    }
    assert_eq!((&port["anybody"]["inMesh"], &port["anybody"]["unauthenticated"]), (&none, &none));

    let api = who("api-1");
    let port = &api[0];
    let front = ways(port, "front");
    assert_eq!((&front[0]["by"]["rule"], &front[0]["example"]), (&json!(0), &json!("GET /api/x")), "{front}");
    // Whoever has the token comes in.
    let anybody = &port["anybody"]["inMesh"];
    assert_eq!(
        (&anybody[0]["by"]["rule"], &anybody[0]["token"]),
        (&json!(1), &json!("{\"iss\":\"a\",\"sub\":\"alice\"}")),
        "{anybody}"
    );
    assert_eq!(port["anybody"]["unauthenticated"], none);

    let old = who("old-1");
    let port = &old[0];
    assert_eq!(port["anybody"]["unauthenticated"][0]["example"], "GET /", "{port}");
    assert!(port["anybody"]["unauthenticated"][0]["by"].is_null());
    assert_eq!(who("asked-1")[0]["anybody"]["inMesh"].as_array().unwrap().len(), 2, "asked or let in");

    let text = stdout(&authz(dir, &["who-can", "shop/db-1"]));
    assert!(text.contains("shop/sa/api\n    by rule 0 of AuthorizationPolicy shop/db (ALLOW)"), "{text}");
    assert!(text.contains("shop/sa/gone (named by a policy; no workload has it)"), "{text}");
    assert!(text.contains("  not spiffe://cluster.local/ns/shop/sa/front\n"), "{text}");
    let text = stdout(&authz(dir, &["who-can", "old-1"]));
    assert!(text.contains("anybody, unauthenticated in plain text"), "{text}");
}
