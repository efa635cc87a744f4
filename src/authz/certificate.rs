//! Certificates of callers that are made up: what a proxy reads of an identity is read of a certificate.

use std::cell::RefCell;
use std::collections::HashMap;

use anyhow::Context;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::CertificateDer;

/// Certificates by SPIFFE ID, made when they are wanted.
#[derive(Default)]
pub(super) struct Certificates(RefCell<HashMap<String, CertificateDer<'static>>>);

impl Certificates {
    /// The certificate of an identity, with the names that the mesh's authority would give it.
    pub(super) fn of(&self, identity: &str) -> anyhow::Result<CertificateDer<'static>> {
        if let Some(made) = self.0.borrow().get(identity) {
            return Ok(made.clone());
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let name =
            identity.try_into().with_context(|| format!("{identity:?} cannot be a certificate's name"))?;
        params.subject_alt_names = vec![SanType::URI(name)];
        let made = params.self_signed(&KeyPair::generate()?)?.der().clone();
        self.0.borrow_mut().insert(identity.to_owned(), made.clone());
        Ok(made)
    }
}
