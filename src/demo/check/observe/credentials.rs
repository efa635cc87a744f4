//! Certificates for the observers themselves: one that the mesh's certificate service issues for a CSR of theirs, as it does
//! for every workload, and ones by authorities that the mesh does not know.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use xds_protos::istio::v1::auth::IstioCertificateRequest;
use xds_protos::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;

use super::chain;

/// A key and the chain for it, leaf first.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The chain.
    pub chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Credentials {
    /// As rustls takes them.
    pub fn certified(&self) -> anyhow::Result<Arc<CertifiedKey>> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
        Ok(Arc::new(CertifiedKey::new(self.chain.clone(), key)))
    }
}

fn names(id: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
    Ok(params)
}

/// Gets a certificate from the certificate service at `address`: a fresh key, a CSR, and a token to prove who asks.
pub async fn from_mesh(address: SocketAddr, root: &Path, token: &str) -> anyhow::Result<Credentials> {
    let root = std::fs::read(root).with_context(|| format!("the mesh's root {}", root.display()))?;
    let key = KeyPair::generate()?;
    // What the request claims plays no part: the name comes from the token.
    let csr = names("spiffe://cluster.local/ns/nowhere/sa/nobody")?.serialize_request(&key)?.pem()?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(root))
        .domain_name("istiod.istio-system.svc");
    let channel = Channel::from_shared(format!("https://{address}"))?
        .tls_config(tls)?
        .connect()
        .await
        .with_context(|| format!("the certificate service at {address}"))?;
    let mut request = tonic::Request::new(IstioCertificateRequest { csr, ..Default::default() });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let answer = IstioCertificateServiceClient::new(channel)
        .create_certificate(request)
        .await
        .map_err(|status| anyhow::anyhow!("the certificate service: {}", status.message()))?
        .into_inner();
    let chain = chain::from_pem(answer.cert_chain.concat().as_bytes())?;
    Ok(Credentials { chain, key: key.serialize_der() })
}

/// An authority that signs what it likes.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    above: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// One that nobody knows.
    pub fn unknown() -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "nobody's root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { issuer: Issuer::from_ca_cert_der(&certificate, key)?, above: vec![certificate] })
    }

    /// Its certificate.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.above.first()
    }

    /// The mesh's own intermediate, from its state directory: for certificates that the mesh's rules would not give.
    pub fn of_mesh(state: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = state.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))
        };
        let above = chain::from_pem(read("intermediate-cert.pem")?.as_bytes())?;
        let key = KeyPair::from_pem(&read("intermediate-key.pem")?)?;
        let first = above.first().context("no intermediate")?;
        Ok(Self { issuer: Issuer::from_ca_cert_der(first, key)?, above })
    }

    /// A certificate with this URI as its only name.
    pub fn issue(&self, id: &str) -> anyhow::Result<Credentials> {
        self.issue_for(id, time::Duration::minutes(-1), time::Duration::hours(1))
    }

    /// One that is valid between these moments, counted from now.
    pub fn issue_for(
        &self,
        id: &str,
        from: time::Duration,
        until: time::Duration,
    ) -> anyhow::Result<Credentials> {
        let key = KeyPair::generate()?;
        let mut params = names(id)?;
        let now = time::OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now + from, now + until);
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &self.issuer)?.der().clone();
        let chain = std::iter::once(leaf).chain(self.above.iter().cloned()).collect();
        Ok(Credentials { chain, key: key.serialize_der() })
    }
}
