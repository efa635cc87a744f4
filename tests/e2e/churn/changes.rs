//! What changes: clusters, endpoints, routes, listeners, certificates; some that carry traffic, and some beside them that come
//! and go.

use std::net::SocketAddr;

use xds_protos::ResourceType;

use crate::support::management::Management;
use crate::support::world::all;

/// How many of each kind come and go beside the traffic.
const ASIDE: u8 = 12;

pub struct Changes {
    ip: &'static str,
    backends: Vec<SocketAddr>,
    random: fastrand::Rng,
    certificates: Vec<rcgen::CertifiedKey<rcgen::KeyPair>>,
}

impl Changes {
    pub fn new(ip: &'static str, backends: Vec<SocketAddr>) -> Self {
        let make = |_| rcgen::generate_simple_self_signed(["churn.test".to_owned()]).unwrap();
        Self { ip, backends, random: fastrand::Rng::with_seed(7), certificates: (0..4).map(make).collect() }
    }

    /// What the clients of the TLS listener trust: every certificate that it may show.
    pub fn roots(&self) -> rustls::RootCertStore {
        let mut roots = rustls::RootCertStore::empty();
        self.certificates.iter().for_each(|c| roots.add(c.cert.der().clone()).unwrap());
        roots
    }

    /// Everything that traffic needs.
    pub fn all(&mut self) -> String {
        all(&[
            self.live(),
            self.endpoints(),
            self.listener(),
            self.tls_listener(),
            self.certificate(),
            self.routes(""),
        ])
    }

    /// A route that shows that this push counts.
    pub fn marker(&mut self) -> String {
        self.routes(
            "  - {match: {path: /marker}, direct_response: {status: 200, body: {inline_string: here}}}\n",
        )
    }

    /// One change.
    pub fn one(&mut self, server: &Management) {
        let n = self.random.u8(..ASIDE);
        match self.random.u8(..12) {
            0 => drop(server.push(&self.live())),
            1 | 2 => drop(server.push(&self.endpoints())),
            3 | 4 => drop(server.push(&self.routes(""))),
            5 => drop(server.push(&self.listener())),
            6 => drop(server.push(&self.certificate())),
            7 => drop(server.push(&self.cluster_aside(n))),
            8 => drop(server.remove(ResourceType::Cluster, &format!("aside-{n}"))),
            9 => drop(server.push(&self.listener_aside(n))),
            10 => drop(server.remove(ResourceType::Listener, &format!("aside-{n}"))),
            _ => drop(server.push(&all(&[self.cluster_aside(n), self.endpoints(), self.routes("")]))),
        }
    }

    fn live(&mut self) -> String {
        format!(
            "
'@type': envoy.config.cluster.v3.Cluster
name: live
type: EDS
connect_timeout: {}s
eds_cluster_config: {{service_name: live, eds_config: {{ads: {{}}, resource_api_version: V3}}}}
circuit_breakers: {{thresholds: [{{max_connections: 100000, max_requests: 100000, max_pending_requests: 100000}}]}}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {{http2_protocol_options: {{}}}}
",
            self.random.u8(5..20)
        )
    }

    /// One to all of the services behind it, with weights.
    fn endpoints(&mut self) -> String {
        let mut wanted = self.backends.clone();
        self.random.shuffle(&mut wanted);
        wanted.truncate(self.random.usize(1..=wanted.len()));
        let entries: String = wanted
            .iter()
            .map(|address| {
                format!(
                    "  - {{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}, load_balancing_weight: {}}}\n",
                    address.ip(),
                    address.port(),
                    self.random.u8(1..5)
                )
            })
            .collect();
        format!(
            "
'@type': envoy.config.endpoint.v3.ClusterLoadAssignment
cluster_name: live
endpoints:
- lb_endpoints:
{entries}"
        )
    }

    /// Traffic goes where it went, by routes that look different each time.
    fn routes(&mut self, first: &str) -> String {
        let others: String = (0..self.random.u8(..8))
            .map(|_| {
                let n = self.random.u8(..ASIDE);
                format!(
                    "  - {{match: {{prefix: /aside/{n}}}, route: {{cluster: aside-{n}, timeout: {n}s}}}}\n"
                )
            })
            .collect();
        format!(
            "
'@type': envoy.config.route.v3.RouteConfiguration
name: routes
virtual_hosts:
- name: all
  domains: ['*']
  routes:
{first}{others}  - {{match: {{prefix: /}}, route: {{cluster: live, timeout: 0s}}}}
"
        )
    }

    fn manager() -> &'static str {
        "
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: churn
      rds: {route_config_name: routes, config_source: {ads: {}, resource_api_version: V3}}
      http_filters:
      - name: envoy.filters.http.router
        typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
"
    }

    /// The listener of all the streams. Beside the chain that serves them there is another, which changes.
    fn listener(&mut self) -> String {
        format!(
            "
'@type': envoy.config.listener.v3.Listener
name: main
address: {{socket_address: {{address: {}, port_value: 8080}}}}
filter_chains:
- name: served
  filters:{}
- name: other
  filter_chain_match: {{source_prefix_ranges: [{{address_prefix: 10.{}.0.0, prefix_len: 16}}]}}
  filters:{}
",
            self.ip,
            Self::manager(),
            self.random.u8(..),
            Self::manager(),
        )
    }

    fn tls_listener(&self) -> String {
        format!(
            "
'@type': envoy.config.listener.v3.Listener
name: tls
address: {{socket_address: {{address: {}, port_value: 8443}}}}
filter_chains:
- filters:{}
  transport_socket:
    name: envoy.transport_sockets.tls
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      common_tls_context:
        tls_certificate_sds_secret_configs: [{{name: shown, sds_config: {{ads: {{}}, resource_api_version: V3}}}}]
",
            self.ip,
            Self::manager()
        )
    }

    fn certificate(&mut self) -> String {
        let shown = self.random.choice(&self.certificates).unwrap();
        let text = |pem: String| pem.replace('\n', "\\n");
        format!(
            "
'@type': envoy.extensions.transport_sockets.tls.v3.Secret
name: shown
tls_certificate:
  certificate_chain: {{inline_string: \"{}\"}}
  private_key: {{inline_string: \"{}\"}}
",
            text(shown.cert.pem()),
            text(shown.signing_key.serialize_pem())
        )
    }

    fn cluster_aside(&mut self, n: u8) -> String {
        let to = self.backends[0];
        crate::support::world::cluster(
            &format!("aside-{n}"),
            to,
            &format!("max_requests_per_connection: {}\n", self.random.u8(1..9)),
        )
    }

    fn listener_aside(&mut self, n: u8) -> String {
        let status = 200 + u16::from(self.random.u8(..9));
        let listener =
            crate::support::world::listener(&format!("aside-{n}"), self.ip, 9000 + u16::from(n), "");
        let inline = format!(
            "route_config: {{virtual_hosts: [{{name: a, domains: ['*'], routes: [{{match: {{prefix: /}}, direct_response: {{status: {status}}}}}]}}]}}"
        );
        listener.replace(
            "rds: {route_config_name: routes, config_source: {ads: {}, resource_api_version: V3}}",
            &inline,
        )
    }
}
