//! GatewayClass, Gateway and ReferenceGrant of the Gateway API.

use std::collections::HashSet;

use super::super::diagnostic::Findings;
use super::service::gateway_port;
use super::{host, port};
use crate::model::gateway_api::{
    AddressKind, ApiGateway, FromNamespaces, GatewayClass, LabelSelector, Listener, ReferenceGrant,
    TlsTermination,
};
use crate::model::meta::Meta;
use crate::model::networks::{NETWORK_LABEL, REMOTE_CLASS};

/// What Gateways have at most.
const MAX_LISTENERS: usize = 64;

pub(in super::super) fn gateway_class(spec: &GatewayClass, findings: &mut Findings) {
    if spec.controller_name.is_empty() {
        let help = format!("write {}", crate::model::gateway_api::CONTROLLER);
        findings.error("spec.controllerName", "missing", help);
    }
}

pub(in super::super) fn api_gateway(spec: &ApiGateway, meta: &Meta, findings: &mut Findings) {
    if meta.labels.contains_key(NETWORK_LABEL) {
        gateway_port(meta, findings);
    }
    if spec.gateway_class_name.is_empty() {
        findings.error("spec.gatewayClassName", "missing", "name the GatewayClass that is to serve it");
    }
    if spec.listeners.is_empty() {
        findings.error("spec.listeners", "missing", "open at least one port");
    }
    if spec.listeners.len() > MAX_LISTENERS {
        findings.error(
            "spec.listeners",
            format!("more than {MAX_LISTENERS}"),
            "make several Gateways of them",
        );
    }
    let mut names = HashSet::new();
    for (index, one) in spec.listeners.iter().enumerate() {
        let path = format!("spec.listeners[{index}]");
        if one.name.is_empty() {
            findings.error(format!("{path}.name"), "missing", "name the listener");
        } else if !names.insert(&one.name) {
            let reason = format!("{:?} is given twice", one.name);
            findings.error(format!("{path}.name"), reason, "names are unique within a Gateway");
        }
        listener(findings, &path, one);
    }
    let remote = spec.gateway_class_name == REMOTE_CLASS;
    if remote && !meta.labels.contains_key(NETWORK_LABEL) {
        let reason = "which network's gateway it is, nobody says";
        let help = format!("label it {NETWORK_LABEL}: NETWORK");
        findings.warn("metadata.labels", reason, help);
    }
    for (index, address) in spec.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{index}]");
        match address.kind {
            // It stands elsewhere, at addresses that others have given it.
            AddressKind::IPAddress if remote => {
                if address.value.parse::<std::net::IpAddr>().is_err() {
                    let reason = format!("{:?} is no IP address", address.value);
                    findings.error(format!("{path}.value"), reason, "or write type: Hostname");
                }
            }
            AddressKind::Hostname if remote => {
                host(findings, &format!("{path}.value"), &address.value, false)
            }
            AddressKind::Hostname if index > 0 => {
                let help = "let all gateway workloads stand behind one Service, or make several Gateways";
                findings.error(path, "more than one Service is not supported by Weft", help);
            }
            AddressKind::Hostname => {
                if super::super::gateway_api::service_of(&address.value, &meta.namespace).is_none() {
                    let reason = format!("{:?} is no host of a Service", address.value);
                    let help = "write SERVICE.NAMESPACE.svc.cluster.local: the Service in front of the gateway workloads";
                    findings.error(format!("{path}.value"), reason, help);
                }
            }
            AddressKind::IPAddress | AddressKind::NamedAddress => {
                let help = "write type: Hostname and the host of the Service in front of the gateway workloads; or leave \
                            addresses out, and label the workloads gateway.networking.k8s.io/gateway-name";
                findings.error(format!("{path}.type"), "Weft assigns no addresses", help);
            }
        }
    }
}

