//! Credentials as secrets: of a gateway's servers, and of DestinationRules for what a gateway, or a workload that the rule
//! selects, calls. A proxy gets those of its own namespace, and only those that it uses.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::memo::Output;
use super::{ProxyKind, ProxyNode, tls};
use crate::model::World;

pub(super) fn render(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    let mut used: BTreeSet<String> = super::cluster::credentials(world, node).into_iter().collect();
    let mut of_namespaces: BTreeSet<&(String, String)> = BTreeSet::new();
    if node.kind == ProxyKind::Router {
        for gateway in world.gateways_for(&node.namespace, node.selected_by(world)) {
            for tls in gateway.spec.servers.iter().filter_map(|s| s.tls.as_ref()) {
                used.extend(tls.credentials().map(str::to_owned));
                used.insert(tls.ca_cert_credential_name.clone());
                of_namespaces.extend(&tls.certificates);
            }
        }
    }
    super::external_credential::secrets(world, node, out);
    let own = used.iter().map(|name| (&node.namespace, name, format!("kubernetes://{name}")));
    let others = of_namespaces.into_iter().map(|(place, name)| (place, name, tls::in_namespace(place, name)));
    for (namespace, credential, name) in own.chain(others) {
        let Some((version, secret)) = world.credential(namespace, credential) else { continue };
        let inline = |bytes: &[u8]| json!({"inline_bytes": STANDARD.encode(bytes)});
        let inputs = (namespace, version);
        if !secret.certificate_chain.is_empty() {
            out.put(&name, inputs, || {
                let pair = json!({
                    "certificate_chain": inline(&secret.certificate_chain),
                    "private_key": inline(&secret.private_key),
                });
                json!({"name": name, "tls_certificate": pair})
            });
        }
        let roots = &secret.ca_certificates;
        if !roots.is_empty() {
            let name = format!("{name}-cacert");
            out.put(
                &name,
                inputs,
                || json!({"name": name, "validation_context": {"trusted_ca": inline(roots)}}),
            );
        }
    }
}
