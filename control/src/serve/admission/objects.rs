//! `/validate`: configuration is about to be stored. The check is the reader's of directories, one for both.

use serde_json::{Value, json};

use super::review::{Answer, Question};
use crate::ingest::cluster::DEFINED;
use crate::ingest::{Diagnostic, check_object};
use crate::model::Severity;
use crate::model::gateway_api::GROUP as GATEWAY_API;

/// Fields of `metadata` that say something of the mesh; the others are the API server's own.
const METADATA: [&str; 5] = ["name", "namespace", "labels", "annotations", "creationTimestamp"];

/// Says whether the mesh would take an object.
pub(super) fn validate(question: &Question) -> Answer {
    if !matches!(question.operation.as_str(), "CREATE" | "UPDATE") || !question.object.is_object() {
        return Answer::default();
    }
    // What is about to go has to get rid of its finalizers, and what was stored before these rules must still take labels.
    let goes = !question.object["metadata"]["deletionTimestamp"].is_null();
    if goes || (question.old.is_object() && question.object["spec"] == question.old["spec"]) {
        return Answer::default();
    }
    let found = check_object(&document(question));
    let labels = labels(question);
    let text = |one: &Diagnostic| {
        let path = one.path.as_ref().map(|path| format!("{path}: ")).unwrap_or_default();
        let help = one.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
        format!("{path}{}{help}", one.reason)
    };
    if question.kind[0] == GATEWAY_API {
        // It may be another controller's, who takes what we do not.
        let warnings = found.iter().map(|one| format!("where Weft serves it: {}", text(one))).collect();
        return Answer { warnings, ..Answer::default() };
    }
    let errors: Vec<_> = found.iter().filter(|one| one.is_error()).map(text).collect();
    if errors.is_empty() {
        metrics::counter!("galley_validation_passed", &labels).increment(1);
        let warnings = found.iter().filter(|one| one.severity == Severity::Warning).map(text).collect();
        return Answer { warnings, ..Answer::default() };
    }
    metrics::counter!("galley_validation_failed", &labels).increment(1);
    Answer::refuse(errors.join("\n"))
}

/// What the check counts under: whoever asks does not make up names of series.
fn labels(question: &Question) -> [(&'static str, &'static str); 3] {
    let [group, version, kind] = &question.kind;
    let known = DEFINED.iter().find(|known| known.group == group && known.kind == kind);
    let (group, kind) = known.map_or(("other", "other"), |known| (known.group, known.kind));
    let versions = known.into_iter().flat_map(|known| known.versions);
    let version = versions.copied().find(|known| known == version).unwrap_or("other");
    [("group", group), ("version", version), ("kind", kind)]
}

/// The object as a document of YAML would have it.
fn document(question: &Question) -> Value {
    let mut object = question.object.clone();
    let mut metadata = json!({});
    for key in METADATA {
        if let Some(value) = object["metadata"].get(key) {
            metadata[key] = value.clone();
        }
    }
    if metadata["name"].is_null() {
        // The API server makes the name up behind us.
        let made = object["metadata"]["generateName"].as_str().unwrap_or_default();
        metadata["name"] = format!("{made}x").into();
    }
    if metadata["namespace"].is_null() && !question.namespace.is_empty() {
        metadata["namespace"] = question.namespace.as_str().into();
    }
    object["metadata"] = metadata;
    object
}
