//! A small certificate authority for tests.

use std::time::Duration;

use time::OffsetDateTime;
use weft_certs::authority::{self, KeyKind};
use weft_certs::spiffe::SpiffeId;
use weft_certs::{csr, pem};

use super::WorkloadCertificate;

pub(crate) fn start() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

pub(crate) fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/ecotrack/sa/user-service".parse().unwrap()
}

pub(crate) struct Authority {
    root: authority::Authority,
    intermediate: authority::Authority,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let root = authority::Authority::root(KeyKind::P256, start(), time::Duration::days(3650)).unwrap();
        let intermediate = root.intermediate(KeyKind::P256, start(), time::Duration::days(365)).unwrap();
        Self { root, intermediate }
    }

    pub(crate) fn root_pem(&self) -> String {
        self.root.certificate_pem().to_owned()
    }

    /// Signs as the control plane does: for `id`, whatever the request says.
    pub(crate) fn sign(&self, csr: &str, id: &SpiffeId, now: OffsetDateTime, life: Duration) -> Vec<String> {
        let request = csr::check(csr).unwrap();
        let leaf = self.intermediate.sign(&request, id, now, life.try_into().unwrap()).unwrap();
        vec![pem::encode(&leaf), self.intermediate.certificate_pem().to_owned(), self.root_pem()]
    }

    pub(crate) fn certificate(
        &self,
        id: &SpiffeId,
        now: OffsetDateTime,
        life: Duration,
    ) -> WorkloadCertificate {
        let made = csr::make(id).unwrap();
        WorkloadCertificate::assemble(made.key, &self.sign(&made.csr, id, now, life), now).unwrap()
    }
}
