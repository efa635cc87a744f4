//! Tokens and key sets, as tests write them. Keys are made once for a run.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::SystemTime;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self as sig, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use aws_lc_rs::{hmac, rsa};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::Deserialize;
use serde_json::{Value, json};

const SECRET: &[u8] = b"a secret of both sides, long enough for every hash, 0123456789abcdef0123456789";

enum Key {
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair, &'static str),
    Ed(Ed25519KeyPair),
    Secret,
}

static KEYS: LazyLock<BTreeMap<&str, Key>> = LazyLock::new(|| {
    let rsa = || Key::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()));
    let ec = |algorithm, curve| Key::Ec(EcdsaKeyPair::generate(algorithm).unwrap(), curve);
    BTreeMap::from([
        ("rsa", rsa()),
        ("other", rsa()),
        ("p256", ec(&sig::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256")),
        ("p384", ec(&sig::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384")),
        ("p521", ec(&sig::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521")),
        ("ed", Key::Ed(Ed25519KeyPair::generate().unwrap())),
        ("secret", Key::Secret),
    ])
});

/// A token.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The name of the key that signs it.
    #[serde(default = "Token::key")]
    key: String,
    /// Fields of its header; null takes away one of the usual ones.
    #[serde(default)]
    header: BTreeMap<String, Value>,
    /// Its claims; a text such as `+60` is the time in so many seconds.
    #[serde(default)]
    claims: Value,
    /// Its payload as it stands, in place of claims.
    payload: Option<String>,
    /// Other claims than those that were signed.
    forged: Option<Value>,
}

impl Token {
    fn key() -> String {
        "rsa".to_owned()
    }

    /// As it is sent.
    pub fn text(&self) -> String {
        let key = &KEYS[&*self.key];
        let usual = match key {
            Key::Rsa(_) => "RS256",
            Key::Ec(_, "P-256") => "ES256",
            Key::Ec(_, "P-384") => "ES384",
            Key::Ec(..) => "ES512",
            Key::Ed(_) => "EdDSA",
            Key::Secret => "HS256",
        };
        let mut header = json!({ "alg": usual, "kid": self.key });
        for (name, value) in &self.header {
            match value {
                Value::Null => drop(header.as_object_mut().unwrap().remove(name)),
                value => header[name] = value.clone(),
            }
        }
        let payload = |claims: &Value| {
            let mut claims = claims.clone();
            at_times(&mut claims);
            self.payload.clone().unwrap_or_else(|| claims.to_string())
        };
        let part = |text: String| BASE64.encode(text);
        let header = part(header.to_string());
        let signed = format!("{header}.{}", part(payload(&self.claims)));
        let alg = self.header.get("alg").and_then(Value::as_str).unwrap_or(usual);
        let signature = BASE64.encode(key.sign(alg, signed.as_bytes()));
        match &self.forged {
            Some(claims) => format!("{header}.{}.{signature}", part(payload(claims))),
            None => format!("{signed}.{signature}"),
        }
    }
}

/// `+60` becomes the time in 60 seconds.
fn at_times(claims: &mut Value) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    for value in claims.as_object_mut().into_iter().flat_map(|c| c.values_mut()) {
        let Some(text) = value.as_str().filter(|t| t.starts_with(['+', '-'])) else { continue };
        if let Ok(seconds) = text.parse::<i64>() {
            *value = json!(now.saturating_add_signed(seconds));
        }
    }
}

impl Key {
    fn sign(&self, alg: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let encoding: &dyn sig::RsaEncoding = match alg {
                    "RS384" => &sig::RSA_PKCS1_SHA384,
                    "RS512" => &sig::RSA_PKCS1_SHA512,
                    "PS256" => &sig::RSA_PSS_SHA256,
                    "PS384" => &sig::RSA_PSS_SHA384,
                    "PS512" => &sig::RSA_PSS_SHA512,
                    // A public key taken for a shared secret: what a confused verifier would accept.
                    "HS256" => return mac(hmac::HMAC_SHA256, key.public_key().as_ref(), message),
                    _ => &sig::RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(encoding, &random, message, &mut signature).unwrap();
                signature
            }
            Self::Ec(key, _) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
            Self::Secret => match alg {
                "HS384" => mac(hmac::HMAC_SHA384, SECRET, message),
                "HS512" => mac(hmac::HMAC_SHA512, SECRET, message),
                _ => mac(hmac::HMAC_SHA256, SECRET, message),
            },
        }
    }

    fn public(&self, kid: &str) -> Value {
        let text = |bytes: &[u8]| BASE64.encode(bytes);
        match self {
            Self::Rsa(key) => {
                let (n, e) = components(key.public_key());
                json!({ "kty": "RSA", "kid": kid, "n": text(&n), "e": text(&e) })
            }
            Self::Ec(key, curve) => {
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({ "kty": "EC", "kid": kid, "crv": curve, "x": text(x), "y": text(y) })
            }
            Self::Ed(key) => {
                json!({ "kty": "OKP", "kid": kid, "crv": "Ed25519", "x": text(key.public_key().as_ref()) })
            }
            Self::Secret => json!({ "kty": "oct", "kid": kid, "k": text(SECRET) }),
        }
    }
}

fn mac(algorithm: hmac::Algorithm, secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(algorithm, secret), message).as_ref().to_vec()
}

/// Modulus and exponent of an `RSAPublicKey` (RFC 8017, A.1.1): a sequence of two integers.
fn components(key: &rsa::PublicKey) -> (Vec<u8>, Vec<u8>) {
    fn value(der: &[u8]) -> (&[u8], &[u8]) {
        let (length, rest) = match der[1] {
            short @ 0..0x80 => (usize::from(short), &der[2..]),
            long => {
                let (length, rest) = der[2..].split_at(usize::from(long & 0x7f));
                (length.iter().fold(0, |n, b| n << 8 | usize::from(*b)), rest)
            }
        };
        rest.split_at(length)
    }
    let (sequence, _) = value(key.as_ref());
    let (n, rest) = value(sequence);
    let (e, _) = value(rest);
    (n[usize::from(n[0] == 0)..].to_vec(), e.to_vec())
}

/// A key set of these keys; each is its own `kid`.
pub fn key_set<'a>(names: impl Iterator<Item = &'a str>) -> Value {
    let keys: Vec<_> = names.map(|name| KEYS[name].public(name)).collect();
    json!({ "keys": keys })
}

/// Puts key sets in the place of `{jwks:KEY,KEY}`.
pub fn sets(text: String) -> String {
    let Some((before, rest)) = text.split_once("{jwks:") else { return text };
    let (names, after) = rest.split_once('}').unwrap();
    sets(format!("{before}{}{after}", key_set(names.split(','))))
}
