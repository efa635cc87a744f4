use serde_json::json;

use super::*;
use crate::{
    Any,
    envoy::{
        config::{
            bootstrap::v3::Bootstrap,
            cluster::v3::Cluster,
            core::v3::{Metadata, TypedExtensionConfig},
            listener::v3::Listener,
        },
        extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
    },
};

const BOOTSTRAP: &str = "
node: { id: sidecar~10.0.0.1~a.b~b.svc, metadata: { INSTANCE_IPS: 10.0.0.1, ENABLED: no } }
static_resources:
  listeners:
  - name: probe
    address: { socketAddress: { address: 0.0.0.0, port_value: 15021 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: probe
          codec_type: HTTP1
          stream_idle_timeout: 1.500s
          normalizePath: true
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true
  clusters:
  - name: agent
    connect_timeout: 0.25s
    max_requests_per_connection: 1
";

#[test]
fn a_bootstrap_in_yaml_becomes_messages_with_their_any_inside() {
    let bootstrap: Bootstrap = from_yaml_str(BOOTSTRAP).unwrap();
    let resources = bootstrap.static_resources.unwrap();
    let config = resources.listeners[0].filter_chains[0].filters[0].config_type.clone();
    let crate::envoy::config::listener::v3::filter::ConfigType::TypedConfig(any) = config.unwrap() else {
        panic!()
    };
    let hcm: HttpConnectionManager = any.unpack().unwrap();
    assert_eq!((hcm.stat_prefix.as_str(), hcm.normalize_path), ("probe", Some(true)));
    assert_eq!(hcm.stream_idle_timeout.map(|d| (d.seconds, d.nanos)), Some((1, 500_000_000)));
    assert_eq!(resources.clusters[0].max_requests_per_connection, Some(1));
    // YAML 1.2: `no` is a word.
    let enabled = &bootstrap.node.unwrap().metadata.unwrap().fields["ENABLED"];
    assert_eq!(enabled.kind, Some(prost_types::value::Kind::StringValue("no".into())));
}

#[test]
fn writing_gives_proto_names_and_reading_that_gives_the_same_message() {
    let bootstrap: Bootstrap = from_yaml_str(BOOTSTRAP).unwrap();
    let value = to_value(&bootstrap);
    let filter = &value["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(filter["normalize_path"], json!(true));
    assert_eq!(filter["http_filters"][0]["typed_config"]["suppress_envoy_headers"], json!(true));
    assert_eq!(value["static_resources"]["clusters"][0]["connect_timeout"], json!("0.250s"));
    assert_eq!(from_value::<Bootstrap>(value).unwrap(), bootstrap);
}

#[test]
fn what_a_message_does_not_have_is_refused_with_its_path() {
    let wrong = |from: &str, to: &str| {
        from_yaml_str::<Bootstrap>(&BOOTSTRAP.replace(from, to)).unwrap_err().to_string()
    };
    let filter = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config";
    assert_eq!(
        wrong("stat_prefix", "stat_prefx"),
        format!(
            "{filter}.stat_prefx: envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager \
             has no such field"
        )
    );
    assert!(
        wrong("1.500s", "1.5").starts_with(&format!("{filter}.stream_idle_timeout: is not a valid Duration"))
    );
    assert!(
        wrong("HTTP1", "HTTP9")
            .starts_with(&format!("{filter}.codec_type: \"HTTP9\" is not one of AUTO, HTTP1"))
    );
    assert!(wrong("15021", "-1").contains("port_value: expected uint32, found -1"));
    assert!(wrong("v3.Router", "v3.Rooter").contains("v3.Rooter\" is not one that this build knows"));
    let twice =
        json!({"name": "a", "eds_cluster_config": {}, "connect_timeout": "1s", "connectTimeout": "2s"});
    assert_eq!(from_value::<Cluster>(twice).unwrap_err().message, "is given twice");
    let both = json!({"name": "a", "typed_config": {"@type": "x/nobody.Knows"}});
    assert!(from_value::<TypedExtensionConfig>(both).unwrap_err().message.contains("nobody.Knows"));
    let oneof = json!({"type": "EDS", "cluster_type": {"name": "x"}});
    assert_eq!(
        from_value::<Cluster>(oneof).unwrap_err().to_string(),
        "type: cannot be given together with cluster_type"
    );
}

#[test]
fn an_any_of_unknown_type_is_written_as_bytes_and_read_back() {
    let config = TypedExtensionConfig {
        name: "wasm".into(),
        typed_config: Some(Any {
            type_url: "type.googleapis.com/nobody.Knows".into(),
            value: Bytes::from_static(b"\x0a\x01x"),
        }),
    };
    let value = to_value(&config);
    assert_eq!(value["typed_config"], json!({"@type": "type.googleapis.com/nobody.Knows", "value": "CgF4"}));
    assert_eq!(from_value::<TypedExtensionConfig>(value).unwrap(), config);
}

#[test]
fn maps_wrappers_and_structs_take_their_canonical_forms() {
    let cluster = json!({
        "name": "c",
        "per_connection_buffer_limit_bytes": 32768,
        "metadata": {"filter_metadata": {"istio": {"services": [{"host": "a"}], "external": true, "none": null}}},
        "common_lb_config": {"healthy_panic_threshold": {"value": 12.5}},
    });
    assert_eq!(to_value(&from_value::<Cluster>(cluster.clone()).unwrap()), cluster);
    let wrong = json!({"filter_metadata": {"istio": 3}});
    assert!(
        from_value::<Metadata>(wrong).unwrap_err().to_string().starts_with("filter_metadata[\"istio\"]: ")
    );
}

#[test]
fn text_that_is_not_yaml_or_not_an_object_is_an_error_and_no_panic() {
    for text in ["", "- a", "{", "a: [1", "\u{0}", "!!binary x", "&a [*a]"] {
        assert!(from_yaml_str::<Listener>(text).is_err(), "{text:?}");
    }
}

#[test]
fn private_keys_are_not_written() {
    use crate::envoy::extensions::transport_sockets::tls::v3::Secret;
    let secret = json!({"name": "s", "tls_certificate": {
        "certificate_chain": {"inline_string": "CHAIN"},
        "private_key": {"inline_bytes": "S0VZ"},
    }});
    let written = to_value(&from_value::<Secret>(secret).unwrap());
    assert_eq!(written["tls_certificate"]["certificate_chain"]["inline_string"], json!("CHAIN"));
    assert_eq!(written["tls_certificate"]["private_key"], json!({"inline_bytes": "W3JlZGFjdGVkXQ=="}));
}

#[test]
fn any_inside_any_without_end_is_written_as_bytes() {
    let deep = (0..10_000).fold(Any::default(), |inner, _| Any::pack(&inner));
    let mut value = &to_value(&deep);
    let mut depth = 0;
    while let Some(inner) = value.get("value").filter(|v| v.is_object()) {
        value = inner;
        depth += 1;
    }
    assert_eq!(depth, 16);
}

/// A version is a hash of the bytes: were they in another order each time, every restart of a control plane, and every
/// replica, would send everything anew.
#[test]
fn equal_documents_have_equal_bytes() {
    let keys: Vec<String> = (0..40).map(|n| format!("key.{n}")).collect();
    let object = |keys: &[String]| {
        let map = keys.iter().map(|key| (key.clone(), json!({"a": {"b": key, "c": 1.5, "d": [true, null]}})));
        json!({
            "name": "c",
            "metadata": {"filter_metadata": map.collect::<serde_json::Map<_, _>>()},
            "max_requests_per_connection": 7,
            "dns_lookup_family": "V4_ONLY",
            "typed_extension_protocol_options": {
                "x": {
                    "@type": "type.googleapis.com/google.protobuf.Struct",
                    "value": keys.iter().map(|key| (key.clone(), json!(1))).collect::<serde_json::Map<_, _>>(),
                },
            },
        })
    };
    let name = "envoy.config.cluster.v3.Cluster";
    let bytes = encode(name, &object(&keys)).unwrap();
    let message = Cluster::decode(bytes.clone()).unwrap();
    assert_eq!(message.metadata.as_ref().unwrap().filter_metadata.len(), 40);
    assert_eq!((message.dns_lookup_family, message.max_requests_per_connection), (1, Some(7)));
    for _ in 0..8 {
        assert_eq!(encode(name, &object(&keys)).unwrap(), bytes);
        assert_eq!(from_value::<Cluster>(object(&keys)).unwrap(), message);
        assert_eq!(Cluster::decode(bytes.clone()).unwrap().encode_to_vec(), bytes);
    }
}
