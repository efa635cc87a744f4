//! HTTP/2 (RFC 9113) over the h2 crate, both directions.

pub mod client;
mod convert;
pub mod server;
#[cfg(test)]
mod tests;
mod transfer;

use std::time::Duration;

/// Windows and limits of a connection, as Envoy's Http2ProtocolOptions name them.
#[derive(Clone, Copy, Debug)]
pub struct H2Options {
    /// Streams that the peer may have open at once.
    pub max_concurrent_streams: u32,
    /// Bytes that a stream may have on their way. Envoy's default is 256 MiB, which lets one slow reader hold as much in
    /// memory; ours is what a 10 Gb/s link with 1 ms of latency needs.
    pub stream_window: u32,
    /// The same for a connection; larger than a stream's, so that one stalled stream does not stall all.
    pub connection_window: u32,
    /// The most bytes that a head may have, as HPACK counts them.
    pub max_head_bytes: u32,
    /// Take extended CONNECT (`allow_connect`).
    pub allow_connect: bool,
    /// Servers: how long a connection may be without a stream.
    pub idle_timeout: Option<Duration>,
}

impl Default for H2Options {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            stream_window: 1024 * 1024,
            connection_window: 4 * 1024 * 1024,
            max_head_bytes: 60 * 1024,
            allow_connect: false,
            idle_timeout: Some(Duration::from_secs(3600)),
        }
    }
}
