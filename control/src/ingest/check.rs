//! One object by itself, before it is part of anything: what a webhook asks.

use std::sync::Arc;

use super::diagnostic::Diagnostic;
use super::document::Collector;
use super::tree;

/// What is to be said of an object; one error, and a reader would refuse it. What only shows beside other objects is not looked
/// for. Objects that are none of the mesh's have nothing said about them.
pub fn check_object(object: &serde_json::Value) -> Vec<Diagnostic> {
    let mut collector = Collector::default();
    let file: Arc<str> = "".into();
    match tree::parse(&object.to_string()) {
        Ok(documents) => documents.iter().for_each(|node| collector.take(&file, node)),
        Err(error) => collector.diagnostics.push(Diagnostic::file_error(
            "",
            format!("cannot be read: {}", error.reason),
            "make it smaller, or less deeply nested",
        )),
    }
    collector.diagnostics.sort();
    collector.diagnostics
}
