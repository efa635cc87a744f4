//! Kubernetes' CSR API as the signer (certificates.k8s.io/v1): each request becomes a CertificateSigningRequest, which the control
//! plane approves, since it knows who asks, and which a signer of the cluster's signs.
//!
//! Such a signer takes names from the request, which the proxy wrote. So a request goes on only if it names its proven sender and
//! nobody else, and what comes back is looked at again.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use weft_certs::csr::CheckedRequest;
use weft_certs::spiffe::SpiffeId;

use super::believed::{self, SHORTEST};
use super::openbao::Signed;

/// How long a signer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(150);
/// Begins the names of signers whose certificates say who somebody is to the cluster itself.
const OWN: &str = "kubernetes.io/";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CsrApiError {
    /// The request names somebody else, and the signer would believe it.
    #[error(
        "the request is for {named}, and {id} asks: a signer of Kubernetes' takes names from the request; have it name {id} as its one URI, and nothing besides"
    )]
    Names {
        /// What it names.
        named: String,
        /// Who asks.
        id: String,
    },
    /// The API server does not do what is asked.
    #[error(
        "the Kubernetes API: {0}; look at the rights of the control plane's account for certificatesigningrequests"
    )]
    Api(#[from] kube::Error),
    /// Nobody signs.
    #[error(
        "the signer {signer} has not signed {name} in {PATIENCE:?}: does it run, and does it sign what is approved?"
    )]
    Late {
        /// The signer.
        signer: String,
        /// The CertificateSigningRequest.
        name: String,
    },
    /// The signer says no.
    #[error("{name} is {kind}: {message}")]
    Refused {
        /// The CertificateSigningRequest.
        name: String,
        /// Denied, or Failed.
        kind: String,
        /// Why.
        message: String,
    },
    /// What came back is of no use.
    #[error("the certificate of {signer} cannot be used: {why}")]
    Answer {
        /// The signer.
        signer: String,
        /// Why not.
        why: String,
    },
    /// Nobody knows whom to trust.
    #[error("--ca-trust {}: {why}", path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl CsrApiError {
    /// Whether asking again may help.
    pub fn passes(&self) -> bool {
        match self {
            Self::Late { .. } => true,
            Self::Api(kube::Error::Api(status)) => status.code == 429 || status.code >= 500,
            Self::Api(_) => true,
            _ => false,
        }
    }

    /// Whether the request is to blame.
    pub fn is_the_requests(&self) -> bool {
        matches!(self, Self::Names { .. })
    }
}

/// A signer of the cluster's.
#[derive(Clone)]
pub struct CsrApi {
    api: Api<CertificateSigningRequest>,
    signer: String,
    roots: PathBuf,
    /// The longest life that a certificate may have.
    longest: time::Duration,
}

impl CsrApi {
    /// The signer of this name, whose certificates lead to the roots in this file.
    ///
    /// # Errors
    /// It is one of Kubernetes' own.
    pub fn new(
        client: Client,
        signer: &str,
        roots: PathBuf,
        longest: time::Duration,
    ) -> anyhow::Result<Self> {
        if signer.starts_with(OWN) {
            anyhow::bail!(
                "--ca-signer-name {signer}: Kubernetes' own signers are for the cluster's own identities; name another one"
            );
        }
        if !signer.split_once('/').is_some_and(|(domain, path)| domain.contains('.') && !path.is_empty()) {
            anyhow::bail!(
                "--ca-signer-name {signer}: a signer is called DOMAIN/PATH, such as mesh.example.com/workloads"
            );
        }
        Ok(Self { api: Api::all(client), signer: signer.to_owned(), roots, longest })
    }

    /// The roots as the file has them now, PEM.
    ///
    /// # Errors
    /// It has none.
    pub fn roots(&self) -> Result<String, CsrApiError> {
        let bad = |why: String| CsrApiError::Roots { path: self.roots.clone(), why };
        let text = std::fs::read(&self.roots).map_err(|error| bad(error.to_string()))?;
        believed::roots(&text).map_err(bad)
    }

