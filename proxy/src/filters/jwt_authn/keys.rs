//! Key sets (RFC 7517) and signatures (RFC 7518, RFC 8037).

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents};
use base64::Engine;
use serde_json::Value;

use super::refusal::Refusal;
use super::token::{Alg, BASE64, Token};

/// A set of keys.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<Key>,
}

struct Key {
    kid: String,
    alg: Option<Alg>,
    material: Material,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the material: it may be a shared secret.
        write!(f, "Key({:?}, {:?})", self.kid, self.alg)
    }
}

enum Material {
    Rsa(RsaPublicKeyComponents<Box<[u8]>>),
    /// For ECDSA with a hash of so many bits; each curve goes with one.
    Ec(u16, ParsedPublicKey),
    Ed25519(ParsedPublicKey),
    /// A shared secret.
    Oct(Box<[u8]>),
}

const ED25519_SIGNATURE: usize = 64;

impl KeySet {
    /// Reads a key set. Keys of a kind that is not known are passed over (RFC 7517, section 5).
    ///
    /// # Errors
    /// It is no key set, or has no key that can be used.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(text).map_err(|e| format!("is no JSON: {e}"))?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or("has no list `keys`")?;
        let mut wrong = Vec::new();
        let mut read = Vec::with_capacity(keys.len());
        for (index, key) in keys.iter().enumerate() {
            match Key::read(key) {
                Ok(key) => read.push(key),
                Err(why) => wrong.push(format!("keys[{index}] {why}")),
            }
        }
        if read.is_empty() {
            let why = if wrong.is_empty() { "it is empty".to_owned() } else { wrong.join("; ") };
            return Err(format!("has no key that can be used: {why}"));
        }
        Ok(Self { keys: read })
    }

    /// Verifies a token's signature with the keys that may have made it.
    ///
    /// # Errors
    /// None did, or none may.
    pub fn verify(&self, token: &Token) -> Result<(), Refusal> {
        let mut any = false;
        for key in &self.keys {
            if !token.kid.is_empty() && !key.kid.is_empty() && token.kid != key.kid {
                continue;
            }
            if key.alg.is_some_and(|alg| alg != token.alg) {
                continue;
            }
            any = true;
            if matches!(key.material, Material::Ed25519(_)) && token.signature.len() != ED25519_SIGNATURE {
                return Err(Refusal::Ed25519Length);
            }
            if key.material.verifies(token) {
                return Ok(());
            }
        }
        Err(if any { Refusal::Verification } else { Refusal::NoKey })
    }
}

impl Key {
    fn read(key: &Value) -> Result<Self, String> {
        let text = |name: &str| match key.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(format!("has a [{name}] that is no text")),
        };
        let bytes = |name: &str| -> Result<Vec<u8>, String> {
            let text = text(name)?.ok_or_else(|| format!("has no [{name}]"))?;
            BASE64.decode(text).map_err(|_| format!("has a [{name}] that is no base64"))
        };
        let kid = text("kid")?.unwrap_or_default().to_owned();
        let alg = match text("alg")? {
            None | Some("") => None,
            Some(name) => Some(Alg::parse(name).ok_or_else(|| format!("is for {name:?}"))?),
        };
        let rejected = |_| "is rejected by the cryptography library".to_owned();
        let kty = text("kty")?.ok_or("has no [kty]")?;
        let (material, fits) = match kty {
            "RSA" => {
                let part = |name| {
                    let bytes = bytes(name)?;
                    let zeros = bytes.iter().take_while(|b| **b == 0).count();
                    Ok::<_, String>(Box::from(&bytes[zeros..]))
                };
                let material = Material::Rsa(RsaPublicKeyComponents { n: part("n")?, e: part("e")? });
                (material, matches!(alg, None | Some(Alg::Rs(_) | Alg::Ps(_))))
            }
            "EC" => {
                let (bits, length, algorithm) = match text("crv")? {
                    Some("P-256") => (256, 32, &signature::ECDSA_P256_SHA256_FIXED),
                    Some("P-384") => (384, 48, &signature::ECDSA_P384_SHA384_FIXED),
                    Some("P-521") => (512, 66, &signature::ECDSA_P521_SHA512_FIXED),
                    other => return Err(format!("has the curve {other:?}")),
                };
                let mut point = vec![4];
                for name in ["x", "y"] {
                    let part = bytes(name)?;
                    let missing = usize::checked_sub(length, part.len())
                        .ok_or_else(|| format!("has a [{name}] too long"))?;
                    point.resize(point.len() + missing, 0);
                    point.extend_from_slice(&part);
                }
                let key = ParsedPublicKey::new(algorithm, point).map_err(rejected)?;
                (Material::Ec(bits, key), alg.is_none_or(|a| a == Alg::Es(bits)))
            }
            "OKP" if text("crv")? == Some("Ed25519") => {
                let key = ParsedPublicKey::new(&signature::ED25519, bytes("x")?).map_err(rejected)?;
                (Material::Ed25519(key), alg.is_none_or(|a| a == Alg::EdDsa))
            }
            "oct" => (Material::Oct(bytes("k")?.into()), matches!(alg, None | Some(Alg::Hs(_)))),
            other => return Err(format!("has the type {other:?}")),
        };
        if !fits {
            return Err(format!("of type {kty} is for {alg:?}"));
        }
        Ok(Self { kid, alg, material })
    }
}

impl Material {
    /// Whether this key made the token's signature. An algorithm of another family than the key's never fits: a public key
    /// must not serve as an HMAC secret.
    fn verifies(&self, token: &Token) -> bool {
        let (message, signature) = (token.signed.as_bytes(), &*token.signature);
        match (self, token.alg) {
            (Self::Rsa(key), Alg::Rs(bits)) => key.verify(pkcs1(bits), message, signature).is_ok(),
            (Self::Rsa(key), Alg::Ps(bits)) => key.verify(pss(bits), message, signature).is_ok(),
            (Self::Ec(of_curve, key), Alg::Es(bits)) if *of_curve == bits => {
                key.verify_sig(message, signature).is_ok()
            }
            (Self::Ed25519(key), Alg::EdDsa) => key.verify_sig(message, signature).is_ok(),
            (Self::Oct(secret), Alg::Hs(bits)) => {
                let algorithm = match bits {
                    256 => hmac::HMAC_SHA256,
                    384 => hmac::HMAC_SHA384,
                    _ => hmac::HMAC_SHA512,
                };
                hmac::verify(&hmac::Key::new(algorithm, secret), message, signature).is_ok()
            }
            _ => false,
        }
    }
}

fn pkcs1(bits: u16) -> &'static RsaParameters {
    match bits {
        256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        _ => &signature::RSA_PKCS1_2048_8192_SHA512,
    }
}

fn pss(bits: u16) -> &'static RsaParameters {
    match bits {
        256 => &signature::RSA_PSS_2048_8192_SHA256,
        384 => &signature::RSA_PSS_2048_8192_SHA384,
        _ => &signature::RSA_PSS_2048_8192_SHA512,
    }
}
