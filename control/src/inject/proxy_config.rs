//! Each proxy's settings: Istio's ProxyConfig, of the installation and of the pod's annotation `proxy.istio.io/config`.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::error::Refusal;
use crate::model::Object;
use crate::model::proxy_config::{self as model, Layers};
use crate::model::tracing::ProxyTracing;

/// How the application's connections come to the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Interception {
    #[default]
    Redirect,
    Tproxy,
    /// Not at all: there is no redirection.
    None,
}

impl Interception {
    pub(super) fn read(text: &str) -> Option<Self> {
        match text {
            "REDIRECT" => Some(Self::Redirect),
            "TPROXY" => Some(Self::Tproxy),
            "NONE" => Some(Self::None),
            _ => None,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Redirect => "REDIRECT",
            Self::Tproxy => "TPROXY",
            Self::None => "NONE",
        }
    }
}

/// The settings that hold for one pod.
#[derive(Debug)]
pub(super) struct ProxyConfig {
    pub(super) discovery_address: String,
    pub(super) concurrency: Option<u64>,
    pub(super) drain: Option<String>,
    /// Whole seconds.
    pub(super) termination_drain: Option<u64>,
    pub(super) hold: bool,
    pub(super) interception: Interception,
    pub(super) status_port: Option<u16>,
    pub(super) admin_port: u16,
    /// Environment variables, in the order of their names.
    pub(super) metadata: Vec<(String, String)>,
    /// A readiness probe of the pod's own.
    pub(super) readiness: Option<Value>,
    /// As the proxy is to tell the control plane (`PROXY_CONFIG`).
    pub(super) whole: Map<String, Value>,
}

/// What the annotation says, as an object.
pub(super) fn annotation(name: &str, text: &str) -> Result<Map<String, Value>, Refusal> {
    let help = "write the fields of ProxyConfig, as YAML or JSON";
    match xds_protos::json::value_from_yaml_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err(Refusal::annotation(name, "not an object", help)),
        Err(error) => {
            Err(Refusal::annotation(name, format!("neither YAML nor JSON: {}", error.message), help))
        }
    }
}

/// What `more` says goes before what `whole` says.
fn put(whole: &mut Map<String, Value>, more: Map<String, Value>) {
    for (key, value) in more {
        match (key.as_str(), whole.get_mut(&key), value) {
            // Variables of both hold; the later one where they have the same name.
            ("proxyMetadata", Some(Value::Object(all)), Value::Object(more)) => all.extend(more),
            (_, _, value) => {
                whole.insert(key, value);
            }
        }
    }
}

/// Puts the installation's settings, the mesh's ProxyConfigs and the pod's together, and understands them. Fields that Weft does not honour are refused.
pub(super) fn read(
    base: &Map<String, Value>,
    own: Option<Map<String, Value>>,
    layers: &Layers,
    default_address: &str,
    wrong: &mut Vec<Refusal>,
) -> ProxyConfig {
    let mut whole = base.clone();
    let of = |layer: &Option<Arc<Object<model::ProxyConfig>>>| {
        layer.as_ref().map(|object| object.spec.settings()).unwrap_or_default()
    };
    for layer in [of(&layers.root), of(&layers.own), own.unwrap_or_default(), of(&layers.workload)] {
        put(&mut whole, layer);
    }
    let mut config = ProxyConfig {
        discovery_address: default_address.to_owned(),
        concurrency: None,
        drain: None,
        termination_drain: None,
        hold: false,
        interception: Interception::default(),
        status_port: None,
        admin_port: 15000,
        metadata: Vec::new(),
        readiness: None,
        whole: Map::new(),
    };
    for (key, value) in &whole {
        if let Err((reason, help)) = config.take(key, value) {
            let path = format!("metadata.annotations[proxy.istio.io/config].{key}");
            wrong.push(Refusal::new(path, reason, help));
        }
    }
    config.whole = whole;
    config
}

