//! Byte streams and what is known of a connection: the vocabulary of every stage that touches one.

pub mod connection;

pub use connection::{ConnectionInfo, Direction, TlsInfo};
