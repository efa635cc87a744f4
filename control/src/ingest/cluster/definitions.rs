//! The CustomResourceDefinitions of all kinds of Istio's and Weft's that are honoured, as `deploy/crds` ships them.
//!
//! Istio's kinds have Istio's names, groups, versions and short names, so that a cluster that has them already needs none of
//! these. What an object may say is checked by one implementation alone, the control plane's; the API server keeps all of it.

use std::fmt::Write;

use super::kinds::{DEFINED, Kind};

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
            type: object
            x-kubernetes-preserve-unknown-fields: true
          status:
            type: object
            x-kubernetes-preserve-unknown-fields: true
",
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

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
