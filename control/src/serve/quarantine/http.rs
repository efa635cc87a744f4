//! What a responder calls: `POST /quarantine`, `POST /quarantine/release`, `GET /quarantine`, each with a bearer token.
//!
//! The body is `{"workload": "NAMESPACE/NAME", "reason": "..."}`, or a Falco alert as its `http_output` and Falcosidekick's webhook
//! send it, of which the pod is taken.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::watch;
use weft_events::{Event, Kind, Outcome, Severity, emit};

use super::{Done, Store, Wrong, given, reaches};
use crate::ingest::Snapshot;

/// An alert is small.
const LARGEST: usize = 256 * 1024;
/// A body that does not come in this time is let go.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a change may take to come back as configuration.
const EFFECT: Duration = Duration::from_secs(5);

/// Answers responders.
#[derive(Clone)]
pub struct Responders {
    /// The token's file.
    pub token: PathBuf,
    /// Where quarantines are written.
    pub store: Store,
    /// What the mesh is.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Asked {
    workload: String,
    reason: String,
    actor: String,
}

/// Whether a path is answered here.
pub fn is_ours(path: &str) -> bool {
    path == "/quarantine" || path.starts_with("/quarantine/")
}

impl Responders {
    /// Answers a request.
    pub async fn answer(&self, request: Request<Incoming>, from: SocketAddr) -> (StatusCode, Value) {
        let operation = match (request.method(), request.uri().path()) {
            (&Method::POST, "/quarantine") => "quarantine",
            (&Method::POST, "/quarantine/release") => "release",
            (&Method::GET, "/quarantine") => "list",
            _ => {
                let text = "there are POST /quarantine, POST /quarantine/release and GET /quarantine";
                return (StatusCode::NOT_FOUND, json!({"error": text}));
            }
        };
        if let Err((status, why)) = self.allowed(&request).await {
            denied(operation, "", from, &why);
            return (status, json!({"error": why}));
        }
        if operation == "list" {
            return (StatusCode::OK, self.list());
        }
        let body = Limited::new(request.into_body(), LARGEST).collect();
        let asked = match tokio::time::timeout(PATIENCE, body).await {
            Ok(Ok(body)) => read(&body.to_bytes()),
            Ok(Err(error)) => Err(format!("the body cannot be read: {error}")),
            Err(_) => Err("the body did not come in time".to_owned()),
        };
        let asked = match asked {
            Ok(asked) => asked,
            Err(why) => {
                denied(operation, "", from, &why);
                return (StatusCode::BAD_REQUEST, json!({"error": why}));
            }
        };
        match self.act(operation, &asked).await {
            Ok(done) => {
                let word = if operation == "release" { "released" } else { "quarantined" };
                (
                    StatusCode::OK,
                    json!({
                        "workload": done.target, "state": word, "changed": done.changed, "source": done.place, "note": done.note,
                    }),
                )
            }
            Err(wrong) => {
                let status = match wrong {
                    Wrong::Unknown(_) => StatusCode::NOT_FOUND,
                    Wrong::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
                };
                denied(operation, &asked.workload, from, &wrong.to_string());
                (status, json!({"error": wrong.to_string()}))
            }
        }
    }

    async fn act(&self, operation: &str, asked: &Asked) -> Result<Done, Wrong> {
        let mut snapshots = self.snapshots.clone();
        let world = snapshots.borrow_and_update().world.clone();
        let wanted = operation == "quarantine";
        let done = match wanted {
            true => self.store.put(&world, &asked.workload, &asked.reason, &asked.actor).await?,
            false => self.store.lift(&world, &asked.workload).await?,
        };
        // It holds once it is part of the mesh's state, not when it is written.
        let holds =
            snapshots.wait_for(|s| given(&s.world, &done.target).is_ok_and(|q| q.is_some() == wanted));
        let held = tokio::time::timeout(EFFECT, holds).await.is_ok();
        if held {
            let world = self.snapshots.borrow().world.clone();
            if wanted && let Err(why) = reaches(&world, &done.target) {
                tracing::error!(workload = %done.target, "a quarantine is written, and holds for nobody: {why}");
                return Err(Wrong::Failed(format!(
                    "it is written ({}), and has no effect: {why}",
                    done.place
                )));
            }
            return Ok(done);
        }
        let snapshot = self.snapshots.borrow().clone();
        let why = snapshot.diagnostics.iter().find(|d| d.is_error()).map(ToString::to_string);
        let why = why.unwrap_or_else(|| "the configuration has not changed".to_owned());
        let place = done.place;
        Err(Wrong::Failed(format!("it is written ({place}), and has no effect yet: {why}")))
    }

    fn list(&self) -> Value {
        let all = self.snapshots.borrow().world.quarantines();
        let one = |q: &crate::model::quarantine::Quarantine| {
            json!({
                "workload": format!("{}/{}", q.namespace, q.name), "reason": q.reason, "by": q.actor, "source": q.source,
            })
        };
        json!({"quarantines": all.iter().map(one).collect::<Vec<_>>()})
    }

