//! Gateway credentials as secrets. A gateway gets those of its own namespace, and only those that it uses.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::memo::Output;
use super::{ProxyKind, ProxyNode};
use crate::model::World;

pub(super) fn render(world: &World, node: &ProxyNode, out: &mut Output<'_>) {
    if node.kind != ProxyKind::Router {
        return;
    }
    for gateway in world.gateways_for(node.selected_by(world)) {
        for credential in
            gateway.spec.servers.iter().filter_map(|s| s.tls.as_ref()).map(|t| &t.credential_name)
        {
            let Some(secret) = world.secret(&node.namespace, credential) else { continue };
            let inline = |bytes: &[u8]| json!({"inline_bytes": STANDARD.encode(bytes)});
            let name = format!("kubernetes://{credential}");
            let inputs = (&node.namespace, secret.meta.version);
            out.put(&name, inputs, || {
                let pair = json!({
                    "certificate_chain": inline(&secret.spec.certificate_chain),
                    "private_key": inline(&secret.spec.private_key),
                });
                json!({"name": name, "tls_certificate": pair})
            });
            let roots = &secret.spec.ca_certificates;
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
}
