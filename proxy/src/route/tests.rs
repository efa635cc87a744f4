use http::{HeaderValue, Method};
use serde_json::json;
use xds_protos::prost::Message;

use super::*;
use crate::codec::{Headers, Protocol};
use crate::state::CompileContext;

fn head(method: &str, authority: &str, path: &str, fields: &[(&str, &str)]) -> RequestHead {
    RequestHead {
        method: Method::from_bytes(method.as_bytes()).unwrap(),
        scheme: "http".into(),
        authority: authority.to_owned().into(),
        path: path.to_owned().into(),
        protocol: Protocol::Http11,
        upgrade: None,
        headers: fields
            .iter()
            .map(|(n, v)| (n.parse::<HeaderName>().unwrap(), HeaderValue::from_str(v).unwrap()))
            .collect::<Headers>(),
    }
}

fn compile(config: serde_json::Value) -> Result<RouteConfig, String> {
    let config: xds_protos::envoy::config::route::v3::RouteConfiguration =
        xds_protos::json::from_value(config).unwrap();
    let context = CompileContext::for_tests();
    let whole = RouteConfig::compile(&config, &context).map_err(|e| crate::state::error::join(&e));
    // As it comes by RDS: a virtual host at a time.
    let bytes = config.encode_to_vec();
    let compiled = RouteConfig::compile_bytes(&bytes, &context).map_err(|e| crate::state::error::join(&e));
    assert_eq!(compiled.as_ref().err(), whole.as_ref().err());
    compiled
}

#[test]
fn a_message_that_ends_too_early_is_refused_and_routes_of_the_same_retries_share_them() {
    let retry = json!({"retry_on": "5xx", "num_retries": 2});
    let virtual_host = |name: &str, retry: &serde_json::Value| {
        json!({"name": name, "domains": [name], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "a", "retry_policy": retry}}]})
    };
    let hosts = [
        virtual_host("a", &retry),
        virtual_host("b", &retry),
        virtual_host("c", &json!({"retry_on": "5xx", "num_retries": 3})),
    ];
    let config = compile(json!({"name": "r", "virtual_hosts": hosts})).unwrap();
    let retries: Vec<_> = config
        .virtual_hosts
        .iter()
        .map(|host| match &host.routes[0].action {
            Action::Forward(forward) => forward.retry.clone().unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(Arc::ptr_eq(&retries[0], &retries[1]) && !Arc::ptr_eq(&retries[0], &retries[2]));
    assert_eq!((retries[1].retries, retries[2].retries), (2, 3));
    let message: xds_protos::envoy::config::route::v3::RouteConfiguration =
        xds_protos::json::from_value(json!({"name": "r", "virtual_hosts": hosts})).unwrap();
    let bytes = message.encode_to_vec();
    let cut = RouteConfig::compile_bytes(&bytes[..bytes.len() - 1], &CompileContext::for_tests());
    let error = crate::state::error::join(&cut.unwrap_err());
    assert!(error.contains("not a RouteConfiguration: it ends inside a virtual host"), "{error}");
}

fn host(routes: serde_json::Value) -> serde_json::Value {
    json!({"name": "r", "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": routes}]})
}

fn found(config: &RouteConfig, head: &RequestHead) -> String {
    config
        .find(&Asked::new(head))
        .and_then(|f| f.route.map(|(r, _)| r.name.to_string()))
        .unwrap_or_else(|| "-".to_owned())
}

