//! AdmissionReview (`admission.k8s.io/v1`): how an API server asks, and how it is answered.

use base64::Engine;
use serde_json::{Value, json};

/// What an API server asks.
#[derive(Debug)]
pub(super) struct Question {
    uid: String,
    /// CREATE, UPDATE, DELETE, CONNECT.
    pub(super) operation: String,
    pub(super) namespace: String,
    /// Who applies it.
    pub(super) user: String,
    /// Group, version and kind.
    pub(super) kind: [String; 3],
    /// As it is to be stored; null when it goes.
    pub(super) object: Value,
    /// As it is stored now; null when it is new.
    pub(super) old: Value,
}

/// What it is told.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// Why not; none: it may.
    pub(super) refused: Option<String>,
    /// What the one who applies it reads.
    pub(super) warnings: Vec<String>,
    /// What is changed, as a JSON patch; null: nothing.
    pub(super) patch: Value,
}

impl Question {
    /// Reads a review; an error says what is wrong with it.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        let mut review: Value = serde_json::from_slice(body).map_err(|error| format!("not JSON: {error}"))?;
        let version = review["apiVersion"].as_str().unwrap_or_default();
        if review["kind"] != "AdmissionReview" || version != "admission.k8s.io/v1" {
            return Err(format!(
                "{} {version} is no AdmissionReview of admission.k8s.io/v1; set admissionReviewVersions: [v1]",
                review["kind"].as_str().unwrap_or("nothing")
            ));
        }
        let request = &mut review["request"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let uid = text(&request["uid"]);
        if uid.is_empty() {
            return Err("request.uid is missing".to_owned());
        }
        let kind = ["group", "version", "kind"].map(|part| text(&request["kind"][part]));
        let (operation, namespace) = (text(&request["operation"]), text(&request["namespace"]));
        let user = text(&request["userInfo"]["username"]);
        Ok(Self {
            uid,
            operation,
            namespace,
            user,
            kind,
            object: request["object"].take(),
            old: request["oldObject"].take(),
        })
    }
}

impl Answer {
    /// A refusal.
    pub(super) fn refuse(why: impl Into<String>) -> Self {
        Self { refused: Some(why.into()), ..Self::default() }
    }

    /// The review that answers a question.
    pub(super) fn review(&self, question: &Question) -> Value {
        let mut response = json!({"uid": question.uid, "allowed": self.refused.is_none()});
        if let Some(why) = &self.refused {
            response["status"] = json!({"code": 422, "reason": "Invalid", "message": why});
        } else if self.patch.as_array().is_some_and(|patch| !patch.is_empty()) {
            let patch = base64::engine::general_purpose::STANDARD.encode(self.patch.to_string());
            response["patchType"] = "JSONPatch".into();
            response["patch"] = patch.into();
        }
        if !self.warnings.is_empty() {
            response["warnings"] = self.warnings.clone().into();
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }
}
