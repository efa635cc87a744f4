//! The mesh of the scale benchmark, as Kubernetes has it.

use serde_json::{Value, json};

use super::api::Api;

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Services.
    pub services: usize,
    /// Endpoints of each.
    pub endpoints: usize,
    /// Namespaces that the services are spread over.
    pub namespaces: usize,
    /// Each namespace's proxies see its own services and those of the first namespace alone (Sidecar).
    pub scoped: bool,
}

/// The port of every service.
pub const PORT: u16 = 8080;
const SERVICES: &str = "/api/v1/services";
const PODS: &str = "/api/v1/pods";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const SIDECARS: &str = "/apis/networking.istio.io/v1/sidecars";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

impl Size {
    /// The namespace of a service.
    pub fn namespace(&self, service: usize) -> String {
        format!("ns{}", service % self.namespaces)
    }

    /// The address of a pod.
    pub fn address(&self, service: usize, pod: usize) -> String {
        let n = service * self.endpoints + pod;
        format!("10.{}.{}.{}", n / 62_500, n / 250 % 250, n % 250 + 1)
    }

    /// The cluster that a service is to its clients.
    pub fn cluster(&self, service: usize) -> String {
        format!("outbound|{PORT}||s{service}.{}.svc.cluster.local", self.namespace(service))
    }

    /// Puts all objects.
    pub fn fill(&self, api: &Api) {
        for service in 0..self.services {
            let (name, namespace) = (format!("s{service}"), self.namespace(service));
            let ip = format!("10.{}.{}.{}", 96 + service / 62_500, service / 250 % 250, service % 250 + 1);
            api.put(
                SERVICES,
                json!({
                    "metadata": {"name": name, "namespace": namespace, "creationTimestamp": "2026-01-01T00:00:00Z"},
                    "spec": {"clusterIP": ip, "selector": {"app": name},
                             "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}]},
                }),
            );
            for pod in 0..self.endpoints {
                api.put(PODS, self.pod(service, pod));
            }
            self.slice(api, service, None);
        }
        let definition = json!({"metadata": {"name": "sidecars.networking.istio.io"}});
        api.put(DEFINITIONS, definition);
        api.define(SIDECARS);
        for n in (0..self.namespaces).filter(|_| self.scoped) {
            api.put(
                SIDECARS,
                json!({
                    "metadata": {"name": "default", "namespace": format!("ns{n}")},
                    "spec": {"egress": [{"hosts": ["./*", "ns0/*"]}]},
                }),
            );
        }
    }

    fn pod(&self, service: usize, pod: usize) -> Value {
        json!({
            "metadata": {"name": format!("s{service}-{pod}"), "namespace": self.namespace(service), "labels": {
                "app": format!("s{service}"), "version": "v1", "security.istio.io/tlsMode": "istio"}},
            "spec": {"serviceAccountName": format!("s{service}"), "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "podIP": self.address(service, pod),
                       "conditions": [{"type": "Ready", "status": "True"}]},
        })
    }

    /// Puts what stands behind a service. `mark` gives its last endpoint an address that says which change this is.
    pub fn slice(&self, api: &Api, service: usize, mark: Option<u16>) {
        let endpoints: Vec<_> = (0..self.endpoints)
            .map(|pod| {
                let address = match mark.filter(|_| pod + 1 == self.endpoints) {
                    Some(mark) => marked(mark),
                    None => self.address(service, pod),
                };
                json!({"addresses": [address], "conditions": {"ready": true},
                       "targetRef": {"kind": "Pod", "name": format!("s{service}-{pod}"), "namespace": self.namespace(service)}})
            })
            .collect();
        let name = format!("s{service}");
        api.put(
            SLICES,
            json!({
                "addressType": "IPv4",
                "metadata": {"name": format!("{name}-x"), "namespace": self.namespace(service),
                             "labels": {"kubernetes.io/service-name": name}},
                "endpoints": endpoints, "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}],
            }),
        );
    }
}

const MARK: &str = "10.200.";

/// The address that says which change an assignment has.
fn marked(mark: u16) -> String {
    format!("{MARK}{}.{}", mark / 250, mark % 250 + 1)
}

/// Which change an encoded assignment has.
pub fn mark_of(assignment: &[u8]) -> Option<u16> {
    let at = assignment.windows(MARK.len()).position(|w| w == MARK.as_bytes())?;
    let rest = &assignment[at + MARK.len()..];
    let end = rest.iter().position(|b| !b.is_ascii_digit() && *b != b'.').unwrap_or(rest.len());
    let (high, low) = std::str::from_utf8(&rest[..end]).ok()?.split_once('.')?;
    Some(high.parse::<u16>().ok()? * 250 + low.parse::<u16>().ok()? - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        for mark in [0, 249, 250, 12_345] {
            assert_eq!(mark_of(format!("\x12\x0b{}\x18\x01", marked(mark)).as_bytes()), Some(mark));
        }
        assert_eq!(mark_of(b"10.20.0.1"), None);
    }
}
