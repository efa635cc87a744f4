use std::sync::Arc;

use serde_json::{Value, json};
use xds_protos::envoy::config::rbac::v3 as proto;

use super::*;
use crate::codec::{Headers, Protocol, RequestHead};
use crate::io::{ConnectionInfo, Direction, TlsInfo};

fn connection() -> ConnectionInfo {
    let tls = TlsInfo {
        peer_uri_sans: vec!["spiffe://cluster.local/ns/foo/sa/a".into()],
        peer_dns_sans: vec!["a.foo.example".into()],
        peer_subject: "CN=a,O=foo".into(),
        ..TlsInfo::default()
    };
    ConnectionInfo {
        direct_remote: "10.9.0.1:1000".parse().unwrap(),
        direction: Direction::Inbound,
        sni: Some("a.example".into()),
        tls: Some(Arc::new(tls)),
        ..ConnectionInfo::between("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:8080".parse().unwrap())
    }
}

fn head(path: &'static str) -> RequestHead {
    let fields = [("x-team", "blue"), ("x-n", "7")];
    RequestHead {
        method: http::Method::GET,
        scheme: "http".into(),
        authority: "a.com".into(),
        path: path.into(),
        protocol: Protocol::Http11,
        upgrade: None,
        headers: fields
            .into_iter()
            .map(|(n, v)| (n.parse().unwrap(), http::HeaderValue::from_static(v)))
            .collect::<Headers>(),
    }
}

fn engine(rules: Value) -> Result<Engine, String> {
    let rules: proto::Rbac = xds_protos::json::from_value(rules).unwrap();
    Engine::compile(&rules, true).map_err(|e| crate::state::error::join(&e))
}

/// Whether a policy of this permission and this principal matches our request.
fn matches(permission: Value, principal: Value) -> bool {
    let policy = json!({"permissions": [permission], "principals": [principal]});
    let engine = engine(json!({"policies": {"p": policy}})).unwrap();
    let (mut connection, head) = (connection(), head("/a/b?q=1#f"));
    connection.filter_state.set(&"who".into(), "spiffe://x", false);
    let mut metadata = DynamicMetadata::default();
    metadata.set("jwt", &"iss".into(), Datum::Text("me".into()));
    engine
        .decide(&Subject {
            connection: &connection,
            head: Some(&head),
            client: "192.168.1.1".parse().unwrap(),
            metadata: &metadata,
            route: None,
            state: None,
        })
        .allowed
}

#[test]
fn permissions_look_at_the_request_and_at_where_it_goes() {
    let range = |prefix: &str, len: u32| json!({"address_prefix": prefix, "prefix_len": len});
    let cases = [
        (json!({"any": true}), true),
        (json!({"header": {"name": "x-team", "string_match": {"exact": "blue"}}}), true),
        (json!({"header": {"name": "x-n", "range_match": {"start": 7, "end": 8}}}), true),
        (json!({"header": {"name": "x-none", "present_match": true}}), false),
        (json!({"url_path": {"path": {"exact": "/a/b"}}}), true),
        (json!({"url_path": {"path": {"suffix": "q=1"}}}), false),
        (json!({"destination_ip": range("10.0.0.0", 24)}), true),
        (json!({"destination_ip": range("10.0.1.0", 24)}), false),
        (json!({"destination_port": 8080}), true),
        (json!({"destination_port_range": {"start": 8080, "end": 8081}}), true),
        (json!({"destination_port_range": {"start": 8000, "end": 8080}}), false),
        (json!({"requested_server_name": {"suffix": ".example"}}), true),
        (json!({"not_rule": {"any": true}}), false),
        (json!({"and_rules": {"rules": [{"any": true}, {"destination_port": 1}]}}), false),
        (json!({"or_rules": {"rules": [{"destination_port": 1}, {"any": true}]}}), true),
        (
            json!({"metadata": {"filter": "jwt", "path": [{"key": "iss"}], "value": {"string_match": {"exact": "me"}}}}),
            true,
        ),
        (
            json!({"metadata": {"filter": "jwt", "path": [{"key": "iss"}], "value": {"present_match": true}, "invert": true}}),
            false,
        ),
        (
            json!({"sourced_metadata": {"metadata_source": "ROUTE", "metadata_matcher": {"filter": "jwt", "path": [{"key": "iss"}],
            "value": {"present_match": true}}}}),
            false,
        ),
        (
            json!({"uri_template": {"name": "t", "typed_config": {"path_template": "/a/{x}",
            "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"}}}),
            true,
        ),
    ];
    for (permission, expected) in cases {
        assert_eq!(matches(permission.clone(), json!({"any": true})), expected, "{permission}");
    }
}

