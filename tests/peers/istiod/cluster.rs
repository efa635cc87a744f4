//! A cluster in a network namespace of its own, with Istio in it as its charts install it: an API server with etcd, and istiod as the
//! process that its Deployment asks for. There are no nodes: what kubelets and controllers would write, a test writes.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::kubernetes::Server;
use crate::netns::hosts::Host;
use crate::programs::{Process, peer, run};

/// Where pods find istiod, and whatever else is outside of the mesh.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
/// What it calls itself, and its certificate is for.
pub const NAME: &str = "istiod.istio-system.svc";
/// How long istiod may take to be ready.
const READY: Duration = Duration::from_secs(90);
/// What a cluster would make a process of, or what would ask it for permission by the name of a Service.
const NOT_HERE: [&str; 3] =
    ["HorizontalPodAutoscaler", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

pub struct Cluster<'a> {
    pub host: &'a Host,
    pub server: Server,
    /// Of the sidecars, which are another user.
    directory: tempfile::TempDir,
    istiod: Process,
}

/// A host that is a cluster's network: the address of what is outside, on a bridge that pods are connected to.
pub fn network() -> Host {
    let host = Host::new("cluster");
    host.ip("link add pods type bridge");
    host.ip(&format!("addr add {OUTSIDE}/16 dev pods"));
    host.ip("link set pods up");
    host
}

impl<'a> Cluster<'a> {
    /// Starts everything, with these settings over those of the chart. Whoever calls is in the host's network.
    pub fn start(host: &'a Host, at: &str, values: &str) -> Self {
        let server = Server::start(at);
        let directory = tempfile::tempdir().unwrap();
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), everybody).unwrap();
        server.apply("{apiVersion: v1, kind: Namespace, metadata: {name: istio-system}}");
        install(&server, values);
        let istiod = Process::start("istiod", &mut istiod(&server), server.directory());
        let mut cluster = Self { host, server, directory, istiod };
        cluster.wait_until_ready();
        cluster
    }

    fn wait_until_ready(&mut self) {
        let ready = || page(8080, "/ready").is_some();
        self.istiod.wait_within(READY, "ready", ready);
    }

    /// Ends istiod as a power cut would.
    pub fn kill(&mut self) {
        self.istiod.end();
    }

    /// Starts it again.
    pub fn restart(&mut self) {
        self.istiod = Process::start_again("istiod", &mut istiod(&self.server), self.server.directory());
        self.wait_until_ready();
    }

    /// The path of a file.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// All that istiod has written.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.server.directory().join("istiod.log")).unwrap_or_default()
    }

    /// What a counter of istiod's has counted, under whatever labels.
    pub fn counted(&self, name: &str) -> f64 {
        let text = page(15014, "/metrics").unwrap();
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        values.sum()
    }

    /// What istiod knows of a proxy, with what it sent and what was acknowledged of it; nothing if it does not know it.
    pub fn synced(&self, proxy: &str) -> Option<Value> {
        let all: Value = serde_json::from_str(&page(8080, "/debug/syncz")?).ok()?;
        let mut all = all.as_array()?.iter();
        all.find(|one| one["proxy"].as_str().is_some_and(|name| name == proxy)).cloned()
    }
}

/// A page of istiod's, which answers its own host; it may come in pieces.
pub fn page(port: u16, path: &str) -> Option<String> {
    let mut curl = Command::new(peer("WEFT_CURL"));
    curl.args(["--silent", "--fail", "--max-time", "10", &format!("http://127.0.0.1:{port}{path}")]);
    run(&mut curl).ok()
}

/// What Helm makes of a chart of Istio's.
fn rendered(server: &Server, chart: &str, values: &str) -> Vec<Value> {
    let file = server.directory().join("values.yaml");
    std::fs::write(&file, values).unwrap();
    let mut helm = Command::new(peer("WEFT_HELM"));
    helm.args(["template", "istiod", "--namespace", "istio-system", "--include-crds", "--values"]).arg(file);
    let text = run(helm.arg(peer("WEFT_ISTIO_CHARTS").join(chart))).unwrap();
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    objects.into_iter().filter(Value::is_object).collect()
}

/// Installs Istio by its charts.
fn install(server: &Server, values: &str) {
    let mut objects = rendered(server, "base", values);
    objects.extend(rendered(server, "istio-control/istio-discovery", values));
    objects.retain(|one| !NOT_HERE.contains(&one["kind"].as_str().unwrap()));
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    server.try_kubectl(&["apply", "--server-side", "-f", "-"], &list).unwrap();
    server.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]);
}

/// istiod as its Deployment says, as its own account.
fn istiod(server: &Server) -> Command {
    let deployment = server.get("deployment", "istio-system", "istiod");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let home = server.directory().join("istiod-home");
    std::fs::create_dir_all(&home).unwrap();
    // What it reads of files has its place below where it is started: none are there, as in a cluster where nobody made any.
    let mut istiod = Command::new("env");
    istiod.arg("-C").arg(home);
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().unwrap();
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("metadata.name") => "istiod-1",
            Some("metadata.namespace") => "istio-system",
            Some("spec.serviceAccountName") => "istiod",
            Some(path) => panic!("{name} is {path}, which nobody knows here"),
            None => variable["value"].as_str().unwrap_or_default(),
        };
        // Where the credentials are, a flag says here; how many processors there are, the machine.
        if !["KUBECONFIG", "GOMAXPROCS"].contains(&name) {
            istiod.arg(format!("{name}={value}"));
        }
    }
    istiod.arg(peer("WEFT_ISTIOD"));
    istiod.args(container["args"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()));
    istiod.arg("--kubeconfig").arg(server.kubeconfig_of_account("istio-system", "istiod"));
    istiod
}
