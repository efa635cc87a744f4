//! Metrics by TLS: the page of the agent's port once more, with the workload's certificate, for who shows one of the mesh. A
//! Prometheus outside of the mesh has its own from `weft cert fetch`.

use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::sign::SingleCertAndKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::identity::tls::params::provider;
use crate::identity::tls::validation::{PeerRole, Validation, ValidationConfig};
use crate::identity::tls::verifier::Verifier;
use crate::identity::workload::{Current, WorkloadCertificate};

/// How long a handshake may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Who comes in by TLS.
#[derive(Debug)]
pub struct Door {
    current: Current,
    /// What was made of the last certificate.
    made: Mutex<Option<(Arc<WorkloadCertificate>, Arc<ServerConfig>)>>,
}

impl Door {
    /// With the certificate in force, whichever that is when somebody comes.
    pub fn new(current: Current) -> Self {
        Self { current, made: Mutex::new(None) }
    }

    /// Lets somebody in.
    ///
    /// # Errors
    /// The workload has no certificate, or whoever comes has none of the mesh.
    pub(super) async fn accept(&self, stream: TcpStream) -> anyhow::Result<TlsStream<TcpStream>> {
        let accepting = TlsAcceptor::from(self.config()?).accept(stream);
        let accepted = tokio::time::timeout(PATIENCE, accepting).await.context("it took too long")?;
        Ok(accepted?)
    }

    fn config(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let certificate = self.current.borrow().clone().context("the workload has no certificate yet")?;
        let mut made = self.made.lock();
        if let Some((of, config)) = &*made
            && Arc::ptr_eq(of, &certificate)
        {
            return Ok(config.clone());
        }
        let rules = ValidationConfig::from_roots(certificate.bundle().to_vec())
            .map_err(|error| anyhow::anyhow!("the mesh's roots: {error}"))?;
        let verifier = Verifier::new(Arc::new(Validation::new(rules, PeerRole::Client)), true);
        let own = SingleCertAndKey::from((*certificate.certified_key()).clone());
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(own));
        let config = Arc::new(config);
        *made = Some((certificate, config.clone()));
        Ok(config)
    }
}
