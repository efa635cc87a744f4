//! A proxy that a test's management server configures.

use std::net::SocketAddr;

use xds_protos::ResourceType;

use super::eventually;
use super::http::{backend, get};
use super::logged::Logged;
use super::management::Management;

/// A proxy that serves `/` at port 8080 of an address of its own, as a management server told it.
pub struct World {
    pub server: Management,
    pub proxy: Logged,
    pub ip: &'static str,
    pub backend: SocketAddr,
}

pub fn cluster(name: &str, backend: SocketAddr, more: &str) -> String {
    format!(
        "
'@type': envoy.config.cluster.v3.Cluster
name: {name}
type: STATIC
connect_timeout: 1s
load_assignment:
  cluster_name: {name}
  endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]
{more}",
        backend.ip(),
        backend.port()
    )
}

/// A listener at a port, with these filters before the router.
pub fn listener(name: &str, ip: &str, port: u16, filters: &str) -> String {
    format!(
        "
'@type': envoy.config.listener.v3.Listener
name: {name}
address: {{socket_address: {{address: {ip}, port_value: {port}}}}}
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: test
      rds: {{route_config_name: routes, config_source: {{ads: {{}}, resource_api_version: V3}}}}
      http_filters:
{filters}
      - name: envoy.filters.http.router
        typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"
    )
}

pub fn routes(routes: &str) -> String {
    format!(
        "
'@type': envoy.config.route.v3.RouteConfiguration
name: routes
virtual_hosts:
- name: all
  domains: ['*']
  routes:
{routes}"
    )
}

pub const TO_BACKEND: &str = "  - {match: {prefix: /}, route: {cluster: backend}}\n";

pub fn all(resources: &[String]) -> String {
    resources.join("\n---\n")
}

impl World {
    pub fn start(ip: &'static str, mode: &str) -> Self {
        Self::start_with(ip, &["--xds-mode", mode])
    }

    /// The same with these flags.
    pub fn start_with(ip: &'static str, more: &[&str]) -> Self {
        let (server, backend) = (Management::start(), backend("backend"));
        server.push(&all(&[
            cluster("backend", backend, ""),
            listener("main", ip, 8080, ""),
            routes(TO_BACKEND),
        ]));
        let (server_address, admin) = (server.address.to_string(), format!("{ip}:15000"));
        let own = [
            "proxy",
            "--xds-address",
            &server_address,
            "--xds-plaintext",
            "--concurrency",
            "1",
            "--ip",
            ip,
            "--admin-address",
            &admin,
        ];
        let proxy = Logged::weft(&[&own, more].concat());
        let world = Self { server, proxy, ip, backend };
        eventually("the proxy serves", || world.get("/").is_ok_and(|a| a == (200, "backend".to_owned())));
        world
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip.parse().unwrap(), port)
    }

    pub fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        get(self.at(8080), path)
    }

    /// Pushes, and gives the refusal of this kind, which must come.
    pub fn refused(&self, kind: ResourceType, yaml: &str) -> String {
        let version = self.server.push(yaml);
        let mut heard = None;
        eventually("an answer to the push", || {
            heard = self.server.heard(kind, version);
            heard.is_some()
        });
        heard.unwrap().unwrap_or_else(|| panic!("{} was taken:\n{yaml}", kind.short()))
    }

    /// Pushes, and waits until this kind was taken.
    pub fn taken(&self, kind: ResourceType, yaml: &str) {
        let version = self.server.push(yaml);
        eventually("an answer to the push", || self.server.heard(kind, version).is_some());
        assert_eq!(self.server.heard(kind, version), Some(None));
    }

    /// Requests are answered as at the start, and the proxy is on the stream that it began with.
    pub fn goes_on(&self) {
        for _ in 0..5 {
            assert_eq!(self.get("/").unwrap(), (200, "backend".to_owned()));
        }
        assert_eq!(self.server.connections(), 1);
    }
}
