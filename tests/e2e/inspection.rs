//! Proxies' admin pages through the control plane: their own addresses are known to nobody, and only who has a token is answered.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;
use xds_protos::envoy::config::core::v3::Node;
use xds_protos::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use xds_protos::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use xds_protos::weft::inspect::v1alpha1::Answer;
use xds_protos::weft::inspect::v1alpha1::answer::Part;
use xds_protos::weft::inspect::v1alpha1::inspection_service_client::InspectionServiceClient;

use crate::support::control::Control;
use crate::support::http::{backend, exchange, get};
use crate::support::logged::Logged;
use crate::support::mesh::runtime;
use crate::support::{Running, WEFT, eventually, stderr, stdout, weft};

const CONTROL: &str = "127.86.1.1";
/// Where the workloads are.
const CART: &str = "127.86.2.1";
const WEB: &str = "127.86.2.2";
/// Where their proxies' own ports are, of which no command is told.
const CART_ADMIN: &str = "127.86.9.1";
const WEB_ADMIN: &str = "127.86.9.2";
/// A proxy that cannot be asked.
const OLD: &str = "sidecar~127.86.2.9~old-1.shop~shop.svc.cluster.local";
const CART_ID: &str = "sidecar~127.86.2.1~cart-1.shop~shop.svc.cluster.local";

fn mesh(backend: SocketAddr) -> String {
    let workload = |name: &str, ip: &str| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}-1, namespace: shop}}
spec: {{address: {ip}, ports: {{http: 8080}}, labels: {{app: {name}}}, serviceAccount: {name}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 8080, targetPort: 8080}}]}}
---
"
        )
    };
    format!(
        "{}{}
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default, namespace: shop}}
spec:
  ingress: [{{port: {{number: 8080, protocol: HTTP, name: http}}, captureMode: NONE, defaultEndpoint: {backend}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: no-secrets, namespace: shop}}
spec: {{action: DENY, rules: [{{to: [{{operation: {{paths: [/secret]}}}}]}}]}}
",
        workload("cart", CART),
        workload("web", WEB)
    )
}

struct Scene {
    control: Control,
    token: PathBuf,
    _files: tempfile::TempDir,
    cart: Logged,
    _web: Logged,
}

impl Scene {
    fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let token = files.path().join("token");
        std::fs::write(&token, "open-sesame\n").unwrap();
        let file: &'static str = token.to_str().unwrap().to_owned().leak();
        let more: &[&str] = vec!["--inspect-token-file", file, "--webhook-port", "15017"].leak();
        let control = Control::start_with(CONTROL, &mesh(backend("shop")), more);
        let usual = ["--interception-mode", "NONE", "--concurrency", "1", "--namespace", "shop"];
        let xds = format!("{CONTROL}:15010");
        let admin = format!("{CART_ADMIN}:15000");
        let cart = ["proxy", "--xds-address", &xds, "--xds-plaintext", "--name", "cart-1", "--ip", CART];
        let cart = Logged::weft(
            &[&cart[..], &["--label", "app=cart", "--admin-address", &admin], &usual[..]].concat(),
        );
        // The other one proves who it is.
        let state = control.state();
        let created = weft(&[
            "token",
            "create",
            "--state-dir",
            state.to_str().unwrap(),
            "--namespace",
            "shop",
            "--service-account",
            "web",
        ]);
        let workload_token = files.path().join("web.token");
        std::fs::write(&workload_token, stdout(&created)).unwrap();
        let (xds, admin, root) = (format!("{CONTROL}:15012"), format!("{WEB_ADMIN}:15000"), control.root());
        let web = ["proxy", "--xds-address", &xds, "--name", "web-1", "--ip", WEB, "--label", "app=web"];
        let proof = ["--service-account", "web", "--root-cert", root.to_str().unwrap()];
        let proof = [&proof[..], &["--token-file", workload_token.to_str().unwrap()]].concat();
        let web = Logged::weft(&[&web[..], &["--admin-address", &admin], &proof[..], &usual[..]].concat());
        let scene = Self { control, token, _files: files, cart, _web: web };
        eventually("both serve", || {
            [CART, WEB].iter().all(|ip| get(at(ip, 8080), "/").is_ok_and(|(status, _)| status == 200))
        });
        eventually("both can be asked", || {
            scene.listed().iter().filter(|one| one["asked"] == true).count() == 2
        });
        scene
    }

    /// A command that asks through the control plane.
    fn run(&self, arguments: &[&str]) -> Output {
        weft(&[arguments, &["--control", CONTROL, "--token-file", self.token.to_str().unwrap()]].concat())
    }

    fn said(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.said(&[arguments, &["--output", "json"]].concat())).unwrap()
    }

    fn listed(&self) -> Vec<Value> {
        let (_, _, page) = ask("GET", "/proxies", "open-sesame");
        let page: Value = serde_json::from_str(&page).unwrap_or_default();
        page["proxies"].as_array().cloned().unwrap_or_default()
    }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    format!("{ip}:{port}").parse().unwrap()
}

