//! A node: it takes every pod, runs its program in a network namespace with the files that the pod asks for, tells whether it is
//! ready, and ends it; and stands for the load balancers of Services, whose addresses lead to one of their pods.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::logs::Logs;
use super::volumes::{self, text};
use crate::netns::hosts::{Host, inside, run};
use crate::programs::{Process, get, peer};

const NAME: &str = "node";
/// Where the API server asks for what pods have said.
const KUBELET: u16 = 10250;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// The API server, asked by path.
pub struct Api {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Api {
    fn open(kubeconfig: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let text = Kubeconfig::read_from(kubeconfig).unwrap();
            let config = Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await.unwrap();
            Client::try_from(config).unwrap()
        });
        Self { client, runtime }
    }

    fn ask(&self, method: &str, path: &str, kind: &str, body: &Value) -> Result<Value, String> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request =
            Request::builder().method(method).uri(path).header("content-type", kind).body(body).unwrap();
        self.runtime.block_on(self.client.request(request)).map_err(|e| format!("{method} {path}: {e}"))
    }

    pub fn get(&self, path: &str) -> Result<Value, String> {
        self.ask("GET", path, "application/json", &Value::Null)
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        self.ask("POST", path, "application/json", body)
    }

    fn patch(&self, path: &str, body: &Value) -> Result<Value, String> {
        self.ask("PATCH", path, "application/merge-patch+json", body)
    }
}

/// A pod that runs.
struct Pod {
    host: Host,
    ip: Ipv4Addr,
    labels: Value,
    namespace: String,
    ready: bool,
    _process: Process,
}

/// Runs pods until it is dropped.
pub struct Node {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    pub fn start(cluster: &Host, kubeconfig: &Path, directory: &Path, control: Ipv4Addr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (stop.clone(), cluster.name().to_owned());
        let (kubeconfig, directory) = (kubeconfig.to_owned(), directory.to_owned());
        let thread = std::thread::spawn(move || {
            inside(&name.clone(), || {
                let mut kubelet = Kubelet {
                    api: Api::open(&kubeconfig),
                    cluster: name,
                    directory,
                    control,
                    pods: BTreeMap::new(),
                    balancers: BTreeMap::new(),
                    given: 0,
                    logs: Logs::serve((control, KUBELET).into()),
                };
                kubelet.join();
                while !stopped.load(Relaxed) {
                    if let Err(why) = kubelet.look() {
                        println!("node: {why}");
                    }
                    std::thread::sleep(LOOK);
                }
            });
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Kubelet {
    api: Api,
    cluster: String,
    directory: PathBuf,
    control: Ipv4Addr,
    /// By uid.
    pods: BTreeMap<String, Pod>,
    /// Addresses of load balancers, and the pod that each leads to; by the Service's path.
    balancers: BTreeMap<String, (Ipv4Addr, String)>,
    /// How many addresses have been given.
    given: u16,
    logs: Logs,
}

fn path_of(plural: &str, metadata: &Value) -> String {
    format!("/api/v1/namespaces/{}/{plural}/{}", text(&metadata["namespace"]), text(&metadata["name"]))
}

fn condition(kind: &str, holds: bool) -> Value {
    json!({"type": kind, "status": if holds { "True" } else { "False" }, "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

impl Kubelet {
    fn join(&self) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME}});
        self.api.post("/api/v1/nodes", &node).unwrap();
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": self.control.to_string()}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET}},
        }});
        self.api.patch(&format!("/api/v1/nodes/{NAME}/status"), &status).unwrap();
    }

    fn look(&mut self) -> Result<(), String> {
        self.logs.mark();
        let list = self.api.get("/api/v1/pods")?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        self.pods.retain(|uid, _| items.iter().any(|pod| pod["metadata"]["uid"] == **uid));
        for pod in &items {
            // What one waits for is no matter of the others.
            if let Err(why) = self.pod(pod) {
                println!("node: {why}");
            }
        }
        let list = self.api.get("/api/v1/services")?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        self.balancers
            .retain(|path, _| items.iter().any(|service| path_of("services", &service["metadata"]) == *path));
        items.iter().try_for_each(|service| self.service(service))
    }

