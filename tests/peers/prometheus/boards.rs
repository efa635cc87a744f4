//! Istio's own dashboards (mesh, service, workload, control plane), as they lie in its module, at the running example mesh: every
//! query has an answer, or is rightly empty.
//!
//! `tests/peers/install --long` brings them, and `.ci/long` runs this.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use regex::{Captures, Regex};
use serde_json::Value;

use super::{LOOPBACK, Prometheus, all_answered, load};
use crate::meshes;
use crate::programs::{peer, until};

const BOARDS: [&str; 4] = [
    "istio-mesh-dashboard.gen.json",
    "istio-service-dashboard.json",
    "istio-workload-dashboard.json",
    "pilot-dashboard.gen.json",
];
/// As many queries as there have to be.
const LEAST: usize = 150;
/// What may be empty, and why.
const RIGHTLY_EMPTY: [(&str, &str); 8] = [
    (
        "reporter=\"source\", connection_security_policy=\"mutual_tls\"",
        "a client's end says unknown, as in Istio",
    ),
    ("destination_principal!~", "every server has shown who it is"),
    ("istio_tcp_", "the example mesh has no TCP services"),
    ("connection_security_policy!=\"mutual_tls\"", "every edge has mutual TLS"),
    ("container_", "of the node's cAdvisor"),
    ("go_", "of a control plane in Go"),
    ("pilot_k8s_", "the source is a directory, not an API server"),
    ("galley_validation_", "there is no API server to ask the webhook"),
];

/// Everything that a board asks for.
fn expressions(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| expressions(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

/// What stands for the boards' variables: an edge of the mesh whose server calls others itself.
fn variables(prometheus: &Prometheus) -> BTreeMap<&'static str, String> {
    let sources: BTreeSet<String> = prometheus
        .query("sum by (source_workload) (istio_requests_total{reporter=\"source\"})")
        .into_iter()
        .filter_map(|(labels, _)| labels.get("source_workload").cloned())
        .collect();
    let edges = prometheus.query("istio_requests_total{reporter=\"destination\",response_code=\"200\"}");
    let edge =
        edges.into_iter().map(|(labels, _)| labels).find(|l| sources.contains(&l["destination_workload"]));
    let edge = edge.expect("a workload that is called and calls");
    let of = |label: &str| edge[label].clone();
    BTreeMap::from([
        ("service", of("destination_service")),
        ("qrep", "source|destination".to_owned()),
        ("srccluster", of("source_cluster")),
        ("srcns", of("source_workload_namespace")),
        ("srcwl", of("source_workload")),
        ("dstcluster", of("destination_cluster")),
        ("dstns", of("destination_workload_namespace")),
        ("dstwl", of("destination_workload")),
        ("namespace", of("destination_workload_namespace")),
        ("workload", of("destination_workload")),
        ("dstsvc", ".*".to_owned()),
        ("__rate_interval", "30s".to_owned()),
    ])
}

fn asked(variables: &BTreeMap<&str, String>) -> Vec<(String, String)> {
    let directory = peer("WEFT_ISTIO_SOURCE").join("manifests/addons/dashboards");
    let (variable, mut all) = (Regex::new(r"\$(\w+)").unwrap(), Vec::new());
    for name in BOARDS {
        let board: Value =
            serde_json::from_str(&std::fs::read_to_string(directory.join(name)).unwrap()).unwrap();
        let mut found = BTreeSet::new();
        expressions(&board["panels"], &mut found);
        for query in found {
            let query = variable.replace_all(&query, |found: &Captures<'_>| {
                let value = variables.get(&found[1]);
                value.unwrap_or_else(|| panic!("{name}: ${} in {query}", &found[1])).clone()
            });
            all.push((name.to_owned(), query.into_owned()));
        }
    }
    all
}

#[test]
#[ignore = "Istio's dashboards come with programs that take minutes to build"]
fn every_query_of_istios_own_dashboards_has_an_answer() {
    meshes::runtime().block_on(async {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ecotrack");
        let mesh = meshes::start(&source, LOOPBACK).await;
        let gateway: SocketAddr = format!("127.{LOOPBACK}.2.1:8080").parse().unwrap();
        let prometheus = Prometheus::start(&mesh);
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let loading = tokio::spawn(load(gateway, stopped));
        let both = "istio_requests_total{reporter=\"destination\",response_code=\"200\"}";
        until("both ends of edges are scraped", || prometheus.query(both).len() > 2);
        tokio::task::block_in_place(|| {
            let open = asked(&variables(&prometheus));
            assert!(open.len() >= LEAST, "only {} queries", open.len());
            all_answered(&prometheus, open, &RIGHTLY_EMPTY);
        });
        stop.send(true).unwrap();
        loading.await.unwrap();
        drop(prometheus);
        mesh.shutdown().await.unwrap();
    });
}
