//! `weft describe` on the example mesh, and what it says of names that are not there.

use std::path::Path;

use serde_json::Value;

use super::support::{stderr, stdout, weft};

fn described(arguments: &[&str]) -> Value {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ecotrack");
    let dir = dir.to_str().unwrap();
    let output = weft(&[&["describe"], arguments, &["--dir", dir, "--output", "json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn text(arguments: &[&str]) -> (bool, String) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ecotrack");
    let output = weft(&[&["describe"], arguments, &["--dir", dir.to_str().unwrap()]].concat());
    (output.status.success(), stdout(&output) + &stderr(&output))
}

#[test]
fn a_workload_has_its_ports_policies_rules_and_findings() {
    let workload = described(&["pod", "ecotrack/user-service-stable-1"]);
    assert_eq!(workload["identity"], "spiffe://cluster.local/ns/ecotrack/sa/user-service", "{workload:#}");
    let port = &workload["ports"][0];
    assert_eq!((&port["protocol"], &port["mutualTls"]), (&"HTTP".into(), &"STRICT".into()));
    assert_eq!(port["service"], "user-service.ecotrack.svc.cluster.local:8080");
    assert!(port["by"]["object"].as_str().unwrap().starts_with("PeerAuthentication "), "{port:#}");
    let of = |list: &str, field: &str| -> Vec<String> {
        let all = workload[list].as_array().unwrap().iter();
        all.map(|one| one.pointer(field).unwrap().as_str().unwrap().to_owned()).collect()
    };
    assert!(of("rules", "/object").contains(&"DestinationRule ecotrack/user-service".to_owned()));
    assert!(of("entries", "/gateway").iter().any(|gateway| gateway == "ecotrack/ecotrack-gateway"));
    assert!(of("findings", "/name").contains(&"RetriesCutShort".to_owned()), "{workload:#}");
    let (done, said) = text(&["pod", "ecotrack/user-service-stable-1"]);
    assert!(done && said.contains("mutual TLS STRICT by PeerAuthentication"), "{said}");
    assert!(said.contains("Identity      spiffe://cluster.local/ns/ecotrack/sa/user-service"), "{said}");
}

#[test]
fn a_service_has_its_endpoints_subsets_and_routes() {
    let service = described(&["service", "user-service"]);
    assert_eq!(service["host"], "user-service.ecotrack.svc.cluster.local");
    let subsets: Vec<_> =
        service["subsets"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(subsets, ["stable", "canary"]);
    assert!(service["subsets"].as_array().unwrap().iter().all(|s| s["endpoints"].as_u64() > Some(0)));
    assert_eq!(service["routing"].as_array().unwrap().len(), 2, "{service:#}");
    let (done, said) = text(&["service", "ecotrack/user-service"]);
    assert!(done && said.contains("subset canary, timeout 30s, 3 retries"), "{said}");
}

#[test]
fn what_is_not_there_is_said_with_what_is() {
    let (done, said) = text(&["service", "user-servce"]);
    assert!(
        !done && said.contains("no service is called") && said.contains("user-service.ecotrack"),
        "{said}"
    );
    let (done, said) = text(&["pod", "user-service"]);
    assert!(!done && said.contains("user-service-stable-1"), "{said}");
    let (done, said) = text(&["pod", "x", "--cluster"]);
    assert!(!done && said.contains("cannot be used with"), "{said}");
}
