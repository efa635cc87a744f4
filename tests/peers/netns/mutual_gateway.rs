//! A gateway that speaks ISTIO_MUTUAL with the workloads of its mesh: they reach a server outside by it, each by its identity, and
//! nobody else reaches the gateway.

use std::net::SocketAddr;
use std::process::Command;

use super::captured::{Says, start};
use super::hosts::Host;
use super::pods::{Pod, Pods, Program};
use super::switch::{SWITCH, Switch};
use crate::ecotrack::http::{Message, ask};
use crate::ecotrack::outside::Authority;
use crate::programs::{peer, run, until_or};

const GATEWAY: &str = "10.88.1.2";
/// By which applications know the server.
const API: &str = "10.240.0.1";

const MESH: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
    accessLogFile: /dev/stdout
    accessLogFormat: \"%DOWNSTREAM_PEER_URI_SAN% %REQUESTED_SERVER_NAME% %RESPONSE_CODE%\\n\"
---
apiVersion: v1
kind: Service
metadata: {name: istio-egressgateway, namespace: istio-system}
spec: {clusterIP: 10.96.1.2, selector: {istio: egressgateway}, ports: [{name: https, port: 443}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: egress, namespace: istio-system, annotations: {weft.dev/role: gateway}}
spec: {address: 10.88.1.2, labels: {istio: egressgateway}, serviceAccount: egress}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop}
spec: {address: 10.88.2.1, labels: {app: web}, serviceAccount: web}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: other, namespace: shop}
spec: {address: 10.88.2.2, labels: {app: other}, serviceAccount: other}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: istio-system}
spec:
  hosts: [api.example]
  addresses: [10.240.0.1]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: 10.99.0.2}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: egress, namespace: istio-system}
spec:
  selector: {istio: egressgateway}
  servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: [api.example], tls: {mode: ISTIO_MUTUAL}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: egress, namespace: istio-system}
spec:
  host: istio-egressgateway.istio-system.svc.cluster.local
  subsets:
    - name: api
      trafficPolicy: {portLevelSettings: [{port: {number: 443}, tls: {mode: ISTIO_MUTUAL, sni: api.example}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api, namespace: istio-system}
spec:
  hosts: [api.example]
  gateways: [mesh, egress]
  http:
    - match: [{gateways: [mesh], port: 80}]
      route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, subset: api, port: {number: 443}}}]
    - match: [{gateways: [egress], port: 443}]
      route: [{destination: {host: api.example, port: {number: 80}}}]
---
";

/// Only `web` may go out.
const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: egress, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: egressgateway}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
";

fn call(from: &Host) -> Message {
    ask(from, SocketAddr::new(API.parse().unwrap(), 80), "GET /", "host: api.example\r\n", "")
}

#[test]
fn workloads_go_out_by_their_identities_and_strangers_do_not() {
    let switch = Switch::new();
    let directory = tempfile::tempdir().unwrap();
    let world = switch.attach("world", "10.99.0.2");
    let stranger = switch.attach("stranger", "10.88.2.9");
    let _server = start(&world, 8080, Says::Http);
    let mut pods = Pods::control(&switch.host, SWITCH, MESH, &[]);
    let mut add = |namespace, name: &'static str, ip: &str, captured: bool| {
        let host = switch.attach(name, ip);
        let labels: &[&str] = if captured { &[] } else { &["istio=egressgateway"] };
        let ip = ip.parse().unwrap();
        pods.add(&Pod { host: &host, namespace, name, ip, captured, labels, program: Program::Weft });
        host
    };
    let _gateway = add("istio-system", "egress", GATEWAY, false);
    let (web, other) = (add("shop", "web", "10.88.2.1", true), add("shop", "other", "10.88.2.2", true));

    // The workload speaks plain HTTP; the gateway knows who it is, and tells the server.
    let said = call(&web);
    assert_eq!(said.status(), 200, "{said:?}\n{}", pods.logs());
    assert!(
        said.body.contains("10.88.1.2") && said.body.ends_with("spiffe://cluster.local/ns/shop/sa/web"),
        "{said:?}"
    );
    let line = "spiffe://cluster.local/ns/shop/sa/web api.example 200";
    until_or("the gateway logs it", || pods.logs(), || pods.log_of("egress").contains(line));

    // Whoever has no identity of the mesh gets nowhere: in plain text, without a certificate, or with one of his own.
    let own = Authority::new();
    own.credential(&directory.path().join("own"), "web");
    let file = |name: &str| directory.path().join("own").join(name).to_str().unwrap().to_owned();
    let curl = |scheme: &str, more: &[&str]| {
        let mut curl = Command::new(peer("WEFT_CURL"));
        curl.args(["-s", "-S", "-k", "--max-time", "10", "--resolve", &format!("api.example:443:{GATEWAY}")]);
        curl.args(more).arg(format!("{scheme}://api.example:443/"));
        run(&mut stranger.command(&curl))
    };
    for (scheme, more) in [
        ("http", vec![]),
        ("https", vec![]),
        ("https", vec!["--tls-max", "1.2"]),
        ("https", vec!["--cert", &file("tls.crt"), "--key", &file("tls.key")]),
    ] {
        let said = curl(scheme, &more);
        assert!(said.is_err(), "a stranger by {scheme} {more:?}: {said:?}");
    }

    // Of those who have one, those whom a policy names.
    assert_eq!(call(&other).status(), 200);
    std::fs::write(pods.file("config/policy.yaml"), POLICY).unwrap();
    until_or("the policy holds", || pods.logs(), || call(&other).status() == 403);
    assert_eq!(call(&web).status(), 200);
}
