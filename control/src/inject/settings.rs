//! What holds for every pod that is injected: the values of an installation (`deploy/helm/weft`, the ConfigMap `istiod-injector`),
//! or the flags of `weft inject`.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::image::IMAGE;
use crate::model::proxy_config::ProxyConfig;
use crate::model::{Object, World};

/// The settings, as YAML has them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// The proxy's image.
    pub image: String,
    /// When kubelet fetches it: `Always`, `IfNotPresent`, `Never`; empty leaves it to Kubernetes.
    pub image_pull_policy: String,
    /// Names of Secrets by which it is fetched.
    pub image_pull_secrets: Vec<String>,
    /// Which of several control planes this is: pods with another `istio.io/rev` are left alone.
    pub revision: String,
    /// The control plane's host and port.
    pub discovery_address: String,
    /// The mesh's name.
    #[serde(rename = "meshID")]
    pub mesh_id: String,
    /// The cluster's name.
    pub cluster_name: String,
    /// The network that pods of this cluster are in.
    pub network: String,
    /// The trust domain.
    pub trust_domain: String,
    /// The sidecar is an init container that keeps running (Kubernetes 1.29 and later), unless a pod says otherwise.
    pub native_sidecars: bool,
    /// Whether pods that say nothing are injected where the webhook is asked: `enabled` or `disabled`.
    pub policy: Policy,
    /// Pods with these labels are not injected unless they ask.
    pub never_inject_selector: Vec<Selector>,
    /// Pods with these labels are injected although the policy is `disabled`.
    pub always_inject_selector: Vec<Selector>,
    /// The address on which kubelet and Prometheus reach the proxy's ports: `0.0.0.0`, or `::` in clusters with IPv6.
    pub probe_address: String,
    /// What kubelet asks the application goes through the proxy.
    #[serde(rename = "rewriteAppHTTPProbe")]
    pub rewrite_app_http_probe: bool,
    /// The proxy's container.
    pub proxy: ProxySettings,
    /// The container that installs the redirection.
    pub proxy_init: InitSettings,
    /// Each proxy's settings, before those of the pod's annotation `proxy.istio.io/config`.
    pub default_config: Map<String, Value>,
    /// Environment variables of every proxy.
    pub env: Map<String, Value>,
    /// The mesh's ProxyConfigs.
    #[serde(skip)]
    pub proxy_configs: Vec<Arc<Object<ProxyConfig>>>,
    /// The namespace whose ProxyConfigs hold for all.
    #[serde(skip)]
    pub root_namespace: String,
}

/// Whether pods that say nothing are injected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// They are.
    #[default]
    Enabled,
    /// They are not.
    Disabled,
}

/// Kubernetes' label selector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels that must be there with these values.
    pub match_labels: std::collections::BTreeMap<String, String>,
    /// What else must hold.
    pub match_expressions: Vec<Requirement>,
}

/// What must hold of one label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How it is looked at.
    pub operator: Operator,
    /// With what it is compared.
    #[serde(default)]
    pub values: Vec<String>,
}

/// How a label is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Operator {
    /// Its value is among the values.
    In,
    /// It is not.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// The proxy's container.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxySettings {
    /// Requests and limits.
    pub resources: Value,
    /// What is logged, in Envoy's words.
    pub log_level: String,
    /// Networks to which outbound connections are captured.
    #[serde(rename = "includeIPRanges")]
    pub include_ip_ranges: String,
    /// Networks to which they are not.
    #[serde(rename = "excludeIPRanges")]
    pub exclude_ip_ranges: String,
    /// Ports whose inbound connections are captured.
    pub include_inbound_ports: String,
    /// Ports whose inbound connections are not.
    pub exclude_inbound_ports: String,
    /// Ports to which outbound connections are captured, wherever they lead.
    pub include_outbound_ports: String,
    /// Ports to which they are not.
    pub exclude_outbound_ports: String,
    /// The port for probes of the application; 0: none, and probes are left as they are.
    pub status_port: u16,
    /// Seconds before the first question whether it is ready.
    pub readiness_initial_delay_seconds: u32,
    /// Seconds between two.
    pub readiness_period_seconds: u32,
    /// After how many failures it is not ready.
    pub readiness_failure_threshold: u32,
    /// How often kubelet asks, once a second, before the start has failed.
    pub startup_failure_threshold: u32,
}

