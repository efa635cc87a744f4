//! ProxyConfig: how the proxies of some workloads are started (networking.istio.io).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::meta::Object;
use super::values::{Labels, WorkloadSelector};
use super::world::World;

/// The specification of a ProxyConfig.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyConfig {
    /// Workloads for which it holds; absent for all of the namespace, or of the mesh in the root namespace.
    pub selector: Option<WorkloadSelector>,
    /// Worker threads; 0 is one for each CPU.
    pub concurrency: Option<u32>,
    /// Environment variables of the proxy.
    pub environment_variables: BTreeMap<String, String>,
    /// The proxy's image.
    pub image: Option<ProxyImage>,
}

/// The proxy's image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyImage {
    /// Which of several; the proxy has one.
    pub image_type: String,
}

impl ProxyConfig {
    /// The same as MeshConfig's `defaultConfig` and the annotation `proxy.istio.io/config` say it.
    pub fn settings(&self) -> Map<String, Value> {
        let mut settings = Map::new();
        if let Some(concurrency) = self.concurrency {
            settings.insert("concurrency".to_owned(), concurrency.into());
        }
        if !self.environment_variables.is_empty() {
            let all =
                self.environment_variables.iter().map(|(name, value)| (name.clone(), value.as_str().into()));
            settings.insert("proxyMetadata".to_owned(), Value::Object(all.collect()));
        }
        settings
    }
}

/// Those that hold for a workload. In Istio's order: the root namespace's, the namespace's, then what the workload says itself (its
/// annotation), and before all that the one that selects it.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// The oldest without a selector of the root namespace.
    pub root: Option<Arc<Object<ProxyConfig>>>,
    /// The oldest without a selector of the workload's namespace.
    pub own: Option<Arc<Object<ProxyConfig>>>,
    /// The oldest that selects the workload.
    pub workload: Option<Arc<Object<ProxyConfig>>>,
}

impl Layers {
    /// Of these, oldest first.
    pub fn of(all: &[Arc<Object<ProxyConfig>>], root: &str, namespace: &str, labels: &Labels) -> Self {
        let for_all = |wanted: &str| {
            all.iter().find(|one| one.meta.namespace == wanted && one.spec.selector.is_none()).cloned()
        };
        let selects = |one: &&Arc<Object<ProxyConfig>>| {
            one.meta.namespace == namespace && one.spec.selector.as_ref().is_some_and(|s| s.selects(labels))
        };
        Self {
            root: for_all(root),
            own: if namespace == root { None } else { for_all(namespace) },
            workload: all.iter().find(selects).cloned(),
        }
    }
}

impl World {
    /// Those that hold for a workload.
    pub fn proxy_configs_of(&self, namespace: &str, labels: &Labels) -> Layers {
        Layers::of(self.proxy_configs(), &self.mesh().root_namespace, namespace, labels)
    }
}
