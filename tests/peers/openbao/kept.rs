//! A gateway's certificate in OpenBao's KV engine, and one that its PKI engine issued: replaced while requests flow, and kept while
//! OpenBao is away.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use weft_certs::authority::KeyKind;
use weft_certs::inspect::facts;
use weft_control::ca::State;
use weft_control::ca::store::Shape;

use super::logins::{control, ready};
use super::{Bao, flags_with_app_role};
use crate::acme::https;
use crate::programs::{Process, get, until_or, weft, weft_proxy};

const CONTROL: &str = "127.36.18.51";
const GATEWAY: &str = "127.36.18.52";

const MESH: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: edge}
spec:
  selector: {istio: ingress}
  servers:
    - port: {number: 8443, protocol: HTTPS, name: https}
      hosts: [shop.example]
      tls: {mode: SIMPLE, credentialName: shop}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: edge}
spec:
  hosts: [shop.example]
  gateways: [g]
  http: [{directResponse: {status: 200, body: {string: the shop}}}]
";

/// A PKI engine for names of the web's, with keys of this kind; its root.
fn web(bao: &Bao, mount: &str, keys: &str) -> String {
    bao.cli(&["secrets", "enable", &format!("-path={mount}"), "pki"]);
    let name = format!("common_name=the web by {mount}");
    let root = bao.json(&["write", &format!("{mount}/root/generate/internal"), &name, "ttl=600h"]);
    let role = format!("{mount}/roles/shop");
    bao.cli(&["write", &role, "allowed_domains=shop.example", "allow_bare_domains=true", keys]);
    root["data"]["certificate"].as_str().unwrap().to_owned()
}

/// Has it issue one, and puts that into the KV engine as it comes; the serial number of its certificate.
fn put(bao: &Bao, mount: &str) -> String {
    let made = bao.json(&["write", &format!("{mount}/issue/shop"), "common_name=shop.example", "ttl=1h"]);
    let text = |key: &str| made["data"][key].as_str().unwrap();
    let certificate = format!("tls.crt=@{}", bao.write("tls.crt", text("certificate")).display());
    let key = format!("tls.key=@{}", bao.write("tls.key", text("private_key")).display());
    bao.cli(&["kv", "put", "secret/weft/edge/shop", &certificate, &key]);
    serial(text("certificate"))
}

fn serial(pem: &str) -> String {
    facts(&weft_certs::pem::certificates(pem.as_bytes()).unwrap()[0]).unwrap().serial
}

/// The serial number of the certificate that the gateway shows, with an answer.
fn shown(roots: &str) -> std::io::Result<String> {
    let (answer, leaf) = https((GATEWAY, 8443), "shop.example", "/", roots)?;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("the shop"), "{answer}");
    Ok(leaf.serial)
}

/// Requests, each on a connection of its own, until this is told to end.
struct Traffic {
    ends: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<usize>,
}

impl Traffic {
    fn start(roots: &str) -> Self {
        let (ends, roots) = (Arc::new(AtomicBool::new(false)), roots.to_owned());
        let told = ends.clone();
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !told.load(SeqCst) {
                shown(&roots).unwrap_or_else(|error| panic!("request {count}: {error}"));
                count += 1;
            }
            count
        });
        Self { ends, thread }
    }

    fn end(self) {
        self.ends.store(true, SeqCst);
        assert!(self.thread.join().unwrap() > 20);
    }
}

fn gateway(directory: &Path, state: &Path) -> Process {
    let token = weft()
        .args(["token", "create", "--namespace", "edge", "--service-account", "gw", "--state-dir"])
        .arg(state)
        .output()
        .unwrap();
    std::fs::write(directory.join("gateway-token"), token.stdout).unwrap();
    let mut gateway = weft_proxy();
    gateway.args(["--role", "gateway", "--xds-address", &format!("{CONTROL}:15012")]);
    gateway.arg("--root-cert").arg(state.join("root-cert.pem"));
    gateway.arg("--token-file").arg(directory.join("gateway-token"));
    gateway.args(["--namespace", "edge", "--service-account", "gw", "--label", "istio=ingress"]);
    gateway.args(["--ip", GATEWAY, "--admin-address", &format!("{GATEWAY}:15000")]);
    gateway.args(["--interception-mode", "NONE", "--concurrency", "1"]);
    Process::start("gateway", &mut gateway, directory)
}

