//! Who may read proxies' admin pages: whoever knows the token of a file, and in a cluster whom its roles let do so.
//!
//! Kubernetes is asked who a token is (TokenReview) and whether that one may `get` `proxies/admin` of the group `weft.dev` in the
//! proxy's namespace (SubjectAccessReview). There are no such objects: a role may name them all the same.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode, header};
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// The audience of a token that is good for nothing else: `kubectl create token ACCOUNT --audience weft.dev`.
pub const AUDIENCE: &str = "weft.dev";
/// What is to be granted, for people.
pub const PERMISSION: &str = "get proxies/admin (apiGroup weft.dev)";
/// What Kubernetes has said holds for so long.
const HOLDS: Duration = Duration::from_secs(10);
/// As many sayings are kept.
const KEPT: usize = 4096;
/// As many tokens are asked about at the same time.
const REVIEWS: usize = 4;
/// No token is as long.
const LONGEST: usize = 16 * 1024;

/// Who lets whom in.
#[derive(Clone)]
pub struct Access {
    /// A file with a token that opens everything.
    token: Option<PathBuf>,
    /// A cluster that knows tokens and roles.
    cluster: Option<Client>,
    said: Arc<Mutex<Said>>,
    /// Whoever asks with tokens that nobody knows has the API server asked, but not as often as they like.
    reviews: Arc<Semaphore>,
}

/// What Kubernetes said lately, by the token's hash.
#[derive(Default)]
struct Said {
    people: HashMap<[u8; 32], (Instant, Result<Value, String>)>,
    /// In a namespace; of all of them together where it is empty.
    may: HashMap<([u8; 32], String), (Instant, bool)>,
}

/// Somebody who is known.
#[derive(Clone)]
pub struct Somebody {
    /// What they are called.
    pub name: String,
    /// As Kubernetes knows them; none for who has the file's token, and may all.
    user: Option<([u8; 32], Value)>,
}

/// Why somebody is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// What the answer says.
    pub status: StatusCode,
    /// In words: what to do.
    pub why: String,
}

impl Denied {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }
}

impl Access {
    /// Lets in who knows the token in a file, and those of a cluster.
    pub fn new(token: Option<PathBuf>, cluster: Option<Client>) -> Self {
        Self { token, cluster, said: Arc::default(), reviews: Arc::new(Semaphore::new(REVIEWS)) }
    }

    /// Who asks.
    ///
    /// # Errors
    /// Nobody that is known.
    pub async fn who(&self, headers: &HeaderMap) -> Result<Somebody, Denied> {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default().trim();
        if self.token.is_none() && self.cluster.is_none() {
            return Err(Denied::new(
                StatusCode::FORBIDDEN,
                "this control plane lets nobody read proxies' pages: start it with --inspect-token-file FILE",
            ));
        }
        if shown.is_empty() || shown.len() > LONGEST {
            return Err(self.unknown("no credentials"));
        }
        if let Some(file) = &self.token
            && is_that_of(file, shown).await?
        {
            return Ok(Somebody { name: "inspect token".to_owned(), user: None });
        }
        let Some(client) = &self.cluster else { return Err(self.unknown("this is another token")) };
        let key = digest(shown);
        let known = self.said.lock().people.get(&key).filter(|(at, _)| at.elapsed() < HOLDS).cloned();
        let said = match known {
            Some((_, said)) => said,
            None => {
                let _permit = self.reviews.acquire().await;
                let said = review(client, shown).await?;
                let mut kept = self.said.lock();
                if kept.people.len() >= KEPT {
                    kept.people.clear();
                }
                kept.people.insert(key, (Instant::now(), said.clone()));
                said
            }
        };
        let user = said.map_err(|why| self.unknown(&why))?;
        let name = user["username"].as_str().unwrap_or_default().to_owned();
        Ok(Somebody { name, user: Some((key, user)) })
    }

    fn unknown(&self, what: &str) -> Denied {
        let how = match (&self.token, &self.cluster) {
            (_, Some(_)) => {
                "authorization: Bearer TOKEN, of somebody who may get proxies/admin (weft.dev): kubectl create token ACCOUNT --audience weft.dev"
            }
            _ => {
                "authorization: Bearer TOKEN, as it is in the file of the control plane's --inspect-token-file"
            }
        };
        Denied::new(StatusCode::UNAUTHORIZED, format!("{what}: send {how}"))
    }

    /// Whether somebody may read the pages of a namespace's proxies.
    ///
    /// # Errors
    /// They may not, or it cannot be known.
    pub async fn allow(&self, who: &Somebody, namespace: &str) -> Result<(), Denied> {
        let (Some((key, user)), Some(client)) = (&who.user, &self.cluster) else { return Ok(()) };
        if self.may(client, *key, user, "").await? || self.may(client, *key, user, namespace).await? {
            return Ok(());
        }
        Err(Denied::new(
            StatusCode::FORBIDDEN,
            format!(
                "{} may not {PERMISSION} in namespace {namespace:?}: a RoleBinding there to the ClusterRole weft-inspect gives that, or a \
                 ClusterRoleBinding for all namespaces",
                who.name
            ),
        ))
    }

    /// Those of these namespaces whose proxies somebody may read.
    ///
    /// # Errors
    /// It cannot be known.
    pub async fn allowed(&self, who: &Somebody, all: &BTreeSet<String>) -> Result<BTreeSet<String>, Denied> {
        let (Some((key, user)), Some(client)) = (&who.user, &self.cluster) else { return Ok(all.clone()) };
        if self.may(client, *key, user, "").await? {
            return Ok(all.clone());
        }
        let mut allowed = BTreeSet::new();
        for namespace in all {
            if self.may(client, *key, user, namespace).await? {
                allowed.insert(namespace.clone());
            }
        }
        Ok(allowed)
    }

