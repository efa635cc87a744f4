//! What the control plane may do: exactly what it does. And whom it takes proxies for: those whose token the API server knows.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Server;
use super::gateway_api;
use super::inspection;
use super::mesh::{self, SHOP};
use crate::programs::{Process, get, weft, weft_proxy};

const CONTROL: &str = "127.36.2.2";
const PROXY: &str = "127.36.2.3";
const VM: &str = "127.36.2.6";
const ROLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/rbac/control-plane.yaml");

/// Kinds of Istio's that have no effect here, as a cluster has them where Istio is or was installed.
fn stand_ins() -> String {
    [
        ("networking.istio.io", "v1alpha3", "envoyfilters", "EnvoyFilter"),
        ("extensions.istio.io", "v1alpha1", "wasmplugins", "WasmPlugin"),
    ]
    .map(|(group, version, plural, kind)| {
        let singular = kind.to_lowercase();
        format!(
            "---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {plural}.{group}, labels: {{app.kubernetes.io/part-of: weft}}}}
spec:
  group: {group}
  scope: Namespaced
  names: {{kind: {kind}, listKind: {kind}List, plural: {plural}, singular: {singular}}}
  versions:
  - name: {version}
    served: true
    storage: true
    subresources: {{status: {{}}}}
    schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}
"
        )
    })
    .concat()
}

const KINDS: [(&str, &str); 23] = [
    ("networking.istio.io/v1", "VirtualService"),
    ("networking.istio.io/v1", "DestinationRule"),
    ("networking.istio.io/v1", "Gateway"),
    ("networking.istio.io/v1", "ServiceEntry"),
    ("networking.istio.io/v1", "WorkloadEntry"),
    ("networking.istio.io/v1", "Sidecar"),
    ("networking.istio.io/v1alpha3", "EnvoyFilter"),
    ("networking.istio.io/v1", "WorkloadGroup"),
    ("networking.istio.io/v1beta1", "ProxyConfig"),
    ("security.istio.io/v1", "PeerAuthentication"),
    ("security.istio.io/v1", "AuthorizationPolicy"),
    ("security.istio.io/v1", "RequestAuthentication"),
    ("telemetry.istio.io/v1", "Telemetry"),
    ("extensions.istio.io/v1alpha1", "WasmPlugin"),
    ("weft.dev/v1alpha1", "AcmeCertificate"),
    ("weft.dev/v1alpha1", "Compression"),
    ("weft.dev/v1alpha1", "ExternalCredential"),
    ("weft.dev/v1alpha1", "IPDenyList"),
    ("weft.dev/v1alpha1", "RateLimit"),
    ("weft.dev/v1alpha1", "TrafficManagement"),
    ("weft.dev/v1alpha1", "MetricDefinition"),
    ("weft.dev/v1alpha1", "ServiceMeshConfig"),
    ("weft.dev/v1alpha1", "HealthCheck"),
];

/// What a role grants: verb, group, resource.
pub(super) fn granted(role: &Value) -> BTreeSet<(String, String, String)> {
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let mut all = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        for verb in list(&rule["verbs"]) {
            for group in list(&rule["apiGroups"]) {
                let of = list(&rule["resources"]);
                all.extend(of.into_iter().map(|resource| (verb.clone(), group.clone(), resource)));
            }
        }
    }
    all
}

