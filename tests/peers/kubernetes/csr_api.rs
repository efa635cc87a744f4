//! Workloads' certificates by Kubernetes' CSR API: the control plane approves, and a signer of the cluster's signs. The test is the
//! signer; kube-controller-manager's own signers are not for meshes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::Server;
use crate::programs::{Process, get, weft_proxy};

pub(super) const SIGNER: &str = "mesh.example.com/workloads";
const PROXY: &str = "127.36.7.7";

/// Signs what is approved for it, until it is dropped.
pub(super) struct Signer {
    ends: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// The file of its root.
    pub(super) root: PathBuf,
}

impl Drop for Signer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the signer failed");
    }
}

impl Signer {
    pub(super) fn start(server: &Arc<Server>) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "root of the cluster's signer");
        let root = params.self_signed(&key).unwrap().pem();
        let file = server.directory().join("signer-root.pem");
        std::fs::write(&file, &root).unwrap();
        let issuer = Issuer::new(params, key);
        let (ends, told) = (Arc::new(AtomicBool::new(false)), server.clone());
        let stop = ends.clone();
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let all = told.kubectl(&["get", "csr", "-o", "json"]);
                let all: Value = serde_json::from_str(&all).unwrap();
                for request in all["items"].as_array().unwrap() {
                    sign(&told, &issuer, &root, request);
                }
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
        });
        Self { ends, thread: Some(thread), root: file }
    }
}

fn sign(server: &Server, issuer: &Issuer<'_, KeyPair>, root: &str, request: &Value) {
    let approved = |one: &Value| one["type"] == "Approved";
    let is_approved = request["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(approved));
    if !is_approved || request["spec"]["signerName"] != SIGNER || request["status"]["certificate"].is_string()
    {
        return;
    }
    assert_eq!(request["spec"]["username"], "system:serviceaccount:istio-system:istiod");
    let text = STANDARD.decode(request["spec"]["request"].as_str().unwrap()).unwrap();
    // Names are the request's, as such signers do it.
    let mut asked = CertificateSigningRequestParams::from_pem(std::str::from_utf8(&text).unwrap()).unwrap();
    let (now, life) = (OffsetDateTime::now_utc(), request["spec"]["expirationSeconds"].as_i64().unwrap());
    asked.params.not_before = now - time::Duration::minutes(5);
    asked.params.not_after = now + time::Duration::seconds(life);
    asked.params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    asked.params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let chain = asked.signed_by(issuer).unwrap().pem() + root;
    let patch = json!({"status": {"certificate": STANDARD.encode(chain)}}).to_string();
    let name = request["metadata"]["name"].as_str().unwrap();
    // It may be gone already.
    let _ =
        server.try_kubectl(&["patch", "csr", name, "--subresource=status", "--type=merge", "-p", &patch], "");
}

/// A workload's certificate comes by it; `control` is a control plane that has it for its signer.
pub(super) fn issues(server: &Server, signer: &Signer, control: &str, process: &mut Process) {
    let token = server.kubectl(&["-n", "istio-system", "create", "token", "edge", "--audience", "istio-ca"]);
    let file = server.directory().join("csr-token");
    std::fs::write(&file, token.trim()).unwrap();
    let mut proxy = weft_proxy();
    proxy.args([
        "--xds-address",
        &format!("{control}:15012"),
        "--namespace",
        "istio-system",
        "--service-account",
        "edge",
    ]);
    proxy.args(["--ip", PROXY, "--admin-address", &format!("{PROXY}:15000"), "--interception-mode", "NONE"]);
    proxy.arg("--root-cert").arg(&signer.root).arg("--token-file").arg(&file);
    let mut proxy = Process::start("csr-proxy", proxy.args(["--concurrency", "1"]), server.directory());
    let certificates =
        || get(format!("{PROXY}:15000").parse().unwrap(), "/certs").map(|(_, page)| page).unwrap_or_default();
    proxy.wait("in possession of its certificate", || {
        certificates().contains("spiffe://cluster.local/ns/istio-system/sa/edge")
    });
    // What is done with is taken away, and what is published is the signer's root.
    process.wait("done with its requests", || server.kubectl(&["get", "csr", "-o", "name"]).is_empty());
    let root = std::fs::read_to_string(&signer.root).unwrap();
    process.wait("telling the roots", || told(server) == root);
}

fn told(server: &Server) -> String {
    let path = "jsonpath={.data.root-cert\\.pem}";
    server.kubectl(&["-n", "istio-system", "get", "configmap", "istio-ca-root-cert", "-o", path])
}

/// The arguments of a control plane that has it for its signer.
pub(super) fn arguments(root: &Path) -> [&str; 6] {
    ["--ca", "kubernetes-csr", "--ca-signer-name", SIGNER, "--ca-trust", root.to_str().unwrap()]
}
