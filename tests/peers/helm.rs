//! The chart through Helm, beside the same chart through `weft install`; and the overlays through kustomize.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::programs::{peer, weft};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

/// Helm has no caches or settings of the user's here.
fn helm(home: &Path) -> Command {
    let mut helm = Command::new(peer("WEFT_HELM"));
    helm.env("HELM_CACHE_HOME", home)
        .env("HELM_CONFIG_HOME", home)
        .env("HELM_DATA_HOME", home)
        .env_remove("KUBECONFIG");
    helm
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Objects by kind and name. Who installs them is told by a label, which is the one difference.
fn objects(all: Vec<Value>) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for object in all {
        let text = object.to_string();
        let text = text.replace(
            "\"app.kubernetes.io/managed-by\":\"Helm\"",
            "\"app.kubernetes.io/managed-by\":\"weft-install\"",
        );
        let object: Value = serde_json::from_str(&text).unwrap();
        let key = format!("{} {}", object["kind"], object["metadata"]["name"]);
        assert!(found.insert(key.clone(), object).is_none(), "twice: {key}");
    }
    found
}

fn documents(yaml: &str) -> Vec<Value> {
    let all = yaml.split("\n---\n").map(|one| one.strip_prefix("---\n").unwrap_or(one));
    let all = all.filter(|one| one.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#')));
    all.map(|one| xds_protos::json::value_from_yaml_str(one).unwrap_or_else(|e| panic!("{e:?}\n{one}")))
        .collect()
}

#[test]
fn helm_and_weft_install_give_the_same() {
    let home = tempfile::tempdir().unwrap();
    let chart = deploy("helm/weft");
    let design = deploy("helm/examples/design.yaml");
    let own = home.path().join("own.yaml");
    let text = json!({
        "profile": "demo", "revision": "canary", "networkPolicies": {"enabled": false},
        "serviceMonitors": {"enabled": true, "labels": {"release": "prom"}},
        "components": {"pilot": {"k8s": {"nodeSelector": {"a": "b"}, "replicaCount": 3,
            "tolerations": [{"key": "k", "operator": "Exists"}], "affinity": {"podAntiAffinity": {"x": []}}}}},
        "gateways": {"ingress": {"service": {"type": "NodePort", "annotations": {"a/b": "c: d"},
            "ports": [{"name": "tcp", "port": 5432, "targetPort": 15432}]}}},
        "values": {
            "global": {"hub": "r.example:5000/x", "tag": "9", "imagePullPolicy": "Always", "imagePullSecrets": ["one", "two"]},
            "meshConfig": {"defaultConfig": {"proxyMetadata": {"A": "yes"}}},
            "pilot": {"env": {"PILOT_PUSH_THROTTLE": 50, "PILOT_DEBOUNCE_MAX": "5s"},
                "certificateSigner": {"name": "mesh.example.com/workloads", "roots": "mesh-roots"}},
            "sidecarInjectorWebhook": {"nativeSidecars": false, "failurePolicy": "Ignore",
                "neverInjectSelector": [{"matchLabels": {"a": "b"}}]},
        },
    });
    std::fs::write(&own, text.to_string()).unwrap();
    let profile = |name: &str| vec!["--set".to_owned(), format!("profile={name}")];
    let file = |path: &Path| vec!["-f".to_owned(), path.display().to_string()];
    for arguments in [
        profile("default"),
        profile("demo"),
        profile("minimal"),
        profile("production"),
        file(&design),
        file(&own),
        vec!["--set".to_owned(), "values.meshConfig.trustDomain=example.org".to_owned()],
    ] {
        let mut command = helm(home.path());
        command.args(["lint", "--strict", "--namespace", "istio-system"]).args(&arguments).arg(&chart);
        let lint = output(&mut command).unwrap_or_else(|wrong| panic!("{arguments:?}: {wrong}"));
        assert!(lint.contains("0 chart(s) failed"), "{lint}");
        let mut command = helm(home.path());
        command.args([
            "template",
            "weft",
            "--namespace",
            "istio-system",
            "--kube-version",
            "1.34.0",
            "--include-crds",
        ]);
        let theirs = output(command.arg(&chart).args(&arguments))
            .unwrap_or_else(|wrong| panic!("{arguments:?}: {wrong}"));
        let theirs = objects(documents(&theirs));
        let ours =
            output(weft().args(["install", "--dry-run", "--output", "json"]).args(&arguments)).unwrap();
        let ours: Value = serde_json::from_str(&ours).unwrap();
        let mut ours = objects(ours["items"].as_array().unwrap().clone());
        // Helm makes the namespace by a flag of its own.
        assert!(ours.remove("\"Namespace\" \"istio-system\"").is_some());
        let names = |all: &BTreeMap<String, Value>| all.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&theirs), names(&ours), "{arguments:?}");
        for (name, object) in &theirs {
            assert_eq!(object, &ours[name], "{arguments:?}: {name}");
        }
        assert!(theirs.len() > 10, "{arguments:?}: {}", theirs.len());
    }
}

