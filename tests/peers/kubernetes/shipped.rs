//! Everything under deploy/ that is for a cluster, tried on the API server: it takes each object, by the definitions and webhooks of
//! an installation. Kinds of other projects have definitions of ours in their place, which know names and nothing more.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::Server;
use crate::programs::{peer, run};

/// Group, version, kind, plural; whether its objects are of namespaces.
const OTHERS: [(&str, &str, &str, &str, bool); 17] = [
    ("argoproj.io", "v1alpha1", "Application", "applications", true),
    ("argoproj.io", "v1alpha1", "AppProject", "appprojects", true),
    ("cert-manager.io", "v1", "Certificate", "certificates", true),
    ("cert-manager.io", "v1", "Issuer", "issuers", true),
    ("cert-manager.io", "v1", "ClusterIssuer", "clusterissuers", false),
    ("monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors", true),
    ("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors", true),
    ("monitoring.coreos.com", "v1", "PrometheusRule", "prometheusrules", true),
    ("templates.gatekeeper.sh", "v1", "ConstraintTemplate", "constrainttemplates", false),
    ("constraints.gatekeeper.sh", "v1beta1", "WeftStrictMutualTls", "weftstrictmutualtls", false),
    ("constraints.gatekeeper.sh", "v1beta1", "WeftAllowNamesCallers", "weftallownamescallers", false),
    ("constraints.gatekeeper.sh", "v1beta1", "WeftHosts", "wefthosts", false),
    ("constraints.gatekeeper.sh", "v1beta1", "WeftEncryptedEgress", "weftencryptedegress", false),
    ("constraints.gatekeeper.sh", "v1beta1", "WeftBoundedTraffic", "weftboundedtraffic", false),
    ("getambassador.io", "v3alpha1", "TLSContext", "tlscontexts", true),
    ("getambassador.io", "v3alpha1", "Host", "hosts", true),
    ("getambassador.io", "v3alpha1", "Mapping", "mappings", true),
];

fn definition((group, version, kind, plural, namespaced): &(&str, &str, &str, &str, bool)) -> Value {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": if *namespaced { "Namespaced" } else { "Cluster" },
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
            "versions": [{"name": version, "served": true, "storage": true, "schema": {"openAPIV3Schema": anything}}],
        },
    })
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// The files below a directory that are for a cluster.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_str().unwrap();
        // Objects that Gatekeeper is to refuse; charts and kustomizations, which are rendered first; what no cluster reads, as the
        // two networks that one machine plays by addresses of its own.
        let others = [
            "cases",
            "helm",
            "kustomize",
            "images",
            "standalone",
            "crds",
            "observability",
            "falco",
            "networks",
        ];
        let not_for_it = others.contains(&name) || name == "suite.yaml";
        // The file that is left out is laid over Emissary's own Deployment.
        if path.is_dir() && !not_for_it {
            files(&path, found);
        } else if name.ends_with(".yaml") && !not_for_it && !path.ends_with("ambassador/identity.yaml") {
            found.push(path);
        }
    }
}

/// Tries everything; the installation is there, with its control plane.
pub(super) fn is_taken(server: &Server) {
    let definitions: Vec<_> = OTHERS.iter().map(definition).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": definitions});
    server.apply(&list.to_string());
    server.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]);
    for namespace in ["ecotrack", "argocd", "ambassador", "emissary"] {
        server.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}"));
    }
    let mut all = Vec::new();
    files(&deploy(), &mut all);
    assert!(all.len() > 25, "{all:?}");
    let tried = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict"];
    let mut refused = Vec::new();
    let named = all.iter().flat_map(|file| ["-f", file.to_str().unwrap()]);
    let arguments: Vec<_> = tried.into_iter().chain(named).collect();
    if let Err(why) = server.try_kubectl(&arguments, "") {
        refused.push(why);
    }
    for overlay in ["dev", "staging", "prod"] {
        let mut kustomize = Command::new(peer("WEFT_KUBECTL"));
        let built =
            run(kustomize.arg("kustomize").arg(deploy().join("kustomize/overlays").join(overlay))).unwrap();
        if let Err(why) = server.try_kubectl(&[&tried[..], &["-f", "-"]].concat(), &built) {
            refused.push(format!("{overlay}: {why}"));
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}
