//! What is made for Gateways: what stands in its way is said in their status, and what is needed no more is taken away.

use super::Server;
use super::gateway_api::{GATEWAYS, condition};
use crate::programs::{Process, until};

const KINDS: [&str; 3] = ["service", "deployment", "serviceaccount"];

/// Of a control plane that serves the class `weft`, and the Gateway `edge` in the namespace `shop`, for which all is made.
pub(super) fn what_stands_in_the_way_is_told_and_what_is_not_needed_goes(
    server: &Server,
    control: &mut Process,
) {
    let there = |kind: &str, name: &str| server.try_kubectl(&["-n", "shop", "get", kind, name], "").is_ok();
    let gateway = |class: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: door, namespace: shop}}
spec: {{gatewayClassName: {class}, listeners: [{{name: http, port: 8080, protocol: HTTP}}]}}
"
        )
    };
    let annotate = |name: &str, annotation: &str| {
        server.kubectl(&["-n", "shop", "annotate", "--overwrite", GATEWAYS, name, annotation]);
    };
    let conditions = || server.get(GATEWAYS, "shop", "door")["status"]["conditions"].clone();
    let programmed = || condition(&conditions(), "Programmed");
    let message = || {
        let all = conditions();
        let of = all.as_array().into_iter().flatten().find(|one| one["type"] == "Programmed");
        of.map(|one| one["message"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
    };

    // Somebody else's Service has the name.
    server.kubectl(&["-n", "shop", "create", "service", "clusterip", "door-weft", "--tcp=1"]);
    server.apply(&gateway("weft"));
    control.wait("telling of the Service", || programmed() == "False Invalid");
    assert!(message().contains("there is a Service door-weft that does not belong to it"), "{}", message());
    assert!(!there("deployment", "door-weft"));
    server.kubectl(&["-n", "shop", "delete", "service", "door-weft"]);
    control.wait("taking it back", || programmed() == "False NoResources");
    control.wait("making it all", || KINDS.iter().all(|kind| there(kind, "door-weft")));
    // It asks for what nobody knows: what is there stays.
    let uid = || server.get("service", "shop", "door-weft")["metadata"]["uid"].clone();
    let before = uid();
    annotate("door", "networking.istio.io/service-type=Internal");
    control.wait("telling of the annotation", || programmed() == "False Invalid");
    assert!(message().contains("metadata.annotations[networking.istio.io/service-type]"), "{}", message());
    annotate("door", "networking.istio.io/service-type=ClusterIP");
    control.wait("taking that back", || programmed() == "False NoResources");
    assert_eq!(uid(), before);

    // It is another controller's from now on. What its owner made beside stays.
    let owner = server.get(GATEWAYS, "shop", "door")["metadata"]["uid"].as_str().unwrap().to_owned();
    server.apply(&format!(
        "apiVersion: v1
kind: Service
metadata:
  name: door-own
  namespace: shop
  labels: {{gateway.networking.k8s.io/gateway-name: door}}
  ownerReferences: [{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, name: door, uid: {owner}}}]
spec: {{ports: [{{port: 80}}]}}
"
    ));
    server.apply(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: theirs}, spec: {controllerName: \
         theirs.example/c, parametersRef: {name: x}}}",
    );
    server.apply(&gateway("theirs"));
    // Its controller serves it as it is now, after a while.
    until("it is told what it waits for", || {
        control.log().contains("stays until the controller of the class theirs")
    });
    assert!(KINDS.iter().all(|kind| there(kind, "door-weft")));
    let generation = server.get(GATEWAYS, "shop", "door")["metadata"]["generation"].clone();
    let programmed = format!(
        r#"{{"status":{{"conditions":[{{"type":"Programmed","status":"True","reason":"Programmed","message":"theirs","observedGeneration":{generation},"lastTransitionTime":"2026-01-01T00:00:00Z"}}]}}}}"#
    );
    let patch = ["patch", GATEWAYS, "door", "--subresource=status", "--type=merge", "-p", &programmed];
    server.kubectl(&[&["-n", "shop"][..], &patch].concat());
    control.wait("taking away what it made", || KINDS.iter().all(|kind| !there(kind, "door-weft")));
    assert!(there("service", "door-own"));
    assert!(KINDS.iter().all(|kind| there(kind, "edge-weft")), "another Gateway's");
}
