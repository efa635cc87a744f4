//! The workload's certificate as its client certificate towards the control plane.

use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;

use super::Current;
use crate::xds::Beside;

/// Shows the certificate in force, whichever that is when a connection is made.
#[derive(Debug)]
pub struct ClientCertificate(Current);

impl ClientCertificate {
    /// Follows `current`.
    pub fn new(current: Current) -> Arc<Self> {
        Arc::new(Self(current))
    }
}

/// The roots that came with the certificate in force, whichever that is when a connection is made.
pub fn beside(current: Current) -> Beside {
    Beside(Arc::new(move || current.borrow().as_ref().map_or_else(Vec::new, |c| c.bundle().to_vec())))
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().as_ref().map(|c| c.certified_key())
    }

    fn has_certs(&self) -> bool {
        self.0.borrow().is_some()
    }
}
