//! What active health checks found: a line in our own log, and JSON objects with the fields of Envoy's `HealthCheckEvent` in
//! the files that the check names.

use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::state::Reason;
use crate::cluster::host::Host;
use crate::telemetry::access_log::Sink;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Event {
    /// A host became unhealthy.
    Eject(Reason),
    /// A host became healthy; at its first check, or later.
    Add { first: bool },
    /// A check failed.
    Failure { reason: Reason, first: bool },
    /// A check succeeded.
    Success,
    /// A host became degraded.
    Degraded,
    /// A host is no longer degraded.
    NoLongerDegraded,
}

/// Writes one event.
pub(super) fn write(logs: &[Arc<Sink>], checker: &str, cluster: &str, host: &Host, event: Event) {
    let address = host.address();
    match event {
        Event::Eject(reason) => {
            tracing::info!(cluster, host = %address, reason = reason.name(), "health check failed, host is out");
        }
        Event::Add { first } => {
            tracing::info!(cluster, host = %address, first, "health check passed, host is in");
        }
        _ => tracing::debug!(cluster, host = %address, ?event, "health check"),
    }
    if logs.is_empty() {
        return;
    }
    let line = render(checker, cluster, host, event);
    for log in logs {
        log.append(|out| {
            let _ = writeln!(out, "{line}");
        });
    }
}

fn render(checker: &str, cluster: &str, host: &Host, event: Event) -> Value {
    let (key, inner) = match event {
        Event::Eject(reason) => ("eject_unhealthy_event", json!({ "failure_type": reason.name() })),
        Event::Add { first } => ("add_healthy_event", json!({ "first_check": first })),
        Event::Failure { reason, first } => {
            ("health_check_failure_event", json!({ "failure_type": reason.name(), "first_check": first }))
        }
        Event::Success => ("successful_health_check_event", json!({})),
        Event::Degraded => ("degraded_healthy_host", json!({})),
        Event::NoLongerDegraded => ("no_longer_degraded_host", json!({})),
    };
    let facts = host.facts();
    let address = match host.address().ip() {
        Some(ip) => json!({ "socket_address": {
            "protocol": "TCP", "address": ip.ip().to_string(), "port_value": ip.port(),
            "resolver_name": "", "ipv4_compat": false,
        } }),
        None => json!({ "pipe": { "path": host.address().to_string(), "mode": 0 } }),
    };
    let mut line = json!({
        "health_checker_type": checker,
        "host": address,
        "cluster_name": cluster,
        "timestamp": OffsetDateTime::from(SystemTime::now()).format(&Rfc3339).unwrap_or_default(),
        "locality": {
            "region": facts.locality.region, "zone": facts.locality.zone, "sub_zone": facts.locality.sub_zone,
        },
    });
    line[key] = inner;
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::endpoint::Endpoint;
    use crate::cluster::host::Facts;

    #[test]
    fn an_event_has_envoys_fields() {
        let facts =
            Facts { locality: Arc::default(), metadata: None, transport: 0, check: Default::default() };
        let host = Host::new(&Endpoint::new(std::net::SocketAddr::from(([127, 0, 0, 1], 80))), 0, facts);
        let line = render("HTTP", "c", &host, Event::Eject(Reason::NetworkTimeout));
        assert_eq!(line["eject_unhealthy_event"], json!({ "failure_type": "NETWORK_TIMEOUT" }));
        assert_eq!(line["host"]["socket_address"]["port_value"], 80);
        assert_eq!((&line["health_checker_type"], &line["cluster_name"]), (&json!("HTTP"), &json!("c")));
        let line = render("GRPC", "c", &host, Event::Add { first: true });
        assert_eq!(line["add_healthy_event"], json!({ "first_check": true }));
    }
}
