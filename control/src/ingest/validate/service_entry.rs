//! ServiceEntry and WorkloadEntry.

use std::collections::HashSet;
use std::net::IpAddr;

use super::super::diagnostic::Findings;
use super::labels::{dns_label, labels, selected};
use super::{export_to, host, host_form, port};
use crate::model::meta::Meta;
use crate::model::service::{CALLS_ANNOTATION, COMMAND_ANNOTATION, Protocol, ROLE_ANNOTATION, Resolution};
use crate::model::service_entry::{ServiceEntry, WorkloadEntry};
use crate::model::workload_group::PROXY_ANNOTATION;

pub(in super::super) fn service_entry(spec: &ServiceEntry, findings: &mut Findings) {
    if spec.hosts.is_empty() {
        findings.error("spec.hosts", "missing", "name at least one host");
    }
    for (index, name) in spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{index}]");
        if name == "*" {
            findings.error(&path, "a bare * is too wide", "name hosts, or a wildcard such as *.example.com");
        } else {
            host(findings, &path, name, false);
        }
    }
    for (index, address) in spec.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{index}]");
        let is_range = address.contains('/') && address.parse::<ipnet::IpNet>().is_ok();
        if !is_range && address.parse::<IpAddr>().is_err() {
            findings.error(&path, format!("{address:?} is no address"), "write 10.0.0.1 or 10.0.0.0/24");
        }
        if is_range && !matches!(spec.resolution, Resolution::None | Resolution::Static) {
            findings.error(&path, "ranges need resolution NONE or STATIC", "give single addresses");
        }
    }
    if let Some(selector) = &spec.workload_selector {
        selected(findings, "spec.workloadSelector.labels", selector);
    }
    export_to(findings, &spec.export_to);
    ports(spec, findings);
    endpoints(spec, findings);
}

/// Why several hosts need ports whose connections name one.
const APART: &str = "several hosts on a TCP port cannot be told apart";

fn ports(spec: &ServiceEntry, findings: &mut Findings) {
    if spec.ports.is_empty() {
        findings.error("spec.ports", "missing", "give at least one port");
    }
    let mut names = HashSet::new();
    let mut numbers = HashSet::new();
    for (index, entry) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        port(findings, &format!("{path}.number"), entry.number);
        if let Some(target) = entry.target_port {
            port(findings, &format!("{path}.targetPort"), target);
        }
        if entry.name.is_empty() {
            findings.error(format!("{path}.name"), "missing", "name the port");
        } else if !names.insert(&entry.name) {
            findings.error(format!("{path}.name"), format!("{:?} is given twice", entry.name), "rename one");
        } else {
            dns_label(findings, &format!("{path}.name"), "a port", &entry.name);
        }
        if entry.number != 0 && !numbers.insert(entry.number) {
            findings.error(
                format!("{path}.number"),
                format!("{} is given twice", entry.number),
                "remove one",
            );
        }
        let protocol = Protocol::parse(&entry.protocol);
        if !entry.protocol.is_empty() && protocol.is_none() {
            let help = "it is HTTP, HTTPS, HTTP2, GRPC, MONGO, TCP or TLS";
            findings.error(
                format!("{path}.protocol"),
                format!("unknown protocol {:?}", entry.protocol),
                help,
            );
        }
        let by_name_only = protocol.is_some_and(|protocol| protocol.is_http() || protocol.is_tls());
        if spec.addresses.is_empty() && protocol.is_some() && !by_name_only {
            let help = "give spec.addresses, or have proxies answer DNS with addresses of their own (DNS_AUTO_ALLOCATE), so that \
                        connections can be told apart";
            findings.warn(
                format!("{path}.protocol"),
                "TCP without an address takes all traffic of the port",
                help,
            );
            if spec.hosts.len() > 1 {
                findings.error("spec.hosts", APART, "give one host");
            }
        } else if spec.addresses.is_empty() && entry.protocol.is_empty() && spec.hosts.len() > 1 {
            findings.error("spec.hosts", APART, "give one host, or say the port's protocol");
        }
    }
}

