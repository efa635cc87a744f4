//! Informational answers and Expect.

use serde_json::json;

use crate::differential::case::{Case, Play, send};

const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

cases! {
    expect_is_answered_by_the_proxy => Case::raw(POST).until("100 Continue\r\n\r\n").send("hello").answer();
    expect_with_the_body_at_once => Case::raw(format!("{POST}hello")).answer();
    expect_in_capitals => Case::raw(POST.replace("100-continue", "100-Continue")).until("100 Continue\r\n\r\n").send("hello").answer();
    expect_of_something_else => Case::raw(POST.replace("100-continue", "200-ok")).send("hello").answer();
    expect_without_a_body => Case::raw("GET / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n\r\n").answer();
    expect_is_passed_on => Case::raw(POST)
        .hcm(json!({ "proxy_100_continue": true }))
        .upstream(vec![Play::Head, send("HTTP/1.1 100 Continue\r\n\r\n"), Play::Until("hello"), send(OK)])
        .until("100 Continue\r\n\r\n")
        .send("hello")
        .answer();
    expect_is_passed_on_and_refused => Case::raw(POST)
        .hcm(json!({ "proxy_100_continue": true }))
        .upstream(vec![
            Play::Head,
            send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"),
            Play::Fin,
        ])
        .answer();
    early_hints => Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .reply(format!("HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n{OK}"))
        .answer();
    early_hints_twice => Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .reply(format!("HTTP/1.1 103 Early Hints\r\nlink: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: 2\r\n\r\n{OK}"))
        .answer();
    processing => Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .reply(format!("HTTP/1.1 102 Processing\r\n\r\n{OK}"))
        .answer();
    an_unasked_100 => Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .reply(format!("HTTP/1.1 100 Continue\r\n\r\n{OK}"))
        .answer();
    an_unasked_101 => Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .reply("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")
        .answer()
        .deliberate("unasked_101", "502 Bad Gateway");
}
