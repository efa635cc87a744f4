//! Objects to begin with: those of our own examples and cases, and those of Istio's samples and tests, as they lie in its module.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The groups whose resources are Istio's.
const GROUPS: [&str; 3] = ["networking.istio.io/", "security.istio.io/", "telemetry.istio.io/"];

/// Every object of Istio's in the YAML files below these directories.
pub fn seeds(directories: &[PathBuf]) -> Vec<Value> {
    let mut files = Vec::new();
    directories.iter().for_each(|directory| collect(directory, &mut files));
    files.sort();
    let texts = files.iter().filter_map(|file| std::fs::read_to_string(file).ok());
    texts.flat_map(|text| documents(&text)).collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            files.push(path);
        }
    }
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
