//! The two proxies of the configured cases: one bootstrap each, a listener and its clusters for every case.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use serde_json::{Value, json};

use super::all;
use super::certificates;
use super::spec::{Case, Cluster, Endpoint, cluster_name, extension, merge, substitute};
use crate::differential::lines;
use crate::programs::{Process, get, peer, weft_proxy};

/// Ports below those that the kernel gives to clients.
const FIRST_PORT: u16 = 12000;
const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Whose answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The oracle.
    Envoy,
    /// Ours.
    Weft,
}

impl Side {
    /// Where it listens, and where its connections to the upstreams come from.
    pub fn ip(self) -> Ipv4Addr {
        Ipv4Addr::new(127, 30, 3, if self == Self::Envoy { 1 } else { 2 })
    }

    /// A port of it.
    pub fn at(self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.ip()), port)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        if self == Self::Envoy { "envoy" } else { "weft" }
    }
}

/// Where the server behind the n-th endpoint of a case listens, for both sides.
pub fn endpoint_address(place: usize, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 30, 2, 10 + u8::try_from(place).unwrap())), port)
}

/// The second port of a case's listener, where it has one.
pub fn other_port(port: u16) -> u16 {
    port + 4000
}

/// Both proxies, running.
pub struct Pair {
    envoy: Process,
    weft: Process,
    directory: tempfile::TempDir,
    first_port: u16,
}

static RUNNING: Mutex<Weak<Pair>> = Mutex::new(Weak::new());

/// The pair; tests that run at the same time share one, and the last of them ends it.
pub fn pair() -> Arc<Pair> {
    let mut running = RUNNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(pair) = running.upgrade() {
        return pair;
    }
    let pair = Arc::new(Pair::start(&all(), FIRST_PORT));
    *running = Arc::downgrade(&pair);
    pair
}

impl Pair {
    /// A pair with these cases, whose ports begin here (the one before is the admin interface's).
    pub fn start(cases: &[Case], first_port: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        certificates::write(directory.path());
        let write = |side: Side| {
            let path = directory.path().join(format!("{}.json", side.name()));
            let bootstrap = bootstrap(side, cases, first_port, directory.path());
            std::fs::write(&path, serde_json::to_vec_pretty(&bootstrap).unwrap()).unwrap();
            path
        };
        let mut envoy = Command::new(peer("WEFT_ENVOY"));
        envoy.arg("-c").arg(write(Side::Envoy)).args(["--concurrency", "1", "--disable-hot-restart"]);
        envoy.args(["-l", "warning", "--file-flush-interval-msec", "20"]);
        let mut ours = weft_proxy();
        ours.arg("-c").arg(write(Side::Weft)).args(["--concurrency", "1"]);
        ours.args(["--request-sample", "1", "--request-record-kib", "65536"]);
        let mut envoy = Process::start("envoy", &mut envoy, directory.path());
        let mut weft = Process::start("weft", &mut ours, directory.path());
        let ready = |side: Side| {
            move || get(side.at(first_port - 1), "/ready").is_ok_and(|(status, _)| status == 200)
        };
        envoy.wait("ready", ready(Side::Envoy));
        weft.wait("ready", ready(Side::Weft));
        Self { envoy, weft, directory, first_port }
    }

    /// The port of a case: its listener's and its servers'.
    pub fn port(&self, index: usize) -> u16 {
        self.first_port + u16::try_from(index).unwrap()
    }

    /// A side's admin interface.
    pub fn admin(&self, side: Side) -> SocketAddr {
        side.at(self.first_port - 1)
    }

    /// Where certificates, logs and configurations are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What a side has written about itself.
    pub fn log(&self, side: Side) -> String {
        if side == Side::Envoy { self.envoy.log() } else { self.weft.log() }
    }

    /// Where a side writes of hosts that it ejects.
    pub fn event_log(&self, side: Side) -> PathBuf {
        self.directory.path().join(format!("{}.events.log", side.name()))
    }

