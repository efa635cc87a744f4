//! TLS contexts from secrets, SPIFFE checks, and the workload's own certificate.

pub mod tls;
pub mod workload;

pub use tls::Secret;
pub use workload::{IdentityClient, IdentityConfig, IdentityError, WorkloadCertificate};
