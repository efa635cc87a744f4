//! Objects to begin with: those of our own examples and cases, and those of Istio's samples and tests, as they lie in its module.

use std::path::PathBuf;

use serde_json::Value;
use weft_control::ingest::list_files;

/// The groups whose resources are Istio's.
const GROUPS: [&str; 3] = ["networking.istio.io/", "security.istio.io/", "telemetry.istio.io/"];

/// Every object of Istio's in the files below these directories.
pub fn seeds(directories: &[PathBuf]) -> Vec<Value> {
    let files = directories.iter().flat_map(|directory| list_files(directory).unwrap());
    let texts = files.filter_map(|file| std::fs::read_to_string(file).ok());
    texts.flat_map(|text| documents(&text)).collect()
}

/// The objects of a file; templates and what is no YAML are left out, one document at a time.
fn documents(text: &str) -> Vec<Value> {
    let mut found = Vec::new();
    for document in text.split("\n---") {
        if !GROUPS.iter().any(|group| document.contains(group)) || document.contains("{{") {
            continue;
        }
        let Ok(mut object) = xds_protos::json::value_from_yaml_str(document) else { continue };
        let named = object["metadata"]["name"].is_string() && object["spec"].is_object();
        let ours = object["apiVersion"].as_str().is_some_and(|v| GROUPS.iter().any(|g| v.starts_with(g)));
        if named && ours {
            if object["metadata"]["namespace"].is_null() {
                object["metadata"]["namespace"] = "default".into();
            }
            found.push(object);
        }
    }
    found
}
