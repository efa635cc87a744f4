//! Compression.

use std::collections::HashSet;

use super::super::diagnostic::Findings;
use super::annotations;
use super::authorization_policy::selector;
use crate::model::compression::Compression;
use crate::model::meta::Meta;

pub(in super::super) fn compression(spec: &Compression, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[]);
    selector(findings, spec.selector.as_ref());
    let mut seen = HashSet::new();
    for (index, algorithm) in spec.algorithms.iter().enumerate() {
        if !seen.insert(algorithm) {
            findings.error(format!("spec.algorithms[{index}]"), "is given twice", "remove one");
        }
    }
    let mut seen = HashSet::new();
    for (index, given) in spec.content_types.iter().enumerate() {
        let path = format!("spec.contentTypes[{index}]");
        let part = |text: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || "!#$&-^_.+".contains(c);
            !text.is_empty() && text.chars().all(fits)
        };
        match given.split_once('/') {
            Some((kind, sort)) if part(kind) && part(sort) => {}
            _ => {
                let reason = format!("{given:?} is no content type");
                findings.error(&path, reason, "write it whole and without parameters, as in text/html");
            }
        }
        if given.starts_with("application/grpc") {
            findings.error(&path, "gRPC compresses its messages itself", "take it out");
        }
        if !seen.insert(given) {
            findings.error(&path, "is given twice", "remove one");
        }
    }
}
