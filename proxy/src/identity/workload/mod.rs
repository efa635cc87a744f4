//! The workload's own certificate: made here, signed by the control plane, renewed before it expires.
//!
//! Runs on the control thread. [`client`] drives the rotation machine of `weft-certs` and publishes each certificate over a
//! watch channel; whoever serves TLS (the secrets `default` and `ROOTCA`) follows it. The private key is made in this
//! process and leaves it at most for the state directory.

mod certificate;
mod client;
mod error;
mod resolver;
mod signer;
mod store;
#[cfg(test)]
pub(crate) mod testing;

pub use certificate::WorkloadCertificate;
pub use client::{Clock, IdentityClient, IdentityConfig, Status, wall_clock};
pub use error::IdentityError;
pub use resolver::{ClientCertificate, beside};
pub use signer::{GrpcSigner, Signer};

use std::sync::Arc;

/// The certificate in force; none before the first and after the expiry of the last.
pub type Current = tokio::sync::watch::Receiver<Option<Arc<WorkloadCertificate>>>;
