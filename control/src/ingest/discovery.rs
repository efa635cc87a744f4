//! Discovery selectors: what stands in namespaces that MeshConfig's `discoverySelectors` do not select is as good as absent.

use std::collections::{BTreeMap, HashMap};

use super::diagnostic::{Diagnostic, Severity};
use crate::model::{Labels, Objects};

/// Takes out of `objects` what is in other namespaces than the mesh is to know, and says how much that is.
pub(super) fn narrow(objects: &mut Objects, diagnostics: &mut Vec<Diagnostic>) {
    let Some(mesh) = objects.mesh.clone().filter(|mesh| !mesh.spec.discovery_selectors.is_empty()) else {
        return;
    };
    let labels: HashMap<String, Labels> =
        objects.namespaces.iter().map(|n| (n.meta.name.clone(), n.meta.labels.clone())).collect();
    let mut verdicts: HashMap<String, bool> = HashMap::new();
    let mut out: BTreeMap<String, usize> = BTreeMap::new();
    let mut known = |namespace: &str| {
        let own = || labels.get(namespace).cloned().unwrap_or_default();
        *verdicts.entry(namespace.to_owned()).or_insert_with(|| mesh.spec.knows(namespace, &own()))
    };
    objects.retain_namespaces(|namespace| {
        let stays = known(namespace);
        if !stays {
            *out.entry(namespace.to_owned()).or_default() += 1;
        }
        stays
    });
    if !out.is_empty() {
        let counted: Vec<_> = out.iter().map(|(namespace, count)| format!("{namespace} ({count})")).collect();
        diagnostics.push(Diagnostic {
            file: mesh.meta.source.file.to_string(),
            line: mesh.meta.source.line,
            severity: Severity::Info,
            object: Some(mesh.meta.key().to_string()),
            path: Some("discoverySelectors".to_owned()),
            reason: format!(
                "namespaces that no selector selects, with their objects, are ignored: {}",
                counted.join(", ")
            ),
            help: Some("label a namespace that is meant to be in the mesh, or select it".to_owned()),
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::ingest::load_str;

    fn world(selectors: &str, labels: &str) -> crate::ingest::LoadOutcome {
        let object = |kind: &str, namespace: &str, spec: &str| {
            format!(
                "{{apiVersion: networking.istio.io/v1, kind: {kind}, metadata: {{name: o, namespace: {namespace}}}, spec: {spec}}}\n---\n"
            )
        };
        let entry =
            "{hosts: [o.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}";
        let rule = "{host: o.example}";
        load_str(
            "x.yaml",
            &format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    discoverySelectors: {selectors}\n---\n\
                 {{apiVersion: v1, kind: Namespace, metadata: {{name: in, labels: {labels}}}}}\n---\n{}{}{}{}",
                object("ServiceEntry", "in", entry),
                object("ServiceEntry", "out", entry),
                object("DestinationRule", "out", rule),
                object("DestinationRule", "istio-system", rule),
            ),
        )
    }

    fn seen(selectors: &str, labels: &str) -> Vec<String> {
        let outcome = world(selectors, labels);
        let world = outcome.world.unwrap_or_else(|| panic!("{:#?}", outcome.diagnostics));
        let services = world.services().iter().map(|service| service.namespace().to_owned());
        let rules = world.destination_rules().iter().map(|rule| format!("rule in {}", rule.meta.namespace));
        services.chain(rules).collect()
    }

    #[test]
    fn namespaces_that_no_selector_selects_are_as_good_as_absent_and_that_is_said() {
        let root = "rule in istio-system";
        assert_eq!(seen("[]", "{}"), ["in", "out", "rule in out", root]);
        assert_eq!(seen("[{matchLabels: {mesh: a}}]", "{mesh: a}"), ["in", root]);
        // The labels are what counts, and one selector is enough.
        assert_eq!(seen("[{matchLabels: {mesh: a}}]", "{mesh: b}"), [root]);
        assert_eq!(
            seen(
                "[{matchLabels: {mesh: a}}, {matchExpressions: [{key: mesh, operator: In, values: [b]}]}]",
                "{mesh: b}"
            ),
            ["in", root]
        );
        let unlabelled = "[{matchExpressions: [{key: mesh, operator: DoesNotExist}]}]";
        assert_eq!(seen(unlabelled, "{mesh: a}"), ["out", "rule in out", root]);
        let by_name = "[{matchLabels: {kubernetes.io/metadata.name: out}}]";
        assert_eq!(seen(by_name, "{}"), ["out", "rule in out", root]);
        let said = world("[{matchLabels: {mesh: a}}]", "{mesh: a}").diagnostics;
        assert!(said.iter().any(|d| d.reason.contains("are ignored: out (2)")), "{said:#?}");
    }
}
