//! Gateway.

use std::collections::HashSet;

use base64::Engine;

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
            if name != "*" && !name.contains('.') {
                let help = "a gateway's clients know full names alone: write it out";
                findings.error(&path, format!("{name:?} is a short name"), help);
            }
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

/// Everything that names a certificate, key, root or list, and whether it is given.
fn sources(tls: &ServerTls) -> [(&'static str, bool); 8] {
    [
        ("serverCertificate", !tls.server_certificate.is_empty()),
        ("privateKey", !tls.private_key.is_empty()),
        ("tlsCertificates", !tls.tls_certificates.is_empty()),
        ("caCertificates", !tls.ca_certificates.is_empty()),
        ("caCrl", !tls.ca_crl.is_empty()),
        ("credentialName", !tls.credential_name.is_empty()),
        ("credentialNames", !tls.credential_names.is_empty()),
        ("caCertCredentialName", !tls.ca_cert_credential_name.is_empty()),
    ]
}

/// Where key and certificate come from: one source, and all of it. A Sidecar's port has the same form.
pub(super) fn certificates(findings: &mut Findings, path: &str, tls: &ServerTls) {
    let pair = !tls.server_certificate.is_empty() || !tls.private_key.is_empty();
    let given: Vec<&str> = [
        ("credentialName", !tls.credential_name.is_empty()),
        ("credentialNames", !tls.credential_names.is_empty()),
        ("serverCertificate and privateKey", pair),
        ("tlsCertificates", !tls.tls_certificates.is_empty()),
    ]
    .into_iter()
    .filter_map(|(name, given)| given.then_some(name))
    .collect();
    if given.len() > 1 {
        let reason = format!("more than one source of key and certificate: {}", given.join(", "));
        findings.error(path, reason, "keep one of them");
        return;
    }
    let several = tls.credential_names.len().max(tls.tls_certificates.len());
    if several > 2 {
        let reason = format!("{several} certificates");
        findings.error(format!("{path}.{}", given[0]), reason, "give one of RSA and one of ECDSA at most");
    }
    for (index, name) in tls.credential_names.iter().enumerate().filter(|(_, name)| name.is_empty()) {
        findings.error(format!("{path}.credentialNames[{index}]"), format!("{name:?} names nothing"), "");
    }
    for (index, files) in tls.tls_certificates.iter().enumerate() {
        let path = format!("{path}.tlsCertificates[{index}]");
        for (name, value) in
            [("serverCertificate", &files.server_certificate), ("privateKey", &files.private_key)]
        {
            if value.is_empty() {
                findings.error(format!("{path}.{name}"), "missing", "name the file");
            }
        }
        if !files.ca_certificates.is_empty() {
            let help = "put it beside tlsCertificates";
            findings.error(format!("{path}.caCertificates"), "roots are of the server, not of a pair", help);
        }
    }
    if given.is_empty() || pair {
        for (name, value) in
            [("serverCertificate", &tls.server_certificate), ("privateKey", &tls.private_key)]
        {
            if value.is_empty() {
                let help = "give credentialName, or serverCertificate and privateKey";
                findings.error(format!("{path}.{name}"), "a key and certificate are missing", help);
            }
        }
    }
}

/// What clients must show, where they must show something. A Sidecar's port has the same form.
pub(super) fn client_certificates(findings: &mut Findings, path: &str, tls: &ServerTls) {
    let by_name = tls.credentials().next().is_some();
    if tls.mode == ServerTlsMode::Simple {
        for (name, given) in [
            ("caCrl", !tls.ca_crl.is_empty()),
            ("caCertCredentialName", !tls.ca_cert_credential_name.is_empty()),
            ("verifyCertificateSpki", !tls.verify_certificate_spki.is_empty()),
            ("verifyCertificateHash", !tls.verify_certificate_hash.is_empty()),
        ] {
            if given {
                let help = "make the mode MUTUAL, or take it out";
                findings.error(format!("{path}.{name}"), "SIMPLE asks for no client certificate", help);
            }
        }
        return;
    }
    let roots = by_name || !tls.ca_cert_credential_name.is_empty();
    if !roots && tls.ca_certificates.is_empty() {
        let help = "give the file with the roots that sign clients";
        findings.error(format!("{path}.caCertificates"), "missing for client certificates", help);
    }
    if !tls.ca_crl.is_empty() && roots {
        let help = "name the roots by file (caCertificates), or take the list out";
        findings.error(format!("{path}.caCrl"), "given beside a Secret", help);
    }
    let hexadecimal = |text: &str| {
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())
    };
    for (index, hash) in tls.verify_certificate_hash.iter().enumerate().filter(|(_, h)| !hexadecimal(h)) {
        let reason = format!("{hash:?} is no SHA-256 in hexadecimal digits");
        findings.error(format!("{path}.verifyCertificateHash[{index}]"), reason, "give 64 of them");
    }
    for (index, hash) in tls.verify_certificate_spki.iter().enumerate() {
        if base64::engine::general_purpose::STANDARD.decode(hash).map(|bytes| bytes.len()) != Ok(32) {
            let reason = format!("{hash:?} is no SHA-256 in base64");
            findings.error(format!("{path}.verifyCertificateSpki[{index}]"), reason, "give 32 bytes");
        }
    }
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
    match tls.mode {
        ServerTlsMode::IstioMutual => {
            for (name, given) in sources(tls) {
                if given {
                    let help = "take it out: ISTIO_MUTUAL uses the workload's own certificate";
                    findings.error(format!("{path}.{name}"), "not allowed with ISTIO_MUTUAL", help);
                }
            }
        }
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {
            certificates(findings, path, tls);
            client_certificates(findings, path, tls);
        }
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {
            if tls.mode == ServerTlsMode::AutoPassthrough && !protocol.is_tls() {
                let help = "make the protocol TLS";
                findings.error(
                    format!("{path}.mode"),
                    format!("AUTO_PASSTHROUGH goes by the server name of TLS, which {protocol} has not"),
                    help,
                );
            }
            for (name, given) in sources(tls) {
                if given {
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
