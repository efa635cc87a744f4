//! Asking by gRPC: one unary call, its frames written here, over the cluster's own HTTP/2 connections.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::service::auth::v3 as auth;
use xds_protos::envoy::service::auth::v3::check_response::HttpResponse;
use xds_protos::prost::Message;

use super::verdict::{Answer, Change, Changes, Denial};
use crate::cluster::Cluster;
use crate::codec::{Body, Protocol};
use crate::io::ConnectionInfo;
use crate::route::header_ops::AppendAction;
use crate::router::call;
use crate::state::Slot;

const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";
const TRAILERS: HeaderName = HeaderName::from_static("te");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The most of an answer that is read, in bytes.
const LONGEST: usize = 4 << 20;

/// A gRPC service.
#[derive(Debug)]
pub struct GrpcService {
    /// Its cluster.
    pub cluster: Arc<Slot<Cluster>>,
    /// What it is called there.
    pub authority: Bytes,
    /// For the whole call; zero for no limit.
    pub timeout: Duration,
    /// Further fields of calls.
    pub metadata: Vec<(HeaderName, HeaderValue)>,
}

impl GrpcService {
    /// Asks; none if there is no answer.
    pub async fn ask(
        &self,
        request: &auth::CheckRequest,
        connection: &Arc<ConnectionInfo>,
    ) -> Option<auth::CheckResponse> {
        let mut head =
            call::head(Method::POST, self.authority.clone(), Bytes::from_static(METHOD.as_bytes()));
        head.protocol = Protocol::Http2;
        let headers = &mut head.headers;
        headers.append(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.append(TRAILERS, HeaderValue::from_static("trailers"));
        if !self.timeout.is_zero()
            && let Ok(value) = HeaderValue::try_from(format!("{}m", self.timeout.as_millis()))
        {
            headers.append(GRPC_TIMEOUT, value);
        }
        for (name, value) in &self.metadata {
            headers.append(name.clone(), value.clone());
        }
        let work = async {
            let body = Body::Full(framed(request));
            let mut reply =
                call::call(&self.cluster, head, body, self.timeout, connection.clone()).await.ok()?;
            if reply.head.status != StatusCode::OK {
                return None;
            }
            let (bytes, trailers) = call::read(&mut reply.body, LONGEST).await.ok()?;
            let status = trailers.as_ref().and_then(|t| t.get_str(&GRPC_STATUS).map(str::to_owned));
            let status = status.or_else(|| reply.head.headers.get_str(&GRPC_STATUS).map(str::to_owned))?;
            if status != "0" {
                return None;
            }
            auth::CheckResponse::decode(unframed(&bytes)?).ok()
        };
        if self.timeout.is_zero() {
            return work.await;
        }
        tokio::time::timeout(self.timeout, work).await.ok().flatten()
    }
}

/// A message behind its five bytes: not compressed, and its length.
fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // A buffer that grows has room.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

/// The message behind its five bytes.
fn unframed(bytes: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = bytes.split_at_checked(5)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    (prefix[0] == 0 && message.len() == length as usize).then_some(message)
}

/// What an answer says.
pub fn read(response: auth::CheckResponse) -> Answer {
    let ok = response.status.as_ref().is_none_or(|s| s.code == 0);
    let mut metadata = response.dynamic_metadata;
    match response.http_response {
        Some(HttpResponse::ErrorResponse(error)) => {
            Answer::Error(error.status.and_then(|s| status_of(s.code)).filter(|_| true))
        }
        Some(HttpResponse::OkResponse(response)) if ok => Answer::Ok(Box::new(changes(response, metadata))),
        _ if ok => Answer::Ok(Box::new(Changes { metadata, ..Changes::default() })),
        Some(HttpResponse::DeniedResponse(denied)) => Answer::Denied(Box::new(Denial {
            status: denied.status.and_then(|s| status_of(s.code)).unwrap_or(StatusCode::FORBIDDEN),
            body: denied.body.into(),
            headers: denied.headers.into_iter().filter_map(|o| field(o, false)).collect(),
            metadata: metadata.take(),
        })),
        _ => Answer::Denied(Box::new(Denial {
            status: StatusCode::FORBIDDEN,
            body: Bytes::new(),
            headers: Vec::new(),
            metadata,
        })),
    }
}

fn status_of(code: i32) -> Option<StatusCode> {
    u16::try_from(code).ok().filter(|c| *c != 0).and_then(|c| StatusCode::from_u16(c).ok())
}

fn changes(ok: auth::OkHttpResponse, metadata: Option<xds_protos::prost_types::Struct>) -> Changes {
    let mut changes = Changes { metadata, ..Changes::default() };
    for option in ok.headers {
        let joins = option.append == Some(true);
        if let Some(change) = field(option, true) {
            if joins {
                changes.join.push((change.name, change.value));
            } else {
                changes.request.push(change);
            }
        }
    }
    // Fields that say where a request goes cannot be removed.
    let names =
        ok.headers_to_remove.iter().filter(|n| !n.starts_with(':') && !n.eq_ignore_ascii_case("host"));
    changes.remove.extend(names.filter_map(|n| HeaderName::from_bytes(n.as_bytes()).ok()));
    changes.query.extend(ok.query_parameters_to_set.into_iter().map(|p| (p.key, p.value)));
    changes.query_remove = ok.query_parameters_to_remove;
    changes.response.extend(ok.response_headers_to_add.into_iter().filter_map(|o| field(o, false)));
    changes
}

/// A change of a field. Where nothing is said of a field that is there, a request's is replaced.
fn field(option: core::HeaderValueOption, of_request: bool) -> Option<Change> {
    use core::header_value_option::HeaderAppendAction as Proto;
    let header = option.header?;
    let action = match (option.append, Proto::try_from(option.append_action)) {
        (Some(true), _) => AppendAction::AppendOrAdd,
        (Some(false), _) => AppendAction::OverwriteOrAdd,
        (None, Ok(Proto::AddIfAbsent)) => AppendAction::AddIfAbsent,
        (None, Ok(Proto::OverwriteIfExists)) => AppendAction::OverwriteIfExists,
        (None, Ok(Proto::AppendIfExistsOrAdd)) if !of_request => AppendAction::AppendOrAdd,
        (None, _) => AppendAction::OverwriteOrAdd,
    };
    let value = if header.raw_value.is_empty() { header.value.into() } else { header.raw_value };
    Some(Change {
        name: HeaderName::from_bytes(header.key.as_bytes()).ok()?,
        value: HeaderValue::from_maybe_shared(value).ok()?,
        action,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_framed_and_only_a_whole_one_is_taken() {
        let message = auth::CheckResponse { status: Some(Default::default()), ..Default::default() };
        let bytes = framed(&message);
        assert_eq!(auth::CheckResponse::decode(unframed(&bytes).unwrap()).unwrap(), message);
        assert!(unframed(&bytes[..bytes.len() - 1]).is_none());
        assert!(unframed(&[1, 0, 0, 0, 0]).is_none(), "compressed");
        assert!(unframed(&[]).is_none());
    }
}
