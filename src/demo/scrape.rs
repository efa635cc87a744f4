//! What one proxy says of itself: `/stats/prometheus` and `/certs`.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft_control::serve::canary::labelled;

use crate::client::get;
use crate::up::Workload;

const LIMIT: Duration = Duration::from_secs(2);

/// Counts since the proxy began, of requests that it took in (a gateway: that it sent on).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) requests: f64,
    /// Answered with a status below 500.
    pub(super) good: f64,
    /// Came by mutual TLS.
    pub(super) mutual: f64,
    /// Durations: upper bound in milliseconds, and how many took at most so long.
    pub(super) buckets: Vec<(f64, f64)>,
    /// When the proxy's certificate was issued.
    pub(super) issued: Option<OffsetDateTime>,
}

/// Asks a proxy.
pub(super) async fn sample(workload: &Workload) -> anyhow::Result<Sample> {
    let statistics = get(workload.prometheus(), "/stats/prometheus", LIMIT).await?;
    let mut sample = parse(&statistics.text(), if workload.gateway { "source" } else { "destination" });
    let certificates = get(workload.admin(), "/certs", LIMIT).await?;
    sample.issued = issued(&certificates.body);
    Ok(sample)
}

fn issued(body: &[u8]) -> Option<OffsetDateTime> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let from = value.pointer("/certificates/0/cert_chain/0/valid_from")?.as_str()?;
    OffsetDateTime::parse(from, &Rfc3339).ok()
}

/// Adds up Istio's request metrics over all peers and answers.
fn parse(text: &str, reporter: &str) -> Sample {
    let mut sample = Sample::default();
    for line in text.lines().filter(|l| l.starts_with("istio_request")) {
        let Some((name, labels, value)) = labelled(line) else { continue };
        let label = |key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v).unwrap_or_default();
        if label("reporter") != reporter {
            continue;
        }
        match name {
            "istio_requests_total" => {
                sample.requests += value;
                // 0: no answer was sent.
                let code: u16 = label("response_code").parse().unwrap_or_default();
                if (1..500).contains(&code) {
                    sample.good += value;
                }
                if label("connection_security_policy") == "mutual_tls" {
                    sample.mutual += value;
                }
            }
            "istio_request_duration_milliseconds_bucket" => {
                let bound = match label("le") {
                    "+Inf" => f64::INFINITY,
                    le => le.parse().unwrap_or(f64::INFINITY),
                };
                match sample.buckets.iter_mut().find(|(b, _)| *b == bound) {
                    Some((_, count)) => *count += value,
                    None => sample.buckets.push((bound, value)),
                }
            }
            _ => {}
        }
    }
    sample.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_durations_are_added_up_for_one_reporter() {
        let text = r#"# TYPE istio_requests_total counter
istio_requests_total{reporter="destination",source_app="a\"},b",response_code="200",connection_security_policy="mutual_tls"} 7
istio_requests_total{reporter="destination",source_app="c",response_code="503",connection_security_policy="none"} 2
istio_requests_total{reporter="destination",source_app="d",response_code="0",connection_security_policy="mutual_tls"} 1
istio_requests_total{reporter="source",response_code="200",connection_security_policy="unknown"} 100
istio_request_duration_milliseconds_bucket{reporter="destination",source_app="a",le="5"} 3
istio_request_duration_milliseconds_bucket{reporter="destination",source_app="a",le="+Inf"} 7
istio_request_duration_milliseconds_bucket{reporter="destination",source_app="c",le="5"} 1
istio_request_duration_milliseconds_bucket{reporter="destination",source_app="c",le="+Inf"} 2
istio_request_duration_milliseconds_sum{reporter="destination"} 12.5
"#;
        let sample = parse(text, "destination");
        assert_eq!((sample.requests, sample.good, sample.mutual), (10.0, 7.0, 8.0));
        assert_eq!(sample.buckets, [(5.0, 4.0), (f64::INFINITY, 9.0)]);
        assert_eq!(parse(text, "source").requests, 100.0);
    }

    #[test]
    fn the_leafs_beginning_is_the_certificates_age() {
        let body = br#"{"certificates": [{"cert_chain": [{"valid_from": "2026-01-01T00:00:00Z"}, {"valid_from": "2020-01-01T00:00:00Z"}]}]}"#;
        assert_eq!(issued(body).map(|t| t.year()), Some(2026));
        assert_eq!(issued(br#"{"certificates": []}"#), None);
    }
}
