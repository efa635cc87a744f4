//! The way out: an egress gateway that passes TLS on by the name in its first message, and the NetworkPolicy that leaves no other way.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::support::control::Control;
use crate::support::edge::edge;
use crate::support::eventually;
use crate::support::http::get;
use crate::support::logged::Logged;

const CONTROL: &str = "127.68.0.1";
const GATEWAY: &str = "127.68.0.2";
const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/egress/network-policy.yaml");

fn outside(name: &str, at: SocketAddr) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: edge}}
spec:
  hosts: [api.{name}.com]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 443, name: tls, protocol: TLS}}]
  endpoints: [{{address: {}, ports: {{tls: {}}}}}]
---
",
        at.ip(),
        at.port()
    )
}

fn mesh(stripe: SocketAddr, paypal: SocketAddr) -> String {
    let servers = "{port: {number: 8443, name: tls, protocol: TLS}, hosts: [api.stripe.com, api.paypal.com], tls: {mode: PASSTHROUGH}}";
    let to = |name: &str| {
        format!(
            "{{match: [{{port: 8443, sniHosts: [{name}]}}], route: [{{destination: {{host: {name}, port: {{number: 443}}}}}}]}}"
        )
    };
    let rules = format!("tls: [{}, {}]", to("api.stripe.com"), to("api.paypal.com"));
    let edge = edge("edge", "egress", servers, "api.stripe.com, api.paypal.com", &rules);
    format!(
        "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: gateway, namespace: edge, annotations: {{weft.dev/role: gateway}}}}
spec: {{address: {GATEWAY}, labels: {{istio: egress}}}}
---
{edge}{}{}",
        outside("stripe", stripe),
        outside("paypal", paypal)
    )
}

/// A number of so many bytes before some bytes.
fn counted(width: usize, bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u32).to_be_bytes();
    [&length[4 - width..], bytes].concat()
}

fn extension(kind: u16, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &counted(2, bytes)].concat()
}

/// What a TLS client says first (RFC 8446): of this name, if it says one; with an encrypted ClientHello (RFC 9849) inside if `ech`.
fn hello(name: Option<&str>, ech: bool) -> Vec<u8> {
    // TLS 1.3, and two ways to sign: no hello is without.
    let versions = extension(43, &counted(1, &[3, 4]));
    let mut extensions = [versions, extension(13, &counted(2, &[4, 3, 8, 4]))].concat();
    if let Some(name) = name {
        extensions.extend(extension(0, &counted(2, &[&[0][..], &counted(2, name.as_bytes())].concat())));
    }
    if ech {
        // Outer; HKDF-SHA256, AES-128-GCM; a configuration's number; a key; what nobody on the way can read.
        let suite = [0, 0, 1, 0, 1, 7];
        let inside = [&suite[..], &counted(2, &[0x2b; 32]), &counted(2, &[0x5a; 239])].concat();
        extensions.extend(extension(0xfe0d, &inside));
    }
    let ciphers = counted(2, &[0x13, 1, 0x13, 2]);
    let body = [&[3, 3][..], &[9; 32], &[0], &ciphers, &[1, 0], &counted(2, &extensions)].concat();
    let message = [&[1][..], &counted(3, &body)].concat();
    [&[0x16, 3, 1][..], &counted(2, &message)].concat()
}

