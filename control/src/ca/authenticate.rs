//! Who calls: authenticators in istiod's order, the client's certificate first, then a bearer token.

use std::sync::Arc;

use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use weft_certs::spiffe::{SpiffeId, TrustDomain};

use super::token::Checker;

/// A proven identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who it is.
    pub spiffe: SpiffeId,
}

/// What the transport knows of a caller; on a TLS port it rides in a request's extensions.
#[derive(Clone, Debug, Default)]
pub struct PeerInfo {
    /// The caller's address.
    pub address: Option<std::net::SocketAddr>,
    /// The port is TLS; on a plaintext port nobody can be told from anybody.
    pub secure: bool,
    /// The identity of the verified client certificate.
    pub certificate: Option<SpiffeId>,
}

/// The authenticators.
pub struct Authenticators {
    tokens: Checker,
    domain: TrustDomain,
}

impl Authenticators {
    /// Takes tokens by `tokens`, for workloads of `domain`.
    pub fn new(tokens: Checker, domain: TrustDomain) -> Arc<Self> {
        Arc::new(Self { tokens, domain })
    }

    /// The caller's identity. A wrong credential is an error even where another one would do: somebody should know.
    pub fn authenticate(&self, metadata: &MetadataMap, peer: &PeerInfo) -> Result<Identity, Status> {
        if let Some(id) = &peer.certificate {
            return Ok(Identity { spiffe: id.clone() });
        }
        let Some(header) = metadata.get("authorization") else {
            return Err(Status::unauthenticated(
                "no credentials: show a client certificate of this mesh, or send authorization: Bearer TOKEN \
                 (weft token create makes one)",
            ));
        };
        let token = header
            .to_str()
            .ok()
            .and_then(|h| h.strip_prefix("Bearer "))
            .ok_or_else(|| Status::unauthenticated("the authorization header is not \"Bearer TOKEN\""))?;
        let subject = self.tokens.check(token.trim()).map_err(|e| Status::unauthenticated(e.to_string()))?;
        let spiffe = self.domain.workload(&subject.namespace, &subject.service_account).map_err(|e| {
            Status::unauthenticated(format!("the token's service account has no SPIFFE id: {e}"))
        })?;
        Ok(Identity { spiffe })
    }

    /// The same for a whole request.
    pub fn of<T>(&self, request: &Request<T>) -> Result<Identity, Status> {
        let nothing = PeerInfo::default();
        let peer = request.extensions().get::<PeerInfo>().unwrap_or(&nothing);
        self.authenticate(request.metadata(), peer)
    }
}
