//! Answers that the proxy gives itself, in the words and with the codes that Envoy uses.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use crate::codec::{Body, Headers, Protocol, Reply, RequestHead, ResponseHead, digits};
use crate::route::matching::is_grpc;
use crate::telemetry::Details;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer of the proxy's own.
#[derive(Clone, Debug)]
pub struct LocalReply {
    /// The status.
    pub status: StatusCode,
    /// The text; may be empty.
    pub body: Bytes,
    /// Further fields.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Envoy's response code detail.
    pub details: Details,
    /// The gRPC status for gRPC requests, where it does not follow from the HTTP status.
    pub grpc_status: Option<u32>,
    /// Close the connection afterwards.
    pub close: bool,
    /// The type of the text, where it is not plain.
    pub content_type: Option<Box<HeaderValue>>,
}

impl LocalReply {
    /// An answer.
    pub fn new(status: StatusCode, body: impl Into<Bytes>, details: impl Into<Details>) -> Self {
        let (body, headers) = (body.into(), Vec::new());
        Self {
            status,
            body,
            headers,
            details: details.into(),
            grpc_status: None,
            close: false,
            content_type: None,
        }
    }

    /// With this gRPC status.
    #[must_use]
    pub fn grpc(mut self, status: u32) -> Self {
        self.grpc_status = Some(status);
        self
    }

    /// With one more field.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The reply to `request`.
    pub fn into_reply(mut self, request: &RequestHead) -> Reply {
        let mut headers = Headers::with_capacity(self.headers.len() + 4);
        for (name, value) in std::mem::take(&mut self.headers) {
            headers.append(name, value);
        }
        // After a request that is not as it should be, what follows on the connection is not to be trusted either.
        self.close |= self.status == StatusCode::BAD_REQUEST && request.protocol != Protocol::Http2;
        self.assemble(request, headers)
    }

    /// The reply to `request` with these fields: for gRPC the error is in the fields and the HTTP status is 200.
    pub fn assemble(self, request: &RequestHead, mut headers: Headers) -> Reply {
        let head = request.method == Method::HEAD;
        headers.remove(&header::CONTENT_LENGTH);
        let (status, body) = if is_grpc(request) {
            let code = self.grpc_status.unwrap_or_else(|| grpc_status_of(self.status));
            headers.set(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            if !headers.contains(&GRPC_STATUS) {
                headers.append(GRPC_STATUS, digits::value(code.into()));
            }
            let text = self.body.strip_suffix(b"\n").filter(|_| self.is_json()).unwrap_or(&self.body);
            if !self.body.is_empty()
                && !head
                && let Ok(message) = HeaderValue::try_from(percent_encoded(text))
            {
                headers.set(GRPC_MESSAGE, message);
            }
            (StatusCode::OK, Bytes::new())
        } else {
            if self.body.is_empty() {
                headers.remove(&header::CONTENT_TYPE);
            } else {
                headers.append(header::CONTENT_LENGTH, digits::value(self.body.len() as u64));
                if !headers.contains(&header::CONTENT_TYPE) {
                    let text = HeaderValue::from_static("text/plain");
                    headers.append(header::CONTENT_TYPE, self.content_type.map_or(text, |t| *t));
                }
            }
            (self.status, self.body)
        };
        Reply {
            head: ResponseHead { status, protocol: Protocol::Http11, headers },
            body: if head { Body::Empty } else { Body::full(body) },
            close: self.close,
            reset: None,
        }
    }

    fn is_json(&self) -> bool {
        self.content_type.as_ref().is_some_and(|t| **t == "application/json")
    }
}

/// The gRPC status that stands for an HTTP status (gRPC's HTTP mapping document).
pub fn grpc_status_of(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// gRPC's percent-encoding of messages: what is not printable ASCII, `%`, and in Envoy also `~`.
fn percent_encoded(text: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b' '..b'~' if *byte != b'%' => out.push(char::from(*byte)),
            // Writing to a string cannot fail.
            _ => _ = write!(out, "%{byte:02X}"),
        }
    }
    out
}
