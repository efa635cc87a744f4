//! The terminal filter for HTTP: finds out which version is spoken, and lets its codec call the connection manager.

use std::sync::Arc;
use std::time::Duration;

use crate::codec::h1::H1Options;
use crate::codec::h1::server::ServerOptions;
use crate::codec::h2::H2Options;
use crate::codec::{Drain, h1, h2};
use crate::http::config::CodecType;
use crate::http::{ConnectionManager, HcmConfig};
use crate::io::{ConnectionInfo, Io};

/// Serves an HTTP connection until it ends.
pub async fn serve(mut io: Io, info: Arc<ConnectionInfo>, config: Arc<HcmConfig>, drain: Drain) {
    let two = match config.codec {
        CodecType::Http1 => false,
        CodecType::Http2 => true,
        CodecType::Auto => match info.tls.as_ref().and_then(|t| t.alpn.as_deref()) {
            Some(alpn) => alpn == b"h2",
            None => match preface(&mut io, config.idle_timeout).await {
                Some(two) => two,
                None => return,
            },
        },
    };
    let tls = info.tls.is_some();
    let manager = ConnectionManager::new(config.clone(), info);
    if two {
        h2::server::serve(io, manager, h2_options(&config), drain).await;
    } else {
        h1::server::serve(io, manager, h1_options(&config, tls), drain).await;
    }
}

/// Whether the connection starts with HTTP/2's preface; `None` if it ends before anything was said.
async fn preface(io: &mut Io, idle: Duration) -> Option<bool> {
    let looking = crate::codec::is_http2(io);
    let looked = if idle.is_zero() { Ok(looking.await) } else { tokio::time::timeout(idle, looking).await };
    looked.ok()?.ok()
}

fn some(limit: Duration) -> Option<Duration> {
    Some(limit).filter(|l| !l.is_zero())
}

fn h1_options(config: &HcmConfig, tls: bool) -> ServerOptions {
    ServerOptions {
        h1: H1Options {
            max_head_bytes: config.max_request_headers,
            max_headers: config.max_headers_count,
            accept_http_10: config.http1.accept_http_10,
            enable_trailers: config.http1.enable_trailers,
        },
        idle_timeout: some(config.idle_timeout),
        head_timeout: some(config.request_headers_timeout),
        tls,
        ..ServerOptions::default()
    }
}

fn h2_options(config: &HcmConfig) -> H2Options {
    let default = H2Options::default();
    H2Options {
        max_concurrent_streams: config.http2.max_concurrent_streams.unwrap_or(default.max_concurrent_streams),
        stream_window: config.http2.initial_stream_window_size.unwrap_or(default.stream_window),
        connection_window: config.http2.initial_connection_window_size.unwrap_or(default.connection_window),
        max_head_bytes: u32::try_from(config.max_request_headers).unwrap_or(u32::MAX),
        allow_connect: !config.upgrades.is_empty(),
        idle_timeout: some(config.idle_timeout),
    }
}
