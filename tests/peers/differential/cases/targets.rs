//! What a request is for: Host, absolute targets, paths, CONNECT, HTTP/1.0.

use serde_json::json;

use crate::differential::case::{Case, Play, send};

fn request(line: &str, fields: &str) -> String {
    format!("{line} HTTP/1.1\r\n{fields}\r\n")
}

cases! {
    no_host => Case::raw(request("GET /", "")).answer();
    an_empty_host => Case::raw(request("GET /", "host:\r\n")).answer()
        .logged("an_empty_authority_in_the_log", "authority=null");
    two_hosts => Case::raw(request("GET /", "host: a\r\nhost: b\r\n")).answer().deliberate("two_hosts", "400 Bad Request");
    two_equal_hosts => Case::raw(request("GET /", "host: a\r\nhost: a\r\n")).answer().deliberate("two_hosts", "400 Bad Request");
    a_host_with_a_port_and_capitals => Case::raw(request("GET /", "host: A.Example:8080\r\n")).answer();
    a_host_with_a_bad_character => Case::raw(request("GET /", "host: a/b?c\r\n")).answer();
    a_host_with_userinfo => Case::raw(request("GET /", "host: u@a\r\n")).answer();
    a_host_in_brackets => Case::raw(request("GET /", "host: [::1]:80\r\n")).answer();
    an_absolute_target => Case::raw(request("GET http://b.example/x?y", "host: a.example\r\n")).answer();
    an_absolute_target_without_a_path => Case::raw(request("GET http://b.example", "host: a.example\r\n")).answer();
    an_absolute_target_with_only_a_query => Case::raw(request("GET http://b.example?q", "host: a\r\n")).answer();
    an_absolute_target_without_host => Case::raw(request("GET http://b.example/x", "")).answer();
    an_absolute_target_of_https => Case::raw(request("GET https://b.example/x", "host: a\r\n")).answer();
    an_absolute_target_of_another_scheme => Case::raw(request("GET ftp://b.example/x", "host: a\r\n")).answer();
    an_absolute_target_with_userinfo => Case::raw(request("GET http://u@b.example/x", "host: a\r\n")).answer();
    a_target_without_a_slash => Case::raw(request("GET x", "host: a\r\n")).answer();
    a_fragment_in_the_target => Case::raw(request("GET /a#b", "host: a\r\n")).answer();
    a_target_beyond_ascii => Case::raw(request("GET /é", "host: a\r\n")).answer();
    dots_in_the_path_stay_without_normalisation => Case::raw(request("GET /a/../b//c/./d", "host: a\r\n"))
        .hcm(json!({ "normalize_path": false }))
        .answer();
    dots_in_the_path_are_resolved => Case::raw(request("GET /a/../b//c/./d?x=/../y", "host: a\r\n"))
        .hcm(json!({ "normalize_path": true, "merge_slashes": true }))
        .answer();
    an_escape_that_unescaping_makes => Case::raw(request("GET /%%361dmin?%%361", "host: a\r\n"))
        .hcm(json!({ "normalize_path": true }))
        .answer();
    half_an_escape_before_an_escape => Case::raw(request("GET /a%7%41%2vE", "host: a\r\n"))
        .hcm(json!({ "normalize_path": true, "merge_slashes": true }))
        .answer();
    percent_signs_and_escapes_in_all_orders => Case::raw(request("GET /%%%3361%2%35c/%%32e%%32e/%%41%%2f%%4/%41/%%6dx%c3%7", "host: a\r\n"))
        .hcm(json!({ "normalize_path": true, "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD" }))
        .answer();
    an_escaped_slash_is_refused => Case::raw(request("GET /a%2Fb", "host: a\r\n"))
        .hcm(json!({ "path_with_escaped_slashes_action": "REJECT_REQUEST" }))
        .answer()
        .logged("escaped_slashes_in_the_log", "/a%2Fb");
    an_escaped_slash_is_redirected => Case::raw(request("GET /a%2Fb?q", "host: a\r\n"))
        .hcm(json!({ "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT", "normalize_path": true }))
        .answer();
    options_for_the_server => Case::raw(request("OPTIONS *", "host: a\r\n")).answer();
    get_of_an_asterisk => Case::raw(request("GET *", "host: a\r\n")).answer();
    no_route => Case::raw(request("GET /", "host: a\r\n"))
        .routes(json!([{ "match": { "prefix": "/only" }, "direct_response": { "status": 200 } }]))
        .answer();
    a_direct_response => Case::raw(request("GET /", "host: a\r\n"))
        .routes(json!([{
            "match": { "prefix": "/" },
            "direct_response": { "status": 418, "body": { "inline_string": "teapot" } }
        }]))
        .answer();
    a_direct_response_to_head => Case::raw(request("HEAD /", "host: a\r\n"))
        .routes(json!([{
            "match": { "prefix": "/" },
            "direct_response": { "status": 418, "body": { "inline_string": "teapot" } }
        }]))
        .answer_to("HEAD");
    a_redirect => Case::raw(request("GET /x?y", "host: a:80\r\n"))
        .routes(json!([{
            "match": { "prefix": "/" },
            "redirect": { "host_redirect": "b", "https_redirect": true, "response_code": "FOUND" }
        }]))
        .answer();
    connect_without_a_route_for_it => Case::raw(request("CONNECT b.example:443", "host: b.example:443\r\n"))
        .answer_to("CONNECT");
    http_10_is_not_taken => Case::raw("GET / HTTP/1.0\r\nhost: a\r\n\r\n").answer();
    http_10_with_a_host => Case::raw("GET / HTTP/1.0\r\nhost: a\r\n\r\n")
        .hcm(json!({ "http_protocol_options": { "accept_http_10": true } }))
        .end();
    http_10_with_a_default_host => Case::raw("GET / HTTP/1.0\r\n\r\n")
        .hcm(json!({ "http_protocol_options": { "accept_http_10": true, "default_host_for_http_10": "d.example" } }))
        .end();
    http_10_without_a_host => Case::raw("GET / HTTP/1.0\r\n\r\n")
        .hcm(json!({ "http_protocol_options": { "accept_http_10": true } }))
        .end();
    http_10_that_keeps_the_connection => Case::raw("GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n")
        .hcm(json!({ "http_protocol_options": { "accept_http_10": true } }))
        .answer();
    http_10_and_an_answer_of_unknown_length => Case::raw("GET / HTTP/1.0\r\nhost: a\r\n\r\n")
        .hcm(json!({ "http_protocol_options": { "accept_http_10": true } }))
        .upstream(vec![
            Play::Request,
            send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        ])
        .end();
    http_09 => Case::raw("GET /\r\n\r\n").answer();
}
