//! The files: links into a directory of one version of them. One link leads to that directory and is replaced in one step; the
//! version before stays, for those who are reading it.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context;
use weft_certs::digest::sha256_hex;

use crate::identity::workload::WorkloadCertificate;

const CHAIN: &str = "cert-chain.pem";
const KEY: &str = "key.pem";
const ROOTS: &str = "root-cert.pem";
/// The link that is replaced; Kubernetes does it so, and Envoy's `watched_directory` waits for it.
const DATA: &str = "..data";
/// What the names of directories with one version of the files begin with.
const VERSION: &str = "..version-";

/// A directory of files.
pub(super) struct Files(PathBuf);

impl Files {
    /// Makes the directory.
    ///
    /// # Errors
    /// It cannot be made, or is no directory.
    pub(super) fn new(directory: &Path) -> anyhow::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .with_context(|| format!("{}: cannot be made (--out)", directory.display()))?;
        Ok(Self(directory.to_owned()))
    }

    /// Puts a certificate in the place of the one before.
    ///
    /// # Errors
    /// Something cannot be written; the files before are as they were.
    pub(super) fn write(&self, certificate: &WorkloadCertificate) -> anyhow::Result<()> {
        self.replace(certificate).with_context(|| {
            let place = self.0.display();
            format!("{place}: the certificate cannot be written; check the directory's owner and free space")
        })
    }

    fn replace(&self, certificate: &WorkloadCertificate) -> anyhow::Result<()> {
        let before = std::fs::read_link(self.0.join(DATA)).unwrap_or_default();
        let chain = certificate.chain_pem();
        let name = format!("{VERSION}{}", &sha256_hex(chain.as_bytes())[..16]);
        let version = self.0.join(&name);
        if version.exists() {
            std::fs::remove_dir_all(&version)?;
        }
        std::fs::create_dir(&version)?;
        // Certificates are for anybody's eyes, the key for its owner's.
        file(&version.join(CHAIN), chain.as_bytes(), 0o644)?;
        file(&version.join(ROOTS), certificate.bundle_pem().as_bytes(), 0o644)?;
        file(&version.join(KEY), certificate.key_pem().as_bytes(), 0o600)?;
        std::fs::File::open(&version)?.sync_all()?;
        link(&name, &self.0, DATA)?;
        for name in [CHAIN, KEY, ROOTS] {
            let path = self.0.join(name);
            let wanted = Path::new(DATA).join(name);
            if std::fs::read_link(&path).ok().as_deref() != Some(&wanted) {
                link(&wanted.to_string_lossy(), &self.0, name)?;
            }
        }
        std::fs::File::open(&self.0)?.sync_all()?;
        for entry in std::fs::read_dir(&self.0)?.flatten() {
            let other = entry.file_name();
            let stays = other.to_string_lossy() == name || other == before.as_os_str();
            if other.to_string_lossy().starts_with(VERSION) && !stays {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

fn file(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes or replaces a link in one step.
fn link(to: &str, directory: &Path, name: &str) -> std::io::Result<()> {
    let new = directory.join(format!("..new-{}", name.trim_start_matches('.')));
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    symlink(to, &new)?;
    std::fs::rename(&new, directory.join(name))
}
