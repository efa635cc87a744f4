//! Random configurations, as cases write them. Both proxies take every one of them: what is refused is not this test's matter.

use serde_json::{Value, json};

use super::random::Random;

/// Names that requests have and matchers and changes speak of.
pub const HEADERS: &[&str] = &["x-a", "x-b", "x-c"];
/// Their values.
pub const VALUES: &[&str] = &["one", "two", "One", "one,two", "", "5", "10", "-1", "abcabc"];
/// Parameters of queries.
pub const PARAMETERS: &[&str] = &["a", "b", "A"];
const FORMATS: &[&str] = &[
    "plain",
    "",
    "%REQ(X-A)%",
    "%REQ(X-A?X-B):3%",
    "[%REQ(:PATH)%]",
    "%PROTOCOL% %REQ(:METHOD)%",
    "%ROUTE_NAME%",
    "100%%",
    "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "%REQ(:AUTHORITY)%",
    "%PATH(NQ:PATH)%",
    "%QUERY_PARAM(a)%",
];
const OF_ANSWERS: &[&str] =
    &["%RESPONSE_CODE%", "%RESP(X-UP)%", "%RESPONSE_FLAGS%", "%RESPONSE_CODE_DETAILS%", "%UPSTREAM_HOST%"];

fn string_matcher(random: &mut Random) -> Value {
    let mut matcher = match random.below(5) {
        0 => json!({ "exact": random.pick(VALUES) }),
        1 => json!({ "prefix": random.pick(&["o", "one", "5", "a"]) }),
        2 => json!({ "suffix": random.pick(&["e", "two", "0", "c"]) }),
        3 => json!({ "contains": random.pick(&["n", "e,t", "1", "ca"]) }),
        _ => {
            return json!({ "safe_regex": { "regex": random.pick(&["o.*", "[0-9]+", "(?i)one", "one|two", "t?.*"])  } });
        }
    };
    if matcher["safe_regex"].is_null() && random.chance(20) {
        matcher["ignore_case"] = json!(true);
    }
    matcher
}

fn header_matcher(random: &mut Random) -> Value {
    let name = if random.chance(15) {
        random.pick(&[":method", ":path", ":authority", ":scheme"])
    } else {
        random.pick(HEADERS)
    };
    let mut matcher = match random.below(6) {
        0 => json!({ "present_match": random.chance(70) }),
        1 => {
            let start = random.below(12) as i64 - 3;
            json!({ "range_match": { "start": start, "end": start + 1 + random.below(8) as i64 } })
        }
        _ => json!({ "string_match": string_matcher(random) }),
    };
    matcher["name"] = json!(name);
    if random.chance(20) {
        matcher["invert_match"] = json!(true);
    }
    if random.chance(20) {
        matcher["treat_missing_header_as_empty"] = json!(true);
    }
    matcher
}

fn query_matcher(random: &mut Random) -> Value {
    let name = random.pick(PARAMETERS);
    if random.chance(30) {
        return json!({ "name": name, "present_match": random.chance(70) });
    }
    json!({ "name": name, "string_match": string_matcher(random) })
}

fn regex(random: &mut Random) -> &'static str {
    random.pick(&["/a/.*", "/[ab]", "/.*b", "(?i)/a.*", "/a(/b)?", "/(a|b)/[^/]+"])
}

fn route_match(random: &mut Random) -> Value {
    let mut matches = match random.below(8) {
        0 => json!({ "path": random.pick(&["/a", "/a/b", "/", "/A"]) }),
        1 => json!({ "path_separated_prefix": random.pick(&["/a", "/a/b", "/A"]) }),
        2 => {
            let matches = json!({ "safe_regex": { "regex": regex(random) } });
            return with_more(random, matches);
        }
        _ => json!({ "prefix": random.pick(&["/", "/a", "/a/", "/a/b", "/b", "/A"]) }),
    };
    if random.chance(15) {
        matches["case_sensitive"] = json!(false);
    }
    with_more(random, matches)
}

fn with_more(random: &mut Random, mut matches: Value) -> Value {
    if random.chance(30) {
        matches["headers"] = random.list(1, 2, header_matcher);
    }
    if random.chance(15) {
        matches["query_parameters"] = random.list(1, 2, query_matcher);
    }
    if random.chance(5) {
        matches["grpc"] = json!({});
    }
    if random.chance(5) {
        matches["runtime_fraction"] =
            json!({ "default_value": { "numerator": if random.chance(50) { 0 } else { 100 } } });
    }
    matches
}

fn addition(random: &mut Random, answers: bool) -> Value {
    let value = if answers && random.chance(50) { random.pick(OF_ANSWERS) } else { random.pick(FORMATS) };
    let name = random.pick(&["x-a", "x-b", "x-new", "x-up", "user-agent"]);
    let mut addition = json!({ "header": { "key": name, "value": value } });
    if random.chance(60) {
        let actions =
            ["APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS"];
        addition["append_action"] = json!(random.pick(&actions));
    }
    if random.chance(20) {
        addition["keep_empty_value"] = json!(true);
    }
    addition
}