#[test]
fn the_role_grants_what_is_asked_for_and_no_more() {
    let server = Server::start("127.36.2.1");
    server.apply(SHOP);
    server.apply(&mesh::pod("v1"));
    mesh::runs(&server, "v1", "10.88.0.1");
    server.kubectl(&["apply", "-f", &mesh::crds()]);
    server.apply(&stand_ins());
    server.apply(&gateway_api::definitions());
    mesh::established(&server);
    server.kubectl(&["apply", "-f", ROLE]);
    let mut command = weft();
    command.args(["control", "--kubernetes", "--address", CONTROL, "--ca-keys", "p256"]);
    command.args(["--workload-entry-grace", "1s"]);
    let mut command = server.in_pod("istio-system", "weft-control", &command);
    let mut control = Process::start("control", &mut command, server.directory());
    control.wait("ready", || mesh::ready(CONTROL));

    // Of each kind an object that says nothing: whatever is thought of it, it is told.
    let objects = KINDS.map(|(version, kind)| {
        format!(
            "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: it, namespace: shop}}\nspec: {{}}\n"
        )
    });
    server.apply(&objects.concat());
    for (version, kind) in KINDS {
        let mut status = Value::Null;
        let (group, version) = version.split_once('/').unwrap();
        control.wait(&format!("done with the status of a {kind}"), || {
            status = server.get(&format!("{kind}.{version}.{group}"), "shop", "it")["status"].take();
            status["conditions"].is_array()
        });
        assert_eq!(status["conditions"][0]["type"], "Valid", "{kind}: {status}");
        assert_eq!(status["observedGeneration"], 1, "{kind}: {status}");
    }
    server.apply("{apiVersion: v1, kind: Namespace, metadata: {name: other}}");
    server.apply(gateway_api::OBJECTS);
    for (kind, name, part) in [
        ("gatewayclass", "weft", "conditions"),
        (gateway_api::GATEWAYS, "edge", "listeners"),
        ("httproute", "cart", "parents"),
        ("grpcroute", "cart", "parents"),
        ("tlsroute", "cart", "parents"),
    ] {
        control.wait(&format!("done with the status of a {kind}"), || {
            server.get(kind, "shop", name)["status"][part].is_array()
        });
    }
    // What was made for the Gateway is taken away when somebody else serves it.
    let made = || server.try_kubectl(&["-n", "shop", "get", "serviceaccount", "edge-weft"], "").is_ok();
    control.wait("making what the Gateway needs", made);
    let elsewhere = r#"{"spec": {"gatewayClassName": "istio-remote"}}"#;
    server.kubectl(&[
        "-n",
        "shop",
        "patch",
        gateway_api::GATEWAYS,
        "edge",
        "--type",
        "merge",
        "-p",
        elsewhere,
    ]);
    control.wait("taking it away", || !made());
    let refused = server.get("EnvoyFilter", "shop", "it");
    let said = refused["status"]["validationMessages"][0]["message"].as_str().unwrap();
    assert!(said.contains("not yet supported by Weft"), "{said}");
    assert_eq!(server.get("PeerAuthentication", "shop", "it")["status"]["conditions"][0]["status"], "True");

    // A trial begins: its status says so, and an event.
    server.apply(mesh::TRIAL);
    let mut status = Value::Null;
    control.wait("watching the trial", || {
        status = server.get("TrafficManagement", "shop", "trial")["status"].take();
        status["canary"]["phase"] == "Progressing" && status["conditions"].is_array()
    });
    assert_eq!(status["canary"]["canaryPercent"], 10, "{status}");
    control.wait("done with the event", || {
        let reasons = ["-n", "shop", "get", "events", "-o", "jsonpath={.items[*].reason}"];
        server.kubectl(&reasons).contains("CanaryStarted")
    });

    // A proxy is who the API server says that its token is, for as long as its pod is there.
    let token = |audience: &str| {
        let bound = ["--bound-object-kind", "Pod", "--bound-object-name", "v1"];
        server.kubectl(
            &[&["-n", "shop", "create", "token", "cart", "--audience", audience][..], &bound].concat(),
        )
    };
    let file = |name: &str| server.directory().join(name);
    let roots = get(format!("{CONTROL}:8080").parse().unwrap(), "/root-cert.pem").unwrap().1;
    std::fs::write(file("roots.pem"), roots).unwrap();
    std::fs::write(file("token"), token("istio-ca").trim()).unwrap();
    std::fs::write(file("other-token"), token("vault").trim()).unwrap();
    // Another one: what the API server has said of a token it says again for ten seconds.
    std::fs::write(file("late-token"), token("istio-ca").trim()).unwrap();
    let proxy = |name: &str, token: &str, account: &str, ip: &str| {
        let mut proxy = weft_proxy();
        proxy.args([
            "--xds-address",
            &format!("{CONTROL}:15012"),
            "--namespace",
            "shop",
            "--service-account",
            account,
        ]);
        proxy.args(["--ip", ip, "--admin-address", &format!("{ip}:15000"), "--interception-mode", "NONE"]);
        if ip == VM {
            proxy.args(["--auto-register-group", "vm"]);
        }
        proxy.arg("--root-cert").arg(file("roots.pem")).arg("--token-file").arg(file(token));
        Process::start(name, proxy.args(["--concurrency", "1"]), server.directory())
    };
    let mut good = proxy("proxy", "token", "cart", PROXY);
    let has = |ip: &str| {
        get(format!("{ip}:15000").parse().unwrap(), "/certs")
            .is_ok_and(|(_, certificates)| certificates.contains("spiffe://cluster.local/ns/shop/sa/cart"))
    };
    good.wait("in possession of its certificate", || has(PROXY));
    inspection::roles_say_who_may_read_proxies(&server, CONTROL);
    // A workload enters itself, and goes.
    server.apply(
        "apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vm, namespace: shop}
spec: {template: {serviceAccount: cart, labels: {app: cart}}}
",
    );
    let vm = proxy("vm", "token", "cart", VM);
    let entered = || server.kubectl(&["-n", "shop", "get", "workloadentries", "-o", "name"]).contains("/vm-");
    control.wait("done with the entry", entered);
    drop(vm);
    control.wait("done with taking it away", || !entered());
    let mut other = proxy("other-proxy", "other-token", "cart", "127.36.2.4");
    other.wait("refused", || control.log().contains("audience"));
    assert!(!has("127.36.2.4"));
    drop(other);
    server.kubectl(&["-n", "shop", "delete", "pod", "v1", "--force", "--grace-period=0"]);
    let before =
        control.log().matches("Kubernetes says").count() + control.log().matches("does not know it").count();
    let mut late = proxy("late-proxy", "late-token", "cart", "127.36.2.5");
    late.wait("refused", || {
        control.log().matches("Kubernetes says").count() + control.log().matches("does not know it").count()
            > before
    });
    assert!(!has("127.36.2.5"), "a token of a pod that is gone is worth nothing");

    // Everything that is granted is asked for: the lease is renewed every two seconds, and watches begin anew.
    let asked = || server.asked("system:serviceaccount:istio-system:weft-control");
    let of = |kind: &str| granted(&server.get(kind, "istio-system", "weft-control"));
    let granted: BTreeSet<_> = of("clusterrole").into_iter().chain(of("role")).collect();
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let asked = asked();
        let (more, fewer) = (&asked - &granted, &granted - &asked);
        assert!(more.is_empty(), "asked for and not granted: {more:?}");
        if fewer.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "granted and never asked for: {fewer:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
