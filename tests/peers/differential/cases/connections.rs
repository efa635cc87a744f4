//! How long connections live, and several requests on one.

use serde_json::json;

use crate::differential::case::{Case, Play, send};

const GET: &str = "GET /1 HTTP/1.1\r\nhost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn twice() -> Vec<Play> {
    vec![Play::Request, send(OK), Play::Request, send(OK)]
}

cases! {
    two_requests_one_after_the_other => Case::raw(GET).upstream(twice()).answer().send(GET.replace("/1 ", "/2 ")).answer();
    two_requests_pipelined => Case::raw(format!("{GET}{}", GET.replace("/1 ", "/2 "))).upstream(twice()).answer().answer();
    a_pipelined_request_behind_a_body => Case::raw(format!(
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi{GET}"
    ))
    .upstream(twice())
    .answer()
    .answer();
    a_pipelined_request_behind_chunks => Case::raw(format!(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n{GET}"
    ))
    .upstream(twice())
    .answer()
    .answer();
    a_malformed_request_pipelined => Case::raw(format!("{GET}nonsense\r\n\r\n")).answer().answer();
    a_client_that_closes => Case::raw("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").answer();
    a_client_that_closes_and_sends_on =>
        Case::raw(format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n{GET}")).answer();
    an_upstream_that_closes => Case::raw(GET)
        .upstreams(vec![
            vec![
                Play::Request,
                send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"),
                Play::Fin,
            ],
            vec![Play::Request, send(OK)],
        ])
        .answer()
        .send(GET)
        .answer();
    an_upstream_that_says_close_and_does_not => Case::raw(GET)
        .upstreams(vec![
            vec![Play::Request, send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")],
            vec![Play::Request, send(OK)],
        ])
        .answer()
        .send(GET)
        .answer();
    an_upstream_of_http_10_that_keeps_its_connection => Case::raw(GET)
        .upstreams(vec![vec![
            Play::Request,
            send("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok"),
            Play::Request,
            send(OK),
        ], vec![Play::Request, send(OK)]])
        .answer()
        .send(GET)
        .answer();
    a_client_that_ends_its_sending => Case::raw(GET).fin().answer().connects_by_chance();
    a_client_that_ends_in_a_head => Case::raw("GET / HTTP/1.1\r\nhos").fin().end()
        .logged("heads_that_end_early_in_the_log", "");
    a_client_that_ends_in_a_body => Case::raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhal")
        .upstream(vec![Play::Until("hal"), Play::Tell("half"), Play::Request])
        .wait_for("half")
        .fin()
        .end();
    a_client_that_ends_in_a_chunk => Case::raw("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhal")
        .upstream(vec![Play::Until("hal"), Play::Tell("half"), Play::Request])
        .wait_for("half")
        .fin()
        .end();
    a_client_that_resets_while_the_upstream_works => Case::raw(GET)
        .upstream(vec![Play::Request, Play::Tell("there"), Play::Until("never")])
        .wait_for("there")
        .abort();
    a_connection_of_one_request => Case::raw(GET)
        .hcm(json!({ "common_http_protocol_options": { "max_requests_per_connection": 1 } }))
        .answer();
    a_client_that_stays_longer_than_the_idle_timeout => Case::raw(GET)
        .hcm(json!({ "common_http_protocol_options": { "idle_timeout": "0.2s" }, "drain_timeout": "0.3s" }))
        .answer()
        .end();
    a_request_just_after_the_idle_timeout => Case::raw(GET)
        .hcm(json!({ "common_http_protocol_options": { "idle_timeout": "0.2s" }, "drain_timeout": "1.5s" }))
        .upstream(twice())
        .answer()
        .pause(500)
        .send(GET)
        .answer()
        .end();
    a_head_that_takes_too_long => Case::raw("GET / HTTP/1.1\r\nhos")
        .hcm(json!({ "request_headers_timeout": "0.2s" }))
        .end();
    a_request_that_takes_too_long => Case::raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhal")
        .hcm(json!({ "request_timeout": "0.2s" }))
        .upstream(vec![Play::Request])
        .end();
    a_stream_that_idles => Case::raw(GET)
        .hcm(json!({ "stream_idle_timeout": "0.2s" }))
        .upstream(vec![Play::Request, Play::Until("never")])
        .answer();
    a_stream_that_idles_in_its_answer => Case::raw(GET)
        .hcm(json!({ "stream_idle_timeout": "0.2s" }))
        .upstream(vec![Play::Request, send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal"), Play::Until("never")])
        .end();
    an_upstream_that_takes_too_long => Case::raw(GET)
        .route(json!({ "timeout": "0.2s" }))
        .upstream(vec![Play::Request, Play::Until("never")])
        .answer();
}