/// Changes of header fields, into a message that can have them.
fn changes(random: &mut Random, into: &mut Value, percent: u64) {
    if random.chance(percent) {
        into["request_headers_to_add"] = random.list(1, 3, |r| addition(r, false));
    }
    if random.chance(percent / 2) {
        into["request_headers_to_remove"] = random.list(1, 2, |r| json!(r.pick(HEADERS)));
    }
    if random.chance(percent) {
        into["response_headers_to_add"] = random.list(1, 3, |r| addition(r, true));
    }
    if random.chance(percent / 2) {
        into["response_headers_to_remove"] =
            random.list(1, 2, |r| json!(r.pick(&["x-up", "x-a", "content-type", "server"])));
    }
}

fn regex_rewrite(random: &mut Random) -> Value {
    let (pattern, substitution) = random.pick(&[
        ("^/a/(.*)$", "/\\1"),
        ("/(a|b)", "/x\\1"),
        ("^.*$", "/all"),
        ("b", ""),
        ("^/([^/?]*)/?([^/?]*)", "/\\2/\\1"),
    ]);
    json!({ "pattern": { "regex": pattern }, "substitution": substitution })
}

fn retry_policy(random: &mut Random) -> Value {
    let on = random.pick(&[
        "5xx",
        "gateway-error",
        "reset",
        "connect-failure",
        "retriable-4xx",
        "retriable-status-codes",
        "retriable-headers",
        "5xx,retriable-4xx",
        "unavailable,cancelled",
        "envoy-ratelimited",
        "reset-before-request",
        "refused-stream",
    ]);
    let mut policy = json!({ "retry_on": on, "retry_back_off": { "base_interval": "0.001s" } });
    if random.chance(70) {
        policy["num_retries"] = json!(random.below(4));
    }
    if random.chance(30) {
        policy["retriable_status_codes"] = json!([random.pick(&[404, 409, 429, 500])]);
    }
    if random.chance(30) {
        policy["retriable_headers"] =
            json!([{ "name": "x-up", "string_match": { "exact": random.pick(&["1", "2"]) } }]);
    }
    if random.chance(15) {
        policy["retriable_request_headers"] = json!([header_matcher(random)]);
    }
    policy
}

fn redirect(random: &mut Random) -> Value {
    let mut redirect = json!({});
    if random.chance(40) {
        redirect["host_redirect"] = json!("new.example");
    }
    if random.chance(25) {
        redirect["port_redirect"] = json!(random.pick(&[80, 443, 8443]));
    }
    match random.below(5) {
        0 => redirect["https_redirect"] = json!(true),
        1 => redirect["scheme_redirect"] = json!(random.pick(&["https", "http", "ftp"])),
        _ => {}
    }
    match random.below(5) {
        0 => redirect["path_redirect"] = json!(random.pick(&["/new", "/new?x=1"])),
        1 => redirect["prefix_rewrite"] = json!(random.pick(&["/new", "/", "/new/"])),
        2 => redirect["regex_rewrite"] = regex_rewrite(random),
        _ => {}
    }
    if random.chance(25) {
        redirect["strip_query"] = json!(true);
    }
    if random.chance(50) {
        let codes = ["FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT"];
        redirect["response_code"] = json!(random.pick(&codes));
    }
    redirect
}

fn direct_response(random: &mut Random) -> Value {
    let mut direct = json!({ "status": random.pick(&[200, 201, 301, 404, 418, 503]) });
    if random.chance(60) {
        direct["body"] = json!({ "inline_string": random.pick(&["yes", "a longer body\n", ""]) });
    }
    direct
}

fn forward(random: &mut Random) -> Value {
    let cluster = |random: &mut Random| random.pick(&["@up", "@up", "@two", "@three"]);
    let mut action = match random.below(10) {
        0 => json!({ "cluster_header": "x-cluster" }),
        1 => {
            let mut chosen = json!({ "name": cluster(random), "weight": 10 });
            changes(random, &mut chosen, 40);
            if random.chance(20) {
                chosen["host_rewrite_literal"] = json!("weighted.example");
            }
            json!({ "weighted_clusters": { "clusters": [chosen, { "name": "@up", "weight": 0 }] } })
        }
        _ => json!({ "cluster": cluster(random) }),
    };
    match random.below(8) {
        0 => action["prefix_rewrite"] = json!(random.pick(&["/", "/new", "/new/"])),
        1 => action["regex_rewrite"] = regex_rewrite(random),
        _ => {}
    }
    match random.below(12) {
        0 => action["host_rewrite_literal"] = json!("literal.example:81"),
        1 => action["host_rewrite_header"] = json!("x-b"),
        2 => {
            action["host_rewrite_path_regex"] =
                json!({ "pattern": { "regex": "^/([^/?]+).*$" }, "substitution": "\\1.example" });
        }
        _ => {}
    }
    if random.chance(15) {
        action["append_x_forwarded_host"] = json!(true);
    }
    if random.chance(40) {
        action["retry_policy"] = retry_policy(random);
    }
    if random.chance(15) {
        action["timeout"] = json!(random.pick(&["0s", "7s"]));
    }
    if random.chance(10) {
        action["max_grpc_timeout"] = json!(random.pick(&["0s", "5s"]));
    }
    if random.chance(5) {
        action["request_mirror_policies"] = json!([{ "cluster": "@mirror" }]);
    }
    action
}

