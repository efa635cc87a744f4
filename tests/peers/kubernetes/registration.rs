//! Workloads that enter themselves: their entries are objects, which move with the proxy's stream from one control plane to
//! another, and go when nobody has it.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Server;
use super::mesh::{self, SHOP};
use crate::programs::{Process, get, weft, weft_proxy};

const CONTROL: &str = "127.36.14.2";
const VM: &str = "127.36.14.3";
/// Where the application says that it is well; its other port is the proxy's.
const HEALTH: u16 = 18081;
const ENTRY: &str = "vm-127.36.14.3";
const GROUP: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vm, namespace: shop}
spec: {template: {serviceAccount: cart, labels: {app: cart}, ports: {web: 18080}}}
";

fn start(server: &Server, identity: &str, state: &Path) -> Process {
    let mut control = mesh::control(&server.kubeconfig("administrator"), CONTROL);
    control.arg("--state-dir").arg(state).args(["--identity", identity, "--workload-entry-grace", "2s"]);
    let mut control = Process::start(identity, &mut control, server.directory());
    control.wait("ready", || mesh::ready(CONTROL));
    control
}

fn wait(what: &str, story: impl Fn() -> String, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(90);
    while !done() {
        assert!(Instant::now() < end, "{what}: not in time\n{}", story());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_entry_moves_with_its_stream_and_goes_when_nobody_has_it() {
    let server = Server::start("127.36.14.1");
    server.apply(SHOP);
    server.kubectl(&["apply", "-f", &mesh::crds()]);
    mesh::established(&server);
    server.apply(GROUP);
    let state = server.directory().join("state");
    let mut first = start(&server, "first", &state);
    let token = server.directory().join("token");
    let mut command = weft();
    command.args(["token", "create", "--namespace", "shop", "--service-account", "cart", "--state-dir"]);
    let text = crate::programs::run(command.arg(&state)).unwrap();
    std::fs::write(&token, text.trim()).unwrap();
    let proxy = || {
        let mut proxy = weft_proxy();
        proxy.args(["--xds-address", &format!("{CONTROL}:15012"), "--namespace", "shop"]);
        proxy.args(["--service-account", "cart", "--ip", VM, "--admin-address", &format!("{VM}:15000")]);
        proxy.args(["--interception-mode", "NONE", "--concurrency", "1", "--auto-register-group", "vm"]);
        proxy.arg("--root-cert").arg(state.join("root-cert.pem")).arg("--token-file").arg(&token);
        let probe =
            format!("{{readinessProbe: {{tcpSocket: {{port: {HEALTH}, host: {VM}}}, periodSeconds: 1}}}}");
        proxy.env("PROXY_CONFIG", probe);
        proxy
    };
    let mut vm = Process::start("vm", &mut proxy(), server.directory());
    let entry = || {
        let found = server.try_kubectl(&["-n", "shop", "get", "workloadentry", ENTRY, "-o", "json"], "");
        found.ok().and_then(|text| serde_json::from_str::<Value>(&text).ok())
    };
    let controller = || {
        let text = entry().map(|e| e["metadata"]["annotations"]["istio.io/workloadController"].clone());
        text.and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default()
    };
    let healthy = || {
        let conditions = entry().map(|e| e["status"]["conditions"].clone()).unwrap_or_default();
        let found = conditions.as_array().into_iter().flatten().find(|c| c["type"] == "Healthy").cloned();
        found.map(|c| c["status"] == "True")
    };
    let serves = || {
        let (_, text) = get(format!("{CONTROL}:8080").parse().unwrap(), "/debug/endpointz").unwrap();
        text.contains(&format!("\"{VM}\""))
    };

    wait("the first has the entry", || first.log(), || controller() == "first");
    wait("it is not well", || vm.log(), || healthy() == Some(false));
    assert!(!serves(), "who is not well gets no requests");
    let made = entry().unwrap();
    assert_eq!(made["spec"]["serviceAccount"], "cart", "{made}");
    assert_eq!(made["metadata"]["annotations"]["istio.io/autoRegistrationGroup"], "vm", "{made}");
    let _application = std::net::TcpListener::bind((VM, HEALTH)).unwrap();
    wait("it is well", || vm.log(), || healthy() == Some(true) && serves());

    // One that is killed says nothing: the next one has the stream, and the entry.
    let uid = entry().unwrap()["metadata"]["uid"].clone();
    first.end();
    let second = start(&server, "second", &state);
    wait("the second has the entry", || second.log(), || controller() == "second" && healthy() == Some(true));
    assert_eq!(entry().unwrap()["metadata"]["uid"], uid, "it is still the same");
    vm.end();
    wait("it goes with its proxy", || second.log(), || entry().is_none());

    // Both go: the next leader takes away what was left.
    let mut vm = Process::start_again("vm", &mut proxy(), server.directory());
    wait("it is there again", || vm.log(), || controller() == "second");
    vm.end();
    let left = || {
        let annotations = entry().map(|e| e["metadata"]["annotations"].clone()).unwrap_or_default();
        annotations["istio.io/disconnectedAt"].is_string()
    };
    wait("its end is noted", || second.log(), left);
    drop(second);
    let third = start(&server, "third", &state);
    wait("the third takes it away", || third.log(), || entry().is_none());
}
