//! Files: what of them is a workload is injected, everything else stays as it is, letter by letter.

use serde_json::{Value, json};

use super::error::Refusal;
use super::pod::{Injection, inject};
use super::settings::Settings;
use super::workload::{Owner, Workload};

/// What came of a file.
#[derive(Debug, Default)]
pub struct Injected {
    /// Its documents, each as it was or with its sidecar.
    pub documents: Vec<Document>,
    /// What should be known: `Kind namespace/name: ...`.
    pub notes: Vec<String>,
    /// Why something cannot be injected: the same form. Then nothing should be used.
    pub errors: Vec<String>,
}

/// One document.
#[derive(Debug)]
pub enum Document {
    /// As it was.
    Kept(String),
    /// Something of it has changed.
    Changed(Value),
}

impl Injected {
    /// The documents as YAML, in their order.
    ///
    /// # Errors
    /// A document cannot be written.
    pub fn to_yaml(&self) -> anyhow::Result<String> {
        let mut out = String::new();
        for document in &self.documents {
            if !out.is_empty() {
                out.push_str("---\n");
            }
            match document {
                Document::Kept(text) => out.push_str(text),
                Document::Changed(value) => out.push_str(&serde_saphyr::to_string(value)?),
            }
            if !out.ends_with('\n') {
                out.push('\n');
            }
        }
        Ok(out)
    }

    /// The documents as one object: itself, if there is one, else a List of them.
    ///
    /// # Errors
    /// A document that was kept is not YAML.
    pub fn to_json(&self) -> anyhow::Result<Value> {
        let mut all = Vec::new();
        for document in &self.documents {
            match document {
                Document::Kept(text) => all.extend(parse(text)?.filter(|value| !value.is_null())),
                Document::Changed(value) => all.push(value.clone()),
            }
        }
        Ok(match all.len() {
            1 => all.remove(0),
            _ => json!({"apiVersion": "v1", "kind": "List", "items": all}),
        })
    }
}

/// Injects what of a text is a workload.
///
/// # Errors
/// The text is no YAML; the message says where.
pub fn inject_text(text: &str, namespace: Option<&str>, settings: &Settings) -> anyhow::Result<Injected> {
    let mut injected = Injected::default();
    for part in split(text) {
        let document = match parse(&part)? {
            Some(mut value) => {
                if object(&mut value, namespace, settings, &mut injected) {
                    Document::Changed(value)
                } else {
                    Document::Kept(part)
                }
            }
            None => Document::Kept(part),
        };
        injected.documents.push(document);
    }
    Ok(injected)
}

/// The documents of a text that are ProxyConfigs: they say how the proxies beside them are started.
///
/// # Errors
/// The text is no YAML; the message says where.
pub fn proxy_configs(text: &str) -> anyhow::Result<String> {
    let mut found = String::new();
    for part in split(text) {
        if parse(&part)?.is_some_and(|value| value["kind"] == "ProxyConfig") {
            found += &format!("---\n{part}\n");
        }
    }
    Ok(found)
}

/// Documents stand between lines that begin with `---`; within a document no line can.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for line in text.split_inclusive('\n') {
        let rest = line.strip_prefix("---").map(str::trim);
        match (rest, parts.last_mut()) {
            (Some(""), _) => parts.push(String::new()),
            (Some(rest), _) if rest.starts_with('#') => parts.push(String::new()),
            (_, Some(part)) => part.push_str(line),
            (_, None) => {}
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

/// One document, read as kubectl reads it: YAML 1.1, in which 0644 is a number to the base of eight, and yes is true.
fn parse(text: &str) -> anyhow::Result<Option<Value>> {
    let options =
        serde_saphyr::options! { legacy_octal_numbers: true, strict_booleans: false, with_snippet: false };
    let value: Option<Value> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        anyhow::anyhow!(
            "not YAML: {error}\n(in the document that begins with {:?})",
            text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default()
        )
    })?;
    Ok(value.filter(|value| !value.is_null()))
}

/// Injects an object, or those of a List; whether something has changed.
fn object(value: &mut Value, namespace: Option<&str>, settings: &Settings, to: &mut Injected) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text(&value["apiVersion"]), text(&value["kind"]));
    if kind == "List" || (kind.ends_with("List") && value["items"].is_array()) {
        let mut changed = false;
        for item in value["items"].as_array_mut().into_iter().flatten() {
            changed |= object(item, namespace, settings, to);
        }
        return changed;
    }
    let template = match (api_version.as_str(), kind.as_str()) {
        ("v1", "Pod") => "",
        ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch/v1", "Job")
        | ("v1", "ReplicationController") => "/spec/template",
        ("batch/v1", "CronJob") => "/spec/jobTemplate/spec/template",
        _ => return false,
    };
    let (own, name) = (text(&value["metadata"]["namespace"]), text(&value["metadata"]["name"]));
    let namespace = if own.is_empty() { namespace.unwrap_or_default().to_owned() } else { own };
    let label =
        if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") };
    let workload = if kind == "Pod" {
        Workload::of_pod(value, &namespace)
    } else {
        Workload { namespace, owner: Owner { api_version, kind, name } }
    };
    let dotted = template.trim_start_matches('/').replace('/', ".");
    let at = |refusal: Refusal| {
        let path = if dotted.is_empty() { refusal.path } else { format!("{dotted}.{}", refusal.path) };
        format!("{label}: {}", Refusal { path, ..refusal })
    };
    let Some(pod) = value.pointer_mut(template) else {
        to.errors.push(at(Refusal::new("", "there is no template of pods", "write one")));
        return false;
    };
    match inject(pod, &workload, settings) {
        Ok(Injection::Done(injected, warnings)) => {
            *pod = *injected;
            to.notes.extend(warnings.into_iter().map(|warning| format!("{label}: {warning}")));
            true
        }
        Ok(Injection::Left(why)) => {
            to.notes.push(format!("{label}: not injected: {why}"));
            false
        }
        Err(refusals) => {
            to.errors.extend(refusals.into_iter().map(at));
            false
        }
    }
}