#[test]
fn the_first_route_whose_rules_all_hold_is_taken() {
    let action = json!({"cluster": "c"});
    let route = |name: &str, m: serde_json::Value| json!({"name": name, "match": m, "route": action});
    let config = compile(host(json!([
        route(
            "canary",
            json!({"prefix": "/", "headers": [{"name": "canary", "string_match": {"exact": "true"}}]})
        ),
        route("exact", json!({"path": "/exact"})),
        route("separated", json!({"path_separated_prefix": "/api/users"})),
        route("regex", json!({"safe_regex": {"regex": "/v[0-9]+/.*"}})),
        route("nocase", json!({"prefix": "/CASE", "case_sensitive": false})),
        route(
            "query",
            json!({"prefix": "/q", "query_parameters": [{"name": "a", "string_match": {"exact": "1"}}]})
        ),
        route("grpc", json!({"prefix": "/g", "grpc": {}})),
        route(
            "method",
            json!({"prefix": "/m", "headers": [{"name": ":method", "string_match": {"exact": "POST"}}]})
        ),
        route(
            "range",
            json!({"prefix": "/n", "headers": [{"name": "x", "range_match": {"start": 1, "end": 10}}]})
        ),
        route(
            "without",
            json!({"prefix": "/w", "headers": [{"name": "x", "string_match": {"exact": "1"},
            "invert_match": true, "treat_missing_header_as_empty": true}]})
        ),
        route(
            "inverted",
            json!({"prefix": "/i", "headers": [{"name": "x", "string_match": {"exact": "1"},
            "invert_match": true}]})
        ),
        route(
            "absent",
            json!({"prefix": "/b", "headers": [{"name": "x", "present_match": true,
            "invert_match": true}]})
        ),
        route("never", json!({"prefix": "/f", "runtime_fraction": {"default_value": {"numerator": 0}}})),
        route("always", json!({"prefix": "/f"})),
    ])))
    .unwrap();
    type Fields<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(&str, &str, Fields<'_>, &str)] = &[
        ("GET", "/x", &[("canary", "true")], "canary"),
        ("GET", "/x", &[("canary", "TRUE")], "-"),
        ("GET", "/x", &[("canary", "true"), ("canary", "true")], "canary"),
        ("GET", "/exact?q", &[], "exact"),
        ("GET", "/exact/", &[], "-"),
        ("GET", "/api/users", &[], "separated"),
        ("GET", "/api/users/7", &[], "separated"),
        ("GET", "/api/users7", &[], "-"),
        ("GET", "/v12/a", &[], "regex"),
        ("GET", "/x/v12/a", &[], "-"),
        ("GET", "/case/a", &[], "nocase"),
        ("GET", "/q?b=2&a=1", &[], "query"),
        ("GET", "/q?a=2&a=1", &[], "-"),
        ("POST", "/g", &[("content-type", "application/grpc+proto")], "grpc"),
        ("POST", "/g", &[("content-type", "application/grpc-web")], "-"),
        ("POST", "/m", &[], "method"),
        ("GET", "/m", &[], "-"),
        ("GET", "/n", &[("x", "9")], "range"),
        ("GET", "/n", &[("x", "10")], "-"),
        ("GET", "/w", &[], "without"),
        ("GET", "/w", &[("x", "1")], "-"),
        ("GET", "/i", &[], "-"),
        ("GET", "/i", &[("x", "2")], "inverted"),
        ("GET", "/b", &[], "absent"),
        ("GET", "/b", &[("x", "")], "-"),
        ("GET", "/f", &[], "always"),
    ];
    for (method, path, fields, expected) in cases {
        assert_eq!(found(&config, &head(method, "h", path, fields)), *expected, "{method} {path} {fields:?}");
    }
}

#[test]
fn weights_are_relative_and_each_random_number_falls_in_one_share() {
    let config = compile(host(
        json!([{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [
        {"name": "stable", "weight": 9}, {"name": "none", "weight": 0}, {"name": "canary", "weight": 1}]}}}]),
    ))
    .unwrap();
    let config = Arc::new(config);
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for random in 0..1000 {
        let matched =
            Matched::find(&config, &Asked { random, ..Asked::new(&head("GET", "h", "/", &[])) }).unwrap();
        *counts
            .entry(matched.weighted().unwrap().cluster.fixed().unwrap().name().to_string())
            .or_default() += 1;
    }
    assert_eq!(counts, [("canary".to_owned(), 100), ("stable".to_owned(), 900)].into());
}

