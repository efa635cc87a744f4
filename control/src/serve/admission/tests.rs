//! Questions of an API server, and what it is told.

use base64::Engine;
use serde_json::{Value, json};

use super::review::{Answer, Question};
use super::{objects, pods};
use crate::inject::Settings;

fn question(group: &str, version: &str, kind: &str, object: &Value) -> Question {
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u-1", "operation": "CREATE", "namespace": "shop",
        "kind": {"group": group, "version": version, "kind": kind}, "object": object}});
    Question::read(review.to_string().as_bytes()).unwrap()
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "w", "livenessProbe": {"httpGet": {"port": 8080}}}],
            "volumes": [{"name": "v", "emptyDir": {}}]}})
}

#[test]
fn the_patch_makes_the_injected_pod_of_the_pod() {
    let (mut pod, settings) = (pod(), Settings::default());
    let question = question("", "v1", "Pod", &pod);
    let review = pods::inject(&question, &settings).review(&question);
    let response = &review["response"];
    assert_eq!((&response["uid"], &response["allowed"]), (&json!("u-1"), &json!(true)));
    assert_eq!(response["patchType"], "JSONPatch");
    let patch =
        base64::engine::general_purpose::STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    json_patch::patch(&mut pod, &patch).unwrap();
    let names: Vec<_> =
        pod["spec"]["initContainers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["istio-init", "istio-proxy"]);
    assert_eq!(pod["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"], 15020);
    // The namespace that the pod does not say is the question's.
    assert!(pod.to_string().contains("namespaces/shop/pods/web"), "{pod}");
}

#[test]
fn pods_that_are_left_alone_pass_as_they_are() {
    let settings = Settings::default();
    let with = |change: fn(&mut Value)| {
        let mut pod = pod();
        change(&mut pod);
        let question = question("", "v1", "Pod", &pod);
        pods::inject(&question, &settings).review(&question)["response"].clone()
    };
    let left = with(|pod| pod["metadata"]["labels"]["sidecar.istio.io/inject"] = "false".into());
    assert_eq!(left, json!({"uid": "u-1", "allowed": true}));
    let host = with(|pod| pod["spec"]["hostNetwork"] = true.into());
    assert_eq!(host["allowed"], true);
    assert!(
        host["warnings"][0].as_str().unwrap().contains("hostNetwork") && host["patch"].is_null(),
        "{host}"
    );
    let refused = with(|pod| pod["metadata"]["annotations"] = json!({"sidecar.istio.io/proxyCPU": "lots"}));
    assert_eq!(refused["allowed"], false);
    let message = refused["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("metadata.annotations[sidecar.istio.io/proxyCPU]: "), "{message}");
}

fn asked(api_version: &str, kind: &str, spec: Value) -> Answer {
    let object = json!({"apiVersion": api_version, "kind": kind, "spec": spec, "status": {"x": 1}, "metadata": {
        "name": "n", "namespace": "shop", "uid": "1", "resourceVersion": "7", "generation": 2, "managedFields": [{"manager": "kubectl"}]}});
    let (group, version) = api_version.split_once('/').unwrap();
    objects::validate(&question(group, version, kind, &object))
}

#[test]
fn configuration_is_refused_by_path_reason_and_fix() {
    let route = |weight: i64| json!({"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}, "weight": weight}]}]});
    assert!(asked("networking.istio.io/v1", "VirtualService", route(100)).refused.is_none());
    let wrong = asked("networking.istio.io/v1", "VirtualService", route(-1)).refused.unwrap();
    assert!(wrong.contains("spec.http[0].route[0].weight: "), "{wrong}");
    let typo =
        asked("networking.istio.io/v1beta1", "VirtualService", json!({"hots": ["a"]})).refused.unwrap();
    assert!(typo.contains("spec.hots: ") && typo.contains("did you mean \"hosts\"?"), "{typo}");
    let envoy = asked("networking.istio.io/v1alpha3", "EnvoyFilter", json!({})).refused.unwrap();
    assert!(!envoy.is_empty());
    // What is none of the mesh's, and what goes, passes.
    assert!(asked("example.org/v1", "Thing", json!({"x": 1})).refused.is_none());
}

#[test]
fn what_is_accepted_with_doubts_comes_with_a_warning() {
    let subset =
        json!({"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a", "subset": "v9"}}]}]});
    let answer = asked("networking.istio.io/v1", "VirtualService", subset);
    assert!(answer.refused.is_none());
    // Whether a rule defines the subset is known by the mesh's state, not by the object.
    assert!(answer.warnings.is_empty(), "{answer:?}");
    let deprecated = json!({"host": "a", "trafficPolicy": {"outlierDetection": {"consecutiveErrors": 5}}});
    let answer = asked("networking.istio.io/v1", "DestinationRule", deprecated);
    assert!(answer.refused.is_none() && !answer.warnings.is_empty(), "{answer:?}");
}

#[test]
fn of_the_gateway_api_nothing_is_refused_since_it_may_be_anothers() {
    let rule = json!({"filters": [{"type": "ExtensionRef", "extensionRef": {"name": "a"}}]});
    let spec = json!({"parentRefs": [{"name": "edge"}], "rules": [rule]});
    let answer = asked("gateway.networking.k8s.io/v1", "HTTPRoute", spec);
    assert!(answer.refused.is_none());
    let told = answer.warnings.iter().any(|text| {
        text.starts_with("where Weft serves it: spec.rules[0].filters[0].extensionRef: not supported")
    });
    assert!(told, "{answer:?}");
    let right = json!({"parentRefs": [{"name": "edge"}]});
    assert!(asked("gateway.networking.k8s.io/v1", "HTTPRoute", right).warnings.is_empty());
}

#[test]
fn a_question_that_is_none_is_told_what_is_wrong() {
    for (body, words) in [
        ("{", "not JSON"),
        (
            r#"{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"}"#,
            "admissionReviewVersions",
        ),
        (r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {}}"#, "uid"),
    ] {
        let wrong = Question::read(body.as_bytes()).unwrap_err();
        assert!(wrong.contains(words), "{wrong}");
    }
}

#[test]
fn what_goes_or_stays_as_it_was_is_no_business_of_the_check() {
    let filter = |metadata: Value, spec: Value| json!({"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter", "metadata": metadata, "spec": spec});
    let update = |object: Value, old: Value| {
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u-1", "operation": "UPDATE", "namespace": "shop", "object": object, "oldObject": old,
            "kind": {"group": "networking.istio.io", "version": "v1alpha3", "kind": "EnvoyFilter"}}});
        objects::validate(&Question::read(review.to_string().as_bytes()).unwrap()).refused
    };
    let (plain, spec) = (json!({"name": "n", "namespace": "shop"}), json!({"priority": 1}));
    let old = filter(plain.clone(), spec.clone());
    assert!(update(filter(plain.clone(), json!({"priority": 2})), old.clone()).is_some());
    let labelled = json!({"name": "n", "namespace": "shop", "labels": {"a": "b"}});
    assert_eq!(update(filter(labelled, spec), old.clone()), None);
    let going = json!({"name": "n", "namespace": "shop", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": []});
    assert_eq!(update(filter(going, json!({"priority": 2})), old), None);
}

#[test]
fn a_pod_whose_metadata_is_no_object_is_refused() {
    let question = question("", "v1", "Pod", &json!({"metadata": "x", "spec": {"containers": []}}));
    let review = pods::inject(&question, &Settings::default()).review(&question);
    assert_eq!(review["response"]["allowed"], false, "{review}");
}