/// Waits until a line of a log has all of these words.
fn says(control: &Process, words: &[&str]) {
    let said = || control.log().lines().any(|line| words.iter().all(|word| line.contains(word)));
    until_or(&format!("{words:?}"), || control.log(), said);
}

#[test]
fn a_gateways_certificate_that_openbao_issued_is_replaced_and_kept_while_it_is_away() {
    let mut bao = Bao::start("127.36.18.50");
    bao.set_up(&[("KUBERNETES", "")]);
    let roots = web(&bao, "web", "key_type=rsa") + "\n" + &web(&bao, "curves", "key_type=ec");
    let first = put(&bao, "web");
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let state: PathBuf = at.join(format!("state-{CONTROL}"));
    let shape = Shape { root_key: KeyKind::P256, intermediate_key: KeyKind::P256, ..Default::default() };
    State::open(&state, shape, std::time::SystemTime::now().into()).unwrap();
    std::fs::create_dir(at.join("configuration")).unwrap();
    std::fs::write(at.join("configuration/mesh.yaml"), MESH.trim_start()).unwrap();
    let mut flags = flags_with_app_role("credentials", &bao, &bao.app_role("1h"));
    flags.push("--credentials-refresh-interval=200ms".to_owned());
    let mut running = control(CONTROL, at, &flags);
    running.wait("ready", || ready(CONTROL));
    let mut gateway = gateway(at, &state);
    gateway.wait("serving", || shown(&roots).is_ok());
    assert_eq!(shown(&roots).unwrap(), first);

    let traffic = Traffic::start(&roots);
    // Keys of the kinds that OpenBao makes, as it writes them.
    let mut last = first;
    for mount in ["curves", "web"] {
        let new = put(&bao, mount);
        until_or("it is replaced", || running.log(), || shown(&roots).unwrap() == new);
        last = new;
    }
    bao.cli(&["kv", "delete", "secret/weft/edge/shop"]);
    says(&running, &["WARN", "weft/edge/shop", "it has nothing there", "the last good one stays"]);
    bao.kill();
    says(&running, &["WARN", "weft/edge/shop", "is not to be had", "the last good one stays"]);
    assert_eq!(shown(&roots).unwrap(), last);
    // A control plane, and then a gateway, that start meanwhile.
    running.end();
    running = control(CONTROL, at, &flags);
    running.wait("ready", || ready(CONTROL));
    says(&running, &["weft/edge/shop", "taken from the state directory"]);
    traffic.end();
    gateway.end();
    let mut gateway = self::gateway(at, &state);
    gateway.wait("serving", || shown(&roots).is_ok());
    assert_eq!(shown(&roots).unwrap(), last);
    let traffic = Traffic::start(&roots);
    bao.start_again();
    says(&running, &["WARN", "weft/edge/shop", "sealed", "the last good one stays"]);
    bao.unseal();
    let new = put(&bao, "curves");
    until_or("the new one is taken", || running.log(), || shown(&roots).unwrap() == new);
    traffic.end();
    let pages = get(format!("{CONTROL}:15014").parse().unwrap(), "/metrics").unwrap().1;
    assert!(pages.contains("weft_credential_stale{credential=\"edge/shop\"} 0"), "{pages}");
    let key = std::fs::read_to_string(bao.write("unused", "").with_file_name("tls.key")).unwrap();
    let line = key.lines().nth(1).unwrap();
    assert!(!running.log().contains(line) && !gateway.log().contains(line));
}