impl ProxyConfig {
    fn take(&mut self, key: &str, value: &Value) -> Result<(), (String, String)> {
        let wrong = |help: &str| (format!("{value} cannot stand here"), help.to_owned());
        let text = || value.as_str().ok_or_else(|| wrong("write a text"));
        let port = || {
            let number = value.as_u64().and_then(|n| u16::try_from(n).ok());
            number.filter(|n| *n != 0).ok_or_else(|| wrong("write a port from 1 to 65535"))
        };
        let duration = || {
            let text = text()?;
            xds_protos::duration::parse(text)
                .map_err(|reason| (reason, "write a duration such as 45s".to_owned()))
        };
        match key {
            "discoveryAddress" => {
                let address = text()?;
                let good = address
                    .rsplit_once(':')
                    .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
                if !good {
                    return Err(wrong("write HOST:PORT, such as istiod.istio-system.svc:15012"));
                }
                self.discovery_address = address.to_owned();
            }
            "concurrency" => {
                let number = value
                    .as_u64()
                    .ok_or_else(|| wrong("write a number of worker threads; 0 is one for each CPU"))?;
                self.concurrency = Some(number).filter(|n| *n != 0);
            }
            "drainDuration" => {
                duration()?;
                self.drain = Some(text()?.to_owned());
            }
            "terminationDrainDuration" => self.termination_drain = Some(duration()?.as_secs()),
            "holdApplicationUntilProxyStarts" => {
                self.hold = value.as_bool().ok_or_else(|| wrong("write true or false"))?;
            }
            "interceptionMode" => {
                let mode = value.as_str().and_then(Interception::read);
                self.interception = mode.ok_or_else(|| wrong("write REDIRECT, TPROXY or NONE"))?;
            }
            "statusPort" => self.status_port = Some(port()?),
            "proxyAdminPort" => self.admin_port = port()?,
            "proxyMetadata" => {
                let map = value.as_object().ok_or_else(|| wrong("write NAME: \"value\""))?;
                for (name, value) in map {
                    let good = !name.is_empty()
                        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                        && !name.as_bytes()[0].is_ascii_digit();
                    let Some(text) = value.as_str().filter(|_| good) else {
                        let help = "names are letters, digits and _, values are texts; put them in quotes";
                        return Err((
                            format!("{name}: {value} is not an environment variable"),
                            help.to_owned(),
                        ));
                    };
                    self.metadata.push((name.clone(), text.to_owned()));
                }
            }
            "readinessProbe" => {
                let object = value.as_object().ok_or_else(|| wrong("write a probe as Kubernetes has it"))?;
                self.readiness = Some(Value::Object(object.clone()));
            }
            // The control plane reads it of the proxy that tells it (PROXY_CONFIG).
            "gatewayTopology" => {
                value.as_object().ok_or_else(|| wrong("write an object"))?;
            }
            "tracing" => {
                serde_json::from_value::<ProxyTracing>(value.clone())
                    .map_err(|error| (error.to_string(), "write ProxyConfig's tracing".to_owned()))?;
            }
            "image" => {
                let kind = value["imageType"].as_str().unwrap_or("default");
                if !matches!(kind, "default" | "distroless") || value.as_object().is_none_or(|o| o.len() > 1)
                {
                    return Err(wrong(
                        "the proxy has one image; name another by the annotation sidecar.istio.io/proxyImage",
                    ));
                }
            }
            _ => {
                return Err((
                    "not honoured by Weft".to_owned(),
                    "take it away; there are concurrency, discoveryAddress, drainDuration, gatewayTopology, \
                     holdApplicationUntilProxyStarts, interceptionMode, proxyAdminPort, proxyMetadata, readinessProbe, statusPort, \
                     terminationDrainDuration, tracing"
                        .to_owned(),
                ));
            }
        }
        Ok(())
    }

    /// A variable of `proxyMetadata`.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.metadata.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}
