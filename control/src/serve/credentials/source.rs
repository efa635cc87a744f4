//! Reading one credential: from files, from OpenBao's KV engine, and what was kept of it.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::ca::openbao::OpenBao;
use crate::model::Credential;
use crate::model::credentials::CredentialName;

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1024 * 1024;

/// Texts by their keys.
pub(super) type Values = BTreeMap<String, Zeroizing<String>>;

/// Where credentials are.
#[derive(Clone)]
pub enum Source {
    /// Below a directory: NAMESPACE/NAME/KEY.
    Files(PathBuf),
    /// In OpenBao's KV engine, version 2: PREFIX/NAMESPACE/NAME.
    OpenBao {
        /// Whom to ask.
        openbao: OpenBao,
        /// What comes before the namespace; may be empty.
        prefix: String,
    },
}

impl Source {
    /// Where a credential is, for people.
    pub(super) fn place(&self, (namespace, name): &CredentialName) -> String {
        match self {
            Self::Files(directory) => directory.join(namespace).join(name).display().to_string(),
            Self::OpenBao { prefix, .. } => {
                format!("{prefix}/{namespace}/{name}").trim_matches('/').to_owned()
            }
        }
    }

    /// Reads a credential, unless its version is `known`.
    pub(super) async fn read(
        &self,
        name: &CredentialName,
        known: Option<u64>,
    ) -> anyhow::Result<Option<(Option<u64>, Arc<Credential>)>> {
        // Names are of Kubernetes' kind where the configuration is checked; what would leave the directory is never asked for.
        let plain =
            |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '?', '#', '%']);
        ensure!(plain(&name.0) && plain(&name.1), "the name has characters that no path has");
        let (version, values) = match self {
            Self::Files(directory) => {
                let directory = directory.join(&name.0).join(&name.1);
                (None, tokio::task::spawn_blocking(move || files(&directory)).await??)
            }
            Self::OpenBao { openbao, .. } => match openbao.read_kv(&self.place(name), known).await? {
                Some((version, values)) => (Some(version), values),
                None => return Ok(None),
            },
        };
        let credential = Credential::new(values).map_err(anyhow::Error::msg)?;
        Ok(Some((version, Arc::new(credential))))
    }
}

/// The files of a directory, as a Kubernetes volume of a Secret has them: what begins with a point is not of the Secret.
fn files(directory: &Path) -> anyhow::Result<Values> {
    let mut values = Values::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let data = std::fs::metadata(&path).with_context(|| path.display().to_string())?;
        if name.starts_with('.') || !data.is_file() {
            continue;
        }
        ensure!(data.len() <= LONGEST, "{}: has more than {LONGEST} bytes", path.display());
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        values.insert(name, Zeroizing::new(text));
    }
    Ok(values)
}

/// What was last good, in the state directory: a file for each credential, which only its owner reads.
#[derive(Clone, Debug)]
pub(super) struct Kept(pub(super) PathBuf);

#[derive(Serialize, Deserialize)]
struct Stored {
    namespace: String,
    name: String,
    values: BTreeMap<String, String>,
}

impl Kept {
    fn path(&self, (namespace, name): &CredentialName) -> PathBuf {
        self.0.join(format!(
            "{}.json",
            weft_certs::digest::sha256_hex(format!("{namespace}/{name}").as_bytes())
        ))
    }

    pub(super) fn load(&self, name: &CredentialName) -> Option<Arc<Credential>> {
        let text = Zeroizing::new(std::fs::read(self.path(name)).ok()?);
        let stored: Stored = serde_json::from_slice(&text).ok()?;
        if (&stored.namespace, &stored.name) != (&name.0, &name.1) {
            return None;
        }
        let values = stored.values.into_iter().map(|(key, value)| (key, Zeroizing::new(value))).collect();
        Credential::new(values).ok().map(Arc::new)
    }

    pub(super) fn save(&self, name: &CredentialName, credential: &Credential) -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let values = credential.values().iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let values: BTreeMap<_, _> = values.collect();
        let stored = serde_json::json!({"namespace": name.0, "name": name.1, "values": values});
        let text = Zeroizing::new(serde_json::to_vec(&stored)?);
        let path = self.path(name);
        let new = path.with_extension("new");
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)
    }

    /// Nobody uses it any more.
    pub(super) fn forget(&self, name: &CredentialName) {
        let _ = std::fs::remove_file(self.path(name));
    }
}
