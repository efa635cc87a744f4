//! Route matching: a request's virtual host and route in a configuration of a hundred hosts.

use std::hint::black_box;
use std::sync::Arc;
use std::time::SystemTime;

use criterion::Criterion;
use weft_proxy::codec::{Headers, Protocol, RequestHead};
use weft_proxy::route::{Asked, Matched, RouteConfig};
use weft_proxy::state::{CompileContext, NodeInfo, Tables};
use xds_protos::envoy::config::route::v3::RouteConfiguration;

/// Like an outbound route configuration of a mesh: a virtual host for each service, each with a canary rule by header, ten
/// rules by prefix, and the rest.
fn config() -> Arc<RouteConfig> {
    let mut hosts = String::new();
    for host in 0..100 {
        let name = format!("svc-{host}.ecotrack.svc.cluster.local");
        hosts += &format!(
            "- name: {name}:8080\n  domains: [{name}, \"{name}:8080\", svc-{host}, \"10.0.0.{host}\"]\n  routes:\n"
        );
        hosts += "  - match: { prefix: /, headers: [{ name: canary, string_match: { exact: \"true\" } }] }\n    route: { cluster: canary }\n";
        for rule in 0..10 {
            hosts += &format!("  - match: {{ prefix: /api/v{rule}/ }}\n    route: {{ cluster: c{rule} }}\n");
        }
        hosts += "  - match: { safe_regex: { regex: \"/items/[0-9]+\" } }\n    route: { cluster: items }\n";
        hosts += "  - match: { prefix: / }\n    route: { cluster: rest }\n";
    }
    let text = format!("name: \"8080\"\nvirtual_hosts:\n{hosts}");
    let proto: RouteConfiguration = xds_protos::json::from_yaml_str(&text).unwrap();
    let context =
        CompileContext::new(&Tables::default(), Arc::new(NodeInfo::default()), SystemTime::UNIX_EPOCH);
    Arc::new(RouteConfig::compile(&proto, &context).unwrap())
}

fn head(authority: &'static str, path: &'static str) -> RequestHead {
    let fields = ["user-agent", "accept", "x-request-id", "x-forwarded-proto", "traceparent", "x-tenant"];
    let headers: Headers = fields
        .map(|n| (http::HeaderName::from_static(n), http::HeaderValue::from_static("some value")))
        .into_iter()
        .collect();
    RequestHead {
        method: http::Method::GET,
        scheme: "http".into(),
        authority: authority.into(),
        path: path.into(),
        protocol: Protocol::Http11,
        upgrade: None,
        headers,
    }
}

pub fn benches(c: &mut Criterion) {
    let config = config();
    let mut group = c.benchmark_group("route");
    for (name, request) in [
        ("first prefix", head("svc-42.ecotrack.svc.cluster.local:8080", "/api/v0/things")),
        ("regular expression", head("svc-99.ecotrack.svc.cluster.local", "/items/4711")),
        ("last rule", head("svc-7", "/nothing/of/the/above?with=a&query=1")),
    ] {
        assert!(Matched::find(&config, &Asked::new(&request)).is_ok(), "{name}");
        group.bench_function(name, |b| {
            b.iter(|| Matched::find(&config, &Asked::new(black_box(&request))).is_ok());
        });
    }
    let unknown = head("nobody.example.com", "/");
    assert!(Matched::find(&config, &Asked::new(&unknown)).is_err());
    group.bench_function("unknown host", |b| {
        b.iter(|| Matched::find(&config, &Asked::new(black_box(&unknown))).is_ok());
    });
}