fn cors(random: &mut Random) -> Value {
    let mut policy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": [random.pick(&[json!({ "exact": "http://a" }), json!({ "suffix": "b" }), json!({ "exact": "*" })])]
    });
    for (field, value) in [
        ("allow_methods", "GET, PUT"),
        ("allow_headers", "x-a"),
        ("expose_headers", "x-up"),
        ("max_age", "60"),
    ] {
        if random.chance(50) {
            policy[field] = json!(value);
        }
    }
    if random.chance(30) {
        policy["allow_credentials"] = json!(true);
    }
    if random.chance(30) {
        policy["forward_not_matching_preflights"] = json!(random.chance(50));
    }
    policy
}

fn fault(random: &mut Random) -> Value {
    let mut fault =
        json!({ "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault" });
    let percentage = json!({ "numerator": if random.chance(20) { 0 } else { 100 } });
    fault["abort"] = match random.below(3) {
        0 => json!({ "header_abort": {}, "percentage": percentage }),
        1 => json!({ "http_status": random.pick(&[418, 503, 200]), "percentage": percentage }),
        _ => json!({ "grpc_status": random.pick(&[14, 7]), "percentage": percentage }),
    };
    if random.chance(60) {
        fault["headers"] = json!([header_matcher(random)]);
    }
    fault
}

fn route(random: &mut Random, filters: &[Value]) -> Value {
    let mut route = json!({ "match": route_match(random) });
    match random.below(8) {
        0 => route["redirect"] = redirect(random),
        1 => route["direct_response"] = direct_response(random),
        _ => route["route"] = forward(random),
    }
    // A redirect of a path by its prefix needs to know the prefix.
    if !route["match"]["safe_regex"].is_null() {
        for action in ["redirect", "route"] {
            if let Some(action) = route.get_mut(action).and_then(Value::as_object_mut) {
                action.remove("prefix_rewrite");
            }
        }
    }
    if random.chance(60) {
        route["name"] = json!(format!("route-{}", random.below(100)));
    }
    changes(random, &mut route, 20);
    per_filter(random, &mut route, filters, 25);
    route
}

fn per_filter(random: &mut Random, into: &mut Value, filters: &[Value], percent: u64) {
    for filter in filters {
        let name = filter["name"].as_str().unwrap_or_default();
        if random.chance(percent) {
            into["typed_per_filter_config"][name] =
                if name.ends_with("cors") { cors(random) } else { fault(random) };
        }
    }
}

fn host(random: &mut Random, name: usize, domains: &[&str], filters: &[Value]) -> Value {
    let mut routes = vec![];
    for _ in 0..=random.below(4) {
        routes.push(route(random, filters));
    }
    if random.chance(70) {
        routes.push(json!({ "match": { "prefix": "/" }, "name": "rest", "route": { "cluster": "@up" } }));
    }
    let mut host = json!({ "name": format!("host-{name}"), "domains": domains, "routes": routes });
    changes(random, &mut host, 15);
    // Open: where a route and its virtual host both have a CORS policy, Envoy takes what one lacks from the other.
    let others: Vec<_> = filters.iter().filter(|f| f["name"] != "envoy.filters.http.cors").cloned().collect();
    per_filter(random, &mut host, &others, 30);
    if random.chance(10) {
        host["retry_policy"] = retry_policy(random);
    }
    if random.chance(5) {
        host["require_tls"] = json!(random.pick(&["ALL", "EXTERNAL_ONLY"]));
    }
    for field in [
        "include_request_attempt_count",
        "include_attempt_count_in_response",
        "include_is_timeout_retry_header",
    ] {
        if random.chance(15) {
            host[field] = json!(true);
        }
    }
    host
}

