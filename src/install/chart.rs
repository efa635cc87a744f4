//! The chart's files.

use anyhow::Context;
use serde_json::{Value, json};

use super::template::Templates;

/// Everything of the chart that is rendered.
const TEMPLATES: [(&str, &str); 9] = [
    ("_helpers.tpl", include_str!("../../deploy/helm/weft/templates/_helpers.tpl")),
    ("configuration.yaml", include_str!("../../deploy/helm/weft/templates/configuration.yaml")),
    ("control-plane.yaml", include_str!("../../deploy/helm/weft/templates/control-plane.yaml")),
    ("gateways.yaml", include_str!("../../deploy/helm/weft/templates/gateways.yaml")),
    ("network-policies.yaml", include_str!("../../deploy/helm/weft/templates/network-policies.yaml")),
    ("rbac.yaml", include_str!("../../deploy/helm/weft/templates/rbac.yaml")),
    ("service-monitors.yaml", include_str!("../../deploy/helm/weft/templates/service-monitors.yaml")),
    ("webhooks.yaml", include_str!("../../deploy/helm/weft/templates/webhooks.yaml")),
    (NOTES, include_str!("../../deploy/helm/weft/templates/NOTES.txt")),
];
/// What templates read.
const FILES: [(&str, &str); 5] = [
    ("files/defaults.yaml", include_str!("../../deploy/helm/weft/files/defaults.yaml")),
    ("files/profiles/default.yaml", include_str!("../../deploy/helm/weft/files/profiles/default.yaml")),
    ("files/profiles/demo.yaml", include_str!("../../deploy/helm/weft/files/profiles/demo.yaml")),
    ("files/profiles/minimal.yaml", include_str!("../../deploy/helm/weft/files/profiles/minimal.yaml")),
    ("files/profiles/production.yaml", include_str!("../../deploy/helm/weft/files/profiles/production.yaml")),
];
/// Definitions of resources.
const DEFINITIONS: [(&str, &str); 4] = [
    ("networking.istio.io.yaml", include_str!("../../deploy/crds/networking.istio.io.yaml")),
    ("security.istio.io.yaml", include_str!("../../deploy/crds/security.istio.io.yaml")),
    ("telemetry.istio.io.yaml", include_str!("../../deploy/crds/telemetry.istio.io.yaml")),
    ("weft.dev.yaml", include_str!("../../deploy/crds/weft.dev.yaml")),
];
/// The chart's own values.
pub(super) const VALUES: &str = include_str!("../../deploy/helm/weft/values.yaml");
/// What may be set.
pub(super) const SCHEMA: &str = include_str!("../../deploy/helm/weft/values.schema.json");
/// What is said after an installation.
pub(super) const NOTES: &str = "NOTES.txt";

/// The templates whose text is objects.
pub(super) fn manifests() -> impl Iterator<Item = &'static str> {
    TEMPLATES.into_iter().map(|(name, _)| name).filter(|name| name.ends_with(".yaml"))
}

/// All templates and files.
pub(super) fn templates() -> anyhow::Result<Templates> {
    let mut templates = Templates::default();
    for (name, text) in TEMPLATES {
        templates.add(name, text)?;
    }
    for (name, text) in FILES {
        templates.add_file(name, text);
    }
    Ok(templates)
}

/// What templates see, as Helm has it.
pub(super) fn context(values: Value, namespace: &str, by: &str) -> anyhow::Result<Value> {
    let chart = include_str!("../../deploy/helm/weft/Chart.yaml");
    let chart =
        xds_protos::json::value_from_yaml_str(chart).map_err(|error| anyhow::anyhow!(error.message))?;
    let field =
        |name: &str| chart[name].as_str().map(str::to_owned).with_context(|| format!("Chart.yaml: {name}"));
    Ok(json!({
        "Values": values,
        "Release": {"Name": "weft", "Namespace": namespace, "Service": by},
        "Chart": {"Name": field("name")?, "Version": field("version")?, "AppVersion": field("appVersion")?},
    }))
}

/// The definitions of resources, as objects.
pub(super) fn definitions() -> anyhow::Result<Vec<Value>> {
    let mut all = Vec::new();
    for (name, text) in DEFINITIONS {
        all.extend(super::documents(text).context(name)?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the files in a directory of the repository.
    fn names(directory: &str) -> Vec<String> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(directory);
        let mut names: Vec<_> = std::fs::read_dir(path)
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().is_file())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn every_file_of_the_chart_is_in_the_program() {
        let of = |list: &[(&str, &str)]| {
            let mut names: Vec<_> =
                list.iter().map(|(name, _)| (*name).rsplit('/').next().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(of(&TEMPLATES), names("helm/weft/templates"));
        assert_eq!(of(&FILES[1..]), names("helm/weft/files/profiles"));
        assert_eq!(of(&DEFINITIONS), names("crds"));
    }

    #[test]
    fn the_chart_has_the_programs_version() {
        let context = context(json!({}), "n", "t").unwrap();
        assert_eq!(context["Chart"]["Version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(context["Chart"]["AppVersion"], env!("CARGO_PKG_VERSION"));
    }
}
