//! `/stats/prometheus`: the text exposition format, with Envoy's rules for names and tags.
//!
//! A dotted name loses its variable parts to labels (`cluster.NAME.upstream_rq_2xx` becomes
//! `envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="NAME"}`), dots and other foreign
//! characters become underscores. Names without a prefix are whole already, as Istio's are.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::LazyLock;

use super::snapshot::{Sample, Value};
use super::stats::Filter;
use crate::telemetry::registry::{BUCKETS, Labels};

/// How the labels of Envoy's statistics are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Tags {
    /// As Envoy by itself: `envoy_cluster_name`, `envoy_response_code_class="2"`.
    Envoy,
    /// As in a mesh of Istio, whose bootstrap has tags of its own: `cluster_name`, `response_code_class="2xx"`.
    #[default]
    Istio,
}

impl Tags {
    /// By Istio's name.
    fn name(self, of_istio: &'static str) -> &'static str {
        match (self, of_istio) {
            (Self::Istio, name) => name,
            (Self::Envoy, "cluster_name") => "envoy_cluster_name",
            (Self::Envoy, "tcp_prefix") => "envoy_tcp_prefix",
            (Self::Envoy, "listener_address") => "envoy_listener_address",
            (Self::Envoy, "response_code") => "envoy_response_code",
            (Self::Envoy, "response_code_class") => "envoy_response_code_class",
            (Self::Envoy, _) => "envoy_http_conn_manager_prefix",
        }
    }
}

/// The bounds of buckets as they are written.
static BOUNDS: LazyLock<Vec<String>> =
    LazyLock::new(|| BUCKETS.iter().map(f64::to_string).chain(std::iter::once("+Inf".to_owned())).collect());

/// The type of OpenMetrics.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether an `Accept` asks for version 1 of OpenMetrics.
pub fn wants_open_metrics(accept: &str) -> bool {
    accept.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let open = parts.next() == Some("application/openmetrics-text");
        let mut version = None;
        let mut refused = false;
        for part in parts {
            match part.split_once('=') {
                Some(("version", given)) => version = Some(given),
                Some(("q", weight)) => refused = weight.parse() == Ok(0.0),
                _ => {}
            }
        }
        open && !refused && version.is_none_or(|v| v == "1.0.0")
    })
}

/// The same in the format OpenMetrics. Lines are those of [`render`]: a counter whose name has no `_total` at its end, which a
/// counter must have there, is of unknown type.
pub fn render_open(samples: &[Sample], filter: &Filter, tags: Tags) -> String {
    let mut out = write(samples, filter, tags, true);
    out.push_str("# EOF\n");
    out
}

/// Renders what `filter` admits, grouped by name under one `# TYPE` line each.
pub fn render(samples: &[Sample], filter: &Filter, tags: Tags) -> String {
    write(samples, filter, tags, false)
}

