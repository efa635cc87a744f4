//! Keys that sign configuration: Ed25519, as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them.

use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use zeroize::Zeroizing;

/// What stands before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct KeyError {
    path: PathBuf,
    why: String,
}

fn wrong(path: &Path, why: impl Into<String>) -> KeyError {
    KeyError { path: path.to_owned(), why: why.into() }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    std::fs::read(path).map(Zeroizing::new).map_err(|error| wrong(path, error.to_string()))
}

/// Signs.
#[derive(Debug)]
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// Reads a private key.
    ///
    /// # Errors
    /// The file has none of Ed25519.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let text = read(path)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|error| {
            wrong(path, format!("no private key in PEM (PKCS #8): {error}; weft bundle key makes one"))
        })?;
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.secret_pkcs8_der())
            .map(Self)
            .map_err(|_| wrong(path, "no key of Ed25519; weft bundle key makes one"))
    }

    /// A new one: its private and its public half, PEM.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate() -> anyhow::Result<(Zeroizing<String>, String)> {
        let made = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new())
            .map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(made.as_ref())
            .map_err(|_| anyhow::anyhow!("the key that was made cannot be read"))?;
        let private = weft_certs::pem::encode_key(&PrivatePkcs8KeyDer::from(made.as_ref()));
        let public = [&SPKI[..], key.public_key().as_ref()].concat();
        Ok((Zeroizing::new(private), weft_certs::pem::encode_public(&public)))
    }

    /// The key's name, by which signatures are told apart.
    pub fn name(&self) -> String {
        name(self.0.public_key().as_ref())
    }

    pub(super) fn sign(&self, text: &[u8]) -> Vec<u8> {
        self.0.sign(text).as_ref().to_vec()
    }
}

/// Checks signatures.
#[derive(Clone, Debug)]
pub struct VerifyingKey(Vec<u8>);

impl VerifyingKey {
    /// Reads a public key.
    ///
    /// # Errors
    /// The file has none of Ed25519.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let text = read(path)?;
        let key = SubjectPublicKeyInfoDer::from_pem_slice(&text).map_err(|error| {
            wrong(
                path,
                format!("no public key in PEM: {error}; openssl pkey -pubout makes one of a private key"),
            )
        })?;
        match key.strip_prefix(&SPKI[..]) {
            Some(bytes) if bytes.len() == 32 => Ok(Self(bytes.to_vec())),
            _ => Err(wrong(path, "no public key of Ed25519")),
        }
    }

    /// Its name.
    pub fn name(&self) -> String {
        name(&self.0)
    }

    pub(super) fn verifies(&self, text: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(text, signature).is_ok()
    }
}

fn name(public: &[u8]) -> String {
    weft_certs::digest::sha256_hex(public)[..16].to_owned()
}