fn endpoints(spec: &ServiceEntry, findings: &mut Findings) {
    if spec.workload_selector.is_some() && !spec.endpoints.is_empty() {
        findings.error("spec.endpoints", "given beside workloadSelector", "keep one of them");
    }
    let unix = |address: &str| address.starts_with("unix://");
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let path = format!("spec.endpoints[{index}]");
        entry(findings, &path, endpoint);
        for name in endpoint.ports.keys() {
            if !spec.ports.iter().any(|port| port.name == *name) {
                let help = "name a port of spec.ports";
                findings.error(format!("{path}.ports.{name}"), "no port of that name", help);
            }
        }
        if unix(&endpoint.address) && spec.ports.len() != 1 {
            findings.error(
                format!("{path}.address"),
                "a UNIX socket serves exactly one port",
                "split the entry",
            );
        }
        let by_dns = matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
        if by_dns && endpoint.address.is_empty() && !endpoint.network.is_empty() {
            let help = "give it, or use resolution: STATIC";
            findings.error(format!("{path}.address"), "a name is needed to look up in DNS", help);
        }
        if by_dns && unix(&endpoint.address) {
            let help = "use resolution: STATIC";
            findings.error(format!("{path}.address"), "a UNIX socket is not looked up in DNS", help);
        }
        let is_address = endpoint.address.parse::<IpAddr>().is_ok() || unix(&endpoint.address);
        if spec.resolution == Resolution::Static && !is_address && !endpoint.address.is_empty() {
            let help = "give an IP address, or use resolution: DNS";
            findings.error(format!("{path}.address"), "STATIC endpoints are addresses", help);
        }
    }
    let given = spec.endpoints.len();
    match spec.resolution {
        Resolution::None if given > 0 => {
            findings.error(
                "spec.endpoints",
                "not allowed with resolution NONE",
                "use resolution: STATIC or DNS",
            );
        }
        Resolution::Static if given == 0 && spec.workload_selector.is_none() => {
            let help = "give spec.endpoints or spec.workloadSelector";
            findings.warn("spec.endpoints", "missing for resolution STATIC: nobody answers", help);
        }
        Resolution::Dns | Resolution::DnsRoundRobin => {
            if given == 0
                && spec.workload_selector.is_none()
                && spec.hosts.iter().any(|host| host.starts_with('*'))
            {
                let help = "name the host, or give spec.endpoints";
                findings.error("spec.hosts", "a wildcard cannot be looked up in DNS", help);
            }
            if spec.resolution == Resolution::DnsRoundRobin && given > 1 {
                findings.error("spec.endpoints", "DNS_ROUND_ROBIN takes one endpoint", "use resolution: DNS");
            }
        }
        _ => {}
    }
}

/// An endpoint's address and ports.
pub(super) fn entry(findings: &mut Findings, path: &str, entry: &WorkloadEntry) {
    let at = format!("{path}.address");
    if entry.address.is_empty() {
        // It is known by its network's gateway alone.
        if entry.network.is_empty() {
            let help = "give the workload's IP address, or the network by whose gateway it is reached";
            findings.error(&at, "missing", help);
        }
    } else if let Some(socket) = entry.address.strip_prefix("unix://") {
        if !socket.starts_with('/') {
            findings.error(&at, "the path of a UNIX socket is absolute", "write unix:///path/to/socket");
        }
        if !entry.ports.is_empty() {
            findings.error(format!("{path}.ports"), "a UNIX socket has no ports", "take them out");
        }
    } else if entry.address.parse::<IpAddr>().is_err() {
        if host_form(&entry.address, false).is_err() || entry.address.starts_with('*') {
            findings.error(
                &at,
                format!("{:?} is no address", entry.address),
                "give an IP address or a host name",
            );
        }
    } else if entry.address.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified()) {
        findings.error(&at, "no workload can be reached at this address", "give the workload's own address");
    }
    for (name, number) in &entry.ports {
        port(findings, &format!("{path}.ports.{name}"), *number);
    }
    labels(findings, &format!("{path}.labels"), &entry.labels);
}

pub(in super::super) fn workload_entry(spec: &WorkloadEntry, meta: &Meta, findings: &mut Findings) {
    entry(findings, "spec", spec);
    if spec.address.starts_with("unix://") {
        findings.error(
            "spec.address",
            "a workload has an IP address",
            "UNIX sockets belong into a ServiceEntry",
        );
    }
    let annotation = |name: &str| meta.annotations.get(name).map(|value| value.trim());
    if annotation(COMMAND_ANNOTATION) == Some("") {
        let path = format!("metadata.annotations.{COMMAND_ANNOTATION}");
        findings.error(path, "an empty command", "give the command line, or take it out");
    }
    if let Some(role) = annotation(ROLE_ANNOTATION)
        && !matches!(role, "sidecar" | "gateway")
    {
        let path = format!("metadata.annotations.{ROLE_ANNOTATION}");
        findings.error(path, format!("unknown role {role:?}"), "it is sidecar or gateway");
    }
    for called in annotation(CALLS_ANNOTATION).iter().flat_map(|calls| calls.split(',')).map(str::trim) {
        let (host, port) = called.rsplit_once(':').unwrap_or((called, "1"));
        if host.is_empty() || port.parse::<u16>().is_err() {
            let path = format!("metadata.annotations.{CALLS_ANNOTATION}");
            let help = "write hosts with commas between, each with :PORT if need be";
            findings.error(path, format!("{called:?} names no service"), help);
        }
    }
    let known = [COMMAND_ANNOTATION, ROLE_ANNOTATION, CALLS_ANNOTATION, PROXY_ANNOTATION];
    super::annotations(findings, meta, &known);
}
