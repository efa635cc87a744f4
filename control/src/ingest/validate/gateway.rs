//! Gateway.

use std::collections::HashSet;

use super::super::diagnostic::Findings;
use super::{host, port};
use crate::model::gateway::{Gateway, ServerTls, ServerTlsMode, TlsVersion};
use crate::model::service::Protocol;

pub(in super::super) fn gateway(spec: &Gateway, findings: &mut Findings) {
    if spec.servers.is_empty() {
        findings.error("spec.servers", "missing", "open at least one port");
    }
    if spec.selector.is_empty() {
        findings.warn(
            "spec.selector",
            "without labels every gateway serves it",
            "select the gateway's labels",
        );
    }
    let mut names = HashSet::new();
    for (index, server) in spec.servers.iter().enumerate() {
        let path = format!("spec.servers[{index}]");
        port(findings, &format!("{path}.port.number"), server.port.number);
        if server.port.name.is_empty() {
            findings.error(format!("{path}.port.name"), "missing", "name the port");
        } else if !names.insert(&server.port.name) {
            let reason = format!("{:?} is given twice", server.port.name);
            findings.error(format!("{path}.port.name"), reason, "port names are unique within a Gateway");
        }
        let protocol = gateway_protocol(findings, &format!("{path}.port.protocol"), &server.port.protocol);
        if !server.bind.is_empty() && server.bind.parse::<std::net::IpAddr>().is_err() {
            findings.error(format!("{path}.bind"), format!("{:?} is no IP address", server.bind), "");
        }
        if server.hosts.is_empty() {
            findings.error(format!("{path}.hosts"), "missing", "name the hosts that it serves, or \"*\"");
        }
        for (index, entry) in server.hosts.iter().enumerate() {
            let path = format!("{path}.hosts[{index}]");
            let name = match entry.split_once('/') {
                Some(("", _)) => {
                    findings.error(
                        &path,
                        "the namespace before the / is empty",
                        "write namespace/host, ./host or */host",
                    );
                    continue;
                }
                Some((_, name)) => name,
                None => entry,
            };
            host(findings, &path, name, false);
        }
        match (&server.tls, protocol) {
            (None, Some(Protocol::Https | Protocol::Tls)) => {
                let help = "say how TLS ends, such as tls: {mode: SIMPLE, credentialName: NAME}";
                findings.error(format!("{path}.tls"), "missing for HTTPS or TLS", help);
            }
            (Some(tls), Some(protocol)) => server_tls(findings, &format!("{path}.tls"), tls, protocol),
            _ => {}
        }
    }
}

/// The protocol of a gateway's or Sidecar's port, if it is one.
pub(super) fn gateway_protocol(findings: &mut Findings, path: &str, name: &str) -> Option<Protocol> {
    const KNOWN: [&str; 9] = ["HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "TLS", "TCP", "MONGO", "REDIS"];
    if name.is_empty() {
        findings.error(path, "missing", "give HTTP, HTTPS, HTTP2, GRPC, TLS or TCP");
        return None;
    }
    let protocol = Protocol::parse(name).filter(|protocol| *protocol != Protocol::Udp);
    if protocol.is_none() {
        let help = match super::super::suggest::closest(name, KNOWN) {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("it is one of {}", KNOWN.join(", ")),
        };
        findings.error(path, format!("unknown protocol {name:?}"), help);
    }
    protocol
}

fn server_tls(findings: &mut Findings, path: &str, tls: &ServerTls, protocol: Protocol) {
    let settings = ServerTls { https_redirect: false, ..tls.clone() } != ServerTls::default();
    if protocol.is_http() && settings {
        let help = "only httpsRedirect belongs there; make the protocol HTTPS to end TLS";
        findings.error(path, format!("a {protocol} server does not end TLS"), help);
        return;
    }
    if tls.https_redirect && !protocol.is_http() {
        let help = "put it on the plain HTTP server";
        findings.warn(format!("{path}.httpsRedirect"), "only plain HTTP is redirected", help);
    }
    let files = [
        ("serverCertificate", &tls.server_certificate),
        ("privateKey", &tls.private_key),
        ("caCertificates", &tls.ca_certificates),
    ];
    match tls.mode {
        ServerTlsMode::IstioMutual => {
            for (name, value) in files.into_iter().chain([("credentialName", &tls.credential_name)]) {
                if !value.is_empty() {
                    let help = "take it out: ISTIO_MUTUAL uses the workload's own certificate";
                    findings.error(format!("{path}.{name}"), "not allowed with ISTIO_MUTUAL", help);
                }
            }
        }
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {
            let by_name = !tls.credential_name.is_empty();
            if by_name && files[..2].iter().any(|(_, value)| !value.is_empty()) {
                findings.error(
                    path,
                    "both credentialName and files",
                    "keep one source of key and certificate",
                );
            }
            for (name, value) in &files[..2] {
                if !by_name && value.is_empty() {
                    let help = "give credentialName, or serverCertificate and privateKey";
                    findings.error(format!("{path}.{name}"), "a key and certificate are missing", help);
                }
            }
            if tls.mode != ServerTlsMode::Simple && !by_name && tls.ca_certificates.is_empty() {
                let help = "give the file with the roots that sign clients";
                findings.error(format!("{path}.caCertificates"), "missing for client certificates", help);
            }
        }
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {
            for (name, value) in files.into_iter().chain([("credentialName", &tls.credential_name)]) {
                if !value.is_empty() {
                    findings.warn(format!("{path}.{name}"), "not used: TLS is passed through", "take it out");
                }
            }
        }
    }
    for (name, version) in
        [("minProtocolVersion", tls.min_protocol_version), ("maxProtocolVersion", tls.max_protocol_version)]
    {
        if matches!(version, TlsVersion::V1_0 | TlsVersion::V1_1) {
            let help = "use TLSV1_2 or TLSV1_3";
            findings.error(format!("{path}.{name}"), "TLS below 1.2 is not supported by Weft", help);
        }
    }
    if tls.min_protocol_version == TlsVersion::V1_3 && tls.max_protocol_version == TlsVersion::V1_2 {
        findings.error(path, "the lowest TLS version is above the highest", "swap them");
    }
}
