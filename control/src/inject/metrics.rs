//! Metrics: the pod's annotations for Prometheus point at the proxy, which gives the application's metrics along with its own.

use serde_json::{Map, Value, json};

use super::annotations::boolean;
use super::error::Refusal;

/// The environment variable with what the annotations were.
const VARIABLE: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";

/// Points the annotations at the proxy's port; what they were goes into the proxy's environment.
pub(super) fn merge(
    annotations: &mut Map<String, Value>,
    port: u16,
) -> Result<Option<(&'static str, String)>, Refusal> {
    let get = |name: &str| {
        // As Prometheus' usual configuration reads them: with dots, dashes and underscores alike.
        let plain = |text: &str| text.replace(['.', '-', '/'], "_");
        let wanted = plain(&format!("prometheus.io/{name}"));
        annotations.iter().find(|(key, _)| plain(key) == wanted).map(|(key, value)| {
            (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        })
    };
    let (scrape, own_port, path, scheme) = (get("scrape"), get("port"), get("path"), get("scheme"));
    let asked = match &scrape {
        None => None,
        Some((key, text)) => Some(boolean(text).ok_or_else(|| {
            Refusal::annotation(
                key,
                format!("{text:?} is neither true nor false"),
                "write \"true\" or \"false\"",
            )
        })?),
    };
    if asked == Some(false) {
        return Ok(None);
    }
    if let Some((key, text)) = scheme.as_ref().filter(|(_, text)| text == "https") {
        return Err(Refusal::annotation(
            key,
            format!("the proxy asks the application for its metrics by HTTP, not by {text}"),
            "give them by HTTP too (the proxy's own port is reached from outside the pod only), or set prometheus.istio.io/merge-metrics to \"false\"",
        ));
    }
    if let Some((key, text)) = &own_port {
        let number = text.parse::<u16>().ok().filter(|n| *n != 0);
        let number = number.ok_or_else(|| {
            Refusal::annotation(
                key,
                format!("{text:?} is not a port"),
                "write the number of the port of the metrics",
            )
        })?;
        if number == port {
            return Err(Refusal::annotation(
                key,
                format!("{number} is the proxy's own port"),
                "write the port at which the application gives its metrics, or take the annotation away",
            ));
        }
    }
    let before = asked.map(|_| {
        let text = |found: &Option<(String, String)>| found.as_ref().map(|f| f.1.clone()).unwrap_or_default();
        let (own_port, path) = (text(&own_port), text(&path));
        (VARIABLE, json!({"scrape": "true", "path": path, "port": own_port}).to_string())
    });
    for (key, _) in [scrape, own_port, path].into_iter().flatten() {
        annotations.remove(&key);
    }
    for (key, value) in
        [("scrape", "true".to_owned()), ("port", port.to_string()), ("path", "/stats/prometheus".to_owned())]
    {
        annotations.insert(format!("prometheus.io/{key}"), value.into());
    }
    Ok(before)
}
