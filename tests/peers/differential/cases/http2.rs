//! HTTP/2 downstream, upstream, and both.

use serde_json::json;

use crate::differential::case::{Case, H2Answer, H2Request, Play, send};

fn get(path: &'static str) -> H2Request {
    H2Request { method: "GET", scheme: "http", authority: "a.example", path, ..H2Request::default() }
}

fn post(body: Vec<&'static str>) -> H2Request {
    H2Request { method: "POST", body, ..get("/") }
}

fn ok() -> H2Answer {
    H2Answer::Full {
        informational: vec![],
        status: 200,
        headers: vec![("content-length", "2")],
        body: vec!["ok"],
        trailers: vec![],
    }
}

const GRANT: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";

fn websockets() -> serde_json::Value {
    json!({
        "upgrade_configs": [{ "upgrade_type": "websocket" }],
        "http2_protocol_options": { "allow_connect": true }
    })
}

cases! {
    h2_get => Case::h2(vec![get("/x?y")]);
    h2_two_requests => Case::h2(vec![get("/1"), get("/2")]).upstream(vec![
        Play::Request,
        send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
        Play::Request,
        send("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
    ]);
    h2_post_of_unknown_length => Case::h2(vec![post(vec!["hel", "lo"])]);
    h2_post_of_known_length => Case::h2(vec![H2Request { headers: vec![("content-length", "5")], ..post(vec!["hello"]) }]);
    h2_head => Case::h2(vec![H2Request { method: "HEAD", ..get("/") }])
        .reply("HTTP/1.1 200 OK\r\ncontent-length: 42\r\n\r\n");
    h2_request_trailers_to_http_1 => Case::h2(vec![H2Request { trailers: vec![("x-t", "1")], ..post(vec!["hi"]) }])
        .upstream_trailers();
    h2_answer_trailers_from_http_1 => Case::h2(vec![get("/")])
        .upstream_trailers()
        .reply("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-t: 1\r\n\r\n");
    h2_early_hints_from_http_1 => Case::h2(vec![get("/")])
        .reply("HTTP/1.1 103 Early Hints\r\nlink: 1\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    h2_expect => Case::h2(vec![H2Request { headers: vec![("expect", "100-continue")], ..post(vec!["hi"]) }]);
    h2_te_and_cookies => Case::h2(vec![H2Request {
        headers: vec![("te", "trailers"), ("cookie", "a=1"), ("cookie", "b=2"), ("x-a", "x"), ("x-a", "y")],
        ..get("/")
    }]);
    h2_host_beside_authority => Case::h2(vec![H2Request { headers: vec![("host", "b.example")], ..get("/") }]);
    h2_scheme_of_https_on_plaintext => Case::h2(vec![H2Request { scheme: "https", ..get("/") }]);
    h2_closed_before_the_head => Case::h2(vec![get("/")]).upstream(vec![Play::Request, Play::Close]);
    h2_closed_in_the_body => Case::h2(vec![get("/")]).upstream(vec![
        Play::Request,
        send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"),
        // A reset overtakes a head that the HTTP/2 library has not written yet.
        Play::Pause(100),
        Play::Close,
    ]);
    h2_no_route => Case::h2(vec![get("/")])
        .routes(json!([{ "match": { "prefix": "/only" }, "direct_response": { "status": 200 } }]));
    h2_head_larger_than_the_limit => Case::h2(vec![H2Request { headers: vec![("x-a", LARGE)], ..get("/") }])
        .hcm(json!({ "max_request_headers_kb": 1 }))
        .deliberate("large_heads_over_http2", "status 431");
    h2_a_field_name_with_an_underscore => Case::h2(vec![H2Request { headers: vec![("x_a", "1")], ..get("/") }])
        .hcm(json!({ "common_http_protocol_options": { "headers_with_underscores_action": "REJECT_REQUEST" } }))
        .deliberate("underscores_over_http2", "status 400");
    h2_fragment => Case::h2(vec![H2Request { path: "/a", authority: "a", ..get("/") }, get("/b")]);
    h2_websocket_to_http_1 => Case::h2(vec![H2Request {
        method: "CONNECT",
        protocol: Some("websocket"),
        body: vec!["ping"],
        until: Some("pong"),
        ..get("/chat")
    }])
    .hcm(websockets())
    .upstream(vec![Play::Head, send(GRANT), Play::Until("ping"), send("pong")])
        .logged("status_of_websockets_over_http2_in_the_log", " 200 ");
    h2_websocket_that_the_upstream_ends => Case::h2(vec![H2Request {
        method: "CONNECT",
        protocol: Some("websocket"),
        body: vec!["ping"],
        open: true,
        ..get("/chat")
    }])
    .hcm(websockets())
    .upstream(vec![Play::Head, send(GRANT), Play::Until("ping"), send("pong"), Play::Fin])
    .deliberate("websockets_that_end", "body: pong");
    h2_websocket_where_the_codec_does_not_take_connect => Case::h2(vec![H2Request {
        method: "CONNECT",
        protocol: Some("websocket"),
        ..get("/chat")
    }])
    .hcm(json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] }))
    .deliberate("extended_connect_not_enabled", "the stream was reset: PROTOCOL_ERROR");
    h2_websocket_where_none_is_configured => Case::h2(vec![H2Request {
        method: "CONNECT",
        protocol: Some("websocket"),
        ..get("/chat")
    }])
    .hcm(json!({ "http2_protocol_options": { "allow_connect": true } }));

    h2_upstream_get => Case::raw("GET /x HTTP/1.1\r\nhost: a\r\nx-a: 1\r\n\r\n").h2_upstream(vec![ok()]).answer();
    h2_upstream_chunked_post =>
        Case::raw("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
            .h2_upstream(vec![ok()])
            .answer();
    h2_upstream_answer_of_unknown_length => Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .h2_upstream(vec![H2Answer::Full {
            informational: vec![],
            status: 200,
            headers: vec![],
            body: vec!["o", "k"],
            trailers: vec![],
        }])
        .answer();
    h2_upstream_without_a_body => Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .h2_upstream(vec![H2Answer::Full {
            informational: vec![],
            status: 200,
            headers: vec![],
            body: vec![],
            trailers: vec![],
        }])
        .answer();
    h2_upstream_trailers_to_http_1 => Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .hcm(json!({ "http_protocol_options": { "enable_trailers": true } }))
        .h2_upstream(vec![H2Answer::Full {
            informational: vec![],
            status: 200,
            headers: vec![],
            body: vec!["ok"],
            trailers: vec![("x-t", "1")],
        }])
        .answer();
    h2_upstream_early_hints => Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .h2_upstream(vec![H2Answer::Full {
            informational: vec![(103, vec![("link", "1")])],
            status: 200,
            headers: vec![("content-length", "2")],
            body: vec!["ok"],
            trailers: vec![],
        }])
        .answer();
    h2_upstream_resets => Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n").h2_upstream(vec![H2Answer::Reset(2)]).answer();
    h2_upstream_refuses => Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n").h2_upstream(vec![H2Answer::Reset(7)]).answer();
    h2_upstream_resets_in_the_body => Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .h2_upstream(vec![H2Answer::ResetInBody(2)])
        .end();
    h2_both_sides_with_grpc_trailers => Case::h2(vec![H2Request {
        headers: vec![("content-type", "application/grpc"), ("te", "trailers")],
        ..post(vec!["\0\0\0\0\u{2}hi"])
    }])
    .h2_upstream(vec![H2Answer::Full {
        informational: vec![],
        status: 200,
        headers: vec![("content-type", "application/grpc")],
        body: vec!["\0\0\0\0\u{2}ok"],
        trailers: vec![("grpc-status", "0"), ("grpc-message", "fine")],
    }]);
    h2_both_sides_grpc_and_nobody_answers => Case::h2(vec![H2Request {
        headers: vec![("content-type", "application/grpc"), ("te", "trailers")],
        ..post(vec!["\0\0\0\0\u{2}hi"])
    }])
    .h2_upstream(vec![H2Answer::Reset(2)]);
    h2_both_sides_trailers => Case::h2(vec![H2Request { trailers: vec![("x-t", "1")], ..post(vec!["hi"]) }])
        .h2_upstream(vec![H2Answer::Full {
            informational: vec![],
            status: 200,
            headers: vec![],
            body: vec!["ok"],
            trailers: vec![("x-u", "2")],
        }]);
    h2_both_sides_reset_in_the_body => Case::h2(vec![get("/")]).h2_upstream(vec![H2Answer::ResetInBody(2)]);
}

const LARGE: &str = {
    const A: [u8; 2000] = [b'a'; 2000];
    match std::str::from_utf8(&A) {
        Ok(text) => text,
        Err(_) => "",
    }
};
