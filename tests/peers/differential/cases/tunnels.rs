//! CONNECT, passed on and ended here, and upgrades between HTTP versions.

use serde_json::{Value, json};

use crate::differential::case::{Case, H2Request, Play, send};

const CONNECT: &str = "CONNECT b:80 HTTP/1.1\r\nhost: b:80\r\n\r\n";
const GRANT: &str = "HTTP/1.1 200 OK\r\n\r\n";

/// A route for CONNECT to the case's cluster.
fn tunnel(name: &str, config: Value) -> Value {
    json!([{ "match": { "connect_matcher": {} }, "route": { "cluster": name, "upgrade_configs": [config] } }])
}

fn terminate(name: &str) -> Value {
    tunnel(name, json!({ "upgrade_type": "CONNECT", "connect_config": {} }))
}

fn post(name: &str, allow: bool) -> Value {
    json!([
        { "match": { "connect_matcher": {} }, "route": { "cluster": name, "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": { "allow_post": allow } }] } },
        { "match": { "prefix": "/" }, "route": { "cluster": name, "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": { "allow_post": allow } }] } },
    ])
}

fn h2(method: &'static str, protocol: Option<&'static str>, path: &'static str) -> H2Request {
    H2Request {
        method,
        scheme: "http",
        authority: "b:80",
        path,
        protocol,
        body: vec!["ping"],
        ..H2Request::default()
    }
}

fn websocket() -> Value {
    json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }], "http2_protocol_options": { "allow_connect": true } })
}

cases! {
    a_connect_that_ends_here => Case::raw(CONNECT).routes(terminate("a_connect_that_ends_here"))
        .upstream(vec![Play::Until("ping"), send("pong"), Play::Until("bye")]).until("\r\n\r\n").send("ping").until("pong").send("bye");
    a_connect_whose_upstream_speaks_first => Case::raw(CONNECT).routes(terminate("a_connect_whose_upstream_speaks_first"))
        .upstream(vec![send("hello"), Play::Until("bye"), Play::Fin]).until("hello").send("bye").end();
    a_connect_that_the_upstream_ends => Case::raw(CONNECT).routes(terminate("a_connect_that_the_upstream_ends"))
        .upstream(vec![send("hello"), Play::Await("seen"), Play::Close]).until("hello").tell("seen").end();
    a_connect_that_nobody_takes => Case::raw(CONNECT).routes(terminate("a_connect_that_nobody_takes")).refusing().answer();
    a_connect_switched_off => Case::raw(CONNECT).routes(tunnel("a_connect_switched_off", json!({ "upgrade_type": "CONNECT", "enabled": false, "connect_config": {} }))).answer_to("CONNECT");
    a_connect_without_a_route_for_it => Case::raw(CONNECT).answer_to("GET");
    a_connect_over_http_2_that_ends_here => Case::h2(vec![H2Request { path: "", ..h2("CONNECT", None, "") }]).routes(terminate("a_connect_over_http_2_that_ends_here"))
        .upstream(vec![Play::Until("ping"), send("pong"), Play::Close]);
    a_post_as_connect => Case::h2(vec![h2("POST", None, "/")]).routes(post("a_post_as_connect", true))
        .upstream(vec![Play::Until("ping"), send("pong"), Play::Close]);
    a_post_that_is_none => Case::h2(vec![H2Request { until: None, ..h2("POST", None, "/") }]).routes(post("a_post_that_is_none", false));
    a_connect_passed_on => Case::raw(CONNECT).routes(tunnel("a_connect_passed_on", json!({ "upgrade_type": "CONNECT" })))
        .upstream(vec![Play::Head, send(GRANT), Play::Until("ping"), send("pong"), Play::Until("bye")]).until("\r\n\r\n").send("ping").until("pong").send("bye")
        .logged("tunnels_that_end_in_the_log", "via_upstream");
    a_connect_refused_by_the_upstream => Case::raw(CONNECT).routes(tunnel("a_connect_refused_by_the_upstream", json!({ "upgrade_type": "CONNECT" })))
        .reply("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").answer();
    a_websocket_over_http_2_to_an_http_1_upstream => Case::h2(vec![H2Request { body: vec![], ..h2("CONNECT", Some("websocket"), "/chat") }]).hcm(websocket())
        .upstream(vec![Play::Head, send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\npong"), Play::Pause(300)])
        .logged("status_of_websockets_over_http2_in_the_log", " 200 ");
    a_websocket_over_http_2_that_is_refused => Case::h2(vec![H2Request { until: Some("no"), body: vec![], ..h2("CONNECT", Some("websocket"), "/chat") }]).hcm(websocket())
        .reply("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno");
    a_websocket_over_http_2_where_none_is_configured => Case::h2(vec![H2Request { until: None, ..h2("CONNECT", Some("websocket"), "/chat") }]).hcm(json!({ "http2_protocol_options": { "allow_connect": true } }));
}
