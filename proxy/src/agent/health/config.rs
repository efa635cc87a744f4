//! What to ask the application: `ISTIO_KUBE_APP_PROBERS`, the JSON that Istio's injector makes of a pod's probes and hooks.

use std::collections::BTreeMap;
use std::time::Duration;

use ::http::uri::PathAndQuery;
use ::http::{HeaderName, HeaderValue};
use anyhow::{Context, bail};
use serde::Deserialize;

/// The environment variable.
pub(crate) const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";

/// Probes by the path at which kubelet asks for them.
#[derive(Debug, Default)]
pub(in crate::agent) struct Probers(BTreeMap<String, Prober>);

/// One of them.
#[derive(Debug)]
pub(super) struct Prober {
    /// Where to, if it is not the pod itself.
    pub(super) host: Option<String>,
    pub(super) port: u16,
    pub(super) action: Action,
    /// None: as long as it takes (hooks, for which kubelet has its own deadline).
    pub(super) timeout: Option<Duration>,
}

#[derive(Debug)]
pub(super) enum Action {
    Http(HttpGet),
    Tcp,
    /// The service to ask for.
    Grpc(String),
    /// The command's words.
    Exec(Vec<String>),
}

#[derive(Debug)]
pub(super) struct HttpGet {
    pub(super) tls: bool,
    pub(super) path: PathAndQuery,
    /// They take the place of what the probe says itself.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// The `Host` header among them.
    pub(super) authority: Option<HeaderValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Text {
    http_get: Option<HttpText>,
    tcp_socket: Option<TcpText>,
    grpc: Option<GrpcText>,
    exec: Option<ExecText>,
    #[serde(default)]
    timeout_seconds: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HttpText {
    #[serde(default)]
    path: String,
    port: Port,
    host: Option<String>,
    scheme: Option<String>,
    #[serde(default)]
    http_headers: Vec<HeaderText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderText {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TcpText {
    port: Port,
    host: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrpcText {
    port: Port,
    service: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExecText {
    #[serde(default)]
    command: Vec<String>,
}

/// The injector has put numbers in the place of names.
#[derive(Deserialize)]
#[serde(untagged)]
enum Port {
    Number(u32),
    Name(String),
}

impl Port {
    fn read(self) -> anyhow::Result<u16> {
        match self {
            Self::Number(n) if (1..=65535).contains(&n) => Ok(n as u16),
            Self::Number(n) => bail!("port {n}: must be between 1 and 65535"),
            Self::Name(name) => {
                bail!("port {name:?}: must be a number here; the injector knows the container's ports")
            }
        }
    }
}

impl Probers {
    /// Reads the variable's text; an empty one has no probes.
    pub(in crate::agent) fn parse(text: &str) -> anyhow::Result<Self> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let texts: BTreeMap<String, Text> = serde_json::from_str(text).context(VARIABLE)?;
        let one = |(path, text): (String, Text)| {
            let prober = read(&path, text).with_context(|| format!("{VARIABLE}: {path}"))?;
            Ok((path, prober))
        };
        texts.into_iter().map(one).collect::<anyhow::Result<_>>().map(Self)
    }

    /// Reads the environment.
    pub(in crate::agent) fn from_environment() -> anyhow::Result<Self> {
        Self::parse(&std::env::var(VARIABLE).unwrap_or_default())
    }

    pub(super) fn get(&self, path: &str) -> Option<&Prober> {
        self.0.get(path)
    }
}

/// Whether a path is `/app-health/CONTAINER/(livez|readyz|startupz)`, or `/app-lifecycle/CONTAINER/(prestopz|poststartz)`; and
/// whether it is a hook's.
fn kind(path: &str) -> anyhow::Result<bool> {
    let parts: Vec<_> = path.split('/').collect();
    match parts[..] {
        ["", "app-health", container, "livez" | "readyz" | "startupz"] if !container.is_empty() => Ok(false),
        ["", "app-lifecycle", container, "prestopz" | "poststartz"] if !container.is_empty() => Ok(true),
        _ => bail!(
            "must be /app-health/CONTAINER/ with livez, readyz or startupz, or /app-lifecycle/CONTAINER/ with prestopz or \
             poststartz"
        ),
    }
}

impl Prober {
    /// What a probe is as Kubernetes has it, without its times.
    pub(super) fn parse(probe: serde_json::Value) -> anyhow::Result<Self> {
        prober(serde_json::from_value(probe)?, false)
    }
}

fn read(path: &str, text: Text) -> anyhow::Result<Prober> {
    if text.exec.is_some() {
        bail!(
            "exec: kubelet runs commands itself, in the application's container; there is nothing to ask here"
        );
    }
    prober(text, kind(path)?)
}

fn prober(text: Text, hook: bool) -> anyhow::Result<Prober> {
    let timeout = match text.timeout_seconds {
        0 => (!hook).then_some(super::TIMEOUT),
        seconds => Some(Duration::from_secs(seconds.into())),
    };
    let (host, port, action) = match (text.http_get, text.tcp_socket, text.grpc, text.exec) {
        (Some(get), None, None, None) => {
            let host = get.host.clone();
            let (port, get) = http(get).context("httpGet")?;
            (host, port, Action::Http(get))
        }
        (None, Some(tcp), None, None) => (tcp.host, tcp.port.read().context("tcpSocket")?, Action::Tcp),
        (None, None, Some(grpc), None) => {
            (None, grpc.port.read().context("grpc")?, Action::Grpc(grpc.service.unwrap_or_default()))
        }
        (None, None, None, Some(exec)) => {
            if exec.command.first().is_none_or(String::is_empty) {
                bail!("exec.command: empty; give the command and its arguments");
            }
            (None, 0, Action::Exec(exec.command))
        }
        _ => bail!("must have one of httpGet, tcpSocket, grpc and (of a workload that enters itself) exec"),
    };
    Ok(Prober { host: host.filter(|h| !h.is_empty()), port, action, timeout })
}

fn http(text: HttpText) -> anyhow::Result<(u16, HttpGet)> {
    let tls = match text.scheme.as_deref().unwrap_or_default() {
        "" | "HTTP" => false,
        "HTTPS" => true,
        other => bail!("scheme {other:?}: must be HTTP or HTTPS"),
    };
    let path = if text.path.starts_with('/') { text.path } else { format!("/{}", text.path) };
    let path = path.parse().with_context(|| format!("path {path:?}"))?;
    let (mut headers, mut authority) = (Vec::new(), None);
    for (i, field) in text.http_headers.into_iter().enumerate() {
        let place = || format!("httpHeaders[{i}]");
        let value = HeaderValue::from_str(&field.value).with_context(place)?;
        if field.name.eq_ignore_ascii_case("host") || field.name == ":authority" {
            authority = Some(value);
        } else {
            headers.push((field.name.parse().with_context(place)?, value));
        }
    }
    Ok((text.port.read()?, HttpGet { tls, path, headers, authority }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_istios_injector_writes_is_read() {
        let text = r#"{
            "/app-health/web/livez": {"httpGet": {"path": "ok?deep=1", "port": 8080, "scheme": "HTTPS",
                "httpHeaders": [{"name": "Host", "value": "shop"}, {"name": "X-Probe", "value": "1"}]}, "timeoutSeconds": 3},
            "/app-health/web/readyz": {"tcpSocket": {"port": 6379}},
            "/app-health/api/startupz": {"grpc": {"port": 9000, "service": "shop.v1"}, "timeoutSeconds": 1},
            "/app-lifecycle/web/prestopz": {"httpGet": {"path": "/bye", "port": 8080, "host": "127.0.0.1"}}
        }"#;
        let probers = Probers::parse(text).unwrap();
        let live = probers.get("/app-health/web/livez").unwrap();
        let Action::Http(get) = &live.action else { panic!("{live:?}") };
        assert_eq!((get.path.as_str(), get.tls, live.port), ("/ok?deep=1", true, 8080));
        assert_eq!(get.authority.as_ref().unwrap(), "shop");
        assert_eq!((get.headers.len(), live.timeout), (1, Some(Duration::from_secs(3))));
        let ready = probers.get("/app-health/web/readyz").unwrap();
        assert!(matches!(ready.action, Action::Tcp));
        assert_eq!(ready.timeout, Some(Duration::from_secs(1)), "Kubernetes' default");
        let startup = probers.get("/app-health/api/startupz").unwrap();
        assert!(matches!(&startup.action, Action::Grpc(service) if service == "shop.v1"));
        let hook = probers.get("/app-lifecycle/web/prestopz").unwrap();
        assert_eq!((hook.timeout, hook.host.as_deref()), (None, Some("127.0.0.1")));
        assert!(Probers::parse(" ").unwrap().get("/app-health/web/livez").is_none());
    }

    #[test]
    fn what_cannot_be_asked_is_refused_by_its_place() {
        for (text, words) in [
            ("[]", "ISTIO_KUBE_APP_PROBERS"),
            (
                r#"{"/app-health/livez": {"tcpSocket": {"port": 1}}}"#,
                "/app-health/livez: must be /app-health/CONTAINER/",
            ),
            (r#"{"/app-health/a/prestopz": {"tcpSocket": {"port": 1}}}"#, "must be /app-health/CONTAINER/"),
            (r#"{"/app-health/a/livez": {}}"#, "one of httpGet, tcpSocket, grpc"),
            (r#"{"/app-health/a/livez": {"tcpSocket": {"port": 1}, "grpc": {"port": 1}}}"#, "one of"),
            (r#"{"/app-health/a/livez": {"httpGet": {"port": "web"}}}"#, "port \"web\""),
            (r#"{"/app-health/a/livez": {"tcpSocket": {"port": 70000}}}"#, "between 1 and 65535"),
            (r#"{"/app-health/a/livez": {"httpGet": {"port": 1, "scheme": "FTP"}}}"#, "scheme \"FTP\""),
            (r#"{"/app-health/a/livez": {"exec": {"command": ["true"]}}}"#, "kubelet runs commands itself"),
        ] {
            let error = format!("{:#}", Probers::parse(text).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
