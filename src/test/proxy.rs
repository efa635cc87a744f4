//! One workload's proxy as the cases ask it: what the control plane renders for it, compiled by the proxy's own code, and as it
//! was rendered, for what only has to be told.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, bail};
use bytes::Bytes;
use serde_json::{Value, json};
use weft_control::model::{Workload, World};
use weft_control::render::{Interception, Memo, ProxyKind, ProxyNode, render};
use weft_proxy::listen::ListenerConfig;
use weft_proxy::listen::chain::FilterChain;
use weft_proxy::listen::decide::{Caller, Hello};
use weft_proxy::route::RouteConfig;
use weft_proxy::state::{CompileContext, ConfigError, NodeInfo, Role, Tables};
use xds_protos::ResourceType;
use xds_protos::envoy::config::listener::v3::Listener;
use xds_protos::envoy::config::route::v3::RouteConfiguration;

/// Where connections come from of which nobody says where, and where names lead that no registry knows (RFC 5737's
/// documentation addresses).
pub(super) const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
/// The listeners to which the kernel redirects.
const CAPTURED: [&str; 2] = ["virtualOutbound", "virtualInbound"];
/// INBOUND of Envoy's `TrafficDirection`.
const INBOUND: i32 = 1;

/// What a proxy is told, as bytes by kind and name.
pub type Resources = BTreeMap<ResourceType, BTreeMap<Arc<str>, Bytes>>;

/// A proxy, as far as it decides where connections and requests go.
pub(super) struct Proxy {
    pub(super) node: ProxyNode,
    pub(super) gateway: bool,
    listeners: Vec<Listening>,
    pub(super) tables: Tables,
    pub(super) info: Arc<NodeInfo>,
    /// As they were rendered, by kind and name.
    rendered: BTreeMap<ResourceType, BTreeMap<Arc<str>, Value>>,
}

/// A listener, compiled and as it was rendered.
pub(super) struct Listening {
    pub(super) name: String,
    addresses: Vec<SocketAddr>,
    inbound: bool,
    /// It has its port itself: where a connection was going before is not known.
    pub(super) bound: bool,
    /// Or why the proxy does not take it.
    config: Result<ListenerConfig, String>,
    value: Value,
}

/// What takes a connection.
pub(super) struct Taken<'a> {
    pub(super) listener: &'a Listening,
    /// The chain and what it was rendered from; none where there is none for such a connection.
    pub(super) chain: Option<(&'a Arc<FilterChain>, &'a Value)>,
}

/// The proxy of a workload as it describes itself: a sidecar in a pod whose connections the kernel redirects, or a gateway.
pub fn node(workload: &Workload) -> ProxyNode {
    let mut node = crate::up::plan::node(workload, workload.meta.name.clone());
    if node.kind != ProxyKind::Router {
        node.interception = Interception::Redirect;
    }
    node
}

fn refused<'a>(what: &'a str, name: &'a str) -> impl Fn(Vec<ConfigError>) -> anyhow::Error + 'a {
    move |errors| {
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the proxy does not take its {what} {name}: {}", errors.join("; "))
    }
}

impl Proxy {
    pub(super) fn new(world: &World, workload: &Workload) -> anyhow::Result<Self> {
        let mut rendered = Resources::new();
        for (kind, resources) in render(world, &node(workload), false, &Memo::default()) {
            let all = resources.iter().map(|(name, resource)| (name.clone(), resource.bytes.clone()));
            rendered.insert(kind, all.collect());
        }
        let proxy = Self::given(workload, &rendered)?;
        // What our own control plane renders is taken as a whole, whichever listener is asked about.
        match proxy.listeners.iter().find_map(|listening| listening.config.as_ref().err()) {
            Some(error) => bail!("{error}"),
            None => Ok(proxy),
        }
    }

    /// The proxy of a workload that was told these resources, whoever rendered them.
    pub(super) fn given(workload: &Workload, resources: &Resources) -> anyhow::Result<Self> {
        let node = node(workload);
        let gateway = node.kind == ProxyKind::Router;
        let mut rendered: BTreeMap<ResourceType, BTreeMap<Arc<str>, Value>> = BTreeMap::new();
        for (kind, resources) in resources {
            let name = xds_protos::type_url::name(kind.type_url());
            let value = |bytes: &[u8]| xds_protos::json::bytes_to_value(name, bytes);
            rendered.insert(*kind, resources.iter().map(|(name, b)| (name.clone(), value(b))).collect());
        }
        let role = if gateway { Role::Gateway } else { Role::Sidecar };
        let info = Arc::new(NodeInfo { id: node.id.clone(), role, ..NodeInfo::default() });
        let mut proxy =
            Self { node, gateway, listeners: Vec::new(), tables: Tables::default(), info, rendered };
        proxy.compile()?;
        Ok(proxy)
    }

    /// What was rendered under this name.
    pub(super) fn rendered(&self, kind: ResourceType, name: &str) -> Option<&Value> {
        self.rendered.get(&kind)?.get(name)
    }

    pub(super) fn context(&self) -> CompileContext {
        CompileContext::new(&self.tables, self.info.clone(), SystemTime::now())
    }

