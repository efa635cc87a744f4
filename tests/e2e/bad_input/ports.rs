//! A port that somebody has: nothing starts beside it, and whoever has it goes on.

use std::net::{SocketAddr, TcpListener};

use crate::support::control::Control;
use crate::support::http::{backend, get};
use crate::support::logged::Logged;
use crate::support::management::Management;
use crate::support::{eventually, stderr, weft};

const EMPTY: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: '{}'}\n";

#[test]
fn a_second_control_plane_ends_and_the_first_goes_on() {
    let control = Control::start("127.53.1.1", EMPTY);
    let directory = control.config("");
    let ports = [("--xds-port", 1), ("--secure-port", 2), ("--metrics-port", 3), ("--debug-port", 4)];
    let taken = [15010, 15012, 15014, 8080];
    for ((flag, _), port) in ports.iter().zip(taken) {
        // All others are free ones.
        let mut arguments =
            vec!["control", "--address", "127.53.1.1", "--config-dir", directory.to_str().unwrap()];
        let free: Vec<(&str, String)> =
            ports.iter().filter(|(f, _)| f != flag).map(|(f, n)| (*f, (21000 + n).to_string())).collect();
        arguments.extend(free.iter().flat_map(|(f, p)| [*f, p.as_str()]));
        let output = weft(&arguments);
        let error = stderr(&output);
        assert!(!output.status.success(), "{flag}: {error}");
        for word in [&format!("weft: cannot listen on 127.53.1.1:{port}"), "another control plane", flag] {
            assert!(error.contains(word), "{flag}: no {word:?} in {error}");
        }
    }
    assert_eq!(get("127.53.1.1:8080".parse().unwrap(), "/ready").unwrap().0, 200);
}

#[test]
fn a_second_proxy_ends_and_the_first_goes_on() {
    let server = Management::start();
    let arguments = |more: &[&str]| -> Vec<String> {
        let own =
            ["proxy", "--xds-address", &server.address.to_string(), "--xds-plaintext", "--concurrency", "1"];
        own.iter().chain(more).map(|a| (*a).to_owned()).collect()
    };
    let _first = Logged::weft(&arguments(&["--admin-address", "127.53.2.1:15000"]));
    let admin: SocketAddr = "127.53.2.1:15000".parse().unwrap();
    eventually("the first proxy's admin interface", || get(admin, "/server_info").is_ok_and(|a| a.0 == 200));
    for (flag, more) in [
        ("--admin-address", &["--admin-address", "127.53.2.1:15000"][..]),
        ("--status-port", &["--admin-address", "127.53.2.1:15001"]),
        ("--prometheus-port", &["--admin-address", "127.53.2.1:15001", "--status-port", "15002"]),
        (
            "--agent-port",
            &["--admin-address", "127.53.2.1:15001", "--status-port", "15002", "--prometheus-port", "15003"],
        ),
    ] {
        let output = weft(&arguments(more).iter().map(String::as_str).collect::<Vec<_>>());
        let error = stderr(&output);
        assert!(!output.status.success(), "{flag}: {error}");
        for word in ["weft: cannot listen on 127.53.2.1:", flag, "another proxy", "ss -ltnp"] {
            assert!(error.contains(word), "{flag}: no {word:?} in {error}");
        }
    }
    assert_eq!(get(admin, "/server_info").unwrap().0, 200);
}

#[test]
fn a_bootstraps_listener_whose_port_is_taken_is_named() {
    let taken = TcpListener::bind("127.53.3.1:8080").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bootstrap.yaml");
    let backend = backend("static");
    let bootstrap = format!(
        "
node: {{id: test, cluster: test}}
static_resources:
  clusters:
  - name: backend
    type: STATIC
    load_assignment:
      cluster_name: backend
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]
  listeners:
  - name: front
    address: {{socket_address: {{address: 127.53.3.1, port_value: 8080}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: front
          cluster: backend
",
        backend.ip(),
        backend.port()
    );
    std::fs::write(&file, &bootstrap).unwrap();
    let arguments = ["proxy", "-c", file.to_str().unwrap(), "--concurrency", "1"];
    let output = weft(&arguments);
    let error = stderr(&output);
    assert!(!output.status.success(), "{error}");
    for word in ["static Listener front: address", "127.53.3.1:8080", "ss -ltnp"] {
        assert!(error.contains(word), "no {word:?} in {error}");
    }
    drop(taken);
    let _proxy = Logged::weft(&arguments);
    let serves =
        || get("127.53.3.1:8080".parse().unwrap(), "/").is_ok_and(|a| a == (200, "static".to_owned()));
    eventually("the same file serves once the port is free", serves);

    // What is wrong in a bootstrap is named by its place.
    for (from, to, words) in [
        (
            "stat_prefix: front",
            "stat_prefx: front",
            &["listeners[0].filter_chains[0].filters[0].typed_config.stat_prefx", "no such field"][..],
        ),
        ("type: STATIC", "type: STATC", &["static_resources.clusters[0].type", "STATC"]),
        ("          cluster: backend", "", &["static_resources", "cluster"]),
        ("node: {", "node: {{", &["bootstrap"]),
    ] {
        std::fs::write(&file, bootstrap.replace("127.53.3.1", "127.53.3.2").replace(from, to)).unwrap();
        let output = weft(&arguments);
        let error = stderr(&output);
        assert!(!output.status.success(), "{to}: {error}");
        for word in words.iter().chain(&[file.to_str().unwrap()]) {
            assert!(error.contains(word), "{to}: no {word:?} in {error}");
        }
    }
}
