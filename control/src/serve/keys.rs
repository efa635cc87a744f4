//! Keys of token issuers (RequestAuthentication): fetched once for all proxies, and pushed to them with the rules that need
//! them, so that no proxy has to reach an issuer.
//!
//! A state of the mesh goes out when each of its sources has been asked at least once. Keys are read again from time to time;
//! what cannot be read, or is no key set, leaves the keys that were last good. Without any there are keys that nobody has the
//! other half of: tokens are refused until the issuer answers.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use rcgen::{KeyPair, PKCS_RSA_SHA256, PublicKeyData, RsaKeySize};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ca::jwks;
use crate::model::{KeySets, KeySource, World, keys};
use crate::serve::reading::Reads;

/// How long after a failure the next try is, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A source's keys.
#[derive(Debug)]
struct Source {
    /// What was last read.
    keys: Option<Arc<str>>,
    /// When it is asked next.
    due: Instant,
    /// How long the last failure is waited after.
    pause: Duration,
    /// It has answered, or failed to.
    tried: bool,
    /// A question is under way.
    asked: bool,
}

/// What became of a question.
type Answer = (KeySource, anyhow::Result<Arc<str>>);

/// Fetches keys and keeps the last good ones.
#[derive(Debug)]
pub struct KeyFetcher {
    roots: Option<PathBuf>,
    fresh: Duration,
    sources: HashMap<KeySource, Source>,
    under_way: JoinSet<Answer>,
    nobody: Arc<str>,
}

impl KeyFetcher {
    /// A fetcher that reads keys again after `fresh`; TLS is checked by `roots`, or the system's.
    pub fn new(roots: Option<PathBuf>, fresh: Duration) -> Self {
        let (sources, under_way) = (HashMap::new(), JoinSet::new());
        Self { roots, fresh, sources, under_way, nobody: "".into() }
    }

    /// The world as it is for whoever shows no token: no source is asked, and each is as good as down.
    pub async fn unasked(world: &World) -> World {
        let mut fetcher = Self::new(None, Duration::ZERO);
        let wanted = world.request_authentications().iter().flat_map(|object| &object.spec.jwt_rules);
        if wanted.filter_map(|rule| rule.key_source()).next().is_none() {
            return world.clone();
        }
        if let Ok(Ok(keys)) = tokio::task::spawn_blocking(nobody).await {
            fetcher.nobody = keys.into();
        }
        world.with_keys(Arc::new(KeySets::new(BTreeMap::new(), fetcher.nobody)))
    }
}

impl Reads for KeyFetcher {
    type Answer = Answer;

    fn ask(&mut self, world: &World) {
        let rules = world.request_authentications().iter().flat_map(|object| &object.spec.jwt_rules);
        let mut wanted: HashMap<KeySource, Duration> = HashMap::new();
        for rule in rules {
            if let Some(source) = rule.key_source() {
                let patience = wanted.entry(source).or_default();
                *patience = rule.patience().max(*patience);
            }
        }
        self.sources.retain(|source, _| wanted.contains_key(source));
        let now = Instant::now();
        for (source, patience) in wanted {
            let new = || Source { keys: None, due: now, pause: RETRY.0, tried: false, asked: false };
            let state = self.sources.entry(source.clone()).or_insert_with(new);
            if state.asked || state.due > now {
                continue;
            }
            state.asked = true;
            let roots = self.roots.clone();
            self.under_way.spawn(async move {
                let answer = tokio::time::timeout(patience, fetch(&source, roots.as_ref())).await;
                let answer = answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {patience:?}")));
                (source, answer)
            });
        }
    }

    fn under_way(&mut self) -> &mut JoinSet<Answer> {
        &mut self.under_way
    }

    fn due(&self) -> Option<Instant> {
        self.sources.values().filter(|source| !source.asked).map(|source| source.due).min()
    }

    fn is_settled(&self) -> bool {
        self.sources.values().all(|source| source.tried)
    }

