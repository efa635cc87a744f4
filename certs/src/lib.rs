//! X.509 and SPIFFE for Weft: identities, issuing, checking, rotation.
//!
//! No async runtime and no files in here, and time is always an argument, so that everything can be tested to the second.
//! The control plane issues with [`authority`]; both halves check peers with [`verify`], directly or through the rustls
//! verifiers; a workload renews by the machine in [`rotation`].
#![forbid(unsafe_code)]

mod asked;
pub mod authority;
pub mod chain;
pub mod csr;
mod der;
pub mod digest;
pub mod inspect;
pub mod issued;
pub mod memory;
pub mod pem;
pub mod pkcs7;
pub mod renewal;
pub mod rotation;
pub mod rustls_verifiers;
pub mod spiffe;
pub mod verify;

use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;

/// The one crypto provider: aws-lc-rs, its key exchange groups with X25519MLKEM768 first.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}
