//! MetricDefinition.

use http::HeaderName;

use super::super::diagnostic::Findings;
use super::authorization_policy::selector;
use super::telemetry::{expression, is_label};
use super::{annotations, period_or_zero};
use crate::model::meta::{Meta, Object};
use crate::model::metric_definition::{Dimension, LARGEST_BOUND, MetricDefinition};

/// Words of headers that mostly say who somebody is.
const PERSONAL: [&str; 7] = ["user", "email", "mail", "phone", "session", "token", "authorization"];

pub(in super::super) fn metric_definition(spec: &MetricDefinition, meta: &Meta, findings: &mut Findings) {
    annotations(findings, meta, &[]);
    selector(findings, spec.selector.as_ref());
    let name = MetricDefinition::name(&Object { meta: meta.clone(), spec: spec.clone() });
    let path = if spec.metric.is_empty() { "metadata.name" } else { "spec.metric" };
    if !is_label(&name) {
        let help = "names of metrics are letters, digits and _, and do not begin with a digit: give one as spec.metric";
        findings.error(path, format!("{name:?} is no name of a metric"), help);
    }
    if ["istio_", "envoy_", "weft_", "pilot_"].iter().any(|taken| name.starts_with(taken)) {
        let help = "give it a prefix of your own";
        findings.error(path, format!("{name:?} looks like a metric of the mesh's own"), help);
    }
    if !spec.value.is_empty() {
        expression(findings, "spec.value", &spec.value);
    }
    for (label, dimension) in &spec.dimensions {
        self::dimension(findings, label, dimension);
    }
    if let Some(most) = spec.max_series
        && !(1..=LARGEST_BOUND).contains(&most)
    {
        let help = format!("give 1 to {LARGEST_BOUND}");
        findings.error("spec.maxSeries", format!("{most} series are none, or too many"), help);
    }
    period_or_zero(findings, "spec.idleTimeout", spec.idle_timeout);
    findings.note("spec", "proxies of Weft count it; an Envoy in the place of one does not", "");
}

fn dimension(findings: &mut Findings, label: &str, dimension: &Dimension) {
    let path = format!("spec.dimensions.{label}");
    if !is_label(label) || ["le", "overflow"].contains(&label) {
        let help = "labels are letters, digits and _, do not begin with a digit, and are not le or overflow";
        findings.error(&path, format!("{label:?} is no label of a metric"), help);
    }
    match (dimension.header.as_str(), dimension.expression.as_str()) {
        ("", "") => findings.error(&path, "comes from nowhere", "give header or expression"),
        ("", text) => expression(findings, &format!("{path}.expression"), text),
        (header, "") => {
            if header.starts_with(':') || HeaderName::try_from(header).is_err() {
                let help = "name a header field; path, method and others are expressions, as in request.path";
                findings.error(format!("{path}.header"), format!("{header:?} is no header field"), help);
            }
            expression(findings, &format!("{path}.header"), &dimension.expression());
            let lower = header.to_ascii_lowercase();
            let words = lower.split(['-', '_']);
            if !(dimension.hash || dimension.personal)
                && words.into_iter().any(|word| PERSONAL.contains(&word))
            {
                let reason =
                    format!("{header:?} may say who somebody is, and whoever reads metrics would read it");
                let help =
                    "set hash: true, so that a digest stands in its place, or personal: true if it is meant";
                findings.error(&path, reason, help);
            }
        }
        _ => findings.error(&path, "has a header and an expression", "keep one of both"),
    }
}