/// Status, head and body of one request to the control plane's debug port.
fn ask(method: &str, path: &str, token: &str) -> (u16, String, String) {
    let authorization =
        if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
    let request = format!("{method} {path} HTTP/1.1\r\nhost: c\r\n{authorization}connection: close\r\n\r\n");
    let (head, body) = exchange(at(CONTROL, 8080), &request).unwrap();
    (head[9..12].parse().unwrap(), head, body)
}

fn send(ip: &str, path: &str, id: &str) -> u16 {
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: cart\r\nx-request-id: {id}\r\nconnection: close\r\n\r\n");
    exchange(at(ip, 8080), &request).map_or(0, |(head, _)| head[9..12].parse().unwrap_or(0))
}

/// What follows the mesh while requests go through it.
fn while_sending<T: Send>(follow: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let following = scope.spawn(follow);
        while !following.is_finished() {
            assert_eq!(send(CART, "/secret", "tapped"), 403);
            std::thread::sleep(Duration::from_millis(10));
        }
        following.join().unwrap()
    })
}

/// A proxy as an Envoy is one: on xDS alone. What is dropped ends it.
struct Old {
    channel: Channel,
    _requests: mpsc::Sender<DeltaDiscoveryRequest>,
    _responses: tonic::Streaming<xds_protos::envoy::service::discovery::v3::DeltaDiscoveryResponse>,
}

impl Old {
    async fn connect(id: &str) -> Self {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{CONTROL}:15010")).unwrap();
        let channel = channel.connect().await.unwrap();
        let (requests, queue) = mpsc::channel(4);
        let node = Node { id: id.into(), user_agent_name: "envoy".into(), ..Node::default() };
        let type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
        let first = DeltaDiscoveryRequest { node: Some(node), type_url, ..DeltaDiscoveryRequest::default() };
        requests.send(first).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
        let responses = client.delta_aggregated_resources(ReceiverStream::new(queue)).await.unwrap();
        let mut responses = responses.into_inner();
        responses.message().await.unwrap().unwrap();
        Self { channel, _requests: requests, _responses: responses }
    }

    /// What it gets for wanting to answer for this proxy.
    async fn answer_for(&self, id: &str) -> tonic::Status {
        let (answers, queue) = mpsc::channel(4);
        let node = Node { id: id.into(), ..Node::default() };
        answers.send(Answer { id: 0, part: Some(Part::Node(node)) }).await.unwrap();
        let mut client = InspectionServiceClient::new(self.channel.clone());
        match client.inspect(ReceiverStream::new(queue)).await {
            Ok(_) => tonic::Status::ok(""),
            Err(status) => status,
        }
    }
}

