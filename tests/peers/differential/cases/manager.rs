//! What the connection manager makes of requests and of its own answers: local replies, spelling, forwarding fields.

use serde_json::{Value, json};

use crate::differential::case::{Case, H2Answer, H2Request};

fn get() -> Case {
    Case::raw("GET /p?q=1 HTTP/1.1\r\nHost: a\r\nX-MiXed: 1\r\n\r\n").answer()
}

fn over_h2(headers: Vec<(&'static str, &'static str)>) -> Case {
    let request = H2Request {
        method: "GET",
        scheme: "http",
        authority: "a",
        path: "/",
        headers,
        ..H2Request::default()
    };
    Case::h2(vec![request])
}

fn text(format: &str) -> Value {
    json!({ "text_format_source": { "inline_string": format } })
}

fn replies(mappers: Value, format: Option<Value>) -> Value {
    let mut config = json!({ "mappers": mappers });
    if let Some(format) = format {
        config["body_format"] = format;
    }
    json!({ "local_reply_config": config })
}

fn status(op: &str, value: u32) -> Value {
    json!({ "status_code_filter": { "comparison": { "op": op, "value": { "default_value": value, "runtime_key": "none" } } } })
}

/// A route that answers by itself.
fn direct(code: u32, body: &str) -> Value {
    json!([{ "match": { "prefix": "/" }, "direct_response": { "status": code, "body": { "inline_string": body } } }])
}

fn http1(options: Value) -> Value {
    json!({ "http_protocol_options": options })
}

fn upstream_http1(options: Value) -> Value {
    json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http_protocol_options": options }
    } } })
}

fn with_cluster(mut case: Case, cluster: Value) -> Case {
    case.cluster = cluster;
    case
}

fn preserve(fields: Value) -> Value {
    let mut config = json!({ "@type": "type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig" });
    for (key, value) in fields.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    json!({ "header_key_format": { "stateful_formatter": { "name": "preserve_case", "typed_config": config } } })
}

fn proper() -> Value {
    json!({ "header_key_format": { "proper_case_words": {} } })
}

const ANSWER: &str = "HTTP/1.1 200 Fine With Me\r\nX-UpPer: 1\r\nCONTENT-Length: 2\r\n\r\nok";
const CHUNKS: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";

/// Lines that say what logs would.
const LINE: &str = "%LOCAL_REPLY_BODY%|%RESPONSE_CODE%|%RESPONSE_FLAGS%|%RESPONSE_FLAGS_LONG%|%RESPONSE_CODE_DETAILS%|%REQ(:PATH)%|%REQ(X-MIXED)%|%RESP(:STATUS)%|%RESP(X-NEW)%|%PROTOCOL%|%ROUTE_NAME%";

