//! A Kubernetes API server with its etcd, on a loopback address of its own; both end with the test.
//!
//! There are no controllers and no kubelets: what those would write (EndpointSlices, the status of pods), a test writes.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::certificates::Certificates;
use crate::programs::{Process, peer};

/// How long an API server may take to be ready: it makes its own objects first, on a machine that may be busy.
const READY: Duration = Duration::from_secs(180);

/// Everything that is asked is written down, without what it says; a watch as soon as it begins.
const AUDIT: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
";

pub struct Server {
    directory: TempDir,
    address: String,
    certificates: Certificates,
    api: Process,
    _etcd: Process,
}

impl Server {
    /// Starts both at this address, and waits until the API server is ready. The address is this server's for good:
    /// another test's at the same place would only fail when both run at the same time.
    pub fn start(address: &str) -> Self {
        static GIVEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        let first = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(address.to_owned());
        assert!(first, "{address} is already another test's: take another address");
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let certificates = Certificates::make(at, address);
        std::fs::write(at.join("audit.yaml"), AUDIT).unwrap();
        let (client, member) = (format!("http://{address}:2379"), format!("http://{address}:2380"));
        let mut etcd = Command::new(peer("WEFT_ETCD"));
        etcd.arg("--data-dir").arg(at.join("etcd")).args([
            "--name",
            "test",
            "--unsafe-no-fsync",
            "--log-level",
            "warn",
        ]);
        etcd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        etcd.args(["--listen-peer-urls", &member, "--initial-advertise-peer-urls", &member]);
        etcd.args(["--initial-cluster", &format!("test={member}")]);
        let etcd = Process::start("etcd", &mut etcd, at);
        let api = Process::start("kube-apiserver", &mut api(at, address), at);
        let mut server = Self { address: address.to_owned(), certificates, api, _etcd: etcd, directory };
        server.write_kubeconfig("administrator", &server.certificates.administrator());
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&mut self) {
        let kubeconfig = self.kubeconfig("administrator");
        let ready = || {
            let mut ask = Command::new(peer("WEFT_KUBECTL"));
            ask.arg("--kubeconfig").arg(&kubeconfig).args([
                "get",
                "--raw",
                "/readyz",
                "--request-timeout=2s",
            ]);
            ask.stderr(Stdio::null()).output().is_ok_and(|answer| answer.stdout == b"ok")
        };
        self.api.wait_within(READY, "ready", ready);
    }

    /// Ends the API server as a power cut would. What it had stored stays.
    pub fn kill(&mut self) {
        self.api.end();
    }

    /// Starts it again.
    pub fn restart(&mut self) {
        let command = &mut api(self.directory.path(), &self.address);
        self.api = Process::start_again("kube-apiserver", command, self.directory.path());
        self.wait_until_ready();
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The file that makes a client `user`.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.directory.path().join(format!("{user}.kubeconfig"))
    }

    fn write_kubeconfig(&self, name: &str, user: &Value) {
        let text = self.certificates.kubeconfig(&format!("https://{}:6443", self.address), user);
        std::fs::write(self.kubeconfig(name), text.to_string()).unwrap();
    }

    /// The same for a service account; who uses it may do what that may.
    pub fn kubeconfig_of_account(&self, namespace: &str, account: &str) -> PathBuf {
        let token = self.kubectl(&["-n", namespace, "create", "token", account]);
        self.write_kubeconfig(account, &json!({"token": token.trim()}));
        self.kubeconfig(account)
    }

