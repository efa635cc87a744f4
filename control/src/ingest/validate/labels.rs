//! Labels of workloads, what selects by them, and names that have the form of a label of DNS.

use super::super::diagnostic::Findings;
use crate::model::Labels;
use crate::model::labels::{is_dns_label, is_label_name, is_label_value};
use crate::model::values::WorkloadSelector;

/// The name of a port, a subset or a namespace; `what` says of which.
pub(super) fn dns_label(findings: &mut Findings, path: &str, what: &str, text: &str) {
    if !is_dns_label(text) {
        let help = "use letters, digits and -, with a letter or digit at both ends, 63 characters at most";
        findings.error(path, format!("{text:?} is no name of {what}"), help);
    }
}

/// Labels that a workload has, or must have.
pub(super) fn labels(findings: &mut Findings, path: &str, labels: &Labels) {
    for (key, value) in labels {
        let path = format!("{path}.{key}");
        if !is_label_name(key) {
            let help = "write NAME or DOMAIN/NAME; names have letters, digits, -, _ and .";
            findings.error(&path, format!("{key:?} is no name of a label"), help);
        }
        if !is_label_value(value) {
            let help =
                "use letters, digits, -, _ and ., with a letter or digit at both ends, 63 characters at most";
            findings.error(&path, format!("{value:?} is no value of a label"), help);
        }
    }
}

/// What workloads must have to be selected; `path` is where the labels stand.
pub(super) fn selected(findings: &mut Findings, path: &str, selector: &WorkloadSelector) {
    for (key, value) in &selector.labels {
        let path = format!("{path}.{key}");
        if key.is_empty() {
            findings.error(&path, "a label has no name", "name it");
        }
        if key.contains('*') || value.contains('*') {
            findings.error(&path, "labels are matched in full: * stands for nothing", "give the whole label");
        }
    }
}
