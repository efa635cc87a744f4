//! What stands before a gateway: whose word about the client counts.

use std::net::SocketAddr;

use super::entry;
use crate::support::control::Control;
use crate::support::edge::edge;
use crate::support::eventually;
use crate::support::http::exchange;
use crate::support::logged::Logged;
use crate::support::service::Service;

/// A mesh whose gateways stand behind what `topology` says, and one of them.
fn gateway(control: &'static str, ip: &str, a: &Service, topology: &str) -> (Control, Logged, SocketAddr) {
    let text = format!(
        "
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data: {{mesh: '{{defaultConfig: {{gatewayTopology: {topology}}}}}'}}
---
"
    );
    let server = "{port: {number: 8080, name: http, protocol: HTTP}, hosts: ['a.com']}";
    let rules = "http: [{route: [{destination: {host: a.com, port: {number: 8080}}}]}]";
    let edge = edge("shop", "ingressgateway", server, "a.com", rules);
    let control = Control::start(control, &(text + &edge + &entry("a", &[(a, "r/z")])));
    let more = ["--role", "gateway", "--label", "istio=ingressgateway"];
    let proxy = Logged::proxy(control.ip, ip, "shop", &more);
    (control, proxy, format!("{ip}:8080").parse().unwrap())
}

fn request(before: &str, headers: &str) -> String {
    format!("{before}GET / HTTP/1.1\r\nhost: a.com\r\nconnection: close\r\n{headers}\r\n")
}

/// A field of the last request that the service got.
fn received(a: &Service, name: &str) -> Option<String> {
    let head = a.heads().pop().unwrap();
    head.lines().find_map(|line| line.split_once(": ").filter(|(n, _)| *n == name)).map(|(_, v)| v.to_owned())
}

#[test]
fn trusted_proxies_tell_the_client() {
    let a = Service::start("a");
    let topology = "{numTrustedProxies: 2, forwardClientCertDetails: SANITIZE}";
    let (_control, _proxy, at) = gateway("127.67.1.1", "127.67.1.2", &a, topology);
    let claim = "x-forwarded-for: 6.6.6.6, 203.0.113.7, 198.51.100.1\r\nx-forwarded-client-cert: By=me\r\n";
    eventually("the gateway serves", || {
        exchange(at, &request("", claim)).is_ok_and(|(head, _)| head.contains(" 200 "))
    });
    // Two proxies wrote the last two, the first of which is of the client; what is before them anybody may have written.
    assert_eq!(received(&a, "x-envoy-external-address").as_deref(), Some("203.0.113.7"));
    assert_eq!(received(&a, "x-forwarded-client-cert"), None);
}

#[test]
fn nobody_is_trusted_by_default() {
    let a = Service::start("a");
    let (_control, _proxy, at) = gateway("127.67.2.1", "127.67.2.2", &a, "{}");
    let claim = "x-forwarded-for: 203.0.113.7\r\n";
    eventually("the gateway serves", || {
        exchange(at, &request("", claim)).is_ok_and(|(head, _)| head.contains(" 200 "))
    });
    assert_ne!(received(&a, "x-envoy-external-address").as_deref(), Some("203.0.113.7"));
    assert!(received(&a, "x-forwarded-for").unwrap().starts_with("203.0.113.7,"));
}

#[test]
fn a_balancer_tells_the_client_by_the_proxy_protocol() {
    let a = Service::start("a");
    let (_control, _proxy, at) = gateway("127.67.3.1", "127.67.3.2", &a, "{proxyProtocol: {}}");
    let header = "PROXY TCP4 203.0.113.9 198.51.100.1 4711 80\r\n";
    eventually("the gateway serves", || {
        exchange(at, &request(header, "")).is_ok_and(|(head, _)| head.contains(" 200 "))
    });
    assert_eq!(received(&a, "x-forwarded-for").as_deref(), Some("203.0.113.9"));
    // Without it there is no connection.
    let before = a.heads().len();
    let (head, _) = exchange(at, &request("", "")).unwrap_or_default();
    assert_eq!((head.as_str(), a.heads().len()), ("", before));
}