#[test]
fn principals_look_at_who_asks() {
    let range = |prefix: &str, len: u32| json!({"address_prefix": prefix, "prefix_len": len});
    let named = |m: Value| json!({"authenticated": {"principal_name": m}});
    let cases = [
        (json!({"authenticated": {}}), true),
        (named(json!({"exact": "spiffe://cluster.local/ns/foo/sa/a"})), true),
        (named(json!({"safe_regex": {"regex": ".*/ns/foo/.*"}})), true),
        (named(json!({"safe_regex": {"regex": ".*/ns/bar/.*"}})), false),
        (named(json!({"exact": "a.foo.example"})), true),
        (named(json!({"suffix": "O=foo"})), true),
        (json!({"source_ip": range("10.0.0.1", 32)}), true),
        (json!({"direct_remote_ip": range("10.9.0.0", 16)}), true),
        (json!({"direct_remote_ip": range("10.0.0.0", 16)}), false),
        (json!({"remote_ip": range("192.168.0.0", 16)}), true),
        (json!({"remote_ip": range("10.0.0.0", 8)}), false),
        (json!({"header": {"name": ":method", "string_match": {"exact": "GET"}}}), true),
        (json!({"url_path": {"path": {"prefix": "/a"}}}), true),
        (json!({"filter_state": {"key": "who", "string_match": {"prefix": "spiffe://"}}}), true),
        (json!({"filter_state": {"key": "nobody", "string_match": {"prefix": ""}}}), false),
        (json!({"not_id": {"authenticated": {}}}), false),
        (json!({"and_ids": {"ids": [{"any": true}, {"authenticated": {}}]}}), true),
    ];
    for (principal, expected) in cases {
        assert_eq!(matches(json!({"any": true}), principal.clone()), expected, "{principal}");
    }
    let exact = |names: &[&str]| {
        let ids: Vec<_> = names.iter().map(|n| named(json!({"exact": n}))).collect();
        matches(json!({"any": true}), json!({"or_ids": {"ids": ids}}))
    };
    assert!(exact(&["b", "c", "d", "e", "spiffe://cluster.local/ns/foo/sa/a"]));
    assert!(!exact(&["b", "c", "d", "e", "spiffe://cluster.local/ns/foo/sa/aa"]));
}

/// A rule of the `n`-th policy, of every kind that is filed under something and of some that are not.
fn permission(n: usize) -> Value {
    let other = (n * 7) % 40;
    match n % 9 {
        0 => json!({"url_path": {"path": {"exact": format!("/a/{n}")}}}),
        1 => json!({"url_path": {"path": {"prefix": format!("/a/{other}")}}}),
        2 => json!({"url_path": {"path": {"suffix": format!("{other}")}}}),
        3 => {
            json!({"header": {"name": ":authority", "string_match": {"exact": format!("H{n}.example"), "ignore_case": true}}})
        }
        4 => json!({"destination_port": 8000 + other}),
        5 => {
            json!({"or_rules": {"rules": (0..6).map(|k| json!({"url_path": {"path": {"exact": format!("/a/{}", n + k)}}})).collect::<Vec<_>>()}})
        }
        6 => json!({"not_rule": {"url_path": {"path": {"prefix": "/a/1"}}}}),
        7 => {
            json!({"and_rules": {"rules": [{"any": true}, {"header": {"name": ":authority", "string_match": {"suffix": format!("{other}.example")}}}]}})
        }
        _ => json!({"any": true}),
    }
}

fn principal(n: usize) -> Value {
    let named = |m: Value| json!({"authenticated": {"principal_name": m}});
    match n % 8 {
        0 => named(json!({"exact": format!("spiffe://td/ns/n{}/sa/s{n}", n % 5)})),
        1 => named(json!({"safe_regex": {"regex": format!(".*/ns/n{}/.*", n % 5)}})),
        2 => named(json!({"prefix": format!("spiffe://td/ns/n{}", n % 7)})),
        3 => named(json!({"suffix": format!("s{n}")})),
        4 => json!({"direct_remote_ip": {"address_prefix": format!("10.0.{}.0", n % 6), "prefix_len": 24}}),
        5 => json!({"remote_ip": {"address_prefix": format!("10.{}.0.0", n % 3), "prefix_len": 16}}),
        6 => json!({"not_id": named(json!({"exact": format!("spiffe://td/ns/n1/sa/s{n}")}))}),
        _ => json!({"any": true}),
    }
}

