//! TLS contexts: secrets and settings in, `accept` and `connect` out.
//!
//! A context is compiled once per configuration and lives as long; the rustls configurations inside it are made from the
//! secrets of the moment and made anew by the first handshake after a secret changed. Connections that stand are not
//! touched by that.

mod choice;
mod common;
pub mod data_source;
mod downstream;
mod error;
mod flight;
pub mod numbers;
pub mod params;
pub mod peer;
pub mod san;
pub mod secret;
mod spiffe;
mod upstream;
pub mod validation;
pub mod verifier;

pub use common::{compile_secret, slot as secret_slot};
pub use downstream::DownstreamContext;
pub use error::{TlsError, TlsStats};
pub use flight::client_hello;
pub use peer::Peer;
pub use secret::Secret;
pub use upstream::{ConnectOptions, UpstreamContext};
