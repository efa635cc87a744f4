//! `weft quarantine`, and what a responder calls: all that comes to a workload is denied at once, living connections included, and one
//! command lets it through again. And `weft events`, which tells of it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::control::Control;
use crate::support::http::{backend, exchange, get};
use crate::support::logged::Logged;
use crate::support::{eventually, stderr, stdout, weft};

/// Gives back what comes.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(n) = stream.read(&mut buffer)
                    && n > 0
                    && stream.write_all(&buffer[..n]).is_ok()
                {}
            });
        }
    });
    address
}

/// Two replicas of a service, by HTTP at 8080 and by bytes at 8081.
fn mesh(http: SocketAddr, tcp: SocketAddr, ips: [&str; 2]) -> String {
    let entry = |number: usize| {
        format!(
            "
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: cart-{}, namespace: shop}}
spec: {{address: {}, ports: {{http: 8080, tcp: 8081}}, labels: {{app: cart}}}}
",
            number + 1,
            ips[number]
        )
    };
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: cart, namespace: shop}}
spec:
  selector: {{app: cart}}
  ports: [{{name: http, port: 8080, targetPort: 8080}}, {{name: tcp, port: 8081, targetPort: 8081}}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: cart, namespace: shop}}
spec:
  workloadSelector: {{labels: {{app: cart}}}}
  ingress:
    - {{port: {{number: 8080, protocol: HTTP, name: http}}, captureMode: NONE, defaultEndpoint: {http}}}
    - {{port: {{number: 8081, protocol: TCP, name: tcp}}, captureMode: NONE, defaultEndpoint: {tcp}}}
{}{}",
        entry(0),
        entry(1)
    )
}

struct Scene {
    control: Control,
    replicas: [Logged; 2],
}

const IPS: [&str; 2] = ["127.84.2.1", "127.84.2.2"];

fn at(replica: usize, port: u16) -> SocketAddr {
    format!("{}:{port}", IPS[replica]).parse().unwrap()
}

/// Says something and expects it back.
fn speaks(stream: &mut TcpStream) -> bool {
    let mut back = [0; 2];
    stream.write_all(b"hi").is_ok() && stream.read_exact(&mut back).is_ok() && &back == b"hi"
}