    /// The access log of a side.
    pub fn access_log(&self, side: Side) -> PathBuf {
        self.directory.path().join(format!("{}.access.log", side.name()))
    }
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn bootstrap(side: Side, cases: &[Case], first_port: u16, directory: &Path) -> Value {
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for (port, case) in (first_port..).zip(cases) {
        let own = |mut value: Value| {
            substitute(&mut value, &|text| {
                text.replace("{ip}", &side.ip().to_string())
                    .replace("{case_port}", &port.to_string())
                    .replace("{other_port}", &other_port(port).to_string())
            });
            value
        };
        listeners.push(own(listener(side, case, port)));
        let mut place = 0;
        for (name, cluster) in &case.clusters {
            clusters.push(own(self::cluster(side, &cluster_name(&case.name, name), cluster, port, place)));
            place += cluster.endpoints.len();
        }
    }
    let mut bootstrap = json!({
        "node": {
            "id": "sidecar~127.30.3.1~differential.test~test.svc.cluster.local", "cluster": "differential",
            "locality": { "region": "here", "zone": "a" },
            "metadata": { "INSTANCE_IPS": "127.30.3.1", "NAMESPACE": "test" }
        },
        "admin": { "address": socket(side.at(first_port - 1)) },
        "cluster_manager": { "outlier_detection": { "event_log_path": "{dir}/{side}.events.log" } },
        "static_resources": { "listeners": listeners, "clusters": clusters }
    });
    substitute(&mut bootstrap, &|text| {
        text.replace("{dir}", directory.to_str().unwrap()).replace("{side}", side.name())
    });
    bootstrap
}

fn access_log(case: &Case) -> Value {
    let path = "{dir}/{side}.access.log";
    let mut named = json!({ "json_format": {
        "case": case.name,
        "request": "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "termination": "%CONNECTION_TERMINATION_DETAILS%",
        "route": "%ROUTE_NAME%",
        "cluster": "%UPSTREAM_CLUSTER_RAW%",
        "host": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "received": "%BYTES_RECEIVED%",
        "sent": "%BYTES_SENT%",
        "sni": "%REQUESTED_SERVER_NAME%",
        "closed": "%DOWNSTREAM_DETECTED_CLOSE_TYPE% %UPSTREAM_DETECTED_CLOSE_TYPE%",
        "closed_for": "%DOWNSTREAM_LOCAL_CLOSE_REASON% %UPSTREAM_LOCAL_CLOSE_REASON%",
        "peer": "%DOWNSTREAM_PEER_URI_SAN%",
        "upstream_tls": "%UPSTREAM_PEER_URI_SAN% %UPSTREAM_PEER_DNS_SAN% %UPSTREAM_PEER_SUBJECT% %UPSTREAM_LOCAL_URI_SAN%"
    } });
    for (field, format) in &case.formats {
        named["json_format"][field] = json!(format);
    }
    let mut logs = vec![lines::logger(path, Some(named))];
    if case.has_default_lines() {
        logs.extend(lines::loggers(path));
    }
    if !case.log_filter.is_null() {
        logs.iter_mut().for_each(|log| log["filter"] = case.log_filter.clone());
    }
    json!(logs)
}

fn manager(case: &Case, fields: &Value) -> Value {
    let mut action = json!({ "cluster": cluster_name(&case.name, "up") });
    merge(&mut action, &case.route);
    let mut route = json!({ "match": { "prefix": "/" }, "route": action });
    merge(&mut route, &case.route_fields);
    let routes = case.routes.clone().unwrap_or_else(|| json!([route]));
    let mut host = json!({ "name": "all", "domains": ["*"], "routes": routes });
    merge(&mut host, &case.vhost);
    let hosts = case.vhosts.clone().unwrap_or_else(|| json!([host]));
    let mut routes = json!({ "name": case.name, "virtual_hosts": hosts });
    merge(&mut routes, &case.route_config);
    let mut filters: Vec<_> = case.filters.iter().map(extension).collect();
    let mut router = json!({ "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" });
    merge(&mut router, &case.router);
    filters.push(json!({ "name": "envoy.filters.http.router", "typed_config": router }));
    let mut manager = json!({
        "@type": MANAGER,
        "stat_prefix": case.name,
        "delayed_close_timeout": "0.2s",
        "route_config": routes,
        "http_filters": filters,
        "access_log": access_log(case)
    });
    merge(&mut manager, &case.hcm);
    merge(&mut manager, fields);
    json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager })
}

