//! A response as it must look when it leaves: date, server, via, request id, no hop-by-hop fields.

use http::{HeaderName, HeaderValue, StatusCode, header};

use super::config::{HcmConfig, ServerHeader};
use super::date;
use super::request::append_via;
use super::request_id::REQUEST_ID;
use crate::codec::ResponseHead;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Shapes a response's head. `upgraded`: it accepts an upgrade, whose fields stay.
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
    if config.request_id_in_response
        && let Some(id) = request_id
    {
        headers.set(REQUEST_ID, id.clone());
    }
}