/// What 100,000 requests get, with chance as requests have it.
fn of_many(config: &Arc<RouteConfig>, request: impl Fn(u32) -> crate::codec::RequestHead) -> Vec<bool> {
    fastrand::seed(8);
    let canary = |number| {
        let request = request(number);
        let asked = Asked { random: fastrand::u64(..), ..Asked::new(&request) };
        let matched = Matched::find(config, &asked).unwrap();
        &**matched.weighted().unwrap().cluster.fixed().unwrap().name() == "canary"
    };
    (0..100_000).map(canary).collect()
}

fn split(canary: u32, more: serde_json::Value) -> Arc<RouteConfig> {
    let mut route = json!({"weighted_clusters": {"clusters": [
        {"name": "stable", "weight": 100 - canary}, {"name": "canary", "weight": canary}]}});
    if !more.is_null() {
        route["hash_policy"] = more;
        route["weighted_clusters"]["use_hash_policy"] = true.into();
    }
    Arc::new(compile(host(json!([{"match": {"prefix": "/"}, "route": route}]))).unwrap())
}

fn is_a_tenth(chosen: &[bool]) {
    let share = chosen.iter().filter(|canary| **canary).count() as f64 * 100.0 / chosen.len() as f64;
    assert!((share - 10.0).abs() <= 0.3, "{share} %");
}

#[test]
fn of_a_hundred_thousand_requests_each_version_gets_its_share() {
    is_a_tenth(&of_many(&split(10, serde_json::Value::Null), |_| head("GET", "h", "/", &[])));
}

#[test]
fn who_is_known_by_a_hash_stays_with_a_version_and_the_rest_have_their_share_by_chance() {
    let by = json!([{"header": {"header_name": "x-user"}, "terminal": true}, {"cookie": {"name": "c", "ttl": "0s"}}]);
    let user = |number: u32| head("GET", "h", "/", &[("x-user", &format!("user-{number}"))]);
    let first = of_many(&split(10, by.clone()), user);
    is_a_tenth(&first);
    assert_eq!(of_many(&split(10, by.clone()), user), first, "nobody moves while the shares do not");
    let more = of_many(&split(25, by.clone()), user);
    assert!(first.iter().zip(&more).all(|(before, after)| !before || *after), "who was there stays there");
    // A cookie that would have to be made decides nothing: it is not there yet.
    let stranger = of_many(&split(10, by), |_| head("GET", "h", "/", &[]));
    is_a_tenth(&stranger);
    // By the address, where that is known.
    let by = split(50, json!([{"connection_properties": {"source_ip": true}}]));
    let request = head("GET", "h", "/", &[]);
    let of = |last: u8| {
        let client = Some(std::net::IpAddr::from([10, 0, 0, last]));
        let asked = |random| Matched::find(&by, &Asked { random, client, ..Asked::new(&request) }).unwrap();
        let all: std::collections::BTreeSet<_> = (0..100).map(|random| asked(random).weighted).collect();
        assert_eq!(all.len(), 1);
        all
    };
    assert_ne!((0..20).map(of).collect::<std::collections::BTreeSet<_>>().len(), 1, "not all the same");
}

#[test]
fn redirects_say_where() {
    let location = |redirect: serde_json::Value, authority: &str, path: &str| {
        let config = compile(host(json!([{"match": {"prefix": "/old"}, "redirect": redirect}]))).unwrap();
        let route = &config.virtual_hosts[0].routes[0];
        let Action::Redirect(redirect) = &route.action else { panic!("a redirect") };
        let head = head("GET", authority, path, &[]);
        String::from_utf8(redirect.location(&head, &route.matching.path, b"http").to_vec()).unwrap()
    };
    let https = json!({"https_redirect": true});
    assert_eq!(location(https.clone(), "a.com:80", "/old?q=1"), "https://a.com/old?q=1");
    assert_eq!(location(https, "a.com:8080", "/old"), "https://a.com:8080/old");
    assert_eq!(
        location(json!({"host_redirect": "b.com", "port_redirect": 81}), "a.com", "/old/x"),
        "http://b.com:81/old/x"
    );
    assert_eq!(location(json!({"prefix_rewrite": "/new"}), "a.com", "/old/x?q"), "http://a.com/new/x?q");
    assert_eq!(
        location(json!({"path_redirect": "/p", "strip_query": true}), "a.com", "/old?q"),
        "http://a.com/p"
    );
    assert_eq!(location(json!({"path_redirect": "/p?a=1"}), "a.com", "/old?q"), "http://a.com/p?a=1");
}

