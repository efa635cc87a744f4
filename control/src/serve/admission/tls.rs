//! The webhooks' certificate.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;
use rustls::ServerConfig;

/// A certificate that may be another one for the next connection.
pub trait Certificate: Send + Sync {
    /// TLS with the certificate of now.
    fn current(&self) -> Arc<ServerConfig>;
}

impl Certificate for Arc<ServerConfig> {
    fn current(&self) -> Arc<ServerConfig> {
        self.clone()
    }
}

/// A certificate in files, which somebody else renews.
pub struct Files {
    chain: PathBuf,
    key: PathBuf,
    /// What was in them when they last made sense.
    good: Mutex<(Vec<u8>, Vec<u8>, Arc<ServerConfig>)>,
}

impl Files {
    /// Reads the files.
    ///
    /// # Errors
    /// They have no certificate, or no key that fits.
    pub fn open(chain: PathBuf, key: PathBuf) -> anyhow::Result<Self> {
        let good = load(&chain, &key, None)?.context("unreadable")?;
        Ok(Self { chain, key, good: Mutex::new(good) })
    }
}

type Loaded = (Vec<u8>, Vec<u8>, Arc<ServerConfig>);

fn load(
    chain: &std::path::Path,
    key: &std::path::Path,
    known: Option<&Loaded>,
) -> anyhow::Result<Option<Loaded>> {
    let read = |path: &std::path::Path| std::fs::read(path).with_context(|| path.display().to_string());
    let (chain_text, key_text) = (read(chain)?, read(key)?);
    if known.is_some_and(|(a, b, _)| *a == chain_text && *b == key_text) {
        return Ok(None);
    }
    let certificates =
        weft_certs::pem::certificates(&chain_text).with_context(|| chain.display().to_string())?;
    let private = weft_certs::pem::private_key(&key_text).with_context(|| key.display().to_string())?;
    let mut config = ServerConfig::builder_with_provider(weft_certs::provider().clone())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, private)
        .with_context(|| format!("{} and {}", chain.display(), key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some((chain_text, key_text, Arc::new(config))))
}

impl Certificate for Files {
    fn current(&self) -> Arc<ServerConfig> {
        let mut good = self.good.lock();
        match load(&self.chain, &self.key, Some(&good)) {
            Ok(None) => {}
            Ok(Some(new)) => *good = new,
            // Written halfway, most likely: the next connection finds the rest.
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "the webhooks' certificate stays the old one");
            }
        }
        good.2.clone()
    }
}
