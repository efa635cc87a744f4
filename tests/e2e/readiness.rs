//! A proxy is ready when its first configuration, its listeners and its certificate are there, and says what is missing.

use std::net::SocketAddr;

use crate::support::control::Control;
use crate::support::http::{backend, get};
use crate::support::logged::Logged;
use crate::support::management::Management;
use crate::support::world::{TO_BACKEND, all, cluster, listener, routes};
use crate::support::{eventually, free_address, stderr, stdout, weft};

struct Proxy {
    _process: Logged,
    ip: &'static str,
}

impl Proxy {
    fn start(ip: &'static str, control: SocketAddr, more: &[&str]) -> Self {
        let (control, admin) = (control.to_string(), format!("{ip}:15000"));
        let own = ["proxy", "--xds-address", &control, "--xds-plaintext", "--concurrency", "1", "--ip", ip];
        let process = Logged::weft(&[&own[..], &["--admin-address", &admin], more].concat());
        Self { _process: process, ip }
    }

    /// Both ports that kubelet may ask say the same.
    fn asked(&self) -> Option<(u16, String)> {
        let at = |port: u16| get(format!("{}:{port}", self.ip).parse().unwrap(), "/healthz/ready").ok();
        let (health, agent) = (at(15021)?, at(15020)?);
        (health == agent).then_some(health)
    }

    fn is_not_ready_for(&self, words: &[&str]) {
        eventually(&format!("unready for {words:?}"), || {
            self.asked().is_some_and(|(status, why)| status == 503 && words.iter().all(|w| why.contains(w)))
        });
    }

    fn is_ready(&self) {
        eventually("it is ready", || self.asked() == Some((200, "LIVE\n".to_owned())));
    }
}

#[test]
fn without_a_first_configuration_it_is_not_ready() {
    let proxy = Proxy::start("127.50.1.1", free_address(), &[]);
    let words = ["PRE_INITIALIZING", "no clusters from the control plane (no stream)", "no listeners"];
    proxy.is_not_ready_for(&words);
    // Envoy's own page has Envoy's own words.
    let ready = get("127.50.1.1:15000".parse().unwrap(), "/ready").unwrap();
    assert_eq!(ready, (503, "PRE_INITIALIZING\n".to_owned()));
}

#[test]
fn without_listeners_or_while_they_wait_for_their_routes_it_is_not_ready() {
    let (server, backend) = (Management::start(), backend("backend"));
    let wrong = listener("main", "127.50.2.1", 8080, "").replace("port_value: 8080", "port_value: 80800");
    server.push(&all(&[cluster("backend", backend, ""), wrong]));
    let proxy = Proxy::start("127.50.2.1", server.address, &[]);
    proxy.is_not_ready_for(&["no listeners from the control plane (refused, see the log)"]);

    let server = Management::start();
    server.push(&all(&[cluster("backend", backend, ""), listener("main", "127.50.3.1", 8080, "")]));
    let proxy = Proxy::start("127.50.3.1", server.address, &[]);
    proxy.is_not_ready_for(&["listeners wait for their routes: main"]);
    server.push(&routes(TO_BACKEND));
    proxy.is_ready();
}

#[test]
fn without_its_certificate_it_is_not_ready() {
    let (server, backend) = (Management::start(), backend("backend"));
    server.push(&all(&[
        cluster("backend", backend, ""),
        listener("main", "127.50.4.1", 8080, ""),
        routes(TO_BACKEND),
    ]));
    let control = Control::start("127.50.5.1", "");
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    let (authority, root) = (format!("{}:15012", control.ip), control.root());
    let proxy = Proxy::start(
        "127.50.4.1",
        server.address,
        &[
            "--ca-address",
            &authority,
            "--root-cert",
            root.to_str().unwrap(),
            "--token-file",
            token.to_str().unwrap(),
        ],
    );
    eventually("it serves", || get("127.50.4.1:8080".parse().unwrap(), "/").is_ok_and(|a| a.0 == 200));
    proxy.is_not_ready_for(&["PRE_INITIALIZING: the workload has no certificate", token.to_str().unwrap()]);
    let text = weft_control::ca::token::create(
        &control.state(),
        "default",
        "default",
        std::time::Duration::from_secs(600),
    );
    std::fs::write(&token, text.unwrap()).unwrap();
    proxy.is_ready();
}

#[test]
fn an_application_is_held_back_until_its_proxy_is_ready() {
    let (server, backend) = (Management::start(), backend("backend"));
    let url = "http://127.50.6.1:15021/healthz/ready";
    let wait = |seconds: &str| {
        weft(&[
            "wait",
            "--url",
            url,
            "--timeoutSeconds",
            seconds,
            "--periodMillis",
            "50",
            "--requestTimeoutMillis",
            "200",
        ])
    };
    let output = wait("1");
    let error = stderr(&output);
    assert!(
        !output.status.success() && error.contains("not ready after 1s") && error.contains(url),
        "{error}"
    );
    let waits_for_routes = listener("main", "127.50.6.1", 8080, "");
    server.push(&all(&[cluster("backend", backend, ""), waits_for_routes]));
    let proxy = Proxy::start("127.50.6.1", server.address, &[]);
    proxy.is_not_ready_for(&["listeners wait for their routes"]);
    let output = wait("1");
    assert!(
        !output.status.success() && stderr(&output).contains("status 503: PRE_INITIALIZING"),
        "{}",
        stderr(&output)
    );

    let waiting = std::thread::spawn(move || {
        weft(&["wait", "--url", url, "--timeoutSeconds", "20", "--periodMillis", "50"])
    });
    server.push(&routes(TO_BACKEND));
    let output = waiting.join().unwrap();
    assert!(output.status.success() && stderr(&output).contains("the proxy is ready"), "{}", stderr(&output));
    assert_eq!(get("127.50.6.1:8080".parse().unwrap(), "/").unwrap().0, 200);
    assert!(stdout(&output).is_empty());
    let output = weft(&["wait", "--url", "https://127.50.6.1/"]);
    assert!(!output.status.success() && stderr(&output).contains("http://"), "{}", stderr(&output));
}