    /// Whether the caller knows the token.
    async fn allowed<B>(&self, request: &Request<B>) -> Result<(), (StatusCode, String)> {
        let wanted = tokio::fs::read_to_string(&self.token).await.map_err(|error| {
            tracing::error!(file = %self.token.display(), %error, "--quarantine-token-file cannot be read");
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "the token's file cannot be read; see the control plane's log".to_owned(),
            )
        })?;
        let wanted = wanted.trim();
        let shown = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let shown = shown.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default().trim();
        // An empty file lets nobody in, and how long a comparison takes says nothing of the token.
        let same = !wanted.is_empty()
            && aws_lc_rs::constant_time::verify_slices_are_equal(wanted.as_bytes(), shown.as_bytes()).is_ok();
        same.then_some(()).ok_or_else(|| {
            let why = "the bearer token of --quarantine-token-file is missing or another (authorization: Bearer TOKEN)";
            (StatusCode::UNAUTHORIZED, why.to_owned())
        })
    }
}

/// Reads a body.
fn read(body: &[u8]) -> Result<Asked, String> {
    let value: Value =
        serde_json::from_slice(body).map_err(|error| format!("the body is no JSON: {error}"))?;
    let text = |value: &Value| value.as_str().map(str::trim).unwrap_or_default().to_owned();
    if let Some(workload) = value.get("workload") {
        let by = value.get("by").map(&text).filter(|by| !by.is_empty());
        return match text(workload) {
            empty if empty.is_empty() => Err("workload is NAME or NAMESPACE/NAME".to_owned()),
            workload => Ok(Asked {
                workload,
                reason: text(&value["reason"]),
                actor: by.unwrap_or_else(|| "webhook".to_owned()),
            }),
        };
    }
    let fields = &value["output_fields"];
    if !fields.is_object() {
        return Err("neither {\"workload\": \"NAMESPACE/NAME\"} nor a Falco alert (which has output_fields)"
            .to_owned());
    }
    let first = |names: &[&str]| {
        names.iter().map(|name| text(&fields[*name])).find(|found| !found.is_empty() && found != "<NA>")
    };
    let pod = first(&["k8s.pod.name", "k8smeta.pod.name", "ka.target.pod.name"]);
    let namespace = first(&["k8s.ns.name", "k8smeta.ns.name", "ka.target.namespace"]);
    let Some(pod) = pod else {
        return Err("the alert names no pod: its output_fields have no k8s.pod.name; Falco adds it to rules whose output has it (or with -pk)".to_owned());
    };
    let workload = namespace.map_or(pod.clone(), |namespace| format!("{namespace}/{pod}"));
    let rule = text(&value["rule"]);
    let reason = if rule.is_empty() { text(&value["output"]) } else { rule };
    Ok(Asked { workload, reason, actor: "falco".to_owned() })
}

/// Tells of what was not done.
fn denied(operation: &str, target: &str, from: SocketAddr, why: &str) {
    emit(Kind::Quarantine, || {
        Event::new(
            Kind::Quarantine,
            Outcome::Denied,
            Severity::High,
            "webhook",
            format!("{operation}: {why}"),
        )
        .with("operation", operation)
        .with("target", target)
        .with("source_address", from.to_string())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: Value) -> Result<Asked, String> {
        read(body.to_string().as_bytes())
    }

    #[test]
    fn a_plain_body_and_alerts_of_falco_name_a_workload() {
        let plain = asked(json!({"workload": "shop/cart-1", "reason": "odd", "by": "me"})).unwrap();
        assert_eq!(plain, Asked { workload: "shop/cart-1".into(), reason: "odd".into(), actor: "me".into() });
        // As Falco writes an alert of its system calls.
        let alert = json!({
            "hostname": "node-1", "output": "A shell was spawned", "priority": "Notice", "rule": "Terminal shell in container",
            "source": "syscall", "tags": ["container"], "time": "2026-01-02T03:04:05.678901234Z",
            "output_fields": {"container.id": "3ad7b26ded6d", "evt.time": 1, "k8s.ns.name": "shop", "k8s.pod.name": "cart-1", "proc.name": "sh"},
        });
        let read = asked(alert.clone()).unwrap();
        assert_eq!(
            read,
            Asked {
                workload: "shop/cart-1".into(),
                reason: "Terminal shell in container".into(),
                actor: "falco".into()
            }
        );
        let mut newer = alert;
        newer["output_fields"] = json!({"k8smeta.pod.name": "cart-1", "k8smeta.ns.name": "shop"});
        assert_eq!(asked(newer).unwrap().workload, "shop/cart-1");
    }

    #[test]
    fn what_names_nobody_is_refused() {
        for (body, words) in [
            (json!({"workload": " "}), "NAME or NAMESPACE/NAME"),
            (json!({"workload": 7}), "NAME or NAMESPACE/NAME"),
            (json!({"rule": "x"}), "neither"),
            (json!([1]), "neither"),
            (json!({"output_fields": {"k8s.pod.name": "<NA>"}}), "names no pod"),
        ] {
            let error = asked(body.clone()).unwrap_err();
            assert!(error.contains(words), "{body}: {error}");
        }
        assert!(read(b"not json").is_err());
    }
}
