//! What is applied with kubectl reaches proxies: services and endpoints, Istio's resources, and what is said of wrong ones.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::Server;
use crate::programs::{Process, get, weft, weft_proxy};

/// A control plane that reads a server's mesh, and a proxy of a client in the namespace `shop`.
pub struct Mesh {
    control: Process,
    proxy: Process,
    at: String,
    client: String,
}

pub fn ready(at: &str) -> bool {
    get(format!("{at}:8080").parse().unwrap(), "/ready").is_ok_and(|(status, _)| status == 200)
}

pub fn control(kubeconfig: &Path, at: &str) -> Command {
    let mut control = weft();
    control.arg("control").arg("--kubeconfig").arg(kubeconfig).args(["--address", at, "--ca-keys", "p256"]);
    control
}

impl Mesh {
    pub fn start(server: &Server, kubeconfig: &Path, at: &str, client: &str) -> Self {
        let (control_name, proxy_name) = (format!("control-{at}"), format!("proxy-{client}"));
        let mut control = Process::start(&control_name, &mut control(kubeconfig, at), server.directory());
        control.wait("ready", || ready(at));
        let mut proxy = weft_proxy();
        proxy.args(["--xds-address", &format!("{at}:15010"), "--xds-plaintext", "--namespace", "shop"]);
        proxy.args([
            "--ip",
            client,
            "--admin-address",
            &format!("{client}:15000"),
            "--interception-mode",
            "NONE",
        ]);
        let proxy = Process::start(&proxy_name, proxy.args(["--concurrency", "1"]), server.directory());
        Self { control, proxy, at: at.to_owned(), client: client.to_owned() }
    }

    /// Kills the control plane, and starts it again.
    pub fn replace(&mut self, server: &Server, kubeconfig: &Path, between: impl FnOnce()) {
        self.control.end();
        between();
        let name = format!("control-{}", self.at);
        self.control = Process::start_again(&name, &mut control(kubeconfig, &self.at), server.directory());
    }

    /// A page of the proxy's administration.
    fn page(&self, path: &str) -> String {
        let at = format!("{}:15000", self.client).parse().unwrap();
        get(at, path).map(|(_, body)| body).unwrap_or_default()
    }

    /// Addresses of the proxy's endpoints of a cluster.
    fn endpoints(&self, cluster: &str) -> Vec<String> {
        let page = self.page("/clusters");
        let named = page.lines().filter_map(|line| line.strip_prefix(cluster)?.strip_prefix("::"));
        let mut all: Vec<_> = named
            .filter_map(|rest| rest.strip_suffix("::health_flags::healthy"))
            .map(str::to_owned)
            .collect();
        all.sort();
        all
    }

    pub fn wait_for_endpoints(&self, cluster: &str, wanted: &[&str]) {
        let mut seen = Vec::new();
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            seen = self.endpoints(cluster);
            if seen == wanted {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{cluster} has {seen:?}, not {wanted:?}\n{}\n{}", self.control.log(), self.proxy.log());
    }
}

/// What the control plane has to say about its configuration.
fn findings(at: &str) -> String {
    get(format!("{at}:8080").parse().unwrap(), "/debug/configz").map(|(_, body)| body).unwrap_or_default()
}

pub const CART: &str = "outbound|80||cart.shop.svc.cluster.local";

/// A trial of cart's second version.
pub const TRIAL: &str = "apiVersion: weft.dev/v1alpha1
kind: TrafficManagement
metadata: {name: trial, namespace: shop}
spec:
  canaryDeployment:
    service: cart
    stableVersion: v1
    canaryVersion: v2
    trafficSplit: {stable: 90, canary: 10}
    successCriteria: {errorRateThreshold: 0.5}
    rollbackCriteria: {errorRateThreshold: 2}
";

/// Namespaces, accounts, a node and two pods of a service.
pub const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: 'proxyHttpPort: 15080', meshNetworks: 'networks: {}'}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: cart, namespace: shop}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: a}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: web}]}
";

pub fn pod(name: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: cart, version: {name}}}}}
spec: {{serviceAccountName: cart, nodeName: n1, containers: [{{name: app, image: none, ports: [{{name: web, containerPort: 8080}}]}}]}}
"
    )
}

/// What the kubelet says of a pod that runs.
pub fn runs(server: &Server, name: &str, ip: &str) {
    let status = format!(
        r#"{{"status":{{"phase":"Running","podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}],"conditions":[{{"type":"Ready","status":"True"}}]}}}}"#
    );
    server.kubectl(&[
        "-n",
        "shop",
        "patch",
        "pod",
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ]);
}

