//! Who calls: authenticators in istiod's order, the client's certificate first, then a bearer token by its issuer: our own, an
//! OIDC provider's, and whatever else Kubernetes can be asked about.

use std::sync::Arc;

use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use weft_certs::spiffe::{SpiffeId, TrustDomain};

use super::bound::Binding;
use super::jwks::Oidc;
use super::review::TokenReview;
use super::token::{Checker, ISSUER, Once, Subject, TokenError};
use super::used::Used;

/// A proven identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who it is.
    pub spiffe: SpiffeId,
    /// Which authenticator says so.
    pub by: &'static str,
    /// By a token for one use, which has to be used up yet.
    pub once: Option<Once>,
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
    oidc: Vec<Oidc>,
    review: Option<TokenReview>,
    binding: Binding,
    used: Used,
    domain: TrustDomain,
}

impl Authenticators {
    /// Takes tokens by `tokens`, for workloads of `domain`.
    pub fn new(tokens: Checker, domain: TrustDomain) -> Arc<Self> {
        Self::with_issuers(tokens, Vec::new(), None, domain).holding(Binding::default(), Used::default())
    }

    /// Takes also tokens of these providers, and those that Kubernetes knows.
    pub fn with_issuers(
        tokens: Checker,
        oidc: Vec<Oidc>,
        review: Option<TokenReview>,
        domain: TrustDomain,
    ) -> Self {
        let (binding, used) = Default::default();
        Self { tokens, oidc, review, binding, used, domain }
    }

    /// Holds the tokens of pods to this rule, and remembers there which ones for one use are used.
    pub fn holding(self, binding: Binding, used: Used) -> Arc<Self> {
        Arc::new(Self { binding, used, ..self })
    }

    /// The caller's identity. A wrong credential is an error even where another one would do: somebody should know.
    pub async fn authenticate(&self, metadata: &MetadataMap, peer: &PeerInfo) -> Result<Identity, Status> {
        if let Some(id) = &peer.certificate {
            return Ok(Identity { spiffe: self.ours(id)?, by: "client certificate", once: None });
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
        let (subject, by) = self.subject(token.trim()).await.map_err(refused)?;
        if let Some(review) = &self.review {
            let address = peer.address.map(|a| a.ip());
            self.binding.check(&subject, address, review).await.map_err(refused)?;
        }
        let spiffe = self.domain.workload(&subject.namespace, &subject.service_account).map_err(|e| {
            Status::unauthenticated(format!("the token's service account has no SPIFFE id: {e}"))
        })?;
        Ok(Identity { spiffe, by, once: subject.once })
    }

    /// Uses up the token by which a caller proved who it is, if it is for one use, for the key (DER) that it wants a certificate
    /// for.
    pub fn use_up(&self, identity: &Identity, key: &[u8]) -> Result<(), Status> {
        let Some(once) = &identity.once else { return Ok(()) };
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let key = weft_certs::digest::sha256_hex(key);
        self.used.take(once, &key, u64::try_from(now).unwrap_or_default()).map_err(refused)
    }

    /// A certificate's holder as a workload of our domain: one of an alias gets a new certificate in ours, which is how a
    /// mesh moves from one trust domain to another.
    fn ours(&self, id: &SpiffeId) -> Result<SpiffeId, Status> {
        if id.trust_domain() == self.domain.as_str() {
            return Ok(id.clone());
        }
        let workload = id.workload().and_then(|(ns, sa)| self.domain.workload(ns, sa).ok());
        workload.ok_or_else(|| Status::unauthenticated(format!("{id} is not a workload of {}", self.domain)))
    }

    async fn subject(&self, token: &str) -> Result<(Subject, &'static str), TokenError> {
        let issuer = issuer(token)?;
        if issuer == ISSUER {
            return Ok((self.tokens.check(token)?, "token"));
        }
        if let Some(oidc) = self.oidc.iter().find(|o| o.issuer() == issuer) {
            return Ok((oidc.check(token).await?, "OIDC token"));
        }
        if let Some(review) = &self.review {
            return Ok((review.check(token).await?, "TokenReview"));
        }
        let known: Vec<_> = std::iter::once(ISSUER).chain(self.oidc.iter().map(Oidc::issuer)).collect();
        Err(TokenError::Malformed(format!(
            "its issuer {issuer:?} is not one whose tokens are taken here ({}); see --oidc-issuer and --token-review",
            known.join(", ")
        )))
    }

    /// The same for a whole request, of somebody who does not want a certificate: a token for one use is not enough.
    pub async fn of<T>(&self, request: &Request<T>) -> Result<Identity, Status> {
        match self.of_certificates(request).await {
            Ok(Identity { once: Some(_), .. }) => Err(refused(TokenError::ForCertificate)),
            other => other,
        }
    }

    /// The same of somebody who does; see [`Self::use_up`].
    pub async fn of_certificates<T>(&self, request: &Request<T>) -> Result<Identity, Status> {
        let peer = request.extensions().get::<PeerInfo>().cloned().unwrap_or_default();
        self.authenticate(request.metadata(), &peer).await
    }
}

/// A token that is not taken.
fn refused(error: TokenError) -> Status {
    match error {
        TokenError::Unchecked(_) => Status::unavailable(error.to_string()),
        _ => Status::unauthenticated(error.to_string()),
    }
}

/// What a token says of its issuer. Nothing is proven by it: it chooses who checks.
pub(super) fn issuer(token: &str) -> Result<String, TokenError> {
    use base64::Engine;
    let malformed = |e: &dyn std::fmt::Display| TokenError::Malformed(e.to_string());
    let claims = token.split('.').nth(1).ok_or_else(|| malformed(&"it is not a JWT"))?;
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let claims = engine.decode(claims).map_err(|e| malformed(&e))?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).map_err(|e| malformed(&e))?;
    Ok(claims["iss"].as_str().unwrap_or_default().to_owned())
}
