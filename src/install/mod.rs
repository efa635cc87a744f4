//! `weft install`: what is to be installed into a cluster, as plain YAML.
//!
//! The chart in `deploy/helm/weft` is the one source of it. Its files are in this program ([`chart`]), and [`template`] renders
//! them as Helm does; [`values`] reads what a user sets, and checks it by the chart's own schema.

mod chart;
pub mod template;
mod values;

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

/// Prints what is to be installed into a cluster: the chart deploy/helm/weft, without Helm
#[derive(Args, Debug)]
pub struct InstallArgs {
    /// Print it, for `kubectl apply --server-side -f -`; there is no other way yet
    #[arg(long)]
    dry_run: bool,
    /// A file of values, as Helm takes it; may be given several times, and later ones count before earlier ones
    #[arg(short = 'f', long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// One value, such as profile=production or values.global.meshID=mesh1; counts before all files
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The namespace to install into
    #[arg(short = 'n', long, default_value = "istio-system")]
    namespace: String,
    /// Leave the namespace and the definitions of resources (CRDs) out: for those who may not write them, or have Istio's
    #[arg(long)]
    skip_crds: bool,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Output::Yaml)]
    output: Output,
}

/// How it is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// Documents of YAML.
    Yaml,
    /// A List of Kubernetes'.
    Json,
}

/// Prints the installation; on standard error what should be known of it.
///
/// # Errors
/// A value is not known, or cannot be.
pub fn main(args: &InstallArgs) -> anyhow::Result<()> {
    if !args.dry_run {
        bail!(
            "weft install prints what to install, and leaves it to kubectl: weft install --dry-run | kubectl apply --server-side -f -, \
            or take the chart: helm install weft deploy/helm/weft -n {} --create-namespace",
            args.namespace
        );
    }
    let mut values = json!({});
    for path in &args.values {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        values::read(&text, &mut values).with_context(|| path.display().to_string())?;
    }
    for one in &args.set {
        values::set(one, &mut values).with_context(|| format!("--set {one}"))?;
    }
    let (mut objects, notes) = manifests(&values, &args.namespace, "weft-install")?;
    if !args.skip_crds {
        let mut all =
            vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": args.namespace}})];
        all.extend(chart::definitions()?);
        all.append(&mut objects);
        objects = all;
    }
    match args.output {
        Output::Json => println!("{:#}", json!({"apiVersion": "v1", "kind": "List", "items": objects})),
        Output::Yaml => print!("{}", yaml(&objects)?),
    }
    eprintln!("{}", notes.trim());
    Ok(())
}

/// Objects as documents of YAML.
///
/// # Errors
/// The library cannot.
pub fn yaml(objects: &[Value]) -> anyhow::Result<String> {
    let documents = objects.iter().map(serde_saphyr::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(documents.join("---\n"))
}

/// The chart's objects for these values, in the order in which they are to be made, and its notes. `by` is who installs.
///
/// # Errors
/// A value is not known, or cannot be.
pub fn manifests(values: &Value, namespace: &str, by: &str) -> anyhow::Result<(Vec<Value>, String)> {
    let mut all = values::defaults()?;
    template::lay(&mut all, values);
    values::check(&all)?;
    let context = chart::context(all, namespace, by)?;
    let templates = chart::templates()?;
    let mut objects = Vec::new();
    for name in chart::manifests() {
        let text = templates.render(name, &context)?;
        objects.extend(documents(&text).with_context(|| format!("what {name} gives"))?);
    }
    objects.sort_by_key(|object| place(object["kind"].as_str().unwrap_or_default()));
    Ok((objects, templates.render(chart::NOTES, &context)?))
}

/// The documents of a text.
fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    let mut all = Vec::new();
    for part in text.split("\n---") {
        let part = part.strip_prefix("---").unwrap_or(part);
        if part.lines().all(|line| line.trim().is_empty() || line.starts_with('#')) {
            continue;
        }
        all.push(
            xds_protos::json::value_from_yaml_str(part).map_err(|error| anyhow::anyhow!(error.message))?,
        );
    }
    Ok(all)
}