    fn compile(&mut self) -> anyhow::Result<()> {
        for (name, value) in self.rendered.get(&ResourceType::Route).into_iter().flatten() {
            let proto: RouteConfiguration = xds_protos::json::from_value(value.clone())?;
            let compiled = RouteConfig::compile(&proto, &self.context())
                .map_err(refused("route configuration", name))?;
            self.tables.routes.slot(name).publish(Arc::new(compiled));
        }
        let mut listeners = Vec::new();
        for (name, value) in self.rendered.get(&ResourceType::Listener).into_iter().flatten() {
            let mut quiet = value.clone();
            crate::authz::leave_logs_alone(&mut quiet);
            leave_files_alone(&mut quiet);
            let proto: Listener = xds_protos::json::from_value(quiet)?;
            let config = ListenerConfig::compile(&proto, &self.context())
                .map_err(|errors| refused("listener", name)(errors).to_string());
            let others = proto.additional_addresses.iter().map(|a| a.address.as_ref());
            let addresses = std::iter::once(proto.address.as_ref()).chain(others);
            listeners.push(Listening {
                name: name.to_string(),
                addresses: addresses.filter_map(crate::up::plan::socket).collect(),
                inbound: proto.traffic_direction == INBOUND,
                bound: value["bind_to_port"] != false && !CAPTURED.contains(&&**name),
                config,
                value: value.clone(),
            });
        }
        self.listeners = listeners;
        Ok(())
    }

    /// The listener that gets a connection to this address: the one of the address, else the one of its port at any address,
    /// else the one by which the kernel redirected it.
    fn listener(&self, to: SocketAddr, inbound: bool) -> Option<&Listening> {
        let captured = |l: &&Listening| CAPTURED.contains(&l.name.as_str());
        let all = || self.listeners.iter().filter(|l| l.inbound == inbound || self.gateway);
        let own = |any: bool| {
            all().filter(|l| !captured(l)).find(|l| {
                l.addresses.iter().any(|a| {
                    a.port() == to.port()
                        && if any {
                            a.ip().is_unspecified() && a.is_ipv4() == to.is_ipv4()
                        } else {
                            a.ip() == to.ip()
                        }
                })
            })
        };
        own(false).or_else(|| own(true)).or_else(|| all().find(captured))
    }

    /// What takes this connection. `http`: it carries requests.
    ///
    /// # Errors
    /// The proxy does not take the listener that would.
    pub(super) fn take(
        &self,
        caller: &Caller,
        inbound: bool,
        http: bool,
    ) -> anyhow::Result<Option<Taken<'_>>> {
        let Some(listener) = self.listener(caller.local, inbound) else { return Ok(None) };
        let config = listener.config.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        let chain = config.chain_for(caller, http).map(|chain| {
            let index = config.chains.iter().position(|other| Arc::ptr_eq(other, chain));
            let value = match index {
                Some(index) => &listener.value["filter_chains"][index],
                None => &listener.value["default_filter_chain"],
            };
            (chain, value)
        });
        Ok(Some(Taken { listener, chain }))
    }

    /// The ports at which a gateway listens.
    pub(super) fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> =
            self.listeners.iter().flat_map(|l| &l.addresses).map(SocketAddr::port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// The address that the workload's application gets for a name, as the cluster's DNS answers.
    pub(super) fn resolve(&self, world: &World, host: &str) -> anyhow::Result<IpAddr> {
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        if let Ok(address) = host.parse() {
            return Ok(address);
        }
        let (own, domain) = (&self.node.namespace, world.domain());
        let full = [
            host.to_owned(),
            format!("{host}.{own}.svc.{domain}"),
            format!("{host}.svc.{domain}"),
            format!("{host}.{domain}"),
        ];
        let Some(service) = full.iter().find_map(|name| world.service(name, own)) else {
            return Ok(ELSEWHERE);
        };
        let fixed = service.addresses.iter().find(|a| a.parse::<IpAddr>().is_ok_and(|a| !a.is_unspecified()));
        let member = || service.endpoints.first().map(|e| &e.address).filter(|_| service.headless);
        match fixed.or_else(member) {
            Some(address) => address.parse().with_context(|| format!("{host}: {address:?} is no address")),
            None => Ok(ELSEWHERE),
        }
    }
}

/// How a connection begins TLS.
pub(super) fn hello(server_name: Option<&str>, protocols: &[&str]) -> Hello {
    Hello {
        server_name: server_name.map(|name| name.to_ascii_lowercase().into()),
        application_protocols: protocols.iter().map(|name| name.as_bytes().to_vec()).collect(),
        certificate: None,
    }
}

/// Files of TLS lie where the proxy runs: a question does without them.
pub(super) fn leave_files_alone(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.remove("tls_certificates").is_some() {
                let stand_in =
                    json!([{"name": "file", "sds_config": {"ads": {}, "resource_api_version": "V3"}}]);
                fields.insert("tls_certificate_sds_secret_configs".to_owned(), stand_in);
            }
            for key in ["trusted_ca", "crl"] {
                if fields.get(key).is_some_and(|source| source.get("filename").is_some()) {
                    fields.remove(key);
                }
            }
            fields.values_mut().for_each(leave_files_alone);
        }
        Value::Array(items) => items.iter_mut().for_each(leave_files_alone),
        _ => {}
    }
}
