//! HTTP/2 (RFC 9113) over the h2 crate, both directions.

pub mod client;
mod convert;
mod keepalive;
pub mod server;
mod shared;
#[cfg(test)]
mod tests;
mod transfer;
mod walk;

use std::time::Duration;

pub use keepalive::Keepalive;

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
    /// Ask the peer whether it is still there.
    pub keepalive: Option<Keepalive>,
    /// Servers: how long a connection may be without a stream.
    pub idle_timeout: Option<Duration>,
    /// Servers: how long a connection may be open (`max_connection_duration`).
    pub longest: Option<Duration>,
    /// Servers: how long to wait for the peer's end after ours (`delayed_close_timeout`).
    pub delayed_close: Duration,
}

impl Default for H2Options {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            stream_window: 1024 * 1024,
            connection_window: 4 * 1024 * 1024,
            max_head_bytes: 60 * 1024,
            allow_connect: false,
            keepalive: None,
            idle_timeout: Some(Duration::from_secs(3600)),
            longest: None,
            delayed_close: Duration::from_secs(1),
        }
    }
}
