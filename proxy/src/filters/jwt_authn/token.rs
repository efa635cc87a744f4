//! A token as it is read: RFC 7519 in the compact form of RFC 7515, section 7.1. Nothing in it is trusted before its signature
//! has been verified.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use xds_protos::prost_types::Struct;
use xds_protos::prost_types::value::Kind;
use xds_protos::value::from_json;

use super::refusal::Refusal;

/// Unpadded by the standard; padding does no harm.
pub const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The signature algorithms of RFC 7518, section 3.1, and RFC 8037. `none` is not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alg {
    /// RSASSA-PKCS1-v1_5, by the hash's bits.
    Rs(u16),
    /// RSASSA-PSS, by the hash's bits.
    Ps(u16),
    /// ECDSA, by the hash's bits.
    Es(u16),
    /// HMAC, by the hash's bits.
    Hs(u16),
    /// Ed25519.
    EdDsa,
}

impl Alg {
    /// The algorithm of this name.
    pub fn parse(name: &str) -> Option<Self> {
        if name == "EdDSA" {
            return Some(Self::EdDsa);
        }
        let (family, bits) = name.split_at_checked(2)?;
        let bits = match bits {
            "256" => 256,
            "384" => 384,
            "512" => 512,
            _ => return None,
        };
        match family {
            "RS" => Some(Self::Rs(bits)),
            "PS" => Some(Self::Ps(bits)),
            "ES" => Some(Self::Es(bits)),
            "HS" => Some(Self::Hs(bits)),
            _ => None,
        }
    }
}

/// A token, read.
#[derive(Debug)]
pub struct Token {
    /// How it is signed.
    pub alg: Alg,
    /// The key's name; empty where none is given.
    pub kid: String,
    /// The issuer; empty where none is given.
    pub iss: String,
    /// The subject; empty where none is given.
    pub sub: String,
    /// For whom.
    pub aud: Vec<String>,
    /// Not before, in seconds since the epoch; 0 where it is not given.
    pub nbf: u64,
    /// The end, in seconds since the epoch; 0 where it is not given.
    pub exp: u64,
    /// The whole header.
    pub header: Struct,
    /// All claims.
    pub payload: Struct,
    /// What is signed: header, dot and payload, in base64.
    pub signed: Box<str>,
    /// Where the payload begins in it.
    payload_at: usize,
    /// The signature.
    pub signature: Vec<u8>,
}

impl Token {
    /// Reads a token; the order of the checks is Envoy's, and so is the first that fails.
    ///
    /// # Errors
    /// What is wrong with its form.
    pub fn read(text: &str) -> Result<Self, Refusal> {
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::BadFormat);
        };
        if header.is_empty() || payload.is_empty() || signature.is_empty() {
            return Err(Refusal::BadFormat);
        }
        let (at, end) = (header.len() + 1, header.len() + 1 + payload.len());
        let header = BASE64.decode(header).map_err(|_| Refusal::HeaderBase64)?;
        let header = object(&header).ok_or(Refusal::HeaderJson)?;
        let alg = match text_of(&header, "alg") {
            Ok(Some(alg)) => Alg::parse(alg).ok_or(Refusal::HeaderAlgUnknown)?,
            _ => return Err(Refusal::HeaderAlg),
        };
        let kid = text_of(&header, "kid").map_err(|()| Refusal::HeaderKid)?.unwrap_or_default().to_owned();
        let payload = BASE64.decode(payload).map_err(|_| Refusal::PayloadBase64)?;
        let payload = object(&payload).ok_or(Refusal::PayloadJson)?;
        let text_or =
            |key, refusal| text_of(&payload, key).map_err(|()| refusal).map(|t| t.unwrap_or("").to_owned());
        let iss = text_or("iss", Refusal::Iss)?;
        let sub = text_or("sub", Refusal::Sub)?;
        seconds(&payload, "iat", Refusal::IatType, Refusal::IatRange)?;
        let nbf = seconds(&payload, "nbf", Refusal::NbfType, Refusal::NbfRange)?;
        let exp = seconds(&payload, "exp", Refusal::ExpType, Refusal::ExpRange)?;
        text_or("jti", Refusal::Jti)?;
        let aud = texts(&payload, "aud").ok_or(Refusal::Aud)?;
        let signature = BASE64.decode(signature).map_err(|_| Refusal::SignatureBase64)?;
        let signed = text[..end].into();
        Ok(Self { alg, kid, iss, sub, aud, nbf, exp, header, payload, signed, payload_at: at, signature })
    }

    /// The payload in base64, as it came.
    pub fn payload_text(&self) -> &str {
        &self.signed[self.payload_at..]
    }

    /// Whether it holds now (seconds since the epoch), give or take so many seconds.
    ///
    /// # Errors
    /// Not yet, or no more.
    pub fn holds(&self, now: u64, skew: u64) -> Result<(), Refusal> {
        if now.saturating_add(skew) < self.nbf {
            return Err(Refusal::NotYetValid);
        }
        if self.exp != 0 && now > self.exp.saturating_add(skew) {
            return Err(Refusal::Expired);
        }
        Ok(())
    }
}

