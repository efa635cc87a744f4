//! What outlier detection did: a line in our own log, and, if the bootstrap names a file for it
//! (`cluster_manager.outlier_detection.event_log_path`), a JSON object a line with the fields of Envoy's
//! `OutlierDetectionEvent`.

use std::io::Write;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft_events::{Event, Outcome, Severity, emit};

use super::{Kind, Record};
use crate::telemetry::access_log::Sink;

static LOG: OnceLock<Arc<Sink>> = OnceLock::new();

/// Writes events to this log from now on; said once, at the start.
pub fn log_to(sink: Arc<Sink>) {
    let _ = LOG.set(sink);
}

/// The rates that a decision was made by: the host's, the cluster's average, and the threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) host: f64,
    pub(super) average: f64,
    pub(super) threshold: f64,
}

/// A host was detected, and ejected if that was `enforced`.
pub(super) fn eject(cluster: &str, record: &Record, kind: Kind, rates: Rates, enforced: bool, now: Instant) {
    let host = record.host.address();
    if enforced {
        let ejections = record.ejections;
        tracing::info!(cluster, %host, kind = kind.name(), ejections, "host ejected");
        emit(weft_events::Kind::Ejection, || {
            let words = format!("{host} was ejected from {cluster}");
            told(cluster, record, Outcome::Failed, words)
                .with("reason", kind.name())
                .with("ejections", ejections)
        });
    } else {
        tracing::debug!(cluster, %host, kind = kind.name(), "host would be ejected, but that is not enforced");
    }
    write(|| ejection(cluster, record, kind, rates, enforced, now));
}

/// A host returned.
pub(super) fn uneject(cluster: &str, record: &Record, now: Instant) {
    let host = record.host.address();
    tracing::info!(cluster, %host, ejections = record.ejections, "ejected host returns");
    emit(weft_events::Kind::Ejection, || {
        told(cluster, record, Outcome::Ok, format!("{host} returns to {cluster}"))
    });
    write(|| common(cluster, record, Kind::Consecutive5xx, "UNEJECT", false, record.ejected, now));
}

fn told(cluster: &str, record: &Record, outcome: Outcome, words: String) -> Event {
    Event::new(weft_events::Kind::Ejection, outcome, Severity::Low, "outlier-detection", words)
        .with("cluster", cluster)
        .with("host", record.host.address().to_string())
}

fn write(event: impl FnOnce() -> Value) {
    if let Some(log) = LOG.get() {
        let event = event();
        log.append(|line| {
            let _ = writeln!(line, "{event}");
        });
    }
}

fn ejection(cluster: &str, record: &Record, kind: Kind, rates: Rates, enforced: bool, now: Instant) -> Value {
    let mut event = common(cluster, record, kind, "EJECT", enforced, record.returned, now);
    let (key, inner) = match kind {
        Kind::SuccessRate | Kind::SuccessRateLocal => (
            "eject_success_rate_event",
            json!({
                "host_success_rate": rates.host as u32,
                "cluster_average_success_rate": rates.average as u32,
                "cluster_success_rate_ejection_threshold": rates.threshold as u32,
            }),
        ),
        Kind::FailurePercentage | Kind::FailurePercentageLocal => {
            ("eject_failure_percentage_event", json!({ "host_success_rate": rates.host as u32 }))
        }
        Kind::Consecutive5xx | Kind::ConsecutiveGateway | Kind::ConsecutiveLocal => {
            ("eject_consecutive_event", json!({}))
        }
    };
    event[key] = inner;
    event
}

fn common(
    cluster: &str,
    record: &Record,
    kind: Kind,
    action: &str,
    enforced: bool,
    last: Option<Instant>,
    now: Instant,
) -> Value {
    let mut event = json!({
        "type": kind.name(),
        "timestamp": OffsetDateTime::from(SystemTime::now()).format(&Rfc3339).unwrap_or_default(),
        "cluster_name": cluster,
        "upstream_url": record.host.address().to_string(),
        "action": action,
        "num_ejections": record.ejections,
        "enforced": enforced,
    });
    if let Some(last) = last {
        let seconds = now.saturating_duration_since(last).as_secs();
        event["secs_since_last_action"] = Value::String(seconds.to_string());
    }
    event
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::hosts;
    use super::*;

    #[test]
    fn an_event_has_envoys_fields() {
        let now = Instant::now();
        let mut record = Record::new(hosts(1)[0].clone());
        record.ejections = 2;
        record.returned = Some(now - Duration::from_secs(7));
        let rates = Rates { host: 40.4, average: 90.0, threshold: 52.9 };
        let mut event = ejection("c", &record, Kind::SuccessRate, rates, true, now);
        assert!(event["timestamp"].as_str().unwrap().ends_with('Z'));
        event["timestamp"] = Value::Null;
        let expected = json!({
            "type": "SUCCESS_RATE", "timestamp": null, "secs_since_last_action": "7", "cluster_name": "c",
            "upstream_url": "127.0.0.1:1", "action": "EJECT", "num_ejections": 2, "enforced": true,
            "eject_success_rate_event": {
                "host_success_rate": 40, "cluster_average_success_rate": 90,
                "cluster_success_rate_ejection_threshold": 52
            }
        });
        assert_eq!(event, expected);
        let event = ejection("c", &record, Kind::ConsecutiveGateway, Rates::default(), false, now);
        assert_eq!(event["type"], "CONSECUTIVE_GATEWAY_FAILURE");
        assert_eq!((&event["enforced"], &event["eject_consecutive_event"]), (&json!(false), &json!({})));
    }
}