/// Those who say that they are web-1.shop, which has proven it.
fn impostors(scene: &Scene, runtime: &tokio::runtime::Runtime) {
    let (dev, plain) = (
        "sidecar~127.86.2.7~web-1.shop~dev.svc.cluster.local",
        "sidecar~127.86.2.8~web-1.shop~shop.svc.cluster.local",
    );
    let of_dev = runtime.block_on(Old::connect(dev));
    let refused = runtime.block_on(of_dev.answer_for(dev));
    assert!(
        refused.code() == Code::PermissionDenied && refused.message().contains("must end in .dev"),
        "{refused}"
    );
    let in_plain_text = runtime.block_on(Old::connect(plain));
    let taken = runtime.block_on(in_plain_text.answer_for(plain));
    assert_eq!(taken.code(), Code::Ok, "{taken}");
    eventually("all are listed as what they are", || {
        let all = scene.listed();
        let of = |id: &str| all.iter().find(|one| one["proxy"] == id).cloned().unwrap_or_default();
        let web = all.iter().find(|one| one["name"] == "web-1.shop" && one["verified"] == true);
        web.is_some_and(|one| one["asked"] == true)
            && (of(dev)["asked"] == false && of(dev)["name"] == dev)
            && of(plain)["verified"] == false
            && of(CART_ID)["verified"] == false
    });
    let (status, _, body) = ask("GET", "/proxies/web-1.shop/admin/server_info", "open-sesame");
    assert!(status == 200 && body.contains(WEB), "{status} {body}");
    let output = scene.run(&["proxy-config", "log", "web-1.shop"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("connected in plain text"), "{}", stderr(&output));
    drop((of_dev, in_plain_text));
    eventually("they are gone", || scene.listed().len() == 3);
}

fn commands(scene: &Scene) {
    // Whoever is asked itself cannot be: nobody listens where its node says that it is.
    let direct = weft(&["requests", "--control", CONTROL]);
    assert!(!direct.status.success() && stderr(&direct).contains("did not answer"), "{}", stderr(&direct));

    assert_eq!(send(CART, "/secret", "denied-1"), 403);
    let listed = scene.json(&["requests", "--class", "refused"]);
    assert_eq!(listed["requests"][0]["proxy"], "cart-1.shop", "{listed}");
    assert_eq!(listed["proxies"]["asked"], 3);
    let silent = &listed["proxies"]["silent"];
    assert!(
        silent[0]["name"] == "old-1.shop" && silent[0]["error"].as_str().unwrap().contains("envoy"),
        "{silent}"
    );
    let told = scene.run(&["explain", "denied-1"]);
    let text = stdout(&told);
    assert_eq!(told.status.code(), Some(1), "{text}{}", stderr(&told));
    assert!(
        text.contains("cart-1.shop (inbound)") && text.contains("AuthorizationPolicy shop/no-secrets"),
        "{text}"
    );

    let top = while_sending(|| scene.json(&["top", "--interval", "1s", "--count", "1"]));
    let edges = top["edges"].as_array().unwrap();
    assert!(
        edges.iter().any(|edge| edge["to"]["name"] == "cart" && edge["requests"].as_f64() > Some(0.0)),
        "{top}"
    );
    let tapped =
        while_sending(|| scene.said(&["tap", "cart", "--path", "/secret", "--max", "2", "--output", "json"]));
    assert_eq!(tapped.lines().count(), 2, "{tapped}");
    assert!(tapped.lines().all(|line| line.contains("\"cart-1.shop\"")), "{tapped}");
    let graph = scene.json(&["graph"]);
    assert!(graph["edges"].as_array().unwrap().iter().any(|edge| edge["to"]["name"] == "cart"), "{graph}");
    let report = scene.json(&["report", "compliance"]);
    assert_eq!(
        (&report["proxies"]["asked"], &report["proxies"]["answered"]),
        (&3.into(), &2.into()),
        "{report}"
    );
    let events = scene.json(&["events"]);
    assert!(
        events["events"].as_array().unwrap().iter().any(|event| event["workload"] == "cart-1"),
        "{events}"
    );
    let clusters = scene.said(&["proxy-config", "clusters", "web-1.shop"]);
    assert!(clusters.contains("cart.shop.svc.cluster.local"), "{clusters}");
    assert!(scene.said(&["proxy-config", "log", CART_ID]).contains("active rules"));
    let change = scene.run(&["proxy-config", "log", "cart-1.shop", "--level", "debug"]);
    assert!(!change.status.success() && stderr(&change).contains("only read"), "{}", stderr(&change));
    let unknown = scene.run(&["proxy-config", "clusters", "web-9.shop"]);
    assert!(
        stderr(&unknown).contains("there are cart-1.shop, old-1.shop, web-1.shop"),
        "{}",
        stderr(&unknown)
    );
    let file = scene.token.with_file_name("report.tar.gz");
    scene.said(&["bug-report", "-o", file.to_str().unwrap()]);
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(&file).unwrap()));
    let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
    let names: Vec<_> = names.collect();
    for name in ["proxy-cart-1.shop/config_dump.json", "proxy-web-1.shop/certificates.json"] {
        assert!(names.iter().any(|known| known.ends_with(name)), "{names:?}");
    }
    // Over TLS, the control plane known by its root.
    let secure = ["requests", "--control", "https://127.86.1.1", "--output", "json"];
    let root = scene.control.root();
    let token = ["--token-file", scene.token.to_str().unwrap()];
    let output = weft(&[&secure[..], &token, &["--root-cert", root.to_str().unwrap()]].concat());
    let listed: Value = serde_json::from_str(&stdout(&output)).unwrap_or_default();
    assert_eq!(listed["requests"][0]["proxy"], "cart-1.shop", "{}", stderr(&output));
    let secure_events = ["events", "--control", "https://127.86.1.1", "--output", "json"];
    let output = weft(&[&secure_events[..], &token, &["--root-cert", root.to_str().unwrap()]].concat());
    let page: Value = serde_json::from_str(&stdout(&output)).unwrap_or_default();
    assert_eq!(page["controlPlanes"]["leftOut"][0], "https://127.86.1.1", "{page}");
    assert!(stderr(&output).contains("own events are left out"), "{}", stderr(&output));
    let without = weft(&[&secure[..], &token].concat());
    assert!(stderr(&without).contains("--root-cert"), "{}", stderr(&without));
}

