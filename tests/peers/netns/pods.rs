//! Two pods with a sidecar each, whose traffic the kernel redirects, and a control plane outside.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

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

/// A mesh of two pods, and somebody outside who runs its control plane.
pub struct Pods {
    directory: tempfile::TempDir,
    processes: Vec<Process>,
    /// How inbound connections come to the sidecars.
    mode: &'static str,
}

impl Pods {
    /// With these sidecars of the client and of the server.
    pub fn new(net: &Net, text: &str, sidecars: [Program; 2]) -> Self {
        Self::with(net, text, sidecars, [CLIENT, SERVER], "REDIRECT")
    }

    /// The same at other addresses, and with inbound connections intercepted in this mode.
    pub fn with(
        net: &Net,
        text: &str,
        [web, server]: [Program; 2],
        [client, serving]: [IpAddr; 2],
        mode: &'static str,
    ) -> Self {
        let mut pods = Self { directory: tempfile::tempdir().unwrap(), processes: Vec::new(), mode };
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(pods.directory.path(), everybody).unwrap();
        let [config, state] = ["config", "state"].map(|name| pods.file(name));
        let shape = Shape { root_key: KeyKind::P256, intermediate_key: KeyKind::P256, ..Default::default() };
        State::open(Path::new(&state), shape, std::time::SystemTime::now().into()).unwrap();
        std::fs::create_dir(&config).unwrap();
        std::fs::write(pods.file("config/mesh.yaml"), text).unwrap();
        let address = OUTSIDE.to_string();
        let mut control = weft();
        control.args(["control", "--config-dir", &config, "--state-dir", &state, "--address", &address]);
        let mut process =
            Process::start("control", &mut net.gateway.command(&control), pods.directory.path());
        let ready = || net.gateway.inside(|| get(SocketAddr::new(OUTSIDE, 8080), "/ready"));
        process.wait("ready", || ready().is_ok_and(|a| a.0 == 200));
        pods.processes.push(process);
        pods.sidecar(&net.client, "web", client, web);
        pods.sidecar(&net.server, "server", serving, server);
        pods
    }

    /// The path of a file of theirs.
    pub fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs a program as the user whose connections are not captured.
    fn start(&mut self, host: &Host, name: &str, program: &Command) {
        let mut run = Command::new("setpriv");
        run.args([&format!("--reuid={PROXY}"), &format!("--regid={PROXY}"), "--clear-groups"]);
        if self.mode == "TPROXY" {
            // To take and to make connections at addresses that are not its own.
            run.args(["--inh-caps=+net_admin", "--ambient-caps=+net_admin"]);
        }
        run.arg(program.get_program()).args(program.get_args());
        self.processes.push(Process::start(name, &mut host.command(&run), self.directory.path()));
    }

    fn sidecar(&mut self, host: &Host, name: &str, ip: IpAddr, program: Program) {
        let lifetime = Duration::from_secs(600);
        let token = weft_control::ca::token::create(Path::new(&self.file("state")), "shop", name, lifetime);
        let own = self.file(name);
        std::fs::create_dir(&own).unwrap();
        let file = |what: &str| format!("{own}/{what}");
        std::fs::write(file("token"), token.unwrap()).unwrap();
        std::fs::copy(self.file("state/root-cert.pem"), file("root")).unwrap();
        for path in [own.clone(), file("token"), file("root")] {
            std::os::unix::fs::chown(path, Some(PROXY), Some(PROXY)).unwrap();
        }
        let flags = ["-i", "*", "-b", "*", "-d", "15090,15021,15020", "-m", self.mode];
        super::capture::init_on(host, &flags).unwrap();
        let identity = [
            "--xds-address",
            &SocketAddr::new(OUTSIDE, 15012).to_string(),
            "--root-cert",
            &file("root"),
            "--token-file",
            &file("token"),
            "--namespace",
            "shop",
            "--service-account",
            name,
            "--name",
            name,
            "--label",
            &format!("app={name}"),
            "--ip",
            &ip.to_string(),
            "--interception-mode",
            self.mode,
        ]
        .map(str::to_owned);
        match program {
            Program::Weft => {
                let mut proxy = weft_proxy();
                proxy.args(&identity).args(["--concurrency", "1"]);
                self.start(host, name, &proxy);
            }
            Program::Envoy => {
                let (bootstrap, sds, xds) = (file("bootstrap.json"), file("sds"), file("xds"));
                let mut agent = weft();
                agent.arg("agent").args(&identity);
                agent.args(["--sds-socket", &sds, "--xds-socket", &xds, "--bootstrap", &bootstrap]);
                self.start(host, &format!("{name}-agent"), &agent);
                self.processes.last_mut().unwrap().wait("serving", || Path::new(&bootstrap).exists());
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
                self.start(host, name, &envoy);
            }
        }
        let ready = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15021);
        let process = self.processes.last_mut().unwrap();
        process.wait("ready", || host.inside(|| get(ready, "/healthz/ready")).is_ok_and(|a| a.0 == 200));
    }

    /// What all have written.
    pub fn logs(&self) -> String {
        self.processes.iter().map(Process::log).collect::<Vec<_>>().join("\n----\n")
    }
}
