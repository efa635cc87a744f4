//! Tokens of an OIDC provider, checked by its public keys (JWKS): from a file, a URL, or wherever the provider's discovery says.
//! Keys are kept: a provider that is down changes nothing for tokens whose key is known. A key that is not known makes the
//! keys be read again, at most once in [`PAUSE`].

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use parking_lot::Mutex;
use serde_json::Value;

use super::http::Client;
use super::token::{Subject, TokenError};

/// How long keys count before they are read again.
const FRESH: Duration = Duration::from_secs(20 * 60);
/// The least time between two readings.
const PAUSE: Duration = Duration::from_secs(10);
/// How far clocks may differ (seconds).
const LEEWAY: u64 = 60;

/// Where keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// A file.
    File(PathBuf),
    /// A URL.
    Url(String),
    /// What `ISSUER/.well-known/openid-configuration` says.
    Discovery,
}

/// An issuer whose tokens are taken.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name, exactly as tokens have it.
    pub issuer: String,
    /// A token must be for one of these.
    pub audiences: Vec<String>,
    /// Its keys.
    pub keys: Keys,
    /// Roots by which the provider's TLS is checked; the system's without.
    pub roots: Option<PathBuf>,
    /// It is the cluster whose API the control plane asks: the pods of its tokens can be looked at there. Other clusters' pods
    /// cannot.
    pub of_this_cluster: bool,
}

#[derive(Default)]
struct Cache {
    keys: Option<JwkSet>,
    /// When they were last read, and when that was last tried.
    read: Option<Instant>,
    tried: Option<Instant>,
    error: Option<String>,
}

impl Cache {
    fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
        find(self.keys.as_ref()?, kid, algorithm)
    }

    /// Whether keys are to be read for somebody who does or does not find his among them.
    fn is_due(&self, known: bool) -> bool {
        let old = self.read.is_none_or(|at| at.elapsed() > FRESH);
        (old || !known) && self.tried.is_none_or(|at| at.elapsed() > PAUSE)
    }
}

/// The checker.
pub struct Oidc {
    settings: Settings,
    cache: Mutex<Cache>,
    /// Whose turn it is to ask the provider. Nobody whose key is known waits for it: anybody can send a token with an unknown key.
    turn: tokio::sync::Mutex<()>,
}

