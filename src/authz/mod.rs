//! Who may do what, asked of the proxy's own configuration: the control plane renders what it would send to the workload's
//! proxy, the proxy compiles it, and a connection that nobody made is shown to that. There is no second reading of policies
//! here: `weft authz` and the truth tables ask the code that decides in a running mesh.

mod answer;
mod certificate;
mod find;
mod samples;
mod who;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, bail};
use serde_json::Value;
use weft_control::model::{Workload, World};
use weft_control::render::{Memo, render};
use weft_proxy::http::decide::Supposition;
use weft_proxy::listen::ListenerConfig;
use weft_proxy::listen::decide::{Caller, Decided, End, Hello};
use weft_proxy::state::{CompileContext, NodeInfo, Role, Tables};
use xds_protos::ResourceType;
use xds_protos::envoy::config::listener::v3::Listener;

pub use answer::{Answer, Decision, Rule};
pub use find::{identities, identity, workload};
pub use weft_proxy::filters::decide::Supposed;
pub use who::{Anybody, Reach, Reached, Way};

use crate::up::plan;

/// Where callers come from of whom nobody says where (RFC 5737's documentation addresses).
const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// INBOUND of Envoy's `TrafficDirection`.
const INBOUND: i32 = 1;

/// A caller, and what it asks for.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// The caller's SPIFFE ID; without one it speaks plain text.
    pub identity: Option<String>,
    /// Its address.
    pub from: Option<IpAddr>,
    /// The server name that it asks for in TLS.
    pub server_name: Option<String>,
    /// What it asks for by HTTP; bytes without.
    pub request: Option<Request>,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path, with its query.
    pub path: String,
    /// The authority.
    pub host: String,
    /// Further fields.
    pub headers: Vec<(String, String)>,
    /// What is taken for granted of its token, in place of a token.
    pub token: Option<Supposed>,
}

impl Request {
    /// As HTTP/1.1 writes it.
    fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", self.method, self.path, self.host);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        head.into_bytes()
    }
}

/// One workload's proxy, as far as it decides who may come to it.
pub struct Judge {
    world: World,
    workload: Arc<Workload>,
    ports: BTreeMap<u16, Port>,
    certificates: certificate::Certificates,
    runtime: tokio::runtime::Runtime,
}

struct Port {
    address: SocketAddr,
    config: ListenerConfig,
}

impl Judge {
    /// The proxy of a workload of this world.
    ///
    /// # Errors
    /// The workload has no address, or its configuration is not taken by the proxy.
    pub fn new(world: &World, workload: &Arc<Workload>) -> anyhow::Result<Self> {
        let name = format!("{}/{}", workload.meta.namespace, workload.meta.name);
        let address: IpAddr = workload.address().parse().with_context(|| {
            format!("WorkloadEntry {name}: spec.address {:?} is no IP address", workload.address())
        })?;
        let node = plan::node(workload, workload.meta.name.clone());
        let resources = render(world, &node, false, &Memo::default());
        let role = if workload.is_gateway() { Role::Gateway } else { Role::Sidecar };
        let info = Arc::new(NodeInfo { id: node.id.clone(), role, ..NodeInfo::default() });
        let mut ports = BTreeMap::new();
        for (listener, resource) in resources.get(&ResourceType::Listener).into_iter().flatten() {
            let listener_type = xds_protos::type_url::name(ResourceType::Listener.type_url());
            let mut value = xds_protos::json::bytes_to_value(listener_type, &resource.bytes);
            leave_logs_alone(&mut value);
            let proto: Listener = xds_protos::json::from_value(value)?;
            let Some(bound) = plan::socket(proto.address.as_ref()) else { continue };
            if proto.traffic_direction != INBOUND && !workload.is_gateway() {
                continue;
            }
            let context = CompileContext::new(&Tables::default(), info.clone(), SystemTime::now());
            let config = ListenerConfig::compile(&proto, &context).map_err(|errors| {
                let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
                anyhow::anyhow!("the proxy does not take its listener {listener}: {}", errors.join("; "))
            })?;
            let ip = if bound.ip().is_unspecified() { address } else { bound.ip() };
            ports.insert(bound.port(), Port { address: SocketAddr::new(ip, bound.port()), config });
        }
        Ok(Self {
            world: world.clone(),
            workload: workload.clone(),
            ports,
            certificates: certificate::Certificates::default(),
            runtime: tokio::runtime::Builder::new_current_thread().enable_time().build()?,
        })
    }