#[test]
fn rewrites_replace_what_the_route_matched() {
    use super::action::PathRewrite;
    use super::matching::PathMatch;
    use super::rewrite::rewrite_path;
    let prefix = |new: &'static str| PathRewrite::Prefix(new.into());
    let path = |p: &'static str| bytes::Bytes::from_static(p.as_bytes());
    let by = |p: &str| PathMatch::Prefix(p.as_bytes().into());
    assert_eq!(rewrite_path(&prefix("/"), &by("/api/"), &path("/api/x?y")).unwrap(), "/x?y");
    assert_eq!(
        rewrite_path(&prefix("/new"), &PathMatch::Exact(b"/a".as_slice().into()), &path("/a?y")).unwrap(),
        "/new?y"
    );
    assert!(rewrite_path(&PathRewrite::None, &by("/"), &path("/a")).is_none());
}

#[test]
fn header_changes_follow_their_action_and_the_most_specific_come_first() {
    use crate::io::ConnectionInfo;
    use crate::telemetry::StreamInfo;
    use crate::telemetry::access_log::LogContext;
    let add = |key: &str, value: &str, action: &str| json!({"header": {"key": key, "value": value}, "append_action": action});
    let mut config = host(json!([{"match": {"prefix": "/"}, "route": {"cluster": "c"},
        "request_headers_to_add": [
            add("a", "2", "APPEND_IF_EXISTS_OR_ADD"), add("b", "2", "OVERWRITE_IF_EXISTS_OR_ADD"),
            add("c", "2", "ADD_IF_ABSENT"), add("d", "2", "OVERWRITE_IF_EXISTS"),
            add("m", "%REQ(:METHOD)%", "APPEND_IF_EXISTS_OR_ADD"), add("n", "%REQ(none)%", "APPEND_IF_EXISTS_OR_ADD"),
            add("order", "route", "APPEND_IF_EXISTS_OR_ADD")],
        "request_headers_to_remove": ["gone"]}]));
    config["request_headers_to_add"] = json!([add("order", "config", "APPEND_IF_EXISTS_OR_ADD")]);
    let config = Arc::new(compile(config).unwrap());
    let head = head("GET", "h", "/", &[("a", "1"), ("b", "1"), ("c", "1"), ("gone", "1")]);
    let matched = Matched::find(&config, &Asked::new(&head)).unwrap();
    let stream = StreamInfo::new(None);
    let address = "127.0.0.1:1".parse().unwrap();
    let connection = ConnectionInfo::between(address, address);
    let context = LogContext { request: Some(&head), ..LogContext::new(&stream, &connection) };
    let mut headers = head.headers.clone();
    for ops in matched.header_ops(true) {
        ops.apply(&mut headers, &context);
    }
    let seen: Vec<_> = headers.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
    assert_eq!(seen, ["a=1", "b=2", "c=1", "a=2", "m=GET", "order=route", "order=config"]);
}

#[test]
fn our_control_plane_may_ask_for_care_with_retries() {
    let with = |own: serde_json::Value| {
        compile(host(json!([{"match": {"prefix": "/"}, "metadata": {"filter_metadata": {"weft.dev": own}},
            "route": {"cluster": "c", "retry_policy": {"retry_on": "5xx"}}}])))
    };
    let careful = |own: serde_json::Value| {
        let config = with(own).unwrap();
        let head = head("GET", "h", "/", &[]);
        let (route, _) = config.find(&Asked::new(&head)).unwrap().route.unwrap();
        match &route.action {
            action::Action::Forward(forward) => forward.retry.as_ref().unwrap().careful,
            other => panic!("{other:?}"),
        }
    };
    assert!(careful(json!({"careful_retries": true})));
    assert!(!careful(json!({"careful_retries": false})));
    assert!(!careful(json!({"other": true})));
    let error = with(json!({"careful_retries": "yes"})).unwrap_err();
    assert!(
        error.starts_with("virtual_hosts[0].routes[0].metadata.filter_metadata[weft.dev].careful_retries: "),
        "{error}"
    );
}

