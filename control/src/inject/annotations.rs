//! What a pod may say by annotations: each name, and how its value is read. A name of Istio's prefixes that is not here, and a
//! value that cannot be read, refuse the pod.

use serde_json::{Map, Value};

use super::error::Refusal;
use super::proxy_config::Interception;
use super::traffic;

/// Understood annotations.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) cpu: Option<String>,
    pub(super) cpu_limit: Option<String>,
    pub(super) memory: Option<String>,
    pub(super) memory_limit: Option<String>,
    pub(super) image: Option<String>,
    pub(super) log_level: Option<String>,
    pub(super) interception: Option<Interception>,
    pub(super) native: Option<bool>,
    pub(super) rewrite_probes: Option<bool>,
    pub(super) merge_metrics: Option<bool>,
    pub(super) status_port: Option<u16>,
    pub(super) initial_delay: Option<u32>,
    pub(super) period: Option<u32>,
    pub(super) failure_threshold: Option<u32>,
    pub(super) volumes: Vec<Value>,
    pub(super) mounts: Vec<Value>,
    pub(super) config: Option<Map<String, Value>>,
    pub(super) template: Template,
    pub(super) traffic: traffic::Asked,
}

/// What is put into the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Template {
    /// A sidecar beside the application.
    #[default]
    Sidecar,
    /// The pod is a gateway: the proxy is all of it.
    Gateway,
}

/// Prefixes under which an unknown name is a slip, or a wish that would go unheard.
const WATCHED: [&str; 7] = [
    "sidecar.istio.io/",
    "status.sidecar.istio.io/",
    "readiness.status.sidecar.istio.io/",
    "traffic.sidecar.istio.io/",
    "proxy.istio.io/",
    "inject.istio.io/",
    "prometheus.istio.io/",
];

/// Every name that is read.
const KNOWN: [&str; 28] = [
    "sidecar.istio.io/inject",
    "sidecar.istio.io/status",
    "sidecar.istio.io/proxyCPU",
    "sidecar.istio.io/proxyCPULimit",
    "sidecar.istio.io/proxyMemory",
    "sidecar.istio.io/proxyMemoryLimit",
    "sidecar.istio.io/proxyImage",
    "sidecar.istio.io/proxyImageType",
    "sidecar.istio.io/logLevel",
    "sidecar.istio.io/interceptionMode",
    "sidecar.istio.io/nativeSidecar",
    "sidecar.istio.io/rewriteAppHTTPProbers",
    "sidecar.istio.io/enableCoreDump",
    "sidecar.istio.io/userVolume",
    "sidecar.istio.io/userVolumeMount",
    "status.sidecar.istio.io/port",
    "readiness.status.sidecar.istio.io/initialDelaySeconds",
    "readiness.status.sidecar.istio.io/periodSeconds",
    "readiness.status.sidecar.istio.io/failureThreshold",
    "traffic.sidecar.istio.io/includeInboundPorts",
    "traffic.sidecar.istio.io/excludeInboundPorts",
    "traffic.sidecar.istio.io/includeOutboundPorts",
    "traffic.sidecar.istio.io/excludeOutboundPorts",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeInterfaces",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
    "istio.io/reroute-virtual-interfaces",
];
/// The others, whose values have more to them.
const KNOWN_TOO: [&str; 3] =
    ["proxy.istio.io/config", "inject.istio.io/templates", "prometheus.istio.io/merge-metrics"];

/// Istio's names that Weft does not honour, and what to do instead.
const REFUSED: [(&str, &str); 13] = [
    (
        "sidecar.istio.io/bootstrapOverride",
        "the proxy has no Envoy bootstrap to override; set what it was for by proxy.istio.io/config, or take the annotation away",
    ),
    (
        "sidecar.istio.io/componentLogLevel",
        "components of the proxy are not Envoy's; use sidecar.istio.io/logLevel, or proxyMetadata's WEFT_LOG in proxy.istio.io/config (such as info,weft_proxy::xds=debug)",
    ),
    ("sidecar.istio.io/agentLogLevel", "agent and proxy are one process; use sidecar.istio.io/logLevel"),
    (
        "sidecar.istio.io/extraStatTags",
        "take it away: the proxy has Istio's labels on its metrics, and no others",
    ),
    ("sidecar.istio.io/statsInclusionPrefixes", "take it away: the proxy always gives all of its metrics"),
    ("sidecar.istio.io/statsInclusionSuffixes", "take it away: the proxy always gives all of its metrics"),
    ("sidecar.istio.io/statsInclusionRegexps", "take it away: the proxy always gives all of its metrics"),
    (
        "sidecar.istio.io/statsHistogramBuckets",
        "take it away: the buckets of the proxy's histograms are Istio's",
    ),
    ("sidecar.istio.io/statsCompression", "take it away: metrics are given as they are"),
    ("sidecar.istio.io/discoveryAddress", "write discoveryAddress in proxy.istio.io/config"),
    ("sidecar.istio.io/controlPlaneAuthPolicy", "take it away: the control plane is always spoken to by TLS"),
    (
        "readiness.status.sidecar.istio.io/applicationPorts",
        "take it away: the application's own readiness probe says whether it is ready",
    ),
    (
        "proxy.istio.io/overrides",
        "only Istio's own injector writes it; take it away, and write what you want changed as a container named istio-proxy",
    ),
];