    fn take(&mut self, (name, answer): Answer) {
        // It may not be wanted any more.
        let Some(source) = self.sources.get_mut(&name) else { return };
        (source.asked, source.tried) = (false, true);
        let result = if answer.is_ok() { "success" } else { "failure" };
        metrics::counter!("weft_jwks_fetches", "result" => result).increment(1);
        // Istio's names of the same.
        let of_istio = match answer {
            Ok(_) => "pilot_jwks_resolver_network_fetch_success_total",
            Err(_) => "pilot_jwks_resolver_network_fetch_fail_total",
        };
        metrics::counter!(of_istio).increment(1);
        match answer {
            Ok(keys) => {
                if source.keys.as_ref().is_some_and(|old| *old != keys) {
                    tracing::info!(source = %name, "the keys of a token issuer have changed");
                }
                source.keys = Some(keys);
                source.due = Instant::now() + self.fresh;
                source.pause = RETRY.0;
            }
            Err(error) => {
                let kept = source.keys.is_some();
                let error = format!("{error:#}");
                tracing::warn!(source = %name, error, kept, "the keys of a token issuer cannot be read");
                source.due = Instant::now() + source.pause.min(self.fresh);
                source.pause = (source.pause * 2).min(RETRY.1);
            }
        }
    }

    async fn world(&mut self, world: &World) -> World {
        let known = |(name, source): (&KeySource, &Source)| Some((name.clone(), source.keys.clone()?));
        let known: BTreeMap<KeySource, Arc<str>> = self.sources.iter().filter_map(known).collect();
        if self.sources.is_empty() {
            return world.clone();
        }
        if known.len() < self.sources.len() && self.nobody.is_empty() {
            match tokio::task::spawn_blocking(nobody).await {
                Ok(Ok(keys)) => self.nobody = keys.into(),
                failed => tracing::error!(?failed, "no key pair could be made"),
            }
        }
        world.with_keys(Arc::new(KeySets::new(known, self.nobody.clone())))
    }
}

async fn fetch(source: &KeySource, roots: Option<&PathBuf>) -> anyhow::Result<Arc<str>> {
    let bytes = match source {
        KeySource::Url(url) => jwks::get(url, roots).await?,
        KeySource::Issuer(issuer) => jwks::get(&jwks::discover(issuer, roots).await?, roots).await?,
    };
    let text = std::str::from_utf8(&bytes)?;
    let contents = keys::inspect(text).map_err(|reason| anyhow::anyhow!("no key set: {reason}"))?;
    anyhow::ensure!(!contents.secret, "the key set holds a private key or a shared secret");
    Ok(text.into())
}

