//! Downstream connections: sockets, listener filters, sniffing, filter chain match, drain.
//!
//! [`sockets`] owns listening sockets by address, one per worker; a listener is policy that is swapped under them. A worker's
//! [`accept`] loop takes connections, runs the listener [`filters`] on them, finds the filter chain ([`chain`]),
//! terminates TLS and hands over to `network`.

pub mod accept;
pub mod chain;
pub mod config;
pub mod decide;
pub mod filters;
mod fingerprint;
pub mod inspect;
pub mod listener;
pub mod options;
pub mod sockets;

pub use chain::{ChainMatch, FilterChain, Seen, TransportProtocol};
pub use config::ListenerConfig;
pub use listener::{Listener, ListenerStats};
pub use sockets::{BindError, SocketTable, WorkerCommand};