    /// Has a request signed, for a proven sender. `besides` are the DNS names and addresses that it names.
    ///
    /// # Errors
    /// It is for somebody else, or nobody signs it.
    pub async fn sign(
        &self,
        request: &CheckedRequest,
        id: &SpiffeId,
        besides: (&[&str], &[IpAddr]),
        life: time::Duration,
    ) -> Result<Signed, CsrApiError> {
        believed::names_its_sender(request, id, besides)
            .map_err(|named| CsrApiError::Names { named, id: id.to_string() })?;
        let object = CertificateSigningRequest {
            metadata: ObjectMeta { generate_name: Some("weft-".to_owned()), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                request: ByteString(request.pem().into_bytes()),
                signer_name: self.signer.clone(),
                usages: Some(
                    ["digital signature", "key encipherment", "server auth", "client auth"]
                        .map(str::to_owned)
                        .to_vec(),
                ),
                // The API takes no request for less.
                expiration_seconds: Some(
                    i32::try_from(life.whole_seconds().max(SHORTEST)).unwrap_or(i32::MAX),
                ),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let made = self.api.create(&PostParams::default(), &object).await?;
        let ObjectMeta { name, uid, .. } = made.metadata;
        let name = name.unwrap_or_default();
        let signed = self.approved_and_signed(&name, uid.as_deref(), id).await;
        // The API server forgets it in an hour anyway.
        if let Err(error) = self.api.delete(&name, &DeleteParams::default()).await {
            tracing::debug!(name, %error, "a CertificateSigningRequest that is done with is left behind");
        }
        self.checked(&signed?, request, id)
    }

    async fn approved_and_signed(
        &self,
        name: &str,
        uid: Option<&str>,
        id: &SpiffeId,
    ) -> Result<Vec<u8>, CsrApiError> {
        // The one that was made, and no other that has its name by now.
        let approval = json!({"metadata": {"uid": uid}, "status": {"conditions": [{
            "type": "Approved", "status": "True", "reason": "ProvenIdentity",
            "message": format!("{id} has proven to the control plane of the mesh who it is"),
        }]}});
        self.api.patch_approval(name, &PatchParams::default(), &Patch::Merge(&approval)).await?;
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = self.api.get(name).await?.status.unwrap_or_default();
            if let Some(ByteString(certificate)) = status.certificate.filter(|c| !c.0.is_empty()) {
                return Ok(certificate);
            }
            for condition in status.conditions.unwrap_or_default() {
                if matches!(condition.type_.as_str(), "Denied" | "Failed") {
                    return Err(CsrApiError::Refused {
                        name: name.to_owned(),
                        kind: condition.type_,
                        message: condition.message.unwrap_or_default(),
                    });
                }
            }
            if tokio::time::Instant::now() >= end {
                return Err(CsrApiError::Late { signer: self.signer.clone(), name: name.to_owned() });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn checked(&self, text: &[u8], request: &CheckedRequest, id: &SpiffeId) -> Result<Signed, CsrApiError> {
        let bad = |why: String| CsrApiError::Answer { signer: self.signer.clone(), why };
        let chain = weft_certs::pem::certificates(text).map_err(|error| bad(error.to_string()))?;
        believed::usable(&chain, &self.roots()?, request, id, self.longest).map_err(bad)
    }
}

#[cfg(test)]
mod tests {
    use weft_certs::csr;

    use super::*;

    fn api(signer: &str, roots: &std::path::Path) -> anyhow::Result<CsrApi> {
        // Nobody is there.
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        CsrApi::new(Client::try_from(config).unwrap(), signer, roots.to_owned(), time::Duration::days(90))
    }

    fn id(account: &str) -> SpiffeId {
        format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
    }

    #[tokio::test]
    async fn a_request_for_somebody_else_goes_no_further() {
        let api = api("mesh.example.com/workloads", "roots".as_ref()).unwrap();
        let asks = async |request: &csr::NewRequest| {
            let checked = csr::check(&request.csr).unwrap();
            api.sign(&checked, &id("cart"), (&[], &[]), time::Duration::hours(1)).await.unwrap_err()
        };
        for request in
            [csr::make(&id("admin")), csr::make_server(&id("cart"), &["istiod.istio-system.svc"], &[])]
        {
            let error = asks(&request.unwrap()).await;
            assert!(error.is_the_requests() && !error.passes(), "{error}");
            assert!(error.to_string().contains("spiffe://cluster.local/ns/shop/sa/cart asks"), "{error}");
        }
        // Its own would go on, to an API server that is away.
        let error = asks(&csr::make(&id("cart")).unwrap()).await;
        assert!(!error.is_the_requests() && error.passes(), "{error}");
    }

    #[tokio::test]
    async fn signers_of_the_clusters_own_identities_and_files_without_roots_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("roots.pem");
        let refused = |signer: &str| api(signer, &file).err().unwrap().to_string();
        assert!(refused("kubernetes.io/kube-apiserver-client").contains("Kubernetes' own signers"));
        assert!(refused("workloads").contains("DOMAIN/PATH"));
        let api = api("mesh.example.com/workloads", &file).unwrap();
        assert!(api.roots().unwrap_err().to_string().contains("roots.pem"));
        let now = time::OffsetDateTime::now_utc();
        let kind = weft_certs::authority::KeyKind::P256;
        let root = weft_certs::authority::Authority::root(kind, now, time::Duration::days(2)).unwrap();
        let below = root.intermediate(kind, now, time::Duration::days(1)).unwrap();
        std::fs::write(&file, below.certificate_pem()).unwrap();
        assert!(api.roots().unwrap_err().to_string().contains("holds no root"));
        std::fs::write(&file, below.certificate_pem().to_owned() + root.certificate_pem()).unwrap();
        assert_eq!(api.roots().unwrap(), root.certificate_pem());
    }
}
