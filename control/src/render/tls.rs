//! TLS contexts as istiod writes them.

use serde_json::{Value, json};

use crate::model::gateway::{Server, ServerTls, ServerTlsMode, TlsVersion};
use crate::model::{Service, World};

/// A version as Envoy writes it. Older ones than 1.2 are refused where they are read.
fn version(version: TlsVersion, default: &'static str) -> &'static str {
    match version {
        TlsVersion::V1_3 => "TLSv1_3",
        TlsVersion::V1_2 => "TLSv1_2",
        TlsVersion::Auto | TlsVersion::V1_0 | TlsVersion::V1_1 => default,
    }
}

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

/// The ciphers for TLS 1.2 between workloads.
fn ciphers(world: &World) -> Value {
    match world.mesh().mesh_mtls.cipher_suites.as_slice() {
        [] => json!([
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-RSA-AES256-GCM-SHA384",
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDHE-RSA-AES128-GCM-SHA256",
            "AES256-GCM-SHA384",
            "AES128-GCM-SHA256",
        ]),
        given => json!(given),
    }
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
                    "tls_minimum_protocol_version": version(world.mesh().mesh_mtls.min_protocol_version, "TLSv1_2"),
                    "tls_maximum_protocol_version": "TLSv1_3",
                    "cipher_suites": ciphers(world),
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

/// The TLS of a gateway's server. Its certificate comes by SDS over the same stream, or from files where the gateway runs.
pub(super) fn server(server: &Server) -> Option<Value> {
    let tls = server.tls.as_ref()?;
    let mut parameters = json!({
        "tls_minimum_protocol_version": version(tls.min_protocol_version, "TLSv1_2"),
        "tls_maximum_protocol_version": version(tls.max_protocol_version, "TLSv1_3"),
    });
    if !tls.cipher_suites.is_empty() {
        parameters["cipher_suites"] = tls.cipher_suites.clone().into();
    }
    let mut common = json!({"alpn_protocols": ["h2", "http/1.1"], "tls_params": parameters});
    let over_ads =
        |name: String| json!({"name": name, "sds_config": {"ads": {}, "resource_api_version": "V3"}});
    let secret = format!("kubernetes://{}", tls.credential_name);
    if tls.credential_name.is_empty() {
        common["tls_certificates"] = json!([{
            "certificate_chain": {"filename": tls.server_certificate},
            "private_key": {"filename": tls.private_key},
        }]);
    } else {
        common["tls_certificate_sds_secret_configs"] = json!([over_ads(secret.clone())]);
    }
    if matches!(tls.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual) {
        let names = client_names(tls);
        if tls.credential_name.is_empty() {
            common["validation_context"] = json!({
                "trusted_ca": {"filename": tls.ca_certificates}, "match_typed_subject_alt_names": names});
        } else {
            common["combined_validation_context"] = json!({
                "default_validation_context": {"match_typed_subject_alt_names": names},
                "validation_context_sds_secret_config": over_ads(format!("{secret}-cacert")),
            });
        }
    }
    Some(json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": tls.mode == ServerTlsMode::Mutual,
            "common_tls_context": common,
        },
    }))
}

fn client_names(tls: &ServerTls) -> Vec<Value> {
    let names = tls.subject_alt_names.iter();
    names
        .map(|n| json!({"san_type": if n.contains("://") { "URI" } else { "DNS" }, "matcher": {"exact": n}}))
        .collect()
}
