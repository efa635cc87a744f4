//! WorkloadGroup: workloads outside of Kubernetes that enter themselves into the mesh (networking.istio.io), each by a
//! WorkloadEntry that is made of the group's template when its proxy connects.

use serde::Deserialize;

use super::meta::{Meta, Object};
use super::service_entry::WorkloadEntry;
use super::values::Labels;

/// Istio's annotation of an entry that was made so: the group.
pub const GROUP_ANNOTATION: &str = "istio.io/autoRegistrationGroup";
/// Which control plane has the proxy's stream.
pub const CONTROLLER_ANNOTATION: &str = "istio.io/workloadController";
/// Since when.
pub const CONNECTED_ANNOTATION: &str = "istio.io/connectedAt";
/// When the stream ended.
pub const DISCONNECTED_ANNOTATION: &str = "istio.io/disconnectedAt";
/// The workload reports whether it is well: it gets requests only while it is.
pub const HEALTH_ANNOTATION: &str = "proxy.istio.io/health-checks-enabled";
/// What an entry's proxy calls itself: a workload that enters itself anew under another address is known by it.
pub const PROXY_ANNOTATION: &str = "weft.dev/proxy-name";
/// The condition of its status that says so.
pub const HEALTHY: &str = "Healthy";

/// The specification of a WorkloadGroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadGroup {
    /// What is written on its entries.
    pub metadata: EntryMetadata,
    /// What its entries say, but for the address.
    pub template: WorkloadEntry,
    /// How its workloads are asked whether they are well. The proxies ask, by their own settings (`readinessProbe` of their
    /// ProxyConfig), and report what comes of it.
    pub probe: Option<GroupProbe>,
}

/// What is written on entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EntryMetadata {
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
}

/// A probe, as Kubernetes has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GroupProbe {
    /// Seconds before the first question.
    pub initial_delay_seconds: i32,
    /// Seconds that an answer may take.
    pub timeout_seconds: i32,
    /// Seconds between two.
    pub period_seconds: i32,
    /// So many good ones in a row, and it is well.
    pub success_threshold: i32,
    /// So many bad ones in a row, and it is not.
    pub failure_threshold: i32,
    /// By HTTP.
    pub http_get: Option<HttpProbe>,
    /// By a connection.
    pub tcp_socket: Option<TcpProbe>,
    /// By a command.
    pub exec: Option<ExecProbe>,
    /// By gRPC's health protocol.
    pub grpc: Option<GrpcProbe>,
}

/// A question by HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpProbe {
    /// Its path.
    pub path: String,
    /// The port.
    pub port: u16,
    /// The host, if it is not the workload itself.
    pub host: String,
    /// HTTP or HTTPS.
    pub scheme: String,
    /// Fields that it has.
    pub http_headers: Vec<ProbeHeader>,
}

/// A field of a question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProbeHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TcpProbe {
    /// The host, if it is not the workload itself.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// A command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExecProbe {
    /// Its words.
    pub command: Vec<String>,
}

/// A question of gRPC's health protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcProbe {
    /// The port.
    pub port: u16,
    /// The service.
    pub service: String,
}

/// What a proxy that enters itself says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entering {
    /// Its address.
    pub address: String,
    /// What the proxy is called; empty when that says nothing.
    pub proxy: String,
    /// Its network; empty for the mesh's.
    pub network: String,
    /// Its labels.
    pub labels: Labels,
    /// Where it runs, as `region/zone/subzone`; empty when it does not say.
    pub locality: String,
    /// It will report whether the workload is well.
    pub reports: bool,
}

impl WorkloadGroup {
    /// The entry of a workload of this group: metadata without annotations of who is connected, and what it says.
    pub fn entry(group: &Object<Self>, entering: &Entering) -> Object<WorkloadEntry> {
        let Self { metadata, template, .. } = &group.spec;
        let mut spec = template.clone();
        spec.address.clone_from(&entering.address);
        // The group's word goes before the workload's own: by labels services and policies select it.
        for (key, value) in &entering.labels {
            spec.labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
        if spec.locality.is_empty() {
            spec.locality.clone_from(&entering.locality);
        }
        if spec.network.is_empty() {
            spec.network.clone_from(&entering.network);
        }
        // Until the first report nobody knows.
        spec.unhealthy = entering.reports;
        let mut annotations = metadata.annotations.clone();
        annotations.insert(GROUP_ANNOTATION.to_owned(), group.meta.name.clone());
        if !entering.proxy.is_empty() {
            annotations.insert(PROXY_ANNOTATION.to_owned(), entering.proxy.clone());
        }
        if entering.reports {
            annotations.insert(HEALTH_ANNOTATION.to_owned(), "true".to_owned());
        }
        let mut name = format!("{}-{}", group.meta.name, entering.address.replace(':', "-"));
        // "2001:db8::" ends in what no name ends in.
        if name.ends_with('-') {
            name.push('0');
        }
        if !entering.network.is_empty() {
            name.push('-');
            name.push_str(&entering.network);
        }
        let meta = Meta {
            kind: super::Kind::WorkloadEntry,
            api_version: "networking.istio.io/v1".to_owned(),
            name: name.to_lowercase(),
            labels: metadata.labels.clone(),
            annotations,
            ..group.meta.clone()
        };
        Object { meta, spec }
    }
}
