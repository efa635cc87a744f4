//! Upstreams that end where they should not, and answers before the request is whole.

use serde_json::json;

use crate::differential::case::{Case, Play, send};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn get() -> Case {
    Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
}

cases! {
    nobody_listens => get().refusing().answer();
    closed_before_the_head => get().upstream(vec![Play::Request, Play::Close]).answer();
    reset_before_the_head => get().upstream(vec![Play::Request, Play::Reset]).answer();
    closed_before_the_request => get().upstream(vec![Play::Close]).answer();
    closed_in_the_head => get().upstream(vec![Play::Request, send("HTTP/1.1 200 OK\r\nx-a"), Play::Close]).answer();
    closed_in_the_status_line => get().upstream(vec![Play::Request, send("HTTP/1.1 2"), Play::Close]).answer();
    closed_after_an_informational_head => get()
        .upstream(vec![Play::Request, send("HTTP/1.1 103 Early Hints\r\nlink: 1\r\n\r\n"), Play::Close])
        .answer()
        .logged("answers_after_1xx_in_the_log", "upstream_reset_before_response_started");
    closed_after_the_head => get()
        .upstream(vec![
            Play::Request,
            send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"),
            Play::Await("head"),
            Play::Close,
        ])
        .until("\r\n\r\n")
        .tell("head")
        .end();
    closed_in_a_body_of_known_length => get()
        .upstream(vec![
            Play::Request,
            send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal"),
            Play::Await("half"),
            Play::Close,
        ])
        .until("hal")
        .tell("half")
        .end();
    reset_in_a_body_of_known_length => get()
        .upstream(vec![
            Play::Request,
            send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal"),
            Play::Await("half"),
            Play::Reset,
        ])
        .until("hal")
        .tell("half")
        .end();
    closed_in_chunks => get()
        .upstream(vec![
            Play::Request,
            send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhal\r\n"),
            Play::Await("half"),
            Play::Close,
        ])
        .until("hal")
        .tell("half")
        .end();
    reset_in_chunks => get()
        .upstream(vec![
            Play::Request,
            send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhal\r\n"),
            Play::Await("half"),
            Play::Reset,
        ])
        .until("hal")
        .tell("half")
        .end();
    reset_in_a_body_of_unknown_length => get()
        .upstream(vec![Play::Request, send("HTTP/1.1 200 OK\r\n\r\nhal"), Play::Await("half"), Play::Reset])
        .until("hal")
        .tell("half")
        .pause(300)
        .deliberate("resets_as_the_end_of_a_body", "(its end did not come)");
    more_than_the_answer => get()
        .upstreams(vec![
            vec![Play::Request, send(format!("{OK}and more")), Play::Until("never")],
            vec![Play::Request, send(OK)],
        ])
        .answer();
    an_answer_before_the_body_came => Case::raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhal")
        .upstream(vec![Play::Until("hal"), send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno")])
        .answer();
    an_answer_before_the_body_came_and_the_rest => Case::raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nhal")
        .upstream(vec![
            Play::Until("hal"),
            send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno"),
            Play::Until("fes"),
        ])
        .answer()
        .send("fes")
        .deliberate("early_answers", "(the proxy closed the connection)");
    an_answer_that_begins_before_the_body_came => Case::raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nhal")
        .upstream(vec![
            Play::Until("hal"),
            send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n12"),
            Play::Until("fes"),
            send("34"),
        ])
        .until("12")
        .send("fes")
        .until("34");
    closed_and_tried_again => get()
        .route(json!({ "retry_policy": { "retry_on": "reset", "num_retries": 1 } }))
        .upstreams(vec![vec![Play::Request, Play::Close], vec![Play::Request, send(OK)]])
        .answer();
    a_503_and_tried_again => Case::raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi")
        .route(json!({ "retry_policy": { "retry_on": "5xx", "num_retries": 2 } }))
        .upstreams(vec![
            vec![
                Play::Request,
                send("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"),
                Play::Request,
                send(OK),
            ],
            vec![Play::Request, send(OK)],
        ])
        .answer();
    tried_too_often => get()
        .route(json!({ "retry_policy": { "retry_on": "reset", "num_retries": 1 } }))
        .upstreams(vec![vec![Play::Request, Play::Close], vec![Play::Request, Play::Close]])
        .answer();
}
