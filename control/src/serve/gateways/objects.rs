//! What is made for a Gateway, as the Gateway API would have it (its "Gateway infrastructure" labels and names).

use kube::api::GroupVersionKind;
use serde_json::{Value, json};
use weft_certs::digest::sha256_hex;

use crate::ingest::gateway_api::{INJECT, STATUS_PORT, Wanted};
use crate::model::gateway_api::{GATEWAY_NAME, GROUP};
use crate::model::values::Labels;

/// The label of the class.
const CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
/// The label of a control plane's revision.
const REVISION: &str = "istio.io/rev";
/// The longest name of a Service.
const LONGEST: usize = 63;

/// A kind of object.
pub(super) struct Of {
    pub(super) kind: GroupVersionKind,
    pub(super) plural: &'static str,
}

/// The name of all that is made for it.
pub(super) fn name(wanted: &Wanted) -> String {
    let name = format!("{}-{}", wanted.gateway, wanted.class);
    if name.len() <= LONGEST && !name.contains('.') {
        return name;
    }
    // Names of Services have no dots, and an end: what is cut off is told apart by a few letters.
    let end = format!("-{}", &sha256_hex(name.as_bytes())[..8]);
    let mut short: String = name.replace('.', "-");
    short.truncate(LONGEST - end.len());
    short + &end
}

/// The kinds of what is made, in the order in which it is needed.
pub(super) fn kinds() -> [Of; 3] {
    let of = |group: &str, version: &str, kind: &str, plural| Of {
        kind: GroupVersionKind::gvk(group, version, kind),
        plural,
    };
    [
        of("", "v1", "ServiceAccount", "serviceaccounts"),
        of("apps", "v1", "Deployment", "deployments"),
        of("", "v1", "Service", "services"),
    ]
}

/// The objects, in that order.
pub(super) fn of(wanted: &Wanted) -> Vec<(Of, Value)> {
    kinds().into_iter().zip([account(wanted), deployment(wanted), service(wanted)]).collect()
}

/// By which its workloads are known.
fn selector(wanted: &Wanted) -> Labels {
    Labels::from([(GATEWAY_NAME.to_owned(), wanted.gateway.clone())])
}

fn labels(wanted: &Wanted) -> Labels {
    let mut labels = wanted.infrastructure.labels.clone();
    labels.insert(CLASS_NAME.to_owned(), wanted.class.clone());
    labels.extend(selector(wanted));
    labels
}

fn metadata(wanted: &Wanted) -> Value {
    json!({
        "name": name(wanted),
        "namespace": wanted.namespace,
        "labels": labels(wanted),
        "annotations": wanted.infrastructure.annotations,
        "ownerReferences": [{
            "apiVersion": format!("{GROUP}/v1"), "kind": "Gateway", "name": wanted.gateway, "uid": wanted.owner,
        }],
    })
}

fn account(wanted: &Wanted) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(wanted)})
}

/// The injector makes a gateway of it: image, arguments, volumes and probes are its to write.
fn deployment(wanted: &Wanted) -> Value {
    let mut pods = labels(wanted);
    // Whether the injector comes is not for the Gateway to say: without it the pods are nothing.
    pods.remove(INJECT);
    if !pods.contains_key(REVISION) {
        pods.insert(INJECT.to_owned(), "true".to_owned());
    }
    let annotations = wanted.pod_annotations();
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(wanted),
        // How many there are is left to whoever scales.
        "spec": {
            "selector": {"matchLabels": selector(wanted)},
            "strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "25%"}},
            "template": {
                "metadata": {"labels": pods, "annotations": annotations},
                "spec": {
                    "serviceAccountName": name(wanted),
                    "terminationGracePeriodSeconds": 30,
                    "securityContext": {
                        // Ports below 1024 are for the asking.
                        "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [{
                        "name": "istio-proxy",
                        "image": "auto",
                        "ports": [{"containerPort": 15090, "protocol": "TCP", "name": "http-envoy-prom"}],
                        "resources": {
                            "requests": {"cpu": "100m", "memory": "128Mi"},
                            "limits": {"cpu": "2000m", "memory": "1024Mi"},
                        },
                    }],
                },
            },
        },
    })
}

fn service(wanted: &Wanted) -> Value {
    let status = json!({
        "name": "status-port", "port": STATUS_PORT, "targetPort": STATUS_PORT, "protocol": "TCP", "appProtocol": "tcp",
    });
    let listeners = wanted.ports.iter().map(|(port, name, protocol)| {
        json!({
            "name": port_name(name, *port), "port": port, "targetPort": port, "protocol": "TCP",
            "appProtocol": protocol.to_lowercase(),
        })
    });
    let ports: Vec<_> = std::iter::once(status).chain(listeners).collect();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(wanted),
        "spec": {"type": wanted.service_type, "selector": selector(wanted), "ports": ports},
    })
}

