//! An event in the form of the Open Cybersecurity Schema Framework (schema.ocsf.io), version [`VERSION`].
//!
//! | Events | Class |
//! |---|---|
//! | a request denied | HTTP Activity (4002) |
//! | a connection denied, a handshake that failed | Network Activity (4001) |
//! | a certificate | Entity Management (3004) |
//! | refused configuration, administration | API Activity (6003) |
//! | a quarantine | Remediation Activity (7001) |
//! | the sum of what was not told | Base Event (0) |
//!
//! What has no place in a class stands under `unmapped`, by the names of Weft's own form. The trace id is `metadata.correlation_uid`.

use serde_json::{Map, Value, json};

use crate::{Event, Kind, Origin, Outcome, Severity};

/// The schema's version.
pub const VERSION: &str = "1.5.0";

/// Where each field of ours has gone, so that the rest is known.
const MAPPED: [&str; 15] = [
    "trace_id",
    "source_address",
    "source_principal",
    "destination_address",
    "destination_principal",
    "method",
    "path",
    "authority",
    "status",
    "policy",
    "request_id",
    "actor",
    "operation",
    "command_id",
    "serial",
];

/// The event as an object of its class.
pub fn to_json(event: &Event, origin: &Origin) -> Value {
    let mut line = Map::new();
    let (class, activity) = class(event);
    let category = class / 1000;
    let failed = event.outcome != Outcome::Ok;
    line.insert("category_uid".into(), category.into());
    line.insert("class_uid".into(), class.into());
    line.insert("activity_id".into(), activity.into());
    line.insert("type_uid".into(), (class * 100 + activity).into());
    line.insert("time".into(), ((event.time.unix_timestamp_nanos() / 1_000_000) as i64).into());
    line.insert("severity_id".into(), severity(event.severity).into());
    line.insert("status_id".into(), if failed { 2 } else { 1 }.into());
    line.insert("status".into(), if failed { "Failure" } else { "Success" }.into());
    line.insert("message".into(), event.message.clone().into());
    let mut metadata = json!({
        "version": VERSION,
        "product": {"name": "Weft", "vendor_name": "Weft", "version": env!("CARGO_PKG_VERSION"), "feature": {"name": origin.component}},
        "event_code": event.kind.name(),
        "log_name": "security",
        "labels": [format!("namespace:{}", origin.namespace), format!("workload:{}", origin.workload)],
    });
    if let Some(trace) = event.text("trace_id") {
        metadata["correlation_uid"] = trace.into();
    }
    match event.kind {
        Kind::Denied | Kind::HandshakeFailed => {
            metadata["profiles"] = json!(["security_control"]);
            network(event, origin, &mut line);
            if class == 4002 {
                http(event, &mut line);
            }
        }
        Kind::Certificate => {
            let name = event.text("subject").unwrap_or(&origin.workload);
            let mut entity = json!({"name": name, "type": "certificate"});
            if let Some(serial) = event.text("serial") {
                entity["uid"] = serial.into();
            }
            line.insert("entity".into(), entity);
            // The class knows no failure but by its status.
            line.insert("actor".into(), actor(event, origin));
        }
        Kind::ConfigRejected | Kind::Admin => api(event, origin, &mut line),
        Kind::Quarantine => {
            let command = event.text("command_id").or(event.text("target")).unwrap_or("quarantine");
            line.insert("command_uid".into(), command.into());
        }
        Kind::Ejection | Kind::Breaker | Kind::Canary | Kind::Suppressed => {}
    }
    line.insert("metadata".into(), metadata);
    let Value::Object(flat) = event.to_json(origin) else { return Value::Object(line) };
    let known = ["time", "event", "outcome", "severity", "component", "namespace", "workload", "message"];
    let rest: Map<String, Value> = flat
        .into_iter()
        .filter(|(name, _)| !known.contains(&name.as_str()) && !MAPPED.contains(&name.as_str()))
        .collect();
    line.insert("unmapped".into(), rest.into());
    Value::Object(line)
}

