//! Pods, and what is true of them afterwards (`cases.yaml`).

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::text::{Document, inject_text};
use super::{Injection, Owner, Settings, Workload, inject, merge};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    /// The pod that each case says the difference to.
    base: Value,
    annotations: Vec<ByAnnotation>,
    cases: Vec<Case>,
}

/// An annotation: what is true with it and not without it, and values that come near and are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ByAnnotation {
    name: String,
    value: String,
    /// Other annotations that it needs to be seen.
    #[serde(default)]
    beside: BTreeMap<String, String>,
    #[serde(default)]
    holds: BTreeMap<String, Value>,
    /// Nothing changes; the value says what is so anyway.
    #[serde(default)]
    silent: bool,
    #[serde(default)]
    left: Option<String>,
    near: Vec<String>,
    says: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    settings: Map<String, Value>,
    #[serde(default)]
    owner: Option<[String; 3]>,
    #[serde(default = "namespace")]
    namespace: String,
    /// Laid over the base.
    #[serde(default)]
    pod: Value,
    #[serde(default)]
    holds: BTreeMap<String, Value>,
    #[serde(default)]
    lacks: Vec<String>,
    /// Words of why it stays as it is.
    #[serde(default)]
    left: Option<String>,
    /// Words of each reason why it is refused.
    #[serde(default)]
    refused: Vec<String>,
    /// Words of what is said of it.
    #[serde(default)]
    warned: Option<String>,
}

fn namespace() -> String {
    "shop".to_owned()
}

fn cases() -> Cases {
    let value = xds_protos::json::value_from_yaml_str(include_str!("cases.yaml")).unwrap();
    serde_json::from_value(value).unwrap()
}

/// What stands at a path such as `spec.containers[web].env[A].value`: brackets choose a key, an index, or an item by its name;
/// `!json` reads a text as JSON.
fn look(value: &Value, path: &str) -> Value {
    let mut here = value.clone();
    let mut rest = path;
    while !rest.is_empty() {
        let (segment, after) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']').unwrap(),
            None => {
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                rest.split_at(end)
            }
        };
        rest = after.strip_prefix('.').unwrap_or(after);
        here = match (&here, segment) {
            (Value::String(text), "!json") => serde_json::from_str(text).unwrap(),
            (Value::Array(list), _) => match segment.parse::<usize>() {
                Ok(index) => list.get(index).cloned().unwrap_or_default(),
                Err(_) => list.iter().find(|one| one["name"] == segment).cloned().unwrap_or_default(),
            },
            _ => here.get(segment).cloned().unwrap_or_default(),
        };
    }
    here
}

