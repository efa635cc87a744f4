//! `/validate`: configuration is about to be stored. The check is the reader's of directories, one for both; what it says beside
//! everything else is looked at by the checks of `weft analyze`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::review::{Answer, Question};
use crate::analyze::{Code, Message, analyze_until};
use crate::ingest::cluster::{Beside, DEFINED, Outlook};
use crate::ingest::{Diagnostic, check_object};
use crate::model::gateway_api::GROUP as GATEWAY_API;
use crate::model::{Severity, World};

/// Fields of `metadata` that say something of the mesh; the others are the API server's own.
const METADATA: [&str; 5] = ["name", "namespace", "labels", "annotations", "creationTimestamp"];
/// An API server shortens warnings that are more than 4 KiB together.
const MOST_WARNINGS: usize = 10;
/// What is said where the time did not suffice.
const LATE: &str =
    "this was not looked at beside everything else, which took too long: weft analyze --cluster does it";

/// Everything that is stored, and what has been found in it.
pub(super) struct Surroundings {
    beside: Beside,
    /// Of the state that was looked at last.
    found: Mutex<Option<(u64, Arc<HashSet<Message>>)>>,
}

impl Surroundings {
    pub(super) fn new(beside: Beside) -> Self {
        Self { beside, found: Mutex::default() }
    }

    /// What is found in a state; none if the time does not suffice.
    fn found(&self, world: &World, end: Instant) -> Option<Arc<HashSet<Message>>> {
        let version = world.version();
        if let Some((_, known)) = self.found.lock().as_ref().filter(|(of, _)| *of == version) {
            return Some(known.clone());
        }
        let (found, true) = analyze_until(world, end) else { return None };
        let found = Arc::new(found.into_iter().collect::<HashSet<_>>());
        *self.found.lock() = Some((version, found.clone()));
        Some(found)
    }
}

/// Says whether the mesh would take an object: by itself, and beside everything else if that is given, with the moment until
/// which to look for doubts.
pub(super) fn validate(question: &Question, surroundings: Option<(&Surroundings, Instant)>) -> Answer {
    if !matches!(question.operation.as_str(), "CREATE" | "UPDATE") || !question.object.is_object() {
        return Answer::default();
    }
    // What is about to go has to get rid of its finalizers, and what was stored before these rules must still take labels.
    let goes = !question.object["metadata"]["deletionTimestamp"].is_null();
    if goes || (question.old.is_object() && question.object["spec"] == question.old["spec"]) {
        return Answer::default();
    }
    let document = document(question);
    let found = check_object(&document);
    let labels = labels(question);
    // What is of the Gateway API may be another controller's, who takes what we do not.
    let foreign = question.kind[0] == GATEWAY_API;
    let (errors, mild): (Vec<_>, Vec<_>) = found.iter().partition(|one| one.is_error());
    let mut refused: Vec<_> = errors.into_iter().map(text).collect();
    let mut warnings: Vec<_> =
        mild.into_iter().filter(|one| foreign || one.severity == Severity::Warning).map(text).collect();
    let looked = surroundings.filter(|_| refused.is_empty());
    if let Some((outlook, end, surroundings)) =
        looked.and_then(|(all, end)| Some((all.beside.look(&document)?, end, all)))
    {
        refused = outlook.breaks.iter().map(|one| beside(one, &outlook.object)).collect();
        if refused.is_empty() {
            doubts(&outlook, surroundings, end, &mut warnings);
        }
    }
    if foreign {
        let all = refused.into_iter().chain(warnings);
        let warnings = all.map(|one| format!("where Weft serves it: {one}")).collect();
        return Answer { warnings, ..Answer::default() };
    }
    if refused.is_empty() {
        metrics::counter!("galley_validation_passed", &labels).increment(1);
        return Answer { warnings, ..Answer::default() };
    }
    let [group, version, resource] = labels;
    let labels = [group, version, resource, ("reason", "invalid_resource")];
    metrics::counter!("galley_validation_failed", &labels).increment(1);
    Answer::refuse(refused.join("\n"))
}

/// The answer for which there was no time to look at anything else.
pub(super) fn alone(question: &Question) -> Answer {
    let mut answer = validate(question, None);
    if answer.refused.is_none() {
        answer.warnings.push(LATE.to_owned());
    }
    answer
}

/// What is probably not meant so: of the object everything, of others what they would not have without it. Notes are left to those
/// who ask for them.
fn doubts(outlook: &Outlook, surroundings: &Surroundings, end: Instant, warnings: &mut Vec<String>) {
    let said = outlook.doubts.iter().filter(|one| one.severity != Severity::Info);
    let mut own = Vec::new();
    let mut others = Vec::new();
    for one in said {
        let is_own = one.object.as_ref() == Some(&outlook.object);
        let code = if one.is_error() { Code::Refused } else { Code::Doubted };
        let told = format!("{code} {}: {}", code.name(), beside(one, &outlook.object));
        if is_own { &mut own } else { &mut others }.push(told);
    }
    let before = surroundings.found(&outlook.before, end);
    let (after, complete) = analyze_until(&outlook.after, end);
    for message in after.iter().filter(|message| message.severity != Severity::Info) {
        let is_own = message.resource.as_ref() == Some(&outlook.object);
        if is_own || before.as_ref().is_some_and(|before| !before.contains(message)) {
            if is_own { &mut own } else { &mut others }.push(of_analysis(message, is_own));
        }
    }
    let late = (!complete || before.is_none()).then(|| LATE.to_owned());
    warnings.extend(own.into_iter().chain(others));
    if let Some(more) = warnings.len().checked_sub(MOST_WARNINGS).filter(|more| *more > 0) {
        warnings.truncate(MOST_WARNINGS);
        warnings.push(format!("and {more} more: weft analyze --cluster has them all"));
    }
    warnings.extend(late);
}

fn of_analysis(message: &Message, is_own: bool) -> String {
    let resource = message.resource.as_ref().filter(|_| !is_own);
    let place = [resource, message.path.as_ref()].into_iter().flatten();
    let place: String = place.map(|part| format!("{part}: ")).collect();
    let help = message.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
    format!("{} {}: {place}{}{help}", message.code, message.name, message.why)
}

/// A finding of the reader's, with the object if it is another than the one that is asked about.
fn beside(one: &Diagnostic, asked: &str) -> String {
    let other = one.object.as_ref().filter(|object| *object != asked);
    other.map(|other| format!("{other}: ")).unwrap_or_default() + &text(one)
}

fn text(one: &Diagnostic) -> String {
    let path = one.path.as_ref().map(|path| format!("{path}: ")).unwrap_or_default();
    let help = one.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
    format!("{path}{}{help}", one.reason)
}

/// What the check counts under: whoever asks does not make up names of series.
fn labels(question: &Question) -> [(&'static str, &'static str); 3] {
    let [group, version, kind] = &question.kind;
    let known = DEFINED.iter().find(|known| known.group == group && known.kind == kind);
    let (group, resource) = known.map_or(("other", "other"), |known| (known.group, known.plural));
    let versions = known.into_iter().flat_map(|known| known.versions);
    let version = versions.copied().find(|known| known == version).unwrap_or("other");
    [("group", group), ("version", version), ("resource", resource)]
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
