//! Standalone gateways before a service that is no part of the mesh: every way of TLS, load by other people's clients, and
//! gateways that are replaced one after the other while they are used.

mod grpc;
mod load;
mod rolling;
mod tls;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use crate::ecotrack::outside::Authority;
use crate::netns::hosts::{Host, Serving};
use crate::netns::pods::{Pod, Pods, Program};
use crate::netns::switch::{SWITCH, Switch};
use crate::programs::{Process, peer, weft};

/// Where the gateways are.
const GATEWAYS: [&str; 2] = ["10.88.1.1", "10.88.1.2"];
/// Where the service is.
const SERVICE: &str = "10.88.2.1";

const MESH: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
    - {port: {number: 80, name: http, protocol: HTTP}, hosts: [plain.example]}
    - {port: {number: 443, name: simple, protocol: HTTPS}, hosts: [simple.example], tls: {mode: SIMPLE, credentialName: simple}}
    - {port: {number: 443, name: wild, protocol: HTTPS}, hosts: ['*.wild.example'], tls: {mode: SIMPLE, credentialName: wild, minProtocolVersion: TLSV1_3}}
    - {port: {number: 443, name: mutual, protocol: HTTPS}, hosts: [mutual.example], tls: {mode: MUTUAL, credentialName: mutual}}
    - {port: {number: 443, name: optional, protocol: HTTPS}, hosts: [optional.example], tls: {mode: OPTIONAL_MUTUAL, credentialName: optional}}
    - {port: {number: 443, name: through, protocol: TLS}, hosts: [through.example], tls: {mode: PASSTHROUGH}}
    - {port: {number: 9000, name: tcp, protocol: TCP}, hosts: ['*']}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: edge}
spec:
  hosts: [plain.example, simple.example, '*.wild.example', mutual.example, optional.example]
  gateways: [edge]
  http:
    - match: [{uri: {prefix: /originate}}]
      route: [{destination: {host: origin.example, port: {number: 80}}}]
    - match: [{uri: {prefix: /test.Echo/}}]
      route: [{destination: {host: web.example, port: {number: 8090}}}]
    - route: [{destination: {host: web.example, port: {number: 8080}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: origin, namespace: edge}
spec:
  hosts: [origin.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}]
  endpoints: [{address: 10.88.2.1}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: origin, namespace: edge}
spec:
  host: origin.example
  trafficPolicy: {tls: {mode: SIMPLE, sni: through.example, subjectAltNames: [through.example], caCertificates: ROOTS}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: through, namespace: edge}
spec:
  hosts: [through.example]
  gateways: [edge]
  tls: [{match: [{port: 443, sniHosts: [through.example]}], route: [{destination: {host: web.example, port: {number: 8443}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tcp, namespace: edge}
spec:
  hosts: ['*']
  gateways: [edge]
  tcp: [{match: [{port: 9000}], route: [{destination: {host: web.example, port: {number: 8080}}}]}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: edge}
spec:
  hosts: [web.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 8080, name: http, protocol: HTTP}, {number: 8090, name: grpc, protocol: GRPC}, {number: 8443, name: tls, protocol: TLS}]
  endpoints: [{address: 10.88.2.1}]
";

/// Gateways, what is behind them, and a client before them.
struct Edge {
    pods: Pods,
    hosts: Vec<Host>,
    client: Host,
    authority: Authority,
    directory: tempfile::TempDir,
    _service: Process,
    _through: Serving,
    behind: Host,
    _switch: Switch,
}

impl Edge {
    /// So many gateways.
    fn start(gateways: usize) -> Self {
        let switch = Switch::new();
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let authority = Authority::new();
        let file = |name: &str| directory.path().join(name);
        std::fs::write(file("world.pem"), authority.pem()).unwrap();
        for (name, host) in [
            ("simple", "simple.example"),
            ("wild", "*.wild.example"),
            ("mutual", "mutual.example"),
            ("optional", "optional.example"),
        ] {
            let credential = file("credentials/edge").join(name);
            authority.credential(&credential, host);
            std::fs::write(credential.join("ca.crt"), authority.pem()).unwrap();
        }
        authority.credential(&file("client"), "client.example");
        let stranger = Authority::new();
        stranger.credential(&file("stranger"), "client.example");
        let credentials = file("credentials").to_str().unwrap().to_owned();
        let more = ["--credentials", "files", "--credentials-dir", &credentials];
        let text = MESH.replace("ROOTS", file("world.pem").to_str().unwrap());
        let mut pods = Pods::control(&switch.host, SWITCH, &text, &more);
        let client = switch.attach("client", "10.99.0.3");
        let behind = switch.attach("web", SERVICE);
        let mut app = weft();
        app.args(["app", "--listen", &format!("{SERVICE}:8080"), "--service", "web"]);
        let mut service = Process::start("web", &mut behind.command(&app), directory.path());
        let at = SocketAddr::new(SERVICE.parse().unwrap(), 8080);
        service.wait("listening", || behind.inside(|| std::net::TcpStream::connect(at)).is_ok());
        let through = crate::ecotrack::outside::payments(&behind, &authority, "through.example", 8443);
        let hosts = (0..gateways)
            .map(|n| {
                let host = switch.attach(&format!("gw{n}"), GATEWAYS[n]);
                pods.add(&gateway(&host, n));
                host
            })
            .collect();
        Self {
            pods,
            hosts,
            client,
            authority,
            directory,
            _service: service,
            _through: through,
            behind,
            _switch: switch,
        }
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// curl from outside to a gateway's host: what it wrote of `what`, or its error.
    fn curl(&self, url: &str, more: &[&str]) -> Result<String, String> {
        let mut curl = Command::new(peer("WEFT_CURL"));
        curl.args(["-s", "-S", "--max-time", "20", "--cacert", &self.file("world.pem")]);
        let host = url.split("://").nth(1).unwrap().split('/').next().unwrap();
        for port in [80, 443] {
            curl.args(["--resolve", &format!("{host}:{port}:{}", GATEWAYS[0])]);
        }
        curl.args(more).arg(url);
        crate::programs::run(&mut self.client.command(&curl))
    }
}

/// The gateway of a number.
fn gateway(host: &Host, number: usize) -> Pod<'_> {
    Pod {
        host,
        namespace: "edge",
        name: ["gateway-0", "gateway-1"][number],
        ip: IpAddr::V4(GATEWAYS[number].parse::<Ipv4Addr>().unwrap()),
        captured: false,
        labels: &["istio=ingressgateway"],
        program: Program::Weft,
    }
}