/// Names of listeners may be longer than those of ports, and have dots.
fn port_name(listener: &str, port: u16) -> String {
    let is_anothers = || listener.strip_prefix("port-").is_some_and(|rest| rest.parse::<u16>().is_ok());
    let fits =
        listener.len() <= LONGEST && !listener.contains('.') && listener != "status-port" && !is_anothers();
    if fits { listener.to_owned() } else { format!("port-{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gateway_api::Infrastructure;

    fn wanted() -> Wanted {
        let one = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
        Wanted {
            namespace: "shop".to_owned(),
            gateway: "edge".to_owned(),
            class: "weft".to_owned(),
            owner: "17".to_owned(),
            ports: vec![
                (80, "http".to_owned(), "HTTP".to_owned()),
                (443, "https.example".to_owned(), "HTTPS".to_owned()),
            ],
            service_type: "LoadBalancer".to_owned(),
            infrastructure: Infrastructure { labels: one("team", "a"), annotations: one("cost", "low") },
        }
    }

    #[test]
    fn all_that_is_made_belongs_to_the_gateway_and_carries_what_it_says() {
        let all = of(&wanted());
        for (_, object) in &all {
            let metadata = &object["metadata"];
            assert_eq!(metadata["name"], "edge-weft", "{object}");
            assert_eq!(metadata["ownerReferences"][0]["uid"], "17", "{object}");
            assert_eq!(
                (&metadata["labels"]["team"], &metadata["annotations"]["cost"]),
                (&json!("a"), &json!("low"))
            );
            assert_eq!(metadata["labels"][CLASS_NAME], "weft", "{object}");
        }
        let template = &all[1].1["spec"]["template"];
        let labels = &template["metadata"]["labels"];
        assert_eq!((&labels["team"], &labels[GATEWAY_NAME]), (&json!("a"), &json!("edge")), "{template}");
        assert_eq!(labels["sidecar.istio.io/inject"], "true", "{template}");
        assert_eq!(template["metadata"]["annotations"]["inject.istio.io/templates"], "gateway", "{template}");
        let ports = all[2].1["spec"]["ports"].as_array().unwrap();
        let names: Vec<_> = ports.iter().map(|port| (port["port"].clone(), port["name"].clone())).collect();
        assert_eq!(
            names,
            [
                (json!(15021), json!("status-port")),
                (json!(80), json!("http")),
                (json!(443), json!("port-443"))
            ]
        );
    }

    #[test]
    fn a_revision_injects_by_its_own_label() {
        let mut wanted = wanted();
        wanted.infrastructure.labels.insert(REVISION.to_owned(), "canary".to_owned());
        let labels = &of(&wanted)[1].1["spec"]["template"]["metadata"]["labels"];
        assert_eq!((&labels[REVISION], &labels["sidecar.istio.io/inject"]), (&json!("canary"), &Value::Null));
    }

    #[test]
    fn long_names_are_cut_and_told_apart() {
        // The longest names that Gateways can have.
        let long = |end: &str| Wanted { gateway: "g".repeat(62) + end, ..wanted() };
        let (one, other) = (long("a"), long("b"));
        assert_eq!((name(&one).len(), name(&other).len()), (LONGEST, LONGEST));
        assert_ne!(name(&one), name(&other));
        let dotted = Wanted { gateway: "a.b".to_owned(), ..wanted() };
        assert!(!name(&dotted).contains('.'));
    }

    #[test]
    fn ports_have_names_of_their_own_whatever_listeners_are_called() {
        let port = |port: u16, name: &str| (port, name.to_owned(), "HTTP".to_owned());
        let ports = vec![port(443, "port-80"), port(80, "a.b"), port(81, "status-port"), port(82, "port-a")];
        let service = service(&Wanted { ports, ..wanted() });
        let names: Vec<_> =
            service["spec"]["ports"].as_array().unwrap().iter().map(|port| port["name"].clone()).collect();
        assert_eq!(names, ["status-port", "port-443", "port-80", "port-81", "port-a"]);
    }

    #[test]
    fn pods_are_injected_whatever_the_gateway_says() {
        let mut wanted = wanted();
        wanted.infrastructure.labels.insert(INJECT.to_owned(), "false".to_owned());
        let label =
            |wanted: &Wanted| of(wanted)[1].1["spec"]["template"]["metadata"]["labels"][INJECT].clone();
        assert_eq!(label(&wanted), "true");
        wanted.infrastructure.labels.insert(REVISION.to_owned(), "canary".to_owned());
        assert_eq!(label(&wanted), Value::Null);
        wanted.infrastructure.annotations.insert("sidecar.istio.io/proxyImage".to_owned(), "any".to_owned());
        let pods = &of(&wanted)[1].1["spec"]["template"]["metadata"]["annotations"];
        assert_eq!(pods["sidecar.istio.io/proxyImage"], Value::Null, "{pods}");
    }
}
