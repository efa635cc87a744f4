//! TLS contexts as istiod writes them.

use serde_json::{Value, json};

use crate::model::gateway::{Server, ServerTlsMode};
use crate::model::{Service, World};

fn sds(name: &str) -> Value {
    json!({"name": name, "sds_config": {
        "api_config_source": {
            "api_type": "GRPC",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
            "set_node_on_first_message_only": true,
            "transport_api_version": "V3",
        },
        "initial_fetch_timeout": "0s",
        "resource_api_version": "V3",
    }})
}

/// The trust domains whose workloads are welcome.
fn domains(world: &World) -> Vec<String> {
    let mesh = world.mesh();
    std::iter::once(&mesh.trust_domain)
        .chain(&mesh.trust_domain_aliases)
        .map(|d| format!("spiffe://{d}/"))
        .collect()
}

/// Inbound mutual TLS.
pub(super) fn inbound(world: &World, http: bool) -> Value {
    let alpn = if http { vec!["h2", "http/1.1"] } else { vec!["istio-peer-exchange", "h2", "http/1.1"] };
    let names: Vec<_> =
        domains(world).into_iter().map(|d| json!({"san_type": "URI", "matcher": {"prefix": d}})).collect();
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": {
                "alpn_protocols": alpn,
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_2",
                    "tls_maximum_protocol_version": "TLSv1_3",
                    "cipher_suites": [
                        "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
                        "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256",
                        "AES256-GCM-SHA384", "AES128-GCM-SHA256",
                    ],
                },
                "tls_certificate_sds_secret_configs": [sds("default")],
                "combined_validation_context": {
                    "default_validation_context": {"match_typed_subject_alt_names": names},
                    "validation_context_sds_secret_config": sds("ROOTCA"),
                },
            },
        },
    })
}

/// Mutual TLS towards a service of the mesh.
pub(super) fn mutual(world: &World, service: &Service, sni: &str, http2: bool) -> Value {
    let mut alpn = vec!["istio-peer-exchange", "istio"];
    if http2 {
        alpn.push("h2");
    }
    let mesh = world.mesh();
    let mut names: Vec<String> = Vec::new();
    for domain in std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases) {
        for (namespace, account) in crate::model::registry::service_accounts(service) {
            names.push(format!("spiffe://{domain}/ns/{namespace}/sa/{account}"));
        }
    }
    names.extend(service.subject_alt_names.iter().cloned());
    let names: Vec<_> =
        names.into_iter().map(|n| json!({"san_type": "URI", "matcher": {"exact": n}})).collect();
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": sni,
            "common_tls_context": {
                "alpn_protocols": alpn,
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_2",
                    "tls_maximum_protocol_version": "TLSv1_3",
                },
                "tls_certificate_sds_secret_configs": [sds("default")],
                "combined_validation_context": {
                    "default_validation_context": {"match_typed_subject_alt_names": names},
                    "validation_context_sds_secret_config": sds("ROOTCA"),
                },
            },
        },
    })
}

/// The TLS of a gateway's server; its certificate comes by SDS over the same stream.
pub(super) fn server(server: &Server) -> Option<Value> {
    let tls = server.tls.as_ref()?;
    let over_ads =
        |name: String| json!({"name": name, "sds_config": {"ads": {}, "resource_api_version": "V3"}});
    let name = format!("kubernetes://{}", tls.credential_name);
    let mut common = json!({
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [over_ads(name.clone())],
    });
    let mutual = matches!(tls.mode, ServerTlsMode::Mutual);
    if mutual {
        let names: Vec<_> = tls
            .subject_alt_names
            .iter()
            .map(|n| json!({"san_type": if n.contains("://") { "URI" } else { "DNS" }, "matcher": {"exact": n}}))
            .collect();
        common["combined_validation_context"] = json!({
            "default_validation_context": {"match_typed_subject_alt_names": names},
            "validation_context_sds_secret_config": over_ads(format!("{name}-cacert")),
        });
    }
    Some(json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": mutual,
            "common_tls_context": common,
        },
    }))
}
