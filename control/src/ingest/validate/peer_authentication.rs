//! PeerAuthentication.

use super::super::diagnostic::Findings;
use super::labels::selected;
use crate::model::peer_authentication::PeerAuthentication;

pub(in super::super) fn peer_authentication(spec: &PeerAuthentication, findings: &mut Findings) {
    let selects = spec.selector.as_ref().is_some_and(|selector| !selector.labels.is_empty());
    if spec.selector.is_some() && !selects {
        findings.warn(
            "spec.selector",
            "without labels it holds for the whole namespace",
            "give labels, or take it out",
        );
    }
    if let Some(selector) = &spec.selector {
        selected(findings, "spec.selector.matchLabels", selector);
    }
    if !spec.port_level_mtls.is_empty() && !selects {
        let help =
            "ports belong to workloads: select those whose ports these are (spec.selector.matchLabels)";
        findings.error("spec.portLevelMtls", "mesh and namespace policies cannot have port-level mTLS", help);
    }
    if spec.port_level_mtls.contains_key(&0) {
        findings.error("spec.portLevelMtls.0", "0 is no port", "give a port from 1 to 65535");
    }
}
