//! The xDS node: Istio's id and metadata from flags and environment.

use anyhow::Context;
use serde_json::{Map, Value};
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::prost_types;
use xds_protos::value::{from_json, to_json};

use super::shared::{NodeArgs, RoleArg};
use crate::state::{NodeInfo, Role};

/// The version of Istio whose configuration we understand; istiod decides by it what to send.
const ISTIO_VERSION: &str = "1.32.0";

impl NodeArgs {
    /// The node of our own proxy that these flags describe. `ISTIO_META_X=v` in the environment sets metadata X,
    /// `ISTIO_METAJSON_*` merges an object.
    pub fn node(&self) -> anyhow::Result<Node> {
        // We know Istio's own filters, which a plain Envoy does not: a control plane of ours may send them.
        let mut node = self.foreign_node(&[("WEFT_EXTENSIONS", "true")])?;
        node.user_agent_name = "weft".to_owned();
        Ok(node)
    }

    /// What the workload is called. One that enters itself must be told apart from the others of its group, also when it comes back
    /// under another address.
    fn name(&self) -> String {
        let enters = !self.auto_register_group.is_empty()
            || std::env::var("ISTIO_META_AUTO_REGISTER_GROUP").is_ok_and(|group| !group.is_empty());
        let machine = || {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
            let name = name.trim();
            // In a node's id it stands between tildes.
            let fits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b'~');
            fits.then(|| name.to_owned())
        };
        let own = || if enters { machine() } else { None };
        self.name.clone().or_else(own).unwrap_or_else(|| "proxy".to_owned())
    }

    /// The node of another proxy, which says itself what it is called; `more` goes into its metadata.
    pub fn foreign_node(&self, more: &[(&str, &str)]) -> anyhow::Result<Node> {
        // What is said by flags counts before what Kubernetes says.
        let mut labels = super::pod_info::read(&self.pod_info, "labels")?;
        labels.retain(|(key, _)| key != "pod-template-hash" && self.labels.iter().all(|(k, _)| k != key));
        labels.extend(self.labels.iter().cloned());
        let app = labels.iter().find(|(k, _)| k == "app").map(|(_, v)| v.clone());
        let app = app.as_deref();
        let name = self.name();
        let name = name.as_str();
        let workload = self.workload_name.as_deref().or(app).unwrap_or(name);
        let mut labels: Map<String, Value> =
            labels.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
        for (key, source) in [
            ("service.istio.io/canonical-name", app.unwrap_or(workload)),
            (
                "service.istio.io/canonical-revision",
                labels.get("version").and_then(Value::as_str).unwrap_or("latest"),
            ),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        {
            labels.entry(key).or_insert(source.into());
        }
        let mut metadata = Map::new();
        for (key, value) in [
            ("NAME", name),
            ("NAMESPACE", &self.namespace),
            ("SERVICE_ACCOUNT", &self.service_account),
            ("INSTANCE_IPS", &self.ip.to_string()),
            ("WORKLOAD_NAME", workload),
            ("CLUSTER_ID", &self.cluster_id),
            ("MESH_ID", &self.mesh_id),
            ("NETWORK", &self.network),
            ("AUTO_REGISTER_GROUP", &self.auto_register_group),
            ("INTERCEPTION_MODE", self.interception_mode.as_str()),
            ("ISTIO_VERSION", ISTIO_VERSION),
        ]
        .iter()
        .chain(more)
        {
            if !value.is_empty() {
                metadata.insert((*key).to_owned(), (*value).into());
            }
        }
        metadata.insert("LABELS".to_owned(), labels.into());
        let annotations = super::pod_info::read(&self.pod_info, "annotations")?;
        if !annotations.is_empty() {
            let annotations: Map<String, Value> =
                annotations.into_iter().map(|(k, v)| (k, v.into())).collect();
            metadata.insert("ANNOTATIONS".to_owned(), annotations.into());
        }
        for (name, value) in std::env::vars() {
            if let Some(key) = name.strip_prefix("ISTIO_META_") {
                metadata.insert(key.to_owned(), value.into());
            } else if name.starts_with("ISTIO_METAJSON_") {
                let object: Map<String, Value> = serde_json::from_str(&value)
                    .with_context(|| format!("environment variable {name} is not a JSON object"))?;
                metadata.extend(object);
            }
        }
        // What the injector takes from the annotation proxy.istio.io/config, as pilot-agent reads it.
        if let Some(text) = std::env::var("PROXY_CONFIG").ok().filter(|text| !text.trim().is_empty()) {
            let value = xds_protos::json::value_from_yaml_str(&text)
                .context("environment variable PROXY_CONFIG is neither YAML nor JSON")?;
            anyhow::ensure!(
                value.is_object(),
                "environment variable PROXY_CONFIG is not an object (a ProxyConfig)"
            );
            metadata.insert("PROXY_CONFIG".to_owned(), value);
        }
        let kind = match self.role {
            RoleArg::Sidecar => "sidecar",
            RoleArg::Gateway => "router",
        };
        let namespace = &self.namespace;
        Ok(Node {
            id: format!("{kind}~{}~{name}.{namespace}~{namespace}.svc.cluster.local", self.ip),
            cluster: format!("{}.{namespace}", app.unwrap_or(workload)),
            metadata: Some(to_struct(metadata)),
            ..Node::default()
        })
    }
}

fn to_struct(object: Map<String, Value>) -> prost_types::Struct {
    prost_types::Struct { fields: object.into_iter().map(|(k, v)| (k, from_json(v))).collect() }
}

/// The node as compile functions need it.
pub fn node_info(node: &Node) -> NodeInfo {
    let metadata =
        node.metadata.iter().flat_map(|m| &m.fields).map(|(k, v)| (k.clone(), to_json(v))).collect();
    let locality = node.locality.clone().unwrap_or_default();
    NodeInfo {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        role: if node.id.starts_with("router~") { Role::Gateway } else { Role::Sidecar },
        metadata,
        region: locality.region,
        zone: locality.zone,
        sub_zone: locality.sub_zone,
    }
}
