//! Istio's certificate service (`istio.v1.auth.IstioCertificateService`), as istio-agent and our own proxy call it.

use std::sync::Arc;

use time::OffsetDateTime;
use tonic::{Request, Response, Status};
use xds_protos::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use xds_protos::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

use super::authenticate::Authenticators;
use super::authority::{CertificateAuthority, SignError};

/// The gRPC service.
#[derive(Clone)]
pub struct CertificateService {
    authority: Arc<CertificateAuthority>,
    authenticators: Arc<Authenticators>,
}

impl CertificateService {
    /// Signs with `authority` for whom `authenticators` know.
    pub fn new(authority: Arc<CertificateAuthority>, authenticators: Arc<Authenticators>) -> Self {
        Self { authority, authenticators }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        metrics::counter!("citadel_server_csr_count").increment(1);
        let identity = self.authenticators.of(&request).inspect_err(|_| {
            metrics::counter!("citadel_server_authentication_failure_count").increment(1);
        })?;
        let request = request.into_inner();
        let signed = self.authority.sign(
            &request.csr,
            &identity.spiffe,
            request.validity_duration,
            OffsetDateTime::now_utc(),
        );
        let chain = match signed {
            Ok(chain) => chain,
            Err(error) => {
                metrics::counter!("citadel_server_csr_sign_error_count").increment(1);
                tracing::warn!(caller = %identity.spiffe, %error, "certificate request refused");
                return Err(match error {
                    SignError::Authority(e) => Status::internal(e.to_string()),
                    other => Status::invalid_argument(other.to_string()),
                });
            }
        };
        metrics::counter!("citadel_server_success_cert_issuance_count").increment(1);
        if let Some(Ok(facts)) = chain.first().map(weft_certs::inspect::facts) {
            // The audit line: one for each certificate.
            tracing::info!(
                target: "weft::audit",
                caller = %identity.spiffe,
                serial = %facts.serial,
                not_after = %facts.not_after,
                "certificate issued"
            );
        }
        let cert_chain = chain.iter().map(weft_certs::pem::encode).collect();
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ca::store::State;
    use crate::ca::store::tests::SMALL;
    use crate::ca::{Limits, PeerInfo, token};

    fn service() -> (CertificateService, token::Issuer) {
        let state = State::create(SMALL, OffsetDateTime::now_utc()).unwrap();
        let (issuer, checker) = token::from_key(&state.token_key).unwrap();
        let domain: weft_certs::spiffe::TrustDomain = "cluster.local".parse().unwrap();
        let authority = CertificateAuthority::new(state, Limits::default(), domain.clone());
        (CertificateService::new(authority, Authenticators::new(checker, domain)), issuer)
    }

    fn now() -> Duration {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap()
    }

    fn request(token: Option<&str>, csr: String, seconds: i64) -> Request<IstioCertificateRequest> {
        let message = IstioCertificateRequest { csr, validity_duration: seconds, ..Default::default() };
        let mut request = Request::new(message);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        request
    }

    fn csr() -> String {
        // It claims another name than its caller's.
        weft_certs::csr::make(&"spiffe://cluster.local/ns/a/sa/admin".parse().unwrap()).unwrap().csr
    }

    #[tokio::test]
    async fn the_name_is_the_callers_whatever_the_request_says() {
        let (service, issuer) = service();
        let token = issuer.issue("ecotrack", "order-service", now(), Duration::from_secs(60)).unwrap();
        let answer = service.create_certificate(request(Some(&token), csr(), 0)).await.unwrap().into_inner();
        assert_eq!(answer.cert_chain.len(), 3);
        let leaf = weft_certs::pem::certificates(answer.cert_chain[0].as_bytes()).unwrap();
        let facts = weft_certs::inspect::facts(&leaf[0]).unwrap();
        assert_eq!(facts.uri_sans, ["spiffe://cluster.local/ns/ecotrack/sa/order-service"]);
        let life = facts.not_after - OffsetDateTime::now_utc();
        assert!((life - time::Duration::hours(24)).abs() < time::Duration::seconds(10), "{life}");
    }

    #[tokio::test]
    async fn a_client_certificate_renews_without_a_token() {
        let (service, _) = service();
        let mut request = request(None, csr(), 60);
        let id: weft_certs::spiffe::SpiffeId = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        request.extensions_mut().insert(PeerInfo { secure: true, certificate: Some(id), address: None });
        let answer = service.create_certificate(request).await.unwrap().into_inner();
        let leaf = weft_certs::pem::certificates(answer.cert_chain[0].as_bytes()).unwrap();
        assert_eq!(
            weft_certs::inspect::facts(&leaf[0]).unwrap().uri_sans,
            ["spiffe://cluster.local/ns/a/sa/b"]
        );
    }

    #[tokio::test]
    async fn nobody_long_lives_and_bad_requests_are_refused_with_what_to_do() {
        let (service, issuer) = service();
        let token = issuer.issue("a", "b", now(), Duration::from_secs(60)).unwrap();
        let old = issuer.issue("a", "b", now() - Duration::from_secs(120), Duration::from_secs(60)).unwrap();
        let unauthenticated = tonic::Code::Unauthenticated;
        let invalid = tonic::Code::InvalidArgument;
        for (request, code, words) in [
            (request(None, csr(), 0), unauthenticated, "weft token create"),
            (request(Some(&old), csr(), 0), unauthenticated, "expired"),
            (request(Some(&token), csr(), 91 * 86_400), invalid, "over the limit"),
            (request(Some(&token), "nonsense".to_owned(), 0), invalid, "cannot be read"),
        ] {
            let status = service.create_certificate(request).await.unwrap_err();
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(words), "{status}");
        }
    }
}
