//! What an operator asks of a cluster from outside: `weft analyze`, `weft describe` and `weft drift`; and `weft quarantine`, which writes
//! into it.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use super::Server;
use super::mesh::{SHOP, crds, established, pod, runs, slice};
use crate::programs::weft;

const RULES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart, namespace: shop}
spec: {hosts: [cart], http: [{name: all, timeout: 7s, route: [{destination: {host: cart, port: {number: 80}}}]}]}
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: cart, namespace: shop}
spec: {host: cart, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: web}]}
";

fn ask(kubeconfig: &Path, args: &[&str]) -> Output {
    weft().args(args).arg("--kubeconfig").arg(kubeconfig).output().unwrap()
}

fn drift(kubeconfig: &Path, dir: &Path) -> (bool, Value) {
    let output = ask(kubeconfig, &["drift", dir.to_str().unwrap(), "--output", "json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    (output.status.success(), value)
}

/// What has drifted, each as `what object`.
fn told(found: &Value) -> Vec<String> {
    let one = |it: &Value| format!("{} {}", it["what"].as_str().unwrap(), it["object"].as_str().unwrap());
    found["drifted"].as_array().unwrap().iter().map(one).collect()
}

#[test]
fn a_cluster_is_analyzed_described_and_compared_with_its_files() {
    let server = Server::start("127.36.9.1");
    server.apply(SHOP);
    server.kubectl(&["apply", "-f", &crds()]);
    established(&server);
    server.apply(&pod("v1"));
    runs(&server, "v1", "10.88.0.1");
    server.apply(&slice(&[("v1", "10.88.0.1", true)]));
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("cart.yaml"), RULES).unwrap();
    server.kubectl(&["apply", "-f", directory.path().to_str().unwrap()]);
    let admin = server.kubeconfig("administrator");

    // What was applied is what is there.
    let (same, found) = drift(&admin, directory.path());
    assert!(same && found["compared"] == 3, "{found:#}");

    // By hand: one changed, one taken away, one added.
    let patch = r#"{"spec": {"http": [{"name": "all", "timeout": "9s", "route": [{"destination": {"host": "cart", "port": {"number": 80}}}]}]}}"#;
    server.kubectl(&["-n", "shop", "patch", "virtualservice", "cart", "--type=merge", "-p", patch]);
    server.kubectl(&["-n", "shop", "delete", "destinationrule", "cart"]);
    server.apply(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: other, namespace: shop}
spec: {hosts: [other.example], http: [{route: [{destination: {host: nobody}}]}]}
",
    );
    let (same, found) = drift(&admin, directory.path());
    assert!(!same);
    let wanted = [
        "missing DestinationRule shop/cart",
        "changed VirtualService shop/cart",
        "extra VirtualService shop/other",
    ];
    assert_eq!(told(&found), wanted, "{found:#}");
    let changed = &found["drifted"][1];
    assert_eq!(changed["differences"][0]["path"], "spec.http[all].timeout", "{changed:#}");
    assert_eq!(
        (&changed["differences"][0]["before"], &changed["differences"][0]["after"]),
        (&"7s".into(), &"9s".into())
    );
    assert!(changed["by"].as_str().unwrap().contains("kubectl"), "{changed:#}");
    assert!(changed["file"].as_str().unwrap().ends_with("cart.yaml"));
    let text = String::from_utf8(ask(&admin, &["drift", directory.path().to_str().unwrap()]).stdout).unwrap();
    assert!(text.contains("spec.http[all].timeout: \"7s\" in the file, \"9s\" in the cluster"), "{text}");

    // Going back to the files undoes it.
    server.kubectl(&["-n", "shop", "delete", "virtualservice", "other"]);
    server.kubectl(&["apply", "-f", directory.path().to_str().unwrap()]);
    let (same, found) = drift(&admin, directory.path());
    assert!(same, "{found:#}");

    let output = ask(&admin, &["describe", "service", "cart", "--output", "json"]);
    let service: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(service["host"], "cart.shop.svc.cluster.local", "{service:#}");
    assert_eq!(
        (&service["workloads"][0], &service["subsets"][0]["endpoints"]),
        (&"shop/v1".into(), &1.into())
    );
    assert_eq!(service["routes"]["object"], "VirtualService shop/cart");

    server.apply(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: lost, namespace: shop}
spec: {hosts: [lost.example], gateways: [nowhere], http: [{route: [{destination: {host: nobody}}]}]}
",
    );
    let output = ask(&admin, &["analyze", "--output", "json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> =
        found["messages"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"DestinationUnknown") && names.contains(&"GatewayUnknown"), "{found:#}");

    // Who may not read is told so, and nothing is made up.
    let stranger = server.kubeconfig_of_account("shop", "cart");
    let output = ask(&stranger, &["drift", directory.path().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("virtualservices"), "{said}");
    a_pod_is_put_under_quarantine_and_released(&server, &admin);
}

fn a_pod_is_put_under_quarantine_and_released(server: &Server, admin: &Path) {
    let done = |args: &[&str]| -> Value {
        let output = ask(admin, &[&["quarantine", "--output", "json"], args].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let listed = || done(&["--list"])["quarantines"].clone();
    let told = done(&["shop/v1", "--reason", "talks to a miner"]);
    assert_eq!((&told["state"], &told["changed"]), (&"quarantined".into(), &true.into()), "{told:#}");
    let policy = server.get("authorizationpolicy", "shop", "weft-quarantine-v1");
    assert_eq!(policy["metadata"]["annotations"]["weft.dev/quarantine"], "v1", "{policy:#}");
    assert_eq!(
        (&policy["spec"]["action"], &policy["spec"]["rules"]),
        (&"DENY".into(), &serde_json::json!([{}]))
    );
    let all = listed();
    assert_eq!(
        (&all[0]["workload"], &all[0]["reason"]),
        (&"shop/v1".into(), &"talks to a miner".into()),
        "{all:#}"
    );
    assert_eq!(done(&["v1"])["changed"], false, "once more changes nothing");

    // Who is not there cannot be meant.
    let output = ask(admin, &["quarantine", "shop/nobody"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("there is no workload shop/nobody"), "{said}");
    let told = done(&["--undo", "shop/v1"]);
    assert_eq!((&told["state"], &told["changed"]), (&"released".into(), &true.into()), "{told:#}");
    let gone = server.try_kubectl(&["-n", "shop", "get", "authorizationpolicy", "weft-quarantine-v1"], "");
    assert!(gone.is_err_and(|error| error.contains("NotFound")));
    assert_eq!(listed(), serde_json::json!([]));
    assert_eq!(done(&["--undo", "shop/v1"])["changed"], false);
}
