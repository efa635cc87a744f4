//! `/inject`: a pod is about to be made.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use parking_lot::Mutex;
use serde_json::Value;

use super::review::{Answer, Question};
use crate::inject::{Injection, Settings, Why, Workload, inject as put_in};

/// The settings of injection, in a file that an operator may change.
pub(super) struct SettingsFile {
    path: Option<PathBuf>,
    /// What it said when it last made sense.
    good: Mutex<Arc<Settings>>,
}

impl SettingsFile {
    pub(super) fn open(path: Option<PathBuf>) -> anyhow::Result<Self> {
        let settings = match &path {
            None => Settings::default(),
            Some(path) => load(path).with_context(|| format!("--injection-config {}", path.display()))?,
        };
        Ok(Self { path, good: Mutex::new(Arc::new(settings)) })
    }

    /// What it says now.
    pub(super) fn read(&self) -> Arc<Settings> {
        let mut good = self.good.lock();
        if let Some(path) = &self.path {
            match load(path) {
                Ok(settings) if settings != **good => *good = Arc::new(settings),
                Ok(_) => {}
                Err(error) => {
                    let path = path.display();
                    tracing::error!(%path, error = format!("{error:#}"), "the settings of injection stay what they were");
                }
            }
        }
        good.clone()
    }
}

fn load(path: &std::path::Path) -> anyhow::Result<Settings> {
    Settings::from_yaml(&std::fs::read_to_string(path)?).map_err(|wrong| anyhow!(wrong))
}

/// Has a pod injected.
pub(super) fn inject(question: &Question, settings: &Settings) -> Answer {
    metrics::counter!("sidecar_injection_requests_total").increment(1);
    if question.kind != ["", "v1", "Pod"] || question.operation != "CREATE" {
        return Answer::default();
    }
    let pod = &question.object;
    let own = pod["metadata"]["namespace"].as_str().filter(|own| !own.is_empty());
    let namespace = own.unwrap_or(&question.namespace);
    let workload = Workload::of_pod(pod, namespace);
    let began = std::time::Instant::now();
    let injected = put_in(pod, &workload, settings);
    metrics::histogram!("sidecar_injection_time_seconds").record(began.elapsed().as_secs_f64());
    match injected {
        Ok(Injection::Done(injected, warnings)) => {
            metrics::counter!("sidecar_injection_success_total").increment(1);
            match serde_json::to_value(json_patch::diff(pod, &injected)) {
                Ok(patch) => Answer { patch, warnings, ..Answer::default() },
                Err(error) => Answer::refuse(error.to_string()),
            }
        }
        Ok(Injection::Left(why)) => {
            metrics::counter!("sidecar_injection_skip_total").increment(1);
            tracing::debug!(namespace, pod = name(pod), %why, "a pod is not injected");
            // Who made it may wonder; who said so himself does not.
            let warnings = match why {
                Why::HostNetwork => vec![format!("not injected: {why}")],
                _ => Vec::new(),
            };
            Answer { warnings, ..Answer::default() }
        }
        Err(wrong) => {
            metrics::counter!("sidecar_injection_failure_total").increment(1);
            let why = wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            tracing::warn!(namespace, pod = name(pod), why, "a pod cannot be injected, and is refused");
            Answer::refuse(why)
        }
    }
}

fn name(pod: &Value) -> &str {
    let metadata = &pod["metadata"];
    metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or_default()
}