/// What becomes of a connection that begins so: it is passed on as it is, or it ends.
fn passed(first: &[u8], to: &TcpListener) -> bool {
    let mut client = TcpStream::connect((GATEWAY, 8443)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client.write_all(first).unwrap();
    to.set_nonblocking(true).unwrap();
    let mut ended = false;
    let mut server = None;
    eventually("it is passed on, or ends", || {
        if let Ok((stream, _)) = to.accept() {
            server = Some(stream);
            return true;
        }
        client.set_nonblocking(true).unwrap();
        ended = match client.read(&mut [0; 16]) {
            Ok(0) => true,
            Err(e) => matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            Ok(n) => panic!("{n} bytes of nobody's"),
        };
        ended
    });
    let Some(mut server) = server else { return false };
    server.set_nonblocking(false).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut heard = vec![0; first.len()];
    server.read_exact(&mut heard).unwrap();
    assert_eq!(heard, first, "not a byte is different");
    true
}

#[test]
fn tls_goes_out_by_the_names_that_are_declared_and_whatever_has_another_name_or_none_is_cut_off() {
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (stripe, paypal) = (bind(), bind());
    let control = Control::start(CONTROL, &mesh(stripe.local_addr().unwrap(), paypal.local_addr().unwrap()));
    let _gateway =
        Logged::proxy(control.ip, GATEWAY, "edge", &["--role", "gateway", "--label", "istio=egress"]);
    eventually("the gateway listens", || TcpStream::connect((GATEWAY, 8443)).is_ok());
    eventually("it passes on what it knows", || passed(&hello(Some("api.stripe.com"), false), &stripe));
    assert!(passed(&hello(Some("api.paypal.com"), false), &paypal));
    assert!(passed(&hello(Some("API.Stripe.com"), false), &stripe), "names have no case");

    let counted = || {
        let admin = format!("{GATEWAY}:15000").parse().unwrap();
        let page = get(admin, "/stats?filter=no_filter_chain_match").unwrap().1;
        let lines = page.lines().filter(|l| l.contains("8443"));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
    };
    let before = counted();
    let others = [
        hello(Some("evil.example"), false),
        hello(Some("api.stripe.com.evil.example"), false),
        hello(Some("stripe.com"), false),
        hello(None, false),
        // An encrypted hello says its own name to its server alone; what stands outside is what counts.
        hello(Some("evil.example"), true),
        hello(None, true),
        b"GET / HTTP/1.1\r\nhost: api.stripe.com\r\n\r\n".to_vec(),
    ];
    for (i, first) in others.iter().enumerate() {
        assert!(!passed(first, &stripe), "{i}");
    }
    eventually("each is counted", || counted() == before + others.len() as u64);
    // It goes to the service of the outer name and nowhere else, as an Envoy would have it.
    assert!(passed(&hello(Some("api.stripe.com"), true), &stripe));
    assert_eq!(paypal.accept().map(|_| ()).unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// Where a connection goes: a pod of a namespace, or an address outside.
#[derive(Clone, Copy)]
enum To<'a> {
    Pod(&'a str, &'a [(&'a str, &'a str)]),
    Outside(&'a str),
}

/// Labels of a namespace, as an installation has them.
fn namespace_labels(name: &str) -> Vec<(String, String)> {
    let mut labels = vec![("kubernetes.io/metadata.name".to_owned(), name.to_owned())];
    if matches!(name, "ecotrack" | "data") {
        labels.push(("istio-injection".to_owned(), "enabled".to_owned()));
    }
    labels
}

fn selected(selector: &Value, labels: &[(String, String)]) -> bool {
    let has = |key: &str, value: &str| labels.iter().any(|(k, v)| (k.as_str(), v.as_str()) == (key, value));
    assert!(selector.get("matchExpressions").is_none(), "not known here");
    let wanted = selector["matchLabels"].as_object();
    wanted.is_none_or(|all| all.iter().all(|(key, value)| has(key, value.as_str().unwrap())))
}

/// What a NetworkPolicy lets a pod that it selects do, by the rules of its API: what no rule allows is denied.
fn allows(policy: &Value, to: To<'_>, port: u16, protocol: &str) -> bool {
    let spec = &policy["spec"];
    assert_eq!(spec["policyTypes"], serde_json::json!(["Egress"]));
    let own = policy["metadata"]["namespace"].as_str().unwrap();
    spec["egress"].as_array().unwrap().iter().any(|rule| {
        let ports = rule["ports"].as_array();
        let port = ports.is_none_or(|all| {
            all.iter().any(|p| {
                p["port"].as_u64() == Some(port.into()) && p["protocol"].as_str().unwrap_or("TCP") == protocol
            })
        });
        let peers = rule["to"].as_array();
        port && peers.is_none_or(|peers| {
            peers.iter().any(|peer| match to {
                To::Outside(address) => {
                    let block = peer["ipBlock"]["cidr"].as_str();
                    block.is_some_and(|block| panic!("{block} holds {address}? not known here"))
                }
                To::Pod(namespace, labels) => {
                    let labels: Vec<_> =
                        labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
                    let place = match peer.get("namespaceSelector") {
                        Some(selector) => selected(selector, &namespace_labels(namespace)),
                        None => namespace == own,
                    };
                    peer.get("ipBlock").is_none()
                        && place
                        && peer.get("podSelector").is_none_or(|s| selected(s, &labels))
                }
            })
        })
    })
}

#[test]
fn the_shipped_network_policy_leaves_workloads_no_way_out_but_by_the_egress_gateway() {
    let text = std::fs::read_to_string(POLICY).unwrap();
    let policies: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let workloads = policies.iter().find(|p| p["metadata"]["namespace"] == "ecotrack").unwrap();
    assert_eq!(workloads["spec"]["podSelector"], serde_json::json!({}), "for every pod of the namespace");
    let may = |to, port, protocol| allows(workloads, to, port, protocol);
    let egress = [("istio", "egressgateway")];
    for (to, port, protocol) in [
        (To::Pod("ecotrack", &[("app", "order-service")]), 8080, "TCP"),
        (To::Pod("data", &[("app", "postgres")]), 5432, "TCP"),
        (To::Pod("istio-system", &egress), 8443, "TCP"),
        (To::Pod("istio-system", &[("app", "istiod")]), 15012, "TCP"),
        (To::Pod("kube-system", &[("k8s-app", "kube-dns")]), 53, "UDP"),
        (To::Pod("kube-system", &[("k8s-app", "kube-dns")]), 53, "TCP"),
    ] {
        assert!(may(to, port, protocol), "{port} {protocol}");
    }
    for (to, port) in [
        (To::Outside("10.99.0.2"), 443),
        (To::Outside("10.99.0.2"), 53),
        (To::Outside("169.254.169.254"), 80),
        // Names are asked for at the cluster's own servers, which is no way out by itself.
        (To::Pod("kube-system", &[("k8s-app", "kube-dns")]), 443),
        // The control plane's plain ports, and pods of namespaces that the mesh does not look after.
        (To::Pod("istio-system", &[("app", "istiod")]), 15010),
        (To::Pod("tools", &[("app", "open-proxy")]), 3128),
    ] {
        for protocol in ["TCP", "UDP"] {
            assert!(!may(to, port, protocol), "{port} {protocol}");
        }
    }
    assert!(!text.contains("ipBlock"), "no address is let out");
}
