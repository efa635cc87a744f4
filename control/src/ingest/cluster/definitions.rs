//! The CustomResourceDefinitions of all kinds of Istio's and Weft's that are honoured, as `deploy/crds` ships them.
//!
//! Istio's kinds have Istio's names, groups, versions and short names, so that a cluster that has them already needs none of
//! these. A schema says what fields are made of, for `kubectl explain` and so that the API server refuses a text where a number must
//! be. It is made from the types that objects are decoded into. Fields that it does not know are kept: an API server that dropped them would
//! take in silence what the control plane refuses, with what was meant and what to do.

use std::fmt::Write;

use super::super::decode::shape::{Shape, shape};
use super::kinds::{DEFINED, Kind};
use crate::model;

/// A column of `kubectl get`: its name, what it shows, and its type where that is no text.
type Column = (&'static str, &'static str, &'static str);

const AGE: Column = ("Age", ".metadata.creationTimestamp", "date");
const VALID: Column = ("Valid", ".status.conditions[?(@.type==\"Valid\")].status", "string");

/// What is worth a column.
fn columns(kind: &str) -> &'static [Column] {
    match kind {
        "VirtualService" => &[("Gateways", ".spec.gateways", "string"), ("Hosts", ".spec.hosts", "string")],
        "DestinationRule" => &[("Host", ".spec.host", "string")],
        "ServiceEntry" => &[
            ("Hosts", ".spec.hosts", "string"),
            ("Location", ".spec.location", "string"),
            ("Resolution", ".spec.resolution", "string"),
        ],
        "WorkloadEntry" => &[("Address", ".spec.address", "string")],
        "PeerAuthentication" => &[("Mode", ".spec.mtls.mode", "string")],
        "AuthorizationPolicy" => &[("Action", ".spec.action", "string")],
        "AcmeCertificate" => &[("Credential", ".spec.credentialName", "string")],
        _ => &[],
    }
}

/// The groups, each a file of its name.
pub const GROUPS: [&str; 4] = ["networking.istio.io", "security.istio.io", "telemetry.istio.io", "weft.dev"];

/// The definitions of a group, as YAML.
pub fn yaml(group: &str) -> String {
    let mut text = format!(
        "# CustomResourceDefinitions of {group}: what kubectl needs to know these kinds. Objects are checked by the control plane.\n\
         # Made by `WEFT_UPDATE_DOCS=1 cargo test -p weft-control definitions`.\n"
    );
    for kind in DEFINED.iter().filter(|kind| kind.group == group && kind.is_shipped()) {
        definition(&mut text, kind);
    }
    text
}

fn definition(text: &mut String, kind: &Kind) {
    let (group, plural, name) = (kind.group, kind.plural, kind.kind);
    let singular = name.to_lowercase();
    let mut short = String::new();
    for (index, each) in kind.short.iter().enumerate() {
        short += if index == 0 { "\n    shortNames:" } else { "" };
        let _ = write!(short, "\n    - {each}");
    }
    let category = if group == "weft.dev" { "weft-dev" } else { "istio-io" };
    let label = group.split('.').next().unwrap_or_default();
    let _ = write!(
        text,
        "---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {plural}.{group}
  labels:
    app.kubernetes.io/part-of: weft
    weft.dev/api: {label}
spec:
  group: {group}
  scope: Namespaced
  names:
    kind: {name}
    listKind: {name}List
    plural: {plural}
    singular: {singular}{short}
    categories:
    - weft
    - {category}
  versions:
"
    );
    for (index, version) in kind.versions.iter().enumerate() {
        let _ = write!(
            text,
            "  - name: {version}
    served: true
    storage: {}
    subresources:
      status: {{}}
    additionalPrinterColumns:
",
            index == 0
        );
        for (title, path, shape) in columns(name).iter().chain([&VALID, &AGE]) {
            let _ = write!(text, "    - name: {title}\n      type: {shape}\n      jsonPath: {path}\n");
        }
        text.push_str(
            "    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
",
        );
        schema(text, 12, &specification(name));
        text.push_str(
            "          status:
            type: object
            x-kubernetes-preserve-unknown-fields: true
",
        );
    }
}

