//! Who may read proxies' admin pages: whoever knows the token of a file, and in a cluster whom its roles let do so.
//!
//! Kubernetes is asked who a token is (TokenReview) and whether that one may `get` `proxies/admin` of the group `weft.dev` in the
//! proxy's namespace (SubjectAccessReview). There are no such objects: a role may name them all the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode, header};
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::lately::Lately;

/// The audience of a token that is good for nothing else: `kubectl create token ACCOUNT --audience weft.dev`.
pub const AUDIENCE: &str = "weft.dev";
/// What is to be granted, for people.
pub const PERMISSION: &str = "get proxies/admin (apiGroup weft.dev)";
/// What Kubernetes has said holds for so long.
const HOLDS: Duration = Duration::from_secs(10);
/// As many sayings are kept.
const KEPT: usize = 4096;
/// As many tokens are asked about at the same time, and as many rights.
const AT_ONCE: usize = 4;
/// Nobody waits longer to be among them.
const TURN: Duration = Duration::from_secs(3);
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(5);
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
    /// The same for what those may who are known, who do not wait behind the others.
    rights: Arc<Semaphore>,
}

/// What Kubernetes said lately, by the token's hash.
struct Said {
    people: Lately<[u8; 32], Result<Value, String>>,
    /// In a namespace; of all of them together where it is empty.
    may: Lately<([u8; 32], String), bool>,
}

impl Default for Said {
    fn default() -> Self {
        Self { people: Lately::new(HOLDS, KEPT), may: Lately::new(HOLDS, KEPT) }
    }
}

