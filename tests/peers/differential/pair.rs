//! One Envoy and one proxy of ours with the same configuration: a listener and a cluster for every case.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use serde_json::{Value, json};

use super::case::Case;
use super::{cases, lines};
use crate::programs::{Process, get, peer, weft_proxy};

/// Ports below those that the kernel gives to clients.
const FIRST_PORT: u16 = 11000;

/// Whose answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The oracle.
    Envoy,
    /// Ours.
    Weft,
}

impl Side {
    /// Where it listens. Both addresses have the same length, so that no length depends on them.
    pub fn address(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, 30, 0, if self == Self::Envoy { 1 } else { 2 }))
    }

    /// Where its upstreams listen.
    pub fn upstream_address(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, 30, 1, if self == Self::Envoy { 1 } else { 2 }))
    }

    pub fn admin(self) -> SocketAddr {
        SocketAddr::new(self.address(), 9901)
    }

    /// The name of its access log.
    fn access_log(self) -> &'static str {
        if self == Self::Envoy { "envoy.access.log" } else { "weft.access.log" }
    }
}

/// The port of a case, of its listener and of its upstream alike.
pub fn port(name: &str) -> u16 {
    let index = cases::all().iter().position(|c| c.name == name).expect("a case is in the list of all");
    FIRST_PORT + index as u16
}

/// Both proxies, running.
pub struct Pair {
    _envoy: Process,
    _weft: Process,
    directory: tempfile::TempDir,
}

static RUNNING: Mutex<Weak<Pair>> = Mutex::new(Weak::new());

/// The pair; tests that run at the same time share one, and the last of them ends it.
pub fn pair() -> Arc<Pair> {
    let mut running = RUNNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(pair) = running.upgrade() {
        return pair;
    }
    let pair = Arc::new(Pair::start());
    *running = Arc::downgrade(&pair);
    pair
}

impl Pair {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |side: Side, name: &str| {
            let path = directory.path().join(name);
            let log = directory.path().join(side.access_log());
            let bootstrap = bootstrap(side, log.to_str().unwrap());
            std::fs::write(&path, serde_json::to_vec_pretty(&bootstrap).unwrap()).unwrap();
            path
        };
        let mut envoy = Command::new(peer("WEFT_ENVOY"));
        envoy.arg("-c").arg(write(Side::Envoy, "envoy.json"));
        envoy.args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning"]);
        envoy.args(["--file-flush-interval-msec", "20"]);
        let mut ours = weft_proxy();
        ours.arg("-c").arg(write(Side::Weft, "weft.json")).args(["--concurrency", "1"]);
        ours.args(["--request-sample", "1", "--request-record-kib", "65536"]);
        let mut envoy = Process::start("envoy", &mut envoy, directory.path());
        let mut ours = Process::start("weft", &mut ours, directory.path());
        let ready = |side: Side| move || get(side.admin(), "/ready").is_ok_and(|(status, _)| status == 200);
        envoy.wait("ready", ready(Side::Envoy));
        ours.wait("ready", ready(Side::Weft));
        Self { _envoy: envoy, _weft: ours, directory }
    }

    /// What a side has in its access log of a case, as far as all are to be equal.
    pub fn log(&self, side: Side, case: &str) -> Vec<String> {
        let text = std::fs::read(self.directory.path().join(side.access_log())).unwrap_or_default();
        lines::of_case(&String::from_utf8_lossy(&text), case, false)
    }
}

fn bootstrap(side: Side, log: &str) -> Value {
    let cases = cases::all();
    let ports = FIRST_PORT..;
    let listeners: Vec<_> = cases.iter().zip(ports.clone()).map(|(c, p)| listener(side, c, p, log)).collect();
    let clusters: Vec<_> = cases.iter().zip(ports).map(|(c, p)| cluster(side, c, p)).collect();
    json!({
        "node": { "id": "differential", "cluster": "differential" },
        "admin": { "address": socket(side.admin()) },
        "static_resources": { "listeners": listeners, "clusters": clusters }
    })
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn merge(into: &mut Value, fields: &Value) {
    match (into, fields) {
        (Value::Object(into), Value::Object(fields)) => {
            for (key, value) in fields {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, value) => *into = value.clone(),
    }
}

fn listener(side: Side, case: &Case, port: u16, log: &str) -> Value {
    let mut action = json!({ "cluster": case.name });
    merge(&mut action, &case.route);
    let routes =
        case.routes.clone().unwrap_or_else(|| json!([{ "match": { "prefix": "/" }, "route": action }]));
    let mut logs = vec![lines::logger(log, Some(json!({ "json_format": { "case": case.name } })))];
    logs.extend(lines::loggers(log));
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": case.name,
        // Envoy closes this long after an answer that ends its connection; we close for sending at once.
        "delayed_close_timeout": "0.2s",
        "access_log": logs,
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" }
        }]
    });
    merge(&mut manager, &case.hcm);
    json!({
        "name": case.name,
        "address": socket(SocketAddr::new(side.address(), port)),
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": manager
        }] }]
    })
}

fn cluster(side: Side, case: &Case, port: u16) -> Value {
    let mut cluster = json!({
        "name": case.name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": case.name,
            "endpoints": [{ "lb_endpoints": [{
                "endpoint": { "address": socket(SocketAddr::new(side.upstream_address(), port)) }
            }] }]
        }
    });
    merge(&mut cluster, &case.cluster);
    cluster
}
