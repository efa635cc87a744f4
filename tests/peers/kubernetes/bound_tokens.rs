//! Tokens that a real API server binds to pods: each is good for its pod alone, and for no longer than that is there.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use weft::demo::check::observe::credentials;

use super::Server;
use crate::programs::get;

const NAMESPACE: &str = "istio-system";

fn pod(server: &Server, name: &str, ip: &str) {
    server.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {NAMESPACE}}}, \
         spec: {{serviceAccountName: bound, containers: [{{name: c, image: none}}]}}}}"
    ));
    let status = format!(r#"{{"status":{{"phase":"Running","podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}]}}}}"#);
    server.kubectl(&[
        "-n",
        NAMESPACE,
        "patch",
        "pod",
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ]);
}

fn token(server: &Server, pod: &str) -> String {
    let token = ["-n", NAMESPACE, "create", "token", "bound", "--audience", "istio-ca"];
    let text =
        server.kubectl(&[&token[..], &["--bound-object-kind", "Pod", "--bound-object-name", pod]].concat());
    text.trim().to_owned()
}

/// Shows all of it, by a control plane that has this API server say whose tokens are whose.
pub(super) fn belong_to_their_pods(server: &Server, control: &str, roots: &Path) {
    server.apply(&format!(
        "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: bound, namespace: {NAMESPACE}}}}}"
    ));
    // We call from 127.0.0.1.
    pod(server, "here", "127.0.0.1");
    pod(server, "elsewhere", "10.9.9.9");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let secure: SocketAddr = format!("{control}:15012").parse().unwrap();
    let ask = |token: &str| {
        runtime.block_on(credentials::from_mesh(secure, roots, token)).map_err(|e| format!("{e:#}"))
    };
    let told = || {
        let page = get(format!("{control}:8080").parse().unwrap(), "/debug/events").unwrap().1;
        let page: Value = serde_json::from_str(&page).unwrap();
        let all = page["events"].as_array().unwrap().iter();
        all.filter(|e| e["reason"] == "token_from_elsewhere")
            .map(|e| e["subject"].clone())
            .collect::<Vec<_>>()
    };
    let before = told().len();
    let here = ask(&token(server, "here")).unwrap();
    let names = weft_certs::inspect::facts(&here.chain[0]).unwrap().uri_sans;
    assert_eq!(names, ["spiffe://cluster.local/ns/istio-system/sa/bound"]);
    assert_eq!(told().len(), before);
    // Another's: taken here, for clusters behind NAT, and told.
    let other = token(server, "elsewhere");
    ask(&other).unwrap();
    assert_eq!(told().last(), Some(&Value::from("istio-system/elsewhere")));
    // A pod that is gone, and another of its name.
    server.kubectl(&["-n", NAMESPACE, "delete", "pod", "elsewhere", "--grace-period=0", "--force"]);
    ask(&other).unwrap_err();
    pod(server, "elsewhere", "127.0.0.1");
    let refused = ask(&other).unwrap_err();
    assert!(refused.contains("replaced") || refused.contains("Kubernetes"), "{refused}");
    ask(&token(server, "elsewhere")).unwrap();
}
