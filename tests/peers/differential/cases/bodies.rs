//! How long a message is: lengths, chunks, trailers, and answers without a body.

use serde_json::json;

use crate::differential::case::{Case, Play, send};

fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n{body}")
}

fn get() -> Case {
    Case::raw("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
}

/// One connection, an answer of every status that has its own phrase somewhere.
fn phrases() -> Case {
    let statuses: Vec<u16> = (200..=208)
        .chain([226])
        .chain(300..=308)
        .chain(400..=431)
        .chain([451, 499])
        .chain(500..=511)
        .collect();
    let ask = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut plays = Vec::new();
    let mut case: Option<Case> = None;
    for status in statuses {
        plays.push(Play::Request);
        plays.push(send(format!(
            "HTTP/1.1 {status} x\r\n{}\r\n",
            if matches!(status, 204 | 304) { "" } else { "content-length: 0\r\n" }
        )));
        case = Some(case.map_or_else(|| Case::raw(ask), |c| c.send(ask)).answer());
    }
    case.unwrap_or_else(get).upstream(plays)
}

cases! {
    a_body_with_a_length => Case::raw(post("content-length: 5\r\n", "hello")).answer();
    a_body_in_chunks => Case::raw(post("transfer-encoding: chunked\r\n", "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n")).answer();
    a_chunk_with_an_extension => Case::raw(post("transfer-encoding: chunked\r\n", "5;a=b;c\r\nhello\r\n0;d\r\n\r\n")).answer();
    a_chunk_with_a_quoted_extension =>
        Case::raw(post("transfer-encoding: chunked\r\n", "5;a=\"x\"\r\nhello\r\n0\r\n\r\n")).answer();
    a_chunk_size_in_capitals_with_zeros =>
        Case::raw(post("transfer-encoding: chunked\r\n", "000A\r\nhello worl\r\n0\r\n\r\n")).answer();
    a_chunk_size_that_is_no_number => Case::raw(post("transfer-encoding: chunked\r\n", "zz\r\nhello\r\n0\r\n\r\n")).answer()
        .connects_by_chance();
    a_chunk_size_with_a_sign => Case::raw(post("transfer-encoding: chunked\r\n", "+5\r\nhello\r\n0\r\n\r\n")).answer()
        .connects_by_chance();
    a_chunk_size_with_0x => Case::raw(post("transfer-encoding: chunked\r\n", "0x5\r\nhello\r\n0\r\n\r\n")).answer()
        .connects_by_chance();
    a_chunk_size_too_large_for_64_bits =>
        Case::raw(post("transfer-encoding: chunked\r\n", "10000000000000000\r\nhello\r\n0\r\n\r\n")).answer()
        .connects_by_chance();
    a_chunk_size_with_a_blank_behind => Case::raw(post("transfer-encoding: chunked\r\n", "5 \r\nhello\r\n0\r\n\r\n")).answer();
    a_chunk_that_is_longer_than_said => Case::raw(post("transfer-encoding: chunked\r\n", "5\r\nhelloX\r\n0\r\n\r\n"))
        .answer()
        .deliberate("garbage_behind_a_chunk", "400 Bad Request");
    a_chunk_line_that_ends_with_a_bare_line_feed =>
        Case::raw(post("transfer-encoding: chunked\r\n", "5\nhello\r\n0\r\n\r\n")).answer()
        .connects_by_chance();
    an_empty_chunked_body => Case::raw(post("transfer-encoding: chunked\r\n", "0\r\n\r\n")).answer();
    chunks_and_a_length => Case::raw(post("content-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n")).answer();
    a_transfer_coding_that_nobody_knows => Case::raw(post("transfer-encoding: gzip\r\n", "")).answer();
    two_transfer_codings => Case::raw(post("transfer-encoding: gzip, chunked\r\n", "0\r\n\r\n")).answer();
    chunked_twice => Case::raw(post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n")).answer();
    chunked_in_capitals => Case::raw(post("transfer-encoding: Chunked\r\n", "2\r\nhi\r\n0\r\n\r\n")).answer();
    two_different_lengths => Case::raw(post("content-length: 1\r\ncontent-length: 2\r\n", "ab")).answer();
    two_equal_lengths => Case::raw(post("content-length: 2\r\ncontent-length: 2\r\n", "ab")).answer();
    a_list_of_equal_lengths => Case::raw(post("content-length: 2, 2\r\n", "ab")).answer();
    a_length_that_is_no_number => Case::raw(post("content-length: x\r\n", "ab")).answer();
    a_length_with_a_sign => Case::raw(post("content-length: +2\r\n", "ab")).answer();
    a_length_below_zero => Case::raw(post("content-length: -2\r\n", "ab")).answer();
    a_post_without_a_length => Case::raw(post("", "")).answer();
    a_delete_without_a_length => Case::raw("DELETE / HTTP/1.1\r\nhost: a\r\n\r\n").answer();
    an_options_without_a_length => Case::raw("OPTIONS / HTTP/1.1\r\nhost: a\r\n\r\n").answer();
    a_trace_without_a_length => Case::raw("TRACE / HTTP/1.1\r\nhost: a\r\n\r\n").answer();
    a_propfind_without_a_length => Case::raw("PROPFIND / HTTP/1.1\r\nhost: a\r\n\r\n").answer();
    a_patch_without_a_length => Case::raw("PATCH / HTTP/1.1\r\nhost: a\r\n\r\n").answer();
    a_get_with_a_body => Case::raw("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").answer();
    a_get_in_chunks => Case::raw("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n").answer();
    a_delete_with_length_zero => Case::raw("DELETE / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").answer();

    trailers_of_a_request_pass => Case::raw(post(
        "transfer-encoding: chunked\r\ntrailer: x-t\r\n",
        "2\r\nhi\r\n0\r\nX-T: 1\r\nx-u: 2\r\n\r\n",
    ))
    .hcm(json!({ "http_protocol_options": { "enable_trailers": true } }))
    .upstream_trailers()
    .answer();
    trailers_of_a_request_are_dropped => Case::raw(post(
        "transfer-encoding: chunked\r\ntrailer: x-t\r\n",
        "2\r\nhi\r\n0\r\nx-t: 1\r\n\r\n",
    ))
    .answer();
    malformed_trailers_of_a_request => Case::raw(post(
        "transfer-encoding: chunked\r\n",
        "2\r\nhi\r\n0\r\nnonsense\r\n\r\n",
    ))
    .hcm(json!({ "http_protocol_options": { "enable_trailers": true } }))
    .answer()
        .connects_by_chance();
    trailers_of_an_answer_pass => get()
        .hcm(json!({ "http_protocol_options": { "enable_trailers": true } }))
        .upstream_trailers()
        .reply("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n2\r\nhi\r\n0\r\nx-t: 1\r\n\r\n")
        .answer();
    trailers_of_an_answer_are_dropped => get()
        .reply("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n2\r\nhi\r\n0\r\nx-t: 1\r\n\r\n")
        .answer();

    head_with_a_length => Case::raw("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n")
        .reply("HTTP/1.1 200 OK\r\ncontent-length: 42\r\n\r\n")
        .answer_to("HEAD");
    head_in_chunks => Case::raw("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n")
        .reply("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        .answer_to("HEAD");
    head_without_a_length => Case::raw("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n")
        .reply("HTTP/1.1 200 OK\r\nx-a: 1\r\n\r\n")
        .answer_to("HEAD");
    status_204 => get().reply("HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n").answer();
    status_204_with_a_length_of_zero => get().reply("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n").answer();
    status_204_in_chunks => get().reply("HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n").answer();
    status_204_with_a_body => get().reply("HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nhi").answer();
    status_304_with_a_length => get().reply("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\netag: x\r\n\r\n").answer();
    status_205 => get().reply("HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n").answer();
    status_304_without_a_length => get().reply("HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n").answer();
    status_304_in_chunks => get().reply("HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n").answer();
    the_phrases_of_all_statuses => phrases();
    a_status_that_nobody_knows => get().reply("HTTP/1.1 799 Whatever\r\ncontent-length: 2\r\n\r\nhi").answer();
    a_reason_phrase_of_its_own => get().reply("HTTP/1.1 200 All is well\r\ncontent-length: 2\r\n\r\nhi").answer();
    an_answer_without_a_reason_phrase => get().reply("HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nhi").answer();
    an_answer_without_a_length => get()
        .upstream(vec![Play::Request, send("HTTP/1.1 200 OK\r\n\r\nuntil the end"), Play::Fin])
        .answer();
    an_answer_of_http_10 => get()
        .upstream(vec![Play::Request, send("HTTP/1.0 200 OK\r\n\r\nuntil the end"), Play::Fin])
        .answer();
    an_answer_with_chunks_and_a_length => get()
        .reply("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        .answer();
    an_answer_with_two_lengths => get()
        .reply("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi")
        .answer();
    an_answer_with_a_bad_chunk => get()
        .reply("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhi\r\n0\r\n\r\n")
        .end();
    an_answer_with_fields_of_the_connection => get()
        .reply(
            "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-gone\r\nx-gone: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: x\r\nserver: up\r\ndate: yesterday\r\nX-Upper: A\r\ncontent-length: 2\r\n\r\nhi",
        )
        .answer();
    an_answer_with_a_malformed_field => get().reply("HTTP/1.1 200 OK\r\nnonsense\r\ncontent-length: 2\r\n\r\nhi").answer();
    an_answer_that_is_not_http => get().reply("nonsense\r\n\r\n").answer();
    an_answer_with_a_head_too_large => get()
        .reply(format!("HTTP/1.1 200 OK\r\nx-a: {}\r\ncontent-length: 2\r\n\r\nhi", "a".repeat(70_000)))
        .answer();
    an_answer_with_a_head_far_too_large => get()
        .reply(format!("HTTP/1.1 200 OK\r\nx-a: {}\r\ncontent-length: 2\r\n\r\nhi", "a".repeat(90_000)))
        .answer();
    an_answer_with_too_many_fields => get()
        .reply(format!(
            "HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nhi",
            (0..101).map(|i| format!("x-{i}: 1\r\n")).collect::<String>()
        ))
        .answer();
}