    /// The ports at which the workload can be reached through its proxy.
    pub fn ports(&self) -> Vec<u16> {
        self.ports.keys().copied().collect()
    }

    /// The port that is asked about: this one, or the only one.
    ///
    /// # Errors
    /// There is no such port, or one must be chosen.
    pub fn port(&self, given: Option<u16>) -> anyhow::Result<u16> {
        let known: Vec<_> = self.ports.keys().map(u16::to_string).collect();
        let (meta, known) = (&self.workload.meta, known.join(", "));
        let place = format!("WorkloadEntry {}/{}", meta.namespace, meta.name);
        match (given, self.ports.len()) {
            (Some(port), _) if self.ports.contains_key(&port) => Ok(port),
            (_, 0) => bail!(
                "{place} serves no port: no Service or ServiceEntry selects it, and no Sidecar gives it an ingress listener; check the labels"
            ),
            (Some(port), _) => {
                let target = self.world.served_at(self.workload.address()).find_map(|(service, endpoint)| {
                    let target = service.endpoint_port(service.port(port)?, endpoint)?;
                    Some(format!("; port {port} of {} is port {target} here", service.hostname))
                });
                bail!(
                    "{place} has no port {port}; it has {known} (ports of the workload, not of its service){}",
                    target.unwrap_or_default()
                )
            }
            (None, 1) => self.ports.keys().next().copied().context("one port"),
            (None, _) => bail!("{place} has several ports: choose one of {known} with --port"),
        }
    }

    /// The name by which callers address the workload at this port: its service's, else its own.
    pub fn host(&self, port: u16) -> String {
        self.service_at(port).map_or_else(|| self.workload.meta.name.clone(), |(host, _)| host)
    }

    /// Host name and port of the service behind a port.
    fn service_at(&self, port: u16) -> Option<(String, u16)> {
        self.world.served_at(self.workload.address()).find_map(|(service, endpoint)| {
            let of = service.ports.iter().find(|p| service.endpoint_port(p, endpoint) == Some(port))?;
            Some((service.hostname.to_string(), of.number))
        })
    }

    /// What the proxy decides. A caller with an identity shows it where the port takes it; where the port takes plain text
    /// alone, it comes as everybody does.
    ///
    /// # Errors
    /// There is no such port, or the identity cannot be put into a certificate.
    pub fn decide(&self, port: u16, question: &Question) -> anyhow::Result<Decided> {
        let at = self.ports.get(&port).with_context(|| format!("no port {port}"))?;
        let remote = SocketAddr::new(question.from.unwrap_or(SOMEWHERE), 40_000);
        let mut caller = Caller { remote, local: at.address, hello: self.hello(port, question)? };
        let request = question
            .request
            .as_ref()
            .map(|request| Supposition { head: request.head(), token: request.token.clone() });
        let decided = self.runtime.block_on(at.config.decide(&caller, request.as_ref()));
        let unseen = matches!(decided.end, End::Unreadable | End::Bytes | End::Closed(_));
        if question.identity.is_some() && !decided.secured && unseen {
            caller.hello = None;
            return Ok(self.runtime.block_on(at.config.decide(&caller, request.as_ref())));
        }
        Ok(decided)
    }

    /// How the caller begins TLS, as a sidecar would for it.
    fn hello(&self, port: u16, question: &Question) -> anyhow::Result<Option<Hello>> {
        if question.identity.is_none() && question.server_name.is_none() {
            return Ok(None);
        }
        let certificate = match &question.identity {
            Some(identity) => Some(self.certificates.of(identity)?),
            None => None,
        };
        let protocols: &[&str] = match (&question.identity, &question.request) {
            (Some(_), Some(_)) => &["istio-http/1.1", "istio", "http/1.1"],
            (Some(_), None) => &["istio-peer-exchange", "istio"],
            (None, _) => &["h2", "http/1.1"],
        };
        let usual = || self.service_at(port).map(|(host, number)| format!("outbound_.{number}_._.{host}"));
        let name = question.server_name.clone().or_else(usual);
        Ok(Some(Hello {
            server_name: name.map(|name| name.to_ascii_lowercase().into()),
            application_protocols: protocols.iter().map(|name| name.as_bytes().to_vec()).collect(),
            certificate,
        }))
    }
}

/// Takes access logs out of a listener: a question leaves no line, and opens no file.
pub(crate) fn leave_logs_alone(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("access_log");
            fields.values_mut().for_each(leave_logs_alone);
        }
        Value::Array(items) => items.iter_mut().for_each(leave_logs_alone),
        _ => {}
    }
}
