//! Kubernetes Service.

use std::collections::HashSet;

use super::super::diagnostic::Findings;
use super::port;
use crate::model::kubernetes::{KubernetesNode, KubernetesService, NODE_SELECTOR};
use crate::model::meta::Meta;
use crate::model::networks::{GATEWAY_PORT, GATEWAY_PORT_LABEL, NETWORK_LABEL};
use crate::model::service::Protocol;

/// The port at which other networks come to what stands before a network's gateways.
pub(super) fn gateway_port(meta: &Meta, findings: &mut Findings) {
    let Some(port) = meta.labels.get(GATEWAY_PORT_LABEL) else { return };
    if !port.parse::<u16>().is_ok_and(|port| port != 0) {
        let path = format!("metadata.labels.{GATEWAY_PORT_LABEL}");
        let help = format!(
            "give the port at which other networks come in, or take the label out for {GATEWAY_PORT}"
        );
        findings.error(path, format!("{port:?} is no port"), help);
    }
}

pub(in super::super) fn kubernetes_service(spec: &KubernetesService, meta: &Meta, findings: &mut Findings) {
    if spec.is_external_name() {
        if spec.external_name.is_empty() {
            let help = "name the host that it stands for";
            findings.error("spec.externalName", "missing", help);
        }
        // What else it says matters to nobody: the name alone counts.
        return;
    }
    if !spec.external_name.is_empty() {
        let help = "write type: ExternalName, or leave externalName out";
        findings.warn("spec.externalName", "only Services of type ExternalName have one", help);
    }
    if !matches!(spec.service_type.as_str(), "" | "ClusterIP" | "NodePort" | "LoadBalancer") {
        let help = "it is ClusterIP, NodePort, LoadBalancer or ExternalName";
        findings.error("spec.type", format!("unknown type {:?}", spec.service_type), help);
    }
    // Members of a headless service are found by DNS, without ports.
    if spec.ports.is_empty() && spec.cluster_ip != "None" {
        findings.error("spec.ports", "missing", "give at least one port");
    }
    if !matches!(spec.cluster_ip.as_str(), "" | "None")
        && spec.cluster_ip.parse::<std::net::IpAddr>().is_err()
    {
        findings.error("spec.clusterIP", format!("{:?} is no IP address", spec.cluster_ip), "or write None");
    }
    if spec.session_affinity == "ClientIP" {
        findings.warn(
            "spec.sessionAffinity",
            "ClientIP is honoured by kube-proxy alone, which proxies of the mesh do not ask",
            "write a DestinationRule with loadBalancer.consistentHash.useSourceIp: true",
        );
    }
    for (index, address) in spec.external_ips.iter().enumerate() {
        if address.parse::<std::net::IpAddr>().is_err() {
            let path = format!("spec.externalIPs[{index}]");
            findings.error(path, format!("{address:?} is no IP address"), "");
        }
    }
    if meta.labels.contains_key(NETWORK_LABEL) {
        gateway_port(meta, findings);
    }
    if let Some(text) = meta.annotations.get(NODE_SELECTOR) {
        let path = format!("metadata.annotations.{NODE_SELECTOR}");
        if KubernetesNode::selector(text).is_err() {
            let help = "write labels of nodes as JSON, such as '{\"edge\": \"true\"}', or '{}' for all nodes";
            findings.error(path, format!("{text:?} is no object of texts"), help);
        } else if spec.service_type != "NodePort" {
            findings.warn(
                path,
                "counts for Services of type NodePort alone",
                "take it out, or change spec.type",
            );
        }
    }
    let mut names = HashSet::new();
    let mut numbers = HashSet::new();
    for (index, entry) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        port(findings, &format!("{path}.port"), entry.port);
        if spec.ports.len() > 1 && entry.name.is_empty() {
            findings.error(format!("{path}.name"), "missing", "name each port of a service that has several");
        }
        if !entry.name.is_empty() && !names.insert(&entry.name) {
            findings.error(format!("{path}.name"), format!("{:?} is given twice", entry.name), "rename one");
        }
        if !matches!(entry.protocol.as_str(), "" | "TCP" | "UDP" | "SCTP") {
            let help = "it is TCP, UDP or SCTP; the application's protocol goes under appProtocol";
            findings.error(
                format!("{path}.protocol"),
                format!("unknown protocol {:?}", entry.protocol),
                help,
            );
        }
        if !numbers.insert((entry.port, entry.protocol.as_str())) {
            findings.error(format!("{path}.port"), format!("{} is given twice", entry.port), "remove one");
        }
        let selected =
            Protocol::select(entry.port, &entry.protocol, entry.app_protocol.as_deref(), &entry.name);
        if selected == Protocol::Auto
            && let Some(name) = entry.app_protocol.as_deref()
            && Protocol::parse(name).is_none()
        {
            let help = "the protocol will be found out from the first bytes";
            findings.warn(format!("{path}.appProtocol"), format!("unknown protocol {name:?}"), help);
        }
    }
}