fn network(case: &Case, fields: &Value) -> Vec<Value> {
    let mut filters: Vec<_> = case.network.iter().map(extension).collect();
    match &case.tcp {
        None => filters.push(manager(case, fields)),
        Some(proxy) => {
            let mut config = json!({
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": case.name,
                "access_log": access_log(case)
            });
            if proxy.get("weighted_clusters").is_none() {
                config["cluster"] = json!(cluster_name(&case.name, "up"));
            }
            merge(&mut config, proxy);
            filters.push(json!({ "name": "envoy.filters.network.tcp_proxy", "typed_config": config }));
        }
    }
    filters
}

/// A chain of a case; `hcm` in it are fields of its connection manager.
fn chain(case: &Case, fields: &Value) -> Value {
    let mut chain = fields.clone();
    if chain.is_null() {
        chain = json!({});
    }
    let of_manager = chain.as_object_mut().and_then(|c| c.remove("hcm")).unwrap_or_default();
    if chain.get("filters").is_none() {
        chain["filters"] = json!(network(case, &of_manager));
    }
    chain
}

fn listener(side: Side, case: &Case, port: u16) -> Value {
    let mut chains: Vec<_> = case.chains.iter().map(|fields| chain(case, fields)).collect();
    if chains.is_empty() {
        chains.push(chain(case, &case.chain));
    }
    let mut fields = case.listener.clone();
    if let Some(default) = fields.get_mut("default_filter_chain") {
        *default = chain(case, default);
    }
    if let Some(filters) = fields.get_mut("listener_filters").and_then(Value::as_array_mut) {
        filters.iter_mut().for_each(|f| *f = extension(f));
    }
    let mut listener = json!({
        "name": case.name,
        "stat_prefix": case.name,
        "address": socket(side.at(port)),
        "filter_chains": chains
    });
    merge(&mut listener, &fields);
    listener
}

fn cluster(side: Side, name: &str, cluster: &Cluster, port: u16, place: usize) -> Value {
    let mut localities: Vec<(Value, Vec<Value>)> = Vec::new();
    for (number, endpoint) in cluster.endpoints.iter().enumerate() {
        let lb = lb_endpoint(endpoint, endpoint_address(place + number, port));
        match localities.iter_mut().find(|(fields, _)| *fields == endpoint.locality) {
            Some((_, endpoints)) => endpoints.push(lb),
            None => localities.push((endpoint.locality.clone(), vec![lb])),
        }
    }
    let localities: Vec<_> = localities
        .into_iter()
        .map(|(fields, endpoints)| {
            let mut locality = json!({ "lb_endpoints": endpoints });
            merge(&mut locality, &fields);
            locality
        })
        .collect();
    let mut proto = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "upstream_bind_config": { "source_address": { "address": side.ip().to_string(), "port_value": 0 } },
        "load_assignment": { "cluster_name": name, "endpoints": localities }
    });
    if cluster.h2 && cluster.fields.get("typed_extension_protocol_options").is_none() {
        proto["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} }
            }
        });
    }
    merge(&mut proto, &cluster.fields);
    if proto["type"] == "ORIGINAL_DST"
        && let Some(fields) = proto.as_object_mut()
    {
        fields.remove("load_assignment");
    }
    proto
}

fn lb_endpoint(endpoint: &Endpoint, address: SocketAddr) -> Value {
    let mut proto = json!({ "endpoint": { "address": socket(address) } });
    merge(&mut proto, &endpoint.fields);
    proto
}