/// A key set whose private key is thrown away here. It is RSA with an id of no use, as istiod's: tokens are refused with the
/// same words.
fn nobody() -> anyhow::Result<String> {
    let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
    // RFC 8017, A.1.1: a sequence of the modulus (with a leading zero) and the exponent 65537.
    let modulus = match pair.der_bytes() {
        [0x30, 0x82, _, _, 0x02, 0x82, 0x01, 0x01, 0x00, rest @ ..] if rest.len() == 256 + 5 => &rest[..256],
        other => anyhow::bail!("an RSA key of {} bytes", other.len()),
    };
    let modulus = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(modulus);
    Ok(serde_json::json!({"keys": [{"kty": "RSA", "kid": "nobody", "e": "AQAB", "n": modulus}]}).to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use http::StatusCode;
    use serde_json::{Value, json};

    use super::*;
    use crate::ca::testing::{Asked, serve};
    use crate::ingest::load_str;

    fn world(rules: &str) -> World {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: t, namespace: n}}\n\
             spec: {{jwtRules: [{rules}]}}\n"
        );
        load_str("t.yaml", &text).into_result().unwrap()
    }

    fn set(kid: &str) -> Value {
        json!({"keys": [{"kty": "RSA", "kid": kid, "n": "sXchYw", "e": "AQAB"}]})
    }

    fn of(world: &World, source: &KeySource) -> String {
        let text = world.keys().of(source).to_string();
        let value: Value = serde_json::from_str(&text).unwrap();
        value["keys"][0]["kid"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn last_good_keys_stay_while_an_issuer_is_down_or_talks_nonsense() {
        let answer = Arc::new(Mutex::new((StatusCode::OK, set("one"))));
        let count = Arc::new(AtomicU32::new(0));
        let (told, asked) = (answer.clone(), count.clone());
        let (url, _server) = serve(move |_: Asked| {
            asked.fetch_add(1, SeqCst);
            told.lock().unwrap().clone()
        })
        .await;
        let source = KeySource::Url(format!("{url}/keys"));
        // Two rules, one source: it is asked once.
        let rule = |issuer: &str| format!("{{issuer: {issuer}, jwksUri: '{url}/keys'}}");
        let world = world(&format!("{}, {}", rule("a"), rule("b")));
        let mut fetcher = KeyFetcher::new(None, Duration::ZERO);
        assert_eq!(of(&fetcher.settle(&world).await, &source), "one");
        assert_eq!(count.load(SeqCst), 1);
        let first = fetcher.settle(&world).await.version();
        for bad in [
            (StatusCode::SERVICE_UNAVAILABLE, set("two")),
            (StatusCode::OK, json!({})),
            (StatusCode::OK, json!({"keys": []})),
            (StatusCode::OK, json!({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]})),
        ] {
            *answer.lock().unwrap() = bad.clone();
            let settled = fetcher.settle(&world).await;
            assert_eq!((of(&settled, &source).as_str(), settled.version()), ("one", first), "{bad:?}");
        }
        *answer.lock().unwrap() = (StatusCode::OK, set("two"));
        let settled = fetcher.settle(&world).await;
        assert_eq!(of(&settled, &source), "two");
        assert_ne!(settled.version(), first);
        assert_ne!(settled.shape_version(), world.shape_version(), "listeners are made anew");
    }

    #[tokio::test]
    async fn an_issuer_that_never_answered_has_keys_of_nobody() {
        // Nobody listens there; and a rule that waits longer decides how long.
        let world = world(
            "{issuer: a, jwksUri: 'http://127.0.0.1:1/keys', timeout: 100ms}, {issuer: 'http://127.0.0.1:1/b'}",
        );
        let mut fetcher = KeyFetcher::new(None, Duration::from_secs(1));
        let settled = fetcher.settle(&world).await;
        for source in [
            KeySource::Url("http://127.0.0.1:1/keys".to_owned()),
            KeySource::Issuer("http://127.0.0.1:1/b".to_owned()),
        ] {
            assert_eq!(of(&settled, &source), "nobody");
        }
        assert_eq!(keys::inspect(&fetcher.nobody).unwrap().usable, 1);
        assert_ne!(nobody().unwrap(), *fetcher.nobody, "each has a key of its own");
    }

    #[tokio::test]
    async fn a_discovery_document_leads_to_the_keys() {
        let base = Arc::new(Mutex::new(String::new()));
        let own = base.clone();
        let (url, _server) = serve(move |asked: Asked| match asked.what.as_str() {
            "GET /realm/.well-known/openid-configuration" => {
                (StatusCode::OK, json!({"jwks_uri": format!("{}/certs", own.lock().unwrap())}))
            }
            "GET /certs" => (StatusCode::OK, set("found")),
            other => panic!("{other}"),
        })
        .await;
        base.lock().unwrap().clone_from(&url);
        let settled = KeyFetcher::new(None, Duration::from_secs(1))
            .settle(&world(&format!("{{issuer: '{url}/realm'}}")))
            .await;
        assert_eq!(of(&settled, &KeySource::Issuer(format!("{url}/realm"))), "found");
    }
}