    fn pod(&mut self, pod: &Value) -> Result<(), String> {
        let metadata = &pod["metadata"];
        let (path, uid) = (path_of("pods", metadata), text(&metadata["uid"]).to_owned());
        if !metadata["deletionTimestamp"].is_null() {
            self.pods.remove(&uid);
            let now = json!({"gracePeriodSeconds": 0});
            // Somebody may have been quicker.
            let _ = self.api.ask("DELETE", &path, "application/json", &now);
            return Ok(());
        }
        if pod["spec"]["nodeName"].is_null() {
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding", "metadata": {"name": metadata["name"]},
                "target": {"apiVersion": "v1", "kind": "Node", "name": NAME},
            });
            self.api.post(&format!("{path}/binding"), &binding)?;
            return Ok(());
        }
        if !self.pods.contains_key(&uid) {
            let started = self.begin(pod)?;
            self.tell(&path, pod, &started)?;
            self.pods.insert(uid.clone(), started);
        }
        let Some(known) = self.pods.get_mut(&uid) else { return Ok(()) };
        if !known.ready && is_ready(pod, known.ip) {
            known.ready = true;
            let known = &self.pods[&uid];
            self.tell(&path, pod, known)?;
        }
        Ok(())
    }

    fn tell(&self, path: &str, pod: &Value, known: &Pod) -> Result<(), String> {
        let container = &pod["spec"]["containers"][0];
        let ip = known.ip.to_string();
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": self.control.to_string(),
            "conditions": [
                condition("Initialized", true), condition("PodScheduled", true),
                condition("ContainersReady", known.ready), condition("Ready", known.ready),
            ],
            "containerStatuses": [{
                "name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0,
                "ready": known.ready, "started": true, "state": {"running": {}},
            }],
        }});
        self.api.patch(&format!("{path}/status"), &status).map(drop)
    }

    /// Runs a pod's program.
    fn begin(&mut self, pod: &Value) -> Result<Pod, String> {
        let metadata = &pod["metadata"];
        let [container] = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default() else {
            return Err(format!("{metadata}: a pod has one container here"));
        };
        let root = self.directory.join("pods").join(text(&metadata["uid"]));
        let mut mounts = Vec::new();
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            let all = pod["spec"]["volumes"].as_array().into_iter().flatten();
            let named =
                all.into_iter().find(|volume| volume["name"] == mount["name"]).ok_or("no such volume")?;
            let files = root.join("volumes").join(text(&mount["name"]));
            volumes::fill(&self.api, pod, named, &files)?;
            mounts.push((files, text(&mount["mountPath"]).to_owned()));
        }
        self.given += 1;
        let ip = Ipv4Addr::new(10, 79, 1 + (self.given / 250) as u8, (self.given % 250 + 1) as u8);
        let host = Host::new(&format!("p{}", self.given));
        let (near, far) = (&self.cluster, host.name());
        run(
            "ip",
            &format!("link add name v{} netns {near} type veth peer name eth0 netns {far}", self.given),
        );
        run("ip", &format!("-n {near} link set v{} master pods up", self.given));
        host.ip(&format!("addr add {ip}/16 dev eth0"));
        host.ip("link set eth0 up");
        host.ip(&format!("route add default via {}", self.control));
        let ours = container["name"] == "istio-proxy";
        let program = if ours { PathBuf::from(env!("CARGO_BIN_EXE_weft")) } else { peer("WEFT_ECHO_BASIC") };
        let mut arguments: Vec<String> = if ours { vec!["proxy".to_owned()] } else { Vec::new() };
        let args = container["args"].as_array().into_iter().flatten();
        arguments.extend(args.map(|one| text(one).to_owned()));
        let hosts = format!("127.0.0.1 localhost\n{} istiod.istio-system.svc\n", self.control);
        let mut command = in_root(&root, &hosts, &mounts, &program, &arguments);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        for one in container["env"].as_array().into_iter().flatten() {
            command.env(text(&one["name"]), value(one, pod, ip, self.control));
        }
        let mut wrapped = host.command(&command);
        wrapped.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for (key, value) in command.get_envs().filter_map(|(key, value)| Some((key, value?))) {
            wrapped.env(key, value);
        }
        let log = format!("pod-{}", text(&metadata["name"]));
        self.logs.add(text(&metadata["name"]), self.directory.join(format!("{log}.log")));
        Ok(Pod {
            host,
            ip,
            labels: metadata["labels"].clone(),
            namespace: text(&metadata["namespace"]).to_owned(),
            ready: false,
            _process: Process::start(&log, &mut wrapped, &self.directory),
        })
    }

    /// Gives a Service of type LoadBalancer its address, at one of its pods that are ready.
    fn service(&mut self, service: &Value) -> Result<(), String> {
        if service["spec"]["type"] != "LoadBalancer" {
            return Ok(());
        }
        let metadata = &service["metadata"];
        let path = path_of("services", metadata);
        let selects = |pod: &Pod| {
            let mut all = service["spec"]["selector"].as_object().into_iter().flatten();
            pod.ready
                && pod.namespace == text(&metadata["namespace"])
                && all.all(|(key, value)| pod.labels[key] == *value)
        };
        let known = self.balancers.get(&path).cloned();
        if known.as_ref().is_some_and(|(_, uid)| self.pods.get(uid).is_some_and(selects)) {
            return Ok(());
        }
        let Some((uid, pod)) = self.pods.iter().find(|(_, pod)| selects(pod)) else { return Ok(()) };
        let address = known.map_or_else(
            || {
                self.given += 1;
                Ipv4Addr::new(10, 80, (self.given / 250) as u8, (self.given % 250 + 1) as u8)
            },
            |(address, _)| address,
        );
        pod.host.ip(&format!("addr replace {address}/32 dev lo"));
        run("ip", &format!("-n {} route replace {address}/32 via {}", self.cluster, pod.ip));
        let (uid, status) =
            (uid.clone(), json!({"status": {"loadBalancer": {"ingress": [{"ip": address.to_string()}]}}}));
        self.api.patch(&format!("{path}/status"), &status)?;
        self.balancers.insert(path, (address, uid));
        Ok(())
    }
}

