//! The tokens of the directory mode: JWTs that a small issuer of our own signs, in the shape of Kubernetes' bound tokens, so
//! that everything downstream is the same as with a cluster's.

use std::path::Path;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};

use super::bound::BoundPod;
use super::store::{self, StoreError};

/// The audience that a token for the certificate service must name (Istio's default).
pub const AUDIENCE: &str = "istio-ca";
pub(super) const ISSUER: &str = "weft";

/// A token that does not prove an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Its time is over.
    #[error("the token has expired; make a new one (weft token create), or let the platform renew its file")]
    Expired,
    /// It is for somebody else than us.
    #[error("the token is for another audience; it must name {0:?}")]
    Audience(String),
    /// It is not signed by our issuer.
    #[error(
        "the token's signature is not by this control plane's key; was it made with another --state-dir?"
    )]
    Signature,
    /// It is not one of ours.
    #[error("the token cannot be used: {0}")]
    Malformed(String),
    /// Its key is not among its issuer's.
    #[error("the token's key is not known: {0}")]
    Key(String),
    /// It was for one use.
    #[error(
        "the token is for one use, and was used; make another one (weft token create --once), and find out who used it if it was not this workload"
    )]
    Used,
    /// It is for a certificate alone.
    #[error("the token is for one use, and gets a certificate; show that")]
    ForCertificate,
    /// Whoever knows cannot be asked.
    #[error("the token cannot be checked now: {0}")]
    Unchecked(String),
}

impl TokenError {
    /// What the library says, for a token that must be for one of these audiences.
    pub(super) fn of(error: &jsonwebtoken::errors::Error, audiences: &[impl AsRef<str>]) -> Self {
        match error.kind() {
            ErrorKind::ExpiredSignature => Self::Expired,
            ErrorKind::InvalidAudience => {
                let all: Vec<_> = audiences.iter().map(AsRef::as_ref).collect();
                Self::Audience(all.join(" or "))
            }
            ErrorKind::InvalidSignature => Self::Signature,
            ErrorKind::ImmatureSignature => {
                Self::Malformed("it is not valid yet (nbf); compare the clocks".to_owned())
            }
            _ => Self::Malformed(error.to_string()),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Vec<String>,
    iat: u64,
    exp: u64,
    /// What tells it from others, where it is for one use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jti: Option<String>,
}

/// A token for one use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    /// What tells it from others.
    pub id: String,
    /// It expires then, in seconds since 1970.
    pub until: u64,
}

/// Namespace and service account that a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The namespace.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The pod that it is bound to, where Kubernetes says one and our cluster can be asked about it.
    pub pod: Option<BoundPod>,
    /// It is for one use.
    pub once: Option<Once>,
}

impl Subject {
    /// From a user's name of Kubernetes' form `system:serviceaccount:NAMESPACE:NAME`.
    pub(super) fn parse(user: &str) -> Result<Self, TokenError> {
        match user.split(':').collect::<Vec<_>>().as_slice() {
            ["system", "serviceaccount", namespace, account] => {
                let (namespace, service_account) = ((*namespace).to_owned(), (*account).to_owned());
                Ok(Self { namespace, service_account, pod: None, once: None })
            }
            _ => Err(TokenError::Malformed(format!("its subject {user:?} is not a service account"))),
        }
    }

    /// From a token's claims: the subject, with which Kubernetes' own claim must agree where there is one.
    pub(super) fn of_claims(claims: &serde_json::Value) -> Result<Self, TokenError> {
        let mut subject = Self::parse(claims["sub"].as_str().unwrap_or_default())?;
        if let Some(bound) = claims.get("kubernetes.io") {
            let (namespace, account) =
                (bound["namespace"].as_str(), bound["serviceaccount"]["name"].as_str());
            let agrees = namespace.is_none_or(|n| n == subject.namespace)
                && account.is_none_or(|a| a == subject.service_account);
            if !agrees {
                return Err(TokenError::Malformed(
                    "its subject and its kubernetes.io claim differ".to_owned(),
                ));
            }
            subject.pod = BoundPod::of(bound["pod"]["name"].as_str(), bound["pod"]["uid"].as_str());
        }
        Ok(subject)
    }
}

/// Makes tokens.
pub struct Issuer {
    key: EncodingKey,
}

/// Checks tokens.
pub struct Checker {
    key: DecodingKey,
}

/// A new signing key (ECDSA P-256) as PEM.
pub(super) fn new_key() -> Result<String, StoreError> {
    let pair = rcgen::KeyPair::generate().map_err(weft_certs::authority::AuthorityError::from)?;
    Ok(pair.serialize_pem())
}