/// All names that are read.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    KNOWN.into_iter().chain(KNOWN_TOO)
}

/// YAML's words for true and false.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "y" | "on" | "1" => Some(true),
        "false" | "no" | "n" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Reads a pod's annotations.
pub(super) fn read(annotations: &Map<String, Value>, wrong: &mut Vec<Refusal>) -> Asked {
    let mut asked = Asked::default();
    for (name, value) in annotations {
        let refuse = |reason: String, help: &str| Refusal::annotation(name, reason, help);
        if let Some((_, help)) = REFUSED.iter().find(|(refused, _)| refused == name) {
            wrong.push(refuse("not honoured by Weft".to_owned(), help));
            continue;
        }
        let known = KNOWN.contains(&name.as_str()) || KNOWN_TOO.contains(&name.as_str());
        if !known {
            if WATCHED.iter().any(|prefix| name.starts_with(prefix)) {
                wrong.push(refuse("no such annotation".to_owned(), &meant(name)));
            }
            continue;
        }
        let Some(text) = value.as_str() else {
            wrong.push(refuse(
                format!("{value} is not a text"),
                "Kubernetes takes texts only; put it in quotes",
            ));
            continue;
        };
        if let Err(refusal) = one(&mut asked, name, text.trim()) {
            wrong.push(refusal);
        }
    }
    asked
}

fn one(asked: &mut Asked, name: &str, text: &str) -> Result<(), Refusal> {
    let refuse = |reason: String, help: &str| Refusal::annotation(name, reason, help);
    let flag = || {
        boolean(text).ok_or_else(|| {
            refuse(format!("{text:?} is neither true nor false"), "write \"true\" or \"false\"")
        })
    };
    let number = || {
        text.parse::<u32>()
            .map_err(|_| refuse(format!("{text:?} is not a whole number"), "write a number such as \"15\""))
    };
    let quantity = || {
        if is_quantity(text) {
            Ok(Some(text.to_owned()))
        } else {
            let help = "write it as Kubernetes does, such as \"100m\" or \"2\" (CPU), \"128Mi\" (memory)";
            Err(refuse(format!("{text:?} is not a quantity"), help))
        }
    };
    match name {
        "sidecar.istio.io/proxyCPU" => asked.cpu = quantity()?,
        "sidecar.istio.io/proxyCPULimit" => asked.cpu_limit = quantity()?,
        "sidecar.istio.io/proxyMemory" => asked.memory = quantity()?,
        "sidecar.istio.io/proxyMemoryLimit" => asked.memory_limit = quantity()?,
        "sidecar.istio.io/proxyImage" => {
            if text.is_empty() || text.contains(char::is_whitespace) {
                return Err(refuse(
                    format!("{text:?} is not the name of an image"),
                    "write NAME, NAME:TAG or REGISTRY/NAME:TAG",
                ));
            }
            asked.image = Some(text.to_owned());
        }
        "sidecar.istio.io/proxyImageType" => {
            if !matches!(text, "distroless" | "default") {
                let help = "the proxy has one image (distroless, default); name another by sidecar.istio.io/proxyImage";
                return Err(refuse(format!("there is no {text:?} image of the proxy"), help));
            }
        }
        "sidecar.istio.io/logLevel" => asked.log_level = Some(log_level(name, text)?),
        "sidecar.istio.io/interceptionMode" => {
            let help = "write REDIRECT, TPROXY or NONE";
            let mode = Interception::read(text);
            asked.interception = Some(mode.ok_or_else(|| refuse(format!("no such mode: {text:?}"), help))?);
        }
        "sidecar.istio.io/nativeSidecar" => asked.native = Some(flag()?),
        "sidecar.istio.io/rewriteAppHTTPProbers" => asked.rewrite_probes = Some(flag()?),
        "sidecar.istio.io/enableCoreDump" => {
            if flag()? {
                let help = "take it away: the proxy holds keys, and its memory is never written to disk";
                return Err(refuse("not honoured by Weft".to_owned(), help));
            }
        }
        "sidecar.istio.io/userVolume" => asked.volumes = objects(name, text)?,
        "sidecar.istio.io/userVolumeMount" => asked.mounts = objects(name, text)?,
        "status.sidecar.istio.io/port" => {
            let port = text.parse::<u16>().map_err(|_| {
                refuse(format!("{text:?} is not a port"), "write a number from 1 to 65535, or 0 for none")
            })?;
            let taken = [15000, 15001, 15006, 15021, 15053, 15080, 15090];
            if taken.contains(&port) {
                return Err(refuse(
                    format!("{port} is another port of the proxy's"),
                    "choose another, or leave it at 15020",
                ));
            }
            asked.status_port = Some(port);
        }
        "readiness.status.sidecar.istio.io/initialDelaySeconds" => asked.initial_delay = Some(number()?),
        "readiness.status.sidecar.istio.io/periodSeconds" => asked.period = Some(number()?),
        "readiness.status.sidecar.istio.io/failureThreshold" => asked.failure_threshold = Some(number()?),
        "proxy.istio.io/config" => asked.config = Some(super::proxy_config::annotation(name, text)?),
        "prometheus.istio.io/merge-metrics" => asked.merge_metrics = Some(flag()?),
        "inject.istio.io/templates" => {
            asked.template = match text {
                "sidecar" => Template::Sidecar,
                "gateway" => Template::Gateway,
                _ => {
                    let help = "there are \"sidecar\" and \"gateway\"; what else you want changed, write as a container named istio-proxy";
                    return Err(refuse(format!("no such template: {text:?}"), help));
                }
            }
        }
        _ => return asked.traffic.read(name, text),
    }
    Ok(())
}

