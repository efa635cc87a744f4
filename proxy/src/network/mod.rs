//! Network filters: what runs on a connection's bytes, ending in the HTTP connection manager or the TCP proxy.
//!
//! The filters before the terminal one run in the configuration's order when the connection begins. Those of Istio that are
//! taken today (metadata exchange, stats) have their work done elsewhere: peers are known by their certificates, and the TCP
//! proxy reports connections itself.

pub mod config;
pub mod tcp_proxy;

use std::rc::Rc;
use std::sync::Arc;

pub use config::NetworkChain;

use crate::codec::Drain;
use crate::http::HcmConfig;
use crate::io::{ConnectionInfo, Io};
use tcp_proxy::TcpProxyConfig;

/// What a chain ends in.
pub enum Terminal {
    /// HTTP.
    Http(Arc<HcmConfig>),
    /// Bytes.
    Tcp(Arc<TcpProxyConfig>),
}

/// Serves a connection until it ends.
pub async fn serve(io: Io, info: Rc<ConnectionInfo>, chain: &NetworkChain, drain: Drain) {
    match &chain.terminal {
        Terminal::Http(config) => {
            crate::http::serve(io, config.clone(), Arc::new((*info).clone()), drain).await;
        }
        Terminal::Tcp(config) => tcp_proxy::serve(io, &info, config, drain).await,
    }
}
