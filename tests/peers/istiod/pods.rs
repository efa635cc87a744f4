//! Pods of that cluster: a network namespace each, the objects that say so, and a sidecar or gateway of ours started as the injector
//! starts it, with redirection by `weft init`. Their applications know nothing of a mesh.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::cluster::{Cluster, NAME, OUTSIDE};
use crate::netns::{self, hosts::Host};
use crate::programs::{Process, get, weft_proxy};

/// The user that proxies run as, whose connections are not captured.
const PROXY: u32 = 1337;
/// No answer may take longer.
const PATIENCE: Duration = Duration::from_secs(15);

/// What stands beside an application.
#[derive(Clone, Copy, PartialEq)]
pub enum Role {
    /// A sidecar, which everything goes through.
    Sidecar,
    /// Nothing else is in the pod.
    Gateway,
    /// Nothing: this one is no part of the mesh.
    None,
}

/// What a pod is to be.
#[derive(Clone, Copy)]
pub struct Spec {
    pub name: &'static str,
    pub namespace: &'static str,
    pub account: &'static str,
    /// The last part of its address.
    pub number: u8,
    pub labels: &'static [(&'static str, &'static str)],
    pub role: Role,
}

/// A pod that runs.
pub struct Pod {
    pub spec: Spec,
    pub host: Host,
    proxy: Option<Process>,
    command: Command,
    log: std::path::PathBuf,
}

/// An answer to a request; status 0 and what went wrong, if there was none.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// A field of its head.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Pod {
    /// Makes it, and waits until its proxy is ready. `mode` is how xDS is spoken.
    pub fn start(cluster: &Cluster<'_>, spec: Spec, mode: &str) -> Self {
        let ip = Ipv4Addr::new(10, 79, 1, spec.number);
        let host = Host::new(spec.name);
        let (near, far) = (cluster.host.name(), host.name());
        let (name, number) = (spec.name, spec.number);
        netns::hosts::run(
            "ip",
            &format!("link add v{number} netns {near} type veth peer name eth0 netns {far}"),
        );
        netns::hosts::run("ip", &format!("-n {near} link set v{number} master pods up"));
        host.ip(&format!("addr add {ip}/16 dev eth0"));
        host.ip("link set eth0 up");
        host.ip(&format!("route add default via {OUTSIDE}"));
        host.etc("hosts", &format!("127.0.0.1 localhost\n{OUTSIDE} {NAME}\n"));
        host.etc("resolv.conf", &format!("nameserver {OUTSIDE}\n"));
        tell(cluster, &spec, ip);
        let command = match spec.role {
            Role::None => Command::new("true"),
            _ => prepare(cluster, &spec, ip, &host, mode),
        };
        let log = cluster.file("").join(format!("{name}.log"));
        let mut pod = Self { spec, host, proxy: None, command, log };
        if spec.role != Role::None {
            pod.begin(cluster);
        }
        pod
    }

    fn begin(&mut self, cluster: &Cluster<'_>) {
        let mut proxy = Process::start_again(self.spec.name, &mut self.command, &cluster.file(""));
        let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15021);
        proxy.wait("ready", || self.host.inside(|| get(at, "/healthz/ready")).is_ok_and(|a| a.0 == 200));
        self.proxy = Some(proxy);
    }

    /// Ends its proxy at once, and starts it again.
    pub fn restart(&mut self, cluster: &Cluster<'_>) {
        self.proxy = None;
        self.begin(cluster);
    }

    /// Its name as istiod has it.
    pub fn id(&self) -> String {
        format!("{}.{}", self.spec.name, self.spec.namespace)
    }

    /// All that its proxy has written.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A page of its proxy's administration.
    pub fn page(&self, path: &str) -> String {
        let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15000);
        self.host.inside(|| get(at, path)).map(|(_, body)| body).unwrap_or_default()
    }

    /// A cluster of its proxy's, as it was told.
    pub fn cluster(&self, name: &str) -> Value {
        let dump: Value = serde_json::from_str(&self.page("/config_dump")).unwrap_or_default();
        let parts = dump["configs"].as_array().into_iter().flatten();
        let mut all = parts.filter_map(|part| part["dynamic_active_clusters"].as_array()).flatten();
        all.find(|one| one["cluster"]["name"] == name).map(|one| one["cluster"].clone()).unwrap_or_default()
    }

    /// What its application gets for a GET.
    pub fn get(&self, to: &str, host: &str, path: &str, fields: &[&str]) -> Answer {
        self.ask(to, host, &format!("GET {path}"), fields)
    }

    /// What its application gets for a request, METHOD and path.
    pub fn ask(&self, to: &str, host: &str, line: &str, fields: &[&str]) -> Answer {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let text = format!("{line} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{fields}\r\n");
        match self.say(to, &text) {
            Ok(text) => {
                let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
                let status = head.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
                Answer { status, head: head.to_owned(), body: body.to_owned() }
            }
            Err(error) => Answer { status: 0, head: String::new(), body: format!("{:?}", error.kind()) },
        }
    }

    /// What its application hears from a server until that ends the connection.
    fn say(&self, to: &str, text: &str) -> std::io::Result<String> {
        let to: SocketAddr = to.parse().unwrap();
        self.host.inside(|| {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(text.as_bytes())?;
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Err(error) if answer.is_empty() => Err(error),
                _ => Ok(String::from_utf8_lossy(&answer).into_owned()),
            }
        })
    }

    /// What a server that speaks first says to its application, and gives back of what it is told.
    pub fn greeting(&self, to: &str) -> String {
        self.talk(to, 256, "ping", 4)
    }

    /// What a server gives back that says nothing of its own.
    pub fn echo(&self, to: &str, text: &str) -> String {
        self.talk(to, 0, text, text.len())
    }

    /// Hears as much as comes at once, says something, and hears so many bytes.
    fn talk(&self, to: &str, first: usize, text: &str, then: usize) -> String {
        let to: SocketAddr = to.parse().unwrap();
        let heard = self.host.inside(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut heard = vec![0; first];
            let n = stream.read(&mut heard)?;
            heard.truncate(n);
            stream.write_all(text.as_bytes())?;
            let mut back = vec![0; then];
            stream.read_exact(&mut back)?;
            heard.extend(back);
            Ok(String::from_utf8_lossy(&heard).into_owned())
        });
        heard.unwrap_or_else(|error| format!("{:?}", error.kind()))
    }
}