/// Whether it is so. A text that begins with `~` is a part of what is there, of a list its words in a row; `!~` is not.
fn holds(pod: &Value, path: &str, expected: &Value) -> bool {
    let found = look(pod, path);
    let words = |value: &Value| match value {
        Value::Array(list) => {
            list.iter().map(|v| v.as_str().unwrap_or_default()).collect::<Vec<_>>().join(" ")
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match expected.as_str().map(|text| (text.strip_prefix("!~"), text.strip_prefix('~'))) {
        Some((Some(part), _)) => !words(&found).contains(part),
        Some((_, Some(part))) => words(&found).contains(part),
        _ => found == *expected,
    }
}

fn workload(namespace: &str, pod: &Value, owner: Option<&[String; 3]>) -> Workload {
    match owner {
        None => Workload::of_pod(pod, namespace),
        Some([api_version, kind, name]) => Workload {
            namespace: namespace.to_owned(),
            owner: Owner { api_version: api_version.clone(), kind: kind.clone(), name: name.clone() },
        },
    }
}

#[test]
fn every_annotation_does_what_it_says_and_what_comes_near_is_refused() {
    let Cases { base, annotations, .. } = cases();
    let settings = Settings::default();
    let of = |annotations: &BTreeMap<String, String>| {
        let mut pod = base.clone();
        pod["metadata"]["annotations"] = json!(annotations);
        inject(&pod, &workload("shop", &pod, None), &settings)
    };
    let mut seen = BTreeSet::new();
    for case in annotations {
        let ByAnnotation { name, value, beside, holds: expected, silent, left, near, says } = case;
        let with = |value: &str| {
            let mut all = beside.clone();
            all.insert(name.clone(), value.to_owned());
            of(&all)
        };
        let before = of(&beside).unwrap();
        match (with(&value).unwrap_or_else(|wrong| panic!("{name}: {wrong:?}")), left) {
            (Injection::Done(pod, _), None) => {
                for (path, value) in &expected {
                    assert!(holds(&pod, path, value), "{name}: {path} is {}, not {value}", look(&pod, path));
                }
                let Injection::Done(without, _) = before else { panic!("{name}: {before:?}") };
                let same = expected.iter().all(|(path, value)| holds(&without, path, value));
                assert_eq!(same, silent, "{name}: is it so without it?");
            }
            (Injection::Left(why), Some(words)) => assert!(why.to_string().contains(&words), "{name}: {why}"),
            (other, _) => panic!("{name}: {other:?}"),
        }
        for near in near {
            let wrong = with(&near).expect_err(&format!("{name}: {near:?} is taken"));
            let text = wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            assert!(text.contains(&says) && text.contains(&name), "{name}: {near:?}: {text}");
        }
        seen.insert(name);
    }
    let mut missing: Vec<_> = super::annotations::names().filter(|name| !seen.contains(*name)).collect();
    missing.retain(|name| *name != super::pod::STATUS);
    assert!(missing.is_empty(), "no case for {missing:?}");
}

#[test]
fn every_pod_becomes_what_its_case_says() {
    let Cases { base, cases, .. } = cases();
    for case in cases {
        let name = &case.name;
        let mut pod = base.clone();
        if !case.pod.is_null() {
            merge::lay(&mut pod, &case.pod);
        }
        let settings: Settings =
            serde_json::from_value(case.settings.into()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let workload = workload(&case.namespace, &pod, case.owner.as_ref());
        match inject(&pod, &workload, &settings) {
            Ok(Injection::Done(injected, warnings)) => {
                assert!(case.left.is_none() && case.refused.is_empty(), "{name}: injected");
                for (path, value) in &case.holds {
                    assert!(
                        holds(&injected, path, value),
                        "{name}: {path} is {}, not {value}",
                        look(&injected, path)
                    );
                }
                for path in &case.lacks {
                    assert_eq!(look(&injected, path), Value::Null, "{name}: {path}");
                }
                let warnings = warnings.join("\n");
                assert_eq!(!warnings.is_empty(), case.warned.is_some(), "{name}: {warnings}");
                assert!(warnings.contains(case.warned.as_deref().unwrap_or_default()), "{name}: {warnings}");
                // Nobody is injected twice.
                let again = inject(&injected, &workload, &settings).unwrap();
                assert!(matches!(again, Injection::Left(super::Why::Injected)), "{name}: {again:?}");
            }
            Ok(Injection::Left(why)) => {
                let words = case.left.unwrap_or_else(|| panic!("{name}: left: {why}"));
                assert!(why.to_string().contains(&words), "{name}: {why}");
            }
            Err(wrong) => {
                let text = wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
                assert!(!case.refused.is_empty(), "{name}: {text}");
                for words in &case.refused {
                    assert!(text.contains(words), "{name}: no {words:?} in {text}");
                }
            }
        }
    }
}

#[test]
fn the_proxys_program_takes_what_its_container_says() {
    // The proxy's crate tries these arguments; what they are is said here once, so that a change is seen on both sides.
    let Cases { base, .. } = cases();
    let Injection::Done(pod, _) =
        inject(&base, &workload("shop", &base, None), &Settings::default()).unwrap()
    else {
        panic!("not injected")
    };
    assert_eq!(
        look(&pod, "spec.initContainers[istio-proxy].args"),
        json!([
            "--xds-address",
            "istiod.istio-system.svc:15012",
            "--admin-address",
            "127.0.0.1:15000",
            "--probe-address",
            "0.0.0.0",
            "--state-dir",
            "/var/lib/istio/data"
        ])
    );
}

const FILE: &str = r#"# A comment that stays.
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {mode: 0644, "on": yes}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web, version: "1.0"}}
    spec:
      containers:
      - name: web
        image: web
        args: ["yes", "0644", "null", "1e3", "12:30:45", ""]
      volumes:
      - {name: v, secret: {secretName: s, defaultMode: 0400, optional: yes}}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: web}}
