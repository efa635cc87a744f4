//! `/stats/prometheus`: the text exposition format, with Envoy's rules for names and tags.
//!
//! A dotted name loses its variable parts to labels (`cluster.NAME.upstream_rq_2xx` becomes
//! `envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="NAME"}`), dots and other foreign
//! characters become underscores. Names without a prefix are whole already, as Istio's are.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::snapshot::{Sample, Value};
use super::stats::Filter;
use crate::telemetry::registry::BUCKETS;

type Labels = Vec<(String, String)>;

/// Renders what `filter` admits, grouped by name under one `# TYPE` line each.
pub fn render(samples: &[Sample], filter: &Filter) -> String {
    let mut families: BTreeMap<String, (&'static str, String)> = BTreeMap::new();
    for sample in samples.iter().filter(|s| filter.admits(&s.full_name(), s)) {
        let (name, labels) = extract(sample);
        let kind = match sample.value {
            Value::Counter(_) => "counter",
            Value::Gauge(_) => "gauge",
            Value::Histogram(..) => "histogram",
        };
        let family = families.entry(name.clone()).or_insert_with(|| (kind, String::new()));
        write_sample(&mut family.1, &name, &labels, &sample.value);
    }
    let mut out = String::new();
    for (name, (kind, lines)) in families {
        let _ = writeln!(out, "# TYPE {name} {kind}");
        out.push_str(&lines);
    }
    out
}

fn write_sample(out: &mut String, name: &str, labels: &Labels, value: &Value) {
    let _ = match value {
        Value::Counter(n) => writeln!(out, "{name}{} {n}", braces(labels, None)),
        Value::Gauge(n) => writeln!(out, "{name}{} {n}", braces(labels, None)),
        Value::Histogram(buckets, sum) => {
            let mut total = 0;
            for (i, count) in buckets.iter().enumerate() {
                total += count;
                let bound = BUCKETS.get(i).map_or("+Inf".to_owned(), f64::to_string);
                let _ = writeln!(out, "{name}_bucket{} {total}", braces(labels, Some(&bound)));
            }
            let _ = writeln!(out, "{name}_sum{} {sum}", braces(labels, None));
            writeln!(out, "{name}_count{} {total}", braces(labels, None))
        }
    };
}

fn braces(labels: &Labels, le: Option<&str>) -> String {
    let pairs = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).chain(le.map(|v| ("le", v)));
    let text: Vec<_> = pairs.map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect();
    if text.is_empty() { String::new() } else { format!("{{{}}}", text.join(",")) }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The Prometheus name and labels of a sample.
fn extract(sample: &Sample) -> (String, Labels) {
    let mut labels: Labels = sample.labels.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    if sample.prefix.is_empty() {
        return (sanitize(&sample.name), labels);
    }
    let stem = prefix_tags(&sample.prefix, &mut labels);
    let name = code_tags(&sample.name, &mut labels);
    (format!("envoy_{}", sanitize(&format!("{stem}.{name}"))), labels)
}

/// Takes the variable part out of a group's prefix. Istio ends stat prefixes with `;` to mark where they end.
fn prefix_tags(prefix: &str, labels: &mut Labels) -> String {
    let tag = |labels: &mut Labels, key: &str, value: &str| {
        labels.push((key.to_owned(), value.strip_suffix(';').unwrap_or(value).to_owned()));
    };
    let Some((kind, rest)) = prefix.split_once('.') else { return prefix.to_owned() };
    match kind {
        "cluster" => {
            tag(labels, "envoy_cluster_name", rest);
            "cluster".to_owned()
        }
        "http" => {
            tag(labels, "envoy_http_conn_manager_prefix", rest);
            "http".to_owned()
        }
        "tcp" => {
            tag(labels, "envoy_tcp_prefix", rest);
            "tcp".to_owned()
        }
        "listener" => match rest.split_once(".http.") {
            Some((address, manager)) => {
                tag(labels, "envoy_http_conn_manager_prefix", manager);
                tag(labels, "envoy_listener_address", address);
                "listener.http".to_owned()
            }
            None => {
                tag(labels, "envoy_listener_address", rest);
                "listener".to_owned()
            }
        },
        _ => prefix.to_owned(),
    }
}

/// Takes a response code (`..._rq_200`) or its class (`..._rq_2xx`) out of a metric's name.
fn code_tags(name: &str, labels: &mut Labels) -> String {
    if let Some((stem, code)) = name.rsplit_once("_rq_") {
        let bytes = code.as_bytes();
        if let [class @ b'1'..=b'5', b'x', b'x'] = bytes {
            labels.insert(0, ("envoy_response_code_class".into(), char::from(*class).to_string()));
            return format!("{stem}_rq_xx");
        }
        if bytes.len() == 3 && bytes.iter().all(u8::is_ascii_digit) {
            labels.insert(0, ("envoy_response_code".into(), code.to_owned()));
            return format!("{stem}_rq");
        }
    }
    name.to_owned()
}

fn sanitize(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(prefix: &str, name: &'static str, value: Value) -> Sample {
        Sample { prefix: prefix.into(), name: name.into(), labels: vec![], value }
    }

    #[test]
    fn variable_parts_become_labels() {
        let out = render(
            &[
                sample("cluster.outbound|80||a.b;", "upstream_rq_2xx", Value::Counter(4)),
                sample("cluster.x", "upstream_rq_503", Value::Counter(1)),
                sample("listener.0.0.0.0_80", "downstream_cx_active", Value::Gauge(2)),
                sample("http.in", "downstream_rq_total", Value::Counter(9)),
            ],
            &Filter::default(),
        );
        for line in [
            "# TYPE envoy_cluster_upstream_rq_xx counter",
            "envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"outbound|80||a.b\"} 4",
            "envoy_cluster_upstream_rq{envoy_response_code=\"503\",envoy_cluster_name=\"x\"} 1",
            "envoy_listener_downstream_cx_active{envoy_listener_address=\"0.0.0.0_80\"} 2",
            "envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix=\"in\"} 9",
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        }
    }

    #[test]
    fn a_whole_name_stays_and_histograms_are_cumulative() {
        let mut buckets = Box::new([0; BUCKETS.len() + 1]);
        buckets[0] = 1;
        buckets[BUCKETS.len()] = 2;
        let mut s = sample("", "istio_request_duration_milliseconds", Value::Histogram(buckets, 3.5));
        s.labels.push(("reporter", "a\"b".into()));
        let out = render(&[s], &Filter::default());
        assert!(
            out.contains("istio_request_duration_milliseconds_bucket{reporter=\"a\\\"b\",le=\"0.5\"} 1\n")
        );
        assert!(out.contains("le=\"+Inf\"} 3\n"), "{out}");
        assert!(out.contains("_sum{reporter=\"a\\\"b\"} 3.5\n"));
    }
}