/// The slice that the controller of endpoints would write.
pub fn slice(endpoints: &[(&str, &str, bool)]) -> String {
    let listed: String = endpoints
        .iter()
        .map(|(pod, ip, ready)| {
            format!("- {{addresses: [{ip}], conditions: {{ready: {ready}}}, nodeName: n1, targetRef: {{kind: Pod, name: {pod}, namespace: shop}}}}\n")
        })
        .collect();
    let listed =
        if listed.is_empty() { "endpoints: []\n".to_owned() } else { format!("endpoints:\n{listed}") };
    format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: cart-1, namespace: shop, labels: {{kubernetes.io/service-name: cart}}}}
addressType: IPv4
ports: [{{name: http, port: 8080, protocol: TCP}}]
{listed}"
    )
}

pub fn crds() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/crds").to_owned()
}

/// Waits until the API server serves what has been defined.
pub fn established(server: &Server) {
    server.kubectl(&[
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd",
        "-l",
        "app.kubernetes.io/part-of=weft",
    ]);
}

#[test]
fn what_is_applied_reaches_a_proxy_and_a_lost_api_server_loses_nothing() {
    let mut server = Server::start("127.36.1.1");
    server.apply(SHOP);
    server.apply(&[pod("v1"), pod("v2")].concat());
    runs(&server, "v1", "10.88.0.1");
    runs(&server, "v2", "10.88.0.2");
    server.apply(&slice(&[("v1", "10.88.0.1", true), ("v2", "10.88.0.2", true)]));
    let kubeconfig = server.kubeconfig("administrator");
    let mut mesh = Mesh::start(&server, &kubeconfig, "127.36.1.2", "127.36.1.3");
    mesh.wait_for_endpoints(CART, &["10.88.0.1:8080", "10.88.0.2:8080"]);

    // What is not ready, and what is gone, is no endpoint.
    server.apply(&slice(&[("v1", "10.88.0.1", true), ("v2", "10.88.0.2", false)]));
    mesh.wait_for_endpoints(CART, &["10.88.0.1:8080"]);
    server.apply(&slice(&[("v2", "10.88.0.2", true)]));
    mesh.wait_for_endpoints(CART, &["10.88.0.2:8080"]);

    // Istio's kinds are followed from when they are defined.
    server.kubectl(&["apply", "-f", &crds()]);
    established(&server);
    let rule = |host: &str| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: cart, namespace: shop}}
spec: {{hosts: [cart], http: [{{name: first, timeout: 7s, route: [{{destination: {{host: {host}, subset: v2}}}}]}}]}}
"
        )
    };
    let subsets = "apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: cart, namespace: shop}
spec: {host: cart, subsets: [{name: v2, labels: {version: v2}}]}
---
";
    server.apply(&[subsets, &rule("cart")].concat());
    let subset = "outbound|80|v2|cart.shop.svc.cluster.local";
    mesh.wait_for_endpoints(subset, &["10.88.0.2:8080"]);

    let page = format!("{}:15000", mesh.client).parse().unwrap();
    let timeout = || get(page, "/config_dump").is_ok_and(|(_, dump)| dump.contains("\"7s\""));
    mesh.proxy.wait("told of the route", timeout);

    // What is wrong is reported, and its last good version stays while all else goes on.
    let wrong = rule("cart").replace("timeout: 7s", "timeuot: 9s");
    server.apply(&wrong);
    let at = mesh.at.clone();
    mesh.control.wait("telling of it", || findings(&at).contains("spec.http[0].timeuot"));
    server.apply(&slice(&[("v1", "10.88.0.1", true), ("v2", "10.88.0.2", true)]));
    mesh.wait_for_endpoints(CART, &["10.88.0.1:8080", "10.88.0.2:8080"]);
    assert!(timeout(), "the last good version serves");

    // Without the API server everything stays as it is, and that is said.
    server.kill();
    mesh.control.wait("aware of it", || findings(&at).contains("the API server does not answer"));
    mesh.wait_for_endpoints(CART, &["10.88.0.1:8080", "10.88.0.2:8080"]);
    server.restart();
    server.apply(&slice(&[("v1", "10.88.0.1", true)]));
    server.kubectl(&["-n", "shop", "delete", "pod", "v2", "--force", "--grace-period=0"]);
    mesh.wait_for_endpoints(CART, &["10.88.0.1:8080"]);
    mesh.wait_for_endpoints(subset, &[]);
    assert!(timeout(), "the last good version outlives the API server");
}