- apiVersion: batch/v1
  kind: CronJob
  metadata: {name: nightly}
  spec: {schedule: "@daily", jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: job, image: j}]}}}}}
- {apiVersion: apps/v1, kind: DaemonSet, metadata: {name: node}, spec: {template: {spec: {hostNetwork: true, containers: [{name: n}]}}}}
"#;

#[test]
fn a_file_keeps_what_is_no_workload_letter_by_letter() {
    let injected = inject_text(FILE, Some("batch"), &Settings::default()).unwrap();
    assert!(injected.errors.is_empty(), "{:?}", injected.errors);
    let first = FILE.split("---\n").next().unwrap();
    assert!(matches!(&injected.documents[0], Document::Kept(text) if text == first));
    let yaml = injected.to_yaml().unwrap();
    assert!(yaml.starts_with(first), "{yaml}");
    assert_eq!(injected.notes.len(), 1, "{:?}", injected.notes);
    assert!(
        injected.notes[0].starts_with("DaemonSet batch/node: not injected: ")
            && injected.notes[0].contains("hostNetwork")
    );

    // What was written reads as what was meant, by YAML 1.1 and 1.2 alike.
    let again = inject_text(&yaml, Some("batch"), &Settings::default()).unwrap();
    assert!(again.documents.iter().all(|d| matches!(d, Document::Kept(_))), "nobody is injected twice");
    assert_eq!(again.to_yaml().unwrap(), yaml);
    for all in [injected.to_json().unwrap(), again.to_json().unwrap()] {
        let spec = look(&all, "items[1].spec.template.spec");
        assert_eq!(
            look(&spec, "containers[web].args"),
            json!(["yes", "0644", "null", "1e3", "12:30:45", ""])
        );
        assert_eq!(
            look(&spec, "volumes[v].secret"),
            json!({"secretName": "s", "defaultMode": 256, "optional": true})
        );
        assert_eq!(look(&all, "items[1].spec.template.metadata.labels.version"), "1.0");
        assert_eq!(
            look(&spec, "initContainers[istio-proxy].env[ISTIO_META_OWNER].value"),
            "kubernetes://apis/apps/v1/namespaces/shop/deployments/web"
        );
        let job = look(&all, "items[2].items[1].spec.jobTemplate.spec.template.spec");
        assert_eq!(look(&job, "initContainers[istio-proxy].restartPolicy"), "Always");
        assert_eq!(
            look(&job, "initContainers[istio-proxy].env[ISTIO_META_OWNER].value"),
            "kubernetes://apis/batch/v1/namespaces/batch/cronjobs/nightly"
        );
    }
}

