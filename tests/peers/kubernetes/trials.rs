//! Versions on trial where several control planes are: one decides, the others follow, and another goes on when it is killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Server;
use super::mesh;
use crate::programs::{Process, until, weft_proxy};

const CLIENT: &str = "127.36.16.10";
const CONTROLS: [(&str, &str); 3] =
    [("first", "127.36.16.2"), ("second", "127.36.16.3"), ("third", "127.36.16.4")];

/// A version of a service: it answers 500 to one request of so many, and 200 to the rest; 0: to none.
struct Version {
    port: u16,
    fails: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
}

impl Version {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (fails, asked): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
        let (every, count) = (fails.clone(), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (every, count) = (every.clone(), count.clone());
                std::thread::spawn(move || -> std::io::Result<()> {
                    let mut writer = stream.try_clone()?;
                    for line in BufReader::new(stream).lines() {
                        if line?.is_empty() {
                            let (number, every) =
                                (count.fetch_add(1, Ordering::Relaxed), every.load(Ordering::Relaxed));
                            let bad = every > 0 && number % every == 0;
                            let status = if bad { "500 Bad" } else { "200 OK" };
                            write!(writer, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")?;
                        }
                    }
                    Ok(())
                });
            }
        });
        Self { port, fails, asked }
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

/// A service with two versions, and a trial of the second one.
fn service(name: &str, old: &Version, new: &Version, more: &str, period: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: shop}}
spec:
  hosts: [{name}.com]
  ports: [{{number: 8080, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints:
    - {{address: 127.0.0.1, ports: {{http: {}}}, labels: {{version: v1}}}}
    - {{address: 127.0.0.1, ports: {{http: {}}}, labels: {{version: v2}}}}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficManagement
metadata: {{name: {name}, namespace: shop}}
spec:
  canaryDeployment:
    service: {name}.com
    stableVersion: v1
    canaryVersion: v2
    trafficSplit: {{stable: 50, canary: 50}}
    {more}
    successCriteria: {{errorRateThreshold: 0.5, minimumRequestCount: 10, evaluationPeriod: {period}}}
    rollbackCriteria: {{errorRateThreshold: 90}}
---
",
        old.port, new.port
    )
}

/// The client's pod, by which control planes know of it that it is not connected to; and where it listens.
fn client() -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: shop, labels: {{app: client, security.istio.io/tlsMode: istio}}}}
spec: {{serviceAccountName: cart, nodeName: n1, containers: [{{name: app, image: none}}]}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default, namespace: shop}}
spec:
  egress:
    - {{port: {{number: 8080, protocol: HTTP, name: http}}, bind: {CLIENT}, captureMode: NONE, hosts: ['*/*']}}
---
"
    )
}