/// Envoy's words for levels, in ours.
pub(super) fn log_level(name: &str, text: &str) -> Result<String, Refusal> {
    Ok(match text {
        "trace" | "debug" | "info" | "off" | "error" => text.to_owned(),
        "warning" | "warn" => "warn".to_owned(),
        "critical" => "error".to_owned(),
        _ => {
            let help = "write trace, debug, info, warning, error, critical or off";
            return Err(Refusal::annotation(name, format!("no such level: {text:?}"), help));
        }
    })
}

/// Kubernetes' quantities: a number, and a suffix.
fn is_quantity(text: &str) -> bool {
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number = &text[..text.len() - digits.len()];
    let exponent = |rest: &str| rest.strip_prefix(['e', 'E']).is_some_and(|n| n.parse::<i32>().is_ok());
    number.parse::<f64>().is_ok()
        && (["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]
            .contains(&digits)
            || exponent(digits))
}

/// Volumes or mounts: Istio takes a list of them, and an object whose keys are their names.
fn objects(name: &str, text: &str) -> Result<Vec<Value>, Refusal> {
    let refuse = |reason: String| {
        let help = "write JSON: [{\"name\": \"n\", ...}], or {\"n\": {...}}";
        Refusal::annotation(name, reason, help)
    };
    let value: Value = serde_json::from_str(text).map_err(|error| refuse(format!("not JSON: {error}")))?;
    let list = match value {
        Value::Array(list) => list,
        Value::Object(named) => named
            .into_iter()
            .map(|(name, mut value)| {
                if let Some(object) = value.as_object_mut() {
                    object.insert("name".to_owned(), name.into());
                }
                value
            })
            .collect(),
        _ => return Err(refuse("neither a list nor an object".to_owned())),
    };
    match list.iter().find(|one| one["name"].as_str().is_none_or(str::is_empty)) {
        Some(one) => Err(refuse(format!("{one} has no name"))),
        None => Ok(list),
    }
}

/// What was probably meant by an unknown name.
fn meant(name: &str) -> String {
    let close = |known: &&&str| {
        let (a, b) = (known.to_ascii_lowercase(), name.to_ascii_lowercase());
        let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
        a == b || distance(&last(&a), &last(&b)) <= 2
    };
    match KNOWN.iter().chain(&KNOWN_TOO).find(close) {
        Some(known) => format!("did you mean {known}?"),
        None => "take it away; docs/injection.md lists what there is".to_owned(),
    }
}

/// How many letters two words differ by.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_kubernetes_own() {
        for good in ["100m", "2", "0.5", "128Mi", "1e3", "1E", "1.5Gi", "500k"] {
            assert!(is_quantity(good), "{good}");
        }
        for bad in ["", "m", "100mb", "1 Gi", "-1", "1.2.3", "1Mib", "e3"] {
            assert!(!is_quantity(bad), "{bad}");
        }
    }

    #[test]
    fn a_slip_is_told_from_what_nobody_knows() {
        assert_eq!(meant("sidecar.istio.io/proxyCpu"), "did you mean sidecar.istio.io/proxyCPU?");
        assert_eq!(
            meant("traffic.sidecar.istio.io/includeInboundPort"),
            "did you mean traffic.sidecar.istio.io/includeInboundPorts?"
        );
        assert!(meant("sidecar.istio.io/colour").starts_with("take it away"));
    }
}