cases! {
    a_local_reply_by_a_format => get().hcm(replies(json!([]), Some(text(LINE)))).refusing();
    a_local_reply_as_an_object => get().hcm(replies(json!([]), Some(json!({ "json_format": {
        "code": "%RESPONSE_CODE%", "none": "%REQ(X-NONE)%", "both": "%REQ(:METHOD)% %REQ(X-NONE)%"
    } })))).refusing();
    a_local_reply_as_an_object_of_objects => get().hcm(replies(json!([]), Some(json!({ "json_format": {
        "path": "%REQ(:PATH)%", "in": { "list": ["%PROTOCOL%", "%RESPONSE_CODE%"] }
    } })))).refusing();
    a_local_reply_as_an_object_of_literals => get().hcm(replies(json!([]), Some(json!({ "json_format": {
        "list": [1, 1.5, true, "a\"b"], "flags": "%RESPONSE_FLAGS%", "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"
    } })))).refusing();
    the_port_that_the_client_told_stays_where_the_peer_is_not_the_client =>
        Case::raw("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-port: 99\r\n\r\n").answer().hcm(json!({ "append_x_forwarded_port": true }));
    a_local_reply_as_an_object_without_what_is_empty => get().hcm(replies(json!([]), Some(json!({ "omit_empty_values": true, "json_format": {
        "code": "%RESPONSE_CODE%", "none": "%REQ(X-NONE)%", "both": "%REQ(:METHOD)% %REQ(X-NONE)%", "in": { "none": "%REQ(X-NONE)%" }
    } })))).refusing();
    a_local_reply_without_what_is_empty => get().hcm(replies(json!([]), Some(json!({ "omit_empty_values": true, "text_format_source": { "inline_string": LINE } })))).refusing();
    a_local_reply_of_another_type => get().hcm(replies(json!([]), Some(json!({ "content_type": "text/html; charset=UTF-8", "text_format_source": { "inline_string": "<p>%RESPONSE_CODE%</p>" } })))).refusing();
    a_mapper_changes_status_body_and_fields => get().hcm(replies(json!([{
        "filter": status("EQ", 503), "status_code": 401, "body": { "inline_string": "sorry" },
        "headers_to_add": [{ "header": { "key": "x-new", "value": "%RESPONSE_CODE%" }, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" }],
    }]), Some(text(LINE)))).refusing();
    a_mapper_has_a_format_of_its_own => get().hcm(replies(json!([
        { "filter": status("GE", 600), "status_code": 500 },
        { "filter": status("GE", 500), "body_format_override": { "json_format": { "code": "%RESPONSE_CODE%" } } },
        { "filter": status("GE", 400), "status_code": 499 },
    ]), Some(text("not this")))).refusing();
    a_mapper_without_a_format => get().hcm(replies(json!([{ "filter": status("EQ", 503), "status_code": 504 }]), None)).refusing();
    a_mapper_by_flag => get().hcm(replies(json!([
        { "filter": { "response_flag_filter": { "flags": ["NR"] } }, "status_code": 500 },
        { "filter": { "response_flag_filter": { "flags": ["UF"] } }, "status_code": 502 },
    ]), None)).refusing();
    a_mapper_by_a_field_of_the_request => get().hcm(replies(json!([
        { "filter": { "header_filter": { "header": { "name": "x-mixed", "string_match": { "exact": "2" } } } }, "status_code": 500 },
        { "filter": { "header_filter": { "header": { "name": "x-mixed", "string_match": { "exact": "1" } } } }, "status_code": 502 },
    ]), None)).refusing();
    a_mapper_by_and_and_or => get().hcm(replies(json!([
        { "filter": { "and_filter": { "filters": [status("EQ", 503), { "response_flag_filter": { "flags": ["NR"] } }] } }, "status_code": 500 },
        { "filter": { "or_filter": { "filters": [status("EQ", 404), { "not_health_check_filter": {} }] } }, "status_code": 502 },
    ]), None)).refusing();
    a_mapper_by_grpc_status => get().hcm(replies(json!([
        { "filter": { "grpc_status_filter": { "statuses": ["UNAVAILABLE"], "exclude": true } }, "status_code": 500 },
        { "filter": { "grpc_status_filter": { "statuses": ["UNAVAILABLE"] } }, "status_code": 502 },
    ]), None)).refusing();
    a_mapper_by_chance => get().hcm(replies(json!([
        { "filter": { "runtime_filter": { "runtime_key": "none", "percent_sampled": { "numerator": 0 } } }, "status_code": 500 },
        { "filter": { "runtime_filter": { "runtime_key": "none", "percent_sampled": { "numerator": 100 } } }, "status_code": 502 },
    ]), None)).refusing();
    a_mapper_by_the_requests_id => Case::raw("GET / HTTP/1.1\r\nhost: a\r\nx-request-id: 0000000f-ffff-4fff-8fff-ffffffffffff\r\n\r\n").answer().hcm(replies(json!([
        { "filter": { "runtime_filter": { "runtime_key": "none", "percent_sampled": { "numerator": 15 } } }, "status_code": 500 },
        { "filter": { "runtime_filter": { "runtime_key": "none", "percent_sampled": { "numerator": 16 } } }, "status_code": 502 },
    ]), None)).refusing();
    a_mapper_by_the_kind_of_log => get().hcm(replies(json!([
        { "filter": { "log_type_filter": { "types": ["DownstreamEnd"] } }, "status_code": 500 },
        { "filter": { "log_type_filter": { "types": ["NotSet"] } }, "status_code": 502 },
    ]), None)).refusing();
    a_mapper_of_a_request_without_a_route => get().routes(json!([{ "match": { "path": "/no" }, "redirect": {} }]))
        .hcm(replies(json!([{ "filter": status("EQ", 404), "body": { "inline_string": "nothing here" } }]), Some(text(LINE))));
    a_mapper_of_a_direct_response => get().routes(direct(403, "no"))
        .hcm(replies(json!([{ "filter": status("EQ", 403), "status_code": 200, "body": { "inline_string": "yes" } }]), Some(text(LINE))));
    a_mapper_of_a_malformed_request => Case::raw("GET / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n").answer().end()
        .hcm(replies(json!([{ "filter": status("EQ", 400), "status_code": 422, "body": { "inline_string": "what?" } }]), Some(text(LINE))));
    a_mapper_and_head => Case::raw("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").answer_to("HEAD").hcm(replies(json!([]), Some(text(LINE)))).refusing();
    a_mapper_and_grpc => Case::raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n").answer()
        .hcm(replies(json!([{ "filter": status("EQ", 503), "status_code": 404 }]), Some(json!({ "json_format": { "m": "%LOCAL_REPLY_BODY%" } })))).refusing();
    a_direct_response_by_a_format => get().routes(json!([{ "match": { "prefix": "/" }, "direct_response": { "status": 200,
        "body": { "inline_string": "plain" }, "body_format": { "text_format_source": { "inline_string": "%LOCAL_REPLY_BODY% %REQ(:PATH)%" } } } }]));
    a_direct_response_as_an_object => get().routes(json!([{ "match": { "prefix": "/" }, "direct_response": { "status": 202,
        "body_format": { "json_format": { "path": "%REQ(:PATH)%" } } } }]));
    a_direct_response_of_another_type => get().routes(json!([{ "match": { "prefix": "/" },
        "response_headers_to_add": [{ "header": { "key": "x-a", "value": "b" } }],
        "direct_response": { "status": 200, "body_format": { "content_type": "text/html", "text_format_source": { "inline_string": "<p>" } } } }]));

    names_in_capitals_on_both_sides => with_cluster(get().reply(ANSWER).hcm(http1(proper())), upstream_http1(proper()));
    names_in_capitals_to_the_client => get().reply(CHUNKS).hcm(http1(proper()));
    names_in_capitals_to_the_upstream => with_cluster(
        Case::raw("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").answer().reply(ANSWER), upstream_http1(proper()));
    names_in_capitals_of_a_local_reply => get().routes(direct(404, "no")).hcm(http1(proper()));
    names_as_they_came_on_both_sides => with_cluster(get().reply(ANSWER).hcm(http1(preserve(json!({})))), upstream_http1(preserve(json!({}))));
    names_as_they_came_of_requests => get().reply(ANSWER).hcm(http1(preserve(json!({}))));
    names_as_they_came_of_answers => with_cluster(get().reply(ANSWER), upstream_http1(preserve(json!({}))));
    names_as_they_came_and_others_in_capitals => with_cluster(get().reply(CHUNKS)
        .hcm(http1(preserve(json!({ "formatter_type_on_envoy_headers": "PROPER_CASE" })))), upstream_http1(preserve(json!({ "formatter_type_on_envoy_headers": "PROPER_CASE" }))));
    names_as_they_came_with_the_reason => with_cluster(get().reply(ANSWER), upstream_http1(preserve(json!({ "forward_reason_phrase": true }))));
    names_as_they_came_twice => with_cluster(Case::raw("GET / HTTP/1.1\r\nHOST: a\r\nX-a: 1\r\nx-A: 2\r\nCONNECTION: keep-alive\r\n\r\n").answer()
        .reply("HTTP/1.1 200 OK\r\nSet-COOKIE: a\r\nset-cookie: b\r\nContent-Length: 0\r\n\r\n").hcm(http1(preserve(json!({})))), upstream_http1(preserve(json!({}))));
    names_as_they_came_of_a_local_reply => get().routes(direct(404, "no")).hcm(http1(preserve(json!({}))));
    names_in_capitals_are_small_in_http_2 => with_cluster(over_h2(vec![("x-a", "1")]).reply(ANSWER).hcm(http1(proper())), upstream_http1(proper()));
    names_as_they_came_to_an_http_2_upstream => get().h2_upstream(vec![H2Answer::Full { informational: vec![], status: 200, headers: vec![("x-up", "1")], body: vec!["ok"], trailers: vec![] }])
        .hcm(http1(preserve(json!({}))));

    chunks_and_a_length_where_that_is_allowed => Case::raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").answer()
        .hcm(http1(json!({ "allow_chunked_length": true })));
    chunks_and_a_length_of_an_upstream_where_that_is_allowed => with_cluster(get().reply("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        upstream_http1(json!({ "allow_chunked_length": true })));
    an_absolute_target_where_that_is_not_allowed => Case::raw("GET http://b/x HTTP/1.1\r\nhost: a\r\n\r\n").answer().hcm(http1(json!({ "allow_absolute_url": false })));
    whole_urls_to_the_upstream => with_cluster(get(), upstream_http1(json!({ "send_fully_qualified_url": true })));
    a_bad_request_with_the_connection_kept => Case::raw("GET /a%2Fb HTTP/1.1\r\nhost: a\r\n\r\n").answer()
        .hcm(json!({ "stream_error_on_invalid_http_message": true, "path_with_escaped_slashes_action": "REJECT_REQUEST" }))
        .logged("escaped_slashes_in_the_log", "/a%2Fb");
    a_bad_request_with_the_connection_closed => Case::raw("GET /a%2Fb HTTP/1.1\r\nhost: a\r\n\r\n").answer().end()
        .hcm(json!({ "path_with_escaped_slashes_action": "REJECT_REQUEST" }))
        .logged("escaped_slashes_in_the_log", "/a%2Fb");
    a_bad_request_where_http_1_says_otherwise => Case::raw("GET /a%2Fb HTTP/1.1\r\nhost: a\r\n\r\n").answer().end()
        .hcm(json!({ "stream_error_on_invalid_http_message": true, "path_with_escaped_slashes_action": "REJECT_REQUEST",
            "http_protocol_options": { "override_stream_error_on_invalid_http_message": false } }))
        .logged("escaped_slashes_in_the_log", "/a%2Fb");

    the_port_is_told => get().hcm(json!({ "use_remote_address": true, "append_x_forwarded_port": true }));
    the_port_is_not_told_where_the_peer_is_not_the_client => get().hcm(json!({ "append_x_forwarded_port": true }));
    the_port_that_a_trusted_proxy_told_stays => Case::raw("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-port: 99\r\nx-forwarded-for: 1.2.3.4\r\n\r\n").answer()
        .hcm(json!({ "use_remote_address": true, "append_x_forwarded_port": true, "xff_num_trusted_hops": 1 }));
    the_port_that_a_stranger_told_goes => Case::raw("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-port: 99\r\n\r\n").answer()
        .hcm(json!({ "use_remote_address": true, "append_x_forwarded_port": true }));
    the_scheme_is_replaced => over_h2(vec![]).hcm(json!({ "scheme_header_transformation": { "scheme_to_overwrite": "https" } }))
        .h2_upstream(vec![H2Answer::Full { informational: vec![], status: 200, headers: vec![], body: vec![], trailers: vec![] }]);
    the_scheme_is_replaced_whatever_was_told => Case::raw("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-proto: https\r\n\r\n").answer()
        .hcm(json!({ "scheme_header_transformation": { "scheme_to_overwrite": "http" } }))
        .h2_upstream(vec![H2Answer::Full { informational: vec![], status: 200, headers: vec![], body: vec![], trailers: vec![] }]);
    the_scheme_follows_the_upstream => Case::raw("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-proto: https\r\n\r\n").answer()
        .hcm(json!({ "scheme_header_transformation": { "match_upstream": true } }))
        .h2_upstream(vec![H2Answer::Full { informational: vec![], status: 200, headers: vec![], body: vec![], trailers: vec![] }]);
    a_route_changes_what_a_fault_answers => get().hcm(json!({ "http_filters": [
        { "name": "envoy.filters.http.fault", "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault", "abort": { "http_status": 418, "percentage": { "numerator": 100 } } } },
        { "name": "envoy.filters.http.router", "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
    ] })).routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": "a_route_changes_what_a_fault_answers" }, "response_headers_to_add": [{ "header": { "key": "x-route", "value": "%RESPONSE_CODE%" } }] }]));
    a_route_changes_what_a_timeout_answers => get().upstream(vec![crate::differential::case::Play::Request, crate::differential::case::Play::Pause(1000)])
        .routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": "a_route_changes_what_a_timeout_answers", "timeout": "0.3s" }, "response_headers_to_add": [{ "header": { "key": "x-route", "value": "%RESPONSE_CODE%" } }] }]));
    a_route_changes_what_a_missing_cluster_answers => get()
        .routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster_header": "x-mixed" }, "response_headers_to_add": [{ "header": { "key": "x-route", "value": "%RESPONSE_CODE%" } }] }]));
    the_path_by_operators => get().routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": "the_path_by_operators", "prefix_rewrite": "/new" },
        "response_headers_to_add": [
            { "header": { "key": "x-1", "value": "%PATH(WQ:ORIG)%" } }, { "header": { "key": "x-2", "value": "%PATH(NQ:PATH)%" } },
            { "header": { "key": "x-3", "value": "%PATH%" } }, { "header": { "key": "x-4", "value": "%QUERY_PARAM(q)%" } },
            { "header": { "key": "x-5", "value": "%UPSTREAM_PROTOCOL%" } }, { "header": { "key": "x-6", "value": "%ACCESS_LOG_TYPE%" } },
            { "header": { "key": "x-7", "value": "%RESPONSE_FLAGS_LONG%-" } }, { "header": { "key": "x-8", "value": "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%" } },
            { "header": { "key": "x-9", "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%" } }
        ] }]));
    the_client_by_operators => Case::raw("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 1.2.3.4, 5.6.7.8\r\n\r\n").answer()
        .routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": "the_client_by_operators" },
        "response_headers_to_add": [
            { "header": { "key": "x-1", "value": "%DOWNSTREAM_REMOTE_ADDRESS%" } }, { "header": { "key": "x-2", "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%" } },
            { "header": { "key": "x-3", "value": "%DOWNSTREAM_REMOTE_PORT%" } }, { "header": { "key": "x-4", "value": "%REQ(X-NONE?X-FORWARDED-FOR)%" } }
        ] }]));
}
