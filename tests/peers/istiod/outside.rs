//! What is outside of the mesh, by a ServiceEntry with a name, and what a Sidecar leaves of the world.

use std::net::Ipv4Addr;

use super::applications::Application;
use super::shop::{Shop, WEB};
use crate::programs::until;

/// What the name server says of outside.example.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

const ENTRY: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: shop}
spec:
  hosts: [outside.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: outside, namespace: shop}
spec:
  hosts: [outside.example]
  http:
  - route: [{destination: {host: outside.example}, headers: {request: {set: {x-known: 'yes'}}}}]
";

const SIDECAR: &str = "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: client, namespace: shop}
spec:
  workloadSelector: {labels: {app: client}}
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  egress: [{hosts: [./*, istio-system/*]}]
";

/// A name outside is looked up and reached, as its rule says; after that, only what the Sidecar names.
pub fn is_reached_as_far_as_it_is_known(shop: &Shop<'_>) {
    let client = shop.pod("client");
    shop.cluster.host.ip(&format!("addr add {ADDRESS}/32 dev lo"));
    let server = Application::start(shop.cluster.host, 80, "outside");
    let to = format!("{ADDRESS}:80");
    // Nobody knows it yet: it is let through as it was dialled.
    assert_eq!(client.get(&to, "outside.example", "/unknown", &[]).body, "outside");
    assert!(!server.asked("/unknown")[0].contains("x-known"));
    shop.cluster.server.apply(ENTRY);
    until("the entry is known", || {
        client.get(&to, "outside.example", "/known", &[]);
        server.heads().last().is_some_and(|head| head.contains("x-known: yes"))
    });
    assert!(shop.names.asked("outside.example") > 0);
    assert_eq!(client.get("10.96.0.14:80", "stranger.elsewhere", "/", &[]).body, "stranger");

    shop.cluster.server.apply(SIDECAR);
    // What is not known is a black hole.
    until("others are gone", || client.get("10.96.0.14:80", "stranger.elsewhere", "/", &[]).status == 502);
    assert_eq!(client.get(&to, "unknown.example", "/", &[]).status, 502);
    assert_eq!(client.get("10.79.1.41:8081", "stranger", "/", &[]).status, 0);
    assert_eq!(client.get(&to, "outside.example", "/", &[]).body, "outside");
    assert_eq!(client.get(WEB, "web", "/", &[]).status, 200);
    shop.cluster.server.kubectl(&["-n", "shop", "delete", "sidecar", "client"]);
    until("others are back", || client.get("10.96.0.14:80", "stranger.elsewhere", "/", &[]).status == 200);
}