fn connect(replica: usize) -> TcpStream {
    let stream = TcpStream::connect(at(replica, 8081)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn allows(replica: usize) -> bool {
    get(at(replica, 8080), "/").is_ok_and(|(status, _)| status == 200)
}

fn denies(replica: usize) -> bool {
    get(at(replica, 8080), "/").is_ok_and(|(status, _)| status == 403)
}

impl Scene {
    fn start(token: &'static str) -> Self {
        let more: &[&str] = vec!["--quarantine-token-file", token].leak();
        let yaml = mesh(backend("cart"), echo(), IPS);
        let control = Control::start_with("127.84.1.1", &yaml, more);
        let replica = |number: usize| {
            let name = format!("cart-{}", number + 1);
            let more = ["--interception-mode", "NONE", "--name", &name, "--label", "app=cart"];
            Logged::proxy("127.84.1.1", IPS[number], "shop", &more)
        };
        let scene = Self { control, replicas: [replica(0), replica(1)] };
        eventually("both replicas serve", || allows(0) && allows(1));
        scene
    }

    fn directory(&self) -> String {
        self.control.config("").to_str().unwrap().to_owned()
    }

    /// One request to what a responder calls.
    fn call(&self, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: c\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let (head, body) = exchange("127.84.1.1:8080".parse().unwrap(), &request).unwrap();
        (head[9..12].parse().unwrap(), serde_json::from_str(&body).unwrap_or(Value::Null))
    }
}

/// Runs the command, which must do it.
fn run(arguments: &[&str]) -> String {
    let output = weft(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    stdout(&output)
}

#[test]
fn a_workload_under_quarantine_gets_nothing_and_its_replica_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let token: &'static str = directory.path().join("token").to_str().unwrap().to_owned().leak();
    std::fs::write(token, "open sesame\n").unwrap();
    let scene = Scene::start(token);
    let dir = scene.directory();

    // By the command, in the directory.
    let (mut living, mut elsewhere) = (connect(0), connect(1));
    assert!(speaks(&mut living) && speaks(&mut elsewhere));
    let said = run(&["quarantine", "cart-1", "--dir", &dir, "--reason", "odd"]);
    assert!(said.contains("shop/cart-1 is under quarantine"), "{said}");
    eventually("requests are denied", || denies(0));
    assert_eq!(living.read(&mut [0; 1]).unwrap_or(0), 0, "a living connection goes on");
    eventually("new connections are denied", || !speaks(&mut connect(0)));
    assert!(allows(1) && speaks(&mut elsewhere), "the replica goes on");
    assert!(run(&["quarantine", "shop/cart-1", "--dir", &dir]).contains("already"));
    let listed: Value =
        serde_json::from_str(&run(&["quarantine", "--list", "--dir", &dir, "--output", "json"])).unwrap();
    assert_eq!(
        (&listed["quarantines"][0]["workload"], &listed["quarantines"][0]["reason"]),
        (&json!("shop/cart-1"), &json!("odd"))
    );
    assert!(run(&["quarantine", "--undo", "cart-1", "--dir", &dir]).contains("is released"));
    eventually("requests flow", || allows(0));
    assert!(speaks(&mut connect(0)));

    // By a responder: an alert of Falco's. When it has its answer, the quarantine is part of the mesh's state.
    let alert = json!({
        "rule": "Terminal shell in container", "priority": "Notice", "output": "A shell", "source": "syscall",
        "time": "2026-01-02T03:04:05.6Z", "output_fields": {"k8s.ns.name": "shop", "k8s.pod.name": "cart-1"},
    });
    let mut living = connect(0);
    assert!(speaks(&mut living));
    for wrong in ["", "open sesam"] {
        assert_eq!(scene.call("POST", "/quarantine", wrong, &alert).0, 401, "{wrong:?}");
    }
    let (status, unknown) = scene.call("POST", "/quarantine", "open sesame", &json!({"workload": "cart-9"}));
    assert!(status == 404 && unknown["error"].as_str().unwrap().contains("cart-9"), "{unknown}");
    assert_eq!(scene.call("POST", "/quarantine", "open sesame", &json!({"a": 1})).0, 400);
    assert!(allows(0), "nothing of that did anything");
    let (status, done) = scene.call("POST", "/quarantine", "open sesame", &alert);
    assert_eq!(
        (status, &done["workload"], &done["changed"]),
        (200, &json!("shop/cart-1"), &json!(true)),
        "{done}"
    );
    eventually("requests are denied", || denies(0));
    assert_eq!(living.read(&mut [0; 1]).unwrap_or(0), 0, "a living connection goes on");
    assert!(allows(1));
    assert_eq!(scene.call("POST", "/quarantine", "open sesame", &alert).1["changed"], false);
    let (_, listed) = scene.call("GET", "/quarantine", "open sesame", &Value::Null);
    assert_eq!(listed["quarantines"][0]["reason"], "Terminal shell in container", "{listed}");
    let control = ["--control", "127.84.1.1", "--token-file", token];
    assert!(run(&[&["quarantine", "--list"], &control[..]].concat()).contains("shop/cart-1"));
    assert!(run(&[&["quarantine", "--undo", "shop/cart-1"], &control[..]].concat()).contains("is released"));
    eventually("requests flow", || allows(0));
    let again = weft(&[&["quarantine", "cart-9"], &control[..]].concat());
    assert!(!again.status.success() && stderr(&again).contains("cart-9"), "{}", stderr(&again));

    told(&scene);
    assert_eq!(std::fs::read_dir(Path::new(&dir)).unwrap().count(), 1, "no file is left");
    drop(scene.replicas);
}

/// What `weft events` tells of all that.
fn told(scene: &Scene) {
    let control = ["events", "--control", "127.84.1.1", "--output", "json"];
    let events = |more: &[&str]| -> Vec<Value> {
        let page: Value = serde_json::from_str(&run(&[&control[..], more].concat())).unwrap();
        assert_eq!(page["proxies"], json!({"asked": 3, "silent": []}), "both proxies and the control plane");
        page["events"].as_array().unwrap().clone()
    };
    let quarantines = events(&["--kind", "quarantine"]);
    let steps: Vec<_> = quarantines
        .iter()
        .map(|e| (e["outcome"].as_str().unwrap(), e["operation"].as_str().unwrap()))
        .collect();
    let (put, lifted) = (("ok", "quarantine"), ("ok", "release"));
    let denied = ("denied", "quarantine");
    assert_eq!(steps, [put, lifted, denied, denied, denied, denied, put, lifted, denied], "{quarantines:#?}");
    let by: Vec<_> =
        quarantines.iter().filter(|e| e["outcome"] == "ok").map(|e| e["target"].as_str().unwrap()).collect();
    assert_eq!(by, ["shop/cart-1"; 4]);
    // In the order of time over all processes: what was denied stands between the two ends of its quarantine.
    let all = events(&["--kind", "quarantine", "--kind", "denied"]);
    let place = |holds: &dyn Fn(&Value) -> bool| all.iter().position(holds).unwrap();
    let began = place(&|e| e["operation"] == "quarantine" && e["outcome"] == "ok");
    let ended = place(&|e| e["operation"] == "release");
    let denials = all.iter().enumerate().filter(|(_, e)| e["event"] == "denied");
    let denials: Vec<_> =
        denials.map(|(at, e)| (at, e["by"].as_str().unwrap(), e["workload"].as_str().unwrap())).collect();
    assert!(denials.iter().any(|(at, ..)| (began..ended).contains(at)), "{all:#?}");
    assert!(denials.iter().all(|(_, by, who)| (*by, *who) == ("quarantine", "cart-1")), "{denials:?}");
    let requests = all.iter().any(|e| e["event"] == "denied" && e["status"] == 403);
    let connections = all.iter().any(|e| e["event"] == "denied" && e["status"].is_null());
    assert!(requests && connections, "{all:#?}");
    assert!(events(&["--kind", "canary"]).is_empty());
    let text = run(&["events", "--control", "127.84.1.1", "--kind", "quarantine"]);
    assert!(text.lines().count() == 9 && text.contains("control plane"), "{text}");
    let _ = scene;
}