#[test]
fn what_is_not_honoured_is_refused_with_its_path() {
    let bad = |route: serde_json::Value| compile(host(json!([route]))).unwrap_err();
    let prefix = "virtual_hosts[0].routes[0]";
    let cases = [
        (
            json!({"match": {"prefix": "/"}, "route": {"cluster": "c", "retry_policy": {"retry_on": "5xx,often"}}}),
            "route.retry_policy.retry_on: the condition \"often\" is not supported",
        ),
        (json!({"match": {"prefix": "/"}}), "action: is required"),
        (
            json!({"match": {"safe_regex": {"regex": "("}}, "route": {"cluster": "c"}}),
            "match.safe_regex.regex: ",
        ),
        (
            json!({"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "c"}]}}}),
            "route.weighted_clusters.clusters: the weights add up to nothing",
        ),
        (
            json!({"match": {"prefix": "/"}, "route": {"cluster": "c"}, "request_headers_to_add": [
            {"header": {"key": ":path", "value": "x"}}]}),
            "request_headers_to_add[0].header.key: \":path\" cannot",
        ),
        (
            json!({"match": {"prefix": "/"}, "route": {"cluster": "c"}, "request_headers_to_add": [
            {"header": {"key": "x", "value": "%WHAT%"}}]}),
            "request_headers_to_add[0].header.value: unknown command",
        ),
        (
            json!({"match": {"prefix": "/"}, "route": {"cluster": "c"},
            "typed_per_filter_config": {"x": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {}}}}),
            "typed_per_filter_config[\"x\"]",
        ),
    ];
    for (route, expected) in cases {
        let error = bad(route);
        assert!(error.starts_with(&format!("{prefix}.{expected}")), "{error}\n{expected}");
    }
    let double = json!({"name": "r", "virtual_hosts": [
        {"name": "a", "domains": ["x"], "routes": []}, {"name": "b", "domains": ["X"], "routes": []}]});
    assert!(compile(double).unwrap_err().starts_with("virtual_hosts[1].domains[0]: the domain \"X\""));
}

#[test]
fn the_most_specific_level_that_speaks_of_a_filter_has_its_say() {
    const LEVELS: usize = 4;
    // Of each filter one level says that it is off, and all above it that it is on.
    let settings = |level: usize| -> serde_json::Value {
        let of = |filter: usize| {
            let kind = "type.googleapis.com/envoy.config.route.v3.FilterConfig";
            let said = match filter == level {
                true => json!({"@type": kind, "disabled": true}),
                false => json!({"@type": kind, "config": {}}),
            };
            (format!("f{filter}"), said)
        };
        (0..=level).map(of).collect::<serde_json::Map<_, _>>().into()
    };
    let weighted = json!([{"name": "a", "weight": 1, "typed_per_filter_config": settings(0)}]);
    let config = json!({"name": "r", "typed_per_filter_config": settings(3), "virtual_hosts": [
        {"name": "h", "domains": ["*"], "typed_per_filter_config": settings(2), "routes": [
            {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": weighted}},
             "typed_per_filter_config": settings(1)}]}]});
    let config = Arc::new(compile(config).unwrap());
    let matched = Matched::find(&config, &Asked::new(&head("GET", "h", "/", &[]))).unwrap();
    for filter in 0..LEVELS {
        assert!(matches!(matched.setting(&format!("f{filter}")), Some(PerFilter::Disabled)), "f{filter}");
    }
    assert!(matched.setting("f4").is_none());
}
