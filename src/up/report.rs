//! What is said to somebody who has just started a mesh: who is where, and what to try by hand.

use std::fmt::Write as _;

use super::mesh::Mesh;

/// Every workload with its addresses.
pub fn addresses(mesh: &Mesh) -> String {
    let mut out = String::new();
    let control = mesh.control();
    let _ = writeln!(
        out,
        "control plane   xDS {} (TLS), {} (plain); metrics http://{}/metrics; debug http://{}/",
        control.secure, control.plain, control.metrics, control.debug
    );
    let width = mesh.workloads().iter().map(|w| w.id.len()).max().unwrap_or(0);
    for w in mesh.workloads() {
        let inbound: Vec<_> = w.inbound.iter().map(|a| a.port().to_string()).collect();
        let what = if w.gateway { "gateway" } else { "sidecar" };
        let _ =
            write!(out, "{:width$}  {:<12} {what}, port {}", w.id, w.address.to_string(), inbound.join(", "));
        if let Some(proxy) = w.http_proxy {
            let _ = write!(out, ", HTTP proxy {}", proxy.port());
        }
        if let Some(app) = w.application.filter(|_| !w.command.is_empty()) {
            let _ = write!(out, ", application {}", app.port());
        }
        out.push('\n');
    }
    for w in mesh.elsewhere() {
        let _ = writeln!(
            out,
            "{:width$}  {:<12} not of this machine: run `weft proxy` there, with a token of `weft token create --state-dir {} \
             --namespace {} --service-account {}`",
            w.id,
            w.address.to_string(),
            mesh.state_dir().display(),
            w.namespace,
            w.service_account
        );
    }
    out
}

/// `curl` lines that work: through each gateway's routes, through a sidecar's proxy port, and at an admin interface.
pub fn curl_lines(mesh: &Mesh) -> Vec<String> {
    let mut lines = Vec::new();
    for gateway in mesh.workloads().iter().filter(|w| w.gateway) {
        let Some(address) = gateway.inbound.first() else { continue };
        for (host, path) in &gateway.routes {
            lines.push(format!("curl -H 'Host: {host}' http://{address}{path}"));
        }
    }
    let called =
        mesh.workloads().iter().find_map(|w| Some((w.service(), w.inbound.first().filter(|_| !w.gateway)?)));
    let caller = mesh.workloads().iter().rev().find_map(|w| w.http_proxy);
    if let (Some((service, inbound)), Some(proxy)) = (called, caller) {
        lines.push(format!("curl -x http://{proxy} http://{service}:{}/", inbound.port()));
    }
    if let Some(workload) = mesh.workloads().iter().find(|w| !w.gateway).or(mesh.workloads().first()) {
        lines.push(format!("curl http://{}/certs", workload.admin()));
        lines.push(format!("curl http://{}/clusters", workload.admin()));
    }
    lines
}
