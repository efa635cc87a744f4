//! Who signs: by default the control plane, over Istio's certificate service.

use std::time::Duration;

use tonic::Request;
use xds_protos::istio::v1::auth::IstioCertificateRequest;
use xds_protos::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;

use super::{ClientCertificate, Current, IdentityError, beside};
use crate::xds::{Credentials, Endpoint};

/// Signs certificate requests.
pub trait Signer: Send {
    /// Signs a request in PEM. Gives PEM texts: the leaf, intermediates, and last the root bundle. Without a `lifetime` the
    /// signer decides it.
    fn sign(
        &self,
        csr: String,
        lifetime: Option<Duration>,
    ) -> impl Future<Output = Result<Vec<String>, IdentityError>> + Send;
}

/// The control plane's certificate service (`istio.v1.auth.IstioCertificateService`).
#[derive(Clone, Debug)]
pub struct GrpcSigner {
    endpoint: Endpoint,
    credentials: Credentials,
    current: Current,
}

impl GrpcSigner {
    /// Calls the service at `endpoint`; proves who we are by the token of `credentials`, and once there is a `current`
    /// certificate also by that.
    pub fn new(mut endpoint: Endpoint, credentials: Credentials, current: Current) -> Self {
        if let Some(tls) = &mut endpoint.tls
            && tls.identity.is_none()
        {
            tls.identity = Some(ClientCertificate::new(current.clone()));
            tls.beside = Some(beside(current.clone()));
        }
        Self { endpoint, credentials, current }
    }
}

impl Signer for GrpcSigner {
    async fn sign(&self, csr: String, lifetime: Option<Duration>) -> Result<Vec<String>, IdentityError> {
        let certified = self.endpoint.tls.is_some() && self.current.borrow().is_some();
        let metadata = match certified {
            true => self.credentials.metadata_beside_certificate()?,
            false => self.credentials.metadata()?,
        };
        let channel = self.endpoint.connect().await?;
        let validity_duration = lifetime.map_or(0, |l| i64::try_from(l.as_secs()).unwrap_or(i64::MAX));
        let mut request =
            Request::new(IstioCertificateRequest { csr, validity_duration, ..Default::default() });
        *request.metadata_mut() = metadata;
        let mut client = IstioCertificateServiceClient::new(channel);
        let answer = client.create_certificate(request).await.map_err(|status| IdentityError::Refused {
            address: self.endpoint.address.to_string(),
            code: status.code(),
            message: status.message().to_owned(),
        })?;
        Ok(answer.into_inner().cert_chain)
    }
}