/// Issuer and checker of the same key.
pub fn from_key(pem: &str) -> Result<(Issuer, Checker), TokenError> {
    let bad =
        |e: &dyn std::fmt::Display| TokenError::Malformed(format!("the signing key cannot be used: {e}"));
    let private = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| bad(&e))?;
    let pair = rcgen::KeyPair::from_pem(pem).map_err(|e| bad(&e))?;
    let public =
        SubjectPublicKeyInfoDer::from_pem_slice(pair.public_key_pem().as_bytes()).map_err(|e| bad(&e))?;
    // An uncompressed P-256 point is the last 65 bytes of its SubjectPublicKeyInfo.
    let point =
        public.len().checked_sub(65).and_then(|at| public.get(at..)).ok_or_else(|| bad(&"not P-256"))?;
    Ok((
        Issuer { key: EncodingKey::from_ec_der(private.secret_pkcs8_der()) },
        Checker { key: DecodingKey::from_ec_der(point) },
    ))
}

/// Makes a token with the key of a state directory, for a workload that runs elsewhere (`weft token create`).
pub fn create(
    directory: &Path,
    namespace: &str,
    service_account: &str,
    lifetime: Duration,
) -> anyhow::Result<String> {
    create_for(directory, namespace, service_account, lifetime, false)
}

/// The same, of a token for one use if that is wanted.
pub fn create_for(
    directory: &Path,
    namespace: &str,
    service_account: &str,
    lifetime: Duration,
    once: bool,
) -> anyhow::Result<String> {
    let key = store::read(directory, store::TOKEN_KEY)?;
    let (issuer, _) = from_key(&key)?;
    // A name that cannot be part of a SPIFFE id would make a token that is of no use.
    weft_certs::spiffe::TrustDomain::workload(&"cluster.local".parse()?, namespace, service_account)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(match once {
        true => issuer.issue_once(namespace, service_account, now, lifetime)?,
        false => issuer.issue(namespace, service_account, now, lifetime)?,
    })
}

impl Issuer {
    /// A token that is valid from `now` (since 1970) for `lifetime`.
    pub fn issue(
        &self,
        namespace: &str,
        service_account: &str,
        now: Duration,
        lifetime: Duration,
    ) -> Result<String, TokenError> {
        self.sign(namespace, service_account, AUDIENCE, now, lifetime, None)
    }

    /// One for one use.
    pub fn issue_once(
        &self,
        namespace: &str,
        service_account: &str,
        now: Duration,
        lifetime: Duration,
    ) -> Result<String, TokenError> {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes)
            .map_err(|_| TokenError::Malformed("the system gives no random numbers".to_owned()))?;
        let id = bytes.iter().map(|b| format!("{b:02x}")).collect();
        self.sign(namespace, service_account, AUDIENCE, now, lifetime, Some(id))
    }

    fn sign(
        &self,
        namespace: &str,
        service_account: &str,
        audience: &str,
        now: Duration,
        lifetime: Duration,
        jti: Option<String>,
    ) -> Result<String, TokenError> {
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: format!("system:serviceaccount:{namespace}:{service_account}"),
            aud: vec![audience.to_owned()],
            iat: now.as_secs(),
            exp: (now + lifetime).as_secs(),
            jti,
        };
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key)
            .map_err(|e| TokenError::Malformed(e.to_string()))
    }
}

impl Checker {
    /// Who a token proves its holder to be, by the machine's clock.
    pub fn check(&self, token: &str) -> Result<Subject, TokenError> {
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_audience(&[AUDIENCE]);
        rules.set_issuer(&[ISSUER]);
        rules.leeway = 0;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &rules);
        let claims = claims.map_err(|e| TokenError::of(&e, &[AUDIENCE]))?.claims;
        let subject = Subject::parse(&claims.sub)?;
        Ok(Subject { once: claims.jti.map(|id| Once { id, until: claims.exp }), ..subject })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Duration {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap()
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_token_proves_its_service_account() {
        let (issuer, checker) = from_key(&new_key().unwrap()).unwrap();
        let token = issuer.issue("ecotrack", "user-service", now(), HOUR).unwrap();
        let subject = checker.check(&token).unwrap();
        assert_eq!(
            (subject.namespace.as_str(), subject.service_account.as_str()),
            ("ecotrack", "user-service")
        );
    }

    #[test]
    fn expired_foreign_and_misdirected_tokens_are_refused_each_for_its_reason() {
        let (issuer, checker) = from_key(&new_key().unwrap()).unwrap();
        let (stranger, _) = from_key(&new_key().unwrap()).unwrap();
        let old = issuer.issue("a", "b", now() - 2 * HOUR, HOUR).unwrap();
        assert_eq!(checker.check(&old), Err(TokenError::Expired));
        let elsewhere = issuer.sign("a", "b", "kubernetes", now(), HOUR, None).unwrap();
        assert_eq!(checker.check(&elsewhere), Err(TokenError::Audience(AUDIENCE.to_owned())));
        let forged = stranger.issue("a", "b", now(), HOUR).unwrap();
        assert_eq!(checker.check(&forged), Err(TokenError::Signature));
        assert!(matches!(checker.check("not a token"), Err(TokenError::Malformed(_))));
        // A token without a signature.
        let unsigned = {
            use base64::Engine;
            let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
            let payload = old.split('.').nth(1).unwrap();
            format!("{}.{payload}.", engine.encode(r#"{"alg":"none","typ":"JWT"}"#))
        };
        assert!(checker.check(&unsigned).is_err());
    }
}