/// The class and the activity in it.
fn class(event: &Event) -> (u64, u64) {
    match event.kind {
        Kind::Denied => match event.text("method") {
            Some(method) => (4002, verb(method)),
            // Refuse.
            None => (4001, 5),
        },
        // Fail.
        Kind::HandshakeFailed => (4001, 4),
        // Create where one is issued to somebody, else update.
        Kind::Certificate => (3004, if event.by == "authority" { 1 } else { 3 }),
        // Update.
        Kind::ConfigRejected | Kind::Admin => (6003, 3),
        // Isolate, restore.
        Kind::Quarantine => (7001, if event.text("operation") == Some("release") { 3 } else { 1 }),
        // Other.
        Kind::Ejection | Kind::Breaker | Kind::Canary | Kind::Suppressed => (0, 99),
    }
}

/// A method's number in HTTP Activity.
fn verb(method: &str) -> u64 {
    match method {
        "CONNECT" => 1,
        "DELETE" => 2,
        "GET" => 3,
        "HEAD" => 4,
        "OPTIONS" => 5,
        "POST" => 6,
        "PUT" => 7,
        "TRACE" => 8,
        "PATCH" => 9,
        _ => 99,
    }
}

fn severity(severity: Severity) -> u64 {
    match severity {
        Severity::Info => 1,
        Severity::Low => 2,
        Severity::Medium => 3,
        Severity::High => 4,
    }
}

/// An end of a connection; the class wants an address or a name.
fn endpoint(address: Option<&str>, name: Option<&str>) -> Option<Value> {
    let mut end = Map::new();
    if let Some(address) = address {
        match address.parse::<std::net::SocketAddr>() {
            Ok(address) => {
                end.insert("ip".into(), address.ip().to_string().into());
                end.insert("port".into(), address.port().into());
            }
            Err(_) => drop(end.insert("hostname".into(), address.into())),
        }
    }
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        end.insert("svc_name".into(), name.into());
    }
    (!end.is_empty()).then(|| end.into())
}

fn network(event: &Event, origin: &Origin, line: &mut Map<String, Value>) {
    let source = endpoint(event.text("source_address"), event.text("source_principal"));
    let own = Some(origin.workload.as_str());
    let destination =
        endpoint(event.text("destination_address"), event.text("destination_principal").or(own));
    line.extend(source.map(|end| ("src_endpoint".to_owned(), end)));
    line.extend(destination.map(|end| ("dst_endpoint".to_owned(), end)));
    line.insert("action_id".into(), 2.into());
    line.insert("disposition_id".into(), 2.into());
    if let Some(policy) = event.text("policy") {
        line.insert("policy".into(), json!({"name": policy}));
    }
}

fn http(event: &Event, line: &mut Map<String, Value>) {
    let text = |name| event.text(name).unwrap_or_default();
    let host = text("authority");
    let mut request = json!({
        "http_method": text("method"),
        "url": {"path": text("path"), "hostname": host, "url_string": format!("{host}{}", text("path"))},
    });
    if let Some(id) = event.text("request_id") {
        request["uid"] = id.into();
    }
    line.insert("http_request".into(), request);
    if let Some(code) = event.field("status") {
        line.insert("http_response".into(), json!({"code": code}));
    }
}

fn actor(event: &Event, origin: &Origin) -> Value {
    match event.text("actor") {
        Some(name) => json!({"user": {"name": name}}),
        None => json!({"app_name": origin.component}),
    }
}

