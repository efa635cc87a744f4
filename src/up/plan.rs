//! What has to run for a configuration: one proxy for each workload that has an identity, its application if it names one,
//! and at which addresses they listen. What the proxies will bind is taken from what the control plane would send them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use weft_control::model::{self, World};
use weft_control::render::{Interception, Memo, ProxyKind, ProxyNode, render};
use xds_protos::ResourceType;
use xds_protos::envoy::config::cluster::v3::Cluster;
use xds_protos::envoy::config::core::v3::{Address, address, socket_address};
use xds_protos::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use xds_protos::envoy::config::listener::v3::Listener;
use xds_protos::envoy::config::route::v3::{RouteConfiguration, route_match::PathSpecifier};
use xds_protos::prost::Message;

use super::proxy_config::ProxyConfig;

/// Ports of each proxy that no configuration names, on the workload's address (Istio's numbers).
pub const ADMIN_PORT: u16 = 15000;
/// Readiness.
pub const STATUS_PORT: u16 = 15021;
/// Metrics.
pub const PROMETHEUS_PORT: u16 = 15090;

/// A workload that runs here: its proxy, and maybe its application.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The WorkloadEntry's name, with `.NAMESPACE` where another namespace has one of the same name.
    pub id: String,
    /// The WorkloadEntry's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its address.
    pub address: IpAddr,
    /// Its service account.
    pub service_account: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The proxy is a gateway.
    pub gateway: bool,
    /// The application's command line (annotation weft.dev/command), split into words.
    pub command: Vec<String>,
    /// Where the application listens, as the sidecar sends to it.
    pub application: Option<SocketAddr>,
    /// Where the application finds its sidecar's HTTP proxy.
    pub http_proxy: Option<SocketAddr>,
    /// Where the proxy accepts requests for the workload (at a gateway: all of its listeners).
    pub inbound: Vec<SocketAddr>,
    /// Every address that the proxy's configuration binds.
    pub listeners: Vec<SocketAddr>,
    /// Host and path of what a gateway's routes answer.
    pub routes: Vec<(String, String)>,
    /// Settings of this proxy: mesh-wide defaults and annotation proxy.istio.io/config.
    pub proxy: ProxySettings,
}

/// Settings of one proxy.
#[derive(Clone, Debug, Default)]
pub struct ProxySettings {
    /// Environment (proxyMetadata).
    pub environment: BTreeMap<String, String>,
    /// Worker threads.
    pub concurrency: Option<u32>,
    /// Time for connections to drain when the proxy ends.
    pub drain: Option<Duration>,
    /// Time for connections to end when their listener is removed or changed.
    pub listener_drain: Option<Duration>,
}

impl Workload {
    /// The admin interface.
    pub fn admin(&self) -> SocketAddr {
        SocketAddr::new(self.address, ADMIN_PORT)
    }

    /// `/healthz/ready`.
    pub fn status(&self) -> SocketAddr {
        SocketAddr::new(self.address, STATUS_PORT)
    }

    /// `/stats/prometheus`.
    pub fn prometheus(&self) -> SocketAddr {
        SocketAddr::new(self.address, PROMETHEUS_PORT)
    }

    /// The service it is an instance of: label `app`, or its name.
    pub fn service(&self) -> &str {
        self.labels.get("app").unwrap_or(&self.name)
    }
}

/// The workloads to run.
pub fn workloads(world: &World) -> anyhow::Result<Vec<Workload>> {
    // One that is known by its network's gateway alone runs elsewhere.
    let with_identity = || {
        let here = |w: &&std::sync::Arc<model::Workload>| {
            !w.endpoint.service_account.is_empty() && !w.address().is_empty()
        };
        world.workloads().iter().filter(here)
    };
    with_identity()
        .map(|entry| {
            let namesakes = with_identity().filter(|w| w.meta.name == entry.meta.name).count();
            let id = match namesakes {
                1 => entry.meta.name.clone(),
                _ => format!("{}.{}", entry.meta.name, entry.meta.namespace),
            };
            workload(world, entry, id).with_context(|| {
                format!("{}: WorkloadEntry {}/{}", entry.meta.source, entry.meta.namespace, entry.meta.name)
            })
        })
        .collect()
}

fn workload(world: &World, entry: &model::Workload, id: String) -> anyhow::Result<Workload> {
    let address: IpAddr = entry.address().parse().with_context(|| {
        format!("spec.address {:?}: a workload that runs here needs an IP address", entry.address())
    })?;
    let node = node(entry, id.clone());
    let resources = render(world, &node, false, &Memo::default());
    let of = |kind| resources.get(&kind).into_iter().flatten().map(|(_, r)| r.bytes.clone());
    let listeners = of(ResourceType::Listener).map(Listener::decode).collect::<Result<Vec<_>, _>>()?;
    let all: Vec<SocketAddr> = listeners.iter().filter_map(|l| socket(l.address.as_ref())).collect();
    let proxy_port = world.mesh().proxy_http_port;
    let http_proxy =
        all.iter().copied().find(|a| !entry.is_gateway() && proxy_port > 0 && a.port() == proxy_port);
    // INBOUND = 1; a gateway's listeners are outbound ones in Istio.
    let inbound = listeners
        .iter()
        .filter(|l| entry.is_gateway() || l.traffic_direction == 1)
        .filter_map(|l| socket(l.address.as_ref()))
        .collect();
    let mut routes = Vec::new();
    if entry.is_gateway() {
        for config in of(ResourceType::Route) {
            routes.extend(answered(&RouteConfiguration::decode(config)?));
        }
    }
    let clusters = of(ResourceType::Cluster).map(Cluster::decode).collect::<Result<Vec<_>, _>>()?;
    let application = clusters.iter().filter(|c| c.name.starts_with("inbound|")).find_map(first_endpoint);
    let command = match entry.command() {
        Some(line) => words(line).context("metadata.annotations[weft.dev/command]")?,
        None => Vec::new(),
    };
    let config = match entry.meta.annotations.get("proxy.istio.io/config") {
        Some(text) => ProxyConfig::parse(text).context("metadata.annotations[proxy.istio.io/config]")?,
        None => ProxyConfig::default(),
    };
    let config = config.under(world.proxy_configs_of(&entry.meta.namespace, entry.labels()));
    let defaults = &world.mesh().default_config;
    Ok(Workload {
        id,
        name: entry.meta.name.clone(),
        namespace: entry.meta.namespace.clone(),
        address,
        service_account: entry.service_account().to_owned(),
        labels: entry.labels().iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        gateway: entry.is_gateway(),
        command,
        application,
        http_proxy,
        inbound,
        listeners: all,
        routes,
        proxy: ProxySettings {
            environment: config.environment,
            concurrency: config.concurrency.or(defaults.concurrency),
            listener_drain: config.listener_drain.or(defaults.drain_duration.map(|d| d.get())),
            drain: config.drain.or(defaults.termination_drain_duration.map(|d| d.get())),
        },
    })
}