impl Oidc {
    /// A checker; keys are read when the first token comes.
    pub fn new(settings: Settings) -> Self {
        Self { settings, cache: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Its issuer.
    pub fn issuer(&self) -> &str {
        &self.settings.issuer
    }

    /// Who a token proves its holder to be.
    pub async fn check(&self, token: &str) -> Result<Subject, TokenError> {
        let malformed = |e: &dyn std::fmt::Display| TokenError::Malformed(e.to_string());
        let header = jsonwebtoken::decode_header(token).map_err(|e| malformed(&e))?;
        if !is_rsa(header.alg)
            && !matches!(header.alg, Algorithm::ES256 | Algorithm::ES384 | Algorithm::EdDSA)
        {
            return Err(malformed(&format!("its algorithm {:?} is not one of public keys", header.alg)));
        }
        let key = self.key(header.kid.as_deref(), header.alg).await?;
        let mut rules = Validation::new(header.alg);
        rules.set_audience(&self.settings.audiences);
        rules.set_issuer(&[&self.settings.issuer]);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        rules.validate_nbf = true;
        rules.leeway = LEEWAY;
        let claims = jsonwebtoken::decode::<Value>(token, &key, &rules);
        let claims = claims.map_err(|e| match TokenError::of(&e, &self.settings.audiences) {
            TokenError::Signature => malformed(&"its signature is not by its issuer's key of that id"),
            other => other,
        })?;
        let subject = Subject::of_claims(&claims.claims)?;
        Ok(Subject { pod: subject.pod.filter(|_| self.settings.of_this_cluster), ..subject })
    }

    /// The key for a token; read anew if it is not known, or what is known has grown old.
    async fn key(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<DecodingKey, TokenError> {
        let known = self.cache.lock().find(kid, algorithm).is_some();
        if self.cache.lock().is_due(known) {
            let turn = match known {
                true => self.turn.try_lock().ok(),
                false => Some(self.turn.lock().await),
            };
            if turn.is_some() {
                self.refresh(kid, algorithm).await;
            }
        }
        let cache = self.cache.lock();
        cache.find(kid, algorithm).ok_or_else(|| {
            let why =
                cache.error.as_ref().map_or(String::new(), |e| format!(" (they could not be read: {e})"));
            TokenError::Key(format!("{kid:?} of issuer {}{why}", self.settings.issuer))
        })
    }

    /// Reads the keys, unless somebody did so just before.
    async fn refresh(&self, kid: Option<&str>, algorithm: Algorithm) {
        {
            let mut cache = self.cache.lock();
            let known = cache.find(kid, algorithm).is_some();
            if !cache.is_due(known) {
                return;
            }
            cache.tried = Some(Instant::now());
        }
        let read = self.read().await;
        let mut cache = self.cache.lock();
        match read {
            Ok(keys) => {
                (cache.keys, cache.read, cache.error) = (Some(keys), Some(Instant::now()), None);
            }
            Err(error) => {
                let error = format!("{error:#}");
                let kept = cache.keys.is_some();
                tracing::warn!(issuer = self.settings.issuer, %error, kept, "the issuer's keys cannot be read");
                cache.error = Some(error);
            }
        }
    }

    async fn read(&self) -> anyhow::Result<JwkSet> {
        let Settings { keys, issuer, roots, .. } = &self.settings;
        let text = match keys {
            Keys::File(path) => {
                tokio::fs::read(path).await.map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?.into()
            }
            Keys::Url(url) => get(url, roots.as_ref()).await?,
            Keys::Discovery => get(&discover(issuer, roots.as_ref()).await?, roots.as_ref()).await?,
        };
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Where an issuer's keys are, as its discovery document says (OpenID Connect Discovery 1.0, section 4).
///
/// # Errors
/// There is no such document, or it does not say.
pub async fn discover(issuer: &str, roots: Option<&PathBuf>) -> anyhow::Result<String> {
    let issuer = issuer.trim_end_matches('/');
    let document = get(&format!("{issuer}/.well-known/openid-configuration"), roots).await?;
    let document: Value = serde_json::from_slice(&document)?;
    let url = document["jwks_uri"].as_str();
    Ok(url.ok_or_else(|| anyhow::anyhow!("{issuer}'s discovery document has no jwks_uri"))?.to_owned())
}

/// What is at a URL; TLS is checked by these roots, or the system's.
///
/// # Errors
/// There was no answer, or one that is not of success.
pub async fn get(url: &str, roots: Option<&PathBuf>) -> anyhow::Result<Bytes> {
    let client = Client::new(url, roots.cloned())?;
    let (status, body) = client.call(Method::GET, "", &[("accept", "application/json")], None).await?;
    anyhow::ensure!(status.is_success(), "{url} answers {status}");
    Ok(body)
}

fn is_rsa(algorithm: Algorithm) -> bool {
    use Algorithm::{PS256, PS384, PS512, RS256, RS384, RS512};
    matches!(algorithm, RS256 | RS384 | RS512 | PS256 | PS384 | PS512)
}

/// The key with this id that fits this algorithm; without an id the only one that fits.
fn find(keys: &JwkSet, kid: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
    let fits = |params: &AlgorithmParameters| match params {
        AlgorithmParameters::RSA(_) => is_rsa(algorithm),
        AlgorithmParameters::EllipticCurve(p) => match p.curve {
            EllipticCurve::P256 => algorithm == Algorithm::ES256,
            EllipticCurve::P384 => algorithm == Algorithm::ES384,
            _ => false,
        },
        AlgorithmParameters::OctetKeyPair(_) => algorithm == Algorithm::EdDSA,
        _ => false,
    };
    let mut all = keys
        .keys
        .iter()
        .filter(|k| fits(&k.algorithm))
        .filter(|k| kid.is_none_or(|kid| k.common.key_id.as_deref() == Some(kid)));
    let found = all.next()?;
    if kid.is_none() && all.next().is_some() {
        return None;
    }
    DecodingKey::from_jwk(found).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
    use std::sync::{Arc, Mutex};

    use http::StatusCode;
    use jsonwebtoken::{EncodingKey, Header};
    use rustls_pki_types::PrivatePkcs8KeyDer;
    use rustls_pki_types::pem::PemObject;
    use serde_json::json;

    use super::*;
    use crate::ca::testing::serve;

    struct Signer {
        kid: &'static str,
        key: EncodingKey,
        jwk: Value,
    }

    fn signer(kid: &'static str) -> Signer {
        use base64::Engine;
        let pair = rcgen::KeyPair::generate().unwrap();
        let private = PrivatePkcs8KeyDer::from_pem_slice(pair.serialize_pem().as_bytes()).unwrap();
        let point = pair.public_key_raw();
        let part = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        Signer {
            kid,
            key: EncodingKey::from_ec_der(private.secret_pkcs8_der()),
            jwk: json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": kid,
                "x": part(&point[1..33]), "y": part(&point[33..])}),
        }
    }

    fn now() -> i64 {
        time::OffsetDateTime::now_utc().unix_timestamp()
    }

    impl Signer {
        fn token(&self, change: impl FnOnce(&mut Value)) -> String {
            let mut claims = json!({"iss": "https://sso.example", "aud": ["istio-ca", "x"], "exp": now() + 300,
                "sub": "system:serviceaccount:shop:cart"});
            change(&mut claims);
            let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(Algorithm::ES256) };
            jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
        }
    }

    fn oidc(keys: Keys) -> Oidc {
        Oidc::new(Settings {
            issuer: "https://sso.example".to_owned(),
            audiences: vec!["istio-ca".to_owned()],
            keys,
            roots: None,
            of_this_cluster: false,
        })
    }

    #[tokio::test]
    async fn a_token_of_the_issuer_is_a_service_account_and_each_other_is_refused_for_its_reason() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jwks.json");
        let (ours, stranger) = (signer("one"), signer("one"));
        std::fs::write(&path, json!({"keys": [ours.jwk]}).to_string()).unwrap();
        let oidc = oidc(Keys::File(path));
        let subject = oidc.check(&ours.token(|_| {})).await.unwrap();
        assert_eq!((subject.namespace.as_str(), subject.service_account.as_str()), ("shop", "cart"));
        let bound = |name: &str| json!({"namespace": "shop", "serviceaccount": {"name": name}});
        oidc.check(&ours.token(|c| c["kubernetes.io"] = bound("cart"))).await.unwrap();
        for (token, words) in [
            (ours.token(|c| c["exp"] = (now() - 120).into()), "expired"),
            (ours.token(|c| c["nbf"] = (now() + 120).into()), "not valid yet"),
            (ours.token(|c| c["aud"] = "other".into()), "another audience"),
            (ours.token(|c| c["iss"] = "https://else.example".into()), "InvalidIssuer"),
            (ours.token(|c| c["sub"] = "alice".into()), "not a service account"),
            (ours.token(|c| c["kubernetes.io"] = bound("admin")), "differ"),
            (ours.token(|c| c.as_object_mut().unwrap().remove("exp").map_or((), drop)), "exp"),
            (stranger.token(|_| {}), "signature"),
            (signer("two").token(|_| {}), "not known"),
            ("eyJhbGciOiJub25lIn0.e30.".to_owned(), "cannot be used"),
        ] {
            let error = oidc.check(&token).await.unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
        // The algorithm must be one of public keys, whatever the key.
        let hmac =
            jsonwebtoken::encode(&Header::default(), &json!({"sub": "x"}), &EncodingKey::from_secret(b"x"));
        let error = oidc.check(&hmac.unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("HS256"), "{error}");
    }

    #[tokio::test]
    async fn the_pod_of_a_token_is_looked_for_in_the_cluster_that_issued_it_and_in_no_other() {
        use crate::ca::authenticate::PeerInfo;
        use crate::ca::bound::BoundTokens::{Off, Require, Warn};
        use crate::ca::flags::TokenArgs;

        let directory = tempfile::tempdir().unwrap();
        let (jwks, own) = (directory.path().join("jwks.json"), directory.path().join("token"));
        let ours = signer("one");
        std::fs::write(&jwks, json!({"keys": [ours.jwk]}).to_string()).unwrap();
        let token = ours.token(|c| {
            c["kubernetes.io"] = json!({"namespace": "shop", "serviceaccount": {"name": "cart"},
                "pod": {"name": "cart-1", "uid": "u1"}});
        });
        // The cluster that is asked has no such pod.
        let (url, _server) = serve(|asked| {
            assert_eq!(asked.what, "GET /api/v1/namespaces/shop/pods");
            (StatusCode::OK, json!({"kind": "PodList", "items": []}))
        })
        .await;
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
        let taken = async |bound_tokens, issuer: &str| {
            std::fs::write(&own, ours.token(|c| c["iss"] = issuer.into())).unwrap();
            let args = TokenArgs {
                oidc_issuer: Some("https://sso.example".to_owned()),
                oidc_jwks: Some(jwks.to_str().unwrap().to_owned()),
                token_review: Some(url.clone()),
                token_review_token: own.clone(),
                bound_tokens,
                ..TokenArgs::default()
            };
            let pem = crate::ca::token::new_key().unwrap();
            let (_, checker) = crate::ca::token::from_key(&pem).unwrap();
            let domain = "cluster.local".parse().unwrap();
            let all = args.authenticators(checker, domain, None, None).unwrap();
            all.authenticate(&metadata, &PeerInfo::default()).await.map(|identity| identity.by)
        };
        for rule in [Off, Warn, Require] {
            assert_eq!(taken(rule, "https://elsewhere.example").await.unwrap(), "OIDC token", "{rule:?}");
        }
        assert!(taken(Off, "https://sso.example").await.is_ok());
        for rule in [Warn, Require] {
            let error = taken(rule, "https://sso.example").await.unwrap_err();
            assert!(error.message().contains("not there any more"), "{error}");
        }
    }

    #[tokio::test]
    async fn keys_are_kept_while_the_provider_is_down_and_unknown_ones_ask_it_seldom() {
        let (one, two) = (signer("one"), signer("two"));
        let keys = Arc::new(Mutex::new(vec![one.jwk.clone()]));
        let (down, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (served, is_down, count) = (keys.clone(), down.clone(), asked.clone());
        let base = Arc::new(Mutex::new(String::new()));
        let own = base.clone();
        let (url, _server) = serve(move |asked| {
            if is_down.load(SeqCst) {
                return (StatusCode::SERVICE_UNAVAILABLE, Value::Null);
            }
            match asked.what.as_str() {
                "GET /.well-known/openid-configuration" => {
                    (StatusCode::OK, json!({"jwks_uri": format!("{}/keys", own.lock().unwrap())}))
                }
                "GET /keys" => {
                    count.fetch_add(1, SeqCst);
                    (StatusCode::OK, json!({"keys": *served.lock().unwrap()}))
                }
                other => panic!("{other}"),
            }
        })
        .await;
        base.lock().unwrap().clone_from(&url);
        let oidc = Oidc::new(Settings {
            issuer: url.clone(),
            audiences: vec!["istio-ca".to_owned()],
            keys: Keys::Discovery,
            roots: None,
            of_this_cluster: false,
        });
        let token = |s: &Signer| s.token(|c| c["iss"] = url.clone().into());
        for _ in 0..20 {
            oidc.check(&token(&one)).await.unwrap();
            assert!(oidc.check(&token(&two)).await.is_err());
        }
        assert_eq!(asked.load(SeqCst), 1, "unknown keys do not ask again and again");

        // As if time had passed: the keys are old, and the provider is down.
        let aged = |oidc: &Oidc| {
            let mut cache = oidc.cache.lock();
            cache.read = Instant::now().checked_sub(FRESH + PAUSE);
            cache.tried = Instant::now().checked_sub(PAUSE * 2);
        };
        down.store(true, SeqCst);
        aged(&oidc);
        oidc.check(&token(&one)).await.unwrap();
        // It comes back with another key beside the first.
        down.store(false, SeqCst);
        keys.lock().unwrap().push(two.jwk.clone());
        aged(&oidc);
        oidc.check(&token(&two)).await.unwrap();
        oidc.check(&token(&one)).await.unwrap();
        assert_eq!(asked.load(SeqCst), 2);
    }
}