/// The container that installs the redirection.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct InitSettings {
    /// Requests and limits.
    pub resources: Value,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            image: IMAGE.to_owned(),
            image_pull_policy: String::new(),
            image_pull_secrets: Vec::new(),
            revision: "default".to_owned(),
            discovery_address: "istiod.istio-system.svc:15012".to_owned(),
            mesh_id: String::new(),
            cluster_name: "Kubernetes".to_owned(),
            network: String::new(),
            trust_domain: "cluster.local".to_owned(),
            native_sidecars: true,
            policy: Policy::Enabled,
            never_inject_selector: Vec::new(),
            always_inject_selector: Vec::new(),
            probe_address: "0.0.0.0".to_owned(),
            rewrite_app_http_probe: true,
            proxy: ProxySettings::default(),
            proxy_init: InitSettings::default(),
            default_config: Map::new(),
            env: Map::new(),
            proxy_configs: Vec::new(),
            root_namespace: String::new(),
        }
    }
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            resources: json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "200m", "memory": "256Mi"}}),
            log_level: "warning".to_owned(),
            include_ip_ranges: "*".to_owned(),
            exclude_ip_ranges: String::new(),
            include_inbound_ports: "*".to_owned(),
            exclude_inbound_ports: String::new(),
            include_outbound_ports: String::new(),
            exclude_outbound_ports: String::new(),
            status_port: 15020,
            readiness_initial_delay_seconds: 0,
            readiness_period_seconds: 15,
            readiness_failure_threshold: 4,
            startup_failure_threshold: 600,
        }
    }
}

impl Default for InitSettings {
    fn default() -> Self {
        Self {
            resources: json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}}),
        }
    }
}

impl Settings {
    /// Reads them from YAML.
    ///
    /// # Errors
    /// The text is not YAML, or has a field that is not known; the message says which.
    pub fn from_yaml(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let value = xds_protos::json::value_from_yaml_str(text).map_err(|error| error.message)?;
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    /// The same with a mesh's ProxyConfigs, and nothing else of it.
    #[must_use]
    pub fn with_proxy_configs(&self, world: &World) -> Self {
        Self { proxy_configs: world.proxy_configs().to_vec(), ..self.clone() }
    }

    /// The same where a mesh's own settings hold: what they say stands behind what the settings of injection say.
    #[must_use]
    pub fn with_world(&self, world: &World) -> Self {
        let mesh = world.mesh();
        let mut settings = self.clone();
        settings.root_namespace.clone_from(&mesh.root_namespace);
        settings.proxy_configs = world.proxy_configs().to_vec();
        settings.trust_domain.clone_from(&mesh.trust_domain);
        let own = &mesh.default_config;
        let mut base = Map::new();
        if !own.discovery_address.is_empty() {
            base.insert("discoveryAddress".to_owned(), own.discovery_address.as_str().into());
        }
        if let Some(concurrency) = own.concurrency {
            base.insert("concurrency".to_owned(), concurrency.into());
        }
        let seconds = |time: crate::model::values::Timespan| format!("{}s", time.0.as_secs_f64()).into();
        if let Some(time) = own.drain_duration {
            base.insert("drainDuration".to_owned(), seconds(time));
        }
        if let Some(time) = own.termination_drain_duration {
            base.insert("terminationDrainDuration".to_owned(), seconds(time));
        }
        base.extend(std::mem::take(&mut settings.default_config));
        settings.default_config = base;
        settings
    }
}

impl Selector {
    /// Whether it selects what has these labels; an empty one selects everything.
    pub(super) fn selects(&self, label: &dyn Fn(&str) -> Option<String>) -> bool {
        self.match_labels.iter().all(|(key, value)| label(key).as_ref() == Some(value))
            && self.match_expressions.iter().all(|one| {
                let value = label(&one.key);
                match one.operator {
                    Operator::In => value.is_some_and(|v| one.values.contains(&v)),
                    Operator::NotIn => value.is_none_or(|v| !one.values.contains(&v)),
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}
