//! Questions of an API server, and what it is told.

use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};

use super::review::{Answer, Question};
use super::{objects, pods};
use crate::ingest::cluster::testing::Cluster;
use crate::inject::Settings;

pub(super) fn question(group: &str, version: &str, kind: &str, object: &Value) -> Question {
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
    objects::validate(&question(group, version, kind, &object), None)
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
        objects::validate(&Question::read(review.to_string().as_bytes()).unwrap(), None).refused
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

/// What is stored, and something that is about to be.
struct Stored(objects::Surroundings);

impl Stored {
    fn of(objects: impl IntoIterator<Item = Value>) -> Self {
        let mut cluster = Cluster::default();
        objects.into_iter().for_each(|object| cluster.put(object));
        Self(objects::Surroundings::new(cluster.beside()))
    }

    fn asked(&self, object: &Value) -> Answer {
        self.asked_until(object, Instant::now() + Duration::from_secs(600))
    }

    fn asked_until(&self, object: &Value, end: Instant) -> Answer {
        let text = |key: &str| object[key].as_str().unwrap();
        let (group, version) = text("apiVersion").split_once('/').unwrap();
        objects::validate(&question(group, version, text("kind"), object), Some((&self.0, end)))
    }
}

fn made(api_version: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

fn service(name: &str) -> Value {
    let spec = json!({"clusterIP": "10.96.0.1", "selector": {"app": name},
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
    made("v1", "Service", name, spec)
}

fn pod_of(app: &str, name: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": app, "version": "v1"}},
        "spec": {"serviceAccountName": app, "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn slice_of(app: &str, addresses: &[String]) -> Value {
    let of = |(n, address): (usize, &String)| {
        json!({"addresses": [address], "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "name": format!("{app}-{n}"), "namespace": "shop"}})
    };
    let endpoints: Vec<_> = addresses.iter().enumerate().map(of).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{app}-x"), "namespace": "shop", "labels": {"kubernetes.io/service-name": app}},
        "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

fn route(name: &str, to: Value) -> Value {
    made(
        "networking.istio.io/v1",
        "VirtualService",
        name,
        json!({"hosts": ["cart"], "http": [{"route": [{"destination": to}]}]}),
    )
}

fn rule(subsets: Value) -> Value {
    made("networking.istio.io/v1", "DestinationRule", "cart", json!({"host": "cart", "subsets": subsets}))
}

fn entry(host: &str) -> Value {
    let port = json!({"number": 443, "name": "https", "protocol": "HTTPS"});
    let spec = json!({"hosts": [host], "location": "MESH_EXTERNAL", "resolution": "DNS", "ports": [port]});
    made("networking.istio.io/v1", "ServiceEntry", &host.replace('.', "-"), spec)
}

fn credential(hosts: Value) -> Value {
    let spec = json!({"hosts": hosts, "credentialName": "paypal", "key": "token"});
    made("weft.dev/v1alpha1", "ExternalCredential", "paypal", spec)
}

fn mirrored(copy: &str) -> Value {
    let http = json!({"route": [{"destination": {"host": "api.paypal.com"}}], "mirror": {"host": copy}});
    let spec = json!({"hosts": ["api.paypal.com"], "http": [http]});
    made("networking.istio.io/v1", "VirtualService", "paypal", spec)
}

#[test]
fn what_contradicts_another_object_is_refused_from_either_side() {
    let entries = || [entry("api.paypal.com"), entry("other.example")];
    let secret = credential(json!(["api.paypal.com"]));
    // The secret is there, and the route that would copy it comes.
    let stored = Stored::of(entries().into_iter().chain([secret.clone()]));
    let refused = stored.asked(&mirrored("other.example")).refused.unwrap();
    assert!(
        refused.starts_with("ExternalCredential shop/paypal: VirtualService shop/paypal mirrors requests"),
        "{refused}"
    );
    assert_eq!(stored.asked(&mirrored("api.paypal.com")).refused, None);
    // The route is there, and the secret comes: that the object itself is meant needs no saying.
    let stored = Stored::of(entries().into_iter().chain([mirrored("other.example")]));
    let refused = stored.asked(&secret).refused.unwrap();
    assert!(refused.starts_with("VirtualService shop/paypal mirrors requests"), "{refused}");
    assert_eq!(stored.asked(&credential(json!(["api.paypal.com", "other.example"]))).refused, None);
    // Late or not.
    assert!(stored.asked_until(&secret, Instant::now()).refused.is_some());
}

#[test]
fn what_is_wrong_already_can_be_mended_step_by_step() {
    let entries = [entry("api.paypal.com"), entry("other.example"), entry("third.example")];
    let both = [credential(json!(["api.paypal.com"])), mirrored("other.example")];
    let stored = Stored::of(entries.into_iter().chain(both));
    // Still wrong, and not by this: it is said, and not held against who mends something else.
    let answer = stored.asked(&mirrored("third.example"));
    assert_eq!(answer.refused, None);
    let told = |text: &String| text.starts_with("WEFT0001 Refused: ExternalCredential shop/paypal: ");
    assert!(answer.warnings.iter().any(told), "{answer:?}");
    let mended = stored.asked(&mirrored("api.paypal.com"));
    assert!(mended.refused.is_none() && mended.warnings.is_empty(), "{mended:?}");
}

#[test]
fn doubts_about_an_object_beside_the_others_are_warnings_with_their_codes() {
    let address = "10.1.0.1".to_owned();
    let cart = || {
        [
            service("cart"),
            pod_of("cart", "cart-0", "10.1.0.1"),
            slice_of("cart", std::slice::from_ref(&address)),
        ]
    };
    let stored = Stored::of(cart());
    let answer = stored.asked(&route("a", json!({"host": "crat"})));
    assert!(answer.refused.is_none());
    let [warning] = &answer.warnings[..] else { panic!("{answer:?}") };
    assert!(warning.starts_with("WEFT0209 DestinationUnknown: spec.http[0].route[0]"), "{warning}");
    assert_eq!(stored.asked(&route("a", json!({"host": "cart"}))).warnings, [] as [&str; 0]);
    // What is said of others is what they would not have without it.
    let v1 = json!([{"name": "v1", "labels": {"version": "v1"}}]);
    let stored = Stored::of(cart().into_iter().chain([
        rule(v1.clone()),
        route("a", json!({"host": "cart", "subset": "v1"})),
        route("b", json!({"host": "nowhere"})),
    ]));
    let answer = stored.asked(&rule(json!([])));
    let of_the_route = |text: &&String| text.contains(": VirtualService shop/a: ");
    assert!(
        answer.warnings.iter().any(|text| of_the_route(&text) && text.starts_with("WEFT0002 Doubted: ")),
        "{answer:?}"
    );
    assert!(answer.warnings.iter().all(|text| !text.contains("shop/b")), "{answer:?}");
    assert_eq!(stored.asked(&rule(v1)).warnings, [] as [&str; 0]);
    // Where there is no time for it that is said, and nothing is refused.
    let late = stored.asked_until(&rule(json!([])), Instant::now());
    assert!(late.refused.is_none());
    assert!(late.warnings.last().unwrap().contains("weft analyze --cluster"), "{late:?}");
}

#[test]
fn of_many_doubts_the_first_are_told_and_how_many_there_are() {
    let stored = Stored::of([service("cart")]);
    let to = |n: usize| json!({"destination": {"host": format!("nowhere-{n}")}, "weight": 1});
    let spec = json!({"hosts": ["cart"], "http": [{"route": (0..40).map(to).collect::<Vec<_>>()}]});
    let answer = stored.asked(&made("networking.istio.io/v1", "VirtualService", "a", spec));
    assert!(answer.refused.is_none());
    assert_eq!(answer.warnings.len(), 11, "{answer:?}");
    assert!(answer.warnings[10].ends_with("more: weft analyze --cluster has them all"), "{answer:?}");
}

#[test]
fn a_large_mesh_is_looked_at_in_one_go() {
    let all = (0..1000).flat_map(|n| {
        let name = format!("s{n}");
        let addresses: Vec<_> =
            (0..10).map(|pod| format!("10.{}.{}.{}", n / 250 + 1, n % 250, pod + 1)).collect();
        let pods = addresses
            .iter()
            .enumerate()
            .map(|(pod, ip)| pod_of(&name, &format!("{name}-{pod}"), ip))
            .collect::<Vec<_>>();
        [service(&name), slice_of(&name, &addresses)].into_iter().chain(pods)
    });
    let stored = Stored::of(all);
    let mut answers = Vec::new();
    for host in ["nowhere", "s7", "nowhere"] {
        answers.push(stored.asked(&route("a", json!({"host": host}))).warnings.len());
    }
    assert_eq!((answers[0], answers[2]), (answers[1] + 1, answers[1] + 1), "{answers:?}");
}
