//! `weft drift`: where a cluster has not what a directory says. Every object of the mesh's kinds is compared, field by field;
//! what the API server adds by itself (its `status`, the defaults of Services) is none of it.

mod compare;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client};
use serde::Serialize;
use serde_json::Value;
use weft_control::ingest::cluster::{DEFINED, Kind};
use weft_control::ingest::list_files;

use crate::plan::Difference;

/// How an object of the cluster is not what the directory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// The cluster has another version.
    Changed,
    /// The cluster does not have it.
    Missing,
    /// The directory does not have it, though it has others of the namespace.
    Extra,
}

/// An object that is not as it should be.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Drifted {
    /// How.
    pub what: What,
    /// `Kind namespace/name`.
    pub object: String,
    /// The file that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Who changed it last, and when, as the API server noted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Fields that differ: `before` is the directory's.
    pub differences: Vec<Difference>,
}

/// What there is to say.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// Objects that were compared.
    pub compared: usize,
    /// Kinds of the directory that are none of the API server's or of the mesh's, and are not compared.
    pub left_out: BTreeSet<String>,
    /// What is not as it should be.
    pub drifted: Vec<Drifted>,
}

/// Kubernetes' own kind that is part of the mesh's configuration.
const SERVICE: Kind = Kind { group: "", plural: "services", kind: "Service", versions: &["v1"], short: &[] };

/// An object of the directory.
struct Wanted {
    file: String,
    value: Value,
}

/// Compares.
///
/// # Errors
/// The directory or the cluster cannot be read.
pub async fn drift(dir: &Path, client: &Client) -> anyhow::Result<Drift> {
    let (mut wanted, left_out) = read(dir)?;
    let namespaces: BTreeSet<String> = wanted.keys().map(|(_, namespace, _)| namespace.clone()).collect();
    let mut found = Drift { compared: wanted.len(), left_out, drifted: Vec::new() };
    for kind in DEFINED.iter().filter(|kind| kind.is_honoured()).chain([&SERVICE]) {
        let Some(objects) = list(client, kind).await? else { continue };
        for live in objects {
            let name = |at: &str| live["metadata"][at].as_str().unwrap_or_default().to_owned();
            let key = (kind.kind, name("namespace"), name("name"));
            let object = format!("{} {}/{}", key.0, key.1, key.2);
            let by = changed_by(&live);
            if let Some(wanted) = wanted.remove(&key) {
                // Services get addresses, ports and policies from the API server.
                let differences = compare::differences(&wanted.value, &live, kind.group.is_empty());
                if !differences.is_empty() {
                    let file = Some(wanted.file);
                    found.drifted.push(Drifted { what: What::Changed, object, file, by, differences });
                }
            } else if kind.kind != SERVICE.kind && namespaces.contains(&key.1) && !is_owned(&live) {
                let (file, differences) = (None, Vec::new());
                found.drifted.push(Drifted { what: What::Extra, object, file, by, differences });
            }
        }
    }
    found.drifted.extend(wanted.into_iter().map(|((kind, namespace, name), wanted)| Drifted {
        what: What::Missing,
        object: format!("{kind} {namespace}/{name}"),
        file: Some(wanted.file),
        by: None,
        differences: Vec::new(),
    }));
    found.drifted.sort_by(|a, b| (&a.object, a.what).cmp(&(&b.object, b.what)));
    Ok(found)
}

type Objects = BTreeMap<(&'static str, String, String), Wanted>;

/// The directory's objects of kinds that are compared, and the names of other kinds.
fn read(dir: &Path) -> anyhow::Result<(Objects, BTreeSet<String>)> {
    let mut wanted = Objects::new();
    let mut left_out = BTreeSet::new();
    for file in list_files(dir).with_context(|| format!("{} cannot be read", dir.display()))? {
        let shown = file.display().to_string();
        let text = std::fs::read_to_string(&file).with_context(|| format!("{shown} cannot be read"))?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).with_context(|| shown.clone())?;
        for value in documents.into_iter().filter(Value::is_object) {
            let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
            let (version, kind) = (text(&value["apiVersion"]), text(&value["kind"]));
            let group = version.split_once('/').map_or("", |(group, _)| group);
            let known = DEFINED.iter().filter(|known| known.is_honoured()).chain([&SERVICE]);
            let Some(known) = known.into_iter().find(|known| known.group == group && known.kind == kind)
            else {
                left_out.insert(format!("{kind} ({version})"));
                continue;
            };
            let namespace = match value["metadata"]["namespace"].as_str() {
                Some(namespace) => namespace.to_owned(),
                None => "default".to_owned(),
            };
            let key = (known.kind, namespace, text(&value["metadata"]["name"]));
            wanted.insert(key, Wanted { file: shown.clone(), value });
        }
    }
    Ok((wanted, left_out))
}

/// All objects of a kind; none if the API server does not know it.
async fn list(client: &Client, kind: &Kind) -> anyhow::Result<Option<Vec<Value>>> {
    for version in kind.versions {
        let of = kube::api::GroupVersionKind::gvk(kind.group, version, kind.kind);
        let resource = ApiResource::from_gvk_with_plural(&of, kind.plural);
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        match api.list(&ListParams::default()).await {
            Ok(list) => {
                let objects = list.items.iter().map(serde_json::to_value);
                return Ok(Some(objects.collect::<Result<_, _>>()?));
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                return Err(error).with_context(|| format!("the API server does not list {}", kind.plural));
            }
        }
    }
    Ok(None)
}

/// Whether a controller made it, for an object that is elsewhere.
fn is_owned(object: &Value) -> bool {
    object["metadata"]["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty())
}

/// Who changed an object last (its status aside), and when.
fn changed_by(object: &Value) -> Option<String> {
    let managers = object["metadata"]["managedFields"].as_array()?;
    let of_spec = managers.iter().filter(|manager| manager["subresource"].is_null());
    let last = of_spec.max_by_key(|manager| manager["time"].as_str().map(str::to_owned))?;
    Some(format!("{} at {}", last["manager"].as_str()?, last["time"].as_str()?))
}
