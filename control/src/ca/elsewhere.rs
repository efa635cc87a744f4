//! An authority whose keys are somebody else's: OpenBao's, those of a signer of Kubernetes', or of a server of EST. What the control plane needs to start
//! without it is kept: the roots that were last known (`root-cert.pem`), the key that signs tokens, and the last certificate of the
//! secure port.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use weft_certs::csr::CheckedRequest;
use weft_certs::spiffe::{SpiffeId, TrustDomain};
use zeroize::Zeroizing;

use super::authority::{CertificateAuthority, Limits, SignError};
use super::csr_api::CsrApi;
use super::est::Est;
use super::openbao::{OpenBao, Signed};
use super::store::{self, ROOT_CERTIFICATE, TOKEN_KEY};
use crate::model::Trust;

/// Who signs.
#[derive(Clone)]
pub enum Elsewhere {
    /// OpenBao, at this address.
    OpenBao(OpenBao, String),
    /// A signer of Kubernetes'.
    Kubernetes(Box<CsrApi>),
    /// A server of EST.
    Est(Est),
}

impl Elsewhere {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::OpenBao(..) => "openbao",
            Self::Kubernetes(_) => "kubernetes-csr",
            Self::Est(_) => "est",
        }
    }

    /// Has a request signed for `id`.
    ///
    /// # Errors
    /// It is not signed.
    pub async fn sign(
        &self,
        request: &CheckedRequest,
        id: &SpiffeId,
        dns: &[&str],
        addresses: &[IpAddr],
        life: time::Duration,
    ) -> Result<Signed, SignError> {
        match self {
            Self::OpenBao(openbao, _) => Ok(openbao.sign(request, id, dns, addresses, life).await?),
            Self::Kubernetes(api) => Ok(api.sign(request, id, (dns, addresses), life).await?),
            // It is not asked for a life: the protocol has no word for it.
            Self::Est(est) => Ok(est.sign(request, id, (dns, addresses)).await?),
        }
    }

    /// The roots that its certificates lead to, PEM.
    async fn roots(&self) -> anyhow::Result<String> {
        match self {
            Self::OpenBao(openbao, address) => openbao
                .roots()
                .await
                .with_context(|| format!("{address}: its roots are not known yet (--ca openbao)")),
            Self::Kubernetes(api) => Ok(api.roots()?),
            Self::Est(est) => est.roots().await.context("its roots are not known yet (--ca est)"),
        }
    }
}

/// How often the signer is asked for its roots.
const REFRESH: Duration = Duration::from_secs(60);

/// Opens it; gives also the key that signs tokens. The signer may be away, if it was not when the directory was made.
pub async fn open(
    signer: Elsewhere,
    directory: Option<&Path>,
    limits: Limits,
    domain: TrustDomain,
) -> anyhow::Result<(Arc<CertificateAuthority>, Zeroizing<String>)> {
    if let Some(directory) = directory
        && directory.join("root-key.pem").exists()
    {
        bail!(
            "{} holds the control plane's own authority; with --ca {} choose another --state-dir, and trust both roots \
             while workloads move",
            directory.display(),
            signer.name()
        );
    }
    if let (Elsewhere::Est(est), Some(directory)) = (&signer, directory) {
        est.take_up(directory);
    }
    let kept = directory.and_then(|d| std::fs::read_to_string(d.join(ROOT_CERTIFICATE)).ok());
    if let (Elsewhere::OpenBao(openbao, _), Some(kept)) = (&signer, &kept) {
        openbao.take_up_roots(kept);
    }
    let roots = match (signer.roots().await, kept) {
        (Ok(roots), _) => roots,
        (Err(error), Some(kept)) => {
            tracing::warn!(error = format!("{error:#}"), "starting with the roots that were last known");
            kept
        }
        (Err(error), None) => return Err(error),
    };
    let token_key = match directory {
        Some(directory) => token_key(directory)?,
        None => Zeroizing::new(super::token::new_key()?),
    };
    keep_roots(directory, &roots);
    let directory = directory.map(Path::to_owned);
    let authority =
        CertificateAuthority::elsewhere(signer.clone(), &roots, limits, domain, directory.clone());
    match &signer {
        Elsewhere::OpenBao(openbao, _) => drop(tokio::spawn(openbao.clone().keep_token())),
        Elsewhere::Est(est) => drop(tokio::spawn(est.clone().keep_certificate())),
        Elsewhere::Kubernetes(_) => {}
    }
    tokio::spawn(follow(authority.clone(), signer, directory));
    Ok((authority, token_key))
}

fn token_key(directory: &Path) -> anyhow::Result<Zeroizing<String>> {
    if directory.join(TOKEN_KEY).exists() {
        return Ok(Zeroizing::new(store::read(directory, TOKEN_KEY)?));
    }
    let key = Zeroizing::new(super::token::new_key()?);
    store::write(directory, TOKEN_KEY, &key)?;
    Ok(key)
}

fn keep_roots(directory: Option<&Path>, roots: &str) {
    let Some(directory) = directory else { return };
    if let Err(error) = store::write(directory, ROOT_CERTIFICATE, roots) {
        tracing::warn!(%error, "the signer's roots are not kept; a start without it would fail");
    }
}

/// The secure port's last certificate.
const SERVING: &str = "serving.pem";

/// Keeps the secure port's certificate and key.
pub(super) fn keep(directory: &Path, chain: &str, key: &PrivatePkcs8KeyDer<'_>) {
    let text = Zeroizing::new(weft_certs::pem::encode_key(key) + chain);
    if let Err(error) = store::write(directory, SERVING, &text) {
        tracing::warn!(%error, "the secure port's certificate is not kept; a start without the signer would fail");
    }
}

/// What was kept, if it has not expired at `now`.
pub(super) fn kept(directory: &Path, now: OffsetDateTime) -> Option<(String, PrivatePkcs8KeyDer<'static>)> {
    let text = Zeroizing::new(store::read(directory, SERVING).ok()?);
    let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).ok()?;
    let chain = weft_certs::pem::certificates(text.as_bytes()).ok()?;
    let valid = chain.iter().all(|c| weft_certs::inspect::facts(c).is_ok_and(|f| f.not_after > now));
    valid.then(|| (weft_certs::pem::encode_all(&chain), key))
}

/// Follows the roots: an issuer that is added to the engine is trusted before it signs.
async fn follow(
    authority: Arc<CertificateAuthority>,
    signer: Elsewhere,
    directory: Option<std::path::PathBuf>,
) {
    loop {
        tokio::time::sleep(REFRESH).await;
        let roots = match signer.roots().await {
            Ok(roots) => roots,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the signer's roots were not read; the known ones stay"
                );
                continue;
            }
        };
        let new = Trust { roots: roots.as_str().into(), ..Trust::default() };
        let changed = authority.trust.send_if_modified(|now| {
            let changed = **now != new;
            *now = Arc::new(new);
            changed
        });
        if changed {
            tracing::info!("the signer's roots changed");
            keep_roots(directory.as_deref(), &roots);
        }
    }
}
