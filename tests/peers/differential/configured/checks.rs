//! Authorization and rate limits by gRPC, as the server behind an endpoint plays them: what it is asked, in a form that both
//! sides share, and its answers.

use std::fmt::Write as _;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::Value;
use xds_protos::envoy::service::auth::v3::CheckRequest;
use xds_protos::envoy::service::ratelimit::v3::RateLimitRequest;
use xds_protos::prost::Message;

use super::spec::FullAnswer;
use super::upstream::fields;
use crate::differential::normalize::field;

/// The method that asks whether a limit is reached.
const LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// Whether a request asks for an authorization, or whether a limit is reached.
pub fn is_check(request: &http::Request<h2::RecvStream>) -> bool {
    [LIMIT, "/envoy.service.auth.v3.Authorization/Check"].contains(&request.uri().path())
}

/// What was asked, without what differs from request to request: the client's port, the time, ids.
pub async fn text(request: http::Request<h2::RecvStream>) -> String {
    let (parts, stream) = request.into_parts();
    let data = body(http::Request::new(stream)).await;
    let mut text = format!("{} {}\n", parts.method, parts.uri);
    let mut lines: Vec<_> =
        parts.headers.iter().map(|(n, v)| field(&format!("{n}: {}", v.as_bytes().escape_ascii()))).collect();
    lines.sort();
    lines.iter().for_each(|line| _ = writeln!(text, "{line}"));
    if parts.uri.path() == LIMIT {
        return match data.get(5..).map(RateLimitRequest::decode) {
            Some(Ok(limit)) => {
                let json = serde_json::to_string_pretty(&xds_protos::json::to_value(&limit)).unwrap();
                text + "  limit: " + &json.replace("127.30.3.2", "127.30.3.1") + "\n"
            }
            other => format!("{text}  no question: {other:?}\n"),
        };
    }
    match data.get(5..).map(CheckRequest::decode) {
        Some(Ok(check)) => {
            let mut json = xds_protos::json::to_value(&check);
            same(&mut json["attributes"]);
            let json = serde_json::to_string_pretty(&json).unwrap().replace("127.30.3.2", "127.30.3.1");
            text + "  check: " + &json + "\n"
        }
        other => format!("{text}  no check: {other:?}\n"),
    }
}

/// A request's whole body.
pub async fn body(request: http::Request<h2::RecvStream>) -> Vec<u8> {
    let mut stream = request.into_body();
    let mut data = Vec::new();
    while let Some(Ok(piece)) = stream.data().await {
        let _ = stream.flow_control().release_capacity(piece.len());
        data.extend_from_slice(&piece);
    }
    data
}

fn same(attributes: &mut Value) {
    let has = |value: &Value| !value.is_null();
    let source = &mut attributes["source"]["address"]["socket_address"];
    if has(&source["port_value"]) {
        source["port_value"] = "<port>".into();
    }
    let request = &mut attributes["request"];
    for (at, text) in [("time", "<time>")] {
        if has(&request[at]) {
            request[at] = text.into();
        }
    }
    let http = &mut request["http"];
    if has(&http["id"]) {
        http["id"] = "<id>".into();
    }
    if has(&http["headers"]["x-request-id"]) {
        http["headers"]["x-request-id"] = "<id>".into();
    }
    for field in http["header_map"]["headers"].as_array_mut().into_iter().flatten() {
        if field["key"] == "x-request-id" {
            field["raw_value"] = "<id>".into();
        }
    }
    if let Some(list) = http["header_map"]["headers"].as_array_mut() {
        list.sort_by_key(|f| f["key"].as_str().unwrap_or_default().to_owned());
    }
    prune(attributes);
}

/// Looking for something that is not there left a null.
fn prune(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.values_mut().for_each(prune);
        fields.retain(|_, v| !v.is_null() && v.as_object().is_none_or(|o| !o.is_empty()));
    }
}

/// The message that an answer has: its type, and its fields.
pub fn message(answer: &FullAnswer) -> Option<(&'static str, &Value)> {
    let check = answer.check.as_ref().map(|check| ("envoy.service.auth.v3.CheckResponse", check));
    check.or(answer.limit.as_ref().map(|limit| ("envoy.service.ratelimit.v3.RateLimitResponse", limit)))
}

/// Answers with a message.
pub async fn respond(
    mut respond: h2::server::SendResponse<Bytes>,
    mut head: http::Response<()>,
    (kind, message): (&str, &Value),
    answer: &FullAnswer,
) {
    let message = xds_protos::json::encode(kind, message).unwrap();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.extend_from_slice(&message);
    head.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    let _ = stream.send_data(frame.freeze(), false);
    let mut trailers = fields(&answer.trailers);
    if trailers.is_empty() {
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    }
    let _ = stream.send_trailers(trailers);
}
