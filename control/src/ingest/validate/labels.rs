//! Labels of workloads, what selects by them, and names that have the form of a label of DNS: what Kubernetes would not let
//! a workload have, nothing can select.

use super::super::diagnostic::Findings;
use crate::model::Labels;
use crate::model::values::WorkloadSelector;

/// Of a label's key and value, without the key's prefix, and of a label of DNS (Kubernetes, "Labels and Selectors"; RFC 1123).
const LONGEST: usize = 63;

/// Whether a text is a label of DNS: a port's name, a subset's, a namespace.
pub(super) fn is_dns_label(text: &str) -> bool {
    is_name(text, |byte| byte == b'-')
}

/// Begins and ends with a letter or a digit, and has only such, and `also`, between.
fn is_name(text: &str, also: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
        && bytes.len() <= LONGEST
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || also(*byte))
}

fn is_part(text: &str) -> bool {
    is_name(text, |byte| matches!(byte, b'-' | b'_' | b'.'))
}

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
        let name = match key.split_once('/') {
            Some((prefix, name)) if prefix.split('.').all(is_dns_label) => name,
            Some(_) => "",
            None => key,
        };
        if !is_part(name) {
            let help = "write NAME or DOMAIN/NAME; names have letters, digits, -, _ and .";
            findings.error(&path, format!("{key:?} is no name of a label"), help);
        }
        if !value.is_empty() && !is_part(value) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_those_that_kubernetes_takes() {
        let found = |key: &str, value: &str| {
            let mut findings = Findings::default();
            labels(&mut findings, "p", &[(key.to_owned(), value.to_owned())].into());
            findings.0.len()
        };
        let long = "a".repeat(64);
        for (key, value) in [("app", ""), ("a.b/c_d", "v1.2_x"), ("app", &long[1..])] {
            assert_eq!(found(key, value), 0, "{key} {value}");
        }
        for (key, value) in [("", "a"), ("a", "-b"), ("a", "*"), ("/a", "b"), ("a..b/c", "d"), ("a", &long)] {
            assert_eq!(found(key, value), 1, "{key} {value}");
        }
        assert!(is_dns_label("v1-x") && !is_dns_label("v1.2") && !is_dns_label("") && !is_dns_label("x-"));
    }
}
