//! Signs workloads' certificates within the rules for lifetimes.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use weft_certs::csr::{self, CsrError};
use weft_certs::spiffe::{SpiffeId, TrustDomain};

use super::store::State;

/// Lifetimes of workload certificates.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// When the request names none (Istio's DEFAULT_WORKLOAD_CERT_TTL).
    pub default: Duration,
    /// The most that a request may ask for (MAX_WORKLOAD_CERT_TTL); more is refused.
    pub maximum: Duration,
}

impl Default for Limits {
    /// 24 hours, and at most 90 days.
    fn default() -> Self {
        Self { default: Duration::hours(24), maximum: Duration::days(90) }
    }
}

/// A request that is not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request itself is bad.
    #[error(transparent)]
    Request(#[from] CsrError),
    /// It asks for too long a life.
    #[error(
        "the requested lifetime of {asked} s is over the limit of {limit} s; ask for less, or raise --max-workload-cert-ttl"
    )]
    Lifetime {
        /// Seconds asked for.
        asked: i64,
        /// Seconds allowed.
        limit: i64,
    },
    /// The authority failed.
    #[error(transparent)]
    Authority(#[from] weft_certs::authority::AuthorityError),
}

/// The authority at work.
pub struct CertificateAuthority {
    state: State,
    limits: Limits,
    domain: TrustDomain,
}

impl CertificateAuthority {
    /// An authority for one trust domain.
    pub fn new(state: State, limits: Limits, domain: TrustDomain) -> Arc<Self> {
        Arc::new(Self { state, limits, domain })
    }

    /// The trust domain.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Root, intermediate and token key.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Signs a request for the caller `id`, whose name alone the certificate carries. Gives leaf, intermediate and root.
    /// `lifetime` in seconds; zero or less means the default.
    pub fn sign(
        &self,
        csr: &str,
        id: &SpiffeId,
        lifetime: i64,
        now: OffsetDateTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        let request = csr::check(csr)?;
        let life = if lifetime <= 0 { self.limits.default } else { Duration::seconds(lifetime) };
        if life > self.limits.maximum {
            return Err(SignError::Lifetime { asked: lifetime, limit: self.limits.maximum.whole_seconds() });
        }
        let leaf = self.state.intermediate.sign(&request, id, now, life)?;
        Ok(vec![leaf, self.state.intermediate.certificate().clone(), self.state.root.certificate().clone()])
    }
}
