//! Other trust domains (MeshConfig, caCertificates): their roots, as PEM or from SPIFFE bundles, beside those of the mesh's own
//! authority. A bundle that cannot be had, or cannot be read, leaves its domain with the roots that were last known.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use http::Method;
use serde_json::Value;
use tokio::sync::watch;

use crate::ca::http::Client;
use crate::ingest::Snapshot;
use crate::model::{MeshConfig, Trust};

/// How often bundles are read.
const REFRESH: Duration = Duration::from_secs(10);

/// Whom the mesh trusts: what its authority says, with what its settings say of other domains.
pub async fn follow(
    mut own: watch::Receiver<Arc<Trust>>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
) -> watch::Receiver<Arc<Trust>> {
    let mut bundles = Bundles::default();
    let said = own.borrow_and_update().clone();
    let first = bundles.beside(&said, &mesh(&mut snapshots)).await;
    let (sender, receiver) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        loop {
            let goes_on = tokio::select! {
                changed = own.changed() => changed.is_ok(),
                changed = snapshots.changed() => changed.is_ok(),
                () = tokio::time::sleep(REFRESH), if bundles.any => true,
            };
            if !goes_on {
                return;
            }
            let said = own.borrow_and_update().clone();
            let next = bundles.beside(&said, &mesh(&mut snapshots)).await;
            sender.send_if_modified(|now| {
                let changed = **now != next;
                *now = Arc::new(next);
                changed
            });
        }
    });
    receiver
}

fn mesh(snapshots: &mut watch::Receiver<Arc<Snapshot>>) -> Arc<MeshConfig> {
    snapshots.borrow_and_update().world.mesh().clone()
}

/// The last good bundles by their URLs.
#[derive(Default)]
struct Bundles {
    known: HashMap<String, Arc<str>>,
    any: bool,
}

impl Bundles {
    async fn beside(&mut self, own: &Trust, mesh: &MeshConfig) -> Trust {
        let mut federated = Vec::new();
        self.any = false;
        for data in &mesh.ca_certificates {
            let roots: Option<Arc<str>> = match data.spiffe_bundle_url.as_str() {
                "" => Some(data.pem.as_str().into()),
                url => {
                    self.any = true;
                    match read(url).await {
                        Ok(roots) => {
                            self.known.insert(url.to_owned(), roots.into());
                        }
                        Err(error) => {
                            let kept = self.known.contains_key(url);
                            let domains = data.trust_domains.join(", ");
                            tracing::warn!(
                                url,
                                domains,
                                error = format!("{error:#}"),
                                kept,
                                "no SPIFFE bundle"
                            );
                        }
                    }
                    self.known.get(url).cloned()
                }
            };
            for domain in &data.trust_domains {
                federated.extend(roots.clone().map(|roots| (domain.clone(), roots)));
            }
        }
        let domains = std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases).cloned();
        // Where there are no others, the own ones' names change nothing, and are not told.
        let domains = if federated.is_empty() { Vec::new() } else { domains.collect() };
        Trust { domains, federated, ..own.clone() }
    }
}

/// The roots of a SPIFFE bundle, as PEM.
async fn read(url: &str) -> anyhow::Result<String> {
    let bytes = match url.strip_prefix("file://") {
        Some(path) => tokio::fs::read(path).await?.into(),
        None => {
            let (status, bytes) = Client::new(url, None)?.call(Method::GET, "", &[], None).await?;
            anyhow::ensure!(status.is_success(), "it answers {status}");
            bytes
        }
    };
    roots(&serde_json::from_slice(&bytes)?)
}

/// SPIFFE Trust Domain and Bundle, section 4: a JWK set whose keys for x509-svid hold one certificate each.
fn roots(bundle: &Value) -> anyhow::Result<String> {
    let keys = bundle["keys"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut pem = String::new();
    for key in keys.iter().filter(|k| k["use"] == "x509-svid") {
        let text = key["x5c"][0].as_str().ok_or_else(|| anyhow::anyhow!("a key for x509-svid has no x5c"))?;
        let der = base64::engine::general_purpose::STANDARD.decode(text)?;
        let certificate = rustls_pki_types::CertificateDer::from(der);
        weft_certs::inspect::facts(&certificate)?;
        pem += &weft_certs::pem::encode(&certificate);
    }
    anyhow::ensure!(!pem.is_empty(), "it holds no root (a key with use x509-svid)");
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weft_certs::authority::{Authority, KeyKind};

    use super::*;
    use crate::model::mesh_config::CertificateData;

    fn bundle(root: &Authority) -> Value {
        let der = base64::engine::general_purpose::STANDARD.encode(root.certificate());
        json!({"spiffe_sequence": 1, "keys": [{"use": "jwt-svid", "kty": "EC"}, {"use": "x509-svid", "kty": "EC", "x5c": [der]}]})
    }

    #[tokio::test]
    async fn a_bundle_gives_a_domains_roots_and_a_broken_one_leaves_those_that_were_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("partner.json");
        let now = time::OffsetDateTime::now_utc();
        let root = Authority::root(KeyKind::P256, now, time::Duration::days(1)).unwrap();
        let mesh = MeshConfig {
            ca_certificates: vec![CertificateData {
                spiffe_bundle_url: format!("file://{}", path.display()),
                trust_domains: vec!["partner.example".to_owned()],
                ..CertificateData::default()
            }],
            ..MeshConfig::default()
        };
        let own = Trust { roots: "own".into(), ..Trust::default() };
        let mut bundles = Bundles::default();
        assert_eq!(bundles.beside(&own, &mesh).await, own, "nothing is known yet, and nobody new trusted");
        std::fs::write(&path, bundle(&root).to_string()).unwrap();
        let trust = bundles.beside(&own, &mesh).await;
        assert_eq!(trust.federated, [("partner.example".to_owned(), root.certificate_pem().into())]);
        assert_eq!((trust.domains.as_slice(), &*trust.roots), (&["cluster.local".to_owned()][..], "own"));
        for broken in [
            "",
            "{}",
            r#"{"keys": []}"#,
            r#"{"keys": [{"use": "x509-svid"}]}"#,
            r#"{"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}"#,
        ] {
            std::fs::write(&path, broken).unwrap();
            assert_eq!(bundles.beside(&own, &mesh).await, trust, "{broken}");
        }
        assert_eq!(bundles.beside(&own, &MeshConfig::default()).await, own);
    }
}
