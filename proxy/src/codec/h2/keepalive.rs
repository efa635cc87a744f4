//! PING at an interval, so that a peer that is gone without a word is found out
//! (`Http2ProtocolOptions.connection_keepalive`).

use std::time::Duration;

use h2::{Ping, PingPong};

/// When to ask, and how long to wait for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Between an answer and the next PING.
    pub interval: Duration,
    /// A peer that has not answered after this is taken for gone.
    pub timeout: Duration,
}

/// Ready when the peer has not answered in time; never without settings or if the connection ends of itself. The connection
/// must be driven meanwhile.
pub(super) async fn lost(ping: Option<PingPong>, keepalive: Option<Keepalive>) {
    let (Some(mut ping), Some(Keepalive { interval, timeout })) = (ping, keepalive) else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(interval).await;
        match tokio::time::timeout(timeout, ping.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection is over, and whoever drives it knows.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}
