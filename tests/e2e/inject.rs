//! `weft inject`: from a file or standard input to the same with sidecars; and what it writes, the proxy takes.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::support::{WEFT, stderr, stdout, weft};

const FILE: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: settings} # stays
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata:
      labels: {app: web}
      annotations: {traffic.sidecar.istio.io/excludeOutboundPorts: \"3306\"}
    spec: {containers: [{name: web, image: web, readinessProbe: {httpGet: {port: 8080}}}]}
";

fn from_stdin(text: &str, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(WEFT);
    command.args(["inject", "-f", "-"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_file_and_standard_input_are_injected_alike_and_twice_is_once() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("deploy.yaml");
    std::fs::write(&at, FILE).unwrap();
    let output = weft(&["inject", "-f", at.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let yaml = stdout(&output);
    assert!(yaml.contains("metadata: {name: settings} # stays\n"), "{yaml}");
    assert!(yaml.contains("name: istio-proxy") && yaml.contains("restartPolicy: Always"), "{yaml}");
    assert_eq!(stdout(&from_stdin(FILE, &[])), yaml);
    let again = from_stdin(&yaml, &[]);
    assert_eq!(stdout(&again), yaml);
    assert!(stderr(&again).contains("Deployment shop/web: not injected: it has a sidecar already"));

    let flags = ["--output", "json", "--image", "r.example/p:1", "--native-sidecars", "false"];
    let value: Value = serde_json::from_slice(&from_stdin(FILE, &flags).stdout).unwrap();
    let pod = &value["items"][1]["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][1]["image"], "r.example/p:1");
    assert_eq!(pod["initContainers"][0]["name"], "istio-init");
}

#[test]
fn what_the_mesh_says_of_its_proxies_holds_by_hand_as_well() {
    let config = |namespace: &str, workers: u32| {
        format!(
            "apiVersion: networking.istio.io/v1beta1\nkind: ProxyConfig\nmetadata: {{name: all, namespace: {namespace}}}\nspec: {{concurrency: {workers}}}\n---\n"
        )
    };
    let workers = |text: &str, arguments: &[&str]| {
        let output = from_stdin(text, &[arguments, &["--output", "json"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        let pod = all["items"].as_array().unwrap().iter().find(|item| item["kind"] == "Deployment").unwrap();
        let proxy = &pod["spec"]["template"]["spec"]["initContainers"];
        let proxy = proxy.as_array().unwrap().iter().find(|c| c["name"] == "istio-proxy").unwrap();
        let variable = proxy["env"].as_array().unwrap().iter().find(|v| v["name"] == "PROXY_CONFIG").unwrap();
        let config: Value = serde_json::from_str(variable["value"].as_str().unwrap()).unwrap();
        config["concurrency"].as_u64()
    };
    assert_eq!(workers(FILE, &[]), None);
    assert_eq!(workers(&(config("shop", 3) + FILE), &[]), Some(3), "beside the workload");
    let mesh = tempfile::tempdir().unwrap();
    std::fs::write(mesh.path().join("mesh.yaml"), config("istio-system", 2)).unwrap();
    let directory = ["--config-dir", mesh.path().to_str().unwrap()];
    assert_eq!(workers(FILE, &directory), Some(2), "of the mesh");
    assert_eq!(workers(&(config("shop", 3) + FILE), &directory), Some(3), "the narrower one");
    std::fs::write(
        mesh.path().join("mesh.yaml"),
        config("istio-system", 2).replace("concurrency", "concurency"),
    )
    .unwrap();
    let output = from_stdin(FILE, &directory);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(stderr(&output).contains("spec.concurency: unknown field"), "{}", stderr(&output));
}

#[test]
fn what_cannot_be_injected_is_said_and_nothing_is_printed() {
    let output = from_stdin(&FILE.replace("excludeOutboundPorts", "excludeOutboundPort"), &[]);
    assert!(!output.status.success() && output.stdout.is_empty());
    let error = stderr(&output);
    for words in [
        "standard input",
        "Deployment shop/web",
        "spec.template.metadata.annotations",
        "excludeOutboundPorts?",
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
    let output = weft(&["inject", "-f", "/nowhere.yaml"]);
    assert!(!output.status.success() && stderr(&output).contains("/nowhere.yaml"), "{}", stderr(&output));
}

/// Arguments of a container of the injected pod.
fn words(pod: &Value, name: &str) -> Vec<String> {
    let all = ["initContainers", "containers"]
        .into_iter()
        .flat_map(|list| pod[list].as_array().into_iter().flatten());
    let one = all.into_iter().find(|one| one["name"] == name).unwrap();
    serde_json::from_value(one["args"].clone()).unwrap()
}

#[test]
fn the_redirection_and_the_proxy_understand_what_they_are_told() {
    let value: Value = serde_json::from_slice(&from_stdin(FILE, &["--output", "json"]).stdout).unwrap();
    let pod = &value["items"][1]["spec"]["template"]["spec"];
    let init = words(pod, "istio-init");
    let mut arguments: Vec<&str> = init.iter().map(String::as_str).collect();
    arguments.push("--dry-run");
    let output = weft(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("3306"), "{}", stdout(&output));

    // The proxy goes past its arguments and stops where the pod's files are missing.
    let mut command = Command::new(WEFT);
    command.arg("proxy").args(words(pod, "istio-proxy"));
    let environment = pod["initContainers"][1]["env"].as_array().unwrap();
    for one in environment.iter().filter(|one| one["value"].is_string()) {
        let name = one["name"].as_str().unwrap();
        command.env(name, one["value"].as_str().unwrap());
    }
    let nowhere = tempfile::tempdir().unwrap();
    std::fs::create_dir(nowhere.path().join("pod")).unwrap();
    std::fs::write(nowhere.path().join("pod/labels"), "broken\n").unwrap();
    let output = command
        .env("INSTANCE_IP", "127.0.0.1")
        .arg("--pod-info")
        .arg(nowhere.path().join("pod"))
        .output()
        .unwrap();
    let error = stderr(&output);
    assert!(!output.status.success() && error.contains("--pod-info"), "{error}");
}
