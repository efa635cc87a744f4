//! Which route a request finds, and what routes make of paths, clusters and copies.

use serde_json::{Value, json};

use crate::differential::case::Case;

/// A request of this path with these fields.
fn get(path: &str, fields: &str) -> Case {
    Case::raw(format!("GET {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n")).answer()
}

/// One of two clusters by the hash of a header or of a cookie.
fn by_hash(name: &str, other: u32) -> Value {
    json!([{ "match": { "prefix": "/" }, "route": {
        "hash_policy": [{ "header": { "header_name": "x-user" } }, { "cookie": { "name": "s" } }],
        "weighted_clusters": { "use_hash_policy": true, "clusters": [
            { "name": "retries_of_a_connection_that_is_refused", "weight": other }, { "name": name, "weight": 1 }] } } }])
}

/// 200 for this match, 404 for the rest.
fn hit(matching: Value) -> Value {
    json!([
        { "match": matching, "direct_response": { "status": 200, "body": { "inline_string": "hit" } } },
        { "match": { "prefix": "/" }, "direct_response": { "status": 404, "body": { "inline_string": "miss" } } }
    ])
}

fn cookie(matcher: Value) -> Value {
    hit(json!({ "prefix": "/", "cookies": [matcher] }))
}

fn template(template: &str) -> Value {
    hit(json!({ "path_match_policy": policy("match", "UriTemplateMatchConfig", "path_template", template) }))
}

fn policy(kind: &str, message: &str, field: &str, value: &str) -> Value {
    json!({ "name": format!("envoy.path.{kind}.uri_template.uri_template_{}er", if kind == "match" { "match" } else { "rewrit" }),
        "typed_config": { "@type": format!("type.googleapis.com/envoy.extensions.path.{kind}.uri_template.v3.{message}"), field: value } })
}

/// A route to the case's cluster by a template, rewritten by another.
fn rewrite(name: &str, template: &str, new: &str) -> Value {
    json!([{ "match": { "path_match_policy": policy("match", "UriTemplateMatchConfig", "path_template", template) },
        "route": { "cluster": name, "path_rewrite_policy": policy("rewrite", "UriTemplateRewriteConfig", "path_template_rewrite", new) } }])
}

fn config(name: &str, fields: Value, host: Value) -> Value {
    let mut virtual_host = json!({ "name": "all", "domains": ["*"],
        "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": name } }] });
    for (key, value) in host.as_object().into_iter().flatten() {
        virtual_host[key] = value.clone();
    }
    let mut config = json!({ "virtual_hosts": [virtual_host] });
    for (key, value) in fields.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    json!({ "route_config": config })
}

/// Virtual hosts that answer with their names.
fn named(fields: Value, hosts: &[(&str, &str)]) -> Value {
    let hosts: Vec<_> = hosts
        .iter()
        .map(|(name, domain)| json!({ "name": name, "domains": [domain], "routes": [
            { "match": { "prefix": "/" }, "direct_response": { "status": 200, "body": { "inline_string": name } } }] }))
        .collect();
    let mut config = json!({ "virtual_hosts": hosts });
    for (key, value) in fields.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    json!({ "route_config": config })
}

fn parameters(path: &str, matching: Value) -> Case {
    get(path, "").hcm(json!({ "route_config": { "ignore_path_parameters_in_path_matching": true,
        "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": hit(matching) }] } }))
}

