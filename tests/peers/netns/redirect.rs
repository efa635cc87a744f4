//! Connections that the gateway's firewall redirects to the proxy.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::json;

use super::hosts::{CLIENT, CLIENT6, GATEWAY, GATEWAY_TOO, Net, SERVER, SERVER6};
use super::{
    Server, address, ask, ask_after, bootstrap, both, fixed, http, listener_filter, passthrough, tcp,
};

const REDIRECT: &str = "table inet t { chain pre { type nat hook prerouting priority dstnat; \
     iifname \"lan\" tcp dport != 15001 redirect to :15001 } }";

#[test]
fn a_redirected_connection_goes_to_the_listener_of_its_destination_or_straight_on() {
    let net = Net::new();
    net.gateway.nft(REDIRECT);
    let _servers = [80, 81, 90, 9000].map(|port| Server::start(&net, port));
    let hidden = |ip, port, chain| {
        json!({ "name": format!("{ip}_{port}"), "address": address(ip, port), "bind_to_port": false,
            "filter_chains": [chain] })
    };
    let bootstrap = bootstrap(
        json!([
            { "name": "virtual", "address": address(Ipv4Addr::UNSPECIFIED, 15001), "use_original_dst": true,
              "filter_chains": [tcp("passthrough")] },
            // By port, by address, and one that nobody dials.
            hidden(std::net::IpAddr::from(Ipv4Addr::UNSPECIFIED), 80, http("nine")),
            hidden(SERVER, 81, tcp("nine")),
            hidden(CLIENT, 90, tcp("nine")),
        ]),
        json!([passthrough(), fixed("nine", SocketAddr::new(SERVER, 9000))]),
    );
    let counters = [
        "listener.0.0.0.0_80.downstream_cx_total",
        "listener.10.78.0.3_81.downstream_cx_total",
        "listener.0.0.0.0_15001.downstream_cx_total",
        "cluster.passthrough.upstream_cx_total",
        "cluster.nine.upstream_cx_total",
    ];
    let seen = both(&net, &bootstrap, &counters, || {
        [80, 81, 90].iter().map(|port| ask(&net, CLIENT, SocketAddr::new(SERVER, *port))).collect()
    });
    assert_eq!(seen[..3], ["10.78.0.2 at 9000", "10.78.0.2 at 9000", "10.78.0.2 at 90"]);
    assert_eq!(
        seen[3..].iter().map(|c| c.rsplit(' ').next().unwrap()).collect::<Vec<_>>(),
        ["1", "1", "1", "1", "2"]
    );
}

#[test]
fn chains_match_the_destination_that_was_dialled() {
    let net = Net::new();
    net.gateway.nft(REDIRECT);
    let _servers = [80, 81, 9000].map(|port| Server::start(&net, port));
    let with = |mut chain: serde_json::Value, matches| {
        chain["filter_chain_match"] = matches;
        chain
    };
    // The filter alone restores the address, and nothing is handed over.
    let bootstrap = bootstrap(
        json!([
            { "name": "virtual", "address": address(Ipv4Addr::UNSPECIFIED, 15001),
              "listener_filters": [listener_filter("original_dst", json!({}))],
              "filter_chains": [with(tcp("nine"), json!({ "destination_port": 80 }))],
              "default_filter_chain": tcp("passthrough") },
            { "name": "other", "address": address(Ipv4Addr::UNSPECIFIED, 81), "bind_to_port": false,
              "filter_chains": [tcp("nine")] },
        ]),
        json!([passthrough(), fixed("nine", SocketAddr::new(SERVER, 9000))]),
    );
    let seen = both(&net, &bootstrap, &["listener.0.0.0.0_15001.downstream_cx_total"], || {
        [80, 81].iter().map(|port| ask(&net, CLIENT, SocketAddr::new(SERVER, *port))).collect()
    });
    assert_eq!(
        seen,
        ["10.78.0.2 at 9000", "10.78.0.2 at 81", "listener.0.0.0.0_15001.downstream_cx_total 2"]
    );
}

#[test]
fn redirection_works_over_ipv6_as_well() {
    let net = Net::new();
    net.gateway.nft(REDIRECT);
    let _servers = [80, 90].map(|port| Server::start(&net, port));
    let bootstrap = bootstrap(
        json!([
            { "name": "virtual", "address": address(Ipv6Addr::UNSPECIFIED, 15001), "use_original_dst": true,
              "filter_chains": [tcp("passthrough")] },
            { "name": "ninety", "address": address(Ipv6Addr::UNSPECIFIED, 90), "bind_to_port": false,
              "filter_chains": [tcp("eighty")] },
        ]),
        json!([passthrough(), fixed("eighty", SocketAddr::new(SERVER6, 80))]),
    );
    let counters = ["listener.[__]_90.downstream_cx_total", "listener.[__]_15001.downstream_cx_total"];
    let seen = both(&net, &bootstrap, &counters, || {
        [80, 90].iter().map(|port| ask(&net, CLIENT6, SocketAddr::new(SERVER6, *port))).collect()
    });
    assert_eq!(seen[..2], ["fd78::2 at 80", "fd78::2 at 80"]);
    assert_eq!(seen[2..], counters.map(|c| format!("{c} 1")));
}

