//! What an authorization service that is asked by gRPC answers.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use xds_protos::envoy::config::core::v3 as core;
use xds_protos::envoy::service::auth::v3 as auth;
use xds_protos::envoy::service::auth::v3::check_response::HttpResponse;

use super::verdict::{Answer, Change, Changes, Denial};
use crate::route::header_ops::AppendAction;

/// The service's one method.
pub const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";

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
