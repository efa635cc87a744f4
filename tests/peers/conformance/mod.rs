//! The Gateway API's own conformance suite, on a cluster that lacks nothing but containers: a real API server with the controllers of
//! Kubernetes (Deployments, EndpointSlices, garbage and others), Weft as it is installed, and a node that runs pods as processes, each in a
//! network namespace of its own. Weft makes the gateways: their Deployments become pods, the injector fills those, and they run.
//!
//! What the suite looks at is what the GatewayClass says of itself (`supportedFeatures`), no less.

mod logs;
mod node;
mod volumes;

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::kubernetes::{Server, installation};
use crate::netns::hosts::Host;
use crate::programs::{Process, get, peer, weft};
use node::Node;

/// The API server and etcd, in the cluster's own network namespace.
const AT: &str = "127.36.20.1";
/// Where pods find the control plane.
const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
/// Controllers of Kubernetes that the objects of the suite need.
const CONTROLLERS: &str = "deployment-controller,replicaset-controller,endpointslice-controller,garbage-collector-controller,\
    namespace-controller,serviceaccount-controller,root-ca-certificate-publisher-controller";
/// What is looked at.
const PROFILES: &str = "GATEWAY-HTTP,GATEWAY-GRPC,GATEWAY-TLS";

#[test]
#[ignore = "takes minutes, and programs of tests/peers/install --long"]
fn gateways_do_what_the_suite_of_the_gateway_api_says() {
    let cluster = Host::new("cluster");
    cluster.ip("link add pods type bridge");
    cluster.ip(&format!("addr add {CONTROL}/16 dev pods"));
    cluster.ip("link set pods up");
    cluster.inside(|| conforms(&cluster));
}

fn conforms(cluster: &Host) {
    let server = Server::start(AT);
    let at = server.directory();
    let mut controllers = Process::start("controllers", &mut controllers(&server), at);
    let definitions = peer("WEFT_GATEWAY_API_CRDS");
    server.kubectl(&["apply", "--server-side", "-f", definitions.to_str().unwrap()]);
    install(&server);
    controllers.wait("at work", || {
        server.try_kubectl(&["-n", "istio-system", "get", "serviceaccount", "default"], "").is_ok()
    });
    let mut control = Process::start("istiod", &mut control(&server), at);
    control.wait("ready", || get((CONTROL, 8080).into(), "/ready").is_ok_and(|(status, _)| status == 200));
    let _node = Node::start(cluster, &server.kubeconfig("administrator"), at, CONTROL);
    server.apply(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: weft}, spec: {controllerName: \
         weft.dev/gateway-controller}}",
    );
    control.wait("telling its features", || {
        server.get("gatewayclass", "default", "weft")["status"]["supportedFeatures"].is_array()
    });
    let report = at.join("report.yaml");
    let status = suite(&server, &report).status().unwrap();
    let text = std::fs::read_to_string(&report).unwrap_or_default();
    println!("{text}");
    if let Some(kept) = std::env::var_os("WEFT_CONFORMANCE_REPORT") {
        std::fs::write(kept, &text).unwrap();
    }
    assert!(status.success(), "{status}\n{}", control.log());
}

fn controllers(server: &Server) -> Command {
    let at = server.directory();
    let mut controllers = Command::new(peer("WEFT_KUBE_CONTROLLER_MANAGER"));
    controllers.arg("--kubeconfig").arg(server.kubeconfig("administrator"));
    controllers.arg("--root-ca-file").arg(at.join("ca.crt"));
    controllers.args(["--leader-elect=false", "--bind-address", AT, "--controllers", CONTROLLERS]);
    controllers
        .args(["--authorization-always-allow-paths", "*"])
        .arg("--cert-dir")
        .arg(at.join("controllers"));
    controllers
}

/// Everything that is installed but what runs: a process stands for the control plane's Deployment, and gateways are made for Gateways.
fn install(server: &Server) {
    let mut items = installation(&CONTROL.to_string(), &[]);
    let runs = ["Deployment", "HorizontalPodAutoscaler", "ServiceMonitor", "PodMonitor"];
    items.retain(|one| !runs.contains(&one["kind"].as_str().unwrap()));
    let rank = |one: &Value| match one["kind"].as_str().unwrap() {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        kind if kind.ends_with("WebhookConfiguration") => 3,
        _ => 2,
    };
    for wanted in 0..4 {
        let some: Vec<_> = items.iter().filter(|one| rank(one) == wanted).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": some}).to_string();
        server.try_kubectl(&["apply", "--server-side", "-f", "-"], &list).unwrap();
        if wanted == 1 {
            server.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]);
        }
    }
}

/// The control plane, as its own account.
fn control(server: &Server) -> Command {
    let mut control = weft();
    control.arg("control").arg("--kubeconfig").arg(server.kubeconfig_of_account("istio-system", "istiod"));
    control.args([
        "--address",
        &CONTROL.to_string(),
        "--ca-keys",
        "p256",
        "--webhook-port",
        "15017",
        "--publish-roots",
    ]);
    control.args(["--mutating-webhook", "istio-sidecar-injector"]);
    control.args(["--validating-webhook", "istio-validator-istio-system"]);
    control
}

/// The suite; what it says of each test goes to the test's own output.
fn suite(server: &Server, report: &Path) -> Command {
    let mut suite = Command::new(peer("WEFT_GATEWAY_CONFORMANCE"));
    suite.env("KUBECONFIG", server.kubeconfig("administrator")).stdin(Stdio::null());
    suite.args([
        "-test.v",
        "-test.timeout",
        "40m",
        "-gateway-class",
        "weft",
        "-conformance-profiles",
        PROFILES,
    ]);
    suite.args([
        "-organization",
        "weft",
        "-project",
        "weft",
        "-url",
        "https://weft.dev",
        "-version",
        env!("CARGO_PKG_VERSION"),
    ]);
    suite.args(["-contact", "weft"]).arg("-report-output").arg(report);
    if let Some(one) = std::env::var_os("WEFT_CONFORMANCE_TEST") {
        suite.arg("-run-test").arg(one);
    }
    suite
}
