//! Public keys of token issuers: where they come from, what they were when they were last read, and which sets are of use.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use aws_lc_rs::signature::{self, ParsedPublicKey};
use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

/// Unpadded by the standard; padding does no harm.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySource {
    /// At this URL.
    Url(String),
    /// Where this issuer's discovery document says (OpenID Connect Discovery 1.0, section 4).
    Issuer(String),
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::Issuer(issuer) => write!(f, "the discovery document of {issuer}"),
        }
    }
}

/// The keys that were fetched, as JSON Web Key Sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySets {
    known: BTreeMap<KeySource, Arc<str>>,
    nobody: Arc<str>,
    version: u64,
}

impl KeySets {
    /// What is `known`. `nobody` is a set whose private key nobody has: for sources that could not be read yet.
    pub fn new(known: BTreeMap<KeySource, Arc<str>>, nobody: Arc<str>) -> Self {
        let mut hasher = DefaultHasher::new();
        (&known, &nobody).hash(&mut hasher);
        Self { known, nobody, version: hasher.finish() }
    }

    /// The keys of a source; those of nobody if they could not be read, so that no token passes.
    pub fn of(&self, source: &KeySource) -> &Arc<str> {
        self.known.get(source).unwrap_or(&self.nobody)
    }

    /// Whether the keys of a source could not be read.
    pub fn is_missing(&self, source: &KeySource) -> bool {
        !self.known.contains_key(source)
    }

    /// Hash of everything in it; 0 without any.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// What a key set holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// How many of its keys proxies can use.
    pub usable: usize,
    /// It holds a private key or a shared secret, which is nobody's business here.
    pub secret: bool,
}

/// Reads a key set (RFC 7517). Keys of a kind that proxies do not know are passed over.
///
/// # Errors
/// It is no key set, or holds no key that can be used.
pub fn inspect(text: &str) -> Result<Contents, String> {
    let set: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
    let keys = set.get("keys").and_then(Value::as_array).ok_or("it has no list \"keys\"")?;
    let mut contents = Contents::default();
    let mut wrong = Vec::new();
    for (index, key) in keys.iter().enumerate() {
        contents.secret |= key.get("d").is_some() || key["kty"] == "oct";
        match usable(key) {
            Ok(()) => contents.usable += 1,
            Err(reason) => wrong.push(format!("keys[{index}] {reason}")),
        }
    }
    if contents.usable == 0 {
        let why = if wrong.is_empty() { "it is empty".to_owned() } else { wrong.join("; ") };
        return Err(format!("no key in it can be used: {why}"));
    }
    Ok(contents)
}

fn usable(key: &Value) -> Result<(), String> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let bytes = |name: &str| -> Result<Vec<u8>, String> {
        let text = text(name).ok_or_else(|| format!("has no {name:?}"))?;
        BASE64.decode(text).map_err(|_| format!("has a {name:?} that is no base64url"))
    };
    if key.get("kid").is_some_and(|kid| !kid.is_string()) {
        return Err("has a \"kid\" that is no text".to_owned());
    }
    let alg = key.get("alg").map(|alg| alg.as_str().unwrap_or_default()).filter(|alg| !alg.is_empty());
    let kty = text("kty").ok_or("has no \"kty\"")?;
    let rejected = |_| "is no key of its kind".to_owned();
    let algorithms: &[&str] = match kty {
        "RSA" => {
            if bytes("n")?.is_empty() || bytes("e")?.is_empty() {
                return Err("is empty".to_owned());
            }
            &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
        }
        "EC" => {
            let (length, algorithm, name): (usize, _, &[&str]) = match text("crv") {
                Some("P-256") => (32, &signature::ECDSA_P256_SHA256_FIXED, &["ES256"]),
                Some("P-384") => (48, &signature::ECDSA_P384_SHA384_FIXED, &["ES384"]),
                Some("P-521") => (66, &signature::ECDSA_P521_SHA512_FIXED, &["ES512"]),
                other => return Err(format!("has the curve {:?}", other.unwrap_or_default())),
            };
            let mut point = vec![4];
            for part in [bytes("x")?, bytes("y")?] {
                let missing = length.checked_sub(part.len()).ok_or("has a coordinate too long")?;
                point.resize(point.len() + missing, 0);
                point.extend_from_slice(&part);
            }
            ParsedPublicKey::new(algorithm, point).map_err(rejected)?;
            name
        }
        "OKP" if text("crv") == Some("Ed25519") => {
            ParsedPublicKey::new(&signature::ED25519, bytes("x")?).map_err(rejected)?;
            &["EdDSA"]
        }
        "oct" => {
            bytes("k")?;
            &["HS256", "HS384", "HS512"]
        }
        other => return Err(format!("has the kind {other:?}")),
    };
    match alg {
        Some(alg) if !algorithms.contains(&alg) => Err(format!("of kind {kty} is for {alg:?}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_of_use_if_one_of_its_keys_is() {
        let rsa = r#"{"kty": "RSA", "n": "sXchYw", "e": "AQAB"}"#;
        let of = |keys: &str| inspect(&format!("{{\"keys\": [{keys}]}}"));
        assert_eq!(of(rsa), Ok(Contents { usable: 1, secret: false }));
        assert_eq!(of(&format!("{{\"kty\": \"EC\", \"crv\": \"secp256k1\"}}, {rsa}")).unwrap().usable, 1);
        assert!(of(r#"{"kty": "RSA", "n": "sXchYw", "e": "AQAB", "d": "AA"}"#).unwrap().secret);
        assert!(of(r#"{"kty": "oct", "k": "c2VjcmV0"}"#).unwrap().secret);
        for (keys, words) in [
            ("", "it is empty"),
            (r#"{"kty": "RSA", "e": "AQAB"}"#, "keys[0] has no \"n\""),
            (r#"{"kty": "RSA", "n": "!", "e": "AQAB"}"#, "no base64url"),
            (r#"{"kty": "RSA", "n": "sXchYw", "e": "AQAB", "alg": "ES256"}"#, "is for \"ES256\""),
            (r#"{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}"#, "is no key of its kind"),
            (r#"{"kty": "OKP", "crv": "Ed25519", "x": "AA"}"#, "is no key of its kind"),
            (r#"{"kty": "XYZ"}"#, "the kind \"XYZ\""),
        ] {
            let error = of(keys).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(inspect("{}").unwrap_err().contains("no list"));
        assert!(inspect("keys").unwrap_err().contains("not JSON"));
    }

    #[test]
    fn a_source_that_was_not_read_has_nobodys_keys() {
        let url = |n: &str| KeySource::Url(n.to_owned());
        let sets = KeySets::new([(url("a"), "A".into())].into(), "nobody".into());
        assert_eq!((&**sets.of(&url("a")), &**sets.of(&url("b"))), ("A", "nobody"));
        assert_eq!(&**sets.of(&KeySource::Issuer("a".to_owned())), "nobody");
        assert_ne!(sets.version(), KeySets::new(BTreeMap::new(), "nobody".into()).version());
    }
}
