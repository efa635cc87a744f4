//! TLS contexts as istiod writes them.

use serde_json::{Value, json};

use crate::model::destination_rule::{ClientTls, ClientTlsMode};
use crate::model::gateway::{ServerTls, ServerTlsMode, TlsVersion};
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
        .chain(mesh.ca_certificates.iter().flat_map(|c| &c.trust_domains))
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

/// Plain text.
pub(super) fn raw_buffer() -> Value {
    json!({
        "name": "envoy.transport_sockets.raw_buffer",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"},
    })
}

/// The resource of a Secret that is not, or need not be, of the proxy's namespace.
pub(super) fn in_namespace(namespace: &str, name: &str) -> String {
    format!("kubernetes-gateway://{namespace}/{name}")
}

/// A gateway's credential, over the same stream as everything else.
fn over_ads(name: String) -> Value {
    json!({"name": name, "sds_config": {"ads": {}, "resource_api_version": "V3"}})
}

fn file(name: &str) -> Value {
    json!({"filename": name})
}

/// Names of the other side of which it must carry one.
fn names(names: &[String]) -> Vec<Value> {
    let kind = |name: &String| if name.contains("://") { "URI" } else { "DNS" };
    names.iter().map(|n| json!({"san_type": kind(n), "matcher": {"exact": n}})).collect()
}

/// TLS towards a service outside the mesh, as its DestinationRule says. Certificates come from files where the proxy runs,
/// or from the Secret that the rule names, where the node may have it (`credentials`). A sidecar that may not have it does
/// as istiod's do: it verifies the server by the system's roots; and it never falls back to plain text.
pub(super) fn external(settings: &ClientTls, http2: bool, credentials: bool) -> Value {
    let mut common = json!({});
    if http2 {
        common["alpn_protocols"] = json!(["h2"]);
    }
    let secret = Some(&settings.credential_name).filter(|name| credentials && !name.is_empty());
    let mutual = settings.mode == ClientTlsMode::Mutual;
    match secret {
        Some(name) if mutual => {
            let secrets = json!([over_ads(format!("kubernetes://{name}"))]);
            common["tls_certificate_sds_secret_configs"] = secrets;
        }
        None if mutual && !settings.client_certificate.is_empty() => {
            common["tls_certificates"] = json!([{
                "certificate_chain": file(&settings.client_certificate),
                "private_key": file(&settings.private_key),
            }]);
        }
        _ => {}
    }
    if settings.insecure_skip_verify != Some(true) {
        let mut rules = json!({"match_typed_subject_alt_names": names(&settings.subject_alt_names)});
        if !settings.ca_crl.is_empty() {
            rules["crl"] = file(&settings.ca_crl);
        }
        if let Some(name) = secret {
            common["combined_validation_context"] = json!({
                "default_validation_context": rules,
                "validation_context_sds_secret_config": over_ads(format!("kubernetes://{name}-cacert")),
            });
        } else {
            let roots = match settings.ca_certificates.as_str() {
                "" => "/etc/ssl/certs/ca-certificates.crt",
                given => given,
            };
            rules["trusted_ca"] = file(roots);
            common["validation_context"] = rules;
        }
    }
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": settings.sni,
            "common_tls_context": common,
        },
    })
}

/// The TLS that a gateway's server or a Sidecar's port ends. Its certificates come by SDS over the same stream, or from
/// files where the proxy runs.
pub(super) fn server(tls: &ServerTls) -> Value {
    let mut parameters = json!({
        "tls_minimum_protocol_version": version(tls.min_protocol_version, "TLSv1_2"),
        "tls_maximum_protocol_version": version(tls.max_protocol_version, "TLSv1_3"),
    });
    if !tls.cipher_suites.is_empty() {
        parameters["cipher_suites"] = tls.cipher_suites.clone().into();
    }
    let mut common = json!({"alpn_protocols": ["h2", "http/1.1"], "tls_params": parameters});
    let named = tls.credentials().map(|name| format!("kubernetes://{name}"));
    let secrets: Vec<String> =
        named.chain(tls.certificates.iter().map(|(place, name)| in_namespace(place, name))).collect();
    if secrets.is_empty() {
        let pair = |files: &crate::model::gateway::CertificateFiles| {
            json!({
                "certificate_chain": file(&files.server_certificate),
                "private_key": file(&files.private_key),
            })
        };
        common["tls_certificates"] = tls.files().iter().map(pair).collect();
    } else {
        common["tls_certificate_sds_secret_configs"] = secrets.iter().cloned().map(over_ads).collect();
    }
    if matches!(tls.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual) {
        let mut rules = json!({"match_typed_subject_alt_names": names(&tls.subject_alt_names)});
        if !tls.ca_crl.is_empty() {
            rules["crl"] = file(&tls.ca_crl);
        }
        if !tls.verify_certificate_spki.is_empty() {
            rules["verify_certificate_spki"] = tls.verify_certificate_spki.clone().into();
        }
        if !tls.verify_certificate_hash.is_empty() {
            rules["verify_certificate_hash"] = tls.verify_certificate_hash.clone().into();
        }
        let own = Some(tls.ca_cert_credential_name.as_str()).filter(|name| !name.is_empty());
        let own = own.map(|name| format!("kubernetes://{name}"));
        let roots = own.or(secrets.first().cloned()).map(|name| format!("{name}-cacert"));
        if let Some(roots) = roots {
            common["combined_validation_context"] = json!({
                "default_validation_context": rules,
                "validation_context_sds_secret_config": over_ads(roots),
            });
        } else {
            rules["trusted_ca"] = file(&tls.ca_certificates);
            common["validation_context"] = rules;
        }
    }
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": tls.mode == ServerTlsMode::Mutual,
            "common_tls_context": common,
        },
    })
}
