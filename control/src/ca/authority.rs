//! Signs certificates within the rules for lifetimes, and says whom the mesh trusts.
//!
//! All of an authority's state stands behind one lock, which no await is held over: who signs sees one root, one
//! intermediate and one ledger that fit together. What is changed is stored before it is published.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;
use weft_certs::authority::AuthorityError;
use weft_certs::csr::{self, CsrError};
use weft_certs::spiffe::{SpiffeId, TrustDomain};

use super::csr_api::CsrApiError;
use super::elsewhere::{self, Elsewhere};
use super::est::EstError;
use super::openbao::OpenBaoError;
use super::store::{State, StoreError};
use crate::model::Trust;

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
    Authority(#[from] AuthorityError),
    /// The signer elsewhere does not sign.
    #[error(transparent)]
    OpenBao(#[from] OpenBaoError),
    /// Nor does a signer of Kubernetes'.
    #[error(transparent)]
    Kubernetes(#[from] CsrApiError),
    /// Nor does a server of EST.
    #[error(transparent)]
    Est(#[from] EstError),
}

impl SignError {
    /// Whether asking again may help.
    pub fn passes(&self) -> bool {
        match self {
            Self::OpenBao(error) => error.passes(),
            Self::Kubernetes(error) => error.passes(),
            Self::Est(error) => error.passes(),
            _ => false,
        }
    }

    /// What is said to whoever asked: no paths of the control plane's files, which are in its log.
    pub fn outward(&self) -> String {
        match self {
            Self::Kubernetes(CsrApiError::Roots { .. }) => {
                "a file of the control plane's (--ca-trust) cannot be used; its log says which and why"
                    .to_owned()
            }
            Self::Est(error) => error.outward(),
            _ => self.to_string(),
        }
    }

    /// Whether the request is to blame.
    pub fn is_the_requests(&self) -> bool {
        match self {
            Self::Request(_) | Self::Lifetime { .. } => true,
            Self::Kubernetes(error) => error.is_the_requests(),
            Self::Est(error) => error.is_the_requests(),
            _ => false,
        }
    }
}

/// What the lock guards.
pub(super) struct Inner {
    pub(super) state: State,
    /// The last leaf of the present intermediate expires then, in seconds since 1970; later than the truth only after a
    /// restart.
    pub(super) leaves_until: i64,
}

/// Who signs.
pub(super) enum Backend {
    /// We do.
    Own(Box<Mutex<Inner>>),
    /// Somebody else does.
    Elsewhere(Elsewhere),
}

/// The authority at work.
pub struct CertificateAuthority {
    pub(super) backend: Backend,
    pub(super) directory: Option<PathBuf>,
    pub(super) limits: Limits,
    domain: TrustDomain,
    pub(super) trust: watch::Sender<Arc<Trust>>,
}

impl CertificateAuthority {
    /// An authority for one trust domain. What changes is kept in `directory`, if there is one.
    pub fn new(
        state: State,
        limits: Limits,
        domain: TrustDomain,
        directory: Option<PathBuf>,
    ) -> Result<Arc<Self>, SignError> {
        let leaves_until = state.ledger.leaves_until;
        let authority = Self {
            backend: Backend::Own(Box::new(Mutex::new(Inner { state, leaves_until }))),
            directory,
            limits,
            domain,
            trust: watch::Sender::default(),
        };
        if let Backend::Own(inner) = &authority.backend {
            let inner = inner.lock();
            if inner.state.root.signer().is_none() {
                tracing::info!(
                    intermediate_until = %inner.state.intermediate.not_after(),
                    "the root's key is offline: certificates are issued and revoked, and another intermediate has to be brought \
                     (weft ca request-intermediate)"
                );
            }
            authority.publish(&inner.state)?;
        }
        Ok(Arc::new(authority))
    }

    /// One for which somebody else signs. It trusts `roots` (PEM) until the signer says others.
    pub fn elsewhere(
        signer: Elsewhere,
        roots: &str,
        limits: Limits,
        domain: TrustDomain,
        directory: Option<PathBuf>,
    ) -> Arc<Self> {
        let trust = Trust { roots: roots.into(), ..Trust::default() };
        let trust = watch::Sender::new(Arc::new(trust));
        Arc::new(Self { backend: Backend::Elsewhere(signer), directory, limits, domain, trust })
    }

    /// The trust domain.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Whom the mesh trusts, to be followed.
    pub fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }

    /// Signs a request for the caller `id`, whose name alone the certificate carries. Gives PEM: leaf, intermediate, and the
    /// roots to trust. `lifetime` in seconds; zero or less means the default.
    pub async fn sign(
        &self,
        csr: &str,
        id: &SpiffeId,
        lifetime: i64,
        now: OffsetDateTime,
    ) -> Result<Vec<String>, SignError> {
        let request = csr::check(csr)?;
        let life = if lifetime <= 0 { self.limits.default } else { Duration::seconds(lifetime) };
        if life > self.limits.maximum {
            return Err(SignError::Lifetime { asked: lifetime, limit: self.limits.maximum.whole_seconds() });
        }
        let inner = match &self.backend {
            Backend::Own(inner) => inner,
            Backend::Elsewhere(signer) => {
                let signed = signer.sign(&request, id, &[], &[], life).await?;
                let roots = self.trust.borrow().roots.to_string();
                return Ok(vec![signed.certificate, signed.intermediates, roots]);
            }
        };
        let mut inner = inner.lock();
        let leaf = inner.state.intermediate.sign(&request, id, now, life)?;
        self.note(&mut inner, &leaf, life)?;
        let state = &inner.state;
        Ok(vec![
            weft_certs::pem::encode(&leaf),
            state.intermediate.certificate_pem().to_owned(),
            state.roots_pem(),
        ])
    }

    /// Remembers how long a leaf lives before anybody gets it. The store is ahead by half a life, so that it is written
    /// seldom. Where it cannot be written, leaves are issued all the same: a mesh whose certificates run out is worse than a
    /// successor of the root that is in force a little early, should the process end before there is room again.
    fn note(&self, inner: &mut Inner, leaf: &CertificateDer<'_>, life: Duration) -> Result<(), SignError> {
        let facts = weft_certs::inspect::facts(leaf).map_err(|e| AuthorityError::Stored(e.to_string()))?;
        let until = facts.not_after.unix_timestamp().max(inner.leaves_until);
        inner.leaves_until = until;
        let stored = inner.state.ledger.leaves_until;
        if until > stored {
            inner.state.ledger.leaves_until = until + life.whole_seconds() / 2;
            if let Err(error) = self.store(&inner.state) {
                tracing::error!(%error, "certificates are issued, and their life is not remembered over a restart");
                metrics::counter!("citadel_server_store_write_errors").increment(1);
                // The next one tries again.
                inner.state.ledger.leaves_until = stored;
            }
        }
        Ok(())
    }

    pub(super) fn store(&self, state: &State) -> Result<(), StoreError> {
        self.directory.as_ref().map_or(Ok(()), |directory| state.save(directory))
    }

    /// Makes key and chain for a server of the control plane itself.
    pub async fn server(
        &self,
        dns: &[&str],
        addresses: &[std::net::IpAddr],
        now: OffsetDateTime,
        life: Duration,
    ) -> Result<(Vec<CertificateDer<'static>>, rustls_pki_types::PrivatePkcs8KeyDer<'static>), SignError>
    {
        let bad = |e: &dyn std::fmt::Display| AuthorityError::Stored(e.to_string());
        let id = self.domain.workload("istio-system", "istiod").map_err(|e| bad(&e))?;
        let inner = match &self.backend {
            Backend::Own(inner) => inner,
            Backend::Elsewhere(signer) => {
                let made = csr::make_server(&id, dns, addresses)?;
                let request = csr::check(&made.csr)?;
                let (chain, key) = match signer.sign(&request, &id, dns, addresses, life).await {
                    Ok(signed) => (signed.certificate + &signed.intermediates, made.key),
                    // The last one serves until it expires.
                    Err(error) => match self.directory.as_deref().and_then(|d| elsewhere::kept(d, now)) {
                        Some(kept) => {
                            tracing::warn!(%error, "the secure port goes on with its last certificate");
                            kept
                        }
                        None => return Err(error),
                    },
                };
                if let Some(directory) = &self.directory {
                    elsewhere::keep(directory, &chain, &key);
                }
                let chain = weft_certs::pem::certificates(chain.as_bytes()).map_err(|e| bad(&e))?;
                return Ok((chain, key));
            }
        };
        // Replaced at once when the root is, it does not count among the leaves that are waited for.
        let inner = inner.lock();
        let (leaf, key) = inner.state.intermediate.server(&id, dns, addresses, now, life)?;
        Ok((vec![leaf, inner.state.intermediate.certificate().clone()], key))
    }

    /// When root and intermediate expire, by istiod's names, and what is left of them, in seconds.
    pub fn gauges(&self, now: OffsetDateTime) {
        let Backend::Own(inner) = &self.backend else { return };
        let inner = inner.lock();
        for (end, at, left) in [
            (
                inner.state.root.not_after(),
                "citadel_server_root_cert_expiry_timestamp",
                "citadel_server_root_cert_expiry_seconds",
            ),
            (
                inner.state.intermediate.not_after(),
                "citadel_server_cert_chain_expiry_timestamp",
                "citadel_server_cert_chain_expiry_seconds",
            ),
        ] {
            metrics::gauge!(at).set(end.unix_timestamp() as f64);
            metrics::gauge!(left).set((end - now).as_seconds_f64());
        }
    }

    /// Whether a certificate's serial number (lower-case hexadecimal) is revoked.
    pub fn is_revoked(&self, serial: &str) -> bool {
        match &self.backend {
            Backend::Own(inner) => inner.lock().state.ledger.revoked.iter().any(|r| r.serial == serial),
            Backend::Elsewhere(_) => false,
        }
    }
}
