//! HealthCheck: clients ask a service's endpoints whether they are well, before requests find out (weft.dev).

use std::sync::Arc;

use serde::Deserialize;

use super::meta::Object;
use super::service::Service;
use super::values::Timespan;
use super::world::World;

/// The specification of a HealthCheck.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HealthCheck {
    /// The service, full (short names are resolved by the reader).
    pub host: String,
    /// Ports of the service that are checked; empty for all.
    pub ports: Vec<u16>,
    /// Time between checks; 10 s by default.
    pub interval: Option<Timespan>,
    /// Time between checks of an endpoint that fails them; as `interval` by default.
    pub unhealthy_interval: Option<Timespan>,
    /// Time between checks while the client has sent the service nothing; as `interval` by default.
    pub idle_interval: Option<Timespan>,
    /// How long an answer is waited for; 1 s by default.
    pub timeout: Option<Timespan>,
    /// Failures in a row after which an endpoint gets nothing; 3 by default.
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row after which it gets requests again; 2 by default.
    pub healthy_threshold: Option<u32>,
    /// Below this share of healthy endpoints, in percent, health is ignored. By default what the DestinationRule says
    /// (`outlierDetection.minHealthPercent`), else 0: never.
    pub min_health_percent: Option<u32>,
    /// By a request of HTTP.
    pub http: Option<HttpCheck>,
    /// By `grpc.health.v1.Health`.
    pub grpc: Option<GrpcCheck>,
    /// By a connection, and bytes if any are given.
    pub tcp: Option<TcpCheck>,
}

/// A request of HTTP.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpCheck {
    /// Its path.
    pub path: String,
    /// Its authority; the service's host by default.
    pub host: String,
    /// Its method; GET by default.
    pub method: CheckMethod,
    /// Header fields that it has.
    pub headers: std::collections::BTreeMap<String, String>,
    /// Answers that are well, as `200` or `200-299`; 200 by default.
    pub expected_statuses: Vec<StatusRange>,
}

/// The method of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CheckMethod {
    /// Asks for the body, too.
    #[default]
    Get,
    /// Asks for the head alone.
    Head,
    /// Has a body, which is empty.
    Post,
    /// Asks what can be asked for.
    Options,
}

impl CheckMethod {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Options => "OPTIONS",
        }
    }
}

/// The question of `grpc.health.v1.Health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcCheck {
    /// The service that is asked about; the whole server by default.
    pub service_name: String,
    /// The authority of the question; the service's host by default.
    pub authority: String,
}

/// What is said on a connection. With neither, a connection that is taken is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TcpCheck {
    /// What is sent.
    pub send: String,
    /// What the answer must contain, in this order.
    pub receive: Vec<String>,
}

/// Statuses from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange(pub u16, pub u16);

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl serde::de::Visitor<'_> for Form {
            type Value = StatusRange;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a status such as 200, or a range such as 200-299")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<StatusRange, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<StatusRange, E> {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                match (first.trim().parse(), last.trim().parse()) {
                    (Ok(first), Ok(last)) if (100..600).contains(&first) && (first..600).contains(&last) => {
                        Ok(StatusRange(first, last))
                    }
                    _ => Err(E::custom(format_args!(
                        "{text:?} is no status and no range of them; write 200, or 200-299"
                    ))),
                }
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl HealthCheck {
    /// Whether it is about this port.
    pub fn is_for(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

impl World {
    /// The check by which a client in `namespace` looks at a port of `service`: as with DestinationRules, one of its own
    /// namespace, then one of the service's, then one of the root's; in each, one that names the port goes before one for all
    /// ports, and the older before the younger.
    pub fn health_check(
        &self,
        namespace: &str,
        service: &Service,
        port: u16,
    ) -> Option<&Arc<Object<HealthCheck>>> {
        let root = self.mesh().root_namespace.as_str();
        let own = (namespace != root).then_some(namespace);
        own.into_iter().chain([service.namespace(), root]).find_map(|namespace| {
            let here = || {
                self.health_checks().iter().filter(move |check| {
                    check.meta.namespace == namespace
                        && check.spec.host.eq_ignore_ascii_case(&service.hostname)
                        && check.spec.is_for(port)
                })
            };
            here().find(|check| !check.spec.ports.is_empty()).or_else(|| here().next())
        })
    }
}