    async fn may(
        &self,
        client: &Client,
        key: [u8; 32],
        user: &Value,
        namespace: &str,
    ) -> Result<bool, Denied> {
        let place = (key, namespace.to_owned());
        if let Some((at, may)) = self.said.lock().may.get(&place)
            && at.elapsed() < HOLDS
        {
            return Ok(*may);
        }
        let question = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": user["username"], "uid": user["uid"], "groups": user["groups"], "extra": user["extra"],
                "resourceAttributes": {
                    "group": "weft.dev", "version": "v1alpha1", "resource": "proxies", "subresource": "admin", "verb": "get",
                    "namespace": namespace,
                },
            },
        });
        let status = ask(client, "/apis/authorization.k8s.io/v1/subjectaccessreviews", &question).await?;
        let may = status["allowed"].as_bool().unwrap_or(false) && status["denied"].as_bool() != Some(true);
        let mut said = self.said.lock();
        if said.may.len() >= KEPT {
            said.may.clear();
        }
        said.may.insert(place, (Instant::now(), may));
        Ok(may)
    }
}

/// Whether that is the token of a file.
async fn is_that_of(file: &Path, shown: &str) -> Result<bool, Denied> {
    let wanted = tokio::fs::read_to_string(file).await.map_err(|error| {
        tracing::error!(file = %file.display(), %error, "--inspect-token-file cannot be read");
        let why = "the token's file cannot be read; see the control plane's log";
        Denied::new(StatusCode::SERVICE_UNAVAILABLE, why)
    })?;
    let wanted = wanted.trim();
    // An empty file lets nobody in, and how long a comparison takes says nothing of the token.
    let same = aws_lc_rs::constant_time::verify_slices_are_equal(wanted.as_bytes(), shown.as_bytes());
    Ok(!wanted.is_empty() && same.is_ok())
}

fn digest(token: &str) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    let mut all = [0; 32];
    all.copy_from_slice(digest.as_ref());
    all
}

/// Who a token is: one for us alone, or one for the API server itself.
async fn review(client: &Client, token: &str) -> Result<Result<Value, String>, Denied> {
    let mut why = String::new();
    for audiences in [Some([AUDIENCE]), None] {
        let mut spec = json!({ "token": token });
        if let Some(audiences) = audiences {
            spec["audiences"] = json!(audiences);
        }
        let question = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec});
        let mut status = ask(client, "/apis/authentication.k8s.io/v1/tokenreviews", &question).await?;
        // A server that does not know audiences says none: the token could be for somebody else.
        let heard = status["audiences"].as_array();
        let ours = audiences.is_none() || heard.is_some_and(|all| all.iter().any(|one| one == AUDIENCE));
        if status["authenticated"] == true && ours {
            return Ok(Ok(status["user"].take()));
        }
        why = match status["error"].as_str() {
            Some(error) if !error.is_empty() => format!("Kubernetes does not take the token ({error})"),
            _ => "Kubernetes does not know the token".to_owned(),
        };
    }
    Ok(Err(why))
}

/// The status of a review.
async fn ask(client: &Client, path: &str, question: &Value) -> Result<Value, Denied> {
    let failed = |error: &dyn std::fmt::Display| {
        tracing::warn!(path, %error, "Kubernetes could not be asked who may read proxies' pages");
        let resource = path.rsplit('/').next().unwrap_or_default();
        Denied::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "Kubernetes cannot be asked ({error}); may the control plane's service account create {resource}?"
            ),
        )
    };
    let body = serde_json::to_vec(question).map_err(|e| failed(&e))?;
    let request = http::Request::post(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|e| failed(&e))?;
    let mut answer: Value = client.request(request).await.map_err(|e| failed(&e))?;
    Ok(answer["status"].take())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(token: &str) -> HeaderMap {
        let value = http::HeaderValue::from_str(token).unwrap();
        [(header::AUTHORIZATION, value)].into_iter().collect()
    }

    #[tokio::test]
    async fn the_files_token_opens_all_and_no_other_does() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "open sesame\n").unwrap();
        let access = Access::new(Some(file.clone()), None);
        let who = access.who(&shown("Bearer open sesame")).await.ok().unwrap();
        assert_eq!(access.allow(&who, "any").await, Ok(()));
        assert_eq!(access.allowed(&who, &["a".to_owned()].into()).await.unwrap(), ["a".to_owned()].into());
        for wrong in ["Bearer open sesam", "Bearer ", "open sesame", "Basic open sesame"] {
            let denied = access.who(&shown(wrong)).await.err().unwrap();
            assert_eq!(denied.status, StatusCode::UNAUTHORIZED, "{wrong}");
            assert!(denied.why.contains("--inspect-token-file"), "{}", denied.why);
        }
        assert_eq!(access.who(&HeaderMap::new()).await.err().unwrap().status, StatusCode::UNAUTHORIZED);
        std::fs::write(&file, "\n").unwrap();
        assert!(access.who(&shown("Bearer ")).await.is_err(), "an empty file opens nothing");
        std::fs::remove_file(&file).unwrap();
        let denied = access.who(&shown("Bearer open sesame")).await.err().unwrap();
        assert_eq!(denied.status, StatusCode::SERVICE_UNAVAILABLE);
        let closed = Access::new(None, None).who(&shown("Bearer open sesame")).await.err().unwrap();
        assert_eq!(closed.status, StatusCode::FORBIDDEN);
    }
}
