//! Connections to the upstream that keep the client's address: TPROXY in, `original_src` out.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};

use super::hosts::{CLIENT, CLIENT_TOO, CLIENT6, Net, SERVER, SERVER6};
use super::{Server, address, ask, bootstrap, both, fixed, http, listener_filter, passthrough, tcp};

/// Takes what the client sends for the proxy's transparent socket, and what the server answers to a socket that is bound to
/// the client's address.
fn intercept(net: &Net) {
    net.gateway.nft(
        "table inet t { chain pre { type filter hook prerouting priority mangle; \
           meta l4proto tcp socket transparent 1 meta mark set 1 accept; \
           iifname \"lan\" meta nfproto ipv4 meta l4proto tcp tproxy ip to :15006 meta mark set 1 accept; \
           iifname \"lan\" meta nfproto ipv6 meta l4proto tcp tproxy ip6 to :15006 meta mark set 1 accept } }",
    );
    for family in ["-4", "-6"] {
        net.gateway.ip(&format!("{family} rule add fwmark 1 lookup 100"));
        net.gateway.ip(&format!("{family} route add local default dev lo table 100"));
    }
}

fn listener(any: impl Into<std::net::IpAddr>, filters: Value, chains: Value, fallback: Value) -> Value {
    json!([{ "name": "inbound", "address": address(any, 15006), "transparent": true,
        "listener_filters": filters, "filter_chains": chains, "default_filter_chain": fallback }])
}

fn for_port(port: u16, mut chain: Value) -> Value {
    chain["filter_chain_match"] = json!({ "destination_port": port });
    chain
}

#[test]
fn tproxy_restores_the_destination_and_the_upstream_sees_the_clients_address() {
    let net = Net::new();
    intercept(&net);
    let _servers = [80, 90, 9000].map(|port| Server::start(&net, port));
    let filters = json!([
        listener_filter("original_dst", json!({})),
        listener_filter("original_src", json!({ "mark": 1337 })),
    ]);
    let bootstrap = bootstrap(
        listener(
            Ipv4Addr::UNSPECIFIED,
            filters,
            json!([for_port(80, http("nine")), for_port(81, tcp("nine"))]),
            tcp("passthrough"),
        ),
        json!([passthrough(), fixed("nine", SocketAddr::new(SERVER, 9000))]),
    );
    // Two clients by turns: a connection that was made for one is not used for the other.
    let seen = both(&net, &bootstrap, &["listener.0.0.0.0_15006.downstream_cx_total"], || {
        let clients = [CLIENT, CLIENT_TOO, CLIENT];
        let ask = |port| clients.map(|client| ask(&net, client, SocketAddr::new(SERVER, port)));
        [80, 81, 90].into_iter().flat_map(ask).collect()
    });
    for (port, seen) in [9000, 9000, 90].iter().zip(seen.chunks(3)) {
        assert_eq!(seen, ["10.77.0.1", "10.77.0.11", "10.77.0.1"].map(|ip| format!("{ip} at {port}")));
    }
    assert_eq!(seen[9], "listener.0.0.0.0_15006.downstream_cx_total 9");
}

#[test]
fn without_original_src_the_upstream_sees_the_gateway() {
    let net = Net::new();
    intercept(&net);
    let _servers = [80, 90].map(|port| Server::start(&net, port));
    let mut off = listener_filter("original_src", json!({}));
    off["filter_disabled"] = json!({ "destination_port_range": { "start": 80, "end": 81 } });
    let filters = json!([listener_filter("original_dst", json!({})), off]);
    let bootstrap = bootstrap(
        listener(Ipv4Addr::UNSPECIFIED, filters, json!([]), tcp("passthrough")),
        json!([passthrough()]),
    );
    let seen = both(&net, &bootstrap, &[], || {
        [80, 90].map(|port| ask(&net, CLIENT, SocketAddr::new(SERVER, port))).to_vec()
    });
    assert_eq!(seen, ["10.78.0.2 at 80", "10.77.0.1 at 90"]);
}

#[test]
fn tproxy_and_original_src_over_ipv6() {
    let net = Net::new();
    intercept(&net);
    let _servers = [80, 90].map(|port| Server::start(&net, port));
    let filters =
        json!([listener_filter("original_dst", json!({})), listener_filter("original_src", json!({}))]);
    let bootstrap = bootstrap(
        listener(Ipv6Addr::UNSPECIFIED, filters, json!([for_port(80, http("ninety"))]), tcp("passthrough")),
        json!([passthrough(), fixed("ninety", SocketAddr::new(SERVER6, 90))]),
    );
    let seen = both(&net, &bootstrap, &[], || {
        [80, 90].map(|port| ask(&net, CLIENT6, SocketAddr::new(SERVER6, port))).to_vec()
    });
    assert_eq!(seen, ["fd77::1 at 90", "fd77::1 at 90"]);
}
