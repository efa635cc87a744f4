//! A response as it must look when it leaves: date, server, via, request id, no hop-by-hop fields.

use std::task::{Context, Poll};

use http::{HeaderName, HeaderValue, StatusCode, header};

use super::config::{HcmConfig, ServerHeader};
use super::date;
use super::request::append_via;
use super::request_id::REQUEST_ID;
use crate::codec::{Body, BodyError, BodyStream, Frame, Protocol, ResponseHead};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Gives the answer to an upgrade the form of the downstream's version: 101 with its fields in HTTP/1, 200 in HTTP/2.
pub fn translate_upgrade(head: &mut ResponseHead, token: &[u8], downstream: Protocol) {
    match (downstream, head.status) {
        (Protocol::Http2, StatusCode::SWITCHING_PROTOCOLS) => head.status = StatusCode::OK,
        (Protocol::Http10 | Protocol::Http11, StatusCode::OK) if head.protocol == Protocol::Http2 => {
            head.status = StatusCode::SWITCHING_PROTOCOLS;
            head.headers.set(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            if let Ok(token) = HeaderValue::from_bytes(token) {
                head.headers.set(header::UPGRADE, token);
            }
        }
        _ => {}
    }
}

/// Shapes a response's head. The fields of an accepted upgrade stay. `request_id`: what is told of the request's id.
pub fn shape(head: &mut ResponseHead, config: &HcmConfig, request_id: Option<&HeaderValue>) {
    let headers = &mut head.headers;
    if !headers.contains(&header::DATE) {
        headers.append(header::DATE, date::now());
    }
    match config.server_header {
        ServerHeader::Overwrite => headers.set(header::SERVER, config.server_name.clone()),
        ServerHeader::AppendIfAbsent if !headers.contains(&header::SERVER) => {
            headers.append(header::SERVER, config.server_name.clone());
        }
        _ => {}
    }
    let upgraded = head.status == StatusCode::SWITCHING_PROTOCOLS;
    headers.retain(|name, _| {
        !(*name == header::TRANSFER_ENCODING
            || *name == KEEP_ALIVE
            || *name == PROXY_CONNECTION
            || (!upgraded && (*name == header::CONNECTION || *name == header::UPGRADE)))
    });
    if let Some(via) = &config.via {
        append_via(headers, via);
    }
    if let Some(id) = request_id {
        headers.set(REQUEST_ID, id.clone());
    }
}

/// The body of an answer to HEAD: nothing, at once, or when its source has come to its end, which may be a bad one.
pub fn without_data(body: Body) -> Body {
    match body {
        Body::Stream(_) => Body::stream(Dropped(body)),
        _ => Body::Empty,
    }
}

struct Dropped(Body);

impl BodyStream for Dropped {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        loop {
            match self.0.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(_)))) => {}
                polled => return polled,
            }
        }
    }
}
