//! `weft install`: plain YAML for kubectl, and what is said beside it.

use serde_json::Value;

use super::support::{stderr, stdout, weft};

#[test]
fn an_installation_is_printed_and_nothing_else_is_done() {
    let output = weft(&["install", "--dry-run", "--set", "profile=production", "-n", "mesh"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let yaml = stdout(&output);
    assert!(yaml.starts_with("apiVersion: v1\nkind: Namespace\n"), "{yaml}");
    assert!(
        yaml.contains("kind: CustomResourceDefinition")
            && yaml.contains("discoveryAddress: istiod.mesh.svc:15012")
    );
    assert!(stderr(&output).contains("kubectl label namespace"), "{}", stderr(&output));
    let output = weft(&["install", "--dry-run", "--skip-crds", "--output", "json"]);
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let kinds: Vec<_> =
        all["items"].as_array().unwrap().iter().map(|one| one["kind"].as_str().unwrap()).collect();
    assert!(!kinds.contains(&"CustomResourceDefinition") && !kinds.contains(&"Namespace"), "{kinds:?}");
    // Whom everything is asked comes last.
    assert_eq!(kinds.last(), Some(&"ValidatingWebhookConfiguration"));
}

#[test]
fn files_and_flags_are_taken_in_their_order_and_what_is_wrong_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (one, two) = (
        at("one.yaml", "profile: demo\nvalues: {global: {network: a, meshID: a}}"),
        at("two.yaml", "values: {global: {network: b}}"),
    );
    let output = weft(&["install", "--dry-run", "-f", &one, "-f", &two, "--set", "values.global.hub=h"]);
    let yaml = stdout(&output);
    assert!(
        output.status.success() && yaml.contains("network: \"b\"") && yaml.contains("meshID: \"a\""),
        "{yaml}{}",
        stderr(&output)
    );
    assert!(yaml.contains("image: h/control:"), "{yaml}");
    let wrong = at("wrong.yaml", "profile: demo\nvalues: {global: {meshId: a}}");
    for (arguments, words) in [
        (vec!["-f", wrong.as_str()], vec!["values.global.meshId", "meshID"]),
        (vec!["--set", "profile=prod"], vec!["default, demo, minimal, production"]),
        (vec!["--set", "profile"], vec!["--set profile", "KEY=VALUE"]),
        (vec!["-f", "/nowhere.yaml"], vec!["/nowhere.yaml"]),
    ] {
        let output = weft(&[&["install", "--dry-run"], arguments.as_slice()].concat());
        assert!(!output.status.success() && output.stdout.is_empty());
        for word in words {
            assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
        }
    }
    let output = weft(&["install"]);
    assert!(
        !output.status.success() && stderr(&output).contains("weft install --dry-run | kubectl apply"),
        "{}",
        stderr(&output)
    );
}
