//! Several control planes on one API server; and the example mesh, on a cluster as in a directory.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::Server;
use super::mesh::{self, CART, Mesh, SHOP};
use crate::programs::{Process, get, weft};
use crate::streams::Streams;

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

/// What a Kubernetes Service is to those who connect: each connection goes to the next of those behind it that take it.
struct Balancer {
    at: SocketAddr,
    behind: Arc<Mutex<Vec<SocketAddr>>>,
    over: Arc<AtomicBool>,
}

impl Balancer {
    fn start(ip: &str, behind: &[&str]) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let behind: Vec<SocketAddr> =
            behind.iter().map(|ip| format!("{ip}:15010").parse().unwrap()).collect();
        let behind = Arc::new(Mutex::new(behind));
        let over = Arc::new(AtomicBool::new(false));
        let (known, ended, turn) = (behind.clone(), over.clone(), AtomicUsize::new(0));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if ended.load(Relaxed) {
                    return;
                }
                let all = known.lock().unwrap().clone();
                let first = turn.fetch_add(1, Relaxed);
                let taken =
                    (0..all.len()).find_map(|n| TcpStream::connect(all[(first + n) % all.len()]).ok());
                // Where nobody takes it, the client is let go and comes again.
                let Some(server) = taken else { continue };
                for (from, to) in [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))] {
                    let (Ok(from), Ok(to)) = (from, to) else { continue };
                    std::thread::spawn(move || carry(from, to));
                }
            }
        });
        Self { at, behind, over }
    }

    fn add(&self, ip: &str) {
        self.behind.lock().unwrap().push(format!("{ip}:15010").parse().unwrap());
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        let _ = TcpStream::connect(self.at);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// A number of a control plane's metrics.
fn number(at: &str, name: &str) -> f64 {
    let (_, text) = get(format!("{at}:15014").parse().unwrap(), "/metrics").unwrap();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

#[test]
fn proxies_spread_over_replicas_that_come_and_lose_nothing_when_one_is_killed() {
    const PROXIES: usize = 60;
    let server = Server::start("127.36.6.1");
    server.apply(SHOP);
    let kubeconfig = server.kubeconfig("administrator");
    let start = |n: usize| {
        let at = format!("127.36.6.{}", 10 + n);
        let mut command = mesh::control(&kubeconfig, &at);
        command.args(["--identity", &format!("replica-{n}"), "--rebalance-rate", "20"]);
        Process::start(&format!("replica-{n}"), &mut command, server.directory())
    };
    let of = |count: usize| {
        let bare = mesh::slice(&[]);
        let listed: String = (1..=count).map(|n| format!("- {{addresses: [10.88.6.{n}]}}\n")).collect();
        server.apply(&bare.replace("endpoints: []\n", &format!("endpoints:\n{listed}")));
    };
    let wanted = |count: usize| (1..=count).map(|n| format!("10.88.6.{n}")).collect::<Vec<_>>();
    of(1);
    let places: Vec<String> = (0..5).map(|n| format!("127.36.6.{}", 10 + n)).collect();
    let mut replicas: Vec<Process> = (0..2).map(start).collect();
    for (replica, at) in replicas.iter_mut().zip(&places) {
        replica.wait("ready", || mesh::ready(at));
    }
    let balancer = Balancer::start("127.36.6.2", &[&places[0], &places[1]]);
    let streams = Streams::start(balancer.at, PROXIES);
    let all_have = |what: &str, count: usize| {
        wait(what, || streams.with(1, CART, &wanted(count)) == PROXIES);
    };
    let each = |places: &[String]| places.iter().map(|at| number(at, "pilot_xds{")).collect::<Vec<_>>();
    all_have("all have the first state", 1);
    assert_eq!(each(&places[..2]).iter().sum::<f64>(), PROXIES as f64);

    // Three more come, and endpoints change all the while.
    replicas.extend((2..5).map(start));
    for (replica, at) in replicas.iter_mut().zip(&places).skip(2) {
        replica.wait("ready", || mesh::ready(at));
        balancer.add(at);
    }
    let (mut count, began) = (1, Instant::now());
    wait("each has its share", || {
        count = count % 5 + 1;
        of(count);
        let each = each(&places);
        let share = PROXIES.div_ceil(5) as f64;
        each.iter().sum::<f64>() == PROXIES as f64 && each.iter().all(|n| *n > 0.0 && *n <= share + 2.0)
    });
    println!(
        "{:?} after {:?}, in which {} came again",
        each(&places),
        began.elapsed(),
        streams.connected() - PROXIES
    );
    all_have("all have the last state", count);
    let moved = streams.connected() - PROXIES;
    // No upper bound: a machine that is slow looks at numbers that are old, and sends more. That it ends was seen above.
    assert!(moved >= PROXIES / 3, "{moved} came again");

    // One is killed while a change is on its way: its proxies get it from the others.
    let mut killed = replicas.remove(3);
    of(7);
    killed.end();
    of(8);
    all_have("all have what changed meanwhile", 8);
    let left: Vec<String> = places.iter().filter(|at| **at != places[3]).cloned().collect();
    wait("all are with the others", || each(&left).iter().sum::<f64>() == PROXIES as f64);
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