/// A JSON object as a struct.
fn object(bytes: &[u8]) -> Option<Struct> {
    match serde_json::from_slice(bytes) {
        Ok(serde_json::Value::Object(fields)) => Some(struct_of(fields)),
        _ => None,
    }
}

fn struct_of(fields: serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct { fields: fields.into_iter().map(|(key, value)| (key, from_json(value))).collect() }
}

fn kind<'a>(fields: &'a Struct, key: &str) -> Option<&'a Kind> {
    fields.fields.get(key)?.kind.as_ref()
}

fn text_of<'a>(fields: &'a Struct, key: &str) -> Result<Option<&'a str>, ()> {
    match kind(fields, key) {
        None => Ok(None),
        Some(Kind::StringValue(text)) => Ok(Some(text)),
        Some(_) => Err(()),
    }
}

fn seconds(fields: &Struct, key: &str, wrong: Refusal, outside: Refusal) -> Result<u64, Refusal> {
    match kind(fields, key) {
        None => Ok(0),
        Some(Kind::NumberValue(n)) if *n >= 0.0 && *n < u64::MAX as f64 => Ok(*n as u64),
        Some(Kind::NumberValue(_)) => Err(outside),
        Some(_) => Err(wrong),
    }
}

/// A text, or a list of texts.
fn texts(fields: &Struct, key: &str) -> Option<Vec<String>> {
    match kind(fields, key) {
        None => Some(Vec::new()),
        Some(Kind::StringValue(text)) => Some(vec![text.clone()]),
        Some(Kind::ListValue(list)) => list
            .values
            .iter()
            .map(|value| match &value.kind {
                Some(Kind::StringValue(text)) => Some(text.clone()),
                _ => None,
            })
            .collect(),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(header: &serde_json::Value, payload: &serde_json::Value) -> Result<Token, Refusal> {
        let part = |value: &serde_json::Value| BASE64.encode(value.to_string());
        Token::read(&format!("{}.{}.{}", part(header), part(payload), BASE64.encode("s")))
    }

    #[test]
    fn a_token_is_read_and_every_malformed_part_has_its_own_name() {
        let header = json!({"alg": "RS256", "kid": "k"});
        let token =
            read(&header, &json!({"iss": "i", "aud": ["a", "b"], "exp": 9, "n": {"m": [1]}})).unwrap();
        assert_eq!((token.alg, &*token.kid, &*token.iss, token.exp), (Alg::Rs(256), "k", "i", 9));
        assert_eq!(token.aud, ["a", "b"]);
        assert!(token.signed.ends_with(token.payload_text()) && !token.payload_text().contains('.'));
        let payload = |p: serde_json::Value| read(&header, &p).unwrap_err();
        let with = |h: serde_json::Value| read(&h, &json!({})).unwrap_err();
        assert_eq!(with(json!({})), Refusal::HeaderAlg);
        assert_eq!(with(json!({"alg": "none"})), Refusal::HeaderAlgUnknown);
        assert_eq!(with(json!({"alg": "RS256", "kid": 1})), Refusal::HeaderKid);
        assert_eq!(with(json!([])), Refusal::HeaderJson);
        assert_eq!(payload(json!({"iss": 1})), Refusal::Iss);
        assert_eq!(payload(json!({"nbf": "1"})), Refusal::NbfType);
        assert_eq!(payload(json!({"exp": -1})), Refusal::ExpRange);
        assert_eq!(payload(json!({"aud": [1]})), Refusal::Aud);
        for (text, refusal) in [
            ("a.b", Refusal::BadFormat),
            ("a.b.c.d", Refusal::BadFormat),
            ("a..c", Refusal::BadFormat),
            ("%.b.c", Refusal::HeaderBase64),
        ] {
            assert_eq!(Token::read(text).unwrap_err(), refusal, "{text}");
        }
    }

    #[test]
    fn the_times_hold_within_the_skew() {
        let token = read(&json!({"alg": "ES256"}), &json!({"nbf": 100, "exp": 200})).unwrap();
        assert_eq!(token.holds(39, 60), Err(Refusal::NotYetValid));
        assert_eq!(token.holds(40, 60), Ok(()));
        assert_eq!(token.holds(260, 60), Ok(()));
        assert_eq!(token.holds(261, 60), Err(Refusal::Expired));
    }
}
