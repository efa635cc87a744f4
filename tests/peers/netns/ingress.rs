//! An ingress that is no part of the mesh, with an identity of the mesh from `weft cert fetch`, before a captured workload that
//! takes nothing but mutual TLS.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::PATIENCE;
use super::captured::{MARKER, Says, start};
use super::hosts::{Host, Net, Serving};
use super::pods::{MESH, OUTSIDE, Pods, Program, service};
use crate::programs::{Process, peer, weft};

fn ask(from: &Host, path: &str) -> (String, String) {
    let answer = from.inside(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(OUTSIDE, 8081), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n")?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    });
    let text = answer.unwrap_or_default();
    let status = text.get(9..12).unwrap_or_default().to_owned();
    (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// A workload behind its sidecar, and outside of the mesh a directory of an identity that changes every few seconds.
struct Edge {
    net: Net,
    pods: Pods,
    _server: Serving,
    directory: tempfile::TempDir,
}

impl Edge {
    fn new() -> Self {
        let net = Net::new();
        let mesh =
            service("users", "10.96.0.10", "server", "{name: http, port: 80, targetPort: 8080}") + MESH;
        let pods = Pods::new(&net, &mesh, [Program::Weft, Program::Weft]);
        let _server = start(&net.server, 8080, Says::Http);
        Self { net, pods, _server, directory: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// Fetches an identity of this service account, and runs something after each change.
    fn fetch(&self, account: &str, follow: &str) -> Process {
        let state = self.pods.file("state");
        let lifetime = Duration::from_secs(600);
        let token = weft_control::ca::token::create(Path::new(&state), "edge", account, lifetime);
        std::fs::write(self.file("token"), token.unwrap()).unwrap();
        let address = SocketAddr::new(OUTSIDE, 15012).to_string();
        let mut fetch = weft();
        fetch.args(["cert", "fetch", "--watch", "--cert-ttl", "10s", "--namespace", "edge"]);
        fetch.args(["--service-account", account, "--ca-address", &address, "--out", &self.file("out")]);
        fetch.args(["--root-cert", &self.pods.file("state/root-cert.pem")]);
        fetch.args(["--token-file", &self.file("token")]);
        fetch.args(["--run", &format!("echo >> {}; {follow}", self.file("changes"))]);
        let mut fetch = Process::start("fetch", &mut self.net.gateway.command(&fetch), self.directory.path());
        fetch.wait("fetching", || self.changes() > 0);
        fetch
    }

    fn changes(&self) -> usize {
        std::fs::read_to_string(self.file("changes")).map_or(0, |text| text.lines().count())
    }

    /// Asks all the time while the identity changes so often that the first certificate is over.
    fn ask_over_a_life(&self, path: &str, account: &str, logs: impl Fn() -> String) {
        let body = format!("{MARKER}, 127.0.0.6, spiffe://cluster.local/ns/edge/sa/{account}");
        let ok = ("200".to_owned(), body);
        let (before, end) = (self.changes(), Instant::now() + Duration::from_secs(30));
        let mut asked = 0;
        while self.changes() < before + 3 {
            assert_eq!(ask(&self.net.gateway, path), ok, "request {asked}: {}", logs());
            asked += 1;
            assert!(Instant::now() < end, "the certificate is not renewed\n{}", logs());
        }
        assert!(asked > 20, "{asked}");
        assert_eq!(ask(&self.net.gateway, path), ok, "{}", logs());
    }
}

#[test]
fn envoy_follows_the_files_by_itself() {
    let edge = Edge::new();
    let fetch = edge.fetch("envoy", "true");
    let dir = edge.directory.path().display();
    let secret = format!(
        "
resources:
  - \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
    name: own
    tls_certificate:
      certificate_chain: {{filename: {dir}/out/cert-chain.pem}}
      private_key: {{filename: {dir}/out/key.pem}}
      watched_directory: {{path: {dir}/out}}
"
    );
    std::fs::write(edge.file("sds.yaml"), secret).unwrap();
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let hcm = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let bootstrap = json!({"node": {"id": "front", "cluster": "front"}, "static_resources": {
        "listeners": [{
            "address": {"socket_address": {"address": OUTSIDE.to_string(), "port_value": 8081}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": {
                "@type": hcm, "stat_prefix": "front",
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/v1/"}, "route": {"cluster": "users", "host_rewrite_literal": "users.shop"}}]}]},
                "http_filters": [{"name": "router", "typed_config": {"@type": router}}],
            }}]}],
        }],
        "clusters": [{
            "name": "users", "type": "STATIC", "connect_timeout": "2s",
            // Each request with a handshake of its own.
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http_protocol_options": {}},
                "common_http_protocol_options": {"max_requests_per_connection": 1}}},
            "load_assignment": {"cluster_name": "users", "endpoints": [{"lb_endpoints": [{"endpoint": {
                "address": {"socket_address": {"address": "10.78.0.3", "port_value": 8080}}}}]}]},
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                "@type": tls,
                "common_tls_context": {
                    "tls_certificate_sds_secret_configs": [{"name": "own", "sds_config": {
                        "path_config_source": {"path": edge.file("sds.yaml")}}}],
                    "validation_context": {
                        "trusted_ca": {"filename": edge.file("out/root-cert.pem")},
                        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {
                            "exact": "spiffe://cluster.local/ns/shop/sa/server"}}],
                    },
                },
            }},
        }],
    }});
    std::fs::write(edge.file("envoy.json"), bootstrap.to_string()).unwrap();
    let mut envoy = Command::new(peer("WEFT_ENVOY"));
    envoy.args([
        "--disable-hot-restart",
        "-l",
        "warning",
        "--concurrency",
        "1",
        "-c",
        &edge.file("envoy.json"),
    ]);
    let mut envoy = Process::start("envoy", &mut edge.net.gateway.command(&envoy), edge.directory.path());
    envoy.wait("serving", || ask(&edge.net.client, "/").0 == "404");
    edge.ask_over_a_life("/v1/users", "envoy", || envoy.log() + &fetch.log());
}