/// What its readiness probe says; one without any is ready from the start.
fn is_ready(pod: &Value, ip: Ipv4Addr) -> bool {
    let probe = &pod["spec"]["containers"][0]["readinessProbe"]["httpGet"];
    let Some(port) = probe["port"].as_u64() else { return true };
    let at = (IpAddr::from(ip), u16::try_from(port).unwrap()).into();
    get(at, text(&probe["path"])).is_ok_and(|(status, _)| status == 200)
}

/// The value of a variable.
fn value(variable: &Value, pod: &Value, ip: Ipv4Addr, node: Ipv4Addr) -> String {
    if let Some(value) = variable["value"].as_str() {
        return value.to_owned();
    }
    match text(&variable["valueFrom"]["fieldRef"]["fieldPath"]) {
        "status.podIP" => ip.to_string(),
        "status.hostIP" => node.to_string(),
        path => text(
            &pod[path.split('.').next().unwrap_or_default()][path.rsplit('.').next().unwrap_or_default()],
        )
        .to_owned(),
    }
}

/// A program with a file system of its own: the system's programs and libraries, and what is mounted.
fn in_root(
    root: &Path,
    hosts: &str,
    mounts: &[(PathBuf, String)],
    program: &Path,
    arguments: &[String],
) -> Command {
    let tree = root.join("root");
    for directory in ["usr", "proc", "dev", "etc", "tmp", "run", "var"] {
        std::fs::create_dir_all(tree.join(directory)).unwrap();
    }
    let linked = |link: &str, to: &str| {
        let _ = std::os::unix::fs::symlink(to, tree.join(link));
    };
    for directory in ["bin", "lib", "lib64"] {
        linked(directory, &format!("usr/{directory}"));
    }
    linked("var/run", "../run");
    std::fs::write(tree.join("etc/hosts"), hosts).unwrap();
    std::fs::write(tree.join("program"), "").unwrap();
    let at = tree.display();
    let mut script = format!(
        "set -e; mount -t tmpfs -o size=64m run {at}/run; mount --rbind /usr {at}/usr; mount --rbind /proc {at}/proc; mount --rbind /dev {at}/dev; \
         mount --bind {} {at}/program; ",
        program.display()
    );
    for (files, path) in mounts {
        let inside = path.replace("/var/run/", "/run/");
        script += &format!("mkdir -p {at}{inside}; mount --bind {} {at}{inside}; ", files.display());
    }
    script += &format!("exec chroot {at} /program \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).args(arguments);
    command
}
