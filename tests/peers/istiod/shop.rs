//! The mesh of these tests: a client, two versions of a web shop, its database, and a gateway, each with a proxy of ours; and a pod
//! that is no part of the mesh.

use std::fmt::Write;

use super::applications::{Application, greets};
use super::cluster::{Cluster, OUTSIDE};
use super::pods::{Pod, Role, Spec};
use crate::netns::dns::{self, server::Played};
use crate::netns::hosts::{Host, Serving};

/// Settings over those of the chart.
const VALUES: &str = "
meshConfig:
  accessLogFile: /dev/stdout
  accessLogEncoding: JSON
  extensionProviders:
  - name: spans
    opentelemetry: {service: stranger.elsewhere.svc.cluster.local, port: 80}
  - name: asked
    envoyExtAuthzHttp: {service: stranger.elsewhere.svc.cluster.local, port: 80}
";

/// Where the Services are.
pub const WEB: &str = "10.96.0.10:80";
pub const ANYTHING: &str = "10.96.0.10:7000";
pub const BYTES: &str = "10.96.0.10:7001";
/// The same pods without a rule of their own.
pub const FRONT: &str = "10.96.0.15:80";
pub const DATABASE: &str = "10.96.0.11:5432";

/// A pod of the namespace `shop`.
const fn of_shop(
    name: &'static str,
    account: &'static str,
    number: u8,
    labels: &'static [(&str, &str)],
) -> Spec {
    Spec { name, namespace: "shop", account, number, labels, role: Role::Sidecar }
}

const SPECS: [Spec; 6] = [
    of_shop("client", "client", 1, &[("app", "client")]),
    of_shop("web-1", "web", 11, &[("app", "web"), ("version", "v1")]),
    of_shop("web-2", "web", 12, &[("app", "web"), ("version", "v2")]),
    of_shop("database", "database", 21, &[("app", "database")]),
    Spec {
        name: "gateway",
        namespace: "istio-system",
        account: "gateway",
        number: 31,
        labels: &[("app", "istio-ingressgateway"), ("istio", "ingressgateway")],
        role: Role::Gateway,
    },
    Spec {
        name: "stranger",
        namespace: "elsewhere",
        account: "default",
        number: 41,
        labels: &[("app", "stranger")],
        role: Role::None,
    },
];

pub struct Shop<'a> {
    pub cluster: Cluster<'a>,
    pub pods: Vec<Pod>,
    /// The applications of the web shop's versions.
    pub web: [Application; 2],
    /// The same at a port whose name does not say what it speaks.
    pub found_out: [Application; 2],
    /// Who is asked for names.
    pub names: Played,
    _stranger: Application,
    _others: Vec<Serving>,
}

/// A Service, with ports as name, number and target, and the pods behind it.
struct Service {
    namespace: &'static str,
    name: &'static str,
    ip: &'static str,
    ports: &'static [(&'static str, u16, u16)],
    pods: &'static [&'static str],
}

/// One of the namespace `shop`.
const fn service(
    name: &'static str,
    ip: &'static str,
    ports: &'static [(&'static str, u16, u16)],
    pods: &'static [&'static str],
) -> Service {
    Service { namespace: "shop", name, ip, ports, pods }
}

const SERVICES: [Service; 8] = [
    service(
        "web",
        "10.96.0.10",
        &[("http", 80, 8080), ("x", 7000, 7000), ("z", 7001, 7001)],
        &["web-1", "web-2"],
    ),
    service("front", "10.96.0.15", &[("http", 80, 8080)], &["web-1", "web-2"]),
    service("database", "10.96.0.11", &[("tcp", 5432, 5432)], &["database"]),
    service("archive", "10.96.0.16", &[("tcp", 6000, 6000)], &["database"]),
    service("members", "None", &[("tcp", 6000, 6000)], &["database"]),
    service("client", "10.96.0.12", &[("http", 80, 8080)], &["client"]),
    Service {
        namespace: "istio-system",
        ..service(
            "istio-ingressgateway",
            "10.96.0.13",
            &[("http2", 80, 8080), ("https", 443, 8443)],
            &["gateway"],
        )
    },
    Service {
        namespace: "elsewhere",
        ..service("stranger", "10.96.0.14", &[("http", 80, 8080)], &["stranger"])
    },
];

impl Service {
    fn object(&self) -> String {
        let Self { namespace, name, ip, .. } = self;
        let app = SPECS.iter().find(|spec| spec.name == self.pods[0]).unwrap().labels[0].1;
        let ports: String = self
            .ports
            .iter()
            .map(|(name, port, target)| format!("{{name: {name}, port: {port}, targetPort: {target}}}, "))
            .collect();
        format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{clusterIP: {ip}, selector: {{app: {app}}}, ports: [{ports}]}}
---"
        )
    }

    /// Its endpoints, as the controller writes them once its pods are there.
    fn slice(&self) -> String {
        let Self { namespace, name, .. } = self;
        let ports: String = self
            .ports
            .iter()
            .map(|(name, _, target)| format!("{{name: {name}, port: {target}, protocol: TCP}}, "))
            .collect();
        let specs = SPECS.iter().filter(|spec| self.pods.contains(&spec.name));
        let endpoints: String = specs
            .map(|Spec { name, number, .. }| {
                format!(
                    "{{addresses: [10.79.1.{number}], conditions: {{ready: true}}, \
                     targetRef: {{kind: Pod, name: {name}, namespace: {namespace}}}}}, "
                )
            })
            .collect();
        format!(
            "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{ports}]
endpoints: [{endpoints}]
---"
        )
    }
}

impl<'a> Shop<'a> {
    /// Starts everything; `mode` is how xDS is spoken.
    pub fn start(host: &'a Host, at: &str, mode: &str) -> Self {
        let cluster = Cluster::start(host, at, VALUES);
        let names = dns::server::Server::start(host, &[OUTSIDE.into()]);
        let mut objects = String::new();
        for namespace in ["shop", "elsewhere"] {
            writeln!(objects, "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n---")
                .unwrap();
        }
        for Spec { namespace, account, .. } in &SPECS {
            writeln!(objects, "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: {namespace}}}\n---")
                .unwrap();
        }
        objects.extend(SERVICES.iter().map(Service::object));
        cluster.server.apply(&objects);
        let pods: Vec<_> = SPECS.into_iter().map(|spec| Pod::start(&cluster, spec, mode)).collect();
        cluster.server.apply(&SERVICES.iter().map(Service::slice).collect::<String>());
        let host = |name: &str| &pods.iter().find(|pod| pod.spec.name == name).unwrap().host;
        let web = ["web-1", "web-2"].map(|name| Application::start(host(name), 8080, name));
        let found_out = ["web-1", "web-2"].map(|name| Application::start(host(name), 7000, name));
        let others = vec![
            greets(host("web-1"), 7001, ""),
            greets(host("web-2"), 7001, ""),
            greets(host("database"), 5432, "database"),
            greets(host("database"), 6000, "member"),
        ];
        let stranger = Application::start(host("stranger"), 8080, "stranger");
        Self { cluster, pods, web, found_out, names, _stranger: stranger, _others: others }
    }

    pub fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.spec.name == name).unwrap()
    }

    /// Ends a pod's proxy as a power cut would, and starts it again.
    pub fn restart(&mut self, name: &str) {
        let pod = self.pods.iter_mut().find(|pod| pod.spec.name == name).unwrap();
        pod.restart(&self.cluster);
    }

    /// The pods that have a proxy.
    pub fn proxies(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| pod.spec.role != Role::None)
    }
}
