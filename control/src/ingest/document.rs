//! From one YAML document to one object of the mesh: its envelope, its metadata, its specification.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use base64::Engine;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::diagnostic::{Diagnostic, Finding, Findings};
use super::support::{self, Class};
use super::tree::{self, Node, Value};
use super::{decode, normalize, validate};
use crate::model::gateway_api::{AddressKind, ApiGateway, GatewayAddress};
use crate::model::kubernetes::{Ingress, KubernetesService, TlsSecret};
use crate::model::mesh_config::MeshConfig;
use crate::model::meta::{Kind, Meta, Object, ObjectKey, Source};
use crate::model::networks::MeshNetworks;
use crate::model::values::Labels;
use crate::model::world::Objects;

/// An object that was left out because it is none of the mesh's business.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Skipped {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// Its apiVersion.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name; empty if it has none.
    pub name: String,
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, line, api_version, kind, name } = self;
        write!(
            f,
            "{file}:{line}: skipped {kind} {name} ({api_version}): not part of the mesh's configuration"
        )
    }
}

/// Collects objects from documents.
#[derive(Default)]
pub(super) struct Collector {
    pub(super) objects: Objects,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) skipped: Vec<Skipped>,
    places: std::collections::HashMap<ObjectKey, Source>,
    position: u32,
}

/// Any object's `metadata`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    namespace: String,
    labels: Labels,
    annotations: Labels,
    creation_timestamp: Option<String>,
}

/// One document on its way.
struct Document<'a> {
    file: &'a Arc<str>,
    node: &'a Node,
    /// Lines above the node's own line 1, for YAML inside YAML.
    offset: u32,
    /// `Kind namespace/name`, as far as known.
    label: Option<String>,
}

impl Document<'_> {
    fn report(&self, findings: Findings, to: &mut Vec<Diagnostic>) {
        for Finding { severity, path, line, reason, help } in findings.0 {
            let line = line.unwrap_or_else(|| self.node.line_of(&path)) + self.offset;
            let path = (!path.is_empty()).then_some(path);
            let (file, object) = (self.file.to_string(), self.label.clone());
            to.push(Diagnostic { file, line, severity, object, path, reason, help });
        }
    }
}

impl Collector {
    /// Takes one document of `file`.
    pub(super) fn take(&mut self, file: &Arc<str>, node: &Node) {
        let mut document = Document { file, node, offset: 0, label: None };
        let mut findings = Findings::default();
        let text = |key: &str| node.get(key).and_then(Node::text);
        match (text("apiVersion"), text("kind")) {
            (Some(api_version), Some(kind)) => {
                document.label = Some(match support::classify(api_version, kind) {
                    Class::Known(known) => label(known.as_str(), node),
                    _ => label(kind, node),
                });
                self.take_object(&document, api_version, kind, &mut findings);
            }
            (None, None) if looks_like_mesh_config(node) => {
                self.take_mesh(&mut document, node, &mut findings)
            }
            (None, None) if looks_like_networks(node) => {
                self.take_networks(&mut document, node, &mut findings)
            }
            _ if !matches!(node.value, Value::Map(_)) => {
                findings.error("", format!("expected an object, found {}", node.value.describe()), "");
            }
            _ => findings.error(
                "",
                "apiVersion and kind are needed to know what this is",
                "write both, such as apiVersion: networking.istio.io/v1 and kind: VirtualService",
            ),
        }
        document.report(findings, &mut self.diagnostics);
    }

    fn take_object(
        &mut self,
        document: &Document<'_>,
        api_version: &str,
        kind: &str,
        findings: &mut Findings,
    ) {
        let node = document.node;
        match support::classify(api_version, kind) {
            Class::Known(Kind::Secret) => self.take_secret(document, api_version, findings),
            Class::Known(known) => self.take_known(document, api_version, known, findings),
            Class::ConfigMap if name_of(node) == "istio" => self.take_config_map(document, findings),
            Class::ConfigMap | Class::Foreign => self.skip(document, api_version, kind),
            Class::List => {
                let Some(Value::List(items)) = node.get("items").map(|items| &items.value) else {
                    findings.error("items", "a List needs a list of items", "");
                    return;
                };
                for item in items {
                    self.take(document.file, item);
                }
            }
            Class::Refused(reason, help) => findings.error("", reason, help),
        }
    }

    fn skip(&mut self, document: &Document<'_>, api_version: &str, kind: &str) {
        self.skipped.push(Skipped {
            file: document.file.to_string(),
            line: document.node.line,
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            name: name_of(document.node).to_owned(),
        });
    }

