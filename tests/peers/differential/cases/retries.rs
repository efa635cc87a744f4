//! Which tries are followed by another, and what upstreams and clients are told of it.

use serde_json::{Value, json};

use crate::differential::case::{Case, H2Answer, H2Request, Play, send};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A request from an address that the configuration calls internal, so that its `x-envoy-` fields count.
fn internal(fields: &str, policy: Value) -> Case {
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.0.0.1\r\n{fields}\r\n");
    Case::raw(request).answer().route(json!({ "retry_policy": policy })).hcm(json!({
        "internal_address_config": { "cidr_ranges": [{ "address_prefix": "10.0.0.0", "prefix_len": 8 }] },
        "local_reply_config": { "body_format": { "text_format_source": {
            "inline_string": "%LOCAL_REPLY_BODY% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n"
        } } }
    }))
}

fn get(policy: Value) -> Case {
    internal("", policy)
}

fn failed(status: &str, fields: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{fields}content-length: 0\r\n\r\n")
}

/// The answers of one upstream connection, one request each.
fn on_one(answers: &[String]) -> Vec<Vec<Play>> {
    vec![answers.iter().flat_map(|a| [Play::Request, send(a)]).collect()]
}

fn case(fields: &str, answers: &[String], policy: Value) -> Case {
    internal(fields, policy).upstreams(on_one(answers))
}

fn grpc(status: &'static str) -> H2Answer {
    H2Answer::Full {
        informational: vec![],
        status: 200,
        headers: vec![("content-type", "application/grpc"), ("grpc-status", status)],
        body: vec![],
        trailers: vec![],
    }
}

