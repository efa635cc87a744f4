//! What a kubelet puts into a pod's file system: tokens, ConfigMaps, Secrets, and what the pod is.

use std::path::Path;

use base64::Engine;
use serde_json::{Value, json};

use super::node::Api;

/// Files of one volume, written to a directory. An error is for the next time: what is named may not be there yet.
pub fn fill(api: &Api, pod: &Value, volume: &Value, to: &Path) -> Result<(), String> {
    std::fs::create_dir_all(to).map_err(|e| e.to_string())?;
    match volume["projected"]["sources"].as_array() {
        Some(sources) => sources.iter().try_for_each(|source| one(api, pod, source, to)),
        None => one(api, pod, volume, to),
    }
}

fn one(api: &Api, pod: &Value, source: &Value, to: &Path) -> Result<(), String> {
    let namespace = text(&pod["metadata"]["namespace"]);
    let write =
        |name: &str, content: &[u8]| std::fs::write(to.join(name), content).map_err(|e| e.to_string());
    if let Some(token) = source.get("serviceAccountToken") {
        return write(text(&token["path"]), token_of(api, pod, token)?.as_bytes());
    }
    for (field, plural, encoded) in [("configMap", "configmaps", false), ("secret", "secrets", true)] {
        let Some(named) = source.get(field) else { continue };
        let name = named["secretName"].as_str().or(named["name"].as_str()).unwrap_or_default();
        let found = api.get(&format!("/api/v1/namespaces/{namespace}/{plural}/{name}"))?;
        for (key, value) in found["data"].as_object().into_iter().flatten() {
            let file = match named["items"].as_array() {
                None => key.as_str(),
                Some(items) => match items.iter().find(|item| item["key"] == *key) {
                    Some(item) => text(&item["path"]),
                    None => continue,
                },
            };
            let value = text(value);
            let decoded = base64::engine::general_purpose::STANDARD.decode(value);
            write(
                file,
                &if encoded { decoded.map_err(|e| e.to_string())? } else { value.as_bytes().to_vec() },
            )?;
        }
    }
    if let Some(items) = source["downwardAPI"]["items"].as_array() {
        for item in items {
            let at = &pod["metadata"];
            let content = match text(&item["fieldRef"]["fieldPath"]) {
                "metadata.labels" => pairs(&at["labels"]),
                "metadata.annotations" => pairs(&at["annotations"]),
                path => text(&at[path.trim_start_matches("metadata.")]).to_owned(),
            };
            write(text(&item["path"]), content.as_bytes())?;
        }
    }
    Ok(())
}

/// As kubelets write maps.
fn pairs(map: &Value) -> String {
    let all = map.as_object().into_iter().flatten();
    all.map(|(key, value)| format!("{key}={value}\n")).collect()
}

fn token_of(api: &Api, pod: &Value, asked: &Value) -> Result<String, String> {
    let at = &pod["metadata"];
    let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or("default");
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", text(&at["namespace"]));
    let audiences: Vec<&str> = asked["audience"].as_str().into_iter().collect();
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {
            "audiences": audiences, "expirationSeconds": asked["expirationSeconds"],
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": at["name"], "uid": at["uid"]},
        },
    });
    Ok(text(&api.post(&path, &request)?["status"]["token"]).to_owned())
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
