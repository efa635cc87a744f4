//! What a client says first: headers of the PROXY protocol, good and bad, and what becomes of them.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use super::hosts::{CLIENT, GATEWAY, Net, SERVER};
use super::{Server, address, ask_after_bytes, bootstrap, both, fixed, listener_filter, tcp};

/// The binary header for a client at 1.2.3.4:5 that dialled 6.7.8.9:10, with these values.
fn binary(values: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    header.extend((12 + values.len() as u16).to_be_bytes());
    header.extend([1, 2, 3, 4, 6, 7, 8, 9, 0, 5, 0, 10]);
    header.extend(values);
    header
}

fn announced(config: Value) -> Value {
    let mut cluster = fixed("up", SocketAddr::new(SERVER, 9000));
    cluster["transport_socket"] = json!({ "name": "envoy.transport_sockets.upstream_proxy_protocol",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
            "config": config,
            "transport_socket": { "name": "envoy.transport_sockets.raw_buffer", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" } } } });
    cluster
}

/// What both make of each of these beginnings, by a listener with these fields of the filter.
fn seen(filter: Value, upstream: Value, counters: &[&str], beginnings: &[&[u8]]) -> Vec<String> {
    let net = Net::new();
    let _server = Server::start(&net, 9000);
    let bootstrap = bootstrap(
        json!([{ "name": "front", "address": address(Ipv4Addr::UNSPECIFIED, 1080),
            "listener_filters": [listener_filter("proxy_protocol", filter)], "filter_chains": [tcp("up")] }]),
        json!([announced(upstream)]),
    );
    let front = SocketAddr::new(GATEWAY, 1080);
    both(&net, &bootstrap, counters, || {
        beginnings.iter().map(|bytes| ask_after_bytes(&net, CLIENT, front, bytes)).collect()
    })
}

const TOLD: &str = "10.78.0.2 at 9000PROXY TCP4 1.2.3.4 6.7.8.9 5 10";

#[test]
fn headers_of_both_versions_are_taken_and_bad_ones_end_the_connection() {
    let v2 = binary(b"\x02\x00\x03abc");
    let of_family = |family: u8| {
        let mut header = binary(b"");
        header[13] = family;
        header
    };
    let (datagrams, unix, other, none) = (of_family(0x12), of_family(0x31), of_family(0x10), of_family(0));
    let seen = seen(
        json!({}),
        json!({ "version": "V1" }),
        &[
            "proxy_proto.versions.v1.found",
            "proxy_proto.versions.v1.error",
            "proxy_proto.versions.v2.found",
            "proxy_proto.versions.v2.error",
            "proxy_proto.not_found_disallowed",
        ],
        &[
            b"PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n",
            &v2,
            b"PROXY TCP4 1.2.3.4 6.7.8.9 5\r\n",
            &datagrams,
            &unix,
            &other,
            &none,
            b"",
        ],
    );
    assert_eq!(seen[..2], [TOLD, TOLD]);
    for (counter, expected) in seen[8..].iter().zip([1, 1, 2, 3, 1]) {
        assert!(counter.ends_with(&format!(" {expected}")), "{counter}");
    }
}

#[test]
fn a_connection_without_a_header_goes_on_where_that_is_allowed() {
    let seen = seen(
        json!({ "allow_requests_without_proxy_protocol": true, "stat_prefix": "named" }),
        json!({ "version": "V1" }),
        &["proxy_proto.named.not_found_allowed", "proxy_proto.named.versions.v1.found"],
        &[b"", b"PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n"],
    );
    assert!(seen[0].starts_with("10.78.0.2 at 9000PROXY TCP4 10.77.0.1 10.78.0.2 PORT 1080"), "{seen:?}");
    assert_eq!(seen[1], TOLD);
}

#[test]
fn a_version_that_is_not_allowed_ends_the_connection() {
    let seen = seen(
        json!({ "disallowed_versions": ["V1"] }),
        json!({ "version": "V1" }),
        &["proxy_proto.versions.v1.disallowed", "proxy_proto.versions.v2.found"],
        &[b"PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n", &binary(b"")],
    );
    assert_eq!(seen[1], TOLD);
    assert_eq!(seen[2..], ["proxy_proto.versions.v1.disallowed 1", "proxy_proto.versions.v2.found 1"]);
}

#[test]
fn values_that_are_to_go_on_do_and_others_do_not() {
    let values = b"\xE0\x00\x03one\xE1\x00\x03two\xE2\x00\x00";
    let passing = json!({ "match_type": "INCLUDE", "tlv_type": [0xE0, 0xE2] });
    for (filter, upstream) in [
        (json!({ "pass_through_tlvs": {} }), json!({ "version": "V2", "pass_through_tlvs": {} })),
        (json!({ "pass_through_tlvs": passing }), json!({ "version": "V2", "pass_through_tlvs": {} })),
        (json!({ "pass_through_tlvs": {} }), json!({ "version": "V2", "pass_through_tlvs": passing })),
        (json!({ "pass_through_tlvs": {} }), json!({ "version": "V2" })),
        (
            json!({ "pass_through_tlvs": {} }),
            json!({ "version": "V2", "pass_through_tlvs": {}, "added_tlvs": [{ "type": 0xE1, "value": "bmV3" }, { "type": 0xF0, "value": "bW9yZQ==" }] }),
        ),
    ] {
        // Both told the server the same, byte for byte: it answers with what it got before the request.
        let seen = seen(filter, upstream, &[], &[&binary(values)]);
        assert!(seen[0].contains("0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a 21 11"), "{seen:?}");
    }
}
