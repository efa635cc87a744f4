//! Request lines and header fields that are not as they should be, and how much of them is taken.

use serde_json::json;

use crate::differential::case::Case;

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: a.example\r\n{fields}\r\n")
}

/// RFC 9112 lets a recipient take these or refuse them. Two recipients that differ in it can be played against each other, so
/// we refuse what Envoy takes.
const STRICT: &str = "lenient_heads";

cases! {
    a_plain_request => Case::raw(get("user-agent: test\r\naccept: */*\r\n")).answer();
    a_request_line_without_a_version => Case::raw("GET /\r\nhost: a\r\n\r\n").answer();
    a_request_line_of_an_unknown_version => Case::raw("GET / HTTP/1.2\r\nhost: a\r\n\r\n").answer();
    a_request_line_of_http_2 => Case::raw("GET / HTTP/2.0\r\nhost: a\r\n\r\n").answer();
    a_request_line_of_an_unknown_version_where_http_10_is_taken => Case::raw("GET / HTTP/1.2\r\nhost: a\r\n\r\n")
        .hcm(json!({ "http_protocol_options": { "accept_http_10": true } }))
        .answer()
        .deliberate("unknown_minor_versions", "426 Upgrade Required");
    a_request_line_of_another_protocol => Case::raw("GET / SSH/1.1\r\nhost: a\r\n\r\n").answer();
    a_request_line_with_two_spaces => Case::raw("GET  / HTTP/1.1\r\nhost: a\r\n\r\n").answer().deliberate(STRICT, "400 Bad Request");
    a_request_line_with_a_space_in_the_target => Case::raw("GET /a b HTTP/1.1\r\nhost: a\r\n\r\n").answer();
    an_empty_line_before_the_request => Case::raw(format!("\r\n{}", get(""))).answer();
    a_bare_line_feed_after_the_request_line => Case::raw("GET / HTTP/1.1\nhost: a\r\n\r\n").answer().deliberate(STRICT, "400 Bad Request");
    bare_line_feeds_everywhere => Case::raw("GET / HTTP/1.1\nhost: a\n\n").answer().deliberate(STRICT, "400 Bad Request");
    bytes_of_tls => Case::raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").answer();
    a_method_that_nobody_knows => Case::raw("FROB / HTTP/1.1\r\nhost: a\r\n\r\n").answer();
    a_method_that_nobody_knows_where_any_is_taken => Case::raw("FROB / HTTP/1.1\r\nhost: a\r\n\r\n")
        .hcm(json!({ "http_protocol_options": { "allow_custom_methods": true } }))
        .answer();
    a_method_of_another_time => Case::raw("M-SEARCH / HTTP/1.1\r\nhost: a\r\n\r\n").answer();
    the_same_method_without_its_dash => Case::raw("MSEARCH / HTTP/1.1\r\nhost: a\r\n\r\n").answer();
    a_method_in_lower_case => Case::raw("get / HTTP/1.1\r\nhost: a\r\n\r\n").answer();
    a_method_with_a_bad_character => Case::raw("GE{T / HTTP/1.1\r\nhost: a\r\n\r\n").answer();
    a_field_without_a_colon => Case::raw(get("nonsense\r\n")).answer();
    a_field_with_a_space_before_its_colon => Case::raw(get("x-a : 1\r\n")).answer();
    a_field_without_a_name => Case::raw(get(": 1\r\n")).answer();
    a_field_name_with_a_bad_character => Case::raw(get("x(a): 1\r\n")).answer();
    a_field_value_over_two_lines => Case::raw(get("x-a: 1\r\n 2\r\n")).answer().deliberate(STRICT, "400 Bad Request");
    a_field_value_with_a_nul => Case::raw(b"GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\x002\r\n\r\n").answer();
    a_field_value_with_a_control_character => Case::raw(b"GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\x012\r\n\r\n").answer();
    a_field_value_with_a_bare_carriage_return => Case::raw("GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\r2\r\n\r\n").answer().deliberate(STRICT, "400 Bad Request");
    a_field_value_beyond_ascii => Case::raw("GET / HTTP/1.1\r\nhost: a\r\nx-a: é\r\n\r\n").answer();
    an_empty_field_value => Case::raw(get("x-a:\r\nx-b: \t \r\n")).answer();
    blanks_around_a_field_value => Case::raw(get("x-a: \t 1 2 \t \r\n")).answer();
    field_names_in_upper_case_and_repeated => Case::raw(get("X-A: 1\r\nAccept: a\r\nx-a: 2\r\n")).answer();
    a_field_that_envoy_knows_repeated => Case::raw(get("accept: a\r\nx-a: 1\r\naccept: b\r\n"))
        .answer()
        .deliberate("repeated_fields", "accept: a\nx-a: 1\naccept: b");
    fields_that_speak_of_the_connection => Case::raw(get(
        "connection: keep-alive, x-gone\r\nx-gone: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nte: trailers, gzip\r\n",
    ))
    .answer();
    te_without_trailers => Case::raw(get("te: gzip\r\n")).answer();
    a_head_larger_than_the_limit => Case::raw(get(&format!("x-a: {}\r\n", "a".repeat(70_000)))).answer();
    a_head_of_many_large_fields_over_the_limit =>
        Case::raw(get(&(0..70).map(|i| format!("x-{i}: {}\r\n", "a".repeat(1000))).collect::<String>())).answer();
    a_head_just_below_the_limit => Case::raw(get(&format!("x-a: {}\r\n", "a".repeat(61_000)))).answer();
    a_limit_of_one_kilobyte => Case::raw(get(&format!("x-a: {}\r\n", "a".repeat(1100))))
        .hcm(json!({ "max_request_headers_kb": 1 }))
        .answer();
    a_target_larger_than_the_limit =>
        Case::raw(format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(70_000))).answer();
    more_fields_than_the_limit =>
        Case::raw(get(&(0..101).map(|i| format!("x-{i}: 1\r\n")).collect::<String>())).answer();
    as_many_fields_as_the_limit =>
        Case::raw(get(&(0..99).map(|i| format!("x-{i}: 1\r\n")).collect::<String>())).answer();
    more_fields_than_a_raised_limit_of_two_hundred =>
        Case::raw(get(&(0..150).map(|i| format!("x-{i}: 1\r\n")).collect::<String>()))
            .hcm(json!({ "common_http_protocol_options": { "max_headers_count": 200 } }))
            .answer();
    a_field_name_with_an_underscore_is_refused => Case::raw(get("x_a: 1\r\n"))
        .hcm(json!({ "common_http_protocol_options": { "headers_with_underscores_action": "REJECT_REQUEST" } }))
        .answer()
        .logged("underscores_in_the_log", "GET / HTTP/1.1");
    a_field_name_with_an_underscore_is_dropped => Case::raw(get("x_a: 1\r\nx-b: 2\r\n"))
        .hcm(json!({ "common_http_protocol_options": { "headers_with_underscores_action": "DROP_HEADER" } }))
        .answer();
}