#[test]
fn both_refuse_the_same() {
    let home = tempfile::tempdir().unwrap();
    for (set, words) in [
        ("profile=prod", vec!["default", "demo", "minimal", "production"]),
        ("values.pilot.traceSamplin=1", vec!["traceSamplin"]),
        ("values.pilot.env.FOO=1", vec!["values.pilot.env.FOO", "PILOT_PUSH_THROTTLE"]),
        ("namespace=elsewhere", vec!["elsewhere"]),
        ("components.pilot.k8s.replicaCount=3", vec!["replicaCount", "hpaSpec.minReplicas"]),
        ("gateways.egress.k8s.replicaCount=3", vec!["gateways.egress", "enabled: true"]),
        ("values.pilot.certificateSigner.name=a.example/b", vec!["certificateSigner", "roots"]),
        ("gateways.ingress.enabled=7", vec!["enabled", "boolean"]),
        ("values.pilot.traceSampling=101", vec!["traceSampling", "100"]),
    ] {
        let mut command = helm(home.path());
        command.args([
            "template",
            "weft",
            "--namespace",
            "istio-system",
            "--kube-version",
            "1.34.0",
            "--set",
            set,
        ]);
        let theirs = output(command.arg(deploy("helm/weft"))).expect_err(set);
        let ours = output(weft().args(["install", "--dry-run", "--set", set])).expect_err(set);
        for word in words {
            assert!(theirs.contains(word), "helm, {set}: {theirs}");
            assert!(ours.contains(word), "weft install, {set}: {ours}");
        }
    }
}

#[test]
fn the_overlays_are_what_they_say() {
    let built = |overlay: &str| {
        let mut command = Command::new(peer("WEFT_KUBECTL"));
        let path = deploy(&format!("kustomize/overlays/{overlay}"));
        objects(documents(
            &output(command.arg("kustomize").arg(path)).unwrap_or_else(|wrong| panic!("{overlay}: {wrong}")),
        ))
    };
    let (dev, staging, prod) = (built("dev"), built("staging"), built("prod"));
    let hpa = |all: &BTreeMap<String, Value>| {
        let spec = &all["\"HorizontalPodAutoscaler\" \"istiod\""]["spec"];
        (spec["minReplicas"].as_u64().unwrap(), spec["maxReplicas"].as_u64().unwrap())
    };
    assert_eq!((hpa(&dev), hpa(&staging), hpa(&prod)), ((1, 2), (2, 3), (2, 5)));
    let hook = |all: &BTreeMap<String, Value>| {
        let hooks = &all["\"MutatingWebhookConfiguration\" \"istio-sidecar-injector\""]["webhooks"];
        hooks
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["failurePolicy"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(hook(&dev), ["Ignore"; 4]);
    assert_eq!(hook(&prod), ["Fail"; 4]);
    for (all, spread) in [(&staging, false), (&prod, true)] {
        let pod = &all["\"Deployment\" \"istiod\""]["spec"]["template"]["spec"];
        assert_eq!(pod["topologySpreadConstraints"].is_array(), spread);
    }
    assert_eq!(dev.keys().collect::<Vec<_>>(), prod.keys().collect::<Vec<_>>());
}