cases! {
    a_cookie_that_matches => get("/", "cookie: a=1; b=2\r\n").routes(cookie(json!({ "name": "b", "string_match": { "exact": "2" } })));
    a_cookie_that_does_not_match => get("/", "cookie: a=1; b=3\r\n").routes(cookie(json!({ "name": "b", "string_match": { "exact": "2" } })));
    a_cookie_that_is_not_there => get("/", "cookie: a=1\r\n").routes(cookie(json!({ "name": "b", "string_match": { "safe_regex": { "regex": ".*" } } })));
    a_cookie_inverted => get("/", "cookie: b=3\r\n").routes(cookie(json!({ "name": "b", "string_match": { "exact": "2" }, "invert_match": true })));
    a_cookie_inverted_that_is_not_there => get("/", "").routes(cookie(json!({ "name": "b", "string_match": { "exact": "2" }, "invert_match": true })));
    a_cookie_in_the_second_field => get("/", "cookie: a=1\r\ncookie: b=2\r\n").routes(cookie(json!({ "name": "b", "string_match": { "exact": "2" } })));
    a_cookie_in_quotes => get("/", "cookie: b=\"2\"\r\n").routes(cookie(json!({ "name": "b", "string_match": { "exact": "2" } })));
    a_cookie_twice => get("/", "cookie: b=1; b=2\r\n").routes(cookie(json!({ "name": "b", "string_match": { "exact": "2" } })));
    a_cookie_by_a_regex => get("/", "cookie: user=ab12\r\n").routes(cookie(json!({ "name": "user", "string_match": { "safe_regex": { "regex": "[a-z]+[0-9]+" } } })));

    a_certificate_in_plain_text_is_not_shown => get("/", "").routes(hit(json!({ "prefix": "/", "tls_context": { "presented": true } })));
    no_certificate_in_plain_text => get("/", "").routes(hit(json!({ "prefix": "/", "tls_context": { "presented": false } })));
    no_valid_certificate_in_plain_text => get("/", "").routes(hit(json!({ "prefix": "/", "tls_context": { "validated": false } })));
    anything_of_a_certificate_in_plain_text => get("/", "").routes(hit(json!({ "prefix": "/", "tls_context": {} })));

    a_template_with_a_variable => get("/a/b/c?q", "").routes(template("/a/{x}/c"));
    a_template_with_a_variable_of_too_many_segments => get("/a/b/d/c", "").routes(template("/a/{x}/c"));
    a_template_with_an_empty_segment => get("/a//c", "").routes(template("/a/*/c"));
    a_template_with_any_segments => get("/a/b/c/d", "").routes(template("/a/**"));
    a_template_with_no_segments => get("/a/", "").routes(template("/a/**"));
    a_template_with_less_than_no_segments => get("/a", "").routes(template("/a/**"));
    a_template_with_an_ending => get("/v/1/2.m3u8", "").routes(template("/v/**.m3u8"));
    a_template_with_a_pattern => get("/a/1/b/c", "").routes(template("/{x=a/*}/{y=**}"));
    a_template_with_escapes => get("/a/%20x+y=z@,;!/c", "").routes(template("/a/*/c"));
    a_template_rewrite => get("/a/b/c?q=1", "").routes(rewrite("a_template_rewrite", "/a/{x}/{y}", "/new/{y}/of/{x}"));
    a_template_rewrite_of_the_rest => get("/a/b/c/d?q=1", "").routes(rewrite("a_template_rewrite_of_the_rest", "/a/{rest=**}", "/{rest}"));
    a_template_rewrite_without_variables => get("/a/b", "").routes(rewrite("a_template_rewrite_without_variables", "/a/*", "/fixed"));

    a_path_with_parameters_that_are_ignored => parameters("/a;v=1?q", json!({ "path": "/a" }));
    a_prefix_with_parameters_that_are_ignored => parameters("/a;v=1/b", json!({ "prefix": "/a/b" }));
    a_regex_with_parameters_that_are_ignored => parameters("/a/b;v=1/c", json!({ "safe_regex": { "regex": "/a/b" } }));
    a_path_with_parameters_that_count => get("/a;v=1", "").routes(hit(json!({ "path": "/a" })));

    a_virtual_host_by_another_field => get("/", "x-host: b\r\n").hcm(named(json!({ "vhost_header": "x-host" }), &[("one", "a"), ("two", "b"), ("rest", "*")]));
    a_virtual_host_by_a_field_that_is_not_there => get("/", "").hcm(named(json!({ "vhost_header": "x-host" }), &[("one", "a"), ("rest", "*")]));
    a_virtual_host_by_a_field_with_a_port => get("/", "x-host: b:80\r\n").hcm(named(json!({ "vhost_header": "x-host", "ignore_port_in_host_matching": true }), &[("one", "a"), ("two", "b")]));

    a_weighted_cluster_by_a_number => get("/", "x-number: 5\r\n").routes(json!([{ "match": { "prefix": "/" }, "route": { "weighted_clusters": { "header_name": "x-number", "clusters": [
        { "name": "retries_of_a_connection_that_is_refused", "weight": 5 }, { "name": "a_weighted_cluster_by_a_number", "weight": 5 }] } } }]));
    a_weighted_cluster_by_a_number_too_large => get("/", "x-number: 17\r\n").routes(json!([{ "match": { "prefix": "/" }, "route": { "weighted_clusters": { "header_name": "x-number", "clusters": [
        { "name": "retries_of_a_connection_that_is_refused", "weight": 5 }, { "name": "a_weighted_cluster_by_a_number_too_large", "weight": 5 }] } } }]));
    a_weighted_cluster_by_what_is_no_number => get("/", "x-number: many\r\n").routes(json!([{ "match": { "prefix": "/" }, "route": { "weighted_clusters": { "header_name": "x-number", "clusters": [
        { "name": "retries_of_a_connection_that_is_refused", "weight": 0 }, { "name": "a_weighted_cluster_by_what_is_no_number", "weight": 5 }] } } }]));
    a_weighted_cluster_by_a_hash => get("/", "x-user: alice\r\n").routes(by_hash("a_weighted_cluster_by_a_hash", 1));
    a_weighted_cluster_by_another_hash => get("/", "x-user: bob\r\ncookie: s=1\r\n").routes(by_hash("a_weighted_cluster_by_another_hash", 1));
    a_weighted_cluster_by_the_hash_of_a_cookie => get("/", "cookie: s=carol\r\n").routes(by_hash("a_weighted_cluster_by_the_hash_of_a_cookie", 1));
    a_weighted_cluster_by_no_hash => get("/", "").routes(by_hash("a_weighted_cluster_by_no_hash", 0));
    a_weighted_cluster_named_by_a_field => get("/", "x-cluster: a_weighted_cluster_named_by_a_field\r\n").routes(json!([{ "match": { "prefix": "/" }, "route": { "weighted_clusters": { "clusters": [
        { "cluster_header": "x-cluster", "weight": 1 }] } } }]));
    a_weighted_cluster_named_by_a_field_that_is_not_there => get("/", "").routes(json!([{ "match": { "prefix": "/" }, "route": { "weighted_clusters": { "clusters": [
        { "cluster_header": "x-cluster", "weight": 1 }] } } }]));

    a_copy_of_a_virtual_host => get("/", "").hcm(config("a_copy_of_a_virtual_host", json!({}), json!({ "request_mirror_policies": [
        { "cluster": "a_copy_of_a_virtual_host", "disable_shadow_host_suffix_append": true }] })))
        .upstreams(vec![vec![crate::differential::case::Play::Request, crate::differential::case::send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")]; 2]);
    no_copy_where_the_route_has_its_own => get("/", "").hcm(config("no_copy_where_the_route_has_its_own", json!({ "request_mirror_policies": [{ "cluster": "no_copy_where_the_route_has_its_own" }] }), json!({
        "request_mirror_policies": [{ "cluster": "no_copy_where_the_route_has_its_own" }],
        "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "no_copy_where_the_route_has_its_own", "request_mirror_policies": [
            { "cluster": "no_copy_where_the_route_has_its_own", "runtime_fraction": { "default_value": { "numerator": 0 } } }] } }] })));
    a_copy_by_a_field_that_is_not_there => get("/", "").route(json!({ "request_mirror_policies": [{ "cluster_header": "x-cluster" }] }));
}
