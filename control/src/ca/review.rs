//! Tokens of Kubernetes, checked by its API (`authentication.k8s.io/v1`, TokenReview): it knows whether the service account and
//! the pod that a token is bound to are still there.

use std::path::{Path, PathBuf};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::bound::BoundPod;
use super::http::{Client, HttpError};
use super::token::{AUDIENCE, Subject, TokenError};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const RIGHT: &str = "create tokenreviews";

/// The checker.
pub struct TokenReview {
    way: Way,
}

/// How the API is asked.
enum Way {
    /// By HTTP, with the token that is in a file.
    Http(Client, PathBuf),
    /// By the client that reads the mesh.
    Api(kube::Client),
}

impl TokenReview {
    /// Asks the API server at `address`, whose TLS is checked by `roots`; the control plane's own token, which may create
    /// TokenReviews, is in the file `token`, read anew for each call.
    pub fn new(address: &str, roots: Option<PathBuf>, token: PathBuf) -> Result<Self, HttpError> {
        Ok(Self { way: Way::Http(Client::new(address, roots)?, token) })
    }

    /// Asks the API server that this client knows.
    pub fn by(client: kube::Client) -> Self {
        Self { way: Way::Api(client) }
    }

    /// Who a token proves its holder to be.
    pub async fn check(&self, token: &str) -> Result<Subject, TokenError> {
        let status = match &self.way {
            Way::Http(client, own) => {
                by_http(client, own, Method::POST, PATH, Some(question(token)), RIGHT).await
            }
            Way::Api(client) => by_api(client, Method::POST, PATH, Some(question(token)), RIGHT).await,
        }?["status"]
            .take();
        if let Some(error) = status["error"].as_str().filter(|e| !e.is_empty()) {
            return Err(TokenError::Malformed(format!("Kubernetes says: {error}")));
        }
        if status["authenticated"].as_bool() != Some(true) {
            return Err(TokenError::Malformed("Kubernetes does not know it (any more)".to_owned()));
        }
        let audiences = status["audiences"].as_array();
        if !audiences.is_some_and(|all| all.iter().any(|a| a.as_str() == Some(AUDIENCE))) {
            return Err(TokenError::Audience(AUDIENCE.to_owned()));
        }
        let user = &status["user"];
        let extra =
            |what: &str| user["extra"][format!("authentication.kubernetes.io/pod-{what}")][0].as_str();
        let subject = Subject::parse(user["username"].as_str().unwrap_or_default())?;
        Ok(Subject { pod: BoundPod::of(extra("name"), extra("uid")), ..subject })
    }

    /// A pod as the API server has it now; none if it is not there.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Value>, TokenError> {
        if [namespace, name]
            .iter()
            .any(|part| part.contains(|c: char| !(c.is_ascii_alphanumeric() || "-.".contains(c))))
        {
            return Err(TokenError::Malformed(format!("{namespace}/{name} cannot be a pod")));
        }
        // Lists are what the control plane's role has anyway.
        let path = format!("/api/v1/namespaces/{namespace}/pods?fieldSelector=metadata.name%3D{name}");
        let mut list = match &self.way {
            Way::Http(client, own) => by_http(client, own, Method::GET, &path, None, "list pods").await?,
            Way::Api(client) => by_api(client, Method::GET, &path, None, "list pods").await?,
        };
        match list["items"].take() {
            Value::Array(items) => Ok(items.into_iter().next()),
            _ => Err(TokenError::Unchecked("the Kubernetes API gave no list of pods".to_owned())),
        }
    }
}

fn question(token: &str) -> Value {
    json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [AUDIENCE]},
    })
}

