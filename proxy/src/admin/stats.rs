//! `/stats`: text and JSON.

use std::fmt::Write as _;

use regex::Regex;
use serde_json::json;

use super::snapshot::{Sample, Value, quantile};

/// The quantiles that Envoy prints of a histogram.
const QUANTILES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0];

/// What `/stats` was asked for.
#[derive(Debug, Default)]
pub struct Filter {
    /// Only names in which this matches anywhere.
    pub regex: Option<Regex>,
    /// Only metrics that ever counted.
    pub used_only: bool,
    /// Only counters, gauges or histograms, by Envoy's `type` parameter.
    pub kind: Option<String>,
}

impl Filter {
    /// Whether a metric is asked for.
    pub fn admits(&self, sample: &Sample) -> bool {
        let kind = matches!(
            (self.kind.as_deref(), &sample.value),
            (None | Some("All"), _)
                | (Some("Counters"), Value::Counter(_))
                | (Some("Gauges"), Value::Gauge(_))
                | (Some("Histograms"), Value::Histogram(..))
        );
        kind && (!self.used_only || sample.used())
            && self.regex.as_ref().is_none_or(|r| r.is_match(&sample.full_name()))
    }
}

fn selected(samples: &[Sample], filter: &Filter) -> Vec<(String, Value)> {
    let mut out: Vec<_> =
        samples.iter().filter(|s| filter.admits(s)).map(|s| (s.full_name(), s.value.clone())).collect();
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out
}

/// One `name: value` a line, counters and gauges first, then histograms, each sorted by name.
pub fn text(samples: &[Sample], filter: &Filter) -> String {
    let mut plain = String::new();
    let mut histograms = String::new();
    for (name, value) in selected(samples, filter) {
        let _ = match value {
            Value::Counter(n) => writeln!(plain, "{name}: {n}"),
            Value::Gauge(n) => writeln!(plain, "{name}: {n}"),
            Value::Histogram(buckets, _) => {
                let values: Vec<_> = QUANTILES
                    .iter()
                    .filter_map(|q| {
                        Some(format!("P{}(nan,{})", q * 100.0, round(quantile(&buckets[..], *q)?)))
                    })
                    .collect();
                let values =
                    if values.is_empty() { "No recorded values".to_owned() } else { values.join(" ") };
                writeln!(histograms, "{name}: {values}")
            }
        };
    }
    plain + &histograms
}

/// Envoy's JSON: `{"stats":[{"name","value"}..., {"histograms": {...}}]}`.
pub fn json(samples: &[Sample], filter: &Filter) -> serde_json::Value {
    let mut stats = Vec::new();
    let mut histograms = Vec::new();
    for (name, value) in selected(samples, filter) {
        match value {
            Value::Counter(n) => stats.push(json!({"name": name, "value": n})),
            Value::Gauge(n) => stats.push(json!({"name": name, "value": n})),
            Value::Histogram(buckets, _) => {
                let values: Vec<_> = QUANTILES
                    .iter()
                    .map(|q| json!({"interval": null, "cumulative": quantile(&buckets[..], *q).map(round)}))
                    .collect();
                histograms.push(json!({"name": name, "values": values}));
            }
        }
    }
    if !histograms.is_empty() {
        let quantiles: Vec<_> = QUANTILES.iter().map(|q| q * 100.0).collect();
        stats.push(json!({"histograms": {
            "supported_quantiles": quantiles,
            "computed_quantiles": histograms,
        }}));
    }
    json!({ "stats": stats })
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::registry::{BUCKETS, Labels};

    fn samples() -> Vec<Sample> {
        let mut buckets = Box::new([0; BUCKETS.len() + 1]);
        buckets[3] = 100; // (5, 10]
        vec![
            Sample {
                prefix: "cluster.b".into(),
                name: "x".into(),
                labels: Labels::default(),
                value: Value::Counter(3),
            },
            Sample {
                prefix: "cluster.a".into(),
                name: "y".into(),
                labels: Labels::default(),
                value: Value::Gauge(-2),
            },
            Sample {
                prefix: "cluster.a".into(),
                name: "t".into(),
                labels: Labels::default(),
                value: Value::Histogram(buckets, 700.0),
            },
        ]
    }

    #[test]
    fn text_is_sorted_and_filtered() {
        let all = text(&samples(), &Filter::default());
        let head = "cluster.a.y: -2\ncluster.b.x: 3\ncluster.a.t: P0(nan,5) P25(nan,6.25)";
        assert!(all.starts_with(head), "{all}");
        let filter = Filter { regex: Some(Regex::new("b\\.").unwrap()), ..Filter::default() };
        assert_eq!(text(&samples(), &filter), "cluster.b.x: 3\n");
        let filter = Filter { kind: Some("Gauges".into()), ..Filter::default() };
        assert_eq!(text(&samples(), &filter), "cluster.a.y: -2\n");
    }

    #[test]
    fn json_has_envoys_shape() {
        let doc = json(&samples(), &Filter::default());
        assert_eq!(doc["stats"][0], json!({"name": "cluster.a.y", "value": -2}));
        let computed = &doc["stats"][2]["histograms"]["computed_quantiles"][0];
        assert_eq!(computed["values"][2]["cumulative"], 7.5);
    }
}