#[test]
fn nginx_reaches_a_strict_workload_with_an_identity_that_stays_fresh() {
    let edge = Edge::new();
    let (net, outside, directory) = (&edge.net, &edge.net.gateway, &edge.directory);
    let file = |name: &str| edge.file(name);
    // Its own routing, its own authentication and its own limits are nginx's; the mesh is behind it.
    let config = format!(
        "
daemon off;
worker_processes 1;
pid {dir}/pid;
error_log {dir}/error;
events {{}}
http {{
  access_log off;
  client_body_temp_path {dir}/1; proxy_temp_path {dir}/2; fastcgi_temp_path {dir}/3; uwsgi_temp_path {dir}/4; scgi_temp_path {dir}/5;
  limit_req_zone $binary_remote_addr zone=one:1m rate=1r/m;
  server {{
    listen {OUTSIDE}:8081;
    proxy_ssl_certificate {dir}/out/cert-chain.pem;
    proxy_ssl_certificate_key {dir}/out/key.pem;
    proxy_ssl_session_reuse off;
    proxy_http_version 1.1;
    proxy_set_header Host users.shop;
    location /v1/ {{ proxy_pass https://10.78.0.3:8080; }}
    location /v2/ {{ if ($http_authorization = '') {{ return 401; }} proxy_pass https://10.78.0.3:8080; }}
    location /limited/ {{ limit_req zone=one; proxy_pass https://10.78.0.3:8080; }}
    location /plain/ {{ proxy_pass http://10.78.0.3:8080; }}
  }}
}}
",
        dir = directory.path().display()
    );
    std::fs::write(file("nginx.conf"), config).unwrap();
    let fetch = edge.fetch("nginx", &format!("kill -HUP $(cat {}) 2>/dev/null || true", file("pid")));
    let mut nginx = Command::new(peer("WEFT_NGINX"));
    nginx.args(["-p", &file(""), "-c", &file("nginx.conf")]);
    let mut nginx = Process::start("nginx", &mut outside.command(&nginx), directory.path());
    nginx.wait("serving", || ask(&net.client, "/").0 == "404");

    edge.ask_over_a_life("/v1/users", "nginx", || nginx.log() + &fetch.log());
    // What nginx decides holds; and without the identity the workload is not to be had.
    assert_eq!(ask(outside, "/v2/users").0, "401");
    assert_eq!(ask(outside, "/limited/users").0, "200");
    assert_eq!(ask(outside, "/limited/users").0, "503");
    let (status, text) = ask(outside, "/plain/users");
    assert!(status == "502" && !text.contains(MARKER), "{status} {text}");
}