fn ask(host: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((CLIENT, 8080))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn outcomes(server: &Server, name: &str) -> Vec<String> {
    let listed = server.kubectl(&[
        "-n",
        "shop",
        "get",
        "events",
        "--field-selector",
        &format!("involvedObject.kind=TrafficManagement,involvedObject.name={name}"),
        "--sort-by=.metadata.creationTimestamp",
        "-o",
        "jsonpath={.items[*].reason}",
    ]);
    listed.split_whitespace().map(str::to_owned).collect()
}

fn status(server: &Server, name: &str) -> Value {
    server.get("trafficmanagement", "shop", name)["status"]["canary"].clone()
}

fn leader(server: &Server) -> String {
    let args = ["-n", "istio-system", "get", "lease", "weft-control-leader", "-o"];
    let args: Vec<&str> = args.into_iter().chain(["jsonpath={.spec.holderIdentity}"]).collect();
    server.try_kubectl(&args, "").unwrap_or_default()
}

#[test]
fn trials_are_promoted_held_and_rolled_back_by_whoever_leads() {
    let server = Server::start("127.36.16.1");
    server.apply(mesh::SHOP);
    server.kubectl(&["apply", "-f", &mesh::crds()]);
    mesh::established(&server);
    let all: Vec<Version> = (0..6).map(|_| Version::start()).collect();
    let [old_good, good, old_so_so, so_so, old_bad, bad] = all.as_slice() else { unreachable!() };
    so_so.fails.store(3, Ordering::Relaxed);
    server.apply(&client());
    mesh::runs(&server, "client", CLIENT);
    server.apply(&service("good", old_good, good, "steps: [60]", "3s"));
    server.apply(&service("so-so", old_so_so, so_so, "", "2s"));
    server.apply(&service("bad", old_bad, bad, "", "300s"));

    let kubeconfig = server.kubeconfig("administrator");
    let mut controls: Vec<(&str, Process)> = Vec::new();
    for (identity, at) in CONTROLS {
        let mut command = mesh::control(&kubeconfig, at);
        let mut control =
            Process::start(identity, command.args(["--identity", identity]), server.directory());
        control.wait("ready", || mesh::ready(at));
        controls.push((identity, control));
        // So it is known who is which.
        until("the first leads", || !leader(&server).is_empty());
    }
    assert_eq!(leader(&server), "first");
    // It follows one that only hears of what is decided.
    let mut command = weft_proxy();
    command.args(["--xds-address", "127.36.16.4:15010", "--xds-plaintext", "--namespace", "shop"]);
    command.args(["--ip", CLIENT, "--admin-address", &format!("{CLIENT}:15000")]);
    command.args(["--interception-mode", "NONE", "--concurrency", "1"]);
    let mut proxy = Process::start("proxy", &mut command, server.directory());
    proxy.wait("serving", || ask("good.com").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")));
    let (stop, broken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = std::thread::spawn({
        let (stop, broken) = (stop.clone(), broken.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                for host in ["good.com", "so-so.com", "bad.com"] {
                    if !ask(host).is_ok_and(|answer| answer.starts_with("HTTP/1.1 ")) {
                        broken.fetch_add(1, Ordering::Relaxed);
                    }
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });

    // In the middle of all three the one that decides is killed.
    until("it gets more", || outcomes(&server, "good").contains(&"CanaryAdvanced".to_owned()));
    until("it is held", || outcomes(&server, "so-so").contains(&"CanaryHeld".to_owned()));
    let (identity, mut first) = controls.remove(0);
    assert_eq!(identity, leader(&server));
    first.end();
    assert_eq!(status(&server, "good")["phase"], "Progressing");
    until("another one leads", || !["", "first"].contains(&&*leader(&server)));
    until("what is good is promoted", || status(&server, "good")["phase"] == "Promoted");
    assert_eq!(status(&server, "good")["canaryPercent"], 100);
    assert_eq!(outcomes(&server, "good"), ["CanaryStarted", "CanaryAdvanced", "CanaryPromoted"]);
    let before = old_good.asked();
    until("it gets everything", || {
        let (stable, canary) = (old_good.asked(), good.asked());
        until("asked", || good.asked() > canary + 20);
        old_good.asked() == stable
    });
    assert!(before > 0);
    until("it is held again", || {
        outcomes(&server, "so-so").iter().filter(|o| *o == "CanaryHeld").count() > 1
    });
    assert_eq!(
        (&status(&server, "so-so")["canaryPercent"], status(&server, "so-so")["phase"].as_str()),
        (&50.into(), Some("Progressing"))
    );

    // The same one sees what is bad, and a proxy of another one obeys.
    bad.fails.store(1, Ordering::Relaxed);
    let began = Instant::now();
    let still = || {
        let (stable, canary) = (old_bad.asked(), bad.asked());
        until("asked", || old_bad.asked() > stable + 20);
        bad.asked() > canary
    };
    while still() {}
    let took = began.elapsed();
    eprintln!("rolled back after {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    until("that is written", || status(&server, "bad")["phase"] == "RolledBack");
    until("and told", || outcomes(&server, "bad") == ["CanaryStarted", "CanaryRolledBack"]);
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    assert_eq!(broken.load(Ordering::Relaxed), 0, "requests without an answer");
}
