//! The secrets that an agent serves, by Istio's names.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use weft_certs::pem;
use xds_protos::envoy::config::core::v3::{DataSource, data_source::Specifier};
use xds_protos::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret::Type,
};

use crate::identity::workload::WorkloadCertificate;

/// Where systems keep the roots that they trust; the first that exists counts.
const SYSTEM_ROOTS: [&str; 7] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/etc/ssl/cert.pem",
];

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// `default`: the workload's key and chain.
    Workload,
    /// `ROOTCA`: the mesh's roots.
    Roots,
    /// `file-root:PATH`: roots in a file.
    FileRoots(PathBuf),
    /// `file-root:system`: the roots that the operating system trusts.
    SystemRoots,
    /// `file-cert:CHAIN~KEY`: chain and key in files.
    FileCertificate {
        /// The chain's file.
        chain: PathBuf,
        /// The key's.
        key: PathBuf,
    },
}

impl std::str::FromStr for Source {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let unknown = || {
            format!(
                "the agent has no secret {name:?}; it serves default, ROOTCA, file-root:PATH, file-root:system and \
                 file-cert:CHAIN~KEY (secrets of the cluster, such as kubernetes://, come from the control plane over ADS)"
            )
        };
        match (name, name.split_once(':')) {
            ("default", _) => Ok(Self::Workload),
            ("ROOTCA", _) => Ok(Self::Roots),
            ("file-root:system", _) => Ok(Self::SystemRoots),
            (_, Some(("file-root", path))) if !path.is_empty() => Ok(Self::FileRoots(path.into())),
            (_, Some(("file-cert", paths))) => match paths.split_once('~') {
                Some((chain, key)) if !chain.is_empty() && !key.is_empty() => {
                    Ok(Self::FileCertificate { chain: chain.into(), key: key.into() })
                }
                _ => Err(unknown()),
            },
            _ => Err(unknown()),
        }
    }
}

impl Source {
    /// Whether it can change without the workload's certificate.
    pub(super) fn in_files(&self) -> bool {
        !matches!(self, Self::Workload | Self::Roots)
    }

    /// The secret as it is now, under `name`; none while there is no certificate yet. Files are read and checked, so that a
    /// bad one never takes the place of one that works.
    pub(super) fn read(
        &self,
        name: &str,
        current: Option<&WorkloadCertificate>,
    ) -> Result<Option<Secret>, String> {
        let kind = match self {
            Self::Workload => {
                current.map(|c| certificate(c.chain_pem().into(), c.key_pem().as_bytes().to_vec().into()))
            }
            Self::Roots => current.map(|c| roots(c.bundle_pem().into())),
            Self::FileRoots(path) => Some(read_roots(path)?),
            Self::SystemRoots => {
                let path = SYSTEM_ROOTS.iter().map(Path::new).find(|p| p.exists()).ok_or_else(|| {
                    format!("this system has no bundle of trusted roots at {}", SYSTEM_ROOTS.join(", "))
                })?;
                Some(read_roots(path)?)
            }
            Self::FileCertificate { chain, key } => {
                let (chain_pem, key_pem) = (read(chain)?, read(key)?);
                matching(&chain_pem, &key_pem)
                    .map_err(|e| format!("{} and {}: {e}", chain.display(), key.display()))?;
                Some(certificate(chain_pem, key_pem))
            }
        };
        Ok(kind.map(|kind| Secret { name: name.to_owned(), r#type: Some(kind) }))
    }
}

fn read(path: &Path) -> Result<Bytes, String> {
    Ok(std::fs::read(path).map_err(|e| format!("{} cannot be read: {e}", path.display()))?.into())
}

fn read_roots(path: &Path) -> Result<Type, String> {
    let text = read(path)?;
    pem::certificates(&text).map_err(|e| format!("{} {e}", path.display()))?;
    Ok(roots(text))
}

/// Whether the key is that of the chain's first certificate.
fn matching(chain: &[u8], key: &[u8]) -> Result<(), String> {
    let chain = pem::certificates(chain).map_err(|e| format!("the chain {e}"))?;
    let key = pem::private_key(key).map_err(|e| format!("the key {e}"))?;
    let key = weft_certs::provider().key_provider.load_private_key(key).map_err(|e| e.to_string())?;
    let certified = rustls::sign::CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|e| format!("the certificate is not for the key: {e}"))
}

fn certificate(chain: Bytes, key: Bytes) -> Type {
    Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(chain)),
        private_key: Some(inline(key)),
        ..TlsCertificate::default()
    })
}

fn roots(bundle: Bytes) -> Type {
    Type::ValidationContext(CertificateValidationContext {
        trusted_ca: Some(inline(bundle)),
        ..CertificateValidationContext::default()
    })
}

fn inline(bytes: Bytes) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)), ..DataSource::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istios_names_are_known_and_others_are_refused_with_the_list() {
        let parse = |name: &str| name.parse::<Source>();
        assert_eq!(parse("default"), Ok(Source::Workload));
        assert_eq!(parse("ROOTCA"), Ok(Source::Roots));
        assert_eq!(parse("file-root:system"), Ok(Source::SystemRoots));
        assert_eq!(parse("file-root:/etc/a.pem"), Ok(Source::FileRoots("/etc/a.pem".into())));
        let (chain, key) = ("/c".into(), "/k".into());
        assert_eq!(parse("file-cert:/c~/k"), Ok(Source::FileCertificate { chain, key }));
        for bad in ["", "rootca", "file-root:", "file-cert:/c", "file-cert:~/k", "kubernetes://x"] {
            assert!(parse(bad).unwrap_err().contains("it serves default, ROOTCA"), "{bad}");
        }
    }
}
