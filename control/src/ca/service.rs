//! Istio's certificate service (`istio.v1.auth.IstioCertificateService`), as istio-agent and our own proxy call it.

use std::sync::Arc;
use std::time::Instant;

use time::OffsetDateTime;
use tonic::{Request, Response, Status};
use xds_protos::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use xds_protos::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

use super::PeerInfo;
use super::audit::{Audit, Caller};
use super::authenticate::Authenticators;
use super::authority::{CertificateAuthority, SignError};
use super::limit::RateLimit;

/// The gRPC service.
#[derive(Clone)]
pub struct CertificateService {
    authority: Arc<CertificateAuthority>,
    authenticators: Arc<Authenticators>,
    limit: Arc<RateLimit>,
    audit: Arc<Audit>,
}

impl CertificateService {
    /// Signs with `authority` for whom `authenticators` know, as often as `limit` lets each, and tells `audit`.
    pub fn new(
        authority: Arc<CertificateAuthority>,
        authenticators: Arc<Authenticators>,
        limit: RateLimit,
        audit: Arc<Audit>,
    ) -> Self {
        Self { authority, authenticators, limit: Arc::new(limit), audit }
    }

    async fn sign(
        &self,
        request: Request<IstioCertificateRequest>,
        caller: &mut Caller,
    ) -> Result<Vec<String>, Status> {
        let identity = self.authenticators.of_certificates(&request).await.inspect_err(|_| {
            metrics::counter!("citadel_server_authentication_failure_count").increment(1);
        })?;
        let id = &identity.spiffe;
        (caller.identity, caller.by) = (Some(id.to_string()), Some(identity.by));
        self.limit.take(id.as_str(), Instant::now()).map_err(|seconds| {
            metrics::counter!("citadel_server_csr_rate_limited_count").increment(1);
            Status::resource_exhausted(format!(
                "{id} asks for too many certificates (--max-csrs-per-minute); try again in {seconds} s"
            ))
        })?;
        let request = request.into_inner();
        let now = OffsetDateTime::now_utc();
        // A request that is bad does not use up a token.
        if identity.once.is_some()
            && let Ok(checked) = weft_certs::csr::check(&request.csr)
        {
            self.authenticators.use_up(&identity, checked.public_key())?;
        }
        self.authority.sign(&request.csr, id, request.validity_duration, now).await.map_err(|error| {
            let counted = match error {
                SignError::Request(_) => "citadel_server_csr_parsing_err_count",
                _ => "citadel_server_csr_sign_err_count",
            };
            metrics::counter!(counted).increment(1);
            tracing::warn!(caller = %id, %error, "certificate request refused");
            caller.reason = Some(error.to_string());
            match error.outward() {
                text if error.is_the_requests() => Status::invalid_argument(text),
                text if error.passes() => Status::unavailable(text),
                text => Status::internal(text),
            }
        })
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        metrics::counter!("citadel_server_csr_count").increment(1);
        let address = request.extensions().get::<PeerInfo>().and_then(|p| p.address);
        let mut caller = Caller {
            address: address.map(|a| a.to_string()),
            lifetime: request.get_ref().validity_duration,
            ..Caller::default()
        };
        let chain = self.sign(request, &mut caller).await.inspect_err(|status| {
            self.audit.refused(&caller, caller.reason.as_deref().unwrap_or(status.message()));
        })?;
        metrics::counter!("citadel_server_success_cert_issuance_count").increment(1);
        let leaf = chain.first().and_then(|pem| weft_certs::pem::certificates(pem.as_bytes()).ok());
        if let Some(Ok(facts)) = leaf.and_then(|c| c.first().map(weft_certs::inspect::facts)) {
            self.audit.issued(&caller, &facts.serial, facts.not_after);
        }
        Ok(Response::new(IstioCertificateResponse { cert_chain: chain }))
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
        let authority = CertificateAuthority::new(state, Limits::default(), domain.clone(), None).unwrap();
        let (authenticators, limit) = (Authenticators::new(checker, domain), RateLimit::new(3));
        let audit = Arc::new(Audit::open(None).unwrap());
        (CertificateService::new(authority, authenticators, limit, audit), issuer)
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
    async fn nobody_long_lives_and_bad_requests_are_refused_with_what_to_do_and_counted() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let _counted = metrics::set_default_local_recorder(&recorder);
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
        // Two of these counted against the identity's three a minute.
        service.create_certificate(request(Some(&token), csr(), 60)).await.unwrap();
        let status = service.create_certificate(request(Some(&token), csr(), 60)).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
        let other = issuer.issue("a", "c", now(), Duration::from_secs(60)).unwrap();
        service.create_certificate(request(Some(&other), csr(), 60)).await.unwrap();
        let numbers = recorder.handle().render();
        for line in [
            "citadel_server_csr_count 7",
            "citadel_server_success_cert_issuance_count 2",
            "citadel_server_authentication_failure_count 2",
            "citadel_server_csr_parsing_err_count 1",
            "citadel_server_csr_sign_err_count 1",
            "citadel_server_csr_rate_limited_count 1",
        ] {
            assert!(numbers.lines().any(|l| l == line), "{line}\n{numbers}");
        }
    }