fn answer(random: &mut Random) -> Value {
    let mut answer =
        json!({ "status": random.pick(&[200, 200, 200, 201, 204, 304, 404, 409, 429, 500, 502, 503]) });
    let fields = [
        "x-up: 1",
        "x-up: 2",
        "x-a: answered",
        "x-envoy-ratelimited: true",
        "server: own",
        "via: 1.1 up",
        "set-cookie: a=b",
        "content-type: text/plain",
        "grpc-status: 14",
        "date: Thu, 01 Jan 1970 00:00:00 GMT",
        "x-envoy-upstream-service-time: 5",
        "access-control-allow-origin: own",
    ];
    answer["headers"] = random.list(0, 3, |r| json!(r.pick(&fields)));
    if random.chance(40) {
        answer["body"] = json!(random.pick(&["", "body", "a somewhat longer body"]));
    }
    if random.chance(4) {
        answer = json!({ "close": true });
    }
    answer
}

fn cluster(random: &mut Random) -> Value {
    let mut cluster = json!({ "endpoints": [{ "answers": random.list(1, 5, answer) }] });
    if random.chance(30) {
        cluster["h2"] = json!(true);
    }
    // None refuses: how much of a body has come by then is a matter of time.
    cluster
}

fn manager(random: &mut Random) -> Value {
    let mut hcm = json!({});
    for field in [
        "use_remote_address",
        "skip_xff_append",
        "normalize_path",
        "merge_slashes",
        "preserve_external_request_id",
        "strip_any_host_port",
        "strip_trailing_host_dot",
        "append_x_forwarded_port",
        "always_set_request_id_in_response",
    ] {
        if random.chance(15) {
            hcm[field] = json!(true);
        }
    }
    if random.chance(10) {
        hcm["generate_request_id"] = json!(false);
    }
    if random.chance(15) {
        hcm["xff_num_trusted_hops"] = json!(1 + random.below(2));
    }
    if random.chance(10) {
        hcm["via"] = json!("weft");
    }
    if random.chance(10) {
        hcm["server_name"] = json!("mesh");
    }
    if random.chance(10) {
        hcm["server_header_transformation"] = json!(random.pick(&["PASS_THROUGH", "APPEND_IF_ABSENT"]));
    }
    if random.chance(15) {
        // What is refused is logged in another way, deliberately (escaped_slashes_are_refused).
        let actions = ["KEEP_UNCHANGED", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD"];
        hcm["path_with_escaped_slashes_action"] = json!(random.pick(&actions));
    }
    if random.chance(15) {
        // Requests that are refused for it are answered in another way, deliberately (underscores_are_refused).
        hcm["common_http_protocol_options"] = json!({ "headers_with_underscores_action": "DROP_HEADER" });
    }
    if random.chance(15) {
        hcm["internal_address_config"] = json!({ "cidr_ranges": [{ "address_prefix": random.pick(&["127.0.0.0", "10.0.0.0"]), "prefix_len": 8 }] });
    }
    if random.chance(10) {
        hcm["local_reply_config"] = json!({
            "mappers": [{
                "filter": { "status_code_filter": { "comparison": { "op": "GE", "value": { "default_value": 500, "runtime_key": "none" } } } },
                "status_code": 520,
                "headers_to_add": [{ "header": { "key": "x-mapped", "value": "%RESPONSE_CODE%" } }]
            }],
            "body_format": { "text_format_source": { "inline_string": "%LOCAL_REPLY_BODY%:%RESPONSE_CODE%:%REQ(:PATH)%\n" } }
        });
    }
    hcm
}

/// A configuration, with what its upstreams answer.
pub fn configuration(random: &mut Random) -> Value {
    let mut filters = vec![];
    if random.chance(30) {
        filters.push(json!({ "name": "envoy.filters.http.cors", "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors" } }));
    }
    if random.chance(25) {
        filters.push(json!({ "name": "envoy.filters.http.fault", "typed_config": fault(random) }));
    }
    let all: &[&[&str]] = &[&["a.example", "b.example:*"], &["*.example"], &["www.*", "b.example"], &["*"]];
    let mut hosts = vec![];
    for (number, domains) in all.iter().enumerate() {
        // Without one for everything, some requests find none.
        if random.chance(if domains.contains(&"*") { 85 } else { 40 })
            || (number + 1 == all.len() && hosts.is_empty())
        {
            hosts.push(host(random, number, domains, &filters));
        }
    }
    let mut routes = json!({});
    changes(random, &mut routes, 10);
    for field in ["ignore_port_in_host_matching", "most_specific_header_mutations_wins"] {
        if random.chance(10) {
            routes[field] = json!(true);
        }
    }
    let mut case = json!({
        "hcm": manager(random),
        "route_config": routes,
        "vhosts": hosts,
        "filters": filters,
        "clusters": { "up": cluster(random), "two": cluster(random), "three": cluster(random), "mirror": {} },
    });
    if random.chance(10) {
        case["router"] = json!({ "suppress_envoy_headers": true });
    }
    case
}
