//! Metrics by TLS: the page of the agent's port once more, with the workload's certificate, for who shows one of the mesh. A
//! Prometheus outside of the mesh has its own from `weft cert fetch`.
//!
//! Whoever comes is checked as the mesh's own connections are, by the roots and revocations that the control plane says; at each
//! request, for who scrapes keeps his connection. Sessions are not resumed: that would ask for no certificate.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::identity::Secret;
use crate::identity::tls::params::provider;
use crate::identity::tls::validation::{PeerRole, Validation};
use crate::identity::tls::verifier::Verifier;
use crate::identity::workload::{Current, WorkloadCertificate};
use crate::state::Slot;

/// How long a handshake may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// How many handshakes there are at a time; others wait to be accepted. A scrape needs one.
const AT_ONCE: usize = 16;

/// Who comes in by TLS.
#[derive(Debug)]
pub struct Door {
    current: Current,
    /// Whom the mesh trusts.
    roots: Arc<Slot<Secret>>,
    /// What was made of the last certificate and roots.
    made: Mutex<Option<Arc<Made>>>,
    turns: Arc<Semaphore>,
}

#[derive(Debug)]
struct Made {
    certificate: Arc<WorkloadCertificate>,
    /// The version of the roots.
    generation: u64,
    rules: Arc<Validation>,
    config: Arc<ServerConfig>,
}

/// Somebody before the door.
#[derive(Debug)]
pub(super) struct Caller {
    stream: TcpStream,
    pub(super) address: SocketAddr,
    turn: OwnedSemaphorePermit,
}

impl Door {
    /// With the certificate and the roots in force, whichever those are when somebody comes.
    pub fn new(current: Current, roots: Arc<Slot<Secret>>) -> Self {
        Self { current, roots, made: Mutex::new(None), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// The next who comes, as soon as there is time for him.
    pub(super) async fn next(&self, listener: &TcpListener) -> anyhow::Result<Caller> {
        let turn = self.turns.clone().acquire_owned().await?;
        let (stream, address) = listener.accept().await?;
        Ok(Caller { stream, address, turn })
    }

    /// Lets somebody in.
    ///
    /// # Errors
    /// The workload has no certificate, or whoever comes has none of the mesh.
    pub(super) async fn accept(&self, caller: Caller) -> anyhow::Result<TlsStream<TcpStream>> {
        let Caller { stream, turn, .. } = caller;
        let accepting = TlsAcceptor::from(self.made()?.config.clone()).accept(stream);
        let accepted = tokio::time::timeout(PATIENCE, accepting).await.context("it took too long")?;
        drop(turn);
        Ok(accepted?)
    }

    /// Whether who was let in with this certificate would be now.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn still_admits(&self, chain: &[CertificateDer<'_>]) -> anyhow::Result<()> {
        self.made()?.rules.verify_peer(chain, UnixTime::now())?;
        Ok(())
    }

    fn made(&self) -> anyhow::Result<Arc<Made>> {
        let certificate = self.current.borrow().clone().context("the workload has no certificate yet")?;
        // Before the roots: should they change in between, they are looked at again the next time.
        let generation = self.roots.generation();
        let mut made = self.made.lock();
        if let Some(made) = &*made
            && Arc::ptr_eq(&made.certificate, &certificate)
            && made.generation == generation
        {
            return Ok(made.clone());
        }
        let roots = self.roots.get();
        let roots = roots.as_deref().and_then(Secret::as_validation).filter(|rules| rules.has_roots());
        let roots = roots.context("the mesh's roots are not there yet")?;
        // A mesh that is trusted beside ours has no business with our metrics.
        let rules = roots
            .within(certificate.id().trust_domain())
            .map_err(|error| anyhow::anyhow!("the mesh's roots: {error}"))?;
        let rules = Arc::new(Validation::new(rules, PeerRole::Client));
        let own = SingleCertAndKey::from((*certificate.certified_key()).clone());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Verifier::new(rules.clone(), true))
            .with_cert_resolver(Arc::new(own));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let new = Arc::new(Made { certificate, generation, rules, config: Arc::new(config) });
        *made = Some(new.clone());
        Ok(new)
    }
}

#[cfg(test)]
mod tests;
