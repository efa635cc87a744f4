//! The outside observers: they know sockets, HTTP, TLS and X.509, and nothing of the code that they look at.
//!
//! [`http`] speaks HTTP/1.1 over any stream and says precisely how an exchange ended; [`load`] keeps a flow of requests going
//! and counts; [`stream`] watches one long answer; [`tls`] shakes hands as a client or as a server and records what was
//! agreed; [`tap`] stands between two proxies and reads their handshake from the wire; [`chain`] reads certificates;
//! [`credentials`] gets certificates from the mesh's certificate service, or makes them by a stranger's authority.

pub mod chain;
pub mod credentials;
pub mod hello;
pub mod http;
pub mod load;
pub mod stream;
pub mod tap;
pub mod tls;
