//! TLS contexts: secrets and settings in, `accept` and `connect` out.

pub mod secret;

pub use secret::Secret;
