//! An ingress that is no part of the mesh, with an identity of the mesh from `weft cert fetch`, before a captured workload that
//! takes nothing but mutual TLS.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::captured::{MARKER, Says, Server};
use super::hosts::{Host, Net};
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

#[test]
fn nginx_reaches_a_strict_workload_with_an_identity_that_stays_fresh() {
    let net = Net::new();
    let mesh = service("users", "10.96.0.10", "server", "{name: http, port: 80, targetPort: 8080}") + MESH;
    let pods = Pods::new(&net, &mesh, [Program::Weft, Program::Weft]);
    let _server = Server::start(&net.server, 8080, Says::Http);
    let (outside, directory) = (&net.gateway, tempfile::tempdir().unwrap());
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();

    let state = pods.file("state");
    let token = weft_control::ca::token::create(
        std::path::Path::new(&state),
        "edge",
        "nginx",
        Duration::from_secs(600),
    );
    std::fs::write(file("token"), token.unwrap()).unwrap();
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
    let address = SocketAddr::new(OUTSIDE, 15012).to_string();
    let follow = format!("echo >> {}; kill -HUP $(cat {}) 2>/dev/null || true", file("changes"), file("pid"));
    let mut fetch = weft();
    fetch.args(["cert", "fetch", "--watch", "--cert-ttl", "10s", "--namespace", "edge"]);
    fetch.args(["--service-account", "nginx", "--ca-address", &address, "--out", &file("out")]);
    fetch.args(["--root-cert", &pods.file("state/root-cert.pem"), "--token-file", &file("token")]);
    fetch.args(["--run", &follow]);
    let mut fetch = Process::start("fetch", &mut outside.command(&fetch), directory.path());
    let changes = || std::fs::read_to_string(file("changes")).map_or(0, |text| text.lines().count());
    fetch.wait("fetching", || changes() > 0);
    let mut nginx = Command::new(peer("WEFT_NGINX"));
    nginx.args(["-p", &file(""), "-c", &file("nginx.conf")]);
    let mut nginx = Process::start("nginx", &mut outside.command(&nginx), directory.path());
    nginx.wait("serving", || ask(&net.client, "/").0 == "404");

    let body = format!("{MARKER}, 127.0.0.6, spiffe://cluster.local/ns/edge/sa/nginx");
    let ok = || ("200".to_owned(), body.clone());
    // While its certificate is replaced, more than once.
    let (before, end) = (changes(), Instant::now() + Duration::from_secs(30));
    let mut asked = 0;
    while changes() < before + 2 {
        assert_eq!(ask(outside, "/v1/users"), ok(), "request {asked}: {}\n{}", nginx.log(), fetch.log());
        asked += 1;
        assert!(Instant::now() < end, "the certificate is not renewed\n{}", fetch.log());
    }
    assert!(asked > 20, "{asked}");
    assert_eq!(ask(outside, "/v1/users"), ok());
    // What nginx decides holds; and without the identity the workload is not to be had.
    assert_eq!(ask(outside, "/v2/users").0, "401");
    assert_eq!(ask(outside, "/limited/users"), ok());
    assert_eq!(ask(outside, "/limited/users").0, "503");
    let (status, text) = ask(outside, "/plain/users");
    assert!(status == "502" && !text.contains(MARKER), "{status} {text}");
}
