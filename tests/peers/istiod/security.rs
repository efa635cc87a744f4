//! Identities from istiod's authority, mutual TLS, and who may do what.

use serde_json::json;

use super::shop::{DATABASE, Shop, WEB};
use crate::programs::{until, until_or};
use crate::tables::tokens::{Token, key_set};

/// The web shop's first version at its own address and port, past Services and whoever balances.
const FIRST: &str = "10.79.1.11:8080";

const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secrets, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules: [{to: [{operation: {paths: [/secret/*]}}], when: [{key: 'request.headers[x-key]', notValues: [open]}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
  - from: [{source: {serviceAccounts: [shop/database]}}]
    to: [{operation: {methods: [HEAD]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: database, namespace: shop}
spec:
  selector: {matchLabels: {app: database}}
  rules:
  - from: [{source: {namespaces: [shop], notPrincipals: ['*/sa/web']}}]
    to: [{operation: {ports: ['5432']}}]
";

/// Certificates are istiod's, connections between sidecars are by mutual TLS, and those of strangers are taken until they are not.
pub fn connections_are_by_mutual_tls(shop: &Shop<'_>) {
    let (client, stranger, first) = (shop.pod("client"), shop.pod("stranger"), &shop.web[0]);
    for pod in shop.proxies() {
        let identity = format!("spiffe://cluster.local/ns/{}/sa/{}", pod.spec.namespace, pod.spec.account);
        assert!(pod.page("/certs").contains(&identity), "{}", pod.page("/certs"));
    }
    assert_eq!(stranger.get(FIRST, "web", "/plain", &[]).body, "web-1", "plain text is taken as well");
    let head = first.asked("/plain").remove(0).to_lowercase();
    assert!(!head.contains("x-forwarded-client-cert"), "{head}");
    until("the first version is asked", || {
        client.get(WEB, "web", "/known", &[]);
        !first.asked("/known").is_empty()
    });
    let head = first.asked("/known").remove(0).to_lowercase();
    let told = "x-forwarded-client-cert: by=spiffe://cluster.local/ns/shop/sa/web;hash=";
    assert!(head.contains(told) && head.contains("uri=spiffe://cluster.local/ns/shop/sa/client"), "{head}");

    shop.cluster.server.apply(
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: shop}, \
         spec: {mtls: {mode: STRICT}}}",
    );
    until("strangers are refused", || stranger.get(FIRST, "web", "/", &[]).status == 0);
    let ended = |seen: &str| seen == "UnexpectedEof" || seen == "ConnectionReset";
    until("strangers' bytes are refused", || ended(&stranger.echo("10.79.1.21:5432", "hello")));
    assert_eq!(client.get(WEB, "web", "/", &[]).status, 200);
    assert_eq!(client.greeting(DATABASE), "databaseping");
    // What a stranger serves is dialled in plain text, for its pod says nothing of mutual TLS.
    assert_eq!(client.get("10.96.0.14:80", "stranger.elsewhere", "/out", &[]).body, "stranger");
}

/// Who may do what, by its identity.
pub fn policies_are_followed(shop: &Shop<'_>) {
    let (client, database, web) = (shop.pod("client"), shop.pod("database"), shop.pod("web-1"));
    assert_eq!(database.get(WEB, "web", "/", &[]).status, 200);
    assert_eq!(web.greeting(DATABASE), "databaseping");
    shop.cluster.server.apply(POLICIES);
    let denied = || {
        let seen = client.get(WEB, "web", "/secret/1", &[]);
        (seen.status, seen.body.as_str()) == (403, "RBAC: access denied")
    };
    until_or("the secret is denied", || shop.pod("web-1").log(), || (0..4).all(|_| denied()));
    until("the caller is denied", || (0..4).all(|_| database.get(WEB, "web", "/", &[]).status == 403));
    for _ in 0..4 {
        assert_eq!(client.get(WEB, "web", "/secret/1", &["x-key: open"]).status, 200);
        assert_eq!(client.get(WEB, "web", "/", &[]).status, 200);
        assert_eq!(database.ask(WEB, "web", "HEAD /", &[]).status, 200);
    }
    until("bytes are denied", || web.greeting(DATABASE) != "databaseping");
    assert_eq!(client.greeting(DATABASE), "databaseping");
    assert_ne!(client.greeting("10.79.1.21:6000"), "memberping", "another port than that of the rule");
}

/// Tokens of an issuer whose keys are in the policy.
pub fn tokens_are_looked_at(shop: &Shop<'_>) {
    let client = shop.pod("client");
    let token = |claims: serde_json::Value, key: &str| {
        let token: Token = serde_json::from_value(json!({"key": key, "claims": claims})).unwrap();
        format!("authorization: Bearer {}", token.text())
    };
    let keys = key_set(["rsa"].into_iter()).to_string();
    let authentication = json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
        "metadata": {"name": "tokens", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "jwtRules": [{
            "issuer": "issuer.example", "jwks": keys, "forwardOriginalToken": true,
            "outputClaimToHeaders": [{"header": "x-sub", "claim": "sub"}],
        }]},
    });
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "tokens", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "action": "DENY", "rules": [{
            "from": [{"source": {"notRequestPrincipals": ["issuer.example/*"]}}],
            "to": [{"operation": {"paths": ["/members"]}}],
        }, {
            "to": [{"operation": {"paths": ["/admins"]}}],
            "when": [{"key": "request.auth.claims[groups]", "notValues": ["admins"]}],
        }]},
    });
    shop.cluster.server.apply(&authentication.to_string());
    shop.cluster.server.apply(&policy.to_string());
    let status = |path: &str, fields: &[&str]| client.get(WEB, "web", path, fields).status;
    until("members need a token", || (0..4).all(|_| status("/members", &[]) == 403));
    let issuer = "issuer.example";
    let good = token(json!({"iss": issuer, "sub": "somebody", "exp": "+600", "groups": ["users"]}), "rsa");
    let admin =
        token(json!({"iss": issuer, "sub": "admin", "exp": "+600", "groups": ["users", "admins"]}), "rsa");
    let forged = token(json!({"iss": issuer, "sub": "somebody", "exp": "+600"}), "other");
    let expired = token(json!({"iss": issuer, "sub": "somebody", "exp": "-600"}), "rsa");
    let foreign = token(json!({"iss": "other.example", "sub": "somebody", "exp": "+600"}), "rsa");
    for _ in 0..4 {
        assert_eq!(status("/", &[]), 200, "no token is no wrong one");
        assert_eq!(status("/members", &[&good]), 200);
        assert_eq!(status("/admins", &[&good]), 403);
        assert_eq!(status("/admins", &[&admin]), 200);
        for wrong in [&forged, &expired, &foreign] {
            assert_eq!(status("/", &[wrong]), 401, "{wrong}");
        }
    }
    let mut heads = [shop.web[0].asked("/members"), shop.web[1].asked("/members")].concat();
    // The first came before anybody asked for tokens.
    heads.retain(|head| head.contains("authorization: "));
    assert!(!heads.is_empty() && heads.iter().all(|head| head.contains("x-sub: somebody")), "{heads:#?}");
}
