//! A secret as it is published: a key with its chain, or the rules for the peer's chain.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

/// What an SDS name stands for.
#[derive(Clone, Debug)]
pub enum Secret {
    /// A certificate chain and the key to its leaf.
    Certificate(Arc<CertifiedKey>),
    /// Trust anchors in DER.
    Validation(Arc<Vec<CertificateDer<'static>>>),
}
