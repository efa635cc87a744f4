//! A pod, and the pod with its sidecar.

use serde_json::{Map, Value, json};

use super::annotations::{self, Asked, Template};
use super::container::{INIT, PROXY, Parts};
use super::error::Refusal;
use super::policy::{self, REVISION, Why};
use super::proxy_config::{self, Interception, ProxyConfig};
use super::settings::Settings;
use super::workload::Workload;
use super::{image, merge, metrics, probes};
use crate::model::Labels;
use crate::model::networks::NETWORK_LABEL;
use crate::model::proxy_config::Layers;

/// The annotation that says what was put in: who has it is not injected again.
pub(super) const STATUS: &str = "sidecar.istio.io/status";

/// What came of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Injection {
    /// The pod with its sidecar, and what should be known of it.
    Done(Box<Value>, Vec<String>),
    /// It stays as it is.
    Left(Why),
}

/// Injects a pod, or the template of pods: an object with `metadata` and `spec`.
///
/// # Errors
/// All reasons why it cannot be injected as it asks to be.
pub fn inject(pod: &Value, workload: &Workload, settings: &Settings) -> Result<Injection, Vec<Refusal>> {
    if let Some(why) = policy::why_not(pod, &workload.namespace, settings).map_err(|wrong| vec![wrong])? {
        return Ok(Injection::Left(why));
    }
    let mut wrong = Vec::new();
    let mut pod = pod.clone();
    if !pod["spec"]["containers"].is_array() {
        return Err(vec![Refusal::new("spec.containers", "missing", "a pod has at least one container")]);
    }
    if !(pod["metadata"].is_object() || pod["metadata"].is_null()) {
        return Err(vec![Refusal::new("metadata", "no object", "it has a name, labels and annotations")]);
    }
    for part in ["labels", "annotations"] {
        if !pod["metadata"][part].is_object() {
            pod["metadata"][part] = json!({});
        }
    }
    let found = pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    let mut asked = annotations::read(&found, &mut wrong);
    let labels = pod["metadata"]["labels"].as_object().into_iter().flatten();
    let labels: Labels =
        labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
    let layers = Layers::of(&settings.proxy_configs, &settings.root_namespace, &workload.namespace, &labels);
    let config = proxy_config::read(
        &settings.default_config,
        asked.config.take(),
        &layers,
        &settings.discovery_address,
        &mut wrong,
    );
    let outcome = assemble(&mut pod, &asked, &config, workload, settings, &mut wrong);
    match outcome {
        Some(warnings) if wrong.is_empty() => Ok(Injection::Done(Box::new(pod), warnings)),
        _ => Err(wrong),
    }
}

fn assemble(
    pod: &mut Value,
    asked: &Asked,
    config: &ProxyConfig,
    workload: &Workload,
    settings: &Settings,
    wrong: &mut Vec<Refusal>,
) -> Option<Vec<String>> {
    let gateway = asked.template == Template::Gateway;
    let own = take_own(&mut pod["spec"]);
    let native = !gateway && asked.native.unwrap_or(settings.native_sidecars);
    let mode = asked.interception.unwrap_or(config.interception);
    let status_port = asked.status_port.or(config.status_port).unwrap_or(settings.proxy.status_port);
    let mut image = settings.image.clone();
    if let Some(by) = &asked.image {
        image = image::replaced(&image, by);
    }
    let log_level =
        asked.log_level.clone().map(Ok).unwrap_or_else(|| {
            annotations::log_level("sidecar.istio.io/logLevel", &settings.proxy.log_level)
        });
    let log_level = log_level.map_err(|error| wrong.push(error)).ok()?;

    let mut warnings = Vec::new();
    let mut env = environment(pod, workload);
    if !native {
        env.extend(ending(pod, config, workload, gateway, &mut warnings));
    }
    if !gateway && status_port != 0 {
        let rewrites = asked.rewrite_probes.unwrap_or(settings.rewrite_app_http_probe);
        if rewrites && let Some(probers) = rewrite_probes(&mut pod["spec"], status_port, wrong) {
            env.push((probes::VARIABLE, probers));
        }
        if asked.merge_metrics.unwrap_or(true)
            && let Some(annotations) = pod["metadata"]["annotations"].as_object_mut()
        {
            match metrics::merge(annotations, status_port) {
                Ok(before) => env.extend(before),
                Err(error) => wrong.push(error),
            }
        }
    }
    let parts = Parts { settings, asked, config, image, log_level, native, mode, status_port, env };
    let mut proxy = parts.proxy();
    if let Some(mut own) = own {
        if own["image"] == "auto" || own["image"] == "" {
            own.as_object_mut()?.remove("image");
        }
        merge::lay(&mut proxy, &own);
    }
    let (init, volumes) = (parts.init(), parts.volumes());
    let spec = pod["spec"].as_object_mut()?;
    let status = status(&init, native, &volumes, settings);
    place(spec, proxy, init, native, config.hold && !gateway, volumes);
    if !settings.image_pull_secrets.is_empty() {
        let secrets: Vec<_> = settings.image_pull_secrets.iter().map(|name| json!({"name": name})).collect();
        let all = spec.entry("imagePullSecrets").or_insert_with(|| json!([]));
        let mut wanted = json!({"imagePullSecrets": all.take()});
        merge::lay(&mut wanted, &json!({"imagePullSecrets": secrets}));
        *all = wanted["imagePullSecrets"].take();
    }
    metadata(pod, workload, settings, status, gateway);
    if mode == Interception::None && !gateway {
        warnings.push(
            "interceptionMode NONE: nothing is redirected, so the application must dial the proxy itself"
                .to_owned(),
        );
    }
    Some(warnings)
}

