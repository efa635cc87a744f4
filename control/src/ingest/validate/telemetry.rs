//! Telemetry.

use xds_protos::format::FormatError;

use super::super::diagnostic::Findings;
use super::super::suggest::closest;
use super::annotations;
use super::authorization_policy::{selector, targets};
use crate::model::meta::Meta;
use crate::model::telemetry::{
    ProviderName, SAMPLING_ANNOTATION, TagOperation, Telemetry, Tracing, sampling as log_sampling,
};
use crate::model::tracing::{Share, SpanTags};

pub(in super::super) fn telemetry(spec: &Telemetry, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[SAMPLING_ANNOTATION]);
    let path = format!("metadata.annotations.{SAMPLING_ANNOTATION}");
    match log_sampling(meta) {
        None => {}
        Some(Err(reason)) => findings.error(path, reason, "write a percentage, such as 1 or 0.5"),
        Some(Ok(_)) if spec.access_logging.iter().all(|logging| logging.filter.is_none()) => findings.error(
            path,
            "there is no filter: everything is logged, or nothing",
            "give accessLogging a filter for what is always logged, such as response.code >= 500",
        ),
        Some(Ok(_)) => {}
    }
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
    tracing(findings, &spec.tracing);
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

fn tracing(findings: &mut Findings, all: &[Tracing]) {
    if all.len() > 1 {
        let reason = format!("has {} items, of which Istio takes none: one says it all", all.len());
        let help =
            "make one item of them: each dash begins one, and only the first field of an item has a dash";
        findings.error("spec.tracing", reason, help);
    }
    for (index, tracing) in all.iter().enumerate() {
        let path = format!("spec.tracing[{index}]");
        names(findings, &path, &tracing.providers);
        sampling(findings, &format!("{path}.randomSamplingPercentage"), tracing.random_sampling_percentage);
        span_tags(findings, &format!("{path}.customTags"), &tracing.custom_tags);
    }
}

/// A share of requests: a percentage, which some take for a fraction.
pub(super) fn sampling(findings: &mut Findings, path: &str, share: Option<Share>) {
    let Some(share) = share else { return };
    let percent = share.percent();
    if !share.fits() {
        findings.error(path, format!("{percent} is no percentage"), "write 0 to 100");
    } else if share.0 > 0 && percent <= 1.0 {
        let one_in = 100.0 / percent;
        let reason = format!("{percent} is {percent} %: of {one_in:.0} requests one is traced");
        findings.warn(path, reason, "write 100 for all requests; a fraction of 0.01 is 1 here");
    }
}

/// Tags of spans.
pub(super) fn span_tags(findings: &mut Findings, path: &str, tags: &SpanTags) {
    for (name, tag) in tags {
        let path = format!("{path}.{name}");
        let said = usize::from(tag.literal.is_some())
            + usize::from(tag.environment.is_some())
            + usize::from(tag.header.is_some())
            + usize::from(tag.formatter.is_some());
        let help = "give one of literal, environment, header and formatter";
        match said {
            0 => findings.error(&path, "says nothing of its value", help),
            1 => {}
            _ => findings.error(&path, "says several things of its value", help),
        }
        for (field, text) in [("literal", &tag.literal), ("formatter", &tag.formatter)] {
            if text.as_ref().is_some_and(|text| text.value.is_empty()) {
                findings.error(format!("{path}.{field}.value"), "missing", "write the value");
            }
        }
        if let Some(formatter) = tag.formatter.as_ref().filter(|formatter| !formatter.value.is_empty()) {
            let checked = xds_protos::format::check_early(&formatter.value);
            refused(findings, &format!("{path}.formatter.value"), checked);
        }
        for (field, named) in [("environment", &tag.environment), ("header", &tag.header)] {
            let Some(named) = named else { continue };
            let at = format!("{path}.{field}.name");
            if named.name.is_empty() {
                findings.error(at, "missing", "write the name");
            } else if field == "header" && http::HeaderName::from_bytes(named.name.as_bytes()).is_err() {
                let reason = format!("{:?} is no header field's name", named.name);
                findings.error(at, reason, "write a name such as x-user-id");
            }
        }
    }
}

/// A format string as a proxy compiles it.
pub(super) fn format(findings: &mut Findings, path: &str, text: &str) {
    refused(findings, path, xds_protos::format::check(text));
}

fn refused(findings: &mut Findings, path: &str, checked: Result<(), FormatError>) {
    if let Err(error) = checked {
        let near = match &error {
            FormatError::Unknown(name) => closest(name, xds_protos::format::commands()),
            _ => None,
        };
        let help = match near {
            Some(meant) => format!("did you mean %{meant}%?"),
            None => "write Envoy's command operators, such as %REQ(X-ID)% or %RESPONSE_CODE%; %% is a percent sign".to_owned(),
        };
        findings.error(path, error.to_string(), help);
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