/// What a kind's specification is decoded from.
fn specification(kind: &str) -> Shape {
    match kind {
        "VirtualService" => shape::<model::VirtualService>(),
        "DestinationRule" => shape::<model::DestinationRule>(),
        "Gateway" => shape::<model::Gateway>(),
        "ServiceEntry" => shape::<model::ServiceEntry>(),
        "WorkloadEntry" => shape::<model::WorkloadEntry>(),
        "Sidecar" => shape::<model::Sidecar>(),
        "PeerAuthentication" => shape::<model::PeerAuthentication>(),
        "AuthorizationPolicy" => shape::<model::AuthorizationPolicy>(),
        "RequestAuthentication" => shape::<model::RequestAuthentication>(),
        "ProxyConfig" => shape::<model::proxy_config::ProxyConfig>(),
        "WorkloadGroup" => shape::<model::workload_group::WorkloadGroup>(),
        "Telemetry" => shape::<model::Telemetry>(),
        "AcmeCertificate" => shape::<model::AcmeCertificate>(),
        "Compression" => shape::<model::Compression>(),
        "ExternalCredential" => shape::<model::ExternalCredential>(),
        "IPDenyList" => shape::<model::IpDenyList>(),
        "RateLimit" => shape::<model::RateLimit>(),
        "HealthCheck" => shape::<model::HealthCheck>(),
        "ServiceMeshConfig" => shape::<model::ServiceMeshConfig>(),
        "TrafficManagement" => shape::<model::TrafficManagement>(),
        "MetricDefinition" => shape::<model::metric_definition::MetricDefinition>(),
        _ => Shape::Object(Vec::new()),
    }
}

/// The schema of a value, indented so far.
fn schema(text: &mut String, indent: usize, of: &Shape) {
    let mut line = |words: &str| {
        let _ = writeln!(text, "{:indent$}{words}", "");
    };
    match of {
        Shape::Object(fields) => {
            line("type: object");
            line("x-kubernetes-preserve-unknown-fields: true");
            // Names with underscores are taken for those who write them so, and are the same fields.
            let named: Vec<_> = fields.iter().filter(|(name, _)| !name.contains('_')).collect();
            if named.is_empty() {
                return;
            }
            line("properties:");
            for (name, shape) in named {
                // YAML 1.1 has booleans that look like names.
                let name = if matches!(*name, "on" | "off" | "yes" | "no" | "y" | "n") {
                    format!("{name:?}")
                } else {
                    (*name).to_owned()
                };
                let _ = writeln!(text, "{:1$}{name}:", "", indent + 2);
                schema(text, indent + 4, shape);
            }
        }
        Shape::Map(of) => {
            line("type: object");
            line("additionalProperties:");
            schema(text, indent + 2, of);
        }
        Shape::List(of) => {
            line("type: array");
            line("items:");
            schema(text, indent + 2, of);
        }
        Shape::Text => line("type: string"),
        Shape::Word(words) => {
            line("type: string");
            line(&format!("enum: {words:?}"));
        }
        Shape::Bool => line("type: boolean"),
        Shape::Whole(_) => line("type: integer"),
        Shape::Number => line("type: number"),
        Shape::NumberOrText(words) => {
            line(&format!("description: {words:?}"));
            line("x-kubernetes-int-or-string: true");
        }
        Shape::Anything => line("x-kubernetes-preserve-unknown-fields: true"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_schema_says_what_its_fields_are_made_of() {
        for kind in DEFINED.iter().filter(|kind| kind.is_shipped()) {
            let mut text = String::new();
            let shape = specification(kind.kind);
            schema(&mut text, 0, &shape);
            let known = matches!(&shape, Shape::Object(fields) if !fields.is_empty());
            assert!(known, "{}: specification() does not know its type", kind.kind);
            // Whatever is not known to be made of something is not described.
            assert!(!text.contains("Anything") && !anything(&shape), "{}: {shape:?}", kind.kind);
        }
        let mut text = String::new();
        schema(&mut text, 0, &specification("PeerAuthentication"));
        assert!(text.contains("mtls:\n    type: object\n"), "{text}");
        assert!(text.contains("enum: [\"UNSET\", \"DISABLE\", \"PERMISSIVE\", \"STRICT\"]"), "{text}");
        assert!(text.contains("portLevelMtls:\n    type: object\n    additionalProperties:"), "{text}");
    }

    fn anything(shape: &Shape) -> bool {
        match shape {
            Shape::Anything => true,
            Shape::Object(fields) => fields.iter().any(|(_, shape)| anything(shape)),
            Shape::Map(of) | Shape::List(of) => anything(of),
            _ => false,
        }
    }

    #[test]
    fn the_definitions_that_are_shipped_are_these() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
        let update = std::env::var_os("WEFT_UPDATE_DOCS").is_some();
        let mut known = 0;
        for group in GROUPS {
            let file = directory.join(format!("{group}.yaml"));
            let made = yaml(group);
            known += made.matches("kind: CustomResourceDefinition").count();
            if update {
                std::fs::create_dir_all(&directory).unwrap();
                std::fs::write(&file, &made).unwrap();
            }
            let shipped = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(shipped == made, "{} is out of date: WEFT_UPDATE_DOCS=1 makes it anew", file.display());
        }
        assert_eq!(
            known,
            DEFINED.iter().filter(|kind| kind.is_shipped()).count(),
            "every group has its file"
        );
    }
}
