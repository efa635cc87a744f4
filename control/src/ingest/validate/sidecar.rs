//! Sidecar.

use std::collections::HashSet;
use std::net::SocketAddr;

use super::super::diagnostic::Findings;
use super::destination_rule::connection_pool;
use super::gateway::{certificates, client_certificates, gateway_protocol};
use super::labels::{dns_label, selected};
use super::virtual_service::destination;
use super::{host, port};
use crate::model::gateway::ServerTlsMode;
use crate::model::sidecar::{EgressListener, IngressListener, OutboundMode, OutboundTrafficPolicy, Sidecar};

pub(in super::super) fn sidecar(spec: &Sidecar, findings: &mut Findings) {
    if (Sidecar { workload_selector: None, ..spec.clone() }) == Sidecar::default() {
        findings.error("spec", "empty", "give ingress, egress or outboundTrafficPolicy");
    }
    if spec.workload_selector.as_ref().is_some_and(|selector| selector.labels.is_empty()) {
        findings.warn(
            "spec.workloadSelector",
            "without labels it selects every workload",
            "give labels, or take it out",
        );
    }
    if let Some(selector) = &spec.workload_selector {
        selected(findings, "spec.workloadSelector.labels", selector);
    }
    let mut ports = HashSet::new();
    for (index, listener) in spec.ingress.iter().enumerate() {
        let path = format!("spec.ingress[{index}]");
        ingress(findings, &path, listener);
        if listener.port.number != 0 && !ports.insert(listener.port.number) {
            let reason = format!("{} is given twice", listener.port.number);
            findings.error(format!("{path}.port.number"), reason, "one listener per port");
        }
    }
    let mut ports = HashSet::new();
    for (index, listener) in spec.egress.iter().enumerate() {
        let path = format!("spec.egress[{index}]");
        egress(findings, &path, listener);
        match &listener.port {
            None if index + 1 < spec.egress.len() => {
                let help = "put the listener for all other ports last";
                findings.error(format!("{path}.port"), "only the last listener may lack a port", help);
            }
            Some(port) if port.number != 0 && !ports.insert((listener.bind.as_str(), port.number)) => {
                let reason = format!("{} is given twice", port.number);
                findings.error(format!("{path}.port.number"), reason, "one listener per address and port");
            }
            _ => {}
        }
    }
    if let Some(OutboundTrafficPolicy { mode, egress_proxy: Some(proxy) }) = &spec.outbound_traffic_policy {
        let path = "spec.outboundTrafficPolicy.egressProxy";
        if *mode != OutboundMode::AllowAny {
            let help = "write mode: ALLOW_ANY, or take it out";
            findings.error(path, "nothing goes there in mode REGISTRY_ONLY", help);
        }
        destination(findings, path, proxy);
        if proxy.port.is_none() {
            findings.error(format!("{path}.port"), "missing", "say at which of its ports");
        }
    }
    if let Some(pool) = &spec.inbound_connection_pool {
        connection_pool(findings, "spec.inboundConnectionPool", pool);
    }
}

fn ingress(findings: &mut Findings, path: &str, listener: &IngressListener) {
    port(findings, &format!("{path}.port.number"), listener.port.number);
    port_name(findings, path, &listener.port.name);
    // Without one it is seen from what clients send.
    if !listener.port.protocol.is_empty() {
        gateway_protocol(findings, &format!("{path}.port.protocol"), &listener.port.protocol);
    }
    bind(findings, path, &listener.bind);
    let endpoint = listener.default_endpoint.as_str();
    let fits = match endpoint.strip_prefix("unix://") {
        Some(socket) => socket.starts_with('/') || socket.starts_with('@'),
        None => {
            endpoint.is_empty()
                || endpoint.parse::<SocketAddr>().is_ok_and(|address| {
                    address.port() != 0 && (address.ip().is_loopback() || address.ip().is_unspecified())
                })
        }
    };
    if !fits {
        findings.error(
            format!("{path}.defaultEndpoint"),
            format!("{endpoint:?} is not an endpoint of the instance itself"),
            "write 127.0.0.1:PORT, 0.0.0.0:PORT (the instance's own address) or unix:///path",
        );
    }
    if let Some(tls) = &listener.tls {
        let at = format!("{path}.tls");
        if !matches!(tls.mode, ServerTlsMode::Simple | ServerTlsMode::Mutual) {
            findings.error(format!("{at}.mode"), "a Sidecar ends TLS in mode SIMPLE or MUTUAL only", "");
        }
        for (name, given) in [
            ("credentialName", !tls.credential_name.is_empty()),
            ("credentialNames", !tls.credential_names.is_empty()),
            ("caCertCredentialName", !tls.ca_cert_credential_name.is_empty()),
        ] {
            if given {
                findings.error(format!("{at}.{name}"), "not allowed in a Sidecar", "name files");
            }
        }
        certificates(findings, &at, tls);
        client_certificates(findings, &at, tls);
        if !tls.subject_alt_names.is_empty() {
            findings.error(format!("{at}.subjectAltNames"), "not allowed in a Sidecar", "take them out");
        }
        if tls.https_redirect {
            findings.error(format!("{at}.httpsRedirect"), "not allowed in a Sidecar", "take it out");
        }
    }
    if let Some(pool) = &listener.connection_pool {
        connection_pool(findings, &format!("{path}.connectionPool"), pool);
    }
}

fn egress(findings: &mut Findings, path: &str, listener: &EgressListener) {
    if let Some(named) = &listener.port {
        port(findings, &format!("{path}.port.number"), named.number);
        port_name(findings, path, &named.name);
        if !named.is_http_proxy() {
            gateway_protocol(findings, &format!("{path}.port.protocol"), &named.protocol);
        }
    }
    bind(findings, path, &listener.bind);
    if listener.hosts.is_empty() {
        findings.error(format!("{path}.hosts"), "missing", "say what it reaches, such as ./* or */*");
    }
    for (index, entry) in listener.hosts.iter().enumerate() {
        let path = format!("{path}.hosts[{index}]");
        let Some((namespace, name)) = entry.split_once('/') else {
            findings.error(
                &path,
                format!("{entry:?} lacks its namespace"),
                "write namespace/host, ./host or */host",
            );
            continue;
        };
        if namespace.is_empty() {
            findings.error(
                &path,
                "the namespace before the / is empty",
                "write namespace/host, ./host or */host",
            );
        }
        host(findings, &path, name, false);
        if entry == "*/*" && listener.hosts.len() > 1 {
            findings.warn(&path, "*/* already reaches everything", "take the other hosts out");
        }
    }
}

fn port_name(findings: &mut Findings, path: &str, name: &str) {
    if !name.is_empty() {
        dns_label(findings, &format!("{path}.port.name"), "a port", name);
    }
}

fn bind(findings: &mut Findings, path: &str, address: &str) {
    if address.starts_with("unix://") {
        let help = "give an IP address, or none for the workload's own";
        findings.error(
            format!("{path}.bind"),
            "listening on a UNIX socket is not supported by Weft yet",
            help,
        );
    } else if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        findings.error(format!("{path}.bind"), format!("{address:?} is no IP address"), "");
    }
}