/// The answer. `right` is what the control plane's service account needs for it.
async fn by_http(
    client: &Client,
    own: &Path,
    method: Method,
    path: &str,
    body: Option<Value>,
    right: &str,
) -> Result<Value, TokenError> {
    let text = tokio::fs::read_to_string(own)
        .await
        .map_err(|e| TokenError::Unchecked(format!("{}: {e}", own.display())))?;
    let own = zeroize::Zeroizing::new(format!("Bearer {}", text.trim()));
    let headers = [("authorization", own.as_str()), ("accept", "application/json")];
    let answer = client.call(method, path, &headers, body.as_ref()).await;
    let (status, bytes) = answer.map_err(|e| TokenError::Unchecked(e.to_string()))?;
    let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if !matches!(status, StatusCode::OK | StatusCode::CREATED) {
        let message = answer["message"].as_str().unwrap_or_default();
        return Err(TokenError::Unchecked(format!(
            "{}{path} answers {status} {message}; may the control plane's service account {right}?",
            client.base()
        )));
    }
    Ok(answer)
}

async fn by_api(
    client: &kube::Client,
    method: Method,
    path: &str,
    body: Option<Value>,
    right: &str,
) -> Result<Value, TokenError> {
    let body = body.map(|body| serde_json::to_vec(&body)).transpose();
    let body = body.map_err(|e| TokenError::Unchecked(e.to_string()))?.unwrap_or_default();
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|e| TokenError::Unchecked(e.to_string()))?;
    client.request(request).await.map_err(|e| {
        TokenError::Unchecked(format!(
            "the Kubernetes API: {e}; may the control plane's service account {right}?"
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::ca::testing::serve;

    #[tokio::test]
    async fn kubernetes_says_who_a_token_is_and_for_whom() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("token");
        std::fs::write(&own, "control-plane\n").unwrap();
        let good = json!({"authenticated": true, "audiences": ["istio-ca"],
            "user": {"username": "system:serviceaccount:shop:cart"}});
        let status = Arc::new(Mutex::new((StatusCode::CREATED, good.clone())));
        let scripted = status.clone();
        let (url, _server) = serve(move |asked| {
            assert_eq!(asked.what, format!("POST {PATH}"));
            assert_eq!(asked.headers["authorization"], "Bearer control-plane");
            assert_eq!(asked.body["spec"], json!({"token": "t", "audiences": ["istio-ca"]}));
            let (code, status) = scripted.lock().unwrap().clone();
            (code, json!({"kind": "TokenReview", "status": status}))
        })
        .await;
        let review = TokenReview::new(&url, None, own.clone()).unwrap();
        let subject = review.check("t").await.unwrap();
        assert_eq!((subject.namespace.as_str(), subject.service_account.as_str()), ("shop", "cart"));

        assert!(subject.pod.is_none());
        let mut bound = good.clone();
        bound["user"]["extra"] = json!({"authentication.kubernetes.io/pod-name": ["cart-1"],
            "authentication.kubernetes.io/pod-uid": ["u1"]});
        *status.lock().unwrap() = (StatusCode::CREATED, bound);
        assert_eq!(review.check("t").await.unwrap().pod, BoundPod::of(Some("cart-1"), Some("u1")));

        let with = |field: &str, value: Value| {
            let mut status = good.clone();
            status[field] = value;
            status
        };
        for (code, said, words) in [
            (201, with("authenticated", false.into()), "does not know it"),
            (201, with("error", "token has been invalidated".into()), "invalidated"),
            // A server that does not know audiences says none: the token could be for somebody else.
            (201, with("audiences", Value::Null), "another audience"),
            (201, with("audiences", json!(["https://kubernetes.default.svc"])), "another audience"),
            (201, with("user", json!({"username": "system:node:n1"})), "not a service account"),
            (403, Value::Null, "may the control plane's service account"),
            (500, Value::Null, "cannot be checked now"),
        ] {
            *status.lock().unwrap() = (StatusCode::from_u16(code).unwrap(), said);
            let error = review.check("t").await.unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(matches!(error, TokenError::Unchecked(_)), code != 201, "{error}");
        }
        std::fs::remove_file(own).unwrap();
        assert!(matches!(review.check("t").await, Err(TokenError::Unchecked(_))));
    }
}
