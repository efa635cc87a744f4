//! The tour of README.md: the parts of a mesh started one by one, and the proxy alone.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::http::{exchange, get};
use crate::support::logged::Logged;
use crate::support::{eventually, stderr, stdout, weft};

fn house(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

#[test]
fn the_parts_of_a_mesh_can_be_run_apart() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(file("mesh")).unwrap();
    for entry in std::fs::read_dir(house("deploy/ecotrack")).unwrap().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap().replace("127.0.", "127.60.");
        std::fs::write(directory.path().join("mesh").join(entry.file_name()), text).unwrap();
    }
    let (mesh, state) = (file("mesh"), file("state"));
    let _control =
        Logged::weft(&["control", "--config-dir", &mesh, "--state-dir", &state, "--address", "127.60.1.1"]);
    // The authority's keys are made first, and large primes take a while to find.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !get(at("127.60.1.1:8080"), "/ready").is_ok_and(|(status, _)| status == 200) {
        assert!(Instant::now() < deadline, "the control plane is not ready within a minute");
        std::thread::sleep(Duration::from_millis(50));
    }
    let who = ["--namespace", "ecotrack", "--service-account", "payment-service"];
    let token = weft(&[&["token", "create", "--state-dir", &state], &who[..]].concat());
    assert!(token.status.success(), "{}", stderr(&token));
    std::fs::write(file("token"), stdout(&token)).unwrap();
    let _app = Logged::weft(&["app", "--listen", "127.60.13.1:18080", "--service", "payment-service"]);
    let (roots, token) = (format!("{state}/root-cert.pem"), file("token"));
    let flags = [
        ["--name", "payment-service-1"],
        ["--ip", "127.60.13.1"],
        ["--interception-mode", "NONE"],
        ["--label", "app=payment-service"],
        ["--admin-address", "127.60.13.1:15000"],
        ["--xds-address", "127.60.1.1:15012"],
        ["--root-cert", &roots],
        ["--token-file", &token],
    ];
    let _proxy = Logged::weft(&[&["proxy"], &who[..], &flags.concat()].concat());
    let ready = at("127.60.13.1:15021");
    eventually("the proxy is ready", || get(ready, "/healthz/ready").is_ok_and(|(s, _)| s == 200));

    // Through its own proxy port and its own mutual TLS port, back to its application.
    let request = "GET http://payment-service:8080/ HTTP/1.1\r\nhost: payment-service:8080\r\nconnection: close\r\n\r\n";
    let answer = || exchange(at("127.60.13.1:15080"), request).unwrap_or_default();
    eventually("the application answers", || answer().0.starts_with("HTTP/1.1 200 "));
    let body: Value = serde_json::from_str(&answer().1).unwrap();
    assert_eq!(body["service"], "payment-service");
    assert_eq!(body["caller"]["spiffe"], "spiffe://cluster.local/ns/ecotrack/sa/payment-service");
    assert!(get(at("127.60.13.1:8080"), "/").is_err(), "plain text is no way in");
}

#[test]
fn the_proxy_alone_takes_the_example_bootstrap() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("front-proxy.yaml");
    let text = std::fs::read_to_string(house("deploy/standalone/front-proxy.yaml")).unwrap();
    std::fs::write(&file, text.replace("127.0.0.1", "127.40.1.1")).unwrap();
    let _app = Logged::weft(&["app", "--listen", "127.40.1.1:18080"]);
    let _proxy = Logged::weft(&["proxy", "-c", file.to_str().unwrap(), "--concurrency", "1"]);
    let answer = || {
        get(at("127.40.1.1:10000"), "/")
            .is_ok_and(|(status, body)| status == 200 && body.contains("\"service\""))
    };
    eventually("the application answers", answer);
    assert_eq!(get(at("127.40.1.1:15000"), "/ready").unwrap(), (200, "LIVE\n".to_owned()));
}