/// Its object, as kubelet would have it.
fn tell(cluster: &Cluster<'_>, spec: &Spec, ip: Ipv4Addr) {
    let Spec { name, namespace, account, role, .. } = spec;
    let mut labels: String = spec.labels.iter().map(|(key, value)| format!("{key}: {value}, ")).collect();
    if *role != Role::None {
        labels += "security.istio.io/tlsMode: istio, ";
    }
    cluster.server.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}, \
         spec: {{serviceAccountName: {account}, automountServiceAccountToken: false, containers: [{{name: app, image: none}}]}}}}"
    ));
    let status = format!(
        r#"{{"status":{{"phase":"Running","podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}],"conditions":[{{"type":"Ready","status":"True"}}]}}}}"#
    );
    let patch =
        ["-n", namespace, "patch", "pod", name, "--subresource=status", "--type=merge", "-p", &status];
    cluster.server.kubectl(&patch);
}

/// What kubelet would put into the pod for its proxy, the redirection, and how the proxy is started.
fn prepare(cluster: &Cluster<'_>, spec: &Spec, ip: Ipv4Addr, host: &Host, mode: &str) -> Command {
    let Spec { name, namespace, account, role, .. } = *spec;
    let own = cluster.file(name);
    std::fs::create_dir(&own).unwrap();
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", name];
    let token = ["-n", namespace, "create", "token", account, "--audience", "istio-ca"];
    let write = |file: &str, text: &str| std::fs::write(own.join(file), text).unwrap();
    write("token", cluster.server.kubectl(&[&token[..], &bound].concat()).trim());
    write("root", &roots(cluster, namespace));
    let labels: Vec<_> = spec.labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
    write("labels", &labels.join("\n"));
    write("annotations", "");
    chown(&own);
    for file in ["token", "root", "labels", "annotations"] {
        chown(&own.join(file));
    }
    let mut proxy = weft_proxy();
    proxy.args(["--xds-address", &format!("{NAME}:15012"), "--xds-mode", mode, "--concurrency", "1"]);
    proxy.arg("--root-cert").arg(own.join("root")).arg("--token-file").arg(own.join("token"));
    proxy.arg("--pod-info").arg(&own).arg("--state-dir").arg(own.join("kept"));
    if role == Role::Gateway {
        proxy.args(["--role", "gateway"]);
    } else {
        let flags = ["-i", "*", "-b", "*", "-d", "15090,15021,15020"];
        netns::capture::init_on(host, &flags).unwrap();
    }
    let mut run = Command::new("env");
    run.args([
        format!("POD_NAME={name}"),
        format!("POD_NAMESPACE={namespace}"),
        format!("INSTANCE_IP={ip}"),
        format!("SERVICE_ACCOUNT={account}"),
    ]);
    run.args(["setpriv", &format!("--reuid={PROXY}"), &format!("--regid={PROXY}"), "--clear-groups"]);
    run.args(["--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service"]);
    run.arg(proxy.get_program()).args(proxy.get_args());
    host.command(&run)
}

fn chown(path: &Path) {
    std::os::unix::fs::chown(path, Some(PROXY), Some(PROXY)).unwrap();
}

/// The roots that istiod puts into each namespace, as soon as it has.
fn roots(cluster: &Cluster<'_>, namespace: &str) -> String {
    let mut roots = String::new();
    crate::programs::until_or(
        "roots in the namespace",
        || cluster.log(),
        || {
            let at = [
                "-n",
                namespace,
                "get",
                "configmap",
                "istio-ca-root-cert",
                "-o",
                "jsonpath={.data.root-cert\\.pem}",
            ];
            roots = cluster.server.try_kubectl(&at, "").unwrap_or_default();
            roots.contains("BEGIN CERTIFICATE")
        },
    );
    roots
}
