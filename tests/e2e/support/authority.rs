//! A pair whose certificates live for seconds, and what an operator and an observer do to its authority.

use std::collections::BTreeSet;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use weft::up::Mesh;

use super::http::get;
use super::pair::{Pair, workload};
use super::{WEFT, stderr, stdout, weft};

pub fn short_lived(name: &str, x: u8, seconds: u64) -> String {
    let annotation = format!("proxy.istio.io/config: 'proxyMetadata: {{SECRET_TTL: {seconds}s}}'");
    workload(name, x, "weft app").replace("annotations:\n", &format!("annotations:\n    {annotation}\n"))
}

pub fn pair_for(loopback: u8, seconds: u64) -> Pair {
    let pair = Pair::new(loopback);
    pair.write("front.yaml", &short_lived("front", 10, seconds));
    pair.write("back.yaml", &short_lived("back", 11, seconds));
    pair
}

/// `weft ca ...` on a pair's authority; what it answers.
pub fn ca(pair: &Pair, arguments: &[&str]) -> Value {
    let output = ca_output(pair, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_str(stdout(&output).lines().last().unwrap_or_default()).unwrap()
}

pub fn ca_output(pair: &Pair, arguments: &[&str]) -> Output {
    let state = pair.state_dir();
    let mut all = vec!["ca"];
    all.extend(arguments);
    all.extend(["--state-dir", state.to_str().unwrap(), "--output", "json"]);
    weft(&all)
}

/// A workload's `/certs`: serial numbers of its leaf, its intermediate, and the roots that it trusts.
pub fn certs(mesh: &Mesh, workload: &str) -> (String, String, BTreeSet<String>) {
    let page: Value =
        serde_json::from_str(&get(mesh.workload(workload).unwrap().admin(), "/certs").unwrap().1).unwrap();
    let serial = |v: &Value| v["serial_number"].as_str().unwrap_or_default().to_owned();
    let first = &page["certificates"][0];
    let roots = first["ca_cert"].as_array().unwrap().iter().map(serial).collect();
    (serial(&first["cert_chain"][0]), serial(&first["cert_chain"][1]), roots)
}

pub fn metric(mesh: &Mesh, workload: &str, name: &str, label: &str) -> Vec<i64> {
    let (_, text) = get(mesh.workload(workload).unwrap().admin(), "/stats/prometheus").unwrap();
    let lines = text.lines().filter(|l| l.starts_with(&format!("{name}{{")) && l.contains(label));
    lines.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as i64).collect()
}

/// `weft ca rotate-root`, running.
pub fn rotate_root(pair: &Pair) -> Child {
    let state = pair.state_dir();
    let arguments = ["ca", "rotate-root", "--output", "json", "--state-dir", state.to_str().unwrap()];
    Command::new(WEFT).args(arguments).stdout(Stdio::piped()).spawn().unwrap()
}