/// The pod's own container of the proxy's name: what it says counts before what we would write.
fn take_own(spec: &mut Value) -> Option<Value> {
    let mut taken = None;
    for list in ["containers", "initContainers"] {
        if let Some(list) = spec[list].as_array_mut()
            && let Some(index) = list.iter().position(|one| one["name"] == PROXY)
        {
            taken = Some(list.remove(index));
        }
    }
    if spec["initContainers"].is_null()
        && let Some(spec) = spec.as_object_mut()
    {
        spec.remove("initContainers");
    }
    taken
}

/// Containers of the application that run as long as the pod does, and where each stands.
fn applications(spec: &mut Value) -> Vec<(String, &mut Value)> {
    let mut all = Vec::new();
    let Some(spec) = spec.as_object_mut() else { return all };
    for (key, list) in spec.iter_mut() {
        if !matches!(key.as_str(), "containers" | "initContainers") {
            continue;
        }
        for (index, one) in list.as_array_mut().into_iter().flatten().enumerate() {
            if key == "containers" || one["restartPolicy"] == "Always" {
                all.push((format!("spec.{key}[{index}]"), one));
            }
        }
    }
    all
}

fn rewrite_probes(spec: &mut Value, port: u16, wrong: &mut Vec<Refusal>) -> Option<String> {
    let mut probers = Map::new();
    for (at, container) in applications(spec) {
        probes::rewrite(container, &at, port, &mut probers, wrong);
    }
    (!probers.is_empty()).then(|| Value::Object(probers).to_string())
}

/// What the proxy tells the control plane of its pod.
fn environment(pod: &Value, workload: &Workload) -> Vec<(&'static str, String)> {
    let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<_> = containers.iter().filter_map(|one| one["name"].as_str()).collect();
    let ports: Vec<_> = containers
        .iter()
        .flat_map(|one| one["ports"].as_array().into_iter().flatten())
        .map(|port| {
            let mut told = json!({"containerPort": port["containerPort"]});
            for key in ["name", "protocol"] {
                if let Some(value) = port.get(key) {
                    told[key] = value.clone();
                }
            }
            told
        })
        .collect();
    let mut env = vec![
        ("ISTIO_META_APP_CONTAINERS", names.join(",")),
        ("ISTIO_META_POD_PORTS", Value::Array(ports).to_string()),
    ];
    // A pod's own word goes before the installation's.
    if let Some(network) =
        pod["metadata"]["labels"][NETWORK_LABEL].as_str().filter(|network| !network.is_empty())
    {
        env.push(("ISTIO_META_NETWORK", network.to_owned()));
    }
    if !workload.owner.name.is_empty() {
        env.push(("ISTIO_META_WORKLOAD_NAME", workload.owner.name.clone()));
        if !workload.namespace.is_empty() {
            env.push(("ISTIO_META_OWNER", workload.path()));
        }
    }
    env
}