fn grpc_tries(statuses: &[&'static str], policy: Value) -> Case {
    let request = H2Request {
        method: "POST",
        scheme: "http",
        authority: "a",
        path: "/s/m",
        headers: vec![("content-type", "application/grpc"), ("te", "trailers")],
        body: vec!["x"],
        ..H2Request::default()
    };
    Case::h2(vec![request])
        .h2_upstream(statuses.iter().map(|s| grpc(s)).collect())
        .route(json!({ "retry_policy": policy }))
}

cases! {
    a_retry_after_an_answer_of_the_list =>
        case("", &[failed("418 x", ""), OK.into()], json!({ "retry_on": "retriable-status-codes", "retriable_status_codes": [418] }));
    no_retry_after_an_answer_that_is_not_of_the_list =>
        case("", &[failed("419 x", "")], json!({ "retry_on": "retriable-status-codes", "retriable_status_codes": [418] }));
    a_retry_after_409 => case("", &[failed("409 x", ""), OK.into()], json!({ "retry_on": "retriable-4xx" }));
    no_retry_after_408 => case("", &[failed("408 x", "")], json!({ "retry_on": "retriable-4xx" }));
    a_retry_after_502_as_a_gateway_error => case("", &[failed("502 x", ""), OK.into()], json!({ "retry_on": "gateway-error" }));
    no_retry_after_500_as_a_gateway_error => case("", &[failed("500 x", "")], json!({ "retry_on": "gateway-error" }));
    retries_that_run_out => case("", &[failed("500 x", ""), failed("500 y", ""), failed("503 z", "")], json!({ "retry_on": "5xx", "num_retries": 2 }));
    a_retry_by_a_field_of_the_answer => case("", &[failed("200 x", "x-again: yes\r\n"), OK.into()],
        json!({ "retry_on": "retriable-headers", "retriable_headers": [{ "name": "x-again", "string_match": { "exact": "yes" } }] }));
    no_retry_by_another_value_of_the_field => case("", &[failed("200 x", "x-again: no\r\n")],
        json!({ "retry_on": "retriable-headers", "retriable_headers": [{ "name": "x-again", "string_match": { "exact": "yes" } }] }));
    retries_for_requests_with_a_field => case("x-mine: 1\r\n", &[failed("500 x", ""), OK.into()],
        json!({ "retry_on": "5xx", "retriable_request_headers": [{ "name": "x-mine", "present_match": true }] }));
    no_retries_for_requests_without_the_field => case("", &[failed("500 x", "")],
        json!({ "retry_on": "5xx", "retriable_request_headers": [{ "name": "x-mine", "present_match": true }] }));
    an_answer_with_a_rate_limit_is_not_retried => case("", &[failed("503 x", "x-envoy-ratelimited: true\r\n")], json!({ "retry_on": "5xx" }));
    an_answer_with_a_rate_limit_is_retried_where_that_is_asked_for =>
        case("", &[failed("503 x", "x-envoy-ratelimited: true\r\n"), OK.into()], json!({ "retry_on": "envoy-ratelimited" }));
    a_caller_asks_for_retries => case("x-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 2\r\n",
        &[failed("500 x", ""), failed("500 x", ""), OK.into()], json!({ "num_retries": 1 }));
    a_caller_asks_for_codes => case("x-envoy-retry-on: retriable-status-codes\r\nx-envoy-retriable-status-codes: 418, 419\r\n",
        &[failed("419 x", ""), OK.into()], json!({ "num_retries": 1 }));
    a_caller_names_fields => case("x-envoy-retry-on: retriable-headers\r\nx-envoy-retriable-header-names: x-again , x-b\r\n",
        &[failed("200 x", "x-again: yes\r\n"), OK.into()], json!({ "num_retries": 1 }));
    a_grpc_condition_in_the_wrong_field => case("x-envoy-retry-on: cancelled\r\n",
        &[failed("200 x", "grpc-status: 1\r\n")], json!({ "num_retries": 1 }));
    a_grpc_condition_in_its_field => case("x-envoy-retry-grpc-on: cancelled\r\n",
        &[failed("200 x", "grpc-status: 1\r\n"), OK.into()], json!({ "num_retries": 1 }));
    a_caller_sets_the_timeouts => case("x-envoy-upstream-rq-timeout-ms: 5000\r\nx-envoy-upstream-rq-per-try-timeout-ms: 3000\r\n",
        &[OK.into()], json!({ "retry_on": "5xx" }));
    a_caller_sets_a_try_longer_than_the_whole => case("x-envoy-upstream-rq-timeout-ms: 3000\r\nx-envoy-upstream-rq-per-try-timeout-ms: 5000\r\n",
        &[OK.into()], json!({ "retry_on": "5xx" }));
    a_caller_tells_an_expected_timeout_that_is_not_respected => case("x-envoy-expected-rq-timeout-ms: 7000\r\n", &[OK.into()], json!({}));
    a_caller_tells_an_expected_timeout_where_there_is_none => case("x-envoy-expected-rq-timeout-ms: 7000\r\n", &[OK.into()], json!({}))
        .route(json!({ "timeout": "0s" }));
    a_stranger_asks_for_retries => case("x-envoy-retry-on: 5xx\r\nx-envoy-upstream-rq-timeout-ms: 5000\r\nx-envoy-hedge-on-per-try-timeout: true\r\nx-envoy-original-url: /\r\n",
        &[failed("500 x", "")], json!({ "num_retries": 1 })).hcm(json!({}));
    a_retry_after_an_answer_that_says_when => case("", &[failed("503 x", "retry-after: 1\r\n"), OK.into()],
        json!({ "retry_on": "5xx", "rate_limited_retry_back_off": { "reset_headers": [{ "name": "retry-after", "format": "SECONDS" }] } }))
        .route(json!({ "timeout": "0s", "retry_policy": { "retry_on": "5xx", "rate_limited_retry_back_off": { "reset_headers": [{ "name": "retry-after", "format": "SECONDS" }] } } }));
    a_retry_after_an_answer_that_says_when_too_far => case("", &[failed("503 x", "retry-after: 100\r\n"), OK.into()],
        json!({ "retry_on": "5xx", "rate_limited_retry_back_off": { "max_interval": "1s", "reset_headers": [{ "name": "retry-after" }] } }));
    a_retry_after_a_time_that_is_over => case("", &[failed("429 x", "x-ratelimit-reset: 1700000000\r\n"), OK.into()],
        json!({ "retry_on": "retriable-status-codes", "retriable_status_codes": [429],
            "rate_limited_retry_back_off": { "reset_headers": [{ "name": "x-ratelimit-reset", "format": "UNIX_TIMESTAMP" }] } }));
    a_retry_when_the_connection_breaks => get(json!({ "retry_on": "reset" })).upstreams(vec![
        vec![Play::Request, Play::Close], vec![Play::Request, send(OK)]]);
    no_retry_after_the_head_went_out => get(json!({ "retry_on": "reset-before-request" })).upstreams(vec![
        vec![Play::Request, Play::Close]]);
    no_retry_where_only_connecting_counts => get(json!({ "retry_on": "connect-failure" })).upstreams(vec![
        vec![Play::Request, Play::Close]]);
    retries_of_a_connection_that_is_refused => get(json!({ "retry_on": "connect-failure", "num_retries": 2 })).refusing();
    retries_of_a_connection_that_is_refused_before_the_request =>
        get(json!({ "retry_on": "reset-before-request", "num_retries": 1 })).refusing();
    a_try_that_takes_too_long => get(json!({ "retry_on": "gateway-error", "num_retries": 1, "per_try_timeout": "0.3s" })).upstreams(vec![
        vec![Play::Request, Play::Pause(1500)], vec![Play::Request, send(OK)]]);
    every_try_takes_too_long => get(json!({ "retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.3s" })).upstreams(vec![
        vec![Play::Request, Play::Pause(1500)], vec![Play::Request, Play::Pause(1500)]]);
    a_refused_stream_is_tried_again => Case::h2(vec![H2Request { method: "GET", scheme: "http", authority: "a", path: "/", ..H2Request::default() }])
        .h2_upstream(vec![H2Answer::Reset(7), grpc("0")]).route(json!({ "retry_policy": { "retry_on": "refused-stream" } }));
    another_reset_is_no_refused_stream => Case::h2(vec![H2Request { method: "GET", scheme: "http", authority: "a", path: "/", ..H2Request::default() }])
        .h2_upstream(vec![H2Answer::Reset(8)]).route(json!({ "retry_policy": { "retry_on": "refused-stream" } }));
    grpc_unavailable_is_tried_again => grpc_tries(&["14", "0"], json!({ "retry_on": "unavailable" }));
    grpc_internal_is_tried_again => grpc_tries(&["13", "0"], json!({ "retry_on": "cancelled,internal" }));
    grpc_deadline_exceeded_and_resource_exhausted_are_tried_again =>
        grpc_tries(&["4", "8", "0"], json!({ "retry_on": "deadline-exceeded,resource-exhausted", "num_retries": 3 }));
    grpc_statuses_that_were_not_named_stay => grpc_tries(&["7"], json!({ "retry_on": "unavailable,cancelled" }));
    a_virtual_hosts_policy_and_what_upstreams_are_told => case("", &[failed("500 x", ""), OK.into()], json!({})).hcm(json!({ "route_config": {
        "virtual_hosts": [{
            "name": "all", "domains": ["*"], "include_request_attempt_count": true, "include_attempt_count_in_response": true,
            "include_is_timeout_retry_header": true, "retry_policy": { "retry_on": "5xx", "num_retries": 1 },
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "a_virtual_hosts_policy_and_what_upstreams_are_told" } }]
        }]
    } }));
    a_try_that_takes_too_long_is_told_to_the_next => get(json!({})).hcm(json!({ "route_config": {
        "virtual_hosts": [{
            "name": "all", "domains": ["*"], "include_is_timeout_retry_header": true, "include_attempt_count_in_response": true,
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "a_try_that_takes_too_long_is_told_to_the_next",
                "retry_policy": { "retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.3s" } } }]
        }]
    } })).upstreams(vec![vec![Play::Request, Play::Pause(1500)], vec![Play::Request, send(OK)]]);
    attempts_are_told_in_an_answer_of_the_proxys_own => get(json!({})).hcm(json!({ "route_config": {
        "virtual_hosts": [{
            "name": "all", "domains": ["*"], "include_attempt_count_in_response": true,
            "response_headers_to_add": [{ "header": { "key": "x-route", "value": "%RESPONSE_CODE%" } }],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "attempts_are_told_in_an_answer_of_the_proxys_own",
                "retry_policy": { "retry_on": "5xx", "num_retries": 1 } } }]
        }]
    } })).refusing();
    a_body_too_large_to_be_tried_again => Case::raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n0123456789").answer()
        .upstreams(on_one(&[failed("500 x", "")]))
        .hcm(json!({ "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "per_request_buffer_limit_bytes": 5,
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "a_body_too_large_to_be_tried_again", "retry_policy": { "retry_on": "5xx" } } }] }] } }));
    a_body_just_small_enough_to_be_tried_again => Case::raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n01234").answer()
        .upstreams(on_one(&[failed("500 x", ""), OK.into()]))
        .hcm(json!({ "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "per_request_buffer_limit_bytes": 5,
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "a_body_just_small_enough_to_be_tried_again", "retry_policy": { "retry_on": "5xx" } } }] }] } }));
}
