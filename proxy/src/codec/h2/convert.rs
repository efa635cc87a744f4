//! Between the h2 crate's messages and ours.

use bytes::{Bytes, BytesMut};
use h2::Reason;
use http::header::{CONNECTION, COOKIE, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use crate::codec::headers::Headers;
use crate::codec::message::{Protocol, RequestHead, ResetReason, ResponseHead};

/// Fields in wire order as far as the map keeps it. Cookie crumbs become one field again (RFC 9113, section 8.2.3).
pub(super) fn headers(map: HeaderMap) -> Headers {
    let mut headers = Headers::with_capacity(map.len() + 8);
    let mut cookies = BytesMut::new();
    let mut last = None;
    for (name, value) in map {
        if name.is_some() {
            last = name;
        }
        let Some(name) = &last else { continue };
        if *name == COOKIE {
            if !cookies.is_empty() {
                cookies.extend_from_slice(b"; ");
            }
            cookies.extend_from_slice(value.as_bytes());
        } else {
            headers.append(name.clone(), value);
        }
    }
    if !cookies.is_empty()
        && let Ok(value) = HeaderValue::from_maybe_shared(cookies.freeze())
    {
        headers.append(COOKIE, value);
    }
    headers
}

/// What belongs to one HTTP/1 connection means nothing here, and may not be sent (RFC 9113, section 8.2.2).
fn is_connections_own(name: &HeaderName, value: &HeaderValue) -> bool {
    *name == CONNECTION
        || *name == TRANSFER_ENCODING
        || *name == UPGRADE
        || name.as_str() == "keep-alive"
        || name.as_str() == "proxy-connection"
        || (*name == TE && value.as_bytes() != b"trailers")
}

/// Fields whose value is another in each message. In the connection's table (RFC 7541, section 2.3.2) they would only put out
/// what comes again, and each would be compared with all those before it: they are never indexed (section 6.2.3).
fn is_unique(name: &HeaderName) -> bool {
    matches!(name.as_str(), "x-request-id" | "traceparent" | "x-b3-traceid" | "x-b3-spanid" | "b3")
}

pub(super) fn map(headers: Headers) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, mut value) in headers {
        if !is_connections_own(&name, &value) {
            if is_unique(&name) {
                value.set_sensitive(true);
            }
            map.append(name, value);
        }
    }
    map
}

/// A request's head; an error is a reason to refuse the stream.
pub(super) fn request_head(parts: http::request::Parts) -> Result<RequestHead, Reason> {
    let upgrade =
        parts.extensions.get::<h2::ext::Protocol>().map(|p| Bytes::copy_from_slice(p.as_str().as_bytes()));
    let mut headers = headers(parts.headers);
    let authority = match parts.uri.authority() {
        Some(authority) => Bytes::copy_from_slice(authority.as_str().as_bytes()),
        None => headers.get(&HOST).map(|v| Bytes::copy_from_slice(v.as_bytes())).unwrap_or_default(),
    };
    headers.remove(&HOST);
    let path = match parts.uri.path_and_query() {
        Some(path) if parts.method != Method::CONNECT || upgrade.is_some() => {
            Bytes::copy_from_slice(path.as_str().as_bytes())
        }
        _ => Bytes::new(),
    };
    if path.is_empty() && parts.method != Method::CONNECT {
        return Err(Reason::PROTOCOL_ERROR);
    }
    let scheme = parts.uri.scheme_str().unwrap_or("http").to_owned().into();
    Ok(RequestHead {
        method: parts.method,
        scheme,
        authority,
        path,
        protocol: Protocol::Http2,
        upgrade,
        headers,
    })
}

/// A request to send; `None` if its head cannot be written as one.
pub(super) fn request(head: RequestHead) -> Option<http::Request<()>> {
    let mut uri = Uri::builder().authority(Authority::from_maybe_shared(head.authority).ok()?);
    if head.method != Method::CONNECT || head.upgrade.is_some() {
        let path = if head.path.is_empty() { Bytes::from_static(b"/") } else { head.path };
        uri = uri
            .scheme(Scheme::try_from(head.scheme.as_ref()).ok()?)
            .path_and_query(PathAndQuery::from_maybe_shared(path).ok()?);
    }
    let mut request = http::Request::new(());
    *request.uri_mut() = uri.build().ok()?;
    *request.method_mut() = head.method;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = map(head.headers);
    if let Some(upgrade) = head.upgrade {
        let name = std::str::from_utf8(&upgrade).ok()?;
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(h2::ext::Protocol::from(name));
    }
    Some(request)
}

pub(super) fn response_head(parts: http::response::Parts) -> ResponseHead {
    ResponseHead { status: parts.status, protocol: Protocol::Http2, headers: headers(parts.headers) }
}

pub(super) fn response(head: ResponseHead) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.status_mut() = head.status;
    *response.version_mut() = http::Version::HTTP_2;
    *response.headers_mut() = map(head.headers);
    response
}

/// The length of fields' names and values, as far as they are sent.
pub(super) fn plain(headers: &Headers) -> u64 {
    let sent = headers.iter().filter(|(name, value)| !is_connections_own(name, value));
    sent.map(|(name, value)| (name.as_str().len() + value.len()) as u64).sum()
}

/// The same of a request's head, with its pseudo-headers.
pub(super) fn plain_request(head: &RequestHead) -> u64 {
    let mut length = plain(&head.headers) + (":method".len() + head.method.as_str().len()) as u64;
    let none = Bytes::new();
    let upgrade = head.upgrade.as_ref().unwrap_or(&none);
    let pseudo = [
        (":scheme", &head.scheme),
        (":authority", &head.authority),
        (":path", &head.path),
        (":protocol", upgrade),
    ];
    for (name, value) in pseudo.into_iter().filter(|(_, value)| !value.is_empty()) {
        length += (name.len() + value.len()) as u64;
    }
    length
}

/// The same of an answer's head.
pub(super) fn plain_response(headers: &Headers) -> u64 {
    plain(headers) + ":status200".len() as u64
}

/// Why a stream ended, from an error of the crate.
pub(super) fn reset_reason(error: &h2::Error) -> ResetReason {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => ResetReason::RemoteRefused,
        // A connection that is told to go away by its peer did not process what it had not begun.
        Some(Reason::NO_ERROR) if error.is_go_away() => ResetReason::RemoteRefused,
        // The connection ended because we could not make sense of what came.
        Some(_) if error.is_go_away() && error.is_library() => ResetReason::ProtocolError,
        _ if error.is_io() || error.is_go_away() => ResetReason::ConnectionTermination,
        Some(Reason::PROTOCOL_ERROR) if !error.is_remote() => ResetReason::ProtocolError,
        Some(_) if error.is_remote() => ResetReason::Remote,
        Some(_) => ResetReason::ProtocolError,
        None => ResetReason::ConnectionTermination,
    }
}

/// The code that tells a peer why we reset its stream.
pub(super) fn reason(reason: ResetReason) -> Reason {
    match reason {
        ResetReason::LocalRefused | ResetReason::RemoteRefused => Reason::REFUSED_STREAM,
        ResetReason::ProtocolError => Reason::PROTOCOL_ERROR,
        ResetReason::Overflow => Reason::ENHANCE_YOUR_CALM,
        ResetReason::Local | ResetReason::Remote | ResetReason::ConnectionTermination => {
            Reason::INTERNAL_ERROR
        }
    }
}