#[test]
fn an_index_finds_what_trying_each_policy_finds() {
    let policy = |n: usize| json!({"permissions": [permission(n)], "principals": [principal(n)]});
    let many: serde_json::Map<_, _> = (0..200).map(|n| (format!("p{n:03}"), policy(n * 5 + 3))).collect();
    // Those that match everything would hide the others.
    let strict: serde_json::Map<_, _> = many
        .iter()
        .filter(|(_, p)| !p.to_string().contains("any") && !p.to_string().contains("not_"))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let mut hits = 0;
    for policies in [many, strict] {
        let all = engine(json!({"policies": policies})).unwrap();
        let one_by_one: Vec<_> =
            policies.iter().map(|(name, p)| engine(json!({"policies": {name: p}})).unwrap()).collect();
        for n in 0..400usize {
            let mut connection = connection();
            connection.tls = (n % 11 != 0).then(|| {
                Arc::new(TlsInfo {
                    peer_uri_sans: vec![format!("spiffe://td/ns/n{}/sa/s{n}", n % 5)],
                    ..TlsInfo::default()
                })
            });
            connection.direct_remote = format!("10.0.{}.9:1", n % 6).parse().unwrap();
            connection.local.set_port(8000 + (n % 40) as u16);
            let mut head = head("/");
            head.path = format!("/a/{n}?q").into();
            head.authority = format!("h{n}.Example").into();
            let metadata = DynamicMetadata::default();
            let subject = Subject {
                connection: &connection,
                head: Some(&head),
                client: format!("10.{}.1.1", n % 4).parse().unwrap(),
                metadata: &metadata,
                route: None,
                state: None,
            };
            let expected = one_by_one.iter().position(|e| e.decide(&subject).policy.is_some());
            assert_eq!(all.decide(&subject).policy.map(|(number, _)| number), expected, "{n}");
            hits += usize::from(expected.is_some_and(|number| number > 5));
        }
    }
    assert!(hits > 50, "{hits}");
}

#[test]
fn the_first_policy_by_name_decides_and_its_name_is_told_without_white_space() {
    let any = json!({"permissions": [{"any": true}], "principals": [{"any": true}]});
    let engine = engine(json!({"action": "DENY", "policies": {"b": any, "a x": any}})).unwrap();
    let (connection, head) = (connection(), head("/"));
    let metadata = DynamicMetadata::default();
    let client = "10.0.0.1".parse().unwrap();
    let subject = Subject {
        connection: &connection,
        head: Some(&head),
        client,
        metadata: &metadata,
        route: None,
        state: None,
    };
    let decision = engine.decide(&subject);
    assert!(!decision.allowed);
    assert_eq!(&*decision.policy.unwrap().1.details, "rbac_access_denied_matched_policy[a_x]");
}

#[test]
fn what_cannot_be_honoured_is_refused_with_its_path() {
    let any = json!([{"any": true}]);
    let policies = |permission: Value| {
        engine(json!({"policies": {"p": {"permissions": [permission], "principals": any}}})).unwrap_err()
    };
    assert!(
        policies(json!({"header": {"name": "bad name"}}))
            .starts_with("policies[\"p\"].permissions[0].header.name: ")
    );
    let nested =
        json!({"and_rules": {"rules": [{"any": true}, {"destination_ip": {"address_prefix": "x"}}]}});
    assert!(
        policies(nested)
            .starts_with("policies[\"p\"].permissions[0].and_rules.rules[1].destination_ip.address_prefix: ")
    );
    let header: proto::Rbac = xds_protos::json::from_value(json!({"policies": {"p": {
        "permissions": any, "principals": [{"header": {"name": "x"}}]}}}))
    .unwrap();
    let errors = Engine::compile(&header, false).unwrap_err();
    assert_eq!(errors[0].path, "policies[\"p\"].principals[0].header");
}
