//! HTTP/1.0 and HTTP/1.1 (RFC 9112), both directions.
//!
//! Our own codec over httparse, for parity and for speed: malformed input is answered as Envoy answers it, informational heads
//! and trailers pass, heads and bodies are slices of the read buffer, and a connection is one task without channels.

mod chunked;
pub mod client;
mod encode;
#[cfg(test)]
mod measured_tests;
mod parse;
pub mod server;
#[cfg(test)]
mod tests;
mod transport;

use bytes::BytesMut;
use http::StatusCode;

use super::message::RequestHead;
use super::spelling::KeyFormat;

/// The head that these bytes begin with, as a connection reads it.
///
/// # Errors
/// The status and the response code details of the answer to what is no head.
pub fn read_head(
    bytes: &[u8],
    options: &H1Options,
    tls: bool,
) -> Result<RequestHead, (StatusCode, &'static str)> {
    match parse::request(&mut BytesMut::from(bytes), options, tls, None) {
        Ok(Some(parsed)) => Ok(parsed.head),
        Ok(None) => Err((StatusCode::BAD_REQUEST, "http1.codec_error")),
        Err(refused) => Err((refused.status, refused.details)),
    }
}

/// Limits and manners of a connection.
#[derive(Clone, Copy, Debug)]
pub struct H1Options {
    /// The most bytes a head (or trailers) may have: Envoy's max_request_headers_kb, 60 KiB.
    pub max_head_bytes: usize,
    /// The most fields a head may have: Envoy's max_headers_count, 100.
    pub max_headers: usize,
    /// Take HTTP/1.0 (`accept_http_10`); else it is answered with 426.
    pub accept_http_10: bool,
    /// Hand on trailers (`enable_trailers`); else they are read and dropped.
    pub enable_trailers: bool,
    /// Take every method that is a token (`allow_custom_methods`); else those that are registered for use.
    pub any_method: bool,
    /// Take a content length beside the chunked coding, and drop it (`allow_chunked_length`); else that is an error.
    pub allow_chunked_length: bool,
    /// Take absolute targets apart (`allow_absolute_url`); else they are paths, which nobody takes.
    pub absolute_targets: bool,
    /// The target of requests is their whole URL (`send_fully_qualified_url`).
    pub full_url: bool,
    /// How names are spelt (`header_key_format`).
    pub keys: KeyFormat,
}

impl H1Options {
    /// What an upstream's connection goes by: Envoy takes response heads of up to 80 KiB.
    pub fn upstream() -> Self {
        Self { max_head_bytes: 80 * 1024, ..Self::default() }
    }
}

impl Default for H1Options {
    fn default() -> Self {
        Self {
            max_head_bytes: 60 * 1024,
            max_headers: 100,
            accept_http_10: false,
            enable_trailers: false,
            any_method: false,
            allow_chunked_length: false,
            absolute_targets: true,
            full_url: false,
            keys: KeyFormat::Lower,
        }
    }
}