#[test]
fn the_proxy_protocols_destination_is_handed_over_and_told_to_the_upstream() {
    let net = Net::new();
    let _servers = [9000, 90].map(|port| Server::start(&net, port));
    let mut announced = fixed("announced", SocketAddr::new(SERVER, 9000));
    announced["transport_socket"] = json!({ "name": "envoy.transport_sockets.upstream_proxy_protocol",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
            "config": { "version": "V1" },
            "transport_socket": { "name": "envoy.transport_sockets.raw_buffer", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" } } } });
    let bootstrap = bootstrap(
        json!([
            { "name": "front", "address": address(Ipv4Addr::UNSPECIFIED, 15001), "use_original_dst": true,
              "listener_filters": [listener_filter("proxy_protocol", json!({}))],
              "filter_chains": [tcp("passthrough")] },
            { "name": "eighty", "address": address(Ipv4Addr::UNSPECIFIED, 80), "bind_to_port": false,
              "filter_chains": [http("announced")] },
        ]),
        json!([passthrough(), announced]),
    );
    let counters = ["proxy_proto.versions.v1.found", "listener.0.0.0.0_80.downstream_cx_total"];
    let front = SocketAddr::new(GATEWAY, 15001);
    let seen = both(&net, &bootstrap, &counters, || {
        ["1.2.3.4 10.78.0.3 5 90", "1.2.3.4 5.6.7.8 9 80"]
            .map(|rest| ask_after(&net, CLIENT, front, &format!("PROXY TCP4 {rest}\r\n")))
            .to_vec()
    });
    assert_eq!(seen[..2], ["10.78.0.2 at 90", "10.78.0.2 at 9000PROXY TCP4 1.2.3.4 5.6.7.8 9 80"]);
    assert_eq!(seen[2..], ["proxy_proto.versions.v1.found 2", "listener.0.0.0.0_80.downstream_cx_total 1"]);
}

#[test]
fn an_upstream_connection_comes_from_the_address_that_is_configured() {
    let net = Net::new();
    let _server = Server::start(&net, 9000);
    let to = SocketAddr::new(SERVER, 9000);
    let mut bound = fixed("bound", to);
    bound["upstream_bind_config"] =
        json!({ "source_address": { "address": GATEWAY_TOO.to_string(), "port_value": 0 } });
    let listener = |port: u16, chain: serde_json::Value| json!({ "name": port.to_string(), "address": address(Ipv4Addr::UNSPECIFIED, port), "filter_chains": [chain] });
    let bootstrap = bootstrap(
        json!([listener(1080, tcp("free")), listener(1081, tcp("bound")), listener(1082, http("bound"))]),
        json!([fixed("free", to), bound]),
    );
    let seen = both(&net, &bootstrap, &[], || {
        [1080, 1081, 1082].map(|port| ask(&net, CLIENT, SocketAddr::new(GATEWAY, port))).to_vec()
    });
    assert_eq!(seen, ["10.78.0.2 at 9000", "10.78.0.22 at 9000", "10.78.0.22 at 9000"]);
}

#[test]
fn an_upstream_connection_comes_from_the_address_of_its_own_version() {
    let net = Net::new();
    net.gateway.ip("addr add fd78::22/64 dev wan nodad");
    let _server = Server::start(&net, 9000);
    let from = |mut cluster: serde_json::Value, first: &str, extra: &str| {
        let bind = |ip: &str| json!({ "address": ip, "port_value": 0 });
        cluster["upstream_bind_config"] =
            json!({ "source_address": bind(first), "extra_source_addresses": [{ "address": bind(extra) }] });
        cluster
    };
    let (four, six) = (SocketAddr::new(SERVER, 9000), SocketAddr::new(SERVER6, 9000));
    let (own4, own6) = (GATEWAY_TOO.to_string(), "fd78::22");
    let listener = |port: u16, chain: serde_json::Value| json!({ "name": port.to_string(), "address": address(Ipv4Addr::UNSPECIFIED, port), "filter_chains": [chain] });
    let bootstrap = bootstrap(
        json!([listener(1080, tcp("four")), listener(1081, http("six")), listener(1082, tcp("turned"))]),
        json!([
            from(fixed("four", four), &own4, own6),
            from(fixed("six", six), &own4, own6),
            from(fixed("turned", six), own6, &own4),
        ]),
    );
    let seen = both(&net, &bootstrap, &[], || {
        [1080, 1081, 1082].map(|port| ask(&net, CLIENT, SocketAddr::new(GATEWAY, port))).to_vec()
    });
    assert_eq!(seen, ["10.78.0.22 at 9000", "fd78::22 at 9000", "fd78::22 at 9000"]);
}
