//! Whose pod it is: the workload that the mesh knows it by.

use serde_json::Value;

/// What made a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its apiVersion.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// Where a pod stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its namespace; empty if a file does not say.
    pub namespace: String,
    /// What made it.
    pub owner: Owner,
}

impl Workload {
    /// Of a pod that exists, by its references: the Deployment behind a ReplicaSet, the CronJob behind a Job.
    pub fn of_pod(pod: &Value, namespace: &str) -> Self {
        let metadata = &pod["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let references = metadata["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
        let owner = match references.iter().find(|one| one["controller"] == true) {
            Some(one) => {
                let (kind, name) = (text(&one["kind"]), text(&one["name"]));
                let hash = metadata["labels"]["pod-template-hash"].as_str().unwrap_or_default();
                let deployment = (kind == "ReplicaSet" && !hash.is_empty())
                    .then(|| name.strip_suffix(hash)?.strip_suffix('-'))
                    .flatten();
                let cron = (kind == "Job").then(|| scheduled(&name)).flatten();
                match (deployment, cron) {
                    (Some(name), _) => {
                        Owner { api_version: "apps/v1".into(), kind: "Deployment".into(), name: name.into() }
                    }
                    (_, Some(name)) => {
                        Owner { api_version: "batch/v1".into(), kind: "CronJob".into(), name: name.into() }
                    }
                    _ => Owner { api_version: text(&one["apiVersion"]), kind, name },
                }
            }
            None => {
                let name = metadata["name"].as_str().filter(|name| !name.is_empty());
                let made = metadata["generateName"].as_str().unwrap_or_default().trim_end_matches('-');
                let name = name.unwrap_or(made).to_owned();
                Owner { api_version: "v1".into(), kind: "Pod".into(), name }
            }
        };
        Self { namespace: namespace.to_owned(), owner }
    }

    /// Where Kubernetes' API has the owner, in Istio's form.
    pub(super) fn path(&self) -> String {
        let Owner { api_version, kind, name } = &self.owner;
        let namespace = &self.namespace;
        let plural = match kind.to_ascii_lowercase() {
            kind if kind.ends_with('y') => format!("{}ies", kind.trim_end_matches('y')),
            kind if kind.ends_with('s') => format!("{kind}es"),
            kind => format!("{kind}s"),
        };
        format!("kubernetes://apis/{api_version}/namespaces/{namespace}/{plural}/{name}")
    }

    /// Whether its pods end by themselves.
    pub(super) fn ends(&self) -> bool {
        matches!(self.owner.kind.as_str(), "Job" | "CronJob")
    }
}

/// The CronJob whose Job this is: its name, and the minutes (or seconds) for which the Job was due.
fn scheduled(job: &str) -> Option<&str> {
    let (name, due) = job.rsplit_once('-')?;
    ((8..=10).contains(&due.len()) && due.bytes().all(|b| b.is_ascii_digit())).then_some(name)
}