fn refusals(scene: &Scene) {
    for token in ["", "open-sesam"] {
        let (status, head, body) = ask("GET", "/proxies/cart-1.shop/admin/stats", token);
        assert_eq!(status, 401, "{head}");
        assert!(head.to_lowercase().contains("www-authenticate: bearer"), "{head}");
        assert!(body.contains("--inspect-token-file"), "{body}");
    }
    let wrong = scene.token.with_file_name("wrong");
    std::fs::write(&wrong, "other").unwrap();
    let output = weft(&["top", "--control", CONTROL, "--token-file", wrong.to_str().unwrap()]);
    assert!(
        stderr(&output).contains("401") && stderr(&output).contains("another token"),
        "{}",
        stderr(&output)
    );
    // Pages that change something are neither for POST nor for GET.
    for page in ["quitquitquit", "drain_listeners", "healthcheck/fail", "logging?level=trace", "reopen_logs"]
    {
        let path = format!("/proxies/cart-1.shop/admin/{page}");
        let (status, _, body) = ask("POST", &path, "open-sesame");
        assert!(status == 405 && body.contains("by GET"), "{page}: {status} {body}");
        let (status, _, body) = ask("GET", &path, "open-sesame");
        assert!(status == 405 && body.contains("changes something"), "{page}: {status} {body}");
    }
    assert_eq!(send(CART, "/", "still"), 200);
    let (status, _, body) = ask("GET", "/proxies/old-1.shop/admin/stats", "open-sesame");
    assert!(status == 501 && body.contains("port-forward"), "{status} {body}");
    let (status, _, body) = ask("GET", "/proxies/cart-9.shop/admin/stats", "open-sesame");
    assert!(status == 404 && body.contains("cart-1.shop, old-1.shop, web-1.shop"), "{status} {body}");
    let (status, _, body) = ask("GET", "/proxies/cart-1.shop/admin/nowhere", "open-sesame");
    assert!(status == 404 && body.contains("there is no /nowhere"), "{status} {body}");

    // Who read what, and who was not let in.
    let told = || -> Vec<Value> {
        let page: Value = serde_json::from_str(&scene.control.page("/debug/events")).unwrap();
        page["events"].as_array().unwrap().iter().filter(|e| e["by"] == "inspect").cloned().collect()
    };
    // What is told is written beside what is answered.
    eventually("the last page that was asked for is told of", || {
        told().iter().any(|e| e["operation"] == "GET /(no such page)" && e["outcome"] == "ok")
    });
    let all = told();
    let of = |outcome: &str| all.iter().filter(|e| e["outcome"] == outcome).collect::<Vec<_>>();
    let read = of("ok");
    let tapped = read.iter().find(|e| e["operation"] == "GET /weft/tap").unwrap();
    assert_eq!((&tapped["actor"], &tapped["proxy"]), (&"inspect token".into(), &CART_ID.into()), "{tapped}");
    assert!(of("denied").iter().any(|e| e["status"] == 401), "{all:?}");
}