    /// A command as it would run in a pod of a service account: with its token, where the kubelet puts it, in a file system of its
    /// own. Who uses it may do what the account may.
    pub fn in_pod(&self, namespace: &str, account: &str, command: &Command) -> Command {
        let files = self.directory.path().join(account);
        std::fs::create_dir(&files).unwrap();
        let token = self.kubectl(&["-n", namespace, "create", "token", account]);
        std::fs::write(files.join("token"), token.trim()).unwrap();
        std::fs::write(files.join("namespace"), namespace).unwrap();
        std::fs::copy(self.directory.path().join("ca.crt"), files.join("ca.crt")).unwrap();
        let place = "/run/secrets/kubernetes.io/serviceaccount";
        let script = format!(
            "mount -t tmpfs tmpfs /run && mkdir -p {place} && cp \"$1\"/* {place}/ && shift && exec \"$@\""
        );
        let mut pod = Command::new("unshare");
        pod.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]).arg(files);
        pod.arg(command.get_program()).args(command.get_args());
        pod.env("KUBERNETES_SERVICE_HOST", &self.address).env("KUBERNETES_SERVICE_PORT", "6443");
        pod.env("POD_NAMESPACE", namespace);
        pod
    }

    /// What kubectl says, which must be able to do it.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args, "")
            .unwrap_or_else(|said| panic!("kubectl {args:?}: {said}\n{}", self.api.log()))
    }

    /// Applies a text with one or more objects.
    pub fn apply(&self, yaml: &str) -> String {
        self.try_apply(yaml).unwrap_or_else(|said| panic!("kubectl apply: {said}\n{yaml}"))
    }

    /// The same, or what kubectl says against it.
    pub fn try_apply(&self, yaml: &str) -> Result<String, String> {
        self.try_kubectl(&["apply", "-f", "-"], yaml)
    }

    /// What the API server has of an object.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Value {
        let text = self.kubectl(&["-n", namespace, "get", kind, name, "-o", "json"]);
        serde_json::from_str(&text).unwrap()
    }

    pub fn try_kubectl(&self, args: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(peer("WEFT_KUBECTL"));
        // Its cache of what the server serves is in the home directory, and old by the time a definition is new.
        command
            .env("HOME", self.directory.path())
            .arg("--kubeconfig")
            .arg(self.kubeconfig("administrator"))
            .args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let answer = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if answer.status.success() { Ok(text(&answer.stdout)) } else { Err(text(&answer.stderr)) }
    }

    /// What a user has asked for: verb, group, resource and sub-resource.
    pub fn asked(&self, user: &str) -> std::collections::BTreeSet<(String, String, String)> {
        let log = std::fs::read_to_string(self.directory.path().join("audit.log")).unwrap();
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        events
            .filter(|event| event["user"]["username"] == user && event["objectRef"].is_object())
            .flat_map(|event| {
                let of = &event["objectRef"];
                let resource = match text(&of["subresource"]) {
                    none if none.is_empty() => text(&of["resource"]),
                    part => format!("{}/{part}", text(&of["resource"])),
                };
                let group = text(&of["apiGroup"]);
                // Whoever applies what is not there needs the right to create it.
                let made = event["verb"] == "patch" && event["responseStatus"]["code"] == 201;
                let made = made.then(|| ("create".to_owned(), group.clone(), resource.clone()));
                made.into_iter().chain([(text(&event["verb"]), group, resource)])
            })
            .collect()
    }
}

fn api(at: &Path, address: &str) -> Command {
    let mut api = Command::new(peer("WEFT_KUBE_APISERVER"));
    let mut file = |flag: &str, name: &str| {
        api.arg(flag).arg(at.join(name));
    };
    file("--tls-cert-file", "server.crt");
    file("--tls-private-key-file", "server.key");
    file("--client-ca-file", "ca.crt");
    file("--service-account-signing-key-file", "accounts.key");
    file("--service-account-key-file", "accounts.pub");
    file("--audit-policy-file", "audit.yaml");
    file("--audit-log-path", "audit.log");
    file("--cert-dir", "certificates");
    api.args(["--etcd-servers", &format!("http://{address}:2379")]);
    api.args(["--bind-address", address, "--advertise-address", address, "--secure-port", "6443"]);
    // A loopback address cannot be that of a Service, not even of this one.
    api.args(["--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "10.96.0.0/16"]);
    api.args(["--service-account-issuer", "https://kubernetes.default.svc", "--authorization-mode", "RBAC"]);
    api
}