fn listener(findings: &mut Findings, path: &str, one: &Listener) {
    port(findings, &format!("{path}.port"), one.port);
    if !one.hostname.is_empty() {
        hostname(findings, &format!("{path}.hostname"), &one.hostname);
    }
    let tls = one.tls.as_ref();
    match one.protocol.as_str() {
        "HTTP" if tls.is_some() => {
            let help = "make the protocol HTTPS to end TLS, or take tls out";
            findings.error(format!("{path}.tls"), "an HTTP listener does not end TLS", help);
        }
        "HTTPS" | "TLS" => {
            let Some(tls) = tls else {
                let help = "say how TLS ends, such as tls: {certificateRefs: [{name: SECRET}]}";
                findings.error(format!("{path}.tls"), format!("missing for {}", one.protocol), help);
                return;
            };
            let passes = tls.mode == TlsTermination::Passthrough;
            if passes && one.protocol == "HTTPS" {
                let help = "make the protocol TLS, or the mode Terminate";
                findings.error(
                    format!("{path}.tls.mode"),
                    "HTTPS ends here: it cannot be passed through",
                    help,
                );
            } else if passes && !tls.certificate_refs.is_empty() {
                let reason = "not used: TLS is passed through";
                findings.warn(format!("{path}.tls.certificateRefs"), reason, "take it out");
            } else if !passes && tls.certificate_refs.is_empty() {
                let help = "name the Secret with key and chain";
                findings.error(format!("{path}.tls.certificateRefs"), "missing where TLS ends", help);
            } else if !passes && tls.certificate_refs.len() > 2 {
                let reason = format!("{} certificates", tls.certificate_refs.len());
                let help = "give one of RSA and one of ECDSA at most";
                findings.error(format!("{path}.tls.certificateRefs"), reason, help);
            }
        }
        "" => findings.error(format!("{path}.protocol"), "missing", "it is HTTP, HTTPS or TLS"),
        // The Gateway's status says so of the listener; the others serve.
        _ => {}
    }
    let namespaces = &one.allowed_routes.namespaces;
    let path = format!("{path}.allowedRoutes.namespaces");
    match (namespaces.from, &namespaces.selector) {
        (FromNamespaces::Selector, None) => {
            findings.error(format!("{path}.selector"), "missing for from: Selector", "give matchLabels");
        }
        (FromNamespaces::Selector, Some(given)) => selector(findings, &format!("{path}.selector"), given),
        (_, Some(_)) => {
            findings.error(
                format!("{path}.selector"),
                "not used without from: Selector",
                "write from: Selector",
            );
        }
        (_, None) => {}
    }
}

/// A selector by labels, as Kubernetes has it.
pub(super) fn selector(findings: &mut Findings, path: &str, given: &LabelSelector) {
    for (index, requirement) in given.match_expressions.iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let needs = match requirement.operator.as_str() {
            "In" | "NotIn" => true,
            "Exists" | "DoesNotExist" => false,
            other => {
                let reason = format!("unknown operator {other:?}");
                findings.error(format!("{path}.operator"), reason, "it is In, NotIn, Exists or DoesNotExist");
                continue;
            }
        };
        if needs == requirement.values.is_empty() {
            let reason = if needs { "missing" } else { "not used with this operator" };
            findings.error(
                format!("{path}.values"),
                reason,
                "give values with In and NotIn, and only with those",
            );
        }
    }
}

/// A host of the Gateway API: a name, or one with a star for its first label; no address.
pub(super) fn hostname(findings: &mut Findings, path: &str, name: &str) {
    if name.parse::<std::net::IpAddr>().is_ok() || name == "*" {
        let help = "write a DNS name, or leave it out for all";
        findings.error(path, format!("{name:?} is no host name"), help);
        return;
    }
    host(findings, path, name, false);
}

pub(in super::super) fn reference_grant(spec: &ReferenceGrant, findings: &mut Findings) {
    for (path, empty) in [("spec.from", spec.from.is_empty()), ("spec.to", spec.to.is_empty())] {
        if empty {
            findings.error(path, "missing", "a grant says who may refer (from) to what (to)");
        }
    }
    for (index, from) in spec.from.iter().enumerate() {
        for (name, value) in [("kind", &from.kind), ("namespace", &from.namespace)] {
            if value.is_empty() {
                findings.error(format!("spec.from[{index}].{name}"), "missing", "");
            }
        }
    }
    for (index, _) in spec.to.iter().enumerate().filter(|(_, to)| to.kind.is_empty()) {
        findings.error(format!("spec.to[{index}].kind"), "missing", "such as Service or Secret");
    }
}
