//! The way in by the control plane's service account, with a real API server that says whose a token is.

use std::time::Duration;

use serde_json::json;

use super::logins::{control, ready};
use super::{Bao, flags};
use crate::kubernetes::{Server, installation};
use crate::programs::until_or;

#[test]
fn the_control_plane_logs_in_by_its_service_account_and_others_do_not() {
    let server = Server::start("127.36.17.1");
    server.kubectl(&["create", "namespace", "istio-system"]);
    // OpenBao outside of the cluster asks about a token with that token itself: the chart's account may.
    let rights = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding"];
    let mut installed = installation("127.36.17.1", &[]);
    installed.retain(|one| rights.contains(&one["kind"].as_str().unwrap()));
    server.apply(&json!({"apiVersion": "v1", "kind": "List", "items": installed}).to_string());
    server.kubectl(&["-n", "istio-system", "create", "serviceaccount", "other"]);
    // This one may, too, and is not the one that the role is for.
    let other = ["--clusterrole=system:auth-delegator", "--serviceaccount=istio-system:other"];
    server.kubectl(&[&["create", "clusterrolebinding", "other"], &other[..]].concat());
    let bao = Bao::start("127.36.18.40");
    let root = server.directory().join("ca.crt");
    let kubernetes = [("KUBERNETES", "https://127.36.17.1:6443"), ("KUBERNETES_CA", root.to_str().unwrap())];
    bao.set_up(&kubernetes);
    let by = |account: &str| {
        let token = server.kubectl(&["-n", "istio-system", "create", "token", account]);
        let token = bao.write(account, token.trim());
        let mut flags = flags("ca", &bao);
        flags.extend(["--ca-auth=kubernetes", "--ca-auth-role=weft"].map(str::to_owned));
        flags.push(format!("--ca-jwt-file={}", token.display()));
        flags
    };
    let directory = tempfile::tempdir().unwrap();
    let at = "127.36.18.41";
    let mut taken = control(at, directory.path(), &by("istiod"));
    until_or("it is ready", || taken.log() + &bao.log(), || ready(at));
    taken.end();
    let mut refused = control("127.36.18.42", directory.path(), &by("other"));
    assert!(refused.ended(Duration::from_secs(30)), "{}", refused.log());
    let said = ["auth/kubernetes/login: 403", "service account name not authorized"];
    assert!(said.iter().all(|word| refused.log().contains(word)), "{}", refused.log());
}