/// What others need comes first; what has everything else asked (webhooks) last.
fn place(kind: &str) -> usize {
    const ORDER: [&str; 9] = [
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ServiceAccount",
        "Secret",
        "ConfigMap",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
    ];
    match kind {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => 100,
        "Deployment" => 60,
        _ => ORDER.iter().position(|one| *one == kind).unwrap_or(50),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(values: Value) -> anyhow::Result<Vec<Value>> {
        manifests(&values, "istio-system", "test").map(|(objects, _)| objects)
    }

    fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
        objects.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name)
    }

    /// The design's block, as it stands there.
    const DESIGN: &str = include_str!("../../deploy/helm/examples/design.yaml");

    #[test]
    fn the_designs_block_is_taken_as_it_stands_there() {
        let mut values = json!({});
        values::read(DESIGN, &mut values).unwrap();
        let (all, notes) = manifests(&values, "istio-system", "test").unwrap();
        let istiod = find(&all, "Deployment", "istiod").unwrap();
        let container = &istiod["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["resources"]["limits"], json!({"cpu": "1000m", "memory": "4096Mi"}));
        let hpa = &find(&all, "HorizontalPodAutoscaler", "istiod").unwrap()["spec"];
        assert_eq!((&hpa["minReplicas"], &hpa["maxReplicas"]), (&json!(2), &json!(5)));
        assert_eq!(hpa["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert!(istiod["spec"]["replicas"].is_null(), "the autoscaler's number is not written over");
        for name in ["istio-ingressgateway", "istio-egressgateway"] {
            for kind in
                ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"]
            {
                assert!(find(&all, kind, name).is_some(), "{kind} {name}");
            }
        }
        let variables = container["env"].as_array().unwrap();
        let registration = json!({"name": "PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION", "value": "true"});
        assert!(variables.contains(&registration), "{variables:?}");
        assert!(notes.contains("percent are traced"), "{notes}");
        // Mesh, cluster and network reach each sidecar.
        let injector =
            find(&all, "ConfigMap", "istiod-injector").unwrap()["data"]["values"].as_str().unwrap();
        let settings = weft_control::inject::Settings::from_yaml(injector).unwrap();
        assert_eq!((settings.mesh_id.as_str(), settings.network.as_str()), ("mesh1", "network1"));
        assert_eq!(settings.cluster_name, "eks-learning-lab-cluster");
        assert_eq!(settings.proxy.resources["limits"], json!({"cpu": "200m", "memory": "256Mi"}));
        // The mesh's settings are taken by the control plane's reader.
        let mesh = find(&all, "ConfigMap", "istio").unwrap();
        let outcome = weft_control::ingest::load_str("mesh", &serde_saphyr::to_string(mesh).unwrap());
        assert!(outcome.world.is_some(), "{:?}", outcome.diagnostics);
    }

    #[test]
    fn gateways_are_injected_as_gateways() {
        use weft_control::inject::{Injection, Settings, Workload, inject};
        let all = objects(json!({"profile": "production"})).unwrap();
        let pod = &find(&all, "Deployment", "istio-ingressgateway").unwrap()["spec"]["template"];
        let injected = inject(pod, &Workload::of_pod(pod, "istio-system"), &Settings::default()).unwrap();
        let Injection::Done(pod, _) = injected else { panic!("{injected:?}") };
        let proxy = &pod["spec"]["containers"][0];
        assert!(proxy["image"].as_str().unwrap().starts_with("weft/proxy:"), "{proxy}");
        assert_eq!(proxy["args"][1], "gateway");
        assert_eq!(proxy["resources"]["limits"]["cpu"], "2000m");
    }

    #[test]
    fn the_webhooks_ask_about_whom_the_injector_expects() {
        for revision in ["default", "canary"] {
            let all = objects(json!({"revision": revision})).unwrap();
            let kind = "MutatingWebhookConfiguration";
            let found = all.iter().find(|one| one["kind"] == kind).unwrap();
            let found: Vec<_> = found["webhooks"]
                .as_array()
                .unwrap()
                .iter()
                .map(|hook| {
                    let name = hook["name"].as_str().unwrap().split(".sidecar-injector").next().unwrap();
                    (name.to_owned(), hook["namespaceSelector"].clone(), hook["objectSelector"].clone())
                })
                .collect();
            let expected: Vec<_> = weft_control::inject::label_selectors(revision)
                .into_iter()
                .map(|(name, namespace, object)| (name.to_owned(), namespace, object))
                .collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_share_of_traces_reaches_the_meshs_settings() {
        let mesh = |values| {
            let all = objects(values).unwrap();
            find(&all, "ConfigMap", "istio").unwrap()["data"]["mesh"].as_str().unwrap().to_owned()
        };
        assert!(!mesh(json!({})).contains("sampling"), "1 % is the control plane's own");
        let all = mesh(json!({"values": {"pilot": {"traceSampling": 25}}}));
        assert!(all.contains("defaultConfig:\n  tracing:\n    sampling: 25"), "{all}");
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_is() {
        for (values, words) in [
            (json!({"profile": "prod"}), vec!["profile", "default, demo, minimal, production"]),
            (
                json!({"values": {"pilot": {"traceSamplin": 1}}}),
                vec!["values.pilot.traceSamplin", "traceSampling"],
            ),
            (json!({"values": {"pilot": {"traceSampling": 101}}}), vec!["values.pilot.traceSampling", "100"]),
            (
                json!({"values": {"pilot": {"env": {"FOO": "1"}}}}),
                vec!["values.pilot.env.FOO", "PILOT_PUSH_THROTTLE"],
            ),
            (json!({"values": {"pilot": {"env": {"EXTERNAL_ISTIOD": true}}}}), vec!["EXTERNAL_ISTIOD"]),
            (json!({"namespace": "elsewhere"}), vec!["elsewhere", "istio-system"]),
            // What would have no effect.
            (
                json!({"values": {"pilot": {"env": {"WEFT_REBALANCE_RATE": "5"}}}}),
                vec!["values.pilot.env.WEFT_REBALANCE_RATE", "values.pilot.rebalanceRate"],
            ),
            (json!({"values": {"pilot": {"rebalanceRate": -1}}}), vec!["values.pilot.rebalanceRate"]),
            (
                json!({"values": {"pilot": {"env": {"WEFT_LOG": "debug"}}}}),
                vec!["WEFT_LOG", "values.pilot.logLevel"],
            ),
            (
                json!({"components": {"pilot": {"k8s": {"replicaCount": 3}}}}),
                vec!["components.pilot.k8s.replicaCount", "hpaSpec.minReplicas"],
            ),
            (
                json!({"gateways": {"ingress": {"k8s": {"replicaCount": 3}}}}),
                vec!["gateways.ingress.k8s.replicaCount", "hpaSpec.minReplicas"],
            ),
            (
                json!({"gateways": {"egress": {"service": {"type": "NodePort"}}}}),
                vec!["gateways.egress.enabled: true"],
            ),
            (
                json!({"values": {"pilot": {"certificateSigner": {"name": "a.example/b"}}}}),
                vec!["values.pilot.certificateSigner", "roots"],
            ),
            (
                json!({"revision": "canary", "values": {"pilot": {"traceSampling": 5}}}),
                vec!["traceSampling", "canary"],
            ),
            (
                json!({"revision": "canary", "values": {"meshConfig": {"trustDomain": "x.org"}}}),
                vec!["meshConfig", "canary"],
            ),
            (json!({"serviceMonitors": {"labels": {"a": "b"}}}), vec!["serviceMonitors.enabled: true"]),
            (
                json!({"components": {"pilot": {"k8s": {"hpaSpec": {"minReplicas": 0}}}}}),
                vec!["hpaSpec.minReplicas"],
            ),
            (
                json!({"gateways": {"ingress": {"enabled": "yes"}}}),
                vec!["gateways.ingress.enabled", "boolean"],
            ),
        ] {
            let error = format!("{:#}", objects(values.clone()).expect_err(&values.to_string()));
            for word in words {
                assert!(error.contains(word), "{values}: {error}");
            }
        }
    }

    /// What the control plane reads of its environment, a value may set, but for what the chart says itself.
    #[test]
    fn the_chart_takes_the_variables_that_the_control_plane_reads() {
        use clap::Args;
        let command = weft_control::app::ControlArgs::augment_args(clap::Command::new("control"));
        let read =
            command.get_arguments().filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned));
        let own = ["CLUSTER_ID", "POD_NAME", "POD_NAMESPACE", "WEFT_LOG", "WEFT_REBALANCE_RATE"];
        for name in read.filter(|name| !own.contains(&name.as_str())) {
            let mut values = json!({});
            values["values"]["pilot"]["env"][&name] = "7s".into();
            let all = objects(values).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            let istiod = find(&all, "Deployment", "istiod").unwrap();
            let variables = &istiod["spec"]["template"]["spec"]["containers"][0]["env"];
            let is_there = variables.as_array().unwrap().contains(&json!({"name": name, "value": "7s"}));
            assert!(is_there, "{name}: {variables}");
        }
    }

    #[test]
    fn how_proxies_are_spread_over_replicas_is_a_value() {
        for (pilot, flag) in [
            (json!({}), "--rebalance-rate=10"),
            (json!({"rebalanceRate": 0}), "--rebalance-rate=0"),
            (json!({"rebalanceRate": 25}), "--rebalance-rate=25"),
        ] {
            let all = objects(json!({"values": {"pilot": pilot}})).unwrap();
            let istiod = find(&all, "Deployment", "istiod").unwrap();
            let args = istiod["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
            assert!(args.contains(&json!(flag)), "{pilot}: {args:?}");
        }
    }

    #[test]
    fn switches_switch() {
        let count = |values: Value, kind: &str| {
            objects(values).unwrap().iter().filter(|one| one["kind"] == kind).count()
        };
        assert_eq!(count(json!({}), "NetworkPolicy"), 2);
        assert_eq!(count(json!({"networkPolicies": {"enabled": false}}), "NetworkPolicy"), 0);
        assert_eq!(count(json!({}), "ServiceMonitor"), 0);
        assert_eq!(count(json!({"serviceMonitors": {"enabled": true}}), "ServiceMonitor"), 1);
        assert_eq!(
            count(json!({"values": {"validation": {"enabled": false}}}), "ValidatingWebhookConfiguration"),
            0
        );
        assert_eq!(count(json!({"profile": "minimal"}), "Deployment"), 1);
        assert_eq!(count(json!({"profile": "demo"}), "Deployment"), 3);
        assert_eq!(count(json!({"profile": "demo"}), "HorizontalPodAutoscaler"), 0);
        let mut values = json!({});
        values::set("values.global.meshID=m", &mut values).unwrap();
        values::set("gateways.egress.enabled=true", &mut values).unwrap();
        assert_eq!(
            values,
            json!({"values": {"global": {"meshID": "m"}}, "gateways": {"egress": {"enabled": true}}})
        );
        assert!(values::set("novalue", &mut values).is_err());
    }
    #[test]
    fn the_overlays_base_is_what_is_printed() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kustomize/base/weft.yaml");
        let (objects, _) =
            manifests(&json!({"profile": "production"}), "istio-system", "weft-install").unwrap();
        let text = yaml(&objects).unwrap();
        if std::env::var_os("WEFT_UPDATE_DOCS").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        let there = std::fs::read_to_string(&file).unwrap();
        assert_eq!(there, text, "write it anew: WEFT_UPDATE_DOCS=1 cargo test -p weft the_overlays_base");
    }

    /// What roles grant: verb, group, resource, name.
    fn granted(objects: &[Value]) -> std::collections::BTreeSet<String> {
        let list = |value: &Value| -> Vec<String> {
            let all = value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned());
            all.collect()
        };
        let mut all = std::collections::BTreeSet::new();
        let roles =
            objects.iter().filter(|one| ["ClusterRole", "Role"].contains(&one["kind"].as_str().unwrap()));
        for rule in roles.flat_map(|one| one["rules"].as_array().unwrap()) {
            for (verb, group) in list(&rule["verbs"])
                .iter()
                .flat_map(|v| list(&rule["apiGroups"]).into_iter().map(move |g| (v, g)))
            {
                for resource in list(&rule["resources"]) {
                    let names = list(&rule["resourceNames"]).join(",");
                    all.insert(format!("{verb} {resource}.{group} {names}").trim_end().to_owned());
                }
            }
        }
        all
    }

    #[test]
    fn the_chart_grants_what_reading_needs_and_what_it_asks_for_besides() {
        let reading = granted(&documents(include_str!("../../deploy/rbac/control-plane.yaml")).unwrap());
        let chart = granted(&objects(json!({})).unwrap());
        let missing: Vec<_> = reading.difference(&chart).collect();
        assert!(missing.is_empty(), "{missing:?}");
        let more: Vec<_> = chart.difference(&reading).map(String::as_str).collect();
        assert_eq!(
            more,
            [
                "create configmaps.",
                "create secrets.",
                "get configmaps. istio-ca-root-cert",
                "get mutatingwebhookconfigurations.admissionregistration.k8s.io istio-sidecar-injector",
                "get proxies/admin.weft.dev",
                "get secrets. weft-certificate-authority",
                "get validatingwebhookconfigurations.admissionregistration.k8s.io istio-validator-istio-system",
                "patch configmaps. istio-ca-root-cert",
                "patch mutatingwebhookconfigurations.admissionregistration.k8s.io istio-sidecar-injector",
                "patch validatingwebhookconfigurations.admissionregistration.k8s.io istio-validator-istio-system",
            ]
        );
    }

    #[test]
    fn who_makes_nothing_for_gateways_may_not() {
        let makes = |switch: Value| {
            let values = json!({"values": {"pilot": {"env": {"PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER": switch}}}});
            granted(&objects(values).unwrap())
        };
        let rights = ["deployments.apps", "services.", "serviceaccounts."]
            .map(|what| ["get", "create", "patch", "delete"].map(|verb| format!("{verb} {what}")));
        let mut rights: std::collections::BTreeSet<_> = rights.into_iter().flatten().collect();
        // Services are listed for the mesh as well.
        rights.extend(["deployments.apps", "serviceaccounts."].map(|what| format!("list {what}")));
        let all = granted(&objects(json!({})).unwrap());
        assert!(rights.is_subset(&all), "{all:?}");
        for switch in [json!("false"), json!(false)] {
            let rest: Vec<_> = all.difference(&makes(switch)).cloned().collect();
            assert_eq!(rest, rights.iter().cloned().collect::<Vec<_>>());
        }
        for switch in [json!("true"), json!(true)] {
            assert_eq!(makes(switch), all);
        }
    }
}
