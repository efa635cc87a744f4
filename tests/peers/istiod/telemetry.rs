//! What is counted and written of requests as the mesh's configuration says.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::Value;

use super::pods::Pod;
use super::shop::{Shop, WEB};
use crate::programs::{get, until_or};

/// Its proxy's metrics.
pub fn metrics(pod: &Pod) -> String {
    let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15090);
    pod.host.inside(|| get(at, "/stats/prometheus")).map(|(_, text)| text).unwrap_or_default()
}

/// Whether a series of this name has all of these labels.
pub fn has(text: &str, name: &str, labels: &[&str]) -> bool {
    text.lines().any(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)))
}

/// Both sides of a request count it with both workloads, and write it down.
pub fn tells_of_both_sides(shop: &Shop<'_>) {
    let (client, first) = (shop.pod("client"), shop.pod("web-1"));
    let ask = || drop(client.get(WEB, "web", "/counted", &[]));
    let service = "destination_service=\"web.shop.svc.cluster.local\"";
    let source = [
        "reporter=\"source\"",
        service,
        "response_code=\"200\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/web\"",
        "destination_app=\"web\"",
        "source_app=\"client\"",
        "destination_version=\"v1\"",
    ];
    until_or(
        "the client counts",
        || metrics(client),
        || {
            ask();
            has(&metrics(client), "istio_requests_total{", &source)
        },
    );
    let destination = [
        // Several Services lead to this port; which of them is named, istiod says.
        "reporter=\"destination\"",
        "destination_canonical_service=\"web\"",
        "connection_security_policy=\"mutual_tls\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "source_app=\"client\"",
        "destination_app=\"web\"",
    ];
    until_or(
        "the server counts",
        || metrics(first),
        || {
            ask();
            has(&metrics(first), "istio_requests_total{", &destination)
        },
    );
    // Nothing is exchanged over TCP: a peer is known by its certificate there.
    let bytes = [
        "reporter=\"source\"",
        "destination_service=\"database.shop.svc.cluster.local\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/database\"",
    ];
    until_or(
        "bytes are counted",
        || metrics(client),
        || {
            client.greeting(super::shop::DATABASE);
            has(&metrics(client), "istio_tcp_connections_opened_total{", &bytes)
        },
    );

    let written = |pod: &Pod, key: &str, value: &str| {
        let log = pod.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.any(|line| line["path"] == "/counted" && line[key] == value && line["response_code"] == 200)
    };
    let cluster = "outbound|80||web.shop.svc.cluster.local";
    until_or("the client writes it down", || client.log(), || written(client, "upstream_cluster", cluster));
    until_or(
        "the server writes it down",
        || first.log(),
        || written(first, "upstream_cluster", "inbound|8080||"),
    );
}
