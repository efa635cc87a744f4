//! Tokens of Kubernetes, checked by its API (`authentication.k8s.io/v1`, TokenReview): it knows whether the service account and
//! the pod that a token is bound to are still there.

use std::path::PathBuf;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::http::{Client, HttpError};
use super::token::{AUDIENCE, Subject, TokenError};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// The checker.
pub struct TokenReview {
    client: Client,
    token: PathBuf,
}

impl TokenReview {
    /// Asks the API server at `address`, whose TLS is checked by `roots`; the control plane's own token, which may create
    /// TokenReviews, is in the file `token`, read anew for each call.
    pub fn new(address: &str, roots: Option<PathBuf>, token: PathBuf) -> Result<Self, HttpError> {
        Ok(Self { client: Client::new(address, roots)?, token })
    }

    /// Who a token proves its holder to be.
    pub async fn check(&self, token: &str) -> Result<Subject, TokenError> {
        let own = tokio::fs::read_to_string(&self.token)
            .await
            .map_err(|e| TokenError::Unchecked(format!("{}: {e}", self.token.display())))?;
        let own = zeroize::Zeroizing::new(format!("Bearer {}", own.trim()));
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [AUDIENCE]},
        });
        let headers = [("authorization", own.as_str()), ("accept", "application/json")];
        let answer = self.client.call(Method::POST, PATH, &headers, Some(&body)).await;
        let (status, bytes) = answer.map_err(|e| TokenError::Unchecked(e.to_string()))?;
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if !matches!(status, StatusCode::OK | StatusCode::CREATED) {
            let message = answer["message"].as_str().unwrap_or_default();
            return Err(TokenError::Unchecked(format!(
                "{}{PATH} answers {status} {message}; may the control plane's service account create tokenreviews?",
                self.client.base()
            )));
        }
        let status = &answer["status"];
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
        Subject::parse(status["user"]["username"].as_str().unwrap_or_default())
    }
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
