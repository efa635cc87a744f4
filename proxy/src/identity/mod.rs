//! TLS contexts from secrets, SPIFFE checks, and the workload's own certificate.

pub mod tls;

pub use tls::Secret;