    #[tokio::test]
    async fn every_certificate_and_every_refusal_is_a_line_of_the_audit_log() {
        let (mut service, issuer) = service();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        service.audit = Arc::new(Audit::open(Some(&path)).unwrap());
        let token = issuer.issue("shop", "cart", now(), Duration::from_secs(60)).unwrap();
        service.create_certificate(request(Some(&token), csr(), 60)).await.unwrap();
        service.create_certificate(request(Some(&token), csr(), 91 * 86_400)).await.unwrap_err();
        service.create_certificate(request(None, csr(), 0)).await.unwrap_err();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&token));
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let [issued, long, nobody] = lines.as_slice() else { panic!("{lines:?}") };
        assert_eq!(issued["audit"], "certificate issued");
        assert_eq!(issued["caller"], "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(issued["authenticated_by"], "token");
        assert!(issued["serial"].as_str().is_some_and(|s| s.len() >= 28) && issued["not_after"].is_string());
        assert_eq!(long["audit"], "certificate refused");
        assert_eq!(long["requested_seconds"], 91 * 86_400);
        assert!(long["reason"].as_str().unwrap().contains("over the limit"));
        assert!(nobody["caller"].is_null() && nobody["reason"].as_str().unwrap().contains("no credentials"));
    }

    #[tokio::test]
    async fn a_token_for_one_use_gets_one_certificate_and_nothing_else() {
        let (service, issuer) = service();
        let token = issuer.issue_once("shop", "cart", now(), Duration::from_secs(60)).unwrap();
        // What is no request does not use it up, and it opens nothing but this service.
        let bad =
            service.create_certificate(request(Some(&token), "nonsense".to_owned(), 0)).await.unwrap_err();
        assert_eq!(bad.code(), tonic::Code::InvalidArgument, "{bad}");
        let stream = service.authenticators.of(&request(Some(&token), String::new(), 0)).await.unwrap_err();
        assert!(stream.message().contains("gets a certificate"), "{stream}");
        let own = csr();
        service.create_certificate(request(Some(&token), own.clone(), 60)).await.unwrap();
        // The answer was lost: whoever has the key may have it again.
        service.create_certificate(request(Some(&token), own, 60)).await.unwrap();
        let other = issuer.issue_once("shop", "cart", now(), Duration::from_secs(60)).unwrap();
        let replayed =
            service.authenticators.of_certificates(&request(Some(&token), String::new(), 0)).await.unwrap();
        let refused = service.authenticators.use_up(&replayed, b"another key").unwrap_err();
        assert!(
            refused.code() == tonic::Code::Unauthenticated && refused.message().contains("was used"),
            "{refused}"
        );
        let other =
            service.authenticators.of_certificates(&request(Some(&other), String::new(), 0)).await.unwrap();
        service.authenticators.use_up(&other, b"another key").unwrap();
    }
}
