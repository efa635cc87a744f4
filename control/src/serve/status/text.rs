//! What a status says.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::analyze::Code;
use crate::ingest::cluster::Verdict;
use crate::ingest::{Diagnostic, Severity};

/// The status of an object whose state `taken` of `all` connected proxies have taken.
pub(super) fn status(verdict: &Verdict, taken: usize, all: usize) -> Value {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or_else(|_| OffsetDateTime::now_utc());
    let now = now.format(&Rfc3339).unwrap_or_default();
    let valid = is_valid(verdict);
    let condition = |kind: &str, status: bool, reason: &str, message: String| {
        // A condition that stays as it is keeps the time at which it became so.
        let before = condition_of(verdict, kind).filter(|c| c["status"] == truth(status));
        let since = before.and_then(|c| c["lastTransitionTime"].as_str()).unwrap_or(&now);
        let mut condition = json!({
            "type": kind, "status": truth(status), "reason": reason, "message": message, "lastTransitionTime": since,
        });
        if let Some(generation) = verdict.generation {
            condition["observedGeneration"] = generation.into();
        }
        condition
    };
    let (effective, reason) = match (valid, verdict.earlier) {
        (false, false) => (false, "Refused"),
        (false, true) => (false, "EarlierVersion"),
        (true, _) if taken < all => (false, "Pending"),
        (true, _) => (true, "Delivered"),
    };
    let message = match reason {
        "Refused" => "no version of it is in force".to_owned(),
        "EarlierVersion" => "the last version that was right stays in force".to_owned(),
        _ => format!("{taken} of {all} connected proxies have taken the state that it is part of"),
    };
    let messages: Vec<_> = verdict.findings.iter().map(message_of).collect();
    let mut status = json!({
        "conditions": [
            condition("Valid", valid, if valid { "Accepted" } else { "Invalid" }, valid_message(verdict)),
            condition("Effective", effective, reason, message),
        ],
        "validationMessages": messages,
    });
    if let Some(generation) = verdict.generation {
        status["observedGeneration"] = generation.into();
    }
    status
}

/// Whether the object says already what would be written of its validity.
pub(super) fn says_the_same(verdict: &Verdict) -> bool {
    let Some(valid) = condition_of(verdict, "Valid") else { return false };
    let generation = verdict.status["observedGeneration"].as_i64();
    let effective = condition_of(verdict, "Effective").map(|c| c["status"] == "True");
    generation == verdict.generation
        && valid["status"] == truth(is_valid(verdict))
        && valid["message"] == valid_message(verdict)
        && effective == Some(is_valid(verdict))
}

fn is_valid(verdict: &Verdict) -> bool {
    !verdict.findings.iter().any(Diagnostic::is_error)
}

fn truth(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

fn condition_of<'v>(verdict: &'v Verdict, kind: &str) -> Option<&'v Value> {
    verdict.status["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Field, reason and what to do, each finding on a line.
fn valid_message(verdict: &Verdict) -> String {
    let lines: Vec<_> = verdict.findings.iter().map(line).collect();
    lines.join("\n")
}

fn line(finding: &Diagnostic) -> String {
    let path = finding.path.as_deref().map(|path| format!("{path}: ")).unwrap_or_default();
    let help = finding.help.as_deref().map(|help| format!("; {help}")).unwrap_or_default();
    format!("{path}{}{help}", finding.reason)
}

/// One of Istio's analysis messages.
pub(in crate::serve) fn message_of(finding: &Diagnostic) -> Value {
    let level = match finding.severity {
        Severity::Error => "ERROR",
        Severity::Warning => "WARNING",
        Severity::Info => "INFO",
    };
    let code = if finding.is_error() { Code::Refused } else { Code::Doubted };
    json!({"type": {"name": code.name(), "code": code.to_string()}, "level": level, "message": line(finding)})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(error: Option<&str>, status: Value) -> Verdict {
        let finding = |path: &str| Diagnostic {
            path: Some(path.to_owned()),
            ..Diagnostic::file_error("kubernetes", "unknown field", "take it out")
        };
        Verdict {
            generation: Some(2),
            api_version: "networking.istio.io/v1".to_owned(),
            findings: error.map(finding).into_iter().collect(),
            earlier: false,
            status,
            resource_version: String::new(),
            standing: None,
        }
    }

    #[test]
    fn a_status_says_what_is_wrong_and_how_many_follow() {
        let good = status(&verdict(None, Value::Null), 3, 3);
        assert_eq!(good["conditions"][0]["status"], "True");
        assert_eq!(good["conditions"][1]["status"], "True");
        assert_eq!(
            good["conditions"][1]["message"],
            "3 of 3 connected proxies have taken the state that it is part of"
        );
        assert_eq!((&good["observedGeneration"], &good["validationMessages"]), (&json!(2), &json!([])));
        let slow = status(&verdict(None, Value::Null), 2, 3);
        assert_eq!(
            (&slow["conditions"][1]["status"], &slow["conditions"][1]["reason"]),
            (&json!("False"), &json!("Pending"))
        );

        let bad = status(&verdict(Some("spec.hots"), Value::Null), 3, 3);
        assert_eq!(bad["conditions"][0]["message"], "spec.hots: unknown field; take it out");
        assert_eq!(bad["conditions"][1]["reason"], "Refused");
        assert_eq!(bad["validationMessages"][0]["level"], "ERROR");
    }

    #[test]
    fn what_an_object_says_already_is_not_written_again() {
        let mut written = status(&verdict(None, Value::Null), 3, 3);
        assert!(says_the_same(&verdict(None, written.clone())));
        assert!(!says_the_same(&verdict(Some("spec"), written.clone())));
        assert!(!says_the_same(&verdict(None, Value::Null)));
        // A time stays while its condition does.
        written["conditions"][0]["lastTransitionTime"] = "2026-01-01T00:00:00Z".into();
        let again = status(&verdict(None, written.clone()), 3, 3);
        assert_eq!(again["conditions"][0]["lastTransitionTime"], "2026-01-01T00:00:00Z");
        let bad = status(&verdict(Some("spec"), written.clone()), 3, 3);
        assert_ne!(bad["conditions"][0]["lastTransitionTime"], "2026-01-01T00:00:00Z");
        written["observedGeneration"] = 1.into();
        assert!(!says_the_same(&verdict(None, written)));
    }
}
