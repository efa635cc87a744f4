//! Why a token is not good enough, in Envoy's words: they are the answer's body and stand in the response code details.

/// Why a token, or its absence, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// There is none.
    Missing,
    /// `nbf` is in the future.
    NotYetValid,
    /// `exp` is in the past.
    Expired,
    /// Not three parts.
    BadFormat,
    /// The header is no base64.
    HeaderBase64,
    /// The header is no JSON object.
    HeaderJson,
    /// `alg` is missing or no text.
    HeaderAlg,
    /// `alg` is none that is known: `none`, for one.
    HeaderAlgUnknown,
    /// `kid` is no text.
    HeaderKid,
    /// The payload is no base64.
    PayloadBase64,
    /// The payload is no JSON object.
    PayloadJson,
    /// `iss` is no text.
    Iss,
    /// `sub` is no text.
    Sub,
    /// `iat` is no number.
    IatType,
    /// `iat` is negative or too large.
    IatRange,
    /// `nbf` is no number.
    NbfType,
    /// `nbf` is negative or too large.
    NbfRange,
    /// `exp` is no number.
    ExpType,
    /// `exp` is negative or too large.
    ExpRange,
    /// `jti` is no text.
    Jti,
    /// `aud` is neither text nor a list of texts.
    Aud,
    /// The signature is no base64.
    SignatureBase64,
    /// The signature has a length that this algorithm never has.
    Ed25519Length,
    /// Nobody is configured for its issuer.
    UnknownIssuer,
    /// It is for somebody else.
    Audience,
    /// The signature is not the key's.
    Verification,
    /// No key has its `kid` and `alg`.
    NoKey,
    /// The key set could not be fetched.
    Fetch,
}

impl Refusal {
    /// Envoy's words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Missing => "Jwt is missing",
            Self::NotYetValid => "Jwt not yet valid",
            Self::Expired => "Jwt is expired",
            Self::BadFormat => {
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
            }
            Self::HeaderBase64 => "Jwt header is an invalid Base64url encoded",
            Self::HeaderJson => "Jwt header is an invalid JSON",
            Self::HeaderAlg => "Jwt header [alg] field is required and must be a string",
            Self::HeaderAlgUnknown => "Jwt header [alg] is not supported",
            Self::HeaderKid => "Jwt header [kid] field is not a string",
            Self::PayloadBase64 => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadJson => "Jwt payload is an invalid JSON",
            Self::Iss => "Jwt payload [iss] field is not a string",
            Self::Sub => "Jwt payload [sub] field is not a string",
            Self::IatType => "Jwt payload [iat] field is not an integer",
            Self::IatRange => "Jwt payload [iat] field is not a positive 64 bit integer",
            Self::NbfType => "Jwt payload [nbf] field is not an integer",
            Self::NbfRange => "Jwt payload [nbf] field is not a positive 64 bit integer",
            Self::ExpType => "Jwt payload [exp] field is not an integer",
            Self::ExpRange => "Jwt payload [exp] field is not a positive 64 bit integer",
            Self::Jti => "Jwt payload [jti] field is not a string",
            Self::Aud => "Jwt payload [aud] field is not a string or string list",
            Self::SignatureBase64 => "Jwt signature is an invalid Base64url encoded",
            Self::Ed25519Length => "Jwt ED25519 signature is wrong length",
            Self::UnknownIssuer => "Jwt issuer is not configured",
            Self::Audience => "Audiences in Jwt are not allowed",
            Self::Verification => "Jwt verification fails",
            Self::NoKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::Fetch => "Jwks remote fetch is failed",
        }
    }

    /// How much it tells where several requirements failed: that a token is bad says more than that there is none.
    pub fn weight(self) -> u8 {
        match self {
            Self::Missing => 0,
            Self::UnknownIssuer => 1,
            _ => 2,
        }
    }
}