/// A turn to ask the API server; whoever waits for it holds a connection meanwhile.
async fn turn(all: &Semaphore) -> Result<SemaphorePermit<'_>, Denied> {
    match tokio::time::timeout(TURN, all.acquire()).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) | Err(_) => Err(Denied::new(
            StatusCode::TOO_MANY_REQUESTS,
            "Kubernetes is asked who may read proxies' pages by too many at once: try again in a few seconds",
        )),
    }
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
        let turns = || Arc::new(Semaphore::new(AT_ONCE));
        Self { token, cluster, said: Arc::default(), reviews: turns(), rights: turns() }
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
        let known = self.person(&key);
        let said = match known {
            Some(said) => said,
            None => self.reviewed(client, key, shown).await?,
        };
        let user = said.map_err(|why| self.unknown(&why))?;
        let name = user["username"].as_str().unwrap_or_default().to_owned();
        Ok(Somebody { name, user: Some((key, user)) })
    }

    fn person(&self, key: &[u8; 32]) -> Option<Result<Value, String>> {
        self.said.lock().people.get(key, Instant::now())
    }

    async fn reviewed(
        &self,
        client: &Client,
        key: [u8; 32],
        token: &str,
    ) -> Result<Result<Value, String>, Denied> {
        let _turn = turn(&self.reviews).await?;
        // Others may have waited for the same.
        let known = self.person(&key);
        if let Some(said) = known {
            return Ok(said);
        }
        let said = review(client, token).await?;
        self.said.lock().people.insert(key, said.clone(), Instant::now());
        Ok(said)
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

    /// Whether somebody may read the pages of a namespace's proxies. Of a namespace without proxies the API server is not asked:
    /// names that somebody thought of have no end.
    ///
    /// # Errors
    /// They may not, or it cannot be known.
    pub async fn allow(&self, who: &Somebody, namespace: &str, has_proxies: bool) -> Result<(), Denied> {
        let (Some((key, user)), Some(client)) = (&who.user, &self.cluster) else { return Ok(()) };
        if self.may(client, *key, user, "").await?
            || (has_proxies && self.may(client, *key, user, namespace).await?)
        {
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
        let said = || self.said.lock().may.get(&place, Instant::now());
        if let Some(may) = said() {
            return Ok(may);
        }
        let _turn = turn(&self.rights).await?;
        // A table of many proxies asks the same for each of them.
        if let Some(may) = said() {
            return Ok(may);
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
        self.said.lock().may.insert(place, may, Instant::now());
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
    let answer = tokio::time::timeout(PATIENCE, client.request::<Value>(request)).await;
    let mut answer =
        answer.map_err(|_| failed(&format!("no answer within {PATIENCE:?}")))?.map_err(|e| failed(&e))?;
    Ok(answer["status"].take())
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::task::JoinSet;

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
        assert_eq!(access.allow(&who, "any", true).await, Ok(()));
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

    /// An API server that knows everybody by the token's own name, lets them read the namespace shop, and keeps what it was asked;
    /// or one that never answers.
    fn cluster(asked: &Arc<Mutex<Vec<String>>>, silent: bool) -> Client {
        let asked = asked.clone();
        let answer = move |request: http::Request<kube::client::Body>| {
            let asked = asked.clone();
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let question: Value = serde_json::from_slice(&body).unwrap();
                if silent {
                    std::future::pending::<()>().await;
                }
                let spec = &question["spec"];
                let status = if question["kind"] == "TokenReview" {
                    asked.lock().push(format!("who {}", spec["token"].as_str().unwrap()));
                    json!({"authenticated": true, "audiences": [AUDIENCE], "user": {"username": spec["token"]}})
                } else {
                    let namespace = spec["resourceAttributes"]["namespace"].as_str().unwrap();
                    asked.lock().push(format!("may {namespace:?}"));
                    json!({"allowed": namespace == "shop"})
                };
                let answer = json!({"status": status}).to_string();
                Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(
                    answer.into_bytes(),
                )))
            }
        };
        Client::new(tower::service_fn(answer), "default")
    }

    #[tokio::test]
    async fn the_api_server_is_asked_once_and_of_no_namespace_that_somebody_thought_of() {
        let asked = Arc::default();
        let access = Access::new(None, Some(cluster(&asked, false)));
        // Many at once, as a table of many proxies asks.
        let all: JoinSet<_> = (0..32)
            .map(|_| {
                let access = access.clone();
                async move {
                    let who = access.who(&shown("Bearer ann")).await.ok().unwrap();
                    access.allow(&who, "shop", true).await
                }
            })
            .collect();
        for one in all.join_all().await {
            assert_eq!(one, Ok(()));
        }
        let before = asked.lock().clone();
        for question in ["who ann", "may \"\"", "may \"shop\""] {
            let many = before.iter().filter(|one| *one == question).count();
            assert!((1..=AT_ONCE).contains(&many), "{question}: {before:?}");
        }
        let who = access.who(&shown("Bearer ann")).await.ok().unwrap();
        for n in 0..8 {
            let denied = access.allow(&who, &format!("invented-{n}"), false).await.unwrap_err();
            assert_eq!(denied.status, StatusCode::FORBIDDEN);
            assert!(denied.why.contains(&format!("invented-{n}")), "{}", denied.why);
        }
        assert_eq!(*asked.lock(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_silent_api_server_without_end() {
        let access = Access::new(None, Some(cluster(&Arc::default(), true)));
        let ask = |n: usize| {
            let access = access.clone();
            async move { access.who(&shown(&format!("Bearer {n}"))).await.err().unwrap().status.as_u16() }
        };
        let mut denied = (0..=AT_ONCE).map(ask).collect::<JoinSet<_>>().join_all().await;
        denied.sort_unstable();
        assert_eq!(denied, [429, 503, 503, 503, 503]);
        // The turns come back, also for rights.
        let who = Somebody { name: "ann".into(), user: Some(([0; 32], json!({"username": "ann"}))) };
        let all = (0..=AT_ONCE).map(|n| {
            let (access, who) = (access.clone(), who.clone());
            async move { access.allow(&who, &n.to_string(), true).await.unwrap_err().status.as_u16() }
        });
        let mut denied = all.collect::<JoinSet<_>>().join_all().await;
        denied.sort_unstable();
        assert_eq!(denied, [429, 503, 503, 503, 503]);
    }
}
