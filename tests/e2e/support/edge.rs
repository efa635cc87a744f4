//! A Gateway and what stands behind it, as several tests write them.

/// A Gateway `edge` of a namespace, for workloads of this label, and a VirtualService at it for these hosts.
pub fn edge(namespace: &str, label: &str, servers: &str, hosts: &str, rules: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge, namespace: {namespace}}}
spec:
  selector: {{istio: {label}}}
  servers: [{servers}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: edge, namespace: {namespace}}}
spec:
  hosts: [{hosts}]
  gateways: [edge]
  {rules}
---
"
    )
}
