//! Kubelet's probes and hooks: where mutual TLS is demanded kubelet cannot ask the application itself, so that it asks the
//! proxy, which is told what to ask (`ISTIO_KUBE_APP_PROBERS`; docs/lifecycle.md).

use serde_json::{Map, Value, json};

use super::error::Refusal;

/// The environment variable with what the probes were.
pub(super) const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";

/// The three probes of a container, and how the proxy's paths end.
const PROBES: [(&str, &str); 3] =
    [("readinessProbe", "readyz"), ("livenessProbe", "livez"), ("startupProbe", "startupz")];
/// Its hooks.
const HOOKS: [(&str, &str); 2] = [("preStop", "prestopz"), ("postStart", "poststartz")];

/// Sends the probes of one container through the proxy's port; what they were is added to `probers`. `at` is where the container
/// stands in the pod.
pub(super) fn rewrite(
    container: &mut Value,
    at: &str,
    port: u16,
    probers: &mut Map<String, Value>,
    wrong: &mut Vec<Refusal>,
) {
    let name = container["name"].as_str().unwrap_or_default().to_owned();
    let ports = container["ports"].clone();
    let number = |port: &Value| match port {
        Value::Number(_) => Some(port.clone()),
        // Kubernetes writes numbers as texts in some places.
        Value::String(text) => match text.parse::<u16>() {
            Ok(number) => Some(number.into()),
            Err(_) => {
                let all = ports.as_array()?;
                all.iter().find(|one| one["name"] == text.as_str()).map(|one| one["containerPort"].clone())
            }
        },
        _ => None,
    };
    let places = PROBES
        .iter()
        .map(|(field, end)| {
            (format!("/{field}"), field.to_string(), format!("/app-health/{name}/{end}"), true)
        })
        .chain(HOOKS.iter().map(|(field, end)| {
            (
                format!("/lifecycle/{field}"),
                format!("lifecycle.{field}"),
                format!("/app-lifecycle/{name}/{end}"),
                false,
            )
        }));
    for (pointer, field, path, is_probe) in places {
        let Some(probe) = container.pointer_mut(&pointer) else { continue };
        let Some((kind, action)) =
            ["httpGet", "tcpSocket", "grpc"].iter().find_map(|kind| Some((*kind, probe.get(kind)?.clone())))
        else {
            // A command runs in the container, and asks nobody else.
            continue;
        };
        let Some(asked) = number(&action["port"]) else {
            wrong.push(Refusal::new(
                format!("{at}.{field}.{kind}.port"),
                format!("the container {name:?} has no port {}", action["port"]),
                "name one of its ports, or write the port's number",
            ));
            continue;
        };
        if asked == port {
            continue;
        }
        let mut what = action;
        what["port"] = asked;
        let mut prober = json!({kind: what});
        if is_probe && let Some(seconds) = probe.get("timeoutSeconds") {
            prober["timeoutSeconds"] = seconds.clone();
        }
        probers.insert(path.clone(), prober);
        let Some(object) = probe.as_object_mut() else { continue };
        object.remove(kind);
        object.insert("httpGet".to_owned(), json!({"path": path, "port": port}));
    }
}
