//! Upgrades: WebSocket over HTTP/1.

use serde_json::json;

use crate::differential::case::{Case, Play, send};

const ASK: &str = "GET /chat HTTP/1.1\r\nhost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nsec-websocket-key: x\r\nsec-websocket-version: 13\r\n\r\n";
const GRANT: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nsec-websocket-accept: y\r\n\r\n";

fn websocket(client: &str) -> Case {
    Case::raw(client).hcm(json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] }))
}

cases! {
    a_websocket => websocket(ASK)
        .upstream(vec![Play::Head, send(GRANT), Play::Until("ping"), send("pong"), Play::Until("bye")])
        .until("\r\n\r\n")
        .send("ping")
        .until("pong")
        .send("bye")
        .logged("tunnels_that_end_in_the_log", "via_upstream");
    a_websocket_whose_first_bytes_come_with_the_request => websocket(&format!("{ASK}ping"))
        .upstream(vec![Play::Head, send(GRANT), Play::Until("ping"), send("pong")])
        .until("pong")
        .logged("tunnels_that_end_in_the_log", "via_upstream");
    a_websocket_whose_first_bytes_come_with_the_answer => websocket(ASK)
        .upstream(vec![Play::Head, send(format!("{GRANT}hello"))])
        .until("hello")
        .logged("tunnels_that_end_in_the_log", "via_upstream");
    a_websocket_that_the_client_ends => websocket(ASK)
        .upstream(vec![Play::Head, send(GRANT)])
        .until("\r\n\r\n")
        .fin()
        .logged("tunnels_that_end_in_the_log", "via_upstream");
    a_websocket_that_the_upstream_ends => websocket(ASK)
        .upstream(vec![Play::Head, send(format!("{GRANT}bye")), Play::Await("bye"), Play::Fin])
        .until("bye")
        .tell("bye")
        .end()
        .logged("tunnels_that_end_in_the_log", "via_upstream");
    a_websocket_that_is_refused => websocket(ASK)
        .reply("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno")
        .answer();
    a_websocket_answered_with_200 => websocket(ASK)
        .reply("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno")
        .answer()
        .deliberate("upgrades_answered_with_200", "body: no");
    a_websocket_whose_connection_field_says_more =>
        websocket(&ASK.replace("Connection: Upgrade", "connection: keep-alive, upgrade, x-gone\r\nx-gone: 1"))
            .upstream(vec![Play::Head, send(GRANT)])
            .until("\r\n\r\n")
        .logged("tunnels_that_end_in_the_log", "via_upstream");
    a_websocket_without_an_answer => websocket(ASK).upstream(vec![Play::Head, Play::Close]).answer();
    a_websocket_where_none_is_configured => Case::raw(ASK).answer();
    another_protocol_than_configured => websocket(&ASK.replace("websocket\r\nsec", "other\r\nsec")).answer();
    upgrade_to_h2c => Case::raw(
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
    )
    .answer();
    upgrade_without_connection => websocket("GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n\r\n").answer();
    a_websocket_with_a_body_length => websocket(&ASK.replace("host: a\r\n", "host: a\r\ncontent-length: 2\r\n"))
        .upstream(vec![Play::Head, send(GRANT)])
        .until("\r\n\r\n")
        .logged("tunnels_that_end_in_the_log", "UC");
}