fn api(event: &Event, origin: &Origin, line: &mut Map<String, Value>) {
    line.insert("actor".into(), actor(event, origin));
    let operation = event.text("operation").unwrap_or("apply configuration");
    line.insert("api".into(), json!({"operation": operation, "service": {"name": origin.component}}));
    let source = endpoint(event.text("source_address"), None);
    let source = source.unwrap_or_else(|| json!({"name": event.text("source").unwrap_or(&origin.workload)}));
    line.insert("src_endpoint".into(), source);
    if let Some(resource) = event.text("resource") {
        let kind = event.text("resource_type").unwrap_or("configuration");
        line.insert("resources".into(), json!([{"name": resource, "type": kind}]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a class requires beside the base event's, as schema.ocsf.io/1.5.0 says: all of the first, one at least of each of the rest.
    fn required(class: u64) -> (&'static [&'static str], &'static [&'static [&'static str]]) {
        match class {
            0 => (&[], &[]),
            3004 => (&["/entity"], &[&["/entity/name", "/entity/uid"]]),
            4001 => (&[], &[&["/src_endpoint", "/dst_endpoint"]]),
            4002 => (&[], &[&["/src_endpoint", "/dst_endpoint"], &["/http_request", "/http_response"]]),
            6003 => (
                &["/actor", "/api/operation", "/src_endpoint"],
                &[&["/actor/user", "/actor/app_name"], &["/src_endpoint/ip", "/src_endpoint/name"]],
            ),
            7001 => (&["/command_uid"], &[]),
            other => panic!("class {other} is not one of ours"),
        }
    }

    fn events() -> Vec<(Event, u64)> {
        let new = |kind, outcome, by| Event::new(kind, outcome, Severity::Medium, by, "what happened");
        vec![
            (
                new(Kind::Denied, Outcome::Denied, "rbac")
                    .with("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736")
                    .with("source_address", "10.0.0.7:4711")
                    .with("source_principal", "spiffe://d/ns/a/sa/b")
                    .with("method", "GET")
                    .with("path", "/api")
                    .with("authority", "user-service")
                    .with("status", 403)
                    .with("policy", "ns[a]-policy[b]-rule[0]")
                    .with("details", "rbac_access_denied"),
                4002,
            ),
            (new(Kind::Denied, Outcome::Denied, "rbac").with("source_address", "10.0.0.7:1"), 4001),
            (new(Kind::HandshakeFailed, Outcome::Failed, "tls").with("reason", "expired"), 4001),
            (new(Kind::ConfigRejected, Outcome::Failed, "xds").with("resource", "listener"), 6003),
            (new(Kind::Certificate, Outcome::Ok, "identity").with("serial", "0a"), 3004),
            (new(Kind::Certificate, Outcome::Failed, "identity"), 3004),
            (new(Kind::Admin, Outcome::Ok, "admin").with("source_address", "127.0.0.1:4"), 6003),
            (new(Kind::Quarantine, Outcome::Ok, "operator").with("target", "n/w"), 7001),
            (new(Kind::Suppressed, Outcome::Ok, "bound").with("count", 7), 0),
        ]
    }

    #[test]
    fn every_line_has_what_its_class_requires() {
        let origin = Origin { component: "proxy", namespace: "n".into(), workload: "w-1".into() };
        for (event, class) in events() {
            let line = to_json(&event, &origin);
            assert_eq!(line["class_uid"], class, "{line:#}");
            assert_eq!(line["category_uid"], class / 1000);
            assert_eq!(line["type_uid"].as_u64(), Some(class * 100 + line["activity_id"].as_u64().unwrap()));
            let base = [
                "/time",
                "/severity_id",
                "/metadata/version",
                "/metadata/product/name",
                "/metadata/product/vendor_name",
            ];
            let (all, one_of) = required(class);
            for path in base.iter().chain(all) {
                let value = line.pointer(path);
                assert!(
                    value.is_some_and(|v| !v.is_null() && v != ""),
                    "class {class} wants {path}: {line:#}"
                );
            }
            for alternatives in one_of {
                assert!(
                    alternatives.iter().any(|p| line.pointer(p).is_some()),
                    "one of {alternatives:?}: {line:#}"
                );
            }
            for end in ["src_endpoint", "dst_endpoint"].iter().filter_map(|end| line.get(end)) {
                assert!(["ip", "hostname", "name", "svc_name"].iter().any(|n| end.get(n).is_some()), "{end}");
            }
            if let Some(response) = line.get("http_response") {
                assert!(response["code"].is_u64());
            }
        }
    }

    #[test]
    fn every_kind_of_the_security_log_has_a_line_here() {
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_security()) {
            assert!(events().iter().any(|(event, _)| event.kind == kind), "{}", kind.name());
        }
    }

    #[test]
    fn what_is_mapped_stands_in_its_place_and_the_rest_under_unmapped() {
        let (event, _) = events().remove(0);
        let line = to_json(&event, &Origin::default());
        assert_eq!(line["metadata"]["correlation_uid"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(
            (&line["src_endpoint"]["ip"], &line["src_endpoint"]["port"]),
            (&json!("10.0.0.7"), &json!(4711))
        );
        assert_eq!((&line["activity_id"], &line["http_response"]["code"]), (&json!(3), &json!(403)));
        assert_eq!(
            (&line["action_id"], &line["disposition_id"], &line["status_id"]),
            (&json!(2), &json!(2), &json!(2))
        );
        assert_eq!(line["unmapped"], json!({"by": "rbac", "details": "rbac_access_denied"}));
    }
}
