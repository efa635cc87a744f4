//! Which codec a connection gets: what the configuration says, else what ALPN agreed on, else what the first bytes are.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncReadExt;

use super::config::CodecType;
use super::recheck::Newest;
use super::{ConnectionManager, HcmConfig};
use crate::codec::{Drain, DrainPhase, h1, h2};
use crate::io::{ConnectionInfo, Io};

/// How every HTTP/2 connection begins, as far as no HTTP/1 request does.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Serves a connection until it ends. Runs on a worker's local runtime.
pub async fn serve(
    mut io: Io,
    config: Arc<HcmConfig>,
    connection: Arc<ConnectionInfo>,
    mut drain: Drain,
    newest: Option<Rc<dyn Newest>>,
) {
    let tls = connection.tls.is_some();
    let alpn = connection.tls.as_ref().and_then(|t| t.alpn.as_deref());
    let h2 = match (config.codec, alpn) {
        (CodecType::Http1, _) => false,
        (CodecType::Http2, _) | (CodecType::Auto, Some(b"h2")) => true,
        (CodecType::Auto, Some(_)) => false,
        (CodecType::Auto, None) => match sniff(&mut io, config.idle_timeout, &mut drain).await {
            Some(h2) => h2,
            None => return,
        },
    };
    let manager: Rc<ConnectionManager> = ConnectionManager::new(config.clone(), connection, newest);
    if h2 {
        // Boxed as what is not HTTP/1 is in general: a connection carries the room for the codec that it has.
        Box::pin(h2::server::serve(io, manager, config.h2_options(), drain)).await;
    } else {
        h1::server::serve(io, manager, config.h1_options(tls), drain).await;
    }
}

/// Reads until the first bytes tell; they are put back. None if the connection ended, idled out or is to close.
async fn sniff(io: &mut Io, idle: Duration, drain: &mut Drain) -> Option<bool> {
    let mut buffer = [0u8; PREFACE.len()];
    let mut filled = 0;
    let bound =
        async { if idle.is_zero() { std::future::pending().await } else { tokio::time::sleep(idle).await } };
    let reading = async {
        while filled < buffer.len() && PREFACE.starts_with(&buffer[..filled]) {
            match io.read(&mut buffer[filled..]).await {
                Ok(n) if n > 0 => filled += n,
                // An HTTP/1 client that ends after a few bytes gets that codec's answer.
                _ if filled > 0 => break,
                _ => return None,
            }
        }
        Some(())
    };
    tokio::select! {
        read = reading => read?,
        () = bound => return None,
        () = drain.reached(DrainPhase::Closing) => return None,
    }
    io.rewind(Bytes::copy_from_slice(&buffer[..filled]));
    Some(&buffer[..filled] == PREFACE)
}

impl HcmConfig {
    /// What an HTTP/1 connection goes by.
    pub fn h1_options(&self, tls: bool) -> h1::server::ServerOptions {
        let some = |d: Duration| (!d.is_zero()).then_some(d);
        h1::server::ServerOptions {
            h1: h1::H1Options {
                max_head_bytes: self.max_request_headers,
                max_headers: self.max_headers_count,
                ..self.http1.h1
            },
            idle_timeout: some(self.idle_timeout),
            head_timeout: some(self.request_headers_timeout),
            drain_timeout: self.drain_timeout,
            longest: some(self.max_connection_duration),
            tls,
            ..h1::server::ServerOptions::default()
        }
    }

    /// What an HTTP/2 connection goes by.
    pub fn h2_options(&self) -> h2::H2Options {
        let default = h2::H2Options::default();
        h2::H2Options {
            max_concurrent_streams: self
                .http2
                .max_concurrent_streams
                .unwrap_or(default.max_concurrent_streams),
            stream_window: self.http2.initial_stream_window_size.unwrap_or(default.stream_window),
            connection_window: self.http2.initial_connection_window_size.unwrap_or(default.connection_window),
            max_head_bytes: u32::try_from(self.max_request_headers).unwrap_or(u32::MAX),
            allow_connect: self.http2.allow_connect,
            keepalive: self.http2.keepalive,
            idle_timeout: (!self.idle_timeout.is_zero()).then_some(self.idle_timeout),
            longest: (!self.max_connection_duration.is_zero()).then_some(self.max_connection_duration),
            ..default
        }
    }
}
