//! The h2spec suite (RFC 9113, RFC 7541) against our HTTP/2 server side: every case passes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use serde_json::{Value, json};

use crate::programs::{Process, get, peer, weft, weft_proxy};

const HOST: Ipv4Addr = Ipv4Addr::new(127, 30, 8, 1);
/// Cases of h2spec 2.2: a run that stops early or finds fewer has shown nothing.
const CASES: &str = "145 tests, 145 passed, 0 skipped, 0 failed";

fn address(port: u16) -> Value {
    json!({ "socket_address": { "address": HOST.to_string(), "port_value": port } })
}

#[test]
fn every_case_of_h2spec_passes() {
    let directory = tempfile::tempdir().unwrap();
    let at = |port| SocketAddr::new(IpAddr::V4(HOST), port);
    let mut app = weft();
    app.arg("app").args(["--listen", &at(18080).to_string()]);
    let mut app = Process::start("app", &mut app, directory.path());
    let bootstrap = json!({
        "node": { "id": "h2spec", "cluster": "h2spec" },
        "admin": { "address": address(9901) },
        "static_resources": {
            "listeners": [{
                "name": "h2", "address": address(8080),
                "filter_chains": [{ "filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                        "stat_prefix": "h2",
                        "codec_type": "HTTP2",
                        "route_config": { "virtual_hosts": [{
                            "name": "all", "domains": ["*"],
                            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "app" } }]
                        }] },
                        "http_filters": [{
                            "name": "envoy.filters.http.router",
                            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" }
                        }]
                    }
                }] }]
            }],
            "clusters": [{
                "name": "app", "type": "STATIC",
                "load_assignment": { "cluster_name": "app", "endpoints": [{ "lb_endpoints": [{
                    "endpoint": { "address": address(18080) }
                }] }] }
            }]
        }
    });
    let file = directory.path().join("bootstrap.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&bootstrap).unwrap()).unwrap();
    let mut proxy = weft_proxy();
    proxy.arg("-c").arg(&file).args(["--concurrency", "1"]);
    let mut proxy = Process::start("proxy", &mut proxy, directory.path());
    proxy.wait("ready", || get(at(9901), "/ready").is_ok_and(|(status, _)| status == 200));
    app.wait("ready", || get(at(18080), "/").is_ok_and(|(status, _)| status == 200));

    let run = Command::new(peer("WEFT_H2SPEC"))
        .args(["--host", &HOST.to_string(), "--port", "8080", "--timeout", "5"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(text.contains(CASES), "{text}\nthe proxy:\n{}", proxy.log());
}