    fn take_known(
        &mut self,
        document: &Document<'_>,
        api_version: &str,
        kind: Kind,
        findings: &mut Findings,
    ) {
        let Some(meta) = self.meta(document, api_version, kind, &["spec", "status"], findings) else {
            return;
        };
        let namespace = meta.namespace.clone();
        validate::istios_annotations(&meta, findings);
        match kind {
            Kind::Service => {
                if let Some(mut spec) = spec::<KubernetesService>(document, kind, findings) {
                    spec.ingress = ingress(document.node);
                    validate::kubernetes_service(&spec, &meta, findings);
                    self.objects.services.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::VirtualService => {
                if let Some(mut spec) = spec(document, kind, findings) {
                    normalize::virtual_service(&mut spec, &namespace, findings);
                    validate::virtual_service(&spec, &meta, findings);
                    self.objects.virtual_services.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::DestinationRule => {
                if let Some(mut spec) = spec(document, kind, findings) {
                    normalize::destination_rule(&mut spec, &namespace, findings);
                    validate::destination_rule(&spec, &meta, findings);
                    self.objects.destination_rules.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::Gateway => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::gateway(&spec, findings);
                    self.objects.gateways.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::ServiceEntry => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::service_entry(&spec, findings);
                    self.objects.service_entries.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::WorkloadEntry => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::workload_entry(&spec, &meta, findings);
                    self.objects.workload_entries.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::Sidecar => {
                if let Some(mut spec) = spec(document, kind, findings) {
                    normalize::sidecar(&mut spec, &namespace);
                    validate::sidecar(&spec, findings);
                    self.objects.sidecars.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::PeerAuthentication => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::peer_authentication(&spec, findings);
                    self.objects.peer_authentications.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::AuthorizationPolicy => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::authorization_policy(&spec, &meta, findings);
                    self.objects.authorization_policies.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::RequestAuthentication => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::request_authentication(&spec, &meta, findings);
                    self.objects.request_authentications.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::AcmeCertificate => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::acme_certificate(&spec, findings);
                    self.objects.acme_certificates.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::IPDenyList => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::ip_deny_list(&spec, &meta, findings);
                    self.objects.ip_deny_lists.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::ExternalCredential => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::external_credential(&spec, &meta, findings);
                    self.objects.external_credentials.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::RateLimit => {
                if let Some(mut spec) = spec(document, kind, findings) {
                    normalize::rate_limit(&mut spec, &namespace);
                    validate::rate_limit(&spec, &meta, findings);
                    self.objects.rate_limits.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::Compression => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::compression(&spec, &meta, findings);
                    self.objects.compressions.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::HealthCheck => {
                if let Some(mut spec) = spec(document, kind, findings) {
                    normalize::health_check(&mut spec, &namespace);
                    validate::health_check(&spec, &meta, findings);
                    self.objects.health_checks.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::ServiceMeshConfig => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::service_mesh_config(&spec, &meta, findings);
                    self.objects.service_mesh_configs.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::Namespace => self.objects.namespaces.push(Arc::new(Object { meta, spec: () })),
            Kind::GatewayClass => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::gateway_class(&spec, findings);
                    self.objects.gateway_classes.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::ApiGateway => {
                if let Some(mut spec) = spec::<ApiGateway>(document, kind, findings) {
                    spec.found_at = found_at(document.node);
                    validate::api_gateway(&spec, &meta, findings);
                    self.objects.api_gateways.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::HttpRoute => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::http_route(&spec, findings);
                    self.objects.http_routes.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::GrpcRoute => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::grpc_route(&spec, findings);
                    self.objects.grpc_routes.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::TlsRoute => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::tls_route(&spec, findings);
                    self.objects.tls_routes.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::ReferenceGrant => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::reference_grant(&spec, findings);
                    self.objects.reference_grants.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::TrafficManagement => {
                if let Some(mut spec) = spec(document, kind, findings) {
                    normalize::traffic_management(&mut spec, &namespace);
                    validate::traffic_management(&spec, &meta, findings);
                    self.objects.traffic_managements.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::MetricDefinition => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::metric_definition(&spec, &meta, findings);
                    self.objects.metric_definitions.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::WorkloadGroup => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::workload_group(&spec, &meta, findings);
                    self.objects.workload_groups.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::ProxyConfig => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::proxy_config(&spec, &meta, findings);
                    self.objects.proxy_configs.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::Telemetry => {
                if let Some(spec) = spec(document, kind, findings) {
                    validate::telemetry(&spec, &meta, findings);
                    self.objects.telemetries.push(Arc::new(Object { meta, spec }));
                }
            }
            Kind::Secret | Kind::MeshConfig | Kind::MeshNetworks | Kind::Pod => {}
        }
    }

    /// Reads the metadata and enters the object's place; `None` if it cannot be an object.
    fn meta(
        &mut self,
        document: &Document<'_>,
        api_version: &str,
        kind: Kind,
        fields: &[&str],
        findings: &mut Findings,
    ) -> Option<Meta> {
        let node = document.node;
        for entry in node.entries() {
            if !["apiVersion", "kind", "metadata"].contains(&entry.key.as_str())
                && !fields.contains(&entry.key.as_str())
            {
                let help =
                    match super::suggest::closest(&entry.key, fields.iter().copied().chain(["metadata"])) {
                        Some(meant) => format!("did you mean \"{meant}\"?"),
                        None => "settings belong under spec".to_owned(),
                    };
                findings.error(entry.key.clone(), "unknown field", help);
            }
        }
        let Some(metadata) = node.get("metadata") else {
            findings.error("metadata", "missing", "write metadata with a name");
            return None;
        };
        let advice = |parent: &str, name: &str, known: bool| support::advise(kind, parent, name, known);
        let metadata: Metadata = decode::decode(metadata, "metadata", &advice, findings)?;
        if metadata.name.is_empty() {
            findings.error("metadata.name", "missing", "give the object a name");
            return None;
        }
        let created =
            match metadata.creation_timestamp.as_deref().map(|text| OffsetDateTime::parse(text, &Rfc3339)) {
                None => None,
                Some(Ok(time)) => Some(time.unix_timestamp()),
                Some(Err(_)) => {
                    findings.error(
                        "metadata.creationTimestamp",
                        "not a time",
                        "write it as 2026-01-31T12:00:00Z, or leave it out",
                    );
                    None
                }
            };
        let namespace = if metadata.namespace.is_empty() { "default".to_owned() } else { metadata.namespace };
        let meta = Meta {
            kind,
            api_version: api_version.to_owned(),
            version: version_of(kind, &namespace, &metadata.name, node),
            namespace,
            name: metadata.name,
            labels: metadata.labels,
            annotations: metadata.annotations,
            created,
            source: Source { file: document.file.clone(), line: node.line, position: self.position },
        };
        self.enter(&meta, findings).then_some(meta)
    }

    /// Notes where an object stands; an object that stands elsewhere as well is refused, naming both places.
    fn enter(&mut self, meta: &Meta, findings: &mut Findings) -> bool {
        self.position += 1;
        match self.places.entry(meta.key()) {
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(meta.source.clone());
                true
            }
            std::collections::hash_map::Entry::Occupied(first) => {
                findings.error(
                    "metadata.name",
                    format!("{} is already defined at {}", meta.key(), first.get()),
                    "rename or remove one of the two",
                );
                false
            }
        }
    }

    fn take_secret(&mut self, document: &Document<'_>, api_version: &str, findings: &mut Findings) {
        let node = document.node;
        let known = ["data", "stringData", "type", "immutable"];
        let secret_type = node.get("type").and_then(Node::text).unwrap_or("Opaque");
        if !matches!(secret_type, "kubernetes.io/tls" | "Opaque" | "generic") {
            self.skip(document, api_version, "Secret");
            return;
        }
        let Some(spec) = secret(node, secret_type == "kubernetes.io/tls", findings) else {
            if findings.0.is_empty() {
                self.skip(document, api_version, "Secret");
            }
            return;
        };
        if let Some(meta) = self.meta(document, api_version, Kind::Secret, &known, findings) {
            self.objects.secrets.push(Arc::new(Object { meta, spec }));
        }
    }

    /// Istio's mesh-wide settings live in the ConfigMap `istio`, as text under the key `mesh`, and its networks beside them.
    fn take_config_map(&mut self, document: &Document<'_>, findings: &mut Findings) {
        let data = document.node.get("data");
        for entry in data.map(Node::entries).unwrap_or_default() {
            if !["mesh", "meshNetworks"].contains(&entry.key.as_str()) {
                findings.error(
                    format!("data.{}", entry.key),
                    "not supported by Weft yet",
                    "take the key out",
                );
            }
        }
        let given = |key: &str| data.and_then(|data| data.get(key));
        let (mesh, networks) = (given("mesh"), given("meshNetworks"));
        if mesh.is_none() && networks.is_none() {
            findings.error("data.mesh", "missing", "put the MeshConfig there, as text");
        }
        if let Some(mesh) = mesh {
            self.take_inner(document, "mesh", mesh, findings, Self::take_mesh);
        }
        if let Some(networks) = networks {
            self.take_inner(document, "meshNetworks", networks, findings, Self::take_networks);
        }
    }

    /// Takes what is written as text under a key of a ConfigMap.
    fn take_inner(
        &mut self,
        document: &Document<'_>,
        key: &str,
        value: &Node,
        findings: &mut Findings,
        take: impl FnOnce(&mut Self, &mut Document<'_>, &Node, &mut Findings),
    ) {
        let Some(text) = value.text() else {
            findings.error(
                format!("data.{key}"),
                "expected a text",
                format!("begin it with \"{key}: |\" and indent the settings below"),
            );
            return;
        };
        // A block of text is located by its own first line.
        let above = value.line.saturating_sub(1);
        match tree::parse(text) {
            Err(error) => {
                let mut finding = Findings::default();
                finding.error(format!("data.{key}"), error.reason, "");
                finding.0.iter_mut().for_each(|finding| finding.line = Some(above + error.line));
                findings.0.append(&mut finding.0);
            }
            Ok(documents) => {
                let empty = Node { value: Value::Map(Vec::new()), line: 1 };
                let node = documents.first().unwrap_or(&empty);
                let mut inner = Document { file: document.file, node, offset: above, label: None };
                let mut inner_findings = Findings::default();
                take(self, &mut inner, node, &mut inner_findings);
                inner.report(inner_findings, &mut self.diagnostics);
            }
        }
    }

    fn take_networks(&mut self, document: &mut Document<'_>, node: &Node, findings: &mut Findings) {
        document.label = Some("MeshNetworks".to_owned());
        let kind = Kind::MeshNetworks;
        let advice = |parent: &str, name: &str, known: bool| support::advise(kind, parent, name, known);
        let Some(spec) = decode::decode::<MeshNetworks>(node, "", &advice, findings) else { return };
        validate::mesh_networks(&spec, findings);
        let meta = self.of_mesh(kind, "istio-system", document, node);
        if self.enter(&meta, findings) {
            self.objects.networks = Some(Arc::new(Object { meta, spec }));
        }
    }

    /// The metadata of what holds for the whole mesh and has none.
    fn of_mesh(&self, kind: Kind, namespace: &str, document: &Document<'_>, node: &Node) -> Meta {
        Meta {
            kind,
            api_version: String::new(),
            version: version_of(kind, namespace, "istio", node),
            namespace: namespace.to_owned(),
            name: "istio".to_owned(),
            labels: Labels::new(),
            annotations: Labels::new(),
            created: None,
            source: Source {
                file: document.file.clone(),
                line: node.line + document.offset,
                position: self.position,
            },
        }
    }

    fn take_mesh(&mut self, document: &mut Document<'_>, node: &Node, findings: &mut Findings) {
        document.label = Some("MeshConfig".to_owned());
        let kind = Kind::MeshConfig;
        let advice = |parent: &str, name: &str, known: bool| support::advise(kind, parent, name, known);
        let Some(spec) = decode::decode::<MeshConfig>(node, "", &advice, findings) else { return };
        validate::mesh_config(&spec, findings);
        let meta = self.of_mesh(kind, &spec.root_namespace, document, node);
        if self.enter(&meta, findings) {
            self.objects.mesh = Some(Arc::new(Object { meta, spec }));
        }
    }
}

fn spec<T: DeserializeOwned>(document: &Document<'_>, kind: Kind, findings: &mut Findings) -> Option<T> {
    let empty = Node { value: Value::Map(Vec::new()), line: document.node.line };
    let node = document.node.get("spec").unwrap_or(&empty);
    let advice = |parent: &str, name: &str, known: bool| support::advise(kind, parent, name, known);
    decode::decode(node, "spec", &advice, findings)
}

/// The load balancers before a Service, as its status has them.
fn ingress(node: &Node) -> Vec<Ingress> {
    let listed = node.get("status").and_then(|s| s.get("loadBalancer")).and_then(|l| l.get("ingress"));
    let Some(Value::List(items)) = listed.map(|listed| &listed.value) else { return Vec::new() };
    let text = |item: &Node, key: &str| item.get(key).and_then(Node::text).unwrap_or_default().to_owned();
    items.iter().map(|item| Ingress { ip: text(item, "ip"), hostname: text(item, "hostname") }).collect()
}

/// Where a Gateway of the Gateway API is found, as its status has it.
fn found_at(node: &Node) -> Vec<GatewayAddress> {
    let listed = node.get("status").and_then(|status| status.get("addresses"));
    let Some(Value::List(items)) = listed.map(|listed| &listed.value) else { return Vec::new() };
    let text = |item: &Node, key: &str| item.get(key).and_then(Node::text).unwrap_or_default().to_owned();
    let kind = |item: &Node| match text(item, "type").as_str() {
        "Hostname" => AddressKind::Hostname,
        "" | "IPAddress" => AddressKind::IPAddress,
        _ => AddressKind::NamedAddress,
    };
    items.iter().map(|item| GatewayAddress { kind: kind(item), value: text(item, "value") }).collect()
}

/// Key and chain of a Secret, under Kubernetes' names or Istio's older ones; `None` when it holds neither.
///
/// Values never appear in messages.
fn secret(node: &Node, needs_key: bool, findings: &mut Findings) -> Option<TlsSecret> {
    let mut part = |names: [&str; 2]| -> Vec<u8> {
        for name in names {
            if let Some(text) = node.get("stringData").and_then(|data| data.get(name)).and_then(Node::text) {
                return text.as_bytes().to_vec();
            }
            if let Some(text) = node.get("data").and_then(|data| data.get(name)).and_then(Node::text) {
                let compact: String = text.split_whitespace().collect();
                match base64::engine::general_purpose::STANDARD.decode(compact) {
                    Ok(bytes) => return bytes,
                    Err(_) => findings.error(
                        format!("data.{name}"),
                        "not base64",
                        "encode the PEM text in base64, or put it under stringData as it is",
                    ),
                }
            }
        }
        Vec::new()
    };
    let secret = TlsSecret {
        certificate_chain: part(["tls.crt", "cert"]),
        private_key: part(["tls.key", "key"]),
        ca_certificates: part(["ca.crt", "cacert"]),
    };
    if !findings.0.is_empty() {
        return None;
    }
    if secret.certificate_chain.is_empty() != secret.private_key.is_empty()
        || (needs_key && secret.private_key.is_empty())
    {
        findings.error("data", "a TLS Secret needs both tls.crt and tls.key", "add the one that is missing");
        return None;
    }
    let pem = |bytes: &[u8]| bytes.is_empty() || bytes.windows(11).any(|window| window == b"-----BEGIN ");
    for (name, bytes) in [
        ("tls.crt", &secret.certificate_chain),
        ("tls.key", &secret.private_key),
        ("ca.crt", &secret.ca_certificates),
    ] {
        if !pem(bytes) {
            findings.error(format!("data.{name}"), "not in PEM form", "it begins with \"-----BEGIN ...\"");
        }
    }
    (secret != TlsSecret::default()).then_some(secret)
}

fn version_of(kind: Kind, namespace: &str, name: &str, node: &Node) -> u64 {
    let mut hasher = DefaultHasher::new();
    (kind, namespace, name).hash(&mut hasher);
    for entry in node.entries() {
        match entry.key.as_str() {
            "status" | "apiVersion" => {}
            "metadata" => {
                for key in ["labels", "annotations", "creationTimestamp"] {
                    if let Some(part) = entry.node.get(key) {
                        (key, &part.value).hash(&mut hasher);
                    }
                }
            }
            _ => (&entry.key, &entry.node.value).hash(&mut hasher),
        }
    }
    hasher.finish()
}

fn name_of(node: &Node) -> &str {
    node.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Node::text).unwrap_or_default()
}

fn label(kind: &str, node: &Node) -> String {
    let namespace = node.get("metadata").and_then(|metadata| metadata.get("namespace")).and_then(Node::text);
    match name_of(node) {
        "" => kind.to_owned(),
        name => format!("{kind} {}/{name}", namespace.unwrap_or("default")),
    }
}

/// A document without apiVersion and kind is Istio's file of networks if it has them, and nothing else.
fn looks_like_networks(node: &Node) -> bool {
    matches!(node.entries(), [only] if only.key == "networks")
}

/// A document without apiVersion and kind is Istio's mesh file if it has one of its fields.
fn looks_like_mesh_config(node: &Node) -> bool {
    const TELLING: &[&str] = &[
        "trustDomain",
        "trustDomainAliases",
        "rootNamespace",
        "outboundTrafficPolicy",
        "enableAutoMtls",
        "accessLogFile",
        "accessLogFormat",
        "accessLogEncoding",
        "connectTimeout",
        "defaultProviders",
        "enableTracing",
        "defaultConfig",
        "proxyHttpPort",
        "defaultHttpRetryPolicy",
        "pathNormalization",
        "protocolDetectionTimeout",
        "tcpKeepalive",
        "meshMTLS",
        "extensionProviders",
        "localityLbSetting",
        "h2UpgradePolicy",
    ];
    node.entries().iter().any(|entry| TELLING.contains(&entry.key.as_str()))
}
