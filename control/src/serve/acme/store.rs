//! What must outlive the control plane: accounts with ACME servers, and the last good certificates. In the state directory
//! below `acme`, readable by their owner only, each file replaced whole; without a state directory in memory.

use std::collections::HashMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use instant_acme::AccountCredentials;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use weft_certs::digest::sha256_hex;
use zeroize::Zeroizing;

use super::certificate::Certificate;
use crate::ca::store;

/// The store.
pub(super) struct Store {
    directory: Option<PathBuf>,
    /// Accounts without a directory.
    accounts: Mutex<HashMap<String, String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    directory_url: String,
    chain: String,
    key: Zeroizing<String>,
}

fn account_file(directory_url: &str, email: &str) -> String {
    // URLs are too long and too colourful for names of files.
    let digest = sha256_hex(format!("{directory_url}\n{email}").as_bytes());
    format!("account-{}.json", &digest[..32])
}

/// Namespaces have no dots, so that no two credentials share a file.
fn certificate_file(namespace: &str, name: &str) -> String {
    format!("certificate-{namespace}.{name}.json")
}

impl Store {
    /// The store below a state directory.
    pub(super) fn open(state: Option<&Path>) -> anyhow::Result<Self> {
        let directory = state.map(|state| state.join("acme"));
        if let Some(directory) = &directory {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .with_context(|| directory.display().to_string())?;
        }
        Ok(Self { directory, accounts: Mutex::default() })
    }

    /// Whether what is issued outlives the process.
    pub(super) fn lasts(&self) -> bool {
        self.directory.is_some()
    }

    fn read(&self, file: &str) -> anyhow::Result<Option<Zeroizing<String>>> {
        let Some(directory) = &self.directory else {
            return Ok(self.accounts.lock().get(file).cloned().map(Zeroizing::new));
        };
        let path = directory.join(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(Zeroizing::new(text))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// The account with a server, if there is one.
    pub(super) fn account(
        &self,
        directory_url: &str,
        email: &str,
    ) -> anyhow::Result<Option<AccountCredentials>> {
        let Some(text) = self.read(&account_file(directory_url, email))? else { return Ok(None) };
        Ok(Some(serde_json::from_str(&text).context("the stored account is damaged")?))
    }

    /// Keeps an account.
    pub(super) fn keep_account(
        &self,
        directory_url: &str,
        email: &str,
        account: &AccountCredentials,
    ) -> anyhow::Result<()> {
        let (file, text) = (account_file(directory_url, email), serde_json::to_string(account)?);
        match &self.directory {
            Some(directory) => store::write(directory, &file, &text)?,
            None => drop(self.accounts.lock().insert(file, text)),
        }
        Ok(())
    }

    /// Forgets an account that its server does not know any more.
    pub(super) fn forget_account(&self, directory_url: &str, email: &str) {
        let file = account_file(directory_url, email);
        self.accounts.lock().remove(&file);
        if let Some(directory) = &self.directory
            && let Err(error) = std::fs::remove_file(directory.join(&file))
        {
            tracing::warn!(file, %error, "an account of no use cannot be removed");
        }
    }

    /// The last good certificate of a credential, if there is one.
    pub(super) fn certificate(&self, namespace: &str, name: &str) -> anyhow::Result<Option<Certificate>> {
        let file = certificate_file(namespace, name);
        let Some(text) = self.read(&file)? else { return Ok(None) };
        let stored: Stored =
            serde_json::from_str(&text).with_context(|| format!("{file} is damaged; it is issued anew"))?;
        Ok(Some(Certificate::read(&stored.directory_url, stored.chain, stored.key).context(file)?))
    }

    /// Keeps a certificate.
    pub(super) fn keep_certificate(
        &self,
        namespace: &str,
        name: &str,
        certificate: &Certificate,
    ) -> anyhow::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let stored = Stored {
            directory_url: certificate.directory.clone(),
            chain: certificate.chain.clone(),
            key: certificate.key.clone(),
        };
        let text = Zeroizing::new(serde_json::to_string(&stored)?);
        Ok(store::write(directory, &certificate_file(namespace, name), &text)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn issued(name: &str) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
        Certificate::read("https://ca/dir", certificate.pem(), Zeroizing::new(key.serialize_pem())).unwrap()
    }

    fn account(id: &str) -> AccountCredentials {
        let key = base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, [1, 2, 3]);
        serde_json::from_value(serde_json::json!({"id": id, "key_pkcs8": key, "directory": "https://ca/dir"}))
            .unwrap()
    }

    fn id(account: Option<AccountCredentials>) -> Option<String> {
        account.map(|a| serde_json::to_value(a).unwrap()["id"].as_str().unwrap().to_owned())
    }

    #[test]
    fn what_is_kept_comes_back_and_only_its_owner_reads_it() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(Some(state.path())).unwrap();
        assert!(store.certificate("n", "c").unwrap().is_none());
        let certificate = issued("a.example");
        store.keep_certificate("n", "c", &certificate).unwrap();
        store.keep_account("https://ca/dir", "", &account("one")).unwrap();
        store.keep_account("https://ca/dir", "ops@a", &account("two")).unwrap();

        let store = Store::open(Some(state.path())).unwrap();
        let kept = store.certificate("n", "c").unwrap().unwrap();
        assert_eq!(
            (&kept.chain, &kept.key, &kept.names),
            (&certificate.chain, &certificate.key, &certificate.names)
        );
        assert_eq!(id(store.account("https://ca/dir", "").unwrap()).as_deref(), Some("one"));
        assert_eq!(id(store.account("https://ca/dir", "ops@a").unwrap()).as_deref(), Some("two"));
        let directory = state.path().join("acme");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        let files: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|f| f.unwrap().path()).collect();
        assert_eq!(files.len(), 3);
        assert!(files.iter().all(|file| mode(file) == 0o600), "{files:?}");
        store.forget_account("https://ca/dir", "");
        assert!(store.account("https://ca/dir", "").unwrap().is_none());
    }

    #[test]
    fn a_damaged_file_says_which_it_is_and_is_not_taken() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(Some(state.path())).unwrap();
        let (one, other) = (issued("a.example"), issued("a.example"));
        store.keep_certificate("n", "c", &Certificate { key: other.key, ..one }).unwrap();
        let error = format!("{:#}", store.certificate("n", "c").unwrap_err());
        assert!(error.contains("certificate-n.c.json") && error.contains("not for the key"), "{error}");
        std::fs::write(state.path().join("acme/certificate-n.c.json"), "{").unwrap();
        let error = format!("{:#}", store.certificate("n", "c").unwrap_err());
        assert!(error.contains("certificate-n.c.json is damaged"), "{error}");
    }

    #[test]
    fn without_a_directory_accounts_live_as_long_as_the_process() {
        let store = Store::open(None).unwrap();
        assert!(!store.lasts());
        store.keep_account("https://ca/dir", "", &account("one")).unwrap();
        assert_eq!(id(store.account("https://ca/dir", "").unwrap()).as_deref(), Some("one"));
    }
}