/// When a proxy ends that kubelet does not keep for last: with the pod's own deadline, and with its job.
fn ending(
    pod: &Value,
    config: &ProxyConfig,
    workload: &Workload,
    gateway: bool,
    warnings: &mut Vec<String>,
) -> Vec<(&'static str, String)> {
    let mut env = Vec::new();
    let said = |name: &str| config.variable(name).is_some();
    if let Some(seconds) = config.termination_drain {
        env.push(("TERMINATION_DRAIN_DURATION_SECONDS", seconds.to_string()));
    } else if !said("EXIT_ON_ZERO_ACTIVE_CONNECTIONS") && !said("TERMINATION_DRAIN_DURATION_SECONDS") {
        let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
        env.push(("TERMINATION_GRACE_PERIOD", grace.to_string()));
    }
    let ends =
        workload.ends() || matches!(pod["spec"]["restartPolicy"].as_str(), Some("Never" | "OnFailure"));
    if ends && !gateway && !said("EXIT_WITH_APPLICATION") {
        if pod["spec"]["shareProcessNamespace"] == true {
            env.push(("EXIT_WITH_APPLICATION", "true".to_owned()));
        } else {
            warnings.push(
                "a sidecar that is not native keeps the pod of a job running: set sidecar.istio.io/nativeSidecar to \"true\", or \
                 shareProcessNamespace, or have the job ask http://127.0.0.1:15020/quitquitquit by POST when it is done"
                    .to_owned(),
            );
        }
    }
    env
}

/// Puts containers and volumes where they belong.
fn place(
    spec: &mut Map<String, Value>,
    proxy: Value,
    init: Option<Value>,
    native: bool,
    hold: bool,
    volumes: Vec<Value>,
) {
    // Other init containers come behind: they have the redirection, and with a native sidecar the proxy, too.
    let mut first: Vec<Value> = init.into_iter().collect();
    let containers = spec.entry("containers").or_insert_with(|| json!([]));
    if native {
        first.push(proxy);
    } else if let Some(list) = containers.as_array_mut() {
        // Containers start in their order, and each waits for the postStart hook of the one before.
        let index = if hold { 0 } else { list.len() };
        list.insert(index, proxy);
    }
    if !first.is_empty() {
        let list = spec.entry("initContainers").or_insert_with(|| json!([]));
        if let Some(others) = list.as_array_mut() {
            others.retain(|one| one["name"] != INIT);
            first.append(others);
        }
        *list = first.into();
    }
    let own = spec.remove("volumes").unwrap_or_else(|| json!([]));
    let own = own.as_array().cloned().unwrap_or_default();
    // A volume of the pod's own with such a name is meant to stand in its place.
    let new = volumes.into_iter().filter(|one| own.iter().all(|known| known["name"] != one["name"]));
    let all: Vec<Value> = own.iter().cloned().chain(new).collect();
    spec.insert("volumes".to_owned(), all.into());
}

fn status(init: &Option<Value>, native: bool, volumes: &[Value], settings: &Settings) -> String {
    let mut inits: Vec<&str> = init.iter().map(|_| INIT).collect();
    let mut containers = Vec::new();
    if native {
        inits.push(PROXY);
    } else {
        containers.push(PROXY);
    }
    let volumes: Vec<_> = volumes.iter().map(|one| one["name"].clone()).collect();
    let secrets = (!settings.image_pull_secrets.is_empty()).then_some(&settings.image_pull_secrets);
    json!({"initContainers": inits, "containers": containers, "volumes": volumes, "imagePullSecrets": secrets,
        "revision": settings.revision})
    .to_string()
}

/// Labels by which the mesh knows the pod, and what kubectl shows first.
fn metadata(pod: &mut Value, workload: &Workload, settings: &Settings, status: String, gateway: bool) {
    let first = pod["spec"]["containers"].as_array().and_then(|list| {
        list.iter()
            .filter_map(|one| one["name"].as_str())
            .find(|name| gateway || *name != PROXY)
            .map(str::to_owned)
    });
    let labels = pod["metadata"]["labels"].clone();
    let label = |names: &[&str]| {
        names.iter().find_map(|name| labels[name].as_str().filter(|text| !text.is_empty())).map(str::to_owned)
    };
    let name = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let name = name.unwrap_or_else(|| workload.owner.name.clone());
    let revision = label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    let mut wanted = vec![
        ("service.istio.io/canonical-name", name),
        ("service.istio.io/canonical-revision", revision.unwrap_or_else(|| "latest".to_owned())),
    ];
    if !gateway {
        wanted.push(("security.istio.io/tlsMode", "istio".to_owned()));
    }
    if !settings.network.is_empty() {
        wanted.push((NETWORK_LABEL, settings.network.clone()));
    }
    for (key, value) in wanted {
        if labels[key].is_null() && !value.is_empty() {
            // A label has at most 63 characters.
            let value: String = value.chars().take(63).collect();
            pod["metadata"]["labels"][key] = value.trim_end_matches(['-', '.', '_']).into();
        }
    }
    let annotations = &mut pod["metadata"]["annotations"];
    for key in ["kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"] {
        if let (true, Some(first)) = (annotations[key].is_null(), &first) {
            annotations[key] = first.as_str().into();
        }
    }
    annotations[REVISION] = settings.revision.as_str().into();
    annotations[STATUS] = status.into();
}
