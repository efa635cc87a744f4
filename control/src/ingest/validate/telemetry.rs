//! Telemetry.

use super::super::diagnostic::Findings;
use super::annotations;
use super::authorization_policy::{selector, targets};
use crate::model::meta::Meta;
use crate::model::telemetry::{ProviderName, TagOperation, Telemetry};

pub(in super::super) fn telemetry(spec: &Telemetry, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[]);
    selector(findings, spec.selector.as_ref());
    targets(findings, &meta.namespace, spec.selector.is_some(), spec.target_ref.as_ref(), &spec.target_refs);
    for (index, logging) in spec.access_logging.iter().enumerate() {
        let path = format!("spec.accessLogging[{index}]");
        names(findings, &path, &logging.providers);
        if let Some(filter) = &logging.filter {
            let path = format!("{path}.filter.expression");
            match filter.expression.is_empty() {
                true => findings.error(
                    path,
                    "missing",
                    "write an expression in CEL, such as response.code >= 500",
                ),
                false => expression(findings, &path, &filter.expression),
            }
        }
    }
    for (index, metrics) in spec.metrics.iter().enumerate() {
        let path = format!("spec.metrics[{index}]");
        names(findings, &path, &metrics.providers);
        for (at, provider) in metrics.providers.iter().enumerate() {
            if !provider.name.is_empty() && provider.name != "prometheus" {
                let reason = format!("metrics go to prometheus alone, not to {:?}", provider.name);
                let help = "write prometheus; proxies give their metrics at /stats/prometheus";
                findings.error(format!("{path}.providers[{at}].name"), reason, help);
            }
        }
        if metrics.reporting_interval.is_some_and(|every| every.get().is_zero()) {
            let help = "write a duration such as 5s; without the field it is 5s";
            findings.error(format!("{path}.reportingInterval"), "is 0", help);
        }
        for (at, over) in metrics.overrides.iter().enumerate() {
            for (tag, change) in &over.tag_overrides {
                let path = format!("{path}.overrides[{at}].tagOverrides.{tag}");
                if !is_label(tag) {
                    let help = "labels are letters, digits and _, and do not begin with a digit";
                    findings.error(&path, format!("{tag:?} is no label of a metric"), help);
                }
                match change.operation {
                    TagOperation::Remove if !change.value.is_empty() => {
                        findings.error(
                            format!("{path}.value"),
                            "stands beside REMOVE",
                            "leave the value out, or set operation: UPSERT",
                        );
                    }
                    TagOperation::Remove => {}
                    TagOperation::Upsert => value(findings, &format!("{path}.value"), &change.value),
                }
            }
        }
    }
}

/// What a label is set to.
fn value(findings: &mut Findings, path: &str, text: &str) {
    if text.is_empty() {
        findings.error(path, "missing", "write an expression in CEL, or set operation: REMOVE");
    } else if let Some(inner) = text.strip_prefix("%{").and_then(|rest| rest.strip_suffix('}')) {
        // As some describe it who mean Envoy's format strings.
        let (name, default) =
            inner.split_once('|').map_or((inner, "'unknown'"), |(name, or)| (name.trim(), or.trim()));
        let help = match name {
            // Istio has these labels anyway, with unknown where they are not known.
            "DESTINATION_SERVICE_NAME" | "SOURCE_APP" => format!(
                "leave the label {} alone: it is there by default, unknown where it is not known",
                name.to_ascii_lowercase()
            ),
            _ => format!(
                "write it in CEL, as in 'x-name' in request.headers ? request.headers['x-name'] : {default}"
            ),
        };
        findings.error(path, format!("{text:?} is no expression in CEL"), help);
    } else {
        expression(findings, path, text);
    }
}

/// An expression as a proxy compiles it.
pub(super) fn expression(findings: &mut Findings, path: &str, text: &str) {
    let help = "write an expression in CEL, such as request.host, response.code >= 500 or 'constant'";
    if let Err(reason) = xds_protos::cel::compile(text) {
        findings.error(path, reason, help);
    }
}

pub(super) fn is_label(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn names(findings: &mut Findings, path: &str, providers: &[ProviderName]) {
    for (index, provider) in providers.iter().enumerate() {
        if provider.name.is_empty() {
            let help = "name one of MeshConfig's extensionProviders, envoy, or prometheus";
            findings.error(format!("{path}.providers[{index}].name"), "missing", help);
        }
    }
    if providers.len() > 1 && providers.windows(2).any(|pair| pair[0] == pair[1]) {
        findings.error(format!("{path}.providers"), "one is given twice", "remove one");
    }
}