/// The same in one of both formats, without OpenMetrics' end.
pub(super) fn write(samples: &[Sample], filter: &Filter, tags: Tags, open: bool) -> String {
    let mut found: Vec<(Cow<'_, str>, Rc<str>, &Sample)> = Vec::with_capacity(samples.len());
    // Metrics of one set of labels follow each other: the set is written out once.
    let mut last: Option<(&Labels, Rc<str>)> = None;
    for sample in samples.iter().filter(|s| filter.admits(s)) {
        if !sample.prefix.is_empty() {
            let (name, labels) = extract(sample, tags);
            let labels = written(labels.iter().map(|(name, value)| (*name, value.as_str())));
            found.push((name.into(), labels.into(), sample));
            continue;
        }
        let labels = match &last {
            Some((labels, text)) if labels.is(&sample.labels) => text.clone(),
            _ => {
                let text: Rc<str> =
                    written(sample.labels.iter().map(|(name, value)| (*name, &**value))).into();
                last = Some((&sample.labels, text.clone()));
                text
            }
        };
        found.push((sanitize(&sample.name), labels, sample));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    // There may be tens of megabytes, which are neither copied nor kept twice.
    let length = found.iter().map(|(name, labels, sample)| {
        let lines = if matches!(sample.value, Value::Histogram(..)) { BUCKETS.len() + 3 } else { 1 };
        lines * (name.len() + labels.len() + 32)
    });
    let mut out = String::with_capacity(length.sum());
    let is_another = |family: &str| found.binary_search_by(|(name, ..)| (**name).cmp(family)).is_ok();
    let mut family = "";
    for (name, labels, sample) in &found {
        if **name != *family {
            family = name;
            let kind = match sample.value {
                Value::Counter(_) => "counter",
                Value::Gauge(_) => "gauge",
                Value::Histogram(..) => "histogram",
            };
            // A family of counters is called without the end of its members' names, if no other is called so.
            let (family, kind) = match (open && kind == "counter", name.strip_suffix("_total")) {
                (true, Some(family)) if !is_another(family) => (family, kind),
                (true, _) => (&**name, "unknown"),
                (false, _) => (&**name, kind),
            };
            let _ = writeln!(out, "# TYPE {family} {kind}");
        }
        write_sample(&mut out, name, labels, &sample.value);
    }
    out
}

/// A line's name and labels, up to its value.
fn head(out: &mut String, name: &str, suffix: &str, labels: &str, bound: Option<&str>) {
    out.push_str(name);
    out.push_str(suffix);
    if labels.is_empty() && bound.is_none() {
        return;
    }
    out.push('{');
    out.push_str(labels);
    if let Some(bound) = bound {
        out.push_str(if labels.is_empty() { "le=\"" } else { ",le=\"" });
        out.push_str(bound);
        out.push('"');
    }
    out.push('}');
}

fn write_sample(out: &mut String, name: &str, labels: &str, value: &Value) {
    let mut line = |suffix: &str, bound: Option<&str>, value: &dyn std::fmt::Display| {
        head(out, name, suffix, labels, bound);
        let _ = writeln!(out, " {value}");
    };
    match value {
        Value::Counter(n) => line("", None, n),
        Value::Gauge(n) => line("", None, n),
        Value::Histogram(buckets, sum) => {
            let mut total = 0;
            for (count, bound) in buckets.iter().zip(&*BOUNDS) {
                total += count;
                line("_bucket", Some(bound), &total);
            }
            line("_sum", None, sum);
            line("_count", None, &total);
        }
    }
}

/// Labels as they stand between the braces.
fn written<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (name, value) in labels {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out
}

type Extracted = Vec<(&'static str, String)>;

/// The Prometheus name and labels of a sample of Envoy's vocabulary.
fn extract(sample: &Sample, tags: Tags) -> (String, Extracted) {
    let (name, labels) = dotted(sample, tags);
    (format!("envoy_{}", sanitize(&name)), labels)
}

/// The name without what is a label, with its dots.
pub(super) fn dotted(sample: &Sample, tags: Tags) -> (String, Extracted) {
    let mut labels: Extracted = sample.labels.iter().map(|(k, v)| (*k, v.to_string())).collect();
    let stem = prefix_tags(&sample.prefix, &mut labels, tags);
    let name = code_tags(&sample.name, &mut labels, tags);
    let name = tls_tags(&sample.prefix, name, &mut labels);
    (format!("{stem}.{name}"), labels)
}

/// Takes the variable part out of a group's prefix. Istio ends stat prefixes with `;` to mark where they end.
fn prefix_tags(prefix: &str, labels: &mut Extracted, tags: Tags) -> String {
    let tag = |labels: &mut Extracted, key: &'static str, value: &str| {
        labels.push((key, value.strip_suffix(';').unwrap_or(value).to_owned()));
    };
    if let Some(own) = prefix.strip_suffix(".http_local_rate_limit") {
        tag(labels, "envoy_local_http_ratelimit_prefix", own);
        return "http_local_rate_limit".to_owned();
    }
    let Some((kind, rest)) = prefix.split_once('.') else { return prefix.to_owned() };
    match kind {
        "cluster" => tag(labels, tags.name("cluster_name"), rest),
        "http" => tag(labels, tags.name("http_conn_manager_prefix"), rest),
        "tcp" => tag(labels, tags.name("tcp_prefix"), rest),
        "local_rate_limit" => tag(labels, "envoy_local_network_ratelimit_prefix", rest),
        "ratelimit" => tag(labels, "envoy_ratelimit_prefix", rest),
        "vhost" => {
            let parts = [(".vcluster.", "envoy_virtual_cluster"), (".route.", "envoy_route")];
            let split = |(mark, key): (&'static str, &'static str)| {
                rest.split_once(mark).map(|parts| (mark, key, parts))
            };
            let Some((mark, key, (host, inner))) = parts.into_iter().find_map(split) else {
                return prefix.to_owned();
            };
            tag(labels, key, inner);
            tag(labels, "envoy_virtual_host", host);
            return format!("vhost{}", mark.trim_end_matches('.'));
        }
        "listener" => match rest.split_once(".http.") {
            Some((address, manager)) => {
                tag(labels, tags.name("http_conn_manager_listener_prefix"), manager);
                tag(labels, tags.name("listener_address"), address);
                return "listener.http".to_owned();
            }
            None => tag(labels, tags.name("listener_address"), rest),
        },
        _ => return prefix.to_owned(),
    }
    kind.to_owned()
}

/// Takes a response code (`..._rq_200`) or its class (`..._rq_2xx`) out of a metric's name.
fn code_tags(name: &str, labels: &mut Extracted, tags: Tags) -> String {
    if let Some((stem, code)) = name.rsplit_once("_rq_") {
        let bytes = code.as_bytes();
        if let [class @ b'1'..=b'5', b'x', b'x'] = bytes {
            let (value, name) = match tags {
                Tags::Envoy => (char::from(*class).to_string(), format!("{stem}_rq_xx")),
                Tags::Istio => (code.to_owned(), format!("{stem}_rq")),
            };
            labels.insert(0, (tags.name("response_code_class"), value));
            return name;
        }
        if bytes.len() == 3 && bytes.iter().all(u8::is_ascii_digit) {
            labels.insert(0, (tags.name("response_code"), code.to_owned()));
            return format!("{stem}_rq");
        }
    }
    name.to_owned()
}

/// Takes what a handshake agreed on out of a metric's name. That of ciphers is called otherwise at a cluster, in Envoy.
fn tls_tags(prefix: &str, name: String, labels: &mut Extracted) -> String {
    let kinds = [
        ("ssl.ciphers.", if prefix.starts_with("cluster.") { "cipher_suite" } else { "envoy_ssl_cipher" }),
        ("ssl.curves.", "envoy_ssl_curve"),
        ("ssl.versions.", "envoy_ssl_version"),
    ];
    for (stem, key) in kinds {
        if let Some(value) = name.strip_prefix(stem) {
            labels.insert(0, (key, value.to_owned()));
            return stem.trim_end_matches('.').to_owned();
        }
    }
    name
}

fn sanitize(name: &str) -> Cow<'_, str> {
    let stays = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.chars().all(stays) {
        return name.into();
    }
    name.chars().map(|c| if stays(c) { c } else { '_' }).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(prefix: &str, name: &'static str, value: Value) -> Sample {
        Sample { prefix: prefix.into(), name: name.into(), labels: Labels::default(), value }
    }

    #[test]
    fn open_metrics_has_the_same_lines_and_an_end() {
        let samples = [
            sample("cluster.x", "upstream_rq_total", Value::Counter(4)),
            sample("cluster.x", "upstream_rq_2xx", Value::Counter(3)),
            sample("cluster.x", "membership_total", Value::Gauge(1)),
        ];
        let filter = Filter::default();
        let open = render_open(&samples, &filter, Tags::Envoy);
        let lines =
            |text: &str| text.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lines(&open), lines(&render(&samples, &filter, Tags::Envoy)));
        assert!(open.ends_with("\n# EOF\n"));
        for line in [
            "# TYPE envoy_cluster_upstream_rq counter\nenvoy_cluster_upstream_rq_total{",
            "# TYPE envoy_cluster_upstream_rq_xx unknown\nenvoy_cluster_upstream_rq_xx{",
            "# TYPE envoy_cluster_membership_total gauge\nenvoy_cluster_membership_total{",
        ] {
            assert!(open.contains(line), "{line}: {open}");
        }
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;q=0.3";
        assert!(wants_open_metrics(prometheus) && wants_open_metrics("application/openmetrics-text"));
        for other in [
            "text/plain",
            "*/*",
            "application/openmetrics-text; version=0.0.1",
            "application/openmetrics-text;q=0",
        ] {
            assert!(!wants_open_metrics(other), "{other}");
        }
    }

    #[test]
    fn variable_parts_become_labels() {
        let out = render(
            &[
                sample("cluster.outbound|80||a.b;", "upstream_rq_2xx", Value::Counter(4)),
                sample("cluster.x", "upstream_rq_503", Value::Counter(1)),
                sample("listener.0.0.0.0_80", "downstream_cx_active", Value::Gauge(2)),
                sample("http.in", "downstream_rq_total", Value::Counter(9)),
                sample("cluster.a.b", "health_check.attempt", Value::Counter(2)),
                sample("cluster.a.b", "ssl.ciphers.TLS_A", Value::Counter(3)),
                sample("listener.0.0.0.0_80", "ssl.versions.TLSv1.3", Value::Counter(5)),
                sample("vhost.a.b.vcluster.c", "upstream_rq_total", Value::Counter(6)),
                sample("x.y.http_local_rate_limit", "enabled", Value::Counter(7)),
            ],
            &Filter::default(),
            Tags::Envoy,
        );
        for line in [
            "# TYPE envoy_cluster_upstream_rq_xx counter",
            "envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"outbound|80||a.b\"} 4",
            "envoy_cluster_upstream_rq{envoy_response_code=\"503\",envoy_cluster_name=\"x\"} 1",
            "envoy_listener_downstream_cx_active{envoy_listener_address=\"0.0.0.0_80\"} 2",
            "envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix=\"in\"} 9",
            "envoy_cluster_health_check_attempt{envoy_cluster_name=\"a.b\"} 2",
            "envoy_cluster_ssl_ciphers{cipher_suite=\"TLS_A\",envoy_cluster_name=\"a.b\"} 3",
            "envoy_listener_ssl_versions{envoy_ssl_version=\"TLSv1.3\",envoy_listener_address=\"0.0.0.0_80\"} 5",
            "envoy_vhost_vcluster_upstream_rq_total{envoy_virtual_cluster=\"c\",envoy_virtual_host=\"a.b\"} 6",
            "envoy_http_local_rate_limit_enabled{envoy_local_http_ratelimit_prefix=\"x.y\"} 7",
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        }
    }

    #[test]
    fn in_a_mesh_the_labels_are_istios() {
        let samples = [
            sample("cluster.outbound|80||a.b;", "upstream_rq_2xx", Value::Counter(4)),
            sample("cluster.x", "upstream_rq_503", Value::Counter(1)),
            sample("http.inbound_0.0.0.0_80;", "downstream_rq_total", Value::Counter(9)),
            sample("listener.0.0.0.0_80", "downstream_cx_active", Value::Gauge(2)),
            sample("tcp.t", "downstream_cx_total", Value::Counter(3)),
        ];
        let out = render(&samples, &Filter::default(), Tags::Istio);
        for line in [
            "envoy_cluster_upstream_rq{response_code_class=\"2xx\",cluster_name=\"outbound|80||a.b\"} 4",
            "envoy_cluster_upstream_rq{response_code=\"503\",cluster_name=\"x\"} 1",
            "envoy_http_downstream_rq_total{http_conn_manager_prefix=\"inbound_0.0.0.0_80\"} 9",
            "envoy_listener_downstream_cx_active{listener_address=\"0.0.0.0_80\"} 2",
            "envoy_tcp_downstream_cx_total{tcp_prefix=\"t\"} 3",
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
        s.labels = vec![("reporter", "a\"b".to_owned())].into();
        let out = render(&[s], &Filter::default(), Tags::Envoy);
        assert!(
            out.contains("istio_request_duration_milliseconds_bucket{reporter=\"a\\\"b\",le=\"0.5\"} 1\n")
        );
        assert!(out.contains("le=\"+Inf\"} 3\n"), "{out}");
        assert!(out.contains("_sum{reporter=\"a\\\"b\"} 3.5\n"));
    }
}
