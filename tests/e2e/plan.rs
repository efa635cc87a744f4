//! `weft plan`: what a change of a directory would change, of which proxies.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{stderr, stdout, weft};

/// A repository whose one commit is the example mesh.
fn repository() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mesh = dir.path().join("mesh");
    std::fs::create_dir(&mesh).unwrap();
    for file in
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ecotrack")).unwrap().flatten()
    {
        std::fs::copy(file.path(), mesh.join(file.file_name())).unwrap();
    }
    for args in [&["init", "-q"][..], &["add", "."], &["commit", "-q", "-m", "mesh"]] {
        let output = Command::new("git")
            .arg("-C")
            .arg(dir.path())
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    dir
}

fn edit(mesh: &Path, file: &str, from: &str, to: &str) {
    let path = mesh.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

fn plan(mesh: &Path, more: &[&str]) -> Value {
    let output = weft(&[&["plan", mesh.to_str().unwrap(), "--output", "json"], more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

/// Kind, name and what becomes of it, of all changes of a proxy.
fn of<'a>(plan: &'a Value, proxy: &str) -> Vec<&'a Value> {
    let changes = plan["changes"].as_array().unwrap();
    let has = |change: &&Value| change["proxies"].as_array().unwrap().contains(&proxy.into());
    changes.iter().filter(has).flat_map(|change| change["resources"].as_array().unwrap()).collect()
}

#[test]
fn a_change_is_told_with_its_field_and_the_proxies_that_get_it() {
    let dir = repository();
    let mesh = dir.path().join("mesh");
    let unchanged = plan(&mesh, &[]);
    assert_eq!(unchanged["changes"], serde_json::json!([]));
    assert!(unchanged["proxies"].as_u64() > Some(5), "{unchanged}");
    assert!(weft(&["plan", mesh.to_str().unwrap(), "--exit-code"]).status.success());

    edit(&mesh, "user-service-traffic.yaml", "maxConnections: 100", "maxConnections: 70");
    let changed = plan(&mesh, &[]);
    let order = of(&changed, "ecotrack/order-service-1");
    let names: Vec<_> =
        order.iter().map(|r| (r["kind"].as_str().unwrap(), r["name"].as_str().unwrap())).collect();
    // The service, and its subsets; nothing else.
    for subset in ["", "stable", "canary"] {
        let name = format!("outbound|8080|{subset}|user-service.ecotrack.svc.cluster.local");
        assert!(names.contains(&("cds", &name)), "{name} of {names:?}");
    }
    assert!(names.iter().all(|(kind, name)| *kind == "cds" && name.contains("user-service")), "{names:?}");
    let difference = &order[0]["differences"][0];
    assert_eq!((&difference["before"], &difference["after"]), (&100.into(), &70.into()), "{difference}");
    assert!(difference["path"].as_str().unwrap().contains("max_connections"), "{difference}");

    let text = stdout(&weft(&["plan", mesh.to_str().unwrap()]));
    assert!(text.contains("max_connections: 100 -> 70") && text.contains("proxies change"), "{text}");
    assert_eq!(weft(&["plan", mesh.to_str().unwrap(), "--exit-code"]).status.code(), Some(1));
    // With itself there is no difference, and another directory may be named.
    assert_eq!(plan(&mesh, &["--against", mesh.to_str().unwrap()])["changes"], serde_json::json!([]));
}

#[test]
fn who_comes_and_goes_and_what_only_captured_proxies_have() {
    let dir = repository();
    let mesh = dir.path().join("mesh");
    let text = std::fs::read_to_string(mesh.join("notification-service.yaml")).unwrap();
    std::fs::remove_file(mesh.join("notification-service.yaml")).unwrap();
    std::fs::write(mesh.join("other.yaml"), text.replace("notification-service-1", "notification-service-9"))
        .unwrap();
    let changed = plan(&mesh, &["--captured"]);
    assert_eq!(changed["gone"], serde_json::json!(["ecotrack/notification-service-1"]));
    assert_eq!(changed["new"], serde_json::json!(["ecotrack/notification-service-9"]));

    std::fs::remove_file(mesh.join("other.yaml")).unwrap();
    let changed = plan(&mesh, &["--captured"]);
    let payment = of(&changed, "ecotrack/payment-service-1");
    let removed = |kind: &str| payment.iter().any(|r| r["kind"] == kind && r["what"] == "removed");
    assert!(removed("cds"), "{payment:?}");
    let outbound = plan(&mesh, &[]);
    assert!(of(&outbound, "ecotrack/payment-service-1").iter().all(|r| r["name"] != "0.0.0.0_8080"));
}

#[test]
fn what_cannot_be_compared_is_said() {
    let dir = repository();
    let mesh = dir.path().join("mesh");
    let fails = |args: &[&str], words: &[&str]| {
        let output = weft(&[&["plan", mesh.to_str().unwrap()], args].concat());
        let error = stderr(&output);
        assert!(!output.status.success() && words.iter().all(|w| error.contains(w)), "{words:?}: {error}");
    };
    fails(&["--against", "nowhere"], &["\"nowhere\"", "neither a directory nor a revision"]);
    fails(&["--against=--output=x"], &["neither a directory nor a revision"]);
    edit(&mesh, "user-service-traffic.yaml", "maxConnections: 100", "maxConnection: 100");
    fails(&[], &["is refused", "user-service-traffic.yaml", "maxConnection"]);
}
