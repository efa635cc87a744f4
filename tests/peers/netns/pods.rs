//! Pods with a sidecar each, whose traffic the kernel redirects, gateways, and a control plane outside.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use weft_certs::authority::KeyKind;
use weft_control::ca::State;
use weft_control::ca::store::Shape;

use super::hosts::{CLIENT, Host, Net, SERVER};
use crate::programs::{Process, get, peer, weft, weft_proxy};

/// The control plane's address, and that of servers outside of the mesh.
pub const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
/// The user that proxies run as, whose connections are not captured.
const PROXY: u32 = 1337;

/// Workloads `web` on the client's host and `server` on the server's, where only mutual TLS is taken.
pub const MESH: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: server, namespace: shop}
spec: {address: 10.78.0.3, labels: {app: server}, serviceAccount: server}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop}
spec: {address: 10.77.0.1, labels: {app: web}, serviceAccount: web}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
";

/// A Service of `app` with an address of its own.
pub fn service(name: &str, ip: &str, app: &str, ports: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{clusterIP: {ip}, selector: {{app: {app}}}, ports: [{ports}]}}
---"
    )
}

/// Who is the sidecar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Program {
    /// Ours.
    Weft,
    /// A real Envoy, with our agent.
    Envoy,
}

/// A workload: its host, its names, and who is its proxy.
pub struct Pod<'a> {
    /// Where it runs.
    pub host: &'a Host,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name, which is its `app` label and its service account, too.
    pub name: &'a str,
    /// Its address.
    pub ip: IpAddr,
    /// Whether its traffic is captured by a sidecar; else it is a gateway.
    pub captured: bool,
    /// More labels.
    pub labels: &'a [&'a str],
    /// Its proxy.
    pub program: Program,
}

/// A program that runs, and how it was started.
struct Running {
    name: String,
    command: Command,
    process: Process,
}

/// A mesh of pods, and somebody outside who runs its control plane.
pub struct Pods {
    directory: tempfile::TempDir,
    running: Vec<Running>,
    /// The control plane's address.
    control: IpAddr,
    settings: Settings,
}

/// How pods differ from the usual ones.
#[derive(Clone)]
pub struct Settings {
    /// How inbound connections come to the sidecars.
    pub mode: &'static str,
    /// More flags of `weft init`.
    pub init: &'static [&'static str],
    /// More of the sidecars'.
    pub flags: &'static [&'static str],
    /// They keep what they were told for a restart.
    pub keep: bool,
    /// Their environment, KEY=VALUE.
    pub environment: &'static [&'static str],
}

impl Default for Settings {
    fn default() -> Self {
        Self { mode: "REDIRECT", init: &[], flags: &[], keep: false, environment: &[] }
    }
}

impl Pods {
    /// Two of them, with these sidecars of the client and of the server.
    pub fn new(net: &Net, text: &str, sidecars: [Program; 2]) -> Self {
        Self::with(net, text, sidecars, [CLIENT, SERVER], "REDIRECT")
    }

    /// The same at other addresses, and with inbound connections intercepted in this mode.
    pub fn with(
        net: &Net,
        text: &str,
        sidecars: [Program; 2],
        addresses: [IpAddr; 2],
        mode: &'static str,
    ) -> Self {
        Self::with_settings(net, text, sidecars, addresses, Settings { mode, ..Settings::default() })
    }

    /// The same with other settings.
    pub fn with_settings(
        net: &Net,
        text: &str,
        [web, server]: [Program; 2],
        [client, serving]: [IpAddr; 2],
        settings: Settings,
    ) -> Self {
        let mut pods = Self::control(&net.gateway, OUTSIDE, text, &[]);
        pods.settings = settings;
        let pod = |host, name, ip, program| Pod {
            host,
            namespace: "shop",
            name,
            ip,
            captured: true,
            labels: &[],
            program,
        };
        pods.add(&pod(&net.client, "web", client, web));
        pods.add(&pod(&net.server, "server", serving, server));
        pods
    }

    /// None yet: a control plane on a host, at one of its addresses.
    pub fn control(host: &Host, address: IpAddr, text: &str, more: &[&str]) -> Self {
        let mut pods = Self {
            directory: tempfile::tempdir().unwrap(),
            running: Vec::new(),
            control: address,
            settings: Settings::default(),
        };
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(pods.directory.path(), everybody).unwrap();
        let [config, state] = ["config", "state"].map(|name| pods.file(name));
        let shape = Shape { root_key: KeyKind::P256, intermediate_key: KeyKind::P256, ..Default::default() };
        State::open(Path::new(&state), shape, std::time::SystemTime::now().into()).unwrap();
        std::fs::create_dir(&config).unwrap();
        std::fs::write(pods.file("config/mesh.yaml"), text).unwrap();
        let mut control = weft();
        control.args(["control", "--config-dir", &config, "--state-dir", &state]);
        control.args(["--address", &address.to_string()]).args(more);
        pods.run("control", host.command(&control));
        pods.wait("control", "ready", || {
            host.inside(|| get(SocketAddr::new(address, 8080), "/ready")).is_ok_and(|a| a.0 == 200)
        });
        pods
    }

    /// The path of a file of theirs.
    pub fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn run(&mut self, name: &str, mut command: Command) {
        let process = Process::start(name, &mut command, self.directory.path());
        self.running.push(Running { name: name.to_owned(), command, process });
    }

    fn named(&mut self, name: &str) -> &mut Running {
        self.running.iter_mut().find(|r| r.name == name).unwrap_or_else(|| panic!("no {name:?} runs"))
    }