/// A watcher at the proxy itself, if there is room for it.
fn watch() -> Option<TcpStream> {
    let mut stream = TcpStream::connect(at(CART_ADMIN, 15000)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET /weft/tap HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    head.ends_with(b"200").then_some(stream)
}

fn a_watcher_leaves(scene: &Scene) {
    let mut command = Command::new(WEFT);
    command.args(["tap", "cart", "--control", CONTROL, "--token-file"]).arg(&scene.token);
    let mut watching = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut out = BufReader::new(watching.0.stdout.take().unwrap());
    let line = while_sending(move || {
        let mut line = String::new();
        out.read_line(&mut line).map(|_| line)
    });
    assert!(line.unwrap().contains("/secret"), "it watches");
    // It has one of the places.
    let others: Vec<_> = std::iter::from_fn(watch).collect();
    assert_eq!(others.len(), 15);
    drop(watching);
    eventually("the place is free again", || watch().is_some());
}

/// Each of several control planes knows its own proxies; a command asks all that it is told of.
fn several(scene: &Scene) {
    let token: &'static str = scene.token.to_str().unwrap().to_owned().leak();
    let more: &[&str] = vec!["--inspect-token-file", token].leak();
    let mut second = Control::start_with("127.86.1.2", &mesh(backend("shop")), more);
    let _late = Logged::proxy(
        "127.86.1.2",
        "127.86.2.3",
        "shop",
        &["--interception-mode", "NONE", "--name", "late-1"],
    );
    let both = || {
        let control = ["--control", "127.86.1.1,127.86.1.2", "--token-file", token];
        let output = weft(&[&["requests", "--output", "json"][..], &control].concat());
        let page: Value = serde_json::from_str(&stdout(&output)).unwrap_or_default();
        (page["proxies"].clone(), stderr(&output))
    };
    eventually("the proxies of both are asked", || {
        let (proxies, _) = both();
        proxies["asked"] == 4 && proxies["silent"].as_array().is_some_and(|silent| silent.len() == 1)
    });
    let (status, _, body) = ask("GET", "/proxies/late-1.shop/admin/stats", "open-sesame");
    assert!(
        status == 404 && body.contains("Each of several control planes knows its own"),
        "{status} {body}"
    );
    second.process.kill();
    let (proxies, said) = both();
    assert_eq!(proxies["asked"], 3, "{said}");
    assert!(said.contains("127.86.1.2:8080") && said.contains("left out"), "{said}");
}

#[test]
fn proxies_are_read_through_the_control_plane_by_whom_it_lets_in() {
    let mut scene = Scene::start();
    let runtime = runtime();
    let old = runtime.block_on(Old::connect(OLD));
    eventually("all three are known", || scene.listed().len() == 3);
    let rogue = runtime.block_on(old.answer_for(CART_ID));
    assert_eq!(rogue.code(), Code::PermissionDenied, "{rogue}");
    assert!(rogue.message().contains("answers for itself alone"), "{rogue}");
    impostors(&scene, &runtime);
    commands(&scene);
    refusals(&scene);
    a_watcher_leaves(&scene);
    several(&scene);
    drop(old);

    // The control plane ends and comes back, and so do the streams. Nothing else notices.
    scene.control.restart();
    eventually("they can be asked again", || {
        let output = scene.run(&["requests", "--class", "refused", "--output", "json"]);
        let listed: Value = serde_json::from_str(&stdout(&output)).unwrap_or_default();
        let proxies = &listed["proxies"];
        listed["requests"][0]["proxy"] == "cart-1.shop"
            && proxies["asked"] == 2
            && proxies["silent"][0].is_null()
    });
    assert_eq!(send(CART, "/", "after"), 200);
    assert!(!scene.cart.log().contains("ERROR"), "{}", scene.cart.log());
}
