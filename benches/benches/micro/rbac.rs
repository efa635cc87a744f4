//! What a decision over policies costs: one policy, and a thousand of as many callers, paths and hosts. The request is let in
//! by the last, so that nothing is found early. And what a list of 100,000 denied networks costs a connection that is on none of
//! them, and its compilation.

use std::hint::black_box;
use std::sync::Arc;

use criterion::Criterion;
use http::Method;
use weft_proxy::codec::{Headers, Protocol, RequestHead};
use weft_proxy::filters::rbac::{Engine, Subject};
use weft_proxy::io::{ConnectionInfo, Direction, DynamicMetadata, TlsInfo};
use xds_protos::envoy::config::rbac::v3::Rbac;

/// A policy of the form that istiod renders: who, which paths of which host with which methods, on which port.
fn policy(n: usize) -> serde_json::Value {
    let any = |rules: serde_json::Value| serde_json::json!({"or_rules": {"rules": rules}});
    serde_json::json!({
        "permissions": [{"and_rules": {"rules": [
            any(serde_json::json!([{"header": {"name": ":authority", "string_match": {"exact": "orders.shop.svc", "ignore_case": true}}}])),
            any(serde_json::json!([{"header": {"name": ":method", "string_match": {"exact": "GET"}}},
                {"header": {"name": ":method", "string_match": {"exact": "POST"}}}])),
            any(serde_json::json!([{"url_path": {"path": {"exact": format!("/api/v1/resource{n}")}}},
                {"url_path": {"path": {"prefix": format!("/api/v1/resource{n}/")}}}])),
            any(serde_json::json!([{"destination_port": 8080}])),
        ]}}],
        "principals": [{"and_ids": {"ids": [{"or_ids": {"ids": [
            {"authenticated": {"principal_name": {"exact": format!("spiffe://cluster.local/ns/ns{}/sa/caller{n}", n % 50)}}},
            {"authenticated": {"principal_name": {"safe_regex": {"regex": format!(".*/ns/special{n}/.*")}}}},
        ]}}]}}]
    })
}

fn engine(policies: usize) -> Engine {
    let all: serde_json::Map<_, _> =
        (1000 - policies..1000).map(|n| (format!("ns[a]-policy[p{n:04}]-rule[0]"), policy(n))).collect();
    let rules: Rbac = xds_protos::json::from_value(serde_json::json!({ "policies": all })).unwrap();
    Engine::compile(&rules, true).unwrap()
}

/// A policy that denies these many networks, as a list of denied addresses is rendered.
fn denied(networks: u32) -> Rbac {
    use xds_protos::envoy::config::core::v3::CidrRange;
    use xds_protos::envoy::config::rbac::v3::principal::Identifier;
    use xds_protos::envoy::config::rbac::v3::{Permission, Policy, Principal, permission, rbac};
    // Every other one of length 24 from 11.0.0.0 on, so that none can be joined.
    let principal = |n: u32| Principal {
        identifier: Some(Identifier::RemoteIp(CidrRange {
            address_prefix: std::net::Ipv4Addr::from_bits((11 << 24) + n * 512).to_string(),
            prefix_len: Some(24),
        })),
    };
    let policy = Policy {
        permissions: vec![Permission { rule: Some(permission::Rule::Any(true)) }],
        principals: (0..networks).map(principal).collect(),
        ..Policy::default()
    };
    Rbac {
        action: rbac::Action::Deny.into(),
        policies: [("deny-list[n/a]".to_owned(), policy)].into(),
        ..Rbac::default()
    }
}

pub fn benches(c: &mut Criterion) {
    let tls = TlsInfo {
        peer_uri_sans: vec!["spiffe://cluster.local/ns/ns49/sa/caller999".into()],
        ..TlsInfo::default()
    };
    let connection = ConnectionInfo {
        direction: Direction::Inbound,
        tls: Some(Arc::new(tls)),
        ..ConnectionInfo::between("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:8080".parse().unwrap())
    };
    let head = RequestHead {
        method: Method::GET,
        scheme: "http".into(),
        authority: "orders.shop.svc".into(),
        path: "/api/v1/resource999/42?expand=1".into(),
        protocol: Protocol::Http2,
        upgrade: None,
        headers: Headers::new(),
    };
    let metadata = DynamicMetadata::default();
    let subject = Subject {
        connection: &connection,
        head: Some(&head),
        client: "10.0.0.1".parse().unwrap(),
        metadata: &metadata,
        route: None,
        state: None,
    };
    for policies in [1, 1000] {
        let engine = engine(policies);
        assert!(engine.decide(&subject).allowed);
        c.bench_function(&format!("rbac/{policies} policies"), |b| {
            b.iter(|| black_box(engine.decide(black_box(&subject))).allowed);
        });
    }
    let rules = denied(100_000);
    let engine = Engine::compile(&rules, false).unwrap();
    assert!(engine.decide(&subject).allowed);
    let listed = Subject { client: "11.0.2.1".parse().unwrap(), ..subject };
    assert!(!engine.decide(&listed).allowed);
    c.bench_function("rbac/100,000 denied networks", |b| {
        b.iter(|| black_box(engine.decide(black_box(&subject))).allowed);
    });
    c.bench_function("rbac/100,000 denied networks, compiling", |b| {
        b.iter(|| Engine::compile(black_box(&rules), false).map(|e| e.policies.len()));
    });
}