    fn wait(&mut self, name: &str, what: &str, done: impl FnMut() -> bool) {
        self.named(name).process.wait(what, done);
    }

    /// Runs a program as the user whose connections are not captured.
    fn start(&mut self, host: &Host, name: &str, program: &Command) {
        let mut run = Command::new("env");
        run.args(self.settings.environment).arg("setpriv");
        run.args([&format!("--reuid={PROXY}"), &format!("--regid={PROXY}"), "--clear-groups"]);
        // A gateway's ports are low; TPROXY takes and makes connections at addresses that are not its own.
        let capability = if self.settings.mode == "TPROXY" { "+net_admin" } else { "+net_bind_service" };
        run.args([format!("--inh-caps={capability}"), format!("--ambient-caps={capability}")]);
        run.arg(program.get_program()).args(program.get_args());
        self.run(name, host.command(&run));
    }

    /// Starts a pod's proxy, and waits until it is ready.
    pub fn add(&mut self, pod: &Pod<'_>) {
        let lifetime = Duration::from_secs(600);
        let state = self.file("state");
        let token = weft_control::ca::token::create(Path::new(&state), pod.namespace, pod.name, lifetime);
        let own = self.file(pod.name);
        std::fs::create_dir(&own).unwrap();
        let file = |what: &str| format!("{own}/{what}");
        std::fs::write(file("token"), token.unwrap()).unwrap();
        std::fs::copy(self.file("state/root-cert.pem"), file("root")).unwrap();
        for path in [own.clone(), file("token"), file("root")] {
            std::os::unix::fs::chown(path, Some(PROXY), Some(PROXY)).unwrap();
        }
        if pod.captured {
            let flags = ["-i", "*", "-b", "*", "-d", "15090,15021,15020", "-m", self.settings.mode];
            super::capture::init_on(pod.host, &[&flags, self.settings.init].concat()).unwrap();
        }
        let mut arguments: Vec<String> = [
            "--xds-address",
            &SocketAddr::new(self.control, 15012).to_string(),
            "--root-cert",
            &file("root"),
            "--token-file",
            &file("token"),
            "--namespace",
            pod.namespace,
            "--service-account",
            pod.name,
            "--name",
            pod.name,
            "--label",
            &format!("app={}", pod.name),
            "--ip",
            &pod.ip.to_string(),
        ]
        .map(str::to_owned)
        .into();
        arguments.extend(pod.labels.iter().flat_map(|label| ["--label".to_owned(), (*label).to_owned()]));
        let role = match pod.captured {
            true => ["--interception-mode", self.settings.mode],
            false => ["--role", "gateway"],
        };
        if self.settings.keep {
            arguments.extend(["--state-dir".to_owned(), file("kept")]);
        }
        arguments.extend(role.iter().chain(self.settings.flags).map(ToString::to_string));
        match pod.program {
            Program::Weft => {
                let mut proxy = weft_proxy();
                proxy.args(&arguments).args(["--concurrency", "1"]);
                self.start(pod.host, pod.name, &proxy);
            }
            Program::Envoy => {
                let (bootstrap, sds, xds) = (file("bootstrap.json"), file("sds"), file("xds"));
                let agent = format!("{}-agent", pod.name);
                let mut command = weft();
                command.arg("agent").args(&arguments);
                command.args(["--sds-socket", &sds, "--xds-socket", &xds, "--bootstrap", &bootstrap]);
                self.start(pod.host, &agent, &command);
                self.wait(&agent, "serving", || Path::new(&bootstrap).exists());
                let mut envoy = Command::new(peer("WEFT_ENVOY"));
                envoy.args([
                    "--disable-hot-restart",
                    "-l",
                    "warning",
                    "--concurrency",
                    "1",
                    "-c",
                    &bootstrap,
                ]);
                self.start(pod.host, pod.name, &envoy);
            }
        }
        self.ready(pod);
    }

    /// Waits until a pod's proxy is ready.
    pub fn ready(&mut self, pod: &Pod<'_>) {
        let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15021);
        let healthy = || pod.host.inside(|| get(at, "/healthz/ready")).is_ok_and(|a| a.0 == 200);
        self.wait(pod.name, "ready", healthy);
    }

    /// Ends one of them at once, as the kernel does that is out of memory.
    pub fn kill(&mut self, name: &str) {
        self.running.retain(|r| r.name != name);
    }

    /// Ends one of them at once and starts it anew, as its supervisor does.
    pub fn restart(&mut self, name: &str) {
        let directory = self.directory.path().to_owned();
        let running = self.named(name);
        running.process.end();
        running.process = Process::start_again(name, &mut running.command, &directory);
    }

    /// Sends one of them a signal.
    pub fn send(&self, name: &str, signal: Signal) {
        let running = self.running.iter().find(|r| r.name == name);
        running.unwrap_or_else(|| panic!("no {name:?} runs")).process.signal(signal);
    }

    /// Waits until one of them has ended by itself.
    pub fn ended(&mut self, name: &str, within: Duration) {
        assert!(self.named(name).process.ended(within), "{name} goes on:\n{}", self.logs());
    }

    /// Whether one of them ends by itself in this time.
    pub fn ends(&mut self, name: &str, within: Duration) -> bool {
        self.named(name).process.ended(within)
    }

    /// All that one of them has written.
    pub fn log_of(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(&format!("{name}.log"))).unwrap_or_default()
    }

    /// What all have written.
    pub fn logs(&self) -> String {
        self.running.iter().map(|r| r.process.log()).collect::<Vec<_>>().join("\n----\n")
    }
}