/// A workload's proxy, as it describes itself to the control plane.
pub(crate) fn node(entry: &model::Workload, id: String) -> ProxyNode {
    ProxyNode {
        id,
        locality: Default::default(),
        kind: if entry.is_gateway() { ProxyKind::Router } else { ProxyKind::Sidecar },
        addresses: vec![entry.address().to_owned()],
        namespace: entry.meta.namespace.clone(),
        service_account: entry.service_account().to_owned(),
        labels: entry.labels().clone(),
        http_proxy_port: None,
        own_topology: None,
        own_tracing: None,
        mesh_id: String::new(),
        cluster_id: String::new(),
        network: String::new(),
        network_view: Vec::new(),
        interception: Interception::None,
        extensions: true,
        dns_capture: false,
        dns_auto_allocate: false,
    }
}

pub(crate) fn socket(address: Option<&Address>) -> Option<SocketAddr> {
    let Some(address::Address::SocketAddress(socket)) = &address?.address else { return None };
    let Some(socket_address::PortSpecifier::PortValue(port)) = socket.port_specifier else { return None };
    Some(SocketAddr::new(socket.address.parse().ok()?, u16::try_from(port).ok()?))
}

fn first_endpoint(cluster: &Cluster) -> Option<SocketAddr> {
    let endpoints = cluster.load_assignment.iter().flat_map(|a| &a.endpoints).flat_map(|l| &l.lb_endpoints);
    endpoints.into_iter().find_map(|e| match &e.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => socket(endpoint.address.as_ref()),
        _ => None,
    })
}

/// Host and path by which somebody can try each route.
fn answered(config: &RouteConfiguration) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for host in &config.virtual_hosts {
        // Of `a.example` and `a.example:80` the shortest is the plain one; `*` is nobody's name.
        let Some(name) = host.domains.iter().filter(|d| !d.contains('*')).min_by_key(|d| d.len()) else {
            continue;
        };
        for route in &host.routes {
            let path = match route.r#match.as_ref().and_then(|m| m.path_specifier.as_ref()) {
                Some(
                    PathSpecifier::Prefix(p) | PathSpecifier::Path(p) | PathSpecifier::PathSeparatedPrefix(p),
                ) => p,
                _ => continue,
            };
            let pair = (name.clone(), path.clone());
            if !found.contains(&pair) {
                found.push(pair);
            }
        }
    }
    found
}

/// Splits a command line at blanks; quotes keep words together. No shell is involved: no variables, no pipes.
fn words(line: &str) -> anyhow::Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(q) = quote {
        bail!("{line:?}: the quote {q} is not closed");
    }
    words.extend(word);
    if words.is_empty() {
        bail!("is empty; leave the annotation out if nothing is to be started");
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str) -> World {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
        weft_control::ingest::load_dir(&dir).into_result().unwrap()
    }

    #[test]
    fn ecotrack_is_a_gateway_and_eight_workloads_with_applications() {
        let all = workloads(&load("ecotrack")).unwrap();
        assert_eq!(all.len(), 9);
        let gateway = all.iter().find(|w| w.gateway).unwrap();
        assert_eq!(gateway.inbound, ["127.0.2.1:8080".parse().unwrap()]);
        assert!(gateway.command.is_empty());
        let route = ("api.ecotrack.platform.dev".to_owned(), "/api/users".to_owned());
        assert!(gateway.routes.contains(&route), "{:?}", gateway.routes);
        let canary = all.iter().find(|w| w.id == "user-service-canary-1").unwrap();
        assert_eq!(canary.application, Some("127.0.10.11:18080".parse().unwrap()));
        assert_eq!(canary.http_proxy, Some("127.0.10.11:15080".parse().unwrap()));
        assert_eq!(canary.inbound, ["127.0.10.11:8080".parse().unwrap()]);
        assert_eq!(canary.command, ["weft", "app", "--calls", "product-service"]);
        assert_eq!(canary.service(), "user-service");
    }

    #[test]
    fn quotes_keep_words_together() {
        assert_eq!(words("a 'b c'  \"d\"e ''").unwrap(), ["a", "b c", "de", ""]);
        assert!(words("a 'b").unwrap_err().to_string().contains("not closed"));
        assert!(words("  ").is_err());
    }
}