#[test]
fn proxy_configs_of_the_mesh_hold_by_their_scope_and_the_one_that_selects_before_the_pods_own() {
    let text = "
apiVersion: networking.istio.io/v1beta1
kind: ProxyConfig
metadata: {name: all, namespace: istio-system}
spec: {concurrency: 1, environmentVariables: {OF_ROOT: a, OF_ALL: root}}
---
apiVersion: networking.istio.io/v1beta1
kind: ProxyConfig
metadata: {name: all, namespace: shop}
spec: {concurrency: 2, environmentVariables: {OF_ALL: shop}}
---
apiVersion: networking.istio.io/v1beta1
kind: ProxyConfig
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, concurrency: 4}
";
    let world = crate::ingest::load_str("x.yaml", text).into_result().unwrap();
    let settings = Settings::default().with_world(&world);
    let of = |namespace: &str, app: &str, annotation: Option<&str>| {
        let mut pod = cases().base;
        pod["metadata"]["labels"]["app"] = app.into();
        if let Some(config) = annotation {
            pod["metadata"]["annotations"] = json!({"proxy.istio.io/config": config});
        }
        let injected = inject(&pod, &workload(namespace, &pod, None), &settings).unwrap();
        let Injection::Done(pod, _) = injected else { panic!("{injected:?}") };
        let env = |name: &str| look(&pod, &format!("spec.initContainers[istio-proxy].env[{name}].value"));
        let config: Value = serde_json::from_str(env("PROXY_CONFIG").as_str().unwrap()).unwrap();
        (config["concurrency"].as_u64(), env("OF_ROOT"), env("OF_ALL"))
    };
    let (a, root, shop, own) = (json!("a"), json!("root"), json!("shop"), json!("own"));
    assert_eq!(of("other", "web", None), (Some(1), a.clone(), root));
    assert_eq!(of("shop", "api", None), (Some(2), a.clone(), shop.clone()));
    assert_eq!(of("shop", "web", None), (Some(4), a.clone(), shop));
    let annotation = Some("{concurrency: 3, proxyMetadata: {OF_ALL: own}}");
    assert_eq!(of("shop", "api", annotation), (Some(3), a.clone(), own.clone()));
    assert_eq!(of("shop", "web", annotation), (Some(4), a, own));
}

#[test]
fn what_is_wrong_in_a_file_is_said_by_object_and_path() {
    let text = FILE
        .replace("labels: {app: web", "annotations: {sidecar.istio.io/proxyCPU: lots}, labels: {app: web");
    let injected = inject_text(&text, None, &Settings::default()).unwrap();
    let error = &injected.errors[0];
    assert!(
        error.starts_with(
            "Deployment shop/web: spec.template.metadata.annotations[sidecar.istio.io/proxyCPU]: \"lots\""
        ),
        "{error}"
    );
    assert!(inject_text("a: [", None, &Settings::default()).unwrap_err().to_string().contains("a: ["));
    assert!(Settings::from_yaml("imag: x").unwrap_err().contains("imag"));
}

#[test]
fn the_webhooks_selectors_and_the_policy_agree() {
    use super::settings::Selector;
    let labels = |list: &[(&str, &str)]| {
        let list: Vec<_> = list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        move |key: &str| list.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone())
    };
    let (enabled, disabled) = (("istio-injection", "enabled"), ("istio-injection", "disabled"));
    let (yes, no) = (("sidecar.istio.io/inject", "true"), ("sidecar.istio.io/inject", "false"));
    let (own, other) = (("istio.io/rev", "default"), ("istio.io/rev", "canary"));
    for (namespace, pod, asked) in [
        (vec![enabled], vec![], true),
        (vec![enabled], vec![no], false),
        (vec![enabled], vec![yes], true),
        (vec![disabled], vec![yes], false),
        (vec![], vec![], false),
        (vec![], vec![yes], true),
        (vec![], vec![own], true),
        (vec![], vec![other], false),
        (vec![], vec![yes, other], false),
        (vec![own], vec![], true),
        (vec![own], vec![no], false),
        (vec![other], vec![], false),
        (vec![other], vec![yes], false),
    ] {
        let (of_namespace, of_pod) = (labels(&namespace), labels(&pod));
        let webhooks = super::label_selectors("default");
        let asking = webhooks.iter().filter(|(_, one, two)| {
            let selects = |value: &Value, label: &dyn Fn(&str) -> Option<String>| {
                serde_json::from_value::<Selector>(value.clone()).unwrap().selects(label)
            };
            selects(one, &of_namespace) && selects(two, &of_pod)
        });
        // No pod is asked about twice, and the policy says yes to all that is asked about.
        assert_eq!(asking.count(), usize::from(asked), "{namespace:?} {pod:?}");
        let labels: Map<String, Value> = pod.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
        let pod = json!({"metadata": {"labels": labels}, "spec": {"containers": []}});
        let why = super::policy::why_not(&pod, "shop", &Settings::default()).unwrap();
        assert!(!asked || why.is_none(), "{namespace:?} {pod}: {why:?}");
    }
}
