//! Several control planes on one API server; and the example mesh, on a cluster as in a directory.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::Server;
use super::mesh::{self, CART, Mesh, SHOP};
use crate::programs::{Process, get, weft};

fn start(server: &Server, identity: &str, at: &str) -> Process {
    let mut control = mesh::control(&server.kubeconfig("administrator"), at);
    let mut control = Process::start(identity, control.args(["--identity", identity]), server.directory());
    control.wait("ready", || mesh::ready(at));
    control
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn one_of_several_leads_and_another_follows_when_it_goes() {
    let server = Server::start("127.36.3.1");
    server.apply(SHOP);
    server.kubectl(&["apply", "-f", &mesh::crds()]);
    mesh::established(&server);
    let leader = || {
        let lease = server
            .try_kubectl(&["-n", "istio-system", "get", "lease", "weft-control-leader", "-o", "json"], "");
        let lease: Value = serde_json::from_str(&lease.unwrap_or_default()).unwrap_or_default();
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    };
    let mut first = start(&server, "first", "127.36.3.2");
    wait("the first leads", || leader() == "first");
    let second = start(&server, "second", "127.36.3.3");

    // One that ends gives the lease back.
    first.signal(Signal::TERM);
    assert!(first.ended(Duration::from_secs(20)), "{}", first.log());
    wait("the second leads", || leader() == "second");
    // One that is killed does not: another one waits until the lease is over.
    drop(second);
    let third = start(&server, "third", "127.36.3.4");
    wait("the third leads", || leader() == "third");

    let rule = |mode: &str| {
        format!(
            "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: shop}}
spec: {{mtls: {{mode: {mode}}}}}
"
        )
    };
    let condition = |number: usize| {
        let rule = server.get("PeerAuthentication", "shop", "default");
        let status = &rule["status"];
        let current = status["observedGeneration"] == rule["metadata"]["generation"];
        current.then(|| status["conditions"][number].clone())
    };
    server.apply(&rule("STRICT"));
    wait("the status is written", || condition(0).is_some_and(|c| c["status"] == "True"));
    assert_eq!(condition(1).unwrap()["reason"], "Delivered");
    server.apply(&rule("STRICT").replace("mode:", "mood:"));
    wait("the fault is written", || condition(0).is_some_and(|c| c["status"] == "False"));
    let message = condition(0).unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("spec.mtls.mood: unknown field"), "{message}");
    assert_eq!(condition(1).unwrap()["reason"], "EarlierVersion");
    drop(third);
}

#[test]
fn control_planes_that_are_killed_one_after_the_other_lose_nothing_of_what_changes_meanwhile() {
    let server = Server::start("127.36.5.1");
    server.apply(SHOP);
    let addresses: Vec<String> = (1..=8).map(|n| format!("10.88.5.{n}")).collect();
    // No pods: what matters is who is told of them.
    let of = |count: usize| {
        let bare = mesh::slice(&[]);
        let listed: String = addresses[..count].iter().map(|a| format!("- {{addresses: [{a}]}}\n")).collect();
        server.apply(&bare.replace("endpoints: []\n", &format!("endpoints:\n{listed}")));
    };
    let wanted = |count: usize| addresses[..count].iter().map(|a| format!("{a}:8080")).collect::<Vec<_>>();
    of(1);
    let kubeconfig = server.kubeconfig("administrator");
    let mut all: Vec<Mesh> = (2..5)
        .map(|n| Mesh::start(&server, &kubeconfig, &format!("127.36.5.{n}"), &format!("127.36.5.1{n}")))
        .collect();
    let mut count = 1;
    for killed in 0..all.len() {
        all[killed].replace(&server, &kubeconfig, || {
            count += 1;
            of(count);
        });
        count += 1;
        of(count);
        for one in &all {
            let wanted = wanted(count);
            one.wait_for_endpoints(CART, &wanted.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
    of(1);
    for one in &all {
        one.wait_for_endpoints(CART, &["10.88.5.1:8080"]);
    }
}

/// Services by name, with what stands behind them; their addresses are the API server's affair.
fn registry(at: &str) -> Value {
    let (_, text) = get(format!("{at}:8080").parse().unwrap(), "/debug/endpointz").unwrap();
    let mut all: Vec<Value> = serde_json::from_str(&text).unwrap();
    for service in &mut all {
        let service = service.as_object_mut().unwrap();
        service.remove("addresses");
        service.remove("allocated");
        let by_address = |endpoint: &Value| endpoint["address"].as_str().unwrap().to_owned();
        service["endpoints"].as_array_mut().unwrap().sort_by_key(by_address);
    }
    all.retain(|service| service["namespace"] != "default");
    all.sort_by_key(|service| service["hostname"].as_str().unwrap().to_owned());
    all.into()
}

#[test]
fn the_example_mesh_is_the_same_on_a_cluster() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/ecotrack");
    let server = Server::start("127.36.4.1");
    server.kubectl(&["apply", "-f", &mesh::crds()]);
    mesh::established(&server);
    server.kubectl(&["create", "namespace", "istio-system"]);
    server.kubectl(&["create", "namespace", "ecotrack"]);
    server.kubectl(&["apply", "-f", directory]);
    let cluster = start(&server, "cluster", "127.36.4.2");
    let mut files: Command = weft();
    files.args(["control", "--config-dir", directory, "--address", "127.36.4.3", "--ca-keys", "p256"]);
    let mut files = Process::start("files", &mut files, server.directory());
    files.wait("ready", || mesh::ready("127.36.4.3"));
    assert_eq!(registry("127.36.4.2"), registry("127.36.4.3"), "{}", cluster.log());
    let (_, read) = get("127.36.4.2:8080".parse().unwrap(), "/debug/configz").unwrap();
    let read: Value = serde_json::from_str(&read).unwrap();
    let errors: Vec<_> =
        read["diagnostics"].as_array().unwrap().iter().filter(|d| d["severity"] == "error").collect();
    assert_eq!(json!(errors), json!([]));
    // All of them are told so.
    for kind in
        ["virtualservice", "destinationrule", "gateway", "peerauthentication", "sidecar", "workloadentry"]
    {
        wait(&format!("each {kind} is valid"), || {
            let listed = server.kubectl(&["get", kind, "-A", "-o", "json"]);
            let listed: Value = serde_json::from_str(&listed).unwrap();
            let items = listed["items"].as_array().unwrap();
            !items.is_empty() && items.iter().all(|item| item["status"]["conditions"][0]["status"] == "True")
        });
    }
}
